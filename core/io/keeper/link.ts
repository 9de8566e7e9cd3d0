import type * as net from 'node:net';
import {
  closeDescriptor,
  duplicate,
  MAX_DESCRIPTORS,
  receiveBytes,
  receiveDescriptors,
  sendAll,
  sendDescriptors,
} from './passing.js';
import { encode, Frames, type Message, TOKEN_LENGTH, violation } from './protocol.js';

/** Descriptors that may be under way to the other end. The kernel takes some 270 messages before it says EAGAIN. */
const WINDOW = 192;

/** The descriptor beneath a socket of Node, which has no public name. @throws Error when the socket is closed */
export function descriptorOf(socket: net.Socket): number {
  const fd = (socket as unknown as { _handle?: { fd?: unknown } | null })._handle?.fd;
  if (typeof fd !== 'number' || fd < 0) throw new Error('the socket has no descriptor');
  return fd;
}

export interface LinkHandlers {
  /** May throw, which ends the connection with that error. */
  readonly onMessage: (message: Message) => void;
  /** Called once; null for an orderly end. */
  readonly onClose: (error: Error | null) => void;
}

/**
 * Messages over a unix socket. What is sent leaves at the end of the tick in one write, or at once with {@link flush}.
 */
export class Link {
  readonly #socket: net.Socket;
  readonly #frames = new Frames();
  readonly #handlers: LinkHandlers;
  #out: Uint8Array[] = [];
  #outSize = 0;
  #scheduled = false;
  #error: Error | null = null;
  #over = false;
  #greeted = false;
  /** What follows cannot be read, or must not be. */
  #broken = false;
  #waiting: (() => void)[] = [];
  readonly #patienceMs: number;
  /** A second descriptor of the socket, to read what is left behind an error; -1 for none. */
  #spare: number;

