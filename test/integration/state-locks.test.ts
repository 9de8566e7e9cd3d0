import { describe, expect, it } from 'vitest';
import { holds } from '../kit/fault-proxy.js';
import { useFront } from '../kit/front.js';
import { lost, next, worksAgain } from '../kit/lost.js';
import { eventually } from '../kit/servers.js';

/** F19: locks of a session are taken again. */
const front = useFront({}, 'create table t (id int, v text); select lo_from_bytea(4711, $$large$$)');

describe('session advisory locks', () => {
  const held = async () =>
    (
      await front.pair.primary.query<{ id: string }>(
        "select format('%s/%s/%s/%s', classid, objid, objsubid, mode) as id from pg_locks where locktype = 'advisory' order by 1",
      )
    ).rows.map(({ id }) => id);

  it('are taken again, idle and in a transaction', async () => {
    const gateway = await front.gateway();
    const [idle, inside] = [await front.pg(gateway), await front.pg(gateway)];
    await idle.query('select pg_advisory_lock(-5), pg_advisory_lock_shared(7), pg_advisory_lock(1, -2)');
    await inside.query('select pg_advisory_lock($1)', ['9007199254740993']);
    await inside.query('begin');
    await inside.query('select pg_try_advisory_lock(20)');
    await inside.query('select pg_advisory_xact_lock(21)');
    const before = await held();
    expect(before.length).toBe(6);
    await front.failover();
    await idle.query('select 1');
    await inside.query('select 1');
    expect(await held()).toEqual(before);
    await inside.query('commit');
    expect(
      (await inside.query('select pg_advisory_unlock(20) as a, pg_advisory_unlock(9007199254740993) as b')).rows,
    ).toEqual([{ a: true, b: true }]);
    expect((await idle.query('select pg_advisory_unlock(-5) as a, pg_advisory_unlock(1, -2) as b')).rows).toEqual([
      { a: true, b: true },
    ]);
    await front.pair.rebuild();
    await front.failover();
    await idle.query('select 1');
    expect(await held()).toEqual(['0/7/1/ShareLock']);
  });

  it('that somebody else took meanwhile are named, and only those', async () => {
    const gateway = await front.gateway();
    const client = await front.pg(gateway);
    await client.query('select pg_advisory_lock(30), pg_advisory_lock(31)');
    front.nextProxy.holdServerReplies();
    await front.failover();
    const thief = await front.direct();
    await thief.query('select pg_advisory_lock(30)');
    front.proxy.release();
    expect(await next(client)).toMatchObject(lost('session advisory lock'));
    await worksAgain(client);
    await thief.end();
    // The other one is still the session's, also after another failover.
    expect(await held()).toEqual(['0/31/1/ExclusiveLock']);
    await front.pair.rebuild();
    await front.failover();
    await worksAgain(client);
    expect(await held()).toEqual(['0/31/1/ExclusiveLock']);
  });

  it('that are lost inside of a transaction fail it', async () => {
    const gateway = await front.gateway();
    const client = await front.pg(gateway);
    await client.query('select pg_advisory_lock(40)');
    await client.query('begin');
    await client.query("insert into t values (400, 'x')");
    front.nextProxy.holdServerReplies();
    await front.failover();
    const thief = await front.direct();
    await thief.query('select pg_advisory_lock(40)');
    front.proxy.release();
    expect(await next(client)).toMatchObject(lost('session advisory lock'));
    await client.query('rollback');
    await worksAgain(client);
    expect((await client.query('select from t where id = 400')).rowCount).toBe(0);
  });

  it('are taken again where only the connection broke and the server has not noticed', async () => {
    const gateway = await front.gateway();
    const client = await front.pg(gateway);
    const connection = await front.connectionOf(() => client.query('select pg_advisory_lock(50)'), 'lock(50)');
    await client.query('select 1');
    // The server goes on waiting for a client that is gone.
    connection.strand();
    expect((await client.query('select 1 as one')).rows).toEqual([{ one: 1 }]);
    expect(await held()).toEqual(['0/50/1/ExclusiveLock']);
    await worksAgain(client);
  });

  it('stay when a temporary table is lost', async () => {
    const gateway = await front.gateway();
    const client = await front.pg(gateway);
    await client.query('select pg_advisory_lock(60)');
    await client.query('create temp table scratch (id int)');
    await front.failover();
    expect(await next(client)).toMatchObject(lost('temporary table scratch'));
    await front.pair.rebuild();
    await front.failover();
    await worksAgain(client);
    expect(await held()).toEqual(['0/60/1/ExclusiveLock']);
  });
});

describe('locks of a transaction', () => {
  it('are not waited for where the end of the old session has to be asked for again', async () => {
    const gateway = await front.gateway();
    const client = await front.pg(gateway);
    await client.query('insert into t values (410)');
    await client.query('begin');
    const connection = await front.connectionOf(() => client.query('update t set id = 411 where id = 410'), 'id = 411');
    front.proxy.when('client', holds('pg_terminate_backend'), (asking) => asking.cut(), { times: 2 });
    connection.strand();
    expect((await client.query('select id from t where id in (410, 411)')).rows).toEqual([{ id: 411 }]);
    await client.query('commit');
    await worksAgain(client);
  });

  it('are not waited for where the server that has not noticed was itself not reached for a moment', async () => {
    const gateway = await front.gateway();
    const client = await front.pg(gateway);
    await client.query('insert into t values (420)');
    await client.query('begin');
    const connection = await front.connectionOf(() => client.query('update t set id = 421 where id = 420'), 'id = 421');
    const { proxy } = front;
    proxy.refuse();
    for (const each of proxy.connections) if (each !== connection) each.cut();
    await eventually(() => gateway.log.lines.some(({ message }) => message === 'the server takes no writes any more'));
    connection.strand();
    const answer = client.query('select id from t where id in (420, 421)');
    const { sessions } = gateway.gateway.stats;
    await eventually(() => [...sessions.values()].some((states) => states.get('suspended') === 1));
    await proxy.listen();
    expect((await answer).rows).toEqual([{ id: 421 }]);
    await client.query('commit');
    await worksAgain(client);
  });
});
