import { setTimeout as sleep } from 'node:timers/promises';
import type { Driver, Line, Row, Statement, Values } from '../drivers/driver.js';
import type { Answer, Claim, Given } from '../ledger.js';
import { accountsFor, type ClientError, now, Workload, type WorkloadOptions, type WrongRead } from '../workload.js';
import type { ClientCounts, ClientOptions, ClientProgress, ClientReport, ConnectionReport, Pauses } from './clients.js';
import { serve } from './remote.js';

/** Rows as lists of their values, as texts. */
export type Rows = readonly (readonly (string | null)[])[];

/** What clients of the lab ask besides the statements of the ledger's workload, each with a value. */
export type Question =
  /** A text: the same text. */
  | 'echo'
  /** A number: that and one. */
  | 'sum'
  /** Seconds, after which one row comes. */
  | 'sleep'
  /** A number of rows: the large result, see {@link resultRow}. */
  | 'result'
  /** A statement in the server's own language, see {@link ClientOptions.wait}: one row. */
  | 'text';

/** A connection of the lab's clients: what a driver has to say in its server's own language. Rejects with the driver's own errors. */
export interface LabLine extends Line {
  /** The client's own port; null once the connection is broken. */
  readonly port: number | null;
  ask(question: Question, value: string | number): Promise<Rows>;
  /** To be called right before a large result is asked for: it is read no further than its beginning. Resolves when that is there. */
  pause(): Promise<void>;
  /** Reads on. */
  resume(): void;
}

/** An unmodified driver for the lab's clients. */
export interface LabDriver extends Pick<Driver, 'name' | 'meaning'> {
  connect(address: string): Promise<LabLine>;
  /** What `transfer` clients do where nothing else is said. */
  readonly kinds: WorkloadOptions['kinds'];
  /**
   * Whether the server makes values up for the ledger's rows. Those are kept through a failover only as long as the answers of the unit fit into the
   * gateway's `limits.answers`: a large result then comes before them.
   */
  readonly givesValues: boolean;
}

/** A row of the large result, from 1. */
function resultRow(number: number): readonly [string, string] {
  return [String(number), String((number * 7919) % 1_000_003).padStart(60, '0')];
}

type Kind = keyof ClientCounts;

/** Those that are never done until they are told to. */
const RUNNING: readonly Kind[] = ['echo', 'stream', 'transfer'];
/** Clients that do not answer soon, because of what they ask or do. */
const SLOW: readonly Kind[] = ['waiting', 'result'];
/** Numbers of `transfer` clients begin at 0; they count their own ledger rows by it. */
const FIRST_NUMBER = 1_000_000;

/** A connection, with a stop watch at its doors. */
class Watched implements Line {
  readonly kind: Kind;
  readonly line: LabLine;
  readonly #portBefore: number;
  #ending = false;
  #answers = 0;
  #longest = 0;
  waitingSince: number | null = null;
  /** Since the last watch. */
  readonly heard: { readonly sent: number; readonly answered: number }[] = [];

  constructor(kind: Kind, line: LabLine) {
    this.kind = kind;
    this.line = line;
    this.#portBefore = line.port ?? 0;
  }

  get alive(): boolean {
    return !this.#ending && this.line.port !== null;
  }

  run(statement: Statement, values: Values): Promise<Row[]> {
    return this.#time(() => this.line.run(statement, values));
  }

  ask(question: Question, value: string | number): Promise<Rows> {
    return this.#time(() => this.line.ask(question, value));
  }

  end(): Promise<void> {
    this.#ending = true;
    return this.line.end();
  }

  destroy(): void {
    this.line.destroy();
  }

