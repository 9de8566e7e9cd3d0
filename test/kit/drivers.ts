import { once } from 'node:events';
import { resolve } from 'node:path';
import { createInterface } from 'node:readline';
import type { Host } from '../../core/host/demo/lab/lab.js';

/** What a program of {@link DriverClients} saw. */
export interface DriverReport {
  readonly errors: readonly string[];
  /** Its own ports when it connected, and in the end, in the same order. */
  readonly before: readonly number[];
  readonly after: readonly number[];
  /** Rows of the large result. */
  readonly rows: number;
  /** What the server made up for what was entered, by the name under which it was. */
  readonly given: Readonly<Record<string, { readonly id: string; readonly token: string }>>;
}

/** The doors of a driver that the program below needs: `connect` opens one connection. */
const DRIVERS = {
  pg: `
    import pg from 'pg';
    const connect = async () => {
      const client = new pg.Client({ host, port, user: 'postgres', database: 'postgres', ssl: false });
      client.on('error', (error) => errors.push(String(error)));
      await client.connect();
      return {
        port: () => client.connection.stream.localPort,
        ask: async (text, values = []) => (await client.query(text, values)).rows,
        rows: (text, onRow) => new Promise((done, failed) => {
          const query = client.query(new pg.Query({ text }));
          query.on('row', onRow).on('error', failed).on('end', done);
        }),
        end: () => client.end(),
      };
    };`,
  postgres: `
    import net from 'node:net';
    import postgres from 'postgres';
    const connect = async () => {
      const sockets = [];
      const socket = () => new Promise((done, failed) => {
        const made = net.connect(port, host, () => done(made)).on('error', failed);
        sockets.push(made);
      });
      const sql = postgres({ host, port, user: 'postgres', database: 'postgres', ssl: false, max: 1, socket, onnotice: () => {} });
      await sql\`SELECT 1\`;
      // A transaction of several steps on the one connection, which other statements wait for.
      const held = await sql.reserve();
      return {
        port: () => (sockets.length === 1 ? sockets[0].localPort : -sockets.length),
        ask: async (text, values = []) => await held.unsafe(text, values),
        rows: (text, onRow) => held.unsafe(text).forEach(onRow),
        end: () => sql.end({ timeout: 1 }),
      };
    };`,
} as const;

/** Names of the drivers. */
export const DRIVER_NAMES = Object.keys(DRIVERS) as (keyof typeof DRIVERS)[];

/**
 * Five connections: one that idles, one in a transaction, one that waits for an answer, one whose COMMIT is under way, and one in the middle of a
 * large result in a transaction that has written before. In that middle the process stops itself.
 */
const PROGRAM = `
  import { writeSync } from 'node:fs';
  import { once } from 'node:events';
  const [host, portText, name] = process.argv.slice(1);
  const port = Number(portText);
  const errors = [];
  const given = {};
  let rows = 0;
  const say = (value) => writeSync(1, JSON.stringify(value) + '\\n');
  const [idle, open, waiting, commit, result] = await Promise.all(Array.from({ length: 5 }, connect));
  const all = [idle, open, waiting, commit, result];
  const before = all.map((one) => one.port());
  const enter = async (one, what) => {
    await one.ask('BEGIN');
    const who = name + ' ' + what;
    const [row] = await one.ask('INSERT INTO entered (who) VALUES ($1) RETURNING id::text, token::text', [who]);
    given[who] = row;
  };
  const expect = (what, is) => { if (!is) errors.push(what); };
  const guarded = (promise) => promise.catch((error) => { errors.push(String(error.stack ?? error)); });
  await enter(open, 'open');
  await enter(waiting, 'waiting');
  await enter(commit, 'commit');
  await enter(result, 'result');
  const slept = guarded(waiting.ask('SELECT pg_sleep(3)'));
  say('ready');
  await once(process.stdin, 'data');
  process.stdin.pause();
  const committed = guarded(commit.ask('COMMIT'));
  const received = guarded(result.rows("SELECT g, repeat('x', 80) AS filler FROM generate_series(1, 40000) AS g", (row) => {
    expect('row ' + rows, Number(row.g) === rows + 1 && row.filler.length === 80);
    rows++;
    if (rows !== 1000) return;
    say('middle');
    // Until somebody says SIGCONT nothing of this process goes on, and nothing is read from its sockets.
    process.kill(process.pid, 'SIGSTOP');
  }));
  await Promise.all([slept, committed, received]);
  const recall = async (one, what) => {
    const who = name + ' ' + what;
    const [row] = await one.ask('SELECT id::text, token::text FROM entered WHERE who = $1', [who]);
    expect(what, row?.id === given[who].id && row?.token === given[who].token);
  };
  for (const [one, what] of [[open, 'open'], [waiting, 'waiting'], [result, 'result']]) {
    await guarded(recall(one, what));
    await guarded(one.ask('COMMIT'));
  }
  await guarded(recall(commit, 'commit'));
  await guarded(idle.ask('SELECT 1'));
  say({ errors, before, after: all.map((one) => one.port()), rows, given });
  await Promise.all(all.map((one) => guarded(one.end())));
  process.exit();`;

/** Makes the table that {@link DriverClients} write into. */
export const ENTERED = `
  DROP TABLE IF EXISTS entered;
  CREATE TABLE entered (id bigint GENERATED ALWAYS AS IDENTITY, who text, token uuid NOT NULL DEFAULT gen_random_uuid())`;

/** A process on a host of the lab that uses a driver as it is, on five connections. */
export class DriverClients {
  readonly #child: ReturnType<Host['spawn']>;
  readonly #lines: AsyncIterator<string>;

  constructor(host: Host, driver: keyof typeof DRIVERS, address: string, port: number) {
    this.#child = host.spawn(
      process.execPath,
      ['--input-type=module', '-e', `${DRIVERS[driver]}${PROGRAM}`, address, String(port), driver],
      // Packages are found from here.
      { stdio: ['pipe', 'pipe', 'inherit'], cwd: resolve(import.meta.dirname, '../..') },
    );
    this.#lines = createInterface({ input: this.#child.stdout! })[Symbol.asyncIterator]();
  }

  async #next<T>(): Promise<T> {
    const { value, done } = await this.#lines.next();
    if (done) throw new Error('the program of the driver ended');
    return JSON.parse(value) as T;
  }

  /** Connects, and brings all but two connections to their points. */
  async ready(): Promise<void> {
    await this.#next();
  }

  /** Sends the COMMIT and reads the large result; resolves when the process stands still in its middle. */
  async middle(): Promise<void> {
    this.#child.stdin!.write('\n');
    await this.#next();
  }

  /** Lets the process go on to its end. */
  async finish(): Promise<DriverReport> {
    const closed = once(this.#child, 'close');
    this.#child.kill('SIGCONT');
    const report = await this.#next<DriverReport>();
    await closed;
    return report;
  }

  kill(): void {
    this.#child.kill('SIGKILL');
  }
}
