import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { TestGateway } from '../kit/gateway.js';
import { selfSignedCert, useServer } from '../kit/servers.js';
import { ISOLATION_LEVEL, TdsClient, TYPES } from '../kit/tds.js';
import { freetdsScenarios } from '../kit/tds-freetds.js';
import { sessionScenarios, type TdsEnd, transactionScenarios } from '../kit/tds-scenarios.js';
import { launchTdsGateway } from '../kit/tds-stage.js';
import { TdsServer } from '../servers/tds/server.js';

// The tests of the server itself, with a gateway between it and the unmodified drivers.

const holder = useServer({ settings: { fsync: 'off' } });
const tls = selfSignedCert();

/** By whether the server tells of transactions in text. */
const ends = new Map<boolean, { server: TdsServer; gateway: TestGateway }>();

beforeAll(async () => {
  const { host, port } = holder.server;
  for (const textTransactions of [true, false]) {
    const server = await TdsServer.start({
      pg: { host, port, user: 'postgres', database: 'postgres' },
      tls,
      databases: ['app', 'other'],
      textTransactions,
    });
    const gateway = await launchTdsGateway(new Map([['a', server]]), { tls: 'allow' });
    ends.set(textTransactions, { server, gateway });
  }
});

afterAll(async () => {
  for (const { server, gateway } of ends.values()) {
    await gateway.stop();
    await server.stop();
  }
});

/** The gateway as what clients connect to. */
function through(textTransactions: boolean, encrypt: boolean | 'strict' = false): TdsEnd {
  const { server, gateway } = ends.get(textTransactions)!;
  const options = {
    encrypt: encrypt as boolean,
    trustServerCertificate: false,
    serverName: encrypt ? 'localhost' : '',
    cryptoCredentialsDetails: { ca: gateway.cert },
  };
  return { port: gateway.port, server, options: encrypt ? options : {} };
}

describe.each([
  { textTransactions: true, encrypt: false },
  { textTransactions: true, encrypt: true },
  { textTransactions: true, encrypt: 'strict' },
  { textTransactions: false, encrypt: false },
] as const)('tedious with transactions of texts told: $textTransactions, encrypt: $encrypt', (how) => {
  transactionScenarios(() => through(how.textTransactions, how.encrypt), how.textTransactions);
});

describe.each([false, true, 'strict'] as const)('tedious, encrypt: %s', (encrypt) => {
  sessionScenarios(() => through(true, encrypt));
});

freetdsScenarios((textTransactions) => through(textTransactions), {
  // The gateway's own connections are not encrypted here.
  off: 'nothing',
  request: 'nothing',
  require: 'nothing',
});

/** Each token that tedious reads while a client does something after its login, as tedious describes it. */
async function tokensHeard(port: number, act: (client: TdsClient) => Promise<unknown>): Promise<string[]> {
  const client = await TdsClient.connect(port, {
    debug: { token: true, data: false, packet: false, payload: false },
  });
  const heard: string[] = [];
  // Each session has transactions of its own.
  client.connection.on('debug', (text) => heard.push(text.replaceAll(/<Buffer( [0-9a-f]{2}){8}>/g, '<descriptor>')));
  try {
    await act(client);
    // What comes with its end comes in any order.
    return [...heard];
  } finally {
    await client.close();
  }
}

it('goes on with a session that is killed without a word', async () => {
  const { server, gateway } = ends.get(true)!;
  const [client, admin] = [await TdsClient.connect(gateway.port), await TdsClient.connect(server.port)];
  const spid = async () => (await client.batch('SELECT @@SPID AS spid')).rows[0].spid;
  await client.begin();
  const before = await spid();
  await client.rollback();
  await admin.batch(`KILL ${before}`);
  expect(await spid()).not.toBe(before);
  expect(client.lost).toEqual([]);
  await client.close();
  await admin.close();
});

const number = (name: string, value: number | null, output = false) => ({ name, type: TYPES.Int, value, output });

