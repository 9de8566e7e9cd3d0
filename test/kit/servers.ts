import { generateKeyPairSync, randomBytes, sign } from 'node:crypto';
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
  options: { timeoutMs?: number; intervalMs?: number; message?: string | (() => string) } = {},
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
    if (performance.now() >= deadline) {
      const what = typeof message === 'string' ? message : message();
      throw new Error(`${what}: not so within ${timeoutMs} ms`, { cause });
    }
    await sleep(intervalMs);
  }
}

/** Puts a DER element together. */
function der(tag: number, ...parts: (Buffer | string)[]): Buffer {
  const body = Buffer.concat(parts.map((part) => Buffer.from(part)));
  const size = body.length;
  const length = size < 128 ? [size] : size < 256 ? [0x81, size] : [0x82, size >> 8, size & 0xff];
  return Buffer.concat([Buffer.from([tag, ...length]), body]);
}

/** A fresh self-signed certificate for localhost and 127.0.0.1, as PEM texts. */
export function selfSignedCert(): { cert: string; key: string } {
  const { privateKey, publicKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const oid = (hex: string) => der(0x06, Buffer.from(hex, 'hex'));
  const ecdsaWithSha256 = der(0x30, oid('2a8648ce3d040302'));
  const name = der(0x30, der(0x31, der(0x30, oid('550403'), der(0x0c, 'localhost'))));
  const altNames = der(0x30, der(0x82, 'localhost'), der(0x87, Buffer.from([127, 0, 0, 1])));
  const toBeSigned = der(
    0x30,
    der(0xa0, der(0x02, Buffer.from([2]))),
    der(0x02, Buffer.from([1]), randomBytes(8)),
    ecdsaWithSha256,
    name,
    // From long ago until far ahead, whatever the clock of the machine says.
    der(0x30, der(0x17, '000101000000Z'), der(0x18, '20990101000000Z')),
    name,
    publicKey.export({ type: 'spki', format: 'der' }),
    der(0xa3, der(0x30, der(0x30, oid('551d11'), der(0x04, altNames)))),
  );
  const signature = sign('sha256', toBeSigned, privateKey);
  const bytes = der(0x30, toBeSigned, ecdsaWithSha256, der(0x03, Buffer.from([0]), signature));
  const lines = bytes.toString('base64').replace(/.{64}/g, '$&\n').trimEnd();
  return {
    cert: `-----BEGIN CERTIFICATE-----\n${lines}\n-----END CERTIFICATE-----\n`,
    key: privateKey.export({ type: 'pkcs8', format: 'pem' }) as string,
  };
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
