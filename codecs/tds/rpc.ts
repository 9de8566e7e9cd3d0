/**
 * RPC (MS-TDS 2.2.6.6): calls of procedures, several in one message if need be. Parameters are skimmed: what they are called, of which type
 * they are and where their values stand; a value is read when somebody asks for it.
 */

import { Reader, uint32, utf16, Writer } from './bytes.js';
import { integerOf, readTypeInfo, readValue, type TypeInfo } from './facts.js';
import { type AllHeaders, allHeaders, readAllHeaders } from './request.js';
import {
  BIGBINARYTYPE,
  BITNTYPE,
  BYTELEN,
  CHARBIN_NULL,
  LONGCHAR,
  LONGLEN,
  MAX_EMPTY_COLUMNS,
  NCHARTYPE,
  NTEXTTYPE,
  NVARCHARTYPE,
  PLP,
  TABLE,
  TEXTPTR,
  USHORTLEN,
} from './types.js';
import { type Dialect, TDS_7_2 } from './version.js';

// Procedures with a number in place of a name (2.2.6.6).
export const SP_CURSOR = 1;
export const SP_CURSOROPEN = 2;
export const SP_CURSORPREPARE = 3;
export const SP_CURSOREXECUTE = 4;
export const SP_CURSORPREPEXEC = 5;
export const SP_CURSORUNPREPARE = 6;
export const SP_CURSORFETCH = 7;
export const SP_CURSOROPTION = 8;
export const SP_CURSORCLOSE = 9;
export const SP_EXECUTESQL = 10;
export const SP_PREPARE = 11;
export const SP_EXECUTE = 12;
export const SP_PREPEXEC = 13;
export const SP_PREPEXECRPC = 14;
export const SP_UNPREPARE = 15;

const PROCEDURES: readonly string[] = [
  '',
  'sp_cursor',
  'sp_cursoropen',
  'sp_cursorprepare',
  'sp_cursorexecute',
  'sp_cursorprepexec',
  'sp_cursorunprepare',
  'sp_cursorfetch',
  'sp_cursoroption',
  'sp_cursorclose',
  'sp_executesql',
  'sp_prepare',
  'sp_execute',
  'sp_prepexec',
  'sp_prepexecrpc',
  'sp_unprepare',
];

/** Place of the SQL text among the parameters of these procedures. */
const TEXT_AT: Readonly<Record<number, number>> = {
  [SP_CURSOROPEN]: 1,
  [SP_CURSORPREPARE]: 2,
  [SP_CURSORPREPEXEC]: 3,
  [SP_EXECUTESQL]: 0,
  [SP_PREPARE]: 2,
  [SP_PREPEXEC]: 2,
  [SP_PREPEXECRPC]: 1,
};

// Option flags.
export const RPC_RECOMPILE = 0x01;
/** The result is not to be described: the client knows its columns. */
export const RPC_NO_METADATA = 0x02;
export const RPC_REUSE_METADATA = 0x04;

// Status of a parameter.
/** OUTPUT. */
export const PARAM_BY_REF = 0x01;
/** Its default is to be taken. */
export const PARAM_DEFAULT = 0x02;
export const PARAM_ENCRYPTED = 0x08;

// What stands between two calls.
const BATCH_FLAG = 0xff;
const BATCH_FLAG_7_1 = 0x80;
/** The call before is not to be executed. */
const NO_EXEC_FLAG = 0xfe;

/** One parameter; `valueAt` and `end` are positions in the bytes that the request was read from. */
export interface RpcParameter extends TypeInfo {
  /** With its @; empty when it goes by its place. */
  readonly name: string;
  readonly status: number;
  /** Where its value begins, length included. */
  readonly valueAt: number;
  /** Where the parameter ends. */
  readonly end: number;
}

/** One call. */
export interface RpcCall {
  /** As sent, or the name that belongs to {@link id}. Can be qualified and quoted. */
  readonly name: string;
  /** Number of a well-known procedure, else 0. A client may call it by its name all the same. */
  readonly id: number;
  readonly options: number;
  readonly parameters: readonly RpcParameter[];
  /** False when the message says that it is not to be executed. */
  readonly execute: boolean;
}

/** An RPC message. */
export interface RpcRequest {
  readonly headers: AllHeaders;
  /** At least one. */
  readonly calls: readonly RpcCall[];
}

/**
 * Reads the payload of an RPC message.
 *
 * @throws ProtocolViolation when it is malformed
 */
