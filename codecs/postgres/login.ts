/**
 * Logs in to a server, as a client of the gateway or as the gateway itself.
 * PostgreSQL documentation, "Message Flow: Start-up" and "SASL Authentication".
 *
 * What the driver must do: when TLS is wanted, bytes that the server sent before the handshake end the connection
 * (buffer stuffing, CVE-2021-23222).
 */

import {
  type Exchange,
  type LoginContext,
  type LoginOutcome,
  ProtocolViolation,
  type Secret,
  type TlsFacts,
} from '../../core/contract/index.js';
import { isMd5Verifier, md5Response, md5Verifier } from './auth/md5.js';
import { saslprep } from './auth/saslprep.js';
import {
  belongsTo,
  checkServerFinal,
  clientFinal,
  clientFirst,
  deriveKeys,
  parseVerifier,
  readServerFirst,
  SCRAM,
  SCRAM_PLUS,
  type ServerFirst,
} from './auth/scram.js';
import { buildError, isTransient, parseError, Refusal } from './errors.js';
import type { Startup } from './greet.js';
import {
  ALPN,
  bodyOf,
  frameLength,
  LATEST_MINOR,
  type ProtocolVersion,
  passwordMessage,
  type Reader,
  saslInitialResponse,
  saslResponse,
  sslRequest,
  startupMessage,
  typeOf,
} from './messages.js';

/** What the server told at login. Plain data: the `facts` of a login. */
export interface LoginFacts {
  /** The version that is spoken with this server; older than what was asked for when the server is older. */
  readonly protocol: ProtocolVersion;
  /** ParameterStatus, in the server's order. */
  readonly parameters: readonly (readonly [name: string, value: string])[];
  /** NoticeResponse frames, whole, in base64. */
  readonly notices: readonly string[];
}

/** BackendKeyData. Plain data: the `cancelKey` of a login. */
export interface CancelKey {
  readonly pid: number;
  /** The secret in base64: 4 bytes, up to 256 with protocol 3.2. */
  readonly secret: string;
}

/** `application_name` of the gateway's own logins. */
const OWN_NAME = 'outlive';
const NONCE_LENGTH = 18;

/** Leaves the exchange with the server's own refusal. */
class ServerRefusal extends Error {
  constructor(readonly bytes: Uint8Array) {
    super('refused');
  }
}

const refusal = (code: string, message: string, hint?: string): Refusal =>
  new Refusal({ severity: 'FATAL', code, message, hint });

const unexpected = (): ProtocolViolation =>
  new ProtocolViolation('the server sent an unexpected message during login', 'server');

/**
 * Logs in to a server: TLS, start-up, authentication, and what the server tells until it is ready.
 *
 * Refusals of the server are passed on as they came; what the gateway itself cannot do (no TLS where it is required, no
 * secret for the way in that the server demands) is a refusal with SQLSTATE 08001 or 28000.
 *
 * @returns `facts` is {@link LoginFacts}, `cancelKey` is {@link CancelKey} or null when the server gave none, `backendId` the
 * process id as text (empty when the server gave none)
 * @throws ProtocolViolation when the server does not speak PostgreSQL's protocol
 */
export function* login(context: LoginContext): Exchange<LoginOutcome> {
  try {
    return yield* connect(context);
  } catch (reason) {
    if (!(reason instanceof Refusal || reason instanceof ServerRefusal)) throw reason;
    const bytes = reason instanceof Refusal ? buildError(reason.fields) : reason.bytes;
    const error = parseError(bytes, 0, bytes.length);
    return { ok: false, transient: reason instanceof ServerRefusal && isTransient(error.code), error, bytes };
  }
}

