import tds from '../../codecs/tds/index.js';
import type { LoginFacts } from '../../codecs/tds/login.js';
import {
  ATTENTION,
  type Message,
  MessageCollector,
  PacketReader,
  packets,
  RESETCONNECTION,
  RPC,
  SQL_BATCH,
  TABULAR_RESULT,
  TRANSACTION_MANAGER,
} from '../../codecs/tds/packet.js';
import { readSqlBatch, readTransactionRequest, sqlText } from '../../codecs/tds/request.js';
import {
  parameterInteger,
  parameterText,
  parameterValue,
  readRpc,
  SP_EXECUTE,
  SP_PREPARE,
} from '../../codecs/tds/rpc.js';
import { COLMETADATA, DONE, DONEPROC, RETURNVALUE, ROW } from '../../codecs/tds/tokens.js';
import { TDS_7_4 } from '../../codecs/tds/version.js';
import { attentionDone, beginChange, done, endChange, error, info, returnStatus } from '../../codecs/tds/write.js';
import type { LoginResult } from '../../core/contract/index.js';
import { ExchangeStepper } from '../../core/recovery/exchange.js';
import { type Capsule, freezeBytes, thawBytes } from '../../core/session/capsule.js';
import type { ProofPolicy } from '../../core/session/proof.js';
import { Session } from '../../core/session/session.js';
import type { SessionIo, SessionLimits } from '../../core/session/world.js';

export const LIMITS: SessionLimits = { request: 1e7, journal: 1e7, answers: 1e7, queue: 1e6 };
const STATS = { requests: 0, units: 0 };
export const CLIENT_SIZE = 4096;

/** One column of nvarchar(max) without a name. */
const TEXT_COLUMN = Buffer.from([COLMETADATA, 1, 0, 0, 0, 0, 0, 0, 0, 0xe7, 0xff, 0xff, 9, 4, 0xd0, 0, 0x34, 0]);
const INT_COLUMN = Buffer.from([COLMETADATA, 1, 0, 0, 0, 0, 0, 0, 0, 0x26, 4, 0]);

function textRow(text: string): Buffer {
  const bytes = Buffer.from(text, 'utf16le');
  const head = Buffer.alloc(13);
  head[0] = ROW;
  head.writeBigUInt64LE(BigInt(bytes.length), 1);
  head.writeUInt32LE(bytes.length, 9);
  return bytes.length === 0 ? head : Buffer.concat([head, bytes, Buffer.alloc(4)]);
}

function intRow(value: number): Buffer {
  const row = Buffer.from([ROW, 4, 0, 0, 0, 0]);
  row.writeInt32LE(value, 2);
  return row;
}

/** What made-up servers have in common: a database, and a way to tell which of them somebody speaks with. */
export class MadeUpTdsDatabase {
  readonly applied: string[] = [];
  /** Rows that prove commits. */
  readonly marks = new Set<string>();
  /** The error that such a row is refused with, when set; with its transaction, below 0. */
  markFault = 0;
  /** How often a row was looked for. */
  lookups = 0;
  servers = 0;
}

/**
 * One connection to a made-up server: bytes in, bytes out, at once. It knows `select N` (N rows), `select long` (rows beyond a packet,
 * and one beyond all buffers), `select fail`, `print`, `insert NAME` (`insert fail` fails alone, `insert abort` with its transaction), BEGIN TRAN,
 * COMMIT, ROLLBACK, @@TRANCOUNT, SET, USE, the same by the transaction manager, sp_prepare and sp_execute, several in a batch with `;` between,
 * IMPLICIT_TRANSACTIONS, the gateway's rows that prove commits, and Attention for `slow`. Descriptors and handles are other ones in each server.
 */
export class MadeUpTdsServer {
  readonly heard: string[] = [];
  private readonly reader = new PacketReader('client');
  private readonly collector: MessageCollector;
  private out: Uint8Array[] = [];
  private readonly number: number;
  private descriptor = 0n;
  private count = 0;
  private unit: string[] = [];
  private unitMarks: string[] = [];
  private implicit = false;
  private handle: number;
  private readonly handles = new Map<number, string>();

