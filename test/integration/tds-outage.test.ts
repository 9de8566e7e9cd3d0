import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { type FaultConnection, type FaultProxy, holds, startFaultProxy } from '../kit/fault-proxy.js';
import type { TestGateway } from '../kit/gateway.js';
import { eventually, selfSignedCert, tempDir, useServer } from '../kit/servers.js';
import { refusal, TdsClient, TYPES } from '../kit/tds.js';
import { TdsProcess } from '../kit/tds-process.js';
import { RawTds } from '../kit/tds-raw.js';
import { launchTdsGateway, setUpMarks, useTdsStage } from '../kit/tds-stage.js';

const TABLE = "CREATE TABLE o (id int PRIMARY KEY, v nvarchar(20)); INSERT INTO o VALUES (0, N'x')";
const NONE = '0000000000000000';
let ids = 0;

const NO_SERVER = {
  number: 40613,
  message: expect.stringContaining('[OUTLIVE_NO_WRITABLE_SERVER]'),
};
/** How long clients of the hasty gateway wait. */
const WAIT = 600;
const QUEUE = 32 * 1024;
/** A link over which nothing comes for so long is looked at. */
const SILENCE = 600;
const SIGN = 'outlive: waiting for a server that accepts writes';

const status = ({ gateway }: TestGateway) => JSON.stringify(gateway.status());
/** Waits until no session of a gateway has a server. */
const lostAll = (gateway: TestGateway) =>
  eventually(() => !/"live":[1-9]/.test(status(gateway)), { message: 'the loss' });
const outcomes = ({ gateway }: TestGateway) => Object.fromEntries(gateway.stats.outcomes);

