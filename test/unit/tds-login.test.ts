import { inspect } from 'node:util';
import { describe, expect, it } from 'vitest';
import { unicode } from '../../codecs/tds/bytes.js';
import { greet } from '../../codecs/tds/greet.js';
import { type Login7, obfuscatePassword, readLogin7, revealPassword, writeLogin7 } from '../../codecs/tds/login7.js';
import { LOGIN7, PRELOGIN, packetLength, packets } from '../../codecs/tds/packet.js';
import {
  ENCRYPT_NOT_SUP,
  ENCRYPT_OFF,
  ENCRYPT_ON,
  ENCRYPT_REQ,
  encryptionScope,
  isTlsPayload,
  negotiateEncryption,
  optionName,
  readPrelogin,
  versionData,
  writePrelogin,
} from '../../codecs/tds/prelogin.js';
import {
  readRecoveryAck,
  readRecoveryRequest,
  writeRecoveryRequest,
  writeStateValues,
} from '../../codecs/tds/recovery.js';
import {
  dialectOf,
  TDS_7_1,
  TDS_7_4,
  TDS_8_0,
  VERSION_7_1,
  VERSION_8_0,
  versionOfLoginAck,
} from '../../codecs/tds/version.js';
import { ProtocolViolation } from '../../core/contract/index.js';
import { ExchangeStepper } from '../../core/recovery/exchange.js';
import { clientPayloads, hex, LOGIN } from '../kit/tds-fixtures.js';

const readAt = <T>(bytes: Uint8Array, how: (bytes: Uint8Array, start: number, end: number) => T): T =>
  how(Buffer.concat([hex('aabb'), bytes, hex('cc')]), 2, 2 + bytes.length);

describe('versions', () => {
  it.each([
    [0x70000000, 0x70],
    [0x71000001, TDS_7_1],
    [0x72090002, 0x72],
    [0x730b0003, 0x73],
    [0x74000004, TDS_7_4],
    [VERSION_8_0, TDS_8_0],
  ])('%i', (version, dialect) => expect(dialectOf(version)).toBe(dialect));

  it('in LOGINACK', () => {
    expect([0x07010000, 0x07000000, 0x71000001, 0x74000004].map(versionOfLoginAck)).toEqual([
      0x71000000, 0x70000000, 0x71000001, 0x74000004,
    ]);
  });
});

describe('PRELOGIN', () => {
  it('of a client, every option', () => {
    const prelogin = readAt(clientPayloads.prelogin, (b, s, e) => readPrelogin(b, s, e, 'client'));
    expect(prelogin).toMatchObject({
      version: { major: 16, minor: 0, build: 1000, subBuild: 0 },
      encryption: ENCRYPT_OFF,
      instance: Buffer.from('SQL'),
      threadId: 4711,
      mars: false,
      fedAuthRequired: 1,
      nonce: Buffer.alloc(32, 5),
    });
    expect(prelogin.options.map(({ token }) => optionName(token))).toEqual([
      ...['VERSION', 'ENCRYPTION', 'INSTOPT', 'THREADID', 'MARS', 'TRACEID', 'FEDAUTHREQUIRED', 'NONCEOPT'],
    ]);
    expect(Buffer.from(writePrelogin(prelogin.options))).toEqual(Buffer.from(clientPayloads.prelogin));
  });

  it('of SQL Server 2008', () => {
    const reply = hex('00 001a 0006 01 0020 0001 02 0021 0001 03 0022 0000 04 0022 0001 ff 0a000fa00000 01 00 00');
    expect(readAt(reply, (b, s, e) => readPrelogin(b, s, e, 'server'))).toMatchObject({
      version: { major: 10, minor: 0, build: 4000 },
      encryption: ENCRYPT_ON,
      instance: Buffer.of(0),
      threadId: null,
      mars: false,
      fedAuthRequired: null,
      nonce: null,
    });
    expect(Buffer.from(versionData({ major: 10, minor: 0, build: 4000, subBuild: 0 })).toString('hex')).toBe(
      '0a000fa00000',
    );
  });

  it.each([
    ['ff', 'no version'],
    ['01 0006 0001 ff 00', 'does not begin'],
    ['00 0006 00ff ff 00', 'behind its end'],
    ['00 000b 0006 00 000b 0006 ff 000000000000', 'twice'],
    ['00 0006 0002 ff 1000', 'too short'],
    ['00 0006', 'too short'],
    ['', 'too short'],
  ])('that is malformed: %s', (bytes, message) => {
    const read = () => readAt(hex(bytes), (b, s, e) => readPrelogin(b, s, e, 'client'));
    expect(read).toThrow(ProtocolViolation);
    expect(read).toThrow(message);
  });

  it('is no TLS', () => {
    expect(isTlsPayload(hex('160301'), 0, 3)).toBe(true);
    expect(isTlsPayload(clientPayloads.prelogin, 0, 10)).toBe(false);
    expect(isTlsPayload(hex(''), 0, 0)).toBe(false);
  });

  it.each([
    [ENCRYPT_OFF, ENCRYPT_OFF, ENCRYPT_OFF, 'login'],
    [ENCRYPT_OFF, ENCRYPT_ON, ENCRYPT_REQ, 'all'],
    [ENCRYPT_OFF, ENCRYPT_NOT_SUP, ENCRYPT_NOT_SUP, 'none'],
    [ENCRYPT_ON, ENCRYPT_OFF, ENCRYPT_ON, 'all'],
    [ENCRYPT_ON, ENCRYPT_ON, ENCRYPT_ON, 'all'],
    [ENCRYPT_ON, ENCRYPT_NOT_SUP, ENCRYPT_NOT_SUP, 'refused'],
    [ENCRYPT_NOT_SUP, ENCRYPT_OFF, ENCRYPT_NOT_SUP, 'none'],
    [ENCRYPT_NOT_SUP, ENCRYPT_ON, ENCRYPT_REQ, 'refused'],
    [ENCRYPT_NOT_SUP, ENCRYPT_NOT_SUP, ENCRYPT_NOT_SUP, 'none'],
    [ENCRYPT_REQ, ENCRYPT_OFF, ENCRYPT_ON, 'all'],
    [ENCRYPT_REQ, ENCRYPT_NOT_SUP, ENCRYPT_NOT_SUP, 'refused'],
    [ENCRYPT_ON | 0x80, ENCRYPT_OFF, ENCRYPT_ON, 'all'],
  ])('agrees on encryption: asked %i of one that is %i', (client, server, reply, scope) => {
    expect(negotiateEncryption(client, server)).toEqual({ reply, scope });
    expect(encryptionScope(client, reply)).toBe(scope);
  });

  it('refuses an answer that agrees to less', () => {
    expect(() => encryptionScope(ENCRYPT_ON, ENCRYPT_OFF)).toThrow(ProtocolViolation);
  });
});

