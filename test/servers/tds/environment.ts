import type { Typed, View } from './translate.js';
import type { SqlType, Value } from './types.js';

const INT: SqlType = { name: 'int' };
const BIGINT: SqlType = { name: 'bigint' };
const SMALLINT: SqlType = { name: 'smallint' };
const BIT: SqlType = { name: 'bit' };
const GUID: SqlType = { name: 'uniqueidentifier' };
const DATE: SqlType = { name: 'datetime' };
const NAME: SqlType = { name: 'nvarchar', length: 128 };

/** A name as sysname, 128 characters. */
export function name(value: Value): Typed {
  return { type: NAME, value };
}

export function int(value: number | null): Typed {
  return { type: INT, value: value === null ? null : String(value) };
}

/** What sys.dm_exec_sessions and its relatives show of a session. */
export interface SessionFacts {
  readonly spid: number;
  readonly login: string;
  readonly host: string;
  readonly processId: number;
  readonly application: string;
  readonly database: string;
  readonly running: string | null;
  readonly trancount: number;
  readonly descriptor: bigint;
  readonly begun: Date | null;
  readonly since: Date;
  readonly lastRequest: Date;
  readonly isolation: number;
  readonly encrypted: boolean;
  readonly packetSize: number;
  readonly connection: string;
}

/** What the functions and views of one session are made of. */
export interface Surroundings {
  readonly serverName: string;
  readonly started: Date;
  readonly own: SessionFacts;
  readonly sessions: readonly SessionFacts[];
}

/** Names a database of a family by PostgreSQL's identity: all replicas share it, and each promotion begins a new fork. */
const FAMILY = "md5('family ' || (SELECT system_identifier FROM pg_control_system()))::uuid";
/** The timeline: of a primary it is in the name of the WAL file that is written, at once after a promotion. */
const TIMELINE =
  '(CASE WHEN pg_is_in_recovery() THEN coalesce((SELECT max(received_tli) FROM pg_stat_wal_receiver), (SELECT timeline_id FROM ' +
  "pg_control_checkpoint())) ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int END)";
const FORK = `md5('fork ' || (SELECT system_identifier FROM pg_control_system()) || ' ' || ${TIMELINE})::uuid`;
const HARDENED =
  "(CASE WHEN pg_is_in_recovery() THEN coalesce(pg_last_wal_receive_lsn(), '0/0') ELSE pg_current_wal_flush_lsn() END - '0/0'::pg_lsn)" +
  '::numeric(25,0)';
const REDONE =
  "(CASE WHEN pg_is_in_recovery() THEN coalesce(pg_last_wal_replay_lsn(), '0/0') ELSE pg_current_wal_lsn() END - '0/0'::pg_lsn)" +
  '::numeric(25,0)';

const PROPERTIES: Readonly<Record<string, (around: Surroundings) => Typed>> = {
  servername: (around) => name(around.serverName),
  machinename: (around) => name(around.serverName),
  instancename: () => name(null),
  productversion: () => name('16.0.4135.4'),
  productlevel: () => name('RTM'),
  productmajorversion: () => name('16'),
  edition: () => name('Developer Edition (64-bit)'),
  engineedition: () => int(3),
  ishadrenabled: () => int(1),
  isclustered: () => int(0),
  isintegratedsecurityonly: () => int(0),
  collation: () => name('SQL_Latin1_General_CP1_CI_AS'),
  processid: () => int(process.pid),
};

/** A standby, or made read-only by whoever keeps the PostgreSQL (ALTER SYSTEM SET default_transaction_read_only). */
const READ_ONLY = "(pg_is_in_recovery() OR current_setting('default_transaction_read_only')::boolean)";

const DATABASE_PROPERTIES: Readonly<Record<string, Typed>> = {
  updateability: {
    type: NAME,
    value: null,
    sql: `CASE WHEN ${READ_ONLY} THEN 'READ_ONLY' ELSE 'READ_WRITE' END`,
  },
  status: name('ONLINE'),
  recovery: name('FULL'),
  useraccess: name('MULTI_USER'),
  collation: name('SQL_Latin1_General_CP1_CI_AS'),
};

