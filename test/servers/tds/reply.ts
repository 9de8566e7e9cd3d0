import type { TdsError } from './errors.js';
import { COLLATION, type SqlType, typeFor, type Value, writeType, writeValue } from './types.js';
import { type ReplyStream, TDS, Writer } from './wire.js';

/** Bits of DONE's status. */
export const DONE = { more: 1, error: 2, count: 0x10, attention: 0x20 } as const;

/** Kinds of ENVCHANGE that this server sends. */
export const CHANGE = {
  database: 1,
  language: 2,
  packetSize: 4,
  collation: 7,
  begin: 8,
  commit: 9,
  rollback: 10,
  reset: 18,
} as const;

/** CurCmd of DONE, by the verb of a statement. */
const COMMANDS: Readonly<Record<string, number>> = {
  SELECT: 0xc1,
  INSERT: 0xc3,
  DELETE: 0xc4,
  UPDATE: 0xc5,
  CREATE: 0xc6,
  DROP: 0xc7,
  BEGIN: 0xd4,
  COMMIT: 0xd5,
  ROLLBACK: 0xd6,
  SAVE: 0xd7,
  EXEC: 0xe0,
  BULK: 0xf0,
};

export interface Column {
  readonly name: string;
  readonly type: SqlType;
  readonly nullable: boolean;
  readonly identity: boolean;
}

/** Puts the tokens of one answer together. The last DONE is known only when nothing follows it. */
export class Reply {
  #pending: { token: number; status: number; command: number; count: bigint } | null = null;
  #columns: Column[] = [];
  /** Above 0 while a procedure runs: its statements are done "in proc". */
  depth = 0;

  constructor(
    readonly stream: ReplyStream,
    private readonly version: number,
    private readonly serverName: string,
  ) {}

  #put(bytes: Buffer): void {
    this.#flush(true);
    this.stream.write(bytes);
  }

  #flush(more: boolean): void {
    if (this.#pending === null) return;
    const { token, status, command, count } = this.#pending;
    this.#pending = null;
    const out = new Writer()
      .u8(token)
      .u16(more ? status | DONE.more : status)
      .u16(command);
    if (this.version >= TDS.v72) out.u64(count);
    else out.u32(Number(count));
    this.stream.write(out.bytes());
  }

  /** Ends a statement. */
  done(verb: string, count: number | null = null, status = 0): void {
    this.#flush(true);
    this.#pending = {
      token: this.depth > 0 ? 0xff : 0xfd,
      status: status | (count === null ? 0 : DONE.count),
      command: COMMANDS[verb] ?? 0xfd,
      count: BigInt(count ?? 0),
    };
  }

  /** Ends a procedure. */
  doneProc(status = 0): void {
    this.#flush(true);
    this.#pending = { token: this.depth > 0 ? 0xff : 0xfe, status, command: 0xe0, count: 0n };
  }

  /** Puts SESSIONSTATE right before the last DONE. */
  state(bytes: Buffer): void {
    if (this.#pending === null) this.done('');
    this.stream.write(bytes);
  }

  /** Ends the message. */
  end(): void {
    if (this.#pending === null) this.done('');
    this.#flush(false);
    this.stream.end();
  }

  /** Ends the message of a request that an Attention stopped. Its acknowledgement is a message of its own. */
  endCancelled(): void {
    this.depth = 0;
    this.done('', null, DONE.error);
    this.end();
  }

  /** Raw bytes of whole tokens. */
  raw(bytes: Buffer): void {
    this.#put(bytes);
  }

  change(kind: number, now: string | Buffer, before: string | Buffer): void {
    const inside = new Writer().u8(kind);
    for (const value of [now, before]) {
      if (typeof value === 'string') inside.text(value, 1);
      else inside.u8(value.length).raw(value);
    }
    const body = inside.bytes();
    this.#put(new Writer().u8(0xe3).u16(body.length).raw(body).bytes());
  }

  transaction(kind: number, descriptor: bigint): void {
    const bytes = Buffer.alloc(8);
    bytes.writeBigUInt64LE(descriptor);
    const none = Buffer.alloc(0);
    this.change(kind, kind === CHANGE.begin ? bytes : none, kind === CHANGE.begin ? none : bytes);
  }

  error(error: TdsError): void {
    this.#message(0xaa, error.number, error.state, error.severity, error.message, error.line, error.procedure);
  }

  info(number: number, text: string, { state = 1, severity = 0, line = 1, procedure = '' } = {}): void {
    this.#message(0xab, number, state, severity, text, line, procedure);
  }

  #message(
    token: number,
    number: number,
    state: number,
    severity: number,
    text: string,
    line: number,
    procedure: string,
  ): void {
    const inside = new Writer().u32(number).u8(state, severity).text(text.slice(0, 4000), 2);
    inside.text(this.serverName, 1).text(procedure, 1);
    if (this.version >= TDS.v72) inside.u32(line);
    else inside.u16(line);
    const body = inside.bytes();
    this.#put(new Writer().u8(token).u16(body.length).raw(body).bytes());
  }

  metadata(columns: readonly Column[]): void {
    this.#columns = columns.map((column) => ({ ...column, type: typeFor(column.type, this.version) }));
    const out = new Writer().u8(0x81).u16(columns.length);
    for (const { name, type, nullable, identity } of this.#columns) {
      this.#userType(out);
      // Bit 1 is "may be null", 8 is "updateable".
      out.u16((nullable ? 1 : 0) | 8 | (identity ? 0x10 : 0));
      writeType(out, type, nullable);
      if (['text', 'ntext', 'image'].includes(type.name)) {
        if (this.version >= TDS.v72) out.u8(1).text('', 2);
        else out.text('', 2);
      }
      out.text(name, 1);
    }
    this.#put(out.bytes());
  }

  #userType(out: Writer): void {
    if (this.version >= TDS.v72) out.u32(0);
    else out.u16(0);
  }

  row(values: readonly Value[]): void {
    const out = new Writer();
    const compressed = this.version >= TDS.v73b && values.some((value) => value === null);
    out.u8(compressed ? 0xd2 : 0xd1);
    if (compressed) {
      const nulls = Buffer.alloc(Math.ceil(values.length / 8));
      values.forEach((value, i) => {
        if (value === null) nulls[i >> 3] |= 1 << (i & 7);
      });
      out.raw(nulls);
    }
    this.#columns.forEach(({ type, nullable }, i) => {
      if (!compressed || values[i] !== null) writeValue(out, type, nullable, values[i]);
    });
    this.#put(out.bytes());
  }

  returnStatus(value: number): void {
    this.#put(new Writer().u8(0x79).u32(value).bytes());
  }

  returnValue(ordinal: number, name: string, type: SqlType, value: Value): void {
    const shown = typeFor(type, this.version);
    const out = new Writer().u8(0xac).u16(ordinal).text(name, 1).u8(1);
    this.#userType(out);
    out.u16(0);
    writeType(out, shown, true);
    writeValue(out, shown, true, value);
    this.#put(out.bytes());
  }

  /** The tokens of a session at its start, or of one that was reset. */
  collation(): void {
    this.change(CHANGE.collation, COLLATION, Buffer.alloc(0));
  }
}
