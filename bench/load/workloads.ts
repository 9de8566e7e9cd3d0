import { executeFrames, prepareFrames, queryFrame } from './frames.js';

/** What the relay scenario can run. */
export const WORKLOADS = ['select-prepared', 'select-simple', 'tpcb'] as const;

export type WorkloadName = (typeof WORKLOADS)[number];

/** How statements travel: parsed at each run, or prepared once in each session. */
export type QueryMode = 'simple' | 'prepared';

/** A workload, for both load generators. */
export interface Workload {
  readonly name: WorkloadName;
  readonly mode: QueryMode;
  /** pgbench's name of the built-in script that does the same. */
  readonly builtin: 'select-only' | 'tpcb-like';
  /** Whether it changes the tables, so that they want tidying before each run. */
  readonly writes: boolean;
  /** The statements of one transaction, with :names for random values. */
  readonly statements: readonly string[];
}

const SELECT = ['SELECT abalance FROM pgbench_accounts WHERE aid = :aid'];

const TPCB = [
  'BEGIN',
  'UPDATE pgbench_accounts SET abalance = abalance + :delta WHERE aid = :aid',
  'SELECT abalance FROM pgbench_accounts WHERE aid = :aid',
  'UPDATE pgbench_tellers SET tbalance = tbalance + :delta WHERE tid = :tid',
  'UPDATE pgbench_branches SET bbalance = bbalance + :delta WHERE bid = :bid',
  'INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (:tid, :bid, :aid, :delta, CURRENT_TIMESTAMP)',
  'END',
];

const TABLE: Readonly<Record<WorkloadName, Workload>> = {
  'select-prepared': {
    name: 'select-prepared',
    mode: 'prepared',
    builtin: 'select-only',
    writes: false,
    statements: SELECT,
  },
  'select-simple': { name: 'select-simple', mode: 'simple', builtin: 'select-only', writes: false, statements: SELECT },
  tpcb: { name: 'tpcb', mode: 'prepared', builtin: 'tpcb-like', writes: true, statements: TPCB },
};

/** The workload of this name. */
export function workloadOf(name: WorkloadName): Workload {
  return TABLE[name];
}

/** Digits of a number that is written into an encoded request; the server reads leading zeros as nothing. */
const WIDTH = 9;
const VARIABLES = ['aid', 'bid', 'tid', 'delta'] as const;
type Variable = (typeof VARIABLES)[number];
const ACCOUNTS_PER_BRANCH = 100_000;
const TELLERS_PER_BRANCH = 10;

interface Step {
  readonly bytes: Buffer;
  /** Where a value goes, and which. */
  readonly slots: readonly { readonly at: number; readonly variable: Variable }[];
}

/** Stands where a value will; as wide as one, and unlike anything in a statement. */
function placeholder(variable: Variable): string {
  return `@${variable}`.padEnd(WIDTH + 1, '@');
}

function encode(statement: string, mode: QueryMode, name: string): Step {
  let bytes: Buffer;
  const used: Variable[] = [];
  if (mode === 'simple') {
    bytes = queryFrame(
      // The blank keeps a minus sign from meeting an operator.
      statement.replace(/:(\w+)/g, (_, variable: Variable) => ` ${placeholder(variable)}`),
    );
  } else {
    numbered(statement, used);
    bytes = executeFrames(name, used.map(placeholder));
  }
  const slots: { at: number; variable: Variable }[] = [];
  for (const variable of VARIABLES) {
    const mark = placeholder(variable);
    for (let at = bytes.indexOf(mark); at >= 0; at = bytes.indexOf(mark, at + 1)) slots.push({ at, variable });
  }
  return { bytes, slots };
}

/** The statement with $1, $2, ... in place of its names; `used` gets the names in that order. */
function numbered(statement: string, used: Variable[]): string {
  return statement.replace(/:(\w+)/g, (_, variable: Variable) => {
    if (!used.includes(variable)) used.push(variable);
    return `$${used.indexOf(variable) + 1}`;
  });
}

/**
 * The requests of one session, encoded once. Before each transaction the random values are written over the old ones
 * in place, so that the loop around it allocates nothing.
 */
