/**
 * SCRAM-SHA-256 and SCRAM-SHA-256-PLUS, both sides, as pure functions over the texts of the dialogue.
 * RFC 5802, RFC 7677, RFC 5929 (tls-server-end-point), with the checks and the errors of PostgreSQL's auth-scram.c.
 *
 * The gateway is the server towards its client and the client towards its server. A client's proof is
 * ClientKey XOR HMAC(StoredKey, AuthMessage): who knows StoredKey and has seen the dialogue knows ClientKey afterwards. With
 * it the gateway can log in wherever the same verifier is stored, and it never sees the password.
 */

import { createHash, createHmac, timingSafeEqual } from 'node:crypto';
import { Refusal } from '../errors.js';

export const SCRAM = 'SCRAM-SHA-256';
export const SCRAM_PLUS = 'SCRAM-SHA-256-PLUS';

/** The iteration count for verifiers that the gateway derives itself (PostgreSQL's default scram_iterations). */
export const DEFAULT_ITERATIONS = 4096;

const KEY_LENGTH = 32;

/** The parts of a verifier `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`. */
export interface ScramVerifier {
  readonly iterations: number;
  readonly salt: Uint8Array;
  readonly storedKey: Uint8Array;
  readonly serverKey: Uint8Array;
}

const hmac = (key: Uint8Array, ...parts: (string | Uint8Array)[]): Buffer => {
  const mac = createHmac('sha256', key);
  for (const part of parts) mac.update(part);
  return mac.digest();
};

const sha256 = (data: Uint8Array): Buffer => createHash('sha256').update(data).digest();

const xor = (left: Uint8Array, right: Uint8Array): Uint8Array =>
  Uint8Array.from(left, (byte, index) => byte ^ right[index]);

const base64 = (bytes: Uint8Array): string => Buffer.from(bytes).toString('base64');

/** Decodes base64 as strictly as PostgreSQL: canonical, with padding. Null when it is anything else. */
function strictBase64(text: string): Buffer | null {
  const bytes = Buffer.from(text, 'base64');
  return bytes.toString('base64') === text ? bytes : null;
}

/** Parses the text of a verifier as in pg_authid.rolpassword; null when it is not one. */
export function parseVerifier(text: string): ScramVerifier | null {
  const match = /^SCRAM-SHA-256\$([1-9]\d{0,9}):([^$:]+)\$([^$:]+):([^$:]+)$/.exec(text);
  if (match === null) return null;
  const iterations = Number(match[1]);
  const [salt, storedKey, serverKey] = match.slice(2).map(strictBase64);
  if (
    iterations > 0x7fffffff ||
    salt === null ||
    storedKey?.length !== KEY_LENGTH ||
    serverKey?.length !== KEY_LENGTH
  ) {
    return null;
  }
  return { iterations, salt, storedKey, serverKey };
}

/** The text of a verifier, as PostgreSQL stores it. */
export const formatVerifier = ({ iterations, salt, storedKey, serverKey }: ScramVerifier): string =>
  `${SCRAM}$${iterations}:${base64(salt)}$${base64(storedKey)}:${base64(serverKey)}`;

/** The keys that follow from SaltedPassword, which is PBKDF2-HMAC-SHA-256 of the prepared password. */
export function deriveKeys(saltedPassword: Uint8Array): {
  readonly clientKey: Uint8Array;
  readonly storedKey: Uint8Array;
  readonly serverKey: Uint8Array;
} {
  const clientKey = hmac(saltedPassword, 'Client Key');
  return { clientKey, storedKey: sha256(clientKey), serverKey: hmac(saltedPassword, 'Server Key') };
}

/** True when StoredKey follows from ClientKey. */
export const belongsTo = (clientKey: Uint8Array, verifier: ScramVerifier): boolean =>
  clientKey.length === KEY_LENGTH && timingSafeEqual(sha256(clientKey), verifier.storedKey);

/**
 * The salt shown for a user whose verifier the gateway does not have: the same at every try and different for every
 * user, so that a real verifier's salt cannot be told from it.
 *
 * @param key random and secret, kept as long as the process lives
 */
export const mockSalt = (key: Uint8Array, user: string): Uint8Array => hmac(key, user).subarray(0, 16);

/** Texts of one dialogue so far, as either side needs them to make or check a proof. */
export interface ScramDialogue {
  /** The header of the client's first message (`n,,`, `y,,`, `p=tls-server-end-point,,`). */
  readonly gs2Header: string;
  readonly clientFirstBare: string;
  readonly serverFirst: string;
  /** The client's nonce with the server's appended. */
  readonly nonce: string;
}

