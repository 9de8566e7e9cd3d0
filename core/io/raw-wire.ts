import * as net from 'node:net';
import { CodedError, ProtocolViolation, type TlsFacts } from '../contract/index.js';
import { systemError } from './errors.js';
import { StreamWire } from './stream-wire.js';
import { type Address, type Request, type TcpHandle, tcpBinding } from './tcp-binding.js';
import type { StartTls } from './tls.js';
import {
  DEFAULT_HIGH_WATER,
  DEFAULT_LOW_WATER,
  ignore,
  KEEPALIVE_SECONDS,
  LINGER_MS,
  READ_SIZE,
  type Wire,
  type WireMarks,
  type WireMemory,
} from './wire.js';

/** The internals, or null where `RawWire` cannot be used. */
export const binding = tcpBinding();

// The class below is only ever made when the internals are there.
const { state, nread: NREAD, async: ASYNC, WriteRequest, ShutdownRequest } = binding ?? ({} as never);

/**
 * Chunks up to COPY_MAX are copied out of the read buffer, those up to SLAB_MAX into a slab. A chunk that is kept keeps its
 * whole slab, so the slab is small: many sessions that each keep a little must not add up to much.
 */
const SLAB_SIZE = 16 * 1024;
const SLAB_MAX = 4 * 1024;
const COPY_MAX = 16 * 1024;
/** Reads that did not need a buffer of their own, after which a wire gives it back. */
const SMALL_READS = 16;
/** Corked writes up to this size are merged into one buffer instead of being gathered by the kernel. */
const MERGE_MAX = 8 * 1024;

/**
 * The buffer that every wire reads into unless it has one of its own. libuv fills it and the callback empties it before
 * anybody else reads. Handles hold its bare address, so it lives as long as the process.
 */
const shared = new Uint8Array(READ_SIZE);
let slab = new ArrayBuffer(0);
let slabUsed = 0;

/** What a wire that writes nothing is writing. */
const NOTHING: readonly Uint8Array[] = [];

/** A request object that no operation has taken; most writes are finished within the call and leave it free. */
let spare: Request | null = null;

let merged = new Uint8Array(MERGE_MAX);

/** A copy of the first `length` bytes of `from` that nobody will change. */
function keep(from: Uint8Array, length: number): Uint8Array {
  if (length > SLAB_MAX) return from.slice(0, length);
  if (slabUsed + length > slab.byteLength) {
    slab = Buffer.allocUnsafeSlow(SLAB_SIZE).buffer as ArrayBuffer;
    slabUsed = 0;
  }
  const chunk = new Uint8Array(slab, slabUsed, length);
  chunk.set(new Uint8Array(from.buffer as ArrayBuffer, 0, length));
  slabUsed = (slabUsed + length + 7) & ~7;
  return chunk;
}

/** The end of the stream, which libuv reports like an error. */
const UV_EOF = -4095;

/** Errors of a write after which the kernel has ended the read side as well, so that reading on comes to an end. */
const FATAL_WRITE = new Set(['ECONNRESET', 'EPIPE', 'ETIMEDOUT', 'ECONNABORTED', 'EHOSTUNREACH', 'ENETUNREACH']);

/**
 * A wire over a bare TCP handle. Reading makes nothing but the chunk, writing makes nothing at all while the kernel takes what
 * it is given. When a write fails, what the peer had sent before is still delivered: it may hold the answer to a commit.
 */
export class RawWire implements Wire {
  onData: (chunk: Uint8Array) => void = ignore;
  onClose: (error: Error | null) => void = ignore;
  onDrain: () => void = ignore;
  /** Called with the descriptor before the kernel is told to end the connection; not by {@link abandon}. */
  beforeClose: ((fd: number) => void) | null = null;

