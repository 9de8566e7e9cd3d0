import { chmodSync, lstatSync, mkdirSync, statSync, unlinkSync } from 'node:fs';
import * as net from 'node:net';
import { dirname, resolve } from 'node:path';
import { CodedError, type Log } from '../../contract/index.js';
import { duplicateHigh, moveOnto, reserveDescriptor } from '../tcp/libc.js';
import { DEFAULT_LIMITS, type Holding, type HoldingLimits, Holdings } from './holdings.js';
import { descriptorOf, Link, Way } from './link.js';
import { closeDescriptor, connectUnix, duplicate, MAX_PATH, passingUnavailable, peerOf } from './passing.js';
import { type Asked, type Kind, type Message, violation } from './protocol.js';

export interface KeeperServerOptions {
  /** Of the unix socket. Its directory is made with mode 0700 if it is not there, and must have that mode if it is. */
  readonly path: string;
  readonly log: Log;
  readonly limits?: HoldingLimits;
  /** How long an engine that is replaced may take to hand over before it is killed, in ms. */
  readonly retireMs?: number;
  /** An operator wants the engine replaced. A rejection is the operator's answer. */
  readonly onUpgrade: () => Promise<void>;
  /** An engine has everything now. */
  readonly onClaimed: () => void;
  /** The engine has handed over, and is about to end. */
  readonly onRetired: () => void;
  /** The engine that had everything is gone without having handed over. */
  readonly onGone: () => void;
}

const DEFAULT_RETIRE_MS = 10_000;
/** How long a connection may take to say what it is. */
const GREETING_MS = 5000;
/** How long a dead engine's connection may take to be noticed, and a killed one's to end. */
const GONE_MS = 2000;
/** Descriptors of one message. */
const BATCH = 64;
/** Bytes that may wait for an engine that is given everything. */
const HIGH_WATER = 1024 * 1024;

/** Memory of two engines, one of which replaces the other, what holds the acknowledgements of each, and room. */
const LOW = 8;

/** A connection for messages. */
interface Peer {
  readonly link: Link;
  readonly pid: number;
  role: 'new' | 'engine' | 'operator';
  way: Way | null;
  token: string;
  /** Resolves when it has handed over, or is gone. */
  readonly settled: Promise<void>;
  settle(): void;
  /** Resolves when it is gone. */
  readonly gone: Promise<void>;
  go(): void;
}

/**
 * Holds descriptors and notes for an engine that may die, and gives them to the next one. It never reads from what it holds. At most one
 * engine at a time is the one whose descriptors are held: the last that claimed.
 */
export class KeeperServer {
  readonly #options: KeeperServerOptions;
  readonly #holdings: Holdings;
  readonly #server: net.Server;
  readonly #peers = new Set<Peer>();
  /** Ways and engines that wait for each other, by token. */
  readonly #ways = new Map<string, number>();
  /** Numbers below those of all connections: what has one of them is closed after these when this process dies. */
  readonly #low: number[] = [];
  /** Those of them that are in use. */
  readonly #lowUsed = new Set<number>();
  #holder: Peer | null = null;
  #claiming = false;
  #closed = false;

  /** A claim makes the engine that is there hand over; else it is refused as long as that one lives. */
  replaceable = false;

  private constructor(options: KeeperServerOptions) {
    this.#options = options;
    this.#holdings = new Holdings(options.limits ?? DEFAULT_LIMITS);
    this.#server = net.createServer((socket) => this.#admit(socket));
  }

  /**
   * Opens the socket, which only processes of the same user may use.
   * @throws OUTLIVE_KEEPER_UNAVAILABLE, OUTLIVE_KEEPER_PATH (directory or path are not usable or not private), OUTLIVE_KEEPER_RUNNING
   */
  static async listen(options: KeeperServerOptions): Promise<KeeperServer> {
    const why = passingUnavailable();
    if (why !== null) throw new CodedError('OUTLIVE_KEEPER_UNAVAILABLE', 'system', why);
    const path = resolve(options.path);
    prepare(path);
    const keeper = new KeeperServer(options);
    await new Promise<void>((done, failed) => {
      keeper.#server.once('error', (cause) => failed(unusable(path, cause.message, cause)));
      keeper.#server.listen(path, done);
    });
    keeper.#low.push(...Array.from({ length: LOW }, reserveDescriptor));
    chmodSync(path, 0o600);
    keeper.#server.removeAllListeners('error');
    keeper.#server.on('error', (error) => options.log.warn({ err: error }, 'the keeper could not accept a connection'));
    return keeper;
  }

