import { serialize } from 'pg-protocol';
import {
  BACKEND,
  type Blocker,
  type Disposition,
  type Effect,
  type Exchange,
  FORWARD,
  FRONTEND,
  type FrameHeader,
  type GatewayError,
  INSPECT,
  type Injection,
  type LoginResult,
  type Mutables,
  ProtocolViolation,
  RELAY,
  type Request,
  type SessionCodec,
  type SessionContext,
  type Side,
  type Sink,
  SWALLOW,
  type TransactionStatus,
  VERDICT,
} from '../../core/contract/index.js';
import { buildGatewayError, buildNotice, parseError } from './errors.js';
import type { Startup } from './greet.js';
import { AUTHENTICATION_OK } from './greet.js';
import {
  dataRow,
  ExchangeInjection,
  ownStatement,
  RidingToken,
  StatementInjection,
  text,
  XactToken,
} from './inject.js';
import type { LoginFacts } from './login.js';
import { marker } from './marks.js';
import { lengthAt } from './messages.js';
import {
  adjust,
  type Findings,
  type Gathered,
  gather,
  inquire,
  partAt,
  plan,
  reserve,
  unreserved,
} from './mutables/plan.js';
import type { Knowledge } from './mutables/types.js';
import type { StatementFacts } from './sql/facts.js';
import {
  type Catalogue,
  EMPTY_FACTS,
  isPlainRead,
  type QueryCache,
  type QueryFacts,
  segment,
  segmentText,
  UNKNOWN_CATALOGUE,
} from './sql/index.js';
import { SessionState, touchesSession } from './state.js';

// Frame types (protocol manual, "Message Formats").
const T = (c: string) => c.charCodeAt(0);
const [
  BIND,
  CLOSE,
  COPY_DATA,
  COPY_DONE,
  COPY_FAIL,
  DESCRIBE,
  EXECUTE,
  FLUSH,
  FUNCTION_CALL,
  PARSE,
  QUERY,
  SYNC,
  TERMINATE,
] = [...'BCdcfDEHFPQSX'].map(T);
const [
  BACKEND_KEY,
  BIND_COMPLETE,
  CLOSE_COMPLETE,
  COMMAND_COMPLETE,
  COPY_IN,
  COPY_OUT,
  COPY_BOTH,
  DATA_ROW,
  EMPTY_QUERY,
  ERROR,
  FUNCTION_RESULT,
  NO_DATA,
  NOTICE,
  NOTIFICATION,
  PARAMETER_DESCRIPTION,
  PARAMETER_STATUS,
  PARSE_COMPLETE,
  PORTAL_SUSPENDED,
  READY,
  ROW_DESCRIPTION,
  NEGOTIATE,
] = [...'K23CGHWDIEVnNAtS1sZTv'].map(T);

const SYNC_BYTES = serialize.sync();
const NO_VALUES: readonly string[] = [];
const EMPTY = new Uint8Array(0);
/** A group is sent in parts when it grows beyond this before its Sync: the server should not wait for the client's last statement. */
const GROUP_LIMIT = 64 * 1024;
/** What is longer is read frame by frame: nothing is gained where the bytes themselves are what costs. */
const AGAIN_LIMIT = 4096;
/** So many statements are found by the bytes of their names; a power of two. */
const RECENT = 16;

/** Facts that all sessions of a database share. */
export interface SharedFacts {
  readonly catalogue: Catalogue;
}

/** A statement prepared at the protocol level. */
interface Prepared {
  /** The Parse message, to be sent again to a new server. */
  readonly parse: Uint8Array;
  readonly analysis: QueryFacts;
  readonly sql: string;
  readonly name: string;
  /**
   * What Bind, Execute and Sync of it alone were understood as, over the unnamed portal: the same each time, so the next time it is
   * taken as it is, for any number of requests at once. Null when they were not sent like that, or do more than the statement's text tells.
   */
  again: PgRequest | null;
  /** There was a Describe of the portal in it. */
  described: boolean;
  /** With what was known of the database, see `PostgresSession.epoch`. */
  epoch: number;
}

/** A portal as the client bound it. */
interface Portal {
  prepared: Prepared | null;
  /** Where it was bound. */
  group: PgRequest;
  offset: number;
  /** Values of its parameters, where one may name a setting. */
  values: readonly string[];
}

/** What a confirmation of the server ('1', '3') stands for. */
type Op =
  | { readonly op: 'parse'; readonly name: string; readonly prepared: Prepared }
  | { readonly op: 'close'; readonly name: string | null };

/** One executed statement of a request that touches the session's state. */
interface Executed {
  readonly facts: StatementFacts;
  readonly sql: string;
  readonly values: readonly string[];
  /** See `SessionState.completed`. */
  readonly hidden: ReadonlySet<string> | null;
}

/** A request of PostgreSQL's protocol: a Query, a FunctionCall, or what comes up to a Sync. */
class PgRequest implements Request {
  kind = 'extended';
  label = '';
  effect: Effect = 'read';
  writes = false;
  guardable = true;
  mustGuard = false;
  joined = false;
  barrier = false;
  provable = true;
  /** Types of the client's frames, for synthesis of the answer to a lone COMMIT. */
  frames = '';
  executes = 0;
  ops: Op[] | null = null;
  /** What each executed statement does to the session, in the order of their completion; null when none does anything. */
  completions: (Executed | null)[] | null = null;
  forceToken = false;
  /** What is prepared in the session may be gone after it. */
  deallocates = false;
  /** Of a COPY FROM STDIN: nothing more of its input will come. */
  inputOver = false;
  /** A portal was bound that the end of a transaction would take away. */
  bound = false;
  /** It stands for each request of its kind ({@link Prepared.again}): nothing of one of them may be noted in it. */
  shared = false;
}

/** The PostgreSQL codec of one session. */
export class PostgresSession implements SessionCodec {
  // What every request looks at stands together, in few cache lines.
  stale = false;
  collecting = 0;
  /** What the server is answering ... */
  private head: PgRequest | null = null;
  /** ... how far it is with it ... */
  private completed = 0;
  private opsDone = 0;
  private failed = false;
  /** ... and what was sent behind it. An empty list would be thrown away and made again for each request. */
  private behind: PgRequest[] | null = null;
  /** A question of the gateway's own that stands behind the last statement of a request. */
  private rider: RidingToken | null = null;
  /**
   * The extended COPY FROM STDIN whose input the client is sending. A fact about the client: it outlives the
   * server. The Sync behind CopyDone, CopyFail or an error ends it.
   */
  private copyIn: PgRequest | null = null;
  /** The client was told of an error where a server then ignores everything up to a Sync. */
  private skipping = false;
  private guarded = false;
  /** As the server told it last. */
  private status: TransactionStatus = 'idle';
  /** The open unit did something, or something was left by the ones before, that {@link unitEnd} must look at. */
  private eventful = false;
  /** `state.needsObservation`, which every request asks for and few change. */
  private observable = false;
  /** The portal without a name, which most clients use and no other. */
  private unnamed: Portal | null = null;
  /** Some of `known`, by a hash of their names. */
  private readonly recent: (Prepared | null)[] = new Array(RECENT).fill(null);
  /** The statement of the request whose length {@link peek} told last. */
  private coming: Prepared | null = null;
  /** What was known of the database when it was last looked at ... */
  private shared: unknown = undefined;
  /** ... and how often that has changed: what was understood before may mean something else now. */
  private epoch = 0;

