/**
 * The contract between Outlive's core and its codecs and plugins. A codec or plugin imports this module and nothing else
 * of the project. It is published as `outlive/contract` and versioned by {@link CONTRACT_VERSION} (semantic versioning: a
 * codec built for 1.x loads into every core that offers 1.y with y >= x).
 *
 * A codec is sans-I/O: it gets bytes, and answers with facts. It opens no socket, reads no clock, awaits nothing. What
 * needs the outside world (random bytes, key derivation, TLS, a verifier of a user) is *wanted* from an exchange, see {@link Want}.
 */

export { CodedError, type Culprit, ProtocolViolation } from './errors.js';

/** Version of this contract. Codecs and plugins state the version that they were built for. */
export const CONTRACT_VERSION = '1.0.0';

// ---------------------------------------------------------------------------------------------------------------- frames

/** Bytes that came from the client. */
export const FRONTEND = 0;
/** Bytes that came from the server. */
export const BACKEND = 1;
export type Side = typeof FRONTEND | typeof BACKEND;

/** Forward as it came; the codec need not see the body. On the frontend side: input that continues the request in progress (bulk data). */
export const RELAY = 0;
/** Hand to `decode` first. */
export const INSPECT = 1;
export type Treatment = typeof RELAY | typeof INSPECT;

/** What `decode` says should happen to a backend frame. */
export const FORWARD = 0;
/** Never forwarded. */
export const SWALLOW = 1;
/** Forwarded only with the ready that follows: this frame tells the client that its request succeeded ({@link Request.guardable}). */
export const VERDICT = 2;
export type Disposition = typeof FORWARD | typeof SWALLOW | typeof VERDICT;

/** Filled in by {@link SessionCodec.peek}; one object is reused for every frame, so that the hot path allocates nothing. */
export interface FrameHeader {
  /** Whole length of the frame in bytes, header included. */
  length: number;
  /** Bytes that `decode` must be given at once: `length` for most inspected frames; when peek returned false, the bytes it needs to go on. */
  need: number;
  treatment: Treatment;
  /** True for frames that answer no request (notices, notifications, parameter changes): never compared. */
  asynchronous: boolean;
  /** True for notices (a kind of asynchronous frame): those that an injection caused are not the client's. */
  notice: boolean;
  /** True when this frame is a ready point of the server. */
  boundary: boolean;
  /** True when it ends amid something that the next frame goes on with: nothing else can be said to the client before that. False at first. */
  partial: boolean;
  /** The protocol's own frame type, for reports. */
  type: number;
}

// -------------------------------------------------------------------------------------------------------------- requests

/**
 * What a request may do, as far as the codec can know beforehand:
 * `read` nothing durable, repeatable; `session` only session state, repeatable; `write` durable change, transactional;
 * `begin`/`commit`/`rollback` transaction control; `opaque` anything, perhaps with commits inside: never repeated blindly.
 */
export type Effect = 'read' | 'session' | 'write' | 'begin' | 'commit' | 'rollback' | 'opaque';

/** One request: everything up to the next ready point. The codec emits it when its last byte is there. */
export interface Request {
  /** The protocol's name of it, for logs and metrics (`query`, `extended`, ...). Never data. */
  readonly kind: string;
  /** A name of the statement without data (its verb), for messages and reports. */
  readonly label: string;
  readonly effect: Effect;
  /** True when it also writes although its effect is `begin` or `commit`, or when a `write` is certain; a token is then needed. */
  readonly writes: boolean;
  /** Outside a transaction: may be wrapped into one, so that its outcome can be known ({@link SessionCodec.guard}). */
  readonly guardable: boolean;
  /** The request must be wrapped when outside a transaction, whatever its effect (part of a group that only a transaction holds together). */
  readonly mustGuard: boolean;
  /** Its ready point is not the client's: swallow it when it succeeded; when it failed, drop the parts that follow up to the first one that is not joined, and answer that one with this ready. */
  readonly joined: boolean;
  /** Hold what the client sends next until the server either asked for input or answered: the meaning of the next bytes depends on it. */
  readonly barrier: boolean;
  /**
   * True when the session begins anew with it: an open transaction is rolled back and its state is forgotten before it is run. What of these
   * was lost is then nothing that its client need hear of.
   */
  readonly renews?: boolean;
  /** False when its outcome, once in doubt, cannot be asked for (two-phase commit, a chained commit). */
  readonly provable: boolean;
}

/** State of the server's transaction as told at a ready point. */
export type TransactionStatus = 'idle' | 'open' | 'failed';

