import { describe, expect, it } from 'vitest';
import { learn, namesOf, read, rewrite } from '../../codecs/postgres/mutables/rewrite.js';
import type {
  Filler,
  Knowledge,
  Put,
  Relation,
  ResultColumn,
  Schema,
  SeenStatement,
  SeenValue,
  TableColumn,
} from '../../codecs/postgres/mutables/types.js';

const INT4 = 23;
const TEXT = 25;
const TIMESTAMPTZ = 1184;
const NAMES: Readonly<Record<number, string>> = {
  20: 'bigint',
  23: 'integer',
  25: 'text',
  1114: 'timestamp without time zone',
  1184: 'timestamp with time zone',
};

const SEQUENCE = { oid: 500, schema: 'public', name: 's', increment: 1n };

function column(attribute: number, name: string, type: number, filler: Filler, more: Partial<TableColumn> = {}) {
  return { name, attribute, typeName: NAMES[type], type, identityAlways: false, generated: false, filler, ...more };
}

const FIXED: Filler = { kind: 'fixed' };

const TABLE: Relation = {
  oid: 100,
  schema: 'public',
  name: 't',
  kind: 'r',
  triggers: false,
  columns: [
    column(1, 'id', INT4, { kind: 'sequence', sequence: 500 }),
    column(2, 'na"me', TEXT, FIXED),
    column(3, 'at', TIMESTAMPTZ, { kind: 'time' }),
  ],
};

function schemaOf(relation: Relation = TABLE): Schema {
  return {
    relation: (_, name) => (name === 't' ? relation : undefined),
    relationOf: () => relation,
    sequence: (text) => (text === 's' ? SEQUENCE : undefined),
    sequenceOf: (oid) => (oid === SEQUENCE.oid ? SEQUENCE : undefined),
    typeName: (type) => NAMES[type],
    volatility: (_, name) => (name === 'writes' ? 'v' : undefined),
  };
}

const put: Put = ({ bytes }, typeName) =>
  bytes === null ? `NULL::${typeName}` : `'${Buffer.from(bytes).toString()}'::${typeName}`;

const text = (value: string | null): SeenValue => ({ bytes: value === null ? null : Buffer.from(value), format: 0 });

const knowing = (more: Partial<Knowledge> = {}): Knowledge => ({
  time: null,
  currval: new Map(),
  lastval: null,
  held: new Map(),
  ...more,
});

const ID: ResultColumn = { name: 'id', table: 100, attribute: 1, type: INT4, modifier: -1 };
const AT: ResultColumn = { name: 'at', table: 100, attribute: 3, type: TIMESTAMPTZ, modifier: -1 };
const value = (name: string, type: number, modifier = -1): ResultColumn => ({
  name,
  table: 0,
  attribute: 0,
  type,
  modifier,
});

function seen(
  sql: string,
  columns: readonly ResultColumn[] | null,
  rows: readonly (string | null)[][],
  complete = true,
) {
  return { text: sql, columns, rows: rows.map((row) => row.map(text)), complete } satisfies SeenStatement;
}

function anew(
  sql: string,
  columns: readonly ResultColumn[] | null,
  rows: (string | null)[][],
  { knowledge = knowing(), relation = TABLE, complete = true, given = undefined as SeenStatement['given'] } = {},
) {
  const parsed = read(sql);
  if (parsed === null) return undefined;
  return rewrite(parsed, { ...seen(sql, columns, rows, complete), given }, schemaOf(relation), knowledge, put);
}

const T = `'2024-05-06 07:08:09.123456+00'::timestamptz`;

