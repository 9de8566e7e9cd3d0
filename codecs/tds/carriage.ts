/**
 * Between packets and frames (`frames.ts`), for the four ways that bytes of a session go: from and to its client, from and to its server.
 * Both connections have a packet size of their own.
 */

import { ProtocolViolation } from '../../core/contract/index.js';
import {
  DATA,
  END,
  FRAME_HEADER,
  FrameWriter,
  flagsOf,
  frameLength,
  kindOf,
  LONGEST_DATA,
  PACKET_END,
  PARTIAL,
  SHORT_PACKET,
} from './frames.js';
import {
  DEFAULT_PACKET_SIZE,
  EOM,
  type FrozenMessage,
  type FrozenPackets,
  HEADER_LENGTH,
  MessageCollector,
  type PacketHeader,
  PacketReader,
  type PacketSink,
  TABULAR_RESULT,
  writeHeader,
} from './packet.js';
import { type FrozenTokens, TokenReader, type TokenSink } from './tokens.js';
import type { Dialect } from './version.js';

/** The longest message of a client that is put together: beyond any limit that a listener has for requests. */
const MOST_REQUEST = 1024 * 1024 * 1024;
const EMPTY = new Uint8Array(0);

/** From a client: packets to frames, one for each message. Its kind is the type of the message, its flags the status of its packets. */
export class FromClient {
  #reader = new PacketReader('client');
  readonly #collector: MessageCollector;
  readonly #sink: PacketSink;
  #out!: FrameWriter;
  /** The message that ends now was cut short by an Attention, which follows. */
  #cut = false;

  constructor() {
    const collector = new MessageCollector('client', MOST_REQUEST, ({ type, status, ignored, bytes, start, end }) => {
      // The server forgets what was cut short, and answers the Attention alone.
      if (!this.#cut) this.#out.put(type, status | (ignored ? IGNORED : 0), bytes, start, end);
      return false;
    });
    this.#collector = collector;
    this.#sink = {
      packet: (header, first) => collector.packet(header, first),
      payload: (bytes, start, end) => collector.payload(bytes, start, end),
      end: (status) => {
        this.#cut = (status & EOM) === 0;
        return collector.end(status);
      },
    };
  }

  /** @throws ProtocolViolation when it is no run of packets */
  push(bytes: Uint8Array): Uint8Array {
    const out = new FrameWriter(bytes.length + 64);
    this.#out = out;
    this.#reader.push(bytes, 0, bytes.length, this.#sink);
    return out.length === 0 ? EMPTY : out.done();
  }

  /** Bytes of a message whose end has not come. */
  get collecting(): number {
    return this.#collector.collecting;
  }

  freeze(): FrozenFromClient {
    return { packets: this.#reader.freeze(), message: this.#collector.freeze() };
  }

  static thaw({ packets, message }: FrozenFromClient): FromClient {
    const thawed = new FromClient();
    thawed.#reader = PacketReader.thaw(packets, 'client');
    thawed.#collector.thaw(message);
    return thawed;
  }
}

/** Flag of a client's frame: the message is to be forgotten. The others are the bits RESETCONNECTION and RESETCONNECTIONSKIPTRAN. */
export const IGNORED = 0x02;

export interface FrozenFromClient {
  readonly packets: FrozenPackets;
  readonly message: FrozenMessage;
}

/** What {@link FromServer} asks about the tokens that it meets. */
export interface TokenTurn {
  /**
   * Puts a token into the client's terms.
   * @returns what the client is to get, the bytes given if it may be the same; null for nothing
   */
  turn(type: number, token: Uint8Array): Uint8Array | readonly Uint8Array[] | null;
}

/** From a server: packets to frames, one for each token or row, and {@link END} for the end of a message. */
export class FromServer implements PacketSink, TokenSink {
  #packets = new PacketReader('server');
  #tokens: TokenReader;
  #out!: FrameWriter;
  /** Payload of the stream that is in no frame yet, but for what comes right now, ... */
  #kept: Uint8Array = EMPTY;
  /** ... and the position in the stream behind all that is in frames. */
  #done = 0;
  /** Where it is kept, with room for more behind it. */
  #room: Buffer | null = null;
  /** The payload that is being read, ... */
  #bytes: Uint8Array = EMPTY;
  /** ... and the position in the stream of its first byte. */
  #base = 0;
  /** Position in the stream behind all payload. */
  #read = 0;
  /** Payload of the packet that is still to come; -1 between packets. */
  #left = 0;
  #short = false;

