import { isAscii } from 'node:buffer';
import { serialize } from 'pg-protocol';
import type { Exchange, Repetition } from '../../../core/contract/index.js';
import { lengthAt } from '../messages.js';
import {
  Backend,
  formatOf,
  MOST_PARAMETERS,
  parameterTypes,
  readBind,
  readParse,
  rowDescription,
  terminator,
  writeBind,
} from './answers.js';
import {
  askAll,
  EMPTY_CATALOGUE,
  literal,
  mergeCatalogues,
  nameKey,
  readCatalogue,
  readSequences,
  StatementSchema,
} from './catalogue.js';
import { fromVerb, type Gathered, type PreparedStatement, type Step, walk } from './gather.js';
import { learn, namesOf, type Parsed, read, rewrite } from './rewrite.js';
import type {
  Catalogue,
  Draws,
  Knowledge,
  KnownSequence,
  Names,
  Put,
  ResultColumn,
  Schema,
  SeenStatement,
  SeenValue,
} from './types.js';

export { partAt } from './answers.js';
export { type Gathered, gather, type PreparedStatement } from './gather.js';

/** Statements of the gateway's own that stand in for the client's in a repeated request are called this, `..2`, `..3`. */
const OWN = '_outlive_seen';
const DESCRIBED = '_outlive_describe';
const SYNC = serialize.sync();

// ------------------------------------------------------------------------------------------------------------------ study

/** A step as it is looked at. */
interface Reading {
  readonly step: Step;
  readonly parsed: Parsed | null;
  readonly seen: SeenStatement;
  /** Types of the statement's parameters where they are known; those of the client's Parse else. */
  readonly types: readonly number[];
  readonly schema: Schema;
}

/** What the server tells of a statement. */
interface Description {
  readonly columns: readonly ResultColumn[] | null;
  readonly types: readonly number[];
}

/** What was asked of a server, for whoever asks the same of it in the same failover. */
export interface Findings {
  /** Whose connection it was, and what names mean there: equal texts mean equal answers. */
  readonly view: string;
  readonly catalogue: Catalogue;
  readonly described: ReadonlyMap<string, Description>;
  /** What the catalogue was asked, see {@link questions}. */
  readonly asked: ReadonlySet<string>;
  /** Sequences that the user may not advance, and how far they must come. */
  readonly stuck: Map<number, bigint>;
}

/** What has to be asked of the catalogue, each question as a text. */
function questions(names: readonly Names[], columns: readonly ResultColumn[]): Set<string> {
  const asked = new Set<string>();
  for (const { relations, functions, sequences } of names) {
    for (const { schema, name } of relations) asked.add(`relation ${nameKey(schema, name)}`);
    for (const { name } of functions) asked.add(`function ${name}`);
    for (const text of sequences) asked.add(`sequence ${text}`);
  }
  for (const { table, type, modifier } of columns) asked.add(`relation ${table}`).add(`type ${type}:${modifier}`);
  return asked;
}

/**
 * Reads the statements of these units and asks the server what is needed to understand them: three round trips at most, none when it
 * was found already.
 */
function* study(
  units: readonly Gathered[],
  view: string,
  found: Findings | null,
): Exchange<{ findings: Findings; catalogue: Catalogue; readings: Reading[][] }> {
  const known = found?.view === view ? found : null;
  const drafts = units.map(({ steps, requests }) =>
    steps.map((step) => ({ step, parsed: readable(step), undescribed: undescribed(step, requests) })),
  );
  const wanted = drafts.flat().filter(({ undescribed }) => undescribed);
  const parses = wanted.map(({ step }) => step.place).flatMap((place) => (place.kind === 'bind' ? [place.parse] : []));
  const described =
    known !== null && parses.every((parse) => known.described.has(parseKey(parse)))
      ? known.described
      : yield* describe(parses);
  const withColumns = drafts.map((steps) =>
    steps.map(({ step, parsed, undescribed }) => {
      const { seen, place } = step;
      const parse = place.kind === 'bind' ? place.parse : null;
      const description = parse !== null && undescribed ? described.get(parseKey(parse)) : undefined;
      const columns = seen.columns ?? description?.columns ?? null;
      const types = place.kind === 'bind' ? (place.types ?? description?.types ?? readParse(place.parse, 0).types) : [];
      return { step, parsed, seen: { ...seen, columns }, types };
    }),
  );
  const readables = withColumns.flat().filter(({ parsed }) => parsed !== null);
  const names = readables.map(({ parsed }) => namesOf(parsed!));
  const columns = readables.flatMap(({ seen }) => seen.columns ?? []);
  const asked = questions(names, columns);
  const answered = known !== null && [...asked].every((question) => known.asked.has(question));
  const catalogue = answered ? known.catalogue : yield* readCatalogue({ names, columns });
  const readings = withColumns.map((steps) =>
    steps.map(({ step, parsed, seen, types }): Reading => {
      const schema = new StatementSchema(catalogue, seen.columns, step.elsewhere);
      // Values that cannot be told apart teach nothing.
      const understood = seen.rows.length === 0 || seen.columns?.length === seen.rows[0].length;
      const usable = understood && sameText(step, catalogue);
      return { step, parsed: usable ? parsed : null, seen, types, schema };
    }),
  );
  return { findings: answered ? known : { view, catalogue, described, asked, stuck: new Map() }, catalogue, readings };
}

