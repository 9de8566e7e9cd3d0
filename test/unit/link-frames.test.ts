import { describe, expect, it } from 'vitest';
import {
  decodeAck,
  decodeBatch,
  decodeJson,
  Flow,
  FRAME,
  FrameDecoder,
  FrameEncoder,
  MAX_JSON_FRAME,
} from '../../core/cluster/link/index.js';
import { CodedError } from '../../core/contract/index.js';
import { type Randomness, randomness } from '../kit/random.js';

const LARGE = 16 * 1024;

/** Everything that a decoder gives, in a form that can be compared. */
function decoder(maxFrame?: number): { events: unknown[]; decoder: FrameDecoder } {
  const events: unknown[] = [];
  let next = 0;
  const it = new FrameDecoder((type, body) => {
    if (type === FRAME.batch) {
      next = decodeBatch(body, next, (kind, session, bytes) => {
        events.push(['record', kind, session, Buffer.from(bytes).toString('base64')]);
        return true;
      });
    } else if (type === FRAME.ack) events.push(['ack', decodeAck(body)]);
    else events.push([type, decodeJson(body)]);
  }, maxFrame);
  return { events, decoder: it };
}

/** Puts random things into an encoder. @returns what a decoder must give */
function fill(encoder: FrameEncoder, random: Randomness, count: number, largest: number): unknown[] {
  const events: unknown[] = [];
  for (let at = 0; at < count; at++) {
    const what = random.below(10);
    if (what === 0) {
      const position = random.one([0, 1, 2 ** 32 - 1, 2 ** 32, Number.MAX_SAFE_INTEGER, random.below(2 ** 31)]);
      encoder.acknowledge(position);
      events.push(['ack', position]);
    } else if (what === 1) {
      const body = { text: 'ä\u0000"'.repeat(random.below(50)), nested: [{ at }] };
      encoder.json(FRAME.control, body);
      events.push([FRAME.control, body]);
    } else {
      const pieces = Array.from({ length: random.below(4) }, () => random.bytes(random.below(largest)));
      const kind = random.below(256);
      const session = random.one([0, 1, 2 ** 32 - 1, random.below(2 ** 32)]);
      const expected = encoder.position;
      expect(encoder.record(kind, session, pieces.length === 1 ? pieces[0] : pieces)).toBe(expected);
      events.push(['record', kind, session, Buffer.concat(pieces).toString('base64')]);
    }
  }
  return events;
}

function bytesOf(encoder: FrameEncoder): Buffer {
  const { size } = encoder;
  const bytes = Buffer.concat(encoder.take());
  // The size of an open batch counts from its first record on.
  expect(bytes.length).toBe(size);
  expect(encoder.size).toBe(0);
  return bytes;
}

function thrown(what: () => unknown): CodedError {
  try {
    what();
  } catch (error) {
    expect(error).toBeInstanceOf(CodedError);
    return error as CodedError;
  }
  throw new Error('nothing was thrown');
}

function frame(type: number, body: Uint8Array, length = body.length + 1): Buffer {
  const header = Buffer.alloc(5);
  header.writeUInt32BE(length);
  header[4] = type;
  return Buffer.concat([header, body]);
}

