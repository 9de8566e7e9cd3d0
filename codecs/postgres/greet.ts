/**
 * Meets a client: everything from its first byte to the point where it is who it says it is.
 * PostgreSQL documentation, "Message Flow: Start-up" and "SASL Authentication"; backend_startup.c and auth.c for the checks.
 *
 * The dialogue ends *before* AuthenticationOk: the session's `welcome` sends that, together with the parameters, the cancel
 * key and ReadyForQuery, once a server has let the session in. So a failed login to the server can still be told.
 *
 * What the driver must do: when TLS is wanted, any byte that arrived before the handshake was not encrypted, and is thrown into
 * this exchange as a ProtocolViolation (buffer stuffing, CVE-2021-23214); the exchange cannot see such bytes itself.
 */

import {
  type Exchange,
  type GreetContext,
  type Greeting,
  ProtocolViolation,
  type Secret,
  type TlsFacts,
} from '../../core/contract/index.js';
import { equalText, isMd5Verifier, md5Response, md5Verifier } from './auth/md5.js';
import { saslprep } from './auth/saslprep.js';
import {
  checkProof,
  DEFAULT_ITERATIONS,
  deriveKeys,
  formatVerifier,
  mockSalt,
  parseVerifier,
  readClientFinal,
  readClientFirst,
  SCRAM,
  SCRAM_PLUS,
  type ScramVerifier,
  serverFinal,
  serverFirst,
} from './auth/scram.js';
import { buildError, type ErrorFields, parseError, Refusal } from './errors.js';
import {
  ALPN,
  authentication,
  authenticationSasl,
  CANCEL_REQUEST_CODE,
  GSS_REQUEST_CODE,
  LATEST_MINOR,
  MAX_STARTUP_LENGTH,
  negotiateProtocolVersion,
  type ProtocolVersion,
  Reader,
  SSL_REQUEST_CODE,
} from './messages.js';

/** What a client asked for in its startup packet. Plain data: the `startup` of the {@link Greeting}. */
export interface Startup {
  /** The version that is spoken: 3.0 to 3.2. */
  readonly protocol: ProtocolVersion;
  /** Parameters in the client's order, `user` and `database` among them; protocol options (`_pq_.*`) left out. */
  readonly params: readonly (readonly [name: string, value: string])[];
}

/** Ways in that `greet` knows. */
export const AUTH_METHODS = ['trust', 'password', 'md5', 'scram-sha-256'] as const;

/** AuthenticationOk: left out by {@link greet}, sent by the session's `welcome`. */
export const AUTHENTICATION_OK: Uint8Array = authentication(0);

/** PG_MAX_AUTH_TOKEN_LENGTH. */
const MAX_AUTH_LENGTH = 65_535;
/** PG_MAX_SASL_MESSAGE_LENGTH. */
const MAX_SASL_LENGTH = 1024;
const MAX_CANCEL_KEY_LENGTH = 256;
const MOCK_KEY_LENGTH = 32;
const NONCE_LENGTH = 18;
const utf8 = new TextDecoder('utf-8', { fatal: true });

/**
 * Key of the salts that are shown where the gateway has no verifier; the same for all clients of the process, or a user
 * that exists could be told by a salt that stays.
 */
let mockKey: Uint8Array | null = null;

const fatal = (code: string, message: string, more: Partial<ErrorFields> = {}): Refusal =>
  new Refusal({ severity: 'FATAL', code, message, ...more });

/** A refusal that PostgreSQL only logs: the client is not answered. */
const silent = (message: string): Refusal => new Refusal({ severity: 'FATAL', code: '08P01', message }, false);

const wrongPassword = (user: string): Refusal => fatal('28P01', `password authentication failed for user "${user}"`);

/**
 * Meets a client.
 *
 * @returns a session with the proven identity and its {@link Startup}; a cancel request with its key (process id and secret,
 * as they came); or closed, with the error that refused it (answered to the client where PostgreSQL answers)
 */
export function* greet(context: GreetContext): Exchange<Greeting> {
  try {
    return yield* meet(context);
  } catch (error) {
    if (error instanceof ProtocolViolation && error.culprit === 'client') {
      return yield* refuse(fatal('08P01', error.message));
    }
    if (error instanceof Refusal) return yield* refuse(error);
    throw error;
  }
}

