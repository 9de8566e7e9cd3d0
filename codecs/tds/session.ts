import {
  BACKEND,
  type Blocker,
  type Carriage,
  type Disposition,
  type Exchange,
  FORWARD,
  FRONTEND,
  type FrameHeader,
  type GatewayError,
  INSPECT,
  type Injection,
  type LoginResult,
  type Marker,
  ProtocolViolation,
  RELAY,
  type Request,
  type SessionCodec,
  type SessionContext,
  type Side,
  type Sink,
  type StatusQuestion,
  type TransactionStatus,
  VERDICT,
} from '../../core/contract/index.js';
import { askBatch, askRpc, type Speech, textOf, type Value } from './ask.js';
import {
  FIRST_SIZE,
  FromClient,
  FromServer,
  type FrozenFromClient,
  type FrozenFromServer,
  type FrozenToClient,
  IGNORED,
  ToClient,
} from './carriage.js';
import { errorOf, gatewayError } from './errors.js';
import {
  DONE_ATTN,
  DONE_ERROR,
  DONE_MORE,
  doneStatus,
  ENV_BEGIN,
  ENV_COMMIT,
  ENV_DEFECT,
  ENV_ENLIST,
  ENV_PARTNER,
  ENV_RESET,
  ENV_ROLLBACK,
  ENV_TRANSACTION_ENDED,
  envChangeDescriptor,
  envChangeType,
  integerOf,
  readEnvChange,
  readMessage,
  readReturnValue,
} from './facts.js';
import {
  END,
  END_FRAME,
  FRAME_HEADER,
  flagsOf,
  frame,
  frameLength,
  PACKET_END,
  PARTIAL,
  SHORT_PACKET,
  tokenFrames,
} from './frames.js';
import type { Startup } from './greet.js';
import { BatchInjection } from './inject.js';
import type { LoginFacts } from './login.js';
import { PutMark } from './marks.js';
import { ATTENTION, IGNORE, packets, RESETCONNECTION, RESETCONNECTIONSKIPTRAN, TABULAR_RESULT } from './packet.js';
import { allHeaders, hasHeaders, readAllHeaders, rewriteDescriptor } from './request.js';
import { type Prepared, type TdsRequest, understand, type View } from './requests.js';
import { integerParameter, SP_CURSORPREPARE, SP_PREPARE, textParameter, writeRpc } from './rpc.js';
import { changeOf, type FrozenState, SessionState } from './state.js';
import { DONE, DONEPROC, ENVCHANGE, ERROR, INFO, LOGINACK, RETURNVALUE, TokenReader } from './tokens.js';
import { type Dialect, TDS_7_2, VERSION_8_0 } from './version.js';
import { attentionDone, done, endChange, error, info, mappedChange } from './write.js';

const EMPTY = new Uint8Array(0);
/** So many statements are prepared again at a time. */
const PREPARES = 32;
/** With one of these a statement begins a transaction by itself. */
const IMPLICIT = ['IMPLICIT_TRANSACTIONS', 'ANSI_DEFAULTS'];
/** With one of these a session runs nothing of what it is told. */
const IDLE = ['NOEXEC', 'PARSEONLY', 'FMTONLY', 'SHOWPLAN_ALL', 'SHOWPLAN_TEXT', 'SHOWPLAN_XML'];
/** Kinds of statements in DONE, for what the gateway answers itself. */
const CUR_COMMIT = 0xd5;
const CUR_ROLLBACK = 0xd6;

/** Facts that all sessions of a database share. */
export interface SharedFacts {
  /** The server tells (ENVCHANGE) of transactions that are begun and ended by text. */
  readonly announcesText: boolean;
}

/** A handle as its client knows it, on the present server. */
interface Handle {
  /** The server's number for it; 0 while there is no server. */
  server: number;
  /** Null for a cursor. */
  readonly prepared: Prepared | null;
}

