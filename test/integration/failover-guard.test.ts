import { serialize } from 'pg-protocol';
import { expect, it } from 'vitest';
import { effects, everywhere, expectAsUndisturbed, expectSameEffects, type Script, useStage } from '../kit/stage.js';

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
