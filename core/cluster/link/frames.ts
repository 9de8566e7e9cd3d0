/**
 * Frames of the link between two gateways: bytes in, frames out, and back; no I/O.
 *
 * A frame is `u32 length of what follows | u8 type | body`, numbers big endian. Bodies are JSON, but for
 * - ack: `u64 position`: the sender of the ack holds all records below it;
 * - batch: `u64 position of the first record`, then records `u8 kind | u32 session | u32 length | bytes`.
 *
 * Positions count the records of one direction of one link from 0 on. JavaScript's numbers hold them exactly: at a million
 * records a second 2^53 is 285 years away.
 */
import { CodedError } from '../../contract/index.js';

/** What a frame is. Hello, hello-ack, error and bye are all that a connection may carry before it is the link. */
export const FRAME = { hello: 1, helloAck: 2, batch: 3, ack: 4, beat: 5, control: 6, error: 7, bye: 8 } as const;
const LAST_TYPE = FRAME.bye;

/** Longest frame, unless told otherwise, in bytes without the four of its length. */
export const MAX_FRAME = 64 * 1024 * 1024;
/** Longest frame of a connection that is not the link yet. */
export const GREETING_FRAME = 16 * 1024;
/** Longest frame whose body is JSON. */
export const MAX_JSON_FRAME = 1024 * 1024;
/** Bytes of a record besides its payload. */
export const RECORD_HEADER = 9;

const FRAME_HEADER = 5;
const BATCH_HEADER = FRAME_HEADER + 8;
/** What the frame's length counts besides the records of a batch. */
const BATCH_OVERHEAD = BATCH_HEADER - 4;
const SLAB = 64 * 1024;
/** Payloads of this length on are sent from where they lie: from here on a copy costs more than one more piece of a write. */
const GATHER = 16 * 1024;
const FIRST_GROWTH = 1024 * 1024;
const HIGH = 2 ** 32;

/** An error that the other end of a pair link is at fault for. @param what goes on from "the peer of the pair link" */
export function peerError(what: string, code = 'OUTLIVE_PAIR_PROTOCOL'): CodedError {
  return new CodedError(code, 'network', `the peer of the pair link ${what}`);
}

/**
 * Builds what is to be sent. Small things are copied one behind the other into a slab, large payloads are kept by
 * reference and must not change any more. Nothing that was given out by {@link take} is ever written to again.
 */
export class FrameEncoder {
  readonly #maxFrame: number;
  #slab = Buffer.allocUnsafeSlow(SLAB);
  #view = new DataView(this.#slab.buffer);
  /** The slab's bytes from `#from` to `#at` belong behind `#parts`. */
  #from = 0;
  #at = 0;
  #parts: Uint8Array[] = [];
  #size = 0;
  #position = 0;
  /** Where the length of the open batch stands, to be written when the batch is complete. */
  #batchView: DataView | null = null;
  #batchAt = 0;
  #batchLength = 0;

  /** @param maxFrame longest frame in bytes without its length; the peer refuses longer ones */
  constructor(maxFrame = MAX_FRAME) {
    this.#maxFrame = maxFrame;
  }

  /** Bytes that wait for {@link take}. */
  get size(): number {
    return this.#size;
  }
  /** Position of the next record: so many were taken so far. */
  get position(): number {
    return this.#position;
  }

  /**
   * Adds a record to the open batch, or begins one.
   * @param kind 0 to 255
   * @param session 0 to 2^32 - 1
   * @param bytes the payload, whole or in pieces
   * @returns the record's position. Throws OUTLIVE_PAIR_TOO_LARGE when it fits into no frame; nothing is added then.
   */
  record(kind: number, session: number, bytes: Uint8Array | readonly Uint8Array[]): number {
    let length = 0;
    if (bytes instanceof Uint8Array) length = bytes.length;
    else for (const piece of bytes) length += piece.length;
    const whole = RECORD_HEADER + length;
    if (this.#batchView === null || this.#batchLength + whole > this.#maxFrame) {
      if (BATCH_OVERHEAD + whole > this.#maxFrame) {
        const message = `a record of ${length} bytes for the peer is larger than a frame may be (${this.#maxFrame})`;
        throw new CodedError('OUTLIVE_PAIR_TOO_LARGE', 'gateway', message);
      }
      this.#beginBatch();
    }
    this.#room(RECORD_HEADER);
    const at = this.#at;
    const view = this.#view;
    view.setUint8(at, kind);
    view.setUint32(at + 1, session);
    view.setUint32(at + 5, length);
    this.#at = at + RECORD_HEADER;
    if (bytes instanceof Uint8Array) this.#payload(bytes);
    else for (const piece of bytes) this.#payload(piece);
    this.#batchLength += whole;
    this.#size += whole;
    return this.#position++;
  }

