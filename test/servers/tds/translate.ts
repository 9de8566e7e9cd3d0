import { TdsError } from './errors.js';
import { closing, is, readTypeAt, split, syntaxError, type Token } from './parse.js';
import { literal, pgType, quote, type SqlType, TYPES, typeText, type Value } from './types.js';

/** A value with its type. */
export interface Typed {
  readonly type: SqlType;
  readonly value: Value;
  /** How PostgreSQL finds the value, where only it knows. */
  readonly sql?: string;
}

/** A view that the server fills, in place of one of SQL Server's own. */
export type View =
  | {
      readonly columns: readonly (readonly [name: string, type: SqlType])[];
      readonly rows: readonly (readonly Value[])[];
    }
  | { readonly sql: string };

/** What a statement may refer to besides tables. */
export interface Scope {
  variable(name: string): Typed | undefined;
  isTableVariable(name: string): boolean;
  /** @@name, in lower case without the signs. */
  global(name: string): Typed | undefined;
  /** A function whose value the session knows. Arguments that are no plain literals are null. */
  known(name: string, args: readonly Value[]): Typed | undefined;
  /** A view of the schema sys. */
  view(name: string): View | undefined;
}

/** What is known of a column of the result before PostgreSQL describes it. */
export interface ColumnHint {
  /** Null where the column's own name is to be taken. */
  readonly name: string | null;
  readonly type: SqlType | null;
  /** A sum of integers has the integers' type in T-SQL, and a wider one in PostgreSQL. */
  readonly sum: boolean;
}

/** A statement for PostgreSQL. */
export interface Translated {
  readonly sql: string;
  /** Statements that come before it. */
  readonly before: readonly string[];
  /** Of a statement that gives rows: its columns; null stands for the unknown number that a star gives. */
  readonly columns: readonly (ColumnHint | null)[] | null;
  /** SELECT @a = ...: the variables, in the order of the columns. */
  readonly assigns: readonly string[] | null;
  /** Whether tables are read or written, and not expressions alone. */
  readonly touchesTables: boolean;
  /** Temporary tables that it makes. */
  readonly made: readonly string[];
}

const KEY_WORDS = new Set(
  (
    'SELECT FROM WHERE AND OR NOT NULL IS IN LIKE BETWEEN EXISTS CASE WHEN THEN ELSE END AS ON INNER LEFT RIGHT FULL OUTER CROSS ' +
    'JOIN ORDER BY GROUP HAVING UNION ALL EXCEPT INTERSECT DISTINCT ASC DESC OVER PARTITION VALUES INTO OFFSET ROWS ROW FETCH NEXT ' +
    'FIRST ONLY SET DEFAULT TOP WITH'
  ).split(' '),
);

/** Date parts of T-SQL, with PostgreSQL's names. */
const DATE_PARTS: Readonly<Record<string, string>> = {
  year: 'year',
  yy: 'year',
  yyyy: 'year',
  quarter: 'quarter',
  qq: 'quarter',
  q: 'quarter',
  month: 'month',
  mm: 'month',
  m: 'month',
  day: 'day',
  dd: 'day',
  d: 'day',
  dayofyear: 'doy',
  dy: 'doy',
  y: 'doy',
  week: 'week',
  wk: 'week',
  ww: 'week',
  weekday: 'dow',
  dw: 'dow',
  hour: 'hour',
  hh: 'hour',
  minute: 'minute',
  mi: 'minute',
  n: 'minute',
  second: 'second',
  ss: 'second',
  s: 'second',
  millisecond: 'milliseconds',
  ms: 'milliseconds',
  microsecond: 'microseconds',
  mcs: 'microseconds',
}; // prettier-ignore

const SECONDS: Readonly<Record<string, number>> = {
  week: 604_800,
  day: 86_400,
  hour: 3600,
  minute: 60,
  second: 1,
  milliseconds: 0.001,
  microseconds: 0.000_001,
};

const NOW = "(clock_timestamp() AT TIME ZONE 'UTC')";
const DATE_STYLES: Readonly<Record<number, string>> = {
  23: 'YYYY-MM-DD',
  112: 'YYYYMMDD',
  114: 'HH24:MI:SS:MS',
  120: 'YYYY-MM-DD HH24:MI:SS',
  121: 'YYYY-MM-DD HH24:MI:SS.MS',
  126: 'YYYY-MM-DD"T"HH24:MI:SS.MS',
  127: 'YYYY-MM-DD"T"HH24:MI:SS.MS',
};

/** Functions that only have another name. */
const RENAMED: Readonly<Record<string, string>> = {
  ISNULL: 'coalesce',
  REPLICATE: 'repeat',
  CHAR: 'chr',
  NCHAR: 'chr',
  UNICODE: 'ascii',
  CEILING: 'ceil',
  RAND: 'random',
  CHECKSUM: 'hashtext',
  COUNT_BIG: 'count',
  STDEV: 'stddev',
  VAR: 'variance',
  STRING_AGG: 'string_agg',
};

/** Functions without arguments, and the types of what they give. */
const PLAIN: Readonly<Record<string, readonly [sql: string, type: SqlType]>> = {
  GETDATE: [`${NOW}::timestamp(3)`, { name: 'datetime' }],
  GETUTCDATE: [`${NOW}::timestamp(3)`, { name: 'datetime' }],
  CURRENT_TIMESTAMP: [`${NOW}::timestamp(3)`, { name: 'datetime' }],
  SYSDATETIME: [NOW, { name: 'datetime2', scale: 7 }],
  SYSUTCDATETIME: [NOW, { name: 'datetime2', scale: 7 }],
  SYSDATETIMEOFFSET: ['clock_timestamp()', { name: 'datetimeoffset', scale: 7 }],
  NEWID: ['gen_random_uuid()', { name: 'uniqueidentifier' }],
  NEWSEQUENTIALID: ['gen_random_uuid()', { name: 'uniqueidentifier' }],
  SCOPE_IDENTITY: ['tds.last_identity()', { name: 'numeric', precision: 38, scale: 0 }],
};

