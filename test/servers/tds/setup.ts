/**
 * What this server needs in PostgreSQL. Databases of SQL Server are schemas there, because a statement may name several of them
 * and a transaction may change several.
 */
export function setupSql(databases: readonly string[]): string {
  return [
    'BEGIN',
    // Several servers may start at the same time.
    'SELECT pg_advisory_xact_lock(7421433)',
    ...databases.map((database) => `CREATE SCHEMA IF NOT EXISTS "${database.toLowerCase().replaceAll('"', '""')}"`),
    'CREATE SCHEMA IF NOT EXISTS tds',
    'CREATE TABLE IF NOT EXISTS tds.procedures (database text, name text, text text NOT NULL, PRIMARY KEY (database, name))',
    'CREATE TABLE IF NOT EXISTS tds.permissions (database text, object text, grantee text, permission text, PRIMARY KEY (database, object, grantee, permission))',
    `CREATE OR REPLACE FUNCTION tds.last_identity() RETURNS numeric LANGUAGE plpgsql AS $$
       BEGIN RETURN lastval(); EXCEPTION WHEN object_not_in_prerequisite_state THEN RETURN NULL; END $$`,
    "CREATE OR REPLACE FUNCTION tds.datalength(text) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT octet_length($1)'",
    "CREATE OR REPLACE FUNCTION tds.datalength(bytea) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT octet_length($1)'",
    `DO $$ BEGIN
       CREATE OPERATOR tds.+ (LEFTARG = text, RIGHTARG = text, FUNCTION = textcat);
     EXCEPTION WHEN duplicate_function THEN NULL; END $$`,
    'COMMIT',
  ].join(';\n');
}
