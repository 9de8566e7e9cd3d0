import {
  BACKEND,
  type Carriage,
  type Codec,
  CodedError,
  FORWARD,
  FRONTEND,
  type FrameHeader,
  type GatewayError,
  type Injection,
  type LoginResult,
  type Marker,
  type MarkInjection,
  RELAY,
  type Repetition,
  type Request,
  type SeenRequest,
  type ServerError,
  type SessionCodec,
  type SessionContext,
  type Sink,
  type StatusQuestion,
  SWALLOW,
  type TokenInjection,
  type TransactionStatus,
  VERDICT,
} from '../contract/index.js';
import { type Canon, type FrozenRecord, keepApart, RequestRecord } from '../journal/record.js';
import { Verifier } from '../journal/verify.js';
import { ByteWindow } from '../stream/queue.js';
import type { Capsule, FrozenItem, FrozenPending } from './capsule.js';
import { type Item, Pending } from './pending.js';
import { BY_POSITION, markOf, type ProofPolicy } from './proof.js';
import { type Event, next, type State } from './states.js';
import { Unit } from './unit.js';
import type { SessionIo, SessionLimits, SessionStats } from './world.js';

/** Frames up to this size reach the client whole, so that the gateway can speak between any two of them. */
const WHOLE = 64 * 1024;
/** So many answered requests of an open unit get a buffer of their own: short transactions never do. */
const LOOSE = 8;
/** Up to so many bytes are moved within a chunk to save a write. */
const SLIDE = 4096;
const EMPTY = new Uint8Array(0);
/** In the others the gateway is amid something of its own. */
const FREEZABLE: ReadonlySet<State> = new Set(['connecting', 'live', 'suspended', 'restoring', 'detached']);

/**
 * One session: between a client that stays and servers that come and go. Pure: bytes in, bytes out through {@link SessionIo};
 * no socket, no clock. See ARCHITECTURE.md, "Life of a session".
 */
export class Session implements Sink {
  state: State = 'connecting';
  /** What the client was last told about its transaction. */
  clientStatus: TransactionStatus = 'idle';
  readonly unit = new Unit();
  /** How many requests and units were answered to their end: the measure of progress. */
  answered = 0;

  // From the client.
  private readonly window = new ByteWindow();
  private scan = 0;
  private expected = 0;
  private inputLeft = 0;
  private queue: Item[] = [];
  private queued = 0;
  private clientPaused = false;
  /** Requests that take bulk input and are not answered: what the client's next bytes mean depends on the first of them. */
  private readonly barriers: Request[] = [];
  /** The present server asked for the input of the first of them. */
  private inputOpen = false;
  /** Bytes of the client were left in the window because their meaning is not known yet. */
  private deaf = false;

  /**
   * The present server can make nothing durable (a hot standby): there is nothing to prove, so no token is asked for, nothing is ever in
   * doubt, and what is lost with the server is repeated.
   */
  private readOnly = false;

  // To the server: one contiguous region is written at once.
  private outBytes: Uint8Array = EMPTY;
  private outStart = 0;
  private outEnd = 0;
  /** More than one region is on its way: they leave together. */
  private corked = false;

  // From the server.
  private carry: Uint8Array | null = null;
  private relayLeft = 0;
  /** A server was lost when the client had received only a part of a long frame. */
  private midFrame = false;
  /** What the client got last is {@link FrameHeader.partial}. */
  private partial = false;
  private readonly pending: Pending[] = [];
  /** The last one that was answered, for the next request: most sessions have one at a time. */
  private spare: Pending | null = null;
  private records: RequestRecord[] = [];
  /** Answered ones of the open unit that still lie in buffers shared with other sessions. */
  private readonly loose: RequestRecord[] = [];
  private projectedOpen = false;
  private gates = 0;
  private doubtError: ServerError | null = null;
  private doubtRest: Uint8Array = EMPTY;
  private readyStatus: TransactionStatus | null = null;
  private readyQuestion: StatusQuestion | null = null;

  // A transaction of the gateway's own around the client's request.
  private guarding = false;
  /** It is being rolled back. */
  private abandoning = false;
  private verdict: Uint8Array[] = [];

  // After something went wrong.
  private heldReady: Uint8Array | null = null;
  private deferred: GatewayError | null = null;
  /** The client's transaction is failed by the gateway: a new server's must be put into the same state. */
  private poisoned = false;
  private replayQueue: RequestRecord[] = [];
  /** Requests of the open unit as {@link seen} told them last, ... */
  private told: readonly RequestRecord[] = [];
  /** ... and how each of them is repeated on the present server (null: as it is). Null when no unit was moved. */
  private repetitions: Map<RequestRecord, Repetition | null> | null = null;

  private readonly header: FrameHeader = {
    length: 0,
    need: 0,
    treatment: RELAY,
    asynchronous: false,
    notice: false,
    boundary: false,
    partial: false,
    type: 0,
  };

  private readonly carriage: Carriage | null;
  private readonly canon: Canon;
  /** Marks that were made so far. */
  private marks = 0;

  /** @param frameLength of the codec that `codec` is of a session of */
  constructor(
    readonly codec: SessionCodec,
    frameLength: Codec['frameLength'],
    private readonly limits: SessionLimits,
    private io: SessionIo,
    private stats: SessionStats,
    private readonly proof: ProofPolicy = BY_POSITION,
  ) {
    const carriage = codec.carriage ?? null;
    this.carriage = carriage;
    this.canon = {
      frameLength: carriage === null ? frameLength : (bytes, start, end) => carriage.frameLength(bytes, start, end),
      canonical: (bytes, start, end) => codec.canonical(bytes, start, end),
      verbatim: (bytes, start) => codec.verbatim(bytes, start),
    };
  }

  /** What leaves marks of commits; null when they are proved otherwise, or not at all. */
  private get marker(): Marker | null {
    return this.proof.by === 'marker' ? (this.codec.marker ?? null) : null;
  }

  /** True when the server is asked for tokens. */
  private get asks(): boolean {
    return this.proof.by === 'position' && this.codec.token !== null;
  }

  /** True when the outcome of a commit can be learnt. */
  private get provable(): boolean {
    return this.asks || this.marker !== null;
  }

  /** From now on it acts upon another world: it was followed, and is now gone on with. */
  entrust(io: SessionIo, stats: SessionStats): void {
    this.io = io;
    this.stats = stats;
  }

  /** True when the client has only a part of a frame: nothing else can be said to it before the rest. */
  get amidFrame(): boolean {
    return this.midFrame || this.partial || this.relayLeft > 0;
  }

  /** True when the client can be told something past this session: that would stand between two frames. */
  get between(): boolean {
    return !this.amidFrame && this.carriage?.holding !== true;
  }

  /** True when so much is held that the client should not be read. */
  get full(): boolean {
    return this.clientPaused;
  }

  /** Moves the state machine. */
  private step(event: Event): void {
    this.state = next(this.state, event);
  }

  // -------------------------------------------------------------------------------------------------------- from the client

  /**
   * Bytes from the client.
   * @throws ProtocolViolation, CodedError: the client is at fault; nothing of the violating frame was forwarded
   */
  frontend(chunk: Uint8Array): void {
    if (this.state === 'passing') {
      this.io.toServer(chunk);
      return;
    }
    const { carriage } = this;
    const frames = carriage === null ? chunk : carriage.unpack(FRONTEND, chunk);
    if (frames.length > 0) this.take(frames);
    if (carriage !== null && (this.state as State) !== 'closed') this.bound(carriage.collecting);
  }

  /** @param length of a request, as far as it has come or is announced */
  private bound(length: number): void {
    const { request } = this.limits;
    if (length <= request) return;
    throw new CodedError(
      'OUTLIVE_REQUEST_TOO_LARGE',
      'client',
      `a request of ${length} bytes exceeds limits.request (${request} bytes): raise the limit or send less at once`,
    );
  }

  /** Frames from the client, or pieces of them. */
  private take(chunk: Uint8Array): void {
    const w = this.window;
    const shift = w.start;
    const before = w.length;
    w.push(chunk, this.expected);
    // The window may have moved its bytes to another place.
    this.scan = before === 0 ? w.start : this.scan - shift + w.start;
    this.hear();
  }

  /** True while what the client says next cannot be understood: it is input, or it is not, as the server will say. */
  private get barred(): boolean {
    // Behind a second one, it is that one that matters, and the server has not come to it.
    return this.barriers.length > 1 || (this.barriers.length > 0 && !this.inputOpen);
  }

  /** Goes on with what was left unheard. */
  private hearAgain(): void {
    if (this.deaf && !this.barred && this.state !== 'closed') this.hear();
  }

  /** Understands what the client said, as far as its meaning is known. */
  private hear(): void {
    const w = this.window;
    this.deaf = false;
    while (this.scan < w.end) {
      if (this.barred) {
        this.deaf = true;
        break;
      }
      if (this.inputLeft > 0) {
        const n = Math.min(this.inputLeft, w.end - this.scan);
        this.moreInput(w.bytes, this.scan, this.scan + n);
        this.inputLeft -= n;
        this.scan += n;
        w.start = this.scan;
        continue;
      }
      const h = this.header;
      if (!this.codec.peek(FRONTEND, w.bytes, this.scan, w.end, h)) {
        this.expected = 0;
        break;
      }
      if (h.treatment === RELAY) {
        // Input of the request in progress; what was collected before it cannot be a request's beginning. Frames that follow
        // each other go as one piece: many clients send a frame for each row.
        let to = this.scan + h.length;
        while (to < w.end && this.codec.peek(FRONTEND, w.bytes, to, w.end, h) && h.treatment === RELAY) to += h.length;
        const end = Math.min(to, w.end);
        this.moreInput(w.bytes, this.scan, end);
        this.inputLeft = to - end;
        this.scan = end;
        w.start = this.scan;
        continue;
      }
      const whole = this.scan - w.start + h.length;
      this.bound(whole);
      if (this.scan + h.length > w.end) {
        this.expected = whole;
        break;
      }
      const frameEnd = this.scan + h.length;
      this.codec.decode(FRONTEND, w.bytes, this.scan, frameEnd, this);
      if ((this.state as State) === 'closed') return;
      this.scan = frameEnd;
      w.start = frameEnd - this.codec.collecting;
    }
    this.flushOut();
    w.consume(w.start);
    if (w.length === 0) this.scan = w.start;
    this.pressure();
  }

