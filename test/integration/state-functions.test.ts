import { expect, it } from 'vitest';
import { useFront } from '../kit/front.js';

const front = useFront(
  { settings: { fsync: 'off' } },
  `create table t (id int primary key);
   create function settle(k int) returns void language plpgsql as $$ begin
     perform pg_advisory_lock(k); perform set_config('app.tenant', 'acme', false); end $$;
   create function scratch() returns trigger language plpgsql as $$ begin
     create temp table if not exists made (id int); return new; end $$;
   create trigger scratch before insert on t for each row execute function scratch();`,
);

// What functions and triggers do to a session is in no statement of the client: the server is asked for it.
it('keeps locks and settings that a function made', async () => {
  const gateway = await front.gateway();
  const client = await front.pg(gateway);
  await client.query('select settle($1)', [77]);
  // Until the server has answered what the function did, a failover could only say that it is not known.
  await client.query('select 1');
  await front.failover();
  const { rows } = await client.query(
    "select current_setting('app.tenant', true) as tenant, (select count(*)::int from pg_locks where locktype = 'advisory' and objid = 77) as locks",
  );
  expect(rows).toEqual([{ tenant: 'acme', locks: 1 }]);
});

it('names a temporary table that a trigger made', async () => {
  const gateway = await front.gateway();
  const client = await front.pg(gateway);
  await client.query('insert into t values (1)');
  await client.query('select 1');
  await front.failover();
  await expect(client.query('select 1')).rejects.toMatchObject({ code: '55000', message: /temporary table made/ });
  expect((await client.query('select 1 as ok')).rows).toEqual([{ ok: 1 }]);
});