describe('read', () => {
  it.each([
    'SELECT 1',
    'SELECT a, lower(b) FROM t WHERE c = $1',
    'UPDATE t SET a = 1',
    'DELETE FROM t',
    'BEGIN',
    'SET TimeZone = 0',
    'PREPARE p AS SELECT now()',
    'EXECUTE p',
    'DECLARE c CURSOR FOR SELECT now()',
    'CREATE TABLE x AS SELECT now()',
    'SELECT now(); SELECT 1',
    'SELECT FROM WHERE',
    '',
  ])('has nothing to do with %j', (sql) => {
    expect(read(sql)).toBe(null);
  });

  it.each([
    'SELECT now()',
    'select CURRENT_date',
    'INSERT INTO t VALUES (1)',
    'UPDATE t SET a = 1 RETURNING a',
    'WITH x AS (INSERT INTO t DEFAULT VALUES) SELECT 1',
    'SELECT writes()',
    'SELECT 1 WHERE random() < 1',
  ])('looks at %j', (sql) => {
    expect(read(sql)).not.toBe(null);
  });

  it('survives what the parser does not', () => {
    expect(read(`SELECT ${'1+'.repeat(60_000)}1`)).toBe(null);
    expect(read(`SELECT ${'('.repeat(30_000)}`)).toBe(null);
    expect(read('SELECT now()')).not.toBe(null);
  });
});

it('asks for the names that it will need', () => {
  const parsed = read(
    `WITH x AS (INSERT INTO a."B" (c) VALUES (1)) UPDATE t SET d = other.f(nextval('s'), currval('u'::regclass)) RETURNING now()`,
  );
  expect(namesOf(parsed!)).toEqual({
    relations: expect.arrayContaining([
      { schema: 'a', name: 'B' },
      { schema: undefined, name: 't' },
    ]),
    functions: [{ schema: 'other', name: 'f' }],
    sequences: ['s', 'u'],
  });
});

