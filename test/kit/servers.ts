import { mkdtempSync, realpathSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll } from 'vitest';
import {
  type EmbeddedOptions,
  type EmbeddedPair,
  type EmbeddedServer,
  freePorts,
  startPair,
  startServer,
} from '../../plugins/embedded-postgres/index.js';

/** A free port on 127.0.0.1, from below the range of outgoing connections. */
export async function freePort(): Promise<number> {
  return (await freePorts(1))[0];
}

/**
 * Gives the file or the describe block a pair that is started before its tests and removed after them.
 * @returns a holder, because the pair itself is there only once the tests run
 */
export function usePair(options: EmbeddedOptions = {}): { readonly pair: EmbeddedPair } {
  let pair: EmbeddedPair | undefined;
  beforeAll(async () => {
    pair = await startPair(options);
  });
  afterAll(async () => {
    await pair?.stop();
  });
  return {
    get pair() {
      if (!pair) throw new Error('usePair(): the pair is there only inside of tests and hooks');
      return pair;
    },
  };
}

/** Like {@link usePair} with one server that has no standby. */
export function useServer(options: EmbeddedOptions = {}): { readonly server: EmbeddedServer } {
  let server: EmbeddedServer | undefined;
  beforeAll(async () => {
    server = await startServer(options);
  });
  afterAll(async () => {
    await server?.remove();
  });
  return {
    get server() {
      if (!server) throw new Error('useServer(): the server is there only inside of tests and hooks');
      return server;
    },
  };
}

/** Brings a pair back to a running primary with a streaming standby, whatever a test did to it. */
export async function restorePair(pair: EmbeddedPair): Promise<void> {
  if (pair.primary.frozen) await pair.primary.thaw();
  if (!pair.primary.running) await pair.primary.start();
  if (pair.standby.frozen) await pair.standby.thaw();
  if (!pair.standby.running || pair.standby.role !== 'standby') await pair.rebuild();
  else await pair.waitStreaming();
}

/**
 * Calls a function until it neither throws nor answers false, and gives back its answer.
 * @param options.message what was waited for, for the error
 */
export async function eventually<T>(
  fn: () => T | Promise<T>,
  options: { timeoutMs?: number; intervalMs?: number; message?: string } = {},
): Promise<T> {
  const { timeoutMs = 10_000, intervalMs = 10, message = 'the condition' } = options;
  const deadline = performance.now() + timeoutMs;
  for (;;) {
    let cause: unknown;
    try {
      const value = await fn();
      if (value !== false) return value;
    } catch (error) {
      cause = error;
    }
    if (performance.now() >= deadline) throw new Error(`${message}: not so within ${timeoutMs} ms`, { cause });
    await sleep(intervalMs);
  }
}

const made: string[] = [];

/** A new directory that goes away after the tests of this file. */
export function tempDir(): string {
  const dir = realpathSync(mkdtempSync(join(tmpdir(), 'outlive-test-')));
  made.push(dir);
  return dir;
}

afterAll(() => {
  for (const dir of made.splice(0)) rmSync(dir, { recursive: true, force: true });
});
