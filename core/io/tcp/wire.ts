import { CodedError } from '../../contract/index.js';
import { systemError } from '../errors.js';
import { binding, RawWire } from '../raw-wire.js';
import type { Wire, WireMarks, WireMemory } from '../wire.js';
import { type FrozenTcp, freeze } from './repair.js';

/**
 * A wire over a connected socket that was restored, thawed, or handed over by another process. The descriptor is the wire's
 * from now on, and nobody else may close it. Throws OUTLIVE_TCP_REPAIR_UNAVAILABLE where this Node has no bare handles, and
 * the system's error for a descriptor that is no socket; the descriptor is the caller's then.
 */
export function wireOf(fd: number, marks: WireMarks & WireMemory = {}): RawWire {
  if (binding === null) {
    const message = 'a connection cannot be taken over: this version of Node has no bare TCP handles as they are known';
    throw new CodedError('OUTLIVE_TCP_REPAIR_UNAVAILABLE', 'system', message);
  }
  const handle = new binding.TCP(binding.SOCKET);
  const error = handle.open(fd);
  if (error !== 0) {
    handle.close();
    throw systemError(error, 'open');
  }
  return new RawWire(handle, marks);
}

/** The descriptor of a wire that can be moved; -1 for one that cannot: TLS, closed, or without a bare handle. */
export function fdOf(wire: Wire): number {
  return wire instanceof RawWire ? wire.fd : -1;
}

/** What a wire that can be moved was given and the kernel was not yet. */
export function unwrittenOf(wire: Wire): Uint8Array {
  return wire instanceof RawWire ? wire.unwritten : new Uint8Array(0);
}

/** A wire that was taken off its connection, which stands still. */
export interface FrozenWire {
  readonly tcp: FrozenTcp;
  /** What was accepted by the wire's `write` and not given to the kernel; it follows `tcp.image.unacknowledged`. */
  readonly unwritten: Uint8Array;
  /** What no reader has: put back by the wire's `unread`, and then `tcp.unread`. It counts as received. */
  readonly unread: Uint8Array;
}

/**
 * Freezes the connection of a wire for a planned move and ends the wire, all in one go, so that nothing is lost in between.
 * Throws OUTLIVE_TCP_NOT_MOVABLE (TLS, closed, half closed) or OUTLIVE_TCP_CALL_FAILED; the wire is paused then and goes on.
 * @param before bytes of the connection's two streams from before the wire was made, if it was restored
 */
export function freezeWire(wire: Wire, before = { received: 0, written: 0 }): FrozenWire {
  const fd = fdOf(wire);
  if (fd < 0 || !wire.open) {
    const message = 'the connection cannot be moved: it is closed, or carried by TLS or by Node itself';
    throw new CodedError('OUTLIVE_TCP_NOT_MOVABLE', 'network', message);
  }
  wire.pause();
  const raw = wire as RawWire;
  const received = before.received + raw.bytesRead + raw.unreadBytes;
  const tcp = freeze(fd, received, before.written + raw.bytesWritten - raw.backlog);
  const { unwritten, unread } = raw.abandon();
  return { tcp, unwritten, unread: Buffer.concat([unread, tcp.unread]) };
}