  /** {@link Sink.request} */
  request(request: Request, bytes: Uint8Array, start: number, end: number): void {
    this.stats.requests++;
    if (request.barrier) this.barriers.push(request);
    const simple = this.queue.length === 0 && this.state === 'live' && this.gates === 0;
    if (simple && !this.codec.mutables?.adjusting && this.plain(request)) {
      this.forward(request, null, bytes, start, end);
      return;
    }
    this.queue.push({ request, input: [bytes.subarray(start, end)], record: null });
    this.queued += end - start;
    if (this.state === 'detached') this.wake();
    else this.pump();
  }

  /** {@link Sink.interrupt} */
  interrupt(bytes: Uint8Array, start: number, end: number): void {
    const record = this.records.find(({ status }) => status === null);
    if (record !== undefined) {
      if (this.forget(record)) return;
      record.interrupt = Uint8Array.prototype.slice.call(bytes, start, end);
      // It is answered, and its guard is about to end.
      if (this.guarding && !this.pending.some((pending) => pending.record === record)) this.interruptOwed = true;
      // Else it leaves behind the request, or when the client's part of the answer has come again.
      const head = this.pending[0];
      if (this.state === 'live' && head?.record === record && head.unsent === null) this.interruptNow(head);
      return;
    }
    // What has not left is forgotten.
    const item = this.queue.shift();
    if (item !== undefined) {
      this.marking = false;
      this.inputOver(item.request);
      for (const piece of item.input) this.queued -= piece.length;
    }
    this.say(this.codec.synthesize.interrupted!(item !== undefined));
  }

  /**
   * Forgets a request that its client cancels while there is no server to tell so: clients do not wait for long. Only one that cannot have
   * taken effect, and that only reads or of whose answer nothing was heard: as if it had been stopped there.
   */
  private forget(record: RequestRecord): boolean {
    const away = this.state === 'suspended' || this.state === 'restoring';
    if (!away || this.inDoubt || this.amidFrame) return false;
    if (!record.answer.empty && record.request.effect !== 'read') return false;
    this.records = this.records.filter((r) => r !== record);
    this.inputOver(record.request);
    if (this.guarding) {
      this.guarding = false;
      this.verdict = [];
      this.codec.guardEnded(false);
    }
    if (this.records.length === 0) this.unit.reset();
    this.say(this.codec.synthesize.interrupted!(true));
    return true;
  }

  /** Sends what the client said to cancel the request that the server is answering. */
  private interruptNow({ record, verifier }: Pending): void {
    const interrupt = record?.interrupt ?? null;
    if (interrupt !== null && verifier === null) this.send(interrupt, 0, interrupt.length);
  }

  /** Tells the client of a request that was answered here that its cancelling was heard. */
  private answerInterrupt({ interrupt }: RequestRecord): void {
    if (interrupt !== null) this.say(this.codec.synthesize.interrupted!(false));
  }

  /** The client cancelled a guarded request when the server had answered it: it is told so behind its answer. */
  private interruptOwed = false;

  private payInterrupt(): void {
    if (!this.interruptOwed) return;
    this.interruptOwed = false;
    this.say(this.codec.synthesize.interrupted!(false));
  }

  /** {@link Sink.goodbye} */
  goodbye(): void {
    this.flushOut();
    this.close();
    this.io.closeClient();
  }

  /** Bulk input of the request that the server waits with. */
  private moreInput(bytes: Uint8Array, start: number, end: number): void {
    const request = this.barriers[0];
    // Nobody waits for it: its request has failed. A server ignores such input, and it may be the rest of a frame whose beginning
    // went to another server.
    if (request === undefined) return;
    this.send(bytes, start, end);
    const record = this.records.findLast((r) => r.request === request);
    if (record !== undefined) this.journal(record, bytes.subarray(start, end));
  }

  /** Input for this request means nothing any more. */
  private inputOver(request: Request): void {
    const at = this.barriers.indexOf(request);
    if (at < 0) return;
    this.barriers.splice(at, 1);
    if (at === 0) this.inputOpen = false;
  }

  private journal(record: RequestRecord, bytes: Uint8Array): void {
    if (this.unit.oversized) return;
    record.addInput(bytes);
    this.unit.inputBytes += bytes.length;
    if (this.unit.inputBytes > this.limits.journal) {
      // The unit can no longer be repeated; its memory is given back, its outcome can still be asked.
      this.unit.oversized = true;
      for (const r of this.records) r.dropInput();
      this.io.count('unprotected', 'journal limit');
    }
  }

  // ------------------------------------------------------------------------------------------------------- to the server

  /** The request that goes out without any ado: nothing to guard, nothing to arm. */
  private plain(request: Request): boolean {
    return (
      (this.heldReady === null &&
        this.deferred === null &&
        !this.guarding &&
        this.codec.serial !== true &&
        request.effect === 'read' &&
        !request.mustGuard) ||
      this.admits(request)
    );
  }

  /** May this request go to the server now? May start what must come before it. */
  private admits(request: Request): boolean {
    if (this.gates > 0 || (this.codec.serial === true && this.pending.length > 0)) return false;
    if (this.heldReady !== null || this.deferred !== null) return this.pending.length === 0;
    // Only what belongs to the guarded group goes into its transaction; all else waits until that is over.
    if (this.guarding && (this.abandoning || !this.records[this.records.length - 1]?.request.joined)) return false;
    const open = this.projectedOpen || this.guarding;
    if (!open) {
      // What needs care waits until everything before it is answered.
      if ((request.effect !== 'read' && request.effect !== 'session') || request.mustGuard) {
        if (this.pending.length > 0) return false;
        return request.effect === 'begin' || this.wrappable(request) || this.mayDecide();
      }
      return true;
    }
    if (request.effect === 'commit' && this.unit.unarmed && !this.unit.refused && this.mustArm(request)) return false;
    // Commits and rollbacks decide about everything before them: that must be answered, so that nothing is left in doubt beside them.
    if (request.effect === 'rollback') return this.pending.length === 0;
    if (request.effect === 'commit') return this.pending.length === 0 && this.mayDecide();
    return true;
  }

  /** May a transaction of the gateway's own be put around this request? */
  private wrappable({ effect, mustGuard, guardable }: Request): boolean {
    // Where nothing can be written, or nothing is to be proved, a guard only holds together what belongs together.
    const needed =
      this.readOnly || this.proof.autocommit === 'unknown'
        ? mustGuard && (effect === 'read' || effect === 'session' || effect === 'write')
        : effect === 'write' || ((effect === 'read' || effect === 'session') && mustGuard);
    return needed && guardable && this.codec.guard !== null && this.provable;
  }

  /** Starts what must be done before this commit may leave. False when it can leave as it is, with what goes in front of it. */
  private mustArm(commit: Request): boolean {
    const { marker } = this;
    if (marker === null) {
      if (this.asks) this.arm();
      return this.asks;
    }
    if (marker.binding || !this.markable(commit)) return false;
    if (this.pending.length === 0) this.markAhead();
    return true;
  }

  /** See {@link SessionIo.durable}. */
  private mayDecide(): boolean {
    return this.readOnly || this.proceeding || this.io.durable();
  }

  private proceeding = false;
  /** The guarded request is to be committed as soon as that may be. */
  private guardDue = false;

  /** What `durable()` held back may leave. */
  proceed(): void {
    this.proceeding = true;
    if (this.guardDue) {
      this.guardDue = false;
      this.closeGuard();
    }
    this.pump();
    this.proceeding = false;
  }

  /** Sends what waits, as far as it may go. */
  private pump(): void {
    while (this.queue.length > 0 && this.state === 'live') {
      const item = this.queue[0];
      if (!this.admits(item.request) || this.inquire(item)) break;
      this.queue.shift();
      for (const bytes of item.input) this.queued -= bytes.length;
      if (this.answerHere(item.request)) continue;
      const [first, ...rest] = item.input;
      this.forward(item.request, item.record, first, 0, first.length);
      for (const bytes of rest) {
        this.sendMore(this.pending[this.pending.length - 1], bytes);
        if (item.record === null) this.journal(this.records[this.records.length - 1], bytes);
      }
    }
    this.flushOut();
    this.pressure();
  }

  /** The server is being asked what a held request needs. */
  private inquiring = false;

  /** Asks what must be known before this request can be sent as its client means it. Returns true while it has to wait. */
  private inquire({ request, record, input: [bytes] }: Item): boolean {
    const { mutables } = this.codec;
    if (this.inquiring) return true;
    if (!mutables?.adjusting || (record !== null && this.repetitions?.has(record))) return false;
    const injection = mutables.inquire(request, bytes, 0, bytes.length);
    if (injection === null) return false;
    this.inquiring = true;
    this.inject(injection, () => {
      this.inquiring = false;
      const error = injection.failed();
      if (error !== null) this.brokenOff(error);
      this.pump();
    });
    return true;
  }

  /** Answers a request without the server, when an earlier part of it failed or an error waits for the client's next request. */
  private answerHere(request: Request): boolean {
    if (this.deferred !== null && this.deferred.kind !== 'outcome-unknown' && request.renews === true) {
      this.deferred = null;
      this.clientStatus = 'idle';
      return this.answerHere(request);
    }
    if (this.deferred !== null) {
      const ends = request.effect === 'rollback' || (request.effect === 'commit' && this.clientStatus === 'failed');
      if (ends && !request.joined) {
        // The client gives its transaction up by itself; it need not be told.
        this.deferred = null;
        return this.rolledBack(request, 0);
      }
      this.inputOver(request);
      if (request.joined) return true;
      this.tellFailure(this.deferred, this.clientStatus === 'idle' ? 'idle' : 'failed');
      this.deferred = null;
      return true;
    }
    if (this.heldReady !== null) {
      this.inputOver(request);
      if (request.joined) return true;
      this.say(this.heldReady);
      this.heldReady = null;
      return true;
    }
    return false;
  }

