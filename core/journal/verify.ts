import { createHash, type Hash } from 'node:crypto';
import { type Canon, CHAIN_START, type RequestRecord } from './record.js';

/** `more`: equal so far. `differs`: divergence. A number: the client's prefix ended that many bytes into the given bytes; from there on everything is new to it. */
export type Verdict = 'more' | 'differs' | number;

/**
 * Compares the answer of a repeated request with what the client received the first time. The comparison runs over canonical
 * bytes: what answers no request (notices, parameter changes) and texts that may differ legally do not count.
 */
export class Verifier {
  private readonly expected: Uint8Array[];
  private index = 0;
  private offset = 0;
  /** The present link of the digest's chain (`AnswerLog.folds`), how many bytes of it are still to come ... */
  private hash: Hash | null = null;
  private hashLeft = 0;
  /** ... and how many links came before it. */
  private link = 0;
  private readonly folds: readonly number[];
  private readonly links: number;
  private readonly digest: Uint8Array;
  /** Canonical bytes that were equal so far; after a difference, those in front of it. */
  equal = 0;

  constructor(record: RequestRecord, canon: Canon) {
    const { answer } = record;
    // Bytes that are already folded come first, what was kept afterwards follows.
    this.expected = answer.canonicalBytes(canon);
    this.folds = answer.folds;
    this.links = answer.folds.length;
    this.digest = answer.digest();
    this.nextLink(CHAIN_START);
  }

  private nextLink(before: Uint8Array): void {
    if (this.link === this.links) {
      this.hash = null;
      return;
    }
    this.hash = createHash('sha256').update(before);
    this.hashLeft = this.folds[this.link];
  }

  /** True when all that the client received has been seen again. */
  get satisfied(): boolean {
    return this.hash === null && this.index >= this.expected.length;
  }

  /**
   * The next canonical bytes of the repeated answer.
   * @returns see {@link Verdict}; a number only when the prefix ends inside or at the end of these bytes and bytes are left
   */
  feed(piece: Uint8Array): Verdict {
    let at = 0;
    while (at < piece.length) {
      if (this.hash !== null) {
        const n = Math.min(this.hashLeft, piece.length - at);
        this.hash.update(piece.subarray(at, at + n));
        this.hashLeft -= n;
        this.equal += n;
        at += n;
        if (this.hashLeft === 0) {
          const digest = this.hash.digest();
          this.link++;
          if (this.link === this.links && !digest.equals(this.digest)) return 'differs';
          this.nextLink(digest);
        }
        continue;
      }
      if (this.index >= this.expected.length) return at;
      const want = this.expected[this.index];
      const n = Math.min(want.length - this.offset, piece.length - at);
      if (Buffer.compare(want.subarray(this.offset, this.offset + n), piece.subarray(at, at + n)) !== 0) {
        for (let i = 0; want[this.offset + i] === piece[at + i]; i++) this.equal++;
        return 'differs';
      }
      this.offset += n;
      this.equal += n;
      at += n;
      if (this.offset === want.length) {
        this.index++;
        this.offset = 0;
      }
    }
    return 'more';
  }
}
