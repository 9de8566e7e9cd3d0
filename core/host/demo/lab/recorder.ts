import {
  AF_PACKET,
  attachFilter,
  getStructure,
  type Instruction,
  LITTLE,
  libc,
  openSocket,
  SO_RCVBUFFORCE,
  SOCK_RAW,
  SOL_SOCKET,
  setOption,
} from '../../../io/tcp/libc.js';
import { ADDRESS_SIZE, bindPackets, readSource, SOL_PACKET } from './packets.js';
import { serve } from './remote.js';
import { type Recording, Runs } from './runs.js';

/** Where a recorder looks; told again whenever it changes. */
export interface RecorderPorts {
  /** Devices of the bridge's namespace, and what their traffic means. */
  readonly devices: readonly {
    readonly name: string;
    readonly host: string;
    /** What comes in here was sent by the host. */
    readonly sends: boolean;
    /** What goes out here was delivered. */
    readonly delivers: boolean;
  }[];
  /** Names of hosts by the address of their card. */
  readonly cards: Readonly<Record<string, string>>;
}

/** What {@link Lab.recorder} asks for. */
export interface RecorderRequest extends RecorderPorts {
  /** Addresses to look for, IPv4 or IPv6, in the form in which Node prints them. */
  readonly sources: readonly string[];
}

/** linux/if_packet.h, asm-generic/sockios.h. */
const PACKET_STATISTICS = 6;
const PACKET_OUTGOING = 4;
const SIOCGSTAMPNS = 0x8907;
/** Enough of a frame for all headers that are read. */
const SNAPSHOT = 128;
const BUFFER = 64 << 20;

class Recorder {
  readonly #fd = openSocket(AF_PACKET, SOCK_RAW, 0);
  readonly #sources: ReadonlySet<string>;
  readonly #sent = new Runs();
  readonly #delivered = new Runs();
  #devices = new Map<number, RecorderPorts['devices'][number]>();
  #cards: RecorderPorts['cards'] = {};
  readonly #frame = Buffer.alloc(SNAPSHOT);
  readonly #from = new Uint8Array(ADDRESS_SIZE);
  readonly #size = new Uint32Array(1);
  readonly #time = new BigInt64Array(2);

  constructor({ sources, ...ports }: RecorderRequest) {
    this.#sources = new Set(sources);
    this.know(ports);
    setOption(this.#fd, SOL_SOCKET, SO_RCVBUFFORCE, BUFFER);
    attachFilter(this.#fd, filterFor(sources));
    bindPackets(this.#fd, null);
    // Asked once, it makes the kernel note the time of each packet (socket(7)); there is none yet to tell of.
    libc().ioctl(this.#fd, SIOCGSTAMPNS, this.#time);
    setInterval(() => this.drain(), 5);
  }

  know({ devices, cards }: RecorderPorts): void {
    this.#devices = new Map(devices.map((device) => [libc().interfaceIndex(device.name), device]));
    this.#cards = cards;
  }

  drain(): void {
    const from = new DataView(this.#from.buffer);
    for (;;) {
      this.#size[0] = ADDRESS_SIZE;
      const length = libc().recvfrom(this.#fd, this.#frame, SNAPSHOT, 0, this.#from, this.#size);
      if (length < 0) return;
      const device = this.#devices.get(from.getInt32(4, LITTLE));
      const outgoing = from.getUint8(10) === PACKET_OUTGOING;
      if (device === undefined || !(outgoing ? device.delivers : device.sends)) continue;
      const packet = readSource(this.#frame.subarray(0, length));
      if (packet === null || !this.#sources.has(packet.source)) continue;
      libc().ioctl(this.#fd, SIOCGSTAMPNS, this.#time);
      const at = Number(this.#time[0]) * 1000 + Number(this.#time[1]) / 1e6;
      if (outgoing) this.#delivered.add(this.#cards[packet.mac] ?? packet.mac, packet, at);
      else this.#sent.add(device.host, packet, at);
    }
  }

  result(): Recording {
    this.drain();
    const statistics = new Uint32Array(2);
    getStructure(this.#fd, SOL_PACKET, PACKET_STATISTICS, statistics);
    return { sent: this.#sent.list, delivered: this.#delivered.list, missed: statistics[1] };
  }
}

/** Lets through IPv6, and IPv4 and ARP of the given addresses: the rest would cost time on a busy machine. Opcodes: linux/bpf_common.h. */
function filterFor(sources: readonly string[]): Instruction[] {
  const wanted = sources
    .filter((source) => source.includes('.'))
    .map((source) => source.split('.').reduce((value, byte) => value * 256 + Number(byte), 0));
  const [loadWord, loadHalf, equal, give] = [0x20, 0x28, 0x15, 0x06];
  const count = wanted.length;
  const program: Instruction[] = [
    [loadHalf, 0, 0, 12],
    [equal, count * 2 + 6, 0, 0x86dd],
    [equal, 0, count + 2, 0x0800],
    [loadWord, 0, 0, 26],
    ...wanted.map((address, index): Instruction => [equal, count * 2 + 3 - index, 0, address]),
    [give, 0, 0, 0],
    // ARP: the sender's protocol address.
    [equal, 0, count + 1, 0x0806],
    [loadWord, 0, 0, 28],
    ...wanted.map((address, index): Instruction => [equal, count - index, 0, address]),
    [give, 0, 0, 0],
    [give, 0, 0, SNAPSHOT],
  ];
  return program;
}

let recorder: Recorder | null = null;

/** Script: watches the ports of a lab's bridge, in the bridge's namespace. */
serve({
  start: (request: RecorderRequest) => {
    recorder = new Recorder(request);
  },
  know: (ports: RecorderPorts) => recorder?.know(ports),
  result: () => recorder?.result(),
});
