/** How far an error reaches. */
export type Reach =
  /** The statement, and the batch goes on (unless XACT_ABORT is ON). */
  | 'statement'
  /** The batch; the transaction stays. */
  | 'batch'
  /** The batch and the transaction. */
  | 'transaction';

/** An error as the client sees it. */
export class TdsError extends Error {
  readonly state: number;
  readonly severity: number;
  readonly reach: Reach;
  line: number;
  procedure = '';

  constructor(
    readonly number: number,
    message: string,
    about: { severity?: number; state?: number; reach?: Reach; line?: number } = {},
  ) {
    super(message);
    const [severity, state, reach] = KNOWN[number] ?? [16, 1, 'statement'];
    this.severity = about.severity ?? severity;
    this.state = about.state ?? state;
    this.reach = about.reach ?? reach;
    this.line = about.line ?? 1;
  }
}

/** Class, state and reach of errors, where they are not 16, 1 and the statement. */
const KNOWN: Readonly<Record<number, readonly [severity: number, state: number, reach: Reach]>> = {
  102: [15, 1, 'batch'],
  105: [15, 1, 'batch'],
  113: [15, 1, 'batch'],
  137: [15, 2, 'batch'],
  195: [15, 10, 'batch'],
  201: [16, 4, 'batch'],
  207: [16, 1, 'batch'],
  208: [16, 1, 'batch'],
  209: [16, 1, 'batch'],
  229: [14, 5, 'statement'],
  241: [16, 1, 'transaction'],
  242: [16, 3, 'transaction'],
  245: [16, 1, 'transaction'],
  911: [16, 1, 'batch'],
  515: [16, 2, 'statement'],
  547: [16, 0, 'statement'],
  1205: [13, 51, 'transaction'],
  1222: [16, 51, 'statement'],
  2601: [14, 1, 'statement'],
  2627: [14, 1, 'statement'],
  2714: [16, 6, 'batch'],
  2715: [16, 6, 'batch'],
  2812: [16, 62, 'statement'],
  3701: [11, 5, 'statement'],
  3906: [16, 1, 'batch'],
  3930: [16, 1, 'batch'],
  3960: [16, 2, 'transaction'],
  3971: [16, 1, 'batch'],
  3989: [16, 1, 'batch'],
  4060: [11, 1, 'batch'],
  8115: [16, 2, 'statement'],
  8144: [16, 2, 'batch'],
  8179: [16, 2, 'batch'],
  8631: [17, 1, 'batch'],
  17187: [16, 1, 'batch'],
  18456: [14, 1, 'batch'],
};

/** An error of PostgreSQL, as its driver gives it. */
export interface PgError extends Error {
  readonly code?: string;
  readonly detail?: string;
  readonly table?: string;
  readonly schema?: string;
  readonly column?: string;
  readonly constraint?: string;
}

interface Told {
  readonly database: string;
  readonly verb: string;
  readonly snapshot: boolean;
  readonly line: number;
}

type Maker = (error: PgError, told: Told) => readonly [number: number, message: string];

function inQuotes(error: PgError, index = 0): string {
  return [...error.message.matchAll(/"([^"]*)"/g)].map((match) => match[1])[index] ?? '';
}

function named(error: PgError, { database }: Told): string {
  return `${database}.dbo.${error.table ?? ''}`;
}

