import { serialize } from 'pg-protocol';
import { afterEach, beforeAll, describe, expect, it } from 'vitest';
import { readCatalogue, StatementSchema } from '../../codecs/postgres/mutables/catalogue.js';
import { adjust, gather, type PreparedStatement, plan, reserve } from '../../codecs/postgres/mutables/plan.js';
import type { Knowledge } from '../../codecs/postgres/mutables/types.js';
import type { Exchange, Repetition, SeenRequest } from '../../core/contract/index.js';
import { errorFields, message, RawClient, rowOf } from '../kit/gateway.js';
import { REQUEST } from '../kit/requests.js';
import { useServer } from '../kit/servers.js';

const held = useServer();

const LETTERS = Array.from({ length: 94 }, (_, i) => String.fromCharCode(33 + i)).join('');

const open: RawClient[] = [];
afterEach(async () => {
  for (const client of open.splice(0)) await client.end();
});

async function login(params: Record<string, string> = {}): Promise<RawClient> {
  const client = await RawClient.login(held.server, { params });
  open.push(client);
  return client;
}

/** Runs an exchange over a connection that is logged in. @returns also how many times it waited for an answer after sending */
async function run<R>(client: RawClient, exchange: Exchange<R>): Promise<{ result: R; trips: number }> {
  let trips = 0;
  for (let step = exchange.next(); ; ) {
    if (step.done) {
      expect(client.rest()).toEqual([]);
      return { result: step.value, trips };
    }
    if (step.value.want !== 'frame') throw new Error(`wants ${step.value.want}`);
    if (step.value.send !== undefined) {
      trips++;
      await client.write(step.value.send);
    }
    const [frame] = await client.until(LETTERS);
    step = exchange.next(frame.bytes);
  }
}

const nothing = (): Knowledge => ({ time: null, currval: new Map(), lastval: null, held: new Map() });

/** What counts of an answer when it is compared. */
function canonical(frames: readonly { type: string; bytes: Buffer }[]): string[] {
  return frames
    .filter(({ type }) => !'NASZ'.includes(type))
    .map(({ type, bytes }) => (type === 'E' ? `E${errorFields(bytes).code}` : bytes.toString('latin1')));
}

interface Told {
  readonly seen: SeenRequest[];
  readonly answers: string[][];
}

/** A client's transaction on a server that is lost before it commits. */
async function tell(requests: readonly Uint8Array[], client?: RawClient): Promise<Told> {
  client ??= await login();
  const told: Told = { seen: [], answers: [] };
  for (const input of requests) {
    const frames = await client.ask(input);
    told.answers.push(canonical(frames));
    const answer = [Buffer.concat(frames.slice(0, -1).map(({ bytes }) => bytes))];
    told.seen.push({ request: REQUEST, input: [input], answer, done: true });
  }
  await client.end();
  return told;
}

interface Repeated {
  readonly client: RawClient;
  readonly repetitions: readonly (Repetition | null)[];
  readonly answers: string[][];
  readonly knowledge: Knowledge;
  readonly trips: number;
}

async function send(client: RawClient, bytes: Uint8Array, repetition: Repetition | null): Promise<string[]> {
  if (repetition?.before) {
    const prepared = await client.ask(repetition.before);
    expect(prepared.map(({ type }) => type).join('')).toMatch(/^(31)+Z$/);
  }
  return canonical(await client.ask(repetition?.bytes ?? bytes));
}

/** Repeats it on a fresh connection. The unit is left open. */
async function repeat(
  { seen }: Told,
  prepared: ReadonlyMap<string, PreparedStatement> = new Map(),
  client?: RawClient,
): Promise<Repeated> {
  client ??= await login();
  for (const { parse } of prepared.values()) await client.ask(Buffer.concat([parse, serialize.sync()]));
  const gathered = gather(seen, prepared);
  if (gathered === null) throw new Error('nothing was gathered');
  await run(client, reserve([gathered], ''));
  const knowledge = nothing();
  const { result: repetitions, trips } = await run(client, plan(gathered, knowledge, '', null));
  expect(repetitions).toHaveLength(seen.length);
  const answers: string[][] = [];
  for (const [i, { input }] of seen.entries()) answers.push(await send(client, input[0], repetitions[i]));
  return { client, repetitions, answers, knowledge, trips };
}

const query = (sql: string): Buffer => message('Q', `${sql}\0`);

type Value = string | Buffer | null;

