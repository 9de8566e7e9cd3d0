import { createHash } from 'node:crypto';
import { deserialize, serialize } from 'node:v8';
import { describe, expect, it } from 'vitest';
import postgres from '../../codecs/postgres/index.js';
import type { Request } from '../../core/contract/index.js';
import {
  type AnswerLog,
  type Canon,
  CHAIN_START,
  type FrozenRecord,
  keepApart,
  RequestRecord,
} from '../../core/journal/record.js';
import { Verifier } from '../../core/journal/verify.js';
import { message } from '../kit/gateway.js';
import { type Randomness, randomness } from '../kit/random.js';

const session = postgres.session({
  greeting: {
    kind: 'session',
    identity: { user: 'u', database: 'd', secret: null },
    startup: null,
    passThrough: null,
    tls: false,
  },
  shared: () => undefined,
  options: {},
});
const canon: Canon = {
  frameLength: postgres.frameLength,
  canonical: (bytes, start, end) => session.canonical(bytes, start, end),
  verbatim: (bytes, start) => session.verbatim(bytes, start),
};

/** Frames beyond this size may reach a client in parts, and only they. */
const WHOLE = 64 * 1024;
const HEADER = 5;

const record = () => new RequestRecord({ label: 'SELECT' } as Request);

interface Frame {
  readonly bytes: Buffer;
  /** What of it is compared. */
  readonly counts: Buffer;
}

const verbatim = (type: string, body: Uint8Array): Frame => {
  const bytes = message(type, Buffer.from(body));
  return { bytes, counts: bytes };
};
const uncounted = (type: string, body: string): Frame => ({ bytes: message(type, body), counts: Buffer.alloc(0) });
const failure = (code: string, text: string): Frame => ({
  bytes: message('E', `SERROR\0VERROR\0C${code}\0M${text}\0\0`),
  counts: Buffer.from(`E${code}`),
});

/** An answer as a server might give it, with some frames that do not count and some that are long. */
function answer(random: Randomness, long: boolean): Frame[] {
  const frames: Frame[] = [];
  for (let i = 1 + random.below(12); i > 0; i--) {
    switch (random.below(9)) {
      case 0:
        frames.push(uncounted('N', `SNOTICE\0C00000\0M${'n'.repeat(random.below(50))}\0\0`));
        break;
      case 1:
        frames.push(uncounted('A', '\0\0\0\x07channel\0payload\0'));
        break;
      case 2:
        frames.push(uncounted('S', 'TimeZone\0UTC\0'));
        break;
      case 3:
        frames.push(failure('22012', `division by zero at ${random.below(1000)}`));
        break;
      default:
        frames.push(verbatim(random.one(['D', 'd', 'C', 'n']), random.bytes(random.below(200))));
    }
    if (long && random.below(4) === 0)
      frames.push(verbatim('D', new Uint8Array(WHOLE + random.below(1000)).fill(random.below(256))));
  }
  return frames;
}

/** Cuts an answer as the session does: between frames, and inside of a long frame anywhere behind its header. */
function cut(random: Randomness, frames: readonly Frame[]): Buffer[] {
  const chunks: Buffer[] = [];
  let open: Buffer[] = [];
  const flush = () => {
    if (open.length > 0) chunks.push(Buffer.concat(open));
    open = [];
  };
  for (const { bytes } of frames) {
    if (random.below(2) === 0) flush();
    if (bytes.length <= WHOLE) {
      open.push(bytes);
      continue;
    }
    let from = 0;
    for (let parts = random.below(4); parts > 0; parts--) {
      const to = Math.max(from, HEADER) + random.below(bytes.length - Math.max(from, HEADER) + 1);
      open.push(bytes.subarray(from, to));
      flush();
      from = to;
    }
    open.push(bytes.subarray(from));
  }
  flush();
  return chunks;
}

const counted = (frames: readonly Frame[]) => Buffer.concat(frames.map(({ counts }) => counts));

/** A record of what the client got; folded after some of the chunks. */
function received(random: Randomness, frames: readonly Frame[], fold: 'never' | 'sometimes' | 'always'): RequestRecord {
  const of = record();
  for (const chunk of cut(random, frames)) {
    if (chunk.length > 0) of.answer.append(chunk);
    if (fold === 'always' || (fold === 'sometimes' && random.below(3) === 0)) of.answer.fold(canon);
  }
  return of;
}

/** Feeds bytes in random pieces. Returns where the prefix ended, 'more', or 'differs'. */
function feed(random: Randomness, verifier: Verifier, bytes: Buffer): number | 'more' | 'differs' {
  for (let at = 0; at < bytes.length; ) {
    const piece = bytes.subarray(at, at + 1 + random.below(Math.min(bytes.length - at, random.one([3, 100, 100_000]))));
    const verdict = verifier.feed(piece);
    if (verdict === 'differs') return 'differs';
    if (verdict !== 'more') return at + verdict;
    at += piece.length;
  }
  return 'more';
}

const FOLDS = ['never', 'sometimes', 'always'] as const;

