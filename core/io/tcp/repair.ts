import { CodedError } from '../../contract/index.js';
import { addressBytes, type Endpoint, endpointsOf, socketAddress } from './address.js';
import {
  AF_INET,
  AF_INET6,
  ask,
  attachFilter,
  check,
  closeSocket,
  DEAF,
  detachFilter,
  duplicate,
  ESTABLISHED,
  errorName,
  getOption,
  getStructure,
  IP_TRANSPARENT,
  IPPROTO_IP,
  IPPROTO_IPV6,
  IPPROTO_TCP,
  IPV6_TRANSPARENT,
  libc,
  MSG_DONTWAIT,
  MSG_NOSIGNAL,
  MSG_PEEK,
  openSocket,
  SIOCINQ,
  SIOCOUTQ,
  SO_BUF_LOCK,
  SO_LINGER,
  SO_REUSEADDR,
  SO_SNDBUFFORCE,
  SOCK_STREAM,
  SOL_SOCKET,
  setOption,
  setStructure,
  TCP_MAXSEG,
  TCP_NODELAY,
  TCP_QUEUE_SEQ,
  TCP_REPAIR,
  TCP_REPAIR_OPTIONS,
  TCP_REPAIR_QUEUE,
  TCP_REPAIR_WINDOW,
  TCP_RTO_MAX_MS,
  TCP_TIMESTAMP,
  tcpInfo,
  tryOption,
} from './libc.js';

/** Values of TCP_REPAIR: leaving sends a window probe, or nothing. */
const REPAIR_ON = 1;
const REPAIR_OFF = 0;
const REPAIR_OFF_SILENT = -1;
/** Values of TCP_REPAIR_QUEUE. */
const NO_QUEUE = 0;
const RECEIVE_QUEUE = 1;
const SEND_QUEUE = 2;

/** Kinds of TCP options as TCP_REPAIR_OPTIONS names them (RFC 9293 section 3.2, RFC 7323, RFC 2018). */
const OPTION_MSS = 2;
const OPTION_WINDOW_SCALE = 3;
const OPTION_SACK = 4;
const OPTION_TIMESTAMPS = 8;

/** How much further than the time that passed a timestamp is set: two clocks, and bytes that left after it was asked. */
const TIMESTAMP_MARGIN_MS = 1000;
/** Clocks of two hosts may drift apart by more than the margin on a connection that is days old: one part in this many. */
const TIMESTAMP_DRIFT = 1024;

/** The most that TCP_MAXSEG takes (MAX_TCP_WINDOW in include/net/tcp.h). */
const MAX_MSS = 32_767;

/** Queues up to this size fit what every kernel gives a new socket (net.ipv4.tcp_wmem). */
const SMALL_QUEUE = 8 * 1024;

/**
 * What the retransmission timer of a restored connection is limited to (TCP_RTO_MAX_MS, Linux 6.15; 1000 at least). A client that
 * does not read counts as dead when it was not heard for twice as long (net/ipv4/tcp_timer.c tcp_rtx_probe0_timed_out). As its queue is not
 * new to it, the first timer, after 1 s, is a tail loss probe, for which its window has no room, and only the next one makes it answer:
 * with 1000 that came too late by some ms, and the connection was lost (seen on Linux 6.18).
 */
const RTO_MAX_MS = 1500;
/** The limit of every ordinary connection (RFC 9293 leaves it to the implementation; net/ipv4/tcp.c). */
const RTO_MAX_DEFAULT_MS = 120_000;

/**
 * What a survivor must know of a connection: plain data that can be cloned, taken once while the connection is fresh.
 * Positions in both streams are counted from 0; sequence numbers are those of the wire, modulo 2^32.
 */
export interface TcpIdentity {
  readonly family: 4 | 6;
  readonly local: Endpoint;
  readonly remote: Endpoint;
  /** Sequence number of byte 0 of what we send. */
  readonly sendBase: number;
  /** Sequence number of byte 0 of what the client sends. */
  readonly receiveBase: number;
  /** Largest segment that the client takes. */
  readonly mss: number;
  /** Shift counts of the windows that the client advertises, and of ours. */
  readonly sendScale: number;
  readonly receiveScale: number;
  readonly sack: boolean;
  readonly timestamps: boolean;
  /** TCP_TIMESTAMP when it was asked. Opaque: its lowest bit tells the unit (ms, or us when set). */
  readonly timestamp: number;
  /** `struct tcp_repair_window`: snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup. */
  readonly window: readonly number[];
}

