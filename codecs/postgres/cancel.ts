/** Ending what runs on a server: a request (CancelRequest) or a whole session (pg_terminate_backend). */

import type { Exchange } from '../../core/contract/index.js';
import type { CancelKey } from './login.js';
import { cancelRequest, simpleQuery } from './messages.js';

/**
 * Pauses before the looks whether a terminated session is gone, in ms: most need one to three, and hundreds of sessions may have to
 * be ended one after the other.
 */
const PAUSES_MS = [1, 2, 4, 8, ...new Array<number>(24).fill(20)];

/**
 * The dialogue of a cancel request, on a connection of its own: one message, no answer; the server then closes.
 *
 * @param cancelKey the `cancelKey` of the login ({@link CancelKey} or null, which asks for nothing)
 */
export function* cancel(cancelKey: unknown): Exchange<void> {
  const key = cancelKey as CancelKey | null;
  if (key !== null) yield { want: 'nothing', send: cancelRequest(key.pid, Buffer.from(key.secret, 'base64')) };
}

/**
 * Ends a session and waits, for half a second at most, until it is gone.
 *
 * @param backendId the `backendId` of the login
 * @returns true when no such session is there (any more), false when it still runs or may not be ended
 * @throws ProtocolViolation when the server does not answer as a PostgreSQL server does
 */
export function* terminate(backendId: string): Exchange<boolean> {
  if (!/^[1-9]\d{0,9}$/.test(backendId)) return false;
  // For a process that is gone already this warns and answers false; without the right to, it is an error: the look tells.
  const asked = yield* simpleQuery(`SELECT pg_terminate_backend(${backendId})`);
  if (asked.error?.fatal) return false;
  for (const pause of PAUSES_MS) {
    // The sleep is the first statement of its own, so that the second one does not see the statistics from before it.
    const { rows, error } = yield* simpleQuery(
      `SELECT pg_sleep(${pause / 1000}); SELECT 1 FROM pg_stat_activity WHERE pid = ${backendId}`,
    );
    if (error !== null) return false;
    if (rows.length === 1) return true;
    if (asked.error !== null) return false;
  }
  return false;
}
