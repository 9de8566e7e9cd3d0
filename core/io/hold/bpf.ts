import { createRequire } from 'node:module';
import { constants } from 'node:os';
import { CodedError } from '../../contract/index.js';
import { SLOT_SIZE } from './assembler.js';

/** What bpf(2) can be asked for: enum bpf_cmd of linux/bpf.h. */
const MAP_CREATE = 0;
const MAP_UPDATE = 2;
const MAP_DELETE = 3;
const PROG_LOAD = 5;
const PROG_TEST_RUN = 10;
const PROG_QUERY = 16;
const LINK_CREATE = 28;

/** enum bpf_map_type. */
export const MAP_HASH = 1;
export const MAP_ARRAY = 2;
/** Elements of a hash are allocated when they are added. */
export const NO_PREALLOC = 1;
/** The values of an array can be mapped into the process. */
export const MMAPABLE = 1024;

const PROG_TYPE_SCHED_CLS = 3;
const TCX_EGRESS = 47;

const PROT_READ_WRITE = 3;
const MAP_SHARED = 1;

/** The number of the system call bpf (asm/unistd.h). */
const SYSCALLS: Readonly<Record<string, number>> = { x64: 321, arm64: 280 };
/** Bytes of `union bpf_attr` that are handed over, at least what the commands above need; the rest is zero. */
const ATTRIBUTES = 128;
const LOG_SIZE = 64 * 1024;

interface Functions {
  bpf(command: number, attributes: Uint8Array): number;
  /** 0 or all ones: it failed. */
  mmap(length: number, fd: number): bigint;
  munmap(address: bigint, length: number): number;
  close(fd: number): number;
  address(bytes: Uint8Array): bigint;
  view(address: bigint, length: number): ArrayBuffer;
  errno(): number;
}

let functions: Functions | null = null;

/** koffi is native code, so it is loaded when it is first needed and not before. */
function load(): Functions {
  if (process.platform !== 'linux') throw unavailable(`it needs Linux, this is ${process.platform}`);
  const number = SYSCALLS[process.arch];
  if (number === undefined) throw unavailable(`it is made for x64 and arm64, this is ${process.arch}`);
  let koffi: typeof import('koffi');
  try {
    koffi = createRequire(import.meta.url)('koffi') as typeof import('koffi');
  } catch (cause) {
    throw unavailable(`koffi cannot be loaded: ${cause instanceof Error ? cause.message : String(cause)}`);
  }
  const library = koffi.load(null);
  // Declared with what bpf takes: a variadic function gets its arguments like any other on these machines.
  const syscall = library.func('syscall', 'long', ['long', 'int', 'void *', 'unsigned int']);
  const mmap = library.func('mmap', 'uintptr_t', ['uintptr_t', 'size_t', 'int', 'int', 'int', 'int64_t']);
  const munmap = library.func('munmap', 'int', ['uintptr_t', 'size_t']);
  const close = library.func('close', 'int', ['int']);
  return {
    bpf: (command, attributes) => Number(syscall(number, command, attributes, attributes.length)),
    mmap: (length, fd) => BigInt(mmap(0, length, PROT_READ_WRITE, MAP_SHARED, fd, 0)),
    munmap: (address, length) => munmap(address, length),
    close: (fd) => close(fd),
    address: (bytes) => koffi.address(bytes),
    view: (address, length) => koffi.view(address, length),
    errno: () => koffi.errno(),
  };
}

function libc(): Functions {
  functions ??= load();
  return functions;
}

/** An OUTLIVE_ACK_HOLD_UNAVAILABLE. @param why it cannot be done */
export function unavailable(why: string, cause?: unknown): CodedError {
  const message = `acknowledgements cannot be held back: ${why}`;
  return new CodedError('OUTLIVE_ACK_HOLD_UNAVAILABLE', 'system', message, { cause });
}

const NAMES = new Map(Object.entries(constants.errno).map(([name, value]) => [value, name]));

function failed(call: string): CodedError {
  const number = libc().errno();
  return unavailable(`${call}: ${NAMES.get(number) ?? `errno ${number}`}`);
}

/** `union bpf_attr`, filled in by offset. */
class Attributes {
  readonly bytes = new Uint8Array(ATTRIBUTES);
  readonly #view = new DataView(this.bytes.buffer);

  word(offset: number, value: number): this {
    this.#view.setUint32(offset, value, true);
    return this;
  }

  pointer(offset: number, to: Uint8Array): this {
    this.#view.setBigUint64(offset, libc().address(to), true);
    return this;
  }

  /** A name for `bpftool`, at most 15 characters. */
  name(offset: number, name: string): this {
    this.bytes.set(Buffer.from(name, 'latin1'), offset);
    return this;
  }

  read(offset: number): number {
    return this.#view.getUint32(offset, true);
  }
}

function ask(command: number, attributes: Attributes, call: string): number {
  const result = libc().bpf(command, attributes.bytes);
  if (result < 0) throw failed(call);
  return result;
}

/** What a map is like; `type` and `flags` are those above, sizes are in bytes. */
export interface MapShape {
  readonly name: string;
  readonly type: number;
  readonly keySize: number;
  readonly valueSize: number;
  readonly entries: number;
  readonly flags: number;
}

