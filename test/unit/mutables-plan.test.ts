import { serialize } from 'pg-protocol';
import { describe, expect, it } from 'vitest';
import { readBind, writeBind } from '../../codecs/postgres/mutables/answers.js';
import type { Step } from '../../codecs/postgres/mutables/gather.js';
import { type Gathered, gather, type PreparedStatement, partAt, plan } from '../../codecs/postgres/mutables/plan.js';
import type { Knowledge } from '../../codecs/postgres/mutables/types.js';
import { WARM_FOUND, WARM_UNIT, warmUp } from '../../codecs/postgres/mutables/warm.js';
import type { Repetition, SeenRequest } from '../../core/contract/index.js';
import { message } from '../kit/gateway.js';
import { REQUEST } from '../kit/requests.js';

const int16 = (n: number): Buffer => {
  const bytes = Buffer.alloc(2);
  bytes.writeInt16BE(n);
  return bytes;
};
const int32 = (n: number): Buffer => {
  const bytes = Buffer.alloc(4);
  bytes.writeInt32BE(n);
  return bytes;
};

/** RowDescription of columns of table 77, numbered from 1, of type int8. */
const described = (...names: string[]): Buffer =>
  message(
    'T',
    int16(names.length),
    ...names.flatMap((name, i) => [`${name}\0`, int32(77), int16(i + 1), int32(20), int16(8), int32(-1), int16(0)]),
  );
const row = (...values: (string | Buffer | null)[]): Buffer =>
  message(
    'D',
    int16(values.length),
    ...values.flatMap((value) => (value === null ? [int32(-1)] : [int32(Buffer.byteLength(value)), value])),
  );
const complete = (tag: string): Buffer => message('C', `${tag}\0`);
const failed = message('E', 'SERROR\0C23505\0Mno\0\0');
const notice = message('N', 'SNOTICE\0C00000\0Mheard\0\0');
const [PARSED, BOUND, CLOSED, NO_DATA, SUSPENDED] = ['1', '2', '3', 'n', 's'].map((type) => message(type));

const query = (sql: string): Buffer => message('Q', `${sql}\0`);

function seen(input: Buffer | Buffer[], answer: Buffer[] | null, done = true): SeenRequest {
  return { request: REQUEST, input: Array.isArray(input) ? input : [input], answer, done };
}

function steps(requests: readonly SeenRequest[], prepared = new Map<string, PreparedStatement>()): readonly Step[] {
  const gathered = gather(requests, prepared);
  if (gathered === null) throw new Error('nothing was gathered');
  return gathered.steps;
}

const texts = (step: Step): (string | null)[][] =>
  step.seen.rows.map((values) => values.map(({ bytes }) => (bytes === null ? null : Buffer.from(bytes).toString())));

describe('what of a unit is gathered', () => {
  it('is nothing when the client saw nothing that a server makes up', () => {
    const plain = [
      seen(query('BEGIN'), [complete('BEGIN')]),
      seen(query("INSERT INTO t VALUES (now(), nextval('s'))"), [complete('INSERT 0 1')]),
      seen(query('SELECT a FROM t'), [described('a'), row('1'), complete('SELECT 1')]),
      seen(query('INSERT INTO t DEFAULT VALUES RETURNING id'), [], false),
      seen(query('INSERT INTO t DEFAULT VALUES RETURNING id'), null),
    ];
    expect(gather(plain, new Map())).toBeNull();
  });

  it('is told by the prepared text when a statement is used again', () => {
    const run = Buffer.concat([serialize.bind({ statement: 'p' }), serialize.execute(), serialize.sync()]);
    const request = seen(run, [BOUND, row('1'), complete('INSERT 0 1')]);
    const parse = (sql: string) => new Map([['p', { parse: serialize.parse({ name: 'p', text: sql }), sql }]]);
    expect(gather([request], parse('SELECT a FROM t'))).toBeNull();
    const [step] = steps([request], parse('INSERT INTO t DEFAULT VALUES RETURNING id'));
    expect(step.seen.text).toBe('INSERT INTO t DEFAULT VALUES RETURNING id');
    expect(step.seen.columns).toBeNull();
    expect(texts(step)).toEqual([['1']]);
  });
});

