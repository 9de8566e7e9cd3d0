import { ProtocolError, type Reader, TDS, type Writer } from './wire.js';

/** A T-SQL type. */
export interface SqlType {
  readonly name: TypeName;
  /** Of text in characters, of binary in bytes; -1 is max. */
  readonly length?: number;
  readonly precision?: number;
  readonly scale?: number;
}

/**
 * A value in the form in which PostgreSQL takes and gives it as text. Whatever comes from the wire is turned into it, and
 * whatever goes there is made of it.
 */
export type Value = string | null;

type Kind = 'int' | 'bit' | 'decimal' | 'money' | 'float' | 'text' | 'binary' | 'guid' | 'date' | 'xml' | 'variant';

interface Fact {
  readonly kind: Kind;
  /** The type in PostgreSQL, without a length. */
  readonly pg: string;
  /** Bytes on the wire, where they are fixed. */
  readonly size?: number;
  /** The wire's type for columns that cannot be null, where there is one. */
  readonly fixed?: number;
  /** The wire's type for all others. */
  readonly wire: number;
  /** Text in UTF-16. */
  readonly wide?: boolean;
  /** Filled up to its length. */
  readonly padded?: boolean;
}

/** All types, and where each goes. */
export const TYPES = {
  tinyint: { kind: 'int', pg: 'int2', size: 1, fixed: 0x30, wire: 0x26 },
  smallint: { kind: 'int', pg: 'int2', size: 2, fixed: 0x34, wire: 0x26 },
  int: { kind: 'int', pg: 'int4', size: 4, fixed: 0x38, wire: 0x26 },
  bigint: { kind: 'int', pg: 'int8', size: 8, fixed: 0x7f, wire: 0x26 },
  bit: { kind: 'bit', pg: 'int2', size: 1, fixed: 0x32, wire: 0x68 },
  decimal: { kind: 'decimal', pg: 'numeric', wire: 0x6a },
  numeric: { kind: 'decimal', pg: 'numeric', wire: 0x6c },
  money: { kind: 'money', pg: 'numeric(19,4)', size: 8, fixed: 0x3c, wire: 0x6e },
  smallmoney: { kind: 'money', pg: 'numeric(10,4)', size: 4, fixed: 0x7a, wire: 0x6e },
  real: { kind: 'float', pg: 'float4', size: 4, fixed: 0x3b, wire: 0x6d },
  float: { kind: 'float', pg: 'float8', size: 8, fixed: 0x3e, wire: 0x6d },
  char: { kind: 'text', pg: 'char', wire: 0xaf, padded: true },
  varchar: { kind: 'text', pg: 'varchar', wire: 0xa7 },
  nchar: { kind: 'text', pg: 'char', wire: 0xef, wide: true, padded: true },
  nvarchar: { kind: 'text', pg: 'varchar', wire: 0xe7, wide: true },
  text: { kind: 'text', pg: 'text', wire: 0x23 },
  ntext: { kind: 'text', pg: 'text', wire: 0x63, wide: true },
  binary: { kind: 'binary', pg: 'bytea', wire: 0xad, padded: true },
  varbinary: { kind: 'binary', pg: 'bytea', wire: 0xa5 },
  image: { kind: 'binary', pg: 'bytea', wire: 0x22 },
  uniqueidentifier: { kind: 'guid', pg: 'uuid', size: 16, wire: 0x24 },
  date: { kind: 'date', pg: 'date', wire: 0x28 },
  time: { kind: 'date', pg: 'time', wire: 0x29 },
  datetime: { kind: 'date', pg: 'timestamp', size: 8, fixed: 0x3d, wire: 0x6f },
  smalldatetime: { kind: 'date', pg: 'timestamp', size: 4, fixed: 0x3a, wire: 0x6f },
  datetime2: { kind: 'date', pg: 'timestamp', wire: 0x2a },
  datetimeoffset: { kind: 'date', pg: 'timestamptz', wire: 0x2b },
  xml: { kind: 'xml', pg: 'text', wire: 0xf1, wide: true },
  sql_variant: { kind: 'variant', pg: 'text', wire: 0x62 },
} as const satisfies Record<string, Fact>;