/** How the core must understand an error of the server. */
export type ErrorMeaning =
  /** An ordinary answer: pass it on. */
  | 'ordinary'
  /** The server says that it does not accept writes (any more): ask the topology whether it was demoted. */
  | 'read-only'
  /** The server ends the connection and it is unclear whether by an administrator's will or because it goes down: ask the topology. */
  | 'terminated'
  /** The server goes down or crashed: a failover. */
  | 'server-lost'
  /** The connection ends by someone's will (kill, idle timeout): pass it on, never repair it. */
  | 'intent'
  /** Serialization failure, deadlock: an ordinary answer to a client, a reason to try again during replay. */
  | 'retry';

export interface ServerError {
  readonly meaning: ErrorMeaning;
  /** The protocol's own code (SQLSTATE, error number as text). */
  readonly code: string;
  /** The server's message. It can hold data: never log it. */
  readonly message: string;
  /** True when the connection ends with it. */
  readonly fatal: boolean;
}

/** Where the codec reports facts. Implemented by the core. All calls happen inside `decode`. */
export interface Sink {
  /** A request is complete: these bytes ([start, end) of `bytes`) are to be sent to the server for it. */
  request(request: Request, bytes: Uint8Array, start: number, end: number): void;
  /**
   * The client cancels the request in progress in its own connection: these bytes go to the server out of turn, and the request is answered
   * by what its ready ends as ever.
   */
  interrupt(bytes: Uint8Array, start: number, end: number): void;
  /** The client says good-bye. */
  goodbye(): void;
  /** The server waits again; everything before is answered. Of a protocol whose servers do not tell the status, what asks for it. */
  ready(status: TransactionStatus | StatusQuestion): void;
  /** The server asks for bulk input of the request in progress: barriers open. */
  input(): void;
  /** The server answered with an error. */
  error(error: ServerError): void;
  /** From here on only a relay is possible (replication, a stream that the codec does not follow). Says why. */
  passThrough(reason: string): void;
}

// ------------------------------------------------------------------------------------------------------------- exchanges

/** What an exchange may want before it goes on. `send` bytes are written before waiting. */
export type Want =
  /** The next `count` raw bytes. */
  | { readonly want: 'bytes'; readonly count: number; readonly send?: Uint8Array }
  /** The next whole frame, header included (framed by {@link Codec.frameLength}). */
  | { readonly want: 'frame'; readonly send?: Uint8Array }
  /** Nothing back: only send. */
  | { readonly want: 'nothing'; readonly send: Uint8Array }
  /** Switch the connection to TLS now (server side on a frontend, client side on a backend). Reply: {@link TlsFacts}. */
  | { readonly want: 'tls'; readonly send?: Uint8Array; readonly alpn?: string; readonly handshake?: HandshakeWrap }
  /** `count` random bytes. */
  | { readonly want: 'random'; readonly count: number }
  /** PBKDF2-HMAC-SHA-256, 32 bytes. Slow: runs off the event loop. */
  | { readonly want: 'pbkdf2'; readonly password: Uint8Array; readonly salt: Uint8Array; readonly iterations: number }
  /** What the credentials plugin knows of this user; null when unknown. */
  | { readonly want: 'credentials'; readonly user: string; readonly database: string };

/** How the records of a TLS handshake travel, where they do not travel as they are. TLS up to version 1.2 is spoken then. */
export interface HandshakeWrap {
  /** What travels for these records, which are one flight. */
  wrap(records: Uint8Array): Uint8Array;
  /** The records in what came; what is wrapped no more comes out as it is. Throws {@link ProtocolViolation}. */
  unwrap(bytes: Uint8Array): Uint8Array;
}

export interface TlsFacts {
  /** Hash of the server's certificate for channel binding `tls-server-end-point` (RFC 5929), or null. */
  readonly endPoint: Uint8Array | null;
  /** The ALPN protocol that was agreed on, or null. */
  readonly alpn: string | null;
}

/** Reply to a {@link Want}: bytes for bytes/frame/random/pbkdf2, {@link TlsFacts} for tls, {@link Secret} or null for credentials, undefined for nothing. */
export type Reply = Uint8Array | TlsFacts | Secret | null | undefined;

/** A dialogue that the gateway leads; a generator. The core's one exchange driver runs it, in production, in tests and in simulation. */
export type Exchange<R> = Generator<Want, R, Reply>;

/** What is known to prove or check an identity. At least one is set. Never logged. */
export interface Secret {
  /** Plain password (UTF-8). */
  readonly password?: string;
  /** The server's stored verifier in its own text form (`md5...`, `SCRAM-SHA-256$...`). */
  readonly verifier?: string;
  /** Key learnt from the client's own proof, in the codec's own form: enough to log in wherever the same verifier is stored. */
  readonly clientKey?: Uint8Array;
}