describe('a simple query', () => {
  it('is cut into its statements, each with its own answer', () => {
    const sql = "/* é */ SELECT now(); UPDATE t SET a = ';';; INSERT INTO t DEFAULT VALUES RETURNING id, b ; ";
    const found = steps([
      seen(query(sql), [
        described('now'),
        row('2020'),
        complete('SELECT 1'),
        notice,
        complete('UPDATE 3'),
        described('id', 'b'),
        row('7', null),
        complete('INSERT 0 1'),
      ]),
    ]);
    expect(found.map(({ seen }) => seen.text)).toEqual([
      'SELECT now()',
      "UPDATE t SET a = ';'",
      'INSERT INTO t DEFAULT VALUES RETURNING id, b',
    ]);
    expect(found.map(texts)).toEqual([[['2020']], [], [['7', null]]]);
    expect(found[2].seen.columns?.map(({ name, table, attribute }) => [name, table, attribute])).toEqual([
      ['id', 77, 1],
      ['b', 77, 2],
    ]);
    expect(found.every(({ seen, fixed }) => seen.complete && !fixed)).toBe(true);
    const bytes = query(sql);
    for (const { place, seen } of found) {
      if (place.kind !== 'query') throw new Error('not a place in a query');
      expect(bytes.toString('utf8', place.start, place.end)).toBe(seen.text);
    }
  });

  it('that was cut in its answer has the rows that came whole', () => {
    const answer = Buffer.concat([described('id'), row('1'), row('2'), row('3')]);
    const pieces = [answer.subarray(0, 9), answer.subarray(9, answer.length - 1)];
    const [step] = steps([seen(query('SELECT now() FROM t'), pieces, false)]);
    expect(texts(step)).toEqual([['1'], ['2']]);
    expect(step.seen.complete).toBe(false);
  });

  it('that failed is left as it is, and so is all up to the rollback', () => {
    const insert = 'INSERT INTO t DEFAULT VALUES RETURNING id';
    const ok = [described('id'), row('1'), complete('INSERT 0 1')];
    const found = steps([
      seen(query(insert), ok),
      seen(query(insert), [failed]),
      seen(query(insert), [failed]),
      seen(query('ROLLBACK TO a'), [complete('ROLLBACK')]),
      seen(query(insert), ok),
    ]);
    expect(found.map(({ fixed, failed }) => [fixed, failed])).toEqual([
      [false, false],
      [true, true],
      [true, true],
      [true, true],
      [false, false],
    ]);
  });

  it('of which only a digest was kept is left as it is', () => {
    const found = steps([
      seen(query('SELECT now()'), [described('now'), row('2020'), complete('SELECT 1')]),
      seen(query('SELECT random()'), null),
    ]);
    expect(found.map(({ fixed }) => fixed)).toEqual([false, true]);
  });

  it('whose answer does not fit its text is left as it is', () => {
    const [step] = steps([seen(query('SELECT now()'), [described('now'), row('1'), complete('SELECT 1'), row('2')])]);
    expect(step.fixed).toBe(true);
  });

  it('behind a change of the search path is marked', () => {
    const found = steps([
      seen(query('SELECT now()'), [described('now'), row('2020'), complete('SELECT 1')]),
      seen(query('SET LOCAL search_path TO other'), [complete('SET')]),
      seen(query('SELECT role FROM t'), [described('role'), complete('SELECT 0')]),
    ]);
    expect(found.map(({ elsewhere }) => elsewhere)).toEqual([false, false, true]);
    const column = steps([
      seen(query('SELECT role, now() FROM t'), [described('role', 'now'), row('1', '2'), complete('SELECT 1')]),
      seen(query('SELECT 1'), [described('x'), complete('SELECT 0')]),
    ]);
    expect(column.map(({ elsewhere }) => elsewhere)).toEqual([false, false]);
  });
});

