/**
 * Proof of commits by rows ({@link Markers}): a transaction puts one into a table of the gateway's own just before its COMMIT.
 *
 * The row is written by a function that runs with the rights of the table's owner, so that every user can leave one and none can see,
 * change or remove any. It writes nothing in a transaction that has no id, and so has nothing to commit; in one that was made read-only
 * after it wrote something it fails, and the transaction with it. In PostgreSQL a COMMIT behind a failed statement rolls back, so both leave
 * together.
 *
 * Serializable transactions: nobody reads the table at that level, so it makes no conflicts; who was chosen to fail by others may learn it at
 * this statement instead of at the COMMIT. Deferred constraints are checked by the COMMIT itself, and take the row with them.
 */

import {
  CodedError,
  type Exchange,
  type Mark,
  type Marked,
  type Marker,
  type Markers,
  type MarkInjection,
  ProtocolViolation,
  type ServerFacts,
} from '../../core/contract/index.js';
import { ownStatement, StatementInjection } from './inject.js';
import { type QueryAnswer, simpleQuery } from './messages.js';

/** Schema and table in lower case: they need no quotes wherever they stand. */
const TABLE = /^[a-z_][a-z0-9_]{0,49}\.[a-z_][a-z0-9_]{0,49}$/;

const putterOf = (table: string) => `${table}_put`;

const UNIQUE_VIOLATION = '23505';
/** SQLSTATEs of a table that is not set up, or not for this user, and words for them. */
const FAULTS: Readonly<Record<string, string>> = {
  '3F000': 'its schema is missing',
  '42P01': 'the table is missing',
  '42883': 'the function that writes it is missing',
  '42501': 'a right is missing',
  '42703': 'the table is another one',
  '25006': 'the transaction wrote something before it was made read-only',
};

class PutMark extends StatementInjection implements MarkInjection {
  marked(): Marked {
    const error = this.failed();
    if (error !== null) return error.code === UNIQUE_VIOLATION ? 'taken' : 'refused';
    return this.rows[0]?.[0] === 't' ? 'marked' : 'nothing';
  }

  fault(): string | null {
    const code = this.failed()?.code;
    return code !== undefined && code in FAULTS ? `${FAULTS[code]}, SQLSTATE ${code}` : null;
  }
}

/**
 * @param always whether the transaction does something only in its commit (NOTIFY), and so has no id before
 */
export const marker = (always: () => boolean): Marker => ({
  binding: true,
  insert: ({ id, table }: Mark): MarkInjection =>
    new PutMark(ownStatement(`SELECT ${putterOf(table)}('\\x${id}', ${always()})`, '_outlive_mark')),
});

/**
 * In a transaction that leaves no traces for serializable ones, whatever the database's defaults are. Statements of one Query are one
 * transaction, which is over when one of them fails (protocol manual, "Multiple Statements in a Simple Query").
 */
const plainly = (sql: string): Exchange<QueryAnswer> =>
  simpleQuery(`SET TRANSACTION ISOLATION LEVEL READ COMMITTED; ${sql}`);

function* find({ id, table }: Mark, origin: ServerFacts): Exchange<'present' | 'absent' | 'unknown'> {
  const { rows, error } = yield* plainly(
    `SELECT pg_catalog.pg_is_in_recovery(), (SELECT system_identifier FROM pg_catalog.pg_control_system()),
      EXISTS (SELECT FROM ${table} WHERE id = '\\x${id}')`,
  );
  if (error !== null) {
    if (error.code in FAULTS) return 'unknown';
    throw new ProtocolViolation(`the server refused to look for a commit's row (SQLSTATE ${error.code})`, 'server');
  }
  const [recovery, system, present] = rows[0] ?? [];
  // A standby may yet replay the commit.
  if (recovery !== 'f' || system !== origin.system) return 'unknown';
  return present === 't' ? 'present' : 'absent';
}

