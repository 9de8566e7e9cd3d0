import { setTimeout as sleep } from 'node:timers/promises';
import type { Driver, Line, Row, Statement, Values } from './drivers/driver.js';
import { type Answer, type Claim, type Entry, type Given, type Leg, sidesOf } from './ledger.js';

/** What clients do; each kind is one transaction. */
export type Kind =
  /** BEGIN, reads with and without lock, a ledger row, think, two updates, legs with the row's id, COMMIT. */
  | 'transfer'
  /** The same movement as one autocommit statement. */
  | 'autocommit'
  /** An autocommit INSERT of a ledger row that moves nothing. */
  | 'note'
  /** BEGIN, reads, think, the same reads, COMMIT; the own latest ledger row by its id among them. */
  | 'browse'
  /** A transfer that the client rolls back in the end. */
  | 'abandon'
  /** A transfer in which a statement fails inside a savepoint, after a leg that is undone with it. */
  | 'savepoint'
  /** A whole transfer, BEGIN to COMMIT, as one message with several statements; its legs ask the sequence for the row's id. */
  | 'batch';

/** How a workload is made. */
export interface WorkloadOptions {
  /** How clients speak, and where they connect to. */
  readonly driver: Driver;
  readonly clients: number;
  /** Relative frequencies of the kinds; a kind that is not named does not occur. */
  readonly kinds: Readonly<Partial<Record<Kind, number>>>;
  /** Numbers in [0, 1), for everything that is left to chance. */
  readonly random: () => number;
  /** Longest think time inside of a transaction and between two, in ms. */
  readonly think: { readonly inside: number; readonly between: number };
  /** A request that is not answered for this long counts as an error, in ms. */
  readonly patience: number;
}

/** Something that a client must not see in a failover. */
export interface ClientError {
  readonly client: number;
  /** The server's own code, such as an SQLSTATE; empty when the connection broke. */
  readonly code: string;
  readonly message: string;
  /** What the client was doing. */
  readonly during: string;
  /** The transaction's; null for one without. */
  readonly reference: string | null;
  readonly at: number;
}

/** A read that did not show what the client's own acknowledged transactions must have led to. */
export interface WrongRead {
  readonly client: number;
  readonly what: string;
  readonly expected: number | string;
  readonly seen: number | string;
}

/** What happened to clients around one failover. */
export interface Settled {
  /**
   * Milliseconds per client from the moment the new primary took writes (or the client's request, when that came later) to
   * the client's next answer.
   */
  readonly pauses: readonly number[];
  /** Clients without any answer since. */
  readonly silent: readonly number[];
}

/** Milliseconds since the epoch, on the clock that the embedded pair uses for its own times. */
export function now(): number {
  return performance.timeOrigin + performance.now();
}

/** Shared accounts: every client adds to them and takes from them without looking. Enough that few wait for each other. */
function sharedFor(clients: number): number {
  return Math.max(16, clients >> 1);
}

/** How many accounts a workload of so many clients needs: the shared ones, then one of each client's own. */
export function accountsFor(clients: number): number {
  return sharedFor(clients) + clients;
}

/** An entry on its way, with what the server has answered so far. */
interface Draft extends Entry {
  given: Given | null;
  legs: Leg[];
}

/**
 * Clients that move money, over an unmodified driver. Each has an account of its own, which it reads (locked and not) and
 * which nobody else touches, and exchanges money with shared accounts, which everybody updates and nobody reads. So what a
 * transaction has read cannot be changed by another one, and a failover gives no reason for a serialization failure: every
 * error that a client sees is one that the gateway should have spared it. A transaction locks one shared account, after
 * its own and after its think time, so there are no deadlocks and nobody waits for another's thinking.
 */
export class Workload {
  readonly #options: WorkloadOptions;
  readonly #clients: Teller[];
  readonly errors: ClientError[] = [];
  readonly wrongReads: WrongRead[] = [];
  readonly claims: Claim[] = [];
  /** Commits that clients were told of, those of transactions that only read among them. */
  transactions = 0;
  stopping = false;
  #watch: NodeJS.Timeout | undefined;
  #running: Promise<void>[] = [];

  constructor(options: WorkloadOptions) {
    this.#options = options;
    this.#clients = Array.from({ length: options.clients }, (_, number) => new Teller(this, options, number));
  }