type Known = (around: Surroundings, args: readonly Value[]) => Typed | undefined;

/** Functions of the server and the session. */
const FUNCTIONS: Readonly<Record<string, Known>> = {
  DB_NAME: ({ own }, args) => (args.length === 0 ? name(own.database) : undefined),
  DB_ID: () => SMALL(5),
  SUSER_SNAME: ({ own }) => name(own.login),
  SUSER_NAME: ({ own }) => name(own.login),
  ORIGINAL_LOGIN: ({ own }) => name(own.login),
  USER_NAME: () => name('dbo'),
  SCHEMA_NAME: () => name('dbo'),
  APP_NAME: ({ own }) => name(own.application),
  PROGRAM_NAME: ({ own }) => name(own.application),
  HOST_NAME: ({ own }) => name(own.host),
  XACT_STATE: ({ own }) => ({ type: SMALLINT, value: own.trancount > 0 ? '1' : '0' }),
  CURRENT_TRANSACTION_ID: ({ own }) => ({ type: BIGINT, value: own.descriptor === 0n ? null : String(own.descriptor) }),
  IS_SRVROLEMEMBER: () => int(1),
  IS_MEMBER: () => int(1),
  HAS_DBACCESS: () => int(1),
  HAS_PERMS_BY_NAME: () => int(1),
  FN_HADR_IS_PRIMARY_REPLICA: () => ({
    type: BIT,
    value: null,
    sql: 'CASE WHEN pg_is_in_recovery() THEN 0 ELSE 1 END',
  }),
  SERVERPROPERTY: (around, [property]) => PROPERTIES[property?.toLowerCase() ?? '']?.(around) ?? name(null),
  DATABASEPROPERTYEX: (_, [, property]) => DATABASE_PROPERTIES[property?.toLowerCase() ?? ''] ?? name(null),
  CONNECTIONPROPERTY: (_, [property]) => name(property?.toLowerCase() === 'net_transport' ? 'TCP' : null),
};

function SMALL(value: number): Typed {
  return { type: SMALLINT, value: String(value) };
}

export function knownFunction(around: Surroundings, called: string, args: readonly Value[]): Typed | undefined {
  return FUNCTIONS[called]?.(around, args);
}

/** @@names that need nothing but the server and the session. */
const GLOBALS: Readonly<Record<string, (around: Surroundings) => Typed>> = {
  spid: ({ own }) => SMALL(own.spid),
  trancount: ({ own }) => int(own.trancount),
  servername: ({ serverName }) => name(serverName),
  servicename: () => name('MSSQLSERVER'),
  version: () => ({
    type: { name: 'nvarchar', length: 300 },
    value:
      'Microsoft SQL Server 2022 (RTM-CU13) - 16.0.4135.4 (X64)\n\tA server for tests that speaks TDS in front of PostgreSQL',
  }),
  microsoftversion: () => int(0x10001027),
  language: () => name('us_english'),
  langid: () => SMALL(0),
  max_precision: () => ({ type: { name: 'tinyint' }, value: '38' }),
  dbts: () => ({ type: { name: 'varbinary', length: 8 }, value: '\\x0000000000000001' }),
  procid: () => int(0),
  nestlevel: () => int(0),
  cursor_rows: () => int(0),
  fetch_status: () => int(-1),
};

export function knownGlobal(around: Surroundings, wanted: string): Typed | undefined {
  return GLOBALS[wanted]?.(around);
}

function date(moment: Date | null): Value {
  return moment === null ? null : moment.toISOString().slice(0, 23).replace('T', ' ');
}

type Made = readonly [column: string, type: SqlType, value: (facts: SessionFacts) => Value];

function viewOf(sessions: readonly SessionFacts[], made: readonly Made[]): View {
  return {
    columns: made.map(([column, type]) => [column, type]),
    rows: sessions.map((facts) => made.map(([, , value]) => value(facts))),
  };
}

