import type { ClientConfig, Client as PgClient } from 'pg';
import type { Driver, ErrorMeaning, Line, Row, Statement, Values } from './driver.js';

const SQL: Readonly<Record<Exclude<Statement, 'move' | 'batch'>, string>> = {
  begin: 'BEGIN',
  commit: 'COMMIT',
  rollback: 'ROLLBACK',
  save: 'SAVEPOINT here',
  back: 'ROLLBACK TO SAVEPOINT here',
  fail: 'SELECT 1 / 0',
  own: 'SELECT balance FROM accounts WHERE id = $1',
  lock: 'SELECT balance FROM accounts WHERE id = $1 FOR UPDATE',
  history: 'SELECT count(*)::int AS entries FROM ledger WHERE client = $1',
  add: 'UPDATE accounts SET balance = balance + $1 WHERE id = $2',
  recall: 'SELECT reference, at, token FROM ledger WHERE id = $1',
  enter:
    'INSERT INTO ledger (reference, client, source, target, amount) VALUES ($1, $2, $3, $4, $5) RETURNING id, at, token',
  leg: 'INSERT INTO legs (entry, account, amount) VALUES ($1, $2, $3) RETURNING id',
  legs: 'INSERT INTO legs (entry, account, amount) VALUES ($1, $2, $3), ($1, $4, $5) RETURNING id',
  whole: `WITH taken AS (UPDATE accounts SET balance = balance - $5 WHERE id = $3),
               given AS (UPDATE accounts SET balance = balance + $5 WHERE id = $4)
          INSERT INTO ledger (reference, client, source, target, amount) VALUES ($1, $2, $3, $4, $5)
          RETURNING id, at, token`,
};

/** Those that are prepared under a name once for each connection. */
const NAMED: ReadonlySet<Statement> = new Set(['own', 'lock', 'enter', 'legs']);

/** Values as the server wrote them. */
export const AS_TEXT = { getTypeParser: () => (value: string) => value };

/** A text with its values in it, and those that are left. */
function query(statement: Statement, values: Values): { name?: string; text: string; values?: Values } {
  if (statement === 'move') {
    return { text: `UPDATE accounts SET balance = balance + ${values[0]} WHERE id = ${values[1]}` };
  }
  if (statement === 'batch') {
    const [own, other, change] = values.slice(5) as number[];
    const row = values.slice(0, 5).map((value) => (typeof value === 'string' ? `'${value}'` : value));
    const sides = values.slice(8);
    const legs = [0, 2].map((i) => `(currval('ledger_id_seq'), ${sides[i]}, ${sides[i + 1]})`);
    return {
      text: `BEGIN;
             UPDATE accounts SET balance = balance + ${change} WHERE id = ${own};
             UPDATE accounts SET balance = balance + ${-change} WHERE id = ${other};
             INSERT INTO ledger (reference, client, source, target, amount) VALUES (${row.join(', ')})
               RETURNING id, at, token;
             INSERT INTO legs (entry, account, amount) VALUES ${legs.join(', ')} RETURNING id;
             COMMIT`,
    };
  }
  const text = SQL[statement];
  if (values.length === 0) return { text };
  return NAMED.has(statement) ? { name: statement, text, values } : { text, values };
}

/** What is used of the driver's socket, a `net.Socket`. */
export interface PgSocket extends NodeJS.ReadableStream {
  readonly destroyed: boolean;
  readonly localPort?: number;
  readonly bytesRead: number;
  destroy(): void;
}

/** A connection with the `pg` package. */
export class PgLine implements Line {
  constructor(readonly pg: PgClient) {
    // A connection that breaks rejects the query in flight; without one, the next query is rejected.
    pg.on('error', () => {});
  }

  /** Rejects with the driver's error when it cannot log in. */
  async connect(): Promise<this> {
    await this.pg.connect();
    return this;
  }

  /** The driver makes its socket anew when it wants TLS. */
  get socket(): PgSocket {
    return (this.pg as unknown as { connection: { stream: PgSocket } }).connection.stream;
  }

  async run(statement: Statement, values: Values): Promise<Row[]> {
    const results = await this.pg.query<Row>({ ...query(statement, values), types: AS_TEXT });
    // Of a text with several statements the driver makes a list.
    return [results].flat().flatMap(({ rows }) => rows);
  }

  end(): Promise<void> {
    return this.pg.end().catch(() => {});
  }

  destroy(): void {
    this.socket.destroy();
  }
}

/** What an error of the `pg` package says. */
export function pgMeaning(error: unknown): ErrorMeaning {
  const { code, severity } = error as { code?: string; severity?: string };
  // Node's own codes (ECONNRESET) are no SQLSTATE.
  const told = severity === undefined ? '' : (code ?? '');
  return {
    code: told,
    alive: told !== '' && severity === 'ERROR',
    unknown: told === '08007',
    division: told === '22012',
  };
}

/** Clients with the `pg` package. What servers make up is left to them. */
export function pgDriver(Client: new (config: ClientConfig) => PgClient, connection: ClientConfig): Driver {
  return { name: 'pg', connect: () => new PgLine(new Client(connection)).connect(), meaning: pgMeaning };
}
