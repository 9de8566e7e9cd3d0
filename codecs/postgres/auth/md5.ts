import { createHash, timingSafeEqual } from 'node:crypto';

const md5 = (...parts: (string | Uint8Array)[]): string => {
  const hash = createHash('md5');
  for (const part of parts) hash.update(part);
  return hash.digest('hex');
};

/** True for the text of an md5 verifier as in pg_authid.rolpassword: `md5` and 32 hexadecimal digits. */
export const isMd5Verifier = (verifier: string): boolean => /^md5[0-9a-f]{32}$/.test(verifier);

/**
 * The verifier that PostgreSQL stores for an md5 password (pg_md5_encrypt): `md5` + md5(password + user).
 *
 * @param password the password's bytes
 */
export const md5Verifier = (user: string, password: string | Uint8Array): string => 'md5' + md5(password, user);

/**
 * The answer to AuthenticationMD5Password: `md5` + md5(hex of the verifier + salt).
 *
 * @param verifier an md5 verifier, with its `md5` in front
 * @param salt the four bytes of the challenge
 */
export const md5Response = (verifier: string, salt: Uint8Array): string => 'md5' + md5(verifier.slice(3), salt);

/** Compares two texts in a time that depends on their lengths only. */
export function equalText(one: string, other: string): boolean {
  const left = Buffer.from(one, 'utf8');
  const right = Buffer.from(other, 'utf8');
  return left.length === right.length && timingSafeEqual(left, right);
}