type Call = (args: readonly (readonly Token[])[], translator: Translator) => string;

/** Functions that are written in another way. */
const CALLS: Readonly<Record<string, Call>> = {
  LEN: ([text], t) => `length(rtrim((${t.expression(text)})::text))`,
  DATALENGTH: ([text], t) => `tds.datalength(${t.expression(text)})`,
  CHARINDEX: ([part, text], t) => `strpos((${t.expression(text)})::text, (${t.expression(part)})::text)`,
  IIF: ([condition, yes, no], t) =>
    `(CASE WHEN ${t.expression(condition)} THEN ${t.expression(yes)} ELSE ${t.expression(no)} END)`,
  CAST: ([inside], t) => t.cast(inside),
  TRY_CAST: ([inside], t) => t.cast(inside),
  CONVERT: (args, t) => t.convert(args),
  TRY_CONVERT: (args, t) => t.convert(args),
  YEAR: ([date], t) => `extract(year FROM (${t.expression(date)})::timestamp)::int`,
  MONTH: ([date], t) => `extract(month FROM (${t.expression(date)})::timestamp)::int`,
  DAY: ([date], t) => `extract(day FROM (${t.expression(date)})::timestamp)::int`,
  DATEPART: ([part, date], t) => {
    const found = datePart(part);
    const more = found === 'dow' ? ' + 1' : '';
    return `(extract(${found} FROM (${t.expression(date)})::timestamp)::int${more})`;
  },
  DATEADD: ([part, count, date], t) => {
    const found = datePart(part);
    const unit = found === 'quarter' ? '3 months' : `1 ${found}`;
    return `((${t.expression(date)})::timestamp + (${t.expression(count)}) * interval '${unit}')`;
  },
  DATEDIFF: ([part, from, to], t) => {
    const found = datePart(part);
    const [a, b] = [from, to].map((date) => `(${t.expression(date)})::timestamp`);
    if (found === 'year') return `(extract(year FROM ${b}) - extract(year FROM ${a}))::int`;
    if (found === 'month') {
      const months = (date: string) => `extract(year FROM ${date}) * 12 + extract(month FROM ${date})`;
      return `(${months(b)} - (${months(a)}))::int`;
    }
    const cut = (date: string) => `date_trunc('${found}', ${date})`;
    return `(extract(epoch FROM ${cut(b)} - ${cut(a)}) / ${SECONDS[found] ?? 1})::int`;
  },
  OBJECT_ID: ([name, kind], t) => {
    if (kind?.[0]?.text.toUpperCase() === 'P') return t.procedureId(name);
    if (name.length !== 1 || name[0].kind !== 'string') return `to_regclass(${t.expression(name)})::oid::int8::int4`;
    const parts = name[0].text.split('.').map((part) => part.replaceAll(/^\[|\]$/g, ''));
    const path = normal(parts).map((part) => `"${part.toLowerCase()}"`);
    return `to_regclass(${quote(path.join('.'))})::oid::int8::int4`;
  },
  // One owner has them all.
  OBJECTPROPERTY: () => '1',
  SCHEMA_ID: ([name], t) => `(CASE lower(${t.expression(name)}) WHEN 'dbo' THEN 1 END)`,
  // Of the login it is the name.
  SUSER_SID: ([name], t) => `convert_to(lower(${t.expression(name)}), 'UTF8')`,
  QUOTENAME: ([name], t) => `('[' || ${t.expression(name)} || ']')`,
  HASHBYTES: ([, text], t) => `sha256(convert_to((${t.expression(text)})::text, 'UTF8'))`,
  STUFF: ([text, start, length, put], t) =>
    `overlay(${t.expression(text)} placing ${t.expression(put)} from ${t.expression(start)} for ${t.expression(length)})`,
};

const LOCKING = new Set([
  'UPDLOCK',
  'XLOCK',
  'HOLDLOCK',
  'SERIALIZABLE',
  'REPEATABLEREAD',
  'READPAST',
  'NOWAIT',
  'TABLOCKX',
]);
const HINTS = new Set([
  ...LOCKING,
  'NOLOCK',
  'READUNCOMMITTED',
  'READCOMMITTED',
  'READCOMMITTEDLOCK',
  'ROWLOCK',
  'PAGLOCK',
  'TABLOCK',
]);

function datePart([part]: readonly Token[]): string {
  const found = DATE_PARTS[part?.text.toLowerCase() ?? ''];
  if (found === undefined) {
    throw new TdsError(155, `'${part?.text}' is not a recognized datepart option.`, { severity: 15, reach: 'batch' });
  }
  return found;
}

/** The parts of a name as PostgreSQL is to have them: a database is a schema there, and dbo is none. */
function normal(parts: readonly string[]): string[] {
  const temporary = parts.findIndex((part) => part.startsWith('#'));
  if (temporary >= 0) return parts.slice(temporary);
  if (parts[0].toLowerCase() === 'dbo') return parts.slice(1);
  if (parts.length >= 3 && (parts[1] === '' || parts[1].toLowerCase() === 'dbo')) {
    return parts.length === 3 ? [parts[0], parts[2]] : parts.slice(2);
  }
  if (parts.length >= 3 && ['sys', 'information_schema'].includes(parts[1].toLowerCase())) return parts.slice(1);
  return [...parts];
}