  private group: PgRequest = new PgRequest();
  /** Portals of the open transaction, by name; where in the group they were bound. */
  private readonly portals = new Map<string, Portal>();
  /** Prepared statements as the client believes in them, for understanding what it sends ... */
  private readonly known = new Map<string, Prepared>();
  /** ... and as the server confirmed them, for restoring. */
  private readonly prepared = new Map<string, Prepared>();
  /** How to undo what unfinished requests did to `prepared`. */
  private undo: [name: string, before: Prepared | undefined][] = [];
  private readonly state = new SessionState();
  /** The rider's request comes after so many others. */
  private beforeRider = 0;
  /** How far `copyIn` is. */
  private copyEnd: 'open' | 'done' | 'failed' = 'open';
  private forceToken = false;
  /** The open unit did something after which the catalogue must be read anew. */
  private changesCatalogue = false;
  private rolledBack = false;
  private readonly env: { standardConformingStrings: boolean; encoding?: string };
  /** Parameters as the client was told them, in the order of the first login. */
  private readonly told = new Map<string, string>();
  /** The statement of the group, as long as it may become one that is the same the next time. */
  private candidate: Prepared | null = null;

  constructor(
    private readonly context: SessionContext,
    private readonly cache: QueryCache,
  ) {
    this.env = { standardConformingStrings: true };
  }

  // ------------------------------------------------------------------------------------------------------------ framing

  peek(side: Side, bytes: Uint8Array, start: number, end: number, out: FrameHeader): boolean {
    if (end - start < 5) {
      out.need = 5;
      return false;
    }
    const length = (bytes[start + 1] << 24) | (bytes[start + 2] << 16) | (bytes[start + 3] << 8) | bytes[start + 4];
    const type = bytes[start];
    if (length < 4) {
      throw new ProtocolViolation(
        `message of type ${printable(type)} with length ${length >>> 0}`,
        side === FRONTEND ? 'client' : 'server',
      );
    }
    out.length = length + 1;
    out.need = length + 1;
    out.type = type;
    out.asynchronous = false;
    out.notice = false;
    out.boundary = side === BACKEND && type === READY;
    if (side === BACKEND) {
      const { head } = this;
      if (this.rider !== null && this.riding(head)) {
        // Behind the completion of the client's last statement.
        out.treatment = INSPECT;
        out.asynchronous = type === NOTICE || type === NOTIFICATION || type === PARAMETER_STATUS;
        out.notice = type === NOTICE;
        return true;
      }
      switch (type) {
        case DATA_ROW:
        case COPY_DATA:
        case BIND_COMPLETE:
        case ROW_DESCRIPTION:
        case NO_DATA:
        case PARAMETER_DESCRIPTION:
        case COPY_DONE:
        case COPY_OUT:
        case FUNCTION_RESULT:
          out.treatment = RELAY;
          return true;
        case COMMAND_COMPLETE:
        case EMPTY_QUERY:
        case PORTAL_SUSPENDED: {
          out.treatment =
            this.guarded || this.rider !== null || (head !== null && (head.completions !== null || decides(head)))
              ? INSPECT
              : RELAY;
          return true;
        }
        case PARSE_COMPLETE:
        case CLOSE_COMPLETE:
          out.treatment = head?.ops ? INSPECT : RELAY;
          return true;
        case READY:
        case ERROR:
        case COPY_IN:
        case COPY_BOTH:
          out.treatment = INSPECT;
          return true;
        case PARAMETER_STATUS:
          out.treatment = INSPECT;
          out.asynchronous = true;
          return true;
        case NOTICE:
        case NOTIFICATION:
          out.treatment = type === NOTICE ? INSPECT : RELAY;
          out.asynchronous = true;
          out.notice = type === NOTICE;
          return true;
        default:
          throw new ProtocolViolation(`unknown message type ${printable(type)}`, 'server');
      }
    }
    switch (type) {
      case COPY_DATA:
        out.treatment = this.strayInput ? INSPECT : RELAY;
        return true;
      case COPY_DONE:
      case COPY_FAIL:
        // Input passes peek once and is seen nowhere else.
        if (this.copyIn !== null && this.copyEnd === 'open') this.copyEnd = 'done';
        out.treatment = this.strayInput ? INSPECT : RELAY;
        return true;
      case SYNC:
        out.treatment = INSPECT;
        if (this.copyIn !== null) {
          // In copy-in mode the server ignores it.
          out.treatment = RELAY;
          if (this.copyEnd !== 'open') this.endCopyIn();
        }
        return true;
      case BIND:
      case CLOSE:
      case DESCRIBE:
      case EXECUTE:
      case FLUSH:
      case FUNCTION_CALL:
      case PARSE:
      case QUERY:
        out.treatment = INSPECT;
        if (this.copyIn !== null) {
          // In copy-in mode the server answers it with an error (Flush: ignores it), and then ignores all up to a Sync.
          out.treatment = RELAY;
          if (this.copyEnd === 'done' && type !== FLUSH)
            throw new ProtocolViolation('a statement between the end of the input of COPY and its Sync', 'client');
        } else if (type === BIND && this.collecting === 0 && !this.skipping) {
          const whole = this.wholeAgain(bytes, start, end, length + 1);
          if (whole > 0) out.length = out.need = whole;
        }
        return true;
      case TERMINATE:
        out.treatment = INSPECT;
        return true;
      default:
        throw new ProtocolViolation(`unknown message type ${printable(type)}`, 'client');
    }
  }

  relayed(bytes: Uint8Array, start: number, end: number): number {
    const { head } = this;
    if (head === null || this.rider !== null) return start;
    const completions = !this.guarded && head.completions === null && !decides(head);
    let at = start;
    while (at + 5 <= end) {
      switch (bytes[at]) {
        case DATA_ROW:
        case BIND_COMPLETE:
        case ROW_DESCRIPTION:
        case NO_DATA:
          break;
        case COMMAND_COMPLETE:
          if (!completions) return at;
          break;
        default:
          return at;
      }
      const length = lengthAt(bytes, at);
      if (length < 5 || at + length > end) return at;
      at += length;
    }
    return at;
  }

  /** True in the midst of a batch, where input answers no COPY: it stays in its place, and the server ignores it. */
  private get strayInput(): boolean {
    return this.collecting > 0 && this.copyIn === null;
  }

  decode(side: Side, bytes: Uint8Array, start: number, end: number, sink: Sink): Disposition {
    if (side === BACKEND) return this.answer(bytes, start, end, sink);
    if (bytes[start] === BIND && end - start > lengthAt(bytes, start)) this.repeat(bytes, start, end, sink);
    else this.collect(bytes, start, end, sink);
    return FORWARD;
  }

  // ------------------------------------------------------------------------------------------------------ what clients say

  /**
   * Length of a whole request at `start`, Bind (`bind` bytes long), perhaps Describe, Execute, Sync, when all of it is here and was
   * understood before ({@link Prepared.again}); else 0.
   */
  private wholeAgain(bytes: Uint8Array, start: number, end: number, bind: number): number {
    let at = start + bind;
    if (at + 15 > end || bytes[start + 5] !== 0) return 0;
    const described = bytes[at] === DESCRIBE;
    if (described) {
      if (lengthAt(bytes, at) !== 7 || bytes[at + 5] !== 0x50 || bytes[at + 6] !== 0) return 0;
      at += 7;
    }
    const whole = at + 15 - start;
    if (start + whole > end || whole > AGAIN_LIMIT) return 0;
    if (bytes[at] !== EXECUTE || lengthAt(bytes, at) !== 10 || bytes[at + 5] !== 0) return 0;
    if (bytes[at + 10] !== SYNC || lengthAt(bytes, at + 10) !== 5) return 0;
    let nameEnd = start + 6;
    while (bytes[nameEnd] !== 0) if (++nameEnd >= start + bind) return 0;
    const prepared = this.statement(bytes, start + 6, nameEnd);
    if (prepared === null || prepared.again === null || prepared.described !== described) return 0;
    if (prepared.epoch !== this.present()) return 0;
    this.coming = prepared;
    return whole;
  }

