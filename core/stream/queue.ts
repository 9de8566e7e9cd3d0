/**
 * A growing window over a byte stream in which a group of frames stands contiguous. While nothing is left over from the
 * chunk before, a chunk is used in place; only what was cut is copied.
 */
export class ByteWindow {
  /** The bytes; valid in [start, end). */
  bytes: Uint8Array = EMPTY;
  start = 0;
  end = 0;
  /** True while `bytes` is this window's own buffer (which may be written behind `end`), not a received chunk. */
  private owned = false;

  get length(): number {
    return this.end - this.start;
  }

  /**
   * Takes the next chunk.
   * @param chunk received bytes; used in place when nothing is left over
   * @param expected how many bytes from `start` the reader waits for (0: unknown), so that a long frame is allocated once
   */
  push(chunk: Uint8Array, expected: number): void {
    const left = this.end - this.start;
    if (left === 0) {
      this.bytes = chunk;
      this.start = 0;
      this.end = chunk.length;
      this.owned = false;
      return;
    }
    const total = left + chunk.length;
    if (!this.owned || this.end + chunk.length > this.bytes.length) {
      // Twice the size, so that many small chunks cost linear time.
      const grown = Buffer.allocUnsafe(
        Math.max(total, Math.min(expected, 2 * total + 65536), this.owned ? 2 * total : 0),
      );
      grown.set(this.bytes.subarray(this.start, this.end), 0);
      this.bytes = grown;
      this.start = 0;
      this.end = left;
      this.owned = true;
    }
    this.bytes.set(chunk, this.end);
    this.end += chunk.length;
  }

  /** Bytes before `position` are done with. They may be referenced from elsewhere: they are never written again. */
  consume(position: number): void {
    this.start = position;
    if (position === this.end) {
      this.bytes = EMPTY;
      this.start = 0;
      this.end = 0;
      this.owned = false;
    }
  }
}

const EMPTY = new Uint8Array(0);
