/** The middle of some values and how far they spread. */
export interface Spread {
  readonly median: number;
  readonly min: number;
  readonly max: number;
  readonly count: number;
}

/** The p-th percentile (0..100) of values in ascending order, by nearest rank: always a value that was really seen. */
export function percentile(sorted: ArrayLike<number>, p: number): number {
  if (sorted.length === 0) return Number.NaN;
  const rank = Math.ceil((p / 100) * sorted.length);
  return sorted[Math.min(Math.max(rank, 1), sorted.length) - 1];
}

/** Values in ascending order; the argument stays as it was. */
export function ascending(values: Iterable<number>): number[] {
  return [...values].sort((a, b) => a - b);
}

/** The median; between the two middle values where their number is even. */
export function median(values: Iterable<number>): number {
  const sorted = ascending(values);
  const middle = sorted.length >> 1;
  if (sorted.length === 0) return Number.NaN;
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** Median, least and greatest of the values that are numbers; undefined when none is. */
export function spreadOf(values: Iterable<number | undefined>): Spread | undefined {
  const numbers: number[] = [];
  for (const value of values) if (value !== undefined && Number.isFinite(value)) numbers.push(value);
  if (numbers.length === 0) return undefined;
  return { median: median(numbers), min: Math.min(...numbers), max: Math.max(...numbers), count: numbers.length };
}

/**
 * The ratios between two things that were measured in the same rounds. Each ratio is taken inside of one round, where
 * both met the same machine; only then the median is taken.
 * @param top values by round, undefined where there is none
 * @param bottom values by round
 */
export function ratioOfRounds(
  top: readonly (number | undefined)[],
  bottom: readonly (number | undefined)[],
): Spread | undefined {
  return spreadOf(
    top.map((value, round) => {
      const other = bottom[round];
      return value === undefined || other === undefined || other === 0 ? undefined : value / other;
    }),
  );
}

/** Turns a list by `by` places, so that every entry gets every place once in as many rounds as there are entries. */
export function rotated<T>(list: readonly T[], by: number): T[] {
  if (list.length === 0) return [];
  const start = ((by % list.length) + list.length) % list.length;
  return [...list.slice(start), ...list.slice(0, start)];
}

/** Buckets per octave; one is at most 1/64 of its value wide, so a percentile is off by less than 1.6 %. */
const SUB_BUCKETS = 64;
const SUB_BITS = 6;
const OCTAVES = 40;

/** Counts of durations in buckets of equal relative width. Recording neither allocates nor sorts. */
export class Histogram {
  readonly #counts = new Uint32Array(OCTAVES * SUB_BUCKETS);
  #count = 0;
  #sum = 0;
  #max = 0;

  /** How many values were recorded. */
  get count(): number {
    return this.#count;
  }

  /** The greatest value, exactly. */
  get max(): number {
    return this.#max;
  }

  /** The mean, exactly. */
  get mean(): number {
    return this.#count === 0 ? Number.NaN : this.#sum / this.#count;
  }

  /** @param value whole units of anything, 0 and up; a fraction is cut off */
  record(value: number): void {
    const whole = value < 0 ? 0 : Math.min(Math.floor(value), 0x7fffffff);
    let index = whole;
    if (whole >= SUB_BUCKETS) {
      const shift = 31 - Math.clz32(whole) - SUB_BITS;
      index = (shift + 1) * SUB_BUCKETS + ((whole >>> shift) - SUB_BUCKETS);
    }
    this.#counts[index]++;
    this.#count++;
    this.#sum += value;
    if (value > this.#max) this.#max = value;
  }

  /** The p-th percentile (0..100): the upper edge of the bucket that holds it, never above the greatest value. */
  percentile(p: number): number {
    if (this.#count === 0) return Number.NaN;
    const rank = Math.max(1, Math.ceil((p / 100) * this.#count));
    let seen = 0;
    for (let index = 0; index < this.#counts.length; index++) {
      seen += this.#counts[index];
      if (seen < rank) continue;
      const octave = Math.floor(index / SUB_BUCKETS);
      const edge = octave === 0 ? index : (SUB_BUCKETS + (index % SUB_BUCKETS) + 1) * 2 ** (octave - 1) - 1;
      return Math.min(edge, this.#max);
    }
    return this.#max;
  }
}
