import type { TlsFacts } from '../contract/index.js';
import type { StartTls } from './tls.js';

/**
 * One TCP connection, with or without TLS, as bytes in and bytes out. It starts paused. The owner sets the three handlers
 * before the first `resume()` and may replace them at any time. Handlers are never called from inside a method of the
 * wire, so the owner need not be ready for re-entrance; and they may call every method of the wire.
 */
export interface Wire {
  /** A chunk arrived. It belongs to the receiver, and the wire never changes it afterwards. */
  onData: (chunk: Uint8Array) => void;
  /**
   * Called exactly once, when the connection is over for whatever reason, the owner's own `end`, `destroy` and `reset`
   * included. A peer's FIN counts (databases do not half-close). What came before is delivered first, so a paused wire
   * learns of its end when it is resumed. The error is null for an orderly end and for an end that the owner asked for.
   */
  onClose: (error: Error | null) => void;
  /** The backlog fell to the low mark after `write` had returned false. */
  onDrain: () => void;

  /**
   * Accepts the chunk, which must not be changed any more. False when the backlog is above the high mark: wait for
   * `onDrain`. Never throws. After `end` or the close a chunk is dropped and the answer is true, so that nobody waits.
   */
  write(chunk: Uint8Array): boolean;
  /** Holds writes back until the matching `uncork`, so that they leave together. May be nested. */
  cork(): void;
  uncork(): void;
  /** Bytes accepted and not yet given to the kernel. */
  readonly backlog: number;

  readonly paused: boolean;
  /** Takes effect at once: no `onData` after it, until `resume`. */
  pause(): void;
  resume(): void;
  /** Puts delivered bytes back, to be delivered again before anything else; only while paused. */
  unread(chunk: Uint8Array): void;

  /** Flushes, sends FIN, throws away what still arrives, and closes when the peer has closed or after {@link LINGER_MS}. */
  end(last?: Uint8Array): void;
  /** Closes at once; what is still in the backlog is lost. */
  destroy(): void;
  /**
   * Closes at once with a RST (over TLS: without its good-bye), so that the peer knows that something broke. Right behind
   * `end`, while the FIN is under way, it is as `destroy`.
   */
  reset(): void;

  /** False from the first call of `end`, `destroy` or `reset` on, and when the connection is over. */
  readonly open: boolean;
  /** True once TLS is established. */
  readonly secure: boolean;
  /** Addresses are asked for when first read; empty (0) when the connection was over by then. */
  readonly remoteAddress: string;
  readonly remotePort: number;
  readonly localAddress: string;
  readonly localPort: number;
  /** Payload bytes delivered by `onData`. */
  readonly bytesRead: number;
  /** Payload bytes accepted by `write` and `end`. */
  readonly bytesWritten: number;

  /**
   * Switches the connection to TLS; the wire must be paused, and is paused afterwards. Bytes that were put back by
   * `unread` go to the TLS engine when `direct` is set; else plaintext that is buffered at this moment is refused, because
   * an attacker could have put it in front of the encrypted stream (CVE-2021-23222). Rejects when the handshake fails;
   * the wire is then destroyed.
   */
  startTls(options: StartTls): Promise<TlsFacts>;
}

/** When `write` says stop, and when `onDrain` says go. */
export interface WireMarks {
  /** Bytes of backlog above which `write` returns false. */
  readonly highWater?: number;
  /** Bytes of backlog at which `onDrain` is called. */
  readonly lowWater?: number;
}

/** For bare handles: where a wire reads into. */
export interface WireMemory {
  /**
   * {@link READ_SIZE} bytes at the beginning of their buffer. Whatever any wire with this memory read last from the kernel lies at its beginning until
   * `onData` has returned. By default a buffer of this process's own.
   */
  readonly memory?: Uint8Array;
}

/** Bytes of one read. */
export const READ_SIZE = 64 * 1024;

export const DEFAULT_HIGH_WATER = 128 * 1024;
export const DEFAULT_LOW_WATER = 32 * 1024;

/** How long a wire that was ended waits for the peer to close. */
export const LINGER_MS = 2000;

/** Keep-alive probes start after this idle time. */
export const KEEPALIVE_SECONDS = 60;

/** The handlers of a wire that has no owner yet. */
export const ignore = (): void => {};
