import { constants, openSync, readSync, writeSync } from 'node:fs';
import {
  AF_PACKET,
  check,
  libc,
  openSocket,
  SO_RCVBUFFORCE,
  SOCK_RAW,
  SOL_SOCKET,
  setOption,
} from '../../../io/tcp/libc.js';
import { bindPackets, PACKET_IGNORE_OUTGOING, SOL_PACKET } from './packets.js';
import { serve } from './remote.js';

/** What {@link Host.impair} asks for. */
export interface DelayRequest {
  /** The bridge's end of the host's cable. */
  readonly port: string;
  /** The device to make in its place. */
  readonly relay: string;
  /** How much later a packet arrives, each way. */
  readonly delayMs: number;
}

/** linux/if_tun.h, linux/if_packet.h. */
const TUNSETIFF = 0x400454ca;
const IFF_TAP = 0x0002;
const IFF_NO_PI = 0x1000;
const IFF_VNET_HDR = 0x4000;
const PACKET_VNET_HDR = 15;
const IFREQ_SIZE = 40;
/** A packet of 64 KiB with its link layer and the header below. */
const LARGEST = 65_536 + 64;
const BUFFER = 16 << 20;

/**
 * Carries packets between a cable and the bridge, each so much later. The kernel's own way, sch_netem, is often not built in.
 *
 * Both sides put a `struct virtio_net_hdr` before each packet, which says what of it is not finished: on a virtual cable checksums are left
 * to hardware that does not exist, and a relay that lost that word would pass on packets that everybody drops.
 */
class Relay {
  readonly #port: number;
  readonly #tap: number;
  readonly #buffer = Buffer.allocUnsafe(LARGEST);
  readonly #queue: { readonly due: number; readonly packet: Buffer; readonly inward: boolean }[] = [];
  delayMs: number;

  constructor({ port, relay, delayMs }: DelayRequest) {
    this.delayMs = delayMs;
    this.#port = openSocket(AF_PACKET, SOCK_RAW, 0);
    setOption(this.#port, SOL_SOCKET, SO_RCVBUFFORCE, BUFFER);
    setOption(this.#port, SOL_PACKET, PACKET_VNET_HDR, 1);
    setOption(this.#port, SOL_PACKET, PACKET_IGNORE_OUTGOING, 1);
    this.#tap = openSync('/dev/net/tun', constants.O_RDWR | constants.O_NONBLOCK);
    const request = new DataView(new ArrayBuffer(IFREQ_SIZE));
    Buffer.from(request.buffer).write(relay, 'latin1');
    new Uint16Array(request.buffer, 16, 1)[0] = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
    check(libc().ioctl(this.#tap, TUNSETIFF, request), 'ioctl TUNSETIFF');
    bindPackets(this.#port, port);
    setInterval(() => this.#turn(), 1);
  }

  #turn(): void {
    const due = performance.now() + this.delayMs;
    for (;;) {
      const length = libc().recv(this.#port, this.#buffer, LARGEST, 0);
      if (length < 0) break;
      this.#queue.push({ due, packet: Buffer.from(this.#buffer.subarray(0, length)), inward: true });
    }
    try {
      for (;;) {
        const length = readSync(this.#tap, this.#buffer);
        this.#queue.push({ due, packet: Buffer.from(this.#buffer.subarray(0, length)), inward: false });
      }
    } catch (error) {
      // EIO until the device is up.
      if (!['EAGAIN', 'EIO'].includes((error as NodeJS.ErrnoException).code ?? '')) throw error;
    }
    const now = performance.now();
    let sent = 0;
    for (; sent < this.#queue.length && this.#queue[sent].due <= now; sent++) {
      const { packet, inward } = this.#queue[sent];
      // What a full queue refuses is lost, as on any network.
      if (!inward) libc().send(this.#port, packet, packet.length, 0);
      else this.#write(packet);
    }
    this.#queue.splice(0, sent);
  }

  #write(packet: Buffer): void {
    try {
      writeSync(this.#tap, packet);
    } catch (error) {
      if (!['EAGAIN', 'EIO', 'ENOBUFS'].includes((error as NodeJS.ErrnoException).code ?? '')) throw error;
    }
  }
}

let relay: Relay | null = null;

/** Script: runs a relay in the namespace of the bridge. */
serve({
  start: (request: DelayRequest) => {
    if (relay === null) relay = new Relay(request);
    else relay.delayMs = request.delayMs;
  },
});
