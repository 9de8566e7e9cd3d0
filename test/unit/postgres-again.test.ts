import { serialize } from 'pg-protocol';
import { describe, expect, it } from 'vitest';
import postgres from '../../codecs/postgres/index.js';
import { parseCatalogue } from '../../codecs/postgres/sql/index.js';
import {
  BACKEND,
  FRONTEND,
  type FrameHeader,
  RELAY,
  type Request,
  type SessionCodec,
  type Sink,
  type TransactionStatus,
} from '../../core/contract/index.js';
import { message } from '../kit/gateway.js';
import { type Randomness, randomness } from '../kit/random.js';

const TEXTS = [
  'SELECT a FROM t WHERE b = $1',
  'SELECT f(1)',
  'SELECT set_config($1, $2, false)',
  'UPDATE t SET a = 1',
  'INSERT INTO t VALUES (1)',
  'BEGIN',
  'COMMIT',
  'ROLLBACK',
  'SAVEPOINT s',
  'SET work_mem = 1',
  'PREPARE q AS SELECT 1',
  'EXECUTE q',
  'EXECUTE a',
  'COPY t FROM STDIN',
  'NOTIFY n',
  'CALL p()',
  'DISCARD ALL',
  'VACUUM',
  '',
];
const NAMES = ['', 'a', 'b', 'b2', 'é', 'Ã©', 'a name as long as ORMs make them, 0123456789'];
/** What may be known of a database. The functions of the second one are safe, those of the third touch the session. */
const CATALOGUES = [
  undefined,
  { catalogue: parseCatalogue([['v', 'f']]) },
  { catalogue: parseCatalogue([['s', 'f']]) },
  { catalogue: parseCatalogue(['s f', 'u f', 'c own.setting'].map((row) => row.split(' '))) },
];

/** What a codec made of the same bytes: each request with all that the core may ask about it, and each frame of its answer. */
class Listener implements Sink {
  readonly heard: unknown[] = [];
  readonly codec: SessionCodec;
  shared: unknown = CATALOGUES[1];
  private readonly header = { length: 0, need: 0, treatment: RELAY, boundary: false } as FrameHeader;
  /** Requests that the made-up server has not answered, by the types of their frames. */
  private readonly open: { readonly request: Request; readonly types: string }[] = [];
  private bytes: Uint8Array | null = null;
  private at = 0;
  /** Requests that came in one go. */
  whole = 0;

  private requests = 0;

  constructor() {
    const greeting = {
      kind: 'session',
      identity: { user: 'u', database: 'd', secret: null },
      startup: null,
      passThrough: null,
      tls: false,
    } as const;
    this.codec = postgres.session({ greeting, shared: () => this.shared, options: {} });
    this.codec.welcome({ cancelKey: null, backendId: '1', facts: { parameters: [] } }, new Uint8Array(8));
  }

  /** Of a message of the client's, what stands before `end` is here. */
  hear(bytes: Uint8Array, end: number): void {
    if (bytes !== this.bytes) this.at = 0;
    this.bytes = bytes;
    while (this.at < end) {
      if (!this.codec.peek(FRONTEND, bytes, this.at, end, this.header)) break;
      const { length, treatment } = this.header;
      if (this.at + length > end) break;
      if (length > 1 + Buffer.from(bytes.buffer, bytes.byteOffset).readInt32BE(this.at + 1)) this.whole++;
      if (treatment !== RELAY) this.codec.decode(FRONTEND, bytes, this.at, this.at + length, this);
      this.at += length;
    }
  }

  request(request: Request, bytes: Uint8Array, start: number, end: number): void {
    const { kind, label, effect, writes, guardable, mustGuard, joined, barrier, provable } = request;
    const facts = { kind, label, effect, writes, guardable, mustGuard, joined, barrier, provable };
    const sent = Buffer.from(bytes.subarray(start, end));
    this.codec.sent(request);
    const token = this.requests++ % 5 === 0 ? this.codec.tokenAlong!(request, bytes, start, end) : null;
    const asked = token === null ? sent : token.bytes;
    let types = '';
    for (let at = 0; at < asked.length; at += 1 + Buffer.from(asked).readInt32BE(at + 1)) {
      types += asked[at] === 0x44 && asked[at + 5] === 0x53 ? 'd' : String.fromCharCode(asked[at]);
    }
    this.open.push({ request, types });
    this.heard.push({ ...facts, sent: sent.toString('latin1'), asked: Buffer.from(asked).toString('latin1') });
    this.heard.push(Buffer.from(this.codec.synthesize.committed(request, 0)).toString('latin1'));
  }