function readable(step: Step): Parsed | null {
  return step.failed || step.seen.text === '' ? null : read(step.seen.text);
}

/** Whether the server reads the text as the parser here does, and values of the answer can be put into it. */
function sameText({ seen, place }: Step, { standardStrings, encoding }: Catalogue): boolean {
  if (!standardStrings && seen.text.includes('\\')) return false;
  if (encoding === 'UTF8') return true;
  // Values of parameters are passed on as they came; texts are written in UTF-8 here.
  const written = place.kind === 'query' ? seen.rows.flat() : [];
  return isAscii(Buffer.from(seen.text)) && written.every(({ bytes }) => bytes === null || isAscii(bytes));
}

/** Whether the server must be asked what the client was not told about a statement: its columns, or types of binary parameters. */
function undescribed({ seen, place, request, elsewhere }: Step, requests: Gathered['requests']): boolean {
  // Where names mean something else the description would be one of something else.
  if (place.kind !== 'bind' || elsewhere) return false;
  if (seen.rows.length > 0 && seen.columns === null) return true;
  const bytes = requests[request];
  if (place.types !== null || bytes === null) return false;
  const { types } = readParse(place.parse, 0);
  const { values, formats } = readBind(bytes, place.at);
  return values.some((_, i) => formatOf(formats, i) === 1 && (types[i] ?? 0) === 0);
}

/** A Parse message without its name, as a text. */
function parseKey(parse: Uint8Array): string {
  const nameEnd = terminator(parse, 5, parse.length);
  return Buffer.from(parse.buffer, parse.byteOffset + nameEnd, lengthAt(parse, 0) - nameEnd).toString('latin1');
}

/** Has statements described, in one round trip; those that the server cannot prepare (their table is made in the unit) are left out. */
function* describe(parses: readonly Uint8Array[]): Exchange<Map<string, Description>> {
  const described = new Map<string, Description>();
  const distinct = new Map(parses.map((parse) => [parseKey(parse), parse]));
  if (distinct.size === 0) return described;
  const close = serialize.close({ type: 'S', name: DESCRIBED });
  let send: Uint8Array | undefined = Buffer.concat(
    [...distinct.values()].flatMap((parse) => {
      const { sql, types } = readParse(parse, 0);
      return [
        close,
        parseMessage(DESCRIBED, sql, types),
        serialize.describe({ type: 'S', name: DESCRIBED }),
        close,
        SYNC,
      ];
    }),
  );
  for (const key of distinct.keys()) {
    let columns: readonly ResultColumn[] | null = null;
    let types: readonly number[] | null = null;
    for (;;) {
      const frame = (yield send === undefined ? { want: 'frame' } : { want: 'frame', send }) as Uint8Array;
      send = undefined;
      if (frame[0] === Backend.PARAMETER_DESCRIPTION) types = parameterTypes(frame, 0);
      else if (frame[0] === Backend.ROW_DESCRIPTION) columns = rowDescription(frame, 0);
      else if (frame[0] === Backend.READY) break;
    }
    if (types !== null) described.set(key, { columns, types });
  }
  return described;
}

