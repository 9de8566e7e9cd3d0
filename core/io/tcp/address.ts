import { isIPv4, isIPv6 } from 'node:net';
import { CodedError } from '../../contract/index.js';
import { AF_INET, AF_INET6, AF_PACKET, check, LITTLE, libc } from './libc.js';

/** One end of a connection; the address is numeric. */
export interface Endpoint {
  readonly address: string;
  readonly port: number;
}

/** Bytes of the largest socket address that is used here (`struct sockaddr_in6`). */
export const ADDRESS_SIZE = 28;

/**
 * The 4 or 16 bytes of a numeric address, in network order. Throws OUTLIVE_TCP_ADDRESS for anything else.
 * @param address without a scope (`%eth0`)
 */
export function addressBytes(address: string): Uint8Array {
  if (isIPv4(address)) return Uint8Array.from(address.split('.'), Number);
  if (!isIPv6(address) || address.includes('%')) {
    throw new CodedError('OUTLIVE_TCP_ADDRESS', 'config', `not a numeric IP address without a scope: ${address}`);
  }
  let text = address;
  const dotted = /[^:]*\.[^:]*$/.exec(text)?.[0];
  if (dotted !== undefined) {
    const [a, b, c, d] = addressBytes(dotted);
    text = text.slice(0, -dotted.length) + ((a << 8) | b).toString(16) + ':' + ((c << 8) | d).toString(16);
  }
  const [head, tail] = text.split('::').map((part) => (part === '' ? [] : part.split(':')));
  const zeros: string[] = tail === undefined ? [] : new Array(8 - head.length - tail.length).fill('0');
  const groups = [...head, ...zeros, ...(tail ?? [])].map((group) => Number.parseInt(group, 16));
  return Uint8Array.from(groups.flatMap((group) => [group >> 8, group & 255]));
}

/** Text of 4 or 16 bytes; an IPv6 address is spelled as RFC 5952 says, one that holds an IPv4 address as that address. */
export function addressText(bytes: Uint8Array): string {
  if (bytes.length === 4) return bytes.join('.');
  if (isMapped(bytes)) return bytes.subarray(12).join('.');
  const groups = Array.from({ length: 8 }, (_, index) => ((bytes[2 * index] << 8) | bytes[2 * index + 1]).toString(16));
  // The URL standard's serializer leaves out the longest run of zeros.
  return new URL(`http://[${groups.join(':')}]`).hostname.slice(1, -1);
}

/** ::ffff:0:0/96, how an IPv6 socket names the IPv4 peers that it serves too (RFC 4291 section 2.5.5.2). */
function isMapped(bytes: Uint8Array): boolean {
  return bytes[10] === 255 && bytes[11] === 255 && bytes.subarray(0, 10).every((byte) => byte === 0);
}

/** `struct sockaddr_in` or `sockaddr_in6` of an endpoint. Throws OUTLIVE_TCP_ADDRESS. */
export function socketAddress({ address, port }: Endpoint): Uint8Array {
  const bytes = addressBytes(address);
  const view = new DataView(new ArrayBuffer(bytes.length === 4 ? 16 : ADDRESS_SIZE));
  view.setUint16(0, bytes.length === 4 ? AF_INET : AF_INET6, LITTLE);
  view.setUint16(2, port);
  const out = new Uint8Array(view.buffer);
  out.set(bytes, bytes.length === 4 ? 4 : 8);
  return out;
}

/** `struct sockaddr_ll` for an Ethernet frame that leaves by an interface (packet(7)). */
export function linkAddress(index: number, protocol: number): Uint8Array {
  const view = new DataView(new ArrayBuffer(20));
  view.setUint16(0, AF_PACKET, LITTLE);
  view.setUint16(2, protocol);
  view.setInt32(4, index, LITTLE);
  return new Uint8Array(view.buffer);
}

/** The endpoint in a socket address, an IPv4 one even if an IPv6 socket names it. Scopes are left out. */
export function endpointOf(sockaddr: Uint8Array): Endpoint {
  const view = new DataView(sockaddr.buffer, sockaddr.byteOffset, sockaddr.byteLength);
  const four = view.getUint16(0, LITTLE) === AF_INET;
  return { address: addressText(four ? sockaddr.subarray(4, 8) : sockaddr.subarray(8, 24)), port: view.getUint16(2) };
}

/** The number of an interface. Throws OUTLIVE_TCP_ADDRESS where there is none of that name. */
export function interfaceIndex(name: string): number {
  const index = libc().interfaceIndex(name);
  if (index === 0) throw new CodedError('OUTLIVE_TCP_ADDRESS', 'config', `no network interface is named ${name}`);
  return index;
}

/** Both ends of a connected socket. Throws OUTLIVE_TCP_CALL_FAILED when it is not connected. */
export function endpointsOf(fd: number): { local: Endpoint; remote: Endpoint } {
  const buffer = new Uint8Array(ADDRESS_SIZE);
  const size = Uint32Array.of(ADDRESS_SIZE);
  check(libc().getsockname(fd, buffer, size), 'getsockname');
  const local = endpointOf(buffer);
  size[0] = ADDRESS_SIZE;
  check(libc().getpeername(fd, buffer, size), 'getpeername');
  return { local, remote: endpointOf(buffer) };
}
