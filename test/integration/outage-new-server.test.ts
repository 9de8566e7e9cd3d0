import { expect, it } from 'vitest';
import { holds } from '../kit/fault-proxy.js';
import { useStage } from '../kit/stage.js';

/** F12: the server that took over is lost as well. */
const stage = useStage('create table n (id int primary key, v text)');

let ids = 0;

/** A client with an open transaction of three statements. */
async function openTransaction() {
  const client = await stage.pg();
  const id = ++ids * 100;
  await client.query('begin');
  await client.query('insert into n values ($1, $2)', [id, 'one']);
  await client.query(`select /* second */ v from n where id = ${id}`);
  await client.query('insert into n values ($1, $2)', [id + 1, 'two']);
  return { client, id };
}

const present = (id: number) =>
  stage.direct(`select id - ${id} as id, v from n where id between ${id} and ${id + 99} order by id`);

it('dies during the replay: repeated again when it comes back', async () => {
  const { client, id } = await openTransaction();
  const next = stage.pair.standby;
  let promoted = () => {};
  const isPromoted = new Promise<void>((resolve) => {
    promoted = resolve;
  });
  let died = () => {};
  const hasDied = new Promise<void>((resolve) => {
    died = resolve;
  });
  stage.nextProxy.when('client', holds('/* second */'), async () => {
    await isPromoted;
    await next.kill();
    died();
  });
  await stage.kill();
  promoted();
  await hasDied;
  await next.start();
  expect((await client.query('insert into n values ($1, $2)', [id + 2, 'three'])).rowCount).toBe(1);
  expect((await client.query('commit')).command).toBe('COMMIT');
  expect(await present(id)).toEqual([
    { id: 0, v: 'one' },
    { id: 1, v: 'two' },
    { id: 2, v: 'three' },
  ]);
  expect(client.lost).toEqual([]);
});

it('ends the connection with an error during the replay: repeated again', async () => {
  const { client, id } = await openTransaction();
  stage.proxy.when('client', holds('/* second */'), async () => {
    // The only one that is not active: it waits for the statement that is held back.
    await stage.direct(
      `select pg_terminate_backend(pid, 5000) from pg_stat_activity where state = 'idle in transaction'`,
    );
  });
  stage.proxy.cut();
  await client.query('insert into n values ($1, $2)', [id + 2, 'three']);
  await client.query('commit');
  expect(await present(id)).toHaveLength(3);
  expect(client.lost).toEqual([]);
});

it('dies right after the replay, with a statement under way', async () => {
  const { client, id } = await openTransaction();
  const next = stage.pair.standby;
  const answer = (async () => {
    await stage.kill();
    const died = new Promise<void>((resolve) => {
      stage.proxy.when('client', holds('/* third */'), async () => {
        await next.kill();
        resolve();
      });
    });
    const inserted = client.query(`insert /* third */ into n values (${id + 2}, 'three')`);
    await died;
    await next.start();
    return inserted;
  })();
  expect((await answer).rowCount).toBe(1);
  await client.query('commit');
  expect(await present(id)).toHaveLength(3);
  expect(client.lost).toEqual([]);
});

it.each([true, false])('dies while the outcome of a commit is asked for (committed: %s)', async (committed) => {
  const { client, id } = await openTransaction();
  const next = stage.pair.standby;
  if (committed) {
    // The commit takes effect, its answer is lost with the server.
    stage.proxy.when('server', holds('COMMIT\0'), (connection) => connection.holdServerReplies());
  } else stage.proxy.when('client', holds('commit\0'), (connection) => connection.holdClientBytes());
  const answer = client.query('commit');
  if (committed) await stage.committed(`n where id = ${id}`);
  else {
    const parked = () => stage.proxy.connections.some((c) => c.parked('client').includes('commit\0'));
    await expect.poll(parked).toBe(true);
  }
  let promoted = () => {};
  const isPromoted = new Promise<void>((resolve) => {
    promoted = resolve;
  });
  const died = new Promise<void>((resolve) => {
    stage.nextProxy.when('client', holds('pg_xact_status'), async () => {
      await isPromoted;
      await next.kill();
      resolve();
    });
  });
  await stage.kill();
  promoted();
  await died;
  await next.start();
  expect((await answer).command).toBe('COMMIT');
  expect(await present(id)).toHaveLength(2);
  expect(client.lost).toEqual([]);
});

it('a replay that fails each time ends after failover.attempts', async () => {
  const { client, id } = await openTransaction();
  let attempts = 0;
  const forget = stage.proxy.when(
    'client',
    holds('/* second */'),
    (connection) => {
      attempts++;
      connection.cut();
    },
    { times: 1000 },
  );
  stage.proxy.cut();
  await expect(client.query('select 1')).rejects.toMatchObject({ code: '40001', detail: 'OUTLIVE_REPLAY_ATTEMPTS' });
  expect(attempts).toBeGreaterThan(1);
  expect(attempts).toBeLessThanOrEqual(6);
  forget();
  await expect(client.query('select 1')).rejects.toMatchObject({ code: '25P02' });
  await client.query('rollback');
  expect((await client.query('select 1 as x')).rows).toEqual([{ x: 1 }]);
  expect(await present(id)).toEqual([]);
  expect(client.lost).toEqual([]);
});

it.each([
  ['a read', 'select /* poison */ 1', false],
  ['a write', "insert /* poison */ into n values (-1, 'x')", false],
  ['a read in a transaction', 'select /* poison */ 1', true],
])('a statement that takes its server down each time ends after failover.attempts: %s', async (_, sql, inside) => {
  const client = await stage.pg();
  if (inside) {
    await client.query('begin');
    await client.query('select 1');
  }
  let attempts = 0;
  const forget = stage.proxy.when(
    'client',
    holds('/* poison */'),
    (connection) => {
      attempts++;
      connection.cut();
    },
    { times: 50 },
  );
  await expect(client.query(sql)).rejects.toMatchObject({ code: '40001', detail: 'OUTLIVE_REPLAY_ATTEMPTS' });
  expect(attempts).toBeGreaterThan(1);
  expect(attempts).toBeLessThanOrEqual(7);
  forget();
  if (inside) {
    await expect(client.query('select 1')).rejects.toMatchObject({ code: '25P02' });
    await client.query('rollback');
  }
  expect((await client.query('select 1 as x')).rows).toEqual([{ x: 1 }]);
  expect(client.lost).toEqual([]);
});

it('many losses in one session do not add up to a failure', async () => {
  const client = await stage.pg();
  const id = ++ids * 100;
  await client.query('begin');
  for (let i = 0; i < 12; i++) {
    await client.query('insert into n values ($1, $2)', [id + i, 'x']);
    stage.proxy.cut();
  }
  await client.query('commit');
  for (let i = 0; i < 12; i++) {
    expect((await client.query('select 1 as x')).rows).toEqual([{ x: 1 }]);
    stage.proxy.cut();
  }
  expect(await present(id)).toHaveLength(12);
  expect(client.lost).toEqual([]);
});