describe('LOGIN7', () => {
  const { layout: _, ...fields } = readAt(clientPayloads.login, readLogin7);

  it('says what it was told', () => {
    const wanted: Record<string, unknown> = { ...LOGIN };
    expect(Object.keys(fields).sort()).toEqual(Object.keys(wanted).sort());
    for (const [name, value] of Object.entries(fields)) {
      const plain = (each: unknown) => (each instanceof Uint8Array ? Buffer.from(each).toString('hex') : each);
      if (name !== 'features') expect([name, plain(value)]).toEqual([name, plain(wanted[name])]);
    }
    expect(fields.features?.map(({ id, data }) => [id, ...data])).toEqual([[1], [10, 1]]);
  });

  it('comes out as it went in, wherever a client puts what', () => {
    const login = readAt(clientPayloads.login, readLogin7);
    expect(Buffer.from(writeLogin7(login)).equals(clientPayloads.login)).toBe(true);
    // A client that puts the database first, and whose empty fields point at nothing.
    const other: Login7 = { ...LOGIN, layout: { order: [8, 0, 1], nowhere: [6, 7], astray: [[9, 3]], bare: false } };
    const bytes = writeLogin7(other);
    const again = readAt(bytes, readLogin7);
    expect(again.layout?.order.slice(0, 3)).not.toEqual([0, 1, 2]);
    expect(Buffer.from(writeLogin7(again)).equals(bytes)).toBe(true);
    expect(again).toMatchObject({ database: 'shop', hostName: 'host', language: '' });
    const bare = writeLogin7({ ...LOGIN, features: null, layout: { order: [], nowhere: [], astray: [], bare: true } });
    expect(Buffer.from(writeLogin7(readAt(bare, readLogin7))).equals(bare)).toBe(true);
  });

  it('with changed fields is the same but for them', () => {
    const login = readAt(clientPayloads.login, readLogin7);
    const changes = {
      database: 'another one',
      userName: 'you',
      password: obfuscatePassword(unicode('')),
      hostName: 'a-longer-host',
      packetSize: 8192,
      features: null,
    };
    const bytes = writeLogin7({ ...login, ...changes });
    const read = readAt(bytes, readLogin7);
    expect({ ...read, layout: 0, optionFlags3: 0 }).toEqual({
      ...login,
      ...changes,
      password: new Uint8Array(0),
      layout: 0,
      optionFlags3: 0,
    });
    expect(read.optionFlags3 & 0x10).toBe(0);
    const more = writeLogin7({ ...read, features: [{ id: 1, data: new Uint8Array(0) }] });
    expect(readAt(more, readLogin7).features).toHaveLength(1);
  });

  it('has a long SSPI', () => {
    const login = writeLogin7({
      ...LOGIN,
      sspi: new Uint8Array(70_000).fill(3),
      features: null,
      layout: { order: [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 9], nowhere: [], astray: [], bare: false },
    });
    expect(readAt(login, readLogin7).sspi).toHaveLength(70_000);
    expect(() => writeLogin7({ ...LOGIN, sspi: new Uint8Array(70_000) })).toThrow(ProtocolViolation);
    expect(() => writeLogin7({ ...LOGIN, hostName: 'x'.repeat(70_000) })).toThrow(ProtocolViolation);
  });

  it('of 7.1 is shorter', () => {
    const bytes = writeLogin7({ ...LOGIN, tdsVersion: VERSION_7_1, features: null });
    expect(Buffer.from(bytes).readUInt16LE(36)).toBe(86);
    expect(readAt(bytes, readLogin7)).toMatchObject({ userName: 'someone', database: 'shop', features: null });
  });

  it('keeps its passwords to itself', () => {
    expect(Buffer.from(obfuscatePassword(unicode('a'))).toString('hex')).toBe('b3a5');
    const every = Uint8Array.from({ length: 256 }, (_, at) => at);
    expect(revealPassword(obfuscatePassword(every))).toEqual(every);
    expect(Buffer.from(revealPassword(fields.password)).toString('utf16le')).toBe('Very$ecret1');
    expect(fields.password).toEqual(Buffer.from(obfuscatePassword(unicode('Very$ecret1'))));
    expect(inspect(fields, { depth: 9 })).not.toContain('ecret');
    // Whatever is wrong with the message, the error says nothing of what is in it.
    for (let at = 0; at < 94; at++) {
      for (const value of [0, 0x7f, 0xff]) {
        const bytes = Buffer.from(clientPayloads.login);
        bytes[at] = value;
        try {
          readLogin7(bytes, 0, bytes.length);
        } catch (error) {
          expect(error).toBeInstanceOf(ProtocolViolation);
          expect((error as Error).message).toMatch(/^(FeatureExt of )?a LOGIN7 message (is|has) [a-z ]+$/);
        }
      }
    }
  });

  it.each([0, 3, 50, 93, 100])('of %i bytes is refused', (length) => {
    expect(() => readLogin7(clientPayloads.login, 0, length)).toThrow(ProtocolViolation);
  });
});

