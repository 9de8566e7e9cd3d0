import { setTimeout as sleep } from 'node:timers/promises';
import type { ClientConfig, Client as PgClient } from 'pg';
import { pgDriver } from '../drivers/pg.js';
import type { Answer, Claim, Given } from '../ledger.js';
import { accountsFor, type ClientError, now, Workload, type WrongRead } from '../workload.js';
import type { ClientCounts, ClientOptions, ClientProgress, ClientReport, ConnectionReport, Pauses } from './clients.js';
import { serve } from './remote.js';

type Kind = keyof ClientCounts;
type Constructor = new (config: ClientConfig) => PgClient;

/** Those that are never done until they are told to. */
const RUNNING: readonly Kind[] = ['echo', 'stream', 'transfer'];
/** Clients that do not answer soon, because of what they ask or do. */
const SLOW: readonly Kind[] = ['waiting', 'result'];
/** Numbers of `transfer` clients begin at 0; they count their own ledger rows by it. */
const FIRST_NUMBER = 1_000_000;
/** How much of a result a `result` client reads before it stops, in bytes. */
const READ_FIRST = 65_536;

const SQL = {
  enter: 'INSERT INTO ledger (reference, client, amount) VALUES ($1, $2, 0) RETURNING id, at, token',
  recall: 'SELECT reference FROM ledger WHERE id = $1',
  result: `SELECT g, lpad((g::bigint * 7919 % 1000003)::text, 60, '0') FROM generate_series(1, $1::int) AS g`,
  echo: 'SELECT $1::text',
} as const;

/** Values as the server wrote them, in rows that are lists. */
const AS_LISTS = { types: { getTypeParser: () => (value: string) => value }, rowMode: 'array' } as const;

type Rows = (string | null)[][];

/** One connection and what is measured on it. */
class Line {
  readonly kind: Kind;
  /** The driver makes its socket anew when it wants TLS. */
  readonly stream: () => DriverSocket;
  port = 0;
  ending = false;
  answers = 0;
  waitingSince: number | null = null;
  longest = 0;
  /** Since the last watch. */
  readonly heard: { readonly sent: number; readonly answered: number }[] = [];

  constructor(kind: Kind, stream: Line['stream']) {
    this.kind = kind;
    this.stream = stream;
  }

  get alive(): boolean {
    return !this.ending && !this.stream().destroyed;
  }

  async time<T>(ask: () => Promise<T>): Promise<T> {
    const sent = now();
    this.waitingSince = sent;
    try {
      return await ask();
    } finally {
      const answered = now();
      this.waitingSince = null;
      // What a broken connection says is no answer.
      if (!this.stream().destroyed) {
        this.answers++;
        this.heard.push({ sent, answered });
        this.longest = Math.max(this.longest, answered - sent);
      }
    }
  }

  watch(): void {
    this.longest = 0;
    this.heard.length = 0;
  }

  report(): ConnectionReport {
    const { kind, port, answers, waitingSince } = this;
    const longestMs = Math.max(this.longest, waitingSince === null ? 0 : now() - waitingSince);
    const portNow = this.ending ? port : this.alive ? (this.stream().localPort ?? null) : null;
    return { kind, portBefore: port, portNow, answers, waiting: waitingSince !== null, longestMs };
  }
}

/** What is used of the driver's socket, a `net.Socket`. */
interface DriverSocket extends NodeJS.ReadableStream {
  readonly destroyed: boolean;
  readonly localPort?: number;
  readonly bytesRead: number;
  destroy(): void;
}

function streamOf(pg: PgClient): DriverSocket {
  return (pg as unknown as { connection: { stream: DriverSocket } }).connection.stream;
}

const lines: Line[] = [];

/** The driver as it is, with a stop watch at its doors; it connects to these addresses in turn. */
function measured(Client: Constructor, kind: Kind, addresses: readonly string[]): Constructor {
  let next = 0;
  return class extends Client {
    constructor(config: ClientConfig) {
      super({ ...config, host: addresses[next++ % addresses.length] });
      const line = new Line(kind, () => streamOf(this));
      const connect = this.connect.bind(this) as unknown as () => Promise<void>;
      const query = this.query.bind(this) as (...args: unknown[]) => Promise<unknown>;
      const end = this.end.bind(this) as () => Promise<void>;
      this.connect = (async () => {
        await connect();
        line.port = streamOf(this).localPort ?? 0;
        lines.push(line);
      }) as unknown as typeof this.connect;
      this.query = ((...args: unknown[]) => line.time(() => query(...args))) as typeof this.query;
      this.end = (async () => {
        line.ending = true;
        await end();
      }) as typeof this.end;
    }
  };
}

