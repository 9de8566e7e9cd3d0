/** The few message types of the protocol that a load generator has to know. */
export const TYPE = {
  authentication: 0x52,
  dataRow: 0x44,
  error: 0x45,
  ready: 0x5a,
} as const;

/** A message: texts among its parts get the NUL that ends them. */
export function message(type: string, ...parts: readonly (string | Buffer)[]): Buffer {
  const body = Buffer.concat(parts.map((part) => (typeof part === 'string' ? Buffer.from(`${part}\0`) : part)));
  const header = Buffer.alloc(5);
  header.write(type, 'latin1');
  header.writeInt32BE(body.length + 4, 1);
  return Buffer.concat([header, body]);
}

function int16(...values: readonly number[]): Buffer {
  const bytes = Buffer.alloc(values.length * 2);
  values.forEach((value, index) => {
    bytes.writeInt16BE(value, index * 2);
  });
  return bytes;
}

/** The first message of a connection, protocol 3.0. */
export function startupFrame(user: string, database: string): Buffer {
  const body = Buffer.from(`user\0${user}\0database\0${database}\0application_name\0outlive-bench\0\0`);
  const header = Buffer.alloc(8);
  header.writeInt32BE(body.length + 8, 0);
  header.writeInt32BE(0x30000, 4);
  return Buffer.concat([header, body]);
}

/** A statement in the simple protocol. */
export function queryFrame(sql: string): Buffer {
  return message('Q', sql);
}

/** Parse with types left to the server, and Sync. */
export function prepareFrames(name: string, sql: string): Buffer {
  return Buffer.concat([message('P', name, sql, int16(0)), message('S')]);
}

/** Bind with text parameters, Describe of the portal, Execute and Sync: what libpq sends for a prepared statement. */
export function executeFrames(name: string, params: readonly string[]): Buffer {
  const values = params.map((param) => {
    const length = Buffer.alloc(4);
    length.writeInt32BE(Buffer.byteLength(param));
    return Buffer.concat([length, Buffer.from(param)]);
  });
  return Buffer.concat([
    message('B', '', name, int16(0, params.length), ...values, int16(0)),
    message('D', Buffer.from('P\0')),
    message('E', '', Buffer.alloc(4)),
    message('S'),
  ]);
}

/** The polite end of a connection. */
export function terminateFrame(): Buffer {
  return message('X');
}

/** Reads the fields of an ErrorResponse by their one-letter names. */
export function errorFields(bytes: Buffer, start: number, end: number): Map<string, string> {
  const fields = new Map<string, string>();
  for (let at = start; at < end && bytes[at] !== 0; ) {
    const stop = bytes.indexOf(0, at);
    if (stop < 0 || stop >= end) break;
    fields.set(String.fromCharCode(bytes[at]), bytes.toString('utf8', at + 1, stop));
    at = stop + 1;
  }
  return fields;
}

/** The first column of a DataRow as text; null for NULL and for a row without columns. */
export function firstColumn(bytes: Buffer, start: number, end: number): string | null {
  if (end - start < 6 || bytes.readInt16BE(start) < 1) return null;
  const length = bytes.readInt32BE(start + 2);
  return length < 0 ? null : bytes.toString('utf8', start + 6, start + 6 + length);
}

/** Gets the body of a frame: bytes[start, end), valid during the call only. */
export type FrameSink = (type: number, bytes: Buffer, start: number, end: number) => void;

/**
 * Cuts a byte stream from a server into frames and hands on the wanted ones. The others are only stepped over, and
 * nothing is copied unless a wanted frame is cut by the end of a chunk.
 */
export class FrameReader {
  readonly #wanted = new Uint8Array(256);
  readonly #sink: FrameSink;
  readonly #header = Buffer.alloc(5);
  #headerFill = 0;
  #skip = 0;
  #body: Buffer | undefined;
  #bodyFill = 0;

  constructor(wanted: readonly number[], sink: FrameSink) {
    for (const type of wanted) this.#wanted[type] = 1;
    this.#sink = sink;
  }

  /** Takes bytes[0, length). */
  push(bytes: Buffer, length: number): void {
    let at = 0;
    while (at < length) {
      if (this.#skip > 0) {
        const step = Math.min(this.#skip, length - at);
        this.#skip -= step;
        at += step;
        continue;
      }
      if (this.#body !== undefined) {
        const step = Math.min(this.#body.length - this.#bodyFill, length - at);
        bytes.copy(this.#body, this.#bodyFill, at, at + step);
        this.#bodyFill += step;
        at += step;
        if (this.#bodyFill === this.#body.length) this.#handOver(this.#body);
        continue;
      }
      if (this.#headerFill === 0 && length - at >= 5) {
        const size = bytes.readInt32BE(at + 1) - 4;
        const type = bytes[at];
        at += 5;
        if (this.#wanted[type] === 0) this.#skip = size;
        else if (length - at >= size) {
          this.#sink(type, bytes, at, at + size);
          at += size;
        } else this.#begin(type, size);
        continue;
      }
      this.#header[this.#headerFill++] = bytes[at++];
      if (this.#headerFill < 5) continue;
      this.#headerFill = 0;
      const size = this.#header.readInt32BE(1) - 4;
      if (this.#wanted[this.#header[0]] === 0) this.#skip = size;
      else this.#begin(this.#header[0], size);
    }
  }

  #begin(type: number, size: number): void {
    this.#header[0] = type;
    this.#body = Buffer.alloc(size);
    this.#bodyFill = 0;
    if (size === 0) this.#handOver(this.#body);
  }

  #handOver(body: Buffer): void {
    this.#body = undefined;
    this.#sink(this.#header[0], body, 0, body.length);
  }
}
