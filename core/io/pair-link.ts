import { randomBytes } from 'node:crypto';
import * as tls from 'node:tls';
import {
  decodeAck,
  decodeBatch,
  decodeJson,
  type Effect,
  Flow,
  FRAME,
  FrameDecoder,
  FrameEncoder,
  GREETING_FRAME,
  type Hello,
  LINK_VERSION,
  LinkState,
  type LinkVersion,
  MAX_FRAME,
  type Proof,
  peerError,
} from '../cluster/link/index.js';
import { CodedError, type Log } from '../contract/index.js';
import { authError, credentials, judge, type PairAuth, pairKey, secureContext } from './pair-auth.js';
import { type Acceptor, PairListener } from './pair-listener.js';

export interface PairLinkOptions {
  /** Name of this gateway. */
  readonly name: string;
  /** Name of the pair or group that both belong to. */
  readonly cluster: string;
  /** The other gateway and where it listens; null: whoever proves to belong to us may come. */
  readonly peer: { readonly name: string; readonly host: string; readonly port: number } | null;
  /** Where to listen: a port of its own, or one that several links share, which is started and closed by who made it; null: only this side connects. */
  readonly listen: { readonly host: string; readonly port: number } | PairListener | null;
  readonly auth: PairAuth;
  /** Random, new with every start of the process; made when absent. */
  readonly incarnation?: string;
  readonly version?: LinkVersion;
  /** Highest epoch that this gateway knows of itself, 0 for none. It must never fall. */
  epoch(): number;

  /** The link is there: both positions are 0. It may be used from inside the call. */
  onUp(peer: Hello): void;
  /** The link is gone, and with it all that was appended and not acknowledged. */
  onDown(reason: CodedError): void;
  /**
   * A record of the peer, in order. It counts as held when this returns. `bytes` never changes, and keeps the whole chunk in
   * memory in which it came: copy what is to live long. An error that is thrown ends the link.
   */
  onRecord(kind: number, session: number, bytes: Uint8Array): void;
  /** The peer holds all records below `position`. */
  onAck(position: number): void;
  /** Statistics of the peer; anything that JSON holds. */
  onBeat(statistics: unknown): void;
  /** A request of the peer, behind all its records so far. An error that is thrown is its answer, and no error of the link. */
  onControl(request: unknown, reply: (answer: unknown) => void): void;
  /** The backlog rose above `backlogLimit`, or fell below half of it again. */
  onPressure?(high: boolean): void;

  readonly log: Log;
  /** Milliseconds that only grow. */
  readonly now?: () => number;
  /** Between two signs of life, 200 ms. */
  readonly beatMs?: number;
  /** Without a sign of life for so long the link is down, 1000 ms. */
  readonly silenceMs?: number;
  /** From the beginning of a connection to the link, 3000 ms. */
  readonly handshakeMs?: number;
  /** Between attempts to connect: from the first to the second, doubling; 100 and 2000 ms. */
  readonly backoffMs?: readonly [least: number, most: number];
  /** How long an answer to {@link PairLink.control} is awaited, 5000 ms. */
  readonly controlMs?: number;
  /** Bytes on the way to the peer and not acknowledged, 64 MiB. At twice as many the link is given up. */
  readonly backlogLimit?: number;
  /** Longest frame either way, 64 MiB. Must be the same on both sides. */
  readonly maxFrame?: number;
}

/** What went over the link since it is up. */
export interface PairLinkCounters {
  readonly recordsSent: number;
  readonly recordsReceived: number;
  readonly bytesSent: number;
  readonly bytesReceived: number;
  readonly writes: number;
}

/** What waits is sent at once when there is more of it. */
const FLUSH_AT = 64 * 1024;
const MAX_CONTROLS = 1000;
const LINGER_MS = 500;
/** The same reason is logged again after this time at the earliest. */
const QUIET_MS = 60_000;
const MAX_REASONS = 100;
/** One connection. Most are the link, or were never anything. */
interface Connection {
  readonly id: number;
  readonly socket: tls.TLSSocket;
  readonly encoder: FrameEncoder;
  readonly decoder: FrameDecoder;
  readonly flow: Flow;
  readonly onRecord: (kind: number, session: number, bytes: Uint8Array) => boolean;
  /** Position of the next record of the peer. */
  expected: number;
  /** Records came that are not acknowledged yet. */
  owes: boolean;
  /** A flush is due at the end of this turn of the event loop. */
  scheduled: boolean;
  /** Nothing that comes is looked at, nothing is sent. */
  over: boolean;
  overflowed: boolean;
}

