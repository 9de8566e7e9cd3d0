import { randomBytes } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { type Call, type Mention, type Opening, RECORD, type SessionSnapshot } from '../cluster/records.js';
import type { Shadow } from '../cluster/shadow.js';
import {
  type Blocker,
  type Codec,
  CodedError,
  type CredentialsPlugin,
  type Exchange,
  type GatewayError,
  type Greeting,
  type Log,
  type OutcomeToken,
  ProtocolViolation,
  type Repetition,
  type ServerError,
  type SessionCodec,
  type TlsFacts,
} from '../contract/index.js';
import { runExchange, type ServerTls, type Wire } from '../io/index.js';
import type { FrozenTcp } from '../io/tcp/index.js';
import { Session } from '../session/session.js';
import type { SessionIo } from '../session/world.js';
import type { BackendConnection, Choice, Cluster, ServerState } from './cluster/index.js';
import { LoginRefused } from './cluster/index.js';
import type { ListenerConfig } from './config/index.js';
import type { Stats } from './metrics.js';
import { proofOf } from './outcome.js';
import type { Gate, Replica, Subject } from './pair/replica.js';
import { discard, type Relocatable, Relocation } from './relocation.js';
import type { Moving, Reservations } from './reservations.js';

/** What a session needs of the gateway around it. */
export interface SessionEnvironment {
  readonly listener: ListenerConfig;
  readonly codec: Codec;
  readonly cluster: Cluster;
  /** Chooses the server, where the listener allows several; null where it is the one that takes writes. */
  readonly choice: Choice | null;
  readonly credentials: CredentialsPlugin | null;
  readonly tls: ServerTls | null;
  readonly log: Log;
  readonly stats: Stats;
  readonly reservations: Reservations;
  /** Sessions by their cancel key (hex). */
  readonly keys: Map<string, SessionHost>;
  /** Tells the peer gateway of a session; null without one. */
  readonly pair: SessionPair | null;
  /** Sessions leave rows that prove commits in this database. Called for each of them. */
  marked(database: string): void;
  now(): number;
}

/** What a session needs of the pair of gateways. */
export interface SessionPair {
  /** The peer is told that there is this connection. @returns to be called when it is over */
  mention(wire: Wire): () => void;
  replicate(subject: Subject): Replica;
  /** Is this one of the addresses that move? */
  covers(address: string): boolean;
  /** What a survivor must know of a connection of which so many bytes were read and written; null when it cannot be moved. */
  identify(wire: Wire): unknown;
  /** Bytes that the kernel was given and the client has not acknowledged. */
  unacknowledged(wire: Wire): number;
  /** What was written to a connection and its client has not acknowledged; null when it cannot be told. */
  unheard(wire: Wire): Uint8Array[] | null;
  /** The descriptor of a connection; -1 when it is not one that can be gone on with. */
  descriptor(wire: Wire): number;
  /** What tells the keeper's counts from those of the wire; null without a keeper. */
  kept(wire: Wire): Opening['kept'];
  /** Holds the acknowledgements of a client's bytes back; null where that is not done. */
  gate(wire: Wire, opening: Opening, received: number): Gate | null;
  /** True when {@link gate} will. */
  readonly gates: boolean;
  /** Does the client of a session with this durability wait until what follows from its words is safe? */
  holds(durability: 'local' | 'pair'): boolean;
}

/** Time that restoring a session's state may take on a server that answers. */
const RESTORE_MS = 10_000;
/** How long a session waits for others to reserve what their clients hold. */
const RESERVE_MS = 5000;
/** States of a session that waits for a server to be found. */
const SEARCHING: ReadonlySet<string> = new Set(['suspended', 'resolving']);
/** Waits after failed attempts to restore a session: from, to. */
const BACKOFF_MS = 10;
const MAX_BACKOFF_MS = 500;
/** How often the end of an old session is asked for, where the question does not get through, and the first wait in between. */
const END_ATTEMPTS = 4;
const END_BACKOFF_MS = 50;

/**
 * One client connection: owns its wires, runs its exchanges, and feeds the pure {@link Session}. All that waits for the outside
 * world is here; all that decides is there.
 */
export class SessionHost implements SessionIo, Relocatable {
  private session: Session | null = null;
  private codec: SessionCodec | null = null;
  private greeting: Extract<Greeting, { kind: 'session' }> | null = null;
  private connection: BackendConnection | null = null;
  /** Grows with every server connection; what an older one still says is stale. */
  private generation = 0;
  private readonly abort = new AbortController();
  private readonly clientHolds = { queue: false, server: false };
  private serverHeld = false;
  private cancelKey = '';
  private recovering = false;
  private closedInDoubt = false;
  private statusTold: string | null = null;
  /** The present search for a server: from the loss until the session goes on. */
  private episode: {
    readonly since: number;
    readonly deadline: number;
    /** Nothing was lost: the session was moved. */
    readonly planned: boolean;
    attempts: number;
  } | null = null;
  /** Attempts that the latest search took, and what was answered by then. */
  private tried = { attempts: 0, answered: -1 };
  private keepalive: NodeJS.Timeout | null = null;
  /** Called once when all is over. */
  onEnd: () => void = () => {};
  /** Called once when the client was let in or left before. */
  onGreeted: () => void = () => {};

  constructor(
    private readonly env: SessionEnvironment,
    private readonly wire: Wire,
  ) {
    this.unmention = env.pair?.mention(wire) ?? ignore;
  }

  /** The peer forgets the connection. */
  private readonly unmention: () => void;

  private get backend(): BackendConnection | null {
    return this.connection;
  }

  /** However the session leaves a server, it no longer counts as being there. */
  private set backend(connection: BackendConnection | null) {
    if (connection !== this.connection) this.connection?.release?.();
    this.connection = connection;
  }

  /** The server that this session is on now, or null. */
  get server(): ServerState | null {
    return this.backend?.server ?? null;
  }

  /** The life of that server in which the connection was made, or null. */
  get instance(): string | null {
    return this.backend?.origin?.facts.instance ?? null;
  }

  /** What that server was when the connection was made, or null. */
  get role(): 'primary' | 'standby' | null {
    return this.backend?.origin?.facts.role ?? null;
  }

  /** The last time that it changed its server, for whatever reason; null when it never did. */
  moved: { readonly at: number; readonly from: string } | null = null;

  /** True when the client waits for an answer or holds a transaction. */
  get owes(): boolean {
    return this.session?.waiting === true;
  }

  get state(): string {
    return this.session?.state ?? 'greeting';
  }

  /** The gateway's address on this connection. */
  get address(): string {
    // An IPv4 connection of a socket that speaks both is named in the other way (RFC 4291 section 2.5.5.2).
    return this.wire.localAddress.replace(/^::ffff:(?=\d+\.)/i, '');
  }

