import pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import {
  analyseQuery,
  CATALOGUE_QUERY,
  type Catalogue,
  classifyStatement,
  EMPTY_FACTS,
  HARMLESS_VOLATILE,
  isPlainRead,
  lex,
  OPAQUE_FACTS,
  parseCatalogue,
  QueryCache,
  type SqlEnvironment,
  type StatementFacts,
  segment,
  segmentText,
  splitStatements,
  Tokens,
  UNKNOWN_CATALOGUE,
  UNSAFE_ENCODINGS,
} from '../../codecs/postgres/sql/index.js';
import { RESERVED, SPECIAL_FORMS } from '../../codecs/postgres/sql/keywords.js';
import { useServer } from '../kit/servers.js';

const ON: SqlEnvironment = { standardConformingStrings: true };
const OFF: SqlEnvironment = { standardConformingStrings: false };

function tokens(sql: string, env: SqlEnvironment = ON): string[] {
  const bytes = Buffer.from(sql);
  const list = lex(bytes, 0, bytes.length, env.standardConformingStrings);
  return Array.from({ length: list.count }, (_, i) => bytes.toString('utf8', list.start[i], list.end[i]));
}

function split(sql: string, env: SqlEnvironment = ON): string[] {
  const bytes = Buffer.from(sql);
  return splitStatements(bytes, 0, bytes.length, env).map((range) => bytes.toString('utf8', range.start, range.end));
}

function facts(sql: string, env: SqlEnvironment = ON): StatementFacts {
  const bytes = Buffer.from(sql);
  return classifyStatement(bytes, 0, bytes.length, env);
}

function analyse(sql: string, env: SqlEnvironment = ON) {
  const bytes = Buffer.from(sql);
  return analyseQuery(bytes, 0, bytes.length, env);
}

/** A small generator of random numbers that a seed determines (mulberry32). */
function random(seed: number): (below: number) => number {
  let state = seed >>> 0;
  return (below) => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) % below;
  };
}

function withSeed(run: (next: (below: number) => number) => void): void {
  const seed = Number(process.env.OUTLIVE_SEED ?? Math.floor(Math.random() * 2 ** 32));
  try {
    run(random(seed));
  } catch (error) {
    console.error(`OUTLIVE_SEED=${seed}`);
    throw error;
  }
}

describe('lexer', () => {
  it.each<[string, string[]]>([
    ['', []],
    [' \t\r\n\f\v', []],
    ['select 1', ['select', '1']],
    ["'a''b' 'c'", ["'a''b'", "'c'"]],
    ["'a\\'", ["'a\\'"]],
    ["E'a\\'b' x", ["E'a\\'b'", 'x']],
    ["e'a''b\\\\' x", ["e'a''b\\\\'", 'x']],
    ["U&'d\\0061' x", ["U&'d\\0061'", 'x']],
    ["b'01''x'", ["b'01'", "'x'"]],
    ["X'1f' n'a'", ["X'1f'", 'n', "'a'"]],
    ["'a'\n  'b' 'c'", ["'a'\n  'b'", "'c'"]],
    ["'a' -- x\n 'b'", ["'a' -- x\n 'b'"]],
    ["'a' -- x 'b'", ["'a'"]],
    ["'a' /* \n */ 'b'", ["'a'", "'b'"]],
    ["E'a'\n'b\\'c' d", ["E'a'\n'b\\'c'", 'd']],
    ['"a""b;" c', ['"a""b;"', 'c']],
    ['U&"a\\0061;" c', ['U&"a\\0061;"', 'c']],
    ['u & "a"', ['u', '&', '"a"']],
    ['$$a;b$$ $t$ $$ $u$ $t$ x', ['$$a;b$$', '$t$ $$ $u$ $t$', 'x']],
    ['$a$ $$a$ $a', ['$a$ $$a$', '$', 'a']],
    ['a$b$c $1 $12a', ['a$b$c', '$1', '$12', 'a']],
    ['$é$;$é$', ['$é$;$é$']],
    ['a/* x /* y */ ; */b', ['a', 'b']],
    ['a--b;\nc', ['a', 'c']],
    ['1 1.5 .5 1. 1e10 1e+5 1e 0x1F 1_000 1..10', '1 1.5 .5 1. 1e10 1e+5 1 e 0x1F 1_000 1 .. 10'.split(' ')],
    ['a+-1', ['a', '+', '-', '1']],
    ['a @-1', ['a', '@-', '1']],
    ['a=-1 <> b', ['a', '=', '-', '1', '<>', 'b']],
    ['a*/**/b', ['a', '*', 'b']],
    ['a+--b\nc', ['a', '+', 'c']],
    ['a::int:=b[1:2]', ['a', '::', 'int', ':=', 'b', '[', '1', ':', '2', ']']],
    ['größe', ['größe']],
  ])('reads %j', (sql, expected) => {
    expect(tokens(sql)).toEqual(expected);
  });

  it('reads backslashes in plain strings when standard_conforming_strings is off', () => {
    expect(tokens("'a\\' ; b' c", OFF)).toEqual(["'a\\' ; b'", 'c']);
    expect(tokens("b'\\' c", OFF)).toEqual(["b'\\'", 'c']);
    expect(split("select 'a\\'; b'; select 2", OFF)).toHaveLength(2);
    expect(split("select 'a\\'; select '", ON)).toHaveLength(2);
  });

  it.each(["'a", "E'a\\'", '"a', '$$a', '$x$a$y$', '/* /* */', "'a'\n'b", "E'\\"])(
    'flags %j as unterminated',
    (sql) => {
      const bytes = Buffer.from(sql);
      expect(lex(bytes, 0, bytes.length, true).unterminated).toBe(true);
      expect(facts(`select 1; ${sql}`)).toBe(OPAQUE_FACTS);
    },
  );

  it('keeps to its bounds', () => {
    const bytes = Buffer.from("'' select $$ 'x' $$ ''");
    const list = lex(bytes, 3, bytes.length - 3, true);
    expect(list.count).toBe(2);
    expect(list.unterminated).toBe(false);
    expect(lex(bytes, 3, 14, true).unterminated).toBe(true);
  });

  it('reuses its list', () => {
    const list = new Tokens();
    const long = Buffer.from('a '.repeat(100_000));
    expect(lex(long, 0, long.length, true, list).count).toBe(100_000);
    expect(lex(long, 0, 3, true, list).count).toBe(2);
    expect(list.kind.length).toBeLessThan(1000);
  });
});

describe('split', () => {
  const body = `create or replace function f() returns int language sql
    begin atomic select case when true then 1 else 2 end; select x.end from x; select 1 as end; end`;
  it.each<[string, string[]]>([
    ['', []],
    [' ; ;; -- x\n ; /* ; */', []],
    ['select 1', ['select 1']],
    [' /* a */ select 1 /* b */ ; ; select 2 ;', ['select 1', 'select 2']],
    ['select \';\', $$;$$, ";"; select 2', ['select \';\', $$;$$, ";"', 'select 2']],
    [`${body}; select 2`, [body, 'select 2']],
    [
      'create procedure p() begin atomic; insert into t values (1); end; begin; select 1; end',
      ['create procedure p() begin atomic; insert into t values (1); end', 'begin', 'select 1', 'end'],
    ],
    ['begin atomic; select 1', ['begin atomic', 'select 1']],
    [
      'create rule r as on insert to t do also (insert into a select 1; delete from b); select 2',
      ['create rule r as on insert to t do also (insert into a select 1; delete from b)', 'select 2'],
    ],
    ['select 1); select 2', ['select 1)', 'select 2']],
    ["select 'größe'; select 'ü'", ["select 'größe'", "select 'ü'"]],
  ])('cuts %j', (sql, expected) => {
    expect(split(sql)).toEqual(expected);
  });
});

