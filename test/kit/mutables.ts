import { serialize } from 'pg-protocol';
import { eventually } from './servers.js';
import { type Frame, frameTypes, type Line, Raw, type Stage } from './stage.js';

/**
 * Transactions that are told values which the server made up, in several dialects of the protocol, with the server killed at every
 * place; and a checker that compares all that a client saw with what is stored after its commit, byte for byte.
 */

/** A value of a row as the client got it. */
export interface Cell {
  readonly bytes: Buffer | null;
  readonly binary: boolean;
}

/** What a client saw of one statement. */
export interface Result {
  /** Bodies of the DataRows. */
  readonly bodies: Buffer[];
  readonly rows: Cell[][];
  /** Command tag. */
  command: string;
}

export type Param = string | number | null | Cell;

/** One statement of a transaction. Its text is the same for every client: what tells clients apart is in parameters. */
export interface Statement {
  readonly sql: string;
  /** A function: depends on what was seen (by statement, 0 is BEGIN), so that the client must wait for that. */
  readonly params?: readonly Param[] | ((seen: readonly Result[]) => readonly Param[]);
  /** Yields from what is stored after COMMIT exactly the rows that the client should have seen, in their order. */
  readonly stored?: string;
}

/** A transaction without its BEGIN and COMMIT. */
export interface Script {
  readonly name: string;
  readonly statements: (tag: string) => readonly Statement[];
  /** Tables whose rows carry the client's tag: after COMMIT they have as many as without a failure, else none. */
  readonly tables: readonly string[];
  /** Looks at all that a client saw, and at what is stored; throws or returns what is wrong. */
  readonly check?: (seen: readonly Result[], ask: Ask, tag: string) => Promise<string | undefined> | string | undefined;
  /** Columns that may be named in a divergence; without it the script must always agree. */
  readonly doubtful?: readonly string[];
  readonly user?: string;
}

/** Asks the present primary, past the gateway; values as text. */
export type Ask = (sql: string) => Promise<(string | null)[][]>;

/** How statements are put into messages. */
export interface Dialect {
  readonly name: string;
  readonly how: 'simple' | 'text' | 'extended' | 'prepared';
  readonly binary: boolean;
  /** `each` waits for every answer; `pipelined` sends on as long as it can; `batch` does so with a single Sync. */
  readonly pace: 'each' | 'pipelined' | 'batch';
}

/** The dialects by name. `one text`: as many statements as possible in one Query. `prepared`: parsed in an earlier transaction. */
export const DIALECTS = {
  simple: { name: 'simple', how: 'simple', binary: false, pace: 'each' },
  'one text': { name: 'one text', how: 'text', binary: false, pace: 'each' },
  extended: { name: 'extended', how: 'extended', binary: false, pace: 'each' },
  binary: { name: 'binary', how: 'extended', binary: true, pace: 'each' },
  prepared: { name: 'prepared', how: 'prepared', binary: false, pace: 'each' },
  'prepared binary': { name: 'prepared binary', how: 'prepared', binary: true, pace: 'each' },
  pipelined: { name: 'pipelined', how: 'extended', binary: false, pace: 'pipelined' },
  batch: { name: 'batch', how: 'extended', binary: false, pace: 'batch' },
} as const satisfies Record<string, Dialect>;

export const ALL_DIALECTS: readonly Dialect[] = Object.values(DIALECTS);

/** An error that a client was answered with. */
export class Failure extends Error {
  constructor(
    readonly code: string,
    message: string,
    readonly hint: string,
    /** Which statement of the transaction was answered so (0 is BEGIN). */
    readonly at: number,
  ) {
    super(message);
  }
}

// ----------------------------------------------------------------------------------------------------------------- play

/** Fields of an ErrorResponse. */
export function errorOf(body: Buffer): { code: string; message: string; hint: string } {
  const fields = new Map(
    body
      .toString('utf8')
      .split('\0')
      .filter(Boolean)
      .map((field) => [field[0], field.slice(1)]),
  );
  return { code: fields.get('C') ?? '', message: fields.get('M') ?? '', hint: fields.get('H') ?? '' };
}

