import { expect } from 'vitest';
import type { ClientCounts, ClientHost, ClientReport } from '../../core/host/demo/lab/clients.js';
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
  const { pair } = place;
  const { rows } = await pair.primary.query("SELECT FROM pg_prepared_xacts WHERE gid = 'held'");
  if (rows.length > 0) await letGo(place);
  await pair.primary.query(`
    DROP TABLE IF EXISTS held;
    CREATE TABLE held (id int PRIMARY KEY);
    INSERT INTO held VALUES (1)`);
  await pair.primary.query("BEGIN; SELECT FROM held FOR UPDATE; PREPARE TRANSACTION 'held'");
  await watchWriters((sql) => pair.primary.query(sql));
  const think = { inside: 50, between: 20, stream: 300 };
  await clients.begin({
    counts,
    address: gateways.address,
    port: PORT,
    rows: 20_000,
    think,
    wait: 'SELECT id FROM held FOR SHARE',
  });
  await gateways.followed('a', total(counts));
  return clients;
}

/**
 * Lets all `commit` clients send their COMMIT, and the standby stand still, which keeps them from being answered. Then each of {@link STANDING} is
 * at its point.
 */
export async function pressCommits(place: PairLab, clients: ClientHost): Promise<void> {
  const { pair } = place;
  await pair.standby.freeze();
  await clients.press();
  // Each has reached the server and waits there for the standby.
  await eventually(
    async () => {
      if ((await clients.progress()).committing < STANDING.commit) return false;
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

/**
 * Nobody wrote while the transaction that was to be repeated still lived on a dead host's connection.
 * @param hosts all that wrote
 */
export async function expectAlone({ pair }: PairLab, gateways: GatewayPair, hosts: readonly ('a' | 'b')[]) {
  const { rows } = await pair.primary.query<Writer>('SELECT * FROM writers');
  expect(new Set(rows.map(({ host }) => host))).toEqual(new Set(hosts.map((name) => gateways.host(name).address)));
  expect(rows.filter(({ alone }) => !alone)).toEqual([]);
  const dead = gateways.host(hosts[0]).address;
  const left = await pair.primary.query(
    `SELECT pid, query FROM pg_stat_activity WHERE client_addr = '${dead}' AND state <> 'idle'`,
  );
  expect(left.rows).toEqual([]);
}
