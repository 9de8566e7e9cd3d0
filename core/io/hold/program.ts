import {
  alu,
  alu32,
  assemble,
  call,
  exit,
  type Instruction,
  jump,
  jumpIf,
  jumpIf32,
  type Label,
  label,
  load,
  loadMap,
  move,
  networkOrder,
  store,
} from './assembler.js';

/**
 * The key of a connection: local address (16 bytes), remote address (16), local port (2), remote port (2), all in network order.
 * An IPv4 address stands as ::ffff:a.b.c.d, for IPv6 sockets have connections over IPv4 too (RFC 4291 section 2.5.5.2).
 */
export const KEY_SIZE = 36;

/** 32-bit words of a connection's slot; the array of slots is memory that the process and the program share. */
export const SLOT_WORDS = 8;

/** The sequence number up to which (exclusive) the peer's bytes may be acknowledged. The process writes it. */
export const WATERMARK = 0;
/** The number in the last segment that was lowered. The program writes it, as it does the next two. */
export const TOLD = 1;
/** Whether the last segment that left was lowered: 1 or 0. */
export const KEPT_BACK = 2;
/** The sequence number behind the last byte that left; 0 until a segment was seen. */
export const SENT = 3;
/** 1: the next window probe is to leave as an ordinary acknowledgement. The process sets it, the program clears it. */
export const PROD = 4;

// Fields of struct __sk_buff (linux/bpf.h), of the Ethernet, IP (RFC 791, RFC 8200) and TCP (RFC 9293) headers.
const SKB_LENGTH = 0;
const SKB_DATA = 76;
const SKB_DATA_END = 80;
const ETHERNET = 14;
const TYPE = 12;
const TYPE_IPV4 = 0x0800;
const TYPE_IPV6 = 0x86dd;
const TYPE_VLAN = 0x8100;
const TYPE_SERVICE_VLAN = 0x88a8;
const VLAN_TAG = 4;
const IPV4 = {
  length: ETHERNET,
  fragment: ETHERNET + 6,
  protocol: ETHERNET + 9,
  source: ETHERNET + 12,
  destination: ETHERNET + 16,
};
const IPV6 = { next: ETHERNET + 6, source: ETHERNET + 8, destination: ETHERNET + 24, size: 40 };
const SHORTEST = ETHERNET + 20 + 20;
const PROTOCOL_TCP = 6;
const TCP = { ports: 0, sequence: 4, acknowledgement: 8, size: 12, flags: 13, checksum: 16, options: 20 };
const FIN = 0x01;
const FIN_SYN_RST = 0x07;
const ACK = 0x10;

// Linux writes the timestamps first and the SACK blocks behind them, each behind two bytes of padding (net/ipv4/tcp_output.c,
// tcp_options_write), so they are found at one of two places. Read as little-endian words.
const PAD_PAD_SACK = 0x050101;
const PAD_PAD_TIMESTAMPS_10 = 0x0a080101;
const TIMESTAMPS = 12;

// Helpers of the kernel, enum bpf_func_id.
const MAP_LOOKUP = 1;
const SKB_STORE_BYTES = 9;
const L4_CSUM_REPLACE = 11;

// What becomes of the segment, enum tcx_action_base.
const NEXT = -1;
const DROP = 2;

// The stack, counted from its end.
const KEY = -40;
const KEY_LOCAL = KEY;
const KEY_REMOTE = KEY + 16;
const KEY_PORTS = KEY + 32;
const FIELD = -44;
const VALUE = -48;
const SACK_AT = -52;
const SACK_WORD = -56;

/** ::ffff:, the last four bytes before an IPv4 address, as a little-endian word. */
const MAPPED = 0xffff0000 | 0;

/** Offset of a word within a slot. */
const at = (word: number): number => word * 4;