  /** Tells that all records below `position` are held. */
  acknowledge(position: number): void {
    this.#endBatch();
    this.#header(FRAME.ack, 8);
    this.#u64(position);
    this.#size += FRAME_HEADER + 8;
  }

  /**
   * Adds a frame whose body is JSON, behind all that was added before.
   * Throws OUTLIVE_PAIR_TOO_LARGE above {@link MAX_JSON_FRAME}; nothing is added then.
   */
  json(type: number, body: unknown): void {
    const bytes = Buffer.from(JSON.stringify(body));
    if (bytes.length + 1 > MAX_JSON_FRAME) {
      const message = `a message of ${bytes.length} bytes for the peer is larger than ${MAX_JSON_FRAME}`;
      throw new CodedError('OUTLIVE_PAIR_TOO_LARGE', 'gateway', message);
    }
    this.#endBatch();
    this.#header(type, bytes.length);
    this.#payload(bytes);
    this.#size += FRAME_HEADER + bytes.length;
  }

  /** All that was added since the last call, in order, as pieces of whole frames; they belong to the caller. */
  take(): Uint8Array[] {
    this.#endBatch();
    this.#cut();
    const parts = this.#parts;
    this.#parts = [];
    this.#size = 0;
    return parts;
  }

  #beginBatch(): void {
    this.#endBatch();
    // With the first record's header in one piece of memory; the length is written when it is known.
    this.#room(BATCH_HEADER + RECORD_HEADER);
    this.#batchView = this.#view;
    this.#batchAt = this.#at;
    this.#header(FRAME.batch, 0);
    this.#u64(this.#position);
    this.#batchLength = BATCH_OVERHEAD;
    this.#size += BATCH_HEADER;
  }

  #endBatch(): void {
    if (this.#batchView === null) return;
    this.#batchView.setUint32(this.#batchAt, this.#batchLength);
    this.#batchView = null;
  }

  #header(type: number, bodyLength: number): void {
    this.#room(FRAME_HEADER);
    this.#view.setUint32(this.#at, bodyLength + 1);
    this.#view.setUint8(this.#at + 4, type);
    this.#at += FRAME_HEADER;
  }

  #u64(value: number): void {
    this.#room(8);
    this.#view.setUint32(this.#at, Math.floor(value / HIGH));
    this.#view.setUint32(this.#at + 4, value % HIGH);
    this.#at += 8;
  }

  #payload(bytes: Uint8Array): void {
    if (bytes.length < GATHER) {
      this.#room(bytes.length);
      this.#slab.set(bytes, this.#at);
      this.#at += bytes.length;
    } else {
      this.#cut();
      this.#parts.push(bytes);
    }
  }

  /** Sees to it that so many bytes can be written to the slab. */
  #room(length: number): void {
    if (this.#at + length <= SLAB) return;
    this.#cut();
    this.#slab = Buffer.allocUnsafeSlow(SLAB);
    this.#view = new DataView(this.#slab.buffer);
    this.#from = this.#at = 0;
  }

  #cut(): void {
    if (this.#at === this.#from) return;
    this.#parts.push(this.#slab.subarray(this.#from, this.#at));
    this.#from = this.#at;
  }
}

/** Takes frames out of a stream of bytes, however it was cut. Holds at most one incomplete frame. */
export class FrameDecoder {
  /** Longest frame that is accepted now; small for a stranger, more once it is the peer. */
  maxFrame: number;
  readonly #onFrame: (type: number, body: Uint8Array) => void;
  /** The beginning of a frame that is not complete: `#held` bytes of `#need`, which is no more than the header at first. */
  #buffer: Uint8Array = new Uint8Array(FRAME_HEADER);
  #held = 0;
  #need = FRAME_HEADER;
  #stopped = false;

  /**
   * @param onFrame is given each frame: its type and a view of its body, inside the chunk where it lay there whole.
   *   The memory is never written to again. It may call {@link stop}.
   */
  constructor(onFrame: (type: number, body: Uint8Array) => void, maxFrame = MAX_FRAME) {
    this.#onFrame = onFrame;
    this.maxFrame = maxFrame;
  }

  /** Nothing is looked at any more. */
  stop(): void {
    this.#stopped = true;
  }

