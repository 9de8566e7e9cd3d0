import type { Call } from './calls.js';
import {
  type InsertStmt,
  type Node,
  type ReturningClause,
  type SelectStmt,
  type Source,
  type Span,
  string,
  targets,
  walk,
} from './parse.js';
import type { Relation, ResultColumn, Schema, SeenStatement, SeenValue, TableColumn } from './types.js';
import { LOSSLESS, plainText, TEXT } from './values.js';

/** A value that the client saw, and how it becomes one of a column. */
export interface Known {
  readonly value: SeenValue;
  /** What the value is, as it was sent. */
  readonly typeName: string;
  /** What it is to become; null when that is the same. */
  readonly cast: string | null;
}

/** Where the parts of an INSERT stand in the text. */
export interface Layout {
  /** End of the table's name and alias. */
  readonly named: number;
  /** Where the list of columns is closed; null when there is none. */
  readonly listEnd: number | null;
  readonly overriding: { readonly user: boolean; readonly span: Span } | null;
  /** Where OVERRIDING ... VALUE belongs. */
  readonly overridingAt: number;
  readonly body:
    | { readonly kind: 'default'; readonly span: Span }
    | { readonly kind: 'values'; readonly rows: readonly { readonly items: readonly Span[]; readonly end: number }[] }
    | { readonly kind: 'select'; readonly select: SelectStmt; readonly span: Span };
}

const VALUES = new Set(['values']);
const RETURNING = new Set(['returning']);

/** Whether a VALUES says one by one which rows come, in which order. */
function isPlainValues({ valuesLists, sortClause, limitCount, limitOffset, lockingClause }: SelectStmt): boolean {
  return valuesLists !== undefined && !sortClause && !limitCount && !limitOffset && !lockingClause;
}

/** Expressions of each row of a VALUES. */
export function valuesOf(select: SelectStmt): readonly (readonly Node[])[] {
  return (select.valuesLists ?? []).map((row) => row.List?.items ?? []);
}

/**
 * Finds the rows of a VALUES.
 * @param at the token of its keyword
 * @returns null when they are not where the tree says they are
 */
export function valueRows(source: Source, at: number, select: SelectStmt) {
  const rows: { items: Span[]; end: number }[] = [];
  let token = at + 1;
  for (;;) {
    if (source.word(token) !== '(') return null;
    const { items, next } = source.list(token + 1);
    if (source.word(next) !== ')') return null;
    rows.push({ items, end: source.start(next) });
    if (source.word(next + 1) !== ',') break;
    token = next + 2;
  }
  const expected = valuesOf(select);
  const fits = rows.length === expected.length && rows.every(({ items }, k) => items.length === expected[k].length);
  return fits ? rows : null;
}

/** @returns null when the parts are not where they are expected */
export function layoutOf(source: Source, insert: InsertStmt): Layout | null {
  let at = source.afterName(source.tokenAt(insert.relation.location ?? 0));
  if (insert.relation.alias) at += source.word(at) === 'as' ? 2 : 1;
  const named = source.end(at - 1);
  let overridingAt = named;
  let listEnd: number | null = null;
  if (insert.cols) {
    if (source.word(at) !== '(') return null;
    const close = source.closing(at);
    if (close >= source.count) return null;
    listEnd = source.start(close);
    overridingAt = source.end(close);
    at = close + 1;
  }
  let overriding: Layout['overriding'] = null;
  if (source.word(at) === 'overriding') {
    overriding = { user: source.word(at + 1) === 'user', span: { start: source.start(at), end: source.end(at + 2) } };
    at += 3;
  }
  const common = { named, listEnd, overriding, overridingAt };
  const select = insert.selectStmt?.SelectStmt;
  if (select === undefined) {
    if (source.word(at) !== 'default' || source.word(at + 1) !== 'values') return null;
    return { ...common, body: { kind: 'default', span: { start: source.start(at), end: source.end(at + 1) } } };
  }
  if (isPlainValues(select)) {
    let keyword = at;
    while (source.word(keyword) === '(') keyword++;
    keyword = source.find(keyword, VALUES);
    const rows = source.word(keyword) === 'values' ? valueRows(source, keyword, select) : null;
    return rows === null ? null : { ...common, body: { kind: 'values', rows } };
  }
  const conflict = insert.onConflictClause?.location;
  const behind = conflict === undefined ? source.find(at, RETURNING) : source.tokenAt(conflict);
  const span = { start: source.start(at), end: source.end(behind - 1) };
  return { ...common, body: { kind: 'select', select, span } };
}

export function isStar(node: Node | undefined): boolean {
  return node?.ColumnRef?.fields.at(-1)?.A_Star !== undefined;
}

