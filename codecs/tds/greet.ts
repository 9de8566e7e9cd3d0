/** Meets a client: PRELOGIN and LOGIN7 (MS-TDS 2.2.6.4, 2.2.6.5). */

import {
  type Exchange,
  type GreetContext,
  type Greeting,
  ProtocolViolation,
  type ServerError,
} from '../../core/contract/index.js';
import { LOGIN_REFUSED, loginRefusal } from './errors.js';
import { FEATURE_FEDAUTH, FEATURE_SESSIONRECOVERY } from './facts.js';
import { inPrelogin } from './handshake.js';
import { INTEGRATED_SECURITY, type Login7, readLogin7, revealPassword, SET_LANG_ON, USE_DB_ON } from './login7.js';
import {
  DEFAULT_PACKET_SIZE,
  EOM,
  HEADER_LENGTH,
  LOGIN7,
  PRELOGIN,
  packetLength,
  packets,
  TABULAR_RESULT,
} from './packet.js';
import {
  ENCRYPT_NOT_SUP,
  ENCRYPT_ON,
  negotiateEncryption,
  PL_ENCRYPTION,
  PL_INSTOPT,
  PL_MARS,
  PL_THREADID,
  PL_VERSION,
  readPrelogin,
  versionData,
  writePrelogin,
} from './prelogin.js';
import { type Dialect, dialectOf, TDS_7_1, TDS_7_4, VERSION_7_4 } from './version.js';
import { serverMessage } from './write.js';

/** What a client asked for when it came. Plain data; holds no password. */
export interface Startup {
  /** Its passwords are empty. */
  readonly login: Login7;
  readonly dialect: Dialect;
  /** It came with TDS 8.0. */
  readonly strict: boolean;
}

/** Longest login message (MS-TDS 2.2.6.4: 128K - 1). */
const MAX_LOGIN = 128 * 1024 - 1;
/** What the gateway says that it is, before a server is asked: the oldest one that has all of TDS 7.4. */
const VERSION = { major: 16, minor: 0, build: 1000, subBuild: 0 };

/** Leaves the dialogue with an answer to the client. */
class Refusal extends Error {
  constructor(
    readonly error: ServerError,
    readonly dialect: Dialect,
  ) {
    super(error.message);
  }
}

function refuse(message: string, dialect: Dialect): never {
  throw new Refusal({ meaning: 'ordinary', code: String(LOGIN_REFUSED), message, fatal: true }, dialect);
}

/** @returns a session with the name and password of LOGIN7, which its server is to check */
export function* greet(context: GreetContext): Exchange<Greeting> {
  try {
    return yield* meet(context);
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    const send = serverMessage(loginRefusal(error.error.message, error.dialect), DEFAULT_PACKET_SIZE);
    yield { want: 'nothing', send };
    return { kind: 'closed', error: error.error };
  }
}