/** A Parse message. */
function parseMessage(name: string, sql: Uint8Array, types: readonly number[]): Uint8Array {
  const head = Buffer.from(`\0\0\0\0\0${name}\0`, 'utf8');
  const tail = Buffer.alloc(3 + 4 * types.length);
  tail.writeUInt16BE(types.length, 1);
  for (const [i, type] of types.entries()) tail.writeUInt32BE(type, 3 + 4 * i);
  const frame = Buffer.concat([head, sql, tail]);
  frame.write('P', 0, 'latin1');
  frame.writeUInt32BE(frame.length - 1, 1);
  return frame;
}

// ------------------------------------------------------------------------------------------------------------------ learn

function copyOf(knowledge: Knowledge): Knowledge {
  const { time, currval, lastval, held } = knowledge;
  return { time, currval: new Map(currval), lastval, held: new Map(held) };
}

/** A draw from a sequence, the last one so far. */
interface Drawn {
  readonly sequence: number;
  readonly attribute: number;
  readonly rows: number | null;
  readonly value: string | null;
  readonly reading: Reading;
}

const NOT_ACCOUNTED = 'asks for a value of a sequence that no statement before it is known to have drawn';
const NOT_ADVANCED = 'the user may not advance its sequence';
/** Statements that draw from no sequence unless a function in them does. */
const DRAWS_NOTHING =
  /^(select|update|delete|values|table|begin|start|savepoint|release|rollback|set|reset|show|fetch|declare|close|lock)\b/i;

/**
 * Learns from all that the client saw. Where a currval or lastval shows what an earlier INSERT of one row drew, that INSERT is told
 * ({@link SeenStatement.given}).
 *
 * @param before what the client knew in front of the first statement; not changed
 * @returns what it knows at last, and the statements whose currval or lastval must not be answered by what was seen
 */
function learnAll(
  readings: readonly Reading[],
  catalogue: Catalogue,
  before: Knowledge,
): { knowledge: Knowledge; unaccounted: Set<Reading> } {
  const knowledge = copyOf(before);
  const unaccounted = new Set<Reading>();
  /** The last draw by sequence; null: something that is not known may have drawn since. */
  const last = new Map<number, Drawn | null>();
  let latest: Drawn | null = null;
  /** Something drew, or may have drawn, from any sequence. */
  let unknown = false;
  for (const reading of readings) {
    const { parsed, seen, schema, step } = reading;
    const draws: Draws = parsed === null ? NO_DRAWS : learn(parsed, seen, schema, knowledge);
    for (const { sequence, value } of draws.asked) {
      // What the statement draws itself comes in an order of its own.
      if (value === null || draws.drawn.some((own) => sequence === null || own.sequence === sequence)) continue;
      const asked = textOf(value);
      const drawn = sequence === null ? latest : (last.get(sequence) ?? null);
      // The value of an earlier transaction is there for good.
      const earlier = sequence === null ? last.size === 0 : !last.has(sequence);
      if (drawn === null ? !earlier || unknown : !accounts(drawn, value, asked, knowledge)) unaccounted.add(reading);
    }
    for (const { sequence, attribute, rows, values } of draws.drawn) {
      const value = values?.length ? textOf(values[values.length - 1]) : null;
      latest = { sequence, attribute, rows, value, reading };
      last.set(sequence, latest);
    }
    if (draws.drawn.length === 0 ? mayDraw(step, reading) : triggersDraw(reading, catalogue)) {
      unknown = true;
      latest = null;
      for (const sequence of last.keys()) {
        if (!draws.drawn.some((own) => own.sequence === sequence)) last.set(sequence, null);
      }
    }
  }
  return { knowledge, unaccounted };
}

const NO_DRAWS: Draws = { drawn: [], asked: [] };

/** Whether a statement of which no draw is known may have drawn. */
function mayDraw({ seen, failed }: Step, { parsed, schema }: Reading): boolean {
  if (parsed === null) return !DRAWS_NOTHING.test(fromVerb(seen.text)) || (failed && /nextval|insert/i.test(seen.text));
  const { relations, functions } = namesOf(parsed);
  return (
    relations.some(({ schema: name, name: relation }) => schema.relation(name, relation)?.triggers !== false) ||
    functions.some(
      ({ schema: name, name: called }) => !DRAWING_NOT.has(called) && schema.volatility(name, called) === 'v',
    )
  );
}

/** Whether triggers of the statement's tables may have drawn behind it, from whatever sequence. */
function triggersDraw({ parsed, schema }: Reading, { triggered }: Catalogue): boolean {
  return namesOf(parsed!).relations.some(({ schema: name, name: relation }) => {
    const known = schema.relation(name, relation);
    return known === undefined || triggered.has(known.oid);
  });
}

