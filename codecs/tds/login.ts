/** Logs in to a server: PRELOGIN, LOGIN7 as the client's, and what the server tells then. */

import { type Exchange, type LoginContext, type LoginOutcome, ProtocolViolation } from '../../core/contract/index.js';
import { readMessageOf } from './ask.js';
import { unicode } from './bytes.js';
import { LOGIN_REFUSED, loginRefusal, refusalOf } from './errors.js';
import {
  ENV_DATABASE,
  ENV_ENHANCED_ROUTING,
  ENV_PACKETSIZE,
  ENV_PARTNER,
  ENV_ROUTING,
  envChangeText,
  envChangeType,
  FEATURE_COLUMNENCRYPTION,
  FEATURE_DATACLASSIFICATION,
  readEnvChange,
  readFeatureExtAck,
  readLoginAck,
  readMessage,
  type ServerMessage,
} from './facts.js';
import type { Startup } from './greet.js';
import { inPrelogin } from './handshake.js';
import {
  INIT_DB_FATAL,
  type Login7,
  ODBC_ON,
  obfuscatePassword,
  SET_LANG_ON,
  USE_DB_ON,
  writeLogin7,
} from './login7.js';
import { DEFAULT_PACKET_SIZE, LOGIN7, PRELOGIN, packets } from './packet.js';
import {
  ENCRYPT_NOT_SUP,
  ENCRYPT_ON,
  encryptionScope,
  PL_ENCRYPTION,
  PL_INSTOPT,
  PL_MARS,
  PL_THREADID,
  PL_VERSION,
  readPrelogin,
  versionData,
  writePrelogin,
} from './prelogin.js';
import {
  ENVCHANGE,
  ERROR,
  FEATUREEXTACK,
  FEDAUTHINFO,
  LOGINACK,
  SESSIONSTATE,
  SSPI_TOKEN,
  TokenReader,
} from './tokens.js';
import { type Dialect, dialectOf, TDS_7_4, VERSION_7_4 } from './version.js';
import { serverMessage } from './write.js';

/** What a server told at login. Plain data: the `facts` of a login. */
export interface LoginFacts {
  readonly dialect: Dialect;
  readonly packetSize: number;
  readonly spid: number;
  /** The tokens of its answer, one behind the other, without those that are for the gateway alone. */
  readonly tokens: Uint8Array;
  readonly columnEncryption: boolean;
  readonly dataClassification: number;
}

/** Name of the gateway's own logins. */
const OWN_NAME = 'outlive';

/**
 * @returns `facts` is {@link LoginFacts}, `backendId` as {@link backendIdOf} makes it
 * @throws ProtocolViolation when the server does not speak TDS
 */
export function* login(context: LoginContext): Exchange<LoginOutcome> {
  const startup = context.startup as Startup | null;
  const asked = startup?.dialect ?? TDS_7_4;
  const wanted = context.tls === 'off' ? ENCRYPT_NOT_SUP : ENCRYPT_ON;
  const prelogin = writePrelogin([
    { token: PL_VERSION, data: versionData({ major: 16, minor: 0, build: 1000, subBuild: 0 }) },
    { token: PL_ENCRYPTION, data: Uint8Array.of(wanted) },
    { token: PL_INSTOPT, data: Uint8Array.of(0) },
    { token: PL_THREADID, data: new Uint8Array(4) },
    { token: PL_MARS, data: Uint8Array.of(0) },
  ]);
  const { payload } = yield* readMessageOf(packets(PRELOGIN, prelogin, DEFAULT_PACKET_SIZE));
  const { encryption } = readPrelogin(payload, 0, payload.length, 'server');
  const scope = encryptionScope(wanted, encryption ?? ENCRYPT_NOT_SUP);
  if (scope === 'refused' && context.tls === 'off')
    return refused('the server demands TLS, which is off for it', asked);
  if (scope === 'refused')
    return refused('the server has no TLS: set tls: off for it, or give it a certificate', asked);
  if (scope === 'all') yield { want: 'tls', handshake: inPrelogin('server') };
  const message = login7(context, startup);
  const answer = yield* readMessageOf(packets(LOGIN7, writeLogin7(message), DEFAULT_PACKET_SIZE));
  return readAnswer(answer.payload, answer.spid, asked, message);
}

function login7({ identity }: LoginContext, startup: Startup | null): Login7 {
  const password = obfuscatePassword(unicode(identity.secret?.password ?? ''));
  if (startup !== null) return { ...startup.login, password };
  return { ...OWN_LOGIN, userName: identity.user, database: identity.database, password };
}