/** How the gateway lets clients in, from the listener's configuration. */
export interface GreetContext {
  /** Accepted ways, e.g. `trust`, `password`, `md5`, `scram-sha-256`. The codec names those that it knows in `authMethods`. */
  readonly auth: string;
  readonly tls: 'off' | 'allow' | 'require';
  /** True when the connection started with a TLS handshake at once (direct TLS); the core then has done it. */
  readonly alreadyTls: TlsFacts | null;
}

/** What the client asked for when it came. */
export type Greeting =
  | {
      readonly kind: 'session';
      readonly identity: Identity;
      readonly startup: unknown;
      readonly passThrough: string | null;
      readonly tls: boolean;
    }
  /** Not a session: cancel the request of the session with this key. No answer is due. */
  | { readonly kind: 'cancel'; readonly key: Uint8Array }
  /** The client left or was refused with an answer; `error` says why when it was refused. */
  | { readonly kind: 'closed'; readonly error: ServerError | null };

export interface Identity {
  readonly user: string;
  readonly database: string;
  readonly secret: Secret | null;
}

export interface LoginContext {
  readonly identity: Identity;
  /** `startup` of the {@link Greeting}; null for the gateway's own logins (probe). */
  readonly startup: unknown;
  readonly tls: 'off' | 'prefer' | 'require';
}

/** A logged-in server connection, as plain facts. */
export interface LoginResult {
  /** The server's key for cancelling, opaque to the core. */
  readonly cancelKey: unknown;
  /** An id of the server's session by which it can be ended from elsewhere. */
  readonly backendId: string;
  /** Codec-specific facts (parameters told at login), plain data. */
  readonly facts: unknown;
  /** The database that the server put the session into, where that need not be what the client asked for. */
  readonly database?: string;
}

export type LoginOutcome =
  | { readonly ok: true; readonly login: LoginResult }
  /** Refused. `bytes` is the server's own refusal, to be passed on; `transient` when it may pass (starting up, too many clients). */
  | { readonly ok: false; readonly transient: boolean; readonly error: ServerError; readonly bytes: Uint8Array };

// --------------------------------------------------------------------------------------------------- probe, incarnation

/** Which database history a server lives in, in the codec's own form (plain data), with what the topology needs of it. */
export interface ServerFacts {
  readonly role: 'primary' | 'standby';
  readonly writable: boolean;
  /** Identity of the database history: equal on two servers exactly when a token of one means something on the other. */
  readonly system: string;
  /** Grows with every promotion. */
  readonly timeline: number;
  /** Changes with every start of the server process, and, where {@link timeline} does not grow, with every promotion. */
  readonly instance: string;
  /** Position in the log, comparable within a history; -1n when unknown. */
  readonly position: bigint;
  /** Bytes of log that this standby has not yet replayed, when it knows; else null. */
  readonly lagBytes: number | null;
  /** What `outcome.resolve` needs besides (switch points), plain data. */
  readonly history: unknown;
}

/** Proof to ask the outcome of a commit with, plain data; armed before the commit leaves. */
export interface OutcomeToken {
  /** The codec's own form, plain data; null where the proof is a row. */
  readonly token: unknown;
  /** The position of the log when it was taken; -1n where the proof is a row. */
  readonly position: bigint;
  /** The row to look for, where the proof is one. */
  readonly mark?: Mark;
}

/**
 * A row that a transaction puts into a table of the gateway's own just before it commits: it is there exactly when the transaction
 * committed. Plain data.
 */
export interface Mark {
  /** 16 bytes that nobody can guess, in hexadecimal. A transaction that is repeated has the same again, so it can commit only once. */
  readonly id: string;
  /** Name of the table, as the configuration has it. */
  readonly table: string;
  /** Where the session is logged in to. */
  readonly database: string;
}

/** `wait`: the old transaction is still running on this very server: end its backend and ask again. */
export type Outcome = 'committed' | 'not-committed' | 'wait' | 'unknown';

/** A small dialogue inside a live connection: the bytes are written in order with the client's requests and the answer never reaches the client. */
export interface Injection {
  readonly bytes: Uint8Array;
  /** Number of ready points that answer it. */
  readonly readies: number;
  /** One answering frame, whole, header included. */
  frame(bytes: Uint8Array, start: number, end: number): void;
  /** The error that the server answered with, if any. */
  failed(): ServerError | null;
  /** That error as the server sent it; null without one. */
  errorBytes(): Uint8Array | null;
  /** Called once after the last ready. */
  done?(): void;
}

