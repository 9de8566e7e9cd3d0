import { afterEach, describe, expect, it } from 'vitest';
import {
  cancelRequest,
  connectPg,
  errorFields,
  message,
  type PgClient,
  RawClient,
  useGateway,
} from '../kit/gateway.js';
import { eventually, useServer } from '../kit/servers.js';

/** F15: what somebody wills is passed on as it is, and nothing is repeated. */
const holder = useServer({ settings: { deadlock_timeout: '50ms' } });
const gateway = useGateway(holder);
let ids = 0;

afterEach(() => {
  const { stats } = gateway.gateway;
  expect([...stats.replays]).toEqual([]);
  expect([...stats.outcomes]).toEqual([]);
  expect(stats.pauses.count).toBe(0);
});

const direct = async <Row>(sql: string) => (await holder.server.query<Row>(sql)).rows;

async function setUp(): Promise<number> {
  await direct('create table if not exists i (id int primary key, v text)');
  return ++ids * 100;
}

const rows = async (from: number) =>
  (await direct<{ n: number }>(`select count(*)::int as n from i where id between ${from} and ${from + 99}`))[0].n;

/** A client, and the process id of its backend. */
async function connect(): Promise<{ client: PgClient; pid: number }> {
  const client = await connectPg(gateway);
  return { client, pid: (await client.query('select pg_backend_pid() as pid')).rows[0].pid };
}

async function sleeping(pid: number): Promise<void> {
  await eventually(
    async () =>
      (await direct(`select 1 from pg_stat_activity where pid = ${pid} and wait_event = 'PgSleep'`)).length > 0,
    { message: 'the statement under way' },
  );
}

const TERMINATED = {
  severity: 'FATAL',
  code: '57P01',
  message: 'terminating connection due to administrator command',
};
const CANCELLED = { severity: 'ERROR', code: '57014', message: 'canceling statement due to user request' };

describe('pg_terminate_backend', () => {
  it('idle', async () => {
    const { client, pid } = await connect();
    const ended = new Promise((resolve) => client.once('end', resolve));
    await direct(`select pg_terminate_backend(${pid})`);
    await ended;
    expect(client.errors[0]).toMatchObject(TERMINATED);
  });

  it('idle in a transaction', async () => {
    const from = await setUp();
    const { client, pid } = await connect();
    await client.query('begin');
    await client.query('insert into i values ($1)', [from]);
    const ended = new Promise((resolve) => client.once('end', resolve));
    await direct(`select pg_terminate_backend(${pid})`);
    await ended;
    expect(client.errors[0]).toMatchObject(TERMINATED);
    expect(await rows(from)).toBe(0);
  });

  it.each([
    ['a read', 'select pg_sleep(30)', false],
    ['a guarded write', 'insert into i select $1 from pg_sleep(30)', true],
  ])('with %s under way', async (_, sql, writes) => {
    const from = await setUp();
    const { client, pid } = await connect();
    const answer = client.query(sql, writes ? [from] : undefined);
    const failed = expect(answer).rejects.toMatchObject(TERMINATED);
    const ended = new Promise((resolve) => client.once('end', resolve));
    await sleeping(pid);
    await direct(`select pg_terminate_backend(${pid})`);
    await failed;
    await ended;
    expect(await rows(from)).toBe(0);
  });

  it('with a statement of a transaction under way', async () => {
    const from = await setUp();
    const { client, pid } = await connect();
    await client.query('begin');
    await client.query('insert into i values ($1)', [from]);
    const failed = expect(client.query('select pg_sleep(30)')).rejects.toMatchObject(TERMINATED);
    await sleeping(pid);
    await direct(`select pg_terminate_backend(${pid})`);
    await failed;
    expect(await rows(from)).toBe(0);
  });

  it('tells exactly the bytes that the server tells', async () => {
    const terminate = async (port: number) => {
      const raw = await RawClient.login({ port });
      const [, row] = await raw.query('select pg_backend_pid()');
      const pid = row.bytes.toString('latin1', 11);
      await raw.query('begin');
      await direct(`select pg_terminate_backend(${pid})`);
      await raw.untilClosed();
      return raw.rest().map(({ bytes }) => bytes.toString('latin1'));
    };
    expect(await terminate(gateway.port)).toEqual(await terminate(holder.server.port));
  });
});

describe('pg_cancel_backend and CancelRequest', () => {
  it.each([
    ['a read', 'select pg_sleep(30)'],
    ['a guarded write', "insert into i select -1, 'x' from pg_sleep(30)"],
  ])('%s outside a transaction', async (_, sql) => {
    const from = await setUp();
    const { client, pid } = await connect();
    const failed = expect(client.query(sql)).rejects.toMatchObject(CANCELLED);
    await sleeping(pid);
    await direct(`select pg_cancel_backend(${pid})`);
    await failed;
    await client.query('insert into i values ($1)', [from]);
    expect(await rows(from)).toBe(1);
    expect(await direct('select 1 from i where id = -1')).toEqual([]);
    expect(client.errors).toEqual([]);
    await client.end();
  });

  it('in a transaction', async () => {
    const from = await setUp();
    const { client, pid } = await connect();
    await client.query('begin');
    await client.query('insert into i values ($1)', [from]);
    await client.query('savepoint a');
    const failed = expect(client.query('select pg_sleep(30)')).rejects.toMatchObject(CANCELLED);
    await sleeping(pid);
    await direct(`select pg_cancel_backend(${pid})`);
    await failed;
    await expect(client.query('select 1')).rejects.toMatchObject({ code: '25P02' });
    await client.query('rollback to a');
    await client.query('commit');
    expect(await rows(from)).toBe(1);
    await client.end();
  });

  it("the client's own", async () => {
    await setUp();
    const raw = await RawClient.login(gateway);
    const [, row] = await raw.query('select pg_backend_pid()');
    const pid = Number(row.bytes.toString('latin1', 11));
    await raw.write(message('Q', 'insert into i select -2 from pg_sleep(30)\0'));
    await sleeping(pid);
    const canceller = await RawClient.open(gateway);
    await canceller.write(cancelRequest(raw.key));
    const answer = await raw.until('Z');
    expect(answer.map(({ type }) => type)).toEqual(['E', 'Z']);
    expect(errorFields(answer[0].bytes)).toMatchObject(CANCELLED);
    await raw.end();
  });
});

