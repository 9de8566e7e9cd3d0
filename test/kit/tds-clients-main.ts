/**
 * The clients of a host of the lab that speak TDS, with the unmodified `tedious` driver: the same questions as those of
 * `core/host/demo/lab/client.ts`, which `ClientHost` asks.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { Connection, Request, TYPES } from 'tedious';
import type {
  ClientCounts,
  ClientOptions,
  ClientProgress,
  ClientReport,
  ConnectionReport,
  Pauses,
} from '../../core/host/demo/lab/clients.js';
import { serve } from '../../core/host/demo/lab/remote.js';
import type { Answer, Claim } from '../../core/host/demo/ledger.js';
import { type ClientError, now, type WrongRead } from '../../core/host/demo/workload.js';

type Kind = keyof ClientCounts;
type Rows = readonly (readonly unknown[])[];
type Parameter = readonly [name: string, type: unknown, value: unknown];

/** Clients that do not answer soon, because of what they ask or do. */
const SLOW: readonly Kind[] = ['waiting', 'result'];
/** Those that are never done until they are told to. */
const RUNNING: readonly Kind[] = ['echo', 'stream', 'transfer'];
const FIRST_NUMBER = 1_000_000;
/** How many rows of a result a `result` client reads before it stops. */
const READ_FIRST = 500;
/** Shared accounts; each `transfer` client has one of its own behind them. */
const SHARED = 16;
/** What an unknown outcome is told with. */
const UNKNOWN = 50_087;

/** The result is `numbers` with itself: as many rows as it has, squared. */
const RESULT = `SELECT a.n * 1000 + b.n AS g, RIGHT(REPLICATE('0', 60) + CAST(a.n * 7919 + b.n AS varchar(60)), 60) AS t
  FROM numbers a CROSS JOIN numbers b WHERE a.n < @most ORDER BY a.n, b.n`;
const NUMBERS = 100;
const BALANCE = 'SELECT balance FROM accounts WITH (UPDLOCK) WHERE id = @a';

const text = (name: string, value: string): Parameter => [name, TYPES.VarChar, value];
const int = (name: string, value: number | null): Parameter => [name, TYPES.Int, value];

/** One connection and what is measured on it. */
class Line {
  readonly connection: Connection;
  port = 0;
  ending = false;
  broken = false;
  answers = 0;
  waitingSince: number | null = null;
  longest = 0;
  readonly heard: { readonly sent: number; readonly answered: number }[] = [];

  constructor(
    readonly kind: Kind,
    address: string,
    port: number,
  ) {
    this.connection = new Connection({
      server: address,
      authentication: { type: 'default', options: { userName: 'sa', password: 'Outlive.1' } },
      options: {
        port,
        encrypt: false,
        database: 'app',
        rowCollectionOnRequestCompletion: false,
        connectTimeout: 30_000,
        requestTimeout: 0,
      },
    });
    this.connection.on('error', () => {});
    this.connection.on('end', () => (this.broken = true));
  }

  async connect(): Promise<void> {
    await new Promise<void>((done, fail) => this.connection.connect((error) => (error ? fail(error) : done())));
    this.port = this.connection.socket?.localPort ?? 0;
  }

  get alive(): boolean {
    return !this.ending && !this.broken;
  }

  async #time<T>(ask: () => Promise<T>): Promise<T> {
    const sent = now();
    this.waitingSince = sent;
    try {
      return await ask();
    } finally {
      const answered = now();
      this.waitingSince = null;
      if (!this.broken) {
        this.answers++;
        this.heard.push({ sent, answered });
        this.longest = Math.max(this.longest, answered - sent);
      }
    }
  }

  /** Runs a text with parameters, or as it is. `onRequest` gets the request before it is sent. */
  ask(sql: string, parameters: readonly Parameter[] = [], onRequest?: (request: Request) => void): Promise<Rows> {
    return this.#time(
      () =>
        new Promise((done, fail) => {
          const rows: unknown[][] = [];
          const request = new Request(sql, (error) => (error ? fail(error) : done(rows)));
          for (const [name, type, value] of parameters) request.addParameter(name, type as never, value);
          request.on('row', (columns: { value: unknown }[]) => rows.push(columns.map(({ value }) => value)));
          onRequest?.(request);
          if (parameters.length > 0) this.connection.execSql(request);
          else this.connection.execSqlBatch(request);
        }),
    );
  }

  #told(call: (done: (error?: Error | null) => void) => void): Promise<void> {
    return this.#time(() => new Promise((done, fail) => call((error) => (error ? fail(error) : done()))));
  }

  begin(): Promise<void> {
    return this.#told((done) => this.connection.beginTransaction(done as never));
  }

  commit(): Promise<void> {
    return this.#told((done) => this.connection.commitTransaction(done as never));
  }

  rollback(): Promise<void> {
    return this.#told((done) => this.connection.rollbackTransaction(done as never));
  }

  async end(): Promise<void> {
    this.ending = true;
    this.connection.close();
  }

  destroy(): void {
    this.connection.socket?.destroy();
  }

  watch(): void {
    this.longest = 0;
    this.heard.length = 0;
  }

  report(): ConnectionReport {
    const { kind, port, answers, waitingSince } = this;
    const longestMs = Math.max(this.longest, waitingSince === null ? 0 : now() - waitingSince);
    const portNow = this.ending ? port : this.alive ? (this.connection.socket?.localPort ?? null) : null;
    return { kind, portBefore: port, portNow, answers, waiting: waitingSince !== null, longestMs };
  }
}

