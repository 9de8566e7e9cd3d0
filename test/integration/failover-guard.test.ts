import { serialize } from 'pg-protocol';
import { expect, it } from 'vitest';
import {
  effects,
  everywhere,
  expectAsUndisturbed,
  expectSameEffects,
  frameTypes,
  type Raw,
  type Script,
  show,
  useStage,
} from '../kit/stage.js';

/**
 * F7, F8: statements that commit by themselves. The gateway wraps them (BEGIN, the statement, its token, COMMIT), so there are
 * more places where a server can be lost than the client knows of.
 */
const stage = useStage(`
  create table t (id int, v text);
  create table parent (id int primary key);
  create table child (id int references parent deferrable initially deferred);
  create function log_it(id int) returns text language plpgsql as $$
    begin insert into t values (id, 'by function'); return 'done ' || id; end $$;
`);

const extended = (sql: string, ...values: string[]) => ({
  send: [
    serialize.parse({ text: sql }),
    serialize.bind({ values }),
    serialize.describe({ type: 'P' }),
    serialize.execute({}),
    serialize.sync(),
  ],
});

const SCRIPTS: Record<string, Script> = {
  'INSERT, simple': (id) => [serialize.query(`insert into t values (${id}, 'x')`)],
  'INSERT, extended': (id) => [extended('insert into t values ($1, $2)', id, 'x')],
  'INSERT RETURNING, simple': (id) => [serialize.query(`insert into t values (${id}, 'x') returning v, id`)],
  'INSERT RETURNING, extended': (id) => [extended('insert into t values ($1, $2) returning v, id', id, 'x')],
  'SELECT of a function that inserts, simple': (id) => [serialize.query(`select log_it(${id})`)],
  'SELECT of a function that inserts, extended': (id) => [extended('select log_it($1)', id)],
  'INSERT that fails, simple': (id) => [serialize.query(`insert into t values (${id}, 1/0)`)],
  'INSERT that fails, extended': (id) => [extended('insert into t values ($1::int / 0, $1)', id)],
  'INSERT that fails at its end, simple': (id) => [serialize.query(`insert into child values (${id})`)],
  'INSERT that fails at its end, extended': (id) => [extended('insert into child values ($1)', id)],
  'INSERT with a read behind it': (id) => [
    { send: [serialize.query(`insert into t values (${id}, 'x')`), serialize.query(`select ${id}`)], readies: 2 },
  ],
};

const EFFECTS = 'select id::text, v as what from t union all select id::text, id::text from child';

it.each(['cut', 'kill'] as const)('takes effect once, wherever the server is lost (%s)', async (how) => {
  const played = await everywhere(stage, SCRIPTS, how);
  expectAsUndisturbed(played);
  const found = await effects(stage, EFFECTS);
  expectSameEffects(played, found);
  for (const { id, script } of played) {
    expect(found.get(id) ?? [], `${script} ${id}`).toHaveLength(script.includes('fails') ? 0 : 1);
  }
  // Both kinds of doubt were there.
  const { outcomes } = stage.gateway.stats;
  expect(outcomes.get('committed')).toBeGreaterThan(0);
  expect(outcomes.get('not-committed')).toBeGreaterThan(0);
  expect(outcomes.get('unknown') ?? 0).toBe(0);
});

/** Makes the server refuse the next token, as a timeout at that moment would: asks for a function that does not exist. */
function refuseToken(client: Raw): void {
  const line = stage.line(client);
  line.rewrite = (side, chunk) => {
    // FunctionCall (F), length 14.
    const at = side === 'client' ? chunk.indexOf(Buffer.from([0x46, 0, 0, 0, 14])) : -1;
    if (at < 0) return chunk;
    line.rewrite = null;
    const copy = Buffer.from(chunk);
    copy.writeInt32BE(1, at + 5);
    return copy;
  };
}

it('does not claim success when the commit could not be prepared', async () => {
  const client = await stage.raw();
  refuseToken(client);
  client.send(serialize.query("insert into t values (1, 'x')"));
  expect((await client.ready()).map(show)).toEqual([expect.stringMatching(/^E:42883:/), 'Z:I']);
  expect(await stage.rows('t where id = 1')).toBe(0);

  client.send(serialize.query('begin'));
  await client.ready();
  refuseToken(client);
  client.send(serialize.query("insert into t values (2, 'x')"));
  expect((await client.ready()).map(show)).toEqual(['C:INSERT 0 1.', 'Z:T']);
  client.send(serialize.query('commit'));
  expect((await client.ready()).map(show)).toEqual([expect.stringMatching(/^E:40001:.*42883/), 'Z:E']);
  client.send(serialize.query('rollback'), serialize.query("insert into t values (3, 'x')"));
  expect((await client.ready(2)).map(show)).toEqual(['C:ROLLBACK.', 'Z:I', 'C:INSERT 0 1.', 'Z:I']);
  expect(await stage.rows('t where id in (2, 3)')).toBe(1);
});

it('keeps statements apart that a client sends without waiting', async () => {
  const client = await stage.raw();
  client.send(
    ...[1, 2, 3].map((n) => serialize.query(`insert into t values (${n + 10}, 'x')`)),
    serialize.query('select 1/0'),
  );
  expect((await client.ready(4)).map(show)).toEqual([
    ...['C:INSERT 0 1.', 'Z:I', 'C:INSERT 0 1.', 'Z:I', 'C:INSERT 0 1.', 'Z:I'],
    ...['E:22012:division by zero', 'Z:I'],
  ]);
  expect(await stage.rows('t where id in (11, 12, 13)')).toBe(3);
});

it('asks nothing more of the server for a plain read', async () => {
  const client = await stage.raw();
  const line = stage.line(client);
  line.forget();
  client.send(serialize.query('select count(*) from t where v = lower($$X$$)'));
  await client.ready();
  client.send(...extended('select v from t where id = $1', '1').send);
  await client.ready();
  client.send(serialize.query('begin'));
  await client.ready();
  client.send(serialize.query('select 1'));
  await client.ready();
  client.send(serialize.query('commit'));
  await client.ready();
  expect(frameTypes(line.seen('client'))).toBe('QPBDESQQQ');
});