/**
 * For each column of a result the number of the target that it comes from; -1 where that cannot be told.
 * @param width of a star; null when it is not known
 */
export function targetOfColumn(list: readonly Node[], count: number, width: number | null): number[] {
  const stars = list.map((node) => isStar(node.ResTarget?.val));
  const several = stars.filter(Boolean).length;
  const rest = list.length - several;
  const each = several === 1 ? count - rest : width;
  const map: number[] = [];
  if (several > 0 && (each === null || rest + several * each !== count)) {
    // What stands before the first star and behind the last one is still known.
    map.length = count;
    map.fill(-1);
    for (let i = 0; i < list.length && !stars[i]; i++) map[i] = i;
    for (let i = 1; i <= list.length && !stars[list.length - i]; i++) map[count - i] = list.length - i;
    return map;
  }
  stars.forEach((star, i) => {
    for (let n = star ? (each as number) : 1; n > 0; n--) map.push(i);
  });
  return map.length === count ? map : new Array(count).fill(-1);
}

/** A column of the result that tells what a column of the relation holds. */
export interface Returned {
  readonly index: number;
  readonly attribute: number;
  readonly typeName: string;
  readonly cast: string | null;
}

/** Names by which RETURNING calls the row before the change. */
function oldNames(returning: ReturningClause): ReadonlySet<string> {
  const names = new Set(['old']);
  for (const node of returning.options ?? []) {
    const option = (node as { ReturningOption?: { option: string; value: string } }).ReturningOption;
    if (option?.option === 'RETURNING_OPTION_OLD') names.add(option.value);
  }
  return names;
}

/**
 * Which columns of the result show columns of the changed row of this relation.
 * @param alone no other relation is in sight of RETURNING: names without a table are columns of this one
 */
export function returnedOf(
  returning: ReturningClause | undefined,
  relation: Relation,
  columns: readonly ResultColumn[] | null,
  schema: Schema,
  alone: boolean,
): Returned[] {
  if (returning === undefined || columns === null) return [];
  const old = oldNames(returning);
  const list = returning.exprs;
  const map = targetOfColumn(list, columns.length, alone ? relation.columns.length : null);
  const isOld = (node: Node | undefined) =>
    (node?.ColumnRef?.fields.length ?? 0) > 1 && old.has(string(node?.ColumnRef?.fields[0]) ?? '');
  const anyOld = list.some((node) => isOld(node.ResTarget?.val));
  const returned: Returned[] = [];
  columns.forEach((column, index) => {
    const value = list[map[index]]?.ResTarget?.val;
    if (value === undefined ? anyOld : isOld(value)) return;
    if (column.table === relation.oid) {
      const own = relation.columns.find(({ attribute }) => attribute === column.attribute);
      if (own) returned.push({ index, attribute: own.attribute, typeName: own.typeName, cast: null });
      return;
    }
    const inner = value?.TypeCast?.arg;
    const name = string(inner?.ColumnRef?.fields.at(-1));
    const own = relation.columns.find((each) => each.name === name);
    const typeName = schema.typeName(column.type, column.modifier);
    if (!alone || column.table !== 0 || own === undefined || isOld(inner) || typeName === undefined) return;
    const keeps = column.type === TEXT || (LOSSLESS.has(own.type) && LOSSLESS.has(column.type) && column.modifier < 0);
    if (keeps) returned.push({ index, attribute: own.attribute, typeName, cast: own.typeName });
  });
  // A column itself tells more than what was made of it.
  return returned.sort((a, b) => Number(a.cast !== null) - Number(b.cast !== null));
}

/** An INSERT, and what the client saw of its rows. */
export interface Sight {
  readonly insert: InsertStmt;
  readonly relation: Relation;
  readonly layout: Layout;
  /** Part of a larger statement. */
  readonly nested: boolean;
  /** Columns that its rows give, in their order; undefined for a part of a column. Null when they are not known. */
  readonly listed: readonly (TableColumn | undefined)[] | null;
  /** Number of rows; null for a SELECT. */
  readonly count: number | null;
  readonly returned: readonly Returned[];
  /** For each row of VALUES the row of the result; -1 where none is known for sure. */
  readonly match: readonly number[];
  /** A row may be left out. */
  readonly skips: boolean;
  /** ON CONFLICT DO UPDATE: what was seen may be of a row that was there before. */
  readonly updates: boolean;
  /** Values known from elsewhere, of the only row, by attribute. */
  readonly traced: ReadonlyMap<number, Known>;
}

/** The expression that a row of VALUES gives a column. */
export function itemOf(sight: Sight, row: number, position: number): Node | undefined {
  const select = sight.insert.selectStmt?.SelectStmt;
  return select?.valuesLists?.[row]?.List?.items?.[position];
}

