import { randomBytes } from 'node:crypto';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { freePorts } from '../../plugins/embedded-postgres/index.js';
import { LoadSession } from '../load/session.js';
import { Program, type Scope } from '../scope.js';
import { type OutliveOptions, outliveSettings, programPath } from './outlive.js';
import { untilServing } from './peer.js';

/** Two gateways of which one serves and the other one follows its sessions. */
export interface OutlivePair {
  readonly host: string;
  readonly port: number;
  /** Process that serves, and process that follows. */
  readonly server: number;
  readonly follower: number;
}

const ADDRESS = '127.0.0.1';
const PATIENCE_MS = 20_000;

/**
 * The configurations of two gateways on this machine's loopback. Nothing is ever taken over: there is neither lease nor fence, and the
 * address is where it is.
 *
 * @param ports of both gateways: for clients, for the link, for operators
 */
export function pairSettings(
  options: OutliveOptions,
  durability: 'local' | 'pair',
  ports: Readonly<Record<'a' | 'b', readonly [listen: number, link: number, admin: number]>>,
): Record<'a' | 'b', object> {
  const of = (name: 'a' | 'b', peer: 'a' | 'b') => {
    const [listen, link, admin] = ports[name];
    const { listeners, ...rest } = outliveSettings(options, listen);
    return {
      ...rest,
      listeners: listeners.map((listener) => ({ ...listener, durability })),
      admin: { listen: `${ADDRESS}:${admin}` },
      pair: {
        name,
        listen: `${ADDRESS}:${link}`,
        peer: { name: peer, address: `${ADDRESS}:${ports[peer][1]}` },
        secret: { env: 'OUTLIVE_PAIR_SECRET' },
        guard: false,
        addresses: [{ address: ADDRESS, home: 'a' }],
      },
    };
  };
  return { a: of('a', 'b'), b: of('b', 'a') };
}

/** Starts both, and waits until a session on the first one is followed by the second one. */
export async function startOutlivePair(
  scope: Scope,
  options: OutliveOptions,
  durability: 'local' | 'pair',
): Promise<OutlivePair> {
  const dir = await scope.directory();
  const [one, two, three, four, five, six] = await freePorts(6);
  const ports = { a: [one, two, three], b: [four, five, six] } as const;
  const settings = pairSettings(options, durability, ports);
  const env = { ...process.env, OUTLIVE_PAIR_SECRET: randomBytes(16).toString('hex') };
  const start = async (name: 'a' | 'b') => {
    const config = join(dir, `${name}.yaml`);
    // JSON is YAML.
    await writeFile(config, JSON.stringify(settings[name]));
    const program = new Program(process.execPath, [programPath(), 'run', '--config', config], { cwd: dir, env });
    scope.defer(() => program.stop());
    return program;
  };
  const [server, follower] = await Promise.all([start('a'), start('b')]);
  const login = { host: ADDRESS, port: one, user: options.user, database: options.database };
  await untilServing('Outlive', server, login);
  const session = await LoadSession.open(login);
  const deadline = Date.now() + PATIENCE_MS;
  for (;;) {
    const page = await fetch(`http://${ADDRESS}:${three}/status`).then((response) => response.json());
    const { pair } = page as { pair: { replicas: { followed: number } } };
    if (pair.replicas.followed === 1) break;
    if (Date.now() > deadline) throw new Error(`no session is followed: ${JSON.stringify(pair)}\n${server.tail}`);
    await sleep(50);
  }
  session.end();
  return { host: ADDRESS, port: one, server: server.child.pid ?? -1, follower: follower.child.pid ?? -1 };
}
