import type { Wire } from '../wire.js';
import { ADDRESS_SIZE, addressText, endpointOf } from './address.js';
import {
  AF_INET,
  AF_INET6,
  ask,
  attachFilter,
  closeSocket,
  getOption,
  type Instruction,
  IPPROTO_TCP,
  libc,
  MSG_DONTWAIT,
  MSG_TRUNC,
  openSocket,
  SIOCOUTQ,
  SO_KEEPALIVE,
  SO_RCVBUFFORCE,
  SOCK_RAW,
  SOL_SOCKET,
  TCP_KEEPIDLE,
  TCP_KEEPINTVL,
  tcpInfo,
  tryOption,
} from './libc.js';
import { nudge, openNudge } from './nudge.js';
import { at, hurry, settle, type TcpImage } from './repair.js';
import { openReset, resetClient } from './reset.js';
import { fdOf } from './wire.js';

/** How often the segments are looked at. */
const POLL_MS = 15;
/** Segments that are looked at in one go, so that a flood of them does not hold up everything else. */
const BATCH = 2000;
/** How long a client is given to say anything at all. */
const WATCH_MS = 10_000;
/** How long a client that is known to have sent what did not arrive yet is asked for it. */
const ASK_MS = 60_000;
/** How often a connection is looked at with which nothing is wrong any more. */
const IDLE_LOOK_MS = 250;
/** Bytes of a segment that are read: an IPv4 header and a TCP header, both with all their options. */
const HEADERS = 120;
/** Kernel memory for segments that wait to be looked at. */
const BUFFER = 4 * 1024 * 1024;
/** While no answer has come, the client is asked once a second. */
const PROBE_SECONDS = 1;
/** When a client that seems to lack an acknowledgement is nudged, in ms after that was first seen or its last bytes came. */
const NUDGES_MS = [0, 50, 150, 350, 700, 1100];
/** And from then on so often: what it sends again may be lost again, which doubles its retransmission time each time. */
const NUDGE_AGAIN_MS = 500;

/** How long a client may take to send what is missing, in milliseconds. */
export interface Graces {
  /** After it sent later bytes: they may have overtaken earlier ones, or those were lost and are sent again. */
  readonly dataMs: number;
  /** After it acknowledged something from a later position: it may be about to send again. */
  readonly acknowledgementMs: number;
}

/** One second is enough for a retransmission even where the way takes 200 ms; both leave 2 s in all. */
export const DEFAULT_GRACES: Graces = { dataMs: 1000, acknowledgementMs: 1500 };

/** A segment of a client: sequence numbers, and bytes of payload. */
export interface Segment {
  readonly sequence: number;
  readonly acknowledgement: number;
  readonly length: number;
}

/**
 * What became clear about an adopted connection. `agreed`: both sides are at the same positions. `lost`: the old host
 * acknowledged bytes that nobody has any more. `ahead`: the client has bytes of which we know nothing.
 */
export type Verdict = 'agreed' | 'lost' | 'ahead';

/** Whether `a` lies behind `b` in the stream, modulo 2^32 (RFC 9293 section 3.4). */
export function liesAfter(a: number, b: number): boolean {
  return ((b - a) | 0) < 0;
}

/** Decides about one connection. Pure: time, segments and positions are given. */
export class GapJudge {
  #dataSince = Number.POSITIVE_INFINITY;
  #acknowledgementSince = Number.POSITIVE_INFINITY;
  #heard = false;
  #ahead = false;
  #acknowledgement: number | null = null;
  #sent: number | null = null;
  #again: number | null = null;

  /** @param expected sequence number of the first byte that we do not have, when the connection was adopted */
  constructor(
    private readonly expected: number,
    private readonly graces: Graces = DEFAULT_GRACES,
  ) {}

  /** Sequence number behind the last byte that the client is known to have sent; null before it said anything. */
  get sent(): number | null {
    return this.#sent;
  }

  /** What the client acknowledged last, and so expects next; null before it said anything. */
  get acknowledgement(): number | null {
    return this.#acknowledgement;
  }

  /**
   * Sequence number of what the client sent again although it is no news, or not any more: an acknowledgement did not come to it. Null when it
   * sent nothing of that kind, or has gone on since.
   */
  get again(): number | null {
    return this.#again;
  }

