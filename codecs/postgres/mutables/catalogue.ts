/** What the new server says of the names in the statements of a unit: its questions, and their answers as a {@link Schema}. */

import type { Exchange } from '../../../core/contract/index.js';
import { dataRow, ownStatement } from '../inject.js';
import { Backend } from './answers.js';
import { type Node, parse, type SelectStmt, string, targets, walk } from './parse.js';
import type {
  Catalogue,
  Filler,
  KnownSequence,
  Names,
  Relation,
  ResultColumn,
  Schema,
  Sequence,
  TableColumn,
} from './types.js';

/** What is to be asked. */
export interface Wanted {
  readonly names: readonly Names[];
  readonly columns: readonly ResultColumn[];
}

/** A name with or without its schema, as one text. */
export function nameKey(schema: string | undefined, name: string): string {
  return schema === undefined ? quoted(name) : `${quoted(schema)}.${quoted(name)}`;
}

const quoted = (name: string): string => `"${name.replaceAll('"', '""')}"`;

/** A text as a literal, whatever standard_conforming_strings says. */
export function literal(text: string): string {
  const inner = text.replaceAll("'", "''");
  return inner.includes('\\') ? `E'${inner.replaceAll('\\', '\\\\')}'` : `'${inner}'`;
}

const array = (texts: Iterable<string>, type: string): string =>
  `ARRAY[${[...texts].map(literal).join(', ')}]::pg_catalog.${type}[]`;

/**
 * Runs statements of the gateway's own in one round trip, each in a transaction of its own: one that fails takes no other with it.
 * @returns the rows of each, null where it failed
 */
export function* askAll(statements: readonly string[]): Exchange<((string | null)[][] | null)[]> {
  const answers: ((string | null)[][] | null)[] = [];
  let send: Uint8Array | undefined = Buffer.concat(statements.map((sql) => ownStatement(sql)));
  for (let i = 0; i < statements.length; i++) {
    let rows: (string | null)[][] | null = [];
    for (;;) {
      const frame = (yield send === undefined ? { want: 'frame' } : { want: 'frame', send }) as Uint8Array;
      send = undefined;
      if (frame[0] === Backend.DATA_ROW) rows?.push(dataRow(frame, 0, frame.length));
      else if (frame[0] === Backend.ERROR) rows = null;
      else if (frame[0] === Backend.READY) break;
    }
    answers.push(rows);
  }
  return answers;
}

const SEQUENCE = (oid: string): string =>
  `(SELECT pg_catalog.json_build_object('oid', s.seqrelid::pg_catalog.int8, 'schema', sn.nspname, 'name', sc.relname,
    'increment', s.seqincrement::pg_catalog.text, 'start', s.seqstart::pg_catalog.text,
    'visible', pg_catalog.pg_table_is_visible(s.seqrelid),
    'last', CASE WHEN pg_catalog.has_sequence_privilege(s.seqrelid, 'USAGE, SELECT')
      THEN pg_catalog.pg_sequence_last_value(s.seqrelid)::pg_catalog.text END)
    FROM pg_catalog.pg_sequence s JOIN pg_catalog.pg_class sc ON sc.oid = s.seqrelid
    JOIN pg_catalog.pg_namespace sn ON sn.oid = sc.relnamespace WHERE s.seqrelid = ${oid})`;

/**
 * Two kinds of rows: the oid of each name, and the relations with these oids or the given ones, with those behind views.
 * Triggers: TRIGGER_TYPE_ROW 1, BEFORE 2, INSERT 4, UPDATE 16, INSTEAD 64 (catalog/pg_trigger.h). A rule can do what a trigger can.
 */