  /** Answers a rollback of what is gone already, where the protocol has no other word for that. */
  private rolledBack(request: Request, released: number): boolean {
    const bytes = this.codec.synthesize.rolledBack?.(request, released);
    if (bytes === undefined) return false;
    this.say(bytes);
    this.clientStatus = 'idle';
    return true;
  }

  /** Answers with an error of the gateway's own, after which the client believes this status. */
  private tellFailure(error: GatewayError, status: TransactionStatus): void {
    const { synthesize } = this.codec;
    this.say(synthesize.error(error, status));
    this.clientStatus = synthesize.rolledBack === undefined ? status : 'idle';
  }

  private forward(request: Request, record: RequestRecord | null, bytes: Uint8Array, start: number, end: number): void {
    if (record === null && (this.heldReady !== null || this.deferred !== null) && this.answerHere(request)) return;
    const pending = this.spare ?? new Pending();
    this.spare = null;
    const effect = request.effect;
    if (effect !== 'read' || request.mustGuard) this.prepare(request, pending);
    if (request.joined || request.barrier) pending.gates = true;
    if (pending.gates) this.gates++;
    if (record === null) {
      record = new RequestRecord(request);
      this.records.push(record);
      if (!this.unit.oversized)
        this.journal(record, start === 0 && end === bytes.length ? bytes : bytes.subarray(start, end));
    } else {
      this.records.push(record);
      if (!record.answer.empty) pending.verifier = new Verifier(record, this.canon);
    }
    pending.record = record;
    if (this.repetitions !== null || this.codec.mutables?.adjusting) this.dispatchAnew(pending, bytes, start, end);
    else this.dispatch(request, pending, bytes, start, end);
  }

  /** Sends a request so that it yields what the client has seen. */
  private dispatchAnew(pending: Pending, bytes: Uint8Array, start: number, end: number): void {
    const record = pending.record!;
    const { request } = record;
    const { mutables } = this.codec;
    let repetition = this.repetitions?.get(record);
    // What came after the plan was made.
    if (repetition === undefined) repetition = mutables?.adjusting ? mutables.adjust(request, bytes, start, end) : null;
    if (repetition === null) {
      this.dispatch(request, pending, bytes, start, end);
      return;
    }
    pending.doubts = repetition.doubts;
    if (repetition.before !== null) {
      pending.preparation = mutables!.prepare(repetition.before);
      this.inject(pending.preparation, null);
    }
    this.dispatch(request, pending, repetition.bytes, 0, repetition.bytes.length);
  }

  /** Sends a request, and with it or behind it the question for the token that it needs. */
  private dispatch(request: Request, pending: Pending, bytes: Uint8Array, start: number, end: number): void {
    const { codec, unit } = this;
    if (request.effect === 'commit' && unit.unarmed && this.marker !== null && this.markable(request))
      this.markBefore(pending);
    // The codec counts what was sent before it is asked for the token.
    if (!this.later) codec.sent(request);
    unit.refused = false;
    if (!unit.unarmed || !this.asks || !this.armable(request)) {
      this.await(pending, bytes, start, end);
      return;
    }
    const token = codec.tokenAlong?.(request, bytes, start, end) ?? null;
    if (token === null) {
      this.await(pending, bytes, start, end);
      this.arm();
      return;
    }
    unit.arming = true;
    unit.unarmed = false;
    pending.token = token;
    this.await(pending, token.bytes, 0, token.bytes.length);
  }

  /** Sends what `pending` is the answer to: at once, or in its turn. */
  private await(pending: Pending, bytes: Uint8Array, start: number, end: number): void {
    const { later } = this;
    this.pending.push(pending);
    if (later) pending.unsent = [bytes.subarray(start, end)];
    else {
      this.send(bytes, start, end);
      this.interruptNow(pending);
    }
  }

  /** What is to be sent now has to wait for the answers before it. */
  private get later(): boolean {
    return this.codec.serial === true && this.pending.length > 0;
  }

  /** Sends input that belongs to the request of `pending`. */
  private sendMore(pending: Pending, bytes: Uint8Array): void {
    if (pending.unsent !== null) pending.unsent.push(bytes);
    else this.send(bytes, 0, bytes.length);
  }

  /** The first of what is awaited is answered: what waited for that leaves. */
  private shift(): void {
    this.pending.shift();
    const next = this.pending[0];
    if (next === undefined || next.unsent === null) return;
    const { unsent, record } = next;
    next.unsent = null;
    if (record !== null) this.codec.sent(record.request);
    for (const bytes of unsent) this.send(bytes, 0, bytes.length);
    this.interruptNow(next);
  }

  /** May the token be asked for together with this request? */
  private armable({ effect, barrier }: Request): boolean {
    if (barrier || effect === 'commit' || effect === 'rollback') return false;
    return (this.projectedOpen || this.guarding) && !this.unit.arming;
  }

  /** What must be arranged before a request that is not a plain read leaves. */
  private prepare(request: Request, pending: Pending): void {
    const unit = this.unit;
    const effect = request.effect;
    const open = this.projectedOpen || this.guarding;
    if (!open) {
      if (this.wrappable(request)) {
        this.guarding = true;
        this.codec.guardBegun();
        const begin = this.codec.guard!.begin();
        this.inject(begin, () => {
          // A cancel that meant the request hit this instead: the request commits by itself, and nothing proves it.
          if (begin.failed() !== null && !this.readOnly) unit.opaque = request.label;
        });
      } else if (effect !== 'session' && effect !== 'begin') {
        // Outside a transaction and not to be wrapped: its outcome cannot be learnt.
        if (!this.readOnly && (effect === 'write' || effect === 'opaque')) unit.opaque = request.label;
        pending.gates = true;
      }
      if (effect === 'begin') pending.gates = true;
    } else if (effect === 'commit' || effect === 'rollback') {
      pending.gates = true;
      if (effect === 'commit') {
        unit.commitSent = true;
        if (!request.provable && !this.readOnly) unit.deciding = request.label;
      }
    }
    if (request.writes && !this.readOnly) {
      unit.writes = true;
      if (unit.token === null) unit.unarmed = true;
    }
    if (unit.commitSent && unit.writes && !this.provable && !this.readOnly) unit.deciding = request.label;
  }

  /** Learns the outcome token of the open transaction. */
  private arm(): void {
    const unit = this.unit;
    if (unit.arming) return;
    unit.arming = true;
    unit.unarmed = false;
    unit.refused = false;
    const injection = this.codec.token!();
    this.inject(injection, () => {
      const failed = this.tokenTold(injection);
      if (this.guarding) {
        if (failed && !this.abandoning) this.refuseGuard(injection.errorBytes()!);
        else if (!this.abandoning) this.closeGuard();
        return;
      }
      if (failed) this.brokenOff(injection.failed()!);
      this.pump();
    });
  }

  /**
   * The server failed the client's transaction over a question of the gateway's own (a cancel or a timeout came just now): the client is
   * told with its next request, as its COMMIT would quietly do nothing.
   */
  private brokenOff(error: ServerError): void {
    if (this.state !== 'live' || this.clientStatus !== 'open' || this.heldReady !== null) return;
    this.deferred ??= {
      code: 'OUTLIVE_TOKEN_REFUSED',
      kind: 'retry-transaction',
      message: `the server failed the transaction over a question of the gateway's own (SQLSTATE ${error.code})`,
      hint: 'Roll back and run the transaction again.',
    };
  }

  /** The question for the token was answered. Returns true when it was refused. */
  private tokenTold(token: TokenInjection): boolean {
    const { unit } = this;
    const failed = token.failed() !== null;
    unit.arming = false;
    // Null: it has nothing to commit so far.
    unit.token = failed ? null : token.token();
    if (unit.token !== null) unit.unarmed = false;
    // In the failed state nothing commits, but what lies before a savepoint may, once the rest is undone.
    else if (failed) unit.unarmed = unit.refused = true;
    return failed;
  }

  /** Is a row to be left before this commit? A failed transaction commits nothing, and what cannot be proved needs none. */
  private markable(commit: Request): boolean {
    return commit.provable && !this.unit.failed;
  }

  /** Puts the unit's row into the open transaction. */
  private mark(onDone: (injection: MarkInjection) => void): void {
    const { unit } = this;
    unit.mark ??= markOf(this.proof, ++this.marks);
    // What leaves behind it may take effect whether or not any answer comes.
    unit.token = { token: null, position: -1n, mark: unit.mark };
    unit.unarmed = false;
    this.io.marked(unit.mark.database);
    const injection = this.marker!.insert(unit.mark);
    this.inject(injection, () => {
      const marked = injection.marked();
      if (marked === 'nothing' || marked === 'refused') unit.token = null;
      onDone(injection);
    });
  }

  /** Puts the row in front of a commit that leaves with it. */
  private markBefore(commit: Pending): void {
    this.mark((injection) => {
      const marked = injection.marked();
      if (marked === 'taken') this.repeatedInVain();
      else if (marked === 'refused') commit.refused = injection;
    });
  }

  /** The first of the queue, or what is about to be that, is a commit that waits for its row. */
  private marking = false;

  /** Puts the row in front of a commit that waits for it: the first of the queue. */
  private markAhead(): void {
    this.gates++;
    this.marking = true;
    this.mark((injection) => {
      const marked = injection.marked();
      if (marked === 'refused') {
        // The commit is answered here: nothing of its transaction may stay.
        this.inject(this.codec.guard!.rollback(), () => this.refuseCommit(injection));
        this.flushOut();
        return;
      }
      const cancelled = !this.marking;
      this.marking = false;
      if (marked === 'taken') {
        // A commit that its client took back meanwhile will come again, and find that row again.
        if (cancelled) this.lost();
        else {
          this.takeUp();
          this.repeatedInVain();
        }
      } else {
        this.gates--;
        if (cancelled) this.unit.goOn();
        this.pump();
      }
    });
    this.flushOut();
  }

  /** The transaction whose row was refused is rolled back. Its client is told, with its next request if it has taken its commit back. */
  private refuseCommit(mark: MarkInjection): void {
    const cancelled = !this.marking;
    this.marking = false;
    this.gates--;
    const record = cancelled ? this.records[this.records.length - 1] : this.takeUp();
    this.codec.guardEnded(false);
    this.endUnit(record, false);
    if (cancelled) this.deferred = this.refusal(mark);
    else {
      this.clientStatus = 'idle';
      this.tellRefused(mark, record.request, 'idle');
    }
    this.settle();
  }