export type TypeName = keyof typeof TYPES;

function factOf(type: SqlType): Fact {
  return TYPES[type.name];
}

/** Other names of types. */
const SYNONYMS: Readonly<Record<string, SqlType>> = {
  integer: { name: 'int' },
  dec: { name: 'decimal' },
  sysname: { name: 'nvarchar', length: 128 },
  character: { name: 'char' },
  rowversion: { name: 'binary', length: 8 },
};

/** A type by its name and the numbers in brackets behind it ('max' as -1); null when there is none of that name. */
export function typeNamed(word: string, sizes: readonly number[] = []): SqlType | null {
  const name = word.toLowerCase();
  const synonym = SYNONYMS[name];
  if (synonym !== undefined && (sizes.length === 0 || synonym.length !== undefined)) return typeNamed2(synonym, []);
  const known = (synonym?.name ?? name) as TypeName;
  return Object.hasOwn(TYPES, known) ? typeNamed2({ name: known }, sizes) : null;
}

function typeNamed2({ name, length }: SqlType, sizes: readonly number[]): SqlType {
  const fact = TYPES[name] as Fact;
  if (fact.kind === 'decimal') return { name, precision: sizes[0] ?? 18, scale: sizes[1] ?? 0 };
  if (name === 'float') return (sizes[0] ?? 53) <= 24 ? { name: 'real' } : { name };
  if (name === 'time' || name === 'datetime2' || name === 'datetimeoffset') return { name, scale: sizes[0] ?? 7 };
  if (name === 'text' || name === 'ntext' || name === 'image') return { name, length: -1 };
  if (fact.kind === 'text' || fact.kind === 'binary') return { name, length: length ?? sizes[0] ?? 1 };
  return { name };
}

/** The type as T-SQL writes it. */
export function typeText(type: SqlType): string {
  const { kind } = factOf(type);
  if (kind === 'decimal') return `${type.name}(${type.precision},${type.scale})`;
  if (type.scale !== undefined) return `${type.name}(${type.scale})`;
  if (type.length === undefined || ['text', 'ntext', 'image'].includes(type.name)) return type.name;
  return `${type.name}(${type.length === -1 ? 'max' : type.length})`;
}

/** The type that PostgreSQL keeps it in. */
export function pgType(type: SqlType): string {
  const fact = factOf(type);
  if (fact.kind === 'decimal') return `numeric(${type.precision},${type.scale})`;
  if (type.name === 'datetime') return 'timestamp(3)';
  if (type.name === 'smalldatetime') return 'timestamp(0)';
  if (type.scale !== undefined) return `${fact.pg}(${Math.min(type.scale, 6)})`;
  if (fact.kind === 'text') return type.length === -1 ? 'text' : `${fact.pg}(${type.length})`;
  return fact.pg;
}

/** A value as an SQL literal of its type. */
export function literal(type: SqlType, value: Value): string {
  return value === null ? `NULL::${pgType(type)}` : `${quote(value)}::${pgType(type)}`;
}

/** A text in quotes. A NUL, which PostgreSQL cannot keep, becomes U+FFFD. */
export function quote(text: string): string {
  return `'${text.replaceAll('\0', '\ufffd').replaceAll("'", "''")}'`;
}

// ------------------------------------------------------------------------------------------------ text and numbers

/** SQL_Latin1_General_CP1_CI_AS. */
export const COLLATION = Buffer.from('0904d00034', 'hex');
const LATIN = new TextDecoder('windows-1252');
const TO_LATIN = new Map(Array.from({ length: 256 }, (_, byte) => [LATIN.decode(Uint8Array.of(byte)), byte]));