  constructor(
    private readonly database: MadeUpTdsDatabase,
    private readonly packetSize: number,
    private readonly announces: boolean,
  ) {
    this.number = ++database.servers;
    this.handle = 100 * this.number;
    this.collector = new MessageCollector('client', 1e7, (message) => {
      const tokens = this.answer(message);
      if (tokens !== null)
        this.out.push(packets(TABULAR_RESULT, Buffer.concat(tokens), this.packetSize, 0, this.number));
      return false;
    });
  }

  feed(bytes: Uint8Array): Buffer {
    this.reader.push(bytes, 0, bytes.length, this.collector);
    const out = Buffer.concat(this.out);
    this.out = [];
    return out;
  }

  private answer({ type, status, bytes, start, end }: Message): Uint8Array[] | null {
    // The answer tells of it first, as this one does; of the session nothing else is reset.
    const reset = (status & RESETCONNECTION) !== 0 && this.count > 0 ? this.abort() : [];
    const answer = this.answered({ type, status, bytes, start, end } as Message);
    return answer === null ? null : [...reset, ...answer];
  }

  private answered({ type, bytes, start, end }: Message): Uint8Array[] | null {
    if (type === ATTENTION) {
      return [attentionDone(TDS_7_4)];
    }
    if (type === SQL_BATCH) {
      const batch = readSqlBatch(bytes, start, end, TDS_7_4);
      return this.checked(batch.headers.descriptor) ?? this.batch(sqlText(batch));
    }
    if (type === TRANSACTION_MANAGER) {
      const request = readTransactionRequest(bytes, start, end, TDS_7_4);
      const verb = ({ 5: 'begin tran', 7: 'commit', 8: 'rollback' } as Record<number, string>)[request.type];
      return this.checked(request.headers.descriptor) ?? this.transaction(verb, true);
    }
    if (type !== RPC) throw new Error(`a message of type ${type}`);
    const { headers, calls } = readRpc(bytes, start, end, TDS_7_4);
    return this.checked(headers.descriptor) ?? calls.flatMap((call) => this.call(call, bytes));
  }

  private checked(descriptor: bigint): Uint8Array[] | null {
    if (!this.announces || descriptor === this.descriptor) return null;
    return [error({ number: 3971, class: 16, message: `not ${descriptor}` }, TDS_7_4), done({ status: 2 }, TDS_7_4)];
  }

  private call(call: ReturnType<typeof readRpc>['calls'][number], bytes: Uint8Array): Uint8Array[] {
    const { id, parameters } = call;
    const end = [returnStatus(0), done({ type: DONEPROC }, TDS_7_4)];
    if (call.name.endsWith('_put]'))
      return this.mark(Buffer.from(parameterValue(bytes, parameters[0])!).toString('hex'));
    if (id === SP_PREPARE) {
      this.handles.set(++this.handle, parameterText(bytes, parameters[2])!);
      this.heard.push(`prepare ${parameterText(bytes, parameters[2])}`);
      const value = Buffer.from([RETURNVALUE, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0x26, 4, 4, 0, 0, 0, 0]);
      value.writeInt32LE(this.handle, value.length - 4);
      return [end[0], value, end[1]];
    }
    const text = id === SP_EXECUTE ? this.handles.get(parameterInteger(bytes, parameters[0])!) : undefined;
    if (text === undefined) {
      const message = 'Could not find prepared statement.';
      return [error({ number: 8179, class: 16, message }, TDS_7_4), done({ type: DONEPROC, status: 2 }, TDS_7_4)];
    }
    return [...(this.batch(text) ?? []), ...end];
  }

  /** A row that proves a commit. */
  private mark(id: string): Uint8Array[] {
    const { database } = this;
    const answer = (status: number) => [returnStatus(status), done({ type: DONEPROC }, TDS_7_4)];
    this.heard.push(`mark ${id}`);
    if (this.count !== 1) return answer(0);
    const number = database.marks.has(id) || this.unitMarks.includes(id) ? 2627 : Math.abs(database.markFault);
    if (number === 0) {
      this.unitMarks.push(id);
      return answer(1);
    }
    const told = [error({ number, class: 14, message: 'no row' }, TDS_7_4)];
    const ended = database.markFault < 0 ? this.abort() : [];
    return [...told, ...ended, done({ type: DONEPROC, status: 2 }, TDS_7_4)];
  }