/** What the client saw of a column in a row. */
export function knownOf(sight: Sight, seen: SeenStatement, row: number, attribute: number): Known | undefined {
  const index = sight.match[row] ?? -1;
  for (const each of index < 0 ? [] : sight.returned) {
    const value = each.attribute === attribute ? seen.rows[index]?.[each.index] : undefined;
    // The outer statement may have made a NULL where this row has none.
    if (value !== undefined && !(sight.nested && value.bytes === null)) return { ...each, value };
  }
  return sight.count === 1 ? sight.traced.get(attribute) : undefined;
}

/** The same for row k of the result. */
export function resultValue(sight: Sight, seen: SeenStatement, row: number, attribute: number): Known | undefined {
  const each = sight.returned.find((one) => one.attribute === attribute);
  const value = each && seen.rows[row]?.[each.index];
  return value && { ...each, value };
}

/** What an INSERT says and what is known of its rows; null when it cannot be understood. */
export function sightOf(
  source: Source,
  insert: InsertStmt,
  nested: boolean,
  seen: SeenStatement,
  schema: Schema,
): Sight | null {
  const relation = schema.relation(insert.relation.schemaname, insert.relation.relname);
  const layout = relation && layoutOf(source, insert);
  if (!layout) return null;
  const body = layout.body;
  const count = body.kind === 'select' ? null : body.kind === 'default' ? 1 : body.rows.length;
  const conflict = insert.onConflictClause;
  const updates = conflict?.action === 'ONCONFLICT_UPDATE';
  const nothing = conflict?.action === 'ONCONFLICT_NOTHING';
  const skips = nothing || conflict?.whereClause !== undefined || relation.triggers || relation.kind === 'v';
  const returned = nested
    ? nestedReturned(source, insert, relation, seen.columns)
    : returnedOf(insert.returningClause, relation, seen.columns, schema, true);
  const listed = listedColumns(insert, relation, layout);
  const traced = nested ? tracedValues(source, insert, relation, seen, schema) : givenValues(relation, seen);
  const sight = { insert, relation, layout, nested, listed, count, returned, match: [], skips, updates, traced };
  return { ...sight, match: matchRows(sight, seen) };
}

function givenValues(relation: Relation, seen: SeenStatement): Map<number, Known> {
  const traced = new Map<number, Known>();
  for (const [attribute, value] of seen.given ?? []) {
    const column = relation.columns.find((each) => each.attribute === attribute);
    if (column) traced.set(attribute, { value, typeName: 'bigint', cast: column.typeName });
  }
  return traced;
}

function listedColumns(insert: InsertStmt, relation: Relation, { body }: Layout): Sight['listed'] {
  if (insert.cols) {
    return targets(insert.cols).map(({ name, indirection }) =>
      indirection ? undefined : relation.columns.find((column) => column.name === name),
    );
  }
  if (body.kind === 'default') return [];
  if (body.kind === 'values') return relation.columns.slice(0, body.rows[0].items.length);
  let first = body.select;
  while (first.larg) first = first.larg;
  const width = first.valuesLists ? valuesOf(first)[0].length : first.targetList?.length;
  const star = first.targetList?.some((node) => isStar(node.ResTarget?.val));
  return star ? null : relation.columns.slice(0, width);
}

/** How often a table of this name is spoken of in the statement. */
function mentions(source: Source, name: string): number {
  let count = 0;
  walk(source.statement, (kind, body) => {
    if ((kind === 'RangeVar' || kind === 'relation') && (body as { relname?: string }).relname === name) count++;
  });
  return count;
}

/**
 * What of the whole statement's result comes from an INSERT in a WITH: PostgreSQL tells the origin of columns through it, but the same
 * table read elsewhere in the statement has the same origin.
 */
function nestedReturned(
  source: Source,
  insert: InsertStmt,
  relation: Relation,
  columns: readonly ResultColumn[] | null,
): Returned[] {
  const returning = insert.returningClause;
  if (returning === undefined || mentions(source, insert.relation.relname) !== 1) return [];
  const old = oldNames(returning);
  let before = false;
  walk(returning.exprs, (kind, body) => {
    const fields = kind === 'ColumnRef' ? (body as { fields: readonly Node[] }).fields : [];
    before ||= fields.length > 1 && old.has(string(fields[0]) ?? '');
  });
  if (before) return [];
  return (columns ?? []).flatMap(({ table, attribute }, index) => {
    const own = table === relation.oid ? relation.columns.find((each) => each.attribute === attribute) : undefined;
    return own ? [{ index, attribute, typeName: own.typeName, cast: null }] : [];
  });
}

/**
 * `WITH p AS (INSERT ... RETURNING id) INSERT INTO child (parent) SELECT id FROM p RETURNING parent`: the child's column tells what
 * the parent's was.
 */
