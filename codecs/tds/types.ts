/**
 * Data types (MS-TDS 2.2.5.4 to 2.2.5.7): how long a TYPE_INFO is, and how the length of a value of that type is found. Nothing here
 * understands a value.
 */

import { uint16, uint32 } from './bytes.js';
import { type Dialect, TDS_7_2 } from './version.js';

// Types of fixed length (2.2.5.4.1).
export const NULLTYPE = 0x1f;
export const INT1TYPE = 0x30;
export const BITTYPE = 0x32;
export const INT2TYPE = 0x34;
export const INT4TYPE = 0x38;
export const DATETIM4TYPE = 0x3a;
export const FLT4TYPE = 0x3b;
export const MONEYTYPE = 0x3c;
export const DATETIMETYPE = 0x3d;
export const FLT8TYPE = 0x3e;
export const MONEY4TYPE = 0x7a;
export const INT8TYPE = 0x7f;
// Types of variable length (2.2.5.4.2).
export const GUIDTYPE = 0x24;
export const INTNTYPE = 0x26;
export const DECIMALTYPE = 0x37;
export const NUMERICTYPE = 0x3f;
export const BITNTYPE = 0x68;
export const DECIMALNTYPE = 0x6a;
export const NUMERICNTYPE = 0x6c;
export const FLTNTYPE = 0x6d;
export const MONEYNTYPE = 0x6e;
export const DATETIMNTYPE = 0x6f;
export const DATENTYPE = 0x28;
export const TIMENTYPE = 0x29;
export const DATETIME2NTYPE = 0x2a;
export const DATETIMEOFFSETNTYPE = 0x2b;
export const CHARTYPE = 0x2f;
export const VARCHARTYPE = 0x27;
export const BINARYTYPE = 0x2d;
export const VARBINARYTYPE = 0x25;
export const BIGVARBINTYPE = 0xa5;
export const BIGVARCHRTYPE = 0xa7;
export const BIGBINARYTYPE = 0xad;
export const BIGCHARTYPE = 0xaf;
export const NVARCHARTYPE = 0xe7;
export const NCHARTYPE = 0xef;
export const XMLTYPE = 0xf1;
export const UDTTYPE = 0xf0;
export const TEXTTYPE = 0x23;
export const IMAGETYPE = 0x22;
export const NTEXTTYPE = 0x63;
export const SSVARIANTTYPE = 0x62;
/** SQL Server 2025. */
export const JSONTYPE = 0xf4;
/** SQL Server 2025. */
export const VECTORTYPE = 0xf5;
/** A table as a parameter (2.2.5.5.5); only a client sends it. */
export const TVPTYPE = 0xf3;

/**
 * How the length of a value is found: 0 and more are that length itself, the others are these. A value of zero length is NULL in
 * {@link BYTELEN} and {@link LONGLEN}.
 */
export type Shape = number;
/** One byte of length, then the value. */
export const BYTELEN: Shape = -1;
/** Two bytes of length, ffff for NULL. */
export const USHORTLEN: Shape = -2;
/** Partially length-prefixed (2.2.5.2.3): 8 bytes of length, which may be unknown, then chunks. */
export const PLP: Shape = -3;
/** One byte of length of a text pointer (0 for NULL), the pointer, 8 bytes of time stamp, 4 bytes of length, the value. */
export const TEXTPTR: Shape = -4;
/** Four bytes of length, then the value: sql_variant. */
export const LONGLEN: Shape = -5;
/** Four bytes of length, ffffffff for NULL: text, ntext and image as parameters. */
export const LONGCHAR: Shape = -6;
/** A table in a parameter: columns, then rows up to an end mark. */
export const TABLE: Shape = -7;

/** A USHORT that stands for NULL, and in a maximum for "max" (PLP). */
export const CHARBIN_NULL = 0xffff;

/** So many columns of a table may be of a type whose values have no length. No server describes even one. */
export const MAX_EMPTY_COLUMNS = 256;

/** Length of the value of a type of fixed length; -1 for other types. */
const FIXED = new Int8Array(256).fill(-1);
for (const [type, length] of [
  [NULLTYPE, 0],
  [INT1TYPE, 1],
  [BITTYPE, 1],
  [INT2TYPE, 2],
  [INT4TYPE, 4],
  [DATETIM4TYPE, 4],
  [FLT4TYPE, 4],
  [MONEYTYPE, 8],
  [DATETIMETYPE, 8],
  [FLT8TYPE, 8],
  [MONEY4TYPE, 4],
  [INT8TYPE, 8],
]) {
  FIXED[type] = length;
}

