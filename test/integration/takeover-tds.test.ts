import { expect, it } from 'vitest';
import type { ClientCounts, ClientHost, ClientReport } from '../../core/host/demo/lab/clients.js';
import { now } from '../../core/host/demo/workload.js';
import { ackHoldUnavailable } from '../../core/io/hold/index.js';
import { notInTurn, outlive, served } from '../kit/gateway-pair.js';
import { KeptPair, killProcess } from '../kit/kept-pair.js';
import { describeLab } from '../kit/pair-lab.js';
import { eventually } from '../kit/servers.js';
import { type GatewayPair, PORT } from '../kit/takeover.js';
import { total } from '../kit/takeover-scene.js';
import { PROVED, startTdsGateways, useTdsLab } from '../kit/tds-lab.js';

/** K3: planned moves under full load. */
const MOVES = Number(process.env.OUTLIVE_TAKEOVER_MOVES ?? 4);

/** Ten clients at each point at which one can be. */
const STANDING = { idle: 10, transaction: 10, waiting: 10, result: 10, commit: 10 };
/** The same, and clients at work. */
const WORKING = { idle: 4, transaction: 4, waiting: 2, result: 2, commit: 2, echo: 4, stream: 1, transfer: 8 };

/** K1, K2 and K3 with TDS. */
describeLab('TDS clients of a pair of gateways', () => {
  const stage = useTdsLab({ settings: { max_connections: '400' } });
  const { place } = stage;

  /** Connects clients and brings each to its point; the other gateway follows all. */
  async function connect(gateways: GatewayPair, counts: ClientCounts, sleep: number): Promise<ClientHost> {
    const clients = await stage.clients(counts);
    const think = { inside: 30, between: 15 };
    await clients.begin({ counts, address: gateways.address, port: PORT, think, sleep });
    await gateways.followed('a', total(counts));
    return clients;
  }

  /** No client saw a new connection, or an error but that the outcome of its commit is unknown, and the ledger is exact. */
  async function unharmed(report: ClientReport, counts: ClientCounts): Promise<void> {
    expect(report).toMatchObject({ reconnects: 0, wrongReads: [] });
    const others = report.errors.filter(({ code, during }) => PROVED || code !== '50087' || !/: commit$/.test(during));
    expect(others).toEqual([]);
    expect(report.connections).toHaveLength(total(counts));
    for (const { portBefore, portNow } of report.connections) expect(portNow).toBe(portBefore);
    const standing = report.claims.filter(({ reference }) => reference.startsWith('lab-'));
    const answers = standing.map(({ answer }) => answer);
    expect(answers.filter((answer) => answer !== 'acknowledged' && answer !== 'doubtful')).toEqual([]);
    expect(answers.length).toBe(total({ ...counts, idle: 0, echo: 0, stream: 0, transfer: 0 }));
    expect(await stage.verdict(report)).toMatchObject({ right: true });
    expect(await stage.crowded()).toEqual([]);
  }

  it('go on on their connections when the host of their gateway is lost', async () => {
    const { pair } = place;
    const gateways = await startTdsGateways(stage, { proof: 'command' });
    const clients = await connect(gateways, STANDING, 6);
    // No commit is answered while the standby stands still.
    await pair.standby.freeze();
    await clients.press();
    await eventually(
      async () => {
        const { rows } = await pair.primary.query<{ n: number }>(
          "SELECT count(*)::int AS n FROM pg_stat_activity WHERE wait_event = 'SyncRep'",
        );
        return rows[0].n >= STANDING.commit;
      },
      { timeoutMs: 30_000 },
    );
    const { connections } = await clients.report();
    for (const one of ['waiting', 'result', 'commit'] as const) {
      expect(connections.filter(({ kind, waiting }) => kind === one && waiting)).toHaveLength(STANDING[one]);
    }
    await clients.watch();
    const since = now();
    await gateways.crash('a');
    expect(await gateways.took('b')).toMatchObject({ connections: total(STANDING), lost: 0 });
    await pair.standby.thaw();
    await clients.probe();
    const pauses = await place.pauses(clients, since);
    expect(pauses).toHaveLength(STANDING.idle + STANDING.transaction + STANDING.commit);
    await unharmed(await clients.finish(), STANDING);
    expect(await gateways.counts('b')).toMatchObject({ kept: total(STANDING), reset: 0 });
    if (process.env.LOG) console.log({ longest: Math.max(...pauses) });
  });

  const holds = ackHoldUnavailable() === null;
  it.skipIf(!holds)(
    'go on where they are when their engine is killed, and elsewhere when its keeper is too',
    async () => {
      const holdAcknowledgements = { interface: place.lab.host('a').interface };
      const pair = { ...stage.kept(), holdAcknowledgements };
      const gateways = new KeptPair(place, stage.options({ proof: 'command', clients: 60, pair }));
      await gateways.begin();
      await served(gateways, 'a');
      await stage.prepare(gateways);
      const clients = await connect(gateways, WORKING, 4);
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
      await unharmed(await clients.finish(), WORKING);
    },
  );

  it(`go from one host to the other and back, ${MOVES} times under full load`, { timeout: 300_000 }, async () => {
    const gateways = await startTdsGateways(stage, { proof: 'command', clients: 60 });
    const { address } = gateways;
    const stop = await place.lab.recorder([address]);
    const clients = await connect(gateways, WORKING, 1);
    await eventually(async () => (await clients.progress()).transactions > 10);
    const owners: ('a' | 'b')[] = ['a'];
    const times: number[] = [];
    for (let move = 0; move < MOVES; move++) {
      const owner = owners.at(-1)!;
      const next = owner === 'a' ? 'b' : 'a';
      await clients.watch();
      const since = now();
      // Both ways of ordering it, each in both directions.
      if (move % 4 < 2) await outlive(place, gateways, next, 'takeover');
      else await outlive(place, gateways, owner, 'drain');
      owners.push(next);
      times.push(Math.max(...(await place.pauses(clients, since))));
      if (move % 4 >= 2) await outlive(place, gateways, owner, 'drain', '--undo');
      await clients.probe();
      await served(gateways, next);
      if (move === 1) await clients.press();
    }
    const report = await clients.finish();
    await unharmed(report, WORKING);
    expect(report.echoed).toBeGreaterThan(100_000);
    expect(report.streamed).toBeGreaterThan(1_000_000);
    expect(notInTurn(await stop(), address, owners)).toBeNull();
    for (const name of ['a', 'b'] as const) {
      const { counts } = (await gateways[name].status()).pair;
      expect(counts).toMatchObject({ reset: 0, takeovers: owners.filter((owner) => owner === name).length });
    }
    if (process.env.LOG) console.log({ times: times.map(Math.round), transactions: report.transactions });
  });
});
