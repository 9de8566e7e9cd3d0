import { type Call, isTime } from './calls.js';
import { itemOf, knownOf, resultValue, returnedOf, type Sight, sightOf, targetOfColumn, valuesOf } from './insert.js';
import { type Node, string, targets } from './parse.js';
import { callAt, changeOf, countedRows, isLeft, type Parsed, positionOf } from './read.js';
import type { Draws, Knowledge, Schema, SeenStatement, SeenValue, Sequence, TableColumn } from './types.js';
import { integerOf, precisionOf, tellsTime, timeOf } from './values.js';

/** Values that are drawn from one sequence by one column or target. */
export interface Drawing {
  readonly sequence: Sequence;
  readonly attribute: number;
  readonly rows: number | null;
  /** By row; undefined where it was not seen. Empty where the rows are not known. */
  readonly values: readonly (SeenValue | undefined)[];
  /** What shows these values may also show older ones. */
  readonly uncertain: boolean;
  /** The nextval that draws them; none for a default. */
  readonly calls: readonly Call[];
}

/**
 * Takes from what the client saw what later (and earlier) statements must agree with: the transaction's time, and what sequences say.
 * May be called again for the same statement: it changes nothing then, as long as no other was learnt in between.
 * @param knowledge as it is before this statement, and afterwards behind it
 */
export function learn(parsed: Parsed, seen: SeenStatement, schema: Schema, knowledge: Knowledge): Draws {
  for (const time of timesOf(parsed, seen, schema)) {
    if (knowledge.time === null || precisionOf(time) > precisionOf(knowledge.time)) knowledge.time = time;
  }
  const drawings = [...drawnByInserts(parsed, seen, schema), ...drawnBySelect(parsed, seen, schema)].filter(
    ({ rows }) => rows !== 0,
  );
  for (const call of parsed.calls) {
    const sequence = call.kind === 'nextval' ? schema.sequence(call.sequence ?? '') : undefined;
    const shown = drawings.some(({ calls }) => calls.includes(call));
    if (sequence && !shown) {
      drawings.push({ sequence, attribute: 0, rows: null, values: [], uncertain: true, calls: [call] });
    }
  }
  for (const drawing of drawings) note(drawing, knowledge);
  const last = drawings.at(-1);
  if (last) knowledge.lastval = lastOf(last);
  const asked = askedOf(parsed, seen, schema);
  for (const { sequence, value } of asked) {
    const number = integerOf(value);
    if (number === null) continue;
    if (sequence === null) knowledge.lastval = String(number);
    else {
      knowledge.currval.set(sequence, String(number));
      hold(schema.sequenceOf(sequence), number, knowledge);
    }
  }
  for (const call of parsed.calls) {
    const sequence = call.kind === 'setval' ? schema.sequence(call.sequence ?? '') : undefined;
    // What the server itself was told it knows by itself.
    if (sequence) knowledge.currval.delete(sequence.oid);
  }
  return {
    drawn: drawings.map(({ sequence, attribute, rows, values, uncertain }) => {
      const aligned = !uncertain && values.length > 0 && values[0] !== undefined;
      const until = values.indexOf(undefined);
      const known = values.slice(0, until < 0 ? values.length : until) as SeenValue[];
      const whole = values.slice(known.length).every((value) => value === undefined);
      return { sequence: sequence.oid, attribute, rows, values: aligned && whole ? known : null };
    }),
    asked,
  };
}

function lastOf({ values, rows, uncertain }: Drawing): string | null {
  if (uncertain || rows === null || values.length !== rows) return null;
  return integerOf(values.at(-1))?.toString() ?? null;
}

function note(drawing: Drawing, knowledge: Knowledge): void {
  for (const value of drawing.values) {
    const number = integerOf(value);
    if (number !== null) hold(drawing.sequence, number, knowledge);
  }
  const last = lastOf(drawing);
  if (last !== null) knowledge.currval.set(drawing.sequence.oid, last);
  else knowledge.currval.delete(drawing.sequence.oid);
}

function hold(sequence: Sequence | undefined, value: bigint, knowledge: Knowledge): void {
  if (sequence === undefined) return;
  const before = knowledge.held.get(sequence.oid);
  const farther = before === undefined || (sequence.increment < 0n ? value < before : value > before);
  if (farther) knowledge.held.set(sequence.oid, value);
}

