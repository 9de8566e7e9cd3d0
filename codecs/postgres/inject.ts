import { serialize } from 'pg-protocol';
import type { Injection, OutcomeToken, ServerError, TokenInjection } from '../../core/contract/index.js';
import { parseError } from './errors.js';

/** Name of the statement and portal of the gateway's own; closed again in the same breath, so that it never collides. */
const OWN = '_outlive';

/**
 * Bytes that run one statement without disturbing the client's: a simple Query would destroy its unnamed statement, and the
 * unnamed portal may be in use, so both get a name of the gateway's own.
 */
export function ownStatement(sql: string): Buffer {
  return Buffer.concat([
    serialize.close({ type: 'S', name: OWN }),
    serialize.parse({ name: OWN, text: sql }),
    serialize.bind({ portal: OWN, statement: OWN }),
    serialize.execute({ portal: OWN }),
    serialize.close({ type: 'P', name: OWN }),
    serialize.close({ type: 'S', name: OWN }),
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

/** PostgreSQL's text form of a log position: two hexadecimal halves. */
export function formatLsn(lsn: bigint): string {
  return `${(lsn >> 32n).toString(16).toUpperCase()}/${(lsn & 0xffffffffn).toString(16).toUpperCase()}`;
}
