import { describe, expect, it } from 'vitest';
import { Holdings } from '../../core/io/keeper/holdings.js';
import { encode, Frames, MAX_NAME, MAX_NOTE, type Message } from '../../core/io/keeper/protocol.js';

const hello: Message = { type: 'hello', channel: 'control', token: Uint8Array.from({ length: 16 }, (_, at) => at) };

const messages: Message[] = [
  { type: 'welcome' },
  { type: 'keep', key: 'client 1', kind: 'client', label: '' },
  { type: 'keep', key: 'é'.repeat(127), kind: 'listener', label: 'x'.repeat(MAX_NAME) },
  { type: 'drop', key: '' },
  { type: 'note', key: 'k', replace: false, bytes: new Uint8Array(0) },
  { type: 'note', key: 'k', replace: true, bytes: Uint8Array.of(0, 255, 10) },
  { type: 'claim' },
  { type: 'kept', key: 'k', kind: 'client', label: 'l', complete: false },
  { type: 'claimed', count: 0xffffffff },
  { type: 'taken', count: 0 },
  { type: 'retire' },
  { type: 'retired' },
  { type: 'ping', number: 7 },
  { type: 'pong', number: 7 },
  { type: 'upgrade' },
  { type: 'upgraded' },
  { type: 'refused', asked: 'upgrade', key: '', reason: 'no' },
];

/** Messages with their bytes as plain arrays, so that they compare whatever memory they stand in. */
function plain(found: Iterable<Message>): unknown[] {
  return [...found].map((message) =>
    message.type === 'note'
      ? { ...message, bytes: [...message.bytes] }
      : message.type === 'hello'
        ? { ...message, token: [...message.token] }
        : message,
  );
}

/** What comes out of a stream that begins with a greeting. */
function greeted(): Frames {
  const frames = new Frames();
  expect(plain(frames.push(encode(hello)))).toEqual(plain([hello]));
  return frames;
}

function frame(...bytes: number[]): Uint8Array {
  return Uint8Array.of(bytes.length, 0, 0, 0, ...bytes);
}

describe("the keeper's protocol", () => {
  it.each(messages)('carries $type', (message) => {
    expect(plain(greeted().push(encode(message)))).toEqual(plain([message]));
  });

  it('takes a stream in pieces of any size, and keeps no chunk', () => {
    const all = [hello, ...messages];
    const stream = Buffer.concat(all.map(encode));
    for (const size of [1, 2, 3, 7, 64, stream.length]) {
      const frames = new Frames();
      const found: Message[] = [];
      for (let at = 0; at < stream.length; at += size) found.push(...frames.push(stream.subarray(at, at + size)));
      expect(plain(found)).toEqual(plain(all));
      for (const message of found) {
        if (message.type === 'note') expect(message.bytes.buffer.byteLength).toBeLessThan(32);
      }
    }
  });

  it('gives what came before garbage', () => {
    const found: Message[] = [];
    const bytes = Buffer.concat([encode(hello), encode({ type: 'claim' }), frame(200)]);
    expect(() => {
      for (const message of new Frames().push(bytes)) found.push(message);
    }).toThrow(/unknown message/);
    expect(found).toHaveLength(2);
  });

  it.each<[string, Uint8Array, RegExp]>([
    ['an unknown type', frame(99), /unknown message/],
    ['type 0', frame(0), /unknown message/],
    ['an empty frame', Uint8Array.of(0, 0, 0, 0), /frame of 0 bytes/],
    ['a huge frame', Uint8Array.of(255, 255, 255, 255), /frame of 4294967295 bytes/],
    ['trailing bytes', frame(6, 0), /too long/],
    ['a string beyond the frame', frame(4, 9, 65), /too short/],
    ['a string that is not UTF-8', frame(4, 1, 0xff), /UTF-8/],
    ['an unknown kind', frame(3, 1, 65, 3, 0), /unknown value/],
    ['a flag of 2', frame(5, 1, 65, 2, 0, 0, 0, 0), /flag/],
    ['a note beyond the frame', frame(5, 1, 65, 1, 255, 255, 255, 255), /too short/],
    ['a second greeting', encode(hello), /second greeting/],
  ])('refuses %s', (_, bytes, why) => {
    const frames = greeted();
    expect(() => [...frames.push(bytes)]).toThrow(
      expect.objectContaining({ code: 'OUTLIVE_KEEPER_PROTOCOL', message: expect.stringMatching(why) }),
    );
  });

  it('refuses streams that begin otherwise', () => {
    expect(() => [...new Frames().push(encode({ type: 'claim' }))]).toThrow(/no greeting/);
    expect(() => [...new Frames().push(Buffer.from('GET / HTTP/1.1\r\n\r\n'))]).toThrow(/frame of \d+ bytes/);
    // Before the greeting no memory is given for large frames.
    expect(() => [...new Frames().push(Uint8Array.of(0, 1, 0, 0))]).toThrow(/frame of 256 bytes/);
    const other = encode(hello);
    other[9] = 2;
    expect(() => [...new Frames().push(other)]).toThrow(/version 2 is spoken, this is version 1/);
    const magic = encode(hello);
    magic[5] ^= 1;
    expect(() => [...new Frames().push(magic)]).toThrow(/no greeting/);
  });

  it('refuses to send what the other end would not take', () => {
    expect(() => encode({ type: 'drop', key: 'é'.repeat(128) })).toThrow(RangeError);
    const bytes = new Uint8Array(MAX_NOTE + 1);
    expect(() => encode({ type: 'note', key: 'k', replace: false, bytes })).toThrow(RangeError);
    const longest = encode({ type: 'note', key: 'k'.repeat(MAX_NAME), replace: false, bytes: bytes.subarray(1) });
    expect([...greeted().push(longest)]).toHaveLength(1);
    const reason = '€'.repeat(1000);
    expect(plain(greeted().push(encode({ type: 'refused', asked: 'keep', key: '', reason })))).toMatchObject([
      { reason: `${'€'.repeat(77)}...` },
    ]);
  });
});