  /** Meets the client, and serves it until it leaves. Never rejects. */
  async run(): Promise<void> {
    try {
      await this.meet();
    } catch (error) {
      // What was given up because this session ended is nobody's fault.
      if (!this.ended || error instanceof CodedError) this.refuse(error);
    } finally {
      this.onGreeted();
    }
  }

  private async meet(): Promise<void> {
    const { listener, codec, credentials, tls } = this.env;
    const wire = this.wire;
    wire.onClose = () => this.end();
    const { limits } = listener;
    let alreadyTls: TlsFacts | null = null;
    if (tls !== null && codec.alpn !== null) {
      const first = await this.firstChunk(limits.greetingTimeout);
      if (first === null) return this.end();
      wire.unread(first);
      // A TLS handshake at once: ContentType handshake(22), RFC 8446 section 5.1.
      if (first[0] === 0x16) {
        alreadyTls = await wire.startTls({ side: 'server', tls, alpn: codec.alpn, direct: true, peer: 'client' });
      }
    }
    const { result: greeting, rest } = await runExchange(
      wire,
      codec.greet({ auth: listener.auth, tls: tls === null ? 'off' : listener.tls.mode, alreadyTls }),
      {
        frameLength: (bytes, start, end) => codec.frameLength(bytes, start, end),
        peer: 'client',
        credentials: async (user, database) => {
          try {
            return (await credentials?.lookup(user, database)) ?? null;
          } catch (error) {
            throw this.pluginBroken(error);
          }
        },
        tls: tls === null ? undefined : { side: 'server', tls, peer: 'client' },
        deadlineMs: limits.greetingTimeout,
        signal: this.abort.signal,
      },
    );
    wire.onClose = () => this.end();
    this.onGreeted();
    if (greeting.kind === 'cancel') {
      const key = Buffer.from(greeting.key).toString('hex');
      await this.env.keys.get(key)?.cancel();
      wire.end();
      return;
    }
    if (greeting.kind === 'closed') {
      if (greeting.error !== null) this.env.stats.count(this.env.stats.errors, greeting.error.code);
      wire.end();
      return;
    }
    await this.enter(greeting, rest);
  }

  /** What the client asked for when it came, as its server is told. */
  private startup(): unknown {
    const { codec, choice } = this.env;
    const { startup } = this.greeting!;
    // So that it cannot write where there is no standby, or the standby has become the primary.
    return choice?.wish.target === 'standby' && codec.readOnly !== undefined ? codec.readOnly(startup) : startup;
  }

  private firstChunk(timeoutMs: number): Promise<Uint8Array | null> {
    const wire = this.wire;
    return new Promise((resolve) => {
      const timer = setTimeout(() => done(null), timeoutMs);
      const done = (chunk: Uint8Array | null) => {
        clearTimeout(timer);
        wire.onData = () => {};
        wire.onClose = () => this.end();
        if (wire.open) wire.pause();
        resolve(chunk);
      };
      wire.onData = done;
      wire.onClose = () => done(null);
      wire.resume();
    });
  }

  private async enter(greeting: Extract<Greeting, { kind: 'session' }>, rest: Uint8Array): Promise<void> {
    const { env, wire } = this;
    const { listener, codec, cluster } = env;
    this.greeting = greeting;
    if (greeting.passThrough !== null && listener.failover.unprotected === 'refuse') {
      throw new CodedError(
        'OUTLIVE_UNPROTECTED_REFUSED',
        'client',
        `${greeting.passThrough} cannot be protected, and failover.unprotected of listener ${listener.name} is refuse`,
      );
    }
    const { identity } = greeting;
    let connection: BackendConnection;
    try {
      connection = await cluster.acquire({
        identity,
        startup: this.startup(),
        choice: env.choice,
        deadline: env.now() + listener.failover.wait,
        signal: this.abort.signal,
        passThrough: greeting.passThrough !== null,
      });
    } catch (error) {
      if (error instanceof LoginRefused) {
        wire.end(Buffer.concat([codec.accepted, error.outcome.bytes]));
        return;
      }
      throw error;
    }
    if (!wire.open) {
      discard(connection);
      return;
    }
    const database = identity.database;
    // Without the catalogue nothing can be told to be a plain read, and everything is guarded: slower, and still right.
    if (codec.learn !== undefined) await cluster.learned(database, identity, env.choice).catch(() => undefined);
    this.codec = codec.session({ greeting, shared: () => cluster.learnedNow(database), options: listener.options });
    const session = new Session(
      this.codec,
      (bytes, start, end) => codec.frameLength(bytes, start, end),
      listener.limits,
      this,
      env.stats,
      proofOf(listener, codec, connection.login.database ?? database),
    );
    this.session = session;
    const key = this.newKey(codec.cancelKeyLength(connection.login));
    this.cancelKey = Buffer.from(key).toString('hex');
    env.keys.set(this.cancelKey, this);
    if (this.left(connection)) return;
    const acquired = connection;
    connection = await this.reserve(acquired, this.codec).catch((error) => {
      discard(acquired);
      throw error;
    });
    if (this.left(connection)) return;
    this.attach(connection);
    const welcome = this.codec.welcome(connection.login, key);
    session.attached(this.role === 'standby');
    if (greeting.passThrough !== null) session.passThrough(greeting.passThrough);
    wire.onData = (chunk) => this.fromClient(chunk);
    wire.onDrain = () => this.easeServer();
    this.tellState();
    // Before the client knows that it is in: from then on it relies on that.
    this.early = rest.length;
    this.replicate();
    this.entered = true;
    this.toClient(welcome);
    if (connection.rest.length > 0) this.fromServer(connection.rest);
    this.early = 0;
    if (rest.length > 0) this.fromClient(rest);
    if (!this.clientHolds.queue && !this.clientHolds.server && wire.open) wire.resume();
  }

  /** Gives a login up whose client has left meanwhile. @throws OUTLIVE_EXCHANGE_CLOSED when its server has */
  private left(connection: BackendConnection): boolean {
    const { wire } = this;
    if (wire.open && connection.wire.open) return false;
    discard(connection);
    if (wire.open)
      throw new CodedError('OUTLIVE_EXCHANGE_CLOSED', 'server', 'the server closed the connection during login');
    this.end();
    return true;
  }

  // --------------------------------------------------------------------------------------------------------- the peer

  /** Tells the peer gateway of this session. */
  private replica: Replica | null = null;
  /** Bytes of the client that came with its greeting and were not given to the session yet. */
  private early = 0;

