import type { OutcomeToken, ServerFacts } from '../../contract/index.js';

/** How many positions are remembered per timeline, to count the lost ones. */
const REMEMBERED = 4096;

/** What is missing on a promoted server. */
export interface Missing {
  /** Acknowledged commits beyond the switch point, of those that are remembered: they are missing for certain. */
  readonly count: number;
  /** Those whose token lies before it: the commit record, which follows the token, may lie beyond. The server must be asked. */
  readonly unclear: readonly OutcomeToken[];
  /** True when older ones that are not remembered may be missing too. */
  readonly atLeast: boolean;
  /** The highest position. */
  readonly position: bigint;
}

/**
 * Remembers the commits that clients were told of, by their tokens. A token is taken before the commit record is written: what
 * lies beyond the switch point is surely missing; of what lies before it, only the promoted server knows.
 */
export class AcknowledgedCommits {
  #system = '';
  #timeline = -1;
  #tokens: OutcomeToken[] = [];
  #at = 0;
  #highest = -1n;
  /** Where the history that goes on left the timeline; null while the timeline itself goes on. */
  #parted: bigint | null = null;

  /**
   * A commit was acknowledged to a client. Called for every commit, so it only writes a reference down.
   * @returns `noted`; or, when the client's server was replaced meanwhile, whether the commit is `lost` or `unclear`
   */
  note(origin: ServerFacts, token: OutcomeToken): 'noted' | 'lost' | 'unclear' {
    const { position } = token;
    if (origin.timeline !== this.#timeline || origin.system !== this.#system) {
      // A straggler from long ago.
      if (origin.timeline < this.#timeline) return 'noted';
      this.#system = origin.system;
      this.#timeline = origin.timeline;
      this.#parted = null;
      this.#forget();
    }
    if (this.#parted !== null) return position < this.#parted ? 'unclear' : 'lost';
    this.#tokens[this.#at] = token;
    this.#at = (this.#at + 1) % REMEMBERED;
    if (position > this.#highest) this.#highest = position;
    return 'noted';
  }

  /** The timeline that the remembered commits are of; -1 when there are none. */
  get timeline(): number {
    return this.#timeline;
  }

  /** A server took over whose history left the remembered timeline at `switchPoint`: what does it lack? Null when nothing. */
  part(switchPoint: bigint): Missing | null {
    const unclear = this.#tokens.filter(({ position }) => position < switchPoint);
    const count = this.#tokens.length - unclear.length;
    const atLeast = count === REMEMBERED;
    const position = this.#highest;
    this.#parted = switchPoint;
    this.#forget();
    return count === 0 && unclear.length === 0 ? null : { count, unclear, atLeast, position };
  }

  #forget(): void {
    this.#tokens = [];
    this.#at = 0;
    this.#highest = -1n;
  }
}
