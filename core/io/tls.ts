import { constants, createHash, X509Certificate } from 'node:crypto';
import * as net from 'node:net';
import * as tls from 'node:tls';
import { CodedError, type HandshakeWrap, type TlsFacts } from '../contract/index.js';
import { WrappedHandshake } from './wrapped-handshake.js';

/** What the gateway shows to clients, made once from PEM. */
export interface ServerTls {
  readonly context: tls.SecureContext;
  /** For handshakes that travel wrapped: with TLS 1.3 both sides would have to agree about what of it still does. */
  readonly wrapped: tls.SecureContext;
  /** `tls-server-end-point` of the gateway's own certificate, or null where RFC 5929 defines none. */
  readonly endPoint: Uint8Array | null;
  /** Certificates of clients are asked for and checked against the configured CA. */
  readonly requestCert: boolean;
}

/**
 * How far the gateway trusts a server: `prefer` and `require` encrypt and check nothing (what to do when the server has no
 * TLS is the codec's affair), `verify-ca` checks the chain, `verify-full` the name as well.
 */
export type TlsMode = 'prefer' | 'require' | 'verify-ca' | 'verify-full';

/** How the gateway speaks TLS to servers, made once from PEM. */
export interface ClientTls {
  readonly context: tls.SecureContext;
  /** As in {@link ServerTls}. */
  readonly wrapped: tls.SecureContext;
  readonly mode: TlsMode;
}

/** Which TLS to start on a wire. */
export type StartTls =
  | {
      readonly side: 'server';
      readonly tls: ServerTls;
      readonly alpn?: string;
      /** The peer began with TLS at once: bytes put back by `unread` are the beginning of its handshake. */
      readonly direct?: boolean;
      /** Whose fault a breach of the protocol is. */
      readonly peer?: 'client' | 'server';
      /** How the handshake travels, where not as it is. */
      readonly wrap?: HandshakeWrap;
    }
  | {
      readonly side: 'client';
      readonly tls: ClientTls;
      /** The name (or address) by which the server is known: for SNI and for `verify-full`. */
      readonly host: string;
      readonly alpn?: string;
      readonly direct?: boolean;
      readonly peer?: 'client' | 'server';
      /** How the handshake travels, where not as it is. */
      readonly wrap?: HandshakeWrap;
    };

/** PEM texts of a listener. */
export interface ServerTlsFiles {
  readonly cert: string;
  readonly key: string;
  readonly passphrase?: string;
  /** When given, clients must show a certificate of this CA. */
  readonly clientCa?: string;
}

/** PEM texts for connections to servers. */
export interface ClientTlsFiles {
  readonly mode: TlsMode;
  /** The system's CAs when absent. */
  readonly ca?: string;
  readonly cert?: string;
  readonly key?: string;
  readonly passphrase?: string;
}

/** A session ticket would come when one side takes the handshake for done. */
const WRAPPED: tls.SecureContextOptions = { maxVersion: 'TLSv1.2', secureOptions: constants.SSL_OP_NO_TICKET };

/** Makes what a listener needs for TLS. Throws OUTLIVE_TLS_CONFIG when the PEM texts do not fit. */
export function serverTls(files: ServerTlsFiles): ServerTls {
  const context = (more: tls.SecureContextOptions) =>
    tls.createSecureContext({
      cert: files.cert,
      key: files.key,
      passphrase: files.passphrase,
      ca: files.clientCa,
      minVersion: 'TLSv1.2',
      ...more,
    });
  return configured(() => ({
    context: context({}),
    wrapped: context(WRAPPED),
    endPoint: endPointHash(new X509Certificate(files.cert).raw),
    requestCert: files.clientCa !== undefined,
  }));
}

/** Makes what connections to servers need for TLS. Throws OUTLIVE_TLS_CONFIG when the PEM texts do not fit. */
export function clientTls(files: ClientTlsFiles): ClientTls {
  const context = (more: tls.SecureContextOptions) =>
    tls.createSecureContext({
      ca: files.ca,
      cert: files.cert,
      key: files.key,
      passphrase: files.passphrase,
      minVersion: 'TLSv1.2',
      ...more,
    });
  return configured(() => ({
    context: context({}),
    wrapped: context(WRAPPED),
    mode: files.mode,
  }));
}