function* refuse({ fields, answered }: Refusal): Exchange<Greeting> {
  const bytes = buildError(fields);
  if (answered) yield { want: 'nothing', send: bytes };
  return { kind: 'closed', error: parseError(bytes, 0, bytes.length) };
}

function* meet(context: GreetContext): Exchange<Greeting> {
  let tls = context.alreadyTls;
  if (tls !== null && tls.alpn !== ALPN) {
    throw silent('received direct SSL connection request without ALPN protocol negotiation extension');
  }
  let sslDone = false;
  let gssDone = false;
  let send: Uint8Array | undefined;
  for (;;) {
    const packet = yield* startupPacket(send);
    send = undefined;
    const code = new Reader(packet, 0, packet.length, 'client').uint32();
    if (code === CANCEL_REQUEST_CODE) {
      const secretLength = packet.length - 8;
      if (secretLength < 1) throw silent('invalid length of cancel request packet');
      if (secretLength > MAX_CANCEL_KEY_LENGTH) throw silent('invalid length of cancel key in cancel request packet');
      return { kind: 'cancel', key: Uint8Array.from(packet.subarray(4)) };
    }
    if (code === SSL_REQUEST_CODE && !sslDone) {
      sslDone = true;
      if (context.tls === 'off' || tls !== null) {
        send = Buffer.from('N', 'latin1');
      } else {
        gssDone = true;
        tls = yield* startTls();
      }
    } else if (code === GSS_REQUEST_CODE && !gssDone) {
      gssDone = true;
      send = Buffer.from('N', 'latin1');
    } else {
      return yield* startSession(context, packet, tls);
    }
  }
}

function* startTls(): Exchange<TlsFacts> {
  try {
    return (yield { want: 'tls', send: Buffer.from('S', 'latin1'), alpn: ALPN }) as TlsFacts;
  } catch (error) {
    // The client awaits a handshake: a message in plain text would only garble it.
    if (error instanceof ProtocolViolation) throw silent('received unencrypted data after SSL request');
    throw error;
  }
}

/** Reads one packet without a type; returns it without its length. */
function* startupPacket(send: Uint8Array | undefined): Exchange<Uint8Array> {
  const head = (yield { want: 'bytes', count: 4, send }) as Uint8Array;
  const length = new Reader(head, 0, 4, 'client').uint32();
  if (length < 8 || length - 4 > MAX_STARTUP_LENGTH) throw silent('invalid length of startup packet');
  return (yield { want: 'bytes', count: length - 4 }) as Uint8Array;
}

function* startSession(context: GreetContext, packet: Uint8Array, tls: TlsFacts | null): Exchange<Greeting> {
  const { version, params, unrecognized } = readStartup(packet);

  const minor = Math.min(version.minor, LATEST_MINOR);
  const startup: Startup = { protocol: { major: 3, minor }, params };
  if (version.minor > LATEST_MINOR || unrecognized.length > 0) {
    yield { want: 'nothing', send: negotiateProtocolVersion(startup.protocol, unrecognized) };
  }

  const values = new Map(params);
  const user = values.get('user');
  if (!user) throw fatal('28000', 'no PostgreSQL user name specified in startup packet');
  const database = values.get('database') || user;
  const passThrough = isReplication(values.get('replication')) ? 'replication connection' : null;
  if (context.tls === 'require' && tls === null) {
    throw fatal('28000', `no pg_hba.conf entry for user "${user}", database "${database}", no encryption`, {
      hint: 'This listener of the gateway accepts encrypted connections only (sslmode=require or stronger).',
    });
  }
  const secret = yield* authenticate(context.auth, user, database, tls?.endPoint ?? null);
  return {
    kind: 'session',
    identity: { user, database, secret },
    startup,
    passThrough,
    tls: tls !== null,
  };
}

function readStartup(packet: Uint8Array): {
  version: ProtocolVersion;
  params: [string, string][];
  unrecognized: string[];
} {
  const reader = new Reader(packet, 0, packet.length, 'client');
  const code = reader.uint32();
  const version = { major: code >>> 16, minor: code & 0xffff };
  if (version.major !== 3) {
    throw fatal(
      '0A000',
      `unsupported frontend protocol ${version.major}.${version.minor}: server supports 3.0 to 3.${LATEST_MINOR}`,
    );
  }
  const params: [string, string][] = [];
  const unrecognized: string[] = [];
  const layout = () => fatal('08P01', 'invalid startup packet layout: expected terminator as last byte');
  for (;;) {
    const name = readText(reader, layout);
    if (name === '') break;
    const value = readText(reader, layout);
    // No protocol option is defined yet that the gateway could grant.
    if (name.startsWith('_pq_.')) unrecognized.push(name);
    else params.push([name, value]);
  }
  if (reader.left > 0) throw layout();
  return { version, params, unrecognized };
}

