import { describe, expect, it } from 'vitest';
import { packets, RPC, SQL_BATCH } from '../../codecs/tds/packet.js';
import {
  allHeaders,
  hasHeaders,
  ISOLATION_LEVELS,
  readAllHeaders,
  readSqlBatch,
  readTransactionRequest,
  rewriteDescriptor,
  rewriteDescriptorInPackets,
  sqlText,
  TM_BEGIN_XACT,
  TM_COMMIT_XACT,
  TM_GET_DTC_ADDRESS,
  TM_PROMOTE_XACT,
  TM_PROPAGATE_XACT,
  TM_ROLLBACK_XACT,
  TM_SAVE_XACT,
  transactionRequestName,
  writeSqlBatch,
  writeTransactionRequest,
} from '../../codecs/tds/request.js';
import {
  integerParameter,
  PARAM_BY_REF,
  parameterInteger,
  parameterText,
  parameterValue,
  readRpc,
  SP_EXECUTE,
  SP_EXECUTESQL,
  SP_PREPARE,
  SP_PREPEXEC,
  statementText,
  textParameter,
  wellKnown,
  writeRpc,
} from '../../codecs/tds/rpc.js';
import { TABLE } from '../../codecs/tds/types.js';
import { TDS_7_1, TDS_7_4 } from '../../codecs/tds/version.js';
import { ProtocolViolation } from '../../core/contract/index.js';
import { messagesOf } from '../kit/tds-captures.js';
import { clientPayloads, EVERY_TYPE, hex, TABLE_PARAMETER } from '../kit/tds-fixtures.js';

const DESCRIPTOR = 0x3500000021n;
const OTHER = 0x8877665544332211n;

/** Somewhere in a larger buffer, as in a chunk. */
const inside = (bytes: Uint8Array): { bytes: Uint8Array; start: number; end: number } => {
  return { bytes: Buffer.concat([hex('aabb'), bytes, hex('cc')]), start: 2, end: 2 + bytes.length };
};

describe('ALL_HEADERS', () => {
  const several = hex(`42000000
    1a000000 0300 000102030405060708090a0b0c0d0e0f 01000000
    12000000 0200 2100000035000000 01000000
    12000000 0100 0200 6100 0200 6200 64000000`);

  it('are read one by one', () => {
    expect(Buffer.from(allHeaders(DESCRIPTOR)).toString('hex')).toBe('16000000120000000200210000003500000001000000');
    const one = inside(allHeaders(DESCRIPTOR, 2));
    expect(readAllHeaders(one.bytes, one.start, one.end)).toEqual({
      length: 22,
      descriptorAt: 10,
      descriptor: DESCRIPTOR,
      outstanding: 2,
      traceActivity: null,
      notification: false,
    });
    const all = inside(several);
    expect(readAllHeaders(all.bytes, all.start, all.end)).toMatchObject({
      length: several.length,
      descriptorAt: 36,
      descriptor: DESCRIPTOR,
      outstanding: 1,
      notification: true,
    });
    expect(readAllHeaders(hex('04000000'), 0, 4)).toMatchObject({ length: 4, descriptorAt: -1, descriptor: 0n });
  });

  it('get another transaction descriptor in place, in packets as well', () => {
    for (const headers of [allHeaders(DESCRIPTOR), several]) {
      const payload = Buffer.concat([headers, Buffer.from('select 1'.repeat(100), 'utf16le')]);
      const read = readAllHeaders(payload, 0, payload.length);
      const wanted = Buffer.from(payload);
      expect(rewriteDescriptor(wanted, 0, read, OTHER)).toBe(true);
      expect(readAllHeaders(wanted, 0, wanted.length).descriptor).toBe(OTHER);
      expect(wanted.length).toBe(payload.length);
      for (let size = 512; size > 8; size--) {
        const message = packets(SQL_BATCH, payload, size);
        expect(rewriteDescriptorInPackets(message, 0, message.length, read, OTHER)).toBe(true);
        expect(wanted.equals(messagesOf(message, 'client')[0].payload)).toBe(true);
      }
    }
    const none = readAllHeaders(hex('04000000'), 0, 4);
    expect(rewriteDescriptor(new Uint8Array(4), 0, none, OTHER)).toBe(false);
    expect(rewriteDescriptorInPackets(new Uint8Array(4), 0, 4, none, OTHER)).toBe(false);
  });

  it('stand in front of three kinds of messages, from 7.2 on', () => {
    expect([1, 3, 14, 7, 6, 16, 18].filter((type) => hasHeaders(type, TDS_7_4))).toEqual([1, 3, 14]);
    expect(hasHeaders(1, TDS_7_1)).toBe(false);
  });

  it.each([
    '',
    '03000000',
    '16000000',
    '0a000000 05000000 0200',
    '0a000000 ffffffff 0200',
    '0a000000 06000000 0200',
    '28000000 12000000 0200 0000000000000000 01000000 12000000 0200 0000000000000000 01000000',
  ])('are refused when malformed: %s', (bytes) => {
    const { bytes: all, start, end } = inside(hex(bytes));
    expect(() => readAllHeaders(all, start, end)).toThrow(ProtocolViolation);
  });
});

