import { serialize } from 'pg-protocol';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { type FaultProxy, holds, startFaultProxy } from '../kit/fault-proxy.js';
import {
  connectPg,
  errorFields,
  launchGateway,
  type PgClient,
  RawClient,
  rowOf,
  type TestGateway,
} from '../kit/gateway.js';
import { eventually, useServer } from '../kit/servers.js';

/** F16: no server takes writes within the wait. */
const WAIT = 600;
const QUEUE = 32 * 1024;
const holder = useServer();
let proxy: FaultProxy;
/** Gives up soon. */
let gateway: TestGateway;
/** Waits long. */
let patient: TestGateway;
const clients: PgClient[] = [];
const raws: RawClient[] = [];
let ids = 0;

beforeAll(async () => {
  const { server } = holder;
  await server.query('create table w (id int primary key, v text)');
  proxy = await startFaultProxy({ target: { host: server.host, port: server.port } });
  const limits = { queue: '32KiB' };
  gateway = await launchGateway([{ port: proxy.port }], {
    listener: { failover: { wait: `${WAIT}ms`, keepalive: '100ms' }, limits },
    logLevel: 'silent',
  });
  patient = await launchGateway([{ port: proxy.port }], {
    listener: { failover: { wait: '30s', keepalive: '100ms' }, limits },
    logLevel: 'silent',
  });
});
afterEach(async () => {
  await rise();
  for (const client of clients.splice(0)) {
    expect(client.errors).toEqual([]);
    await client.end();
  }
  for (const raw of raws.splice(0)) raw.destroy();
});
afterAll(async () => {
  await gateway?.stop();
  await patient?.stop();
  await proxy?.close();
});

async function fall(): Promise<void> {
  await holder.server.kill();
  proxy.cut();
}

async function rise(): Promise<void> {
  if (!holder.server.running) await holder.server.start();
}

async function connect(): Promise<PgClient> {
  const client = await connectPg(gateway);
  clients.push(client);
  return client;
}

async function raw(to: TestGateway = gateway): Promise<RawClient> {
  const client = await RawClient.login(to);
  raws.push(client);
  return client;
}

const present = async (from: number) =>
  (
    await holder.server.query<{ id: number }>(`select id from w where id between ${from} and ${from + 99} order by id`)
  ).rows.map(({ id }) => id - from);

const NO_SERVER = { severity: 'ERROR', code: '57P03', detail: 'OUTLIVE_NO_WRITABLE_SERVER' };

/** The messages as types, of an error its SQLSTATE too; without the signs of life. */
const shown = (messages: { type: string; bytes: Buffer }[]) =>
  messages
    .filter(({ type }) => type !== 'N')
    .map(({ type, bytes }) =>
      type === 'E' ? `E${errorFields(bytes).code}` : type === 'Z' ? `Z${String.fromCharCode(bytes[5])}` : type,
    );

