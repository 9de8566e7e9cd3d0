import { describe, expect, it } from 'vitest';
import { useFront } from '../kit/front.js';
import type { PgClient } from '../kit/gateway.js';
import { lost, next, worksAgain } from '../kit/lost.js';

/** F19: state of a session that lives in its server only. */
const front = useFront({}, 'create table t (id int, v text)');

interface Case {
  readonly name: string;
  readonly make: string[];
  readonly names: string[];
}
const CASES: Case[] = [
  { name: 'a temporary table', make: ['create temp table scratch (id int)'], names: ['temporary table scratch'] },
  {
    name: 'a temporary table by SELECT INTO',
    make: ['select 1 as id into temp scratch'],
    names: ['temporary table scratch'],
  },
  {
    name: 'a held cursor',
    make: ['declare rows cursor with hold for select * from t'],
    names: ['cursor WITH HOLD rows'],
  },
  {
    name: 'a temporary table made in a transaction',
    make: ['begin', 'create temp table scratch as select 1 as id', 'commit'],
    names: ['temporary table scratch'],
  },
  {
    name: 'several',
    make: [
      'create temp table scratch (id int)',
      'create temp sequence counter',
      'declare c cursor with hold for values (1)',
    ],
    names: ['temporary table scratch', 'temporary table counter', 'cursor WITH HOLD c'],
  },
];

/** What is gone by the time of the failover is not asked for any more. */
const GONE: Record<string, string[]> = {
  'DROP TABLE': ['create temp table scratch (id int)', 'drop table scratch'],
  'DISCARD TEMP': ['create temp table scratch (id int)', 'discard temp'],
  CLOSE: ['declare rows cursor with hold for select 1', 'close rows'],
  'CLOSE ALL': ['declare rows cursor with hold for select 1', 'close all'],
  unlock: ['select pg_advisory_lock(19)', 'select pg_advisory_unlock(19)'],
  'unlock all': ['select pg_advisory_lock(22), pg_advisory_lock(23)', 'select pg_advisory_unlock_all()'],
  'ON COMMIT DROP': ['begin', 'create temp table scratch (id int) on commit drop', 'commit'],
  ROLLBACK: ['begin', 'create temp table scratch (id int)', 'declare c cursor with hold for select 1', 'rollback'],
  'DISCARD ALL': [
    'create temp table scratch (id int)',
    'declare rows cursor with hold for select 1',
    'select pg_advisory_lock(21)',
    "select set_config('app.user', 'x', false)",
    'discard all',
  ],
};

it('is named to the client, once, idle and in a transaction', async () => {
  const gateway = await front.gateway();
  const session = async (statements: string[], begin: boolean) => {
    const client = await front.pg(gateway);
    for (const sql of statements) await client.query(sql);
    if (begin) for (const sql of ['begin', 'select 1']) await client.query(sql);
    return client;
  };
  const idle: [Case, PgClient][] = [];
  const inside: [Case, PgClient][] = [];
  for (const each of CASES) {
    idle.push([each, await session(each.make, false)]);
    inside.push([each, await session(each.make, true)]);
  }
  const gone: [string, PgClient][] = [];
  // One each whose last statement is fresh when the server dies.
  for (const [name, statements] of Object.entries(GONE))
    gone.push([name, await session(statements.slice(0, -1), false)]);
  await Promise.all(gone.map(([name, client]) => client.query(GONE[name].at(-1)!)));
  await front.failover();

  for (const [{ name, names }, client] of idle) {
    expect(await next(client), name).toMatchObject(lost(...names));
    await worksAgain(client);
  }
  for (const [{ name, names }, client] of inside) {
    expect(await next(client), name).toMatchObject(lost(...names));
    expect((await next(client)).code).toBe('25P02');
    await client.query('rollback');
    await worksAgain(client);
  }
  const works = async () => {
    for (const [, client] of gone) {
      await worksAgain(client);
      expect((await client.query("select current_setting('app.user', true) as v")).rows[0].v ?? '').toBe('');
    }
  };
  await works();
  expect((await front.pair.primary.query("select from pg_locks where locktype = 'advisory'")).rows.length).toBe(0);
  // Nothing is left that a second failover could name again.
  await front.pair.rebuild();
  await front.failover();
  for (const [, client] of [...idle, ...inside]) await worksAgain(client);
  await works();
});

describe('a temporary table inside of the open transaction', () => {
  it.each([
    ['ON COMMIT DROP', 'create temp table scratch (id int) on commit drop', 'select 1'],
    ['dropped by itself', 'create temp table scratch (id int)', 'drop table scratch'],
  ])('is replayed: %s', async (_name, create, drop) => {
    const gateway = await front.gateway();
    const client = await front.pg(gateway);
    await client.query('begin');
    await client.query(create);
    await client.query('insert into scratch values (1), (2)');
    await front.failover();
    expect((await client.query('select sum(id)::int as n from scratch')).rows).toEqual([{ n: 3 }]);
    await client.query('insert into t select 100 + id from scratch');
    await client.query(drop);
    await client.query('commit');
    await worksAgain(client);
    expect(Object.fromEntries(gateway.gateway.stats.replays)).toEqual({ done: 1 });
  });

  it.each([
    ['ON COMMIT DROP', 'create temp table scratch (id int) on commit drop', 'select 1'],
    ['dropped by itself', 'create temp table scratch (id int)', 'drop table scratch'],
  ])('is no loss when the commit took effect and its answer was lost: %s', async (_name, create, drop) => {
    const gateway = await front.gateway();
    const client = await front.pg(gateway);
    await client.query('begin');
    await client.query(create);
    await client.query('insert into scratch values (7)');
    await client.query('insert into t select 200 + id from scratch');
    await client.query(drop);
    front.proxy.when(
      'client',
      (bytes) => bytes.includes('COMMIT\0'),
      (connection) => connection.holdServerReplies(),
    );
    const commit = client.query('COMMIT');
    await front.appears('select from t where id = 207');
    await front.failover();
    expect((await commit).command).toBe('COMMIT');
    await worksAgain(client);
    await client.query('delete from t where id = 207');
  });

  it('is named when the commit took effect and its answer was lost', async () => {
    const gateway = await front.gateway();
    const client = await front.pg(gateway);
    await client.query('begin');
    await client.query('create temp table scratch (id int)');
    await client.query('declare rows cursor with hold for select 1');
    await client.query("select pg_advisory_lock(19), set_config('app.user', 'x', false)");
    await client.query('insert into t values (300)');
    front.proxy.when(
      'client',
      (bytes) => bytes.includes('COMMIT\0'),
      (connection) => connection.holdServerReplies(),
    );
    const commit = client.query('COMMIT');
    await front.appears('select from t where id = 300');
    await front.failover();
    expect((await commit).command).toBe('COMMIT');
    const error = await next(client);
    expect(error).toMatchObject(lost());
    for (const name of ['temporary table scratch', 'cursor WITH HOLD rows', 'session advisory lock', 'app.user']) {
      expect(error.message).toContain(name);
    }
    await worksAgain(client);
    await client.query('delete from t where id = 300');
  });
});