describe('one server', () => {
  const holder = useServer();
  const tls = selfSignedCert();
  /** A process of its own. */
  let server: TdsProcess;
  let proxy: FaultProxy;
  /** Its clients wait long. */
  let patient: TestGateway;
  /** Gives up soon. */
  let hasty: TestGateway;
  const clients: TdsClient[] = [];

  const start = () => {
    const { host, port } = holder.server;
    return TdsProcess.start({ name: 'a', tls, pg: { host, port, user: 'postgres', database: 'postgres' } });
  };

  beforeAll(async () => {
    server = await start();
    const direct = await TdsClient.connect(server.port);
    await direct.batch(TABLE);
    await direct.close();
    await setUpMarks(server);
    proxy = await startFaultProxy({ target: () => ({ host: '127.0.0.1', port: server.port }) });
    const launch = (wait: string) =>
      launchTdsGateway(new Map([['a', proxy]]), {
        listener: {
          outcome: { by: 'marker' },
          failover: { wait, keepalive: '100ms' },
          limits: { queue: '32KiB', request: '1MiB' },
        },
        cluster: { detection: { silence: `${SILENCE}ms` } },
        logLevel: 'silent',
      });
    patient = await launch('30s');
    hasty = await launch(`${WAIT}ms`);
  });
  afterEach(async () => {
    for (const client of clients.splice(0)) {
      expect(client.lost).toEqual([]);
      client.connection.close();
    }
    if (!holder.server.running) await holder.server.start();
    await proxy.heal();
  });
  afterAll(async () => {
    await patient?.stop();
    await hasty?.stop();
    await proxy?.close();
    await server?.kill();
  });

  async function connect(to = patient, options = {}): Promise<TdsClient> {
    const client = await TdsClient.connect(to.port, options);
    clients.push(client);
    return client;
  }

  /** What is there of a hundred ids. */
  const present = async (from: number) =>
    (
      await holder.server.query<{ id: number }>(
        `select id from app.o where id between ${from} and ${from + 99} order by id`,
      )
    ).rows.map(({ id }) => id - from);

  const working = (text: string) => server.waitFor((event) => event.kind === 'request' && event.text === text);

  describe.each([
    ['the PostgreSQL behind it crashes', () => holder.server.kill(), () => holder.server.start()],
    [
      'its process dies',
      () => server.kill(),
      async () => {
        server = await start();
      },
    ],
  ])('%s', (_, fall, rise) => {
    it('sessions wait and go on', async () => {
      const from = ++ids * 100;
      const [idle, open, busy] = [await connect(), await connect(), await connect()];
      await idle.batch('SET LOCK_TIMEOUT 1234');
      await open.begin();
      await open.sql(`INSERT INTO o VALUES (${from}, N'one')`);
      const { descriptor } = open;
      await busy.begin();
      await busy.sql(`INSERT INTO o VALUES (${from + 1}, N'two')`);
      const text = `WAITFOR DELAY '00:00:00.400'; SELECT ${from} AS x`;
      const slept = busy.batch(text);
      await working(text);
      await fall();
      // Asked while there is no server, ...
      const asked = idle.batch('SELECT @@LOCK_TIMEOUT AS t');
      const inserted = open.sql(`INSERT INTO o VALUES (${from + 2}, N'three')`);
      // ... and somebody comes.
      const came = connect();
      await rise();
      expect((await asked).rows).toEqual([{ t: 1234 }]);
      expect((await inserted).rowCount).toBe(1);
      expect(open.descriptor).toBe(descriptor);
      expect((await slept).rows).toEqual([{ x: from }]);
      expect((await (await came).batch('SELECT 1 AS x')).rows).toEqual([{ x: 1 }]);
      for (const client of [open, busy]) {
        await client.commit();
        expect(client.descriptor).toBe(NONE);
      }
      expect(await present(from)).toEqual([0, 1, 2]);
    });

    it('commits in doubt are there once, whether they took effect or not', async () => {
      const from = ++ids * 100;
      const before = outcomes(patient);
      const answers: Promise<unknown>[] = [];
      const gates = [];
      for (const place of ['after-commit', 'before-commit'] as const) {
        for (const inside of [true, false]) {
          const client = await connect();
          const text = `INSERT INTO o VALUES (${from + answers.length}, N'doubt')`;
          if (inside) {
            await client.begin();
            await client.sql(text);
          }
          const gate = server.hold(place);
          gates.push(gate);
          answers.push(inside ? client.commit() : client.batch(text));
          await gate.reached;
        }
      }
      await fall();
      for (const gate of gates) gate.release();
      await rise();
      await Promise.all(answers);
      expect(await present(from)).toEqual([0, 1, 2, 3]);
      expect(outcomes(patient)).toEqual({
        committed: (before.committed ?? 0) + 2,
        'not-committed': (before['not-committed'] ?? 0) + 2,
      });
    });
  });

  describe('no server takes writes within the wait', () => {
    it('whoever waits is told, keeps its connection, and each request tries again', async () => {
      const from = ++ids * 100;
      const insert = (id: number) => `INSERT INTO o VALUES (${from + id}, N'x')`;
      const before = outcomes(hasty);
      const [reads, writes, open, commits, single, loads] = await Promise.all(
        Array.from({ length: 6 }, () => connect(hasty)),
      );
      await reads.batch('SET LOCK_TIMEOUT 77');
      await open.begin();
      await open.sql(insert(0));
      await commits.begin();
      await commits.sql(insert(1));
      const told: [what: string, answer: Promise<unknown>, expected: object][] = [];
      const gates = [];
      for (const [what, run] of [
        ['a commit', () => commits.commit()],
        ['a statement that commits by itself', () => single.batch(insert(2))],
      ] as const) {
        const gate = server.hold('after-commit');
        gates.push(gate);
        told.push([what, refusal(run()), { number: 50087 }]);
        await gate.reached;
      }
      const text = `WAITFOR DELAY '00:00:20'; SELECT ${from} AS x`;
      told.push(['in a transaction', refusal(open.batch(text)), NO_SERVER]);
      await working(text);
      const loading = load(loads, LOADED, true);
      told.push(['a bulk load', refusal(loading.answer), NO_SERVER]);
      await loading.midway;

      await holder.server.kill();
      for (const gate of gates) gate.release();
      // A load that a server has may have taken effect.
      await lostAll(hasty);
      loading.goOn();
      const began = performance.now();
      told.push(['a read', refusal(reads.sql('SELECT 1 AS one')), NO_SERVER]);
      told.push(['a write', refusal(writes.batch(insert(3))), NO_SERVER]);
      for (const [what, answer, expected] of told) expect(await answer, what).toMatchObject(expected);
      expect(performance.now() - began).toBeGreaterThan(WAIT / 3);
      for (const client of [open, commits]) expect(client.descriptor).toBe(NONE);
      const refused = refusal(connect(hasty, { maxRetriesOnTransientErrors: 0 }));
      const again = await Promise.all(
        [reads, writes, open, commits, single, loads].map((client) => refusal(client.batch('SELECT 1 AS one'))),
      );
      for (const error of again) expect(error).toMatchObject(NO_SERVER);
      expect((await refused).message).toContain('[OUTLIVE_NO_WRITABLE_SERVER]');
      // What a driver tries again by itself, it gets.
      const came = connect(hasty);
      const seen = server.events.length;
      await holder.server.start();

      // On a slow machine a session may take longer than its wait to be on the server.
      for (const client of [await came, reads, open, commits, writes, loads])
        expect((await eventually(() => client.batch('SELECT 1 AS one'))).rows).toEqual([{ one: 1 }]);
      expect((await reads.batch('SELECT @@LOCK_TIMEOUT AS t')).rows).toEqual([{ t: 77 }]);
      expect((await open.batch('SELECT @@TRANCOUNT AS n')).rows).toEqual([{ n: 0 }]);
      expect(await present(from)).toEqual([1, 2]);
      await open.begin();
      await open.sql(insert(0));
      await open.commit();
      await writes.batch(insert(3));
      expect(await load(loads, LOADED).answer).toBe(ROWS);
      // The load that came to nothing was not announced again.
      await server.waitFor(({ kind, rows }) => kind === 'bulk' && rows === ROWS);
      const announced = server.events.slice(seen).filter(({ text }) => String(text).startsWith('insert bulk'));
      expect(announced.length).toBe(1);
      expect(await present(from)).toEqual([0, 1, 2, 3]);
      expect(outcomes(hasty)).toEqual({ ...before, unknown: (before.unknown ?? 0) + 2 });
    });

    it('a transaction that waits for nothing goes on when a server is there again', async () => {
      const from = ++ids * 100;
      const client = await connect(hasty);
      await client.begin();
      await client.sql(`INSERT INTO o VALUES (${from}, N'x')`);
      const { descriptor } = client;
      const waitIsOver = () =>
        eventually(() => status(hasty).includes('"detached":1'), { message: 'the end of the wait' });
      await holder.server.kill();
      await waitIsOver();
      await holder.server.start();
      expect((await client.sql(`SELECT id FROM o WHERE id = ${from}`)).rows).toEqual([{ id: from }]);
      expect(client.descriptor).toBe(descriptor);
      await client.sql(`INSERT INTO o VALUES (${from + 1}, N'x')`);
      await client.commit();
      expect(await present(from)).toEqual([0, 1]);
      // Who speaks while there is none is told, and the transaction is over.
      await client.begin();
      await client.sql(`INSERT INTO o VALUES (${from + 2}, N'x')`);
      await holder.server.kill();
      await waitIsOver();
      expect(await refusal(client.sql('SELECT 1 AS one'))).toMatchObject(NO_SERVER);
      expect(client.descriptor).toBe(NONE);
      await holder.server.start();
      expect((await client.batch('SELECT @@TRANCOUNT AS n')).rows).toEqual([{ n: 0 }]);
      expect(await present(from)).toEqual([0, 1]);
    });

    it('also where the server is there and read-only', async () => {
      const from = ++ids * 100;
      const insert = (id: number) => `INSERT INTO o VALUES (${from + id}, N'x')`;
      const readOnly = async (on: boolean) => {
        await holder.server.query(`alter system ${on ? 'set default_transaction_read_only = on' : 'reset all'}`);
        await holder.server.query('select pg_reload_conf()');
        await eventually(
          async () =>
            (await holder.server.query<Record<string, string>>('show default_transaction_read_only')).rows[0]
              .default_transaction_read_only === (on ? 'on' : 'off'),
        );
      };
      const [open, writes] = [await connect(hasty), await connect(hasty)];
      await open.begin();
      await open.sql(insert(0));
      await readOnly(true);
      try {
        expect(await refusal(writes.batch(insert(1)))).toMatchObject(NO_SERVER);
        expect(await refusal(writes.batch(insert(1)))).toMatchObject(NO_SERVER);
      } finally {
        await readOnly(false);
      }
      await writes.batch(insert(1));
      await open.sql(insert(2));
      await open.commit();
      expect(await present(from)).toEqual([0, 1, 2]);
    });
  });

  describe('while it waits', () => {
    const raws: RawTds[] = [];
    afterEach(() => {
      for (const raw of raws.splice(0)) raw.close();
    });

    async function raw(): Promise<RawTds> {
      const { raw } = await RawTds.connect(patient.port);
      raws.push(raw);
      return raw;
    }

    const signs = (client: TdsClient) => client.infos.filter(({ message }) => message === SIGN).length;

    /** Waits until a part of an answer has come. What of it is held back is lost with the server. */
    const half = async () => {
      const { stats } = patient.gateway;
      const before = stats.bytesToClients;
      await new Promise<void>((done) => {
        proxy.when(
          'server',
          (bytes) => bytes.length > 200_000,
          (connection) => {
            connection.holdServerReplies();
            done();
          },
        );
      });
      // What the gateway has not read by the time of the cut is lost.
      await eventually(() => stats.bytesToClients > before + 100_000, { message: 'the first half at the client' });
    };

    it('a client that waits for an answer hears that it is not forgotten, an idle one hears nothing', async () => {
      const from = ++ids * 100;
      const [waits, commits] = [await connect(), await connect()];
      const [idle, open] = [await raw(), await raw()];
      await open.batch(`BEGIN TRAN; INSERT INTO o VALUES (${from}, N'x')`);
      await commits.begin();
      await commits.sql(`INSERT INTO o VALUES (${from + 1}, N'x')`);
      const gate = server.hold('after-commit');
      const committed = commits.commit();
      await gate.reached;
      const before = [idle.heard, open.heard];
      await holder.server.kill();
      gate.release();
      const answer = waits.batch('SELECT 7 AS seven');
      await eventually(() => signs(waits) > 2 && signs(commits) > 2, { message: 'signs of life' });
      await holder.server.start();
      expect((await answer).rows).toEqual([{ seven: 7 }]);
      await committed;
      expect(commits.descriptor).toBe(NONE);
      expect(await present(from)).toEqual([1]);
      // And none after it.
      const heard = signs(waits);
      await waits.batch("WAITFOR DELAY '00:00:00.300'");
      expect(signs(waits)).toBe(heard);
      expect([idle.heard, open.heard]).toEqual(before);
      await open.batch('COMMIT');
      expect(await present(from)).toEqual([0, 1]);
    });

    it('a result that was cut hears it between two rows only, a long row not before its end', async () => {
      const [rows, long, witness] = [await connect(), await connect(), await connect()];
      const size = 600_000;
      await rows.begin();
      const result = rows.batch(ROWS_OF_20000);
      await half();
      await long.begin();
      const row = long.batch(`SELECT CAST(REPLICATE('r', ${size}) AS varchar(max)) AS r`);
      await half();
      await holder.server.kill();
      proxy.cut();
      const last = witness.batch('SELECT 1 AS one');
      await eventually(() => signs(rows) > 1 && signs(witness) > 3, { message: 'signs of life' });
      expect(signs(long)).toBe(0);
      await holder.server.start();
      expect((await result).rows.map(({ n, r }) => [n, String(r).length])).toEqual(
        Array.from({ length: 50 }, (_, i) => [i + 1, 20000]),
      );
      expect((await row).rows).toEqual([{ r: 'r'.repeat(size) }]);
      expect(signs(long)).toBe(0);
      await last;
      for (const client of [rows, long]) await client.commit();
    });

    it('what a client sends stays within limits.queue, and each request within limits.request', async () => {
      const [many, wordy] = [await raw(), await TdsClient.connect(patient.port)];
      const count = 400;
      const padding = 'p'.repeat(1000);
      await holder.server.kill();
      await lostAll(patient);
      const before = patient.gateway.stats.bytesFromClients;
      const taken = () => patient.gateway.stats.bytesFromClients - before;
      // No client should do that: what it sends ahead waits for its turn.
      for (let i = 0; i < count; i++) {
        many.send(1, Buffer.concat([many.headers(), Buffer.from(`SELECT ${i} AS i /* ${padding} */`, 'utf16le')]));
      }
      await eventually(() => taken() > QUEUE, { message: 'a full queue' });
      // As long as signs of life come, nothing more is read. What was read at once lies beyond the limit by one read at most.
      const signs = async (count: number) => {
        const from = many.heard;
        await eventually(() => many.heard > from + count * SIGN.length);
      };
      await signs(1);
      const full = taken();
      await signs(6);
      expect(taken()).toBe(full);
      expect(full).toBeLessThan(QUEUE + 256 * 1024);
      expect(await refusal(wordy.batch(`SELECT 1 /* ${padding.repeat(700)} */`))).toMatchObject({ number: 50054 });
      expect(taken()).toBeLessThan(full + 1024 ** 2 + 256 * 1024);
      await eventually(() => wordy.lost.length > 0, { message: 'the end of its connection' });
      await holder.server.start();
      for (let i = 0; i < count; i++) {
        const number = Buffer.from(Int32Array.of(i).buffer);
        expect((await many.answer()).includes(number), `answer ${i}`).toBe(true);
      }
    });

    it('a request that is cancelled is over at once, and the transaction goes on without it', async () => {
      const from = ++ids * 100;
      const insert = (id: number) => `INSERT INTO o VALUES (${from + id}, N'x')`;
      const [asks, long, open, reads] = await Promise.all(Array.from({ length: 4 }, () => connect()));
      const cancelled = async (client: TdsClient, text: string, when: Promise<unknown>) => {
        const answer = refusal(
          client.run((request, connection) => {
            connection.execSqlBatch(request);
            void when.then(() => connection.cancel());
          }, text),
        );
        expect(await answer).toMatchObject({ code: 'ECANCEL' });
      };
      let over = () => {};
      const later = new Promise<void>((done) => (over = done));
      await open.begin();
      await open.sql(insert(0));
      const text = `WAITFOR DELAY '00:00:20'; ${insert(1)}`;
      const inFlight = cancelled(open, text, later);
      await working(text);
      const amid = cancelled(reads, ROWS_OF_20000, later);
      await half();
      await holder.server.kill();
      proxy.cut();
      await lostAll(patient);
      // Longer than the queue, but there is nothing else that its client says.
      const many = [
        cancelled(asks, insert(2), later),
        cancelled(long, `${insert(3)} /* ${'q'.repeat(2 * QUEUE)} */`, later),
        inFlight,
        amid,
      ];
      await eventually(() => [asks, long, open, reads].every((client) => signs(client) > 1), {
        message: 'signs of life',
      });
      over();
      await Promise.all(many);
      await holder.server.start();
      for (const client of [asks, long, reads]) await client.batch('SELECT 1 AS one');
      await open.sql(insert(4));
      await open.commit();
      expect(await present(from)).toEqual([0, 4]);
    });
  });

  describe.each([
    ['swallows everything', (link: FaultConnection) => link.blackhole(), SILENCE / 2],
    ['is reset, of which its server does not hear', (link: FaultConnection) => link.strand(), 0],
  ])('the link of one session %s', (_, cut, least) => {
    /** Runs a batch; gives the link that it takes. */
    const linkOf = async (client: TdsClient, text: string) => {
      const found = proxy.waitFor('client', holds(utf16(text)));
      await client.batch(text);
      return found;
    };

    it('its transaction is repeated on the same server, when the old one is over', async () => {
      const client = await connect();
      const text = `UPDATE o SET v = v + N'y' WHERE id = 0 /* ${++ids} */`;
      await client.begin();
      const link = await linkOf(client, text);
      const before = await working(text);
      cut(link);
      const began = performance.now();
      expect((await client.batch('SELECT v FROM o WHERE id = 0')).rows).toEqual([{ v: 'xy' }]);
      const pause = performance.now() - began;
      expect(pause).toBeGreaterThan(least);
      expect(pause).toBeLessThan(2 * SILENCE + 1500);
      await client.rollback();
      const after = await server.waitFor((event) => event.text === text && event.spid !== before.spid);
      const ended = await server.waitFor(({ kind, spid }) => kind === 'drop' && spid === before.spid);
      expect(server.events.indexOf(ended)).toBeLessThan(server.events.indexOf(after));
    });

    it('a commit is there once, whether the link was lost before it or behind it', async () => {
      const from = ++ids * 100;
      const before = outcomes(patient);
      const answers: Promise<unknown>[] = [];
      for (const side of ['client', 'server'] as const) {
        for (const inside of [true, false]) {
          const text = `INSERT INTO o VALUES (${from + answers.length}, N'x')`;
          const client = await connect();
          const link = await linkOf(client, `SELECT '${text.replaceAll("'", '')}' AS x`);
          if (inside) {
            await client.begin();
            await client.sql(text);
          }
          const bytes = side === 'server' ? COMMITTED : inside ? COMMIT : utf16('COMMIT TRANSACTION');
          proxy.when(side, holds(bytes), cut, { connection: link });
          answers.push(inside ? client.commit() : client.batch(text));
        }
      }
      await Promise.all(answers);
      expect(await present(from)).toEqual([0, 1, 2, 3]);
      expect(outcomes(patient)).toEqual({
        ...before,
        committed: (before.committed ?? 0) + 2,
        'not-committed': (before['not-committed'] ?? 0) + 2,
      });
    });
  });
});