/** Volatile functions of the server's own that draw nothing. */
const DRAWING_NOT = new Set(['currval', 'lastval', 'random', 'gen_random_uuid', 'clock_timestamp', 'uuidv4', 'uuidv7']);

/** Whether this draw is the one that a currval or lastval has shown; if it is not known what it drew, it is now. */
function accounts(drawn: Drawn, value: SeenValue, asked: string | null, knowledge: Knowledge): boolean {
  if (drawn.value !== null) return drawn.value === asked;
  if (drawn.rows !== 1 || drawn.attribute === 0 || asked === null) return false;
  const { seen, schema } = drawn.reading;
  seen.given = new Map([...(seen.given ?? []), [drawn.attribute, value]]);
  hold(knowledge, drawn.sequence, BigInt(asked), schema.sequenceOf(drawn.sequence)?.increment ?? 1n);
  return true;
}

function hold(knowledge: Knowledge, sequence: number, value: bigint, increment: bigint): void {
  const before = knowledge.held.get(sequence);
  if (before === undefined || (increment > 0n ? value > before : value < before)) knowledge.held.set(sequence, value);
}

/** An integer that the client saw, as decimal text; null when it is none. */
function textOf({ bytes, format }: SeenValue): string | null {
  if (bytes === null) return null;
  const buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
  if (format === 0) {
    const text = buffer.toString('latin1');
    return /^-?\d+$/.test(text) ? text : null;
  }
  if (buffer.length === 8) return buffer.readBigInt64BE().toString();
  return buffer.length === 4 || buffer.length === 2 ? String(buffer.readIntBE(0, buffer.length)) : null;
}

// --------------------------------------------------------------------------------------------------------------- sequences

/** More than so many values are skipped by setval. */
const MOST_BURNT = 100_000n;
/** How often a sequence is advanced before it is given up: once for where it is, once for the rest, once for luck. */
const ROUNDS = 3;

/**
 * Moves sequences forward until they issue none of these values again. A sequence that may not be advanced (a right is missing) is
 * left as it is.
 * @returns the sequences that may issue them again
 */
function* advance(held: ReadonlyMap<number, bigint>, catalogue: Catalogue): Exchange<Set<number>> {
  const last = new Map<number, bigint | null>();
  for (const oid of held.keys()) {
    const sequence = catalogue.sequences.get(oid);
    if (sequence !== undefined) last.set(oid, sequence.last);
  }
  let touched = false;
  for (let round = 0; round < ROUNDS; round++) {
    const short = [...last].flatMap(([oid, at]) => {
      const missing = missingValues(catalogue.sequences.get(oid)!, at, held.get(oid)!);
      return missing > 0n ? [{ oid, missing }] : [];
    });
    if (short.length === 0) break;
    touched = true;
    const answers = yield* askAll(
      short.map(({ oid, missing }) => advanceQuery(catalogue.sequences.get(oid)!, missing, held.get(oid)!)),
    );
    short.forEach(({ oid }, i) => {
      const value = answers[i]?.[0]?.[0] ?? null;
      if (value === null) last.delete(oid);
      else last.set(oid, BigInt(value));
    });
  }
  for (const [oid, at] of last) catalogue.sequences.set(oid, { ...catalogue.sequences.get(oid)!, last: at });
  // What was drawn here is not the session's: its currval and lastval are to be as they were.
  if (touched) yield* askAll(['DISCARD SEQUENCES']);
  const reached = (oid: number, value: bigint): boolean => {
    const at = last.get(oid);
    return at !== undefined && missingValues(catalogue.sequences.get(oid)!, at, value) === 0n;
  };
  return new Set([...held].filter(([oid, value]) => !reached(oid, value)).map(([oid]) => oid));
}

/** How many values lie between where a sequence is and the held one; 0 when it is there or beyond. */
function missingValues({ increment, start }: KnownSequence, at: bigint | null, held: bigint): bigint {
  if (at === null) {
    // It may also have been restarted somewhere: the first draw will tell.
    const gap = (held - start) / increment + 1n;
    return gap > 0n ? gap : 1n;
  }
  const distance = increment > 0n ? held - at : at - held;
  const step = increment > 0n ? increment : -increment;
  return distance <= 0n ? 0n : (distance + step - 1n) / step;
}

