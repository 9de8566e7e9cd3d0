import { createHash } from 'node:crypto';
import type { Codec, Request, SessionCodec, TransactionStatus } from '../contract/index.js';

/** So many small pieces in a row are put together. */
const MANY = 32;
/** Pieces that are smaller than this on average are small. */
const SMALL = 4096;
/** A list to which nothing was added yet. */
const NONE: Uint8Array[] = [];
/** Nothing was folded yet. */
const NO_FOLDS: number[] = [];
/** What the chain of digests begins with. */
export const CHAIN_START: Uint8Array = new Uint8Array(32);

/**
 * Puts the pieces from `from` on into one when they are small. What arrives in small pieces lies in buffers that many sessions
 * share, and a piece that is kept for long keeps all of its buffer: thousands of times its own size.
 * @returns where the next pieces begin
 */
function putTogether(pieces: Uint8Array[], from: number): number {
  let total = 0;
  for (let i = from; i < pieces.length; i++) total += pieces[i].length;
  if (total >= SMALL * (pieces.length - from)) return pieces.length;
  const joined = new Uint8Array(total);
  let at = 0;
  for (let i = from; i < pieces.length; i++) {
    joined.set(pieces[i], at);
    at += pieces[i].length;
  }
  pieces.length = from;
  return pieces.push(joined);
}

/** Moves what answered records hold in shared buffers into one of their own, before they are kept for long. */
export function keepApart(records: readonly RequestRecord[]): void {
  const lists = records.flatMap((record) => (record.answered ? [record.input, record.answer.chunks] : [record.input]));
  const shared = (piece: Uint8Array): boolean => piece.buffer.byteLength > 2 * piece.length;
  let total = 0;
  for (const list of lists) for (const piece of list) if (shared(piece)) total += piece.length;
  const own = new Uint8Array(total);
  let at = 0;
  for (const list of lists) {
    for (let i = 0; i < list.length; i++) {
      const piece = list[i];
      if (!shared(piece)) continue;
      own.set(piece, at);
      list[i] = own.subarray(at, at + piece.length);
      at += piece.length;
    }
  }
}

/** What verifying needs of a codec: how frames are cut and which of their bytes count. */
export interface Canon {
  frameLength: Codec['frameLength'];
  canonical: SessionCodec['canonical'];
  verbatim: SessionCodec['verbatim'];
}

/** An {@link AnswerLog} as plain data. */
export interface FrozenAnswer {
  readonly chunks: readonly Uint8Array[];
  readonly chain: Uint8Array | null;
  readonly folds: readonly number[];
  readonly streaming: number;
}

/**
 * The answer to one request as the client received it: kept by reference up to a budget, beyond it folded into a digest of its
 * canonical form. The ready that ends it is not part of it; its status is kept beside.
 */
export class AnswerLog {
  /** Received chunks. Each begins with a frame, or goes on with a streaming one, of which the last one is cut. */
  chunks = NONE;
  /** Bytes in `chunks`. */
  bytes = 0;
  /** Chunks before this one are not small. */
  private together = 0;
  /**
   * Digest of what was folded; null before. It is a chain, SHA-256 of the 32 bytes before it and of what was folded then, so that between
   * two folds it is plain data, which a running hash is not.
   */
  private chain: Uint8Array | null = null;
  /** How many canonical bytes each link of the chain covers: none of them is 0. */
  folds = NO_FOLDS;
  /** Bytes of a streaming frame still to come that count as they are. */
  private streaming = 0;

  /** @returns true when nothing was released yet */
  get empty(): boolean {
    return this.bytes === 0 && this.chain === null;
  }

  /** True when the answer is only known by its digest. */
  get folded(): boolean {
    return this.chain !== null;
  }

  append(chunk: Uint8Array): void {
    this.bytes += chunk.length;
    // Most answers are of one piece, and a list that begins with it is a quarter of one that is pushed to.
    if (this.chunks === NONE) this.chunks = [chunk];
    else this.chunks.push(chunk);
    if (this.chunks.length - this.together >= MANY) this.together = putTogether(this.chunks, this.together);
  }

  /** Folds what is kept into the digest and frees it. */
  fold(canon: Canon): void {
    this.chain ??= CHAIN_START;
    const hash = createHash('sha256').update(this.chain);
    let bytes = 0;
    for (const piece of this.drain(canon)) {
      hash.update(piece);
      bytes += piece.length;
    }
    // What was received may have been notices alone, of which nothing counts.
    if (bytes > 0) {
      this.chain = hash.digest();
      if (this.folds === NO_FOLDS) this.folds = [bytes];
      else this.folds.push(bytes);
    }
    this.chunks = NONE;
    this.together = 0;
    this.bytes = 0;
  }

  /** @returns the digest of what was folded, see {@link folds} */
  digest(): Uint8Array {
    return this.chain ?? CHAIN_START;
  }

  /** @returns all of it; the bytes by reference */
  freeze(): FrozenAnswer {
    const { chunks, chain, folds, streaming } = this;
    return { chunks, chain, folds, streaming };
  }