  readonly #handle: TcpHandle;
  readonly #highWater: number;
  readonly #lowWater: number;
  /** What the handle reads into while it has no buffer of its own. */
  readonly #home: Uint8Array;
  #paused = true;
  #open = true;
  /** The handle was told to close. */
  #closing = false;
  #reported = false;
  /** A buffer of its own while much arrives; the handle reads into it, or into `#home` when null. Never for a wire with a given memory. */
  #buffer: Uint8Array | null = null;
  #smallReads = 0;
  #unread: Uint8Array | null = null;
  /** Delivery of the unread bytes is under way. */
  #delivering = false;
  /** A write that the kernel has not finished. At most one at a time; others wait in the queue. */
  #writing = false;
  /** The chunks of that write. */
  #underWay = NOTHING;
  #queue: Uint8Array[] = [];
  #queued = 0;
  #corked = 0;
  #wantsDrain = false;
  #writeError: Error | null = null;
  #ending = false;
  #shutdownUnderWay = false;
  #linger: NodeJS.Timeout | null = null;
  #flushed: (() => void) | null = null;
  /** Carries everything once TLS was started. */
  #over: StreamWire | null = null;
  #remote: Address | null = null;
  #local: Address | null = null;
  #bytesRead = 0;
  #bytesWritten = 0;