/** A connection as it shall live on. */
export interface TcpImage {
  readonly identity: TcpIdentity;
  /** Bytes of the client that we have. */
  readonly received: number;
  /** Position in our stream up to which the client surely has it. */
  readonly acknowledged: number;
  /** Our bytes from that position on. What the client has of them already, TCP itself drops. */
  readonly unacknowledged: readonly Uint8Array[];
  /** How many of the last of these surely never left the old host. Known after a freeze, absent after a crash. */
  readonly unsent?: number;
  /** Milliseconds since `identity` was taken. */
  readonly elapsed: number;
}

/** A connection that stands still. */
export interface FrozenTcp {
  /** A descriptor of its own, so that the socket lives until {@link discard} or {@link thawInPlace}. */
  readonly fd: number;
  /** What the other host needs, with an `elapsed` of 0. It counts the `unread` bytes as received. */
  readonly image: TcpImage;
  /** The client's last bytes, which no reader was given. */
  readonly unread: Uint8Array;
}

/** A socket that is ready to take a connection on, and deaf and mute until {@link release}. */
export interface RestoredTcp {
  readonly fd: number;
  readonly image: TcpImage;
}

/** Whether connections can be moved here: null, or why not (no Linux, no koffi, no CAP_NET_ADMIN). */
export function tcpRepairUnavailable(): string | null {
  try {
    const fd = openSocket(AF_INET, SOCK_STREAM, 0);
    try {
      if (tryOption(fd, IPPROTO_TCP, TCP_REPAIR, REPAIR_ON)) return null;
      return `TCP_REPAIR: ${errorName()} (it needs root or CAP_NET_ADMIN)`;
    } finally {
      closeSocket(fd);
    }
  } catch (error) {
    return (error as Error).message;
  }
}

/**
 * Asks for what a survivor must know. The socket is in repair mode for some microseconds, which the peer does not notice.
 * Throws OUTLIVE_TCP_NOT_MOVABLE for a connection that is not (or no longer) fully open, OUTLIVE_TCP_CALL_FAILED, and
 * OUTLIVE_TCP_REPAIR_UNAVAILABLE.
 * @param received bytes that the reader was given so far
 * @param written bytes handed to the kernel so far
 */
export function identify(fd: number, received: number, written: number): TcpIdentity {
  setOption(fd, IPPROTO_TCP, TCP_REPAIR, REPAIR_ON);
  try {
    return identityOf(fd, received, written);
  } finally {
    leaveRepair(fd, REPAIR_OFF_SILENT);
  }
}

/** How many bytes of the peer the kernel has that nobody has read. Throws OUTLIVE_TCP_CALL_FAILED. */
export function unread(fd: number): number {
  return ask(fd, SIOCINQ);
}

/** Bytes that the kernel was given and the peer has not acknowledged. Throws OUTLIVE_TCP_CALL_FAILED. */
export function unacknowledged(fd: number): number {
  return ask(fd, SIOCOUTQ);
}

/**
 * The bytes that {@link unacknowledged} counts; a few more when the peer acknowledges at this moment. The connection goes on.
 * Throws like {@link identify}.
 */
export function unacknowledgedBytes(fd: number): Uint8Array {
  if (ask(fd, SIOCOUTQ) === 0) return new Uint8Array(0);
  setOption(fd, IPPROTO_TCP, TCP_REPAIR, REPAIR_ON);
  try {
    return peek(fd, SEND_QUEUE, ask(fd, SIOCOUTQ));
  } finally {
    tryOption(fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, NO_QUEUE);
    leaveRepair(fd, REPAIR_OFF_SILENT);
  }
}

/**
 * Stops a connection for a planned move and takes everything that another host needs. From now on nothing that arrives is
 * acknowledged, and closing the socket is silent. Throws like {@link identify}, and the connection goes on then.
 * @param received bytes that the reader was given; it must have stopped reading
 * @param written bytes handed to the kernel. What a wire still has under way may follow: it goes into the queue, is in nobody's
 *   image, and is sent after {@link thawInPlace} only
 */