function encodeText(text: string, wide: boolean | undefined): Buffer {
  if (wide) return Buffer.from(text, 'utf16le');
  return Buffer.from(Array.from(text, (character) => TO_LATIN.get(character) ?? 0x3f));
}

function decodeText(bytes: Buffer, wide: boolean | undefined): string {
  return wide ? bytes.toString('utf16le') : LATIN.decode(bytes);
}

function unhex(value: string): Buffer {
  return value.startsWith('\\x') ? Buffer.from(value.slice(2), 'hex') : Buffer.from(value, 'utf8');
}

/** A decimal text as a whole number of its last place; digits beyond are rounded. */
export function toScaled(text: string, scale: number): bigint {
  const match = /^([+-]?)(\d*)(?:\.(\d*))?(?:[eE]([+-]?\d+))?$/.exec(text.trim());
  if (match === null) throw new Error(`not a number: ${text}`);
  const [, sign, whole, fraction = '', exponent = '0'] = match;
  const shift = scale + Number(exponent) - fraction.length;
  const digits = BigInt(`${whole}${fraction}` || '0');
  let scaled = shift >= 0 ? digits * 10n ** BigInt(shift) : digits;
  if (shift < 0) {
    const unit = 10n ** BigInt(-shift);
    scaled = (digits + unit / 2n) / unit;
  }
  return sign === '-' ? -scaled : scaled;
}

function fromScaled(scaled: bigint, scale: number): string {
  const digits = (scaled < 0n ? -scaled : scaled).toString().padStart(scale + 1, '0');
  const text = scale === 0 ? digits : `${digits.slice(0, -scale)}.${digits.slice(-scale)}`;
  return scaled < 0n ? `-${text}` : text;
}

function decimalSize(precision: number): number {
  return precision <= 9 ? 4 : precision <= 19 ? 8 : precision <= 28 ? 12 : 16;
}

function littleEndian(value: bigint, size: number): Buffer {
  const bytes = Buffer.alloc(size);
  for (let at = 0, rest = value; at < size; at++, rest >>= 8n) bytes[at] = Number(rest & 0xffn);
  return bytes;
}

function fromLittleEndian(bytes: Buffer): bigint {
  return bytes.reduceRight((value, byte) => (value << 8n) | BigInt(byte), 0n);
}

// ------------------------------------------------------------------------------------------------ dates

const DAY_MS = 86_400_000;
const TICKS_A_DAY = 864_000_000_000n;
/** Days from 0001-01-01 to 1900-01-01 and to 1970-01-01. */
const DAYS_TO_1900 = 693_595;
const DAYS_TO_1970 = 719_162;

interface Moment {
  /** Days since 0001-01-01. */
  readonly days: number;
  /** Units of 100 ns since midnight. */
  readonly ticks: bigint;
  /** Minutes east of UTC. */
  readonly offset: number;
}

/** Reads a date, a time or both, as PostgreSQL writes them (ISO) and T-SQL does. */
export function parseMoment(text: string): Moment {
  const match =
    /^(?:(\d{4,})-?(\d\d)-?(\d\d))?[ T]?(?:(\d\d):(\d\d)(?::(\d\d)(?:[.](\d+))?)?)?\s*(Z|[+-]\d\d(?::?\d\d)?)?$/.exec(
      text,
    );
  if (match === null) throw new Error(`not a date or time: ${text}`);
  const [, year, month, day, hour = '0', minute = '0', second = '0', fraction = '', zone] = match;
  const days =
    year === undefined
      ? DAYS_TO_1900
      : Math.round(new Date(0).setUTCFullYear(Number(year), Number(month) - 1, Number(day)) / DAY_MS) + DAYS_TO_1970;
  const seconds = Number(hour) * 3600 + Number(minute) * 60 + Number(second);
  const ticks = BigInt(seconds) * 10_000_000n + BigInt(fraction.padEnd(7, '0').slice(0, 7));
  let offset = 0;
  if (zone !== undefined && zone !== 'Z') {
    offset =
      (Number(zone.slice(1, 3)) * 60 + Number(zone.slice(3).replace(':', '') || '0')) * (zone[0] === '-' ? -1 : 1);
  }
  return { days, ticks, offset };
}