  /** The first request of the queue is of the open unit, although it was never sent. */
  private takeUp(): RequestRecord {
    const { request, record: known, input } = this.queue.shift()!;
    for (const bytes of input) this.queued -= bytes.length;
    const record = known ?? new RequestRecord(request);
    if (known === null) for (const bytes of input) this.journal(record, bytes);
    this.records.push(record);
    return record;
  }

  /** The unit has committed before, on a way that nobody told of. What it did this time is dropped; its outcome is asked for like any other. */
  private repeatedInVain(): void {
    this.unit.commitSent = true;
    this.lost();
  }

  /** What a commit is answered with whose row was refused, with the ready. */
  private tellRefused(mark: MarkInjection, { joined }: Request, status: TransactionStatus): void {
    if (mark.fault() === null) {
      this.say(mark.errorBytes()!);
      const ready = this.codec.synthesize.ready(status);
      if (joined) this.heldReady = ready;
      else this.say(ready);
      return;
    }
    const error = this.refusal(mark);
    if (joined) this.deferred = error;
    else this.say(this.codec.synthesize.error(error, status));
  }

  /** An error of the gateway's own for a row that was refused. */
  private refusal(mark: MarkInjection): GatewayError {
    const fault = mark.fault();
    if (fault !== null) this.io.count('mark-refused', fault);
    const why = fault ?? `error ${mark.failed()!.code}`;
    return {
      code: 'OUTLIVE_MARK_REFUSED',
      kind: 'state-lost',
      message: `the transaction was rolled back: the row that proves its commit could not be written (${why})`,
      hint: 'The operator sets its table up with outlive setup, or has commits proved otherwise (outcome of the listener).',
    };
  }

  /** The server answered a commit whose row it had refused: it rolled back. */
  private overrule(head: Pending, status: TransactionStatus): void {
    this.pending.shift();
    head.gates = false;
    this.gates--;
    const record = head.record!;
    this.endUnit(record, false);
    this.clientStatus = status;
    this.tellRefused(head.refused!, record.request, status);
    this.settle();
  }

  /** The guarded request succeeded and its transaction failed before it could be committed (a cancel or a timeout came just now). */
  private refuseGuard(error: Uint8Array): void {
    this.verdict = [];
    this.say(error);
    this.abandonGuard(this.records[this.records.length - 1].request);
  }

  private inject(injection: Injection, onDone: (() => void) | null): Pending {
    const pending = new Pending();
    pending.injection = injection;
    pending.readies = injection.readies;
    pending.onDone = onDone;
    this.await(pending, injection.bytes, 0, injection.bytes.length);
    return pending;
  }

  private send(bytes: Uint8Array, start: number, end: number): void {
    if (this.outBytes === bytes && this.outEnd === start) {
      this.outEnd = end;
      return;
    }
    if (this.outBytes !== EMPTY) {
      if (!this.corked) this.io.corkServer(true);
      this.corked = true;
      this.writeOut();
    }
    this.outBytes = bytes;
    this.outStart = start;
    this.outEnd = end;
  }

  private writeOut(): void {
    const bytes = this.outBytes;
    this.outBytes = EMPTY;
    const frames =
      this.outStart === 0 && this.outEnd === bytes.length ? bytes : bytes.subarray(this.outStart, this.outEnd);
    const packed = this.carriage === null ? frames : this.carriage.pack(BACKEND, frames);
    if (packed.length > 0) this.io.toServer(packed);
  }

  /** Says frames to the client. */
  private say(frames: Uint8Array): void {
    const packed = this.carriage === null ? frames : this.carriage.pack(FRONTEND, frames);
    if (packed.length > 0) this.io.toClient(packed);
  }

  /** The last words to the client, as they travel; null when nothing can be said. */
  lastWords(error: GatewayError): Uint8Array | null {
    if (this.amidFrame) return null;
    const words = this.codec.synthesize.fatal(error);
    return this.carriage === null ? words : this.carriage.pack(FRONTEND, words);
  }

  /** Lets what was sent go: each step ends with it. */
  private flushOut(): void {
    if (this.outBytes !== EMPTY) this.writeOut();
    if (!this.corked) return;
    this.corked = false;
    this.io.corkServer(false);
  }

  /** What was to be sent belongs to a connection that is no more. */
  private dropOut(): void {
    this.outBytes = EMPTY;
    this.corked = false;
  }

  /** Bytes that the client has sent ahead of what can be done. */
  private get ahead(): number {
    const [first] = this.codec.serial === true ? this.queue : [];
    if (first === undefined) return this.queued + (this.deaf ? this.window.length : 0);
    // Behind a request, however long, its client says nothing but that it cancels it, which is to be heard while that is held.
    return this.queued + this.window.length - first.input.reduce((sum, { length }) => sum + length, 0);
  }

  /** Stops reading from a client whose held requests fill the queue. */
  private pressure(): void {
    const full = this.ahead > this.limits.queue;
    if (full !== this.clientPaused) {
      this.clientPaused = full;
      this.io.readClient(!full);
    }
  }

  // -------------------------------------------------------------------------------------------------------- from the server

  /** Bytes from the server of the present generation. */
  backend(chunk: Uint8Array): void {
    if (this.state === 'passing') {
      this.io.toClient(chunk);
      return;
    }
    const frames = this.carriage === null ? chunk : this.carriage.unpack(BACKEND, chunk);
    if (frames.length > 0) this.receive(frames);
    this.hearAgain();
  }

  private receive(chunk: Uint8Array): void {
    if (this.state === 'doubting') {
      this.doubtRest = join(this.doubtRest, chunk);
      return;
    }
    let bytes = chunk;
    let start = 0;
    if (this.carry !== null) {
      // Only the cut frame is joined; the rest of the chunk is used in place.
      const carry = this.carry;
      const h = this.header;
      let head = carry;
      if (!this.codec.peek(BACKEND, carry, 0, carry.length, h)) {
        const take = Math.min(chunk.length, h.need - carry.length);
        head = join(carry, chunk.subarray(0, take));
        start = take;
        if (!this.codec.peek(BACKEND, head, 0, head.length, h)) {
          this.carry = head;
          return;
        }
      }
      const take = Math.min(chunk.length - start, Math.max(0, h.length - head.length));
      if (h.length > WHOLE && head.length + take < h.length) {
        // A long frame grows in its own buffer or streams; either way what is here is processed as it is.
        bytes = join(head, chunk.subarray(start));
        start = 0;
        this.carry = null;
      } else {
        const frame = join(head, chunk.subarray(start, start + take));
        start += take;
        if (frame.length < h.length) {
          this.carry = frame;
          return;
        }
        this.carry = null;
        this.process(frame, 0, frame.length);
        if (start >= chunk.length) return;
        if (!this.receiving()) {
          if ((this.state as State) === 'doubting') this.doubtRest = join(this.doubtRest, chunk.subarray(start));
          return;
        }
      }
    }
    this.process(bytes, start, bytes.length);
  }

  private receiving(): boolean {
    return this.state === 'live' || this.state === 'replaying' || this.state === 'failing';
  }

