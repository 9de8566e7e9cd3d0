import { allowClose } from '../guard.js';
import { addressBytes, type Endpoint, socketAddress } from './address.js';
import { internetChecksum } from './announce.js';
import {
  AF_INET,
  AF_INET6,
  attachFilter,
  closeSocket,
  DEAF,
  IPPROTO_TCP,
  libc,
  MSG_DONTWAIT,
  openSocket,
  SOCK_RAW,
} from './libc.js';

/** A socket for {@link resetClient}. Throws OUTLIVE_TCP_CALL_FAILED without CAP_NET_RAW. */
export function openReset(family: 4 | 6): number {
  const socket = openSocket(family === 4 ? AF_INET : AF_INET6, SOCK_RAW, IPPROTO_TCP);
  allowClose(socket);
  // It would be given all that the host receives.
  attachFilter(socket, DEAF);
  return socket;
}

/**
 * Resets a client at a position that the kernel does not know. A host heeds a RST only if it carries the very number that it
 * expects next (RFC 5961 section 3); that of the kernel carries what we would send next, which is another one
 * where the client lacks something, or has more than we know. `local` must be an address of this host; failures are ignored.
 * @param socket from {@link openReset}, for the same family
 * @param sequence what the client acknowledged last
 */
export function resetClient(socket: number, local: Endpoint, remote: Endpoint, sequence: number): void {
  say(socket, local, remote, resetSegment(local, remote, sequence));
}

/**
 * Makes clients speak of whose connections this host knows nothing but the ends. A host answers a segment from outside of its window with
 * an acknowledgement (RFC 9293 section 3.10.7.4), to which this host's kernel answers with the RST for what it does not have.
 * A client that is asked again within half a second need not answer (tcp_invalid_ratelimit of Linux). Throws OUTLIVE_TCP_CALL_FAILED
 * without CAP_NET_RAW; other failures are ignored.
 * @param sequence any number; a client that may just expect it is silent
 */
export function provoke(
  family: 4 | 6,
  clients: readonly { readonly local: Endpoint; readonly remote: Endpoint }[],
  sequence: () => number,
): void {
  const socket = openReset(family);
  for (const { local, remote } of clients) say(socket, local, remote, bareSegment(local, remote, sequence(), ACK));
  closeSocket(socket);
}

function say(socket: number, local: Endpoint, remote: Endpoint, segment: Uint8Array): void {
  const from = socketAddress({ address: local.address, port: 0 });
  const to = socketAddress({ address: remote.address, port: 0 });
  // The kernel puts the IP header in front, with the bound address as its source; a raw socket may be bound again and again.
  if (libc().bind(socket, from, from.length) !== 0) return;
  libc().sendto(socket, segment, segment.length, MSG_DONTWAIT, to, to.length);
}

/** Control bits of a TCP header (RFC 9293 section 3.1). */
const RST = 4;
const ACK = 16;

/** A TCP header with RST and nothing else. */
export function resetSegment(local: Endpoint, remote: Endpoint, sequence: number): Uint8Array {
  return bareSegment(local, remote, sequence, RST);
}

function bareSegment(local: Endpoint, remote: Endpoint, sequence: number, control: number): Uint8Array {
  const view = new DataView(new ArrayBuffer(20));
  view.setUint16(0, local.port);
  view.setUint16(2, remote.port);
  view.setUint32(4, sequence);
  // Five words of header.
  view.setUint16(12, 0x5000 | control);
  const segment = new Uint8Array(view.buffer);
  // The checksum covers the addresses, the protocol and the length, too; zeros between do not count.
  const addresses = [...addressBytes(local.address), ...addressBytes(remote.address)];
  view.setUint16(16, internetChecksum(Uint8Array.from([...addresses, 0, IPPROTO_TCP, 0, segment.length, ...segment])));
  return segment;
}