/** Plugins of this process, so that the test can act for them and see in which order they are called. */
const acts: Record<'fence' | 'promote', (server: string) => unknown> = { fence: () => {}, promote: () => {} };
Object.assign(globalThis, { [Symbol.for('outlive.test.tds.acts')]: acts });

function plugin(kind: 'fence' | 'promote') {
  const file = join(tempDir(), `${kind}.mjs`);
  writeFileSync(
    file,
    `export default { name: '${kind}-test', contract: '1.0.0', kind: '${kind}', create: async () => ({
      act: async (server) => { await globalThis[Symbol.for('outlive.test.tds.acts')].${kind}(server); } }) };`,
  );
  return { plugin: file };
}

describe('a pair', () => {
  const stage = useTdsStage({}, { listener: { outcome: { by: 'marker' } }, logLevel: 'silent' });

  beforeAll(async () => {
    const client = await TdsClient.connect(stage.primary.port);
    await client.batch(TABLE);
    await client.close();
    await setUpMarks(stage);
  });

  const present = async (from: number, on = stage.pair.primary) =>
    (
      await on.query<{ id: number }>(`select id from app.o where id between ${from} and ${from + 999_999} order by id`)
    ).rows.map(({ id }) => id - from);
  const firsts = (count: number) => Array.from({ length: count }, (_, i) => i);

  /** Inserts row after row, each by itself or each in a transaction, until it is told to stop. */
  function writer(client: TdsClient, inside: boolean) {
    const from = ++ids * 1_000_000;
    let count = 0;
    let on = true;
    const run = (async () => {
      for (; on; count++) {
        if (inside) await client.begin();
        await client.sql(`INSERT INTO o VALUES (${from + count}, N'x')`);
        if (inside) await client.commit();
      }
    })();
    // Looked at by stop().
    run.catch(() => {});
    return {
      more: async () => {
        const before = count;
        await eventually(() => count > before + 5, { message: 'the work of a writer' });
      },
      /** Each row that was acknowledged is there once, and no other. */
      stop: async (server = stage.pair.primary) => {
        on = false;
        await run;
        expect(await present(from, server)).toEqual(firsts(count));
      },
    };
  }

  it('fast shutdown and promotion: idle, in transactions, amid a request, at work', async () => {
    const from = ++ids * 1_000_000;
    const clients = await Promise.all(Array.from({ length: 5 }, () => stage.connect()));
    const [idle, open, busy, one, other] = clients;
    await idle.batch('SET LOCK_TIMEOUT 1234');
    for (const [i, client] of [open, busy].entries()) {
      await client.begin();
      await client.sql(`INSERT INTO o VALUES (${from + i}, N'x')`);
    }
    const text = "WAITFOR DELAY '00:00:00.700'; SELECT 7 AS x";
    const slept = busy.batch(text);
    await stage.primary.waitFor((event) => event.text === text);
    const writers = [writer(one, false), writer(other, true)];
    for (const { more } of writers) await more();

    await stage.pair.failover({ how: 'fast' });

    await open.sql(`INSERT INTO o VALUES (${from + 2}, N'x')`);
    await open.commit();
    expect((await slept).rows).toEqual([{ x: 7 }]);
    await busy.commit();
    expect(await present(from)).toEqual([0, 1, 2]);
    expect((await idle.batch('SELECT @@LOCK_TIMEOUT AS t')).rows).toEqual([{ t: 1234 }]);
    for (const { more } of writers) await more();
    for (const { stop } of writers) await stop();
    for (const { lost } of clients) expect(lost).toEqual([]);
  });

  it('a black hole before the primary: noticed in time, fenced before any outcome is asked, heard no more', async () => {
    const [timeout, after] = [500, 300];
    const from = ++ids * 1_000_000;
    const [old, next] = [stage.primary, stage.standby];
    const proxies = await Promise.all(
      [old, next].map(({ port }) => startFaultProxy({ target: { host: '127.0.0.1', port } })),
    );
    const order: string[] = [];
    const times: number[] = [];
    const note = (what: string) => {
      if (order.includes(what)) return;
      order.push(what);
      times.push(performance.now());
    };
    acts.fence = async (server) => {
      note(`fence ${server}`);
      await stage.pair.primary.kill();
    };
    acts.promote = async (server) => {
      note(`promote ${server}`);
      await stage.pair.failover({ how: 'kill' });
    };
    const stop = next.onEvent(({ text }) => {
      if (String(text).includes('READCOMMITTEDLOCK')) note(`ask ${next.name}`);
    });
    const gateway = await launchTdsGateway(
      new Map([
        [old.name, proxies[0]],
        [next.name, proxies[1]],
      ]),
      {
        listener: { outcome: { by: 'marker' } },
        cluster: {
          monitor: { user: 'sa', interval: '100ms', timeout: `${timeout}ms` },
          promotion: { ...plugin('promote'), after: `${after}ms` },
          fence: plugin('fence'),
        },
        logLevel: 'silent',
      },
    );
    const clients = await Promise.all(Array.from({ length: 3 }, () => TdsClient.connect(gateway.port)));
    try {
      const [commits, open, idle] = clients;
      await idle.batch('SET LOCK_TIMEOUT 1234');
      for (const [i, client] of [commits, open].entries()) {
        await client.begin();
        await client.sql(`INSERT INTO o VALUES (${from + i}, N'x')`);
      }
      let brokeAt = 0;
      proxies[0].when('client', holds(COMMIT), () => {
        brokeAt = performance.now();
        proxies[0].blackhole();
      });
      await commits.commit();
      await open.sql(`INSERT INTO o VALUES (${from + 2}, N'x')`);
      await open.commit();
      expect((await idle.batch('SELECT @@LOCK_TIMEOUT AS t')).rows).toEqual([{ t: 1234 }]);
      expect(order).toEqual([`fence ${old.name}`, `promote ${next.name}`, `ask ${next.name}`]);
      expect(times[0] - brokeAt).toBeGreaterThan(after);
      expect(times[0] - brokeAt).toBeLessThan(100 + timeout + after + 1500);
      expect(await present(from)).toEqual([0, 1, 2]);
      for (const { lost } of clients) expect(lost).toEqual([]);
    } finally {
      stop();
      for (const { connection } of clients) connection.close();
      await gateway.stop();
      for (const proxy of proxies) await proxy.close();
    }
  });

  // Last: the pair is left with a primary that nobody uses.
  it('a primary that turns read-only and lives on, its standby promoted: the same', async () => {
    const from = ++ids * 1_000_000;
    const { primary: old, standby: next } = stage.pair;
    const insert = (id: number) => `INSERT INTO o VALUES (${from + id}, N'x')`;
    const clients = await Promise.all(Array.from({ length: 5 }, () => stage.connect()));
    const [idle, open, late, one, other] = clients;
    await idle.batch('SET LOCK_TIMEOUT 1234');
    await open.begin();
    await open.sql(insert(0));
    const writers = [writer(one, false), writer(other, true)];
    for (const { more } of writers) await more();
    await old.query('alter system set default_transaction_read_only = on');
    await old.query('select pg_reload_conf()');
    // Began when that was so: reads, and would write.
    const answers = [late.begin().then(() => late.sql(insert(1))), idle.sql(insert(2))];
    await eventually(() => /"suspended":[45]/.test(status(stage.gateway)), { message: 'those that wait' });
    const [{ at }] = (await old.query<{ at: string }>('select pg_current_wal_lsn()::text as at')).rows;
    await eventually(
      async () => (await next.query(`select where pg_last_wal_replay_lsn() >= '${at}'`)).rows.length === 1,
    );
    await next.promote();
    for (const answer of answers) expect((await answer).rowCount).toBe(1);
    await late.commit();
    await open.sql(insert(3));
    await open.commit();
    expect((await idle.batch('SELECT @@LOCK_TIMEOUT AS t')).rows).toEqual([{ t: 1234 }]);
    expect(await present(from, next)).toEqual([0, 1, 2, 3]);
    expect(await present(from, old)).toEqual([]);
    for (const { more } of writers) await more();
    for (const { stop } of writers) await stop(next);
    for (const { lost } of clients) expect(lost).toEqual([]);
  });
});

