import type { Duplex } from 'node:stream';

/** Types of packets, MS-TDS 2.2.3.1.1. */
export const PACKET = {
  batch: 1,
  rpc: 3,
  reply: 4,
  attention: 6,
  bulk: 7,
  transaction: 14,
  login: 16,
  prelogin: 18,
} as const;

/** Bits of a packet's status. */
export const STATUS = { end: 1, ignore: 2, reset: 8, resetKeepTransaction: 16 } as const;

/** TDS versions as LOGIN7 carries them, read as a little-endian number. */
export const TDS = {
  v71: 0x71000001,
  v72: 0x72090002,
  v73a: 0x730a0003,
  v73b: 0x730b0003,
  v74: 0x74000004,
} as const;

/** A whole message of a client. */
export interface Message {
  readonly type: number;
  /** The status bits of its first packet, and "ignore" of its last. */
  readonly status: number;
  readonly payload: Buffer;
}

/** What a client sent is no TDS, or none that this server reads: the connection ends. */
export class ProtocolError extends Error {}

/** Cuts a client's bytes into messages. */
export class MessageCutter {
  #rest: Buffer = Buffer.alloc(0);
  #parts: Buffer[] = [];
  #type = 0;
  #status = 0;
  /** The agreed packet size; null while it is not checked. */
  exactSize: number | null = null;

  /** The whole messages that the bytes complete. Throws {@link ProtocolError} for what cannot be a packet. */
  *push(chunk: Buffer): Generator<Message> {
    this.#rest = this.#rest.length === 0 ? chunk : Buffer.concat([this.#rest, chunk]);
    while (this.#rest.length >= 8) {
      const length = this.#rest.readUInt16BE(2);
      if (length < 8) throw new ProtocolError(`a packet of ${length} bytes`);
      if (this.#rest.length < length) return;
      const packet = this.#rest.subarray(0, length);
      this.#rest = this.#rest.subarray(length);
      const last = (packet[1] & STATUS.end) !== 0;
      // From TDS 7.3 on a real server ends the connection for this.
      if (!last && this.exactSize !== null && length !== this.exactSize) {
        throw new ProtocolError(
          `a packet of ${length} bytes that is not the last, where ${this.exactSize} were agreed`,
        );
      }
      if (this.#parts.length === 0) {
        this.#type = packet[0];
        this.#status = packet[1];
      } else if (packet[0] !== this.#type) {
        throw new ProtocolError(`a packet of type ${packet[0]} inside of a message of type ${this.#type}`);
      }
      this.#parts.push(packet.subarray(8));
      if (!last) continue;
      const status = this.#status | (packet[1] & STATUS.ignore);
      const payload = Buffer.concat(this.#parts);
      this.#parts = [];
      yield { type: this.#type, status, payload };
    }
  }

  /** Takes the bytes that are no whole packet yet. */
  takeRest(): Buffer {
    const rest = this.#rest;
    this.#rest = Buffer.alloc(0);
    return rest;
  }
}

/** Reads fields in order. Throws {@link ProtocolError} past the end. */
export class Reader {
  at = 0;

  constructor(readonly bytes: Buffer) {}

  get left(): number {
    return this.bytes.length - this.at;
  }

  take(length: number): Buffer {
    if (length < 0 || this.left < length) throw new ProtocolError(`${length} bytes wanted, ${this.left} left`);
    this.at += length;
    return this.bytes.subarray(this.at - length, this.at);
  }

  u8(): number {
    return this.take(1)[0];
  }

  u16(): number {
    return this.take(2).readUInt16LE();
  }

  u32(): number {
    return this.take(4).readUInt32LE();
  }

  u64(): bigint {
    return this.take(8).readBigUInt64LE();
  }

  /** A text with its length in characters in front: one byte of length, or two. */
  text(sizeBytes: 1 | 2): string {
    return this.take((sizeBytes === 1 ? this.u8() : this.u16()) * 2).toString('utf16le');
  }
}

/** Puts fields together. */
export class Writer {
  readonly parts: Buffer[] = [];

  raw(bytes: Uint8Array): this {
    this.parts.push(Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length));
    return this;
  }

  u8(...values: number[]): this {
    this.parts.push(Buffer.from(values));
    return this;
  }

  u16(value: number): this {
    const bytes = Buffer.alloc(2);
    bytes.writeUInt16LE(value & 0xffff);
    return this.raw(bytes);
  }

  u32(value: number): this {
    const bytes = Buffer.alloc(4);
    bytes.writeUInt32LE(value >>> 0);
    return this.raw(bytes);
  }

  u64(value: bigint): this {
    const bytes = Buffer.alloc(8);
    bytes.writeBigUInt64LE(BigInt.asUintN(64, value));
    return this.raw(bytes);
  }

  /** A text with its length in characters in front. */
  text(value: string, sizeBytes: 1 | 2): this {
    const most = sizeBytes === 1 ? 255 : 8000;
    const cut = value.length > most ? value.slice(0, most) : value;
    if (sizeBytes === 1) this.u8(cut.length);
    else this.u16(cut.length);
    return this.raw(Buffer.from(cut, 'utf16le'));
  }

  bytes(): Buffer {
    return Buffer.concat(this.parts);
  }
}

/** Writes one message of the server as packets; full packets go out at once. */
export class ReplyStream {
  #buffered: Buffer[] = [];
  #size = 0;
  #number = 0;

  constructor(
    private readonly out: Duplex,
    private readonly packetSize: number,
    private readonly spid: number,
    private readonly type: number = PACKET.reply,
  ) {}

  write(bytes: Buffer): void {
    this.#buffered.push(bytes);
    this.#size += bytes.length;
    const room = this.packetSize - 8;
    if (this.#size <= room) return;
    const all = Buffer.concat(this.#buffered);
    let at = 0;
    // What fits into one packet is kept, so that the last packet is never empty.
    for (; all.length - at > room; at += room) this.#packet(all.subarray(at, at + room), false);
    this.#buffered = [all.subarray(at)];
    this.#size = all.length - at;
  }

  /** Whether the client does not take what it gets as fast as it comes. */
  get slow(): boolean {
    return this.out.writableNeedDrain;
  }

  #draining: Promise<void> | null = null;

  /** Waits until the client takes more, where it is slow. */
  async drained(): Promise<void> {
    const { out } = this;
    if (!out.writableNeedDrain || out.destroyed) return;
    // Many rows wait for one and the same thing.
    this.#draining ??= new Promise((done) => {
      const settle = () => {
        out.off('drain', settle).off('close', settle).off('error', settle);
        this.#draining = null;
        done();
      };
      out.on('drain', settle).on('close', settle).on('error', settle);
    });
    await this.#draining;
  }

  end(): void {
    this.#packet(Buffer.concat(this.#buffered), true);
    this.#buffered = [];
    this.#size = 0;
  }

  #packet(payload: Buffer, last: boolean): void {
    const header = Buffer.alloc(8);
    header[0] = this.type;
    header[1] = last ? STATUS.end : 0;
    header.writeUInt16BE(payload.length + 8, 2);
    header.writeUInt16BE(this.spid, 4);
    header[6] = ++this.#number & 0xff;
    if (!this.out.destroyed && this.out.writable) this.out.write(Buffer.concat([header, payload]));
  }
}
