/**
 * What the gateway says in a server's place: tokens (MS-TDS 2.2.7) for a client, and whole messages of them. Long texts are cut, so that
 * every token keeps its two bytes of length.
 */

import { Writer } from './bytes.js';
import {
  DONE_ATTN,
  DONE_ERROR,
  ENV_BEGIN,
  ENV_COLLATION,
  type ENV_COMMIT,
  ENV_DATABASE,
  type ENV_DEFECT,
  ENV_LANGUAGE,
  ENV_PACKETSIZE,
  ENV_RESET,
  type ENV_ROLLBACK,
  type ENV_TRANSACTION_ENDED,
  type EnvChange,
  FEATURE_TERMINATOR,
  type Feature,
  type ServerMessage,
} from './facts.js';
import { packets, TABULAR_RESULT } from './packet.js';
import {
  DONE,
  type DONEINPROC,
  type DONEPROC,
  ENVCHANGE,
  ERROR,
  FEATUREEXTACK,
  INFO,
  LOGINACK,
  RETURNSTATUS,
} from './tokens.js';
import { type Dialect, dialectOf, TDS_7_1, TDS_7_2 } from './version.js';

/** A message of SQL Server is at most so long; what is longer is cut. */
const MAX_MESSAGE = 4000;

/** What an error or information of the gateway's own says; what is left out is 1, or empty. */
export type MessageParts = Pick<ServerMessage, 'number' | 'class' | 'message'> & Partial<ServerMessage>;

function message(type: number, parts: MessageParts, dialect: Dialect): Uint8Array {
  const { number, state = 1, message: text, server = '', procedure = '', line = 1 } = parts;
  const out = new Writer().byte(type).ushort(0).ulong(number).byte(state).byte(parts.class);
  out.usVarchar(text, MAX_MESSAGE).bVarchar(server).bVarchar(procedure);
  if (dialect >= TDS_7_2) out.ulong(line);
  else out.ushort(line);
  return out.patchUshort(1, out.length - 3).done();
}

/** ERROR. A class of 20 and more ends the connection. */
export const error = (parts: MessageParts, dialect: Dialect): Uint8Array => message(ERROR, parts, dialect);

/** INFO; its class is at most 10. */
export const info = (parts: MessageParts, dialect: Dialect): Uint8Array => message(INFO, parts, dialect);

/** What a DONE says; what is left out is 0. */
export interface DoneParts {
  readonly type?: typeof DONE | typeof DONEPROC | typeof DONEINPROC;
  readonly status?: number;
  readonly curCmd?: number;
  readonly rowCount?: bigint;
}

/** DONE, DONEPROC or DONEINPROC. */
export function done(parts: DoneParts, dialect: Dialect): Uint8Array {
  const { type = DONE, status = 0, curCmd = 0, rowCount = 0n } = parts;
  const out = new Writer().byte(type).ushort(status).ushort(curCmd);
  return (dialect >= TDS_7_2 ? out.ulonglong(rowCount) : out.ulong(Number(rowCount & 0xffffffffn))).done();
}

/** Acknowledges an Attention. */
export const attentionDone = (dialect: Dialect): Uint8Array => done({ status: DONE_ATTN }, dialect);

/** An error that answers a request, with the DONE that ends the answer. */
export const errorAnswer = (parts: MessageParts, dialect: Dialect): Uint8Array =>
  Buffer.concat([error(parts, dialect), done({ status: DONE_ERROR }, dialect)]);

/** RETURNSTATUS. */
export const returnStatus = (status: number): Uint8Array => new Writer().byte(RETURNSTATUS).ulong(status).done();

// ---------------------------------------------------------------------------------------------------------- envchange

function envChange(type: number, write: (out: Writer) => unknown): Uint8Array {
  const out = new Writer().byte(ENVCHANGE).ushort(0).byte(type);
  write(out);
  return out.patchUshort(1, out.length - 3).done();
}

/** An ENVCHANGE whose values are texts: database, language, packet size (in digits). */
export const textChange = (
  type: typeof ENV_DATABASE | typeof ENV_LANGUAGE | typeof ENV_PACKETSIZE,
  newValue: string,
  oldValue: string,
): Uint8Array => envChange(type, (out) => out.bVarchar(newValue).bVarchar(oldValue));