/** The TDS codec of one session. */
export class TdsSession implements SessionCodec {
  readonly serial = true;
  stale = false;
  readonly collecting = 0;
  readonly token = null;
  readonly guard = {
    begin: (): Injection =>
      this.own('BEGIN TRANSACTION', (failed) => {
        // No descriptor comes of it where servers do not tell of transactions in text, and before 7.2.
        if (!failed && this.serverDescriptor === 0n) this.textOpen = true;
      }),
    // It may be over already.
    commit: (): Injection => this.own('IF @@TRANCOUNT > 0 COMMIT TRANSACTION'),
    rollback: (): Injection => this.own('IF @@TRANCOUNT > 0 ROLLBACK TRANSACTION', () => this.leave()),
    keeps: true,
  };
  readonly marker: Marker = {
    binding: false,
    insert: (mark) => {
      // Behind a statement by itself clients ask for @@IDENTITY; behind a COMMIT hardly one does, and to keep it costs a temporary table.
      return new PutMark(mark, this.guarded, this.dialect, () => this.over(ENV_ROLLBACK));
    },
  };

  private readonly startup: Startup;
  private fromClient = new FromClient();
  private toClient: ToClient | null = null;
  private fromServer: FromServer | null = null;
  /** As the present server was logged in to. */
  private speech: Speech;

  /** Sent, and not on its way yet. */
  private sending: TdsRequest | null = null;
  /** What the server is answering; null for what the gateway asks. */
  private head: TdsRequest | null = null;
  /** An error came in the answer. */
  private failed = false;
  /** The transaction ended in the answer. */
  private ended = false;

  /** What the client believes its transaction to be: what it sends in each request; 0 outside of one. */
  private clientDescriptor = 0n;
  /** The same on the present server. */
  private serverDescriptor = 0n;
  /** The same of a transaction that text began on a server that does not tell of those: its client has no descriptor. */
  private textOpen = false;
  /** A transaction began in the answer. */
  private began = false;
  /** A transaction is open, as the client knows it. */
  private open = false;
  /** BEGINs without their COMMITs, null when that is not known. */
  private depth: number | null = 0;
  private readonly savepoints = new Set<string>();

  /** A transaction of the gateway's own is around the client's request. */
  private guarded = false;

  private readonly handles = new Map<number, Handle>();
  /** How to undo what the open unit did to `handles`. */
  private undo: [handle: number, before: Handle | undefined][] = [];
  /** Handles of the open unit as the client knows them, while it is being repeated. */
  private believed: { readonly handles: readonly [number, Handle][]; readonly changes: number } | null = null;
  private state = new SessionState();

  constructor(private readonly context: SessionContext) {
    this.startup = context.greeting.startup as Startup;
    this.speech = { dialect: this.startup.dialect, packetSize: FIRST_SIZE };
  }

  // ------------------------------------------------------------------------------------------------------------ framing

  readonly carriage: Carriage = this.makeCarriage();

  private makeCarriage(): Carriage {
    const codec = this;
    return {
      frameLength: (bytes, start) => frameLength(bytes, start),
      unpack: (side, bytes) => (side === FRONTEND ? codec.fromClient.push(bytes) : codec.fromServer!.push(bytes)),
      pack: (side, frames) => (side === FRONTEND ? codec.toClient!.push(frames) : codec.toServer(frames)),
      get holding() {
        return codec.toClient?.holding === true;
      },
      get collecting() {
        return codec.fromClient.collecting;
      },
    };
  }

