import { isTime } from './calls.js';
import { type Node, string } from './parse.js';
import type { SeenValue } from './types.js';

/** Oids of built-in types (pg_type.dat). */
export const INT8 = 20;
const INT2 = 21;
const INT4 = 23;
export const TEXT = 25;
const VARCHAR = 1043;
const TIMESTAMP = 1114;
const TIMESTAMPTZ = 1184;
const NUMERIC = 1700;
const UUID = 2950;

/** Types whose text form takes a value there and back without a loss, so that `column::type` tells what the column holds. */
export const LOSSLESS: ReadonlySet<number> = new Set([TEXT, VARCHAR, INT2, INT4, INT8, NUMERIC]);

export function textOf(value: SeenValue): string | null {
  return value.bytes === null ? null : Buffer.from(value.bytes).toString('utf8');
}

/** A whole number; null when it is none. */
export function integerOf(value: SeenValue | null | undefined): bigint | null {
  if (value === null || value === undefined || value.bytes === null) return null;
  const bytes = Buffer.from(value.bytes);
  if (value.format === 0) {
    const text = bytes.toString('latin1');
    return /^-?\d+$/.test(text) ? BigInt(text) : null;
  }
  if (bytes.length === 8) return bytes.readBigInt64BE();
  if (bytes.length === 4) return BigInt(bytes.readInt32BE());
  return bytes.length === 2 ? BigInt(bytes.readInt16BE()) : null;
}

/** A value's text where the type's forms are known: for comparing it with a constant. */
export function plainText(value: SeenValue, type: number): string | null {
  if (value.bytes === null) return null;
  if (type === INT2 || type === INT4 || type === INT8) return integerOf(value)?.toString() ?? null;
  if (type === TEXT || type === VARCHAR) return textOf(value);
  if (type === UUID && value.format === 0) return textOf(value);
  return null;
}

/** Whether two values are the same bytes. */
export function same(a: SeenValue, b: SeenValue): boolean {
  if (a.bytes === null || b.bytes === null) return a.bytes === b.bytes;
  return a.format === b.format && Buffer.compare(a.bytes, b.bytes) === 0;
}

/** A string literal, whatever standard_conforming_strings is. */
export function quotedLiteral(text: string): string {
  const doubled = text.replaceAll("'", "''");
  return text.includes('\\') ? ` E'${doubled.replaceAll('\\', '\\\\')}'` : `'${doubled}'`;
}

/** 2000-01-01 in milliseconds of Unix time: where PostgreSQL's binary times begin. */
const EPOCH = Date.UTC(2000, 0, 1);

/** Text of a time of day and date in binary form: microseconds since 2000. Null beyond the years of four digits. */
function timestampText(bytes: Buffer): string | null {
  if (bytes.length !== 8) return null;
  const micros = bytes.readBigInt64BE() + BigInt(EPOCH) * 1000n;
  const fraction = ((micros % 1_000_000n) + 1_000_000n) % 1_000_000n;
  const millis = Number((micros - fraction) / 1000n);
  if (millis < Date.UTC(1, 0, 1) + 86_400_000 || millis > Date.UTC(9999, 0, 1)) return null;
  const text = new Date(millis).toISOString().slice(0, 19).replace('T', ' ');
  return `${text}.${fraction.toString().padStart(6, '0')}`;
}

/**
 * The transaction's time as SQL of type timestamptz, from a value that a client saw.
 * @param type of the value, with its modifier (digits of the second, -1 for all six)
 * @param zone in which a value without a zone is meant: undefined for the session's
 * @returns null when this value does not tell the time
 */
export function timeOf(value: SeenValue, type: number, modifier: number, zone?: string): string | null {
  if (value.bytes === null) return null;
  const bytes = Buffer.from(value.bytes);
  const binary = value.format === 1 && type !== TEXT;
  const text = binary ? timestampText(bytes) : bytes.toString('utf8');
  // No infinity; and midnight to the microsecond is rather a date that was cast.
  if (text === null || !/^\d/.test(text) || /[ T]00:00:00(\.0+)?(?![.\d])/.test(text)) return null;
  const precision = modifier >= 0 && modifier < 6 ? `(${modifier})` : '';
  if (type === TIMESTAMPTZ || (type === TEXT && /^\d{4,}-\d\d-\d\d \S+[+-]\d\d/.test(text))) {
    return `${quotedLiteral(binary ? `${text}+00` : text)}::timestamptz${precision}`;
  }
  if (type !== TIMESTAMP) return null;
  const local = `${quotedLiteral(text)}::timestamp`;
  return zone === undefined
    ? `(${local})::timestamptz${precision}`
    : `(${local} AT TIME ZONE ${quotedLiteral(zone)})::timestamptz${precision}`;
}

/** How much a time tells: digits first, then whether it needs no session's zone to be understood. */
export function precisionOf(time: string): number {
  const digits = /\((\d)\)$/.exec(time);
  return (
    (digits === null ? 6 : Number(digits[1])) * 2 + (time.startsWith('(') && !time.includes(' AT TIME ZONE ') ? 0 : 1)
  );
}

/** What an expression that tells the time is. */
export interface TimeExpression {
  /** Value without a zone is meant in this one; undefined for the session's. */
  readonly zone: string | undefined;
  /** Digits of the second, -1 for all. */
  readonly digits: number;
}

/**
 * Whether an expression is the transaction's time itself, perhaps cast or in a fixed zone, so that its value tells the time.
 * Which type the value has must be looked at too: a date tells no time.
 */
export function tellsTime(node: Node): TimeExpression | null {
  let inner = node;
  let digits = -1;
  while (inner.TypeCast) {
    const names = inner.TypeCast.typeName.names ?? [];
    if (!TIME_TYPES.has(string(names.at(-1)) ?? '')) return null;
    inner = inner.TypeCast.arg;
  }
  const call = inner.FuncCall;
  if (call !== undefined && string(call.funcname.at(-1)) === 'timezone' && call.args?.length === 2) {
    const zone = call.args[0].TypeCast?.arg.A_Const?.sval?.sval ?? call.args[0].A_Const?.sval?.sval;
    const of = tellsTime(call.args[1]);
    if (zone === undefined || of === null || call.args[1].SQLValueFunction?.op.startsWith('SVFOP_LOCAL')) return null;
    return { zone, digits: of.digits };
  }
  if (!isTime(inner)) return null;
  const value = inner.SQLValueFunction;
  if (value !== undefined) {
    if (!/TIMESTAMP/.test(value.op)) return null;
    if (value.op.endsWith('_N')) digits = value.typmod ?? 0;
  }
  return { zone: undefined, digits };
}

const TIME_TYPES: ReadonlySet<string> = new Set(['timestamptz', 'timestamp', 'text']);
