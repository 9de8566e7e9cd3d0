import { type EmbeddedOptions, type EmbeddedServer, startServer } from '../plugins/embedded-postgres/index.js';
import { tableStatements } from './load/workloads.js';
import type { Scope } from './scope.js';

/** The user and the database that all load uses; not a superuser, as in life. */
export const BENCH_USER = 'bench';

/**
 * Settings of the servers that differ from what they would be. Durability is untouched: fsync, full_page_writes and
 * synchronous_commit are on. The buffers hold the tables, so that reading does not measure the disk, and autovacuum
 * stays away because it would strike some cells and not others; the scenario tidies up between them.
 */
export function serverSettings(sessions: number): Record<string, string> {
  return {
    max_connections: String(sessions),
    shared_buffers: '512MB',
    max_wal_size: '4GB',
    autovacuum: 'off',
    log_min_messages: 'fatal',
  };
}

/** Makes the user and the database of the bench. */
export async function prepareDatabase(server: EmbeddedServer): Promise<void> {
  await server.query(`CREATE ROLE ${BENCH_USER} LOGIN`);
  await server.query(`CREATE DATABASE ${BENCH_USER} OWNER ${BENCH_USER}`);
}

/** Runs statements one after the other in the bench's database, as the superuser. */
export async function runAll(server: EmbeddedServer, statements: readonly string[]): Promise<void> {
  const client = await server.connect(BENCH_USER);
  try {
    for (const sql of statements) await client.query(sql);
  } finally {
    await client.end();
  }
}

/** Starts one server with the bench's database. */
export async function startBenchServer(scope: Scope, options: EmbeddedOptions): Promise<EmbeddedServer> {
  const server = await startServer(options);
  scope.defer(() => server.remove());
  await prepareDatabase(server);
  return server;
}

/** Makes and fills the tables of the relay scenario. */
export async function fillTables(server: EmbeddedServer, scale: number): Promise<void> {
  const [first, ...rest] = tableStatements(scale);
  await runAll(server, [first, `SET ROLE ${BENCH_USER}`, ...rest]);
}