/** Turns statements of the dialect into PostgreSQL's. The README lists what it knows. */
export function translate(verb: string, list: readonly Token[], scope: Scope): Translated {
  return new Translator(scope).statement(verb, list);
}

/** `SELECT (expression)` for PostgreSQL; the value arrives in the given type where there is one. */
export function translateValue(list: readonly Token[], type: SqlType | null, scope: Scope): string {
  const translator = new Translator(scope);
  const text = translator.expression(list);
  return translator.withViews(`SELECT ${type === null ? text : translator.castTo(text, type)}`);
}

/** `SELECT 1 or 0` for a condition. */
export function translateCondition(list: readonly Token[], scope: Scope): string {
  const translator = new Translator(scope);
  return translator.withViews(`SELECT CASE WHEN ${translator.expression(list)} THEN 1 ELSE 0 END`);
}

/** The type that an expression has by itself, where its words alone tell. */
export function typeOf(list: readonly Token[], scope: Scope): SqlType | null {
  return new Translator(scope).typeOf(list);
}

class Translator {
  readonly #views = new Map<string, string>();
  readonly #before: string[] = [];
  readonly #made: string[] = [];
  #columns: (ColumnHint | null)[] | null = null;
  #assigns: string[] | null = null;
  #touches = true;
  /** Where inserted and deleted stand for rows. */
  #output = false;

  constructor(private readonly scope: Scope) {}

  statement(verb: string, list: readonly Token[]): Translated {
    const sql = this.withViews(this.#statement(verb, list));
    return {
      sql,
      before: this.#before,
      columns: this.#columns,
      assigns: this.#assigns,
      touchesTables: this.#touches,
      made: this.#made,
    };
  }

  /** Puts the views that a statement names in front of it. */
  withViews(sql: string): string {
    if (this.#views.size === 0) return sql;
    const views = [...this.#views].map(([name, text]) => `"${name}" AS MATERIALIZED (${text})`).join(', ');
    return /^WITH\b/.test(sql) ? `WITH ${views}, ${sql.slice(5)}` : `WITH ${views} ${sql}`;
  }

  #statement(verb: string, list: readonly Token[]): string {
    switch (verb) {
      case 'SELECT':
        return this.#select(list, true);
      case 'WITH': {
        const at = this.#afterCtes(list);
        const word = list[at].text.toUpperCase();
        return `WITH ${this.expression(list.slice(1, at))} ${this.#statement(word, list.slice(at))}`;
      }
      case 'INSERT':
        return this.#insert(list);
      case 'UPDATE':
        return this.#update(list);
      case 'DELETE':
        return this.#delete(list);
      case 'CREATE':
        return this.#create(list);
      case 'ALTER':
        return this.#alter(list);
      case 'TRUNCATE':
        return `TRUNCATE TABLE ${this.expression(list.slice(2))} RESTART IDENTITY`;
      case 'DROP': {
        const on = list.findIndex((token) => is(token, 'ON'));
        return this.expression(is(list[1], 'INDEX') && on > 0 ? list.slice(0, on) : list);
      }
      default:
        return this.expression(list);
    }
  }

  #afterCtes(list: readonly Token[]): number {
    for (let at = 1; at < list.length; at++) {
      if (is(list[at], '(')) at = closing(list, at);
      else if (is(list[at], 'SELECT', 'INSERT', 'UPDATE', 'DELETE')) return at;
    }
    throw syntaxError(list.at(-1)!.text, list.at(-1)!.line);
  }

  // ---------------------------------------------------------------------------------------------- expressions

  /** Any tokens that are no whole statement of their own. */
  expression(list: readonly Token[]): string {
    const out: string[] = [];
    for (let at = 0; at < list.length; at++) {
      const token = list[at];
      switch (token.kind) {
        case 'string':
          out.push(quote(token.text));
          break;
        case 'number':
          out.push(token.text);
          break;
        case 'hex':
          out.push(`'\\x${evenHex(token.text)}'::bytea`);
          break;
        case 'global': {
          const found = this.scope.global(token.text.slice(2).toLowerCase());
          if (found !== undefined) out.push(textOf(found));
          else if (token.text.toLowerCase() === '@@identity') out.push('tds.last_identity()');
          else throw unknownVariable(token);
          break;
        }
        case 'variable': {
          const name = token.text.toLowerCase();
          const found = this.scope.variable(name);
          if (found !== undefined) out.push(textOf(found));
          else if (this.scope.isTableVariable(name)) out.push(`"${name}"`);
          else throw unknownVariable(token);
          break;
        }
        case 'sign':
          if (token.text === '(') {
            const end = closing(list, at);
            out.push(`(${this.#inBrackets(list.slice(at + 1, end))})`);
            at = end;
          } else
            out.push(token.text === '!=' ? '<>' : token.text === '!<' ? '>=' : token.text === '!>' ? '<=' : token.text);
          break;
        default:
          at = this.#word(list, at, out);
      }
    }
    return out.join(' ');
  }

  #inBrackets(list: readonly Token[]): string {
    if (is(list[0], 'SELECT')) return this.#select(list, false);
    if (is(list[0], 'WITH')) {
      const at = this.#afterCtes(list);
      return `WITH ${this.expression(list.slice(1, at))} ${this.#select(list.slice(at), false)}`;
    }
    return this.expression(list);
  }

