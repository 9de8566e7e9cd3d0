import { describe, expect, it } from 'vitest';
import { addressBytes, addressText, endpointOf, socketAddress } from '../../core/io/tcp/address.js';
import { announcements, internetChecksum } from '../../core/io/tcp/announce.js';
import { DEFAULT_GRACES, GapJudge, liesAfter, parseSegment, portFilter } from '../../core/io/tcp/gaps.js';
import { unreachable } from '../../core/io/tcp/nudge.js';
import { at, nextTimestamp, repairWindow, type TcpImage } from '../../core/io/tcp/repair.js';
import { resetSegment } from '../../core/io/tcp/reset.js';

const MAC = Uint8Array.of(2, 0, 0, 0, 0, 7);
const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');

describe('addresses of sockets', () => {
  it.each([
    ['10.0.0.1', '0a000001'],
    ['2001:db8::1', '20010db8000000000000000000000001'],
    ['::', '00000000000000000000000000000000'],
    ['fe80::1:0:0:2', 'fe800000000000000001000000000002'],
    ['1:2:3:4:5:6:7:8', '00010002000300040005000600070008'],
  ])('reads and writes %s', (text, bytes) => {
    expect(hex(addressBytes(text))).toBe(bytes);
    expect(addressText(addressBytes(text))).toBe(text);
    expect(endpointOf(socketAddress({ address: text, port: 5432 }))).toEqual({ address: text, port: 5432 });
  });

  it('takes an IPv4 peer of an IPv6 socket for what it is', () => {
    expect(addressText(addressBytes('::ffff:192.0.2.7'))).toBe('192.0.2.7');
  });

  it.each(['localhost', 'fe80::1%eth0', '1.2.3', ''])('refuses %j', (text) => {
    expect(() => addressBytes(text)).toThrow(expect.objectContaining({ code: 'OUTLIVE_TCP_ADDRESS' }));
  });
});

describe('announcements of an address', () => {
  it('are gratuitous ARP, as request and as reply', () => {
    const [request, reply] = announcements('10.0.0.9', MAC).map(hex);
    expect(request).toMatch(/^ffffffffffff020000000007080600010800060400010200000000070a000009/);
    expect(request.slice(64, 84)).toBe('0000000000000a000009');
    expect(reply.slice(40, 44)).toBe('0002');
    expect(reply.slice(64, 84)).toBe('0200000000070a000009');
    expect(request.length).toBe(120);
  });

  it('are unsolicited neighbour advertisements for IPv6', () => {
    const [frame] = announcements('fd00::9', MAC);
    expect(hex(frame.subarray(0, 14))).toBe('33330000000102000000000786dd');
    expect(frame[14 + 7]).toBe(255);
    const message = frame.subarray(54);
    expect(message[0]).toBe(136);
    expect(message[4]).toBe(0x20);
    // The sum over a message with its checksum is zero.
    const pseudo = [...frame.subarray(22, 54), 0, 0, 0, message.length, 0, 0, 0, 58];
    expect(internetChecksum(Uint8Array.from([...pseudo, ...message]))).toBe(0);
  });
});

