import type * as net from 'node:net';
import { Duplex } from 'node:stream';
import type { HandshakeWrap } from '../contract/index.js';

/**
 * A socket under TLS whose handshake travels wrapped into something, and all else as it is. What is written in one turn of the event loop
 * is one flight.
 */
export class WrappedHandshake extends Duplex {
  readonly #socket: net.Socket;
  readonly #wrap: HandshakeWrap;
  #flight: Uint8Array[] = [];
  /** The handshake is over: nothing is wrapped any more. */
  #over = false;

  constructor(socket: net.Socket, wrap: HandshakeWrap) {
    super({ allowHalfOpen: true });
    this.#socket = socket;
    this.#wrap = wrap;
    socket.on('data', this.#data);
    socket.on('end', this.#ended);
    socket.on('error', this.#failed);
    socket.on('close', this.#closed);
  }

  /** To be called when TLS is established. */
  established(): void {
    this.#flush();
    this.#over = true;
  }

  readonly #data = (chunk: Uint8Array): void => {
    let records: Uint8Array;
    try {
      records = this.#over ? chunk : this.#wrap.unwrap(chunk);
    } catch (error) {
      this.destroy(error as Error);
      return;
    }
    if (records.length > 0 && !this.push(records)) this.#socket.pause();
  };
  readonly #ended = (): void => {
    this.push(null);
  };
  readonly #failed = (error: Error): void => {
    this.destroy(error);
  };
  readonly #closed = (): void => {
    this.destroy();
  };

  override _read(): void {
    this.#socket.resume();
  }

  override _write(chunk: Uint8Array, _: BufferEncoding, done: (error?: Error | null) => void): void {
    // By its first byte it could not be told: the TLS engine writes pieces that begin anywhere in a record.
    if (this.#over) {
      this.#socket.write(chunk, () => done());
      return;
    }
    if (this.#flight.length === 0) setImmediate(() => this.#flush());
    this.#flight.push(Uint8Array.from(chunk));
    done();
  }

  #flush(): void {
    if (this.#flight.length === 0) return;
    const flight = Buffer.concat(this.#flight);
    this.#flight = [];
    if (!this.#socket.destroyed) this.#socket.write(this.#wrap.wrap(flight));
  }

  override _final(done: () => void): void {
    this.#flush();
    this.#socket.end();
    done();
  }

  override _destroy(error: Error | null, done: (error: Error | null) => void): void {
    this.#socket.destroy();
    done(error);
  }
}