/** Parse, Bind, Describe, Execute, Sync of one statement, as drivers send them. */
function extended(sql: string, values: Value[] = [], options: { binary?: boolean; name?: string } = {}): Buffer {
  const { binary = false, name = '' } = options;
  return Buffer.concat([
    ...(sql === '' ? [] : [serialize.parse({ name, text: sql })]),
    serialize.bind({ statement: name, values, binary }),
    serialize.describe({ type: 'P' }),
    serialize.execute(),
    serialize.sync(),
  ]);
}

async function rows(client: RawClient, sql: string): Promise<(string | null)[][]> {
  return (await client.query(sql)).filter(({ type }) => type === 'D').map(({ bytes }) => rowOf(bytes));
}

/** Makes the next values of a sequence differ from what an earlier transaction got, as a promotion does. */
async function disturb(sql: string): Promise<void> {
  await held.server.query(sql);
}

const SETUP = `
  CREATE TABLE plain (id serial PRIMARY KEY, a text, at timestamptz NOT NULL DEFAULT now());
  CREATE TABLE always (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, u uuid DEFAULT gen_random_uuid(), a text);
  CREATE TABLE child (id int GENERATED BY DEFAULT AS IDENTITY, parent bigint, on_day date DEFAULT CURRENT_DATE);
  CREATE SEQUENCE down INCREMENT -2;
  CREATE SEQUENCE loose;
  CREATE VIEW shown AS SELECT a AS text, id FROM plain;
  CREATE DOMAIN stamp AS timestamptz DEFAULT now();
  CREATE FUNCTION own_stable() RETURNS int LANGUAGE sql STABLE AS 'SELECT 1';
  CREATE FUNCTION own_fixed() RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 1';
  CREATE TABLE fillers (
    plain_now timestamptz DEFAULT now(), word date DEFAULT CURRENT_DATE, cast_now timestamp DEFAULT now()::timestamp,
    later timestamptz DEFAULT now() + interval '1 day', zoned timestamp DEFAULT timezone('utc', now()),
    clock timestamptz DEFAULT clock_timestamp(), random float DEFAULT random(), constant text DEFAULT 'now()',
    code text DEFAULT 'N-' || nextval('loose'), loose int DEFAULT nextval('loose'), stable int DEFAULT own_stable(),
    fixed int DEFAULT own_fixed(), who text DEFAULT CURRENT_USER, domain_now stamp, doubled int GENERATED ALWAYS AS (1 + 1) STORED
  );
  CREATE SCHEMA "Te""nant";
  CREATE TABLE "Te""nant".plain (id serial, extra text DEFAULT 'x', a text);
  CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
  CREATE TABLE touched (id serial, a text);
  CREATE TRIGGER touch BEFORE INSERT ON touched FOR EACH ROW EXECUTE FUNCTION touch();
  CREATE TABLE audited (id serial, a text);
  CREATE TABLE audit (id serial, a text);
  CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO audit (a) VALUES (NEW.a); RETURN NEW; END';
  CREATE TRIGGER audit AFTER INSERT ON audited FOR EACH ROW EXECUTE FUNCTION audit();
`;

beforeAll(async () => {
  await held.server.query(SETUP);
});

