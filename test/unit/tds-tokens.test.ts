import { describe, expect, it } from 'vitest';
import { utf16, Writer } from '../../codecs/tds/bytes.js';
import {
  DONE_COUNT,
  doneStatus,
  ENV_PROMOTE,
  envChangeDescriptor,
  envChangeName,
  envChangeText,
  envChangeType,
  featureName,
  integerOf,
  readColumns,
  readDone,
  readEnvChange,
  readFeatureExtAck,
  readFedAuthInfo,
  readLoginAck,
  readMessage,
  readOrder,
  readReturnValue,
  readRouting,
  readRow,
  readSessionState,
} from '../../codecs/tds/facts.js';
import { DATACLASSIFICATION, TokenReader, tokenName } from '../../codecs/tds/tokens.js';
import { PLP, typeName } from '../../codecs/tds/types.js';
import { TDS_7_1, TDS_7_4 } from '../../codecs/tds/version.js';
import { done } from '../../codecs/tds/write.js';
import { ProtocolViolation } from '../../core/contract/index.js';
import { bytewise, pieces, TokenLog, tokensOf } from '../kit/tds-captures.js';
import { colMetadata, EVERY_TYPE, HAND_WRITTEN, hex, nbcRow, row, serverTokens } from '../kit/tds-fixtures.js';

const names = (events: readonly string[]): string[] =>
  events.map((event) => event.replace(/^(\d+) (?!rows)|(?<=[A-Z]) .*$/g, ''));
const read = <T>(bytes: Uint8Array, how: (bytes: Uint8Array, start: number, end: number) => T): T => {
  // Somewhere in a larger buffer, as in a chunk.
  const around = Buffer.concat([hex('aabb'), bytes, hex('cc')]);
  return how(around, 2, 2 + bytes.length);
};

