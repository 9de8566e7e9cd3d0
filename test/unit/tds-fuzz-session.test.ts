import { serialize } from 'node:v8';
import { describe, expect, it } from 'vitest';
import tds from '../../codecs/tds/index.js';
import type { LoginFacts } from '../../codecs/tds/login.js';
import {
  ATTENTION,
  BULK_LOAD,
  type Message,
  MessageCollector,
  PacketReader,
  packets,
  RPC,
  SQL_BATCH,
  TABULAR_RESULT,
  TRANSACTION_MANAGER,
} from '../../codecs/tds/packet.js';
import { allHeaders, TM_COMMIT_XACT, writeSqlBatch, writeTransactionRequest } from '../../codecs/tds/request.js';
import { COLMETADATA, ROW } from '../../codecs/tds/tokens.js';
import { type Dialect, TDS_7_1, TDS_7_4 } from '../../codecs/tds/version.js';
import { attentionDone, beginChange, done, endChange, error } from '../../codecs/tds/write.js';
import { CodedError, type GatewayError, type LoginResult } from '../../core/contract/index.js';
import { ExchangeStepper } from '../../core/recovery/exchange.js';
import { type Capsule, freezeBytes, thawBytes } from '../../core/session/capsule.js';
import { Session } from '../../core/session/session.js';
import type { SessionIo, SessionLimits } from '../../core/session/world.js';
import { type Randomness, randomness } from '../kit/random.js';
import { captured, messagesOf, streamOf, tdsCaptures } from '../kit/tds-captures.js';
import { clientPayloads, serverTokens } from '../kit/tds-fixtures.js';
import { cut, FUZZ_BYTES, mutate, survives } from '../kit/tds-fuzz.js';

const LIMITS: SessionLimits = { request: 64 * 1024, journal: 256 * 1024, answers: 128 * 1024, queue: 64 * 1024 };
/** A whole session is slower than its readers. */
const BYTES = FUZZ_BYTES / 4;
/** What the codec may keep of a session: a message of the client, a piece and a packet of the server, and what it was told of the session's state. */
const KEPT = 4 * LIMITS.request;
/** A session is given up behind so many losses of its server. */
const LOSSES = 6;

const REQUESTS = new Set([SQL_BATCH, RPC, TRANSACTION_MANAGER, BULK_LOAD, ATTENTION]);

const TRANCOUNT = Buffer.from('SELECT @@TRANCOUNT', 'utf16le');

/** Messages of clients, and the tokens of answers. */
const random = randomness();
const chosen = tdsCaptures.map(captured);
const asked = chosen
  .flatMap((chunks) => messagesOf(streamOf(chunks, 'client'), 'client'))
  .filter(({ type, payload }) => REQUESTS.has(type) && payload.length < 20_000);
const answered = chosen
  .flatMap((chunks) => messagesOf(streamOf(chunks, 'server'), 'server').slice(2))
  .filter(({ type, payload }) => type === TABULAR_RESULT && payload.length < 20_000)
  .map(({ payload }) => payload);
const REQUEST_POOL: readonly { readonly type: number; readonly payload: Uint8Array }[] = [
  ...asked,
  { type: SQL_BATCH, payload: clientPayloads.batch },
  { type: SQL_BATCH, payload: writeSqlBatch(0n, 'begin tran; insert into t values (1)') },
  { type: SQL_BATCH, payload: writeSqlBatch(0n, 'set lock_timeout 5 use app create table #t (a int)') },
  { type: TRANSACTION_MANAGER, payload: clientPayloads.begin },
  { type: TRANSACTION_MANAGER, payload: clientPayloads.commit },
  { type: TRANSACTION_MANAGER, payload: writeTransactionRequest(0n, { type: TM_COMMIT_XACT }) },
  { type: RPC, payload: clientPayloads.rpc },
  { type: BULK_LOAD, payload: clientPayloads.bulk },
  { type: ATTENTION, payload: new Uint8Array(0) },
];
const ANSWER_POOL: readonly Uint8Array[] = [
  ...answered,
  Buffer.concat(serverTokens()),
  done({}, TDS_7_4),
  Buffer.concat([beginChange(7n), done({}, TDS_7_4)]),
  Buffer.concat([endChange(9, 7n), done({ curCmd: 0xd5 }, TDS_7_4)]),
  Buffer.concat([error({ number: 1205, class: 13, message: 'x' }, TDS_7_4), done({ status: 2 }, TDS_7_4)]),
  attentionDone(TDS_7_4),
];

/** A session between a client and servers that say anything. */
class Wild {
  private session: Session;
  private readonly dialect: Dialect;
  private readonly announcesText: boolean;
  private readonly toClient = new PacketReader('server');
  private toServer = this.reader();
  private answers: { readonly bytes: Uint8Array; readonly mutated: boolean }[] = [];
  private reading = true;
  private recovering = false;
  private losses = 0;
  over = false;
  /** Mutated bytes that it was given. */
  fed = 0;