  /** Messages as the present server must get them: in its packets, with its own descriptor and handles. */
  private toServer(frames: Uint8Array): Uint8Array {
    const out: Uint8Array[] = [];
    for (let at = 0; at < frames.length; at += frameLength(frames, at)) {
      const kind = frames[at];
      const flags = flagsOf(frames, at);
      const payload = Uint8Array.prototype.slice.call(frames, at + FRAME_HEADER, at + frameLength(frames, at));
      if (kind === ATTENTION) {
        this.owed = true;
        out.push(packets(ATTENTION, EMPTY, this.speech.packetSize));
        continue;
      }
      const request = this.sending;
      this.sending = null;
      this.head = request;
      this.failed = false;
      this.ended = false;
      this.began = false;
      if ((flags & IGNORED) !== 0) {
        out.push(packets(kind, EMPTY, this.speech.packetSize, IGNORE));
        continue;
      }
      if (hasHeaders(kind, this.speech.dialect)) {
        const headers = readAllHeaders(payload, 0, payload.length);
        const own = request === null || headers.descriptor === this.clientDescriptor;
        if (own) rewriteDescriptor(payload, 0, headers, this.serverDescriptor);
      }
      const { uses } = request ?? {};
      if (uses) {
        const server = this.handles.get(uses.handle)?.server;
        if (server !== undefined)
          Buffer.from(payload.buffer, payload.byteOffset).writeInt32LE(server, uses.at - FRAME_HEADER);
      }
      // A reset leaves the gateway's own transaction alone.
      const keeps = request !== null && this.guarded && (flags & RESETCONNECTION) !== 0;
      out.push(packets(kind, payload, this.speech.packetSize, keeps ? RESETCONNECTIONSKIPTRAN : flags));
    }
    return out.length === 1 ? out[0] : Buffer.concat(out);
  }

  peek(side: Side, bytes: Uint8Array, start: number, end: number, out: FrameHeader): boolean {
    if (end - start < FRAME_HEADER) {
      out.need = FRAME_HEADER;
      return false;
    }
    const kind = bytes[start];
    out.type = kind;
    out.length = frameLength(bytes, start);
    out.need = out.length;
    out.asynchronous = false;
    out.notice = false;
    out.boundary = false;
    out.partial = false;
    out.treatment = INSPECT;
    if (side === FRONTEND) return true;
    switch (kind) {
      case END:
        // The server was done before it heard of the Attention: what acknowledges that comes in a message of its own.
        if (this.owed && !this.acknowledged) break;
        out.boundary = true;
        return true;
      case DONE:
      case DONEPROC: {
        const status = doneStatus(bytes, start + FRAME_HEADER);
        if (this.owed && (status & DONE_ATTN) !== 0) this.acknowledged = true;
        // It tells that the request is done.
        if (this.guarded && (status & DONE_MORE) === 0) return true;
        break;
      }
      case ERROR:
        return true;
      case PACKET_END:
        // While something is told in pieces, nothing can be said at the end of a packet.
        out.partial = this.amid;
        out.asynchronous = true;
        out.notice = true;
        break;
      case INFO:
        out.asynchronous = true;
        out.notice = true;
        break;
      default:
        this.amid = (flagsOf(bytes, start) & PARTIAL) !== 0;
        out.partial = this.amid;
    }
    out.treatment = RELAY;
    return true;
  }

  /** An Attention was sent ... */
  private owed = false;
  /** ... and acknowledged in the message that comes. */
  private acknowledged = false;
  /** The server's last frame goes on in the next one. */
  private amid = false;

  // ------------------------------------------------------------------------------------------------------- from the client

  decode(side: Side, bytes: Uint8Array, start: number, end: number, sink: Sink): Disposition {
    if (side === BACKEND) return this.answer(bytes, start, end, sink);
    if (bytes[start] === ATTENTION) {
      sink.interrupt(bytes, start, end);
      return FORWARD;
    }
    sink.request(understand(bytes, start, end, this.view), bytes, start, end);
    return FORWARD;
  }

  private get view(): View {
    return {
      dialect: this.speech.dialect,
      open: this.open,
      depth: this.depth,
      implicit: IMPLICIT.some((option) => this.state.isOn(option)),
      unsure: IMPLICIT.some((option) => this.state.unsureOf(option)),
      aborting: this.state.isOn('XACT_ABORT') || this.state.unsureOf('XACT_ABORT'),
      idle: IDLE.some((option) => this.state.isOn(option)),
      savepoints: this.savepoints,
      prepared: (handle) => this.handles.get(handle)?.prepared ?? undefined,
    };
  }

  sent(request: Request): void {
    this.sending = request as TdsRequest;
  }