/** What is not given is at its default. */
function expectFacts(sql: string, expected: Partial<StatementFacts>): void {
  const found = facts(sql);
  for (const [key, value] of Object.entries(expected)) {
    expect(found[key as keyof StatementFacts], `${key} of ${sql}`).toEqual(value);
  }
  const defaults: (keyof StatementFacts)[] = [
    'hasModifyingCte',
    'forUpdate',
    'selectInto',
    'explainAnalyze',
    'chain',
    'local',
    'all',
    'set',
    'listen',
    'unlisten',
    'prepare',
    'execute',
    'deallocate',
    'discard',
    'declareCursor',
    'closeCursor',
    'tempTable',
    'dropRelation',
    'copy',
    'gid',
    'savepoint',
    'modes',
    'setConfigs',
  ];
  for (const key of defaults) {
    if (!(key in expected)) expect(found[key] || undefined, `${key} of ${sql}`).toBeUndefined();
  }
  if (!('transactional' in expected)) expect(found.transactional, `transactional of ${sql}`).toBe(true);
  expect(Object.isFrozen(found)).toBe(true);
}

describe('classify', () => {
  const read = { effect: 'read' } as const;
  const write = { effect: 'write' } as const;
  const session = { effect: 'session' } as const;
  const blockless = { effect: 'write', transactional: false } as const;
  const opaque = { effect: 'opaque', transactional: false } as const;
  const set = (
    name: string,
    scope: 'session' | 'local' | 'transaction' = 'session',
    kind: 'set' | 'reset' = 'set',
  ) => ({
    ...session,
    set: { name, scope, kind },
    local: scope !== 'session',
  });

  it.each<[string, Partial<StatementFacts>]>([
    ['', { verb: '', ...read }],
    ['select 1', { verb: 'SELECT', ...read }],
    ['((select 1) union (select 2))', { verb: 'SELECT', ...read }],
    ['values (1), (2)', { verb: 'VALUES', ...read }],
    ['table t', { verb: 'TABLE', ...read }],
    ['with a as (select 1), b(x) as not materialized (select 2) select * from a, b', { verb: 'SELECT', ...read }],
    [
      `with recursive t(n) as (select 1 union all select n + 1 from t) search depth first by n set o
       cycle n set c using p, u as (select 2) select * from t`,
      { verb: 'SELECT', ...read },
    ],
    ['(with a as (select 1) select * from a)', { verb: 'SELECT', ...read }],
    ['select * from (with a as (select 1) select * from a) x', { verb: 'SELECT', ...read }],
    ['with recursive as (select 1) select * from recursive', { verb: 'SELECT', ...read }],
    [
      'with x as (insert into a values (1) returning *) select * from x',
      { verb: 'SELECT', ...write, hasModifyingCte: true },
    ],
    ['with x as (update a set b = 1 returning *) select * from x', { ...write, hasModifyingCte: true }],
    ['with x as (delete from a returning *) table x', { verb: 'TABLE', ...write, hasModifyingCte: true }],
    [
      'with x as materialized (merge into a using b on true when matched then delete) select 1',
      { ...write, hasModifyingCte: true },
    ],
    [
      'with x as (with y as (select 1) delete from t using y returning *) select 1',
      { ...write, hasModifyingCte: true },
    ],
    [
      `with r(n) as (select 1 union all select 1) cycle n set c using p,
       d as (with q as (select 1) cycle a set b using c update t set x = 1 returning 1) select 1`,
      { ...write, hasModifyingCte: true },
    ],
    ['with x as (select 1) insert into t select * from x', { verb: 'INSERT', ...write }],
    ['with x as (select 1) (select * from x)', { verb: 'SELECT', ...read }],
    ['with oops', { verb: 'WITH', ...write }],
    ['select 1 into t', { ...write, selectInto: true }],
    ['select a.into, 1 as into from a', read],
    ['select a.as into b from a', { ...write, selectInto: true }],
    ['select a.insert into b from a', { ...write, selectInto: true }],
    ['select insert into b from a', { ...write, hasModifyingCte: true }],
    ['select 1 into temp x', { ...write, selectInto: true, tempTable: { name: 'x', onCommitDrop: false } }],
    [
      'select 1 into local temporary table "X"',
      { ...write, selectInto: true, tempTable: { name: 'X', onCommitDrop: false } },
    ],
    ['select 1 into pg_temp.y', { ...write, selectInto: true, tempTable: { name: 'y', onCommitDrop: false } }],
    ['select 1 into unlogged z', { ...write, selectInto: true }],
    ['select * from t for update', { ...read, forUpdate: true }],
    ['select * from t for no key update of t nowait', { ...read, forUpdate: true }],
    ['select * from t for key share skip locked', { ...read, forUpdate: true }],
    ["select substring('a' for 1)", read],
    ['lock table a in access exclusive mode', { ...read, forUpdate: true }],
    ['show all', read],
    ['checkpoint', { ...read, idempotent: true }],
    ['fetch forward 5 from c', read],
    ['move c', read],
    ['insert into t values (1) on conflict (a) do update set a = 1', { verb: 'INSERT', ...write }],
    ['update t set a = 1', write],
    ['DELETE FROM t', { verb: 'DELETE', ...write }],
    ['merge into t using s on true when matched then delete', write],
    ['truncate t', write],
    ['notify x, $$y$$', write],
    ['grant all on t to u', write],
    ['comment on table t is null', write],
    ['refresh materialized view concurrently m', { verb: 'REFRESH MATERIALIZED VIEW', ...write, idempotent: true }],
    [
      'import foreign schema a from server b into c',
      { verb: 'IMPORT FOREIGN SCHEMA', ...write, changesCatalogue: true },
    ],
    ['analyze t', { ...write, idempotent: true }],

    ['begin', { verb: 'BEGIN', effect: 'begin' }],
    [
      'BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY NOT DEFERRABLE',
      { effect: 'begin', modes: { isolation: 'repeatable read', readOnly: true, deferrable: false } },
    ],
    [
      'begin work isolation level serializable read write deferrable',
      {
        effect: 'begin',
        modes: { isolation: 'serializable', readOnly: false, deferrable: true },
      },
    ],
    [
      'start transaction isolation level read uncommitted',
      {
        verb: 'START TRANSACTION',
        effect: 'begin',
        modes: { isolation: 'read uncommitted' },
      },
    ],
    ['commit', { verb: 'COMMIT', effect: 'commit' }],
    ['end transaction and no chain', { verb: 'COMMIT', effect: 'commit' }],
    ['commit work and chain', { effect: 'commit', chain: true }],
    ['rollback', { verb: 'ROLLBACK', effect: 'rollback' }],
    ['abort and chain', { verb: 'ROLLBACK', effect: 'rollback', chain: true }],
    ['rollback transaction to savepoint "A"', { effect: 'savepoint', savepoint: { op: 'rollbackTo', name: 'A' } }],
    ['rollback to savepoint', { effect: 'savepoint', savepoint: { op: 'rollbackTo', name: 'savepoint' } }],
    ['savepoint A', { effect: 'savepoint', savepoint: { op: 'savepoint', name: 'a' } }],
    ['release savepoint a', { effect: 'savepoint', savepoint: { op: 'release', name: 'a' } }],
    ['release a', { effect: 'savepoint', savepoint: { op: 'release', name: 'a' } }],
    ["prepare transaction 'a''b'", { verb: 'PREPARE TRANSACTION', effect: 'prepareTransaction', gid: "a'b" }],
    ["commit prepared 'x'", { verb: 'COMMIT PREPARED', effect: 'commitPrepared', transactional: false, gid: 'x' }],
    ["rollback prepared 'x'", { effect: 'rollbackPrepared', transactional: false, gid: 'x' }],

    ['set search_path to a, b', set('search_path')],
    ['set session Work_Mem = 1', set('work_mem')],
    ['set local work_mem = 1', set('work_mem', 'local')],
    ['set my.Var = default', set('my.var', 'session', 'reset')],
    ['set "TimeZone" to default', set('timezone', 'session', 'reset')],
    ["set time zone 'UTC'", set('timezone')],
    ["set local time zone interval '1' hour", set('timezone', 'local')],
    ['set role none', set('role')],
    ["set role to 'x'", set('role')],
    ['set session authorization default', set('session_authorization', 'session', 'reset')],
    ["set local session authorization 'x'", set('session_authorization', 'local')],
    ["set names 'utf8'", set('client_encoding')],
    ["set schema 'x'", set('search_path')],
    ['set xml option document', set('xmloption')],
    ['set local.x = 1', set('local.x')],
    ['set transaction_read_only = on', set('transaction_read_only', 'transaction')],
    ['set transaction read only', { ...set('transaction', 'transaction'), modes: { readOnly: true } }],
    ["set transaction snapshot '1-2-3'", set('transaction_snapshot', 'transaction')],
    ['set constraints all immediate', set('constraints', 'transaction')],
    [
      'set session characteristics as transaction isolation level serializable',
      { ...set('session characteristics'), modes: { isolation: 'serializable' } },
    ],
    ['reset all', { ...session, set: { name: 'all', scope: 'session', kind: 'reset-all' } }],
    ['reset time zone', set('timezone', 'session', 'reset')],
    ['reset session authorization', set('session_authorization', 'session', 'reset')],
    ['reset work_mem', set('work_mem', 'session', 'reset')],
    ['listen "A b"', { ...session, listen: 'A b' }],
    ['unlisten Foo', { ...session, unlisten: 'foo' }],
    ['unlisten *', { ...session, unlisten: '*' }],
    ["load 'auto_explain'", session],
    ['prepare p (int, numeric(1,2)) as update t set a = $1', { ...session, prepare: 'p' }],
    ['execute p(1)', { ...write, execute: 'p' }],
    ['deallocate prepare "P"', { ...session, deallocate: 'P' }],
    ['deallocate all', { ...session, deallocate: 'all', all: true }],
    ['deallocate "all"', { ...session, deallocate: 'all' }],
    ['discard all', { ...session, discard: 'all', transactional: false }],
    ['discard temporary', { ...session, discard: 'temp' }],
    ['declare c cursor for select 1', { effect: 'cursor', declareCursor: { name: 'c', hold: false } }],
    [
      'declare "C" binary insensitive no scroll cursor with hold for select * from t for update',
      { effect: 'cursor', declareCursor: { name: 'C', hold: true }, forUpdate: true },
    ],
    ['declare c cursor without hold for values (1)', { effect: 'cursor', declareCursor: { name: 'c', hold: false } }],
    ['close c', { effect: 'cursor', closeCursor: 'c' }],
    ['close all', { effect: 'cursor', closeCursor: 'all', all: true }],

    ['copy t (a, b) from stdin', { effect: 'copyIn', copy: { direction: 'in', peer: 'client' } }],
    [
      "copy s.t from stdin with (format csv, delimiter ';')",
      { effect: 'copyIn', copy: { direction: 'in', peer: 'client' } },
    ],
    ['copy binary t to stdout', { effect: 'copyOut', copy: { direction: 'out', peer: 'client' } }],
    ['copy (select 1) to stdout', { effect: 'copyOut', copy: { direction: 'out', peer: 'client' } }],
    ['copy (delete from t returning 1) to stdout', { ...write, copy: { direction: 'out', peer: 'client' } }],
    [
      'copy (with x as (insert into t values (1) returning 1) select 1) to stdout',
      { ...write, copy: { direction: 'out', peer: 'client' }, hasModifyingCte: true },
    ],
    ["copy t to '/x'", { ...write, copy: { direction: 'out', peer: 'file' } }],
    ["copy t from program 'x'", { ...write, copy: { direction: 'in', peer: 'program' } }],

    ['explain delete from t', read],
    ['explain verbose delete from t', read],
    ['explain analyze select 1', { ...read, explainAnalyze: true }],
    ['explain analyze verbose delete from t', { ...write, explainAnalyze: true }],
    ['explain (costs off, analyze) delete from t', { ...write, explainAnalyze: true }],
    ['explain (analyze false, analyze) delete from t', { ...write, explainAnalyze: true }],
    ['explain (analyze 0) delete from t', read],
    ['explain ("analyze" \'off\') delete from t', read],
    ['explain (select 1)', read],
    ['explain analyze execute p', { ...write, explainAnalyze: true, execute: 'p' }],
    [
      'explain analyze create temp table x as select 1',
      {
        ...write,
        explainAnalyze: true,
        tempTable: { name: 'x', onCommitDrop: false },
      },
    ],

    ['create table t (a int)', { verb: 'CREATE TABLE', ...write, changesCatalogue: false }],
    [
      'create global temporary table if not exists T (a int) on commit delete rows',
      {
        verb: 'CREATE TABLE',
        ...write,
        tempTable: { name: 't', onCommitDrop: false },
      },
    ],
    ['create temp table t on commit drop as select 1', { ...write, tempTable: { name: 't', onCommitDrop: true } }],
    ['create table pg_temp.t (a int)', { ...write, tempTable: { name: 't', onCommitDrop: false } }],
    [
      'create function pg_temp.f() returns int language sql as $$ select 1 $$',
      {
        verb: 'CREATE FUNCTION',
        ...write,
        tempTable: { name: 'f', onCommitDrop: false },
      },
    ],
    [
      'create or replace temp recursive view v (n) as select 1',
      {
        verb: 'CREATE VIEW',
        ...write,
        changesCatalogue: true,
        tempTable: { name: 'v', onCommitDrop: false },
      },
    ],
    ['create temp sequence s', { ...write, tempTable: { name: 's', onCommitDrop: false } }],
    ['create materialized view m as select 1', { verb: 'CREATE MATERIALIZED VIEW', ...write }],
    [
      'create constraint trigger x after insert on t execute function f()',
      { verb: 'CREATE CONSTRAINT TRIGGER', ...write },
    ],
    ['create text search configuration c (copy = x)', { verb: 'CREATE TEXT SEARCH CONFIGURATION', ...write }],
    ['create unique index i on t (a)', { verb: 'CREATE INDEX', ...write }],
    ['create index concurrently on t (a)', { ...blockless, verb: 'CREATE INDEX' }],
    ['create database d', { ...blockless, verb: 'CREATE DATABASE' }],
    ['drop table if exists a.b, "C" cascade', { verb: 'DROP TABLE', ...write, dropRelation: ['b', 'C'] }],
    ['drop materialized view m', { verb: 'DROP MATERIALIZED VIEW', ...write, dropRelation: ['m'] }],
    ['drop function f(int)', { verb: 'DROP FUNCTION', ...write, changesCatalogue: true }],
    ['alter table t enable row level security', { verb: 'ALTER TABLE', ...write, changesCatalogue: true }],
    ['vacuum (full) t', { ...blockless, idempotent: true }],
    ['reindex table concurrently t', { ...blockless, idempotent: false }],
    ['reindex table t', { ...blockless, idempotent: true }],
    ['create subscription s connection $$x$$ publication p with (copy_data = false, connect = off)', write],
    ['create subscription s connection $$x$$ publication p', blockless],
    ['alter subscription s disable', write],
    ['alter subscription s refresh publication', blockless],

    ['call p(1)', { verb: 'CALL', ...opaque }],
    ['do $$ begin commit; end $$', { verb: 'DO', ...opaque }],
    ['selec 1', { verb: 'SELEC', ...opaque }],
    ['"select" 1', opaque],
    ['1', opaque],
    [')', opaque],
    ['select 1; select 2', { ...opaque, verb: '' }],
    ['copy t', opaque],
  ])('knows %j', (sql, expected) => {
    expectFacts(sql, expected);
    if (sql.includes(';')) return;
    expectFacts(`/* ; */ ${sql} -- ;`, expected);
  });

  it('keeps the facts of the statement inside', () => {
    expect(facts('prepare p as delete from t').inner?.effect).toBe('write');
    expect(facts('prepare p as select f(1)').inner?.functions).toEqual(['f']);
    expect(facts('explain select f(1)').inner?.effect).toBe('read');
    expect(facts('declare c cursor for select nextval($1)')).toMatchObject({
      functions: ['nextval'],
      sessionFunctions: ['nextval'],
    });
    expect(facts('prepare p as select nextval($1)').sessionFunctions).toEqual([]);
    let nested = 'select 1';
    for (let i = 0; i < 10_000; i++) nested = 'explain ' + nested;
    expect(facts(nested).effect).toBe('read');
    expect(facts(nested.replaceAll('explain', 'explain analyze')).effect).toBe('write');
  });

  it.each<[string, string[]]>([
    ['select f(1), G (2), "H"(3), s.i(4), s . "J" (5), public.select(6)', ['f', 'g', 'H', 'i', 'J', 'select']],
    ['select /* f( */ a /* b */ (1)', ['a']],
    ['select * from f(1), lateral g(2) x(a), h(3) as y(b), i(4) with ordinality z(c)', ['f', 'g', 'h', 'i']],
    ['select * from (values (1)) v(a) join t u(b, c) on true', []],
    ['select distinct on (a) f(b) from t', ['f']],
    ['select a operator(pg_catalog.+) f(b)', ['f']],
    [
      'select sum(a) filter (where b in (1)) over (partition by (c)) from t group by (a), rollup (b)',
      ['sum', 'rollup'],
    ],
    ['select a from t group by rollup (a)', []],
    ['select a from t where not materialized(a) order by cube (a)', ['materialized', 'cube']],
    ['select a from t group by grouping sets ((a), (b)) order by (a)', []],
    ['select count(*) from data join (select 1) x on true left join (select 2) y using (a)', ['count']],
    ["select a like ('x'), a not like (b), not like(a, b), name ilike (b), (a, b) overlaps (c, d)", ['like']],
    ['select coalesce(1), cast(a as x.y(1)), a::z(2), exists (select 1), array(select 1), row(1), (1) in (2)', []],
    ['select x::numeric(10, 2), interval(3) $$1$$, timestamp(3) with time zone $$x$$, a at time zone (b)', []],
    ['with a(x) as (select 1), b (y) as materialized (select f(1)) select * from a', ['f']],
    ["select json_value(a, '$'), left('a', 1), trim(leading f(x) from g(y))", ['json_value', 'left', 'f', 'g']],
    ['select u&"d\\0061t\\+000061"(1), u&"d!0061" uescape $$!$$', ['data']],
    ['select U&"d!0061ta" uescape \'!\' (1)', []],
    ['select * from t tablesample bernoulli (10) repeatable (5)', ['bernoulli']],
    ['select * from rows from (f(1), g(2))', ['f', 'g']],
    [
      'select xmlparse(document f(x)), json_object(key g(1) value h(2)), xmlelement(name b, i(1))',
      ['f', 'json_object', 'g', 'h', 'i'],
    ],
    ['select 1 order by f(1) limit g(2) offset h(3)', ['f', 'g', 'h']],
    ['select case when f(1) then g(2) else h(3) end, -i(4), @j(5), array[k(6)], b[l(7)], (m(8)).x', [...'fghijklm']],
    [`select ${'x'.repeat(70)}(1)`, ['x'.repeat(63)]],
    ['select größe(1)', ['größe']],
  ])('finds the functions in %j', (sql, expected) => {
    expect(facts(sql).functions).toEqual(expected);
  });

  it('finds names and operators', () => {
    const found = facts('select T.a, "B", x.Y::mytype from s.t as q where a <=> 1 and b operator(s.@@) 2');
    expect(found.names).toEqual(expect.arrayContaining(['t', 'a', 'B', 'x', 'y', 'mytype', 's', 'q', 'b']));
    expect(found.operators).toEqual(['<=>', '@@']);
    expect(facts('select * from s.select').names).toContain('select');
  });

  it('knows when a name is not known for sure', () => {
    expect(facts('select größe').uncertainNames).toBe(false);
    expect(facts('select "GRÖSSE"').uncertainNames).toBe(false);
    expect(facts('select GRÖSSE').uncertainNames).toBe(true);
    expect(facts(`select "${'ö'.repeat(40)}"`).uncertainNames).toBe(true);
    const latin = Buffer.from('select größe', 'latin1');
    const env = { standardConformingStrings: true, encoding: 'LATIN1' };
    expect(classifyStatement(latin, 0, latin.length, env).uncertainNames).toBe(true);
  });

  it('tells what touches the state of the session', () => {
    expect(
      facts(
        "select set_config('Search_Path', $1, false), pg_catalog.set_config($1, 'x', true), set_config('a', 'b', $1)",
      ),
    ).toMatchObject({
      sessionFunctions: ['set_config'],
      setConfigs: [
        { name: 'search_path', local: false },
        { name: undefined, local: true },
        { name: 'a', local: undefined },
      ],
    });
    expect(facts('insert into t values (nextval($1), pg_try_advisory_xact_lock(1))').sessionFunctions).toEqual([
      'nextval',
      'pg_try_advisory_xact_lock',
    ]);
  });

  it('gives up on encodings that hide ASCII in wide characters', () => {
    for (const encoding of UNSAFE_ENCODINGS) {
      const env = { standardConformingStrings: true, encoding };
      const bytes = Buffer.concat([Buffer.from("select '"), Buffer.from([0x83, 0x5c]), Buffer.from("'")]);
      expect(classifyStatement(bytes, 0, bytes.length, env)).toBe(OPAQUE_FACTS);
      expect(analyseQuery(bytes, 0, bytes.length, env).statements).toHaveLength(1);
      expect(classifyStatement(Buffer.from('select 1'), 0, 8, env).effect).toBe('read');
    }
  });

  it('takes an empty text for nothing', () => {
    expect(facts(' -- x')).toBe(EMPTY_FACTS);
    expect(analyse(' ; ').statements).toEqual([]);
    expect(facts('select\0 1')).toBe(OPAQUE_FACTS);
  });
});