  /**
   * @param socket connected
   * @param toTheEnd read what a dead peer had sent, even when a write to it failed before: Node closes the socket then, and what
   * waits in the kernel would be lost
   * @param patienceMs for who must know when the kernel has what was sent: {@link flush} waits for that, this long without any progress; then
   * the connection is given up. 0: it never waits
   */
  constructor(socket: net.Socket, handlers: LinkHandlers, toTheEnd = false, patienceMs = 0) {
    this.#socket = socket;
    this.#handlers = handlers;
    this.#patienceMs = patienceMs;
    this.#spare = toTheEnd ? duplicate(descriptorOf(socket)) : -1;
    socket.on('data', (chunk: Uint8Array) => this.#read(chunk));
    socket.on('error', (error) => (this.#error ??= error));
    socket.on('end', () => socket.destroy());
    socket.on('close', () => this.#closed());
  }

  get open(): boolean {
    return !this.#over && !this.#socket.destroyed;
  }

  /** Bytes that the kernel does not have yet. */
  get backlog(): number {
    return this.#outSize + this.#socket.writableLength;
  }

  send(message: Message): void {
    this.sendFrame(encode(message));
  }

  /** @param frame of {@link encode} */
  sendFrame(frame: Uint8Array): void {
    if (!this.open) return;
    this.#out.push(frame);
    this.#outSize += frame.length;
    if (this.#scheduled) return;
    this.#scheduled = true;
    queueMicrotask(() => {
      this.#scheduled = false;
      this.flush();
    });
  }

  /** Writes now. @returns true when the kernel has everything: it reaches the other end even if this process dies */
  flush(): boolean {
    if (this.#outSize > 0 && this.open) {
      const bytes = this.#out.length === 1 ? this.#out[0] : Buffer.concat(this.#out, this.#outSize);
      if (this.#patienceMs === 0) this.#socket.write(bytes, this.#written);
      else {
        const how = sendAll(descriptorOf(this.#socket), bytes, this.#patienceMs);
        if (how !== 'sent') this.destroy(how === 'full' ? new Error('it does not read what it is sent') : null);
      }
    }
    this.#out = [];
    this.#outSize = 0;
    return this.open && this.#socket.writableLength === 0;
  }

  /** Resolves when the kernel has everything, or the connection is over. */
  async drained(): Promise<void> {
    if (this.flush() || !this.open) return;
    await new Promise<void>((resolve) => this.#waiting.push(resolve));
  }

  /** Ends the connection behind what was sent. */
  end(): void {
    this.flush();
    this.#releaseSpare();
    this.#socket.destroySoon();
  }

  destroy(error: Error | null = null): void {
    this.#error ??= error;
    this.#releaseSpare();
    this.#socket.destroy();
  }

  #read(chunk: Uint8Array): void {
    if (this.#broken) return;
    try {
      for (const message of this.#frames.push(chunk)) {
        this.#greeted = true;
        this.#handlers.onMessage(message);
      }
    } catch (error) {
      this.#error ??= error as Error;
      // So that the other end can tell which version is spoken here.
      if (!this.#greeted) this.send({ type: 'hello', channel: 'control', token: new Uint8Array(TOKEN_LENGTH) });
      this.#broken = true;
      this.end();
    }
  }

  readonly #written = (): void => {
    if (this.#socket.writableLength === 0) this.#drained();
  };

  #drained(): void {
    for (const resolve of this.#waiting.splice(0)) resolve();
  }

  #closed(): void {
    if (this.#over) return;
    const rest = new Uint8Array(64 * 1024);
    while (this.#spare >= 0) {
      const length = receiveBytes(this.#spare, rest);
      if (length === 0) break;
      this.#read(rest.subarray(0, length));
    }
    this.#releaseSpare();
    this.#over = true;
    this.#drained();
    this.#handlers.onClose(this.#error);
  }

  #releaseSpare(): void {
    if (this.#spare >= 0) closeDescriptor(this.#spare);
    this.#spare = -1;
  }
}

/** What a message that waits counts for, beside its bytes. */
const QUEUED_OVERHEAD = 64;

interface Queued {
  readonly frame: Uint8Array;
  /** A duplicate that is the queue's, to go with the frame; null for none. */
  readonly descriptor: number | null;
}

/**
 * The way of the descriptors beside a {@link Link}. The descriptor is sent first, then the message that says whose it is; so when the
 * message is there, the descriptor is, and nobody ever waits for one.
 */
export class Way {
  readonly #fd: number;
  readonly #link: Link;
  /** Sent, and not yet taken by the other end. */
  #underWay = 0;
  #queue: Queued[] = [];
  #backlog = 0;
  #arrived: number[] = [];
  #taken = 0;
  #room: (() => void)[] = [];
  #closed = false;

  /** @param fd a unix stream socket that no libuv handle reads; it is the way's from now on */
  constructor(fd: number, link: Link) {
    this.#fd = fd;
    this.#link = link;
  }

  /**
   * Sends a duplicate of a descriptor, then the message; behind what waits. The descriptor may be closed as soon as this returns.
   * @throws OUTLIVE_KEEPER_CALL when it is no descriptor, or cannot be duplicated; RangeError when the message is too long
   */
  pass(descriptor: number, message: Message): void {
    // Made first: a message that cannot be sent must not leave its descriptor on the way.
    const frame = encode(message);
    if (this.#queue.length === 0 && this.#underWay < WINDOW && this.send([descriptor])) this.#link.sendFrame(frame);
    else this.#enqueue(frame, duplicate(descriptor));
  }

  /** Sends a message behind those that wait for room. */
  follow(message: Message): void {
    if (this.#queue.length === 0) this.#link.send(message);
    else this.#enqueue(encode(message), null);
  }

  /** Bytes of messages that wait for room, and something for each. */
  get backlog(): number {
    return this.#backlog;
  }

  /** Sends duplicates as one message of the way, for messages that the caller sends. @returns false when there is no room */
  send(descriptors: readonly number[]): boolean {
    const beside = new Uint8Array(4);
    new DataView(beside.buffer).setUint32(0, descriptors.length, true);
    if (!sendDescriptors(this.#fd, descriptors, beside)) return false;
    this.#underWay += descriptors.length;
    return true;
  }

  /** Resolves when so many descriptors may be sent, or the way is closed. */
  async room(count: number): Promise<void> {
    while (!this.#closed && this.#underWay + count > WINDOW) {
      await new Promise<void>((resolve) => this.#room.push(resolve));
    }
  }

  /** The other end took some. */
  taken(count: number): void {
    if (count > this.#underWay) throw violation('more descriptors were taken than sent');
    this.#underWay -= count;
    while (this.#queue.length > 0) {
      const { frame, descriptor } = this.#queue[0];
      if (descriptor !== null) {
        if (this.#underWay >= WINDOW || !this.send([descriptor])) break;
        closeDescriptor(descriptor);
      }
      this.#queue.shift();
      this.#backlog -= QUEUED_OVERHEAD + frame.length;
      this.#link.sendFrame(frame);
    }
    for (const resolve of this.#room.splice(0)) resolve();
  }

  /**
   * The descriptor that the message at hand is about.
   * @returns null when this process has no room for it
   * @throws OUTLIVE_KEEPER_PROTOCOL when there is none
   */
  take(): number | null {
    if (this.#arrived.length === 0) {
      const received = receiveDescriptors(this.#fd);
      if (received === null || received.beside.length !== 4) throw violation('a descriptor is missing');
      const { beside, descriptors } = received;
      const count = new DataView(beside.buffer, beside.byteOffset).getUint32(0, true);
      if (count > MAX_DESCRIPTORS || count < descriptors.length) throw violation('descriptors that were not announced');
      this.#arrived.push(...descriptors);
      for (let missing = descriptors.length; missing < count; missing++) this.#arrived.push(-1);
    }
    if (this.#taken++ === 0) {
      queueMicrotask(() => {
        this.#link.send({ type: 'taken', count: this.#taken });
        this.#taken = 0;
      });
    }
    const descriptor = this.#arrived.shift();
    if (descriptor === undefined) throw violation('a descriptor is missing');
    return descriptor < 0 ? null : descriptor;
  }

  #enqueue(frame: Uint8Array, descriptor: number | null): void {
    this.#queue.push({ frame, descriptor });
    this.#backlog += QUEUED_OVERHEAD + frame.length;
  }

  /** Closes it with everything that nobody took. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    for (const descriptor of this.#arrived.splice(0)) if (descriptor >= 0) closeDescriptor(descriptor);
    for (const { descriptor } of this.#queue.splice(0)) if (descriptor !== null) closeDescriptor(descriptor);
    closeDescriptor(this.#fd);
    for (const resolve of this.#room.splice(0)) resolve();
  }
}