  async #time<T>(ask: () => Promise<T>): Promise<T> {
    const sent = now();
    this.waitingSince = sent;
    try {
      return await ask();
    } finally {
      const answered = now();
      this.waitingSince = null;
      // What a broken connection says is no answer.
      if (this.line.port !== null) {
        this.#answers++;
        this.heard.push({ sent, answered });
        this.#longest = Math.max(this.#longest, answered - sent);
      }
    }
  }

  watch(): void {
    this.#longest = 0;
    this.heard.length = 0;
  }

  report(): ConnectionReport {
    const { kind, waitingSince } = this;
    const portBefore = this.#portBefore;
    const longestMs = Math.max(this.#longest, waitingSince === null ? 0 : now() - waitingSince);
    const portNow = this.#ending ? portBefore : this.line.port;
    return { kind, portBefore, portNow, answers: this.#answers, waiting: waitingSince !== null, longestMs };
  }
}

/** A client that is not one of the demo's workload. */
class Fellow {
  readonly kind: Kind;
  readonly #number: number;
  readonly #crew: Crew;
  readonly #connect: () => Promise<Watched>;
  #line!: Watched;
  #given: Given | null = null;
  #answer: Answer = 'refused';
  /** Its ledger row is in an open transaction. */
  open = false;
  committing = false;
  /** A request whose answer is not taken yet. */
  #asked: Promise<unknown> | null = null;
  /** That is one that takes its time. */
  #waiting = false;
  #loop: Promise<void> | null = null;
  #stopping = false;
  #failed = false;
  #finished = false;
  /** {@link giveUp} broke its connection. */
  #givenUp = false;

  constructor(crew: Crew, kind: Kind, number: number, connect: () => Promise<Watched>) {
    this.#crew = crew;
    this.kind = kind;
    this.#number = number;
    this.#connect = connect;
  }

  get #reference(): string {
    return `lab-${this.#number}`;
  }

  get claim(): Claim | null {
    if (RUNNING.includes(this.kind) || this.kind === 'idle') return null;
    const row = { reference: this.#reference, client: this.#number, source: null, target: null, amount: 0 };
    return { ...row, answer: this.#answer, given: this.#given, legs: [] };
  }

  async begin(): Promise<void> {
    this.#line = await this.#connect();
    if (this.kind === 'echo') this.#loop = this.#guarded('echo', () => this.#echo());
    if (this.kind === 'stream') this.#loop = this.#guarded('stream', () => this.#stream());
    if (RUNNING.includes(this.kind) || this.kind === 'idle') return;
    await this.#line.run('begin', []);
    this.open = true;
    if (this.kind !== 'result' || !this.#crew.driver.givesValues) await this.#enter();
    if (this.kind === 'waiting') this.#wait();
    if (this.kind === 'result') await this.#readBeginning();
    // Its end is looked at in finish().
    this.#asked?.catch(() => {});
  }

  #wait(): void {
    this.#waiting = true;
    const { wait, sleep = 2 } = this.#crew.options;
    const asked = wait === undefined ? this.#line.ask('sleep', sleep) : this.#line.ask('text', wait);
    this.#asked = asked
      .then((rows) => this.#expect('rows after a while', '1', String(rows.length)))
      .finally(() => (this.#waiting = false));
    this.#asked.catch(() => {});
  }

  press(): void {
    // On a busy machine much time may have passed since it began.
    if (this.kind === 'waiting' && !this.#waiting && !this.#stopping) this.#wait();
    if (this.kind !== 'commit' || this.#asked !== null) return;
    this.committing = true;
    this.#asked = this.#line.run('commit', []);
    this.#asked.catch(() => {});
  }

  async probe(): Promise<void> {
    if (this.kind === 'idle') await this.#guarded('probe', () => this.#expectOne());
    if (this.kind === 'transaction') await this.#guarded('probe', () => this.#recall());
  }

  async finish(): Promise<void> {
    this.#stopping = true;
    await this.#guarded('finish', async () => {
      await this.#loop;
      if (this.#failed) return;
      if (this.kind === 'result') this.#line.line.resume();
      this.press();
      const answer = await this.#asked;
      if (this.kind === 'result') {
        this.#checkResult(answer as Rows);
        if (this.#given === null) await this.#enter();
      }
      if (this.open) {
        if (this.kind !== 'commit') {
          await this.#recall();
          this.committing = true;
          await this.#line.run('commit', []);
        }
        this.open = false;
        this.committing = false;
        this.#answer = 'acknowledged';
      }
      await this.#expectOne();
    });
    this.#finished = true;
    if (!this.#failed) await this.#line.end();
  }

  /** The answer does not come. */
  giveUp(): void {
    if (this.#finished) return;
    this.#givenUp = true;
    this.#line.destroy();
  }

  async #guarded(during: string, act: () => Promise<void>): Promise<void> {
    if (this.#failed) return;
    try {
      await act();
    } catch (error) {
      const { code, alive, unknown } = this.#crew.driver.meaning(error);
      this.#failed = true;
      // An error on a connection that lives on is a verdict, unless it says that there is none.
      if (this.committing && (!alive || unknown)) this.#answer = 'doubtful';
      this.open = false;
      this.committing = false;
      this.#crew.errors.push({
        client: this.#number,
        code,
        message: `${this.#givenUp ? 'given up, as its end did not come in time: ' : ''}${(error as Error).message}`,
        during: `${this.kind}: ${during}`,
        reference: this.claim?.reference ?? null,
        at: now(),
      });
      this.#line.destroy();
    }
  }

  #expect(what: string, expected: string, seen: string): void {
    if (expected === seen) return;
    this.#crew.wrongReads.push({
      client: this.#number,
      what: `${this.kind}: ${what}`,
      expected: expected.slice(0, 80),
      seen: seen.slice(0, 80),
    });
  }

  async #expectOne(): Promise<void> {
    const rows = await this.#line.ask('sum', this.#number);
    this.#expect('a sum', String(this.#number + 1), String(rows[0]?.[0]));
  }

  async #enter(): Promise<void> {
    const [{ id, at, token }] = await this.#line.run('enter', [this.#reference, this.#number, null, null, 0]);
    this.#given = { id: id!, at: at!, token: token! };
  }

  async #recall(): Promise<void> {
    const rows = await this.#line.run('recall', [this.#given?.id ?? null]);
    this.#expect('the own row', this.#reference, rows.map(({ reference }) => reference).join());
  }

  get #rows(): number {
    return this.#crew.options.rows ?? 50_000;
  }

  async #readBeginning(): Promise<void> {
    const there = this.#line.line.pause();
    this.#asked = this.#line.ask('result', this.#rows);
    // A result that is over already, or an error, would never get there.
    const early = this.#asked.then(() => {
      throw new Error(`a result of ${this.#rows} rows is not large enough to stop in its middle`);
    });
    await Promise.race([there, early]);
  }

  #checkResult(rows: Rows): void {
    this.#expect('rows', String(this.#rows), String(rows.length));
    const wrong = rows.findIndex(([number, text], index) => {
      const expected = resultRow(index + 1);
      return number !== expected[0] || text !== expected[1];
    });
    if (wrong >= 0) this.#expect(`row ${wrong + 1}`, 'as computed', String(rows[wrong]));
    for (const [number, text] of rows) this.#crew.streamed += number!.length + text!.length;
  }

  async #stream(): Promise<void> {
    while (!this.#stopping) {
      this.#checkResult(await this.#line.ask('result', this.#rows));
      const { stream = 0 } = this.#crew.think;
      if (stream > 0) await sleep(Math.random() * stream);
    }
  }

  async #echo(): Promise<void> {
    const { least, most } = this.#crew.options.echo ?? { least: 1, most: 65_536 };
    while (!this.#stopping) {
      // As many of each magnitude, so that both short and long ones are on their way at any moment.
      const length = Math.round(least * (most / least) ** Math.random());
      const text = this.#crew.noise(length);
      const rows = await this.#line.ask('echo', text);
      this.#expect(`${length} characters`, text, String(rows[0]?.[0]));
      this.#crew.echoed += length;
      await sleep(Math.random() * this.#crew.think.between);
    }
  }
}

