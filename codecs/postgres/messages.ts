/**
 * PostgreSQL's messages outside of a session's own traffic: reading and building, and the simple query as an exchange.
 * Formats: PostgreSQL documentation, "Message Formats" (chapter Frontend/Backend Protocol).
 */

import { serialize } from 'pg-protocol';
import { type Exchange, ProtocolViolation } from '../../core/contract/index.js';
import { type ParsedError, parseError } from './errors.js';

/** The plain form of a protocol version. */
export interface ProtocolVersion {
  readonly major: number;
  readonly minor: number;
}

/** The newest minor version of protocol 3 that the gateway speaks. */
export const LATEST_MINOR = 2;

/** Startup packets longer than this are refused (MAX_STARTUP_PACKET_LENGTH). */
export const MAX_STARTUP_LENGTH = 10_000;

/** Codes in the place of a protocol version. */
export const CANCEL_REQUEST_CODE = 80877102;
export const SSL_REQUEST_CODE = 80877103;
export const GSS_REQUEST_CODE = 80877104;

/** The name of the protocol in a TLS handshake (ALPN). */
export const ALPN = 'postgresql';

/** The longest frame that an exchange waits for; a longer one is not PostgreSQL speaking. */
const MAX_EXCHANGE_FRAME = 64 * 1024 * 1024;

const int32 = (value: number): Buffer => {
  const buffer = Buffer.allocUnsafe(4);
  buffer.writeUInt32BE(value >>> 0);
  return buffer;
};

const cstring = (text: string): Buffer => Buffer.from(text + '\0', 'utf8');

/** Length of the frame at `at`, its type included, as its header tells it. At least five bytes are there. */
export function lengthAt(bytes: Uint8Array, at: number): number {
  return 1 + ((bytes[at + 1] << 24) | (bytes[at + 2] << 16) | (bytes[at + 3] << 8) | bytes[at + 4]);
}

/**
 * Length of the frame at [start, end) after the start-up: one byte of type, then a length that counts itself.
 *
 * @returns the whole length, or 0 when more bytes are needed
 * @throws ProtocolViolation when the length is not possible
 */
export function frameLength(bytes: Uint8Array, start: number, end: number): number {
  if (end - start < 5) return 0;
  const length =
    ((bytes[start + 1] << 24) | (bytes[start + 2] << 16) | (bytes[start + 3] << 8) | bytes[start + 4]) >>> 0;
  if (length < 4 || length >= MAX_EXCHANGE_FRAME) {
    throw new ProtocolViolation('a message of the server has an impossible length', 'server');
  }
  return length + 1;
}

/** Builds one frame of type `type` (a letter). */
export function frame(type: string, ...parts: readonly Uint8Array[]): Uint8Array {
  const length = parts.reduce((sum, part) => sum + part.length, 4);
  return Buffer.concat([Buffer.from(type, 'latin1'), int32(length), ...parts]);
}

/** Builds an authentication request (`R`) with its code and data. */
export const authentication = (code: number, data: Uint8Array = new Uint8Array(0)): Uint8Array =>
  frame('R', int32(code), data);

/** AuthenticationSASL: the list of mechanisms. */
export const authenticationSasl = (mechanisms: readonly string[]): Uint8Array =>
  authentication(10, Buffer.concat([...mechanisms.map(cstring), Buffer.of(0)]));

/** A StartupMessage with these parameters in this order. */
export function startupMessage(version: ProtocolVersion, params: readonly (readonly [string, string])[]): Uint8Array {
  const body = Buffer.concat([
    int32((version.major << 16) | version.minor),
    ...params.flatMap(([name, value]) => [cstring(name), cstring(value)]),
    Buffer.of(0),
  ]);
  return Buffer.concat([int32(body.length + 4), body]);
}

/** NegotiateProtocolVersion: the version that will be spoken, and the protocol options that were not recognised. */
export const negotiateProtocolVersion = (version: ProtocolVersion, unrecognized: readonly string[]): Uint8Array =>
  frame('v', int32((version.major << 16) | version.minor), int32(unrecognized.length), ...unrecognized.map(cstring));

/** SSLRequest. */
export const sslRequest = (): Uint8Array => serialize.requestSsl();

/** CancelRequest with a key of any length (protocol 3.2). */
export const cancelRequest = (pid: number, secret: Uint8Array): Uint8Array =>
  Buffer.concat([int32(12 + secret.length), int32(CANCEL_REQUEST_CODE), int32(pid), secret]);

/** PasswordMessage, for a password or an md5 answer. */
export const passwordMessage = (password: string): Uint8Array => serialize.password(password);

