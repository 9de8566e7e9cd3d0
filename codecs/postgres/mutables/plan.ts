import type { Exchange, Repetition, SeenRequest } from '../../../core/contract/index.js';
import type { Knowledge } from './types.js';

/** A statement prepared at the protocol level, as this module needs it. */
export interface PreparedStatement {
  /** The Parse message. */
  readonly parse: Uint8Array;
  readonly sql: string;
}

/** What `gather` finds: plain data, understood by {@link reserve} and {@link plan}. */
export interface Gathered {
  readonly count: number;
}

/**
 * See `Mutables.gather`.
 * @param prepared statements of the session as they were before the first of these requests
 */
export function gather(
  _seen: readonly SeenRequest[],
  _prepared: ReadonlyMap<string, PreparedStatement>,
): Gathered | null {
  return null;
}

/** See `Mutables.reserve`. */
// biome-ignore lint/correctness/useYield: filled in next
export function* reserve(_gathered: readonly Gathered[]): Exchange<void> {}

/** See `Mutables.plan`. Fills `knowledge`, which the session keeps for what the client asks later. */
// biome-ignore lint/correctness/useYield: filled in next
export function* plan(gathered: Gathered, _knowledge: Knowledge): Exchange<(Repetition | null)[]> {
  return new Array(gathered.count).fill(null);
}

/** See `Mutables.adjust`. */
export function adjust(
  _request: Uint8Array,
  _prepared: ReadonlyMap<string, PreparedStatement>,
  _knowledge: Knowledge,
): Repetition | null {
  return null;
}

/** See `Mutables.partAt`. */
export function partAt(_answer: readonly Uint8Array[], _offset: number, _got: Uint8Array | null): string | null {
  return null;
}
