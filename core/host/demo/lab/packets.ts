import { AF_PACKET, callFailed, check, LITTLE, libc } from '../../../io/tcp/libc.js';

/** linux/if_packet.h */
export const SOL_PACKET = 263;
export const PACKET_IGNORE_OUTGOING = 23;
const ETH_P_ALL = 3;
/** sizeof(struct sockaddr_ll) */
export const ADDRESS_SIZE = 20;

/** Lets an AF_PACKET socket see everything on one interface, or on all when none is named (packet(7)). Throws OUTLIVE_TCP_CALL_FAILED. */
export function bindPackets(fd: number, name: string | null): void {
  const index = name === null ? 0 : libc().interfaceIndex(name);
  if (name !== null && index === 0) throw callFailed(`if_nametoindex ${name}`);
  const address = new DataView(new ArrayBuffer(ADDRESS_SIZE));
  address.setUint16(0, AF_PACKET, LITTLE);
  address.setUint16(2, ETH_P_ALL);
  address.setInt32(4, index, LITTLE);
  check(libc().bind(fd, new Uint8Array(address.buffer), ADDRESS_SIZE), `bind to ${name ?? 'all interfaces'}`);
}

/** What a packet is as far as the question goes who speaks for an address. */
export type PacketKind = 'tcp' | 'rst' | 'fin' | 'arp' | 'neighbour' | 'other';

/** Who a packet says that it comes from. */
export interface PacketSource {
  /** Address in the form of inet_ntop, as Node prints it. For ARP and neighbour advertisements the address that they tell of. */
  readonly source: string;
  readonly kind: PacketKind;
  /** Address of the network card, as `02:4f:4c:00:00:01`. */
  readonly mac: string;
}

/**
 * Reads an Ethernet frame as far as it tells who sent it; its end may be missing. Layouts: RFC 826 (ARP), RFC 791, RFC 8200, RFC 9293, RFC 4861
 * section 4.4. Null when the frame is none of these.
 */
export function readSource(frame: Buffer): PacketSource | null {
  if (frame.length < 34) return null;
  const mac = frame.toString('hex', 6, 12).replace(/..(?=.)/g, '$&:');
  switch (frame.readUInt16BE(12)) {
    case 0x0800: {
      const transport = 14 + (frame[14] & 15) * 4;
      return { mac, source: v4(frame, 26), kind: frame[23] === 6 ? tcpKind(frame, transport) : 'other' };
    }
    case 0x0806:
      return { mac, source: v4(frame, 28), kind: 'arp' };
    case 0x86dd:
      if (frame.length < 54) return null;
      if (frame[20] === 58 && frame[54] === 136 && frame.length >= 78) {
        return { mac, source: v6(frame, 62), kind: 'neighbour' };
      }
      return { mac, source: v6(frame, 22), kind: frame[20] === 6 ? tcpKind(frame, 54) : 'other' };
    default:
      return null;
  }
}

function tcpKind(frame: Buffer, at: number): PacketKind {
  const flags = frame.length > at + 13 ? frame[at + 13] : 0;
  return flags & 4 ? 'rst' : flags & 1 ? 'fin' : 'tcp';
}

function v4(frame: Buffer, at: number): string {
  return `${frame[at]}.${frame[at + 1]}.${frame[at + 2]}.${frame[at + 3]}`;
}

function v6(frame: Buffer, at: number): string {
  const words = Array.from({ length: 8 }, (_, index) => frame.readUInt16BE(at + index * 2).toString(16));
  // URL writes the one short form of an address (RFC 5952).
  return new URL(`http://[${words.join(':')}]`).hostname.slice(1, -1);
}
