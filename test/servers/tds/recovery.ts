import type { Session } from './session.js';
import { Writer } from './wire.js';

/** The ids of the state that this server keeps. Their meanings are its own, as SQL Server's are. */
const STATE = { options: 0, lockTimeout: 9, contextInfo: 10 } as const;

function section(out: Writer, id: number, value: Buffer): void {
  out.u8(id);
  if (value.length < 255) out.u8(value.length);
  else out.u8(0xff).u32(value.length);
  out.raw(value);
}

/** The parts of a session's state that a login can bring back. */
export function stateOf(session: Session): Map<number, Buffer> {
  const { options, lockTimeout, isolation, contextInfo } = session.settings;
  const first = Buffer.alloc(5);
  first.writeUInt32LE(options);
  first[4] = isolation;
  const second = Buffer.alloc(4);
  second.writeInt32LE(lockTimeout);
  return new Map([
    [STATE.options, first],
    [STATE.lockTimeout, second],
    [STATE.contextInfo, contextInfo === null ? Buffer.alloc(0) : Buffer.from(contextInfo.slice(2), 'hex')],
  ]);
}

/** FEATUREEXTACK with the state at the start. */
export function featureAck(session: Session): Buffer {
  const data = new Writer();
  const state = stateOf(session);
  session.toldState = state;
  for (const [id, value] of state) section(data, id, value);
  const body = data.bytes();
  return new Writer().u8(0xae, 1).u32(body.length).raw(body).u8(0xff).bytes();
}

/** SESSIONSTATE with what changed since it was told last; null where nothing did. */
export function stateToken(session: Session): Buffer | null {
  const state = stateOf(session);
  const recoverable = session.recoverable;
  const changed = [...state].filter(([id, value]) => session.toldState?.get(id)?.equals(value) !== true);
  if (changed.length === 0 && recoverable === session.toldRecoverable) return null;
  // That it may not be recovered, or may again, is told with some part of the state.
  const parts = changed.length > 0 ? changed : [[STATE.options, state.get(STATE.options)!] as const];
  session.toldState = state;
  session.toldRecoverable = recoverable;
  const out = new Writer().u32(++session.stateSequence).u8(recoverable ? 1 : 0);
  for (const [id, value] of parts) section(out, id, value);
  const body = out.bytes();
  return new Writer().u8(0xe4).u32(body.length).raw(body).bytes();
}

/** What a login brings back of an earlier session. */
export interface Recovered {
  readonly database: string;
  readonly state: ReadonlyMap<number, Buffer>;
}

/** Reads the data of SESSIONRECOVERY; null at a first login, which brings none. */
export function readRecovery(data: Buffer): Recovered | null {
  if (data.length === 0) return null;
  let database = '';
  const state = new Map<number, Buffer>();
  let at = 0;
  // What it was at first, and then what differs.
  for (let block = 0; block < 2; block++) {
    const end = at + 4 + data.readUInt32LE(at);
    at += 4;
    const text = () => {
      const length = data[at] * 2;
      at += 1 + length;
      return data.toString('utf16le', at - length, at);
    };
    database = text() || database;
    at += 1 + data[at];
    text();
    while (at < end) {
      const id = data[at++];
      let length = data[at++];
      if (length === 0xff) {
        length = data.readUInt32LE(at);
        at += 4;
      }
      state.set(id, data.subarray(at, at + length));
      at += length;
    }
  }
  return { database, state };
}

/** The settings that a recovered state stands for. */
export function settingsFrom(state: ReadonlyMap<number, Buffer>): Partial<Session['settings']> {
  const first = state.get(STATE.options);
  const second = state.get(STATE.lockTimeout);
  const third = state.get(STATE.contextInfo);
  return {
    ...(first === undefined ? {} : { options: first.readUInt32LE(0), isolation: first[4] }),
    ...(second === undefined ? {} : { lockTimeout: second.readInt32LE(0) }),
    ...(third === undefined ? {} : { contextInfo: third.length === 0 ? null : `\\x${third.toString('hex')}` }),
  };
}