describe('numbers of a connection', () => {
  it('go around at 2^32', () => {
    expect(at(2 ** 32 - 10, 15)).toBe(5);
    expect(at(7, 2 ** 40 + 1)).toBe(8);
    expect(liesAfter(5, 2 ** 32 - 10)).toBe(true);
    expect(liesAfter(2 ** 32 - 10, 5)).toBe(false);
    expect(liesAfter(5, 5)).toBe(false);
  });

  it('let the timestamp clock go on in its own unit', () => {
    expect(nextTimestamp(1000, 5000)).toBeGreaterThanOrEqual(7000);
    expect(nextTimestamp(1000, 5000) & 1).toBe(0);
    expect(nextTimestamp(1001, 5000)).toBeGreaterThanOrEqual(1001 + 6_000_000);
    expect(nextTimestamp(1001, 5000) & 1).toBe(1);
    expect(nextTimestamp(2 ** 32 - 2, 5000)).toBeLessThan(10_000);
  });

  const image = (extra: Partial<TcpImage>): TcpImage => ({
    identity: {
      family: 4,
      local: { address: '10.0.0.1', port: 1 },
      remote: { address: '10.0.0.2', port: 2 },
      sendBase: 0,
      receiveBase: 1000,
      mss: 1460,
      sendScale: 7,
      receiveScale: 7,
      sack: true,
      timestamps: true,
      timestamp: 0,
      window: [1100, 20, 64_000, 500, 1100],
    },
    received: 300,
    acknowledged: 0,
    unacknowledged: [new Uint8Array(5000)],
    elapsed: 0,
    ...extra,
  });

  it('keep to the windows after a freeze', () => {
    expect([...repairWindow(image({ unsent: 0 }))]).toEqual([1299, 20, 64_000, 300, 1300]);
  });

  it('offer what the session began with after a crash, and send a short queue whole', () => {
    expect([...repairWindow(image({}))]).toEqual([1299, 5000, 64_000, 500, 1300]);
  });
});

describe('what a client says after a takeover', () => {
  const EXPECTED = 2 ** 32 - 100;
  const WRITTEN = 5000;
  const said = (sequence: number, length = 0, acknowledgement = WRITTEN) => ({
    sequence: sequence >>> 0,
    length,
    acknowledgement,
  });

  it.each([
    ['an acknowledgement from where we are', said(EXPECTED)],
    ['a keep-alive probe', said(EXPECTED - 1)],
    ['bytes from where we are', said(EXPECTED, 500)],
    ['bytes that are known in part', said(EXPECTED - 50, 100)],
    ['an acknowledgement of less than all', said(EXPECTED, 0, 4000)],
  ])('%s: nothing is missing', (_, segment) => {
    const judge = new GapJudge(EXPECTED);
    expect(judge.verdict(0, EXPECTED)).toBe(null);
    judge.segment(0, segment, WRITTEN);
    expect(judge.verdict(0, EXPECTED)).toBe('agreed');
    expect(judge.acknowledgement).toBe(segment.acknowledgement);
  });

  it.each([
    ['bytes from behind where we are', said(EXPECTED + 200, 10), DEFAULT_GRACES.dataMs],
    ['an acknowledgement from behind where we are', said(EXPECTED + 200), DEFAULT_GRACES.acknowledgementMs],
  ])('%s: a gap, unless what is between comes in time', (_, segment, grace) => {
    const judge = new GapJudge(EXPECTED);
    judge.segment(10, segment, WRITTEN);
    judge.segment(900, segment, WRITTEN);
    expect(judge.verdict(10 + grace - 1, EXPECTED)).toBe(null);
    expect(judge.verdict(10 + grace, EXPECTED)).toBe('lost');
    expect(judge.verdict(10 + grace, at(EXPECTED, 1))).toBe('agreed');
    judge.segment(10 + grace, said(EXPECTED, 200), WRITTEN);
    expect(judge.verdict(10 + grace, EXPECTED)).toBe('agreed');
  });

  it('remembers how far the client has sent, whatever it sends again', () => {
    const judge = new GapJudge(EXPECTED);
    expect(judge.sent).toBe(null);
    judge.segment(0, said(EXPECTED, 300), WRITTEN);
    expect(judge.sent).toBe(200);
    judge.segment(0, said(EXPECTED + 700), WRITTEN);
    judge.segment(0, said(EXPECTED, 100), WRITTEN);
    expect(judge.sent).toBe(600);
  });

  it('remembers what the client waits for an acknowledgement of, until it goes on', () => {
    const judge = new GapJudge(EXPECTED);
    expect(judge.again).toBe(null);
    judge.segment(0, said(EXPECTED - 50, 50), WRITTEN);
    expect(judge.again).toBe(at(EXPECTED, -50));
    judge.segment(0, said(EXPECTED), WRITTEN);
    expect(judge.again).toBe(at(EXPECTED, -50));
    judge.segment(0, said(EXPECTED, 300), WRITTEN);
    expect(judge.again).toBe(at(EXPECTED, 0));
    judge.segment(0, said(EXPECTED + 300), WRITTEN);
    expect(judge.again).toBe(null);
  });

  it('an acknowledgement of what we never wrote: the client is ahead, whatever else it says', () => {
    const judge = new GapJudge(EXPECTED);
    judge.segment(0, said(EXPECTED), WRITTEN);
    judge.segment(0, said(EXPECTED, 0, WRITTEN + 1), WRITTEN);
    expect(judge.verdict(0, EXPECTED)).toBe('ahead');
  });
});