  /**
   * From now on the peer gateway is told of this session.
   * @param key under which the keeper has it already
   */
  private replicate(key?: string): void {
    const { env, wire } = this;
    const { pair, listener } = env;
    if (pair === null || wire.secure || this.session!.state === 'passing' || this.ended) return;
    if (!pair.covers(this.address)) return;
    const { database } = this.greeting!.identity;
    this.replica = pair.replicate({
      cluster: listener.cluster,
      database,
      durable: pair.holds(listener.durability),
      outstanding: () => wire.backlog + (wire.open ? pair.unacknowledged(wire) : 0),
      queued: () => wire.backlog,
      unheard: () => (wire.open ? pair.unheard(wire) : null),
      descriptor: () => pair.descriptor(wire),
      opening: () => this.opening(pair),
      snapshot: () => this.snapshot(),
      get written() {
        return wire.bytesWritten;
      },
      facts: () => env.cluster.learnedNow(database),
      gate: (opening, received) => pair.gate(wire, opening, received),
      deliver: (bytes) => this.deliver(bytes),
      eased: () => {
        if (this.serverHeld) this.easeServer();
      },
      proceed: () => this.tell('proceed'),
    });
    if (key !== undefined) this.replica.inherit(key);
    this.replica.done();
  }

  private opening(pair: SessionPair): Opening | null {
    const { wire, cancelKey } = this;
    const tcp = pair.identify(wire);
    const kept = pair.kept(wire);
    if (tcp === null && kept === null) return null;
    return {
      listener: this.env.listener.name,
      address: this.address,
      greeting: this.greeting!,
      cancelKey,
      tcp,
      durable: pair.holds(this.env.listener.durability),
      held: tcp !== null && pair.gates,
      kept,
    };
  }

  private snapshot(): SessionSnapshot | null {
    const { origin, session } = this;
    const capsule = session!.capsule();
    if (capsule === null) return null;
    const { facts, backendId, server } = origin ?? {};
    return {
      capsule,
      received: this.wire.bytesRead - this.early,
      origin: server === undefined ? null : { server: server.name, facts: facts!, backendId: backendId! },
    };
  }

  /** Makes a call of the session of which the peer is told. */
  private tell(...call: Call): void {
    const { replica } = this;
    replica?.call(call);
    const [method, ...given] = call;
    this.guarded(() => (this.session![method] as (...given: unknown[]) => unknown)(...given));
    replica?.done();
  }

  /** The connection while it stands still. */
  private standing: FrozenTcp | null = null;

  /** Grows with what this session has to do: the chunks that came from both sides. */
  get work(): number {
    return this.chunks;
  }

  /** True when the peer could go on with this session, or there is nothing to go on with. */
  get movable(): boolean {
    return this.session === null || (this.replica?.followed === true && !this.recovering);
  }

  /** False while another engine on this host could not go on with this session, and could soon: while its client logs in, or nobody could be told of it yet. */
  get settled(): boolean {
    if (!this.entered) return this.ended;
    return this.replica === null || this.replica.noted;
  }

  /** The client is in, and whoever follows sessions is told of this one, if it can be followed. */
  private entered = false;

  /**
   * Stops everything, so that the peer can go on with this session. The server connection is given up.
   * @param freeze stops the connection; throws when that cannot be
   * @returns the position of the record that the peer must hold; null when it cannot be moved
   */
  stand(freeze: (wire: Wire) => FrozenTcp): number | null {
    return this.recovering ? null : this.standTold(freeze);
  }

  private standTold(freeze: (wire: Wire) => FrozenTcp): number | null {
    const { replica, wire } = this;
    if (replica?.followed !== true) return null;
    const frozen = this.still(freeze);
    if (frozen === null) return null;
    const { identity, unacknowledged, unsent = 0 } = frozen.image;
    const queued = unacknowledged.reduce((sum, { length }) => sum + length, 0);
    return replica.standstill(identity, frozen.unread, queued + wire.backlog, unsent + wire.backlog);
  }

  /**
   * Stops everything for as long as nobody knows who has the address; {@link goOnHere} or {@link vanish} must follow. A search for a server
   * that is under way begins anew then.
   * @returns false when that cannot be done: then it must vanish
   */
  halt(freeze: (wire: Wire) => FrozenTcp): boolean {
    if (this.standing !== null || this.standTold(freeze) !== null) return true;
    if (this.still(freeze) === null) return false;
    this.replica?.still();
    return true;
  }

  /** Its client has closed its side of the connection, or its server has ended the session. */
  get leaving(): boolean {
    return this.gone || this.session?.ending === true;
  }

  private gone = false;

  /** Lets a client that is leaving go: the connection is closed in order, and nothing said. */
  dismiss(): void {
    this.replica?.close();
    this.wire.end();
    this.end();
  }

  /** Stops the connection and gives the server connection up. Null when that cannot be done now. */
  private still(freeze: (wire: Wire) => FrozenTcp): FrozenTcp | null {
    const { wire, backend } = this;
    if (this.session === null || this.standing !== null || !wire.open) return null;
    wire.pause();
    let frozen: FrozenTcp;
    try {
      frozen = freeze(wire);
    } catch {
      this.gone = true;
      return null;
    }
    if (this.recovering) this.endSearch();
    this.standing = frozen;
    this.relocation?.cancel();
    this.generation++;
    if (backend !== null) this.leaveServer(backend);
    return frozen;
  }

  /**
   * It stood still and was not moved: goes on where it is.
   * @returns its connection, and how that stood; null when it did not stand still
   */
  goOnHere(goOn: (frozen: FrozenTcp) => void): { wire: Wire; image: FrozenTcp['image'] } | null {
    const { standing, replica, wire } = this;
    if (standing === null) return null;
    this.standing = null;
    goOn(standing);
    replica?.recall();
    this.replica = null;
    this.replicate();
    // The time in which it could do nothing does not count.
    const { episode } = this;
    if (episode !== null) this.episode = { ...episode, deadline: this.env.now() + this.env.listener.failover.wait };
    this.tell('lost');
    if (SEARCHING.has(this.session!.state) && !this.recovering) this.recover();
    if (!this.clientHolds.queue && wire.open) wire.resume();
    return { wire, image: standing.image };
  }

  /** The client's end of the connection. */
  get remote(): string {
    const { address, port } = this.ends.remote;
    return `${address} ${port}`;
  }

  /** Both ends of the connection. */
  get ends(): Mention {
    const { wire, address } = this;
    const remote = { address: wire.remoteAddress.replace(/^::ffff:(?=\d+\.)/i, ''), port: wire.remotePort };
    return { local: { address, port: wire.localPort }, remote };
  }

  /** Ends without a word to the client: somebody else speaks to it from now on. */
  vanish(freeze: (wire: Wire) => FrozenTcp, vanish: (wire: Wire, frozen: FrozenTcp | null) => void): void {
    const { wire } = this;
    if (wire.open && this.standing === null) {
      wire.pause();
      try {
        this.standing = freeze(wire);
      } catch {
        // It is closing already.
      }
    }
    wire.onClose = ignore;
    vanish(wire, this.standing);
    this.standing = null;
    this.end();
  }

