import { TdsError } from './errors.js';
import { BY_NUMBER } from './procedures.js';
import { DONE } from './reply.js';
import { BatchEnd, type Given, type Session } from './session.js';
import { literal, readType, readValue, type Value, type WireType } from './types.js';
import { ProtocolError, type Reader, TDS } from './wire.js';

/** Reads ALL_HEADERS. Gives the transaction descriptor; null where the version has none. */
export function readHeaders(reader: Reader, version: number): bigint | null {
  if (version < TDS.v72) return null;
  const end = reader.at + reader.u32();
  let descriptor: bigint | null = null;
  while (reader.at < end) {
    const length = reader.u32();
    const kind = reader.u16();
    const data = reader.take(length - 6);
    if (kind !== 2) continue;
    if (data.length !== 12) throw new ProtocolError(`a transaction descriptor of ${data.length} bytes`);
    descriptor = data.readBigUInt64LE();
    const outstanding = data.readUInt32LE(8);
    if (outstanding !== 1) throw new ProtocolError(`${outstanding} outstanding requests without MARS`);
  }
  if (reader.at !== end) throw new ProtocolError('headers that are longer than they say');
  if (descriptor === null) throw new ProtocolError('no transaction descriptor among the headers');
  return descriptor;
}

/** One call of an RPC message. */
export interface RpcCall {
  readonly procedure: string;
  readonly given: readonly Given[];
}