describe('INSERT', () => {
  const id = [ID];
  it.each([
    [
      `INSERT INTO t ("na""me") VALUES ('é(') RETURNING id`,
      `INSERT INTO t ("na""me", "id") VALUES ('é(', '7'::integer) RETURNING id`,
    ],
    [
      `/* é ( */ insert into public . t as x values (default, 'a') returning id; -- )`,
      `/* é ( */ insert into public . t as x values ('7'::integer, 'a') returning id; -- )`,
    ],
    [`INSERT INTO t DEFAULT VALUES RETURNING id`, `INSERT INTO t ("id") VALUES ('7'::integer) RETURNING id`],
    [
      `INSERT INTO t("na""me")VALUES($x$,)$x$)RETURNING id`,
      `INSERT INTO t("na""me", "id")VALUES($x$,)$x$, '7'::integer)RETURNING id`,
    ],
    [
      `INSERT INTO t ("na""me") (((VALUES ((('a')))))) RETURNING id`,
      `INSERT INTO t ("na""me", "id") (((VALUES ((('a')), '7'::integer)))) RETURNING id`,
    ],
    [
      `INSERT INTO t ("na""me", id) VALUES ((ARRAY['a',']'])[1], nextval('s')) RETURNING id`,
      `INSERT INTO t ("na""me", id) VALUES ((ARRAY['a',']'])[1], '7'::integer) RETURNING id`,
    ],
  ])('%s', (sql, expected) => {
    expect(anew(sql, id, [['7']])?.text).toBe(expected);
  });

  it('gives what a later currval has shown', () => {
    const given = new Map([[1, text('9')]]);
    const written = anew(`INSERT INTO t ("na""me") VALUES ('a')`, null, [], { given });
    expect(written?.text).toBe(`INSERT INTO t ("na""me", "id") VALUES ('a', ('9'::bigint)::integer)`);
  });

  it('gives the time of the transaction to columns that it fills, seen or not', () => {
    const written = anew(`INSERT INTO t (id) VALUES (1), (2)`, null, [], { knowledge: knowing({ time: T }) });
    const at = `((${T})::timestamp with time zone)`;
    expect(written?.text).toBe(`INSERT INTO t (id, "at") VALUES (1, ${at}), (2, ${at})`);
  });

  it('makes up nothing where the client saw nothing', () => {
    expect(anew(`INSERT INTO t (id) VALUES (1)`, null, [])?.text).toBe(null);
    expect(anew(`INSERT INTO t DEFAULT VALUES`, null, [])?.text).toBe(null);
    expect(anew(`INSERT INTO other DEFAULT VALUES RETURNING id`, id, [['7']])?.text).toBe(null);
  });

  it('leaves the rows that were not seen to their default', () => {
    const sql = `INSERT INTO t ("na""me") VALUES ('a'), ('b') RETURNING id`;
    expect(anew(sql, id, [['7']], { complete: false })?.text).toBe(
      `INSERT INTO t ("na""me", "id") VALUES ('a', '7'::integer), ('b', DEFAULT) RETURNING id`,
    );
    const skipping = `INSERT INTO t ("na""me") VALUES ('a'), ('b') ON CONFLICT DO NOTHING RETURNING id`;
    const written = anew(skipping, id, [['7']]);
    expect(written?.text).toBe(null);
    expect(written?.doubts.get('id')).toMatch(/cannot be told apart/);
  });

  it('says OVERRIDING where it must, once', () => {
    const columns = TABLE.columns.map((each) => ({ ...each, identityAlways: each.name === 'id' }));
    const relation = { ...TABLE, columns };
    expect(anew(`INSERT INTO t ("na""me") VALUES ('a') RETURNING id`, id, [['7']], { relation })?.text).toBe(
      `INSERT INTO t ("na""me", "id") OVERRIDING SYSTEM VALUE VALUES ('a', '7'::integer) RETURNING id`,
    );
    expect(
      anew(`INSERT INTO t OVERRIDING USER VALUE VALUES (1, 'a') RETURNING id`, id, [['7']], { relation })?.text,
    ).toBe(`INSERT INTO t OVERRIDING SYSTEM VALUE VALUES ('7'::integer, 'a') RETURNING id`);
    expect(
      anew(`INSERT INTO t OVERRIDING SYSTEM VALUE VALUES (DEFAULT, 'a') RETURNING id`, id, [['7']], { relation })?.text,
    ).toBe(`INSERT INTO t OVERRIDING SYSTEM VALUE VALUES ('7'::integer, 'a') RETURNING id`);
  });

  it('doubts what a trigger may fill, and what is computed from the unseen', () => {
    const relation = { ...TABLE, triggers: true };
    expect(anew(`INSERT INTO t DEFAULT VALUES RETURNING id`, id, [['7']], { relation })?.doubts.get('id')).toMatch(
      /trigger/,
    );
    const written = anew(`INSERT INTO t DEFAULT VALUES RETURNING id * 2 AS twice`, [value('twice', INT4)], [['14']]);
    expect(written?.doubts.get('twice')).toMatch(/computed/);
  });

  it('does not take the row before the change for the one after it', () => {
    const written = anew(`INSERT INTO t DEFAULT VALUES RETURNING WITH (OLD AS x) x.id`, id, [['7']]);
    expect(written?.text).toBe(null);
  });
});