  /**
   * The client sent something.
   * @param now milliseconds of any clock
   * @param written sequence number behind our last byte
   */
  segment(now: number, segment: Segment, written: number): void {
    this.#acknowledgement = segment.acknowledgement;
    // A segment without payload carries the number of what it would send next.
    const end = (segment.sequence + segment.length) >>> 0;
    if (this.#sent === null || liesAfter(end, this.#sent)) this.#sent = end;
    if (liesAfter(segment.acknowledgement, written)) this.#ahead = true;
    if (!liesAfter(segment.sequence, this.expected)) {
      // Bytes from the expected position on, or older ones, which the client would not repeat if later ones were acknowledged.
      // (A keep-alive probe carries the number before: a client at a gap of exactly one byte would be mistaken.)
      this.#heard = true;
      if (segment.length > 0) this.#again = segment.sequence;
      return;
    }
    this.#again = null;
    if (segment.length > 0) {
      this.#dataSince = Math.min(this.#dataSince, now);
    } else {
      this.#acknowledgementSince = Math.min(this.#acknowledgementSince, now);
    }
  }

  /** @param next sequence number of the first byte that we do not have now */
  verdict(now: number, next: number): Verdict | null {
    if (this.#ahead) return 'ahead';
    if (this.#heard || liesAfter(next, this.expected)) return 'agreed';
    const { dataMs, acknowledgementMs } = this.graces;
    const late = now - this.#dataSince >= dataMs || now - this.#acknowledgementSince >= acknowledgementMs;
    return late ? 'lost' : null;
  }
}

interface Watched {
  readonly wire: Wire;
  readonly image: TcpImage;
  readonly judge: GapJudge;
  readonly since: number;
  readonly keepAlive: readonly [idle: number, interval: number];
  decided: boolean;
  /** Nothing that the client is known to have sent is lacking any more. */
  complete: boolean;
  /** Sequence number of the first byte that we do not have. */
  next: number;
  /** Since when it is known that the client has sent that byte; null where it is not. */
  lackingSince: number | null;
  nudges: number;
  /** Its retransmission timer is limited. */
  hurried: boolean;
  lookAt: number;
}

/** The raw sockets of one family. */
interface Ear {
  readonly segments: number;
  readonly nudges: number;
  readonly resets: number;
  /** Local ports whose segments are let in. */
  readonly ports: Set<number>;
}

export interface GapOptions {
  /** The connection cannot go on. The client was sent a RST already; the wire is to be reset, too, to be rid of it here. */
  readonly onGap: (wire: Wire, what: 'lost' | 'ahead') => void;
  /** The client answered, and nothing is missing. */
  readonly onAgreed?: (wire: Wire) => void;
  readonly graces?: Graces;
}

/**
 * Listens to what the clients of adopted connections send and finds those that cannot go on: the kernel of a host that
 * crashed may have acknowledged bytes that no survivor has, which the client will never send again. Raw sockets see the
 * segments; they are only open while a connection is undecided, or lacks what its client has sent: such a client is nudged until it
 * has sent that again, and some times more in case the acknowledgement was lost. One that says nothing for 10 s is left alone.
 */
export class GapWatch {
  readonly #options: GapOptions;
  readonly #watched = new Map<string, Watched>();
  readonly #ears = new Map<4 | 6, Ear>();
  readonly #buffer = new Uint8Array(HEADERS);
  readonly #from = new Uint8Array(ADDRESS_SIZE);
  readonly #size = new Uint32Array(1);
  #timer: NodeJS.Timeout | null = null;
  #incomplete = 0;

  constructor(options: GapOptions) {
    this.#options = options;
  }

  /**
   * Opens the raw sockets. Called before the first connection is released, so that no answer is missed; `watch` does it, too.
   * Throws OUTLIVE_TCP_CALL_FAILED without CAP_NET_RAW.
   * @param port the local port of connections that will be watched
   */
  listen(family: 4 | 6, port: number): void {
    let ear = this.#ears.get(family);
    if (ear?.ports.has(port)) return;
    if (ear === undefined) {
      const segments = openSocket(family === 4 ? AF_INET : AF_INET6, SOCK_RAW, IPPROTO_TCP);
      ear = { segments, nudges: openNudge(family), resets: openReset(family), ports: new Set() };
      this.#ears.set(family, ear);
      tryOption(segments, SOL_SOCKET, SO_RCVBUFFORCE, BUFFER);
    }
    ear.ports.add(port);
    attachFilter(ear.segments, portFilter(family, [...ear.ports]));
    this.#timer ??= setInterval(() => this.#poll(), POLL_MS);
  }

  /**
   * Watches a connection that was just released, until the verdict. Its wire may be closed at any time. Throws as `listen`.
   * @param image what it was restored from
   */
  watch(wire: Wire, image: TcpImage): void {
    const fd = fdOf(wire);
    if (fd < 0) return;
    const { remote, local, family } = image.identity;
    this.listen(family, local.port);
    const keepAlive = [getOption(fd, IPPROTO_TCP, TCP_KEEPIDLE), getOption(fd, IPPROTO_TCP, TCP_KEEPINTVL)] as const;
    // The answer to the window probe of the release may be lost; then these are answered.
    tryOption(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
    tryOption(fd, IPPROTO_TCP, TCP_KEEPINTVL, PROBE_SECONDS);
    tryOption(fd, IPPROTO_TCP, TCP_KEEPIDLE, PROBE_SECONDS);
    const expected = at(image.identity.receiveBase, image.received);
    const judge = new GapJudge(expected, this.#options.graces);
    const key = keyOf(remote.address, remote.port, local.port);
    this.#watched.set(key, {
      wire,
      image,
      judge,
      since: performance.now(),
      keepAlive,
      decided: false,
      complete: false,
      next: expected,
      lackingSince: null,
      nudges: 0,
      hurried: true,
      lookAt: 0,
    });
    this.#incomplete++;
  }

  /** Ends everything. */
  close(): void {
    for (const key of [...this.#watched.keys()]) this.#leave(key);
    this.#deafen();
    if (this.#timer !== null) clearInterval(this.#timer);
    this.#timer = null;
  }

  #deafen(): void {
    for (const { segments, nudges, resets } of this.#ears.values()) {
      closeSocket(segments);
      closeSocket(nudges);
      closeSocket(resets);
    }
    this.#ears.clear();
  }

  #poll(): void {
    const now = performance.now();
    for (const [family, { segments }] of this.#ears) this.#hear(family, segments, now);
    for (const [key, watched] of this.#watched) this.#look(key, watched, now);
    if (this.#watched.size === 0) this.close();
    else if (this.#incomplete === 0) this.#deafen();
  }

  #hear(family: 4 | 6, socket: number, now: number): void {
    for (let count = 0; count < BATCH; count++) {
      this.#size[0] = ADDRESS_SIZE;
      const flags = MSG_DONTWAIT | MSG_TRUNC;
      const length = libc().recvfrom(socket, this.#buffer, HEADERS, flags, this.#from, this.#size);
      if (length < 0) return;
      const packet = this.#buffer.subarray(0, Math.min(length, HEADERS));
      const heard = parseSegment(family, packet, length);
      if (heard === null) continue;
      const address = family === 4 ? addressText(packet.subarray(12, 16)) : endpointOf(this.#from).address;
      const watched = this.#watched.get(keyOf(address, heard.remotePort, heard.localPort));
      if (watched === undefined || watched.complete) continue;
      const written = writtenOf(watched);
      if (written === null) continue;
      watched.judge.segment(now, heard, written);
      if (watched.judge.again !== heard.sequence || heard.length === 0) continue;
      // The kernel's own answer is on its way; what is due is due after it.
      watched.lackingSince = now;
      watched.nudges = 1;
    }
  }

  #look(key: string, watched: Watched, now: number): void {
    if (now < watched.lookAt) return;
    const { wire, image, judge } = watched;
    const fd = fdOf(wire);
    const age = now - watched.since;
    // Of one that was heard something becomes clear, however long that is to take.
    const waits = !watched.decided && judge.acknowledgement !== null;
    if (fd < 0 || (age >= (watched.lackingSince === null ? WATCH_MS : ASK_MS) && !waits)) {
      this.#leave(key);
      return;
    }
    const { received, sendWindow } = tcpInfo(fd);
    // While a client does not read, a limited timer would count it as dead after two lost answers (see RTO_MAX_MS in repair.ts).
    this.#hurry(watched, sendWindow > 0 && age < WATCH_MS);
    if (watched.complete) {
      watched.lookAt = now + IDLE_LOOK_MS;
      return;
    }
    const next = at(image.identity.receiveBase, image.received + received);
    if (!watched.decided) this.#judge(watched, now, next);
    this.#ask(watched, now, next);
    if (watched.decided && watched.lackingSince === null) this.#complete(watched);
  }

  #judge(watched: Watched, now: number, next: number): void {
    const { wire, judge, image } = watched;
    const verdict = judge.verdict(now, next);
    if (verdict === null) return;
    this.#decide(watched);
    if (verdict === 'agreed') {
      this.#options.onAgreed?.(wire);
      return;
    }
    const { local, remote, family } = image.identity;
    if (judge.acknowledgement !== null)
      resetClient(this.#ears.get(family)!.resets, local, remote, judge.acknowledgement);
    this.#options.onGap(wire, verdict);
  }

  /** Nudges a client that has sent what we lack, or that seems not to know that we have it. */
  #ask(watched: Watched, now: number, next: number): void {
    const { judge, image } = watched;
    const lacking = judge.sent !== null && liesAfter(judge.sent, next);
    const last = NUDGES_MS.length - 1;
    // One that does not go on may have nothing more to say: it is not asked for ever.
    if (!lacking && (judge.again === null || watched.nudges > last)) {
      watched.lackingSince = null;
      watched.next = next;
      return;
    }
    if (next !== watched.next && watched.lackingSince !== null) {
      // It goes on; the first nudge was for one that had not begun.
      watched.lackingSince = now;
      watched.nudges = 1;
    }
    watched.next = next;
    watched.lackingSince ??= now;
    const { nudges } = watched;
    const due = NUDGES_MS[Math.min(nudges, last)] + Math.max(0, nudges - last) * NUDGE_AGAIN_MS;
    if (now - watched.lackingSince < due) return;
    watched.nudges++;
    const { local, remote, family } = image.identity;
    nudge(this.#ears.get(family)!.nudges, local, remote, lacking ? next : judge.again!);
  }

  /** Nothing more is expected: the kernel asks the client as seldom as it did before. */
  #decide(watched: Watched): void {
    if (watched.decided) return;
    watched.decided = true;
    const fd = fdOf(watched.wire);
    if (fd < 0) return;
    tryOption(fd, IPPROTO_TCP, TCP_KEEPIDLE, watched.keepAlive[0]);
    tryOption(fd, IPPROTO_TCP, TCP_KEEPINTVL, watched.keepAlive[1]);
  }

  #complete(watched: Watched): void {
    if (watched.complete) return;
    watched.complete = true;
    this.#incomplete--;
  }

  #hurry(watched: Watched, on: boolean): void {
    if (watched.hurried === on) return;
    watched.hurried = on;
    const fd = fdOf(watched.wire);
    if (fd >= 0) (on ? hurry : settle)(fd);
  }

  #leave(key: string): void {
    const watched = this.#watched.get(key)!;
    this.#watched.delete(key);
    this.#decide(watched);
    this.#complete(watched);
    this.#hurry(watched, false);
  }
}

/** The sequence number behind the last byte that the kernel was given; null when the connection is over. */
function writtenOf({ wire, image }: Watched): number | null {
  const fd = fdOf(wire);
  if (fd < 0) return null;
  const acknowledged = image.acknowledged + tcpInfo(fd).acknowledged;
  return at(image.identity.sendBase, acknowledged + ask(fd, SIOCOUTQ));
}

function keyOf(address: string, remotePort: number, localPort: number): string {
  return `${address} ${remotePort} ${localPort}`;
}

/**
 * The TCP header of what a raw socket gives: with the IP header for IPv4, without for IPv6 (raw(7), RFC 3542 section 3).
 * Null for what is none, and for the ends of a connection (SYN, RST), whose numbers mean something else.
 * @param packet its first bytes
 * @param length of the whole packet
 */
export function parseSegment(
  family: 4 | 6,
  packet: Uint8Array,
  length: number,
): (Segment & { remotePort: number; localPort: number }) | null {
  const start = family === 4 ? (packet[0] & 15) * 4 : 0;
  if (packet.length < start + 20) return null;
  const view = new DataView(packet.buffer, packet.byteOffset + start, packet.length - start);
  const flags = view.getUint8(13);
  const SYN_OR_RST = 6;
  if ((flags & SYN_OR_RST) !== 0) return null;
  return {
    remotePort: view.getUint16(0),
    localPort: view.getUint16(2),
    sequence: view.getUint32(4),
    acknowledgement: view.getUint32(8),
    length: length - start - (view.getUint8(12) >> 4) * 4,
  };
}

/** Accepts segments to some ports only: raw sockets see all of a host's, those of its servers among them. */
export function portFilter(family: 4 | 6, ports: readonly number[]): Instruction[] {
  // The port lies behind the IPv4 header, whose length is loaded first (BPF_LDX with BPF_MSH).
  const load: Instruction[] =
    family === 4
      ? [
          [0xb1, 0, 0, 0],
          [0x48, 0, 0, 2],
        ]
      : [[0x28, 0, 0, 2]];
  const compare = ports.map((port, index): Instruction => [0x15, ports.length - index, 0, port]);
  return [...load, ...compare, [6, 0, 0, 0], [6, 0, 0, 0xffffffff]];
}