describe('an extended request', () => {
  const insert = 'INSERT INTO t (a) VALUES ($1) RETURNING id, b';

  it('is read frame by frame, with the columns that Describe told', () => {
    const bytes = Buffer.concat([
      serialize.parse({ name: 'p', text: insert, types: [25] }),
      serialize.describe({ type: 'S', name: 'p' }),
      serialize.bind({ statement: 'p', values: ['x'] }),
      serialize.describe({ type: 'P' }),
      serialize.execute(),
      serialize.bind({ statement: 'p', values: ['y'], binary: true }),
      serialize.execute(),
      serialize.close({ type: 'S', name: 'p' }),
      serialize.sync(),
    ]);
    const eight = Buffer.alloc(8, 1);
    const found = steps([
      seen(bytes, [
        PARSED,
        message('t', int16(1), int32(25)),
        described('id', 'b'),
        BOUND,
        described('id', 'b'),
        row('1', 'one'),
        complete('INSERT 0 1'),
        BOUND,
        row(eight, null),
        complete('INSERT 0 1'),
        CLOSED,
      ]),
    ]);
    expect(found).toHaveLength(2);
    expect(texts(found[0])).toEqual([['1', 'one']]);
    expect(found[1].seen.rows[0]).toEqual([
      { bytes: eight, format: 1 },
      { bytes: null, format: 1 },
    ]);
    expect(found[1].seen.columns?.map(({ name }) => name)).toEqual(['id', 'b']);
    expect(found.map(({ place }) => place.kind === 'bind' && place.types)).toEqual([[25], [25]]);
    for (const { place } of found) expect(place.kind === 'bind' && bytes[place.at]).toBe(0x42);
  });

  it('goes on with a portal that an earlier one has bound', () => {
    const first = Buffer.concat([
      serialize.parse({ text: 'SELECT now(), a FROM t' }),
      serialize.bind({ portal: 'c' }),
      serialize.execute({ portal: 'c', rows: 1 }),
      serialize.sync(),
    ]);
    const next = Buffer.concat([serialize.execute({ portal: 'c', rows: 1 }), serialize.sync()]);
    const found = steps([
      seen(first, [PARSED, BOUND, row('t', '1'), SUSPENDED]),
      seen(next, [row('t', '2'), complete('SELECT 1')]),
    ]);
    expect(found).toHaveLength(1);
    expect(texts(found[0])).toEqual([
      ['t', '1'],
      ['t', '2'],
    ]);
    expect(found[0]).toMatchObject({ request: 0, seen: { complete: true } });
  });

  it('is skipped behind its error, and forgets closed statements', () => {
    const bytes = Buffer.concat([
      serialize.bind({ statement: 'p', values: ['x'] }),
      serialize.execute(),
      serialize.bind({ statement: 'p', values: ['x'] }),
      serialize.execute(),
      serialize.sync(),
    ]);
    const prepared = new Map([['p', { parse: serialize.parse({ name: 'p', text: insert }), sql: insert }]]);
    const found = steps([seen(bytes, [BOUND, row('1', 'b'), complete('INSERT 0 1'), BOUND, failed])], prepared);
    expect(found.map(({ failed, fixed }) => [failed, fixed])).toEqual([
      [false, false],
      [true, true],
    ]);
    const close = Buffer.concat([serialize.close({ type: 'S', name: 'p' }), serialize.sync()]);
    const shown = seen(query('SELECT now()'), [described('now'), row('2020'), complete('SELECT 1')]);
    expect(steps([shown, seen(close, [CLOSED]), seen(bytes, [], false)], prepared)).toHaveLength(1);
    expect(
      steps([shown, seen(query('DEALLOCATE p'), [complete('DEALLOCATE')]), seen(bytes, [], false)], prepared),
    ).toHaveLength(2);
    expect(steps([shown, seen(bytes, [], false)], prepared)).toHaveLength(3);
  });

  it('that makes what it uses is left as it is', () => {
    const bytes = Buffer.concat([
      serialize.parse({ text: 'CREATE TABLE t (id serial, b text)' }),
      serialize.bind(),
      serialize.execute(),
      serialize.parse({ text: 'INSERT INTO t DEFAULT VALUES RETURNING id' }),
      serialize.bind(),
      serialize.execute(),
      serialize.sync(),
    ]);
    const made = seen(bytes, [
      PARSED,
      BOUND,
      complete('CREATE TABLE'),
      PARSED,
      BOUND,
      row('1'),
      complete('INSERT 0 1'),
    ]);
    expect(steps([made]).map(({ fixed }) => fixed)).toEqual([false, true]);
  });

  it('with the input of a COPY is left as it is, and what follows is not', () => {
    const bytes = Buffer.concat([
      serialize.parse({ text: '/* c */ COPY t FROM STDIN -- now()' }),
      serialize.bind(),
      serialize.execute(),
      serialize.sync(),
      message('d', 'B\0\0\0\x0a'),
      message('c'),
      serialize.sync(),
    ]);
    const copy = seen(bytes, [PARSED, BOUND, message('G', Buffer.from([0]), int16(0)), complete('COPY 1')]);
    const shown = seen(query('SELECT now()'), [described('now'), row('2020'), complete('SELECT 1')]);
    expect(steps([copy, shown]).map(({ fixed, failed }) => [fixed, failed])).toEqual([
      [true, false],
      [false, false],
    ]);
  });

  it('that only reads in front of a statement does not keep that as it is', () => {
    const bytes = Buffer.concat([
      ...['/* a */ BEGIN', '-- b\nUPDATE t SET a = 1', 'INSERT INTO t DEFAULT VALUES RETURNING id'].flatMap((text) => [
        serialize.parse({ text }),
        serialize.bind(),
        serialize.execute(),
      ]),
      serialize.sync(),
    ]);
    const done = (tag: string) => [PARSED, BOUND, complete(tag)];
    const answer = [...done('BEGIN'), ...done('UPDATE 1'), PARSED, BOUND, row('1'), complete('INSERT 0 1')];
    expect(steps([seen(bytes, answer)]).map(({ fixed }) => fixed)).toEqual([false, false, false]);
  });

  it('with a Bind that is too short is left as it is', () => {
    const shown = seen(query('SELECT now()'), [described('now'), row('2020'), complete('SELECT 1')]);
    const short = seen(Buffer.concat([message('B', '\0p\0', int16(3)), serialize.sync()]), [], false);
    expect((gather([shown, short], new Map()) as Gathered).count).toBe(2);
  });
});