describe('timeouts', () => {
  it.each([false, true])('statement_timeout (in a transaction: %s)', async (inside) => {
    const from = await setUp();
    const { client } = await connect();
    await client.query('set statement_timeout = 100');
    if (inside) await client.query('begin');
    const timeout = { code: '57014', message: 'canceling statement due to statement timeout' };
    await expect(client.query('select pg_sleep(30)')).rejects.toMatchObject(timeout);
    if (inside) await client.query('rollback');
    await expect(client.query('insert into i select $1 from pg_sleep(30)', [from])).rejects.toMatchObject(timeout);
    await client.query('insert into i values ($1)', [from]);
    expect(await rows(from)).toBe(1);
    await client.end();
  });

  it.each([
    ['idle_in_transaction_session_timeout', '25P03', true],
    ['transaction_timeout', '25P04', true],
    ['idle_session_timeout', '57P05', false],
  ])('%s', async (name, code, inside) => {
    const from = await setUp();
    const { client } = await connect();
    const ended = new Promise((resolve) => client.once('end', resolve));
    if (inside) {
      await client.query('begin');
      await client.query('insert into i values ($1)', [from]);
    }
    await client.query(`set ${name} = 100`);
    await ended;
    expect(client.errors[0]).toMatchObject({ severity: 'FATAL', code });
    expect(await rows(from)).toBe(0);
  });

  it('transaction_timeout of a guarded write', async () => {
    const from = await setUp();
    const { client } = await connect();
    await client.query('set transaction_timeout = 100');
    const ended = new Promise((resolve) => client.once('end', resolve));
    await expect(client.query('insert into i select $1 from pg_sleep(30)', [from])).rejects.toMatchObject({
      severity: 'FATAL',
      code: '25P04',
    });
    await ended;
    expect(await rows(from)).toBe(0);
  });
});

it.each([false, true])('the victim of a deadlock (one of them without BEGIN: %s)', async (guarded) => {
  const from = await setUp();
  await direct(`insert into i values (${from}, ''), (${from + 1}, '')`);
  const [{ client: one }, { client: other }] = [await connect(), await connect()];
  await one.query('begin');
  await one.query(`update i set v = v || '1' where id = ${from}`);
  if (!guarded) {
    await other.query('begin');
    await other.query(`update i set v = v || '2' where id = ${from + 1}`);
  }
  const second = guarded
    ? // Locks one row after the other in a single statement.
      other.query(
        `update i set v = v || '2' where id in (select id from i where id in (${from}, ${from + 1}) order by id desc for update)`,
      )
    : other.query(`update i set v = v || '2' where id = ${from}`);
  const seconds = second.then(
    () => null,
    (error: { code: string }) => error.code,
  );
  await eventually(
    async () => (await direct(`select 1 from pg_stat_activity where wait_event_type = 'Lock'`)).length > 0,
  );
  const first = await one.query(`update i set v = v || '1' where id = ${from + 1}`).then(
    () => null,
    (error: { code: string }) => error.code,
  );
  expect([first, await seconds].filter((code) => code !== null)).toEqual(['40P01']);
  for (const client of [one, other]) {
    await client.query('rollback');
    expect(client.errors).toEqual([]);
    await client.end();
  }
});

it('a notice at the commit of a guarded write comes before its success, and without one when the commit fails', async () => {
  let from = await setUp();
  await direct(`create function complain() returns trigger language plpgsql as $$
    begin raise notice 'at the commit'; if new.v = 'bad' then raise 'no'; end if; return null; end $$`);
  await direct('create table deferred (id int, v text)');
  await direct(`create constraint trigger late after insert on deferred deferrable initially deferred
    for each row execute function complain()`);
  const heard = async (port: number) => {
    const raw = await RawClient.login({ port });
    const types = [];
    for (const v of ['good', 'bad']) {
      const answer = await raw.query(`insert into deferred values (${from}, '${v}')`);
      types.push(answer.map(({ type }) => type).join(''));
    }
    // Two statements in one text: each notice keeps its place.
    const answer = await raw.query(`insert into i values (${from++}); do $$ begin raise notice 'in between'; end $$`);
    types.push(answer.map(({ type }) => type).join(''));
    await raw.end();
    return types;
  };
  expect(await heard(holder.server.port)).toEqual(['NCZ', 'NEZ', 'CNCZ']);
  expect(await heard(gateway.port)).toEqual(['NCZ', 'NEZ', 'CNCZ']);
});
