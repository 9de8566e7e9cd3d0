import { ignore, type Wire } from './wire.js';

/**
 * Waits for the first byte of a paused wire without taking it: everything read is put back. Resolves with -1 when the
 * connection ends first. Takes the wire's handlers over meanwhile; the wire is paused afterwards. There is no time limit
 * here: the owner destroys a wire that waited long enough.
 */
export function peekFirstByte(wire: Wire): Promise<number> {
  return new Promise((resolve) => {
    const leave = (byte: number): void => {
      wire.onData = ignore;
      wire.onClose = ignore;
      resolve(byte);
    };
    if (!wire.open) {
      leave(-1);
      return;
    }
    wire.onData = (chunk) => {
      wire.pause();
      wire.unread(chunk);
      leave(chunk[0]);
    };
    wire.onClose = () => leave(-1);
    wire.resume();
  });
}