  /**
   * Another engine on this host goes on with the connection, of which the keeper has a duplicate.
   * @param abandon lets go of the wire without a word
   */
  retire(abandon: (wire: Wire) => void): void {
    const { replica, wire } = this;
    if (replica?.noted !== true || !wire.open) {
      this.fatal({
        code: 'OUTLIVE_NOT_MOVABLE',
        kind: 'unavailable',
        message:
          'the gateway is being upgraded, and this connection cannot be kept (TLS, replication, or it is about to log in)',
        hint: 'Connect again.',
      });
      return;
    }
    replica.leave();
    this.replica = null;
    wire.onClose = ignore;
    abandon(wire);
    this.end();
  }

  /** Ends at once, and the client's connection is reset. */
  reset(): void {
    this.replica?.close();
    this.wire.onClose = ignore;
    this.wire.reset();
    this.end();
  }

  /**
   * A session of somebody's who is no more goes on here: of the peer, or of the engine before. Before the wire is read.
   * @param key what the keeper has it under, for one of the engine before
   */
  adopt(shadow: Shadow, key?: string): void {
    const { opening, session, codec, origin } = shadow;
    const { env, wire } = this;
    const { database } = opening.greeting.identity;
    env.cluster.learntElsewhere(database, shadow.shared());
    shadow.shared = () => env.cluster.learnedNow(database);
    this.greeting = opening.greeting;
    this.session = session;
    this.codec = codec;
    this.markedAt = shadow.markedAt;
    this.cancelKey = opening.cancelKey;
    env.keys.set(this.cancelKey, this);
    const server = origin === null ? null : (env.cluster.servers().find(({ name }) => name === origin.server) ?? null);
    if (server !== null) this.origin = { server, facts: origin!.facts, backendId: origin!.backendId };
    session!.entrust(this, env.stats);
    wire.onClose = () => this.end();
    wire.onData = (chunk) => this.fromClient(chunk);
    wire.onDrain = () => this.easeServer();
    this.onGreeted();
    this.entered = true;
    this.clientHolds.queue = session!.full;
    if (key !== undefined) this.replicate(key);
    // The gateway before may have sent what waited until this one knew of it, and died before it could say so.
    if (session!.state === 'live') this.tell('proceed');
    this.tell('lost');
    if (SEARCHING.has(session!.state) && this.episode === null) this.recover();
    this.tellState();
    if (key === undefined) this.replicate();
    if (!this.clientHolds.queue && wire.open) wire.resume();
  }

  /**
   * Waits until the server can make up nothing again that clients of this cluster hold; does its part of that.
   * @returns the connection as it is then
   */
  private async reserve(connection: BackendConnection, { mutables }: SessionCodec): Promise<BackendConnection> {
    const { env } = this;
    const { identity } = this.greeting!;
    // Who only reads holds nothing of what sequences gave, and could not keep a standby from giving it again.
    if (mutables === undefined || env.choice?.wish.target === 'standby') return connection;
    const { wire } = connection;
    let head = connection.rest;
    const reserve = async (sessions: readonly Moving[]): Promise<unknown> => {
      const { result, rest } = await this.keeping(() =>
        this.exchange(wire, mutables.reserve(sessions.map(({ gathered }) => gathered)), head),
      );
      head = rest;
      const left = mutables.unreserved(result);
      // Without the rights for it, what is made up twice shows as a divergence.
      if (left !== null) await env.cluster.askIn(identity.database, left).catch(() => undefined);
      return result;
    };
    const instance = connection.origin?.facts.instance ?? null;
    await env.reservations.pass(identity, instance, reserve, RESERVE_MS, this.abort.signal);
    return { ...connection, rest: head };
  }

  private exchange<R>(wire: Wire, exchange: Exchange<R>, head: Uint8Array): Promise<{ result: R; rest: Uint8Array }> {
    const { frameLength } = this.env.codec;
    const { signal } = this.abort;
    return runExchange(wire, exchange, { frameLength, peer: 'server', head, deadlineMs: RESTORE_MS, signal });
  }

  private newKey(length: number): Uint8Array {
    for (;;) {
      const key = randomBytes(length);
      // The first four bytes are a process id to the client: positive.
      key[0] &= 0x7f;
      if (!this.env.keys.has(key.toString('hex'))) return key;
    }
  }

  private attach(connection: BackendConnection): void {
    const generation = ++this.generation;
    this.backend = connection;
    this.origin = connection.origin;
    this.closedInDoubt = false;
    this.serverHeld = false;
    const { wire } = connection;
    wire.onData = (chunk) => {
      if (generation === this.generation) this.fromServer(chunk);
    };
    wire.onDrain = () => this.holdClient('server', false);
    wire.onClose = () => {
      if (generation === this.generation) this.serverClosed();
    };
    this.holdClient('server', false);
    wire.resume();
  }

  private dropBackend(): void {
    const connection = this.backend;
    this.generation++;
    this.backend = null;
    if (connection !== null) discard(connection);
    this.holdClient('server', false);
  }

  // ------------------------------------------------------------------------------------------------------------- bytes

  private fromClient(chunk: Uint8Array): void {
    const session = this.session!;
    const { replica } = this;
    this.chunks++;
    this.env.stats.bytesFromClients += chunk.length;
    replica?.input(RECORD.client, chunk);
    try {
      session.frontend(chunk);
    } catch (error) {
      this.broken(error, 'client');
    }
    replica?.done();
    this.relocation?.consider();
  }

  private fromServer(chunk: Uint8Array): void {
    const session = this.session!;
    const { replica } = this;
    this.chunks++;
    replica?.input(RECORD.server, chunk);
    try {
      session.backend(chunk);
    } catch (error) {
      if (error instanceof ProtocolViolation) this.env.stats.outOfSync++;
      this.broken(error, 'server');
    }
    replica?.done();
    this.relocation?.consider();
  }

  private serverClosed(): void {
    const session = this.session!;
    this.backend = null;
    this.generation++;
    if (session.state === 'doubting') {
      this.closedInDoubt = true;
      return;
    }
    if (session.ending) {
      session.close();
      this.closeClient();
      return;
    }
    this.tell('lost');
  }

  /** Runs a step of the session; what it throws ends the session and nothing else. */
  private guarded(step: () => void): void {
    try {
      step();
    } catch (error) {
      this.broken(error, 'gateway');
    }
  }

  private broken(error: unknown, side: 'client' | 'server' | 'gateway'): void {
    const { env } = this;
    const coded = this.coded(error);
    env.stats.count(env.stats.errors, coded.code);
    const fields = { code: coded.code, side, listener: env.listener.name, stack: (coded.cause as Error)?.stack };
    // Anyone who can connect could fill the log with his own faults.
    if (coded.culprit === 'client') env.log.info(fields, coded.message);
    else env.log.error(fields, coded.message);
    const kind: GatewayError['kind'] =
      coded instanceof ProtocolViolation
        ? 'protocol'
        : coded.code === 'OUTLIVE_REQUEST_TOO_LARGE'
          ? 'too-large'
          : 'internal';
    this.fatal({ code: coded.code, kind, message: coded.message });
  }