export function freeze(fd: number, received: number, written: number): FrozenTcp {
  // The kernel would acknowledge bytes that arrive behind our last look, and they would be gone.
  attachFilter(fd, DEAF);
  // It may stand still for longer than the limit of a restored connection lets its client be silent.
  settle(fd);
  try {
    setOption(fd, IPPROTO_TCP, TCP_REPAIR, REPAIR_ON);
    // In this state what was not sent yet is not sent any more: timers could still do it, behind our back.
    setOption(fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, SEND_QUEUE);
    const { unsent } = tcpInfo(fd);
    for (;;) {
      const queued = peek(fd, SEND_QUEUE, ask(fd, SIOCOUTQ));
      const unread = peek(fd, RECEIVE_QUEUE, ask(fd, SIOCINQ));
      const identity = identityOf(fd, received, written);
      // A segment that another CPU had let through before the filter was there may have come in meanwhile.
      if (sequence(fd, RECEIVE_QUEUE) !== at(identity.receiveBase, received + unread.length)) continue;
      setOption(fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, SEND_QUEUE);
      const acknowledged = written - queued.length;
      const image = {
        identity,
        received: received + unread.length,
        acknowledged,
        unacknowledged: [queued],
        unsent,
        elapsed: 0,
      };
      return { fd: duplicate(fd), image, unread };
    }
  } catch (error) {
    thawInPlace(fd);
    throw error;
  }
}

/** Lets a frozen connection go on where it is; what it said before the freeze is still in the kernel's queues. */
export function thawInPlace(fd: number): void {
  tryOption(fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, NO_QUEUE);
  detachFilter(fd);
  leaveRepair(fd, REPAIR_OFF);
}

/** Lets a connection go on that a process had frozen which is dead by now; does nothing to any other. */
export function thawIfFrozen(fd: number): void {
  if (getOption(fd, IPPROTO_TCP, TCP_REPAIR) === REPAIR_ON) thawInPlace(fd);
}

/** Takes so many bytes from what a socket has received. @returns how many there were */
export function skip(fd: number, length: number): number {
  if (length <= 0) return 0;
  const taken = libc().recv(fd, new Uint8Array(length), length, MSG_DONTWAIT);
  return Math.max(0, taken);
}

/**
 * Makes the socket of a connection that lived elsewhere: bound to its address even if that is not here yet and something
 * listens on the same port, in repair mode, hearing and sending nothing. Throws OUTLIVE_TCP_CALL_FAILED (EADDRNOTAVAIL: the
 * connection is here already; EINVAL: the image is not sound) and OUTLIVE_TCP_REPAIR_UNAVAILABLE.
 */
