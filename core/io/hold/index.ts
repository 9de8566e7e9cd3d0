import { addressBytes, type Endpoint, interfaceIndex } from '../tcp/address.js';
import {
  AF_INET,
  check,
  closeSocket,
  IPPROTO_TCP,
  LITTLE,
  libc,
  moveOnto,
  openSocket,
  SIOCGIFHWADDR,
  SO_REUSEADDR,
  SOCK_STREAM,
  SOL_SOCKET,
  TCP_REPAIR,
  tryOption,
} from '../tcp/libc.js';
import {
  attachEgress,
  closeDescriptor,
  createMap,
  deleteEntry,
  hasEgressLinks,
  loadProgram,
  MAP_ARRAY,
  MAP_HASH,
  MMAPABLE,
  mapArray,
  NO_PREALLOC,
  type SharedArray,
  setEntry,
  unavailable,
} from './bpf.js';
import { holdProgram, KEPT_BACK, KEY_SIZE, PROD, SLOT_WORDS, TOLD, WATERMARK } from './program.js';

/** Both ends of a connection, seen from here. */
export interface Connection {
  readonly local: Endpoint;
  readonly remote: Endpoint;
}

/** One connection whose acknowledgements are held back. */
export interface Held {
  /**
   * The peer's bytes up to here are safe; segments that leave from now on may acknowledge them. One store into memory, no system
   * call. Nothing is sent by it: the next segment that leaves anyway carries the number; `behind` and `prod` are for traffic that
   * goes one way.
   * @param sequence sequence number (exclusive), taken modulo 2^32; never lower than before. A FIN counts like a byte
   */
  acknowledge(sequence: number): void;
  /**
   * Bytes that may be acknowledged by now and that the last segment that left had to keep back; 0 if it kept nothing back. If
   * nothing else is about to leave, the peer learns of them only by `prod`, or when it sends something again.
   */
  readonly behind: number;
  /**
   * Makes the kernel send an acknowledgement at once if the peer is `behind` at all: three system calls. Not for a socket in repair mode,
   * which it would leave. Needs CAP_NET_ADMIN.
   * @param fd descriptor of the connection's socket
   * @returns whether one left
   */
  prod(fd: number): boolean;
  /**
   * Lets the kernel acknowledge what it has from now on. Before a connection is closed in the ordinary way, and not when it is
   * left to another host.
   */
  remove(): void;
}

/** How many connections one AckHold has room for, unless told. */
export const DEFAULT_CONNECTIONS = 65_536;

const WORD = 4;

/** Everything that the kernel gave for one program, so that it can be given back. */
interface Parts {
  readonly connections: number;
  readonly slots: number;
  readonly program: number;
  readonly shared: SharedArray;
  release(): void;
}

/** Throws OUTLIVE_ACK_HOLD_UNAVAILABLE. @param room for how many connections */
function loadParts(room: number): Parts {
  if (!LITTLE) throw unavailable('it is made for little-endian machines');
  const undo: (() => void)[] = [];
  const release = (): void => {
    for (const step of undo.reverse()) step();
  };
  const owned = (fd: number): number => {
    undo.push(() => closeDescriptor(fd));
    return fd;
  };
  try {
    const connections = owned(
      createMap({
        name: 'outlive_conns',
        type: MAP_HASH,
        keySize: KEY_SIZE,
        valueSize: WORD,
        entries: room,
        flags: NO_PREALLOC,
      }),
    );
    const valueSize = SLOT_WORDS * WORD;
    const slots = owned(
      createMap({
        name: 'outlive_slots',
        type: MAP_ARRAY,
        keySize: WORD,
        valueSize,
        entries: room,
        flags: MMAPABLE,
      }),
    );
    const shared = mapArray(slots, room * valueSize);
    undo.push(() => shared.release());
    const program = owned(loadProgram('outlive_hold', holdProgram(connections, slots)));
    return { connections, slots, program, shared, release };
  } catch (error) {
    release();
    throw error;
  }
}

/**
 * Why acknowledgements cannot be held back here, or null. Loads the program for a moment, so the answer is that of this kernel and
 * this user: Linux 6.6 or newer with CONFIG_BPF_SYSCALL and CONFIG_NET_XGRESS, CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN.
 */
