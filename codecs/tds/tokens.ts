/**
 * The token stream of a server's message (MS-TDS 2.2.4, 2.2.7), skimmed: where each token begins and ends, and no more. Rows are
 * walked over by the lengths in them; what a row holds is looked at by nobody. What the other tokens say is read by `facts.ts`.
 */

import { ProtocolViolation } from '../../core/contract/index.js';
import { type Sender, uint16, uint32 } from './bytes.js';
import {
  BYTELEN,
  IMAGETYPE,
  LONGLEN,
  MAX_EMPTY_COLUMNS,
  NTEXTTYPE,
  PLP,
  SHORT,
  type Shape,
  TEXTPTR,
  TEXTTYPE,
  TypeWalk,
  UNKNOWN_TYPE,
  USHORTLEN,
} from './types.js';
import { type Dialect, TDS_7_2 } from './version.js';

// Token types (2.2.7).
export const OFFSET = 0x78;
export const RETURNSTATUS = 0x79;
export const COLMETADATA = 0x81;
export const ALTMETADATA = 0x88;
export const DATACLASSIFICATION = 0xa3;
export const TABNAME = 0xa4;
export const COLINFO = 0xa5;
export const ORDER = 0xa9;
export const ERROR = 0xaa;
export const INFO = 0xab;
export const RETURNVALUE = 0xac;
export const LOGINACK = 0xad;
export const FEATUREEXTACK = 0xae;
export const ROW = 0xd1;
export const NBCROW = 0xd2;
export const ALTROW = 0xd3;
export const ENVCHANGE = 0xe3;
export const SESSIONSTATE = 0xe4;
export const SSPI_TOKEN = 0xed;
export const FEDAUTHINFO = 0xee;
export const DONE = 0xfd;
export const DONEPROC = 0xfe;
export const DONEINPROC = 0xff;

const TOKEN_NAMES: Readonly<Record<number, string>> = {
  [OFFSET]: 'OFFSET',
  [RETURNSTATUS]: 'RETURNSTATUS',
  [COLMETADATA]: 'COLMETADATA',
  [ALTMETADATA]: 'ALTMETADATA',
  [DATACLASSIFICATION]: 'DATACLASSIFICATION',
  [TABNAME]: 'TABNAME',
  [COLINFO]: 'COLINFO',
  [ORDER]: 'ORDER',
  [ERROR]: 'ERROR',
  [INFO]: 'INFO',
  [RETURNVALUE]: 'RETURNVALUE',
  [LOGINACK]: 'LOGINACK',
  [FEATUREEXTACK]: 'FEATUREEXTACK',
  [ROW]: 'ROW',
  [NBCROW]: 'NBCROW',
  [ALTROW]: 'ALTROW',
  [ENVCHANGE]: 'ENVCHANGE',
  [SESSIONSTATE]: 'SESSIONSTATE',
  [SSPI_TOKEN]: 'SSPI',
  [FEDAUTHINFO]: 'FEDAUTHINFO',
  [DONE]: 'DONE',
  [DONEPROC]: 'DONEPROC',
  [DONEINPROC]: 'DONEINPROC',
};

/** MS-TDS's name of a token, for logs and reports. */
export const tokenName = (type: number): string => TOKEN_NAMES[type] ?? 'unknown';

/** Flags of a column (2.2.7.4): it is encrypted, and how follows. */
export const FLAG_ENCRYPTED = 0x0800;
/** Count of a COLMETADATA that describes nothing: the columns are those that the client knows from before. */
export const NO_METADATA = 0xffff;
/** Type of the ENVCHANGE whose own length says nothing (2.2.7.9): a promoted transaction. */
const ENV_PROMOTE = 15;

/** The longest token that is collected, rows and values of a RETURNVALUE apart; 4096 columns with long names stay far below. */
const DEFAULT_LIMIT = 4 * 1024 * 1024;

/** Told by a {@link TokenReader} what it reads. */
export interface TokenSink {
  /**
   * A token other than a row is [start, end) of `bytes`, its type included; they are valid during the call only. Of a RETURNVALUE whose
   * value may be of any length (PLP) it ends before the value. The stream's position of its first byte is `TokenReader.position`.
   */
  token(type: number, bytes: Uint8Array, start: number, end: number): void;
  /** So many rows (ROW, NBCROW, ALTROW) ended since the last call; called before the next token is told, and at the end of a chunk. */
  rows(count: number): void;
  /** A row, or the long value of a RETURNVALUE, ends at this position of the stream. */
  ended?(position: number): void;
  /** With {@link TokenReader.wholeRows}: one row, as a token. It counts in `rows` all the same. */
  row?(type: number, bytes: Uint8Array, start: number, end: number): void;
}