  /** The present {@link epoch}. */
  private present(): number {
    const shared = this.context.shared();
    if (shared !== this.shared) {
      this.shared = shared;
      this.epoch++;
    }
    return this.epoch;
  }

  /** Takes a whole request as it was understood before. */
  private repeat(bytes: Uint8Array, start: number, end: number, sink: Sink): void {
    const prepared = this.coming!;
    const request = prepared.again!;
    this.bindPortal('', prepared, request, 0, NO_VALUES);
    sink.request(request, bytes, start, end);
  }

  /** At the Sync of a group whose Execute made its statement a candidate. */
  private remember(prepared: Prepared, group: PgRequest): void {
    const { frames } = group;
    if (group.ops !== null || group.completions !== null || group.barrier) return;
    if (frames !== 'BES' && frames !== 'BDES') return;
    prepared.described = frames === 'BDES';
    prepared.again = group;
    group.shared = true;
  }

  private collect(bytes: Uint8Array, start: number, end: number, sink: Sink): void {
    const type = bytes[start];
    if (this.skipping) {
      if (type !== SYNC && type !== TERMINATE) return;
      this.skipping = false;
    }
    this.collecting += end - start;
    const group = this.group;
    switch (type) {
      case QUERY:
        this.query(bytes, start, end, sink);
        return;
      case PARSE: {
        const nameEnd = terminator(bytes, start + 5, end);
        const textEnd = terminator(bytes, nameEnd + 1, end);
        const name = text(bytes, start + 5, nameEnd);
        const prepared: Prepared = {
          parse: Uint8Array.prototype.slice.call(bytes, start, end),
          analysis: this.cache.read(bytes, nameEnd + 1, textEnd, this.env),
          sql: text(bytes, nameEnd + 1, textEnd),
          name,
          again: null,
          described: false,
          epoch: 0,
        };
        this.known.set(name, prepared);
        this.recent[place(bytes, start + 5, nameEnd)] = prepared;
        (group.ops ??= []).push({ op: 'parse', name, prepared });
        break;
      }
      case BIND: {
        const portalEnd = terminator(bytes, start + 5, end);
        const nameEnd = terminator(bytes, portalEnd + 1, end);
        const prepared = this.statement(bytes, portalEnd + 1, nameEnd);
        const portal = portalEnd === start + 5 ? '' : text(bytes, start + 5, portalEnd);
        if (canWrap(prepared?.analysis.statements[0]?.facts)) group.bound = true;
        const offset = this.collecting - (end - start);
        const unnamed = prepared?.analysis.statements[0]?.facts.setConfigs?.some(({ name }) => name === undefined);
        const values = unnamed ? boundValues(bytes, nameEnd + 1, end) : NO_VALUES;
        this.bindPortal(portal, prepared, group, offset, values);
        break;
      }
      case EXECUTE: {
        const nameEnd = terminator(bytes, start + 5, end);
        const portal = nameEnd === start + 5 ? '' : text(bytes, start + 5, nameEnd);
        this.execute(portal, bytes, start, end, sink);
        if (this.group.barrier) {
          // Whether what follows is input or the next request is for the server to say. In copy-in mode it ignores the Sync that
          // ends this part, and the client's own Sync behind the input is the one that is answered.
          this.group.frames += 'E';
          this.emitJoined(bytes, end, 0, sink);
          return;
        }
        break;
      }
      case CLOSE: {
        const nameEnd = terminator(bytes, start + 6, end);
        const name = text(bytes, start + 6, nameEnd);
        const statement = bytes[start + 5] === 0x53;
        if (statement) {
          this.known.delete(name);
          this.recent[place(bytes, start + 6, nameEnd)] = null;
        } else if (name === '') this.unnamed = null;
        else this.portals.delete(name);
        (group.ops ??= []).push({ op: 'close', name: statement ? name : null });
        break;
      }
      case DESCRIBE:
        group.frames += describeFrame(bytes, start);
        break;
      case FLUSH:
        // Answered like a Sync: within a transaction, or with nothing bound or executed, a Sync in its place changes nothing, and every
        // request ends at a ready point (ARCHITECTURE.md, "One request, one ready point").
        this.emitJoined(bytes, end, end - start, sink);
        return;
      case SYNC:
        this.group.frames += 'S';
        if (this.candidate !== null) this.remember(this.candidate, group);
        this.emit(sink, bytes, end - this.collecting, end);
        return;
      case FUNCTION_CALL:
        group.kind = 'function';
        this.add(group, FUNCTION_FACTS, '');
        this.emit(sink, bytes, end - this.collecting, end);
        return;
      case TERMINATE:
        this.collecting = 0;
        sink.goodbye();
        return;
      case COPY_DATA:
      case COPY_DONE:
      case COPY_FAIL:
        return;
    }
    if (type !== DESCRIBE) this.group.frames += String.fromCharCode(type);
    if (this.collecting > GROUP_LIMIT && this.group.executes > 0) this.emitJoined(bytes, end, 0, sink);
  }

  private execute(portal: string, bytes: Uint8Array, start: number, end: number, sink: Sink): void {
    const slot = portal === '' ? (this.unnamed ?? undefined) : this.portals.get(portal);
    const analysis = slot?.prepared?.analysis;
    const facts = analysis === undefined ? UNKNOWN_FACTS : (analysis.statements[0]?.facts ?? EMPTY_FACTS);
    const group = this.group;
    this.candidate = null;
    if (group.executes === 0 && slot !== undefined && slot === this.unnamed && slot.group === group) {
      // What EXECUTE and PREPARE do depends on more than their text.
      if (slot.prepared !== null && facts.execute === undefined && facts.prepare === undefined) {
        this.candidate = slot.prepared;
        this.candidate.again = null;
        this.candidate.epoch = this.present();
      }
    }
    const inBlock = this.status !== 'idle' || group.effect === 'begin';
    const ended = group.effect === 'commit' || group.effect === 'rollback';
    if (group.executes > 0 && (ended || (endsTransaction(facts) && inBlock))) {
      // A commit gets a request of its own, so that its token can be armed before it leaves. The portal must be bound in the
      // part that executes it, as a Sync outside a transaction ends it.
      const from = slot !== undefined && slot.group === group ? slot.offset : this.collecting - (end - start);
      const tail = this.collecting - from;
      this.splitGroup(bytes, end, tail, sink);
      if (slot !== undefined) {
        slot.group = this.group;
        slot.offset = 0;
      }
    }
    this.add(this.group, facts, slot?.prepared?.sql ?? '', slot?.values);
  }

  private bindPortal(
    name: string,
    prepared: Prepared | null,
    group: PgRequest,
    offset: number,
    values: readonly string[],
  ): void {
    const slot = name === '' ? this.unnamed : this.portals.get(name);
    if (slot) {
      slot.prepared = prepared;
      slot.group = group;
      slot.offset = offset;
      slot.values = values;
    } else if (name === '') this.unnamed = { prepared, group, offset, values };
    else {
      this.portals.set(name, { prepared, group, offset, values });
      this.eventful = true;
    }
  }

  /** Emits what was collected up to `tail` bytes before `end` as a part that the client's own boundary follows. */
  private splitGroup(bytes: Uint8Array, end: number, tail: number, sink: Sink): void {
    const head = this.group;
    const ops = head.ops;
    const collected = this.collecting;
    const headBytes = Buffer.concat([bytes.subarray(end - collected, end - tail), SYNC_BYTES]);
    head.joined = true;
    head.mustGuard = true;
    this.group = new PgRequest();
    const frames = tailFrames(bytes, end - tail, end);
    head.frames = head.frames.slice(0, head.frames.length - frames.length);
    this.group.frames = frames;
    // Each part gets the confirmations of its own messages.
    const later = [...frames].filter((type) => type === 'P' || type === 'C').length;
    if (later > 0) this.group.ops = ops!.splice(-later);
    head.ops = ops?.length ? ops : null;
    this.collecting = tail;
    this.finish(head);
    sink.request(head, headBytes, 0, headBytes.length);
  }

