import postgres from '../../codecs/postgres/index.js';
import type { Call } from '../../core/cluster/records.js';
import type { Codec, Greeting, LoginResult, OutcomeToken, SessionCodec } from '../../core/contract/index.js';
import { ExchangeStepper } from '../../core/recovery/exchange.js';
import { BY_POSITION, type ProofPolicy } from '../../core/session/proof.js';
import { Session } from '../../core/session/session.js';
import type { SessionIo, SessionLimits } from '../../core/session/world.js';
import { message } from './gateway.js';

/** What a made-up database remembers: which statements took effect, and which transactions committed. */
export class MadeUpDatabase {
  readonly applied: string[] = [];
  readonly committed = new Set<string>();
  /** Rows that prove commits. */
  readonly marks = new Set<string>();
  /** What such a row is refused with, when set. */
  markFault: string | null = null;
  /** How often a row was looked for. */
  lookups = 0;
  private xid = 1000n;
  position = 5000n;

  nextXid(): bigint {
    return ++this.xid;
  }
}

/** How the gateway asks for a token inside a request. */
const TOKEN_QUESTION = 'SELECT pg_catalog.pg_current_xact_id_if_assigned()';

/** How it leaves a row that proves a commit. */
const PUT_MARK = /^SELECT \S+_put\('\\x([0-9a-f]{32})', (true|false)\)$/;

const int16 = (n: number) => Buffer.from([n >> 8, n & 255]);
const int32 = (n: number) => {
  const bytes = Buffer.alloc(4);
  bytes.writeInt32BE(n);
  return bytes;
};

/**
 * One connection to a made-up server: bytes in, bytes out, at once. It knows a few words: BEGIN, COMMIT, ROLLBACK, `select N`
 * (N rows), `select fail`, `insert NAME` (one row, `returning` shows it), `copy` (from the client), `set` (tells a parameter),
 * `do` (a notice), and `big` (rows longer than the gateway's buffers).
 */
export class MadeUpServer {
  private input: Buffer = Buffer.alloc(0);
  private out: Buffer[] = [];
  private status: 'I' | 'T' | 'E' = 'I';
  private skipping = false;
  private copying: { text: string; extended: boolean; data: number } | null = null;
  private readonly statements = new Map<string, string>();
  private readonly portals = new Map<string, string>();
  private unit: string[] = [];
  private marks: string[] = [];
  private xid: bigint | null = null;
  private told: Buffer[] = [];

  constructor(private readonly database: MadeUpDatabase) {}

  /** Understands what was sent; gives back what it answers. */
  feed(bytes: Uint8Array): Buffer {
    this.input = Buffer.concat([this.input, bytes]);
    while (this.input.length >= 5 && this.input.length > this.input.readInt32BE(1)) {
      const end = 1 + this.input.readInt32BE(1);
      this.take(String.fromCharCode(this.input[0]), this.input.subarray(5, end));
      this.input = this.input.subarray(end);
    }
    const out = Buffer.concat(this.out);
    this.out = [];
    return out;
  }

  private say(type: string, ...body: (Buffer | string)[]): void {
    this.out.push(message(type, ...body));
  }

  private take(type: string, body: Buffer): void {
    if (this.copying !== null) {
      this.takeCopy(type, body);
      return;
    }
    if (this.skipping && type !== 'S') return;
    const words = body.toString('utf8').split('\0');
    switch (type) {
      case 'Q': {
        const statements = words[0].split(';').filter((text) => text.trim() !== '');
        if (statements.length === 0) this.say('I');
        for (const text of statements) if (!this.run(text.trim(), false)) break;
        if (this.copying === null) this.ready();
        return;
      }
      case 'P':
        if (words[0] !== '' && this.statements.has(words[0])) this.refuse('42P05');
        else {
          this.statements.set(words[0], words[1]);
          this.say('1');
        }
        return;
      case 'B': {
        const statement = this.statements.get(words[1]);
        if (statement === undefined) this.refuse('26000');
        else if (words[0] !== '' && this.portals.has(words[0])) this.refuse('42P03');
        else {
          this.portals.set(words[0], statement);
          this.say('2');
        }
        return;
      }
      case 'D': {
        const text = (words[0][0] === 'S' ? this.statements : this.portals).get(words[0].slice(1)) ?? '';
        if (words[0][0] === 'S') this.say('t', int16(0));
        if (/^(select|.*returning)/.test(text)) this.describe();
        else this.say('n');
        return;
      }
      case 'E': {
        if (!this.run(this.portals.get(words[0]) ?? 'fail', true)) this.skipping = true;
        return;
      }
      case 'C':
        (words[0][0] === 'S' ? this.statements : this.portals).delete(words[0].slice(1));
        this.say('3');
        return;
      case 'S':
        this.skipping = false;
        this.ready();
        return;
      case 'F': {
        const oid = body.readInt32BE(0);
        if (this.status === 'E') this.fail('25P02');
        else {
          const value = oid === 2852 ? ++this.database.position : this.xid;
          const eight = Buffer.alloc(8);
          eight.writeBigUInt64BE(value ?? 0n);
          if (value === null) this.say('V', int32(-1));
          else this.say('V', int32(8), eight);
        }
        this.ready();
        return;
      }
    }
  }