  /** What is told when an error ends the transaction, whether or not text is told of. */
  private abort(): Uint8Array[] {
    const { descriptor } = this;
    this.unit = [];
    this.unitMarks = [];
    this.count = 0;
    this.descriptor = 0n;
    return [endChange(10, descriptor)];
  }

  private batch(text: string): Uint8Array[] | (null & never);
  private batch(text: string): Uint8Array[] | null {
    const parts = text.split(';').map((part) => part.trim());
    if (parts.length === 1) return this.statement(text);
    const all = parts.flatMap((part) => this.statement(part)!);
    // All but the last one say that more follows.
    for (const token of all.slice(0, -1)) if (token[0] === DONE) token[1] |= 1;
    return all;
  }

  private statement(text: string): Uint8Array[] | null {
    this.heard.push(text);
    const [condition, rest] = text.split('IF @@TRANCOUNT > 0 ');
    if (rest !== undefined && condition === '') {
      if (this.count === 0) return [done({}, TDS_7_4)];
      return this.transaction(rest.split(' ')[0].toLowerCase(), this.announces);
    }
    if (text === 'SET IMPLICIT_TRANSACTIONS ON') this.implicit = true;
    if (this.implicit && this.count === 0 && text.startsWith('insert')) {
      const begun = this.transaction('begin', this.announces);
      return [...begun.slice(0, -1), ...this.statement(text)!];
    }
    const [verb, argument] = text.toLowerCase().split(' ');
    const end = (rowCount: number) => done({ status: 0x10, rowCount: BigInt(rowCount) }, TDS_7_4);
    if (text === 'SELECT @@TRANCOUNT') return [INT_COLUMN, intRow(this.count), end(1)];
    switch (verb) {
      case 'select': {
        if (argument === 'long')
          return [TEXT_COLUMN, textRow('x'.repeat(3000)), textRow('y'.repeat(40_000)), textRow('z'), end(3)];
        if (argument === 'fail')
          return [error({ number: 50_000, class: 16, message: 'no luck' }, TDS_7_4), done({ status: 2 }, TDS_7_4)];
        const count = Number(argument);
        return [TEXT_COLUMN, ...Array.from({ length: count }, (_, i) => textRow(`row ${i}`)), end(count)];
      }
      case 'print':
        return [info({ number: 0, class: 0, message: `server ${this.number}` }, TDS_7_4), done({}, TDS_7_4)];
      case 'insert':
        if (argument === 'fail' || argument === 'abort') {
          const ended = argument === 'abort' && this.count > 0 ? this.abort() : [];
          return [
            error({ number: 2627, class: 14, message: 'again' }, TDS_7_4),
            ...ended,
            done({ status: 2 }, TDS_7_4),
          ];
        }
        if (this.count > 0) this.unit.push(argument);
        else this.database.applied.push(argument);
        return [end(1)];
      case 'waitfor':
        return null;
      case 'begin':
      case 'commit':
      case 'rollback':
        return this.transaction(text.toLowerCase(), this.announces);
      default:
        return [done({}, TDS_7_4)];
    }
  }

  private transaction(text: string, announce: boolean): Uint8Array[] {
    if (text.startsWith('begin')) {
      this.count++;
      if (this.count > 1) return [done({}, TDS_7_4)];
      this.descriptor = BigInt(1000 * this.number + ++this.handle);
      return [...(announce ? [beginChange(this.descriptor)] : []), done({}, TDS_7_4)];
    }
    if (this.count === 0)
      return [error({ number: 3902, class: 16, message: 'no transaction' }, TDS_7_4), done({ status: 2 }, TDS_7_4)];
    const commits = text === 'commit';
    if (commits && this.count > 1) {
      this.count--;
      return [done({}, TDS_7_4)];
    }
    if (commits) {
      this.database.applied.push(...this.unit);
      for (const id of this.unitMarks) this.database.marks.add(id);
    }
    const { descriptor } = this;
    this.unit = [];
    this.unitMarks = [];
    this.count = 0;
    this.descriptor = 0n;
    const curCmd = commits ? 0xd5 : 0xd6;
    return [...(announce ? [endChange(commits ? 9 : 10, descriptor)] : []), done({ curCmd }, TDS_7_4)];
  }
}