const authMessage = (dialogue: ScramDialogue, withoutProof: string): string =>
  `${dialogue.clientFirstBare},${dialogue.serverFirst},${withoutProof}`;

/** Value of `c`: the header, and for -PLUS the hash of the server's certificate, in base64. */
const bindingInput = (gs2Header: string, endPoint: Uint8Array | null): string =>
  base64(Buffer.concat([Buffer.from(gs2Header, 'utf8'), gs2Header.startsWith('p=') ? endPoint! : Buffer.alloc(0)]));

const malformed = (detail: string): Refusal =>
  new Refusal({ severity: 'FATAL', code: '08P01', message: 'malformed SCRAM message', detail });

const isPrintable = (nonce: string): boolean => /^[\x21-\x2b\x2d-\x7e]+$/.test(nonce);

// ------------------------------------------------------------------------------------------------------- as the server

/** The client's first message: what the server keeps of it. */
export interface ClientFirst {
  readonly gs2Header: string;
  readonly bare: string;
  readonly nonce: string;
}

/**
 * Reads client-first-message. The user name in it is ignored: the one of the startup packet counts.
 *
 * @param mechanism what the client chose
 * @param plusOffered whether -PLUS was offered to it
 * @throws Refusal as PostgreSQL would
 */
export function readClientFirst(message: string, mechanism: string, plusOffered: boolean): ClientFirst {
  const match = /^(n|y|p=([^,]*)),(a=[^,]*)?,(.*)$/s.exec(message);
  if (match === null) throw malformed('The message does not start with a valid GS2 header.');
  const [, flag, binding, authzid, bare] = match;
  if (flag === 'n' || flag === 'y') {
    if (mechanism === SCRAM_PLUS) {
      throw malformed(
        'The client selected SCRAM-SHA-256-PLUS, but the SCRAM message does not include channel binding data.',
      );
    }
    if (flag === 'y' && plusOffered) {
      // The client would have bound the channel, had it seen the offer: someone in the middle removed it.
      throw new Refusal({
        severity: 'FATAL',
        code: '28000',
        message: 'SCRAM channel binding negotiation error',
        detail:
          'The client supports SCRAM channel binding but thinks the server does not.  However, this server does support channel binding.',
      });
    }
  } else if (mechanism !== SCRAM_PLUS) {
    throw malformed(
      'The client selected SCRAM-SHA-256 without channel binding, but the SCRAM message includes channel binding data.',
    );
  } else if (binding !== 'tls-server-end-point') {
    throw new Refusal({ severity: 'FATAL', code: '08P01', message: 'unsupported SCRAM channel-binding type' });
  }
  if (authzid !== undefined) {
    throw new Refusal({
      severity: 'FATAL',
      code: '0A000',
      message: 'client uses authorization identity, but it is not supported',
    });
  }
  if (bare.startsWith('m=')) {
    throw new Refusal({
      severity: 'FATAL',
      code: '0A000',
      message: 'client requires an unsupported SCRAM extension',
    });
  }
  const attributes = /^n=[^,]*,r=([^,]*)(?:,[A-Za-z]=[^,]*)*$/s.exec(bare);
  if (attributes === null) throw malformed('The attributes of the first message are not as expected.');
  if (!isPrintable(attributes[1])) throw malformed('The nonce is empty or not printable.');
  return { gs2Header: message.slice(0, message.length - bare.length), bare, nonce: attributes[1] };
}

/**
 * Makes server-first-message.
 *
 * @param random the server's part of the nonce
 */
export function serverFirst(
  first: ClientFirst,
  random: Uint8Array,
  verifier: Pick<ScramVerifier, 'salt' | 'iterations'>,
): ScramDialogue {
  const nonce = first.nonce + base64(random);
  return {
    gs2Header: first.gs2Header,
    clientFirstBare: first.bare,
    serverFirst: `r=${nonce},s=${base64(verifier.salt)},i=${verifier.iterations}`,
    nonce,
  };
}

/** The client's final message. */
export interface ClientFinal {
  readonly withoutProof: string;
  readonly proof: Uint8Array;
}

/**
 * Reads client-final-message and checks everything but the proof.
 *
 * @param endPoint the hash of the certificate that the gateway showed, for -PLUS
 * @throws Refusal as PostgreSQL would
 */
