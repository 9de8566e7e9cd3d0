import { serialize } from 'pg-protocol';
import {
  type Exchange,
  type Injection,
  type OutcomeToken,
  ProtocolViolation,
  type ServerError,
  type TokenInjection,
} from '../../core/contract/index.js';
import { parseError } from './errors.js';
import { formatLsn, parseLsn } from './lsn.js';
import { lengthAt } from './messages.js';

/** Name of the statement and portal of the gateway's own; closed again in the same breath, so that it never collides. */
const OWN = '_outlive';

/**
 * Bytes that run one statement without disturbing the client's: a simple Query would destroy its unnamed statement, and the
 * unnamed portal may be in use, so both get a name of the gateway's own.
 * @param name another one for a statement behind which others follow whether or not it fails: a portal that failed is there until its
 * transaction is over
 */
export function ownStatement(sql: string, name = OWN): Buffer {
  return Buffer.concat([
    serialize.close({ type: 'S', name }),
    serialize.parse({ name, text: sql }),
    serialize.bind({ portal: name, statement: name }),
    serialize.execute({ portal: name }),
    serialize.close({ type: 'P', name }),
    serialize.close({ type: 'S', name }),
    serialize.sync(),
  ]);
}

/** An injection of one statement; collects its rows and its command tag. */
export class StatementInjection implements Injection {
  readonly readies = 1;
  private error: ServerError | null = null;
  private raw: Uint8Array | null = null;
  tag = '';
  readonly rows: (string | null)[][] = [];

  constructor(readonly bytes: Uint8Array) {}

  frame(bytes: Uint8Array, start: number, end: number): void {
    switch (bytes[start]) {
      case 0x45: // ErrorResponse
        this.error = parseError(bytes, start, end);
        this.raw = Uint8Array.prototype.slice.call(bytes, start, end);
        break;
      case 0x43: // CommandComplete
        this.tag = text(bytes, start + 5, end - 1);
        break;
      case 0x44: // DataRow
        this.rows.push(dataRow(bytes, start, end));
        break;
    }
  }

  failed(): ServerError | null {
    return this.error;
  }

  errorBytes(): Uint8Array | null {
    return this.raw;
  }
}

/**
 * An injection that leads an exchange which only sends own statements and wants frames: as much of it as one round trip brings.
 * What is left goes on in another one ({@link rest}).
 */
export class ExchangeInjection implements Injection {
  readonly bytes: Uint8Array;
  readonly readies: number;
  /** The round trip after this one; null when there is none. */
  rest: ExchangeInjection | null = null;
  private error: ServerError | null = null;
  private over = false;

  /** @param send what the exchange wants sent first; by default it is not begun yet */
  constructor(
    private readonly exchange: Exchange<void>,
    send?: Uint8Array,
  ) {
    this.bytes = send ?? this.next(undefined) ?? new Uint8Array(0);
    let readies = 0;
    for (let at = 0; at < this.bytes.length; at += lengthAt(this.bytes, at)) {
      if (this.bytes[at] === 0x53) readies++;
    }
    this.readies = readies;
  }

  /** @returns what it wants sent next, if anything */
  private next(frame: Uint8Array | undefined): Uint8Array | undefined {
    try {
      const step = this.exchange.next(frame);
      this.over = step.done === true;
      return step.done || step.value.want !== 'frame' ? undefined : step.value.send;
    } catch (error) {
      if (!(error instanceof ProtocolViolation)) throw error;
      // The transaction failed meanwhile: nothing is learnt.
      this.over = true;
      return undefined;
    }
  }

  frame(bytes: Uint8Array, start: number, end: number): void {
    if (bytes[start] === 0x45 && this.error?.fatal !== true) {
      const error = parseError(bytes, start, end);
      if (this.error === null || error.fatal) this.error = error;
    }
    if (this.over) return;
    const send = this.next(Uint8Array.prototype.slice.call(bytes, start, end));
    if (send !== undefined) this.rest = new ExchangeInjection(this.exchange, send);
  }

  failed(): ServerError | null {
    return this.error;
  }

  errorBytes(): Uint8Array | null {
    return null;
  }
}

/** Columns of a DataRow as text, null for NULL. */
export function dataRow(bytes: Uint8Array, start: number, _end: number): (string | null)[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const columns: (string | null)[] = [];
  let at = start + 7;
  for (let i = view.getUint16(start + 5); i > 0; i--) {
    const length = view.getInt32(at);
    at += 4;
    columns.push(length < 0 ? null : text(bytes, at, at + length));
    if (length > 0) at += length;
  }
  return columns;
}

/** [start, end) as UTF-8. */
export function text(bytes: Uint8Array, start: number, end: number): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset + start, end - start).toString('utf8');
}

/** FunctionCall message (protocol manual, "Function Call"): no arguments, binary result. */
function functionCall(oid: number): Buffer {
  const b = Buffer.alloc(15);
  b.write('F', 0, 'latin1');
  b.writeInt32BE(14, 1);
  b.writeInt32BE(oid, 5);
  b.writeInt16BE(0, 9); // no argument formats
  b.writeInt16BE(0, 11); // no arguments
  b.writeInt16BE(1, 13); // binary result
  return b;
}

// pg_proc.dat; fixed since PostgreSQL 13.
const PG_CURRENT_XACT_ID = 5059;
const PG_CURRENT_XACT_ID_IF_ASSIGNED = 5060;
const PG_CURRENT_WAL_INSERT_LSN = 2852;