  private process(bytes: Uint8Array, start: number, end: number): void {
    const h = this.header;
    let at = start;
    /** What lies in [run, at) goes to the client; what lies in [log, at) belongs to the answer of the request at the head. */
    let run = start;
    let log = start;
    while (at < end) {
      if (this.relayLeft > 0) {
        const n = Math.min(this.relayLeft, end - at);
        const head = this.pending[0];
        if (head?.verifier) {
          const verdict = this.verify(head, bytes.subarray(at, at + n));
          if (verdict < 0) return;
          run = at + verdict;
          log = run;
        }
        this.relayLeft -= n;
        at += n;
        continue;
      }
      const head = this.pending[0];
      const verifier = head?.verifier;
      if (
        head !== undefined &&
        head.injection === null &&
        head.refused === null &&
        !verifier &&
        this.verdict.length === 0
      ) {
        // What the client gets as it is.
        at = this.codec.relayed?.(bytes, at, end) ?? at;
      }
      if (!this.codec.peek(BACKEND, bytes, at, end, h)) break;
      if (at + h.length > end) {
        if (h.length <= WHOLE || h.treatment !== RELAY || (head !== undefined && head.injection !== null)) break;
        // What answers no request is not compared, so no part of it may be taken for a part of the answer.
        if (h.asynchronous) break;
        // A long frame streams.
        if (this.verdict.length > 0) run = this.releaseVerdict(bytes, run, at);
        this.relayLeft = h.length;
        continue;
      }
      const frameEnd = at + h.length;
      if (head !== undefined && head.injection !== null && !(h.asynchronous && this.passes(head, h))) {
        this.release(bytes, run, at, log, null);
        at = frameEnd;
        run = at;
        log = at;
        if (!h.asynchronous) {
          head.injection.frame(bytes, frameEnd - h.length, frameEnd);
          const failed = head.injection.failed();
          if (failed?.fatal) {
            // The end of the connection reached the gateway's own question instead of the client's: it means the same.
            this.doubtError = failed;
            this.enterDoubt(bytes.subarray(frameEnd - h.length, end));
            return;
          }
          if (h.boundary && --head.readies === 0) {
            head.injection.done?.();
            this.shift();
            head.onDone?.();
            if (!this.receiving()) return;
          }
        }
        continue;
      }
      if (h.treatment === RELAY) {
        if (head !== undefined && head.refused !== null && !h.asynchronous) {
          this.release(bytes, run, at, at, null);
          at = frameEnd;
          run = at;
          log = at;
          continue;
        }
        if (verifier) {
          // Notices come again with what is repeated; anything else that answers no request is news.
          if (h.asynchronous && !h.notice && !this.midFrame) this.say(bytes.subarray(at, frameEnd));
          const verdict = h.asynchronous ? h.length : this.verifyFrame(head, bytes, at, frameEnd);
          if (verdict < 0) return;
          run = at + verdict;
          log = run;
        } else {
          if (this.verdict.length > 0) {
            if (h.asynchronous) {
              this.holdBack(head, bytes, run, at, frameEnd);
              run = frameEnd;
              log = frameEnd;
            } else run = this.releaseVerdict(bytes, run, at);
          }
          this.partial = h.partial;
        }
        at = frameEnd;
        continue;
      }
      const disposition = this.codec.decode(BACKEND, bytes, at, frameEnd, this);
      if (this.doubtError !== null) {
        this.release(bytes, run, at, log, head?.record ?? null);
        this.enterDoubt(bytes.subarray(at, end));
        return;
      }
      if ((this.state as State) === 'passing') {
        this.io.toClient(bytes.subarray(run, end));
        return;
      }
      if (this.readyQuestion !== null) {
        const question = this.readyQuestion;
        this.readyQuestion = null;
        this.release(bytes, run, at, log, head?.record ?? null);
        this.askStatus(question, head!, bytes.subarray(at, frameEnd));
        at = frameEnd;
        run = at;
        log = at;
        continue;
      }
      if (this.readyStatus !== null) {
        const status = this.readyStatus;
        this.readyStatus = null;
        const record = head?.record ?? null;
        if (head !== undefined && head.refused !== null) {
          this.release(bytes, run, at, at, null);
          at = frameEnd;
          run = at;
          log = at;
          this.overrule(head, status);
          if (!this.receiving()) return;
          continue;
        }
        const observation = this.observation(status, head);
        if (observation !== null) {
          this.release(bytes, run, at, log, record);
          this.postpone(observation, status, head!, bytes.subarray(at, frameEnd));
          at = frameEnd;
          run = at;
          log = at;
          continue;
        }
        // The unit ends here, so nothing needs to be kept; else the answer belongs to its record, without the ready.
        const closes = status === 'idle' && !this.guarding;
        if (!closes && record !== null && at > log) this.log(record, bytes, log, at);
        log = frameEnd;
        const forward = this.readied(status, head);
        if (forward) {
          at = frameEnd;
          if (head !== undefined) this.spare = head.reset();
          this.afterReady(bytes, run, at);
          run = at;
        } else {
          if (at > run) this.say(bytes.subarray(run, at));
          at = frameEnd;
          run = at;
          this.continueAfterReady(status, head);
        }
        if (!this.receiving()) return;
        continue;
      }
      if ((disposition === SWALLOW || (head !== undefined && head.refused !== null)) && !h.asynchronous) {
        // Part of the answer to the gateway's own question. What the client gets is moved up to what follows, so that it leaves
        // in one write.
        const held = at - run;
        if (held > 0 && held <= SLIDE && log <= at) {
          if (log < run) this.release(bytes, run, run, log, head?.record ?? null);
          bytes.copyWithin(frameEnd - held, run, at);
          log = frameEnd - (at - Math.max(log, run));
          run = frameEnd - held;
        } else {
          this.release(bytes, run, at, log, head?.record ?? null);
          run = frameEnd;
          log = frameEnd;
        }
        at = frameEnd;
        continue;
      }
      if (verifier) {
        const piece = h.asynchronous ? null : this.codec.canonical(bytes, at, frameEnd);
        if (h.asynchronous && disposition === FORWARD) this.say(bytes.subarray(at, frameEnd));
        if (piece !== null) {
          const verdict = this.verify(head, piece, bytes.subarray(at, frameEnd));
          if (verdict < 0) return;
          // Only frames that count as they are can end the client's prefix in their middle.
          if (verdict < piece.length) {
            run = this.codec.verbatim(bytes, at) ? at + verdict : at;
            log = run;
            at = frameEnd;
            continue;
          }
        }
        at = frameEnd;
        run = at;
        log = at;
        continue;
      }
      if (disposition === FORWARD) {
        this.partial = h.partial;
        if (this.verdict.length > 0) {
          if (h.asynchronous) {
            this.holdBack(head, bytes, run, at, frameEnd);
            run = frameEnd;
            log = frameEnd;
          } else run = this.releaseVerdict(bytes, run, at);
        }
        at = frameEnd;
      } else {
        this.release(bytes, run, at, log, head?.record ?? null);
        if (disposition === VERDICT) {
          this.releaseHeld(head?.record ?? null);
          this.verdict.push(bytes.subarray(at, frameEnd));
        }
        at = frameEnd;
        run = at;
        log = at;
      }
    }
    this.release(bytes, run, at, log, this.pending[0]?.record ?? null);
    if (at < end) this.carry = at === 0 ? bytes : bytes.subarray(at, end);
    this.flushOut();
  }

  /** True for frames that answer no request and reach the client even in the midst of an injection. */
  private passes(head: Pending, h: FrameHeader): boolean {
    return head.notices || !h.notice;
  }

  /** Gives [run, at) to the client and notes [log, at) as released for the record. */
  private release(bytes: Uint8Array, run: number, at: number, log: number, record: RequestRecord | null): void {
    if (at > run) this.say(run === 0 && at === bytes.length ? bytes : bytes.subarray(run, at));
    if (at > log && record !== null && record.status === null) this.log(record, bytes, log, at);
  }

  private log(record: RequestRecord, bytes: Uint8Array, start = 0, end = bytes.length): void {
    record.addAnswer(bytes, start, end);
    this.unit.answerBytes += end - start;
    if (this.unit.answerBytes > this.limits.answers) {
      for (const r of this.records) if (r.answer.bytes > 0) r.answer.fold(this.canon);
      this.unit.answerBytes = 0;
    }
  }

  /** More follows, so the held frame was not the last word: it goes out in front of it. */
  private releaseVerdict(bytes: Uint8Array, run: number, at: number): number {
    if (at > run) this.say(bytes.subarray(run, at));
    this.releaseHeld(this.pending[0]?.record ?? null);
    return at;
  }

  /**
   * What answers no request does not set a held success free. It is held behind it, to keep the order, but for the notices of the
   * commit: a server gives those before it tells the success.
   */
  private holdBack(head: Pending | undefined, bytes: Uint8Array, run: number, at: number, frameEnd: number): void {
    if (at > run) this.say(bytes.subarray(run, at));
    const frame = bytes.subarray(at, frameEnd);
    if (this.header.notice && head?.injection) this.say(frame);
    else this.verdict.push(frame);
  }

  private releaseHeld(record: RequestRecord | null): void {
    for (const held of this.verdict) {
      this.say(held);
      if (record !== null) this.log(record, held);
    }
    this.verdict = [];
  }

  // --------------------------------------------------------------------------------------------------------- sink, backend

  /** {@link Sink.ready}: acted upon when the frame's place in the chunk is known. */
  ready(status: TransactionStatus | StatusQuestion): void {
    if (typeof status === 'string') this.readyStatus = status;
    else this.readyQuestion = status;
  }

  /** Asks for the status of the ready that came, and acts upon that when it is known. */
  private askStatus(question: StatusQuestion, head: Pending, ready: Uint8Array): void {
    // In front of whatever waits for its turn.
    this.pending[0] = new Pending();
    const [pending] = this.pending;
    pending.injection = question;
    pending.readies = question.readies;
    pending.onDone = () => {
      const status = question.status();
      this.pending.unshift(head);
      if (this.readied(status, head)) {
        this.say(ready);
        this.announce();
        this.settle();
      } else this.continueAfterReady(status, head);
    };
    this.send(question.bytes, 0, question.bytes.length);
  }

  /** Acts upon a ready. Returns true when the client gets it. */
  private readied(status: TransactionStatus, head: Pending | undefined): boolean {
    if (head === undefined) return true;
    this.shift();
    if (head.token !== null) this.tokenTold(head.token);
    this.unit.failed = status === 'failed';
    if (head.gates) {
      head.gates = false;
      this.gates--;
    }
    if (head.replay) return false;
    this.inputOver(head.record!.request);
    if (this.guarding) return false;
    const request = head.record!.request;
    if (status === 'idle') {
      this.endUnit(head.record!, !head.failed);
    } else if ((request.effect === 'commit' || request.effect === 'rollback') && !head.failed) {
      // AND CHAIN: what was before is closed, and another transaction is open, of which no request tells how it began.
      this.endUnit(head.record!, true);
      this.unit.chained = true;
      this.projectedOpen = true;
    } else {
      this.answered++;
      head.record!.status = status;
      // What might have ended it did not.
      if (this.unit.commitSent) this.unit.goOn();
      if (this.loose.push(head.record!) >= LOOSE) {
        keepApart(this.loose);
        this.loose.length = 0;
      }
      this.projectedOpen = true;
      // Of what was cancelled nobody could repeat where it stopped; what only reads need not be repeated.
      const stopped = head.record!.interrupt !== null && request.effect === 'read';
      if (this.poisoned || stopped) this.records = this.records.filter((r) => r !== head.record);
    }
    if (request.joined) return false;
    this.clientStatus = status;
    return true;
  }

  /**
   * What must be asked about the session's state before the client is told that its request is done: until the answer is there
   * such a request (a lock taken, a setting changed) can be repeated on another server, and later it must be known.
   */
  private observation(status: TransactionStatus, head: Pending | undefined): Injection | null {
    if (status !== 'idle' || this.state !== 'live' || this.guarding || this.pending.length !== 1) return null;
    const request = head?.record?.request;
    if (request === undefined || head!.replay || request.joined || this.projectedOpen) return null;
    return request.effect === 'read' || request.effect === 'session' ? this.codec.observe(true) : null;
  }

  /** Asks, and acts upon the ready when the answer is there. */
  private postpone(observation: Injection, status: TransactionStatus, head: Pending, ready: Uint8Array): void {
    this.pending.shift();
    this.inject(observation, () => {
      this.pending.unshift(head);
      this.readied(status, head);
      this.say(ready);
      this.settle();
    });
  }

  /** Everything up to this record is closed: nothing of it will be repeated. */
  private endUnit(record: RequestRecord, ok: boolean): void {
    const unit = this.unit;
    if (unit.token !== null && unit.commitSent && ok) this.io.acknowledged(unit.token);
    this.stats.units++;
    this.answered++;
    // Emptying an array by its length gives its memory away, which the next request would ask for again.
    if (this.records.length === 1) this.records.pop();
    else if (this.records[this.records.length - 1] === record) while (this.records.length > 0) this.records.pop();
    else this.records.splice(0, this.records.indexOf(record) + 1);
    unit.reset();
    this.repetitions = null;
    if (this.loose.length > 0) this.loose.length = 0;
    this.projectedOpen = false;
    this.poisoned = false;
  }