describe('the token stream', () => {
  const stream = Buffer.concat(serverTokens());
  const whole = tokensOf([stream], new TokenReader(TDS_7_4));

  it('has every token in order', () => {
    expect(names(whole)).toEqual([
      ...['ENVCHANGE', 'INFO', 'ENVCHANGE', 'ENVCHANGE', 'INFO', 'LOGINACK', 'ENVCHANGE', 'FEATUREEXTACK', 'DONE'],
      ...['FEDAUTHINFO', 'SSPI', 'ENVCHANGE', 'ENVCHANGE', 'INFO'],
      ...['COLMETADATA', 'TABNAME', 'COLINFO', 'ORDER', '6 rows', 'DONE'],
      ...['ALTMETADATA', 'COLMETADATA', '3 rows', 'COLMETADATA', 'ALTMETADATA', '3 rows', 'DONEINPROC'],
      ...['RETURNSTATUS', 'RETURNVALUE', 'RETURNVALUE', 'OFFSET', 'ERROR'],
      ...['ENVCHANGE', 'ENVCHANGE', 'ENVCHANGE', 'ENVCHANGE', 'ENVCHANGE', 'ENVCHANGE', 'ENVCHANGE', 'ENVCHANGE'],
      ...['FEATUREEXTACK', 'SESSIONSTATE', 'DONEPROC'],
    ]);
    // Every token is told with its own bytes and position; what is missing are rows and the value of any length.
    for (const event of whole) {
      const [at, , bytes] = event.split(' ');
      if (bytes !== undefined) expect(stream.subarray(Number(at)).toString('hex').startsWith(bytes)).toBe(true);
    }
  });

  it('is the same wherever pieces end, with rows told or not', () => {
    expect(tokensOf(bytewise(stream), new TokenReader(TDS_7_4))).toEqual(whole);
    const telling = (): TokenReader => Object.assign(new TokenReader(TDS_7_4), { wholeRows: true });
    const rows = tokensOf([stream], telling());
    expect(rows.filter((event) => /^(NBC|ALT)?ROW /.test(event))).toHaveLength(12);
    expect(tokensOf(bytewise(stream), telling())).toEqual(rows);
    for (let cut = 1; cut < stream.length; cut++) {
      for (const [reader, wanted] of [
        [new TokenReader(TDS_7_4), whole],
        [telling(), rows],
      ] as const) {
        const got = tokensOf(pieces(stream, [cut]), reader);
        if (got.join() !== wanted.join()) expect({ cut, got }).toEqual({ cut, got: wanted });
      }
    }
  });

  it('goes on in another process from any byte', () => {
    for (let cut = 1; cut < stream.length; cut++) {
      const first = Object.assign(new TokenReader(TDS_7_4), { wholeRows: cut % 2 === 0 });
      const log = new TokenLog(first);
      first.push(stream, 0, cut, log);
      const second = TokenReader.thaw(structuredClone(first.freeze()));
      Object.assign(log, { reader: second });
      second.push(stream, cut, stream.length, log);
      second.endMessage();
      const got = log.all().filter((event) => !/^(NBC|ALT)?ROW /.test(event));
      if (got.join() !== whole.join()) expect({ cut, got }).toEqual({ cut, got: whole });
    }
  });

  it('keeps no row that nobody asked for', () => {
    const reader = new TokenReader(TDS_7_4);
    const log = new TokenLog(reader);
    const columns = EVERY_TYPE.filter(({ name }) => name === 'varbinary(max)');
    reader.push(colMetadata(columns), 0, colMetadata(columns).length, log);
    const begin = hex('d1 feffffffffffffff ffffff7f');
    reader.push(begin, 0, begin.length, log);
    const chunk = new Uint8Array(1 << 20);
    for (let i = 0; i < 100; i++) reader.push(chunk, 0, chunk.length, log);
    expect(reader.holding).toBe(0);
    expect(reader.between).toBe(false);
    expect(() => reader.endMessage()).toThrow('ends within a token');
  });

  it('of 7.1 has shorter numbers', () => {
    const columns = EVERY_TYPE.filter(({ name }) => ['intn', 'nvarchar'].includes(name));
    const text = {
      ...EVERY_TYPE.filter(({ name }) => name === 'text')[0],
      info: hex('23 ffffff7f 0904d00034 0100 7400'),
    };
    const old = Buffer.concat([
      colMetadata([...columns, text], TDS_7_1),
      row([...columns, text]),
      done({ status: DONE_COUNT, rowCount: 1n }, TDS_7_1),
      // SQL Server 2000, quoted by FreeTDS.
      hex(
        '81 0100 0000 0800 e7 0001 0904d00034 04 6e0061006d006500 d1 0a00 690073006f005f003100 fd 1000 c100 01000000',
      ),
    ]);
    const told = tokensOf([old], new TokenReader(TDS_7_1));
    expect(names(told)).toEqual(['COLMETADATA', '1 rows', 'DONE', 'COLMETADATA', '1 rows', 'DONE']);
    expect(tokensOf(bytewise(old), new TokenReader(TDS_7_1))).toEqual(told);
    const metadata = hex(told[0].split(' ')[2]);
    expect(readColumns(metadata, 0, metadata.length, { dialect: TDS_7_1 })?.map(({ name }) => name)).toEqual([
      'intn',
      'nvarchar',
      'text',
    ]);
  });

  it('with column encryption has keys, and plain types behind encrypted ones', () => {
    const crypted = new Writer()
      .byte(0x81)
      .ushort(2)
      // One key with two values.
      .ushort(1)
      .raw(new Uint8Array(20))
      .byte(2)
      .raw(hex('0300 aabbcc 01 4b00 0200 70003100 01 5200'))
      .raw(hex('0000 00 0000 00'))
      // A varbinary that is an int; its algorithm has a name.
      .raw(hex('00000000 0908 a5 ffff 0000 00000000 26 04 00 01 6100 01 01 02 63003100'))
      .raw(hex('00000000 0900 26 04 01 6900'))
      .done();
    const bytes = Buffer.concat([
      crypted,
      hex('d1 feffffffffffffff 02000000 0102 00000000 04 07000000'),
      hex('ac 0000 00 01 00000000 0008 a5 0800 00000000 26 04 02 01 01 0200 0102'),
      done({}, TDS_7_4),
    ]);
    const reader = (): TokenReader => Object.assign(new TokenReader(TDS_7_4), { columnEncryption: true });
    const told = tokensOf([bytes], reader());
    expect(names(told)).toEqual(['COLMETADATA', '1 rows', 'RETURNVALUE', 'DONE']);
    for (let cut = 1; cut < bytes.length; cut++) expect(tokensOf(pieces(bytes, [cut]), reader())).toEqual(told);
    const context = { dialect: TDS_7_4, columnEncryption: true };
    expect(read(crypted, (b, s, e) => readColumns(b, s, e, context))?.map(({ name }) => name)).toEqual(['c1', 'i']);
    const value = hex(told[2].split(' ')[2]);
    expect(readReturnValue(value, 0, value.length, context).value).toEqual(Buffer.from('0102', 'hex'));
  });

  it.each([1, 2])('has a data classification of version %i', (version) => {
    const rank = version === 2 ? '0a000000' : '';
    const bytes = Buffer.concat([
      hex(`a3 0100 01 6100 02 62006300 0200 00 00 01 7800 01 7900 ${rank} 0200 0100 0000 0100 ${rank} 0000`),
      done({}, TDS_7_4),
    ]);
    const reader = (): TokenReader => Object.assign(new TokenReader(TDS_7_4), { dataClassification: version });
    const told = tokensOf([bytes], reader());
    expect(names(told)).toEqual([tokenName(DATACLASSIFICATION), 'DONE']);
    for (let cut = 1; cut < bytes.length; cut++) expect(tokensOf(pieces(bytes, [cut]), reader())).toEqual(told);
  });

  it('may leave out what the client knows', () => {
    const columns = EVERY_TYPE.slice(12, 20);
    const remembered = colMetadata(columns);
    const bytes = Buffer.concat([hex('81 ffff'), row(columns), done({}, TDS_7_4)]);
    expect(() => tokensOf([bytes], new TokenReader(TDS_7_4))).toThrow('without a description');
    for (const parts of [[bytes], bytewise(bytes)]) {
      const reader = new TokenReader(TDS_7_4);
      let rows = 0;
      for (const part of parts) {
        reader.push(part, 0, part.length, {
          token(type, at, start, end) {
            if (type !== 0x81 || readColumns(at, start, end, { dialect: TDS_7_4 }) !== null) return;
            reader.describe(remembered, 0, remembered.length);
          },
          rows: (count) => (rows += count),
        });
      }
      expect(rows).toBe(1);
    }
    expect(() => new TokenReader(TDS_7_4).describe(remembered, 0, remembered.length - 1)).toThrow(ProtocolViolation);
  });

  it.each([
    ['00', 'not known'],
    ['d1', 'without a description'],
    ['d2', 'without a description'],
    ['d30100', 'has no description'],
    ['e30000 00', 'has no type'],
    ['81 0100 00000000 0000 99', 'not known'],
    ['81 0100 00000000 0000 f3', 'not known'],
    ['ac 0000 00 00 00000000 0000 99', 'not known'],
    ['e4 ffffff7f', 'longer than allowed'],
    ['ee ffffffff', 'longer than allowed'],
    ['ae 01 ffffffff', 'longer than allowed'],
    ['e3 0100 0f ffffff7f', 'longer than allowed'],
    ['ac 0000 00 00 00000000 0000 62 491f0000 ffffffff', 'longer than allowed'],
    ['81 0100 00000000 0000 62 491f0000 00 d1 ffffffff', 'impossible length'],
    ['88 ffff 0100 00', 'too many'],
  ])('is refused when malformed: %s', (bytes, message) => {
    const stream = hex(bytes);
    for (const parts of [[stream], bytewise(stream)]) {
      const reader = new TokenReader(TDS_7_4);
      const log = new TokenLog(reader);
      const push = () => {
        for (const part of parts) reader.push(part, 0, part.length, log);
      };
      expect(push).toThrow(message);
      expect(push).toThrow('after a malformed token');
      expect(() => reader.push(stream, 0, 1, log)).toThrow(ProtocolViolation);
    }
  });

  it('cannot have rows that cost time and no bytes', () => {
    const columns = Array.from({ length: 300 }, () => EVERY_TYPE[11]);
    expect(typeName(columns[0].info[0])).toBe('null');
    expect(() => tokensOf([colMetadata(columns)], new TokenReader(TDS_7_4))).toThrow('hold nothing');
  });

  it('bounds a description that does not end', () => {
    const reader = new TokenReader(TDS_7_4, 10_000);
    const log = new TokenLog(reader);
    const columns = colMetadata(Array.from({ length: 5000 }, () => EVERY_TYPE[12]));
    const push = () => {
      for (const part of pieces(columns, [100, 5000, 9000])) {
        reader.push(part, 0, part.length, log);
        expect(reader.holding).toBeLessThanOrEqual(10_000);
      }
    };
    expect(push).toThrow('longer than allowed');
  });
});

