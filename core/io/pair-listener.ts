import type * as net from 'node:net';
import * as tls from 'node:tls';
import { decodeJson, FRAME, FrameDecoder, GREETING_FRAME } from '../cluster/link/index.js';
import { CodedError, type Log } from '../contract/index.js';
import { credentials, farEnd, judge, type PairAuth, pairKey } from './pair-auth.js';

/** A link that takes the connections of its gateway. */
export interface Acceptor {
  /** Name of the gateway at the other end; null: whoever proves to belong to us. */
  readonly peerName: string | null;
  /** See `PairLink.accept`. */
  accept(socket: tls.TLSSocket, identity: string | undefined, early?: readonly Uint8Array[]): void;
  /** Logs why somebody was refused. */
  refused(error: CodedError, address: string | undefined): void;
}

export interface PairListenerOptions {
  readonly host: string;
  readonly port: number;
  /** Name of this gateway. */
  readonly name: string;
  /** See `PairLinkOptions`. */
  readonly cluster: string;
  readonly auth: PairAuth;
  readonly handshakeMs?: number;
  readonly log: Log;
}

/** Connections that have not proved yet who they are; the oldest goes when more come. */
const MAX_STRANGERS = 32;

/** The port that other gateways connect to: gives each connection to the link with the gateway that it comes from. */
export class PairListener {
  readonly #options: PairListenerOptions;
  readonly #links: Acceptor[] = [];
  /** Connections by their far end, the oldest first, until they have proved who they are. */
  readonly #strangers = new Map<string, net.Socket>();
  /** What the handshake of a connection with a shared key was done for. */
  readonly #identities = new WeakMap<tls.TLSSocket, string>();
  #server: tls.Server | null = null;
  #closed = false;

  constructor(options: PairListenerOptions) {
    this.#options = options;
  }

  /** Connections of its gateway are given to this link from now on. At least one must be there before {@link start}. */
  add(link: Acceptor): void {
    this.#links.push(link);
  }

  /** Port that is listened on, 0 for none. */
  get port(): number {
    return (this.#server?.address() as net.AddressInfo | null)?.port ?? 0;
  }

  /** Rejects with OUTLIVE_LISTEN_FAILED. */
  async start(): Promise<void> {
    const { auth, host, port, handshakeMs = 3000, log } = this.#options;
    const server = tls.createServer({
      ...credentials(auth),
      handshakeTimeout: handshakeMs,
      ...(auth.kind === 'psk'
        ? { pskCallback: (socket: tls.TLSSocket, identity: string) => this.#keyFor(auth.secret, socket, identity) }
        : // Who has no good certificate is refused by the link, where it can be said why.
          { requestCert: true, rejectUnauthorized: false }),
    } as tls.TlsOptions);
    server.on('connection', (socket: net.Socket) => this.#stranger(socket));
    server.on('secureConnection', (socket) => this.#came(socket));
    server.on('tlsClientError', (error, socket) => {
      const refusal = judge(error, 'a stranger');
      // Who connects and goes again (a health check, or the peer, that has a link meanwhile) is not worth a line.
      if (refusal.code !== 'OUTLIVE_CONNECT_FAILED') this.#links[0].refused(refusal, socket.remoteAddress);
      socket.destroy();
    });
    try {
      await new Promise<void>((resolve, reject) => {
        server.once('error', reject);
        server.listen({ host, port }, resolve);
      });
    } catch (cause) {
      const why = cause instanceof Error ? cause.message : String(cause);
      const message = `cannot listen on ${host}:${port} for the peer: ${why}`;
      throw new CodedError('OUTLIVE_LISTEN_FAILED', 'config', message, { cause });
    }
    server.removeAllListeners('error');
    server.on('error', (error) => {
      log.error({ code: 'OUTLIVE_PAIR_DOWN', error }, 'the listener of the pair link failed');
    });
    this.#server = server;
  }

  /** Listens no more, and ends what has not proved who it is. Resolves when all connections that came this way are closed. */
  async close(): Promise<void> {
    this.#closed = true;
    for (const socket of this.#strangers.values()) socket.destroy();
    const server = this.#server;
    if (server !== null) await new Promise<void>((resolve) => server.close(() => resolve()));
  }

  /** A connection has proved who it is. */
  known(socket: net.Socket): void {
    this.#strangers.delete(farEnd(socket));
  }

  #stranger(socket: net.Socket): void {
    // TLS reports errors by itself; the plain socket must not take the process down with one.
    socket.on('error', () => {});
    if (this.#closed) {
      socket.destroy();
      return;
    }
    socket.setNoDelay(true);
    if (this.#strangers.size >= MAX_STRANGERS) {
      const [key, oldest] = this.#strangers.entries().next().value!;
      this.#strangers.delete(key);
      oldest.destroy();
      const message = `more than ${MAX_STRANGERS} connections to the pair link have not proved who they are`;
      this.#links[0].refused(new CodedError('OUTLIVE_PAIR_AUTH', 'network', message), socket.remoteAddress);
    }
    const key = farEnd(socket);
    this.#strangers.set(key, socket);
    socket.once('close', () => {
      if (this.#strangers.get(key) === socket) this.#strangers.delete(key);
    });
  }

  #came(socket: tls.TLSSocket): void {
    if (this.#closed) {
      socket.destroy();
      return;
    }
    const identity = this.#identities.get(socket);
    if (this.#links.length === 1 || identity !== undefined) this.#linkOf(identity).accept(socket, identity);
    else this.#listen(socket);
  }

  /** Which link somebody of this name is to speak with. One that nobody expects is refused there, where it can be said why. */
  #linkOf(name: unknown): Acceptor {
    return this.#links.find(({ peerName }) => peerName === name) ?? this.#links[0];
  }

  /** A certificate may name several gateways: the first thing that it says tells which one it is, and the link finds out whether that is true. */
  #listen(socket: tls.TLSSocket): void {
    const early: Uint8Array[] = [];
    let link: Acceptor | null = null;
    const decoder = new FrameDecoder((type, body) => {
      link ??= this.#linkOf(type === FRAME.hello ? decodeJson(body).name : null);
      decoder.stop();
    }, GREETING_FRAME);
    const timer = setTimeout(() => socket.destroy(), this.#options.handshakeMs ?? 3000);
    const end = (): void => clearTimeout(timer);
    const data = (chunk: Buffer): void => {
      early.push(chunk);
      try {
        decoder.push(chunk);
      } catch {
        // The link says what is wrong with it.
        link ??= this.#links[0];
      }
      if (link === null) return;
      end();
      socket.off('data', data).off('error', end).off('close', end);
      link.accept(socket, undefined, early);
    };
    socket.on('data', data).on('error', end).on('close', end);
  }

  #keyFor(secret: string, socket: tls.TLSSocket, identity: string): Buffer | null {
    if (identity.length === 0) return null;
    this.#identities.set(socket, identity);
    const { name, cluster } = this.#options;
    // Who connects to itself by mistake gets as far as the hello, where it can be said.
    const other = identity === name ? (this.#linkOf(identity).peerName ?? identity) : identity;
    return pairKey(secret, cluster, name, other);
  }
}