  private afterReady(bytes: Uint8Array, run: number, at: number): void {
    this.say(run === 0 && at === bytes.length ? bytes : bytes.subarray(run, at));
    if (this.announcing !== null) this.announce();
    this.settle();
  }

  /** After a ready that is not the client's. */
  private continueAfterReady(status: TransactionStatus, head: Pending | undefined): void {
    if (head === undefined) return;
    if (head.replay) {
      this.replayAnswered(head, status);
      return;
    }
    const request = head.record!.request;
    if (this.guarding) {
      // Where a failure undoes no more than itself, only the end of the transaction leaves nothing to commit.
      const kept = this.codec.guard!.keeps === true;
      if (kept ? status !== 'open' : status === 'failed' || head.failed) {
        this.abandonGuard(request);
        return;
      }
      if (request.joined) {
        head.record!.status = status;
        this.settle();
        return;
      }
      if (this.unit.unarmed && this.asks) this.arm();
      else if (!this.unit.arming) this.closeGuard();
      return;
    }
    if (request.joined && head.failed) this.heldReady = this.codec.synthesize.ready(status);
    this.settle();
  }

  /** All is answered so far: look at the session's state if need be, then go on. */
  private settle(): void {
    if (this.codec.stale) {
      this.codec.stale = false;
      this.io.learn();
    }
    if (this.pending.length === 0 && !this.projectedOpen && !this.guarding && this.state === 'live') {
      const injection = this.codec.observe(false);
      if (injection !== null) this.inject(injection, () => this.pump());
    }
    if (this.queue.length > 0) this.pump();
    else this.flushOut();
  }

  /** The guarded request succeeded and its token is armed: commit it. */
  private closeGuard(): void {
    if (this.pending.some((p) => p.record !== null) || this.records.length === 0) return; // its last part is not answered yet
    const last = this.records[this.records.length - 1];
    if (last.request.joined) {
      this.pump();
      return;
    }
    if (!this.mayDecide()) {
      this.guardDue = true;
      return;
    }
    const { marker, unit } = this;
    let refused: MarkInjection | null = null;
    if (marker !== null && unit.unarmed) {
      const { binding } = marker;
      this.mark((injection) => {
        const marked = injection.marked();
        if (marked === 'taken') {
          this.repeatedInVain();
          return;
        }
        if (marked === 'refused') refused = injection;
        if (binding) return;
        if (refused === null) this.commitGuard(() => null);
        else {
          const rollback = this.codec.guard!.rollback();
          this.inject(rollback, () => this.guardCommitted(rollback, refused));
        }
        this.flushOut();
      });
      if (!binding) {
        this.flushOut();
        return;
      }
    }
    this.commitGuard(() => refused);
    this.flushOut();
  }

  /** @param refused the row of the commit, if it was refused, once the commit is answered */
  private commitGuard(refused: () => MarkInjection | null): void {
    this.unit.commitSent = true;
    const injection = this.codec.guard!.commit();
    const pending = this.inject(injection, () => this.guardCommitted(injection, refused()));
    pending.notices = true;
  }

  private guardCommitted(injection: Injection, refused: MarkInjection | null): void {
    const last = this.records[this.records.length - 1];
    const failed = injection.failed() !== null || refused !== null;
    this.guarding = false;
    this.codec.guardEnded(!failed);
    if (failed) this.verdict = [];
    else this.releaseHeld(null);
    this.endUnit(last, !failed);
    this.clientStatus = 'idle';
    if (refused !== null) this.tellRefused(refused, last.request, 'idle');
    else {
      if (failed) this.say(injection.errorBytes()!);
      this.say(this.codec.synthesize.ready('idle'));
    }
    this.payInterrupt();
    this.settle();
  }

  /** The guarded request failed: nothing of it stays. */
  private abandonGuard(request: Request): void {
    this.abandoning = true;
    this.inject(this.codec.guard!.rollback(), () => {
      this.abandoning = false;
      this.guarding = false;
      this.codec.guardEnded(false);
      this.releaseHeld(null);
      this.endUnit(this.records[this.records.length - 1], false);
      this.clientStatus = 'idle';
      const ready = this.codec.synthesize.ready('idle');
      if (request.joined) this.heldReady = ready;
      else this.say(ready);
      this.payInterrupt();
      this.settle();
    });
    this.flushOut();
  }

  /** {@link Sink.input} */
  input(): void {
    const head = this.pending[0];
    // A repeated request whose answer the client has had its input long ago.
    if (head === undefined || head.record === null || head.replay) return;
    const { request } = head.record;
    if (head.gates && request.barrier && !request.joined) {
      head.gates = false;
      this.gates--;
    }
    if (this.barriers.length === 0) this.barriers.push(request);
    if (this.barriers[0] === request) this.inputOpen = true;
  }

  /** {@link Sink.error} */
  error(error: ServerError): void {
    const head = this.pending[0];
    if (head !== undefined) head.failed = true;
    if (this.state === 'replaying' || this.state === 'failing') {
      // The end of the connection is no answer that could differ: the server is lost once more.
      if (error.fatal) this.doubtError = error;
      else if (error.meaning === 'retry' && head?.verifier) this.retryable = true;
      return;
    }
    if (error.fatal) this.ending = error.meaning === 'intent' || error.meaning === 'ordinary';
    if (this.judged) this.judged = false;
    // Of a standby that is no news.
    else if (error.meaning === 'read-only' && this.readOnly) return;
    else if (error.meaning === 'read-only' || error.meaning === 'terminated' || error.meaning === 'server-lost')
      this.doubtError = error;
  }

  private retryable = false;
  /** The server said why it ends the connection, and it is someone's will: its close is the session's end. */
  ending = false;

  /** {@link Sink.passThrough} */
  passThrough(reason: string): void {
    this.io.count('unprotected', reason);
    this.step('pass');
  }

  // ---------------------------------------------------------------------------------------------------------------- doubt

  private enterDoubt(rest: Uint8Array): void {
    const error = this.doubtError!;
    this.doubtError = null;
    this.doubtRest = rest;
    this.flushOut();
    if (this.state !== 'live') {
      this.lost();
      return;
    }
    this.step('doubt');
    this.doubted = error;
    this.io.doubt(error);
  }

  private doubted: ServerError | null = null;
  /** The error that comes next was doubted, and is the server's ordinary answer. */
  private judged = false;

  /** The topology says that the server's words are someone's will: the client gets them. */
  intent(): void {
    if (this.state !== 'doubting') return;
    this.step('intent');
    const rest = this.doubtRest;
    this.doubtRest = EMPTY;
    const fatal = this.doubted!.fatal;
    this.doubted = null;
    if (!fatal) {
      this.judged = true;
      this.process(rest, 0, rest.length);
      this.hearAgain();
      return;
    }
    // The first frame is the error; it was decoded already.
    const h = this.header;
    this.codec.peek(BACKEND, rest, 0, rest.length, h);
    let words = h.length;
    if (this.verdict.length > 0) this.releaseHeld(this.pending[0]?.record ?? null);
    if (this.carriage === null) this.say(rest.subarray(0, words));
    else {
      // An error alone would stay in a packet that is not full: the rest of the answer goes with it.
      let ended = false;
      while (!ended && this.codec.peek(BACKEND, rest, words, rest.length, h) && words + h.length <= rest.length) {
        words += h.length;
        ended = h.boundary;
      }
      this.say(rest.subarray(0, words));
      if (!ended) this.say(this.codec.synthesize.ready('idle'));
    }
    this.close();
    this.io.closeClient();
  }

  // ----------------------------------------------------------------------------------------------------- loss and recovery

  /**
   * The first server connection is there; the welcome was written by the host.
   * @param readOnly the server is one on which nothing can be written
   */
  attached(readOnly = false): void {
    this.readOnly = readOnly;
    this.step('attached');
    this.pump();
  }

  /** The server connection is gone or void. Asks the host for another one. */
  lost(): void {
    const before = this.state;
    if (before === 'closed' || before === 'suspended' || before === 'resolving' || before === 'detached') return;
    this.step('lost');
    if (before === 'passing' || before === 'connecting') {
      this.io.closeClient();
      return;
    }
    this.dropOut();
    this.carry = null;
    this.midFrame ||= this.relayLeft > 0 || this.partial;
    this.relayLeft = 0;
    this.partial = false;
    this.doubtError = null;
    this.doubtRest = EMPTY;
    this.doubted = null;
    this.readyStatus = null;
    this.readyQuestion = null;
    this.abandoning = false;
    this.guardDue = false;
    this.marking = false;
    this.interruptOwed = false;
    this.retryable = false;
    this.inquiring = false;
    // A replay in progress goes back to the records, in order.
    this.records = [...this.records, ...this.replayQueue];
    this.replayQueue = [];
    this.pending.length = 0;
    this.gates = 0;
    this.inputOpen = false;
    const last = this.records[this.records.length - 1];
    if (last?.request.effect === 'rollback' && last.status === null && this.clientStatus !== 'idle') {
      // What is to be rolled back need not be repeated for it: a failed transaction answers ROLLBACK just the same.
      this.codec.abandon();
      if (!this.amidFrame && this.rolledBack(last.request, last.answer.frames(this.canon))) {
        this.answerInterrupt(last);
        this.records = [];
        this.unit.reset();
      } else {
        this.poisoned = true;
        this.records = [last];
      }
    } else if (last?.request.renews === true && last.status === null && this.clientStatus !== 'idle' && !this.inDoubt) {
      // It rolls back what was before it, wherever it is run.
      this.codec.abandon();
      this.records = [last];
      this.unit.reset();
      this.clientStatus = 'idle';
      this.projectedOpen = false;
    }
    this.io.recover();
  }

  /** True when a commit was sent and its answer did not come: nothing may be repeated before its outcome is known. */
  get inDoubt(): boolean {
    return this.unit.inDoubt;
  }

  /** True when the client waits for an answer, or holds a transaction that is to be kept. */
  get waiting(): boolean {
    return this.records.some((r) => r.status === null) || this.queue.length > 0;
  }