describe('what the server is asked', () => {
  const ask = async (relations: string[], more: { functions?: string[]; sequences?: string[] } = {}) => {
    const names = {
      relations: relations.map((name) => ({ schema: undefined, name })),
      functions: (more.functions ?? []).map((name) => ({ schema: undefined, name })),
      sequences: more.sequences ?? [],
    };
    const column = { name: '', table: 0, attribute: 0, type: 1043, modifier: 14 };
    const { result, trips } = await run(await login(), readCatalogue({ names: [names], columns: [column] }));
    return { schema: new StatementSchema(result, null, false), trips };
  };
  const fillers = async (table: string) => {
    const { schema, trips } = await ask([table]);
    const relation = schema.relation(undefined, table)!;
    return {
      kinds: Object.fromEntries(relation.columns.map(({ name, filler }) => [name, filler.kind])),
      relation,
      trips,
    };
  };

  it('tells what fills the columns of a table', async () => {
    const { kinds, relation, trips } = await fillers('fillers');
    expect(kinds).toEqual({
      plain_now: 'time',
      word: 'time',
      cast_now: 'time',
      later: 'volatile',
      zoned: 'volatile',
      clock: 'volatile',
      random: 'volatile',
      constant: 'fixed',
      code: 'volatile',
      loose: 'sequence',
      stable: 'volatile',
      fixed: 'fixed',
      who: 'fixed',
      domain_now: 'time',
      doubled: 'fixed',
    });
    expect(relation.columns.at(-1)).toMatchObject({ name: 'doubled', generated: true, attribute: 15 });
    expect(trips).toBe(2);
  });

  it('tells identities, types and sequences', async () => {
    const { kinds, relation, trips } = await fillers('always');
    expect(kinds).toEqual({ id: 'sequence', u: 'volatile', a: 'fixed' });
    expect(relation).toMatchObject({ kind: 'r', schema: 'public', triggers: false });
    expect(relation.columns[0]).toMatchObject({ identityAlways: true, typeName: 'bigint', type: 20 });
    expect(trips).toBe(1);
    const { schema } = await ask(['child'], {
      sequences: ['down', 'public.loose', 'none', '"'],
      functions: ['lower', 'random'],
    });
    const child = schema.relation(undefined, 'child')!;
    expect(child.columns[0].identityAlways).toBe(false);
    expect(schema.relationOf(child.oid)).toBe(child);
    const sequences = await ask([], {
      sequences: ['down', 'public.loose', 'none'],
      functions: ['lower', 'random', 'none'],
    });
    expect(sequences.schema.sequence('down')).toMatchObject({ name: 'down', increment: -2n });
    expect(sequences.schema.sequence('public.loose')?.increment).toBe(1n);
    expect(sequences.schema.sequence('none')).toBeUndefined();
    expect(sequences.schema.volatility(undefined, 'random')).toBe('v');
    expect(sequences.schema.volatility(undefined, 'lower')).toBe('i');
    expect(sequences.schema.volatility(undefined, 'none')).toBeUndefined();
    expect(sequences.schema.typeName(1043, 14)).toBe('character varying(10)');
  });

  it('tells what stands behind a view, and triggers', async () => {
    const { kinds } = await fillers('shown');
    expect(kinds).toEqual({ text: 'fixed', id: 'sequence' });
    expect((await fillers('touched')).relation.triggers).toBe(true);
    expect((await fillers('audited')).relation.triggers).toBe(false);
  });
});

/** Repeats a unit whose answers must all be the same, commits it, and tells what is stored. */
async function same(requests: readonly Uint8Array[], check: string, options: { disturb?: string } = {}) {
  const told = await tell(requests);
  if (options.disturb !== undefined) await disturb(options.disturb);
  const repeated = await repeat(told);
  expect(repeated.answers).toEqual(told.answers);
  await repeated.client.query('COMMIT');
  return { ...repeated, stored: await rows(repeated.client, check) };
}

const value = (answers: readonly string[], row = 0): string => {
  const frame = Buffer.from(answers.filter((each) => each[0] === 'D')[row], 'latin1');
  return rowOf(frame)[0]!;
};