// What is being read.
const BETWEEN = 0;
/** The values of a row, or the long value of a RETURNVALUE. */
const VALUES = 1;
/** The null bitmap of an NBCROW. */
const BITMAP = 2;
/** A token that began in a chunk before: it is being put together. */
const HELD = 3;

// Which part of a value comes next.
/** Its length, or what else it begins with. */
const FIRST = 0;
/** The length of a PLP's next chunk. */
const CHUNK = 1;
/** The length of a text behind its pointer and time stamp. */
const TEXT_LENGTH = 2;

/**
 * Follows a token stream through pieces of any size, cut anywhere. It keeps a few numbers, the lengths of the columns, and the
 * beginning of a token that a piece ended in (never of a row, unless {@link wholeRows}).
 */
export class TokenReader {
  /** The column encryption feature was acknowledged: descriptions of columns have more in them. */
  columnEncryption = false;
  /** Version of the data classification feature that was acknowledged; 0: none. */
  dataClassification = 0;
  /** Rows are told one by one, whole. For answers to the gateway's own questions, which are short. */
  wholeRows = false;

  private phase = BETWEEN;
  private failed = false;
  /** Position in the stream of the piece's first byte, once it is read: of the next piece. */
  private read = 0;
  /** Position in the stream of the token that is being read. */
  private began = 0;

  /** Of each column of the result. */
  private shapes = new Int32Array(16);
  private columns = 0;
  private described = false;
  /** Columns whose values are of no length (NULLTYPE). */
  private empties = 0;
  /** Columns of each COMPUTE clause by its id. */
  private alternatives: Map<number, Int32Array> | null = null;

  // The row (or long value) that is being read.
  private rowType = 0;
  private ops: Int32Array = this.shapes;
  private count = 0;
  private column = 0;
  private part = FIRST;
  /** Bytes of a value that are still to come. */
  private skip = 0;
  /** What a chunk ended with of a length. */
  private readonly cut = new Uint8Array(8);
  private cutLength = 0;
  private bitmap: Uint8Array = new Uint8Array(4);
  private bitmapLength = 0;
  private rowsEnded = 0;

  // The token that is being put together, or, of a row, what is there of it.
  private held: Uint8Array = EMPTY;
  private heldLength = 0;
  private need = 0;

  // How far the walk over a token came that does not tell its length: from its start, and in its lists.
  private type = 0;
  private walked = 0;
  private step = 0;
  private left = 0;
  private inner = 0;
  private keyValues = 0;
  /** Shape of the value of a RETURNVALUE that is not part of the token as told. */
  private longValue: Shape = 0;
  private readonly walk = new TypeWalk();
  private readonly single = new Int32Array(1);

  /**
   * @param dialect that was agreed on; before the answer to a login, that which the client asked for
   * @param limit bytes that a token may have which is told whole
   * @param sender `client` for the tokens of a BulkLoad message (2.2.6.1), whose columns of long types name their table otherwise
   */
  constructor(
    public dialect: Dialect,
    private readonly limit = DEFAULT_LIMIT,
    private readonly sender: Sender = 'server',
  ) {}

  /** Position in the stream, from 0, of the token that is told or was last begun. */
  get position(): number {
    return this.began;
  }

  /** True when everything that was read is whole tokens. */
  get between(): boolean {
    return this.phase === BETWEEN;
  }

  /** True amid a row, or a long value of a RETURNVALUE. */
  get inRow(): boolean {
    return this.phase === VALUES || this.phase === BITMAP;
  }

  /** Bytes that are kept of a token or row whose end has not come. */
  get holding(): number {
    return this.heldLength;
  }

  /** @throws ProtocolViolation when the message that ends here ends within a token */
  endMessage(): void {
    if (this.phase !== BETWEEN) this.violation('a message ends within a token');
  }

  /**
   * Takes the columns of rows from a COLMETADATA token ([start, end) of `bytes`) that was told earlier: for a result that the server
   * does not describe again. May be called while such a COLMETADATA is being told.
   */
  describe(bytes: Uint8Array, start: number, end: number): void {
    this.beginWalk(COLMETADATA);
    if (this.walkColumns(bytes, start, end) !== end - start) this.violation('a remembered COLMETADATA is not whole');
  }