  /** A batch of the gateway's own. */
  private own(text: string, done: (failed: boolean) => void = () => {}): Injection {
    const batch = new BatchInjection(text, this.dialect);
    return Object.assign(batch, { done: () => done(batch.failed() !== null) });
  }

  // ------------------------------------------------------------------------------------------------------- from the server

  /** Puts a token of the server into the client's terms, see `TokenTurn`. */
  private turn(type: number, token: Uint8Array): Uint8Array | readonly Uint8Array[] | null {
    if (type === ENVCHANGE) return this.turnChange(token);
    const { head } = this;
    if (type === RETURNVALUE && head !== null && (head.prepares !== null || head.cursorAt >= 0)) {
      return this.turnHandle(head, token);
    }
    return token;
  }

  private turnChange(token: Uint8Array): Uint8Array | readonly Uint8Array[] | null {
    const type = envChangeType(token, 0);
    switch (type) {
      case ENV_RESET: {
        const { head } = this;
        if (head?.renews !== true) return token;
        head.rollsBack ??= this.clientDescriptor;
        // What the present server never had is rolled back by the gateway.
        if (head.rollsBack === 0n || this.serverDescriptor !== 0n) return token;
        this.clientDescriptor = 0n;
        return [token, endChange(ENV_ROLLBACK, head.rollsBack)];
      }
      case ENV_PARTNER:
        return null;
      case ENV_BEGIN:
      case ENV_ENLIST: {
        const change = readEnvChange(token, 0, token.length);
        const server = envChangeDescriptor(change.newValue);
        this.serverDescriptor = server;
        this.began = true;
        const { head } = this;
        if (head === null) return token;
        // The client goes on with the one that it was given when this was done first.
        head.descriptor ??= server;
        this.clientDescriptor = head.descriptor;
        return mappedChange(change, head.descriptor, 0n);
      }
      case ENV_COMMIT:
      case ENV_ROLLBACK:
      case ENV_DEFECT:
      case ENV_TRANSACTION_ENDED: {
        const change = readEnvChange(token, 0, token.length);
        const client = this.clientDescriptor;
        this.serverDescriptor = 0n;
        this.textOpen = false;
        this.ended = true;
        // Its client knows of none.
        if (this.guarded) return null;
        if (this.head === null) return token;
        this.clientDescriptor = 0n;
        return mappedChange(change, 0n, client === 0n ? envChangeDescriptor(change.oldValue) : client);
      }
    }
    return token;
  }

  /** A RETURNVALUE with the handle that a request of the client asked for. */
  private turnHandle(head: TdsRequest, token: Uint8Array): Uint8Array {
    const { ordinal, value } = readReturnValue(token, 0, token.length, { dialect: this.speech.dialect });
    if (value === null || value === undefined || value.length !== 4) return token;
    const server = integerOf(value);
    let handle: number;
    if (ordinal === head.cursorAt) {
      head.cursor ??= this.freeHandle(server);
      handle = head.cursor;
      this.setHandle(handle, { server, prepared: null });
    } else if (ordinal === 0 && head.prepares !== null) {
      head.handle ??= this.freeHandle(server);
      handle = head.handle;
      this.setHandle(handle, { server, prepared: head.prepares });
    } else return token;
    if (handle === server) return token;
    const own = Uint8Array.from(token);
    Buffer.from(own.buffer).writeInt32LE(handle, own.length - 4);
    return own;
  }

  /** What the client gets for a handle: the server's, unless some other one that its client holds is called like that. */
  private freeHandle(server: number): number {
    let handle = server;
    while (this.handles.has(handle) && this.handles.get(handle)!.server !== server) handle++;
    return handle;
  }

  private setHandle(handle: number, to: Handle | undefined): void {
    this.undo.push([handle, this.handles.get(handle)]);
    if (to === undefined) this.handles.delete(handle);
    else this.handles.set(handle, to);
  }

