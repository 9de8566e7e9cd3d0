/**
 * What a client asks for (MS-TDS 2.2.6), but for RPC, which is in `rpc.ts`: ALL_HEADERS, SQLBatch and Transaction Manager requests. All get
 * the payload of one whole message, [start, end) of `bytes`, and throw a ProtocolViolation when it is malformed. Attention and BulkLoad
 * have no headers; an Attention has no payload at all, and a BulkLoad is a token stream (a `TokenReader` with sender `client`).
 */

import { putUint64, Reader, uint16, uint32, uint64, utf16, Writer } from './bytes.js';
import { patchPayload, RPC, SQL_BATCH, TRANSACTION_MANAGER } from './packet.js';
import { type Dialect, TDS_7_2 } from './version.js';

/** True for messages that begin with ALL_HEADERS: from 7.2 on, SQLBatch, RPC and Transaction Manager requests. */
export const hasHeaders = (type: number, dialect: Dialect): boolean =>
  dialect >= TDS_7_2 && (type === SQL_BATCH || type === RPC || type === TRANSACTION_MANAGER);

// Types of headers (2.2.5.3).
const QUERY_NOTIFICATIONS = 1;
const TRANSACTION_DESCRIPTOR = 2;
const TRACE_ACTIVITY = 3;

/** ALL_HEADERS (2.2.5.3). */
export interface AllHeaders {
  /** Length of all of them: what follows is the request itself. */
  readonly length: number;
  /** Where the eight bytes of the transaction descriptor stand, from the start of the payload; -1 without one. */
  readonly descriptorAt: number;
  /** The transaction that the request belongs to; 0n outside of one. */
  readonly descriptor: bigint;
  /** Requests that are running; 1 outside of MARS. */
  readonly outstanding: number;
  /** GUID and sequence number, 20 bytes; null without. */
  readonly traceActivity: Uint8Array | null;
  /** It subscribes to a query notification. */
  readonly notification: boolean;
}

const NO_HEADERS: AllHeaders = {
  length: 0,
  descriptorAt: -1,
  descriptor: 0n,
  outstanding: 1,
  traceActivity: null,
  notification: false,
};

/** Reads ALL_HEADERS at the start of a payload. */
export function readAllHeaders(bytes: Uint8Array, start: number, end: number): AllHeaders {
  // What nearly every request begins with: one header, the transaction descriptor.
  if (end - start >= 22 && uint32(bytes, start) === 22 && uint32(bytes, start + 4) === 18) {
    if (uint16(bytes, start + 8) === TRANSACTION_DESCRIPTOR)
      return {
        length: 22,
        descriptorAt: 10,
        descriptor: uint64(bytes, start + 10),
        outstanding: uint32(bytes, start + 18),
        traceActivity: null,
        notification: false,
      };
  }
  const all = new Reader(bytes, start, end, 'client', 'ALL_HEADERS of a request');
  const length = all.ulong();
  if (length < 4 || length > end - start) all.fail('has an impossible length');
  const stop = start + length;
  const found = { ...NO_HEADERS, length };
  while (all.at < stop) {
    const size = new Reader(bytes, all.at, stop, 'client', 'ALL_HEADERS of a request').ulong();
    if (size < 6 || size > stop - all.at) all.fail('has a header of an impossible length');
    const header = new Reader(bytes, all.at + 4, all.at + size, 'client', 'a header of a request');
    switch (header.ushort()) {
      case TRANSACTION_DESCRIPTOR:
        if (found.descriptorAt >= 0) header.fail('comes twice');
        found.descriptorAt = header.at - start;
        found.descriptor = header.ulonglong();
        found.outstanding = header.ulong();
        break;
      case TRACE_ACTIVITY:
        found.traceActivity = header.take(20);
        break;
      case QUERY_NOTIFICATIONS:
        found.notification = true;
        break;
    }
    all.skip(size);
  }
  return found;
}

/** ALL_HEADERS with a transaction descriptor alone. */
export const allHeaders = (descriptor: bigint, outstanding = 1): Uint8Array =>
  new Writer().ulong(22).ulong(18).ushort(TRANSACTION_DESCRIPTOR).ulonglong(descriptor).ulong(outstanding).done();

/** Puts another transaction descriptor into a payload, in place. False when it has none. */
export function rewriteDescriptor(bytes: Uint8Array, start: number, headers: AllHeaders, descriptor: bigint): boolean {
  if (headers.descriptorAt < 0) return false;
  putUint64(bytes, start + headers.descriptorAt, descriptor);
  return true;
}

/**
 * The same in the packets of a message, [start, end) of `bytes` with their headers: it may be cut by the end of a packet.
 *
 * @returns false when it has none
 */
export function rewriteDescriptorInPackets(
  bytes: Uint8Array,
  start: number,
  end: number,
  headers: AllHeaders,
  descriptor: bigint,
): boolean {
  if (headers.descriptorAt < 0) return false;
  const patch = new Uint8Array(8);
  putUint64(patch, 0, descriptor);
  patchPayload(bytes, start, end, headers.descriptorAt, patch);
  return true;
}

// ------------------------------------------------------------------------------------------------------------ SQLBatch

/** SQLBatch (2.2.6.7). */
export interface SqlBatch {
  readonly headers: AllHeaders;
  /** The text, UTF-16LE. */
  readonly text: Uint8Array;
}

/** @param enclave column encryption with an enclave was agreed on: a package for it stands before the text */
export function readSqlBatch(
  bytes: Uint8Array,
  start: number,
  end: number,
  dialect: Dialect,
  enclave = false,
): SqlBatch {
  const headers = dialect >= TDS_7_2 ? readAllHeaders(bytes, start, end) : NO_HEADERS;
  const reader = new Reader(bytes, start + headers.length, end, 'client', 'a SQLBatch');
  if (enclave) reader.usVarbyte();
  if (reader.left % 2 !== 0) reader.fail('has half a character');
  return { headers, text: reader.take(reader.left) };
}

