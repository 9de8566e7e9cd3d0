/**
 * Proof of commits by rows ({@link Markers}): a transaction puts one into a table of the gateway's own just before its COMMIT.
 *
 * The row is written by a procedure of the table's owner, so that every user can leave one and none can see, change or remove any (ownership
 * chaining). It is called by RPC, under its whole name, and not by a text: a text of its own for each commit would have to be compiled, and a plan
 * of it be kept, each time. Therefore it cannot travel with a COMMIT in one message (a procedure, and sp_executesql is one, must leave as many
 * transactions open as it found: error 266), and a commit waits for its answer.
 *
 * The procedure writes only for the COMMIT that ends the transaction (`@@TRANCOUNT` is 1). What fails in it fails alone where XACT_ABORT is OFF,
 * and ends the transaction where that is ON; nothing is committed behind it in either case.
 */

import {
  CodedError,
  type Exchange,
  type Mark,
  type Marked,
  type Markers,
  type MarkInjection,
  ProtocolViolation,
  type ServerFacts,
} from '../../core/contract/index.js';
import { askBatch, textOf } from './ask.js';
import { RpcInjection } from './inject.js';
import { type History, OWN } from './probe.js';
import { binaryParameter, bitParameter } from './rpc.js';
import type { Dialect } from './version.js';

/** Schema and table, of letters that need no quotes wherever they stand; room for what is put behind them. */
const TABLE = /^[a-z_][a-z0-9_]{0,99}\.[a-z_][a-z0-9_]{0,99}$/i;

const putterOf = (table: string) => `${table}_put`;

/** What the procedure returns. */
const MARKED = 1;
const NOTHING = 0;

/** "Violation of PRIMARY KEY constraint." */
const DUPLICATE = '2627';
/** "Lock request time out period exceeded." */
const LOCK_TIMEOUT = 1222;
/** Errors of a table that is not set up, or not for this user, and words for them. */
const FAULTS: Readonly<Record<string, string>> = {
  201: 'the procedure that writes it is another one',
  208: 'the table is missing',
  229: 'a right is missing',
  230: 'a right is missing',
  911: 'its database is missing',
  916: 'its database is closed to this user',
  2812: 'the procedure that writes it is missing',
  8144: 'the procedure that writes it is another one',
  8145: 'the procedure that writes it is another one',
};

const quoted = (name: string): string => `[${name.replaceAll(']', ']]')}]`;
const guid = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i;

/** The call that puts a row into the open transaction. */
export class PutMark extends RpcInjection implements MarkInjection {
  /**
   * @param identity `@@IDENTITY` stays what it is, which an INSERT otherwise takes away
   * @param over the tokens behind an error that tell the client that its transaction is over
   */
  constructor(
    { id, table, database }: Mark,
    identity: boolean,
    dialect: Dialect,
    private readonly over: () => readonly Uint8Array[],
  ) {
    const procedure = [...(database === '' ? [] : [database]), ...putterOf(table).split('.')].map(quoted).join('.');
    super(procedure, [binaryParameter(Buffer.from(id, 'hex')), bitParameter(identity)], dialect);
  }

  marked(): Marked {
    const error = this.failed();
    if (error !== null) return error.code === DUPLICATE ? 'taken' : 'refused';
    const [status] = this.told().statuses;
    if (status === MARKED) return 'marked';
    return status === NOTHING ? 'nothing' : 'refused';
  }

  fault(): string | null {
    const error = this.failed();
    if (error === null) return FAULTS[201];
    const words = FAULTS[error.code];
    return words === undefined ? null : `${words}, error ${error.code}`;
  }

  protected override get behind(): readonly Uint8Array[] {
    return this.over();
  }
}