function configured<T>(make: () => T): T {
  try {
    return make();
  } catch (cause) {
    // OpenSSL's messages name what is wrong with a PEM text and never quote it.
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new CodedError('OUTLIVE_TLS_CONFIG', 'config', `the certificate, key or CA cannot be used: ${why}`, {
      cause,
    });
  }
}

/**
 * Runs the handshake over a plain socket.
 * @param adopt called at once with the TLS socket, so that its owner hears of everything that happens to it
 */
export async function handshake(
  plain: net.Socket,
  options: StartTls,
  adopt: (socket: tls.TLSSocket) => void,
): Promise<TlsFacts> {
  const alpn = options.alpn === undefined ? undefined : [options.alpn];
  const wrapped = options.wrap === undefined ? null : new WrappedHandshake(plain, options.wrap);
  const beneath = (wrapped ?? plain) as net.Socket;
  const context = wrapped === null ? options.tls.context : options.tls.wrapped;
  let socket: tls.TLSSocket;
  let ready: 'secure' | 'secureConnect';
  if (options.side === 'server') {
    ready = 'secure';
    socket = new tls.TLSSocket(beneath, {
      isServer: true,
      secureContext: context,
      requestCert: options.tls.requestCert,
      rejectUnauthorized: options.tls.requestCert,
      ALPNProtocols: alpn,
    });
  } else {
    ready = 'secureConnect';
    const { mode } = options.tls;
    socket = tls.connect({
      socket: beneath,
      host: options.host,
      servername: net.isIP(options.host) === 0 ? options.host : undefined,
      secureContext: context,
      rejectUnauthorized: mode === 'verify-ca' || mode === 'verify-full',
      checkServerIdentity: mode === 'verify-full' ? tls.checkServerIdentity : () => undefined,
      ALPNProtocols: alpn,
    });
  }
  // Both ends of TLS keep the plain socket's habit: a FIN is reported, not answered behind our back.
  socket.allowHalfOpen = true;
  adopt(socket);
  await new Promise<void>((resolve, reject) => {
    const failed = (error?: Error): void => {
      socket.off(ready, succeeded);
      socket.off('error', failed);
      socket.off('close', gone);
      reject(tlsError(options, error));
    };
    const gone = (): void => failed();
    const succeeded = (): void => {
      socket.off('error', failed);
      socket.off('close', gone);
      const wrong = options.side === 'server' && options.tls.requestCert ? clientCertificateError(socket) : null;
      if (wrong === null) resolve();
      else reject(tlsError(options, wrong));
    };
    socket.once(ready, succeeded);
    socket.once('error', failed);
    socket.once('close', gone);
  });
  // Behind the event the engine still writes the last words of the handshake, before anything that waits for this promise runs.
  wrapped?.established();
  const name = socket.alpnProtocol;
  return { endPoint: serverEndPoint(socket, options), alpn: typeof name === 'string' && name !== '' ? name : null };
}

/**
 * What is wrong with the client's certificate. Only `tls.Server` sets `authorized`; here the engine is asked as it asks it,
 * and where it cannot be asked nobody is let in.
 */
function clientCertificateError(socket: tls.TLSSocket): Error | null {
  const engine = (socket as unknown as { _handle?: { verifyError?: () => Error | null | undefined } })._handle;
  if (typeof engine?.verifyError !== 'function') return new Error('its certificate cannot be checked by this Node');
  return engine.verifyError() ?? null;
}

function serverEndPoint(socket: tls.TLSSocket, options: StartTls): Uint8Array | null {
  if (options.side === 'server') return options.tls.endPoint;
  const certificate = socket.getPeerX509Certificate();
  return certificate === undefined ? null : endPointHash(certificate.raw);
}

function tlsError(options: StartTls, cause?: Error): CodedError {
  const who = options.side === 'server' ? 'client' : 'server';
  const why = cause === undefined ? 'it closed the connection' : cause.message;
  return new CodedError('OUTLIVE_TLS_FAILED', who, `the TLS handshake with the ${who} failed: ${why}`, { cause });
}

// ------------------------------------------------------------------------------------------------ channel binding

