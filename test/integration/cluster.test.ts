import { setMaxListeners } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, describe, expect, it } from 'vitest';
import postgres from '../../codecs/postgres/index.js';
import { simpleQuery } from '../../codecs/postgres/messages.js';
import type { ActionPlugin, Codec, Exchange, Log, OutcomeToken } from '../../core/contract/index.js';
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
import { startPair } from '../../plugins/embedded-postgres/index.js';
import { eventually, restorePair, usePair } from '../kit/servers.js';

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

type Cfg = {
  spares?: object;
  monitor?: { user: string; interval: string; timeout: string };
  promotion?: object;
  fence?: object;
  detection?: object;
  logins?: object;
};

describe('a cluster on real servers', () => {
  const ground = usePair();
  const cleanups: (() => Promise<void> | void)[] = [];
  afterEach(async () => {
    for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
    await restorePair(ground.pair);
  });

  async function rig(
    cfg: Cfg = {},
    plugins: ClusterOptions['plugins'] = {},
    codec: Codec = postgres,
    pair = ground.pair,
  ): Promise<Rig> {
    const servers = [pair.primary, pair.standby].map(({ name, host, port }) => ({
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
    const cluster = new Cluster({ config, codec, log, stats, now, plugins });
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

  const table = async (name: string): Promise<string> => {
    await ground.pair.primary.query(`DROP TABLE IF EXISTS ${name}; CREATE TABLE ${name} (n int)`);
    return name;
  };

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

  /** Waits for the end of a connection. */
  const once = (wire: BackendConnection['wire']): Promise<void> =>
    new Promise((resolve) => {
      wire.onClose = () => resolve();
      wire.resume();
    });

  const until = (what: () => boolean | Promise<boolean>): Promise<unknown> =>
    eventually(what, { message: String(what), intervalMs: 5, timeoutMs: 15_000 });

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
      cluster.acquire({
        identity: { ...identity, user: 'nobody' },
        startup: null,
        deadline: now() + 5000,
        signal: never,
      }),
    ).rejects.toThrow(LoginRefused);
  });

  it('waits through a failover', async () => {
    const { cluster, events, acquire, stats } = await rig();
    const { pair } = ground;
    const old = pair.primary.name;
    await acquire();
    const failover = pair.failover();
    await until(() => cluster.primary() === null);
    const pending = Array.from({ length: 50 }, () => acquire().then(() => Date.now()));
    const { writableAt } = await failover;
    const last = Math.max(...(await Promise.all(pending))) - writableAt;
    expect(last).toBeLessThan(2000);
    expect(cluster.primary()?.name).not.toBe(old);
    expect(events.map(({ type }) => type)).toEqual(['primary-found', 'primary-lost', 'superseded', 'primary-found']);
    expect(stats.failovers.get('c')).toBe(1);
  });

  it('gives up at the deadline, and when told to', async () => {
    const { cluster, acquire } = await rig();
    await ground.pair.primary.kill();
    await until(() => cluster.primary() === null);
    await expect(acquire({ wait: 100 })).rejects.toMatchObject({ code: 'OUTLIVE_NO_WRITABLE_SERVER' });
    const quit = new AbortController();
    const pending = acquire({ signal: quit.signal });
    quit.abort(new Error('the client left'));
    await expect(pending).rejects.toThrow('the client left');
    const stopped = acquire();
    await cluster.stop();
    await expect(stopped).rejects.toMatchObject({ code: 'OUTLIVE_STOPPING' });
  });

  it('has spares that survive a promotion and can write', async () => {
    const count = 40;
    const { cluster, acquire } = await rig({ spares: { perIdentity: count } });
    const { pair } = ground;
    const t = await table('spared');
    for (let i = 0; i < count; i++) await acquire();
    const held = () => (cluster.status() as { spares: number }).spares;
    await until(() => held() === count);
    const failover = pair.failover();
    await until(() => cluster.primary() === null);
    const pending = Array.from({ length: count }, () => acquire().then((got) => ({ got, at: Date.now() })));
    const { writableAt } = await failover;
    const all = await Promise.all(pending);
    const late = all.map(({ at }) => at - writableAt).sort((a, b) => a - b);
    if (process.env.OUTLIVE_DEBUG) console.log('spares: ms after writable', late[0], late.at(-1));
    expect(all.every(({ got }) => got.spare)).toBe(true);
    if (process.env.OUTLIVE_DEBUG) console.log('rest', all.map(({ got }) => got.rest.length).join());
    for (const { got } of all) await sql(got, `INSERT INTO ${t} VALUES (1)`);
    expect(held()).toBe(0);
    // The spare's origin is the promoted server, not the standby that it was.
    expect(all[0].got.origin?.facts).toMatchObject({ role: 'primary' });
    await pair.rebuild();
    await until(() => held() === count);
  });

  it('shares spares between identities and lets the idle ones go with their server', async () => {
    const { cluster, acquire } = await rig({ spares: { perIdentity: 8, total: 8 } });
    const held = () => (cluster.status() as { spares: number }).spares;
    await acquire({ name: 'one' });
    await until(() => held() === 8);
    await acquire({ name: 'two' });
    const names = async () => {
      const { rows } = await ground.pair.standby.query<{ name: string; n: string }>(
        "SELECT application_name AS name, count(*) AS n FROM pg_stat_activity WHERE application_name IN ('one', 'two') GROUP BY 1 ORDER BY 1",
      );
      return rows.map(({ name, n }) => `${name}:${n}`).join();
    };
    await until(async () => (await names()) === 'one:4,two:4');
    await ground.pair.standby.stop('fast');
    await until(() => held() === 0);
    await ground.pair.standby.start();
    await until(async () => (await names()) === 'one:4,two:4');
  });

  it('tells what became of a doubted server', async () => {
    let probes = 0;
    const count = () => {
      probes++;
      return postgres.probe!();
    };
    const counting: Codec = { ...postgres, probe: count };
    const { cluster, acquire } = await rig(
      { monitor: { user: 'postgres', interval: '10s', timeout: '2s' } },
      {},
      counting,
    );
    const { pair } = ground;
    const connection = await acquire();
    const { instance } = connection.origin!.facts;
    const doubt = () => cluster.doubt(connection.server, instance);

    probes = 0;
    await pair.primary.query(`SELECT pg_terminate_backend(${connection.login.backendId})`);
    expect(await Promise.all(Array.from({ length: 200 }, doubt))).toEqual(new Array(200).fill('same'));
    // One for those who came first, one for all others, and perhaps one that was under way.
    expect(probes).toBeLessThanOrEqual(3);

    await pair.primary.query('ALTER SYSTEM SET default_transaction_read_only = on');
    await pair.primary.query('SELECT pg_reload_conf()');
    await until(async () => (await doubt()) === 'demoted');
    expect(cluster.primary()).toBeNull();
    const client = await pair.primary.connect();
    await client.query('SET default_transaction_read_only = off');
    await client.query('ALTER SYSTEM RESET default_transaction_read_only');
    await client.query('SELECT pg_reload_conf()');
    await client.end();
    await until(async () => (await doubt()) === 'same');

    const other = await acquire();
    const stopping = pair.primary.stop('fast');
    await once(other.wire);
    expect(await doubt()).toBe('gone');
    await stopping;
    expect(await doubt()).toBe('gone');
    await pair.primary.start();
    await until(async () => (await doubt()) === 'restarted');
  });

  it('settles commits in doubt on a server that lives on', async () => {
    const { cluster, acquire } = await rig();
    const t = await table('alive');
    const deadline = () => now() + 10_000;
    const done = await acquire();
    const yes = await write(done, t);
    await sql(done, 'COMMIT');
    done.wire.destroy();
    expect(await cluster.resolve(yes, done.origin!, deadline())).toBe('committed');
    // Still open on the server: its backend must be ended before anything can be said.
    const open = await acquire();
    const no = await write(open, t);
    expect(await cluster.resolve(no, open.origin!, deadline())).toBe('not-committed');
    expect(open.wire.open && (await sql(open, 'SELECT 1').catch(() => 'gone'))).toBe('gone');
    // A crash of one backend makes the server restart all others: another life of the same postmaster.
    const crashed = await acquire();
    const lost = await write(crashed, t);
    await sleep(50);
    process.kill(Number(crashed.login.backendId), 'SIGKILL');
    expect(await cluster.resolve(lost, crashed.origin!, deadline())).toBe('not-committed');
    expect(await cluster.resolve(yes, done.origin!, deadline())).toBe('committed');
  });

  it('settles commits in doubt after a promotion, with the old primary fenced before', async () => {
    const fenced: string[] = [];
    const fence: ActionPlugin = { act: async (server) => void fenced.push(server) };
    const { cluster, acquire } = await rig({ fence: {} }, { fence });
    const { pair } = ground;
    const t = await table('promoted');
    const old = pair.primary.name;
    const [done, open] = [await acquire(), await acquire()];
    const yes = await write(done, t);
    const no = await write(open, t);
    await sql(done, 'COMMIT');
    const failover = pair.failover();
    await once(done.wire);
    const both = [yes, no].map((token, i) => cluster.resolve(token, [done, open][i].origin!, now() + 20_000));
    expect(await Promise.all(both)).toEqual(['committed', 'not-committed']);
    await failover;
    expect(fenced).toEqual([old]);
    // One that cannot be fenced leaves the outcome unknown.
    const broken = await rig({ fence: {} }, { fence: { act: () => Promise.reject(new Error('no such switch')) } });
    const origin = { ...done.origin!, server: broken.cluster.servers().find(({ name }) => name === old)! };
    expect(await broken.cluster.resolve(yes, origin, now() + 300)).toBe('unknown');
  });

  it('promotes a standby with the plugin, once, and refuses the old primary when it comes back', async () => {
    const { pair } = ground;
    const acts: string[] = [];
    const note = (what: string, act: (server: string) => Promise<unknown>): ActionPlugin => ({
      act: async (server) => {
        acts.push(`${what} ${server}`);
        await act(server);
      },
    });
    const [old, next] = [pair.primary, pair.standby];
    const plugins = { promote: note('promote', () => pair.failover()), fence: note('fence', async () => {}) };
    const { cluster, acquire, logged } = await rig({ promotion: { after: '200ms' }, fence: {} }, plugins);
    await acquire();
    await old.kill();
    const connection = await acquire();
    expect(connection.server.name).toBe(next.name);
    // The new primary serves before the promotion has made the old one a standby.
    await until(() => logged.some(({ message }) => message === 'the server was promoted'));
    old.setRole('primary');
    await old.start();
    const server = cluster.servers().find(({ name }) => name === old.name)!;
    await until(() => server.refused !== null);
    expect(server).toMatchObject({ reachable: true, facts: { role: 'primary', writable: true } });
    expect(logged.some(({ fields }) => fields.code === 'OUTLIVE_OLD_TIMELINE')).toBe(true);
    expect(cluster.primary()?.name).toBe(next.name);
    expect(await cluster.doubt(server, null)).toBe('demoted');
    await next.kill();
    await until(() => cluster.primary() === null);
    await expect(acquire({ wait: 700 })).rejects.toMatchObject({ code: 'OUTLIVE_NO_WRITABLE_SERVER' });
    expect(acts).toEqual([`fence ${old.name}`, `promote ${next.name}`]);
  });

  it('notices a frozen primary, and calls its connections void', async () => {
    const pair = await startPair({ synchronous: false });
    cleanups.push(() => pair.stop());
    const { cluster, events, acquire } = await rig({ detection: { silence: '700ms' } }, {}, postgres, pair);
    const old = pair.primary;
    await acquire();
    events.splice(0);
    await old.freeze();
    await until(() => cluster.primary() === null);
    await until(() => events.some(({ type }) => type === 'server-silent'));
    expect(events.map(({ type, server }) => `${type} ${server.name}`)).toEqual([
      `primary-lost ${old.name}`,
      `server-silent ${old.name}`,
    ]);
    await pair.standby.promote();
    const connection = await acquire();
    expect(connection.server.name).toBe(pair.standby.name);
    expect(events.slice(2).map(({ type, server }) => `${type} ${server.name}`)).toEqual([
      `superseded ${old.name}`,
      `primary-found ${pair.standby.name}`,
    ]);
    await old.thaw();
    await until(() => cluster.servers().find(({ name }) => name === old.name)!.refused !== null);
  });

  it('counts acknowledged commits that a promotion lost', async () => {
    const { cluster, events, acquire, stats } = await rig();
    const { pair } = ground;
    const t = await table('lost');
    const connection = await acquire();
    const commit = async () => {
      const token = await write(connection, t);
      await sql(connection, 'COMMIT');
      cluster.acknowledged(connection.origin!.facts, token);
    };
    await commit();
    await pair.setSynchronous(false);
    await pair.pauseReplication();
    await commit();
    await commit();
    await pair.failover();
    await until(() => events.some(({ type }) => type === 'lost-commits'));
    expect(events.find(({ type }) => type === 'lost-commits')).toMatchObject({ count: 2, atLeast: false });
    expect(stats.lostCommits).toBe(2);
    cluster.acknowledged(connection.origin!.facts, { token: null, position: 2n ** 60n });
    expect(stats.lostCommits).toBe(3);
    await pair.setSynchronous(true).catch(() => {});
  });

  it('waits for room on a full server, first come first served', async () => {
    const { cluster } = await rig();
    await ground.pair.primary.query('DROP ROLE IF EXISTS narrow; CREATE ROLE narrow LOGIN CONNECTION LIMIT 1');
    const narrow = { ...identity, user: 'narrow' };
    const ask = (wait: number) =>
      cluster.acquire({ identity: narrow, startup: null, deadline: now() + wait, signal: never });
    const first = await ask(5000);
    await expect(ask(150)).rejects.toMatchObject({ outcome: { transient: true, error: { code: '53300' } } });
    const second = ask(5000);
    await sleep(100);
    first.wire.destroy();
    (await second).wire.destroy();
  });

  it('learns shared facts once, asks for secrets, and cancels', async () => {
    let learnt = 0;
    const learn = () => {
      learnt++;
      return postgres.learn!();
    };
    const codec: Codec = { ...postgres, learn };
    const { cluster, acquire } = await rig({}, {}, codec);
    const all = await Promise.all([1, 2, 3].map(() => cluster.learned('postgres', identity)));
    expect(all[0]).toBeTypeOf('object');
    expect(new Set(all).size).toBe(1);
    expect(cluster.learnedNow('postgres')).toBe(all[0]);
    expect(learnt).toBe(1);
    await Promise.all([1, 2, 3].map(() => cluster.refresh('postgres', identity)));
    expect(learnt).toBeLessThanOrEqual(3);
    const query = 'SELECT usename, passwd FROM pg_shadow WHERE usename = $1';
    await ground.pair.primary.query("DROP ROLE IF EXISTS asked; CREATE ROLE asked LOGIN PASSWORD 'x'");
    expect(await cluster.lookup(query, 'asked')).toMatchObject({ verifier: expect.stringMatching(/^SCRAM-SHA-256\$/) });
    expect(await cluster.lookup(query, 'absent')).toBeNull();
    const connection = await acquire();
    const sleeping = sql(connection, 'SELECT pg_sleep(20)');
    await sleep(50);
    await cluster.cancel(connection.server, connection.login.cancelKey);
    await expect(sleeping).rejects.toThrow('57014');
  });
});
