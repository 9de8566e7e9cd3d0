import { serialize } from 'pg-protocol';
import type { Script } from './stage.js';

/** The tables that the scripts work on. */
export const TABLES = `
  create table t (id int, v text);
  create table unique_t (id int primary key);
  create table parent (id int primary key);
  create table child (id int references parent deferrable initially deferred);
`;

/** All that scripts leave behind, by their number. */
export const EFFECTS = `select id::text, v as what from t union all select id::text, 'child' from child
  union all select id::text, 'unique' from unique_t union all select id::text, 'parent' from parent`;

const q = (sql: string) => serialize.query(sql);
const p = (sql: string, name = '') => serialize.parse({ text: sql, name });
const b = (values: string[], statement = '', portal = '') => serialize.bind({ values, statement, portal });
const d = (portal = '') => serialize.describe({ type: 'P', name: portal });
const e = (portal = '', rows = 0) => serialize.execute({ portal, rows });
const sync = serialize.sync();
const flush = serialize.flush();
const x = (sql: string, ...values: string[]) => ({ send: [p(sql), b(values), d(), e(), sync] });

export const TRANSACTIONS: Record<string, Script> = {
  simple: (id) => [
    q('begin'),
    q(`insert into t values (${id}, 'one')`),
    q(`select v from t where id = ${id}`),
    q(`update t set v = 'two' where id = ${id}`),
    q(`select v from t where id = ${id}`),
    q('commit'),
    q(`select v from t where id = ${id}`),
  ],
  extended: (id) => [
    x('begin'),
    x('insert into t values ($1, $2)', id, 'one'),
    { send: [p('select v from t where id = $1', 's'), serialize.describe({ type: 'S', name: 's' }), sync] },
    { send: [b([id], 's'), e(), sync] },
    x('update t set v = $2 where id = $1', id, 'two'),
    { send: [b([id], 's'), e(), sync] },
    x('commit'),
    { send: [b([id], 's'), e(), sync] },
  ],
  'rolled back': (id) => [q('begin'), q(`insert into t values (${id}, 'one')`), q('rollback'), q(`select ${id}`)],
  'reads only': (id) => [q('begin'), q(`select ${id}`), q('commit')],
  'prepared commit': (id) => [
    { send: [p('commit', 'c'), sync] },
    x('begin'),
    x('insert into t values ($1, $2)', id, 'one'),
    { send: [b([], 'c'), e(), sync] },
  ],
};

export const SAVEPOINTS: Record<string, Script> = {
  savepoints: (id) => [
    q('begin'),
    q(`insert into unique_t values (${id})`),
    q('savepoint a'),
    q(`insert into t values (${id}, 'undone')`),
    q(`insert into unique_t values (${id})`),
    q('select 1'),
    q('rollback to a'),
    q(`insert into t values (${id}, 'kept')`),
    q('release a'),
    q('commit'),
  ],
  'a failed transaction': (id) => [
    q('begin'),
    q(`insert into t values (${id}, 'undone')`),
    q('select 1/0'),
    q('select 1'),
    q('commit'),
    q(`select v from t where id = ${id}`),
  ],
  'a failed batch, undone to a savepoint': (id) => [
    q('begin'),
    q('savepoint a'),
    {
      send: [
        ...[p(`insert into t values (${id}, 'kept')`), b([]), e()],
        ...[p('savepoint b'), b([]), e()],
        ...[p('select 1/0'), b([]), e()],
        sync,
      ],
    },
    q('rollback to b'),
    q('commit'),
  ],
  'local settings': (id) => [
    q("set datestyle = 'German'"),
    q('begin isolation level serializable'),
    q(`set local work_mem = '7MB'`),
    q(`set timezone = 'Asia/Tokyo'`),
    q(`insert into t select ${id}, current_setting('work_mem') || current_setting('transaction_isolation')`),
    q('show timezone'),
    q('rollback'),
    q('show timezone'),
    q('show work_mem'),
    q('show datestyle'),
  ],
  'isolation levels': (id) => [
    q('begin isolation level repeatable read read only'),
    q('show transaction_isolation'),
    q(`insert into t values (${id}, 'x')`),
    q('rollback'),
    q('begin'),
    q('set transaction isolation level serializable'),
    q(`insert into t select ${id}, current_setting('transaction_isolation')`),
    q('commit'),
  ],
  'deferred constraint that fails': (id) => [
    q('begin'),
    q(`insert into t values (${id}, 'x')`),
    q(`insert into child values (${id})`),
    q('commit'),
    q('begin'),
    q(`insert into child values (${id})`),
    q(`insert into parent values (${id})`),
    q('commit'),
  ],
};