const NOTHING = new Uint8Array(0);
const OWN_LOGIN: Login7 = {
  tdsVersion: VERSION_7_4,
  packetSize: DEFAULT_PACKET_SIZE,
  clientProgVer: 0,
  clientPid: 0,
  connectionId: 0,
  optionFlags1: USE_DB_ON | INIT_DB_FATAL | SET_LANG_ON,
  optionFlags2: ODBC_ON,
  typeFlags: 0,
  optionFlags3: 0,
  clientTimeZone: 0,
  clientLcid: 0x0409,
  hostName: '',
  userName: '',
  password: NOTHING,
  appName: OWN_NAME,
  serverName: '',
  cltIntName: OWN_NAME,
  language: '',
  database: '',
  clientId: new Uint8Array(6),
  sspi: NOTHING,
  atchDbFile: '',
  changePassword: NOTHING,
  features: null,
};

function readAnswer(payload: Uint8Array, spid: number, asked: Dialect, told: Login7): LoginOutcome {
  const kept: Uint8Array[] = [];
  const errors: ServerMessage[] = [];
  let dialect: Dialect | null = null;
  let packetSize = DEFAULT_PACKET_SIZE;
  let columnEncryption = false;
  let dataClassification = 0;
  let database: string | undefined;
  let unsupported: string | null = null;
  const reader = new TokenReader(asked);
  reader.push(payload, 0, payload.length, {
    rows: () => {},
    token: (type, bytes, start, end) => {
      let keep = true;
      switch (type) {
        case ERROR:
          errors.push(readMessage(bytes, start, end, asked));
          break;
        case LOGINACK:
          dialect = Math.min(dialectOf(readLoginAck(bytes, start, end).tdsVersion), TDS_7_4);
          break;
        case ENVCHANGE: {
          const kind = envChangeType(bytes, start);
          if (kind === ENV_PACKETSIZE)
            packetSize = Number(envChangeText(readEnvChange(bytes, start, end).newValue)) || packetSize;
          else if (kind === ENV_DATABASE) database = envChangeText(readEnvChange(bytes, start, end).newValue);
          // Clients that followed these would pass the gateway by.
          else if (kind === ENV_PARTNER) keep = false;
          else if (kind === ENV_ROUTING || kind === ENV_ENHANCED_ROUTING)
            unsupported = 'the server sends clients to another one, which the gateway does not follow: name that one';
          break;
        }
        case FEATUREEXTACK:
          for (const { id, data } of readFeatureExtAck(bytes, start, end)) {
            if (id === FEATURE_COLUMNENCRYPTION) columnEncryption = data.length > 0 && data[0] > 0;
            else if (id === FEATURE_DATACLASSIFICATION) dataClassification = data[1] === 1 ? data[0] : 0;
          }
          break;
        case SSPI_TOKEN:
        case FEDAUTHINFO:
          unsupported = 'the server demands integrated or federated authentication, which the gateway does not support';
          break;
        case SESSIONSTATE:
          keep = false;
          break;
      }
      if (keep) kept.push(Uint8Array.prototype.slice.call(bytes, start, end));
    },
  });
  reader.endMessage();
  if (unsupported !== null) return refused(unsupported, asked);
  if (dialect === null) {
    const [first] = errors;
    if (first === undefined) throw new ProtocolViolation('the server neither let in nor refused a login', 'server');
    return { ok: false, ...refusalOf(first), bytes: serverMessage(payload, DEFAULT_PACKET_SIZE, spid) };
  }
  const tokens = Buffer.concat(kept);
  const facts: LoginFacts = { dialect, packetSize, spid, tokens, columnEncryption, dataClassification };
  return { ok: true, login: { cancelKey: null, backendId: backendIdOf(spid, told), facts, database } };
}

/** What tells a session on its server from the next one that is given its number: that, and what its login said of its client. */
function backendIdOf(spid: number, { clientPid, hostName, appName }: Login7): string {
  return JSON.stringify([spid, clientPid | 0, hostName, appName]);
}

/** A refusal of the gateway's own. */
function refused(message: string, dialect: Dialect): LoginOutcome {
  const bytes = serverMessage(loginRefusal(message, dialect), DEFAULT_PACKET_SIZE);
  const error = { meaning: 'ordinary', code: String(LOGIN_REFUSED), message, fatal: true } as const;
  return { ok: false, transient: false, error, bytes };
}