/** One client. */
class Fellow {
  readonly line: Line;
  readonly claims: { -readonly [K in keyof Claim]: Claim[K] }[] = [];
  open = false;
  committing = false;
  #asked: Promise<unknown> | null = null;
  #waiting = false;
  #loop: Promise<void> | null = null;
  #request: Request | null = null;
  #stopping = false;
  #failed = false;
  #finished = false;
  /** What its own account holds. */
  #balance = 1000;

  constructor(
    readonly kind: Kind,
    private readonly number: number,
    private readonly crew: Crew,
  ) {
    const { address, port } = crew.options;
    this.line = new Line(kind, [address].flat()[0], port);
  }

  async begin(): Promise<void> {
    await this.line.connect();
    if (this.kind === 'echo') this.#loop = this.#guarded('echo', () => this.#echo());
    if (this.kind === 'stream') this.#loop = this.#guarded('stream', () => this.#stream());
    if (this.kind === 'transfer') this.#loop = this.#guarded('transfer', () => this.#transfers());
    if (RUNNING.includes(this.kind) || this.kind === 'idle') return;
    await this.line.begin();
    this.open = true;
    await this.#enter(this.#claim(`lab-${this.number}`, null, null, 0));
    if (this.kind === 'waiting') this.#wait();
    if (this.kind === 'result') await this.#readBeginning();
    this.#asked?.catch(() => {});
  }

