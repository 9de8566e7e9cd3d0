import { pbkdf2Sync } from 'node:crypto';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { Exchange, Secret } from '../../core/contract/index.js';
import { connect } from '../../core/io/connect.js';
import { type Listener, listen } from '../../core/io/listen.js';
import { type RunOptions, runExchange } from '../../core/io/run-exchange.js';
import type { Wire } from '../../core/io/wire.js';

const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));
const text = (bytes: Uint8Array): string => Buffer.from(bytes).toString();

describe.each(['raw', 'stream'] as const)('running an exchange (%s)', (kind) => {
  const saved = process.env.OUTLIVE_IO;
  let listener: Listener;
  let arrived: (wire: Wire) => void;
  let near: Wire;
  let far: Wire;
  const options: RunOptions = {
    frameLength: (bytes, start, end) => (start === end ? 0 : bytes[start]),
    peer: 'client',
    deadlineMs: 3000,
    maxFrame: 100,
  };

  beforeEach(async () => {
    process.env.OUTLIVE_IO = kind;
    const came = new Promise<Wire>((resolve) => {
      arrived = resolve;
    });
    listener = await listen({ host: '127.0.0.1', port: 0, onWire: (wire) => arrived(wire) });
    near = await connect({ host: '127.0.0.1', port: listener.port, timeoutMs: 2000 });
    far = await came;
  });
  afterEach(async () => {
    if (saved === undefined) delete process.env.OUTLIVE_IO;
    else process.env.OUTLIVE_IO = saved;
    near.destroy();
    far.destroy();
    await listener.close();
  });

  it('serves every want, and leaves a paused wire and the rest of the input', async () => {
    const salt = Buffer.from('salt');
    function* all(): Exchange<unknown> {
      const head = (yield { want: 'bytes', count: 2, send: Buffer.from('a') }) as Uint8Array;
      yield { want: 'nothing', send: Buffer.from('b') };
      yield { want: 'nothing', send: Buffer.from('c') };
      const frame = (yield { want: 'frame' }) as Uint8Array;
      const random = (yield { want: 'random', count: 18 }) as Uint8Array;
      const key = (yield { want: 'pbkdf2', password: Buffer.from('p'), salt, iterations: 10 }) as Uint8Array;
      const secret = (yield { want: 'credentials', user: 'u', database: 'd' }) as Secret;
      return { head: text(head), frame: text(frame), random: random.length, key, secret };
    }
    let heard = '';
    near.onData = (data) => {
      heard += text(data);
    };
    near.resume();
    near.write(Buffer.from('hi\x03xyrest'));
    const end = await runExchange(far, all(), {
      ...options,
      credentials: async (user, database) => ({ password: user + database }),
    });
    expect(end.result).toEqual({
      head: 'hi',
      frame: '\x03xy',
      random: 18,
      key: pbkdf2Sync('p', salt, 10, 32, 'sha256'),
      secret: { password: 'ud' },
    });
    expect(text(end.rest)).toBe('rest');
    expect([far.paused, far.open]).toEqual([true, true]);
    while (heard.length < 3) await sleep(1);
    expect(heard).toBe('abc');
  });

  it('begins with what was read before', async () => {
    function* two(): Exchange<string> {
      const first = text((yield { want: 'frame' }) as Uint8Array);
      return first + text((yield { want: 'frame' }) as Uint8Array);
    }
    near.write(Buffer.from('b\x02c'));
    const end = await runExchange(far, two(), { ...options, head: Buffer.from('\x03a') });
    expect(end).toMatchObject({ result: '\x03ab\x02c' });
    expect(end.rest).toHaveLength(0);
  });

  it('rejects with what the exchange throws, and answers unknown users with null', async () => {
    function* asks(): Exchange<void> {
      const secret = yield { want: 'credentials', user: 'u', database: 'd' };
      throw new Error(`got ${secret}`);
    }
    await expect(runExchange(far, asks(), options)).rejects.toThrow('got null');
    expect(far.open).toBe(true);
  });

  it('refuses frames too large and too much key derivation', async () => {
    function* read(): Exchange<void> {
      yield { want: 'frame' };
    }
    near.write(Buffer.from('\x7f'));
    await expect(runExchange(far, read(), options)).rejects.toMatchObject({ code: 'OUTLIVE_FRAME_TOO_LARGE' });
    function* derive(): Exchange<void> {
      yield { want: 'pbkdf2', password: Buffer.from('p'), salt: Buffer.from('s'), iterations: 2_000_000_000 };
    }
    await expect(runExchange(near, derive(), { ...options, peer: 'server' })).rejects.toMatchObject({
      code: 'OUTLIVE_KDF_ITERATIONS',
      culprit: 'server',
    });
  });

  it('runs the clean-up when the wire closes, the time is over or the signal says so', async () => {
    const ran: string[] = [];
    function* waits(name: string): Exchange<void> {
      try {
        yield { want: 'bytes', count: 10 };
      } finally {
        ran.push(name);
      }
    }
    await expect(runExchange(far, waits('time'), { ...options, deadlineMs: 30 })).rejects.toMatchObject({
      code: 'OUTLIVE_EXCHANGE_TIMEOUT',
      culprit: 'client',
    });
    expect([far.paused, far.open]).toEqual([true, true]);
    const abort = new AbortController();
    const aborted = runExchange(far, waits('signal'), { ...options, signal: abort.signal });
    setTimeout(() => abort.abort(), 10);
    await expect(aborted).rejects.toMatchObject({ code: 'OUTLIVE_EXCHANGE_ABORTED' });
    const again = runExchange(far, waits('before'), { ...options, signal: abort.signal });
    await expect(again).rejects.toMatchObject({ code: 'OUTLIVE_EXCHANGE_ABORTED' });
    const closed = runExchange(far, waits('close'), options);
    near.end(Buffer.from('short'));
    await expect(closed).rejects.toMatchObject({ code: 'OUTLIVE_EXCHANGE_CLOSED', culprit: 'client' });
    expect(ran).toEqual(['time', 'signal', 'close']);
  });

  it('takes no answer from the outside once it is over', async () => {
    let answer: (secret: null) => void = () => {};
    function* asks(): Exchange<void> {
      yield { want: 'credentials', user: 'u', database: 'd' };
      throw new Error('went on');
    }
    const slow = new Promise<null>((resolve) => {
      answer = resolve;
    });
    const run = runExchange(far, asks(), { ...options, deadlineMs: 20, credentials: () => slow });
    await expect(run).rejects.toMatchObject({ code: 'OUTLIVE_EXCHANGE_TIMEOUT' });
    answer(null);
    await sleep(5);
  });
});
