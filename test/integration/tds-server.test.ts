import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { eventually, selfSignedCert, usePair } from '../kit/servers.js';
import { refusal, TdsClient, TYPES } from '../kit/tds.js';
import { sessionScenarios, transactionScenarios } from '../kit/tds-scenarios.js';
import { type TdsOptions, TdsServer } from '../servers/tds/server.js';

const holder = usePair();
const tls = selfSignedCert();
const servers: TdsServer[] = [];
const clients: TdsClient[] = [];

/** A server in front of the primary, or of another PostgreSQL. */
async function serve(options: Partial<TdsOptions> = {}, postgres = holder.pair.primary): Promise<TdsServer> {
  const { host, port } = postgres;
  const server = await TdsServer.start({
    pg: { host, port, user: 'postgres', database: 'postgres' },
    tls,
    ...options,
  });
  servers.push(server);
  return server;
}

async function client(server: TdsServer, ...more: [options?: Parameters<typeof TdsClient.connect>[1]]) {
  const made = await TdsClient.connect(server.port, ...more);
  clients.push(made);
  return made;
}

afterEach(() => {
  for (const one of clients.splice(0)) one.connection.close();
});

afterAll(async () => {
  for (const server of servers) await server.stop();
});

const COUNT = 'SELECT @@TRANCOUNT AS n, XACT_STATE() AS x';

describe.each([
  { mode: 'announced', textTransactions: true },
  { mode: 'not announced', textTransactions: false },
])('with transactions of texts $mode', ({ textTransactions }) => {
  let server: TdsServer;
  beforeAll(async () => {
    server = await serve({ textTransactions });
  });

  transactionScenarios(() => ({ port: server.port, server }), textTransactions);
});

describe('a server', () => {
  let server: TdsServer;
  beforeAll(async () => {
    server = await serve({ name: 'ALPHA', databases: ['app', 'other'] });
  });

  sessionScenarios(() => ({ port: server.port, server }));

  it('knows itself and its sessions', async () => {
    const a = await client(server, { appName: 'first' });
    const b = await client(server);
    const [{ spid }] = (await a.sql('SELECT @@SPID AS spid')).rows as { spid: number }[];
    expect((await a.sql('SELECT @@VERSION AS v')).rows[0].v).toContain('Microsoft SQL Server 2022');
    const names =
      "SELECT SERVERPROPERTY('ServerName') AS s, @@SERVERNAME AS g, SUSER_SNAME() AS u, DB_NAME() AS d, APP_NAME() AS a, " +
      "DATABASEPROPERTYEX(DB_NAME(), 'Updateability') AS w, sys.fn_hadr_is_primary_replica(DB_NAME()) AS p";
    expect((await a.sql(names)).rows).toEqual([
      { s: 'ALPHA', g: 'ALPHA', u: 'sa', d: 'app', a: 'first', w: 'READ_WRITE', p: true },
    ]);
    const look = 'SELECT session_id, open_transaction_count AS n FROM sys.dm_exec_sessions WHERE session_id = @s';
    const ask = () => b.sql(look, { name: 's', type: TYPES.SmallInt, value: spid });
    expect((await ask()).rows).toEqual([{ session_id: spid, n: 0 }]);
    await a.begin();
    const [{ id }] = (await a.sql('SELECT transaction_id AS id FROM sys.dm_tran_current_transaction')).rows;
    expect(
      (
        await b.sql('SELECT s.transaction_id AS id FROM sys.dm_tran_session_transactions s WHERE s.session_id = @s', {
          name: 's',
          type: TYPES.Int,
          value: spid,
        })
      ).rows,
    ).toEqual([{ id }]);
    await b.batch(`KILL ${spid}`);
    await eventually(() => a.lost.length > 0);
    expect((await ask()).rows).toEqual([]);
    expect(await refusal(b.batch('KILL 9999'))).toMatchObject({ number: 6106 });
    const [fork] = (await b.sql('SELECT family_guid, recovery_fork_guid FROM sys.database_recovery_status')).rows;
    expect(fork.family_guid).not.toBe(fork.recovery_fork_guid);
  });
});

describe('encryption', () => {
  const wanted = { trustServerCertificate: true } as const;

  it.each([
    { server: 'off', encrypt: true, encrypted: 'all' },
    { server: 'off', encrypt: false, encrypted: 'nothing' },
    { server: 'on', encrypt: true, encrypted: 'all' },
    { server: 'required', encrypt: true, encrypted: 'all' },
    { server: 'notSupported', encrypt: false, encrypted: 'nothing' },
  ] as const)(
    'is $encrypted where the server says $server and the client $encrypt',
    async ({ server, encrypt, encrypted }) => {
      const s = await serve({ encryption: server });
      const c = await client(s, { ...wanted, encrypt });
      const text = 'x'.repeat(100_000);
      expect((await c.sql('SELECT @t AS t', { name: 't', type: TYPES.NVarChar, value: text })).rows[0].t === text).toBe(
        true,
      );
      await c.begin();
      await c.commit();
      expect(s.events.find(({ kind }) => kind === 'login')).toMatchObject({ encrypted });
    },
  );

  it('is not agreed on where one side wants it and the other cannot', async () => {
    const never = await serve({ encryption: 'notSupported' });
    await expect(TdsClient.connect(never.port, { ...wanted, encrypt: true })).rejects.toThrow();
    const always = await serve({ encryption: 'required' });
    await expect(TdsClient.connect(always.port, { encrypt: false })).rejects.toThrow();
  });

  it('comes first in strict mode', async () => {
    const s = await serve();
    const c = await client(s, { encrypt: 'strict', cryptoCredentialsDetails: { ca: tls.cert } });
    await c.begin();
    expect((await c.sql(COUNT)).rows).toEqual([{ n: 1, x: 1 }]);
    await c.rollback();
    expect(s.events.find(({ kind }) => kind === 'tls')).toMatchObject({ alpn: 'tds/8.0' });
  });
});

describe('hooks', () => {
  it('hold a commit before it takes effect and after it, and drop sessions', async () => {
    const server = await serve();
    const [a, b] = [await client(server), await client(server)];
    await a.batch('DROP TABLE IF EXISTS hooked; CREATE TABLE hooked (id int PRIMARY KEY)');
    const rows = async () => (await b.sql('SELECT COUNT(*) AS n FROM hooked')).rows[0].n;
    for (const [id, place, seen] of [
      [1, 'before-commit', 0],
      [2, 'after-commit', 1],
    ] as const) {
      await a.batch('DELETE FROM hooked');
      await a.begin();
      await a.sql(`INSERT INTO hooked VALUES (${id})`);
      const gate = server.hold(place);
      const committed = a.commit();
      await gate.reached;
      expect(await rows()).toBe(seen);
      gate.release();
      await committed;
      expect(await rows()).toBe(1);
    }
    const gate = server.hold('after-commit', { autocommit: true });
    const running = a.batch('DELETE FROM hooked');
    const spid = await gate.reached;
    expect(await rows()).toBe(0);
    expect(server.drop(spid)).toBe(true);
    await expect(running).rejects.toThrow();
    gate.release();
    expect(server.events.filter(({ kind }) => kind === 'commit').map(({ of }) => of)).toEqual([
      'commit',
      'commit',
      'autocommit',
    ]);
    expect(server.counts.transaction).toBe(4);
  });
});
