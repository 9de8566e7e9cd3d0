import { once } from 'node:events';
import { Connection, type ConnectionConfiguration, ISOLATION_LEVEL, Request, TYPES } from 'tedious';

export { ISOLATION_LEVEL, TYPES };

/** What the client is told of a column, as far as tests look at it. */
export interface ColumnMetadata {
  readonly colName: string;
  readonly type: { readonly name: string };
  readonly dataLength?: number;
  readonly precision?: number;
  readonly scale?: number;
  readonly flags: number;
}

/** What a request gave: rows of all its results in order, messages and the like. */
export interface Answer {
  readonly rows: Record<string, unknown>[];
  readonly columns: ColumnMetadata[][];
  readonly rowCount: number;
  readonly outputs: Record<string, unknown>;
  readonly status: number | undefined;
  readonly infos: { number: number; message: string }[];
}

/** An error that the server told, as tedious gives it. */
export interface ServerError extends Error {
  readonly number: number;
  readonly state: number;
  readonly class: number;
  readonly code?: string;
  readonly answer: Answer;
}

export interface Parameter {
  readonly name: string;
  readonly type: unknown;
  readonly value: unknown;
  readonly options?: Record<string, unknown>;
  readonly output?: boolean;
}

/** A client with tedious, whose calls are promises. */
export class TdsClient {
  readonly infos: { number: number; message: string }[] = [];
  readonly lost: Error[] = [];

  private constructor(readonly connection: Connection) {
    connection.on('error', (error) => this.lost.push(error));
    connection.on('infoMessage', (token) => this.infos.push(token));
    connection.on('errorMessage', (token) => this.infos.push(token));
  }

  /** Connects as sa. Throws tedious's error where that fails. */
  static async connect(
    port: number,
    options: NonNullable<ConnectionConfiguration['options']> = {},
    login: { userName?: string; password?: string } = {},
  ): Promise<TdsClient> {
    const connection = new Connection({
      server: '127.0.0.1',
      authentication: { type: 'default', options: { userName: 'sa', password: 'Outlive.1', ...login } },
      options: {
        port,
        encrypt: false,
        trustServerCertificate: true,
        rowCollectionOnRequestCompletion: false,
        useColumnNames: false,
        connectTimeout: 20_000,
        requestTimeout: 30_000,
        ...options,
      },
    });
    const client = new TdsClient(connection);
    await new Promise<void>((done, fail) => {
      connection.connect((error) => (error ? fail(error) : done()));
    });
    return client;
  }

  /** A request that tells what it gives, and runs it by a method of the connection. */
  run(
    how: (request: Request, connection: Connection) => void,
    text = '',
    parameters: readonly Parameter[] = [],
    onRequest?: (request: Request) => void,
  ): Promise<Answer> {
    return new Promise((done, fail) => {
      const answer = { rows: [], columns: [], outputs: {}, infos: [] } as unknown as {
        -readonly [K in keyof Answer]: Answer[K];
      };
      const seen = this.infos.length;
      const request = new Request(text, (error, rowCount) => {
        answer.rowCount = rowCount ?? 0;
        answer.infos = this.infos.slice(seen);
        if (error) fail(Object.assign(error, { answer }));
        else done(answer);
      });
      for (const { name, type, value, options, output } of parameters) {
        if (output) request.addOutputParameter(name, type as never, value, options);
        else request.addParameter(name, type as never, value, options);
      }
      request.on('columnMetadata', (columns) => answer.columns.push(columns as ColumnMetadata[]));
      request.on('row', (row: { metadata: ColumnMetadata; value: unknown }[]) =>
        answer.rows.push(
          Object.fromEntries(row.map(({ metadata, value }, i) => [metadata.colName || String(i), value])),
        ),
      );
      request.on('returnValue', (name, value) => {
        answer.outputs[name] = value;
      });
      request.on('doneProc', (_, __, status) => {
        answer.status = status;
      });
      onRequest?.(request);
      how(request, this.connection);
    });
  }

  batch(text: string): Promise<Answer> {
    return this.run((request, connection) => connection.execSqlBatch(request), text);
  }

  /** By sp_executesql. */
  sql(text: string, ...parameters: Parameter[]): Promise<Answer> {
    return this.run((request, connection) => connection.execSql(request), text, parameters);
  }

  procedure(name: string, ...parameters: Parameter[]): Promise<Answer> {
    return this.run((request, connection) => connection.callProcedure(request), name, parameters);
  }

  #told(call: (done: (error?: Error | null) => void) => void): Promise<void> {
    return new Promise((done, fail) => call((error) => (error ? fail(error) : done())));
  }

  begin(name = '', isolation?: number): Promise<void> {
    return this.#told((done) => this.connection.beginTransaction(done as never, name, isolation));
  }

  commit(): Promise<void> {
    return this.#told((done) => this.connection.commitTransaction(done as never));
  }

  rollback(name?: string): Promise<void> {
    return this.#told((done) => this.connection.rollbackTransaction(done as never, name));
  }

  save(name: string): Promise<void> {
    return this.#told((done) => this.connection.saveTransaction(done as never, name));
  }

  reset(): Promise<void> {
    return this.#told((done) => this.connection.reset(done as never));
  }

  /** The descriptor that the client sends, in hexadecimal. */
  get descriptor(): string {
    const { currentTransactionDescriptor } = this.connection as unknown as {
      transactionDescriptors: Buffer[];
      currentTransactionDescriptor(): Buffer;
    };
    return currentTransactionDescriptor.call(this.connection).toString('hex');
  }

  async close(): Promise<void> {
    const ended = once(this.connection, 'end');
    this.connection.close();
    await ended;
  }
}

/** The error that a promise fails with, as the server told it. */
export async function refusal(promise: Promise<unknown>): Promise<ServerError> {
  const error = await promise.then(
    () => new Error('it did not fail'),
    (error) => error,
  );
  return (error as AggregateError).errors?.[0] ?? error;
}