/** How a direction's bytes are cut. */
export type Cut = (left: number) => number;
export const WHOLE: Cut = (left) => left;
export const BYTES: Cut = () => 1;

/** A session of the engine with the TDS codec, its client and its servers. */
export class TdsEngine {
  readonly database = new MadeUpTdsDatabase();
  server: MadeUpTdsServer;
  session: Session;
  /** All that the client heard. */
  heard: Uint8Array[] = [];
  private toClient: Uint8Array[] = [];
  private fromServer: Buffer = Buffer.alloc(0);
  /** Bytes of servers that the session got. */
  delivered = 0;
  /** The server is lost when so many bytes of it were delivered; once. */
  loseAt = -1;
  /** Bytes that went to servers. */
  sent = 0;
  /** The server is lost when it got so many bytes, and no more; once. */
  loseBefore = -1;
  /** How often a server was lost in the midst of something. */
  losses = 0;
  /** What the client says when so many bytes of servers were delivered; once. */
  interrupt: { readonly at: number; readonly bytes: Uint8Array } | null = null;
  private recovering = false;

  constructor(
    private readonly options: {
      readonly sizes?: readonly number[];
      readonly announces?: boolean;
      readonly cut?: Cut;
      readonly proof?: ProofPolicy;
    } = {},
  ) {
    this.server = this.connect();
    const codec = tds.session(this.context);
    this.session = new Session(codec, tds.frameLength, LIMITS, this.io, STATS, options.proof);
    codec.welcome(this.login, new Uint8Array(16));
    this.session.attached();
  }

  private get context() {
    const fields = { tdsVersion: 0x74000004 };
    return {
      greeting: {
        kind: 'session',
        identity: { user: 'sa', database: '', secret: null },
        startup: { login: fields, dialect: TDS_7_4, strict: false },
        passThrough: null,
        tls: false,
      },
      shared: () => ({ announcesText: this.announces }),
      options: {},
    } as const;
  }

  private get announces(): boolean {
    return this.options.announces ?? true;
  }

  private get size(): number {
    const { sizes = [CLIENT_SIZE] } = this.options;
    return sizes[Math.max(0, this.database.servers - 1) % sizes.length];
  }

  private connect(): MadeUpTdsServer {
    const { sizes = [CLIENT_SIZE] } = this.options;
    return new MadeUpTdsServer(this.database, sizes[this.database.servers % sizes.length], this.announces);
  }

  private get login(): LoginResult {
    const facts: LoginFacts = {
      dialect: TDS_7_4,
      packetSize: this.size,
      spid: 7,
      tokens: done({}, TDS_7_4),
      columnEncryption: false,
      dataClassification: 0,
    };
    return { cancelKey: null, backendId: '7', facts };
  }

  private get io(): SessionIo {
    const nothing = () => {};
    return {
      toClient: (bytes) => this.toClient.push(bytes),
      toServer: (bytes) => {
        if (this.lostBefore) return;
        const left = this.loseBefore < 0 ? Infinity : this.loseBefore - this.sent;
        this.sent += bytes.length;
        if (bytes.length >= left) this.lostBefore = true;
        const heard = this.server.feed(bytes.subarray(0, left));
        // Who is gone is not heard any more.
        if (!this.lostBefore) this.fromServer = Buffer.concat([this.fromServer, heard]);
      },
      readClient: nothing,
      corkServer: nothing,
      doubt: nothing,
      recover: () => {
        this.recovering = true;
      },
      replayed: (result) => {
        if (result === 'retry') this.session.lost();
      },
      learn: nothing,
      resumed: nothing,
      acknowledged: nothing,
      marked: nothing,
      closeClient: () => {
        throw new Error('the client was sent away');
      },
      durable: () => true,
      count: nothing,
    };
  }