  /** Emits the group so far, ended by a Sync of the gateway's own in place of its last `replaced` bytes. */
  private emitJoined(bytes: Uint8Array, end: number, replaced: number, sink: Sink): void {
    const part = Buffer.concat([bytes.subarray(end - this.collecting, end - replaced), SYNC_BYTES]);
    this.group.joined = true;
    this.group.mustGuard = this.group.executes > 0 || this.group.bound;
    this.emit(sink, part, 0, part.length);
  }

  private query(bytes: Uint8Array, start: number, end: number, sink: Sink): void {
    const textStart = start + 5;
    const textEnd = terminator(bytes, textStart, end);
    const analysis = this.cache.read(bytes, textStart, textEnd, this.env);
    const group = this.group;
    group.kind = 'query';
    const alone = this.collecting === end - start;
    const { mode, segments } = segment(analysis, this.status === 'idle' ? 'I' : this.status === 'open' ? 'T' : 'E');
    // A part that commits by itself and is followed by others would need a guard of its own in the middle.
    const orderly = segments.slice(0, -1).every((part) => part.kind !== 'implicit');
    if (mode === 'split' && alone && orderly) {
      for (let i = 0; i < segments.length; i++) {
        const part = new PgRequest();
        part.kind = 'query';
        part.frames = 'Q';
        for (let k = segments[i].first; k < segments[i].first + segments[i].count; k++) {
          this.add(part, analysis.statements[k].facts, statementText(analysis, k, bytes, textStart));
        }
        part.joined = i < segments.length - 1;
        const query = frameQuery(segmentText(bytes, textStart, segments[i], this.env.encoding));
        this.group = part;
        this.emit(sink, query, 0, query.length);
      }
      return;
    }
    group.frames += 'Q';
    for (let k = 0; k < analysis.statements.length; k++) {
      this.add(group, analysis.statements[k].facts, statementText(analysis, k, bytes, textStart));
    }
    if (mode === 'opaque' || mode === 'split') {
      group.effect = 'opaque';
      group.writes = true;
      group.guardable = false;
      group.provable = false;
    }
    this.emit(sink, bytes, end - this.collecting, end);
  }

  /** Adds one statement to what a request does. */
  private add(group: PgRequest, facts: StatementFacts, sql: string, values = NO_VALUES): void {
    const first = group.executes === 0;
    group.executes++;
    group.label = first ? facts.verb || 'empty statement' : `${group.executes} statements`;
    if (facts.execute !== undefined) facts = this.preparedInSql(facts.execute) ?? facts;
    const effect = this.effectOf(facts);
    if (effect === 'write' || effect === 'opaque') group.writes = true;
    if (!facts.transactional) group.guardable = false;
    if (first) group.effect = effect;
    else group.effect = combine(group.effect, effect);
    if (group.effect === 'opaque') {
      group.guardable = false;
      group.provable = false;
    }
    if (facts.effect === 'prepareTransaction' || (endsTransaction(facts) && facts.chain)) group.provable = false;
    if (facts.copy?.direction === 'in' && facts.copy.peer === 'client') group.barrier = true;
    if (facts.verb === 'NOTIFY' || facts.functions.includes('pg_notify')) group.forceToken = true;
    const hidden = this.hidden(facts);
    if (mayDeallocate(facts, hidden)) group.deallocates = true;
    if (group.completions !== null || touchesSession(facts) || hidden !== null) {
      group.completions ??= new Array(group.executes - 1).fill(null);
      group.completions.push(touchesSession(facts) || hidden !== null ? { facts, sql, values, hidden } : null);
    }
  }

  /** The settings that functions of the database may make here, when the statement may call one that touches the session; else null. */
  private hidden(facts: StatementFacts): ReadonlySet<string> | null {
    const catalogue = (this.context.shared() as SharedFacts | undefined)?.catalogue;
    if (catalogue === undefined) return null;
    if (catalogue.sessionTriggers && (facts.effect === 'write' || facts.effect === 'copyIn'))
      return catalogue.customSettings;
    if (catalogue.sessionFunctions.size === 0) return null;
    return facts.functions.some((name) => catalogue.sessionFunctions.has(name)) ? catalogue.customSettings : null;
  }

  private preparedInSql(name: string): StatementFacts | undefined {
    return this.known.get(name)?.analysis.statements[0]?.facts ?? this.sqlPrepared.get(name);
  }

  /** Statements prepared by PREPARE, as the client believes in them. */
  private readonly sqlPrepared = new Map<string, StatementFacts>();

  /** A statement's effect as the core understands it. */
  private effectOf(facts: StatementFacts): Effect {
    if (facts.prepare !== undefined && facts.inner !== undefined) this.sqlPrepared.set(facts.prepare, facts.inner);
    switch (facts.effect) {
      case 'read':
      case 'copyOut':
        return this.plainRead(facts) ? 'read' : 'write';
      case 'savepoint':
      case 'cursor':
        return 'read';
      case 'session':
        return 'session';
      case 'begin':
      case 'commit':
      case 'rollback':
        return facts.effect;
      case 'prepareTransaction':
        return 'commit';
      case 'write':
      case 'copyIn':
        if (facts.transactional) return 'write';
        // VACUUM and the like cannot be wrapped, but repeating one that was interrupted ends in the same state.
        return facts.idempotent ? 'session' : 'opaque';
      default:
        return 'opaque';
    }
  }

  /** Judged anew each time: a memory of judgements costs the garbage collector more than the few look-ups that it saves. */
  private plainRead(facts: StatementFacts): boolean {
    return isPlainRead(facts, (this.context.shared() as SharedFacts | undefined)?.catalogue ?? UNKNOWN_CATALOGUE);
  }

  private finish(group: PgRequest): void {
    if (group.executes === 0) {
      group.label = group.ops === null ? 'Sync' : 'Parse';
      group.effect = 'read';
    }
  }

  private emit(sink: Sink, bytes: Uint8Array, start: number, end: number): void {
    const group = this.group;
    this.finish(group);
    this.candidate = null;
    this.group = new PgRequest();
    this.collecting = 0;
    sink.request(group, bytes, start, end);
  }

  /** The statement whose name is [start, end), as the client believes in it. */
  private statement(bytes: Uint8Array, start: number, end: number): Prepared | null {
    const at = place(bytes, start, end);
    const recent = this.recent[at];
    if (recent !== null && spells(recent.name, bytes, start, end)) return recent;
    const prepared = this.known.get(text(bytes, start, end)) ?? null;
    if (prepared !== null) this.recent[at] = prepared;
    return prepared;
  }

  // ----------------------------------------------------------------------------------------------------- what servers say

  sent(request: Request): void {
    const r = request as PgRequest;
    if (r.deallocates) {
      this.tokenPrepared = false;
      this.deallocations++;
    }
    if (r.forceToken) this.forceToken = this.eventful = true;
    if (this.head === null) this.head = r;
    else if (this.behind === null) this.behind = [r];
    else this.behind.push(r);
  }

  /** True when the rider is what the server answers now. */
  private riding(head: PgRequest | null): boolean {
    return this.beforeRider === 0 && head !== null && this.completed === head.executes;
  }