/** What SQL Server says for an SQLSTATE of PostgreSQL. */
const BY_SQLSTATE: Readonly<Record<string, Maker>> = {
  '23505': (error) => {
    const key = /=\((.*)\) already exists/.exec(error.detail ?? '')?.[1] ?? '';
    const name = error.constraint ?? '';
    // PostgreSQL tells no index from a constraint: their names have to.
    if (/^(ix|ux|idx)|_idx$/i.test(name)) {
      const object = `Cannot insert duplicate key row in object 'dbo.${error.table}' with unique index '${name}'.`;
      return [2601, `${object} The duplicate key value is (${key}).`];
    }
    const kind = /_pkey$|^pk/i.test(name) ? 'PRIMARY KEY' : 'UNIQUE KEY';
    const object = `Violation of ${kind} constraint '${name}'. Cannot insert duplicate key in object`;
    return [2627, `${object} 'dbo.${error.table}'. The duplicate key value is (${key}).`];
  },
  '23502': (error, told) => [
    515,
    `Cannot insert the value NULL into column '${error.column}', table '${named(error, told)}'; column does not allow nulls. ` +
      `${told.verb} fails.`,
  ],
  '23503': (error, told) => [
    547,
    `The ${told.verb} statement conflicted with the FOREIGN KEY constraint "${error.constraint}". ` +
      `The conflict occurred in database "${told.database}", table "dbo.${error.table}".`,
  ],
  '23514': (error, told) => [
    547,
    `The ${told.verb} statement conflicted with the CHECK constraint "${error.constraint}". ` +
      `The conflict occurred in database "${told.database}", table "dbo.${error.table}".`,
  ],
  '42P01': (error, told) =>
    told.verb === 'DROP'
      ? [3701, `Cannot drop the table '${inQuotes(error)}', because it does not exist or you do not have permission.`]
      : [208, `Invalid object name '${inQuotes(error)}'.`],
  '3F000': (error) => [208, `Invalid object name '${inQuotes(error)}'.`],
  '42703': (error) => {
    const name = inQuotes(error) || (/column ([^ ]+) does/.exec(error.message)?.[1] ?? '');
    return [207, `Invalid column name '${name.split('.').at(-1)}'.`];
  },
  '42702': (error) => [209, `Ambiguous column name '${inQuotes(error)}'.`],
  '42883': (error) => {
    const name = /function ([^ (]+)\(/.exec(error.message)?.[1];
    return name === undefined
      ? [402, 'The data types are incompatible in the operator.']
      : [195, `'${name}' is not a recognized built-in function name.`];
  },
  '42601': (error) => [102, `Incorrect syntax near '${inQuotes(error)}'.`],
  '42P07': (error) => [2714, `There is already an object named '${inQuotes(error)}' in the database.`],
  '42710': (error) => [2714, `There is already an object named '${inQuotes(error)}' in the database.`],
  '42701': (error) => [
    2705,
    `Column names in each table must be unique. Column name '${inQuotes(error)}' is there twice.`,
  ],
  '42803': (error) => [8120, `A column is invalid in the select list: ${error.message}.`],
  '42804': (error) => [206, `Operand type clash: ${error.message}`],
  '42846': (error) => [529, `Explicit conversion is not allowed: ${error.message}`],
  '42501': () => [229, 'The permission was denied on the object.'],
  '22012': () => [8134, 'Divide by zero error encountered.'],
  '22003': () => [8115, 'Arithmetic overflow error converting expression to data type int.'],
  '22P02': (error) => [
    245,
    `Conversion failed when converting the varchar value '${inQuotes(error)}' to data type int.`,
  ],
  '22007': () => [241, 'Conversion failed when converting date and/or time from character string.'],
  '22008': () => [
    242,
    'The conversion of a varchar data type to a datetime data type resulted in an out-of-range value.',
  ],
  '22001': () => [8152, 'String or binary data would be truncated.'],
  '21000': () => [512, 'Subquery returned more than 1 value.'],
  '40P01': () => [
    1205,
    'Transaction was deadlocked on lock resources with another process and has been chosen as the deadlock victim. Rerun the transaction.',
  ],
  '40001': (_, told) =>
    told.snapshot
      ? [3960, `Snapshot isolation transaction aborted due to update conflict in database '${told.database}'.`]
      : [
          1205,
          'Transaction was deadlocked on lock resources with another process and has been chosen as the deadlock victim. Rerun the transaction.',
        ],
  '55P03': () => [1222, 'Lock request time out period exceeded.'],
  '25006': (_, told) => [3906, `Failed to update database "${told.database}" because the database is read-only.`],
  '57P03': () => [
    17187,
    'SQL Server is not ready to accept new client connections. Wait a few minutes before trying again.',
  ],
};

/** An error of PostgreSQL as one of SQL Server; 50000 with its own text where there is no better number. */
export function fromPg(error: PgError, told: Told): TdsError {
  const maker = BY_SQLSTATE[error.code ?? ''];
  const [number, message] = maker?.(error, told) ?? [50000, `${error.code ?? ''} ${error.message}`];
  return new TdsError(number, message, { line: told.line });
}
