import { randomBytes } from 'node:crypto';
import * as net from 'node:net';
import { CodedError } from '../../contract/index.js';
import { descriptorOf, Link, Way } from './link.js';
import { closeDescriptor, connectUnix, peerOf, sendBytes } from './passing.js';
import { type Asked, encode, type Kind, type Message, TOKEN_LENGTH, violation } from './protocol.js';

/** What an engine does when its keeper says something unasked. */
export interface KeeperClientOptions {
  /**
   * Another engine takes over (upgrade). Stop accepting, reading and writing, and note what the other one must know; when the promise resolves
   * nothing may touch the kept sockets any more, and the process should exit with 0 soon. Sockets must not be ended or shut down: that would
   * reach the client. They are simply left; the exit closes this process's share of them. When it does not resolve in time, or
   * rejects, the keeper kills the process and goes on as after a crash.
   */
  readonly onRetire: () => Promise<void>;
  /** The keeper is gone: from now on a crash costs the connections. Not called after {@link KeeperClient.close}. */
  readonly onLost: (error: Error) => void;
  /** The keeper could not keep a descriptor, or has thrown the notes of a key away. */
  readonly onRefused?: (asked: Asked, key: string, reason: string) => void;
}

/** What a dead engine had. */
export interface Claimed {
  readonly key: string;
  readonly kind: Kind;
  readonly label: string;
  /** The caller's now. The keeper goes on keeping its own duplicate. */
  readonly fd: number;
  readonly notes: readonly Uint8Array[];
  /** False when notes are missing, because there were too many. */
  readonly complete: boolean;
}

/** How long the keeper may take to answer the greeting. */
const GREETING_MS = 5000;
/** Bytes that may wait for room for a descriptor; beyond, the keeper is given up. */
const MAX_BACKLOG = 64 * 1024 * 1024;
/** A keeper that takes no byte for so long is given up. This process stands still meanwhile. */
const PATIENCE_MS = 1000;

interface Waiting<T> {
  resolve(value: T): void;
  reject(error: Error): void;
}

/**
 * An engine's connection to its keeper. Claim first, even when there is nothing to be had: only the engine that claimed last may keep.
 *
 * While a socket is kept, closing it here does not end the connection: `drop` must follow, in the same tick. A FIN that was sent with shutdown
 * reaches the client at once; a RST leaves when the keeper has dropped its share.
 */
export class KeeperClient {
  readonly #options: KeeperClientOptions;
  readonly #link: Link;
  readonly #way: Way;
  #claim:
    | (Waiting<Claimed[]> & { readonly found: (Claimed & { notes: Uint8Array[] })[]; current: Uint8Array[] })
    | null = null;
  readonly #pings = new Map<number, Waiting<void>>();
  #pinged = 0;
  #welcomed: Waiting<void> | null = null;
  #closed = false;

  private constructor(way: number, socket: net.Socket, options: KeeperClientOptions) {
    this.#options = options;
    const handlers = {
      onMessage: (message: Message) => this.#onMessage(message),
      onClose: (error: Error | null) => this.#onClose(error),
    };
    this.#link = new Link(socket, handlers, false, PATIENCE_MS);
    this.#way = new Way(way, this.#link);
  }

