import { describe, expect, it } from 'vitest';
import {
  ATTENTION,
  EOM,
  IGNORE,
  type Message,
  MessageCollector,
  PacketReader,
  PRELOGIN,
  packetLength,
  packets,
  patchPayload,
  RESETCONNECTION,
  RESETCONNECTIONSKIPTRAN,
  Repacketizer,
  RPC,
  SQL_BATCH,
  TABULAR_RESULT,
  typeName,
} from '../../codecs/tds/packet.js';
import { ProtocolViolation } from '../../core/contract/index.js';
import { bytewise, messagesOf, PacketLog, pieces } from '../kit/tds-captures.js';
import { clientStream, hex } from '../kit/tds-fixtures.js';

const numbers = (length: number): Uint8Array => Uint8Array.from({ length }, (_, at) => at % 251);

/** Messages in pieces, whole. */
function collect(parts: readonly Uint8Array[], limit = 1 << 20): Message[] {
  const found: Message[] = [];
  const collector = new MessageCollector('client', limit, (message) => {
    found.push(message);
    return false;
  });
  const reader = new PacketReader('client');
  for (const part of parts) reader.push(part, 0, part.length, collector);
  return found;
}

const plain = ({ type, status, ignored, bytes, start, end }: Message) => ({
  type,
  status,
  ignored,
  payload: Buffer.from(bytes.slice(start, end)).toString('hex'),
});

describe('packets', () => {
  it('of a message have the size that was asked for, and only the first one resets', () => {
    const payload = numbers(1200);
    const bytes = packets(SQL_BATCH, payload, 512, RESETCONNECTION, 7);
    expect(Buffer.from(bytes.subarray(0, 8)).toString('hex')).toBe('0108020000070100');
    expect(Buffer.from(bytes.subarray(512, 520)).toString('hex')).toBe('0100020000070200');
    expect(Buffer.from(bytes.subarray(1024, 1032)).toString('hex')).toBe('010100c800070300');
    expect(messagesOf(bytes, 'client')[0].payload).toEqual(Buffer.from(payload));
    expect(Buffer.from(packets(ATTENTION, new Uint8Array(0), 512)).toString('hex')).toBe('0601000800000100');
    // A payload that fills its packets has no empty one behind them.
    expect(packets(SQL_BATCH, numbers(504), 512)).toHaveLength(512);
  });

  it('tell the same wherever chunks end', () => {
    const stream = clientStream();
    const told = (parts: readonly Uint8Array[]): string[] => {
      const log = new PacketLog();
      const reader = new PacketReader('client');
      for (const part of parts) reader.push(part, 0, part.length, log);
      expect(reader.between).toBe(true);
      expect(Buffer.concat(log.out).equals(stream)).toBe(true);
      return log.events;
    };
    const whole = told([stream]);
    expect(told(bytewise(stream))).toEqual(whole);
    const messages = collect([stream]).map(plain);
    expect(messages.map(({ type }) => typeName(type))).toEqual([
      'PRELOGIN',
      'LOGIN7',
      'SQLBatch',
      'Transaction Manager request',
      'RPC',
      'BulkLoad',
      'Attention',
      'Transaction Manager request',
    ]);
    for (let cut = 1; cut < 3000; cut++) {
      expect(told(pieces(stream, [cut]))).toEqual(whole);
      if (cut % 50 === 0) expect(collect(pieces(stream, [cut])).map(plain)).toEqual(messages);
    }
    expect(collect(bytewise(stream)).map(plain)).toEqual(messages);
  });

  it('go on in another process from any byte', () => {
    const stream = clientStream();
    const whole = collect([stream]).map(plain);
    for (let cut = 1; cut < 3000; cut += 7) {
      const found: Message[] = [];
      const collector = () =>
        new MessageCollector('client', 1 << 20, (message) => {
          found.push(message);
          return false;
        });
      const [reader, before, after] = [new PacketReader('client'), collector(), collector()];
      reader.push(stream, 0, cut, before);
      const frozen = structuredClone({ packets: reader.freeze(), message: before.freeze() });
      after.thaw(frozen.message);
      PacketReader.thaw(frozen.packets, 'client').push(stream, cut, stream.length, after);
      expect(found.map(plain)).toEqual(whole);
    }
  });

  it('are handed out in place when a message is one packet in one chunk', () => {
    const stream = packets(SQL_BATCH, numbers(100), 512);
    const [message] = collect([stream]);
    expect(message.bytes).toBe(stream);
    expect([message.start, message.end]).toEqual([8, 108]);
  });

  it('can be followed by something else, which is left alone', () => {
    const stream = Buffer.concat([packets(PRELOGIN, numbers(20), 512), hex('160301')]);
    const collector = new MessageCollector('client', 100, () => true);
    const reader = new PacketReader('client');
    expect(reader.push(stream, 0, stream.length, collector)).toBe(28);
    expect(reader.between).toBe(true);
  });

  it('know whether a message is to be forgotten', () => {
    const [first, second] = [packets(RPC, numbers(600), 512), packets(RPC, numbers(3), 512)];
    second[1] = EOM | IGNORE;
    expect(collect([first, second]).map(({ ignored }) => ignored)).toEqual([false, true]);
    // An Attention in the middle of a message cuts it short.
    const [cut, attention] = collect([first.subarray(0, 512), packets(ATTENTION, new Uint8Array(0), 512)]);
    expect(plain(cut)).toMatchObject({ type: RPC, ignored: true });
    expect(plain(attention)).toMatchObject({ type: ATTENTION, ignored: false, payload: '' });
    expect(collect([packets(RPC, numbers(3), 512, RESETCONNECTIONSKIPTRAN)])[0].status).toBe(RESETCONNECTIONSKIPTRAN);
  });

  it.each([
    ['0101000700000000', 'impossible length'],
    ['0101ffff00000000', 'impossible length'],
    ['0201000800000000', 'before 7.0'],
    ['5301000800000000', 'does not send'],
    ['0401000800000000', 'does not send'],
    ['010000080000010003010008000001', 'begins within'],
  ])('are refused when malformed: %s', (bytes, message) => {
    const stream = Buffer.concat([hex(bytes), new Uint8Array(8)]);
    for (const parts of [[stream], bytewise(stream)]) {
      const reader = new PacketReader('client');
      const log = new PacketLog();
      const push = () => {
        for (const part of parts) reader.push(part, 0, part.length, log);
      };
      expect(push).toThrow(ProtocolViolation);
      expect(push).toThrow('after a malformed packet');
      expect(() => collect(parts)).toThrow(message);
    }
  });

  it('of a message beyond its limit are refused before they are kept', () => {
    const stream = packets(SQL_BATCH, numbers(5000), 512);
    expect(() => collect([stream], 4000)).toThrow('a message (SQLBatch) is longer than allowed');
    expect(collect([stream], 5000)).toHaveLength(1);
  });

  it('have a length for exchanges', () => {
    expect(packetLength(hex('040100'), 0, 3)).toBe(0);
    expect(packetLength(hex('04010030'), 0, 4)).toBe(0x30);
    expect(() => packetLength(hex('04010003'), 0, 4)).toThrow(ProtocolViolation);
  });
});

