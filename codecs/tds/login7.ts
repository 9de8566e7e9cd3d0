/**
 * LOGIN7 (MS-TDS 2.2.6.4): who wants in, to what, and how the session is to be. The passwords in it are only obfuscated: whoever has the
 * bytes has the passwords, so neither of them may get into a log or an error.
 */

import { ProtocolViolation } from '../../core/contract/index.js';
import { Reader, unicode, utf16, Writer } from './bytes.js';
import { FEATURE_TERMINATOR, type Feature, readFeatures } from './facts.js';
import { dialectOf, TDS_7_2 } from './version.js';

// OptionFlags1.
/** The server tells when the database changes (ENVCHANGE and INFO 5701). */
export const USE_DB_ON = 0x20;
/** A login to a database that cannot be opened fails. */
export const INIT_DB_FATAL = 0x40;
/** The server tells when the language changes. */
export const SET_LANG_ON = 0x80;
// OptionFlags2.
export const INIT_LANG_FATAL = 0x01;
/** ODBC: other defaults of several SET options. */
export const ODBC_ON = 0x02;
export const INTEGRATED_SECURITY = 0x80;
// TypeFlags.
/** ApplicationIntent=ReadOnly. */
export const READ_ONLY_INTENT = 0x20;
// OptionFlags3.
export const CHANGE_PASSWORD = 0x01;
export const USER_INSTANCE = 0x04;
/** FeatureExt is there. */
export const EXTENSION = 0x10;

/** A LOGIN7 message. */
export interface Login7 {
  /** See `version.ts`. */
  readonly tdsVersion: number;
  /** 0: as the server likes. */
  readonly packetSize: number;
  readonly clientProgVer: number;
  readonly clientPid: number;
  readonly connectionId: number;
  readonly optionFlags1: number;
  readonly optionFlags2: number;
  readonly typeFlags: number;
  readonly optionFlags3: number;
  readonly clientTimeZone: number;
  readonly clientLcid: number;
  readonly hostName: string;
  readonly userName: string;
  /** Obfuscated as on the wire, see {@link revealPassword}. Secret. */
  readonly password: Uint8Array;
  readonly appName: string;
  readonly serverName: string;
  /** Name of the client library. */
  readonly cltIntName: string;
  readonly language: string;
  readonly database: string;
  /** Six bytes, the MAC address. */
  readonly clientId: Uint8Array;
  readonly sspi: Uint8Array;
  readonly atchDbFile: string;
  /** The new password of a login that changes it. Obfuscated, secret. */
  readonly changePassword: Uint8Array;
  /** Null without FeatureExt. */
  readonly features: readonly Feature[] | null;
  /** Where the client put what, so that the same login has the same bytes; a login of the gateway's own leaves it out. */
  readonly layout?: Layout;
}

/** The order of the data of a LOGIN7. */
export interface Layout {
  /** Fields (see {@link FIELDS}) by the place of their data. */
  readonly order: readonly number[];
  /** Fields without data whose offset is 0. */
  readonly nowhere: readonly number[];
  /** Fields without data whose offset is so far from the place where they would stand (SqlClient points into FeatureExt). */
  readonly astray: readonly (readonly [field: number, by: number])[];
  /** {@link EXTENSION} is set, and there is none. */
  readonly bare: boolean;
}

/** Fields of variable length by their place in the fixed part; `unicode` ones have their length in characters, others in bytes. */
const FIELDS = [
  { name: 'hostName', at: 36, unicode: true },
  { name: 'userName', at: 40, unicode: true },
  { name: 'password', at: 44, unicode: true },
  { name: 'appName', at: 48, unicode: true },
  { name: 'serverName', at: 52, unicode: true },
  { name: 'extension', at: 56, unicode: false },
  { name: 'cltIntName', at: 60, unicode: true },
  { name: 'language', at: 64, unicode: true },
  { name: 'database', at: 68, unicode: true },
  { name: 'sspi', at: 78, unicode: false },
  { name: 'atchDbFile', at: 82, unicode: true },
  { name: 'changePassword', at: 86, unicode: true },
] as const;
type FieldName = (typeof FIELDS)[number]['name'];

