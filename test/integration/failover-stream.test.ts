import { once } from 'node:events';
import { serialize } from 'pg-protocol';
import { expect, it } from 'vitest';
import { eventually } from '../kit/servers.js';
import { type Raw, show, useStage } from '../kit/stage.js';

/** F3, F4: statements that were running, and results that were half delivered, when the server was killed. */
const stage = useStage(`
  create table t (id int primary key, v text);
  insert into t values (1, 'one'), (2, 'two');
  create table big as select i, repeat(chr(65 + i % 26), 100) as v from generate_series(1, 100000) i;
  create table wide as select i, repeat(md5(i::text), 10000) as v from generate_series(1, 40) i;
  alter table wide alter v set storage external;
`);

const ROWS = 100_000;
const NARROW = 'select i, v from big order by i';

/** Checks that rows come once and in order. */
function counting(client: Raw): { n: number; wrong: string[] } {
  const seen = { n: 0, wrong: [] as string[] };
  client.onRow = (body) => {
    seen.n++;
    const i = Number(body.subarray(6, 6 + body.readInt32BE(2)));
    const v = body.subarray(10 + body.readInt32BE(2));
    const right = v.length === 100 ? v[0] === 65 + (i % 26) && v[99] === v[0] : v.length === 320_000;
    if (i !== seen.n || !right) seen.wrong.push(`row ${i} as number ${seen.n}, ${v.length} bytes`);
  };
  return seen;
}

/** Waits until the client got so many bytes, stops reading, and kills the server while it is stuck with the rest. */
async function killAfter(client: Raw, bytes: number): Promise<void> {
  while (client.received < bytes) await once(client.socket, 'data');
  client.socket.pause();
  const line = stage.line(client);
  let before = -1;
  // All buffers between are full when the server's side stands still.
  await eventually(() => before === (before = line.connection.forwarded('server')), { intervalMs: 50 });
  await stage.kill();
  client.socket.resume();
}

it.each([
  ['at its beginning, in a transaction', 1, true],
  ['in its middle, in a transaction', 4_000_000, true],
  ['near its end, in a transaction', 9_000_000, true],
  ['in its middle, outside of a transaction', 4_000_000, false],
])('a result half delivered, cut %s, comes whole', async (_, bytes, transaction) => {
  const client = await stage.raw();
  if (transaction) {
    client.send(serialize.query('begin'), serialize.query("update t set v = 'changed' where id = 1"));
    await client.ready(2);
  }
  const seen = counting(client);
  client.received = 0;
  client.send(serialize.query(NARROW));
  await killAfter(client, bytes);
  expect((await client.ready()).map(show)).toEqual([
    expect.stringMatching(/^T:/),
    `C:SELECT ${ROWS}.`,
    transaction ? 'Z:T' : 'Z:I',
  ]);
  expect(seen).toEqual({ n: ROWS, wrong: [] });
  if (!transaction) return;
  client.send(serialize.query('commit'));
  expect((await client.ready()).map(show)).toEqual(['C:COMMIT.', 'Z:I']);
  expect(await stage.direct('select v from t where id = 1')).toEqual([{ v: 'changed' }]);
  await stage.direct("update t set v = 'one' where id = 1");
});

it('a result of rows longer than any buffer, cut in the middle of one, comes whole', async () => {
  const client = await stage.raw();
  client.send(serialize.query('begin'));
  await client.ready();
  const seen = counting(client);
  client.received = 0;
  client.send(serialize.query('select i, v from wide order by i'));
  await killAfter(client, 2_000_000);
  expect((await client.ready()).map(show)).toEqual([expect.stringMatching(/^T:/), 'C:SELECT 40.', 'Z:T']);
  expect(seen).toEqual({ n: 40, wrong: [] });
});

it.each([
  ['in a transaction', serialize.sync(), true],
  ['outside of a transaction, by Flush', serialize.flush(), false],
])('a portal read in parts, %s, goes on where it was', async (_, boundary, transaction) => {
  const client = await stage.raw();
  if (transaction) {
    client.send(serialize.query('begin'));
    await client.ready();
  }
  const seen = counting(client);
  client.send(
    serialize.parse({ text: NARROW }),
    serialize.bind({ portal: 'c' }),
    serialize.execute({ portal: 'c', rows: 40_000 }),
    boundary,
  );
  await client.until('s', 1);
  client.send(serialize.execute({ portal: 'c', rows: 40_000 }), boundary);
  client.received = 0;
  await killAfter(client, 1_000_000);
  await client.until('s', 2);
  expect(seen.n).toBe(80_000);
  await stage.pair.rebuild();
  await stage.kill();
  client.send(serialize.execute({ portal: 'c', rows: 40_000 }), serialize.sync());
  await client.until('C', 1);
  expect(seen).toEqual({ n: ROWS, wrong: [] });
  await client.until('Z', transaction ? 3 : 1);
  expect(client.transcript().filter((frame) => frame[0] === 'E')).toEqual([]);
});

it('a cursor goes on where it was', async () => {
  const client = await stage.raw();
  client.send(serialize.query('begin'), serialize.query(`declare c cursor for ${NARROW}`));
  await client.ready(2);
  const seen = counting(client);
  client.send(serialize.query('fetch 30000 from c'));
  await client.ready();
  client.received = 0;
  client.send(serialize.query('fetch 40000 from c'));
  await killAfter(client, 1_000_000);
  await client.ready();
  client.send(serialize.query('fetch all from c'), serialize.query('commit'));
  expect((await client.ready(2)).map(show)).toContain('C:COMMIT.');
  expect(seen).toEqual({ n: ROWS, wrong: [] });
});

it('a statement that waits for a lock is run again, once', async () => {
  const client = await stage.pg();
  await client.query('begin');
  await client.query("insert into t values (3, 'three')");
  await stage.direct('begin');
  await stage.direct('select * from t where id = 2 for update');
  const waits = client.query("update t set v = v || '!' where id = 2 returning v");
  await eventually(async () => (await stage.rows("pg_locks where not granted and locktype = 'transactionid'")) > 0);
  await stage.kill();
  expect((await waits).rows).toEqual([{ v: 'two!' }]);
  await client.query('commit');
  expect(await stage.direct('select v from t where id in (2, 3) order by id')).toEqual([{ v: 'two!' }, { v: 'three' }]);
  expect(client.lost).toEqual([]);
});

it.each([true, false])('a statement that runs is run again, once (in a transaction: %s)', async (transaction) => {
  await stage.direct("update t set v = 'one' where id = 1");
  const client = await stage.pg();
  if (transaction) await client.query('begin');
  const runs = client.query('update t set v = v || $1 where id = 1 and pg_sleep(0.5) is not null', ['+']);
  await eventually(async () => (await stage.rows("pg_stat_activity where wait_event = 'PgSleep'")) > 0);
  await stage.kill();
  expect((await runs).rowCount).toBe(1);
  if (transaction) await client.query('commit');
  expect(await stage.direct('select v from t where id = 1')).toEqual([{ v: 'one+' }]);
});