  /** The server answers one request; `fails` is the number of its frame that does. */
  answer(status: TransactionStatus, fails: number, tag: string): void {
    const next = this.open.shift();
    if (next === undefined) return;
    const answers: string[] = [];
    for (const type of next.types) {
      if (answers.length >= fails && type !== 'S') {
        answers.push('E');
        break;
      }
      answers.push(...(ANSWERS[type] ?? []));
    }
    const ready = status === 'idle' ? 'I' : status === 'open' ? 'T' : 'E';
    const bodies: Record<string, string> = { C: `${tag}\0`, E: 'SERROR\0VERROR\0C42601\0Mno\0\0', D: '\0\0' };
    const bytes = Buffer.concat([
      ...answers.map((type) => message(type, Buffer.from(bodies[type] ?? '', 'latin1'))),
      message('Z', Buffer.from(ready)),
    ]);
    for (let at = 0; at < bytes.length; at += this.header.length) {
      this.codec.peek(BACKEND, bytes, at, bytes.length, this.header);
      const { treatment, length } = this.header;
      const then = treatment === RELAY ? 'relayed' : this.codec.decode(BACKEND, bytes, at, at + length, this);
      this.heard.push(`${String.fromCharCode(bytes[at])} ${then}`);
    }
    const observed = this.codec.observe(false);
    this.heard.push([this.codec.stale, observed === null ? null : Buffer.from(observed.bytes).toString('latin1')]);
    this.heard.push(this.codec.blockers());
  }

  /** The server was lost, and what was open is not repeated. */
  moved(): void {
    this.open.length = 0;
    this.codec.rewind();
    this.codec.abandon();
  }

  ready(status: TransactionStatus): void {
    this.heard.push(status);
  }
  error(): void {
    this.heard.push('error');
  }
  input(): void {}
  interrupt(): void {}
  goodbye(): void {}
  passThrough(): void {}
}

/** What a server answers a frame with. */
const ANSWERS: Readonly<Record<string, string[]>> = {
  P: ['1'],
  B: ['2'],
  C: ['3'],
  D: ['n'],
  d: ['t', 'n'],
  E: ['D', 'C'],
};

/** One request, or a part of one: mostly what drivers send for a prepared statement. */
function say(random: Randomness): Buffer {
  const name = random.below(3) > 0 ? 'a' : random.one(NAMES);
  const portal = random.below(9) === 0 ? 'p' : '';
  const bind = () =>
    serialize.bind({ statement: name, portal: random.below(12) === 0 ? 'p' : portal, values: ['v', '1'] });
  const describe = () => serialize.describe({ type: random.below(12) === 0 ? 'S' : 'P', name: portal });
  const execute = () => serialize.execute({ portal, rows: random.below(3) });
  const parse = () => serialize.parse({ name, text: random.one(TEXTS.slice(0, 1 + random.below(TEXTS.length))) });
  const close = () => serialize.close({ type: random.one(['S', 'P'] as const), name: random.one(['p', ...NAMES]) });
  const usual = random.below(16);
  if (usual < 11) return Buffer.concat([bind(), describe(), execute(), serialize.sync()]);
  if (usual < 13) return Buffer.concat([bind(), execute(), serialize.sync()]);
  if (usual < 15) return Buffer.concat([parse(), serialize.sync()]);
  const frames = Array.from({ length: random.below(6) }, () => random.one([bind, describe, execute, parse, close])());
  return Buffer.concat([...frames, random.below(8) === 0 ? serialize.flush() : serialize.sync()]);
}

