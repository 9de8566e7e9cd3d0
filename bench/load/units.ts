import { queryFrame } from './frames.js';
import { LoadSession, type LoginOptions, openMany } from './session.js';

/** Clients in the middle of a transaction, for the failover scenario. */
export interface UnitsOptions extends LoginOptions {
  readonly clients: number;
  /** Statements of each open transaction, after BEGIN. */
  readonly statements: number;
  /** After this time a client that got no answer counts as one without. */
  readonly timeoutMs: number;
  /**
   * gateway: the sessions are expected to go on. reconnect: the clients connect to the new primary as soon as they
   * are told where it is, and run their transaction again by themselves. own spares: the same over sessions that were opened on `standby`
   * beforehand, the whole transaction as one text.
   */
  readonly manner: 'gateway' | 'reconnect' | 'own spares';
  /** Where `own spares` are opened. */
  readonly standby?: { readonly host: string; readonly port: number };
}

/** What became of one client's next statement. */
export interface UnitOutcome {
  /** When the answer came, on the machine's monotonic clock in milliseconds; undefined when none came. */
  readonly answeredAt: number | undefined;
  /** Why it was not the right answer, or why the commit after it failed. */
  readonly error: string | undefined;
}

/** Milliseconds on a clock that all processes of the machine share. */
export function sharedNow(): number {
  return Number(process.hrtime.bigint()) / 1e6;
}

/** The tables of the scenario: rows of their own for each client. */
export const UNIT_TABLES: readonly string[] = [
  'CREATE TABLE outlive_bench_rows (id int PRIMARY KEY, n int NOT NULL, note text)',
  'CREATE TABLE outlive_bench_log (id int NOT NULL, step int NOT NULL)',
];

/** The statements of one client's transaction before the failover, and the value of its counter after them. */
export function unitStatements(id: number, count: number): { statements: string[]; counter: number } {
  const statements = [`INSERT INTO outlive_bench_rows (id, n, note) VALUES (${id}, 1, 'made by client ${id}')`];
  let counter = 1;
  for (let step = 1; step < count; step++) {
    const kind = step % 4;
    if (kind === 2) statements.push(`SELECT n, note FROM outlive_bench_rows WHERE id = ${id}`);
    else if (kind === 3) statements.push(`INSERT INTO outlive_bench_log (id, step) VALUES (${id}, ${step})`);
    else {
      statements.push(`UPDATE outlive_bench_rows SET n = n + 1 WHERE id = ${id}`);
      counter++;
    }
  }
  return { statements, counter };
}

/** The statement that a client sends when its server dies. */
const nextStatement = (id: number) => `UPDATE outlive_bench_rows SET n = n + 1 WHERE id = ${id} RETURNING n`;

/** The clients of one failover. */
export class Units {
  readonly #options: UnitsOptions;
  readonly #next: readonly Buffer[];
  readonly #expected: string;
  #sessions: LoadSession[] = [];
  #spares: LoadSession[] = [];
  #outcomes: Promise<UnitOutcome>[] = [];
  #tellAddress: (address: { host: string; port: number }) => void = () => {};
  readonly #address: Promise<{ host: string; port: number }>;

