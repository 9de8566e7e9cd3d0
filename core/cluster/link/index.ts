export { Flow } from './flow.js';
export {
  decodeAck,
  decodeBatch,
  decodeJson,
  FRAME,
  FrameDecoder,
  FrameEncoder,
  GREETING_FRAME,
  MAX_FRAME,
  MAX_JSON_FRAME,
  peerError,
  RECORD_HEADER,
} from './frames.js';
export {
  type Effect,
  type Hello,
  LINK_VERSION,
  type LinkConfig,
  LinkState,
  type LinkVersion,
  type Proof,
} from './link.js';
