import { serialize } from 'pg-protocol';
import { beforeEach, expect, it } from 'vitest';
import { holds } from '../kit/fault-proxy.js';
import { useStage } from '../kit/stage.js';

/** F11: another session changed what the transaction had read, between the promotion and the replay. */
const stage = useStage(`
  create table account (id int primary key, owner text, balance int);
`);

beforeEach(async () => {
  await stage.direct('truncate account');
  await stage.direct(`insert into account values (1, 'Ada Secret', 100), (2, 'Bob', 0)`);
});

/** Kills, and when the statement is repeated, lets somebody else be faster. */
async function killAndChange(needle: string, sql: string): Promise<void> {
  const { nextProxy } = stage;
  nextProxy.when('client', holds(needle), () => stage.direct(sql));
  await stage.kill();
}

const READ = 'select owner, balance from account where id = 1';
const CHANGE = "update account set owner = 'Eve Hidden', balance = 55 where id = 1";

it('fails the transaction with 40001, names the statement, keeps the connection, and a retry works', async () => {
  const client = await stage.pg();
  await client.query('begin');
  await client.query('update account set balance = balance + 1 where id = 2');
  expect((await client.query(READ)).rows).toEqual([{ owner: 'Ada Secret', balance: 100 }]);
  await killAndChange(READ, CHANGE);
  const error = await client.query('update account set balance = 0 where id = 1').catch((e) => e);
  expect(error).toMatchObject({ code: '40001', severity: 'ERROR' });
  expect(error.message).toMatch(/statement 3 \(SELECT\)/);
  const whole = JSON.stringify({ ...error, message: error.message });
  for (const secret of ['Ada', 'Eve', 'Secret', 'Hidden', '55', 'account', 'balance'])
    expect(whole).not.toContain(secret);
  await expect(client.query('select 1')).rejects.toMatchObject({ code: '25P02' });
  await client.query('rollback');
  await client.query('begin');
  expect((await client.query(READ)).rows).toEqual([{ owner: 'Eve Hidden', balance: 55 }]);
  await client.query('update account set balance = balance + 1 where id = 2');
  await client.query('commit');
  expect(await stage.direct('select balance from account order by id')).toEqual([{ balance: 55 }, { balance: 1 }]);
  expect(client.lost).toEqual([]);
  expect(stage.gateway.stats.divergences).toBe(1);
});

it('answers COMMIT with the error when it is the next request', async () => {
  const client = await stage.pg();
  await client.query('begin');
  await client.query('update account set balance = balance + 1 where id = 2');
  await client.query(READ);
  await killAndChange(READ, CHANGE);
  await expect(client.query('commit')).rejects.toMatchObject({ code: '40001' });
  // As after any error of a statement, until the client says ROLLBACK.
  await expect(client.query('select 1')).rejects.toMatchObject({ code: '25P02' });
  expect((await client.query('commit')).command).toBe('ROLLBACK');
  expect(await stage.direct('select balance from account where id = 2')).toEqual([{ balance: 0 }]);
  expect((await client.query('select 1 as x')).rows).toEqual([{ x: 1 }]);
});

it('takes ROLLBACK as the next request for what it is', async () => {
  const client = await stage.pg();
  await client.query('begin');
  await client.query('update account set balance = balance + 1 where id = 2');
  await client.query(READ);
  await killAndChange(READ, CHANGE);
  await client.query('rollback');
  await client.query('update account set balance = 7 where id = 2');
  expect(await stage.direct('select balance from account where id = 2')).toEqual([{ balance: 7 }]);
});

it('answers a pipelined batch once, with the error', async () => {
  const client = await stage.raw();
  client.send(serialize.query('begin'), serialize.query(READ));
  await client.ready(2);
  await killAndChange(READ, CHANGE);
  client.send(
    serialize.parse({ text: 'update account set balance = 1' }),
    serialize.bind({}),
    serialize.execute({}),
    serialize.parse({ text: 'commit' }),
    serialize.bind({}),
    serialize.execute({}),
    serialize.sync(),
    serialize.query('rollback'),
    serialize.query('select 1'),
  );
  const types = (await client.ready(3)).map(({ type, body }) => (type === 'Z' ? `Z${body}` : type));
  expect(types).toEqual(['E', 'ZE', 'C', 'ZI', 'T', 'D', 'C', 'ZI']);
  expect(await stage.rows('account where balance = 1')).toBe(0);
});

it('keeps statements that were prepared inside of the failed transaction', async () => {
  const client = await stage.pg();
  const named = { name: 'read', text: READ };
  await client.query('begin');
  await client.query('prepare in_sql as select 42 as x');
  await client.query(named);
  await killAndChange(READ, CHANGE);
  await expect(client.query('select 1')).rejects.toMatchObject({ code: '40001' });
  await client.query('rollback');
  await client.query('begin');
  expect((await client.query(named)).rows).toEqual([{ owner: 'Eve Hidden', balance: 55 }]);
  expect((await client.query('execute in_sql')).rows).toEqual([{ x: 42 }]);
  await client.query('commit');
});

it('lets a statement that had no answer yet see the present', async () => {
  const client = await stage.pg();
  await client.query('begin');
  await client.query('select 1');
  const slow = client.query('select balance, pg_sleep(0.3)::text from account where id = 1');
  await killAndChange('pg_sleep', CHANGE);
  expect((await slow).rows[0].balance).toBe(55);
  await client.query('commit');
});