/** The values of a DataRow. */
export function cellsOf(body: Buffer, binary: boolean): Cell[] {
  const cells: Cell[] = [];
  let at = 2;
  for (let i = body.readUInt16BE(0); i > 0; i--) {
    const length = body.readInt32BE(at);
    at += 4;
    cells.push({ bytes: length < 0 ? null : body.subarray(at, at + length), binary });
    at += Math.max(length, 0);
  }
  return cells;
}

/** A whole number, in either form. */
export function int(cell: Cell): bigint {
  const { bytes, binary } = cell;
  if (bytes === null) throw new Error('NULL in place of a number');
  if (!binary) return BigInt(bytes.toString());
  return bytes.length === 8 ? bytes.readBigInt64BE() : BigInt(bytes.readIntBE(0, bytes.length));
}

/** Milliseconds since the epoch of a timestamptz (of a session in UTC), in either form. */
export function time(cell: Cell): number {
  const { bytes, binary } = cell;
  if (bytes === null) throw new Error('NULL in place of a time');
  if (binary) return Number(bytes.readBigInt64BE()) / 1000 + Date.UTC(2000, 0, 1);
  return Date.parse(`${bytes.toString().replace(' ', 'T').replace(/\+00$/, '')}Z`);
}

export function same(a: Cell, b: Cell): boolean {
  return a.bytes === null || b.bytes === null ? a.bytes === b.bytes : a.bytes.equals(b.bytes);
}

function literal(param: Param): string {
  if (typeof param === 'number') return String(param);
  const text = param === null || typeof param === 'string' ? param : (param.bytes?.toString('utf8') ?? null);
  return text === null ? 'null' : `'${text.replaceAll("'", "''")}'`;
}

function written({ sql }: Statement, params: readonly Param[]): string {
  return sql.replace(/\$(\d+)/g, (_, n) => literal(params[Number(n) - 1]));
}

function bound(param: Param): string | Buffer | null {
  if (param === null || typeof param === 'string') return param;
  if (typeof param === 'number') return String(param);
  return param.bytes === null || param.binary ? param.bytes : param.bytes.toString('utf8');
}

/** A client of one dialect, with what it has prepared. */
export class Player {
  readonly #prepared = new Map<string, string>();

  constructor(
    readonly client: Raw,
    readonly dialect: Dialect,
  ) {}

  /** The messages of one statement, without a Sync. */
  #messages(statement: Statement, params: readonly Param[]): Uint8Array[] {
    const { how, binary } = this.dialect;
    if (how === 'simple' || how === 'text') return [serialize.query(written(statement, params))];
    const values = params.map(bound);
    if (how === 'extended') {
      return [
        serialize.parse({ text: statement.sql }),
        serialize.bind({ values, binary }),
        serialize.describe({ type: 'P', name: '' }),
        serialize.execute({}),
      ];
    }
    const known = this.#prepared.get(statement.sql);
    const name = known ?? `s${this.#prepared.size}`;
    const parts: Uint8Array[] = [];
    if (known === undefined) {
      this.#prepared.set(statement.sql, name);
      parts.push(serialize.parse({ name, text: statement.sql }), serialize.describe({ type: 'S', name }));
    }
    // What a statement's rows look like was told when it was prepared: many drivers do not ask again.
    parts.push(serialize.bind({ statement: name, values, binary }));
    if (binary) parts.push(serialize.describe({ type: 'P', name: '' }));
    parts.push(serialize.execute({}));
    return parts;
  }

  /** Runs statements that leave together. */
  async #group(group: readonly Statement[], seen: Result[]): Promise<void> {
    const { how, pace, binary } = this.dialect;
    const withParams = group.map((statement) => {
      const { params = [] } = statement;
      return { statement, params: typeof params === 'function' ? params(seen) : params };
    });
    const parts: Uint8Array[] = [];
    let readies = 1;
    if (how === 'text') {
      parts.push(serialize.query(withParams.map(({ statement, params }) => written(statement, params)).join(';\n')));
    } else {
      for (const { statement, params } of withParams) {
        parts.push(...this.#messages(statement, params));
        if (how !== 'simple' && pace !== 'batch') parts.push(serialize.sync());
      }
      if (how !== 'simple' && pace === 'batch') parts.push(serialize.sync());
      if (pace === 'pipelined') readies = group.length;
    }
    this.client.send(...parts);
    const first = seen.length;
    let error: Failure | null = null;
    let result: Result = { bodies: [], rows: [], command: '' };
    for (const { type, body } of await this.client.ready(readies, 45_000)) {
      if (type === 'D') {
        result.bodies.push(body);
        result.rows.push(cellsOf(body, binary));
      } else if (type === 'C' || type === 'I') {
        result.command = body.toString('latin1').replace(/\0$/, '');
        seen.push(result);
        result = { bodies: [], rows: [], command: '' };
      } else if (type === 'E' && error === null) {
        const { code, message, hint } = errorOf(body);
        error = new Failure(code, message, hint, seen.length);
      }
    }
    if (error !== null) throw error;
    if (seen.length !== first + group.length)
      throw new Error(`${seen.length - first} answers to ${group.length} statements`);
  }

  /**
   * Runs the script in a transaction.
   * @param pause awaited before each group of statements that leave together, with its number and what was seen so far
   * @returns what was seen of each statement, BEGIN and COMMIT included
   * @throws Failure for the first error
   */
  async play(
    script: Script,
    tag: string,
    pause?: (group: number, seen: readonly Result[]) => Promise<void>,
  ): Promise<Result[]> {
    const seen: Result[] = [];
    let number = 0;
    for (const group of this.groups(script, tag)) {
      await pause?.(number++, seen);
      await this.#group(group, seen);
    }
    if (seen.at(-1)!.command !== 'COMMIT') throw new Error(`COMMIT was answered ${seen.at(-1)!.command}`);
    return seen;
  }

  groups(script: Script, tag: string): Statement[][] {
    const { how, pace } = this.dialect;
    const groups: Statement[][] = [];
    const together = how === 'text' || pace !== 'each';
    for (const statement of [{ sql: 'begin' }, ...script.statements(tag), { sql: 'commit' }] as Statement[]) {
      if (groups.length === 0 || !together || typeof statement.params === 'function') groups.push([statement]);
      else groups.at(-1)!.push(statement);
    }
    return groups;
  }

  async run(sql: string): Promise<Frame[]> {
    this.client.send(serialize.query(sql));
    return await this.client.ready();
  }
}

