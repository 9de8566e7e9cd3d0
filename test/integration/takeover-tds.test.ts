import { expect, it } from 'vitest';
import type { ClientCounts, ClientReport } from '../../core/host/demo/lab/clients.js';
import { now } from '../../core/host/demo/workload.js';
import { ackHoldUnavailable } from '../../core/io/hold/index.js';
import { served } from '../kit/gateway-pair.js';
import { KeptPair, killProcess } from '../kit/kept-pair.js';
import { describeLab, useLab } from '../kit/pair-lab.js';
import { eventually } from '../kit/servers.js';
import {
  connectClients,
  expectLoneWriters,
  expectMoved,
  expectUnharmed,
  letGo,
  moveToAndFro,
  pressCommits,
  total,
} from '../kit/takeover-scene.js';
import { startTdsGateways, TdsLab } from '../kit/tds-lab.js';

/** K3: planned moves under full load. */
const MOVES = Number(process.env.OUTLIVE_TAKEOVER_MOVES ?? 4);

/** Ten clients at each point at which one can be. */
const STANDING = { idle: 10, transaction: 10, waiting: 10, result: 10, commit: 10 };
/** The same, and clients at work. */
const WORKING = { idle: 4, transaction: 4, waiting: 2, result: 2, commit: 2, echo: 4, stream: 1, transfer: 8 };

/** K1, K2 and K3 with TDS. */
describeLab('TDS clients of a pair of gateways', () => {
  const place = useLab(new TdsLab(), { settings: { max_connections: '400' } });

  async function unharmed(report: ClientReport, counts: ClientCounts): Promise<void> {
    expectUnharmed(report, counts);
    expect(await place.verdict(report)).toMatchObject({ right: true });
    await expectLoneWriters(place);
  }

  it('go on on their connections when the host of their gateway is lost', async () => {
    const gateways = await startTdsGateways(place, { proof: 'command' });
    const clients = await connectClients(place, gateways, STANDING);
    await pressCommits(place, clients, STANDING);
    const since = now();
    await gateways.crash('a');
    expect(await gateways.took('b')).toMatchObject({ connections: total(STANDING), lost: 0 });
    await place.pair.standby.thaw();
    await letGo(place);
    await clients.probe();
    const pauses = await place.pauses(clients, since);
    expect(pauses).toHaveLength(STANDING.idle + STANDING.transaction + STANDING.commit);
    await unharmed(await clients.finish(), STANDING);
    expect(await gateways.counts('b')).toMatchObject({ kept: total(STANDING), reset: 0 });
    if (process.env.LOG) console.log({ longest: Math.max(...pauses) });
  });

  it.skipIf(ackHoldUnavailable() !== null)(
    'go on where they are when their engine is killed, and elsewhere when its keeper is too',
    async () => {
      const holdAcknowledgements = { interface: place.lab.host('a').interface };
      const pair = { ...place.kept(), holdAcknowledgements };
      const gateways = new KeptPair(place, place.options({ proof: 'command', clients: 60, pair }));
      await gateways.begin();
      await served(gateways, 'a');
      await place.prepare(gateways);
      const clients = await connectClients(place, gateways, WORKING);
      await eventually(async () => (await clients.progress()).transactions > 10);
      const all = total(WORKING);
      const kills = {
        // The other one has never had it.
        a: () => Promise.resolve(killProcess(gateways.engines.a)),
        b: () => gateways.killBoth('a'),
      };
      for (const next of ['a', 'b'] as const) {
        await clients.watch();
        const since = now();
        const serving = gateways.serves(next);
        await kills[next]();
        expect(await serving).toMatchObject({ connections: all, lost: 0 });
        await place.pauses(clients, since);
        await clients.probe();
        if (next === 'a') await gateways.followed('a', all);
      }
      await letGo(place);
      await unharmed(await clients.finish(), WORKING);
    },
  );

  it(`go from one host to the other and back, ${MOVES} times under full load`, { timeout: 300_000 }, async () => {
    const gateways = await startTdsGateways(place, { proof: 'command', clients: 60 });
    const stop = await place.lab.recorder([gateways.address]);
    const clients = await connectClients(place, gateways, WORKING);
    await eventually(async () => (await clients.progress()).transactions > 10);
    const { owners, times } = await moveToAndFro(place, gateways, clients, MOVES);
    await letGo(place);
    const report = await clients.finish();
    await unharmed(report, WORKING);
    expect(report.echoed).toBeGreaterThan(100_000);
    expect(report.streamed).toBeGreaterThan(1_000_000);
    await expectMoved(gateways, await stop(), owners);
    if (process.env.LOG) console.log({ times, transactions: report.transactions });
  });
});