  private answer(bytes: Uint8Array, start: number, end: number, sink: Sink): Disposition {
    const { head, rider } = this;
    if (rider !== null && this.riding(head)) {
      switch (bytes[start]) {
        case READY:
        case NOTICE:
        case NOTIFICATION:
        case PARAMETER_STATUS:
          break;
        case ERROR:
          // A cancel or a timeout meant for the client's statement came just after it: the client is told, its transaction failed.
          rider.frame(bytes, start, end);
          break;
        default:
          rider.frame(bytes, start, end);
          return SWALLOW;
      }
    }
    switch (bytes[start]) {
      case READY:
        return this.ready(bytes, start, end, sink);
      case ERROR: {
        if (head !== null) {
          this.failed = true;
          if (head === this.copyIn) this.copyEnd = 'failed';
        }
        sink.error(parseError(bytes, start, end));
        return FORWARD;
      }
      case COMMAND_COMPLETE:
      case EMPTY_QUERY:
      case PORTAL_SUSPENDED:
        if (head === null) return FORWARD;
        this.complete(head, bytes, start, end);
        return this.guarded && head.kind === 'query' ? VERDICT : FORWARD;
      case PARSE_COMPLETE:
      case CLOSE_COMPLETE:
        if (head?.ops) this.confirm(head.ops[this.opsDone++]);
        return FORWARD;
      case COPY_IN:
        if (head?.kind === 'extended' && !head.inputOver && head !== this.copyIn) {
          head.joined = false;
          this.copyIn = head;
          this.copyEnd = 'open';
        }
        sink.input();
        return FORWARD;
      case COPY_BOTH:
        sink.passThrough('replication stream');
        return FORWARD;
      case NOTICE:
        return isQuickDeath(bytes, start, end) ? SWALLOW : FORWARD;
      case PARAMETER_STATUS: {
        const nameEnd = terminator(bytes, start + 5, end);
        const name = text(bytes, start + 5, nameEnd);
        const value = text(bytes, nameEnd + 1, end - 1);
        if (this.moving) {
          this.restored.set(name, value);
          return SWALLOW;
        }
        // What is repeated after a failover says again what the client knows.
        if (this.told.get(name) === value) return SWALLOW;
        this.parameter(name, value);
        return FORWARD;
      }
    }
    return FORWARD;
  }

  private ready(bytes: Uint8Array, start: number, end: number, sink: Sink): Disposition {
    if (end - start !== 6) throw new ProtocolViolation('ReadyForQuery of a wrong length', 'server');
    const status: TransactionStatus =
      bytes[start + 5] === 0x49 ? 'idle' : bytes[start + 5] === 0x54 ? 'open' : 'failed';
    this.status = status;
    const { head, failed } = this;
    if (head !== null) {
      if (!head.shared) head.inputOver = true;
      if (head === this.copyIn) this.copyIn = null;
      if (this.rider !== null) this.riderAnswered(this.rider);
      this.next();
    }
    if (!this.guarded && (status === 'idle' || (head !== null && !failed && decides(head)))) {
      this.unitEnd(head === null || (!failed && !this.rolledBack));
    }
    sink.ready(status);
    return FORWARD;
  }

  /** The server comes to the next request. */
  private next(): void {
    this.completed = 0;
    this.opsDone = 0;
    this.failed = false;
    if (this.behind === null) {
      this.head = null;
      return;
    }
    this.head = this.behind.shift()!;
    if (this.behind.length === 0) this.behind = null;
  }

  /** The request with the rider in it, or one before it, was answered. */
  private riderAnswered(rider: RidingToken): void {
    if (this.beforeRider-- > 0) return;
    this.rider = null;
    if (rider.epoch !== this.deallocations) return;
    // Gone all the same, by means that cannot be seen from here: the client was told of an error, once.
    this.tokenPrepared = rider.prepared && rider.failed()?.code !== NO_STATEMENT;
  }

  private unitEnd(committed: boolean): void {
    if (!this.eventful) return;
    this.state.unitEnd(committed);
    this.believed = null;
    if (this.changesCatalogue && committed) this.stale = true;
    this.changesCatalogue = false;
    this.undo.length = 0;
    this.rolledBack = false;
    this.forceToken = false;
    if (this.knowledge !== null) this.closeKnowledge(this.knowledge);
    if (this.portals.size > 8) this.portals.clear();
    this.eventful = this.knowledge !== null;
    this.observable = this.state.needsObservation;
  }

  /** The transaction's time ends with it; what sequences told the session stays until it draws anew. */
  private closeKnowledge(knowledge: Knowledge): void {
    knowledge.time = null;
    if (knowledge.currval.size === 0 && knowledge.lastval === null) this.know(null);
  }

  /** A statement of the request was completed. */
  private complete(head: PgRequest, bytes: Uint8Array, start: number, end: number): void {
    const executed = head.completions?.[this.completed] ?? null;
    this.completed++;
    if (bytes[start] !== COMMAND_COMPLETE) return;
    if (decides(head)) {
      this.rolledBack = spells('ROLLBACK', bytes, start + 5, end - 1);
      if (this.rolledBack) this.eventful = true;
    }
    if (executed === null) return;
    this.eventful = true;
    const { facts, sql, values, hidden } = executed;
    this.state.completed(facts, sql, values, hidden);
    if (facts.changesCatalogue || facts.effect === 'opaque') this.changesCatalogue = true;
    if (facts.deallocate !== undefined) {
      if (facts.all) for (const name of [...this.prepared.keys()]) this.setPrepared(name, undefined);
      else this.setPrepared(facts.deallocate, undefined);
    } else if (facts.discard === 'all') for (const name of [...this.prepared.keys()]) this.setPrepared(name, undefined);
  }

  private confirm(op: Op | undefined): void {
    if (op === undefined || op.name === null) return;
    this.setPrepared(op.name, op.op === 'parse' ? op.prepared : undefined);
  }

  private endCopyIn(): void {
    if (!this.copyIn!.shared) this.copyIn!.inputOver = true;
    this.copyIn = null;
  }

  private setPrepared(name: string, prepared: Prepared | undefined): void {
    this.undo.push([name, this.prepared.get(name)]);
    this.eventful = true;
    if (prepared === undefined) this.prepared.delete(name);
    else this.prepared.set(name, prepared);
  }

  private parameter(name: string, value: string): void {
    this.told.set(name, value);
    if (name === 'standard_conforming_strings') this.env.standardConformingStrings = value !== 'off';
    else if (name === 'client_encoding') this.env.encoding = value;
  }

  // --------------------------------------------------------------------------------------------------- guard, token, state

  guardBegun(): void {
    this.guarded = true;
  }

  guardEnded(committed: boolean): void {
    this.guarded = false;
    this.status = 'idle';
    this.unitEnd(committed);
  }

  readonly guard = {
    begin: (): Injection => new StatementInjection(BEGIN),
    commit: (): Injection => new StatementInjection(COMMIT),
    rollback: (): Injection => new StatementInjection(ROLLBACK),
    fail: (): Injection => new StatementInjection(FAIL),
  };

  /** What the client knows from an earlier server of its open transaction, or of sequences; null when nothing. */
  private knowledge: Knowledge | null = null;

  readonly mutables = this.keepMutables();

  private know(knowledge: Knowledge | null): void {
    this.knowledge = knowledge;
    this.mutables.adjusting = knowledge !== null;
  }

  /** What of {@link Mutables.inquire} is being asked on the present connection. */
  private asking: ExchangeInjection | null = null;

  private keepMutables(): Mutables & { adjusting: boolean } {
    return {
      gather: (seen) => gather(seen, this.preparedBefore()),
      reserve: (gathered) => reserve(gathered as Gathered[], this.view()),
      unreserved: (found) => unreserved(found as Findings),
      plan: (gathered, found) => {
        const knowledge: Knowledge = { time: null, currval: new Map(), lastval: null, held: new Map() };
        this.know(knowledge);
        return plan(gathered as Gathered, knowledge, this.view(), found as Findings | null);
      },
      adjusting: false,
      inquire: (_request, bytes, start, end) => {
        if (this.knowledge === null || this.status === 'failed') return null;
        const rest = this.asking?.rest ?? null;
        const exchange = rest === null ? inquire(bytes.subarray(start, end), this.known, this.knowledge) : null;
        this.asking = exchange === null ? rest : new ExchangeInjection(exchange);
        return this.asking;
      },
      adjust: (_request, bytes, start, end) => {
        const repetition = adjust(bytes.subarray(start, end), this.known, this.knowledge!);
        if (this.knowledge!.time === null) this.closeKnowledge(this.knowledge!);
        return repetition;
      },
      prepare: (before) => new StatementInjection(before),
      partAt,
    };
  }

