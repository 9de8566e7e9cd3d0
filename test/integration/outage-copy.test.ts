import { createRequire } from 'node:module';
import { Readable, type Writable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import type { Submittable } from 'pg';
import { serialize } from 'pg-protocol';
import { describe, expect, it } from 'vitest';
import { holds } from '../kit/fault-proxy.js';
import { eventually } from '../kit/servers.js';
import { type Raw, show, useStage } from '../kit/stage.js';

/** F10: COPY FROM STDIN that loses its server in the middle. */
const JOURNAL = 64 * 1024;
// The package brings no types.
const { from: copyFrom } = createRequire(import.meta.url)('pg-copy-streams') as {
  from(sql: string): Writable & Submittable & { readonly rowCount: number };
};
const stage = useStage('create table c (id int primary key, v text)', { journal: '64KiB', queue: '32KiB' });

/** Each test loads rows of its own. */
let base = 0;

function rows(from: number, count: number): Buffer {
  return Buffer.from(
    Array.from({ length: count }, (_, i) => `${base + from + i}\t${'v'.repeat(90)}\n`).join(''),
    'latin1',
  );
}

const data = (from: number, count: number) => serialize.copyData(rows(from, count));
const SQL = 'copy c from stdin';

type Protocol = 'simple' | 'extended';

/** Starts the COPY the way a client of this protocol does; `sync` as libpq does it, `flush` as others do. */
function start(protocol: Protocol, ending: 'sync' | 'flush' | 'none' = 'sync'): Buffer {
  if (protocol === 'simple') return serialize.query(SQL);
  const parts = [serialize.parse({ text: SQL }), serialize.bind({}), serialize.execute({})];
  if (ending === 'sync') parts.push(serialize.sync());
  if (ending === 'flush') parts.push(serialize.flush());
  return Buffer.concat(parts);
}

/** The end of the input, with the Sync that the extended protocol wants. */
function done(protocol: Protocol): Buffer {
  return protocol === 'simple' ? serialize.copyDone() : Buffer.concat([serialize.copyDone(), serialize.sync()]);
}

const shown = (frames: { type: string; body: Buffer }[]) => frames.map(show);
const loaded = () => stage.rows(`c where id between ${base} and ${base + 999_999}`);

/** Resolves when the server has got so many bytes of input on the client's present connection. */
async function delivered(client: Raw, bytes: number): Promise<void> {
  const { connection } = stage.line(client);
  await eventually(() => connection.forwarded('client') >= bytes, { message: 'input at the server' });
}

async function begin(client: Raw): Promise<void> {
  client.send(serialize.query('begin'));
  await client.ready();
}

/** The client and its connection are as good as new. */
async function stillWorks(client: Raw): Promise<void> {
  client.send(serialize.query(`insert into c values (${base + 900_000}, 'after')`));
  expect(shown(await client.ready())).toEqual(['C:INSERT 0 1.', 'Z:I']);
  client.send(serialize.parse({ text: 'select 1' }), serialize.bind({}), serialize.execute({}), serialize.sync());
  expect((await client.ready()).map(({ type }) => type)).toEqual(['1', '2', 'D', 'C', 'Z']);
  expect(await stage.rows(`c where id = ${base + 900_000}`)).toBe(1);
}

describe.each<Protocol>(['simple', 'extended'])('%s protocol', (protocol) => {
  describe.each([false, true])('inside BEGIN: %s', (inside) => {
    const end = (n: number) => [`C:COPY ${n}.`, inside ? 'Z:T' : 'Z:I'];

    async function open(): Promise<Raw> {
      base += 1_000_000;
      const client = await stage.raw();
      if (inside) await begin(client);
      client.send(start(protocol));
      await client.until('G');
      client.forget();
      return client;
    }

    async function finish(client: Raw, count: number): Promise<void> {
      if (inside) {
        client.send(serialize.query('commit'));
        expect(shown(await client.ready())).toEqual(['C:COMMIT.', 'Z:I']);
      }
      expect(await loaded()).toBe(count);
      await stillWorks(client);
    }

    it('is repeated when the client goes on at once', async () => {
      const client = await open();
      client.send(data(0, 100));
      await delivered(client, 100 * 90);
      stage.line(client).connection.cut();
      client.send(data(100, 100), done(protocol));
      expect(shown(await client.ready())).toEqual(end(200));
      await finish(client, 200);
    });

    it('is repeated when the client goes on during the repetition, message by message', async () => {
      const client = await open();
      client.send(data(0, 100));
      await delivered(client, 100 * 90);
      const old = stage.line(client);
      old.connection.cut();
      for (let i = 0; i < 60; i++) {
        client.send(data(100 + i, 1));
        await new Promise((resolve) => setImmediate(resolve));
      }
      await eventually(() => stage.line(client) !== old, { message: 'the next connection' });
      for (let i = 60; i < 120; i++) {
        client.send(data(100 + i, 1));
        await new Promise((resolve) => setImmediate(resolve));
      }
      client.send(done(protocol));
      expect(shown(await client.ready())).toEqual(end(220));
      await finish(client, 220);
    });

    it('is repeated when the client goes on after it', async () => {
      const client = await open();
      client.send(data(0, 100));
      await delivered(client, 100 * 90);
      const old = stage.line(client);
      old.connection.cut();
      await eventually(() => stage.line(client) !== old && stage.line(client).connection.forwarded('client') > 9000, {
        message: 'the repetition',
      });
      client.send(data(100, 100));
      client.send(done(protocol));
      expect(shown(await client.ready())).toEqual(end(200));
      await finish(client, 200);
    });

    it('is repeated whole when the answer to its end is lost', async () => {
      const client = await open();
      client.send(data(0, 50));
      await delivered(client, 50 * 90);
      stage.line(client).loseAfter('server', 0);
      stage.line(client).forget();
      client.send(done(protocol));
      await eventually(() => stage.line(client).seen('server').includes('COPY 50'), { message: 'the lost answer' });
      stage.line(client).connection.cut();
      expect(shown(await client.ready())).toEqual(end(50));
      await finish(client, 50);
    });

    it('beyond the journal fails with 54000 and keeps the connection', async () => {
      const client = await open();
      const count = Math.ceil((2 * JOURNAL) / 90);
      client.send(data(0, count));
      await delivered(client, 2 * JOURNAL);
      stage.line(client).connection.cut();
      await client.until('E');
      if (protocol === 'simple') await client.until('Z');
      // The client has not read the error yet.
      client.send(data(count, 50));
      client.send(done(protocol));
      if (protocol === 'extended') await client.until('Z');
      const heard = shown(client.forget());
      expect(heard).toHaveLength(2);
      expect(heard[0]).toMatch(/^E:54000:/);
      expect(heard[1]).toBe(inside ? 'Z:E' : 'Z:I');
      if (inside) {
        client.send(serialize.query('select 1'));
        expect(shown(await client.ready())).toEqual([expect.stringMatching(/^E:25P02:/), 'Z:E']);
        client.send(serialize.query('rollback'));
        expect(shown(await client.ready())).toEqual(['C:ROLLBACK.', 'Z:I']);
      }
      expect(await loaded()).toBe(0);
      await stillWorks(client);
    });

    it('an error of the server in the middle is the same as without the gateway', async () => {
      const client = await open();
      client.send(serialize.copyData(Buffer.from('not a number\tx\n')), data(0, 10));
      // The rest comes when the error is already on its way to the client.
      await client.until('E');
      client.send(data(10, 10));
      client.send(done(protocol));
      const heard = shown(await client.ready());
      expect(heard).toEqual([expect.stringMatching(/^E:22P02:/), inside ? 'Z:E' : 'Z:I']);
      if (inside) {
        client.send(serialize.query('rollback'));
        expect(shown(await client.ready())).toEqual(['C:ROLLBACK.', 'Z:I']);
      }
      await stillWorks(client);
    });

    it('the client gives up after the loss', async () => {
      const client = await open();
      client.send(data(0, 100));
      await delivered(client, 100 * 90);
      stage.line(client).connection.cut();
      client.send(serialize.copyFail('enough'));
      if (protocol === 'extended') client.send(serialize.sync());
      expect(shown(await client.ready())).toEqual([expect.stringMatching(/^E:57014:/), inside ? 'Z:E' : 'Z:I']);
      if (inside) {
        client.send(serialize.query('rollback'));
        await client.ready();
      }
      expect(await loaded()).toBe(0);
      await stillWorks(client);
    });

    it('everything in one write, and what follows as well', async () => {
      base += 1_000_000;
      const client = await stage.raw();
      if (inside) await begin(client);
      const before = stage.line(client).connection;
      const sent = before.forwarded('client');
      // Cut once the server has a part of it.
      stage.line(client).loseAfter('server', 0);
      client.send(
        start(protocol),
        data(0, 50),
        done(protocol),
        serialize.query('select 7'),
        serialize.parse({ text: 'select 8' }),
        serialize.bind({}),
        serialize.execute({}),
        serialize.sync(),
      );
      await eventually(() => before.forwarded('client') > sent, { message: 'the COPY at the server' });
      before.cut();
      const heard = await client.ready(3);
      expect(
        heard
          .map(({ type }) => type)
          .filter((type) => type !== 'N')
          .join(''),
      ).toBe(protocol === 'simple' ? 'GCZTDCZ12DCZ' : '12GCZTDCZ12DCZ');
      await finish(client, 50);
    });

    it('a server that is killed', async () => {
      const client = await open();
      client.send(data(0, 100));
      await delivered(client, 100 * 90);
      const killed = stage.kill();
      client.send(data(100, 50));
      await killed;
      client.send(data(150, 50), done(protocol));
      expect(shown(await client.ready())).toEqual(end(200));
      await finish(client, 200);
    });
  });
});

it.each([true, false])('beyond the journal, its own commit in doubt (took effect: %s)', async (committed) => {
  base += 1_000_000;
  const client = await stage.raw();
  const count = Math.ceil((2 * JOURNAL) / 90);
  client.send(start('simple'));
  await client.until('G');
  client.forget();
  if (committed) stage.proxy.when('server', holds('COMMIT\0'), (connection) => connection.holdServerReplies());
  else stage.proxy.when('client', holds('COMMIT\0'), (connection) => connection.holdClientBytes());
  client.send(data(0, count), serialize.copyDone());
  const { connection } = stage.line(client);
  await eventually(() => connection.parked(committed ? 'server' : 'client').includes('COMMIT\0'), {
    message: 'the commit',
  });
  connection.cut();
  const heard = shown(await client.ready());
  expect(heard).toEqual([committed ? `C:COPY ${count}.` : expect.stringMatching(/^E:54000:/), 'Z:I']);
  expect(await loaded()).toBe(committed ? count : 0);
  await stillWorks(client);
});

it.each(['flush', 'none'] as const)('an extended COPY without a Sync behind its Execute (%s)', async (ending) => {
  for (const inside of [false, true]) {
    base += 1_000_000;
    const client = await stage.raw();
    if (inside) await begin(client);
    client.send(start('extended', ending));
    if (ending === 'none') client.send(data(0, 10));
    await client.until('G');
    client.send(data(10, 10), done('extended'));
    expect(shown(await client.ready()).slice(-2)).toEqual([
      ending === 'none' ? 'C:COPY 20.' : 'C:COPY 10.',
      inside ? 'Z:T' : 'Z:I',
    ]);
    if (inside) {
      client.send(serialize.query('commit'));
      await client.ready();
    }
    await stillWorks(client);
  }
});

it('an extended COPY that the server refuses', async () => {
  base += 1_000_000;
  const client = await stage.raw();
  const refused = [serialize.parse({ text: 'copy nowhere from stdin' }), serialize.bind({}), serialize.execute({})];
  client.send(...refused, serialize.sync());
  expect(shown(await client.ready())).toEqual(['1', '2', expect.stringMatching(/^E:42P01:/), 'Z:I']);
  // A client that does not wait for the answer.
  client.send(...refused, data(0, 5), done('extended'), serialize.query('select 5'));
  const heard = shown(await client.ready(2));
  expect(heard[2]).toMatch(/^E:42P01:/);
  expect(heard.filter((frame) => frame.startsWith('Z'))).toEqual(['Z:I', 'Z:I']);
  await stillWorks(client);
});

it('a COPY between BEGIN and COMMIT in one text', async () => {
  base += 1_000_000;
  const client = await stage.raw();
  client.send(serialize.query(`begin; ${SQL}; commit`));
  await client.until('G');
  client.send(data(0, 100));
  await delivered(client, 100 * 90);
  stage.line(client).connection.cut();
  client.send(data(100, 100), serialize.copyDone());
  expect(shown(await client.ready()).filter((frame) => !frame.startsWith('G'))).toEqual([
    'C:BEGIN.',
    'C:COPY 200.',
    'C:COMMIT.',
    'Z:I',
  ]);
  expect(await loaded()).toBe(200);
  await stillWorks(client);
});

it('the next COPY comes while an earlier one is repeated', async () => {
  base += 1_000_000;
  const client = await stage.raw();
  await begin(client);
  client.send(start('extended'));
  await client.until('G');
  client.send(data(0, 100), done('extended'));
  await client.ready();
  stage.line(client).connection.cut();
  client.send(start('extended'), data(100, 100), done('extended'));
  expect(shown(await client.ready()).at(-2)).toBe('C:COPY 100.');
  client.send(serialize.query('commit'));
  await client.ready();
  expect(await loaded()).toBe(200);
  await stillWorks(client);
});

it('pg-copy-streams goes on through the loss', async () => {
  base += 1_000_000;
  const client = await stage.pg();
  for (const inside of [false, true]) {
    if (inside) await client.query('begin');
    const from = inside ? 500 : 0;
    const stream = client.query(copyFrom(SQL));
    let chunk = 0;
    await pipeline(
      Readable.from(
        (async function* () {
          for (; chunk < 10; chunk++) {
            if (chunk === 5) stage.proxy.cut();
            yield rows(from + chunk * 20, 20);
            await new Promise((resolve) => setImmediate(resolve));
          }
        })(),
      ),
      stream,
    );
    expect(stream.rowCount).toBe(200);
    if (inside) await client.query('commit');
  }
  expect(await loaded()).toBe(400);
  expect(client.lost).toEqual([]);
  await client.end();
});

it('pg-copy-streams beyond the journal gets 54000, and its client works on', async () => {
  base += 1_000_000;
  const client = await stage.pg();
  await client.query('begin');
  await client.query(`insert into c values (${base + 1}, 'first')`);
  const copying = pipeline(
    Readable.from(
      (async function* () {
        for (let chunk = 0; chunk < 60; chunk++) {
          if (chunk === 40) {
            await eventually(() => stage.proxy.connections.some((c) => c.forwarded('client') > JOURNAL));
            stage.proxy.cut();
          }
          yield rows(1000 + chunk * 30, 30);
          await new Promise((resolve) => setImmediate(resolve));
        }
      })(),
    ),
    client.query(copyFrom(SQL)),
  );
  await expect(copying).rejects.toMatchObject({ code: '54000', detail: 'OUTLIVE_JOURNAL_LIMIT' });
  await expect(client.query('select 1')).rejects.toMatchObject({ code: '25P02' });
  await client.query('rollback');
  expect((await client.query('select 1 as x')).rows).toEqual([{ x: 1 }]);
  expect(await loaded()).toBe(0);
  expect(client.lost).toEqual([]);
  await client.end();
});