function dateText(days: number): string {
  return new Date((days - DAYS_TO_1970) * DAY_MS).toISOString().slice(0, 10);
}

function timeText(ticks: bigint, scale: number): string {
  const seconds = Number(ticks / 10_000_000n);
  const parts = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60];
  const clock = parts.map((part) => String(part).padStart(2, '0')).join(':');
  if (scale === 0) return clock;
  return `${clock}.${(ticks % 10_000_000n).toString().padStart(7, '0').slice(0, scale)}`;
}

function timeSize(scale: number): number {
  return scale <= 2 ? 3 : scale <= 4 ? 4 : 5;
}

function timeBytes(ticks: bigint, scale: number): Buffer {
  return littleEndian(ticks / 10n ** BigInt(7 - scale), timeSize(scale));
}

/** A moment moved by minutes. */
function moved({ days, ticks, offset }: Moment, minutes: number): Moment {
  const total = BigInt(days) * TICKS_A_DAY + ticks + BigInt(minutes) * 600_000_000n;
  return { days: Number(total / TICKS_A_DAY), ticks: total % TICKS_A_DAY, offset };
}

function dateBytes(type: SqlType, value: string): Buffer {
  let moment = parseMoment(value);
  const scale = type.scale ?? 7;
  switch (type.name) {
    case 'date':
      return littleEndian(BigInt(moment.days), 3);
    case 'time':
      return timeBytes(moment.ticks, scale);
    case 'datetime2':
      return Buffer.concat([timeBytes(moment.ticks, scale), littleEndian(BigInt(moment.days), 3)]);
    case 'datetimeoffset': {
      const { offset } = moment;
      moment = moved(moment, -offset);
      const zone = Buffer.alloc(2);
      zone.writeInt16LE(offset);
      return Buffer.concat([timeBytes(moment.ticks, scale), littleEndian(BigInt(moment.days), 3), zone]);
    }
    case 'smalldatetime': {
      moment = moved({ ...moment, ticks: moment.ticks + 300_000_000n }, 0);
      const bytes = Buffer.alloc(4);
      bytes.writeUInt16LE(moment.days - DAYS_TO_1900);
      bytes.writeUInt16LE(Number(moment.ticks / 600_000_000n), 2);
      return bytes;
    }
    default: {
      // Units of 1/300 of a second, rounded; midnight of the next day may come of it.
      let units = Number((moment.ticks * 300n + 5_000_000n) / 10_000_000n);
      let days = moment.days - DAYS_TO_1900;
      if (units >= 25_920_000) [units, days] = [0, days + 1];
      const bytes = Buffer.alloc(8);
      bytes.writeInt32LE(days);
      bytes.writeUInt32LE(units, 4);
      return bytes;
    }
  }
}

function dateFrom(type: SqlType, bytes: Buffer): string {
  const scale = type.scale ?? 7;
  const size = timeSize(scale);
  const ticks = () => fromLittleEndian(bytes.subarray(0, size)) * 10n ** BigInt(7 - scale);
  const days = (at: number) => Number(fromLittleEndian(bytes.subarray(at, at + 3)));
  switch (type.name) {
    case 'date':
      return dateText(days(0));
    case 'time':
      return timeText(ticks(), scale);
    case 'datetime2':
      return `${dateText(days(size))} ${timeText(ticks(), scale)}`;
    case 'datetimeoffset': {
      const offset = bytes.readInt16LE(size + 3);
      const moment = moved({ days: days(size), ticks: ticks(), offset }, offset);
      const zone = `${offset < 0 ? '-' : '+'}${[Math.abs(offset) / 60, Math.abs(offset) % 60]
        .map((part) => String(Math.floor(part)).padStart(2, '0'))
        .join(':')}`;
      return `${dateText(moment.days)} ${timeText(moment.ticks, scale)}${zone}`;
    }
    case 'smalldatetime':
      return `${dateText(bytes.readUInt16LE(0) + DAYS_TO_1900)} ${timeText(BigInt(bytes.readUInt16LE(2)) * 600_000_000n, 0)}`;
    default: {
      // Rounded to the milliseconds that SQL Server shows: .000, .003, .007.
      const units = BigInt(bytes.readUInt32LE(4));
      const ms = (units * 10n + 1n) / 3n;
      return `${dateText(bytes.readInt32LE(0) + DAYS_TO_1900)} ${timeText(ms * 10_000n, 3)}`;
    }
  }
}

