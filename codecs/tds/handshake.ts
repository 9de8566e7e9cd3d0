import type { HandshakeWrap } from '../../core/contract/index.js';
import { DEFAULT_PACKET_SIZE, HEADER_LENGTH, PRELOGIN, packetLength, packets } from './packet.js';

const EMPTY = new Uint8Array(0);

/** ALPN name of TLS that starts at once (TDS 8.0). */
export const ALPN = 'tds/8.0';

/** Before TDS 8.0 a TLS handshake travels in PRELOGIN messages, one for each flight; a server may use type 4 for its own (2.2.6.5). */
export function inPrelogin(peer: 'client' | 'server'): HandshakeWrap {
  let rest: Uint8Array = EMPTY;
  return {
    wrap: (records) => packets(PRELOGIN, records, DEFAULT_PACKET_SIZE),
    unwrap: (bytes) => {
      const parts: Uint8Array[] = [];
      let left = rest.length === 0 ? bytes : Buffer.concat([rest, bytes]);
      while (left.length > 0) {
        // TLS records have other types than packets: from the first one on nothing is wrapped.
        if (left[0] >= 0x14 && left[0] <= 0x17) {
          parts.push(left);
          left = EMPTY;
          break;
        }
        const length = packetLength(left, 0, left.length, peer);
        if (length === 0 || length > left.length) break;
        parts.push(left.subarray(HEADER_LENGTH, length));
        left = left.subarray(length);
      }
      rest = left;
      return parts.length === 1 ? parts[0] : Buffer.concat(parts);
    },
  };
}
