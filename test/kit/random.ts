/** Random numbers that can be had again: the seed is part of every message. */
export interface Randomness {
  /** Where a failure was found, with how to find it again. */
  readonly where: string;
  /** A whole number from 0 to below `limit`. */
  below(limit: number): number;
  /** One of these. */
  one<T>(of: readonly T[]): T;
  /** So many random bytes. */
  bytes(length: number): Uint8Array;
}

/** Starts from OUTLIVE_SEED of the environment, or anew. */
export function randomness(): Randomness {
  const seed = Number(process.env.OUTLIVE_SEED ?? Math.floor(Math.random() * 2 ** 32));
  // mulberry32
  let state = seed >>> 0;
  const next = (): number => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return (t ^ (t >>> 14)) >>> 0;
  };
  const below = (limit: number): number => next() % limit;
  return {
    where: `OUTLIVE_SEED=${seed}`,
    below,
    one: (of) => of[below(of.length)],
    bytes: (length) => Uint8Array.from({ length }, () => below(256)),
  };
}