/** Asked in the place of a ready, which counts when it is answered. */
export interface StatusQuestion extends Injection {
  /** Valid after the last ready. */
  status(): TransactionStatus;
}

export interface TokenInjection extends Injection {
  /** The token, or null when the transaction has nothing to commit. Valid after the last ready. */
  token(): OutcomeToken | null;
}

/** What became of putting a {@link Mark} into a transaction. */
export type Marked =
  /** The row is there. */
  | 'marked'
  /** There is nothing to commit, and no row. */
  | 'nothing'
  /** A row with this id was there: the transaction has committed before, and this is a repetition that must not. */
  | 'taken'
  /** It failed. */
  | 'refused';

export interface MarkInjection extends Injection {
  /** Valid after the last ready. */
  marked(): Marked;
  /**
   * Of one that was refused: what is wrong with the table, in words without data; null when the failure is the transaction's own (a
   * serialization failure, a cancel), which its client is told as it is.
   */
  fault(): string | null;
}

/** How a session leaves marks: see {@link Mark}. */
export interface Marker {
  /** Puts the row into the open transaction, if that has something to commit, or may have. */
  insert(mark: Mark): MarkInjection;
  /**
   * A commit that stands right behind it fails when it fails (`taken` and `refused`): both leave in one write. False: the commit waits for the
   * answer, a round trip, and where that is `taken` or `refused` a rollback takes its place.
   */
  readonly binding: boolean;
}

/** The server's side of marks, over connections of the gateway's own to the database of the session: see {@link Mark}. */
export interface Markers {
  /** The table's name where the configuration gives none. */
  readonly defaultTable: string;
  /** Words for what is wrong with a name for the table; null when it can be one. */
  wrongTable(table: string): string | null;
  /**
   * Is the row there? Asked when the transaction cannot end any more: its server is fenced or dead, or its backend gone.
   * @param origin the server as it was when the transaction ran
   * @returns `unknown` where no answer is proof: on a standby, in another history, or when the table may not be read
   */
  find(mark: Mark, origin: ServerFacts): Exchange<'present' | 'absent' | 'unknown'>;
  /** What sets the table up or mends it: statements, to be run in one transaction. May be run any number of times. */
  setup(table: string, reader: string): readonly string[];
  /** Who may do what with the table afterwards, and what whoever sets it up needs, in words. */
  rights(table: string, reader: string): readonly string[];
  /** Runs them. Throws a CodedError that says what the user may not do. */
  install(statements: readonly string[]): Exchange<void>;
  /** What is missing for sessions to leave marks and for this connection's user to find and remove them, in words; nothing when all is well. */
  inspect(table: string): Exchange<readonly string[]>;
  /** Removes the rows that are older than so many ms. Returns how many. */
  remove(table: string, olderThan: number): Exchange<number>;
}

// ---------------------------------------------------------------------------------------------------------------- codec

/** What a session does on its server: it works on something, waits for its client (to speak, or to listen), or is not there. */
export type Activity = 'working' | 'waiting' | 'gone';

/** What the core tells a codec when it makes one for a session. */
export interface SessionContext {
  readonly greeting: Extract<Greeting, { kind: 'session' }>;
  /** What {@link Codec.learn} last brought for this database, undefined while nothing is known. Called whenever it matters. */
  readonly shared: () => unknown;
  readonly options: unknown;
}

/** One request of the open unit as the client knows it. */
export interface SeenRequest {
  readonly request: Request;
  /** What the client sent for it, bulk input included. */
  readonly input: readonly Uint8Array[];
  /** What the client got of the answer, without the ready that ends it; null when only a digest was kept. */
  readonly answer: readonly Uint8Array[] | null;
  /** The client got all of it. */
  readonly done: boolean;
}

/** How a request is to be sent in place of its own bytes, so that it yields what the client has seen. */
export interface Repetition {
  /** What must be prepared first, answered by one ready point; the client gets nothing of it. Null when nothing must. */
  readonly before: Uint8Array | null;
  /** Ends at one ready point, like the request itself. */
  readonly bytes: Uint8Array;
  /** Why parts of the answer may differ all the same: by the name of the part (a column), in words without data. */
  readonly doubts: ReadonlyMap<string, string>;
}

