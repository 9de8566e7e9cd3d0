import { describe, expect, it } from 'vitest';
import { ByteWindow } from '../../core/stream/queue.js';
import { randomness } from '../kit/random.js';

const contents = (window: ByteWindow) => window.bytes.subarray(window.start, window.end);

describe('ByteWindow', () => {
  it('uses a chunk in place while nothing is left over', () => {
    const window = new ByteWindow();
    const chunk = Uint8Array.of(1, 2, 3);
    window.push(chunk, 0);
    expect(window.bytes).toBe(chunk);
    window.consume(3);
    expect(window.length).toBe(0);
    expect(window.bytes).not.toBe(chunk);
  });

  it('copies only what was cut, and leaves the chunk that it came from alone', () => {
    const window = new ByteWindow();
    const first = Uint8Array.of(1, 2, 3, 4);
    window.push(first, 0);
    window.consume(3);
    window.push(Uint8Array.of(5, 6), 0);
    expect([...contents(window)]).toEqual([4, 5, 6]);
    expect([...first]).toEqual([1, 2, 3, 4]);
  });

  it('allocates a long frame once, when it is known how long it will be', () => {
    const window = new ByteWindow();
    const total = 1_000_000;
    window.push(new Uint8Array(60_000).fill(1), 0);
    let grown = 0;
    let bytes = window.bytes;
    for (let have = 60_000; have < total; have += 1000) {
      window.push(new Uint8Array(1000).fill(2), total);
      if (window.bytes !== bytes) grown++;
      bytes = window.bytes;
    }
    expect(window.length).toBe(total);
    // Never more than twice of what is there, or a client could make us reserve what it only announces.
    expect(grown).toBeLessThanOrEqual(5);
  });

  it('does not reserve what is only announced', () => {
    const window = new ByteWindow();
    window.push(new Uint8Array(10), 0);
    window.push(new Uint8Array(10), 2 ** 30);
    expect(window.bytes.length).toBeLessThanOrEqual(128 * 1024);
  });

  it('takes a byte at a time in linear time', () => {
    const window = new ByteWindow();
    const size = 1_000_000;
    let copies = 0;
    let bytes = window.bytes;
    for (let i = 0; i < size; i++) {
      window.push(Uint8Array.of(i & 0xff), 0);
      if (window.bytes !== bytes) copies++;
      bytes = window.bytes;
    }
    expect(window.length).toBe(size);
    expect(copies).toBeLessThanOrEqual(Math.ceil(Math.log2(size)));
    expect(
      Buffer.compare(
        contents(window),
        Uint8Array.from({ length: size }, (_, i) => i),
      ),
    ).toBe(0);
  });

  it('holds what was pushed and not consumed, and never changes a byte that it gave out', () => {
    const random = randomness();
    for (let round = 0; round < 60; round++) {
      const window = new ByteWindow();
      let model = Buffer.alloc(0);
      const given: { view: Uint8Array; copy: Uint8Array }[] = [];
      for (let step = 0; step < 100; step++) {
        const chunk = Uint8Array.from({ length: random.below(random.below(4) === 0 ? 500 : 20) }, () =>
          random.below(256),
        );
        const expected = random.below(3) === 0 ? random.below(2000) : 0;
        window.push(chunk, expected);
        model = Buffer.concat([model, chunk]);
        expect(model.equals(contents(window)), random.where).toBe(true);
        // A reader takes regions out by reference, as requests are, and goes on behind them.
        const taken = random.below(model.length + 1);
        const view = window.bytes.subarray(window.start, window.start + taken);
        given.push({ view, copy: view.slice() });
        window.consume(window.start + taken);
        model = model.subarray(taken);
        expect(window.length, random.where).toBe(model.length);
      }
      for (const { view, copy } of given) expect(Buffer.compare(view, copy), random.where).toBe(0);
    }
  });
});
