/**
 * Versions of TDS. Which formats a connection speaks depends on the major and minor version alone ({@link Dialect}); the number with all
 * its digits is what LOGIN7 asks for and LOGINACK answers (MS-TDS 2.2.6.4, 2.2.7.14).
 */

/**
 * The version as one byte, as MS-TDS writes it: 0x71 for 7.1, ... 0x74 for 7.4, 0x80 for 8.0. Greater is newer, and 8.0 has
 * the formats of 7.4.
 */
export type Dialect = number;

export const TDS_7_1: Dialect = 0x71;
export const TDS_7_2: Dialect = 0x72;
export const TDS_7_3: Dialect = 0x73;
export const TDS_7_4: Dialect = 0x74;
export const TDS_8_0: Dialect = 0x80;

/** TDSVersion in LOGIN7: of SQL Server 2000 SP1, of 2012 and newer, and of 2022 and newer inside of TLS. */
export const VERSION_7_1 = 0x71000001;
export const VERSION_7_4 = 0x74000004;
export const VERSION_8_0 = 0x08000000;

/** The dialect of a TDSVersion as LOGIN7 has it (as a little-endian number). */
export const dialectOf = (version: number): Dialect => {
  const major = version >>> 24;
  // 8.0 is written with one digit.
  return major === 0x08 ? TDS_8_0 : major;
};

/**
 * The TDSVersion of LOGIN7 for the one in LOGINACK, which has its bytes in the other order. SQL Server answers 7.1 and 7.0 in forms
 * of their own: 07 01 00 00 (7.1) and 07 00 00 00.
 *
 * @param acknowledged the four bytes of LOGINACK as a big-endian number
 */
export const versionOfLoginAck = (acknowledged: number): number => {
  if (acknowledged === 0x07010000) return 0x71000000;
  if (acknowledged === 0x07000000) return 0x70000000;
  return acknowledged;
};
