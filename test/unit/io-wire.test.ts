import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import * as net from 'node:net';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { CodedError } from '../../core/contract/index.js';
import { connect } from '../../core/io/connect.js';
import { implementation } from '../../core/io/implementation.js';
import { type Listener, listen } from '../../core/io/listen.js';
import { RawWire } from '../../core/io/raw-wire.js';
import { StreamWire } from '../../core/io/stream-wire.js';
import { LINGER_MS, type Wire } from '../../core/io/wire.js';

const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

/** A small generator, so that a seed repeats a run. */
function random(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

async function until(condition: () => boolean, what: string, ms = 5000): Promise<void> {
  const end = performance.now() + ms;
  while (!condition()) {
    if (performance.now() > end) throw new Error(`waited in vain: ${what}`);
    await sleep(2);
  }
}

function closing(wire: Wire): Promise<Error | null> {
  return new Promise((resolve) => {
    wire.onClose = resolve;
  });
}

describe.each(['raw', 'stream'] as const)('a wire (%s)', (kind) => {
  let listener: Listener;
  let accepted: Wire[];
  let arrived: (wire: Wire) => void;
  const saved = process.env.OUTLIVE_IO;

  beforeEach(async () => {
    process.env.OUTLIVE_IO = kind;
    expect(await implementation()).toBe(kind);
    accepted = [];
    arrived = () => {};
    listener = await listen({
      host: '127.0.0.1',
      port: 0,
      onWire: (wire) => {
        accepted.push(wire);
        arrived(wire);
      },
    });
  });

  afterEach(async () => {
    if (saved === undefined) delete process.env.OUTLIVE_IO;
    else process.env.OUTLIVE_IO = saved;
    for (const wire of accepted) wire.destroy();
    await listener.close();
  });

  /** Two ends of a connection. */
  async function pair(): Promise<[Wire, Wire]> {
    const came = new Promise<Wire>((resolve) => {
      arrived = resolve;
    });
    const near = await connect({ host: '127.0.0.1', port: listener.port, timeoutMs: 2000 });
    return [near, await came];
  }

  /** A wire whose peer is an ordinary socket, for misbehaviour that a wire would not show. */
  async function withSocket(): Promise<[net.Socket, Wire]> {
    const came = new Promise<Wire>((resolve) => {
      arrived = resolve;
    });
    const socket = net.connect({ port: listener.port, host: '127.0.0.1', allowHalfOpen: true });
    socket.on('error', () => {});
    return [socket, await came];
  }

  it('is of the kind that was asked for, starts paused, and knows its addresses', async () => {
    const [near, far] = await pair();
    expect(near).toBeInstanceOf(kind === 'raw' ? RawWire : StreamWire);
    expect([near.paused, near.open, near.secure, near.backlog]).toEqual([true, true, false, 0]);
    expect(far.localPort).toBe(listener.port);
    expect(far.remotePort).toBe(near.localPort);
    expect(far.remoteAddress).toBe('127.0.0.1');
    let early = 0;
    far.onData = () => early++;
    near.write(Buffer.from('x'));
    await sleep(20);
    expect(early).toBe(0);
    far.resume();
    await until(() => early === 1, 'the byte');
    near.destroy();
  });

  it('carries random chunks both ways past pauses and slow readers, unchanged', { timeout: 60_000 }, async () => {
    const seed = Number(process.env.OUTLIVE_SEED ?? Math.floor(Math.random() * 2 ** 31));
    console.log(`wire property test (${kind}): OUTLIVE_SEED=${seed}`);
    const next = random(seed);
    for (let round = 0; round < 6; round++) {
      const ends = await pair();
      const sent = [createHash('sha256'), createHash('sha256')];
      const total = [0, 0];
      const got = [createHash('sha256'), createHash('sha256')];
      const seen = [0, 0];
      const kept: { chunk: Uint8Array; copy: Buffer }[] = [];
      const goal = 1_500_000 + Math.floor(next() * 3_000_000);
      const slow = next() < 0.5;
      const pump = (side: number): void => {
        const wire = ends[side];
        let room = true;
        while (room && total[side] < goal) {
          const corked = next() < 0.3;
          if (corked) wire.cork();
          const burst = corked ? 1 + Math.floor(next() * 6) : 1;
          for (let i = 0; i < burst; i++) {
            const size = next() < 0.7 ? 1 + Math.floor(next() * 300) : 1 + Math.floor(next() ** 3 * 400_000);
            const chunk = Buffer.allocUnsafe(size);
            for (let at = 0; at < size; at += 4) chunk.writeInt8(Math.floor(next() * 256) - 128, at);
            sent[side].update(chunk);
            total[side] += size;
            room = wire.write(chunk);
          }
          if (corked) wire.uncork();
          if (next() < 0.02) {
            setTimeout(() => pump(side), next() * 4);
            return;
          }
        }
      };
      for (const side of [0, 1]) {
        const wire = ends[side];
        wire.onDrain = () => pump(side);
        wire.onData = (chunk) => {
          expect(wire.paused).toBe(false);
          got[side].update(chunk);
          seen[side] += chunk.length;
          if (next() < 0.05 && kept.length < 200) kept.push({ chunk, copy: Buffer.from(chunk) });
          if (next() < (slow ? 0.2 : 0.02)) {
            wire.pause();
            if (next() < 0.2) wire.resume();
            else if (next() < 0.3) setImmediate(() => wire.resume());
            else setTimeout(() => wire.resume(), next() * 5);
          }
        };
        wire.resume();
        pump(side);
      }
      const done = (): boolean => total[0] >= goal && total[1] >= goal && seen[1] === total[0] && seen[0] === total[1];
      await until(done, `seed ${seed} round ${round}`, 20_000);
      expect(got[1].digest('hex')).toBe(sent[0].digest('hex'));
      expect(got[0].digest('hex')).toBe(sent[1].digest('hex'));
      for (const { chunk, copy } of kept) expect(Buffer.compare(chunk, copy)).toBe(0);
      expect(ends.map((wire) => wire.backlog)).toEqual([0, 0]);
      expect(ends.map((wire) => [wire.bytesRead, wire.bytesWritten])).toEqual([
        [total[1], total[0]],
        [total[0], total[1]],
      ]);
      const over = [closing(ends[0]), closing(ends[1])];
      ends[0].end();
      expect(await Promise.all(over)).toEqual([null, null]);
    }
  });

  it('says when to stop writing and when to go on, and counts the backlog', async () => {
    const [near, far] = await pair();
    let drains = 0;
    near.onDrain = () => drains++;
    const chunk = Buffer.alloc(1 << 20, 7);
    let room = true;
    let written = 0;
    while (room && written < 64) {
      room = near.write(chunk);
      written++;
    }
    expect(room).toBe(false);
    expect(near.backlog).toBeGreaterThan(0);
    expect(near.backlog).toBeLessThanOrEqual(written << 20);
    await sleep(30);
    expect(drains).toBe(0);
    let seen = 0;
    far.onData = (data) => {
      seen += data.length;
    };
    far.resume();
    await until(() => seen === written << 20, 'all of it');
    await until(() => drains === 1 && near.backlog === 0, 'the drain');
    near.destroy();
  });

  it('sends corked writes together, in order, and drains when corking passed the mark', async () => {
    const [near, far] = await pair();
    const chunks: string[] = [];
    far.onData = (data) => chunks.push(Buffer.from(data).toString());
    far.resume();
    near.cork();
    near.write(Buffer.from('a'));
    near.cork();
    near.write(Buffer.from('b'));
    near.uncork();
    await sleep(20);
    expect(chunks).toEqual([]);
    expect(near.backlog).toBe(2);
    near.write(Buffer.from('c'));
    near.uncork();
    await until(() => chunks.length > 0, 'the chunk');
    expect(chunks).toEqual(['abc']);

    let drained = 0;
    near.onDrain = () => drained++;
    near.cork();
    let room = true;
    for (let i = 0; i < 20; i++) room = near.write(Buffer.alloc(10_000, 65 + i));
    expect(room).toBe(false);
    near.uncork();
    expect(drained).toBe(0);
    const expected = 'abc' + Array.from({ length: 20 }, (_, i) => String.fromCharCode(65 + i).repeat(10_000)).join('');
    await until(() => chunks.join('').length === expected.length, 'the rest');
    expect(chunks.join('') === expected).toBe(true);
    await until(() => drained === 1, 'the drain');
    near.destroy();
  });

  it('delivers nothing after a pause inside onData', async () => {
    const [near, far] = await pair();
    let calls = 0;
    far.onData = () => {
      calls++;
      far.pause();
    };
    far.resume();
    for (let i = 0; i < 5; i++) {
      near.write(Buffer.alloc(200_000, i));
      await sleep(5);
    }
    expect(calls).toBe(1);
    near.destroy();
  });

  it('delivers put-back bytes again, first, and not while paused', async () => {
    const [near, far] = await pair();
    const seen: string[] = [];
    far.onData = (data) => {
      seen.push(Buffer.from(data).toString());
      far.pause();
    };
    near.write(Buffer.from('one'));
    far.resume();
    await until(() => seen.length === 1, 'the first chunk');
    near.write(Buffer.from('two'));
    far.unread(Buffer.from('e'));
    far.unread(Buffer.from('on'));
    await sleep(10);
    expect(seen).toEqual(['one']);
    far.resume();
    far.pause();
    await sleep(10);
    expect(seen).toEqual(['one']);
    far.resume();
    await until(() => seen.length > 1, 'the put-back bytes');
    far.onData = (data) => {
      seen.push(Buffer.from(data).toString());
    };
    far.resume();
    await until(() => seen.slice(1).join('') === 'onetwo', 'all');
    expect(far.bytesRead).toBe(6);
    near.destroy();
  });

  it('delivers what came before the FIN, then closes once', async () => {
    const [near, far] = await pair();
    near.write(Buffer.alloc(300_000, 1));
    near.end(Buffer.from('last'));
    expect(near.open).toBe(false);
    expect(near.write(Buffer.from('late'))).toBe(true);
    await sleep(20);
    let seen = 0;
    const events: unknown[] = [];
    far.onData = (data) => {
      seen += data.length;
    };
    far.onClose = (error) => {
      events.push(error);
      expect(far.open).toBe(false);
      expect(far.write(Buffer.from('after'))).toBe(true);
      far.end();
      far.destroy();
    };
    const over = closing(near);
    far.resume();
    await until(() => events.length > 0, 'the close');
    expect(seen).toBe(300_004);
    expect(await over).toBe(null);
    await sleep(20);
    expect(events).toEqual([null]);
  });

  it('flushes a large backlog before the FIN', async () => {
    const [near, far] = await pair();
    const big = Buffer.alloc(12 << 20, 3);
    near.write(big);
    near.write(Buffer.from('and'));
    near.end(Buffer.from('end'));
    let seen = 0;
    let tail = '';
    far.onData = (data) => {
      seen += data.length;
      tail = (tail + Buffer.from(data.subarray(-6)).toString('latin1')).slice(-6);
    };
    const over = closing(far);
    far.resume();
    expect(await over).toBe(null);
    expect([seen, tail]).toEqual([big.length + 6, 'andend']);
  });

  it('throws away what arrives after end, and gives up on a peer that does not close', async () => {
    const [socket, far] = await withSocket();
    let seen = 0;
    far.onData = () => seen++;
    const over = closing(far);
    far.end(Buffer.from('bye'));
    const started = performance.now();
    socket.write('still here');
    socket.resume();
    expect(await over).toBe(null);
    expect(performance.now() - started).toBeGreaterThan(LINGER_MS - 100);
    expect(performance.now() - started).toBeLessThan(LINGER_MS + 1500);
    expect(seen).toBe(0);
    socket.destroy();
  });

  it('reports a reset as an error, once', async () => {
    const [near, far] = await pair();
    const over = closing(far);
    const mine = closing(near);
    far.resume();
    near.reset();
    near.reset();
    near.destroy();
    expect(await over).toMatchObject({ code: 'ECONNRESET' });
    expect(await mine).toBe(null);
  });

  it('closes when it is reset in the very moment in which it has ended', async () => {
    const [near, far] = await pair();
    const over = closing(far);
    const mine = closing(near);
    far.resume();
    near.end(Buffer.from('bye'));
    near.reset();
    expect(await mine).toBe(null);
    await over;
  });

  it('survives a reset in the middle of a large write', async () => {
    const [near, far] = await pair();
    for (let i = 0; i < 8; i++) near.write(Buffer.alloc(2 << 20, i));
    expect(near.backlog).toBeGreaterThan(0);
    const over = closing(near);
    near.resume();
    far.reset();
    expect(await over).toBeInstanceOf(Error);
    expect(near.backlog).toBe(0);
    near.write(Buffer.from('x'));
  });

  it('can be destroyed inside onData, and says so later, once', async () => {
    const [near, far] = await pair();
    const events: string[] = [];
    far.onData = () => {
      events.push('data');
      far.destroy();
      events.push('destroyed');
    };
    far.onClose = (error) => {
      events.push(`close ${error}`);
    };
    near.write(Buffer.alloc(500_000));
    const over = closing(near);
    near.resume();
    far.resume();
    await over;
    await sleep(10);
    expect(events).toEqual(['data', 'destroyed', 'close null']);
  });

  it('can be closed inside onDrain', async () => {
    const [near, far] = await pair();
    while (near.write(Buffer.alloc(1 << 20)));
    near.onDrain = () => near.end(Buffer.from('!'));
    const over = closing(far);
    let last = 0;
    far.onData = (data) => {
      last = data[data.length - 1];
    };
    far.resume();
    expect(await over).toBe(null);
    expect(last).toBe(33);
  });

  it('may be resumed, paused and written to inside its own handlers', async () => {
    const [near, far] = await pair();
    let echoed = 0;
    far.onData = (data) => {
      far.pause();
      far.write(data);
      far.resume();
    };
    far.resume();
    near.onData = (data) => {
      echoed += data.length;
      if (echoed < 50_000) near.write(Buffer.alloc(1000));
    };
    near.resume();
    near.write(Buffer.alloc(1000));
    await until(() => echoed === 50_000, 'the echoes');
    near.destroy();
  });

  it('can hold connections back', async () => {
    listener.pauseAccepting();
    const first = await connect({ host: '127.0.0.1', port: listener.port, timeoutMs: 2000 });
    first.write(Buffer.from('hello'));
    await sleep(30);
    expect(accepted).toHaveLength(0);
    listener.resumeAccepting();
    expect(accepted).toHaveLength(1);
    let said = '';
    accepted[0].onData = (data) => {
      said += Buffer.from(data).toString();
    };
    accepted[0].resume();
    await until(() => said === 'hello', 'the greeting');
    listener.pauseAccepting();
    const second = await connect({ host: '127.0.0.1', port: listener.port, timeoutMs: 2000 });
    await sleep(20);
    const over = closing(second);
    second.resume();
    await listener.close();
    expect(await over).toMatchObject({ code: 'ECONNRESET' });
    first.destroy();
  });

  it('names why it cannot connect or listen', async () => {
    const { port } = listener;
    await expect(listen({ host: '127.0.0.1', port, onWire: () => {} })).rejects.toMatchObject({
      code: 'OUTLIVE_LISTEN_FAILED',
      culprit: 'config',
    });
    await listener.close();
    await expect(connect({ host: '127.0.0.1', port, timeoutMs: 2000 })).rejects.toMatchObject({
      code: 'OUTLIVE_CONNECT_REFUSED',
      culprit: 'network',
    });
    await expect(connect({ host: 'nowhere.invalid', port, timeoutMs: 5000 })).rejects.toBeInstanceOf(CodedError);
    const abort = new AbortController();
    abort.abort(new Error('enough'));
    await expect(connect({ host: '127.0.0.1', port, timeoutMs: 10, signal: abort.signal })).rejects.toMatchObject({
      code: 'OUTLIVE_CONNECT_ABORTED',
    });
  });

  it('gives up connecting in time', async () => {
    // A stopped process accepts nothing; once its queue is full the kernel leaves a SYN without an answer.
    const script = `require('net').createServer().listen({ port: 0, host: '127.0.0.1', backlog: 1 }, function () {
      console.log(this.address().port); process.kill(process.pid, 'SIGSTOP') })`;
    const stopped = spawn(process.execPath, ['-e', script], { stdio: ['ignore', 'pipe', 'inherit'] });
    const port = await new Promise<number>((resolve) => stopped.stdout.once('data', (data) => resolve(Number(data))));
    await sleep(100);
    const fill = Array.from({ length: 8 }, () => net.connect(port, '127.0.0.1').on('error', () => {}));
    await sleep(100);
    const started = performance.now();
    const attempt = connect({ host: '127.0.0.1', port, timeoutMs: 150 });
    await expect(attempt).rejects.toMatchObject({ code: 'OUTLIVE_CONNECT_TIMEOUT', culprit: 'network' });
    expect(performance.now() - started).toBeLessThan(1500);
    const abort = new AbortController();
    const given = connect({ host: '127.0.0.1', port, timeoutMs: 5000, signal: abort.signal });
    setTimeout(() => abort.abort(), 20);
    await expect(given).rejects.toMatchObject({ code: 'OUTLIVE_CONNECT_ABORTED' });
    for (const socket of fill) socket.destroy();
    stopped.kill('SIGKILL');
  });

  it.runIf(kind === 'raw')('still delivers an answer that came before a write failed', async () => {
    const [near, far] = await pair();
    near.write(Buffer.from('the commit took effect'));
    await sleep(20);
    near.reset();
    await sleep(20);
    let said = '';
    far.onData = (data) => {
      said += Buffer.from(data).toString();
    };
    const over = closing(far);
    far.write(Buffer.from('next'));
    far.write(Buffer.from('next'));
    far.resume();
    expect(await over).toMatchObject({ syscall: 'write' });
    expect(said).toBe('the commit took effect');
  });

  it('opens and closes thousands of connections without a trace', { timeout: 60_000 }, async () => {
    let closes = 0;
    arrived = (wire) => {
      wire.onData = (data) => void wire.write(data);
      wire.onClose = () => closes++;
      wire.resume();
    };
    const COUNT = 3000;
    let next = 0;
    const worker = async (): Promise<void> => {
      while (next < COUNT) {
        const number = next++;
        const wire = await connect({ host: '127.0.0.1', port: listener.port, timeoutMs: 5000 });
        await new Promise<void>((resolve) => {
          wire.onData = () => {
            if (number % 3 === 0) wire.end();
            else if (number % 3 === 1) wire.destroy();
            else wire.reset();
          };
          wire.onClose = () => resolve();
          wire.resume();
          wire.write(Buffer.from('ping'));
        });
      }
    };
    await Promise.all(Array.from({ length: 50 }, worker));
    await until(() => closes === COUNT, 'the last close');
    accepted.length = 0;
    const handles = process.getActiveResourcesInfo().filter((name) => name === 'TCPSocketWrap');
    expect(handles.length).toBeLessThan(10);
  });
});