/** The calls of an RPC message. */
export function readRpc(reader: Reader, version: number): RpcCall[] {
  const calls: RpcCall[] = [];
  const batch = version >= TDS.v72 ? 0xff : 0x80;
  while (reader.left > 0) {
    const length = reader.u16();
    let procedure: string;
    if (length === 0xffff) {
      const number = reader.u16();
      procedure = BY_NUMBER[number] ?? `procedure number ${number}`;
    } else {
      procedure = reader.take(length * 2).toString('utf16le');
    }
    const flags = reader.u16();
    if ((flags & ~7) !== 0) throw new ProtocolError(`RPC with flags ${flags}`);
    const given: Given[] = [];
    while (reader.left > 0 && reader.bytes[reader.at] !== batch && reader.bytes[reader.at] !== 0xfe) {
      const name = reader.text(1);
      const status = reader.u8();
      const wire = readType(reader);
      const value = readValue(reader, wire);
      given.push({ name: name === '' ? null : name, type: wire.type, value, output: (status & 1) !== 0 });
    }
    if (reader.left > 0) reader.u8();
    const plain = procedure.replaceAll(/[[\]"]/g, '').toLowerCase();
    calls.push({
      procedure: plain
        .split('.')
        .filter((part) => part !== 'dbo' && part !== '')
        .join('.'),
      given,
    });
  }
  if (calls.length === 0) throw new ProtocolError('an RPC message without a call');
  return calls;
}

export async function runRpc(session: Session, calls: readonly RpcCall[]): Promise<void> {
  for (const { procedure, given } of calls) {
    const { reply } = session;
    try {
      const { status, failed, values, types } = await session.call(procedure, given);
      reply.returnStatus(status);
      given.forEach(({ name, output }, i) => {
        if (output) reply.returnValue(i, name ?? '', types[i], values[i]);
      });
      reply.doneProc(failed ? DONE.error : 0);
    } catch (error) {
      if (error instanceof TdsError) {
        error.procedure ||= procedure;
        reply.error(error);
      } else if (!(error instanceof BatchEnd)) throw error;
      reply.doneProc(DONE.error);
    }
  }
}

// ------------------------------------------------------------------------------------------------ transactions

/** A request to the transaction manager. */
export interface TmRequest {
  readonly kind: number;
  readonly isolation: number;
  readonly name: string;
  /** Of a commit or a rollback: what begins right after it. */
  readonly next: { readonly isolation: number; readonly name: string } | null;
}

function byteText(reader: Reader): string {
  return reader.take(reader.u8()).toString('utf16le');
}

export function readTm(reader: Reader): TmRequest {
  const kind = reader.u16();
  switch (kind) {
    case 5: {
      const isolation = reader.u8();
      return { kind, isolation, name: byteText(reader), next: null };
    }
    case 7:
    case 8: {
      const name = byteText(reader);
      const flags = reader.u8();
      if ((flags & 1) === 0) return { kind, isolation: 0, name, next: null };
      const isolation = reader.u8();
      return { kind, isolation: 0, name, next: { isolation, name: byteText(reader) } };
    }
    case 9:
      return { kind, isolation: 0, name: byteText(reader), next: null };
    default:
      return { kind, isolation: 0, name: '', next: null };
  }
}

const TM_VERBS: Readonly<Record<number, string>> = { 5: 'BEGIN', 7: 'COMMIT', 8: 'ROLLBACK', 9: 'SAVE' };

export async function runTm(session: Session, { kind, isolation, name, next }: TmRequest): Promise<void> {
  const verb = TM_VERBS[kind] ?? '';
  try {
    if (kind === 5) await session.beginTransaction(name, isolation, true);
    else if (kind === 7) await session.commit(true);
    else if (kind === 8) await session.rollback(name, true);
    else if (kind === 9) await session.save(name);
    else throw new TdsError(8501, `MSDTC on server '${session.server.name}' is unavailable.`);
    // Behind a rollback to a savepoint the old transaction is still there.
    if (next !== null && session.trancount === 0) await session.beginTransaction(next.name, next.isolation, true);
    session.reply.done(verb);
  } catch (error) {
    if (!(error instanceof TdsError)) throw error;
    session.reply.error(error);
    session.reply.done(verb, null, DONE.error);
  }
}

// ------------------------------------------------------------------------------------------------ bulk load

const ROWS_AT_ONCE = 500;

/** Puts the rows of a bulk load into its table: all of them or none. */
export async function runBulk(session: Session, reader: Reader, version: number): Promise<void> {
  const { bulk, reply } = session;
  session.bulk = null;
  if (bulk === null) throw new ProtocolError('a bulk load that nothing announced');
  if (reader.u8() !== 0x81) throw new ProtocolError('a bulk load without column metadata');
  const count = reader.u16();
  const columns: { name: string; wire: WireType }[] = [];
  for (let i = 0; i < count; i++) {
    reader.take(version >= TDS.v72 ? 6 : 4);
    const wire = readType(reader);
    if (['text', 'ntext', 'image'].includes(wire.type.name)) {
      const parts = version >= TDS.v72 ? reader.u8() : 1;
      for (let part = 0; part < parts; part++) reader.text(2);
    }
    columns.push({ name: reader.text(1), wire });
  }
  const rows: Value[][] = [];
  // The end of the message ends the rows, with a DONE before it or without.
  while (reader.left > 0) {
    const token = reader.u8();
    if (token === 0xd1) rows.push(columns.map(({ wire }) => readValue(reader, wire, 'row')));
    else if (token === 0xd2) {
      const nulls = reader.take(Math.ceil(count / 8));
      rows.push(columns.map(({ wire }, i) => (nulls[i >> 3] & (1 << (i & 7)) ? null : readValue(reader, wire, 'row'))));
    } else if (token === 0xfd) reader.take(reader.left === 8 ? 8 : version >= TDS.v72 ? 12 : 8);
    else throw new ProtocolError(`token ${token} in a bulk load`);
  }
  const names = columns.map(({ name }) => `"${name.toLowerCase().replaceAll('"', '""')}"`).join(', ');
  const statements: string[] = [];
  for (let at = 0; at < rows.length; at += ROWS_AT_ONCE) {
    const some = rows
      .slice(at, at + ROWS_AT_ONCE)
      .map((row) => `(${row.map((value, i) => literal(columns[i].wire.type, value)).join(', ')})`);
    statements.push(`INSERT INTO ${bulk.table} (${names}) OVERRIDING USER VALUE VALUES ${some.join(', ')}`);
  }
  try {
    // Several statements of one text are one transaction.
    if (statements.length > 0) await session.ask(statements.join('; '));
    session.server.note('bulk', { spid: session.spid, rows: rows.length });
    reply.done('BULK', rows.length);
  } catch (error) {
    if (!(error instanceof TdsError)) throw error;
    reply.error(error);
    reply.info(3621, 'The statement has been terminated.', { state: 0 });
    reply.done('BULK', 0, DONE.error);
  }
}