/** Values that a server makes up (sequences, clocks, random numbers): a repeated unit must yield those that the client holds. */
export interface Mutables {
  /**
   * What in these requests may have made up values, as plain data; null when nothing may. Before {@link SessionCodec.rewind} has been
   * called for the new server or after it, with the same result.
   */
  gather(seen: readonly SeenRequest[]): unknown;
  /**
   * Makes sure that the server never makes up again what clients hold. Over a connection logged in as their user.
   * @param gathered of all sessions of this user on this database that were moved
   * @returns what was found out on the way and saves the same questions in {@link plan}
   */
  reserve(gathered: readonly unknown[]): Exchange<unknown>;
  /** What {@link reserve} could not do with its user's rights: to be run as the gateway's own user on the same database. Null: nothing. */
  unreserved(found: unknown): Exchange<void> | null;
  /**
   * How each of the requests that were gathered is to be repeated; null: as it is. Over the session's own new connection.
   * @param found by {@link reserve}, for the session among others
   */
  plan(gathered: unknown, found: unknown): Exchange<readonly (Repetition | null)[]>;
  /** True while the client knows something of its transaction or session that this server does not: {@link adjust} is asked then. */
  readonly adjusting: boolean;
  /**
   * What must be asked of the server, in its open transaction, before {@link adjust} understands a request; to be asked again until it
   * is null.
   */
  inquire(request: Request, bytes: Uint8Array, start: number, end: number): Injection | null;
  /** The same as {@link plan} for a request of the client's own. */
  adjust(request: Request, bytes: Uint8Array, start: number, end: number): Repetition | null;
  /** An injection of {@link Repetition.before}. */
  prepare(before: Uint8Array): Injection;
  /**
   * Names the part of an answer (a column) in which a repeated one differs.
   * @param answer what the client got
   * @param offset canonical bytes in front of the first one that differs
   * @param got the frame that came instead, whole; null when it is not at hand
   */
  partAt(answer: readonly Uint8Array[], offset: number, got: Uint8Array | null): string | null;
}

/** A named reason why a session cannot be moved as it is. */
export interface Blocker {
  /** Kind, e.g. `temporary table`. */
  readonly what: string;
  /** Which one, an identifier of the schema, never data. */
  readonly name: string;
}

/**
 * How the frames of a session travel, where they do not travel as they are: in packets of a size that each connection has of its own, or
 * in terms that only one connection understands. The core sees frames alone, in the client's terms.
 */
export interface Carriage {
  /** Length of the frame at `start`, whose header is there. */
  frameLength(bytes: Uint8Array, start: number, end: number): number;
  /** The whole frames in what came from a side; what does not make one yet is kept. Throws {@link ProtocolViolation}. */
  unpack(side: Side, bytes: Uint8Array): Uint8Array;
  /** Whole frames as bytes for a side. Some may be kept until more is said; none that ends an answer or a request. */
  pack(side: Side, frames: Uint8Array): Uint8Array;
  /** Something that the client was told is kept: nothing may be said past {@link pack}. */
  readonly holding: boolean;
  /** Bytes of a client's frame that are kept until its end has come: bounded by `limits.request`. */
  readonly collecting: number;
}

/**
 * The codec of one session: follows both directions, knows the session's state. Everything it keeps must be plain data, so that
 * `freeze` can hand it to another process.
 */
export interface SessionCodec {
  /** Absent where frames are what travels. All other members get and give frames, but for {@link welcome} and what an exchange sends. */
  readonly carriage?: Carriage;
  /** The server takes one request at a time: the next one is sent when the one before is answered. */
  readonly serial?: boolean;
  /** Reads the header at [start, end) of `bytes`; false when it needs more bytes (`out.need` of them from `start`). Throws {@link ProtocolViolation}. */
  peek(side: Side, bytes: Uint8Array, start: number, end: number, out: FrameHeader): boolean;
  /**
   * Where the whole frames from `start` on that {@link peek} would have relayed end: a run of them costs one call. The frame behind
   * them, if any, is left to peek.
   */
  relayed?(bytes: Uint8Array, start: number, end: number): number;
  /** Understands one inspected frame. The return value matters for backend frames only. */
  decode(side: Side, bytes: Uint8Array, start: number, end: number, sink: Sink): Disposition;

  /** The bytes that welcome the client after login: what the server said, with the gateway's own cancel key. */
  welcome(login: LoginResult, cancelKey: Uint8Array): Uint8Array;
  /** Bytes to tell a client of differences between what it was told at first login and the new server (may be empty). */
  announce(login: LoginResult): Uint8Array;