/** The chain of digests over these bytes, with the links of this log. */
function chain(log: AnswerLog, bytes: Uint8Array): Uint8Array {
  let at = 0;
  let digest = CHAIN_START;
  for (const length of log.folds) {
    digest = createHash('sha256')
      .update(digest)
      .update(bytes.subarray(at, (at += length)))
      .digest();
  }
  expect(at).toBe(bytes.length);
  return digest;
}

/** As it is in another process. */
function moved(of: RequestRecord): RequestRecord {
  return RequestRecord.thaw(deserialize(serialize(of.freeze())) as FrozenRecord);
}

describe('AnswerLog', () => {
  it('knows a digest of all that counts, wherever it is cut and whenever it is folded', () => {
    const random = randomness();
    for (let round = 0; round < 300; round++) {
      const frames = answer(random, round % 3 === 0);
      const expected = counted(frames);
      const { answer: log } = received(random, frames, 'sometimes');
      log.fold(canon);
      expect(log.bytes, random.where).toBe(0);
      expect(log.chunks, random.where).toEqual([]);
      expect(Buffer.from(log.digest()), random.where).toEqual(Buffer.from(chain(log, expected)));
      expect(log.folds, random.where).not.toContain(0);
    }
  });

  it('goes on in another process as it would have here', () => {
    const random = randomness();
    for (let round = 0; round < 200; round++) {
      const frames = answer(random, round % 3 === 0);
      const [here, there] = [record(), record()];
      const logs: [RequestRecord, RequestRecord] = [here, there];
      for (const chunk of cut(random, frames)) {
        const fold = random.below(3) === 0;
        for (const { answer: log } of logs) {
          if (chunk.length > 0) log.append(chunk);
          if (fold) log.fold(canon);
        }
        logs[1] = moved(logs[1]);
      }
      const [a, b] = logs.map(({ answer: log }) => log);
      expect([b.empty, b.folded, b.bytes, b.folds], random.where).toEqual([a.empty, a.folded, a.bytes, a.folds]);
      expect(Buffer.from(b.digest()).equals(a.digest()), random.where).toBe(true);
      const verifier = new Verifier(logs[1], canon);
      const bytes = counted(frames);
      expect(feed(random, verifier, bytes), random.where).toBe('more');
      expect(verifier.satisfied, random.where).toBe(true);
      if (bytes.length === 0) continue;
      bytes[random.below(bytes.length)] ^= 1;
      expect(feed(random, new Verifier(logs[1], canon), bytes), random.where).toBe('differs');
    }
  });

  it('tells the canonical bytes as often as it is asked, in the middle of a long frame too', () => {
    const random = randomness();
    for (let round = 0; round < 100; round++) {
      const frames = answer(random, true);
      const { answer: log } = received(random, frames, 'never');
      const expected = counted(frames);
      expect(Buffer.concat(log.canonicalBytes(canon)).equals(expected), random.where).toBe(true);
      expect(Buffer.concat(log.canonicalBytes(canon)).equals(expected), random.where).toBe(true);
      expect(log.frames(canon), random.where).toBe(frames.filter(({ counts }) => counts.length > 0).length);
    }
  });

  it('is empty until something was received, folded or not', () => {
    const { answer: log } = record();
    expect(log.empty).toBe(true);
    log.append(message('D', 'x'));
    expect(log).toMatchObject({ empty: false, folded: false });
    log.fold(canon);
    expect(log).toMatchObject({ empty: false, folded: true });
  });
});

describe('what is kept for long', () => {
  /** Pieces as they come from the network: regions of a buffer that is not theirs alone. */
  const region = (bytes: Uint8Array): Uint8Array => {
    const shared = new Uint8Array(16 * 1024);
    shared.set(bytes, 100);
    return shared.subarray(100, 100 + bytes.length);
  };
  const backing = (pieces: readonly Uint8Array[]) => {
    return [...new Set(pieces.map(({ buffer }) => buffer))].reduce((sum, { byteLength }) => sum + byteLength, 0);
  };

  it('is the same bytes, and not the buffers in which they came in small pieces', () => {
    const random = randomness();
    const of = record();
    const frames = Array.from({ length: 1000 }, () => verbatim('D', random.bytes(random.below(100))));
    for (const { bytes } of frames) {
      of.addInput(region(bytes));
      of.answer.append(region(bytes));
    }
    const expected = counted(frames);
    expect(Buffer.concat(of.input).equals(expected), random.where).toBe(true);
    expect(Buffer.concat(of.answer.canonicalBytes(canon)).equals(expected), random.where).toBe(true);
    expect(of.inputBytes).toBe(expected.length);
    expect(of.answer.bytes).toBe(expected.length);
    // At most the latest 31 pieces still keep buffers of their own.
    expect(backing(of.input)).toBeLessThanOrEqual(expected.length + 31 * 16 * 1024);
    of.answer.fold(canon);
    expect(Buffer.from(of.answer.digest())).toEqual(Buffer.from(chain(of.answer, expected)));
  });

  it('leaves large pieces where they are', () => {
    const of = record();
    const pieces = Array.from({ length: 100 }, () => new Uint8Array(64 * 1024));
    for (const piece of pieces) of.addInput(piece);
    expect(of.input.every((piece, i) => piece === pieces[i])).toBe(true);
  });

  it('lies in one buffer for several requests', () => {
    const random = randomness();
    const large = new Uint8Array(50_000).fill(3);
    const records = Array.from({ length: 8 }, () => record());
    const bodies = records.map(() => verbatim('D', random.bytes(50)).bytes);
    records.forEach((of, i) => {
      of.addInput(region(bodies[i]));
      of.answer.append(region(bodies[i]));
      of.answer.append(large);
    });
    keepApart(records);
    records.forEach((of, i) => {
      expect(Buffer.concat(of.input).equals(bodies[i]), random.where).toBe(true);
      expect(Buffer.from(of.answer.chunks[0]).equals(bodies[i]), random.where).toBe(true);
      expect(of.answer.chunks[1]).toBe(large);
    });
    const small = records.flatMap(({ input, answer: log }) => [...input, log.chunks[0]]);
    expect(backing(small)).toBe(2 * Buffer.concat(bodies).length);
  });
});