  #claim(reference: string, source: number | null, target: number | null, amount: number) {
    // The server makes nothing up.
    const given = { id: reference, at: '', token: '' };
    const row = { reference, client: this.number, source, target, amount };
    const claim = { ...row, answer: 'refused' as Answer, given, legs: [] };
    this.claims.push(claim);
    return claim;
  }

  async #enter({ reference, source, target, amount }: Claim): Promise<void> {
    const values = [
      text('r', reference),
      int('c', this.number),
      int('s', source),
      int('t', target),
      int('a', amount),
    ] as const;
    await this.line.ask(
      'INSERT INTO ledger (reference, client, source, target, amount) VALUES (@r, @c, @s, @t, @a)',
      values,
    );
  }

  #wait(): void {
    this.#waiting = true;
    const seconds = String(this.crew.options.sleep ?? 2).padStart(2, '0');
    const asked = this.line.ask(`WAITFOR DELAY '00:00:${seconds}'; SELECT 7 AS seven`);
    this.#asked = asked
      .then((rows) => this.#expect('what comes after a while', '7', String(rows[0]?.[0])))
      .finally(() => (this.#waiting = false));
    this.#asked.catch(() => {});
  }

  press(): void {
    if (this.kind === 'waiting' && !this.#waiting && !this.#stopping) this.#wait();
    if (this.kind !== 'commit' || this.#asked !== null) return;
    this.committing = true;
    this.#asked = this.line.commit();
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
      this.#request?.resume();
      this.press();
      const seen = await this.#asked;
      if (this.kind === 'result') this.#checkResult(seen as Rows);
      if (this.open) {
        if (this.kind !== 'commit') {
          await this.#recall();
          this.committing = true;
          await this.line.commit();
        }
        this.#acknowledged(this.claims[0]);
      }
      await this.#expectOne();
    });
    this.#finished = true;
    if (!this.#failed) await this.line.end();
  }

  #acknowledged(claim: { answer: Answer }): void {
    this.open = false;
    this.committing = false;
    claim.answer = 'acknowledged';
  }

  /** The answer does not come. */
  giveUp(): void {
    if (!this.#finished) this.line.destroy();
  }

  async #guarded(during: string, act: () => Promise<void>): Promise<void> {
    if (this.#failed) return;
    try {
      await act();
    } catch (thrown) {
      this.#failed = true;
      this.#wrong(during, thrown);
    }
  }

  /** Notes what went wrong. @returns the number of the server's error, if it is one */
  #wrong(during: string, thrown: unknown): number | undefined {
    const error = (thrown as AggregateError).errors?.[0] ?? thrown;
    const { number, message } = error as { number?: number; message: string };
    const claim = this.claims.at(-1);
    if (this.committing && claim !== undefined && (number === undefined || number === UNKNOWN))
      claim.answer = 'doubtful';
    const code = number === undefined ? '' : String(number);
    const reference = claim?.reference ?? null;
    const what = this.committing ? 'commit' : during;
    this.crew.errors.push({
      client: this.number,
      code,
      message: String(message),
      during: `${this.kind}: ${what}`,
      reference,
      at: now(),
    });
    this.open = false;
    this.committing = false;
    return number;
  }

  #expect(what: string, expected: string, seen: string): void {
    if (expected === seen) return;
    const [wanted, got] = [expected, seen].map((one) => one.slice(0, 80));
    this.crew.wrongReads.push({ client: this.number, what: `${this.kind}: ${what}`, expected: wanted, seen: got });
  }

  async #expectOne(): Promise<void> {
    const rows = await this.line.ask('SELECT @n + 1 AS n', [int('n', this.number)]);
    this.#expect('a sum', String(this.number + 1), String(rows[0]?.[0]));
  }

  async #recall(): Promise<void> {
    const rows = await this.line.ask('SELECT reference FROM ledger WHERE client = @c', [int('c', this.number)]);
    this.#expect('the own row', this.claims[0].reference, rows.flat().join());
  }

  get #rows(): number {
    return Math.round((this.crew.options.rows ?? 10_000) / NUMBERS) * NUMBERS;
  }

  #askResult(onRequest?: (request: Request) => void): Promise<Rows> {
    return this.line.ask(RESULT, [int('most', this.#rows / NUMBERS)], onRequest);
  }

  async #readBeginning(): Promise<void> {
    let rows = 0;
    await new Promise<void>((there, fail) => {
      this.#asked = this.#askResult((request) => {
        this.#request = request;
        request.on('row', () => {
          if (++rows !== READ_FIRST) return;
          request.pause();
          there();
        });
      });
      this.#asked.then(() => fail(new Error('a result is not large enough to stop in its middle')), fail);
    });
  }

  #checkResult(rows: Rows): void {
    this.#expect('rows', String(this.#rows), String(rows.length));
    const right = rows.every(([g, t], i) => {
      const [a, b] = [Math.floor(i / NUMBERS), i % NUMBERS];
      return g === a * 1000 + b && t === String(a * 7919 + b).padStart(60, '0');
    });
    if (!right) this.#expect('rows of a result', 'as computed', 'others');
    for (const [g, t] of rows) this.crew.streamed += String(g).length + String(t).length;
  }

  async #stream(): Promise<void> {
    while (!this.#stopping) this.#checkResult(await this.#askResult());
  }

  async #echo(): Promise<void> {
    const { least, most } = this.crew.options.echo ?? { least: 1, most: 65_536 };
    while (!this.#stopping) {
      const length = Math.round(least * (most / least) ** Math.random());
      const said = this.crew.noise(length);
      const rows = await this.line.ask('SELECT @t AS t', [text('t', said)]);
      this.#expect(`${length} characters`, said, String(rows[0]?.[0]));
      this.crew.echoed += length;
      await sleep(Math.random() * this.crew.think.between);
    }
  }

  /** Moves money between its own account, which it reads, and a shared one, which nobody reads. */
  async #transfers(): Promise<void> {
    const { line, crew } = this;
    const own = SHARED + this.number - FIRST_NUMBER;
    for (let n = 0; !this.#stopping; n++) {
      const amount = 1 + Math.floor(Math.random() * 9);
      const other = Math.floor(Math.random() * SHARED);
      const claim = this.#claim(`t-${this.number}-${n}`, own, other, amount);
      const abandons = Math.random() < 0.1;
      await line.begin();
      this.open = true;
      const [[balance]] = await line.ask(BALANCE, [int('a', own)]);
      this.#expect('the own account', String(this.#balance), String(balance));
      await this.#enter(claim);
      await sleep(Math.random() * crew.think.inside);
      await line.ask('UPDATE accounts SET balance = balance - @n WHERE id = @a', [int('n', amount), int('a', own)]);
      await line.ask('UPDATE accounts SET balance = balance + @n WHERE id = @a', [int('n', amount), int('a', other)]);
      if (abandons) {
        await line.rollback();
        this.open = false;
      } else {
        this.committing = true;
        const unknown = await line.commit().then(
          () => false,
          (error) => {
            if (this.#wrong('commit', error) === UNKNOWN) return true;
            throw new Error('a commit failed');
          },
        );
        // Whoever does not know looks.
        if (unknown) [[this.#balance]] = (await line.ask(BALANCE, [int('a', own)])) as [[number]];
        else {
          this.#acknowledged(claim);
          this.#balance -= amount;
        }
      }
      await sleep(Math.random() * crew.think.between);
    }
  }
}

/** All clients of this process. */
class Crew {
  readonly errors: ClientError[] = [];
  readonly wrongReads: WrongRead[] = [];
  readonly think: { inside: number; between: number };
  readonly #fellows: Fellow[];
  readonly #noise: string;
  echoed = 0;
  streamed = 0;

  constructor(readonly options: ClientOptions) {
    this.think = { ...(options.think ?? { inside: 100, between: 50 }) };
    let number = FIRST_NUMBER;
    // Those with accounts of their own first.
    const kinds = Object.entries(options.counts).sort(([one]) => (one === 'transfer' ? -1 : 1)) as [Kind, number][];
    this.#fellows = kinds.flatMap(([kind, count]) =>
      Array.from({ length: count }, () => new Fellow(kind, number++, this)),
    );
    const letters = 'abcdefghijklmnopqrstuvwxyz0123456789';
    const most = (options.echo?.most ?? 65_536) * 2;
    this.#noise = options.counts.echo
      ? Array.from({ length: most }, () => letters[Math.floor(Math.random() * letters.length)]).join('')
      : '';
  }

  /** A random text of so many letters. */
  noise(length: number): string {
    const at = Math.floor(Math.random() * (this.#noise.length - length));
    return this.#noise.slice(at, at + length);
  }

  async begin(): Promise<void> {
    const waiting = [...this.#fellows];
    const row = async () => {
      for (let next = waiting.shift(); next !== undefined; next = waiting.shift()) await next.begin();
    };
    await Promise.all(Array.from({ length: 8 }, row));
  }

  press(): void {
    for (const fellow of this.#fellows) fellow.press();
  }

  async probe(): Promise<void> {
    await Promise.all(this.#fellows.map((fellow) => fellow.probe()));
  }

  get #lines(): Line[] {
    return this.#fellows.map(({ line }) => line);
  }

  watch(): void {
    for (const line of this.#lines) line.watch();
  }

  async pauses(since: number, timeoutMs: number): Promise<Pauses> {
    const deadline = now() + timeoutMs;
    const first = (line: Line) => line.heard.find(({ answered }) => answered > since);
    const looked = this.#lines.filter(({ kind }) => !SLOW.includes(kind));
    const silent = () =>
      looked.filter(
        (line) =>
          line.alive && first(line) === undefined && (line.waitingSince !== null || RUNNING.includes(line.kind)),
      );
    while (silent().length > 0 && now() < deadline) await sleep(2);
    const pauses = looked.flatMap((line) => {
      const answer = first(line);
      return answer === undefined ? [] : [answer.answered - Math.max(answer.sent, since)];
    });
    return { pauses, silent: silent().length };
  }

  async finish(timeoutMs: number): Promise<ClientReport> {
    const late = setTimeout(() => {
      for (const fellow of this.#fellows) fellow.giveUp();
    }, timeoutMs);
    await Promise.all(this.#fellows.map((fellow) => fellow.finish()));
    clearTimeout(late);
    return this.report();
  }

  get #claims(): Claim[] {
    return this.#fellows.flatMap(({ claims }) => claims);
  }

  progress(): ClientProgress {
    return {
      transactions: this.#claims.filter(({ answer }) => answer === 'acknowledged').length,
      open: this.#fellows.filter(({ open }) => open).length,
      committing: this.#fellows.filter(({ committing }) => committing).length,
      errors: this.errors.length,
    };
  }

  report(): ClientReport {
    const { errors, wrongReads, echoed, streamed } = this;
    return {
      ...this.progress(),
      connections: this.#lines.map((line) => line.report()),
      reconnects: 0,
      errors,
      wrongReads,
      claims: this.#claims,
      accounts: accountsFor(this.options.counts.transfer ?? 0),
      echoed,
      streamed,
    };
  }
}

const accountsFor = (transfer: number) => SHARED + transfer;

let crew: Crew | null = null;

function here(): Crew {
  if (crew === null) throw new Error('begin() comes first');
  return crew;
}

serve({
  hello: () => null,
  accounts: (transfer: number) => accountsFor(transfer),
  begin: async (options: ClientOptions) => {
    crew = new Crew(options);
    await crew.begin();
  },
  press: () => here().press(),
  pace: (think: ClientOptions['think']) => Object.assign(here().think, think),
  probe: () => here().probe(),
  watch: () => here().watch(),
  pauses: ({ since, timeoutMs }: { since: number; timeoutMs: number }) => here().pauses(since, timeoutMs),
  progress: () => here().progress(),
  report: () => here().report(),
  finish: (timeoutMs: number) => here().finish(timeoutMs),
});