  /** Set by the codec when what {@link Codec.learn} brought has changed; reset by the core. */
  stale: boolean;
  /** Bytes of the request that is being collected and not yet emitted. */
  readonly collecting: number;
  /** Told when a request's bytes go to the server. */
  sent(request: Request): void;
  /** A transaction of the gateway's own around the client's requests begins: success is told by {@link VERDICT} frames now. */
  guardBegun(): void;
  /** That transaction is over. */
  guardEnded(committed: boolean): void;
  /**
   * The connection is lost. Forget what belonged to it and what the requests that were not finally answered did to the session's
   * state: they are about to be repeated.
   */
  rewind(): void;
  /** The open unit will not be repeated after all: what of it outlives a rollback is kept, as far as the client knows of it. */
  abandon(): void;

  /**
   * An injection that asks the server what the codec must know of the session's state after the unit that just ended, or null.
   * Outside a transaction only.
   * @param held the end of that unit waits for the answer: when the connection is lost before, the unit is repeated
   */
  observe(held: boolean): Injection | null;
  /** What stands in the way of moving the session (outside of its open unit). */
  blockers(): Blocker[];
  /**
   * What ties the session to its server although it could be had again after a loss: by then something would be missed, or be somebody
   * else's. Not moved without need while there is any.
   */
  ties?(): Blocker[];
  /** The blockers were reported to the client and are gone for good. */
  forgetBlockers(): void;
  /** Brings a fresh connection, logged in to as `login` tells, to the session's state as of the last unit's end. Returns what could not be had again. */
  restore(login: LoginResult): Exchange<Blocker[]>;

  /** Transactions of the gateway's own. Null where the protocol has none. */
  readonly guard: {
    begin(): Injection;
    commit(): Injection;
    rollback(): Injection;
    /** Puts the open transaction into the failed state, as an error of a statement does. Absent where there is no such state. */
    fail?(): Injection;
    /** What fails undoes itself alone: what else the guarded request did is committed all the same, unless its transaction is over. */
    readonly keeps?: boolean;
  } | null;
  /** Learns the outcome token of the open transaction. Null where the protocol has none. */
  readonly token: (() => TokenInjection) | null;
  /**
   * The same in one go with a request, at the request's own ready point: `bytes` of the result are sent in place of the request's,
   * and the codec itself understands and swallows what answers the question; the result is valid after the request's ready. A
   * request that fails takes the question with it. Null when the request's shape does not allow it.
   */
  tokenAlong?(request: Request, bytes: Uint8Array, start: number, end: number): TokenInjection | null;
  /** Leaves marks, where the listener wants its commits to be proved by them: no token is asked for then. Absent where it cannot. */
  readonly marker?: Marker;

  /** Synthesis: the gateway speaks as the server, legal where it is needed. */
  readonly synthesize: {
    /** An error that answers the request in progress, with the ready that follows it (unless that answers something that the client has yet to send). */
    error(error: GatewayError, status: TransactionStatus): Uint8Array;
    /** An error that ends the connection. */
    fatal(error: GatewayError): Uint8Array;
    /** The answer to a commit request that took effect although its answer was lost, without the first `released` frames that were delivered, and without the ready when it is joined. */
    committed(request: Request, released: number): Uint8Array;
    /**
     * The answer to a rollback whose transaction is gone with its server, without the first `released` frames that were delivered. Present
     * where the protocol knows no failed transaction: one that cannot go on is over when {@link error} has told so with `failed`.
     */
    rolledBack?(request: Request, released: number): Uint8Array;
    /**
     * Tells a client that {@link Sink.interrupt}s that this was heard. Present where clients can.
     * @param unanswered the request came to nothing here, and is answered by nothing else
     */
    interrupted?(unanswered: boolean): Uint8Array;
    /** The ready alone. */
    ready(status: TransactionStatus): Uint8Array;
    /** Harmless bytes that show a waiting client that it is not forgotten; legal between frames. Null when the protocol has none. */
    keepalive(message: string): Uint8Array | null;
    /** Sent to a server connection that is no longer wanted. */
    goodbye(): Uint8Array;
  };

  /** Which bytes of an answering frame count when a replay is compared: the canonical form, or null when none do. [start, end) is whole, header included. */
  canonical(bytes: Uint8Array, start: number, end: number): Uint8Array | null;
  /** True when the frame whose header stands at `start` counts byte for byte: its canonical form is the frame itself, and it may be compared and released in pieces. */
  verbatim(bytes: Uint8Array, start: number): boolean;

  /** How made-up values are kept when a unit is repeated; absent where a codec cannot: what differs is a divergence then. */
  readonly mutables?: Mutables;

  /**
   * All that this codec knows, as plain data (what `structuredClone` takes), for {@link Codec.thaw} in another process. Requests that the core
   * holds as well are the same objects in it: both are serialized as one graph. Called only while no answer to an injection is awaited;
   * null when it cannot be told at this moment for another reason.
   */
  freeze(): unknown;
}

