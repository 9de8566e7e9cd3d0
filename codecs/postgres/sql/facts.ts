/**
 * What one SQL statement may do, as far as its text alone tells.
 *
 * Everything here is plain frozen data without offsets into the text, so it may be cached by text and shared by all
 * sessions.
 */

/** The settings of a session that change how its SQL text is read. */
export interface SqlEnvironment {
  /** The server's `standard_conforming_strings` (reported as ParameterStatus). Off: '' strings know backslashes. */
  readonly standardConformingStrings: boolean;
  /**
   * `client_encoding` as the server reports it; UTF8 when absent. In an encoding of UNSAFE_ENCODINGS a text with bytes
   * above 0x7f cannot be read byte by byte and is opaque as a whole.
   */
  readonly encoding?: string;
}

/**
 * read: no durable effect, safe to repeat as far as the text tells (see isPlainRead for the functions it calls).
 * session: idempotent state of the session (SET, LISTEN, PREPARE, ...).
 * write: may make something durable; rolled back with its transaction.
 * cursor: DECLARE or CLOSE.
 * copyIn / copyOut: COPY FROM STDIN, and COPY TO STDOUT of a plain relation or of a query that is a read.
 * opaque: may commit inside (CALL, DO), or was not understood.
 */
export type Effect =
  | 'read'
  | 'session'
  | 'write'
  | 'begin'
  | 'commit'
  | 'rollback'
  | 'savepoint'
  | 'prepareTransaction'
  | 'commitPrepared'
  | 'rollbackPrepared'
  | 'copyIn'
  | 'copyOut'
  | 'cursor'
  | 'opaque';

export type IsolationLevel = 'serializable' | 'repeatable read' | 'read committed' | 'read uncommitted';

/** Modes of BEGIN, START TRANSACTION, SET TRANSACTION and SET SESSION CHARACTERISTICS; absent where not given. */
export interface TransactionModes {
  readonly isolation?: IsolationLevel;
  readonly readOnly?: boolean;
  readonly deferrable?: boolean;
}

export interface SetFact {
  /**
   * The parameter's name, lower case: SET ROLE is `role`, SET SESSION AUTHORIZATION `session_authorization`, SET TIME
   * ZONE `timezone`, SET NAMES `client_encoding`, SET SCHEMA `search_path`, SET XML OPTION `xmloption`, SET TRANSACTION
   * SNAPSHOT `transaction_snapshot`. Three are no parameters: `transaction` (SET TRANSACTION), `session
   * characteristics` and `constraints` (SET CONSTRAINTS). RESET ALL is `all`.
   */
  readonly name: string;
  /**
   * session: survives the transaction when it commits. local: SET LOCAL. transaction: SET TRANSACTION, SET CONSTRAINTS and
   * the parameters transaction_isolation, transaction_read_only and transaction_deferrable.
   */
  readonly scope: 'session' | 'local' | 'transaction';
  /** reset: RESET x and SET x TO DEFAULT. */
  readonly kind: 'set' | 'reset' | 'reset-all';
}

/** A call of set_config(), as far as its arguments are literals. */
export interface SetConfigFact {
  /** Lower case; absent where the argument is no literal. */
  readonly name?: string;
  /** The third argument, is_local; absent where it is no literal. */
  readonly local?: boolean;
}

export interface StatementFacts {
  /** First keyword(s) in upper case: SELECT, BEGIN, CREATE TABLE, PREPARE TRANSACTION, ... '' for an empty text. */
  readonly verb: string;
  readonly effect: Effect;
  /**
   * False where the gateway must not wrap the statement in BEGIN..COMMIT: it is refused in a transaction block, or (CALL,
   * DO) would behave otherwise there, or may be refused depending on its target (REINDEX and CLUSTER of a partitioned
   * table).
   */
  readonly transactional: boolean;
  /** Repeating it after an unknown outcome ends in the same state (VACUUM, REINDEX, ANALYZE, CHECKPOINT, ...). */
  readonly idempotent: boolean;
  /** CREATE, ALTER or DROP of something that a Catalogue knows of, which so may be stale afterwards. */
  readonly changesCatalogue: boolean;

  /** Names of called functions, folded as the server folds them, without schema (that is among `names`). */
  readonly functions: readonly string[];
  /** All other identifiers: relations, columns, aliases, types, schemas. Folded, each once. */
  readonly names: readonly string[];
  /** Operator symbols, each once. */
  readonly operators: readonly string[];
  /** A name is not known for sure: not ASCII in an encoding other than UTF8, or too long for the server. */
  readonly uncertainNames: boolean;

  readonly hasModifyingCte: boolean;
  /** Takes row or table locks: FOR UPDATE / SHARE, LOCK. May assign a transaction id, yet has no durable effect. */
  readonly forUpdate: boolean;
  readonly selectInto: boolean;
  readonly explainAnalyze: boolean;

  /** COMMIT / ROLLBACK AND CHAIN. */
  readonly chain: boolean;
  readonly modes?: TransactionModes;
  readonly savepoint?: { readonly op: 'savepoint' | 'release' | 'rollbackTo'; readonly name: string };
  /** PREPARE TRANSACTION, COMMIT PREPARED, ROLLBACK PREPARED. */
  readonly gid?: string;

  /** The session effect ends with the transaction: SET LOCAL, SET TRANSACTION, SET CONSTRAINTS. */
  readonly local: boolean;
  readonly set?: SetFact;
  readonly listen?: string;
  readonly unlisten?: string;
  readonly prepare?: string;
  /** EXECUTE name: the effect is 'write' until the caller looks the prepared statement's own facts up. */
  readonly execute?: string;
  readonly deallocate?: string;
  /** DEALLOCATE ALL, CLOSE ALL (where `deallocate` / `closeCursor` is 'all') as against an object named "all". */
  readonly all: boolean;
  readonly discard?: 'all' | 'plans' | 'sequences' | 'temp';
  readonly declareCursor?: { readonly name: string; readonly hold: boolean };
  readonly closeCursor?: string;
  /** A temporary table, view or sequence, or anything created in pg_temp. */
  readonly tempTable?: { readonly name: string; readonly onCommitDrop: boolean };
  readonly dropRelation?: readonly string[];
  /** Called functions that touch the state of the session: keys of SESSION_FUNCTIONS. */
  readonly sessionFunctions: readonly string[];
  readonly setConfigs?: readonly SetConfigFact[];
  /** COPY: which way, and whether the other end is the client or the server's file system or a program of its. */
  readonly copy?: { readonly direction: 'in' | 'out'; readonly peer: 'client' | 'file' | 'program' };

  /** The statement inside PREPARE, EXPLAIN, DECLARE and COPY (query); its names and functions are the outer's too. */
  readonly inner?: StatementFacts;
}

/**
 * Client encodings in which a byte after the lead byte may be ASCII (a quote, a backslash, ...), so that a text cannot
 * be read byte by byte. PostgreSQL allows them on the client side only ("Supported Client/Server Encodings").
 */
export const UNSAFE_ENCODINGS: ReadonlySet<string> = new Set([
  'SJIS',
  'SHIFT_JIS_2004',
  'BIG5',
  'GBK',
  'GB18030',
  'UHC',
  'JOHAB',
]);