describe('the client is told, and its connection is kept', () => {
  it.each([
    ['a read', 'select 1 as x'],
    ['a write', "insert into w values (-1, 'never')"],
  ])('outside a transaction: %s', async (_, sql) => {
    const client = await connect();
    await client.query(`set application_name to 'as before'`);
    await fall();
    const began = performance.now();
    await expect(client.query(sql)).rejects.toMatchObject(NO_SERVER);
    expect(performance.now() - began).toBeGreaterThan(WAIT / 3);
    // Each request tries again.
    await expect(client.query(sql)).rejects.toMatchObject(NO_SERVER);
    await rise();
    expect((await client.query('show application_name')).rows).toEqual([{ application_name: 'as before' }]);
    await client.query('insert into w values ($1)', [++ids * 100]);
    expect(await present(ids * 100)).toEqual([0]);
    expect(await present(-1)).toEqual([]);
  });

  it('in a transaction, with a statement under way', async () => {
    const client = await connect();
    const from = ++ids * 100;
    await client.query('begin');
    await client.query('insert into w values ($1)', [from]);
    const answer = expect(client.query('select pg_sleep(30)')).rejects.toMatchObject(NO_SERVER);
    await eventually(
      async () =>
        (await holder.server.query(`select 1 from pg_stat_activity where wait_event = 'PgSleep'`)).rows.length > 0,
    );
    await fall();
    await answer;
    await expect(client.query('select 1')).rejects.toMatchObject(NO_SERVER);
    await rise();
    // The transaction is over, as it is on any server after an error.
    await expect(client.query('select 1')).rejects.toMatchObject({ code: '25P02' });
    expect((await client.query('commit')).command).toBe('ROLLBACK');
    expect(await present(from)).toEqual([]);
    await client.query('insert into w values ($1)', [from]);
    expect(await present(from)).toEqual([0]);
  });

  it('not in a transaction that waits for nothing: it goes on when a server is there again', async () => {
    const client = await connect();
    const from = ++ids * 100;
    await client.query('begin');
    await client.query('insert into w values ($1)', [from]);
    await fall();
    const waitIsOver = () =>
      eventually(() => JSON.stringify(gateway.gateway.status()).includes('"detached":1'), {
        message: 'the end of the wait',
      });
    await waitIsOver();
    await rise();
    expect((await client.query('select id from w where id = $1', [from])).rows).toEqual([{ id: from }]);
    await client.query('insert into w values ($1)', [from + 1]);
    await client.query('commit');
    expect(await present(from)).toEqual([0, 1]);
    // Who speaks while there is none is told, and the transaction is over.
    await client.query('begin');
    await client.query('insert into w values ($1)', [from + 2]);
    await fall();
    await waitIsOver();
    await expect(client.query('select 1')).rejects.toMatchObject(NO_SERVER);
    await rise();
    await expect(client.query('select 1')).rejects.toMatchObject({ code: '25P02' });
    await client.query('rollback');
    expect(await present(from)).toEqual([0, 1]);
  });

  it('pipelined requests of both protocols: each its own error', async () => {
    const client = await raw();
    await fall();
    await client.write(
      Buffer.concat([
        serialize.query('select 1'),
        serialize.parse({ text: 'select 2' }),
        serialize.bind({}),
        serialize.execute({}),
        serialize.sync(),
        serialize.query('select 3; select 4'),
        serialize.parse({ text: 'select 5' }),
        serialize.flush(),
        serialize.sync(),
      ]),
    );
    expect(shown(await client.until('Z', 4))).toEqual(['E57P03', 'ZI', 'E57P03', 'ZI', 'E57P03', 'ZI', 'E57P03', 'ZI']);
    await rise();
    expect(shown(await client.query('select 6'))).toEqual(['T', 'D', 'C', 'ZI']);
  });

  it.each(['simple', 'extended'])('in the middle of a COPY (%s)', async (protocol) => {
    const client = await raw();
    const from = ++ids * 100;
    const sql = 'copy w from stdin';
    if (protocol === 'simple') await client.write(serialize.query(sql));
    else {
      const parts = [serialize.parse({ text: sql }), serialize.bind({}), serialize.execute({}), serialize.sync()];
      await client.write(Buffer.concat(parts));
    }
    await client.until('G');
    await client.write(serialize.copyData(Buffer.from(`${from}\tx\n`)));
    await fall();
    await client.write(serialize.copyData(Buffer.from(`${from + 1}\tx\n`)));
    const heard = await client.until('E');
    await rise();
    await client.write(serialize.copyDone());
    if (protocol === 'extended') await client.write(serialize.sync());
    heard.push(...(await client.until('Z')));
    expect(shown(heard)).toEqual(['E57P03', 'ZI']);
    expect(await present(from)).toEqual([]);
    expect(shown(await client.query(`insert into w values (${from})`))).toEqual(['C', 'ZI']);
  });

  it('a client that comes meanwhile', async () => {
    await fall();
    await expect(connectPg(gateway)).rejects.toMatchObject({ ...NO_SERVER, severity: 'FATAL' });
  });

  it.each([
    ['a COMMIT', true],
    ['an INSERT that commits by itself', false],
  ])('a commit in doubt gets 08007: %s', async (_, inside) => {
    const client = await connect();
    const from = ++ids * 100;
    if (inside) {
      await client.query('begin');
      await client.query('insert into w values ($1)', [from]);
    }
    proxy.when('server', holds('COMMIT\0'), (connection) => connection.holdServerReplies());
    const answer = inside ? client.query('commit') : client.query('insert into w values ($1)', [from]);
    const told = expect(answer).rejects.toMatchObject({
      severity: 'ERROR',
      code: '08007',
      detail: 'OUTLIVE_OUTCOME_UNKNOWN',
    });
    await eventually(async () => (await present(from)).length === 1, { message: 'the commit' });
    await fall();
    await told;
    await expect(client.query('select 1')).rejects.toMatchObject(NO_SERVER);
    await rise();
    expect((await client.query('select 1 as x')).rows).toEqual([{ x: 1 }]);
    expect(await present(from)).toEqual([0]);
  });
});