/** Hash functions by the object identifiers of signature algorithms (and, for RSASSA-PSS, of hash algorithms). */
const HASHES: Readonly<Record<string, string>> = {
  '1.2.840.113549.1.1.4': 'sha256', // md5WithRSAEncryption; MD5 and SHA-1 become SHA-256 by RFC 5929
  '1.2.840.113549.1.1.5': 'sha256', // sha1WithRSAEncryption
  '1.2.840.113549.1.1.14': 'sha224',
  '1.2.840.113549.1.1.11': 'sha256',
  '1.2.840.113549.1.1.12': 'sha384',
  '1.2.840.113549.1.1.13': 'sha512',
  '1.2.840.10040.4.3': 'sha256', // dsa-with-sha1
  '2.16.840.1.101.3.4.3.1': 'sha224', // dsa-with-sha224
  '2.16.840.1.101.3.4.3.2': 'sha256', // dsa-with-sha256
  '1.2.840.10045.4.1': 'sha256', // ecdsa-with-SHA1
  '1.2.840.10045.4.3.1': 'sha224',
  '1.2.840.10045.4.3.2': 'sha256',
  '1.2.840.10045.4.3.3': 'sha384',
  '1.2.840.10045.4.3.4': 'sha512',
  '1.3.14.3.2.26': 'sha256', // SHA-1
  '2.16.840.1.101.3.4.2.4': 'sha224',
  '2.16.840.1.101.3.4.2.1': 'sha256',
  '2.16.840.1.101.3.4.2.2': 'sha384',
  '2.16.840.1.101.3.4.2.3': 'sha512',
};
const RSASSA_PSS = '1.2.840.113549.1.1.10';

/**
 * The `tls-server-end-point` hash of a certificate (RFC 5929, section 4): with the hash of its signature, but SHA-256 in place
 * of MD5 and SHA-1. Null when the signature has no single hash (Ed25519) or an unknown one: no channel binding then.
 * @param der the certificate in DER
 */
export function endPointHash(der: Uint8Array): Uint8Array | null {
  const hash = signatureHash(der);
  return hash === null ? null : createHash(hash).update(der).digest();
}

function signatureHash(der: Uint8Array): string | null {
  // Certificate ::= SEQUENCE { tbsCertificate SEQUENCE, signatureAlgorithm SEQUENCE { algorithm OID, parameters }, ... }
  const certificate = element(der, 0, der.length);
  const tbs = element(der, certificate.start, certificate.end);
  const algorithm = element(der, tbs.end, certificate.end);
  const id = element(der, algorithm.start, algorithm.end);
  const oid = objectId(der, id.start, id.end);
  if (oid !== RSASSA_PSS) return HASHES[oid] ?? null;
  // RSASSA-PSS-params ::= SEQUENCE { hashAlgorithm [0] SEQUENCE { algorithm OID } DEFAULT sha1, ... }
  if (id.end === algorithm.end) return 'sha256';
  const params = element(der, id.end, algorithm.end);
  if (params.start === params.end || der[params.start] !== 0xa0) return 'sha256';
  const tagged = element(der, params.start, params.end);
  const inner = element(der, tagged.start, tagged.end);
  const hashId = element(der, inner.start, inner.end);
  return HASHES[objectId(der, hashId.start, hashId.end)] ?? null;
}

/** Bounds of the content of the DER element at `at`. */
function element(der: Uint8Array, at: number, limit: number): { start: number; end: number } {
  let length = der[at + 1];
  let start = at + 2;
  if (length >= 0x80) {
    let digits = length & 0x7f;
    length = 0;
    for (; digits > 0; digits--) length = length * 256 + der[start++];
  }
  const end = start + length;
  if (!(end <= limit)) throw new RangeError('not a DER certificate');
  return { start, end };
}

function objectId(der: Uint8Array, start: number, end: number): string {
  const parts = [Math.min(2, Math.floor(der[start] / 40))];
  parts.push(der[start] - 40 * parts[0]);
  let value = 0;
  for (let at = start + 1; at < end; at++) {
    value = value * 128 + (der[at] & 0x7f);
    if (der[at] < 0x80) {
      parts.push(value);
      value = 0;
    }
  }
  return parts.join('.');
}
