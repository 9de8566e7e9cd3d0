import { serialize } from 'pg-protocol';
import {
  type Codec,
  type Exchange,
  type GatewayError,
  type LoginResult,
  ProtocolViolation,
  type SessionContext,
} from '../../core/contract/index.js';
import { activity } from './activity.js';
import { cancel, terminate } from './cancel.js';
import { buildGatewayError } from './errors.js';
import { AUTH_METHODS, AUTHENTICATION_OK, greet, type Startup } from './greet.js';
import { dataRow, text } from './inject.js';
import { type CancelKey, login } from './login.js';
import { lookup } from './lookup.js';
import { markers } from './marks.js';
import { warmUp } from './mutables/warm.js';
import { missing, resolve } from './outcome.js';
import { probe, switchPoint } from './probe.js';
import { type FrozenSession, PostgresSession, type SharedFacts } from './session.js';
import { CATALOGUE_QUERY, parseCatalogue, QueryCache } from './sql/index.js';

/** Statements mean the same in all sessions of a process. */
const cache = new QueryCache();

/** The PostgreSQL codec: wire protocol 3.0 and 3.2, servers from version 13 on. */
const postgres: Codec = {
  name: 'postgres',
  contract: '1.0.0',
  defaultPort: 5432,
  capabilities: { login: true, state: true, outcome: true, comparison: true, probe: true, mutables: true },
  authMethods: AUTH_METHODS,
  unprotected: [
    'temporary tables, cursors WITH HOLD: gone with their server; the next statement gets an error that names them (55000)',
    "made-up values in columns that a trigger fills, or in expressions that hide them (RETURNING 'x' || id without id): a divergence (40001)",
    'made-up values of volatile functions over the rows of a table, of user functions, of several rows of an INSERT inside WITH: a divergence (40001)',
    'made-up values in answers of SQL-level EXECUTE and of cursors, or beyond limits.answers: a divergence (40001)',
    'transactions larger than limits.journal: failed with a coded error (54000), the connection is kept',
    'PREPARE TRANSACTION, COMMIT PREPARED, COMMIT AND CHAIN, CALL, DO, CREATE DATABASE and the like in flight: outcome unknown (08007)',
    'notifications that were sent while no server was there',
    'replication connections: passed through',
    'transactions that changed only unlogged or temporary tables: their commit cannot be proved in every case',
  ],
  accepted: AUTHENTICATION_OK,
  alpn: 'postgresql',

  frameLength(bytes: Uint8Array, start: number, end: number): number {
    if (end - start < 5) return 0;
    const length = (bytes[start + 1] << 24) | (bytes[start + 2] << 16) | (bytes[start + 3] << 8) | bytes[start + 4];
    if (length < 4) throw new ProtocolViolation(`message with length ${length >>> 0}`, 'server');
    return length + 1;
  },

  greet,
  login,
  probe,
  resolve,
  missing,
  markers,
  switchPoint,
  terminate,
  activity,
  lookup,
  cancel,

  // Not a SET: the client is told of it with the other parameters, and RESET keeps it.
  readOnly(startup: unknown): Startup {
    const { protocol, params } = startup as Startup;
    const name = 'default_transaction_read_only';
    return { protocol, params: [...params.filter(([other]) => other !== name), [name, 'on']] };
  },

  *learn(): Exchange<SharedFacts> {
    const rows: (string | null)[][] = [];
    let send: Uint8Array | undefined = serialize.query(CATALOGUE_QUERY);
    for (;;) {
      const frame = (yield send === undefined ? { want: 'frame' } : { want: 'frame', send }) as Uint8Array;
      send = undefined;
      if (frame[0] === 0x44) rows.push(dataRow(frame, 0, frame.length));
      else if (frame[0] === 0x45)
        throw new ProtocolViolation(`the catalogue query failed: ${text(frame, 5, frame.length)}`, 'server');
      else if (frame[0] === 0x5a) return { catalogue: parseCatalogue(rows) };
    }
  },

  cancelKeyLength(result: LoginResult): number {
    const key = result.cancelKey as CancelKey | null;
    return key === null ? 8 : 4 + Buffer.from(key.secret, 'base64').length;
  },

  refuse(error: GatewayError): Uint8Array {
    return buildGatewayError(error, 'FATAL');
  },

  session(context: SessionContext): PostgresSession {
    return new PostgresSession(context, cache);
  },

  thaw(context: SessionContext, frozen: unknown): PostgresSession {
    return PostgresSession.thaw(context, cache, frozen as FrozenSession);
  },

  warmUp,
};

export default postgres;
