/**
 * What PostgreSQL's errors mean to the gateway, and the gateway's own errors in PostgreSQL's terms.
 * Format: PostgreSQL documentation, "Error and Notice Message Fields" (chapter Frontend/Backend Protocol).
 */

import {
  type ErrorMeaning,
  type GatewayError,
  ProtocolViolation,
  type ServerError,
} from '../../core/contract/index.js';

/** What an ErrorResponse is built from. */
export interface ErrorFields {
  readonly severity: 'ERROR' | 'FATAL';
  /** SQLSTATE. */
  readonly code: string;
  readonly message: string;
  readonly detail?: string;
  readonly hint?: string;
}

/** A parsed ErrorResponse or NoticeResponse: the contract's facts, and every field by its one-letter name. */
export type ParsedError = ServerError & { readonly fields: Readonly<Record<string, string>> };

/** Thrown inside an exchange to leave it with a refusal; never leaves this codec. */
export class Refusal extends Error {
  /** @param answered false where PostgreSQL closes the connection without a word (it only logs the reason) */
  constructor(
    readonly fields: ErrorFields,
    readonly answered = true,
  ) {
    super(fields.message);
    this.name = 'Refusal';
  }
}

/** The meanings of errors that leave the connection alive. */
const ERRORS: Readonly<Record<string, ErrorMeaning>> = {
  // read_only_sql_transaction: the user's own READ ONLY transaction or a demoted primary; the topology tells which.
  '25006': 'read-only',
  '40001': 'retry',
  '40P01': 'retry',
};

/**
 * The meanings of errors that end the connection. Foreign data wrappers and dblink raise the codes of *their* servers
 * as plain errors, so these count only when this connection ends with them.
 */
const FATALS: Readonly<Record<string, ErrorMeaning>> = {
  // admin_shutdown: pg_terminate_backend and a fast shutdown look alike.
  '57P01': 'terminated',
  '57P02': 'server-lost',
  '57P03': 'server-lost',
  // A conflict with recovery ends a session of a standby, which lives: nobody's will, and to be had elsewhere or again. No other fatal
  // error has this code.
  '40001': 'server-lost',
  // database_dropped.
  '57P04': 'intent',
  // idle_session_timeout, idle_in_transaction_session_timeout, transaction_timeout.
  '57P05': 'intent',
  '25P03': 'intent',
  '25P04': 'intent',
  // The client broke the protocol.
  '08P01': 'ordinary',
};

/**
 * Classes whose fatal errors end the connection through no will or fault of the client: connection exceptions, rolled back
 * transactions, lack of resources, system and internal errors. The topology tells whether the server
 * lives. Fatal errors of any other class are refusals at login.
 */
const TROUBLE = new Set(['08', '40', '53', '58', 'XX']);

/**
 * What an error means to the gateway.
 *
 * @param severity the untranslated severity (field V)
 * @param code SQLSTATE
 */
export function meaningOf(severity: string, code: string): ErrorMeaning {
  if (severity === 'PANIC') return 'server-lost';
  if (severity !== 'FATAL') return ERRORS[code] ?? 'ordinary';
  return FATALS[code] ?? (TROUBLE.has(code.slice(0, 2)) ? 'terminated' : 'ordinary');
}

/**
 * True when a refused login may succeed if tried again: the server starts, stops, is in recovery, or has no room left.
 *
 * @param code SQLSTATE
 */
export function isTransient(code: string): boolean {
  if (code === '08P01') return false;
  return code.startsWith('08') || code.startsWith('53') || code === '57P01' || code === '57P02' || code === '57P03';
}

/**
 * Reads an ErrorResponse or a NoticeResponse.
 *
 * @param bytes holds the whole frame, header included, at [start, end)
 * @throws ProtocolViolation when the fields do not fill the frame
 */
export function parseError(bytes: Uint8Array, start: number, end: number): ParsedError {
  const buffer = Buffer.from(bytes.buffer, bytes.byteOffset + start, end - start);
  const fields: Record<string, string> = {};
  let at = 5;
  while (at < buffer.length && buffer[at] !== 0) {
    const stop = buffer.indexOf(0, at + 1);
    if (stop < 0) break;
    fields[String.fromCharCode(buffer[at])] = buffer.toString('utf8', at + 1, stop);
    at = stop + 1;
  }
  if (at !== buffer.length - 1 || buffer[at] !== 0) {
    throw new ProtocolViolation('the fields of an error or notice message do not end where the message ends', 'server');
  }
  // V, the severity that is never translated, exists since PostgreSQL 9.6.
  const severity = fields.V ?? fields.S ?? 'ERROR';
  const code = fields.C ?? 'XX000';
  return {
    meaning: meaningOf(severity, code),
    code,
    message: fields.M ?? '',
    fatal: severity === 'FATAL' || severity === 'PANIC',
    fields,
  };
}

/** Builds an ErrorResponse frame. NUL bytes, which the format cannot carry, end a field early. */
export function buildError(fields: ErrorFields): Uint8Array {
  return report('E', fields.severity, fields);
}

/** Builds a NoticeResponse frame (severity NOTICE, SQLSTATE 00000). */
export function buildNotice(message: string, detail?: string): Uint8Array {
  return report('N', 'NOTICE', { code: '00000', message, detail });
}

function report(type: 'E' | 'N', severity: string, fields: Omit<ErrorFields, 'severity'>): Uint8Array {
  const text = (letter: string, value: string | undefined) =>
    value === undefined ? '' : letter + value.split('\0', 1)[0] + '\0';
  const body =
    text('S', severity) +
    text('V', severity) +
    text('C', fields.code) +
    text('M', fields.message) +
    text('D', fields.detail) +
    text('H', fields.hint) +
    '\0';
  const length = Buffer.byteLength(body, 'utf8');
  const frame = Buffer.allocUnsafe(5 + length);
  frame.write(type, 0, 'latin1');
  frame.writeInt32BE(4 + length, 1);
  frame.write(body, 5, 'utf8');
  return frame;
}

/** The SQLSTATE of each kind of the gateway's own errors. */
export const GATEWAY_SQLSTATES: Readonly<Record<GatewayError['kind'], string>> = {
  // serialization_failure: what ordinary retry loops wait for.
  'retry-transaction': '40001',
  // transaction_resolution_unknown.
  'outcome-unknown': '08007',
  // object_not_in_prerequisite_state: the session goes on, but something it relied on is gone. Not class 08, on which
  // connection pools throw the connection away, and not 40001, which a loop would repeat.
  'state-lost': '55000',
  // cannot_connect_now.
  unavailable: '57P03',
  // program_limit_exceeded.
  'too-large': '54000',
  protocol: '08P01',
  // invalid_authorization_specification.
  refused: '28000',
  // query_canceled.
  cancelled: '57014',
  // too_many_connections.
  'too-many': '53300',
  internal: 'XX000',
};

/**
 * One of the gateway's own errors as an ErrorResponse frame. Outlive's code is the DETAIL, so that the message stays a sentence.
 *
 * @param severity FATAL when the connection ends with it
 */
export function buildGatewayError(error: GatewayError, severity: 'ERROR' | 'FATAL'): Uint8Array {
  const { kind, message, hint } = error;
  return buildError({ severity, code: GATEWAY_SQLSTATES[kind], message, detail: error.code, hint });
}