describe('random texts', () => {
  const PIECES = [
    ...[
      'select',
      'Insert',
      'begin',
      'end',
      'case',
      'x',
      '_y$1',
      '"a;b"',
      '"c""d"',
      'U&"e"',
      'größe',
      'into',
      'with',
      'as',
    ],
    ...["';'", "'a''b'", "E'\\';'", "e'\\\\'", "b'01'", "x'ff'", "U&'\\0061;'", '$$;$$', '$t$;$$;$t$', "n'x'"],
    ...['1', '1.5e10', '.5', '$1', '+', '<=', '@-', '::', ':=', ',', '.', '[', ']', '(a;b)', '((;))', 'f(1)'],
  ];
  const BLANKS = [' ', ' /**/ ', '\t/* ; /* \' */ " */\n', ' -- ; \' " $$ /*\n/**/ ', '\r\n/**/'];

  it('are cut where they were put together', () => {
    withSeed((next) => {
      for (let round = 0; round < 500; round++) {
        const statements: string[][] = [];
        let sql = '';
        for (let n = next(5); n >= 0; n--) {
          // In front, so that no statement begins like a function with a body.
          const pieces = ['select'];
          for (let k = next(12); k > 0; k--) pieces.push(PIECES[next(PIECES.length)]);
          statements.push(pieces);
          for (const piece of pieces) sql += BLANKS[next(BLANKS.length)] + piece;
          sql += BLANKS[next(BLANKS.length)] + (n === 0 && next(2) === 0 ? '' : ';');
        }
        const found = split(sql);
        expect(found.length, sql).toBe(statements.length);
        found.forEach((text, i) => {
          expect(tokens(text), sql).toEqual(statements[i].flatMap((piece) => tokens(piece)));
          expect(tokens(text), sql).toEqual(tokens(statements[i].join(' /**/ ')));
        });
        const query = analyse(sql);
        expect(query.statements.map((s) => Buffer.from(sql).toString('utf8', s.start, s.end))).toEqual(found);
      }
    });
  });

  it('never throw, cut off anywhere', () => {
    withSeed((next) => {
      for (let round = 0; round < 60; round++) {
        let sql = '';
        for (let k = next(30); k >= 0; k--) sql += PIECES[next(PIECES.length)] + BLANKS[next(BLANKS.length)];
        const bytes = Buffer.from(sql);
        for (let end = 0; end <= bytes.length; end++) {
          const env = next(2) === 0 ? ON : OFF;
          const query = analyseQuery(bytes, 0, end, env);
          for (const { start, end: stop } of query.statements) expect(start <= stop && stop <= end).toBe(true);
          segment(query, 'I');
        }
      }
    });
  });

  it('never throw, whatever the bytes', () => {
    const words =
      'select with as ( ) insert into explain copy to from set local prepare declare cursor for update . ; , create temp table begin commit rollback and chain $$ \' " E\' U&" -- /* */ :: * 1'.split(
        ' ',
      );
    withSeed((next) => {
      for (let round = 0; round < 3000; round++) {
        const bytes =
          round % 2 === 0
            ? Buffer.from(Array.from({ length: next(60) }, () => next(256)))
            : Buffer.from(Array.from({ length: next(25) }, () => words[next(words.length)]).join(' '));
        const query = analyseQuery(bytes, 0, bytes.length, next(2) === 0 ? ON : OFF);
        for (const status of ['I', 'T', 'E'] as const) {
          const { segments } = segment(query, status);
          let expected = 0;
          for (const part of segments) {
            expect(part.first).toBe(expected);
            expected += part.count;
          }
          expect(expected).toBe(query.statements.length);
        }
        for (const { facts: found } of query.statements) isPlainRead(found, UNKNOWN_CATALOGUE);
      }
    });
  });

  it.each([
    '(',
    '+',
    'with a as (',
    'explain ',
    'set_config(',
    'a.',
    "'x'\n",
    '$',
    'begin atomic ',
    'with a as () search ',
  ])('take no more than linear time: %j', (piece) => {
    const bytes = Buffer.from('select ' + piece.repeat(100_000 / piece.length));
    // Processor time of this process: the clock on the wall also counts what other programs take.
    const before = process.cpuUsage();
    analyseQuery(bytes, 0, bytes.length, ON);
    const { user, system } = process.cpuUsage(before);
    expect((user + system) / 1000).toBeLessThan(2000);
  });
});