  /** A word, name or call at a place. Returns the place of its last token. */
  #word(list: readonly Token[], at: number, out: string[]): number {
    const token = list[at];
    const parts = [token.text];
    const quoted = [token.kind === 'name'];
    let end = at;
    while (is(list[end + 1], '.')) {
      if (is(list[end + 2], '.')) {
        parts.push('');
        quoted.push(false);
        end += 1;
        continue;
      }
      parts.push(list[end + 2]?.text ?? '');
      quoted.push(list[end + 2]?.kind === 'name');
      end += 2;
    }
    if (
      is(list[end + 1], '(') &&
      !(token.kind === 'word' && parts.length === 1 && KEY_WORDS.has(token.text.toUpperCase()))
    ) {
      return this.#call(list, end, parts, out);
    }
    if (parts.length === 1 && token.kind === 'word') {
      const word = token.text.toUpperCase();
      const known = PLAIN[word] !== undefined && word === 'CURRENT_TIMESTAMP' ? PLAIN[word][0] : undefined;
      if (known !== undefined) out.push(known);
      else if (['SYSTEM_USER', 'SESSION_USER', 'CURRENT_USER', 'USER'].includes(word)) {
        const found = this.scope.known('SUSER_SNAME', [])!;
        out.push(textOf(found));
      } else if (word === 'APPLY' && /CROSS$/.test(out.at(-1) ?? '')) out.push('JOIN LATERAL');
      else if (word === 'COLLATE') return at + 1;
      else out.push(this.#plain(token.text, false));
      return at;
    }
    out.push(this.#path(parts, quoted, token.line));
    return end;
  }

  #path(parts: readonly string[], quoted: readonly boolean[], line: number): string {
    const path = normal(parts);
    if (path[0].toLowerCase() === 'sys' && path.length > 1) return this.#view(path[1], path.slice(2), line);
    if (this.#output && path.length > 1 && /^(inserted|deleted)$/i.test(path[0])) {
      return [
        path[0].toLowerCase() === 'inserted' ? 'new' : 'old',
        ...path.slice(1).map((p) => (p === '*' ? p : this.#plain(p, true))),
      ].join('.');
    }
    const skipped = parts.length - path.length;
    return path
      .map((part, i) => (part === '*' ? '*' : this.#plain(part, quoted[i + skipped] || skipped > 0)))
      .join('.');
  }

  #plain(text: string, quoted: boolean): string {
    if (quoted || !/^[A-Za-z_\u0080-\uffff][\w\u0080-\uffff]*$/.test(text))
      return `"${text.toLowerCase().replaceAll('"', '""')}"`;
    return text;
  }

  #view(name: string, rest: readonly string[], line: number): string {
    const view = this.scope.view(name.toLowerCase());
    if (view === undefined) throw new TdsError(208, `Invalid object name 'sys.${name}'.`, { line });
    if (!this.#views.has(name.toLowerCase())) {
      let text: string;
      if ('sql' in view) text = view.sql;
      else {
        const columns = view.columns.map(([column]) => `"${column}"`).join(', ');
        const row = (values: readonly Value[]) =>
          values.map((value, i) => literal(view.columns[i][1], value)).join(', ');
        text =
          view.rows.length === 0
            ? `SELECT * FROM (SELECT ${row(view.columns.map(() => null))}) AS v(${columns}) WHERE false`
            : `SELECT * FROM (VALUES ${view.rows.map((values) => `(${row(values)})`).join(', ')}) AS v(${columns})`;
      }
      this.#views.set(name.toLowerCase(), text);
    }
    return [`"${name.toLowerCase()}"`, ...rest.map((part) => (part === '*' ? part : `"${part.toLowerCase()}"`))].join(
      '.',
    );
  }

  /** A call, with the bracket behind its name at `end + 1`. */
  #call(list: readonly Token[], end: number, parts: readonly string[], out: string[]): number {
    const close = closing(list, end + 1);
    const inside = list.slice(end + 2, close);
    const name = parts.filter((part) => !/^(dbo|sys|)$/i.test(part)).join('.');
    const upper = name.toUpperCase();
    const args = split(inside, ',');
    const plain = args.map((arg) => this.#constant(arg));
    const known = this.scope.known(upper, plain);
    // INSERT INTO t (a), REFERENCES t (a), a CTE's (a): a name and a list, which look like a call.
    if (known !== undefined) out.push(textOf(known));
    else if (PLAIN[upper] !== undefined && args.length === 0) out.push(PLAIN[upper][0]);
    else if (CALLS[upper] !== undefined) out.push(CALLS[upper](args, this));
    else if (upper === 'COUNT' && !is(list[close + 1], 'OVER')) out.push(`count(${this.expression(inside)})::int`);
    else if (RENAMED[upper] !== undefined) out.push(`${RENAMED[upper]}(${this.expression(inside)})`);
    else
      out.push(
        `${this.#path(
          parts,
          parts.map(() => list[end].kind === 'name'),
          list[end].line,
        )}(${this.#inBrackets(inside)})`,
      );
    return close;
  }

  #constant(list: readonly Token[]): Value {
    if (list.length !== 1) return null;
    const [{ kind, text }] = list;
    if (kind === 'string' || kind === 'number') return text;
    return kind === 'variable' ? (this.scope.variable(text.toLowerCase())?.value ?? null) : null;
  }

  /** The number of a procedure of the present database. */
  procedureId([name]: readonly Token[]): string {
    const [plain, ...more] = name.text.replaceAll(/[[\]]/g, '').toLowerCase().split('.').reverse();
    const database = more.length > 1 ? quote(more[1]) : textOf(this.scope.known('DB_NAME', [])!);
    return `(SELECT hashtext(name) FROM tds.procedures WHERE database = ${database} AND name = ${quote(plain)})`;
  }

  /** `x AS type`. */
  cast(inside: readonly Token[]): string {
    const at = lastAs(inside);
    return this.castTo(this.expression(inside.slice(0, at)), readTypeAt(inside, at + 1).type);
  }

  /** `type, x [, style]`. */
  convert([wanted, value, style]: readonly (readonly Token[])[]): string {
    const { type } = readTypeAt(wanted, 0);
    const text = this.expression(value ?? []);
    const number = style === undefined ? 0 : Number(style[0].text);
    const { kind } = TYPES[type.name];
    if (kind === 'binary' && number === 1) return `decode(substr(${text}, 3), 'hex')`;
    if (kind === 'binary' && number === 2) return `decode(${text}, 'hex')`;
    if (kind === 'text' && number === 1) return `('0x' || upper(encode(${text}, 'hex')))`;
    if (kind === 'text' && number === 2) return `upper(encode(${text}, 'hex'))`;
    if (kind === 'text' && DATE_STYLES[number] !== undefined)
      return `to_char((${text})::timestamp, '${DATE_STYLES[number]}')`;
    return this.castTo(text, type);
  }

  castTo(text: string, type: SqlType): string {
    // Every number but zero is a 1.
    if (type.name === 'bit') return `sign(abs((${text})::numeric))::int2`;
    return `(${text})::${pgType(type)}`;
  }

  // ---------------------------------------------------------------------------------------------- types of columns

  typeOf(list: readonly Token[]): SqlType | null {
    if (is(list[0], 'SYS', 'DBO') && is(list[1], '.')) return this.typeOf(list.slice(2));
    const [first] = list;
    if (first === undefined) return null;
    if (list.length === 1) {
      switch (first.kind) {
        case 'string':
          return {
            name: first.national ? 'nvarchar' : 'varchar',
            length: Math.min(Math.max(first.text.length, 1), 4000),
          };
        case 'number':
          return numberType(first.text);
        case 'hex':
          return { name: 'varbinary', length: Math.max(evenHex(first.text).length / 2, 1) };
        case 'variable':
          return this.scope.variable(first.text.toLowerCase())?.type ?? null;
        case 'global':
          if (first.text.toLowerCase() === '@@identity') return { name: 'numeric', precision: 38, scale: 0 };
          return this.scope.global(first.text.slice(2).toLowerCase())?.type ?? null;
        default:
          if (is(first, 'NULL')) return { name: 'int' };
          return is(first, 'CURRENT_TIMESTAMP') ? { name: 'datetime' } : null;
      }
    }
    if (is(first, '-') && list.length === 2 && list[1].kind === 'number') return numberType(list[1].text);
    if (first.kind !== 'word' || !is(list[1], '(') || closing(list, 1) !== list.length - 1) return null;
    const inside = list.slice(2, -1);
    const name = first.text.toUpperCase();
    if (name === 'CAST' || name === 'TRY_CAST') return readTypeAt(inside, lastAs(inside) + 1).type;
    if (name === 'CONVERT' || name === 'TRY_CONVERT') return readTypeAt(inside, 0).type;
    if (['ISNULL', 'MAX', 'MIN', 'COALESCE'].includes(name)) return this.typeOf(split(inside, ',')[0] ?? []);
    if (inside.length === 0 && PLAIN[name] !== undefined) return PLAIN[name][1];
    const args = split(inside, ',').map((arg) => this.#constant(arg));
    return this.scope.known(name, args)?.type ?? null;
  }

  /** One item of a select list: its text, and what is known of its column. */
  #item(list: readonly Token[]): { sql: string; hint: ColumnHint | null; assign: string | null } {
    if (list[0]?.kind === 'variable' && is(list[1], '=')) {
      const value = list.slice(2);
      return {
        sql: this.expression(value),
        hint: { name: '', type: null, sum: false },
        assign: list[0].text.toLowerCase(),
      };
    }
    let value = list;
    let name: string | undefined;
    const last = list.at(-1)!;
    const ahead = list.at(-2);
    if (is(last, '*') && (list.length === 1 || is(ahead, '.'))) {
      return { sql: this.expression(list), hint: null, assign: null };
    }
    const nameable = last.kind === 'word' || last.kind === 'name' || last.kind === 'string';
    if (nameable && list.length > 2 && is(ahead, 'AS')) [value, name] = [list.slice(0, -2), last.text];
    else if ((list[0].kind === 'word' || list[0].kind === 'name') && is(list[1], '=')) {
      [value, name] = [list.slice(2), list[0].text];
    } else if (
      list.length > 1 &&
      nameable &&
      !is(last, 'END', 'NULL') &&
      (ahead!.kind !== 'sign' || ahead!.text === ')') &&
      !is(ahead, 'NOT', 'IS', 'COLLATE')
    ) {
      [value, name] = [list.slice(0, -1), last.text];
    } else if (
      value.every((token, i) => (i % 2 === 0 ? token.kind === 'word' || token.kind === 'name' : is(token, '.')))
    ) {
      name = is(value[0], 'NULL', 'CURRENT_TIMESTAMP', 'SYSTEM_USER') ? '' : last.text;
    }
    const sum = is(value[0], 'SUM') && is(value[1], '(') && closing(value, 1) === value.length - 1;
    const sql = this.expression(value);
    const alias = name === undefined || name === '' ? '' : ` AS "${name.toLowerCase().replaceAll('"', '""')}"`;
    return { sql: sql + alias, hint: { name: name ?? '', type: this.typeOf(value), sum }, assign: null };
  }

  #items(list: readonly Token[], top: boolean): string {
    const items = split(list, ',').map((item) => this.#item(item));
    if (top) {
      this.#columns = items.map(({ hint }) => hint);
      const assigned = items.filter(({ assign }) => assign !== null);
      if (assigned.length > 0) {
        if (assigned.length < items.length) {
          const text =
            'A SELECT statement that assigns a value to a variable must not be combined with data-retrieval operations.';
          throw new TdsError(141, text, { severity: 15, reach: 'batch' });
        }
        this.#assigns = assigned.map(({ assign }) => assign!);
        this.#columns = null;
      }
    }
    return items.map(({ sql }) => sql).join(', ');
  }

  // ---------------------------------------------------------------------------------------------- SELECT

  #select(list: readonly Token[], top: boolean): string {
    const branches: { words: string; tokens: Token[] }[] = [{ words: '', tokens: [] }];
    for (let at = 0; at < list.length; at++) {
      if (is(list[at], '(')) {
        const end = closing(list, at);
        branches.at(-1)!.tokens.push(...list.slice(at, end + 1));
        at = end;
      } else if (is(list[at], 'UNION', 'EXCEPT', 'INTERSECT')) {
        const all = is(list[at + 1], 'ALL');
        branches.push({ words: ` ${list[at].text}${all ? ' ALL' : ''} `, tokens: [] });
        if (all) at++;
      } else branches.at(-1)!.tokens.push(list[at]);
    }
    const several = branches.length > 1;
    return branches
      .map(({ words, tokens }, i) => {
        if (is(tokens[0], '(')) return `${words}${this.expression(tokens)}`;
        const branch = this.#branch(tokens, top && i === 0);
        return `${words}${several && / LIMIT /.test(branch) ? `(${branch})` : branch}`;
      })
      .join('');
  }

