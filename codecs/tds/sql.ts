/**
 * What a batch of T-SQL does, as far as its text tells: whether it changes something, ends or begins a transaction, changes the session.
 * T-SQL needs nothing between two statements, but its verbs are reserved words: an unquoted one begins a statement wherever it stands, with
 * few exceptions. What is not understood counts as a call of a procedure, which may do anything.
 */

/** A SET of an option whose value stands in the text, outside of any condition. */
export interface Setting {
  /** In capitals; `ISOLATION` for the isolation level. */
  readonly option: string;
  /** The statement that makes it again. */
  readonly text: string;
}

/** What a text does. */
export interface BatchFacts {
  /** A name of it without data: its first verb. */
  readonly label: string;
  /** Number of statements, but for declarations and the like. */
  readonly statements: number;
  /** It changes something durable. */
  readonly writes: boolean;
  /** It calls procedures, or does what cannot be told from its text: anything, perhaps with commits inside. */
  readonly opaque: boolean;
  /** Verbs of transaction control, in their order. */
  readonly control: readonly Control[];
  /** It reads or changes tables: begins a transaction when IMPLICIT_TRANSACTIONS is ON. */
  readonly touchesTables: boolean;
  /** Statements may be left out or repeated when it runs. */
  readonly conditional: boolean;
  readonly settings: readonly Setting[];
  /** What it changes of the session so that it cannot be made again from the text. */
  readonly unknown: readonly string[];
  /** The same where it also outlives a procedure in which the text stands. */
  readonly lasting: readonly string[];
  /** The database that it changes to. */
  readonly database: string | null;
  /** Temporary tables that it makes and drops, with their #. */
  readonly made: readonly string[];
  readonly dropped: readonly string[];
  /** It announces a bulk load. */
  readonly bulk: boolean;
  /** Statements that change something durable. */
  readonly changes: number;
  /** In a transaction of somebody else's it may do other than by itself: it asks for the transaction, cannot run in one, or catches errors. */
  readonly solitary: boolean;
}

/** BEGIN, COMMIT, ROLLBACK or SAVE; the name behind it, empty without one or when a variable holds it. */
export interface Control {
  readonly verb: 'begin' | 'commit' | 'rollback' | 'save';
  readonly name: string;
}

interface Token {
  /** `name` is a quoted word. */
  readonly kind: 'word' | 'name' | 'variable' | 'text' | 'other';
  /** A word in capitals. */
  readonly text: string;
  readonly start: number;
  readonly end: number;
  /** Parentheses around it. */
  readonly depth: number;
}

