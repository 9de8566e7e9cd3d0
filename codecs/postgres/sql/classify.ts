import {
  type IsolationLevel,
  type SetConfigFact,
  type SetFact,
  type SqlEnvironment,
  type StatementFacts,
  type TransactionModes,
  UNSAFE_ENCODINGS,
} from './facts.js';
import { SESSION_FUNCTIONS } from './functions.js';
import { isKeyword, RESERVED, SPECIAL_FORMS } from './keywords.js';
import { lex, NUMBER, OPERATOR, PARAM, PUNCT, QUOTED, STRING, Tokens, TYPECAST, WORD } from './lexer.js';
import { splitTokens } from './split.js';

type Mutable<T> = { -readonly [K in keyof T]: T[K] };
type Draft = Mutable<StatementFacts>;

const NONE: readonly never[] = Object.freeze([]);

function draft(): Draft {
  // Every field is named, so that all facts share one hidden class.
  return {
    verb: '',
    effect: 'opaque',
    transactional: true,
    idempotent: false,
    changesCatalogue: false,
    functions: NONE,
    names: NONE,
    operators: NONE,
    uncertainNames: false,
    hasModifyingCte: false,
    forUpdate: false,
    selectInto: false,
    explainAnalyze: false,
    chain: false,
    modes: undefined,
    savepoint: undefined,
    gid: undefined,
    local: false,
    set: undefined,
    listen: undefined,
    unlisten: undefined,
    prepare: undefined,
    execute: undefined,
    deallocate: undefined,
    all: false,
    discard: undefined,
    declareCursor: undefined,
    closeCursor: undefined,
    tempTable: undefined,
    dropRelation: undefined,
    sessionFunctions: NONE,
    setConfigs: undefined,
    copy: undefined,
    inner: undefined,
  };
}

/** The facts of a text that cannot be read: unsafe encoding, or no end to a string or comment. */
export const OPAQUE_FACTS: StatementFacts = Object.freeze({
  ...draft(),
  transactional: false,
  uncertainNames: true,
});

/** The facts of an empty statement: the server answers EmptyQueryResponse and does nothing. */
export const EMPTY_FACTS: StatementFacts = Object.freeze({ ...draft(), effect: 'read', idempotent: true } as const);

/** The server cuts identifiers to NAMEDATALEN - 1 bytes. */
const LONGEST_NAME = 63;

/** Strings that are names or options are short; longer ones are not worth their decoding. */
const LONGEST_STRING = 1024;

const LPAREN = 0x28;
const RPAREN = 0x29;
const STAR = 0x2a;
const COMMA = 0x2c;
const DOT = 0x2e;
const RBRACKET = 0x5d;

/** Unreserved words after which an expression may begin; after any other name, `x (` is an alias with a column list. */
const BEFORE_EXPRESSION: ReadonlySet<string> = new Set(
  `at between by content document escape first groups key next passing path range ref rows set value zone local
  like ilike similar overlaps is isnull notnull verbose tablesample binary freeze collation`.split(/\s+/),
);

/** Operator-like words: `a LIKE (b)`, `a JOIN (b ...)`, as against the function like(a, b). */
const INFIX: ReadonlySet<string> = new Set(['join', 'like', 'ilike', 'overlaps', 'is', 'isnull', 'notnull']);

/** Reads names and words off the tokens of one statement. */
class Reader {
  uncertain = false;
  readonly bytes: Buffer;
  readonly tokens: Tokens;
  readonly to: number;
  readonly #env: SqlEnvironment;
  readonly #base: number;
  readonly #words: (string | undefined)[];
  #after: Int32Array | undefined;

  constructor(bytes: Buffer, tokens: Tokens, from: number, to: number, env: SqlEnvironment) {
    this.bytes = bytes;
    this.tokens = tokens;
    this.to = to;
    this.#env = env;
    this.#base = from;
    this.#words = new Array(to - from);
  }

