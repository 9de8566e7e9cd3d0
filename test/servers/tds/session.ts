import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { int, knownFunction, knownGlobal, knownView, name, type SessionFacts } from './environment.js';
import { fromPg, type PgError, TdsError } from './errors.js';
import type { Login } from './login.js';
import {
  type Argument,
  type Declared,
  parse,
  readParameters,
  readTypeAt,
  type Statement,
  syntaxError,
  type Token,
  tokens,
} from './parse.js';
import type { Field, PgLink, PgResult } from './pg-link.js';
import { PROCEDURES } from './procedures.js';
import { CHANGE, type Column, DONE, type Reply } from './reply.js';
import type { TdsServer } from './server.js';
import {
  type ColumnHint,
  createTableVariable,
  type Scope,
  type Translated,
  type Typed,
  translate,
  translateCondition,
  translateValue,
  typeOf,
  type View,
} from './translate.js';
import { literal, quote, type SqlType, TYPES, toScaled, typeOfOid, type Value } from './types.js';

/** Ends a procedure, or all of the batch, after its error has been told. */
export class BatchEnd extends Error {
  constructor(readonly whole: boolean) {
    super('the batch ended');
  }
}
/** An Attention stopped the request. */
export class Cancelled extends Error {}
/** The session is gone: nothing more is answered. */
export class SessionGone extends Error {}
class LoopEnd extends Error {
  constructor(readonly kind: 'break' | 'continue') {
    super(kind);
  }
}
class Returned extends Error {
  constructor(readonly status: number) {
    super('return');
  }
}

/** Variables of a batch, a procedure or a call of sp_executesql. */
export class Frame {
  readonly variables = new Map<string, { type: SqlType; value: Value }>();
  readonly tables = new Set<string>();

  constructor(readonly procedure: string) {}
}

/** What a procedure was given. */
export interface Given {
  readonly name: string | null;
  readonly type: SqlType;
  readonly value: Value;
  readonly output: boolean;
}

/** SET options that need no more than to be kept. Each is a bit of @@OPTIONS, or none. */
const SWITCHES: Readonly<Record<string, number>> = {
  ANSI_WARNINGS: 8,
  ANSI_PADDING: 16,
  ANSI_NULLS: 32,
  ARITHABORT: 64,
  ARITHIGNORE: 128,
  QUOTED_IDENTIFIER: 256,
  NOCOUNT: 512,
  ANSI_NULL_DFLT_ON: 1024,
  ANSI_NULL_DFLT_OFF: 2048,
  CONCAT_NULL_YIELDS_NULL: 4096,
  NUMERIC_ROUNDABORT: 8192,
  XACT_ABORT: 16384,
  IMPLICIT_TRANSACTIONS: 2,
  CURSOR_CLOSE_ON_COMMIT: 4,
  ANSI_DEFAULTS: 0,
  FMTONLY: 0,
  NOEXEC: 0,
  PARSEONLY: 0,
  FORCEPLAN: 0,
  SHOWPLAN_ALL: 0,
  SHOWPLAN_TEXT: 0,
  SHOWPLAN_XML: 0,
  NO_BROWSETABLE: 0,
  REMOTE_PROC_TRANSACTIONS: 0,
};

/** On in a session of SQL Server whose client says nothing; ODBC and OLE DB clients get the ANSI ones besides. */
const SWITCHED_ON = [
  'QUOTED_IDENTIFIER',
  'ANSI_WARNINGS',
  'ANSI_PADDING',
  'ANSI_NULLS',
  'CONCAT_NULL_YIELDS_NULL',
  'ARITHABORT',
];

/** Isolation levels by T-SQL's number, as BEGIN of PostgreSQL names them. */
const ISOLATION = ['', 'READ COMMITTED', 'READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE', 'REPEATABLE READ'];
const ISOLATION_NAMES: Readonly<Record<string, number>> = {
  'READ UNCOMMITTED': 1,
  'READ COMMITTED': 2,
  'REPEATABLE READ': 3,
  SERIALIZABLE: 4,
  SNAPSHOT: 5,
};

const MOST_NESTED = 32;
const CANCEL_AGAIN_MS = 50;

interface Known {
  readonly type: SqlType | null;
  readonly name: string;
  readonly nullable: boolean;
  readonly identity: boolean;
}

/** The state of a session of SQL Server, over a connection to PostgreSQL. */
export class Session {
  readonly since = new Date();
  readonly connection = randomUUID();
  database: string;
  trancount = 0;
  descriptor = 0n;
  running: string | null = null;
  lastRequest = new Date();
  reply!: Reply;
  bulk: { table: string; columns: readonly string[] } | null = null;
  readonly handles = new Map<number, { parameters: readonly Declared[]; batch: readonly Statement[] }>();
  /** Statements that cursors are opened over. */
  readonly cursorStatements = new Map<number, { readonly declaration: string; readonly text: string }>();
  /** Server cursors, with all of their rows. */
  readonly cursors = new Map<number, { columns: readonly Column[]; rows: readonly (readonly Value[])[]; at: number }>();
  readonly context = new Map<string, Typed>();
  /** Names of temporary tables, as PostgreSQL has them. */
  readonly temporary = new Set<string>();
  toldState: ReadonlyMap<number, Buffer> | null = null;
  toldRecoverable = true;
  stateSequence = 0;
  #begun: Date | null = null;
  #names: string[] = [];
  /** Whether the client was told of the transaction. */
  #announced = false;
  /** Only a rollback is left. */
  #doomed = false;
  #isolation = 2;
  readonly #switches = new Set<string>();
  #lockTimeout = -1;
  #rowLimit = 0;
  #textSize = 2_147_483_647;
  #dateFirst = 7;
  #contextInfo: Value = null;
  #rowCount = 0;
  #error = 0;
  /** How many there were. */
  #errors = 0;
  /** @@IDENTITY; undefined: the last number that PostgreSQL gave out. */
  #identity: Value | undefined = undefined;
  readonly #identities = new Map<string, { readonly catalogue: number; readonly has: boolean }>();
  #nextHandle = 1;
  #nested = 0;
  /** Above 0 inside of TRY. */
  #tries = 0;
  /** The errors of the CATCH blocks around. */
  readonly #caught: TdsError[] = [];
  #settingsTouched = false;
  readonly #columns = new Map<number, Map<number, Known>>();
  #catalogue = 0;
  #stopSleep: (() => void) | null = null;
  #cancelled = false;
  /** Settled when PostgreSQL has been told: a cancel that comes late would hit the next statement. */
  #cancelling: Promise<void> = Promise.resolve();
  #gone = false;

  constructor(
    readonly server: TdsServer,
    readonly pg: PgLink,
    readonly spid: number,
    readonly login: Login,
    readonly version: number,
    readonly packetSize: number,
    readonly encrypted: boolean,
  ) {
    this.database = login.database === '' ? server.defaultDatabase : login.database.toLowerCase();
    this.#defaults();
  }

  // ---------------------------------------------------------------------------------------------- life

  /** Settings of a new session in PostgreSQL. */
  async begin(): Promise<void> {
    await this.#applySettings();
  }

