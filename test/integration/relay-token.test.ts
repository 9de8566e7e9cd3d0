import { describe, expect, it } from 'vitest';
import { connectPg, useGateway } from '../kit/gateway.js';
import { useServer } from '../kit/servers.js';

const holder = useServer();
const gateway = useGateway(holder);

/**
 * The gateway asks for the token of a transaction with a statement that it has prepared in the client's session. Whatever the
 * client does to prepared statements, its transactions must not notice.
 */
describe('a transaction that writes with parameters goes on', () => {
  const forgetful: [what: string, how: string][] = [
    ['DEALLOCATE ALL', 'deallocate all'],
    ['DISCARD ALL', 'discard all'],
    ['a function that deallocates', 'select forget()'],
    ['a DO block that deallocates', "do $$ begin execute 'deallocate all'; end $$"],
  ];
  it.each(forgetful)('after %s', async (_what, how) => {
    const admin = await holder.server.connect();
    await admin.query('create table if not exists t (id int)');
    await admin.query(`create or replace function forget() returns void language plpgsql as
      $$ begin execute 'deallocate all'; end $$`);
    await admin.query('truncate t');
    const client = await connectPg(gateway);
    const write = async (id: number): Promise<void> => {
      await client.query('begin');
      await client.query('insert into t values ($1)', [id]);
      await client.query('commit');
    };
    await write(1);
    await write(2);
    await client.query(how);
    await write(3);
    // Inside of the transaction, in front of the write.
    await client.query('begin');
    if (!how.startsWith('discard')) await client.query(how);
    await client.query('insert into t values ($1)', [4]);
    await client.query('commit');
    // By itself, guarded.
    await client.query('insert into t values ($1)', [5]);
    expect((await admin.query('select id from t order by id')).rows).toEqual([1, 2, 3, 4, 5].map((id) => ({ id })));
    expect(client.errors).toEqual([]);
    await client.end();
    await admin.end();
  });

  it('after an error in the request that carried the question', async () => {
    const admin = await holder.server.connect();
    await admin.query('create table if not exists u (id int primary key)');
    const client = await connectPg(gateway);
    await client.query('begin');
    await client.query('savepoint a');
    await expect(client.query('insert into u values ($1 / 0)', [1])).rejects.toMatchObject({ code: '22012' });
    await client.query('rollback to a');
    await client.query('insert into u values ($1)', [1]);
    await client.query('commit');
    await expect(client.query('insert into u values ($1)', [1])).rejects.toMatchObject({ code: '23505' });
    await client.query('insert into u values ($1)', [2]);
    expect((await admin.query('select id from u order by id')).rows).toEqual([{ id: 1 }, { id: 2 }]);
    await client.end();
    await admin.end();
  });
});