function relationsQuery(names: Iterable<string>, oids: Iterable<number>): string {
  const depends = (classid: string, objid: string) =>
    `d.classid = '${classid}'::pg_catalog.regclass AND d.objid = ${objid} AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass`;
  return `WITH RECURSIVE named AS (
    SELECT name, pg_catalog.to_regclass(name)::pg_catalog.oid AS oid FROM pg_catalog.unnest(${array(names, 'text')}) AS name
  ), wanted(oid, depth) AS (
    SELECT oid, 0 FROM named WHERE oid IS NOT NULL
    UNION SELECT oid, 0 FROM pg_catalog.unnest(${array([...oids].map(String), 'oid')}) AS oid
    UNION SELECT d.refobjid, w.depth + 1 FROM wanted w
      JOIN pg_catalog.pg_class v ON v.oid = w.oid AND v.relkind = 'v'
      JOIN pg_catalog.pg_rewrite r ON r.ev_class = v.oid AND r.ev_type = '1'
      JOIN pg_catalog.pg_depend d ON ${depends('pg_catalog.pg_rewrite', 'r.oid')} AND d.refobjid <> v.oid
      WHERE w.depth < 4
  )
  SELECT 'name', name, oid::pg_catalog.text FROM named WHERE oid IS NOT NULL
  UNION ALL
  SELECT 'relation', '', pg_catalog.json_build_object(
    'oid', c.oid::pg_catalog.int8, 'schema', n.nspname, 'name', c.relname, 'kind', c.relkind,
    'view', CASE WHEN c.relkind = 'v' THEN pg_catalog.pg_get_viewdef(c.oid) END,
    'behind', (SELECT pg_catalog.json_agg(DISTINCT d.refobjid::pg_catalog.int8) FROM pg_catalog.pg_rewrite r
      JOIN pg_catalog.pg_depend d ON ${depends('pg_catalog.pg_rewrite', 'r.oid')} AND d.refobjid <> c.oid
      WHERE c.relkind = 'v' AND r.ev_class = c.oid AND r.ev_type = '1'),
    'triggers', EXISTS (SELECT FROM pg_catalog.pg_trigger t
        WHERE (t.tgrelid = c.oid OR t.tgrelid IN (SELECT p.relid FROM pg_catalog.pg_partition_tree(c.oid) p))
          AND NOT t.tgisinternal AND t.tgenabled <> 'D'
          AND t.tgtype & 1 <> 0 AND t.tgtype & (2 | 64) <> 0 AND t.tgtype & (4 | 16) <> 0)
      OR EXISTS (SELECT FROM pg_catalog.pg_rewrite r WHERE r.ev_class = c.oid AND r.ev_type IN ('2', '3')),
    'triggered', EXISTS (SELECT FROM pg_catalog.pg_trigger t
        WHERE (t.tgrelid = c.oid OR t.tgrelid IN (SELECT p.relid FROM pg_catalog.pg_partition_tree(c.oid) p))
          AND NOT t.tgisinternal AND t.tgenabled <> 'D'),
    'columns', (SELECT pg_catalog.json_agg(pg_catalog.json_build_object(
        'name', a.attname, 'attribute', a.attnum,
        'typeName', pg_catalog.format_type(a.atttypid, a.atttypmod), 'type', a.atttypid::pg_catalog.int8,
        'identity', a.attidentity, 'generated', a.attgenerated <> '',
        'default', CASE WHEN a.attgenerated = '' THEN coalesce(
          (SELECT pg_catalog.pg_get_expr(f.adbin, f.adrelid) FROM pg_catalog.pg_attrdef f
            WHERE f.adrelid = c.oid AND f.adnum = a.attnum),
          (SELECT pg_catalog.pg_get_expr(y.typdefaultbin, 0) FROM pg_catalog.pg_type y
            WHERE y.oid = a.atttypid AND y.typtype = 'd')) END,
        'sequence', coalesce(
          (SELECT ${SEQUENCE('d.objid')} FROM pg_catalog.pg_depend d
            WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
              AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid = c.oid
              AND d.refobjsubid = a.attnum AND d.deptype = 'i' AND a.attidentity <> '' LIMIT 1),
          (SELECT ${SEQUENCE('d.refobjid')} FROM pg_catalog.pg_attrdef f
            JOIN pg_catalog.pg_depend d ON ${depends('pg_catalog.pg_attrdef', 'f.oid')}
            JOIN pg_catalog.pg_class k ON k.oid = d.refobjid AND k.relkind = 'S'
            WHERE f.adrelid = c.oid AND f.adnum = a.attnum LIMIT 1))
      ) ORDER BY a.attnum)
      FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)
  )::pg_catalog.text
  FROM (SELECT DISTINCT oid FROM wanted) w JOIN pg_catalog.pg_class c ON c.oid = w.oid
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  WHERE c.relkind IN ('r', 'p', 'v', 'f')`;
}

