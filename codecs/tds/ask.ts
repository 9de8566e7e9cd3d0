/** The gateway's own questions to a server, over a connection of its own or one that is being restored. */

import { type Exchange, ProtocolViolation } from '../../core/contract/index.js';
import { unicode } from './bytes.js';
import {
  type Column,
  envChangeType,
  integerOf,
  type ReturnValue,
  readColumns,
  readMessage,
  readReturnStatus,
  readReturnValue,
  readRow,
  type ServerMessage,
} from './facts.js';
import { EOM, HEADER_LENGTH, packets, RPC, SQL_BATCH } from './packet.js';
import { writeSqlBatch } from './request.js';
import { COLMETADATA, DONEPROC, ENVCHANGE, ERROR, RETURNSTATUS, RETURNVALUE, TokenReader } from './tokens.js';
import { type Dialect, TDS_7_2 } from './version.js';

/** What a server answered. */
export interface Told {
  /** Rows of all results. */
  readonly rows: readonly (readonly Value[])[];
  readonly errors: readonly ServerMessage[];
  /** Types of the ENVCHANGEs. */
  readonly changes: readonly number[];
  /** What procedures returned. */
  readonly statuses: readonly number[];
  /** The return values of each call of an RPC, null where it failed. */
  readonly calls: readonly (readonly ReturnValue[] | null)[];
}

/** A value with its column. */
export interface Value {
  readonly column: Column;
  readonly bytes: Uint8Array | null;
}

/** How a connection speaks. */
export interface Speech {
  readonly dialect: Dialect;
  readonly packetSize: number;
}

/** Reads all packets of a message from a server; `first` is sent before. Gives the payload and the SPID. */
export function* readMessageOf(first: Uint8Array | undefined): Exchange<{ payload: Uint8Array; spid: number }> {
  const parts: Uint8Array[] = [];
  let packet = (yield { want: 'frame', send: first }) as Uint8Array;
  for (;;) {
    parts.push(packet.subarray(HEADER_LENGTH));
    if ((packet[1] & EOM) !== 0) break;
    packet = (yield { want: 'frame' }) as Uint8Array;
  }
  return { payload: parts.length === 1 ? parts[0] : Buffer.concat(parts), spid: (packet[4] << 8) | packet[5] };
}

/** Runs a batch outside of a transaction. */
export function askBatch(text: string, speech: Speech): Exchange<Told> {
  const payload = speech.dialect >= TDS_7_2 ? writeSqlBatch(0n, text) : unicode(text);
  return ask(SQL_BATCH, payload, speech);
}

/** Runs the calls of an RPC message. */
export const askRpc = (payload: Uint8Array, speech: Speech): Exchange<Told> => ask(RPC, payload, speech);

function* ask(type: number, request: Uint8Array, { dialect, packetSize }: Speech): Exchange<Told> {
  const { payload } = yield* readMessageOf(packets(type, request, packetSize));
  return readTold(payload, dialect);
}

/** Reads the tokens of a whole answer. */
export function readTold(payload: Uint8Array, dialect: Dialect): Told {
  const rows: Value[][] = [];
  const errors: ServerMessage[] = [];
  const changes: number[] = [];
  const statuses: number[] = [];
  const calls: (ReturnValue[] | null)[] = [];
  let returned: ReturnValue[] = [];
  let failed = false;
  let columns: readonly Column[] = [];
  const reader = new TokenReader(dialect);
  reader.wholeRows = true;
  reader.push(payload, 0, payload.length, {
    token: (type, bytes, start, end) => {
      if (type === COLMETADATA) columns = readColumns(bytes, start, end, { dialect }) ?? columns;
      else if (type === ENVCHANGE) changes.push(envChangeType(bytes, start));
      else if (type === ERROR) {
        errors.push(readMessage(bytes, start, end, dialect));
        failed = true;
      } else if (type === RETURNSTATUS) statuses.push(readReturnStatus(bytes, start, end));
      else if (type === RETURNVALUE) returned.push(readReturnValue(bytes, start, end, { dialect }));
      else if (type === DONEPROC) {
        calls.push(failed ? null : returned);
        returned = [];
        failed = false;
      }
    },
    rows: () => {},
    row: (_type, bytes, start, end) => {
      const own = Uint8Array.prototype.slice.call(bytes, start, end);
      rows.push(readRow(columns, own, 0, own.length).map((value, i) => ({ column: columns[i], bytes: value })));
    },
  });
  reader.endMessage();
  return { rows, errors, changes, statuses, calls };
}

/** A value as text: of character types in UTF-16, else its digits. Null for NULL. */
export function textOf({ column, bytes }: Value): string | null {
  if (bytes === null) return null;
  switch (column.type) {
    case 0xe7:
    case 0xef:
    case 0x63:
      return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString('utf16le');
    case 0xa7:
    case 0xaf:
    case 0x23:
      return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString('latin1');
    default:
      if (![1, 2, 4, 8].includes(bytes.length))
        throw new ProtocolViolation('an answer has an unexpected type', 'server');
      return String(integerOf(bytes));
  }
}
