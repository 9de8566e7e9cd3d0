/** What a function of the server does to the session it is called in. */
export interface SessionFunction {
  /**
   * setting: set_config. lock / unlock: advisory locks. sequence: what currval and lastval return. largeObject: open
   * descriptors (they end with the transaction). connection: dblink's named connections. seed: random's. snapshot: an
   * exported snapshot. origin: the replication origin of the session. statistics: counters are reset.
   */
  readonly state:
    | 'setting'
    | 'lock'
    | 'unlock'
    | 'sequence'
    | 'largeObject'
    | 'connection'
    | 'seed'
    | 'snapshot'
    | 'origin'
    | 'statistics';
  /** transaction: gone when the transaction ends; session: remains. set_config has it as an argument. */
  readonly scope: 'session' | 'transaction';
}

function table(rows: readonly [string, SessionFunction['state'], SessionFunction['scope']][]) {
  const map = new Map<string, SessionFunction>();
  for (const [names, state, scope] of rows) {
    for (const name of names.trim().split(/\s+/)) map.set(name, { state, scope });
  }
  return map;
}

/** The functions that are reported as `sessionFunctions`, by name. */
export const SESSION_FUNCTIONS: ReadonlyMap<string, SessionFunction> = table([
  ['set_config', 'setting', 'session'],
  ['pg_advisory_lock pg_advisory_lock_shared pg_try_advisory_lock pg_try_advisory_lock_shared', 'lock', 'session'],
  ['pg_advisory_unlock pg_advisory_unlock_shared pg_advisory_unlock_all', 'unlock', 'session'],
  [
    `pg_advisory_xact_lock pg_advisory_xact_lock_shared pg_try_advisory_xact_lock pg_try_advisory_xact_lock_shared`,
    'lock',
    'transaction',
  ],
  ['nextval setval currval lastval', 'sequence', 'session'],
  ['setseed', 'seed', 'session'],
  [
    `lo_open lo_close lo_creat lo_create lo_import lo_export lo_unlink lo_lseek lo_lseek64 lo_tell lo_tell64 lo_truncate
    lo_truncate64 lo_put lo_get lo_from_bytea loread lowrite`,
    'largeObject',
    'transaction',
  ],
  ['dblink_connect dblink_connect_u dblink_disconnect dblink_open dblink_send_query', 'connection', 'session'],
  ['pg_export_snapshot', 'snapshot', 'transaction'],
  ['pg_replication_origin_session_setup pg_replication_origin_session_reset', 'origin', 'session'],
  ['pg_replication_origin_xact_setup pg_replication_origin_xact_reset', 'origin', 'transaction'],
  [
    `pg_stat_reset pg_stat_reset_shared pg_stat_reset_slru pg_stat_reset_replication_slot pg_stat_reset_backend_stats
    pg_stat_reset_subscription_stats pg_stat_reset_single_table_counters pg_stat_reset_single_function_counters`,
    'statistics',
    'session',
  ],
]);

/**
 * Volatile functions of the server itself after which nothing remains that outlives the session, so that repeating them
 * on another server is as good as the first time. Some of them leave state in the session (SESSION_FUNCTIONS says which).
 *
 * nextval is among them: repeated before the client has seen the first value it only skips one, and a sequence gives no
 * more than that anyway (manual: "Sequence Manipulation Functions"). setval is not. Functions that run SQL given as text
 * (query_to_xml, ts_stat, cursor_to_xml) are not, nor is anything that signals another backend: the process id that the
 * text names is somebody else's on another server.
 */
export const HARMLESS_VOLATILE: ReadonlySet<string> = new Set(
  `array_sample array_shuffle random random_normal setseed clock_timestamp timeofday current_query amvalidate gen_random_uuid uuidv4 uuidv7
  bernoulli system pg_sleep pg_sleep_for pg_sleep_until
  nextval currval lastval set_config
  pg_advisory_lock pg_advisory_lock_shared pg_advisory_unlock pg_advisory_unlock_all pg_advisory_unlock_shared
  pg_advisory_xact_lock pg_advisory_xact_lock_shared pg_try_advisory_lock pg_try_advisory_lock_shared
  pg_try_advisory_xact_lock pg_try_advisory_xact_lock_shared
  txid_current txid_current_if_assigned txid_current_snapshot txid_status pg_current_xact_id
  pg_current_xact_id_if_assigned pg_current_snapshot pg_xact_status pg_xact_commit_timestamp
  pg_xact_commit_timestamp_origin pg_last_committed_xact pg_get_multixact_members pg_prepared_xact pg_lock_status
  pg_blocking_pids pg_safe_snapshot_blocking_pids pg_isolation_test_session_is_blocked pg_notification_queue_usage
  pg_is_in_recovery pg_is_wal_replay_paused pg_get_wal_replay_pause_state pg_current_wal_lsn pg_current_wal_insert_lsn
  pg_current_wal_flush_lsn pg_last_wal_receive_lsn pg_last_wal_replay_lsn pg_last_xact_replay_timestamp
  pg_available_wal_summaries pg_wal_summary_contents pg_get_wal_summarizer_state pg_get_wal_resource_managers
  pg_control_checkpoint pg_control_init pg_control_recovery pg_control_system pg_current_logfile
  pg_database_size pg_indexes_size pg_relation_size pg_table_size pg_tablespace_size pg_total_relation_size
  pg_partition_ancestors pg_partition_tree pg_sequence_last_value pg_get_sequence_data
  pg_collation_actual_version pg_database_collation_actual_version pg_jit_available pg_hba_file_rules
  pg_ident_file_mappings pg_show_all_file_settings pg_get_aios pg_get_backend_memory_contexts pg_get_loaded_modules
  pg_get_shmem_allocations pg_get_shmem_allocations_numa pg_get_wait_events pg_show_replication_origin_status
  pg_replication_origin_progress pg_replication_origin_session_is_setup pg_replication_origin_session_progress
  pg_ls_archive_statusdir pg_ls_dir pg_ls_logdir pg_ls_logicalmapdir pg_ls_logicalsnapdir pg_ls_replslotdir
  pg_ls_summariesdir pg_ls_tmpdir pg_ls_waldir pg_read_binary_file pg_read_file pg_read_file_old pg_stat_file
  pg_stat_clear_snapshot pg_stat_force_next_flush pg_stat_get_backend_io pg_stat_get_backend_wal pg_stat_get_io
  pg_stat_get_recovery_prefetch pg_stat_have_stats pg_stat_get_xact_blocks_fetched pg_stat_get_xact_blocks_hit
  pg_stat_get_xact_function_calls pg_stat_get_xact_function_self_time pg_stat_get_xact_function_total_time
  pg_stat_get_xact_numscans pg_stat_get_xact_tuples_deleted pg_stat_get_xact_tuples_fetched
  pg_stat_get_xact_tuples_hot_updated pg_stat_get_xact_tuples_inserted pg_stat_get_xact_tuples_newpage_updated
  pg_stat_get_xact_tuples_returned pg_stat_get_xact_tuples_updated
  pg_logical_slot_peek_changes pg_logical_slot_peek_binary_changes
  lo_get lo_close lo_lseek lo_lseek64 lo_tell lo_tell64 loread`
    .trim()
    .split(/\s+/),
);
