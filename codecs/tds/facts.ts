/**
 * What the tokens of a server say (MS-TDS 2.2.7). Each function gets one whole token, its type included, as `TokenReader` tells it:
 * [start, end) of `bytes`. All throw a ProtocolViolation when the token is too short for its fields. Values are views of the bytes.
 */

import { Reader, type Sender, uint16, uint32, utf16 } from './bytes.js';
import { FLAG_ENCRYPTED, NBCROW, NO_METADATA, tokenName } from './tokens.js';
import {
  BYTELEN,
  CHARBIN_NULL,
  IMAGETYPE,
  LONGCHAR,
  LONGLEN,
  NTEXTTYPE,
  PLP,
  type Place,
  type Shape,
  TABLE,
  TEXTPTR,
  TEXTTYPE,
  TypeWalk,
  UNKNOWN_TYPE,
  USHORTLEN,
} from './types.js';
import { type Dialect, TDS_7_2, versionOfLoginAck } from './version.js';

const read = (bytes: Uint8Array, start: number, end: number): Reader =>
  new Reader(bytes, start + 1, end, 'server', `a ${tokenName(bytes[start])} token`);

// --------------------------------------------------------------------------------------------------------------- done

/** More of the response follows (2.2.7.6). */
export const DONE_MORE = 0x0001;
/** The statement failed. */
export const DONE_ERROR = 0x0002;
/** SQL Server never sets it: it says nothing of the transaction. */
export const DONE_INXACT = 0x0004;
/** The row count is valid. */
export const DONE_COUNT = 0x0010;
/** Acknowledges an Attention. */
export const DONE_ATTN = 0x0020;
/** DONEPROC: of one of several calls in a message. */
export const DONE_RPCINBATCH = 0x0080;
/** The result is to be thrown away: a severe error. */
export const DONE_SRVERROR = 0x0100;

/** DONE, DONEPROC and DONEINPROC. */
export interface Done {
  readonly status: number;
  /** Kind of the statement, for hints only. */
  readonly curCmd: number;
  /** Valid with {@link DONE_COUNT}. */
  readonly rowCount: bigint;
}

/** Status of a DONE, DONEPROC or DONEINPROC without reading the rest. */
export const doneStatus = (bytes: Uint8Array, start: number): number => uint16(bytes, start + 1);

export function readDone(bytes: Uint8Array, start: number, end: number, dialect: Dialect): Done {
  const reader = read(bytes, start, end);
  return {
    status: reader.ushort(),
    curCmd: reader.ushort(),
    rowCount: dialect >= TDS_7_2 ? reader.ulonglong() : BigInt(reader.ulong()),
  };
}

/** RETURNSTATUS: what a procedure returned. */
export const readReturnStatus = (bytes: Uint8Array, start: number, end: number): number =>
  read(bytes, start, end).long();

// ----------------------------------------------------------------------------------------------------------- messages

/** ERROR and INFO (2.2.7.10, 2.2.7.13). */
export interface ServerMessage {
  readonly number: number;
  readonly state: number;
  /** Severity: up to 10 information, from 20 on the connection ends. */
  readonly class: number;
  /** Can hold data. */
  readonly message: string;
  readonly server: string;
  readonly procedure: string;
  readonly line: number;
}

export function readMessage(bytes: Uint8Array, start: number, end: number, dialect: Dialect): ServerMessage {
  const reader = read(bytes, start, end);
  reader.ushort();
  return {
    number: reader.long(),
    state: reader.byte(),
    class: reader.byte(),
    message: reader.usVarchar(),
    server: reader.bVarchar(),
    procedure: reader.bVarchar(),
    line: dialect >= TDS_7_2 ? reader.ulong() : reader.ushort(),
  };
}

// ---------------------------------------------------------------------------------------------------------- envchange

// Types of ENVCHANGE (2.2.7.9).
export const ENV_DATABASE = 1;
export const ENV_LANGUAGE = 2;
export const ENV_CHARSET = 3;
export const ENV_PACKETSIZE = 4;
export const ENV_UNICODE_SORT_LOCALE = 5;
export const ENV_UNICODE_SORT_FLAGS = 6;
export const ENV_COLLATION = 7;
export const ENV_BEGIN = 8;
export const ENV_COMMIT = 9;
export const ENV_ROLLBACK = 10;
export const ENV_ENLIST = 11;
export const ENV_DEFECT = 12;
/** The failover partner of database mirroring. */
export const ENV_PARTNER = 13;
export const ENV_PROMOTE = 15;
export const ENV_TM_ADDRESS = 16;
export const ENV_TRANSACTION_ENDED = 17;
/** Acknowledges RESETCONNECTION and RESETCONNECTIONSKIPTRAN. */
export const ENV_RESET = 18;
export const ENV_USER_INSTANCE = 19;
export const ENV_ROUTING = 20;
export const ENV_ENHANCED_ROUTING = 21;