  /** Descriptors that are held. */
  get count(): number {
    return this.#holdings.count;
  }

  /** Closes the client connections that are held, so that the clients do not wait for ever. @returns their number */
  releaseClients(): number {
    const clients = this.#holdings.all().filter(({ kind }) => kind === 'client');
    for (const { key } of clients) this.#drop(key);
    return clients.length;
  }

  /** Lets go of everything and ends. Connections that nobody else holds are closed by that. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    for (const { link } of this.#peers) link.destroy();
    for (const fd of this.#ways.values()) closeDescriptor(fd);
    this.#ways.clear();
    for (const { key } of this.#holdings.all()) this.#drop(key);
    for (const fd of this.#low) closeDescriptor(fd);
    await new Promise<void>((done) => this.#server.close(() => done()));
  }

  #admit(socket: net.Socket): void {
    // A socket that fails before it has a link.
    socket.on('error', () => {});
    let fd: number;
    let pid: number;
    try {
      fd = descriptorOf(socket);
      const peer = peerOf(fd);
      pid = peer.pid;
      if (peer.uid !== process.getuid!()) {
        this.#options.log.warn({ pid, uid: peer.uid }, 'another user tried to reach the keeper');
        socket.destroy();
        return;
      }
    } catch {
      // It is gone already.
      socket.destroy();
      return;
    }
    let settle = (): void => {};
    const settled = new Promise<void>((done) => (settle = done));
    let go = (): void => {};
    const gone = new Promise<void>((done) => (go = done));
    const link = new Link(
      socket,
      {
        onMessage: (message) => this.#onMessage(peer, socket, message),
        onClose: (error) => this.#onClose(peer, error),
      },
      true,
    );
    const peer: Peer = { link, pid, role: 'new', way: null, token: '', settled, settle, gone, go };
    this.#peers.add(peer);
    const timer = setTimeout(() => {
      if (peer.role === 'new' || (peer.role === 'engine' && peer.way === null)) link.destroy();
    }, GREETING_MS);
    timer.unref();
  }

  #onMessage(peer: Peer, socket: net.Socket, message: Message): void {
    if (message.type === 'hello') {
      this.#greeted(peer, socket, message.channel, Buffer.from(message.token).toString('hex'));
    } else if (message.type === 'ping') {
      peer.link.send({ type: 'pong', number: message.number });
    } else if (peer.role === 'operator') {
      if (message.type !== 'upgrade') throw violation(`${message.type} from an operator`);
      void this.#upgrade(peer);
    } else {
      if (peer.way === null) throw violation(`${message.type} before the way of the descriptors is there`);
      this.#fromEngine(peer, peer.way, message);
    }
  }

  #greeted(peer: Peer, socket: net.Socket, channel: 'control' | 'descriptors' | 'operator', token: string): void {
    if (channel === 'descriptors') {
      if (this.#ways.has(token)) throw violation('a token was used twice');
      // From here on only a bare descriptor is left, because libuv would read the descriptors away. Nothing is lost: the engine sends
      // no more until it is welcomed.
      const way = duplicate(descriptorOf(socket));
      peer.link.destroy();
      this.#ways.set(token, way);
      const engine = [...this.#peers].find((other) => other.role === 'engine' && other.token === token);
      if (engine !== undefined) this.#welcome(engine);
      setTimeout(() => this.#forgetWay(token, way), GREETING_MS).unref();
      return;
    }
    peer.link.send({ type: 'hello', channel, token: new Uint8Array(16) });
    if (channel === 'operator') {
      peer.role = 'operator';
      peer.link.send({ type: 'welcome' });
      return;
    }
    peer.role = 'engine';
    peer.token = token;
    if (this.#ways.has(token)) this.#welcome(peer);
  }

  #welcome(engine: Peer): void {
    engine.way = new Way(this.#ways.get(engine.token)!, engine.link);
    this.#ways.delete(engine.token);
    engine.link.send({ type: 'welcome' });
  }

  #forgetWay(token: string, way: number): void {
    if (this.#ways.get(token) !== way) return;
    this.#ways.delete(token);
    closeDescriptor(way);
  }

  #fromEngine(engine: Peer, way: Way, message: Message): void {
    const holds = this.#holder === engine;
    switch (message.type) {
      case 'keep': {
        const fd = way.take();
        if (fd === null) {
          this.#refuse(engine, 'keep', message.key, 'the keeper has no descriptor left');
        } else if (!holds) {
          closeDescriptor(fd);
          this.#refuse(engine, 'keep', message.key, 'this engine has not claimed');
        } else {
          const before = this.#holdings.keep(message.key, message.kind, message.label, this.#place(message.kind, fd));
          if (before !== null) this.#letGo(before);
        }
        break;
      }
      case 'drop':
        if (holds) this.#drop(message.key);
        break;
      case 'note': {
        const why = holds ? this.#holdings.note(message.key, message.bytes, message.replace) : null;
        if (why !== null) this.#refuse(engine, 'note', message.key, why);
        break;
      }
      case 'claim':
        void this.#claim(engine, way);
        break;
      case 'retired':
        if (holds) {
          this.#holder = null;
          this.#options.onRetired();
          engine.settle();
        }
        break;
      case 'taken':
        way.taken(message.count);
        break;
      default:
        throw violation(`${message.type} from an engine`);
    }
  }

  #refuse(peer: Peer, asked: Asked, key: string, reason: string): void {
    peer.link.send({ type: 'refused', asked, key, reason });
  }

  #drop(key: string): void {
    const fd = this.#holdings.drop(key);
    if (fd !== null) this.#letGo(fd);
  }

  /**
   * Gives a descriptor a number by which it is closed in the right order when this process dies and nobody else holds it: first listening
   * sockets, by whose mark the ends of connections could leave the host, and last what holds acknowledgements back.
   */
  #place(kind: Kind, fd: number): number {
    if (kind === 'client') return fd;
    if (kind === 'listener') {
      const high = duplicateHigh(fd);
      closeDescriptor(fd);
      return high;
    }
    const low = this.#low.pop();
    if (low === undefined) return fd;
    moveOnto(fd, low);
    this.#lowUsed.add(low);
    return low;
  }

  #letGo(fd: number): void {
    if (!this.#lowUsed.delete(fd)) {
      closeDescriptor(fd);
      return;
    }
    // The number stays reserved.
    moveOnto(reserveDescriptor(), fd);
    this.#low.push(fd);
  }

  async #upgrade(operator: Peer): Promise<void> {
    try {
      await this.#options.onUpgrade();
      operator.link.send({ type: 'upgraded' });
    } catch (error) {
      this.#refuse(operator, 'upgrade', '', (error as Error).message);
    }
  }

  async #claim(engine: Peer, way: Way): Promise<void> {
    // It died right behind its claim: nobody is to hand over to it.
    if (!engine.link.open) return;
    if (this.#claiming) {
      this.#refuse(engine, 'claim', '', 'another engine is being given everything');
      return;
    }
    this.#claiming = true;
    try {
      if (!(await this.#makeRoom(engine))) {
        this.#refuse(engine, 'claim', '', 'another engine is running');
        return;
      }
      if (!engine.link.open || this.#closed) return;
      this.#holder = engine;
      const count = await this.#give(engine, way);
      if (!engine.link.open) return;
      engine.link.send({ type: 'claimed', count });
      this.#options.onClaimed();
    } catch (error) {
      engine.link.destroy(error as Error);
    } finally {
      this.#claiming = false;
    }
  }

  /** Sees to it that no other engine touches what is held. @returns false when one does, and may */
  async #makeRoom(engine: Peer): Promise<boolean> {
    const old = this.#holder;
    if (old === null || old === engine) return true;
    if (!this.replaceable) return await within(old.settled, GONE_MS);
    old.link.send({ type: 'retire' });
    if (await within(old.settled, this.#options.retireMs ?? DEFAULT_RETIRE_MS)) {
      // Its ports that nobody takes over are free only then.
      await within(old.gone, GONE_MS);
      return true;
    }
    // It neither goes on nor ends. Two that read the same sockets would be worse than one that is dead.
    this.#options.log.warn({ pid: old.pid }, 'the old engine did not hand over and is killed');
    if (old.pid > 0) kill(old.pid);
    return await within(old.settled, GONE_MS);
  }

  async #give(engine: Peer, way: Way): Promise<number> {
    const all = this.#holdings.all();
    let count = 0;
    for (let at = 0; at < all.length; at += BATCH) {
      const batch = all.slice(at, at + BATCH);
      await way.room(batch.length);
      // Some may have been let go of while there was no room.
      const live = batch.filter((holding) => this.#holdings.has(holding));
      if (!engine.link.open) return count;
      if (live.length === 0) continue;
      if (!way.send(live.map(({ fd }) => fd))) throw violation('descriptors are not taken');
      count += live.length;
      for (const holding of live) await this.#tell(engine, holding);
    }
    return count;
  }

  async #tell({ link }: Peer, { key, kind, label, complete, notes }: Holding): Promise<void> {
    link.send({ type: 'kept', key, kind, label, complete });
    for (const bytes of notes) {
      link.send({ type: 'note', key, replace: false, bytes });
      if (link.backlog > HIGH_WATER) await link.drained();
    }
  }

  #onClose(peer: Peer, error: Error | null): void {
    this.#peers.delete(peer);
    peer.way?.close();
    if (this.#closed) return;
    if (error instanceof CodedError)
      this.#options.log.warn({ err: error, pid: peer.pid }, 'a connection to the keeper');
    const held = this.#holder === peer;
    if (held) this.#holder = null;
    peer.settle();
    peer.go();
    if (held) this.#options.onGone();
  }
}

