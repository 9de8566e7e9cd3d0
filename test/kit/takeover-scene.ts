import { expect } from 'vitest';
import type { ClientCounts, ClientHost, ClientReport } from '../../core/host/demo/lab/clients.js';
import type { Recording } from '../../core/host/demo/lab/runs.js';
import { now } from '../../core/host/demo/workload.js';
import { type Name, notInTurn, outlive, served } from './gateway-pair.js';
import type { PairLab } from './pair-lab.js';
import { eventually } from './servers.js';
import { type GatewayPair, PORT, type Writer, watchWriters } from './takeover.js';

/** A hundred clients, some at every point at which a client can be. */
export const STANDING = { idle: 20, transaction: 20, waiting: 20, result: 20, commit: 20 };
/** The same, and clients at work. */
export const WORKING = { ...STANDING, echo: 10, stream: 2, transfer: 28 };

/** How many clients these are. */
export function total(counts: ClientCounts): number {
  return Object.values(counts).reduce((sum, count) => sum + count, 0);
}

/** Lets the `waiting` clients have their answer: see {@link connectClients}. */
export async function letGo({ pair }: PairLab): Promise<void> {
  await pair.primary.query("COMMIT PREPARED 'held'");
}

/**
 * Connects clients and brings each to its point; the other gateway follows all. The `waiting` ones wait for a row that a prepared transaction holds,
 * on whichever server: until {@link letGo}.
 */
export async function connectClients(place: PairLab, gateways: GatewayPair, counts: ClientCounts): Promise<ClientHost> {
  const clients = await place.clients(counts);
  const { pair, schema } = place;
  const { rows } = await pair.primary.query("SELECT FROM pg_prepared_xacts WHERE gid = 'held'");
  if (rows.length > 0) await letGo(place);
  await pair.primary.query(`
    DROP TABLE IF EXISTS ${schema}.held;
    CREATE TABLE ${schema}.held (id int PRIMARY KEY);
    INSERT INTO ${schema}.held VALUES (1)`);
  await pair.primary.query(`BEGIN; SELECT FROM ${schema}.held FOR UPDATE; PREPARE TRANSACTION 'held'`);
  await watchWriters((sql) => pair.primary.query(sql), schema);
  const think = { inside: 50, between: 20, stream: 300 };
  await clients.begin({
    counts,
    address: gateways.address,
    port: PORT,
    rows: place.rows,
    think,
    wait: place.waitForHeld,
  });
  await gateways.followed('a', total(counts));
  return clients;
}

/**
 * Lets all `commit` clients send their COMMIT, and the standby stand still, which keeps them from being answered. Then each that stands is at its
 * point.
 * @param counts how many of those there are
 */
export async function pressCommits(
  place: PairLab,
  clients: ClientHost,
  counts: typeof STANDING = STANDING,
): Promise<void> {
  const { pair } = place;
  await pair.standby.freeze();
  await clients.press();
  // Each has reached the server and waits there for the standby.
  await eventually(
    async () => {
      if ((await clients.progress()).committing < counts.commit) return false;
      const { rows } = await pair.primary.query<{ n: number }>(
        "SELECT count(*)::int AS n FROM pg_stat_activity WHERE wait_event = 'SyncRep'",
      );
      return rows[0].n >= counts.commit;
    },
    { timeoutMs: 30_000 },
  );
  const { connections } = await clients.report();
  for (const one of ['waiting', 'result', 'commit'] as const) {
    expect(connections.filter(({ kind, waiting }) => kind === one && waiting)).toHaveLength(counts[one]);
  }
  await clients.watch();
}

/**
 * Moves the address of a pair to the other gateway and back, so many times, and waits each time until every client was answered. The `commit` clients
 * send their COMMIT after the second move.
 * @returns who had the address, in turn; and the longest time that a client waited in each move, in ms
 */
export async function moveToAndFro(place: PairLab, gateways: GatewayPair, clients: ClientHost, moves: number) {
  const owners: Name[] = ['a'];
  const times: number[] = [];
  for (let move = 0; move < moves; move++) {
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
  return { owners, times: times.map(Math.round) };
}

/** Nobody spoke for the address but its owners one after the other, and no connection was reset. */
export async function expectMoved(gateways: GatewayPair, recording: Recording, owners: readonly Name[]): Promise<void> {
  expect(notInTurn(recording, gateways.address, owners)).toBeNull();
  for (const name of ['a', 'b'] as const) {
    const { counts } = (await gateways[name].status()).pair;
    expect(counts).toMatchObject({ reset: 0, takeovers: owners.filter((owner) => owner === name).length });
  }
}

/** No client saw an error or a new connection, and none was lost of those that stood. */
export function expectUnharmed(report: ClientReport, counts: ClientCounts): void {
  expect(report).toMatchObject({ reconnects: 0, errors: [], wrongReads: [] });
  expect(report.connections).toHaveLength(total(counts));
  for (const { portBefore, portNow } of report.connections) expect(portNow).toBe(portBefore);
  const standing = report.claims.filter(({ reference }) => reference.startsWith('lab-'));
  const { transaction = 0, waiting = 0, result = 0, commit = 0 } = counts;
  expect(standing).toHaveLength(transaction + waiting + result + commit);
  for (const { answer } of standing) expect(answer).toBe('acknowledged');
}

/** Nobody wrote while the transaction that was to be repeated still held its locks. @returns who wrote */
export async function expectLoneWriters({ pair, schema }: PairLab): Promise<readonly Writer[]> {
  const { rows } = await pair.primary.query<Writer>(`SELECT * FROM ${schema}.writers`);
  expect(rows.filter(({ alone }) => !alone)).toEqual([]);
  return rows;
}

/**
 * As {@link expectLoneWriters}, and nothing lives on of a dead host's connections.
 * @param hosts all that wrote
 */
export async function expectAlone(place: PairLab, gateways: GatewayPair, hosts: readonly Name[]): Promise<void> {
  const { pair } = place;
  const writers = await expectLoneWriters(place);
  expect(new Set(writers.map(({ host }) => host))).toEqual(new Set(hosts.map((name) => gateways.host(name).address)));
  const dead = gateways.host(hosts[0]).address;
  const left = await pair.primary.query(
    `SELECT pid, query FROM pg_stat_activity WHERE client_addr = '${dead}' AND state <> 'idle'`,
  );
  expect(left.rows).toEqual([]);
}
