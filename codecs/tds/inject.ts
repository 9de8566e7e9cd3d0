import { type Injection, ProtocolViolation, type ServerError } from '../../core/contract/index.js';
import { readTold, type Told } from './ask.js';
import { unicode } from './bytes.js';
import { errorOf } from './errors.js';
import { DONE_ERROR, readMessage } from './facts.js';
import { END, FRAME_HEADER, frame, kindOf, tokenFrames } from './frames.js';
import { RPC, SQL_BATCH } from './packet.js';
import { allHeaders, writeSqlBatch } from './request.js';
import { type WrittenParameter, writeRpc } from './rpc.js';
import { ERROR } from './tokens.js';
import { type Dialect, TDS_7_2 } from './version.js';
import { done } from './write.js';

/** What an answer to a question of the gateway's own may be long. */
const LIMIT = 64 * 1024;

/** A message of the gateway's own; the session puts the descriptor of the present transaction into it. */
class OwnMessage implements Injection {
  readonly readies = 1;
  readonly #tokens: Uint8Array[] = [];
  #length = 0;
  #error: ServerError | null = null;
  #raw: Uint8Array | null = null;

  constructor(
    readonly bytes: Uint8Array,
    private readonly dialect: Dialect,
  ) {}

  frame(bytes: Uint8Array, start: number, end: number): void {
    if (kindOf(bytes, start) === END) return;
    this.#length += end - start;
    if (this.#length > LIMIT) throw new ProtocolViolation('an answer to the gateway is too long', 'server');
    const token = Uint8Array.prototype.slice.call(bytes, start + FRAME_HEADER, end);
    if (kindOf(bytes, start) === ERROR && this.#error === null) {
      this.#error = errorOf(readMessage(token, 0, token.length, this.dialect));
      this.#raw = token;
    }
    this.#tokens.push(token);
  }

  failed(): ServerError | null {
    return this.#error;
  }

  /** The error, and what ends an answer behind it. */
  errorBytes(): Uint8Array | null {
    if (this.#raw === null) return null;
    return tokenFrames(this.#raw, ...this.behind, done({ status: DONE_ERROR }, this.dialect));
  }

  /** Tokens that a client gets behind the error. */
  protected get behind(): readonly Uint8Array[] {
    return [];
  }

  /** What was answered. Valid after the last ready. */
  told(): Told {
    return readTold(Buffer.concat(this.#tokens), this.dialect);
  }
}

/** A batch of the gateway's own. */
export class BatchInjection extends OwnMessage {
  constructor(text: string, dialect: Dialect) {
    super(frame(SQL_BATCH, dialect >= TDS_7_2 ? writeSqlBatch(0n, text) : unicode(text)), dialect);
  }
}

/** A call of the gateway's own. */
export class RpcInjection extends OwnMessage {
  constructor(procedure: string, parameters: readonly WrittenParameter[], dialect: Dialect) {
    const message = writeRpc(0n, [{ procedure, parameters }]);
    super(frame(RPC, dialect >= TDS_7_2 ? message : message.subarray(allHeaders(0n).length)), dialect);
  }
}