  /**
   * Reads [start, end) of `bytes`, the next payload of the stream.
   *
   * @throws ProtocolViolation when it is no token stream; and again for whatever comes after
   */
  push(bytes: Uint8Array, start: number, end: number, sink: TokenSink): void {
    if (this.failed) this.violation('more came after a malformed token');
    // Stays set when something below throws: nothing that follows has a meaning then.
    this.failed = true;
    let at = start;
    const base = this.read - start;
    while (at < end) {
      switch (this.phase) {
        case BETWEEN:
          at = this.tokens(bytes, at, end, base, sink);
          break;
        case VALUES:
          at = this.resumeValues(bytes, at, end, base, sink);
          break;
        case BITMAP:
          at = this.resumeBitmap(bytes, at, end, base, sink);
          break;
        default:
          at = this.resumeHeld(bytes, at, end, base, sink);
      }
    }
    if (this.rowsEnded > 0) this.tellRows(sink);
    this.read = base + end;
    this.failed = false;
  }

  // ------------------------------------------------------------------------------------------------------------- tokens

  /** Whole tokens and rows from `at` on; what is cut by the end is kept. Returns where it stopped. */
  private tokens(bytes: Uint8Array, from: number, end: number, base: number, sink: TokenSink): number {
    let at = from;
    while (at < end) {
      const type = bytes[at];
      if (type === ROW) {
        this.began = base + at;
        this.beginRow(type);
        const next = this.values(bytes, at + 1, end);
        if (next < 0) return this.keepRow(bytes, at, end);
        this.rowsEnded++;
        if (this.wholeRows) sink.row?.(type, bytes, at, next);
        at = next;
        sink.ended?.(base + at);
        continue;
      }
      this.began = base + at;
      if (type === NBCROW) {
        this.beginRow(type);
        const size = (this.columns + 7) >> 3;
        if (size > this.bitmap.length) this.bitmap = new Uint8Array(size);
        this.bitmapLength = 0;
        if (at + 1 + size > end) {
          this.phase = BITMAP;
          if (this.wholeRows) this.keep(bytes, at, at + 1);
          return at + 1;
        }
        for (let i = 0; i < size; i++) this.bitmap[i] = bytes[at + 1 + i];
        const next = this.values(bytes, at + 1 + size, end);
        if (next < 0) return this.keepRow(bytes, at, end);
        this.rowsEnded++;
        if (this.wholeRows) sink.row?.(type, bytes, at, next);
        at = next;
        sink.ended?.(base + at);
        continue;
      }
      if (this.rowsEnded > 0) this.tellRows(sink);
      this.beginWalk(type);
      const length = this.lengthOf(bytes, at, end);
      if (length === 0 || at + length > end) {
        this.needed(length === 0 ? this.need : length);
        this.heldLength = 0;
        this.keep(bytes, at, end);
        this.phase = HELD;
        return end;
      }
      this.tell(bytes, at, at + length, base + at + length, sink);
      at += length;
      if (this.phase !== BETWEEN) return at;
    }
    return at;
  }

  private resumeHeld(bytes: Uint8Array, at: number, end: number, base: number, sink: TokenSink): number {
    const stop = Math.min(end, at + this.need - this.heldLength);
    this.keep(bytes, at, stop);
    if (this.heldLength < this.need) return stop;
    const length = this.lengthOf(this.held, 0, this.heldLength);
    if (length !== this.heldLength) {
      this.needed(length === 0 ? this.need : length);
      return stop;
    }
    const held = this.held;
    this.held = EMPTY;
    this.heldLength = 0;
    this.phase = BETWEEN;
    this.tell(held, 0, length, base + stop, sink);
    return stop;
  }

  /** @param position of the stream behind the token */
  private tell(bytes: Uint8Array, start: number, end: number, position: number, sink: TokenSink): void {
    switch (this.type) {
      case ALTROW: {
        const ops = this.alternatives?.get(uint16(bytes, start + 1));
        if (ops === undefined) this.violation('a row of a COMPUTE clause has no description');
        this.startValues(ALTROW, ops, ops.length);
        this.phase = VALUES;
        if (this.wholeRows) this.keep(bytes, start, end);
        // It may have no values.
        if (ops.length === 0) this.endRow(position, sink);
        return;
      }
      case RETURNVALUE:
        if (this.longValue !== 0) {
          this.single[0] = this.longValue;
          this.startValues(RETURNVALUE, this.single, 1);
          this.phase = VALUES;
        }
        break;
    }
    sink.token(this.type, bytes, start, end);
  }