function advanceQuery({ oid, increment }: KnownSequence, missing: bigint, held: bigint): string {
  const sequence = `'${oid}'::pg_catalog.regclass`;
  const farthest = increment > 0n ? 'max' : 'min';
  if (missing <= MOST_BURNT) {
    return `SELECT pg_catalog.${farthest}(v) FROM (SELECT pg_catalog.nextval(${sequence}) AS v FROM pg_catalog.generate_series(1, ${missing})) AS drawn`;
  }
  // Never back: no session can draw so many values between the two halves of this statement.
  const reached = `pg_catalog.pg_sequence_last_value(${sequence}) ${increment > 0n ? '>=' : '<='} ${held}`;
  return `SELECT CASE WHEN coalesce(${reached}, false) THEN pg_catalog.pg_sequence_last_value(${sequence}) ELSE pg_catalog.setval(${sequence}, ${held}) END`;
}

/**
 * See `Mutables.reserve`. One session asks for all: what a name means is told by the oids in the answers where they tell it,
 * else by the search path of the one that asks; each makes sure of its own once more in {@link plan}.
 */
export function* reserve(gathered: readonly Gathered[], view: string): Exchange<Findings> {
  const { findings, catalogue, readings } = yield* study(gathered, view, null);
  const held = new Map<number, bigint>();
  const knowledge: Knowledge = { time: null, currval: new Map(), lastval: null, held };
  for (const unit of readings) {
    for (const [sequence, value] of learnAll(unit, catalogue, { ...knowledge, held: new Map() }).knowledge.held) {
      hold(knowledge, sequence, value, catalogue.sequences.get(sequence)?.increment ?? 1n);
    }
  }
  for (const oid of yield* advance(held, catalogue)) findings.stuck.set(oid, held.get(oid)!);
  return findings;
}

/** See `Mutables.unreserved`. */
export function unreserved({ stuck, catalogue }: Findings): Exchange<void> | null {
  if (stuck.size === 0) return null;
  return (function* (): Exchange<void> {
    const sequences = yield* readSequences(stuck.keys());
    const still = yield* advance(stuck, { ...catalogue, sequences });
    for (const [oid, sequence] of sequences) {
      if (still.has(oid)) continue;
      catalogue.sequences.set(oid, sequence);
      stuck.delete(oid);
    }
  })();
}

// ------------------------------------------------------------------------------------------------------------------- plan

/**
 * See `Mutables.plan`. Fills `knowledge`, which the session keeps for what the client asks later.
 * @param view see {@link Findings}
 * @param found what `reserve` found, for these statements among others
 */
export function* plan(
  gathered: Gathered,
  knowledge: Knowledge,
  view: string,
  found: Findings | null,
): Exchange<(Repetition | null)[]> {
  const {
    findings,
    catalogue,
    readings: [readings],
  } = yield* study([gathered], view, found);
  const learnt = learnAll(readings, catalogue, knowledge);
  const { held } = learnt.knowledge;
  const stuck = yield* advance(held, catalogue);
  // One transaction has one time, for the statements too that came before the client saw it.
  knowledge.time = learnt.knowledge.time;
  for (const [sequence, value] of held) knowledge.held.set(sequence, value);
  knowledge.catalogue = catalogue;
  knowledge.asked = new Set(findings.asked);
  return repetitions(gathered, readings, learnt.unaccounted, stuck, knowledge);
}

/** True while a client knows something that the server does not. */
function knows({ time, lastval, currval }: Knowledge): boolean {
  return time !== null || lastval !== null || currval.size > 0;
}

/** A request of the client's own, read like one that was not answered yet. */
function readLive(
  request: Uint8Array,
  prepared: ReadonlyMap<string, PreparedStatement>,
  catalogue: Catalogue,
): { gathered: Gathered; readings: Reading[] } {
  const unanswered = { request: UNUSED_REQUEST, input: [request], answer: [], done: false };
  const gathered = walk([unanswered], prepared);
  const readings = gathered.steps.map((step): Reading => {
    const types = step.place.kind === 'bind' ? (step.place.types ?? readParse(step.place.parse, 0).types) : [];
    const parsed = sameText(step, catalogue) ? readable(step) : null;
    const schema = new StatementSchema(catalogue, null, step.elsewhere);
    return { step, parsed, seen: step.seen, types, schema };
  });
  return { gathered, readings };
}

