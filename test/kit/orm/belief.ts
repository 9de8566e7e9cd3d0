import { setTimeout as sleep } from 'node:timers/promises';
import { now } from '../../../core/host/demo/workload.js';

/** A row as the application knows it: names of columns and what the ORM gave for them. */
export type Row = Readonly<Record<string, unknown>>;

/** A table of an application, and how it is read directly, to be compared with what the application believes. */
export interface Table {
  readonly name: string;
  /** The column that holds the primary key. */
  readonly key: string;
  /** Reads the whole table; names the columns as the application does. */
  readonly select: string;
}

/** One transaction of a worker's. Returns, or throws, when it has ended. */
export type Operation = (draft: Draft, worker: Worker) => Promise<void>;

/** An application: one ORM with a schema of its own, and what it does there. */
export interface App {
  readonly name: string;
  readonly tables: readonly Table[];
  /** What workers do, with relative frequencies. */
  readonly operations: Readonly<Record<string, readonly [weight: number, operation: Operation]>>;
  /** Makes the schema and its tables. */
  setup(): Promise<void>;
  /** Disconnects. */
  close(): Promise<void>;
}

/** What an application is made with. */
export interface AppContext {
  readonly port: number;
  /** Connections that it may have. */
  readonly connections: number;
  /** To be told of errors of connections that nobody is waiting on. */
  readonly lost: (error: unknown) => void;
}

/** Something that a client must not see. */
export interface Failure {
  readonly operation: string;
  readonly worker: number;
  /** SQLSTATE; empty when it is none of a server's. */
  readonly code: string;
  readonly message: string;
  readonly at: number;
}

/** The same value in the same words, whichever ORM or driver brought it. */
function canonical(value: unknown): string {
  if (value === null || value === undefined) return 'null';
  if (value instanceof Date) return value.toISOString();
  return typeof value === 'object' ? JSON.stringify(value) : String(value);
}

/** Columns in which two rows differ, with both values. */
export function differences(believed: Row, seen: Row): string[] {
  const names = new Set([...Object.keys(believed), ...Object.keys(seen)]);
  return [...names]
    .filter((name) => canonical(believed[name]) !== canonical(seen[name]))
    .map((name) => `${name}: believed ${canonical(believed[name])}, stored ${canonical(seen[name])}`);
}

/** What one transaction does to a worker's rows, for as long as it is not committed. */
export class Draft {
  readonly changes: { table: string; id: string; row: Row | null }[] = [];
  /** Rows that the application was shown and then rolled back itself. */
  readonly undone: { table: string; id: string }[] = [];
  readonly #random: () => number;
  readonly #think: number;

  constructor(random: () => number, think: number) {
    this.#random = random;
    this.#think = think;
  }

  /** The row is stored now as the server told it. */
  put(table: Table, row: Row): void {
    this.changes.push({ table: table.name, id: canonical(row[table.key]), row: { ...row } });
  }

  /** The row is stored no longer. */
  remove(table: Table, row: Row): void {
    this.changes.push({ table: table.name, id: canonical(row[table.key]), row: null });
  }

  /** The application rolls back to here with {@link undo}. */
  mark(): number {
    return this.changes.length;
  }

  /** What was put since the mark is rolled back. */
  undo(mark = 0): void {
    for (const { table, id, row } of this.changes.splice(mark)) if (row !== null) this.undone.push({ table, id });
  }

  /** The time that the application's own work inside a transaction takes. */
  async think(): Promise<void> {
    await sleep(this.#random() * this.#think);
  }
}

/** One of the tasks that an application does at the same time. It changes only rows of its own. */
export class Worker {
  readonly number: number;
  readonly random: () => number;
  readonly #rows = new Map<string, Map<string, Row>>();
  readonly undone = new Set<string>();
  /** Reads that did not show what was acknowledged. */
  readonly wrongReads: string[] = [];
  /** When an operation was last acknowledged. */
  acknowledgedAt = 0;
  #serial = 0;

  constructor(number: number, random: () => number) {
    this.number = number;
    this.random = random;
  }

  /** A new name. */
  name(what: string): string {
    return `${what} ${this.number}-${++this.#serial}`;
  }

  /** A whole number from 0 to below `limit`. */
  below(limit: number): number {
    return Math.floor(this.random() * limit);
  }

