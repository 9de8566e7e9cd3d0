/**
 * PRELOGIN (MS-TDS 2.2.6.5): what both sides agree on before a login, encryption above all. A client's has message type 18, a
 * server's reply type 4; TLS handshakes travel in the same packets afterwards.
 */

import { ProtocolViolation } from '../../core/contract/index.js';
import { Reader, type Sender, Writer } from './bytes.js';

// Options.
export const PL_VERSION = 0x00;
export const PL_ENCRYPTION = 0x01;
export const PL_INSTOPT = 0x02;
export const PL_THREADID = 0x03;
export const PL_MARS = 0x04;
export const PL_TRACEID = 0x05;
export const PL_FEDAUTHREQUIRED = 0x06;
export const PL_NONCEOPT = 0x07;
const TERMINATOR = 0xff;

const OPTION_NAMES: readonly string[] = [
  'VERSION',
  'ENCRYPTION',
  'INSTOPT',
  'THREADID',
  'MARS',
  'TRACEID',
  'FEDAUTHREQUIRED',
  'NONCEOPT',
];

/** MS-TDS's name of an option. */
export const optionName = (token: number): string => OPTION_NAMES[token] ?? 'unknown';

// Values of ENCRYPTION.
/** Able, and only for the login. */
export const ENCRYPT_OFF = 0x00;
export const ENCRYPT_ON = 0x01;
export const ENCRYPT_NOT_SUP = 0x02;
export const ENCRYPT_REQ = 0x03;
/** The part of ENCRYPTION that holds one of these; the others are about client certificates. */
const ENCRYPTION_MASK = 0x03;

/** One option as it came or is to be sent. */
export interface PreloginOption {
  readonly token: number;
  readonly data: Uint8Array;
}

/** What a VERSION says. */
export interface PreloginVersion {
  readonly major: number;
  readonly minor: number;
  readonly build: number;
  readonly subBuild: number;
}

/** A PRELOGIN message. What was not sent is null. */
export interface Prelogin {
  /** In the order of the message. */
  readonly options: readonly PreloginOption[];
  readonly version: PreloginVersion;
  /** As sent, with its bits for client certificates; see {@link negotiateEncryption}. */
  readonly encryption: number | null;
  /** Of a client: the instance's name without its NUL. Of a server: a byte, 0 when it is that instance. */
  readonly instance: Uint8Array | null;
  readonly threadId: number | null;
  readonly mars: boolean | null;
  readonly fedAuthRequired: number | null;
  /** 32 bytes. */
  readonly nonce: Uint8Array | null;
}

/** True when the payload of a type 18 (or 4) message is TLS and no PRELOGIN, whose first byte is that of VERSION. */
export const isTlsPayload = (bytes: Uint8Array, start: number, end: number): boolean =>
  start < end && bytes[start] >= 0x14 && bytes[start] <= 0x17;

/**
 * Reads the payload of a PRELOGIN message.
 *
 * @throws ProtocolViolation when it is none: options that point outside, come twice or are too short, no VERSION at the beginning
 */
export function readPrelogin(bytes: Uint8Array, start: number, end: number, sender: Sender): Prelogin {
  const table = new Reader(bytes, start, end, sender, 'a PRELOGIN message');
  const options: PreloginOption[] = [];
  for (let token = table.byte(); token !== TERMINATOR; token = table.byte()) {
    // Offsets count from the start of the payload.
    const from = start + table.ushortBE();
    const to = from + table.ushortBE();
    if (to > end) table.fail('points behind its end');
    if (options.length === 0 && token !== PL_VERSION) table.fail('does not begin with its version');
    if (options.some((option) => option.token === token)) table.fail('has an option twice');
    options.push({ token, data: bytes.subarray(from, to) });
  }
  const find = (token: number): Reader | null => {
    const data = options.find((option) => option.token === token)?.data;
    // An option without data is as good as none.
    return data === undefined || data.length === 0
      ? null
      : new Reader(data, 0, data.length, sender, `option ${optionName(token)} of a PRELOGIN message`);
  };
  const version = find(PL_VERSION) ?? table.fail('has no version');
  const instance = find(PL_INSTOPT);
  const nonce = find(PL_NONCEOPT);
  return {
    options,
    version: {
      major: version.byte(),
      minor: version.byte(),
      build: version.ushortBE(),
      subBuild: version.left >= 2 ? version.ushort() : 0,
    },
    encryption: find(PL_ENCRYPTION)?.byte() ?? null,
    instance: instance === null ? null : sender === 'client' ? untilNul(instance) : instance.take(1),
    threadId: find(PL_THREADID)?.ulong() ?? null,
    mars: nullOr(find(PL_MARS)?.byte(), (value) => value !== 0),
    fedAuthRequired: find(PL_FEDAUTHREQUIRED)?.byte() ?? null,
    nonce: nonce === null ? null : nonce.take(32),
  };
}

