import type { Codec, Exchange, GatewayError, SessionContext } from '../../core/contract/index.js';
import { askBatch } from './ask.js';
import { gatewayError } from './errors.js';
import { ENV_BEGIN } from './facts.js';
import { greet } from './greet.js';
import { ALPN } from './handshake.js';
import { login } from './login.js';
import { markers } from './marks.js';
import { DEFAULT_PACKET_SIZE, packetLength } from './packet.js';
import { activity, OWN, probe, terminate } from './probe.js';
import { type FrozenSession, type SharedFacts, TdsSession } from './session.js';
import { TDS_7_4 } from './version.js';
import { errorAnswer, serverMessage } from './write.js';

/** The codec for SQL Server and what speaks like it: TDS 7.1 to 7.4. */
const tds: Codec = {
  name: 'tds',
  contract: '1.0.0',
  defaultPort: 1433,
  capabilities: { login: true, state: true, outcome: false, comparison: true, probe: true, mutables: false },
  // The gateway checks nobody: a name and password go on to the server, which does.
  authMethods: ['trust'],
  unprotected: [
    'calls of procedures, bulk loads, and batches that a transaction around them would change, outside of a transaction and in flight: outcome unknown (50087)',
    '@@ROWCOUNT and @@ERROR behind a statement that is guarded (outcome: { by: marker }), and @@IDENTITY behind a COMMIT, in a later request: 0 and NULL',
    'temporary tables, cursors from before the transaction, application locks, session context: gone with their server; the next request gets an error that names them (50055)',
    'values that a server makes up (identity, newid(), getdate()) and that come out differently: the transaction is to be run again (1205)',
    'integrated and federated authentication, MARS, distributed transactions: refused or named',
  ],
  accepted: new Uint8Array(0),
  alpn: ALPN,

  frameLength: (bytes, start, end) => packetLength(bytes, start, end),
  greet,
  login,

  *learn(): Exchange<SharedFacts> {
    const { changes } = yield* askBatch('BEGIN TRANSACTION; COMMIT TRANSACTION', OWN);
    return { announcesText: changes.includes(ENV_BEGIN) };
  },

  probe,
  terminate,
  markers,
  activity,

  // Unused: what a client cancels, it cancels in its own connection.
  cancelKeyLength: () => 16,

  refuse: (error: GatewayError) => serverMessage(errorAnswer(gatewayError(error, true), TDS_7_4), DEFAULT_PACKET_SIZE),

  session: (context: SessionContext) => new TdsSession(context),
  thaw: (context: SessionContext, frozen: unknown) => TdsSession.thaw(context, frozen as FrozenSession),
};

export default tds;
