import { describe, expect, it } from 'vitest';
import { FromClient, FromServer, ToClient } from '../../codecs/tds/carriage.js';
import {
  DATA,
  END,
  FRAME_HEADER,
  flagsOf,
  frameLength,
  kindOf,
  LONGEST_DATA,
  PACKET_END,
  PARTIAL,
} from '../../codecs/tds/frames.js';
import { ATTENTION, LOGIN7, packets, RPC, SQL_BATCH, TABULAR_RESULT } from '../../codecs/tds/packet.js';
import { COLMETADATA, DONE, ERROR, ROW } from '../../codecs/tds/tokens.js';
import { dialectOf, TDS_7_4 } from '../../codecs/tds/version.js';
import { done, error } from '../../codecs/tds/write.js';
import { bytewise, captured, haveTdsCaptures, messagesOf, pieces, streamOf, tdsCaptures } from '../kit/tds-captures.js';

const SAME = { turn: (_type: number, token: Uint8Array) => token };

/** Frames in words. */
function words(frames: Uint8Array): string[] {
  const found: string[] = [];
  for (let at = 0; at < frames.length; at += frameLength(frames, at)) {
    const hex = Buffer.from(frames.subarray(at + FRAME_HEADER, at + frameLength(frames, at))).toString('hex');
    found.push(`${kindOf(frames, at).toString(16)} ${flagsOf(frames, at)} ${hex}`);
  }
  return found;
}

/** What a server's packets come to in these pieces, as frames and as packets for a client. */
function through(parts: readonly Uint8Array[], size: number, to = size, dialect = TDS_7_4) {
  const from = new FromServer(dialect, size, SAME);
  const out = new ToClient(to, 7);
  const frames = parts.map((part) => from.push(part));
  return { frames: words(Buffer.concat(frames)), out: Buffer.concat(frames.map((each) => out.push(each))) };
}

const nvarcharMax = (text: string) => {
  const bytes = Buffer.from(text, 'utf16le');
  const head = Buffer.alloc(12);
  head.writeBigUInt64LE(BigInt(bytes.length));
  head.writeUInt32LE(bytes.length, 8);
  return bytes.length === 0 ? head : Buffer.concat([head, bytes, Buffer.alloc(4)]);
};
// One column, nvarchar(max), without a name.
const COLUMNS = Buffer.from([COLMETADATA, 1, 0, 0, 0, 0, 0, 0, 0, 0xe7, 0xff, 0xff, 9, 4, 0xd0, 0, 0x34, 0]);
const row = (text: string) => Buffer.concat([Buffer.of(ROW), nvarcharMax(text)]);

function answer(...rows: string[]): Uint8Array {
  return Buffer.concat([COLUMNS, ...rows.map(row), done({ status: 0x10, rowCount: BigInt(rows.length) }, TDS_7_4)]);
}

describe('a server', () => {
  const payload = answer('one', '', 'x'.repeat(3000), 'two', 'y'.repeat(90_000), 'z');

  it.each([512, 4096, 32_767])(
    'gives the same frames in packets of any size, and packets as it sent them (%i)',
    (size) => {
      const wire = packets(TABULAR_RESULT, payload, size, 0, 7);
      const whole = through([wire], size);
      expect(Buffer.compare(whole.out, wire)).toBe(0);
      const apart = through(bytewise(wire), size);
      expect(apart.frames).toEqual(whole.frames);
      expect(Buffer.compare(apart.out, wire)).toBe(0);
      const rest = (frames: readonly string[]) =>
        frames.filter((word) => !word.startsWith(PACKET_END.toString(16) + ' '));
      const other = through([packets(TABULAR_RESULT, payload, 777, 0, 7)], 777);
      expect(rest(other.frames)).toEqual(rest(whole.frames));
    },
  );

  it('cuts a long row at the same places wherever its packets end', () => {
    const { frames } = through([packets(TABULAR_RESULT, payload, 4096)], 4096);
    const rows = frames.filter((word) => word.startsWith(`${DATA.toString(16)} `));
    expect(rows.map((word) => [Number(word.split(' ')[1]), word.split(' ')[2].length / 2])).toEqual([
      [0, row('one').length],
      [0, row('').length],
      [0, row('x'.repeat(3000)).length],
      [0, row('two').length],
      [PARTIAL, LONGEST_DATA],
      [PARTIAL, LONGEST_DATA],
      [0, row('y'.repeat(90_000)).length - 2 * LONGEST_DATA],
      [0, row('z').length],
    ]);
  });

  it('gives frames that end where any chunk ends', () => {
    const wire = packets(TABULAR_RESULT, answer('one', 'two'), 512);
    const { frames } = through([wire], 512);
    for (let cut = 1; cut < wire.length; cut++) {
      const at = through(pieces(wire, [cut]), 512);
      expect(at.frames, `cut at ${cut}`).toEqual(frames);
    }
  });

  it('may have smaller and bigger packets than its client', () => {
    for (const [size, to] of [
      [512, 4096],
      [4096, 512],
      [8000, 777],
    ]) {
      const wire = packets(TABULAR_RESULT, payload, size, 0, 7);
      const { out } = through([wire], size, to);
      expect(messagesOf(out, 'server').map((message) => Buffer.compare(message.payload, payload))).toEqual([0]);
    }
  });

  it('is heard at once when it ends a packet early', () => {
    const first = Buffer.concat([COLUMNS, row('one')]);
    const wire = Buffer.concat([packets(TABULAR_RESULT, first, 4096), packets(TABULAR_RESULT, row('two'), 4096)]);
    // Neither ends the message.
    wire[1] = 0;
    wire[8 + first.length + 1] = 0;
    const { out } = through([wire], 4096);
    expect(out.length).toBe(wire.length);
  });

  it('has its tokens turned', () => {
    const from = new FromServer(TDS_7_4, 4096, {
      turn: (type, token) => (type === ERROR ? null : type === DONE ? done({ curCmd: 1 }, TDS_7_4) : token),
    });
    const failed = error({ number: 50000, class: 16, message: 'no' }, TDS_7_4);
    const frames = from.push(packets(TABULAR_RESULT, Buffer.concat([failed, done({}, TDS_7_4)]), 4096));
    expect(words(frames)).toEqual([
      `${DONE.toString(16)} 0 ${Buffer.from(done({ curCmd: 1 }, TDS_7_4)).toString('hex')}`,
      `${END} 0 `,
    ]);
  });

  it('can be followed elsewhere at any byte', () => {
    const wire = packets(TABULAR_RESULT, payload, 4096, 0, 7);
    const { frames } = through([wire], 4096);
    for (let cut = 1; cut < wire.length; cut += 997) {
      const from = new FromServer(TDS_7_4, 4096, SAME);
      const before = from.push(wire.subarray(0, cut));
      const thawed = FromServer.thaw(structuredClone(from.freeze()), SAME);
      const after = thawed.push(wire.subarray(cut));
      expect(words(Buffer.concat([before, after])), `cut at ${cut}`).toEqual(frames);
    }
  });
});