  /** @param handle connected, not reading, and nobody else's */
  constructor(handle: TcpHandle, marks: WireMarks & WireMemory = {}) {
    this.#handle = handle;
    this.#highWater = marks.highWater ?? DEFAULT_HIGH_WATER;
    this.#lowWater = marks.lowWater ?? DEFAULT_LOW_WATER;
    handle.owner = this;
    handle.onread = RawWire.#onread;
    this.#home = marks.memory ?? shared;
    handle.useUserBuffer(this.#home);
    handle.setNoDelay(true);
    handle.setKeepAlive(true, KEEPALIVE_SECONDS);
  }

  get paused(): boolean {
    return this.#paused;
  }
  get open(): boolean {
    return this.#over === null ? this.#open : this.#over.open;
  }
  get secure(): boolean {
    return this.#over?.secure === true;
  }
  get backlog(): number {
    if (this.#over !== null) return this.#over.backlog;
    return this.#queued + (this.#writing && !this.#closing ? this.#handle.writeQueueSize : 0);
  }
  get remoteAddress(): string {
    return (this.#remote ??= this.#name('getpeername')).address ?? '';
  }
  get remotePort(): number {
    return (this.#remote ??= this.#name('getpeername')).port ?? 0;
  }
  get localAddress(): string {
    return (this.#local ??= this.#name('getsockname')).address ?? '';
  }
  get localPort(): number {
    return (this.#local ??= this.#name('getsockname')).port ?? 0;
  }
  /** The descriptor of the socket; -1 once it was closed, and over TLS, which somebody else reads and writes. */
  get fd(): number {
    return this.#over === null && !this.#closing ? this.#handle.fd : -1;
  }
  /** Bytes that were put back by `unread` and wait to be delivered again; `bytesRead` does not count them. */
  get unreadBytes(): number {
    return this.#unread?.length ?? 0;
  }
  /** What was accepted by `write` and not yet given to the kernel: as much as `backlog` says. Not over TLS. */
  get unwritten(): Uint8Array {
    const waiting = Buffer.concat(this.#writing ? [...this.#underWay, ...this.#queue] : this.#queue);
    return waiting.subarray(waiting.length - this.backlog);
  }
  get bytesRead(): number {
    return this.#bytesRead + (this.#over?.bytesRead ?? 0);
  }
  get bytesWritten(): number {
    return this.#bytesWritten + (this.#over?.bytesWritten ?? 0);
  }

  write(chunk: Uint8Array): boolean {
    if (this.#over !== null) return this.#over.write(chunk);
    if (!this.#open || this.#writeError !== null) return true;
    const { length } = chunk;
    if (length === 0) return !this.#wantsDrain;
    this.#bytesWritten += length;
    if (this.#writing || this.#corked > 0) {
      this.#queue.push(chunk);
      this.#queued += length;
      return this.#under();
    }
    const request = (spare ??= new WriteRequest());
    const error = this.#handle.writeBuffer(request, chunk);
    if (error !== 0) {
      this.#writeFailed(error);
      return true;
    }
    if (state[ASYNC] === 0) return true;
    this.#goesOn(request, [chunk]);
    return this.#under();
  }

  cork(): void {
    if (this.#over !== null) this.#over.cork();
    else this.#corked++;
  }

  uncork(): void {
    if (this.#over !== null) {
      this.#over.uncork();
    } else if (this.#corked > 0 && --this.#corked === 0 && this.#queued > 0 && !this.#writing) {
      this.#flush();
      // Writes were told to wait while corked, and nothing that is under way would tell them to go on.
      if (this.#wantsDrain && !this.#writing) setImmediate(() => this.#drained());
    }
  }

  pause(): void {
    this.#paused = true;
    if (this.#over !== null) this.#over.pause();
    else if (this.#open) this.#handle.readStop();
  }

  resume(): void {
    if (this.#over !== null) {
      this.#paused = false;
      this.#over.resume();
      return;
    }
    if (!this.#open || !this.#paused) return;
    this.#paused = false;
    if (this.#unread === null) this.#handle.readStart();
    else if (!this.#delivering) {
      this.#delivering = true;
      setImmediate(RawWire.#deliver, this);
    }
  }

  unread(chunk: Uint8Array): void {
    if (!this.#paused) throw new Error('unread needs a paused wire');
    if (this.#over !== null) {
      this.#over.unread(chunk);
      return;
    }
    if (!this.#open || chunk.length === 0) return;
    this.#bytesRead -= chunk.length;
    this.#unread = this.#unread === null ? chunk : Buffer.concat([chunk, this.#unread]);
  }

  end(last?: Uint8Array): void {
    if (this.#over !== null) {
      this.#over.end(last);
      return;
    }
    if (!this.#open) return;
    if (last !== undefined) this.write(last);
    this.#open = false;
    this.#ending = true;
    this.#wantsDrain = false;
    this.#corked = 0;
    if (this.#writeError !== null) {
      this.#close();
      return;
    }
    this.#lingerOn();
    if (!this.#writing && this.#queued > 0) this.#flush();
    else if (!this.#writing) this.#shutdown();
    // Reading goes on: a close with unread input would be a RST, and could cost the peer the last bytes.
    if (!this.#closing) this.#handle.readStart();
  }

  destroy(): void {
    this.#open = false;
    if (this.#over !== null) this.#over.destroy();
    else this.#close();
  }

  reset(): void {
    this.#open = false;
    if (this.#over !== null) {
      this.#over.reset();
      return;
    }
    if (this.#closing) return;
    this.#leave();
    // libuv refuses a reset while a shutdown is under way, and Node does not close a handle whose reset was refused: it would
    // be there for ever. So that is an ordinary close.
    if (this.#shutdownUnderWay) this.#handle.close(this.#gone);
    else this.#handle.reset(this.#gone);
  }

  /**
   * Leaves the connection to somebody else: its descriptor is closed and nothing is flushed. The peer notices nothing if the
   * socket is in repair mode, or if somebody holds another descriptor of it. Not over TLS.
   * @returns what was accepted by `write` and not yet given to the kernel, and what was put back by `unread`
   */
  abandon(): { unwritten: Uint8Array; unread: Uint8Array } {
    if (this.fd < 0) throw new Error('abandon needs an open plain wire');
    const { unwritten } = this;
    const unread = this.#unread ?? new Uint8Array(0);
    this.#handle.readStop();
    this.beforeClose = null;
    this.#close();
    return { unwritten, unread };
  }

  async startTls(options: StartTls): Promise<TlsFacts> {
    if (!this.open) throw new CodedError('OUTLIVE_TLS_FAILED', 'network', 'the connection was closed before TLS began');
    if (!this.#paused || this.#over !== null) throw new Error('TLS needs a paused plain wire');
    const unread = this.#unread;
    if (unread !== null && options.direct !== true) {
      this.destroy();
      throw new ProtocolViolation('plaintext was sent ahead of the TLS handshake', options.peer);
    }
    this.#unread = null;
    this.#corked = 0;
    if (this.#queued > 0 && !this.#writing) this.#flush();
    if (this.#writing) {
      // The TLS engine must not see the end of a write that it did not begin.
      await new Promise<void>((resolve) => {
        this.#flushed = resolve;
      });
      if (!this.#open)
        throw new CodedError('OUTLIVE_TLS_FAILED', 'network', 'the connection was lost before TLS began');
    }
    // What TLS carries cannot be gone on with by anybody else, so its end need not be held back.
    this.beforeClose?.(this.#handle.fd);
    this.beforeClose = null;
    // TLS reads from the handle itself, unless its handshake is wrapped: then the handle, which reads into memory that it was given, has to
    // be given some whose owner tells what came.
    const onread: net.OnReadOpts = {
      buffer: new Uint8Array(READ_SIZE),
      callback: (length, memory) => socket.emit('data', Uint8Array.from(memory.subarray(0, length))),
    };
    const socket: net.Socket = new net.Socket({
      handle: this.#handle,
      pauseOnCreate: true,
      allowHalfOpen: true,
      ...(options.wrap === undefined ? {} : { onread }),
    } as net.SocketConstructorOpts);
    if (unread !== null) socket.unshift(unread);
    const over = new StreamWire(socket, { highWater: this.#highWater, lowWater: this.#lowWater });
    over.onData = (chunk) => this.onData(chunk);
    over.onDrain = () => this.onDrain();
    over.onClose = (error) => this.#report(error);
    this.#over = over;
    return await over.startTls(options);
  }

  /** Called by Node with the handle as `this`; what it returns is the buffer of the handle's next read. */
  static readonly #onread = function onread(this: TcpHandle): Uint8Array | undefined {
    const wire = this.owner as RawWire;
    const count = state[NREAD];
    try {
      if (count > 0) return wire.#received(count);
      if (count < 0) wire.#readEnded(count);
    } catch (error) {
      // The handle was not told where to read next, so it must not read again.
      wire.destroy();
      throw error;
    }
    return undefined;
  };

  #received(count: number): Uint8Array | undefined {
    // Nothing is kept of what arrives after end().
    if (!this.#open) return undefined;
    this.#bytesRead += count;
    const own = this.#buffer;
    if (own === null) {
      const chunk = keep(this.#home, count);
      // Much is on its way: from now on buffers are given away instead of copied.
      if (count === READ_SIZE && this.#home === shared)
        this.#buffer = new Uint8Array(Buffer.allocUnsafeSlow(READ_SIZE).buffer);
      this.onData(chunk);
      return this.#buffer ?? undefined;
    }
    if (count > COPY_MAX) {
      this.#smallReads = 0;
      this.#buffer = new Uint8Array(Buffer.allocUnsafeSlow(READ_SIZE).buffer);
      this.onData(new Uint8Array(own.buffer as ArrayBuffer, 0, count));
      return this.#buffer;
    }
    const chunk = keep(own, count);
    if (++this.#smallReads < SMALL_READS) {
      this.onData(chunk);
      return undefined;
    }
    this.#smallReads = 0;
    this.onData(chunk);
    // Given up only with the return that points the handle elsewhere: until then it holds the bare address of it.
    this.#buffer = null;
    return shared;
  }

  #readEnded(errno: number): void {
    this.#finish(this.#writeError ?? (errno === UV_EOF ? null : systemError(errno, 'read')));
  }

  static #deliver(wire: RawWire): void {
    wire.#delivering = false;
    const chunk = wire.#unread;
    if (!wire.#open || wire.#paused || chunk === null || wire.#over !== null) return;
    wire.#unread = null;
    wire.#bytesRead += chunk.length;
    // Before the owner sees the bytes, so that its pause() is the last word.
    wire.#handle.readStart();
    wire.onData(chunk);
  }

  /** False, and a promise of `onDrain`, when the backlog is above the high mark. */
  #under(): boolean {
    if (this.backlog <= this.#highWater) return true;
    this.#wantsDrain = true;
    return false;
  }

  /** A write was not finished within the call: the request is taken, and the memory must live until the end of it. */
  #goesOn(request: Request, held: readonly Uint8Array[]): void {
    spare = null;
    request.owner = this;
    request.held = held;
    this.#underWay = held;
    request.oncomplete = RawWire.#onwritten;
    this.#writing = true;
  }

  static readonly #onwritten = function onwritten(this: Request, status: number): void {
    const wire = this.owner as RawWire;
    this.held = undefined;
    wire.#written(status);
  };

  #written(status: number): void {
    this.#writing = false;
    this.#underWay = NOTHING;
    if (this.#closing) return;
    if (status !== 0) this.#writeFailed(status);
    else if (this.#queued > 0 && this.#corked === 0) this.#flush();
    else if (this.#ending) this.#shutdown();
    if (!this.#writing) {
      const flushed = this.#flushed;
      this.#flushed = null;
      flushed?.();
    }
    this.#drained();
  }

  #drained(): void {
    if (!this.#wantsDrain || !this.#open || this.#writeError !== null || this.backlog > this.#lowWater) return;
    this.#wantsDrain = false;
    this.onDrain();
  }

  /** Gives the whole queue to the kernel; no write is under way. */
  #flush(): void {
    const chunks = this.#queue;
    const total = this.#queued;
    this.#queue = [];
    this.#queued = 0;
    const request = (spare ??= new WriteRequest());
    let held = chunks;
    let error: number;
    if (chunks.length === 1) {
      error = this.#handle.writeBuffer(request, chunks[0]);
    } else if (total <= MERGE_MAX) {
      let at = 0;
      for (const chunk of chunks) {
        merged.set(chunk, at);
        at += chunk.length;
      }
      held = [merged.subarray(0, total)];
      error = this.#handle.writeBuffer(request, held[0]);
    } else {
      error = this.#handle.writev(request, chunks, true);
    }
    if (error !== 0) {
      this.#writeFailed(error);
    } else if (state[ASYNC] !== 0) {
      this.#goesOn(request, held);
      if (held !== chunks) merged = new Uint8Array(MERGE_MAX);
    } else if (this.#ending) {
      this.#shutdown();
    }
  }

  #writeFailed(errno: number): void {
    const error = systemError(errno, 'write');
    spare = null;
    this.#writeError = error;
    this.#queue = [];
    this.#queued = 0;
    if (this.#ending) this.#close();
    // Else what the peer had sent is read first; it ends with the end of the stream, or with the same error.
    else if (!FATAL_WRITE.has(error.code ?? '')) setImmediate(() => this.#finish(error));
  }

  #shutdown(): void {
    this.beforeClose?.(this.#handle.fd);
    const request = new ShutdownRequest();
    request.oncomplete = () => {
      this.#shutdownUnderWay = false;
    };
    // A failure means that the peer is gone; reading notices.
    this.#shutdownUnderWay = this.#handle.shutdown(request) === 0;
  }

  /** Waits for the peer's close; a peer that still takes what is left is given more time. */
  #lingerOn(): void {
    const before = this.backlog;
    this.#linger = setTimeout(() => {
      if (this.backlog < before) this.#lingerOn();
      else this.#close();
    }, LINGER_MS);
    this.#linger.unref();
  }

  /** The connection is over by itself; only called from the event loop. */
  #finish(error: Error | null): void {
    if (this.#closing) return;
    const wasOpen = this.#open;
    this.#open = false;
    this.#leave();
    this.#handle.close();
    this.#report(wasOpen ? error : null);
  }

  /** The owner wants it over. */
  #close(): void {
    if (this.#closing) return;
    this.#open = false;
    this.#leave();
    this.#handle.close(this.#gone);
  }

  #leave(): void {
    this.beforeClose?.(this.#handle.fd);
    this.#closing = true;
    this.#paused = true;
    this.#wantsDrain = false;
    this.#queue = [];
    this.#queued = 0;
    this.#unread = null;
    if (this.#linger !== null) clearTimeout(this.#linger);
    this.#linger = null;
    const flushed = this.#flushed;
    this.#flushed = null;
    flushed?.();
  }

  readonly #gone = (): void => this.#report(null);

  #report(error: Error | null): void {
    if (this.#reported) return;
    this.#reported = true;
    this.#open = false;
    this.onClose(error);
  }

  #name(how: 'getpeername' | 'getsockname'): Address {
    const out: Address = {};
    if (this.#over !== null) {
      const { remoteAddress, remotePort, localAddress, localPort } = this.#over;
      return how === 'getpeername'
        ? { address: remoteAddress, port: remotePort }
        : { address: localAddress, port: localPort };
    }
    if (!this.#closing) this.#handle[how](out);
    return out;
  }
}
