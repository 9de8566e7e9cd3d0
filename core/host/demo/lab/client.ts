/** Script: the clients of a {@link ClientHost} with the unmodified `pg` driver. What they do is in `crew.ts`. */
import type { ClientConfig } from 'pg';
import { AS_TEXT, PgLine, pgMeaning } from '../drivers/pg.js';
import { type LabLine, type Question, type Rows, serveClients } from './crew.js';

/** How much of a result is read before a client stops in it, in bytes. */
const READ_FIRST = 65_536;

const SQL: Readonly<Record<Exclude<Question, 'text'>, string>> = {
  echo: 'SELECT $1::text',
  sum: 'SELECT $1::int + 1',
  sleep: 'SELECT pg_sleep($1)',
  result: `SELECT g, lpad((g::bigint * 7919 % 1000003)::text, 60, '0') FROM generate_series(1, $1::int) AS g`,
};

class PgLabLine extends PgLine implements LabLine {
  get port(): number | null {
    return this.socket.destroyed ? null : (this.socket.localPort ?? null);
  }

  async ask(question: Question, value: string | number): Promise<Rows> {
    const query = question === 'text' ? { text: String(value) } : { text: SQL[question], values: [value] };
    const { rows } = await this.pg.query<(string | null)[]>({ ...query, types: AS_TEXT, rowMode: 'array' });
    return rows;
  }

  pause(): Promise<void> {
    const { socket } = this;
    const until = socket.bytesRead + READ_FIRST;
    return new Promise((resolve) => {
      const look = () => {
        if (socket.bytesRead < until) return;
        socket.off('data', look);
        socket.pause();
        resolve();
      };
      socket.on('data', look);
    });
  }

  resume(): void {
    this.socket.resume();
  }
}

serveClients(async ({ port, connection }) => {
  // Loaded only here: the gateway itself needs no driver.
  const { loadPg } = await import('../../../../plugins/embedded-postgres/native.js');
  const { Client } = await loadPg();
  const given = connection as ClientConfig | undefined;
  const config: ClientConfig = { port, user: 'postgres', database: 'postgres', ssl: false, ...given };
  return {
    name: 'pg',
    connect: (host) => new PgLabLine(new Client({ ...config, host })).connect(),
    meaning: pgMeaning,
    kinds: { transfer: 6, autocommit: 1, note: 1, browse: 1, savepoint: 1, abandon: 1 },
    givesValues: true,
  };
});
