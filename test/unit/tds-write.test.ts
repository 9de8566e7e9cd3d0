import { describe, expect, it } from 'vitest';
import {
  DONE_ATTN,
  DONE_ERROR,
  DONE_MORE,
  ENV_BEGIN,
  ENV_COMMIT,
  ENV_DATABASE,
  ENV_DEFECT,
  ENV_PACKETSIZE,
  ENV_RESET,
  ENV_ROLLBACK,
  envChangeDescriptor,
  envChangeText,
  readDone,
  readEnvChange,
  readLoginAck,
  readMessage,
} from '../../codecs/tds/facts.js';
import { DONE, DONEPROC, ERROR, TokenReader, tokenName } from '../../codecs/tds/tokens.js';
import { TDS_7_1, TDS_7_4, VERSION_7_1, VERSION_7_4 } from '../../codecs/tds/version.js';
import {
  attentionDone,
  beginChange,
  collationChange,
  done,
  endChange,
  error,
  errorAnswer,
  featureExtAck,
  info,
  loginAck,
  loginReply,
  mappedChange,
  resetChange,
  returnStatus,
  serverMessage,
  textChange,
} from '../../codecs/tds/write.js';
import { messagesOf } from '../kit/tds-captures.js';
import { COLLATION } from '../kit/tds-fixtures.js';

/** The tokens of some bytes. */
function split(bytes: Uint8Array, dialect = TDS_7_4): { name: string; bytes: Uint8Array }[] {
  const found: { name: string; bytes: Uint8Array }[] = [];
  const reader = new TokenReader(dialect);
  reader.push(bytes, 0, bytes.length, {
    token: (type, at, start, end) => found.push({ name: tokenName(type), bytes: at.slice(start, end) }),
    rows() {},
  });
  reader.endMessage();
  return found;
}

const hexOf = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');

