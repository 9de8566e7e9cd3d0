import { attemptRaw, listenRaw } from './raw-net.js';
import { binding } from './raw-wire.js';
import type { Wire } from './wire.js';

/** What carries plain TCP: bare handles, or Node's public API. */
export type Implementation = 'raw' | 'stream';

/** How long the self-test may take. */
const TEST_MS = 2000;
/** Bytes of one write, and the most writes, of the self-test. */
const TEST_CHUNK = 100_000;
const TEST_MAX = 100;

let tested: Promise<boolean> | null = null;

/**
 * Tells what is used. The bare handles are looked at, and tried out once over the loopback interface before they are trusted.
 * The environment variable OUTLIVE_IO=stream does without them.
 */
export async function implementation(): Promise<Implementation> {
  if (process.env.OUTLIVE_IO === 'stream' || binding === null) return 'stream';
  tested ??= selfTest();
  return (await tested) ? 'raw' : 'stream';
}

/** Sends bytes of a known pattern around and looks whether they come back as they were. */
async function selfTest(): Promise<boolean> {
  const wires: Wire[] = [];
  let close = async (): Promise<void> => {};
  try {
    const listener = await listenRaw('127.0.0.1', {
      host: '127.0.0.1',
      port: 0,
      onWire: (wire) => {
        wires.push(wire);
        wire.onData = (chunk) => {
          if (!wire.write(chunk)) wire.pause();
        };
        wire.onDrain = () => wire.resume();
        wire.resume();
      },
    });
    close = () => listener.close();
    const wire = await attemptRaw('127.0.0.1', { host: '127.0.0.1', port: listener.port, timeoutMs: TEST_MS }).wire;
    wires.push(wire);
    return await echoes(wire);
  } catch {
    // No loopback interface, or internals that differ: the public API does the job.
    return false;
  } finally {
    for (const wire of wires) wire.destroy();
    await close();
  }
}

function echoes(wire: Wire): Promise<boolean> {
  return new Promise((resolve) => {
    const timer = setTimeout(() => resolve(false), TEST_MS);
    const done = (answer: boolean): void => {
      clearTimeout(timer);
      resolve(answer);
    };
    const pattern = new Uint8Array(TEST_CHUNK);
    for (let at = 0; at < pattern.length; at++) pattern[at] = (at * 31) >> 3;
    let sent = 1;
    let seen = 0;
    wire.onData = (chunk) => {
      for (let at = 0; at < chunk.length; ) {
        const from = (seen + at) % TEST_CHUNK;
        const length = Math.min(TEST_CHUNK - from, chunk.length - at);
        if (Buffer.compare(chunk.subarray(at, at + length), pattern.subarray(from, from + length)) !== 0) done(false);
        at += length;
      }
      seen += chunk.length;
      // One small round first, then more than the kernel takes, so that unfinished writes are tried as well.
      if (seen === TEST_CHUNK && sent === 1) {
        while (wire.backlog === 0 && sent < TEST_MAX) {
          wire.write(pattern);
          sent++;
        }
      }
      if (seen === sent * TEST_CHUNK) done(true);
    };
    wire.onClose = () => done(false);
    wire.resume();
    wire.write(pattern);
  });
}