function tracedValues(
  source: Source,
  insert: InsertStmt,
  relation: Relation,
  seen: SeenStatement,
  schema: Schema,
): Map<number, Known> {
  const traced = new Map<number, Known>();
  const outer = source.statement.InsertStmt;
  const name = outer?.withClause?.ctes
    .map((node) => node.CommonTableExpr)
    .find((each) => each?.ctequery.InsertStmt === insert)?.ctename;
  if (outer === undefined || name === undefined || seen.rows.length !== 1 || outer.onConflictClause) return traced;
  const sight = sightOf(source, outer, false, seen, schema);
  if (sight === null || sight.listed === null || sight.relation.triggers) return traced;
  const select = outer.selectStmt?.SelectStmt;
  const columnOf = (field: string | undefined): TableColumn | undefined => {
    for (const { name: alias, val } of targets(insert.returningClause?.exprs)) {
      const own = string(val?.ColumnRef?.fields.at(-1));
      if (isStar(val) ? true : own !== undefined && (alias ?? own) === field) {
        return relation.columns.find((column) => column.name === (isStar(val) ? field : own));
      }
    }
    return undefined;
  };
  sight.listed.forEach((target, position) => {
    const item = select?.valuesLists ? itemOf(sight, 0, position) : select?.targetList?.[position]?.ResTarget?.val;
    const inner = item?.SubLink?.subLinkType === 'EXPR_SUBLINK' ? item.SubLink.subselect.SelectStmt : undefined;
    const from = (inner ?? select)?.fromClause;
    const reference = inner ? inner.targetList?.[0]?.ResTarget?.val : item;
    const fields = reference?.ColumnRef?.fields;
    const only = from?.length === 1 ? from[0].RangeVar : undefined;
    if (!target || !fields || only?.relname !== name || only.schemaname !== undefined) return;
    const column = columnOf(string(fields.at(-1)));
    const known = column && resultValue(sight, seen, 0, target.attribute);
    if (column && known && known.value.bytes !== null) {
      traced.set(column.attribute, {
        value: known.value,
        typeName: known.cast ?? known.typeName,
        cast: column.typeName,
      });
    }
  });
  return traced;
}

/** For each row of VALUES the row of the result that shows it. */
function matchRows(sight: Sight, seen: SeenStatement): number[] {
  const { count, nested } = sight;
  if (count === null) return [];
  const none = new Array<number>(count).fill(-1);
  const rows = seen.rows.length;
  // Whatever the outer statement makes of one row, each row of its result shows that one.
  if (nested) return count === 1 && rows > 0 ? [0] : none;
  if (rows > count) return none;
  if (rows === count || (!seen.complete && !sight.skips)) return none.map((_, k) => (k < rows ? k : -1));
  return sight.relation.triggers || sight.relation.kind === 'v' ? none : matchByValues(sight, seen, none);
}

/** So that very many rows do not hold up everyone else. */
const MOST_COMPARISONS = 1_000_000;

/** Rows were left out: which of them the result shows is told by the constants in VALUES, or not at all. */
function matchByValues(sight: Sight, seen: SeenStatement, none: number[]): number[] {
  const columns = seen.columns ?? [];
  if (none.length * seen.rows.length > MOST_COMPARISONS) return none;
  const shown = sight.returned.filter(({ cast }) => cast === null);
  const fits = (k: number, row: number): boolean =>
    shown.every(({ index, attribute }) => {
      const position = sight.listed?.findIndex((column) => column?.attribute === attribute) ?? -1;
      const constant = position < 0 ? undefined : constantText(itemOf(sight, k, position));
      const text = plainText(seen.rows[row][index], columns[index].type);
      return constant === undefined || text === null || constant === text;
    });
  const match = [...none];
  let last = -1;
  for (let row = 0; row < seen.rows.length; row++) {
    const candidates = none.map((_, k) => k).filter((k) => fits(k, row));
    if (candidates.length !== 1 || candidates[0] <= last) return none;
    last = candidates[0];
    match[last] = row;
  }
  return match;
}

function constantText(node: Node | undefined): string | undefined {
  const constant = node?.A_Const;
  if (constant?.sval) return constant.sval.sval ?? '';
  if (constant?.ival) return String(constant.ival.ival ?? 0);
  return undefined;
}

/** Calls inside of a piece of the text; they are in its order. */
export function callsIn(calls: readonly Call[], { start, end }: Span): readonly Call[] {
  let low = 0;
  let high = calls.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (calls[middle].span.start < start) low = middle + 1;
    else high = middle;
  }
  let last = low;
  while (last < calls.length && calls[last].span.start < end) last++;
  return calls.slice(low, last);
}