  private tellRows(sink: TokenSink): void {
    const count = this.rowsEnded;
    this.rowsEnded = 0;
    sink.rows(count);
  }

  /** So many bytes of the token must be there before it can be looked at again. */
  private needed(length: number): void {
    if (length > this.limit) this.violation('a token is longer than allowed');
    this.need = length;
  }

  /** Adds [start, end) to what is held. */
  private keep(bytes: Uint8Array, start: number, end: number): void {
    const length = this.heldLength + end - start;
    if (length > this.held.length) {
      if (length > this.limit) this.violation('a token is longer than allowed');
      const grown = Buffer.allocUnsafe(Math.max(64, 2 * this.heldLength, length));
      grown.set(this.held.subarray(0, this.heldLength));
      this.held = grown;
    }
    if (end - start < 16) for (let i = start, to = this.heldLength; i < end; i++) this.held[to++] = bytes[i];
    else this.held.set(bytes.subarray(start, end), this.heldLength);
    this.heldLength = length;
  }

  private violation(what: string): never {
    throw new ProtocolViolation(what, this.sender);
  }

  // ------------------------------------------------------------------------------------------------------------ lengths

  private beginWalk(type: number): void {
    this.type = type;
    this.walked = 0;
    this.step = 0;
  }

  /** More bytes are needed: `count` from the token's start. */
  private short(count: number): 0 {
    this.need = count;
    return 0;
  }

  /** Length of the token at `at`, its type included, which may be more than there is; 0: {@link need} bytes tell more. */
  private lengthOf(bytes: Uint8Array, at: number, end: number): number {
    const there = end - at;
    switch (this.type) {
      case DONE:
      case DONEPROC:
      case DONEINPROC:
        return this.dialect >= TDS_7_2 ? 13 : 9;
      case RETURNSTATUS:
      case OFFSET:
        return 5;
      case ERROR:
      case INFO:
      case LOGINACK:
      case ORDER:
      case TABNAME:
      case COLINFO:
      case SSPI_TOKEN:
        return there < 3 ? this.short(3) : 3 + uint16(bytes, at + 1);
      case ENVCHANGE: {
        if (there < 4) return this.short(4);
        if (bytes[at + 3] === ENV_PROMOTE) return there < 8 ? this.short(8) : 9 + uint32(bytes, at + 4);
        const length = uint16(bytes, at + 1);
        if (length === 0) this.violation('an ENVCHANGE has no type');
        return 3 + length;
      }
      case SESSIONSTATE:
      case FEDAUTHINFO:
        return there < 5 ? this.short(5) : 5 + uint32(bytes, at + 1);
      case COLMETADATA:
        return this.walkColumns(bytes, at, end);
      case RETURNVALUE:
        return this.walkReturnValue(bytes, at, end);
      case FEATUREEXTACK:
        return this.walkFeatures(bytes, at, end);
      case ALTMETADATA:
        return this.walkAlternative(bytes, at, end);
      case DATACLASSIFICATION:
        return this.walkClassification(bytes, at, end);
      case ALTROW:
        return 3;
      default:
        this.violation('a token has a type that is not known');
    }
  }

  /** After a walk that came to `next`: the walk goes on from there next time. Returns false when it did not come that far. */
  private came(next: number, at: number): boolean {
    if (next < 0) {
      if (next === UNKNOWN_TYPE) this.violation('a column has a type that is not known');
      this.need = this.walk.lack - at;
      return false;
    }
    this.walked = next - at;
    if (this.walked > this.limit) this.violation('a token is longer than allowed');
    return true;
  }