describe('SQLBatch', () => {
  it('has its text as it lies', () => {
    const { bytes, start, end } = inside(writeSqlBatch(DESCRIPTOR, "select N'é☃'"));
    const batch = readSqlBatch(bytes, start, end, TDS_7_4);
    expect(batch.headers.descriptor).toBe(DESCRIPTOR);
    expect(sqlText(batch)).toBe("select N'é☃'");
    expect(batch.text.buffer).toBe(bytes.buffer);
    const enclave = Buffer.concat([allHeaders(0n), hex('0200aabb'), Buffer.from('x', 'utf16le')]);
    expect(sqlText(readSqlBatch(enclave, 0, enclave.length, TDS_7_4, true))).toBe('x');
    const old = Buffer.from('select 1', 'utf16le');
    expect(sqlText(readSqlBatch(old, 0, old.length, TDS_7_1))).toBe('select 1');
    expect(() => readSqlBatch(bytes, start, end - 1, TDS_7_4)).toThrow('half a character');
  });
});

describe('Transaction Manager requests', () => {
  it.each([
    { type: TM_GET_DTC_ADDRESS, cookie: Buffer.alloc(0) },
    { type: TM_PROPAGATE_XACT, cookie: Buffer.from('cookie') },
    { type: TM_BEGIN_XACT, isolation: 4, name: 'work' },
    { type: TM_PROMOTE_XACT },
    { type: TM_COMMIT_XACT, name: 'work' },
    { type: TM_COMMIT_XACT, next: { isolation: 5, name: 'more' } },
    { type: TM_ROLLBACK_XACT, name: 'savepoint', next: { isolation: 0, name: '' } },
    { type: TM_SAVE_XACT, name: 'savepoint' },
  ])('%j', (request) => {
    const { bytes, start, end } = inside(writeTransactionRequest(DESCRIPTOR, request));
    expect(readTransactionRequest(bytes, start, end, TDS_7_4)).toEqual({
      isolation: null,
      name: '',
      next: null,
      cookie: new Uint8Array(0),
      ...request,
      headers: readAllHeaders(bytes, start, end),
    });
    expect(transactionRequestName(request.type)).toMatch(/^TM_/);
    // Nothing may be missing.
    if (request.type !== TM_PROMOTE_XACT)
      expect(() => readTransactionRequest(bytes, start, end - 1, TDS_7_4)).toThrow(ProtocolViolation);
  });

  it('of unknown kinds are refused', () => {
    for (const body of ['0200', '0500 09 00']) {
      const payload = Buffer.concat([allHeaders(0n), hex(body)]);
      expect(() => readTransactionRequest(payload, 0, payload.length, TDS_7_4)).toThrow(ProtocolViolation);
    }
    expect(ISOLATION_LEVELS[2]).toBe('read committed');
    expect(transactionRequestName(99)).toBe('unknown');
  });
});

