import { afterAll, afterEach, beforeAll, expect, it } from 'vitest';
import { selfSignedCert, useServer } from '../kit/servers.js';
import { RawTds } from '../kit/tds-raw.js';
import { type TokenShape, tokensOf } from '../kit/tds-tokens.js';
import { TdsServer } from '../servers/tds/server.js';

const holder = useServer();
const clients: RawTds[] = [];
let server: TdsServer;

beforeAll(async () => {
  const { host, port } = holder.server;
  server = await TdsServer.start({
    pg: { host, port, user: 'postgres', database: 'postgres' },
    tls: selfSignedCert(),
    sessionRecovery: true,
  });
});

afterEach(() => {
  for (const client of clients.splice(0)) client.close();
});

afterAll(async () => {
  await server?.stop();
});

async function login(...options: Parameters<typeof RawTds.connect> extends [number, ...infer Rest] ? Rest : never) {
  const made = await RawTds.connect(server.port, ...options);
  clients.push(made.raw);
  return made;
}

const shape = (tokens: readonly TokenShape[]) =>
  tokens.map(({ name, detail }) => (detail === '' ? name : `${name} ${detail}`));
const TRANCOUNT = 'SELECT @@TRANCOUNT WHERE @@TRANCOUNT > 0';
const open = async (raw: RawTds) => shape(await raw.batch(TRANCOUNT)).includes('ROW');

it('answers a login in the order of SQL Server', async () => {
  expect(shape((await login()).tokens)).toEqual([
    'ENVCHANGE 1',
    'INFO 5701',
    'ENVCHANGE 7',
    'ENVCHANGE 2',
    'INFO 5703',
    'LOGINACK 74000004',
    'ENVCHANGE 4',
    'DONE 0',
  ]);
});

it('resets a session with its transaction or without', async () => {
  const { raw } = await login();
  await raw.batch('BEGIN TRAN; CREATE TABLE #t (a int)');
  // 0x10 is RESETCONNECTIONSKIPTRAN, 0x08 RESETCONNECTION.
  expect(shape(await raw.batch('SELECT @@TRANCOUNT', 0x10))).toEqual([
    'ENVCHANGE 18',
    'COLMETADATA 26',
    'ROW',
    'DONE 10',
  ]);
  expect(await open(raw)).toBe(true);
  expect(shape(await raw.batch('SELECT a FROM #t'))).toContain('ERROR 208');
  expect(shape(await raw.batch('SELECT @@TRANCOUNT', 0x08))).toEqual([
    'ENVCHANGE 18',
    'ENVCHANGE 10',
    'COLMETADATA 26',
    'ROW',
    'DONE 10',
  ]);
  expect(await open(raw)).toBe(false);
});

it('begins the next transaction with the commit or rollback of one', async () => {
  const { raw } = await login();
  const begin = Buffer.from('05000000', 'hex');
  expect(shape(await raw.ask(14, begin))).toEqual(['ENVCHANGE 8', 'DONE 0']);
  const first = raw.descriptor;
  // Kind 7 or 8, no name, the flag, isolation 2, no name.
  for (const kind of [7, 8]) {
    const tokens = shape(await raw.ask(14, Buffer.from([kind, 0, 0, 1, 2, 0])));
    expect(tokens).toEqual([`ENVCHANGE ${kind + 2}`, 'ENVCHANGE 8', 'DONE 0']);
  }
  expect(raw.descriptor.equals(first)).toBe(false);
  expect(await open(raw)).toBe(true);
});

it('does not run a request that its client ended with IGNORE', async () => {
  const { raw } = await login();
  const text = Buffer.concat([raw.headers(), Buffer.from('CREATE TABLE never (a int)', 'utf16le')]);
  raw.send(1, text, 0x02);
  await raw.answer();
  expect(shape(await raw.batch("SELECT 1 WHERE OBJECT_ID('never') IS NOT NULL"))).not.toContain('ROW');
});

