import { randomUUID } from 'node:crypto';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import type { Connection, Request } from 'tedious';
import { CodedError } from '../../../contract/index.js';
import type { WorkloadOptions } from '../workload.js';
import type { Driver, ErrorMeaning, Line, Row, Statement, Values } from './driver.js';

type Tedious = typeof import('tedious');

/** Loads the `tedious` package, which a project has only if it wants to. Rejects with OUTLIVE_DEMO_PACKAGES when it is not there. */
export async function loadTedious(): Promise<Tedious> {
  for (const from of [import.meta.url, join(process.cwd(), 'package.json')]) {
    let path: string;
    try {
      path = createRequire(from).resolve('tedious');
    } catch {
      // Not seen from there.
      continue;
    }
    const loaded = (await import(pathToFileURL(path).href)) as { default: Tedious };
    return loaded.default;
  }
  const message =
    'the demo for SQL Server needs a package that Outlive itself does not; run: npm install --save-dev tedious';
  throw new CodedError('OUTLIVE_DEMO_PACKAGES', 'config', message);
}

/** Texts with parameters, in the order of their values. */
const SQL: Readonly<Partial<Record<Statement, string>>> = {
  save: 'SAVE TRANSACTION here',
  back: 'ROLLBACK TRANSACTION here',
  // A transaction that could not go on is over when its client hears of it.
  rollback: 'IF @@TRANCOUNT > 0 ROLLBACK TRANSACTION',
  fail: 'SELECT 1 / 0 AS never',
  own: 'SELECT balance FROM accounts WHERE id = @v0',
  lock: 'SELECT balance FROM accounts WITH (UPDLOCK) WHERE id = @v0',
  history: 'SELECT COUNT(*) AS entries FROM ledger WHERE client = @v0',
  add: 'UPDATE accounts SET balance = balance + @v0 WHERE id = @v1',
  recall: 'SELECT reference, at, token FROM ledger WHERE id = @v0',
  enter:
    'INSERT INTO ledger (reference, client, source, target, amount, id, at, token) OUTPUT inserted.id, inserted.at, inserted.token ' +
    'VALUES (@v0, @v1, @v2, @v3, @v4, @v5, @v6, @v7)',
  leg: 'INSERT INTO legs (entry, account, amount, id) OUTPUT inserted.id VALUES (@v0, @v1, @v2, @v3)',
  legs:
    'INSERT INTO legs (entry, account, amount, id) OUTPUT inserted.id ' +
    'VALUES (@v0, @v1, @v2, @v5), (@v0, @v3, @v4, @v6)',
};

type TypeName = 'BigInt' | 'DateTime2' | 'NVarChar' | 'UniqueIdentifier';

/** Types of those parameters that are not of type Int. */
const TYPES: Readonly<Partial<Record<Statement, Readonly<Record<number, TypeName>>>>> = {
  recall: { 0: 'BigInt' },
  enter: { 0: 'NVarChar', 5: 'BigInt', 6: 'DateTime2', 7: 'UniqueIdentifier' },
  leg: { 0: 'BigInt', 3: 'BigInt' },
  legs: { 0: 'BigInt', 5: 'BigInt', 6: 'BigInt' },
};

/** Those without parameters go as batches. */
const BATCHES: ReadonlySet<Statement> = new Set(['save', 'back', 'rollback', 'fail']);

/**
 * What the clients make up, where a server of PostgreSQL's does: values that SQL Server makes up come out differently when they are
 * repeated, see the README.
 */
function withIds(statement: Statement, values: Values): Values {
  if (statement === 'enter') {
    const [reference, client] = values;
    const serial = Number(String(reference).split('-')[1]);
    return [...values, String(Number(client) * 1_000_000 + serial), new Date().toISOString(), randomUUID()];
  }
  const id = (number: number) => String(BigInt(values[0] ?? 0) * 10n + BigInt(number));
  if (statement === 'leg') return [...values, id(0)];
  if (statement === 'legs') return [...values, id(1), id(2)];
  return values;
}

/** A value as text, as the entries of the ledger are compared. */
export function asText(value: unknown): string | null {
  if (value === null || value === undefined) return null;
  return value instanceof Date ? value.toISOString() : String(value);
}

/** Where clients connect to, and as whom. */
export interface TediousPlace {
  /** Default 127.0.0.1. */
  readonly host?: string;
  readonly port: number;
  readonly user: string;
  readonly password: string;
  readonly database: string;
}