export function restore(image: TcpImage): RestoredTcp {
  const { identity } = image;
  const six = identity.family === 6;
  const fd = openSocket(six ? AF_INET6 : AF_INET, SOCK_STREAM, 0);
  try {
    setOption(fd, IPPROTO_TCP, TCP_REPAIR, REPAIR_ON);
    attachFilter(fd, DEAF);
    // A non-local address may be bound, and packets may be routed from it, before it is moved here.
    if (six) setOption(fd, IPPROTO_IPV6, IPV6_TRANSPARENT, 1);
    else setOption(fd, IPPROTO_IP, IP_TRANSPARENT, 1);
    const local = socketAddress(identity.local);
    check(libc().bind(fd, local, local.length), 'bind');
    setSequence(fd, RECEIVE_QUEUE, at(identity.receiveBase, image.received));
    setSequence(fd, SEND_QUEUE, at(identity.sendBase, image.acknowledged));
    // What connect() takes for the client's own limit (tcp_connect_init in net/ipv4/tcp_output.c): the one that is told below comes too late
    // for the size of segments, which would stay at 536 bytes.
    tryOption(fd, IPPROTO_TCP, TCP_MAXSEG, Math.min(identity.mss, MAX_MSS));
    const remote = socketAddress(identity.remote);
    // In repair mode the connection is established at once and nothing is sent.
    check(libc().connect(fd, remote, remote.length), 'connect');
    setStructure(fd, IPPROTO_TCP, TCP_REPAIR_OPTIONS, repairOptions(identity));
    if (identity.timestamps) {
      setOption(fd, IPPROTO_TCP, TCP_TIMESTAMP, nextTimestamp(identity.timestamp, image.elapsed));
    }
    setStructure(fd, IPPROTO_TCP, TCP_REPAIR_WINDOW, repairWindow(image));
    // Without it the last short segment of the queue would wait for acknowledgements.
    setOption(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    // A new socket knows no round-trip time and would wait 3 s before it sends something again.
    tryOption(fd, IPPROTO_TCP, TCP_RTO_MAX_MS, RTO_MAX_MS);
    return { fd, image };
  } catch (error) {
    closeSocket(fd);
    throw error;
  }
}

/**
 * Lets a restored connection live: its queue is filled, and the kernel sends a window probe, so that the client answers with
 * its own positions. Throws OUTLIVE_TCP_CALL_FAILED; the socket is closed silently then.
 */
export function release({ fd, image }: RestoredTcp): void {
  const bytes = image.unacknowledged;
  const total = bytes.reduce((sum, chunk) => sum + chunk.length, 0);
  try {
    if (total > SMALL_QUEUE) setOption(fd, SOL_SOCKET, SO_SNDBUFFORCE, total + total / 2 + SMALL_QUEUE);
    const { sendMss, window } = tcpInfo(fd);
    const fresh = image.unsent ?? (total <= sendMss * window ? total : 0);
    // Bytes in the queue count as sent, so the client may acknowledge any of them; but what it lacks is sent again by a
    // timer only. A few bytes are better sent at once: the client throws away what it has.
    setOption(fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, SEND_QUEUE);
    const left = sendAll(fd, bytes, total - fresh);
    setOption(fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, NO_QUEUE);
    detachFilter(fd);
    // The address is here by now. A socket that may speak from any would go on doing so when the address is taken away.
    if (image.identity.family === 6) setOption(fd, IPPROTO_IPV6, IPV6_TRANSPARENT, 0);
    else setOption(fd, IPPROTO_IP, IP_TRANSPARENT, 0);
    leaveRepair(fd, REPAIR_OFF);
    sendAll(fd, left, fresh);
    // The size was given by force, which also ends the kernel's own choice.
    if (total > SMALL_QUEUE) tryOption(fd, SOL_SOCKET, SO_BUF_LOCK, 0);
  } catch (error) {
    discard(fd);
    throw error;
  }
}

/** Lets a connection that stood still repeat what is not answered as often as a restored one, until {@link settle}. */
export function hurry(fd: number): void {
  tryOption(fd, IPPROTO_TCP, TCP_RTO_MAX_MS, RTO_MAX_MS);
}

/** Gives a connection whose client was heard the ordinary retransmission limit. */
export function settle(fd: number): void {
  tryOption(fd, IPPROTO_TCP, TCP_RTO_MAX_MS, RTO_MAX_DEFAULT_MS);
}

/** Closes a descriptor; the peer is told nothing. Not for a descriptor that a wire holds. */
export function discard(fd: number): void {
  // A socket that is closed in repair mode sends neither FIN nor RST.
  tryOption(fd, IPPROTO_TCP, TCP_REPAIR, REPAIR_ON);
  closeSocket(fd);
}

/** Closes a descriptor, and the peer gets a RST. Not for a descriptor that a wire holds. */
export function resetConnection(fd: number): void {
  detachFilter(fd);
  tryOption(fd, IPPROTO_TCP, TCP_REPAIR, REPAIR_OFF_SILENT);
  // `struct linger`: on, 0 seconds.
  setStructure(fd, SOL_SOCKET, SO_LINGER, Int32Array.of(1, 0));
  closeSocket(fd);
}

/** The sequence number of a position in a stream. */
export function at(base: number, position: number): number {
  // Modulo 2^32, also of a position before the first one; exact, as both are far below 2^53.
  return (base + position) >>> 0;
}

/**
 * The timestamp clock of a connection that goes on elsewhere: never behind what the client has seen, or it would drop every
 * segment (PAWS, RFC 7323 section 5).
 * @param elapsed milliseconds since it was asked
 */
export function nextTimestamp(timestamp: number, elapsed: number): number {
  // The lowest bit is no part of the clock: it tells the kernel (6.7 and later) that the unit is a microsecond.
  const unit = timestamp & 1;
  const ahead = Math.ceil(elapsed + elapsed / TIMESTAMP_DRIFT + TIMESTAMP_MARGIN_MS) * (unit === 1 ? 1000 : 1);
  return (((timestamp + ahead) & ~1) | unit) >>> 0;
}

/** The value of TCP_REPAIR_WINDOW for a connection that goes on. */
export function repairWindow({ identity, received, unacknowledged: bytes, unsent }: TcpImage): Uint32Array {
  const [, sendWindow, maxWindow, receiveWindow, announcedAt] = identity.window;
  const next = at(identity.receiveBase, received);
  // What the client may send was promised by the old host: how far is known after a freeze, after a crash it is guessed.
  const promised = unsent === undefined ? receiveWindow : Math.max(0, receiveWindow - ((next - announcedAt) >>> 0));
  // After a crash the client's window is not known; a short queue is sent whole, whatever it was when the session opened.
  const total = bytes.reduce((sum, chunk) => sum + chunk.length, 0);
  const window = unsent === undefined ? Math.max(sendWindow, Math.min(total, 65535)) : sendWindow;
  // snd_wl1 lies one before the next byte, so that any segment of the client brings its true window.
  return Uint32Array.of((next - 1) >>> 0, window, Math.max(maxWindow, window), promised, next);
}

/** The value of TCP_REPAIR_OPTIONS: pairs of option and value. */
function repairOptions(identity: TcpIdentity): Uint32Array {
  const pairs = [OPTION_MSS, identity.mss];
  // Always: else the kernel would take the scale that it would offer itself.
  pairs.push(OPTION_WINDOW_SCALE, identity.sendScale | (identity.receiveScale << 16));
  if (identity.sack) pairs.push(OPTION_SACK, 0);
  if (identity.timestamps) pairs.push(OPTION_TIMESTAMPS, 0);
  return Uint32Array.from(pairs);
}

/** The socket is in repair mode. */
function identityOf(fd: number, received: number, written: number): TcpIdentity {
  const { local, remote } = endpointsOf(fd);
  const family = addressBytes(local.address).length === 4 ? 4 : 6;
  if (family === 6 && /^fe[89ab]/.test(local.address)) {
    throw notMovable(`${local.address} is a link-local address, which has a meaning on this host only`);
  }
  const window = new Uint32Array(5);
  let next: number;
  let unread: number;
  do {
    next = sequence(fd, RECEIVE_QUEUE);
    unread = ask(fd, SIOCINQ);
    // Something may have arrived in between, so both are only good if nothing did.
  } while (sequence(fd, RECEIVE_QUEUE) !== next);
  const sent = sequence(fd, SEND_QUEUE);
  // While the send queue is selected, the kernel would take what it should send for sent.
  setOption(fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, NO_QUEUE);
  getStructure(fd, IPPROTO_TCP, TCP_REPAIR_WINDOW, window);
  const mss = getOption(fd, IPPROTO_TCP, TCP_MAXSEG);
  const timestamp = getOption(fd, IPPROTO_TCP, TCP_TIMESTAMP) >>> 0;
  // Asked last: a FIN counts as a byte, so the positions are only right if none has come.
  const info = tcpInfo(fd);
  if (info.state !== ESTABLISHED) throw notMovable('one side has closed it');
  return {
    family,
    local,
    remote,
    sendBase: (sent - written) >>> 0,
    receiveBase: (next - unread - received) >>> 0,
    mss,
    sendScale: info.sendScale,
    receiveScale: info.receiveScale,
    sack: info.sack,
    timestamps: info.timestamps,
    timestamp,
    window: [...window],
  };
}

function notMovable(why: string): CodedError {
  return new CodedError('OUTLIVE_TCP_NOT_MOVABLE', 'network', `the connection cannot be moved: ${why}`);
}

/** Leaves repair mode. The kernel forgets SO_REUSEADDR on this occasion, and a listener on the port could not be opened again. */
function leaveRepair(fd: number, how: number): void {
  tryOption(fd, IPPROTO_TCP, TCP_REPAIR, how);
  tryOption(fd, SOL_SOCKET, SO_REUSEADDR, 1);
}

/** The sequence number behind the last byte of a queue. */
function sequence(fd: number, queue: number): number {
  setOption(fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, queue);
  return getOption(fd, IPPROTO_TCP, TCP_QUEUE_SEQ) >>> 0;
}

function setSequence(fd: number, queue: number, value: number): void {
  setOption(fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, queue);
  setOption(fd, IPPROTO_TCP, TCP_QUEUE_SEQ, value);
}

/** A copy of the last `length` bytes of a queue, which stay where they are. */
function peek(fd: number, queue: number, length: number): Uint8Array {
  if (length === 0) return new Uint8Array(0);
  setOption(fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, queue);
  // The send queue is given in whole segments: a partly acknowledged one is in front of what was asked for.
  const buffer = new Uint8Array(length + 128 * 1024);
  const count = check(libc().recv(fd, buffer, buffer.length, MSG_PEEK | MSG_DONTWAIT), 'recv MSG_PEEK');
  // Some of them may have been acknowledged since they were counted.
  return buffer.slice(Math.max(0, count - length), count);
}

/** Gives the kernel the first `length` bytes of the chunks. @returns the rest of them */
function sendAll(fd: number, chunks: readonly Uint8Array[], length: number): Uint8Array[] {
  const rest = [...chunks];
  for (let left = length; left > 0; ) {
    const chunk = rest[0].subarray(0, left);
    const sent = chunk.length === 0 ? 0 : libc().send(fd, chunk, chunk.length, MSG_DONTWAIT | MSG_NOSIGNAL);
    check(sent, 'send');
    left -= sent;
    if (sent === rest[0].length) rest.shift();
    else rest[0] = rest[0].subarray(sent);
  }
  return rest;
}