const EXTENSION_FIELD = FIELDS.findIndex(({ name }) => name === 'extension');
/** FeatureExt in {@link Layout.order}: it is pointed at by the data of `extension`. */
const FEATURES = FIELDS.length;

const FIXED_LENGTH = 94;
/** Without ChangePassword and cbSSPILong, which came with 7.2. */
const OLD_FIXED_LENGTH = 86;
/** A USHORT that refers to cbSSPILong. */
const SSPI_LONG = 0xffff;

const fixedLength = (tdsVersion: number): number =>
  dialectOf(tdsVersion) >= TDS_7_2 ? FIXED_LENGTH : OLD_FIXED_LENGTH;

/**
 * Reads the payload of a LOGIN7 message.
 *
 * @throws ProtocolViolation when a length or offset in it is impossible; says nothing of what is in it
 */
export function readLogin7(bytes: Uint8Array, start: number, end: number): Login7 {
  const reader = new Reader(bytes, start, end, 'client', 'a LOGIN7 message');
  const length = reader.ulong();
  if (length > end - start) reader.fail('is longer than its message');
  const stop = start + length;
  const tdsVersion = reader.ulong();
  const fixed = fixedLength(tdsVersion);
  if (length < fixed) reader.fail('is too short for its fields');
  const numbers = {
    tdsVersion,
    packetSize: reader.ulong(),
    clientProgVer: reader.ulong(),
    clientPid: reader.ulong(),
    connectionId: reader.ulong(),
    optionFlags1: reader.byte(),
    optionFlags2: reader.byte(),
    typeFlags: reader.byte(),
    optionFlags3: reader.byte(),
    clientTimeZone: reader.long(),
    clientLcid: reader.ulong(),
  };
  const found: Partial<Record<FieldName, Uint8Array>> = {};
  const places: { field: number; offset: number; size: number }[] = [];
  for (const [field, { name, at, unicode }] of FIELDS.entries()) {
    if (at >= fixed) continue;
    reader.at = start + at;
    const offset = reader.ushort();
    let size = reader.ushort() * (unicode ? 2 : 1);
    if (name === 'sspi' && size === SSPI_LONG && fixed === FIXED_LENGTH) {
      reader.at = start + 90;
      size = reader.ulong() || SSPI_LONG;
    }
    if (size > 0 && (offset < fixed || offset + size > length)) reader.fail('has a field outside of itself');
    found[name] = size > 0 ? bytes.subarray(start + offset, start + offset + size) : EMPTY;
    places.push({ field, offset, size });
  }
  let features: Feature[] | null = null;
  const pointer = found.extension ?? EMPTY;
  if ((numbers.optionFlags3 & EXTENSION) !== 0 && pointer.length >= 4) {
    const offset = new Reader(pointer, 0, 4, 'client', 'a LOGIN7 message').ulong();
    if (offset < fixed || offset >= length) reader.fail('has a field outside of itself');
    const block = new Reader(bytes, start + offset, stop, 'client', 'FeatureExt of a LOGIN7 message');
    features = readFeatures(block);
    places.push({ field: FEATURES, offset, size: block.at - start - offset });
  }
  const text = (name: FieldName): string => {
    const data = found[name] ?? EMPTY;
    return utf16(data, 0, data.length);
  };
  // What is empty stands before what begins at the same place.
  places.sort((a, b) => a.offset - b.offset || Math.sign(a.size) - Math.sign(b.size) || a.field - b.field);
  const astray: [number, number][] = [];
  let place = fixed;
  for (const { field, offset, size } of places) {
    if (size === 0 && offset !== 0 && offset !== place) astray.push([field, offset - place]);
    place += size;
  }
  return {
    ...numbers,
    hostName: text('hostName'),
    userName: text('userName'),
    password: found.password ?? EMPTY,
    appName: text('appName'),
    serverName: text('serverName'),
    cltIntName: text('cltIntName'),
    language: text('language'),
    database: text('database'),
    clientId: bytes.subarray(start + 72, start + 78),
    sspi: found.sspi ?? EMPTY,
    atchDbFile: text('atchDbFile'),
    changePassword: found.changePassword ?? EMPTY,
    features,
    layout: {
      order: places.map(({ field }) => field),
      nowhere: places.filter(({ offset, size }) => size === 0 && offset === 0).map(({ field }) => field),
      astray,
      bare: features === null && (numbers.optionFlags3 & EXTENSION) !== 0,
    },
  };
}