/** SASLInitialResponse. */
export const saslInitialResponse = (mechanism: string, data: string): Uint8Array =>
  serialize.sendSASLInitialResponseMessage(mechanism, data);

/** SASLResponse. */
export const saslResponse = (data: string): Uint8Array => serialize.sendSCRAMClientFinalMessage(data);

/** Reads the fields of one message in order. Every method throws {@link ProtocolViolation} when the message is too short. */
export class Reader {
  readonly #buffer: Buffer;
  readonly #culprit: 'client' | 'server';
  #at = 0;

  /** Reads [start, end) of `bytes`, which `culprit` has sent. */
  constructor(bytes: Uint8Array, start: number, end: number, culprit: 'client' | 'server' = 'server') {
    this.#buffer = Buffer.from(bytes.buffer, bytes.byteOffset + start, end - start);
    this.#culprit = culprit;
  }

  /** Number of bytes not yet read. */
  get left(): number {
    return this.#buffer.length - this.#at;
  }

  int16(): number {
    return this.bytes(2).readInt16BE();
  }

  int32(): number {
    return this.bytes(4).readInt32BE();
  }

  uint32(): number {
    return this.bytes(4).readUInt32BE();
  }

  bytes(count: number): Buffer {
    if (count < 0 || count > this.left)
      throw new ProtocolViolation('a message is too short for its fields', this.#culprit);
    return this.#buffer.subarray(this.#at, (this.#at += count));
  }

  rest(): Buffer {
    return this.bytes(this.left);
  }

  /** The bytes up to the next NUL, which is read too; null when there is none. */
  untilNul(): Buffer | null {
    const stop = this.#buffer.indexOf(0, this.#at);
    if (stop < 0) return null;
    const bytes = this.#buffer.subarray(this.#at, stop);
    this.#at = stop + 1;
    return bytes;
  }

  cstring(): string {
    const bytes = this.untilNul();
    if (bytes === null) throw new ProtocolViolation('a text in a message does not end', this.#culprit);
    return bytes.toString('utf8');
  }
}

/** The letter of a whole frame. */
export const typeOf = (whole: Uint8Array): string => String.fromCharCode(whole[0]);

/** A reader over the body of a whole frame from the server. */
export const bodyOf = (whole: Uint8Array): Reader => new Reader(whole, 5, whole.length);

/** What the server answered to a query of the gateway's own. */
export interface QueryAnswer {
  /** Rows in text format. */
  readonly rows: readonly (readonly (string | null)[])[];
  /** Null when it succeeded. */
  readonly error: ParsedError | null;
}

/**
 * Runs one simple query of the gateway's own. An error of the query is part of the answer; the connection stays usable
 * unless the error is fatal.
 *
 * @throws ProtocolViolation when the answer is not one to a simple query
 */
export const simpleQuery = (sql: string): Exchange<QueryAnswer> => answerTo(serialize.query(sql));

/**
 * Runs one statement with parameters (extended protocol, text format).
 *
 * @throws ProtocolViolation when the answer is not one to such a query
 */
export const parameterQuery = (sql: string, values: readonly string[]): Exchange<QueryAnswer> =>
  answerTo(
    Buffer.concat([
      serialize.parse({ text: sql }),
      serialize.bind({ values: [...values] }),
      serialize.execute(),
      serialize.sync(),
    ]),
  );

function* answerTo(request: Uint8Array): Exchange<QueryAnswer> {
  const rows: (string | null)[][] = [];
  let error: ParsedError | null = null;
  let answer = (yield { want: 'frame', send: request }) as Uint8Array;
  while (typeOf(answer) !== 'Z') {
    switch (typeOf(answer)) {
      case 'D': {
        const reader = bodyOf(answer);
        const row: (string | null)[] = [];
        for (let columns = reader.int16(); columns > 0; columns--) {
          const length = reader.int32();
          row.push(length < 0 ? null : reader.bytes(length).toString('utf8'));
        }
        rows.push(row);
        break;
      }
      case 'E':
        error ??= parseError(answer, 0, answer.length);
        // No ReadyForQuery follows a fatal error.
        if (error.fatal) return { rows: [], error };
        break;
      case 'T':
      case 'C':
      case 'I':
      case '1':
      case '2':
      case 'N':
      case 'S':
      case 'A':
        break;
      default:
        throw new ProtocolViolation('the server answered a query of the gateway with an unexpected message', 'server');
    }
    answer = (yield { want: 'frame' }) as Uint8Array;
  }
  return { rows: error === null ? rows : [], error };
}