/** Who wrote the type: some are described otherwise in a parameter of a client than in a result. */
export type Place = 'result' | 'parameter';

/** The walk did not come to the end of what is there; {@link TypeWalk.lack} says where it was to go. */
export const SHORT = -1;
/** Nothing has this type. */
export const UNKNOWN_TYPE = -2;

/**
 * Walks over TYPE_INFOs. One object is used for many, so that walking allocates nothing: what is found is in its fields until the next
 * walk.
 */
export class TypeWalk {
  /** The type's own byte. */
  type = 0;
  shape: Shape = 0;
  /** Greatest length of a value in bytes as declared, or the length of a fixed one. */
  size = 0;
  /** Where the five bytes of a collation stand; -1 without one. */
  collation = -1;
  precision = 0;
  scale = 0;
  /** After {@link SHORT}: the walk needs the bytes up to here before it gets further. */
  lack = 0;

  /**
   * Walks over the TYPE_INFO at `at`.
   *
   * @returns where it ends, {@link SHORT} or {@link UNKNOWN_TYPE}
   */
  info(bytes: Uint8Array, at: number, end: number, dialect: Dialect, place: Place): number {
    if (at >= end) return this.short(at + 1);
    const type = bytes[at];
    const fixed = FIXED[type];
    this.type = type;
    this.collation = -1;
    if (fixed >= 0) {
      this.shape = fixed;
      this.size = fixed;
      return at + 1;
    }
    switch (type) {
      case INTNTYPE:
      case BITNTYPE:
      case FLTNTYPE:
      case MONEYNTYPE:
      case DATETIMNTYPE:
      case GUIDTYPE:
      case CHARTYPE:
      case VARCHARTYPE:
      case BINARYTYPE:
      case VARBINARYTYPE:
        if (at + 2 > end) return this.short(at + 2);
        this.shape = BYTELEN;
        this.size = bytes[at + 1];
        return at + 2;
      case BIGVARBINTYPE:
      case BIGBINARYTYPE:
        if (at + 3 > end) return this.short(at + 3);
        this.long(bytes, at);
        return at + 3;
      case BIGVARCHRTYPE:
      case BIGCHARTYPE:
      case NVARCHARTYPE:
      case NCHARTYPE:
        if (at + 8 > end) return this.short(at + 8);
        this.long(bytes, at);
        this.collation = at + 3;
        return at + 8;
      case DECIMALNTYPE:
      case NUMERICNTYPE:
      case DECIMALTYPE:
      case NUMERICTYPE:
        if (at + 4 > end) return this.short(at + 4);
        this.shape = BYTELEN;
        this.size = bytes[at + 1];
        this.precision = bytes[at + 2];
        this.scale = bytes[at + 3];
        return at + 4;
      case DATENTYPE:
        this.shape = BYTELEN;
        this.size = 3;
        return at + 1;
      case TIMENTYPE:
      case DATETIME2NTYPE:
      case DATETIMEOFFSETNTYPE:
        if (at + 2 > end) return this.short(at + 2);
        this.shape = BYTELEN;
        this.size = 10;
        this.scale = bytes[at + 1];
        return at + 2;
      case VECTORTYPE:
        if (at + 4 > end) return this.short(at + 4);
        this.shape = USHORTLEN;
        this.size = uint16(bytes, at + 1);
        this.scale = bytes[at + 3];
        return at + 4;
      case JSONTYPE:
        this.shape = PLP;
        this.size = CHARBIN_NULL;
        return at + 1;
      case XMLTYPE:
        return this.xml(bytes, at, end);
      case UDTTYPE:
        return this.udt(bytes, at, end, place);
      case SSVARIANTTYPE:
        if (at + 5 > end) return this.short(at + 5);
        this.shape = LONGLEN;
        this.size = uint32(bytes, at + 1);
        return at + 5;
      case IMAGETYPE:
        if (at + 5 > end) return this.short(at + 5);
        this.shape = place === 'result' ? TEXTPTR : LONGCHAR;
        this.size = uint32(bytes, at + 1);
        return at + 5;
      case TEXTTYPE:
      case NTEXTTYPE:
        // The collation is there from 7.1 on (2.2.5.1.2).
        if (at + 10 > end) return this.short(at + 10);
        this.shape = place === 'result' ? TEXTPTR : LONGCHAR;
        this.size = uint32(bytes, at + 1);
        this.collation = at + 5;
        return at + 10;
      case TVPTYPE:
        if (place === 'result' || dialect < TDS_7_2) return UNKNOWN_TYPE;
        this.shape = TABLE;
        return this.names(bytes, at + 1, end, 3);
      default:
        return UNKNOWN_TYPE;
    }
  }

