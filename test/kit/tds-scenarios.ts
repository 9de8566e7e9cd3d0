import { afterEach, beforeEach, expect, it } from 'vitest';
import type { TdsServer } from '../servers/tds/server.js';
import { eventually } from './servers.js';
import { ISOLATION_LEVEL, refusal, TdsClient, TYPES } from './tds.js';

type Options = NonNullable<Parameters<typeof TdsClient.connect>[1]>;

/** Where the clients of a scenario connect: the server itself, or a gateway before it. */
export interface TdsEnd {
  readonly port: number;
  /** The server that has the databases `app` and `other`. */
  readonly server: TdsServer;
  /** What clients want besides, such as encryption. */
  readonly options?: Options;
}

/** Clients of that end, which are closed after each test. */
function useClients(end: () => TdsEnd): (options?: Options) => Promise<TdsClient> {
  const clients: TdsClient[] = [];
  afterEach(() => {
    for (const one of clients.splice(0)) one.connection.close();
  });
  return async (options) => {
    const made = await TdsClient.connect(end().port, { ...end().options, ...options });
    clients.push(made);
    return made;
  };
}

const COUNT = 'SELECT @@TRANCOUNT AS n, XACT_STATE() AS x';

/**
 * Tests with tedious of what depends on how the server tells of transactions.
 * @param textTransactions the server tells of those that text begins
 */
