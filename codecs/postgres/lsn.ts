import { ProtocolViolation } from '../../core/contract/index.js';

/** A position in the log, `X/Y` in hexadecimal, as a number. */
export function parseLsn(lsn: string): bigint {
  const match = /^([0-9A-F]{1,8})\/([0-9A-F]{1,8})$/i.exec(lsn);
  if (match === null) throw new ProtocolViolation('the server told a log position that is none', 'server');
  return (BigInt('0x' + match[1]) << 32n) | BigInt('0x' + match[2]);
}

/** PostgreSQL's text form of a log position: two hexadecimal halves. */
export function formatLsn(lsn: bigint): string {
  return `${(lsn >> 32n).toString(16).toUpperCase()}/${(lsn & 0xffffffffn).toString(16).toUpperCase()}`;
}
