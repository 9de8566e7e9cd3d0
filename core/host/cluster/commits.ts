import type { ServerFacts } from '../../contract/index.js';

/** How many positions are remembered per timeline, to count the lost ones. */
const REMEMBERED = 4096;

/** What is missing on a promoted server. */
export interface Missing {
  /** Acknowledged commits beyond the switch point, of those that are remembered. */
  readonly count: number;
  /** True when older ones that are not remembered may be missing too. */
  readonly atLeast: boolean;
  /** The highest position. */
  readonly position: bigint;
}

/**
 * Remembers where the commits were that clients were told of. The position of a commit is that of its token, taken just before
 * the commit record was written: what is said to be missing surely is, while the record right at a switch point may slip through.
 */
export class AcknowledgedCommits {
  #system = '';
  #timeline = -1;
  #positions: bigint[] = [];
  #at = 0;
  #highest = -1n;
  /** Where the history that goes on left the timeline; null while the timeline itself goes on. */
  #parted: bigint | null = null;

  /**
   * A commit was acknowledged to a client. Called for every commit, so it only writes a number down.
   * @returns false when it is known to be lost: the client's server was replaced by one that lacks it
   */
  note(origin: ServerFacts, position: bigint): boolean {
    if (origin.timeline !== this.#timeline || origin.system !== this.#system) {
      // A straggler from long ago.
      if (origin.timeline < this.#timeline) return true;
      this.#system = origin.system;
      this.#timeline = origin.timeline;
      this.#parted = null;
      this.#forget();
    }
    if (this.#parted !== null) return position < this.#parted;
    this.#positions[this.#at] = position;
    this.#at = (this.#at + 1) % REMEMBERED;
    if (position > this.#highest) this.#highest = position;
    return true;
  }

  /** The timeline that the remembered commits are of; -1 when there are none. */
  get timeline(): number {
    return this.#timeline;
  }

  /** A server took over whose history left the remembered timeline at `switchPoint`: what does it lack? Null when nothing. */
  part(switchPoint: bigint): Missing | null {
    const missing = this.#positions.filter((position) => position >= switchPoint).length;
    const atLeast = missing === REMEMBERED;
    const position = this.#highest;
    this.#parted = switchPoint;
    this.#forget();
    return missing === 0 ? null : { count: missing, atLeast, position };
  }

  #forget(): void {
    this.#positions = [];
    this.#at = 0;
    this.#highest = -1n;
  }
}
