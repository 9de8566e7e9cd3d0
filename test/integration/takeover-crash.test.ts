import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import type { Host } from '../../core/host/demo/lab/lab.js';
import { now } from '../../core/host/demo/workload.js';
import { ackHoldUnavailable } from '../../core/io/hold/index.js';
import { DRIVER_NAMES, DriverClients, ENTERED } from '../kit/drivers.js';
import { describeLab, usePairLab } from '../kit/pair-lab.js';
import { eventually } from '../kit/servers.js';
import { PORT, startGateways } from '../kit/takeover.js';
import {
  connectClients,
  expectAlone,
  expectUnharmed,
  letGo,
  pressCommits,
  STANDING,
  total,
  WORKING,
} from '../kit/takeover-scene.js';

/** K1 and K9: the host of a gateway is lost while clients stand at every point at which they can. */
describeLab('the host of a gateway is lost', () => {
  // What a dead host had open, its waiting spares among them, counts on the servers for as long as these do not notice.
  const place = usePairLab({ settings: { max_connections: '600' } });

  it('every client goes on on its connection, by a lease', async () => {
    const { pair } = place;
    const gateways = await startGateways(place, { proof: 'etcd' });
    const clients = await connectClients(place, gateways, STANDING);
    await pressCommits(place, clients);
    const since = now();
    await gateways.crash('a');
    const took = await gateways.took('b');
    expect(took).toMatchObject({ connections: total(STANDING), lost: 0 });
    await pair.standby.thaw();
    await letGo(place);
    await clients.probe();
    const pauses = await place.pauses(clients, since);
    expect(pauses).toHaveLength(STANDING.idle + STANDING.transaction + STANDING.commit);
    const report = await clients.finish();
    expectUnharmed(report, STANDING);
    expect(await place.verdict(report)).toMatchObject({ right: true });
    await expectAlone(place, gateways, ['a', 'b']);
    expect(await gateways.counts('b')).toMatchObject({ kept: total(STANDING), reset: 0 });
    if (process.env.LOG) console.log({ took, longest: Math.max(...pauses) });
  });

  it.skipIf(ackHoldUnavailable() !== null)(
    'every client at work goes on on its connection, where acknowledgements are held',
    async () => {
      const { pair } = place;
      const holdAcknowledgements = { interface: place.lab.host('a').interface };
      const gateways = await startGateways(place, { proof: 'command', clients: 150, pair: { holdAcknowledgements } });
      const clients = await connectClients(place, gateways, WORKING);
      await pressCommits(place, clients);
      const since = now();
      await gateways.crash('a');
      const took = await gateways.took('b');
      expect(took).toMatchObject({ connections: total(WORKING), lost: 0 });
      await pair.standby.thaw();
      await letGo(place);
      const pauses = await place.pauses(clients, since);
      const report = await clients.finish();
      expectUnharmed(report, WORKING);
      expect(await place.verdict(report)).toMatchObject({ right: true });
      await expectAlone(place, gateways, ['a', 'b']);
      expect(await gateways.counts('b')).toMatchObject({ kept: total(WORKING), reset: 0 });
      if (process.env.LOG) console.log({ took, longest: Math.max(...pauses), transactions: report.transactions });
    },
  );

  it('with both drivers, one of them in a large result after made-up values', async () => {
    const { pair, lab } = place;
    const listener = { limits: { clients: 50, answers: '16MiB' } };
    const gateways = await startGateways(place, { proof: 'command', clients: 20, listener });
    await pair.primary.query(ENTERED);
    const all = DRIVER_NAMES.map((name) => new DriverClients(lab.host('client'), name, gateways.address, PORT));
    for (const each of all) place.atEnd(() => each.kill());
    for (const each of all) await each.ready();
    await pair.standby.freeze();
    for (const each of all) await each.middle();
    await gateways.followed('a', 5 * all.length);
    await gateways.crash('a');
    expect(await gateways.took('b')).toMatchObject({ connections: 5 * all.length, lost: 0 });
    await pair.standby.thaw();
    const reports = await Promise.all(all.map((each) => each.finish()));
    for (const { errors, before, after, rows } of reports) {
      expect(errors).toEqual([]);
      expect(after).toEqual(before);
      expect(rows).toBe(40_000);
    }
    const { rows } = await pair.primary.query('SELECT id::text, token::text, who FROM entered ORDER BY who');
    const given = reports.flatMap((report) => Object.entries(report.given).map(([who, row]) => ({ ...row, who })));
    expect(rows).toEqual(given.sort((x, y) => (x.who < y.who ? -1 : 1)));
    expect(given).toHaveLength(4 * all.length);
  });

  it('and with it that of the database primary; the other gateway has the standby promoted', async () => {
    const { pair, lab } = place;
    const database = lab.hosts.find(({ address }) => address === pair.primary.host)!;
    const [wanted, done] = ['wanted', 'done'].map((what) => join(lab.dir, `promotion-${what}`));
    // The gateway decides; what it asks for is done here, where the servers belong to.
    const command = ['sh', '-c', `touch ${wanted}; until [ -e ${done} ]; do sleep 0.02; done`];
    const promotion = { plugin: 'command', command, after: '500ms' };
    const gateways = await startGateways(place, { proof: 'etcd', cluster: { promotion } });
    const clients = await connectClients(place, gateways, STANDING);
    await pressCommits(place, clients);
    const since = now();
    place.atEnd(() => database.reboot());
    await Promise.all([gateways.crash('a'), database.crash()]);
    await pair.standby.thaw();
    await eventually(() => existsSync(wanted), { timeoutMs: 20_000 });
    await pair.failover();
    await lab.host('b').run('touch', [done]);
    expect(await gateways.took('b')).toMatchObject({ connections: total(STANDING), lost: 0 });
    await letGo(place);
    await clients.probe();
    const pauses = await place.pauses(clients, since);
    const report = await clients.finish();
    expectUnharmed(report, STANDING);
    expect(await place.verdict(report)).toMatchObject({ right: true });
    expect(await gateways.counts('b')).toMatchObject({ kept: total(STANDING), reset: 0 });
    if (process.env.LOG) console.log({ longest: Math.max(...pauses) });
  });

  it.skipIf(ackHoldUnavailable() !== null)(
    'its sessions had just got new server sessions: the other one ends those, and waits for none of their locks',
    async () => {
      const { lab, pair } = place;
      // The gateways do not hear each other from some time before the crash on.
      const a = lab.host('a');
      const held = { holdAcknowledgements: { interface: a.interface } };
      const gateways = await startGateways(place, { proof: 'etcd', pair: { silence: '4s', ...held } });
      const counts = { transaction: 10, transfer: 30 };
      const clients = await connectClients(place, gateways, counts);
      let before = new Date();
      const ask = async () => {
        const { rows } = await pair.primary.query(
          `SELECT now() AS now, count(*) FILTER (WHERE xact_start IS NOT NULL AND backend_type = 'client backend')::int AS open
           FROM pg_stat_activity WHERE client_addr = '${a.address}' AND backend_start > $1`,
          [before],
        );
        return rows[0] as { now: Date; open: number };
      };
      before = (await ask()).now;
      await breakConnections(a, pair.primary.port);
      await a.cutFrom(lab.host('b'));
      await a.run('nft', ['delete', 'table', 'inet', 'broken']);
      // Time to repeat the transactions.
      const deadline = now() + 1500;
      await eventually(async () => (await ask()).open > 0 || now() > deadline);
      const since = now();
      await clients.watch();
      await gateways.crash('a');
      expect(await gateways.took('b')).toMatchObject({ connections: total(counts), lost: 0 });
      await clients.probe();
      await place.pauses(clients, since, 20_000);
      const report = await clients.finish();
      expectUnharmed(report, counts);
      expect(await place.verdict(report)).toMatchObject({ right: true });
    },
  );
});

/** Every connection with this port elsewhere is reset as soon as somebody uses it, until the table `broken` is deleted. Resolves when many were. */
async function breakConnections(host: Host, port: number): Promise<void> {
  const rule = `tcp dport ${port} tcp flags & (syn | rst) == 0 counter reject with tcp reset`;
  const chain = `chain out { type filter hook output priority 0; ${rule}; }`;
  await host.run('nft', ['-f', '-'], `table inet broken {\n${chain}\n}\n`);
  await eventually(async () => {
    const { stdout } = await host.run('nft', ['list', 'table', 'inet', 'broken']);
    return Number(/packets (\d+)/.exec(stdout)![1]) > 20;
  });
}
