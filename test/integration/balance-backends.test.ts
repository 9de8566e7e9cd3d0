import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { type EmbeddedPair, type EmbeddedServer, startPair } from '../../plugins/embedded-postgres/index.js';
import { connectPg, type GatewayOverrides, launchGateway, type PgClient, type TestGateway } from '../kit/gateway.js';
import { eventually } from '../kit/servers.js';

const CLIENTS = 60;
let pair: EmbeddedPair;
let b: EmbeddedServer;
let c: EmbeddedServer;

beforeAll(async () => {
  pair = await startPair({ synchronous: false });
  b = pair.standby;
  c = await pair.addStandby('c');
  await pair.primary.query(`create table t (id int primary key, v int);
    insert into t select i, i from generate_series(1, 1000) i`);
  await caughtUp();
});
afterAll(async () => pair?.stop());

const clients: PgClient[] = [];
const gateways: TestGateway[] = [];
afterEach(async () => {
  await Promise.all(clients.splice(0).map((client) => client.end().catch(() => {})));
  await Promise.all(gateways.splice(0).map((gateway) => gateway.stop()));
  for (const server of [b, c]) if (!server.running) await server.start();
  await caughtUp();
});

/** Both standbys have all that the primary has. */
async function caughtUp(): Promise<void> {
  const { rows } = await pair.primary.query<{ lsn: string }>('select pg_current_wal_lsn()::text as lsn');
  for (const server of [b, c]) {
    await eventually(
      async () => {
        const sql = `select pg_last_wal_replay_lsn() >= '${rows[0].lsn}' as done`;
        return (await server.query<{ done: boolean }>(sql)).rows[0].done === true;
      },
      { timeoutMs: 30_000, message: `standby ${server.name} has caught up` },
    );
  }
}

/** Rules for a test's patience. */
const QUICK = { sustain: '500ms', halfLife: '500ms', pause: '500ms', rest: '0s', noReturn: '0s', slack: 2 };

async function gateway(listener: GatewayOverrides['listener'] = {}, rest: GatewayOverrides = {}): Promise<TestGateway> {
  const servers = [pair.primary, b, c];
  const started = await launchGateway(servers, {
    ...rest,
    listener: { target: 'standby', balance: QUICK, ...listener },
  });
  gateways.push(started);
  return started;
}

async function connect(to: TestGateway, count: number): Promise<PgClient[]> {
  const made: PgClient[] = [];
  for (let i = 0; i < count; i += 20) {
    made.push(...(await Promise.all(Array.from({ length: Math.min(20, count - i) }, () => connectPg(to)))));
  }
  clients.push(...made);
  return made;
}

interface Status {
  readonly listeners: {
    readonly servers: Record<string, number>;
    readonly balance: { verdict: string; moved: number; failed: number; moving: number } | null;
  }[];
}

function statusOf({ gateway }: TestGateway): Status['listeners'][number] {
  return (gateway.status() as Status).listeners[0];
}

const onServer = async (client: PgClient): Promise<number> =>
  Number((await client.query('select inet_server_port() as port')).rows[0].port);

/** Asks without pause until told to stop; counts answers and keeps errors. */
function load(of: readonly PgClient[], ask = (client: PgClient) => client.query('select sum(v)::int as s from t')) {
  const errors: unknown[] = [];
  let answers = 0;
  let going = true;
  const done = Promise.all(
    of.map(async (client) => {
      while (going) {
        try {
          await ask(client);
          answers++;
        } catch (error) {
          errors.push(error);
          return;
        }
      }
    }),
  );
  return {
    errors,
    get answers() {
      return answers;
    },
    async stop() {
      going = false;
      await done;
    },
  };
}