/** The collation, five bytes; none before. */
export const collationChange = (newValue: Uint8Array, oldValue: Uint8Array = NOTHING): Uint8Array =>
  envChange(ENV_COLLATION, (out) => out.bVarbyte(newValue).bVarbyte(oldValue));

function descriptorBytes(descriptor: bigint): Uint8Array {
  return new Writer().ulonglong(descriptor).done();
}

/** A transaction has begun. */
export const beginChange = (descriptor: bigint): Uint8Array =>
  envChange(ENV_BEGIN, (out) => out.bVarbyte(descriptorBytes(descriptor)).byte(0));

/** A transaction is over: committed, rolled back, left to DTC, or ended in another session. */
export const endChange = (
  type: typeof ENV_COMMIT | typeof ENV_ROLLBACK | typeof ENV_DEFECT | typeof ENV_TRANSACTION_ENDED,
  descriptor: bigint,
): Uint8Array => envChange(type, (out) => out.byte(0).bVarbyte(descriptorBytes(descriptor)));

/** Acknowledges RESETCONNECTION or RESETCONNECTIONSKIPTRAN; it is the first token of an answer. */
export const resetChange = (): Uint8Array => envChange(ENV_RESET, (out) => out.byte(0).byte(0));

/** A change of a transaction as it was read, with other descriptors. */
export const mappedChange = ({ type }: EnvChange, newDescriptor: bigint, oldDescriptor: bigint): Uint8Array =>
  envChange(type, (out) => {
    out.bVarbyte(newDescriptor === 0n ? NOTHING : descriptorBytes(newDescriptor));
    out.bVarbyte(oldDescriptor === 0n ? NOTHING : descriptorBytes(oldDescriptor));
  });

// -------------------------------------------------------------------------------------------------------------- login

/** LOGINACK. */
export function loginAck(
  tdsVersion: number,
  progName: string,
  progVersion: readonly [number, number, number],
): Uint8Array {
  const dialect = dialectOf(tdsVersion);
  const out = new Writer().byte(LOGINACK).ushort(0).byte(1);
  // Plain 7.1 and 7.0 have a form of their own (2.2.7.14).
  if (tdsVersion === 0x71000000 || dialect < TDS_7_1) out.ulongBE(0x07000000 | ((dialect & 0x0f) << 16));
  else out.ulongBE(tdsVersion);
  out.bVarchar(progName).byte(progVersion[0]).byte(progVersion[1]).ushortBE(progVersion[2]);
  return out.patchUshort(1, out.length - 3).done();
}

/** FEATUREEXTACK; of none, nothing at all is sent. */
export function featureExtAck(features: readonly Feature[]): Uint8Array {
  if (features.length === 0) return NOTHING;
  const out = new Writer().byte(FEATUREEXTACK);
  for (const { id, data } of features) out.byte(id).ulong(data.length).raw(data);
  return out.byte(FEATURE_TERMINATOR).done();
}

/** What a client is told when it is let in. */
export interface LoginReply {
  /** As LOGIN7 has it. */
  readonly tdsVersion: number;
  readonly database: string;
  readonly language: string;
  readonly collation: Uint8Array;
  readonly packetSize: number;
  readonly progName: string;
  readonly progVersion: readonly [number, number, number];
  readonly features: readonly Feature[];
  /** Name of the server in its messages. */
  readonly server: string;
}

/** The tokens that let a client in, in the order of SQL Server (2.2.2.2). */
export function loginReply(reply: LoginReply): Uint8Array {
  const { database, language, server } = reply;
  const dialect = dialectOf(reply.tdsVersion);
  const told = (number: number, text: string) => info({ number, class: 0, message: text, server }, dialect);
  const size = String(reply.packetSize);
  return Buffer.concat([
    textChange(ENV_DATABASE, database, ''),
    told(5701, `Changed database context to '${database}'.`),
    collationChange(reply.collation),
    textChange(ENV_LANGUAGE, language, ''),
    told(5703, `Changed language setting to ${language}.`),
    loginAck(reply.tdsVersion, reply.progName, reply.progVersion),
    textChange(ENV_PACKETSIZE, size, size),
    featureExtAck(reply.features),
    done({}, dialect),
  ]);
}

/** Tokens as one message of a server, in packets of that size. */
export const serverMessage = (tokens: Uint8Array, packetSize: number, spid = 0): Uint8Array =>
  packets(TABULAR_RESULT, tokens, packetSize, 0, spid);

const NOTHING = new Uint8Array(0);