  /**
   * True when the server and this session owe each other nothing: no transaction is open, nothing is asked or half said. Then the server
   * can be left for another one as after a loss, and nothing has to be repeated.
   */
  get atRest(): boolean {
    return this.quiet && this.clientStatus === 'idle' && this.records.length === 0 && !this.projectedOpen;
  }

  /** True when a transaction is open of which all is answered: it can be repeated elsewhere, provided that it is rolled back here. */
  get betweenRequests(): boolean {
    const { unit } = this;
    if (unit.oversized || unit.chained || unit.commitSent || unit.unprovable !== null) return false;
    return this.quiet && this.clientStatus !== 'idle' && !this.poisoned && !this.waiting;
  }

  private get quiet(): boolean {
    return (
      this.state === 'live' &&
      this.pending.length === 0 &&
      this.queue.length === 0 &&
      this.window.length === 0 &&
      this.inputLeft === 0 &&
      this.barriers.length === 0 &&
      this.carry === null &&
      !this.amidFrame &&
      !this.guarding &&
      this.heldReady === null &&
      this.deferred === null &&
      this.announcing === null &&
      !this.ending
    );
  }

  /** What the open unit did and what became of it, for messages. */
  get openUnit(): boolean {
    return this.clientStatus !== 'idle' || this.records.length > 0;
  }

  /** The requests of the open unit as the client knows them, for {@link Mutables.gather}. */
  seen(): SeenRequest[] {
    this.told = [...this.records];
    return this.told.map(({ request, input, answer, status }) => ({
      request,
      input,
      answer: answer.folded ? null : answer.chunks,
      done: status !== null,
    }));
  }

  /** The outcome is being asked. */
  asking(): void {
    this.step('ask');
    this.io.count('in-doubt', this.unit.unprovable ?? 'commit');
  }

  /** The commit took effect: the client gets its answer, nothing is repeated. */
  committed(): void {
    const last = this.records[this.records.length - 1];
    // Before the unit ends for the codec: what the client is told of belongs to it.
    const answer = this.guarding
      ? this.codec.synthesize.ready('idle')
      : this.codec.synthesize.committed(last.request, last.answer.frames(this.canon));
    this.codec.guardEnded(true);
    if (this.guarding) {
      this.guarding = false;
      this.releaseHeld(null);
    }
    this.say(answer);
    this.answerInterrupt(last);
    this.clientStatus = 'idle';
    for (const { request } of this.records) this.inputOver(request);
    this.endUnit(last, true);
    this.records = [];
    this.hearAgain();
  }

  /** The commit did not take effect: the unit is repeated like any other. */
  notCommitted(): void {
    this.unit.rearm();
  }

  /** The outcome cannot be known: the client is told so, nothing is repeated. */
  unknown(error: GatewayError): void {
    this.giveUp(error);
    this.unit.reset();
    this.hearAgain();
  }

  /** The restored session lacks something, or the unit cannot be repeated: tell the client. Before `restored`. */
  cannotContinue(error: GatewayError): void {
    const [first] = this.records;
    if (first?.status === null && first.request.renews === true) return;
    if (this.clientStatus === 'idle' && this.records.every((r) => r.status === null)) {
      if (this.records.length > 0) this.giveUp(error);
      else this.deferred = error;
    } else this.giveUp(error);
    this.hearAgain();
  }

  /** Forgets the open unit; the outstanding request, or else the client's next one, is answered with the error. */
  private giveUp(error: GatewayError): void {
    const outstanding = this.records.filter((r) => r.status === null);
    const wasOpen = this.clientStatus !== 'idle' && !this.unit.inDoubt;
    this.verdict = [];
    this.codec.abandon();
    if (this.guarding) {
      this.guarding = false;
      this.codec.guardEnded(false);
    }
    for (const { request } of this.records) this.inputOver(request);
    this.records = [];
    this.heldReady = null;
    this.projectedOpen = false;
    this.unit.reset();
    this.poisoned = wasOpen && this.codec.synthesize.rolledBack === undefined;
    const status: TransactionStatus = wasOpen ? 'failed' : 'idle';
    const first = outstanding.find((r) => !r.request.joined);
    if (this.amidFrame) {
      // The client has the beginning of a long frame: nothing can be said to it any more.
      this.close();
      this.io.closeClient();
      return;
    }
    if (first !== undefined) {
      this.tellFailure(error, status);
      this.answerInterrupt(first);
      const rest = outstanding.slice(outstanding.indexOf(first) + 1);
      this.requeue(rest.map((r) => ({ request: r.request, input: r.input, record: null })));
    } else {
      // The error waits for the client's next request, or for the end of the one of which only a part has come. Also in a
      // transaction that the client knows to have failed: it may want to go back to a savepoint.
      this.deferred = error;
    }
  }

  private requeue(items: Item[]): void {
    this.queue = [...items, ...this.queue];
    for (const item of items) for (const bytes of item.input) this.queued += bytes.length;
  }

  /** A new server connection is logged in and is to be brought to the session's state. */
  restoring(): void {
    this.codec.rewind();
    this.step('restore');
  }

  /**
   * The state is there. Repeats the open unit, or puts the transaction into the failed state, or goes on.
   * @param plan how the requests are to be repeated that {@link seen} told last; null when all are repeated as they are
   * @param readOnly as in {@link attached}
   */
  restored(login: LoginResult, plan: readonly (Repetition | null)[] | null = null, readOnly = false): void {
    this.readOnly = readOnly;
    this.repetitions = plan === null ? null : new Map(this.told.map((record, i) => [record, plan[i] ?? null]));
    this.told = [];
    this.announcing = login;
    this.projectedOpen = false;
    this.guarding = false;
    this.verdict = [];
    this.unit.rearm();
    if (this.poisoned) {
      const unanswered = this.records.filter((r) => r.status === null);
      this.records = [];
      this.requeue(unanswered.map((r) => ({ request: r.request, input: r.input, record: r })));
      this.fail();
      return;
    }
    if (this.unit.chained) {
      this.giveUp({
        code: 'OUTLIVE_NOT_REPEATABLE',
        kind: 'retry-transaction',
        message: 'the transaction was begun by AND CHAIN and cannot be repeated after a failover',
        hint: 'Roll back and run the transaction again.',
      });
      this.restoredAfterGiveUp();
      return;
    }
    if (this.records.length === 0) {
      this.resume();
      return;
    }
    if (this.unit.oversized) {
      this.giveUp({
        code: 'OUTLIVE_JOURNAL_LIMIT',
        kind: 'too-large',
        message: `the transaction could not be repeated after a failover: it exceeds limits.journal (${this.limits.journal} bytes)`,
        hint: 'Roll back and run the transaction again, in smaller steps, or raise limits.journal.',
      });
      this.restoredAfterGiveUp();
      return;
    }
    this.step('replay');
    this.replayQueue = this.records;
    this.records = [];
    this.unit.answerBytes = 0;
    this.nextReplay();
  }

  private restoredAfterGiveUp(): void {
    if (this.poisoned) this.fail();
    else this.resume();
    this.hearAgain();
  }

  /**
   * Repeats the answered requests; the ones without their whole answer go the usual way. They leave together and are compared as
   * their answers come: nothing among them commits, so a divergence found late is rolled back like one found early, and a crowd
   * of sessions is repeated in a fraction of the round trips. What takes bulk input, or is held together by a guard, goes alone.
   */
  private nextReplay(): void {
    while (this.replayQueue.length > 0 && this.replayQueue[0].status !== null) {
      const { request, status } = this.replayQueue[0];
      const alone = request.barrier || request.joined || request.mustGuard || this.guarding;
      if (alone && this.pending.some((p) => p.replay)) break;
      this.gates = 0;
      this.forwardReplay(this.replayQueue.shift()!);
      if (alone || this.guarding) break;
      if (status !== 'idle') this.projectedOpen = true;
    }
    this.flushOut();
    if (this.pending.some((p) => p.replay)) return;
    const rest = this.replayQueue;
    this.replayQueue = [];
    this.requeue(rest.map((r) => ({ request: r.request, input: r.input, record: r })));
    this.io.replayed('done');
    this.resume();
  }

  private forwardReplay(record: RequestRecord): void {
    const pending = new Pending();
    const request = record.request;
    if (request.effect !== 'read' || request.mustGuard) this.prepare(request, pending);
    pending.gates = false;
    pending.record = record;
    pending.replay = true;
    pending.verifier = new Verifier(record, this.canon);
    this.records.push(record);
    const [first, ...rest] = record.input;
    this.dispatchAnew(pending, first, 0, first.length);
    for (const bytes of rest) this.sendMore(pending, bytes);
  }

  /** Compares (canonical) bytes of a repeated answer, which are of `frame`. Returns how many of them the client has already; -1 when the replay is over. */
  private verify(head: Pending, piece: Uint8Array, frame = piece): number {
    const verdict = head.verifier!.feed(piece);
    if (verdict === 'more') {
      if (head.verifier!.satisfied && !head.replay) {
        head.verifier = null;
        this.midFrame = false;
        this.partial = this.header.partial;
        this.interruptNow(head);
      }
      return piece.length;
    }
    if (verdict === 'differs' || head.replay) {
      this.diverged(head, frame);
      return -1;
    }
    head.verifier = null;
    this.midFrame = false;
    this.interruptNow(head);
    return verdict;
  }

  /** {@link verify} of a whole relayed frame, in bytes of the frame. */
  private verifyFrame(head: Pending, bytes: Uint8Array, start: number, end: number): number {
    const frame = bytes.subarray(start, end);
    if (this.codec.verbatim(bytes, start)) return this.verify(head, frame);
    const piece = this.codec.canonical(bytes, start, end);
    if (piece === null) return frame.length;
    const verdict = this.verify(head, piece, frame);
    // The client's part of an answer can end in front of such a frame, but not in the midst of it.
    return verdict < 0 || verdict < piece.length ? Math.min(verdict, 0) : frame.length;
  }

  private replayAnswered(head: Pending, status: TransactionStatus): void {
    if (!head.verifier!.satisfied || head.record!.status !== status) {
      this.diverged(head, null);
      return;
    }
    if (status !== 'idle') this.projectedOpen = true;
    this.nextReplay();
  }