describe('a request that is understood as it was before', () => {
  it('is the same as when its frames come one by one', () => {
    const random = randomness();
    let whole = 0;
    for (let round = 0; round < 60; round++) {
      const parts = new Listener();
      const chunks = new Listener();
      for (let i = 0; i < 60; i++) {
        const requests = Buffer.concat(Array.from({ length: 1 + random.below(3) }, () => say(random)));
        for (let end = 0; end < requests.length; ) {
          end += 1 + requests.readInt32BE(end + 1);
          parts.hear(requests, end);
        }
        chunks.hear(requests, requests.length);
        if (random.below(10) === 0) parts.shared = chunks.shared = random.one(CATALOGUES);
        const answered = random.below(4);
        for (let k = 0; k < answered; k++) {
          const status = random.one(['idle', 'open', 'failed'] as const);
          const fails = random.below(3) === 0 ? random.below(6) : 99;
          const tag = random.one(['SELECT 1', 'COMMIT', 'ROLLBACK']);
          for (const each of [parts, chunks]) each.answer(status, fails, tag);
        }
        if (random.below(20) === 0) for (const each of [parts, chunks]) each.moved();
        expect(chunks.heard, random.where).toEqual(parts.heard);
        if (i % 20 === 19) expect(chunks.codec.freeze(), random.where).toEqual(parts.codec.freeze());
        chunks.heard.length = parts.heard.length = 0;
      }
      expect(parts.whole).toBe(0);
      whole += chunks.whole;
    }
    // Else both were understood in the same way.
    expect(whole).toBeGreaterThan(500);
  });

  const { parse, bind, execute, close, sync } = serialize;
  const prepare = (name: string, text: string) => Buffer.concat([parse({ name, text }), sync()]);
  const run = (name: string) => Buffer.concat([bind({ statement: name }), execute({}), sync()]);
  /** What these requests are taken for: of each its verb and its effect. */
  const heard = (...requests: Buffer[]) => {
    const listener = new Listener();
    for (const bytes of requests) listener.hear(bytes, bytes.length);
    return listener.heard.filter((each) => typeof each === 'object').map((each) => each as Request);
  };
  const labels = (...requests: Buffer[]) => heard(...requests).map(({ label }) => label);

  it('is another one when its statement was prepared anew', () => {
    const [select, update] = [prepare('a', 'SELECT 1'), prepare('a', 'UPDATE t SET a = 1')];
    const expected = ['Parse', 'SELECT', 'SELECT', 'Parse', 'UPDATE', 'UPDATE'];
    expect(labels(select, run('a'), run('a'), update, run('a'), run('a'))).toEqual(expected);
  });

  it('is unknown when its statement was closed', () => {
    const closed = Buffer.concat([close({ type: 'S', name: 'a' }), sync()]);
    const [, , , , last] = heard(prepare('a', 'SELECT 1'), run('a'), run('a'), closed, run('a'));
    expect(last).toMatchObject({ label: 'statement', effect: 'write' });
  });

  it('is not the one whose name has these bytes for characters', () => {
    // Two that stand in the same place of the table.
    const [a, b] = ['\u0080', '\u00c2\u0080'];
    const expected = ['Parse', 'Parse', 'UPDATE', 'SELECT', 'UPDATE', 'SELECT'];
    const both = [prepare(a, 'SELECT 1'), prepare(b, 'UPDATE t SET a = 1')];
    expect(labels(...both, run(b), run(a), run(b), run(a))).toEqual(expected);
  });

  it('is not the one that ran another portal than it bound', () => {
    const named = Buffer.concat([bind({ statement: 'a', portal: 'p' }), sync()]);
    const other = Buffer.concat([bind({ statement: 'b' }), execute({ portal: 'p' }), sync()]);
    const both = [prepare('a', 'UPDATE t SET a = 1'), prepare('b', 'SELECT 1')];
    expect(labels(...both, named, other, run('b'), run('b')).slice(2)).toEqual(['Sync', 'UPDATE', 'SELECT', 'SELECT']);
  });

  it('is understood anew where it runs what was prepared in SQL', () => {
    const statements = [prepare('e', 'EXECUTE q'), prepare('w', 'PREPARE q AS UPDATE t SET a = 1')];
    const select = prepare('r', 'PREPARE q AS SELECT 1');
    const requests = heard(...statements, select, run('r'), run('e'), run('w'), run('e'), run('r'), run('e'));
    expect(requests.filter(({ label }) => label === 'EXECUTE').map(({ effect }) => effect)).toEqual([
      'read',
      'write',
      'read',
    ]);
  });
});
