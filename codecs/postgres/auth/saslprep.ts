import {
  contains,
  LEFT_TO_RIGHT,
  MAPPED_TO_NOTHING,
  NON_ASCII_SPACE,
  PROHIBITED,
  RIGHT_TO_LEFT,
  UNASSIGNED,
} from './saslprep-tables.js';

/**
 * Prepares a password the way PostgreSQL does (pg_saslprep in src/common/saslprep.c): SASLprep of RFC 4013, and the
 * password as it is where SASLprep prohibits it. Server and clients agree on that fallback, so it is part of the protocol.
 *
 * @param password what the user types
 * @returns the UTF-8 bytes that go into PBKDF2
 */
export function saslprep(password: string): Uint8Array {
  return Buffer.from(prepare(password) ?? password, 'utf8');
}

/** RFC 4013 sections 2.1 to 2.5, or null when the string is prohibited. */
function prepare(password: string): string | null {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: ASCII, control characters included, is left alone as PostgreSQL does
  if (/^[\x00-\x7f]*$/.test(password)) return password;

  let mapped = '';
  for (const character of password) {
    const codePoint = character.codePointAt(0)!;
    // U+200B is in both tables; PostgreSQL looks at the spaces first.
    if (contains(NON_ASCII_SPACE, codePoint)) mapped += ' ';
    else if (!contains(MAPPED_TO_NOTHING, codePoint)) mapped += character;
  }
  if (mapped === '') return null;

  const normalized = mapped.normalize('NFKC');
  const codePoints = Array.from(normalized, (character) => character.codePointAt(0)!);
  if (codePoints.some((codePoint) => contains(PROHIBITED, codePoint) || contains(UNASSIGNED, codePoint))) return null;

  // RFC 3454 section 6: text with a right-to-left character has no left-to-right one, and starts and ends right-to-left.
  const isRightToLeft = (codePoint: number) => contains(RIGHT_TO_LEFT, codePoint);
  if (codePoints.some(isRightToLeft)) {
    if (codePoints.some((codePoint) => contains(LEFT_TO_RIGHT, codePoint))) return null;
    if (!isRightToLeft(codePoints[0]) || !isRightToLeft(codePoints.at(-1)!)) return null;
  }
  return normalized;
}