const ENV_NAMES: Readonly<Record<number, string>> = {
  [ENV_DATABASE]: 'database',
  [ENV_LANGUAGE]: 'language',
  [ENV_CHARSET]: 'character set',
  [ENV_PACKETSIZE]: 'packet size',
  [ENV_UNICODE_SORT_LOCALE]: 'unicode sorting locale',
  [ENV_UNICODE_SORT_FLAGS]: 'unicode sorting flags',
  [ENV_COLLATION]: 'collation',
  [ENV_BEGIN]: 'begin transaction',
  [ENV_COMMIT]: 'commit transaction',
  [ENV_ROLLBACK]: 'rollback transaction',
  [ENV_ENLIST]: 'enlist DTC transaction',
  [ENV_DEFECT]: 'defect transaction',
  [ENV_PARTNER]: 'mirroring partner',
  [ENV_PROMOTE]: 'promote transaction',
  [ENV_TM_ADDRESS]: 'transaction manager address',
  [ENV_TRANSACTION_ENDED]: 'transaction ended',
  [ENV_RESET]: 'reset connection',
  [ENV_USER_INSTANCE]: 'user instance',
  [ENV_ROUTING]: 'routing',
  [ENV_ENHANCED_ROUTING]: 'enhanced routing',
};

/** What a type of ENVCHANGE is about, for logs. */
export const envChangeName = (type: number): string => ENV_NAMES[type] ?? 'unknown';

/** Values without their lengths; empty where there is none. Of an unknown type, `newValue` is all there is. */
export interface EnvChange {
  readonly type: number;
  readonly newValue: Uint8Array;
  readonly oldValue: Uint8Array;
}

/** Type of an ENVCHANGE without reading the rest. */
export const envChangeType = (bytes: Uint8Array, start: number): number => bytes[start + 3];

export function readEnvChange(bytes: Uint8Array, start: number, end: number): EnvChange {
  const reader = read(bytes, start, end);
  reader.ushort();
  const type = reader.byte();
  // A value may be left out.
  const unicode = () => (reader.left > 0 ? reader.take(2 * reader.byte()) : NOTHING);
  const binary = () => (reader.left > 0 ? reader.bVarbyte() : NOTHING);
  const long = () => (reader.left > 0 ? reader.usVarbyte() : NOTHING);
  switch (type) {
    case ENV_DATABASE:
    case ENV_LANGUAGE:
    case ENV_CHARSET:
    case ENV_PACKETSIZE:
    case ENV_UNICODE_SORT_LOCALE:
    case ENV_UNICODE_SORT_FLAGS:
    case ENV_PARTNER:
    case ENV_USER_INSTANCE:
      return { type, newValue: unicode(), oldValue: unicode() };
    case ENV_COLLATION:
    case ENV_BEGIN:
    case ENV_COMMIT:
    case ENV_ROLLBACK:
    case ENV_ENLIST:
    case ENV_DEFECT:
    case ENV_TM_ADDRESS:
    case ENV_TRANSACTION_ENDED:
    case ENV_RESET:
      return { type, newValue: binary(), oldValue: binary() };
    case ENV_PROMOTE:
      return { type, newValue: reader.take(reader.ulong()), oldValue: binary() };
    case ENV_ROUTING:
    case ENV_ENHANCED_ROUTING:
      return { type, newValue: long(), oldValue: long() };
    default:
      return { type, newValue: reader.take(reader.left), oldValue: NOTHING };
  }
}

/** A value of an ENVCHANGE that is a text. */
export const envChangeText = (value: Uint8Array): string => utf16(value, 0, value.length);

/** A value of an ENVCHANGE that is a transaction descriptor; 0n where there is none. */
export const envChangeDescriptor = (value: Uint8Array): bigint =>
  value.length === 8 ? new Reader(value, 0, 8, 'server', 'a transaction descriptor').ulonglong() : 0n;

/** Where a client is to go instead. */
export interface Routing {
  /** 0: TCP. */
  readonly protocol: number;
  readonly port: number;
  readonly server: string;
  /** Null unless it is {@link ENV_ENHANCED_ROUTING}. */
  readonly database: string | null;
}

