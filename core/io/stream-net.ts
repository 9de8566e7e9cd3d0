import * as net from 'node:net';
import { StreamWire } from './stream-wire.js';
import {
  type AcceptOptions,
  type Attempt,
  type ConnectOptions,
  DEFAULT_BACKLOG,
  Gate,
  type Listener,
  type ListenOptions,
} from './tcp-options.js';
import { KEEPALIVE_SECONDS, type Wire } from './wire.js';

const SOCKET_OPTIONS = {
  allowHalfOpen: true,
  noDelay: true,
  keepAlive: true,
  keepAliveInitialDelay: KEEPALIVE_SECONDS * 1000,
};

/** Listens with the public API. @param address numeric */
export function listenStream(address: string, options: ListenOptions): Promise<Listener> {
  return start(options, { host: address, port: options.port });
}

/** Goes on with a socket that listens already. @param fd nobody else's in this process */
export function listenOnStream(fd: number, options: AcceptOptions): Promise<Listener> {
  return start(options, { fd });
}

async function start(options: AcceptOptions, where: net.ListenOptions & { readonly fd?: number }): Promise<Listener> {
  const gate = new Gate(options);
  const server = net.createServer({ ...SOCKET_OPTIONS, pauseOnConnect: true });
  server.on('connection', (socket) => gate.admit(() => new StreamWire(socket, options)));
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen({ ...where, backlog: options.backlog ?? DEFAULT_BACKLOG }, resolve);
  });
  server.removeAllListeners('error');
  server.on('error', (error) => options.onError?.(error));
  return {
    port: (server.address() as net.AddressInfo).port,
    get fd() {
      // The handle has no public name.
      return (server as unknown as { readonly _handle: { readonly fd?: number } | null })._handle?.fd ?? -1;
    },
    close: async () => {
      gate.close();
      // Its callback would wait for every connection; the port itself is free at once.
      server.close();
    },
    pauseAccepting: () => gate.pause(),
    resumeAccepting: () => gate.resume(),
  };
}

/** Connects with the public API. @param address numeric */
export function attemptStream(address: string, options: ConnectOptions): Attempt {
  const socket = net.connect({ ...SOCKET_OPTIONS, host: address, port: options.port });
  // Reading must not begin on its own once the connection is there.
  socket.pause();
  const wire = new Promise<Wire>((resolve, reject) => {
    socket.once('error', reject);
    socket.once('connect', () => {
      socket.off('error', reject);
      resolve(new StreamWire(socket, options));
    });
  });
  return { wire, cancel: () => socket.destroy() };
}
