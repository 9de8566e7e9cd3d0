import { ProtocolViolation } from '../../core/contract/index.js';
import type { Randomness } from './random.js';

/** Mutated bytes to be read in each direction; OUTLIVE_FUZZ_BYTES=10000000 for a long run. */
export const FUZZ_BYTES = Number(process.env.OUTLIVE_FUZZ_BYTES ?? 1_000_000);
/** Far longer than any piece takes; an endless loop takes longer. */
const SLOW_MS = 2000;

/** The bytes with some of them changed, cut out, put in or doubled. */
export function mutate(bytes: Uint8Array, random: Randomness): Uint8Array {
  let mutated = Buffer.from(bytes);
  for (let times = 1 + random.below(4); times > 0; times--) {
    const at = random.below(mutated.length + 1);
    const length = random.below(random.one([2, 9, 300]));
    const [before, after] = [mutated.subarray(0, at), mutated.subarray(at)];
    switch (random.below(5)) {
      case 0:
        if (after.length > 0) mutated[at] = random.one([0, 1, 0x7f, 0x80, 0xfe, 0xff, random.below(256)]);
        break;
      case 1:
        if (after.length > 0) mutated[at] ^= 1 << random.below(8);
        break;
      case 2:
        mutated = Buffer.concat([before, after.subarray(length)]);
        break;
      case 3:
        mutated = Buffer.concat([before, random.bytes(length), after]);
        break;
      default:
        mutated = Buffer.concat([before, after.subarray(0, length), after]);
    }
  }
  return mutated;
}

/** In pieces of any size. */
export function* cut(bytes: Uint8Array, random: Randomness): Generator<Uint8Array> {
  const size = random.one([1, 7, 600, 100_000]);
  for (let at = 0; at < bytes.length; ) {
    const end = Math.min(bytes.length, at + 1 + random.below(size));
    yield bytes.subarray(at, end);
    at = end;
  }
}

/** Runs it; it may be refused, by a coded error without data, and by nothing else. True when it was not. */
export function survives(where: string, what: () => void): boolean {
  const started = performance.now();
  let refused: unknown = null;
  try {
    what();
  } catch (error) {
    refused = error;
  }
  const took = performance.now() - started;
  if (took > SLOW_MS) throw new Error(`took ${took} ms (${where})`);
  if (refused === null) return true;
  if (!(refused instanceof ProtocolViolation)) throw new Error(`not a coded error (${where})`, { cause: refused });
  if (refused.code !== 'OUTLIVE_PROTOCOL_VIOLATION' || !/^[A-Za-z0-9_ ():.,]+$/.test(refused.message))
    throw new Error(`an error with something in it: ${refused.message} (${where})`);
  return false;
}