  /** On which depends what the names in a statement mean outside of the open unit. */
  private view(): string {
    const { identity, startup } = this.context.greeting;
    const { params } = (startup as Startup | null) ?? { params: [] };
    const telling = params.filter(([name]) => name !== 'application_name');
    const statements = this.state.statements().map(({ sql }) => sql);
    return JSON.stringify([identity.user, identity.database, telling, statements]);
  }

  /** Prepared statements as they were before the open unit. */
  private preparedBefore(): ReadonlyMap<string, Prepared> {
    if (this.undo.length === 0) return this.prepared;
    const before = new Map(this.prepared);
    this.takeBack(before);
    return before;
  }

  /** Undoes in `prepared` what unfinished requests did. */
  private takeBack(prepared: Map<string, Prepared>): void {
    for (let i = this.undo.length - 1; i >= 0; i--) {
      const [name, before] = this.undo[i];
      if (before === undefined) prepared.delete(name);
      else prepared.set(name, before);
    }
  }

  readonly token = (): XactToken => new XactToken(this.forceToken);

  readonly marker = marker(() => this.forceToken);

  /** The server has the statement that asks for the token ... */
  private tokenPrepared = false;
  /** ... as far as requests do not take it away, of which so many were sent. */
  private deallocations = 0;

  tokenAlong(request: Request, bytes: Uint8Array, start: number, end: number): RidingToken | null {
    const r = request as PgRequest;
    // Only right behind the last statement can what answers the question be told from what answers the request.
    if (this.forceToken || r.kind !== 'extended' || r.executes === 0 || !r.frames.endsWith('ES')) return null;
    // One at a time.
    if (this.rider !== null) return null;
    this.rider = new RidingToken(this.tokenPrepared, this.deallocations, bytes, start, end);
    this.beforeRider = this.behind?.length ?? 0;
    return this.rider;
  }

  rewind(): void {
    // A replay that was cut short has seen less than the client.
    if (this.undo.length >= (this.believed?.changes ?? 0)) {
      this.believed = { prepared: [...this.prepared], changes: this.undo.length };
    }
    this.takeBack(this.prepared);
    this.undo.length = 0;
    this.behind = null;
    this.next();
    this.rider = null;
    this.eventful = true;
    this.know(null);
    this.asking = null;
    this.tokenPrepared = false;
    this.restored.clear();
    this.moving = true;
    this.guarded = false;
    this.status = 'idle';
    this.forceToken = false;
    this.rolledBack = false;
    this.state.rewind(this.observing);
    this.observable = this.state.needsObservation;
    this.observing = false;
  }

  /** Prepared statements of the open unit as the client knows them, while it is being repeated. */
  private believed: { readonly prepared: readonly [string, Prepared][]; readonly changes: number } | null = null;

  abandon(): void {
    if (this.believed !== null && this.undo.length < this.believed.changes) {
      this.prepared.clear();
      for (const [name, prepared] of this.believed.prepared) this.prepared.set(name, prepared);
    }
    this.believed = null;
    this.undo.length = 0;
    this.state.abandon();
  }

  /** The end of the unit that ended last waits for the answer to {@link observe}. */
  private observing = false;

  observe(held: boolean): Injection | null {
    if (!this.observable) return null;
    this.observing = held;
    const settings = this.state.settingsToObserve;
    const injection = new StatementInjection(ownStatement(observeQuery(settings)));
    const state = this.state;
    // The rows are understood when the ready comes: StatementInjection collects them, the state takes them lazily.
    return Object.assign(injection, {
      done: (): void => {
        this.observing = false;
        if (injection.failed() !== null) return;
        const of = (kind: string) => injection.rows.filter((r) => r[0] === kind);
        state.observe({
          advisory: of('advisory').map((r) => ({ call: r[1]!, label: r[2]! })),
          temporary: of('temporary').map((r) => r[1]!),
          held: of('held').map((r) => r[1]!),
          settings: settings === null ? null : of('setting').map((r) => [r[1]!, r[2]!]),
        });
        this.observable = state.needsObservation;
      },
    });
  }

  ties(): Blocker[] {
    return this.state.ties();
  }

  blockers(): Blocker[] {
    return this.state.blockers();
  }

  forgetBlockers(): void {
    this.state.forgetBlockers();
    this.observable = this.state.needsObservation;
  }

  *restore(): Exchange<Blocker[]> {
    const parts = this.state.statements().map((each) => ({ ...each, bytes: ownStatement(each.sql), lock: false }));
    for (const [name, prepared] of this.prepared) {
      const forget = () => this.prepared.delete(name);
      const bytes = Buffer.concat([prepared.parse, SYNC_BYTES]);
      parts.push({ what: 'prepared statement', name, sql: '', forget, bytes, lock: false });
    }
    for (const { call, label } of this.state.locks()) {
      const forget = () => this.state.forgetLock(label);
      const bytes = ownStatement(call);
      parts.push({ what: 'session advisory lock', name: label, sql: '', forget, bytes, lock: true });
    }
    const lost: typeof parts = [];
    let send: Uint8Array | undefined = Buffer.concat(parts.map(({ bytes }) => bytes));
    for (const part of parts) {
      let had = true;
      for (;;) {
        const reply = (yield send === undefined ? { want: 'frame' } : { want: 'frame', send }) as Uint8Array;
        send = undefined;
        const type = reply[0];
        if (type === ERROR) had = false;
        else if (type === DATA_ROW && part.lock) had = dataRow(reply, 0, reply.length)[0] === 't';
        else if (type === PARAMETER_STATUS) {
          const nameEnd = terminator(reply, 5, reply.length);
          this.restored.set(text(reply, 5, nameEnd), text(reply, nameEnd + 1, reply.length - 1));
        } else if (type === READY) break;
      }
      if (!had) lost.push(part);
    }
    // Only now: before, another server would have been asked for all of it.
    for (const { forget } of lost) forget();
    // The unnamed statement (the only one without a name) lasts until the next: few clients use it twice, and they get the server's error.
    return lost.filter(({ name }) => name !== '').map(({ what, name }) => ({ what, name }));
  }

  /** From the loss of a server until {@link announce}: the client is not told of parameters one by one. */
  private moving = false;
  /** Parameters as the new server reported them while the session was restored and its open unit repeated. */
  private readonly restored = new Map<string, string>();

  // --------------------------------------------------------------------------------------------------------------- synthesis

  welcome(login: LoginResult, cancelKey: Uint8Array): Uint8Array {
    const facts = login.facts as LoginFacts;
    const parts: Uint8Array[] = [AUTHENTICATION_OK];
    for (const [name, value] of facts.parameters) {
      this.parameter(name, value);
      parts.push(parameterStatus(name, value));
    }
    const key = Buffer.alloc(5 + cancelKey.length);
    key[0] = BACKEND_KEY;
    key.writeInt32BE(4 + cancelKey.length, 1);
    key.set(cancelKey, 5);
    parts.push(key, ready('idle'));
    return Buffer.concat(parts);
  }

  announce(login: LoginResult): Uint8Array {
    const parts: Uint8Array[] = [];
    const now = new Map([...(login.facts as LoginFacts).parameters, ...this.restored]);
    this.restored.clear();
    this.moving = false;
    for (const [name, value] of now) {
      // A warm spare was logged in while its server was a standby; the server says so itself when that ends.
      if (name === 'in_hot_standby') continue;
      if (this.told.get(name) !== value) {
        this.parameter(name, value);
        parts.push(parameterStatus(name, value));
      }
    }
    return parts.length === 0 ? EMPTY : Buffer.concat(parts);
  }