describe('a listener of standbys', () => {
  it('shares its clients out among the standbys, for reading only', async () => {
    const door = await gateway();
    const all = await connect(door, 10);
    expect(statusOf(door).servers).toEqual({ b: 5, c: 5 });
    const ports = await Promise.all(all.map(onServer));
    expect([b, c].map(({ port }) => ports.filter((each) => each === port).length)).toEqual([5, 5]);
    // The server's own error, and the session goes on.
    await expect(all[0].query('insert into t values (0, 0)')).rejects.toMatchObject({
      code: '25006',
      message: 'cannot execute INSERT in a read-only transaction',
    });
    expect((await all[0].query('select count(*)::int as n from t')).rows).toEqual([{ n: 1000 }]);
  });

  it('goes on when a standby dies, and the one that comes back gets its share under load', async () => {
    const door = await gateway();
    const all = await connect(door, CLIENTS);
    expect(statusOf(door).servers).toEqual({ b: CLIENTS / 2, c: CLIENTS / 2 });
    const work = load(all);
    await eventually(() => work.answers > CLIENTS);
    await c.kill();
    await eventually(() => statusOf(door).servers.b === CLIENTS);
    const before = work.answers;
    await eventually(() => work.answers > before + CLIENTS);
    expect(work.errors).toEqual([]);

    await c.start();
    await eventually(() => Math.abs((statusOf(door).servers.c ?? 0) - CLIENTS / 2) <= 4, {
      timeoutMs: 30_000,
      message: 'half of the sessions on the standby that came back',
    });
    // No thrash: what is even stays as it is.
    const { moved } = statusOf(door).balance!;
    expect(moved).toBeLessThanOrEqual(CLIENTS / 2 + 2);
    await new Promise((resolve) => setTimeout(resolve, 4000));
    expect(statusOf(door).balance!.moved - moved).toBeLessThanOrEqual(2);
    await work.stop();
    expect(work.errors).toEqual([]);
    expect(door.gateway.stats.errors.size).toBe(0);
  });

  it('a standby dies under sessions that are idle, that read in transactions, and that receive large results', async () => {
    const door = await gateway({ balance: { ...QUICK, on: false } });
    const all = await connect(door, 24);
    const [idle, committed, repeatable, large] = [0, 6, 12, 18].map((at) => all.slice(at, at + 6));
    // What a session knows of itself comes along.
    for (const [i, client] of idle.entries()) await client.query(`set application_name to 'idle ${i}'`);
    const sum = 'select sum(v)::int as s, count(*)::int as n from t';
    const before = { s: 500_500, n: 1000 };
    for (const client of [...committed, ...repeatable]) {
      const level = committed.includes(client) ? 'read committed' : 'repeatable read';
      await client.query(`begin isolation level ${level}`);
      expect((await client.query(sum)).rows).toEqual([before]);
    }
    const results = large.map((client) =>
      client.query({ text: "select i, repeat('x', 1000) as x from generate_series(1, 20000) i", rowMode: 'array' }),
    );
    await eventually(() => door.gateway.stats.bytesToClients > 1_000_000);
    await b.kill();

    for (const [i, client] of idle.entries()) {
      expect((await client.query('show application_name')).rows).toEqual([{ application_name: `idle ${i}` }]);
    }
    for (const client of [...committed, ...repeatable]) {
      expect((await client.query(sum)).rows).toEqual([before]);
      await client.query('commit');
    }
    for (const { rows } of await Promise.all(results)) {
      expect(rows.length).toBe(20_000);
      expect(rows.every(([i, x], at) => i === at + 1 && x.length === 1000)).toBe(true);
    }
    expect(statusOf(door).servers).toEqual({ c: 24 });
    expect(all.flatMap(({ errors }) => errors)).toEqual([]);
    expect(door.gateway.stats.inDoubt).toBe(0);
  });

  it('a snapshot that is not to be had again fails its transaction, and never mixes', async () => {
    const door = await gateway({ balance: { ...QUICK, on: false } });
    const all = await connect(door, 2);
    const port = b.port;
    const on = (await onServer(all[0])) === port ? all[0] : all[1];
    await on.query('begin isolation level repeatable read');
    expect((await on.query('select v from t where id = 1')).rows).toEqual([{ v: 1 }]);
    await pair.primary.query('update t set v = 2 where id = 1');
    await caughtUp();
    await b.kill();
    await expect(on.query('select v from t where id = 1')).rejects.toMatchObject({
      code: '40001',
      detail: 'OUTLIVE_REPLAY_DIVERGED',
    });
    await on.query('rollback');
    expect((await on.query('select v from t where id = 1')).rows).toEqual([{ v: 2 }]);
    await pair.primary.query('update t set v = 1 where id = 1');
  });

  it('goes on when a standby ends its session over a conflict with recovery', async () => {
    const door = await gateway({ balance: { ...QUICK, on: false } });
    const [client] = await connect(door, 1);
    for (const server of [b, c]) await server.setConf('max_standby_streaming_delay', '0');
    try {
      await client.query('begin isolation level repeatable read');
      expect((await client.query('select v from t where id = 1')).rows).toEqual([{ v: 1 }]);
      await pair.primary.query('update t set v = v where id > 500');
      await pair.primary.query('vacuum t');
      await eventually(() => door.gateway.stats.replays.get('done') === 1, { message: 'the transaction is repeated' });
      expect((await client.query('select v from t where id = 1')).rows).toEqual([{ v: 1 }]);
      await client.query('commit');
    } finally {
      for (const server of [b, c]) await server.setConf('max_standby_streaming_delay', undefined);
    }
    expect(client.errors).toEqual([]);
  });

  it('lives on the primary while there is no standby, for reading only, and goes back', async () => {
    const door = await gateway();
    const all = await connect(door, 10);
    const work = load(all);
    await Promise.all([b.kill(), c.kill()]);
    await eventually(() => statusOf(door).servers.a === 10);
    await work.stop();
    expect(work.errors).toEqual([]);
    await expect(all[0].query('insert into t values (0, 0)')).rejects.toMatchObject({ code: '25006' });
    const again = load(all);
    await b.start();
    await eventually(() => statusOf(door).servers.b === 10, { timeoutMs: 30_000, message: 'all are on the standby' });
    await again.stop();
    expect(again.errors).toEqual([]);
    const { moves } = door.gateway.stats;
    expect(moves).toEqual([{ listener: 'main', from: 'a', to: 'b', reason: 'fallback', count: 10 }]);
  });

  it('waits for a standby where the primary is not allowed', async () => {
    const standby = { without: 'refuse' } as const;
    const door = await gateway({ standby, failover: { wait: '1500ms' } });
    const [client] = await connect(door, 1);
    await Promise.all([b.kill(), c.kill()]);
    await expect(client.query('select 1')).rejects.toMatchObject({ code: '57P03', detail: 'OUTLIVE_NO_STANDBY' });
    await expect(connectPg(door)).rejects.toMatchObject({ code: '57P03', detail: 'OUTLIVE_NO_STANDBY' });
    await b.start();
    expect((await client.query('select 1 as one')).rows).toEqual([{ one: 1 }]);
  });

  it('leaves a standby that is too far behind, and uses it again', async () => {
    const door = await gateway({ standby: { maxLag: '64KiB' } });
    const all = await connect(door, 10);
    const work = load(all);
    await b.query('select pg_wal_replay_pause()');
    try {
      await pair.primary.query(
        'create table junk as select i, repeat(md5(i::text), 20) from generate_series(1, 2000) i',
      );
      await eventually(() => statusOf(door).servers.c === 10, { timeoutMs: 30_000, message: 'all have left' });
      expect(door.gateway.stats.moves).toEqual([{ listener: 'main', from: 'b', to: 'c', reason: 'lagging', count: 5 }]);
    } finally {
      await b.query('select pg_wal_replay_resume()');
    }
    await eventually(() => (statusOf(door).servers.b ?? 0) >= 3, { timeoutMs: 30_000, message: 'some are back' });
    await work.stop();
    expect(work.errors).toEqual([]);
    await pair.primary.query('drop table junk');
  });

  it('leaves a session where it is that is amid a transaction, unless asked for replay', async () => {
    for (const replay of [false, true]) {
      const door = await gateway({ balance: { ...QUICK, replay, patience: '1s' } });
      await c.kill();
      await eventually(
        () =>
          (door.gateway.status() as { clusters: { servers: { reachable: boolean }[] }[] }).clusters[0].servers[2]
            .reachable === false,
      );
      const all = await connect(door, 12);
      for (const client of all) {
        await client.query('begin');
        await client.query('select sum(v) from t');
      }
      await c.start();
      if (replay) {
        await eventually(() => (statusOf(door).servers.c ?? 0) >= 4, { timeoutMs: 30_000, message: 'replayed moves' });
      } else {
        await eventually(() => statusOf(door).balance!.failed >= 4, { timeoutMs: 30_000, message: 'moves given up' });
        expect(statusOf(door).servers).toEqual({ b: 12 });
      }
      for (const client of all) {
        expect((await client.query('select count(*)::int as n from t')).rows).toEqual([{ n: 1000 }]);
        await client.query('commit');
      }
      await Promise.all(all.map((client) => client.end()));
    }
  });
});
