import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import {
  closeDescriptor,
  createMap,
  loadProgram,
  MAP_ARRAY,
  MAP_HASH,
  MMAPABLE,
  mapArray,
  NO_PREALLOC,
  type SharedArray,
  setEntry,
  tryProgram,
} from '../../core/io/hold/bpf.js';
import { ackHoldUnavailable } from '../../core/io/hold/index.js';
import { holdProgram, KEPT_BACK, KEY_SIZE, PROD, SENT, SLOT_WORDS, WATERMARK } from '../../core/io/hold/program.js';

/** The kernel runs the program over frames that go nowhere (BPF_PROG_TEST_RUN). */
const why = ackHoldUnavailable();
if (why !== null) console.log(`hold-program: skipped: ${why}`);

const FIN = 0x01;
const RST = 0x04;
const ACK = 0x10;
const NEXT = -1;
const TIMESTAMPS = [1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8];
const SACK = [1, 1, 5, 10, 0, 0, 16, 0, 0, 0, 32, 0];

const LOCAL = { four: [10, 9, 8, 7], six: [0xfd, 0, ...new Array(13).fill(0), 1] };
const REMOTE = { four: [192, 168, 1, 2], six: [0xfd, 1, ...new Array(13).fill(0), 2] };
const PORTS = [0x15, 0x38, 0xc0, 0x01];

interface Segment {
  family: 'four' | 'six';
  sequence: number;
  acknowledgement: number;
  flags: number;
  options: readonly number[];
  payload: number;
  ipOptions: number;
  tag: number | null;
  fragment: number;
  protocol: number;
}
const PLAIN: Segment = {
  family: 'four',
  sequence: 1000,
  acknowledgement: 5000,
  flags: ACK,
  options: [],
  payload: 0,
  ipOptions: 0,
  tag: null,
  fragment: 0,
  protocol: 6,
};

/** An Ethernet frame whose TCP checksum is right. @returns it and where TCP begins */
function frameOf(parts: Partial<Segment>): { frame: Uint8Array; tcp: number } {
  const s = { ...PLAIN, ...parts };
  const size = 20 + s.options.length;
  const ip = s.tag === null ? 14 : 18;
  const tcp = ip + (s.family === 'four' ? 20 + s.ipOptions : 40);
  const frame = new Uint8Array(tcp + size + s.payload);
  const view = new DataView(frame.buffer);
  frame.fill(2, 0, 12);
  if (s.tag !== null) view.setUint32(12, s.tag * 0x10000 + 5);
  view.setUint16(ip - 2, s.family === 'four' ? 0x0800 : 0x86dd);
  if (s.family === 'four') {
    frame[ip] = 0x40 | ((20 + s.ipOptions) / 4);
    view.setUint16(ip + 2, frame.length - ip);
    view.setUint16(ip + 6, s.fragment);
    frame[ip + 9] = s.protocol;
    frame.set(LOCAL.four, ip + 12);
    frame.set(REMOTE.four, ip + 16);
  } else {
    frame[ip] = 0x60;
    view.setUint16(ip + 4, frame.length - tcp);
    frame[ip + 6] = s.protocol;
    frame.set(LOCAL.six, ip + 8);
    frame.set(REMOTE.six, ip + 24);
  }
  frame.set(PORTS, tcp);
  view.setUint32(tcp + 4, s.sequence);
  view.setUint32(tcp + 8, s.acknowledgement);
  frame[tcp + 12] = (size / 4) << 4;
  frame[tcp + 13] = s.flags;
  frame.set(s.options, tcp + 20);
  frame.fill(7, tcp + size);
  view.setUint16(tcp + 16, checksum(frame, s.family, tcp));
  return { frame, tcp };
}

/** RFC 9293 section 3.1: with the field itself counted, a right segment gives 0. */
function checksum(frame: Uint8Array, family: 'four' | 'six', tcp: number): number {
  const length = frame.length - tcp;
  const words = [...LOCAL[family], ...REMOTE[family], 0, 6, length >> 8, length & 255, ...frame.subarray(tcp)];
  if (words.length % 2 === 1) words.push(0);
  let sum = 0;
  for (let at = 0; at < words.length; at += 2) sum += (words[at] << 8) | words[at + 1];
  while (sum > 0xffff) sum = (sum >> 16) + (sum & 0xffff);
  return ~sum & 0xffff;
}