/** What the INSERTs of a statement draw, in their order. */
export function drawnByInserts(parsed: Parsed, seen: SeenStatement, schema: Schema): Drawing[] {
  const drawings: Drawing[] = [];
  for (const { insert, nested } of parsed.inserts) {
    const sight = sightOf(parsed.source, insert, nested, seen, schema);
    if (sight === null) continue;
    for (const column of sight.relation.columns) {
      const drawing = drawnByColumn(parsed, sight, column, seen, schema);
      if (drawing) drawings.push(drawing);
    }
  }
  return drawings;
}

function drawnByColumn(
  parsed: Parsed,
  sight: Sight,
  column: TableColumn,
  seen: SeenStatement,
  schema: Schema,
): Drawing | null {
  const { attribute, filler } = column;
  const own = filler.kind === 'sequence' ? schema.sequenceOf(filler.sequence) : undefined;
  const position = positionOf(sight, column);
  const uncertain = sight.updates;
  if (sight.layout.body.kind === 'select') {
    const call = callAt(parsed.calls, sight.layout.body.select.targetList?.[position]?.ResTarget?.val);
    const sequence = position < 0 ? own : call?.kind === 'nextval' ? schema.sequence(call.sequence ?? '') : undefined;
    if (sequence === undefined) return null;
    const values = sight.nested ? [] : seen.rows.map((_, k) => resultValue(sight, seen, k, attribute)?.value);
    const known = !sight.nested && seen.complete && !sight.skips && sight.insert.returningClause !== undefined;
    const calls = call && position >= 0 ? [call] : [];
    return { sequence, attribute, rows: known ? values.length : null, values, uncertain, calls };
  }
  const values: (SeenValue | undefined)[] = [];
  const calls: Call[] = [];
  let sequence: Sequence | undefined;
  for (let row = 0; row < (sight.count ?? 0); row++) {
    const call = callAt(parsed.calls, position < 0 ? undefined : itemOf(sight, row, position));
    const from = isLeft(sight, row, position)
      ? own
      : call?.kind === 'nextval'
        ? schema.sequence(call.sequence ?? '')
        : undefined;
    // The identity column's own sequence is drawn from whatever is given.
    const given = from ?? (sight.layout.overriding?.user ? own : undefined);
    if (given === undefined) continue;
    sequence = given;
    if (call) calls.push(call);
    values.push(knownOf(sight, seen, row, attribute)?.value);
  }
  return sequence ? { sequence, attribute, rows: values.length, values, uncertain, calls } : null;
}

/** Targets of the outermost SELECT by result column; empty where they cannot be told. */
function selectTargets({ source }: Parsed, count: number): (Node | undefined)[] {
  const list = source.statement.SelectStmt?.targetList;
  if (list === undefined) return [];
  return targetOfColumn(list, count, null).map((i) => list[i]?.ResTarget?.val);
}

function drawnBySelect(parsed: Parsed, seen: SeenStatement, schema: Schema): Drawing[] {
  const select = parsed.source.statement.SelectStmt;
  if (select === undefined) return [];
  const drawings: Drawing[] = [];
  const add = (call: Call | undefined, values: SeenValue[], rows: number | null) => {
    const sequence = call?.kind === 'nextval' ? schema.sequence(call.sequence ?? '') : undefined;
    if (call === undefined || sequence === undefined) return;
    drawings.push({ sequence, attribute: 0, rows, values, uncertain: false, calls: [call] });
  };
  valuesOf(select).forEach((items, k) => {
    for (const [i, item] of items.entries()) {
      const value = seen.rows[k]?.[i];
      add(callAt(parsed.calls, item), value ? [value] : [], 1);
    }
  });
  selectTargets(parsed, seen.columns?.length ?? 0).forEach((target, i) => {
    // With one row in sight it does not matter whether the client got the end: there can be one only without FROM.
    const one = seen.rows.length === 1 && !select.fromClause;
    const all = seen.complete || one || countedRows(select) === seen.rows.length;
    const rows = all ? seen.rows.length : null;
    const values = seen.rows.map((row) => row[i]);
    add(callAt(parsed.calls, target), values, rows);
  });
  return drawings;
}

