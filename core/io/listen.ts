import { lookup } from 'node:dns/promises';
import { CodedError } from '../contract/index.js';
import { implementation } from './implementation.js';
import { listenOnRaw, listenRaw } from './raw-net.js';
import { listenOnStream, listenStream } from './stream-net.js';
import type { AcceptOptions, Listener, ListenOptions } from './tcp-options.js';

export type { AcceptOptions, Listener, ListenOptions } from './tcp-options.js';

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

/**
 * Goes on with a listening socket that another process opened.
 *
 * @param fd the listener's from now on
 * @throws OUTLIVE_LISTEN_FAILED when it is no listening socket
 */
export async function listenOn(fd: number, options: AcceptOptions): Promise<Listener> {
  const how = (await implementation()) === 'raw' ? listenOnRaw : listenOnStream;
  try {
    return await how(fd, options);
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new CodedError('OUTLIVE_LISTEN_FAILED', 'config', `cannot go on with a listening socket: ${why}`, { cause });
  }
}