/** As pg_get_serial_sequence finds them where a text names a table and a column; without its errors. */
const sequencesQuery = (texts: Iterable<string>): string =>
  `SELECT text, ${SEQUENCE(`coalesce(
      pg_catalog.to_regclass(CASE WHEN pg_catalog.strpos(text, pg_catalog.chr(1)) = 0 THEN text END)::pg_catalog.oid,
      (SELECT d.objid FROM pg_catalog.pg_depend d
        JOIN pg_catalog.pg_class k ON k.oid = d.objid AND k.relkind = 'S'
        JOIN pg_catalog.pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
        WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
          AND d.deptype IN ('a', 'i') AND a.attname = pg_catalog.split_part(text, pg_catalog.chr(1), 2)
          AND d.refobjid = pg_catalog.to_regclass(pg_catalog.split_part(text, pg_catalog.chr(1), 1))::pg_catalog.oid LIMIT 1))`)}::pg_catalog.text
    FROM pg_catalog.unnest(${array(texts, 'text')}) AS text`;

/** Asks how far sequences are. Those that the user may not look at come without their last value. */
export function* readSequences(oids: Iterable<number>): Exchange<Map<number, KnownSequence>> {
  const [rows] = yield* askAll([
    `SELECT ${SEQUENCE('wanted.id')}::pg_catalog.text FROM pg_catalog.unnest(${array([...oids].map(String), 'oid')}) AS wanted(id)`,
  ]);
  const told = (rows ?? []).flatMap(([row]) => (row === null ? [] : [knownSequence(JSON.parse(row))]));
  return new Map(told.map((sequence) => [sequence.oid, sequence]));
}

function knownSequence({ oid, schema, name, visible, increment, start, last }: DescribedSequence): KnownSequence {
  return {
    oid,
    schema,
    name,
    visible,
    increment: BigInt(increment),
    start: BigInt(start),
    last: last === null ? null : BigInt(last),
  };
}

/** `i` < `s` < `v`: the greatest is the most volatile. */
const functionsQuery = (names: Iterable<string>): string =>
  `SELECT n.nspname, p.proname, pg_catalog.max(p.provolatile::pg_catalog.text),
      pg_catalog.bool_or(pg_catalog.pg_function_is_visible(p.oid))::pg_catalog.text,
      pg_catalog.bool_or(p.prosrc ~* 'nextval')::pg_catalog.text
    FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
    WHERE p.proname = ANY (${array(names, 'text')}) GROUP BY 1, 2`;

const typesQuery = (columns: readonly ResultColumn[]): string => {
  const types = new Map(columns.map(({ type, modifier }) => [`${type}:${modifier}`, { type, modifier }]));
  const rows = [...types.values()].map(({ type, modifier }) => `(${type}::pg_catalog.oid, ${modifier})`);
  if (rows.length === 0) rows.push('(16::pg_catalog.oid, -1)');
  return `SELECT t::pg_catalog.text, m::pg_catalog.text, pg_catalog.format_type(t, m) FROM (VALUES ${rows.join(', ')}) AS v(t, m)`;
};

const SETTINGS_QUERY = `SELECT pg_catalog.current_setting('standard_conforming_strings'), pg_catalog.current_setting('client_encoding')`;

/** A relation as the server describes it. */
interface Described {
  readonly oid: number;
  readonly schema: string;
  readonly name: string;
  readonly kind: string;
  readonly view: string | null;
  readonly behind: readonly number[] | null;
  readonly triggers: boolean;
  readonly triggered: boolean;
  readonly columns:
    | readonly {
        readonly name: string;
        readonly attribute: number;
        readonly typeName: string;
        readonly type: number;
        readonly identity: string;
        readonly generated: boolean;
        readonly default: string | null;
        readonly sequence: DescribedSequence | null;
      }[]
    | null;
}

interface DescribedSequence {
  readonly oid: number;
  readonly schema: string;
  readonly name: string;
  readonly increment: string;
  readonly start: string;
  readonly visible: boolean;
  readonly last: string | null;
}