describe('cache', () => {
  const read = (cache: QueryCache, sql: string, env: SqlEnvironment = ON, offset = 0) => {
    const bytes = Buffer.concat([Buffer.alloc(offset, 'x'), Buffer.from(sql)]);
    return cache.read(bytes, offset, bytes.length, env);
  };

  it('gives the same facts for the same text, wherever it stands', () => {
    const cache = new QueryCache();
    const first = read(cache, 'begin; select 1', ON, 0);
    expect(read(cache, 'begin; select 1', ON, 7)).toBe(first);
    expect(first.statements.map((s) => [s.start, s.end])).toEqual([
      [0, 5],
      [7, 15],
    ]);
    expect(cache.size).toBe(1);
  });

  it('keeps environments apart', () => {
    const cache = new QueryCache();
    const sql = "select 'a\\'; select ''";
    expect(read(cache, sql, ON).statements).toHaveLength(2);
    expect(read(cache, sql, OFF).statements).toHaveLength(1);
    expect(read(cache, 'select größe', { ...ON, encoding: 'SJIS' }).statements[0].facts).toBe(OPAQUE_FACTS);
    expect(read(cache, 'select größe').statements[0].facts.effect).toBe('read');
  });

  it('is bounded, and forgets what was not asked for', () => {
    const cache = new QueryCache({ texts: 10, longest: 20, bytes: 1000 });
    const kept = read(cache, 'select 0');
    for (let i = 1; i < 1000; i++) {
      read(cache, `select ${i}`);
      if (i % 3 === 0) expect(read(cache, 'select 0')).toBe(kept);
      expect(cache.size).toBeLessThanOrEqual(10);
    }
    const long = `select ${'1'.repeat(20)}`;
    expect(read(cache, long)).not.toBe(read(cache, long));
    const small = new QueryCache({ texts: 1000, bytes: 100 });
    for (let i = 1; i < 1000; i++) read(small, `select ${i}`);
    expect(small.size).toBeLessThanOrEqual(12);
  });
});