export function readClientFinal(message: string, dialogue: ScramDialogue, endPoint: Uint8Array | null): ClientFinal {
  const match = /^(c=([^,]*),r=([^,]*)(?:,[A-Za-z]=[^,]*)*?),p=([^,]*)$/s.exec(message);
  if (match === null) throw malformed('The attributes of the final message are not as expected.');
  const [, withoutProof, binding, nonce, proofText] = match;
  const expected = bindingInput(dialogue.gs2Header, endPoint);
  if (binding !== expected) {
    if (dialogue.gs2Header.startsWith('p=')) {
      throw new Refusal({ severity: 'FATAL', code: '28000', message: 'SCRAM channel binding check failed' });
    }
    throw new Refusal({
      severity: 'FATAL',
      code: '08P01',
      message: 'unexpected SCRAM channel-binding attribute in client-final-message',
    });
  }
  if (nonce !== dialogue.nonce) {
    throw new Refusal({
      severity: 'FATAL',
      code: '08P01',
      message: 'invalid SCRAM response',
      detail: 'Nonce does not match.',
    });
  }
  const proof = strictBase64(proofText);
  if (proof?.length !== KEY_LENGTH) throw malformed('Malformed proof in client-final-message.');
  return { withoutProof, proof };
}

/**
 * Checks the client's proof.
 *
 * @returns ClientKey, which the proof has given away, or null when the proof is wrong
 */
export function checkProof(final: ClientFinal, dialogue: ScramDialogue, verifier: ScramVerifier): Uint8Array | null {
  const clientSignature = hmac(verifier.storedKey, authMessage(dialogue, final.withoutProof));
  const clientKey = xor(final.proof, clientSignature);
  return belongsTo(clientKey, verifier) ? clientKey : null;
}

/** Makes server-final-message, the server's own proof. */
export const serverFinal = (dialogue: ScramDialogue, withoutProof: string, serverKey: Uint8Array): string =>
  `v=${base64(hmac(serverKey, authMessage(dialogue, withoutProof)))}`;

// ------------------------------------------------------------------------------------------------------- as the client

/**
 * Makes client-first-message. The user name stays empty, as every client of PostgreSQL leaves it.
 *
 * @param gs2Header `p=tls-server-end-point,,` for -PLUS, `y,,` when the server did not offer it over TLS, else `n,,`
 * @param random 18 random bytes
 */
export function clientFirst(gs2Header: string, random: Uint8Array): ClientFirst {
  const nonce = base64(random);
  return { gs2Header, bare: `n=,r=${nonce}`, nonce };
}

/** What the server says first, with the dialogue it makes. */
export interface ServerFirst {
  readonly dialogue: ScramDialogue;
  readonly salt: Uint8Array;
  readonly iterations: number;
}

/** Reads server-first-message; null when it is not one or does not go on from the client's nonce. */
export function readServerFirst(message: string, first: ClientFirst): ServerFirst | null {
  const match = /^r=([^,]*),s=([^,]*),i=([1-9]\d{0,9})(?:,[A-Za-z]=[^,]*)*$/s.exec(message);
  if (match === null) return null;
  const [, nonce, saltText, iterationsText] = match;
  const salt = strictBase64(saltText);
  const iterations = Number(iterationsText);
  if (salt === null || iterations > 0x7fffffff) return null;
  if (!isPrintable(nonce) || !nonce.startsWith(first.nonce) || nonce.length === first.nonce.length) return null;
  const dialogue = { gs2Header: first.gs2Header, clientFirstBare: first.bare, serverFirst: message, nonce };
  return { dialogue, salt, iterations };
}

/**
 * Makes client-final-message.
 *
 * @param endPoint the hash of the server's certificate, for -PLUS
 */
export function clientFinal(
  dialogue: ScramDialogue,
  endPoint: Uint8Array | null,
  clientKey: Uint8Array,
): { readonly message: string; readonly withoutProof: string } {
  const withoutProof = `c=${bindingInput(dialogue.gs2Header, endPoint)},r=${dialogue.nonce}`;
  const proof = xor(clientKey, hmac(sha256(clientKey), authMessage(dialogue, withoutProof)));
  return { message: `${withoutProof},p=${base64(proof)}`, withoutProof };
}

/** True when server-final-message proves that the server knows the verifier. */
export function checkServerFinal(
  message: string,
  dialogue: ScramDialogue,
  withoutProof: string,
  serverKey: Uint8Array,
): boolean {
  const match = /^v=([^,]*)(?:,[A-Za-z]=[^,]*)*$/s.exec(message);
  const signature = match === null ? null : strictBase64(match[1]);
  return (
    signature?.length === KEY_LENGTH && timingSafeEqual(signature, hmac(serverKey, authMessage(dialogue, withoutProof)))
  );
}
