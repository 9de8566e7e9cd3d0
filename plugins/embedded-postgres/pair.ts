import { chmod, lchown, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { copyTree } from './files.js';
import { controlIsWhole } from './identity.js';
import {
  choosePorts,
  type EmbeddedClient,
  type EmbeddedOptions,
  EmbeddedServer,
  freePorts,
  type Ground,
  isPortTaken,
  leaveGround,
  makeDataDirs,
  now,
  prepareGround,
} from './server.js';

/**
 * What happens to the primary before the standby takes over. After 'freeze' it still believes to be the primary, and
 * acts so once it is thawed.
 */
export type FailoverHow = 'kill' | 'fast' | 'immediate' | 'freeze';

/** What a failover took. Times are milliseconds since the epoch, with a fraction. */
export interface FailoverResult {
  /** From the request to promote until the new primary took writes. */
  readonly promotedInMs: number;
  /** When the old primary began to be ended. */
  readonly killedAt: number;
  /** When the new primary took writes. */
  readonly writableAt: number;
}

/** Directories whose content a base backup leaves out; the server makes it anew. */
const EMPTY_DIRS = new Set([
  'pg_dynshmem',
  'pg_notify',
  'pg_replslot',
  'pg_serial',
  'pg_snapshots',
  'pg_stat_tmp',
  'pg_subtrans',
]);

const LEFT_OUT_FILES = new Set([
  'postmaster.pid',
  'postmaster.opts',
  'backup_label',
  'backup_label.old',
  'backup_manifest',
  'tablespace_map',
  'tablespace_map.old',
  'standby.signal',
  'recovery.signal',
  'postgresql.auto.conf.tmp',
  'current_logfiles.tmp',
]);

/** What of a running server's data directory does not belong into a base backup. */
function leftOut(path: string): boolean {
  const parts = path.split('/');
  const last = parts[parts.length - 1];
  if (parts.length === 1) return LEFT_OUT_FILES.has(path);
  if (EMPTY_DIRS.has(parts[0])) return true;
  // Of pg_wal only the (empty) sub-directories: the standby streams what it needs.
  if (parts[0] === 'pg_wal') return parts.length > 2 || /^[0-9A-F]{8}|^xlogtemp/.test(last);
  return last.startsWith('pgsql_tmp') || last.startsWith('pg_internal.init');
}

/** A primary and a streaming standby that this process started. */
export class EmbeddedPair {
  readonly #ground: Ground;
  #primary: EmbeddedServer;
  #standby: EmbeddedServer;
  readonly #more: EmbeddedServer[] = [];
  #synchronous: boolean;
  #stopped = false;

  /** Use {@link startPair}. */
  constructor(ground: Ground, primary: EmbeddedServer, standby: EmbeddedServer, synchronous: boolean) {
    this.#ground = ground;
    this.#primary = primary;
    this.#standby = standby;
    this.#synchronous = synchronous;
  }

  /** The server that takes writes. Another one after each failover. */
  get primary(): EmbeddedServer {
    return this.#primary;
  }

  /** The other server. After a failover the old primary, until {@link rebuild} not a standby yet. */
  get standby(): EmbeddedServer {
    return this.#standby;
  }

  /** Whether a primary with a standby waits for it at each commit. */
  get synchronous(): boolean {
    return this.#synchronous;
  }

  /** The directory that holds both data directories. */
  get dir(): string {
    return this.#ground.dir;
  }

  /** The conninfo by which a server follows the other one. */
  #conninfo(follower: EmbeddedServer, leader: EmbeddedServer): string {
    return (
      `host=${leader.host} port=${leader.port} user=${leader.superuser} ` +
      `application_name=${follower.name} connect_timeout=2 sslmode=disable gssencmode=disable`
    );
  }

  /** Starts both servers for the first time. */
  async begin(): Promise<void> {
    const primary = this.#primary;
    const standby = this.#standby;
    primary.setRole('primary');
    standby.setRole('standby');
    await standby.setConf('primary_conninfo', this.#conninfo(standby, primary));
    await standby.setConf('synchronous_standby_names', '');
    await primary.setConf('synchronous_standby_names', this.#synchronous ? '*' : '');
    // Both at once; whatever happens to one, the other is not left half started.
    const results = await Promise.allSettled([primary.start(), standby.start()]);
    for (const result of results) if (result.status === 'rejected') throw result.reason;
    await this.waitStreaming();
  }

  /** Waits until the standby streams, and when the pair is synchronous until commits wait for it. */
  async waitStreaming(timeoutMs = 30_000): Promise<void> {
    const client = await this.#primary.connect();
    try {
      await this.#waitStreaming(client, this.#synchronous, timeoutMs);
    } finally {
      await client.end();
    }
  }

  async #waitStreaming(
    client: EmbeddedClient,
    synchronous: boolean,
    timeoutMs: number,
    standby = this.#standby,
  ): Promise<void> {
    const deadline = Date.now() + timeoutMs;
    let seen = 'no standby is connected';
    while (Date.now() < deadline) {
      const { rows } = await client.query<{ state: string; sync_state: string }>(
        'SELECT state, sync_state FROM pg_stat_replication WHERE application_name = $1',
        [standby.name],
      );
      const good = rows.some(
        ({ state, sync_state }) => state === 'streaming' && (!synchronous || /^(sync|quorum)$/.test(sync_state)),
      );
      if (good) return;
      if (rows.length > 0) seen = rows.map(({ state, sync_state }) => `${state}, ${sync_state}`).join('; ');
      await sleep(4);
    }
    throw new Error(
      `embedded PostgreSQL: the standby does not stream (${seen}):\n${standby.logTail.slice(-20).join('\n')}`,
    );
  }

  /**
   * Ends the primary and promotes the standby. Commits on the new primary wait for nobody until {@link rebuild} has
   * brought a standby.
   */
  async failover({ how = 'kill' }: { how?: FailoverHow } = {}): Promise<FailoverResult> {
    const old = this.#primary;
    const next = this.#standby;
    if (!next.running || next.role !== 'standby')
      throw new Error('embedded PostgreSQL: no standby runs that could be promoted; rebuild() first');
    const killedAt = now();
    if (how === 'kill') await old.kill();
    else if (how === 'freeze') await old.freeze();
    else await old.stop(how);
    const promotedInMs = await next.promote();
    const writableAt = now();
    if (how !== 'freeze') old.setRole('standby');
    this.#primary = next;
    this.#standby = old;
    return { promotedInMs, killedAt, writableAt };
  }

  /**
   * Brings the server that is not the primary back as its standby, on a fresh base backup, and waits until it streams
   * (and, in a synchronous pair, until commits wait for it). It is killed first if it runs.
   */
  async rebuild(): Promise<void> {
    for (let attempt = 1; ; attempt++) {
      try {
        await this.#rebuildOnce();
        return;
      } catch (error) {
        if (attempt === 3 || this.#stopped || !this.#primary.running) throw error;
      }
    }
  }

  async #rebuildOnce(): Promise<void> {
    const primary = this.#primary;
    const standby = this.#standby;
    // Commits must not wait for a standby that is not there.
    if (primary.getConf('synchronous_standby_names') !== '') await primary.setConf('synchronous_standby_names', '');
    await standby.kill();
    await standby.clearLeftovers();
    await rm(standby.dataDir, { recursive: true, force: true });

    await this.#copy(standby);
    if (this.#synchronous) {
      await primary.setConf('synchronous_standby_names', '*');
      await this.waitStreaming();
    }
  }

  /**
   * Starts one more standby of the primary on a fresh base backup, and waits until it streams. It is nobody's to promote: failovers are
   * between the two of the pair, and it goes on following the server that was the primary when it was made.
   * @param name of one that is not there yet, such as 'c'
   */
  async addStandby(name: string): Promise<EmbeddedServer> {
    const [port] = await freePorts(1);
    const server = new EmbeddedServer(this.#ground, name, port, join(this.#ground.dir, name));
    this.#more.push(server);
    await this.#copy(server);
    return server;
  }

  /** Makes a server a standby on a base backup of the primary. Its data directory must not be there. */
  async #copy(standby: EmbeddedServer): Promise<void> {
    const primary = this.#primary;
    const client = await primary.connect();
    try {
      // The slot lives as long as this connection and keeps all WAL that the copy will ask for.
      const slot = `rebuild_${process.pid}_${Date.now()}`;
      await client.query('SELECT pg_create_physical_replication_slot($1, true, true)', [slot]);
      await client.query('SELECT pg_backup_start($1, true)', ['outlive rebuild']);
      const owner = this.#ground.native.user;
      await copyTree(primary.dataDir, standby.dataDir, { owner, skip: leftOut, live: true });
      await this.#checkCopy(standby.dataDir);
      const { rows } = await client.query<{ labelfile: string }>('SELECT labelfile FROM pg_backup_stop(false)');
      const label = join(standby.dataDir, 'backup_label');
      await writeFile(label, rows[0].labelfile);
      await chmod(label, 0o600);
      if (owner) await lchown(label, owner.uid, owner.gid);

      standby.setRole('standby');
      await standby.setConf('synchronous_standby_names', '');
      await standby.setConf('primary_conninfo', this.#conninfo(standby, primary));
      await standby.start();
      await this.#waitStreaming(client, false, 30_000, standby);
    } finally {
      await client.end();
    }
  }

  async #checkCopy(dataDir: string): Promise<void> {
    if ((await readdir(join(dataDir, 'pg_tblspc'))).length > 0) {
      throw new Error('embedded PostgreSQL: rebuild() does not copy tablespaces');
    }
    // The server may have been writing this file while it was copied, and unlike data pages it is not in the WAL.
    if (!controlIsWhole(await readFile(join(dataDir, 'global', 'pg_control')))) {
      throw new Error('embedded PostgreSQL: pg_control was copied while it changed');
    }
  }

  /**
   * Says whether commits wait for the standby, and waits until that holds. Where no standby runs, it holds from the
   * next {@link rebuild} on.
   */
  async setSynchronous(on: boolean): Promise<void> {
    this.#synchronous = on;
    if (on && (!this.#standby.running || this.#standby.role !== 'standby')) return;
    await this.#primary.setConf('synchronous_standby_names', on ? '*' : '');
    if (on) await this.waitStreaming();
  }

  /**
   * Stops the standby from receiving WAL, so that it lacks what the primary commits from now on. In a synchronous
   * pair commits wait then; call setSynchronous(false) to have them lost by a failover.
   */
  async pauseReplication(): Promise<void> {
    await this.#standby.setConf('primary_conninfo', '');
    const client = await this.#primary.connect();
    try {
      const deadline = Date.now() + 10_000;
      for (;;) {
        const { rows } = await client.query('SELECT 1 FROM pg_stat_replication WHERE application_name = $1', [
          this.#standby.name,
        ]);
        if (rows.length === 0) return;
        if (Date.now() > deadline) throw new Error('embedded PostgreSQL: the standby goes on receiving');
        await sleep(2);
      }
    } finally {
      await client.end();
    }
  }

  /** Lets the standby receive again and waits until it streams. */
  async resumeReplication(): Promise<void> {
    await this.#standby.setConf('primary_conninfo', this.#conninfo(this.#standby, this.#primary));
    await this.waitStreaming();
  }

  /** Kills both servers and removes everything that was made for them. */
  async stop(): Promise<void> {
    if (this.#stopped) return;
    this.#stopped = true;
    await Promise.all([this.#primary, this.#standby, ...this.#more].map((server) => server.remove()));
    await leaveGround(this.#ground);
  }
}

/** Starts a primary and a streaming standby and waits until WAL flows. End them with `stop()`. */
export async function startPair(options: EmbeddedOptions = {}): Promise<EmbeddedPair> {
  for (let attempt = 1; ; attempt++) {
    const ground = await prepareGround(options);
    const fixed = options.ports?.length ? options.ports : undefined;
    if (fixed && fixed.length < 2) throw new Error('embedded PostgreSQL: a pair needs two ports');
    if (options.places?.length === 1) throw new Error('embedded PostgreSQL: a pair needs two places');
    let pair: EmbeddedPair | undefined;
    try {
      const [one, two] = await choosePorts(options, 2);
      const [a, b] = await makeDataDirs(ground, ['a', 'b']);
      pair = new EmbeddedPair(
        ground,
        new EmbeddedServer(ground, 'a', one, a, options.places?.[0]),
        new EmbeddedServer(ground, 'b', two, b, options.places?.[1]),
        options.synchronous ?? true,
      );
      await pair.begin();
      return pair;
    } catch (error) {
      if (pair) await pair.stop();
      else await leaveGround(ground);
      if (attempt === 3 || fixed || !isPortTaken(error)) throw error;
    }
  }
}
