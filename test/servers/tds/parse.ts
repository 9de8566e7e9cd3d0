import { TdsError } from './errors.js';
import { type SqlType, typeNamed } from './types.js';

/** A word of T-SQL. */
export interface Token {
  readonly kind: 'word' | 'name' | 'string' | 'number' | 'hex' | 'variable' | 'global' | 'sign';
  /** Without quotes and brackets, and with its own upper and lower case. */
  readonly text: string;
  readonly line: number;
  /** Of a string: N'...'. */
  readonly national?: true;
}

const TOKEN =
  /\s+|--[^\n]*|(?<name>\[(?:[^\]]|\]\])*\])|(?<quoted>"(?:[^"]|"")*")|(?<string>[Nn]?'(?:[^']|'')*')|(?<hex>0[xX][0-9a-fA-F]*)|(?<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)|(?<global>@@\w+)|(?<variable>@[\w$#@]+)|(?<word>[A-Za-z_#\u0080-\uffff][\w$#@\u0080-\uffff]*)|(?<sign><>|<=|>=|!=|!<|!>|\+=|-=|\*=|\/=|::|[-+*/%&|^~=<>().,;:{}])/y;

/**
 * The tokens of a batch.
 * @param quotedNames whether text in double quotes is a name (QUOTED_IDENTIFIER ON)
 */