/** A client that is not one of the demo's workload. */
class Fellow {
  readonly kind: Kind;
  readonly #number: number;
  readonly #options: ClientOptions;
  readonly #crew: Crew;
  readonly #pg: PgClient;
  #given: Given | null = null;
  #answer: Answer = 'refused';
  /** Its ledger row is in an open transaction. */
  open = false;
  committing = false;
  /** A request whose answer is not taken yet. */
  #asked: Promise<Rows> | null = null;
  /** That is one that takes its time. */
  #waiting = false;
  #loop: Promise<void> | null = null;
  #stopping = false;
  #failed = false;
  #finished = false;

  constructor(crew: Crew, kind: Kind, number: number, options: ClientOptions, Client: Constructor) {
    this.#crew = crew;
    this.kind = kind;
    this.#number = number;
    this.#options = options;
    this.#pg = new Client(crew.connection);
    this.#pg.on('error', () => {});
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
    await this.#pg.connect();
    if (this.kind === 'echo') this.#loop = this.#guarded('echo', () => this.#echo());
    if (this.kind === 'stream') this.#loop = this.#guarded('stream', () => this.#stream());
    if (RUNNING.includes(this.kind) || this.kind === 'idle') return;
    await this.#ask('BEGIN');
    this.open = true;
    // Made-up values are kept through a failover only as long as the answers of the unit fit into the gateway's `limits.answers`: a large result
    // comes before them.
    if (this.kind !== 'result') await this.#enter();
    if (this.kind === 'waiting') this.#wait();
    if (this.kind === 'result') await this.#readBeginning();
    // Its end is looked at in finish().
    this.#asked?.catch(() => {});
  }