// --------------------------------------------------------------------------------------------------------------- places

/** Where a client stands when the server is killed. */
type Place =
  /** It has all answers so far and says nothing until another server is there. */
  | { readonly kind: 'idle'; readonly group: number }
  /** After so many bytes all that this side says is lost. */
  | { readonly kind: 'lost'; readonly side: 'client' | 'server'; readonly bytes: number; readonly where: string };

const nameOf = (place: Place) => (place.kind === 'idle' ? `idle before group ${place.group}` : place.where);

/** What came of one client. */
export interface Trial {
  readonly script: Script;
  readonly dialect: Dialect;
  readonly tag: string;
  readonly where: string;
  readonly outcome: 'agreed' | 'diverged' | 'wrong';
  /** What is wrong, or what the divergence says. */
  readonly text: string;
}

let counter = 10_000;
const nextTag = () => String(counter++);

/** Messages of the gateway whose loss makes a difference, and of the server. */
const ASKS = 'QSF';
const TELLS = 'TDCVZ';

function placesOf(line: Line, groups: number): Place[] {
  const places: Place[] = [];
  for (let group = 1; group < groups; group++) places.push({ kind: 'idle', group });
  for (const side of ['client', 'server'] as const) {
    const bytes = line.seen(side);
    const types = frameTypes(bytes);
    const wanted = side === 'client' ? ASKS : TELLS;
    let start = 0;
    for (let i = 0; i < types.length; i++) {
      const where = `${side} ${types.slice(Math.max(0, i - 12), i)}>${types[i]}<${types.slice(i + 1, i + 8)}`;
      if (wanted.includes(types[i])) places.push({ kind: 'lost', side, bytes: start, where });
      start += bytes.readInt32BE(start + 1) + 1;
    }
  }
  return places;
}

export interface TrialOptions {
  /** Every nth place only (rotating over scripts and dialects, so that all kinds are covered). */
  readonly every?: number;
  /** The promoted server has nothing of what the transactions did: not the values that their sequences were advanced by. */
  readonly behind?: boolean;
  /** Clients per kill. */
  readonly batch?: number;
}

const BUSY = `select count(*) from pg_stat_activity where state = 'active' and pid <> pg_backend_pid()
  and backend_type = 'client backend' and wait_event is distinct from 'ClientRead'`;