  constructor(options: UnitsOptions) {
    this.#options = options;
    this.#next = Array.from({ length: options.clients }, (_, id) => queryFrame(nextStatement(id)));
    this.#expected = String(unitStatements(0, options.statements).counter + 1);
    this.#address = new Promise((resolve) => {
      this.#tellAddress = resolve;
    });
  }

  /** Logs everybody in and opens everybody's transaction. */
  async open(): Promise<void> {
    const { clients, standby } = this.#options;
    if (standby) this.#spares = await openMany(clients, () => LoadSession.open({ ...this.#options, ...standby }));
    this.#sessions = await openMany(clients, async (id) => {
      const session = await LoadSession.open(this.#options);
      await this.#runUnit(session, id);
      return session;
    });
  }

  async #runUnit(session: LoadSession, id: number): Promise<void> {
    const { statements } = unitStatements(id, this.#options.statements);
    for (const sql of ['BEGIN', ...statements]) {
      const { refusal } = await session.run(queryFrame(sql));
      if (refusal) throw new Error(`${refusal.code} ${refusal.message}`);
    }
  }

  /**
   * Lets every other client send its next statement.
   * @param part 0 or 1: the even or the odd ones
   */
  send(part: 0 | 1): void {
    this.#sessions.forEach((session, id) => {
      if (id % 2 === part) this.#outcomes[id] = this.#outcome(session, id);
    });
  }

  /** Tells clients that connect again where the new primary is. */
  promoted(address: { host: string; port: number }): void {
    this.#tellAddress(address);
  }

  /** Waits for all answers; then commits, so that it can be seen whether everything is there. */
  async finish(): Promise<UnitOutcome[]> {
    const outcomes = await Promise.all(this.#outcomes);
    const commit = queryFrame('COMMIT');
    const finished = await Promise.all(
      outcomes.map(async (outcome, id): Promise<UnitOutcome> => {
        if (outcome.error !== undefined) return outcome;
        try {
          const { refusal } = await this.#timed(this.#sessions[id].run(commit));
          return refusal ? { ...outcome, error: `at COMMIT: ${refusal.code} ${refusal.message}` } : outcome;
        } catch (error) {
          return { ...outcome, error: `at COMMIT: ${(error as Error).message}` };
        }
      }),
    );
    for (const session of this.#sessions) session.end();
    return finished;
  }

  async #outcome(session: LoadSession, id: number): Promise<UnitOutcome> {
    try {
      const sent = session.run(this.#next[id]);
      const { manner } = this.#options;
      const answer = await this.#timed(manner === 'gateway' ? sent : sent.catch(() => this.#again(id)));
      const answeredAt = sharedNow();
      if (answer.refusal) return { answeredAt, error: `${answer.refusal.code} ${answer.refusal.message}` };
      if (answer.value === this.#expected) return { answeredAt, error: undefined };
      return { answeredAt, error: `wrong answer: ${answer.value} in place of ${this.#expected}` };
    } catch (error) {
      return { answeredAt: undefined, error: (error as Error).message };
    }
  }

  /** What an application does for itself: a new connection, the whole transaction once more, and the statement. */
  async #again(id: number) {
    const address = await this.#address;
    const spare = this.#spares[id];
    if (spare) {
      this.#sessions[id] = spare;
      const { statements } = unitStatements(id, this.#options.statements);
      return await spare.run(queryFrame(['BEGIN', ...statements, nextStatement(id)].join(';')));
    }
    const session = await LoadSession.open({ ...this.#options, ...address });
    this.#sessions[id] = session;
    await this.#runUnit(session, id);
    return await session.run(this.#next[id]);
  }

  #timed<T>(promise: Promise<T>): Promise<T> {
    let timer: NodeJS.Timeout | undefined;
    const { timeoutMs } = this.#options;
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(() => reject(new Error(`no answer within ${timeoutMs} ms`)), timeoutMs);
    });
    return Promise.race([promise, late]).finally(() => clearTimeout(timer));
  }
}

/**
 * Asks a standby again and again whether it is one still, and answers with the moment at which it was none any more:
 * from then on it takes writes. The first answer is waited for before `ready` is called.
 */
export async function watchPromotion(login: LoginOptions, ready: () => void): Promise<number> {
  const session = await LoadSession.open(login);
  const question = queryFrame('SELECT pg_is_in_recovery()');
  try {
    for (let first = true; ; first = false) {
      const { value, refusal } = await session.run(question);
      const at = sharedNow();
      if (refusal) throw new Error(`${refusal.code} ${refusal.message}`);
      if (value === 'f') return at;
      if (first) ready();
      // Asking without a pause would take a good part of one processor from those who are measured.
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
  } finally {
    session.end();
  }
}
