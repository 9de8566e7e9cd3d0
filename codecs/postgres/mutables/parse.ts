import { loadModule, parseSync } from 'libpg-query';
import { lex, QUOTED, type Tokens, WORD } from '../sql/lexer.js';

await loadModule();

/**
 * The parts of PostgreSQL's parse tree (parsenodes.h, as libpg-query's JSON tells it) that are looked at here. A field of type Node* holds
 * an object whose only key is the node's kind; fields that are false, 0 or empty are not there. Locations are bytes of the UTF-8 text.
 */
export interface Node {
  readonly InsertStmt?: InsertStmt;
  readonly UpdateStmt?: UpdateStmt;
  readonly DeleteStmt?: UpdateStmt;
  readonly MergeStmt?: UpdateStmt;
  readonly SelectStmt?: SelectStmt;
  readonly FuncCall?: FuncCall;
  readonly SQLValueFunction?: SqlValueFunction;
  readonly TypeCast?: { readonly arg: Node; readonly typeName: TypeNameNode; readonly location?: number };
  readonly A_Const?: Constant;
  readonly ColumnRef?: { readonly fields: readonly Node[]; readonly location?: number };
  readonly A_Star?: object;
  readonly A_Expr?: { readonly kind: string };
  readonly A_Indirection?: { readonly arg: Node; readonly indirection: readonly Node[] };
  readonly CollateClause?: { readonly arg: Node };
  readonly CaseExpr?: { readonly defresult?: Node };
  readonly MinMaxExpr?: { readonly op: string };
  readonly SubLink?: { readonly subLinkType: string; readonly subselect: Node };
  readonly XmlExpr?: { readonly op: string };
  readonly JsonFuncExpr?: { readonly op: string };
  readonly ParamRef?: object;
  readonly SetToDefault?: { readonly location: number };
  readonly MultiAssignRef?: object;
  readonly String?: { readonly sval?: string };
  readonly List?: { readonly items?: readonly Node[] };
  readonly RangeVar?: RangeVar;
  readonly RangeFunction?: RangeFunction;
  readonly ResTarget?: ResTarget;
  readonly CommonTableExpr?: { readonly ctename: string; readonly ctequery: Node };
}

export interface Constant {
  readonly isnull?: boolean;
  readonly sval?: { readonly sval?: string };
  readonly ival?: { readonly ival?: number };
  readonly fval?: { readonly fval?: string };
  readonly boolval?: { readonly boolval?: boolean };
}

export interface TypeNameNode {
  readonly names?: readonly Node[];
}

export interface RangeVar {
  readonly schemaname?: string;
  readonly relname: string;
  readonly alias?: { readonly aliasname: string };
  readonly location?: number;
}

export interface RangeFunction {
  readonly ordinality?: boolean;
  readonly is_rowsfrom?: boolean;
  readonly functions: readonly Node[];
  readonly alias?: object;
  readonly coldeflist?: object;
}

export interface FuncCall {
  readonly funcname: readonly Node[];
  readonly args?: readonly Node[];
  readonly funcformat?: string;
  readonly location?: number;
}

export interface SqlValueFunction {
  readonly op: string;
  readonly typmod?: number;
  readonly location?: number;
}

/** An item of a list of targets: `val AS name`, a column of INSERT (name alone), or `name = val` of UPDATE. */
export interface ResTarget {
  readonly name?: string;
  readonly indirection?: readonly Node[];
  readonly val?: Node;
  readonly location?: number;
}

export interface WithClause {
  readonly ctes: readonly Node[];
}

export interface SelectStmt {
  readonly targetList?: readonly Node[];
  readonly intoClause?: object;
  readonly fromClause?: readonly Node[];
  readonly whereClause?: Node;
  readonly groupClause?: readonly Node[];
  readonly havingClause?: Node;
  readonly distinctClause?: readonly Node[];
  readonly valuesLists?: readonly Node[];
  readonly sortClause?: readonly Node[];
  readonly limitOffset?: Node;
  readonly limitCount?: Node;
  readonly lockingClause?: readonly Node[];
  readonly withClause?: WithClause;
  readonly op: string;
  readonly larg?: SelectStmt;
  readonly rarg?: SelectStmt;
}

export interface ReturningClause {
  readonly options?: readonly Node[];
  readonly exprs: readonly Node[];
}

export interface InsertStmt {
  readonly relation: RangeVar;
  readonly cols?: readonly Node[];
  readonly selectStmt?: Node;
  readonly onConflictClause?: {
    readonly action: string;
    readonly targetList?: readonly Node[];
    readonly whereClause?: Node;
    readonly location?: number;
  };
  readonly returningClause?: ReturningClause;
  readonly withClause?: WithClause;
  readonly override?: string;
}

