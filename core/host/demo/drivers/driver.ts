/** A row as the server wrote it: values are compared with what is stored, to the last digit. */
export type Row = Record<string, string | null>;

export type Values = (string | number | null)[];

/**
 * What clients say, with the values that come with it and the columns that come back. Each driver says it in its server's own language.
 */
export type Statement =
  | 'begin'
  | 'commit'
  | 'rollback'
  /** Makes a savepoint, and goes back to it. */
  | 'save'
  | 'back'
  /** account: balance */
  | 'own'
  /** The same, and locks the account's row. */
  | 'lock'
  /** client: entries */
  | 'history'
  /** amount, account */
  | 'add'
  /** The same with its values in the text. */
  | 'move'
  /** id of an entry: reference, at, token */
  | 'recall'
  /** reference, client, source, target, amount: id, at, token */
  | 'enter'
  /** The same with both movements as one statement. */
  | 'whole'
  /** reference, client, source, target, amount, own account, the other one, what is added to the own one, then account and amount of each leg: id, at, token; id of each leg. A whole transaction in one text. */
  | 'batch'
  /** id of an entry, account, amount: id */
  | 'leg'
  /** id of an entry, then account and amount of two legs: id of each */
  | 'legs'
  /** Divides by zero. */
  | 'fail';

/** One connection of a client. */
export interface Line {
  /** Rows of all results, in their order. Rejects with the driver's own error. */
  run(statement: Statement, values: Values): Promise<Row[]>;
  /** Says goodbye. Never rejects. */
  end(): Promise<void>;
  /** Breaks the connection: what is not answered yet is an error. */
  destroy(): void;
}

/** What an error of a driver says to its client. */
export interface ErrorMeaning {
  /** The server's own code; empty when the connection broke. */
  readonly code: string;
  /** The connection lives on. */
  readonly alive: boolean;
  /** Nobody can say whether the commit took effect. */
  readonly unknown: boolean;
  /** It is what {@link Statement} `fail` must lead to. */
  readonly division: boolean;
}

/** An unmodified driver, and where it connects to. */
export interface Driver {
  /** Its npm package. */
  readonly name: string;
  connect(): Promise<Line>;
  meaning(error: unknown): ErrorMeaning;
}
