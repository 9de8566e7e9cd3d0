/** What a session is doing on its server, seen from another one. */

import { type Activity, type Exchange, ProtocolViolation } from '../../core/contract/index.js';
import { simpleQuery } from './messages.js';

/**
 * Asks whether a session works on something or waits for its client. The input of a COPY is waited for while the session is active:
 * that is the client's turn and says nothing.
 *
 * @param backendId the `backendId` of the login
 * @returns null where the monitor may not see it (it is no member of pg_monitor)
 * @throws ProtocolViolation when the server does not answer as a PostgreSQL server does
 */
export function* activity(backendId: string): Exchange<Activity | null> {
  if (!/^[1-9]\d{0,9}$/.test(backendId)) return null;
  const { rows, error } = yield* simpleQuery(`SELECT state, wait_event FROM pg_stat_activity WHERE pid = ${backendId}`);
  if (error !== null) {
    throw new ProtocolViolation(`the server refused to tell of its sessions (SQLSTATE ${error.code})`, 'server');
  }
  if (rows.length === 0) return 'gone';
  const [state, wait] = rows[0];
  if (state === null) return null;
  return state.startsWith('idle') || wait === 'ClientWrite' ? 'waiting' : 'working';
}
