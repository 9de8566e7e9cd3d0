import { isDeepStrictEqual } from 'node:util';
import { serialize } from 'pg-protocol';
import { describe, expect, it } from 'vitest';
import postgres from '../../codecs/postgres/index.js';
import { gather } from '../../codecs/postgres/mutables/plan.js';
import { WARM_FOUND, WARM_UNIT } from '../../codecs/postgres/mutables/warm.js';
import { parseCatalogue } from '../../codecs/postgres/sql/index.js';
import type {
  Exchange,
  GatewayError,
  LoginResult,
  Repetition,
  SeenRequest,
  SessionContext,
  Want,
} from '../../core/contract/index.js';
import { type Capsule, freezeBytes, thawBytes } from '../../core/session/capsule.js';
import type { ProofPolicy } from '../../core/session/proof.js';
import { Session } from '../../core/session/session.js';
import type { SessionIo, SessionLimits } from '../../core/session/world.js';
import { CORPUS } from '../kit/corpus.js';
import { BY_MARKER, BYTES, type Cutter, MadeUpDatabase, MadeUpServer, WHOLE } from '../kit/engine.js';
import { message } from '../kit/gateway.js';
import { type Randomness, randomness } from '../kit/random.js';
import { BATCHES, SAVEPOINTS, TRANSACTIONS } from '../kit/scripts.js';

/**
 * A session that is frozen, made bytes of, and thawed goes on as the one that it was taken from: the same inputs give the same words to the
 * client, to the server and to the host. What a session is told is noted with all that it does about it; copies of it are told the same.
 */

const Q = (text: string): Buffer => serialize.query(text);
const P = (name: string, text: string) => serialize.parse({ name, text });
const B = (statement = '', portal = '', values: string[] = []) => serialize.bind({ statement, portal, values });
const E = (portal = '', rows = 0) => serialize.execute({ portal, rows });
const D = (name = '') => serialize.describe({ type: 'P', name });
const S = serialize.sync() as Buffer;
const H = serialize.flush() as Buffer;
const x = (text: string, name = '') => Buffer.concat([P(name, text), B(name), D(), E()]);
const d = (text: string) => serialize.copyData(Buffer.from(text));
const c = serialize.copyDone() as Buffer;
const all = (...parts: Buffer[]) => Buffer.concat(parts);

const LOGIN: LoginResult = {
  cancelKey: null,
  backendId: '1',
  facts: { protocol: { major: 3, minor: 0 }, parameters: [['server_version', '18.0']], notices: [] },
};
const NEWER: LoginResult = {
  ...LOGIN,
  facts: { ...(LOGIN.facts as object), parameters: [['server_version', '18.1']] },
};

const GONE: GatewayError = { code: 'OUTLIVE_NO_WRITABLE_SERVER', kind: 'unavailable', message: 'no server' };
const LOST: GatewayError = { code: 'OUTLIVE_STATE_LOST', kind: 'state-lost', message: 'something is gone' };

/** What is known of the database: functions that are safe, those of them that touch the session, and a setting that they make. */
const SHARED = {
  catalogue: parseCatalogue(
    ['s now', 's set_config', 's pg_advisory_lock', 's pg_advisory_unlock', 's f', 'u f', 'u g', 'c own.setting'].map(
      (row) => row.split(' '),
    ),
  ),
};

// --------------------------------------------------------------------------------------------------------- what is noted

/** One input, and what came of it. */
interface Op {
  readonly name: string;
  readonly args: readonly unknown[];
  /** What the session did to its world. */
  readonly out: readonly string[];
  /** What the host can see of it afterwards. */
  readonly facts: string;
  /** The session behind this input; null when it could not be told. */
  readonly capsule: Uint8Array | null;
}

/** What sessions of a trace have in common. */
interface Setting {
  readonly limits: SessionLimits;
  readonly context: SessionContext;
  /** What the host does when the server says something doubtful. */
  readonly doubt: 'lost' | 'ask';
}

interface Trace extends Setting {
  readonly what: string;
  readonly ops: readonly Op[];
}

const plain = (value: unknown): unknown =>
  value instanceof Uint8Array
    ? Buffer.from(value).toString('latin1')
    : typeof value === 'bigint'
      ? `${value}n`
      : value instanceof Map || value instanceof Set
        ? [...value]
        : value;
const written = (value: unknown): string => JSON.stringify(value, (_, part: unknown) => plain(part)) ?? 'undefined';
const copied = (args: readonly unknown[]) => args.map((arg) => (arg instanceof Uint8Array ? Buffer.from(arg) : arg));

/** A world that writes down what is done to it. */
function noting(
  out: string[],
  answers: { durable(): boolean; doubt(): void; recover?(): void; toServer?(b: Uint8Array): void },
): SessionIo {
  const note =
    (name: string) =>
    (...args: unknown[]): void => {
      out.push(`${name} ${args.map((arg) => written(plain(arg))).join(' ')}`);
    };
  return {
    toClient: note('toClient'),
    toServer: (bytes) => {
      note('toServer')(bytes);
      answers.toServer?.(bytes);
    },
    readClient: note('readClient'),
    corkServer: note('corkServer'),
    doubt: (error) => {
      note('doubt')(error);
      answers.doubt();
    },
    recover: () => {
      note('recover')();
      answers.recover?.();
    },
    replayed: note('replayed'),
    learn: note('learn'),
    resumed: note('resumed'),
    marked: note('marked'),
    acknowledged: note('acknowledged'),
    closeClient: note('closeClient'),
    durable: () => {
      const may = answers.durable();
      note('durable')(may);
      return may;
    },
    count: note('count'),
  };
}

/** Leads an exchange; what it wants is noted. */
function lead(exchange: Exchange<unknown>, out: string[], frame: (send: Uint8Array | undefined) => Uint8Array): void {
  let step = exchange.next();
  while (!step.done) {
    out.push(`wants ${written(step.value)}`);
    step = exchange.next(frame((step.value as Extract<Want, { want: 'frame' }>).send));
  }
  out.push(`exchange ${written(step.value)}`);
}

/** What of a request may be looked at: in what pieces it came is of no account. */
function told({ request, input, answer, done }: SeenRequest): unknown[] {
  return [request.label, Buffer.concat(input), answer && Buffer.concat(answer), done];
}

/** Tells a session something, as it is noted. */
function tell(session: Session, name: string, args: readonly unknown[], out: string[]): void {
  const { codec } = session;
  const frames = args.at(-1) as Uint8Array[];
  try {
    if (name === 'restore') lead(codec.restore(LOGIN), out, () => frames.shift()!);
    else if (name === 'plan') lead(codec.mutables!.plan(args[0], args[1]), out, () => frames.shift()!);
    else if (name === 'forgetBlockers') codec.forgetBlockers();
    else if (name === 'seen') out.push(`seen ${written(session.seen().map(told))}`);
    else {
      const method = session[name as 'lost'] as (...args: readonly unknown[]) => unknown;
      out.push(`returns ${written(method.apply(session, [...args]))}`);
    }
  } catch (error) {
    out.push(`throws ${String(error)}`);
  }
}

function factsOf(session: Session): string {
  const { state, clientStatus, inDoubt, waiting, openUnit, ending, full, answered, codec } = session;
  const { unprovable, token } = session.unit;
  const own = [codec.stale, codec.collecting, codec.mutables!.adjusting, codec.blockers()];
  return written([state, clientStatus, inDoubt, waiting, openUnit, ending, full, answered, unprovable, token, ...own]);
}

// ------------------------------------------------------------------------------------------------------ where it comes from

/** Anything that answers what a gateway sends. */
interface Server {
  feed(bytes: Uint8Array): Buffer;
}

/** The answer to a statement that is to fail. */
const NOT: readonly string[][] = [];

/**
 * A server that takes everything: it answers a statement with its first word, one with `fail` in it with an error, and gives the rows that it
 * is told to give.
 */
class Parrot implements Server {
  private input: Buffer = Buffer.alloc(0);
  private out: Buffer[] = [];
  private status = 'I';
  private skipping = false;
  private readonly statements = new Map<string, string>();
  private readonly portals = new Map<string, string>();