// ------------------------------------------------------------------------------------------------ guids

function guidBytes(text: string): Buffer {
  const b = Buffer.from(text.replaceAll(/[{}-]/g, ''), 'hex');
  return Buffer.from([b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6], ...b.subarray(8)]);
}

function guidText(b: Buffer): string {
  const hex = Buffer.from([b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6], ...b.subarray(8)])
    .toString('hex')
    .toUpperCase();
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join('-');
}

// ------------------------------------------------------------------------------------------------ to the wire

/** What the client's version can carry in place of a type it does not know. */
export function typeFor(type: SqlType, version: number): SqlType {
  if (version < TDS.v72) {
    if (type.name === 'xml') return { name: 'ntext', length: -1 };
    if (type.length === -1) {
      const { kind, wide } = factOf(type);
      return { name: kind === 'binary' ? 'image' : wide ? 'ntext' : 'text', length: -1 };
    }
  }
  if (version < TDS.v73a && ['date', 'time', 'datetime2', 'datetimeoffset'].includes(type.name)) {
    return { name: 'nvarchar', length: 40 };
  }
  return type;
}

/** Writes TYPE_INFO. The type must be one that {@link typeFor} gave. */
export function writeType(out: Writer, type: SqlType, nullable: boolean): void {
  const fact = factOf(type);
  if (!nullable && fact.fixed !== undefined) {
    out.u8(fact.fixed);
    return;
  }
  out.u8(fact.wire);
  if (fact.size !== undefined) out.u8(fact.size);
  else if (fact.kind === 'decimal') out.u8(decimalSize(type.precision!) + 1, type.precision!, type.scale!);
  else if (type.scale !== undefined) out.u8(type.scale);
  else if (type.name === 'xml') out.u8(0);
  else if (fact.kind === 'variant') out.u32(8009);
  else if (isLong(type)) {
    out.u32(0x7fffffff);
    if (fact.kind === 'text') out.raw(COLLATION);
  } else if (fact.kind === 'text' || fact.kind === 'binary') {
    out.u16(type.length === -1 ? 0xffff : Math.max(type.length! * (fact.wide ? 2 : 1), 1));
    if (fact.kind === 'text') out.raw(COLLATION);
  }
}

function isLong(type: SqlType): boolean {
  return type.name === 'text' || type.name === 'ntext' || type.name === 'image';
}

function isPlp(type: SqlType): boolean {
  return type.name === 'xml' || (type.length === -1 && !isLong(type));
}