const TOKEN = Buffer.concat([functionCall(PG_CURRENT_XACT_ID_IF_ASSIGNED), functionCall(PG_CURRENT_WAL_INSERT_LSN)]);
const FORCED_TOKEN = Buffer.concat([functionCall(PG_CURRENT_XACT_ID), functionCall(PG_CURRENT_WAL_INSERT_LSN)]);

/**
 * Learns the transaction id and then a log position, in this order, with the fast-path function call: no parsing, no plan, and
 * neither the client's unnamed statement nor a portal is touched. The position is taken after the transaction's first log record
 * and before its commit record leaves the gateway: both matter for `resolve` (outcome.ts).
 */
export class XactToken implements TokenInjection {
  readonly readies = 2;
  readonly bytes: Uint8Array;
  private error: ServerError | null = null;
  private raw: Uint8Array | null = null;
  private readonly values: (bigint | null)[] = [];

  /** @param force assign an id even if none is assigned yet: for work that gets one only inside COMMIT (NOTIFY) */
  constructor(force: boolean) {
    this.bytes = force ? FORCED_TOKEN : TOKEN;
  }

  frame(bytes: Uint8Array, start: number, end: number): void {
    if (bytes[start] === 0x45) {
      if (this.error !== null) return;
      this.error = parseError(bytes, start, end);
      this.raw = Uint8Array.prototype.slice.call(bytes, start, end);
    } else if (bytes[start] === 0x56) {
      const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
      this.values.push(view.getInt32(start + 5) < 0 ? null : view.getBigUint64(start + 9));
    }
  }

  failed(): ServerError | null {
    return this.error;
  }

  errorBytes(): Uint8Array | null {
    return this.raw;
  }

  token(): OutcomeToken | null {
    const [xid, lsn] = this.values;
    if (this.error !== null || xid == null || lsn == null) return null;
    return { token: { xid: xid.toString(), lsn: formatLsn(lsn) }, position: lsn };
  }
}

/** The prepared statement of {@link RidingToken}, and the portal it runs in. */
const TOKEN_STATEMENT = '_outlive_token';
const TOKEN_RUN = Buffer.concat([
  serialize.bind({ portal: TOKEN_STATEMENT, statement: TOKEN_STATEMENT }),
  serialize.execute({ portal: TOKEN_STATEMENT }),
  serialize.close({ type: 'P', name: TOKEN_STATEMENT }),
  serialize.sync(),
]);
const TOKEN_PREPARE = Buffer.concat([
  serialize.close({ type: 'S', name: TOKEN_STATEMENT }),
  serialize.parse({
    name: TOKEN_STATEMENT,
    text: 'SELECT pg_catalog.pg_current_xact_id_if_assigned(), pg_catalog.pg_current_wal_insert_lsn()',
  }),
]);
const SYNC_LENGTH = 5;

/**
 * Learns the same as {@link XactToken} inside the client's own request: a prepared statement of the gateway's own, run between the
 * client's last Execute and its Sync. It costs the server neither another flush nor the gateway another read, which two function
 * calls do. Its answer follows the completion of the client's last statement; the codec hands it over here.
 */
export class RidingToken implements TokenInjection {
  readonly readies = 1;
  readonly bytes: Uint8Array;
  private row: Uint8Array | null = null;
  private error: ServerError | null = null;
  /** The server has the statement now. */
  prepared: boolean;

  /**
   * @param prepared whether the server has the statement already
   * @param epoch for the owner: tells whether `prepared` still holds when the answer comes
   * @param request [start, end) of it is the request, which ends with its Sync
   */
  constructor(
    prepared: boolean,
    readonly epoch: number,
    request: Uint8Array,
    start: number,
    end: number,
  ) {
    this.prepared = prepared;
    const own = end - start - SYNC_LENGTH;
    const bytes = Buffer.allocUnsafe(own + (prepared ? 0 : TOKEN_PREPARE.length) + TOKEN_RUN.length);
    bytes.set(request.subarray(start, end - SYNC_LENGTH), 0);
    if (!prepared) bytes.set(TOKEN_PREPARE, own);
    bytes.set(TOKEN_RUN, bytes.length - TOKEN_RUN.length);
    this.bytes = bytes;
  }

  frame(bytes: Uint8Array, start: number, end: number): void {
    if (bytes[start] === 0x44) this.row = Uint8Array.prototype.slice.call(bytes, start, end);
    else if (bytes[start] === 0x31) this.prepared = true;
    else if (bytes[start] === 0x45) this.error = parseError(bytes, start, end);
  }

  failed(): ServerError | null {
    // Skipped by the server: what came before it failed.
    return this.row === null ? (this.error ?? SKIPPED) : this.error;
  }

  errorBytes(): Uint8Array | null {
    return null;
  }

  token(): OutcomeToken | null {
    if (this.row === null || this.error !== null) return null;
    const [xid, lsn] = dataRow(this.row, 0, this.row.length);
    if (xid === null || lsn === null) return null;
    return { token: { xid, lsn }, position: parseLsn(lsn) };
  }
}

/** What a question that the server skipped was not answered with. */
const SKIPPED: ServerError = Object.freeze({ meaning: 'ordinary', code: '25P02', message: '', fatal: false });
