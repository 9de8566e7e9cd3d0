import { execFile, spawnSync } from 'node:child_process';
import { createRequire } from 'node:module';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import pg from 'pg';
import QueryStream from 'pg-query-stream';
import postgres from 'postgres';
import { beforeAll, describe, expect, it } from 'vitest';
import { connectPg, RawClient, type RawMessage, SSL_REQUEST, type TestGateway, useGateway } from '../kit/gateway.js';
import { eventually, selfSignedCert, useServer } from '../kit/servers.js';

// These two have no types of their own.
const require = createRequire(import.meta.url);
interface CursorLike extends pg.Submittable {
  read(rows: number): Promise<{ n: number }[]>;
  close(): Promise<void>;
}
const Cursor = require('pg-cursor') as new (text: string, values?: unknown[]) => CursorLike;
const copies = require('pg-copy-streams') as {
  from(sql: string): NodeJS.WritableStream & pg.Submittable;
  to(sql: string): NodeJS.ReadableStream & pg.Submittable;
};

const PASSWORD = 'pässwörd "quoted"';
const serverTls = selfSignedCert();

const holder = useServer({
  settings: { fsync: 'off' },
  tls: serverTls,
  hba: [
    'host all md5_user 127.0.0.1/32 md5',
    'host all scram_user 127.0.0.1/32 scram-sha-256',
    'host all trusted 127.0.0.1/32 trust',
    'host all all 127.0.0.1/32 reject',
  ],
});
const verifiers: Record<string, string> = {};
beforeAll(async () => {
  const admin = await connectPg(holder.server);
  const quoted = `'${PASSWORD}'`;
  await admin.query(`set password_encryption = 'md5'; create role md5_user login password ${quoted}`);
  await admin.query(`set password_encryption = 'scram-sha-256'; create role scram_user login password ${quoted}`);
  await admin.query('create role trusted login; grant create on schema public to public');
  const { rows } = await admin.query<{ rolname: string; rolpassword: string }>(
    "select rolname, rolpassword from pg_authid where rolname in ('md5_user', 'scram_user')",
  );
  for (const { rolname, rolpassword } of rows) verifiers[rolname] = rolpassword;
  await admin.end();
});

/** A way through the gateway: how clients prove who they are, and over what. */
interface Way {
  readonly name: string;
  readonly gateway: TestGateway;
  readonly user: string;
  readonly password?: string;
  readonly tls: boolean;
}

const trust = useGateway(holder, { tls: 'allow' });
const md5 = useGateway(holder, () => ({ tls: 'allow', users: { md5_user: PASSWORD }, listener: { auth: 'md5' } }));
// Only the verifier is known: the gateway logs in with the key that the client's proof shows.
const scram = useGateway(
  () => [{ port: holder.server.port, tls: 'require' }],
  () => ({ tls: 'require', users: { scram_user: verifiers.scram_user }, listener: { auth: 'scram-sha-256' } }),
);
const cleartext = useGateway(holder, () => ({
  tls: 'require',
  users: { md5_user: verifiers.md5_user, scram_user: verifiers.scram_user },
  listener: { auth: 'password' },
}));

const ways: Way[] = [
  { name: 'trust, plain', gateway: trust, user: 'trusted', tls: false },
  { name: 'trust, TLS', gateway: trust, user: 'trusted', tls: true },
  { name: 'md5, plain', gateway: md5, user: 'md5_user', password: PASSWORD, tls: false },
  { name: 'md5, TLS', gateway: md5, user: 'md5_user', password: PASSWORD, tls: true },
  { name: 'SCRAM, TLS to both sides', gateway: scram, user: 'scram_user', password: PASSWORD, tls: true },
  { name: 'password against a SCRAM verifier', gateway: cleartext, user: 'scram_user', password: PASSWORD, tls: true },
  { name: 'password against an md5 verifier', gateway: cleartext, user: 'md5_user', password: PASSWORD, tls: true },
];

const pgConfig = ({ gateway, user, password, tls }: Way): pg.ClientConfig => ({
  host: '127.0.0.1',
  port: gateway.port,
  user,
  password,
  database: 'postgres',
  ssl: tls ? { ca: gateway.cert, servername: 'localhost' } : false,
});