describe('a client', () => {
  const batch = packets(SQL_BATCH, Buffer.alloc(6000, 1), 512, 0x08);
  const call = packets(RPC, Buffer.from('call'), 4096);

  it('gives one frame for each message, with its bits', () => {
    const wire = Buffer.concat([batch, call, packets(ATTENTION, new Uint8Array(0), 4096)]);
    const whole = words(new FromClient().push(wire));
    expect(whole.map((word) => word.split(' ').slice(0, 2).join(' '))).toEqual(['1 8', '3 0', '6 0']);
    const from = new FromClient();
    expect(bytewise(wire).flatMap((byte) => words(from.push(byte)))).toEqual(whole);
  });

  it('may break a message off', () => {
    const cut = Buffer.concat([batch.subarray(0, 512), packets(ATTENTION, new Uint8Array(0), 4096)]);
    expect(words(new FromClient().push(cut))).toEqual(['6 0 ']);
    const forget = packets(SQL_BATCH, Buffer.from('half'), 4096, 0x02);
    expect(words(new FromClient().push(forget))).toEqual([`1 2 ${Buffer.from('half').toString('hex')}`]);
  });

  it('can be followed elsewhere at any byte', () => {
    const wire = Buffer.concat([batch, call]);
    const whole = words(new FromClient().push(wire));
    for (let cut = 1; cut < wire.length; cut += 101) {
      const from = new FromClient();
      const before = words(from.push(wire.subarray(0, cut)));
      const thawed = FromClient.thaw(structuredClone(from.freeze()));
      expect([...before, ...words(thawed.push(wire.subarray(cut)))]).toEqual(whole);
    }
  });
});

describe.skipIf(!haveTdsCaptures)('captured servers (skipped where there are no captures)', () => {
  it.each(tdsCaptures.filter((name) => !name.includes('tls')))('%s: come out as they went in', (name) => {
    const chunks = captured(name);
    const login = messagesOf(streamOf(chunks, 'client'), 'client').find(({ type }) => type === LOGIN7);
    if (login === undefined) return;
    const dialect = dialectOf(Buffer.from(login.payload).readUInt32LE(4));
    // Behind PRELOGIN and the answer to the login.
    for (const { raw, payload } of messagesOf(streamOf(chunks, 'server'), 'server').slice(1)) {
      const whole = through([raw], 4096, 4096, dialect);
      expect(messagesOf(whole.out, 'server').map((message) => Buffer.compare(message.payload, payload))).toEqual([0]);
      const apart = through(bytewise(raw), 4096, 4096, dialect);
      expect(apart.frames).toEqual(whole.frames);
      expect(Buffer.compare(apart.out, whole.out)).toBe(0);
      // But for the number of the session and what counts packets, byte for byte.
      const plain = (bytes: Uint8Array) => {
        const own = Uint8Array.from(bytes);
        for (let at = 0; at < own.length; at += (own[at + 2] << 8) | own[at + 3]) own.fill(0, at + 4, at + 7);
        return own;
      };
      expect(Buffer.compare(plain(whole.out), plain(raw))).toBe(0);
    }
  });
});