/** Also of DELETE and MERGE, which have the same names for the same things. */
export interface UpdateStmt {
  readonly relation: RangeVar;
  readonly targetList?: readonly Node[];
  readonly fromClause?: readonly Node[];
  readonly usingClause?: readonly Node[];
  readonly sourceRelation?: Node;
  readonly mergeWhenClauses?: readonly Node[];
  readonly returningClause?: ReturningClause;
  readonly withClause?: WithClause;
}

/** A piece of the text, in bytes. */
export interface Span {
  readonly start: number;
  readonly end: number;
}

/** Words that end a list of expressions at its own depth; all of them are reserved, so they name nothing unless behind AS or a dot. */
const CLAUSES: ReadonlySet<string> = new Set(
  'into from where group having window union intersect except order limit offset fetch for returning on'.split(' '),
);

const OPENING: ReadonlySet<string> = new Set(['(', '[']);
const CLOSING: ReadonlySet<string> = new Set([')', ']']);

/** One statement: its text, tokens and tree. */
export class Source {
  readonly bytes: Buffer;
  readonly #tokens: Tokens;

  constructor(
    readonly text: string,
    readonly statement: Node,
  ) {
    this.bytes = Buffer.from(text);
    this.#tokens = lex(this.bytes, 0, this.bytes.length, true);
  }

  /** Tokens, without comments. */
  get count(): number {
    return this.#tokens.count;
  }

  start(token: number): number {
    return this.#tokens.start[token];
  }

  end(token: number): number {
    return this.#tokens.end[token];
  }

  /** The token's own text; of a word in lower case. Empty behind the last one. */
  word(token: number): string {
    if (token < 0 || token >= this.count) return '';
    const text = this.bytes.toString('utf8', this.start(token), this.end(token));
    return this.#tokens.kind[token] === WORD ? text.toLowerCase() : text;
  }

  /** The token is a word or a quoted identifier. */
  isName(token: number): boolean {
    return token < this.count && (this.#tokens.kind[token] === WORD || this.#tokens.kind[token] === QUOTED);
  }

  /** Number of the first token that begins at this byte or behind it. */
  tokenAt(byte: number): number {
    let low = 0;
    let high = this.count;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.start(middle) < byte) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** The token behind a name with its qualifications. */
  afterName(token: number): number {
    let at = token + 1;
    while (this.word(at) === '.') at += 2;
    return at;
  }

  /** The token that closes the parenthesis that this one opens; the number of tokens when there is none. */
  closing(token: number): number {
    let depth = 0;
    for (let at = token; at < this.count; at++) {
      const word = this.word(at);
      if (OPENING.has(word)) depth++;
      else if (CLOSING.has(word) && --depth === 0) return at;
    }
    return this.count;
  }

  /** The token begins a clause: it is not a name, and no part of IS DISTINCT FROM or WITHIN GROUP. */
  #isClause(at: number): boolean {
    const word = this.word(at);
    if (!CLAUSES.has(word)) return false;
    const before = this.word(at - 1);
    if (before === 'as' || before === '.') return false;
    if (word === 'from') return before !== 'distinct';
    return word !== 'group' || before !== 'within';
  }

