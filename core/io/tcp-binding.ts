/**
 * The part of Node's internal TCP handles that `RawWire` works with, and the check that this Node has it. These are the
 * objects that `net.Socket` itself is made of; they have been reachable and stable for many major versions, but they are
 * no public API. So everything is looked at before it is used, and where anything differs `StreamWire` does the job.
 */

export interface Address {
  address?: string;
  port?: number;
}

/** A request object that Node fills in when an operation goes on behind the call. */
export interface Request {
  oncomplete: (status: number) => void;
  /** The wire that it belongs to, and the memory that the kernel still reads from. */
  owner?: unknown;
  held?: unknown;
}

/** A libuv TCP handle as Node wraps it. Results are 0 or a negative errno. */
export interface TcpHandle {
  /** The wire that it belongs to. */
  owner?: unknown;
  readonly fd: number;
  readonly writeQueueSize: number;
  onread: (this: TcpHandle) => Uint8Array | undefined;
  onconnection: (error: number, handle: TcpHandle | undefined) => void;
  useUserBuffer(buffer: Uint8Array): void;
  readStart(): number;
  readStop(): number;
  writeBuffer(request: Request, chunk: Uint8Array): number;
  writev(request: Request, chunks: Uint8Array[], allBuffers: true): number;
  shutdown(request: Request): number;
  /** Takes over a descriptor that is open and nobody else's. */
  open(fd: number): number;
  close(done?: () => void): void;
  reset(done?: () => void): number;
  setNoDelay(on: boolean): number;
  setKeepAlive(on: boolean, seconds: number): number;
  getpeername(out: Address): number;
  getsockname(out: Address): number;
  bind(address: string, port: number): number;
  bind6(address: string, port: number, flags: number): number;
  listen(backlog: number): number;
  connect(request: Request, address: string, port: number): number;
  connect6(request: Request, address: string, port: number): number;
}

export interface TcpBinding {
  readonly TCP: { new (kind: number): TcpHandle };
  readonly SOCKET: number;
  readonly SERVER: number;
  readonly ConnectRequest: new () => Request;
  readonly WriteRequest: new () => Request;
  readonly ShutdownRequest: new () => Request;
  /** Where handles leave the results of the last read and write. */
  readonly state: Int32Array;
  /** Index of the number of bytes read, or a negative errno. */
  readonly nread: number;
  /** Index of the flag that the last write was not finished within the call. */
  readonly async: number;
}

const METHODS = [
  'useUserBuffer',
  'readStart',
  'readStop',
  'writeBuffer',
  'writev',
  'shutdown',
  'open',
  'close',
  'reset',
  'setNoDelay',
  'setKeepAlive',
  'getpeername',
  'getsockname',
  'bind',
  'bind6',
  'listen',
  'connect',
  'connect6',
];

/** Looks the internals up; null when this Node does not have them as expected. */
export function tcpBinding(): TcpBinding | null {
  try {
    const binding = (process as unknown as { binding?: (name: string) => Record<string, unknown> }).binding;
    if (typeof binding !== 'function') return null;
    const tcp = binding('tcp_wrap') as Record<string, unknown>;
    const stream = binding('stream_wrap') as Record<string, unknown>;
    const constants = tcp.constants as { SOCKET?: unknown; SERVER?: unknown };
    const found = {
      TCP: tcp.TCP,
      SOCKET: constants.SOCKET,
      SERVER: constants.SERVER,
      ConnectRequest: tcp.TCPConnectWrap,
      WriteRequest: stream.WriteWrap,
      ShutdownRequest: stream.ShutdownWrap,
      state: stream.streamBaseState,
      nread: stream.kReadBytesOrError,
      async: stream.kLastWriteWasAsync,
    };
    const numbers = [found.SOCKET, found.SERVER, found.nread, found.async];
    const classes = [found.TCP, found.ConnectRequest, found.WriteRequest, found.ShutdownRequest];
    if (!numbers.every((value) => typeof value === 'number')) return null;
    if (!classes.every((value) => typeof value === 'function')) return null;
    if (!(found.state instanceof Int32Array)) return null;
    const methods = (found.TCP as { prototype: Record<string, unknown> }).prototype;
    if (!METHODS.every((name) => typeof methods[name] === 'function')) return null;
    return found as unknown as TcpBinding;
  } catch {
    // The permission model refuses process.binding.
    return null;
  }
}