  /** Connects all clients and lets them begin. */
  async start(): Promise<void> {
    // One after the other in a few rows: a storm of logins is not what is to be shown.
    const waiting = [...this.#clients];
    const row = async () => {
      for (let next = waiting.shift(); next !== undefined; next = waiting.shift()) await next.connect();
    };
    try {
      await Promise.all(Array.from({ length: 8 }, row));
    } catch (error) {
      for (const each of this.#clients) each.drop();
      throw error;
    }
    this.#watch = setInterval(() => {
      const limit = now() - this.#options.patience;
      for (const each of this.#clients) if (each.waitingSince !== null && each.waitingSince < limit) each.giveUp();
    }, 200);
    this.#running = this.#clients.map((each) => each.run());
    // A defect of this program shows up in stop(), not as an unhandled rejection in the middle of something else.
    for (const each of this.#running) each.catch(() => {});
  }

  /** Lets every client finish its transaction, then disconnects; the connections of those that take longer are broken. */
  async stop(timeoutMs: number): Promise<void> {
    this.stopping = true;
    const late = setTimeout(() => {
      for (const each of this.#clients) each.giveUp();
    }, timeoutMs);
    await Promise.all(this.#running);
    clearTimeout(late);
    clearInterval(this.#watch);
  }

  /** Clients that are inside of an explicit transaction and have got an answer there. */
  get open(): number {
    return this.#clients.filter((each) => each.open).length;
  }

  /** Clients whose commit is on its way: a COMMIT, or a statement that commits by itself. */
  get committing(): number {
    return this.#clients.filter((each) => each.committing).length;
  }

  /** Clients that wait for an answer. */
  get waiting(): number {
    return this.#clients.filter((each) => each.waitingSince !== null).length;
  }

  /** Begins to look at what a failover does to clients. Call before it; the result answers after it. */
  watchFailover(): (writableAt: number, timeoutMs: number, signal?: AbortSignal) => Promise<Settled> {
    for (const each of this.#clients) each.answers = [];
    return async (writableAt, timeoutMs, signal) => {
      const first = (each: Teller) => each.answers?.find(({ answered }) => answered > writableAt);
      const deadline = now() + timeoutMs;
      const waits = () => this.#clients.some((each) => first(each) === undefined);
      while (waits() && now() < deadline && !signal?.aborted) await sleep(2);
      const pauses: number[] = [];
      const silent: number[] = [];
      for (const each of this.#clients) {
        const answer = first(each);
        if (answer === undefined) silent.push(each.number);
        else pauses.push(answer.answered - Math.max(answer.sent, writableAt));
        each.answers = null;
      }
      return { pauses, silent };
    };
  }
}

/** The transaction cannot go on; what the client had to be told was told. */
class Broken extends Error {}

/** One client. */
class Teller {
  readonly number: number;
  readonly #workload: Workload;
  readonly #options: WorkloadOptions;
  readonly #account: number;
  #line: Line | null = null;
  #serial = 0;
  /** What the own account must show and how many ledger rows there must be; null while that is not known. */
  #balance: number | null = null;
  #entries: number | null = null;
  /** Ledger rows of the open transaction. */
  #written = 0;
  /** The latest acknowledged entry; null when it is not known whether the database has it. */
  #latest: Draft | null = null;
  open = false;
  committing = false;
  waitingSince: number | null = null;
  /** Requests since the failover that is being watched. */
  answers: { readonly sent: number; readonly answered: number }[] | null = null;

  constructor(workload: Workload, options: WorkloadOptions, number: number) {
    this.#workload = workload;
    this.#options = options;
    this.number = number;
    this.#account = sharedFor(options.clients) + number;
  }

  async connect(): Promise<void> {
    this.#line = await this.#options.driver.connect();
  }

  drop(): void {
    const line = this.#line;
    this.#line = null;
    line?.destroy();
  }

  /** The answer does not come: breaking the connection makes it an error. */
  giveUp(): void {
    this.waitingSince = null;
    this.drop();
  }

  async run(): Promise<void> {
    const kinds = Object.entries(this.#options.kinds) as [Kind, number][];
    const total = kinds.reduce((sum, [, weight]) => sum + weight, 0);
    const { random, think } = this.#options;
    while (!this.#workload.stopping) {
      let at = random() * total;
      const [kind] = kinds.find(([, weight]) => (at -= weight) < 0) ?? kinds[0];
      await this.#transact(kind);
      if (!this.#workload.stopping) await sleep(random() * think.between);
    }
    await this.#line?.end();
  }

  async #transact(kind: Kind): Promise<void> {
    const entry = kind === 'browse' ? null : this.#newEntry(kind);
    this.#written = 0;
    let answer: Answer = 'refused';
    try {
      if (this.#line === null) await this.#reconnect();
      answer = await this.#play(kind, entry);
    } catch (error) {
      if (!(error instanceof Broken)) throw error;
      // Whoever sent a commit and got no verdict does not know. An error that leaves the connection is a verdict.
      answer = this.committing ? 'doubtful' : 'refused';
    }
    this.open = false;
    this.committing = false;
    if (answer === 'acknowledged') this.#workload.transactions++;
    if (entry !== null) {
      this.#workload.claims.push({ ...entry, answer });
      if (answer === 'acknowledged') this.#expect(entry);
    }
    if (answer === 'doubtful') this.#forget();
  }

  async #reconnect(): Promise<void> {
    this.#forget();
    try {
      await this.connect();
    } catch (error) {
      this.#note(error, 'connect', null);
      await sleep(100);
      throw new Broken();
    }
  }

  #newEntry(kind: Kind): Draft {
    const { random, clients } = this.#options;
    const base = { reference: `${this.number}-${++this.#serial}`, client: this.number, given: null, legs: [] };
    if (kind === 'note') return { ...base, source: null, target: null, amount: 0 };
    const shared = Math.floor(random() * sharedFor(clients));
    const amount = 1 + Math.floor(random() * 20);
    const [source, target] = random() < 0.5 ? [this.#account, shared] : [shared, this.#account];
    return { ...base, source, target, amount };
  }

  /** The database's answer to everything so far is known to be this. */
  #expect(entry: Draft): void {
    this.#latest = entry;
    if (this.#entries !== null) this.#entries++;
    if (this.#balance === null) return;
    if (entry.source === this.#account) this.#balance -= entry.amount;
    if (entry.target === this.#account) this.#balance += entry.amount;
  }

  #forget(): void {
    this.#balance = null;
    this.#entries = null;
    this.#latest = null;
  }

  async #play(kind: Kind, entry: Draft | null): Promise<Answer> {
    switch (kind) {
      case 'note':
        return this.#commit('enter', rowOf(entry!), entry);
      case 'autocommit':
        return this.#commit('whole', rowOf(entry!), entry);
      case 'batch': {
        const { source, target, amount } = entry!;
        const incoming = target === this.#account;
        const accounts = [this.#account, incoming ? source : target, incoming ? amount : -amount];
        const legs = sidesOf(entry!).flatMap((side) => [side.account, side.amount]);
        return this.#commit('batch', [...rowOf(entry!), ...accounts, ...legs], entry);
      }
      case 'browse': {
        await this.#begin();
        await this.#look('own', null);
        await this.#recall(this.#latest);
        await this.#think();
        await this.#look('own', null);
        await this.#recall(this.#latest);
        return this.#commit('commit', [], null);
      }
      default:
        return this.#transfer(kind, entry!);
    }
  }

  async #transfer(kind: 'transfer' | 'abandon' | 'savepoint', entry: Draft): Promise<Answer> {
    const { random } = this.#options;
    const incoming = entry.target === this.#account;
    await this.#begin();
    await this.#look('lock', entry);
    this.#take(entry, await this.#ask('enter', rowOf(entry), entry));
    this.#written = 1;
    await this.#think();
    if (random() < 0.3) {
      await this.#look('own', entry);
      await this.#recall(entry);
    }
    await this.#ask('add', [incoming ? entry.amount : -entry.amount, this.#account], entry);
    if (kind === 'savepoint') {
      await this.#ask('save', [], entry);
      await this.#ask('leg', [entry.given?.id ?? null, this.#account, 0], entry);
      await this.#fail(entry);
      await this.#ask('back', [], entry);
    }
    if (random() < 0.3) await this.#think();
    const legs = sidesOf(entry).flatMap((side) => [side.account, side.amount]);
    this.#take(entry, await this.#ask('legs', [entry.given?.id ?? null, ...legs], entry));
    const [amount, shared] = incoming ? [-entry.amount, entry.source] : [entry.amount, entry.target];
    await this.#ask('move', [amount, shared], entry);
    if (kind === 'abandon') {
      await this.#ask('rollback', [], entry);
      return 'refused';
    }
    return this.#commit('commit', [], entry);
  }

  async #begin(): Promise<void> {
    await this.#ask('begin', [], null);
    this.open = true;
  }

  /** Reads the own account, and at times the own history, and compares. The first look after a doubt only learns. */
  async #look(statement: 'own' | 'lock', entry: Entry | null): Promise<void> {
    const balance = await this.#ask(statement, [this.#account], entry);
    const shown = Number(balance[0]?.balance);
    if (this.#balance !== null && shown !== this.#balance) this.#wrong('balance', this.#balance, shown);
    this.#balance = shown;
    if (this.#entries !== null && this.#options.random() >= 0.3) return;
    const history = await this.#ask('history', [this.number], entry);
    const entries = Number(history[0]?.entries) - this.#written;
    if (this.#entries !== null && entries !== this.#entries) this.#wrong('ledger rows', this.#entries, entries);
    this.#entries = entries;
  }

  /** Reads an entry of the client's own by the id that it was given, and compares. */
  async #recall(entry: Draft | null): Promise<void> {
    if (entry?.given == null) return;
    const { id, at, token } = entry.given;
    const rows = await this.#ask('recall', [id], entry);
    const seen = rows.map((row) => [row.reference, row.at, row.token].join(' ')).join(', ');
    const expected = [entry.reference, at, token].join(' ');
    if (seen !== expected) this.#wrong(`entry ${id}`, expected, seen);
  }

  /** Remembers what the server made up: for the entry, then for its legs. */
  #take(entry: Draft, rows: readonly Row[]): void {
    for (const { id, at, token } of rows) {
      if (entry.given === null) entry.given = { id: id!, at: at!, token: token! };
      else entry.legs.push({ id: id!, ...sidesOf(entry)[entry.legs.length] });
    }
  }

  #wrong(what: string, expected: number | string, seen: number | string): void {
    this.#workload.wrongReads.push({ client: this.number, what, expected, seen });
  }

  async #commit(statement: Statement, values: Values, entry: Draft | null): Promise<Answer> {
    this.committing = true;
    const rows = await this.#ask(statement, values, entry);
    if (entry !== null) this.#take(entry, rows);
    return 'acknowledged';
  }

  /** A statement that must fail, and does not count as an error of the failover. */
  async #fail(entry: Entry): Promise<void> {
    const failure = await this.#send('fail', []).then(
      () => new Error('a division by zero was answered'),
      (error: unknown) => error,
    );
    if (!this.#options.driver.meaning(failure).division) await this.#failed(failure, 'fail', entry);
  }

  async #ask(statement: Statement, values: Values, entry: Entry | null): Promise<Row[]> {
    try {
      return await this.#send(statement, values);
    } catch (error) {
      return this.#failed(error, statement, entry);
    }
  }

  async #send(statement: Statement, values: Values): Promise<Row[]> {
    const sent = now();
    this.waitingSince = sent;
    try {
      return await this.#line!.run(statement, values);
    } finally {
      this.waitingSince = null;
      this.answers?.push({ sent, answered: now() });
    }
  }

  /** Notes the error, and gets the connection out of the transaction or gives it up. Always throws. */
  async #failed(error: unknown, statement: Statement, entry: Entry | null): Promise<never> {
    this.#note(error, statement, entry?.reference ?? null);
    const { alive, unknown } = this.#options.driver.meaning(error);
    if (!alive || this.#line === null) {
      this.drop();
      throw new Broken();
    }
    // An error on a connection that lives on is a verdict, unless it says that there is none.
    if (!unknown) this.committing = false;
    this.open = false;
    // What the client believes may be what the database has lost; the next look learns anew.
    this.#forget();
    try {
      await this.#send('rollback', []);
    } catch (again) {
      this.#note(again, 'rollback', entry?.reference ?? null);
      this.drop();
    }
    throw new Broken();
  }

  #note(error: unknown, during: string, reference: string | null): void {
    const { code } = this.#options.driver.meaning(error);
    const message = String((error as Error).message);
    this.#workload.errors.push({ client: this.number, code, message, during, reference, at: now() });
  }

  async #think(): Promise<void> {
    await sleep(this.#options.random() * this.#options.think.inside);
  }
}

function rowOf({ reference, client, source, target, amount }: Entry): Values {
  return [reference, client, source, target, amount];
}