describe('while it waits', () => {
  it('a client that waits for an answer hears that it is not forgotten, an idle one hears nothing', async () => {
    const waiting = await raw(patient);
    const open = await raw(patient);
    const idle = await raw(patient);
    await open.query('begin');
    await open.query('select 1');
    for (const client of [waiting, open, idle]) client.rest();
    await fall();
    await waiting.write(serialize.query('select 7'));
    const notices = await waiting.until('N', 4);
    await rise();
    expect(errorFields(notices[0].bytes)).toMatchObject({
      severity: 'NOTICE',
      code: '00000',
      message: 'outlive: waiting for a server that accepts writes',
    });
    const answer = (await waiting.until('Z')).filter(({ type }) => type !== 'N');
    expect(answer.map(({ type }) => type).join('')).toBe('TDCZ');
    expect(idle.rest()).toEqual([]);
    expect(open.rest()).toEqual([]);
    // And none after it.
    expect((await waiting.query('select pg_sleep(0.3)')).map(({ type }) => type).join('')).toBe('TDCZ');
    expect((await open.query('commit')).map(({ type }) => type).join('')).toBe('CZ');
  });

  it('a result that was cut in its middle hears it between two rows only, and goes on in its middle', async () => {
    const client = await raw(patient);
    await client.query('begin');
    // Each row is shorter than what reaches the client whole. What is held back is lost with the server.
    proxy.when(
      'server',
      (bytes) => bytes.length > 300_000,
      (connection) => connection.holdServerReplies(),
    );
    await client.write(serialize.query(`select i, repeat('r', 20000) from generate_series(1, 50) i`));
    await eventually(() => client.messages.filter(({ type }) => type === 'D').length > 2);
    await fall();
    await client.until('N', 2);
    await rise();
    await client.until('Z');
    const numbers = client.messages.filter(({ type }) => type === 'D').map(({ bytes }) => Number(rowOf(bytes)[0]));
    expect(numbers).toEqual(Array.from({ length: 50 }, (_, i) => i + 1));
    await client.query('commit');
  });

  it('a long row that was cut in its middle hears nothing before its end', async () => {
    const client = await raw(patient);
    const witness = await raw(patient);
    await client.query('begin');
    const size = 600_000;
    proxy.when(
      'server',
      (bytes) => bytes.length > 200_000,
      (connection) => connection.holdServerReplies(),
    );
    await client.write(serialize.query(`select repeat('r', ${size})`));
    await eventually(() => client.partial.length > 100_000, { message: 'the beginning of the row' });
    await fall();
    await witness.write(serialize.query('select 1'));
    await witness.until('N', 4);
    client.rest();
    await rise();
    const answer = await client.until('Z');
    expect(answer.map(({ type }) => type).join('')).toBe('DCZ');
    expect(rowOf(answer[0].bytes)[0]).toBe('r'.repeat(size));
    expect((await client.query('commit')).map(({ type }) => type).join('')).toBe('CZ');
  });

  it.each(['queries', 'the input of a COPY'])('what it sends stays within limits.queue: %s', async (what) => {
    const client = await raw(patient);
    const count = 4000;
    const padding = 'p'.repeat(1000);
    const copy = what !== 'queries';
    const from = ++ids * 100_000;
    if (copy) {
      await client.write(serialize.query('copy w from stdin'));
      await client.until('G');
    }
    await fall();
    await eventually(() => JSON.stringify(patient.gateway.status()).includes('"suspended":1'));
    const before = patient.gateway.stats.bytesFromClients;
    const taken = () => patient.gateway.stats.bytesFromClients - before;
    const messages = Array.from({ length: count }, (_, i) =>
      copy
        ? serialize.copyData(Buffer.from(`${from + i}\t${padding}\n`))
        : serialize.query(`select ${i} /* ${padding} */`),
    );
    // The kernel takes a good deal of it, so that its being written says nothing.
    const written = client.write(Buffer.concat(messages));
    await eventually(() => taken() > QUEUE, { message: 'a full queue' });
    // As long as signs of life come, nothing more is read. What was read at once lies beyond the limit by one read at most.
    const heard = client.messages.length;
    await client.when(() => client.messages.length > heard + 3);
    const full = taken();
    await client.when(() => client.messages.length > heard + 5);
    expect(taken()).toBe(full);
    expect(full).toBeLessThan(QUEUE + 256 * 1024);
    await rise();
    await written;
    if (copy) {
      await client.write(serialize.copyDone());
      expect(shown(await client.until('Z'))).toEqual(['C', 'ZI']);
      const { rows } = await holder.server.query<{ n: number }>(`select count(*)::int as n from w where id >= ${from}`);
      expect(rows[0].n).toBe(count);
    } else {
      await client.until('Z', count);
      const numbers = client.messages.filter(({ type }) => type === 'D').map(({ bytes }) => Number(rowOf(bytes)[0]));
      expect(numbers).toEqual(Array.from({ length: count }, (_, i) => i));
    }
  });
});
