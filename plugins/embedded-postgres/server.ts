import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { chmod, lchown, mkdir, readFile, realpath, rename, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { copyTree, makeScratchDir, type RunAs, traversable } from './files.js';
import { newSystemIdentifier, setSystemIdentifier } from './identity.js';
import { cleanEnv, findNative, findTemplate, loadPg, type Native } from './native.js';
import { descendants, freeSharedMemory, Guard, halt, processesIn, signal, waitGone } from './processes.js';

const HOST = '127.0.0.1';
/** In a network of its own a server has nobody to share ports with. */
const PLACE_PORT = 5432;
const START_TIMEOUT_MS = 60_000;
const LOG_LINES = 500;

/** A network of its own for a server, such as a network namespace: where it listens and how it is started there. */
export interface EmbeddedPlace {
  /** Numeric addresses that the server listens on; the first one is where others find it. */
  readonly addresses: readonly string[];
  /** Networks in CIDR form whose clients are trusted, as those on 127.0.0.1 are otherwise. */
  readonly trusted: readonly string[];
  /**
   * What stands before the server's command line. It must become the server by exec, so that the process id stays, and run as
   * the given user, or as this process's own when there is none.
   */
  command(user: RunAs | undefined): readonly string[];
}

/** How a server is set up; the same for one server and for a pair. */
export interface EmbeddedOptions {
  /**
   * Where the data directories go. It is made when absent and its parents must be open to the servers' user. What was
   * made in it is removed at the end. By default a temporary directory.
   */
  readonly dir?: string;
  /** Whether the primary of a pair waits for its standby at each commit. Default true. */
  readonly synchronous?: boolean;
  /** Lines for postgresql.conf; they win over the defaults. */
  readonly settings?: Readonly<Record<string, string>>;
  /**
   * Lines for pg_hba.conf, after one that always trusts the superuser (this code logs in as it, and so does the
   * standby). By default everybody is trusted on 127.0.0.1.
   */
  readonly hba?: readonly string[];
  /** Turns TLS on; each is PEM text or the path of a PEM file. */
  readonly tls?: { readonly cert: string; readonly key: string };
  /** Name of the superuser. Default 'postgres'. */
  readonly superuser?: string;
  /** Fixed ports, of the first primary and then the first standby. By default free ones, and 5432 in a place. */
  readonly ports?: readonly number[];
  /**
   * Places of the first primary and then the first standby, in place of this machine's loopback. This process, which may be
   * outside of them, reaches the servers over unix sockets: those are files, and cross network namespaces.
   */
  readonly places?: readonly EmbeddedPlace[];
  /** More arguments for initdb. */
  readonly initdbArgs?: readonly string[];
  /** Gets each line that a server logs, with the name of the server in front. */
  readonly log?: (line: string) => void;
  /** A directory with bin, lib and share to use in place of the one in the npm package. */
  readonly nativeDir?: string;
}

/** What a server is for at the moment. */
export type ServerRole = 'primary' | 'standby';

/** How a server is asked to shut down; the words are PostgreSQL's. */
export type StopMode = 'smart' | 'fast' | 'immediate';

/** The answer to a statement, as far as this module promises it. */
export interface EmbeddedResult<Row = Record<string, unknown>> {
  readonly rows: Row[];
  readonly rowCount: number | null;
  readonly command: string;
}

/** A connection that was opened for a few statements. */
export interface EmbeddedClient {
  query<Row = Record<string, unknown>>(sql: string, params?: readonly unknown[]): Promise<EmbeddedResult<Row>>;
  end(): Promise<void>;
}

const DEFAULT_SETTINGS: Readonly<Record<string, string>> = {
  wal_level: 'replica',
  hot_standby: 'on',
  max_connections: '300',
  max_prepared_transactions: '20',
  max_wal_senders: '10',
  max_replication_slots: '10',
  wal_keep_size: '256MB',
  wal_receiver_status_interval: '1s',
  wal_receiver_timeout: '3s',
  wal_sender_timeout: '5s',
  wal_retrieve_retry_interval: '50ms',
  // Kept in the data directory: in /dev/shm each killed server would leave a file behind for good.
  dynamic_shared_memory_type: 'mmap',
  lc_messages: 'C',
  TimeZone: 'UTC',
  log_timezone: 'UTC',
  log_checkpoints: 'off',
  log_line_prefix: '%m [%p] ',
};

/** Milliseconds since the epoch, finer than a whole one and steady within this process. */
export function now(): number {
  return performance.timeOrigin + performance.now();
}

/** Whether nobody listens on a port at this moment. */
function portIsFree(port: number): Promise<boolean> {
  return new Promise((done) => {
    const probe = createServer();
    probe.once('error', () => done(false));
    probe.listen({ port, host: HOST, exclusive: true }, () => probe.close(() => done(true)));
  });
}

/**
 * Free ports from below the range that the system hands to outgoing connections: a server that is down for a while
 * could otherwise find its port taken by one of those when it comes back.
 */
export async function freePorts(count: number): Promise<number[]> {
  const ports: number[] = [];
  while (ports.length < count) {
    const port = 15_000 + Math.floor(Math.random() * 17_000);
    if (!ports.includes(port) && (await portIsFree(port))) ports.push(port);
  }
  return ports;
}

/** The ports that so many servers of one call get. */
export async function choosePorts(options: EmbeddedOptions, count: number): Promise<readonly number[]> {
  if (options.ports?.length) return options.ports;
  return options.places === undefined ? await freePorts(count) : options.places.map(() => PLACE_PORT);
}

async function pem(value: string): Promise<string> {
  return value.includes('-----BEGIN') ? value : await readFile(value, 'utf8');
}

/** What all servers of one call share: programs, place, options, guard. */
export interface Ground {
  readonly native: Native;
  readonly options: EmbeddedOptions;
  readonly superuser: string;
  /** The directory that holds the data directories. */
  readonly dir: string;
  /** Whether `dir` itself was made here and is removed at the end. */
  readonly temporary: boolean;
  readonly guard: Guard;
}

export async function prepareGround(options: EmbeddedOptions): Promise<Ground> {
  const native = await findNative(options.nativeDir);
  let dir: string;
  if (options.dir === undefined) {
    dir = await makeScratchDir(native.user);
  } else {
    await mkdir(options.dir, { recursive: true });
    dir = options.dir;
  }
  dir = await realpath(dir);
  if (!(await traversable(dir, native.user))) {
    throw new Error(
      `embedded PostgreSQL: ${dir} cannot be reached by uid ${native.user?.uid}, which the servers run as;` +
        ' choose a directory whose parents others may enter',
    );
  }
  const temporary = options.dir === undefined;
  const superuser = options.superuser ?? 'postgres';
  return { native, options, superuser, dir, temporary, guard: new Guard(temporary ? dir : '') };
}

/**
 * Makes data directories that are copies of one another and of a freshly initialised cluster with its own identity.
 * On failure nothing of them is left.
 */
export async function makeDataDirs(ground: Ground, names: readonly string[]): Promise<string[]> {
  const { native, options, superuser } = ground;
  const dirs = names.map((name) => join(ground.dir, name));
  for (const dir of dirs) if (existsSync(dir)) throw new Error(`embedded PostgreSQL: ${dir} is there already`);
  const identifier = newSystemIdentifier();
  for (let attempt = 1; ; attempt++) {
    const template = await findTemplate(native, superuser, options.initdbArgs ?? []);
    const results = await Promise.allSettled(
      dirs.map(async (dir) => {
        const copied = await copyTree(template.dir, dir, { owner: native.user });
        if (copied !== template.files) throw new Error(`embedded PostgreSQL: ${template.dir} is not whole`);
        await setSystemIdentifier(dir, identifier);
      }),
    );
    const failed = results.find((result) => result.status === 'rejected');
    if (!failed) return dirs;
    for (const dir of dirs) await rm(dir, { recursive: true, force: true });
    // Another process may have found the cached template damaged and be replacing it.
    if (attempt === 3 || existsSync(join(template.dir, 'PG_VERSION'))) throw failed.reason;
  }
}

/** One PostgreSQL server that this process started. */
export class EmbeddedServer {
  /** A short name, 'a' or 'b'; also the standby's application_name. */
  readonly name: string;
  /** Numeric address where clients find it. */
  readonly host: string;
  readonly port: number;
  readonly dataDir: string;
  readonly superuser: string;
  /** The version of PostgreSQL, e.g. '18.4'. */
  readonly version: string;

  readonly #ground: Ground;
  readonly #place: EmbeddedPlace | undefined;
  readonly #settings: Map<string, string>;
  readonly #log: string[] = [];
  #role: ServerRole = 'primary';
  #child: ChildProcess | undefined;
  #frozen = false;
  #removed = false;

  /** Use {@link startServer} or startPair. */
  constructor(ground: Ground, name: string, port: number, dataDir: string, place?: EmbeddedPlace) {
    this.#ground = ground;
    this.#place = place;
    this.host = place?.addresses[0] ?? HOST;
    this.name = name;
    this.port = port;
    this.dataDir = dataDir;
    this.superuser = ground.superuser;
    this.version = ground.native.version;
    this.#settings = new Map(
      Object.entries({
        ...DEFAULT_SETTINGS,
        ...(ground.options.tls ? { ssl: 'on', ssl_cert_file: 'server.crt', ssl_key_file: 'server.key' } : {}),
        ...ground.options.settings,
        listen_addresses: place?.addresses.join(',') ?? HOST,
        port: String(port),
        // A path in a deep temporary directory would be too long for a socket, so none where it is not needed.
        unix_socket_directories: place === undefined ? '' : this.#socketDir,
      }),
    );
  }

  /** Holds the unix socket of a server in a place. Beside the data directory, or a base backup would copy its lock file. */
  get #socketDir(): string {
    return `${this.dataDir}.s`;
  }

  /** Process id of the postmaster; undefined when the server does not run. */
  get pid(): number | undefined {
    return this.running ? this.#child?.pid : undefined;
  }

  /** Whether the postmaster lives (it may be frozen). */
  get running(): boolean {
    const child = this.#child;
    return child?.pid !== undefined && child.exitCode === null && child.signalCode === null;
  }

  /** Whether freeze() holds the server. */
  get frozen(): boolean {
    return this.#frozen;
  }

  /** What the server is for. A primary that was killed keeps the role until the pair gives it the other one. */
  get role(): ServerRole {
    return this.#role;
  }

  /** The last lines that the server logged. */
  get logTail(): readonly string[] {
    return this.#log;
  }

  /**
   * Changes what the server is for; it takes effect at the next start. A killed primary that is started with the role
   * 'primary' after a failover is a second primary, as after a split brain.
   */
  setRole(role: ServerRole): void {
    this.#role = role;
  }

  /** Writes everything the server reads at its start, for its role. */
  async writeConfig(): Promise<void> {
    const { native, options, superuser } = this.#ground;
    const own = async (name: string, text: string) => {
      // Written beside and renamed: a server that reads it now sees the old or the new one.
      const path = join(this.dataDir, name);
      await writeFile(`${path}.new`, text, { mode: 0o600 });
      await chmod(`${path}.new`, 0o600);
      if (native.user) await lchown(`${path}.new`, native.user.uid, native.user.gid);
      await rename(`${path}.new`, path);
    };
    const quote = (value: string) => `'${value.replaceAll('\\', '\\\\').replaceAll("'", "''")}'`;
    const lines = [...this.#settings].map(([name, value]) => `${name} = ${quote(value)}\n`);
    await own('postgresql.conf', lines.join(''));
    const trust = (user: string) =>
      (this.#place?.trusted ?? [`${HOST}/32`]).flatMap((network) => [
        `host all ${user} ${network} trust`,
        `host replication ${user} ${network} trust`,
      ]);
    const local = this.#place === undefined ? [] : [`local all "${superuser}" trust`];
    await own('pg_hba.conf', [...local, ...trust(`"${superuser}"`), ...(options.hba ?? trust('all')), ''].join('\n'));
    if (options.tls) {
      await own('server.crt', await pem(options.tls.cert));
      await own('server.key', await pem(options.tls.key));
    }
    if (this.#role === 'standby') await own('standby.signal', '');
    else await rm(join(this.dataDir, 'standby.signal'), { force: true });
  }

  /** Starts the server and waits until it takes connections. Nothing happens when it runs. */
  async start(): Promise<void> {
    if (this.running) return;
    if (this.#removed) throw new Error('embedded PostgreSQL: this server was removed');
    const { native, options, guard } = this.#ground;
    await this.clearLeftovers();
    await this.writeConfig();
    // Its own session, so that Ctrl-C in a terminal reaches only the program that owns the server.
    const [program, ...args] = [
      ...(this.#place?.command(native.user) ?? []),
      join(native.dir, 'bin', 'postgres'),
      '-D',
      this.dataDir,
    ];
    // Who enters a place needs this process's rights for it, and gives them up afterwards.
    const user = this.#place === undefined ? native.user : undefined;
    if (this.#place !== undefined) await this.#makeSocketDir();
    const child = spawn(program, args, {
      uid: user?.uid,
      gid: user?.gid,
      cwd: '/',
      env: cleanEnv(),
      stdio: ['ignore', 'ignore', 'pipe'],
      detached: true,
    });
    this.#child = child;
    this.#frozen = false;
    let failure: Error | undefined;
    child.once('error', (error) => {
      failure = error;
    });
    child.once('exit', () => {
      if (this.#child === child) guard.watch(this.name, []);
    });
    if (child.pid !== undefined) guard.watch(this.name, [child.pid]);
    let rest = '';
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      const lines = (rest + text).split('\n');
      rest = lines.pop() ?? '';
      for (const line of lines) {
        this.#log.push(line);
        options.log?.(`${this.name}: ${line}`);
      }
      if (this.#log.length > LOG_LINES) this.#log.splice(0, this.#log.length - LOG_LINES);
    });
    // A program that forgets to stop its server can end all the same; the guard stops it then.
    child.unref();
    (child.stderr as unknown as { unref?: () => void }).unref?.();
    try {
      await this.waitReady();
    } catch (error) {
      if (failure) throw failure;
      await this.kill();
      throw error;
    }
  }

  /** Waits until the server takes connections (on a standby: read-only ones). */
  async waitReady(): Promise<void> {
    const deadline = Date.now() + START_TIMEOUT_MS;
    while (Date.now() < deadline) {
      if (!this.running) {
        // The last log lines may still be on their way through the pipe.
        await sleep(20);
        throw new Error(`embedded PostgreSQL: server ${this.name} did not start:\n${this.#log.slice(-20).join('\n')}`);
      }
      const lines = await this.#lockFile();
      if (Number(lines[0]) === this.pid && lines[7]?.trim() === 'ready') return;
      await sleep(4);
    }
    throw new Error(
      `embedded PostgreSQL: server ${this.name} was not ready in time:\n${this.#log.slice(-20).join('\n')}`,
    );
  }

  async #makeSocketDir(): Promise<void> {
    const { user } = this.#ground.native;
    await mkdir(this.#socketDir, { recursive: true, mode: 0o700 });
    if (user) await lchown(this.#socketDir, user.uid, user.gid);
  }

  async #lockFile(): Promise<string[]> {
    return (await readFile(join(this.dataDir, 'postmaster.pid'), 'utf8').catch(() => '')).split('\n');
  }

  /** Removes what a killed server leaves outside and inside of its data directory and what would hinder a start. */
  async clearLeftovers(): Promise<void> {
    for (const pid of this.#strays()) {
      signal(pid, 'SIGKILL');
      await waitGone([pid], 5000);
    }
    const lines = await this.#lockFile();
    const id = Number(lines[6]?.trim().split(/\s+/)[1]);
    if (Number.isInteger(id)) await freeSharedMemory(id);
    // No process is left, so the lock is stale; but its number may belong to somebody else by now.
    await rm(join(this.dataDir, 'postmaster.pid'), { force: true });
    await rm(this.#socketDir, { recursive: true, force: true });
  }

  /** Linux: processes of this server that have lost their postmaster. */
  #strays(): number[] {
    return processesIn(this.dataDir, join(this.#ground.native.dir, 'bin', 'postgres'));
  }

  /** Every process of the server, the postmaster first. The postmaster must stand still for this to be complete. */
  #processes(): number[] {
    const pid = this.pid;
    return pid === undefined ? [] : [pid, ...descendants(pid)];
  }

  /** Kills the whole server at one blow, as a crash of its machine would, and waits until nothing of it is left. */
  async kill(): Promise<void> {
    const pid = this.pid;
    if (pid !== undefined) {
      // It must not fork while its children are counted.
      halt(pid);
      const all = this.#processes();
      for (const each of all) signal(each, 'SIGKILL');
      const left = await waitGone(all, 10_000);
      if (left.length > 0) throw new Error(`embedded PostgreSQL: processes ${left.join(', ')} survive SIGKILL`);
    }
    // A child that had lost its parent before.
    for (const stray of this.#strays()) signal(stray, 'SIGKILL');
    await this.#waitExit(10_000);
    this.#frozen = false;
  }

  /** Waits until Node itself has seen the postmaster's end, so that `running` is right from then on. */
  async #waitExit(timeoutMs: number): Promise<boolean> {
    const deadline = Date.now() + timeoutMs;
    while (this.running) {
      if (Date.now() > deadline) return false;
      await sleep(2);
    }
    return true;
  }

  /** Stops all processes of the server where they stand (SIGSTOP). Its connections stay open, and nothing answers. */
  async freeze(): Promise<void> {
    const pid = this.pid;
    if (pid === undefined) throw new Error(`embedded PostgreSQL: server ${this.name} does not run`);
    halt(pid);
    const halted = new Set([pid]);
    for (;;) {
      // Children may have children (a command of COPY PROGRAM), so look until nothing new shows up.
      const fresh = this.#processes().filter((each) => !halted.has(each));
      if (fresh.length === 0) break;
      for (const each of fresh) {
        halt(each);
        halted.add(each);
      }
    }
    this.#frozen = true;
    this.#ground.guard.watch(this.name, [...halted]);
  }

  /** Lets a frozen server go on. */
  async thaw(): Promise<void> {
    const pid = this.pid;
    if (pid === undefined) return;
    const [first, ...rest] = this.#processes();
    for (const each of rest) signal(each, 'SIGCONT');
    signal(first, 'SIGCONT');
    this.#frozen = false;
    this.#ground.guard.watch(this.name, [pid]);
  }

  /**
   * Shuts the server down and waits for its end.
   * @param mode smart waits for the clients, fast rolls them back, immediate leaves recovery to the next start
   * @param timeoutMs after this time the call fails and the server may still run
   */
  async stop(mode: StopMode = 'fast', timeoutMs = 60_000): Promise<void> {
    const pid = this.pid;
    if (pid === undefined) return;
    if (this.#frozen) await this.thaw();
    signal(pid, mode === 'smart' ? 'SIGTERM' : mode === 'fast' ? 'SIGINT' : 'SIGQUIT');
    if (!(await this.#waitExit(timeoutMs))) {
      throw new Error(`embedded PostgreSQL: server ${this.name} did not stop (${mode}) within ${timeoutMs} ms`);
    }
    // An immediate shutdown may leave a child behind for a moment.
    await waitGone(this.#strays(), 5000);
  }

  /** Stops and starts again. */
  async restart(mode: StopMode = 'fast'): Promise<void> {
    await this.stop(mode);
    await this.start();
  }

  /**
   * Makes a standby the primary.
   * @returns milliseconds from the request until the server took writes
   */
  async promote(): Promise<number> {
    const client = await this.connect();
    try {
      const begin = now();
      // Not waiting inside of pg_promote: it looks only ten times a second.
      await client.query('SELECT pg_promote(false)');
      const deadline = Date.now() + START_TIMEOUT_MS;
      for (;;) {
        const { rows } = await client.query<{ recovering: boolean }>('SELECT pg_is_in_recovery() AS recovering');
        if (!rows[0].recovering) break;
        if (Date.now() > deadline) throw new Error(`embedded PostgreSQL: server ${this.name} was not promoted in time`);
        await sleep(2);
      }
      this.#role = 'primary';
      return now() - begin;
    } finally {
      await client.end();
    }
  }

  /** The value that this module has given to a setting. */
  getConf(name: string): string | undefined {
    return this.#settings.get(name);
  }

  /**
   * Changes a setting and, when the server runs, reloads and waits until that has happened.
   * A setting that needs a restart gets one from the caller.
   * @param value undefined removes the setting, so that PostgreSQL's own default holds
   */
  async setConf(name: string, value: string | undefined): Promise<void> {
    if (value === undefined) this.#settings.delete(name);
    else this.#settings.set(name, value);
    if (!this.running) return;
    const client = await this.connect();
    try {
      const read = async () =>
        (await client.query<{ at: string }>('SELECT pg_conf_load_time()::text AS at')).rows[0].at;
      const before = await read();
      await this.writeConfig();
      signal(this.pid as number, 'SIGHUP');
      const deadline = Date.now() + 10_000;
      while ((await read()) === before) {
        if (Date.now() > deadline) throw new Error(`embedded PostgreSQL: server ${this.name} did not reload`);
        await sleep(2);
      }
      // Whether commits wait is decided by a flag that only the checkpointer sets, at its own reload. It reloads
      // before it serves a request, so one request later the flag is right.
      if (name === 'synchronous_standby_names') await client.query('CHECKPOINT');
    } finally {
      await client.end();
    }
  }

  /** Opens a connection as the superuser. */
  async connect(database = 'postgres'): Promise<EmbeddedClient> {
    const { Client } = await loadPg();
    const client = new Client({
      // The driver takes a path for the directory of a unix socket.
      host: this.#place === undefined ? this.host : this.#socketDir,
      port: this.port,
      user: this.superuser,
      password: '',
      database,
      ssl: false,
      connectionTimeoutMillis: 20_000,
      application_name: 'outlive-embedded',
    });
    // The server may be killed at any time; statements in flight fail by themselves.
    client.on('error', () => {});
    try {
      await client.connect();
    } catch (error) {
      await client.end().catch(() => {});
      throw error;
    }
    return {
      query: async <Row>(sql: string, params?: readonly unknown[]) =>
        (await client.query(sql, params as unknown[] | undefined)) as unknown as EmbeddedResult<Row>,
      end: async () => {
        await client.end().catch(() => {});
      },
    };
  }

  /** Runs one statement as the superuser on a connection of its own. */
  async query<Row = Record<string, unknown>>(
    sql: string,
    params?: readonly unknown[],
    database?: string,
  ): Promise<EmbeddedResult<Row>> {
    const client = await this.connect(database);
    try {
      return await client.query<Row>(sql, params);
    } finally {
      await client.end();
    }
  }

  /** Kills the server if it runs, and removes its data directory. A server started alone takes its whole place along. */
  async remove(): Promise<void> {
    if (this.#removed) return;
    await this.kill();
    await this.clearLeftovers();
    this.#removed = true;
    await rm(this.dataDir, { recursive: true, force: true });
    if (this.onRemoved) await this.onRemoved();
  }

  /** Set by the starting function: what else goes when the server goes. */
  onRemoved: (() => Promise<void>) | undefined;
}

/** Ends the guard and removes the directory if it was made here. */
export async function leaveGround(ground: Ground): Promise<void> {
  if (ground.temporary) await rm(ground.dir, { recursive: true, force: true });
  await ground.guard.end();
}

/** Whether a failed start came from a port that somebody else took in the meantime. */
export function isPortTaken(error: unknown): boolean {
  return /could not bind|could not create any TCP\/IP sockets/.test((error as Error).message);
}

/** Starts one server, a primary without a standby. End it with `remove()`. */
export async function startServer(options: EmbeddedOptions = {}): Promise<EmbeddedServer> {
  for (let attempt = 1; ; attempt++) {
    const ground = await prepareGround(options);
    let server: EmbeddedServer | undefined;
    try {
      const [port] = await choosePorts(options, 1);
      const [dataDir] = await makeDataDirs(ground, ['a']);
      server = new EmbeddedServer(ground, 'a', port, dataDir, options.places?.[0]);
      server.onRemoved = () => leaveGround(ground);
      await server.start();
      return server;
    } catch (error) {
      if (server) await server.remove();
      else await leaveGround(ground);
      if (attempt === 3 || options.ports?.length || !isPortTaken(error)) throw error;
    }
  }
}