describe('RPC', () => {
  it('has its calls, their parameters and what is in them', () => {
    const { bytes, start, end } = inside(clientPayloads.rpc);
    const { headers, calls } = readRpc(bytes, start, end, TDS_7_4);
    expect(headers.descriptor).toBe(DESCRIPTOR);
    expect(calls.map(({ name, id, options }) => [name, id, options])).toEqual([
      ['sp_executesql', SP_EXECUTESQL, 2],
      ['sp_prepexec', SP_PREPEXEC, 0],
      ['dbo.p_out', 0, 0],
    ]);
    expect(calls.map((call) => statementText(bytes, call))).toEqual(['select @a, @b', 'x'.repeat(9000), null]);
    const [first, second, third] = calls;
    expect(parameterInteger(bytes, first.parameters[2])).toBe(7);
    expect(first.parameters[2]).toMatchObject({ name: '@a', status: 0 });
    expect(parameterText(bytes, first.parameters[2])).toBe(null);
    expect(second.parameters[0].status).toBe(PARAM_BY_REF);
    expect(parameterInteger(bytes, second.parameters[0])).toBe(null);
    expect(parameterText(bytes, second.parameters[1])).toBe('');
    const [, , , table] = second.parameters;
    expect(table).toMatchObject({ name: '@t', shape: TABLE });
    expect(Buffer.from(bytes.slice(table.valueAt, table.end)).equals(TABLE_PARAMETER.value)).toBe(true);
    expect(parameterInteger(bytes, table)).toBe(null);
    expect(() => parameterValue(bytes, table)).toThrow(ProtocolViolation);
    for (const parameter of third.parameters) {
      const made = EVERY_TYPE.find(({ name }) => `@${name}` === parameter.name);
      if (made === undefined || ['udt', 'text', 'ntext', 'image'].includes(made.name)) continue;
      expect([made.name, Buffer.from(parameterValue(bytes, parameter) ?? '?').toString('hex')]).toEqual([
        made.name,
        Buffer.from(made.plain).toString('hex'),
      ]);
    }
    expect(third.parameters.slice(-4).map((each) => parameterValue(bytes, each)?.length ?? null)).toEqual([
      null,
      2,
      null,
      2,
    ]);
    expect(third.parameters.at(-1)?.end).toBe(end);
  });

  it('of MS-TDS and of 7.1', () => {
    const call = hex('0400 66006f006f003200 0000 00 02 26 02 00');
    const modern = Buffer.concat([allHeaders(0n), call, hex('fe'), call, hex('ff')]);
    const { calls } = readRpc(modern, 0, modern.length, TDS_7_4);
    expect(calls.map(({ name, execute }) => [name, execute])).toEqual([
      ['foo2', false],
      ['foo2', true],
    ]);
    expect(calls[0].parameters).toMatchObject([{ name: '', status: 2 }]);
    const old = Buffer.concat([call, hex('80'), call]);
    expect(readRpc(old, 0, old.length, TDS_7_1).calls).toHaveLength(2);
  });

  it('knows procedures by number and by name', () => {
    const named = (name: string) => wellKnown({ name, id: 0, options: 0, parameters: [], execute: true });
    expect(
      ['sp_executesql', 'SP_EXECUTESQL', 'sys.sp_executesql', '[sys].[sp_executesql]', 'master..sp_executesql'].map(
        named,
      ),
    ).toEqual(Array(5).fill(SP_EXECUTESQL));
    expect([named('sp_prepare'), named('sp_execute'), named('mine.sp_execute'), named('foo')]).toEqual([
      SP_PREPARE,
      SP_EXECUTE,
      0,
      0,
    ]);
  });

  it('with encrypted parameters', () => {
    const encrypted = hex(
      '02 40006100 08 a5 0800 0200 aabb 26 04 02 01 01000000 02000000 03000000 0001020304050607 01',
    );
    const payload = Buffer.concat([
      allHeaders(0n),
      hex('0200 66006f00 0000'),
      encrypted,
      hex('00 00 26 04 04 07000000'),
    ]);
    const [{ parameters }] = readRpc(payload, 0, payload.length, TDS_7_4).calls;
    expect(parameters.map(({ status }) => status)).toEqual([8, 0]);
    expect(parameterInteger(payload, parameters[1])).toBe(7);
  });

  it('is refused when it is cut anywhere but between two parameters', () => {
    const payload = clientPayloads.rpc;
    const ends = new Set(
      readRpc(payload, 0, payload.length, TDS_7_4).calls.flatMap(({ parameters }) => parameters.map(({ end }) => end)),
    );
    let refused = 0;
    for (let end = 0; end < payload.length; end++) {
      try {
        readRpc(payload, 0, end, TDS_7_4);
      } catch (error) {
        expect(error).toBeInstanceOf(ProtocolViolation);
        refused++;
      }
    }
    // What may be missing are whole parameters, a separator's call and nothing else.
    expect(refused).toBeGreaterThanOrEqual(payload.length - ends.size - 8);
  });

  it.each([
    ['0000 0000', 'calls nothing'],
    ['0200 66006f00 0000 00 00 f3 00 00 00 0100 00000000 0000 f3 00 00 00', 'table within a table'],
    ['0200 66006f00 0000 00 00 f3 00 00 00 ffff 77', 'malformed table'],
    ['0200 66006f00 0000 00 00 f3 00 00 00 ffff 00 77', 'malformed table'],
    ['0200 66006f00 0000 00 00 99', 'type that is not known'],
    ['0200 66006f00 0000 00 00 a7 ffff 0904d00034 feffffffffffffff ffffffff', 'too short'],
  ])('is refused when malformed: %s', (bytes, message) => {
    const payload = Buffer.concat([allHeaders(0n), hex(bytes)]);
    expect(() => readRpc(payload, 0, payload.length, TDS_7_4)).toThrow(message);
  });

  it('is written as drivers do', () => {
    const payload = writeRpc(0n, [{ procedure: SP_EXECUTE, parameters: [integerParameter(1), textParameter(null)] }]);
    expect(Buffer.from(payload.subarray(22)).toString('hex')).toBe(
      'ffff0c000000' + '000026040401000000' + '0000e7401f0904d00034ffff',
    );
    expect(messagesOf(packets(RPC, payload, 512), 'client')[0].type).toBe(RPC);
  });
});