/** A connection to the present primary, past proxy and gateway, that answers in text or binary. */
async function connectDirect(stage: Stage): Promise<Raw> {
  const client = await Raw.connect(stage.pair.primary.port, 'direct', { application_name: 'direct' });
  stage.adopt(client);
  return client;
}

async function bodiesOf(direct: Raw, sql: string, binary: boolean): Promise<Buffer[]> {
  direct.send(serialize.parse({ text: sql }), serialize.bind({ binary }), serialize.execute({}), serialize.sync());
  const frames = await direct.ready();
  const error = frames.find(({ type }) => type === 'E');
  if (error !== undefined) throw new Error(`${sql}: ${errorOf(error.body).message}`);
  return frames.filter(({ type }) => type === 'D').map(({ body }) => body);
}

const asker =
  (direct: Raw): Ask =>
  async (sql) =>
    (await bodiesOf(direct, sql, false)).map((body) =>
      cellsOf(body, false).map(({ bytes }) => bytes?.toString() ?? null),
    );

const shown = (body: Buffer, binary: boolean) =>
  cellsOf(body, binary)
    .map(({ bytes }) => (bytes === null ? 'null' : binary ? bytes.toString('hex') : bytes.toString()))
    .join('|');

async function countsOf(direct: Raw, script: Script, tag: string): Promise<string> {
  const counts = [];
  for (const table of script.tables) {
    const [[n]] = await asker(direct)(`select count(*) from ${table} where tag = '${tag}'`);
    counts.push(`${table} ${n}`);
  }
  return counts.join(', ');
}

/** Compares what a client saw with what is stored. */
async function differences(direct: Raw, script: Script, dialect: Dialect, tag: string, seen: Result[], counts: string) {
  const wrong: string[] = [];
  const statements = script.statements(tag);
  for (const [i, { stored, sql }] of statements.entries()) {
    if (stored === undefined) continue;
    const there = await bodiesOf(direct, stored, dialect.binary);
    const had = seen[i + 1].bodies;
    if (there.length === had.length && had.every((body, k) => body.equals(there[k]))) continue;
    const list = (bodies: Buffer[]) => bodies.map((body) => shown(body, dialect.binary)).join(' / ');
    wrong.push(`SILENT statement ${i + 2} (${sql}): saw ${list(had)}, stored ${list(there)}`);
  }
  const counted = await countsOf(direct, script, tag);
  if (counted !== counts) wrong.push(`rows: ${counted} instead of ${counts}`);
  try {
    const found = await script.check?.(seen, asker(direct), tag);
    if (found !== undefined) wrong.push(found);
  } catch (error) {
    wrong.push(`check: ${(error as Error).message}`);
  }
  return wrong;
}

/**
 * Runs what ends with a kill while the standby hears nothing of it any more: asynchronous replication that lags behind.
 */
export async function whileBehind<T>(stage: Stage, work: () => Promise<T>): Promise<T> {
  const { pair } = stage;
  const { name } = pair.primary;
  await pair.setSynchronous(false);
  try {
    await pair.pauseReplication();
    return await work();
  } finally {
    // Nothing was killed: something went wrong before.
    if (pair.primary.name === name) await pair.resumeReplication();
    await pair.setSynchronous(true);
  }
}

interface Case {
  readonly script: Script;
  readonly dialect: Dialect;
  readonly place: Place;
  /** Rows of an undisturbed transaction. */
  readonly counts: string;
}

interface Runner extends Case {
  readonly player: Player;
  readonly line: Line;
  readonly tag: string;
  at: boolean;
  early: boolean;
  over: Promise<Result[] | Error>;
}

async function enter(stage: Stage, script: Script, dialect: Dialect): Promise<Player> {
  const player = new Player(await stage.raw(script.user === undefined ? {} : { user: script.user }), dialect);
  if (dialect.how === 'prepared') await player.play(script, nextTag());
  return player;
}

/**
 * Plays each script in each dialect once undisturbed, then once for every place at which the server can be lost; all clients of a batch
 * stand at their places when it is killed. Those that fail with a divergence roll back and run their transaction again.
 */