  /**
   * @param path what the environment variable OUTLIVE_KEEPER says
   * @throws OUTLIVE_KEEPER_UNAVAILABLE, OUTLIVE_KEEPER_CONNECT (nobody is there, or does not answer), OUTLIVE_KEEPER_STRANGER (it runs as another
   * user), OUTLIVE_KEEPER_PROTOCOL (another version)
   */
  static async connect(path: string, options: KeeperClientOptions): Promise<KeeperClient> {
    const token = randomBytes(TOKEN_LENGTH);
    let way: number;
    try {
      way = connectUnix(path);
    } catch (cause) {
      if ((cause as CodedError).code === 'OUTLIVE_KEEPER_UNAVAILABLE') throw cause;
      throw unreachable(path, cause as Error);
    }
    let socket: net.Socket;
    try {
      checkPeer(path, way);
      sendBytes(way, encode({ type: 'hello', channel: 'descriptors', token }));
      socket = await open(path);
    } catch (error) {
      closeDescriptor(way);
      throw error;
    }
    const client = new KeeperClient(way, socket, options);
    const welcomed = new Promise<void>((resolve, reject) => (client.#welcomed = { resolve, reject }));
    const late = setTimeout(() => client.#link.destroy(unreachable(path, new Error('no answer'))), GREETING_MS);
    client.#link.send({ type: 'hello', channel: 'control', token });
    try {
      await welcomed;
    } finally {
      clearTimeout(late);
    }
    return client;
  }

  /**
   * Keeps a duplicate of a socket, under a key that this engine chooses (at most 255 bytes). The socket itself stays as it is. Where that
   * is not possible `onRefused` or `onLost` is called; nothing is thrown.
   * @param fd an open descriptor; it may be closed as soon as this returns
   * @param label for people, at most 255 bytes
   */
  keep(key: string, fd: number, kind: Kind, label = ''): void {
    if (!this.#link.open) return;
    try {
      this.#way.pass(fd, { type: 'keep', key, kind, label });
    } catch (error) {
      const { code } = ((error as CodedError).cause ?? {}) as NodeJS.ErrnoException;
      // The keeper has ended, and the link is about to tell.
      if (code === 'EPIPE' || code === 'ECONNRESET') this.#link.destroy(lost());
      else this.#options.onRefused?.('keep', key, (error as Error).message);
    }
  }

  /**
   * Lets go of a socket and its notes. No error when the key is not kept. Also while this engine retires, until it has handed over: a client
   * that leaves meanwhile is not the next engine's affair. What is left to that one is closed without this.
   */
  drop(key: string): void {
    this.#follow({ type: 'drop', key });
  }

  /**
   * Adds a note to a key that is kept, or replaces all that it has; an empty one that replaces leaves none. It is copied.
   * Notes leave together at the end of the tick, or with {@link flush}.
   */
  note(key: string, bytes: Uint8Array, replace = false): void {
    this.#follow({ type: 'note', key, replace, bytes });
  }

  /** Writes what waits. @returns true when the kernel has all of it, so that it reaches the keeper even if this process dies now */
  flush(): boolean {
    return this.#link.flush() && this.#way.backlog === 0;
  }

  /** Bytes that would be lost if this process died now. */
  get backlog(): number {
    return this.#link.backlog + this.#way.backlog;
  }

  /** False once the keeper is lost, or {@link close} was called. */
  get open(): boolean {
    return this.#link.open;
  }

  /**
   * Becomes the engine whose sockets are kept, and gets all that the one before had, in the order in which it was kept. An engine that
   * is being replaced hands over first.
   *
   * Rejects with OUTLIVE_KEEPER_REFUSED when another engine is running, with OUTLIVE_KEEPER_LOST when the keeper ends.
   */
  claim(): Promise<Claimed[]> {
    if (this.#claim !== null) throw new Error('claim() is under way');
    return new Promise((resolve, reject) => {
      if (!this.#link.open) {
        reject(lost());
        return;
      }
      this.#claim = { resolve, reject, found: [], current: [] };
      this.#link.send({ type: 'claim' });
    });
  }

  /** Resolves when the keeper has handled everything that was sent before. Rejects with OUTLIVE_KEEPER_LOST. */
  ping(): Promise<void> {
    return new Promise((resolve, reject) => {
      if (!this.#link.open) {
        reject(lost());
        return;
      }
      const number = this.#pinged++ >>> 0;
      this.#pings.set(number, { resolve, reject });
      this.#way.follow({ type: 'ping', number });
    });
  }

  /** Ends the connection. Only for an engine that has let go of everything: what is still kept waits for the next engine. */
  close(): void {
    this.#closed = true;
    this.#link.end();
  }

  #follow(message: Message): void {
    if (!this.#link.open) return;
    this.#way.follow(message);
    if (this.backlog > MAX_BACKLOG) this.#link.destroy(lost('it does not read what it is sent'));
  }

  #onMessage(message: Message): void {
    switch (message.type) {
      case 'hello':
        break;
      case 'welcome':
        this.#welcomed?.resolve();
        this.#welcomed = null;
        break;
      case 'taken':
        this.#way.taken(message.count);
        break;
      case 'pong':
        this.#pings.get(message.number)?.resolve();
        this.#pings.delete(message.number);
        break;
      case 'kept':
        this.#kept(message);
        break;
      case 'note':
        this.#claim?.current.push(message.bytes);
        break;
      case 'claimed':
        this.#claim?.resolve(this.#claim.found);
        this.#claim = null;
        break;
      case 'retire':
        this.#retire();
        break;
      case 'refused':
        if (message.asked === 'claim') {
          this.#claim?.reject(
            new CodedError('OUTLIVE_KEEPER_REFUSED', 'system', `the keeper refused: ${message.reason}`),
          );
          this.#claim = null;
        } else {
          this.#options.onRefused?.(message.asked, message.key, message.reason);
        }
        break;
      default:
        throw violation(`${message.type} from a keeper`);
    }
  }

  #kept({ key, kind, label, complete }: Message & { readonly type: 'kept' }): void {
    const fd = this.#way.take();
    const claim = this.#claim;
    if (claim === null) {
      if (fd !== null) closeDescriptor(fd);
      throw violation('something is given that was not claimed');
    }
    const notes: Uint8Array[] = [];
    claim.current = notes;
    if (fd !== null) {
      claim.found.push({ key, kind, label, fd, notes, complete });
      return;
    }
    // Nobody would ever serve it.
    this.drop(key);
    this.#options.onRefused?.('claim', key, 'this process has no descriptor left');
  }

  #retire(): void {
    // Started here, so that it runs before anything else that this tick brings.
    this.#options.onRetire().then(
      () => {
        this.#way.follow({ type: 'retired' });
        this.#link.flush();
      },
      () => {
        // The keeper's patience ends, and with it this process.
      },
    );
  }

