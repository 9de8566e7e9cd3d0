import { afterAll, afterEach, beforeAll, expect, it } from 'vitest';
import { eventually, restorePair, selfSignedCert, usePair } from '../kit/servers.js';
import { refusal, TdsClient } from '../kit/tds.js';
import { TdsProcess } from '../kit/tds-process.js';
import { TdsServer } from '../servers/tds/server.js';

const holder = usePair();
const tls = selfSignedCert();
const clients: TdsClient[] = [];
/** One before each PostgreSQL, by its name. */
const servers = new Map<string, TdsServer>();

function options(name: string) {
  const { pair } = holder;
  const { host, port } = [pair.primary, pair.standby].find((server) => server.name === name)!;
  return { name, tls, pg: { host, port, user: 'postgres', database: 'postgres' } };
}

beforeAll(async () => {
  for (const { name } of [holder.pair.primary, holder.pair.standby]) {
    servers.set(name, await TdsServer.start(options(name)));
  }
});

afterEach(async () => {
  for (const client of clients.splice(0)) client.connection.close();
  await restorePair(holder.pair);
});

afterAll(async () => {
  for (const server of servers.values()) await server.stop();
});

async function client(port: number): Promise<TdsClient> {
  const made = await TdsClient.connect(port);
  clients.push(made);
  return made;
}

/** A client of the server before the standby, once the standby has what the primary made for it. */
async function standbyClient(): Promise<TdsClient> {
  const { port } = servers.get(holder.pair.standby.name)!;
  return eventually(() => client(port), { message: 'a login at the standby' });
}

it('refuses writes before a standby, and goes on in the same session when that is promoted', async () => {
  const { pair } = holder;
  const before = pair.primary.name;
  const a = await client(servers.get(before)!.port);
  await a.batch('DROP TABLE IF EXISTS kept; CREATE TABLE kept (id int PRIMARY KEY); INSERT INTO kept VALUES (1)');
  const b = await standbyClient();
  const rows = () => b.sql('SELECT id FROM kept ORDER BY id').then(({ rows }) => rows.map(({ id }) => id));
  await eventually(async () => (await rows()).length === 1);
  const role =
    "SELECT DATABASEPROPERTYEX(DB_NAME(), 'Updateability') AS u, sys.fn_hadr_is_primary_replica('app') AS p, " +
    'family_guid AS f, recovery_fork_guid AS r FROM sys.database_recovery_status';
  const [there] = (await a.sql(role)).rows;
  const [here] = (await b.sql(role)).rows;
  expect(there).toMatchObject({ u: 'READ_WRITE', p: true });
  expect(here).toEqual({ ...there, u: 'READ_ONLY', p: false });
  expect(await refusal(b.sql('INSERT INTO kept VALUES (2)'))).toMatchObject({
    number: 3906,
    message: 'Failed to update database "app" because the database is read-only.',
  });
  await b.begin();
  expect(await refusal(b.sql('DELETE FROM kept'))).toMatchObject({ number: 3906 });
  expect(await rows()).toEqual([1]);
  await b.rollback();
  await a.begin();
  await a.sql('INSERT INTO kept VALUES (3)');
  await pair.failover({ how: 'kill' });
  await eventually(() => a.lost.length > 0);
  await expect(a.commit()).rejects.toThrow();
  await b.sql('INSERT INTO kept VALUES (4)');
  expect(await rows()).toEqual([1, 4]);
  const [after] = (await b.sql(role)).rows;
  expect(after).toMatchObject({ u: 'READ_WRITE', p: true, f: there.f });
  expect(after.r).not.toBe(there.r);
  // The server whose PostgreSQL is dead takes no logins.
  await expect(TdsClient.connect(servers.get(before)!.port)).rejects.toThrow();
});

it('leaves the transactions of a killed process to PostgreSQL', async () => {
  const { primary } = holder.pair;
  const server = await TdsProcess.start(options(primary.name));
  try {
    const [a, b] = [await client(server.port), await client(server.port)];
    await a.batch('DROP TABLE IF EXISTS doubt; CREATE TABLE doubt (id int PRIMARY KEY)');
    await a.begin();
    await a.sql('INSERT INTO doubt VALUES (1)');
    await b.begin();
    await b.sql('INSERT INTO doubt VALUES (2)');
    const gate = server.hold('after-commit');
    const committed = a.commit();
    expect(await gate.reached).toBe((await server.waitFor(({ kind }) => kind === 'commit')).spid);
    const lost = expect(committed).rejects.toThrow();
    await server.kill();
    await lost;
    // What had taken effect stays, what was open goes; nobody waits for its lock.
    const c = await client(servers.get(primary.name)!.port);
    await c.sql('INSERT INTO doubt VALUES (2)');
    expect((await c.sql('SELECT id FROM doubt ORDER BY id')).rows).toEqual([{ id: 1 }, { id: 2 }]);
  } finally {
    await server.kill();
  }
});