/** Errors that the gateway itself answers with; the codec puts them into the protocol's terms. */
export interface GatewayError {
  /** Outlive's own code, see ERRORS.md. */
  readonly code: string;
  /** What kind of thing the client should understand, protocol-neutral. */
  readonly kind:
    | 'retry-transaction'
    | 'outcome-unknown'
    | 'state-lost'
    | 'unavailable'
    | 'too-large'
    | 'protocol'
    | 'refused'
    | 'cancelled'
    | 'internal'
    | 'too-many';
  readonly message: string;
  readonly hint?: string;
}

export interface Capabilities {
  readonly login: boolean;
  readonly state: boolean;
  readonly outcome: boolean;
  readonly comparison: boolean;
  readonly probe: boolean;
  /** Its sessions have {@link SessionCodec.mutables}. */
  readonly mutables: boolean;
}

/** A codec: one wire protocol. The default export of a codec package. */
export interface Codec {
  readonly name: string;
  /** The contract version it was built for. */
  readonly contract: string;
  readonly defaultPort: number;
  readonly capabilities: Capabilities;
  /** Names of the ways in that it knows (`auth` of a listener). */
  readonly authMethods: readonly string[];
  /** What is not protected with this codec, for `outlive check` and the documentation. */
  readonly unprotected: readonly string[];
  /** What tells a client that it is let in, when a refusal of the server's login follows instead of a welcome. */
  readonly accepted: Uint8Array;
  /** ALPN name for TLS that starts at once, or null. */
  readonly alpn: string | null;
  /** Length of the frame at [start, end) in an exchange (after the start-up), 0 when more bytes are needed. Throws {@link ProtocolViolation}. */
  frameLength(bytes: Uint8Array, start: number, end: number): number;
  /** Meets a client. */
  greet(context: GreetContext): Exchange<Greeting>;
  /** Logs in to a server. */
  login(context: LoginContext): Exchange<LoginOutcome>;
  /** What a client asked for when it came (`startup`), made so that its session only reads, unless its client asks for more by itself. */
  readOnly?(startup: unknown): unknown;
  /** Learns facts shared by all sessions of a database, over a connection logged in to it. */
  learn?(): Exchange<unknown>;
  /** Is the server alive, what is its role? Over a logged-in connection of the gateway's own. */
  probe?(): Exchange<ServerFacts>;
  /** Did the commit of this token take effect? Over a connection of the gateway's own to the server described by `server`. `origin` is the server as it was when the token was taken. */
  resolve?(token: OutcomeToken, origin: ServerFacts, server: ServerFacts): Exchange<Outcome>;
  /** Proof of commits by rows, for sessions that have {@link SessionCodec.marker}. */
  readonly markers?: Markers;
  /** Where the history of `server` left `timeline`; null when that is not known. For counting acknowledged commits that are missing. */
  switchPoint?(server: ServerFacts, timeline: number): bigint | null;
  /** How many of these committed transactions, whose tokens lie before the switch point, does the server lack? Over a connection of the gateway's own. */
  missing?(tokens: readonly OutcomeToken[]): Exchange<number>;
  /** Ends the session `backendId` on the server. True when it is gone. Over a connection of the gateway's own. */
  terminate?(backendId: string): Exchange<boolean>;
  /** What does the session `backendId` do on the server? Null when that cannot be told. Over a connection of the gateway's own. */
  activity?(backendId: string): Exchange<Activity | null>;
  /** Asks for the credentials of a user over a connection of the gateway's own (an auth query). */
  lookup?(query: string, user: string): Exchange<Secret | null>;
  /** The whole dialogue of a cancel request, on a connection of its own. */
  cancel?(cancelKey: unknown): Exchange<void>;
  /** Length of the cancel key to hand to the client, as long as the server's own. */
  cancelKeyLength(login: LoginResult): number;
  /** The refusal of a client that was not even greeted (too many, shutting down). */
  refuse(error: GatewayError): Uint8Array;
  session(context: SessionContext): SessionCodec;
  /** The codec of a session as {@link SessionCodec.freeze} left it. */
  thaw(context: SessionContext, frozen: unknown): SessionCodec;
  /** Runs through what only a failover needs, without effect, so that the first one does not wait for code that never ran. May take 0.1 s. */
  warmUp?(): void;
}

// --------------------------------------------------------------------------------------------------------------- plugins