  private pluginBroken(error: unknown): CodedError {
    if (error instanceof CodedError) return error;
    const name = this.env.listener.credentials?.plugin;
    const message = `the credentials plugin ${name} failed: ${String((error as Error)?.message ?? error)}`;
    return new CodedError('OUTLIVE_PLUGIN_BROKEN', 'plugin', message, { cause: error });
  }

  /** What is thrown without a code comes from the codec: all else that can fail says what it is. */
  private coded(error: unknown): CodedError {
    if (error instanceof CodedError) return error;
    const message = `codec ${this.env.codec.name} failed: ${String((error as Error)?.message ?? error)}`;
    return new CodedError('OUTLIVE_CODEC_BROKEN', 'codec', message, { cause: error });
  }

  /** Ends the session with an error of the gateway's own. */
  fatal(error: GatewayError): void {
    const { session } = this;
    const spoken = session !== null && session.state !== 'passing';
    const words = spoken ? session.lastWords(error) : this.env.codec.refuse(error);
    session?.close();
    this.replica?.close();
    this.wire.end(words ?? undefined);
    this.end();
  }

  /** As {@link fatal}. @returns resolves when the client has heard all that was said to it, and has closed the connection */
  farewell(error: GatewayError): Promise<void> {
    return new Promise((resolve) => {
      this.wire.onClose = () => resolve();
      this.fatal(error);
    });
  }

  private refuse(error: unknown): void {
    const { env, wire } = this;
    const coded = this.coded(error);
    const { code } = coded;
    env.stats.count(env.stats.errors, code);
    // Clients that leave during the greeting are everyday life; what is the gateway's own affair is worth a line.
    const broken = coded.culprit === 'codec' || coded.culprit === 'plugin';
    const fields = { code, listener: env.listener.name, stack: broken ? (coded.cause as Error)?.stack : undefined };
    if (broken) env.log.error(fields, coded.message);
    else env.log.debug(fields, coded.message);
    if (wire.open) {
      const broke = code === 'OUTLIVE_EXCHANGE_TIMEOUT' || code === 'OUTLIVE_EXCHANGE_CLOSED';
      const kind: GatewayError['kind'] =
        code === 'OUTLIVE_NO_WRITABLE_SERVER' || code === 'OUTLIVE_NO_STANDBY' || broke
          ? 'unavailable'
          : code === 'OUTLIVE_UNPROTECTED_REFUSED'
            ? 'refused'
            : coded instanceof ProtocolViolation
              ? 'protocol'
              : 'internal';
      // A client that does not end its own dialogue is told nothing; one whose server does not is told so.
      const silent = code === 'OUTLIVE_TLS_FAILED' || (broke && coded.culprit === 'client');
      if (silent) wire.destroy();
      else
        wire.end(
          env.codec.refuse({
            code,
            kind,
            message: broken ? `the ${coded.culprit} failed: see the log` : coded.message,
          }),
        );
    }
    this.end();
  }

  // -------------------------------------------------------------------------------------------------------- SessionIo

  toClient(bytes: Uint8Array): void {
    this.env.stats.bytesToClients += bytes.length;
    const { replica } = this;
    if (replica === null) this.deliver(bytes);
    else {
      replica.say(bytes);
      if (replica.waiting > this.env.listener.limits.backlog) this.holdServer(true);
    }
  }

  private deliver(bytes: Uint8Array): void {
    if (!this.wire.write(bytes)) this.holdServer(true);
  }

  durable(): boolean {
    return this.replica?.durable() ?? true;
  }

  /** The server is read again when little waits for the client. */
  private easeServer(): void {
    const { limits } = this.env.listener;
    if ((this.replica?.waiting ?? 0) <= limits.backlog / 2 && this.wire.backlog <= limits.backlog)
      this.holdServer(false);
  }

  toServer(bytes: Uint8Array): void {
    if (this.backend !== null && !this.backend.wire.write(bytes)) this.holdClient('server', true);
  }

  readClient(on: boolean): void {
    this.holdClient('queue', !on);
  }

  corkServer(on: boolean): void {
    const wire = this.backend?.wire;
    if (on) wire?.cork();
    else wire?.uncork();
  }

  private holdClient(why: 'queue' | 'server', hold: boolean): void {
    const holds = this.clientHolds;
    const before = holds.queue || holds.server;
    holds[why] = hold;
    const after = holds.queue || holds.server;
    if (before === after || !this.wire.open) return;
    if (after) this.wire.pause();
    else this.wire.resume();
  }

  private holdServer(hold: boolean): void {
    if (this.serverHeld === hold) return;
    this.serverHeld = hold;
    const wire = this.backend?.wire;
    if (wire?.open !== true) return;
    if (hold) wire.pause();
    else wire.resume();
  }

  doubt(error: ServerError): void {
    const { env } = this;
    const session = this.session!;
    const server = this.backend?.server;
    const generation = this.generation;
    const instance = this.backend?.origin?.facts.instance ?? null;
    this.tellState();
    const verdict =
      server === undefined ? Promise.resolve('gone' as const) : env.cluster.doubt(server, instance, env.choice);
    verdict
      .catch(() => 'gone' as const)
      .then((what) => {
        if (session.state !== 'doubting' || (generation !== this.generation && !this.closedInDoubt)) return;
        env.log.info(
          { listener: env.listener.name, server: server?.name, sqlstate: error.code, verdict: what },
          'a server spoke of its end',
        );
        if (what === 'same' && error.meaning !== 'server-lost') {
          this.tell('intent');
          this.tellState();
          if (this.closedInDoubt && (session.state as string) === 'live') this.tell('lost');
        } else this.tell('lost');
      });
  }

  recover(): void {
    this.relocation?.cancel();
    this.dropBackend();
    this.tellState();
    const { env } = this;
    if (this.episode === null) {
      const now = env.now();
      // What the client waits for may be what takes the servers down: as long as it is not answered, its attempts add up.
      const { session, tried } = this;
      const again = session!.waiting && session!.answered === tried.answered;
      const attempts = again ? tried.attempts : 0;
      const planned = this.prepared !== null;
      this.episode = { since: now, deadline: now + env.listener.failover.wait, attempts, planned };
      this.keepalive ??= setInterval(() => {
        if (this.standing === null) this.session?.keepalive(`outlive: waiting for ${this.wanted}`);
      }, env.listener.failover.keepalive);
    }
    if (this.moving === null) this.guarded(() => this.move());
    if (this.recovering || this.session?.state === 'closed') return;
    this.recovering = true;
    void this.search();
  }

  /** What this session holds of the lost server's making. */
  private moving: Moving | null = null;

  /** What kind of server it needs, in words. */
  private get wanted(): string {
    return this.env.choice?.wish.target === 'standby' ? 'a server to read from' : 'a server that accepts writes';
  }