  constructor(
    private readonly rnd: Randomness,
    /** Who says what nobody would. */
    private readonly wild: { readonly client: boolean; readonly server: boolean },
  ) {
    this.announcesText = rnd.below(2) === 0;
    this.dialect = rnd.below(4) === 0 ? TDS_7_1 : TDS_7_4;
    const codec = tds.session(this.context);
    this.session = new Session(codec, tds.frameLength, LIMITS, this.io, { requests: 0, units: 0 });
    codec.welcome(this.login, new Uint8Array(16));
    this.session.attached();
  }

  private get context() {
    const { dialect } = this;
    const { announcesText } = this;
    return {
      greeting: {
        kind: 'session',
        identity: { user: 'sa', database: '', secret: null },
        startup: { login: { tdsVersion: 0x74000004 }, dialect, strict: false },
        passThrough: null,
        tls: false,
      },
      shared: () => ({ announcesText }),
      options: {},
    } as const;
  }

  private get login(): LoginResult {
    const facts: LoginFacts = {
      dialect: this.dialect,
      packetSize: this.rnd.one([512, 4096]),
      spid: 7,
      tokens: done({}, this.dialect),
      columnEncryption: this.rnd.below(8) === 0,
      dataClassification: this.rnd.below(3),
    };
    return { cancelKey: null, backendId: '7', facts };
  }

  /** Reads what goes to a server, which is always in order, and answers each message. */
  private reader(): (bytes: Uint8Array) => void {
    const reader = new PacketReader('client');
    const collector = new MessageCollector('client', 1e7, ({ type, bytes, start, end }: Message) => {
      if (type === ATTENTION && this.rnd.below(2) === 0) this.say(attentionDone(this.dialect));
      // Without an answer to that nothing goes on.
      else if (type === SQL_BATCH && Buffer.from(bytes.subarray(start, end)).includes(TRANCOUNT))
        this.say(this.count());
      else this.say(this.rnd.one(ANSWER_POOL));
      return false;
    });
    return (bytes) => void reader.push(bytes, 0, bytes.length, collector);
  }

  private count(): Uint8Array {
    const column = Buffer.from([
      COLMETADATA,
      1,
      0,
      ...(this.dialect === TDS_7_1 ? [0, 0] : [0, 0, 0, 0]),
      0,
      0,
      0x26,
      4,
      0,
    ]);
    return Buffer.concat([column, Buffer.from([ROW, 4, this.rnd.below(3), 0, 0, 0]), done({}, this.dialect)]);
  }

  private say(tokens: Uint8Array): void {
    const size = this.rnd.one([512, 4096]);
    let bytes = packets(TABULAR_RESULT, tokens, size);
    // Most are in order, lest a session ends before it has come to anything.
    const mutated = this.wild.server && this.rnd.below(4) === 0;
    if (mutated && this.rnd.below(4) > 0) bytes = packets(TABULAR_RESULT, mutate(tokens, this.rnd), size);
    else if (mutated) bytes = mutate(bytes, this.rnd);
    this.answers.push({ bytes, mutated });
  }

  private get io(): SessionIo {
    const nothing = () => {};
    return {
      toClient: (bytes) => {
        this.toClient.push(bytes, 0, bytes.length, { packet: nothing, payload: nothing, end: () => false });
      },
      toServer: (bytes) => this.toServer(bytes),
      readClient: (on) => {
        this.reading = on;
      },
      corkServer: nothing,
      doubt: () => {
        this.doubting = true;
      },
      recover: () => {
        this.recovering = true;
      },
      replayed: (result) => {
        if (result === 'retry') this.retrying = true;
      },
      learn: nothing,
      resumed: nothing,
      acknowledged: nothing,
      marked: nothing,
      closeClient: () => {
        this.over = true;
      },
      durable: () => true,
      count: nothing,
    };
  }

  private doubting = false;
  private retrying = false;

  /** The client says something, and everything follows that follows from it. */
  turn(): void {
    const { rnd } = this;
    const { type, payload } = rnd.one(REQUEST_POOL);
    const size = rnd.one([512, 4096]);
    let bytes: Uint8Array = packets(type, payload, size, rnd.one([0, 0, 0, 0, 2, 8, 16]));
    const mutated = this.wild.client && rnd.below(4) === 0;
    if (mutated) {
      // Behind the headers, so that it is read any further, or anywhere.
      const head = Math.min(payload.length, rnd.below(2) * allHeaders(0n).length);
      if (rnd.below(4) > 0) {
        const rest = mutate(payload.subarray(head), rnd);
        bytes = packets(type, Buffer.concat([payload.subarray(0, head), rest]), size);
      } else bytes = mutate(bytes, rnd);
    }
    for (const part of cut(bytes, rnd)) {
      if (this.over) return;
      if (!this.reading) break;
      if (mutated) this.fed += part.length;
      this.session.frontend(Uint8Array.from(part));
      if (rnd.below(3) === 0) this.settle();
    }
    this.settle();
    if (rnd.below(12) === 0 && !this.over) this.lose();
    this.settle();
    const kept = serialize(this.session.codec.freeze()).length;
    expect(kept).toBeLessThan(KEPT);
    if (rnd.below(12) === 0 && !this.over) this.move();
  }