  /** Steps of {@link walkColumns}: the count, the keys' count, a key, a value of it, a column. */
  private walkColumns(bytes: Uint8Array, at: number, end: number): number {
    for (;;) {
      const from = at + this.walked;
      switch (this.step) {
        case 0: {
          if (end - at < 3) return this.short(3);
          this.walked = 3;
          const count = uint16(bytes, at + 1);
          if (count === NO_METADATA) return 3;
          this.alternatives = null;
          this.described = false;
          this.empties = 0;
          this.columns = 0;
          this.left = count;
          this.step = this.columnEncryption ? 1 : 4;
          break;
        }
        case 1:
          if (from + 2 > end) return this.short(this.walked + 2);
          this.inner = uint16(bytes, from);
          this.walked += 2;
          this.step = this.inner > 0 ? 2 : 4;
          break;
        case 2:
          // EK_INFO: three numbers of 4 bytes and one of 8, then a count of values.
          if (from + 21 > end) return this.short(this.walked + 21);
          this.keyValues = bytes[from + 20];
          this.walked += 21;
          this.inner--;
          this.step = 3;
          break;
        case 3:
          if (this.keyValues === 0) {
            this.step = this.inner > 0 ? 2 : 4;
            break;
          }
          if (!this.came(this.keyValue(bytes, from, end), at)) return 0;
          this.keyValues--;
          break;
        default:
          if (this.left === 0) {
            this.described = true;
            return this.walked;
          }
          if (!this.came(this.columnEnd(bytes, from, end), at)) return 0;
          if (this.columns === this.shapes.length) {
            const grown = new Int32Array(2 * this.columns);
            grown.set(this.shapes);
            this.shapes = grown;
          }
          this.shapes[this.columns++] = this.walk.shape;
          this.countEmpty();
          this.left--;
      }
    }
  }

  /** A row costs time for each column: it must cost bytes as well. */
  private countEmpty(): void {
    if (this.walk.shape === 0 && ++this.empties > MAX_EMPTY_COLUMNS)
      this.violation('a result has too many columns that hold nothing');
  }

  /** EncryptionKeyValue: the encrypted key, names of its store, path and algorithm. */
  private keyValue(bytes: Uint8Array, at: number, end: number): number {
    if (at + 2 > end) return this.lack(at + 2);
    let next = at + 2 + uint16(bytes, at);
    if (next >= end) return this.lack(next + 1);
    next = this.walk.names(bytes, next, end, 1);
    if (next < 0) return next;
    next = this.walk.usVarchar(bytes, next, end);
    return next < 0 ? next : this.walk.names(bytes, next, end, 1);
  }

  private lack(position: number): number {
    this.walk.lack = position;
    return SHORT;
  }

  /** Where the ColumnData at `at` ends (2.2.7.4); its shape is in {@link walk}. */
  private columnEnd(bytes: Uint8Array, at: number, end: number): number {
    const { walk } = this;
    const info = at + (this.dialect >= TDS_7_2 ? 6 : 4);
    if (info > end) return this.lack(info);
    const flags = uint16(bytes, info - 2);
    let next = walk.info(bytes, info, end, this.dialect, 'result');
    if (next < 0) return next;
    const { shape, type } = walk;
    if (type === TEXTTYPE || type === NTEXTTYPE || type === IMAGETYPE) {
      let parts = 1;
      if (this.dialect >= TDS_7_2 && this.sender === 'server') {
        if (next >= end) return this.lack(next + 1);
        parts = bytes[next++];
      }
      for (; parts > 0; parts--) {
        next = walk.usVarchar(bytes, next, end);
        if (next < 0) return next;
      }
    }
    if ((flags & FLAG_ENCRYPTED) !== 0 && this.columnEncryption) {
      next = this.cryptoEnd(bytes, next + 2, end);
      if (next < 0) return next;
    }
    next = walk.names(bytes, next, end, 1);
    // The walk may have been over the type of the plain value as well.
    walk.shape = shape;
    return next;
  }

  /** Where the CryptoMetaData whose UserType is at `at` ends. */
  private cryptoEnd(bytes: Uint8Array, at: number, end: number): number {
    let next = this.walk.info(bytes, at + 4, end, this.dialect, 'result');
    if (next < 0) return next;
    if (next >= end) return this.lack(next + 1);
    // An algorithm without a number has a name.
    if (bytes[next++] === 0) {
      next = this.walk.names(bytes, next, end, 1);
      if (next < 0) return next;
    }
    return next + 2 > end ? this.lack(next + 2) : next + 2;
  }

