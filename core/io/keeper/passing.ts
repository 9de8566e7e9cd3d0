import { createRequire } from 'node:module';
import { endianness } from 'node:os';
import { CodedError } from '../../contract/index.js';
import { systemError } from '../errors.js';

/**
 * Descriptors travel between processes as ancillary data of a unix socket (unix(7), SCM_RIGHTS; cmsg(3)). `node:net` cannot do that
 * without taking the socket out of the sender's hands, so the C library is called. Everything here is for descriptors that
 * no libuv handle reads: libuv would take the bytes, and the kernel would throw the descriptors away.
 */

// Numbers of Linux (asm-generic, which x86-64 and arm64 use).
const AF_UNIX = 1;
const SOCK_STREAM = 1;
const SOCK_NONBLOCK = 0o4000;
const SOCK_CLOEXEC = 0o2000000;
const SOL_SOCKET = 1;
const SO_PEERCRED = 17;
const SCM_RIGHTS = 1;
const IPPROTO_TCP = 6;
const TCP_INFO = 11;
const SIOCINQ = 0x541b;
const SIOCOUTQ = 0x5411;
const F_DUPFD_CLOEXEC = 1030;
const POLLOUT = 4;
const MSG_CTRUNC = 8;
const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;
const MSG_CMSG_CLOEXEC = 0x40000000;
const TCP_CLOSE_WAIT = 8;
const INFO_SIZE = 136;

/** Most descriptors of one message (SCM_MAX_FD in include/net/scm.h). */
export const MAX_DESCRIPTORS = 253;
/** Most bytes beside the descriptors of one message. */
export const MAX_BESIDE = 64;

/**
 * One `struct msghdr` with everything that it points to, in one block of memory whose address does not change:
 *
 *     0 name, 8 namelen, 16 iov -> 56, 24 iovlen = 1, 32 control -> 136, 40 controllen, 48 flags
 *    56 iov[0].base -> 72, 64 iov[0].len
 *    72 the bytes
 *   136 cmsghdr: len (8), level (4), type (4), then the descriptors (4 each)
 */
const IOV = 56;
const BESIDE = 72;
const CONTROL = BESIDE + MAX_BESIDE;
const CMSG_HEADER = 16;
const BLOCK = CONTROL + CMSG_HEADER + 8 * Math.ceil((4 * MAX_DESCRIPTORS) / 8);

interface Library {
  sendmsg(fd: number, message: Uint8Array, flags: number): number;
  recvmsg(fd: number, message: Uint8Array, flags: number): number;
  send(fd: number, bytes: Uint8Array, length: number, flags: number): number;
  recv(fd: number, bytes: Uint8Array, length: number, flags: number): number;
  poll(waited: Uint8Array, count: number, timeout: number): number;
  socket(family: number, type: number, protocol: number): number;
  socketpair(family: number, type: number, protocol: number, pair: Int32Array): number;
  connect(fd: number, address: Uint8Array, length: number): number;
  getsockopt(fd: number, level: number, name: number, value: Uint8Array, length: Uint32Array): number;
  ioctl(fd: number, request: number, value: Int32Array): number;
  fcntl(fd: number, command: number, value: number): number;
  close(fd: number): number;
  errno(): number;
  /** The block above, with its pointers set. */
  readonly block: Buffer;
}

let loaded: Library | null = null;