export function transactionScenarios(end: () => TdsEnd, textTransactions: boolean): void {
  const client = useClients(end);

  beforeEach(async () => {
    const c = await client();
    await c.batch(
      'DROP TABLE IF EXISTS acct; CREATE TABLE acct (id int NOT NULL PRIMARY KEY, bal int, name nvarchar(50)); ' +
        "INSERT INTO acct VALUES (1, 100, N'alice'), (2, 100, N'bob')",
    );
  });

  it('logs in, selects, names columns and counts rows', async () => {
    const c = await client();
    expect((await c.batch('SELECT 1 AS One')).rows).toEqual([{ One: 1 }]);
    const answer = await c.sql('SELECT Id = id, [bal], name AS [The Name], 1 + 1 FROM dbo.acct ORDER BY id');
    expect(answer.rows).toEqual([
      { Id: 1, bal: 100, 'The Name': 'alice', 3: 2 },
      { Id: 2, bal: 100, 'The Name': 'bob', 3: 2 },
    ]);
    expect(answer.rowCount).toBe(2);
    expect(answer.status).toBe(0);
    expect((await c.batch('SELECT TOP 1 * FROM app.dbo.acct WITH (NOLOCK) ORDER BY id DESC')).rows[0].id).toBe(2);
    expect((await c.batch('SELECT * FROM acct WHERE 1 = 0')).columns[0].map(({ colName }) => colName)).toEqual([
      'id',
      'bal',
      'name',
    ]);
    await c.close();
  });

  it('runs statements one after the other, with or without semicolons', async () => {
    const c = await client();
    const answer = await c.batch(
      'DECLARE @a int = 5, @b int SET @b = @a + 1 IF @b > 5 BEGIN SELECT @b AS b END ELSE SELECT 0 AS b ' +
        'WHILE @a > 3 BEGIN SET @a -= 1 IF @a = 3 BREAK END SELECT @a AS a; SELECT @b = bal FROM acct WHERE id = 1 SELECT @b AS bal',
    );
    expect(answer.rows).toEqual([{ b: 6 }, { a: 3 }, { bal: 100 }]);
  });

  it('begins, commits and rolls back by the transaction manager', async () => {
    const c = await client();
    const other = await client();
    await c.begin();
    expect(c.descriptor).not.toBe('0000000000000000');
    expect((await c.sql(COUNT)).rows).toEqual([{ n: 1, x: 1 }]);
    await c.sql('UPDATE acct SET bal = 50 WHERE id = 1');
    expect((await other.sql('SELECT bal FROM acct WHERE id = 1')).rows).toEqual([{ bal: 100 }]);
    await c.rollback();
    expect(c.descriptor).toBe('0000000000000000');
    await c.begin('named', ISOLATION_LEVEL.SERIALIZABLE);
    await c.sql('UPDATE acct SET bal = 60 WHERE id = 1');
    await c.commit();
    expect((await other.sql('SELECT bal FROM acct WHERE id = 1')).rows).toEqual([{ bal: 60 }]);
    expect((await c.sql(COUNT)).rows).toEqual([{ n: 0, x: 0 }]);
    expect(await refusal(c.commit())).toMatchObject({ number: 3902 });
    expect(await refusal(c.rollback())).toMatchObject({ number: 3903 });
  });

  it('goes back to savepoints', async () => {
    const c = await client();
    await c.begin();
    await c.sql('UPDATE acct SET bal = 1 WHERE id = 1');
    await c.save('here');
    await c.sql('UPDATE acct SET bal = 2 WHERE id = 1');
    await c.rollback('here');
    expect((await c.sql(COUNT)).rows).toEqual([{ n: 1, x: 1 }]);
    await c.commit();
    expect((await c.sql('SELECT bal FROM acct WHERE id = 1')).rows).toEqual([{ bal: 1 }]);
    expect(
      (
        await c.batch(
          'BEGIN TRAN; UPDATE acct SET bal = 7 WHERE id = 2; SAVE TRAN s; UPDATE acct SET bal = 8 WHERE id = 2; ROLLBACK TRAN s; ' +
            'COMMIT; SELECT bal FROM acct WHERE id = 2',
        )
      ).rows,
    ).toEqual([{ bal: 7 }]);
  });

  it('nests transactions of texts', async () => {
    const c = await client();
    const answer = await c.batch(
      'BEGIN TRAN o; SELECT @@TRANCOUNT a; BEGIN TRAN i; SELECT @@TRANCOUNT b; COMMIT TRAN i; SELECT @@TRANCOUNT c; COMMIT; SELECT @@TRANCOUNT d',
    );
    expect(answer.rows).toEqual([{ a: 1 }, { b: 2 }, { c: 1 }, { d: 0 }]);
    await c.batch('BEGIN TRAN; UPDATE acct SET bal = 0');
    expect(c.descriptor !== '0000000000000000').toBe(textTransactions);
    await c.batch('IF @@TRANCOUNT > 0 ROLLBACK TRAN');
    expect((await c.sql('SELECT sum(bal) AS s FROM acct')).rows).toEqual([{ s: 200 }]);
    await c.batch('SET IMPLICIT_TRANSACTIONS ON');
    await c.sql('UPDATE acct SET bal = 5 WHERE id = 1');
    expect((await c.sql(COUNT)).rows).toEqual([{ n: 1, x: 1 }]);
    await c.batch('COMMIT');
    expect((await c.sql('SELECT @@TRANCOUNT AS n')).rows).toEqual([{ n: 0 }]);
  });

  it('lets a transaction live on after errors, unless XACT_ABORT is ON', async () => {
    const c = await client();
    await c.begin();
    await c.sql("INSERT INTO acct VALUES (3, 1, 'x')");
    expect(await refusal(c.sql("INSERT INTO acct VALUES (3, 1, 'y')"))).toMatchObject({
      number: 2627,
      state: 1,
      class: 14,
    });
    expect(await refusal(c.sql('SELECT * FROM nowhere'))).toMatchObject({ number: 208, class: 16 });
    expect((await c.sql(COUNT)).rows).toEqual([{ n: 1, x: 1 }]);
    await c.commit();
    expect((await c.sql('SELECT name FROM acct WHERE id = 3')).rows).toEqual([{ name: 'x' }]);
    await c.batch('SET XACT_ABORT ON');
    await c.begin();
    expect(await refusal(c.sql("INSERT INTO acct VALUES (3, 1, 'y')"))).toMatchObject({ number: 2627 });
    expect((await c.sql(COUNT)).rows).toEqual([{ n: 0, x: 0 }]);
    expect(c.descriptor).toBe('0000000000000000');
  });

  it('prepares and executes', async () => {
    const c = await client();
    const found = await new Promise<unknown[]>((done, fail) => {
      const rows: unknown[] = [];
      const { connection } = c;
      let runs = 0;
      void c
        .run(
          (request, conn) => {
            request.on('prepared', () => conn.execute(request, { id: 1 }));
            conn.prepare(request);
          },
          'SELECT name FROM acct WHERE id = @id',
          [],
          (request) => {
            request.addParameter('id', TYPES.Int, undefined);
            request.on('row', (row: { value: unknown }[]) => rows.push(row[0].value));
            request.on('requestCompleted', () => {
              runs++;
              if (runs === 1) setImmediate(() => connection.execute(request, { id: 2 }));
              else if (runs === 2) setImmediate(() => connection.unprepare(request));
              else done(rows);
            });
          },
        )
        .catch(fail);
    });
    expect(found).toEqual(['alice', 'bob']);
    expect(await refusal(c.procedure('sp_execute', { name: 'handle', type: TYPES.Int, value: 99 }))).toMatchObject({
      number: 8179,
    });
    const answer = await c.sql(
      "declare @h int; exec sp_prepexec @h output, N'@p int', N'select @p as v', @p = 5; select @h as h",
    );
    expect(answer.rows).toEqual([{ v: 5 }, { h: expect.any(Number) }]);
  });

  it('calls procedures, its own and those that were created', async () => {
    const c = await client();
    const answer = await c.procedure(
      'p_out',
      { name: 'a', type: TYPES.Int, value: 3 },
      { name: 'b', type: TYPES.Int, value: null, output: true },
      { name: 's', type: TYPES.NVarChar, value: null, output: true },
    );
    expect(answer.outputs).toEqual({ b: 6, s: 'got 3' });
    expect(answer.status).toBe(7);
    await c.batch(
      'CREATE OR ALTER PROCEDURE dbo.twice @x int, @y int = 1 OUTPUT AS BEGIN SET @y = @x * 2; SELECT @x AS x; RETURN 4 END',
    );
    const made = await c.procedure(
      'dbo.twice',
      { name: 'x', type: TYPES.Int, value: 21 },
      { name: 'y', type: TYPES.Int, value: null, output: true },
    );
    expect([made.rows, made.outputs, made.status]).toEqual([[{ x: 21 }], { y: 42 }, 4]);
    expect((await c.batch('DECLARE @r int, @o int EXEC @r = twice 2, @o OUTPUT SELECT @r AS r, @o AS o')).rows).toEqual(
      [{ x: 2 }, { r: 4, o: 4 }],
    );
    expect(await refusal(c.procedure('nobody'))).toMatchObject({ number: 2812 });
    expect(await refusal(c.procedure('twice'))).toMatchObject({ number: 201 });
    await c.batch('DROP PROCEDURE twice');
  });

  it('resets a connection', async () => {
    const c = await client();
    await c.batch('CREATE TABLE #t (a int); INSERT INTO #t VALUES (1); SET LOCK_TIMEOUT 1234; USE master');
    expect((await c.sql('SELECT a, DB_NAME() AS db FROM #t')).rows).toEqual([{ a: 1, db: 'master' }]);
    await c.begin();
    await c.sql('UPDATE app.dbo.acct SET bal = 0');
    await c.reset();
    expect((await c.sql('SELECT @@TRANCOUNT AS n, @@LOCK_TIMEOUT AS l, DB_NAME() AS db')).rows).toEqual([
      { n: 0, l: -1, db: 'app' },
    ]);
    expect(await refusal(c.batch('SELECT * FROM #t'))).toMatchObject({ number: 208 });
    expect((await c.sql('SELECT sum(bal) AS s FROM acct')).rows).toEqual([{ s: 200 }]);
  });

  it('stops a statement that an Attention comes for, and keeps the transaction', async () => {
    const c = await client();
    await c.begin();
    await c.sql('UPDATE acct SET bal = 3 WHERE id = 1');
    for (const text of ["WAITFOR DELAY '00:01:00'", 'SELECT pg_sleep(60)']) {
      const from = end().server.events.length;
      const running = c.run((request, connection) => {
        connection.execSqlBatch(request);
        void eventually(() =>
          end()
            .server.events.slice(from)
            .some((event) => event.kind === 'request'),
        ).then(() => connection.cancel());
      }, text);
      expect(await refusal(running)).toMatchObject({ code: 'ECANCEL' });
    }
    expect((await c.sql(COUNT)).rows).toEqual([{ n: 1, x: 1 }]);
    await c.commit();
    expect((await c.sql('SELECT bal FROM acct WHERE id = 1')).rows).toEqual([{ bal: 3 }]);
  });
}