  /**
   * @param rows of the answer to a statement
   * @param xid whether transactions have an id
   */
  constructor(
    private readonly rows: (text: string) => readonly string[][] = () => [],
    private readonly xid = true,
  ) {}

  feed(bytes: Uint8Array): Buffer {
    this.input = all(this.input, Buffer.from(bytes));
    while (this.input.length >= 5 && this.input.length > this.input.readInt32BE(1)) {
      const end = 1 + this.input.readInt32BE(1);
      this.take(String.fromCharCode(this.input[0]), this.input.toString('latin1', 5, end).split('\0'));
      this.input = this.input.subarray(end);
    }
    const out = all(...this.out);
    this.out = [];
    return out;
  }

  private take(type: string, [first, second]: string[]): void {
    const say = (...args: Parameters<typeof message>) => this.out.push(message(...args));
    if (type === 'S') this.skipping = false;
    if (this.skipping) return;
    if (type === 'Q') {
      for (const text of first.split(';')) if (!this.run(text.trim())) break;
      say('Z', this.status);
    } else if (type === 'P') {
      this.statements.set(first, second);
      say('1');
    } else if (type === 'B') {
      this.portals.set(first, this.statements.get(second) ?? 'fail');
      say('2');
    } else if (type === 'D') say('n');
    else if (type === 'E') this.skipping = !this.run(this.portals.get(first) ?? 'fail');
    else if (type === 'C') say('3');
    else if (type === 'F') {
      say('V', Buffer.from(this.xid ? [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 9] : [255, 255, 255, 255]));
      say('Z', this.status);
    } else if (type === 'S') say('Z', this.status);
  }

  private run(text: string): boolean {
    const verb = text.split(' ')[0].toUpperCase();
    const rows = this.rows(text);
    const failed =
      rows === NOT || text.includes('fail') || (this.status === 'E' && verb !== 'ROLLBACK' && verb !== 'COMMIT');
    if (failed) {
      this.out.push(message('E', 'SERROR\0VERROR\0C42601\0Mno\0\0'));
      if (this.status === 'T') this.status = 'E';
      return false;
    }
    for (const row of rows) {
      const columns = row.flatMap((value) => [Buffer.from([0, 0, 0, value.length]), value]);
      this.out.push(message('D', Buffer.from([0, row.length]), ...columns));
    }
    if (verb === 'BEGIN') this.status = 'T';
    if (verb === 'COMMIT' || (verb === 'ROLLBACK' && !text.toUpperCase().includes(' TO '))) this.status = 'I';
    this.out.push(message('C', `${verb}\0`));
    return true;
  }
}

interface RigOptions extends Partial<SessionLimits> {
  readonly server?: () => Server;
  readonly shared?: () => unknown;
  readonly doubt?: Setting['doubt'];
  /** The peer has to know first what may make something durable. */
  readonly held?: boolean;
  /** The first server is one on which nothing can be written. */
  readonly readOnly?: boolean;
  /** How commits are proved; by position where nothing is said. */
  readonly proof?: ProofPolicy;
}

/** A session between a scripted client and a server, whose inputs are noted. */
class Rig implements Setting {
  readonly database = new MadeUpDatabase();
  readonly limits: SessionLimits;
  readonly context: SessionContext;
  readonly doubt: Setting['doubt'];
  readonly session: Session;
  readonly ops: Op[] = [];
  server: Server;
  fromServer: Buffer = Buffer.alloc(0);
  recovering = false;
  losses = 0;
  /** Server bytes after which the connection is lost; what the server did is done. */
  loseAfter = Number.POSITIVE_INFINITY;
  /** Bytes to the server after which the connection is lost; the server never sees more. */
  loseBefore = Number.POSITIVE_INFINITY;
  /** What the next server says of itself. */
  login: LoginResult = LOGIN;
  private arrived = 0;
  private sent = 0;
  private holding = false;
  private out: string[] = [];

  constructor(
    readonly what: string,
    private readonly options: RigOptions = {},
    private readonly cut: Cutter = WHOLE,
  ) {
    const { server, shared, doubt, held, readOnly, proof, ...limits } = options;
    this.limits = { request: 2 ** 20, journal: 2 ** 20, answers: 2 ** 18, queue: 2 ** 20, ...limits };
    this.doubt = doubt ?? 'lost';
    this.context = {
      greeting: {
        kind: 'session',
        identity: { user: 'u', database: 'd', secret: null },
        startup: { protocol: { major: 3, minor: 0 }, params: [] },
        passThrough: null,
        tls: false,
      },
      shared: shared ?? (() => SHARED),
      options: {},
    };
    this.server = this.connected();
    const codec = postgres.session(this.context);
    const io = noting([], { durable: () => true, doubt: () => {} });
    this.session = new Session(codec, postgres.frameLength, this.limits, io, { requests: 0, units: 0 }, proof);
    codec.welcome(LOGIN, new Uint8Array(8));
    this.tell('attached', ...(readOnly ? [true] : []));
  }

  private connected(): Server {
    return this.options.server?.() ?? new MadeUpServer(this.database);
  }

  /** Tells the session something, and notes what comes of it. */
  tell(name: string, ...args: unknown[]): void {
    const out: string[] = [];
    const noted = copied(args);
    const { session, options } = this;
    const io = noting(out, {
      toServer: (bytes) => this.feedServer(bytes),
      doubt: () => {
        if (this.doubt === 'lost') session.lost();
      },
      recover: () => {
        this.recovering = true;
      },
      durable: () => {
        this.holding ||= options.held === true;
        return !this.holding;
      },
    });
    session.entrust(io, { requests: 0, units: 0 });
    this.out = out;
    tell(session, name, args, out);
    this.note(name, noted);
  }

  private note(name: string, args: readonly unknown[]): void {
    const capsule = this.session.capsule();
    const own = ownAffairs(this.session);
    if ((capsule !== null) === own) throw new Error(`${this.what}: a capsule behind ${name}, but ${own}`);
    had.inputs++;
    if (capsule !== null) had.capsules++;
    if (capsule !== null) seen(this.session);
    this.ops.push({
      name,
      args,
      out: this.out,
      facts: factsOf(this.session),
      capsule: capsule && freezeBytes(capsule),
    });
  }

  /** Leads an exchange of the codec over the new server connection. */
  exchange(name: string, exchange: Exchange<unknown>, ...args: unknown[]): void {
    const frames: Uint8Array[] = [];
    this.out = [];
    lead(exchange, this.out, (send) => {
      if (send !== undefined) this.fromServer = all(this.fromServer, this.server.feed(send));
      const length = 1 + this.fromServer.readInt32BE(1);
      const frame = Buffer.from(this.fromServer.subarray(0, length));
      this.fromServer = this.fromServer.subarray(length);
      frames.push(Buffer.from(frame));
      return frame;
    });
    this.note(name, [...args, frames]);
  }

  private feedServer(bytes: Uint8Array): void {
    const left = this.loseBefore - this.sent;
    this.sent += bytes.length;
    this.fromServer = all(this.fromServer, this.server.feed(bytes.subarray(0, Math.max(0, left))));
  }

  /** The client says this, cut in pieces; between pieces the server's answers arrive when `prompt`. */
  say(bytes: Buffer, cut: Cutter = WHOLE, prompt = true): void {
    for (let at = 0; at < bytes.length && this.session.state !== 'closed'; ) {
      const size = cut(bytes.length - at);
      this.tell('frontend', Buffer.from(bytes.subarray(at, at + size)));
      at += size;
      if (prompt) this.settle();
    }
    this.settle();
  }

  /** Everything that is under way arrives. */
  settle(): void {
    while (this.session.state !== 'closed') {
      if (this.ops.length > 20_000) throw new Error(`${this.what} does not end`);
      if (this.recovering) this.recover();
      else if (this.sent > this.loseBefore) this.lose();
      else if (this.fromServer.length > 0) {
        this.hear(Math.min(this.cut(this.fromServer.length), this.loseAfter - this.arrived));
        if (this.arrived >= this.loseAfter && !this.recovering) this.lose();
      } else if (this.holding) this.proceed();
      else return;
    }
  }

