import { setTimeout as delay } from 'node:timers/promises';
import { addressBytes, interfaceIndex, linkAddress } from './address.js';
import { AF_PACKET, check, closeSocket, libc, MSG_DONTWAIT, openSocket, SIOCGIFHWADDR, SOCK_RAW } from './libc.js';

/** When the announcements leave, in ms: one may be lost, and a neighbour may still be busy with an older answer. */
const TIMES_MS = [0, 50, 200];

/** Types of Ethernet frames. */
const ETHERTYPE_ARP = 0x0806;
const ETHERTYPE_IPV6 = 0x86dd;
/** The size of `struct ifreq`, and where the interface's own address lies in it (netdevice(7)). */
const IFREQ_SIZE = 40;
const IFREQ_MAC = 18;

/**
 * Tells the neighbours that an address lives here from now on: three times within 200 ms, gratuitous ARP in both its forms, or
 * unsolicited neighbour advertisements. Resolves when the last one has left. Rejects with OUTLIVE_TCP_ADDRESS (no such
 * interface, not an address), OUTLIVE_TCP_CALL_FAILED (no CAP_NET_RAW, interface down) or OUTLIVE_TCP_REPAIR_UNAVAILABLE.
 * @param address numeric
 */
export async function announce(address: string, interfaceName: string): Promise<void> {
  const index = interfaceIndex(interfaceName);
  const fd = openSocket(AF_PACKET, SOCK_RAW, 0);
  try {
    const request = new Uint8Array(IFREQ_SIZE);
    new TextEncoder().encodeInto(interfaceName, request);
    check(libc().ioctl(fd, SIOCGIFHWADDR, request), 'ioctl SIOCGIFHWADDR');
    const frames = announcements(address, request.slice(IFREQ_MAC, IFREQ_MAC + 6));
    let now = 0;
    for (const time of TIMES_MS) {
      if (time > now) await delay(time - now);
      now = time;
      for (const frame of frames) {
        const type = (frame[12] << 8) | frame[13];
        const to = linkAddress(index, type);
        check(libc().sendto(fd, frame, frame.length, MSG_DONTWAIT, to, to.length), 'sendto');
      }
    }
  } finally {
    closeSocket(fd);
  }
}

/**
 * The Ethernet frames that announce an address. Throws OUTLIVE_TCP_ADDRESS.
 * @param address numeric
 * @param mac the interface's own address, 6 bytes
 */
export function announcements(address: string, mac: Uint8Array): Uint8Array[] {
  const ip = addressBytes(address);
  if (ip.length === 16) return [neighbourAdvertisement(ip, mac)];
  // Some hosts heed the request, some the reply (RFC 5227 section 3; arping(8) -U and -A).
  return [arp(1, ip, mac), arp(2, ip, mac)];
}

/** RFC 826: sender and target are the address itself. @param operation 1 request, 2 reply */
function arp(operation: number, ip: Uint8Array, mac: Uint8Array): Uint8Array {
  const everybody = [255, 255, 255, 255, 255, 255];
  const target = operation === 1 ? [0, 0, 0, 0, 0, 0] : mac;
  const kinds = [0, 1, 8, 0, 6, 4, 0, operation];
  const packet = [...kinds, ...mac, ...ip, ...target, ...ip];
  // Padded to the least size of an Ethernet frame without its checksum.
  return Uint8Array.from([...ethernet(everybody, mac, ETHERTYPE_ARP), ...packet, ...new Array(18).fill(0)]);
}

/** RFC 4861 sections 4.4 and 7.2.6: to all nodes, with the override flag, with our link-layer address. */
function neighbourAdvertisement(ip: Uint8Array, mac: Uint8Array): Uint8Array {
  const allNodes = [0xff, 2, ...new Array(13).fill(0), 1];
  const OVERRIDE = 0x20;
  const message = Uint8Array.from([136, 0, 0, 0, OVERRIDE, 0, 0, 0, ...ip, 2, 1, ...mac]);
  const { length } = message;
  const sum = internetChecksum(Uint8Array.from([...ip, ...allNodes, 0, 0, 0, length, 0, 0, 0, 58, ...message]));
  message[2] = sum >> 8;
  message[3] = sum & 255;
  // Receivers drop it unless the hop limit is 255 (section 7.1.2).
  const header = [0x60, 0, 0, 0, 0, length, 58, 255, ...ip, ...allNodes];
  return Uint8Array.from([...ethernet([0x33, 0x33, 0, 0, 0, 1], mac, ETHERTYPE_IPV6), ...header, ...message]);
}

function ethernet(to: readonly number[], from: Uint8Array, type: number): number[] {
  return [...to, ...from, type >> 8, type & 255];
}

/** The checksum of IP, ICMP and TCP (RFC 1071): the complement of the sum in one's complement arithmetic. */
export function internetChecksum(bytes: Uint8Array): number {
  let sum = 0;
  for (let at = 0; at < bytes.length; at += 2) sum += (bytes[at] << 8) | (bytes[at + 1] ?? 0);
  while (sum > 0xffff) sum = (sum & 0xffff) + Math.floor(sum / 0x10000);
  return ~sum & 0xffff;
}
