import type * as net from 'node:net';
import { CodedError, ProtocolViolation, type TlsFacts } from '../contract/index.js';
import { handshake, type StartTls } from './tls.js';
import { DEFAULT_HIGH_WATER, DEFAULT_LOW_WATER, ignore, LINGER_MS, type Wire, type WireMarks } from './wire.js';

/**
 * A wire over the public API of `net.Socket` and `tls.TLSSocket`. It is what carries TLS, and what carries everything where
 * the internals that `RawWire` needs are not there.
 *
 * One thing it cannot do: when a write fails, the socket is torn down by Node at once, with what the peer had sent before.
 */
export class StreamWire implements Wire {
  onData: (chunk: Uint8Array) => void = ignore;
  onClose: (error: Error | null) => void = ignore;
  onDrain: () => void = ignore;

  readonly #highWater: number;
  readonly #lowWater: number;
  readonly #plain: net.Socket;
  /** The plain socket, or the TLS socket over it. */
  #socket: net.Socket;
  #paused = true;
  #open = true;
  /** `onClose` was called. */
  #reported = false;
  #error: Error | null = null;
  #wantsDrain = false;
  #secure = false;
  #handshaking = false;
  #bytesRead = 0;
  #bytesWritten = 0;

  /** @param socket connected, made with `allowHalfOpen` and not yet flowing */
  constructor(socket: net.Socket, marks: WireMarks = {}) {
    this.#plain = this.#socket = socket;
    this.#highWater = marks.highWater ?? DEFAULT_HIGH_WATER;
    this.#lowWater = marks.lowWater ?? DEFAULT_LOW_WATER;
    this.#attach();
  }

  get paused(): boolean {
    return this.#paused;
  }
  get open(): boolean {
    return this.#open;
  }
  get secure(): boolean {
    return this.#secure;
  }
  get backlog(): number {
    return this.#socket.writableLength;
  }
  get remoteAddress(): string {
    return this.#plain.remoteAddress ?? '';
  }
  get remotePort(): number {
    return this.#plain.remotePort ?? 0;
  }
  get localAddress(): string {
    return this.#plain.localAddress ?? '';
  }
  get localPort(): number {
    return this.#plain.localPort ?? 0;
  }
  get bytesRead(): number {
    return this.#bytesRead;
  }
  get bytesWritten(): number {
    return this.#bytesWritten;
  }

  write(chunk: Uint8Array): boolean {
    if (!this.#open || this.#handshaking) return true;
    if (chunk.length === 0) return !this.#wantsDrain;
    this.#bytesWritten += chunk.length;
    const under = this.#socket.write(chunk);
    // Node calls back with 'drain' only when its own mark was passed, so that is part of the condition.
    if (under || this.#socket.writableLength <= this.#highWater) return true;
    this.#wantsDrain = true;
    return false;
  }

  cork(): void {
    this.#socket.cork();
  }

  uncork(): void {
    this.#socket.uncork();
  }

  pause(): void {
    this.#paused = true;
    this.#socket.pause();
  }

  resume(): void {
    if (!this.#open || !this.#paused) return;
    this.#paused = false;
    if (!this.#handshaking) this.#socket.resume();
  }

  unread(chunk: Uint8Array): void {
    if (!this.#paused) throw new Error('unread needs a paused wire');
    if (!this.#open || chunk.length === 0) return;
    this.#bytesRead -= chunk.length;
    this.#socket.unshift(chunk);
  }

  end(last?: Uint8Array): void {
    if (!this.#open) return;
    if (this.#handshaking) {
      this.destroy();
      return;
    }
    if (last !== undefined) this.write(last);
    this.#open = false;
    this.#wantsDrain = false;
    const socket = this.#socket;
    // Reading goes on: a close with unread input would be a RST, and could cost the peer the last bytes.
    socket.end();
    socket.resume();
    this.#lingerOn(socket);
  }

  /** Waits for the peer's close; a peer that still takes what is left is given more time. */
  #lingerOn(socket: net.Socket): void {
    const before = socket.writableLength;
    const timer = setTimeout(() => {
      socket.off('close', gone);
      if (!socket.destroyed && socket.writableLength < before) this.#lingerOn(socket);
      else socket.destroy();
    }, LINGER_MS);
    timer.unref();
    const gone = (): void => clearTimeout(timer);
    socket.once('close', gone);
  }

  destroy(): void {
    this.#open = false;
    this.#wantsDrain = false;
    this.#socket.destroy();
  }

  reset(): void {
    this.#open = false;
    this.#wantsDrain = false;
    // A TLS socket cannot be reset, and resetting the one beneath it brings the process down. It is cut off instead,
    // without TLS's own good-bye, which tells the peer the same.
    // Nor can one whose shutdown is under way: libuv refuses, and Node would never close it.
    const { writableEnded, writableFinished, writableLength } = this.#plain;
    const shutdownUnderWay = writableEnded && !writableFinished && writableLength === 0;
    if (this.#socket !== this.#plain || shutdownUnderWay) this.#socket.destroy();
    else if (!this.#socket.destroyed) this.#socket.resetAndDestroy();
  }

  async startTls(options: StartTls): Promise<TlsFacts> {
    if (!this.#open)
      throw new CodedError('OUTLIVE_TLS_FAILED', 'network', 'the connection was closed before TLS began');
    if (!this.#paused || this.#secure || this.#handshaking) throw new Error('TLS needs a paused plain wire');
    const plain = this.#plain;
    if (plain.readableLength > 0 && options.direct !== true) {
      this.destroy();
      throw new ProtocolViolation('plaintext was sent ahead of the TLS handshake', options.peer);
    }
    this.#detach();
    this.#handshaking = true;
    try {
      const done = await handshake(plain, options, (socket) => {
        this.#socket = socket;
        this.#attach();
      });
      this.#secure = true;
      return done;
    } catch (error) {
      this.destroy();
      throw error;
    } finally {
      this.#handshaking = false;
      if (!this.#paused && this.#open) this.#socket.resume();
    }
  }

  readonly #data = (chunk: Uint8Array): void => {
    if (!this.#open) return;
    this.#bytesRead += chunk.length;
    this.onData(chunk);
  };

  readonly #ended = (): void => {
    this.#socket.destroy();
  };

  readonly #failed = (error: Error): void => {
    if (this.#open) this.#error = error;
  };

  readonly #drained = (): void => {
    if (!this.#wantsDrain || this.#socket.writableLength > this.#lowWater) return;
    this.#wantsDrain = false;
    this.onDrain();
  };

  readonly #closed = (): void => {
    if (this.#reported) return;
    this.#reported = true;
    this.#open = false;
    this.onClose(this.#error);
  };

  #attach(): void {
    const socket = this.#socket;
    // An explicit pause first, or the 'data' listener would start the flow.
    socket.pause();
    socket.on('data', this.#data);
    socket.on('end', this.#ended);
    socket.on('error', this.#failed);
    socket.on('drain', this.#drained);
    socket.on('close', this.#closed);
  }

  #detach(): void {
    const socket = this.#socket;
    socket.off('data', this.#data);
    socket.off('end', this.#ended);
    socket.off('error', this.#failed);
    socket.off('drain', this.#drained);
    socket.off('close', this.#closed);
  }
}