function readText(reader: Reader, layout: () => Refusal): string {
  const bytes = reader.untilNul();
  if (bytes === null) throw layout();
  try {
    return utf8.decode(bytes);
  } catch {
    throw fatal('22021', 'invalid byte sequence for encoding "UTF8" in startup packet');
  }
}

/** The parameter `replication`: `database`, or a boolean in any spelling that PostgreSQL's parse_bool accepts. */
function isReplication(value: string | undefined): boolean {
  if (value === undefined) return false;
  if (value === 'database') return true;
  const lower = value.toLowerCase();
  const isPrefix = (word: string, least = 1) => lower.length >= least && word.startsWith(lower);
  if (isPrefix('true') || isPrefix('yes') || isPrefix('on', 2) || lower === '1') return true;
  if (isPrefix('false') || isPrefix('no') || isPrefix('off', 2) || lower === '0') return false;
  throw fatal('22023', `invalid value for parameter "replication": "${value}"`, {
    hint: 'Valid values are: "false", 0, "true", 1, "database".',
  });
}

// ------------------------------------------------------------------------------------------------------ authentication

/**
 * Proves the client's identity.
 *
 * @returns what is then known to log in to a server with; null when nothing is (trust)
 */
function* authenticate(
  method: string,
  user: string,
  database: string,
  endPoint: Uint8Array | null,
): Exchange<Secret | null> {
  const known = (yield { want: 'credentials', user, database }) as Secret | null;
  switch (method) {
    case 'trust':
      return known;
    case 'password':
      return yield* byPassword(user, known);
    case 'md5':
      // As PostgreSQL does: a user with a SCRAM verifier is asked for SCRAM.
      if (verifierOf(known) !== null) return yield* byScram(user, known, endPoint);
      return yield* byMd5(user, known);
    case 'scram-sha-256':
      return yield* byScram(user, known, endPoint);
    default:
      throw fatal('28000', 'the gateway is configured with an unknown authentication method');
  }
}

const verifierOf = (known: Secret | null): ScramVerifier | null =>
  known?.verifier === undefined ? null : parseVerifier(known.verifier);

/** One PBKDF2, so that a failed try costs the same whether the user exists, and however the secret is stored. */
function* burn(user: string): Exchange<void> {
  const salt = Buffer.from(user, 'utf8');
  yield { want: 'pbkdf2', password: salt, salt, iterations: DEFAULT_ITERATIONS };
}

function* byPassword(user: string, known: Secret | null): Exchange<Secret> {
  const body = yield* authResponse(authentication(3), 'password', MAX_AUTH_LENGTH);
  const password = passwordIn(body);
  if (password === null) throw wrongPassword(user);

  const verifier = verifierOf(known);
  if (verifier !== null) {
    const { salt, iterations } = verifier;
    const salted = (yield { want: 'pbkdf2', password: saslprep(password), salt, iterations }) as Uint8Array;
    if (!equalText(formatVerifier({ salt, iterations, ...deriveKeys(salted) }), formatVerifier(verifier))) {
      throw wrongPassword(user);
    }
    return { password };
  }
  const right =
    known?.verifier !== undefined && isMd5Verifier(known.verifier)
      ? equalText(md5Verifier(user, password), known.verifier)
      : known?.password !== undefined && equalText(password, known.password);
  if (!right) {
    yield* burn(user);
    throw wrongPassword(user);
  }
  return { password };
}

/** The password in a PasswordMessage; null when it is not UTF-8, which no stored secret can match. */
function passwordIn(body: Uint8Array): string | null {
  if (body.length === 0 || body.indexOf(0) !== body.length - 1) throw fatal('08P01', 'invalid password packet size');
  if (body.length === 1) throw fatal('28P01', 'empty password returned by client');
  try {
    return utf8.decode(body.subarray(0, -1));
  } catch {
    return null;
  }
}

