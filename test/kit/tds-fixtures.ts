import { unicode, Writer } from '../../codecs/tds/bytes.js';
import { DONE_COUNT, DONE_MORE, ENV_COMMIT, ENV_DATABASE, ENV_ROLLBACK } from '../../codecs/tds/facts.js';
import { type Login7, obfuscatePassword, writeLogin7 } from '../../codecs/tds/login7.js';
import {
  ATTENTION,
  BULK_LOAD,
  LOGIN7,
  PRELOGIN,
  packets,
  RESETCONNECTION,
  RPC,
  SQL_BATCH,
  TRANSACTION_MANAGER,
} from '../../codecs/tds/packet.js';
import { writePrelogin } from '../../codecs/tds/prelogin.js';
import { TM_BEGIN_XACT, TM_COMMIT_XACT, writeSqlBatch, writeTransactionRequest } from '../../codecs/tds/request.js';
import {
  integerParameter,
  SP_EXECUTESQL,
  SP_PREPEXEC,
  textParameter,
  type WrittenParameter,
  writeRpc,
} from '../../codecs/tds/rpc.js';
import { DONEINPROC, DONEPROC } from '../../codecs/tds/tokens.js';
import { TDS_7_2, TDS_7_4, VERSION_7_4 } from '../../codecs/tds/version.js';
import {
  beginChange,
  collationChange,
  done,
  endChange,
  error,
  info,
  loginReply,
  resetChange,
  returnStatus,
  textChange,
} from '../../codecs/tds/write.js';

export const hex = (text: string): Uint8Array => Buffer.from(text.replace(/\s/g, ''), 'hex');

/** SQL_Latin1_General_CP1_CI_AS. */
export const COLLATION = hex('0904d00034');

/** One column with its values: all written out by hand, as bytes. A null value is NULL in an NBCROW and left out of it. */
export interface MadeColumn {
  readonly name: string;
  /** TYPE_INFO, and the name of the table behind it where there is one. */
  readonly info: Uint8Array;
  /** The value with its length. */
  readonly value: Uint8Array;
  /** The same column as NULL. */
  readonly none: Uint8Array;
  /** The value without its length. */
  readonly plain: Uint8Array;
}

const column = (name: string, info: string, value: string, none: string, plain: string): MadeColumn => ({
  name,
  info: hex(info),
  value: hex(value),
  none: hex(none),
  plain: hex(plain),
});