  private takeCopy(type: string, body: Buffer): void {
    const copy = this.copying!;
    if (type === 'd') copy.data += body.length;
    if (type !== 'c' && type !== 'f') return;
    this.copying = null;
    if (type === 'f') {
      this.fail('57014');
      this.skipping = copy.extended;
    } else {
      this.write(`${copy.text} ${copy.data}`);
      this.say('C', 'COPY 1\0');
    }
    if (!copy.extended) this.ready();
  }

  private describe(): void {
    this.say('T', int16(1), 'x\0', int32(0), int16(0), int32(25), int16(-1 & 0xffff), int32(-1), int16(0));
  }

  private row(text: string): void {
    this.say('D', int16(1), int32(text.length), text);
  }

  private write(text: string): void {
    this.xid ??= this.database.nextXid();
    this.unit.push(text);
  }

  private commit(): void {
    this.database.applied.push(...this.unit);
    if (this.xid !== null) this.database.committed.add(String(this.xid));
    for (const id of this.marks) this.database.marks.add(id);
    this.marks = [];
    this.unit = [];
    this.xid = null;
  }

  private forget(): void {
    this.marks = [];
    this.unit = [];
    this.xid = null;
  }

  private fail(code: string): void {
    this.say('E', `SERROR\0VERROR\0C${code}\0Mno luck\0\0`);
    if (this.status === 'T') this.status = 'E';
    if (this.status === 'I') this.forget();
  }

  private refuse(code: string): void {
    this.fail(code);
    this.skipping = true;
  }

  private putMark(id: string, always: boolean): boolean {
    const { markFault, marks } = this.database;
    if (markFault !== null || marks.has(id)) {
      this.fail(markFault ?? '23505');
      return false;
    }
    const due = always || this.xid !== null;
    if (due) {
      this.xid ??= this.database.nextXid();
      this.marks.push(id);
    }
    this.row(due ? 't' : 'f');
    this.say('C', 'SELECT 1\0');
    return true;
  }

  private run(text: string, extended: boolean): boolean {
    const put = PUT_MARK.exec(text);
    if (put !== null && this.status !== 'E') return this.putMark(put[1], put[2] === 'true');
    if (text.startsWith(TOKEN_QUESTION) && this.status !== 'E') {
      const position = `0/${(++this.database.position).toString(16)}`;
      const xid =
        this.xid === null ? int32(-1) : Buffer.concat([int32(String(this.xid).length), Buffer.from(String(this.xid))]);
      this.say('D', int16(2), xid, int32(position.length), position);
      this.say('C', 'SELECT 1\0');
      return true;
    }
    const [verb, argument] = text.split(' ');
    const lower = verb.toLowerCase();
    if (this.status === 'E' && lower !== 'rollback' && lower !== 'commit') {
      this.fail('25P02');
      return false;
    }
    switch (lower) {
      case 'begin':
        this.status = 'T';
        this.say('C', 'BEGIN\0');
        return true;
      case 'commit':
      case 'rollback': {
        const ok = lower === 'commit' && this.status === 'T';
        if (ok) this.commit();
        else this.forget();
        this.status = 'I';
        this.say('C', ok ? 'COMMIT\0' : 'ROLLBACK\0');
        return true;
      }
      case 'select': {
        if (argument === 'fail') {
          this.fail('42703');
          return false;
        }
        if (!extended) this.describe();
        const count = Number(argument);
        for (let i = 0; i < count; i++) this.row(text.includes('big') ? 'b'.repeat(70_000 + i) : `row ${i}`);
        this.say('C', `SELECT ${count}\0`);
        return true;
      }
      case 'insert':
        this.write(text);
        if (text.includes('returning')) {
          if (!extended) this.describe();
          this.row(argument);
        }
        this.say('C', 'INSERT 0 1\0');
        return true;
      case 'copy':
        this.copying = { text, extended, data: 0 };
        this.say('G', Buffer.from([0]), int16(0));
        return true;
      case 'set':
        this.told.push(message('S', `application_name\0${argument}\0`));
        this.say('C', 'SET\0');
        return true;
      case 'do':
        this.say('N', 'SNOTICE\0C00000\0Mheard\0\0');
        this.say('C', 'DO\0');
        return true;
      default:
        this.fail('42601');
        return false;
    }
  }