describe('segment', () => {
  const show = (sql: string, status: 'I' | 'T' | 'E' = 'I') => {
    const { mode, segments } = segment(analyse(sql), status);
    return [mode, ...segments.map((part) => `${part.kind}: ${sql.slice(part.start, part.end)}`)];
  };

  it.each<[string, 'I' | 'T' | 'E', string[]]>([
    ['', 'I', ['single', 'implicit: ']],
    ['select 1', 'I', ['single', 'implicit: select 1']],
    ['select 1', 'T', ['single', 'block: select 1']],
    ['commit;', 'T', ['single', 'commit: commit;']],
    ['begin', 'I', ['single', 'block: begin']],
    ['select 1; select 2', 'I', ['implicit', 'implicit: select 1; select 2']],
    ['select 1; select 2', 'T', ['split', 'block: select 1; select 2']],
    [
      'begin; insert into t values (1); commit',
      'I',
      ['split', 'block: begin; insert into t values (1)', 'commit: commit'],
    ],
    ['commit; begin', 'T', ['split', 'commit: commit', 'block: begin']],
    ['/* a */ commit and chain; select 1;', 'T', ['split', 'commit: /* a */ commit and chain', 'block: select 1']],
    [
      'begin; select 1; commit; select 2; select 3; begin; select 4; end',
      'I',
      [
        'split',
        'block: begin; select 1',
        'commit: commit',
        'block: select 2; select 3; begin; select 4',
        'commit: end',
      ],
    ],
    ['insert into t values (1); begin; select 1', 'I', ['split', 'block: insert into t values (1); begin; select 1']],
    ['select 1; commit; select 2', 'I', ['split', 'implicit: select 1', 'commit: commit', 'implicit: select 2']],
    ['select 1; rollback; select 2', 'I', ['split', 'block: select 1; rollback', 'implicit: select 2']],
    ['rollback; select 2', 'E', ['split', 'block: rollback', 'implicit: select 2']],
    ['rollback and chain; select 2', 'E', ['split', 'block: rollback and chain', 'block: select 2']],
    [
      "begin; select 1; prepare transaction 'x'; select 2",
      'I',
      ['split', 'block: begin; select 1', "commit: prepare transaction 'x'", 'implicit: select 2'],
    ],
    ['begin; savepoint a; release a; commit', 'I', ['split', 'block: begin; savepoint a; release a', 'commit: commit']],
    ['call p(); select 1', 'I', ['implicit', 'implicit: call p(); select 1']],
    ['commit; call p()', 'T', ['opaque', 'implicit: commit; call p()']],
    ['commit; vacuum', 'T', ['opaque', 'implicit: commit; vacuum']],
    ['commit; lock table t', 'T', ['opaque', 'implicit: commit; lock table t']],
    ['savepoint a; select 1', 'I', ['opaque', 'implicit: savepoint a; select 1']],
    ['select 1; commit and chain', 'I', ['opaque', 'implicit: select 1; commit and chain']],
    ["select 1; prepare transaction 'x'", 'I', ['opaque', "implicit: select 1; prepare transaction 'x'"]],
    ['begin; selec 1; commit', 'I', ['opaque', 'implicit: begin; selec 1; commit']],
    ["select 1; commit prepared 'x'", 'I', ['opaque', "implicit: select 1; commit prepared 'x'"]],
  ])('of %j in %s', (sql, status, expected) => {
    expect(show(sql, status)).toEqual(expected);
  });

  it('keeps the positions of the whole text', () => {
    const sql = "begin; select 'größe'; commit; select oops";
    const bytes = Buffer.from(`xx${sql}`);
    const parts = segment(analyse(sql), 'I').segments;
    const last = Buffer.from(segmentText(bytes, 2, parts[2])).toString();
    expect(last).toBe(' '.repeat(sql.indexOf('select oops')) + 'select oops');
    expect(Buffer.from(segmentText(bytes, 2, parts[0])).toString()).toBe("begin; select 'größe'");
    const japanese = Buffer.concat([
      Buffer.from("select '"),
      Buffer.from([0xa4, 0xa2, 0x8f, 0xb0, 0xa1]),
      Buffer.from("'; commit"),
    ]);
    const env = { standardConformingStrings: true, encoding: 'EUC_JP' };
    const query = analyseQuery(japanese, 0, japanese.length, env);
    const text = segmentText(japanese, 0, segment(query, 'T').segments[1], 'EUC_JP');
    expect(Buffer.from(text).toString()).toBe(' '.repeat(13) + 'commit');
  });
});

