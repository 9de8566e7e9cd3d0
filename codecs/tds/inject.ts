import { type Injection, ProtocolViolation, type ServerError } from '../../core/contract/index.js';
import { readTold, type Told } from './ask.js';
import { unicode } from './bytes.js';
import { errorOf } from './errors.js';
import { readMessage } from './facts.js';
import { END, FRAME_HEADER, frame, kindOf } from './frames.js';
import { SQL_BATCH } from './packet.js';
import { writeSqlBatch } from './request.js';
import { ERROR } from './tokens.js';
import { type Dialect, TDS_7_2 } from './version.js';

/** What an answer to a question of the gateway's own may be long. */
const LIMIT = 64 * 1024;

/** A batch of the gateway's own; the session puts the descriptor of the present transaction into it. */
export class BatchInjection implements Injection {
  readonly bytes: Uint8Array;
  readonly readies = 1;
  readonly #tokens: Uint8Array[] = [];
  #length = 0;
  #error: ServerError | null = null;
  #raw: Uint8Array | null = null;

  constructor(
    text: string,
    private readonly dialect: Dialect,
  ) {
    this.bytes = frame(SQL_BATCH, dialect >= TDS_7_2 ? writeSqlBatch(0n, text) : unicode(text));
  }

  frame(bytes: Uint8Array, start: number, end: number): void {
    if (kindOf(bytes, start) === END) return;
    this.#length += end - start;
    if (this.#length > LIMIT) throw new ProtocolViolation('an answer to the gateway is too long', 'server');
    const token = Uint8Array.prototype.slice.call(bytes, start + FRAME_HEADER, end);
    if (kindOf(bytes, start) === ERROR && this.#error === null) {
      this.#error = errorOf(readMessage(token, 0, token.length, this.dialect));
      this.#raw = Uint8Array.prototype.slice.call(bytes, start, end);
    }
    this.#tokens.push(token);
  }

  failed(): ServerError | null {
    return this.#error;
  }

  errorBytes(): Uint8Array | null {
    return this.#raw;
  }

  /** What was answered. Valid after the last ready. */
  told(): Told {
    return readTold(Buffer.concat(this.#tokens), this.dialect);
  }
}
