/**
 * Reading PostgreSQL's messages where they lie, for the values in them: answers as the client got them, and the client's Binds.
 * Formats: PostgreSQL documentation, "Message Formats" (chapter Frontend/Backend Protocol).
 */

import { parseError } from '../errors.js';
import { dataRow, text } from '../inject.js';
import { lengthAt } from '../messages.js';
import type { ResultColumn, SeenValue } from './types.js';

const code = (letter: string): number => letter.charCodeAt(0);

/** Types of messages, by what they are called in the protocol's documentation; the same letter means another thing from each side. */
export const Frontend = {
  BIND: code('B'),
  CLOSE: code('C'),
  DESCRIBE: code('D'),
  EXECUTE: code('E'),
  FUNCTION_CALL: code('F'),
  PARSE: code('P'),
  QUERY: code('Q'),
  SYNC: code('S'),
} as const;
export const Backend = {
  BIND_COMPLETE: code('2'),
  CLOSE_COMPLETE: code('3'),
  COMMAND_COMPLETE: code('C'),
  COPY_DATA: code('d'),
  COPY_DONE: code('c'),
  COPY_IN: code('G'),
  COPY_OUT: code('H'),
  DATA_ROW: code('D'),
  EMPTY_QUERY: code('I'),
  ERROR: code('E'),
  FUNCTION_RESULT: code('V'),
  NEGOTIATE: code('v'),
  NO_DATA: code('n'),
  NOTICE: code('N'),
  NOTIFICATION: code('A'),
  PARAMETER_DESCRIPTION: code('t'),
  PARAMETER_STATUS: code('S'),
  PARSE_COMPLETE: code('1'),
  PORTAL_SUSPENDED: code('s'),
  READY: code('Z'),
  ROW_DESCRIPTION: code('T'),
} as const;

const EMPTY = new Uint8Array(0);

/** Pieces as one; the only piece is not copied. */
export function join(pieces: readonly Uint8Array[]): Uint8Array {
  return pieces.length === 1 ? pieces[0] : pieces.length === 0 ? EMPTY : Buffer.concat(pieces);
}

/** Whether a whole frame stands at `at`. */
export function wholeAt(bytes: Uint8Array, at: number): boolean {
  if (at + 5 > bytes.length) return false;
  const length = lengthAt(bytes, at);
  return length >= 5 && at + length <= bytes.length;
}

/** Index of the zero byte that ends the string at `from`; `end` when there is none before. */
export function terminator(bytes: Uint8Array, from: number, end: number): number {
  // Names are short: for them a loop costs less than a call of indexOf.
  const near = Math.min(end, from + 32);
  for (let at = from; at < near; at++) if (bytes[at] === 0) return at;
  const at = bytes.indexOf(0, near);
  return at < 0 || at > end ? end : at;
}

/** True for messages that answer no request. */
export function asynchronous(type: number): boolean {
  return (
    type === Backend.NOTICE ||
    type === Backend.NOTIFICATION ||
    type === Backend.PARAMETER_STATUS ||
    type === Backend.NEGOTIATE
  );
}

/** Steps through the whole frames of an answer that answer the request, and stops in front of one that is cut. */
export class AnswerReader {
  #at = 0;
  readonly bytes: Uint8Array;

  constructor(answer: readonly Uint8Array[]) {
    this.bytes = join(answer);
  }