  /** The log that {@link freeze} told. */
  static thaw({ chunks, chain, folds, streaming }: FrozenAnswer): AnswerLog {
    const log = new AnswerLog();
    for (const chunk of chunks) log.append(chunk);
    log.chain = chain;
    // Those of several logs may be one and the same empty list.
    log.folds = [...folds];
    log.streaming = streaming;
    return log;
  }

  /** @returns the canonical bytes of the kept chunks, in order */
  canonicalBytes(canon: Canon): Uint8Array[] {
    const streaming = this.streaming;
    const pieces = [...this.drain(canon)];
    this.streaming = streaming;
    return pieces;
  }

  /** Number of frames of the kept chunks that answer the request. */
  frames(canon: Canon): number {
    let count = 0;
    const all = Buffer.concat(this.chunks);
    for (let at = 0; at < all.length; at += canon.frameLength(all, at, all.length)) {
      if (canon.verbatim(all, at) || canon.canonical(all, at, at + canon.frameLength(all, at, all.length)) !== null)
        count++;
    }
    return count;
  }

  /** Canonical pieces in order; frames that count as they are and follow each other come as one piece. */
  private *drain(canon: Canon): Generator<Uint8Array> {
    for (const chunk of this.chunks) {
      let at = Math.min(this.streaming, chunk.length);
      this.streaming -= at;
      let run = 0;
      while (at < chunk.length) {
        const length = canon.frameLength(chunk, at, chunk.length);
        if (canon.verbatim(chunk, at)) {
          at += length;
          continue;
        }
        if (at > run) yield chunk.subarray(run, at);
        const piece = canon.canonical(chunk, at, at + length);
        if (piece !== null) yield piece;
        at += length;
        run = at;
      }
      this.streaming += Math.max(0, at - chunk.length);
      if (run < chunk.length) yield chunk.subarray(run, chunk.length);
    }
  }
}

/** A {@link RequestRecord} as plain data. */
export interface FrozenRecord {
  readonly request: Request;
  readonly input: readonly Uint8Array[];
  /** Null while nothing was noted of it. */
  readonly answer: FrozenAnswer | null;
  readonly status: TransactionStatus | null;
  readonly interrupt: Uint8Array | null;
}

/**
 * One request of the open unit of work, with what the client sent for it and what it got. There is one for every request, and most of
 * them are forgotten without anybody having asked: what they hold is noted as it comes, and put into lists on demand.
 */
export class RequestRecord {
  /** The only piece of the input. */
  private piece: Uint8Array | null = null;
  private pieces: Pieces | null = null;
  /** The only piece of the answer is [from, to) of this. */
  private received: Uint8Array | null = null;
  private from = 0;
  private to = 0;
  private log: AnswerLog | null = null;
  /** The status at its ready point, once the client has it (or, for a joined part, once the server told it). */
  status: TransactionStatus | null = null;

  /** What the client said to cancel it; see `Sink.interrupt`. */
  interrupt: Uint8Array | null = null;

  constructor(readonly request: Request) {}

  /** The request's bytes, and bulk input that followed. By reference. */
  get input(): Uint8Array[] {
    return this.listed().list;
  }

  get inputBytes(): number {
    return this.input.reduce((sum, { length }) => sum + length, 0);
  }

  get answer(): AnswerLog {
    if (this.log === null) {
      this.log = new AnswerLog();
      if (this.received !== null) this.log.append(this.received.subarray(this.from, this.to));
      this.received = null;
    }
    return this.log;
  }

  /** False while nothing was noted of the answer. */
  get answered(): boolean {
    return this.received !== null || this.log !== null;
  }

  addInput(bytes: Uint8Array): void {
    if (this.piece === null && this.pieces === null) {
      this.piece = bytes;
      return;
    }
    const pieces = this.listed();
    pieces.list.push(bytes);
    if (pieces.list.length - pieces.together >= MANY) pieces.together = putTogether(pieces.list, pieces.together);
  }

  /** Notes that the client got [start, end) of these bytes, see {@link AnswerLog.append}. */
  addAnswer(bytes: Uint8Array, start: number, end: number): void {
    if (this.received === null && this.log === null) {
      this.received = bytes;
      this.from = start;
      this.to = end;
    } else this.answer.append(bytes.subarray(start, end));
  }

  /** Gives the memory of the input back: the record can no longer be repeated. */
  dropInput(): void {
    const pieces = this.listed();
    pieces.list.length = 0;
    pieces.together = 0;
  }

  /** @returns all of it, its request the same object; the bytes by reference */
  freeze(): FrozenRecord {
    const { request, input, status, interrupt } = this;
    return { request, input, answer: this.answered ? this.answer.freeze() : null, status, interrupt };
  }

  /** The record that {@link freeze} told. */
  static thaw({ request, input, answer, status, interrupt }: FrozenRecord): RequestRecord {
    const record = new RequestRecord(request);
    for (const piece of input) record.addInput(piece);
    if (answer !== null) record.log = AnswerLog.thaw(answer);
    record.status = status;
    record.interrupt = interrupt;
    return record;
  }

  private listed(): Pieces {
    if (this.pieces === null) {
      this.pieces = { list: this.piece === null ? [] : [this.piece], together: 0 };
      this.piece = null;
    }
    return this.pieces;
  }
}

interface Pieces {
  readonly list: Uint8Array[];
  /** Pieces before this one are not small. */
  together: number;
}