  private answer(bytes: Uint8Array, start: number, end: number, sink: Sink): Disposition {
    if (bytes[start] === ERROR) {
      const message = readMessage(bytes, start + FRAME_HEADER, end, this.speech.dialect);
      this.failed = true;
      sink.error(errorOf(message));
      return FORWARD;
    }
    if (bytes[start] === DONE || bytes[start] === DONEPROC) return VERDICT;
    const { head } = this;
    this.head = null;
    this.owed = false;
    this.acknowledged = false;
    if (head === null) sink.ready(this.status);
    else if (this.unclear(head)) sink.ready(this.trancount(head));
    else {
      this.finish(head);
      sink.ready(this.status);
    }
    return FORWARD;
  }

  /** As the present server has it. */
  private get status(): TransactionStatus {
    return this.serverDescriptor !== 0n || this.textOpen ? 'open' : 'idle';
  }

  /** Only the server can tell whether a transaction is open now. */
  private unclear({ decides, reset }: TdsRequest): boolean {
    if ((this.context.shared() as SharedFacts | undefined)?.announcesText === true) return false;
    return decides || reset || (this.failed && this.status === 'open');
  }

  /** Asks how many transactions are open, after a request that may have changed that. */
  private trancount(head: TdsRequest): StatusQuestion {
    const { dialect } = this;
    const { failed, ended, began } = this;
    const question = new BatchInjection('SELECT @@TRANCOUNT', dialect);
    return Object.assign(question, {
      done: (): void => {
        const value: Value | undefined = question.told().rows[0]?.[0];
        const count = value === undefined ? Number.NaN : Number(textOf(value) ?? Number.NaN);
        if (!Number.isInteger(count)) throw new ProtocolViolation('the number of transactions is not told', 'server');
        const before = this.status;
        this.failed = failed;
        this.began = began || (before === 'idle' && count > 0);
        this.ended = ended || (before === 'open' && count === 0);
        this.textOpen = count > 0 && this.serverDescriptor === 0n;
        if (count === 0) this.serverDescriptor = 0n;
        this.finish(head);
        if (!this.guarded) this.depth = count;
      },
      status: () => this.status,
    });
  }

  /** A request is answered: what it changed of the session. */
  private finish(request: TdsRequest): void {
    const { failed } = this;
    const change = changeOf(request);
    if (change !== null) {
      const { settings, database, unknown } = change;
      const unsure = [...unknown, ...settings.map(([option]) => `setting ${option}`)];
      if (database !== null) unsure.push('database');
      // Of a batch that failed nobody knows how far it came.
      this.state.done(failed ? { ...change, settings: [], database: null, unknown: unsure } : change);
    }
    if (request.reset) for (const handle of [...this.handles.keys()]) this.setHandle(handle, undefined);
    if (request.closes !== null && !failed && request.closes.handle !== request.handle) {
      this.setHandle(request.closes.handle, undefined);
    }
    if (request.saves !== null && !failed) this.savepoints.add(request.saves);
    // The transaction is none of the client's.
    if (this.guarded) return;
    this.count(request);
    // Only its answer tells that it did not end the transaction.
    const decides = request.effect === 'commit' || request.effect === 'rollback';
    this.open = this.status === 'open';
    if (decides && !this.ended && this.open) request.effect = request.writes ? 'write' : 'read';
    if (!this.open) this.unitEnd();
  }

  /** Follows the nesting of transactions. */
  private count(request: TdsRequest): void {
    const { facts, effect } = request;
    if (this.status === 'idle' || this.began) {
      this.depth = 0;
      this.savepoints.clear();
    }
    if (this.status === 'idle') return;
    if (this.failed || facts?.conditional || facts?.opaque) this.depth = null;
    else if (request.manager >= 0) {
      if (request.label === 'TM_BEGIN_XACT') this.deepen(1);
      else if (request.label === 'TM_COMMIT_XACT') this.deepen(-1);
    } else if (facts !== null) {
      for (const { verb, name } of facts.control) {
        if (verb === 'begin') this.deepen(1);
        else if (verb === 'commit') this.deepen(-1);
        else if (verb === 'save') this.savepoints.add(name);
      }
      if (effect === 'begin' && facts.control.length === 0) this.depth = 1;
    } else this.depth = null;
  }