function* connect(context: LoginContext): Exchange<LoginOutcome> {
  const endPoint = context.tls === 'off' ? null : yield* negotiateTls(context.tls);
  const startup = context.startup as Startup | null;
  // 3.0 unless the client itself speaks a newer one: what a client is told must fit the version that it chose.
  let protocol: ProtocolVersion = { major: 3, minor: startup?.protocol.minor === LATEST_MINOR ? LATEST_MINOR : 0 };
  const parameters: [string, string][] = [];
  const notices: string[] = [];
  let cancelKey: CancelKey | null = null;
  let authenticated = false;

  let answer = (yield { want: 'frame', send: startupMessage(protocol, startupParams(context)) }) as Uint8Array;
  for (;;) {
    const body = bodyOf(answer);
    switch (typeOf(answer)) {
      case 'R':
        if (authenticated) throw unexpected();
        yield* authenticate(body, context.identity.user, context.identity.secret, endPoint);
        authenticated = true;
        break;
      case 'v': {
        const version = body.uint32();
        // Servers before 18 tell their minor version alone or with the major one; both mean the same.
        protocol = { major: 3, minor: Math.min(version & 0xffff, protocol.minor) };
        break;
      }
      case 'S':
        parameters.push([body.cstring(), body.cstring()]);
        break;
      case 'K':
        cancelKey = { pid: body.uint32(), secret: body.rest().toString('base64') };
        break;
      case 'N':
        notices.push(Buffer.from(answer).toString('base64'));
        break;
      case 'E':
        throw new ServerRefusal(Uint8Array.from(answer));
      case 'Z': {
        if (!authenticated) throw unexpected();
        const facts: LoginFacts = { protocol, parameters, notices };
        return { ok: true, login: { cancelKey, backendId: cancelKey === null ? '' : String(cancelKey.pid), facts } };
      }
      default:
        throw unexpected();
    }
    answer = (yield { want: 'frame' }) as Uint8Array;
  }
}

function startupParams({ identity, startup }: LoginContext): [string, string][] {
  const { user, database } = identity;
  const rest: [string, string][] =
    startup === null
      ? [
          ['application_name', OWN_NAME],
          ['client_encoding', 'UTF8'],
        ]
      : (startup as Startup).params.filter(([name]) => name !== 'user' && name !== 'database').map(([k, v]) => [k, v]);
  return [['user', user], ['database', database], ...rest];
}

/** Returns the hash of the server's certificate for channel binding; null without TLS or where there is no such hash. */
function* negotiateTls(tls: 'prefer' | 'require'): Exchange<Uint8Array | null> {
  const answer = (yield { want: 'bytes', count: 1, send: sslRequest() }) as Uint8Array;
  switch (typeOf(answer)) {
    case 'S':
      return ((yield { want: 'tls', alpn: ALPN }) as TlsFacts).endPoint;
    case 'N':
      if (tls === 'prefer') return null;
      throw refusal('08001', 'server does not support SSL, but SSL was required');
    case 'E': {
      // The server could not even start a process: too many connections, out of memory.
      const head = Buffer.concat([answer, (yield { want: 'bytes', count: 4 }) as Uint8Array]);
      const left = frameLength(head, 0, 5) - 5;
      if (left === 0) throw unexpected();
      throw new ServerRefusal(Buffer.concat([head, (yield { want: 'bytes', count: left }) as Uint8Array]));
    }
    default:
      throw new ProtocolViolation('the server answered the request for TLS with an unknown byte', 'server');
  }
}

// ------------------------------------------------------------------------------------------------------ authentication

/** Goes on from the first authentication request to AuthenticationOk. */
function* authenticate(
  request: Reader,
  user: string,
  secret: Secret | null,
  endPoint: Uint8Array | null,
): Exchange<void> {
  const missing = (demanded: string, needed: string) =>
    refusal(
      '28000',
      `the server demands ${demanded} authentication of user "${user}", for which the gateway has no ${needed}`,
      'Use an authentication method on the listener or a credentials source from which the gateway learns it.',
    );
  const code = request.uint32();
  switch (code) {
    case 0:
      return;
    case 3:
      if (secret?.password === undefined) throw missing('password', 'password');
      return expectOk(yield* authAnswer(passwordMessage(secret.password)));
    case 5: {
      const salt = request.bytes(4);
      const stored = secret?.verifier !== undefined && isMd5Verifier(secret.verifier) ? secret.verifier : null;
      const verifier = secret?.password === undefined ? stored : md5Verifier(user, secret.password);
      if (verifier === null) throw missing('md5', 'password or md5 verifier');
      return expectOk(yield* authAnswer(passwordMessage(md5Response(verifier, salt))));
    }
    case 10: {
      const mechanisms: string[] = [];
      for (let name = request.cstring(); name !== ''; name = request.cstring()) mechanisms.push(name);
      if (!canScram(secret)) throw missing('SCRAM-SHA-256', 'password, or client key and verifier');
      return yield* scram(mechanisms, secret, endPoint, user);
    }
    default:
      throw refusal('28000', `the server demands an authentication that the gateway does not know (code ${code})`);
  }
}

