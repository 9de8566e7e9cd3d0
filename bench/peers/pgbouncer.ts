import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { freePorts } from '../../plugins/embedded-postgres/index.js';
import { findProgram, Program, plainUser } from '../scope.js';
import { type PeerOptions, type StartPeer, untilServing, versionOf } from './peer.js';

/**
 * The configuration for a comparison with Outlive: session pooling, because both keep a server connection for each
 * session, and everything that is not needed for relaying at its default or off.
 */
export function pgbouncerConfig(options: PeerOptions, port: number, userFile: string): string {
  const [server] = options.servers;
  return [
    '[databases]',
    `${options.database} = host=${server.host} port=${server.port} dbname=${options.database}`,
    '',
    '[pgbouncer]',
    'listen_addr = 127.0.0.1',
    `listen_port = ${port}`,
    'unix_socket_dir =',
    'auth_type = trust',
    `auth_file = ${userFile}`,
    'pool_mode = session',
    `max_client_conn = ${options.sessions + 100}`,
    `default_pool_size = ${options.sessions + 50}`,
    'server_tls_sslmode = disable',
    'log_connections = 0',
    'log_disconnections = 0',
    '',
  ].join('\n');
}

/** Starts PgBouncer with session pooling, as an unprivileged user: it refuses root. */
export const startPgbouncer: StartPeer = async (scope, options) => {
  const path = findProgram('pgbouncer');
  if (path === undefined) return undefined;
  const dir = await scope.directory();
  const [port] = await freePorts(1);
  const users = join(dir, 'users.txt');
  const config = join(dir, 'pgbouncer.ini');
  await writeFile(users, `"${options.user}" ""\n`, { mode: 0o644 });
  await writeFile(config, pgbouncerConfig(options, port, users), { mode: 0o644 });
  // Two descriptors a session are more than the usual soft limit.
  const raise = 'ulimit -n "$(ulimit -H -n)"; exec "$@"';
  const program = new Program('/bin/sh', ['-c', raise, 'sh', path, '--quiet', config], { cwd: dir, ...plainUser() });
  scope.defer(() => program.stop());
  const address = { host: '127.0.0.1', port };
  await untilServing('PgBouncer', program, { ...address, user: options.user, database: options.database });
  return {
    name: 'pgbouncer',
    version: await versionOf(path, '--version'),
    ...address,
    pids: [program.child.pid ?? -1],
    stop: () => program.stop(),
  };
};
