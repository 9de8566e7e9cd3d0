import { expect, it } from 'vitest';
import type { ClientReport } from '../../core/host/demo/lab/clients.js';
import { now } from '../../core/host/demo/workload.js';
import { describeLab, usePairLab } from '../kit/pair-lab.js';
import { eventually } from '../kit/servers.js';
import { type GatewayPair, PORT, startGateways, type Writer, watchWriters } from '../kit/takeover.js';

const COUNTS = { idle: 15, transaction: 15, waiting: 10, result: 10, commit: 10, echo: 10, stream: 2, transfer: 28 };
const ALL = Object.values(COUNTS).reduce((sum, count) => sum + count, 0);
const think = { inside: 50, between: 20 };

function expectUnharmed(report: ClientReport): void {
  expect(report).toMatchObject({ reconnects: 0, errors: [], wrongReads: [] });
  for (const { portBefore, portNow } of report.connections) expect(portNow).toBe(portBefore);
}

describeLab('the host of a gateway is lost', () => {
  const place = usePairLab();

  /** Clients of every kind, all followed by the other gateway, and commits that wait for the standby. */
  async function busy(gateways: GatewayPair) {
    const { pair } = place;
    const clients = await place.clients(COUNTS);
    await watchWriters((sql) => pair.primary.query(sql));
    await clients.begin({ counts: COUNTS, address: gateways.address, port: PORT, think, sleep: 4 });
    await gateways.followed('a', ALL);
    await eventually(async () => (await clients.report()).transactions > 50);
    await pair.standby.freeze();
    await clients.press();
    await eventually(async () => (await clients.report()).committing >= COUNTS.commit);
    await clients.watch();
    return clients;
  }

  it.each(['etcd', 'command'] as const)('with %s: every client goes on on its connection', async (proof) => {
    const { pair } = place;
    const gateways = await startGateways(place, { proof });
    const clients = await busy(gateways);
    const since = now();
    await gateways.host('a').crash();
    const took = await gateways.took('b');
    expect(took).toMatchObject({ connections: ALL, lost: 0 });
    await pair.standby.thaw();
    const { pauses, silent } = await clients.pauses(since, 30_000);
    expect(silent).toBe(0);
    await clients.probe();
    const report = await clients.finish();
    expectUnharmed(report);
    expect(report.connections).toHaveLength(ALL);
    expect(await place.verdict(report)).toMatchObject({ right: true });
    console.log(proof, took.ms, Math.max(...pauses), report.transactions);

    const { rows } = await pair.primary.query<Writer>('SELECT * FROM writers');
    const [a, b] = [gateways.host('a').address, gateways.host('b').address];
    expect(new Set(rows.map(({ host }) => host))).toEqual(new Set([a, b]));
    // Nobody wrote while the transaction that was to be repeated still lived on the dead host's connection.
    expect(rows.filter(({ alone }) => !alone)).toEqual([]);
    const standing = report.claims.filter(({ reference }) => reference.startsWith('lab-'));
    expect(standing).toHaveLength(COUNTS.transaction + COUNTS.waiting + COUNTS.result + COUNTS.commit);
    const left = await pair.primary.query(
      `SELECT state, query FROM pg_stat_activity WHERE client_addr = '${a}' AND state <> 'idle'`,
    );
    expect(left.rows).toEqual([]);
    expect(await gateways.counts('b')).toMatchObject({ kept: ALL, reset: 0 });
  });
});
