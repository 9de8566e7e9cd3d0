import { allowClose, forbidClose } from '../guard.js';
import { RawWire } from '../raw-wire.js';
import type { Wire } from '../wire.js';
import { closeSocket } from './libc.js';
import { discard, type FrozenTcp, freeze, thawInPlace } from './repair.js';
import { fdOf } from './wire.js';

/**
 * Stops the connection of a paused wire, which stays the wire's: {@link goOn} or {@link vanish} must follow. Throws like `freeze`.
 * @returns the image, whose positions are those that the wire itself counts
 */
export function standStill(wire: Wire): FrozenTcp {
  return freeze(fdOf(wire), wire.bytesRead, wire.bytesWritten - wire.backlog);
}

/** Lets a connection that stood still go on where it is. */
export function goOn({ fd }: FrozenTcp): void {
  thawInPlace(fd);
  closeSocket(fd);
}

/** Lets go of a connection of which somebody else has a descriptor: its peer notices nothing. */
export function abandon(wire: Wire): void {
  if (wire instanceof RawWire && wire.fd >= 0) wire.abandon();
}

/** Lets what the kernel says at the end of this connection out of the guard, and nothing that it says when the process dies. */
export function letClose(wire: Wire): void {
  if (!(wire instanceof RawWire)) return;
  wire.beforeClose = allow;
  if (wire.fd >= 0) attempt(forbidClose, wire.fd);
}

/** Whether what the kernel says to clients of connections that this host does not have leaves through the guard. @param fd of a listening socket */
export function answerStrangers(fd: number, on: boolean): void {
  attempt(on ? allowClose : forbidClose, fd);
}

function allow(fd: number): void {
  attempt(allowClose, fd);
}

function attempt(set: (fd: number) => void, fd: number): void {
  try {
    set(fd);
  } catch {
    // The descriptor is gone: so is the connection.
  }
}

/** Ends a wire without a word to its peer. @param frozen what {@link standStill} gave; null when the connection could not be stopped */
export function vanish(wire: Wire, frozen: FrozenTcp | null): void {
  if (frozen !== null && wire instanceof RawWire) wire.abandon();
  else wire.destroy();
  if (frozen !== null) discard(frozen.fd);
}
