import { expect, it } from 'vitest';
import { ALL_DIALECTS, DIALECTS, expectAgreement, int, type Script, same, time, trials } from '../kit/mutables.js';
import { useStage } from '../kit/stage.js';

/**
 * M4: values that a SELECT told, used by later statements, and what the session says of them afterwards. Every 3rd place at
 * which the server can be lost in the simple and the extended protocol, every 6th in other dialects, every 16th where the promoted server
 * is behind; counted on over scripts and dialects.
 */
const stage = useStage(`
  create sequence s start 100;
  create sequence other start 70000 increment 5;
  create table used (
    id bigserial primary key, tag text, n int, x bigint, u uuid, at timestamptz default now(), clock timestamptz, r float8, j text);
  create table plain (id int generated always as identity primary key, tag text, n int);
`);

const THREE: readonly string[] = ['select now()', 'select transaction_timestamp()', 'select current_timestamp'];

const SCRIPTS: readonly Script[] = [
  {
    name: 'all at once',
    tables: ['used'],
    statements: (tag) => [
      {
        sql: `select now(), nextval('s'), currval('s'), lastval(), gen_random_uuid(), clock_timestamp(), random(),
          txid_current(), pg_backend_pid(), pg_current_xact_id()::text, statement_timestamp(), uuidv7(), timeofday()`,
      },
      {
        sql: 'insert into used (tag, n, x, u, at, clock, r) values ($1, 1, $2, $3, $4, $5, $6) returning x, u, at, clock, r',
        params: (seen) => [tag, ...[1, 4, 0, 5, 6].map((i) => seen[1].rows[0][i])],
        stored: `select x, u, at, clock, r from used where tag = '${tag}'`,
      },
      { sql: "select now(), currval('s')" },
    ],
    check: (seen) => {
      const [now, next, curr, last] = seen[1].rows[0];
      if (!same(next, curr) || !same(next, last)) return 'nextval, currval and lastval of one row disagree';
      if (!same(now, seen[3].rows[0][0])) return 'two times in one transaction';
      return same(next, seen[3].rows[0][1]) ? undefined : 'currval moved';
    },
  },
  {
    name: 'now() is one time',
    tables: ['used'],
    statements: (tag) => [
      ...THREE.map((sql) => ({ sql })),
      { sql: 'insert into used (tag, n) values ($1, 1)', params: [tag] },
      {
        sql: 'insert into used (tag, n) values ($1, 2) returning at, id',
        params: [tag],
        stored: `select at, id from used where tag = '${tag}' and n = 2`,
      },
      {
        sql: "select now(), localtimestamp, current_date, now()::text, now() + interval '1 hour', extract(epoch from now())",
      },
      { sql: 'insert into used (tag, n, at) values ($1, 3, now())', params: [tag] },
      { sql: 'update used set clock = now() where tag = $1', params: [tag] },
      ...THREE.map((sql) => ({ sql })),
      { sql: 'select count(*) from used where tag = $1 and at = now() and clock = now()', params: [tag] },
    ],
    check: async (seen, ask, tag) => {
      const now = seen[1].rows[0][0];
      const others = [2, 3, 5, 6, 9, 10, 11].filter((k) => !same(seen[k].rows[0][0], now)).map((k) => k + 1);
      if (others.length > 0) return `statements ${others} told another time than statement 2`;
      if (!(Math.abs(time(now) - Date.now()) < 600_000)) return 'the time is off';
      const stored = await ask(
        `select distinct extract(epoch from t) * 1000 from used, unnest(array[at, clock]) t where tag = '${tag}'`,
      );
      if (stored.length !== 1) return `SILENT ${stored.length} times are stored`;
      return Math.abs(Number(stored[0][0]) - time(now)) < 1.1
        ? undefined
        : 'SILENT another time is stored than was seen';
    },
  },
  {
    name: 'a time that was never seen',
    tables: ['used'],
    statements: (tag) => [
      { sql: 'insert into used (tag, n) values ($1, 1)', params: [tag] },
      { sql: 'insert into used (tag, n) values ($1, 2)', params: [tag] },
      { sql: 'insert into used (tag, n, clock) values ($1, 3, now())', params: [tag] },
    ],
    check: async (_seen, ask, tag) => {
      const [[n]] = await ask(`select count(distinct t) from used, unnest(array[at, clock]) t where tag = '${tag}'`);
      return n === '1' ? undefined : `${n} times in one transaction`;
    },
  },
  {
    name: 'a time that is seen late',
    tables: ['used'],
    statements: (tag) => [
      { sql: 'insert into used (tag, n) values ($1, 1)', params: [tag] },
      { sql: 'insert into used (tag, n) values ($1, 2) returning at', params: [tag] },
      { sql: 'select now()' },
    ],
    check: async (seen, ask, tag) => {
      if (!same(seen[2].rows[0][0], seen[3].rows[0][0])) return 'now() was two times';
      const stored = await ask(`select distinct extract(epoch from at) * 1000 from used where tag = '${tag}'`);
      if (stored.length !== 1) return `${stored.length} times in one transaction`;
      return Math.abs(Number(stored[0][0]) - time(seen[3].rows[0][0])) < 1.1
        ? undefined
        : 'SILENT another time is stored';
    },
  },
  {
    name: 'lastval after INSERT without RETURNING',
    tables: ['plain', 'used'],
    statements: (tag) => [
      { sql: 'insert into plain (tag, n) values ($1, 1)', params: [tag] },
      { sql: 'select lastval()', stored: `select id::bigint from plain where tag = '${tag}' and n = 1` },
      { sql: 'insert into used (tag, n) values ($1, 1)', params: [tag] },
      {
        sql: "select currval('used_id_seq')",
        stored: `select id from used where tag = '${tag}' and n = 1`,
      },
      {
        sql: "insert into used (tag, n, x) values ($1, 2, currval('plain_id_seq')) returning x",
        params: [tag],
        stored: `select id::bigint from plain where tag = '${tag}' and n = 1`,
      },
      {
        sql: "select currval('public.plain_id_seq'::regclass)",
        stored: `select id::bigint from plain where tag = '${tag}' and n = 1`,
      },
      {
        sql: "select currval(pg_get_serial_sequence('plain', 'id'))",
        stored: `select id::bigint from plain where tag = '${tag}' and n = 1`,
      },
      { sql: 'insert into plain (tag, n) values ($1, 2)', params: [tag] },
      { sql: 'select lastval()', stored: `select id::bigint from plain where tag = '${tag}' and n = 2` },
    ],
  },
  {
    name: 'currval and lastval after RETURNING',
    tables: ['plain', 'used'],
    statements: (tag) => [
      {
        sql: 'insert into plain (tag, n) values ($1, 1) returning id',
        params: [tag],
        stored: `select id from plain where tag = '${tag}' and n = 1`,
      },
      { sql: "select currval('plain_id_seq')", stored: `select id::bigint from plain where tag = '${tag}' and n = 1` },
      { sql: 'select lastval()', stored: `select id::bigint from plain where tag = '${tag}' and n = 1` },
      {
        sql: 'insert into used (tag, n, x) values ($1, 2, lastval()) returning x',
        params: [tag],
      },
      {
        sql: "insert into used (tag, n, x) values ($1, 3, currval('plain_id_seq'))",
        params: [tag],
      },
      {
        sql: 'select x from used where tag = $1 and n = 3',
        params: [tag],
        stored: `select id::bigint from plain where tag = '${tag}' and n = 1`,
      },
    ],
    check: (seen) =>
      new Set([seen[1], seen[2], seen[3], seen[6]].map(({ rows }) => int(rows[0][0]))).size === 1
        ? undefined
        : 'currval and lastval disagree with the id that was seen',
  },
  {
    name: 'nextval of several sequences, and several of one',
    tables: ['used'],
    statements: (tag) => [
      { sql: "select nextval('other') as a, nextval('s') as b" },
      { sql: "select nextval('s') from generate_series(1, 3)" },
      { sql: "select lastval(), currval('other'), currval('s')" },
      { sql: "select nextval('s'::regclass) as id" },
      {
        sql: 'insert into used (tag, n, x, id) values ($1, 1, $2, $3 + 5000000::bigint) returning x',
        params: (seen) => [tag, seen[1].rows[0][0], seen[4].rows[0][0]],
        stored: `select x from used where tag = '${tag}'`,
      },
      { sql: "select currval('other'), currval('s'), lastval()" },
    ],
    check: (seen) => {
      const drawn = [seen[1].rows[0][1], ...seen[2].rows.map(([cell]) => cell), seen[4].rows[0][0]].map(int);
      if (new Set(drawn).size !== drawn.length) return `values twice: ${drawn}`;
      const [last, other, s] = seen[3].rows[0].map(int);
      if (last !== s || s !== drawn[3] || other !== int(seen[1].rows[0][0])) {
        return `lastval ${last}, currval ${other} and ${s} after ${int(seen[1].rows[0][0])} and ${drawn}`;
      }
      const [other2, s2, last2] = seen[6].rows[0].map(int);
      if (other2 === other && s2 === drawn[4] && last2 === s2) return undefined;
      return `currval ${other2} and ${s2}, lastval ${last2} at the end, after ${other} and ${drawn}`;
    },
  },
  {
    name: 'savepoint between',
    tables: ['plain'],
    statements: (tag) => [
      { sql: 'insert into plain (tag, n) values ($1, 1) returning id', params: [tag] },
      { sql: 'savepoint a' },
      { sql: 'insert into plain (tag, n) values ($1, 2) returning id', params: [tag] },
      { sql: 'rollback to a' },
      { sql: "select currval('plain_id_seq'), now()" },
      { sql: 'insert into plain (tag, n) values ($1, 3) returning id', params: [tag] },
      { sql: "select now(), currval('plain_id_seq')" },
    ],
    check: (seen) => {
      const ids = [1, 3, 6].map((i) => int(seen[i].rows[0][0]));
      if (new Set(ids).size !== 3) return `ids twice: ${ids}`;
      // PostgreSQL does not take a sequence back.
      if (int(seen[5].rows[0][0]) !== ids[1]) return 'currval was taken back with the savepoint';
      if (int(seen[7].rows[0][1]) !== ids[2]) return 'currval disagrees with the last id';
      return same(seen[5].rows[0][1], seen[7].rows[0][0]) ? undefined : 'two times in one transaction';
    },
  },
];