/** Tests with tedious of everything else that a session is for. */
export function sessionScenarios(end: () => TdsEnd): void {
  const client = useClients(end);

  it('refuses wrong passwords and unknown databases', async () => {
    expect(await refusal(TdsClient.connect(end().port, {}, { password: 'wrong' }))).toMatchObject({
      code: 'ELOGIN',
      message: "Login failed for user 'sa'.",
    });
    expect(String(await refusal(TdsClient.connect(end().port, { database: 'nowhere' })))).toContain('Login failed');
  });

  it('agrees on a packet size and carries large values both ways', async () => {
    for (const packetSize of [512, 4096, 16_384]) {
      const c = await client({ packetSize });
      const text = 'é☃x'.repeat(20_000);
      const answer = await c.sql(
        'SELECT @t AS t, @b AS b',
        { name: 't', type: TYPES.NVarChar, value: text },
        {
          name: 'b',
          type: TYPES.VarBinary,
          value: Buffer.alloc(50_000, 7),
        },
      );
      expect(answer.rows[0].t === text).toBe(true);
      expect((answer.rows[0].b as Buffer).equals(Buffer.alloc(50_000, 7))).toBe(true);
    }
  });

  it('gives many rows', async () => {
    const c = await client();
    const answer = await c.batch(
      "SELECT g AS n, 'row ' + CAST(g AS varchar(10)) AS t FROM generate_series(1, 20000) AS g",
    );
    expect(answer.rows).toHaveLength(20_000);
    expect(answer.rows[19_999]).toEqual({ n: 20_000, t: 'row 20000' });
  });

  it('speaks TDS 7.1 to 7.4', async () => {
    // In strict mode there is but one.
    const strict = (end().options?.encrypt as unknown) === 'strict';
    for (const tdsVersion of strict ? ['7_4'] : ['7_1', '7_2', '7_3_A', '7_3_B', '7_4']) {
      const c = await client({ tdsVersion });
      const text = 'y'.repeat(9000);
      const answer = await c.sql(
        "SELECT @i AS i, CAST('a' AS varchar(max)) AS v, CAST(@t AS nvarchar(max)) AS t, CAST('2024-02-29' AS date) AS d",
        { name: 'i', type: TYPES.Int, value: 5 },
        // Before 7.2 there are none but short ones.
        { name: 't', type: TYPES.NVarChar, value: tdsVersion === '7_1' ? 'y' : text },
      );
      expect(answer.rows[0]).toMatchObject({ i: 5, v: 'a', t: tdsVersion === '7_1' ? 'y' : text });
      expect(answer.rows[0].d).toEqual(tdsVersion < '7_3' ? '2024-02-29' : new Date('2024-02-29T00:00:00Z'));
      await c.begin();
      await c.batch('SELECT 1');
      await c.rollback();
      expect(await refusal(c.batch('SELECT 1/0'))).toMatchObject({ number: 8134 });
    }
  });

  it('changes databases, and reads and writes in several', async () => {
    const c = await client();
    const told: string[] = [];
    c.connection.on('databaseChange', (database) => told.push(database));
    await c.batch('USE other');
    expect(told).toEqual(['other']);
    await c.batch('DROP TABLE IF EXISTS place; CREATE TABLE place (a int); INSERT INTO other.dbo.place VALUES (4)');
    await c.batch('USE [app]');
    expect((await c.batch('SELECT a FROM other..place')).rows).toEqual([{ a: 4 }]);
    expect(await refusal(c.batch('SELECT a FROM place'))).toMatchObject({
      number: 208,
      message: "Invalid object name 'place'.",
    });
    expect(await refusal(c.batch('USE nowhere'))).toMatchObject({ number: 911 });
  });

  it('tells errors with the numbers of SQL Server', async () => {
    const c = await client();
    await c.batch(
      'DROP TABLE IF EXISTS child, parent; CREATE TABLE parent (id int PRIMARY KEY, v varchar(3) NOT NULL, n int CHECK (n > 0)); ' +
        'CREATE TABLE child (id int REFERENCES parent (id)); CREATE UNIQUE INDEX ix_n ON parent (n); ' +
        "INSERT INTO parent VALUES (1, 'a', 1)",
    );
    const cases: [text: string, number: number][] = [
      ['SELEC 1', 2812],
      ['SELECT 1 FROM', 102],
      ['SELECT 1 +', 102],
      ["SELECT 'open", 105],
      ['SELECT @nobody', 137],
      ['SELECT nobody FROM parent', 207],
      ['SELECT * FROM nobody', 208],
      ['SELECT nobody(1)', 195],
      ["INSERT INTO parent VALUES (1, 'b', 2)", 2627],
      ["INSERT INTO parent VALUES (2, 'b', 1)", 2601],
      ['INSERT INTO parent VALUES (2, NULL, 2)', 515],
      ["INSERT INTO parent VALUES (2, 'b', -1)", 547],
      ['INSERT INTO child VALUES (9)', 547],
      ["INSERT INTO parent VALUES (2, 'long', 2)", 8152],
      ['SELECT 1/0', 8134],
      ['SELECT CAST(300000 * 300000 AS int)', 8115],
      ["SELECT CAST('x' AS int)", 245],
      ["SELECT CAST('x' AS datetime)", 241],
      ['CREATE TABLE parent (a int)', 2714],
      ['DROP TABLE nobody', 3701],
      ['CREATE TABLE x (a nosuchtype)', 2715],
      ["RAISERROR('told %d', 16, 3, 5)", 50000],
      ["THROW 51234, 'thrown', 2", 51234],
    ];
    for (const [text, number] of cases) {
      const error = await refusal(c.batch(text));
      expect([text, error.number]).toEqual([text, number]);
      expect(error.class).toBeGreaterThan(10);
    }
    const answer = await c.batch(
      "BEGIN TRY INSERT INTO parent VALUES (1, 'b', 2) END TRY BEGIN CATCH SELECT ERROR_NUMBER() AS n, ERROR_SEVERITY() AS s END CATCH",
    );
    expect(answer.rows).toEqual([{ n: 2627, s: 14 }]);
    const mixed = await refusal(
      c.batch("INSERT INTO parent VALUES (1, 'b', 2); SELECT @@ERROR AS e; SELECT 5 AS five"),
    );
    expect(mixed.answer.rows).toEqual([{ e: 2627 }, { five: 5 }]);
    expect((await c.batch("PRINT 'hello'; RAISERROR('low', 5, 1)")).infos.map(({ message }) => message)).toEqual([
      'hello',
      'low',
    ]);
  });

  it('waits for locks, times out and ends deadlocks', async () => {
    const [a, b] = [await client(), await client()];
    await a.batch(
      'DROP TABLE IF EXISTS held; CREATE TABLE held (id int PRIMARY KEY, v int); INSERT INTO held VALUES (1, 0), (2, 0)',
    );
    await a.begin();
    await a.sql('UPDATE held SET v = 1 WHERE id = 1');
    await b.batch('SET LOCK_TIMEOUT 100');
    await b.begin();
    await b.sql('UPDATE held SET v = 2 WHERE id = 2');
    expect(await refusal(b.sql('UPDATE held SET v = 2 WHERE id = 1'))).toMatchObject({ number: 1222, class: 16 });
    expect((await b.sql(COUNT)).rows).toEqual([{ n: 1, x: 1 }]);
    await b.batch('SET LOCK_TIMEOUT -1');
    const crossing = [
      a.sql('UPDATE held SET v = 1 WHERE id = 2').then(() => a),
      b.sql('UPDATE held SET v = 2 WHERE id = 1').then(() => b),
    ];
    const ends = await Promise.allSettled(crossing);
    const lost = ends.findIndex(({ status }) => status === 'rejected');
    expect((ends[lost] as PromiseRejectedResult).reason).toMatchObject({ number: 1205, class: 13 });
    const victim = [a, b][lost];
    expect(victim.descriptor).toBe('0000000000000000');
    expect((await victim.sql(COUNT)).rows).toEqual([{ n: 0, x: 0 }]);
    await [b, a][lost].commit();
    const lock =
      "DECLARE @r int EXEC @r = sp_getapplock @Resource = 'r', @LockMode = 'Exclusive', @LockOwner = 'Session'";
    expect((await a.batch(`${lock}, @LockTimeout = 0 SELECT @r AS r`)).rows).toEqual([{ r: 0 }]);
    expect((await b.batch(`${lock}, @LockTimeout = 0 SELECT @r AS r`)).rows).toEqual([{ r: -1 }]);
    await a.batch("EXEC sp_releaseapplock 'r', 'Session'");
    expect((await b.batch(`${lock}, @LockTimeout = 50 SELECT @r AS r`)).rows).toEqual([{ r: 0 }]);
  });

  it('refuses descriptors of transactions that are not open', async () => {
    const c = await client();
    await c.begin();
    const inner = c.connection as unknown as { transactionDescriptors: Buffer[] };
    const [none, open] = inner.transactionDescriptors;
    inner.transactionDescriptors = [none];
    expect(await refusal(c.sql('SELECT 1'))).toMatchObject({ number: 3989 });
    inner.transactionDescriptors = [none, open];
    await c.commit();
    inner.transactionDescriptors = [none, open];
    expect(await refusal(c.sql('SELECT 1'))).toMatchObject({ number: 3971 });
    inner.transactionDescriptors = [none];
    await c.sql('SELECT 1');
  });

  it('takes values of all types and gives them back', async () => {
    const c = await client();
    const moment = new Date('2024-02-29T01:02:03.003Z');
    const values: [
      name: string,
      column: string,
      type: unknown,
      value: unknown,
      options?: Record<string, unknown>,
      back?: unknown,
    ][] = [
      ['ti', 'tinyint', TYPES.TinyInt, 255],
      ['si', 'smallint', TYPES.SmallInt, -32_768],
      ['i', 'int', TYPES.Int, -5],
      ['bi', 'bigint', TYPES.BigInt, '9007199254740993'],
      ['b', 'bit', TYPES.Bit, true],
      ['d', 'decimal(18,4)', TYPES.Decimal, 12_345.6789, { precision: 18, scale: 4 }],
      ['n', 'numeric(38,10)', TYPES.Numeric, -1_234_567.1234567, { precision: 38, scale: 10 }],
      ['m', 'money', TYPES.Money, -922.3372],
      ['sm', 'smallmoney', TYPES.SmallMoney, 12.5],
      ['f', 'float', TYPES.Float, 1.5e300],
      ['r', 'real', TYPES.Real, 0.5],
      ['vc', 'varchar(50)', TYPES.VarChar, 'hélló €'],
      ['vcm', 'varchar(max)', TYPES.VarChar, 'y'.repeat(9000)],
      ['nv', 'nvarchar(50)', TYPES.NVarChar, "it's ☃"],
      ['nvm', 'nvarchar(max)', TYPES.NVarChar, '☃'.repeat(20_000)],
      ['ch', 'char(5)', TYPES.Char, 'abc', { length: 5 }, 'abc  '],
      ['nch', 'nchar(4)', TYPES.NChar, 'ñ', { length: 4 }, 'ñ   '],
      ['tx', 'text', TYPES.Text, 'some text'],
      ['nt', 'ntext', TYPES.NText, 'some ☃'],
      ['vb', 'varbinary(10)', TYPES.VarBinary, Buffer.from('deadbeef', 'hex')],
      ['vbm', 'varbinary(max)', TYPES.VarBinary, Buffer.alloc(12_000, 0xab)],
      ['bn', 'binary(4)', TYPES.Binary, Buffer.from('0102', 'hex'), { length: 2 }, Buffer.from('01020000', 'hex')],
      ['im', 'image', TYPES.Image, Buffer.from('cafe', 'hex')],
      ['u', 'uniqueidentifier', TYPES.UniqueIdentifier, '6F9619FF-8B86-D011-B42D-00C04FC964FF'],
      ['dt', 'date', TYPES.Date, new Date('2024-02-29T00:00:00Z')],
      ['tm', 'time(3)', TYPES.Time, new Date('1970-01-01T12:34:56.123Z'), { scale: 3 }],
      ['dtm', 'datetime', TYPES.DateTime, moment],
      ['sdt', 'smalldatetime', TYPES.SmallDateTime, new Date('2024-02-29T01:02:00Z')],
      ['dt2', 'datetime2(3)', TYPES.DateTime2, moment, { scale: 3 }],
      ['dto', 'datetimeoffset(3)', TYPES.DateTimeOffset, moment, { scale: 3 }],
      ['x', 'xml', TYPES.NVarChar, '<a>☃</a>'],
    ];
    const columns = values.map(([name, column]) => `${name} ${column} NULL`).join(', ');
    await c.batch(`CREATE TABLE #types (id int NOT NULL, ${columns})`);
    const names = values.map(([name]) => name);
    const insert = `INSERT INTO #types (id, ${names.join(', ')}) VALUES (@id, ${names.map((name) => `@${name}`).join(', ')})`;
    const row = (id: number, value: (i: number) => unknown) => [
      { name: 'id', type: TYPES.Int, value: id },
      ...values.map(([name, , type, , options], i) => ({ name, type, value: value(i), options })),
    ];
    await c.sql(insert, ...row(1, (i) => values[i][3]));
    await c.sql(insert, ...row(2, () => null));
    const [full, empty] = (await c.sql('SELECT * FROM #types ORDER BY id')).rows;
    for (const [name, column, , value, , back] of values) {
      const got = full[name];
      if (typeof value === 'string' && value.length > 100) expect([column, got === value]).toEqual([column, true]);
      else if (Buffer.isBuffer(value))
        expect([column, (got as Buffer).toString('hex')]).toEqual([
          column,
          ((back ?? value) as Buffer).toString('hex'),
        ]);
      else if (value instanceof Date)
        expect([column, (got as Date).toISOString()]).toEqual([column, value.toISOString()]);
      else expect([column, got]).toEqual([column, back ?? value]);
      expect([column, empty[name]]).toEqual([column, null]);
    }
    const types = (await c.sql('SELECT TOP 1 * FROM #types')).columns[0];
    expect(Object.fromEntries(types.map(({ colName, type }) => [colName, type.name]))).toMatchObject({
      id: 'Int',
      ti: 'IntN',
      b: 'BitN',
      m: 'MoneyN',
      vc: 'VarChar',
      nch: 'NChar',
      dto: 'DateTimeOffset',
      u: 'UniqueIdentifier',
    });
  });

  it('knows identities, temporary tables, table variables and OUTPUT', async () => {
    const c = await client();
    await c.batch('CREATE TABLE #i (id int IDENTITY(10, 5) PRIMARY KEY, v nvarchar(10))');
    const answer = await c.sql(
      "INSERT INTO #i (v) OUTPUT inserted.id AS Made VALUES ('a'), ('b'); SELECT SCOPE_IDENTITY() AS s, @@ROWCOUNT AS n",
    );
    expect(answer.rows).toEqual([{ Made: 10 }, { Made: 15 }, { s: 15, n: 2 }]);
    expect((await c.sql('DELETE FROM #i OUTPUT deleted.v WHERE id = 10')).rows).toEqual([{ v: 'a' }]);
    expect(
      (await c.sql("SELECT id INTO #j FROM #i; SELECT COUNT(*) AS n FROM #j; SELECT OBJECT_ID('tempdb..#k') AS k"))
        .rows,
    ).toEqual([{ n: 1 }, { k: null }]);
    expect((await c.batch('DECLARE @t TABLE (a int); INSERT INTO @t VALUES (9); SELECT a FROM @t')).rows).toEqual([
      { a: 9 },
    ]);
    await c.batch('DROP TABLE #i, #j');
    expect(
      (await c.sql("SELECT NEWID() AS u, GETDATE() AS g, SYSDATETIME() AS s, ISNULL(NULL, 'x') AS x, LEN('abc ') AS l"))
        .rows[0],
    ).toEqual({ u: expect.stringMatching(/^[0-9A-F-]{36}$/), g: expect.any(Date), s: expect.any(Date), x: 'x', l: 3 });
    expect((await c.batch("EXEC sp_set_session_context 'k', 'v'; SELECT SESSION_CONTEXT(N'k') AS k")).rows).toEqual([
      { k: 'v' },
    ]);
  });

  it('keeps cursors', async () => {
    const c = await client();
    const int = (name: string, value: number | null, output = false) => ({ name, type: TYPES.Int, value, output });
    const opened = await c.procedure(
      'sp_cursoropen',
      int('cursor', null, true),
      { name: 'stmt', type: TYPES.NVarChar, value: 'SELECT g AS n FROM generate_series(1, 5) AS g' },
      int('scrollopt', 8, true),
      int('ccopt', 1, true),
      int('rowcount', 0, true),
    );
    expect(opened.rows).toEqual([]);
    expect(opened.outputs.rowcount).toBe(5);
    const cursor = int('cursor', opened.outputs.cursor as number);
    const fetch = async () =>
      (await c.procedure('sp_cursorfetch', cursor, int('fetchtype', 2), int('rownum', 0), int('nrows', 2))).rows.map(
        ({ n }) => n,
      );
    expect([await fetch(), await fetch(), await fetch()]).toEqual([[1, 2], [3, 4], [5]]);
    await c.procedure('sp_cursorclose', cursor);
    expect(await refusal(fetch())).toMatchObject({ number: 16909 });
  });

  it('loads in bulk', async () => {
    const c = await client();
    await c.batch(
      'CREATE TABLE #bulk (id int PRIMARY KEY, name nvarchar(50), n decimal(10,2), big nvarchar(max), at datetime2(3))',
    );
    const load = (from: number, count: number) =>
      new Promise<number>((done, fail) => {
        const bulk = c.connection.newBulkLoad('#bulk', {}, (error, rows) => (error ? fail(error) : done(rows ?? 0)));
        bulk.addColumn('id', TYPES.Int, { nullable: false });
        bulk.addColumn('name', TYPES.NVarChar, { length: 50, nullable: true });
        bulk.addColumn('n', TYPES.Decimal, { precision: 10, scale: 2, nullable: true });
        bulk.addColumn('big', TYPES.NVarChar, { length: Number.POSITIVE_INFINITY, nullable: true });
        bulk.addColumn('at', TYPES.DateTime2, { scale: 3, nullable: true });
        const rows = Array.from({ length: count }, (_, i) => [
          from + i,
          i % 2 ? `☃ ${i}` : null,
          i / 4,
          'z'.repeat(i % 50),
          new Date(1e12 + i),
        ]);
        c.connection.execBulkLoad(bulk, rows as never);
      });
    expect(await load(1, 3000)).toBe(3000);
    expect((await c.sql('SELECT COUNT(*) AS n, COUNT(name) AS named FROM #bulk')).rows).toEqual([
      { n: 3000, named: 1500 },
    ]);
    expect((await c.sql('SELECT name, n, at FROM #bulk WHERE id = 4')).rows).toEqual([
      { name: '☃ 3', n: 0.75, at: new Date(1e12 + 3) },
    ]);
    await c.begin();
    expect(await load(5000, 5)).toBe(5);
    expect(await refusal(load(5004, 3))).toMatchObject({ number: 2627 });
    expect((await c.sql(COUNT)).rows).toEqual([{ n: 1, x: 1 }]);
    await c.rollback();
    expect((await c.sql('SELECT COUNT(*) AS n FROM #bulk')).rows).toEqual([{ n: 3000 }]);
  });
}