  private walkReturnValue(bytes: Uint8Array, at: number, end: number): number {
    const { walk } = this;
    this.longValue = 0;
    let next = walk.names(bytes, at + 3, end, 1);
    // Status, user type, flags.
    if (next >= 0) {
      next += this.dialect >= TDS_7_2 ? 7 : 5;
      if (next > end) next = this.lack(next);
    }
    if (next < 0) return this.short(walk.lack - at);
    const flags = uint16(bytes, next - 2);
    next = walk.info(bytes, next, end, this.dialect, 'result');
    const { shape } = walk;
    if (next >= 0 && (flags & FLAG_ENCRYPTED) !== 0 && this.columnEncryption) next = this.cryptoEnd(bytes, next, end);
    if (next === UNKNOWN_TYPE) this.violation('a value has a type that is not known');
    if (next < 0) return this.short(walk.lack - at);
    const there = end - next;
    switch (shape) {
      case BYTELEN:
        return there < 1 ? this.short(next + 1 - at) : next + 1 + bytes[next] - at;
      case USHORTLEN: {
        if (there < 2) return this.short(next + 2 - at);
        const length = uint16(bytes, next);
        return next + 2 + (length === 0xffff ? 0 : length) - at;
      }
      case LONGLEN:
        return there < 4 ? this.short(next + 4 - at) : next + 4 + uint32(bytes, next) - at;
      case PLP:
      case TEXTPTR:
        this.longValue = shape;
        return next - at;
      default:
        return next + shape - at;
    }
  }

  /** FEATUREEXTACK (2.2.7.11): feature by feature up to ff. */
  private walkFeatures(bytes: Uint8Array, at: number, end: number): number {
    if (this.step === 0) {
      this.walked = 1;
      this.step = 1;
    }
    for (;;) {
      const from = at + this.walked;
      if (from >= end) return this.short(this.walked + 1);
      if (bytes[from] === 0xff) return this.walked + 1;
      if (from + 5 > end) return this.short(this.walked + 5);
      const length = this.walked + 5 + uint32(bytes, from + 1);
      if (length > this.limit) this.violation('a token is longer than allowed');
      if (at + length >= end) return this.short(length + 1);
      this.walked = length;
    }
  }

  /** ALTMETADATA (2.2.7.1): the columns of a COMPUTE clause. */
  private walkAlternative(bytes: Uint8Array, at: number, end: number): number {
    if (this.step === 0) {
      if (end - at < 6) return this.short(6);
      this.left = uint16(bytes, at + 1);
      this.walked = 6 + 2 * bytes[at + 5];
      this.step = 1;
      this.inner = 0;
      const id = uint16(bytes, at + 3);
      this.alternatives ??= new Map();
      let all = this.left;
      for (const ops of this.alternatives.values()) all += ops.length + 1;
      if (all > MAX_COMPUTED) this.violation('a result has too many COMPUTE clauses');
      this.alternatives.set(id, new Int32Array(this.left));
    }
    while (this.left > 0) {
      // What is computed, of which column, and then as in COLMETADATA.
      if (!this.came(this.columnEnd(bytes, at + this.walked + 3, end), at)) return 0;
      const ops = this.alternatives?.get(uint16(bytes, at + 3));
      if (ops !== undefined) ops[this.inner++] = this.walk.shape;
      this.countEmpty();
      this.left--;
    }
    return this.walked;
  }

  /** DATACLASSIFICATION (2.2.7.5). Steps: labels, types of information, rank and columns, properties of a column. */
  private walkClassification(bytes: Uint8Array, at: number, end: number): number {
    const ranked = this.dataClassification >= 2;
    if (this.walked === 0) {
      this.walked = 1;
      this.left = -1;
    }
    for (;;) {
      const from = at + this.walked;
      switch (this.step) {
        case 0:
        case 1:
          if (this.left < 0) {
            if (from + 2 > end) return this.short(this.walked + 2);
            this.left = uint16(bytes, from);
            this.walked += 2;
          } else if (this.left > 0) {
            // A name and an id.
            if (!this.came(this.walk.names(bytes, from, end, 2), at)) return 0;
            this.left--;
          } else {
            this.left = -1;
            this.step++;
          }
          break;
        case 2: {
          const length = ranked ? 6 : 2;
          if (from + length > end) return this.short(this.walked + length);
          this.left = uint16(bytes, from + length - 2);
          this.walked += length;
          this.step = 3;
          break;
        }
        default: {
          if (this.left === 0) return this.walked;
          if (from + 2 > end) return this.short(this.walked + 2);
          const length = 2 + uint16(bytes, from) * (ranked ? 8 : 4);
          this.walked += length;
          if (this.walked > this.limit) this.violation('a token is longer than allowed');
          this.left--;
          if (this.left === 0) return this.walked;
        }
      }
    }
  }

  // --------------------------------------------------------------------------------------------------------------- rows

  private beginRow(type: number): void {
    if (!this.described) this.violation('a row comes without a description of its columns');
    this.startValues(type, this.shapes, this.columns);
  }