describe('a unit that is repeated', () => {
  beforeAll(async () => {
    await held.server.query('TRUNCATE plain, always, child RESTART IDENTITY');
  });

  it('has the ids and times that the client saw, with simple queries', async () => {
    const { answers, stored, repetitions, trips } = await same(
      [
        query('BEGIN'),
        query("INSERT INTO plain (a) VALUES ('it''s \\ é') RETURNING id, at"),
        query("SELECT now(), 'ü'; INSERT INTO child (parent) VALUES (1) RETURNING id; SELECT 2"),
        query("INSERT INTO plain (a) VALUES ('b')"),
      ],
      'SELECT DISTINCT at FROM plain WHERE a IS NOT NULL',
      { disturb: "SELECT nextval('plain_id_seq'), nextval('child_id_seq') FROM generate_series(1, 5)" },
    );
    expect(repetitions[0]).toBeNull();
    expect(repetitions.every((each) => each === null || each.before === null)).toBe(true);
    expect(stored).toHaveLength(1);
    expect(stored[0][0]).toBe(value(answers[2]));
    // One for the catalogue: all sequences are far enough already.
    expect(trips).toBe(1);
  });

  it('has them in extended requests, in text and in binary form', async () => {
    for (const binary of [false, true]) {
      const values = [binary ? Buffer.from('t') : 't'];
      const { answers, repetitions, client } = await same(
        [
          query('BEGIN'),
          extended('INSERT INTO always (a) VALUES ($1) RETURNING *', values, { binary }),
          extended('SELECT now(), gen_random_uuid(), $1::text', values, { binary }),
          extended('SELECT id FROM always WHERE a = $1', values),
        ],
        'SELECT id::text FROM always ORDER BY id DESC LIMIT 1',
        { disturb: "SELECT nextval('always_id_seq') FROM generate_series(1, 3)" },
      );
      expect(repetitions.map((each) => each !== null)).toEqual([false, true, true, false]);
      expect(answers[1].length).toBeGreaterThan(3);
      // Nothing but statements of the gateway's own is left behind, and the unnamed one is the client's.
      const left = await rows(client, "SELECT name FROM pg_prepared_statements WHERE name NOT LIKE '\\_outlive%'");
      expect(left).toEqual([]);
      await held.server.query('DELETE FROM always');
    }
  });

  it('uses prepared statements again, several in one request, with columns that only the new server tells', async () => {
    const sql = 'INSERT INTO child (parent) VALUES ($1) RETURNING id';
    const parse = serialize.parse({ name: 'p', text: sql });
    const prepared = new Map([['p', { parse, sql }]]);
    const once = (parent: string) => [
      serialize.bind({ statement: 'p', values: [parent], binary: false }),
      serialize.execute(),
    ];
    const client = await login();
    await client.ask(Buffer.concat([parse, serialize.sync()]));
    const told = await tell(
      [
        query('BEGIN'),
        Buffer.concat([...once('1'), ...once('2'), serialize.sync()]),
        Buffer.concat([...once('3'), serialize.sync()]),
      ],
      client,
    );
    await disturb("SELECT nextval('child_id_seq')");
    const repeated = await repeat(told, prepared);
    expect(repeated.answers).toEqual(told.answers);
    // Its answers do not name the columns.
    expect(repeated.repetitions[2]?.doubts.get('column 1')).toBe('id');
    expect(repeated.trips).toBe(2);
    await repeated.client.query('COMMIT');
    const stored = await rows(repeated.client, 'SELECT id, parent FROM child ORDER BY parent DESC, id DESC LIMIT 3');
    expect(stored.map(([id]) => id).reverse()).toEqual([
      value(told.answers[1]),
      value(told.answers[1], 1),
      value(told.answers[2]),
    ]);
  });

  it('gives an insert the id that a currval or lastval behind it has shown', async () => {
    for (const ask of ["currval('plain_id_seq')", 'lastval()']) {
      const { answers, stored } = await same(
        [query('BEGIN'), query("INSERT INTO plain (a) VALUES ('seen later')"), query(`SELECT ${ask}`)],
        "SELECT id FROM plain WHERE a = 'seen later' ORDER BY id DESC LIMIT 1",
        { disturb: "SELECT nextval('plain_id_seq') FROM generate_series(1, 7)" },
      );
      expect(stored[0][0]).toBe(value(answers[2]));
    }
  });

  it('does not trust a lastval behind a trigger that may have drawn', async () => {
    const told = await tell([
      query('BEGIN'),
      query("INSERT INTO audited (a) VALUES ('x')"),
      query('SELECT lastval()'),
      query('SELECT now()'),
    ]);
    await disturb("SELECT nextval('audit_id_seq'), nextval('audited_id_seq') FROM generate_series(1, 3)");
    const { answers, repetitions } = await repeat(told);
    expect(answers[3]).toEqual(told.answers[3]);
    expect(answers[2]).not.toEqual(told.answers[2]);
    expect(repetitions[2]?.doubts.get('lastval')).toMatch(/sequence/);
  });

  it('means the tables of the search path that it has set', async () => {
    const { answers, stored } = await same(
      [
        query('BEGIN'),
        query('SET LOCAL search_path TO "Te""nant"'),
        query("INSERT INTO plain (a) VALUES ('there') RETURNING id"),
      ],
      'SELECT id FROM "Te""nant".plain',
      { disturb: `SELECT nextval('"Te""nant".plain_id_seq')` },
    );
    expect(stored[0][0]).toBe(value(answers[2]));
  });

  it('repeats errors and savepoints as they were', async () => {
    const told = await tell([
      query('BEGIN'),
      extended("INSERT INTO plain (a) VALUES ('kept') RETURNING id"),
      query('SAVEPOINT s'),
      extended('SELECT now(), 1 / $1::int', ['0']),
      extended('SELECT now()'),
      query('ROLLBACK TO s'),
      extended("INSERT INTO plain (a) VALUES ('again') RETURNING id"),
    ]);
    await disturb("SELECT nextval('plain_id_seq')");
    const { answers, repetitions } = await repeat(told);
    expect(answers).toEqual(told.answers);
    expect(repetitions.map((each) => each !== null)).toEqual([false, true, false, false, false, false, true]);
  });

  it('goes on in the middle of an answer, and has one time before and behind', async () => {
    const told = await tell([
      query('BEGIN'),
      query("INSERT INTO plain (a) VALUES ('unseen')"),
      query('SELECT now(), i FROM generate_series(1, 3) AS i'),
    ]);
    // The client got a row and a half of the last answer, and has asked more since.
    const [answer] = told.seen[2].answer!;
    const first = 1 + answer[4];
    const cut = first + 1 + answer[first + 4] + 9;
    expect(String.fromCharCode(answer[first], answer[cut - 9])).toBe('DD');
    told.seen[2] = {
      ...told.seen[2],
      answer: [answer.subarray(0, first + 3), answer.subarray(first + 3, cut)],
      done: false,
    };
    const late = extended("INSERT INTO plain (a, at) VALUES ('late', now())");
    told.seen.push({ request: REQUEST, input: [late], answer: [], done: false });
    const { answers, client } = await repeat(told);
    expect(answers[2]).toEqual(told.answers[2]);
    await client.query('COMMIT');
    const times = await rows(client, "SELECT DISTINCT at FROM plain WHERE a IN ('unseen', 'late')");
    expect(times).toEqual([[value(told.answers[2])]]);
  });

  it('goes on with a portal of an earlier request', async () => {
    const fetch = Buffer.concat([serialize.execute({ portal: 'c', rows: 2 }), serialize.sync()]);
    const begin = Buffer.concat([
      serialize.parse({ name: 'cursor', text: 'SELECT now(), i FROM generate_series(1, $1::int) AS i' }),
      serialize.bind({ portal: 'c', statement: 'cursor', values: ['5'] }),
      serialize.describe({ type: 'P', name: 'c' }),
      serialize.execute({ portal: 'c', rows: 2 }),
      serialize.sync(),
    ]);
    const { repetitions } = await same([query('BEGIN'), begin, fetch, fetch], 'SELECT 1');
    expect(repetitions.map((each) => each !== null)).toEqual([false, true, false, false]);
  });

  it('leaves a currval alone that nothing accounts for', async () => {
    const told = await tell([
      query('BEGIN'),
      query("INSERT INTO plain (a) VALUES ('x'), ('y')"),
      query("SELECT currval('plain_id_seq')"),
    ]);
    await disturb("SELECT nextval('plain_id_seq')");
    const { answers, repetitions } = await repeat(told);
    expect(answers[2]).not.toEqual(told.answers[2]);
    expect(repetitions[2]?.doubts.get('currval')).toMatch(/no statement before it/);
  });

  it('keeps values in another encoding', async () => {
    const params = { client_encoding: 'LATIN1' };
    const latin = Buffer.from("INSERT INTO plain (a) VALUES ('\xe9') RETURNING id, a", 'latin1');
    const told = await tell(
      [
        query('BEGIN'),
        query("INSERT INTO plain (a) VALUES ('e') RETURNING id, a"),
        message('Q', latin, '\0'),
        query('INSERT INTO plain (a) VALUES (chr(233)) RETURNING id, a'),
      ],
      await login(params),
    );
    await disturb("SELECT nextval('plain_id_seq')");
    const { answers, repetitions } = await repeat(told, new Map(), await login(params));
    expect(answers[1]).toEqual(told.answers[1]);
    expect(repetitions.slice(2)).toEqual([null, null]);
  });

  it('leaves alone what it has made itself', async () => {
    const told = await tell([
      query('BEGIN'),
      query('CREATE TABLE fresh (id serial, at timestamptz DEFAULT now())'),
      query('SELECT now()'),
      extended('INSERT INTO fresh DEFAULT VALUES RETURNING id + 0'),
    ]);
    const { answers } = await repeat(told);
    expect(answers).toEqual(told.answers);
  });

  it('writes a literal that means the same without standard_conforming_strings', async () => {
    const params = { options: '-c standard_conforming_strings=off -c escape_string_warning=off' };
    const told = await tell(
      [
        query('BEGIN'),
        query("INSERT INTO plain (a) VALUES ('one') RETURNING id, at"),
        query("INSERT INTO plain (a) VALUES ('\\\\') RETURNING id, a"),
      ],
      await login(params),
    );
    const { answers, repetitions } = await repeat(told, new Map(), await login(params));
    expect(answers[1]).toEqual(told.answers[1]);
    expect(repetitions[2]).toBeNull();
  });
});