describe.each(ways)('$name', (way) => {
  it('pg: pool, transactions, cursors, streams, copies', async () => {
    const pool = new pg.Pool({ ...pgConfig(way), max: 4 });
    const table = `pg_${way.user}_${way.tls ? 'tls' : 'plain'}`;
    try {
      await pool.query(`drop table if exists ${table}; create table ${table} (n int primary key, v text)`);
      const got = await Promise.all(Array.from({ length: 20 }, (_, i) => pool.query('select $1::int as n', [i])));
      expect(got.map(({ rows }) => rows[0].n)).toEqual(Array.from({ length: 20 }, (_, i) => i));

      const client = await pool.connect();
      try {
        expect((await client.query('select current_user as u')).rows).toEqual([{ u: way.user }]);
        await client.query('begin');
        await client.query({
          name: 'ins',
          text: `insert into ${table} select g, 'x' || g from generate_series(1, $1) g`,
          values: [1000],
        });
        await expect(client.query(`insert into ${table} values (1)`)).rejects.toMatchObject({ code: '23505' });
        await client.query('rollback');
        await client.query({
          name: 'ins',
          text: `insert into ${table} select g, 'x' || g from generate_series(1, $1) g`,
          values: [1000],
        });

        const cursor = client.query(new Cursor(`select n from ${table} where n > $1 order by n`, [0]));
        const first = await cursor.read(10);
        const second = await cursor.read(10);
        await cursor.close();
        expect([first.map(({ n }) => n).at(-1), second.map(({ n }) => n).at(-1)]).toEqual([10, 20]);

        let sum = 0;
        for await (const row of client.query(new QueryStream(`select n from ${table}`, [], { batchSize: 50 })))
          sum += row.n;
        expect(sum).toBe(500_500);

        const lines = Array.from({ length: 5000 }, (_, i) => `${2000 + i}\tline ${i}\n`);
        await pipeline(Readable.from(lines), client.query(copies.from(`copy ${table} from stdin`)));
        let out = '';
        for await (const chunk of client.query(
          copies.to(`copy (select * from ${table} where n >= 2000 order by n) to stdout`),
        ))
          out += chunk;
        expect(out).toBe(lines.join(''));
        expect((await client.query(`select count(*)::int as n from ${table}`)).rows).toEqual([{ n: 6000 }]);
      } finally {
        client.release();
      }
    } finally {
      await pool.query(`drop table if exists ${table}`);
      await pool.end();
    }
  });

  it.each([true, false])('postgres.js, prepare: %s', async (prepare) => {
    const notices: string[] = [];
    const sql = postgres({
      host: '127.0.0.1',
      port: way.gateway.port,
      user: way.user,
      password: way.password,
      database: 'postgres',
      ssl: way.tls ? { ca: way.gateway.cert, servername: 'localhost' } : false,
      max: 3,
      prepare,
      onnotice: ({ message }) => notices.push(message),
    });
    const table = `js_${way.user}_${way.tls ? 'tls' : 'plain'}_${prepare}`;
    try {
      await sql`create table ${sql(table)} (n int primary key, v text)`;
      // One connection gets them all without waiting for answers.
      const all = await Promise.all(Array.from({ length: 60 }, (_, i) => sql`select ${i}::int as n`));
      expect(all.map(([row]) => row.n)).toEqual(Array.from({ length: 60 }, (_, i) => i));
      await sql.begin(async (tx) => {
        await Promise.all(Array.from({ length: 20 }, (_, i) => tx`insert into ${tx(table)} values (${i}, ${`v${i}`})`));
        await tx
          .savepoint(async (sp) => {
            await sp`insert into ${sp(table)} values (1, 'dup')`;
          })
          .catch((error: postgres.PostgresError) => expect(error.code).toBe('23505'));
      });
      await expect(
        sql.begin(async (tx) => {
          await tx`delete from ${tx(table)}`;
          await tx`select 1/0`;
        }),
      ).rejects.toMatchObject({ code: '22012' });
      expect(await sql`select count(*)::int as n from ${sql(table)}`).toEqual([{ n: 20 }]);
      expect(
        await sql`insert into ${sql(table)} ${sql([
          { n: 100, v: 'a' },
          { n: 101, v: 'b' },
        ])} returning n`,
      ).toEqual([{ n: 100 }, { n: 101 }]);
      const seen: number[] = [];
      await sql`select n from ${sql(table)} where n < 20 order by n`.cursor(7, (rows) => {
        seen.push(...rows.map((row) => row.n as number));
      });
      expect(seen).toEqual(Array.from({ length: 20 }, (_, i) => i));
      const writable = await sql`copy ${sql(table)} from stdin`.writable();
      await pipeline(Readable.from(['500\tx\n', '501\ty\n']), writable);
      let out = '';
      for await (const chunk of await sql`copy (select n from ${sql(table)} where n >= 500) to stdout`.readable())
        out += chunk;
      expect(out).toBe('500\n501\n');
      await sql`do $$ begin raise notice 'heard'; end $$`;
      expect(notices).toContain('heard');

      const heard: string[] = [];
      const { unlisten } = await sql.listen(`ch_${table}`, (payload) => heard.push(payload));
      await sql.notify(`ch_${table}`, 'one');
      await sql`select pg_notify(${`ch_${table}`}, 'two')`;
      await eventually(() => heard.length === 2, { message: 'two notifications' });
      expect(heard).toEqual(['one', 'two']);
      await unlisten();
    } finally {
      await sql`drop table if exists ${sql(table)}`;
      await sql.end();
    }
  });

  it('psql', async (context) => {
    if (!present('psql')) context.skip('psql is not on the PATH');
    const { stdout } = await run(
      'psql',
      way,
      [
        '-X',
        '-q',
        '-A',
        '-t',
        '-v',
        'ON_ERROR_STOP=1',
        '-c',
        'create temp table p (n int, v text)',
        '-c',
        '\\copy p from pstdin with (format csv)',
        '-c',
        'select sum(n) from p',
        '-c',
        '\\copy (select n from p order by n desc) to pstdout',
        '-c',
        'select 1; begin; select 2; commit; select 3',
        '-c',
        '\\conninfo',
      ],
      '1,a\n2,b\n',
    );
    expect(stdout).toMatch(/^3\n2\n1\n(?:1\n2\n)?3\n/);
    if (way.tls) expect(stdout).toMatch(/SSL connection/);
  });
});

