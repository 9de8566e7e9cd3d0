import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import { Request } from 'tedious';
import { beforeAll, describe, expect, it } from 'vitest';
import { refusal, TdsClient, TYPES } from '../kit/tds.js';
import { type TdsStage, useTdsStage } from '../kit/tds-stage.js';

/** Prepares a statement with the parameter @n; gives what runs it. */
async function prepare(client: TdsClient, text: string): Promise<(n: number) => Promise<unknown[]>> {
  let settle: (error?: Error | null) => void = () => {};
  let rows: unknown[] = [];
  const request = new Request(text, (error) => settle(error));
  request.addParameter('n', TYPES.Int);
  request.on('row', (columns: { value: unknown }[]) => rows.push(columns[0].value));
  client.connection.prepare(request);
  await once(request, 'prepared');
  return (n) =>
    new Promise((done, fail) => {
      rows = [];
      settle = (error) => (error ? fail(error) : done(rows));
      client.connection.execute(request, { n });
    });
}

const ids = async (client: TdsClient) => (await client.sql('SELECT id FROM kept ORDER BY id')).rows.map(({ id }) => id);

/** A request that the primary is working on. */
async function running(stage: TdsStage, text: string): Promise<void> {
  await stage.primary.waitFor((event) => event.kind === 'request' && event.text === text);
}

