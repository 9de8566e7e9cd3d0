import { describe, expect, it } from 'vitest';
import { errorOf, useFront } from '../kit/front.js';
import type { PgClient } from '../kit/gateway.js';
import { eventually } from '../kit/servers.js';

/** F23: what cannot be wrapped into a transaction, or ends one in a way that cannot be proved, in flight when the server dies. */
const front = useFront(
  { settings: { max_prepared_transactions: '20' } },
  `create table t (id int, v text);
   create table indexed (id int);
   create table tidy (id int);
   create procedure steps(first int) language plpgsql as $$
     begin insert into t values (first, 'step'); commit; insert into t values (first + 1, 'step'); end $$`,
);

interface Case {
  readonly name: string;
  readonly before?: (id: number) => string[];
  readonly sql: (id: number) => string;
  /** How often the statement took effect. */
  readonly effect: (id: number) => string;
  /** Repeated instead of doubted. */
  readonly repeated?: true;
}

const inserted = (id: number) => `select count(*)::int as n from t where id = ${id}`;
const CASES: Case[] = [
  {
    name: 'PREPARE TRANSACTION',
    before: (id) => ['begin', `insert into t values (${id}, 'prepared')`],
    sql: (id) => `prepare transaction 'gid ${id}'`,
    effect: (id) => `select count(*)::int as n from pg_prepared_xacts where gid = 'gid ${id}'`,
  },
  {
    name: 'COMMIT PREPARED',
    before: (id) => ['begin', `insert into t values (${id}, 'prepared')`, `prepare transaction 'gid ${id}'`],
    sql: (id) => `commit prepared 'gid ${id}'`,
    effect: inserted,
  },
  {
    name: 'COMMIT AND CHAIN',
    before: (id) => ['begin', `insert into t values (${id}, 'chain')`],
    sql: () => 'commit and chain',
    effect: inserted,
  },
  {
    name: 'CREATE INDEX CONCURRENTLY',
    sql: (id) => `create index concurrently index_${id} on indexed (id)`,
    effect: (id) => `select count(*)::int as n from pg_index where indexrelid = to_regclass('index_${id}')`,
  },
  {
    name: 'CREATE DATABASE',
    sql: (id) => `create database database_${id}`,
    effect: (id) => `select count(*)::int as n from pg_database where datname = 'database_${id}'`,
  },
  { name: 'CALL with COMMIT', sql: (id) => `call steps(${id})`, effect: inserted },
  {
    name: 'DO',
    sql: (id) => `do $$ begin insert into t values (${id}, 'do'); end $$`,
    effect: inserted,
  },
  { name: 'VACUUM', sql: () => 'vacuum tidy', effect: () => 'select 1 as n', repeated: true },
  { name: 'REINDEX', sql: () => 'reindex table tidy', effect: () => 'select 1 as n', repeated: true },
];

describe.each([
  ['before they reach the server', 'client' as const, 100],
  ['with their answers on the way', 'server' as const, 200],
])('%s', (_name, side, base) => {
  it('are never guessed, and take effect once at most', async () => {
    const gateway = await front.gateway();
    const flights: { each: Case; id: number; client: PgClient; result: Promise<unknown> }[] = [];
    for (const [i, each] of CASES.entries()) {
      const id = base + 2 * i;
      const client = await front.pg(gateway);
      for (const sql of each.before?.(id) ?? []) await client.query(sql);
      const connection = await front.connectionOf(() => client.query(`select 'mark ${id}'`), `mark ${id}`);
      if (side === 'client') connection.holdClientBytes();
      else connection.holdServerReplies();
      const result = client.query(each.sql(id)).catch((error: unknown) => error);
      flights.push({ each, id, client, result });
      await eventually(() => connection.parked(side).length > 0, { message: each.name });
    }
    await front.failover();

    const doubts = CASES.filter(({ repeated }) => !repeated).length;
    for (const { each, id, client, result } of flights) {
      const message = each.name;
      if (each.repeated) expect(await result, message).toMatchObject({ command: expect.any(String) });
      else expect(await result, message).toMatchObject({ code: '08007', detail: 'OUTLIVE_OUTCOME_UNKNOWN' });
      // The connection is kept, outside of any transaction.
      const { rows } = await client.query(each.effect(id));
      expect(rows, message).toEqual([{ n: each.repeated || side === 'server' ? 1 : 0 }]);
      await client.query('begin');
      await client.query(`insert into t values (${id + 50}, 'after')`);
      await client.query('rollback');
      expect(client.errors, message).toEqual([]);
    }
    expect(gateway.gateway.stats.outcomes.get('unknown')).toBe(doubts);
    for (const { gid } of (await front.pair.primary.query<{ gid: string }>('select gid from pg_prepared_xacts')).rows)
      await front.pair.primary.query(`rollback prepared '${gid}'`);
  });
});

it('are ended on a server that lives on, where only the connection broke', async () => {
  const gateway = await front.gateway();
  const client = await front.pg(gateway);
  const connection = await front.connectionOf(() => client.query("select 'mark call'"), 'mark call');
  const result = errorOf(client.query('do $$ begin perform pg_sleep(600); end $$'));
  await eventually(
    async () =>
      (await front.pair.primary.query("select from pg_stat_activity where wait_event = 'PgSleep'")).rows.length === 1,
  );
  connection.strand();
  expect(await result).toMatchObject({ code: '08007', detail: 'OUTLIVE_OUTCOME_UNKNOWN' });
  expect((await client.query('select 1 as one')).rows).toEqual([{ one: 1 }]);
  const { rows } = await front.pair.primary.query("select from pg_stat_activity where wait_event = 'PgSleep'");
  expect(rows).toEqual([]);
});