/** One column of every type that a server describes (7.2 and newer). Fixed ones are never NULL. */
export const EVERY_TYPE: readonly MadeColumn[] = [
  column('tinyint', '30', '07', '07', '07'),
  column('bit', '32', '01', '01', '01'),
  column('smallint', '34', '0102', '0102', '0102'),
  column('int', '38', '01020304', '01020304', '01020304'),
  column('smalldatetime', '3a', '01020304', '01020304', '01020304'),
  column('real', '3b', '01020304', '01020304', '01020304'),
  column('money', '3c', '0102030405060708', '0102030405060708', '0102030405060708'),
  column('datetime', '3d', '0102030405060708', '0102030405060708', '0102030405060708'),
  column('float', '3e', '0102030405060708', '0102030405060708', '0102030405060708'),
  column('smallmoney', '7a', '01020304', '01020304', '01020304'),
  column('bigint', '7f', '0102030405060708', '0102030405060708', '0102030405060708'),
  column('null', '1f', '', '', ''),
  column('intn', '2604', '04 ffffffff', '00', 'ffffffff'),
  column('bitn', '6801', '01 01', '00', '01'),
  column('floatn', '6d08', '08 0000000000000040', '00', '0000000000000040'),
  column('moneyn', '6e08', '08 0102030405060708', '00', '0102030405060708'),
  column('datetimn', '6f04', '04 01020304', '00', '01020304'),
  column('guid', '2410', '10 000102030405060708090a0b0c0d0e0f', '00', '000102030405060708090a0b0c0d0e0f'),
  column('decimaln', '6a 09 12 04', '09 01 0102030405060708', '00', '01 0102030405060708'),
  column('numericn', '6c 05 09 00', '05 01 01020304', '00', '01 01020304'),
  column('decimal', '37 05 09 00', '05 01 01020304', '00', '01 01020304'),
  column('numeric', '3f 05 09 00', '05 01 01020304', '00', '01 01020304'),
  column('date', '28', '03 010203', '00', '010203'),
  column('time', '29 07', '05 0102030405', '00', '0102030405'),
  column('datetime2', '2a 07', '08 0102030405060708', '00', '0102030405060708'),
  column('datetimeoffset', '2b 07', '0a 0102030405060708090a', '00', '0102030405060708090a'),
  column('char', '2f 04', '02 6162', '00', '6162'),
  column('varchar', '27 04', '02 6162', '00', '6162'),
  column('binary', '2d 04', '02 6162', '00', '6162'),
  column('varbinary', '25 04', '02 6162', '00', '6162'),
  column('bigvarbinary', 'a5 0800', '0300 d1d1d1', 'ffff', 'd1d1d1'),
  column('bigbinary', 'ad 0800', '0000', 'ffff', ''),
  column('bigvarchar', 'a7 0a00 0904d00034', '0200 6869', 'ffff', '6869'),
  column('bigchar', 'af 0200 0904d00034', '0200 6869', 'ffff', '6869'),
  column('nvarchar', 'e7 1400 0904d00034', '0400 68003dd8', 'ffff', '68003dd8'),
  column('nchar', 'ef 0400 0904d00034', '0400 68006900', 'ffff', '68006900'),
  column(
    'varbinary(max)',
    'a5 ffff',
    '0500000000000000 02000000 0102 03000000 030405 00000000',
    'ffffffffffffffff',
    '0102030405',
  ),
  column('varchar(max)', 'a7 ffff 0904d00034', 'feffffffffffffff 02000000 6869 00000000', 'ffffffffffffffff', '6869'),
  column('nvarchar(max)', 'e7 ffff 0904d00034', '0000000000000000 00000000', 'ffffffffffffffff', ''),
  column('xml', 'f1 00', 'feffffffffffffff 02000000 3c00 02000000 3e00 00000000', 'ffffffffffffffff', '3c003e00'),
  column('xml of a schema', 'f1 01 01 6400 01 7300 0100 6300', 'feffffffffffffff 00000000', 'ffffffffffffffff', ''),
  column(
    'udt',
    'f0 ffff 01 6400 01 7300 01 7400 0300 610062006300',
    '0100000000000000 01000000 2a 00000000',
    'ffffffffffffffff',
    '2a',
  ),
  column('json', 'f4', 'feffffffffffffff 02000000 7b7d 00000000', 'ffffffffffffffff', '7b7d'),
  column('vector', 'f5 1000 00', '0800 a90100000000803f', 'ffff', 'a90100000000803f'),
  column(
    'text',
    '23 ffffff7f 0904d00034 02 0300 640062006f00 0100 7400',
    '10 000102030405060708090a0b0c0d0e0f 0102030405060708 02000000 6869',
    '00',
    '6869',
  ),
  column('ntext', '63 feffff7f 0904d00034 01 0100 7400', '01 aa 0102030405060708 02000000 6800', '00', '6800'),
  column('image', '22 ffffff7f 00', '01 aa 0102030405060708 00000000', '00', ''),
  column('sql_variant', '62 491f0000', '06000000 38 00 01020304', '00000000', '38 00 01020304'),
];

/** COLMETADATA of these columns. */
export function colMetadata(columns: readonly MadeColumn[], dialect = TDS_7_4): Uint8Array {
  const out = new Writer().byte(0x81).ushort(columns.length);
  for (const { name, info } of columns) {
    if (dialect >= TDS_7_2) out.ulong(0);
    else out.ushort(0);
    out.ushort(9).raw(info).bVarchar(name);
  }
  return out.done();
}

/** A ROW of these columns, all of them with values or all NULL. */
export const row = (columns: readonly MadeColumn[], which: 'value' | 'none' = 'value'): Uint8Array =>
  Buffer.concat([Uint8Array.of(0xd1), ...columns.map((each) => each[which])]);

/** A NBCROW in which the columns are NULL for which `none` says so. */
export function nbcRow(columns: readonly MadeColumn[], none: (index: number) => boolean): Uint8Array {
  const bitmap = new Uint8Array((columns.length + 7) >> 3);
  for (const [index] of columns.entries()) if (none(index)) bitmap[index >> 3] |= 1 << (index & 7);
  return Buffer.concat([
    Uint8Array.of(0xd2),
    bitmap,
    ...columns.filter((_, index) => !none(index)).map(({ value }) => value),
  ]);
}