/** koffi is native code: it is loaded when it is first needed, and a gateway without a keeper never needs it. */
function load(): Library {
  const layout = process.platform === 'linux' && (process.arch === 'x64' || process.arch === 'arm64');
  if (!layout || endianness() !== 'LE') throw new Error(`this is ${process.platform} on ${process.arch}`);
  const koffi = createRequire(import.meta.url)('koffi') as typeof import('koffi');
  // The symbols that Node itself is linked with: glibc's or musl's.
  const library = koffi.load(null);
  const f = (name: string, result: string, ...parameters: string[]): never =>
    library.func(name, result, parameters) as never;
  const block = Buffer.allocUnsafeSlow(BLOCK).fill(0);
  const address = koffi.address(block);
  block.writeBigUInt64LE(address + BigInt(IOV), 16);
  block.writeBigUInt64LE(1n, 24);
  block.writeBigUInt64LE(address + BigInt(CONTROL), 32);
  block.writeBigUInt64LE(address + BigInt(BESIDE), IOV);
  return {
    sendmsg: f('sendmsg', 'long', 'int', 'void *', 'int'),
    recvmsg: f('recvmsg', 'long', 'int', 'void *', 'int'),
    send: f('send', 'long', 'int', 'void *', 'size_t', 'int'),
    recv: f('recv', 'long', 'int', 'void *', 'size_t', 'int'),
    poll: f('poll', 'int', 'void *', 'unsigned long', 'int'),
    socket: f('socket', 'int', 'int', 'int', 'int'),
    socketpair: f('socketpair', 'int', 'int', 'int', 'int', 'void *'),
    connect: f('connect', 'int', 'int', 'void *', 'uint32_t'),
    getsockopt: f('getsockopt', 'int', 'int', 'int', 'int', 'void *', 'void *'),
    ioctl: f('ioctl', 'int', 'int', 'unsigned long', 'void *'),
    fcntl: f('fcntl', 'int', 'int', 'int', 'long'),
    close: f('close', 'int', 'int'),
    errno: () => koffi.errno(),
    block,
  };
}

function libc(): Library {
  if (loaded === null) {
    try {
      loaded = load();
    } catch (cause) {
      const why = cause instanceof Error ? cause.message : String(cause);
      const message = `a keeper needs Linux on x86-64 or arm64 and the package koffi: ${why}`;
      throw new CodedError('OUTLIVE_KEEPER_UNAVAILABLE', 'system', message, { cause });
    }
  }
  return loaded;
}

/** Tells whether descriptors can be passed here: null, or why not. Loads koffi. */
export function passingUnavailable(): string | null {
  try {
    libc();
    return null;
  } catch (error) {
    return (error as CodedError).message;
  }
}

/** The error of a failed call: OUTLIVE_KEEPER_CALL, with the system's error as its cause. */
function failed(call: string): CodedError {
  const cause = systemError(-libc().errno(), call);
  return new CodedError('OUTLIVE_KEEPER_CALL', 'system', `${cause.message} (passing descriptors)`, { cause });
}

function succeed(result: number, call: string): number {
  if (result < 0) throw failed(call);
  return result;
}

// EAGAIN and EINTR have these numbers on every Linux that `load` lets through.
const EINTR = 4;
const EAGAIN = 11;

/**
 * Sends duplicates of descriptors as one message; the sender's own stay as they are. Never waits.
 *
 * @param fd a unix stream socket
 * @param descriptors 1 to {@link MAX_DESCRIPTORS}
 * @param beside 1 to {@link MAX_BESIDE} bytes that travel with them
 * @returns false when the socket's buffer is full (some 250 messages) and nothing was sent
 * @throws OUTLIVE_KEEPER_CALL when the other end is gone, or a descriptor is none
 */
