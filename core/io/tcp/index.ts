export type { Endpoint } from './address.js';
export { announce } from './announce.js';
export { DEFAULT_GRACES, GapJudge, type GapOptions, GapWatch, type Graces, type Verdict } from './gaps.js';
export { reserveDescriptor } from './libc.js';
export {
  at,
  discard,
  type FrozenTcp,
  freeze,
  identify,
  type RestoredTcp,
  release,
  resetConnection,
  restore,
  settle,
  skip,
  type TcpIdentity,
  type TcpImage,
  tcpRepairUnavailable,
  thawIfFrozen,
  thawInPlace,
  unacknowledged,
  unacknowledgedBytes,
  unread,
} from './repair.js';
export { provoke } from './reset.js';
export { type FrozenWire, fdOf, freezeWire, unwrittenOf, wireOf } from './wire.js';