describe('the data of SESSIONRECOVERY', () => {
  const values = [
    { id: 0, value: Buffer.from('010203', 'hex') },
    { id: 9, value: Buffer.alloc(300, 7) },
  ];

  it('comes out as it went in', () => {
    const initial = { database: 'master', collation: hex('0904d00034'), language: 'us_english', values };
    const toBe = { database: 'shop', collation: hex(''), language: '', values: [] };
    const data = writeRecoveryRequest({ initial, toBe });
    expect(readRecoveryRequest(data)).toEqual({ initial, toBe });
    expect(Buffer.from(data).readUInt32LE(0)).toBe(13 + 6 + 21 + 5 + 306);
    expect(readRecoveryAck(writeStateValues(values))).toEqual(values);
    expect(readRecoveryRequest(hex(''))).toEqual({ initial: null, toBe: null });
    expect(writeRecoveryRequest({ initial: null, toBe: null })).toHaveLength(0);
  });

  it.each(['00', 'ffffffff', '03000000 016100', '05000000 00 00 00 09 09'])('is refused when malformed: %s', (data) => {
    expect(() => readRecoveryRequest(hex(data))).toThrow(ProtocolViolation);
  });
});

describe('a client that would encrypt its login alone', () => {
  /** Greets one; gives what it was answered in PRELOGIN, and whether the whole of its session is encrypted. */
  function met(tls: 'off' | 'allow' | 'require'): [reply: number | null, encrypted: boolean] {
    const stepper = new ExchangeStepper(greet({ auth: 'trust', tls, alreadyTls: null }), {
      frameLength: packetLength,
      peer: 'client',
    });
    stepper.start();
    let step = stepper.push(packets(PRELOGIN, clientPayloads.prelogin, 4096));
    const answer = Buffer.concat(step.send).subarray(8);
    if (step.state === 'want') step = stepper.reply({ endPoint: null, alpn: null });
    step = stepper.push(packets(LOGIN7, writeLogin7(LOGIN), 4096));
    const greeting = step.state === 'done' ? step.result : null;
    return [readPrelogin(answer, 0, answer.length, 'server').encryption, greeting?.kind === 'session' && greeting.tls];
  }

  it('encrypts all, or nothing where the listener has no TLS: so nothing of TLS is ever left behind', () => {
    expect(met('allow')).toEqual([ENCRYPT_REQ, true]);
    expect(met('require')).toEqual([ENCRYPT_REQ, true]);
    expect(met('off')).toEqual([ENCRYPT_NOT_SUP, false]);
  });
});