  private deepen(by: number): void {
    if (this.depth !== null) this.depth = Math.max(1, this.depth + by);
  }

  private unitEnd(): void {
    this.undo.length = 0;
    this.believed = null;
    this.state.unitEnd();
  }

  // --------------------------------------------------------------------------------------------------------------- state

  guardBegun(): void {
    this.guarded = true;
  }

  guardEnded(): void {
    this.guarded = false;
    this.leave();
    this.open = false;
    this.unitEnd();
  }

  /** The transaction on the server is over. */
  private leave(): void {
    this.serverDescriptor = 0n;
    this.textOpen = false;
  }

  rewind(): void {
    // A replay that was cut short has seen less than the client.
    if (this.undo.length >= (this.believed?.changes ?? 0)) {
      this.believed = { handles: [...this.handles], changes: this.undo.length };
    }
    for (let i = this.undo.length - 1; i >= 0; i--) {
      const [handle, before] = this.undo[i];
      if (before === undefined) this.handles.delete(handle);
      else this.handles.set(handle, before);
    }
    this.undo.length = 0;
    this.fromServer = null;
    this.sending = null;
    this.head = null;
    this.amid = false;
    this.owed = false;
    this.acknowledged = false;
    this.guarded = false;
    this.leave();
    this.state.rewind();
  }

  abandon(): void {
    // No rollback takes a handle away. On this server there is none behind it yet: the next one gets it again.
    if (this.believed !== null && this.undo.length < this.believed.changes) {
      for (const [handle, { prepared }] of this.believed.handles) {
        if (!this.handles.has(handle)) this.handles.set(handle, { server: 0, prepared });
      }
    }
    this.believed = null;
    this.undo.length = 0;
    this.state.abandon();
  }

  observe(): Injection | null {
    return null;
  }

  blockers(): Blocker[] {
    const cursors = [...this.handles].filter(([, { prepared }]) => prepared === null);
    return [...this.state.blockers(), ...cursors.map(([handle]) => ({ what: 'cursor', name: String(handle) }))];
  }

  forgetBlockers(): void {
    this.state.forgetBlockers();
    for (const [handle, { prepared }] of [...this.handles]) if (prepared === null) this.handles.delete(handle);
  }

  *restore(login: LoginResult): Exchange<Blocker[]> {
    this.attach(login.facts as LoginFacts);
    const lost = yield* this.restoreState();
    const all = [...this.handles].filter(([, { prepared }]) => prepared !== null);
    // Before 7.2 a message has no headers, and other bytes between its calls.
    const modern = this.dialect >= TDS_7_2;
    const most = modern ? PREPARES : 1;
    for (let i = 0; i < all.length; i += most) {
      const some = all.slice(i, i + most);
      const calls = some.map(([, { prepared }]) => ({
        procedure: prepared!.cursor ? SP_CURSORPREPARE : SP_PREPARE,
        parameters: [
          integerParameter(null, '', 1),
          textParameter(prepared!.declaration === '' ? null : prepared!.declaration),
          textParameter(prepared!.text),
          integerParameter(1),
        ],
      }));
      const message = writeRpc(0n, calls);
      const told = yield* askRpc(modern ? message : message.subarray(allHeaders(0n).length), this.speech);
      some.forEach(([handle, of], k) => {
        const value = told.calls[k]?.find(({ ordinal }) => ordinal === 0)?.value;
        if (value != null && value.length === 4) of.server = integerOf(value);
        else {
          this.handles.delete(handle);
          lost.push({ what: 'prepared statement', name: String(handle) });
        }
      });
    }
    return lost;
  }

  /** Brings a new server to the state of the session. Returns what it refuses of it. */
  private *restoreState(): Exchange<Blocker[]> {
    let batches = this.state.batches();
    const together = batches.filter(({ what }) => what !== 'bulk load');
    // Drivers make a dozen settings, and a failover brings many sessions: all at once. Which one was refused shows one by one.
    if (together.length > 1 && !IDLE.some((option) => this.state.isOn(option))) {
      const { errors } = yield* askBatch(together.map(({ text }) => text).join('\n'), this.speech);
      if (errors.length === 0) batches = batches.filter(({ what }) => what === 'bulk load');
    }
    const lost: Blocker[] = [];
    for (const { what, name, text } of batches) {
      const { errors } = yield* askBatch(text, this.speech);
      if (errors.length > 0) lost.push({ what, name });
    }
    return lost;
  }

