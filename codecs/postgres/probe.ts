/**
 * What a server is right now: alive, primary or standby, in which database history.
 * PostgreSQL 13 to 18. Works for any user; membership in pg_monitor makes crash restarts visible for certain, and
 * `GRANT EXECUTE ON FUNCTION pg_read_file(text)` (or a superuser) makes the switch points of earlier promotions readable.
 */

import { type Exchange, ProtocolViolation, type ServerFacts } from '../../core/contract/index.js';
import { parseLsn } from './lsn.js';
import { simpleQuery } from './messages.js';

/** Where a history left an earlier timeline. */
export interface TimelineSwitch {
  /** The timeline that was left. */
  readonly timeline: number;
  /** The first position that is not part of it any more, `X/Y`. */
  readonly switchLsn: string;
}

/** The `history` of {@link ServerFacts}. Plain data. */
export interface PostgresHistory {
  /** The timelines before the current one, oldest first; null when they could not be read. */
  readonly timelines: readonly TimelineSwitch[] | null;
  /**
   * Where the log of this life of a primary begins: nothing that was written at or after this position before the server
   * was started (or restarted itself after a crash) is left. Null when it cannot be told for certain.
   */
  readonly endOfRecoveryLsn: string | null;
  /** xmax of a snapshot, an xid8: no transaction with this id or a higher one had ended. */
  readonly nextXid: string;
  /** The last checkpoint in the control file. */
  readonly redoLsn: string;
  readonly checkpointLsn: string;
  /** Seconds since 1970. */
  readonly checkpointTime: number;
}

/** Where the history of a server left a timeline; null when that is not known. */
export function switchPoint({ history }: ServerFacts, timeline: number): bigint | null {
  const left = (history as PostgresHistory).timelines?.find((entry) => entry.timeline === timeline);
  return left === undefined ? null : parseLsn(left.switchLsn);
}

/** Microseconds since 1970 as text, the same whatever the session's time zone and date style. */
const microseconds = (timestamp: string): string => `(extract(epoch FROM ${timestamp}) * 1000000)::bigint::text`;

/**
 * One life of the server: the postmaster's start, and what changes when the postmaster survives but starts all else anew
 * after a crash of a backend, which loses log and transaction ids like any other crash. The start of the checkpointer (which
 * never ends alone) is exact but shown to members of pg_monitor only. For others there is the time at which the statistics
 * were last reset: a crash does it, but so does an administrator, hence another prefix; see `lives` in outcome.ts.
 */
const INSTANCE = `${microseconds('pg_postmaster_start_time()')} || coalesce(
  (SELECT '.c' || ${microseconds('backend_start')} FROM pg_stat_activity WHERE backend_type = 'checkpointer'),
  (SELECT '.s' || ${microseconds('stats_reset')} FROM pg_stat_bgwriter),
  '.s')`;

const FACTS = `SELECT r.recovery,
  current_setting('transaction_read_only') = 'off' AND current_setting('default_transaction_read_only') = 'off',
  (SELECT system_identifier::text FROM pg_control_system()),
  CASE WHEN r.recovery THEN NULL ELSE left(pg_walfile_name(pg_current_wal_lsn()), 8) END,
  greatest(c.timeline_id, (SELECT min_recovery_end_timeline FROM pg_control_recovery()),
    (SELECT received_tli FROM pg_stat_wal_receiver)),
  c.timeline_id,
  ${INSTANCE},
  CASE WHEN r.recovery THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END,
  CASE WHEN r.recovery
    THEN greatest(0, pg_wal_lsn_diff(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()))::bigint END,
  pg_snapshot_xmax(pg_current_snapshot()),
  c.redo_lsn,
  c.checkpoint_lsn,
  extract(epoch FROM c.checkpoint_time),
  current_setting('wal_level') <> 'minimal',
  has_function_privilege('pg_read_file(text)', 'execute')
FROM (SELECT pg_is_in_recovery() AS recovery) r, pg_control_checkpoint() c`;

/**
 * Learns what the server is, over a connection of the gateway's own.
 *
 * @returns facts whose `history` is {@link PostgresHistory}
 * @throws ProtocolViolation when the server answers with an error (it names the SQLSTATE) or not as a PostgreSQL server does
 */
export function* probe(): Exchange<ServerFacts> {
  const { rows, error } = yield* simpleQuery(FACTS);
  if (error !== null) throw new ProtocolViolation(`the server refused to be probed (SQLSTATE ${error.code})`, 'server');
  if (rows.length !== 1) throw new ProtocolViolation('the server did not answer the probe', 'server');
  const [
    recovery,
    acceptsWrites,
    system,
    currentTimeline,
    replayedTimeline,
    checkpointTimeline,
    instance,
    position,
    lag,
    nextXid,
    redoLsn,
    checkpointLsn,
    checkpointTime,
    logsSnapshots,
    readsFiles,
  ] = rows[0] as string[];
  const isStandby = recovery === 't';
  // Right after a promotion the control file still tells the timeline of the last checkpoint; the log's name is exact.
  const timeline = isStandby ? Number(replayedTimeline) : Number.parseInt(currentTimeline, 16);
  const history: PostgresHistory = {
    timelines: timeline === 1 ? [] : readsFiles === 't' ? yield* readTimelines(timeline) : null,
    // Only the checkpoint at a shutdown or at the end of recovery is its own redo point: an online one writes at least
    // its record of running transactions in between (not at wal_level minimal). A server that accepts writes has done
    // neither since it started, so this checkpoint is where its life began. On another timeline it is an older one.
    endOfRecoveryLsn:
      !isStandby && logsSnapshots === 't' && Number(checkpointTimeline) === timeline && redoLsn === checkpointLsn
        ? redoLsn
        : null,
    nextXid,
    redoLsn,
    checkpointLsn,
    checkpointTime: Number(checkpointTime),
  };
  return {
    role: isStandby ? 'standby' : 'primary',
    writable: !isStandby && acceptsWrites === 't',
    system,
    timeline,
    instance,
    position: position === null ? -1n : parseLsn(position),
    lagBytes: lag === null ? null : Number(lag),
    history,
  };
}

/**
 * Reads the history file of a timeline: lines of parent timeline, switch point and reason.
 *
 * @returns null when the file is gone or may not be read
 */
function* readTimelines(timeline: number): Exchange<TimelineSwitch[] | null> {
  const name = timeline.toString(16).toUpperCase().padStart(8, '0');
  const { rows, error } = yield* simpleQuery(`SELECT pg_read_file('pg_wal/${name}.history')`);
  if (error?.fatal) throw new ProtocolViolation(`the server ended the probe (SQLSTATE ${error.code})`, 'server');
  const text = rows[0]?.[0];
  if (error !== null || typeof text !== 'string') return null;
  return Array.from(text.matchAll(/^\s*(\d+)\s+([0-9A-F]+\/[0-9A-F]+)/gim), ([, parent, switchLsn]) => ({
    timeline: Number(parent),
    switchLsn,
  }));
}
