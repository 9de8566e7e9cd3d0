import { expect, it } from 'vitest';
import { errorOf, useFront } from '../kit/front.js';
import { cancelRequest, type PgClient, RawClient, type TestGateway } from '../kit/gateway.js';
import { eventually } from '../kit/servers.js';

/** F24: cancel requests, with the key that the gateway gave, while no server is there and behind a failover. */
const front = useFront({}, 'create table t (id int, v text)');

async function cancel(to: TestGateway, client: PgClient | RawClient): Promise<void> {
  let key: Buffer;
  if (client instanceof RawClient) key = client.key;
  else {
    const { processID, secretKey } = client as unknown as { processID: number; secretKey: number };
    key = Buffer.alloc(8);
    key.writeInt32BE(processID);
    key.writeInt32BE(secretKey, 4);
  }
  const asking = await RawClient.open(to);
  await asking.write(cancelRequest(key));
  await asking.untilClosed();
}

const suspended = (gateway: TestGateway, count: number) =>
  eventually(() => (gateway.gateway.stats.sessions.get('main')?.get('suspended') ?? 0) >= count, {
    message: `${count} suspended sessions`,
  });

it('what the gateway holds while no server is there is cancelled', async () => {
  const gateway = await front.gateway();
  const [reads, writes, held, open, between] = [
    await front.pg(gateway),
    await front.pg(gateway),
    await front.pg(gateway),
    await front.pg(gateway),
    await front.pg(gateway),
  ];
  await open.query('begin');
  await open.query("insert into t values (1, 'undone')");
  await between.query('begin');
  await between.query("insert into t values (2, 'kept')");
  const outcomes = [errorOf(reads.query('select pg_sleep(60)')), errorOf(open.query('select pg_sleep(60)'))];
  front.proxy.when(
    'client',
    (bytes) => bytes.includes("values (3, 'guarded')"),
    (connection) => connection.holdClientBytes(),
  );
  outcomes.push(errorOf(writes.query("insert into t values (3, 'guarded')")));
  await eventually(
    async () =>
      (await front.pair.primary.query('select from pg_stat_activity where wait_event = $1', ['PgSleep'])).rows
        .length === 2,
  );
  await front.pair.primary.kill();
  front.proxy.cut();
  await suspended(gateway, 5);
  // Sent when nobody is there any more.
  outcomes.push(errorOf(held.query("insert into t values (4, 'held')")));
  const count = held.query('select count(*)::int as n from t');
  for (const client of [reads, open, writes]) await cancel(gateway, client);
  // The request of this one has surely arrived once the others are answered.
  const errors = await Promise.all(outcomes.slice(0, 3));
  await cancel(gateway, held);
  errors.push(await outcomes[3]);
  for (const error of errors) expect(error).toMatchObject({ code: '57014', detail: 'OUTLIVE_CANCELLED' });
  // Nobody waits here: a late cancel hits nothing, as on a server.
  await cancel(gateway, between);

  await front.failover();
  // Only what ran was cancelled, not what was sent behind it.
  expect((await count).rows).toEqual([{ n: 0 }]);
  expect((await reads.query('select 1 as one')).rows).toEqual([{ one: 1 }]);
  expect((await errorOf(open.query('select 1'))).code).toBe('25P02');
  await open.query('rollback');
  await between.query('commit');
  await writes.query("insert into t values (5, 'after')");
  expect((await reads.query('select id from t order by id')).rows).toEqual([{ id: 2 }, { id: 5 }]);
  for (const client of [reads, writes, held, open, between]) expect(client.errors).toEqual([]);
});

it('a commit in doubt is not: its outcome stands', async () => {
  const gateway = await front.gateway();
  const client = await front.pg(gateway);
  await client.query('begin');
  await client.query("insert into t values (10, 'committed')");
  front.proxy.when(
    'client',
    (bytes) => bytes.includes('COMMIT\0'),
    (connection) => connection.holdServerReplies(),
  );
  const commit = client.query('COMMIT');
  await front.appears('select from t where id = 10');
  await front.pair.primary.kill();
  front.proxy.cut();
  await eventually(() => gateway.gateway.stats.sessions.get('main')?.get('resolving') === 1);
  await cancel(gateway, client);
  await front.failover();
  expect((await commit).command).toBe('COMMIT');
  expect((await client.query('select v from t where id = 10')).rows).toEqual([{ v: 'committed' }]);
});

it('behind a failover the key of old cancels on the new server', async () => {
  const gateway = await front.gateway();
  const [client, raw] = [await front.pg(gateway), await front.raw(gateway)];
  await client.query('begin');
  await client.query("insert into t values (20, 'x')");
  await front.failover();
  await client.query('savepoint here');
  const sleeps = errorOf(client.query('select pg_sleep(60)'));
  const alsoSleeps = raw.query('select pg_sleep(60)');
  const sleeping = async () =>
    (await front.pair.primary.query('select from pg_stat_activity where wait_event = $1', ['PgSleep'])).rows.length;
  await eventually(async () => (await sleeping()) === 2);
  await cancel(gateway, client);
  // The server's own words: nobody else cancelled it.
  expect(await sleeps).toMatchObject({ code: '57014', detail: undefined });
  expect(await sleeping()).toBe(1);
  await cancel(gateway, raw);
  expect((await alsoSleeps).map(({ type }) => type).join('')).toMatch(/^T?EZ$/);
  expect(await sleeping()).toBe(0);
  await client.query('rollback to here');
  await client.query('commit');
  expect((await client.query('select v from t where id = 20')).rows).toEqual([{ v: 'x' }]);
  // A key that nobody has cancels nothing.
  const stranger = await RawClient.open(gateway);
  await stranger.write(cancelRequest(Buffer.alloc(8, 1)));
  await stranger.untilClosed();
  expect(client.errors).toEqual([]);
});