describe('plain reads', () => {
  const catalogue: Catalogue = parseCatalogue([
    ['s', 'lower'],
    ['s', 'count'],
    ['s', 'mixed'],
    ['v', 'mixed'],
    ['v', 'bump'],
    ['t', 'tainted_view'],
    ['t', 'größe'],
    ['o', '<~>'],
    ['x', null],
  ]);

  it.each<[string, boolean]>([
    ['select count(*), lower(a) from t', true],
    ['select unknown(1)', false],
    ['select mixed(1)', false],
    ['select bump(1)', false],
    ['select s.bump(1)', false],
    ['select * from s.tainted_view', false],
    ['select * from tainted_view_2', true],
    ['select a <~> b', false],
    ['select pg_temp.lower(a)', false],
    ["select json_value(a, '$')", true],
    ['select "GrößE"', true],
    ['select GRÖSSE', false],
    ['select * from t for update', true],
    ['select lower(a) into x', false],
    ['with a as (delete from t returning 1) select 1', false],
    ['insert into t values (1)', false],
    ['explain select bump(1)', true],
    ['explain analyze select bump(1)', false],
    ['explain analyze select lower(a)', true],
    ['copy (select lower(a)) to stdout', true],
    ['copy (select bump(1)) to stdout', false],
    ['copy t (a, b) to stdout', true],
    ['copy tainted_view to stdout', false],
    ['declare c cursor with hold for select lower(a)', true],
    ['declare c cursor with hold for select bump(1)', false],
    ['close c', true],
    ['fetch c', true],
    ['show x', true],
    ['set x = 1', false],
    ['execute p', false],
    ['call p()', false],
    ['', true],
  ])('%j: %s', (sql, expected) => {
    expect(isPlainRead(facts(sql), catalogue)).toBe(expected);
  });

  it('guards everything where grammar itself may call a volatile function, or nothing is known', () => {
    expect(isPlainRead(facts('select 1'), parseCatalogue([['o', '=']]))).toBe(false);
    expect(isPlainRead(facts('select 1'), parseCatalogue([['h', 'mytype']]))).toBe(false);
    expect(isPlainRead(facts('select 1'), parseCatalogue([]))).toBe(true);
    expect(isPlainRead(facts('select 1'), UNKNOWN_CATALOGUE)).toBe(false);
    expect(isPlainRead(facts('show x'), UNKNOWN_CATALOGUE)).toBe(true);
  });
});

