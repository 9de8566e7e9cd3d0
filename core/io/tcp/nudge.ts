import { addressBytes, type Endpoint, socketAddress } from './address.js';
import { internetChecksum } from './announce.js';
import { AF_INET, AF_INET6, IPPROTO_ICMP, IPPROTO_ICMPV6, libc, MSG_DONTWAIT, openSocket, SOCK_RAW } from './libc.js';

/** A socket for {@link nudge}. Throws OUTLIVE_TCP_CALL_FAILED without CAP_NET_RAW. */
export function openNudge(family: 4 | 6): number {
  return family === 4 ? openSocket(AF_INET, SOCK_RAW, IPPROTO_ICMP) : openSocket(AF_INET6, SOCK_RAW, IPPROTO_ICMPV6);
}

/**
 * Asks a client to send again now what it waits to send again. While its host was gone, the client doubled its retransmission
 * time again and again, and would let as long as the outage pass once more. TCP Long Connectivity Disruption (RFC 6069)
 * takes a doubling back for every ICMP message of an unreachable host that quotes the oldest unacknowledged byte: so the
 * message that a router would have sent during the outage is sent now. A client that has nothing to send again, or does not know the RFC,
 * ignores it. Failures are ignored, too.
 * @param socket from {@link openNudge}, for the same family
 * @param sequence of the first byte of the client that we lack
 */
export function nudge(socket: number, local: Endpoint, remote: Endpoint, sequence: number): void {
  const message = unreachable(local, remote, sequence);
  const to = socketAddress({ address: remote.address, port: 0 });
  libc().sendto(socket, message, message.length, MSG_DONTWAIT, to, to.length);
}

/** The ICMP message (RFC 792; RFC 4443, whose checksum the kernel fills in) that quotes a segment from `remote` to `local`. */
export function unreachable(local: Endpoint, remote: Endpoint, sequence: number): Uint8Array {
  const from = addressBytes(remote.address);
  const to = addressBytes(local.address);
  const segment = [remote.port >> 8, remote.port & 255, local.port >> 8, local.port & 255];
  for (const shift of [24, 16, 8, 0]) segment.push((sequence >>> shift) & 255);
  if (from.length === 16) {
    // No route to destination, as Linux demands for IPv6 (net/ipv6/tcp_ipv6.c); a header without payload beyond TCP's.
    return Uint8Array.from([1, 0, 0, 0, 0, 0, 0, 0, 0x60, 0, 0, 0, 0, 20, 6, 64, ...from, ...to, ...segment]);
  }
  const header = Uint8Array.from([0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, ...from, ...to]);
  setChecksum(header, 10);
  // Host unreachable.
  const message = Uint8Array.from([3, 1, 0, 0, 0, 0, 0, 0, ...header, ...segment]);
  setChecksum(message, 2);
  return message;
}

function setChecksum(bytes: Uint8Array, at: number): void {
  const sum = internetChecksum(bytes);
  bytes[at] = sum >> 8;
  bytes[at + 1] = sum & 255;
}
