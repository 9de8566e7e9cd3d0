import type { Call } from './calls.js';
import {
  callsIn,
  isStar,
  itemOf,
  type Known,
  knownOf,
  type Returned,
  resultValue,
  returnedOf,
  type Sight,
  sightOf,
  targetOfColumn,
  valueRows,
  valuesOf,
} from './insert.js';
import { drawnByInserts } from './learn.js';
import {
  columnName,
  contains,
  Edits,
  type InsertStmt,
  type Node,
  quoted,
  type ResTarget,
  type ReturningClause,
  type SelectStmt,
  type Source,
  type Span,
  string,
  targets,
  type UpdateStmt,
  walk,
} from './parse.js';
import { changeOf, countedRows, isLeft, type Parsed, positionOf } from './read.js';
import type { Knowledge, Put, Relation, Rewriting, Schema, SeenStatement, TableColumn } from './types.js';
import { quotedLiteral, same, tellsTime } from './values.js';

export { learn } from './learn.js';
export { namesOf, type Parsed, read } from './read.js';

/** Types (pg_type.dat) that the transaction's time becomes by a cast: timestamptz, timestamp, date, time, timetz. */
const TIME_COLUMNS: ReadonlySet<number> = new Set([1184, 1114, 1082, 1083, 1266]);

/** Functions that give several rows for one, so that the rows of a SELECT cannot be counted where they stand. */
const SEVERAL_ROWS =
  /^(unnest|generate_series|generate_subscripts|regexp_matches|regexp_split_to_table|string_to_table|(json|jsonb)_(array_elements(_text)?|each(_text)?|object_keys|path_query(_tz)?|populate_recordset|to_recordset))$/;

/** What needs to stand in a statement although its value is not used: the number of its parameters must stay. */
const PARAMETERS = new Set(['ParamRef']);
const LOCKS = new Set(['lockingClause']);
const CHANGES = new Set(['InsertStmt', 'UpdateStmt', 'DeleteStmt', 'MergeStmt']);

/**
 * Writes the statement so that it yields what the client saw, and nothing made up where it saw nothing.
 * @param knowledge the time of the transaction, from whichever statement; of sequences what was learnt of the statements before this one
 */
export function rewrite(
  parsed: Parsed,
  seen: SeenStatement,
  schema: Schema,
  knowledge: Knowledge,
  put: Put,
): Rewriting {
  return new Rewriter(parsed, seen, schema, knowledge, put).run();
}

class Rewriter {
  readonly #source: Source;
  readonly #edits = new Edits();
  /** Made last, behind what else is put at the same place. */
  readonly #later: (() => void)[] = [];
  readonly #doubts = new Map<string, string>();
  /** Calls for which words were found already. */
  readonly #settled = new Set<Call>();
  /** Targets that were given their name, by their place. */
  readonly #named = new Set<number>();

  constructor(
    private readonly parsed: Parsed,
    private readonly seen: SeenStatement,
    private readonly schema: Schema,
    private readonly knowledge: Knowledge,
    private readonly put: Put,
  ) {
    this.#source = parsed.source;
  }

  run(): Rewriting {
    const { statement } = this.#source;
    for (const { insert, nested } of this.parsed.inserts) this.#insert(insert, nested);
    if (statement.InsertStmt) this.#returning(statement.InsertStmt.returningClause, this.seen.rows.length === 1);
    const change = changeOf(statement);
    if (change) this.#change(change);
    if (statement.SelectStmt) this.#select(statement.SelectStmt);
    this.#inPlace();
    this.#keepNames();
    for (const each of this.#later) each();
    this.#doubtRest();
    const text = this.#edits.empty ? null : this.#edits.apply(this.#source.bytes);
    return { text, doubts: this.#doubts };
  }

  // ---- values

  #sql({ value, typeName, cast }: Known): string {
    if (cast === null || value.bytes === null) return this.put(value, cast ?? typeName);
    // A number that the gateway itself wrote down, or a value in the result's form: it becomes one of the column from there.
    return `(${this.put(value, typeName)})::${cast}`;
  }

  /** The time as a value of the column; undefined when nothing is known or the type is none of a time. */
  #timeFor(column: TableColumn): string | undefined {
    const { time } = this.knowledge;
    if (time === null || column.filler.kind !== 'time' || !TIME_COLUMNS.has(column.type)) return undefined;
    return `((${time})::${column.typeName})`;
  }