describe('segments and messages', () => {
  const local = { address: '10.0.0.1', port: 5432 };
  const remote = { address: '10.0.0.2', port: 40000 };

  it('reads a segment with and without an IP header', () => {
    const tcp = new DataView(new ArrayBuffer(32));
    tcp.setUint16(0, 40000);
    tcp.setUint16(2, 5432);
    tcp.setUint32(4, 0xfffffff0);
    tcp.setUint32(8, 77);
    tcp.setUint16(12, 0x8010);
    const segment = new Uint8Array(tcp.buffer);
    const expected = { remotePort: 40000, localPort: 5432, sequence: 0xfffffff0, acknowledgement: 77, length: 500 };
    expect(parseSegment(6, segment, 532)).toEqual(expected);
    const packet = Uint8Array.from([0x46, ...new Array(23).fill(0), ...segment]);
    expect(parseSegment(4, packet, 556)).toEqual(expected);
    expect(parseSegment(4, packet.subarray(0, 40), 40)).toBe(null);
    for (const flags of [0x02, 0x04, 0x14]) {
      segment[13] = flags;
      expect(parseSegment(6, segment, 32)).toBe(null);
    }
  });

  it.each([4, 6] as const)('lets the watched ports of IPv%d through', (family) => {
    const program = portFilter(family, [5432, 5433]);
    // The comparisons jump over what follows them, and over the refusal, to the last instruction.
    const compare = program.flatMap(([code, yes, no, port], index) =>
      code === 0x15 ? [[index + 1 + yes, no, port]] : [],
    );
    expect(compare).toEqual([
      [program.length - 1, 0, 5432],
      [program.length - 1, 0, 5433],
    ]);
    expect(program.slice(-2).map(([code, , , size]) => [code, size])).toEqual([
      [6, 0],
      [6, 0xffffffff],
    ]);
  });

  it('quotes the segment that a client is to send again', () => {
    const message = unreachable(local, remote, 0x01020304);
    expect([message[0], message[1]]).toEqual([3, 1]);
    expect(internetChecksum(message)).toBe(0);
    expect(internetChecksum(message.subarray(8, 28))).toBe(0);
    expect(hex(message.subarray(20))).toBe('0a0000020a0000019c40153801020304');
    const six = unreachable({ address: 'fd00::1', port: 5432 }, { address: 'fd00::2', port: 40000 }, 0x01020304);
    expect([six[0], six[1], six.length]).toEqual([1, 0, 8 + 40 + 8]);
    expect(hex(six.subarray(48))).toBe('9c40153801020304');
  });

  it('makes a RST with a checksum', () => {
    const segment = resetSegment(local, remote, 0x01020304);
    expect(hex(segment.subarray(0, 14))).toBe('15389c4001020304000000005004');
    const pseudo = [10, 0, 0, 1, 10, 0, 0, 2, 0, 6, 0, 20];
    expect(internetChecksum(Uint8Array.from([...pseudo, ...segment]))).toBe(0);
  });
});
