import { createServer, type Server } from 'node:net';
import { Connection } from './connection.js';
import type { SessionFacts } from './environment.js';
import type { Encryption, Login } from './login.js';
import { PgLink, type PgPlace } from './pg-link.js';
import { featureAck, type Recovered, readRecovery, stateToken } from './recovery.js';
import type { Session } from './session.js';
import { setupSql } from './setup.js';
import { TDS } from './wire.js';

export type { Encryption } from './login.js';
export type { PgPlace } from './pg-link.js';

/** How a server is to be. All of it can go to another process as JSON. */
export interface TdsOptions {
  /** The PostgreSQL behind it; this server logs in there as a superuser. */
  readonly pg: PgPlace;
  /** A certificate with its key, as PEM texts. */
  readonly tls: { readonly cert: string; readonly key: string };
  /** What SERVERPROPERTY('ServerName') says. Default 'TDS'. */
  readonly name?: string;
  /** Default 127.0.0.1. */
  readonly host?: string;
  /** Default 0, a free one. */
  readonly port?: number;
  /** Logins with their passwords. Default { sa: 'Outlive.1' }. */
  readonly logins?: Readonly<Record<string, string>>;
  /** Databases that are made besides master, tempdb and msdb; the first is the one of logins that name none. Default ['app']. */
  readonly databases?: readonly string[];
  /** Default 'off': encrypted for those who ask. */
  readonly encryption?: Encryption;
  /** Whether ENVCHANGE tells of transactions that text begins, as SQL Server does. Default true. */
  readonly textTransactions?: boolean;
  /** Whether the feature SESSIONRECOVERY is offered. Default false. */
  readonly sessionRecovery?: boolean;
  /** The most that it speaks, such as TDS.v72. Default 7.4. */
  readonly mostVersion?: number;
}

/** Places where a session can be held. */
export type Place = 'before-commit' | 'after-commit';

/** Something that happened, with the time and what else there is to know. */
export interface TdsEvent {
  readonly kind: string;
  readonly at: number;
  readonly [more: string]: unknown;
}

/** Holds the next session that comes to a place. */
export interface Gate {
  /** Settled with the session's spid when it is there. */
  readonly reached: Promise<number>;
  /** Lets it go on; a gate that nobody came to is taken away. */
  release(): void;
}

interface ArmedGate {
  readonly place: Place;
  readonly reach: (spid: number) => void;
  readonly open: Promise<void>;
}

const MOST_EVENTS = 20_000;
/** SQL Server keeps the numbers up to 50 for itself. */
const FIRST_SPID = 51;

/** A server that speaks TDS as SQL Server does, in front of PostgreSQL. See README.md beside this file. */
export class TdsServer {
  readonly name: string;
  readonly started = new Date();
  readonly events: TdsEvent[] = [];
  readonly counts: Record<string, number> = {};
  readonly announcesText: boolean;
  readonly encryption: Encryption;
  readonly mostVersion: number;
  readonly defaultDatabase: string;
  /** Counts changes of tables, so that sessions forget what they know of columns. */
  catalogue = 0;
  /** Gives the number of a session that is gone to the next one, as SQL Server does; else each has its own, which tells events apart. */
  reusesSpids = false;
  readonly #connections = new Map<number, Connection>();
  readonly #gates: ArmedGate[] = [];
  readonly #listeners = new Set<(event: TdsEvent) => void>();
  readonly #server: Server;
  readonly #logins: Readonly<Record<string, string>>;
  #spid = FIRST_SPID - 1;
  #transactions = 0n;
  #prepared = false;
  #autocommitGates = 0;

