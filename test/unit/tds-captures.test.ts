import { describe, expect, it } from 'vitest';
import { LOGIN7, PacketReader } from '../../codecs/tds/packet.js';
import { TokenReader } from '../../codecs/tds/tokens.js';
import { dialectOf } from '../../codecs/tds/version.js';
import {
  bytewise,
  captured,
  haveTdsCaptures,
  messagesOf,
  PacketLog,
  pieces,
  streamOf,
  TDS_CAPTURES,
  TokenLog,
  tdsCaptures,
  tokensOf,
} from '../kit/tds.js';

/** The version that the client of a captured connection asks for; 7.4 where that is hidden by TLS. */
function dialectIn(client: Uint8Array): number {
  const login = messagesOf(client, 'client').find(({ type }) => type === LOGIN7);
  return login === undefined ? 0x74 : dialectOf(Buffer.from(login.payload).readUInt32LE(4));
}

describe.skipIf(!haveTdsCaptures)(`captures of real connections (skipped where ${TDS_CAPTURES} is absent)`, () => {
  it.each(tdsCaptures)('%s: packets are the same wherever chunks end, and come out as they went in', (name) => {
    const chunks = captured(name);
    for (const from of ['client', 'server'] as const) {
      const messages = messagesOf(streamOf(chunks, from), from);
      expect(messages.length).toBeGreaterThan(0);
      const stream = Buffer.concat(messages.map(({ raw }) => raw));
      const told = (parts: Uint8Array[]): string[] => {
        const log = new PacketLog();
        const reader = new PacketReader(from);
        for (const part of parts) expect(reader.push(part, 0, part.length, log)).toBe(part.length);
        expect(reader.between).toBe(true);
        expect(Buffer.concat(log.out).equals(stream)).toBe(true);
        return log.events;
      };
      const whole = told([stream]);
      expect(told(bytewise(stream))).toEqual(whole);
      for (const { raw } of messages) {
        const once = new PacketLog();
        new PacketReader(from).push(raw, 0, raw.length, once);
        // In every packet: around its header, and once in its payload.
        for (let at = 0; at < raw.length; at += Buffer.from(raw).readUInt16BE(at + 2)) {
          for (const cut of [...Array(10).keys(), 100].map((offset) => at + offset)) {
            if (cut >= raw.length) continue;
            const log = new PacketLog();
            const reader = new PacketReader(from);
            for (const part of pieces(raw, [cut])) reader.push(part, 0, part.length, log);
            expect(log.events).toEqual(once.events);
          }
        }
      }
    }
  });

  it.each(tdsCaptures)('%s: tokens are the same wherever chunks end', (name) => {
    const chunks = captured(name);
    const dialect = dialectIn(streamOf(chunks, 'client'));
    const [, ...responses] = messagesOf(streamOf(chunks, 'server'), 'server').filter(({ type }) => type === 4);
    const streams = responses.map(({ payload }) => payload);
    const all = Buffer.concat(streams);
    const whole = tokensOf([all], new TokenReader(dialect));
    expect(tokensOf(streams, new TokenReader(dialect))).toEqual(whole);
    expect(tokensOf(bytewise(all), new TokenReader(dialect))).toEqual(whole);
    const reader = new TokenReader(dialect);
    for (const stream of streams) {
      const before = reader.freeze();
      const told = tokensOf([stream], reader);
      for (let cut = 1; cut < stream.length; cut++) {
        const again = TokenReader.thaw(before);
        const log = new TokenLog(again);
        again.push(stream, 0, cut, log);
        const moved = TokenReader.thaw(structuredClone(again.freeze()));
        Object.assign(log, { reader: moved });
        moved.push(stream, cut, stream.length, log);
        moved.endMessage();
        if (log.all().join() !== told.join()) expect({ cut, events: log.all() }).toEqual({ cut, events: told });
      }
    }
  });
});
