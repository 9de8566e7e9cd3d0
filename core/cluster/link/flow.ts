/**
 * What of the sent records the peer has not acknowledged yet, as counts of bytes; no I/O. It remembers batches, not records.
 */
import { peerError } from './frames.js';

/** The arrays are shortened when so many entries at their beginning are of no use any more. */
const COMPACT = 1024;

/** One direction of one link. */
export class Flow {
  readonly #ends: number[] = [];
  readonly #bytes: number[] = [];
  #head = 0;
  #backlog = 0;
  #sent = 0;
  #held = 0;

  /** Bytes that left and are not acknowledged. */
  get backlog(): number {
    return this.#backlog;
  }
  /** All records below it are held by the peer. */
  get acknowledged(): number {
    return this.#held;
  }

  /** Records left. @param end the position after the last one @param bytes of all of them */
  sent(end: number, bytes: number): void {
    if (end === this.#sent) return;
    this.#sent = end;
    this.#ends.push(end);
    this.#bytes.push(bytes);
    this.#backlog += bytes;
  }

  /** The peer holds all records below `position`. Throws OUTLIVE_PAIR_POSITION when it cannot. */
  acknowledge(position: number): void {
    if (position < this.#held || position > this.#sent) {
      const what = `acknowledged ${position}, between ${this.#held} and ${this.#sent} are possible`;
      throw peerError(what, 'OUTLIVE_PAIR_POSITION');
    }
    this.#held = position;
    while (this.#head < this.#ends.length && this.#ends[this.#head] <= position) {
      this.#backlog -= this.#bytes[this.#head++];
    }
    if (this.#head === this.#ends.length || this.#head >= COMPACT) {
      this.#ends.splice(0, this.#head);
      this.#bytes.splice(0, this.#head);
      this.#head = 0;
    }
  }
}
