import { createRequire } from 'node:module';
import { constants } from 'node:os';
import { CodedError } from '../../contract/index.js';

/** Numbers of Linux (asm-generic, which x86-64 and arm64 use); see socket(7), ip(7), ipv6(7), tcp(7), packet(7). */
export const AF_INET = 2;
export const AF_INET6 = 10;
export const AF_PACKET = 17;
export const SOCK_STREAM = 1;
export const SOCK_RAW = 3;
const SOCK_NONBLOCK = 0o4000;
const SOCK_CLOEXEC = 0o2000000;
export const IPPROTO_IP = 0;
export const IPPROTO_ICMP = 1;
export const IPPROTO_TCP = 6;
export const IPPROTO_IPV6 = 41;
export const IPPROTO_ICMPV6 = 58;
export const SOL_SOCKET = 1;
export const SO_REUSEADDR = 2;
export const SO_KEEPALIVE = 9;
export const SO_LINGER = 13;
export const SO_ATTACH_FILTER = 26;
export const SO_DETACH_FILTER = 27;
export const SO_SNDBUFFORCE = 32;
export const SO_RCVBUFFORCE = 33;
export const SO_BUF_LOCK = 72;
export const IP_TRANSPARENT = 19;
export const IPV6_TRANSPARENT = 75;
export const TCP_NODELAY = 1;
export const TCP_MAXSEG = 2;
export const TCP_KEEPIDLE = 4;
export const TCP_KEEPINTVL = 5;
export const TCP_INFO = 11;
export const TCP_REPAIR = 19;
export const TCP_REPAIR_QUEUE = 20;
export const TCP_QUEUE_SEQ = 21;
export const TCP_REPAIR_OPTIONS = 22;
export const TCP_TIMESTAMP = 24;
export const TCP_REPAIR_WINDOW = 29;
export const TCP_RTO_MAX_MS = 44;
export const SIOCINQ = 0x541b;
export const SIOCOUTQ = 0x5411;
export const SIOCGIFHWADDR = 0x8927;
export const MSG_PEEK = 2;
export const MSG_TRUNC = 0x20;
export const MSG_DONTWAIT = 0x40;
export const MSG_NOSIGNAL = 0x4000;
const F_DUPFD_CLOEXEC = 1030;

/** Bytes of `struct tcp_info` that are asked for; older kernels fill in fewer. */
const TCP_INFO_SIZE = 232;

/** The C functions that are used. All return -1 and set errno when they fail. */
interface Functions {
  socket(family: number, type: number, protocol: number): number;
  bind(fd: number, address: Uint8Array, length: number): number;
  connect(fd: number, address: Uint8Array, length: number): number;
  getsockname(fd: number, address: Uint8Array, length: Uint32Array): number;
  getpeername(fd: number, address: Uint8Array, length: Uint32Array): number;
  setsockopt(fd: number, level: number, name: number, value: ArrayBufferView, length: number): number;
  setsockfilter(fd: number, level: number, name: number, value: unknown, length: number): number;
  getsockopt(fd: number, level: number, name: number, value: ArrayBufferView, length: Uint32Array): number;
  ioctl(fd: number, request: number, value: ArrayBufferView): number;
  fcntl(fd: number, command: number, value: number): number;
  dup3(fd: number, onto: number, flags: number): number;
  send(fd: number, bytes: Uint8Array, length: number, flags: number): number;
  recv(fd: number, bytes: Uint8Array, length: number, flags: number): number;
  sendto(fd: number, bytes: Uint8Array, length: number, flags: number, to: Uint8Array, size: number): number;
  recvfrom(fd: number, bytes: Uint8Array, length: number, flags: number, from: Uint8Array, size: Uint32Array): number;
  interfaceIndex(name: string): number;
  close(fd: number): number;
  errno(): number;
}

let functions: Functions | null = null;

/** koffi is native code, so it is loaded when it is first needed and not before. */
function load(): Functions {
  if (process.platform !== 'linux') throw new Error(`TCP_REPAIR needs Linux, this is ${process.platform}`);
  const koffi = createRequire(import.meta.url)('koffi') as typeof import('koffi');
  // The symbols that Node itself is linked with: glibc's or musl's.
  const library = koffi.load(null);
  const program = koffi.struct({ count: 'uint16_t', instructions: 'const void *' });
  const f = (name: string, result: string, ...parameters: (string | ReturnType<typeof koffi.pointer>)[]): never =>
    library.func(name, result, parameters) as never;
  return {
    socket: f('socket', 'int', 'int', 'int', 'int'),
    bind: f('bind', 'int', 'int', 'const void *', 'uint32_t'),
    connect: f('connect', 'int', 'int', 'const void *', 'uint32_t'),
    getsockname: f('getsockname', 'int', 'int', 'void *', 'void *'),
    getpeername: f('getpeername', 'int', 'int', 'void *', 'void *'),
    setsockopt: f('setsockopt', 'int', 'int', 'int', 'int', 'const void *', 'uint32_t'),
    setsockfilter: f('setsockopt', 'int', 'int', 'int', 'int', koffi.pointer(program), 'uint32_t'),
    getsockopt: f('getsockopt', 'int', 'int', 'int', 'int', 'void *', 'void *'),
    ioctl: f('ioctl', 'int', 'int', 'unsigned long', 'void *'),
    fcntl: f('fcntl', 'int', 'int', 'int', 'long'),
    dup3: f('dup3', 'int', 'int', 'int', 'int'),
    send: f('send', 'long', 'int', 'const void *', 'size_t', 'int'),
    recv: f('recv', 'long', 'int', 'void *', 'size_t', 'int'),
    sendto: f('sendto', 'long', 'int', 'const void *', 'size_t', 'int', 'const void *', 'uint32_t'),
    recvfrom: f('recvfrom', 'long', 'int', 'void *', 'size_t', 'int', 'void *', 'void *'),
    interfaceIndex: f('if_nametoindex', 'uint32_t', 'const char *'),
    close: f('close', 'int', 'int'),
    errno: () => koffi.errno(),
  };
}

