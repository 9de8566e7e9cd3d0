import { serialize } from 'pg-protocol';
import { afterAll, expect, it } from 'vitest';
import { everywhere, frameTypes, type Script, show, useStage } from '../kit/stage.js';

/**
 * F7, F8: statements that commit by themselves. The gateway wraps them (BEGIN, the statement, its token, COMMIT), so there are
 * more places where a server can be lost than the client knows of.
 */
const stage = useStage(`
  create table t (id int, v text);
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

const SCRIPTS: [string, Script][] = [
  ['INSERT, simple', (id) => [serialize.query(`insert into t values (${id}, 'x')`)]],
  ['INSERT, extended', (id) => [extended('insert into t values ($1, $2)', id, 'x')]],
  ['INSERT RETURNING, simple', (id) => [serialize.query(`insert into t values (${id}, 'x') returning v, id`)]],
  ['INSERT RETURNING, extended', (id) => [extended('insert into t values ($1, $2) returning v, id', id, 'x')]],
  ['SELECT of a function that inserts, simple', (id) => [serialize.query(`select log_it(${id})`)]],
  ['SELECT of a function that inserts, extended', (id) => [extended('select log_it($1)', id)]],
  ['INSERT, INSERT pipelined', (id) => [
    { send: [serialize.query(`insert into t values (${id}, 'x')`), serialize.query(`select ${id}`)], readies: 2 },
  ]],
];

it.each(SCRIPTS)('%s: once, wherever the server is lost', async (_, script) => {
  const { heard, expected, ids } = await everywhere(stage, script, process.env.HOW as 'cut' ?? 'kill');
  for (const one of heard) expect.soft(one.heard, `${one.where} (${one.id})`).toEqual(expected);
  const rows = await stage.direct<{ id: string; n: number }>(
    'select id::text, count(*)::int as n from t where id::text = any($1) group by id',
    [ids],
  );
  expect(Object.fromEntries(rows.map(({ id, n }) => [id, n]))).toEqual(Object.fromEntries(ids.map((id) => [id, 1])));
});