  #defaults(): void {
    this.#switches.clear();
    for (const option of SWITCHED_ON) this.#switches.add(option);
    this.#lockTimeout = -1;
    this.#rowLimit = 0;
    this.#textSize = 2_147_483_647;
    this.#dateFirst = 7;
    this.#contextInfo = null;
    this.context.clear();
    this.handles.clear();
    this.cursorStatements.clear();
    this.cursors.clear();
    this.bulk = null;
  }

  async #applySettings(): Promise<void> {
    const timeout = this.#lockTimeout < 0 ? 0 : Math.max(this.#lockTimeout, 1);
    const path = `"${this.database.replaceAll('"', '""')}", tds, public`;
    await this.pg.run(
      `SET search_path = ${path}; SET lock_timeout = ${timeout}; SET timezone = 'UTC'; SET bytea_output = 'hex'`,
    );
  }

  /** RESETCONNECTION, and sp_reset_connection. The isolation level stays, and so does the transaction where it is to. */
  async reset(keepTransaction: boolean): Promise<void> {
    this.server.note('reset', { spid: this.spid, keepTransaction });
    this.reply.change(CHANGE.reset, '', '');
    if (!keepTransaction && this.trancount > 0) await this.#abort();
    const dropped = [...this.temporary].map((table) => `DROP TABLE IF EXISTS pg_temp."${table.replaceAll('"', '""')}"`);
    this.temporary.clear();
    this.#defaults();
    const before = this.database;
    this.database = this.login.database === '' ? this.server.defaultDatabase : this.login.database.toLowerCase();
    await this.pg.run([...dropped, 'SELECT pg_advisory_unlock_all()'].join('; '));
    this.#settingsTouched = true;
    await this.#applySettings();
    if (before !== this.database) this.#tellDatabase(before);
  }

  #tellDatabase(before: string): void {
    this.reply.change(CHANGE.database, this.database, before);
    this.reply.info(5701, `Changed database context to '${this.database}'.`, { state: 2 });
  }

  /** What SESSIONSTATE tells of, and a login can bring back. */
  get settings(): { options: number; lockTimeout: number; isolation: number; contextInfo: Value } {
    return {
      options: [...this.#switches].reduce((bits, option) => bits | (SWITCHES[option] ?? 0), 0),
      lockTimeout: this.#lockTimeout,
      isolation: this.#isolation,
      contextInfo: this.#contextInfo,
    };
  }

  /** Takes over what an earlier session had. */
  recover(database: string, settings: Partial<Session['settings']>): void {
    if (database !== '') this.database = database.toLowerCase();
    this.#lockTimeout = settings.lockTimeout ?? this.#lockTimeout;
    this.#isolation = settings.isolation ?? this.#isolation;
    this.#contextInfo = settings.contextInfo ?? null;
    const { options } = settings;
    if (options === undefined) return;
    for (const [option, bit] of Object.entries(SWITCHES)) {
      if ((options & bit) !== 0) this.#switches.add(option);
      else if (bit !== 0) this.#switches.delete(option);
    }
  }

  /** Whether a new session could take this one's place. */
  get recoverable(): boolean {
    return (
      this.trancount === 0 &&
      [this.temporary, this.handles, this.cursorStatements, this.cursors, this.context].every(({ size }) => size === 0)
    );
  }

  get facts(): SessionFacts {
    return {
      spid: this.spid,
      login: this.login.user,
      host: this.login.host,
      processId: this.login.processId,
      application: this.login.application,
      database: this.database,
      running: this.running,
      trancount: this.trancount,
      descriptor: this.descriptor,
      begun: this.#begun,
      since: this.since,
      lastRequest: this.lastRequest,
      isolation: this.#isolation,
      encrypted: this.encrypted,
      packetSize: this.packetSize,
      connection: this.connection,
    };
  }

  /** An Attention for what runs. */
  cancel(): void {
    this.#cancelled = true;
    this.#stopSleep?.();
    this.#cancelling = this.#cancelPg();
  }

  /** Asks again while the same statement runs: PostgreSQL ignores what comes before it has read the statement. */
  async #cancelPg(): Promise<void> {
    const { runs } = this.pg;
    while (this.pg.busy && this.pg.runs === runs) {
      await this.pg.cancel();
      if (this.pg.busy && this.pg.runs === runs) await sleep(CANCEL_AGAIN_MS);
    }
  }

  /** Called before each request. */
  async ready(): Promise<void> {
    await this.#cancelling;
    this.#cancelled = false;
  }

  get cancelled(): boolean {
    return this.#cancelled;
  }

  /** The client or PostgreSQL is gone. What runs there is stopped, so that it holds no lock any longer. */
  async leave(): Promise<void> {
    if (this.#gone) return;
    this.#gone = true;
    this.#stopSleep?.();
    if (this.running !== null && !this.pg.closed) await this.pg.cancel();
    this.pg.destroy();
  }

  // ---------------------------------------------------------------------------------------------- requests

  /** A batch of SQL. */
  async batch(text: string): Promise<void> {
    try {
      await this.#whole(new Frame(''), () => parse(tokens(text, this.#switches.has('QUOTED_IDENTIFIER'))));
    } catch (error) {
      if (!(error instanceof BatchEnd)) throw error;
    }
  }

  /** Runs a whole batch; all errors have been told when it returns. Gives its status. */
  async #whole(frame: Frame, make: () => readonly Statement[]): Promise<number> {
    try {
      await this.list(make(), frame);
    } catch (error) {
      if (error instanceof Returned) return error.status;
      if (error instanceof TdsError) {
        if (this.#tries > 0) throw error;
        this.#error = error.number;
        this.#errors++;
        error.procedure ||= frame.procedure;
        this.reply.error(error);
        this.reply.done('', null, DONE.error);
        return -error.number;
      }
      if (error instanceof BatchEnd && !error.whole) return -1;
      throw error;
    } finally {
      await this.#leaveFrame(frame);
    }
    if (this.#doomed && this.#nested === 0) {
      await this.#abort();
      this.reply.error(
        new TdsError(
          3998,
          'Uncommittable transaction is detected at the end of the batch. The transaction is rolled back.',
        ),
      );
      this.reply.done('', null, DONE.error);
    }
    return 0;
  }

  async #leaveFrame(frame: Frame): Promise<void> {
    for (const table of frame.tables) {
      this.temporary.delete(table);
      if (!this.#gone && !this.pg.closed) await this.pg.run(`DROP TABLE IF EXISTS pg_temp."${table}"`).catch(() => {});
    }
    frame.tables.clear();
  }

  /** Statements in order. Throws {@link BatchEnd} when an error ended them. */
  async list(statements: readonly Statement[], frame: Frame): Promise<void> {
    for (const statement of statements) await this.#one(statement, frame);
  }

  async #one(statement: Statement, frame: Frame): Promise<void> {
    if (this.#gone) throw new SessionGone();
    if (this.#cancelled) throw new Cancelled();
    try {
      await this.#run(statement, frame);
      if (!['if', 'while', 'block', 'try', 'assign', 'declare'].includes(statement.kind)) this.#error = 0;
    } catch (error) {
      if (!(error instanceof TdsError)) throw error;
      if (error.line === 1) error.line = statement.line;
      error.procedure ||= frame.procedure;
      this.#error = error.number;
      this.#errors++;
      this.#rowCount = 0;
      const inTransaction = this.trancount > 0;
      const abort =
        inTransaction &&
        (error.reach === 'transaction' ||
          (this.#switches.has('XACT_ABORT') && error.severity > 10 && statement.kind !== 'raiserror'));
      if (this.#tries > 0) {
        // A deadlock's victim has lost its transaction in PostgreSQL, as it has in SQL Server once the CATCH block is left.
        if (abort) this.#doomed = true;
        throw error;
      }
      this.reply.error(error);
      if (abort) await this.#abort();
      const command = statement.kind === 'sql' ? statement.verb : '';
      const ends = abort || error.reach !== 'statement';
      if (!ends && ['INSERT', 'UPDATE', 'DELETE'].includes(command)) {
        this.reply.info(3621, 'The statement has been terminated.', { state: 0, line: statement.line });
      }
      this.reply.done(command, 0, DONE.error);
      if (error.severity >= 20) {
        this.reply.end();
        await this.server.dismiss(this.spid);
        throw new SessionGone();
      }
      if (ends) throw new BatchEnd(abort);
    }
  }

  async #run(statement: Statement, frame: Frame): Promise<void> {
    switch (statement.kind) {
      case 'sql':
        return this.#sql(statement, frame);
      case 'if':
        if (await this.#condition(statement.condition, frame)) return this.#one(statement.then, frame);
        if (statement.otherwise !== null) return this.#one(statement.otherwise, frame);
        return;
      case 'while':
        while (await this.#condition(statement.condition, frame)) {
          try {
            await this.#one(statement.body, frame);
          } catch (error) {
            if (!(error instanceof LoopEnd)) throw error;
            if (error.kind === 'break') return;
          }
        }
        return;
      case 'break':
      case 'continue':
        throw new LoopEnd(statement.kind);
      case 'block':
        return this.list(statement.body, frame);
      case 'try':
        return this.#try(statement.body, statement.handler, frame);
      case 'declare':
        for (const { name, type, value } of statement.variables) {
          frame.variables.set(name, { type, value: value === null ? null : await this.value(value, type, frame) });
        }
        return;
      case 'table variable':
        frame.tables.add(statement.name);
        await this.#pg(createTableVariable(statement.name, statement.columns, this.scope(frame)), 'CREATE');
        return;
      case 'assign': {
        const variable = frame.variables.get(statement.name);
        if (variable === undefined) throw new TdsError(137, `Must declare the scalar variable "${statement.name}".`);
        const { line } = statement;
        const sign = statement.operator[0];
        const whole: Token[] =
          sign === '='
            ? [...statement.value]
            : [
                { kind: 'variable', text: statement.name, line },
                { kind: 'sign', text: sign, line },
                { kind: 'sign', text: '(', line },
                ...statement.value,
                { kind: 'sign', text: ')', line },
              ];
        variable.value = await this.value(whole, variable.type, frame);
        return;
      }
      case 'set':
        await this.#set(statement.words, frame);
        this.reply.done('');
        return;
      case 'begin':
        await this.beginTransaction(this.#nameOf(statement.name, frame), 0, this.server.announcesText);
        this.reply.done('BEGIN');
        return;
      case 'commit':
        await this.commit(this.server.announcesText);
        this.reply.done('COMMIT');
        return;
      case 'rollback':
        await this.rollback(this.#nameOf(statement.name, frame), this.server.announcesText);
        this.reply.done('ROLLBACK');
        return;
      case 'save':
        await this.save(this.#nameOf(statement.name, frame));
        this.reply.done('SAVE');
        return;
      case 'print': {
        const text = await this.value(statement.value, { name: 'nvarchar', length: -1 }, frame);
        this.reply.info(0, text ?? ' ', { line: statement.line, procedure: frame.procedure });
        this.reply.done('');
        return;
      }
      case 'return': {
        const status = statement.value.length === 0 ? '0' : await this.value(statement.value, { name: 'int' }, frame);
        throw new Returned(Number(status ?? '0'));
      }
      case 'raiserror':
        return this.#raiserror(statement.values, statement.line, frame);
      case 'throw':
        return this.#throw(statement.values, statement.line, frame);
      case 'waitfor':
        return this.#waitfor(statement.what, statement.value, frame);
      case 'use':
        await this.use(statement.database);
        this.reply.done('');
        return;
      case 'kill': {
        const spid = Number(statement.value[0]?.text);
        if (spid === this.spid) throw new TdsError(6104, 'Cannot use KILL to kill your own process.');
        if (!this.server.drop(spid)) throw new TdsError(6106, `Process ID ${spid} is not an active process ID.`);
        this.reply.done('');
        return;
      }
      case 'exec':
        return this.#exec(statement, frame);
      case 'procedure': {
        const verb = statement.replace ? 'ON CONFLICT (database, name) DO UPDATE SET text = excluded.text' : '';
        const values = [this.database, statement.name, JSON.stringify(statement.text)].map(quote).join(', ');
        await this.#pg(`INSERT INTO tds.procedures VALUES (${values}) ${verb}`, 'CREATE');
        this.reply.done('CREATE');
        return;
      }
      case 'bulk': {
        const { table, columns } = statement;
        this.bulk = { table: translate('', table, this.scope(frame)).sql, columns };
        this.reply.done('BULK');
        return;
      }
      case 'nothing':
        this.reply.done('');
    }
  }

  async #try(body: readonly Statement[], handler: readonly Statement[], frame: Frame): Promise<void> {
    this.#tries++;
    let error: unknown = null;
    try {
      await this.list(body, frame);
    } catch (thrown) {
      error = thrown;
    } finally {
      this.#tries--;
    }
    if (error === null) return;
    if (!(error instanceof TdsError)) throw error;
    this.#caught.push(error);
    try {
      await this.list(handler, frame);
    } finally {
      this.#caught.pop();
    }
  }

  // ---------------------------------------------------------------------------------------------- values

  scope(frame: Frame): Scope {
    const around = () => ({
      serverName: this.server.name,
      started: this.server.started,
      own: this.facts,
      sessions: this.server.facts(),
    });
    return {
      variable: (wanted) => frame.variables.get(wanted),
      isTableVariable: (wanted) => frame.tables.has(wanted),
      global: (wanted) => this.#global(wanted) ?? knownGlobal(around(), wanted),
      known: (called, args) => this.#known(called, args) ?? knownFunction(around(), called, args),
      view: (wanted): View | undefined => knownView(around(), wanted),
    };
  }

  #global(wanted: string): Typed | undefined {
    switch (wanted) {
      case 'rowcount':
        return int(this.#rowCount);
      case 'error':
        return int(this.#error);
      case 'identity':
        return this.#identity === undefined
          ? undefined
          : { type: { name: 'numeric', precision: 38, scale: 0 }, value: this.#identity };
      case 'lock_timeout':
        return int(this.#lockTimeout);
      case 'textsize':
        return int(this.#textSize);
      case 'datefirst':
        return { type: { name: 'tinyint' }, value: String(this.#dateFirst) };
      case 'options':
        return int(this.settings.options);
      default:
        return undefined;
    }
  }

  #known(called: string, [first]: readonly Value[]): Typed | undefined {
    const error = this.#caught.at(-1);
    switch (called) {
      case 'ERROR_NUMBER':
        return int(error?.number ?? null);
      case 'ERROR_SEVERITY':
        return int(error?.severity ?? null);
      case 'ERROR_STATE':
        return int(error?.state ?? null);
      case 'ERROR_LINE':
        return int(error?.line ?? null);
      case 'ERROR_MESSAGE':
        return { type: { name: 'nvarchar', length: 4000 }, value: error?.message ?? null };
      case 'ERROR_PROCEDURE':
        return name(error?.procedure || null);
      case 'XACT_STATE':
        return this.#doomed ? { type: { name: 'smallint' }, value: '-1' } : undefined;
      case 'ROWCOUNT_BIG':
        return { type: { name: 'bigint' }, value: String(this.#rowCount) };
      case 'CONTEXT_INFO':
        return { type: { name: 'varbinary', length: 128 }, value: this.#contextInfo };
      case 'SESSION_CONTEXT':
        return (
          this.context.get(first?.toLowerCase() ?? '') ?? { type: { name: 'nvarchar', length: 4000 }, value: null }
        );
      default:
        return undefined;
    }
  }

  /** The value of an expression, as one of the type. */
  async value(list: readonly Token[], type: SqlType, frame: Frame): Promise<Value> {
    const scope = this.scope(frame);
    const [only] = list;
    if (list.length === 1) {
      const same = only.kind === 'variable' ? scope.variable(only.text.toLowerCase()) : undefined;
      if (same !== undefined && same.type.name === type.name && same.type.length === type.length) return same.value;
      if (only.kind === 'word' && only.text.toUpperCase() === 'NULL') return null;
      // EXEC p name: a word that is no column is a text.
      if (
        only.kind === 'word' &&
        scope.known(only.text.toUpperCase(), []) === undefined &&
        !/^CURRENT_/i.test(only.text)
      )
        return only.text;
    }
    const sql = translateValue(list, type, scope);
    let found: Value = null;
    await this.#pg(sql, 'SELECT', (row) => {
      found = row[0];
    });
    return found;
  }

  async #condition(list: readonly Token[], frame: Frame): Promise<boolean> {
    let found = false;
    await this.#pg(translateCondition(list, this.scope(frame)), 'IF', (row) => {
      found = row[0] === '1';
    });
    return found;
  }

  // ---------------------------------------------------------------------------------------------- PostgreSQL

  /**
   * Runs statements in PostgreSQL. In a transaction a savepoint stands before them, because there an error ends the statement
   * and not the transaction. It is there before the text comes: one with a syntax error sets none. Throws a {@link TdsError}.
   */
  async #pg(
    sql: string,
    verb: string,
    onRow?: (row: readonly Value[], fields: readonly Field[]) => Promise<void> | undefined | void,
  ): Promise<PgResult[]> {
    const inside = this.trancount > 0;
    try {
      const results = await this.pg.run(
        inside ? `${sql}; RELEASE SAVEPOINT tds_statement; SAVEPOINT tds_statement` : sql,
        (row, fields) => onRow?.(row, fields) as Promise<void> | undefined,
      );
      return inside ? results.slice(0, -2) : results;
    } catch (error) {
      throw await this.#failed(error as PgError, verb, inside);
    }
  }

  async #failed(error: PgError, verb: string, inside: boolean): Promise<Error> {
    // An error of this server's own, such as a value that has no place on the wire.
    if (error.code === undefined && !this.pg.closed) return error;
    if (this.pg.closed || this.#gone || error.code === undefined || /^57P0[12]/.test(error.code)) {
      this.server.drop(this.spid);
      return new SessionGone();
    }
    if (this.#cancelled) await this.#cancelling;
    if (inside) {
      await this.pg.run('ROLLBACK TO SAVEPOINT tds_statement').catch(() => {});
      await this.#restoreSettings();
    }
    if (error.code === '57014' && this.#cancelled) return new Cancelled();
    const told = fromPg(error, { database: this.database, verb, snapshot: this.#isolation === 5, line: 1 });
    this.server.note('error', { spid: this.spid, number: told.number, text: told.message, pg: error.code });
    return told;
  }

  async #restoreSettings(): Promise<void> {
    if (!this.#settingsTouched) return;
    await this.#applySettings();
  }

  // ---------------------------------------------------------------------------------------------- statements

  async #sql(statement: { verb: string; tokens: readonly Token[]; line: number }, frame: Frame): Promise<void> {
    const { verb } = statement;
    if (this.#switches.has('NOEXEC') || this.#switches.has('PARSEONLY')) return;
    if (await this.#special(statement)) return;
    const translated = translate(verb, statement.tokens, this.scope(frame));
    if (verb !== 'SELECT' && this.#doomed) {
      const text =
        'The current transaction cannot be committed and cannot support operations that write to the log file. Roll back the transaction.';
      throw new TdsError(3930, text);
    }
    if (this.#switches.has('IMPLICIT_TRANSACTIONS') && this.trancount === 0 && translated.touchesTables) {
      await this.beginTransaction('', 0, this.server.announcesText);
    }
    // A commit of its own can only be held where there is one.
    const held = this.trancount === 0 && verb !== 'SELECT' && this.server.holdsAutocommit;
    if (held) await this.pg.run('BEGIN');
    const rows = new Rows(this, translated, this.#rowLimit, this.#switches.has('FMTONLY'));
    let results: PgResult[];
    try {
      results = await this.#pg([...translated.before, rows.sql].join('; '), verb, (row, fields) =>
        rows.row(row, fields),
      );
    } catch (error) {
      if (held && !this.pg.closed) await this.pg.run('ROLLBACK');
      throw error;
    }
    if (held) await this.#holdCommit(() => this.pg.run('COMMIT'), 'autocommit');
    for (const table of translated.made) this.temporary.add(table);
    if (verb === 'INSERT') await this.#noteIdentity(statement.tokens, frame);
    if (verb === 'DROP') for (const { text } of statement.tokens) this.temporary.delete(text.toLowerCase());
    if (verb === 'CREATE' || verb === 'ALTER' || verb === 'DROP') this.server.changedCatalogue();
    const last = results.findLast(({ command }) => command !== 'COMMENT') ?? results.at(-1)!;
    await rows.end(last.fields);
    const counted = ['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'WITH'].includes(verb);
    this.#rowCount = counted ? (rows.given ?? last.rowCount ?? 0) : 0;
    if (rows.assigned !== null) {
      translated.assigns!.forEach((name, i) => {
        const variable = frame.variables.get(name);
        if (variable === undefined) throw new TdsError(137, `Must declare the scalar variable "${name}".`);
        variable.value = rows.assigned![i];
      });
    }
    const word = verb === 'WITH' ? (last.command === 'CREATE' ? 'SELECT' : last.command) : verb;
    if (translated.assigns !== null) this.reply.done(word);
    else this.reply.done(word, counted && !this.#switches.has('NOCOUNT') ? this.#rowCount : null);
  }

  /** Statements that are nothing of PostgreSQL's. */
  async #special({ verb, tokens: list }: { verb: string; tokens: readonly Token[] }): Promise<boolean> {
    const word = list[1]?.text.toUpperCase();
    if (verb === 'CREATE' && (word === 'DATABASE' || word === 'SCHEMA')) {
      await this.#pg(`CREATE SCHEMA ${quoteName(list[2].text)}`, verb);
    } else if (verb === 'DROP' && (word === 'PROCEDURE' || word === 'PROC')) {
      const wanted = list.at(-1)!.text.toLowerCase();
      await this.#pg(
        `DELETE FROM tds.procedures WHERE database = ${quote(this.database)} AND name = ${quote(wanted)}`,
        verb,
      );
    } else if (verb === 'SELECT' && word === 'IDENTITY' && list[2]?.text === '(') {
      // SELECT IDENTITY(type, seed, step) AS a INTO #t: of the table nothing is kept but the number that it was given.
      const seed = list[list.findIndex(({ text }) => text === ',') + 1];
      this.#identity = seed.text;
    } else if (verb === 'GRANT') {
      await this.#grant(list);
    } else if (verb === 'DROP' && word === 'DATABASE') {
      await this.#pg(
        `DROP SCHEMA ${list[2].text.toUpperCase() === 'IF' ? 'IF EXISTS ' : ''}${quoteName(list.at(-1)!.text)} CASCADE`,
        verb,
      );
    } else if (!['GRANT', 'REVOKE', 'DENY'].includes(verb) && !(verb === 'ALTER' && word === 'DATABASE')) {
      return false;
    }
    this.reply.done(verb);
    return true;
  }

  /** GRANT a, b ON [OBJECT::]name TO somebody: kept for sys.database_permissions, and nothing else. */
  async #grant(list: readonly Token[]): Promise<void> {
    const on = list.findIndex(({ text }) => text.toUpperCase() === 'ON');
    const to = list.findIndex(({ text }) => text.toUpperCase() === 'TO');
    if (on < 0 || to < 0) return;
    const permissions = list
      .slice(1, on)
      .filter(({ kind }) => kind === 'word')
      .map(({ text }) => text.toUpperCase());
    const [object, grantee] = [list[to - 1], list[to + 1]].map(({ text }) => text.toLowerCase());
    const rows = permissions.map((permission) => [this.database, object, grantee, permission].map(quote).join(', '));
    const values = rows.map((row) => `(${row})`).join(', ');
    await this.#pg(`INSERT INTO tds.permissions VALUES ${values} ON CONFLICT DO NOTHING`, 'GRANT');
  }

  /** What @@IDENTITY is behind an INSERT: of a table without identity it is NULL. */
  async #noteIdentity(list: readonly Token[], frame: Frame): Promise<void> {
    const start = list[1]?.text.toUpperCase() === 'INTO' ? 2 : 1;
    let end = start + 1;
    while (list[end]?.text === '.') end += 2;
    const table = translate('', list.slice(start, end), this.scope(frame)).sql;
    const known = this.#identities.get(table);
    if (known?.catalogue !== this.server.catalogue) {
      const sql = `SELECT count(*) FROM pg_attribute WHERE attrelid = to_regclass(${quote(table)}) AND attidentity <> ''`;
      const [[count]] = await this.pg.rows(sql);
      this.#identities.set(table, { catalogue: this.server.catalogue, has: count !== '0' });
    }
    this.#identity = this.#identities.get(table)!.has ? undefined : null;
  }

  async use(database: string): Promise<void> {
    const wanted = database.toLowerCase();
    if (!(await this.server.hasDatabase(this.pg, wanted))) {
      throw new TdsError(911, `Database '${database}' does not exist. Make sure that the name is entered correctly.`);
    }
    const before = this.database;
    this.database = wanted;
    this.#settingsTouched = true;
    await this.#applySettings();
    this.#tellDatabase(before);
  }

  async #set(words: readonly Token[], frame: Frame): Promise<void> {
    const text = words.map((word) => word.text.toUpperCase()).join(' ');
    const level = /^TRANSACTION ISOLATION LEVEL (.*)$/.exec(text);
    if (level !== null) {
      const found = ISOLATION_NAMES[level[1]];
      if (found === undefined) throw syntaxError(words.at(-1)!.text, words[0].line);
      this.#isolation = found;
      return;
    }
    const [option] = text.split(' ');
    const value = words.slice(1);
    switch (option) {
      case 'LOCK_TIMEOUT':
        this.#lockTimeout = Number((await this.value(value, { name: 'int' }, frame)) ?? '-1');
        this.#settingsTouched = true;
        await this.#applySettings();
        return;
      case 'ROWCOUNT':
        this.#rowLimit = Number((await this.value(value, { name: 'int' }, frame)) ?? '0');
        return;
      case 'TEXTSIZE':
        this.#textSize = Number((await this.value(value, { name: 'int' }, frame)) ?? '0');
        if (this.#textSize <= 0) this.#textSize = this.#textSize === 0 ? 4096 : 2_147_483_647;
        return;
      case 'DATEFIRST':
        this.#dateFirst = Number((await this.value(value, { name: 'int' }, frame)) ?? '7');
        return;
      case 'DATEFORMAT':
        await this.pg.run(`SET datestyle = 'ISO, ${/^[dmy]{3}$/i.test(value[0]?.text) ? value[0].text : 'mdy'}'`);
        return;
      case 'LANGUAGE':
        this.reply.change(CHANGE.language, 'us_english', 'us_english');
        this.reply.info(5703, 'Changed language setting to us_english.');
        return;
      case 'CONTEXT_INFO': {
        const bytes = await this.value(value, { name: 'varbinary', length: 128 }, frame);
        this.#contextInfo = bytes === null ? null : bytes.padEnd(258, '0');
        return;
      }
      case 'IDENTITY_INSERT':
      case 'STATISTICS':
      case 'DEADLOCK_PRIORITY':
      case 'QUERY_GOVERNOR_COST_LIMIT':
      case 'FIPS_FLAGGER':
      case 'OFFSETS':
        return;
    }
    const on = words.at(-1)!.text.toUpperCase();
    const options = text
      .replace(/ (ON|OFF)$/, '')
      .split(/[ ,]+/)
      .filter((part) => part !== '');
    if ((on !== 'ON' && on !== 'OFF') || !options.every((part) => Object.hasOwn(SWITCHES, part))) {
      throw new TdsError(195, `'${option}' is not a recognized SET option.`);
    }
    for (const part of options) {
      if (on === 'ON') this.#switches.add(part);
      else this.#switches.delete(part);
    }
  }

  async #raiserror(values: readonly (readonly Token[])[], line: number, frame: Frame): Promise<void> {
    const [message, severity, state, ...rest] = values;
    if (state === undefined) throw syntaxError('RAISERROR', line);
    const numbered = message.length === 1 && message[0].kind === 'number' ? Number(message[0].text) : null;
    let text =
      (numbered === null
        ? await this.value(message, { name: 'nvarchar', length: 2048 }, frame)
        : `Error ${numbered}`) ?? '';
    for (const arg of rest) {
      const value = await this.value(arg, { name: 'nvarchar', length: 2048 }, frame);
      text = text.replace(/%[-+0 #]*\d*[sdiuxX]/, () => value ?? '(null)');
    }
    const level = Number(await this.value(severity, { name: 'int' }, frame));
    const shown = Number(await this.value(state, { name: 'int' }, frame));
    if (level > 10) throw new TdsError(numbered ?? 50000, text, { severity: level, state: shown, line });
    this.reply.info(numbered ?? 50000, text, { severity: level, state: shown, line, procedure: frame.procedure });
    this.reply.done('');
  }

  async #throw(values: readonly (readonly Token[])[], line: number, frame: Frame): Promise<void> {
    if (values.length === 0) {
      const again = this.#caught.at(-1);
      if (again === undefined)
        throw new TdsError(10704, 'To rethrow an error, a THROW statement must be used inside a CATCH block.');
      throw new TdsError(again.number, again.message, {
        severity: again.severity,
        state: again.state,
        line: again.line,
        reach: 'batch',
      });
    }
    const number = Number(await this.value(values[0], { name: 'int' }, frame));
    const text = (await this.value(values[1] ?? [], { name: 'nvarchar', length: 2048 }, frame)) ?? '';
    const state = Number(await this.value(values[2] ?? [], { name: 'int' }, frame));
    throw new TdsError(number, text, { severity: 16, state, line, reach: 'batch' });
  }

  async #waitfor(what: string, value: readonly Token[], frame: Frame): Promise<void> {
    const time = await this.value(value, { name: 'varchar', length: 30 }, frame);
    const match = /^(\d+):(\d+)(?::(\d+(?:\.\d+)?))?$/.exec(time ?? '');
    if (what !== 'DELAY' || match === null) throw syntaxError(what, value[0]?.line ?? 1);
    if (this.#cancelled) throw new Cancelled();
    const ms = ((Number(match[1]) * 60 + Number(match[2])) * 60 + Number(match[3] ?? '0')) * 1000;
    await new Promise<void>((done) => {
      const timer = setTimeout(done, ms);
      this.#stopSleep = () => {
        clearTimeout(timer);
        done();
      };
    });
    this.#stopSleep = null;
    if (this.#gone) throw new SessionGone();
    if (this.#cancelled) throw new Cancelled();
    this.reply.done('');
  }

  // ---------------------------------------------------------------------------------------------- transactions

  #nameOf(list: readonly Token[], frame: Frame): string {
    const [token] = list;
    if (token === undefined) return '';
    return token.kind === 'variable' ? (frame.variables.get(token.text.toLowerCase())?.value ?? '') : token.text;
  }

  /** @param isolation T-SQL's number, 0 for the session's own */
  async beginTransaction(name: string, isolation: number, announce: boolean): Promise<void> {
    if (isolation > 0) this.#isolation = isolation;
    if (this.trancount === 0) {
      let level = ISOLATION[this.#isolation];
      // A standby of PostgreSQL has no serializable transactions.
      if (level === 'SERIALIZABLE' && (await this.server.isStandby(this.pg))) level = 'REPEATABLE READ';
      await this.pg.run(`BEGIN ISOLATION LEVEL ${level}; SAVEPOINT tds_statement`);
      this.descriptor = this.server.nextDescriptor();
      this.#begun = new Date();
      this.#names = [name];
      this.#announced = false;
      this.#settingsTouched = false;
      this.server.note('begin', { spid: this.spid, descriptor: this.descriptor });
    }
    this.trancount++;
    if (announce && !this.#announced) {
      this.#announced = true;
      this.reply.transaction(CHANGE.begin, this.descriptor);
    }
  }

  async commit(announce: boolean): Promise<void> {
    if (this.trancount === 0)
      throw new TdsError(3902, 'The COMMIT TRANSACTION request has no corresponding BEGIN TRANSACTION.');
    if (this.#doomed) {
      const text =
        'The current transaction cannot be committed and cannot support operations that write to the log file. Roll back the transaction.';
      throw new TdsError(3930, text);
    }
    if (this.trancount > 1) {
      this.trancount--;
      return;
    }
    try {
      await this.#holdCommit(() => this.pg.run('COMMIT'), 'commit');
    } catch (error) {
      const told = await this.#failed(error as PgError, 'COMMIT', false);
      if (told instanceof SessionGone) throw told;
      this.#ended(CHANGE.rollback, true);
      throw told;
    }
    this.#ended(CHANGE.commit, announce);
  }

  /** A commit with the places before and after it where a test may hold it. */
  async #holdCommit(commit: () => Promise<unknown>, kind: string): Promise<void> {
    await this.server.atGate('before-commit', this.spid);
    if (this.#gone) throw new SessionGone();
    await commit();
    this.server.note('commit', { spid: this.spid, descriptor: this.descriptor, of: kind });
    await this.server.atGate('after-commit', this.spid);
    if (this.#gone) throw new SessionGone();
  }

  /** @param name of a savepoint, of the transaction, or nothing */
  async rollback(name: string, announce: boolean): Promise<void> {
    if (this.trancount === 0)
      throw new TdsError(3903, 'The ROLLBACK TRANSACTION request has no corresponding BEGIN TRANSACTION.');
    if (name !== '' && name !== this.#names[0]) {
      if (!this.#names.slice(1).includes(name)) {
        throw new TdsError(6401, `Cannot roll back ${name}. No transaction or savepoint of that name was found.`);
      }
      await this.pg.run(`ROLLBACK TO SAVEPOINT ${savepoint(name)}; SAVEPOINT tds_statement`);
      this.#names = this.#names.slice(0, this.#names.lastIndexOf(name) + 1);
      await this.#restoreSettings();
      this.server.note('rollback', { spid: this.spid, savepoint: name });
      return;
    }
    await this.pg.run('ROLLBACK');
    await this.#restoreSettings();
    this.server.note('rollback', { spid: this.spid, descriptor: this.descriptor });
    this.#ended(CHANGE.rollback, announce);
  }

  async save(name: string): Promise<void> {
    if (this.trancount === 0)
      throw new TdsError(628, 'Cannot issue SAVE TRANSACTION when there is no active transaction.');
    if (name === '') throw syntaxError('TRANSACTION', 1);
    await this.pg.run(`RELEASE SAVEPOINT tds_statement; SAVEPOINT ${savepoint(name)}; SAVEPOINT tds_statement`);
    this.#names.push(name);
  }

  #ended(kind: number, announce: boolean): void {
    this.trancount = 0;
    this.#doomed = false;
    this.#begun = null;
    if (announce && this.#announced) this.reply.transaction(kind, this.descriptor);
    this.#announced = false;
    this.descriptor = 0n;
  }

  /** An error ended the transaction. The client is always told. */
  async #abort(): Promise<void> {
    await this.pg.run('ROLLBACK');
    await this.#restoreSettings();
    this.server.note('rollback', { spid: this.spid, descriptor: this.descriptor, error: true });
    this.#announced = true;
    this.#ended(CHANGE.rollback, true);
  }

  /** After an Attention. */
  async afterCancel(): Promise<void> {
    await this.#cancelling;
    this.#nested = 0;
    this.#tries = 0;
    this.#caught.length = 0;
    if (this.trancount > 0 && this.#switches.has('XACT_ABORT')) await this.#abort();
  }

  // ---------------------------------------------------------------------------------------------- procedures

  /** Prepares a statement. Throws 102 and alike for a text that cannot be read. */
  prepare(declaration: string, text: string): number {
    const handle = this.#nextHandle++;
    this.handles.set(handle, { parameters: readParameters(tokens(declaration)), batch: parse(tokens(text)) });
    return handle;
  }

  /** Tells the columns of a prepared SELECT, as sp_prepare does. Nothing is told of what cannot be described. */
  async describe(handle: number): Promise<void> {
    const { parameters, batch } = this.handles.get(handle)!;
    const [statement] = batch;
    if (batch.length !== 1 || statement.kind !== 'sql' || statement.verb !== 'SELECT') return;
    const frame = new Frame('');
    for (const { name, type } of parameters) frame.variables.set(name, { type, value: null });
    try {
      const translated = translate(statement.verb, statement.tokens, this.scope(frame));
      if (translated.columns === null) return;
      const rows = new Rows(this, translated, 0, true);
      const results = await this.#pg(rows.sql, statement.verb);
      await rows.end(results[0].fields);
    } catch (error) {
      if (!(error instanceof TdsError)) throw error;
    }
  }

  /** Keeps a statement for cursors. Throws 102 and alike for a text that cannot be read. */
  prepareCursor(statement: { readonly declaration: string; readonly text: string }): number {
    readParameters(tokens(statement.declaration));
    parse(tokens(statement.text));
    const handle = this.#nextHandle++;
    this.cursorStatements.set(handle, statement);
    return handle;
  }

  /** Opens a cursor over a SELECT. Gives its handle. */
  async openCursor(text: string, parameters: readonly Declared[], given: readonly Given[]): Promise<number> {
    const [statement, ...more] = parse(tokens(text));
    if (statement?.kind !== 'sql' || more.length > 0) {
      throw new TdsError(
        16937,
        'A server cursor is not allowed on a remote stored procedure or on one with more than one SELECT.',
      );
    }
    const frame = new Frame('');
    await this.#bind(frame, parameters, given, 'sp_cursoropen');
    const translated = translate(statement.verb, statement.tokens, this.scope(frame));
    const rows: (readonly Value[])[] = [];
    const [{ fields }] = await this.#pg(translated.sql, statement.verb, (row) => {
      rows.push(row);
    });
    await this.learnTables(this.unknownTables(fields));
    const handle = 180_150_000 + this.#nextHandle++;
    this.cursors.set(handle, { columns: this.columnsFor(fields, translated.columns, true), rows, at: 0 });
    return handle;
  }

  /** Runs a text with parameters, as sp_executesql and sp_execute do. Gives the values of all parameters at the end. */
  async executeText(
    parameters: readonly Declared[],
    batch: readonly Statement[],
    given: readonly Given[],
  ): Promise<Value[]> {
    const frame = new Frame('');
    await this.#bind(frame, parameters, given, 'sp_executesql');
    const status = await this.#inside(() => this.#whole(frame, () => batch));
    if (status === -1) this.#error ||= 50000;
    return parameters.map(({ name }) => frame.variables.get(name)!.value);
  }

  async #inside<T>(body: () => Promise<T>): Promise<T> {
    if (this.#nested >= MOST_NESTED)
      throw new TdsError(217, 'Maximum stored procedure nesting level exceeded (limit 32).');
    this.#nested++;
    this.reply.depth++;
    try {
      return await body();
    } finally {
      this.#nested--;
      this.reply.depth--;
    }
  }

  async #bind(
    frame: Frame,
    parameters: readonly Declared[],
    given: readonly Given[],
    procedure: string,
  ): Promise<void> {
    const left = [...parameters];
    for (const { name, type, value } of given) {
      const at = name === null ? 0 : left.findIndex((parameter) => parameter.name === name.toLowerCase());
      const [parameter] = at < 0 || left.length === 0 ? [] : left.splice(at, 1);
      if (parameter === undefined) {
        throw new TdsError(8144, `Procedure or function ${procedure} has too many arguments specified.`);
      }
      frame.variables.set(parameter.name, {
        type: parameter.type,
        value: await this.#converted(value, type, parameter.type),
      });
    }
    for (const { name, type, value } of left) {
      if (value === null) {
        const text = `Procedure or function '${procedure}' expects parameter '${name}', which was not supplied.`;
        throw new TdsError(201, text);
      }
      frame.variables.set(name, { type, value: await this.value(value, type, frame) });
    }
  }

  /** A value as one of another type. PostgreSQL converts what is not the same already. */
  async #converted(value: Value, from: SqlType, to: SqlType): Promise<Value> {
    if (value === null || from.name === to.name) return value;
    const kinds = [TYPES[from.name].kind, TYPES[to.name].kind];
    if (kinds[0] === kinds[1] && kinds[0] === 'text') return value;
    if (kinds[0] === 'int' && to.name === 'bigint') return value;
    if (kinds.every((kind) => kind === 'decimal') && from.scale === to.scale) return value;
    let found: Value = null;
    const text = to.name === 'bit' ? String(toScaled(value, 0) === 0n ? 0 : 1) : value;
    await this.#pg(`SELECT ${literal(from, text)}::${literal(to, null).slice(6)}`, 'SELECT', (row) => {
      found = row[0];
    });
    return found;
  }

  async #exec(
    statement: {
      procedure: string;
      result: string | null;
      text: readonly Token[] | null;
      values: readonly Argument[];
      line: number;
    },
    frame: Frame,
  ): Promise<void> {
    if (statement.text !== null) {
      const text = await this.value(statement.text, { name: 'nvarchar', length: -1 }, frame);
      const inner = new Frame('');
      await this.#inside(() => this.#whole(inner, () => parse(tokens(text ?? ''))));
      this.reply.done('EXEC');
      return;
    }
    const given: Given[] = [];
    for (const { name, value, output } of statement.values) {
      const variable =
        value.length === 1 && value[0].kind === 'variable'
          ? frame.variables.get(value[0].text.toLowerCase())
          : undefined;
      const type = variable?.type ?? typeOf(value, this.scope(frame)) ?? { name: 'nvarchar', length: -1 };
      given.push({ name, type, value: await this.value(value, type, frame), output });
    }
    const outputs = await this.call(statement.procedure, given);
    outputs.values.forEach((value, i) => {
      const argument = statement.values[i];
      if (argument?.output !== true) return;
      const variable = frame.variables.get(argument.value[0].text.toLowerCase());
      if (variable !== undefined) variable.value = value;
    });
    const result = statement.result === null ? undefined : frame.variables.get(statement.result);
    if (result !== undefined) result.value = String(outputs.status);
    if (this.reply.depth === 0) this.reply.returnStatus(outputs.status);
    this.reply.doneProc(outputs.status < 0 && outputs.failed ? DONE.error : 0);
  }

  /**
   * Calls a procedure, one of the server's or one that was created. Gives its status and the values of the arguments after it.
   * Throws 2812 when there is none of the name.
   */
  async call(
    procedure: string,
    given: readonly Given[],
  ): Promise<{ status: number; failed: boolean; values: Value[]; types: SqlType[] }> {
    const own = PROCEDURES[procedure.replace(/^(master\.|sys\.)+/, '')];
    if (own !== undefined) {
      const values = given.map(({ value }) => value);
      const types = given.map(({ type }) => type);
      const before = this.#errors;
      const status = await this.#inside(() => own(this, given, values, types));
      return { status, failed: this.#errors > before && this.#error !== 0, values, types };
    }
    let text: Value = null;
    const [name, database = this.database] = procedure.split('.').reverse();
    if (database !== this.database && !(await this.server.hasDatabase(this.pg, database))) {
      throw new TdsError(911, `Database '${database}' does not exist. Make sure that the name is entered correctly.`);
    }
    await this.#pg(
      `SELECT text FROM tds.procedures WHERE database = ${quote(database)} AND name = ${quote(name)}`,
      'EXEC',
      (row) => {
        text = row[0];
      },
    );
    if (text === null) throw new TdsError(2812, `Could not find stored procedure '${procedure}'.`);
    const list = JSON.parse(text) as Token[];
    const as = list.findIndex(
      (token) => token.kind === 'word' && token.text.toUpperCase() === 'AS' && list[0] !== token,
    );
    let head = list.slice(0, as);
    if (head[0]?.text === '(') head = head.slice(1, -1);
    const parameters = readParameters(head);
    const frame = new Frame(procedure);
    await this.#bind(frame, parameters, given, procedure);
    const status = await this.#within(database, () =>
      this.#inside(() => this.#whole(frame, () => parse(list.slice(as + 1)))),
    );
    const named = given.map(
      ({ name }, i) => parameters.find((parameter) => parameter.name === name?.toLowerCase()) ?? parameters[i],
    );
    return {
      status,
      failed: status < 0,
      values: named.map((parameter) => frame.variables.get(parameter.name)!.value),
      types: named.map(({ type }) => type),
    };
  }

  /** A procedure of another database works on that. */
  async #within<T>(database: string, body: () => Promise<T>): Promise<T> {
    const before = this.database;
    if (database === before) return body();
    const go = async (to: string): Promise<void> => {
      this.database = to;
      this.#settingsTouched = true;
      if (!this.#gone && !this.pg.closed) await this.#applySettings();
    };
    await go(database);
    try {
      return await body();
    } finally {
      await go(before);
    }
  }

  /** Statements of a procedure of the server. */
  async ask(sql: string): Promise<Value[][]> {
    const rows: Value[][] = [];
    await this.#pg(sql, 'EXEC', (row) => {
      rows.push([...row]);
    });
    return rows;
  }

  /** Rows that a procedure of the server gives. */
  give(columns: readonly Column[], rows: readonly (readonly Value[])[]): void {
    this.reply.metadata(columns);
    for (const row of rows) this.reply.row(row);
    this.reply.done('SELECT', rows.length);
  }

  get lastError(): number {
    return this.#error;
  }

  // ---------------------------------------------------------------------------------------------- columns

  /** The tables whose columns are not known yet. */
  unknownTables(fields: readonly Field[]): number[] {
    if (this.#catalogue !== this.server.catalogue) {
      this.#columns.clear();
      this.#catalogue = this.server.catalogue;
    }
    return [...new Set(fields.map(({ tableID }) => tableID))].filter(
      (table) => table !== 0 && !this.#columns.has(table),
    );
  }

  async learnTables(tables: readonly number[]): Promise<void> {
    if (tables.length === 0) return;
    for (const table of tables) this.#columns.set(table, new Map());
    const rows = await this.pg.rows(
      'SELECT attrelid, attnum, attname, attnotnull, attidentity, col_description(attrelid, attnum) FROM pg_attribute ' +
        `WHERE attnum > 0 AND attrelid IN (${tables.join(', ')})`,
    );
    for (const [table, number, column, notNull, identity, comment] of rows) {
      const words = comment === null ? [] : tokens(comment);
      let type: SqlType | null = null;
      let own = column!;
      if (words.length > 1) {
        type = readTypeAt(words, 0).type;
        own = comment!.slice(comment!.indexOf(' ') + 1);
      }
      const known = { type, name: own, nullable: notNull !== 't', identity: identity !== '' };
      this.#columns.get(Number(table))!.set(Number(number), known);
    }
  }

  columnsFor(fields: readonly Field[], hints: readonly (ColumnHint | null)[] | null, outer: boolean): Column[] {
    return fields.map((field, i) => {
      const known = this.#columns.get(field.tableID)?.get(field.columnID);
      const hint = hintAt(hints, i, fields.length);
      const own = typeOfOid(field.dataTypeID, field.dataTypeModifier);
      const type =
        known?.type ?? fitting(hint, own) ?? (hint?.sum && own.name === 'bigint' ? { name: 'int' as const } : own);
      return {
        name: hint?.name ?? known?.name ?? field.name,
        type,
        nullable: outer || (known?.nullable ?? true),
        identity: known?.identity ?? false,
      };
    });
  }
}