export function ackHoldUnavailable(): string | null {
  try {
    loadParts(1).release();
    // The loopback interface is there in every network namespace.
    return hasEgressLinks(interfaceIndex('lo')) ? null : 'the kernel has no TCX links (Linux 6.6, CONFIG_NET_XGRESS)';
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}

/**
 * Holds back the kernel's acknowledgements of bytes that are not safe yet. The kernel acknowledges what it received, before the
 * process has read it and long before another host has it; the peer then forgets these bytes, and they are lost with this
 * host. A program at the egress of an interface lowers the acknowledgement number of what leaves to a watermark that the process
 * sets for each connection, so that the peer's own kernel keeps the bytes and sends them again to whoever goes on.
 *
 * The program lives as long as its link: it is gone when the process is, unless another process holds the link as well. Connections that go
 * on without the process (their sockets being held by another one) are acknowledged by the kernel as ever when it is gone.
 */
export class AckHold {
  readonly #parts: Parts;
  readonly #link: number;
  readonly #room: number;
  /** Shared with the program, and plain memory once closed, so that a late `acknowledge` hits nothing. */
  #words: Uint32Array;
  #closed = false;
  /** Slots from here on were never used. */
  #fresh = 0;
  /** Used and given back, the longest free first: the kernel may still be at work on a segment of the last owner. */
  readonly #free = new Set<number>();
  readonly #held = new Map<string, HeldConnection>();

  private constructor(parts: Parts, link: number, room: number) {
    this.#parts = parts;
    this.#link = link;
    this.#room = room;
    this.#words = parts.shared.words;
  }

  /**
   * Attaches to an interface. Connections that leave by another one are not held. Throws OUTLIVE_ACK_HOLD_UNAVAILABLE, and
   * OUTLIVE_TCP_ADDRESS where there is no such interface.
   * @param networkInterface its name; one with Ethernet headers, which the loopback interface has as well
   * @param room for how many connections; each takes 32 bytes at once, and about 100 in the kernel while it is held
   * @param reserved a descriptor whose number the link gets; for connections that are there already, and must be closed before it
   */
  static attach(networkInterface: string, room = DEFAULT_CONNECTIONS, reserved: number | null = null): AckHold {
    const parts = loadParts(room);
    try {
      const index = interfaceIndex(networkInterface);
      if (!hasEthernetHeaders(networkInterface)) throw unavailable(`${networkInterface} has no Ethernet headers`);
      const link = attachEgress(parts.program, index);
      if (reserved !== null) moveOnto(link, reserved);
      return new AckHold(parts, reserved ?? link, room);
    } catch (error) {
      parts.release();
      throw error;
    }
  }

  /** As long as somebody has a duplicate of this descriptor, acknowledgements are held where they are, also without this process. */
  get descriptor(): number {
    return this.#link;
  }

  /** How many connections are held. */
  get size(): number {
    return this.#held.size;
  }

  /**
   * Holds a connection's acknowledgements from now on. What the kernel has acknowledged before is not taken back. One that has the same
   * ends as one that is held takes its place.
   * @param position sequence number (modulo 2^32) up to which, exclusive, the peer's bytes may be acknowledged now
   * @returns null when there is no room. Throws OUTLIVE_TCP_ADDRESS for an address that is not numeric
   */
  add(connection: Connection, position: number): Held | null {
    if (this.#closed) return null;
    const key = keyOf(connection);
    const name = Buffer.from(key).toString('latin1');
    this.#held.get(name)?.remove();
    const slot = this.#takeSlot();
    if (slot === null) return null;
    const first = slot * SLOT_WORDS;
    this.#words.fill(0, first, first + SLOT_WORDS);
    this.#words[first + WATERMARK] = position;
    const value = new Uint8Array(Uint32Array.of(slot).buffer);
    if (!setEntry(this.#parts.connections, key, value)) {
      this.#free.add(slot);
      return null;
    }
    const held = new HeldConnection(this.#words, first, () => {
      deleteEntry(this.#parts.connections, key);
      this.#held.delete(name);
      this.#free.add(slot);
    });
    this.#held.set(name, held);
    return held;
  }

  #takeSlot(): number | null {
    if (this.#fresh < this.#room) return this.#fresh++;
    for (const slot of this.#free) {
      this.#free.delete(slot);
      return slot;
    }
    return null;
  }

  /** Detaches. All connections are acknowledged by the kernel as ever from now on. What `add` gave may still be called. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    closeDescriptor(this.#link);
    this.#words = new Uint32Array(SLOT_WORDS);
    for (const held of this.#held.values()) held.detach(this.#words);
    this.#held.clear();
    this.#parts.release();
  }
}

class HeldConnection implements Held {
  #words: Uint32Array;
  #first: number;
  #release: (() => void) | null;

  constructor(words: Uint32Array, first: number, release: () => void) {
    this.#words = words;
    this.#first = first;
    this.#release = release;
  }

  acknowledge(sequence: number): void {
    this.#words[this.#first + WATERMARK] = sequence;
  }

  get behind(): number {
    const at = this.#first;
    return this.#words[at + KEPT_BACK] === 1 ? (this.#words[at + WATERMARK] - this.#words[at + TOLD]) >>> 0 : 0;
  }

  prod(fd: number): boolean {
    if (this.behind === 0) return false;
    const at = this.#first + PROD;
    this.#words[at] = 1;
    // Leaving repair mode makes the kernel send a window probe (tcp(7) has nothing of it; net/ipv4/tcp.c, do_tcp_setsockopt),
    // which the program turns into an acknowledgement. It also forgets SO_REUSEADDR, without which the port could not be listened on anew.
    if (tryOption(fd, IPPROTO_TCP, TCP_REPAIR, 1)) {
      tryOption(fd, IPPROTO_TCP, TCP_REPAIR, 0);
      tryOption(fd, SOL_SOCKET, SO_REUSEADDR, 1);
    }
    const left = this.#words[at] === 0;
    this.#words[at] = 0;
    return left;
  }

  remove(): void {
    const release = this.#release;
    if (release === null) return;
    // The slot may soon be another connection's.
    this.detach(new Uint32Array(SLOT_WORDS));
    release();
  }

  /** Goes on with memory that nobody else reads. */
  detach(words: Uint32Array): void {
    this.#words = words;
    this.#first = 0;
    this.#release = null;
  }
}

/** Hardware types (linux/if_arp.h), and where `struct ifreq` (netdevice(7)) has its name, its value and its end. */
const ARPHRD_ETHER = 1;
const ARPHRD_LOOPBACK = 772;
const IFREQ = { value: 16, size: 40 };

/** Tunnels like WireGuard have none: the program would find no connection and hold nothing. Throws OUTLIVE_TCP_CALL_FAILED. */
function hasEthernetHeaders(networkInterface: string): boolean {
  const request = new DataView(new ArrayBuffer(IFREQ.size));
  new TextEncoder().encodeInto(networkInterface, new Uint8Array(request.buffer));
  const fd = openSocket(AF_INET, SOCK_STREAM, 0);
  try {
    check(libc().ioctl(fd, SIOCGIFHWADDR, request), 'ioctl SIOCGIFHWADDR');
  } finally {
    closeSocket(fd);
  }
  const type = request.getUint16(IFREQ.value, true);
  return type === ARPHRD_ETHER || type === ARPHRD_LOOPBACK;
}

/** The key of a connection in the program's map. */
function keyOf({ local, remote }: Connection): Uint8Array {
  const key = new Uint8Array(KEY_SIZE);
  key.set(mapped(local.address), 0);
  key.set(mapped(remote.address), 16);
  const ports = new DataView(key.buffer, 32);
  ports.setUint16(0, local.port);
  ports.setUint16(2, remote.port);
  return key;
}

/** 16 bytes of an address, those of ::ffff:a.b.c.d for an IPv4 one. */
function mapped(address: string): Uint8Array {
  const bytes = addressBytes(address);
  if (bytes.length === 16) return bytes;
  return Uint8Array.of(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, ...bytes);
}