interface Waiting {
  readonly resolve: (answer: unknown) => void;
  readonly reject: (error: CodedError) => void;
  readonly timer: NodeJS.Timeout;
}

/**
 * The link of two gateways: one authenticated connection, kept up from both sides, on which each sends the other records in
 * order and learns what the other holds. What is sent in one turn of the event loop leaves in one write.
 */
export class PairLink implements Acceptor {
  readonly #options: PairLinkOptions;
  readonly #now: () => number;
  readonly #state: LinkState;
  readonly #context: tls.SecureContext;
  readonly #limit: number;
  readonly #connections = new Map<number, Connection>();
  /** What the handshake of a connection with a shared key was done for. */
  readonly #identities = new WeakMap<tls.TLSSocket, string>();
  readonly #reasons = new Map<string, { at: number; again: number }>();
  readonly #waiting = new Map<number, Waiting>();
  #nextControl = 1;
  readonly #listener: PairListener | null;
  /** The listener is not its own. */
  readonly #shares: boolean;
  #link: Connection | null = null;
  #pressed = false;
  #timer: NodeJS.Timeout | null = null;
  #closed = false;
  #writes = 0;
  #bytesSent = 0;
  #bytesReceived = 0;

  /** Throws OUTLIVE_PAIR_SECRET or OUTLIVE_TLS_CONFIG when what `auth` holds cannot be used. */
  constructor(options: PairLinkOptions) {
    this.#options = options;
    this.#now = options.now ?? (() => performance.now());
    this.#limit = options.backlogLimit ?? 64 * 1024 * 1024;
    this.#context = secureContext(credentials(options.auth));
    const { listen } = options;
    this.#shares = listen instanceof PairListener;
    this.#listener =
      listen === null ? null : listen instanceof PairListener ? listen : new PairListener({ ...options, ...listen });
    this.#listener?.add(this);
    this.#state = new LinkState({
      name: options.name,
      peer: options.peer?.name ?? null,
      cluster: options.cluster,
      version: options.version ?? LINK_VERSION,
      incarnation: options.incarnation ?? random(),
      dials: options.peer !== null,
      beatMs: options.beatMs ?? 200,
      silenceMs: options.silenceMs ?? 1000,
      handshakeMs: options.handshakeMs ?? 3000,
      backoffMs: options.backoffMs ?? [100, 2000],
    });
  }

  /** Listens and begins to connect. Rejects with OUTLIVE_LISTEN_FAILED. */
  async start(): Promise<void> {
    if (!this.#shares) await this.#listener?.start();
    this.#do(this.#state.start(this.#now()));
  }

  /** Port that is listened on, 0 for none. */
  get port(): number {
    return this.#listener?.port ?? 0;
  }
  /** What the peer said of itself, or null while there is no link. */
  get peer(): Hello | null {
    return this.#state.peer;
  }
  get up(): boolean {
    return this.#link !== null;
  }
  /** When anything of the peer was heard last; 0 when nothing ever was. While this process stood still it counts as heard until there was time to read. */
  get heardAt(): number {
    return this.#state.heardAt(this.#now());
  }
  /** Highest epoch that the gateway of this name claimed over any link since the start; 0 for none. */
  epochOf(name: string): number {
    return this.#state.epochOf(name);
  }
  /** Bytes that wait to be sent, or were sent and are not acknowledged. */
  get backlog(): number {
    const link = this.#link;
    return link === null ? 0 : link.encoder.size + link.flow.backlog;
  }
  get counters(): PairLinkCounters {
    return {
      recordsSent: this.#link?.encoder.position ?? 0,
      recordsReceived: this.#link?.expected ?? 0,
      bytesSent: this.#bytesSent,
      bytesReceived: this.#bytesReceived,
      writes: this.#writes,
    };
  }

  /**
   * Adds a record to what leaves next: by {@link flush}, or by itself before the event loop waits again.
   * @param kind 0 to 255
   * @param session 0 to 2^32 - 1
   * @param bytes whole or in pieces; from 16 KiB on they are not copied and must not change any more
   * @returns its position, or -1 when there is no link. Throws OUTLIVE_PAIR_TOO_LARGE when it fits into no frame.
   */
  append(kind: number, session: number, bytes: Uint8Array | readonly Uint8Array[]): number {
    const link = this.#link;
    if (link === null || link.overflowed) return -1;
    const position = link.encoder.record(kind, session, bytes);
    if (link.encoder.size >= FLUSH_AT) this.#flush(link);
    else if (!link.scheduled) this.#schedule(link);
    return position;
  }

  /** Sends what waits now. */
  flush(): void {
    if (this.#link !== null) this.#flush(this.#link);
  }

  /** Sends statistics at once. The link sends beats of its own when this is not called in time. */
  beat(statistics: unknown): void {
    const link = this.#link;
    if (link === null) return;
    this.#state.beaten(this.#now());
    this.#sendBeat(link, statistics);
  }

  /**
   * Asks the peer something, behind all records that were appended so far.
   * Rejects with OUTLIVE_PAIR_DOWN when there is no link or it goes down meanwhile, with OUTLIVE_PAIR_TIMEOUT when no answer comes,
   * with OUTLIVE_PAIR_TOO_LARGE above 1 MiB, and with the peer's own error when its handler failed.
   * @param ms how long the answer is awaited, `controlMs` of the options when absent
   */
  control(request: unknown, ms = this.#options.controlMs ?? 5000): Promise<unknown> {
    return new Promise((resolve, reject) => {
      const link = this.#link;
      if (link === null) {
        reject(new CodedError('OUTLIVE_PAIR_DOWN', 'network', 'there is no pair link to ask the peer over'));
        return;
      }
      if (this.#waiting.size >= MAX_CONTROLS) {
        reject(new CodedError('OUTLIVE_PAIR_TIMEOUT', 'gateway', `the peer owes ${MAX_CONTROLS} answers already`));
        return;
      }
      const id = this.#nextControl++;
      link.encoder.json(FRAME.control, { kind: 'request', id, body: request ?? null });
      const timer = setTimeout(() => {
        this.#waiting.delete(id);
        reject(new CodedError('OUTLIVE_PAIR_TIMEOUT', 'network', `the peer did not answer within ${ms} ms`));
      }, ms);
      this.#waiting.set(id, { resolve, reject, timer });
      this.#flush(link);
    });
  }

  /** Takes leave of the peer and ends everything. Resolves when all connections are closed. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    const ends = [...this.#connections.values()].map(
      ({ socket }) => new Promise<void>((resolve) => (socket.destroyed ? resolve() : socket.once('close', resolve))),
    );
    this.#do(this.#state.close(this.#now()));
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
    if (this.#listener !== null && !this.#shares) ends.push(this.#listener.close());
    await Promise.all(ends);
  }

  // ---------------------------------------------------------------------------------------------- connections

  /** Name of the other gateway; null for any. */
  get peerName(): string | null {
    return this.#options.peer?.name ?? null;
  }

  /**
   * The other side connected, and its handshake is done.
   * @param identity whose key was used; undefined where none was
   * @param early what it has said already
   */
  accept(socket: tls.TLSSocket, identity: string | undefined, early: readonly Uint8Array[] = []): void {
    if (this.#closed) {
      socket.destroy();
      return;
    }
    if (identity !== undefined) this.#identities.set(socket, identity);
    const connection = this.#adopt(this.#state.accepted(this.#now()), socket);
    this.#secured(connection, 'a stranger');
    for (const chunk of early) this.#received(connection, chunk);
  }

  #dial(id: number): void {
    const { peer, name, auth } = this.#options;
    const { host, port, name: peerName } = peer!;
    const socket = tls.connect({
      host,
      port,
      secureContext: this.#context,
      // The name is looked at below, with the same rule on both sides.
      checkServerIdentity: () => undefined,
      ...(auth.kind === 'psk'
        ? { pskCallback: () => ({ psk: pairKey(auth.secret, this.#options.cluster, name, peerName), identity: name }) }
        : {}),
    } as tls.ConnectionOptions);
    const connection = this.#adopt(id, socket);
    if (auth.kind === 'psk') this.#identities.set(socket, peerName);
    socket.once('secureConnect', () => this.#secured(connection, `${host}:${port}`));
  }

  #adopt(id: number, socket: tls.TLSSocket): Connection {
    socket.setNoDelay(true);
    const { maxFrame = MAX_FRAME, onRecord } = this.#options;
    const connection: Connection = {
      id,
      socket,
      encoder: new FrameEncoder(maxFrame),
      decoder: new FrameDecoder((type, body) => this.#frame(connection, type, body), GREETING_FRAME),
      flow: new Flow(),
      onRecord: (kind, session, bytes) => {
        onRecord.call(this.#options, kind, session, bytes);
        return !connection.over;
      },
      expected: 0,
      owes: false,
      scheduled: false,
      over: false,
      overflowed: false,
    };
    this.#connections.set(id, connection);
    socket.on('data', (chunk: Buffer) => this.#received(connection, chunk));
    socket.on('error', (error) => this.#lost(connection, error));
    socket.on('close', () => this.#lost(connection, null));
    return connection;
  }

  /** The connection is encrypted; is it the peer at the other end? */
  #secured(connection: Connection, who: string): void {
    if (connection.over) return;
    const { socket } = connection;
    const proof = this.#proof(socket);
    if (proof instanceof CodedError) {
      // Said to the other side as well: in TLS 1.3 it believes that all is well.
      connection.encoder.json(FRAME.error, { code: proof.code, message: `${who} was refused: ${proof.message}` });
      this.#flush(connection);
      this.#do(this.#state.failed(connection.id, proof, this.#now()));
      return;
    }
    this.#listener?.known(socket);
    this.#do(this.#state.opened(connection.id, random(), this.#options.epoch(), proof));
  }

  #proof(socket: tls.TLSSocket): Proof | CodedError {
    const { auth, peer } = this.#options;
    const certificate = socket.getPeerX509Certificate();
    if (auth.kind === 'psk') {
      const name = this.#identities.get(socket);
      // Whoever shows a certificate has not used the key.
      if (name === undefined || certificate !== undefined) return authError('the peer did not use the shared key');
      return { name, proves: (claimed) => claimed === name };
    }
    if (certificate === undefined) return authError('the peer showed no certificate');
    if (!socket.authorized) {
      const why = (socket.authorizationError as unknown as Error | string | null) ?? 'it is not of the configured CA';
      return authError(`the peer's certificate is not accepted: ${why instanceof Error ? why.message : why}`);
    }
    const { peerName } = auth;
    const holds = (name: string): boolean => certificate.checkHost(name, { wildcards: false }) !== undefined;
    if (peerName !== undefined) {
      if (!holds(peerName)) return authError(`the peer's certificate does not name "${peerName}"`);
      return { name: peer?.name ?? null, proves: () => true };
    }
    if (peer !== null && !holds(peer.name)) return authError(`the peer's certificate does not name "${peer.name}"`);
    return { name: peer?.name ?? null, proves: holds };
  }

  /** The socket is gone, or about to be. */
  #lost(connection: Connection, error: Error | null): void {
    if (connection.over) {
      this.#connections.delete(connection.id);
      return;
    }
    const coded =
      error !== null
        ? judge(error, 'the peer')
        : connection === this.#link
          ? null
          : peerError('closed the connection before it was the link; look at its log', 'OUTLIVE_PAIR_DOWN');
    this.#do(this.#state.closed(connection.id, coded, this.#now()));
    this.#end(connection);
  }

  /** Nothing more is taken from the connection; what was sent may still leave. */
  #end(connection: Connection): void {
    if (connection.over) return;
    connection.over = true;
    connection.decoder.stop();
    this.#connections.delete(connection.id);
    const { socket } = connection;
    if (socket.connecting || socket.destroyed) {
      socket.destroy();
      return;
    }
    socket.end();
    const timer = setTimeout(() => socket.destroy(), LINGER_MS);
    socket.once('close', () => clearTimeout(timer));
  }

  // ---------------------------------------------------------------------------------------------- what comes

  #received(connection: Connection, chunk: Uint8Array): void {
    if (connection.over) return;
    this.#state.heard(connection.id, this.#now());
    if (connection === this.#link) this.#bytesReceived += chunk.length;
    try {
      connection.decoder.push(chunk);
    } catch (error) {
      this.#do(this.#state.failed(connection.id, error, this.#now()));
      return;
    }
  }

  #frame(connection: Connection, type: number, body: Uint8Array): void {
    const state = this.#state;
    const { id } = connection;
    if (type === FRAME.batch || type === FRAME.ack || type === FRAME.control) {
      if (connection !== this.#link) throw peerError('sent something before the link was there');
      if (type === FRAME.batch) this.#records(connection, body);
      else if (type === FRAME.ack) this.#acknowledged(connection, decodeAck(body));
      else this.#controlled(connection, decodeJson(body));
      return;
    }
    const json = decodeJson(body);
    if (type === FRAME.hello) this.#do(state.hello(id, json, this.#now()));
    else if (type === FRAME.helloAck) this.#do(state.helloAck(id, json, this.#now()));
    else if (type === FRAME.beat) {
      this.#do(state.beat(id, json.epoch, this.#now()));
      const { statistics } = json;
      if (!connection.over && statistics !== null && statistics !== undefined) this.#options.onBeat(statistics);
    } else if (type === FRAME.error) this.#do(state.refused(id, json, this.#now()));
    else this.#do(state.left(id, this.#now()));
  }

  #records(connection: Connection, body: Uint8Array): void {
    // Before the records are given away: what is done with them later in this turn comes after their acknowledgement has left.
    if (!connection.scheduled) this.#schedule(connection);
    connection.expected = decodeBatch(body, connection.expected, connection.onRecord);
    connection.owes = true;
  }

  #acknowledged(connection: Connection, position: number): void {
    connection.flow.acknowledge(position);
    if (this.#pressed) this.#press();
    this.#options.onAck(position);
  }

  #controlled(connection: Connection, json: Record<string, unknown>): void {
    const { kind, id, body, error } = json;
    if (typeof id !== 'number') throw peerError('sent a question or answer of a wrong shape');
    if (kind === 'request') {
      let answered = false;
      const answer = (content: object): void => {
        if (answered || connection.over) return;
        answered = true;
        connection.encoder.json(FRAME.control, { kind: 'answer', id, ...content });
        this.#flush(connection);
      };
      try {
        this.#options.onControl(body, (result) => answer({ body: result ?? null }));
      } catch (thrown) {
        const code = thrown instanceof CodedError ? thrown.code : 'OUTLIVE_INTERNAL';
        answer({ error: { code, message: thrown instanceof Error ? thrown.message : String(thrown) } });
      }
      return;
    }
    if (kind !== 'answer') throw peerError('sent a question or answer of a wrong shape');
    const waiting = this.#waiting.get(id);
    // Too late.
    if (waiting === undefined) return;
    this.#waiting.delete(id);
    clearTimeout(waiting.timer);
    if (error === undefined) {
      waiting.resolve(body);
      return;
    }
    const { code, message } = (error ?? {}) as Record<string, unknown>;
    waiting.reject(new CodedError(String(code), 'gateway', `the peer could not do it: ${String(message)}`));
  }

  // ---------------------------------------------------------------------------------------------- what goes

  /**
   * One write, behind all that this turn of the event loop reads. Against process.nextTick, which writes once for each socket
   * that was read, the way there and back was measured to be no longer, with many sessions in far fewer writes.
   */
  #schedule(connection: Connection): void {
    connection.scheduled = true;
    setImmediate(this.#flushLater, connection);
  }

  readonly #flushLater = (connection: Connection): void => {
    connection.scheduled = false;
    this.#flush(connection);
  };

  #flush(connection: Connection): void {
    if (connection.over) return;
    const { encoder, socket } = connection;
    if (connection.owes) {
      connection.owes = false;
      encoder.acknowledge(connection.expected);
    }
    const { size } = encoder;
    if (size === 0) return;
    connection.flow.sent(encoder.position, size);
    this.#writes++;
    this.#bytesSent += size;
    const parts = encoder.take();
    if (parts.length === 1) {
      socket.write(parts[0]);
    } else {
      socket.cork();
      for (const part of parts) socket.write(part);
      socket.uncork();
    }
    if (connection.flow.backlog > this.#limit || socket.writableLength > this.#limit) this.#press();
  }

  /** Looks whether the backlog became high or low. */
  #press(): void {
    const link = this.#link;
    if (link === null) return;
    const backlog = Math.max(link.flow.backlog, link.socket.writableLength);
    if (backlog > 2 * this.#limit && !link.overflowed) {
      link.overflowed = true;
      // Whoever is appending need not be ready to hear that the link is down.
      setImmediate(() => {
        const what = `holds up ${backlog} bytes, where ${2 * this.#limit} are allowed`;
        this.#do(this.#state.failed(link.id, peerError(what, 'OUTLIVE_PAIR_OVERFLOW'), this.#now()));
      });
    }
    const high = this.#pressed ? backlog >= this.#limit / 2 : backlog > this.#limit;
    if (high === this.#pressed) return;
    this.#pressed = high;
    this.#options.onPressure?.(high);
  }

  #sendBeat(connection: Connection, statistics: unknown): void {
    const epoch = this.#state.claim(this.#options.epoch());
    connection.encoder.json(FRAME.beat, { epoch, statistics: statistics ?? null });
    this.#flush(connection);
  }

  // ---------------------------------------------------------------------------------------------- the state's will

  #do(effects: readonly Effect[]): void {
    for (const effect of effects) {
      if (effect.do === 'dial') {
        this.#dial(effect.id);
        continue;
      }
      const connection = this.#connections.get(effect.id);
      if (connection === undefined) continue;
      switch (effect.do) {
        case 'send':
          connection.encoder.json(effect.type, effect.body);
          this.#flush(connection);
          break;
        case 'beat':
          this.#sendBeat(connection, null);
          break;
        case 'close':
          if (effect.error !== null) this.refused(effect.error, connection.socket.remoteAddress);
          this.#end(connection);
          break;
        case 'up':
          this.#up(connection, effect.hello);
          break;
        case 'down':
          this.#down(connection, effect.error);
          break;
      }
    }
    this.#arm();
  }

  #up(connection: Connection, hello: Hello): void {
    connection.decoder.maxFrame = this.#options.maxFrame ?? MAX_FRAME;
    this.#link = connection;
    this.#writes = this.#bytesSent = this.#bytesReceived = 0;
    this.#reasons.clear();
    const { name, version, epoch, incarnation } = hello;
    this.#options.log.info({ peer: name, version, epoch, incarnation }, 'the pair link is up');
    this.#options.onUp(hello);
  }

  #down(connection: Connection, error: CodedError): void {
    this.#link = null;
    this.#end(connection);
    const fields = { code: error.code, error, peer: this.peerName };
    this.#options.log[this.#closed ? 'info' : 'warn'](fields, 'the pair link is down');
    const gone = new CodedError('OUTLIVE_PAIR_DOWN', 'network', 'the pair link went down before the peer answered');
    for (const { reject, timer } of this.#waiting.values()) {
      clearTimeout(timer);
      reject(gone);
    }
    this.#waiting.clear();
    if (this.#pressed) {
      this.#pressed = false;
      this.#options.onPressure?.(false);
    }
    this.#options.onDown(error);
  }

  /** Logs why somebody is not the peer, or cannot be reached: once a reason, however often it happens. */
  refused(error: CodedError, address: string | undefined): void {
    const now = this.#now();
    const key = `${error.code} ${error.message}`;
    const known = this.#reasons.get(key);
    if (known !== undefined && now < known.at + QUIET_MS) {
      known.again++;
      return;
    }
    if (this.#reasons.size >= MAX_REASONS) this.#reasons.clear();
    this.#reasons.set(key, { at: now, again: 0 });
    const fields = { code: error.code, error, peer: this.peerName, address, again: known?.again };
    this.#options.log.warn(fields, 'a connection for the pair link was refused or failed');
  }

  #arm(): void {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
    const at = this.#state.wakeAt;
    if (this.#closed || at === Number.POSITIVE_INFINITY) return;
    this.#timer = setTimeout(() => this.#do(this.#state.tick(this.#now())), Math.max(at - this.#now(), 0) + 1);
    this.#timer.unref();
  }
}

function random(): string {
  return randomBytes(16).toString('hex');
}