  #wait(): void {
    this.#waiting = true;
    const { wait, sleep = 2 } = this.#options;
    const asked = wait === undefined ? this.#ask('SELECT pg_sleep($1)', [sleep]) : this.#ask(wait);
    this.#asked = asked.finally(() => (this.#waiting = false));
    this.#asked.catch(() => {});
  }

  press(): void {
    // On a busy machine much time may have passed since it began.
    if (this.kind === 'waiting' && !this.#waiting && !this.#stopping) this.#wait();
    if (this.kind !== 'commit' || this.#asked !== null) return;
    this.committing = true;
    this.#asked = this.#ask('COMMIT');
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
      if (this.kind === 'result') streamOf(this.#pg).resume();
      this.press();
      const rows = await this.#asked;
      if (this.kind === 'result') {
        this.#checkResult(rows!);
        await this.#enter();
      }
      if (this.open) {
        if (this.kind !== 'commit') {
          await this.#recall();
          this.committing = true;
          await this.#ask('COMMIT');
        }
        this.open = false;
        this.committing = false;
        this.#answer = 'acknowledged';
      }
      await this.#expectOne();
    });
    this.#finished = true;
    if (!this.#failed) await this.#pg.end().catch(() => {});
  }

  /** The answer does not come. */
  giveUp(): void {
    if (!this.#finished) streamOf(this.#pg).destroy();
  }

  async #guarded(during: string, act: () => Promise<void>): Promise<void> {
    if (this.#failed) return;
    try {
      await act();
    } catch (error) {
      const { code, severity, message } = error as { code?: string; severity?: string; message?: string };
      this.#failed = true;
      const verdict = severity === 'ERROR' && code !== '08007';
      if (this.committing && !verdict) this.#answer = 'doubtful';
      this.open = false;
      this.committing = false;
      this.#crew.errors.push({
        client: this.#number,
        code: severity === undefined ? '' : (code ?? ''),
        message: String(message),
        during: `${this.kind}: ${during}`,
        reference: this.claim?.reference ?? null,
        at: now(),
      });
      streamOf(this.#pg).destroy();
    }
  }

  async #ask(text: string, values: unknown[] = []): Promise<Rows> {
    const { rows } = await this.#pg.query<(string | null)[]>({ text, values, ...AS_LISTS });
    return rows;
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
    const rows = await this.#ask('SELECT $1::int + 1', [this.#number]);
    this.#expect('a sum', String(this.#number + 1), String(rows[0]?.[0]));
  }

  async #enter(): Promise<void> {
    const [[id, at, token]] = await this.#ask(SQL.enter, [this.#reference, this.#number]);
    this.#given = { id: id!, at: at!, token: token! };
  }

  async #recall(): Promise<void> {
    const rows = await this.#ask(SQL.recall, [this.#given?.id]);
    this.#expect('the own row', this.#reference, rows.flat().join());
  }

  get #rows(): number {
    return this.#options.rows ?? 50_000;
  }

  async #readBeginning(): Promise<void> {
    const stream = streamOf(this.#pg);
    const until = stream.bytesRead + READ_FIRST;
    const there = new Promise<void>((resolve) => {
      const look = () => {
        if (stream.bytesRead < until) return;
        stream.off('data', look);
        stream.pause();
        resolve();
      };
      stream.on('data', look);
    });
    this.#asked = this.#ask(SQL.result, [this.#rows]);
    // A result that is over already, or an error, would never get there.
    const early = this.#asked.then(() => {
      throw new Error(`a result of ${this.#rows} rows is not large enough to stop in its middle`);
    });
    await Promise.race([there, early]);
  }

  #checkResult(rows: Rows): void {
    this.#expect('rows', String(this.#rows), String(rows.length));
    const wrong = rows.findIndex(
      ([number, text], index) =>
        number !== String(index + 1) || text !== String(((index + 1) * 7919) % 1_000_003).padStart(60, '0'),
    );
    if (wrong >= 0) this.#expect(`row ${wrong + 1}`, 'as computed', String(rows[wrong]));
    for (const [number, text] of rows) this.#crew.streamed += number!.length + text!.length;
  }

  async #stream(): Promise<void> {
    while (!this.#stopping) {
      this.#checkResult(await this.#ask(SQL.result, [this.#rows]));
      const { stream = 0 } = this.#crew.think;
      if (stream > 0) await sleep(Math.random() * stream);
    }
  }

  async #echo(): Promise<void> {
    const { least, most } = this.#options.echo ?? { least: 1, most: 65_536 };
    while (!this.#stopping) {
      // As many of each magnitude, so that both short and long ones are on their way at any moment.
      const length = Math.round(least * (most / least) ** Math.random());
      const text = this.#crew.noise(length);
      const rows = await this.#ask(SQL.echo, [text]);
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
  readonly connection: ClientConfig;
  /** What {@link pace} changes: all look at it anew each time. */
  readonly think: { inside: number; between: number; stream?: number };
  readonly #options: ClientOptions;
  readonly #fellows: Fellow[];
  readonly #workload: Workload | null;
  readonly #noise: string;
  echoed = 0;
  streamed = 0;

  constructor(options: ClientOptions, Client: Constructor) {
    const { counts, port, patience = 45_000, kinds, think = { inside: 100, between: 50 } } = options;
    this.#options = options;
    this.think = { ...think };
    const given = options.connection as ClientConfig | undefined;
    const addresses = [options.address].flat();
    this.connection = { port, user: 'postgres', database: 'postgres', ssl: false, ...given };
    let number = FIRST_NUMBER;
    this.#fellows = (Object.entries(counts) as [Kind, number][]).flatMap(([kind, count]) => {
      if (kind === 'transfer') return [];
      const Measured = measured(Client, kind, addresses);
      return Array.from({ length: count }, () => new Fellow(this, kind, number++, options, Measured));
    });
    const letters = 'abcdefghijklmnopqrstuvwxyz0123456789';
    const most = options.echo?.most ?? 65_536;
    this.#noise = counts.echo
      ? Array.from({ length: most * 2 }, () => letters[Math.floor(Math.random() * letters.length)]).join('')
      : '';
    this.#workload = counts.transfer
      ? new Workload({
          driver: pgDriver(measured(Client, 'transfer', addresses), this.connection),
          clients: counts.transfer,
          kinds: kinds ?? { transfer: 6, autocommit: 1, note: 1, browse: 1, savepoint: 1, abandon: 1 },
          random: Math.random,
          think: this.think,
          patience,
        })
      : null;
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
    for (const line of lines) line.watch();
  }

  async pauses(since: number, timeoutMs: number): Promise<Pauses> {
    const deadline = now() + timeoutMs;
    const first = (line: Line) => line.heard.find(({ answered }) => answered > since);
    const looked = () => lines.filter(({ kind }) => !SLOW.includes(kind));
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
    const asked = Object.values(this.#options.counts).reduce((sum, count) => sum + count, 0);
    return {
      ...this.progress(),
      connections: lines.map((line) => line.report()),
      reconnects: Math.max(0, lines.length - asked),
      errors: [...this.errors, ...(workload?.errors ?? [])],
      wrongReads: [...this.wrongReads, ...(workload?.wrongReads ?? [])],
      claims: [...claims, ...(workload?.claims ?? [])],
      accounts: accountsFor(this.#options.counts.transfer ?? 0),
      echoed: this.echoed,
      streamed: this.streamed,
    };
  }
}

let crew: Crew | null = null;

function here(): Crew {
  if (crew === null) throw new Error('begin() comes first');
  return crew;
}

/** Script: the clients of a {@link ClientHost}. */
serve({
  hello: () => null,
  accounts: (transfer: number) => accountsFor(transfer),
  begin: async (options: ClientOptions) => {
    // Loaded only here: the gateway itself needs no driver.
    const { loadPg } = await import('../../../../plugins/embedded-postgres/native.js');
    crew = new Crew(options, (await loadPg()).Client);
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