/** The new value of an ENVCHANGE of routing. */
export function readRouting(change: EnvChange): Routing {
  const reader = new Reader(change.newValue, 0, change.newValue.length, 'server', 'an ENVCHANGE of routing');
  return {
    protocol: reader.byte(),
    port: reader.ushort(),
    server: reader.usVarchar(),
    database: change.type === ENV_ENHANCED_ROUTING ? reader.usVarchar() : null,
  };
}

// -------------------------------------------------------------------------------------------------------------- login

/** LOGINACK (2.2.7.14). */
export interface LoginAck {
  /** The kind of SQL: 1 is T-SQL. */
  readonly interface: number;
  /** As LOGIN7 has it. */
  readonly tdsVersion: number;
  readonly progName: string;
  /** Major, minor, and the build in two bytes. */
  readonly progVersion: readonly [number, number, number];
}

export function readLoginAck(bytes: Uint8Array, start: number, end: number): LoginAck {
  const reader = read(bytes, start, end);
  reader.ushort();
  return {
    interface: reader.byte(),
    tdsVersion: versionOfLoginAck(reader.ulongBE()),
    progName: reader.bVarchar(),
    progVersion: [reader.byte(), reader.byte(), reader.ushortBE()],
  };
}

/** One feature that a client asks for or a server acknowledges. */
export interface Feature {
  readonly id: number;
  readonly data: Uint8Array;
}

// Features (2.2.6.4).
export const FEATURE_SESSIONRECOVERY = 0x01;
export const FEATURE_FEDAUTH = 0x02;
export const FEATURE_COLUMNENCRYPTION = 0x04;
export const FEATURE_GLOBALTRANSACTIONS = 0x05;
export const FEATURE_AZURESQLSUPPORT = 0x08;
export const FEATURE_DATACLASSIFICATION = 0x09;
export const FEATURE_UTF8_SUPPORT = 0x0a;
export const FEATURE_AZURESQLDNSCACHING = 0x0b;
export const FEATURE_JSONSUPPORT = 0x0d;
export const FEATURE_VECTORSUPPORT = 0x0e;
export const FEATURE_ENHANCEDROUTINGSUPPORT = 0x0f;
export const FEATURE_USERAGENT = 0x10;
/** Ends a list of features. */
export const FEATURE_TERMINATOR = 0xff;

const FEATURE_NAMES: Readonly<Record<number, string>> = {
  [FEATURE_SESSIONRECOVERY]: 'SESSIONRECOVERY',
  [FEATURE_FEDAUTH]: 'FEDAUTH',
  [FEATURE_COLUMNENCRYPTION]: 'COLUMNENCRYPTION',
  [FEATURE_GLOBALTRANSACTIONS]: 'GLOBALTRANSACTIONS',
  [FEATURE_AZURESQLSUPPORT]: 'AZURESQLSUPPORT',
  [FEATURE_DATACLASSIFICATION]: 'DATACLASSIFICATION',
  [FEATURE_UTF8_SUPPORT]: 'UTF8_SUPPORT',
  [FEATURE_AZURESQLDNSCACHING]: 'AZURESQLDNSCACHING',
  [FEATURE_JSONSUPPORT]: 'JSONSUPPORT',
  [FEATURE_VECTORSUPPORT]: 'VECTORSUPPORT',
  [FEATURE_ENHANCEDROUTINGSUPPORT]: 'ENHANCEDROUTINGSUPPORT',
  [FEATURE_USERAGENT]: 'USERAGENT',
};

/** MS-TDS's name of a feature. */
export const featureName = (id: number): string => FEATURE_NAMES[id] ?? 'unknown';

/** Reads features up to the terminator (LOGIN7 and FEATUREEXTACK have the same form). */
export function readFeatures(reader: Reader): Feature[] {
  const features: Feature[] = [];
  for (let id = reader.byte(); id !== FEATURE_TERMINATOR; id = reader.byte()) {
    features.push({ id, data: reader.take(reader.ulong()) });
  }
  return features;
}

/** FEATUREEXTACK (2.2.7.11). */
export const readFeatureExtAck = (bytes: Uint8Array, start: number, end: number): Feature[] =>
  readFeatures(read(bytes, start, end));

/** FEDAUTHINFO (2.2.7.12): where a client gets its token from. */
export interface FedAuthInfo {
  readonly stsUrl: string | null;
  readonly spn: string | null;
}

export function readFedAuthInfo(bytes: Uint8Array, start: number, end: number): FedAuthInfo {
  const reader = read(bytes, start, end);
  reader.ulong();
  const from = reader.at;
  const found: Record<number, string> = {};
  for (let count = reader.ulong(); count > 0; count--) {
    const id = reader.byte();
    const length = reader.ulong();
    // Offsets count from the number of infos on.
    const offset = from + reader.ulong();
    if (offset + length > end) reader.fail('points behind its end');
    found[id] = utf16(bytes, offset, offset + length);
  }
  return { stsUrl: found[1] ?? null, spn: found[2] ?? null };
}

