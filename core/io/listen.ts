import { lookup } from 'node:dns/promises';
import { CodedError } from '../contract/index.js';
import { implementation } from './implementation.js';
import { listenRaw } from './raw-net.js';
import { listenStream } from './stream-net.js';
import type { Listener, ListenOptions } from './tcp-options.js';

export type { Listener, ListenOptions } from './tcp-options.js';

/** Opens a listening port. Rejects with OUTLIVE_LISTEN_FAILED. */
export async function listen(options: ListenOptions): Promise<Listener> {
  const how = (await implementation()) === 'raw' ? listenRaw : listenStream;
  try {
    const { address } = await lookup(options.host);
    return await how(address, options);
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause);
    const message = `cannot listen on ${options.host}:${options.port}: ${why}`;
    throw new CodedError('OUTLIVE_LISTEN_FAILED', 'config', message, { cause });
  }
}
