import { deserialize, serialize } from 'node:v8';
import type { Greeting, ServerFacts } from '../contract/index.js';
import type { Session } from '../session/session.js';

/**
 * What a gateway tells its peer of each session, in order. The peer feeds the same inputs to a session of its own, which is pure and so
 * comes to the same state: see {@link Shadow}.
 */
export const RECORD = {
  /** A session begins: {@link Opening}. */
  open: 1,
  /** All of it as it is now: {@link Snapshot}. From here on the peer follows. */
  capsule: 2,
  /** A chunk from the client. */
  client: 3,
  /** A chunk from the server. */
  server: 4,
  /** Something else that the session was told: {@link Call}. */
  call: 5,
  /** Bytes that the client is told, which follow from no input (signs of life). */
  say: 6,
  /** The client's TCP has acknowledged so many bytes of what it was told: 8 bytes, a double. */
  acked: 7,
  /** The session is over. */
  close: 8,
  /** What was learnt of a database, for all sessions on it: {@link Facts}. The session is 0. */
  facts: 9,
  /** The connection stands still, to be moved: {@link Standstill}. Its last bytes have come, as those of the client. */
  standstill: 10,
  /** A client is connected, whether or not its session can ever be followed: {@link Mention}. The number is one of its own. */
  mention: 11,
  /** It is not any more. */
  unmention: 12,
  /** The highest epoch that is known of an address: {@link Epoch}. For the next process on this host only; the session is 0. */
  epoch: 13,
  /** From here on the one that is told this follows the sessions of this gateway, which are told anew; 8 bytes, a double: see `Statistics.follows`. */
  follow: 14,
  /** It does not any more: it is to forget them, and whatever is told of them until it is chosen again. */
  unfollow: 15,
} as const;

/** One end of a connection. */
export interface End {
  readonly address: string;
  readonly port: number;
}

/** A client's connection. */
export interface Mention {
  /** The gateway's end; the address is one that moves. */
  readonly local: End;
  readonly remote: End;
}

/** The epoch of an address. */
export interface Epoch {
  readonly address: string;
  readonly epoch: number;
}

/** What does not change in the life of a session. */
export interface Opening {
  readonly listener: string;
  /** The gateway's address on this connection. */
  readonly address: string;
  readonly greeting: Extract<Greeting, { kind: 'session' }>;
  /** The client's key for cancelling, hex. */
  readonly cancelKey: string;
  /** What a survivor's kernel must know of the connection; null when it cannot be moved. */
  readonly tcp: unknown;
  /** The client was told nothing that does not follow from what came here. */
  readonly durable: boolean;
  /** Its host acknowledges the client's bytes only when they are safe, so that nothing is lost with it. */
  readonly held: boolean;
  /** What is to be added to the counts of this host's kernel for those of {@link Snapshot}; null where nobody holds the connection. */
  readonly kept: { readonly received: number; readonly written: number } | null;
}

/** A connection that stands still. */
export interface Standstill {
  /** As in {@link Opening}, as it is now. */
  readonly tcp: unknown;
  /** Bytes that the client was or will be told, as its own gateway counts them. */
  readonly said: number;
  /** How many of the last of these surely never left. */
  readonly unsent: number;
}

/** Where tokens of a session come from, see `Origin` of the host's cluster. */
export interface PlainOrigin {
  readonly server: string;
  readonly facts: ServerFacts;
  readonly backendId: string;
}

/** A session as it tells of itself, at a moment between two inputs. */
export interface SessionSnapshot {
  /** `Session.capsule`. */
  readonly capsule: unknown;
  /** Bytes of the client that it was given so far. */
  readonly received: number;
  readonly origin: PlainOrigin | null;
}

/** The same with what its connection knows. */
export interface Snapshot extends SessionSnapshot {
  /**
   * Its host may have acknowledged the first so many bytes of the client before it began to hold acknowledgements: without them nobody can go on, and
   * the client will not send them again. 0 where none are held.
   */
  readonly promised: number;
  /** Bytes that the client was or will be told so far. */
  readonly said: number;
  /** The last of these bytes, which its TCP has not acknowledged; those that its kernel was not given are all among them. */
  readonly unsaid: readonly Uint8Array[];
}

/** Calls of a session besides bytes, which the host makes. */
export type Followed =
  | 'asking'
  | 'committed'
  | 'notCommitted'
  | 'unknown'
  | 'cannotContinue'
  | 'restored'
  | 'unavailable'
  | 'cancel'
  | 'intent'
  | 'lost'
  | 'proceed';

const FOLLOWED: ReadonlySet<string> = new Set<Followed>([
  'asking',
  'committed',
  'notCommitted',
  'unknown',
  'cannotContinue',
  'restored',
  'unavailable',
  'cancel',
  'intent',
  'lost',
  'proceed',
]);

/** A call with its arguments, plain data. */
export type Call = { [K in Followed]: readonly [K, ...Parameters<Session[K]>] }[Followed];

/** What was learnt of a database. */
export interface Facts {
  readonly cluster: string;
  readonly database: string;
  readonly facts: unknown;
}

/** Plain data as bytes. Maps, sets, big integers and shared references survive. */
export function pack(value: Opening | Snapshot | Standstill | Call | Epoch | Facts | Mention): Uint8Array {
  return serialize(value);
}

/** The data that {@link pack} made bytes of. Throws when they are something else. */
export function unpack<T extends Opening | Snapshot | Standstill | Call | Epoch | Facts | Mention>(
  bytes: Uint8Array,
): T {
  return deserialize(bytes) as T;
}

/** A call of a peer; throws when it is none that sessions know. */
export function unpackCall(bytes: Uint8Array): Call {
  const call = unpack<Call>(bytes);
  if (!Array.isArray(call) || !FOLLOWED.has(call[0])) throw new Error(`a call that sessions do not know`);
  return call;
}

/** A position as the bytes of a record. */
export function packPosition(position: number): Uint8Array {
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setFloat64(0, position);
  return bytes;
}

/** The position that {@link packPosition} made bytes of. */
export function unpackPosition(bytes: Uint8Array): number {
  if (bytes.length !== 8) throw new Error('a position of a wrong length');
  return new DataView(bytes.buffer, bytes.byteOffset).getFloat64(0);
}
