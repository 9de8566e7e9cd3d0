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

  /** A commit was acknowledged to a client. Called for every commit, so it only writes a number down. */
  note(origin: ServerFacts, position: bigint): void {
    if (origin.timeline !== this.#timeline || origin.system !== this.#system) {
      // A straggler of a server that was replaced: what it lost was counted when the other one was promoted.
      if (origin.timeline < this.#timeline) return;
      this.#system = origin.system;
      this.#timeline = origin.timeline;
      this.#positions = [];
      this.#at = 0;
      this.#highest = -1n;
    }
    this.#positions[this.#at] = position;
    this.#at = (this.#at + 1) % REMEMBERED;
    if (position > this.#highest) this.#highest = position;
  }

  /** The timeline that the remembered commits are of; -1 when there are none. */
  get timeline(): number {
    return this.#timeline;
  }

  /** What a server lacks whose history left the remembered timeline at `switchPoint`; null when nothing is known to be missing. */
  beyond(switchPoint: bigint): Missing | null {
    if (this.#highest < switchPoint) return null;
    const missing = this.#positions.filter((position) => position >= switchPoint).length;
    const full = this.#positions.length === REMEMBERED;
    return { count: missing, atLeast: full && missing === REMEMBERED, position: this.#highest };
  }
}
