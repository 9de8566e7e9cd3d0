/**
 * Did a commit take effect? Asked on the server that goes on with the history, after the commit's answer was lost.
 *
 * ## The token and why it is exact
 *
 * The token is {xid, L}, taken inside the transaction right behind the first request that gave it an id, and in any case before
 * the COMMIT leaves: its top-level transaction id X and then the log's insert position L. So, on the server where it was taken:
 *
 *  (1) Every log record of X that was there before the token ends at or before L. A transaction that has changed something
 *      durable has written at least one, and it carries X or the id of a subtransaction of X, which is higher than X.
 *  (2) The commit record of X begins at or after L: COMMIT comes after the token in the same session.
 *
 * Let B be the boundary of the log as the asked server has it: all records before B are those of the server where the token
 * was taken, none at or after B is. After a promotion, B is where the history left the token's timeline; after a restart, B
 * is where recovery ended and the new life began (every record that begins before it was flushed and is still there).
 *
 *  L >= B: by (2) the commit record was lost with the rest, so X did not commit. Whoever has the id X here got it anew:
 *      pg_xact_status(X) speaks of another transaction, and may well say "committed". This is the alias trap.
 *  L < B:  by (1) a record with X, or a higher id, survived. Recovery puts the next id beyond every id it sees, and ids only
 *      grow, so X was never issued again: pg_xact_status(X) speaks of our transaction. It says "committed" exactly when
 *      the commit record lies before B; a commit record lost behind B leaves X aborted.
 *
 * Without any boundary something can still be said: had X committed in this history, then by the same argument
 * pg_xact_status(X) would say "committed" here. Any other answer therefore means that it did not commit, whoever has X now.
 * Only "committed" is ambiguous.
 *
 * ## What remains
 *
 * (1) fails for a transaction that has an id but no record before its commit: one that changed unlogged or temporary tables
 * only, or only asked for an id (NOTIFY). With L < B its id may be issued again, and "committed" may be an alias's. Nothing
 * of it outlives a crash or a promotion (unlogged tables are emptied, notifications are not kept), so no durable work is
 * reported as committed that is not there.
 *
 * After a crash, B lies behind the few dozen bytes that recovery itself may write first (where the log ended inside a record
 * that crosses a page, or full_page_writes was changed). Only a token from exactly these bytes, of a transaction whose
 * records are all lost, could be taken for one before B.
 *
 * A transaction with synchronous_commit = off may be lost after it was reported; that is what the setting means.
 */

import {
  type Exchange,
  type Outcome,
  type OutcomeToken,
  ProtocolViolation,
  type ServerFacts,
} from '../../core/contract/index.js';
import { parseLsn } from './lsn.js';
import { simpleQuery } from './messages.js';
import { type PostgresHistory, probe } from './probe.js';

/** The `token` of an {@link OutcomeToken}. Plain data. */
export interface PostgresToken {
  /** Top-level transaction id with its epoch (xid8), in decimal. */
  readonly xid: string;
  /** Insert position of the log after the id was taken, `X/Y`. */
  readonly lsn: string;
}

/**
 * What pg_xact_status says; `future` when the id was not issued yet, `forgotten` when it is too old, `prepared` for a
 * transaction in progress without a session.
 */
type XactStatus = 'committed' | 'aborted' | 'in progress' | 'prepared' | 'future' | 'forgotten';

/**
 * Learns whether the transaction of a token committed.
 *
 * @param token from the lost connection; its `token` is {@link PostgresToken}
 * @param origin the server when the token was taken. It must not be older than that server's life then: facts learnt after
 * the session's connection was made, or the very facts of the life it was made in
 * @param server facts of the server that is asked; the exchange probes it again and uses these only where they tell of
 * the same life and timeline something that can no longer be read
 * @returns `wait` while the transaction still runs on this very server; `unknown` when there is no proof (another history, a
 * timeline that is not a descendant, a standby, an id too old, or "committed" without a boundary)
 * @throws ProtocolViolation when the server does not answer as a PostgreSQL server does
 */
/**
 * Counts those of the tokens whose transaction is not committed on this server. Only for tokens of transactions that were
 * committed and that lie before the switch point: an id beyond the next one, or aborted, is then one that was lost.
 */
export function* missing(tokens: readonly OutcomeToken[]): Exchange<number> {
  const xids = tokens.map(({ token }) => (token as PostgresToken).xid);
  // The order of evaluation matters: pg_xact_status fails for ids that were never issued here.
  const { rows, error } = yield* simpleQuery(`
    SELECT pg_catalog.count(*) FROM pg_catalog.unnest('{${xids.join(',')}}'::pg_catalog.xid8[]) AS t(x)
    WHERE CASE WHEN x < pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())
      THEN pg_catalog.pg_xact_status(x) IN ('aborted', 'in progress') ELSE true END`);
  if (error !== null) throw new ProtocolViolation(`asking for commits failed (SQLSTATE ${error.code})`, 'server');
  return Number(rows[0][0]);
}

