/**
 * The data of the feature SESSIONRECOVERY (MS-TDS 2.2.6.4, 2.2.7.11): a session's state as its server told it, and the request to have it
 * again on another connection. What the state values mean is the server's own business. The acknowledgement holds values alone.
 */

import { Reader, type Sender, Writer } from './bytes.js';
import { readStateValues, type StateValue } from './facts.js';

/** A session's state. */
export interface RecoveryState {
  readonly database: string;
  /** Five bytes, or none. */
  readonly collation: Uint8Array;
  readonly language: string;
  readonly values: readonly StateValue[];
}

/** What a client asks to recover; both null on a first login, which asks for the feature only. */
export interface RecoveryRequest {
  /** As it was after the first login. */
  readonly initial: RecoveryState | null;
  /** As it is to be; what is empty in it is as it was. */
  readonly toBe: RecoveryState | null;
}

/** Reads the data of the feature in a LOGIN7. */
export function readRecoveryRequest(data: Uint8Array): RecoveryRequest {
  if (data.length === 0) return { initial: null, toBe: null };
  const reader = recoveryReader(data, 'client');
  return { initial: readState(reader), toBe: readState(reader) };
}

/** Reads the data of its acknowledgement: the state after a first login. */
export const readRecoveryAck = (data: Uint8Array): StateValue[] => readStateValues(recoveryReader(data, 'server'));

const recoveryReader = (data: Uint8Array, sender: Sender): Reader =>
  new Reader(data, 0, data.length, sender, 'the data of SESSIONRECOVERY');

function readState(reader: Reader): RecoveryState {
  const length = reader.ulong();
  const at = reader.skip(length);
  const state = new Reader(reader.bytes, at, at + length, reader.sender, reader.what);
  return {
    database: state.bVarchar(),
    collation: state.bVarbyte(),
    language: state.bVarchar(),
    values: readStateValues(state),
  };
}

/** The data of the feature in a LOGIN7. */
export function writeRecoveryRequest({ initial, toBe }: RecoveryRequest): Uint8Array {
  const out = new Writer();
  for (const state of [initial, toBe]) {
    if (state === null) continue;
    const { database, collation, language, values } = state;
    const at = out.length;
    out.ulong(0).bVarchar(database).bVarbyte(collation).bVarchar(language).raw(writeStateValues(values));
    out.patchUlong(at, out.length - at - 4);
  }
  return out.done();
}

/** State values as they stand in all of these places, and in SESSIONSTATE. */
export function writeStateValues(values: readonly StateValue[]): Uint8Array {
  const out = new Writer();
  for (const { id, value } of values) {
    out.byte(id);
    if (value.length < 0xff) out.byte(value.length);
    else out.byte(0xff).ulong(value.length);
    out.raw(value);
  }
  return out.done();
}