function askedOf(parsed: Parsed, seen: SeenStatement, schema: Schema): Draws['asked'][number][] {
  const asked: Draws['asked'][number][] = [];
  const list = selectTargets(parsed, seen.columns?.length ?? 0);
  for (const call of parsed.calls) {
    if (call.kind !== 'currval' && call.kind !== 'lastval') continue;
    const sequence = call.kind === 'lastval' ? null : schema.sequence(call.sequence ?? '')?.oid;
    if (sequence === undefined) continue;
    const index = list.findIndex((target) => callAt(parsed.calls, target) === call);
    asked.push({ sequence, value: seen.rows[0]?.[index] ?? null });
  }
  return asked;
}

/** Times that the client saw, as SQL. */
function timesOf(parsed: Parsed, seen: SeenStatement, schema: Schema): string[] {
  const times: string[] = [];
  const columns = seen.columns ?? [];
  const first = (index: number) => seen.rows.map((row) => row[index]).find((value) => value?.bytes);
  const add = (node: Node | undefined, index: number) => {
    const told = node && columns[index] ? tellsTime(node) : null;
    const value = told && first(index);
    if (!told || !value) return;
    const { type, modifier } = columns[index];
    const time = timeOf(value, type, modifier < 0 ? told.digits : modifier, told.zone);
    if (time !== null) times.push(time);
  };
  /** The column was filled by a default that is the time. */
  const addDefault = (index: number) => {
    const value = first(index);
    const time = value && timeOf(value, columns[index].type, columns[index].modifier);
    if (time) times.push(time);
  };
  const { SelectStmt: select, InsertStmt: insert } = parsed.source.statement;
  const change = changeOf(parsed.source.statement);
  if (select) selectTargets(parsed, columns.length).forEach(add);
  const returning = (insert ?? change)?.returningClause;
  const relation = insert
    ? schema.relation(insert.relation.schemaname, insert.relation.relname)
    : change && schema.relation(change.relation.schemaname, change.relation.relname);
  if (returning) {
    const width = insert ? (relation?.columns.length ?? null) : null;
    const map = targetOfColumn(returning.exprs, columns.length, width);
    map.forEach((target, index) => {
      add(returning.exprs[target]?.ResTarget?.val, index);
    });
  }
  // A trigger may have put another time there.
  if (relation && !relation.triggers && change && parsed.source.statement.UpdateStmt) {
    for (const { index, attribute, cast } of returnedOf(
      returning,
      relation,
      seen.columns,
      schema,
      !change.fromClause,
    )) {
      const column = relation.columns.find((each) => each.attribute === attribute);
      const set = targets(change.targetList).find(({ name, indirection }) => name === column?.name && !indirection);
      if (cast !== null) continue;
      if (set?.val?.SetToDefault && column?.filler.kind === 'time') addDefault(index);
      else add(set?.val, index);
    }
  }
  for (const each of parsed.inserts) {
    const sight = sightOf(parsed.source, each.insert, each.nested, seen, schema);
    if (sight === null || sight.relation.triggers) continue;
    for (const column of sight.relation.columns) {
      if (sight.updates && !isTimeEitherWay(sight, column)) continue;
      const shown = sight.returned.find(({ attribute, cast }) => attribute === column.attribute && cast === null);
      if (shown === undefined || (sight.nested && sight.count !== 1)) continue;
      const position = positionOf(sight, column);
      const body = sight.layout.body;
      const select = body.kind === 'select' ? body.select : undefined;
      const left = select ? position < 0 : position < 0 || itemOf(sight, 0, position)?.SetToDefault;
      if (left && column.filler.kind === 'time') addDefault(shown.index);
      else if (position >= 0) {
        const target = select ? select.targetList?.[position]?.ResTarget?.val : itemOf(sight, 0, position);
        add(target, shown.index);
      }
    }
  }
  return times;
}

/** ON CONFLICT DO UPDATE sets the column to the time too, itself or by way of the row that was not inserted. */
function isTimeEitherWay({ insert }: Sight, column: TableColumn): boolean {
  const set = targets(insert.onConflictClause?.targetList).find(({ name, indirection }) => {
    return name === column.name && !indirection;
  });
  const fields = set?.val?.ColumnRef?.fields ?? [];
  if (set?.val?.SetToDefault) return column.filler.kind === 'time';
  const excluded = string(fields[0]) === 'excluded' && string(fields[1]) === column.name;
  return excluded || (set?.val !== undefined && isTime(set.val));
}
