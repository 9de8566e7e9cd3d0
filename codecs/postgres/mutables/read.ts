import { type Call, callsOf } from './calls.js';
import { callsIn, itemOf, type Sight } from './insert.js';
import {
  type InsertStmt,
  type Node,
  parse,
  type RangeVar,
  type SelectStmt,
  type Source,
  string,
  type UpdateStmt,
  walk,
} from './parse.js';
import type { Names, TableColumn } from './types.js';

/** One statement, understood. */
export interface Parsed {
  readonly text: string;
  readonly source: Source;
  readonly calls: readonly Call[];
  /** All INSERTs, those in WITH first. */
  readonly inserts: readonly { readonly insert: InsertStmt; readonly nested: boolean }[];
}

/**
 * Reads one statement with PostgreSQL's own parser.
 * @returns null when nothing in it can differ from server to server, or when it cannot be read
 */
export function read(text: string): Parsed | null {
  const source = parse(text);
  if (source === null) return null;
  const { statement } = source;
  const changes = statement.InsertStmt ?? statement.UpdateStmt ?? statement.DeleteStmt ?? statement.MergeStmt;
  if (!changes && !statement.SelectStmt) return null;
  const calls = callsOf(source);
  const inserts: { insert: InsertStmt; nested: boolean }[] = [];
  let returning = false;
  walk(statement, (kind, body) => {
    if (kind === 'InsertStmt') inserts.unshift({ insert: body as InsertStmt, nested: body !== changes });
    returning ||= kind === 'returningClause';
  });
  return calls.length === 0 && inserts.length === 0 && !returning ? null : { text, source, calls, inserts };
}

/** The names about which `learn` and `rewrite` will ask the schema. */
export function namesOf(parsed: Parsed): Names {
  const relations = new Map<string, { schema: string | undefined; name: string }>();
  walk(parsed.source.statement, (kind, body) => {
    if (kind !== 'relation') return;
    const { schemaname: schema, relname: name } = body as RangeVar;
    if (name !== undefined) relations.set(JSON.stringify([schema, name]), { schema, name });
  });
  const functions = new Map<string, { schema: string | undefined; name: string }>();
  const sequences = new Set<string>();
  for (const { kind, schema, name, sequence } of parsed.calls) {
    if (kind === 'function') functions.set(JSON.stringify([schema, name]), { schema, name });
    if (sequence !== undefined) sequences.add(sequence);
  }
  return { relations: [...relations.values()], functions: [...functions.values()], sequences: [...sequences] };
}

/** Clauses after which a SELECT has other rows than its FROM. */
const FILTERS = [
  'whereClause',
  'limitCount',
  'limitOffset',
  'groupClause',
  'havingClause',
  'distinctClause',
  'withClause',
  'larg',
] as const;

/** How many rows a SELECT gives that counts them by generate_series of two literals; null for all others. */
export function countedRows(select: SelectStmt): number | null {
  const from = select.fromClause?.length === 1 ? select.fromClause[0].RangeFunction : undefined;
  if (from === undefined || from.is_rowsfrom || FILTERS.some((clause) => select[clause] !== undefined)) return null;
  const call = from.functions[0]?.List?.items?.[0]?.FuncCall;
  if (call === undefined || string(call.funcname.at(-1)) !== 'generate_series' || call.args?.length !== 2) return null;
  const [low, high] = call.args.map(({ A_Const }) => (A_Const?.ival === undefined ? null : (A_Const.ival.ival ?? 0)));
  return low === null || high === null ? null : Math.max(0, high - low + 1);
}

/** What an UPDATE, DELETE or MERGE has in common. */
export const changeOf = ({ UpdateStmt, DeleteStmt, MergeStmt }: Node): UpdateStmt | undefined =>
  UpdateStmt ?? DeleteStmt ?? MergeStmt;

/** The innermost expression of a chain of casts. */
function uncast(node: Node | undefined): Node | undefined {
  let inner = node;
  while (inner?.TypeCast) inner = inner.TypeCast.arg;
  return inner;
}

/** The call that an expression is, casts aside. */
export function callAt(calls: readonly Call[], node: Node | undefined): Call | undefined {
  const inner = uncast(node);
  const location = inner?.FuncCall?.location ?? inner?.SQLValueFunction?.location;
  return location === undefined ? undefined : callsIn(calls, { start: location, end: location + 1 })[0];
}

/** The default alone decides over a column: no value is given for it, or DEFAULT. */
export function isLeft(sight: Sight, row: number, position: number): boolean {
  return position < 0 || itemOf(sight, row, position)?.SetToDefault !== undefined;
}

/** Where the rows of an INSERT give a column; -1 where they do not. */
export const positionOf = (sight: Sight, column: TableColumn): number => sight.listed?.indexOf(column) ?? -1;