/** The C library. Throws OUTLIVE_TCP_REPAIR_UNAVAILABLE where it cannot be reached: no Linux, or no koffi. */
export function libc(): Functions {
  if (functions === null) {
    try {
      functions = load();
    } catch (cause) {
      const why = cause instanceof Error ? cause.message : String(cause);
      const message = `TCP connections cannot be moved here: ${why}`;
      throw new CodedError('OUTLIVE_TCP_REPAIR_UNAVAILABLE', 'system', message, { cause });
    }
  }
  return functions;
}

const NAMES = new Map(Object.entries(constants.errno).map(([name, value]) => [value, name]));

/** The name of the last failed call's error, like `EPERM`. */
export function errorName(): string {
  const number = libc().errno();
  return NAMES.get(number) ?? `errno ${number}`;
}

/** An OUTLIVE_TCP_CALL_FAILED that names the call and the error of the system. */
export function callFailed(call: string): CodedError {
  return new CodedError('OUTLIVE_TCP_CALL_FAILED', 'system', `${call}: ${errorName()}`);
}

/** Throws OUTLIVE_TCP_CALL_FAILED for a result of -1, else gives it back. @param call what was tried, for the message */
export function check(result: number, call: string): number {
  if (result === -1) throw callFailed(call);
  return result;
}

/** A new socket, non-blocking and not inherited by child processes. Throws OUTLIVE_TCP_CALL_FAILED. */
export function openSocket(family: number, type: number, protocol: number): number {
  return check(libc().socket(family, type | SOCK_CLOEXEC | SOCK_NONBLOCK, protocol), 'socket');
}

/** A second descriptor of the same socket, not inherited by child processes. Throws OUTLIVE_TCP_CALL_FAILED. */
export function duplicate(fd: number): number {
  return check(libc().fcntl(fd, F_DUPFD_CLOEXEC, 0), 'fcntl F_DUPFD_CLOEXEC');
}

/** Far above the descriptors of connections, where so many are allowed; the kernel's table of descriptors takes 8 bytes for each. */
const HIGH = 65_536;

/**
 * A second descriptor of the same socket with a high number, not inherited by child processes. When a process dies, Linux closes its files
 * from the highest descriptor down (`fput` leaves each to task_work_add, and task_work_run begins with the last one, since 4.3): this one
 * before those of connections, which get the lowest free numbers. Throws OUTLIVE_TCP_CALL_FAILED, OUTLIVE_TCP_REPAIR_UNAVAILABLE.
 */
export function duplicateHigh(fd: number): number {
  for (let from = HIGH; from > 256; from /= 2) {
    // EINVAL: more than this process may have.
    const high = libc().fcntl(fd, F_DUPFD_CLOEXEC, from);
    if (high >= 0) return high;
  }
  return duplicate(fd);
}

/**
 * A descriptor for {@link moveOnto}, with a number below those of all that are opened later: it is closed after them when the process
 * dies, see {@link duplicateHigh}. Throws OUTLIVE_TCP_CALL_FAILED, OUTLIVE_TCP_REPAIR_UNAVAILABLE.
 */
export function reserveDescriptor(): number {
  return openSocket(AF_INET, SOCK_STREAM, 0);
}

/** Gives a file the number of a reserved descriptor, which is closed, in place of its own. Throws OUTLIVE_TCP_CALL_FAILED. */
export function moveOnto(fd: number, reserved: number): void {
  check(libc().dup3(fd, reserved, SOCK_CLOEXEC), 'dup3');
  libc().close(fd);
}

/** Closes a descriptor that is nobody else's. Errors do not matter: the descriptor is gone either way. */
export function closeSocket(fd: number): void {
  libc().close(fd);
}

const number = new Int32Array(1);
const size = new Uint32Array(1);

/** Sets an option whose value is one int. Throws OUTLIVE_TCP_CALL_FAILED. */
export function setOption(fd: number, level: number, name: number, value: number): void {
  number[0] = value;
  check(libc().setsockopt(fd, level, name, number, 4), `setsockopt ${level}/${name}`);
}

