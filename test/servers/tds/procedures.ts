import { TdsError } from './errors.js';
import { parse, readParameters, tokens } from './parse.js';
import type { Given, Session } from './session.js';
import { quote, type SqlType, type Value } from './types.js';

/**
 * A procedure of the server.
 * @param values of the arguments; what it puts there is what OUTPUT arguments have afterwards
 * @param types of the arguments, and of what it gives back
 * @returns its status
 */
type Procedure = (session: Session, given: readonly Given[], values: Value[], types: SqlType[]) => Promise<number>;

function handleNotFound(handle: Value): TdsError {
  return new TdsError(8179, `Could not find prepared statement with handle ${handle ?? 0}.`);
}

/** Runs a text with the arguments from `from` on, and gives back those that are OUTPUT. */
async function execute(
  session: Session,
  declaration: Parameters<Session['executeText']>[0],
  batch: Parameters<Session['executeText']>[1],
  { given, from, values, types }: { given: readonly Given[]; from: number; values: Value[]; types: SqlType[] },
): Promise<number> {
  const after = await session.executeText(declaration, batch, given.slice(from));
  given.forEach(({ name, output }, i) => {
    if (i < from || !output) return;
    const at =
      name === null || name === '' ? i - from : declaration.findIndex((one) => one.name === name.toLowerCase());
    if (at < 0) return;
    values[i] = after[at];
    types[i] = declaration[at].type;
  });
  return 0;
}

const executeSql: Procedure = async (session, given, values, types) => {
  const parameters = readParameters(tokens(given[1]?.value ?? ''));
  const batch = parse(tokens(given[0]?.value ?? ''));
  return execute(session, parameters, batch, { given, from: Math.min(2, given.length), values, types });
};

/** Prepares, and puts the handle where the client expects it. */
function prepared(session: Session, given: readonly Given[], values: Value[], types: SqlType[]): number {
  const handle = session.prepare(given[1]?.value ?? '', given[2]?.value ?? '');
  values[0] = String(handle);
  types[0] = { name: 'int' };
  return handle;
}

const prepare: Procedure = async (session, given, values, types) => {
  await session.describe(prepared(session, given, values, types));
  return 0;
};

const prepexec: Procedure = async (session, given, values, types) => {
  const { parameters, batch } = session.handles.get(prepared(session, given, values, types))!;
  return execute(session, parameters, batch, { given, from: 3, values, types });
};

const executePrepared: Procedure = async (session, given, values, types) => {
  const known = session.handles.get(Number(given[0]?.value));
  if (known === undefined) throw handleNotFound(given[0]?.value ?? null);
  return execute(session, known.parameters, known.batch, { given, from: 1, values, types });
};

const unprepare: Procedure = async (session, given) => {
  if (!session.handles.delete(Number(given[0]?.value))) throw handleNotFound(given[0]?.value ?? null);
  return 0;
};

/** An argument by its name, or by its place where it has none. */
function argument(given: readonly Given[], name: string, place: number): Value {
  const named = given.find((one) => one.name?.toLowerCase() === name);
  const placed = given[place];
  return named !== undefined ? named.value : placed !== undefined && placed.name === null ? placed.value : null;
}

/** Application locks are advisory locks of PostgreSQL: shared ones, and exclusive ones for all other modes. */
const getLock: Procedure = async (session, given) => {
  const resource = argument(given, '@resource', 0) ?? '';
  const shared = /^(shared|intentshared)$/i.test(argument(given, '@lockmode', 1) ?? '') ? '_shared' : '';
  const forTransaction = (argument(given, '@lockowner', 2) ?? 'Transaction').toLowerCase() === 'transaction';
  const timeout = argument(given, '@locktimeout', 3);
  if (forTransaction && session.trancount === 0) return -999;
  const kind = forTransaction ? '_xact' : '';
  const id = `hashtextextended(${quote(resource)}, 0)`;
  const [[got]] = await session.ask(`SELECT pg_try_advisory${kind}_lock${shared}(${id})`);
  if (got === 't') return 0;
  if (timeout === '0') return -1;
  try {
    if (timeout !== null) await session.pg.run(`SET lock_timeout = ${Math.max(Number(timeout), 0)}`);
    await session.ask(`SELECT pg_advisory${kind}_lock${shared}(${id})`);
    return 1;
  } catch (error) {
    if (error instanceof TdsError && error.number === 1222) return -1;
    if (error instanceof TdsError && error.number === 1205) return -3;
    throw error;
  } finally {
    if (timeout !== null) await session.begin();
  }
};

