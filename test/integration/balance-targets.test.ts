import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { passingUnavailable } from '../../core/io/keeper/index.js';
import { type EmbeddedServer, startServer } from '../../plugins/embedded-postgres/index.js';
import { connectPg, gatewayConfig, launchGateway, type PgClient, type TestGateway } from '../kit/gateway.js';
import { NOBODY, startKept } from '../kit/kept-gateway.js';
import { eventually, usePair } from '../kit/servers.js';

const QUICK = { sustain: '500ms', halfLife: '500ms', pause: '500ms', rest: '0s', noReturn: '0s', slack: 2 };

interface Status {
  readonly listeners: { readonly servers: Record<string, number> }[];
}

const serversOf = ({ gateway }: TestGateway) => (gateway.status() as Status).listeners[0].servers;

const ends: (() => unknown)[] = [];
afterEach(async () => {
  for (const end of ends.splice(0).reverse()) await end();
});

async function connect(to: { readonly port: number }, count: number): Promise<PgClient[]> {
  const made = await Promise.all(Array.from({ length: count }, () => connectPg(to)));
  ends.push(() => Promise.all(made.map((client) => client.end().catch(() => {}))));
  return made;
}

describe('a standby that becomes the primary', () => {
  const servers = usePair();

  it('keeps its sessions, which move to a new standby when there is one, and never write', async () => {
    const door = await launchGateway([servers.pair.primary, servers.pair.standby], {
      listener: { target: 'standby', balance: QUICK },
    });
    ends.push(() => door.stop());
    await servers.pair.primary.query('create table t (id int)');
    const all = await connect(door, 8);
    expect(serversOf(door)).toEqual({ b: 8 });
    let going = true;
    const errors: unknown[] = [];
    const work = Promise.all(
      all.slice(1).map(async (client) => {
        while (going) await client.query('select count(*) from pg_class').catch((error) => errors.push(error));
      }),
    );
    await all[0].query('begin');
    expect((await all[0].query('select 1 as one')).rows).toEqual([{ one: 1 }]);
    await servers.pair.failover();
    expect((await all[0].query('select 2 as two')).rows).toEqual([{ two: 2 }]);
    await all[0].query('commit');
    // Also where it has nowhere to go, each gets a connection that was made to a primary.
    const { moves } = door.gateway.stats;
    const moved = (reason: string) => moves.filter((each) => each.reason === reason).map(({ count }) => count);
    await eventually(() => moved('promoted')[0] === 8, { timeoutMs: 20_000, message: 'new connections' });
    await expect(all[0].query('insert into t values (1)')).rejects.toMatchObject({ code: '25006' });
    // Who asks for more in so many words on a primary gets it, protected like anybody.
    await all[0].query('begin read write');
    await all[0].query('insert into t values (2)');
    await all[0].query('commit');
    await servers.pair.rebuild();
    await eventually(() => serversOf(door).a === 8, { timeoutMs: 30_000, message: 'all on the new standby' });
    expect(moved('fallback')).toEqual([8]);
    going = false;
    await work;
    expect(errors).toEqual([]);
    expect((await all[0].query('select id from t')).rows).toEqual([{ id: 2 }]);
    expect(door.gateway.stats.errors.size).toBe(0);
  });
});

