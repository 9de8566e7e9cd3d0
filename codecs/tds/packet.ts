/**
 * Packets and messages (MS-TDS 2.2.3): a message is a run of packets of one type, the last of which has the bit EOM. The header has
 * eight bytes, big-endian: type, status, length with the header, SPID, packet id, window.
 */

import { ProtocolViolation } from '../../core/contract/index.js';
import type { Sender } from './bytes.js';

export const HEADER_LENGTH = 8;
/** What may be agreed on for the length of a packet (MS-TDS 2.2.3.1.3). */
export const MIN_PACKET_SIZE = 512;
export const MAX_PACKET_SIZE = 32_767;
/** Until a login is acknowledged, and what PacketSize 0 in LOGIN7 means. */
export const DEFAULT_PACKET_SIZE = 4096;

// Types (MS-TDS 2.2.3.1.1).
export const SQL_BATCH = 1;
export const PRE_TDS7_LOGIN = 2;
export const RPC = 3;
/** Everything that a server sends. */
export const TABULAR_RESULT = 4;
export const ATTENTION = 6;
export const BULK_LOAD = 7;
export const FEDAUTH_TOKEN = 8;
export const TRANSACTION_MANAGER = 14;
export const LOGIN7 = 16;
export const SSPI = 17;
/** PRELOGIN, and the TLS handshake after it. */
export const PRELOGIN = 18;

const TYPE_NAMES: Readonly<Record<number, string>> = {
  [SQL_BATCH]: 'SQLBatch',
  [PRE_TDS7_LOGIN]: 'pre-TDS7 login',
  [RPC]: 'RPC',
  [TABULAR_RESULT]: 'tabular result',
  [ATTENTION]: 'Attention',
  [BULK_LOAD]: 'BulkLoad',
  [FEDAUTH_TOKEN]: 'FedAuth token',
  [TRANSACTION_MANAGER]: 'Transaction Manager request',
  [LOGIN7]: 'LOGIN7',
  [SSPI]: 'SSPI',
  [PRELOGIN]: 'PRELOGIN',
};

/** MS-TDS's name of a message type, for logs and errors. */
export const typeName = (type: number): string => TYPE_NAMES[type] ?? 'unknown';

// Status bits (MS-TDS 2.2.3.1.2).
/** The last packet of a message. */
export const EOM = 0x01;
/** Together with EOM: the message is to be forgotten (a client's). */
export const IGNORE = 0x02;
/** The session is reset before the request; its transaction is rolled back. Counts on the first packet only. */
export const RESETCONNECTION = 0x08;
/** The same, and the transaction stays. */
export const RESETCONNECTIONSKIPTRAN = 0x10;

/** The fields of a packet's header. */
export interface PacketHeader {
  type: number;
  status: number;
  /** Of the whole packet, header included. */
  length: number;
  spid: number;
  packetId: number;
  window: number;
}

export const emptyHeader = (): PacketHeader => ({ type: 0, status: 0, length: 0, spid: 0, packetId: 0, window: 0 });

/** True for the types of messages that this side may send. */
export function maySend(sender: Sender, type: number): boolean {
  switch (type) {
    case TABULAR_RESULT:
      return sender === 'server';
    case PRELOGIN:
      // Servers wrap the records of a TLS handshake in either type.
      return true;
    case SQL_BATCH:
    case RPC:
    case ATTENTION:
    case BULK_LOAD:
    case FEDAUTH_TOKEN:
    case TRANSACTION_MANAGER:
    case LOGIN7:
    case SSPI:
      return sender === 'client';
    default:
      return false;
  }
}

/**
 * Reads the header at `at`; eight bytes are there.
 *
 * @returns `out`
 * @throws ProtocolViolation when it can be no header of this side
 */
export function readHeader(bytes: Uint8Array, at: number, sender: Sender, out: PacketHeader): PacketHeader {
  out.type = bytes[at];
  out.status = bytes[at + 1];
  out.length = (bytes[at + 2] << 8) | bytes[at + 3];
  out.spid = (bytes[at + 4] << 8) | bytes[at + 5];
  out.packetId = bytes[at + 6];
  out.window = bytes[at + 7];
  if (out.length < HEADER_LENGTH || out.length > MAX_PACKET_SIZE)
    throw new ProtocolViolation('a packet has an impossible length', sender);
  if (!maySend(sender, out.type)) {
    if (out.type === PRE_TDS7_LOGIN) throw new ProtocolViolation('a login of TDS before 7.0 is not supported', sender);
    throw new ProtocolViolation('a packet has a type that this side does not send', sender);
  }
  return out;
}