  /** Goes on in another process. */
  private move(): void {
    const capsule = this.session.capsule();
    if (capsule === null) return;
    const thawed = thawBytes(freezeBytes(capsule as Capsule));
    this.session = Session.thaw(thawed, tds, this.context, LIMITS, this.io, { requests: 0, units: 0 }).session;
  }

  private lose(): void {
    this.answers = [];
    this.session.lost();
  }

  private settle(): void {
    for (let steps = 0; !this.over; steps++) {
      if (steps > 1000) throw new Error('it does not come to an end');
      if (this.doubting) {
        this.doubting = false;
        if (this.rnd.below(2) === 0) this.session.intent();
        else this.lose();
      } else if (this.retrying) {
        this.retrying = false;
        this.lose();
      } else if (this.recovering) this.recover();
      else {
        const answer = this.answers.shift();
        if (answer === undefined) return;
        for (const part of cut(answer.bytes, this.rnd)) {
          if (this.over || this.recovering || this.doubting) break;
          if (answer.mutated) this.fed += part.length;
          this.session.backend(Uint8Array.from(part));
        }
      }
    }
  }

  private recover(): void {
    const { session } = this;
    this.recovering = false;
    this.answers = [];
    const cause: GatewayError = { code: 'OUTLIVE_NO_WRITABLE_SERVER', kind: 'unavailable', message: 'none' };
    if (++this.losses > LOSSES) {
      session.unavailable(cause);
      this.losses = 0;
      return;
    }
    if (session.inDoubt) {
      session.asking();
      const outcome = this.rnd.below(3);
      if (outcome === 0) session.committed();
      else if (outcome === 1) session.notCommitted();
      else session.unknown({ code: 'OUTLIVE_OUTCOME_UNKNOWN', kind: 'outcome-unknown', message: 'unknown' });
    }
    this.toServer = this.reader();
    session.restoring();
    const blockers = session.codec.blockers();
    const { login } = this;
    const stepper = new ExchangeStepper(session.codec.restore(login), {
      frameLength: tds.frameLength,
      peer: 'server',
      maxFrame: LIMITS.request,
    });
    let step = stepper.start();
    for (let steps = 0; step.state === 'bytes'; steps++) {
      if (steps > 1000) throw new Error('the state is never restored');
      for (const bytes of step.send) this.toServer(bytes);
      const answer = this.answers.shift();
      if (answer === undefined) break;
      step = stepper.push(answer.bytes);
    }
    this.answers = [];
    if (step.state === 'failed' && !(step.error instanceof CodedError)) throw step.error;
    if (step.state !== 'done') {
      session.lost();
      return;
    }
    if (blockers.length + step.result.length > 0) {
      session.codec.forgetBlockers();
      session.cannotContinue({ code: 'OUTLIVE_STATE_LOST', kind: 'state-lost', message: 'lost' });
    }
    session.restored(login);
  }

  /** What the host does with a session that cannot go on: its client is told so where that can be done. */
  end(): void {
    if (this.over) return;
    this.over = true;
    const words = this.session.lastWords({ code: 'OUTLIVE_PROTOCOL_VIOLATION', kind: 'protocol', message: 'no' });
    if (words !== null) this.io.toClient(words);
    this.session.close();
  }
}

describe('a whole session', { timeout: 3_600_000 }, () => {
  it.each([
    ['of a wild server', { client: false, server: true }],
    ['of a wild client', { client: true, server: false }],
    ['between two wild ones', { client: true, server: true }],
  ] as const)(`${'%s'}, ${BYTES} bytes (${random.where})`, (_, wild) => {
    console.log(`${random.where} OUTLIVE_FUZZ_BYTES=${FUZZ_BYTES}`);
    let read = 0;
    let sessions = 0;
    let turns = 0;
    while (read < BYTES) {
      const session = new Wild(random, wild);
      sessions++;
      const before = turns;
      while (!session.over && turns - before < 60) {
        const where = `${random.where}, session ${sessions}, turn ${++turns - before}`;
        if (!survives(where, () => session.turn())) session.end();
      }
      session.end();
      read += session.fed;
    }
    console.log(`${sessions} sessions, ${turns} turns`);
    // Most of what is said is understood, or only the door was tried.
    expect(turns).toBeGreaterThan(2 * sessions);
  });
});