const canScram = (secret: Secret | null): secret is Secret =>
  secret !== null &&
  (secret.password !== undefined || (secret.clientKey !== undefined && secret.verifier !== undefined));

function* scram(
  mechanisms: readonly string[],
  secret: Secret,
  endPoint: Uint8Array | null,
  user: string,
): Exchange<void> {
  const plus = endPoint !== null && mechanisms.includes(SCRAM_PLUS);
  if (!plus && !mechanisms.includes(SCRAM)) {
    throw refusal('28000', 'the server offers no SASL mechanism that the gateway knows');
  }
  // 'y' lets the server notice when someone in the middle has taken -PLUS out of its offer.
  const gs2Header = plus ? 'p=tls-server-end-point,,' : endPoint === null ? 'n,,' : 'y,,';
  const first = clientFirst(gs2Header, (yield { want: 'random', count: NONCE_LENGTH }) as Uint8Array);
  const hello = saslInitialResponse(plus ? SCRAM_PLUS : SCRAM, first.gs2Header + first.bare);
  const server = readServerFirst(yield* saslAnswer(hello, 11), first);
  if (server === null) throw new ProtocolViolation('the server sent a malformed SCRAM message', 'server');

  const { clientKey, serverKey } = yield* scramKeys(server, secret, user);
  const final = clientFinal(server.dialogue, plus ? endPoint : null, clientKey);
  const proof = yield* saslAnswer(saslResponse(final.message), 12);
  if (!checkServerFinal(proof, server.dialogue, final.withoutProof, serverKey)) {
    throw refusal('28000', 'the server did not prove that it knows the verifier of this user');
  }
  expectOk(yield* authAnswer(undefined));
}

/** The keys for the server's salt: from the client's own key where the server has the same verifier, else from the password. */
function* scramKeys(
  { salt, iterations }: ServerFirst,
  secret: Secret,
  user: string,
): Exchange<{ readonly clientKey: Uint8Array; readonly serverKey: Uint8Array }> {
  const verifier = secret.verifier === undefined ? null : parseVerifier(secret.verifier);
  if (secret.clientKey !== undefined && verifier !== null && belongsTo(secret.clientKey, verifier)) {
    if (verifier.iterations === iterations && Buffer.compare(verifier.salt, salt) === 0) {
      return { clientKey: secret.clientKey, serverKey: verifier.serverKey };
    }
  }
  if (secret.password === undefined) {
    throw refusal(
      '28000',
      `the verifier of user "${user}" on the server differs from the one that the gateway has`,
      'Roles and their verifiers must be the same on all servers and in the credentials source of the gateway.',
    );
  }
  const password = saslprep(secret.password);
  return deriveKeys((yield { want: 'pbkdf2', password, salt, iterations }) as Uint8Array);
}

/** The next authentication request after an answer of ours. */
function* authAnswer(send: Uint8Array | undefined): Exchange<Reader> {
  const answer = (yield { want: 'frame', send }) as Uint8Array;
  if (typeOf(answer) === 'E') throw new ServerRefusal(Uint8Array.from(answer));
  if (typeOf(answer) !== 'R') throw unexpected();
  return bodyOf(answer);
}

function* saslAnswer(send: Uint8Array, code: 11 | 12): Exchange<string> {
  const body = yield* authAnswer(send);
  if (body.uint32() !== code) throw unexpected();
  return body.rest().toString('utf8');
}

function expectOk(request: Reader): void {
  if (request.uint32() !== 0) throw unexpected();
}