/** Writes `header` into the eight bytes at `at`. */
export function writeHeader(bytes: Uint8Array, at: number, header: PacketHeader): void {
  bytes[at] = header.type;
  bytes[at + 1] = header.status;
  bytes[at + 2] = header.length >> 8;
  bytes[at + 3] = header.length;
  bytes[at + 4] = header.spid >> 8;
  bytes[at + 5] = header.spid;
  bytes[at + 6] = header.packetId;
  bytes[at + 7] = header.window;
}

/**
 * Length of the packet at [start, end), 0 when more bytes are needed: the shape of `Codec.frameLength`.
 *
 * @throws ProtocolViolation when it is impossible
 */
export function packetLength(bytes: Uint8Array, start: number, end: number, sender: Sender = 'server'): number {
  if (end - start < 4) return 0;
  const length = (bytes[start + 2] << 8) | bytes[start + 3];
  if (length < HEADER_LENGTH || length > MAX_PACKET_SIZE)
    throw new ProtocolViolation('a packet has an impossible length', sender);
  return length;
}

/** Told by a {@link PacketReader} what it reads. */
export interface PacketSink {
  /** A packet begins. The object is used again for the next one. `first`: it begins a message. */
  packet(header: PacketHeader, first: boolean): void;
  /** Payload of that packet, as it lies in the chunk: in one piece unless the chunk ends within it. Never empty. */
  payload(bytes: Uint8Array, start: number, end: number): void;
  /**
   * The message is over. `status`: that of its last packet; without EOM when an Attention cut it short, which follows.
   *
   * @returns true: what follows in the chunk is not for this reader (raw TLS after a handshake)
   */
  end(status: number): boolean;
}

/**
 * Follows the packets of one direction through chunks of any size. Copies nothing but a header that is cut by the end of a
 * chunk.
 */
export class PacketReader {
  readonly #sender: Sender;
  readonly #header = emptyHeader();
  /** The beginning of a header that the chunk before ended in. */
  readonly #cut = new Uint8Array(HEADER_LENGTH);
  #cutLength = 0;
  /** Payload of the packet that is still to come. */
  #left = 0;
  /** Type of the message that has begun and not ended; 0: none. */
  #open = 0;
  #failed = false;

  constructor(sender: Sender) {
    this.#sender = sender;
  }

  /** True when everything that was read is whole messages. */
  get between(): boolean {
    return this.#open === 0 && this.#cutLength === 0;
  }

  /** True when everything that was read is whole packets. */
  get betweenPackets(): boolean {
    return this.#left === 0 && this.#cutLength === 0;
  }