  #onClose(error: Error | null): void {
    this.#way.close();
    const why = error instanceof CodedError ? error : lost(error?.message);
    for (const { fd } of this.#claim?.found ?? []) closeDescriptor(fd);
    this.#claim?.reject(why);
    this.#claim = null;
    for (const { reject } of this.#pings.values()) reject(why);
    this.#pings.clear();
    if (this.#welcomed !== null) this.#welcomed.reject(why);
    else if (!this.#closed) this.#options.onLost(why);
    this.#welcomed = null;
  }
}

/**
 * Has the engine of a keeper replaced by a new one, and resolves when that is done.
 * Rejects with OUTLIVE_KEEPER_CONNECT, OUTLIVE_KEEPER_STRANGER, OUTLIVE_KEEPER_PROTOCOL, OUTLIVE_KEEPER_LOST, or OUTLIVE_KEEPER_REFUSED with
 * the keeper's reason.
 */
export async function requestUpgrade(path: string): Promise<void> {
  const socket = await open(path);
  await new Promise<void>((resolve, reject) => {
    const link = new Link(socket, {
      onMessage: (message) => {
        if (message.type === 'upgraded') {
          resolve();
          link.end();
        } else if (message.type === 'refused') {
          reject(new CodedError('OUTLIVE_KEEPER_REFUSED', 'system', `the keeper refused: ${message.reason}`));
          link.end();
        } else if (message.type !== 'hello' && message.type !== 'welcome') {
          throw violation(`${message.type} from a keeper`);
        }
      },
      onClose: (error) => reject(error instanceof CodedError ? error : lost(error?.message)),
    });
    link.send({ type: 'hello', channel: 'operator', token: new Uint8Array(TOKEN_LENGTH) });
    link.send({ type: 'upgrade' });
  });
}

/** A socket to whoever listens, who must be the same user: a stranger must not be given sockets. */
async function open(path: string): Promise<net.Socket> {
  const socket = net.connect(path);
  await new Promise<void>((resolve, reject) => {
    socket.once('error', (cause) => reject(unreachable(path, cause)));
    socket.once('connect', resolve);
  });
  socket.removeAllListeners('error');
  try {
    checkPeer(path, descriptorOf(socket));
  } catch (error) {
    socket.destroy();
    throw error;
  }
  return socket;
}

function checkPeer(path: string, fd: number): void {
  const { uid } = peerOf(fd);
  if (uid === process.getuid!()) return;
  throw new CodedError('OUTLIVE_KEEPER_STRANGER', 'system', `the keeper at ${path} runs as another user (uid ${uid})`);
}

function unreachable(path: string, cause: Error): CodedError {
  const message = `there is no keeper at ${path}: ${cause.message}`;
  return new CodedError('OUTLIVE_KEEPER_CONNECT', 'system', message, { cause });
}

function lost(why = 'it closed the connection'): CodedError {
  return new CodedError('OUTLIVE_KEEPER_LOST', 'system', `the keeper is lost: ${why}`);
}
