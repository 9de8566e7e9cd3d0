import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { X509Certificate } from 'node:crypto';
import {
  chmodSync,
  cpSync,
  existsSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { promisify } from 'node:util';
import pg from 'pg';
import { beforeAll, describe, expect, it } from 'vitest';
import { type EmbeddedServer, startPair, startServer } from '../../plugins/embedded-postgres/index.js';
import { eventually, freePort, restorePair, selfSignedCert, tempDir, usePair, useServer } from '../kit/servers.js';

const ROOT = resolve(import.meta.dirname, '../..');
const AS_ROOT = process.getuid?.() === 0;
const LINUX = process.platform === 'linux';

/** All processes that work in a directory. */
function processesIn(dir: string): number[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .filter((name) => {
      try {
        return readlinkSync(`/proc/${name}/cwd`) === dir;
      } catch {
        return false;
      }
    })
    .map(Number);
}

function state(pid: number): string {
  const text = readFileSync(`/proc/${pid}/stat`, 'latin1');
  return text.slice(text.lastIndexOf(')') + 2)[0];
}

async function numbers(server: EmbeddedServer): Promise<number[]> {
  return (await server.query<{ n: number }>('SELECT n FROM t ORDER BY n')).rows.map(({ n }) => n);
}

/** Whether a promise is still undecided after some time. */
async function stays(promise: Promise<unknown>, ms: number): Promise<boolean> {
  let settled = false;
  const done = () => {
    settled = true;
  };
  promise.then(done, done);
  await new Promise((resolve) => setTimeout(resolve, ms));
  return !settled;
}

describe('a pair', () => {
  const held = usePair({ settings: { fsync: 'off' } });

  it('streams synchronously from the start', async () => {
    const { primary, standby } = held.pair;
    expect([primary.role, standby.role]).toEqual(['primary', 'standby']);
    expect(primary.port).not.toBe(standby.port);
    const { rows } = await primary.query('SELECT application_name, state, sync_state FROM pg_stat_replication');
    expect(rows).toEqual([{ application_name: 'b', state: 'streaming', sync_state: 'sync' }]);
    await primary.query('CREATE TABLE t (n int PRIMARY KEY)');
    await primary.query('INSERT INTO t SELECT generate_series(1, $1::int)', [3]);
    await eventually(async () => expect(await numbers(standby)).toEqual([1, 2, 3]));
    await expect(standby.query('INSERT INTO t VALUES (99)')).rejects.toThrow('read-only');
  });

  it('is one cluster with an identity of its own', async () => {
    const identity = async (server: EmbeddedServer) =>
      (await server.query<{ id: string }>('SELECT system_identifier::text AS id FROM pg_control_system()')).rows[0].id;
    const other = await startServer({ settings: { fsync: 'off' } });
    try {
      expect(await identity(held.pair.standby)).toBe(await identity(held.pair.primary));
      expect(await identity(other)).not.toBe(await identity(held.pair.primary));
    } finally {
      await other.remove();
    }
  });

  it.runIf(LINUX)('freezes whole and thaws: commits wait for a frozen standby', async () => {
    const { primary, standby } = held.pair;
    const busy = await standby.connect();
    await standby.freeze();
    expect(standby.frozen).toBe(true);
    const frozen = processesIn(standby.dataDir);
    expect(frozen.length).toBeGreaterThan(3);
    expect(frozen.map(state)).toEqual(frozen.map(() => 'T'));
    const commit = primary.query('INSERT INTO t VALUES (4)');
    const answer = busy.query('SELECT 1 AS one');
    expect(await stays(Promise.race([commit, answer]), 200)).toBe(true);
    await standby.thaw();
    expect((await answer).rows).toEqual([{ one: 1 }]);
    await commit;
    await busy.end();
    await restorePair(held.pair);
  });

  it('fails over after a kill, rebuilds, and fails back', async () => {
    const { pair } = held;
    const [first, second] = [pair.primary, pair.standby];
    const client = await first.connect();
    const cut = expect(client.query('SELECT pg_sleep(60)')).rejects.toThrow();
    const took = await pair.failover();
    await cut;
    await client.end();
    expect(took.promotedInMs).toBeGreaterThan(0);
    expect(took.writableAt - took.killedAt).toBeGreaterThanOrEqual(took.promotedInMs);
    expect([pair.primary, pair.standby]).toEqual([second, first]);
    expect([second.role, first.role, first.running, first.pid]).toEqual(['primary', 'standby', false, undefined]);
    if (LINUX) expect(processesIn(first.dataDir)).toEqual([]);
    await expect(first.query('SELECT 1')).rejects.toThrow('ECONNREFUSED');
    // Nobody is there to wait for.
    await pair.primary.query('INSERT INTO t VALUES (5)');
    await expect(pair.failover()).rejects.toThrow('rebuild() first');

    await pair.rebuild();
    expect(await numbers(first)).toEqual([1, 2, 3, 4, 5]);
    const { rows } = await second.query('SELECT sync_state FROM pg_stat_replication');
    expect(rows).toEqual([{ sync_state: 'sync' }]);
    expect((await second.query('SELECT * FROM pg_replication_slots')).rows).toEqual([]);
    await second.query('INSERT INTO t VALUES (6)');

    await pair.failover({ how: 'fast' });
    expect(pair.primary).toBe(first);
    expect(await numbers(first)).toEqual([1, 2, 3, 4, 5, 6]);
    const timeline = await first.query('SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8) AS line');
    expect(timeline.rows).toEqual([{ line: '00000003' }]);
    await pair.rebuild();
  });

  it.runIf(LINUX)('can leave a frozen primary behind that wakes up as a second one', async () => {
    const { pair } = held;
    const old = pair.primary;
    await pair.setSynchronous(false);
    await pair.failover({ how: 'freeze' });
    await old.thaw();
    expect([old.role, pair.primary.role]).toEqual(['primary', 'primary']);
    await old.query('INSERT INTO t VALUES (7)');
    await restorePair(pair);
    await pair.setSynchronous(true);
    expect(pair.standby).toBe(old);
    expect(await numbers(old)).toEqual([1, 2, 3, 4, 5, 6]);
  });

  it('rebuilds under writes without losing or doubling any', async () => {
    const { pair } = held;
    await pair.failover({ how: 'immediate' });
    const writer = await pair.primary.connect();
    await writer.query('CREATE TABLE w (n int, filler text)');
    let written = 0;
    let go = true;
    const writing = (async () => {
      while (go) await writer.query("INSERT INTO w VALUES ($1, repeat('x', 2000))", [written++]);
    })();
    await eventually(() => written > 50);
    const before = written;
    await pair.rebuild();
    await eventually(() => written > before + 50);
    go = false;
    await writing;
    await writer.end();
    await pair.failover();
    const { rows } = await pair.primary.query('SELECT count(*)::int AS rows, max(n) AS last FROM w');
    expect(rows).toEqual([{ rows: written, last: written - 1 }]);
    await pair.rebuild();
  });

  it('loses what was committed while replication was paused', async () => {
    const { pair } = held;
    await pair.setSynchronous(false);
    await pair.pauseReplication();
    await pair.primary.query('CREATE TABLE lost (n int)');
    const kept = await numbers(pair.primary);
    await pair.primary.query('INSERT INTO t VALUES (100)');
    await pair.failover();
    expect(await numbers(pair.primary)).toEqual(kept);
    await expect(pair.primary.query('SELECT * FROM lost')).rejects.toThrow('does not exist');
    await pair.setSynchronous(true);
    await pair.primary.query('INSERT INTO t VALUES (150)');
    await pair.rebuild();
    expect(pair.synchronous).toBe(true);
  });

  it('catches up when replication is resumed, and commits wait for a paused standby', async () => {
    const { pair } = held;
    await pair.pauseReplication();
    const commit = pair.primary.query('INSERT INTO t VALUES (200)');
    expect(await stays(commit, 150)).toBe(true);
    await pair.resumeReplication();
    await commit;
    await eventually(async () => expect(await numbers(pair.standby)).toContain(200));
  });

  it('switches waiting for the standby off and on with effect at once', async () => {
    const { pair } = held;
    for (let round = 0; round < 3; round++) {
      await pair.setSynchronous(false);
      if (LINUX) await pair.standby.freeze();
      await pair.primary.query('INSERT INTO t VALUES ($1)', [300 + round]);
      await pair.standby.thaw();
      await pair.setSynchronous(true);
      await pair.standby.freeze();
      const commit = pair.primary.query('INSERT INTO t VALUES ($1)', [400 + round]);
      expect(await stays(commit, 60)).toBe(true);
      await pair.standby.thaw();
      await commit;
      await pair.waitStreaming();
    }
  });
});

describe('one server', () => {
  const { cert, key } = selfSignedCert();
  const lines: string[] = [];
  const held = useServer({
    settings: { fsync: 'off', work_mem: '3MB', 'my.setting': "it's \\ odd" },
    tls: { cert, key },
    hba: ['hostssl all app 127.0.0.1/32 scram-sha-256', 'host all all 127.0.0.1/32 reject'],
    superuser: 'boss',
    log: (line) => lines.push(line),
  });

  it('makes a certificate that holds', () => {
    const read = new X509Certificate(cert);
    expect(read.verify(read.publicKey)).toBe(true);
    expect(read.checkHost('localhost')).toBe('localhost');
    expect(read.checkIP('127.0.0.1')).toBe('127.0.0.1');
  });

  it('takes settings, superuser, access rules and a certificate', async () => {
    const { server } = held;
    const { rows } = await server.query(
      "SELECT current_user AS me, current_setting('work_mem') AS mem, current_setting('my.setting') AS odd",
    );
    expect(rows).toEqual([{ me: 'boss', mem: '3MB', odd: "it's \\ odd" }]);
    await server.query("CREATE ROLE app LOGIN PASSWORD 'secret'");
    const login = { host: server.host, port: server.port, user: 'app', password: 'secret', database: 'postgres' };
    const plain = new pg.Client(login);
    await expect(plain.connect()).rejects.toThrow('rejects connection');
    const safe = new pg.Client({ ...login, ssl: { ca: cert, servername: 'localhost' } });
    await safe.connect();
    const answer = await safe.query('SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()');
    expect(answer.rows).toEqual([{ ssl: true }]);
    await safe.end();
    expect(lines.some((line) => line.startsWith('a: ') && line.includes('ready to accept'))).toBe(true);
    expect(server.logTail.some((line) => line.includes('ready to accept'))).toBe(true);
  });

  it('changes settings while it runs', async () => {
    const { server } = held;
    await server.setConf('work_mem', '5MB');
    expect((await server.query('SHOW work_mem')).rows).toEqual([{ work_mem: '5MB' }]);
    expect(server.getConf('work_mem')).toBe('5MB');
    await server.setConf('work_mem', undefined);
    expect((await server.query('SHOW work_mem')).rows).toEqual([{ work_mem: '4MB' }]);
  });

  it('creates databases and answers from them', async () => {
    const { server } = held;
    await server.query('CREATE DATABASE other');
    const { rows } = await server.query('SELECT current_database() AS db', [], 'other');
    expect(rows).toEqual([{ db: 'other' }]);
  });

  it('comes back after each kind of end, with what was committed', async () => {
    const { server } = held;
    await server.query('CREATE TABLE t (n int)');
    const { port } = server;
    let n = 0;
    for (const mode of ['fast', 'smart', 'immediate', 'kill'] as const) {
      await server.query('INSERT INTO t VALUES ($1)', [++n]);
      if (mode === 'kill') await server.kill();
      else await server.stop(mode);
      expect([server.running, server.pid]).toEqual([false, undefined]);
      if (LINUX) expect(processesIn(server.dataDir)).toEqual([]);
      await server.start();
      expect(server.port).toBe(port);
      expect(await numbers(server)).toHaveLength(n);
    }
    const before = server.pid;
    await server.restart();
    expect(server.pid).not.toBe(before);
  });

  it('waits for its clients in a smart stop', async () => {
    const { server } = held;
    const client = await server.connect();
    const stopping = server.stop('smart');
    expect(await stays(stopping, 100)).toBe(true);
    await client.end();
    await stopping;
    await server.start();
  });

  it('can be killed and stopped while it is frozen', async () => {
    const { server } = held;
    await server.freeze();
    await server.kill();
    if (LINUX) expect(processesIn(server.dataDir)).toEqual([]);
    await server.start();
    await server.freeze();
    await server.stop('fast');
    expect(server.frozen).toBe(false);
    await server.start();
  });

  it.runIf(LINUX)('leaves no shared memory behind', async () => {
    const other = await startServer({ settings: { fsync: 'off' } });
    const id = readFileSync(join(other.dataDir, 'postmaster.pid'), 'utf8').split('\n')[6].trim().split(/\s+/)[1];
    const listed = () =>
      readFileSync('/proc/sysvipc/shm', 'latin1')
        .split('\n')
        .some((line) => line.trim().split(/\s+/)[1] === id);
    expect(listed()).toBe(true);
    await other.remove();
    expect(listed()).toBe(false);
    await expect(other.start()).rejects.toThrow('removed');
  });
});

describe('where it runs', () => {
  it('uses the given directory and ports, and removes what it made', async () => {
    const dir = join(tempDir(), 'deep', 'er');
    chmodSync(dirname(dirname(dir)), 0o755);
    const ports = [await freePort(), await freePort()];
    const pair = await startPair({ dir, ports, synchronous: false, settings: { fsync: 'off' } });
    expect([pair.primary.port, pair.standby.port]).toEqual(ports);
    expect(readdirSync(dir).sort()).toEqual(['a', 'b']);
    expect((await pair.primary.query('SELECT sync_state FROM pg_stat_replication')).rows).toEqual([
      { sync_state: 'async' },
    ]);
    await expect(startServer({ dir })).rejects.toThrow('is there already');
    expect(readdirSync(dir).sort()).toEqual(['a', 'b']);
    await pair.stop();
    await pair.stop();
    expect(readdirSync(dir)).toEqual([]);
  });

  it.runIf(AS_ROOT)('says so when the servers cannot reach the directory', async () => {
    const closed = tempDir();
    chmodSync(closed, 0o700);
    await expect(startServer({ dir: join(closed, 'data') })).rejects.toThrow('cannot be reached by uid 65534');
  });

  it('says what is wrong when a server does not start', async () => {
    await expect(startServer({ settings: { wal_level: 'nonsense' } })).rejects.toThrow(/did not start.*nonsense/s);
    const taken = await startServer({ settings: { fsync: 'off' } });
    try {
      await expect(startServer({ ports: [taken.port] })).rejects.toThrow('could not bind');
    } finally {
      await taken.remove();
    }
    await expect(startServer({ nativeDir: tempDir() })).rejects.toThrow('its programs cannot be run');
  });
});

// The plugin is compiled to plain JavaScript, so that a Node of its own can run it.
describe('in a process of its own', () => {
  const native = join(
    dirname(
      createRequire(join(ROOT, 'package.json')).resolve(`@embedded-postgres/${process.platform}-${process.arch}`),
    ),
    '../native',
  );
  const user = AS_ROOT ? { uid: 65534, gid: 65534 } : {};
  let built: string;

  beforeAll(async () => {
    built = tempDir();
    chmodSync(built, 0o755);
    const config = {
      extends: join(ROOT, 'tsconfig.json'),
      compilerOptions: { rootDir: ROOT, outDir: built, typeRoots: [join(ROOT, 'node_modules/@types')] },
      include: [join(ROOT, 'plugins/embedded-postgres')],
    };
    writeFileSync(join(built, 'tsconfig.json'), JSON.stringify(config));
    writeFileSync(join(built, 'package.json'), '{"type":"module"}');
    const tsc = join(ROOT, 'node_modules/.bin/tsc');
    await promisify(execFile)(tsc, ['-p', join(built, 'tsconfig.json')], { cwd: ROOT });
  });

  /** Runs a script that has the plugin's functions at hand; answers with what it printed. */
  function run(body: string, options: { uid?: number; gid?: number; tmp?: string } = {}): ChildProcess {
    const script = `
      import { startPair, startServer } from ${JSON.stringify(join(built, 'plugins/embedded-postgres/index.js'))};
      ${body}
    `;
    return spawn(process.execPath, ['--input-type=module', '-e', script], {
      cwd: ROOT,
      uid: options.uid,
      gid: options.gid,
      env: { PATH: process.env.PATH, HOME: '/nonexistent', ...(options.tmp ? { TMPDIR: options.tmp } : {}) },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
  }

  async function output(child: ChildProcess): Promise<string> {
    let stdout = '';
    let stderr = '';
    child.stdout?.on('data', (chunk) => (stdout += chunk));
    child.stderr?.on('data', (chunk) => (stderr += chunk));
    const code = await new Promise((resolve) => child.once('close', resolve));
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    return stdout.trim();
  }

  /** A directory for temporary files of a user, apart from everything that is cached on this machine. */
  function tmpOf(owner: { uid?: number }): string {
    const tmp = tempDir();
    chmodSync(tmp, owner.uid === undefined ? 0o755 : 0o777);
    return tmp;
  }

  /** The package's programs without the links that its install script makes. */
  function unlinked(): string {
    const copy = join(tempDir(), 'native');
    cpSync(native, copy, { recursive: true, filter: (path) => !/\/lib\/lib[^/]*$/.test(path) || isFile(path) });
    chmodSync(dirname(copy), 0o755);
    return copy;
  }
  const isFile = (path: string) => !readLink(path);
  const readLink = (path: string) => {
    try {
      return readlinkSync(path);
    } catch {
      return undefined;
    }
  };
  const links = (dir: string) => readdirSync(join(dir, 'lib')).filter((name) => readLink(join(dir, 'lib', name)));

  const TOUR = (options: object) => `
    const pair = await startPair(${JSON.stringify({ settings: { fsync: 'off' }, ...options })});
    await pair.primary.query('CREATE TABLE t AS SELECT 1 AS n');
    await pair.failover();
    await pair.rebuild();
    const { rows } = await pair.primary.query('SELECT count(*)::int AS count FROM t');
    const { dir } = pair;
    await pair.stop();
    console.log(JSON.stringify({ uid: process.getuid(), count: rows[0].count, dir }));
  `;

  const ONE = (options: object) => `
    const server = await startServer(${JSON.stringify({ settings: { fsync: 'off' }, ...options })});
    await server.query('SELECT 1');
    await server.remove();
  `;

  it('runs for an ordinary user, several at once from nothing', async () => {
    const tmp = tmpOf(user);
    const results = await Promise.all([1, 2].map(() => output(run(TOUR({}), { ...user, tmp }))));
    for (const result of results) {
      const { uid, count, dir } = JSON.parse(result);
      expect(uid).toBe(AS_ROOT ? 65534 : process.getuid?.());
      expect(count).toBe(1);
      expect(dir.startsWith(tmp)).toBe(true);
      expect(existsSync(dir)).toBe(false);
    }
    // What is kept is one directory, and in it one template; nothing half made.
    const [cache, ...rest] = readdirSync(tmp);
    expect(rest).toEqual([]);
    expect(readdirSync(join(tmp, cache)).map((name) => name.split('-')[0])).toEqual(['data']);
  });

  it('makes the missing links in place where it may', async () => {
    const copy = unlinked();
    expect(links(copy)).toEqual([]);
    const tmp = tmpOf({});
    await Promise.all([1, 2].map(() => output(run(ONE({ nativeDir: copy }), { tmp }))));
    expect(links(copy).length).toBeGreaterThan(5);
    expect(readLink(join(copy, 'lib/libpq.so.5'))).toBe(readLink(join(native, 'lib/libpq.so.5')));
  });

  it.runIf(AS_ROOT)('uses a copy where it may not make the links', async () => {
    const copy = unlinked();
    const tmp = tmpOf(user);
    expect(JSON.parse(await output(run(TOUR({ nativeDir: copy }), { ...user, tmp }))).count).toBe(1);
    expect(links(copy)).toEqual([]);
    const [cache] = readdirSync(tmp);
    expect(
      readdirSync(join(tmp, cache))
        .map((name) => name.split('-')[0])
        .sort(),
    ).toEqual(['data', 'native']);
  });

  it.runIf(AS_ROOT)('copies programs from a place that the servers cannot enter, once', async () => {
    const copy = unlinked();
    chmodSync(dirname(copy), 0o700);
    const tmp = tmpOf({});
    await Promise.all([1, 2].map(() => output(run(ONE({ nativeDir: copy }), { tmp }))));
    const cache = join(tmp, readdirSync(tmp)[0]);
    const kept = readdirSync(cache).find((name) => name.startsWith('native-')) as string;
    const made = statSync(join(cache, kept)).ino;
    await output(run(ONE({ nativeDir: copy }), { tmp }));
    expect(statSync(join(cache, kept)).ino).toBe(made);
    expect(readdirSync(cache)).toHaveLength(2);
  });

  it.each(['SIGKILL', 'throw'] as const)('leaves nothing behind after %s', async (end) => {
    const child = run(`
      const pair = await startPair({ settings: { fsync: 'off' } });
      await pair.standby.freeze();
      console.log(JSON.stringify({ dir: pair.dir, pids: [pair.primary.pid, pair.standby.pid] }));
      if (${JSON.stringify(end)} === 'throw') throw new Error('expected');
      setInterval(() => {}, 1000);
    `);
    const line = await new Promise<string>((resolve) =>
      createInterface({ input: child.stdout as NodeJS.ReadableStream }).once('line', resolve),
    );
    const { dir, pids } = JSON.parse(line) as { dir: string; pids: number[] };
    if (end === 'SIGKILL') child.kill(end);
    await eventually(() => !existsSync(dir), { message: 'the directory is removed' });
    for (const pid of pids) expect(() => process.kill(pid, 0)).toThrow('ESRCH');
    if (LINUX) expect([...processesIn(join(dir, 'a')), ...processesIn(join(dir, 'b'))]).toEqual([]);
  });

  it('does not keep a program alive that forgot to stop its servers', async () => {
    const dir = await output(run("console.log((await startServer({ settings: { fsync: 'off' } })).dataDir);"));
    await eventually(() => !existsSync(dir), { message: 'the directory is removed' });
  });
});