describe('what a gateway says in a server’s place', () => {
  it.each([TDS_7_1, TDS_7_4])('errors and information, dialect %i', (dialect) => {
    const parts = { number: 50_000, class: 16, message: 'No.', server: 'gw', procedure: 'p', line: 3, state: 9 };
    for (const [make, name] of [
      [error, 'ERROR'],
      [info, 'INFO'],
    ] as const) {
      const [token, ...rest] = split(make(parts, dialect), dialect);
      expect(token.name).toBe(name);
      expect(rest).toEqual([]);
      expect(readMessage(token.bytes, 0, token.bytes.length, dialect)).toEqual(parts);
    }
    const [said, over] = split(errorAnswer({ number: 3971, class: 16, message: 'x' }, dialect), dialect);
    expect([said.name, over.name]).toEqual(['ERROR', 'DONE']);
    expect(readDone(over.bytes, 0, over.bytes.length, dialect).status).toBe(DONE_ERROR);
    const [attention] = split(attentionDone(dialect), dialect);
    expect(readDone(attention.bytes, 0, attention.bytes.length, dialect).status).toBe(DONE_ATTN);
  });

  it('cuts what is too long for a token', () => {
    const long = 'é'.repeat(100_000);
    const bytes = error({ number: 1, class: 16, message: long, server: long, procedure: long }, TDS_7_4);
    const [token] = split(bytes);
    expect(bytes[0]).toBe(ERROR);
    const read = readMessage(token.bytes, 0, token.bytes.length, TDS_7_4);
    expect([read.message.length, read.server.length, read.procedure.length]).toEqual([4000, 255, 255]);
  });

  it('ends of statements', () => {
    expect(hexOf(done({ status: 0x10, curCmd: 0xc1, rowCount: 1n }, TDS_7_4))).toBe('fd1000c1000100000000000000');
    expect(hexOf(done({ type: DONEPROC, status: DONE_MORE }, TDS_7_1))).toBe('fe01000000' + '00000000');
    expect(hexOf(returnStatus(-6))).toBe('79faffffff');
  });

  it('changes of the environment', () => {
    const change = (bytes: Uint8Array) => {
      const [token, ...rest] = split(bytes);
      expect([token.name, rest.length]).toEqual(['ENVCHANGE', 0]);
      return readEnvChange(token.bytes, 0, token.bytes.length);
    };
    expect(hexOf(beginChange(0x3500000021n))).toBe('e30b0008082100000035000000' + '00');
    expect(hexOf(resetChange())).toBe('e30300120000');
    expect(change(resetChange()).type).toBe(ENV_RESET);
    expect(envChangeDescriptor(change(beginChange(5n)).newValue)).toBe(5n);
    for (const type of [ENV_COMMIT, ENV_ROLLBACK, ENV_DEFECT] as const) {
      const ended = change(endChange(type, 7n));
      expect([ended.type, ended.newValue.length, envChangeDescriptor(ended.oldValue)]).toEqual([type, 0, 7n]);
    }
    const database = change(textChange(ENV_DATABASE, 'new', 'old'));
    expect([envChangeText(database.newValue), envChangeText(database.oldValue)]).toEqual(['new', 'old']);
    expect(hexOf(change(collationChange(COLLATION)).newValue)).toBe(hexOf(COLLATION));
    const begun = change(beginChange(5n));
    expect(hexOf(mappedChange(begun, 9n, 0n))).toBe(hexOf(beginChange(9n)));
    expect(hexOf(mappedChange(change(endChange(ENV_ROLLBACK, 5n)), 0n, 9n))).toBe(hexOf(endChange(ENV_ROLLBACK, 9n)));
    expect(change(mappedChange(begun, 9n, 0n)).type).toBe(ENV_BEGIN);
  });

  it('that a client is let in', () => {
    const reply = loginReply({
      tdsVersion: VERSION_7_4,
      database: 'shop',
      language: 'us_english',
      collation: COLLATION,
      packetSize: 8000,
      progName: 'Microsoft SQL Server',
      progVersion: [16, 0, 1000],
      features: [{ id: 0x0a, data: Uint8Array.of(1) }],
      server: 'gw',
    });
    const tokens = split(reply);
    expect(tokens.map(({ name }) => name)).toEqual([
      ...['ENVCHANGE', 'INFO', 'ENVCHANGE', 'ENVCHANGE', 'INFO', 'LOGINACK', 'ENVCHANGE', 'FEATUREEXTACK', 'DONE'],
    ]);
    const size = readEnvChange(tokens[6].bytes, 0, tokens[6].bytes.length);
    expect([size.type, envChangeText(size.newValue)]).toEqual([ENV_PACKETSIZE, '8000']);
    expect(hexOf(tokens[7].bytes)).toBe('ae0a0100000001ff');
    expect(featureExtAck([])).toHaveLength(0);
  });

  it.each([VERSION_7_4, VERSION_7_1, 0x71000000, 0x70000000])('LOGINACK of version %i', (version) => {
    const bytes = loginAck(version, 'server', [16, 0, 1000]);
    expect(readLoginAck(bytes, 0, bytes.length)).toEqual({
      interface: 1,
      tdsVersion: version,
      progName: 'server',
      progVersion: [16, 0, 1000],
    });
    if (version === 0x71000000) expect(hexOf(bytes.subarray(4, 8))).toBe('07010000');
  });

  it('in packets', () => {
    const tokens = Buffer.concat([
      info({ number: 1, class: 0, message: 'x'.repeat(2000) }, TDS_7_4),
      done({}, TDS_7_4),
    ]);
    const [message, ...rest] = messagesOf(serverMessage(tokens, 512, 55), 'server');
    expect(rest).toEqual([]);
    expect(tokens.equals(message.payload)).toBe(true);
    expect(hexOf(message.raw.subarray(0, 8))).toBe('0400020000370100');
    expect(split(message.payload).map(({ name }) => name)).toEqual(['INFO', tokenName(DONE)]);
  });
});