/**
 * The payload of a LOGIN7 message: for what {@link readLogin7} read, the same bytes again (unless the client left gaps between its fields);
 * with changed fields, the same but for them.
 *
 * @throws ProtocolViolation when they are so long that there is no such message
 */
export function writeLogin7(login: Login7): Uint8Array {
  const fixed = fixedLength(login.tdsVersion);
  const features = login.features;
  const out = new Writer();
  out.ulong(0).ulong(login.tdsVersion).ulong(login.packetSize).ulong(login.clientProgVer);
  out.ulong(login.clientPid).ulong(login.connectionId);
  out.byte(login.optionFlags1).byte(login.optionFlags2).byte(login.typeFlags);
  const { order, nowhere, astray, bare } = login.layout ?? { order: [], nowhere: [], astray: [], bare: false };
  out.byte((login.optionFlags3 & ~EXTENSION) | (features !== null || bare ? EXTENSION : 0));
  out.ulong(login.clientTimeZone).ulong(login.clientLcid);
  // Offsets and lengths, put in below; the MAC address stands among them.
  out.raw(new Uint8Array(36)).raw(login.clientId.subarray(0, 6));
  out.raw(new Uint8Array(fixed - out.length));
  const data = (field: number): Uint8Array => {
    const { name } = FIELDS[field];
    if (name === 'extension') return features === null ? EMPTY : new Uint8Array(4);
    const value = login[name];
    return typeof value === 'string' ? unicode(value) : value;
  };
  const rest = [...FIELDS.keys(), FEATURES].filter((field) => !order.includes(field));
  let pointer = 0;
  let block = 0;
  for (const field of [...order, ...rest]) {
    if (field === FEATURES) {
      if (features === null) continue;
      block = out.length;
      for (const feature of features) out.byte(feature.id).ulong(feature.data.length).raw(feature.data);
      out.byte(FEATURE_TERMINATOR);
      continue;
    }
    if (FIELDS[field].at >= fixed) continue;
    const value = data(field);
    const { at, unicode, name } = FIELDS[field];
    let offset = out.length;
    if (value.length === 0) {
      const by = astray.find(([which]) => which === field)?.[1] ?? 0;
      offset = nowhere.includes(field) ? 0 : Math.max(0, offset + by);
    }
    if (field === EXTENSION_FIELD && value.length > 0) pointer = out.length;
    const count = unicode ? value.length >> 1 : value.length;
    if (offset > 0xffff || (unicode && count > 0xffff))
      throw new ProtocolViolation('a LOGIN7 message would be longer than its offsets can tell');
    out.patchUshort(at, offset);
    if (name === 'sspi' && count >= SSPI_LONG && fixed === FIXED_LENGTH) {
      out.patchUshort(at + 2, SSPI_LONG).patchUlong(90, count);
    } else {
      out.patchUshort(at + 2, count);
    }
    out.raw(value);
  }
  if (pointer > 0) out.patchUlong(pointer, block);
  out.patchUlong(0, out.length);
  return out.done();
}

/** A password as LOGIN7 has it (2.2.6.4): the nibbles of each byte of its UTF-16 swapped, and all XORed with a5. */
export function obfuscatePassword(clear: Uint8Array): Uint8Array {
  return clear.map((byte) => (((byte << 4) | (byte >> 4)) & 0xff) ^ 0xa5);
}

/** The password in clear, UTF-16LE, for {@link Login7.password}: the inverse of {@link obfuscatePassword}, in bytes of its own. Secret. */
export function revealPassword(obfuscated: Uint8Array): Uint8Array {
  return obfuscated.map((byte) => {
    const swapped = byte ^ 0xa5;
    return ((swapped << 4) | (swapped >> 4)) & 0xff;
  });
}

const EMPTY = new Uint8Array(0);