  readonly synthesize = {
    error: (error: GatewayError, status: TransactionStatus): Uint8Array => {
      const bytes = buildGatewayError(error, 'ERROR');
      if (this.copyIn === null) return Buffer.concat([bytes, ready(status)]);
      // The ready answers the Sync that the client has yet to send.
      this.endCopyIn();
      this.skipping = true;
      return bytes;
    },
    fatal: (error: GatewayError): Uint8Array => buildGatewayError(error, 'FATAL'),
    committed: (request: Request, released: number): Uint8Array => {
      const answers: Uint8Array[] = [];
      // What it prepares or closes is confirmed by this answer.
      const done = this.head === request ? this.opsDone : 0;
      for (const op of (request as PgRequest).ops?.slice(done) ?? []) this.confirm(op);
      for (const frame of (request as PgRequest).frames) {
        if (frame === 'P') answers.push(frameOf(PARSE_COMPLETE));
        else if (frame === 'B') answers.push(frameOf(BIND_COMPLETE));
        else if (frame === 'C') answers.push(frameOf(CLOSE_COMPLETE));
        else if (frame === 'd') answers.push(Buffer.from([PARAMETER_DESCRIPTION, 0, 0, 0, 6, 0, 0]), frameOf(NO_DATA));
        else if (frame === 'D') answers.push(frameOf(NO_DATA));
        else if (frame === 'E' || frame === 'Q') answers.push(COMMIT_COMPLETE);
      }
      if (!request.joined) answers.push(ready('idle'));
      return Buffer.concat(answers.slice(released));
    },
    ready: (status: TransactionStatus): Uint8Array => ready(status),
    keepalive: (message: string): Uint8Array | null => buildNotice(message),
    goodbye: (): Uint8Array => serialize.end(),
  };

  // -------------------------------------------------------------------------------------------------------------- comparison

  canonical(bytes: Uint8Array, start: number, end: number): Uint8Array | null {
    switch (bytes[start]) {
      case NOTICE:
      case NOTIFICATION:
      case PARAMETER_STATUS:
      case NEGOTIATE:
        return null;
      case ERROR:
        // The SQLSTATE is what a program acts on; texts name relations by oid, places in the server's source, and the like.
        return Buffer.from(`E${parseError(bytes, start, end).code}`, 'latin1');
      case ROW_DESCRIPTION:
        return this.verbatim(bytes, start)
          ? bytes.subarray(start, end)
          : withoutTables(Uint8Array.prototype.slice.call(bytes, start, end));
      default:
        return bytes.subarray(start, end);
    }
  }

  verbatim(bytes: Uint8Array, start: number): boolean {
    switch (bytes[start]) {
      case NOTICE:
      case NOTIFICATION:
      case PARAMETER_STATUS:
      case NEGOTIATE:
      case ERROR:
        return false;
      case ROW_DESCRIPTION:
        // Longer ones may reach the client in pieces.
        return lengthAt(bytes, start) > LONGEST_DESCRIPTION;
      default:
        return true;
    }
  }

  /**
   * See {@link SessionCodec.freeze}: fields by their names. Not among them is what
   * - is given anew: `context`, `cache`, `shared`, and what closes over the session (`guard`, `token`, `marker`, `mutables`, `synthesize`);
   * - only makes the next request cheaper: `recent`, `coming`, `candidate`;
   * - belongs to a question of the gateway's own, of which none is under way: `rider`, `beforeRider`, `deallocations`, `asking`;
   * - follows from `told`: `env`.
   * @returns null while what was asked for {@link Mutables.inquire} is known in part only
   */
  freeze() {
    if (this.asking !== null && this.asking.rest !== null) return null;
    return {
      stale: this.stale,
      collecting: this.collecting,
      head: this.head,
      completed: this.completed,
      opsDone: this.opsDone,
      failed: this.failed,
      behind: this.behind,
      copyIn: this.copyIn,
      skipping: this.skipping,
      guarded: this.guarded,
      status: this.status,
      eventful: this.eventful,
      observable: this.observable,
      unnamed: this.unnamed,
      epoch: this.epoch,
      group: this.group,
      portals: this.portals,
      known: this.known,
      prepared: this.prepared,
      undo: this.undo,
      state: this.state.freeze(),
      copyEnd: this.copyEnd,
      forceToken: this.forceToken,
      changesCatalogue: this.changesCatalogue,
      rolledBack: this.rolledBack,
      told: this.told,
      sqlPrepared: this.sqlPrepared,
      knowledge: this.knowledge,
      tokenPrepared: this.tokenPrepared,
      believed: this.believed,
      observing: this.observing,
      moving: this.moving,
      restored: this.restored,
    };
  }

  /** The codec of a session as {@link freeze} left it; what it left belongs to the new one from now on. */
  static thaw(context: SessionContext, cache: QueryCache, frozen: FrozenSession): PostgresSession {
    const session = new PostgresSession(context, cache);
    const { state, told, knowledge, epoch, ...fields } = frozen;
    Object.assign(session, fields, { state: SessionState.thaw(state) });
    for (const [name, value] of told) session.parameter(name, value);
    session.know(knowledge);
    // Nothing is known to be as it was understood elsewhere.
    session.epoch = epoch + 1;
    // They outlive by far what else came in the same buffer.
    for (const prepared of new Set([...session.known.values(), ...session.prepared.values()])) {
      Object.assign(prepared, { parse: Uint8Array.prototype.slice.call(prepared.parse) });
    }
    return session;
  }
}

/** What {@link PostgresSession.freeze} tells. */
export type FrozenSession = NonNullable<ReturnType<PostgresSession['freeze']>>;

const BEGIN = ownStatement('BEGIN');
const COMMIT = ownStatement('COMMIT');
const ROLLBACK = ownStatement('ROLLBACK');
// No statement fails more cheaply inside a transaction, and its text says in the server's log who did it.
const FAIL = ownStatement('ROLLBACK TO SAVEPOINT "outlive: the transaction could not be repeated after a failover"');
const COMMIT_COMPLETE = Buffer.from('C\0\0\0\x0bCOMMIT\0', 'latin1');

/** Facts of statements whose text the gateway does not know: prepared elsewhere, or a fast-path function call. */
const UNKNOWN_FACTS: StatementFacts = Object.freeze({
  ...EMPTY_FACTS,
  verb: 'statement',
  effect: 'write',
  transactional: true,
});
const FUNCTION_FACTS: StatementFacts = Object.freeze({ ...UNKNOWN_FACTS, verb: 'function call' });

/** May the statement take away what is prepared in the session? Functions that touch the session may, and code that nobody has read. */
function mayDeallocate(facts: StatementFacts, hidden: ReadonlySet<string> | null): boolean {
  if (hidden !== null || facts.verb === 'DO' || facts.verb === 'CALL') return true;
  return facts.discard === 'all' || (facts.deallocate !== undefined && facts.all);
}

/** SQLSTATE of a prepared statement that does not exist. */
const NO_STATEMENT = '26000';

/** May a statement be run inside a transaction of the gateway's own and not notice? */
function canWrap(facts: StatementFacts | undefined): boolean {
  return facts === undefined || (facts.transactional && !UNWRAPPABLE.has(facts.effect));
}

const UNWRAPPABLE: ReadonlySet<StatementFacts['effect']> = new Set([
  'begin',
  'commit',
  'rollback',
  'savepoint',
  'prepareTransaction',
  'commitPrepared',
  'rollbackPrepared',
  'opaque',
] as const);