const releaseLock: Procedure = async (session, given) => {
  const id = `hashtextextended(${quote(argument(given, '@resource', 0) ?? '')}, 0)`;
  const owner = (argument(given, '@lockowner', 1) ?? 'Transaction').toLowerCase();
  // PostgreSQL gives a transaction's lock back at its end and no sooner.
  if (owner === 'transaction') return 0;
  const [[exclusive]] = await session.ask(`SELECT pg_advisory_unlock(${id})`);
  if (exclusive === 't') return 0;
  const [[shared]] = await session.ask(`SELECT pg_advisory_unlock_shared(${id})`);
  return shared === 't' ? 0 : -999;
};

const setSessionContext: Procedure = async (session, given) => {
  const key = (argument(given, '@key', 0) ?? '').toLowerCase();
  const at = given.findIndex(({ name }, i) => (name === null ? i === 1 : name.toLowerCase() === '@value'));
  session.context.set(key, {
    type: given[at]?.type ?? { name: 'nvarchar', length: 4000 },
    value: given[at]?.value ?? null,
  });
  return 0;
};

/** A procedure for tests: @b gets twice the first argument, @s a text that tells it. */
const pOut: Procedure = async (_, given, values, types) => {
  values[1] = given[0]?.value == null ? null : String(BigInt(given[0].value) * 2n);
  values[2] = `got ${given[0]?.value ?? 'nothing'}`;
  types[1] = { name: 'int' };
  types[2] = { name: 'nvarchar', length: 50 };
  return 7;
};

const who: Procedure = async (session) => {
  const text =
    'select session_id as spid, login_name as loginame, host_name as hostname, status from sys.dm_exec_sessions';
  await session.executeText([], parse(tokens(text)), []);
  return 0;
};

/**
 * Opens a cursor.
 * @param at parameters that get its handle, and, from there on, scroll option (static), concurrency option (read only) and number of rows
 * @param from the first of the values for the parameters of the statement
 */
async function open(
  session: Session,
  { declaration, text }: { readonly declaration: string; readonly text: string },
  given: readonly Given[],
  [values, types]: readonly [Value[], SqlType[]],
  { at, from }: { readonly at: readonly [handle: number, options: number]; readonly from: number },
): Promise<number> {
  const handle = await session.openCursor(text, readParameters(tokens(declaration)), given.slice(from));
  const { columns, rows } = session.cursors.get(handle)!;
  session.give(columns, []);
  const [first, options] = at;
  for (const [place, value] of [
    [first, handle],
    [options, 8],
    [options + 1, 1],
    [options + 2, rows.length],
  ]) {
    if (place >= values.length) continue;
    values[place] = String(value);
    types[place] = { name: 'int' };
  }
  return 0;
}

const openCursor: Procedure = (session, given, values, types) => {
  const statement = { declaration: given[5]?.value ?? '', text: given[1]?.value ?? '' };
  return open(session, statement, given, [values, types], { at: [0, 2], from: 6 });
};

/** Prepares a cursor over what stands from a parameter on, and puts the handle where the client expects it. */
function preparedCursor(session: Session, given: readonly Given[], from: number, values: Value[], types: SqlType[]) {
  const statement = { declaration: given[from]?.value ?? '', text: given[from + 1]?.value ?? '' };
  values[0] = String(session.prepareCursor(statement));
  types[0] = { name: 'int' };
  return statement;
}