/** See `Mutables.inquire`: asks about names that no repeated statement had. Null when nothing is to be asked. */
export function inquire(
  request: Uint8Array,
  prepared: ReadonlyMap<string, PreparedStatement>,
  knowledge: Knowledge,
): Exchange<void> | null {
  if (!knows(knowledge)) return null;
  const { catalogue: before = EMPTY_CATALOGUE, asked = new Set<string>() } = knowledge;
  const { readings } = readLive(request, prepared, before);
  const names = readings.flatMap(({ parsed }) => (parsed === null ? [] : [namesOf(parsed)]));
  const open = [...questions(names, [])].filter((question) => !asked.has(question));
  if (open.length === 0) return null;
  // Once only, whatever comes of it.
  knowledge.asked = new Set([...asked, ...open]);
  return (function* (): Exchange<void> {
    const more = yield* readCatalogue({ names, columns: [] });
    // The one before may be shared with other sessions.
    knowledge.catalogue = mergeCatalogues(before, more);
  })();
}

/** See `Mutables.adjust`. Takes from `knowledge` what the server will know better when it has run the request. */
export function adjust(
  request: Uint8Array,
  prepared: ReadonlyMap<string, PreparedStatement>,
  knowledge: Knowledge,
): Repetition | null {
  if (!knows(knowledge)) return null;
  const catalogue = knowledge.catalogue ?? EMPTY_CATALOGUE;
  const { gathered, readings } = readLive(request, prepared, catalogue);
  const [repetition] = repetitions(gathered, readings, new Set(), new Set(), knowledge);
  for (const reading of readings) {
    const { parsed, seen, schema, step } = reading;
    const { drawn } = parsed === null ? NO_DRAWS : learn(parsed, seen, schema, copyOf(knowledge));
    if (drawn.length === 0 ? !mayDraw(step, reading) : !triggersDraw(reading, catalogue)) continue;
    knowledge.currval.clear();
    knowledge.lastval = null;
  }
  return repetition;
}

/** Nothing is asked of the request that bytes without an answer belong to. */
const UNUSED_REQUEST = {
  kind: '',
  label: '',
  effect: 'read',
  writes: false,
  guardable: false,
  mustGuard: false,
  joined: false,
  barrier: false,
  provable: true,
} as const;

/** A statement that is written anew, with the values behind its placeholders. */
interface Anew {
  readonly reading: Reading;
  readonly text: string;
  readonly more: readonly SeenValue[];
}

/** Writes the statements anew in their order, and puts them into the requests. `knowledge` goes along and is at last as the client's. */
function repetitions(
  gathered: Gathered,
  readings: readonly Reading[],
  unaccounted: ReadonlySet<Reading>,
  stuck: ReadonlySet<number>,
  knowledge: Knowledge,
): (Repetition | null)[] {
  const anew: Anew[][] = Array.from({ length: gathered.count }, () => []);
  const doubts: Map<string, string>[] = Array.from({ length: gathered.count }, () => new Map());
  for (const reading of readings) {
    const { parsed, seen, schema, step } = reading;
    if (parsed === null) continue;
    learn(parsed, seen, schema, knowledge);
    if (unaccounted.has(reading)) {
      for (const { name } of seen.columns ?? []) doubts[step.request].set(name, NOT_ACCOUNTED);
    } else if (!step.fixed && gathered.requests[step.request] !== null) {
      const bytes = gathered.requests[step.request]!;
      const more: SeenValue[] = [];
      const put =
        step.place.kind === 'query' ? putLiteral : putParameter(readBind(bytes, step.place.at).values.length, more);
      const rewriting = rewrite(parsed, seen, schema, knowledge, put);
      for (const [name, why] of rewriting.doubts) doubts[step.request].set(name, why);
      if (rewriting.text !== null) anew[step.request].push({ reading, text: rewriting.text, more });
    }
  }
  for (const reading of readings) doubtStuck(reading, stuck, doubts[reading.step.request]);
  for (const reading of readings) nameColumns(reading, doubts[reading.step.request]);
  return anew.map((statements, i) => {
    if (statements.length === 0 && doubts[i].size === 0) return null;
    const bytes = gathered.requests[i];
    if (bytes === null) return null;
    const written = statements.length === 0 ? { before: null, bytes } : repetition(bytes, statements);
    return written === null ? null : { ...written, doubts: doubts[i] };
  });
}