/** What a plugin gets from the core besides its own options. */
export interface PluginContext {
  readonly log: Log;
  /** Aborted when the gateway stops. */
  readonly signal: AbortSignal;
  /** Runs an exchange on a server connection of the gateway's own (logged in as the listener's or topology's monitor user). Plugins that need none ignore it. */
  ask<R>(server: string, exchange: () => Exchange<R>): Promise<R>;
  /** Asks a server for the credentials of a user with a query of the configuration; absent where the codec cannot. */
  readonly lookup?: (query: string, user: string) => Promise<Secret | null>;
  /** Runs a command without a shell; rejects with a coded error when it fails or does not end in time. */
  run(
    command: readonly string[],
    env: Record<string, string>,
    timeoutMs: number,
  ): Promise<{ stdout: string; stderr: string }>;
  /** Reads a file. */
  readFile(path: string): Promise<string>;
  /** Of an address plugin: the address to be moved, numeric. */
  readonly address?: string;
  /** Tells the neighbours on a network interface that an address is here (gratuitous ARP, unsolicited neighbour advertisement); needs privileges. */
  readonly announce?: (address: string, networkInterface: string) => Promise<void>;
}

export interface Log {
  debug(fields: Record<string, unknown>, message: string): void;
  info(fields: Record<string, unknown>, message: string): void;
  warn(fields: Record<string, unknown>, message: string): void;
  error(fields: Record<string, unknown>, message: string): void;
}

/** Looks up the secret of a user. */
export interface CredentialsPlugin {
  lookup(user: string, database: string): Promise<Secret | null>;
}

/** A command that changes the cluster: promotes a standby, fences a lost primary. */
export interface ActionPlugin {
  /** Resolves when done. `server` is the name of the server in the configuration. */
  act(server: string, facts: { readonly host: string; readonly port: number }): Promise<void>;
}

/** Who owns something, for one term. */
export interface Term {
  /** Name of the gateway. */
  readonly owner: string;
  /** Greater than those of all terms before of the same key, whoever had them. */
  readonly epoch: number;
}

/** A term that is held. */
export interface Lease extends Term {
  /**
   * Until then nobody else can get it, on the clock `performance.now()` of this process, in ms; moves on with each renewal, and is counted
   * from the moment when the renewal was asked for, not when it was answered.
   */
  readonly validUntil: number;
  /** Gives it up, so that another one need not wait for its end. Never rejects: what cannot be given up ends by itself. */
  release(): Promise<void>;
}

/** Terms of ownership in a store that survives the loss of some of its parts. */
export interface LeasePlugin {
  /** Length of a term without renewal, in ms. */
  readonly ttl: number;
  /** This gateway becomes known to the others; ends with {@link close}, or a while after the gateway died. */
  join(name: string, data: Readonly<Record<string, string>>): Promise<void>;
  /** The gateways that are alive, this one included, by name, with what they gave. */
  members(): Promise<ReadonlyMap<string, Readonly<Record<string, string>>>>;
  /**
   * Tries to get `key` for `owner`; null when somebody else holds it. It is renewed until it is released or lost. Rejects with a CodedError
   * when the store cannot be asked.
   *
   * @param heir whoever holds it under the same name is known to be dead: its term is taken on at once, under a new epoch. Default false
   */
  acquire(key: string, owner: string, heir?: boolean): Promise<Lease | null>;
  /** Who holds `key`; null when nobody does. Rejects when the store cannot be asked. */
  holder(key: string): Promise<Term | null>;
  /** Calls `changed` whenever the holder of `key` changes, until the returned function is called. */
  watch(key: string, changed: (holder: Term | null) => void): () => void;
  /** When the store last answered, on the clock `performance.now()`; 0 when it never did. */
  readonly heard: number;
  close(): Promise<void>;
}

/** Makes this host the one that packets for an address come to. */
export interface AddressPlugin {
  /**
   * Takes the address. `lifetime` (ms): the host must let go of it by itself when it is not renewed in time; null: it is kept until
   * {@link drop}. Does not tell the neighbours.
   */
  take(lifetime: number | null): Promise<void>;
  /** Goes on having it for `lifetime` ms from now. */
  renew(lifetime: number): Promise<void>;
  /** Lets go of it; no error when it is not here. */
  drop(): Promise<void>;
  /** Tells the neighbours where the address is now. */
  announce(): Promise<void>;
}

/** A plugin package's default export. */
export interface PluginModule {
  readonly name: string;
  readonly contract: string;
  readonly kind: 'credentials' | 'promote' | 'fence' | 'lease' | 'address';
  /** Validates its options (throws a CodedError that names the path) and starts. */
  create(
    options: unknown,
    context: PluginContext,
  ): Promise<CredentialsPlugin | ActionPlugin | LeasePlugin | AddressPlugin>;
}