export const BATCHES: Record<string, Script> = {
  'two inserts, one Sync': (id) => [
    {
      send: [...[p('insert into t values ($1, $2)'), b([id, 'one']), d(), e()], ...[b([id, 'two']), d(), e()], sync],
    },
  ],
  'a transaction, one Sync': (id) => [
    {
      send: [
        ...[p('begin'), b([]), e()],
        ...[p('insert into t values ($1, $2)'), b([id, 'one']), d(), e()],
        ...[b([id, 'two']), d(), e()],
        ...[p('commit'), b([]), e()],
        sync,
      ],
    },
  ],
  'a transaction and more, one Sync': (id) => [
    {
      send: [
        ...[p('begin'), b([]), e()],
        ...[p('insert into t values ($1, $2)', 'i'), b([id, 'one'], 'i'), d(), e()],
        ...[p('commit'), b([]), d(), e()],
        ...[b([id, 'two'], 'i'), d(), e()],
        sync,
      ],
    },
  ],
  'several Syncs': (id) => [
    {
      send: [
        ...[p('insert into t values ($1, $2)', 'i'), serialize.describe({ type: 'S', name: 'i' }), flush],
        ...[b([id, 'one'], 'i'), e(), sync],
        ...[b([id, 'two'], 'i'), e(), sync],
        ...[p('select count(*) from t where id = $1'), b([id]), e(), sync],
      ],
      readies: 3,
    },
  ],
  'a transaction, several Syncs': (id) => [
    {
      send: [
        ...[p('begin'), b([]), e(), sync],
        ...[p('insert into t values ($1, $2)', 'i'), b([id, 'one'], 'i'), e(), sync],
        ...[b([id, 'two'], 'i'), e(), sync],
        ...[p('commit'), b([]), e(), sync],
        ...[p('select count(*) from t where id = $1'), b([id]), e(), sync],
      ],
      readies: 5,
    },
  ],
  'a batch that fails': (id) => [
    {
      send: [
        ...[p('insert into t values ($1, $2)'), b([id, 'one']), e()],
        ...[p('select 1/0'), b([]), e()],
        ...[p('select 1'), b([]), e()],
        sync,
      ],
    },
    q('select 1'),
  ],
  'two inserts in a Query': (id) => [q(`insert into t values (${id}, 'one'); insert into t values (${id}, 'two')`)],
  'a transaction in a Query': (id) => [
    q(`begin; insert into t values (${id}, 'one'); insert into t values (${id}, 'two'); commit`),
  ],
  'a transaction and more in a Query': (id) => [q(`begin; insert into t values (${id}, 'one'); commit; select ${id}`)],
  'a transaction that fails in a Query': (id) => [
    q(`begin; insert into t values (${id}, 'one'); select 1/0; commit`),
    q('rollback'),
    q('select 1'),
  ],
  'a Query that fails': (id) => [q(`insert into t values (${id}, 'one'); select 1/0`), q('select 1')],
  portals: (id) => [
    q('begin'),
    {
      send: [
        p('select v, generate_series(1, 5) from (values ($1)) as x (v)'),
        b([id], '', 'c'),
        d('c'),
        e('c', 2),
        sync,
      ],
    },
    { send: [e('c', 2), sync] },
    q(`insert into t values (${id}, 'one')`),
    { send: [e('c', 2), sync] },
    q('commit'),
  ],
};
