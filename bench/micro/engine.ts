/**
 * What the engine costs by itself: sessions with the PostgreSQL codec, fed the chunks that pgbench and a server exchange, with
 * nothing behind them. Prints nanoseconds and allocated bytes for each request, for few and for many sessions in turn (with many
 * of them, none is in the processor's caches when its turn comes).
 *
 * `node --expose-gc dist/bench/micro/engine.js [rounds]`
 */
import { serialize } from 'pg-protocol';
import codec from '../../codecs/postgres/index.js';
import { parseCatalogue } from '../../codecs/postgres/sql/index.js';
import type { SessionCodec } from '../../core/contract/index.js';
import { Session } from '../../core/session/session.js';
import type { SessionIo } from '../../core/session/world.js';

const LIMITS = { request: 1 << 20, journal: 1 << 20, answers: 1 << 20, queue: 1 << 20 };
const shared = { catalogue: parseCatalogue([['s', 'abs']]) };
const stats = { requests: 0, units: 0 };

/** The world of a session: takes everything and keeps nothing. */
class Nowhere implements SessionIo {
  bytes = 0;
  toClient(bytes: Uint8Array): void {
    this.bytes += bytes.length;
  }
  toServer(bytes: Uint8Array): void {
    this.bytes += bytes.length;
  }
  readClient(): void {}
  corkServer(): void {}
  durable(): boolean {
    return true;
  }
  doubt(): void {}
  recover(): void {}
  replayed(): void {}
  learn(): void {}
  resumed(): void {}
  marked(): void {}
  acknowledged(): void {}
  closeClient(): void {}
  count(): void {}
}

function open(): Session {
  const greeting = {
    kind: 'session',
    identity: { user: 'bench', database: 'bench', secret: null },
    startup: null,
    passThrough: null,
    tls: false,
  } as const;
  const own: SessionCodec = codec.session({ greeting, shared: () => shared, options: {} });
  const session = new Session(own, codec.frameLength, LIMITS, new Nowhere(), stats);
  own.welcome({ cancelKey: null, backendId: '1', facts: { parameters: [] } }, new Uint8Array(8));
  session.attached();
  return session;
}

function message(type: string, body: string | Buffer): Buffer {
  const bytes = Buffer.from(body as string, 'latin1');
  const out = Buffer.alloc(5 + bytes.length);
  out.write(type, 'latin1');
  out.writeInt32BE(4 + bytes.length, 1);
  out.set(bytes, 5);
  return out;
}

const STATEMENTS = {
  select: 'SELECT abalance FROM pgbench_accounts WHERE aid = $1;',
  begin: 'BEGIN;',
  update: 'UPDATE pgbench_accounts SET abalance = abalance + $1 WHERE aid = $2;',
  insert: 'INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES ($1, $2, $3, $4, CURRENT_TIMESTAMP);',
  end: 'END;',
} as const;

/** Bind, Describe, Execute, Sync: what libpq sends for a prepared statement. */
function run(name: string, values: string[]): Buffer {
  return Buffer.concat([
    serialize.bind({ statement: name, values }),
    serialize.describe({ type: 'P' }),
    serialize.execute({}),
    serialize.sync(),
  ]);
}

const ROW_DESCRIPTION = message(
  'T',
  Buffer.from('00016162616c616e6365000000400200030000001700040000ffff0000'.replace(/0000$/, '0000'), 'hex'),
);
const SELECTED = Buffer.concat([
  message('2', ''),
  ROW_DESCRIPTION,
  message('D', '\0\x01\0\0\0\x0512345'),
  message('C', 'SELECT 1\0'),
]);
const done = (tag: string): Buffer => Buffer.concat([message('2', ''), message('n', ''), message('C', `${tag}\0`)]);
const TOKEN = Buffer.concat([
  message('2', ''),
  message('D', '\0\x02\0\0\0\x0512345\0\0\0\x090/1A2B3C4'),
  message('C', 'SELECT 1\0'),
  message('3', ''),
]);
const TOKEN_PREPARED = Buffer.concat([message('3', ''), message('1', ''), TOKEN]);
const ready = (status: string): Buffer => message('Z', status);

type Step = readonly [request: Buffer, answer: Buffer];

const SELECT: Step[] = [[run('select', ['4711']), Buffer.concat([SELECTED, ready('I')])]];
const inside = (request: Buffer, answer: Buffer): Step => [request, Buffer.concat([answer, ready('T')])];
const transaction = (token: Buffer): Step[] => [
  inside(run('begin', []), done('BEGIN')),
  inside(run('update', ['1', '4711']), Buffer.concat([done('UPDATE 1'), token])),
  inside(run('select', ['4711']), SELECTED),
  inside(run('update', ['1', '4711']), done('UPDATE 1')),
  inside(run('update', ['1', '4711']), done('UPDATE 1')),
  inside(run('insert', ['1', '2', '3', '4']), done('INSERT 0 1')),
  [run('end', []), Buffer.concat([done('COMMIT'), ready('I')])],
];

/** Chunks as `core/io` makes them: many in one slab. */
class Slab {
  private slab = new ArrayBuffer(0);
  private used = 0;
  chunk(bytes: Uint8Array): Uint8Array {
    if (this.used + bytes.length > this.slab.byteLength) {
      this.slab = new ArrayBuffer(16 * 1024);
      this.used = 0;
    }
    const chunk = new Uint8Array(this.slab, this.used, bytes.length);
    chunk.set(bytes);
    this.used = (this.used + bytes.length + 7) & ~7;
    return chunk;
  }
}

function measure(name: string, first: Step[], steps: Step[], count: number, rounds: number): void {
  const slab = new Slab();
  const sessions = Array.from({ length: count }, open);
  const play = (script: Step[]): void => {
    for (const [request, answer] of script) {
      for (const session of sessions) session.frontend(slab.chunk(request));
      for (const session of sessions) session.backend(slab.chunk(answer));
    }
  };
  for (const [key, sql] of Object.entries(STATEMENTS)) {
    const parse = Buffer.concat([serialize.parse({ name: key, text: sql }), serialize.sync()]);
    play([[parse, Buffer.concat([message('1', ''), ready('I')])]]);
  }
  play(first);
  // Short rounds: on a machine that others use, too, one of many is left alone.
  const turns = Math.ceil(40_000 / (count * steps.length));
  for (let i = 0; i < 5 * turns; i++) play(steps);
  const all: number[] = [];
  const heap: number[] = [];
  for (let round = 0; round < rounds; round++) {
    globalThis.gc?.();
    // So few that no garbage is collected among them.
    const few = Math.max(1, Math.floor(2000 / (count * steps.length)));
    const used = process.memoryUsage().heapUsed;
    for (let i = 0; i < few; i++) play(steps);
    heap.push((process.memoryUsage().heapUsed - used) / (few * count * steps.length));
    const started = process.hrtime.bigint();
    for (let i = 0; i < turns; i++) play(steps);
    all.push(Number(process.hrtime.bigint() - started) / (turns * count * steps.length));
  }
  const least = Math.min(...all);
  const middle = all.sort((a, b) => a - b)[all.length >> 1];
  console.log(
    `${name.padEnd(8)} ${String(count).padStart(4)} sessions: ${middle.toFixed(0)} ns a request (least ${least.toFixed(0)}), ${Math.max(...heap).toFixed(0)} bytes`,
  );
}

const rounds = Number(process.argv[2] ?? 25);
for (const count of [1, 16, 64, 512]) {
  measure('select', SELECT, SELECT, count, rounds);
  measure('tpcb', transaction(TOKEN_PREPARED), transaction(TOKEN), count, rounds);
}