export async function trials(
  stage: Stage,
  scripts: readonly Script[],
  dialects: readonly Dialect[],
  options: TrialOptions = {},
): Promise<Trial[]> {
  const { every = 1, behind = false, batch = 200 } = options;
  const cases: Case[] = [];
  await stage.restore();
  const direct = await connectDirect(stage);
  let turn = 0;
  for (const script of scripts) {
    for (const dialect of dialects) {
      const player = await enter(stage, script, dialect);
      const line = stage.line(player.client);
      line.forget();
      const tag = nextTag();
      const seen = await player.play(script, tag);
      const counts = await countsOf(direct, script, tag);
      const wrong = await differences(direct, script, dialect, tag, seen, counts);
      if (wrong.length > 0) throw new Error(`${script.name}, ${dialect.name}, undisturbed: ${wrong.join('; ')}`);
      const places = placesOf(line, player.groups(script, tag).length).filter(() => turn++ % every === 0);
      for (const place of places) cases.push({ script, dialect, place, counts });
      player.client.destroy();
    }
  }
  // Neighbouring places of one script do not all meet in one kill.
  const rounds = Math.ceil(cases.length / batch);
  const found: Trial[] = [];
  for (let round = 0; round < rounds; round++) {
    if (round > 0) await stage.restore();
    const present = cases.filter((_, i) => i % rounds === round);
    found.push(...(await killAmid(stage, present, behind)));
  }
  report(found);
  return found;
}

async function killAmid(stage: Stage, cases: readonly Case[], behind: boolean): Promise<Trial[]> {
  const runners: Runner[] = [];
  const enterAll = async (part: readonly Case[]) => {
    for (const one of part) {
      const player = await enter(stage, one.script, one.dialect);
      const line = stage.line(player.client);
      runners.push({ ...one, player, line, tag: nextTag(), at: false, early: false, over: Promise.resolve([]) });
    }
  };
  await Promise.all([0, 1, 2, 3].map((k) => enterAll(cases.filter((_, i) => i % 4 === k))));
  const outcomes = await (behind ? whileBehind(stage, () => goAndKill(stage, runners)) : goAndKill(stage, runners));
  const direct = await connectDirect(stage);
  const found: Trial[] = [];
  for (const [i, runner] of runners.entries()) {
    // What was committed before is gone with the server that had it.
    if (behind && runner.early) continue;
    found.push(await judge(direct, runner, outcomes[i]));
  }
  for (const { player } of runners) player.client.destroy();
  direct.destroy();
  return found;
}

/** Lets all go to their places, kills the server, and lets them go on to their ends. */
async function goAndKill(stage: Stage, runners: readonly Runner[]): Promise<(Result[] | Error)[]> {
  let promoted: () => void = () => {};
  const anew = new Promise<void>((resolve) => {
    promoted = resolve;
  });
  let killed = false;
  try {
    for (const runner of runners) {
      const { player, place, line } = runner;
      if (place.kind === 'lost') line.loseAfter(place.side, place.bytes);
      const pause = async (group: number) => {
        if (place.kind !== 'idle' || group !== place.group) return;
        runner.at = true;
        await anew;
      };
      runner.over = player
        .play(runner.script, runner.tag, pause)
        .catch((error: Error) => error)
        .finally(() => {
          runner.early = !killed;
        });
    }
    const direct = await connectDirect(stage);
    await eventually(() => runners.every(({ at, early, line }) => at || early || line.silenced), {
      message: 'all clients at their places',
      timeoutMs: 20_000,
    });
    // What was said has reached the server and is done, so that what was not answered has happened nevertheless.
    await eventually(async () => (await asker(direct)(BUSY))[0][0] === '0', {
      message: 'idle servers',
      timeoutMs: 20_000,
    });
    direct.destroy();
    await stage.kill();
    killed = true;
  } finally {
    promoted();
  }
  return await Promise.all(runners.map(({ over }) => over));
}