  #branch(list: readonly Token[], top: boolean): string {
    let at = 1;
    let words = 'SELECT ';
    if (is(list[at], 'DISTINCT', 'ALL')) words += `${list[at++].text} `;
    let limit = '';
    if (is(list[at], 'TOP')) {
      at++;
      if (is(list[at], '(')) {
        const end = closing(list, at);
        limit = ` LIMIT (${this.expression(list.slice(at + 1, end))})`;
        at = end + 1;
      } else limit = ` LIMIT ${this.expression(list.slice(at, ++at))}`;
      if (is(list[at], 'WITH')) at += 2;
    }
    const clauses = clausesOf(list.slice(at), ['INTO', 'FROM', 'WHERE', 'GROUP', 'HAVING', 'ORDER', 'OPTION', 'FOR']);
    const items = this.#items(clauses[''], top);
    if (top) this.#touches = clauses.FROM !== undefined;
    let into = '';
    if (clauses.INTO !== undefined) {
      const [name] = clauses.INTO.slice(-1);
      const temporary = name.text.startsWith('#');
      if (temporary) this.#made.push(name.text.toLowerCase());
      into = `CREATE ${temporary ? 'TEMP ' : ''}TABLE ${this.expression(clauses.INTO)} AS `;
      this.#columns = null;
    }
    const { tokens: from, hints } = withoutHints(clauses.FROM ?? []);
    if (hints.has('TABLOCKX'))
      this.#before.push(`LOCK TABLE ${this.expression(from.slice(0, tableLength(from)))} IN EXCLUSIVE MODE`);
    let lock = '';
    const plain =
      clauses.GROUP === undefined && !words.includes('DISTINCT') && !/\b(count|sum|min|max|avg)\(/i.test(items);
    if (plain && from.length > 0) {
      if (hints.has('UPDLOCK') || hints.has('XLOCK')) lock = ' FOR UPDATE';
      else if (['HOLDLOCK', 'SERIALIZABLE', 'REPEATABLEREAD'].some((hint) => hints.has(hint))) lock = ' FOR SHARE';
      if (lock !== '' && hints.has('READPAST')) lock += ' SKIP LOCKED';
      if (lock !== '' && hints.has('NOWAIT')) lock += ' NOWAIT';
    }
    const rest = (['WHERE', 'GROUP', 'HAVING', 'ORDER'] as const)
      .filter((word) => clauses[word] !== undefined)
      .map((word) => ` ${word} ${this.expression(clauses[word]!)}`)
      .join('');
    return `${into}${words}${items}${from.length === 0 ? '' : ` FROM ${this.expression(from)}`}${rest}${limit}${lock}`;
  }