  /** Own rows of a table, all or those that a condition holds for, as they are stored. */
  rows(table: Table, where: (row: Row) => boolean = () => true): Row[] {
    return [...(this.#rows.get(table.name)?.values() ?? [])].filter(where);
  }

  /** One of the latest of these rows: the graph that is worked on stays small while the table grows. */
  recent(table: Table, where?: (row: Row) => boolean): Row | undefined {
    const rows = this.rows(table, where).slice(-12);
    return rows[this.below(rows.length)];
  }

  /** A read showed these rows of a table in place of those that are believed to be stored. */
  compare(table: Table, where: (row: Row) => boolean, seen: readonly Row[]): void {
    const believed = new Map(this.rows(table, where).map((row) => [canonical(row[table.key]), row]));
    for (const row of seen) {
      const id = canonical(row[table.key]);
      const known = believed.get(id);
      const wrong = known === undefined ? ['is not believed to be there'] : differences(known, row);
      believed.delete(id);
      if (wrong.length > 0) this.wrongReads.push(`worker ${this.number} read ${table.name} ${id}: ${wrong.join('; ')}`);
    }
    for (const id of believed.keys()) this.wrongReads.push(`worker ${this.number} missed ${table.name} ${id}`);
  }

  /** A transaction was acknowledged. */
  accept({ changes, undone }: Draft): void {
    for (const { table, id, row } of changes) {
      let rows = this.#rows.get(table);
      if (rows === undefined) this.#rows.set(table, (rows = new Map()));
      if (row === null) rows.delete(id);
      else rows.set(id, row);
    }
    for (const { table, id } of undone) this.undone.add(`${table} ${id}`);
    this.acknowledgedAt = now();
  }
}

/** The innermost error that carries a server's code, or the innermost one: each ORM wraps the driver's in its own way. */
function explain(error: unknown): { code: string; message: string } {
  const chain: { code?: unknown; message?: unknown; detail?: unknown; name?: unknown }[] = [];
  for (let at = error; typeof at === 'object' && at !== null && !chain.includes(at); ) {
    chain.push(at);
    const { original, driverError, cause } = at as { original?: unknown; driverError?: unknown; cause?: unknown };
    at = original ?? driverError ?? cause;
  }
  if (chain.length === 0) return { code: '', message: String(error) };
  const best = chain.findLast(({ code }) => typeof code === 'string') ?? chain[chain.length - 1];
  const detail = best.detail === undefined ? '' : ` [${best.detail}]`;
  return { code: String(best.code ?? ''), message: `${best.name ?? 'error'}: ${best.message}${detail}` };
}

/** An application at work: its workers, until they are stopped. */
export class AppWorkload {
  readonly app: App;
  readonly workers: readonly Worker[];
  readonly failures: Failure[] = [];
  /** Acknowledged operations, by name. */
  readonly done = new Map<string, number>();
  readonly #think: { readonly inside: number; readonly between: number };
  readonly #stop = new AbortController();
  #rest: Promise<void> | null = null;
  #running: Promise<void>[] = [];

  constructor(app: App, workers: readonly Worker[], think: { inside: number; between: number }) {
    this.app = app;
    this.workers = workers;
    this.#think = think;
  }

  /** Acknowledged operations of all kinds. */
  get total(): number {
    return [...this.done.values()].reduce((sum, count) => sum + count, 0);
  }

  start(): void {
    this.#running = this.workers.map((worker) => this.#run(worker));
    for (const each of this.#running) each.catch(() => {});
  }

  /** Lets no worker begin a transaction before this is settled. */
  rest(until: Promise<unknown>): void {
    const over = () => {
      if (this.#rest === rest) this.#rest = null;
    };
    const rest = until.then(over, over);
    this.#rest = rest;
  }

  /** Lets all workers finish what they are at. */
  async stop(): Promise<void> {
    this.#stop.abort();
    await Promise.all(this.#running);
  }

  /** An error outside of every operation: that of an idle connection. */
  lost(error: unknown): void {
    this.failures.push({ operation: 'idle connection', worker: -1, ...explain(error), at: now() });
  }

  async #run(worker: Worker): Promise<void> {
    const kinds = Object.entries(this.app.operations);
    const total = kinds.reduce((sum, [, [weight]]) => sum + weight, 0);
    while (!this.#stop.signal.aborted) {
      let dice = worker.random() * total;
      const [name, [, operation]] = kinds.find(([, [weight]]) => (dice -= weight) < 0) ?? kinds[0];
      const draft = new Draft(worker.random, this.#think.inside);
      try {
        await operation(draft, worker);
        worker.accept(draft);
        this.done.set(name, (this.done.get(name) ?? 0) + 1);
      } catch (error) {
        this.failures.push({ operation: name, worker: worker.number, ...explain(error), at: now() });
      }
      await sleep(worker.random() * this.#think.between);
      if (this.#rest !== null) await this.#rest;
    }
  }

  /**
   * Compares what the workers believe with what is stored.
   * @param query asks the server itself
   * @returns one line for each difference
   */
  async audit(query: (sql: string) => Promise<{ rows: readonly Row[] }>): Promise<string[]> {
    const found: string[] = [];
    for (const table of this.app.tables) {
      const tell = (id: string, what: string) => found.push(`${this.app.name} ${table.name} ${id}: ${what}`);
      const believed = new Map<string, Row>();
      for (const worker of this.workers) {
        for (const row of worker.rows(table)) {
          const id = canonical(row[table.key]);
          if (believed.has(id)) tell(id, 'two workers were told that it is theirs');
          believed.set(id, row);
        }
      }
      const { rows } = await query(table.select);
      for (const row of rows) {
        const id = canonical(row[table.key]);
        const known = believed.get(id);
        if (known !== undefined) {
          const wrong = differences(known, row);
          if (wrong.length > 0) tell(id, wrong.join('; '));
          believed.delete(id);
        } else if (this.workers.some(({ undone }) => undone.has(`${table.name} ${id}`))) {
          tell(id, 'was rolled back and is stored');
        } else {
          tell(id, 'is stored (a second time), and nobody was told so');
        }
      }
      for (const id of believed.keys()) tell(id, 'was acknowledged and is not stored');
    }
    return found;
  }
}