const prepareCursor: Procedure = async (session, given, values, types) => {
  preparedCursor(session, given, 1, values, types);
  return 0;
};

const prepexecCursor: Procedure = (session, given, values, types) => {
  const statement = preparedCursor(session, given, 2, values, types);
  return open(session, statement, given, [values, types], { at: [1, 5], from: 8 });
};

const executeCursor: Procedure = async (session, given, values, types) => {
  const statement = session.cursorStatements.get(Number(given[0]?.value));
  if (statement === undefined) throw handleNotFound(given[0]?.value ?? null);
  return open(session, statement, given, [values, types], { at: [1, 2], from: 5 });
};

const unprepareCursor: Procedure = async (session, given) => {
  if (!session.cursorStatements.delete(Number(given[0]?.value))) throw handleNotFound(given[0]?.value ?? null);
  return 0;
};

function cursorNotFound(procedure: string, handle: Value): TdsError {
  return new TdsError(
    16909,
    `${procedure}: The cursor identifier value provided (${Number(handle ?? 0).toString(16)}) is not valid.`,
  );
}

/** Kinds of fetch: 1 first, 2 next, 4 previous, 8 last, 16 absolute. */
const fetchCursor: Procedure = async (session, given) => {
  const cursor = session.cursors.get(Number(given[0]?.value));
  if (cursor === undefined) throw cursorNotFound('sp_cursorfetch', given[0]?.value ?? null);
  const kind = Number(given[1]?.value ?? '2');
  const count = Number(given[3]?.value ?? '1');
  const starts: Record<number, number> = {
    1: 0,
    4: Math.max(cursor.at - 2 * count, 0),
    8: Math.max(cursor.rows.length - count, 0),
    16: Math.max(Number(given[2]?.value ?? '1') - 1, 0),
  };
  const start = starts[kind] ?? cursor.at;
  cursor.at = Math.min(start + count, cursor.rows.length);
  session.give(cursor.columns, cursor.rows.slice(start, cursor.at));
  return 0;
};

const closeCursor: Procedure = async (session, given) => {
  if (!session.cursors.delete(Number(given[0]?.value))) throw cursorNotFound('sp_cursorclose', given[0]?.value ?? null);
  return 0;
};

/** The procedures that this server has by itself, by their names in lower case. */
export const PROCEDURES: Readonly<Record<string, Procedure>> = {
  sp_executesql: executeSql,
  sp_prepare: prepare,
  sp_prepexec: prepexec,
  sp_execute: executePrepared,
  sp_unprepare: unprepare,
  sp_cursoropen: openCursor,
  sp_cursorprepare: prepareCursor,
  sp_cursorexecute: executeCursor,
  sp_cursorprepexec: prepexecCursor,
  sp_cursorunprepare: unprepareCursor,
  sp_cursorfetch: fetchCursor,
  sp_cursorclose: closeCursor,
  sp_getapplock: getLock,
  sp_releaseapplock: releaseLock,
  sp_set_session_context: setSessionContext,
  sp_reset_connection: async (session) => {
    await session.reset(false);
    return 0;
  },
  sp_who: who,
  p_out: pOut,
};

/** The procedures that RPC names by a number. */
export const BY_NUMBER: Readonly<Record<number, string>> = {
  2: 'sp_cursoropen',
  3: 'sp_cursorprepare',
  4: 'sp_cursorexecute',
  5: 'sp_cursorprepexec',
  6: 'sp_cursorunprepare',
  7: 'sp_cursorfetch',
  9: 'sp_cursorclose',
  10: 'sp_executesql',
  11: 'sp_prepare',
  12: 'sp_execute',
  13: 'sp_prepexec',
  15: 'sp_unprepare',
};