  /** There is a new connection to a server. */
  private attach(facts: LoginFacts): void {
    const { dialect, packetSize } = facts;
    this.speech = { dialect, packetSize };
    this.fromServer = new FromServer(dialect, packetSize, { turn: (type, token) => this.turn(type, token) });
    this.fromServer.tokens.columnEncryption = facts.columnEncryption;
    this.fromServer.tokens.dataClassification = facts.dataClassification;
  }

  // --------------------------------------------------------------------------------------------------------------- synthesis

  welcome(login: LoginResult): Uint8Array {
    const facts = login.facts as LoginFacts;
    this.attach(facts);
    this.toClient = new ToClient(facts.packetSize, facts.spid);
    const { tokens } = facts;
    const told = this.startup.strict ? asStrict(tokens, facts.dialect) : tokens;
    return packets(TABULAR_RESULT, told, FIRST_SIZE, 0, facts.spid);
  }

  announce(): Uint8Array {
    // A client that waits for nothing is told nothing in TDS.
    return EMPTY;
  }

  private get dialect(): Dialect {
    return this.speech.dialect;
  }

  /** The client's transaction is over, without a server that could tell so. */
  private over(type: typeof ENV_COMMIT | typeof ENV_ROLLBACK): Uint8Array[] {
    const descriptor = this.clientDescriptor;
    this.clientDescriptor = 0n;
    this.open = false;
    return descriptor === 0n ? [] : [endChange(type, descriptor)];
  }

  readonly synthesize = {
    error: (cause: GatewayError): Uint8Array => {
      // Whatever became of the client's transaction: it is over.
      const change = this.over(ENV_ROLLBACK);
      this.state.bulkOver();
      const tokens = [error(gatewayError(cause), this.dialect), ...change, done({ status: DONE_ERROR }, this.dialect)];
      return Buffer.concat([tokenFrames(...tokens), END_FRAME]);
    },
    fatal: (cause: GatewayError): Uint8Array => {
      const tokens = [error(gatewayError(cause, true), this.dialect), done({ status: DONE_ERROR }, this.dialect)];
      return Buffer.concat([tokenFrames(...tokens), END_FRAME]);
    },
    committed: (_request: Request, released: number): Uint8Array => this.answered(ENV_COMMIT, CUR_COMMIT, released),
    rolledBack: (_request: Request, released: number): Uint8Array =>
      this.answered(ENV_ROLLBACK, CUR_ROLLBACK, released),
    interrupted: (unanswered: boolean): Uint8Array => {
      const acknowledged = [tokenFrames(attentionDone(this.dialect)), END_FRAME];
      if (!unanswered) return Buffer.concat(acknowledged);
      this.state.bulkOver();
      // As servers do: the request gets an answer, and the Attention one of its own, which some drivers look for in a second message only.
      return Buffer.concat([tokenFrames(done({ status: DONE_ERROR }, this.dialect)), END_FRAME, ...acknowledged]);
    },
    ready: (): Uint8Array => END_FRAME,
    keepalive: (message: string): Uint8Array | null =>
      Buffer.concat([
        tokenFrames(info({ number: 0, class: 0, message, server: 'outlive' }, this.dialect)),
        frame(PACKET_END, EMPTY, SHORT_PACKET),
      ]),
    goodbye: (): Uint8Array => EMPTY,
  };

  /** The answer to what ends a transaction, but for the tokens of it that were released. */
  private answered(type: typeof ENV_COMMIT | typeof ENV_ROLLBACK, curCmd: number, released: number): Uint8Array {
    const change = this.over(type);
    // One of them may be the change, which the client does not need to be told again then.
    const told = this.ended && change.length === 0 ? 1 : 0;
    const tokens = [...change, done({ curCmd }, this.dialect)].slice(Math.max(0, released - told));
    return Buffer.concat([tokenFrames(...tokens), END_FRAME]);
  }