describe('what tokens say', () => {
  it('DONE', () => {
    const bytes = done({ status: DONE_COUNT, curCmd: 0xc1, rowCount: 5_000_000_000n }, TDS_7_4);
    expect(read(bytes, (b, s, e) => readDone(b, s, e, TDS_7_4))).toEqual({
      status: DONE_COUNT,
      curCmd: 0xc1,
      rowCount: 5_000_000_000n,
    });
    expect(read(bytes, doneStatus)).toBe(DONE_COUNT);
  });

  it('columns and their values', () => {
    const metadata = colMetadata(EVERY_TYPE);
    const columns = read(metadata, (b, s, e) => readColumns(b, s, e, { dialect: TDS_7_4 })) ?? [];
    expect(columns.map(({ name }) => name)).toEqual(EVERY_TYPE.map(({ name }) => name));
    expect(columns[34]).toMatchObject({ size: 20, collation: hex('0904d00034') });
    expect(columns[18]).toMatchObject({ precision: 18, scale: 4 });
    const values = EVERY_TYPE.map(({ plain }) => Buffer.from(plain).toString('hex'));
    const shown = (bytes: Uint8Array) =>
      read(bytes, (b, s, e) => readRow(columns, b, s, e)).map((value) => value && Buffer.from(value).toString('hex'));
    expect(shown(row(EVERY_TYPE))).toEqual(values);
    expect(shown(row(EVERY_TYPE, 'none'))).toEqual(
      EVERY_TYPE.map(({ value, none }, at) => (Buffer.from(value).equals(none) ? values[at] : null)),
    );
    const some = (at: number) => at % 3 === 0;
    expect(shown(nbcRow(EVERY_TYPE, some))).toEqual(values.map((value, at) => (some(at) ? null : value)));
    expect(() => readRow(columns, row(EVERY_TYPE), 0, 30)).toThrow(ProtocolViolation);
    expect([hex('07'), hex('feff'), hex('feffffff'), hex('ffffffffffffffff')].map(integerOf)).toEqual([7, -2, -2, -1]);
  });

  it('RETURNVALUE', () => {
    const context = { dialect: TDS_7_4 };
    expect(read(HAND_WRITTEN.returnValue, (b, s, e) => readReturnValue(b, s, e, context))).toMatchObject({
      ordinal: 0,
      name: '@h',
      status: 1,
      value: Buffer.from('2a000000', 'hex'),
    });
    expect(read(HAND_WRITTEN.returnValueMax, (b, s, e) => readReturnValue(b, s, e, context))).toMatchObject({
      ordinal: 1,
      shape: PLP,
      value: undefined,
    });
  });

  it('ENVCHANGE', () => {
    const change = (bytes: Uint8Array) => read(bytes, readEnvChange);
    expect(read(HAND_WRITTEN.promote, envChangeType)).toBe(ENV_PROMOTE);
    expect(envChangeName(ENV_PROMOTE)).toBe('promote transaction');
    expect(change(HAND_WRITTEN.promote)).toMatchObject({ newValue: Buffer.from('aabbcc', 'hex') });
    expect(readRouting(change(HAND_WRITTEN.routing))).toEqual({
      protocol: 0,
      port: 1433,
      server: 'db1',
      database: null,
    });
    expect(readRouting(change(hex('e3 1400 15 0f00 00 9905 0300 640062003100 0100 6400 0000')))).toMatchObject({
      server: 'db1',
      database: 'd',
    });
    expect(envChangeDescriptor(change(HAND_WRITTEN.enlist).newValue)).toBe(0x0807060504030201n);
    expect(envChangeDescriptor(change(HAND_WRITTEN.defect).oldValue)).toBe(0x0807060504030201n);
    expect(envChangeDescriptor(change(HAND_WRITTEN.reset).newValue)).toBe(0n);
    expect(envChangeText(change(hex('e3 0400 01 01 6100')).newValue)).toBe('a');
    expect(change(hex('e3 0300 7f aabb')).newValue).toEqual(Buffer.from('aabb', 'hex'));
    expect(() => change(hex('e3 0300 08 08 01'))).toThrow(ProtocolViolation);
  });

  it('ERROR and INFO', () => {
    const stale = hex('ab 1a00 560f0000 02 00 0300 480069002100 02 64006200 01 7000 07000000');
    expect(read(stale, (b, s, e) => readMessage(b, s, e, TDS_7_4))).toEqual({
      number: 3926,
      state: 2,
      class: 0,
      message: 'Hi!',
      server: 'db',
      procedure: 'p',
      line: 7,
    });
    expect(read(hex('aa 0c00 560f0000 02 10 0000 00 00 0700'), (b, s, e) => readMessage(b, s, e, TDS_7_1)).line).toBe(
      7,
    );
  });

  it('the others', () => {
    expect(read(HAND_WRITTEN.order, readOrder)).toEqual([1, 2]);
    expect(read(HAND_WRITTEN.sessionState, readSessionState)).toEqual({
      sequence: 1,
      recoverable: true,
      values: [{ id: 9, value: Buffer.from('ffffffff', 'hex') }],
    });
    expect(read(HAND_WRITTEN.featureExtAck, readFeatureExtAck).map(({ id }) => featureName(id))).toEqual([
      'UTF8_SUPPORT',
      'SESSIONRECOVERY',
    ]);
    expect(read(HAND_WRITTEN.fedAuthInfo, readFedAuthInfo)).toEqual({ stsUrl: 'abc', spn: 's' });
    expect(() => read(hex('ee 0d000000 01000000 01 06000000 16000000'), readFedAuthInfo)).toThrow(ProtocolViolation);
    const ack = hex('ad 0e00 01 74000004 02 73007100 10 00 03e8');
    expect(read(ack, readLoginAck)).toEqual({
      interface: 1,
      tdsVersion: 0x74000004,
      progName: 'sq',
      progVersion: [16, 0, 1000],
    });
    expect(utf16(hex('3dd8'), 0, 2)).toBe('\ud83d');
  });
});