  /** What the peer had to know it knows. */
  private proceed(): void {
    this.holding = false;
    this.tell('proceed');
  }

  /** So many bytes of the server arrive. */
  hear(size = this.fromServer.length): void {
    const piece = Buffer.from(this.fromServer.subarray(0, size));
    this.fromServer = this.fromServer.subarray(size);
    this.arrived += piece.length;
    if (piece.length > 0) this.tell('backend', piece);
  }

  lose(): void {
    this.losses++;
    this.loseAfter = Number.POSITIVE_INFINITY;
    this.loseBefore = Number.POSITIVE_INFINITY;
    this.tell('lost');
  }

  /** Settles what is in doubt, and restores the session on another server. */
  recover(plan?: (rig: Rig) => readonly (Repetition | null)[] | null): void {
    const { session } = this;
    this.recovering = false;
    this.holding = false;
    this.server = this.connected();
    this.fromServer = Buffer.alloc(0);
    if (session.inDoubt) {
      const { unprovable, token } = session.unit;
      const xid = (token?.token as { xid: string } | null | undefined)?.xid;
      this.tell('asking');
      if (unprovable !== null)
        this.tell('unknown', { ...GONE, code: 'OUTLIVE_OUTCOME_UNKNOWN', kind: 'outcome-unknown' });
      else if (token?.mark !== undefined && this.database.marks.has(token.mark.id)) this.tell('committed');
      else if (xid !== undefined && this.database.committed.has(xid)) this.tell('committed');
      else this.tell('notCommitted');
    }
    this.tell('restoring');
    this.exchange('restore', session.codec.restore(LOGIN));
    const planned = plan?.(this) ?? null;
    this.tell('restored', this.login, planned);
  }

  get trace(): Trace {
    return this;
  }
}

/** True when something of the gateway's own is under way, or the session is where it cannot be told. */
function ownAffairs(session: Session): boolean {
  const { pending, codec } = session as unknown as {
    pending: { injection: unknown; token: unknown; refused: unknown; verifier: unknown; replay: boolean }[];
    codec: { asking: { rest: unknown } | null };
  };
  if (['doubting', 'resolving', 'replaying', 'failing', 'passing', 'closed'].includes(session.state)) return true;
  const own = pending.map(
    ({ injection, token, refused, verifier, replay }) => injection || token || refused || verifier || replay,
  );
  if (own.some(Boolean)) return true;
  return codec.asking?.rest != null;
}

/** How often a capsule was had in which of these situations. */
const situations = new Map<string, number>();
// biome-ignore lint/suspicious/noExplicitAny: fields that nobody else may see
const SITUATIONS: Readonly<Record<string, (session: any) => boolean>> = {
  'a request unanswered': ({ pending }) => pending.length > 0,
  'several requests unanswered': ({ pending }) => pending.length > 1,
  'an answer in its midst': ({ pending, state }) => state === 'live' && pending[0]?.record?.answered,
  'a long frame in its midst': ({ relayLeft }) => relayLeft > 0,
  'a cut frame of the server': ({ carry }) => carry !== null,
  'a cut frame of the client': ({ window }) => window.length > 0,
  'a request being collected': ({ codec }) => codec.collecting > 0,
  'a transaction with its token': ({ unit, projectedOpen, state }) =>
    state === 'live' && projectedOpen && unit.token !== null,
  'a COPY': ({ barriers, inputOpen }) => barriers.length > 0 && inputOpen,
  'a COPY that is not begun': ({ barriers, inputOpen }) => barriers.length > 0 && !inputOpen,
  'the input of a COPY, cut': ({ inputLeft }) => inputLeft > 0,
  'bytes whose meaning is not known': ({ deaf }) => deaf,
  'a queue': ({ queue, state }) => state === 'live' && queue.length > 0,
  'a client that is not read': ({ clientPaused }) => clientPaused,
  'a guard without a question': ({ guarding, state }) => guarding && state === 'live',
  'a guard that waits for the peer': ({ guardDue }) => guardDue,
  'suspended in a guard': ({ guarding, state }) => guarding && state === 'suspended',
  suspended: ({ state }) => state === 'suspended',
  'suspended in doubt': ({ state, unit }) => state === 'suspended' && unit.inDoubt,
  detached: ({ state }) => state === 'detached',
  restoring: ({ state }) => state === 'restoring',
  'an error that waits': ({ deferred }) => deferred !== null,
  'a ready that waits': ({ heldReady }) => heldReady !== null,
  poisoned: ({ poisoned, state }) => poisoned && state === 'live',
  chained: ({ unit }) => unit.chained,
  oversized: ({ unit }) => unit.oversized,
  'a folded answer': ({ records }) => records.some(({ answer }: { answer: { folded: boolean } }) => answer.folded),
  'a moved unit': ({ repetitions, state }) => repetitions !== null && state === 'live',
  'what its client knows of another server': ({ codec, state }) => codec.knowledge !== null && state === 'live',
};
function seen(session: Session): void {
  for (const [name, is] of Object.entries(SITUATIONS)) {
    if (is(session)) situations.set(name, (situations.get(name) ?? 0) + 1);
  }
}

// --------------------------------------------------------------------------------------------------------------- following

/** Changes a capsule on its way. */
type Change = (capsule: Capsule) => void;

/** A copy of a session that is told what the session was told. */
class Twin {
  private session: Session;
  private out: string[] = [];
  private durable: boolean[] = [];

  constructor(
    bytes: Uint8Array,
    private readonly trace: Trace,
    private readonly change: Change,
  ) {
    this.session = this.thawed(bytes);
  }

  private thawed(bytes: Uint8Array): Session {
    const { limits, context, doubt } = this.trace;
    const capsule = thawBytes(bytes);
    this.change(capsule);
    this.out = [];
    const io = noting(this.out, {
      durable: () => this.durable.shift() ?? false,
      doubt: () => {
        if (doubt === 'lost') this.session.lost();
      },
    });
    const { session, codec } = Session.thaw(capsule, postgres, context, limits, io, { requests: 0, units: 0 });
    if (codec !== session.codec || this.out.length > 0) throw new Error('thawing did something');
    return session;
  }

  /** It is moved once more. */
  hop(): void {
    this.session = this.thawed(freezeBytes(this.session.capsule()!));
  }

  /** Tells it the same. @returns what is not the same, or null */
  follow({ name, args, out, facts, capsule }: Op): string | null {
    this.durable = out.filter((line) => line.startsWith('durable ')).map((line) => line === 'durable true');
    this.out.length = 0;
    const own = copied(args).map((arg) => (Array.isArray(arg) ? [...arg] : arg));
    tell(this.session, name, own, this.out);
    if (this.out.join('\n') !== out.join('\n')) return `${out.join('\n')}\nbut\n${this.out.join('\n')}`;
    const have = factsOf(this.session);
    if (have !== facts) return `${facts}\nbut\n${have}`;
    if ((this.session.capsule() === null) !== (capsule === null)) return `${capsule === null ? 'a' : 'no'} capsule`;
    return null;
  }
}

const asItIs: Change = () => {};

/**
 * Follows a trace from one of its capsules on, with moves on the way where they are possible.
 * @returns the first difference, or null
 */
function follow(trace: Trace, from: number, moves: (at: number) => boolean, change = asItIs): string | null {
  const { ops, what } = trace;
  try {
    const twin = new Twin(ops[from].capsule!, trace, change);
    for (let at = from + 1; at < ops.length; at++) {
      const differs = twin.follow(ops[at]);
      if (differs !== null) return `${what}: taken at ${from}, at ${at} (${ops[at].name}): ${differs}`;
      if (ops[at].capsule !== null && moves(at)) twin.hop();
    }
  } catch (error) {
    return `${what}: taken at ${from}: ${(error as Error).stack}`;
  }
  return null;
}

/** Follows a trace from its beginning with a move at every input, and some of the ways between that and one move alone. */
function check(trace: Trace, random: Randomness): void {
  const { ops } = trace;
  const given = ops.flatMap(({ capsule }, i) => (capsule === null ? [] : [i]));
  const ways: [number, (at: number) => boolean][] = [
    [0, () => true],
    [random.one(given), () => false],
    [random.one(given), () => random.below(4) === 0],
  ];
  for (const [from, moves] of ways) {
    const differs = follow(trace, from, moves);
    if (differs !== null) throw new Error(`${random.where}: ${differs}`);
  }
}