it('psql binds SCRAM to the channel', async (context) => {
  if (!present('psql')) context.skip('psql is not on the PATH');
  const way = ways.find(({ gateway }) => gateway === scram)!;
  const { stdout } = await run('psql', way, ['-X', '-A', '-t', '-c', 'select 1'], '', { PGCHANNELBINDING: 'require' });
  expect(stdout).toBe('1\n');
});

it.for(['simple', 'extended', 'prepared'])('pgbench, %s', async (mode, context) => {
  if (!present('pgbench')) context.skip('pgbench is not on the PATH');
  const way = ways[0];
  if (mode === 'simple') await run('pgbench', way, ['-i', '-q', '-I', 'dtgp']);
  const { stdout, stderr } = await run('pgbench', way, ['-n', '-M', mode, '-c', '4', '-j', '1', '-t', '25']);
  expect(stdout + stderr).toMatch(/processed: 100\/100/);
  const { rows } = await checked(
    'select sum(abalance) as a, (select sum(bbalance) from pgbench_branches) as b from pgbench_accounts',
  );
  expect(rows[0].a).toBe(rows[0].b);
});

async function checked(sql: string) {
  const admin = await connectPg(holder.server);
  try {
    return await admin.query(sql);
  } finally {
    await admin.end();
  }
}

// ----------------------------------------------------------------------------------------------------------- TLS by hand

const types = (messages: RawMessage[]) => messages.map(({ type }) => type).join('');

describe('TLS by hand', () => {
  const start = { params: { user: 'trusted' } };

  it('asked for, where it is allowed', async () => {
    const client = await RawClient.open(trust);
    expect(await client.startTls({ ca: trust.cert, servername: 'localhost', rejectUnauthorized: true })).toBe('S');
    await client.start(start);
    expect(types(await client.query('select 1'))).toBe('TDCZ');
    await client.end();
  });

  it('direct, with ALPN', async () => {
    const client = await RawClient.open(trust);
    await client.handshake({ ALPNProtocols: ['postgresql'] });
    await client.start(start);
    expect(types(await client.query('select 1'))).toBe('TDCZ');
    await client.end();
  });

  it('direct, without ALPN: closed', async () => {
    const client = await RawClient.open(trust);
    await client.handshake().catch(() => {});
    await client.start(start).catch(() => {});
    await client.untilClosed();
    expect(client.messages.filter(({ type }) => type === 'Z')).toEqual([]);
  });

  it('bytes sent ahead of the handshake are refused', async () => {
    const client = await RawClient.open(trust);
    await client.write(Buffer.concat([SSL_REQUEST, Buffer.from('Q\0\0\0\x0dselect 1\0')]));
    await client.untilClosed();
    expect(client.messages.filter(({ type }) => type === 'Z')).toEqual([]);
  });

  it('is not offered by a gateway without it', async () => {
    const client = await RawClient.open(plain);
    expect(await client.startTls()).toBe('N');
    await client.start(start);
    await client.end();
  });
  const plain = useGateway(holder);
});

// ------------------------------------------------------------------------------------------------------------- programs

function present(program: string): boolean {
  const found = spawnSync(program, ['--version']).status === 0;
  if (!found) console.log(`${program} is not on the PATH: skipped`);
  return found;
}

function run(program: string, way: Way, args: string[], input = '', env: Record<string, string> = {}) {
  return new Promise<{ stdout: string; stderr: string }>((resolve, reject) => {
    const child = execFile(
      program,
      args,
      {
        timeout: 30_000,
        env: {
          PATH: process.env.PATH,
          PGHOST: '127.0.0.1',
          PGPORT: String(way.gateway.port),
          PGUSER: way.user,
          PGDATABASE: 'postgres',
          PGSSLMODE: way.tls ? 'require' : 'disable',
          PGGSSENCMODE: 'prefer',
          ...(way.password === undefined ? {} : { PGPASSWORD: way.password }),
          ...env,
        },
      },
      (error, stdout, stderr) =>
        error ? reject(new Error(`${error.message}\n${stdout}`)) : resolve({ stdout, stderr }),
    );
    child.stdin?.end(input);
  });
}