export function* resolve(token: OutcomeToken, origin: ServerFacts, server: ServerFacts): Exchange<Outcome> {
  const { xid, lsn } = token.token as PostgresToken;
  if (!/^[1-9]\d{0,19}$/.test(xid) || origin.system !== server.system) return 'unknown';

  const now = yield* probe();
  // A standby may yet replay the commit record: what it does not know proves nothing.
  if (now.system !== server.system || now.role !== 'primary') return 'unknown';

  const status = yield* xactStatus(xid);
  const life = lives(origin.instance, now.instance);
  if (life === 'same') return inSameLife(status);
  if (!descends(origin, now)) return 'unknown';

  const boundary = boundaryOf(origin, now, server);
  if (boundary !== null && parseLsn(lsn) >= boundary) {
    // When it may be one life after all, a token beyond its beginning is no surprise, and the status is the truth.
    return life === 'unclear' ? withoutBoundary(status, life) : 'not-committed';
  }
  if (boundary === null) {
    // The same argument as for the status, from the first snapshot of the new life: nothing from X on had ended then,
    // while a commit that survived had.
    const early = sameEra(now, server) ? (server.history as PostgresHistory) : null;
    if (life === 'another' && early !== null && BigInt(xid) >= BigInt(early.nextXid)) return 'not-committed';
    return withoutBoundary(status, life);
  }
  // X is ours. What is in progress in another life was prepared: PREPARE TRANSACTION was the request, and it took effect.
  // In progress without being prepared, X cannot be ours but for the remaining case above: it was issued again.
  if (status === 'committed' || status === 'prepared') return 'committed';
  if (status === 'forgotten') return 'unknown';
  return status === 'in progress' && life === 'unclear' ? 'wait' : 'not-committed';
}

function inSameLife(status: XactStatus): Outcome {
  switch (status) {
    case 'committed':
    case 'prepared':
      return 'committed';
    case 'aborted':
      return 'not-committed';
    case 'in progress':
      // Also while the commit waits for a synchronous standby: ending the backend ends that wait, and it is committed.
      return 'wait';
    default:
      // Forgotten: too old. And an id that was issued in this life is not in the future: the token is not of this server.
      return 'unknown';
  }
}

function withoutBoundary(status: XactStatus, life: 'unclear' | 'another'): Outcome {
  if (status === 'committed' || status === 'prepared' || status === 'forgotten') return 'unknown';
  return status === 'in progress' && life === 'unclear' ? 'wait' : 'not-committed';
}

/**
 * Compares two lives of a server (see INSTANCE in probe.ts). `unclear` when the postmaster is the same and only the marks that
 * an administrator can change differ: statistics were reset, or the monitor's rights changed.
 */
function lives(one: string, other: string): 'same' | 'another' | 'unclear' {
  if (one === other) return 'same';
  const [start, mark] = one.split('.');
  const [otherStart, otherMark] = other.split('.');
  if (start !== otherStart) return 'another';
  return mark?.startsWith('c') && otherMark?.startsWith('c') ? 'another' : 'unclear';
}

/** True when earlier facts are of this server as it is now: the same life, already a primary, on the same timeline. */
const sameEra = (now: ServerFacts, earlier: ServerFacts): boolean =>
  earlier.role === 'primary' && earlier.timeline === now.timeline && lives(earlier.instance, now.instance) === 'same';

const timelinesOf = (facts: ServerFacts) => (facts.history as PostgresHistory).timelines;

/**
 * False when the server's history is known not to go on from the origin's: an earlier timeline, one that branched off before,
 * or one of the same number after another switch (two standbys promoted on their own).
 */
function descends(origin: ServerFacts, now: ServerFacts): boolean {
  if (now.timeline < origin.timeline) return false;
  const theirs = timelinesOf(now);
  if (theirs === null) return true;
  if (now.timeline > origin.timeline && !theirs.some(({ timeline }) => timeline === origin.timeline)) return false;
  const ours = timelinesOf(origin) ?? [];
  return ours.every(
    ({ timeline, switchLsn }, index) =>
      theirs[index]?.timeline === timeline && parseLsn(theirs[index].switchLsn) === parseLsn(switchLsn),
  );
}

/** B of the proof above; null when it is not known. */
function boundaryOf(origin: ServerFacts, now: ServerFacts, server: ServerFacts): bigint | null {
  // No token is taken on a standby: these facts are from before a promotion, and the token is of a later timeline.
  if (origin.role !== 'primary') return null;
  const known = sameEra(now, server) ? (server.history as PostgresHistory) : null;
  const history = now.history as PostgresHistory;
  const lsn =
    now.timeline === origin.timeline
      ? (history.endOfRecoveryLsn ?? known?.endOfRecoveryLsn)
      : (history.timelines ?? known?.timelines)?.find(({ timeline }) => timeline === origin.timeline)?.switchLsn;
  return lsn == null ? null : parseLsn(lsn);
}

function* xactStatus(xid: string): Exchange<XactStatus> {
  const { rows, error } = yield* simpleQuery(
    `SELECT pg_xact_status('${xid}'), EXISTS (SELECT FROM pg_prepared_xacts WHERE transaction = '${xid}'::xid8::xid)`,
  );
  // invalid_parameter_value, "transaction ID ... is in the future"; the connection goes on.
  if (error?.code === '22023') return 'future';
  if (error !== null) {
    throw new ProtocolViolation(`the server refused to tell a commit's outcome (SQLSTATE ${error.code})`, 'server');
  }
  const [status, isPrepared] = rows[0] ?? [];
  switch (status) {
    case 'in progress':
      return isPrepared === 't' ? 'prepared' : 'in progress';
    case 'committed':
    case 'aborted':
      return status;
    case null:
      return 'forgotten';
    default:
      throw new ProtocolViolation('the server told an unknown transaction status', 'server');
  }
}