  private move(): void {
    // It made the server make up nothing that another session could be given.
    if (this.env.choice?.wish.target === 'standby') return;
    const gathered = this.gather();
    if (gathered === null) return;
    this.moving = { identity: this.greeting!.identity, gathered };
    this.env.reservations.add(this.moving);
  }

  /** Number of the present search. */
  private searches = 0;

  /** The session stands still: what the present search is about to find is void. */
  private endSearch(): void {
    const session = this.session!;
    // Nothing of that was told to the peer, whose session waits as before.
    if (session.state === 'restoring') session.lost();
    this.searches++;
    this.recovering = false;
  }

  /** Finds a server, settles what is in doubt, restores the state, and hands over to the session, which repeats the unit. */
  private async search(): Promise<void> {
    const { env } = this;
    const session = this.session!;
    const codec = this.codec!;
    const { cluster, listener } = env;
    const own = ++this.searches;
    const over = () => session.state === 'closed' || own !== this.searches;
    /** From then on the session may be looking for yet another server, which is not this search's affair. */
    let handedOver = false;
    try {
      for (let failures = 0; ; ) {
        const episode = this.episode!;
        if (over()) return;
        if (episode.attempts > listener.failover.attempts && session.openUnit) {
          this.tell('cannotContinue', {
            code: 'OUTLIVE_REPLAY_ATTEMPTS',
            kind: 'retry-transaction',
            message: `the transaction could not be repeated in ${listener.failover.attempts} attempts after a failover`,
            hint: 'Roll back and run the transaction again.',
          });
        }
        let connection: BackendConnection | null = null;
        let introduced = false;
        try {
          if (session.inDoubt) await this.settleDoubt(over);
          await this.endOldBackend(over);
          if (over()) return;
          connection = this.takePrepared();
          connection ??= await cluster.acquire({
            identity: this.greeting!.identity,
            startup: this.startup(),
            choice: env.choice,
            deadline: episode.deadline,
            signal: this.abort.signal,
            urgent: () => this.owes,
          });
          // It was not reached a moment ago, and is the same one after all.
          if (connection.server === this.origin?.server) await this.endOldBackend(over, true);
          if (over()) {
            discard(connection);
            return;
          }
          episode.attempts++;
          session.restoring();
          const blockers = codec.blockers();
          this.tellState();
          const { wire } = connection;
          const { result: missing, rest: restored } = await this.exchange(
            wire,
            codec.restore(connection.login),
            connection.rest,
          );
          connection = await this.reserve({ ...connection, rest: restored }, codec);
          let { rest } = connection;
          let plan: readonly (Repetition | null)[] | null = null;
          const gathered = this.gather();
          if (gathered !== null && !over()) {
            const found = this.moving === null ? null : env.reservations.found(this.moving);
            const head = rest;
            ({ result: plan, rest } = await this.keeping(() =>
              this.exchange(wire, codec.mutables!.plan(gathered, found), head),
            ));
          }
          if (over()) {
            discard(connection);
            return;
          }
          const gone = [...blockers, ...missing];
          const attached = connection;
          const from = this.origin?.server ?? null;
          introduced = true;
          await this.introduce(attached);
          if (over()) {
            discard(attached);
            return;
          }
          this.recovering = false;
          handedOver = true;
          if (from !== null && from !== attached.server) this.moved = { at: env.now(), from: from.name };
          this.attach(attached);
          if (gone.length > 0) {
            codec.forgetBlockers();
            this.replica?.renew();
            this.tell('cannotContinue', stateLost(gone));
            for (const { what } of gone) env.stats.count(env.stats.unprotected, what);
          }
          if (this.backend === attached) this.tell('restored', attached.login, plan, this.role === 'standby');
          this.tellState();
          if (rest.length > 0 && this.backend === attached) this.fromServer(rest);
          return;
        } catch (error) {
          if (connection !== null) discard(connection);
          if (over()) return;
          // Of what came before the introduction nothing was told to the peer, whose session waits as before.
          if (session.state === 'restoring') session.lost();
          if (introduced) this.replica?.renew();
          if (error instanceof LoginRefused && !error.outcome.transient) {
            this.wire.end(session.amidFrame ? undefined : error.outcome.bytes);
            this.end();
            return;
          }
          if (
            env.now() >= episode.deadline ||
            error instanceof LoginRefused ||
            (error instanceof CodedError &&
              (error.code === 'OUTLIVE_NO_WRITABLE_SERVER' || error.code === 'OUTLIVE_NO_STANDBY'))
          ) {
            this.giveUpSearch();
            return;
          }
          if (!(error instanceof CodedError)) throw error;
          env.log.warn(
            { code: error.code, listener: listener.name },
            `a session could not be restored yet: ${error.message}`,
          );
          // A server that lets sessions in and then fails them is not stormed.
          const pause = Math.min(MAX_BACKOFF_MS, BACKOFF_MS * 2 ** failures++);
          await sleep(pause, undefined, { signal: this.abort.signal }).catch(() => {});
        }
      }
    } catch (error) {
      this.broken(error, 'gateway');
    } finally {
      if (!handedOver && own === this.searches) this.recovering = false;
    }
  }

  /**
   * Tells the peer of the connection that the session is to go on with, and waits until it knows: should this gateway die then, the peer
   * has to end what runs there, or its own session waits for the locks of this one.
   */
  private async introduce(connection: BackendConnection): Promise<void> {
    const { replica } = this;
    this.origin = connection.origin;
    replica?.renew();
    await replica?.known();
    if (!connection.wire.open)
      throw new CodedError(
        'OUTLIVE_EXCHANGE_CLOSED',
        'server',
        'the server closed the connection of a restored session',
      );
  }

  /** What of the open unit may have made up values that the client holds; null when nothing, or when they are not to be kept. */
  private gather(): unknown {
    const { mutables } = this.codec!;
    if (mutables === undefined || this.env.listener.mutables === 'strict' || !this.session!.openUnit) return null;
    if (this.unkept) return null;
    try {
      return mutables.gather(this.session!.seen());
    } catch (error) {
      this.cannotKeep(error);
      return null;
    }
  }

  /** The codec failed in keeping made-up values. */
  private unkept = false;

  /** Runs a part of keeping made-up values. Where the codec fails in it, the next attempt goes without. */
  private async keeping<R>(part: () => Promise<R>): Promise<R> {
    try {
      return await part();
    } catch (error) {
      if (!(error instanceof CodedError)) this.cannotKeep(error);
      throw this.coded(error);
    }
  }

  /** No session is lost because its values cannot be kept: what then differs is a divergence. */
  private cannotKeep(error: unknown): void {
    const { env } = this;
    const coded = this.coded(error);
    this.unkept = true;
    this.settle();
    env.stats.count(env.stats.errors, coded.code);
    const fields = { code: coded.code, listener: env.listener.name, stack: (coded.cause as Error)?.stack };
    env.log.error(fields, `made-up values of a moved session are not kept: ${coded.message}`);
  }