  private short(lack: number): number {
    this.lack = lack;
    return SHORT;
  }

  private long(bytes: Uint8Array, at: number): void {
    this.size = uint16(bytes, at + 1);
    this.shape = this.size === CHARBIN_NULL ? PLP : USHORTLEN;
  }

  /** XML_INFO (2.2.5.5.3): one byte says whether the names of a schema follow. */
  private xml(bytes: Uint8Array, at: number, end: number): number {
    if (at + 2 > end) return this.short(at + 2);
    this.shape = PLP;
    this.size = CHARBIN_NULL;
    if (bytes[at + 1] === 0) return at + 2;
    const collection = this.names(bytes, at + 2, end, 2);
    return collection < 0 ? collection : this.usVarchar(bytes, collection, end);
  }

  /** UDT_INFO (2.2.5.5.2): a client leaves out the maximum and the name of the assembly. */
  private udt(bytes: Uint8Array, at: number, end: number, place: Place): number {
    this.shape = PLP;
    this.size = CHARBIN_NULL;
    if (place === 'parameter') return this.names(bytes, at + 1, end, 3);
    if (at + 3 > end) return this.short(at + 3);
    const assembly = this.names(bytes, at + 3, end, 3);
    return assembly < 0 ? assembly : this.usVarchar(bytes, assembly, end);
  }

  /** So many B_VARCHARs. */
  names(bytes: Uint8Array, at: number, end: number, count: number): number {
    let next = at;
    for (let i = 0; i < count; i++) {
      if (next >= end) return this.short(next + 1);
      next += 1 + 2 * bytes[next];
    }
    return next > end ? this.short(next) : next;
  }

  /** A US_VARCHAR. */
  usVarchar(bytes: Uint8Array, at: number, end: number): number {
    if (at + 2 > end) return this.short(at + 2);
    const next = at + 2 + 2 * uint16(bytes, at);
    return next > end ? this.short(next) : next;
  }
}

/** SQL Server's name of a type, for reports. */
export function typeName(type: number): string {
  return NAMES[type] ?? 'unknown';
}

const NAMES: Readonly<Record<number, string>> = {
  [NULLTYPE]: 'null',
  [INT1TYPE]: 'tinyint',
  [BITTYPE]: 'bit',
  [INT2TYPE]: 'smallint',
  [INT4TYPE]: 'int',
  [DATETIM4TYPE]: 'smalldatetime',
  [FLT4TYPE]: 'real',
  [MONEYTYPE]: 'money',
  [DATETIMETYPE]: 'datetime',
  [FLT8TYPE]: 'float',
  [MONEY4TYPE]: 'smallmoney',
  [INT8TYPE]: 'bigint',
  [GUIDTYPE]: 'uniqueidentifier',
  [INTNTYPE]: 'int',
  [DECIMALTYPE]: 'decimal',
  [NUMERICTYPE]: 'numeric',
  [BITNTYPE]: 'bit',
  [DECIMALNTYPE]: 'decimal',
  [NUMERICNTYPE]: 'numeric',
  [FLTNTYPE]: 'float',
  [MONEYNTYPE]: 'money',
  [DATETIMNTYPE]: 'datetime',
  [DATENTYPE]: 'date',
  [TIMENTYPE]: 'time',
  [DATETIME2NTYPE]: 'datetime2',
  [DATETIMEOFFSETNTYPE]: 'datetimeoffset',
  [CHARTYPE]: 'char',
  [VARCHARTYPE]: 'varchar',
  [BINARYTYPE]: 'binary',
  [VARBINARYTYPE]: 'varbinary',
  [BIGVARBINTYPE]: 'varbinary',
  [BIGVARCHRTYPE]: 'varchar',
  [BIGBINARYTYPE]: 'binary',
  [BIGCHARTYPE]: 'char',
  [NVARCHARTYPE]: 'nvarchar',
  [NCHARTYPE]: 'nchar',
  [XMLTYPE]: 'xml',
  [UDTTYPE]: 'udt',
  [TEXTTYPE]: 'text',
  [IMAGETYPE]: 'image',
  [NTEXTTYPE]: 'ntext',
  [SSVARIANTTYPE]: 'sql_variant',
  [JSONTYPE]: 'json',
  [VECTORTYPE]: 'vector',
  [TVPTYPE]: 'table',
};
