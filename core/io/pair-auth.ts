import { hkdfSync } from 'node:crypto';
import type * as net from 'node:net';
import * as tls from 'node:tls';
import { CodedError } from '../contract/index.js';

/** How gateways prove to each other that they belong together. */
export type PairAuth =
  /** Both know the same secret, of 16 characters at least; better of 32 random ones, since who records a handshake can try guesses. */
  | { readonly kind: 'psk'; readonly secret: string }
  /** Both have certificates of one CA; PEM texts. */
  | {
      readonly kind: 'tls';
      readonly cert: string;
      readonly key: string;
      readonly passphrase?: string;
      readonly ca: string;
      /** The DNS name in the peer's certificate; the peer's gateway name when absent. */
      readonly peerName?: string;
    };

const MIN_SECRET = 16;

/**
 * External keys of OpenSSL's callback go with suites of SHA-256 only. A link lives for months, and Node cannot renew the keys of a
 * connection: AES-GCM should not encrypt more than 2^24.5 records with one key, ChaCha20-Poly1305 has no such limit (RFC 8446,
 * section 5.5), so it comes first.
 */
const TLS = {
  ciphers: 'TLS_CHACHA20_POLY1305_SHA256:TLS_AES_128_GCM_SHA256',
  minVersion: 'TLSv1.3',
  maxVersion: 'TLSv1.3',
} as const;
/** What OpenSSL says of bytes that are no TLS. */
const NO_TLS = new Set([
  'ERR_SSL_HTTP_REQUEST',
  'ERR_SSL_HTTPS_PROXY_REQUEST',
  'ERR_SSL_WRONG_VERSION_NUMBER',
  'ERR_SSL_UNEXPECTED_MESSAGE',
  'ERR_SSL_PACKET_LENGTH_TOO_LONG',
  'ERR_SSL_RECORD_LENGTH_MISMATCH',
  'ERR_SSL_LENGTH_MISMATCH',
  'ERR_SSL_LENGTH_TOO_SHORT',
  'ERR_SSL_BAD_RECORD_TYPE',
  'ERR_SSL_UNKNOWN_PROTOCOL',
]);

/** The key of two gateways is bound to their names and their pair (RFC 5869). */
export function pairKey(secret: string, cluster: string, one: string, other: string): Buffer {
  const info = ['outlive-pair key 1', cluster, ...[one, other].sort()].join('\0');
  return Buffer.from(hkdfSync('sha256', secret, 'outlive', info, 32));
}

/** The far end of a connection. What is TLS and what lies below it are different sockets, of the same far end. */
export function farEnd(socket: net.Socket): string {
  return `${socket.remoteAddress} ${socket.remotePort}`;
}

export function credentials(auth: PairAuth): tls.SecureContextOptions {
  if (auth.kind === 'tls') {
    const { cert, key, passphrase, ca } = auth;
    return { ...TLS, cert, key, passphrase, ca };
  }
  if (auth.secret.length < MIN_SECRET) {
    const message = `the shared secret of the pair needs ${MIN_SECRET} characters at least; \`openssl rand -base64 32\` makes one`;
    throw new CodedError('OUTLIVE_PAIR_SECRET', 'config', message);
  }
  // Without any CA: a certificate, of whomever, must not take the place of the key.
  return { ...TLS, ca: [] };
}

export function secureContext(options: tls.SecureContextOptions): tls.SecureContext {
  try {
    return tls.createSecureContext(options);
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause);
    const message = `the certificate, key or CA of the pair cannot be used: ${why}`;
    throw new CodedError('OUTLIVE_TLS_CONFIG', 'config', message, { cause });
  }
}

export function authError(message: string): CodedError {
  return new CodedError('OUTLIVE_PAIR_AUTH', 'network', message);
}

/** What an error of a socket means: no TLS at all, a handshake that proved nothing, or a network that failed. */
export function judge(cause: Error, who: string): CodedError {
  const { code = '' } = cause as NodeJS.ErrnoException;
  if (NO_TLS.has(code)) {
    return new CodedError('OUTLIVE_PAIR_PROTOCOL', 'network', `${who} sent what is no TLS (${code})`, { cause });
  }
  if (code === 'ERR_TLS_HANDSHAKE_TIMEOUT') {
    return new CodedError('OUTLIVE_PAIR_SILENT', 'network', `${who} did not complete the TLS handshake`, { cause });
  }
  if (code === 'ECONNREFUSED') {
    return new CodedError('OUTLIVE_CONNECT_REFUSED', 'network', `${who} refuses connections; is it running?`, {
      cause,
    });
  }
  if (/^E(?!RR_)[A-Z_0-9]+$/.test(code)) {
    return new CodedError('OUTLIVE_CONNECT_FAILED', 'network', `the connection with ${who} failed: ${code}`, { cause });
  }
  const message = `${who} and this gateway do not have the same key, or no certificates that the other accepts (${code})`;
  return new CodedError('OUTLIVE_PAIR_AUTH', 'network', message, { cause });
}
