import * as net from 'node:net';
import { systemError } from './errors.js';
import { binding, RawWire } from './raw-wire.js';
import { closeSocket, duplicateHigh } from './tcp/libc.js';
import type { Address, TcpHandle } from './tcp-binding.js';
import {
  type AcceptOptions,
  type Attempt,
  type ConnectOptions,
  DEFAULT_BACKLOG,
  Gate,
  type Listener,
  type ListenOptions,
} from './tcp-options.js';
import type { Wire } from './wire.js';

// Only called where the internals are there.
const { TCP, SOCKET, SERVER, ConnectRequest } = binding ?? ({} as never);

/** Listens with a bare handle. @param address numeric */
export async function listenRaw(address: string, options: ListenOptions): Promise<Listener> {
  const bind = (server: TcpHandle) => {
    const how = net.isIPv6(address) ? server.bind6(address, options.port, 0) : server.bind(address, options.port);
    return [how, 'bind'] as const;
  };
  if (options.closesFirst !== true) return start(options, bind);
  const low = new TCP(SERVER);
  try {
    const [error, call] = bind(low);
    if (error !== 0) throw systemError(error, call);
    const high = duplicateHigh(low.fd);
    return await start(options, (server) => [server.open(high), 'open']);
  } finally {
    low.close();
  }
}

/** Goes on with a socket that listens already. @param fd nobody else's in this process */
export async function listenOnRaw(fd: number, options: AcceptOptions): Promise<Listener> {
  if (options.closesFirst !== true) return start(options, (server) => [server.open(fd), 'open']);
  const high = duplicateHigh(fd);
  closeSocket(fd);
  return start(options, (server) => [server.open(high), 'open']);
}

/** @param prepare gives the handle its socket; answers with the result and the name of the call */
function start(options: AcceptOptions, prepare: (server: TcpHandle) => readonly [number, string]): Listener {
  const gate = new Gate(options);
  const server = new TCP(SERVER);
  const check = (error: number, call: string): void => {
    if (error === 0) return;
    server.close();
    throw systemError(error, call);
  };
  check(...prepare(server));
  server.onconnection = (error: number, handle: TcpHandle | undefined): void => {
    if (handle === undefined) options.onError?.(systemError(error, 'accept'));
    else gate.admit(() => new RawWire(handle, options));
  };
  check(server.listen(options.backlog ?? DEFAULT_BACKLOG), 'listen');
  const name: Address = {};
  check(server.getsockname(name), 'getsockname');
  let closed: Promise<void> | null = null;
  return {
    port: name.port ?? 0,
    get fd() {
      return closed === null ? server.fd : -1;
    },
    close: () => {
      gate.close();
      return (closed ??= new Promise((resolve) => server.close(resolve)));
    },
    pauseAccepting: () => gate.pause(),
    resumeAccepting: () => gate.resume(),
  };
}

/** Connects with a bare handle. @param address numeric */
export function attemptRaw(address: string, options: ConnectOptions): Attempt {
  const handle = new TCP(SOCKET);
  let closed = false;
  const close = (): void => {
    if (!closed) handle.close();
    closed = true;
  };
  const wire = new Promise<Wire>((resolve, reject) => {
    const request = new ConnectRequest();
    request.oncomplete = (status: number): void => {
      if (closed) return;
      if (status !== 0) {
        close();
        reject(systemError(status, 'connect'));
        return;
      }
      // From here on the handle is the wire's.
      closed = true;
      resolve(new RawWire(handle, options));
    };
    const error = net.isIPv6(address)
      ? handle.connect6(request, address, options.port)
      : handle.connect(request, address, options.port);
    if (error !== 0) {
      close();
      reject(systemError(error, 'connect'));
    }
  });
  return { wire, cancel: close };
}