function* byMd5(user: string, known: Secret | null): Exchange<Secret> {
  const salt = (yield { want: 'random', count: 4 }) as Uint8Array;
  const body = yield* authResponse(authentication(5, salt), 'password', MAX_AUTH_LENGTH);
  const answer = passwordIn(body);
  const stored = known?.verifier !== undefined && isMd5Verifier(known.verifier) ? known.verifier : null;
  const verifier = stored ?? (known?.password === undefined ? null : md5Verifier(user, known.password));
  if (answer === null || verifier === null || !equalText(answer, md5Response(verifier, salt))) {
    throw wrongPassword(user);
  }
  return known?.password === undefined ? { verifier } : { password: known.password };
}

function* byScram(user: string, known: Secret | null, endPoint: Uint8Array | null): Exchange<Secret> {
  // The key is drawn with every nonce and kept once, so that the same exchange wants the same things at every run.
  const random = (yield { want: 'random', count: NONCE_LENGTH + MOCK_KEY_LENGTH }) as Uint8Array;
  mockKey ??= Uint8Array.from(random.subarray(NONCE_LENGTH));

  const offered = endPoint === null ? [SCRAM] : [SCRAM_PLUS, SCRAM];
  const initial = yield* authResponse(authenticationSasl(offered), 'SASL', MAX_SASL_LENGTH);
  const reader = new Reader(initial, 0, initial.length, 'client');
  const mechanism = reader.cstring();
  if (!offered.includes(mechanism)) throw fatal('08P01', 'client selected an invalid SASL authentication mechanism');
  const length = reader.int32();
  // -1 says that the client waits for an (empty) challenge before its first message.
  const firstBytes =
    length < 0 ? yield* authResponse(authentication(11), 'SASL', MAX_SASL_LENGTH) : reader.bytes(length);
  if (reader.left > 0) throw fatal('08P01', 'invalid message format');
  const first = readClientFirst(textIn(firstBytes), mechanism, offered.includes(SCRAM_PLUS));

  const verifier = verifierOf(known);
  const shown = verifier ?? { salt: mockSalt(mockKey, user), iterations: DEFAULT_ITERATIONS };
  const dialogue = serverFirst(first, random.subarray(0, NONCE_LENGTH), shown);
  const challenge = authentication(11, Buffer.from(dialogue.serverFirst, 'utf8'));
  const final = readClientFinal(
    textIn(yield* authResponse(challenge, 'SASL', MAX_SASL_LENGTH)),
    dialogue,
    mechanism === SCRAM_PLUS ? endPoint : null,
  );

  // A plain password is derived only now: before the challenge it would show by the time it takes who has one.
  let checked = verifier;
  if (checked === null && known?.password !== undefined) {
    const salted = (yield { want: 'pbkdf2', password: saslprep(known.password), ...shown }) as Uint8Array;
    checked = { ...shown, ...deriveKeys(salted) };
  } else if (checked === null) {
    yield* burn(user);
    throw wrongPassword(user);
  }
  const clientKey = checkProof(final, dialogue, checked);
  if (clientKey === null) {
    if (verifier !== null) yield* burn(user);
    throw wrongPassword(user);
  }
  const proof = serverFinal(dialogue, final.withoutProof, checked.serverKey);
  yield { want: 'nothing', send: authentication(12, Buffer.from(proof, 'utf8')) };
  return verifier === null ? { password: known!.password } : { ...known, clientKey };
}

function textIn(bytes: Uint8Array): string {
  if (bytes.length === 0 || bytes.includes(0)) {
    throw fatal('08P01', 'malformed SCRAM message', { detail: 'The message is empty or holds a NUL byte.' });
  }
  return Buffer.from(bytes).toString('utf8');
}

/** Sends a request of the authentication and reads the body of the client's answer, which is never long. */
function* authResponse(send: Uint8Array, what: 'password' | 'SASL', limit: number): Exchange<Uint8Array> {
  const head = (yield { want: 'bytes', count: 5, send }) as Uint8Array;
  if (head[0] !== 0x70) throw fatal('08P01', `expected ${what} response, got message type ${head[0]}`);
  const length = new Reader(head, 1, 5, 'client').uint32() - 4;
  if (length < 0 || length > limit) throw silent('invalid message length');
  return length === 0 ? new Uint8Array(0) : ((yield { want: 'bytes', count: length }) as Uint8Array);
}