/** The hint of a column, where a star among the hints stands for as many as are not told. */
function hintAt(hints: readonly (ColumnHint | null)[] | null, index: number, count: number): ColumnHint | null {
  if (hints === null) return null;
  const star = hints.indexOf(null);
  if (star < 0) return hints[index] ?? null;
  if (index < star) return hints[index];
  const fromEnd = count - index;
  const last = hints.lastIndexOf(null);
  return fromEnd <= hints.length - 1 - last ? hints[hints.length - fromEnd] : null;
}

/** The type that the words of a column promise, where PostgreSQL's values can have it: UNION may have made others of them. */
function fitting(hint: ColumnHint | null, own: SqlType): SqlType | null {
  if (hint === null || hint.type === null) return null;
  const from = TYPES[own.name].kind;
  switch (TYPES[hint.type.name].kind) {
    case 'int':
    case 'bit':
      return from === 'int' || from === 'bit' ? hint.type : null;
    case 'decimal':
    case 'money':
    case 'float':
      return ['int', 'decimal', 'float'].includes(from) ? hint.type : null;
    case 'text':
    case 'xml':
    case 'variant':
      return from === 'text' ? hint.type : null;
    default:
      return from === TYPES[hint.type.name].kind ? hint.type : null;
  }
}

function quoteName(text: string): string {
  return `"${text.toLowerCase().replaceAll('"', '""')}"`;
}

