import { setMaxListeners } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, describe, expect, it } from 'vitest';
import postgres from '../../codecs/postgres/index.js';
import { simpleQuery } from '../../codecs/postgres/messages.js';
import type { Exchange, Log, OutcomeToken } from '../../core/contract/index.js';
import {
  type BackendConnection,
  Cluster,
  type ClusterEvent,
  type ClusterOptions,
  LoginRefused,
} from '../../core/host/cluster/index.js';
import { normalizeConfig } from '../../core/host/config/index.js';
import { Stats } from '../../core/host/metrics.js';
import { runExchange } from '../../core/io/run-exchange.js';
import type { EmbeddedServer } from '../../plugins/embedded-postgres/index.js';
import { usePair } from '../kit/servers.js';

const now = () => performance.now();
const never = new AbortController().signal;
setMaxListeners(0, never);
const startup = (name = 'test') => ({
  protocol: { major: 3, minor: 0 },
  params: [
    ['user', 'postgres'],
    ['database', 'postgres'],
    ['application_name', name],
  ],
});
const identity = { user: 'postgres', database: 'postgres', secret: null };

interface Rig {
  readonly cluster: Cluster;
  readonly events: ClusterEvent[];
  readonly stats: Stats;
  readonly logged: { readonly message: string; readonly fields: Record<string, unknown> }[];
  acquire(options?: { name?: string; wait?: number; signal?: AbortSignal }): Promise<BackendConnection>;
}

type Cfg = { spares?: object; monitor?: object; promotion?: object; fence?: object; detection?: object; logins?: object };

describe('a cluster on real servers', () => {
  const ground = usePair();
  const cleanups: (() => Promise<void> | void)[] = [];
  afterEach(async () => {
    for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
    const { pair } = ground;
    if (!pair.primary.running) await pair.primary.start();
    await pair.rebuild();
  });

  async function rig(cfg: Cfg = {}, plugins: ClusterOptions['plugins'] = {}): Promise<Rig> {
    const servers = [ground.pair.primary, ground.pair.standby].map(({ name, host, port }) => ({
      name,
      host,
      port,
      tls: 'off' as const,
    }));
    servers.sort((a, b) => (a.name < b.name ? -1 : 1));
    const { promotion, fence, ...rest } = cfg;
    const config = normalizeConfig({
      listeners: [{ name: 'l', codec: 'postgres', listen: '127.0.0.1:0', cluster: 'c', auth: 'trust' }],
      clusters: [
        {
          name: 'c',
          servers,
          monitor: { user: 'postgres', interval: '200ms', timeout: '500ms' },
          ...(promotion === undefined ? {} : { promotion: { command: ['/bin/true'], ...promotion } }),
          ...(fence === undefined ? {} : { fence: { command: ['/bin/true'], ...fence } }),
          ...rest,
        },
      ],
    }).clusters[0];
    const logged: Rig['logged'] = [];
    const put = (fields: Record<string, unknown>, message: string) => {
      if (process.env.OUTLIVE_DEBUG) console.log(Math.round(now()), message, fields);
      logged.push({ message, fields });
    };
    const log: Log = { debug: put, info: put, warn: put, error: put };
    const stats = new Stats();
    const cluster = new Cluster({ config, codec: postgres, log, stats, now, plugins });
    const events: ClusterEvent[] = [];
    cluster.onChange((event) => events.push(event));
    await cluster.start();
    cleanups.push(() => cluster.stop());
    return {
      cluster,
      events,
      stats,
      logged,
      acquire: async ({ name, wait = 20_000, signal = never } = {}) => {
        const connection = await cluster.acquire({ identity, startup: startup(name), deadline: now() + wait, signal });
        cleanups.push(() => connection.wire.destroy());
        return connection;
      },
    };
  }

  const serverNamed = (name: string): EmbeddedServer =>
    [ground.pair.primary, ground.pair.standby].find((server) => server.name === name)!;

  async function run<R>(connection: BackendConnection, exchange: Exchange<R>): Promise<R> {
    const { frameLength } = postgres;
    const options = { frameLength, peer: 'server' as const, head: connection.rest, deadlineMs: 10_000 };
    return (await runExchange(connection.wire, exchange, options)).result;
  }

  async function sql(connection: BackendConnection, text: string): Promise<(string | null)[][]> {
    const { rows, error } = await run(connection, simpleQuery(text));
    if (error !== null) throw new Error(`${error.code} ${error.message}`);
    return rows as (string | null)[][];
  }

  async function until(what: () => boolean | Promise<boolean>, timeout = 15_000): Promise<void> {
    const deadline = now() + timeout;
    while (!(await what())) {
      if (now() > deadline) throw new Error(`not within ${timeout} ms: ${what}`);
      await sleep(5);
    }
  }

  /** Begins a transaction that has written, and takes its token as the codec would. */
  async function write(connection: BackendConnection, table: string): Promise<OutcomeToken> {
    await sql(connection, 'BEGIN');
    await sql(connection, `INSERT INTO ${table} VALUES (1)`);
    const [[xid, lsn, position]] = await sql(
      connection,
      "SELECT pg_current_xact_id_if_assigned(), pg_current_wal_insert_lsn(), pg_current_wal_insert_lsn() - '0/0'::pg_lsn",
    );
    return { token: { xid, lsn }, position: BigInt(position!) };
  }

  it('knows the primary and logs in to it', async () => {
    const { cluster, acquire } = await rig();
    const { pair } = ground;
    expect(cluster.primary()?.name).toBe(pair.primary.name);
    const connection = await acquire();
    expect(connection.server.name).toBe(pair.primary.name);
    expect(connection.origin?.facts.role).toBe('primary');
    expect(await sql(connection, 'SELECT pg_is_in_recovery()')).toEqual([['f']]);
    const status = JSON.stringify(cluster.status());
    expect(status).toContain(`"primary":"${pair.primary.name}"`);
    await expect(
      cluster.acquire({ identity: { ...identity, user: 'nobody' }, startup: null, deadline: now() + 5000, signal: never }),
    ).rejects.toThrow(LoginRefused);
  });

  it('waits through a failover and is quick when it is over', async () => {
    const { cluster, events, acquire, stats } = await rig();
    const { pair } = ground;
    const old = pair.primary.name;
    await acquire();
    const pending: Promise<number>[] = [];
    const failover = pair.failover();
    await until(() => cluster.primary() === null);
    for (let i = 0; i < 50; i++) pending.push(acquire().then(() => Date.now()));
    const { writableAt } = await failover;
    const late = (await Promise.all(pending)).map((at) => at - writableAt).sort((a, b) => a - b);
    console.log('acquired after writable, ms: first', late[0], 'last', late.at(-1));
    expect(cluster.primary()?.name).not.toBe(old);
    expect(events.map(({ type }) => type)).toEqual(['primary-found', 'primary-lost', 'superseded', 'primary-found']);
    expect(stats.failovers.get('c')).toBe(1);
  });
});