/** The bytes of a value that is not null, without any length. */
function valueBytes(type: SqlType, value: string): Buffer {
  const fact = factOf(type);
  switch (fact.kind) {
    case 'int':
      return littleEndian(BigInt.asUintN(fact.size! * 8, BigInt(value)), fact.size!);
    case 'bit':
      return Buffer.from([value === '0' || value === 'f' ? 0 : 1]);
    case 'decimal': {
      const scaled = toScaled(value, type.scale!);
      const magnitude = scaled < 0n ? -scaled : scaled;
      return Buffer.concat([Buffer.from([scaled < 0n ? 0 : 1]), littleEndian(magnitude, decimalSize(type.precision!))]);
    }
    case 'money': {
      const bytes = littleEndian(BigInt.asUintN(fact.size! * 8, toScaled(value, 4)), fact.size!);
      // Eight bytes are two words, the high one first.
      return fact.size === 8 ? Buffer.concat([bytes.subarray(4), bytes.subarray(0, 4)]) : bytes;
    }
    case 'float': {
      const bytes = Buffer.alloc(fact.size!);
      if (fact.size === 4) bytes.writeFloatLE(Number(value));
      else bytes.writeDoubleLE(Number(value));
      return bytes;
    }
    case 'guid':
      return guidBytes(value);
    case 'date':
      return dateBytes(type, value);
    case 'binary': {
      const bytes = unhex(value);
      if (type.length === -1 || bytes.length >= type.length!)
        return bytes.subarray(0, type.length === -1 ? undefined : type.length);
      return fact.padded ? Buffer.concat([bytes, Buffer.alloc(type.length! - bytes.length)]) : bytes;
    }
    default: {
      const text = fact.padded ? value.padEnd(type.length!) : value;
      return encodeText(type.length === -1 || type.length === undefined ? text : text.slice(0, type.length), fact.wide);
    }
  }
}

/** Writes a value as it stands in a ROW, or as the value of RETURNVALUE. */
export function writeValue(out: Writer, type: SqlType, nullable: boolean, value: Value): void {
  const fact = factOf(type);
  if (fact.kind === 'variant') {
    if (value === null) out.u32(0);
    else {
      const bytes = encodeText(value, true);
      out
        .u32(bytes.length + 9)
        .u8(0xe7, 7)
        .raw(COLLATION)
        .u16(8000)
        .raw(bytes);
    }
  } else if (isPlp(type)) {
    if (value === null) out.u64(0xffff_ffff_ffff_ffffn);
    else {
      const bytes = valueBytes(type, value);
      out.u64(BigInt(bytes.length));
      for (let at = 0; at < bytes.length; at += 8000) {
        const chunk = bytes.subarray(at, at + 8000);
        out.u32(chunk.length).raw(chunk);
      }
      out.u32(0);
    }
  } else if (isLong(type)) {
    if (value === null) out.u8(0);
    else {
      const bytes = valueBytes(type, value);
      out.u8(16).raw(Buffer.alloc(16, 'p')).raw(Buffer.alloc(8)).u32(bytes.length).raw(bytes);
    }
  } else if (fact.kind === 'text' || fact.kind === 'binary') {
    if (value === null) out.u16(0xffff);
    else {
      const bytes = valueBytes(type, value);
      out.u16(bytes.length).raw(bytes);
    }
  } else if (!nullable && fact.fixed !== undefined) {
    out.raw(valueBytes(type, value ?? '0'));
  } else if (value === null) {
    out.u8(0);
  } else {
    const bytes = valueBytes(type, value);
    out.u8(bytes.length).raw(bytes);
  }
}

// ------------------------------------------------------------------------------------------------ from the wire

/** TYPE_INFO as a client sent it. */
export interface WireType {
  readonly id: number;
  readonly type: SqlType;
}

const FIXED_SIZE: Readonly<Record<number, TypeName>> = {
  48: 'tinyint',
  50: 'bit',
  52: 'smallint',
  56: 'int',
  58: 'smalldatetime',
  59: 'real',
  60: 'money',
  61: 'datetime',
  62: 'float',
  122: 'smallmoney',
  127: 'bigint',
};

const BY_SIZE: Readonly<Record<number, Readonly<Record<number, TypeName>>>> = {
  38: { 1: 'tinyint', 2: 'smallint', 4: 'int', 8: 'bigint' },
  104: { 1: 'bit' },
  109: { 4: 'real', 8: 'float' },
  110: { 4: 'smallmoney', 8: 'money' },
  111: { 4: 'smalldatetime', 8: 'datetime' },
  36: { 16: 'uniqueidentifier' },
};