  /** The repeated answer differs from what the client has: in these bytes, or because it ended early. */
  private diverged(head: Pending, got: Uint8Array | null): void {
    this.dropOut();
    const label = head.record!.request.label;
    if (this.retryable) {
      this.retryable = false;
      this.io.replayed('retry');
      return;
    }
    this.records = [...this.records, ...this.replayQueue];
    this.replayQueue = [];
    const position = this.records.indexOf(head.record!) + 1;
    const where = this.whereDiverged(head, got);
    this.io.count('divergence', label);
    this.io.replayed('diverged');
    this.giveUp({
      code: 'OUTLIVE_REPLAY_DIVERGED',
      kind: 'retry-transaction',
      message: `the transaction was repeated after a failover and statement ${position} (${label}) answered differently than before${where}`,
      hint: 'Roll back and run the transaction again.',
    });
    this.divergedState();
  }

  /** Words for the place of a divergence, without data. */
  private whereDiverged({ record, verifier, doubts, preparation }: Pending, got: Uint8Array | null): string {
    const refused = preparation?.failed() ?? null;
    if (refused !== null)
      return `: the new server did not take it with the values that were seen (error ${refused.code})`;
    const { answer } = record!;
    if (answer.folded || verifier === null) return '';
    const part = this.codec.mutables?.partAt(answer.chunks, verifier.equal, got) ?? null;
    if (part === null) return '';
    const why = doubts?.get(part);
    return ` in ${part}${why === undefined ? '' : ` (${why})`}`;
  }

  /** The server is somewhere inside the repeated unit, with an answer still on its way: only a fresh connection is at a known place. */
  private divergedState(): void {
    this.step('lost');
    this.pending.length = 0;
    this.gates = 0;
    this.inquiring = false;
    this.carry = null;
    this.relayLeft = 0;
    this.io.recover();
  }

  /** Puts the new server's transaction into the failed state, as the client believes it. */
  private fail(): void {
    this.step('fail');
    this.projectedOpen = true;
    this.inject(this.codec.guard!.begin(), null);
    this.inject(this.codec.guard!.fail!(), () => {
      this.unit.failed = true;
      this.resume();
    });
    this.flushOut();
  }

  private resume(): void {
    this.step('resume');
    this.announce();
    this.io.resumed();
    this.pump();
  }

  /** The new server whose differences the client was not told of yet. */
  private announcing: LoginResult | null = null;

  /** Tells the client what is different on the new server, after all that was repeated, and not amid a frame. */
  private announce(): void {
    if (this.announcing === null || this.amidFrame) return;
    const bytes = this.codec.announce(this.announcing);
    this.announcing = null;
    if (bytes.length > 0) this.say(bytes);
  }

  /** No writable server came in time. Whoever waits is told; the next request tries again. */
  unavailable(error: GatewayError): void {
    if (this.state === 'closed') return;
    // A transaction whose client waits for nothing need not hear of it: its next request tries again, and it is repeated then.
    const patient = !this.waiting && !this.inDoubt && !this.poisoned;
    if (!patient && (this.records.length > 0 || this.clientStatus !== 'idle')) this.giveUp(error);
    this.step('unavailable');
    const queue = this.queue;
    this.queue = [];
    this.queued = 0;
    for (const { request } of queue) {
      this.inputOver(request);
      if (request.joined) continue;
      this.deferred = null;
      this.tellFailure(error, this.clientStatus === 'idle' ? 'idle' : 'failed');
    }
    this.pressure();
    this.hearAgain();
  }

  /** A client that was told that no server is there speaks again. */
  private wake(): void {
    this.step('request');
    this.io.recover();
  }

  /** The client cancels what it waits for. True when the gateway itself held it; false when the server must be asked. */
  cancel(): boolean {
    if (this.state === 'live' || this.state === 'doubting' || this.state === 'passing') return false;
    if (this.inDoubt || !this.waiting) return true;
    if (this.state === 'replaying') {
      // It goes back to the records, in order.
      this.records = [...this.records, ...this.replayQueue];
      this.replayQueue = [];
    }
    const error: GatewayError = {
      code: 'OUTLIVE_CANCELLED',
      kind: 'cancelled',
      message: 'canceling statement due to user request',
    };
    if (this.records.some((r) => r.status === null)) this.giveUp(error);
    else {
      const i = this.queue.findIndex((item) => !item.request.joined);
      if (i < 0) return true;
      for (const item of this.queue.splice(0, i + 1)) {
        this.inputOver(item.request);
        for (const bytes of item.input) this.queued -= bytes.length;
      }
      const open = this.clientStatus !== 'idle';
      this.poisoned = open && this.codec.synthesize.rolledBack === undefined;
      this.records = [];
      this.codec.abandon();
      this.unit.reset();
      this.tellFailure(error, open ? 'failed' : 'idle');
      this.pressure();
    }
    if (this.state === 'replaying') this.divergedState();
    this.hearAgain();
    return true;
  }

  /** A sign of life to a client that waits, where one is legal. */
  keepalive(message: string): void {
    if (this.amidFrame || !this.waiting) return;
    const bytes = this.codec.synthesize.keepalive(message);
    if (bytes !== null) this.say(bytes);
  }

  /** The session is over. */
  close(): void {
    this.step('close');
    this.queue = [];
    this.records = [];
    this.pending.length = 0;
  }

  // --------------------------------------------------------------------------------------------------------------- capsule

  /**
   * All of this session between two of its inputs, for {@link thaw} elsewhere. It refers to what the session goes on changing: to be made
   * bytes of (`freezeBytes`) before the next input. In state `restoring` only right before {@link restored}, when no exchange is under way.
   * @returns null when it cannot be told now: something of the gateway's own is awaited, or an answer is being compared
   */
  capsule(): Capsule | null {
    const { window: w, repetitions, unit } = this;
    if (!FREEZABLE.has(this.state)) return null;
    const pending: FrozenPending[] = [];
    const records = new Map<RequestRecord, FrozenRecord>();
    const freeze = (record: RequestRecord): FrozenRecord => {
      let frozen = records.get(record);
      if (frozen === undefined) records.set(record, (frozen = record.freeze()));
      return frozen;
    };
    for (const { record, token, refused, verifier, replay, failed, gates, unsent } of this.pending) {
      if (record === null || token !== null || refused !== null || verifier !== null) return null;
      if (replay || unsent !== null) return null;
      pending.push({ record: freeze(record), failed, gates });
    }
    const codec = this.codec.freeze();
    if (codec === null) return null;
    const item = ({ request, input, record }: Item): FrozenItem => {
      return { request, input, record: record === null ? null : freeze(record) };
    };
    return {
      codec,
      session: {
        state: this.state,
        clientStatus: this.clientStatus,
        unit: { ...unit },
        answered: this.answered,
        input: { bytes: w.bytes.subarray(w.start, w.end), scanned: this.scan - w.start, left: this.inputLeft },
        queue: this.queue.map(item),
        queued: this.queued,
        clientPaused: this.clientPaused,
        barriers: this.barriers,
        inputOpen: this.inputOpen,
        deaf: this.deaf,
        carry: this.carry,
        relayLeft: this.relayLeft,
        midFrame: this.midFrame,
        partial: this.partial,
        pending,
        records: this.records.map(freeze),
        projectedOpen: this.projectedOpen,
        gates: this.gates,
        guarding: this.guarding,
        guardDue: this.guardDue,
        interruptOwed: this.interruptOwed,
        verdict: this.verdict,
        heldReady: this.heldReady,
        deferred: this.deferred,
        poisoned: this.poisoned,
        told: this.told.map(freeze),
        repetitions: repetitions && new Map([...repetitions].map(([record, how]) => [freeze(record), how])),
        retryable: this.retryable,
        ending: this.ending,
        announcing: this.announcing,
        readOnly: this.readOnly,
        proof: this.proof,
        marks: this.marks,
      },
    };
  }

  /**
   * The session that {@link capsule} told, and its codec. It says nothing to `io` by itself: `full` tells whether its client is to be read.
   * @param capsule as `thawBytes` gives it; what is in it is this session's from now on
   * @param context as the codec of the session was made with
   */
  static thaw(
    capsule: unknown,
    codec: Codec,
    context: SessionContext,
    limits: SessionLimits,
    io: SessionIo,
    stats: SessionStats,
  ): { session: Session; codec: SessionCodec } {
    const { session: frozen, codec: frozenCodec } = capsule as Capsule;
    const own = codec.thaw(context, frozenCodec);
    const session = new Session(
      own,
      (bytes, start, end) => codec.frameLength(bytes, start, end),
      limits,
      io,
      stats,
      frozen.proof,
    );
    session.melt(frozen);
    return { session, codec: own };
  }

  private melt(frozen: Capsule['session']): void {
    const known = new Map<FrozenRecord, RequestRecord>();
    const thaw = (of: FrozenRecord): RequestRecord => {
      let record = known.get(of);
      if (record === undefined) known.set(of, (record = RequestRecord.thaw(of)));
      return record;
    };
    const { input, unit, queue, barriers, pending, records, told, repetitions, proof: _, ...fields } = frozen;
    Object.assign(this, fields);
    Object.assign(this.unit, unit);
    if (input.bytes.length > 0) this.window.push(input.bytes, 0);
    this.scan = this.window.start + input.scanned;
    this.inputLeft = input.left;
    this.queue = queue.map(({ request, input, record }) => ({
      request,
      input: [...input],
      record: record === null ? null : thaw(record),
    }));
    this.barriers.push(...barriers);
    for (const { record, failed, gates } of pending) {
      this.pending.push(Object.assign(new Pending(), { record: thaw(record), failed, gates }));
    }
    this.records = records.map(thaw);
    this.told = told.map(thaw);
    this.repetitions = repetitions && new Map([...repetitions].map(([record, how]) => [thaw(record), how]));
  }
}

function join(a: Uint8Array, b: Uint8Array): Uint8Array {
  if (a.length === 0) return b;
  if (b.length === 0) return a;
  const joined = Buffer.allocUnsafe(a.length + b.length);
  joined.set(a, 0);
  joined.set(b, a.length);
  return joined;
}