function* find({ id, table }: Mark, origin: ServerFacts): Exchange<'present' | 'absent' | 'unknown'> {
  if (!guid.test(origin.system)) return 'unknown';
  // Waits for who still has the row, also where readers otherwise see what was before (READ_COMMITTED_SNAPSHOT).
  const { rows, errors } = yield* askBatch(
    `SET LOCK_TIMEOUT 2000; SELECT CAST(DATABASEPROPERTYEX(DB_NAME(), 'Updateability') AS nvarchar(60)),
  CAST((SELECT family_guid FROM sys.database_recovery_status WHERE database_id = DB_ID()) AS nvarchar(36)),
  CAST((SELECT COUNT(*) FROM ${table} WITH (READCOMMITTEDLOCK) WHERE id = 0x${id}) AS int)`,
    OWN,
  );
  const [error] = errors;
  if (error !== undefined) {
    if (String(error.number) in FAULTS) return 'unknown';
    const why =
      error.number === LOCK_TIMEOUT ? 'somebody still has it locked' : `the server refused it (error ${error.number})`;
    throw new ProtocolViolation(`a commit's row could not be looked for: ${why}`, 'server');
  }
  const [updateability, family, count] = (rows[0] ?? []).map(textOf);
  // A secondary may yet hear of the commit.
  if (updateability !== 'READ_WRITE') return 'unknown';
  if (family !== origin.system && !(yield* movesWith(origin))) return 'unknown';
  return count === '0' ? 'absent' : 'present';
}

/**
 * Is what this database says proof although it is not the one whose history `origin` tells? Where it moves with that (one availability group), or
 * where this is the very server that the transaction ran on.
 */
function* movesWith({ system, history }: ServerFacts): Exchange<boolean> {
  const { rows, errors } = yield* askBatch(
    `SELECT CAST(SERVERPROPERTY('ServerName') AS nvarchar(128)),
  CAST((SELECT COUNT(*) FROM sys.dm_hadr_database_replica_states AS a
    JOIN sys.dm_hadr_database_replica_states AS b ON b.group_id = a.group_id
    JOIN sys.database_recovery_status AS r ON r.database_id = b.database_id
    WHERE a.is_local = 1 AND a.database_id = DB_ID() AND b.is_local = 1 AND CAST(r.family_guid AS nvarchar(36)) = '${system}') AS int)`,
    OWN,
  );
  const [row] = rows;
  if (errors.length > 0 || row === undefined) return false;
  const [server, together] = row.map(textOf);
  return together !== '0' || (server !== null && server === (history as History).server);
}

function setup(table: string, reader: string): string[] {
  const [schema, name] = table.split('.');
  const put = putterOf(table);
  const text = (words: string) => `N'${words.replaceAll("'", "''")}'`;
  const make = `CREATE OR ALTER PROCEDURE ${put} @id binary(16), @identity bit AS
IF @@TRANCOUNT <> 1 RETURN ${NOTHING};
DECLARE @before bigint = TRY_CAST(@@IDENTITY AS bigint);
INSERT INTO ${table} (id) VALUES (@id);
IF @@ERROR <> 0 RETURN -1;
IF @identity = 1 AND @before IS NOT NULL
BEGIN
  DECLARE @again nvarchar(200) = N'SELECT IDENTITY(bigint, ' + CAST(@before AS nvarchar(20)) + N', 1) AS n INTO #again';
  EXEC (@again);
END;
RETURN ${MARKED};`;
  return [
    ...(schema.toLowerCase() === 'dbo'
      ? []
      : [`IF SCHEMA_ID(N'${schema}') IS NULL EXEC (N'CREATE SCHEMA ${schema} AUTHORIZATION dbo')`]),
    `IF OBJECT_ID(N'${table}', N'U') IS NULL
BEGIN
  CREATE TABLE ${table} (id binary(16) NOT NULL PRIMARY KEY, created datetime2(3) NOT NULL DEFAULT SYSUTCDATETIME());
  CREATE INDEX ${name}_created ON ${table} (created);
END`,
    `EXEC (${text(make)})`,
    `GRANT EXECUTE ON OBJECT::${put} TO public`,
    // The owner needs no right, and cannot be given any.
    `DECLARE @reader sysname = (SELECT name FROM sys.database_principals WHERE sid = SUSER_SID(${text(reader)}));
IF @reader <> N'dbo'
BEGIN
  DECLARE @grant nvarchar(1000) = N'GRANT SELECT, DELETE ON OBJECT::${table} TO ' + QUOTENAME(@reader);
  EXEC (@grant);
END`,
  ];
}