  private giveUpSearch(): void {
    const { env } = this;
    const session = this.session!;
    if (session.inDoubt) this.tell('unknown', outcomeUnknown(session.unit.unprovable ?? 'commit'));
    const reads = env.choice?.wish.target === 'standby';
    const code = reads ? 'OUTLIVE_NO_STANDBY' : 'OUTLIVE_NO_WRITABLE_SERVER';
    this.tell('unavailable', {
      code,
      kind: 'unavailable',
      message: `no server ${reads ? 'could be read from' : 'accepted writes'} within ${env.listener.failover.wait} ms`,
      hint: 'The connection is kept; try again.',
    });
    env.stats.count(env.stats.errors, code);
    this.endEpisode();
    this.tellState();
  }

  /** Where the open unit's token was taken: the last server connection. */
  private origin: BackendConnection['origin'] = null;

  /** @param over true once the search for which this is done is void */
  private async settleDoubt(over: () => boolean): Promise<void> {
    const { env } = this;
    const session = this.session!;
    const { unit } = session;
    if (session.state === 'suspended') this.tell('asking');
    this.tellState();
    const { token } = unit;
    let outcome: 'committed' | 'not-committed' | 'unknown' = 'unknown';
    if (unit.unprovable === null && token === null) outcome = 'not-committed';
    else if (unit.unprovable === null && token !== null && this.origin !== null) {
      outcome = await env.cluster.resolve(token, this.origin, this.episode!.deadline);
      // A row that is not there may have been removed: only for a while does that prove anything.
      const late = Date.now() - this.markedAt >= env.listener.outcome.retain / 2;
      if (token.mark !== undefined && outcome === 'not-committed' && late) outcome = 'unknown';
    }
    if (over()) return;
    env.stats.count(env.stats.outcomes, outcome);
    env.log.info({ listener: env.listener.name, outcome }, 'the outcome of an interrupted commit was asked for');
    if (outcome === 'committed') this.tell('committed');
    else if (outcome === 'not-committed') this.tell('notCommitted');
    else {
      env.stats.count(env.stats.errors, 'OUTLIVE_OUTCOME_UNKNOWN');
      this.tell('unknown', outcomeUnknown(unit.unprovable ?? 'commit'));
    }
  }

  /**
   * Where only the connection broke and the server has not noticed, its old session still holds the locks of this one, and what is
   * about to be repeated would wait for them.
   * @param over true once the search for which this is done is void
   * @param there true: the server has just let this session in, and is asked again where it does not answer. False: where it does not, nothing is done
   */
  private async endOldBackend(over: () => boolean, there = false): Promise<void> {
    const { origin } = this;
    const { cluster, choice, log } = this.env;
    if (origin === null || origin === this.endedOrigin) return;
    if (!there && (choice === null ? cluster.primary() !== origin.server : !origin.server.reachable)) return;
    for (let failures = 0; ; ) {
      try {
        if (over()) return;
        const verdict = await cluster.doubt(origin.server, origin.facts.instance, choice);
        if (over()) return;
        if (verdict === 'restarted') this.endedOrigin = origin;
        if (verdict === 'gone' && there)
          throw new CodedError('OUTLIVE_EXCHANGE_TIMEOUT', 'server', 'it did not answer');
        if (verdict !== 'same') return;
        await cluster.terminate(origin.server, origin.backendId, () => this.owes);
        this.endedOrigin = origin;
        return;
      } catch (error) {
        const { code, culprit } = error as CodedError;
        const passing = culprit === 'network' || culprit === 'server';
        if (!passing || ++failures >= END_ATTEMPTS) {
          log.warn(
            { server: origin.server.name, code },
            'an old session of a client could not be ended, and may hold locks',
          );
          return;
        }
        const pause = Math.min(MAX_BACKOFF_MS, END_BACKOFF_MS * 2 ** (failures - 1));
        await sleep(pause, undefined, { signal: this.abort.signal }).catch(() => {});
      }
    }
  }

  /** The origin whose session was ended, or ended with its server. */
  private endedOrigin: BackendConnection['origin'] = null;

  replayed(result: 'done' | 'diverged' | 'retry'): void {
    const { stats } = this.env;
    stats.count(stats.replays, result);
    if (result === 'retry') this.guarded(() => this.session!.lost());
  }

  learn(): void {
    const { identity } = this.greeting!;
    void this.env.cluster.refresh(identity.database, identity, this.env.choice).catch(() => undefined);
  }

  resumed(): void {
    this.endEpisode();
    this.tellState();
  }

  private endEpisode(): void {
    this.settle();
    if (this.episode !== null) {
      if (!this.episode.planned) this.env.stats.pause((this.env.now() - this.episode.since) / 1000);
      this.tried = { attempts: this.episode.attempts, answered: this.session!.answered };
    }
    this.episode = null;
    if (this.keepalive !== null) clearInterval(this.keepalive);
    this.keepalive = null;
  }

  /** What the session holds is either stored by now or given up. */
  private settle(): void {
    if (this.moving !== null) this.env.reservations.remove(this.moving);
    this.moving = null;
  }

  /** When the session last left a row that proves a commit, by the time of day: that goes on while this host is suspended. */
  private markedAt = 0;

  marked(database: string): void {
    this.markedAt = Date.now();
    this.env.marked(database);
  }

  acknowledged(token: OutcomeToken): void {
    if (this.origin !== null) this.env.cluster.acknowledged(this.origin.facts, token);
  }

  closeClient(): void {
    this.replica?.close();
    this.wire.end();
    this.end();
  }

  count(what: Parameters<SessionIo['count']>[0], label: string): void {
    const { stats, log, listener } = this.env;
    switch (what) {
      case 'divergence':
        stats.divergences++;
        stats.count(stats.errors, 'OUTLIVE_REPLAY_DIVERGED');
        log.warn(
          { listener: listener.name, statement: label },
          'a repeated statement answered differently than before',
        );
        break;
      case 'unprotected':
        stats.count(stats.unprotected, label);
        break;
      case 'in-doubt':
        stats.inDoubt++;
        break;
      case 'mark-refused':
        stats.count(stats.errors, 'OUTLIVE_MARK_REFUSED');
        log.error(
          { listener: listener.name, code: 'OUTLIVE_MARK_REFUSED', reason: label },
          'a transaction was rolled back: the row that proves its commit could not be written; run outlive setup',
        );
        break;
    }
  }

  // ----------------------------------------------------------------------------------------------------- from the gateway

  /** The client asks on another connection to cancel what it waits for. */
  async cancel(): Promise<void> {
    const { session, backend } = this;
    if (session === null) return;
    const { replica } = this;
    replica?.call(['cancel']);
    let held = false;
    this.guarded(() => {
      held = session.cancel();
    });
    replica?.done();
    if (!held && backend !== null)
      await this.env.cluster.cancel(backend.server, backend.login.cancelKey).catch(() => {});
  }

