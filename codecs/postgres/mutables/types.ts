/**
 * What repeating a unit with the values that the client already holds works with (ARCHITECTURE.md, "Values that the server made up").
 *
 * Three steps: `plan.ts` reads the journaled requests and their answers and asks the new server what it needs (`catalogue.ts`),
 * `rewrite.ts` learns from what the client saw and writes statements anew, both without I/O.
 */

/** A value as the client got it: its bytes, or null for NULL; in text (0) or binary (1) form. */
export interface SeenValue {
  readonly bytes: Uint8Array | null;
  readonly format: 0 | 1;
}

/** A column of a result, from RowDescription. */
export interface ResultColumn {
  readonly name: string;
  /** Oid of the table it comes from unchanged, 0 for an expression. */
  readonly table: number;
  /** Number of the table's column, 0 for an expression. */
  readonly attribute: number;
  /** Oid of the type, and its modifier. */
  readonly type: number;
  readonly modifier: number;
}

/** What fills a column that an INSERT does not name, as far as its value differs from server to server. */
export type Filler =
  /** Nothing, or what is the same everywhere. */
  | { readonly kind: 'fixed' }
  /** The default draws from this sequence (serial, identity, nextval). */
  | { readonly kind: 'sequence'; readonly sequence: number }
  /** The default is the transaction's time or derived from it (now(), CURRENT_DATE, ...) and nothing else made up. */
  | { readonly kind: 'time' }
  /** The default calls something else that differs. */
  | { readonly kind: 'volatile' };

export interface TableColumn {
  readonly name: string;
  readonly attribute: number;
  /** As format_type tells it: usable in a cast. */
  readonly typeName: string;
  readonly type: number;
  /** GENERATED ALWAYS AS IDENTITY: a value of one's own needs OVERRIDING SYSTEM VALUE. */
  readonly identityAlways: boolean;
  /** GENERATED ALWAYS AS (expression): cannot be given. */
  readonly generated: boolean;
  readonly filler: Filler;
}

/** A table, partitioned table or view. */
export interface Relation {
  readonly oid: number;
  readonly schema: string;
  readonly name: string;
  /** pg_class.relkind. */
  readonly kind: string;
  readonly columns: readonly TableColumn[];
  /** Triggers that run before a row is inserted or updated, or in place of that: they may fill any column. */
  readonly triggers: boolean;
}

export interface Sequence {
  readonly oid: number;
  readonly schema: string;
  readonly name: string;
  readonly increment: bigint;
}

/** What a type is called in a cast. */
export type TypeName = string;

/** A sequence, and how far it is. */
export interface KnownSequence extends Sequence {
  /** The last value that it issued; null when it issued none yet, or the user may not know. */
  readonly last: bigint | null;
  /** The first one that it issues, unless it was restarted. */
  readonly start: bigint;
  /** The name alone means it, by the search path. */
  readonly visible: boolean;
}

/** What was asked of a server, as plain data. */
export interface Catalogue {
  /** By name as written, see `nameKey`: oids of relations. */
  readonly named: Map<string, number>;
  readonly relations: Map<number, Relation>;
  /** Oids of relations with triggers of any kind. */
  readonly triggered: Set<number>;
  /** By text as given to nextval: oids of sequences. */
  readonly texts: Map<string, number>;
  readonly sequences: Map<number, KnownSequence>;
  /** By `type:modifier`. */
  readonly types: Map<string, string>;
  /** By `nameKey`. */
  readonly functions: Map<string, 'i' | 's' | 'v'>;
  /** Names of functions that draw from sequences which nobody can tell from outside. */
  readonly drawing: Set<string>;
  /** Whether a backslash in a plain literal stands for itself. */
  readonly standardStrings: boolean;
  /** The encoding of all texts on the connection; empty when it is not known. */
  readonly encoding: string;
}

/** What the new server says of the names in the statements; made by `catalogue.ts`. */
export interface Schema {
  /** The relation that the name means in the session (its search_path). */
  relation(schema: string | undefined, name: string): Relation | undefined;
  /** Also of relations that no statement names, when a result's column comes from there. */
  relationOf(oid: number): Relation | undefined;
  /** What `nextval('text')` means. */
  sequence(text: string): Sequence | undefined;
  sequenceOf(oid: number): Sequence | undefined;
  /** format_type of a type with its modifier; undefined where it was not asked for. */
  typeName(type: number, modifier: number): TypeName | undefined;
  /** The most volatile of all functions of this name: i(mmutable), s(table), v(olatile); undefined when there is none. */
  volatility(schema: string | undefined, name: string): 'i' | 's' | 'v' | undefined;
}

/** One statement of a request, and what the client got for it. */
export interface SeenStatement {
  /** The statement alone. */
  readonly text: string;
  /** Null when it gives no rows, or when its columns are not known. */
  readonly columns: readonly ResultColumn[] | null;
  /** Those that the client got whole. */
  readonly rows: readonly (readonly SeenValue[])[];
  /** The client got the end of the answer too: there are no more rows. */
  readonly complete: boolean;
  /**
   * Values that a single-row INSERT gave columns (by number) although its own answer does not tell: learnt from a currval or lastval
   * that the client saw afterwards.
   */
  given?: ReadonlyMap<number, SeenValue>;
}

/** What the client knows of its transaction and session; grows from statement to statement. */
export interface Knowledge {
  /** The transaction's time: SQL of type timestamptz that yields it; null while the client saw none. */
  time: string | null;
  /** By sequence (oid): what currval is to say, decimal. */
  readonly currval: Map<number, string>;
  lastval: string | null;
  /** By sequence (oid): values that the client holds, which are never to be issued again; the farthest in the sequence's direction. */
  readonly held: Map<number, bigint>;
  /** What the server told when the unit was repeated: for statements that the client sends later. */
  catalogue?: Catalogue;
  /** What that catalogue was asked for; a text for each question. */
  asked?: Set<string>;
}

/** Writes SQL that yields the value with this type: a quoted literal with a cast, or a placeholder with one. */
export type Put = (value: SeenValue, typeName: TypeName) => string;

/** Names in a statement about which the server must be asked. */
export interface Names {
  /** Targets of INSERT, UPDATE, DELETE. */
  readonly relations: readonly { readonly schema: string | undefined; readonly name: string }[];
  readonly functions: readonly { readonly schema: string | undefined; readonly name: string }[];
  /** Literal arguments of nextval, currval, setval. */
  readonly sequences: readonly string[];
}

/** What a statement draws from and asks of sequences, in its own order. */
export interface Draws {
  /**
   * Values drawn: by an INSERT through a column's filler (`attribute` > 0) or by a nextval in a SELECT (0). `values` are those that the
   * client saw, in order of rows; null when it saw none. `rows`: how many were drawn; null when not known.
   */
  readonly drawn: readonly {
    readonly sequence: number;
    readonly attribute: number;
    readonly rows: number | null;
    readonly values: readonly SeenValue[] | null;
  }[];
  /** currval of a sequence (its oid), or lastval (null), and what the client saw. */
  readonly asked: readonly { readonly sequence: number | null; readonly value: SeenValue | null }[];
}

/** How a statement is to be repeated. */
export interface Rewriting {
  /** The statement anew; null when it is repeated as it is. */
  readonly text: string | null;
  /**
   * What could not be made to agree and why, by the name of the result's column: words for the message in case the repeated answer
   * differs there, e.g. `filled by a trigger`, `random() over the rows of a table`.
   */
  readonly doubts: ReadonlyMap<string, string>;
}