const BY_LENGTH: Readonly<Record<number, TypeName>> = {
  165: 'varbinary',
  167: 'varchar',
  173: 'binary',
  175: 'char',
  231: 'nvarchar',
  239: 'nchar',
};

const LONG: Readonly<Record<number, TypeName>> = { 34: 'image', 35: 'text', 99: 'ntext' };

/** Reads TYPE_INFO. Throws {@link ProtocolError} for types that are not known here (TVP, UDT, JSON, VECTOR). */
export function readType(reader: Reader): WireType {
  const id = reader.u8();
  if (id in FIXED_SIZE) return { id, type: { name: FIXED_SIZE[id] } };
  if (id in BY_SIZE) {
    const size = reader.u8();
    const name = BY_SIZE[id][size === 0 ? 4 : size];
    if (name === undefined && id !== 0x24) throw new ProtocolError(`type ${id} of ${size} bytes`);
    return { id, type: { name: name ?? 'uniqueidentifier' } };
  }
  if (id in BY_LENGTH) {
    const name = BY_LENGTH[id];
    const size = reader.u16();
    const { kind, wide } = TYPES[name] as Fact;
    if (kind === 'text') reader.take(5);
    return { id, type: { name, length: size === 0xffff ? -1 : Math.max(1, size / (wide ? 2 : 1)) } };
  }
  if (id in LONG) {
    reader.u32();
    if (id !== 0x22) reader.take(5);
    return { id, type: { name: LONG[id], length: -1 } };
  }
  switch (id) {
    case 0x1f:
      return { id, type: { name: 'nvarchar', length: 1 } };
    case 0x28:
      return { id, type: { name: 'date' } };
    case 0x29:
      return { id, type: { name: 'time', scale: reader.u8() } };
    case 0x2a:
      return { id, type: { name: 'datetime2', scale: reader.u8() } };
    case 0x2b:
      return { id, type: { name: 'datetimeoffset', scale: reader.u8() } };
    case 0x37:
    case 0x3f:
    case 0x6a:
    case 0x6c: {
      reader.u8();
      const precision = reader.u8();
      return { id, type: { name: id === 0x6c || id === 0x3f ? 'numeric' : 'decimal', precision, scale: reader.u8() } };
    }
    case 0xf1:
      if (reader.u8() !== 0) {
        reader.text(1);
        reader.text(1);
        reader.text(2);
      }
      return { id, type: { name: 'xml' } };
    case 0x62:
      reader.u32();
      return { id, type: { name: 'sql_variant' } };
    default:
      throw new ProtocolError(`type ${id} is not known`);
  }
}

function fromBytes(type: SqlType, bytes: Buffer): string {
  const fact = factOf(type);
  switch (fact.kind) {
    case 'int': {
      const value = fromLittleEndian(bytes);
      return (type.name === 'tinyint' ? value : BigInt.asIntN(bytes.length * 8, value)).toString();
    }
    case 'bit':
      return bytes[0] === 0 ? '0' : '1';
    case 'decimal': {
      const magnitude = fromLittleEndian(bytes.subarray(1));
      return fromScaled(bytes[0] === 0 ? -magnitude : magnitude, type.scale!);
    }
    case 'money': {
      const value =
        bytes.length === 8
          ? (BigInt(bytes.readInt32LE(0)) << 32n) | BigInt(bytes.readUInt32LE(4))
          : BigInt(bytes.readInt32LE(0));
      return fromScaled(value, 4);
    }
    case 'float':
      return String(bytes.length === 4 ? Math.fround(bytes.readFloatLE()) : bytes.readDoubleLE());
    case 'guid':
      return guidText(bytes);
    case 'date':
      return dateFrom(type, bytes);
    case 'binary':
      return `\\x${bytes.toString('hex')}`;
    default:
      return decodeText(bytes, fact.wide).replace(/^\ufeff/, '');
  }
}