/** Tokens whose bytes are written out by hand, one of each kind that {@link serverTokens} has not got from a writer. */
export const HAND_WRITTEN = {
  offset: hex('78 8101 0000'),
  order: hex('a9 0400 0100 0200'),
  tabname: hex('a4 0600 01 0100 7400 00'),
  colinfo: hex('a5 0300 01 01 08'),
  returnValue: hex('ac 0000 02 4000 6800 01 00000000 0000 26 04 04 2a000000'),
  returnValueMax: hex('ac 0100 00 01 00000000 0000 e7 ffff 0904d00034'),
  returnValueMaxValue: hex('feffffffffffffff 04000000 68006900 00000000'),
  featureExtAck: hex('ae 0a 01000000 01 01 03000000 09 01 05 ff'),
  sessionState: hex('e4 0b000000 01000000 01 09 04 ffffffff'),
  sspi: hex('ed 0400 4e544c4d'),
  fedAuthInfo: hex('ee 1e000000 02000000 01 06000000 16000000 02 02000000 1c000000 610062006300 7300'),
  altMetadata: hex('88 0100 0700 01 0100 4b 0200 00000000 0900 26 04 00'),
  altRow: hex('d3 0700 04 01000000'),
  promote: hex('e3 0100 0f 03000000 aabbcc 00'),
  routing: hex('e3 1000 14 0b00 00 9905 0300 640062003100 0000'),
  enlist: hex('e3 0b00 0b 08 0102030405060708 00'),
  defect: hex('e3 0b00 0c 00 08 0102030405060708'),
  reset: hex('e3 0300 12 00 00'),
} as const;

/** A stream with every token and every type, in an order that a server could send. */
export const serverTokens = (): Uint8Array[] => [
  loginReply({
    tdsVersion: VERSION_7_4,
    database: 'shop',
    language: 'us_english',
    collation: COLLATION,
    packetSize: 4096,
    progName: 'Microsoft SQL Server',
    progVersion: [16, 0, 1000],
    features: [{ id: 0x0a, data: Uint8Array.of(1) }],
    server: 'db1',
  }),
  HAND_WRITTEN.fedAuthInfo,
  HAND_WRITTEN.sspi,
  resetChange(),
  beginChange(0x3500000021n),
  info({ number: 3926, class: 0, state: 2, message: 'Something is worth telling.', server: 'db1' }, TDS_7_4),
  colMetadata(EVERY_TYPE),
  HAND_WRITTEN.tabname,
  HAND_WRITTEN.colinfo,
  HAND_WRITTEN.order,
  row(EVERY_TYPE),
  row(EVERY_TYPE, 'none'),
  nbcRow(EVERY_TYPE, () => false),
  nbcRow(EVERY_TYPE, () => true),
  nbcRow(EVERY_TYPE, (index) => index % 3 === 0),
  row(EVERY_TYPE),
  done({ status: DONE_MORE | DONE_COUNT, curCmd: 0xc1, rowCount: 6n }, TDS_7_4),
  HAND_WRITTEN.altMetadata,
  colMetadata([]),
  Uint8Array.of(0xd1, 0xd2, 0xd1),
  colMetadata(EVERY_TYPE.slice(12, 14)),
  HAND_WRITTEN.altMetadata,
  row(EVERY_TYPE.slice(12, 14)),
  HAND_WRITTEN.altRow,
  HAND_WRITTEN.altRow,
  done({ type: DONEINPROC, status: DONE_MORE }, TDS_7_4),
  returnStatus(0),
  HAND_WRITTEN.returnValue,
  HAND_WRITTEN.returnValueMax,
  HAND_WRITTEN.returnValueMaxValue,
  HAND_WRITTEN.offset,
  error({ number: 2627, class: 14, message: 'Violation of a constraint.', procedure: 'p' }, TDS_7_4),
  HAND_WRITTEN.promote,
  HAND_WRITTEN.routing,
  HAND_WRITTEN.enlist,
  HAND_WRITTEN.defect,
  endChange(ENV_COMMIT, 0x3500000021n),
  endChange(ENV_ROLLBACK, 0x3500000022n),
  textChange(ENV_DATABASE, 'other', 'shop'),
  collationChange(COLLATION, COLLATION),
  HAND_WRITTEN.featureExtAck,
  HAND_WRITTEN.sessionState,
  done({ type: DONEPROC, status: 0, curCmd: 0xe0 }, TDS_7_4),
];