describe('time', () => {
  const knowledge = knowing({ time: T });
  it.each([
    ["SELECT 1 FROM x WHERE a < now() - '1 d'::interval", `SELECT 1 FROM x WHERE a < (${T}) - '1 d'::interval`],
    ['UPDATE x SET a = Current_Date, b = LOCALTIME(2)', `UPDATE x SET a = ((${T})::date), b = ((${T})::time(2))`],
    ['SELECT a.b IS DISTINCT FROM now(), x FROM y', `SELECT a.b IS DISTINCT FROM (${T}) AS "?column?", x FROM y`],
    ['SELECT now()::date FROM x', `SELECT (${T})::date AS "now" FROM x`],
    ['SELECT (SELECT now()) , 1 "from" FROM x', `SELECT (SELECT (${T}) AS "now") AS "now" , 1 "from" FROM x`],
    ['SELECT pg_catalog.now() AS "from" FROM x', `SELECT (${T}) AS "from" FROM x`],
    ['SELECT * FROM current_date', `SELECT * FROM COALESCE(((${T})::date)) AS "current_date"`],
    [
      'SELECT \'now()\', mine.now(), "now" FROM x WHERE now() > a',
      `SELECT 'now()', mine.now(), "now" FROM x WHERE (${T}) > a`,
    ],
  ])('%s', (sql, expected) => {
    expect(anew(sql, null, [], { knowledge })?.text).toBe(expected);
  });

  it('stays with the server when the client saw none, and that is said', () => {
    const written = anew('SELECT n FROM x WHERE a < now()', [value('n', INT4)], [['1']]);
    expect(written?.text).toBe(null);
    expect(written?.doubts.get('n')).toMatch(/time of the transaction/);
  });

  const micros = (at: bigint) => {
    const bytes = Buffer.alloc(8);
    bytes.writeBigInt64BE(at);
    return { bytes, format: 1 as const };
  };

  it.each<[string, SeenValue, number, number, string | null]>([
    ['text', text('2024-05-06 07:08:09.1+02'), 1184, -1, `'2024-05-06 07:08:09.1+02'::timestamptz`],
    ['binary', micros(0n - 1n), 1184, -1, `'1999-12-31 23:59:59.999999+00'::timestamptz`],
    ['three digits', text('2024-05-06 07:08:09.1+02'), 1184, 3, `'2024-05-06 07:08:09.1+02'::timestamptz(3)`],
    ['without a zone', micros(1_000_001n), 1114, -1, `('2000-01-01 00:00:01.000001'::timestamp)::timestamptz`],
    ['infinity', text('infinity'), 1184, -1, null],
    ['binary infinity', micros((1n << 63n) - 1n), 1184, -1, null],
    ['NULL', text(null), 1184, -1, null],
  ])('is learnt from %s', (_, at, type, modifier, expected) => {
    const knowledge = knowing();
    const sql = 'SELECT now()';
    const answer = { text: sql, columns: [value('now', type, modifier)], rows: [[at]], complete: true };
    learn(read(sql)!, answer, schemaOf(), knowledge);
    expect(knowledge.time).toBe(expected);
  });

  it('is learnt from a column that it fills, and not from one that a trigger may fill', () => {
    const sql = 'INSERT INTO t DEFAULT VALUES RETURNING at';
    const answer = seen(sql, [AT], [['2024-05-06 07:08:09.123456+00']]);
    const one = knowing();
    learn(read(sql)!, answer, schemaOf(), one);
    expect(one.time).toBe(T);
    const other = knowing();
    learn(read(sql)!, answer, schemaOf({ ...TABLE, triggers: true }), other);
    expect(other.time).toBe(null);
  });
});

describe('SELECT', () => {
  it('is answered by what was seen, with the names that it had', () => {
    const columns = [value('nextval', 20), value('x', TEXT), value('?column?', INT4)];
    const written = anew(`SELECT nextval('s'), gen_random_uuid()::text AS x, 1 + 1`, columns, [['7', 'u', '2']]);
    expect(written).toEqual({ text: `SELECT '7'::bigint AS "nextval", 'u'::text AS x, 1 + 1`, doubts: new Map() });
  });

  it('keeps the parameters of what it replaces', () => {
    const written = anew('SELECT random() * $1 r', [value('r', TEXT)], [['5']]);
    expect(written?.text).toBe(`SELECT CASE WHEN true THEN '5'::text ELSE random() * $1 END r`);
  });

  it('calls again what changes something, and doubts its answer', () => {
    const written = anew('SELECT writes(random())', [value('writes', TEXT)], [['5']]);
    expect(written?.text).toBe(null);
    expect(written?.doubts.get('writes')).toBe('writes()');
  });

  it('leaves other values in several rows of a table alone, and doubts them', () => {
    const written = anew(
      'SELECT random(), a FROM x',
      [value('random', TEXT), value('a', TEXT)],
      [
        ['1', 'a'],
        ['2', 'b'],
      ],
    );
    expect(written).toEqual({ text: null, doubts: new Map([['random', 'random() over the rows of a table']]) });
  });

  it('answers currval and lastval wherever they are asked', () => {
    const knowledge = knowing({ currval: new Map([[500, '7']]), lastval: '8' });
    const written = anew(`UPDATE x SET a = currval('s'::regclass), b = lastval() + currval('unknown')`, null, [], {
      knowledge,
    });
    expect(written?.text).toBe(`UPDATE x SET a = ('7'::bigint), b = ('8'::bigint) + currval('unknown')`);
  });
});