it('answers an Attention with nothing to stop, and one for a running statement in a message of its own', async () => {
  const { raw } = await login();
  raw.send(6, Buffer.alloc(0));

  expect(shape(tokensOf(await raw.answer()))).toEqual(['DONE 20']);
  const from = server.events.length;
  raw.send(1, Buffer.concat([raw.headers(), Buffer.from("WAITFOR DELAY '00:01:00'", 'utf16le')]));
  while (!server.events.slice(from).some(({ kind }) => kind === 'request'))
    await new Promise((done) => setImmediate(done));
  raw.send(6, Buffer.alloc(0));
  expect(shape(tokensOf(await raw.answer()))).toEqual(['DONE 2']);
  expect(shape(tokensOf(await raw.answer()))).toEqual(['DONE 20']);
  expect(shape(await raw.batch('SELECT 1'))).toContain('ROW');
});

it('ends the connection of who sends packets of the wrong size, headers that are none, or MARS requests', async () => {
  const wrong: ((raw: RawTds) => void)[] = [
    (raw) => raw.packet(1, Buffer.concat([raw.headers(), Buffer.alloc(10)]), 0),
    (raw) => raw.send(1, Buffer.from('S\0E\0L\0E\0C\0T\0', 'latin1')),
    (raw) => {
      const headers = raw.headers();
      headers.writeUInt32LE(2, 18);
      raw.send(1, headers);
    },
    (raw) => raw.send(99, Buffer.alloc(4)),
  ];
  for (const send of wrong) {
    const { raw } = await login();
    send(raw);
    await expect(raw.answer()).rejects.toThrow('ended');
  }
});

it('tells the state of a session, and brings it back at the login of another', async () => {
  const feature = Buffer.from('0100000000', 'hex');
  const { raw, tokens, payload } = await login({ features: feature });
  expect(shape(tokens)).toContain('FEATUREEXTACK 1');
  const at = payload.lastIndexOf(Buffer.from('ae01', 'hex'));
  const initial = payload.subarray(at + 6, at + 6 + payload.readUInt32LE(at + 2));
  // A changed option is told; so is that a session with a temporary table cannot be recovered, and that it can again.
  expect(shape(await raw.batch('SET LOCK_TIMEOUT 777'))).toEqual(['SESSIONSTATE', 'DONE 0']);
  expect(shape(await raw.batch('SELECT 1'))).not.toContain('SESSIONSTATE');
  expect(shape(await raw.batch('CREATE TABLE #t (a int)'))).toContain('SESSIONSTATE');
  expect(shape(await raw.batch('DROP TABLE #t'))).toContain('SESSIONSTATE');
  const block = (database: string, state: Buffer) => {
    const text = Buffer.from(database, 'utf16le');
    const body = Buffer.concat([Buffer.from([database.length]), text, Buffer.from([0, 0]), state]);
    const length = Buffer.alloc(4);
    length.writeUInt32LE(body.length);
    return Buffer.concat([length, body]);
  };
  // Id 9 is the lock timeout.
  const data = Buffer.concat([block('app', initial), block('master', Buffer.from('090409030000', 'hex'))]);
  const head = Buffer.from([1, 0, 0, 0, 0]);
  head.writeUInt32LE(data.length, 1);
  const again = await login({ features: Buffer.concat([head, data]) });
  expect(shape(again.tokens)).toContain('FEATUREEXTACK 1');
  const check = "SELECT 1 WHERE @@LOCK_TIMEOUT = 777 AND DB_NAME() = 'master'";
  expect(shape(await again.raw.batch(check))).toContain('ROW');
});

it('speaks 7.1 with counts of four bytes and no headers', async () => {
  const { raw, tokens } = await login({ version: 0x71000001 });
  expect(shape(tokens)).toContain('LOGINACK 71000001');
  raw.send(1, Buffer.from("SELECT 1 AS a, CAST('x' AS varchar(max)) AS b, CAST('<a/>' AS xml) AS c", 'utf16le'));

  expect(shape(tokensOf(await raw.answer(), 0x71000001))).toEqual(['COLMETADATA 26 23 63', 'ROW', 'DONE 10']);
});