/** The text of a batch. */
export const sqlText = (batch: SqlBatch): string => utf16(batch.text, 0, batch.text.length);

// ------------------------------------------------------------------------------------------------- transaction manager

// Types of Transaction Manager requests (2.2.6.9).
export const TM_GET_DTC_ADDRESS = 0;
export const TM_PROPAGATE_XACT = 1;
export const TM_BEGIN_XACT = 5;
export const TM_PROMOTE_XACT = 6;
export const TM_COMMIT_XACT = 7;
export const TM_ROLLBACK_XACT = 8;
export const TM_SAVE_XACT = 9;

const TM_NAMES: Readonly<Record<number, string>> = {
  [TM_GET_DTC_ADDRESS]: 'TM_GET_DTC_ADDRESS',
  [TM_PROPAGATE_XACT]: 'TM_PROPAGATE_XACT',
  [TM_BEGIN_XACT]: 'TM_BEGIN_XACT',
  [TM_PROMOTE_XACT]: 'TM_PROMOTE_XACT',
  [TM_COMMIT_XACT]: 'TM_COMMIT_XACT',
  [TM_ROLLBACK_XACT]: 'TM_ROLLBACK_XACT',
  [TM_SAVE_XACT]: 'TM_SAVE_XACT',
};

/** MS-TDS's name of a type of request. */
export const transactionRequestName = (type: number): string => TM_NAMES[type] ?? 'unknown';

/** Isolation levels; 0 keeps what is. */
export const ISOLATION_LEVELS = [
  'current',
  'read uncommitted',
  'read committed',
  'repeatable read',
  'serializable',
  'snapshot',
] as const;

/** A Transaction Manager request. */
export interface TransactionRequest {
  readonly headers: AllHeaders;
  readonly type: number;
  /** Of BEGIN: an index of {@link ISOLATION_LEVELS}; null for others. */
  readonly isolation: number | null;
  /** Of the transaction or savepoint; empty without one. */
  readonly name: string;
  /** A COMMIT or ROLLBACK that begins the next transaction at once. */
  readonly next: { readonly isolation: number; readonly name: string } | null;
  /** PROPAGATE: the DTC cookie. Empty for others. */
  readonly cookie: Uint8Array;
}

/** In the flags of COMMIT and ROLLBACK: another transaction begins. */
const BEGIN_XACT = 0x01;

export function readTransactionRequest(
  bytes: Uint8Array,
  start: number,
  end: number,
  dialect: Dialect,
): TransactionRequest {
  const headers = dialect >= TDS_7_2 ? readAllHeaders(bytes, start, end) : NO_HEADERS;
  const reader = new Reader(bytes, start + headers.length, end, 'client', 'a Transaction Manager request');
  const type = reader.ushort();
  // The length of a name counts bytes here.
  const name = (): string => {
    const length = reader.byte();
    const at = reader.skip(length);
    return utf16(bytes, at, at + length);
  };
  const isolation = (): number => {
    const level = reader.byte();
    if (level >= ISOLATION_LEVELS.length) reader.fail('has an isolation level that does not exist');
    return level;
  };
  const request = { headers, type, isolation: null, name: '', next: null, cookie: EMPTY };
  switch (type) {
    case TM_BEGIN_XACT:
      return { ...request, isolation: isolation(), name: name() };
    case TM_COMMIT_XACT:
    case TM_ROLLBACK_XACT: {
      const own = name();
      const flags = reader.byte();
      const next = (flags & BEGIN_XACT) !== 0 ? { isolation: isolation(), name: name() } : null;
      return { ...request, name: own, next };
    }
    case TM_SAVE_XACT:
      return { ...request, name: name() };
    case TM_GET_DTC_ADDRESS:
    case TM_PROPAGATE_XACT:
      return { ...request, cookie: reader.usVarbyte() };
    case TM_PROMOTE_XACT:
      return request;
    default:
      return reader.fail('has a type that is not known');
  }
}

/** What {@link writeTransactionRequest} is told; what is left out is empty. */
export type TransactionRequestParts = Pick<TransactionRequest, 'type'> &
  Partial<Pick<TransactionRequest, 'isolation' | 'name' | 'next' | 'cookie'>>;

/** The payload of a Transaction Manager request (7.2 and newer). */
export function writeTransactionRequest(descriptor: bigint, request: TransactionRequestParts): Uint8Array {
  const { type, isolation = 0, name = '', next = null, cookie = EMPTY } = request;
  const out = new Writer().raw(allHeaders(descriptor)).ushort(type);
  const text = (value: string) => out.bVarbyte(Buffer.from(value, 'utf16le'));
  switch (type) {
    case TM_BEGIN_XACT:
      out.byte(isolation ?? 0);
      text(name);
      break;
    case TM_COMMIT_XACT:
    case TM_ROLLBACK_XACT:
      text(name);
      out.byte(next === null ? 0 : BEGIN_XACT);
      if (next !== null) {
        out.byte(next.isolation);
        text(next.name);
      }
      break;
    case TM_SAVE_XACT:
      text(name);
      break;
    case TM_GET_DTC_ADDRESS:
    case TM_PROPAGATE_XACT:
      out.ushort(cookie.length).raw(cookie);
      break;
  }
  return out.done();
}

/** The payload of a SQLBatch (7.2 and newer). */
export const writeSqlBatch = (descriptor: bigint, text: string): Uint8Array =>
  new Writer().raw(allHeaders(descriptor)).raw(Buffer.from(text, 'utf16le')).done();

const EMPTY = new Uint8Array(0);