export function readRpc(bytes: Uint8Array, start: number, end: number, dialect: Dialect, enclave = false): RpcRequest {
  const modern = dialect >= TDS_7_2;
  const headers = modern
    ? readAllHeaders(bytes, start, end)
    : { length: 0, descriptorAt: -1, descriptor: 0n, outstanding: 1, traceActivity: null, notification: false };
  const reader = new Reader(bytes, start + headers.length, end, 'client', 'an RPC');
  const separator = modern ? BATCH_FLAG : BATCH_FLAG_7_1;
  const separates = (): boolean => {
    const next = bytes[reader.at];
    return next === separator || (modern && next === NO_EXEC_FLAG);
  };
  const calls: RpcCall[] = [];
  do {
    if (enclave) reader.usVarbyte();
    const length = reader.ushort();
    const id = length === CHARBIN_NULL ? reader.ushort() : 0;
    const name = length === CHARBIN_NULL ? (PROCEDURES[id] ?? '') : reader.unicode(length);
    if (id === 0 && name === '') reader.fail('calls nothing');
    const options = reader.ushort();
    const parameters: RpcParameter[] = [];
    while (reader.left > 0 && !separates()) parameters.push(readParameter(reader, dialect));
    const execute = !(reader.left > 0 && bytes[reader.at] === NO_EXEC_FLAG);
    calls.push({ name, id, options, parameters, execute });
    // A separator may also end the message.
    if (reader.left > 0) reader.skip(1);
  } while (reader.left > 0);
  return { headers, calls };
}

function readParameter(reader: Reader, dialect: Dialect): RpcParameter {
  const name = reader.bVarchar();
  const status = reader.byte();
  const info = readTypeInfo(reader, dialect, 'parameter');
  const valueAt = reader.at;
  if (info.shape === TABLE) skipTable(reader, dialect);
  else skipValue(reader, info.shape);
  if ((status & PARAM_ENCRYPTED) !== 0) skipCipherInfo(reader, dialect);
  return { name, status, ...info, valueAt, end: reader.at };
}

/** Goes over a value by its length. */
function skipValue(reader: Reader, shape: number): void {
  switch (shape) {
    case BYTELEN:
      reader.skip(reader.byte());
      break;
    case USHORTLEN: {
      const length = reader.ushort();
      if (length !== CHARBIN_NULL) reader.skip(length);
      break;
    }
    case PLP: {
      const at = reader.skip(8);
      if (uint32(reader.bytes, at) === 0xffffffff && uint32(reader.bytes, at + 4) === 0xffffffff) break;
      for (let length = reader.ulong(); length > 0; length = reader.ulong()) reader.skip(length);
      break;
    }
    case LONGLEN:
      reader.skip(reader.ulong());
      break;
    case LONGCHAR: {
      const length = reader.ulong();
      if (length !== 0xffffffff) reader.skip(length);
      break;
    }
    case TEXTPTR:
      reader.fail('has a text with a pointer');
      break;
    default:
      reader.skip(shape);
  }
}

/** ParamCipherInfo: the type of the plain value, and which key it was encrypted with. */
function skipCipherInfo(reader: Reader, dialect: Dialect): void {
  readTypeInfo(reader, dialect, 'parameter');
  // Algorithm (with a name when it has no number), its kind, database id, key id, version, metadata version, norm version.
  if (reader.byte() === 0) reader.bVarchar();
  reader.skip(1 + 4 + 4 + 4 + 8 + 1);
}

// Optional parts of a table's description and its rows (2.2.5.5.5).
const TVP_ORDER_UNIQUE = 0x10;
const TVP_COLUMN_ORDERING = 0x11;
/** How many rows about come: one byte of length, then the number. Not in MS-TDS; SqlClient knows it. */
const TVP_ROWCOUNT_ESTIMATE = 0x12;
const TVP_ROW = 0x01;
const TVP_END = 0x00;
/** Flag of a column whose default is taken in all rows: its values are left out. */
const COLUMN_DEFAULT = 0x0200;

/** Goes over a table-valued parameter behind its type's name (2.2.5.5.5). */
function skipTable(reader: Reader, dialect: Dialect): void {
  const count = reader.ushort();
  const shapes: number[] = [];
  let empties = 0;
  // ffff: no table at all.
  for (let left = count === CHARBIN_NULL ? 0 : count; left > 0; left--) {
    reader.skip(4);
    const flags = reader.ushort();
    const { shape } = readTypeInfo(reader, dialect, 'parameter');
    if (shape === TABLE) reader.fail('has a table within a table');
    if (shape === 0 && ++empties > MAX_EMPTY_COLUMNS) reader.fail('has a table of too many columns that hold nothing');
    if ((flags & COLUMN_DEFAULT) === 0) shapes.push(shape);
    reader.bVarchar();
  }
  for (let part = reader.byte(); part !== TVP_END; part = reader.byte()) {
    if (part === TVP_ORDER_UNIQUE) reader.skip(3 * reader.ushort());
    else if (part === TVP_COLUMN_ORDERING) reader.skip(2 * reader.ushort());
    else if (part === TVP_ROWCOUNT_ESTIMATE) reader.skip(reader.byte());
    else reader.fail('has a malformed table');
  }
  for (let part = reader.byte(); part !== TVP_END; part = reader.byte()) {
    if (part !== TVP_ROW) reader.fail('has a malformed table');
    for (const shape of shapes) skipValue(reader, shape);
  }
}