/** Sets an option that an older kernel may not have. @returns whether it was set */
export function tryOption(fd: number, level: number, name: number, value: number): boolean {
  number[0] = value;
  return libc().setsockopt(fd, level, name, number, 4) === 0;
}

/** Sets an option whose value is a structure. Throws OUTLIVE_TCP_CALL_FAILED. */
export function setStructure(fd: number, level: number, name: number, value: ArrayBufferView): void {
  check(libc().setsockopt(fd, level, name, value, value.byteLength), `setsockopt ${level}/${name}`);
}

/** The value of an option that is one int. Throws OUTLIVE_TCP_CALL_FAILED. */
export function getOption(fd: number, level: number, name: number): number {
  size[0] = 4;
  check(libc().getsockopt(fd, level, name, number, size), `getsockopt ${level}/${name}`);
  return number[0];
}

/** Fills `value` with an option that is a structure. Throws OUTLIVE_TCP_CALL_FAILED. @returns bytes filled in */
export function getStructure(fd: number, level: number, name: number, value: ArrayBufferView): number {
  size[0] = value.byteLength;
  check(libc().getsockopt(fd, level, name, value, size), `getsockopt ${level}/${name}`);
  return size[0];
}

/** The int that an ioctl gives. Throws OUTLIVE_TCP_CALL_FAILED. */
export function ask(fd: number, request: number): number {
  check(libc().ioctl(fd, request, number), `ioctl ${request.toString(16)}`);
  return number[0];
}

/** One instruction of classic BPF: code, jump if true, jump if false, operand (linux/filter.h). */
export type Instruction = readonly [code: number, yes: number, no: number, operand: number];

/** A program that accepts nothing (BPF_RET with 0). A TCP socket with it acknowledges nothing: TCP never sees what arrives. */
export const DEAF: readonly Instruction[] = [[6, 0, 0, 0]];

/** Lets a socket see only what a classic BPF program accepts (socket(7), SO_ATTACH_FILTER). Throws OUTLIVE_TCP_CALL_FAILED. */
export function attachFilter(fd: number, program: readonly Instruction[]): void {
  const instructions = new DataView(new ArrayBuffer(program.length * 8));
  program.forEach(([code, yes, no, operand], index) => {
    const at = index * 8;
    instructions.setUint16(at, code, LITTLE);
    instructions.setUint8(at + 2, yes);
    instructions.setUint8(at + 3, no);
    instructions.setUint32(at + 4, operand, LITTLE);
  });
  const value = { count: program.length, instructions: new Uint8Array(instructions.buffer) };
  // 16 is the size of `struct sock_fprog` with its 64-bit pointer.
  check(libc().setsockfilter(fd, SOL_SOCKET, SO_ATTACH_FILTER, value, 16), 'setsockopt SO_ATTACH_FILTER');
}

/** Takes the program away again. A socket that has none stays as it is. */
export function detachFilter(fd: number): void {
  tryOption(fd, SOL_SOCKET, SO_DETACH_FILTER, 0);
}

/** Whether this machine stores the low byte first, as structures of the kernel are in its own order. */
export const LITTLE = new Uint8Array(new Uint16Array([1]).buffer)[0] === 1;

/** The part of `struct tcp_info` (linux/tcp.h) that is used. */
export interface TcpInfo {
  /** 1 is ESTABLISHED (net/tcp_states.h). */
  readonly state: number;
  readonly timestamps: boolean;
  readonly sack: boolean;
  /** Shift counts of windows: what the peer advertises is shifted by `sendScale`, what we advertise by `receiveScale`. */
  readonly sendScale: number;
  readonly receiveScale: number;
  /** Payload bytes of a full segment that is sent. */
  readonly sendMss: number;
  /** Segments that may be under way. */
  readonly window: number;
  /** Bytes that the peer acknowledged, and bytes that arrived in order, both since the socket was made. */
  readonly acknowledged: number;
  readonly received: number;
  /** Bytes in the send queue that were never sent. */
  readonly unsent: number;
  /** What the peer said last that it would take; of a kernel before 5.4 always 0. */
  readonly sendWindow: number;
}

export const ESTABLISHED = 1;

/** Asks TCP_INFO. Throws OUTLIVE_TCP_CALL_FAILED. */
export function tcpInfo(fd: number): TcpInfo {
  const view = new DataView(new ArrayBuffer(TCP_INFO_SIZE));
  getStructure(fd, IPPROTO_TCP, TCP_INFO, view);
  const options = view.getUint8(5);
  const scales = view.getUint8(6);
  const [low, high] = [scales & 15, scales >> 4];
  return {
    state: view.getUint8(0),
    timestamps: (options & 1) !== 0,
    sack: (options & 2) !== 0,
    // Two bit fields in one byte; their order follows that of the bytes.
    sendScale: LITTLE ? low : high,
    receiveScale: LITTLE ? high : low,
    sendMss: view.getUint32(16, LITTLE),
    window: view.getUint32(80, LITTLE),
    acknowledged: Number(view.getBigUint64(120, LITTLE)),
    received: Number(view.getBigUint64(128, LITTLE)),
    unsent: view.getUint32(144, LITTLE),
    sendWindow: view.getUint32(228, LITTLE),
  };
}
