import { ProtocolViolation } from '../../core/contract/index.js';

/** Who sent what is being read: who has to act when it is malformed. */
export type Sender = 'client' | 'server';

/**
 * Reads the fields of one structure in order; little-endian, as everything in TDS but packet headers, PRELOGIN and versions in
 * LOGINACK. Names of the methods are those of the types in MS-TDS 2.2.5 (BYTE, USHORT, B_VARCHAR, ...). Every method throws a
 * {@link ProtocolViolation} when the structure is too short for it.
 */
export class Reader {
  /** Where the next field begins, in `bytes`. */
  at: number;

  /** Reads [start, end) of `bytes`; `what` names the structure in errors. */
  constructor(
    readonly bytes: Uint8Array,
    start: number,
    readonly end: number,
    readonly sender: Sender,
    readonly what: string,
  ) {
    this.at = start;
  }

  /** Number of bytes not yet read. */
  get left(): number {
    return this.end - this.at;
  }

  /** Where the next `count` bytes begin, which are then read. */
  skip(count: number): number {
    const at = this.at;
    if (count > this.end - at) this.fail('is too short for its fields');
    this.at = at + count;
    return at;
  }

  /** @throws ProtocolViolation always; `how` says what is wrong with the structure, without its data */
  fail(how: string): never {
    throw new ProtocolViolation(`${this.what} ${how}`, this.sender);
  }

  byte(): number {
    return this.bytes[this.skip(1)];
  }

  ushort(): number {
    return uint16(this.bytes, this.skip(2));
  }

  ushortBE(): number {
    const at = this.skip(2);
    return (this.bytes[at] << 8) | this.bytes[at + 1];
  }

  long(): number {
    return uint32(this.bytes, this.skip(4)) | 0;
  }

  ulong(): number {
    return uint32(this.bytes, this.skip(4));
  }

  ulongBE(): number {
    const at = this.skip(4);
    return bigEndian32(this.bytes, at);
  }

  ulonglong(): bigint {
    return uint64(this.bytes, this.skip(8));
  }

  /** A view of the next `count` bytes. */
  take(count: number): Uint8Array {
    const at = this.skip(count);
    return this.bytes.subarray(at, at + count);
  }

  /** So many UTF-16 code units. */
  unicode(units: number): string {
    const at = this.skip(2 * units);
    return utf16(this.bytes, at, at + 2 * units);
  }

  /** Text behind a count of its UTF-16 code units in one byte. */
  bVarchar(): string {
    return this.unicode(this.byte());
  }

  /** Text behind a count of its UTF-16 code units in two bytes. */
  usVarchar(): string {
    return this.unicode(this.ushort());
  }

  /** Bytes behind their count in one byte. */
  bVarbyte(): Uint8Array {
    return this.take(this.byte());
  }

  /** Bytes behind their count in two bytes. */
  usVarbyte(): Uint8Array {
    return this.take(this.ushort());
  }
}

export const uint16 = (bytes: Uint8Array, at: number): number => bytes[at] | (bytes[at + 1] << 8);

export const uint32 = (bytes: Uint8Array, at: number): number =>
  (bytes[at] | (bytes[at + 1] << 8) | (bytes[at + 2] << 16) | (bytes[at + 3] << 24)) >>> 0;

export const uint64 = (bytes: Uint8Array, at: number): bigint =>
  (BigInt(uint32(bytes, at + 4)) << 32n) | BigInt(uint32(bytes, at));

export const bigEndian32 = (bytes: Uint8Array, at: number): number =>
  ((bytes[at] << 24) | (bytes[at + 1] << 16) | (bytes[at + 2] << 8) | bytes[at + 3]) >>> 0;

/** Writes an unsigned number of 8 bytes at `at`. */
export function putUint64(bytes: Uint8Array, at: number, value: bigint): void {
  for (let i = 0; i < 8; i++) bytes[at + i] = Number((value >> BigInt(8 * i)) & 0xffn);
}

/** [start, end) as UTF-16LE; unpaired surrogates stay as they are. */
export const utf16 = (bytes: Uint8Array, start: number, end: number): string =>
  Buffer.from(bytes.buffer, bytes.byteOffset + start, end - start).toString('utf16le');

/** UTF-16LE of a text. */
export const unicode = (text: string): Uint8Array => Buffer.from(text, 'utf16le');

/** Builds a structure field by field; the counterpart of {@link Reader}. */
export class Writer {
  #bytes = Buffer.allocUnsafe(128);
  #length = 0;

  /** Number of bytes written. */
  get length(): number {
    return this.#length;
  }

  #room(count: number): number {
    const at = this.#length;
    if (at + count > this.#bytes.length) {
      const grown = Buffer.allocUnsafe(Math.max(2 * this.#bytes.length, at + count));
      grown.set(this.#bytes.subarray(0, at));
      this.#bytes = grown;
    }
    this.#length = at + count;
    return at;
  }

  byte(value: number): this {
    const at = this.#room(1);
    this.#bytes[at] = value;
    return this;
  }

  ushort(value: number): this {
    const at = this.#room(2);
    this.#bytes.writeUInt16LE(value, at);
    return this;
  }

  ushortBE(value: number): this {
    const at = this.#room(2);
    this.#bytes.writeUInt16BE(value, at);
    return this;
  }

  /** Four bytes, signed or unsigned. */
  ulong(value: number): this {
    const at = this.#room(4);
    this.#bytes.writeUInt32LE(value >>> 0, at);
    return this;
  }

  ulongBE(value: number): this {
    const at = this.#room(4);
    this.#bytes.writeUInt32BE(value >>> 0, at);
    return this;
  }

  ulonglong(value: bigint): this {
    const at = this.#room(8);
    this.#bytes.writeBigUInt64LE(BigInt.asUintN(64, value), at);
    return this;
  }

  raw(bytes: Uint8Array): this {
    const at = this.#room(bytes.length);
    this.#bytes.set(bytes, at);
    return this;
  }

  /** @param text of at most 255 UTF-16 code units; what is longer is cut */
  bVarchar(text: string): this {
    const cut = text.slice(0, 0xff);
    return this.byte(cut.length).raw(unicode(cut));
  }

  /** @param text of at most `most` UTF-16 code units; what is longer is cut */
  usVarchar(text: string, most = 0xffff): this {
    const cut = text.slice(0, most);
    return this.ushort(cut.length).raw(unicode(cut));
  }

  /** @param bytes at most 255 */
  bVarbyte(bytes: Uint8Array): this {
    return this.byte(bytes.length).raw(bytes);
  }

  /** Puts a number of two bytes where one was written before. */
  patchUshort(at: number, value: number): this {
    this.#bytes.writeUInt16LE(value, at);
    return this;
  }

  /** Puts a number of four bytes where one was written before. */
  patchUlong(at: number, value: number): this {
    this.#bytes.writeUInt32LE(value >>> 0, at);
    return this;
  }

  /** What was written. The writer is not used any more. */
  done(): Uint8Array {
    return this.#bytes.subarray(0, this.#length);
  }
}