function readPlp(reader: Reader): Buffer | null {
  if (reader.u64() === 0xffff_ffff_ffff_ffffn) return null;
  const chunks: Buffer[] = [];
  for (;;) {
    const size = reader.u32();
    if (size === 0) return Buffer.concat(chunks);
    chunks.push(reader.take(size));
  }
}

/**
 * Reads a value behind its TYPE_INFO.
 * @param place text, ntext and image have a text pointer in the rows of a bulk load, and none as a parameter
 */
export function readValue(reader: Reader, { id, type }: WireType, place: 'parameter' | 'row' = 'parameter'): Value {
  let bytes: Buffer | null;
  if (id === 0x1f) return null;
  if (id in FIXED_SIZE) bytes = reader.take((TYPES[type.name] as Fact).size!);
  else if (id === 0x62) return readVariant(reader);
  else if (isPlp(type)) bytes = readPlp(reader);
  else if (id in LONG) {
    if (place === 'row') {
      const pointer = reader.u8();
      if (pointer === 0) return null;
      reader.take(pointer + 8);
    }
    const size = reader.u32();
    bytes = size === 0xffffffff ? null : reader.take(size);
  } else if (id in BY_LENGTH) {
    const size = reader.u16();
    bytes = size === 0xffff ? null : reader.take(size);
  } else {
    const size = reader.u8();
    bytes = size === 0 ? null : reader.take(size);
  }
  return bytes === null ? null : fromBytes(type, bytes);
}

function readVariant(reader: Reader): Value {
  const size = reader.u32();
  if (size === 0) return null;
  const inside = reader.take(size);
  const base = inside[0];
  const properties = inside.subarray(2, 2 + inside[1]);
  const data = inside.subarray(2 + inside[1]);
  if (base in FIXED_SIZE) return fromBytes({ name: FIXED_SIZE[base] }, data);
  if (base in BY_LENGTH) return fromBytes({ name: BY_LENGTH[base], length: -1 }, data);
  if (base === 0x24) return guidText(data);
  if (base === 0x28) return fromBytes({ name: 'date' }, data);
  if (base === 0x6a || base === 0x6c) {
    return fromBytes({ name: 'decimal', precision: properties[0], scale: properties[1] }, data);
  }
  const dated = ({ 41: 'time', 42: 'datetime2', 43: 'datetimeoffset' } as Record<number, TypeName>)[base];
  if (dated !== undefined) return fromBytes({ name: dated, scale: properties[0] }, data);
  throw new ProtocolError(`a variant of type ${base}`);
}

/** The type that a result column of PostgreSQL has by itself. */
export function typeOfOid(oid: number, modifier: number): SqlType {
  switch (oid) {
    case 16:
      return { name: 'bit' };
    case 20:
    case 26:
    case 28:
      return { name: 'bigint' };
    case 21:
      return { name: 'smallint' };
    case 23:
      return { name: 'int' };
    case 700:
      return { name: 'real' };
    case 701:
      return { name: 'float' };
    case 1700:
      return modifier < 0
        ? { name: 'decimal', precision: 38, scale: 10 }
        : { name: 'decimal', precision: ((modifier - 4) >> 16) & 0xffff, scale: (modifier - 4) & 0x7ff };
    case 1042:
      return { name: 'nchar', length: modifier < 0 ? 1 : modifier - 4 };
    case 1043:
      return { name: 'nvarchar', length: modifier < 0 || modifier - 4 > 4000 ? -1 : modifier - 4 };
    case 17:
      return { name: 'varbinary', length: -1 };
    case 2950:
      return { name: 'uniqueidentifier' };
    case 1082:
      return { name: 'date' };
    case 1083:
      return { name: 'time', scale: 7 };
    case 1114:
      return { name: 'datetime2', scale: 7 };
    case 1184:
      return { name: 'datetimeoffset', scale: 7 };
    default:
      return { name: 'nvarchar', length: -1 };
  }
}