  /**
   * Reads [start, end) of `bytes`.
   *
   * @returns where it stopped: `end`, or behind the message whose `PacketSink.end` returned true
   * @throws ProtocolViolation when it is no run of packets that this side may send; and again for whatever comes after
   */
  push(bytes: Uint8Array, start: number, end: number, sink: PacketSink): number {
    if (this.#failed) throw new ProtocolViolation('more came after a malformed packet', this.#sender);
    // Stays set when something below throws: nothing that follows has a meaning then.
    this.#failed = true;
    let at = start;
    while (at < end) {
      if (this.#left > 0) {
        const stop = Math.min(end, at + this.#left);
        this.#left -= stop - at;
        sink.payload(bytes, at, stop);
        at = stop;
      } else if (this.#cutLength > 0 || end - at < HEADER_LENGTH) {
        while (at < end && this.#cutLength < HEADER_LENGTH) this.#cut[this.#cutLength++] = bytes[at++];
        if (this.#cutLength < HEADER_LENGTH) break;
        this.#cutLength = 0;
        if (this.#begin(this.#cut, 0, sink)) break;
        continue;
      } else {
        at += HEADER_LENGTH;
        if (this.#begin(bytes, at - HEADER_LENGTH, sink)) break;
        continue;
      }
      if (this.#left === 0 && this.#endPacket(sink)) break;
    }
    this.#failed = false;
    return at;
  }

  /** A packet begins; true when it is empty and its message's end says to stop. */
  #begin(bytes: Uint8Array, at: number, sink: PacketSink): boolean {
    const header = readHeader(bytes, at, this.#sender, this.#header);
    const first = header.type !== this.#open;
    if (first && this.#open !== 0) {
      if (header.type !== ATTENTION)
        throw new ProtocolViolation('a message of one type begins within one of another', this.#sender);
      sink.end(0);
    }
    this.#open = header.type;
    this.#left = header.length - HEADER_LENGTH;
    sink.packet(header, first);
    return this.#left === 0 && this.#endPacket(sink);
  }

  #endPacket(sink: PacketSink): boolean {
    if ((this.#header.status & EOM) === 0) return false;
    this.#open = 0;
    return sink.end(this.#header.status);
  }

  /** All that it knows, as plain data for {@link thaw} in another process. */
  freeze(): FrozenPackets {
    return {
      header: { ...this.#header },
      cut: this.#cut.slice(0, this.#cutLength),
      left: this.#left,
      open: this.#open,
    };
  }

  /** The reader that {@link freeze} told of. */
  static thaw(frozen: FrozenPackets, sender: Sender): PacketReader {
    const reader = new PacketReader(sender);
    Object.assign(reader.#header, frozen.header);
    reader.#cut.set(frozen.cut);
    reader.#cutLength = frozen.cut.length;
    reader.#left = frozen.left;
    reader.#open = frozen.open;
    return reader;
  }
}

/** A {@link PacketReader} as plain data. */
export interface FrozenPackets {
  readonly header: PacketHeader;
  readonly cut: Uint8Array;
  readonly left: number;
  readonly open: number;
}

/** A whole message; what a {@link MessageCollector} hands out. */
export interface Message {
  readonly type: number;
  /** Of its first packet, without EOM and IGNORE: RESETCONNECTION and RESETCONNECTIONSKIPTRAN count there only. */
  readonly status: number;
  /** To be forgotten: it has IGNORE, or an Attention cut it short. */
  readonly ignored: boolean;
  /** The payload of all its packets is [start, end) of these. */
  readonly bytes: Uint8Array;
  readonly start: number;
  readonly end: number;
}

/**
 * Puts the payload of each message together. A message of one packet that lies in one chunk is handed out in place; the payload
 * of others is copied once, for headers stand between its parts.
 */
export class MessageCollector implements PacketSink {
  readonly #limit: number;
  readonly #sender: Sender;
  readonly #message: (message: Message) => boolean;
  #type = 0;
  #status = 0;
  #bytes: Uint8Array = EMPTY;
  #start = 0;
  #end = 0;
  #owned = false;

  /**
   * @param limit bytes of payload that a message may have
   * @param message told each message; its bytes are not written again. True: see {@link PacketSink.end}
   */
  constructor(sender: Sender, limit: number, message: (message: Message) => boolean) {
    this.#sender = sender;
    this.#limit = limit;
    this.#message = message;
  }

  /** Bytes that are held of a message whose end has not come. */
  get collecting(): number {
    return this.#end - this.#start;
  }

  packet(header: PacketHeader, first: boolean): void {
    if (!first) return;
    this.#type = header.type;
    this.#status = header.status & ~(EOM | IGNORE);
  }

  payload(bytes: Uint8Array, start: number, end: number): void {
    const length = this.#end - this.#start;
    const more = end - start;
    if (length + more > this.#limit)
      throw new ProtocolViolation(`a message (${typeName(this.#type)}) is longer than allowed`, this.#sender);
    if (length === 0) {
      this.#bytes = bytes;
      this.#start = start;
      this.#end = end;
      this.#owned = false;
      return;
    }
    if (!this.#owned || this.#end + more > this.#bytes.length) {
      const grown = Buffer.allocUnsafe(Math.min(this.#limit, Math.max(2 * (length + more), 1024)));
      grown.set(this.#bytes.subarray(this.#start, this.#end));
      this.#bytes = grown;
      this.#start = 0;
      this.#end = length;
      this.#owned = true;
    }
    // In small pieces the call of a copy would cost more than the copy.
    if (more < 16) for (let i = 0; i < more; i++) this.#bytes[this.#end + i] = bytes[start + i];
    else this.#bytes.set(bytes.subarray(start, end), this.#end);
    this.#end += more;
  }

  end(status: number): boolean {
    const message: Message = {
      type: this.#type,
      status: this.#status,
      ignored: (status & (EOM | IGNORE)) !== EOM,
      bytes: this.#bytes,
      start: this.#start,
      end: this.#end,
    };
    this.#bytes = EMPTY;
    this.#start = 0;
    this.#end = 0;
    this.#owned = false;
    return this.#message(message);
  }

  /** What it holds of a message whose end has not come, as plain data for {@link thaw}. */
  freeze(): FrozenMessage {
    const payload = new Uint8Array(this.#bytes.subarray(this.#start, this.#end));
    return { type: this.#type, status: this.#status, payload };
  }

  /** Goes on with the message that {@link freeze} told of. */
  thaw(frozen: FrozenMessage): void {
    this.#type = frozen.type;
    this.#status = frozen.status;
    this.#bytes = frozen.payload;
    this.#start = 0;
    this.#end = frozen.payload.length;
    this.#owned = true;
  }
}

/** The beginning of a message as plain data. */
export interface FrozenMessage {
  readonly type: number;
  readonly status: number;
  readonly payload: Uint8Array;
}

/**
 * Brings the messages of one direction into packets of another size. The payload is handed on where it lies, behind headers of
 * its own; from 7.3 on every packet of a client but the last has exactly the size that was agreed on (MS-TDS 2.2.3.1.3), so the
 * bytes of at most one packet wait, by reference, until it is known whether more follows.
 */
export class Repacketizer implements PacketSink {
  readonly #room: number;
  readonly #out: (bytes: Uint8Array) => void;
  readonly #done: (() => void) | null;
  #type = 0;
  #status = 0;
  #spid = 0;
  #packetId = 0;
  #waiting: Uint8Array[] = [];
  #length = 0;

  /**
   * @param size of the packets that come out
   * @param out told what is to be sent, in order: headers, and payload as it lies in the chunks
   * @param done told when a message is over
   */
  constructor(size: number, out: (bytes: Uint8Array) => void, done: (() => void) | null = null) {
    this.#room = size - HEADER_LENGTH;
    this.#out = out;
    this.#done = done;
  }

  packet(header: PacketHeader, first: boolean): void {
    this.#spid = header.spid;
    if (!first) return;
    this.#type = header.type;
    this.#status = header.status & ~(EOM | IGNORE);
    this.#packetId = 0;
  }

  payload(bytes: Uint8Array, start: number, end: number): void {
    let at = start;
    while (at < end) {
      // Only now it is certain that what waits is not the last packet.
      if (this.#length === this.#room) this.#send(0);
      const stop = Math.min(end, at + this.#room - this.#length);
      this.#waiting.push(bytes.subarray(at, stop));
      this.#length += stop - at;
      at = stop;
    }
  }

  end(status: number): boolean {
    if ((status & EOM) !== 0) this.#send(status & (EOM | IGNORE));
    // An Attention cut it short: what would not fill a packet is not sent, for nothing of this message takes effect.
    this.#waiting = [];
    this.#length = 0;
    this.#done?.();
    return false;
  }

  #send(last: number): void {
    this.#packetId = (this.#packetId + 1) & 0xff;
    const header = Buffer.allocUnsafe(HEADER_LENGTH);
    writeHeader(header, 0, {
      type: this.#type,
      status: this.#status | last,
      length: HEADER_LENGTH + this.#length,
      spid: this.#spid,
      packetId: this.#packetId,
      window: 0,
    });
    this.#out(header);
    for (const part of this.#waiting) this.#out(part);
    this.#waiting = [];
    this.#length = 0;
    // A reset is asked for by the first packet.
    this.#status &= ~(RESETCONNECTION | RESETCONNECTIONSKIPTRAN);
  }
}

/** A message in packets of `size`, ready to be sent. `status`: bits besides EOM. */
export function packets(type: number, payload: Uint8Array, size: number, status = 0, spid = 0): Uint8Array {
  const room = size - HEADER_LENGTH;
  const count = Math.max(1, Math.ceil(payload.length / room));
  const out = Buffer.allocUnsafe(payload.length + count * HEADER_LENGTH);
  for (let i = 0, at = 0; i < count; i++) {
    const part = payload.subarray(i * room, (i + 1) * room);
    const length = HEADER_LENGTH + part.length;
    const last = i === count - 1 ? EOM : 0;
    writeHeader(out, at, { type, status: status | last, length, spid, packetId: (i + 1) & 0xff, window: 0 });
    out.set(part, at + HEADER_LENGTH);
    at += length;
    status &= ~(RESETCONNECTION | RESETCONNECTIONSKIPTRAN);
  }
  return out;
}

/**
 * Overwrites bytes of a message's payload where it lies, its packets being [start, end) of `bytes` in one piece: what is patched may
 * be cut by a packet's end.
 *
 * @param offset in the payload of the message
 * @throws ProtocolViolation when the message is shorter
 */
export function patchPayload(
  bytes: Uint8Array,
  start: number,
  end: number,
  offset: number,
  patch: Uint8Array,
  sender: Sender = 'client',
): void {
  let done = 0;
  let payload = 0;
  for (let at = start; at < end && done < patch.length; ) {
    const length = packetLength(bytes, at, end, sender);
    if (length === 0 || at + length > end) break;
    const next = payload + length - HEADER_LENGTH;
    for (let i = offset + done; i < next && done < patch.length; i++) {
      bytes[at + HEADER_LENGTH + i - payload] = patch[done++];
    }
    payload = next;
    at += length;
  }
  if (done < patch.length) throw new ProtocolViolation('a message is too short for its fields', sender);
}

const EMPTY = new Uint8Array(0);