  #typeOf(index: number): string | undefined {
    const column = this.seen.columns?.[index];
    return column && this.schema.typeName(column.type, column.modifier);
  }

  /** Puts a value in the place of an expression, whose parameters stay where there are any. */
  #replace(span: Span, node: unknown, value: string): void {
    const keeps = contains(node, PARAMETERS);
    // The server never evaluates the other branch: it is folded away when the statement is planned.
    this.#edits.replace(span, keeps ? `CASE WHEN true THEN ${value} ELSE ${this.#source.slice(span)} END` : value);
    this.#settle(span);
  }

  #settle(span: Span): void {
    for (const call of callsIn(this.parsed.calls, span)) this.#settled.add(call);
  }

  #doubt(index: number, words: string): void {
    const name = this.seen.columns?.[index]?.name;
    if (name !== undefined && !this.#doubts.has(name)) this.#doubts.set(name, words);
  }

  /** The function changes something, so that it must be called again; what it says is up to the server. */
  #acts(call: Call): boolean {
    if (call.kind === 'setval') return true;
    return call.kind === 'function' && this.schema.volatility(call.schema, call.name) === 'v';
  }

  /** The value may be another one each time. */
  #isVolatile(call: Call): boolean {
    return call.kind === 'made-up' || call.kind === 'nextval' || this.#acts(call);
  }

  /** There are calls in the piece that may differ, and all of them may be left out when the value is known. */
  #answerable(span: Span, node: unknown): boolean {
    const calls = callsIn(this.parsed.calls, span);
    return (
      calls.some(({ kind }) => kind !== 'function' && kind !== 'setval') &&
      !calls.some((call) => this.#acts(call)) &&
      !contains(node, LOCKS)
    );
  }

  #words(call: Call): string {
    if (call.kind === 'time') return `the time of the transaction (${call.name}), which the client saw nowhere else`;
    return `${call.name}()`;
  }

  // ---- INSERT

  #insert(insert: InsertStmt, nested: boolean): void {
    const sight = sightOf(this.#source, insert, nested, this.seen, this.schema);
    if (sight === null) return;
    if (sight.relation.triggers) {
      for (const { index } of sight.returned) this.#doubt(index, 'filled by a trigger');
    }
    if (sight.layout.body.kind === 'select') this.#insertSelect(sight, sight.layout.body);
    else this.#insertRows(sight);
    this.#setDefaults(insert.onConflictClause?.targetList, sight.relation, sight.returned);
  }

  /** What the client saw of a column, unless that may be of an older row and the statement uses the new one's otherwise. */
  #known(sight: Sight, row: number, column: TableColumn): Known | undefined {
    const known = knownOf(sight, this.seen, row, column.attribute);
    if (!sight.updates) return known;
    const given = sight.traced.get(column.attribute);
    if (given && sight.count === 1) return given;
    return known && this.#excludedOnlyItself(sight, column) ? known : undefined;
  }

  /** ON CONFLICT DO UPDATE uses the column's new value for nothing but the column itself. */
  #excludedOnlyItself({ insert }: Sight, column: TableColumn): boolean {
    const conflict = insert.onConflictClause;
    const others = targets(conflict?.targetList).filter(({ name, indirection, val }) => {
      const itself = name === column.name && !indirection && val?.ColumnRef !== undefined;
      return !itself && usesExcluded(val, column.name);
    });
    return others.length === 0 && !usesExcluded(conflict?.whereClause, column.name);
  }

  /** What a row is to be given for a column that its default would fill; undefined: leave it to the default. */
  #fill(sight: Sight, row: number, column: TableColumn): Known | string | undefined {
    if (column.generated) return undefined;
    const differs = column.filler.kind !== 'fixed';
    const time = this.#timeFor(column);
    if (sight.updates && time !== undefined) return time;
    const known = this.#known(sight, row, column);
    const traced = sight.count === 1 ? sight.traced.get(column.attribute) : undefined;
    if (known && differs) return known;
    if (known?.value.bytes && !sight.updates && (sight.relation.triggers || sight.relation.kind === 'v')) return known;
    return traced ?? time;
  }

  #insertRows(sight: Sight): void {
    const { relation, layout, count, listed } = sight;
    const rows = Array.from({ length: count ?? 0 }, (_, row) => row);
    const override = this.#overriding(sight);
    if (override === 'impossible') return;
    let system = override === 'system';
    const added: { column: TableColumn; values: (Known | string | undefined)[] }[] = [];
    for (const column of relation.columns) {
      const position = positionOf(sight, column);
      if (position >= 0) {
        for (const row of rows) system = this.#givenItem(sight, row, position, column) || system;
        continue;
      }
      const values = rows.map((row) => this.#fill(sight, row, column));
      if (values.every((value) => value === undefined)) this.#doubtUnknown(sight, column);
      else {
        added.push({ column, values });
        system ||= column.identityAlways || relation.kind === 'v';
        if (values.includes(undefined)) this.#doubtUnknown(sight, column);
      }
    }
    this.#doubtComputed(sight, added);
    const text = (value: Known | string | undefined) =>
      value === undefined ? 'DEFAULT' : typeof value === 'string' ? value : this.#sql(value);
    const names = added.map(({ column }) => quoted(column.name));
    const overriding = system && layout.overriding === null ? ' OVERRIDING SYSTEM VALUE' : '';
    if (layout.body.kind === 'default') {
      if (added.length === 0) return;
      const values = added.map(({ values: [value] }) => text(value));
      this.#edits.replace(layout.body.span, `(${names.join(', ')})${overriding} VALUES (${values.join(', ')})`);
      return;
    }
    this.#columnList(sight, names, listed ?? [], overriding);
    if (layout.body.kind !== 'values' || added.length === 0) return;
    const body = layout.body;
    for (const row of rows) {
      const values = added.map(({ values: all }) => text(all[row]));
      this.#later.push(() => this.#edits.insert(body.rows[row].end, `, ${values.join(', ')}`));
    }
  }

  /** Adds names to the list of columns, which is written where there is none. */
  #columnList({ layout }: Sight, names: string[], listed: readonly (TableColumn | undefined)[], behind: string): void {
    if (layout.listEnd !== null) {
      if (names.length > 0) this.#edits.insert(layout.listEnd, `, ${names.join(', ')}`);
      if (behind !== '') this.#edits.insert(layout.overridingAt, behind);
    } else if (names.length > 0) {
      const all = [...listed.map((column) => quoted(column?.name ?? '')), ...names];
      this.#edits.insert(layout.named, ` (${all.join(', ')})${behind}`);
    } else if (behind !== '') this.#edits.insert(layout.named, behind);
  }

  /**
   * OVERRIDING USER VALUE: identity columns are filled whatever is given, so what they were filled with can be given only with OVERRIDING
   * SYSTEM VALUE, and only if it is known of all of them.
   */
  #overriding(sight: Sight): 'system' | 'none' | 'impossible' {
    const { overriding } = sight.layout;
    if (!overriding?.user) return 'none';
    const rows = Array.from({ length: sight.count ?? 0 }, (_, row) => row);
    const ids = sight.relation.columns.filter(({ filler }) => filler.kind === 'sequence');
    const all = ids.every((column) => rows.every((row) => this.#known(sight, row, column) !== undefined));
    if (!all) {
      for (const column of ids) this.#doubtColumn(sight, column, 'drawn from a sequence, OVERRIDING USER VALUE');
      return 'impossible';
    }
    this.#edits.replace(overriding.span, 'OVERRIDING SYSTEM VALUE');
    return 'system';
  }

  /** @returns whether the value needs OVERRIDING SYSTEM VALUE */
  #givenItem(sight: Sight, row: number, position: number, column: TableColumn): boolean {
    const { body, overriding } = sight.layout;
    const item = itemOf(sight, row, position);
    if (body.kind !== 'values' || item === undefined || column.generated) return false;
    const span = body.rows[row].items[position];
    if (item.SetToDefault) {
      const value = this.#fill(sight, row, column);
      if (value === undefined) {
        this.#doubtUnknown(sight, column);
        return false;
      }
      this.#edits.replace(span, typeof value === 'string' ? value : this.#sql(value));
      return column.identityAlways || sight.relation.kind === 'v';
    }
    const known = this.#known(sight, row, column);
    if (known === undefined) return false;
    const filled = item.A_Const?.isnull && sight.relation.triggers && known.value.bytes !== null;
    const drawn = overriding?.user && column.filler.kind === 'sequence';
    if (filled || drawn || this.#answerable(span, item)) this.#replace(span, item, this.#sql(known));
    return false;
  }

  #doubtColumn(sight: Sight, column: TableColumn, words: string): void {
    for (const { index, attribute } of sight.returned) if (attribute === column.attribute) this.#doubt(index, words);
  }

  /** Rows of the client could not be told apart, or it got not all of them. */
  #doubtUnknown(sight: Sight, column: TableColumn): void {
    if (column.filler.kind === 'fixed' || column.generated) return;
    const matched = sight.match.filter((index) => index >= 0).length;
    const open = sight.match.some((index, row) => index >= 0 && this.#fill(sight, row, column) === undefined);
    // What the client did not see cannot differ.
    if (!open && matched === this.seen.rows.length && !(sight.nested && sight.count === null)) return;
    const what = column.filler.kind === 'sequence' ? 'drawn from a sequence' : 'made up by its default';
    const why = sight.updates
      ? 'ON CONFLICT may have found an older row'
      : sight.nested
        ? 'in rows of an INSERT in WITH that cannot be told apart'
        : 'in rows that cannot be told apart';
    this.#doubtColumn(sight, column, `${what} ${why}`);
  }

  /** Expressions of RETURNING over columns whose values are not known. */
  #doubtComputed(sight: Sight, added: readonly { column: TableColumn; values: readonly unknown[] }[]): void {
    if (this.seen.rows.length === 0) return;
    const open = sight.relation.columns.filter((column) => {
      const given = added.find((each) => each.column === column);
      const position = positionOf(sight, column);
      if (column.filler.kind === 'fixed') return false;
      if (position < 0) return given === undefined || given.values.includes(undefined);
      const rows = Array.from({ length: sight.count ?? 0 }, (_, row) => row);
      return rows.some((row) => isLeft(sight, row, position) && this.#fill(sight, row, column) === undefined);
    });
    const columns = this.seen.columns ?? [];
    if (open.length === 0) return;
    for (const { name, val } of targets(sight.insert.onConflictClause?.targetList)) {
      const target = sight.relation.columns.find((column) => column.name === name);
      const uses = target && open.some((column) => usesExcluded(val, column.name));
      if (uses) this.#doubtColumn(sight, target, 'computed from EXCLUDED, which a default made up');
    }
    if (sight.nested) {
      const shows = open.some(({ name }) => mentionsColumn(sight.insert.returningClause, name, sight.relation.name));
      columns.forEach(({ table }, index) => {
        if (!shows || (table !== 0 && table !== sight.relation.oid)) return;
        this.#doubt(index, 'computed from what an INSERT in WITH made up');
      });
      return;
    }
    const list = sight.insert.returningClause?.exprs ?? [];
    const names = new Set([
      ...open.map(({ name }) => name),
      sight.relation.name,
      sight.insert.relation.alias?.aliasname,
    ]);
    targetOfColumn(list, columns.length, sight.relation.columns.length).forEach((target, index) => {
      if (columns[index].table !== 0 || sight.returned.some((each) => each.index === index)) return;
      walk(list[target]?.ResTarget?.val ?? {}, (kind, body) => {
        const fields = kind === 'ColumnRef' ? (body as { fields: readonly Node[] }).fields : [];
        const last = fields.at(-1);
        if (last && (last.A_Star || names.has(string(last))))
          this.#doubt(index, 'computed from a column that its default made up');
      });
    });
  }

  // ---- INSERT ... SELECT

  #insertSelect(sight: Sight, { select, span }: { select: SelectStmt; span: Span }): void {
    const { relation, layout, listed } = sight;
    const unlisted = relation.columns.filter(
      (column) => listed !== null && !column.generated && !listed.includes(column),
    );
    const shown = (column: TableColumn) => sight.returned.some(({ attribute }) => attribute === column.attribute);
    const direct = this.#isDirect(select);
    const items = direct ? this.#selectItems(select) : null;
    const matched = !sight.nested && !sight.insert.onConflictClause && !layout.overriding?.user;
    const added: { column: TableColumn; sql: string }[] = [];
    if (matched) {
      for (const column of unlisted) {
        const sql = this.#fillSelected(sight, column);
        if (sql !== undefined) added.push({ column, sql });
        else if (this.seen.rows.length > 0) this.#doubtUnknown(sight, column);
      }
      if (items) this.#replaceSelected(sight, select, items);
    } else {
      for (const column of relation.columns) {
        const known = listed?.includes(column);
        if (shown(column) && !known) this.#doubtUnknown(sight, column);
      }
    }
    if (listed === null && matched) for (const column of relation.columns) this.#doubtUnknown(sight, column);
    this.#doubtComputed(
      sight,
      added.map(({ column }) => ({ column, values: [] })),
    );
    if (added.length === 0) return;
    if (!direct && !this.#wrappable(select, listed)) {
      for (const { column } of added) this.#doubtUnknown(sight, column);
      return;
    }
    const names = added.map(({ column }) => quoted(column.name));
    const system = added.some(({ column }) => column.identityAlways) || relation.kind === 'v';
    const overriding = system && layout.overriding === null ? ' OVERRIDING SYSTEM VALUE' : '';
    this.#columnList(sight, names, listed ?? [], overriding);
    const values = added.map(({ sql }) => sql).join(', ');
    const last = items?.at(-1);
    if (last) this.#later.push(() => this.#edits.insert(last.end, `, ${values}`));
    else {
      this.#edits.insert(span.start, `SELECT "outlive".*, ${values} FROM (`);
      this.#later.push(() => this.#edits.insert(span.end, ') AS "outlive"'));
    }
  }

  /** The value of a column by the number of the row; undefined when it cannot be told for each of them. */
  #fillSelected(sight: Sight, column: TableColumn): string | undefined {
    const { seen } = this;
    const differs = column.filler.kind !== 'fixed';
    const values = seen.rows.map((_, row) => resultValue(sight, seen, row, column.attribute));
    const known = values.filter((value) => value !== undefined);
    const fills = differs || (sight.relation.triggers && known.some(({ value }) => value.bytes !== null));
    if (!fills) return undefined;
    const time = this.#timeFor(column);
    if (known.length === 0 || known.length < values.length) return time;
    if (seen.complete) return this.#byRow(known, null, column.typeName);
    if (column.filler.kind === 'sequence') {
      const sequence = this.schema.sequenceOf(column.filler.sequence);
      if (sequence === undefined) return undefined;
      const name = quotedLiteral(`${quoted(sequence.schema)}.${quoted(sequence.name)}`);
      return this.#byRow(known, `pg_catalog.nextval(${name}::pg_catalog.regclass)`, column.typeName);
    }
    return time && this.#byRow(known, time, column.typeName);
  }

  /** SQL that yields the k-th of these values in the k-th row, and something else in all further ones. */
  #byRow(known: readonly Known[], rest: string | null, typeName: string): string {
    const one = known.every(({ value }) => same(value, known[0].value)) && (known.length > 1 || rest === null);
    if (one && rest === null) return this.#sql(known[0]);
    const values = known.map((each) => this.#sql(each));
    const row = 'pg_catalog.row_number() OVER ()';
    // CASE looks at one value after the other, which takes too long for very many.
    if (values.length > 1000 && !typeName.endsWith(']')) {
      const picked = `(ARRAY[${values.join(', ')}])[(${row})::integer]`;
      return rest === null ? picked : `CASE WHEN ${row} <= ${values.length} THEN ${picked} ELSE ${rest} END`;
    }
    const cases = values.map((value, i) => `WHEN ${i + 1} THEN ${value}`);
    return `CASE ${row} ${cases.join(' ')}${rest === null ? '' : ` ELSE ${rest}`} END`;
  }

  /** Made-up values that the SELECT itself says. */
  #replaceSelected(sight: Sight, select: SelectStmt, items: readonly Span[]): void {
    const { seen } = this;
    sight.listed?.forEach((column, position) => {
      const target = select.targetList?.[position]?.ResTarget;
      const node = target?.val;
      if (!column || column.generated || !node || !items[position] || seen.rows.length === 0) return;
      const span = this.#expression(items[position], target);
      const volatile = callsIn(this.parsed.calls, span).some((call) => this.#isVolatile(call));
      if (!volatile || !seen.complete || !this.#answerable(span, node)) return;
      const values = seen.rows.map((_, row) => resultValue(sight, seen, row, column.attribute));
      const known = values.filter((value) => value !== undefined);
      if (known.length === values.length) this.#replace(span, node, this.#byRow(known, null, column.typeName));
    });
  }

  /** Further targets can be added to the SELECT, and count its rows as they are inserted. */
  #isDirect(select: SelectStmt): boolean {
    const { targetList, distinctClause, sortClause, limitOffset, limitCount, lockingClause, larg } = select;
    if (larg || !targetList || distinctClause || sortClause || limitOffset || limitCount || lockingClause) return false;
    const items = this.#selectItems(select);
    return items !== null && !this.#severalRows(items);
  }

  /**
   * The SELECT can stand inside of another. Its literals and parameters have no type there unless they are told the one that the column
   * gave them.
   */
  #wrappable(select: SelectStmt, listed: Sight['listed']): boolean {
    if (listed === null || contains(select.withClause, CHANGES)) return false;
    const untyped: { at: number; typeName: string }[] = [];
    const visit = (each: SelectStmt): boolean => {
      if (each.larg && each.rarg) return visit(each.larg) && visit(each.rarg);
      const lists = each.valuesLists ? valuesOf(each) : [targets(each.targetList).map(({ val }) => val ?? {})];
      for (const list of lists) {
        for (const [position, node] of list.entries()) {
          const bare = (node.A_Const ?? node.ParamRef) as (Node['A_Const'] & { location?: number }) | undefined;
          if (bare === undefined || bare.ival || bare.fval || bare.boolval) continue;
          const column = listed[position];
          if (!column || bare.location === undefined) return false;
          const token = this.#source.tokenAt(bare.location);
          untyped.push({ at: this.#source.end(token), typeName: column.typeName });
        }
      }
      return true;
    };
    if (!visit(select)) return false;
    for (const { at, typeName } of untyped) this.#edits.insert(at, `::${typeName}`);
    return true;
  }

  // ---- UPDATE, DELETE, MERGE

  #change(change: UpdateStmt): void {
    const relation = this.schema.relation(change.relation.schemaname, change.relation.relname);
    const alone = !change.fromClause && !change.usingClause && !change.sourceRelation;
    const { seen } = this;
    const returned = relation ? returnedOf(change.returningClause, relation, seen.columns, this.schema, alone) : [];
    if (relation?.triggers && !this.#source.statement.DeleteStmt) {
      for (const { index } of returned) this.#doubt(index, 'filled by a trigger');
    }
    if (this.#source.statement.UpdateStmt && relation) {
      this.#set(change, relation, returned);
      this.#setDefaults(change.targetList, relation, returned);
    }
    if (this.#source.statement.MergeStmt) this.#doubtMerge(change, relation, returned);
    this.#returning(change.returningClause, seen.complete && seen.rows.length === 1);
  }

  /** `SET column = expression` where the expression is made up and the client saw what came of it. */
  #set(change: UpdateStmt, relation: Relation, returned: readonly Returned[]): void {
    const { seen } = this;
    const first = change.targetList?.[0]?.ResTarget?.location;
    if (first === undefined) return;
    // (a, b) = ... begins one token before its first column.
    const token = this.#source.tokenAt(first);
    const { items } = this.#source.list(this.#source.word(token - 1) === '(' ? token - 1 : token);
    for (const { name, indirection, val, location = -1 } of targets(change.targetList)) {
      const span = items.find(({ start, end }) => location >= start && location < end);
      if (!span || !val || val.MultiAssignRef) continue;
      const column = relation.columns.find((each) => each.name === name);
      const shown = returned.find(({ attribute, cast }) => cast === null && attribute === column?.attribute);
      if (indirection || !column || !shown || callsIn(this.parsed.calls, span).length === 0) continue;
      const equals = this.#source.tokenAt(span.start) + 1;
      if (this.#source.word(equals) !== '=') continue;
      const right = { start: this.#source.start(equals + 1), end: span.end };
      if (!this.#answerable(right, val)) continue;
      const values = seen.rows.map((row) => row[shown.index]);
      const agree = seen.complete && values.length > 0 && values.every((value) => same(value, values[0]));
      if (agree) this.#replace(right, val, this.put(values[0], column.typeName));
      else {
        const call = callsIn(this.parsed.calls, right).find((each) => this.#isVolatile(each));
        if (call) this.#doubt(shown.index, `${this.#words(call)} in several rows`);
      }
    }
  }

  /** `SET column = DEFAULT`: the time of the transaction, or what the client saw come of it. */
  #setDefaults(list: readonly Node[] | undefined, relation: Relation, returned: readonly Returned[]): void {
    const { seen } = this;
    for (const { name, indirection, val } of targets(list)) {
      const column = relation.columns.find((each) => each.name === name);
      if (!val?.SetToDefault || indirection || !column || column.generated || column.filler.kind === 'fixed') continue;
      const shown = returned.find(({ attribute, cast }) => cast === null && attribute === column.attribute);
      const values = shown ? seen.rows.map((row) => row[shown.index]) : [];
      const agree = seen.complete && values.length > 0 && values.every((value) => same(value, values[0]));
      const time = this.#timeFor(column);
      const value = time ?? (agree && !column.identityAlways ? this.put(values[0], column.typeName) : undefined);
      const token = this.#source.tokenAt(val.SetToDefault.location);
      const span = { start: this.#source.start(token), end: this.#source.end(token) };
      if (value !== undefined) this.#edits.replace(span, value);
      else if (shown) this.#doubt(shown.index, 'made up by its default');
    }
  }

  #doubtMerge(change: UpdateStmt, relation: Relation | undefined, returned: readonly Returned[]): void {
    const inserts = (change.mergeWhenClauses ?? []).some(
      (node) => (node as { MergeWhenClause?: { commandType: string } }).MergeWhenClause?.commandType === 'CMD_INSERT',
    );
    for (const { index, attribute } of inserts ? returned : []) {
      const column = relation?.columns.find((each) => each.attribute === attribute);
      if (column && column.filler.kind !== 'fixed') this.#doubt(index, 'made up by its default in a MERGE');
    }
  }

  /** Expressions of RETURNING that are made up themselves. */
  #returning(returning: ReturningClause | undefined, single: boolean): void {
    const first = returning?.exprs[0]?.ResTarget?.location;
    if (returning === undefined || first === undefined) return;
    const { items } = this.#source.list(this.#source.tokenAt(first));
    if (items.length === returning.exprs.length) this.#answerTargets(returning.exprs, items, single, null);
  }

  // ---- SELECT

  #selectItems(select: SelectStmt): Span[] | null {
    const first = select.targetList?.[0]?.ResTarget?.location;
    if (first === undefined || first < 0) return null;
    const { items } = this.#source.list(this.#source.tokenAt(first));
    return items.length === select.targetList?.length ? items : null;
  }

  /**
   * Puts what was seen in the place of targets.
   * @param single there is one row, and the client has it
   * @param width of a star
   */
  #answerTargets(list: readonly Node[], items: readonly Span[], single: boolean, width: number | null): void {
    const { seen } = this;
    const map = targetOfColumn(list, seen.columns?.length ?? 0, width);
    list.forEach((node, i) => {
      const target = node.ResTarget;
      const index = map.indexOf(i);
      if (!target?.val || isStar(target.val) || index < 0 || seen.rows.length === 0) return;
      if (!this.#answerable(items[i], target.val)) return;
      const typeName = this.#typeOf(index);
      // The time is the same in each row.
      const everywhere = tellsTime(target.val) !== null && this.knowledge.time === null;
      if (typeName === undefined || !(single || everywhere)) return;
      const expression = this.#expression(items[i], target);
      this.#replace(expression, target.val, this.put(seen.rows[0][index], typeName));
      if (target.name === undefined)
        this.#edits.insert(items[i].end, ` AS ${quoted((seen.columns ?? [])[index].name)}`);
      this.#named.add(items[i].start);
    });
  }

  /** A target without its alias. */
  #expression(item: Span, { name }: ResTarget): Span {
    if (name === undefined) return item;
    const last = this.#source.tokenAt(item.end) - 1;
    const end = this.#source.word(last - 1) === 'as' ? last - 2 : last - 1;
    return { start: item.start, end: this.#source.end(end) };
  }

  #select(select: SelectStmt): void {
    const { seen } = this;
    if (select.intoClause || seen.columns === null || seen.rows.length === 0) return;
    if (select.valuesLists) {
      this.#values(select);
      return;
    }
    const items = select.larg ? null : this.#selectItems(select);
    if (select.larg || items === null) {
      this.#answerAll(select);
      return;
    }
    const none = !select.fromClause;
    const single = seen.rows.length === 1 && (seen.complete || (none && !this.#severalRows(items)));
    const volatile = items.some((span) => callsIn(this.parsed.calls, span).some((call) => this.#isVolatile(call)));
    if (!single && volatile && (none || this.#fromFunctions(select)) && this.#answerAll(select)) return;
    this.#answerTargets(select.targetList ?? [], items, single, null);
  }

  /** Calls that may give several rows for one. */
  #severalRows(items: readonly Span[]): boolean {
    const words = items.flatMap(
      (span) =>
        this.#source
          .slice(span)
          .toLowerCase()
          .match(/[a-z_]+/g) ?? [],
    );
    return words.some((word) => SEVERAL_ROWS.test(word));
  }

  /** Its rows come from functions alone, so that nothing of the database is in them. */
  #fromFunctions({ fromClause, withClause, targetList, whereClause }: SelectStmt): boolean {
    const parts = [fromClause, targetList, whereClause];
    return (
      !withClause && fromClause !== undefined && !contains(parts, new Set(['RangeVar', 'SubLink', 'RangeSubselect']))
    );
  }

  /** Puts the rows that were seen before those that are still to come, if nothing but made-up values is in them. */
  #answerAll(select: SelectStmt): boolean {
    const { seen, parsed } = this;
    const columns = seen.columns ?? [];
    const types = columns.map((_, i) => this.#typeOf(i));
    if (parsed.calls.some((call) => this.#acts(call)) || select.withClause || contains(select, LOCKS)) return false;
    if (contains(select, new Set(['RangeVar'])) || types.includes(undefined)) return false;
    if (!parsed.calls.some((call) => this.#isVolatile(call))) return false;
    // Rows that may or may not be still to come would be drawn, and what the sequence said last would be another value.
    const count = countedRows(select);
    const complete = seen.complete || count === seen.rows.length;
    if (!complete && count === null && parsed.calls.some(({ kind }) => kind === 'nextval')) return false;
    const rows = seen.rows.map((row) => `(${row.map((value, i) => this.put(value, types[i] as string)).join(', ')})`);
    const names = columns.map((_, i) => `"c${i + 1}"`);
    const shown = columns.map(({ name }, i) => `${names[i]} AS ${quoted(name)}`);
    const known = `SELECT ${shown.join(', ')} FROM (VALUES ${rows.join(', ')}) AS "outlive" (${names.join(', ')})`;
    const { whole } = this.#source;
    if (complete && !contains(select, PARAMETERS)) this.#edits.replace(whole, known);
    else {
      const rest = complete ? 'LIMIT 0' : `OFFSET ${seen.rows.length}`;
      const inner = this.#source.slice(whole);
      this.#edits.replace(whole, `${known} UNION ALL (SELECT * FROM (${inner}\n) AS "outlive" ${rest})`);
    }
    this.#settle(whole);
    return true;
  }

  #values(select: SelectStmt): void {
    const first = this.#source.find(0, new Set(['values']));
    const rows = select.sortClause || select.limitOffset ? null : valueRows(this.#source, first, select);
    valuesOf(select).forEach((items, k) => {
      for (const [i, item] of items.entries()) {
        const span = rows?.[k].items[i];
        const value = this.seen.rows[k]?.[i];
        const typeName = this.#typeOf(i);
        if (!span || !value || typeName === undefined || !this.#answerable(span, item)) continue;
        this.#replace(span, item, this.put(value, typeName));
      }
    });
  }

  // ---- everywhere

  /** The transaction's time, and what the sequences said last, wherever the statement asks for them. */
  #inPlace(): void {
    const { time, currval, lastval } = this.knowledge;
    const drawn = this.#drawnHere();
    for (const call of this.parsed.calls) {
      if (this.#settled.has(call)) continue;
      let value: string | undefined;
      if (call.kind === 'time') value = time === null ? undefined : call.time?.(time);
      else if (call.kind === 'currval') {
        const sequence = this.schema.sequence(call.sequence ?? '');
        if (sequence && !drawn.has(sequence.oid)) value = bigintLiteral(currval.get(sequence.oid));
      } else if (call.kind === 'lastval' && drawn.size === 0) value = bigintLiteral(lastval);
      if (value === undefined) continue;
      if (call.from) {
        // A function in FROM: only what looks like one can stand there.
        if (call.from.ordinality || call.from.is_rowsfrom) continue;
        const name = call.from.alias ? '' : ` AS ${quoted(call.name.toLowerCase())}`;
        value = `COALESCE(${value})${name}`;
      }
      this.#edits.replace(call.span, value);
      this.#settled.add(call);
    }
  }

  /** Sequences that the statement itself draws from: what they say meanwhile depends on the order in which it is executed. */
  #drawnHere(): Set<number> {
    const drawn = new Set<number>();
    for (const call of this.parsed.calls) {
      const sequence = call.kind === 'nextval' ? this.schema.sequence(call.sequence ?? '') : undefined;
      if (sequence) drawn.add(sequence.oid);
    }
    for (const { sequence } of drawnByInserts(this.parsed, this.seen, this.schema)) drawn.add(sequence.oid);
    return drawn;
  }

  /** A target whose expression was changed keeps the name that the expression gave it. */
  #keepNames(): void {
    const lists: (readonly Node[])[] = [];
    const selects = (kind: string, body: object) => {
      if (kind === 'SelectStmt' || kind === 'larg' || kind === 'rarg')
        lists.push((body as SelectStmt).targetList ?? []);
      if (kind === 'returningClause') lists.push((body as ReturningClause).exprs);
    };
    walk(this.#source.statement, selects);
    for (const list of lists) {
      const first = list[0]?.ResTarget?.location ?? -1;
      const unnamed = list.some((node) => node.ResTarget?.name === undefined);
      if (first < 0 || !unnamed) continue;
      const { items } = this.#source.list(this.#source.tokenAt(first));
      if (items.length !== list.length) continue;
      list.forEach((node, i) => {
        const target = node.ResTarget;
        if (!target?.val || target.name !== undefined || !this.#edits.touches(items[i])) return;
        const name = columnName(target.val);
        if (name !== null && !this.#named.has(items[i].start)) this.#edits.insert(items[i].end, ` AS ${quoted(name)}`);
      });
    }
  }

  /** What of the calls is left to the server. */
  #doubtRest(): void {
    const columns = this.seen.columns ?? [];
    const { SelectStmt: select, InsertStmt: insert } = this.#source.statement;
    const list = select?.targetList ?? (insert ?? changeOf(this.#source.statement))?.returningClause?.exprs ?? [];
    const first = list[0]?.ResTarget?.location ?? -1;
    const items = first < 0 ? [] : this.#source.list(this.#source.tokenAt(first)).items;
    const map = targetOfColumn(list, columns.length, null);
    for (const call of this.parsed.calls) {
      const differs = call.kind !== 'function' || this.#acts(call);
      if (!differs || call.kind === 'setval' || this.#settled.has(call)) continue;
      const own = items.findIndex(({ start, end }) => call.span.start >= start && call.span.end <= end);
      const words =
        select?.fromClause && own >= 0 ? `${this.#words(call)} over the rows of a table` : this.#words(call);
      columns.forEach((_, index) => {
        if (own < 0 || map[index] === own || map[index] < 0) this.#doubt(index, words);
      });
    }
  }
}

/** Whether an expression speaks of a column, by its name or with the whole row. */
function mentionsColumn(root: unknown, column: string, relation: string): boolean {
  let found = false;
  walk(root, (kind, body) => {
    const last = kind === 'ColumnRef' ? (body as { fields: readonly Node[] }).fields.at(-1) : undefined;
    found ||= last?.A_Star !== undefined || [column, relation].includes(string(last) ?? '');
  });
  return found;
}

/** Whether an expression speaks of a column of the row that ON CONFLICT did not insert. */
function usesExcluded(root: unknown, column: string): boolean {
  let found = false;
  walk(root, (kind, body) => {
    const fields = kind === 'ColumnRef' ? (body as { fields: readonly Node[] }).fields : [];
    if (string(fields[0]) !== 'excluded') return;
    found ||= fields[1]?.A_Star !== undefined || fields.length < 2 || string(fields[1]) === column;
  });
  return found;
}

function bigintLiteral(value: string | null | undefined): string | undefined {
  return value === null || value === undefined ? undefined : `('${value}'::bigint)`;
}