it('M4: the same values afterwards, in the simple and the extended protocol', async () => {
  const found = await trials(stage, SCRIPTS, [DIALECTS.simple, DIALECTS.extended], { every: 3 });
  expectAgreement(found);
});

it('M4: in every other dialect', async () => {
  const others = ALL_DIALECTS.filter(({ name }) => name !== 'simple' && name !== 'extended');
  expectAgreement(await trials(stage, SCRIPTS, others, { every: 6 }));
});

it('M4: the promoted server has not heard of the values', async () => {
  expectAgreement(await trials(stage, SCRIPTS, ALL_DIALECTS, { every: 16, behind: true }));
});

it('M4: what the session was told in an earlier transaction stays so', async () => {
  // currval belongs to the session: that the transaction which drew the value is over changes nothing.
  const client = await stage.pg();
  const { rows } = await client.query<{ id: number }>("insert into plain (tag, n) values ('earlier', 1) returning id");
  await client.query('begin');
  const time = (await client.query('select now()::text as t')).rows[0].t;
  await stage.kill();
  const { rows: after } = await client.query("select now()::text as t, currval('plain_id_seq')::int as v").then(
    (result) => result,
    // What was never asked inside this transaction need not be known: PostgreSQL's own error of a session without a value, or its value.
    (error) => ({ rows: [{ t: time, v: error.code === '55000' ? rows[0].id : error.message }] }),
  );
  expect(after).toEqual([{ t: time, v: rows[0].id }]);
});

it('M4: the time of the next transaction is its own', async () => {
  const client = await stage.pg();
  await client.query('begin');
  const before = (await client.query('select now()::text as t')).rows[0].t;
  await stage.kill();
  expect((await client.query('select now()::text as t')).rows[0].t).toBe(before);
  await client.query('commit');
  await client.query('begin');
  const after = (await client.query('select now()::text as t')).rows[0].t;
  expect(after > before).toBe(true);
  const drawn = (await client.query("insert into plain (tag, n) values ('next', 1) returning id")).rows[0].id;
  expect((await client.query("select currval('plain_id_seq')::int as v")).rows[0].v).toBe(drawn);
  await client.query('commit');
  expect((await client.query('select now()::text > $1 as later', [after])).rows[0].later).toBe(true);
  expect(client.lost).toEqual([]);
});