  // ---------------------------------------------------------------------------------------------- DML

  #returning(list: readonly Token[] | undefined): string {
    if (list === undefined) return '';
    this.#output = true;
    const items = this.#items(list, true);
    this.#output = false;
    return ` RETURNING ${items}`;
  }

  #insert(list: readonly Token[]): string {
    const start = is(list[1], 'INTO') ? 2 : 1;
    let at = start + tableLength(list.slice(start));
    const target = this.expression(list.slice(start, at));
    let columns = '';
    if (is(list[at], 'WITH') && is(list[at + 1], '(')) at = closing(list, at + 1) + 1;
    if (is(list[at], '(')) {
      const end = closing(list, at);
      columns = ` (${split(list.slice(at + 1, end), ',')
        .map((name) => this.#plain(name.at(-1)!.text, name.at(-1)!.kind === 'name'))
        .join(', ')})`;
      at = end + 1;
    }
    let output: Token[] | undefined;
    if (is(list[at], 'OUTPUT')) {
      const from = ++at;
      while (at < list.length && !is(list[at], 'VALUES', 'SELECT', 'DEFAULT'))
        at = is(list[at], '(') ? closing(list, at) + 1 : at + 1;
      output = list.slice(from, at);
    }
    const source = list.slice(at);
    const text = is(source[0], 'SELECT') ? this.#select(source, false) : this.expression(source);
    return `INSERT INTO ${target}${columns} ${text}${this.#returning(output)}`;
  }

  #update(list: readonly Token[]): string {
    const clauses = clausesOf(list.slice(1), ['SET', 'OUTPUT', 'FROM', 'WHERE', 'OPTION']);
    const target = this.expression(withoutHints(clauses['']).tokens);
    const changes = split(clauses.SET ?? [], ',').map((change) => {
      const at = change.findIndex((token) => is(token, '=', '+=', '-=', '*=', '/='));
      if (at < 1) throw syntaxError(change[0]?.text ?? 'SET', list[0].line);
      const column = this.#plain(change[at - 1].text, change[at - 1].kind === 'name');
      const value = this.expression(change.slice(at + 1));
      const sign = change[at].text;
      return sign === '=' ? `${column} = ${value}` : `${column} = ${column} ${sign[0]} (${value})`;
    });
    const from = clauses.FROM === undefined ? '' : ` FROM ${this.expression(withoutHints(clauses.FROM).tokens)}`;
    const where = clauses.WHERE === undefined ? '' : ` WHERE ${this.expression(clauses.WHERE)}`;
    return `UPDATE ${target} SET ${changes.join(', ')}${from}${where}${this.#returning(clauses.OUTPUT)}`;
  }

  #delete(whole: readonly Token[]): string {
    let list = whole;
    let most = '';
    if (is(list[1], 'TOP') && is(list[2], '(')) {
      const end = closing(list, 2);
      most = this.expression(list.slice(3, end));
      list = [list[0], ...list.slice(end + 1)];
    }
    const start = is(list[1], 'FROM') ? 2 : 1;
    const clauses = clausesOf(list.slice(start), ['OUTPUT', 'FROM', 'WHERE', 'OPTION']);
    const target = this.expression(withoutHints(clauses['']).tokens);
    const using = clauses.FROM === undefined ? '' : ` USING ${this.expression(withoutHints(clauses.FROM).tokens)}`;
    let where = clauses.WHERE === undefined ? '' : ` WHERE ${this.expression(clauses.WHERE)}`;
    if (most !== '' && using === '') where = ` WHERE ctid IN (SELECT ctid FROM ${target}${where} LIMIT ${most})`;
    return `DELETE FROM ${target}${using}${where}${this.#returning(clauses.OUTPUT)}`;
  }

  // ---------------------------------------------------------------------------------------------- DDL

  #create(list: readonly Token[]): string {
    if (is(list[1], 'TABLE')) {
      const at = 2 + tableLength(list.slice(2));
      if (!is(list[at], '(')) throw syntaxError(list[at]?.text ?? 'TABLE', list[0].line);
      return this.createTable(list.slice(2, at), list.slice(at + 1, closing(list, at)));
    }
    const index = list.findIndex((token) => is(token, 'INDEX'));
    if (index > 0 && index <= 3) {
      const kept = list.filter((token) => !is(token, 'CLUSTERED', 'NONCLUSTERED'));
      const options = kept.findIndex((token, i) => is(token, 'WITH') && is(kept[i + 1], '('));
      return this.expression(options > 0 ? kept.slice(0, options) : kept);
    }
    if (is(list[1], 'VIEW')) {
      const as = list.findIndex((token) => is(token, 'AS'));
      return `CREATE VIEW ${this.expression(list.slice(2, as))} AS ${this.#select(list.slice(as + 1), false)}`;
    }
    return this.expression(list);
  }

  /** CREATE TABLE, with the T-SQL type of each column kept in its comment. */
  createTable(name: readonly Token[], inside: readonly Token[]): string {
    const table = this.expression(name);
    const temporary = /^"[#@]/.test(table);
    if (temporary) this.#made.push(table.slice(1, -1));
    const comments: string[] = [];
    const parts = split(inside, ',').map((part) => this.#column(table, part, comments));
    return [`CREATE ${temporary ? 'TEMP ' : ''}TABLE ${table} (${parts.join(', ')})`, ...comments].join('; ');
  }

  #column(table: string, part: readonly Token[], comments: string[]): string {
    if (is(part[0], 'CONSTRAINT', 'PRIMARY', 'UNIQUE', 'FOREIGN', 'CHECK')) return this.#constraint(part);
    const name = this.#plain(part[0].text, true);
    if (is(part[1], 'AS')) {
      return `${name} numeric GENERATED ALWAYS AS ${this.expression(part.slice(2).filter((token) => !is(token, 'PERSISTED')))} STORED`;
    }
    const { type, length } = readTypeAt(part, 1);
    comments.push(`COMMENT ON COLUMN ${table}.${name} IS ${quote(`${typeText(type)} ${part[0].text}`)}`);
    const words = [name, pgType(type)];
    const rest = part
      .slice(1 + length)
      .filter((token) => !is(token, 'ROWGUIDCOL', 'SPARSE', 'CLUSTERED', 'NONCLUSTERED'));
    const ordinary: Token[] = [];
    for (let at = 0; at < rest.length; at++) {
      if (is(rest[at], 'IDENTITY')) {
        let [start, step] = ['1', '1'];
        if (is(rest[at + 1], '(')) {
          const end = closing(rest, at + 1);
          [start, step] = split(rest.slice(at + 2, end), ',').map((number) => number.map(({ text }) => text).join(''));
          at = end;
        }
        words.push(`GENERATED BY DEFAULT AS IDENTITY (START WITH ${start} INCREMENT BY ${step})`);
      } else if (is(rest[at], 'COLLATE')) at++;
      else ordinary.push(rest[at]);
    }
    return [...words, this.#constraint(ordinary)].join(' ');
  }

  #constraint(list: readonly Token[]): string {
    const kept = list.filter((token) => !is(token, 'CLUSTERED', 'NONCLUSTERED', 'WITH', 'NOCHECK'));
    // The order of a key's columns is no matter in PostgreSQL: "(a ASC, b DESC)" is a syntax error there.
    return this.expression(kept.filter((token) => !is(token, 'ASC', 'DESC')));
  }

  #alter(list: readonly Token[]): string {
    const at = 2 + tableLength(list.slice(2));
    const table = this.expression(list.slice(2, at));
    if (!is(list[1], 'TABLE') || !is(list[at], 'ADD')) {
      if (is(list[at], 'ALTER')) {
        const { type } = readTypeAt(list, at + 3);
        const column = this.#plain(list[at + 2].text, true);
        const comment = `COMMENT ON COLUMN ${table}.${column} IS ${quote(`${typeText(type)} ${list[at + 2].text}`)}`;
        return `ALTER TABLE ${table} ALTER COLUMN ${column} TYPE ${pgType(type)}; ${comment}`;
      }
      return this.expression(list);
    }
    const comments: string[] = [];
    const added = split(list.slice(at + 1), ',').map((part) => `ADD ${this.#column(table, part, comments)}`);
    return [`ALTER TABLE ${table} ${added.join(', ')}`, ...comments].join('; ');
  }
}