export function tokens(text: string, quotedNames = true): Token[] {
  const found: Token[] = [];
  let line = 1;
  let at = 0;
  while (at < text.length) {
    if (text.startsWith('/*', at)) {
      const end = commentEnd(text, at);
      line += newlines(text.slice(at, end));
      at = end;
      continue;
    }
    TOKEN.lastIndex = at;
    const match = TOKEN.exec(text);
    if (match === null) {
      if (/['"[]/.test(text[at]))
        throw new TdsError(105, 'Unclosed quotation mark after the character string.', { line });
      throw syntaxError(text[at], line);
    }
    at = TOKEN.lastIndex;
    const groups = match.groups!;
    if (groups.name !== undefined)
      found.push({ kind: 'name', text: match[0].slice(1, -1).replaceAll(']]', ']'), line });
    else if (groups.quoted !== undefined) {
      found.push({ kind: quotedNames ? 'name' : 'string', text: match[0].slice(1, -1).replaceAll('""', '"'), line });
    } else if (groups.string !== undefined) {
      const text = match[0].replace(/^[Nn]?'|'$/g, '').replaceAll("''", "'");
      found.push(
        /^[Nn]/.test(match[0]) ? { kind: 'string', text, line, national: true } : { kind: 'string', text, line },
      );
    } else {
      const kind = (['hex', 'number', 'global', 'variable', 'word', 'sign'] as const).find((name) => groups[name]);
      if (kind !== undefined) found.push({ kind, text: match[0], line });
    }
    line += newlines(match[0]);
  }
  return found;
}

function commentEnd(text: string, start: number): number {
  let depth = 0;
  for (let at = start; at < text.length; at++) {
    if (text.startsWith('/*', at)) {
      depth++;
      at++;
    } else if (text.startsWith('*/', at)) {
      depth--;
      at++;
      if (depth === 0) return at + 1;
    }
  }
  throw new TdsError(113, "Missing end comment mark '*/'.", {});
}

function newlines(text: string): number {
  return text.split('\n').length - 1;
}

export function syntaxError(near: string, line: number): TdsError {
  return new TdsError(102, `Incorrect syntax near '${near}'.`, { line });
}

/** Whether a token is this word or sign. */
export function is(token: Token | undefined, ...texts: readonly string[]): boolean {
  return (
    token !== undefined && (token.kind === 'word' || token.kind === 'sign') && texts.includes(token.text.toUpperCase())
  );
}

/** One argument of EXEC. */
export interface Argument {
  readonly name: string | null;
  readonly value: readonly Token[];
  readonly output: boolean;
}

export interface Declared {
  readonly name: string;
  readonly type: SqlType;
  readonly value: readonly Token[] | null;
  readonly output: boolean;
}

/** A statement of a batch. `sql` is what PostgreSQL runs, in words that are translated later. */
export type Statement = { readonly line: number } & (
  | { readonly kind: 'sql'; readonly verb: string; readonly tokens: readonly Token[] }
  | {
      readonly kind: 'if';
      readonly condition: readonly Token[];
      readonly then: Statement;
      readonly otherwise: Statement | null;
    }
  | { readonly kind: 'while'; readonly condition: readonly Token[]; readonly body: Statement }
  | { readonly kind: 'block'; readonly body: readonly Statement[] }
  | { readonly kind: 'try'; readonly body: readonly Statement[]; readonly handler: readonly Statement[] }
  | { readonly kind: 'declare'; readonly variables: readonly Declared[] }
  | { readonly kind: 'table variable'; readonly name: string; readonly columns: readonly Token[] }
  | { readonly kind: 'assign'; readonly name: string; readonly operator: string; readonly value: readonly Token[] }
  | { readonly kind: 'set'; readonly words: readonly Token[] }
  | { readonly kind: 'begin' | 'commit' | 'rollback' | 'save'; readonly name: readonly Token[] }
  | { readonly kind: 'print' | 'return' | 'kill'; readonly value: readonly Token[] }
  | { readonly kind: 'raiserror' | 'throw'; readonly values: readonly (readonly Token[])[]; readonly options: string[] }
  | { readonly kind: 'waitfor'; readonly what: string; readonly value: readonly Token[] }
  | { readonly kind: 'use'; readonly database: string }
  | {
      readonly kind: 'exec';
      readonly procedure: string;
      readonly result: string | null;
      readonly text: readonly Token[] | null;
      readonly values: readonly Argument[];
    }
  | { readonly kind: 'procedure'; readonly name: string; readonly replace: boolean; readonly text: readonly Token[] }
  | { readonly kind: 'bulk'; readonly table: readonly Token[]; readonly columns: readonly string[] }
  | { readonly kind: 'break' | 'continue' | 'nothing' }
);

/** What begins a statement, and thereby ends the one before it. */
const STARTS = new Set(
  (
    'SELECT INSERT UPDATE DELETE SET DECLARE IF WHILE BEGIN END ELSE COMMIT ROLLBACK SAVE PRINT RAISERROR THROW WAITFOR USE ' +
    'EXEC EXECUTE CREATE DROP ALTER TRUNCATE KILL RETURN BREAK CONTINUE MERGE DBCC CHECKPOINT GRANT REVOKE DENY GOTO'
  ).split(' '),
);

/** Reads a batch. Throws a {@link TdsError} 102, 156 or alike for what is not in the dialect. */
export function parse(batch: readonly Token[]): Statement[] {
  return new Parser(batch).all();
}

class Parser {
  #at = 0;

  constructor(private readonly list: readonly Token[]) {}

  all(): Statement[] {
    const found: Statement[] = [];
    for (;;) {
      while (this.#take(';'));
      if (this.#at >= this.list.length) return found;
      found.push(this.#statement());
    }
  }

  get #next(): Token | undefined {
    return this.list[this.#at];
  }

  #is(...texts: string[]): boolean {
    return is(this.#next, ...texts);
  }

  #take(...texts: string[]): boolean {
    if (!this.#is(...texts)) return false;
    this.#at++;
    return true;
  }

  #want(...texts: string[]): void {
    if (!this.#take(...texts)) throw this.#unexpected();
  }

  #unexpected(): TdsError {
    const token = this.#next ?? this.list.at(-1);
    return syntaxError(token?.text ?? '', token?.line ?? 1);
  }

  #any(): Token {
    const token = this.#next;
    if (token === undefined) throw this.#unexpected();
    this.#at++;
    return token;
  }

  #statement(): Statement {
    const { line } = this.#next!;
    const word = this.#next!.kind === 'word' ? this.#next!.text.toUpperCase() : '';
    switch (word) {
      case 'SELECT':
      case 'INSERT':
      case 'UPDATE':
      case 'DELETE':
      case 'WITH':
      case 'DROP':
      case 'ALTER':
      case 'TRUNCATE':
      case 'GRANT':
      case 'REVOKE':
        return this.#sql(word, line);
      case 'CREATE':
        return this.#create(line);
      case 'IF': {
        this.#at++;
        const condition = this.#expression();
        const then = this.#inner();
        const ahead = this.#at;
        while (this.#take(';'));
        if (this.#take('ELSE')) return { line, kind: 'if', condition, then, otherwise: this.#inner() };
        this.#at = ahead;
        return { line, kind: 'if', condition, then, otherwise: null };
      }
      case 'WHILE':
        this.#at++;
        return { line, kind: 'while', condition: this.#expression(), body: this.#inner() };
      case 'BEGIN':
        return this.#begin(line);
      case 'COMMIT':
      case 'ROLLBACK':
      case 'SAVE': {
        this.#at++;
        const tran = this.#take('TRAN', 'TRANSACTION', 'WORK');
        return { line, kind: word.toLowerCase() as 'commit', name: tran ? this.#name() : [] };
      }
      case 'DECLARE':
        this.#at++;
        return this.#declare(line);
      case 'SET':
        return this.#set(line);
      case 'PRINT':
      case 'RETURN':
      case 'KILL':
        this.#at++;
        return { line, kind: word.toLowerCase() as 'print', value: this.#expression() };
      case 'RAISERROR':
      case 'THROW':
        return this.#raise(word, line);
      case 'WAITFOR': {
        this.#at++;
        const what = this.#any().text.toUpperCase();
        return { line, kind: 'waitfor', what, value: this.#expression() };
      }
      case 'USE':
        this.#at++;
        return { line, kind: 'use', database: this.#any().text };
      case 'EXEC':
      case 'EXECUTE':
        this.#at++;
        return this.#exec(line);
      case 'BREAK':
      case 'CONTINUE':
        this.#at++;
        return { line, kind: word.toLowerCase() as 'break' };
      case 'CHECKPOINT':
        this.#at++;
        return { line, kind: 'nothing' };
      case 'DBCC':
        this.#at++;
        this.#expression();
        return { line, kind: 'nothing' };
      default:
        // A procedure's name alone at the start of a batch is a call of it.
        if (this.#at === 0 && this.list[0].kind !== 'sign' && !STARTS.has(word)) return this.#exec(line);
        throw this.#unexpected();
    }
  }

  /** The statement that IF, ELSE and WHILE rule. */
  #inner(): Statement {
    if (this.#next === undefined) throw this.#unexpected();
    const statement = this.#statement();
    this.#take(';');
    return statement;
  }

  #begin(line: number): Statement {
    this.#at++;
    if (this.#take('TRAN', 'TRANSACTION')) {
      const name = this.#name();
      if (this.#take('WITH')) {
        this.#want('MARK');
        if (this.#next?.kind === 'string') this.#at++;
      }
      return { line, kind: 'begin', name };
    }
    if (this.#take('TRY')) {
      const body = this.#until('TRY');
      while (this.#take(';'));
      this.#want('BEGIN');
      this.#want('CATCH');
      return { line, kind: 'try', body, handler: this.#until('CATCH') };
    }
    return { line, kind: 'block', body: this.#until(null) };
  }

  #until(word: string | null): Statement[] {
    const body: Statement[] = [];
    for (;;) {
      while (this.#take(';'));
      if (this.#take('END')) break;
      if (this.#next === undefined) throw this.#unexpected();
      body.push(this.#statement());
    }
    if (word !== null) this.#want(word);
    return body;
  }

  /** A name of a transaction, or a variable that holds one; nothing where there is none. */
  #name(): Token[] {
    const token = this.#next;
    if (
      token === undefined ||
      token.kind === 'sign' ||
      (token.kind === 'word' && STARTS.has(token.text.toUpperCase()))
    ) {
      return [];
    }
    if (token.kind === 'word' && token.text.toUpperCase() === 'WITH') return [];
    this.#at++;
    return [token];
  }

  #declare(line: number): Statement {
    const variables: Declared[] = [];
    do {
      const variable = this.#any();
      if (variable.kind !== 'variable') throw syntaxError(variable.text, variable.line);
      this.#take('AS');
      if (this.#take('TABLE')) {
        return { line, kind: 'table variable', name: variable.text.toLowerCase(), columns: this.#group() };
      }
      const type = this.#type();
      const value = this.#take('=') ? this.#expression(',') : null;
      variables.push({ name: variable.text.toLowerCase(), type, value, output: false });
    } while (this.#take(','));
    return { line, kind: 'declare', variables };
  }

  #type(): SqlType {
    const { type, length } = readTypeAt(this.list, this.#at);
    this.#at += length;
    return type;
  }

  /** What stands in brackets, without them. */
  #group(): Token[] {
    if (!this.#is('(')) throw this.#unexpected();
    const end = closing(this.list, this.#at);
    const inside = this.list.slice(this.#at + 1, end);
    this.#at = end + 1;
    return inside;
  }

  #set(line: number): Statement {
    this.#at++;
    if (this.#next?.kind === 'variable') {
      const name = this.#any().text.toLowerCase();
      const operator = this.#any().text;
      if (!['=', '+=', '-=', '*=', '/='].includes(operator)) throw syntaxError(operator, line);
      return { line, kind: 'assign', name, operator, value: this.#expression() };
    }
    const words: Token[] = [];
    // "SET TRANSACTION" and the like begin no statement of their own.
    do words.push(this.#any());
    while (this.#next !== undefined && !is(this.#next, ';') && !this.#startsHere());
    return { line, kind: 'set', words };
  }

  #raise(word: string, line: number): Statement {
    this.#at++;
    let values: Token[][] = [];
    if (word === 'RAISERROR') values = split(this.#group(), ',');
    else if (this.#next !== undefined && !this.#is(';') && !this.#startsHere()) values = split(this.#expression(), ',');
    const options: string[] = [];
    if (this.#take('WITH')) {
      do options.push(this.#any().text.toUpperCase());
      while (this.#take(','));
    }
    return { line, kind: word.toLowerCase() as 'throw', values, options };
  }

  #exec(line: number): Statement {
    if (this.#is('(')) {
      return { line, kind: 'exec', procedure: '', result: null, text: this.#group(), values: [] };
    }
    let result: string | null = null;
    if (this.#next?.kind === 'variable' && is(this.list[this.#at + 1], '=')) {
      result = this.#any().text.toLowerCase();
      this.#at++;
    }
    const parts = [this.#any().text];
    while (this.#take('.')) parts.push(this.#is('.') ? '' : this.#any().text);
    const values: Argument[] = [];
    if (this.#next !== undefined && !this.#is(';') && !this.#startsHere()) {
      do {
        let name: string | null = null;
        if (this.#next?.kind === 'variable' && is(this.list[this.#at + 1], '=')) {
          name = this.#any().text.toLowerCase();
          this.#at++;
        }
        const value = this.#expression(',', 'OUTPUT', 'OUT');
        values.push({ name, value, output: this.#take('OUTPUT', 'OUT') });
      } while (this.#take(','));
    }
    const procedure = parts
      .filter((part) => part.toLowerCase() !== 'dbo' && part !== '')
      .join('.')
      .toLowerCase();
    return { line, kind: 'exec', procedure, result, text: null, values };
  }

  #create(line: number): Statement {
    const start = this.#at;
    this.#at++;
    const replace = this.#take('OR');
    if (replace) this.#want('ALTER');
    if (this.#take('PROC', 'PROCEDURE')) {
      let name = this.#any().text;
      while (this.#take('.')) name = this.#any().text;
      // A procedure's text is all that follows in its batch.
      const text = this.list.slice(this.#at);
      this.#at = this.list.length;
      return { line, kind: 'procedure', name: name.toLowerCase(), replace, text };
    }
    this.#at = start;
    return this.#sql('CREATE', line);
  }

  /** A statement for PostgreSQL: all tokens up to where the next one begins. */
  #sql(verb: string, line: number): Statement {
    const start = this.#at;
    this.#at++;
    if (verb === 'INSERT' && this.#take('BULK')) return this.#bulk(line);
    const found = this.list[start];
    const own = {
      select: verb === 'INSERT' || verb === 'WITH',
      set: verb === 'UPDATE' || verb === 'WITH',
      dml: verb === 'WITH',
    };
    let cases = 0;
    while (this.#next !== undefined && !this.#is(';')) {
      const token = this.#next;
      const before = this.list[this.#at - 1];
      if (is(token, '(')) {
        this.#at = closing(this.list, this.#at) + 1;
        continue;
      }
      // What follows the rows of an INSERT is a statement of its own.
      if (is(token, 'VALUES')) own.select = false;
      if (is(token, 'CASE')) cases++;
      else if (cases > 0) {
        if (is(token, 'END')) cases--;
      } else if (token.kind === 'word' && STARTS.has(token.text.toUpperCase())) {
        const word = token.text.toUpperCase();
        const goesOn =
          is(before, '.', 'ON', 'FOR') ||
          (word === 'SELECT' && (own.select || is(before, 'UNION', 'ALL', 'EXCEPT', 'INTERSECT', 'AS'))) ||
          (word === 'SET' && own.set) ||
          (own.dml && ['INSERT', 'UPDATE', 'DELETE'].includes(word)) ||
          (verb === 'INSERT' && (word === 'EXEC' || word === 'EXECUTE')) ||
          (verb === 'ALTER' && ['DROP', 'ALTER', 'SET'].includes(word)) ||
          (verb === 'DROP' && word === 'IF') ||
          // GRANT SELECT, EXECUTE ON ...
          ((verb === 'GRANT' || verb === 'REVOKE') && is(before, verb, ',')) ||
          (verb === 'CREATE' && this.#at === start + 1);
        if (!goesOn) break;
        if (word === 'SELECT') own.select = false;
        if (word === 'SET') own.set = false;
        if (own.dml && ['INSERT', 'UPDATE', 'DELETE', 'SELECT'].includes(word)) {
          own.dml = false;
          own.select = word === 'INSERT';
          own.set = word === 'UPDATE';
        }
      } else if (token.kind === 'word' && token.text.toUpperCase() === 'WITH' && this.#cteFollows()) {
        // INSERT ... WITH is no T-SQL, so that this is a statement of its own.
        break;
      }
      this.#at++;
    }
    return { line, kind: 'sql', verb, tokens: [found, ...this.list.slice(start + 1, this.#at)] };
  }

  #cteFollows(): boolean {
    const [name, as] = [this.list[this.#at + 1], this.list[this.#at + 2]];
    return (name?.kind === 'word' || name?.kind === 'name') && is(as, 'AS', '(') && !is(name, 'MARK');
  }

  #bulk(line: number): Statement {
    const table: Token[] = [];
    while (!this.#is('(')) table.push(this.#any());
    const columns = split(this.#group(), ',').map((column) => column[0].text);
    if (this.#take('WITH')) this.#group();
    return { line, kind: 'bulk', table, columns };
  }

  #startsHere(): boolean {
    return this.#next?.kind === 'word' && STARTS.has(this.#next.text.toUpperCase());
  }

  /** An expression: up to what begins a statement, or one of the given words, outside of brackets and CASE. */
  #expression(...stops: string[]): Token[] {
    const start = this.#at;
    let cases = 0;
    while (this.#next !== undefined && !this.#is(';')) {
      if (this.#is('(')) {
        this.#at = closing(this.list, this.#at) + 1;
        continue;
      }
      if (this.#is('CASE')) cases++;
      else if (cases > 0) {
        if (this.#is('END')) cases--;
      } else if (this.#is(...stops) || this.#startsHere()) break;
      this.#at++;
    }
    return this.list.slice(start, this.#at);
  }
}

/** Where the bracket at this place is closed. */
export function closing(list: readonly Token[], at: number): number {
  let depth = 0;
  for (let i = at; i < list.length; i++) {
    if (list[i].kind !== 'sign') continue;
    if (list[i].text === '(') depth++;
    else if (list[i].text === ')' && --depth === 0) return i;
  }
  throw syntaxError(list.at(-1)!.text, list.at(-1)!.line);
}

/** Cuts tokens at a sign or word, outside of brackets. Nothing at all is no part. */
export function split(list: readonly Token[], ...at: string[]): Token[][] {
  if (list.length === 0) return [];
  const parts: Token[][] = [[]];
  for (let i = 0; i < list.length; i++) {
    if (is(list[i], '(')) {
      const end = closing(list, i);
      parts.at(-1)!.push(...list.slice(i, end + 1));
      i = end;
    } else if (is(list[i], ...at)) parts.push([]);
    else parts.at(-1)!.push(list[i]);
  }
  return parts;
}

/** Reads a type at a place; `length` is the number of its tokens. Throws 2715 for a type there is none of. */
export function readTypeAt(list: readonly Token[], at: number): { type: SqlType; length: number } {
  let end = at;
  while (is(list[end + 1], '.')) end += 2;
  const word = list[end];
  if (word === undefined || (word.kind !== 'word' && word.kind !== 'name')) {
    throw syntaxError(list.at(-1)?.text ?? '', list.at(-1)?.line ?? 1);
  }
  let sizes: number[] = [];
  if (is(list[end + 1], '(')) {
    const close = closing(list, end + 1);
    sizes = split(list.slice(end + 2, close), ',').map(([size]) => (is(size, 'MAX') ? -1 : Number(size?.text)));
    end = close;
  } else if (is(word, 'DOUBLE') && is(list[end + 1], 'PRECISION')) {
    return { type: { name: 'float' }, length: end + 2 - at };
  }
  const type = typeNamed(word.text, sizes);
  if (type === null) {
    throw new TdsError(2715, `Column, parameter, or variable: Cannot find data type ${word.text}.`, {
      line: word.line,
    });
  }
  return { type, length: end + 1 - at };
}

/** Reads a list of parameters, as sp_executesql, sp_prepare and CREATE PROCEDURE have it. */
export function readParameters(list: readonly Token[]): Declared[] {
  return split(list, ',').map((part) => {
    const [variable] = part;
    if (variable?.kind !== 'variable') throw syntaxError(variable?.text ?? '', variable?.line ?? 1);
    const start = is(part[1], 'AS') ? 2 : 1;
    const { type, length } = readTypeAt(part, start);
    const rest = part.slice(start + length);
    const output = is(rest.at(-1), 'OUT', 'OUTPUT');
    const value = is(rest[0], '=') ? rest.slice(1, output ? -1 : undefined) : null;
    return { name: variable.text.toLowerCase(), type, value, output };
  });
}
