import { serialize } from 'pg-protocol';
import { message } from './gateway.js';

/** Bytes that the client says, and what it waits for before it says more: the nth message of one of these types. */
export interface Step {
  readonly bytes: Buffer;
  readonly until: string;
  readonly count: number;
}

/** A session as a script of bytes. */
export interface Script {
  readonly name: string;
  readonly steps: readonly Step[];
  /** Why the client may not say everything at once. */
  readonly notAtOnce?: string;
  /** Startup parameters beside user and database. */
  readonly params?: Record<string, string>;
  readonly protocol?: number;
  /**
   * What the gateway is known to do differently, because it cuts a Query at its COMMIT. parameters: ParameterStatus comes with
   * the part that changed it; syntax: the parts before one with a syntax error have run.
   */
  readonly differs?: 'parameters' | 'syntax';
}

const P = (name: string, text: string, types: number[] = []) => serialize.parse({ name, text, types });
const B = (portal: string, statement: string, values: unknown[] = [], binary = false) =>
  serialize.bind({ portal, statement, values, binary });
const DS = (name: string) => serialize.describe({ type: 'S', name });
const DP = (name: string) => serialize.describe({ type: 'P', name });
const E = (portal = '', rows = 0) => serialize.execute({ portal, rows });
const CS = (name: string) => serialize.close({ type: 'S', name });
const CP = (name: string) => serialize.close({ type: 'P', name });
const S = serialize.sync() as Buffer;
const H = serialize.flush() as Buffer;
const d = (text: string) => serialize.copyData(Buffer.from(text));
const c = serialize.copyDone() as Buffer;
const f = (text: string) => serialize.copyFail(text);

/** FunctionCall with text arguments and a text result. */
function F(oid: number, ...args: string[]): Buffer {
  const body = Buffer.alloc(8);
  body.writeInt32BE(oid, 0);
  body.writeInt16BE(0, 4);
  body.writeInt16BE(args.length, 6);
  const values = args.flatMap((arg) => {
    const length = Buffer.alloc(4);
    length.writeInt32BE(Buffer.byteLength(arg));
    return [length, Buffer.from(arg)];
  });
  return message('F', body, ...values, Buffer.from([0, 0]));
}

/** A step that ends at a ready point for each of its Query, Sync and FunctionCall messages. */
function ready(...parts: Buffer[]): Step {
  return {
    bytes: Buffer.concat(parts),
    until: 'Z',
    count: parts.filter((p) => 'QSF'.includes(String.fromCharCode(p[0]))).length,
  };
}

function until(types: string, count: number, ...parts: Buffer[]): Step {
  return { bytes: Buffer.concat(parts), until: types, count };
}

const q = (...texts: string[]): Step[] => texts.map((text) => ready(serialize.query(text)));
const simple = (name: string, ...texts: string[]): Script => ({ name, steps: q(...texts) });
/** Parse, Bind, Describe, Execute, Sync of an unnamed statement: what most drivers send. */
const x = (text: string, values: unknown[] = []): Buffer =>
  Buffer.concat([P('', text), B('', '', values), DP(''), E()]);

const many = (n: number, part: (i: number) => Buffer): Buffer[] => Array.from({ length: n }, (_, i) => part(i));

/** Run once by a superuser before the gateway starts (it learns the functions of a database at its first login). */
export const CORPUS_SCHEMA = `
  create table t (id int primary key, v text, n int not null default 0);
  create table child (id int primary key, tid int references t deferrable initially deferred);
  create table uq (k int, constraint uq_k unique (k) deferrable initially deferred);
  create table auto (id serial primary key, v text);
  create table noisy (id int);
  create table wide (id int, v text);
  create function pure(i int) returns int language sql immutable as 'select i + 1';
  create function vol_insert(i int) returns int language plpgsql volatile as
    $$ begin insert into t values (i, 'vol'); return i; end $$;
  create function vol_notice(i int) returns int language plpgsql volatile as
    $$ begin raise notice 'called with %', i; return i; end $$;
  create function vol_fail(i int) returns int language plpgsql volatile as
    $$ begin insert into t values (i, 'fail'); raise exception 'no % here', i using errcode = 'XX123', detail = 'd', hint = 'h'; end $$;
  create function shout() returns trigger language plpgsql as $$ begin raise notice 'row %', new.id; return new; end $$;
  create trigger noisy_row before insert on noisy for each row execute function shout();
  create procedure plain_proc(i int) language plpgsql as $$ begin insert into t values (i, 'proc'); end $$;
  create procedure commit_proc(i int) language plpgsql as
    $$ begin insert into t values (i, 'one'); commit; insert into t values (i + 1, 'two'); end $$;
  create procedure inout_proc(inout i int) language plpgsql as $$ begin i := i * 2; end $$;
  -- Emptying a table costs much more than looking whether it is as it was.
  create function corpus_reset() returns void language plpgsql as $$ begin
    if exists (select from child) or
       (select md5(string_agg(t::text, ';' order by ctid)) from t) is distinct from
       (select md5(string_agg(format('(%s,v%s,%s)', g, g, g), ';' order by g)) from generate_series(1, 20) g) then
      truncate t, child;
      insert into t select g, 'v' || g, g from generate_series(1, 20) g;
    end if;
    if exists (select from uq) then truncate uq; end if;
    if exists (select from noisy) then truncate noisy; end if;
    if exists (select from auto) then truncate auto; end if;
    perform setval('auto_id_seq', 1, false);
    if (select count(*) from wide) <> 20 then
      truncate wide;
      insert into wide select g, repeat('x', 3000) from generate_series(1, 20) g;
    end if;
    perform lo_unlink(oid) from pg_largeobject_metadata;
  end $$;
`;