describe('a Bind', () => {
  const write = (bytes: Buffer, values: Parameters<typeof writeBind>[2]) =>
    Buffer.from(writeBind(readBind(bytes, 0), 'own', values));

  it('keeps all but the name of its statement', () => {
    const bytes = serialize.bind({ portal: 'c', statement: 'p', values: ['x', null], binary: true });
    const renamed = serialize.bind({ portal: 'c', statement: 'own', values: ['x', null], binary: true });
    expect(write(bytes, [])).toEqual(renamed);
  });

  it('keeps what no format, one format and many formats mean when values are added', () => {
    const bind = (formats: number[], values: string[], statement = 'p') =>
      message(
        'B',
        `\0${statement}\0`,
        int16(formats.length),
        ...formats.map(int16),
        int16(values.length),
        ...values.flatMap((value) => [int32(value.length), value]),
        int16(1),
        int16(1),
      );
    const more = [
      { bytes: Buffer.from('seen'), format: 0 },
      { bytes: Buffer.from('1234'), format: 1 },
    ] as const;
    expect(write(bind([], ['a', 'b']), more)).toEqual(bind([0, 0, 0, 1], ['a', 'b', 'seen', '1234'], 'own'));
    expect(write(bind([1], ['a', 'b']), more)).toEqual(bind([1, 1, 0, 1], ['a', 'b', 'seen', '1234'], 'own'));
    expect(write(bind([0, 1], ['a', 'b']), more)).toEqual(bind([0, 1, 0, 1], ['a', 'b', 'seen', '1234'], 'own'));
    const none = write(bind([], []), [{ bytes: null, format: 0 }]);
    expect(readBind(none, 0)).toMatchObject({ formats: [0], values: [null], resultFormats: [1] });
  });
});

describe('the place of a difference', () => {
  const answer = [notice, described('id', 'b'), row('1', 'one'), notice, row('22', 'two'), complete('SELECT 2')];
  const canonical = Buffer.concat(answer.filter((frame) => frame !== notice));
  const at = (text: string) => canonical.indexOf(text);

  it('is a column of a row', () => {
    expect(partAt(answer, at('one') + 2, null)).toBe('b');
    expect(partAt(answer, at('22'), null)).toBe('id');
    expect(partAt(answer, at('two') - 1, null)).toBe('b');
    expect(partAt([row('1', 'x')], 15, null)).toBe('column 2');
  });

  it('is found in the other row where only the length tells that they differ', () => {
    const start = canonical.length - complete('SELECT 2').length - row('22', 'two').length;
    expect(partAt(answer, start + 4, row('22', 'three'))).toBe('b');
    expect(partAt(answer, start + 4, row('2', 'two'))).toBe('id');
    expect(partAt(answer, start + 4, null)).toBeNull();
    expect(partAt(answer, start, complete('SELECT 1'))).toBe('the number of rows');
    expect(partAt(answer, start, failed)).toBe('its outcome: error 23505');
  });

  it('counts an error as its code', () => {
    const behind = [failed, described('id'), row('1')];
    const value = 'E23505'.length + described('id').length + row('1').length - 1;
    expect(partAt(behind, value, null)).toBe('id');
    expect(partAt(behind, 2, null)).toBeNull();
    expect(partAt([complete('SELECT 2')], 12, null)).toBe('the number of rows');
    expect(partAt([NO_DATA], 20, null)).toBeNull();
  });
});

it('warming up understands its own unit, so that it runs what a failover runs', () => {
  expect(() => warmUp()).not.toThrow();
  const gathered = gather(WARM_UNIT, new Map());
  const knowledge: Knowledge = { time: null, currval: new Map(), lastval: null, held: new Map() };
  const { done, value } = plan(gathered!, knowledge, WARM_FOUND.view, WARM_FOUND).next();
  expect(done).toBe(true);
  expect((value as (Repetition | null)[]).map((each) => each !== null)).toEqual([true, true, true]);
});
