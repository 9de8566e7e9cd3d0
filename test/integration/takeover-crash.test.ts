import { expect, it } from 'vitest';
import type { ClientCounts, ClientReport } from '../../core/host/demo/lab/clients.js';
import { now } from '../../core/host/demo/workload.js';
import { ackHoldUnavailable } from '../../core/io/hold/index.js';
import { DRIVER_NAMES, DriverClients, ENTERED } from '../kit/drivers.js';
import { describeLab, usePairLab } from '../kit/pair-lab.js';
import { eventually } from '../kit/servers.js';
import { type GatewayPair, PORT, startGateways, type Writer, watchWriters } from '../kit/takeover.js';

/** K1 and K9: the host of a gateway is lost while clients stand at every point at which they can. */
const STANDING = { idle: 20, transaction: 20, waiting: 20, result: 20, commit: 20 };
/** The same, and clients at work. */
const WORKING = { ...STANDING, echo: 10, stream: 2, transfer: 28 };

function expectUnharmed(report: ClientReport, counts: ClientCounts): void {
  expect(report).toMatchObject({ reconnects: 0, errors: [], wrongReads: [] });
  expect(report.connections).toHaveLength(total(counts));
  for (const { portBefore, portNow } of report.connections) expect(portNow).toBe(portBefore);
  const standing = report.claims.filter(({ reference }) => reference.startsWith('lab-'));
  expect(standing).toHaveLength(STANDING.transaction + STANDING.waiting + STANDING.result + STANDING.commit);
  for (const { answer } of standing) expect(answer).toBe('acknowledged');
}

function total(counts: ClientCounts): number {
  return Object.values(counts).reduce((sum, count) => sum + count, 0);
}

describeLab('the host of a gateway is lost', () => {
  const place = usePairLab();

  /**
   * Brings clients to their points, with commits that wait for a standby which stands still.
   * @param sleep seconds until the answer that `waiting` clients wait for
   */
  async function begin(gateways: GatewayPair, counts: ClientCounts, sleep: number) {
    const { pair } = place;
    const clients = await place.clients(counts);
    await watchWriters((sql) => pair.primary.query(sql));
    const think = { inside: 50, between: 20 };
    await clients.begin({ counts, address: gateways.address, port: PORT, think, sleep });
    await gateways.followed('a', total(counts));
    await pair.standby.freeze();
    await clients.press();
    await eventually(async () => (await clients.progress()).committing >= STANDING.commit);
    // Each has reached the server: only the standby is missing.
    await eventually(async () => {
      const { rows } = await pair.primary.query<{ n: number }>(
        "SELECT count(*)::int AS n FROM pg_stat_activity WHERE wait_event = 'SyncRep'",
      );
      return rows[0].n >= STANDING.commit;
    });
    const { connections } = await clients.report();
    const waiting = connections.filter(({ kind, waiting }) => waiting && kind !== 'echo' && kind !== 'transfer');
    expect(waiting.filter(({ kind }) => kind === 'waiting')).toHaveLength(STANDING.waiting);
    expect(waiting.filter(({ kind }) => kind === 'result')).toHaveLength(STANDING.result);
    expect(waiting.filter(({ kind }) => kind === 'commit')).toHaveLength(STANDING.commit);
    await clients.watch();
    return clients;
  }

  /** Nobody wrote while the transaction that was to be repeated still lived on the dead host's connection. */
  async function expectAlone(gateways: GatewayPair): Promise<void> {
    const { primary } = place.pair;
    const { rows } = await primary.query<Writer>('SELECT * FROM writers');
    const [a, b] = [gateways.host('a').address, gateways.host('b').address];
    expect(new Set(rows.map(({ host }) => host))).toEqual(new Set([a, b]));
    expect(rows.filter(({ alone }) => !alone)).toEqual([]);
    const left = await primary.query(
      `SELECT pid, query FROM pg_stat_activity WHERE client_addr = '${a}' AND state <> 'idle'`,
    );
    expect(left.rows).toEqual([]);
  }

  it('every client goes on on its connection, by a lease', async () => {
    const { pair } = place;
    const gateways = await startGateways(place, { proof: 'etcd' });
    const clients = await begin(gateways, STANDING, 6);
    const since = now();
    await gateways.host('a').crash();
    const took = await gateways.took('b');
    expect(took).toMatchObject({ connections: total(STANDING), lost: 0 });
    await pair.standby.thaw();
    await clients.probe();
    const { pauses, silent } = await clients.pauses(since, 30_000);
    expect(silent).toBe(0);
    expect(pauses).toHaveLength(STANDING.idle + STANDING.transaction + STANDING.commit);
    const report = await clients.finish();
    expectUnharmed(report, STANDING);
    expect(await place.verdict(report)).toMatchObject({ right: true });
    await expectAlone(gateways);
    expect(await gateways.counts('b')).toMatchObject({ kept: total(STANDING), reset: 0 });
    if (process.env.LOG) console.log({ took, longest: Math.max(...pauses) });
  });

  it.skipIf(ackHoldUnavailable() !== null)(
    'every client at work goes on on its connection, where acknowledgements are held',
    async () => {
      const { pair } = place;
      const { interface: device } = place.lab.host('a');
      const holdAcknowledgements = { interface: device };
      const gateways = await startGateways(place, { proof: 'command', clients: 150, pair: { holdAcknowledgements } });
      const clients = await begin(gateways, WORKING, 10);
      const since = now();
      await gateways.host('a').crash();
      const took = await gateways.took('b');
      expect(took).toMatchObject({ connections: total(WORKING), lost: 0 });
      await pair.standby.thaw();
      const { pauses, silent } = await clients.pauses(since, 30_000);
      expect(silent).toBe(0);
      const report = await clients.finish();
      expectUnharmed(report, WORKING);
      expect(await place.verdict(report)).toMatchObject({ right: true });
      await expectAlone(gateways);
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
    await gateways.host('a').crash();
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
});