/** A login as a driver makes it. */
export const LOGIN: Login7 = {
  tdsVersion: VERSION_7_4,
  packetSize: 4096,
  clientProgVer: 7,
  clientPid: 4711,
  connectionId: 0,
  optionFlags1: 0xe0,
  optionFlags2: 0x03,
  typeFlags: 0,
  optionFlags3: 0x10,
  clientTimeZone: -60,
  clientLcid: 0x409,
  hostName: 'host',
  userName: 'someone',
  password: obfuscatePassword(unicode('Very$ecret1')),
  appName: 'app',
  serverName: 'db1',
  cltIntName: 'library',
  language: '',
  database: 'shop',
  clientId: hex('020304050607'),
  sspi: new Uint8Array(0),
  atchDbFile: '',
  changePassword: new Uint8Array(0),
  features: [
    { id: 0x01, data: new Uint8Array(0) },
    { id: 0x0a, data: Uint8Array.of(1) },
  ],
};

/** A table-valued parameter: two columns, one of which takes its default, hints, two rows. */
export const TABLE_PARAMETER: WrittenParameter = {
  name: '@t',
  typeInfo: hex('f3 00 03 640062006f00 01 5400'),
  value: hex(`0200 00000000 0000 26 04 00 00000000 0002 e7 1400 0904d00034 00
    10 0100 0100 01 11 0200 0000 0100 00 01 04 01000000 01 00 00`),
};

/** Messages of a client, as their payloads. */
export const clientPayloads = {
  prelogin: writePrelogin([
    { token: 0, data: hex('10 00 03e8 0000') },
    { token: 1, data: hex('00') },
    { token: 2, data: hex('53514c00') },
    { token: 3, data: hex('67120000') },
    { token: 4, data: hex('00') },
    { token: 5, data: new Uint8Array(36).fill(9) },
    { token: 6, data: hex('01') },
    { token: 7, data: new Uint8Array(32).fill(5) },
  ]),
  login: writeLogin7(LOGIN),
  batch: writeSqlBatch(0n, "select 'é☃' as t"),
  begin: writeTransactionRequest(0n, { type: TM_BEGIN_XACT, isolation: 2, name: 'work' }),
  rpc: writeRpc(0x3500000021n, [
    {
      procedure: SP_EXECUTESQL,
      options: 2,
      parameters: [textParameter('select @a, @b'), textParameter('@a int, @b nvarchar(10)'), integerParameter(7, '@a')],
    },
    {
      procedure: SP_PREPEXEC,
      parameters: [integerParameter(null, '', 1), textParameter(''), textParameter('x'.repeat(9000)), TABLE_PARAMETER],
    },
    { procedure: 'dbo.p_out', parameters: everyParameter() },
  ]),
  commit: writeTransactionRequest(0x3500000021n, {
    type: TM_COMMIT_XACT,
    name: 'work',
    next: { isolation: 4, name: 'more' },
  }),
  bulk: Buffer.concat([
    colMetadata(EVERY_TYPE.slice(12, 14)),
    row(EVERY_TYPE.slice(12, 14)),
    row(EVERY_TYPE.slice(12, 14), 'none'),
    done({}, TDS_7_4),
  ]),
} as const;

/** A parameter of each type that can be one, where it is described as in a result. */
function everyParameter(): WrittenParameter[] {
  const otherwise = ['udt', 'text', 'ntext', 'image'];
  return EVERY_TYPE.filter(({ name }) => !otherwise.includes(name))
    .map(({ name, info, value }): WrittenParameter => ({ name: `@${name}`, typeInfo: info, value }))
    .concat([
      { name: '@udt', typeInfo: hex('f0 00 01 7300 01 7400'), value: hex('ffffffffffffffff') },
      { name: '@ntext', typeInfo: hex('63 feffff7f 0904d00034'), value: hex('02000000 6800') },
      { name: '@text', typeInfo: hex('23 feffff7f 0904d00034'), value: hex('ffffffff') },
      { name: '@image', typeInfo: hex('22 feffff7f'), value: hex('02000000 6800') },
    ]);
}

/** A client's whole stream, in packets of that size. */
export const clientStream = (size = 512): Uint8Array =>
  Buffer.concat([
    packets(PRELOGIN, clientPayloads.prelogin, size),
    packets(LOGIN7, clientPayloads.login, size),
    packets(SQL_BATCH, clientPayloads.batch, size, RESETCONNECTION),
    packets(TRANSACTION_MANAGER, clientPayloads.begin, size),
    packets(RPC, clientPayloads.rpc, size),
    packets(BULK_LOAD, clientPayloads.bulk, size),
    packets(ATTENTION, new Uint8Array(0), size),
    packets(TRANSACTION_MANAGER, clientPayloads.commit, size),
  ]);
