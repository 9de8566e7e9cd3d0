/**
 * The frames of a TDS session as the core sees them. TDS has packets, whose ends mean nothing, messages, which can be of any length, and
 * tokens, of which some have no length of their own. So packets are taken off and a frame is put around what belongs together: of a client
 * a whole message, of a server one token, or one row; a long row is several frames, cut at the same places wherever its packets end.
 *
 * A frame has a header of six bytes: kind, flags, length with the header (little-endian).
 */

import { uint32 } from './bytes.js';

const NOTHING = new Uint8Array(0);

export const FRAME_HEADER = 6;

// Kinds of a server's frames besides the types of tokens.
/** The end of a message. */
export const END = 0x00;
/** The server ended a packet here although its message goes on. */
export const PACKET_END = 0x01;
/** Rows, and values that are told apart from their token. */
export const DATA = 0x02;

// Flags of a server's frames.
/** The next frame goes on with it. */
export const PARTIAL = 0x01;
/** Of {@link PACKET_END}: the packet was not full. */
export const SHORT_PACKET = 0x02;

/** The longest frame of {@link DATA}, without its header: what is longer is cut. */
export const LONGEST_DATA = 65_536;

/** Kind of the frame at `at`. */
export const kindOf = (bytes: Uint8Array, at: number): number => bytes[at];

export const flagsOf = (bytes: Uint8Array, at: number): number => bytes[at + 1];

/** Length of the frame at `at`, its header included. */
export const frameLength = (bytes: Uint8Array, at: number): number => uint32(bytes, at + 2);

/** Puts frames one behind the other. */
export class FrameWriter {
  #bytes: Buffer;
  #length = 0;

  constructor(room: number) {
    this.#bytes = Buffer.allocUnsafe(room);
  }

  get length(): number {
    return this.#length;
  }

  /** A frame around [start, end) of `bytes`. */
  put(kind: number, flags: number, bytes: Uint8Array = NOTHING, start = 0, end = bytes.length): void {
    const at = this.#length;
    const length = FRAME_HEADER + end - start;
    if (at + length > this.#bytes.length) {
      const grown = Buffer.allocUnsafe(2 * (at + length));
      grown.set(this.#bytes.subarray(0, at));
      this.#bytes = grown;
    }
    const out = this.#bytes;
    out[at] = kind;
    out[at + 1] = flags;
    out.writeUInt32LE(length, at + 2);
    if (end > start) out.set(bytes.subarray(start, end), at + FRAME_HEADER);
    this.#length = at + length;
  }

  /** What was put. The writer is not used any more. */
  done(): Uint8Array {
    return this.#bytes.subarray(0, this.#length);
  }
}

/** One frame around a payload. */
export function frame(kind: number, payload: Uint8Array = NOTHING, flags = 0): Uint8Array {
  const out = new FrameWriter(FRAME_HEADER + payload.length);
  out.put(kind, flags, payload);
  return out.done();
}

/** Tokens of the gateway's own, each as a frame; they must have lengths of their own (ERROR, INFO, ENVCHANGE, DONE and the like). */
export const tokenFrames = (...tokens: readonly Uint8Array[]): Uint8Array =>
  Buffer.concat(tokens.map((token) => frame(token[0], token)));

/** The end of a message. */
export const END_FRAME: Uint8Array = frame(END);
