import { type Exchange, ProtocolViolation, type Secret } from '../../core/contract/index.js';
import { isMd5Verifier } from './auth/md5.js';
import { parseVerifier } from './auth/scram.js';
import { parameterQuery } from './messages.js';

/** What a stored secret is: a verifier in one of PostgreSQL's forms, else a plain password. */
export const secretOf = (stored: string): Secret =>
  isMd5Verifier(stored) || parseVerifier(stored) !== null ? { verifier: stored } : { password: stored };

/**
 * Asks for the credentials of a user, over a connection of the gateway's own.
 *
 * @param query one statement with the user's name as $1 that answers with (user, verifier), as PgBouncer's auth_query, or with
 * the verifier alone
 * @returns null when there is no such user, or when it has no secret (NULL or empty)
 * @throws ProtocolViolation when the query fails (it names the SQLSTATE) or answers with more than one user
 */
export function* lookup(query: string, user: string): Exchange<Secret | null> {
  const { rows, error } = yield* parameterQuery(query, [user]);
  if (error !== null) throw new ProtocolViolation(`the credentials query failed (SQLSTATE ${error.code})`, 'server');
  if (rows.length === 0) return null;
  if (rows.length > 1) throw new ProtocolViolation('the credentials query answered with more than one row', 'server');
  const [row] = rows;
  if (row.length === 0) throw new ProtocolViolation('the credentials query answered with no column', 'server');
  const stored = row.length === 1 ? row[0] : row[1];
  return stored === null || stored === '' ? null : secretOf(stored);
}