const nullOr = <T, R>(value: T | undefined, map: (value: T) => R): R | null =>
  value === undefined ? null : map(value);

function untilNul(reader: Reader): Uint8Array {
  const all = reader.take(reader.left);
  const nul = all.indexOf(0);
  return nul < 0 ? all : all.subarray(0, nul);
}

/** The payload of a PRELOGIN message with these options, their data in the same order. VERSION must be the first one. */
export function writePrelogin(options: readonly PreloginOption[]): Uint8Array {
  const out = new Writer();
  let offset = 5 * options.length + 1;
  for (const { token, data } of options) {
    out.byte(token).ushortBE(offset).ushortBE(data.length);
    offset += data.length;
  }
  out.byte(TERMINATOR);
  for (const { data } of options) out.raw(data);
  return out.done();
}

/** The data of a VERSION. */
export const versionData = ({ major, minor, build, subBuild }: PreloginVersion): Uint8Array =>
  new Writer().byte(major).byte(minor).ushortBE(build).ushort(subBuild).done();

/** What ENCRYPTION of both sides comes to: nothing is encrypted, LOGIN7 only, everything, or they cannot agree. */
export type EncryptionScope = 'none' | 'login' | 'all' | 'refused';

/**
 * What a server answers to a client's ENCRYPTION, and what then is encrypted (2.2.6.5, before TDS 8.0, where everything is).
 *
 * @param server what this side wants: {@link ENCRYPT_OFF}, {@link ENCRYPT_ON} (or REQ, the same) or {@link ENCRYPT_NOT_SUP}
 */
export function negotiateEncryption(client: number, server: number): { reply: number; scope: EncryptionScope } {
  const asked = client & ENCRYPTION_MASK;
  if (server === ENCRYPT_NOT_SUP) {
    const must = asked === ENCRYPT_ON || asked === ENCRYPT_REQ;
    return { reply: ENCRYPT_NOT_SUP, scope: must ? 'refused' : 'none' };
  }
  if (asked === ENCRYPT_ON || asked === ENCRYPT_REQ) return { reply: ENCRYPT_ON, scope: 'all' };
  const required = server === ENCRYPT_ON || server === ENCRYPT_REQ;
  if (asked === ENCRYPT_NOT_SUP)
    return required ? { reply: ENCRYPT_REQ, scope: 'refused' } : { reply: ENCRYPT_NOT_SUP, scope: 'none' };
  return required ? { reply: ENCRYPT_REQ, scope: 'all' } : { reply: ENCRYPT_OFF, scope: 'login' };
}

/**
 * What is encrypted when a client asked for `asked` and the server answered `reply`.
 *
 * @throws ProtocolViolation when the answer is none to that
 */
export function encryptionScope(asked: number, reply: number): EncryptionScope {
  const wanted = asked & ENCRYPTION_MASK;
  switch (reply & ENCRYPTION_MASK) {
    case ENCRYPT_OFF:
      if (wanted !== ENCRYPT_OFF)
        throw new ProtocolViolation('a PRELOGIN message agrees to less than was asked', 'server');
      return 'login';
    case ENCRYPT_NOT_SUP:
      return wanted === ENCRYPT_ON || wanted === ENCRYPT_REQ ? 'refused' : 'none';
    default:
      return wanted === ENCRYPT_NOT_SUP ? 'refused' : 'all';
  }
}