function kill(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch {
    // It is gone.
  }
}

/** @returns whether it resolved in time */
async function within(promise: Promise<void>, ms: number): Promise<boolean> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<boolean>((resolve) => {
    timer = setTimeout(resolve, ms, false);
  });
  const answer = await Promise.race([promise.then(() => true), late]);
  clearTimeout(timer);
  return answer;
}

function unusable(path: string, why: string, cause?: unknown): CodedError {
  return new CodedError('OUTLIVE_KEEPER_PATH', 'config', `the keeper cannot use ${path}: ${why}`, { cause });
}

/** Makes the directory, checks that nobody else can get in, and takes away what a dead keeper left. */
function prepare(path: string): void {
  if (Buffer.byteLength(path) > MAX_PATH) throw unusable(path, `a path of a socket has at most ${MAX_PATH} bytes`);
  const directory = dirname(path);
  try {
    mkdirSync(directory, { recursive: true, mode: 0o700 });
  } catch (cause) {
    throw unusable(path, (cause as Error).message, cause);
  }
  const { uid, mode } = statSync(directory);
  if (uid !== process.getuid!() || (mode & 0o077) !== 0) {
    throw unusable(path, `${directory} must belong to the keeper's user and have the mode 0700`);
  }
  const found = lstatSync(path, { throwIfNoEntry: false });
  if (found === undefined) return;
  if (!found.isSocket()) throw unusable(path, 'something that is no socket is there');
  try {
    closeDescriptor(connectUnix(path));
  } catch {
    // Nobody listens any more.
    unlinkSync(path);
    return;
  }
  throw new CodedError('OUTLIVE_KEEPER_RUNNING', 'config', `a keeper is running at ${path}`);
}