function setup(table: string, reader: string): string[] {
  const [schema, name] = table.split('.');
  const role = `"${reader.replaceAll('"', '""')}"`;
  const putter = `${putterOf(table)}(bytea, boolean)`;
  return [
    `CREATE SCHEMA IF NOT EXISTS ${schema}`,
    `CREATE TABLE IF NOT EXISTS ${table} (id bytea PRIMARY KEY, created timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp())`,
    `CREATE INDEX IF NOT EXISTS ${name}_created ON ${table} USING brin (created)`,
    `CREATE OR REPLACE FUNCTION ${putterOf(table)}(id bytea, always boolean) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF NOT always AND pg_catalog.pg_current_xact_id_if_assigned() IS NULL THEN RETURN false; END IF;
  INSERT INTO ${table} (id) VALUES ($1);
  RETURN true;
END $$`,
    `REVOKE ALL ON TABLE ${table} FROM PUBLIC`,
    `GRANT USAGE ON SCHEMA ${schema} TO PUBLIC`,
    `GRANT EXECUTE ON FUNCTION ${putter} TO PUBLIC`,
    `GRANT SELECT, DELETE ON TABLE ${table} TO ${role}`,
  ];
}

const rights = (table: string, reader: string): string[] => [
  `Who sets it up needs CREATE on the database, and owns the table and the function ${putterOf(table)}, which writes with the owner's rights.`,
  'Every user may run that function (GRANT ... TO PUBLIC), and has no other right on the table.',
  `${reader}, the monitor's user, may SELECT and DELETE: it looks for rows after a failover and removes old ones.`,
];

function* install(statements: readonly string[]): Exchange<void> {
  const { error } = yield* simpleQuery(statements.join('; '));
  if (error === null) return;
  const message =
    error.code === '42501'
      ? `a right is missing: ${error.message}; the user needs CREATE on the database, and to own what is there already`
      : `the server refused it: ${error.message} (SQLSTATE ${error.code})`;
  throw new CodedError('OUTLIVE_SETUP_REFUSED', 'server', message);
}

function* inspect(table: string): Exchange<readonly string[]> {
  const [schema] = table.split('.');
  const { rows, error } = yield* plainly(`
    SELECT t.oid IS NOT NULL, t.relpersistence = 'p', f.oid IS NOT NULL, f.prosecdef,
      pg_catalog.has_schema_privilege('public', n.oid, 'USAGE'),
      pg_catalog.has_function_privilege('public', f.oid, 'EXECUTE'),
      pg_catalog.has_table_privilege(f.proowner, t.oid, 'INSERT'),
      pg_catalog.has_table_privilege(t.oid, 'SELECT'), pg_catalog.has_table_privilege(t.oid, 'DELETE'),
      current_user
    FROM (SELECT) AS one
    LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = '${schema}'
    LEFT JOIN pg_catalog.pg_class t ON t.oid = pg_catalog.to_regclass('${table}')
    LEFT JOIN pg_catalog.pg_proc f ON f.oid = pg_catalog.to_regprocedure('${putterOf(table)}(bytea, boolean)')`);
  if (error !== null) throw new ProtocolViolation(`the server refused to be asked (SQLSTATE ${error.code})`, 'server');
  const [there, logged, putter, definer, usage, execute, insert, select, remove, user] = rows[0];
  if (there !== 't') return [`the table ${table} is missing`];
  const wrong: string[] = [];
  const need = (had: string | null, what: string) => had !== 't' && wrong.push(what);
  need(logged, `the table ${table} is not kept after a crash (unlogged)`);
  need(usage, `every user needs USAGE on the schema ${schema} (GRANT ... TO PUBLIC)`);
  need(putter, `the function ${putterOf(table)} is missing`);
  if (putter === 't') {
    need(definer, `the function ${putterOf(table)} does not run with its owner's rights (SECURITY DEFINER)`);
    need(execute, `every user needs EXECUTE on the function ${putterOf(table)} (GRANT ... TO PUBLIC)`);
    need(insert, `the owner of the function ${putterOf(table)} needs INSERT on the table ${table}`);
  }
  need(select, `${user} needs SELECT on the table ${table}, to find rows`);
  need(remove, `${user} needs DELETE on the table ${table}, to remove old rows`);
  return wrong;
}

function* remove(table: string, olderThan: number): Exchange<number> {
  const { rows, error } = yield* plainly(
    `WITH gone AS (DELETE FROM ${table} WHERE created < pg_catalog.clock_timestamp() - interval '${olderThan} milliseconds' RETURNING 1) SELECT count(*) FROM gone`,
  );
  if (error !== null) throw new ProtocolViolation(`old rows could not be removed (SQLSTATE ${error.code})`, 'server');
  return Number(rows[0][0]);
}

export const markers: Markers = {
  defaultTable: 'outlive.commit_marker',
  wrongTable: (table) =>
    TABLE.test(table) ? null : 'must be schema.table, both in lower case, such as outlive.commit_marker',
  find,
  setup,
  rights,
  install,
  inspect,
  remove,
};
