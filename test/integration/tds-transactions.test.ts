import { beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { holds } from '../kit/fault-proxy.js';
import { eventually } from '../kit/servers.js';
import { type Answer, ISOLATION_LEVEL, refusal, TdsClient, TYPES } from '../kit/tds.js';
import { setUpMarks, useTdsStage } from '../kit/tds-stage.js';

// What a transaction and a session of SQL Server's protocol live through, as the tests of PostgreSQL have it for theirs.

const stage = useTdsStage({}, { proxied: true, listener: { outcome: { by: 'marker' } } });

beforeAll(async () => {
  const client = await TdsClient.connect(stage.primary.port);
  await client.batch('CREATE TABLE account (id int PRIMARY KEY, owner nvarchar(20), balance int)');
  await client.close();
  await setUpMarks(stage);
});

beforeEach(async () => {
  const direct = await stage.direct();
  await direct.batch('DELETE FROM account');
  await direct.batch("INSERT INTO account SELECT g, CONCAT('Ada Secret ', g), 100 FROM generate_series(1, 20) AS g");
});

const NONE = '0000000000000000';
const stats = () => stage.gateway.gateway.stats;
const replays = () => Object.fromEntries(stats().replays);
const balance = async (id: number) =>
  (await (await stage.direct()).sql(`SELECT balance FROM account WHERE id = ${id}`)).rows[0].balance;
/** A transaction can begin and end. */
const works = async (client: TdsClient) => {
  expect(client.descriptor).toBe(NONE);
  await client.begin();
  await client.sql('SELECT 1 AS one');
  await client.commit();
  expect((await client.batch('SELECT @@TRANCOUNT AS n')).rows).toEqual([{ n: 0 }]);
  expect(client.lost).toEqual([]);
};

describe('somebody else changes what the transaction had read, before it is repeated', () => {
  const read = (id: number) => `SELECT owner, balance FROM account WHERE id = ${id}`;
  const diverged = (statement: number) => ({
    number: 1205,
    class: 13,
    message: expect.stringMatching(new RegExp(`statement ${statement} \\(SELECT\\).*\\[OUTLIVE_REPLAY_DIVERGED\\]`)),
  });

  /** Kills; when the accounts are read again by the repetition, their rows are others. */
  async function killAndChange(...ids: number[]): Promise<void> {
    const { standby, nextProxy } = stage;
    const changed = ids.map(
      (id) =>
        new Promise<void>((done, fail) => {
          const change = async () => {
            const other = await TdsClient.connect(standby.port);
            await other.batch(`UPDATE account SET owner = 'Eve Hidden', balance = 55 WHERE id = ${id}`);
            await other.close();
          };
          const needle = Buffer.from(read(id), 'utf16le');
          nextProxy.when('client', holds(needle), () => change().then(done, fail));
        }),
    );
    await stage.kill();
    await Promise.all(changed);
  }

  /** A transaction that has changed account `id + 1` and read account `id`; that first, with an isolation level whose snapshot is taken with it. */
  async function hasRead(id: number, isolation = 0): Promise<TdsClient> {
    const client = await stage.connect();
    await client.begin('', isolation);
    const change = () => client.sql(`UPDATE account SET balance = 7 WHERE id = ${id + 1}`);
    if (isolation === 0) await change();
    expect((await client.sql(read(id))).rows).toEqual([{ owner: `Ada Secret ${id}`, balance: 100 }]);
    if (isolation !== 0) await change();
    return client;
  }

  it('fails with 1205, names the statement and no data, and a retry works', async () => {
    const before = stats().divergences;
    const client = await hasRead(11);
    const text = await stage.connect();
    await text.batch('BEGIN TRANSACTION');
    await text.batch('UPDATE account SET balance = 7 WHERE id = 14');
    await text.batch(read(13));
    const levels = [await hasRead(15, ISOLATION_LEVEL.REPEATABLE_READ), await hasRead(17, ISOLATION_LEVEL.SNAPSHOT)];
    await killAndChange(11, 13, 15, 17);
    const error = await refusal(client.sql('UPDATE account SET balance = 0 WHERE id = 11'));
    expect(error).toMatchObject(diverged(3));
    const whole = JSON.stringify({ ...error, message: error.message });
    for (const secret of ['Ada', 'Eve', 'Secret', 'Hidden', '55', 'account', 'balance']) {
      expect(whole).not.toContain(secret);
    }
    expect(await refusal(text.sql('SELECT 1 AS one'))).toMatchObject(diverged(3));
    for (const other of levels) expect(await refusal(other.sql('SELECT 1 AS one'))).toMatchObject(diverged(2));
    for (const one of [client, text, ...levels]) {
      // The transaction is gone, as that of a deadlock's victim.
      expect(one.descriptor).toBe(NONE);
      expect(await refusal(one.rollback())).toMatchObject({ number: 3903 });
      await one.batch('IF @@TRANCOUNT > 0 ROLLBACK TRANSACTION');
    }
    await client.begin();
    expect((await client.sql(read(11))).rows).toEqual([{ owner: 'Eve Hidden', balance: 55 }]);
    await client.sql('UPDATE account SET balance = 7 WHERE id = 12');
    await client.commit();
    expect([await balance(11), await balance(12), await balance(14), await balance(16)]).toEqual([55, 7, 100, 100]);
    for (const one of [client, text, ...levels]) await works(one);
    expect(stats().divergences).toBe(before + 4);
  });

  it('answers COMMIT with the error, and takes ROLLBACK for what it is', async () => {
    const manager = [await hasRead(1), await hasRead(3)];
    const text = [await hasRead(5), await hasRead(7)];
    await killAndChange(1, 3, 5, 7);
    expect(await refusal(manager[0].commit())).toMatchObject(diverged(3));
    await manager[1].rollback();
    expect(await refusal(text[0].batch('COMMIT TRANSACTION'))).toMatchObject(diverged(3));
    await text[1].batch('ROLLBACK TRANSACTION');
    for (const id of [2, 4, 6, 8]) expect(await balance(id)).toBe(100);
    for (const client of [...manager, ...text]) await works(client);
  });

  it('lets a statement that had no answer yet see the present', async () => {
    const client = await stage.connect();
    await client.begin();
    await client.sql('UPDATE account SET balance = 7 WHERE id = 2');
    const other = await stage.direct();
    await other.batch('BEGIN TRANSACTION; UPDATE account SET balance = 1 WHERE id = 1');
    const text = `${read(1).replace('account', 'account WITH (UPDLOCK)')} AND 1 = 1`;
    const slow = client.batch(text);
    await stage.primary.waitFor((event) => event.text === text);
    const next = stage.standby;
    const changed = new Promise<void>((done, fail) => {
      stage.nextProxy.when('client', holds(Buffer.from(text, 'utf16le')), async () => {
        const eve = await TdsClient.connect(next.port);
        await eve.batch('UPDATE account SET balance = 55 WHERE id = 1').then(() => done(), fail);
        await eve.close();
      });
    });
    await stage.kill();
    expect((await slow).rows).toMatchObject([{ balance: 55 }]);
    await changed;
    await client.commit();
    expect(await balance(2)).toBe(7);
  });
});

/** How often a text was run on the server that takes writes. */
const runs = (text: string) =>
  stage.primary.events.filter(
    ({ kind, text: batch, first }) => kind === 'request' && (batch === text || first === text),
  ).length;

describe('what is someone’s will is passed on, and not repeated', () => {
  let before: unknown;
  beforeEach(() => {
    before = [replays(), stats().divergences, [...stats().errors]];
  });
  const untouched = (client: TdsClient) => {
    expect([replays(), stats().divergences, [...stats().errors]]).toEqual(before);
    expect(client.lost).toEqual([]);
  };

  it('a lock that is not had in time', async () => {
    const [client, other] = [await stage.connect(), await stage.direct()];
    await other.batch('BEGIN TRANSACTION; UPDATE account SET balance = 1 WHERE id = 1');
    await client.batch('SET LOCK_TIMEOUT 50');
    await client.begin();
    const { descriptor } = client;
    const text = 'UPDATE account SET balance = 2 WHERE id = 1';
    expect(await refusal(client.sql(text))).toMatchObject({ number: 1222 });
    expect(client.descriptor).toBe(descriptor);
    await client.sql('UPDATE account SET balance = 2 WHERE id = 2');
    await client.commit();
    expect([runs(text), await balance(2)]).toEqual([1, 2]);
    untouched(client);
  });

  it('a deadlock, to one of two', async () => {
    const clients = [await stage.connect(), await stage.connect()];
    const change = (id: number, by: number) => `UPDATE account SET balance = balance - ${by} WHERE id = ${id}`;
    for (const [i, client] of clients.entries()) {
      await client.begin();
      await client.sql(change(i + 1, i + 1));
    }
    const second = clients.map((_, i) => change(2 - i, 10 + i));
    const ends = await Promise.all(
      clients.map((client, i) =>
        client.sql(second[i]).then(
          () => null,
          (error) => error,
        ),
      ),
    );
    const victim = ends[0] === null ? 1 : 0;
    expect(ends[1 - victim]).toBe(null);
    expect(ends[victim]).toMatchObject({ number: 1205, message: expect.stringContaining('deadlock victim') });
    expect(clients[victim].descriptor).toBe(NONE);
    await clients[1 - victim].commit();
    await works(clients[victim]);
    expect(second.map(runs)).toEqual([1, 1]);
    for (const client of clients) untouched(client);
  });

  it('the end of a client’s own patience', async () => {
    const client = await stage.connect();
    await client.begin();
    await client.sql('UPDATE account SET balance = 2 WHERE id = 2');
    const text = "WAITFOR DELAY '00:00:20'; SELECT 1 AS one";
    const heard = stage.primary.counts.attention ?? 0;
    const impatient = client.run(
      (request, connection) => connection.execSqlBatch(request),
      text,
      [],
      (request) => request.setTimeout(100),
    );
    await expect(impatient).rejects.toMatchObject({ code: 'ETIMEOUT' });
    expect((await client.sql('SELECT balance FROM account WHERE id = 2')).rows).toEqual([{ balance: 2 }]);
    await client.commit();
    expect([runs(text), stage.primary.counts.attention - heard, await balance(2)]).toEqual([1, 1, 2]);
    untouched(client);
  });

  it.each([
    ['RAISERROR', "RAISERROR('no %d', 16, 3, 5)", 50000, false],
    ['THROW', "THROW 51234, 'thrown', 2", 51234, false],
    ['a key that is there already', "INSERT INTO account VALUES (3, 'x', 1)", 2627, false],
    ['the same with XACT_ABORT', "SET XACT_ABORT ON; INSERT INTO account VALUES (4, 'x', 1)", 2627, true],
    ['a conversion', "SELECT CAST('x' AS int) AS n", 245, true],
  ] as const)('%s', async (_, text, number, ends) => {
    const client = await stage.connect();
    await client.begin();
    const { descriptor } = client;
    await client.sql('UPDATE account SET balance = 2 WHERE id = 2');
    const error = await refusal(client.batch(text));
    expect(error).toMatchObject({ number });
    expect(client.descriptor).toBe(ends ? NONE : descriptor);
    if (!ends) await client.commit();
    expect([runs(text), await balance(2)]).toEqual([1, ends ? 100 : 2]);
    await works(client);
    untouched(client);
  });

  it('an error with which the server ends the session', async () => {
    const client = await stage.connect();
    await client.begin();
    await client.sql('UPDATE account SET balance = 2 WHERE id = 2');
    const text = "RAISERROR('enough', 20, 1) WITH LOG";
    expect(await refusal(client.batch(text))).toMatchObject({ number: 50000, class: 20, message: 'enough' });
    // ... and its connection ends, as without the gateway.
    await eventually(() => client.lost.length > 0);
    expect(runs(text)).toBe(1);
    expect(await balance(2)).toBe(100);
    expect([replays(), stats().divergences]).toEqual((before as unknown[]).slice(0, 2));
  });

  // Without a word it cannot be told from a connection that was lost.
  it('but not a KILL without a word, behind which the session goes on', async () => {
    const direct = await stage.direct();
    const clients = [await stage.connect(), await stage.connect(), await stage.connect()];
    const spids: unknown[] = [];
    for (const [i, client] of clients.entries()) {
      spids.push((await client.batch('SELECT @@SPID AS s')).rows[0].s);
      if (i > 1) continue;
      await client.begin();
      await client.sql(`UPDATE account SET balance = 2 WHERE id = ${i + 1}`);
    }
    await direct.batch('BEGIN TRANSACTION; UPDATE account SET balance = 1 WHERE id > 18');
    const slow = [19, 20].map((id) => `UPDATE account SET balance = balance - 1 WHERE id = ${id}`);
    const answers = slow.map((text, i) => clients[i + 1].sql(text));
    for (const text of slow) await stage.primary.waitFor(({ first }) => first === text);
    const admin = await stage.direct();
    for (const spid of spids) await admin.batch(`KILL ${spid}`);
    await direct.batch('ROLLBACK');
    await Promise.all(answers);
    expect(slow.map(runs)).toEqual([2, 2]);
    for (const client of clients.slice(0, 2)) await client.commit();
    expect([await balance(1), await balance(2), await balance(19), await balance(20)]).toEqual([2, 2, 99, 99]);
    for (const client of clients) await works(client);
  });
});

/** What is told of an answer, and is the same whichever server tells it. */
const told = ({ rows, rowCount, infos }: Answer) => ({ rows, rowCount, infos: infos.map(({ number }) => number) });

describe('a transaction of many kinds of statements, left between any two of them', () => {
  const steps = (t: string, level: number): ((client: TdsClient) => Promise<unknown>)[] => {
    const batch = (text: string) => (client: TdsClient) => client.batch(text).then(told);
    const sql = (text: string) => (client: TdsClient) => client.sql(text).then(told);
    const rows = batch(`SELECT id, @@TRANCOUNT AS n FROM ${t} ORDER BY id`);
    return [
      sql(`INSERT INTO ${t} VALUES (1, 'one')`),
      (client) => client.save('one'),
      batch(`INSERT INTO ${t} VALUES (2, 'two')`),
      // A statement that fails takes nothing else with it.
      sql(`INSERT INTO ${t} VALUES (1, 'again')`),
      batch(
        `INSERT INTO ${t} VALUES (3, 'three'); INSERT INTO ${t} VALUES (2, 'again'); INSERT INTO ${t} VALUES (4, 'four')`,
      ),
      rows,
      batch('SAVE TRANSACTION two'),
      batch(`DELETE FROM ${t} WHERE id < 3`),
      batch('SET LOCK_TIMEOUT 4321; SET CONTEXT_INFO 0x77'),
      batch('ROLLBACK TRANSACTION two'),
      rows,
      batch(
        `BEGIN TRY INSERT INTO ${t} VALUES (1, 'again') END TRY BEGIN CATCH SELECT ERROR_NUMBER() AS e, XACT_STATE() AS x END CATCH`,
      ),
      batch('BEGIN TRANSACTION'),
      sql(`INSERT INTO ${t} VALUES (5, 'five')`),
      (client) => client.begin('', level),
      rows,
      (client) => client.commit(),
      batch('COMMIT TRANSACTION'),
      rows,
      (client) => client.rollback('one'),
      batch("RAISERROR('no', 16, 1)"),
      batch(`INSERT INTO ${t} OUTPUT INSERTED.id VALUES (6, 'six')`),
      rows,
      (client) => client.commit(),
      rows,
      batch('SELECT @@LOCK_TIMEOUT AS l, CONTEXT_INFO() AS c, @@TRANCOUNT AS n'),
      batch('SELECT transaction_isolation_level AS i FROM sys.dm_exec_sessions WHERE session_id = @@SPID'),
    ];
  };
  const { READ_COMMITTED, REPEATABLE_READ, SERIALIZABLE, SNAPSHOT } = ISOLATION_LEVEL;
  const LEVELS = [READ_COMMITTED, REPEATABLE_READ, SERIALIZABLE, SNAPSHOT];
  const level = (i: number) => LEVELS[(i >> 1) % 4];
  const WORDS = ['READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE', 'SNAPSHOT'];

  it('is answered as ever, and does what it was to do', async () => {
    const count = steps('', 0).length;
    const points = Array.from({ length: Math.ceil(count / 2) }, (_, i) => 2 * i);
    const direct = await stage.direct();
    for (const i of [...points, count]) await direct.batch(`CREATE TABLE t${i} (id int PRIMARY KEY, v nvarchar(10))`);
    /** Its level comes with BEGIN, or by SET, or by SET amid it, where it makes no difference yet. */
    const begin = async (client: TdsClient, i: number) => {
      const text = `SET TRANSACTION ISOLATION LEVEL ${WORDS[LEVELS.indexOf(level(i))]}`;
      if (i % 3 === 0) await client.begin('', level(i));
      else if (i % 3 === 1) await client.batch(`${text}; BEGIN TRANSACTION`);
      else {
        await client.begin();
        await client.batch(text);
      }
    };
    const act = async (client: TdsClient, i: number, from: number, to: number) => {
      const answers: unknown[] = [];
      for (const step of steps(`t${i}`, level(i)).slice(from, to)) {
        answers.push(
          await step(client).then(
            (answer) => answer ?? null,
            (error) => {
              const { number, state, class: level } = error.errors?.[0] ?? error;
              return { number, state, level, ...(error.answer === undefined ? {} : told(error.answer)) };
            },
          ),
        );
      }
      return JSON.parse(JSON.stringify(answers));
    };
    const control = await stage.direct();
    await begin(control, count);
    const expected = await act(control, count, 0, count);
    const clients = await Promise.all(points.map(() => stage.connect()));
    const first = await Promise.all(
      clients.map(async (client, k) => {
        await begin(client, points[k]);
        return act(client, points[k], 0, points[k]);
      }),
    );
    await stage.kill();
    const rest = await Promise.all(clients.map((client, k) => act(client, points[k], points[k], count)));
    for (const [k, i] of points.entries()) {
      const answers = [...first[k], ...rest[k]];
      expect(answers.slice(0, -1), `left before step ${i}`).toEqual(expected.slice(0, -1));
      expect(answers.at(-1).rows, `left before step ${i}`).toEqual([{ i: level(i) }]);
      expect(clients[k].lost).toEqual([]);
    }
    expect(expected.at(-3).rows).toEqual([1, 6].map((id) => ({ id, n: 0 })));
  });
});

const text = (name: string, value: string) => ({ name, type: TYPES.NVarChar, value });

describe('what belongs to a session and cannot be made again', () => {
  const lock = (resource: string, owner: string) =>
    `EXEC sp_getapplock @Resource = '${resource}', @LockMode = 'Exclusive', @LockOwner = '${owner}'`;
  const LOCK = [text('LockMode', 'Exclusive'), text('LockOwner', 'Session')];
  const named = (what: string) => ({ number: 50055, message: expect.stringContaining(what) });

  it('is named once, however it came to be', async () => {
    const ways: Record<string, [what: string, act: (client: TdsClient) => Promise<unknown>]> = {
      'a lock by RPC': ['application lock', (c) => c.procedure('sp_getapplock', text('Resource', 'a'), ...LOCK)],
      'a lock by text': ['application lock', (c) => c.batch(lock('b', 'Session'))],
      'a lock by a statement': ['application lock', (c) => c.sql(lock('c', 'Session'))],
      'context by RPC': [
        'session context',
        (c) => c.procedure('sp_set_session_context', text('key', 'k'), text('value', 'v')),
      ],
      'context by text': ['session context', (c) => c.batch("EXEC sys.sp_set_session_context N'k', N'v'")],
      'context by a statement': [
        'session context',
        (c) => c.sql('EXEC sp_set_session_context @key = @k, @value = @v', text('k', 'k'), text('v', 'v')),
      ],
      'a global temporary table': ['temporary table ##one', (c) => c.batch('CREATE TABLE ##one (id int)')],
      'the same by a statement': ['temporary table ##two', (c) => c.sql('SELECT 1 AS id INTO ##two')],
    };
    const sessions = await Promise.all(
      Object.entries(ways).map(async ([way, [what, act]]) => {
        const client = await stage.connect();
        await act(client);
        return { way, what, client };
      }),
    );
    await stage.kill();
    for (const { way, what, client } of sessions) {
      expect(await refusal(client.sql('SELECT 1 AS one')), way).toMatchObject(named(what));
      await works(client);
    }
  });

  it('goes on where it came to be in the open transaction', async () => {
    const [byText, bySql] = [await stage.connect(), await stage.connect()];
    await byText.begin();
    await byText.batch(lock('of the transaction', 'Transaction'));
    await byText.batch("EXEC sp_set_session_context N'k', N'v'");
    await bySql.sql('SET CONTEXT_INFO 0x1234');
    await bySql.begin();
    await bySql.sql('SELECT 7 AS id INTO ##three');
    await bySql.sql(lock('of the session', 'Session'));
    await stage.kill();
    expect((await byText.sql("SELECT SESSION_CONTEXT(N'k') AS v")).rows).toEqual([{ v: 'v' }]);
    expect((await bySql.sql('SELECT id FROM ##three')).rows).toEqual([{ id: 7 }]);
    const other = await stage.direct();
    const taken = async (resource: string) => {
      const now = [text('LockMode', 'Exclusive'), text('LockOwner', 'Session'), text('LockTimeout', '0')];
      return (await other.procedure('sp_getapplock', text('Resource', resource), ...now)).status;
    };
    expect([await taken('of the transaction'), await taken('of the session')]).toEqual([-1, -1]);
    for (const client of [byText, bySql]) await client.commit();
    expect([await taken('of the transaction'), await taken('of the session')]).toEqual([0, -1]);
    // The transaction's lock is over with it, the rest is not.
    await stage.pair.rebuild();
    await stage.kill();
    const { message } = await refusal(byText.sql('SELECT 1 AS one'));
    expect(message).toContain('session context');
    expect(message).not.toContain('lock');
    const { message: lost } = await refusal(bySql.sql('SELECT 1 AS one'));
    expect(lost).toContain('temporary table ##three');
    expect(lost).toContain('application lock');
    const [{ c }] = (await bySql.sql('SELECT CONTEXT_INFO() AS c')).rows;
    expect((c as Buffer).toString('hex', 0, 2)).toBe('1234');
    for (const client of [byText, bySql]) await works(client);
  });
});

it('brings a new server to all settings with one request, or names the one that it refuses', async () => {
  const direct = await stage.direct();
  await direct.batch('CREATE DATABASE passing');
  const [client, stray] = [await stage.connect(), await stage.connect()];
  await client.batch('SET LOCK_TIMEOUT 77; SET TEXTSIZE 99');
  await stray.batch('USE passing; SET LOCK_TIMEOUT 77');
  await direct.batch('DROP DATABASE passing');
  await stage.kill();
  const asked = 'SELECT @@LOCK_TIMEOUT AS l, @@TEXTSIZE AS t, @@SPID AS s';
  const [{ l, t, s }] = (await client.batch(asked)).rows;
  expect([l, t]).toEqual([77, 99]);
  const requests = stage.primary.events.filter(({ kind, spid }) => kind === 'request' && spid === s);
  expect(requests.map(({ text: batch }) => batch)).toEqual([expect.stringContaining('LOCK_TIMEOUT 77'), asked]);
  expect(await refusal(stray.sql('SELECT 1 AS one'))).toMatchObject({
    number: 50055,
    message: expect.stringContaining('lost: database passing. '),
  });
  expect((await stray.batch('SELECT DB_NAME() AS d, @@LOCK_TIMEOUT AS l')).rows).toEqual([{ d: 'app', l: 77 }]);
});

describe('a session that is reset', () => {
  /** With settings, and a temporary table that a new server does not have. */
  async function used(): Promise<TdsClient> {
    const client = await stage.connect();
    await client.batch('SET LOCK_TIMEOUT 77; CREATE TABLE #made (id int)');
    return client;
  }
  async function opened(id: number, client: TdsClient): Promise<TdsClient> {
    await client.begin();
    await client.sql(`UPDATE account SET balance = 7 WHERE id = ${id}`);
    return client;
  }
  const fresh = async (client: TdsClient) => {
    expect((await client.batch('SELECT @@LOCK_TIMEOUT AS t, @@TRANCOUNT AS n')).rows).toEqual([{ t: -1, n: 0 }]);
    await client.batch('CREATE TABLE #made (id int)');
    await works(client);
  };

  it('with its first request after a failure is fresh, and answered once', async () => {
    const clients = [
      await used(),
      await opened(1, await stage.connect()),
      // The table was there before the transaction.
      await opened(2, await used()),
    ];
    // One whose transaction cannot be repeated.
    const unlike = await opened(3, await stage.connect());
    await unlike.sql('SELECT NEWID() AS id');
    await stage.kill();
    for (const client of [...clients, unlike]) {
      await client.reset();
      await fresh(client);
    }
    expect([await balance(1), await balance(2), await balance(3)]).toEqual([100, 100, 100]);
  });

  /** As pools do: with the first request of the next borrower, whatever that is. */
  function borrowed(client: TdsClient, sql: string): Promise<Answer> {
    (client.connection as unknown as { resetConnectionOnNextRequest: boolean }).resetConnectionOnNextRequest = true;
    return client.sql(sql);
  }

  it('by a request that writes, does that once', async () => {
    const add = (id: number) => `UPDATE account SET balance += 1 WHERE id = ${id}`;
    const clients = [await used(), await opened(2, await stage.connect()), await opened(3, await used())];
    await stage.kill();
    for (const [i, client] of clients.entries()) {
      expect((await borrowed(client, add(i + 1))).rowCount).toBe(1);
      await fresh(client);
    }
    expect([await balance(1), await balance(2), await balance(3)]).toEqual([101, 101, 101]);
    // Amid it: proved where nothing was open before.
    await stage.pair.rebuild();
    const idle = await used();
    const open = await opened(5, await stage.connect());
    const gates = [idle, open].map(() => stage.primary.hold('before-commit', { autocommit: true }));
    const answers = [borrowed(idle, add(4)), refusal(borrowed(open, add(5)))];
    for (const { reached } of gates) await reached;
    await stage.kill();
    for (const gate of gates) gate.release();
    await answers[0];
    expect(await answers[1]).toMatchObject({ number: 50087 });
    for (const client of [idle, open]) await fresh(client);
    expect([await balance(4), await balance(5)]).toEqual([101, 100]);
  });

  it('while its server is lost is fresh', async () => {
    const clients = [await used(), await opened(1, await stage.connect()), await opened(2, await used())];
    const old = stage.primary;
    const resets = () => old.events.filter(({ kind }) => kind === 'reset').length;
    const before = resets();
    await stage.pair.primary.freeze();
    const answers = clients.map((client) => client.reset());
    await eventually(() => resets() === before + clients.length);
    await stage.kill();
    await Promise.all(answers);
    for (const client of clients) await fresh(client);
    expect([await balance(1), await balance(2)]).toEqual([100, 100]);
  });
});

it('acknowledges an Attention that was on its way to a server that is lost, once', async () => {
  const clients = [await stage.connect(), await stage.connect()];
  await clients[1].begin();
  await clients[1].sql('UPDATE account SET balance = 7 WHERE id = 1');
  const slow = clients.map((_, i) => `WAITFOR DELAY '00:00:20'; SELECT ${i} AS i; SELECT COUNT(*) AS n FROM account`);
  const answers = clients.map((client, i) => client.batch(slow[i]).catch((error) => error.code));
  for (const one of slow) await stage.primary.waitFor(({ text: batch }) => batch === one);
  const { primary: old, proxy } = stage;
  const heard = old.counts.attention ?? 0;
  proxy.holdServerReplies();
  for (const { connection } of clients) connection.cancel();
  await eventually(() => old.counts.attention === heard + 2);
  await stage.kill();
  await proxy.heal();
  expect(await Promise.all(answers)).toEqual(['ECANCEL', 'ECANCEL']);
  expect((await clients[1].sql('SELECT balance FROM account WHERE id = 1')).rows).toEqual([{ balance: 7 }]);
  await clients[1].commit();
  expect(await balance(1)).toBe(7);
  for (const client of clients) await works(client);
});

it('ends nobody else who has been given the number of the session that is gone', async () => {
  const { primary, proxy } = stage;
  const client = await stage.connect();
  const number = async (one: TdsClient) => (await one.batch('SELECT @@SPID AS spid')).rows[0].spid;
  const own = await number(client);
  await client.begin();
  await client.sql('UPDATE account SET balance = 7 WHERE id = 1');
  // The gateway's connections are gone, and it can make no others for now.
  proxy.refuse();
  proxy.cut();
  primary.reusesSpids = true;
  const strangers: TdsClient[] = [];
  try {
    await eventually(async () => {
      const stranger = await TdsClient.connect(primary.port, { appName: 'somebody else' });
      strangers.push(stranger);
      return (await number(stranger)) === own;
    });
    await proxy.heal();
    expect((await client.sql('SELECT balance FROM account WHERE id = 1')).rows).toEqual([{ balance: 7 }]);
    await client.commit();
    for (const stranger of strangers) await works(stranger);
  } finally {
    primary.reusesSpids = false;
    for (const stranger of strangers) stranger.connection.close();
  }
  expect(await balance(1)).toBe(7);
});