export function sendDescriptors(fd: number, descriptors: readonly number[], beside: Uint8Array): boolean {
  const { block, sendmsg, errno } = libc();
  if (descriptors.length < 1 || descriptors.length > MAX_DESCRIPTORS) throw new RangeError('too many descriptors');
  if (beside.length < 1 || beside.length > MAX_BESIDE) throw new RangeError('too many bytes');
  const length = CMSG_HEADER + 4 * descriptors.length;
  block.writeBigUInt64LE(BigInt(beside.length), IOV + 8);
  block.set(beside, BESIDE);
  block.writeBigUInt64LE(BigInt((length + 7) & ~7), 40);
  block.writeInt32LE(0, 48);
  block.writeBigUInt64LE(BigInt(length), CONTROL);
  block.writeInt32LE(SOL_SOCKET, CONTROL + 8);
  block.writeInt32LE(SCM_RIGHTS, CONTROL + 12);
  for (let at = 0; at < descriptors.length; at++) block.writeInt32LE(descriptors[at], CONTROL + CMSG_HEADER + 4 * at);
  for (;;) {
    if (sendmsg(fd, block, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0) return true;
    if (errno() === EAGAIN) return false;
    if (errno() !== EINTR) throw failed('sendmsg');
  }
}

/** A message that came through {@link receiveDescriptors}. */
export interface Received {
  /** They are the receiver's now, close-on-exec. */
  readonly descriptors: readonly number[];
  readonly beside: Uint8Array;
  /** The kernel dropped some, because this process has no room for more (RLIMIT_NOFILE). */
  readonly truncated: boolean;
}

/**
 * Takes one message of {@link sendDescriptors}. Never waits. The kernel ends a read of a stream behind a message with descriptors
 * (unix_stream_read_generic in net/unix/af_unix.c), so messages do not run into each other as long as each has some.
 *
 * @returns null when there is none at this moment
 * @throws OUTLIVE_KEEPER_CALL when the other end is gone
 */
export function receiveDescriptors(fd: number): Received | null {
  const { block, recvmsg, errno } = libc();
  block.writeBigUInt64LE(BigInt(MAX_BESIDE), IOV + 8);
  block.writeBigUInt64LE(BigInt(BLOCK - CONTROL), 40);
  block.writeInt32LE(0, 48);
  let length: number;
  do {
    length = recvmsg(fd, block, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (length < 0 && errno() === EAGAIN) return null;
  } while (length < 0 && errno() === EINTR);
  succeed(length, 'recvmsg');
  const descriptors: number[] = [];
  const end = CONTROL + Number(block.readBigUInt64LE(40));
  for (let at = CONTROL; at + CMSG_HEADER <= end; ) {
    const size = Number(block.readBigUInt64LE(at));
    const rights = block.readInt32LE(at + 8) === SOL_SOCKET && block.readInt32LE(at + 12) === SCM_RIGHTS;
    for (let one = at + CMSG_HEADER; rights && one + 4 <= at + size; one += 4) descriptors.push(block.readInt32LE(one));
    at += Math.max(CMSG_HEADER, (size + 7) & ~7);
  }
  if (length === 0 && descriptors.length === 0) {
    throw new CodedError('OUTLIVE_KEEPER_CALL', 'system', 'the other end closed the way of the descriptors');
  }
  const beside = new Uint8Array(block.subarray(BESIDE, BESIDE + length));
  return { descriptors, beside, truncated: (block.readInt32LE(48) & MSG_CTRUNC) !== 0 };
}

/** Sends plain bytes. Never waits. @throws OUTLIVE_KEEPER_CALL unless all of them were taken */
export function sendBytes(fd: number, bytes: Uint8Array): void {
  if (libc().send(fd, bytes, bytes.length, MSG_DONTWAIT | MSG_NOSIGNAL) !== bytes.length) throw failed('send');
}

/**
 * Sends plain bytes, and waits for room where there is none: this thread does nothing else meanwhile.
 * @param patienceMs how long no byte may be taken before it is given up
 * @returns `full` when it was given up, `gone` when the other end is; some bytes may have been taken then
 */
export function sendAll(fd: number, bytes: Uint8Array, patienceMs: number): 'sent' | 'full' | 'gone' {
  const { send, poll, errno } = libc();
  for (let at = 0; at < bytes.length; ) {
    const sent = send(fd, bytes.subarray(at), bytes.length - at, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent >= 0) {
      at += sent;
      continue;
    }
    const error = errno();
    if (error === EINTR) continue;
    if (error !== EAGAIN) return 'gone';
    // struct pollfd: fd (4), events (2), revents (2).
    const waited = Buffer.allocUnsafeSlow(128);
    waited.writeInt32LE(fd, 0);
    waited.writeInt32LE(POLLOUT, 4);
    if (poll(waited, 1, patienceMs) === 0) return 'full';
  }
  return 'sent';
}

/** Takes up to `into.length` plain bytes. Never waits. @returns their number; 0 when there is nothing, or nothing more */
export function receiveBytes(fd: number, into: Uint8Array): number {
  const length = libc().recv(fd, into, into.length, MSG_DONTWAIT);
  return Math.max(length, 0);
}

/** Two unix stream sockets that are connected to each other; non-blocking, close-on-exec. */
export function descriptorPair(): [number, number] {
  const pair = new Int32Array(32);
  succeed(libc().socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair), 'socketpair');
  return [pair[0], pair[1]];
}

/**
 * A unix stream socket connected to a path, non-blocking, that no libuv handle reads.
 * @throws OUTLIVE_KEEPER_CALL (cause.code ENOENT, ECONNREFUSED: nobody listens; EAGAIN: too many are waiting already)
 */
export function connectUnix(path: string): number {
  const { socket, connect, close } = libc();
  const name = Buffer.from(path);
  // sockaddr_un: family (2), then the path with a zero at its end. Longer than it need be, so that it lies outside of the heap.
  const address = Buffer.allocUnsafeSlow(128).fill(0);
  if (name.length > MAX_PATH) throw new RangeError('the path of a unix socket is too long');
  address.writeUInt16LE(AF_UNIX, 0);
  address.set(name, 2);
  const fd = succeed(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), 'socket');
  if (connect(fd, address, 2 + name.length + 1) === 0) return fd;
  const error = failed('connect');
  close(fd);
  throw error;
}