// --------------------------------------------------------------------------------------------------------------- scenarios

/** Pieces of up to so many bytes, and larger ones of what is long. */
const pieces =
  (random: Randomness, most: number): Cutter =>
  (left) =>
    Math.min(left, left > 10_000 ? 5000 : 1 + random.below(most));

/** Sessions with the made-up server of the engine's tests, as the steps that a client takes; between two of them it waits. */
const SCRIPTS: Readonly<Record<string, readonly Buffer[]>> = {
  'simple queries': ['select 3', '', 'insert a', 'insert b returning', 'select fail', 'set x', 'do x', 'select 1'].map(
    Q,
  ),
  'a transaction': ['begin', 'insert a', 'select 2', 'insert b returning', 'commit', 'select 1'].map(Q),
  'a failed transaction': ['begin', 'insert a', 'select fail', 'select 1', 'rollback', 'insert b'].map(Q),
  'a failed transaction that commits': ['begin', 'insert a', 'select fail', 'commit', 'select 1'].map(Q),
  'a transaction given up': ['begin', 'insert a', 'select 2', 'rollback', 'insert b'].map(Q),
  'several statements in one': [
    Q('insert a; insert b; select 1'),
    Q('begin; insert c; commit'),
    Q('insert d; select fail'),
    Q('begin; select fail; commit'),
    Q('rollback'),
    Q('begin; insert f; commit; select fail'),
  ],
  extended: [
    all(x('select 2'), S),
    all(x('insert a returning'), S),
    all(x('select fail'), x('insert b'), S),
    S,
    all(x('insert c', 'n'), S),
    all(B('n'), E(), S),
    all(B('n'), E(), S, B('n'), E(), S),
  ],
  'an extended transaction': [
    all(x('begin', 'b'), S),
    all(x('insert a', 'i'), S),
    all(B('i'), E(), S, B('i'), E(), S),
    all(x('select 2'), S),
    all(P('c', 'commit'), S),
    all(B('c'), E(), S),
    all(B('i'), E(), S),
  ],
  'a pipeline with a Sync each': [
    all(x('select 1'), S, x('insert a'), S, x('select fail'), S, x('insert b returning'), S, x('select 2'), S),
  ],
  'a pipeline with one Sync': [all(x('begin'), x('insert a'), x('select 1'), x('commit'), S, Q('select 1'))],
  'a transaction that goes on in one text': [
    ...[Q('begin'), Q('select 1; insert a; commit'), Q('begin'), Q('insert b; select 1; rollback; insert c')],
    ...[Q('begin'), all(x('insert d'), x('commit'), S), Q('select 1')],
  ],
  'a pipelined transaction': [all(Q('begin'), Q('insert a'), x('insert b returning'), S, Q('commit'), Q('insert c'))],
  'Flush in a guard': [all(x('insert a'), H), all(x('insert b returning'), H), all(x('select 1'), S), Q('select 1')],
  'Flush in a guard that fails': [
    all(x('insert a'), H),
    all(x('select fail'), H),
    all(x('insert b'), S),
    Q('insert c'),
  ],
  'a portal in pieces': [
    Q('begin'),
    all(P('', 'select 3'), B('', 'p'), D('p'), E('p', 1), S),
    all(E('p', 1), S),
    all(E('p', 1), S),
    Q('commit'),
  ],
  'a copy': [Q('copy t from stdin'), all(d('one\n'), d('two\n'), c), Q('select 1')],
  'a copy in a transaction': [Q('begin'), all(Q('copy t from stdin'), d('one\n'), c, Q('insert a')), Q('commit')],
  'a copy, extended': [all(x('copy t from stdin'), S), all(d('one\n'), c, S, x('insert a'), S)],
  'a copy, extended, in a transaction': [
    Q('begin'),
    all(x('insert a'), x('copy t from stdin'), S),
    d('one\n'),
    all(d('two\n'), c, S, x('insert b'), S),
    Q('commit'),
  ],
  'a copy that the client fails': [Q('copy t from stdin'), all(d('one\n'), serialize.copyFail('no')), Q('insert a')],
  'a copy that the client fails, extended': [
    all(x('copy t from stdin'), S),
    all(d('one\n'), serialize.copyFail('no'), x('insert no'), S),
    Q('insert a'),
  ],
  'long rows': [
    Q('select 2 big'),
    all(x('select 2 big'), S),
    Q('begin'),
    Q('select 2 big'),
    Q('insert a'),
    Q('commit'),
  ],
};

/** Texts of the other tests' scripts; the made-up server refuses most of what is in them, which is an answer too. */
const TEXTS: readonly (readonly Buffer[])[] = [
  ...CORPUS.map(({ steps }) => steps.map(({ bytes }) => bytes)),
  ...Object.values({ ...TRANSACTIONS, ...SAVEPOINTS, ...BATCHES }).map((script) =>
    script('7').map((step) =>
      step instanceof Uint8Array ? Buffer.from(step) : all(...step.send.map((part) => Buffer.from(part))),
    ),
  ),
];

function play(rig: Rig, steps: readonly Buffer[], cut: Cutter = WHOLE, prompt = true): Trace {
  for (const step of steps) rig.say(step, cut, prompt);
  return rig.trace;
}