function* meet(context: GreetContext): Exchange<Greeting> {
  const asked = yield* clientMessage(PRELOGIN);
  const prelogin = readPrelogin(asked, 0, asked.length, 'client');
  const strict = context.alreadyTls !== null;
  const encrypted = prelogin.encryption ?? ENCRYPT_NOT_SUP;
  const { reply, scope } = strict ? STRICT : negotiateEncryption(encrypted, ownEncryption(context, encrypted));
  const answer = writePrelogin([
    { token: PL_VERSION, data: versionData(VERSION) },
    { token: PL_ENCRYPTION, data: Uint8Array.of(reply) },
    { token: PL_INSTOPT, data: Uint8Array.of(0) },
    { token: PL_THREADID, data: new Uint8Array(0) },
    // Several requests at a time in one connection are not offered.
    { token: PL_MARS, data: Uint8Array.of(0) },
  ]);
  const send = packets(TABULAR_RESULT, answer, DEFAULT_PACKET_SIZE);
  if (scope === 'refused') {
    yield { want: 'nothing', send };
    const message =
      context.tls === 'off'
        ? 'the client wants TLS, which this listener does not offer'
        : 'this listener accepts encrypted connections only, and the client has no TLS';
    return { kind: 'closed', error: { meaning: 'ordinary', code: '0', message, fatal: true } };
  }
  if (scope !== 'none') yield { want: 'tls', send, handshake: inPrelogin('client') };
  const payload = yield* clientMessage(LOGIN7, scope === 'none' || strict ? send : undefined);
  const login = readLogin7(payload, 0, payload.length);
  const dialect = dialectOf(login.tdsVersion);
  if (dialect < TDS_7_1) refuse('the gateway speaks TDS 7.1 and newer', TDS_7_1);
  if ((login.optionFlags2 & INTEGRATED_SECURITY) !== 0 || login.sspi.length > 0)
    refuse('the gateway does not support integrated authentication: log in with a name and a password', dialect);
  if (login.features?.some(({ id }) => id === FEATURE_FEDAUTH))
    refuse('the gateway does not support federated authentication: log in with a name and a password', dialect);
  if (login.changePassword.length > 0) refuse('a password cannot be changed through the gateway', dialect);
  const password = Buffer.from(revealPassword(login.password)).toString('utf16le');
  return {
    kind: 'session',
    identity: { user: login.userName, database: login.database, secret: { password } },
    startup: startupOf(login, Math.min(dialect, TDS_7_4), strict),
    passThrough: null,
    tls: strict || scope !== 'none',
  };
}

/** What of a login is kept, and asked for again of each server. */
function startupOf(login: Login7, dialect: Dialect, strict: boolean): Startup {
  const none = new Uint8Array(0);
  // The gateway itself sees to what a client would recover its session for.
  const features = login.features?.filter(({ id }) => id !== FEATURE_SESSIONRECOVERY) ?? null;
  const own = (bytes: Uint8Array) => Uint8Array.from(bytes);
  const { layout: _, ...fields } = login;
  return {
    login: {
      ...fields,
      // Servers are met with TDS 7.4, which is the same but for how it begins.
      tdsVersion: strict ? VERSION_7_4 : login.tdsVersion,
      optionFlags1: login.optionFlags1 | USE_DB_ON | SET_LANG_ON,
      password: none,
      changePassword: none,
      clientId: own(login.clientId),
      sspi: none,
      features: features?.length ? features.map(({ id, data }) => ({ id, data: own(data) })) : null,
    },
    dialect,
    strict,
  };
}

/** What this side wants: all of a connection encrypted, where both can; never LOGIN7 alone, whose reply then could be forged. */
function ownEncryption({ tls }: GreetContext, asked: number): number {
  if (tls === 'off') return ENCRYPT_NOT_SUP;
  return tls === 'allow' && (asked & 0x03) === ENCRYPT_NOT_SUP ? ENCRYPT_NOT_SUP : ENCRYPT_ON;
}

/** In TDS 8.0 ENCRYPTION means nothing. */
const STRICT = { reply: ENCRYPT_ON, scope: 'none' } as const;

/** Reads a whole message of a client; `send` is sent before. */
function* clientMessage(type: number, send?: Uint8Array): Exchange<Uint8Array> {
  const parts: Uint8Array[] = [];
  let length = 0;
  let first = send;
  for (;;) {
    const head = (yield { want: 'bytes', count: HEADER_LENGTH, send: first }) as Uint8Array;
    first = undefined;
    if (head[0] !== type) throw new ProtocolViolation('a message comes where another one is expected', 'client');
    const left = packetLength(head, 0, HEADER_LENGTH, 'client') - HEADER_LENGTH;
    length += left;
    if (length > MAX_LOGIN) throw new ProtocolViolation('a login message is longer than allowed', 'client');
    if (left > 0) parts.push((yield { want: 'bytes', count: left }) as Uint8Array);
    if ((head[1] & EOM) !== 0) return Buffer.concat(parts);
  }
}