/**
 * Replaces four bytes of the TCP header and corrects its checksum. r2: the field, counted from the TCP header; r3: what is there;
 * r4: what shall be there, both as they lie in memory. Keeps r6 to r9, but packet pointers are void afterwards.
 *
 * Where the checksum is left to the device (CHECKSUM_PARTIAL) it holds the sum of the pseudo-header alone and does not change;
 * the helper knows, as long as BPF_F_PSEUDO_HDR is not asked for (net/core/utils.c, inet_proto_csum_replace4). It fails for want
 * of memory; then the segment is dropped: a lost one is sent again, an acknowledgement that is too high cannot be taken back.
 */
const REPLACE: readonly Instruction[] = [
  store(4, 'r10', FIELD, 'r2'),
  store(4, 'r10', VALUE, 'r4'),
  move('r1', 'r6'),
  move('r2', 'r9'),
  alu('add', 'r2', TCP.checksum),
  move('r5', 4),
  call(L4_CSUM_REPLACE),
  jumpIf('r0', '!=', 0, 'drop'),
  move('r1', 'r6'),
  load(4, 'r2', 'r10', FIELD),
  alu('add', 'r2', 'r9'),
  move('r3', 'r10'),
  alu('add', 'r3', VALUE),
  move('r4', 4),
  move('r5', 0),
  call(SKB_STORE_BYTES),
  jumpIf('r0', '!=', 0, 'drop'),
];

/** Points r7 at the TCP header, whose offset is in r9, and r2 at the packet's end. */
const FIND_TCP: readonly Instruction[] = [
  load(4, 'r7', 'r6', SKB_DATA),
  load(4, 'r2', 'r6', SKB_DATA_END),
  alu('add', 'r7', 'r9'),
  move('r1', 'r7'),
  alu('add', 'r1', TCP.options),
  jumpIf('r1', '>', 'r2', 'next'),
];

/** Reads Ethernet (with one tag at most) and IP headers: addresses go to the key, the TCP header's offset to r9. */
const IP: readonly (Instruction | Label)[] = [
  move('r6', 'r1'),
  load(4, 'r7', 'r6', SKB_DATA),
  load(4, 'r8', 'r6', SKB_DATA_END),
  // The shortest: Ethernet, IPv4, TCP. With an IPv6 header instead it is that header, whole.
  move('r2', 'r7'),
  alu('add', 'r2', SHORTEST),
  jumpIf('r2', '>', 'r8', 'next'),
  load(2, 'r3', 'r7', TYPE),
  networkOrder('r3', 16),
  move('r9', ETHERNET),
  jumpIf('r3', '==', TYPE_VLAN, 'tagged'),
  jumpIf('r3', '!=', TYPE_SERVICE_VLAN, 'type'),
  label('tagged'),
  load(2, 'r3', 'r7', TYPE + VLAN_TAG),
  networkOrder('r3', 16),
  alu('add', 'r9', VLAN_TAG),
  alu('add', 'r7', VLAN_TAG),
  move('r2', 'r7'),
  alu('add', 'r2', SHORTEST),
  jumpIf('r2', '>', 'r8', 'next'),
  label('type'),
  jumpIf('r3', '==', TYPE_IPV6, 'ipv6'),
  jumpIf('r3', '!=', TYPE_IPV4, 'next'),

  load(1, 'r3', 'r7', IPV4.protocol),
  jumpIf('r3', '!=', PROTOCOL_TCP, 'next'),
  // Only the first fragment has a TCP header.
  load(2, 'r3', 'r7', IPV4.fragment),
  networkOrder('r3', 16),
  jumpIf('r3', 'has', 0x1fff, 'next'),
  load(1, 'r2', 'r7', IPV4.length),
  alu('and', 'r2', 0x0f),
  alu('lsh', 'r2', 2),
  alu('add', 'r9', 'r2'),
  store(8, 'r10', KEY_LOCAL, 0),
  store(4, 'r10', KEY_LOCAL + 8, MAPPED),
  load(4, 'r2', 'r7', IPV4.source),
  store(4, 'r10', KEY_LOCAL + 12, 'r2'),
  store(8, 'r10', KEY_REMOTE, 0),
  store(4, 'r10', KEY_REMOTE + 8, MAPPED),
  load(4, 'r2', 'r7', IPV4.destination),
  store(4, 'r10', KEY_REMOTE + 12, 'r2'),
  jump('tcp'),

  label('ipv6'),
  // With extension headers the next header is another one: such packets are left alone.
  load(1, 'r2', 'r7', IPV6.next),
  jumpIf('r2', '!=', PROTOCOL_TCP, 'next'),
  alu('add', 'r9', IPV6.size),
  load(8, 'r2', 'r7', IPV6.source),
  store(8, 'r10', KEY_LOCAL, 'r2'),
  load(8, 'r2', 'r7', IPV6.source + 8),
  store(8, 'r10', KEY_LOCAL + 8, 'r2'),
  load(8, 'r2', 'r7', IPV6.destination),
  store(8, 'r10', KEY_REMOTE, 'r2'),
  load(8, 'r2', 'r7', IPV6.destination + 8),
  store(8, 'r10', KEY_REMOTE + 8, 'r2'),
];