/** Sessions that go wrong in ways that take some arranging. */
const ARRANGED: Readonly<Record<string, (what: string) => Rig>> = {
  'a queue that fills while there is no server': (what) => {
    const rig = new Rig(what, { queue: 100 });
    rig.say(Q('begin'));
    rig.lose();
    for (let i = 0; i < 8; i++) rig.tell('frontend', Q(`insert number${i}`));
    rig.settle();
    rig.say(Q('commit'));
    return rig;
  },
  'no server for too long': (what) => {
    const rig = new Rig(what);
    rig.say(Q('begin'));
    rig.say(Q('insert a'));
    rig.tell('frontend', Q('insert b'));
    rig.lose();
    rig.tell('unavailable', GONE);
    rig.recovering = false;
    rig.say(Q('select 1'));
    rig.say(Q('rollback'));
    rig.say(Q('select 1'));
    rig.lose();
    rig.tell('unavailable', GONE);
    rig.recovering = false;
    rig.say(Q('insert c'));
    return rig;
  },
  'no server for too long, in a transaction that waits for nothing': (what) => {
    const rig = new Rig(what);
    rig.say(Q('begin'));
    rig.say(all(x('insert a'), S));
    rig.lose();
    rig.tell('unavailable', GONE);
    rig.recovering = false;
    rig.say(Q('select 1'));
    rig.say(Q('commit'));
    return rig;
  },
  'no server for too long, and a COPY': (what) => {
    const rig = new Rig(what);
    rig.say(Q('begin'));
    rig.say(all(x('copy t from stdin'), S));
    rig.say(d('one\n'));
    rig.lose();
    rig.tell('unavailable', GONE);
    rig.recovering = false;
    for (const part of [d('two\n'), c, x('insert no'), S, Q('select 1'), Q('rollback'), Q('insert a')]) rig.say(part);
    return rig;
  },
  'what cannot go on, idle': (what) => {
    const rig = new Rig(what);
    rig.say(Q('select 1'));
    rig.lose();
    rig.tell('cannotContinue', LOST);
    rig.settle();
    rig.say(Q('begin; select 1; commit'));
    rig.say(Q('select 1'));
    return rig;
  },
  'what cannot go on, in a transaction': (what) => {
    const rig = new Rig(what);
    rig.say(Q('begin'));
    rig.say(Q('insert a'));
    rig.lose();
    rig.tell('cannotContinue', LOST);
    rig.settle();
    rig.tell('frontend', Q('select 1').subarray(0, 9));
    rig.tell('frontend', Q('select 1').subarray(9));
    rig.settle();
    rig.say(Q('select 1'));
    rig.lose();
    rig.settle();
    rig.say(Q('rollback'));
    rig.say(Q('select 1'));
    return rig;
  },
  'what cannot go on, and is given up': (what) => {
    const rig = new Rig(what);
    rig.say(Q('begin'));
    rig.lose();
    rig.tell('cannotContinue', LOST);
    rig.settle();
    rig.say(Q('rollback'));
    rig.say(Q('select 1'));
    return rig;
  },
  'a cancel while there is no server': (what) => {
    const rig = new Rig(what);
    rig.say(Q('begin'));
    rig.say(Q('insert a'));
    rig.lose();
    rig.tell('frontend', Q('insert b'));
    rig.tell('keepalive', 'wait');
    rig.tell('cancel');
    rig.settle();
    rig.say(Q('insert c'));
    rig.say(Q('rollback'));
    rig.tell('keepalive', 'wait');
    rig.tell('frontend', Q('select 1'));
    rig.tell('keepalive', 'wait');
    rig.settle();
    return rig;
  },
  'AND CHAIN': (what) => {
    const rig = new Rig(what);
    rig.say(Q('begin'));
    rig.tell('frontend', Q('commit and chain'));
    rig.fromServer = all(message('C', 'COMMIT\0'), message('Z', 'T'));
    rig.hear();
    rig.tell('frontend', Q('insert a'));
    rig.fromServer = all(message('C', 'INSERT 0 1\0'), message('Z', 'T'));
    rig.hear();
    rig.lose();
    rig.settle();
    rig.say(Q('select 1'));
    return rig;
  },
  'AND CHAIN, and its answer is lost': (what) => {
    const rig = new Rig(what);
    rig.say(Q('begin'));
    rig.say(Q('insert a'));
    rig.tell('frontend', Q('commit and chain'));
    rig.lose();
    rig.settle();
    rig.say(Q('select 1'));
    return rig;
  },
  'too much for the journal': (what) => {
    const rig = new Rig(what, { journal: 100 });
    rig.say(Q('begin'));
    for (let i = 0; i < 6; i++) rig.say(Q(`insert number${i}`));
    rig.lose();
    rig.settle();
    rig.say(Q('rollback'));
    rig.say(Q('begin'));
    rig.say(Q('commit'));
    return rig;
  },
  'folded answers': (what) => {
    const rig = new Rig(what, { answers: 300 }, (left) => Math.min(left, 7000));
    rig.say(Q('begin'));
    for (let i = 0; i < 6; i++) {
      rig.say(Q('select 3'));
      rig.tell('seen');
    }
    rig.say(Q('select 1 big; do x; select 1'));
    rig.tell('frontend', Q('select 3 big'));
    for (let i = 0; i < 14; i++) rig.hear(7000);
    rig.lose();
    rig.settle();
    rig.say(Q('commit'));
    return rig;
  },
  'lost in the midst of a long row': (what) => {
    const rig = new Rig(what);
    rig.login = NEWER;
    rig.tell('frontend', Q('select 2 big'));
    rig.hear(30_000);
    rig.tell('keepalive', 'wait');
    rig.hear(30_000);
    rig.lose();
    rig.tell('keepalive', 'wait');
    rig.recover();
    rig.tell('keepalive', 'wait');
    rig.hear(20_000);
    rig.tell('keepalive', 'wait');
    rig.hear(70_000);
    rig.settle();
    rig.say(Q('select 1'));
    return rig;
  },
  'lost in the midst of a long row, twice': (what) => {
    const rig = new Rig(what);
    rig.say(Q('begin'));
    rig.tell('frontend', Q('select 2 big'));
    rig.hear(80_000);
    rig.lose();
    rig.tell('cancel');
    rig.settle();
    return rig;
  },
  'someone ends the session': (what) => {
    const rig = new Rig(what, { doubt: 'ask' });
    rig.say(Q('begin'));
    rig.tell('frontend', Q('insert a'));
    rig.hear();
    rig.fromServer = message('E', 'SFATAL\0VFATAL\0C57P05\0Midle\0\0');
    rig.hear();
    rig.tell('keepalive', 'wait');
    return rig;
  },
  'the server says that it is going, and it is so': (what) => {
    const rig = new Rig(what, { doubt: 'ask' });
    rig.say(Q('begin'));
    rig.say(Q('insert a'));
    rig.fromServer = message('E', 'SFATAL\0VFATAL\0C57P01\0Mgoing\0\0');
    rig.hear();
    rig.tell('lost');
    rig.settle();
    rig.say(Q('commit'));
    return rig;
  },
  'the server says that it is read-only, and it is someone’s will': (what) => {
    const rig = new Rig(what, { doubt: 'ask' });
    rig.say(Q('begin'));
    rig.tell('frontend', Q('insert a'));
    rig.fromServer = all(message('E', 'SERROR\0VERROR\0C25006\0Mno\0\0'), message('Z', 'E'));
    rig.hear();
    rig.tell('intent');
    rig.tell('frontend', Q('rollback'));
    rig.fromServer = all(message('C', 'ROLLBACK\0'), message('Z', 'I'));
    rig.hear();
    return rig;
  },
  'a server on which nothing can be written, and then one that takes writes': (what) => {
    const rig = new Rig(what, { doubt: 'ask', readOnly: true });
    rig.say(Q('select 1'));
    rig.tell('frontend', Q('insert a'));
    rig.fromServer = all(message('E', 'SERROR\0VERROR\0C25006\0Mno\0\0'), message('Z', 'I'));
    rig.hear();
    play(rig, [Q('begin'), Q('insert b'), Q('commit'), all(x('insert c'), S), Q('vacuum')]);
    rig.say(Q('begin'));
    rig.lose();
    rig.settle();
    play(rig, [Q('select 1'), Q('commit'), Q('insert d')]);
    return rig;
  },
  'the peer must know first': (what) => {
    const rig = new Rig(what, { held: true });
    play(rig, [Q('begin'), Q('insert a'), Q('select 1'), Q('commit'), Q('insert b'), Q('insert c returning')]);
    play(rig, [all(x('insert d'), S), all(x('insert e'), S, x('select 1'), S), Q('vacuum'), Q('select 1')]);
    return rig;
  },
  'a commit that goes another way when it is repeated, and the peer must know first': (what) => {
    const rig = new Rig(what, { held: true });
    play(rig, [Q('begin'), Q('insert a'), Q('select 1')]);
    rig.tell('frontend', Q('commit'));
    rig.tell('proceed');
    rig.lose();
    rig.database.committed.clear();
    rig.database.applied.length = 0;
    rig.recover(() => {
      rig.tell('seen');
      return [null, null, null, { before: null, bytes: Q('commit anew'), doubts: new Map() }];
    });
    rig.settle();
    rig.say(Q('select 1'));
    return rig;
  },
  'a commit that is compared, and the peer must know first': (what) => {
    const rig = new Rig(what, { held: true });
    const answer = (...messages: Buffer[]) => {
      rig.fromServer = all(...messages);
      rig.hear();
    };
    const refused = all(message('E', 'SERROR\0VERROR\0C40001\0Mno\0\0'), message('Z', 'E'));
    const started = all(message('1'), message('2'));
    rig.say(Q('begin'));
    rig.tell('frontend', Q('select 1'));
    answer(refused);
    rig.tell('frontend', all(x('commit'), S));
    rig.tell('proceed');
    answer(started);
    rig.lose();
    rig.recover();
    answer(message('C', 'BEGIN\0'), message('Z', 'T'), refused);
    rig.tell('proceed');
    answer(message('E', 'SERROR\0VERROR\0C42601\0Mno\0\0'));
    rig.lose();
    rig.settle();
    return rig;
  },
  'a cancel amid a replay': (what) => {
    const rig = new Rig(what);
    rig.say(Q('begin'));
    rig.say(Q('insert a'));
    rig.tell('frontend', Q('select 2'));
    rig.lose();
    rig.recover();
    rig.tell('frontend', Q('insert b'));
    rig.tell('cancel');
    rig.settle();
    rig.say(Q('rollback'));
    rig.lose();
    rig.settle();
    rig.say(Q('select 1'));
    return rig;
  },
  'lost while the peer must know first': (what) => {
    const rig = new Rig(what, { held: true });
    rig.tell('frontend', Q('insert b'));
    rig.hear();
    rig.hear();
    rig.tell('frontend', Q('select 1'));
    rig.lose();
    rig.settle();
    rig.say(Q('insert c'));
    return rig;
  },
};

