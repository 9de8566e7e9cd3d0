/** Script: the clients of a `ClientHost` with the unmodified `tedious` driver. What they do is in `core/host/demo/lab/crew.ts`. */
import tedious, { type Request } from 'tedious';
import { asText, TEDIOUS_KINDS, TediousLine, tediousMeaning } from '../../core/host/demo/drivers/tedious.js';
import { type LabLine, type Question, type Rows, serveClients } from '../../core/host/demo/lab/crew.js';

/** How many rows of a result are read before a client stops in it. */
const READ_FIRST = 500;

const SQL = {
  echo: ['SELECT @v AS t', tedious.TYPES.VarChar],
  sum: ['SELECT @v + 1 AS n', tedious.TYPES.Int],
  result: [
    `SELECT n, RIGHT(REPLICATE('0', 60) + CAST(n * 7919 % 1000003 AS varchar(60)), 60) AS t FROM numbers WHERE n <= @v ORDER BY n`,
    tedious.TYPES.Int,
  ],
} as const;

class TediousLabLine extends TediousLine implements LabLine {
  /** Called with the next request, before it is sent. */
  #before: (request: Request) => void = () => {};
  #paused: Request | null = null;

  get port(): number | null {
    const { closed, socket } = this.connection as unknown as { closed: boolean; socket?: { localPort?: number } };
    return closed ? null : (socket?.localPort ?? null);
  }

  async ask(question: Question, value: string | number): Promise<Rows> {
    const rows = await this.request(this.#textOf(question, value), (request) => {
      this.#before(request);
      this.#before = () => {};
      if (question === 'text' || question === 'sleep') return this.connection.execSqlBatch(request);
      request.addParameter('v', SQL[question][1], value);
      this.connection.execSql(request);
    });
    return rows.map((row) => Object.values(row).map(asText));
  }

  #textOf(question: Question, value: string | number): string {
    if (question === 'text') return String(value);
    if (question === 'sleep') return `WAITFOR DELAY '00:00:${String(value).padStart(2, '0')}'; SELECT 1 AS one`;
    return SQL[question][0];
  }

  pause(): Promise<void> {
    return new Promise((resolve) => {
      this.#before = (request) => {
        let rows = 0;
        request.on('row', () => {
          if (++rows !== READ_FIRST) return;
          request.pause();
          this.#paused = request;
          resolve();
        });
      };
    });
  }

  resume(): void {
    this.#paused?.resume();
  }
}

serveClients(({ port }) => ({
  name: 'tedious',
  connect: (host) =>
    new TediousLabLine(tedious, { host, port, user: 'sa', password: 'Outlive.1', database: 'app' }).connect(),
  meaning: tediousMeaning,
  kinds: TEDIOUS_KINDS,
  // The clients make the values up.
  givesValues: false,
}));
