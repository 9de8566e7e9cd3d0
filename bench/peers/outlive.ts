import { existsSync } from 'node:fs';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { stringify } from 'yaml';
import { freePorts } from '../../plugins/embedded-postgres/index.js';
import { Program, type Scope } from '../scope.js';
import { type Peer, type PeerOptions, untilServing } from './peer.js';

/** What else Outlive is told, beyond what every peer is. */
export interface OutliveOptions extends PeerOptions {
  /** Warm spares on the standby for the bench's user; none by default. */
  readonly spares?: number;
  /** The user that watches the servers. */
  readonly monitorUser: string;
}

/** What is configured: the defaults, with room for the sessions. Promotion is left to whoever runs the scenario. */
export function outliveSettings(options: OutliveOptions, port: number) {
  const { servers, sessions, spares = 0, monitorUser } = options;
  return {
    listeners: [
      {
        name: 'bench',
        codec: 'postgres',
        listen: `127.0.0.1:${port}`,
        cluster: 'bench',
        auth: 'trust',
        limits: { clients: sessions + 100 },
      },
    ],
    clusters: [
      {
        name: 'bench',
        servers: servers.map((server, index) => ({ name: 'ab'[index] ?? `server${index}`, ...server, tls: 'off' })),
        monitor: { user: monitorUser, database: 'postgres' },
        ...(spares > 0 ? { spares: { perIdentity: spares, total: spares } } : {}),
      },
    ],
    log: { level: 'warn' },
  };
}

/** The same as the text of a file. */
export function outliveConfig(options: OutliveOptions, port: number): string {
  return stringify(outliveSettings(options, port));
}

/** The program of this build. Throws when there is none. */
export function programPath(): string {
  const path = fileURLToPath(new URL('../../core/host/bin.js', import.meta.url));
  if (!existsSync(path)) throw new Error(`Outlive is not built: ${path} does not exist; run npm run build`);
  return path;
}

/** Starts the gateway of this build in a process of its own. */
export async function startOutlive(scope: Scope, options: OutliveOptions): Promise<Peer> {
  const path = programPath();
  const dir = await scope.directory();
  const [port] = await freePorts(1);
  const config = join(dir, 'outlive.yaml');
  await writeFile(config, outliveConfig(options, port));
  const program = new Program(process.execPath, [path, 'run', '--config', config], { cwd: dir });
  scope.defer(() => program.stop());
  const address = { host: '127.0.0.1', port };
  await untilServing('Outlive', program, { ...address, user: options.user, database: options.database });
  const manifest = JSON.parse(await readFile(new URL('../../../package.json', import.meta.url), 'utf8'));
  return {
    name: 'outlive',
    version: `${manifest.version} on Node ${process.version}`,
    ...address,
    pids: [program.child.pid ?? -1],
    stop: () => program.stop(),
  };
}