/** Makes a map. Throws OUTLIVE_ACK_HOLD_UNAVAILABLE. @returns its descriptor */
export function createMap(shape: MapShape): number {
  const { name, type, keySize, valueSize, entries, flags } = shape;
  const attributes = new Attributes().word(0, type).word(4, keySize).word(8, valueSize).word(12, entries);
  return ask(MAP_CREATE, attributes.word(16, flags).name(28, name), 'bpf MAP_CREATE');
}

/** Sets an entry of a map. @returns whether there was room for it */
export function setEntry(map: number, key: Uint8Array, value: Uint8Array): boolean {
  return libc().bpf(MAP_UPDATE, new Attributes().word(0, map).pointer(8, key).pointer(16, value).bytes) === 0;
}

/** Takes an entry out of a map, if it is there. */
export function deleteEntry(map: number, key: Uint8Array): void {
  libc().bpf(MAP_DELETE, new Attributes().word(0, map).pointer(8, key).bytes);
}

/**
 * Hands a program for the traffic of an interface to the kernel, which proves that it ends and reads nothing but what is its own.
 * Throws OUTLIVE_ACK_HOLD_UNAVAILABLE with the end of the kernel's reasoning if it does not pass.
 * @returns the program's descriptor
 */
export function loadProgram(name: string, instructions: Uint8Array): number {
  const attempt = (log: Uint8Array | null): number => {
    const attributes = new Attributes().word(0, PROG_TYPE_SCHED_CLS).word(4, instructions.length / SLOT_SIZE);
    attributes.pointer(8, instructions).pointer(16, Buffer.from('Apache-2.0\0', 'latin1')).name(48, name);
    if (log !== null) attributes.word(24, 1).word(28, log.length).pointer(32, log);
    return libc().bpf(PROG_LOAD, attributes.word(68, TCX_EGRESS).bytes);
  };
  const fd = attempt(null);
  if (fd >= 0) return fd;
  const { message } = failed('bpf PROG_LOAD');
  const log = Buffer.alloc(LOG_SIZE);
  const again = attempt(log);
  if (again >= 0) return again;
  // The last line counts instructions, the ones before say what was wrong.
  const lines = log.toString('latin1').split('\0', 1)[0].trim().split('\n').slice(-3, -1);
  throw new CodedError('OUTLIVE_ACK_HOLD_UNAVAILABLE', 'system', [message, ...lines].join('; '));
}

/**
 * Runs a program of `loadProgram` over a frame that goes nowhere.
 * @param frame with its Ethernet header, checksums complete
 * @returns what the program said, and the frame as it is then
 */
export function tryProgram(program: number, frame: Uint8Array): { action: number; frame: Uint8Array } {
  const out = new Uint8Array(frame.length + 256);
  const attributes = new Attributes().word(0, program).word(8, frame.length).word(12, out.length);
  attributes.pointer(16, frame).pointer(24, out).word(32, 1);
  ask(PROG_TEST_RUN, attributes, 'bpf PROG_TEST_RUN');
  return { action: attributes.read(4) | 0, frame: out.subarray(0, attributes.read(12)) };
}

/** Whether the kernel can attach programs to the egress of an interface by a link (TCX, Linux 6.6). @param index of an interface */
export function hasEgressLinks(index: number): boolean {
  return libc().bpf(PROG_QUERY, new Attributes().word(0, index).word(4, TCX_EGRESS).bytes) === 0;
}

/** How many programs are attached to the egress of an interface by links. Throws OUTLIVE_ACK_HOLD_UNAVAILABLE. */
export function egressPrograms(index: number): number {
  const attributes = new Attributes().word(0, index).word(4, TCX_EGRESS);
  ask(PROG_QUERY, attributes, 'bpf PROG_QUERY');
  return attributes.read(24);
}

/**
 * Attaches a program to the egress of an interface, for as long as the descriptor that this gives back is open: it goes with
 * the process, however that ends. Throws OUTLIVE_ACK_HOLD_UNAVAILABLE.
 * @param index the interface's number
 */
export function attachEgress(program: number, index: number): number {
  const attributes = new Attributes().word(0, program).word(4, index).word(8, TCX_EGRESS);
  return ask(LINK_CREATE, attributes, 'bpf LINK_CREATE');
}

/** Values of an array, as memory of this process. */
export interface SharedArray {
  readonly words: Uint32Array;
  /** Gives the memory back; touching `words` afterwards would crash the process. */
  release(): void;
}

/** Maps the values of an MMAPABLE array. Throws OUTLIVE_ACK_HOLD_UNAVAILABLE. @param length bytes of all values */
export function mapArray(map: number, length: number): SharedArray {
  const address = libc().mmap(length, map);
  if (address === 0n || address === (1n << 64n) - 1n) throw failed('mmap of a BPF array');
  try {
    const words = new Uint32Array(libc().view(address, length));
    return { words, release: () => libc().munmap(address, length) };
  } catch (cause) {
    libc().munmap(address, length);
    throw unavailable('this runtime has no external memory', cause);
  }
}

/** Closes a descriptor. */
export function closeDescriptor(fd: number): void {
  libc().close(fd);
}