  /** Type of the next frame, 0 when there is none. */
  peek(): number {
    while (wholeAt(this.bytes, this.#at)) {
      const type = this.bytes[this.#at];
      if (!asynchronous(type)) return type;
      this.#at += lengthAt(this.bytes, this.#at);
    }
    return 0;
  }

  /** True when the client got a part of one more frame. */
  get cut(): boolean {
    return this.peek() === 0 && this.#at < this.bytes.length;
  }

  /** Goes behind the next frame, which {@link peek} has found. @returns where it begins */
  next(): number {
    const start = this.#at;
    this.#at += lengthAt(this.bytes, start);
    return start;
  }
}

/** Whether the client got a row in this answer. */
export function hasRow(answer: readonly Uint8Array[]): boolean {
  const reader = new AnswerReader(answer);
  for (let type = reader.peek(); type !== 0; type = reader.peek()) {
    if (type === Backend.DATA_ROW) return true;
    reader.next();
  }
  return false;
}

const viewOf = (bytes: Uint8Array): DataView => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

/** Columns of the RowDescription at `start`. */
export function rowDescription(bytes: Uint8Array, start: number): ResultColumn[] {
  const view = viewOf(bytes);
  const end = start + lengthAt(bytes, start);
  const columns: ResultColumn[] = [];
  let at = start + 7;
  for (let left = view.getUint16(start + 5); left > 0; left--) {
    const nameEnd = terminator(bytes, at, end);
    const name = text(bytes, at, nameEnd);
    at = nameEnd + 1;
    columns.push({
      name,
      table: view.getUint32(at),
      attribute: view.getInt16(at + 4),
      type: view.getUint32(at + 6),
      modifier: view.getInt32(at + 12),
    });
    at += 18;
  }
  return columns;
}

/** Types of the ParameterDescription at `start`. */
export function parameterTypes(bytes: Uint8Array, start: number): number[] {
  const view = viewOf(bytes);
  return Array.from({ length: view.getUint16(start + 5) }, (_, i) => view.getUint32(start + 7 + 4 * i));
}

/**
 * Values of the DataRow at `start`.
 * @param formats of its columns; none: all text; one: of all
 */
export function seenRow(bytes: Uint8Array, start: number, formats: readonly number[]): SeenValue[] {
  const view = viewOf(bytes);
  const values: SeenValue[] = [];
  let at = start + 7;
  const count = view.getUint16(start + 5);
  for (let i = 0; i < count; i++) {
    const length = view.getInt32(at);
    at += 4;
    const format = formatOf(formats, i);
    values.push({ bytes: length < 0 ? null : bytes.subarray(at, at + length), format });
    if (length > 0) at += length;
  }
  return values;
}

/** The format that a list of format codes gives to value `i` (Bind: none means text for all, one means all). */
export function formatOf(formats: readonly number[], i: number): 0 | 1 {
  const format = formats.length === 1 ? formats[0] : (formats[i] ?? 0);
  return format === 1 ? 1 : 0;
}

/** A Bind message, read. */
export interface Bind {
  readonly portal: string;
  readonly statement: string;
  readonly formats: readonly number[];
  readonly values: readonly (Uint8Array | null)[];
  readonly resultFormats: readonly number[];
}

/** Reads the Bind at `start`. @throws RangeError when it ends before its fields */
export function readBind(bytes: Uint8Array, start: number): Bind {
  const end = start + lengthAt(bytes, start);
  const view = viewOf(bytes.subarray(0, end));
  const portalEnd = terminator(bytes, start + 5, end);
  const statementEnd = terminator(bytes, portalEnd + 1, end);
  let at = statementEnd + 1;
  const codes = (): number[] => {
    const codes = Array.from({ length: view.getUint16(at) }, (_, i) => view.getInt16(at + 2 + 2 * i));
    at += 2 + 2 * codes.length;
    return codes;
  };
  const formats = codes();
  const values: (Uint8Array | null)[] = [];
  const count = view.getUint16(at);
  at += 2;
  for (let i = 0; i < count; i++) {
    const length = view.getInt32(at);
    at += 4;
    values.push(length < 0 ? null : bytes.subarray(at, at + length));
    if (length > 0) at += length;
  }
  return {
    portal: text(bytes, start + 5, portalEnd),
    statement: text(bytes, portalEnd + 1, statementEnd),
    formats,
    values,
    resultFormats: codes(),
  };
}

/** The most parameters that a Bind can carry. */
export const MOST_PARAMETERS = 65_535;

/** A Bind of `statement` with the same portal, values and result formats, and with `more` values behind its own. */
export function writeBind(bind: Bind, statement: string, more: readonly SeenValue[]): Uint8Array {
  // With values of another form the short ways to tell the forms (none, one for all) mean something else.
  const formats =
    more.length === 0
      ? bind.formats
      : [...bind.values.map((_, i) => formatOf(bind.formats, i)), ...more.map(({ format }) => format)];
  const values = [...bind.values, ...more.map(({ bytes }) => bytes)];
  const codes = (list: readonly number[]): Buffer => {
    const out = Buffer.alloc(2 + 2 * list.length);
    out.writeUInt16BE(list.length);
    for (const [i, each] of list.entries()) out.writeInt16BE(each, 2 + 2 * i);
    return out;
  };
  const count = Buffer.alloc(2);
  count.writeUInt16BE(values.length);
  const parts: Uint8Array[] = [
    Buffer.alloc(5),
    Buffer.from(`${bind.portal}\0${statement}\0`, 'utf8'),
    codes(formats),
    count,
  ];
  for (const value of values) {
    const length = Buffer.alloc(4);
    length.writeInt32BE(value === null ? -1 : value.length);
    parts.push(length);
    if (value !== null) parts.push(value);
  }
  parts.push(codes(bind.resultFormats));
  const frame = Buffer.concat(parts);
  frame[0] = Frontend.BIND;
  frame.writeUInt32BE(frame.length - 1, 1);
  return frame;
}

/** A Parse message, read. */
export interface Parse {
  readonly name: string;
  /** The statement as bytes: they need not be UTF-8. */
  readonly sql: Uint8Array;
  readonly types: readonly number[];
}

/** Reads the Parse at `start`. @throws RangeError when it ends before its fields */
export function readParse(bytes: Uint8Array, start: number): Parse {
  const end = start + lengthAt(bytes, start);
  const nameEnd = terminator(bytes, start + 5, end);
  const sqlEnd = terminator(bytes, nameEnd + 1, end);
  const view = viewOf(bytes.subarray(0, end));
  const types = Array.from({ length: view.getUint16(sqlEnd + 1) }, (_, i) => view.getUint32(sqlEnd + 3 + 4 * i));
  return { name: text(bytes, start + 5, nameEnd), sql: bytes.subarray(nameEnd + 1, sqlEnd), types };
}

const ROW_COUNT = 'the number of rows';

/** See `Mutables.partAt`. */
export function partAt(answer: readonly Uint8Array[], offset: number, got: Uint8Array | null): string | null {
  const bytes = join(answer);
  let names: readonly string[] = [];
  let left = offset;
  for (let at = 0; at + 5 <= bytes.length; at += lengthAt(bytes, at)) {
    const type = bytes[at];
    if (asynchronous(type)) continue;
    const whole = wholeAt(bytes, at);
    if (type === Backend.ROW_DESCRIPTION && whole) names = rowDescription(bytes, at).map(({ name }) => name);
    const length =
      type === Backend.ERROR && whole
        ? 1 + parseError(bytes, at, at + lengthAt(bytes, at)).code.length
        : lengthAt(bytes, at);
    if (left < length) return partOf(bytes, at, left, got, names);
    left -= length;
  }
  return null;
}

/** Names the part of the frame at `start` that stands `offset` bytes behind its beginning. */
function partOf(
  bytes: Uint8Array,
  start: number,
  offset: number,
  got: Uint8Array | null,
  names: readonly string[],
): string | null {
  const type = bytes[start];
  if (got !== null && got[0] === Backend.ERROR && wholeAt(got, 0)) {
    return `its outcome: error ${parseError(got, 0, lengthAt(got, 0)).code}`;
  }
  const column = (i: number): string => names[i] ?? `column ${i + 1}`;
  if (type === Backend.COMMAND_COMPLETE) return ROW_COUNT;
  if (type !== Backend.DATA_ROW) return type === Backend.ROW_DESCRIPTION ? 'the columns of the result' : null;
  if (got !== null && got[0] !== Backend.DATA_ROW) return ROW_COUNT;
  if (got !== null && wholeAt(got, 0) && wholeAt(bytes, start)) {
    const before = dataRow(bytes, start, start + lengthAt(bytes, start));
    const now = dataRow(got, 0, got.length);
    const i = before.findIndex((value, k) => value !== now[k]);
    if (i >= 0) return column(i);
  }
  const view = viewOf(bytes);
  if (start + 7 > bytes.length) return null;
  const count = view.getUint16(start + 5);
  // In front of the columns stands the length of the row: any of them may be a longer one.
  if (offset < 7) return count === 1 ? column(0) : null;
  let at = start + 7;
  for (let i = 0; i < count && at + 4 <= bytes.length; i++) {
    at += 4 + Math.max(0, view.getInt32(at));
    if (start + offset < at) return column(i);
  }
  return null;
}