/** What the parrot knows of locks and the like when it is asked. */
const HELD = [
  ['advisory', 'SELECT pg_catalog.pg_try_advisory_lock(1)', '0/1'],
  ['temporary', 'made', ''],
  ['held', 'cursor', ''],
];
const observing =
  (...rows: string[][]) =>
  (text: string): readonly string[][] =>
    text.startsWith("SELECT 'advisory'") ? rows : text.includes('pg_try_advisory') ? [['t']] : [];

type Make = (what: string, cut: Cutter) => Rig;

function parrot(what: string, cut: Cutter, rows?: (text: string) => readonly string[][], xid = true): Rig {
  return new Rig(what, { server: () => new Parrot(rows, xid) }, cut);
}

/** Loses the server, and goes on with another one. */
function move(rig: Rig): void {
  rig.lose();
  rig.settle();
}

/** The server tells a parameter. */
function parameter(rig: Rig, name: string, value: string): void {
  rig.fromServer = message('S', `${name}\0${value}\0`);
  rig.hear();
}

/** Sessions whose server must be told much about them when it is another one. */
const STATEFUL: Readonly<Record<string, Make>> = {
  settings: (what, cut) => {
    const rig = parrot(what, cut);
    play(
      rig,
      ['set a to 1', 'set b to 2', 'reset a', 'listen l', 'listen m', 'unlisten l', 'prepare q as select 1'].map(Q),
    );
    move(rig);
    play(rig, ['begin', 'set c to 3', 'savepoint s', 'set d to 4', 'rollback to s', 'prepare r as select 2'].map(Q));
    move(rig);
    play(rig, ['execute r', 'execute q', 'rollback', 'set own.thing to 1'].map(Q));
    play(rig, [Q('begin'), Q('set g to 1; set h to 2; set i to 3'), all(P('n', 'select 1'), P('o', 'select 2'), S)]);
    play(rig, [all(x('set j to 1'), x('set k to 2'), S), Q('commit')]);
    play(rig, [Q('begin'), all(x('set l to 1'), x('select fail'), S), Q('rollback'), Q('set m to 1; select fail')]);
    move(rig);
    play(rig, ['deallocate q', 'execute q', 'begin', 'set e to 5', 'commit', 'reset all', 'set f to 6'].map(Q));
    move(rig);
    return rig;
  },
  'what only the server can tell': (what, cut) => {
    const rig = parrot(what, cut, observing(...HELD, ['setting', 'x.y', '1']));
    play(
      rig,
      ['set own.one to 1', "select set_config('own.two', '2', false)", 'select f()', 'select pg_advisory_lock(1)'].map(
        Q,
      ),
    );
    move(rig);
    play(
      rig,
      ['create temp table made (id int)', 'declare cursor cursor with hold for select 1', 'do x', 'select 1'].map(Q),
    );
    move(rig);
    rig.tell('forgetBlockers');
    play(
      rig,
      ['begin', 'select pg_advisory_lock(2)', 'create temp table other (id int)', 'rollback', 'select 1'].map(Q),
    );
    move(rig);
    play(rig, ['begin', 'select pg_advisory_lock(2)', 'commit', 'discard all', 'select 1'].map(Q));
    move(rig);
    return rig;
  },
  'a setting whose name was computed': (what, cut) => {
    const rig = parrot(what, cut, observing());
    play(rig, ["select set_config('a' || 'b.c', '1', false)", 'select 1'].map(Q));
    const bound = all(P('s', 'select set_config($1, $2, false)'), B('s', '', ['own.bound', '1']), E(), S);
    play(rig, [bound, Q('select 1')]);
    rig.tell('frontend', all(P('s', 'select set_config($1, $2, false)'), B('s', '', ['own.other', '1'])));
    rig.say(all(E(), S));
    move(rig);
    return rig;
  },
  'lost while what only the server can tell is asked': (what, cut) => {
    const rig = parrot(what, cut, observing(...HELD));
    rig.say(Q('select pg_advisory_lock(7)'));
    for (const text of ['select pg_advisory_lock(1)', 'select pg_advisory_unlock(7)', 'set a to 1']) {
      rig.tell('frontend', Q(text));
      rig.hear();
      move(rig);
    }
    rig.say(Q('select 1'));
    return rig;
  },
  'what only the server can tell is not told': (what, cut) => {
    let refused = 6;
    const rig = parrot(what, cut, (text) => (text.startsWith("SELECT 'advisory'") && refused-- > 0 ? NOT : HELD));
    play(rig, ['set own.one to 1', "select set_config('own.two', '2', false)", 'select 1'].map(Q));
    rig.tell('frontend', Q('select pg_advisory_lock(1)'));
    rig.hear();
    move(rig);
    play(rig, ['select 1', 'select 2', 'select 3'].map(Q));
    return rig;
  },
  'prepared statements': (what, cut) => {
    const rig = parrot(what, cut);
    play(rig, [all(P('a', 'select 1'), S), all(P('b', 'insert b'), S), all(B('b'), E(), S), all(B('a'), E(), S)]);
    play(rig, [all(P('f', 'select 1'), S, P('g', 'select 1'), S, P('h', 'select 1'), S)]);
    rig.tell('frontend', all(P('d', 'select 4'), S, P('e', 'select fail'), S));
    rig.hear(8);
    move(rig);
    play(rig, [Q('begin'), all(P('c', 'select 2'), S), all(serialize.close({ type: 'S', name: 'a' }), S)]);
    move(rig);
    play(rig, [all(B('c'), E(), S), all(P('a', 'select 3'), B('a', 'p'), S), all(E('p'), S), Q('deallocate b')]);
    rig.lose();
    rig.tell('cannotContinue', LOST);
    rig.settle();
    play(rig, [Q('select 1'), Q('rollback'), all(B('c'), E(), S)]);
    move(rig);
    play(rig, [all(B('b'), E(), S), Q('deallocate all')]);
    move(rig);
    return rig;
  },
  'a replay cut short, and given up': (what, cut) => {
    const rig = parrot(what, cut);
    const prepared = [Q('prepare q as select 1'), all(P('a', 'select 1'), S), all(P('b', 'select 1'), S)];
    play(rig, [Q('begin'), ...prepared, Q('deallocate x')]);
    rig.lose();
    rig.recover();
    rig.hear(20);
    rig.lose();
    rig.tell('cannotContinue', LOST);
    rig.settle();
    play(rig, [Q('rollback'), Q('select 1')]);
    move(rig);
    return rig;
  },
  'a replay given up in its midst': (what, cut) => {
    const rig = parrot(what, cut);
    play(rig, [Q('begin'), Q('prepare q as select 1'), Q('insert a'), all(P('a', 'select 1'), S)]);
    rig.lose();
    rig.recover();
    rig.hear(11);
    rig.lose();
    rig.tell('cancel');
    rig.tell('frontend', Q('insert b'));
    rig.tell('cancel');
    rig.settle();
    play(rig, [Q('select 1'), Q('rollback')]);
    move(rig);
    return rig;
  },
  'the catalogue changes': (what, cut) => {
    const rig = parrot(what, cut);
    play(rig, ['create function h() returns int', 'begin', 'create function i() returns int', 'insert a'].map(Q));
    play(rig, ['commit', 'begin', 'create function i() returns int', 'rollback', 'select 1'].map(Q));
    return rig;
  },
  'a commit that did not': (what, cut) => {
    const rig = parrot(what, cut);
    play(rig, [Q('begin'), Q('set a to 1'), Q('create function i() returns int'), Q('select fail')]);
    rig.tell('frontend', Q('commit'));
    rig.fromServer = message('C', 'ROLLBACK\0');
    rig.hear();
    rig.fromServer = message('Z', 'I');
    rig.hear();
    move(rig);
    return rig;
  },
  'rows that prove commits': (what, cut) => {
    const rig = new Rig(what, { proof: BY_MARKER }, cut);
    play(rig, ['begin', 'insert a', 'commit', 'insert b', 'begin', 'insert c', 'select fail', 'commit'].map(Q));
    // Lost while the row and its commit are on their way, twice: with the same row.
    play(rig, ['begin', 'insert d'].map(Q));
    rig.loseBefore = 0;
    rig.say(Q('commit'));
    rig.tell('frontend', Q('begin'));
    rig.settle();
    rig.tell('frontend', Q('insert e'));
    rig.settle();
    rig.tell('frontend', Q('commit'));
    rig.lose();
    rig.settle();
    play(rig, [all(x('insert f'), S), Q('select 1')]);
    return rig;
  },
  'rows that prove commits, refused': (what, cut) => {
    const rig = new Rig(what, { proof: BY_MARKER }, cut);
    rig.database.markFault = '42P01';
    play(rig, ['begin', 'insert a', 'commit', 'insert b', 'select 1'].map(Q));
    return rig;
  },
  'a commit in doubt that changed the catalogue': (what, cut) => {
    const rig = parrot(what, cut);
    rig.database.committed.add('9');
    rig.tell('frontend', Q('create function h() returns int'));
    rig.hear();
    rig.lose();
    rig.settle();
    rig.say(Q('select 1'));
    return rig;
  },
  'a notification, and no id': (what, cut) => {
    const rig = parrot(what, cut, undefined, false);
    play(rig, [Q('begin'), Q('notify n'), Q('select 1'), all(x('insert a'), S), Q('commit')]);
    return rig;
  },
  'a notification': (what, cut) => {
    const rig = parrot(what, cut);
    play(rig, ['begin', 'notify n', 'insert a', 'commit', 'begin', 'insert a'].map(Q));
    rig.tell('frontend', Q('notify n'));
    rig.hear();
    rig.settle();
    play(rig, [all(x('insert a'), S), Q('commit'), all(x('insert a'), S)]);
    return rig;
  },
  parameters: (what, cut) => {
    const rig = parrot(what, cut);
    parameter(rig, 'application_name', 'one');
    parameter(rig, 'standard_conforming_strings', 'off');
    rig.say(Q("select 'a\\'; begin'"));
    parameter(rig, 'client_encoding', 'SJIS');
    rig.say(Q("select '\xa0'"));
    rig.say(Q('set application_name to two'));
    rig.login = NEWER;
    rig.lose();
    rig.server = new Parrot();
    rig.recovering = false;
    rig.tell('restoring');
    const exchange = rig.session.codec.restore(LOGIN);
    rig.fromServer = message('S', 'application_name\0two\0');
    rig.exchange('restore', exchange);
    rig.tell('restored', rig.login, null);
    rig.say(Q('select 1'));
    parameter(rig, 'application_name', 'two');
    parameter(rig, 'application_name', 'three');
    return rig;
  },
  'parameters told while a long row is in its midst': (what, cut) => {
    const rig = new Rig(what, {}, cut);
    rig.login = NEWER;
    rig.say(Q('set x'));
    rig.tell('frontend', Q('select 1 big'));
    rig.hear(30_000);
    rig.lose();
    rig.recover();
    rig.fromServer = all(message('S', 'application_name\0news\0'), rig.fromServer);
    rig.settle();
    rig.say(Q('select 1'));
    return rig;
  },
  'functions that touch the session': (what, cut) => {
    const rig = parrot(what, cut, observing(['setting', 'own.setting', '1']));
    rig.tell('frontend', Q('select f()'));
    rig.hear(3);
    rig.settle();
    rig.say(all(x('insert a'), S));
    rig.say(all(x('select g()'), S));
    rig.say(Q('begin'));
    rig.say(all(x('insert a'), S));
    rig.say(all(x('insert a'), S));
    rig.say(Q('discard all'));
    rig.say(all(x('insert a'), S));
    rig.say(all(P('p', 'insert a'), B('p', 'q'), D('q')));
    rig.say(all(E('q'), S));
    rig.say(Q('commit'));
    move(rig);
    return rig;
  },
  'what is prepared is taken away behind the question for a token': (what, cut) => {
    const rig = parrot(what, cut);
    rig.say(Q('begin'));
    rig.say(all(x('insert a'), S));
    rig.say(Q('commit'));
    rig.say(Q('begin'));
    rig.say(all(x('insert a'), S));
    rig.say(Q('rollback'));
    rig.say(Q('deallocate all'));
    rig.say(Q('begin'));
    rig.say(all(x('insert a'), S));
    rig.say(Q('commit'));
    return rig;
  },
  'a request that goes another way when it is repeated': (what, cut) => {
    const rig = parrot(what, cut);
    play(rig, [Q('begin'), Q('insert a'), all(P('n', 'insert c'), S)]);
    rig.tell('frontend', all(Q('select pg_advisory_xact_lock(1)'), x('insert b'), S, Q('select 3'), Q('commit')));
    const how = (text: string, before: string | null): Repetition => ({
      before: before === null ? null : all(Q(before)),
      bytes: Q(text),
      doubts: new Map([['a', 'why']]),
    });
    rig.lose();
    rig.recover(() => {
      rig.tell('seen');
      return [
        null,
        how('insert anew', 'prepare'),
        null,
        how('select anew', null),
        how('insert instead', 'first'),
        how('select 33', null),
      ];
    });
    while (rig.fromServer.length > 0) rig.hear(9);
    rig.settle();
    return rig;
  },
  'what its client saw of another server': (what, cut) => {
    const rig = parrot(what, cut);
    rig.say(Q('begin'));
    rig.say(Q('insert into warm (name) values (1) returning *'));
    rig.lose();
    rig.recover(() => {
      const { codec } = rig.session;
      const { view } = codec as unknown as { view(): string };
      const found = { ...WARM_FOUND, view: view.call(codec) };
      const gathered = gather(WARM_UNIT, new Map());
      rig.tell('seen');
      rig.exchange('plan', codec.mutables!.plan(gathered, found), gathered, found);
      return [null, null];
    });
    rig.settle();
    play(rig, [
      Q('select now()'),
      Q('select currval(1)'),
      Q('insert into warm default values'),
      all(x('select now()'), S),
    ]);
    play(rig, [Q("select currval('warm_id')"), Q('select now() from other'), Q('insert into warm select from third')]);
    rig.tell('frontend', all(Q('select now() from fourth'), Q('select 1')));
    rig.settle();
    rig.say(Q('commit'));
    rig.say(Q('select lastval(), now()'));
    move(rig);
    rig.say(Q('select lastval(), now()'));
    return rig;
  },
};