// -------------------------------------------------------------------------------------------------------- what is in it

/** The value of a parameter, null for NULL; not for tables. `bytes` are those that the request was read from. */
export function parameterValue(bytes: Uint8Array, { shape, valueAt, end }: RpcParameter): Uint8Array | null {
  return readValue(new Reader(bytes, valueAt, end, 'client', 'a parameter of an RPC'), shape);
}

/** A parameter that is a whole number; null for NULL, and when it is none. */
export function parameterInteger(bytes: Uint8Array, parameter: RpcParameter): number | null {
  const value = parameter.shape === TABLE ? null : parameterValue(bytes, parameter);
  return value === null || ![1, 2, 4, 8].includes(value.length) ? null : integerOf(value);
}

/** A parameter that is a text in UTF-16 (nvarchar, nchar, ntext); null for NULL, and when it is none. */
export function parameterText(bytes: Uint8Array, parameter: RpcParameter): string | null {
  if (parameter.type !== NVARCHARTYPE && parameter.type !== NCHARTYPE && parameter.type !== NTEXTTYPE) return null;
  const value = parameterValue(bytes, parameter);
  return value === null ? null : utf16(value, 0, value.length);
}

/** Number of the well-known procedure that is called, by number or by name; 0 for others. */
export function wellKnown(call: RpcCall): number {
  if (call.id !== 0) return call.id;
  const plain = call.name.toLowerCase().replace(/^(\[?master\]?\.\.|\[?(dbo|sys)\]?\.)?\[?([^\]]*)\]?$/, '$3');
  return Math.max(0, PROCEDURES.indexOf(plain));
}

/** The SQL text that a call of sp_executesql, sp_prepare and the like carries; null for others. */
export function statementText(bytes: Uint8Array, call: RpcCall): string | null {
  const at = TEXT_AT[wellKnown(call)];
  const parameter = at === undefined ? undefined : call.parameters[at];
  return parameter === undefined ? null : parameterText(bytes, parameter);
}

// ------------------------------------------------------------------------------------------------------------- writing

/** A parameter to be written: its TYPE_INFO and value as bytes. */
export interface WrittenParameter {
  readonly name?: string;
  readonly status?: number;
  readonly typeInfo: Uint8Array;
  readonly value: Uint8Array;
}

/** Any collation does for the texts of the gateway's own calls, which are UTF-16. */
const COLLATION = Uint8Array.of(0x09, 0x04, 0xd0, 0x00, 0x34);

/** A nvarchar, as nvarchar(max) when it is long. */
export function textParameter(text: string | null, name?: string): WrittenParameter {
  const bytes = Buffer.from(text ?? '', 'utf16le');
  const max = bytes.length > 8000;
  const typeInfo = new Writer()
    .byte(NVARCHARTYPE)
    .ushort(max ? CHARBIN_NULL : 8000)
    .raw(COLLATION)
    .done();
  const value = new Writer();
  if (text === null) value.ushort(CHARBIN_NULL);
  else if (max) value.ulonglong(BigInt(bytes.length)).ulong(bytes.length).raw(bytes).ulong(0);
  else value.ushort(bytes.length).raw(bytes);
  return { name, typeInfo, value: value.done() };
}

/** An int. */
export function integerParameter(number: number | null, name?: string, status?: number): WrittenParameter {
  const value = new Writer().byte(number === null ? 0 : 4);
  if (number !== null) value.ulong(number);
  return { name, status, typeInfo: Uint8Array.of(0x26, 4), value: value.done() };
}

/** A binary of the value's own length. */
export const binaryParameter = (value: Uint8Array): WrittenParameter => ({
  typeInfo: new Writer().byte(BIGBINARYTYPE).ushort(value.length).done(),
  value: new Writer().ushort(value.length).raw(value).done(),
});

/** A bit. */
export const bitParameter = (on: boolean): WrittenParameter => ({
  typeInfo: Uint8Array.of(BITNTYPE, 1),
  value: Uint8Array.of(1, on ? 1 : 0),
});

/** One call to be written: a well-known procedure by its number, or another by its name. */
export interface WrittenCall {
  readonly procedure: number | string;
  readonly options?: number;
  readonly parameters: readonly WrittenParameter[];
}

/** The payload of an RPC message (7.2 and newer). */
export function writeRpc(descriptor: bigint, calls: readonly WrittenCall[]): Uint8Array {
  const out = new Writer().raw(allHeaders(descriptor));
  for (const [index, { procedure, options = 0, parameters }] of calls.entries()) {
    if (index > 0) out.byte(BATCH_FLAG);
    if (typeof procedure === 'number') out.ushort(CHARBIN_NULL).ushort(procedure);
    else out.usVarchar(procedure);
    out.ushort(options);
    for (const { name = '', status = 0, typeInfo, value } of parameters)
      out.bVarchar(name).byte(status).raw(typeInfo).raw(value);
  }
  return out.done();
}