/**
 * The last words of a backend that its postmaster ends at once, after a crash or for an immediate shutdown: a warning that the
 * transaction is rolled back and the connection ends. Neither is so for the client, whose session goes on.
 */
function isQuickDeath(bytes: Uint8Array, start: number, end: number): boolean {
  const frame = Buffer.from(bytes.buffer, bytes.byteOffset + start, end - start);
  return frame.includes('\0Rquickdie\0') && parseError(bytes, start, end).fields.R === 'quickdie';
}

/** Does the request end a transaction? */
function decides({ effect }: PgRequest): boolean {
  return effect === 'commit' || effect === 'rollback';
}

function endsTransaction(facts: StatementFacts): boolean {
  return facts.effect === 'commit' || facts.effect === 'rollback' || facts.effect === 'prepareTransaction';
}

/** Effect of two statements in one request. */
function combine(a: Effect, b: Effect): Effect {
  if (a === 'opaque' || b === 'opaque') return 'opaque';
  // Work before BEGIN in the same text becomes part of the block.
  if (b === 'begin' && (a === 'read' || a === 'write' || a === 'session')) return 'begin';
  if (a === 'begin') return b === 'begin' || b === 'commit' || b === 'rollback' ? 'opaque' : 'begin';
  if (b === 'begin' || b === 'commit' || b === 'rollback' || a === 'commit' || a === 'rollback') return 'opaque';
  if (a === 'write' || b === 'write') return 'write';
  return a === 'session' || b === 'session' ? 'session' : 'read';
}

/** Frame types of [start, end), for a group's tail after a split. */
function tailFrames(bytes: Uint8Array, start: number, end: number): string {
  let out = '';
  for (let at = start; at < end; ) {
    const next = at + lengthAt(bytes, at);
    // The Execute that caused the split is added by the caller.
    if (next < end) out += bytes[at] === DESCRIBE ? describeFrame(bytes, at) : String.fromCharCode(bytes[at]);
    at = next;
  }
  return out;
}

/** 'd' for Describe of a statement (answered by two messages), 'D' of a portal. */
function describeFrame(bytes: Uint8Array, start: number): string {
  return bytes[start + 5] === 0x53 ? 'd' : 'D';
}

/** RowDescriptions up to this size are compared without the oids of their tables. */
const LONGEST_DESCRIPTION = 32 * 1024;

/**
 * A RowDescription without the oids of the tables that its columns come from: a table that the transaction itself has made gets another
 * one when it is made again. Changes the bytes that it is given; leaves those that are no RowDescription as they are.
 */
function withoutTables(frame: Uint8Array): Uint8Array {
  let at = 7;
  for (let left = (frame[5] << 8) | frame[6]; left > 0; left--) {
    const nameEnd = frame.indexOf(0, at);
    if (nameEnd < 0 || nameEnd + 19 > frame.length) break;
    frame.fill(0, nameEnd + 1, nameEnd + 5);
    // Oid, number of the column, type, its size, its modifier, the format.
    at = nameEnd + 19;
  }
  return frame;
}

/** A Query message of this text. */
function frameQuery(sql: Uint8Array): Buffer {
  const query = Buffer.alloc(sql.length + 6);
  query[0] = QUERY;
  query.writeInt32BE(sql.length + 5, 1);
  query.set(sql, 5);
  return query;
}

/** Text of statement k of a query at `textStart`, where restoring may need it. */
function statementText(analysis: QueryFacts, k: number, bytes: Uint8Array, textStart: number): string {
  const { start, end, facts } = analysis.statements[k];
  return touchesSession(facts) ? text(bytes, textStart + start, textStart + end) : '';
}

function observeQuery(customSettings: string[] | null): string {
  const parts = [
    `SELECT 'advisory', 'SELECT pg_catalog.pg_try_advisory_lock' || CASE mode WHEN 'ShareLock' THEN '_shared' ELSE '' END || CASE objsubid WHEN 1 THEN pg_catalog.format('(%s)', (classid::int8 << 32) | objid::int8) ELSE pg_catalog.format('(%s, %s)', classid::int4, objid::int4) END, pg_catalog.format('%s/%s', classid, objid) FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND granted AND pid = pg_catalog.pg_backend_pid()`,
    `SELECT 'temporary', relname::text, '' FROM pg_catalog.pg_class WHERE relnamespace = pg_catalog.pg_my_temp_schema() AND relkind IN ('r', 'v', 'S', 'm', 'p')`,
    `SELECT 'held', name, '' FROM pg_catalog.pg_cursors WHERE is_holdable`,
  ];
  if (customSettings !== null) {
    parts.push(
      `SELECT 'setting', name, pg_catalog.current_setting(name) FROM pg_catalog.pg_settings WHERE source = 'session' AND name NOT IN ('transaction_isolation', 'transaction_read_only', 'transaction_deferrable')`,
    );
    for (const name of customSettings) {
      const literal = `'${name.replaceAll("'", "''")}'`;
      parts.push(
        `SELECT 'setting', ${literal}, pg_catalog.current_setting(${literal}, true) WHERE pg_catalog.current_setting(${literal}, true) IS NOT NULL`,
      );
    }
  }
  return parts.join(' UNION ALL ');
}

function ready(status: TransactionStatus): Buffer {
  return Buffer.from([READY, 0, 0, 0, 5, status === 'idle' ? 0x49 : status === 'open' ? 0x54 : 0x45]);
}

function frameOf(type: number): Buffer {
  return Buffer.from([type, 0, 0, 0, 4]);
}

function parameterStatus(name: string, value: string): Buffer {
  const body = Buffer.from(`${name}\0${value}\0`, 'utf8');
  const frame = Buffer.alloc(5 + body.length);
  frame[0] = PARAMETER_STATUS;
  frame.writeInt32BE(4 + body.length, 1);
  body.copy(frame, 5);
  return frame;
}

/** Values of the parameters in a Bind message; `at` is behind its two names. Text and binary form of a text are the same. */
function boundValues(bytes: Uint8Array, at: number, end: number): string[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const values: string[] = [];
  at += 2 + 2 * view.getUint16(at);
  let left = view.getUint16(at);
  at += 2;
  for (; left > 0 && at + 4 <= end; left--) {
    const length = Math.max(0, view.getInt32(at));
    at += 4;
    // No name of a setting is longer, and some values are.
    if (length > 0 && length <= 256 && at + length <= end) values.push(text(bytes, at, at + length));
    at += length;
  }
  return values;
}

/** Where a name stands in a table of {@link RECENT} places. */
function place(bytes: Uint8Array, start: number, end: number): number {
  let hash = 0;
  for (let i = start; i < end; i++) hash = (Math.imul(hash, 31) + bytes[i]) | 0;
  return (hash ^ (hash >>> 8)) & (RECENT - 1);
}

/** True when [start, end) is this text and all of it ASCII: beyond that, characters are not bytes. */
function spells(expected: string, bytes: Uint8Array, start: number, end: number): boolean {
  if (expected.length !== end - start) return false;
  for (let i = 0; i < expected.length; i++) {
    const byte = bytes[start + i];
    if (byte >= 0x80 || byte !== expected.charCodeAt(i)) return false;
  }
  return true;
}

/** Index of the zero byte that ends the string at `from`. */
function terminator(bytes: Uint8Array, from: number, end: number): number {
  // Names are short, and a call of the engine's own search costs more than looking at them here.
  const near = Math.min(end, from + 24);
  for (let i = from; i < near; i++) if (bytes[i] === 0) return i;
  const at = bytes.indexOf(0, from);
  if (at < 0 || at >= end) throw new ProtocolViolation('a string without its terminator');
  return at;
}

function printable(type: number): string {
  return type >= 0x21 && type <= 0x7e ? `'${String.fromCharCode(type)}'` : `0x${type.toString(16).padStart(2, '0')}`;
}