const SCENARIOS: Readonly<Record<string, Make>> = { ...ARRANGED, ...STATEFUL };

/** Byte by byte, but for what is long. */
const crumbs: Cutter = (left) => (left > 10_000 ? 5000 : 1);

/** A script of {@link SCRIPTS} in the way that chance has it. */
function byChance(name: string, random: Randomness): Trace {
  const long = name === 'long rows';
  const chance = random.below(4);
  const rig = new Rig(
    name,
    { held: random.below(4) === 0, shared: random.below(2) === 0 ? () => undefined : undefined },
    random.below(2) === 0 ? WHOLE : pieces(random, 100),
  );
  if (chance === 0) rig.loseAfter = 1 + random.below(long ? 150_000 : 700);
  if (chance === 1) rig.loseBefore = random.below(900);
  return play(rig, SCRIPTS[name], random.below(2) === 0 ? WHOLE : pieces(random, 40), random.below(2) === 0);
}

// -------------------------------------------------------------------------------------------------------------------- tests

/** How many inputs there were, and how many of them a capsule was had behind. */
const had = { inputs: 0, capsules: 0 };

describe.each(Object.entries(SCRIPTS))('%s', (name, steps) => {
  it('goes on elsewhere, in whatever pieces it comes', () => {
    const random = randomness();
    const ways: [Cutter, Cutter][] = [
      [WHOLE, WHOLE],
      [BYTES, WHOLE],
      [WHOLE, name === 'long rows' ? pieces(random, 300) : BYTES],
    ];
    for (const [client, server] of ways) {
      for (const prompt of [true, false]) check(play(new Rig(name, {}, server), steps, client, prompt), random);
    }
    check(play(new Rig(name), [all(...steps)]), random);
  });

  it('goes on elsewhere, and its server is lost', () => {
    const random = randomness();
    for (let round = 0; round < 25; round++) check(byChance(name, random), random);
  });
});