// ------------------------------------------------------------------------------------------------------ session state

/** One piece of a session's state; what it means is the server's own business. */
export interface StateValue {
  readonly id: number;
  readonly value: Uint8Array;
}

/** SESSIONSTATE (2.2.7.21). */
export interface SessionStateToken {
  /** Grows with each; 0xffffffff: the session can never be recovered. */
  readonly sequence: number;
  readonly recoverable: boolean;
  readonly values: readonly StateValue[];
}

export function readSessionState(bytes: Uint8Array, start: number, end: number): SessionStateToken {
  const reader = read(bytes, start, end);
  reader.ulong();
  return {
    sequence: reader.ulong(),
    recoverable: (reader.byte() & 1) !== 0,
    values: readStateValues(reader),
  };
}

/** SessionStateDataSet: up to the end of what the reader has. In the acknowledgement of SESSIONRECOVERY it is all there is. */
export function readStateValues(reader: Reader): StateValue[] {
  const values: StateValue[] = [];
  while (reader.left > 0) {
    const id = reader.byte();
    const length = reader.byte();
    values.push({ id, value: reader.take(length === 0xff ? reader.ulong() : length) });
  }
  return values;
}

// ------------------------------------------------------------------------------------------------------------ columns

/** A described column, return value or parameter. */
export interface Column {
  readonly name: string;
  readonly userType: number;
  readonly flags: number;
  readonly type: number;
  /** How the length of its values is found. */
  readonly shape: Shape;
  /** Greatest length in bytes as declared. */
  readonly size: number;
  readonly precision: number;
  readonly scale: number;
  /** Five bytes, or null. */
  readonly collation: Uint8Array | null;
}

/** What {@link readColumns} must know of the session. */
export interface Columns {
  readonly dialect: Dialect;
  readonly columnEncryption?: boolean;
  /** `client` in a BulkLoad message. */
  readonly sender?: Sender;
}

/** What is found of a type, without what stands around it. */
export type TypeInfo = Pick<Column, 'type' | 'shape' | 'size' | 'precision' | 'scale' | 'collation'>;

const walk = new TypeWalk();

/** Reads a TYPE_INFO (2.2.5.6). */
export function readTypeInfo(reader: Reader, dialect: Dialect, place: Place): TypeInfo {
  const { bytes, at, end } = reader;
  const next = walk.info(bytes, at, end, dialect, place);
  if (next === UNKNOWN_TYPE) reader.fail('has a type that is not known');
  if (next < 0) reader.fail('is too short for its fields');
  reader.at = next;
  const { type, shape, size, precision, scale, collation } = walk;
  return {
    type,
    shape,
    size,
    precision,
    scale,
    collation: collation < 0 ? null : bytes.subarray(collation, collation + 5),
  };
}

/** COLMETADATA (2.2.7.4); null when the columns are those that are known from before. */
export function readColumns(bytes: Uint8Array, start: number, end: number, context: Columns): Column[] | null {
  const { dialect, columnEncryption = false, sender = 'server' } = context;
  const reader = new Reader(bytes, start + 1, end, sender, 'a COLMETADATA token');
  const count = reader.ushort();
  if (count === NO_METADATA) return null;
  if (columnEncryption) {
    for (let keys = reader.ushort(); keys > 0; keys--) {
      reader.skip(20);
      for (let values = reader.byte(); values > 0; values--) {
        reader.usVarbyte();
        reader.bVarchar();
        reader.usVarchar();
        reader.bVarchar();
      }
    }
  }
  const columns: Column[] = [];
  while (columns.length < count) {
    const userType = dialect >= TDS_7_2 ? reader.ulong() : reader.ushort();
    const flags = reader.ushort();
    const info = readTypeInfo(reader, dialect, 'result');
    if (info.type === TEXTTYPE || info.type === NTEXTTYPE || info.type === IMAGETYPE) {
      for (let parts = dialect >= TDS_7_2 && sender === 'server' ? reader.byte() : 1; parts > 0; parts--)
        reader.usVarchar();
    }
    if (columnEncryption && (flags & FLAG_ENCRYPTED) !== 0) {
      reader.skip(2);
      skipCrypto(reader, dialect);
    }
    columns.push({ name: reader.bVarchar(), userType, flags, ...info });
  }
  return columns;
}

