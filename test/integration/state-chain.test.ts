import { expect, it } from 'vitest';
import { useFront } from '../kit/front.js';

const front = useFront({ settings: { fsync: 'off' } }, 'create table t (id int primary key)');

it('never repeats what COMMIT AND CHAIN has closed', async () => {
  const gateway = await front.gateway();
  const client = await front.pg(gateway);
  await client.query('begin');
  await client.query('insert into t values (1)');
  await client.query('commit and chain');
  await client.query('insert into t values (2)');
  await front.failover();
  // The transaction that is open now cannot be repeated; the one before it is there, once.
  await expect(client.query('insert into t values (3)')).rejects.toMatchObject({ code: '40001' });
  await client.query('rollback');
  expect((await client.query('select id from t order by id')).rows).toEqual([{ id: 1 }]);
});

it('knows that a chained transaction is open although nothing was said in it', async () => {
  const gateway = await front.gateway();
  const client = await front.pg(gateway);
  await client.query('begin');
  await client.query('rollback and chain');
  await front.failover();
  await expect(client.query('insert into t values (4)')).rejects.toMatchObject({ code: '40001' });
  await client.query('rollback');
  expect((await client.query('select id from t where id = 4')).rows).toEqual([]);
});