  private ready(): void {
    // What was not in a block was in a transaction of its own up to here.
    if (this.status === 'I') {
      this.commit();
      this.portals.clear();
    }
    this.out.push(...this.told);
    this.told = [];
    this.say('Z', this.status);
  }
}

/** What the gateway knows of the client at its login. */
export const GREETING = {
  kind: 'session',
  identity: { user: 'u', database: 'd', secret: null },
  startup: { protocol: { major: 3, minor: 0 }, params: [] },
  passThrough: null,
  tls: false,
} as const;

const LOGIN: LoginResult = {
  cancelKey: null,
  backendId: '1',
  facts: { protocol: { major: 3, minor: 0 }, parameters: [['server_version', '18.0']], notices: [] },
};

/** How bytes are cut before they are handed over: gives the next piece's length for what is left. */
export type Cutter = (left: number) => number;

export const WHOLE: Cutter = (left) => left;
export const BYTES: Cutter = () => 1;

/** Limits of a session, small enough to be reached. */
export const LIMITS: SessionLimits = { request: 2 ** 20, journal: 2 ** 20, answers: 2 ** 18, queue: 2 ** 20 };

/** Proof of commits by rows. */
export const BY_MARKER: ProofPolicy = {
  by: 'marker',
  autocommit: 'guard',
  table: 'outlive.commit_marker',
  database: 'd',
  seed: Buffer.from('a session of a test'),
};

/** Where a commit must wait for its row: as the codec of a protocol in which it cannot stand right behind it. */
export function waiting(codec: SessionCodec): SessionCodec {
  return Object.assign(codec, { marker: { ...codec.marker!, binding: false } });
}

/** A protocol with made-up servers of it. */
export interface MadeUp<D> {
  readonly codec: Codec;
  readonly greeting: Extract<Greeting, { kind: 'session' }>;
  /** What is known of the session's database. */
  readonly shared: () => unknown;
  database(): D;
  /** A connection to another server, which has let the session in. */
  connect(database: D): { readonly login: LoginResult; feed(bytes: Uint8Array): Buffer };
  /** Did the commit with this proof take effect? */
  committed(database: D, token: OutcomeToken): boolean;
}

/** PostgreSQL. */
export const POSTGRES: MadeUp<MadeUpDatabase> = {
  codec: postgres,
  greeting: GREETING,
  shared: () => undefined,
  database: () => new MadeUpDatabase(),
  connect: (database) => {
    const server = new MadeUpServer(database);
    return { login: LOGIN, feed: (bytes) => server.feed(bytes) };
  },
  committed: (database, { token, mark }) => {
    if (mark !== undefined) database.lookups++;
    if (mark !== undefined && database.marks.has(mark.id)) return true;
    const xid = (token as { xid: string } | null)?.xid;
    return xid !== undefined && database.committed.has(xid);
  },
};

/** A session that somebody else has led so far, with the database that it is about. */
export interface Inherited<D = MadeUpDatabase> {
  readonly session: Session;
  readonly database: D;
}

/** The engine with a real codec, by default that of PostgreSQL, between a scripted client and a made-up server. */
export class EngineRig<D = MadeUpDatabase> {
  readonly database: D;
  readonly session: Session;
  toClient: Buffer[] = [];
  private server: ReturnType<MadeUp<D>['connect']>;
  private fromServer: Buffer = Buffer.alloc(0);
  private recovering = false;
  /** Server bytes after which the connection is lost; what the server did is done. */
  loseAfter = Number.POSITIVE_INFINITY;
  /** Bytes to the server after which the connection is lost; the server never sees more. */
  loseBefore = Number.POSITIVE_INFINITY;
  losses = 0;
  /** Called when another server is about to be looked for. */
  onLost: () => void = () => {};
  private arrived = 0;
  private sent = 0;

  constructor(
    private readonly cutServer: Cutter = WHOLE,
    limits: Partial<SessionLimits> = {},
    inherited: Inherited<D> | null = null,
    proof: ProofPolicy = BY_POSITION,
    change: (codec: SessionCodec) => SessionCodec = (codec) => codec,
    private readonly protocol: MadeUp<D> = POSTGRES as unknown as MadeUp<D>,
  ) {
    this.database = inherited?.database ?? protocol.database();
    this.server = protocol.connect(this.database);
    if (inherited !== null) {
      this.session = inherited.session;
      this.session.entrust(this.io, { requests: 0, units: 0 });
      return;
    }
    const { greeting, shared } = protocol;
    const codec = change(protocol.codec.session({ greeting, shared, options: {} }));
    this.session = new Session(
      codec,
      protocol.codec.frameLength,
      { ...LIMITS, ...limits },
      this.io,
      { requests: 0, units: 0 },
      proof,
    );
    codec.welcome(this.server.login, new Uint8Array(8));
    this.session.attached();
  }