/** All clients of this process. */
class Crew {
  readonly errors: ClientError[] = [];
  readonly wrongReads: WrongRead[] = [];
  readonly options: ClientOptions;
  readonly driver: LabDriver;
  /** What {@link pace} changes: all look at it anew each time. */
  readonly think: { inside: number; between: number; stream?: number };
  readonly #lines: Watched[] = [];
  readonly #fellows: Fellow[];
  readonly #workload: Workload | null;
  readonly #noise: string;
  echoed = 0;
  streamed = 0;

  constructor(options: ClientOptions, driver: LabDriver) {
    const { counts, patience = 45_000, kinds = driver.kinds, think = { inside: 100, between: 50 } } = options;
    this.options = options;
    this.driver = driver;
    this.think = { ...think };
    let number = FIRST_NUMBER;
    this.#fellows = (Object.entries(counts) as [Kind, number][]).flatMap(([kind, count]) => {
      if (kind === 'transfer') return [];
      const connect = this.#connecting(kind);
      return Array.from({ length: count }, () => new Fellow(this, kind, number++, connect));
    });
    const letters = 'abcdefghijklmnopqrstuvwxyz0123456789';
    const most = options.echo?.most ?? 65_536;
    this.#noise = counts.echo
      ? Array.from({ length: most * 2 }, () => letters[Math.floor(Math.random() * letters.length)]).join('')
      : '';
    this.#workload = counts.transfer
      ? new Workload({
          driver: { ...driver, connect: this.#connecting('transfer') },
          clients: counts.transfer,
          kinds,
          random: Math.random,
          think: this.think,
          patience,
        })
      : null;
  }

  /** Makes connections that are measured, to the addresses in turn. */
  #connecting(kind: Kind): () => Promise<Watched> {
    const addresses = [this.options.address].flat();
    let next = 0;
    return async () => {
      const line = new Watched(kind, await this.driver.connect(addresses[next++ % addresses.length]));
      this.#lines.push(line);
      return line;
    };
  }

  /** A random text of so many letters. */
  noise(length: number): string {
    const at = Math.floor(Math.random() * (this.#noise.length - length));
    return this.#noise.slice(at, at + length);
  }

  async begin(): Promise<void> {
    // A few at a time: a storm of logins is not what is to be shown.
    const waiting = [...this.#fellows];
    const row = async () => {
      for (let next = waiting.shift(); next !== undefined; next = waiting.shift()) await next.begin();
    };
    await Promise.all(Array.from({ length: 8 }, row));
    await this.#workload?.start();
  }

  press(): void {
    for (const fellow of this.#fellows) fellow.press();
  }

  pace(think: ClientOptions['think']): void {
    Object.assign(this.think, think);
  }

  async probe(): Promise<void> {
    await Promise.all(this.#fellows.map((fellow) => fellow.probe()));
  }

  watch(): void {
    for (const line of this.#lines) line.watch();
  }

  async pauses(since: number, timeoutMs: number): Promise<Pauses> {
    const deadline = now() + timeoutMs;
    const first = (line: Watched) => line.heard.find(({ answered }) => answered > since);
    const looked = () => this.#lines.filter(({ kind }) => !SLOW.includes(kind));
    const silent = () =>
      looked().filter(
        (line) =>
          line.alive && first(line) === undefined && (line.waitingSince !== null || RUNNING.includes(line.kind)),
      );
    while (silent().length > 0 && now() < deadline) await sleep(2);
    const pauses = looked().flatMap((line) => {
      const answer = first(line);
      return answer === undefined ? [] : [answer.answered - Math.max(answer.sent, since)];
    });
    return { pauses, silent: silent().length };
  }

  async finish(timeoutMs: number): Promise<ClientReport> {
    const late = setTimeout(() => {
      for (const fellow of this.#fellows) fellow.giveUp();
    }, timeoutMs);
    await Promise.all([...this.#fellows.map((fellow) => fellow.finish()), this.#workload?.stop(timeoutMs)]);
    clearTimeout(late);
    return this.report();
  }

  progress(): ClientProgress {
    const workload = this.#workload;
    const claims = this.#fellows.flatMap((fellow) => fellow.claim ?? []);
    return {
      transactions: (workload?.transactions ?? 0) + claims.filter(({ answer }) => answer === 'acknowledged').length,
      open: this.#fellows.filter(({ open }) => open).length + (workload?.open ?? 0),
      committing: this.#fellows.filter(({ committing }) => committing).length + (workload?.committing ?? 0),
      errors: this.errors.length + (workload?.errors.length ?? 0),
    };
  }

  report(): ClientReport {
    const workload = this.#workload;
    const claims = this.#fellows.flatMap((fellow) => fellow.claim ?? []);
    const asked = Object.values(this.options.counts).reduce((sum, count) => sum + count, 0);
    return {
      ...this.progress(),
      connections: this.#lines.map((line) => line.report()),
      reconnects: Math.max(0, this.#lines.length - asked),
      errors: [...this.errors, ...(workload?.errors ?? [])],
      wrongReads: [...this.wrongReads, ...(workload?.wrongReads ?? [])],
      claims: [...claims, ...(workload?.claims ?? [])],
      accounts: accountsFor(this.options.counts.transfer ?? 0),
      echoed: this.echoed,
      streamed: this.streamed,
    };
  }
}

/**
 * Makes a script the clients of a {@link ClientHost}.
 * @param load makes the driver, once it is known what the clients are to do
 */
export function serveClients(load: (options: ClientOptions) => LabDriver | Promise<LabDriver>): void {
  let crew: Crew | null = null;
  const here = (): Crew => {
    if (crew === null) throw new Error('begin() comes first');
    return crew;
  };
  serve({
    hello: () => null,
    accounts: (transfer: number) => accountsFor(transfer),
    begin: async (options: ClientOptions) => {
      crew = new Crew(options, await load(options));
      await crew.begin();
    },
    press: () => here().press(),
    pace: (think: ClientOptions['think']) => here().pace(think),
    probe: () => here().probe(),
    watch: () => here().watch(),
    pauses: ({ since, timeoutMs }: { since: number; timeoutMs: number }) => here().pauses(since, timeoutMs),
    progress: () => here().progress(),
    report: () => here().report(),
    finish: (timeoutMs: number) => here().finish(timeoutMs),
  });
}
