import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { type FaultProxy, holds, startFaultProxy } from '../kit/fault-proxy.js';
import { connectPg, launchGateway, type PgClient, type TestGateway } from '../kit/gateway.js';
import { eventually, useServer } from '../kit/servers.js';

/** F14, and the crash of F15: one server without a standby that crashes and comes back. */
const holder = useServer();
let proxy: FaultProxy;
let gateway: TestGateway;
const clients: PgClient[] = [];
let ids = 0;

beforeAll(async () => {
  const { server } = holder;
  await server.query('create table o (id int primary key, v text)');
  proxy = await startFaultProxy({ target: { host: server.host, port: server.port } });
  gateway = await launchGateway([{ port: proxy.port }]);
});
afterEach(async () => {
  for (const client of clients.splice(0)) {
    expect(client.errors).toEqual([]);
    await client.end();
  }
  if (!holder.server.running) await holder.server.start();
  await proxy.heal();
});
afterAll(async () => {
  await gateway?.stop();
  await proxy?.close();
});

async function connect(): Promise<PgClient> {
  const client = await connectPg(gateway);
  clients.push(client);
  return client;
}

const direct = async <Row>(sql: string) => (await holder.server.query<Row>(sql)).rows;
const present = async (from: number) =>
  (await direct<{ id: number }>(`select id from o where id between ${from} and ${from + 99} order by id`)).map(
    ({ id }) => id - from,
  );

async function crash(): Promise<void> {
  await holder.server.kill();
  proxy.cut();
}

describe.each([
  ['the server is killed', crash, () => holder.server.start()],
  [
    'one of its processes is killed',
    async () => {
      // The postmaster ends all other backends with 57P02, recovers and goes on with the same process id.
      const client = await holder.server.connect();
      const { rows } = await client.query<{ pid: number }>('select pg_backend_pid() as pid');
      process.kill(rows[0].pid, 'SIGKILL');
      await client.end();
    },
    async () => {},
  ],
])('%s', (_, fall, rise) => {
  it('sessions wait and go on', async () => {
    const idle = await connect();
    await idle.query(`set application_name to 'the idle one'`);
    const notices: unknown[] = [];
    idle.on('notice', (notice) => notices.push(notice));
    const open = await connect();
    open.on('notice', (notice) => notices.push(notice));
    const from = ++ids * 100;
    await open.query('begin');
    await open.query('insert into o values ($1, $2)', [from, 'one']);
    const busy = await connect();
    await busy.query('begin');
    await busy.query('insert into o values ($1, $2)', [from + 1, 'two']);
    const sleeping = busy.query('select 7 as x from pg_sleep(0.4)');
    await eventually(
      async () => (await direct(`select 1 from pg_stat_activity where wait_event = 'PgSleep'`)).length > 0,
    );

    await fall();
    // Asked while there is no server.
    const asked = idle.query('show application_name');
    const inserted = open.query('insert into o values ($1, $2)', [from + 2, 'three']);
    await rise();

    expect((await asked).rows).toEqual([{ application_name: 'the idle one' }]);
    expect((await inserted).rowCount).toBe(1);
    await open.query('commit');
    expect((await sleeping).rows).toEqual([{ x: 7 }]);
    await busy.query('commit');
    expect(await present(from)).toEqual([0, 1, 2]);
    expect(notices).toEqual([]);
  });

  it.each([
    ['a COMMIT', 'commit\0'],
    ['an INSERT that commits by itself', 'COMMIT\0'],
  ])('%s in doubt that took effect', async (what, _sent) => {
    const client = await connect();
    const from = ++ids * 100;
    const before = outcomes();
    if (what === 'a COMMIT') {
      await client.query('begin');
      await client.query('insert into o values ($1, $2)', [from, 'one']);
    }
    // The answer to the commit is held back, and lost.
    proxy.when('server', holds('COMMIT\0'), (connection) => connection.holdServerReplies());
    const answer = client.query(what === 'a COMMIT' ? 'commit' : `insert into o values (${from}, 'one')`);
    await eventually(async () => (await present(from)).length === 1, { message: 'the commit' });
    await fall();
    proxy.cut();
    await rise();
    expect((await answer).command).toBe(what === 'a COMMIT' ? 'COMMIT' : 'INSERT');
    expect(await present(from)).toEqual([0]);
    expect(outcomes()).toEqual({ ...before, committed: (before.committed ?? 0) + 1 });
  });

  it.each([
    ['a COMMIT', 'commit\0'],
    ['an INSERT that commits by itself', 'COMMIT\0'],
  ])('%s in doubt that did not take effect', async (what, sent) => {
    const client = await connect();
    const from = ++ids * 100;
    const before = outcomes();
    if (what === 'a COMMIT') {
      await client.query('begin');
      await client.query('insert into o values ($1, $2)', [from, 'one']);
    }
    proxy.when('client', holds(sent), (connection) => connection.holdClientBytes());
    const answer = client.query(what === 'a COMMIT' ? 'commit' : `insert into o values (${from}, 'one')`);
    await eventually(() => proxy.connections.some((c) => c.parked('client').includes(sent)), { message: 'the commit' });
    await fall();
    proxy.cut();
    await rise();
    expect((await answer).command).toBe(what === 'a COMMIT' ? 'COMMIT' : 'INSERT');
    expect(await present(from)).toEqual([0]);
    expect(outcomes()).toEqual({ ...before, 'not-committed': (before['not-committed'] ?? 0) + 1 });
  });
});

function outcomes(): Record<string, number> {
  return Object.fromEntries(gateway.gateway.stats.outcomes);
}

it('a client that comes while the server is down waits for it', async () => {
  await crash();
  const coming = connect();
  await holder.server.start();
  expect((await (await coming).query('select 1 as x')).rows).toEqual([{ x: 1 }]);
});

it('its own backend is killed', async () => {
  const client = await connect();
  const from = ++ids * 100;
  await client.query('begin');
  await client.query('insert into o values ($1, $2)', [from, 'one']);
  const { rows } = await client.query('select pg_backend_pid() as pid');
  // Another answer than before would be a divergence, so it is not part of the transaction that is repeated.
  await client.query('rollback');
  process.kill(rows[0].pid, 'SIGKILL');
  await client.query('insert into o values ($1, $2)', [from, 'one']);
  expect(await present(from)).toEqual([0]);
});
