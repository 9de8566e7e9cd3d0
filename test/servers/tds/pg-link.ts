import { connect, type Socket } from 'node:net';
import pg from 'pg';

/** Where the PostgreSQL behind this server is. */
export interface PgPlace {
  readonly host: string;
  readonly port: number;
  readonly user: string;
  readonly database: string;
  readonly password?: string;
}

export interface Field {
  readonly name: string;
  readonly tableID: number;
  readonly columnID: number;
  readonly dataTypeID: number;
  readonly dataTypeModifier: number;
}

export interface PgResult {
  readonly command: string;
  readonly rowCount: number | null;
  readonly fields: readonly Field[];
}

type Row = readonly (string | null)[];

/** Gets the rows of a statement. A promise from it stops PostgreSQL until it is settled. */
export type OnRow = (row: Row, fields: readonly Field[]) => Promise<void> | undefined;

/** The connection to PostgreSQL that a TDS session has for itself. All values come as texts. */
export class PgLink {
  readonly #client: pg.Client;
  readonly #place: PgPlace;
  #lost: ((error: Error) => void) | null = null;
  closed = false;
  /** Whether a statement runs. */
  busy = false;
  /** How many have run. */
  runs = 0;

  private constructor(place: PgPlace, name: string) {
    this.#place = place;
    this.#client = new pg.Client({ ...place, password: place.password ?? '', application_name: name });
    // Those in flight fail by themselves; this is for an idle session.
    this.#client.on('error', (error) => this.#lost?.(error));
    this.#client.on('end', () => {
      this.closed = true;
      this.#lost?.(new Error('the connection to PostgreSQL ended'));
    });
  }

  static async open(place: PgPlace, name: string): Promise<PgLink> {
    const link = new PgLink(place, name);
    try {
      await link.#client.connect();
    } catch (error) {
      await link.#client.end().catch(() => {});
      throw error;
    }
    return link;
  }

  onLost(listener: (error: Error) => void): void {
    this.#lost = listener;
  }

  get pid(): number {
    return (this.#client as unknown as { processID: number }).processID;
  }

  /** Runs statements of one text in the simple protocol. Gives the results of all, in order. */
  async run(text: string, onRow?: OnRow): Promise<PgResult[]> {
    this.busy = true;
    this.runs++;
    try {
      return await this.#run(text, onRow);
    } finally {
      this.busy = false;
    }
  }

  #run(text: string, onRow?: OnRow): Promise<PgResult[]> {
    return new Promise((done, fail) => {
      if (this.closed) {
        fail(new Error('the connection to PostgreSQL ended'));
        return;
      }
      const query = new pg.Query({
        text,
        rowMode: 'array',
        types: { getTypeParser: () => (value: unknown) => value },
      } as unknown as pg.QueryConfig);
      const { stream } = (this.#client as unknown as { connection: { stream: Socket } }).connection;
      let broken: unknown;
      let waiting = Promise.resolve();
      query.on('row', (row: unknown, result) => {
        if (broken !== undefined || onRow === undefined) return;
        try {
          const slow = onRow(row as Row, (result as unknown as PgResult).fields);
          if (slow === undefined) return;
          stream.pause();
          waiting = slow.finally(() => stream.resume());
        } catch (error) {
          broken = error;
        }
      });
      query.on('error', fail);
      query.on('end', (result: unknown) => {
        if (broken !== undefined) fail(broken as Error);
        else waiting.then(() => done((Array.isArray(result) ? result : [result]) as PgResult[]), fail);
      });
      this.#client.query(query);
    });
  }

  /** The rows of a statement. */
  async rows(text: string): Promise<Row[]> {
    const rows: Row[] = [];
    await this.run(text, (row) => {
      rows.push(row);
      return undefined;
    });
    return rows;
  }

  /** Asks PostgreSQL to cancel what runs. Returns when it has been told. */
  cancel(): Promise<void> {
    const { processID, secretKey } = this.#client as unknown as { processID: number; secretKey: number };
    const request = Buffer.alloc(16);
    request.writeInt32BE(16, 0);
    request.writeInt32BE(80877102, 4);
    request.writeInt32BE(processID, 8);
    request.writeInt32BE(secretKey, 12);
    return new Promise((done) => {
      const socket = connect(this.#place.port, this.#place.host, () => socket.end(request));
      socket.on('error', () => {});
      socket.on('close', () => done());
      socket.resume();
    });
  }

  /** Ends the connection at once; a transaction in it is PostgreSQL's to abort. */
  destroy(): void {
    this.closed = true;
    this.#lost = null;
    (this.#client as unknown as { connection: { stream: Socket } }).connection.stream.destroy();
  }
}