/** Run by a superuser before each run. */
export const CORPUS_RESET = 'select corpus_reset()';

export const CORPUS: readonly Script[] = [
  // ------------------------------------------------------------------------------------------------------ simple queries
  simple('select', 'select 1', 'select id, v from t order by id', 'select null, 1.5, true, now() is not null'),
  simple('empty query', '', ' ', ';', '-- nothing', '/* nothing */;;'),
  simple(
    'rows of some size',
    'select * from wide',
    "select repeat('y', 70000), 1",
    "select repeat('z', 200000) from t",
  ),
  simple('syntax error', 'selekt 1', 'select 1', 'select (', "select 'open", 'select 1;;; selekt'),
  simple(
    'semantic errors',
    'select nosuch from t',
    'select * from nosuch',
    'select 1/0',
    "select 'x'::int",
    'select nofunc(1)',
  ),
  simple('error in the midst of rows', 'select 1/(3-id) from t order by id', 'select 1'),
  simple(
    'error position beyond ASCII',
    "select 'äöü€', nosuch",
    "select '€'; select nosuch",
    "insert into t values (90, '€'); select nosuch from t",
  ),
  simple(
    'comments and quotes',
    "select ';' -- ; \n, 'it''s', $a$;$a$, E'\\'', \"id\" from t limit 1 /* ; /* nested */ ; */",
  ),
  simple(
    'backslash strings',
    'set standard_conforming_strings = off',
    'set escape_string_warning = off',
    "select 'a\\'; select 2;'",
    'reset all',
  ),

  // -------------------------------------------------------------------------------------------------- autocommit, guarded
  simple(
    'autocommit writes',
    "insert into t values (100, 'a')",
    "insert into t values (101, 'b') returning id, v",
    "update t set v = 'c' where id = 100 returning *",
    'update t set n = n + 1',
    'delete from t where id = 101',
    'delete from t where id = 101',
    "insert into t values (100, 'dup')",
    "insert into t values (100, 'dup') on conflict do nothing",
    "merge into t using (values (1)) s(i) on t.id = s.i when matched then update set v = 'merged'",
    'with w as (insert into t values (102) returning id) select * from w',
    'truncate uq',
    'select count(*), sum(n) from t',
  ),
  simple(
    'autocommit write that answers at length',
    "insert into wide select g, repeat('r', 5000) from generate_series(1, 50) g returning *",
  ),
  simple(
    'ddl',
    'create table made (id int)',
    'create index on made (id)',
    'alter table made add v text',
    'comment on table made is $$x$$',
    'create view seen as select * from made',
    'drop view seen',
    'drop table made',
    'drop table made',
    'drop table if exists made',
  ),
  simple(
    'create table as',
    'create table made as select id, v from t',
    'select count(*) from made',
    'select * into made2 from t',
    'drop table made, made2',
  ),
  simple(
    'deferred constraint fails at commit',
    'insert into child values (1, 999)',
    'insert into child values (1, 1)',
    'insert into uq values (1), (1)',
    'insert into uq values (1) returning k',
    'insert into uq values (1) returning k',
    'select count(*) from uq',
  ),
  simple(
    'deferred constraint, rows already shown',
    "insert into uq select g % 40 from generate_series(1, 50) g returning k, repeat('x', 3000)",
    'select count(*) from uq',
  ),
  simple(
    'volatile functions',
    'select vol_insert(200)',
    'select vol_insert(200)',
    'select vol_notice(1)',
    'select vol_notice(id) from t where id < 4 order by id',
    'select vol_fail(1)',
    'select pure(1)',
    'select count(*) from t',
    "select nextval('auto_id_seq')",
    "select currval('auto_id_seq'), lastval()",
    "select setval('auto_id_seq', 50)",
  ),
  simple('serial', "insert into auto (v) values ('a'), ('b') returning id", 'select lastval()'),
  simple(
    'explain',
    'explain (costs off) select * from t where id = 1',
    'explain (costs off) insert into t values (300)',
    'explain (analyze, costs off, timing off, summary off, buffers off) insert into t values (300)',
    'explain (analyze, costs off, timing off, summary off, buffers off) select 1',
    'select count(*) from t',
  ),
  simple(
    'do and call',
    "do $$ begin insert into t values (400, 'do'); end $$",
    "do $$ begin raise notice 'hi'; raise exception 'ho'; end $$",
    'call plain_proc(401)',
    'call plain_proc(401)',
    'call commit_proc(402)',
    'call inout_proc(21)',
    'begin',
    'call commit_proc(410)',
    'rollback',
    'call nosuch()',
    'do $$ begin insert into t values (420); commit; insert into t values (421); rollback; end $$',
    'select id from t where id >= 400 order by id',
  ),
  simple(
    'outside of a transaction only',
    'vacuum t',
    'create index concurrently made_i on t (v)',
    'drop index concurrently made_i',
    'begin',
    'vacuum t',
    'rollback',
    'analyze t',
    'reindex table t',
    'checkpoint',
  ),
  simple(
    'notices of triggers',
    'insert into noisy values (1), (2)',
    'begin',
    'insert into noisy values (3) returning id',
    'commit',
    'drop table if exists nosuch',
    'insert into noisy select generate_series(1, 5)',
  ),

  // --------------------------------------------------------------------------------------------------------- transactions
  simple(
    'transaction',
    'begin',
    "insert into t values (500, 'x')",
    'select v from t where id = 500',
    'commit',
    'select v from t where id = 500',
  ),
  simple(
    'read-only transaction',
    'begin',
    'select 1',
    'commit',
    'start transaction read only',
    'select 1',
    "insert into t values (501, 'x')",
    'select 1',
    'commit',
  ),
  simple('rolled back', 'begin', "insert into t values (502, 'x')", 'rollback', 'select v from t where id = 502'),
  simple(
    'failed',
    'begin',
    "insert into t values (503, 'x')",
    'select 1/0',
    'select 1',
    'selekt',
    'commit',
    'select v from t where id = 503',
    'begin',
    'select 1/0',
    'rollback',
    'begin',
    'select nosuch',
    'end',
  ),
  simple(
    'warnings of transaction control',
    'commit',
    'rollback',
    'begin',
    'begin',
    'commit',
    'abort',
    'end',
    'savepoint a',
    'release a',
    'rollback to a',
    'set local work_mem = 1000',
    'lock table t',
    'declare k cursor for select 1',
    'set transaction isolation level serializable',
    'set constraints all immediate',
    'commit and chain',
    'rollback and chain',
  ),
  simple(
    'savepoints',
    'begin',
    'savepoint a',
    "insert into t values (510, 'x')",
    'savepoint a',
    'select 1/0',
    'rollback to a',
    'release savepoint a',
    'savepoint "B c"',
    "insert into t values (510, 'dup')",
    'rollback to savepoint "B c"',
    'select count(*) from t',
    'rollback to nosuch',
    'rollback to a',
    'commit',
    'select count(*) from t',
  ),
  simple(
    'chains',
    'begin isolation level repeatable read',
    "insert into t values (520, 'x')",
    'commit and chain',
    'show transaction_isolation',
    "insert into t values (521, 'x')",
    'rollback and chain',
    'show transaction_isolation',
    'commit',
    'select count(*) from t',
  ),
  simple(
    'deferred constraints in a transaction',
    'begin',
    'insert into child values (2, 998)',
    'commit',
    'begin',
    'insert into uq values (7), (7)',
    'set constraints all immediate',
    'commit',
    'begin',
    'insert into uq values (8), (8)',
    'select 1',
    'commit',
    'select count(*) from uq',
  ),
  simple(
    'set local and isolation',
    'begin isolation level serializable read only deferrable',
    "set local work_mem = '2MB'",
    'show work_mem',
    'commit',
    'show work_mem',
    'begin',
    'set transaction read only',
    'select 1',
    'insert into t values (1)',
    'rollback',
  ),
  simple(
    'two-phase commit',
    'begin',
    "insert into t values (530, 'x')",
    "prepare transaction 'corpus-1'",
    'select count(*) from t',
    "commit prepared 'corpus-1'",
    'select count(*) from t',
    "commit prepared 'nosuch'",
    'begin',
    'insert into t values (531)',
    "prepare transaction 'corpus-2'",
    "rollback prepared 'corpus-2'",
    'begin',
    "prepare transaction 'corpus-3'",
    "rollback prepared 'corpus-3'",
  ),

  // ------------------------------------------------------------------------------------------------- several statements
  simple(
    'multi-statement reads',
    'select 1; select 2; select 3',
    'select 1; select 1/0; select 3',
    'select 1;; ;select 2;',
  ),
  simple(
    'multi-statement writes',
    "insert into t values (600, 'a'); update t set v = 'b' where id = 600; select v from t where id = 600",
    "insert into t values (601, 'a'); select 1/0; insert into t values (602, 'a')",
    'select count(*) from t',
    'insert into t values (603) returning id; insert into t values (604) returning id; delete from t where id > 602',
  ),
  simple(
    'multi-statement with a failing commit',
    'insert into uq values (1); insert into uq values (1); select 1',
    'select count(*) from uq',
  ),
  simple(
    'multi-statement transactions',
    "begin; insert into t values (610, 'a'); commit",
    "begin; insert into t values (611, 'a'); select id from t where id = 611; commit; select count(*) from t",
    "begin; insert into t values (612, 'a')",
    "select 1; insert into t values (613, 'a'); commit; select count(*) from t",
    'begin; insert into t values (614); rollback; select count(*) from t',
    'begin; insert into t values (615); commit; begin; insert into t values (616); commit',
    'begin; select 1; commit; begin; select 2; rollback; select 3',
    'select count(*) from t',
  ),
  simple(
    'multi-statement failing transactions',
    "begin; insert into t values (620, 'a'); select 1/0; commit; select 2",
    'rollback',
    'begin; insert into t values (621); commit; select 1/0; select 3',
    'begin; insert into t values (622); commit; insert into t values (622); select 3',
    'begin; insert into uq values (1), (1); commit; select 5',
    'select count(*) from t',
    'begin; select nosuch; commit',
    'commit',
  ),
  simple(
    'multi-statement oddities',
    'insert into t values (630); commit; insert into t values (631)',
    'insert into t values (632); rollback; insert into t values (633)',
    'insert into t values (634); begin; insert into t values (635); commit',
    'insert into t values (636); begin; insert into t values (637)',
    'select 1; rollback; select 2',
    'insert into t values (638); savepoint a',
    'savepoint a; select 1',
    'insert into t values (639); vacuum t',
    'select 1; vacuum t',
    'insert into t values (640); call commit_proc(641)',
    'insert into t values (642); create index concurrently on t (v)',
    'select id from t where id >= 630 order by id',
  ),
  simple(
    'multi-statement session changes',
    "set application_name = 'a'; select 1",
    "set application_name = 'b'; select 1/0",
    'show application_name',
    "set work_mem = '3MB'; show work_mem; reset work_mem",
    "insert into t values (650); set application_name = 'd'; select 1",
  ),
  {
    ...simple(
      'multi-statement transaction that changes a parameter',
      "begin; set application_name = 'c'; commit; show application_name",
    ),
    differs: 'parameters',
  },
  {
    ...simple('multi-statement transaction before a syntax error', 'begin; select 1; commit; select 1 +'),
    differs: 'syntax',
  },
  simple(
    'multi-statement error positions',
    'begin; insert into t values (660); commit; select nosuch from t',
    'select 1; begin; select nosuch; commit',
    'rollback',
    "insert into t values (661, 'ä'); select 'ü', nosuch",
    'begin; select 1; commit; select nofunc(1)',
  ),

  // ------------------------------------------------------------------------------------------------------ session state
  simple(
    'parameters',
    "set application_name = 'näme'",
    'show application_name',
    "set client_encoding = 'LATIN1'",
    "select 'x'",
    'set client_encoding to default',
    "set datestyle = 'German'",
    "set timezone = 'Europe/Berlin'",
    "set intervalstyle = 'iso_8601'",
    'show timezone',
    'reset datestyle',
    'reset all',
    'set search_path = pg_catalog',
    "select set_config('application_name', 'fn', false)",
    "select set_config('my.custom', '1', false), current_setting('my.custom')",
    'set my.other = 5',
    'show my.other',
    'set nosuch = 1',
    'set session characteristics as transaction read only',
    'show default_transaction_read_only',
    'reset all',
    'set role nosuch',
    'set session authorization default',
    'reset role',
    'show all_nosuch',
  ),
  simple(
    'parameters in transactions',
    'begin',
    "set application_name = 'in'",
    'rollback',
    'show application_name',
    'begin',
    "set application_name = 'kept'",
    "set client_encoding = 'LATIN1'",
    'commit',
    'show application_name',
    'begin',
    "set local application_name = 'local'",
    'commit',
    'show application_name',
  ),
  simple(
    'prepared in SQL',
    'prepare a as select $1::int + 1',
    'execute a(1)',
    'prepare b(int, text) as insert into t values ($1, $2) returning id',
    "execute b(700, 'x')",
    "execute b(700, 'x')",
    'execute nosuch',
    'prepare a as select 1',
    'begin',
    "execute b(701, 'x')",
    'commit',
    'deallocate a',
    'execute a(1)',
    'deallocate all',
    'execute b(1)',
    'deallocate nosuch',
    'prepare q as select 1; execute q; deallocate q',
    'explain (costs off) execute b',
    'create table made as execute nosuch',
  ),
  simple(
    'cursors',
    'begin',
    'declare k cursor for select id from t order by id',
    'fetch 3 from k',
    'move 2 in k',
    'fetch backward 1 from k',
    'fetch all from k',
    'fetch k',
    'close k',
    'fetch k',
    'rollback',
    'declare h scroll cursor with hold for select id from t order by id',
    'fetch 2 from h',
    'fetch first from h',
    'close h',
    'fetch h',
    'begin',
    'declare u cursor for select * from t for update',
    'fetch u',
    "update t set v = 'cur' where current of u",
    'commit',
  ),
  simple(
    'temporary tables',
    'create temp table tmp (id int) on commit delete rows',
    'insert into tmp values (1)',
    'select * from tmp',
    'drop table tmp',
    'create temp table tmp2 as select 1 as a',
    'select a from tmp2',
    'discard temp',
    'select a from tmp2',
  ),
  simple(
    'advisory locks',
    'select pg_advisory_lock(7)',
    'select pg_try_advisory_lock(7)',
    'select pg_advisory_unlock(7)',
    'select pg_advisory_unlock(8)',
    'select pg_advisory_unlock_all()',
    'begin',
    'select pg_advisory_xact_lock(9)',
    'commit',
    'select pg_advisory_lock_shared(1, 2)',
  ),
  simple(
    'discard all',
    "set application_name = 'x'",
    'prepare a as select 1',
    'listen c',
    'select pg_advisory_lock(7)',
    'create temp table tmp (id int)',
    'discard all',
    'execute a',
    'show application_name',
    'discard plans',
    'discard sequences',
    'begin',
    'discard all',
    'rollback',
  ),
  simple(
    'listen and notify',
    'listen c',
    "notify c, 'one'",
    'begin',
    "notify c, 'two'",
    "select pg_notify('c', 'three')",
    'select 1',
    'commit',
    'unlisten c',
    'notify c',
    'listen "X y"',
    'begin',
    'listen d',
    'rollback',
    'notify d',
    'notify "X y"',
    'unlisten *',
    "notify c; select 1; notify c, 'x'",
  ),
  simple(
    'locks and others',
    'begin',
    'lock table t in share mode',
    'select * from t where id = 1 for update',
    'select 1 from t where id = 2 for share skip locked',
    'commit',
    'begin; lock table t; commit',
    'lock table t; select 1',
    'show server_version_num',
    'select pg_sleep(0)',
    "set statement_timeout = '20ms'",
    'select pg_sleep(5)',
    'reset statement_timeout',
    'load $$plpgsql$$',
    'values (1), (2)',
    'table t',
    '(select 1)',
    'select 1 union all select 2',
    'grant select on t to public',
    'create role corpus_r',
    'set role corpus_r',
    'insert into uq values (1)',
    'reset role',
    'revoke select on t from public',
    'drop role corpus_r',
    'alter system set nosuch = 1',
    'cluster',
    'refresh materialized view nosuch',
    'security label on table t is $$x$$',
    'import foreign schema x from server y into z',
  ),

  // --------------------------------------------------------------------------------------------------- extended protocol
  {
    name: 'extended: one statement',
    steps: [
      ready(x('select $1::int + 1', ['41']), S),
      ready(x('select v from t where id = $1', ['3']), S),
      ready(x("insert into t values (800, 'x') returning id"), S),
      ready(x('update t set n = 0'), S),
      ready(S),
      ready(x(''), S),
    ],
  },
  {
    name: 'extended: named statements',
    steps: [
      ready(P('a', 'select v from t where id = $1'), DS('a'), S),
      ready(B('', 'a', ['1']), E(), S),
      ready(B('', 'a', ['2']), DP(''), E(), S),
      ready(P('w', 'insert into t values ($1, $2) returning *'), S),
      ready(B('', 'w', ['810', 'y']), E(), S),
      ready(B('', 'w', ['810', 'y']), E(), S),
      ready(CS('a'), CS('nosuch'), S),
      ready(B('', 'a', ['1']), E(), S),
      ready(P('w', 'select 1'), S),
      ready(CS('w'), P('w', 'select 2'), B('', 'w'), E(), S),
    ],
  },
  {
    name: 'extended: binary',
    steps: [
      ready(
        P('', 'select id, v, n::int8 from t where id = $1', [23]),
        B('', '', [Buffer.from([0, 0, 0, 5])], true),
        DP(''),
        E(),
        S,
      ),
      ready(P('', 'select $1::bytea, $2::text'), DS(''), B('', '', [Buffer.from([0, 255]), null]), E(), S),
    ],
  },
  {
    name: 'extended: errors at each phase',
    steps: [
      ready(P('', 'selekt'), B('', ''), E(), S),
      ready(P('', 'select $1::int'), B('', '', ['x']), E(), S),
      ready(P('', 'select 1/$1::int'), B('', '', ['0']), DP(''), E(), S),
      ready(P('', 'select 1'), B('', '', ['1', '2']), E(), S),
      ready(B('', 'nosuch'), E(), S),
      ready(E('nosuch'), S),
      ready(DS('nosuch'), S),
      ready(DP('nosuch'), S),
      ready(P('', 'insert into t values (1)'), B('', ''), E(), x('select 1'), S),
      ready(x('insert into uq values (1), (1)'), S),
      ready(P('', 'insert into t values ($1)'), B('', '', ['x']), E(), S),
      ready(x('select 1'), S),
    ],
  },
  {
    name: 'extended: portals with row limits',
    steps: [
      ready(serialize.query('begin')),
      ready(P('', 'select id from t order by id'), B('p', ''), E('p', 5), S),
      ready(E('p', 5), S),
      ready(E('p', 5), E('p', 5), S),
      ready(E('p', 5), S),
      ready(CP('p'), S),
      ready(E('p', 1), S),
      ready(serialize.query('rollback')),
      ready(x('select 1'), B('q', ''), E('q', 1), E('q', 1), S),
      ready(E('q'), S),
      ready(P('', 'select id from t order by id'), B('', ''), E('', 3), E('', 3), E('', 0), S),
      ready(P('', 'insert into t select generate_series(820, 830) returning id'), B('', ''), E('', 3), E('', 3), S),
      ready(x('select count(*) from t'), S),
    ],
  },
  {
    name: 'extended: transaction',
    steps: [
      ready(x('begin'), S),
      ready(x("insert into t values (840, 'x')"), S),
      ready(x('select v from t where id = 840'), S),
      ready(x('commit'), S),
      ready(x('begin'), S),
      ready(x('select 1/0'), S),
      ready(x('select 1'), S),
      ready(x('commit'), S),
      ready(x('begin'), S),
      ready(x('savepoint a'), S),
      ready(x('insert into t values (1)'), S),
      ready(x('rollback to a'), S),
      ready(x('rollback'), S),
    ],
  },
  {
    name: 'extended: transaction in one batch',
    steps: [
      ready(x('begin'), x("insert into t values (850, 'x')"), x('commit'), S),
      ready(x('begin'), x("insert into t values (851, 'x')"), x('select 1/0'), x('commit'), S),
      ready(x('rollback'), S),
      ready(x('begin'), S, x("insert into t values (852, 'x')"), S, x('commit'), S),
      ready(x('begin'), x("insert into t values (853, 'x')"), x('rollback'), x('select count(*) from t'), S),
      ready(x('insert into t values (854)'), x('commit'), x('insert into t values (855)'), S),
      ready(x('insert into t values (856)'), x('begin'), x('insert into t values (857)'), S),
      ready(x('select count(*) from t'), x('commit'), x('select count(*) from t'), S),
      ready(x('begin'), x('insert into uq values (1), (1)'), x('commit'), x('select 1'), S),
      ready(x('select count(*) from t'), S),
    ],
  },
  {
    name: 'extended: pipelined with a Sync each',
    steps: [
      ready(
        ...many(20, (i) =>
          x(
            i % 3 === 0 ? `insert into t values (${860 + i}, 'p')` : 'select v from t where id = $1',
            i % 3 === 0 ? [] : ['1'],
          ),
        ).flatMap((part) => [part, S]),
      ),
      ready(
        x('select 1'),
        S,
        x('select 1/0'),
        S,
        x('insert into t values (1)'),
        S,
        x('select 2'),
        S,
        serialize.query('select 3'),
        x('select 4'),
        S,
      ),
    ],
  },
  {
    name: 'extended: pipelined with one Sync',
    steps: [
      ready(
        ...many(20, (i) =>
          x(
            i % 3 === 0 ? `insert into t values (${890 + i}, 'p')` : 'select v from t where id = $1',
            i % 3 === 0 ? [] : ['1'],
          ),
        ),
        S,
      ),
      ready(x('insert into t values (920)'), x('insert into t values (1)'), x('insert into t values (921)'), S),
      ready(x('select count(*) from t where id >= 920'), S),
      ready(x('insert into uq values (5)'), x('insert into uq values (5)'), S),
      ready(x('select count(*) from uq'), S),
    ],
  },
  {
    name: 'extended: Flush',
    notAtOnce: 'it waits for answers without Sync',
    steps: [
      until('1', 1, P('a', 'select v from t where id = $1'), H),
      until('T', 1, DS('a'), H),
      until('C', 1, B('', 'a', ['4']), E(), H),
      ready(S),
      until('2', 1, P('', 'select 5'), B('', ''), H),
      until('T', 1, DP(''), H),
      until('C', 1, E(), H),
      ready(S),
      until('C', 1, x("insert into t values (930, 'f') returning id"), H),
      until('C', 1, x('select count(*) from t'), H),
      ready(S),
      until('E', 1, x('select 1/0'), H),
      ready(x('select 1'), S),
      ready(S),
    ],
  },
  {
    name: 'extended: Flush in a transaction',
    notAtOnce: 'it waits for answers without Sync',
    steps: [
      until('C', 1, x('begin'), H),
      ready(S),
      until('C', 1, x("insert into t values (940, 'f')"), H),
      until('s', 1, P('', 'select id from t order by id'), B('p', ''), E('p', 2), H),
      until('s', 1, E('p', 2), H),
      ready(S),
      until('C', 1, x('commit'), H),
      ready(S),
      until('C', 2, x('begin'), x("insert into t values (941, 'f')"), H),
      until('C', 1, x('commit'), H),
      ready(S),
      ready(x('select count(*) from t'), S),
    ],
  },
  {
    name: 'extended: Flush before a failing statement',
    notAtOnce: 'it waits for answers without Sync',
    steps: [
      until('C', 1, x("insert into t values (950, 'f')"), H),
      until('E', 1, x('insert into t values (1)'), H),
      ready(x("insert into t values (951, 'f')"), S),
      ready(x('select count(*) from t'), S),
      until('C', 1, x('insert into uq values (1)'), H),
      until('C', 1, x('insert into uq values (1)'), H),
      ready(S),
      ready(x('select count(*) from uq'), S),
    ],
  },
  {
    name: 'extended: Flush, rows in part',
    notAtOnce: 'it waits for answers without Sync',
    steps: [
      until('s', 1, P('', 'select id from t order by id'), B('', ''), E('', 3), H),
      until('s', 1, E('', 3), H),
      until('C', 1, E('', 0), H),
      ready(S),
      until('2', 1, P('', 'insert into t values (960) returning id'), B('', ''), H),
      until('T', 1, DP(''), H),
      until('C', 1, E(), H),
      ready(S),
    ],
  },
  {
    name: 'extended: all kinds of statement',
    steps: [
      ready(x('create table made (id int)'), S),
      ready(x('drop table made'), S),
      ready(x('create table made as select 1 as a'), S),
      ready(x('select * from made'), S),
      ready(x('drop table made'), S),
      ready(x('select vol_insert(970)'), S),
      ready(x('select vol_fail(971)'), S),
      ready(x('select vol_notice(3)'), S),
      ready(x('call commit_proc(980)'), S),
      ready(x('call plain_proc(982)'), S),
      ready(x('do $$ begin end $$'), S),
      ready(x('vacuum t'), S),
      ready(x('explain (analyze, costs off, timing off, summary off, buffers off) delete from t where id = 982'), S),
      ready(x("set application_name = 'e'"), S),
      ready(x('show application_name'), S),
      ready(x('insert into child values (1, 999)'), S),
      ready(x('listen e'), S),
      ready(x("notify e, 'x'"), S),
      ready(x("select pg_notify('e', 'y')"), S),
      ready(x('unlisten e'), S),
      ready(x('prepare a as select 1'), S),
      ready(x('execute a'), S),
      ready(x('deallocate a'), S),
      ready(x('discard all'), S),
      ready(x('vacuum t'), x('select 1'), S),
      ready(x('select 1'), x('vacuum t'), S),
      ready(x('insert into noisy values (1)'), S),
      ready(x('select count(*) from t'), S),
    ],
  },
  {
    name: 'extended: several statements are refused',
    steps: [
      ready(x('select 1; select 2'), S),
      ready(P('a', 'select 1'), P('a', 'select 2'), S),
      ready(B('p', 'a'), B('p', 'a'), S),
      ready(x('select 1'), S),
    ],
  },
  {
    name: 'extended and simple mixed',
    steps: [
      ready(P('a', 'select $1::text'), S),
      ready(serialize.query('select 1')),
      ready(B('', 'a', ['x']), E(), S),
      ready(P('', 'select 7'), S),
      ready(serialize.query("insert into t values (990, 'm')")),
      ready(B('', ''), E(), S),
      ready(P('', 'select 8'), S),
      ready(x("insert into t values (991, 'm')"), S),
      ready(P('', 'select 9'), B('', ''), serialize.query('select 10')),
      ready(S),
      // No Query after an unfinished batch that wrote: PostgreSQL 18 itself fails at the statement that follows (XX000).
      ready(serialize.query('deallocate all')),
      ready(B('', 'a', ['x']), E(), S),
    ],
  },
  {
    name: 'extended: after discard all',
    steps: [
      ready(P('a', 'select 1'), S),
      ready(serialize.query('discard all')),
      ready(B('', 'a'), E(), S),
      ready(P('a', 'select 1'), S),
      ready(serialize.query('deallocate a')),
      ready(B('', 'a'), E(), S),
    ],
  },

  // ---------------------------------------------------------------------------------------------------------------- COPY
  {
    name: 'copy in',
    steps: [
      until('G', 1, serialize.query('copy t (id, v) from stdin')),
      copied(d('1000\ta\n1001\tb\n'), d('1002'), d('\tc\n'), c),
      until('G', 1, serialize.query('copy t (id, v) from stdin with (format csv)')),
      copied(d('1003,"x,y"\n'), c),
      ...q('select id, v from t where id >= 1000 order by id'),
    ],
  },
  {
    name: 'copy in, nothing',
    steps: [
      until('G', 1, serialize.query('copy t (id, v) from stdin')),
      copied(c),
      until('G', 1, serialize.query('copy t (id, v) from stdin')),
      copied(f('')),
      ...q('select 1'),
    ],
  },
  {
    name: 'copy in, failed by the client',
    steps: [
      until('G', 1, serialize.query('copy t (id, v) from stdin')),
      copied(d('1010\ta\n'), f('no more')),
      ...q('begin'),
      until('G', 1, serialize.query('copy t (id, v) from stdin')),
      copied(d('1011\ta\n'), f('no more')),
      ...q('select 1', 'rollback', 'select count(*) from t'),
    ],
  },
  {
    name: 'copy in, failed by the server',
    steps: [
      until('G', 1, serialize.query('copy t (id, v) from stdin')),
      copied(d('1020\ta\nx\ty\n'), d('1021\tb\n'), c),
      ...q('select count(*) from t'),
      until('E', 1, serialize.query('copy nosuch from stdin')),
      until('Z', 1, d('1\n'), c),
      ...q('select 1'),
      until('G', 1, serialize.query('copy t (id, v) from stdin')),
      copied(d('1\tdup\n'), c),
      until('G', 1, serialize.query('copy uq from stdin')),
      copied(d('1\n1\n'), c),
      ...q('select 1'),
    ],
  },
  {
    name: 'copy in a transaction',
    steps: [
      ...q('begin'),
      until('G', 1, serialize.query('copy t (id, v) from stdin')),
      copied(d('1030\ta\n'), c),
      ...q('select count(*) from t', 'commit', 'select count(*) from t'),
    ],
  },
  {
    name: 'copy in among statements',
    notAtOnce: 'the copy is in the midst of a Query',
    steps: [
      until('G', 1, serialize.query('insert into t values (1040); copy t (id, v) from stdin; select count(*) from t')),
      copied(d('1041\ta\n'), c),
      until('G', 1, serialize.query('begin; copy t (id, v) from stdin; commit; select count(*) from t')),
      copied(d('1042\ta\n'), c),
      until('G', 1, serialize.query('copy t (id, v) from stdin; copy uq from stdin')),
      until('G', 1, d('1043\ta\n'), c),
      copied(d('3\n'), c),
      ...q('select id from t where id >= 1040 order by id'),
    ],
  },
  {
    name: 'copy in, extended',
    steps: [
      until('G', 1, x('copy t (id, v) from stdin'), S),
      copied(d('1050\ta\n'), c, S),
      ...q('select count(*) from t'),
      until('G', 1, x('copy t (id, v) from stdin'), S),
      copied(d('1051\ta\n'), f('no'), S),
      ...q('select count(*) from t'),
    ],
  },
  {
    name: 'copy in, extended, failed by the server',
    notAtOnce: 'whether the data is read depends on what the server answers',
    steps: [
      until('G', 1, x('copy t (id, v) from stdin'), S),
      copied(d('x\ty\n'), d('1052\tb\n'), c, S),
      ...q('select count(*) from t'),
      until('G', 1, x('copy t (id, v) from stdin'), S),
      until('E', 1, d('x\ty\n'), d('1053\tb\n'), c),
      copied(S),
      until('Z', 1, x('copy nosuch from stdin'), S),
      copied(d('1\n'), c, S),
      ...q('select count(*) from t'),
    ],
  },
  {
    name: 'copy in, extended, more pipelined after it',
    notAtOnce: 'whether the data is read depends on what the server answers',
    steps: [
      until('G', 1, x('copy t (id, v) from stdin'), S),
      until('Z', 3, d('1054\tb\n'), c, S, x('select 1'), S, x('insert into t values (1055)'), S),
      until('G', 1, x('copy t (id, v) from stdin'), S),
      until('Z', 2, d('1056\tb\n'), f('no'), S, serialize.query('select count(*) from t')),
      until('G', 1, x('begin'), x('copy t (id, v) from stdin'), S),
      until('Z', 2, d('1057\tb\n'), c, S, x('commit'), S),
      ...q('select count(*) from t'),
    ],
  },
  {
    name: 'copy in, extended with Flush',
    notAtOnce: 'it waits for answers without Sync',
    steps: [
      until('G', 1, x('copy t (id, v) from stdin'), H),
      copied(d('1060\ta\n'), c, S),
      until('G', 1, x('copy t (id, v) from stdin'), H),
      copied(d('x\n'), c, S),
      until('E', 1, x('copy nosuch from stdin'), H),
      ready(S),
      ...q('select count(*) from t'),
    ],
  },
  {
    name: 'copy out',
    steps: [
      ...q(
        'copy t to stdout',
        'copy (select id, v from t where id < 4 order by id) to stdout with (format csv, header)',
        'copy nosuch to stdout',
        'copy (select 1/(3-id) from t order by id) to stdout',
        "copy (insert into t values (1070, 'x') returning id) to stdout",
        'copy (select vol_insert(1071)) to stdout',
        'copy wide to stdout (format binary)',
        'begin; copy (select 1) to stdout; commit',
      ),
      ready(x('copy t to stdout'), S),
    ],
  },

  // ------------------------------------------------------------------------------------------------------------- the rest
  {
    name: 'function calls',
    steps: [
      ready(F(1598)),
      ready(F(177, '3', '4')),
      ready(F(177, 'x', '4')),
      ready(F(0)),
      ...q('begin'),
      ready(F(177, '3', '4')),
      ready(F(177, 'x', '4')),
      ready(F(177, '3', '4')),
      ...q('rollback'),
    ].slice(1),
  },
  simple(
    'large objects',
    'select lo_create(424242)',
    'begin',
    'select lo_open(424242, 393216)',
    "select lowrite(0, 'hello')",
    'select lo_lseek(0, 0, 0)',
    'select loread(0, 100)',
    'select lo_close(0)',
    'commit',
    "select lo_put(424242, 5, ' world')",
    'select lo_get(424242)',
    'select lo_unlink(424242)',
    'select lo_unlink(424242)',
    "select lo_from_bytea(424243, 'abc')",
    'select lo_get(424243, 1, 1)',
  ),
  { name: 'protocol 3.2', protocol: 0x30002, steps: q('select 1', "insert into t values (1080, 'x')") },
  { name: 'protocol of the future', protocol: 0x3270f, params: { '_pq_.nosuch': 'x' }, steps: q('select 1') },
  {
    name: 'startup parameters',
    params: {
      application_name: 'corpus',
      client_encoding: 'LATIN1',
      DateStyle: 'ISO, DMY',
      options: '-c work_mem=5MB -c search_path=pg_catalog,public',
      extra_float_digits: '2',
    },
    steps: q(
      'show work_mem',
      'show application_name',
      'show search_path',
      'show client_encoding',
      "select '\u00e4'",
      'show datestyle',
    ),
  },
  { name: 'a wrong startup parameter', params: { nosuch: 'x' }, steps: [] },
  { name: 'an unknown database', params: { database: 'nosuch' }, steps: [] },
  { name: 'an unknown user', params: { user: 'nosuch' }, steps: [] },
  {
    name: 'the session is ended by itself',
    steps: [...q('select 1'), until('E', 1, serialize.query('select pg_terminate_backend(pg_backend_pid())'))],
  },
  {
    name: 'the session cancels itself',
    steps: q('select pg_cancel_backend(pg_backend_pid()), pg_sleep(5)', 'select 1'),
  },
  {
    name: 'idle in transaction too long',
    steps: [
      ...q("set idle_in_transaction_session_timeout = '50ms'", 'begin', "insert into t values (1090, 'x')"),
      until('E', 1),
    ],
    notAtOnce: 'it waits in the transaction',
  },
];

/** COPY input that the client ends: one ReadyForQuery follows. */
function copied(...parts: Buffer[]): Step {
  return { bytes: Buffer.concat(parts), until: 'Z', count: 1 };
}