it('goes on elsewhere, whatever its client says', () => {
  const random = randomness();
  for (const [i, steps] of TEXTS.entries()) {
    const rig = new Rig(`text ${i}`, {}, pieces(random, 200));
    if (i % 2 === 1) rig.loseAfter = 1 + random.below(500);
    check(play(rig, steps, random.below(2) === 0 ? WHOLE : pieces(random, 200)), random);
  }
});

it.each(Object.entries(SCENARIOS))('%s', (name, make) => {
  const random = randomness();
  for (const cut of [WHOLE, crumbs, pieces(random, 20)]) {
    const { trace } = make(name, cut);
    // Sessions that break say the same wherever they are.
    for (const { name, out } of trace.ops)
      expect(
        out.filter((line) => line.startsWith('throws')),
        name,
      ).toEqual([]);
    check(trace, random);
  }
});

it('can be told in the midst of nearly everything', () => {
  const random = randomness();
  for (const [name, make] of Object.entries(SCENARIOS)) make(name, pieces(random, 20));
  for (const [name, steps] of Object.entries(SCRIPTS)) {
    const server = name === 'long rows' ? pieces(random, 300) : BYTES;
    for (const held of [true, false]) play(new Rig(name, { held }, server), steps, BYTES, held);
  }
  expect(Object.keys(SITUATIONS).filter((name) => !situations.has(name))).toEqual([]);
  // All others are refused because of something of the gateway's own: see `note`.
  expect(had.capsules / had.inputs).toBeGreaterThan(0.4);
});

describe('every field', () => {
  /** What stands for `window`, `scan` and `inputLeft`. */
  const INPUT = ['window', 'scan', 'inputLeft'];
  const rig = new Rig('fields');
  const { session, codec } = rig.session.capsule() as unknown as Record<string, object>;

  it('of a session is told, or left out for a reason that FrozenSession gives', () => {
    const left =
      'codec canon carriage limits io stats outBytes outStart outEnd corked header readyStatus readyQuestion doubtError judged proceeding doubtRest doubted replayQueue inquiring abandoning marking spare loose expected';
    const names = [...Object.keys(session).filter((name) => name !== 'input'), ...INPUT, ...left.split(' ')];
    expect(Object.keys(rig.session).sort()).toEqual(names.sort());
  });

  it('of a codec is told, or left out for a reason that its freeze gives', () => {
    const left =
      'context cache shared guard token marker mutables synthesize recent coming candidate rider beforeRider deallocations asking env';
    expect(Object.keys(rig.session.codec).sort()).toEqual([...Object.keys(codec), ...left.split(' ')].sort());
  });
});

it('understands nothing as it was understood elsewhere, where another thing may be known of the database', () => {
  const rig = new Rig('known otherwise');
  play(rig, [all(P('a', 'select f()'), S), all(B('a'), E(), S), all(B('a'), E(), S)]);
  const bytes = freezeBytes(rig.session.capsule()!);
  const unsafe = { catalogue: parseCatalogue([['v', 'f']]) };
  for (const [shared, guarded] of [
    [SHARED, false],
    [unsafe, true],
  ] as const) {
    const out: string[] = [];
    const context = { ...rig.context, shared: () => shared };
    const io = noting(out, { durable: () => true, doubt: () => {} });
    const { session } = Session.thaw(thawBytes(bytes), postgres, context, rig.limits, io, { requests: 0, units: 0 });
    session.frontend(all(B('a'), E(), S));
    expect(out.join().includes('BEGIN')).toBe(guarded);
  }
});

/** Some objects of a capsule that have the same fields. */
type Part = Record<string, unknown>;

/** All records in a capsule. */
function recordsOf({ session }: Capsule): Part[] {
  const { records, told, queue, pending } = session;
  const all = [...records, ...told, ...pending.map(({ record }) => record), ...queue.map(({ record }) => record)];
  return [...new Set(all.filter((record) => record !== null))] as unknown as Part[];
}

const PARTS: Readonly<Record<string, (capsule: Capsule) => readonly object[]>> = {
  session: ({ session }) => [session],
  unit: ({ session }) => [session.unit],
  input: ({ session }) => [session.input],
  pending: ({ session }) => session.pending,
  queue: ({ session }) => session.queue,
  record: recordsOf,
  answer: (capsule) => recordsOf(capsule).flatMap(({ answer }) => (answer === null ? [] : [answer as Part])),
  codec: ({ codec }) => [codec as Part],
  state: ({ codec }) => [(codec as { state: Part }).state],
};
/** What stands for nothing where a session that has just begun has no such part. */
const NOTHING: Readonly<Part> = {
  'pending.failed': false,
  'pending.gates': false,
  'queue.record': null,
  'queue.input': [],
  'record.input': [],
  'record.answer': null,
  'record.status': null,
  'record.interrupt': null,
  'answer.chunks': [],
  'answer.chain': null,
  'answer.folds': [],
  'answer.streaming': 0,
};
/** Whose loss nobody can notice, or everybody at once. */
const EXEMPT: Readonly<Record<string, string>> = {
  'session.unit': 'its fields are looked at one by one',
  'session.input': 'its fields are looked at one by one',
  'codec.state': 'its fields are looked at one by one',
  'unit.arming': 'true only with an injection, or without a server, where nothing asks for it',
  'record.interrupt': 'nobody cancels in the same connection in this protocol',
  'session.interruptOwed': 'the same',
  'session.partial': 'this protocol has frames that end where something ends',
  'codec.epoch': 'matters where other things are known of the database: there is a test of its own',
};

it('goes on differently when any part of a capsule is dropped on the way', () => {
  const random = randomness();
  const traces: Trace[] = Object.entries(SCENARIOS).flatMap(([name, make]) => [
    make(name, WHOLE).trace,
    make(name, crumbs).trace,
  ]);
  for (const [name, steps] of Object.entries(SCRIPTS)) {
    if (name === 'long rows') continue;
    for (const prompt of [true, false]) traces.push(play(new Rig(name, {}, BYTES), steps, BYTES, prompt));
    for (let round = 0; round < 5; round++) traces.push(byChance(name, random));
  }
  // Short ones first: most is missed soon.
  traces.sort((a, b) => a.ops.length - b.ops.length);
  const fresh = thawBytes(traces[0].ops[0].capsule!);
  const nothing = (path: string): unknown => {
    const [part, name] = path.split('.');
    return path in NOTHING ? NOTHING[path] : (PARTS[part](fresh) as Part[])[0]?.[name];
  };
  // Only where there is something can it be missed.
  const somewhere = new Map<string, Trace[]>();
  for (const trace of traces) {
    for (const { capsule } of trace.ops) {
      if (capsule === null) continue;
      const thawed = thawBytes(capsule);
      for (const [part, of] of Object.entries(PARTS)) {
        for (const each of of(thawed)) {
          for (const [name, value] of Object.entries(each)) {
            const path = `${part}.${name}`;
            const known = somewhere.get(path) ?? [];
            somewhere.set(path, known);
            if (known.at(-1) !== trace && !isDeepStrictEqual(value, nothing(path))) known.push(trace);
          }
        }
      }
    }
  }
  const missed = [...somewhere].filter(([path, among]) => {
    if (path in EXEMPT) return false;
    const [part, name] = path.split('.');
    const value = nothing(path);
    const change: Change = (capsule) => {
      // Each gets an object of its own, if it is one.
      for (const each of PARTS[part](capsule) as Part[])
        each[name] = typeof value === 'object' ? structuredClone(value) : value;
    };
    return !among.some((trace) => follow(trace, 0, () => true, change) !== null);
  });
  expect(
    missed.map(([path]) => path),
    random.where,
  ).toEqual([]);
  expect(somewhere.size).toBeGreaterThan(80);
  // Every field is dropped in turn, and all traces run through until one tells.
}, 300_000);