describe('sequences', () => {
  it('are drawn from and asked in the order of the statements', () => {
    const knowledge = knowing();
    const run = (sql: string, columns: readonly ResultColumn[] | null, rows: (string | null)[][], complete = true) =>
      learn(read(sql)!, seen(sql, columns, rows, complete), schemaOf(), knowledge);
    const two = `INSERT INTO t ("na""me") VALUES ('a'), ('b') RETURNING id`;
    expect(run(two, [ID], [['5'], ['6']]).drawn).toEqual([
      { sequence: 500, attribute: 1, rows: 2, values: [text('5'), text('6')] },
    ]);
    expect([knowledge.currval.get(500), knowledge.lastval, knowledge.held.get(500)]).toEqual(['6', '6', 6n]);
    expect(run(`SELECT currval('s'), lastval()`, [value('a', 20), value('b', 20)], [['6', '6']])).toEqual({
      drawn: [],
      asked: [
        { sequence: 500, value: text('6') },
        { sequence: null, value: text('6') },
      ],
    });
    expect(run(two, [ID], [['7']], false).drawn).toEqual([
      { sequence: 500, attribute: 1, rows: 2, values: [text('7')] },
    ]);
    expect([knowledge.currval.has(500), knowledge.lastval, knowledge.held.get(500)]).toEqual([false, null, 7n]);
    run(`SELECT nextval('s')`, [value('nextval', 20)], [['9']]);
    expect([knowledge.currval.get(500), knowledge.lastval]).toEqual(['9', '9']);
    expect(run(`INSERT INTO t DEFAULT VALUES`, null, []).drawn).toEqual([
      { sequence: 500, attribute: 1, rows: 1, values: null },
    ]);
    expect([knowledge.currval.has(500), knowledge.lastval, knowledge.held.get(500)]).toEqual([false, null, 9n]);
  });

  it('say nothing of what ON CONFLICT DO UPDATE may have found', () => {
    const knowledge = knowing();
    const sql = `INSERT INTO t (id) VALUES (DEFAULT) ON CONFLICT ("na""me") DO UPDATE SET at = now() RETURNING id`;
    const { drawn } = learn(read(sql)!, seen(sql, [ID], [['3']]), schemaOf(), knowledge);
    expect(drawn).toEqual([{ sequence: 500, attribute: 1, rows: 1, values: null }]);
    expect(knowledge.currval.has(500)).toBe(false);
  });
});

it('writes long statements anew in reasonable time', () => {
  const rows = Array.from({ length: 10_000 }, (_, i) => `('row ${i}', now())`).join(',');
  const sql = `INSERT INTO t ("na""me", at) VALUES ${rows} RETURNING id`;
  const ids = Array.from({ length: 10_000 }, (_, i) => [String(i)]);
  const started = performance.now();
  const written = anew(sql, [ID], ids, { knowledge: knowing({ time: T }) });
  expect(written?.text).toContain(`('row 9999', (${T}), '9999'::integer) RETURNING id`);
  expect(performance.now() - started).toBeLessThan(10_000);
}, 20_000);