/** Text of a table variable's CREATE TABLE. */
export function createTableVariable(name: string, columns: readonly Token[], scope: Scope): string {
  const translator = new Translator(scope);
  return translator.createTable([{ kind: 'name', text: name, line: 1 }], columns);
}

function textOf({ type, value, sql }: Typed): string {
  return sql === undefined ? literal(type, value) : `(${sql})`;
}

function unknownVariable({ text, line }: Token): TdsError {
  return new TdsError(137, `Must declare the scalar variable "${text}".`, { line });
}

function evenHex(text: string): string {
  const digits = text.slice(2);
  return digits.length % 2 === 0 ? digits : `0${digits}`;
}

function numberType(text: string): SqlType {
  if (/[eE]/.test(text)) return { name: 'float' };
  const [whole, fraction = ''] = text.split('.');
  if (text.includes('.') || whole.length > 18) {
    return { name: 'numeric', precision: Math.max((whole + fraction).length, 1), scale: fraction.length };
  }
  return { name: Number(whole) > 0x7fffffff ? 'bigint' : 'int' };
}

function lastAs(list: readonly Token[]): number {
  for (let at = list.length - 1; at >= 0; at--) if (is(list[at], 'AS')) return at;
  throw syntaxError(list[0]?.text ?? 'CAST', list[0]?.line ?? 1);
}