/** Asks the server: one round trip, and a second one when a default calls a function that is not known here. */
export function* readCatalogue({ names, columns }: Wanted): Exchange<Catalogue> {
  const relationNames = new Set(
    names.flatMap(({ relations }) => relations.map(({ schema, name }) => nameKey(schema, name))),
  );
  const functionNames = new Set(names.flatMap(({ functions }) => functions.map(({ name }) => name)));
  const [relations, sequences, functions, types, settings] = yield* askAll([
    relationsQuery(relationNames, new Set(columns.map(({ table }) => table).filter((oid) => oid !== 0))),
    sequencesQuery(new Set(names.flatMap(({ sequences }) => sequences))),
    functionsQuery(functionNames),
    typesQuery(columns),
    SETTINGS_QUERY,
  ]);
  const catalogue: Catalogue = {
    named: new Map(),
    relations: new Map(),
    triggered: new Set(),
    texts: new Map(),
    sequences: new Map(),
    types: new Map((types ?? []).map(([type, modifier, name]) => [`${type}:${modifier}`, name!])),
    functions: new Map(),
    drawing: new Set(),
    standardStrings: settings?.[0]?.[0] === 'on',
    encoding: settings?.[0]?.[1] ?? '',
  };
  const addSequence = (told: DescribedSequence): number => {
    catalogue.sequences.set(told.oid, knownSequence(told));
    return told.oid;
  };
  for (const [text, told] of sequences ?? []) {
    if (told !== null) catalogue.texts.set(text!, addSequence(JSON.parse(told)));
  }
  addFunctions(catalogue, functions);

  const described = new Map<number, Described>();
  const calls = new Map<string, Calls | null>();
  for (const [kind, name, told] of relations ?? []) {
    if (kind === 'name') {
      catalogue.named.set(name!, Number(told));
      continue;
    }
    const relation = JSON.parse(told!) as Described;
    described.set(relation.oid, relation);
    for (const column of relation.columns ?? []) {
      if (column.sequence !== null) addSequence(column.sequence);
      if (column.default !== null && !calls.has(column.default)) calls.set(column.default, callsOf(column.default));
    }
  }
  const unknown = new Set<string>();
  for (const { functions } of [...calls.values()].filter((each) => each !== null)) {
    for (const { name } of functions) if (!KNOWN.has(name) && !functionNames.has(name)) unknown.add(name);
  }
  if (unknown.size > 0) addFunctions(catalogue, (yield* askAll([functionsQuery(unknown)]))[0]);
  for (const relation of described.values()) resolve(relation, described, calls, catalogue, 0);
  return catalogue;
}

function addFunctions(catalogue: Catalogue, rows: (string | null)[][] | null): void {
  const add = (key: string, volatility: 'i' | 's' | 'v') => {
    const before = catalogue.functions.get(key);
    if (before === undefined || before < volatility) catalogue.functions.set(key, volatility);
  };
  for (const [schema, name, volatility, visible, draws] of rows ?? []) {
    if (draws === 'true') catalogue.drawing.add(name!);
    add(nameKey(schema!, name!), volatility as 'i' | 's' | 'v');
    if (visible === 'true') add(nameKey(undefined, name!), volatility as 'i' | 's' | 'v');
  }
}

/** Makes a relation of what the server told of it, and before it those behind it when it is a view. */
function resolve(
  told: Described,
  described: ReadonlyMap<number, Described>,
  calls: ReadonlyMap<string, Calls | null>,
  catalogue: Catalogue,
  depth: number,
): Relation {
  const done = catalogue.relations.get(told.oid);
  if (done !== undefined) return done;
  const view = told.view === null || depth > 4 ? null : simpleView(told.view);
  const base = (told.behind ?? [])
    .map((oid) => described.get(oid))
    .find((each) => each?.name === view?.name && (view?.schema === undefined || each?.schema === view.schema));
  const behind = base === undefined ? null : resolve(base, described, calls, catalogue, depth + 1);
  const columns = (told.columns ?? []).map((column, i): TableColumn => {
    const below = behind?.columns.find(({ name }) => name === view?.columns[i]);
    const { name, attribute, typeName, type } = column;
    // A default of the view's own comes first (CREATE VIEW, "Updatable Views").
    const own = below === undefined || column.default !== null;
    return {
      name,
      attribute,
      typeName,
      type,
      identityAlways: below?.identityAlways ?? column.identity === 'a',
      generated: below?.generated ?? column.generated,
      filler: own ? fillerOf(column, calls, catalogue) : below.filler,
    };
  });
  const relation: Relation = {
    oid: told.oid,
    schema: told.schema,
    name: told.name,
    kind: told.kind,
    columns,
    triggers: told.triggers || (behind?.triggers ?? false),
  };
  if (told.triggered || (base !== undefined && catalogue.triggered.has(base.oid))) catalogue.triggered.add(told.oid);
  catalogue.relations.set(told.oid, relation);
  return relation;
}

// -------------------------------------------------------------------------------------------------------- defaults, views

/** What an expression calls. */
interface Calls {
  readonly functions: readonly { readonly schema: string | undefined; readonly name: string }[];
  /** It asks for the transaction's time in SQL's own words (CURRENT_TIMESTAMP, ...). */
  readonly time: boolean;
  /** It is one call or such words, perhaps cast to other types ... */
  readonly alone: boolean;
  /** ... which are these. */
  readonly casts: readonly string[];
}