describe('holdings', () => {
  const bytes = (length: number): Uint8Array => new Uint8Array(length);
  const make = (): Holdings => new Holdings({ notesPerKey: 1000, notes: 1500 });

  it('keep, replace and drop', () => {
    const holdings = make();
    expect(holdings.keep('a', 'client', 'x', 10)).toBeNull();
    expect(holdings.keep('b', 'listener', '', 11)).toBeNull();
    expect(holdings.note('a', Uint8Array.of(1), false)).toBeNull();
    expect(holdings.note('a', Uint8Array.of(2), false)).toBeNull();
    expect(holdings.all()).toMatchObject([
      { key: 'a', kind: 'client', label: 'x', fd: 10, complete: true, notes: [Uint8Array.of(1), Uint8Array.of(2)] },
      { key: 'b', kind: 'listener', fd: 11, notes: [] },
    ]);
    holdings.note('a', Uint8Array.of(3), true);
    expect(holdings.all()[0].notes).toEqual([Uint8Array.of(3)]);
    const [a] = holdings.all();
    expect(holdings.keep('a', 'client', '', 12)).toBe(10);
    expect(holdings.has(a)).toBe(false);
    expect(holdings.all().find(({ key }) => key === 'a')?.notes).toEqual([]);
    expect(holdings.drop('a')).toBe(12);
    expect(holdings.drop('a')).toBeNull();
    expect(holdings.note('a', bytes(1), true)).toMatch(/nothing is kept/);
    expect(holdings.count).toBe(1);
    expect(holdings.size).toBe(0);
  });

  it('throw the notes of a key away when they are too many, and say so once', () => {
    const holdings = make();
    holdings.keep('a', 'client', '', 1);
    expect(holdings.note('a', bytes(500), false)).toBeNull();
    expect(holdings.note('a', bytes(500), false)).toMatch(/for this key/);
    expect(holdings.note('a', bytes(1), false)).toBeNull();
    expect(holdings.all()).toMatchObject([{ complete: false, notes: [] }]);
    expect(holdings.size).toBe(0);
    expect(holdings.note('a', bytes(2), true)).toBeNull();
    expect(holdings.all()).toMatchObject([{ complete: true, notes: [bytes(2)] }]);
    expect(holdings.note('a', bytes(1001), true)).toMatch(/for this key/);
    expect(holdings.note('a', bytes(0), true)).toBeNull();
    expect(holdings.all()).toMatchObject([{ complete: true, notes: [] }]);
  });

  it('have a limit for all keys together', () => {
    const holdings = make();
    for (const key of ['a', 'b']) holdings.keep(key, 'client', '', 1);
    expect(holdings.note('a', bytes(800), false)).toBeNull();
    expect(holdings.note('b', bytes(800), false)).toBe('too many bytes of notes');
    holdings.drop('a');
    expect(holdings.note('b', bytes(800), true)).toBeNull();
    // Very small ones cost as well.
    holdings.keep('c', 'client', '', 1);
    let count = 0;
    while (holdings.note('c', bytes(1), false) === null && count < 100) count++;
    expect(count).toBeLessThan(10);
  });
});