const VIEWS: Readonly<Record<string, (around: Surroundings) => View>> = {
  dm_exec_sessions: ({ sessions }) =>
    viewOf(sessions, [
      ['session_id', SMALLINT, (s) => String(s.spid)],
      ['login_time', DATE, (s) => date(s.since)],
      ['host_name', NAME, (s) => s.host],
      ['host_process_id', INT, (s) => String(s.processId)],
      ['program_name', NAME, (s) => s.application],
      ['login_name', NAME, (s) => s.login],
      ['original_login_name', NAME, (s) => s.login],
      ['status', NAME, (s) => (s.running === null ? 'sleeping' : 'running')],
      ['is_user_process', BIT, () => '1'],
      ['open_transaction_count', INT, (s) => String(s.trancount)],
      ['transaction_isolation_level', SMALLINT, (s) => String(s.isolation)],
      ['last_request_start_time', DATE, (s) => date(s.lastRequest)],
      ['last_request_end_time', DATE, (s) => date(s.lastRequest)],
      ['database_id', SMALLINT, () => '5'],
    ]),
  dm_exec_connections: ({ sessions }) =>
    viewOf(sessions, [
      ['session_id', INT, (s) => String(s.spid)],
      ['connection_id', GUID, (s) => s.connection],
      ['connect_time', DATE, (s) => date(s.since)],
      ['net_transport', NAME, () => 'TCP'],
      ['protocol_type', NAME, () => 'TSQL'],
      ['encrypt_option', NAME, (s) => (s.encrypted ? 'TRUE' : 'FALSE')],
      ['auth_scheme', NAME, () => 'SQL'],
      ['net_packet_size', INT, (s) => String(s.packetSize)],
    ]),
  dm_exec_requests: ({ sessions }) =>
    viewOf(
      sessions.filter(({ running }) => running !== null),
      [
        ['session_id', SMALLINT, (s) => String(s.spid)],
        ['request_id', INT, () => '0'],
        ['status', NAME, () => 'running'],
        ['command', NAME, (s) => s.running],
        ['start_time', DATE, (s) => date(s.lastRequest)],
        ['blocking_session_id', SMALLINT, () => '0'],
        ['transaction_id', BIGINT, (s) => String(s.descriptor)],
        ['open_transaction_count', INT, (s) => String(s.trancount)],
      ],
    ),
  dm_tran_session_transactions: ({ sessions }) =>
    viewOf(
      sessions.filter(({ trancount }) => trancount > 0),
      [
        ['session_id', INT, (s) => String(s.spid)],
        ['transaction_id', BIGINT, (s) => String(s.descriptor)],
        [
          'transaction_descriptor',
          { name: 'binary', length: 8 },
          (s) => `\\x${s.descriptor.toString(16).padStart(16, '0')}`,
        ],
        ['enlist_count', INT, () => '0'],
        ['is_user_transaction', BIT, () => '1'],
        ['is_local', BIT, () => '1'],
        ['open_transaction_count', INT, (s) => String(s.trancount)],
      ],
    ),
  dm_tran_active_transactions: ({ sessions }) =>
    viewOf(
      sessions.filter(({ trancount }) => trancount > 0),
      [
        ['transaction_id', BIGINT, (s) => String(s.descriptor)],
        ['name', NAME, () => 'user_transaction'],
        ['transaction_begin_time', DATE, (s) => date(s.begun)],
        ['transaction_type', INT, () => '1'],
        ['transaction_state', INT, () => '2'],
      ],
    ),
  dm_tran_current_transaction: ({ own }) =>
    viewOf([own], [['transaction_id', BIGINT, (s) => (s.descriptor === 0n ? null : String(s.descriptor))]]),
  dm_os_sys_info: ({ started }) => ({ columns: [['sqlserver_start_time', DATE]], rows: [[date(started)]] }),
  databases: ({ serverName }) => ({
    sql:
      "SELECT nspname::varchar(128) AS name, row_number() OVER (ORDER BY nspname)::int AS database_id, 0::int2 AS state, 'ONLINE'::varchar(60) " +
      `AS state_desc, (CASE WHEN ${READ_ONLY} THEN 1 ELSE 0 END)::int2 AS is_read_only, 160::int2 AS compatibility_level, ` +
      `'SQL_Latin1_General_CP1_CI_AS'::varchar(128) AS collation_name, ${FAMILY} AS group_database_id, ` +
      `md5('replica ' || ${literalText(serverName)})::uuid AS replica_id, 1::int2 AS is_read_committed_snapshot_on, ` +
      "'ON'::varchar(60) AS snapshot_isolation_state_desc FROM pg_namespace WHERE nspname NOT LIKE 'pg\\_%' AND nspname NOT IN " +
      "('information_schema', 'tds', 'public')",
  }),
  database_recovery_status: () => ({
    sql: `SELECT 5 AS database_id, ${FAMILY} AS database_guid, ${FAMILY} AS family_guid, ${FORK} AS recovery_fork_guid`,
  }),
  dm_hadr_database_replica_states: ({ serverName }) => ({
    sql:
      `SELECT 5 AS database_id, ${FAMILY} AS group_id, ${FAMILY} AS group_database_id, md5('replica ' || ${literalText(serverName)})::uuid AS replica_id, ` +
      '1::int2 AS is_local, (CASE WHEN pg_is_in_recovery() THEN 0 ELSE 1 END)::int2 AS is_primary_replica, ' +
      "'SYNCHRONIZED'::varchar(60) AS synchronization_state_desc, 'HEALTHY'::varchar(60) AS synchronization_health_desc, " +
      `${HARDENED} AS last_hardened_lsn, ${REDONE} AS last_redone_lsn, ${HARDENED} AS last_commit_lsn`,
  }),
  dm_hadr_availability_replica_states: ({ serverName }) => ({
    sql:
      `SELECT md5('replica ' || ${literalText(serverName)})::uuid AS replica_id, 1::int2 AS is_local, ` +
      "(CASE WHEN pg_is_in_recovery() THEN 'SECONDARY' ELSE 'PRIMARY' END)::varchar(60) AS role_desc, " +
      "'CONNECTED'::varchar(60) AS connected_state_desc, 'ONLINE'::varchar(60) AS operational_state_desc",
  }),
  database_principals: ({ own }) => ({
    sql:
      "SELECT * FROM (VALUES ('public'::varchar(128), 0, NULL::bytea), ('dbo', 1, convert_to('sa', 'UTF8')), " +
      `(${literalText(own.login.toLowerCase())}, 5, NULLIF(convert_to(${literalText(own.login.toLowerCase())}, 'UTF8'), convert_to('sa', 'UTF8')))) ` +
      'AS v(name, principal_id, sid)',
  }),
  database_permissions: ({ own }) => ({
    sql:
      "SELECT hashtext(object) AS major_id, (CASE grantee WHEN 'public' THEN 0 ELSE 5 END) AS grantee_principal_id, " +
      "permission::varchar(128) AS permission_name, 'G'::char(1) AS state FROM tds.permissions " +
      `WHERE database = ${literalText(own.database)}`,
  }),
  tables: () => ({ sql: objects("c.relkind = 'r'") }),
  objects: () => ({ sql: objects("c.relkind IN ('r', 'v')") }),
  columns: () => ({
    sql:
      'SELECT a.attrelid::int8::int4 AS object_id, a.attname::varchar(128) AS name, a.attnum::int4 AS column_id, ' +
      "(CASE WHEN a.attnotnull THEN 0 ELSE 1 END)::int2 AS is_nullable, (CASE WHEN a.attidentity = '' THEN 0 ELSE 1 END)::int2 AS " +
      'is_identity FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid WHERE a.attnum > 0 AND NOT a.attisdropped AND ' +
      'c.relnamespace = current_schema()::regnamespace',
  }),
};

function objects(kinds: string): string {
  return (
    "SELECT c.relname::varchar(128) AS name, c.oid::int8::int4 AS object_id, 1 AS schema_id, (CASE c.relkind WHEN 'v' THEN 'V' ELSE 'U' " +
    'END)::char(2) AS type FROM pg_class c WHERE ' +
    `${kinds} AND c.relnamespace = current_schema()::regnamespace`
  );
}

function literalText(text: string): string {
  return `'${text.replaceAll("'", "''")}'`;
}

export function knownView(around: Surroundings, wanted: string): View | undefined {
  return Object.hasOwn(VIEWS, wanted) ? VIEWS[wanted](around) : undefined;
}