const WORD = /[\p{L}_#]/u;
const IN_WORD = /[\p{L}\p{Nd}_#@$]/u;
/** The same of ASCII, where nearly all of it is, without the cost of a search. */
const ASCII_WORD = Uint8Array.from({ length: 128 }, (_, code) => Number(WORD.test(String.fromCharCode(code))));
const ASCII_IN_WORD = Uint8Array.from({ length: 128 }, (_, code) => Number(IN_WORD.test(String.fromCharCode(code))));

/** Does a word begin there? */
function beginsWord(sql: string, at: number): boolean {
  const code = sql.charCodeAt(at);
  return code < 128 ? ASCII_WORD[code] === 1 : WORD.test(sql[at]);
}

/** The end of the word that goes on at `at`. */
function wordEnd(sql: string, at: number): number {
  let end = at;
  for (; end < sql.length; end++) {
    const code = sql.charCodeAt(end);
    if (code < 128 ? ASCII_IN_WORD[code] === 0 : !IN_WORD.test(sql[end])) break;
  }
  return end;
}

/** The end of the number that goes on at `at`: digits, letters, underscores and points. */
function numberEnd(sql: string, at: number): number {
  let end = at;
  for (; end < sql.length; end++) {
    const code = sql.charCodeAt(end);
    const digit = code >= 0x30 && code <= 0x39;
    const letter = (code >= 0x41 && code <= 0x5a) || (code >= 0x61 && code <= 0x7a);
    if (!digit && !letter && code !== 0x5f && code !== 0x2e) break;
  }
  return end;
}

function lex(sql: string): Token[] {
  const tokens: Token[] = [];
  let depth = 0;
  for (let at = 0; at < sql.length; ) {
    const c = sql[at];
    const start = at;
    if (c <= ' ' || c === '\u00a0' || c === '\ufeff') {
      at++;
      continue;
    }
    if (c === '-' && sql[at + 1] === '-') {
      const end = sql.indexOf('\n', at);
      at = end < 0 ? sql.length : end + 1;
      continue;
    }
    if (c === '/' && sql[at + 1] === '*') {
      at = commentEnd(sql, at + 2);
      continue;
    }
    let kind: Token['kind'] = 'other';
    let text = c;
    if (c === "'" || c === '"' || c === '[') {
      const close = c === '[' ? ']' : c;
      at++;
      for (;;) {
        const end = sql.indexOf(close, at);
        at = end < 0 ? sql.length : end + 1;
        if (end < 0 || sql[at] !== close) break;
        at++;
      }
      kind = c === "'" ? 'text' : 'name';
      text = sql.slice(start + 1, at - 1).replaceAll(close + close, close);
    } else if ((c === 'N' || c === 'n') && sql[at + 1] === "'") {
      // Its quote is the next token; the letter is part of it.
      at++;
      continue;
    } else if (c === '@' || beginsWord(sql, at)) {
      at = wordEnd(sql, at + 1);
      kind = c === '@' ? 'variable' : 'word';
      text = sql.slice(start, at);
      if (kind === 'word') text = text.toUpperCase();
    } else if (c >= '0' && c <= '9') {
      at = numberEnd(sql, at + 1);
      text = sql.slice(start, at);
    } else {
      at++;
      if (c === ')') depth = Math.max(0, depth - 1);
    }
    tokens.push({ kind, text, start, end: at, depth });
    if (c === '(' && kind === 'other') depth++;
  }
  return tokens;
}

/** Where a comment ends that begins before `from`; comments may stand in comments. */
function commentEnd(sql: string, from: number): number {
  let open = 1;
  let at = from;
  for (; at < sql.length && open > 0; at++) {
    if (sql[at] === '*' && sql[at + 1] === '/') {
      open--;
      at++;
    } else if (sql[at] === '/' && sql[at + 1] === '*') {
      open++;
      at++;
    }
  }
  return at;
}

/** Verbs that change something durable. */
const WRITES = new Set([
  'INSERT',
  'UPDATE',
  'DELETE',
  'MERGE',
  'TRUNCATE',
  'CREATE',
  'ALTER',
  'DROP',
  'GRANT',
  'REVOKE',
  'DENY',
  'UPDATETEXT',
  'WRITETEXT',
]);
/** Verbs of which the text does not tell what they do, or that no transaction can undo. */
const OPAQUE = new Set([
  'EXEC',
  'EXECUTE',
  'BACKUP',
  'RESTORE',
  'DUMP',
  'LOAD',
  'RECONFIGURE',
  'SHUTDOWN',
  'KILL',
  'DBCC',
  'CHECKPOINT',
  'RECEIVE',
  'SEND',
  'OPENQUERY',
  'OPENROWSET',
  'OPENDATASOURCE',
]);
/** Verbs that begin a statement and do nothing durable. */
const HARMLESS = new Set([
  'SELECT',
  'DECLARE',
  'PRINT',
  'RAISERROR',
  'THROW',
  'IF',
  'ELSE',
  'WHILE',
  'BREAK',
  'CONTINUE',
  'GOTO',
  'RETURN',
  'WAITFOR',
  'OPEN',
  'FETCH',
  'CLOSE',
  'DEALLOCATE',
  'READTEXT',
  'WITH',
  'BEGIN',
  'END',
  'COMMIT',
  'ROLLBACK',
  'SAVE',
  'SET',
  'USE',
  'REVERT',
  'SETUSER',
]);
const STARTS = new Set([...WRITES, ...OPAQUE, ...HARMLESS]);
/** What makes statements run once, never or often. */
const CONDITIONS = new Set(['IF', 'WHILE', 'GOTO', 'RETURN', 'TRY', 'THROW']);
/** What asks for the transaction, catches an error (which leaves a transaction that can only be rolled back), or waits with all locks. */
const SOLITARY = new Set(['XACT_STATE', 'CURRENT_TRANSACTION_ID', 'DM_TRAN_CURRENT_TRANSACTION', 'TRY', 'WAITFOR']);
/** Objects that cannot be made, changed or dropped inside a transaction, or whose body is not run here. */
const OUTSIDE = new Set(['DATABASE', 'FULLTEXT', 'AVAILABILITY', 'SERVER', 'ENDPOINT', 'LOGIN']);
const BODIES = new Set(['PROCEDURE', 'PROC', 'FUNCTION', 'TRIGGER', 'VIEW']);

/** Procedures that only tell something. */
const TELLING = new Set([
  'SP_COLUMNS',
  'SP_COLUMNS_100',
  'SP_DATABASES',
  'SP_DATATYPE_INFO',
  'SP_DATATYPE_INFO_100',
  'SP_DESCRIBE_FIRST_RESULT_SET',
  'SP_DESCRIBE_UNDECLARED_PARAMETERS',
  'SP_FKEYS',
  'SP_HELP',
  'SP_HELPDB',
  'SP_HELPINDEX',
  'SP_HELPTEXT',
  'SP_PKEYS',
  'SP_SERVER_INFO',
  'SP_SPECIAL_COLUMNS',
  'SP_SPROC_COLUMNS',
  'SP_SPROC_COLUMNS_100',
  'SP_STATISTICS',
  'SP_STATISTICS_100',
  'SP_STORED_PROCEDURES',
  'SP_TABLES',
  'SP_WHO',
  'SP_WHO2',
]);

/** The name of a procedure alone, in capitals. */
function plainName(name: string): string {
  return name
    .replaceAll(/[[\]"]/g, '')
    .toUpperCase()
    .split('.')
    .at(-1)!;
}

/** True for procedures of the server that change nothing. `name` may be qualified and quoted. */
export function onlyTells(name: string): boolean {
  return TELLING.has(plainName(name));
}

const APPLICATION_LOCK = 'application lock';
/** What procedures of the server leave in the session. */
const KEPT: Readonly<Record<string, string>> = {
  SP_GETAPPLOCK: APPLICATION_LOCK,
  SP_SET_SESSION_CONTEXT: 'session context',
};

/**
 * Does something of a call of this procedure stay in the session, beyond the transaction?
 * @param given makes what tells the value of a parameter by its name or place: '' when it is not given, null when it is not known
 * @returns what stays, in words
 */
export function keptBehind(name: string, given: () => (name: string, place: number) => string | null): string | null {
  const kept = KEPT[plainName(name)] ?? null;
  // By default a lock is the transaction's.
  if (kept !== APPLICATION_LOCK) return kept;
  const owner = given()('LockOwner', 2);
  return owner === null || owner.toUpperCase() === 'SESSION' ? kept : null;
}

/** The only SET that a procedure does not undo behind its end (Transact-SQL, "SET CONTEXT_INFO"). */
export const CONTEXT_INFO = 'CONTEXT_INFO';

/** Longer texts are read anew each time: they seldom come twice. */
const LONGEST = 4096;
/** So many texts are remembered in each of two generations: what was not asked for while the younger one filled up is forgotten with the older. */
const REMEMBERED = 1024;
let young = new Map<string, BatchFacts>();
let old = new Map<string, BatchFacts>();

/** Understands a text. What it gives is shared by all who ask for the same one. */
export function readBatch(sql: string): BatchFacts {
  if (sql.length > LONGEST) return new BatchReader(sql, lex(sql)).read();
  let facts = young.get(sql);
  if (facts !== undefined) return facts;
  facts = old.get(sql) ?? new BatchReader(sql, lex(sql)).read();
  if (young.size === REMEMBERED) {
    old = young;
    young = new Map();
  }
  young.set(sql, facts);
  return facts;
}

class BatchReader {
  private label = '';
  private statements = 0;
  private writes = false;
  private opaque = false;
  private readonly control: Control[] = [];
  private touchesTables = false;
  private conditional = false;
  private readonly settings: Setting[] = [];
  private readonly unknown: string[] = [];
  private readonly lasting: string[] = [];
  private database: string | null = null;
  private readonly made: string[] = [];
  private readonly dropped: string[] = [];
  private bulk = false;
  private changes = 0;
  private solitary = false;
  /** Verb of the statement that is being read. */
  private verb = '';
  /** UPDATE came, and its SET did not. */
  private updating = false;

  constructor(
    private readonly sql: string,
    private readonly tokens: readonly Token[],
  ) {}

  read(): BatchFacts {
    const { tokens } = this;
    const first = tokens.find(({ text }) => text !== ';');
    // A batch that begins with a name calls a procedure.
    if (first !== undefined && (first.kind === 'name' || (first.kind === 'word' && !STARTS.has(first.text)))) {
      this.begin('EXEC');
      this.call(tokens.indexOf(first));
    }
    for (let at = 0; at < tokens.length; at++) {
      const { kind, text } = tokens[at];
      if (kind === 'word') at = this.word(at);
      else if (kind === 'variable' && text.toUpperCase() === '@@TRANCOUNT') this.solitary = true;
    }
    return {
      label: this.label,
      statements: this.statements,
      writes: this.writes,
      opaque: this.opaque,
      control: this.control,
      touchesTables: this.touchesTables,
      conditional: this.conditional,
      changes: this.changes,
      solitary: this.solitary,
      settings: this.settings,
      unknown: this.unknown,
      lasting: this.lasting,
      database: this.database,
      made: this.made,
      dropped: this.dropped,
      bulk: this.bulk,
    };
  }

  private begin(verb: string): void {
    if (this.label === '' || this.label === 'DECLARE' || this.label === 'SET') this.label = verb;
    this.statements++;
    this.verb = verb;
  }

  private textAt(at: number): string {
    const token = this.tokens[at];
    return token === undefined ? '' : token.text;
  }

  private isWord(at: number, ...words: string[]): boolean {
    const token = this.tokens[at];
    return token?.kind === 'word' && words.includes(token.text);
  }

  /** Looks at the word at `at`; returns the last token that it has dealt with. */
  private word(at: number): number {
    const { tokens } = this;
    const { text, depth } = tokens[at];
    // A member of something: a column may have any name there.
    if (this.textAt(at - 1) === '.') return at;
    if (CONDITIONS.has(text)) this.conditional = true;
    if (SOLITARY.has(text)) this.solitary = true;
    if (text.startsWith('#') && (this.verb === 'CREATE' || this.verb === 'DROP')) {
      (this.verb === 'CREATE' ? this.made : this.dropped).push(text.toLowerCase());
    }
    if (OPAQUE.has(text)) return this.opaqueVerb(at);
    if (WRITES.has(text)) {
      this.change(at);
      // What follows is the body of what is made, and does not run.
      const object = this.isWord(at + 1, 'OR') ? at + 3 : at + 1;
      return (text === 'CREATE' || text === 'ALTER') && BODIES.has(this.textAt(object)) ? tokens.length : at;
    }
    switch (text) {
      case 'FROM':
        this.touchesTables = true;
        return at;
      case 'INTO':
        if (this.verb === 'SELECT' && depth === 0) {
          if (this.textAt(at + 1).startsWith('#')) this.made.push(this.textAt(at + 1).toLowerCase());
          else {
            this.writes = true;
            this.changes++;
          }
        }
        return at;
      case 'VALUE':
        if (this.isWord(at - 1, 'NEXT') && this.isWord(at + 1, 'FOR')) {
          this.writes = true;
          this.changes++;
        }
        return at;
      case 'BULK':
        if (this.isWord(at - 1, 'INSERT')) this.bulk = true;
        return at;
      case 'SELECT':
      case 'OPEN':
      case 'FETCH':
        if (depth === 0 && this.verb !== 'INSERT') this.begin(text);
        if (text !== 'SELECT') this.touchesTables = true;
        return at;
      case 'DECLARE':
        if (this.isWord(at + 2, 'CURSOR', 'INSENSITIVE', 'SCROLL')) this.cursor(at);
        this.label ||= text;
        this.verb = text;
        return at;
      case 'PRINT':
      case 'RAISERROR':
      case 'WAITFOR':
        this.begin(text);
        return at;
      case 'REVERT':
      case 'SETUSER':
        this.begin(text);
        this.unknown.push('execution context');
        return at;
      case 'BEGIN':
        return this.beginning(at);
      case 'COMMIT':
      case 'ROLLBACK':
      case 'SAVE':
        return this.ending(at);
      case 'USE':
        if (depth === 0) {
          this.begin('USE');
          this.database = tokens[at + 1] === undefined ? null : this.sourceOf(at + 1);
          return at + 1;
        }
        return at;
      case 'SET':
        return this.set(at);
    }
    return at;
  }

  private sourceOf(at: number): string {
    const { kind, text, start, end } = this.tokens[at];
    return kind === 'name' ? text : this.sql.slice(start, end);
  }

  private change(at: number): void {
    const { text } = this.tokens[at];
    // ON DELETE CASCADE, FOR UPDATE, INNER MERGE JOIN and the like.
    if (this.isWord(at - 1, 'ON', 'FOR', 'OF') && (text === 'UPDATE' || text === 'DELETE')) return;
    if (text === 'MERGE' && this.isWord(at + 1, 'JOIN', 'UNION')) return;
    if (this.verb !== 'MERGE' || this.tokens[at].depth > 0) this.begin(text);
    this.touchesTables = true;
    this.updating = text === 'UPDATE';
    if (text === 'CREATE' || text === 'ALTER' || text === 'DROP') {
      if (OUTSIDE.has(this.textAt(at + 1))) this.opaque = true;
      const temporary = this.isWord(at + 1, 'TABLE') && this.textAt(at + 2).startsWith('#');
      // Gone with its session.
      if (temporary) return;
    }
    this.writes = true;
    this.changes++;
    // What a loop does, it does often.
    if (this.tokens.some(({ kind, text: word }) => kind === 'word' && (word === 'WHILE' || word === 'GOTO')))
      this.changes++;
    // It commits by itself.
    if (text === 'UPDATE' && this.isWord(at + 1, 'STATISTICS')) this.solitary = true;
  }

  private opaqueVerb(at: number): number {
    const { text } = this.tokens[at];
    if (text.startsWith('OPEN')) {
      this.opaque = true;
      return at;
    }
    this.begin(text);
    if (text !== 'EXEC' && text !== 'EXECUTE') {
      this.opaque = true;
      return at;
    }
    if (this.isWord(at + 1, 'AS')) {
      this.unknown.push('execution context');
      return at;
    }
    return this.call(this.textAt(at + 2) === '=' ? at + 3 : at + 1);
  }

  /** A call of the procedure whose name begins at `at`. */
  private call(at: number): number {
    let name = '';
    let end = at;
    for (; end < this.tokens.length; end++) {
      const { kind, text } = this.tokens[end];
      if (kind !== 'word' && kind !== 'name' && text !== '.') break;
      name = text === '.' ? '' : text;
      if (this.textAt(end + 1) !== '.' && text !== '.') break;
    }
    if (onlyTells(name)) this.touchesTables = true;
    else this.opaque = true;
    const kept = keptBehind(name, () => this.givenAt(end + 1));
    if (kept !== null) this.lasting.push(kept);
    return end;
  }

  /** What the call whose parameters begin at `at` gives to one of them. */
  private givenAt(at: number): (name: string, place: number) => string | null {
    const given: (readonly [name: string, value: Token])[] = [];
    let next = at;
    for (; next < this.tokens.length; next++) {
      const named = this.textAt(next + 1) === '=';
      const value = this.tokens[named ? next + 2 : next];
      if (value === undefined || value.text === ';' || (value.kind === 'word' && STARTS.has(value.text))) break;
      given.push([named ? this.textAt(next).toUpperCase() : '', value]);
      while (next < this.tokens.length && this.textAt(next) !== ',' && this.textAt(next) !== ';') next++;
    }
    return (name, place) => {
      const found = given.find(([one], i) => (one === '' ? i === place : one === `@${name.toUpperCase()}`));
      if (found === undefined) return '';
      return found[1].kind === 'variable' ? null : found[1].text;
    };
  }

  private beginning(at: number): number {
    if (this.isWord(at + 1, 'TRY')) this.conditional = true;
    const distributed = this.isWord(at + 1, 'DISTRIBUTED');
    const word = distributed ? at + 2 : at + 1;
    if (!this.isWord(word, 'TRAN', 'TRANSACTION')) {
      if (this.isWord(at + 1, 'DIALOG', 'CONVERSATION')) this.opaque = true;
      return at;
    }
    this.begin('BEGIN TRANSACTION');
    if (distributed) this.unknown.push('distributed transaction');
    return this.named('begin', word);
  }

  private ending(at: number): number {
    const { text } = this.tokens[at];
    const long = this.isWord(at + 1, 'TRAN', 'TRANSACTION', 'WORK');
    if (text === 'SAVE' && !long) return at;
    this.begin(text);
    return this.named(text.toLowerCase() as Control['verb'], long ? at + 1 : at);
  }

  /** Transaction control whose name may stand behind `at`. */
  private named(verb: Control['verb'], at: number): number {
    const next = this.tokens[at + 1];
    const name = next?.kind === 'name' || (next?.kind === 'word' && !STARTS.has(next.text) && next.text !== 'WITH');
    this.control.push({ verb, name: name ? this.sourceOf(at + 1) : '' });
    return name || next?.kind === 'variable' ? at + 1 : at;
  }

  private cursor(at: number): void {
    const rest = this.tokens.slice(at, at + 8).map(({ text }) => text);
    if (!rest.includes('LOCAL')) this.unknown.push('cursor');
  }

  private set(at: number): number {
    const { tokens } = this;
    if (this.updating) {
      this.updating = false;
      return at;
    }
    if (this.verb === 'MERGE' || this.verb === 'ALTER' || tokens[at].depth > 0) return at;
    this.label ||= 'SET';
    this.statements++;
    this.verb = 'SET';
    if (tokens[at + 1] === undefined || tokens[at + 1].kind === 'variable') return at;
    let end = at + 1;
    while (end + 1 < tokens.length && tokens[end + 1].text !== ';') {
      const next = tokens[end + 1];
      if (next.kind === 'word' && STARTS.has(next.text)) break;
      end++;
    }
    const words = tokens.slice(at + 1, end + 1);
    const text = this.sql.slice(tokens[at].start, tokens[end].end);
    const sure = words.every(({ kind }) => kind !== 'variable') && !words.some(({ text }) => text === '(');
    const options = /^SET\s+TRANSACTION\s+ISOLATION/i.test(text)
      ? ['ISOLATION']
      : words
          .filter(({ kind }, i) => kind === 'word' && (i === 0 || words[i - 1].text === ','))
          .map(({ text }) => text);
    for (const option of options) {
      if (option === 'IDENTITY_INSERT' || option === 'STATISTICS') {
        this.settings.push({ option: text.toUpperCase().replace(/\s+(ON|OFF)$/, ''), text });
      } else if (!sure) (option === CONTEXT_INFO ? this.lasting : this.unknown).push(`setting ${option}`);
      else if (options.length > 1) {
        const value = words.at(-1)!.text;
        this.settings.push({ option, text: `SET ${option} ${value}` });
      } else this.settings.push({ option, text });
    }
    return end;
  }
}