describe('frames', () => {
  it('come out as they went in: whole, byte by byte, cut everywhere', () => {
    const random = randomness();
    const encoder = new FrameEncoder();
    const expected = fill(encoder, random, 30, 60);
    const bytes = bytesOf(encoder);
    const fed = (chunks: Uint8Array[]): unknown[] => {
      const { events, decoder: it } = decoder();
      for (const chunk of chunks) it.push(chunk);
      return events;
    };
    expect(fed([bytes]), random.where).toEqual(expected);
    expect(fed([...bytes].map((byte) => Uint8Array.of(byte))), random.where).toEqual(expected);
    for (let cut = 0; cut <= bytes.length; cut++) {
      expect(fed([bytes.subarray(0, cut), bytes.subarray(cut)]), `${random.where} cut ${cut}`).toEqual(expected);
    }
  });

  it('come out as they went in: many batches, large payloads, cut at random', () => {
    for (let round = 0; round < 20; round++) {
      const random = randomness();
      const encoder = new FrameEncoder();
      const { events, decoder: it } = decoder();
      const expected: unknown[] = [];
      for (let batch = 0; batch < 5; batch++) {
        expected.push(...fill(encoder, random, random.below(40), random.one([100, 5000, 3 * LARGE])));
        const bytes = bytesOf(encoder);
        for (let at = 0; at < bytes.length; ) {
          const taken = random.one([1, 7, 1000, LARGE, 100_000]);
          it.push(bytes.subarray(at, at + taken));
          at += taken;
        }
      }
      expect(events.length, random.where).toBe(expected.length);
      expect(events, random.where).toEqual(expected);
    }
  });

  it('copy nothing that is large when sent, nothing that lies whole in a chunk when received', () => {
    const encoder = new FrameEncoder();
    const large = new Uint8Array(LARGE);
    encoder.record(1, 1, [Uint8Array.of(1), large]);
    encoder.record(1, 1, Uint8Array.of(2));
    const parts = encoder.take();
    expect(parts).toHaveLength(3);
    expect(parts[1]).toBe(large);
    const chunk = Buffer.concat(parts);
    const seen: Uint8Array[] = [];
    new FrameDecoder((_, body) => decodeBatch(body, 0, (_kind, _session, bytes) => seen.push(bytes) > 0)).push(chunk);
    expect(seen.map(({ length }) => length)).toEqual([LARGE + 1, 1]);
    expect(seen.every(({ buffer }) => buffer === chunk.buffer)).toBe(true);
  });

  it('are never written to again once they were taken', () => {
    const random = randomness();
    const encoder = new FrameEncoder();
    const taken: { parts: Uint8Array[]; copy: Buffer }[] = [];
    for (let round = 0; round < 200; round++) {
      fill(encoder, random, 5, 2000);
      const parts = encoder.take();
      taken.push({ parts, copy: Buffer.concat(parts) });
    }
    for (const { parts, copy } of taken) expect(Buffer.concat(parts).equals(copy), random.where).toBe(true);
  });

  it('are no longer than allowed: batches are divided, what fits into none is refused and leaves nothing behind', () => {
    const encoder = new FrameEncoder(1000);
    for (let at = 0; at < 10; at++) encoder.record(1, at, new Uint8Array(300));
    expect(thrown(() => encoder.record(1, 1, new Uint8Array(983))).code).toBe('OUTLIVE_PAIR_TOO_LARGE');
    encoder.record(1, 10, new Uint8Array(982));
    const { events, decoder: it } = decoder(1000);
    it.push(bytesOf(encoder));
    expect(events).toHaveLength(11);
    expect(thrown(() => encoder.json(FRAME.control, 'x'.repeat(MAX_JSON_FRAME))).code).toBe('OUTLIVE_PAIR_TOO_LARGE');
    expect(encoder.size).toBe(0);
  });

  it('of an unknown type or length are refused with their header, before anything of them is awaited', () => {
    const { decoder: it } = decoder(1000);
    const cases: readonly [string, Buffer][] = [
      ['unknown type 0', frame(0, new Uint8Array(3))],
      ['unknown type 9', frame(9, new Uint8Array(3))],
      ['unknown type 0', frame(0, new Uint8Array(0), 0)],
      ['2000 bytes, where 1000', frame(FRAME.batch, new Uint8Array(0), 2000)],
      ['unknown type 47', Buffer.from('GET / HTTP/1.1\r\n\r\n')],
    ];
    for (const [what, bytes] of cases) {
      const error = thrown(() => decoder(1000).decoder.push(bytes.subarray(0, 5)));
      expect(error.code).toBe('OUTLIVE_PAIR_PROTOCOL');
      expect(error.message).toContain(what);
    }
    const json = frame(FRAME.beat, new Uint8Array(0), MAX_JSON_FRAME + 1);
    expect(thrown(() => decoder().decoder.push(json)).code).toBe('OUTLIVE_PAIR_PROTOCOL');
    it.push(frame(FRAME.beat, Buffer.from('{}')));
  });

  it('that are garbage end with OUTLIVE_PAIR_PROTOCOL or OUTLIVE_PAIR_POSITION and with nothing else', () => {
    const random = randomness();
    const codes = new Set<string>();
    for (let round = 0; round < 2000; round++) {
      const encoder = new FrameEncoder();
      fill(encoder, random, 1 + random.below(6), 40);
      let bytes = Buffer.concat(encoder.take());
      const how = random.below(4);
      if (how === 0) bytes = Buffer.from(random.bytes(random.below(200)));
      else if (how === 1) bytes[random.below(bytes.length)] ^= 1 << random.below(8);
      else if (how === 2) bytes = bytes.subarray(random.below(bytes.length));
      else bytes = Buffer.concat([bytes, Buffer.from(random.bytes(20))]);
      try {
        const { decoder: it } = decoder(10_000);
        for (let at = 0; at < bytes.length; at += 13) it.push(bytes.subarray(at, at + 13));
      } catch (error) {
        expect(error, random.where).toBeInstanceOf(CodedError);
        codes.add((error as CodedError).code);
      }
    }
    expect([...codes].sort()).toEqual(['OUTLIVE_PAIR_POSITION', 'OUTLIVE_PAIR_PROTOCOL']);
  });

  it('take no more memory than has come of them', () => {
    const { decoder: it } = decoder();
    const before = process.memoryUsage().arrayBuffers;
    for (let at = 0; at < 3; at++) {
      const huge = frame(FRAME.batch, new Uint8Array(10), 60 * 1024 * 1024);
      decoder().decoder.push(huge);
      it.push(at === 0 ? huge : new Uint8Array(10));
    }
    expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(16 * 1024 * 1024);
  });

  it('are not looked at after stop', () => {
    const seen: number[] = [];
    const it: FrameDecoder = new FrameDecoder((type) => {
      seen.push(type);
      it.stop();
    });
    it.push(
      Buffer.concat([frame(FRAME.bye, Buffer.from('{}')), frame(FRAME.bye, Buffer.from('{}')), Buffer.alloc(20)]),
    );
    it.push(Buffer.alloc(20));
    expect(seen).toEqual([FRAME.bye]);
  });
});