  private constructor(private readonly options: TdsOptions) {
    this.name = options.name ?? 'TDS';
    this.announcesText = options.textTransactions ?? true;
    this.encryption = options.encryption ?? 'off';
    this.mostVersion = options.mostVersion ?? TDS.v74;
    this.defaultDatabase = this.databases[0];
    this.#logins = options.logins ?? { sa: 'Outlive.1' };
    this.#server = createServer((socket) => {
      const spid = this.#nextSpid();
      this.#connections.set(spid, new Connection(this, socket, spid));
    });
  }

  #nextSpid(): number {
    if (!this.reusesSpids) return ++this.#spid;
    let spid = FIRST_SPID;
    while (this.#connections.has(spid)) spid++;
    return spid;
  }

  /** Starts to listen. The PostgreSQL behind it need not run yet. */
  static async start(options: TdsOptions): Promise<TdsServer> {
    const server = new TdsServer(options);
    await new Promise<void>((done, fail) => {
      server.#server.once('error', fail);
      server.#server.listen(options.port ?? 0, options.host ?? '127.0.0.1', () => done());
    });
    const link = await PgLink.open(options.pg, 'tds setup').catch(() => null);
    if (link !== null) {
      await server.prepare(link);
      link.destroy();
    }
    return server;
  }

  get port(): number {
    return (this.#server.address() as { port: number }).port;
  }

  get place(): PgPlace {
    return this.options.pg;
  }

  get tls(): { cert: string; key: string } {
    return this.options.tls;
  }

  get databases(): readonly string[] {
    return this.options.databases ?? ['app'];
  }

  /** Drops all sessions and listens no longer. */
  async stop(): Promise<void> {
    const closed = new Promise<void>((done) => this.#server.close(() => done()));
    for (const connection of [...this.#connections.values()]) connection.close();
    for (const gate of this.#gates.splice(0)) gate.reach(0);
    await closed;
  }

  // ---------------------------------------------------------------------------------------------- for tests

  /** Writes down that something happened. */
  note(kind: string, about: Readonly<Record<string, unknown>>): void {
    const event: TdsEvent = { kind, at: Date.now(), ...about };
    this.events.push(event);
    if (process.env.TDS_LOG !== undefined) console.error(this.name, event);
    if (this.events.length > MOST_EVENTS) this.events.shift();
    for (const listener of [...this.#listeners]) listener(event);
  }

  /** Calls a function with each event from now on. Returns what ends that. */
  onEvent(listener: (event: TdsEvent) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** The first event that fits, of those that were and those to come. */
  waitFor(fits: (event: TdsEvent) => boolean, timeoutMs = 10_000): Promise<TdsEvent> {
    const found = this.events.find(fits);
    if (found !== undefined) return Promise.resolve(found);
    return new Promise((done, fail) => {
      const timer = setTimeout(() => {
        stop();
        fail(new Error(`TDS server ${this.name}: no such event within ${timeoutMs} ms`));
      }, timeoutMs);
      const stop = this.onEvent((event) => {
        if (!fits(event)) return;
        clearTimeout(timer);
        stop();
        done(event);
      });
    });
  }

  count(kind: string): void {
    this.counts[kind] = (this.counts[kind] ?? 0) + 1;
  }

  /**
   * Holds the next session that comes to a commit, before it takes effect or after it.
   * @param autocommit whether statements outside of transactions are held too
   */
  hold(place: Place, { autocommit = false }: { autocommit?: boolean } = {}): Gate {
    let reach!: (spid: number) => void;
    let open!: () => void;
    const reached = new Promise<number>((done) => (reach = done));
    const gate: ArmedGate = { place, reach, open: new Promise<void>((done) => (open = done)) };
    this.#gates.push(gate);
    if (autocommit) this.#autocommitGates++;
    return {
      reached,
      release: () => {
        const at = this.#gates.indexOf(gate);
        if (at >= 0) this.#gates.splice(at, 1);
        if (autocommit) this.#autocommitGates--;
        autocommit = false;
        open();
      },
    };
  }

  /** Ends a session as KILL does: without a word. Returns whether there was one. */
  drop(spid: number): boolean {
    const connection = this.#connections.get(spid);
    if (connection === undefined) return false;
    this.note('drop', { spid });
    connection.close();
    return true;
  }

  /** Ends a session for an error that its client hears of. */
  async dismiss(spid: number): Promise<void> {
    this.note('dismiss', { spid });
    await this.#connections.get(spid)?.dismiss();
  }

  get spids(): number[] {
    return [...this.#connections.keys()];
  }

  // ---------------------------------------------------------------------------------------------- for sessions

  get holdsAutocommit(): boolean {
    return this.#autocommitGates > 0;
  }

  async atGate(place: Place, spid: number): Promise<void> {
    const at = this.#gates.findIndex((gate) => gate.place === place);
    if (at < 0) return;
    const [gate] = this.#gates.splice(at, 1);
    this.note('gate', { spid, place });
    gate.reach(spid);
    await gate.open;
  }

  /** A connection is gone. Returns false where that was known. */
  forget(spid: number): boolean {
    return this.#connections.delete(spid);
  }

  admits(user: string, password: string): boolean {
    return Object.hasOwn(this.#logins, user) && this.#logins[user] === password;
  }

  facts(): SessionFacts[] {
    return [...this.#connections.values()].flatMap(({ session }) => (session === null ? [] : [session.facts]));
  }

  /** No two transactions of this process have the same. */
  nextDescriptor(): bigint {
    return (++this.#transactions << 32n) | BigInt(0x35 + Number(this.#transactions % 64n));
  }

  changedCatalogue(): void {
    this.catalogue++;
  }

  async isStandby(link: PgLink): Promise<boolean> {
    return (await link.rows('SELECT pg_is_in_recovery()'))[0][0] === 't';
  }

  async hasDatabase(link: PgLink, database: string): Promise<boolean> {
    const name = database.replaceAll("'", "''");
    const rows = await link.rows(
      `SELECT 1 FROM pg_namespace WHERE nspname = '${name}' AND nspname NOT IN ('tds', 'public', 'information_schema')`,
    );
    return rows.length > 0;
  }

  /** Makes what sessions need in PostgreSQL, once it takes writes; a standby has it from its primary. */
  async prepare(link: PgLink): Promise<void> {
    if (this.#prepared || (await this.isStandby(link))) return;
    await link.run(setupSql(['master', 'tempdb', 'msdb', ...this.databases]));
    this.#prepared = true;
  }

  /** The acknowledgement of the features that a client asked for and gets. */
  featuresFor(session: Session, login: Login): Buffer | null {
    return this.options.sessionRecovery === true && login.features.has(1) ? featureAck(session) : null;
  }

  /** What a login brings back of an earlier session. */
  recovered(login: Login): Recovered | null {
    const data = this.options.sessionRecovery === true ? login.features.get(1) : undefined;
    return data === undefined ? null : readRecovery(data);
  }

  /** The session's state, where the client wants to know of its changes and there is one. */
  sessionState(session: Session): Buffer | null {
    return this.options.sessionRecovery === true && session.login.features.has(1) ? stateToken(session) : null;
  }
}