function savepoint(name: string): string {
  return `"tds ${name.replaceAll('"', '""')}"`;
}

/** The rows of one statement on their way to the client. */
class Rows {
  /** Those that came before their columns were known. */
  #early: (readonly Value[])[] = [];
  #columns: Column[] | null = null;
  #unknown: number[] | null = null;
  #given = 0;
  #last: readonly Value[] | null = null;

  constructor(
    private readonly session: Session,
    private readonly translated: Translated,
    private readonly limit: number,
    private readonly formatOnly: boolean,
  ) {}

  get sql(): string {
    return this.formatOnly && this.translated.columns !== null
      ? `SELECT * FROM (${this.translated.sql}) AS format LIMIT 0`
      : this.translated.sql;
  }

  /** How many rows went to the client; null for a statement that gives none. */
  get given(): number | null {
    return this.translated.columns === null ? null : this.#given;
  }

  /** SELECT @a = ...: the values of the last row. */
  get assigned(): readonly Value[] | null {
    return this.translated.assigns === null ? null : this.#last;
  }

  row(row: readonly Value[], fields: readonly Field[]): Promise<void> | undefined {
    if (this.translated.assigns !== null) {
      this.#last = row;
      return undefined;
    }
    if (this.translated.columns === null) return undefined;
    this.#unknown ??= this.session.unknownTables(fields);
    if (this.#unknown.length > 0) {
      this.#early.push(row);
      return undefined;
    }
    this.#describe(fields);
    return this.#give(row);
  }

  #describe(fields: readonly Field[]): void {
    if (this.#columns !== null) return;
    const outer = /\b(LEFT|RIGHT|FULL|UNION)\b/i.test(this.translated.sql);
    this.#columns = this.session.columnsFor(fields, this.translated.columns, outer);
    this.session.reply.metadata(this.#columns);
  }

  #give(row: readonly Value[]): Promise<void> | undefined {
    if (this.limit > 0 && this.#given >= this.limit) return undefined;
    this.#given++;
    this.session.reply.row(row);
    return this.session.reply.stream.slow ? this.session.reply.stream.drained() : undefined;
  }

  async end(fields: readonly Field[]): Promise<void> {
    if (this.translated.assigns !== null || this.translated.columns === null) return;
    if (this.#columns === null) {
      await this.session.learnTables(this.#unknown ?? this.session.unknownTables(fields));
      this.#describe(fields);
    }
    for (const row of this.#early) await this.#give(row);
    this.#early = [];
  }
}