  private startValues(type: number, ops: Int32Array, count: number): void {
    this.rowType = type;
    this.ops = ops;
    this.count = count;
    this.column = 0;
    this.part = FIRST;
    this.skip = 0;
    this.cutLength = 0;
    this.heldLength = 0;
  }

  /**
   * Walks over the values of the row from `from` on, where one begins.
   *
   * @returns where the row ends; -1 when that is not here: where it goes on is kept
   */
  private values(bytes: Uint8Array, from: number, end: number): number {
    const { ops, count, bitmap } = this;
    const sparse = this.rowType === NBCROW;
    let at = from;
    let column = this.column;
    for (; column < count; column++) {
      if (sparse && (bitmap[column >> 3] & (1 << (column & 7))) !== 0) continue;
      const op = ops[column];
      if (op >= 0) {
        at += op;
      } else if (op === BYTELEN) {
        if (at >= end) return this.suspend(bytes, at, end, column);
        at += 1 + bytes[at];
      } else if (op === USHORTLEN) {
        if (at + 2 > end) return this.suspend(bytes, at, end, column);
        const length = bytes[at] | (bytes[at + 1] << 8);
        at += length === 0xffff ? 2 : 2 + length;
      } else {
        at = this.longEnd(bytes, at, end, op, column);
        if (at < 0) return at;
      }
    }
    if (at > end) return this.suspend(bytes, at, end, count);
    return at;
  }

  /** Where a value with a long length ends, which may be behind `end`; -1 as {@link values}. */
  private longEnd(bytes: Uint8Array, from: number, end: number, op: Shape, column: number): number {
    let at = from;
    if (op === PLP) {
      if (this.part === FIRST) {
        if (at + 8 > end) return this.suspend(bytes, at, end, column);
        const none = uint32(bytes, at) === 0xffffffff && uint32(bytes, at + 4) === 0xffffffff;
        at += 8;
        if (none) return at;
        this.part = CHUNK;
      }
      for (;;) {
        if (at + 4 > end) return this.suspend(bytes, at, end, column);
        const length = uint32(bytes, at);
        at += 4;
        if (length === 0) break;
        at += length;
      }
      this.part = FIRST;
      return at;
    }
    if (op === TEXTPTR && this.part === FIRST) {
      if (at >= end) return this.suspend(bytes, at, end, column);
      const pointer = bytes[at];
      if (pointer === 0) return at + 1;
      at += 1 + pointer + 8;
      this.part = TEXT_LENGTH;
    }
    if (at + 4 > end) return this.suspend(bytes, at, end, column);
    const length = uint32(bytes, at);
    if (length > 0x7fffffff) this.violation('a value has an impossible length');
    this.part = FIRST;
    return at + 4 + length;
  }

  /** The bytes end at `at` or before: within a value (`at` is behind the end), or within the length that begins at `at`. */
  private suspend(bytes: Uint8Array, at: number, end: number, column: number): -1 {
    this.column = column;
    this.cutLength = 0;
    this.skip = Math.max(0, at - end);
    for (let i = at; i < end; i++) this.cut[this.cutLength++] = bytes[i];
    return -1;
  }

  /** How many bytes the value says its length with, or what else it begins with, where {@link suspend} stopped. */
  private lengthBytes(): number {
    switch (this.ops[this.column]) {
      case BYTELEN:
        return 1;
      case USHORTLEN:
        return 2;
      case PLP:
        return this.part === FIRST ? 8 : 4;
      case TEXTPTR:
        return this.part === FIRST ? 1 : 4;
      default:
        return 4;
    }
  }

  /** The row begins in this chunk and does not end in it. */
  private keepRow(bytes: Uint8Array, start: number, end: number): number {
    this.phase = VALUES;
    if (this.wholeRows) this.keep(bytes, start, end);
    return end;
  }

  private resumeBitmap(bytes: Uint8Array, from: number, end: number, base: number, sink: TokenSink): number {
    const size = (this.columns + 7) >> 3;
    let at = from;
    while (at < end && this.bitmapLength < size) this.bitmap[this.bitmapLength++] = bytes[at++];
    if (this.wholeRows) this.keep(bytes, from, at);
    if (this.bitmapLength < size) return at;
    this.phase = VALUES;
    // Nothing may follow: all are NULL.
    if (this.values(EMPTY, 0, 0) >= 0) this.endRow(base + at, sink);
    return at;
  }