  // -------------------------------------------------------------------------------------------------------------- comparison

  canonical(bytes: Uint8Array, start: number, end: number): Uint8Array | null {
    switch (bytes[start]) {
      case INFO:
      case PACKET_END:
        return null;
      case ERROR: {
        // Number, state and class: the text may name what is called otherwise on each server.
        const at = start + FRAME_HEADER + 3;
        return bytes.subarray(at, at + 6);
      }
      default:
        return bytes.subarray(start, end);
    }
  }

  verbatim(bytes: Uint8Array, start: number): boolean {
    return bytes[start] !== INFO && bytes[start] !== PACKET_END && bytes[start] !== ERROR;
  }

  freeze(): FrozenSession {
    return {
      fromClient: this.fromClient.freeze(),
      toClient: this.toClient?.freeze() ?? null,
      fromServer: this.fromServer?.freeze() ?? null,
      speech: this.speech,
      sending: this.sending,
      head: this.head,
      failed: this.failed,
      ended: this.ended,
      clientDescriptor: this.clientDescriptor,
      serverDescriptor: this.serverDescriptor,
      textOpen: this.textOpen,
      began: this.began,
      guarded: this.guarded,
      open: this.open,
      depth: this.depth,
      savepoints: this.savepoints,
      handles: this.handles,
      undo: this.undo,
      believed: this.believed,
      state: this.state.freeze(),
      amid: this.amid,
      owed: this.owed,
      acknowledged: this.acknowledged,
      stale: this.stale,
    };
  }

  /** The codec of a session as {@link freeze} left it; what it left belongs to the new one from now on. */
  static thaw(context: SessionContext, frozen: FrozenSession): TdsSession {
    const session = new TdsSession(context);
    const { fromClient, toClient, fromServer, state, ...fields } = frozen;
    Object.assign(session, fields);
    session.fromClient = FromClient.thaw(fromClient);
    session.toClient = toClient === null ? null : ToClient.thaw(toClient);
    const turn = { turn: (type: number, token: Uint8Array) => session.turn(type, token) };
    session.fromServer = fromServer === null ? null : FromServer.thaw(fromServer, turn);
    session.state = SessionState.thaw(state);
    return session;
  }
}

/** What {@link TdsSession.freeze} tells. */
export interface FrozenSession {
  readonly fromClient: FrozenFromClient;
  readonly toClient: FrozenToClient | null;
  readonly fromServer: FrozenFromServer | null;
  readonly speech: Speech;
  readonly sending: TdsRequest | null;
  readonly head: TdsRequest | null;
  readonly failed: boolean;
  readonly ended: boolean;
  readonly clientDescriptor: bigint;
  readonly serverDescriptor: bigint;
  readonly textOpen: boolean;
  readonly began: boolean;
  readonly guarded: boolean;
  readonly open: boolean;
  readonly depth: number | null;
  readonly savepoints: Set<string>;
  readonly handles: Map<number, Handle>;
  readonly undo: [handle: number, before: Handle | undefined][];
  readonly believed: { readonly handles: readonly [number, Handle][]; readonly changes: number } | null;
  readonly state: FrozenState;
  readonly amid: boolean;
  readonly owed: boolean;
  readonly acknowledged: boolean;
  readonly stale: boolean;
}

/** The answer to a login with TDS 7.4 as the answer to one with 8.0. */
function asStrict(tokens: Uint8Array, dialect: Dialect): Uint8Array {
  const own = Uint8Array.from(tokens);
  const reader = new TokenReader(dialect);
  reader.push(tokens, 0, tokens.length, {
    rows: () => {},
    // The version stands behind type, length and interface, its bytes in the order of reading.
    token: (type) => {
      if (type === LOGINACK) Buffer.from(own.buffer).writeUInt32BE(VERSION_8_0, reader.position + 4);
    },
  });
  return own;
}
