import { lookup } from 'node:dns/promises';
import * as net from 'node:net';
import { CodedError } from '../contract/index.js';
import { implementation } from './implementation.js';
import { attemptRaw } from './raw-net.js';
import { attemptStream } from './stream-net.js';
import type { Attempt, ConnectOptions } from './tcp-options.js';
import type { Wire } from './wire.js';

export type { ConnectOptions } from './tcp-options.js';

/**
 * Connects to a server; a name with several addresses is tried in the resolver's order. The wire is paused.
 * Rejects with OUTLIVE_CONNECT_TIMEOUT, OUTLIVE_CONNECT_REFUSED, OUTLIVE_CONNECT_FAILED or OUTLIVE_CONNECT_ABORTED.
 */
export function connect(options: ConnectOptions): Promise<Wire> {
  const where = `${options.host}:${options.port}`;
  const { signal } = options;
  return new Promise((resolve, reject) => {
    let over = false;
    let attempt: Attempt | null = null;
    const settle = (): boolean => {
      if (over) return false;
      over = true;
      clearTimeout(timer);
      signal?.removeEventListener('abort', aborted);
      return true;
    };
    const giveUp = (error: CodedError): void => {
      if (!settle()) return;
      attempt?.cancel();
      reject(error);
    };
    const aborted = (): void => {
      const message = `the connection to ${where} was given up because the gateway no longer needs it`;
      giveUp(new CodedError('OUTLIVE_CONNECT_ABORTED', 'gateway', message, { cause: signal?.reason }));
    };
    const timer = setTimeout(() => {
      const message = `no connection to ${where} within ${options.timeoutMs} ms; is the host up, and does a firewall drop the packets?`;
      giveUp(new CodedError('OUTLIVE_CONNECT_TIMEOUT', 'network', message));
    }, options.timeoutMs);
    if (signal?.aborted === true) {
      aborted();
      return;
    }
    signal?.addEventListener('abort', aborted);

    const tryAll = async (): Promise<void> => {
      const how = (await implementation()) === 'raw' ? attemptRaw : attemptStream;
      let last: unknown;
      const family = net.isIP(options.host);
      const addresses = family === 0 ? await lookup(options.host, { all: true }) : [{ address: options.host, family }];
      for (const { address } of addresses) {
        if (over) return;
        attempt = how(address, options);
        try {
          const wire = await attempt.wire;
          if (settle()) resolve(wire);
          else wire.destroy();
          return;
        } catch (error) {
          last = error;
        }
      }
      throw last;
    };
    tryAll().catch((cause: NodeJS.ErrnoException) => {
      const refused = cause.code === 'ECONNREFUSED';
      giveUp(
        new CodedError(
          refused ? 'OUTLIVE_CONNECT_REFUSED' : 'OUTLIVE_CONNECT_FAILED',
          'network',
          refused
            ? `${where} refuses connections; is the server running?`
            : `cannot connect to ${where}: ${cause.message}`,
          { cause },
        ),
      );
    });
  });
}