describe('several servers that take writes', () => {
  const made: EmbeddedServer[] = [];
  beforeAll(async () => {
    for (let i = 0; i < 2; i++) made.push(await startServer());
    for (const server of made) {
      await server.query('create table t (id serial primary key, v int)');
      await server.query('insert into t (v) values (0)');
    }
  });
  afterAll(async () => {
    for (const server of made) await server.remove();
  });

  async function start(listener: object = {}): Promise<TestGateway> {
    const at = made.map(({ port }, i) => ({ port, name: `m${i + 1}` }));
    const door = await launchGateway(at, {
      cluster: { writers: 'several' },
      listener: { target: 'any', balance: QUICK, ...listener },
    });
    ends.push(() => door.stop());
    return door;
  }

  it('get as many sessions each, which write, and go on on the other one', async () => {
    const door = await start({ failover: { wait: '10s' } });
    const all = await connect(door, 10);
    expect(serversOf(door)).toEqual({ m1: 5, m2: 5 });
    for (const client of all) await client.query('update t set v = v + 1');
    for (const server of made) expect((await server.query('select v from t')).rows).toEqual([{ v: 5 }]);
    // One of them will wait for notifications, which must not be missed for the sake of balance.
    await made[1].kill();
    await eventually(() => serversOf(door).m1 === 10);
    for (const client of all) await client.query('update t set v = v + 1');
    expect((await made[0].query('select v from t')).rows).toEqual([{ v: 15 }]);
    const [listening, locking] = all;
    await listening.query('listen news');
    await locking.query('select pg_advisory_lock(7)');
    const before = new Set(all.slice(0, 2));
    await made[1].start();
    await eventually(() => (serversOf(door).m2 ?? 0) >= 4, { timeoutMs: 30_000, message: 'some have moved' });
    const ports = await Promise.all(
      [...before].map(async (client) => (await client.query('select inet_server_port() as port')).rows[0].port),
    );
    expect(ports).toEqual([made[0].port, made[0].port]);
    expect(door.gateway.stats.errors.size).toBe(0);
  });

  it('an open transaction is repeated on the other one, and a commit in doubt waits for its own server', async () => {
    const door = await start({ balance: { on: false }, failover: { wait: '20s' } });
    const all = await connect(door, 2);
    const port = async (client: PgClient) => (await client.query('select inet_server_port() as port')).rows[0].port;
    const on2 = (await port(all[0])) === made[1].port ? all[0] : all[1];
    await on2.query('begin');
    await on2.query('update t set v = 100');
    await made[1].kill();
    await on2.query('commit');
    expect((await made[0].query('select v from t')).rows).toEqual([{ v: 100 }]);

    // The server hangs when the commit arrives, and is killed: only it can tell what became of it.
    await made[1].start();
    await eventually(
      () =>
        (door.gateway.status() as { clusters: { servers: { reachable: boolean }[] }[] }).clusters[0].servers[1]
          .reachable,
    );
    const [late] = await connect(door, 1);
    expect(await port(late)).toBe(made[1].port);
    await late.query('begin');
    await late.query('update t set v = 200');
    await made[1].freeze();
    const { requests } = door.gateway.stats;
    const commit = late.query('commit');
    await eventually(() => door.gateway.stats.requests > requests);
    await made[1].kill();
    await eventually(() => door.gateway.stats.inDoubt === 1);
    await made[1].start();
    await commit;
    // Where it was: repeated on whichever has the fewest sessions, and once only.
    const values = await Promise.all(made.map(async (server) => (await server.query('select v from t')).rows[0].v));
    expect(values.filter((v) => v === 200)).toHaveLength(1);
    expect([...door.gateway.stats.outcomes]).toEqual([['not-committed', 1]]);
  });
});

describe.skipIf(passingUnavailable() !== null)('under a keeper', () => {
  const servers = usePair();

  it('sessions on a standby go on when the engine crashes', async () => {
    const config = gatewayConfig(servers, { listener: { target: 'standby' } });
    const gateway = await startKept(config, process.getuid?.() === 0 ? NOBODY : undefined);
    ends.push(() => gateway.kill());
    const all = await connect(gateway, 6);
    for (const client of all.slice(0, 3)) {
      await client.query('begin isolation level repeatable read');
      expect((await client.query('select 1 as one')).rows).toEqual([{ one: 1 }]);
    }
    expect(await gateway.crash()).toMatchObject({ kept: 6, lost: 0 });
    for (const client of all) {
      expect((await client.query('select pg_is_in_recovery() as standby')).rows).toEqual([{ standby: true }]);
    }
    for (const client of all.slice(0, 3)) await client.query('commit');
    expect((await gateway.status()).listeners[0].servers).toEqual({ b: 6 });
  });
});