const rights = (table: string, reader: string): string[] => [
  `Who sets it up needs ALTER on the schema, CREATE TABLE and CREATE PROCEDURE, such as a member of db_owner; the table and the procedure ${putterOf(table)} must have one owner.`,
  'Every user may run that procedure (GRANT ... TO public), and has no other right on the table.',
  `${reader}, the monitor's login, may SELECT and DELETE: it looks for rows after a failover and removes old ones. It must be a user of the database.`,
];

function* install(statements: readonly string[]): Exchange<void> {
  const whole = ['SET XACT_ABORT ON', 'BEGIN TRANSACTION', ...statements, 'COMMIT TRANSACTION'].join(';\n');
  const { errors } = yield* askBatch(whole, OWN);
  const [error] = errors;
  if (error === undefined) return;
  const right = error.number === 262 || error.number === 229 || error.number === 2760 || error.number === 15247;
  const message = right
    ? `a right is missing: ${error.message}; the user must be one that may make tables and procedures in the schema, such as a member of db_owner`
    : `the server refused it: ${error.message} (error ${error.number})`;
  throw new CodedError('OUTLIVE_SETUP_REFUSED', 'server', message);
}

function* inspect(table: string): Exchange<readonly string[]> {
  const put = putterOf(table);
  const { rows, errors } = yield* askBatch(
    `SELECT CAST(OBJECT_ID(N'${table}', N'U') AS int), CAST(OBJECT_ID(N'${put}', N'P') AS int),
  CAST((SELECT COUNT(*) FROM sys.database_permissions WHERE major_id = OBJECT_ID(N'${put}', N'P')
    AND grantee_principal_id = 0 AND permission_name = N'EXECUTE' AND state IN ('G', 'W')) AS int),
  CAST(OBJECTPROPERTY(OBJECT_ID(N'${table}', N'U'), 'OwnerId') AS int), CAST(OBJECTPROPERTY(OBJECT_ID(N'${put}', N'P'), 'OwnerId') AS int),
  CAST(HAS_PERMS_BY_NAME(N'${table}', N'OBJECT', N'SELECT') AS int), CAST(HAS_PERMS_BY_NAME(N'${table}', N'OBJECT', N'DELETE') AS int),
  CAST(SUSER_SNAME() AS nvarchar(128))`,
    OWN,
  );
  if (errors.length > 0)
    throw new ProtocolViolation(`the server refused to be asked (error ${errors[0].number})`, 'server');
  const [there, putter, granted, owner, putterOwner, select, remove, user] = rows[0].map(textOf);
  // What may not be seen counts as missing: the monitor needs rights on it.
  if (there === null) return [`the table ${table} is missing`];
  const wrong: string[] = [];
  const need = (had: boolean, what: string) => !had && wrong.push(what);
  need(putter !== null, `the procedure ${put} is missing`);
  if (putter !== null) {
    need(granted !== '0', `every user needs EXECUTE on the procedure ${put} (GRANT ... TO public)`);
    need(owner === putterOwner, `the procedure ${put} and the table ${table} need the same owner`);
  }
  need(select === '1', `${user} needs SELECT on the table ${table}, to find rows`);
  need(remove === '1', `${user} needs DELETE on the table ${table}, to remove old rows`);
  return wrong;
}

/** So many rows are removed at a time: more in one statement would lock the table for those who commit. */
const SOME = 1000;

function* remove(table: string, olderThan: number): Exchange<number> {
  const seconds = Math.ceil(olderThan / 1000);
  for (let all = 0; ; ) {
    const { rows, errors } = yield* askBatch(
      `DELETE TOP (${SOME}) FROM ${table} WITH (READPAST, ROWLOCK) WHERE created < DATEADD(second, -${seconds}, SYSUTCDATETIME());
SELECT @@ROWCOUNT`,
      OWN,
    );
    if (errors.length > 0)
      throw new ProtocolViolation(`old rows could not be removed (error ${errors[0].number})`, 'server');
    const count = Number(textOf(rows[0][0]));
    all += count;
    if (count < SOME) return all;
  }
}

export const markers: Markers = {
  defaultTable: 'dbo.outlive_commit_marker',
  wrongTable: (table) =>
    TABLE.test(table) ? null : 'must be schema.table, of letters, digits and _, such as dbo.outlive_commit_marker',
  find,
  setup,
  rights,
  install,
  inspect,
  remove,
};