/** A connection on which texts are run one after the other. */
export class TediousLine implements Line {
  static #made = 0;
  /** Half of the clients begin and end transactions in text, the others by requests of the protocol for that. */
  readonly #textual = TediousLine.#made++ % 2 === 0;

  readonly connection: Connection;

  constructor(
    readonly tedious: Tedious,
    { host = '127.0.0.1', port, user, password, database }: TediousPlace,
  ) {
    this.connection = new tedious.Connection({
      server: host,
      authentication: { type: 'default', options: { userName: user, password } },
      options: { port, database, encrypt: false, requestTimeout: 0, connectTimeout: 30_000 },
    });
    // A connection that breaks fails the request in flight; without one, the next request fails.
    this.connection.on('error', () => {});
  }

  /** Rejects with tedious's error when it cannot log in. */
  async connect(): Promise<this> {
    await new Promise<void>((done, fail) => this.connection.connect((error) => (error ? fail(error) : done())));
    return this;
  }

  async run(statement: Statement, values: Values): Promise<Row[]> {
    const { connection } = this;
    const done = (act: (settle: (error?: Error | null) => void) => void) =>
      new Promise<Row[]>((settle, fail) => act((error) => (error ? fail(first(error)) : settle([]))));
    if (statement === 'begin' && !this.#textual) return done((settle) => connection.beginTransaction(settle as never));
    if (statement === 'commit' && !this.#textual)
      return done((settle) => connection.commitTransaction(settle as never));
    if (statement === 'begin') return this.text('BEGIN TRANSACTION');
    if (statement === 'commit') return this.text('COMMIT TRANSACTION');
    if (statement === 'move')
      return this.text(`UPDATE accounts SET balance = balance + ${values[0]} WHERE id = ${values[1]}`);
    const text = SQL[statement];
    if (text === undefined) throw new Error(`there is no ${statement} in this language`);
    if (BATCHES.has(statement)) return this.text(text);
    const rows = await this.request(text, (request) => {
      withIds(statement, values).forEach((value, i) => {
        const type = TYPES[statement]?.[i] ?? 'Int';
        const given = type === 'DateTime2' ? new Date(value!) : value;
        request.addParameter(`v${i}`, this.tedious.TYPES[type], given, type === 'DateTime2' ? { scale: 3 } : {});
      });
      connection.execSql(request);
    });
    return rows.map((row) => Object.fromEntries(Object.entries(row).map(([name, value]) => [name, asText(value)])));
  }

  /** Runs a batch. The rows are as tedious gives them. */
  async text<R = Row>(text: string): Promise<R[]> {
    return (await this.request(text, (request) => this.connection.execSqlBatch(request))) as R[];
  }

  /** Makes a request, which `how` sends. The rows are as tedious gives them. */
  protected request(text: string, how: (request: Request) => void): Promise<Record<string, unknown>[]> {
    return new Promise((done, fail) => {
      const rows: Record<string, unknown>[] = [];
      const request = new this.tedious.Request(text, (error) => (error ? fail(first(error)) : done(rows)));
      request.on('row', (columns: { metadata: { colName: string }; value: unknown }[]) =>
        rows.push(Object.fromEntries(columns.map(({ metadata, value }) => [metadata.colName, value]))),
      );
      how(request);
    });
  }

  async end(): Promise<void> {
    this.connection.close();
  }

  destroy(): void {
    this.connection.close();
  }
}

/** Several errors of one answer come as one of tedious's own; what happened first tells. */
function first(error: Error): Error {
  return error instanceof AggregateError ? error.errors[0] : error;
}

/** The outcome of a commit is unknown, as the gateway says it. */
const UNKNOWN = 50_087;
const DIVISION = 8134;

/** What an error of the `tedious` package says. */
export function tediousMeaning(error: unknown): ErrorMeaning {
  const { number } = error as { number?: number };
  const code = number === undefined ? '' : String(number);
  return { code, alive: code !== '', unknown: number === UNKNOWN, division: number === DIVISION };
}

/** What clients with the `tedious` package do: it has no words for the rest. */
export const TEDIOUS_KINDS: WorkloadOptions['kinds'] = { transfer: 6, note: 1, browse: 1, savepoint: 1, abandon: 1 };

/** Clients with the `tedious` package. */
export function tediousDriver(tedious: Tedious, place: TediousPlace): Driver {
  return { name: 'tedious', connect: () => new TediousLine(tedious, place).connect(), meaning: tediousMeaning };
}