/** Looks the connection up and points r8 at its slot. */
function findSlot(connections: number, slots: number): (Instruction | Label)[] {
  return [
    label('tcp'),
    ...FIND_TCP,
    load(1, 'r3', 'r7', TCP.flags),
    alu('and', 'r3', ACK),
    jumpIf('r3', '==', 0, 'next'),
    load(4, 'r3', 'r7', TCP.ports),
    store(4, 'r10', KEY_PORTS, 'r3'),
    loadMap('r1', connections),
    move('r2', 'r10'),
    alu('add', 'r2', KEY),
    call(MAP_LOOKUP),
    jumpIf('r0', '==', 0, 'next'),
    loadMap('r1', slots),
    move('r2', 'r0'),
    call(MAP_LOOKUP),
    jumpIf('r0', '==', 0, 'next'),
    move('r8', 'r0'),
  ];
}

/**
 * Notes how far the stream has been sent. A window probe has no payload and a sequence number before that, so that the peer must
 * answer it (net/ipv4/tcp_output.c, tcp_xmit_probe_skb) but does not look at its acknowledgement; when the process asked
 * for it, it gets the number of an ordinary acknowledgement.
 */
const SEQUENCE: readonly (Instruction | Label)[] = [
  load(4, 'r1', 'r6', SKB_LENGTH),
  alu('sub', 'r1', 'r9'),
  load(1, 'r2', 'r7', TCP.size),
  alu('rsh', 'r2', 4),
  alu('lsh', 'r2', 2),
  alu('sub', 'r1', 'r2'),
  load(4, 'r4', 'r7', TCP.sequence),
  networkOrder('r4', 32),
  alu32('add', 'r4', 'r1'),
  // A FIN counts like a byte.
  load(1, 'r2', 'r7', TCP.flags),
  move('r3', 'r2'),
  alu('and', 'r3', FIN),
  alu32('add', 'r4', 'r3'),
  load(4, 'r5', 'r8', at(SENT)),
  jumpIf('r5', '==', 0, 'farther'),
  move('r3', 'r4'),
  alu32('sub', 'r3', 'r5'),
  jumpIf32('r3', 's>', 0, 'farther'),
  jumpIf32('r3', '==', 0, 'acknowledgement'),
  jumpIf('r1', '!=', 0, 'acknowledgement'),
  jumpIf('r2', 'has', FIN_SYN_RST, 'acknowledgement'),
  load(4, 'r3', 'r8', at(PROD)),
  jumpIf('r3', '==', 0, 'acknowledgement'),
  store(4, 'r8', at(PROD), 0),
  move('r2', TCP.sequence),
  load(4, 'r3', 'r7', TCP.sequence),
  move('r4', 'r5'),
  networkOrder('r4', 32),
  ...REPLACE,
  ...FIND_TCP,
  jump('acknowledgement'),
  label('farther'),
  store(4, 'r8', at(SENT), 'r4'),
];