describe('a batch', () => {
  const batch = (first: number): Buffer => {
    const encoder = new FrameEncoder();
    for (let at = 0; at < first; at++) encoder.record(0, 0, new Uint8Array(0));
    encoder.take();
    encoder.record(1, 2, Uint8Array.of(3, 4));
    encoder.record(5, 6, new Uint8Array(0));
    return Buffer.concat(encoder.take()).subarray(5);
  };

  it('must begin at the next position', () => {
    expect(decodeBatch(batch(7), 7, () => true)).toBe(9);
    const repeated = thrown(() => decodeBatch(batch(7), 8, () => true));
    expect(repeated.code).toBe('OUTLIVE_PAIR_POSITION');
    expect(repeated.message).toContain('repeated records: they begin at 7 instead of 8');
    const missing = thrown(() => decodeBatch(batch(7), 6, () => true));
    expect(missing.code).toBe('OUTLIVE_PAIR_POSITION');
    expect(missing.message).toContain('left out records');
  });

  it('must not end inside a record', () => {
    const body = batch(0);
    const whole = new Set([body.length, body.length - 9]);
    for (let length = 0; length <= body.length; length++) {
      const decode = (): number => decodeBatch(body.subarray(0, length), 0, () => true);
      if (whole.has(length)) expect(decode()).toBe(length === body.length ? 2 : 1);
      else expect(thrown(decode).code, `${length}`).toBe('OUTLIVE_PAIR_PROTOCOL');
    }
  });

  it('ends early when its receiver wants no more', () => {
    let seen = 0;
    expect(decodeBatch(batch(0), 0, () => ++seen < 1)).toBe(1);
    expect(seen).toBe(1);
  });
});

describe('the flow of one direction', () => {
  it('counts what is not acknowledged, by batches', () => {
    const flow = new Flow();
    flow.sent(2, 100);
    flow.sent(2, 13);
    flow.sent(5, 50);
    expect(flow.backlog).toBe(150);
    flow.acknowledge(3);
    expect(flow.backlog).toBe(50);
    flow.acknowledge(3);
    flow.acknowledge(5);
    expect([flow.backlog, flow.acknowledged]).toEqual([0, 5]);
  });

  it('refuses acknowledgements of what was never sent, and ones that go back', () => {
    const flow = new Flow();
    flow.sent(5, 50);
    flow.acknowledge(4);
    expect(thrown(() => flow.acknowledge(6)).code).toBe('OUTLIVE_PAIR_POSITION');
    expect(thrown(() => flow.acknowledge(3)).code).toBe('OUTLIVE_PAIR_POSITION');
  });

  it('stays right over many batches', () => {
    const random = randomness();
    const flow = new Flow();
    const sent: { end: number; bytes: number }[] = [];
    let end = 0;
    let held = 0;
    for (let round = 0; round < 20_000; round++) {
      if (random.below(2) === 0) {
        const bytes = random.below(1000);
        sent.push({ end: (end += 1 + random.below(3)), bytes });
        flow.sent(end, bytes);
      } else if (end > held) {
        held += random.below(Math.min(end - held + 1, 10));
        flow.acknowledge(held);
        while (sent.length > 0 && sent[0].end <= held) sent.shift();
      }
      if (round % 997 === 0) {
        expect(flow.backlog, random.where).toBe(sent.reduce((sum, { bytes }) => sum + bytes, 0));
      }
    }
  });
});