  /** @param size of a full packet */
  constructor(
    dialect: Dialect,
    private readonly size: number,
    private readonly turn: TokenTurn,
  ) {
    this.#tokens = new TokenReader(dialect);
  }

  get tokens(): TokenReader {
    return this.#tokens;
  }

  /** @throws ProtocolViolation when it is no run of packets, or no token stream */
  push(bytes: Uint8Array): Uint8Array {
    const out = new FrameWriter(bytes.length + (bytes.length >> 2) + this.#kept.length + 64);
    this.#out = out;
    this.#packets.push(bytes, 0, bytes.length, this);
    return out.length === 0 ? EMPTY : out.done();
  }

  packet(header: PacketHeader): void {
    this.#left = header.length - HEADER_LENGTH;
    this.#short = header.length < this.size;
    // The end of a message is told by itself.
    if ((header.status & EOM) !== 0) this.#left = -1;
    else if (this.#left === 0) this.endPacket();
  }

  private endPacket(): void {
    this.#out.put(PACKET_END, this.#short ? SHORT_PACKET : 0);
    this.#left = -1;
  }

  payload(bytes: Uint8Array, start: number, end: number): void {
    this.#bytes = bytes.subarray(start, end);
    this.#base = this.#read;
    this.#tokens.push(bytes, start, end, this);
    this.#read += end - start;
    this.keep();
    if (this.#left > 0) {
      this.#left -= end - start;
      if (this.#left === 0) this.endPacket();
    }
  }

  end(): boolean {
    this.#tokens.endMessage();
    this.#out.put(END, 0);
    return false;
  }

  token(type: number, bytes: Uint8Array, start: number, end: number): void {
    const length = end - start;
    const told = this.turn.turn(type, bytes.subarray(start, end));
    if (told instanceof Uint8Array) {
      // Behind a RETURNVALUE that is told without its value that value follows.
      this.#out.put(type, this.#tokens.between ? 0 : PARTIAL, told);
    } else for (const one of told ?? []) this.#out.put(type, 0, one);
    this.#done = this.#tokens.position + length;
  }

  rows(): void {}

  ended(position: number): void {
    this.data(position, 0);
  }

  /** Frames of {@link DATA} up to `position`, but for the last `rest` bytes. */
  private data(position: number, rest: number): void {
    const kept = this.#kept;
    while (position - this.#done > rest) {
      const length = Math.min(LONGEST_DATA, position - this.#done);
      const flags = position - this.#done > LONGEST_DATA || rest > 0 ? PARTIAL : 0;
      const from = this.#done - this.#base;
      if (from >= 0) this.#out.put(DATA, flags, this.#bytes, from, from + length);
      else {
        const before = kept.length + from;
        const part = Buffer.allocUnsafe(length);
        const own = Math.min(length, -from);
        part.set(kept.subarray(before, before + own));
        if (own < length) part.set(this.#bytes.subarray(0, length - own), own);
        this.#out.put(DATA, flags, part);
      }
      this.#done += length;
    }
  }

  /** Keeps what is in no frame yet. */
  private keep(): void {
    if (this.#tokens.inRow) this.data(this.#read, LONGEST_DATA);
    const bytes = this.#bytes;
    const left = this.#read - this.#done;
    const fresh = Math.min(left, bytes.length);
    // Of what was kept only the end may still be in no frame.
    const before = left - fresh;
    if (before < this.#kept.length) this.#kept = this.#kept.subarray(this.#kept.length - before);
    if (fresh > 0) {
      const room = this.#room;
      if (before > 0 && room !== null && this.#kept.buffer === room.buffer && before + fresh <= room.length) {
        const from = this.#kept.byteOffset - room.byteOffset;
        if (from + before + fresh <= room.length) {
          room.set(bytes.subarray(bytes.length - fresh), from + before);
          this.#kept = room.subarray(from, from + before + fresh);
          return;
        }
      }
      // Twice the size, so that many small pieces cost linear time.
      const grown = Buffer.allocUnsafeSlow(2 * left);
      grown.set(this.#kept);
      grown.set(bytes.subarray(bytes.length - fresh), before);
      this.#room = grown;
      this.#kept = grown.subarray(0, left);
    }
  }

  freeze(): FrozenFromServer {
    return {
      packets: this.#packets.freeze(),
      tokens: this.#tokens.freeze(),
      kept: Uint8Array.from(this.#kept),
      done: this.#done,
      read: this.#read,
      left: this.#left,
      short: this.#short,
      size: this.size,
    };
  }

  static thaw(frozen: FrozenFromServer, turn: TokenTurn): FromServer {
    const thawed = new FromServer(frozen.tokens.dialect, frozen.size, turn);
    thawed.#packets = PacketReader.thaw(frozen.packets, 'server');
    thawed.#tokens = TokenReader.thaw(frozen.tokens);
    thawed.#kept = frozen.kept;
    thawed.#done = frozen.done;
    thawed.#read = frozen.read;
    thawed.#left = frozen.left;
    thawed.#short = frozen.short;
    return thawed;
  }
}

export interface FrozenFromServer {
  readonly packets: FrozenPackets;
  readonly tokens: FrozenTokens;
  readonly kept: Uint8Array;
  readonly done: number;
  readonly read: number;
  readonly left: number;
  readonly short: boolean;
  readonly size: number;
}

/** To a client: frames to packets, as full as they may be. */
export class ToClient {
  /** Payload of a packet that is not full. */
  #kept: Uint8Array = EMPTY;
  #packetId = 0;
  #out: Uint8Array[] = [];

  /** @param size of a full packet */
  constructor(
    private readonly size: number,
    private readonly spid: number,
  ) {}

  /** Something is kept until more comes. */
  get holding(): boolean {
    return this.#kept.length > 0;
  }

  push(frames: Uint8Array): Uint8Array {
    if (frames.length === 0) return EMPTY;
    const room = this.size - HEADER_LENGTH;
    const parts: Uint8Array[] = this.#kept.length > 0 ? [this.#kept] : [];
    let length = this.#kept.length;
    /** Sends what there is in full packets; the rest too when it is to leave as it is. */
    const send = (rest: boolean, last: boolean): void => {
      const payload = parts.length === 1 ? parts[0] : Buffer.concat(parts, length);
      let at = 0;
      // A full one that may be the last of its message waits until that is known.
      while (length - at > room) {
        this.packet(payload, at, at + room, 0);
        at += room;
      }
      if (rest && (last || length > at)) {
        this.packet(payload, at, length, last ? EOM : 0);
        at = length;
      }
      parts.length = 0;
      if (at < length) parts.push(payload.subarray(at));
      length -= at;
      if (last) this.#packetId = 0;
    };
    for (let at = 0; at < frames.length; at += frameLength(frames, at)) {
      switch (kindOf(frames, at)) {
        case END:
          send(true, true);
          break;
        case PACKET_END:
          send((flagsOf(frames, at) & SHORT_PACKET) !== 0 || length % room === 0, false);
          break;
        default: {
          const end = at + frameLength(frames, at);
          parts.push(frames.subarray(at + FRAME_HEADER, end));
          length += end - at - FRAME_HEADER;
        }
      }
    }
    if (length > room) send(false, false);
    this.#kept = length === 0 ? EMPTY : Uint8Array.prototype.slice.call(Buffer.concat(parts, length));
    const out = this.#out.length === 1 ? this.#out[0] : Buffer.concat(this.#out);
    this.#out = [];
    return out;
  }

  private packet(payload: Uint8Array, start: number, end: number, status: number): void {
    this.#packetId = (this.#packetId + 1) & 0xff;
    const packet = Buffer.allocUnsafe(HEADER_LENGTH + end - start);
    const { spid } = this;
    writeHeader(packet, 0, {
      type: TABULAR_RESULT,
      status,
      length: packet.length,
      spid,
      packetId: this.#packetId,
      window: 0,
    });
    packet.set(payload.subarray(start, end), HEADER_LENGTH);
    this.#out.push(packet);
  }

  freeze(): FrozenToClient {
    return { kept: this.#kept, packetId: this.#packetId, size: this.size, spid: this.spid };
  }

  static thaw({ kept, packetId, size, spid }: FrozenToClient): ToClient {
    const thawed = new ToClient(size, spid);
    thawed.#kept = kept;
    thawed.#packetId = packetId;
    return thawed;
  }
}

export interface FrozenToClient {
  readonly kept: Uint8Array;
  readonly packetId: number;
  readonly size: number;
  readonly spid: number;
}

/** Where packets end in both connections before a login is over. */
export const FIRST_SIZE = DEFAULT_PACKET_SIZE;

/** @throws ProtocolViolation always */
export function violation(what: string, sender: 'client' | 'server'): never {
  throw new ProtocolViolation(what, sender);
}