  private get io(): SessionIo {
    return {
      toClient: (bytes) => this.speak(bytes),
      toServer: (bytes) => this.feedServer(bytes),
      readClient: () => {},
      corkServer: () => {},
      doubt: () => this.session.lost(),
      recover: () => {
        this.recovering = true;
      },
      replayed: (result) => {
        if (result === 'retry') this.session.lost();
      },
      resumed: () => {},
      learn: () => {},
      marked: () => {},
      acknowledged: () => {},
      durable: () => this.durable(),
      closeClient: () => {},
      count: () => {},
    };
  }

  // What a rig does otherwise that tells somebody of its session.

  /** The session says this to the client. */
  protected speak(bytes: Uint8Array): void {
    this.toClient.push(Buffer.from(bytes));
  }

  /** See `SessionIo.durable`. */
  protected durable(): boolean {
    return true;
  }

  /** A chunk of a side arrives. */
  protected hear(side: 'client' | 'server', chunk: Buffer): void {
    if (side === 'client') this.session.frontend(chunk);
    else this.session.backend(chunk);
  }

  /** Makes a call of the session. */
  protected tell(...[method, ...given]: Call): void {
    (this.session[method] as (...given: unknown[]) => unknown)(...given);
  }

  /** The session's state was brought to a new server. */
  protected renew(): void {}

  /** Something else arrives that was under way. @returns false when there was nothing */
  protected further(): boolean {
    return false;
  }

  /** Nobody is left who served this session: somebody goes on with it here. */
  adopt(): void {
    if (this.session.state === 'live') this.tell('proceed');
    this.tell('lost');
    if (this.session.state === 'suspended' || this.session.state === 'resolving') this.recovering = true;
    this.settle();
  }

  private feedServer(bytes: Uint8Array): void {
    const left = this.loseBefore - this.sent;
    this.sent += bytes.length;
    const seen = bytes.subarray(0, Math.max(0, left));
    this.fromServer = Buffer.concat([this.fromServer, this.server.feed(seen)]);
  }

  /** The client says this, cut in pieces; between pieces the server's answers arrive when `prompt`. */
  say(bytes: Buffer, cut: Cutter = WHOLE, prompt = true): void {
    for (let at = 0; at < bytes.length; ) {
      const size = cut(bytes.length - at);
      this.hear('client', Buffer.from(bytes.subarray(at, at + size)));
      at += size;
      if (prompt) this.settle();
    }
    this.settle();
  }

  /** Everything that is under way arrives. */
  settle(): void {
    for (;;) {
      if (this.recovering) this.recover();
      else if (this.sent > this.loseBefore) this.lose();
      else if (this.fromServer.length > 0) {
        const size = Math.min(this.cutServer(this.fromServer.length), this.loseAfter - this.arrived);
        const piece = Buffer.from(this.fromServer.subarray(0, size));
        this.fromServer = this.fromServer.subarray(size);
        this.arrived += piece.length;
        if (piece.length > 0) this.hear('server', piece);
        if (this.arrived >= this.loseAfter && !this.recovering) this.lose();
      } else if (!this.further()) return;
    }
  }

  private lose(): void {
    this.losses++;
    this.loseAfter = Number.POSITIVE_INFINITY;
    this.loseBefore = Number.POSITIVE_INFINITY;
    this.tell('lost');
  }

  private recover(): void {
    this.recovering = false;
    const { session, database, protocol } = this;
    this.onLost();
    if (session.inDoubt) {
      if (session.state === 'suspended') this.tell('asking');
      const { unprovable, token } = session.unit;
      if (unprovable !== null)
        this.tell('unknown', { code: 'OUTLIVE_OUTCOME_UNKNOWN', kind: 'outcome-unknown', message: 'unknown' });
      else if (token !== null && protocol.committed(database, token)) this.tell('committed');
      else this.tell('notCommitted');
    }
    this.server = protocol.connect(database);
    this.fromServer = Buffer.alloc(0);
    session.restoring();
    const blockers = session.codec.blockers();
    const stepper = new ExchangeStepper(session.codec.restore(this.server.login), {
      frameLength: protocol.codec.frameLength,
      peer: 'server',
    });
    let step = stepper.start();
    while (step.state === 'bytes') step = stepper.push(this.server.feed(Buffer.concat(step.send)));
    if (step.state !== 'done') throw new Error('the session was not restored', { cause: step });
    this.renew();
    if (blockers.length + step.result.length > 0) {
      session.codec.forgetBlockers();
      this.renew();
      this.tell('cannotContinue', { code: 'OUTLIVE_STATE_LOST', kind: 'state-lost', message: 'lost' });
    }
    this.tell('restored', this.server.login, null);
  }

  heard(): Buffer {
    return Buffer.concat(this.toClient);
  }
}