const utf16 = (text: string) => Buffer.from(text, 'utf16le');
/** Fifty rows, each of which reaches a client whole. */
const ROWS_OF_20000 = `SELECT a.n, CAST(REPLICATE('r', 20000) AS varchar(max)) AS r
  FROM (VALUES ${Array.from({ length: 50 }, (_, i) => `(${i + 1})`).join(', ')}) AS a(n) ORDER BY a.n`;
/** How a message to the transaction manager begins, and what tells that a transaction was committed. */
const COMMIT = Buffer.from('0e010022', 'hex');
const COMMITTED = Buffer.from('e30b0009', 'hex');

/** Ids of rows that are loaded in bulk: so many that their first half does not fit into the driver's buffers before the load is announced. */
const LOADED = 1_000_000;
const ROWS = 4000;

/** Loads rows in bulk. @param stops in the middle, until it is told to go on */
function load(client: TdsClient, from: number, stops = false) {
  let reach = () => {};
  let goOn = () => {};
  const midway = new Promise<void>((done) => (reach = done));
  const told = stops ? new Promise<void>((done) => (goOn = done)) : undefined;
  const answer = new Promise<number>((done, fail) => {
    const bulk = client.connection.newBulkLoad('o', (error, count) => (error ? fail(error) : done(count ?? 0)));
    bulk.addColumn('id', TYPES.Int, { nullable: false });
    bulk.addColumn('v', TYPES.NVarChar, { length: 20, nullable: true });
    async function* rows() {
      for (let i = 0; i < ROWS; i++) {
        if (i === ROWS / 2) reach();
        if (i === ROWS / 2) await told;
        yield [from + i, `row ${i}`];
      }
    }
    client.connection.execBulkLoad(bulk, rows() as never);
  });
  return { answer, midway, goOn };
}