  /** Takes the next bytes, whose memory must not change afterwards. Throws OUTLIVE_PAIR_PROTOCOL; the stream is of no use then. */
  push(chunk: Uint8Array): void {
    let at = 0;
    const end = chunk.length;
    while (at < end && !this.#stopped) {
      if (this.#held === 0 && end - at >= FRAME_HEADER) {
        const need = this.#frameLength(chunk, at);
        if (end - at >= need) {
          this.#onFrame(chunk[at + 4], chunk.subarray(at + FRAME_HEADER, at + need));
          at += need;
          continue;
        }
      }
      const taken = Math.min(this.#need - this.#held, end - at);
      this.#hold(chunk.subarray(at, at + taken));
      at += taken;
      if (this.#held < this.#need) continue;
      if (this.#need === FRAME_HEADER) this.#need = this.#frameLength(this.#buffer, 0);
      if (this.#held === this.#need) this.#release();
    }
  }

  #release(): void {
    const frame = this.#buffer;
    const length = this.#need;
    this.#buffer = new Uint8Array(FRAME_HEADER);
    this.#held = 0;
    this.#need = FRAME_HEADER;
    this.#onFrame(frame[4], frame.subarray(FRAME_HEADER, length));
  }

  /** Memory is taken as bytes come, not as the peer announces them. */
  #hold(bytes: Uint8Array): void {
    const total = this.#held + bytes.length;
    if (total > this.#buffer.length) {
      const grown = new Uint8Array(Math.min(this.#need, Math.max(FIRST_GROWTH, 2 * this.#buffer.length, total)));
      grown.set(this.#buffer.subarray(0, this.#held));
      this.#buffer = grown;
    }
    this.#buffer.set(bytes, this.#held);
    this.#held = total;
  }

  /** Length of the frame with its header, which is checked before anything more of it is awaited. */
  #frameLength(bytes: Uint8Array, at: number): number {
    const length = u32(bytes, at);
    const type = bytes[at + 4];
    if (length === 0 || type === 0 || type > LAST_TYPE) throw peerError(`sent a frame of the unknown type ${type}`);
    const limit = type === FRAME.batch ? this.maxFrame : Math.min(this.maxFrame, MAX_JSON_FRAME);
    if (length > limit) throw peerError(`sent a frame of ${length} bytes, where ${limit} are allowed`);
    return 4 + length;
  }
}

/**
 * Goes through the records of a batch.
 * @param expected the position that its first record must have
 * @param onRecord is given views of `body`; when it returns false, the rest is left out
 * @returns the position after the last record. Throws OUTLIVE_PAIR_POSITION for records that were seen before or are missing,
 *   OUTLIVE_PAIR_PROTOCOL for a body that is no batch.
 */
export function decodeBatch(
  body: Uint8Array,
  expected: number,
  onRecord: (kind: number, session: number, bytes: Uint8Array) => boolean,
): number {
  const first = position(body);
  if (first !== expected) {
    const what = first < expected ? 'repeated records' : 'left out records';
    throw peerError(`${what}: they begin at ${first} instead of ${expected}`, 'OUTLIVE_PAIR_POSITION');
  }
  let next = first;
  let at = 8;
  const end = body.length;
  if (at === end) throw peerError('sent an empty batch');
  while (at < end) {
    if (end - at < RECORD_HEADER) throw peerError('sent a batch that ends inside a record');
    const length = u32(body, at + 5);
    const from = at + RECORD_HEADER;
    if (length > end - from) throw peerError('sent a batch that ends inside a record');
    next++;
    if (!onRecord(body[at], u32(body, at + 1), body.subarray(from, from + length))) return next;
    at = from + length;
  }
  return next;
}

/** The position in an ack. Throws OUTLIVE_PAIR_PROTOCOL. */
export function decodeAck(body: Uint8Array): number {
  if (body.length !== 8) throw peerError('sent an acknowledgement that is none');
  return position(body);
}

/** The object in a frame whose body is JSON. Throws OUTLIVE_PAIR_PROTOCOL. */
export function decodeJson(body: Uint8Array): Record<string, unknown> {
  let value: unknown;
  try {
    value = JSON.parse(Buffer.from(body.buffer, body.byteOffset, body.length).toString());
  } catch {
    // What was sent is not repeated: a stranger may have sent anything.
    throw peerError('sent a message that is not JSON');
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw peerError('sent a message of a wrong shape');
  return value as Record<string, unknown>;
}

function u32(bytes: Uint8Array, at: number): number {
  return ((bytes[at] << 24) | (bytes[at + 1] << 16) | (bytes[at + 2] << 8) | bytes[at + 3]) >>> 0;
}

function position(body: Uint8Array): number {
  const value = body.length < 8 ? Number.NaN : u32(body, 0) * HIGH + u32(body, 4);
  if (!Number.isSafeInteger(value)) throw peerError('sent a position that is none');
  return value;
}