/** What clients do in the comparison; an error is part of what they hear. */
const SCRIPTS: Readonly<Record<string, (client: TdsClient) => Promise<unknown>>> = {
  'results of many types': async (client) => {
    await client.batch(
      "SELECT 1 AS one, NULL AS n, CAST(2.5 AS decimal(9, 3)) AS d, CAST('a' AS char(3)) AS c, N'☃' AS w, CAST(1 AS bit) AS b, " +
        "CAST('2024-02-29 01:02:03.003' AS datetime) AS dt, CAST('2024-02-29' AS date) AS day, CAST(0x0102 AS varbinary(4)) AS x",
    );
    await client.batch('SELECT 1 AS a; SELECT 2 AS b WHERE 1 = 0; SELECT 3 AS c, 4 AS c');
    await client.batch("SELECT g AS n, REPLICATE('x', 300) AS t FROM generate_series(1, 500) AS g");
    await client.sql('SELECT @t AS t', { name: 't', type: TYPES.NVarChar, value: 'é☃'.repeat(40_000) });
  },
  'messages, counts and errors': async (client) => {
    await client.batch("PRINT 'hello'; RAISERROR('low', 5, 1); SELECT 1 AS a; PRINT 'again'");
    await client.batch('SET NOCOUNT ON; DECLARE @a int = 1; SELECT @a AS a; SET NOCOUNT OFF');
    await client.batch('CREATE TABLE #c (id int PRIMARY KEY, v int); INSERT INTO #c VALUES (1, 1), (2, 2)');
    for (const text of [
      'INSERT INTO #c VALUES (1, 5); SELECT 5 AS five',
      'UPDATE #c SET v = 7; DELETE FROM #c WHERE id = 9',
      "RAISERROR('no %d', 16, 3, 5)",
      'SELECT * FROM nobody',
      'SELEC 1',
      "THROW 51234, 'thrown', 2",
      'SELECT 1/0; SELECT 2 AS two',
    ]) {
      await client.batch(text).catch(() => {});
      await client.sql(text).catch(() => {});
    }
  },
  'changes of the session': async (client) => {
    await client.batch('USE other; USE app; SET LANGUAGE us_english; SET LOCK_TIMEOUT 50; SELECT @@LOCK_TIMEOUT AS l');
    await client.reset();
    await client.batch('SELECT @@LOCK_TIMEOUT AS l');
  },
  transactions: async (client) => {
    await client.begin('named', ISOLATION_LEVEL.REPEATABLE_READ);
    await client.save('here');
    await client.batch('SELECT @@TRANCOUNT AS n');
    await client.rollback('here');
    await client.begin();
    await client.commit();
    await client.commit();
    await client.commit().catch(() => {});
    await client.batch('BEGIN TRAN; SELECT 1 AS a; BEGIN TRAN');
    await client.batch('COMMIT; SELECT 2 AS b');
    await client.batch('ROLLBACK TRAN');
    await client.batch('ROLLBACK TRAN').catch(() => {});
    await client.batch('SET IMPLICIT_TRANSACTIONS ON; CREATE TABLE #i (a int)');
    await client.batch('INSERT INTO #i VALUES (1)');
    await client.batch('COMMIT');
    await client.batch('SET XACT_ABORT ON; INSERT INTO #i VALUES (1/0)').catch(() => {});
    await client.batch('SELECT @@TRANCOUNT AS n');
  },
  'procedures, handles and cursors': async (client) => {
    await client.procedure('p_out', number('a', 3), number('b', null, true), {
      name: 's',
      type: TYPES.NVarChar,
      value: null,
      output: true,
    });
    await client.procedure('nobody').catch(() => {});
    const text = (name: string, value: string) => ({ name, type: TYPES.NVarChar, value });
    const prepared = await client.procedure(
      'sp_prepare',
      number('handle', null, true),
      text('params', '@p int'),
      text('stmt', 'SELECT @p + 1 AS v'),
    );
    const handle = number('handle', prepared.outputs.handle as number);
    await client.procedure('sp_execute', handle, number('p', 4));
    await client.procedure('sp_unprepare', handle);
    await client.procedure('sp_execute', handle, number('p', 4)).catch(() => {});
    const opened = await client.procedure(
      'sp_cursoropen',
      number('cursor', null, true),
      text('stmt', 'SELECT g AS n FROM generate_series(1, 5) AS g'),
      number('scrollopt', 8, true),
      number('ccopt', 1, true),
      number('rowcount', 0, true),
    );
    const cursor = number('cursor', opened.outputs.cursor as number);
    const fetch = () =>
      client.procedure('sp_cursorfetch', cursor, number('fetchtype', 2), number('rownum', 0), number('nrows', 3));
    await fetch();
    await fetch();
    await client.procedure('sp_cursorclose', cursor);
    await fetch().catch(() => {});
  },
};

describe.each([true, false])('every token that tedious reads, transactions of texts told: %s', (textTransactions) => {
  it.each(Object.entries(SCRIPTS))('is the same without the gateway: %s', async (_, act) => {
    const { server, gateway } = ends.get(textTransactions)!;
    const direct = await tokensHeard(server.port, act);
    expect(direct.length).toBeGreaterThan(4);
    expect(await tokensHeard(gateway.port, act)).toEqual(direct);
  });
});