  /** Its way to another server, while it is on one. */
  private relocation: Relocation | null = null;
  /** Where it goes on, once it has left its server for another one. */
  private prepared: BackendConnection | null = null;
  private relocationOptions = { preferred: '', replay: false, deadline: 0 };

  /** True when it can be moved to another server without its client noticing more than a pause, as soon as it comes to a safe point. */
  get relocatable(): boolean {
    const { codec, session } = this;
    if (codec === null || session?.state !== 'live' || this.backend === null || this.standing !== null) return false;
    if (this.relocation !== null || this.recovering) return false;
    return codec.blockers().length === 0 && (codec.ties?.() ?? []).length === 0;
  }

  /**
   * Moves it to another server at its next safe point: when it is idle, or with `replay` also amid a transaction that is rolled back and
   * repeated there.
   * @param patience how long it is tried, in ms
   * @returns whether it left its server
   */
  relocate(to: ServerState, { replay, patience }: { replay: boolean; patience: number }): Promise<boolean> {
    if (!this.relocatable) return Promise.resolve(false);
    this.relocationOptions = { preferred: to.name, replay, deadline: this.env.now() + patience };
    return new Promise((resolve) => {
      this.relocation = new Relocation(this, patience, (left) => {
        this.relocation = null;
        resolve(left);
      });
      void this.relocation.start();
    });
  }

  /** {@link Relocatable.acquire} */
  acquire(signal: AbortSignal): Promise<BackendConnection> {
    const { preferred, deadline } = this.relocationOptions;
    const { cluster, choice } = this.env;
    const { identity } = this.greeting!;
    return cluster.acquire({ identity, startup: this.startup(), choice, preferred, deadline, signal });
  }

  /** {@link Relocatable.safe} */
  safe(): boolean {
    const { session, codec } = this;
    if (session === null || this.backend === null || this.recovering || this.standing !== null) return false;
    if (!session.atRest && !(this.relocationOptions.replay && session.betweenRequests)) return false;
    return codec!.blockers().length === 0 && (codec!.ties?.() ?? []).length === 0;
  }

  /** {@link Relocatable.change} */
  change(connection: BackendConnection): void {
    const { backend, session } = this;
    // What is at rest holds nothing on its old server; a transaction there must be gone before it is repeated.
    if (session!.atRest) this.endedOrigin = this.origin;
    this.prepared = connection;
    this.leaveServer(backend!);
    this.tell('lost');
  }

  /** The prepared connection, if it is still one. */
  private takePrepared(): BackendConnection | null {
    const { prepared } = this;
    this.prepared = null;
    if (prepared === null || prepared.wire.open) return prepared;
    discard(prepared);
    return null;
  }

  /** Says goodbye to the server. */
  private leaveServer({ wire }: BackendConnection): void {
    this.generation++;
    this.backend = null;
    wire.onData = ignore;
    wire.onDrain = ignore;
    wire.onClose = ignore;
    wire.end(this.codec?.synthesize.goodbye());
  }

  /** Chunks from both sides. */
  private chunks = 0;
  /** Since when nothing has come while the server owes something, and how often it said then that it waits for its client. */
  private quiet = { chunks: -1, generation: -1, since: 0, waited: 0 };

  /**
   * Looked at a few times per `silence`: is the link to the server alive? A server that owes an answer to this session, and says by
   * another way that it waits for its client, has not got the request, or its answer is lost.
   */
  async checkLink(silence: number): Promise<void> {
    const { session, backend, env, quiet, chunks, generation } = this;
    const { activity } = env.codec;
    if (session?.state !== 'live' || !session.waiting || this.serverHeld || activity === undefined) return;
    if (backend?.origin == null) return;
    const now = env.now();
    if (quiet.chunks !== chunks || quiet.generation !== generation) {
      this.quiet = { chunks, generation, since: now, waited: 0 };
      return;
    }
    if (now - quiet.since < silence / 2) return;
    const { name } = backend.server;
    const what = await env.cluster
      .ask(name, () => activity.call(env.codec, backend.origin!.backendId))
      // Where nobody answers, the monitor notices.
      .catch(() => null);
    if (quiet !== this.quiet || this.chunks !== chunks || this.generation !== generation || this.serverHeld) return;
    quiet.waited = what === 'waiting' || what === 'gone' ? quiet.waited + 1 : 0;
    // A server that works may do so for long.
    if (quiet.waited === 0) quiet.since = now;
    // Twice: the answer may have been on its way.
    if (quiet.waited < 2 || env.now() - quiet.since < silence) return;
    env.log.warn(
      { listener: env.listener.name, server: name, activity: what },
      'the link to the server lost an answer',
    );
    this.serverVoid();
  }

  /** The server of this session is void: silent, or superseded. */
  serverVoid(): void {
    const session = this.session;
    if (session === null || this.backend === null) return;
    this.tell('lost');
  }

  private tellState(): void {
    const { stats, listener } = this.env;
    const now = this.session?.state ?? null;
    if (now === this.statusTold) return;
    if (now === null && this.statusTold === null) return;
    stats.moveSession(listener.name, this.statusTold, now === 'closed' ? null : now);
    this.statusTold = now === 'closed' ? null : now;
  }

  private ended = false;

  /** All is over: lets go of everything. */
  end(): void {
    if (this.ended) return;
    this.ended = true;
    this.unmention();
    this.replica?.close();
    this.settle();
    this.relocation?.cancel();
    const { backend, prepared } = this;
    this.generation++;
    this.backend = null;
    this.prepared = null;
    if (prepared !== null) discard(prepared);
    if (this.session !== null && this.session.state !== 'closed') this.guarded(() => this.session!.close());
    if (backend !== null) this.leaveServer(backend);
    this.abort.abort();
    if (this.cancelKey !== '') this.env.keys.delete(this.cancelKey);
    if (this.keepalive !== null) clearInterval(this.keepalive);
    if (this.statusTold !== null) this.env.stats.moveSession(this.env.listener.name, this.statusTold, null);
    this.statusTold = null;
    this.onEnd();
  }
}

function outcomeUnknown(label: string): GatewayError {
  return {
    code: 'OUTLIVE_OUTCOME_UNKNOWN',
    kind: 'outcome-unknown',
    message: `the server was lost while it ran ${label}, and whether it took effect cannot be known`,
    hint: 'Look at the data before running it again.',
  };
}

function stateLost(blockers: readonly Blocker[]): GatewayError {
  const names = blockers.map(({ what, name }) => `${what} ${name}`).join(', ');
  return {
    code: 'OUTLIVE_STATE_LOST',
    kind: 'state-lost',
    message: `the session was moved to another server in a failover and lost: ${names}`,
    hint: 'The session goes on without it; create it again.',
  };
}

function ignore(): void {}