describe('packets of another size', () => {
  const sizes = [512, 700, 4096, 32_767];

  it('hold the same messages, full but for the last one', () => {
    const stream = clientStream(1000);
    const before = messagesOf(stream, 'client');
    for (const size of sizes) {
      for (const parts of [[stream], bytewise(stream), pieces(stream, [300, 1003, 1004, 2500])]) {
        const out: Uint8Array[] = [];
        let messages = 0;
        const repacketizer = new Repacketizer(
          size,
          (bytes) => out.push(bytes),
          () => messages++,
        );
        const reader = new PacketReader('client');
        for (const part of parts) reader.push(part, 0, part.length, repacketizer);
        const after = messagesOf(Buffer.concat(out), 'client');
        expect(messages).toBe(before.length);
        expect(after.map(plain)).toEqual(before.map(plain));
        for (const { raw } of after) {
          for (let at = 0; at < raw.length; ) {
            const length = Buffer.from(raw).readUInt16BE(at + 2);
            if ((raw[at + 1] & EOM) === 0) expect(length).toBe(size);
            if (at > 0) expect(raw[at + 1] & RESETCONNECTION).toBe(0);
            at += length;
          }
        }
      }
    }
  });

  it('take the payload from where it lies', () => {
    const payload = numbers(4088 * 3);
    const stream = packets(TABULAR_RESULT, payload, 4096);
    const out: Uint8Array[] = [];
    new PacketReader('server').push(stream, 0, stream.length, new Repacketizer(8000, (bytes) => out.push(bytes)));
    const copied = out.filter((bytes) => bytes.buffer !== stream.buffer);
    expect(copied.every(({ length }) => length === 8)).toBe(true);
    expect(copied).toHaveLength(2);
  });

  it('drop what is left of a message that an Attention cut short', () => {
    const [first] = [packets(RPC, numbers(2000), 1000).subarray(0, 1000)];
    const attention = packets(ATTENTION, new Uint8Array(0), 512);
    const out: Uint8Array[] = [];
    const reader = new PacketReader('client');
    const repacketizer = new Repacketizer(600, (bytes) => out.push(bytes));
    for (const part of [first, attention]) reader.push(part, 0, part.length, repacketizer);
    const bytes = Buffer.concat(out);
    expect(bytes).toHaveLength(600 + 8);
    expect(bytes.subarray(600).toString('hex')).toBe('0601000800000100');
  });
});

describe('a payload in its packets', () => {
  it('is patched wherever packets end', () => {
    for (let offset = 490; offset < 520; offset++) {
      const bytes = packets(SQL_BATCH, numbers(1200), 512);
      patchPayload(bytes, 0, bytes.length, offset, hex('0102030405060708'));
      const wanted = Buffer.from(numbers(1200));
      wanted.set(hex('0102030405060708'), offset);
      expect(wanted.equals(messagesOf(bytes, 'client')[0].payload)).toBe(true);
    }
    const short = packets(SQL_BATCH, numbers(100), 512);
    expect(() => patchPayload(short, 0, short.length, 95, new Uint8Array(8))).toThrow(ProtocolViolation);
  });
});