/** Says of columns whose values may be issued again why that is so. */
function doubtStuck({ seen, schema }: Reading, stuck: ReadonlySet<number>, doubts: Map<string, string>): void {
  for (const { name, table, attribute } of seen.columns ?? []) {
    const filler = schema.relationOf(table)?.columns.find((column) => column.attribute === attribute)?.filler;
    if (filler?.kind === 'sequence' && stuck.has(filler.sequence)) doubts.set(name, NOT_ADVANCED);
  }
}

/** Where the client knows the columns without having been told in this answer, `partAt` knows only their numbers: gives them names. */
function nameColumns({ step, seen }: Reading, doubts: Map<string, string>): void {
  if (step.seen.columns !== null) return;
  for (const [i, { name }] of (seen.columns ?? []).entries()) {
    const why = doubts.get(name);
    const words = why === undefined ? name : `${name}: ${why}`;
    const number = `column ${i + 1}`;
    const before = doubts.get(number);
    doubts.set(number, before === undefined || before === words ? words : `${before}, or ${words}`);
  }
}

/** A literal of a simple query. */
const putLiteral: Put = ({ bytes }, typeName) =>
  bytes === null
    ? `NULL::${typeName}`
    : `${literal(Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString('utf8'))}::${typeName}`;

/** Placeholders behind the client's own. */
function putParameter(own: number, more: SeenValue[]): Put {
  return (value, typeName) => {
    more.push(value);
    return `$${own + more.length}::${typeName}`;
  };
}

/** The request with these statements in place of the client's; null when it cannot be built. */
function repetition(bytes: Uint8Array, statements: readonly Anew[]): Omit<Repetition, 'doubts'> | null {
  const place = ({ reading }: Anew): number => {
    const { place } = reading.step;
    return place.kind === 'query' ? place.start : place.at;
  };
  const ordered = [...statements].sort((a, b) => place(a) - place(b));
  return ordered[0].reading.step.place.kind === 'query' ? query(bytes, ordered) : extended(bytes, ordered);
}

function query(bytes: Uint8Array, statements: readonly Anew[]): Omit<Repetition, 'doubts'> {
  const parts: Uint8Array[] = [];
  let at = 0;
  for (const { reading, text } of statements) {
    const { place } = reading.step;
    if (place.kind !== 'query') continue;
    parts.push(bytes.subarray(at, place.start), Buffer.from(text, 'utf8'));
    at = place.end;
  }
  parts.push(bytes.subarray(at));
  const frame = Buffer.concat(parts);
  // A Query stands alone: what a client sent in front of it without a Sync is kept as it is.
  let start = 0;
  while (frame[start] !== 0x51) start += lengthAt(frame, start);
  frame.writeUInt32BE(frame.length - start - 1, start + 1);
  return { before: null, bytes: frame };
}

function extended(bytes: Uint8Array, statements: readonly Anew[]): Omit<Repetition, 'doubts'> | null {
  const before: Uint8Array[] = [];
  const parts: Uint8Array[] = [];
  let at = 0;
  for (const [i, { reading, text, more }] of statements.entries()) {
    const { place } = reading.step;
    if (place.kind !== 'bind') return null;
    const bind = readBind(bytes, place.at);
    if (bind.values.length + more.length > MOST_PARAMETERS) return null;
    const name = i === 0 ? OWN : `${OWN}${i + 1}`;
    const types = bind.values.map((_, k) => parameterType(reading, text, k, formatOf(bind.formats, k)));
    const close = serialize.close({ type: 'S', name });
    before.push(close, parseMessage(name, Buffer.from(text, 'utf8'), [...types, ...more.map(() => 0)]));
    parts.push(bytes.subarray(at, place.at), writeBind(bind, name, more));
    at = place.at + lengthAt(bytes, place.at);
  }
  parts.push(bytes.subarray(at));
  return { before: Buffer.concat([...before, SYNC]), bytes: Buffer.concat(parts) };
}

const TEXT = 25;
const BYTEA = 17;

/** Type of a parameter of the client's in the statement that was written anew; 0 where the server is to find out. */
function parameterType({ types }: Reading, text: string, i: number, format: 0 | 1): number {
  const told = types[i] ?? 0;
  if (told !== 0 || new RegExp(`\\$${i + 1}(?!\\d)`).test(text)) return told;
  // What used it was replaced by what was seen: the server could not find out, and any type that takes the value will do.
  return format === 1 ? BYTEA : TEXT;
}