const TIME_WORDS = /^SVFOP_(CURRENT_DATE|CURRENT_TIME|CURRENT_TIMESTAMP|LOCALTIME|LOCALTIMESTAMP)(_N)?$/;
const TIME_FUNCTIONS = new Set(['now', 'transaction_timestamp']);
/** Types that the transaction's time is cast to with the same result, whether from the default or from a timestamptz. */
const TIME_TYPES = new Set(['timestamptz', 'timestamp', 'date', 'time', 'timetz']);
const INTEGER_TYPES = new Set(['int2', 'int4', 'int8']);

/** What functions of the server's own in defaults do, as far as it matters here. Others are asked for. */
const KNOWN = new Map<string, 'fixed' | 'time' | 'volatile'>([
  ['now', 'time'],
  ['transaction_timestamp', 'time'],
  ['nextval', 'volatile'],
  ['gen_random_uuid', 'volatile'],
  ['uuidv4', 'volatile'],
  ['uuidv7', 'volatile'],
  ['random', 'volatile'],
  ['clock_timestamp', 'volatile'],
  ['statement_timestamp', 'volatile'],
  ['timeofday', 'volatile'],
  // The same session asks the same user's questions of the same database.
  ['current_setting', 'fixed'],
  ['current_schema', 'fixed'],
  ['current_database', 'fixed'],
]);

/** @returns null when it cannot be read */
function callsOf(expression: string): Calls | null {
  const [target] = targets(parse(`SELECT ${expression}`)?.statement.SelectStmt?.targetList);
  if (target?.val === undefined) return null;
  const functions: { schema: string | undefined; name: string }[] = [];
  let time = false;
  walk(target.val, (kind, body) => {
    if (kind === 'FuncCall') {
      const names = (body as NonNullable<Node['FuncCall']>).funcname.map(string);
      functions.push({ schema: names.at(-2), name: names.at(-1) ?? '' });
    } else if (kind === 'SQLValueFunction') {
      time ||= TIME_WORDS.test((body as NonNullable<Node['SQLValueFunction']>).op);
    }
  });
  const casts: string[] = [];
  let inner = target.val;
  for (; inner.TypeCast !== undefined; inner = inner.TypeCast.arg) {
    casts.push(string(inner.TypeCast.typeName.names?.at(-1)) ?? '');
  }
  const plain = inner.SQLValueFunction !== undefined && !inner.SQLValueFunction.op.endsWith('_N');
  return { functions, time, alone: inner.FuncCall !== undefined || plain, casts };
}

/** What fills a column that is not given. */
function fillerOf(
  column: NonNullable<Described['columns']>[number],
  calls: ReadonlyMap<string, Calls | null>,
  { functions, drawing }: Catalogue,
): Filler {
  if (column.identity !== '' && column.sequence !== null) return { kind: 'sequence', sequence: column.sequence.oid };
  if (column.default === null) return { kind: 'fixed' };
  const called = calls.get(column.default);
  if (called == null) return { kind: 'volatile' };
  const [first] = called.functions;
  if (
    column.sequence !== null &&
    called.alone &&
    first?.name === 'nextval' &&
    called.functions.length === 1 &&
    called.casts.every((type) => INTEGER_TYPES.has(type))
  ) {
    return { kind: 'sequence', sequence: column.sequence.oid };
  }
  // Such a value is not given: its sequence could not be kept from issuing it again. Left to the default it differs, and that is seen.
  if (called.functions.some(({ name }) => !KNOWN.has(name) && drawing.has(name))) return { kind: 'fixed' };
  const differs = called.functions.filter(({ schema, name }) => {
    const known = schema === undefined || schema === 'pg_catalog' ? KNOWN.get(name) : undefined;
    return known === undefined ? functions.get(nameKey(schema, name)) !== 'i' : known !== 'fixed';
  });
  if (differs.length === 0 && !called.time) return { kind: 'fixed' };
  // Only where the time itself is the value can it be put in the default's place.
  const isTime = called.time ? called.functions.length === 0 : TIME_FUNCTIONS.has(first.name) && differs.length === 1;
  if (called.alone && isTime && called.functions.length <= 1 && called.casts.every((type) => TIME_TYPES.has(type))) {
    return { kind: 'time' };
  }
  return { kind: 'volatile' };
}