  /** The unquoted word at `i` in lower case, '' where there is none. */
  word(i: number): string {
    if (i < this.#base || i >= this.to || this.tokens.kind[i] !== WORD) return '';
    return (this.#words[i - this.#base] ??= this.#fold(i));
  }

  /** As word, and '' behind a dot too, where every word is a name. */
  keyword(i: number): string {
    return this.punct(i - 1) === DOT ? '' : this.word(i);
  }

  is(i: number, ...sequence: string[]): boolean {
    return sequence.every((word, k) => this.word(i + k) === word);
  }

  punct(i: number): number {
    return i >= this.#base && i < this.to && this.tokens.kind[i] === PUNCT ? this.bytes[this.tokens.start[i]] : 0;
  }

  kind(i: number): number {
    return i >= this.#base && i < this.to ? this.tokens.kind[i] : 0;
  }

  /** Quoted or unquoted identifier (or keyword) at `i` as the server knows it. */
  name(i: number): string | undefined {
    const kind = this.kind(i);
    if (kind === WORD) return this.word(i);
    return kind === QUOTED ? (this.#words[i - this.#base] ??= this.#unquote(i)) : undefined;
  }

  text(i: number): string {
    return this.bytes.toString('latin1', this.tokens.start[i], this.tokens.end[i]);
  }

  /** The value of a plain '..' string at `i`; undefined for other tokens, and for escapes and continued strings. */
  string(i: number): string | undefined {
    if (this.kind(i) !== STRING || this.tokens.end[i] - this.tokens.start[i] > LONGEST_STRING) return undefined;
    const raw = this.bytes.toString('utf8', this.tokens.start[i], this.tokens.end[i]);
    if (!/^'(?:[^'\\]|'')*'$/.test(raw)) return undefined;
    return raw.slice(1, -1).replaceAll("''", "'");
  }

  /** Skips a dotted name that starts at `i`: the index of its last part, or -1. */
  lastPart(i: number): number {
    if (this.name(i) === undefined) return -1;
    while (this.punct(i + 1) === DOT && this.name(i + 2) !== undefined) i += 2;
    return i;
  }

  /** The token after the parenthesis that is opened at `i`. */
  afterParens(i: number): number {
    this.#after ??= this.#matchParens();
    return this.#after[i - this.#base];
  }

  /** Looks for a word outside of parentheses, from `i` on, among at most `limit` tokens; -1 if there is none. */
  find(i: number, word: string, limit: number = this.to): number {
    for (let seen = 0; i < this.to && seen < limit; seen++) {
      if (this.punct(i) === LPAREN) {
        i = this.afterParens(i);
        continue;
      }
      if (this.word(i) === word) return i;
      i++;
    }
    return -1;
  }

  #matchParens(): Int32Array {
    const after = new Int32Array(this.to - this.#base).fill(this.to);
    const open: number[] = [];
    for (let i = this.#base; i < this.to; i++) {
      const c = this.punct(i);
      if (c === LPAREN) open.push(i);
      else if (c === RPAREN && open.length > 0) after[(open.pop() as number) - this.#base] = i + 1;
    }
    return after;
  }

  #fold(i: number): string {
    const start = this.tokens.start[i];
    const end = this.tokens.end[i];
    const text = this.bytes.toString('latin1', start, end);
    // biome-ignore lint/suspicious/noControlCharactersInRegex: the question is whether the text is ASCII
    if (/^[\x00-\x7f]*$/.test(text)) {
      return (end - start > LONGEST_NAME ? text.slice(0, LONGEST_NAME) : text).toLowerCase();
    }
    // Only ASCII letters are folded for sure: the others depend on the server's encoding and locale.
    const name = this.#wide(start, end).replace(/[A-Z]+/g, (upper) => upper.toLowerCase());
    if (name !== name.toLowerCase()) this.uncertain = true;
    return name;
  }

  #wide(start: number, end: number): string {
    if (end - start > LONGEST_NAME || (this.#env.encoding !== undefined && this.#env.encoding !== 'UTF8')) {
      this.uncertain = true;
    }
    return this.bytes.toString('utf8', start, end);
  }

  #unquote(i: number): string {
    let start = this.tokens.start[i];
    const end = this.tokens.end[i] - 1;
    const unicode = this.bytes[start] !== 0x22;
    start += unicode ? 3 : 1;
    const ascii = this.bytes.toString('latin1', start, end);
    // biome-ignore lint/suspicious/noControlCharactersInRegex: the question is whether the text is ASCII
    let name = /^[\x00-\x7f]*$/.test(ascii) ? ascii : this.#wide(start, end);
    if (name.includes('"')) name = name.replaceAll('""', '"');
    if (unicode) {
      const sign = this.word(i + 1) === 'uescape' ? this.string(i + 2) : undefined;
      name = unescapeUnicode(name, sign ?? '\\');
      // biome-ignore lint/suspicious/noControlCharactersInRegex: as above
      if (!/^[\x00-\x7f]*$/.test(name) && Buffer.byteLength(name) > LONGEST_NAME) this.uncertain = true;
    }
    if (name.length > LONGEST_NAME) name = name.slice(0, LONGEST_NAME);
    return name;
  }
}

function unescapeUnicode(text: string, sign: string): string {
  let result = '';
  for (let i = 0; i < text.length; i++) {
    if (text[i] !== sign) {
      result += text[i];
      continue;
    }
    if (text[i + 1] === sign) {
      result += sign;
      i++;
      continue;
    }
    const long = text[i + 1] === '+';
    const digits = long ? text.slice(i + 2, i + 8) : text.slice(i + 1, i + 5);
    const code = Number.parseInt(digits, 16);
    if (!(code >= 0 && code <= 0x10ffff)) return text;
    result += code >= 0xd800 && code < 0xe000 ? String.fromCharCode(code) : String.fromCodePoint(code);
    i += long ? 7 : 4;
  }
  return result;
}

const MODIFYING: ReadonlySet<string> = new Set(['insert', 'update', 'delete', 'merge']);

/**
 * Reads a WITH clause whose WITH is token `i`.
 *
 * Out: `main`, the first token of the statement proper, or -1 where this is another WITH (ORDINALITY, TIES, options);
 * whether one of its queries modifies data; and into `aliases` the names that have a column list, so that they are not
 * taken for functions.
 */
function readWith(r: Reader, i: number, aliases: Set<number>): { main: number; modifying: boolean } {
  let at = i + 1;
  let modifying = false;
  if (r.word(at) === 'recursive' && r.word(at + 1) !== 'as' && r.punct(at + 1) !== LPAREN) at++;
  for (;;) {
    if (r.name(at) === undefined) return { main: -1, modifying };
    const name = at++;
    if (r.punct(at) === LPAREN) at = r.afterParens(at);
    if (r.word(at) !== 'as') return { main: -1, modifying };
    at++;
    if (r.word(at) === 'not') at++;
    if (r.word(at) === 'materialized') at++;
    if (r.punct(at) !== LPAREN) return { main: -1, modifying };
    aliases.add(name);
    let body = at + 1;
    while (r.punct(body) === LPAREN) body++;
    if (MODIFYING.has(r.word(body))) modifying = true;
    at = r.afterParens(at);
    if (r.is(at, 'search') || r.is(at, 'cycle')) at = afterSearchAndCycle(r, at);
    if (r.punct(at) !== COMMA) return { main: at, modifying };
    at++;
  }
}

/** More columns than a query can have; bounds the search in a text that lacks the word. */
const LONGEST_CLAUSE = 4096;

/** SEARCH .. SET column and CYCLE .. SET column [TO v DEFAULT v] USING column, both lists of columns with commas. */
function afterSearchAndCycle(r: Reader, at: number): number {
  if (r.word(at) === 'search') {
    const set = r.find(at, 'set', LONGEST_CLAUSE);
    at = set < 0 ? r.to : set + 2;
  }
  if (r.word(at) === 'cycle') {
    const using = r.find(at, 'using', LONGEST_CLAUSE);
    at = using < 0 ? r.to : using + 2;
  }
  return at;
}

/** Collects functions, names, operators and the flags of queries from tokens [from, to) into `f`. */
function scan(r: Reader, from: number, to: number, f: Draft, main: number, aliases = new Set<number>()): void {
  const functions = new Set<string>();
  const names = new Set<string>();
  const operators = new Set<string>();
  const sessionFunctions: string[] = [];
  const setConfigs: SetConfigFact[] = [];
  const open: number[] = [];
  /** Where the parenthesis was opened that was closed last. */
  let opened = -1;
  for (let i = from; i < to; i++) {
    const kind = r.tokens.kind[i];
    if (kind === PUNCT) {
      const c = r.punct(i);
      if (c === LPAREN) open.push(i);
      else if (c === RPAREN) opened = open.pop() ?? -1;
      continue;
    }
    if (kind === OPERATOR) {
      operators.add(r.text(i));
      continue;
    }
    if (kind !== WORD && kind !== QUOTED) continue;
    const name = r.name(i) as string;
    const afterDot = r.punct(i - 1) === DOT;
    if (kind === WORD && !afterDot && RESERVED.has(name)) {
      const previous = r.keyword(i - 1);
      if (previous === 'as') names.add(name);
      else if (name === 'with') {
        const clause = readWith(r, i, aliases);
        if (clause.modifying) f.hasModifyingCte = true;
        if (clause.main !== main && MODIFYING.has(r.word(clause.main))) f.hasModifyingCte = true;
      } else if (name === 'into') {
        if (previous !== 'insert' && previous !== 'merge') f.selectInto = true;
      } else if (name === 'for') {
        const next = r.word(i + 1);
        if (next === 'update' || next === 'share' || next === 'no' || next === 'key') f.forUpdate = true;
      }
      continue;
    }
    if (kind === WORD && i !== main && !afterDot && MODIFYING.has(name)) {
      // Whatever the surroundings are, these cannot be but the start of a statement (or a column of that name, which
      // costs no more than a guard).
      const next = r.word(i + 1);
      const previous = r.punct(i - 1);
      if (name === 'update' ? previous === LPAREN || previous === RPAREN : next === 'into' || next === 'from') {
        f.hasModifyingCte = true;
      }
    }
    if (r.punct(i + 1) === LPAREN && !aliases.has(i) && isCall(r, i, afterDot, opened)) {
      functions.add(name);
      if (SESSION_FUNCTIONS.has(name)) {
        if (!sessionFunctions.includes(name)) sessionFunctions.push(name);
        if (name === 'set_config') setConfigs.push(readSetConfig(r, i + 1));
      }
    } else {
      names.add(name);
    }
  }
  f.functions = functions.size === 0 ? NONE : [...functions];
  f.names = names.size === 0 ? NONE : [...names];
  f.operators = operators.size === 0 ? NONE : [...operators];
  f.sessionFunctions = sessionFunctions.length === 0 ? NONE : sessionFunctions;
  if (setConfigs.length > 0) f.setConfigs = setConfigs;
  f.uncertainNames = r.uncertain;
}

/**
 * Whether the name at `i`, which an opening parenthesis follows, is called as a function. In doubt yes: a function more
 * costs a guard, one overlooked would cost a commit. What is none: grammar ("IN (", "coalesce("), aliases and tables with
 * a column list, types with modifiers.
 */
function isCall(r: Reader, i: number, afterDot: boolean, opened: number): boolean {
  let first = i;
  while (r.punct(first - 1) === DOT && r.name(first - 2) !== undefined) first -= 2;
  const before = first - 1;
  switch (r.kind(before)) {
    case TYPECAST:
    case QUOTED:
    case STRING:
    case NUMBER:
    case PARAM:
      return false;
    case PUNCT:
      if (r.punct(before) === RPAREN) {
        // "(...) name (" is an alias, except behind the two forms that an expression may follow.
        const opener = r.word(opened - 1);
        if (opener !== 'operator' && !(opener === 'on' && r.word(opened - 2) === 'distinct')) return false;
      }
      break;
    case WORD: {
      const word = r.keyword(before);
      if (word === 'as' || word === 'into' || !isKeyword(word)) return false;
      if (word === 'ordinality' && r.word(before - 1) === 'with') return false;
      if (!afterDot && r.kind(i) === WORD) {
        const name = r.word(i);
        if (INFIX.has(name) && !RESERVED.has(word) && !BEFORE_EXPRESSION.has(word)) return false;
        if (word === 'by' && r.word(before - 1) === 'group' && (name === 'rollup' || name === 'cube')) return false;
        if (name === 'by' && (word === 'order' || word === 'group' || word === 'partition')) return false;
        if (word === 'grouping' && name === 'sets') return false;
        if (word === 'time' && name === 'zone') return false;
        if (word === 'fetch' && (name === 'first' || name === 'next')) return false;
        if (word === 'not' && name === 'materialized' && r.word(before - 1) === 'as') return false;
        if (word === 'not' && (name === 'like' || name === 'ilike') && endsOperand(r, before - 1)) return false;
      }
      break;
    }
  }
  if (afterDot || r.kind(i) === QUOTED) return true;
  const name = r.word(i);
  return !SPECIAL_FORMS.has(name);
}

/** Whether a value may end at `i`, so that a NOT behind it belongs to NOT LIKE. */
function endsOperand(r: Reader, i: number): boolean {
  const kind = r.kind(i);
  if (kind === WORD) return !RESERVED.has(r.word(i));
  if (kind === PUNCT) return r.punct(i) === RPAREN || r.punct(i) === RBRACKET;
  return kind === QUOTED || kind === STRING || kind === NUMBER || kind === PARAM;
}

/** The literal arguments of set_config( ... ); `at` is on the parenthesis. */
function readSetConfig(r: Reader, at: number): SetConfigFact {
  const close = r.afterParens(at) - 1;
  const name = r.punct(at + 2) === COMMA ? r.string(at + 1)?.toLowerCase() : undefined;
  const last = r.punct(close - 2) === COMMA ? (r.string(close - 1) ?? r.word(close - 1)) : '';
  const local = last === 'true' || last === 't' ? true : last === 'false' || last === 'f' ? false : undefined;
  return { name, local };
}

const MODE_WORDS: readonly IsolationLevel[] = ['serializable', 'repeatable read', 'read committed', 'read uncommitted'];

function readModes(r: Reader, i: number): TransactionModes | undefined {
  const modes: Mutable<TransactionModes> = {};
  let found = false;
  for (; i < r.to; i++) {
    if (r.is(i, 'isolation', 'level')) {
      const one = r.word(i + 2);
      const two = one + ' ' + r.word(i + 3);
      modes.isolation = MODE_WORDS.find((mode) => mode === one || mode === two);
      i += one === 'serializable' ? 2 : 3;
    } else if (r.is(i, 'read', 'only')) {
      modes.readOnly = true;
      i++;
    } else if (r.is(i, 'read', 'write')) {
      modes.readOnly = false;
      i++;
    } else if (r.is(i, 'not', 'deferrable')) {
      modes.deferrable = false;
      i++;
    } else if (r.is(i, 'deferrable')) {
      modes.deferrable = true;
    } else {
      continue;
    }
    found = true;
  }
  return found ? modes : undefined;
}

/** COMMIT, END, ROLLBACK, ABORT: skips WORK / TRANSACTION. */
function afterWork(r: Reader, i: number): number {
  const word = r.word(i);
  return word === 'work' || word === 'transaction' ? i + 1 : i;
}

function readSet(r: Reader, i: number, f: Draft): void {
  let scope: SetFact['scope'] = 'session';
  const first = r.word(i);
  if (first === 'constraints') {
    f.verb = 'SET CONSTRAINTS';
    f.set = { name: 'constraints', scope: 'transaction', kind: 'set' };
    f.local = true;
    return;
  }
  if (first === 'transaction') {
    const snapshot = r.is(i + 1, 'snapshot');
    f.verb = 'SET TRANSACTION';
    f.set = { name: snapshot ? 'transaction_snapshot' : 'transaction', scope: 'transaction', kind: 'set' };
    f.modes = readModes(r, i + 1);
    f.local = true;
    return;
  }
  if (first === 'session' && r.is(i + 1, 'characteristics')) {
    f.verb = 'SET SESSION CHARACTERISTICS';
    f.set = { name: 'session characteristics', scope: 'session', kind: 'set' };
    f.modes = readModes(r, i + 2);
    return;
  }
  const isName = r.punct(i + 1) === DOT || isAssignment(r, i + 1);
  if (first === 'local' && !isName) {
    scope = 'local';
    i++;
  } else if (first === 'session' && !isName && r.word(i + 1) !== 'authorization') {
    i++;
  }
  const { name, value } = readParameter(r, i);
  // These are set anew by every transaction.
  if (/^transaction_(isolation|read_only|deferrable)$/.test(name)) scope = 'transaction';
  const reset = r.is(value, 'default') && r.kind(value + 1) === 0;
  f.set = { name, scope, kind: reset ? 'reset' : 'set' };
  f.local = scope !== 'session';
}

function isAssignment(r: Reader, i: number): boolean {
  return r.word(i) === 'to' || (r.kind(i) === OPERATOR && r.text(i) === '=');
}

/** The parameter named at `i`, in one of the spellings of SET and RESET, and where its value begins. */
function readParameter(r: Reader, i: number): { name: string; value: number } {
  if (r.is(i, 'time', 'zone')) return { name: 'timezone', value: i + 2 };
  if (r.is(i, 'session', 'authorization')) return { name: 'session_authorization', value: i + 2 };
  if (r.is(i, 'xml', 'option')) return { name: 'xmloption', value: i + 2 };
  if (r.is(i, 'transaction', 'isolation', 'level')) return { name: 'transaction_isolation', value: i + 3 };
  if (!isAssignment(r, i + 1)) {
    if (r.is(i, 'role')) return { name: 'role', value: i + 1 };
    if (r.is(i, 'names')) return { name: 'client_encoding', value: i + 1 };
    if (r.is(i, 'schema')) return { name: 'search_path', value: i + 1 };
  }
  const last = r.lastPart(i);
  if (last < 0) return { name: '', value: i };
  let name = '';
  for (let k = i; k <= last; k += 2) name += (name === '' ? '' : '.') + (r.name(k) as string).toLowerCase();
  return { name, value: last + 2 };
}

/** Kinds of objects from which a Catalogue is made. */
const MATTERS: ReadonlySet<string> = new Set([
  'FUNCTION',
  'PROCEDURE',
  'ROUTINE',
  'AGGREGATE',
  'VIEW',
  'OPERATOR',
  'OPERATOR CLASS',
  'CAST',
  'DOMAIN',
  'TYPE',
  'POLICY',
  'FOREIGN TABLE',
  'EXTENSION',
  'SCHEMA',
  'RULE',
]);

const DROPS_RELATIONS: ReadonlySet<string> = new Set([
  'TABLE',
  'VIEW',
  'SEQUENCE',
  'MATERIALIZED VIEW',
  'FOREIGN TABLE',
]);

/** Words between CREATE and the kind of object. */
const CREATE_NOISE: ReadonlySet<string> = new Set(
  'or replace temp temporary local global unlogged unique recursive trusted procedural constraint default'.split(' '),
);

/** Kinds of objects that take two words or more; the others take one. */
const OBJECT_KINDS: ReadonlySet<string> = new Set([
  'materialized view',
  'foreign table',
  'foreign schema',
  'event trigger',
  'user mapping',
  'operator class',
  'operator family',
  'text search',
  'access method',
  'default privileges',
  'large object',
]);

/** Reads the kind of object at `i`: TABLE, MATERIALIZED VIEW, TEXT SEARCH, ...; and the token after it. */
function readKind(r: Reader, i: number): { kind: string; after: number } {
  const one = r.word(i);
  const two = one + ' ' + r.word(i + 1);
  if (one === 'foreign' && r.is(i + 1, 'data', 'wrapper')) return { kind: 'FOREIGN DATA WRAPPER', after: i + 3 };
  if (one === 'text') return { kind: ('text search ' + r.word(i + 2)).toUpperCase().trim(), after: i + 3 };
  if (OBJECT_KINDS.has(two)) return { kind: two.toUpperCase(), after: i + 2 };
  return { kind: one.toUpperCase(), after: i + 1 };
}

function readCreate(r: Reader, i: number, f: Draft): void {
  let temporary = false;
  let constraint = false;
  while (CREATE_NOISE.has(r.word(i))) {
    const word = r.word(i);
    if (word === 'temp' || word === 'temporary') temporary = true;
    if (word === 'constraint') constraint = true;
    i++;
  }
  const { kind, after } = readKind(r, i);
  f.changesCatalogue = MATTERS.has(kind);
  f.verb = ('CREATE ' + (constraint && kind === 'TRIGGER' ? 'CONSTRAINT TRIGGER' : kind)).trim();
  let at = after;
  if (kind === 'INDEX' && r.word(at) === 'concurrently') f.transactional = false;
  if (kind === 'DATABASE' || kind === 'TABLESPACE') f.transactional = false;
  // Only a subscription that makes no slot may be created in a transaction block.
  if (kind === 'SUBSCRIPTION') f.transactional = optionIsOff(r, at, 'create_slot') || optionIsOff(r, at, 'connect');
  if (r.is(at, 'if', 'not', 'exists')) at += 3;
  const schema = r.name(at);
  const last = r.lastPart(at);
  if (last < 0) return;
  if (last > at && schema !== undefined && /^pg_temp(_\d+)?$/.test(schema)) temporary = true;
  if (temporary) {
    let onCommitDrop = false;
    for (let k = last; k < r.to; k++) if (r.is(k, 'on', 'commit', 'drop')) onCommitDrop = true;
    f.tempTable = { name: r.name(last) as string, onCommitDrop };
  }
}

/** Whether a WITH (...) option list from `i` on switches `option` off. */
function optionIsOff(r: Reader, i: number, option: string): boolean {
  for (; i < r.to; i++) {
    if (r.word(i) !== option || r.kind(i + 1) !== OPERATOR) continue;
    const value = r.string(i + 2) ?? r.word(i + 2);
    return value === 'false' || value === 'off' || (r.kind(i + 2) === NUMBER && r.text(i + 2) === '0');
  }
  return false;
}

function readAlter(r: Reader, i: number, f: Draft): void {
  const { kind, after } = readKind(r, i);
  f.changesCatalogue = kind === 'TABLE' || MATTERS.has(kind);
  f.verb = ('ALTER ' + kind).trim();
  if (kind === 'SYSTEM') {
    f.transactional = false;
    f.idempotent = true;
  } else if (kind === 'DATABASE') {
    const last = r.lastPart(after);
    if (r.is(last + 1, 'set', 'tablespace')) f.transactional = false;
  } else if (kind === 'SUBSCRIPTION') {
    const action = r.word(r.lastPart(after) + 1);
    f.transactional = ['enable', 'disable', 'owner', 'rename', 'connection', 'skip'].includes(action);
  } else if (kind === 'TABLE') {
    const detach = r.find(after, 'detach');
    if (detach >= 0 && r.word(r.to - 1) === 'concurrently') f.transactional = false;
  }
}

function readDrop(r: Reader, i: number, f: Draft): void {
  const { kind, after } = readKind(r, i);
  f.changesCatalogue = MATTERS.has(kind);
  f.verb = ('DROP ' + kind).trim();
  let at = after;
  if (kind === 'DATABASE' || kind === 'TABLESPACE' || kind === 'SUBSCRIPTION') f.transactional = false;
  if (kind === 'INDEX' && r.word(at) === 'concurrently') f.transactional = false;
  if (!DROPS_RELATIONS.has(kind)) return;
  if (r.is(at, 'if', 'exists')) at += 2;
  const dropped: string[] = [];
  for (;;) {
    const last = r.lastPart(at);
    if (last < 0) break;
    dropped.push(r.name(last) as string);
    if (r.punct(last + 1) !== COMMA) break;
    at = last + 2;
  }
  f.dropRelation = dropped;
}

function readCopy(r: Reader, i: number, f: Draft, env: SqlEnvironment, depth: number): StatementFacts {
  let at = i;
  if (r.punct(at) === LPAREN) {
    const after = r.afterParens(at);
    adopt(f, classifyTokens(r.bytes, r.tokens, at + 1, after - 1, env, depth + 1));
    takeSessionFunctions(f);
    at = after;
  } else {
    if (r.word(at) === 'binary' && r.word(at + 1) !== 'from' && r.word(at + 1) !== 'to') at++;
    const relation = r.lastPart(at);
    at = relation + 1;
    if (relation >= 0 && r.punct(at) === LPAREN) at = r.afterParens(at);
    scan(r, i, r.to, f, i, new Set([relation]));
    f.selectInto = false;
  }
  const direction = r.word(at) === 'from' ? 'in' : r.word(at) === 'to' ? 'out' : undefined;
  const other = r.word(at + 1);
  const peer = other === 'stdin' || other === 'stdout' ? 'client' : other === 'program' ? 'program' : 'file';
  if (direction === undefined) {
    f.transactional = false;
    return freeze(f);
  }
  f.copy = { direction, peer };
  if (peer !== 'client') f.effect = 'write';
  else if (direction === 'in') f.effect = 'copyIn';
  else f.effect = f.inner === undefined || f.inner.effect === 'read' ? 'copyOut' : 'write';
  return freeze(f);
}

/** Options of EXPLAIN: where the statement begins, and whether it is executed. */
function readExplain(r: Reader, i: number): { at: number; analyze: boolean } {
  let analyze = false;
  const next = r.word(i + 1);
  const query =
    next === 'select' || next === 'with' || next === 'values' || next === 'table' || r.punct(i + 1) === LPAREN;
  if (r.punct(i) === LPAREN && !query) {
    const after = r.afterParens(i);
    for (let k = i + 1; k < after - 1; k++) {
      const option = r.name(k);
      if (option !== 'analyze' && option !== 'analyse') continue;
      const previous = r.punct(k - 1);
      if (previous !== LPAREN && previous !== COMMA) continue;
      const value = (r.string(k + 1) ?? r.name(k + 1) ?? '').toLowerCase();
      const off = value === 'false' || value === 'off' || (r.kind(k + 1) === NUMBER && r.text(k + 1) === '0');
      if (!off) analyze = true;
    }
    return { at: after, analyze };
  }
  if (r.word(i) === 'analyze' || r.word(i) === 'analyse') {
    analyze = true;
    i++;
  }
  if (r.word(i) === 'verbose') i++;
  return { at: i, analyze };
}

/** The facts that the statement inside gives to the statement around it. */
function adopt(f: Draft, inner: StatementFacts): void {
  f.inner = inner;
  f.functions = inner.functions;
  f.names = inner.names;
  f.operators = inner.operators;
  f.uncertainNames ||= inner.uncertainNames;
  f.hasModifyingCte = inner.hasModifyingCte;
  f.forUpdate = inner.forUpdate;
  f.selectInto = inner.selectInto;
}

/** Statements that write, and that need no closer look. */
const PLAIN_WRITES: ReadonlySet<string> = new Set(
  'insert update delete merge truncate grant revoke comment security refresh reassign import notify'.split(' '),
);

const TWO_WORD_VERBS: ReadonlySet<string> = new Set(['refresh', 'security', 'reassign', 'import']);

/** EXPLAIN of a DECLARE of a query is as deep as statements go inside statements. */
const DEEPEST = 3;

/** Reads the statement in tokens [from, to), of which there is at least one. */
export function classifyTokens(
  bytes: Buffer,
  tokens: Tokens,
  from: number,
  to: number,
  env: SqlEnvironment,
  depth = 0,
): StatementFacts {
  if (from >= to) return EMPTY_FACTS;
  if (depth > DEEPEST) return OPAQUE_FACTS;
  const r = new Reader(bytes, tokens, from, to, env);
  const f = draft();
  let main = from;
  while (r.punct(main) === LPAREN) main++;
  let word = r.word(main);
  if (word === 'with') {
    const clause = readWith(r, main, new Set());
    if (clause.main < 0) {
      f.verb = 'WITH';
      f.effect = 'write';
      scan(r, from, to, f, -1);
      return freeze(f);
    }
    main = clause.main;
    while (r.punct(main) === LPAREN) main++;
    word = r.word(main);
  }
  f.verb = word.toUpperCase();
  switch (word) {
    case 'select':
    case 'values':
    case 'table':
      scan(r, from, to, f, main);
      f.effect = f.selectInto || f.hasModifyingCte ? 'write' : 'read';
      if (f.selectInto) readInto(r, f);
      return freeze(f);
    case 'begin':
    case 'start':
      if (word === 'start' && r.word(main + 1) !== 'transaction') break;
      if (word === 'start') f.verb = 'START TRANSACTION';
      f.effect = 'begin';
      f.modes = readModes(r, main + 1);
      return freeze(f);
    case 'commit':
    case 'end':
    case 'rollback':
    case 'abort':
      readEnd(r, main, word, f);
      return freeze(f);
    case 'savepoint':
      f.effect = 'savepoint';
      f.savepoint = { op: 'savepoint', name: r.name(main + 1) ?? '' };
      return freeze(f);
    case 'release': {
      const at = r.word(main + 1) === 'savepoint' && r.kind(main + 2) !== 0 ? main + 2 : main + 1;
      f.effect = 'savepoint';
      f.savepoint = { op: 'release', name: r.name(at) ?? '' };
      return freeze(f);
    }
    case 'set':
      f.effect = 'session';
      readSet(r, main + 1, f);
      return finish(r, from, to, f, main);
    case 'reset': {
      f.effect = 'session';
      const all = r.word(main + 1) === 'all' && r.kind(main + 2) === 0;
      f.set = all
        ? { name: 'all', scope: 'session', kind: 'reset-all' }
        : { name: readParameter(r, main + 1).name, scope: 'session', kind: 'reset' };
      return freeze(f);
    }
    case 'show':
      f.effect = 'read';
      return freeze(f);
    case 'listen':
      f.effect = 'session';
      f.listen = r.name(main + 1);
      return freeze(f);
    case 'unlisten':
      f.effect = 'session';
      f.unlisten =
        r.name(main + 1) ?? (r.kind(main + 1) === OPERATOR && bytes[tokens.start[main + 1]] === STAR ? '*' : '');
      return freeze(f);
    case 'load':
      f.effect = 'session';
      return freeze(f);
    case 'prepare':
      return readPrepare(r, main, f, env, depth);
    case 'execute':
      f.effect = 'write';
      f.execute = r.name(main + 1);
      scan(r, main + 2, to, f, -1);
      return freeze(f);
    case 'deallocate': {
      const at = r.word(main + 1) === 'prepare' && r.kind(main + 2) !== 0 ? main + 2 : main + 1;
      f.effect = 'session';
      f.all = r.word(at) === 'all';
      f.deallocate = r.name(at);
      return freeze(f);
    }
    case 'discard': {
      const what = r.word(main + 1);
      f.effect = 'session';
      if (what === 'all' || what === 'plans' || what === 'sequences') f.discard = what;
      else if (what === 'temp' || what === 'temporary') f.discard = 'temp';
      f.transactional = what !== 'all';
      return freeze(f);
    }
    case 'declare': {
      const query = r.find(main, 'for');
      const name = r.name(main + 1);
      const cursor = r.find(main + 2, 'cursor');
      if (query < 0 || name === undefined || cursor < 0) break;
      adopt(f, classifyTokens(bytes, tokens, query + 1, to, env, depth + 1));
      takeSessionFunctions(f);
      f.effect = 'cursor';
      f.declareCursor = { name, hold: r.is(cursor + 1, 'with', 'hold') };
      return freeze(f);
    }
    case 'close':
      f.effect = 'cursor';
      f.all = r.word(main + 1) === 'all';
      f.closeCursor = r.name(main + 1);
      return freeze(f);
    case 'fetch':
    case 'move':
      f.effect = 'read';
      return freeze(f);
    case 'explain': {
      const { at, analyze } = readExplain(r, main + 1);
      if (at >= to) break;
      const inner = classifyTokens(bytes, tokens, at, to, env, depth + 1);
      adopt(f, inner);
      f.explainAnalyze = analyze;
      f.effect = analyze && inner.effect !== 'read' ? 'write' : 'read';
      if (analyze) {
        takeSessionFunctions(f);
        f.execute = inner.execute;
        f.tempTable = inner.tempTable;
      }
      return freeze(f);
    }
    case 'copy':
      return readCopy(r, main + 1, f, env, depth);
    case 'lock':
      f.effect = 'read';
      f.forUpdate = true;
      return finish(r, from, to, f, main);
    case 'checkpoint':
      f.effect = 'read';
      f.idempotent = true;
      return freeze(f);
    case 'analyze':
    case 'analyse':
      f.verb = 'ANALYZE';
      f.effect = 'write';
      f.idempotent = true;
      return finish(r, from, to, f, main);
    case 'vacuum':
    case 'cluster':
      f.effect = 'write';
      f.transactional = false;
      f.idempotent = true;
      return finish(r, from, to, f, main);
    case 'reindex': {
      f.effect = 'write';
      f.transactional = false;
      // Its interrupted concurrent form leaves an invalid index behind.
      let concurrently = false;
      for (let k = main + 1; k < to; k++) if (r.word(k) === 'concurrently') concurrently = true;
      f.idempotent = !concurrently;
      return finish(r, from, to, f, main);
    }
    case 'create':
    case 'alter':
    case 'drop':
      f.effect = 'write';
      if (word === 'create') readCreate(r, main + 1, f);
      else if (word === 'alter') readAlter(r, main + 1, f);
      else readDrop(r, main + 1, f);
      return finish(r, from, to, f, main);
    case 'call':
    case 'do':
      f.effect = 'opaque';
      f.transactional = false;
      return finish(r, from, to, f, main);
    default:
      if (!PLAIN_WRITES.has(word)) break;
      f.effect = 'write';
      f.idempotent = word === 'refresh';
      f.changesCatalogue = word === 'import';
      if (TWO_WORD_VERBS.has(word)) f.verb = word.toUpperCase() + ' ' + readKind(r, main + 1).kind;
      return finish(r, from, to, f, main);
  }
  f.effect = 'opaque';
  f.transactional = false;
  return finish(r, from, to, f, main);
}

function finish(r: Reader, from: number, to: number, f: Draft, main: number): StatementFacts {
  scan(r, from, to, f, main);
  // INTO, FOR and the like mean something else outside of queries.
  if (f.verb !== 'LOCK') f.forUpdate = false;
  f.selectInto = false;
  return freeze(f);
}

function takeSessionFunctions(f: Draft): void {
  f.sessionFunctions = f.inner?.sessionFunctions ?? NONE;
  f.setConfigs = f.inner?.setConfigs;
}

/** SELECT ... INTO [TEMP | UNLOGGED] [TABLE] name */
function readInto(r: Reader, f: Draft): void {
  let at = -1;
  for (let i = r.to - 1; i >= 0 && at < 0; i--) {
    const previous = r.keyword(i - 1);
    if (r.keyword(i) === 'into' && previous !== 'insert' && previous !== 'merge') at = i + 1;
  }
  let temporary = false;
  for (;;) {
    const word = r.word(at);
    if (word === 'temp' || word === 'temporary') temporary = true;
    else if (word !== 'local' && word !== 'global' && word !== 'unlogged' && word !== 'table') break;
    at++;
  }
  const last = r.lastPart(at);
  if (last > at && /^pg_temp(_\d+)?$/.test(r.name(at) as string)) temporary = true;
  if (temporary && last >= 0) f.tempTable = { name: r.name(last) as string, onCommitDrop: false };
}

function readEnd(r: Reader, main: number, word: string, f: Draft): void {
  const commit = word === 'commit' || word === 'end';
  f.verb = commit ? 'COMMIT' : 'ROLLBACK';
  if (r.word(main + 1) === 'prepared' && (word === 'commit' || word === 'rollback')) {
    f.verb = commit ? 'COMMIT PREPARED' : 'ROLLBACK PREPARED';
    f.effect = commit ? 'commitPrepared' : 'rollbackPrepared';
    f.transactional = false;
    f.gid = r.string(main + 2);
    return;
  }
  const at = afterWork(r, main + 1);
  if (word === 'rollback' && r.word(at) === 'to') {
    const name = r.word(at + 1) === 'savepoint' && r.kind(at + 2) !== 0 ? at + 2 : at + 1;
    f.verb = 'ROLLBACK TO SAVEPOINT';
    f.effect = 'savepoint';
    f.savepoint = { op: 'rollbackTo', name: r.name(name) ?? '' };
    return;
  }
  f.effect = commit ? 'commit' : 'rollback';
  f.chain = r.is(at, 'and', 'chain');
}

function readPrepare(r: Reader, main: number, f: Draft, env: SqlEnvironment, depth: number): StatementFacts {
  if (r.word(main + 1) === 'transaction' && r.kind(main + 2) === STRING) {
    f.verb = 'PREPARE TRANSACTION';
    f.effect = 'prepareTransaction';
    f.gid = r.string(main + 2);
    return freeze(f);
  }
  f.effect = 'session';
  f.prepare = r.name(main + 1);
  const at = r.punct(main + 2) === LPAREN ? r.afterParens(main + 2) : main + 2;
  if (r.word(at) === 'as') adopt(f, classifyTokens(r.bytes, r.tokens, at + 1, r.to, env, depth + 1));
  return freeze(f);
}

function freeze(f: Draft): StatementFacts {
  for (const list of [f.functions, f.names, f.operators, f.sessionFunctions]) Object.freeze(list);
  return Object.freeze(f);
}

const scratch = new Tokens();

/** Whether the text cannot be read byte by byte: an unsafe client encoding, and a byte above ASCII. */
export function isUnreadable(bytes: Uint8Array, start: number, end: number, env: SqlEnvironment): boolean {
  if (env.encoding === undefined || !UNSAFE_ENCODINGS.has(env.encoding)) return false;
  for (let i = start; i < end; i++) if (bytes[i] >= 0x80) return true;
  return false;
}

/** A view of the same memory as a Buffer, for its fast slices. */
export function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.isBuffer(bytes) ? bytes : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/**
 * The facts of the one statement in bytes[start, end). Text with more than one statement, text that has no proper end and
 * text that cannot be read byte by byte is opaque; text without a statement is EMPTY_FACTS. Never throws.
 */
export function classifyStatement(bytes: Uint8Array, start: number, end: number, env: SqlEnvironment): StatementFacts {
  if (isUnreadable(bytes, start, end, env)) return OPAQUE_FACTS;
  const tokens = lex(bytes, start, end, env.standardConformingStrings, scratch);
  if (tokens.unterminated || tokens.zero) return OPAQUE_FACTS;
  const ranges = splitTokens(bytes, tokens);
  if (ranges.length === 0) return EMPTY_FACTS;
  if (ranges.length > 1) return OPAQUE_FACTS;
  return classifyTokens(asBuffer(bytes), tokens, ranges[0].from, ranges[0].to, env);
}
