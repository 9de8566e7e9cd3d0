import { deserialize, serialize } from 'node:v8';
import type { GatewayError, LoginResult, Repetition, Request, TransactionStatus } from '../contract/index.js';
import type { FrozenRecord } from '../journal/record.js';
import type { ProofPolicy } from './proof.js';
import type { State } from './states.js';
import type { Unit } from './unit.js';

/** A whole session between two of its inputs, as plain data. Requests and records that occur in several places are the same objects in all. */
export interface Capsule {
  readonly session: FrozenSession;
  /** What `SessionCodec.freeze` told. */
  readonly codec: unknown;
}

/** {@link Unit} without its methods. */
export type FrozenUnit = Omit<Unit, 'unprovable' | 'inDoubt' | 'reset' | 'rearm' | 'goOn'>;

/** A request that waits, see `Item`. */
export interface FrozenItem {
  readonly request: Request;
  readonly input: readonly Uint8Array[];
  readonly record: FrozenRecord | null;
}

/** An answer that a request of the client waits for, see `Pending`: those of the gateway's own cannot be taken along. */
export interface FrozenPending {
  readonly record: FrozenRecord;
  readonly failed: boolean;
  readonly gates: boolean;
}

/**
 * The fields of a session by their names, but for {@link input}, which stands for `window`, `scan` and `inputLeft`. Not among them is what
 * - is given anew to a thawed one: `codec`, `canon`, `carriage`, `limits`, `io`, `stats`;
 * - holds something only inside of a call: `outBytes`, `outStart`, `outEnd`, `corked`, `header`, `readyStatus`, `readyQuestion`, `doubtError`,
 *   `judged`, `proceeding`;
 * - belongs to states in which there is no capsule: `doubtRest`, `doubted`, `replayQueue`;
 * - goes with an injection, during which there is none: `inquiring`, `abandoning`, `marking`;
 * - only saves memory or copying: `spare`, `loose`, `expected`.
 */
export interface FrozenSession {
  readonly state: State;
  readonly clientStatus: TransactionStatus;
  readonly unit: FrozenUnit;
  readonly answered: number;
  readonly input: {
    /** What was heard and is not done with: the request that is being collected, and what is not understood yet. */
    readonly bytes: Uint8Array;
    /** So many of them are understood. */
    readonly scanned: number;
    /** So many bytes behind them are bulk input, without a look at them. */
    readonly left: number;
  };
  readonly queue: readonly FrozenItem[];
  readonly queued: number;
  readonly clientPaused: boolean;
  readonly barriers: readonly Request[];
  readonly inputOpen: boolean;
  readonly deaf: boolean;
  readonly carry: Uint8Array | null;
  readonly relayLeft: number;
  readonly midFrame: boolean;
  readonly partial: boolean;
  readonly pending: readonly FrozenPending[];
  readonly records: readonly FrozenRecord[];
  readonly projectedOpen: boolean;
  readonly gates: number;
  /** A guard without a question under way: its server waits for the rest of a group. After the loss of the server: any. */
  readonly guarding: boolean;
  readonly guardDue: boolean;
  readonly interruptOwed: boolean;
  readonly verdict: readonly Uint8Array[];
  readonly heldReady: Uint8Array | null;
  readonly deferred: GatewayError | null;
  readonly poisoned: boolean;
  readonly told: readonly FrozenRecord[];
  readonly repetitions: ReadonlyMap<FrozenRecord, Repetition | null> | null;
  readonly retryable: boolean;
  readonly ending: boolean;
  readonly announcing: LoginResult | null;
  readonly readOnly: boolean;
  readonly proof: ProofPolicy;
  readonly marks: number;
}

/** A capsule as bytes. Node's own form of plain data: maps, sets, big integers and shared references survive. */
export function freezeBytes(capsule: Capsule): Uint8Array {
  return serialize(capsule);
}

/**
 * The capsule that {@link freezeBytes} made bytes of. Throws when they are something else.
 * @param bytes copied, as what comes out refers to them for as long as it lives
 */
export function thawBytes(bytes: Uint8Array): Capsule {
  return deserialize(Uint8Array.prototype.slice.call(bytes)) as Capsule;
}
