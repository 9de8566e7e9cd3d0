import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { freePorts } from '../../plugins/embedded-postgres/index.js';
import { findProgram, Program, plainUser } from '../scope.js';
import { type PeerOptions, type StartPeer, untilServing, versionOf } from './peer.js';

/** The configuration: forwarding of bytes and nothing else. Its number of threads stays at its default, one a processor. */
export function haproxyConfig(options: PeerOptions, port: number): string {
  const [server] = options.servers;
  return [
    'global',
    `  maxconn ${options.sessions + 100}`,
    '',
    'defaults',
    '  mode tcp',
    '  timeout connect 5s',
    '  timeout client 1h',
    '  timeout server 1h',
    '',
    'listen postgres',
    `  bind 127.0.0.1:${port}`,
    `  server one ${server.host}:${server.port}`,
    '',
  ].join('\n');
}

/** Starts HAProxy in TCP mode. */
export const startHaproxy: StartPeer = async (scope, options) => {
  const path = findProgram('haproxy');
  if (path === undefined) return undefined;
  const dir = await scope.directory();
  const [port] = await freePorts(1);
  const config = join(dir, 'haproxy.cfg');
  await writeFile(config, haproxyConfig(options, port), { mode: 0o644 });
  const program = new Program(path, ['-db', '-f', config], { cwd: dir, ...plainUser() });
  scope.defer(() => program.stop());
  const address = { host: '127.0.0.1', port };
  await untilServing('HAProxy', program, { ...address, user: options.user, database: options.database });
  return {
    name: 'haproxy',
    version: await versionOf(path, '-v'),
    ...address,
    pids: [program.child.pid ?? -1],
    stop: () => program.stop(),
  };
};