/** CryptoMetaData behind its ordinal: the type of the plain value, and how it is encrypted. */
function skipCrypto(reader: Reader, dialect: Dialect): void {
  reader.skip(4);
  readTypeInfo(reader, dialect, 'result');
  if (reader.byte() === 0) reader.bVarchar();
  reader.skip(2);
}

/**
 * The values of one row (ROW or NBCROW), which is there as a whole: see `TokenReader.wholeRows`. NULL is null. A value of a long type is put
 * together from its chunks.
 */
export function readRow(
  columns: readonly Column[],
  bytes: Uint8Array,
  start: number,
  end: number,
  sender: Sender = 'server',
): (Uint8Array | null)[] {
  const reader = new Reader(bytes, start + 1, end, sender, 'a row');
  const nulls = bytes[start] === NBCROW ? reader.take((columns.length + 7) >> 3) : null;
  return columns.map(({ shape }, index) =>
    nulls !== null && (nulls[index >> 3] & (1 << (index & 7))) !== 0 ? null : readValue(reader, shape),
  );
}

/** One value of that shape; null for NULL. A table is not read, see `request.ts`. */
export function readValue(reader: Reader, shape: Shape): Uint8Array | null {
  switch (shape) {
    case BYTELEN: {
      const length = reader.byte();
      return length === 0 ? null : reader.take(length);
    }
    case USHORTLEN: {
      const length = reader.ushort();
      return length === CHARBIN_NULL ? null : reader.take(length);
    }
    case PLP: {
      const at = reader.skip(8);
      if (uint32(reader.bytes, at) === 0xffffffff && uint32(reader.bytes, at + 4) === 0xffffffff) return null;
      const chunks: Uint8Array[] = [];
      for (let length = reader.ulong(); length > 0; length = reader.ulong()) chunks.push(reader.take(length));
      return chunks.length === 1 ? chunks[0] : Buffer.concat(chunks);
    }
    case TEXTPTR: {
      const pointer = reader.byte();
      if (pointer === 0) return null;
      reader.skip(pointer + 8);
      return reader.take(reader.ulong());
    }
    case LONGLEN: {
      const length = reader.ulong();
      return length === 0 ? null : reader.take(length);
    }
    case LONGCHAR: {
      const length = reader.ulong();
      return length === 0xffffffff ? null : reader.take(length);
    }
    case TABLE:
      return reader.fail('has a table where a value is expected');
    default:
      return reader.take(shape);
  }
}

/** RETURNVALUE (2.2.7.19): an OUTPUT parameter, or what a function returned. */
export interface ReturnValue extends Column {
  /** Number of the parameter in the call, from 0. */
  readonly ordinal: number;
  /** 1: an OUTPUT parameter, 2: of a function. */
  readonly status: number;
  /** Undefined when it is of a type without a limit of length (PLP): the token as told ends before it. */
  readonly value: Uint8Array | null | undefined;
}

export function readReturnValue(bytes: Uint8Array, start: number, end: number, context: Columns): ReturnValue {
  const { dialect, columnEncryption = false } = context;
  const reader = read(bytes, start, end);
  const ordinal = reader.ushort();
  const name = reader.bVarchar();
  const status = reader.byte();
  const userType = dialect >= TDS_7_2 ? reader.ulong() : reader.ushort();
  const flags = reader.ushort();
  const info = readTypeInfo(reader, dialect, 'result');
  if (columnEncryption && (flags & FLAG_ENCRYPTED) !== 0) skipCrypto(reader, dialect);
  const long = info.shape === PLP || info.shape === TEXTPTR;
  return {
    ordinal,
    name,
    status,
    userType,
    flags,
    ...info,
    value: long ? undefined : readValue(reader, info.shape),
  };
}

/** ORDER (2.2.7.17): the columns, counted from 1, by which the rows are ordered. */
export function readOrder(bytes: Uint8Array, start: number, end: number): number[] {
  const reader = read(bytes, start, end);
  const columns: number[] = [];
  for (let left = reader.ushort() >> 1; left > 0; left--) columns.push(reader.ushort());
  return columns;
}

/** A whole number that a value of a type of 1, 2, 4 or 8 bytes holds (bigint as number where it is exact). */
export function integerOf(value: Uint8Array): number {
  switch (value.length) {
    case 1:
      return value[0];
    case 2:
      return (uint16(value, 0) << 16) >> 16;
    case 4:
      return uint32(value, 0) | 0;
    default:
      return (uint32(value, 4) | 0) * 2 ** 32 + uint32(value, 0);
  }
}

const NOTHING = new Uint8Array(0);