  private resumeValues(bytes: Uint8Array, from: number, end: number, base: number, sink: TokenSink): number {
    let at = from;
    let next: number;
    if (this.skip > 0) {
      const stop = Math.min(end, at + this.skip);
      this.skip -= stop - at;
      at = stop;
      // The row may be over with what was skipped.
      next = this.skip > 0 ? -1 : this.values(EMPTY, 0, 0);
    } else if (this.cutLength > 0) {
      const length = this.lengthBytes();
      while (at < end && this.cutLength < length) this.cut[this.cutLength++] = bytes[at++];
      next = this.cutLength < length ? -1 : this.values(this.cut, 0, length);
    } else {
      next = this.values(bytes, at, end);
      at = next < 0 ? end : next;
    }
    if (this.wholeRows && this.rowType !== RETURNVALUE) this.keep(bytes, from, at);
    if (next >= 0) this.endRow(base + at, sink);
    return at;
  }

  private endRow(position: number, sink: TokenSink): void {
    this.phase = BETWEEN;
    if (this.rowType !== RETURNVALUE) {
      this.rowsEnded++;
      if (this.wholeRows) {
        const { held, heldLength } = this;
        this.held = EMPTY;
        this.heldLength = 0;
        sink.row?.(this.rowType, held, 0, heldLength);
      }
    }
    sink.ended?.(position);
  }

  // ------------------------------------------------------------------------------------------------------- plain data

  /** All that it knows, as plain data for {@link thaw} in another process. */
  freeze(): FrozenTokens {
    return {
      dialect: this.dialect,
      columnEncryption: this.columnEncryption,
      dataClassification: this.dataClassification,
      wholeRows: this.wholeRows,
      read: this.read,
      began: this.began,
      described: this.described,
      empties: this.empties,
      shapes: this.shapes.slice(0, this.columns),
      alternatives: this.alternatives,
      phase: this.phase,
      row: [this.rowType, this.count, this.column, this.part, this.skip],
      ops: this.ops.slice(0, this.count),
      cut: this.cut.slice(0, this.cutLength),
      bitmap: this.bitmap.slice(),
      bitmapLength: this.bitmapLength,
      held: new Uint8Array(this.held.subarray(0, this.heldLength)),
      walk: [this.need, this.type, this.walked, this.step, this.left, this.inner, this.keyValues],
    };
  }

  /** The reader that {@link freeze} told of, with the same limit and sender as it had. */
  static thaw(frozen: FrozenTokens, limit = DEFAULT_LIMIT, sender: Sender = 'server'): TokenReader {
    const reader = new TokenReader(frozen.dialect, limit, sender);
    reader.columnEncryption = frozen.columnEncryption;
    reader.dataClassification = frozen.dataClassification;
    reader.wholeRows = frozen.wholeRows;
    reader.read = frozen.read;
    reader.began = frozen.began;
    reader.described = frozen.described;
    reader.empties = frozen.empties;
    reader.columns = frozen.shapes.length;
    reader.shapes = new Int32Array(Math.max(16, frozen.shapes.length));
    reader.shapes.set(frozen.shapes);
    reader.alternatives = frozen.alternatives === null ? null : new Map(frozen.alternatives);
    reader.phase = frozen.phase;
    [reader.rowType, reader.count, reader.column, reader.part, reader.skip] = frozen.row;
    reader.ops = frozen.ops;
    reader.cut.set(frozen.cut);
    reader.cutLength = frozen.cut.length;
    reader.bitmap = frozen.bitmap;
    reader.bitmapLength = frozen.bitmapLength;
    reader.held = frozen.held;
    reader.heldLength = frozen.held.length;
    [reader.need, reader.type, reader.walked, reader.step, reader.left, reader.inner, reader.keyValues] = frozen.walk;
    return reader;
  }
}

/** A {@link TokenReader} as plain data. */
export interface FrozenTokens {
  readonly dialect: Dialect;
  readonly columnEncryption: boolean;
  readonly dataClassification: number;
  readonly wholeRows: boolean;
  readonly read: number;
  readonly began: number;
  readonly described: boolean;
  readonly empties: number;
  readonly shapes: Int32Array;
  readonly alternatives: Map<number, Int32Array> | null;
  readonly phase: number;
  readonly row: readonly number[];
  readonly ops: Int32Array;
  readonly cut: Uint8Array;
  readonly bitmap: Uint8Array;
  readonly bitmapLength: number;
  readonly held: Uint8Array;
  readonly walk: readonly number[];
}

/** So many columns may all COMPUTE clauses of a result have: as many as a result itself. */
const MAX_COMPUTED = 4096;

const EMPTY = new Uint8Array(0);