describe.skipIf(why !== null)('the program that holds acknowledgements back', () => {
  const fds: number[] = [];
  let shared: SharedArray;
  let program: number;

  beforeAll(() => {
    const shape = { name: 'test', entries: 4 };
    const slots = { ...shape, type: MAP_ARRAY, keySize: 4, valueSize: SLOT_WORDS * 4, flags: MMAPABLE };
    fds.push(createMap({ ...shape, type: MAP_HASH, keySize: KEY_SIZE, valueSize: 4, flags: NO_PREALLOC }));
    fds.push(createMap(slots));
    shared = mapArray(fds[1], 4 * SLOT_WORDS * 4);
    fds.push((program = loadProgram('test', holdProgram(fds[0], fds[1]))));
    const prefix = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255];
    const four = [...prefix, ...LOCAL.four, ...prefix, ...REMOTE.four, ...PORTS];
    const six = [...LOCAL.six, ...REMOTE.six, ...PORTS];
    for (const key of [four, six]) setEntry(fds[0], Uint8Array.from(key), Uint8Array.of(2, 0, 0, 0));
  });
  afterAll(() => {
    shared.release();
    for (const fd of fds) closeDescriptor(fd);
  });

  let slot: Uint32Array;
  beforeEach(() => {
    slot = shared.words.subarray(2 * SLOT_WORDS, 3 * SLOT_WORDS);
    slot.fill(0);
    slot[WATERMARK] = 4000;
  });

  /** Runs the program, and checks the checksum and that nothing else changed. @returns numbers and options afterwards */
  function run(parts: Partial<Segment>) {
    const { frame, tcp } = frameOf(parts);
    const { action, frame: out } = tryProgram(program, frame);
    expect(action).toBe(NEXT);
    expect(checksum(out, parts.family ?? 'four', tcp)).toBe(checksum(frame, parts.family ?? 'four', tcp));
    const view = new DataView(out.buffer, out.byteOffset);
    const options = [...out.subarray(tcp + 20, tcp + 20 + (parts.options ?? []).length)];
    const result = { sequence: view.getUint32(tcp + 4), acknowledgement: view.getUint32(tcp + 8), options };
    const restored = Uint8Array.from(out);
    restored.set(frame.subarray(tcp + 4, tcp + 12), tcp + 4);
    restored.set(frame.subarray(tcp + 16, tcp + 18), tcp + 16);
    restored.set(parts.options ?? [], tcp + 20);
    expect(restored).toEqual(frame);
    return result;
  }

  const KINDS: [string, Partial<Segment>][] = [
    ['IPv4', {}],
    ['IPv4 with payload', { payload: 777 }],
    ['IPv4 with options', { ipOptions: 40, payload: 3 }],
    ['IPv4 in a VLAN', { tag: 0x8100, options: TIMESTAMPS }],
    ['IPv4 in a service VLAN', { tag: 0x88a8 }],
    ['the first fragment', { fragment: 0x2000, payload: 100 }],
    ['IPv6', { family: 'six' }],
    ['IPv6 with payload', { family: 'six', payload: 1234, options: TIMESTAMPS }],
    ['IPv6 in a VLAN', { family: 'six', tag: 0x8100 }],
    ['a FIN', { flags: ACK | FIN }],
    ['a reset', { flags: ACK | RST }],
  ];

  it.each(KINDS)('lowers the acknowledgement to the watermark: %s', (_, parts) => {
    expect(run(parts).acknowledgement).toBe(4000);
    expect([...slot.subarray(WATERMARK, SENT)]).toEqual([4000, 4000, 1]);
  });

  it.each(KINDS)('leaves one that says no more than may be said: %s', (_, parts) => {
    slot[KEPT_BACK] = 1;
    expect(run({ ...parts, acknowledgement: 4000 }).acknowledgement).toBe(4000);
    expect(run({ ...parts, acknowledgement: 3000 }).acknowledgement).toBe(3000);
    expect(slot[KEPT_BACK]).toBe(0);
  });

  it.each<[string, number, number, number]>([
    ['just below the turn', 0xffff_ff00, 0xffff_fff0, 0xffff_ff00],
    ['over the turn', 0xffff_ff00, 0x10, 0xffff_ff00],
    ['behind, over the turn', 0x10, 0xffff_ff00, 0xffff_ff00],
    ['the largest distance', 0x1000, 0x8000_0fff, 0x1000],
    ['0 is a number like any other', 0, 5, 0],
  ])('counts modulo 2^32: %s', (_, watermark, acknowledgement, expected) => {
    slot[WATERMARK] = watermark;
    expect(run({ acknowledgement }).acknowledgement).toBe(expected);
  });

  it.each<[string, Partial<Segment>]>([
    ['no acknowledgement', { flags: RST }],
    ['a later fragment', { fragment: 0x2001, payload: 40 }],
    ['UDP', { protocol: 17, payload: 40 }],
    ['IPv6 with an extension header', { family: 'six', protocol: 43 }],
  ])('leaves alone: %s', (_, parts) => {
    const { frame } = frameOf(parts);
    expect(tryProgram(program, frame)).toEqual({ action: NEXT, frame });
    expect([...slot]).toEqual([4000, 0, 0, 0, 0, 0, 0, 0]);
  });

  it('leaves other connections, ARP and fragments of headers alone', () => {
    const { frame, tcp } = frameOf({});
    for (const at of [tcp - 20 + 15, tcp - 20 + 19, tcp + 1, tcp + 3, 13]) {
      const other = Uint8Array.from(frame);
      other[at] ^= 1;
      expect(tryProgram(program, other)).toEqual({ action: NEXT, frame: other });
    }
    // The kernel tries nothing that is shorter than an IP header.
    for (let length = 34; length < frame.length; length++) {
      const short = frame.slice(0, length);
      expect(tryProgram(program, short)).toEqual({ action: NEXT, frame: short });
    }
  });

  const CUT = [0, 0, 0, 0, ...SACK.slice(4)];
  it('ends the options before SACK blocks when it lowers, and only then', () => {
    expect(run({ options: SACK }).options).toEqual(CUT);
    expect(run({ options: SACK, payload: 9, family: 'six' }).options).toEqual(CUT);
    expect(run({ options: [...TIMESTAMPS, ...SACK] }).options).toEqual([...TIMESTAMPS, ...CUT]);
    const two = [...TIMESTAMPS, 1, 1, 5, 18, ...SACK.slice(4), ...SACK.slice(4)];
    expect(run({ options: two }).options).toEqual([...TIMESTAMPS, 0, 0, 0, 0, ...two.slice(16)]);
    expect(run({ options: TIMESTAMPS }).options).toEqual(TIMESTAMPS);
    expect(run({ options: SACK, acknowledgement: 4000 }).options).toEqual(SACK);
  });

  it('does not take payload for options', () => {
    const { frame, tcp } = frameOf({ payload: 12 });
    frame.set(SACK, tcp + 20);
    expect([...tryProgram(program, frame).frame.subarray(tcp + 20)]).toEqual(SACK);
  });

  it('follows what was sent and turns a window probe into an acknowledgement once', () => {
    run({ sequence: 1000, payload: 500 });
    expect(slot[SENT]).toBe(1500);
    // Sent again, and a plain acknowledgement.
    run({ sequence: 1000, payload: 200 });
    slot[PROD] = 1;
    expect(run({ sequence: 1500 }).sequence).toBe(1500);
    expect(run({ sequence: 1200, payload: 10 }).sequence).toBe(1200);
    expect([slot[SENT], slot[PROD]]).toEqual([1500, 1]);
    expect(run({ sequence: 999, options: [...TIMESTAMPS, ...SACK] })).toEqual({
      sequence: 1500,
      acknowledgement: 4000,
      options: [...TIMESTAMPS, ...CUT],
    });
    expect(slot[PROD]).toBe(0);
    expect(run({ sequence: 999 }).sequence).toBe(999);
    run({ sequence: 1500, flags: ACK | FIN });
    expect(slot[SENT]).toBe(1501);
    slot[SENT] = 0xffff_ffff;
    run({ sequence: 0xffff_ffff, payload: 3 });
    expect(slot[SENT]).toBe(2);
  });
});