async function judge(direct: Raw, runner: Runner, outcome: Result[] | Error): Promise<Trial> {
  const { script, dialect, tag, counts, place, player } = runner;
  const base = { script, dialect, tag, where: nameOf(place) };
  const told = (wrong: readonly string[]): Trial => ({ ...base, outcome: 'wrong', text: wrong.join('\n      ') });
  if (!(outcome instanceof Error)) {
    const wrong = await differences(direct, script, dialect, tag, outcome, counts);
    return wrong.length > 0 ? told(wrong) : { ...base, outcome: 'agreed', text: '' };
  }
  if (!(outcome instanceof Failure)) return told([`client: ${outcome.message}`]);
  const text = `statement ${outcome.at + 1}: ${outcome.code} ${outcome.message}`;
  const wrong: string[] = [];
  if (!isDivergence(outcome)) wrong.push(`error ${text}`);
  else if (script.doubtful === undefined) wrong.push(`DIVERGED ${text}`);
  else if (!names(outcome, script.doubtful) && !namesError(outcome)) wrong.push(`UNNAMED ${text}`);
  wrong.push(...(await goesOn(direct, player, script, tag)));
  return wrong.length > 0 ? told(wrong) : { ...base, outcome: 'diverged', text };
}

/** It is the gateway's own error, and it names a statement. */
export const isDivergence = ({ code, message }: { code: string; message: string }) =>
  code === '40001' && /the transaction was repeated after a failover and statement \d+ \(\w[\w ]*\)/.test(message);

/** The message names one of these columns as the place of the difference. */
export const names = ({ message }: { message: string }, columns: readonly string[]) => {
  const where = message.split('answered differently than before')[1] ?? '';
  return columns.some((column) => new RegExp(`(^|[^\\w])${column}($|[^\\w])`).test(where));
};

/** The message names the error that the statement ended with when it was repeated: it has no column then. */
const namesError = ({ message }: { message: string }) => /\berror\b.*\b[0-9A-Z]{5}\b/.test(message);

/** After a divergence: nothing is stored, ROLLBACK works, the connection too, and the same transaction succeeds. */
async function goesOn(direct: Raw, player: Player, script: Script, tag: string): Promise<string[]> {
  const wrong: string[] = [];
  if (player.client.closed) return ['the connection was closed'];
  try {
    const rolledBack = await player.run('rollback');
    if (rolledBack.some(({ type }) => type === 'E')) wrong.push('ROLLBACK failed');
    const none = await countsOf(direct, script, tag);
    if (/ [1-9]/.test(none)) wrong.push(`rows of a transaction that failed: ${none}`);
    const again = nextTag();
    const seen = await player.play(script, again);
    const counts = await countsOf(direct, script, again);
    const found = await differences(direct, script, player.dialect, again, seen, counts);
    wrong.push(...found.map((text) => `retry: ${text}`));
  } catch (error) {
    wrong.push(`retry: ${(error as Error).message}`);
  }
  return wrong;
}

/** With MUTABLES set in the environment: how often which script agreed or diverged. */
function report(found: readonly Trial[]): void {
  if (process.env.MUTABLES === undefined) return;
  const lines = new Map<string, Record<Trial['outcome'], number>>();
  const texts = new Map<string, Set<string>>();
  for (const { script, dialect, outcome, text } of found) {
    const key = `${script.name} | ${dialect.name}`;
    const line = lines.get(key) ?? { agreed: 0, diverged: 0, wrong: 0 };
    line[outcome]++;
    lines.set(key, line);
    if (outcome !== 'agreed') texts.set(key, (texts.get(key) ?? new Set()).add(text.replace(/^statement \d+: /, '')));
  }
  for (const [key, { agreed, diverged, wrong }] of lines) {
    console.log(`${key}: ${agreed} agreed, ${diverged} diverged, ${wrong} wrong`);
    for (const text of [...(texts.get(key) ?? [])].slice(0, 4)) console.log(`      ${text}`);
  }
}

/** Fails for each client that was told or left something wrong, and names the place. */
export function expectAgreement(found: readonly Trial[]): void {
  const wrong = found.filter(({ outcome }) => outcome === 'wrong');
  if (wrong.length === 0) return;
  const groups = new Map<string, Trial[]>();
  for (const trial of wrong) {
    const key = `${trial.script.name}, ${trial.dialect.name}`;
    groups.set(key, [...(groups.get(key) ?? []), trial]);
  }
  const lines = [...groups].map(([key, list]) => {
    const few = list.slice(0, 3).map(({ tag, where, text }) => `    ${tag} at ${where}:\n      ${text}`);
    return `  ${key}: ${list.length} of ${found.filter((t) => `${t.script.name}, ${t.dialect.name}` === key).length}\n${few.join('\n')}`;
  });
  throw new Error(`${wrong.length} of ${found.length} went wrong:\n${lines.join('\n')}`);
}