/** Cuts a statement at the words that begin its clauses; what comes before the first is ''. */
function clausesOf(
  list: readonly Token[],
  words: readonly string[],
): { '': Token[] } & Record<string, Token[] | undefined> {
  const found: { '': Token[] } & Record<string, Token[] | undefined> = { '': [] };
  let now = '';
  let cases = 0;
  for (let at = 0; at < list.length; at++) {
    const token = list[at];
    if (is(token, '(')) {
      const end = closing(list, at);
      found[now]!.push(...list.slice(at, end + 1));
      at = end;
      continue;
    }
    if (is(token, 'CASE')) cases++;
    if (is(token, 'END') && cases > 0) cases--;
    const word = token.kind === 'word' ? token.text.toUpperCase() : '';
    const named = is(list[at - 1], '.') || is(list[at - 1], 'AS');
    if (cases === 0 && !named && words.includes(word) && found[word] === undefined) {
      now = word;
      found[now] = [];
      // "GROUP BY" and "ORDER BY" stay whole.
      continue;
    }
    found[now]!.push(token);
  }
  const empty = words.find((word) => found[word]?.length === 0);
  if (empty !== undefined) throw syntaxError(empty, list[0]?.line ?? 1);
  return found;
}

/** How many tokens the name of a table has at the start of a list. */
function tableLength(list: readonly Token[]): number {
  let length = 1;
  while (is(list[length], '.')) length += is(list[length + 1], '.') ? 1 : 2;
  return length;
}

/** Takes the hints of tables out of a FROM clause. */
function withoutHints(list: readonly Token[]): { tokens: Token[]; hints: Set<string> } {
  const hints = new Set<string>();
  const kept: Token[] = [];
  for (let at = 0; at < list.length; at++) {
    const open = is(list[at], 'WITH') ? at + 1 : at;
    if (is(list[open], '(')) {
      const end = closing(list, open);
      const inside = list.slice(open + 1, end);
      if (
        inside.length > 0 &&
        split(inside, ',').every(([hint]) => hint !== undefined && is(hint, ...HINTS, 'INDEX', 'FORCESEEK'))
      ) {
        for (const token of inside) hints.add(token.text.toUpperCase());
        at = end;
        continue;
      }
      kept.push(...list.slice(at, end + 1));
      at = end;
      continue;
    }
    kept.push(list[at]);
  }
  return { tokens: kept, hints };
}