/** Lowers the acknowledgement to the watermark if it lies beyond. */
const ACKNOWLEDGEMENT: readonly (Instruction | Label)[] = [
  label('acknowledgement'),
  load(4, 'r3', 'r7', TCP.acknowledgement),
  move('r5', 'r3'),
  networkOrder('r5', 32),
  load(4, 'r4', 'r8', at(WATERMARK)),
  alu32('sub', 'r5', 'r4'),
  jumpIf32('r5', 's>', 0, 'lower'),
  store(4, 'r8', at(KEPT_BACK), 0),
  jump('next'),
  label('lower'),
  store(4, 'r8', at(TOLD), 'r4'),
  store(4, 'r8', at(KEPT_BACK), 1),
  networkOrder('r4', 32),
];

/**
 * Finds SACK blocks and notes where; keeps r3 and r4. A segment that the peer repeats because it was not acknowledged is answered
 * with its own range as a duplicate (RFC 2883). Behind a lowered acknowledgement that reads as "this arrived, what lies before it did
 * not": a Linux peer then takes the rest for lost and shrinks its congestion window to one segment. So these blocks must not leave.
 */
const FIND_SACK: readonly (Instruction | Label)[] = [
  store(4, 'r10', SACK_AT, 0),
  load(4, 'r2', 'r6', SKB_DATA_END),
  load(1, 'r1', 'r7', TCP.size),
  alu('rsh', 'r1', 4),
  // In words: the header, two bytes of padding, two of SACK, one block.
  jumpIf('r1', '<', 5 + 3, 'rewrite'),
  move('r0', 'r7'),
  alu('add', 'r0', TCP.options + 4),
  jumpIf('r0', '>', 'r2', 'rewrite'),
  load(4, 'r5', 'r7', TCP.options),
  jumpIf('r5', '==', PAD_PAD_TIMESTAMPS_10, 'behind timestamps'),
  move('r0', TCP.options),
  jump('kind'),
  label('behind timestamps'),
  jumpIf('r1', '<', 5 + 3 + 3, 'rewrite'),
  move('r0', 'r7'),
  alu('add', 'r0', TCP.options + TIMESTAMPS + 4),
  jumpIf('r0', '>', 'r2', 'rewrite'),
  load(4, 'r5', 'r7', TCP.options + TIMESTAMPS),
  move('r0', TCP.options + TIMESTAMPS),
  label('kind'),
  move('r1', 'r5'),
  alu('and', 'r1', 0xffffff),
  jumpIf('r1', '!=', PAD_PAD_SACK, 'rewrite'),
  store(4, 'r10', SACK_AT, 'r0'),
  store(4, 'r10', SACK_WORD, 'r5'),
];

/** Writes the number, and four times "end of options" over the start of SACK blocks: what follows is padding then. */
const REWRITE: readonly (Instruction | Label)[] = [
  label('rewrite'),
  move('r2', TCP.acknowledgement),
  ...REPLACE,
  load(4, 'r2', 'r10', SACK_AT),
  jumpIf('r2', '==', 0, 'next'),
  load(4, 'r3', 'r10', SACK_WORD),
  move('r4', 0),
  ...REPLACE,
];

/**
 * The program for the egress of an interface: lowers the acknowledgement number of segments of registered connections to their
 * watermark, and leaves everything else as it is. For little-endian machines and interfaces with Ethernet headers.
 * @param connections descriptor of the map from keys (KEY_SIZE bytes) to the numbers of slots (4 bytes)
 * @param slots descriptor of the array of slots (SLOT_WORDS words each)
 */
export function holdProgram(connections: number, slots: number): Uint8Array {
  return assemble([
    ...IP,
    ...findSlot(connections, slots),
    ...SEQUENCE,
    ...ACKNOWLEDGEMENT,
    ...FIND_SACK,
    ...REWRITE,
    label('next'),
    move('r0', NEXT),
    exit(),
    label('drop'),
    move('r0', DROP),
    exit(),
  ]);
}