/** A view that shows columns of one table: which table, and for each of the view's columns the table's or null. */
function simpleView(
  definition: string,
): { schema: string | undefined; name: string; columns: (string | null)[] } | null {
  const select: SelectStmt | undefined = parse(definition.trim().replace(/;$/, ''))?.statement.SelectStmt;
  if (select === undefined || SIMPLE.some((clause) => select[clause] !== undefined)) return null;
  const from = select.fromClause;
  const table = from?.length === 1 ? from[0].RangeVar : undefined;
  if (table === undefined) return null;
  const columns = targets(select.targetList).map(({ val }) => string(val?.ColumnRef?.fields.at(-1)) ?? null);
  return { schema: table.schemaname, name: table.relname, columns };
}

/** Clauses that a view that can be updated does not have. */
const SIMPLE = [
  'distinctClause',
  'groupClause',
  'havingClause',
  'withClause',
  'limitCount',
  'limitOffset',
  'larg',
] as const;

// ----------------------------------------------------------------------------------------------------------------- schema

/** The name in a text as regclass reads it; null when it is none. */
function nameIn(text: string): { schema: string | undefined; name: string } | null {
  const part = '(?:"((?:[^"]|"")+)"|([\\p{L}_][\\p{L}\\p{N}_$]*))';
  const found = new RegExp(`^\\s*(?:${part}\\s*\\.\\s*)?${part}\\s*$`, 'u').exec(text);
  if (found === null) return null;
  const [, quotedSchema, schema, quotedName, name] = found;
  const plain = (inQuotes: string | undefined, word: string | undefined) =>
    inQuotes?.replaceAll('""', '"') ?? word?.toLowerCase();
  return { schema: plain(quotedSchema, schema), name: plain(quotedName, name)! };
}

/** What a statement's names mean. */
export class StatementSchema implements Schema {
  /**
   * @param columns of the statement's result: they tell by oid which relation a name means, whatever the search path was
   * @param elsewhere names without a schema mean nothing that was asked for
   */
  constructor(
    private readonly catalogue: Catalogue,
    private readonly columns: readonly ResultColumn[] | null,
    private readonly elsewhere: boolean,
  ) {}

  relation(schema: string | undefined, name: string): Relation | undefined {
    for (const { table } of this.columns ?? []) {
      const relation = this.catalogue.relations.get(table);
      if (relation?.name === name && (schema === undefined || schema === relation.schema)) return relation;
    }
    if (schema === undefined && this.elsewhere) return undefined;
    return this.relationOf(this.catalogue.named.get(nameKey(schema, name)) ?? 0);
  }

  relationOf(oid: number): Relation | undefined {
    return this.catalogue.relations.get(oid);
  }

  sequence(text: string): Sequence | undefined {
    if (this.elsewhere && !text.includes('.')) return undefined;
    const asked = this.catalogue.texts.get(text);
    if (asked !== undefined) return this.sequenceOf(asked);
    // It was met only as what fills a column.
    const name = nameIn(text);
    return [...this.catalogue.sequences.values()].find(
      (each) => each.name === name?.name && (name.schema === undefined ? each.visible : each.schema === name.schema),
    );
  }

  sequenceOf(oid: number): Sequence | undefined {
    return this.catalogue.sequences.get(oid);
  }

  typeName(type: number, modifier: number): string | undefined {
    return this.catalogue.types.get(`${type}:${modifier}`);
  }

  volatility(schema: string | undefined, name: string): 'i' | 's' | 'v' | undefined {
    return this.catalogue.functions.get(nameKey(schema, name));
  }
}

/** What is known without having asked. */
export const EMPTY_CATALOGUE: Catalogue = {
  named: new Map(),
  relations: new Map(),
  triggered: new Set(),
  texts: new Map(),
  sequences: new Map(),
  types: new Map(),
  functions: new Map(),
  drawing: new Set(),
  standardStrings: true,
  encoding: 'UTF8',
};

/** Both, as a third one; what the second one says comes first. */
export function mergeCatalogues(a: Catalogue, b: Catalogue): Catalogue {
  const map = <K, V>(x: ReadonlyMap<K, V>, y: ReadonlyMap<K, V>) => new Map([...x, ...y]);
  return {
    named: map(a.named, b.named),
    relations: map(a.relations, b.relations),
    triggered: new Set([...a.triggered, ...b.triggered]),
    texts: map(a.texts, b.texts),
    sequences: map(a.sequences, b.sequences),
    types: map(a.types, b.types),
    functions: map(a.functions, b.functions),
    drawing: new Set([...a.drawing, ...b.drawing]),
    standardStrings: b.standardStrings,
    encoding: b.encoding,
  };
}