describe('with a server', () => {
  const holder = useServer();
  let client: pg.Client;

  async function connect(): Promise<pg.Client> {
    const opened = new pg.Client({
      host: '127.0.0.1',
      port: holder.server.port,
      user: 'postgres',
      database: 'postgres',
    });
    await opened.connect();
    return opened;
  }

  async function codeOf(sql: string, by: pg.Client = client): Promise<string | undefined> {
    try {
      await by.query(sql);
      return undefined;
    } catch (error) {
      return (error as { code?: string }).code;
    }
  }

  async function load(): Promise<Catalogue> {
    const { rows } = await client.query({ text: CATALOGUE_QUERY, rowMode: 'array' });
    return parseCatalogue(rows as string[][]);
  }

  beforeAll(async () => {
    client = await connect();
  });
  afterAll(async () => {
    await client?.end();
  });

  it('knows its keywords', async () => {
    const { rows } = await client.query('select word, catcode from pg_get_keywords()');
    for (const { word, catcode } of rows) {
      if (catcode === 'R') expect(RESERVED.has(word), word).toBe(true);
      else expect(RESERVED.has(word), word).toBe(false);
      if (SPECIAL_FORMS.has(word)) expect(catcode, word).toBe('C');
    }
  });

  it.each([
    "select 'a;b', $$;$$, $x$ ; $$ ; $x$, E'\\';', e'\\\\'; select 1",
    "select 'a'\n ';b' ; select 'c' -- ;\n ';d'",
    "select 'a\\'; select 'b'",
    'select 1 as "a;""b" /* ; /* ; */ ; */ ; select 2 -- ; \n;;',
    'select 1;select 2;;select 3',
    'select U&\'\\003b;\', U&"x\\003by" from (select 1 as "x;y") q; select 2',
    "select b'01', x'1f', n'a;'; select 1",
    'select 1+-2, @ -4, 5 - - 6, 7*-8, 9<>-1; select 1',
    'select 1.5e3, .5, 1., 0x1F, 1_000; select (array[1,2])[1:2]; select 1',
    `create or replace function pg_temp.body() returns int language sql
       begin atomic select case when true then 1 else 2 end; select 3; end; select 1`,
    `create temp table rt (a int); create rule rr as on insert to rt do also (select 1; select 2); drop table rt`,
  ])('cuts %j as the server does', async (sql) => {
    const answer = await client.query(sql);
    expect(split(sql)).toHaveLength(Array.isArray(answer) ? answer.length : 1);
  });

  it('knows what is refused in a transaction block', async () => {
    await client.query(`
      create table plain (a int primary key); create table parts (a int) partition by range (a);
      create table part partition of parts for values from (1) to (2); create index parts_a on parts (a)`);
    const refused = [
      'vacuum',
      'vacuum (analyze) plain',
      'create index concurrently on plain (a)',
      'create unique index concurrently x on plain (a)',
      'drop index concurrently plain_pkey',
      'reindex database postgres',
      'reindex system postgres',
      'reindex schema public',
      'reindex table parts',
      'reindex index parts_a',
      'reindex table concurrently plain',
      'reindex (verbose, concurrently) table plain',
      'create database d',
      'drop database d',
      'alter database postgres set tablespace pg_default',
      "create tablespace t location '/x'",
      'drop tablespace t',
      "alter system set work_mem = '4MB'",
      'alter system reset all',
      'cluster',
      'cluster (verbose)',
      'cluster parts using parts_a',
      "create subscription s connection 'host=/nowhere' publication p",
      'discard all',
      'alter table parts detach partition part concurrently',
      "commit prepared 'x'",
      "rollback prepared 'x'",
    ];
    const allowed = [
      'analyze',
      'create index on plain (a)',
      'drop index parts_a',
      "alter database postgres set work_mem = '4MB'",
      'alter table parts detach partition part',
      "create subscription s connection 'host=/nowhere' publication p with (connect = false)",
      'discard temp',
      'discard plans',
      'checkpoint',
      "load 'plpgsql'",
      'truncate plain',
      'notify x',
      'create publication p',
      'lock table plain',
      'copy plain to stdout',
    ];
    for (const sql of refused) {
      await client.query('begin');
      expect(await codeOf(sql), sql).toBe('25001');
      await client.query('rollback');
      expect(facts(sql).transactional, sql).toBe(false);
    }
    for (const sql of allowed) {
      await client.query('begin');
      expect(await codeOf(sql), sql).toBeUndefined();
      await client.query('rollback');
      expect(facts(sql).transactional, sql).toBe(true);
    }
    await client.query('drop table plain, parts');
  });

  it('has the implicit transactions that segment() relies on', async () => {
    await client.query('create table s (a int)');
    const count = async () => Number((await client.query('select count(*) from s')).rows[0].count);
    expect(await codeOf('do $$ begin commit; end $$')).toBeUndefined();
    expect(await codeOf('do $$ begin commit; end $$; select 1')).toBe('2D000');
    expect(await codeOf('commit; do $$ begin commit; end $$')).toBe('2D000');
    expect(await codeOf('vacuum s; select 1')).toBe('25001');
    expect(await codeOf('commit; vacuum s')).toBe('25001');
    expect(await codeOf('savepoint a; select 1')).toBe('25P01');
    expect(await codeOf('lock table s; declare c cursor for select 1; select 1')).toBeUndefined();
    expect(await codeOf('insert into s values (1); select 1/0')).toBe('22012');
    expect(await count()).toBe(0);
    await client.query('insert into s values (1); begin; insert into s values (2)');
    await client.query('rollback');
    expect(await count()).toBe(0);
    expect(await codeOf('insert into s values (1); commit; insert into s values (2); select 1/0')).toBe('22012');
    expect(await count()).toBe(1);
    await client.query('insert into s values (1); rollback; select 1');
    expect(await count()).toBe(1);
    expect(await codeOf('insert into s values (1); commit and chain')).toBe('25P01');
    expect(await codeOf('insert into s values (1); rollback and chain')).toBe('25P01');
    await client.query('rollback');
    expect(await count()).toBe(1);
    expect(await codeOf("insert into s values (1); prepare transaction 'x'")).toBeUndefined();
    await client.query("rollback prepared 'x'");
    expect(await count()).toBe(1);
    await client.query('drop table s');
  });

  it('reports errors of a segment where the whole text has them', async () => {
    const sql = "begin; select 'größe 😀'; commit; select oops";
    const position = async (text: string) => {
      try {
        await client.query(text);
      } catch (error) {
        return (error as { position?: string }).position;
      }
      return undefined;
    };
    const whole = await position(sql);
    const part = segment(analyse(sql), 'I').segments[2];
    expect(await position(Buffer.from(segmentText(Buffer.from(sql), 0, part)).toString())).toBe(whole);
    expect(Number(whole)).toBeGreaterThan(1);
  });

  it('tells plain reads from its catalogue', async () => {
    await client.query(`
      create schema other;
      create table t (id int, a int); insert into t values (1, 0);
      create function bump(t) returns int language sql as 'update t set a = a + 1 returning a';
      create function writes() returns int language sql as 'update t set a = a + 1 returning a';
      create function writes_2(int default 0) returns int language plpgsql as 'begin return writes(); end';
      create function calm(int) returns int language sql stable as 'select $1';
      create function overloaded(int) returns int language sql immutable as 'select $1';
      create function other.overloaded(text) returns int language sql as 'update t set a = 1 returning a';
      create function lower(int) returns int language sql as 'update t set a = 1 returning a';
      create function defaulted(int default writes()) returns int language sql immutable as 'select $1';
      create function body() returns int language sql stable begin atomic select writes(); end;
      create function on_change() returns trigger language plpgsql as 'begin return new; end';
      create view calm_view as select calm(id), now(), random() from t;
      create view "Tainted" as select writes() from t;
      create view other.above as select * from calm_view, "Tainted";
      create sequence seq; create view seq_view as select setval('seq', 1);
      create materialized view stored as select id from t where calm(1) = 1;
      create table guarded (id int); create policy p on guarded using (writes() > 0);
      alter table guarded enable row level security;
      create table guarded_2 (id int); create policy p on guarded_2 using (exists (select from guarded));
      create view from_guarded as select * from guarded_2;
      create function op(t, int) returns int language sql as 'update t set a = 1 returning a';
      create operator <~> (function = op, leftarg = t, rightarg = int);
      create view op_view as select t <~> 1 from t;
      create function checks(int) returns bool language sql as 'update t set a = 1 returning true';
      create domain checked as int check (checks(value)); create domain checked_2 as checked;
      create function state(int, int) returns int language sql as 'update t set a = 1 returning a';
      create aggregate agg(int) (sfunc = state, stype = int);
      create type mood as enum ('a'); create function to_mood(int) returns mood language sql as $$ select 'a'::mood $$;
      create cast (int as mood) with function to_mood(int);
      create table parent (id int)
    `);
    const catalogue = await load();
    expect(catalogue.guardEverything).toBe(false);
    const plain = [
      'select * from t where id in (1, 2) and a like $1',
      'select calm(1), abs(-1), upper($1), count(*) from t',
      'select now(), random(), clock_timestamp(), gen_random_uuid(), nextval($1), currval($1), pg_sleep(0)',
      'select * from calm_view, stored, parent',
      'select pg_advisory_lock(1), set_config($1, $2, true), pg_is_in_recovery()',
      'select version(), current_database(), pg_backend_pid(), current_schema(), txid_current()',
      'select * from generate_series(1, 10) g(i), unnest($1) u',
      'select count(distinct a) filter (where a > 0) over (order by id) from t for update',
      'select * from pg_stat_activity, pg_locks, information_schema.tables',
      "select json_build_object('a', 1), to_tsvector('x') @@ to_tsquery('y'), array_agg(a), string_agg(b, ',') from t",
    ];
    const not = [
      'select writes()',
      'select writes_2()',
      'select overloaded(1)',
      'select lower($1)',
      'select defaulted()',
      'select body()',
      'select * from "Tainted"',
      'select * from other.above',
      'select * from seq_view',
      'select * from guarded',
      'table guarded_2',
      'select * from from_guarded',
      'select t <~> 1 from t',
      'select * from op_view',
      'select 1::checked',
      'select cast(1 as checked_2)',
      'select agg(a) from t',
      'select 1::mood',
      'select t.bump from t',
      'select (t).bump from t',
      "select setval('x', 1)",
      'select pg_notify($1, $2)',
      'select lo_creat(-1)',
      'select pg_terminate_backend(1)',
      "select query_to_xml('delete from t returning 1', true, true, '')",
      'select not_there(1)',
    ];
    for (const sql of plain) expect(isPlainRead(facts(sql), catalogue), sql).toBe(true);
    for (const sql of not) expect(isPlainRead(facts(sql), catalogue), sql).toBe(false);
    expect(catalogue.taintedRelations.has('Tainted')).toBe(true);
    expect(catalogue.taintedRelations.has('tainted')).toBe(false);

    await client.query('create cast (bool as mood) with function to_mood_2(bool) as implicit').catch(() => {});
    await client.query(`create function to_mood_2(bool) returns mood language sql as $$ select 'a'::mood $$`);
    await client.query('create cast (bool as mood) with function to_mood_2(bool) as implicit');
    expect((await load()).guardEverything).toBe(true);
    await client.query('drop cast (bool as mood)');
  });

  it('taints the parents of foreign tables', async () => {
    await client.query(`
      create foreign data wrapper w; create server sv foreign data wrapper w;
      create table above_foreign (id int) partition by list (id);
      create foreign table far partition of above_foreign for values in (1) server sv;
      create view over_foreign as select * from above_foreign`);
    const catalogue = await load();
    for (const sql of ['table far', 'table above_foreign', 'select 1 from over_foreign']) {
      expect(isPlainRead(facts(sql), catalogue), sql).toBe(false);
    }
    await client.query('drop foreign data wrapper w cascade; drop table above_foreign cascade');
  });

  it('reads the catalogue as anybody, and fast', async () => {
    await client.query(`do $$ begin for i in 1..300 loop
      execute format('create function many_%s(t) returns int language sql as ''update t set a = 1 returning a''', i);
      execute format('create view many_view_%s as select many_%s(t) from t', i, i);
      execute format('create view more_view_%s as select * from many_view_%s', i, i);
    end loop; end $$; create role somebody login; revoke all on schema public from public`);
    const other = new pg.Client({
      host: '127.0.0.1',
      port: holder.server.port,
      user: 'somebody',
      database: 'postgres',
    });
    await other.connect();
    let fastest = Number.POSITIVE_INFINITY;
    let rows: string[][] = [];
    for (let i = 0; i < 5; i++) {
      const before = performance.now();
      rows = (await other.query({ text: CATALOGUE_QUERY, rowMode: 'array' })).rows as string[][];
      fastest = Math.min(fastest, performance.now() - before);
    }
    await other.end();
    // Some 40 ms on a machine that does nothing else; a plan compiled just in time takes a second at least.
    expect(fastest).toBeLessThan(800);
    const catalogue = parseCatalogue(rows);
    expect(isPlainRead(facts('table more_view_300'), catalogue)).toBe(false);
    expect(isPlainRead(facts('select many_7(t) from t'), catalogue)).toBe(false);
    expect(isPlainRead(facts('select t.many_7 from t'), catalogue)).toBe(false);
  });

  it('calls only functions of the server harmless', async () => {
    const { rows } = await client.query(
      `select name from unnest($1::text[]) name where not exists (select from pg_proc where proname = name and oid < 16384)`,
      [[...HARMLESS_VOLATILE]],
    );
    // Of 13 and older.
    expect(rows.map((row) => row.name)).toEqual(['pg_read_file_old']);
    for (const name of ['setval', 'pg_notify', 'lo_create', 'lo_import', 'pg_logical_emit_message', 'pg_promote']) {
      expect(HARMLESS_VOLATILE.has(name), name).toBe(false);
    }
  });
});