  /**
   * Cuts a list at its commas, from the token on.
   * @returns the items, and the token behind the list: what closes the parenthesis around it, or begins the next clause
   */
  list(token: number): { readonly items: Span[]; readonly next: number } {
    const items: Span[] = [];
    let depth = 0;
    let first = token;
    let at = token;
    for (; at < this.count; at++) {
      const word = this.word(at);
      if (OPENING.has(word)) depth++;
      else if (CLOSING.has(word)) {
        if (depth === 0) break;
        depth--;
      } else if (depth === 0) {
        if (word === ';' || this.#isClause(at)) break;
        if (word === ',') {
          items.push({ start: this.start(first), end: this.end(at - 1) });
          first = at + 1;
        }
      }
    }
    if (at > first) items.push({ start: this.start(first), end: this.end(at - 1) });
    return { items, next: at };
  }

  /** First token from here on with one of these words at the depth of this one; what closes that depth, or the end, when there is none. */
  find(token: number, words: ReadonlySet<string>): number {
    let depth = 0;
    for (let at = token; at < this.count; at++) {
      const word = this.word(at);
      if (OPENING.has(word)) depth++;
      else if (CLOSING.has(word)) {
        if (depth === 0) return at;
        depth--;
      } else if (depth === 0 && (word === ';' || words.has(word))) {
        const before = this.word(at - 1);
        if (before !== 'as' && before !== '.') return at;
      }
    }
    return this.count;
  }

  /** All of the statement without a semicolon behind it. */
  get whole(): Span {
    let last = this.count - 1;
    while (last > 0 && this.word(last) === ';') last--;
    return { start: this.start(0), end: this.end(last) };
  }

  slice({ start, end }: Span): string {
    return this.bytes.toString('utf8', start, end);
  }
}

/** Texts that were read lately: prepared statements come again and again. */
const known = new Map<string, Source | null>();
const KNOWN = 256;
const LONGEST_KNOWN = 16_384;

/**
 * Reads a text with PostgreSQL's own parser.
 * @returns null when it is not one statement, or cannot be read
 */
export function parse(text: string): Source | null {
  const before = known.get(text);
  if (before !== undefined) {
    known.delete(text);
    known.set(text, before);
    return before;
  }
  const source = parseAnew(text);
  if (text.length <= LONGEST_KNOWN) {
    if (known.size >= KNOWN) known.delete(known.keys().next().value as string);
    known.set(text, source);
  }
  return source;
}

function parseAnew(text: string): Source | null {
  try {
    const { stmts } = parseSync(text) as { stmts?: readonly { readonly stmt?: Node }[] };
    if (stmts?.length !== 1 || stmts[0].stmt === undefined) return null;
    return new Source(text, stmts[0].stmt);
  } catch {
    // A syntax error, or nested deeper than the parser goes.
    return null;
  }
}

/**
 * Visits every node of a tree from the outside in; a node is given with its kind. Bodies in fields that can hold only one kind are visited under
 * the name of the field (`relation`, `withClause`, `larg`, ...).
 */
export function walk(root: unknown, visit: (kind: string, body: object) => void): void {
  if (Array.isArray(root)) {
    for (const each of root) walk(each, visit);
  } else if (root !== null && typeof root === 'object') {
    for (const [kind, body] of Object.entries(root)) {
      if (body === null || typeof body !== 'object') continue;
      if (!Array.isArray(body)) visit(kind, body);
      walk(body, visit);
    }
  }
}

/** Whether a node of this kind is in the tree. */
export function contains(root: unknown, kinds: ReadonlySet<string>): boolean {
  let found = false;
  walk(root, (kind) => {
    found ||= kinds.has(kind);
  });
  return found;
}

/** The text of a String node. */
export function string(node: Node | undefined): string | undefined {
  return node?.String === undefined ? undefined : (node.String.sval ?? '');
}

/** The targets in a list of them. */
export function targets(list: readonly Node[] | undefined): readonly ResTarget[] {
  return (list ?? []).map((node) => node.ResTarget ?? {});
}

/** An identifier as it is written in SQL. */
export function quoted(name: string): string {
  return `"${name.replaceAll('"', '""')}"`;
}

const XML_NAMES: Readonly<Record<string, string>> = {
  IS_XMLCONCAT: 'xmlconcat',
  IS_XMLELEMENT: 'xmlelement',
  IS_XMLFOREST: 'xmlforest',
  IS_XMLPARSE: 'xmlparse',
  IS_XMLPI: 'xmlpi',
  IS_XMLROOT: 'xmlroot',
};

const JSON_NAMES: Readonly<Record<string, string>> = {
  JSON_EXISTS_OP: 'json_exists',
  JSON_QUERY_OP: 'json_query',
  JSON_VALUE_OP: 'json_value',
};

/** Kinds of which the name alone decides. */
const PLAIN_NAMES: Readonly<Record<string, string>> = {
  GroupingFunc: 'grouping',
  MergeSupportFunc: 'merge_action',
  A_ArrayExpr: 'array',
  RowExpr: 'row',
  CoalesceExpr: 'coalesce',
  XmlSerialize: 'xmlserialize',
  JsonParseExpr: 'json',
  JsonScalarExpr: 'json_scalar',
  JsonSerializeExpr: 'json_serialize',
  JsonObjectConstructor: 'json_object',
  JsonArrayConstructor: 'json_array',
  JsonArrayQueryConstructor: 'json_array',
  JsonObjectAgg: 'json_objectagg',
  JsonArrayAgg: 'json_arrayagg',
};

/**
 * The name that PostgreSQL gives a target without an alias (parse_target.c, FigureColname).
 * @returns null when it cannot be told from the text
 */
export function columnName(node: Node): string | null {
  const { name, strength } = figure(node);
  return strength < 0 ? null : (name ?? '?column?');
}

interface Figured {
  readonly name?: string;
  /** How good the name is, as the server's source has it; -1: not known. */
  readonly strength: number;
}

const NOTHING: Figured = { strength: 0 };

function figure(node: Node | undefined): Figured {
  if (node === undefined) return NOTHING;
  if (node.ColumnRef) return lastName(node.ColumnRef.fields) ?? NOTHING;
  if (node.A_Indirection) return lastName(node.A_Indirection.indirection) ?? figure(node.A_Indirection.arg);
  if (node.FuncCall) return { name: string(node.FuncCall.funcname.at(-1)), strength: 2 };
  if (node.A_Expr) return node.A_Expr.kind === 'AEXPR_NULLIF' ? { name: 'nullif', strength: 2 } : NOTHING;
  if (node.CollateClause) return figure(node.CollateClause.arg);
  if (node.TypeCast) {
    const inner = figure(node.TypeCast.arg);
    const name = string(node.TypeCast.typeName.names?.at(-1));
    return Math.abs(inner.strength) > 1 || name === undefined ? inner : { name, strength: 1 };
  }
  if (node.CaseExpr) {
    const inner = figure(node.CaseExpr.defresult);
    return inner.strength > 1 || inner.strength < 0 ? inner : { name: 'case', strength: 1 };
  }
  if (node.SubLink) return figureSublink(node.SubLink.subLinkType, node.SubLink.subselect.SelectStmt);
  if (node.MinMaxExpr) return { name: node.MinMaxExpr.op === 'IS_LEAST' ? 'least' : 'greatest', strength: 2 };
  if (node.SQLValueFunction) {
    const name = node.SQLValueFunction.op.replace(/^SVFOP_/, '').replace(/_N$/, '');
    return { name: name.toLowerCase(), strength: 2 };
  }
  if (node.XmlExpr && XML_NAMES[node.XmlExpr.op]) return { name: XML_NAMES[node.XmlExpr.op], strength: 2 };
  if (node.JsonFuncExpr) return { name: JSON_NAMES[node.JsonFuncExpr.op], strength: 2 };
  const plain = PLAIN_NAMES[Object.keys(node)[0]];
  return plain === undefined ? NOTHING : { name: plain, strength: 2 };
}

function lastName(nodes: readonly Node[]): Figured | null {
  const name = nodes.map(string).findLast((each) => each !== undefined);
  return name === undefined ? null : { name, strength: 2 };
}

function figureSublink(type: string, select: SelectStmt | undefined): Figured {
  if (type === 'EXISTS_SUBLINK') return { name: 'exists', strength: 2 };
  if (type === 'ARRAY_SUBLINK') return { name: 'array', strength: 2 };
  if (type !== 'EXPR_SUBLINK') return NOTHING;
  let first = select;
  while (first?.larg) first = first.larg;
  if (first?.valuesLists) return { name: 'column1', strength: 2 };
  const target = first?.targetList?.[0]?.ResTarget;
  if (target?.val === undefined || target.val.ColumnRef?.fields.at(-1)?.A_Star) return { strength: -1 };
  const name = target.name ?? columnName(target.val);
  return name === null ? { strength: -1 } : { name, strength: 2 };
}

/** Changes to a text, by bytes. What lies inside a piece that is replaced is replaced with it. */
export class Edits {
  readonly #edits: (Span & { readonly text: string; readonly order: number })[] = [];

  get empty(): boolean {
    return this.#edits.length === 0;
  }

  replace(span: Span, text: string): void {
    this.#edits.push({ start: span.start, end: span.end, text, order: this.#edits.length });
  }

  insert(at: number, text: string): void {
    this.replace({ start: at, end: at }, text);
  }

  /** Whether anything inside of the span changes. */
  touches(span: Span): boolean {
    return this.#edits.some(({ start, end }) => start >= span.start && end <= span.end && end > start);
  }

  apply(bytes: Buffer): string {
    const edits = [...this.#edits]
      // What is inserted at a place comes before what replaces the text behind it; of two replacements the longer one counts.
      .sort((a, b) => a.start - b.start || rank(a) - rank(b) || b.end - a.end || a.order - b.order);
    let text = '';
    let at = 0;
    for (const edit of edits) {
      if (edit.start < at) continue;
      text += bytes.toString('utf8', at, edit.start) + edit.text;
      at = edit.end;
    }
    return text + bytes.toString('utf8', at);
  }
}

function rank({ start, end }: Span): number {
  return start === end ? 0 : 1;
}