/** Most bytes of the path of a unix socket (unix(7): sun_path has 108, one of them is the zero at its end). */
export const MAX_PATH = 107;

/** Who is at the other end of a unix socket, as the kernel saw it when the connection was made (unix(7), SO_PEERCRED). */
export function peerOf(fd: number): { readonly pid: number; readonly uid: number } {
  const value = Buffer.allocUnsafeSlow(128);
  const length = new Uint32Array(32).fill(0);
  length[0] = 12;
  succeed(libc().getsockopt(fd, SOL_SOCKET, SO_PEERCRED, value, length), 'getsockopt');
  return { pid: value.readInt32LE(0), uid: value.readUInt32LE(4) };
}

/** A second descriptor of the same open file, close-on-exec. */
export function duplicate(fd: number): number {
  return succeed(libc().fcntl(fd, F_DUPFD_CLOEXEC, 0), 'fcntl');
}

/** Closes a descriptor that no handle of Node owns. The connection ends when it was the last one. */
export function closeDescriptor(fd: number): void {
  // Linux frees the number whatever close answers.
  libc().close(fd);
}

/** Where the two byte streams of a TCP socket are, counted from its start, whoever read and wrote. */
export interface Positions {
  /** Bytes of the peer that some process took from the kernel. */
  readonly consumed: number;
  /** Bytes of the peer that wait in the kernel. */
  readonly waiting: number;
  /** Bytes that some process gave to the kernel to be sent. */
  readonly written: number;
}

/**
 * Asks the kernel how far a socket is that another process used before. This is what makes an exact restart possible: what
 * the dead process consumed and wrote is `consumed` and `written`, to the byte, no matter what it still managed to tell.
 *
 * From `struct tcp_info` (include/uapi/linux/tcp.h; bytes_acked at 120, bytes_received at 128), SIOCINQ and SIOCOUTQ (tcp(7)). Holds for
 * sockets that were accepted (a connecting one counts its SYN) and as long as no FIN of ours was sent. A peer's FIN
 * is not counted.
 */
export function socketPositions(fd: number): Positions {
  const { getsockopt, ioctl } = libc();
  const info = Buffer.allocUnsafeSlow(INFO_SIZE);
  const queue = new Int32Array(32);
  const ask = (): { received: number; acknowledged: number; fin: boolean } => {
    const length = new Uint32Array(32);
    length[0] = INFO_SIZE;
    succeed(getsockopt(fd, IPPROTO_TCP, TCP_INFO, info, length), 'getsockopt');
    if (length[0] < INFO_SIZE) throw new CodedError('OUTLIVE_KEEPER_CALL', 'system', 'the kernel is older than 4.1');
    return {
      received: Number(info.readBigUInt64LE(128)),
      acknowledged: Number(info.readBigUInt64LE(120)),
      fin: info[0] === TCP_CLOSE_WAIT,
    };
  };
  for (let before = ask(); ; ) {
    succeed(ioctl(fd, SIOCINQ, queue), 'ioctl');
    const waiting = queue[0];
    succeed(ioctl(fd, SIOCOUTQ, queue), 'ioctl');
    const sending = queue[0];
    const after = ask();
    // A segment that arrived in between would be in one number and not in the other.
    if (after.received === before.received && after.acknowledged === before.acknowledged && after.fin === before.fin) {
      const consumed = after.received - waiting - (after.fin ? 1 : 0);
      return { consumed, waiting, written: after.acknowledged + sending };
    }
    before = after;
  }
}