describe('Verifier', () => {
  it.each(FOLDS)('finds an equal answer equal, in whatever pieces it comes (folded: %s)', (fold) => {
    const random = randomness();
    for (let round = 0; round < 150; round++) {
      const frames = answer(random, round % 3 === 0);
      const verifier = new Verifier(received(random, frames, fold), canon);
      expect(feed(random, verifier, counted(frames)), random.where).toBe('more');
      expect(verifier.satisfied, random.where).toBe(true);
      // Nothing is left of the prefix: what comes now is new from its first byte.
      expect(verifier.feed(Uint8Array.of(1)), random.where).toBe(0);
    }
  });

  it.each(FOLDS)('detects one changed byte, wherever it stands (folded: %s)', (fold) => {
    const random = randomness();
    for (let round = 0; round < 300; round++) {
      const frames = answer(random, round % 5 === 0);
      const bytes = Buffer.from(counted(frames));
      if (bytes.length === 0) continue;
      bytes[random.below(bytes.length)] ^= 1 << random.below(8);
      const verifier = new Verifier(received(random, frames, fold), canon);
      expect(feed(random, verifier, bytes), random.where).toBe('differs');
    }
  });

  it.each(FOLDS)('is not satisfied by an answer that is too short (folded: %s)', (fold) => {
    const random = randomness();
    for (let round = 0; round < 150; round++) {
      const frames = answer(random, false);
      const bytes = counted(frames);
      if (bytes.length === 0) continue;
      const verifier = new Verifier(received(random, frames, fold), canon);
      expect(feed(random, verifier, bytes.subarray(0, random.below(bytes.length))), random.where).toBe('more');
      expect(verifier.satisfied, random.where).toBe(false);
    }
  });

  it.each(FOLDS)('says where the client’s part of a longer answer ends, inside of a frame too (folded: %s)', (fold) => {
    const random = randomness();
    for (let round = 0; round < 150; round++) {
      const frames = answer(random, false);
      const long = verbatim('D', new Uint8Array(WHOLE + 1 + random.below(5000)).fill(7));
      // The client had some of the long frame, at least its header, when the server was lost.
      const part = long.bytes.subarray(0, HEADER + random.below(long.bytes.length - HEADER));
      const had = received(random, frames, fold);
      had.answer.append(part);
      if (fold === 'always') had.answer.fold(canon);
      const rest = [...answer(random, true)];
      const whole = Buffer.concat([counted(frames), long.bytes, counted(rest)]);
      const verifier = new Verifier(had, canon);
      expect(feed(random, verifier, whole), random.where).toBe(counted(frames).length + part.length);
      expect(verifier.satisfied, random.where).toBe(true);
      // And the log goes on where it stood: a second failover compares the longer prefix.
      const more = long.bytes.subarray(part.length);
      had.answer.append(more);
      if (fold !== 'never') had.answer.fold(canon);
      for (const chunk of cut(random, rest)) had.answer.append(chunk);
      expect(feed(random, new Verifier(had, canon), whole), random.where).toBe('more');
    }
  });

  it('needs nothing of an answer of which the client has nothing that counts', () => {
    const had = record();
    expect(new Verifier(had, canon).satisfied).toBe(true);
    had.answer.append(uncounted('N', 'SNOTICE\0\0').bytes);
    expect(new Verifier(had, canon).satisfied).toBe(true);
  });

  it('takes errors for equal that differ only in their texts, and not in their codes', () => {
    const had = record();
    had.answer.append(failure('22012', 'division by zero').bytes);
    const same = failure('22012', 'Division durch Null');
    const other = failure('22003', 'division by zero');
    const judge = ({ bytes }: Frame) => new Verifier(had, canon).feed(canon.canonical(bytes, 0, bytes.length)!);
    expect(judge(same)).toBe('more');
    expect(judge(other)).toBe('differs');
  });
});