export class Script {
  /** What to send once before the first transaction, each up to its own ready point. */
  readonly setup: readonly Buffer[];
  readonly #steps: readonly Step[];
  readonly #values: Record<Variable, number> = { aid: 0, bid: 0, tid: 0, delta: 0 };
  readonly #scale: number;

  constructor(workload: Workload, scale: number) {
    const { mode, statements } = workload;
    this.#scale = scale;
    this.#steps = statements.map((statement, index) => encode(statement, mode, `s${index}`));
    this.setup =
      mode === 'prepared'
        ? statements.map((statement, index) => prepareFrames(`s${index}`, numbered(statement, [])))
        : [];
  }

  /** Number of requests in a transaction. */
  get length(): number {
    return this.#steps.length;
  }

  /** Draws the values of the next transaction. */
  draw(random: () => number = Math.random): void {
    const values = this.#values;
    values.aid = 1 + Math.floor(random() * this.#scale * ACCOUNTS_PER_BRANCH);
    values.bid = 1 + Math.floor(random() * this.#scale);
    values.tid = 1 + Math.floor(random() * this.#scale * TELLERS_PER_BRANCH);
    values.delta = Math.floor(random() * 10_001) - 5000;
  }

  /** The bytes of one request with the values drawn last. They change at the next call for the same request. */
  request(index: number): Buffer {
    const { bytes, slots } = this.#steps[index];
    for (let slot = 0; slot < slots.length; slot++) {
      const { at, variable } = slots[slot];
      let value = this.#values[variable];
      bytes[at] = value < 0 ? 0x2d : 0x30;
      if (value < 0) value = -value;
      for (let digit = at + WIDTH; digit > at; digit--) {
        const rest = Math.floor(value / 10);
        bytes[digit] = 0x30 + (value - rest * 10);
        value = rest;
      }
    }
    return bytes;
  }
}

/**
 * The statements that make and fill the well-known four tables.
 * @param scale 100,000 accounts, 10 tellers and one branch each
 */
export function tableStatements(scale: number): string[] {
  return [
    'DROP TABLE IF EXISTS pgbench_history, pgbench_tellers, pgbench_accounts, pgbench_branches',
    'CREATE TABLE pgbench_branches (bid int NOT NULL, bbalance int, filler char(88))',
    'CREATE TABLE pgbench_tellers (tid int NOT NULL, bid int, tbalance int, filler char(84))',
    'CREATE TABLE pgbench_accounts (aid int NOT NULL, bid int, abalance int, filler char(84))',
    'CREATE TABLE pgbench_history (tid int, bid int, aid int, delta int, mtime timestamp, filler char(22))',
    `INSERT INTO pgbench_branches (bid, bbalance) SELECT n, 0 FROM generate_series(1, ${scale}) AS n`,
    `INSERT INTO pgbench_tellers (tid, bid, tbalance)
       SELECT n, (n - 1) / ${TELLERS_PER_BRANCH} + 1, 0 FROM generate_series(1, ${scale * TELLERS_PER_BRANCH}) AS n`,
    `INSERT INTO pgbench_accounts (aid, bid, abalance, filler)
       SELECT n, (n - 1) / ${ACCOUNTS_PER_BRANCH} + 1, 0, '' FROM generate_series(1, ${scale * ACCOUNTS_PER_BRANCH}) AS n`,
    'ALTER TABLE pgbench_branches ADD PRIMARY KEY (bid)',
    'ALTER TABLE pgbench_tellers ADD PRIMARY KEY (tid)',
    'ALTER TABLE pgbench_accounts ADD PRIMARY KEY (aid)',
    'VACUUM ANALYZE pgbench_branches',
    'VACUUM ANALYZE pgbench_tellers',
    'VACUUM ANALYZE pgbench_accounts',
    'VACUUM ANALYZE pgbench_history',
  ];
}

/**
 * What makes the tables equal again before each run that writes: dead rows of the small tables gone, the history
 * empty, and no checkpoint due in the middle of one run and not of the next.
 */
export const TIDY_STATEMENTS: readonly string[] = [
  'VACUUM pgbench_branches',
  'VACUUM pgbench_tellers',
  'TRUNCATE pgbench_history',
  'CHECKPOINT',
];