describe('sequences', () => {
  const last = async (name: string) =>
    (await held.server.query<{ last: string }>(`SELECT last_value::text AS last FROM ${name}`)).rows[0].last;

  it('are advanced to what clients hold, and never set back', async () => {
    await held.server.query(
      'CREATE SEQUENCE ahead; CREATE SEQUENCE behind; CREATE SEQUENCE far; CREATE SEQUENCE below INCREMENT -2',
    );
    const told = await tell([
      query('BEGIN'),
      query("SELECT nextval('ahead'), nextval('behind') FROM generate_series(1, 50)"),
      query("SELECT nextval('below') FROM generate_series(1, 5)"),
      query("SELECT setval('far', 7000000); SELECT nextval('far')"),
    ]);
    // As on a server that has lost the end of the log, or that others have gone on with.
    await held.server.query(
      "SELECT setval('ahead', 90); SELECT setval('behind', 1, false); SELECT setval('below', -1, false); SELECT setval('far', 20)",
    );
    const client = await login();
    await run(client, reserve([gather(told.seen, new Map())!, gather(told.seen, new Map())!], ''));
    expect(await last('ahead')).toBe('90');
    expect(await last('behind')).toBe('50');
    expect(await last('below')).toBe('-9');
    expect(await last('far')).toBe('7000001');
    const error = (await client.query('SELECT lastval()')).find(({ type }) => type === 'E');
    expect(error && errorFields(error.bytes).code).toBe('55000');
  });

  it('that the user may not advance are left as they are', async () => {
    await held.server.query(`
      CREATE SEQUENCE guarded; CREATE SEQUENCE granted; CREATE ROLE little LOGIN; GRANT USAGE ON SEQUENCE granted TO little`);
    const told = await tell([query('BEGIN'), query("SELECT nextval('guarded'), nextval('granted')")]);
    await held.server.query("SELECT setval('guarded', 1, false); SELECT setval('granted', 1, false)");
    await run(await login({ user: 'little' }), reserve([gather(told.seen, new Map())!], ''));
    expect(await last('granted')).toBe('1');
    const { rows } = await held.server.query("SELECT nextval('granted') AS granted, nextval('guarded') AS guarded");
    expect(rows).toEqual([{ granted: '2', guarded: '1' }]);
    // An identity needs no right on its sequence, and so it cannot be advanced by whoever may insert.
    await held.server.query(`
      CREATE TABLE owned (id int GENERATED ALWAYS AS IDENTITY); GRANT SELECT, INSERT ON owned TO little`);
    const insert = await tell([query('BEGIN'), query('INSERT INTO owned DEFAULT VALUES RETURNING id')]);
    await held.server.query('ALTER SEQUENCE owned_id_seq RESTART');
    const { answers, repetitions } = await repeat(insert, new Map(), await login({ user: 'little' }));
    expect(answers).toEqual(insert.answers);
    expect(repetitions[1]?.doubts.get('id')).toBe('the user may not advance its sequence');
  });
});

describe('what the client asks after the move', () => {
  it('agrees with what it saw before', async () => {
    const told = await tell([
      query('BEGIN'),
      query("INSERT INTO plain (a) VALUES ('moved') RETURNING id"),
      query('SELECT now()'),
    ]);
    await disturb("SELECT nextval('plain_id_seq')");
    const { client, knowledge } = await repeat(told);
    const id = value(told.answers[1]);
    const ask = async (bytes: Buffer) => await send(client, bytes, adjust(bytes, new Map(), knowledge));
    expect(value(await ask(query("SELECT currval('plain_id_seq')")))).toBe(id);
    expect(value(await ask(extended('SELECT lastval(), $1::int', ['1'])))).toBe(id);
    expect(await ask(query('SELECT now()'))).toEqual(told.answers[2]);
    expect(await ask(extended('INSERT INTO plain (a) VALUES ($1) RETURNING at', ['late']))).toContain(
      told.answers[2].find((each) => each[0] === 'D'),
    );
    expect(adjust(query('SELECT a FROM plain'), new Map(), knowledge)).toBeNull();
    expect(adjust(query('SELECT now()'), new Map(), nothing())).toBeNull();
  });
});