describe.each([
  ['tells of transactions in text', true],
  ['does not tell of transactions in text', false],
])('a server that %s', (_, textTransactions) => {
  const stage = useTdsStage({ textTransactions });

  beforeAll(async () => {
    const client = await TdsClient.connect(stage.primary.port);
    await client.batch('CREATE TABLE kept (id int PRIMARY KEY, name nvarchar(20)); CREATE DATABASE other');
    await client.close();
    // Its transactions are called otherwise than the other server's.
    for (let i = 0; i < 7; i++) stage.standby.nextDescriptor();
  });

  async function connect(): Promise<TdsClient> {
    const client = await stage.connect();
    await client.batch('DELETE FROM kept');
    return client;
  }

  it('answers through the gateway as by itself', async () => {
    const clients = [await stage.connect(), await stage.direct()];
    for (const sql of [
      'SELECT 1 AS one',
      "SELECT 'a' AS a, NULL AS b, CAST(2.5 AS decimal(5,2)) AS c",
      'SELECT 1 FROM nothing',
      "PRINT 'hello'; SELECT 1 AS a; SELECT 2 AS b",
      "RAISERROR('no', 16, 3)",
    ]) {
      const [through, direct] = await Promise.all(
        clients.map((client) => client.batch(sql).catch(({ message, number, state }) => ({ message, number, state }))),
      );
      expect(through).toEqual(direct);
    }
  });

  it('is left in an open transaction that goes on', async () => {
    const client = await connect();
    await client.begin();
    await client.sql("INSERT INTO kept VALUES (1, 'one')");
    const { descriptor } = client;
    await stage.kill();
    await client.sql("INSERT INTO kept VALUES (2, 'two')");
    expect(client.descriptor).toBe(descriptor);
    expect(await ids(client)).toEqual([1, 2]);
    await client.commit();
    expect(client.lost).toEqual([]);
    expect(await ids(await stage.direct())).toEqual([1, 2]);
  });

  it('is left in a transaction that text began', async () => {
    const client = await connect();
    await client.batch('BEGIN TRANSACTION');
    await client.batch("INSERT INTO kept VALUES (1, 'one')");
    await client.batch('SAVE TRANSACTION here');
    await client.batch("INSERT INTO kept VALUES (2, 'two')");
    await client.batch('BEGIN TRANSACTION');
    await stage.kill();
    expect((await client.batch('SELECT @@TRANCOUNT AS n')).rows).toEqual([{ n: 2 }]);
    await client.batch('COMMIT');
    expect(await ids(client)).toEqual([1, 2]);
    await client.batch('ROLLBACK TRANSACTION here');
    await client.batch('IF @@TRANCOUNT > 0 COMMIT TRANSACTION');
    expect((await client.batch('SELECT @@TRANCOUNT AS n')).rows).toEqual([{ n: 0 }]);
    expect(await ids(await stage.direct())).toEqual([1]);
  });

  it('is left in a transaction that a statement began by itself', async () => {
    const client = await connect();
    await client.batch('SET IMPLICIT_TRANSACTIONS ON');
    await client.batch("INSERT INTO kept VALUES (1, 'one')");
    await stage.kill();
    await client.batch("INSERT INTO kept VALUES (2, 'two')");
    await client.batch('ROLLBACK');
    expect(await ids(client)).toEqual([]);
    await client.batch("INSERT INTO kept VALUES (3, 'three')");
    await client.batch('COMMIT');
    expect(await ids(await stage.direct())).toEqual([3]);
  });

  it('is left with the state of its sessions', async () => {
    const client = await connect();
    await client.batch('USE other; SET LOCK_TIMEOUT 1234; SET TRANSACTION ISOLATION LEVEL REPEATABLE READ');
    await client.batch('SET TEXTSIZE 100 SET CONTEXT_INFO 0x1234');
    const statement = await prepare(client, 'SELECT @n AS n');
    await stage.kill();
    const { rows } = await client.batch(
      'SELECT DB_NAME() AS d, @@LOCK_TIMEOUT AS l, @@TEXTSIZE AS t, CONTEXT_INFO() AS c',
    );
    expect(rows).toMatchObject([{ d: 'other', l: 1234, t: 100 }]);
    expect((rows[0].c as Buffer).toString('hex', 0, 2)).toBe('1234');
    const level = 'SELECT transaction_isolation_level AS l FROM sys.dm_exec_sessions WHERE session_id = @@SPID';
    expect((await client.batch(level)).rows).toEqual([{ l: 3 }]);
    expect(await statement(5)).toEqual([5]);
    expect(client.lost).toEqual([]);
  });

  it('is left with statements that were prepared before and in the open transaction', async () => {
    const client = await connect();
    await prepare(client, 'SELECT @n + 1 AS n');
    const earlier = await prepare(client, 'SELECT @n + 2 AS n');
    await client.begin();
    const within = await prepare(client, 'SELECT @n + 3 AS n');
    expect(await within(1)).toEqual([4]);
    await stage.kill();
    expect([await earlier(1), await within(1)]).toEqual([[3], [4]]);
    await client.commit();
    expect([await earlier(1), await within(1)]).toEqual([[3], [4]]);
  });

  it('is left with a transaction that cannot be repeated, of which the client is told once', async () => {
    const client = await connect();
    await client.begin();
    await client.sql('SELECT NEWID() AS id');
    await client.sql("INSERT INTO kept VALUES (1, 'one')");
    await stage.kill();
    expect(await refusal(client.sql('SELECT 1 AS one'))).toMatchObject({
      number: 1205,
      message: expect.stringContaining('[OUTLIVE_REPLAY_DIVERGED]'),
    });
    expect(client.descriptor).toBe('0000000000000000');
    expect(await ids(client)).toEqual([]);
    await client.begin();
    await client.sql("INSERT INTO kept VALUES (1, 'one')");
    await client.commit();
    expect(await ids(await stage.direct())).toEqual([1]);
  });

  it('is left with a transaction that cannot be repeated, which its client rolls back', async () => {
    const client = await connect();
    await client.begin();
    await client.sql('SELECT NEWID() AS id');
    await stage.kill();
    await client.rollback();
    expect(await ids(client)).toEqual([]);
    await client.batch('BEGIN TRAN; SELECT NEWID() AS id');
    await stage.pair.rebuild();
    await stage.kill();
    await client.batch('ROLLBACK');
    expect((await client.batch('SELECT @@TRANCOUNT AS n')).rows).toEqual([{ n: 0 }]);
  });

  it('is left amid a rollback, which is done then', async () => {
    const client = await connect();
    await client.begin();
    await client.sql("INSERT INTO kept VALUES (1, 'one')");
    await stage.pair.primary.freeze();
    const rolledBack = client.rollback();
    await sleep(100);
    await stage.pair.failover({ how: 'freeze' });
    await rolledBack;
    expect(client.descriptor).toBe('0000000000000000');
    expect(await ids(client)).toEqual([]);
  });

  it('is left amid what cannot be told to have taken effect', async () => {
    const client = await connect();
    await client.begin();
    await client.sql("INSERT INTO kept VALUES (1, 'one')");
    const gate = stage.primary.hold('after-commit');
    const unknown = refusal(client.commit());
    await gate.reached;
    await stage.kill();
    gate.release();
    expect(await unknown).toMatchObject({ number: 50087 });
    expect(client.descriptor).toBe('0000000000000000');
    expect((await client.sql('SELECT 1 AS one')).rows).toEqual([{ one: 1 }]);
    await stage.pair.rebuild();
    const text = "WAITFOR DELAY '00:00:01'; INSERT INTO kept VALUES (2, 'two')";
    const single = refusal(client.batch(text));
    await running(stage, text);
    await stage.kill();
    expect(await single).toMatchObject({ number: 50087 });
    expect((await client.sql('SELECT 1 AS one')).rows).toEqual([{ one: 1 }]);
  });

  it('is left amid what only reads, which is repeated', async () => {
    const client = await connect();
    const text = "WAITFOR DELAY '00:00:01'; SELECT 7 AS seven";
    const answer = client.batch(text);
    await running(stage, text);
    await stage.kill();
    expect((await answer).rows).toEqual([{ seven: 7 }]);
  });

  it('is left amid a result, which goes on in its middle', async () => {
    const client = await connect();
    await client.batch('DROP TABLE IF EXISTS big; CREATE TABLE big (id int PRIMARY KEY, pad varchar(2000))');
    for (let i = 0; i < 20; i++) await client.batch(`INSERT INTO big SELECT ${i}, REPLICATE('x', 2000)`);
    const text =
      'SELECT a.id AS a, b.id AS b, c.id AS c, a.pad FROM big a CROSS JOIN big b CROSS JOIN big c ORDER BY a.id, b.id, c.id';
    const whole = (await client.batch(text)).rows;
    let rows = 0;
    let stalled: () => void;
    const stall = new Promise<void>((done) => (stalled = done));
    const answer = client.run(
      (request, connection) => connection.execSqlBatch(request),
      text,
      [],
      (request) => {
        request.on('row', () => {
          if (++rows === 1000) {
            request.pause();
            stalled();
          }
        });
        void stall.then(async () => {
          await stage.kill();
          request.resume();
        });
      },
    );
    const again = (await answer).rows;
    expect(again.length).toBe(8000);
    expect(again).toEqual(whole);
    expect(client.lost).toEqual([]);
  });

  it('stops what its client cancels, before and after a move', async () => {
    const client = await connect();
    const cancelled = (text: string, when: Promise<unknown>) =>
      client.run((request, connection) => {
        connection.execSqlBatch(request);
        void when.then(() => connection.cancel());
      }, text);
    const slow = "WAITFOR DELAY '00:00:20'; SELECT 1 AS one";
    await expect(cancelled(slow, running(stage, slow))).rejects.toMatchObject({ code: 'ECANCEL' });
    expect((await client.sql('SELECT 1 AS one')).rows).toEqual([{ one: 1 }]);
    await client.begin();
    await client.sql("INSERT INTO kept VALUES (1, 'one')");
    const again = "WAITFOR DELAY '00:00:21'; SELECT 1 AS one";
    const moved = running(stage, again)
      .then(() => stage.kill())
      .then(() => running(stage, again));
    await expect(cancelled(again, moved)).rejects.toMatchObject({ code: 'ECANCEL' });
    expect(await ids(client)).toEqual([1]);
    await client.commit();
    expect(await ids(await stage.direct())).toEqual([1]);
  });

  it('loads in bulk before a move, in an open transaction across it, and amid it', async () => {
    const client = await connect();
    const load = (from: number, midway?: () => Promise<void>) =>
      new Promise<number>((done, fail) => {
        const bulk = client.connection.newBulkLoad('kept', (error, count) => (error ? fail(error) : done(count ?? 0)));
        bulk.addColumn('id', TYPES.Int, { nullable: false });
        bulk.addColumn('name', TYPES.NVarChar, { length: 20, nullable: true });
        async function* rows() {
          for (let i = 0; i < 500; i++) {
            if (i === 250) await midway?.();
            yield [from + i, `row ${i}`];
          }
        }
        client.connection.execBulkLoad(bulk, rows() as never);
      });
    const count = async () => (await client.sql('SELECT COUNT(*) AS n FROM kept')).rows[0].n;
    expect(await load(1000)).toBe(500);
    await client.begin();
    await load(2000);
    await stage.kill();
    expect(await count()).toBe(1000);
    await client.commit();
    await stage.pair.rebuild();
    // Announced on the one, loaded on the other.
    expect(await load(3000, () => stage.kill())).toBe(500);
    expect(await count()).toBe(1500);
    expect(client.lost).toEqual([]);
  });

  it('forgets the state of a session that is reset', async () => {
    const client = await connect();
    await client.batch('SET LOCK_TIMEOUT 77; CREATE TABLE #made (id int)');
    await client.reset();
    await stage.kill();
    expect((await client.batch('SELECT @@LOCK_TIMEOUT AS t')).rows).toEqual([{ t: -1 }]);
  });

  it('is left without temporary tables, of which the client is told', async () => {
    const client = await connect();
    await client.batch('CREATE TABLE #made (id int)');
    await stage.kill();
    expect(await refusal(client.batch('SELECT 1 AS one'))).toMatchObject({
      number: 50055,
      message: expect.stringContaining('temporary table #made'),
    });
    expect((await client.batch('SELECT 1 AS one')).rows).toEqual([{ one: 1 }]);
  });
});