  /** The client says this; whatever follows from it happens. */
  say(message: Uint8Array, cut: Cut = WHOLE): void {
    for (let at = 0; at < message.length; ) {
      const to = at + Math.min(message.length - at, cut(message.length - at));
      this.session.frontend(message.slice(at, to));
      at = to;
    }
    this.settle();
  }

  private lostBefore = false;

  /** The server is gone. */
  lose(): void {
    this.fromServer = Buffer.alloc(0);
    this.session.lost();
  }

  settle(): void {
    for (;;) {
      if (this.recovering) this.recover();
      else if (this.lostBefore) {
        this.lostBefore = false;
        this.loseBefore = -1;
        this.losses++;
        this.lose();
      } else if (this.fromServer.length > 0) this.deliver();
      else break;
    }
    this.heard.push(...this.toClient.splice(0));
  }

  private deliver(): void {
    const { cut = WHOLE } = this.options;
    let length = Math.min(this.fromServer.length, cut(this.fromServer.length));
    const lose = this.loseAt >= 0 && this.delivered + length >= this.loseAt;
    if (lose) length = this.loseAt - this.delivered;
    const chunk = Uint8Array.prototype.slice.call(this.fromServer, 0, length);
    this.fromServer = this.fromServer.subarray(length);
    this.delivered += length;
    if (length > 0) this.session.backend(chunk);
    if (this.interrupt !== null && this.delivered >= this.interrupt.at) {
      const { bytes } = this.interrupt;
      this.interrupt = null;
      this.session.frontend(bytes);
    }
    if (lose) {
      this.loseAt = -1;
      this.losses++;
      this.lose();
    }
  }

  private recover(): void {
    this.recovering = false;
    const { session } = this;
    if (session.inDoubt) {
      session.asking();
      const { unit } = session;
      const mark = unit.token?.mark;
      if (unit.unprovable !== null || (mark === undefined && this.options.proof === undefined)) {
        session.unknown({ code: 'OUTLIVE_OUTCOME_UNKNOWN', kind: 'outcome-unknown', message: 'unknown' });
      } else if (mark === undefined) session.notCommitted();
      else {
        this.database.lookups++;
        if (this.database.marks.has(mark.id)) session.committed();
        else session.notCommitted();
      }
    }
    this.server = this.connect();
    session.restoring();
    const blockers = session.codec.blockers();
    const stepper = new ExchangeStepper(session.codec.restore(this.login), {
      frameLength: tds.frameLength,
      peer: 'server',
    });
    let step = stepper.start();
    while (step.state === 'bytes') step = stepper.push(this.server.feed(Buffer.concat(step.send)));
    if (step.state !== 'done') throw new Error('the session was not restored', { cause: step });
    const gone = [...blockers, ...step.result];
    if (gone.length > 0) {
      session.codec.forgetBlockers();
      session.cannotContinue({ code: 'OUTLIVE_STATE_LOST', kind: 'state-lost', message: 'lost' });
    }
    session.restored(this.login);
  }

  /** Goes on with the session in another process. False when it cannot be told now. */
  move(): boolean {
    const capsule = this.session.capsule();
    if (capsule === null) return false;
    const bytes = freezeBytes(capsule as Capsule);
    const { session } = Session.thaw(thawBytes(bytes), tds, this.context, LIMITS, this.io, STATS);
    this.session = session;
    return true;
  }

  /** Payloads of the whole messages that the client heard. */
  messages(): Buffer[] {
    const found: Buffer[] = [];
    const collector = new MessageCollector('server', 1e8, ({ bytes, start, end }) => {
      found.push(Buffer.from(bytes.slice(start, end)));
      return false;
    });
    const all = Buffer.concat([...this.heard, ...this.toClient]);
    new PacketReader('server').push(all, 0, all.length, collector);
    return found;
  }
}
