import { once } from 'node:events';
import { connect, type Socket } from 'node:net';
import { crc32 } from 'node:zlib';
import { message, startupPacket } from './gateway.js';

/** What one bulk transfer brought. */
export interface BulkResult {
  /** Bytes heard, frames and all. */
  readonly bytes: number;
  /** CRC-32 of them. */
  readonly crc: number;
  /** The tag of the last CommandComplete, e.g. `COPY 1000`. */
  readonly tag: string;
  /** The status that ReadyForQuery told: I, T or E. */
  readonly status: string;
  readonly seconds: number;
}

/** Enough for the last messages of an answer, an error among them. */
const TAIL = 1024;
const READY_AT_END = Buffer.from('Z\0\0\0\x05', 'latin1');
const READY_LENGTH = READY_AT_END.length + 1;

/** A client that is made for volume: of what it hears it looks at the end only, and hashes the rest. */
export class BulkClient {
  private bytes = 0;
  private crc = 0;
  private tail: Buffer = Buffer.alloc(0);
  private wake: () => void = () => {};
  private closed = false;
  /** When the present transfer began. */
  private since = 0;
  /** Called with each chunk's length; false stops reading until {@link resume}. */
  onChunk: (length: number) => boolean = () => true;

  private constructor(readonly socket: Socket) {}

  /** Logs in (trust only). */
  static async login(to: { readonly port: number }): Promise<BulkClient> {
    let heard: (chunk: Buffer) => boolean = () => true;
    const socket = connect({
      host: '127.0.0.1',
      port: to.port,
      noDelay: true,
      // One buffer for ever: this process is not what is measured.
      onread: {
        buffer: Buffer.alloc(256 * 1024),
        callback: (count, buffer) => heard((buffer as Buffer).subarray(0, count)),
      },
    });
    const client = new BulkClient(socket);
    heard = (chunk) => client.heard(chunk);
    socket.on('error', () => {});
    socket.on('close', () => {
      client.closed = true;
      client.wake();
    });
    await once(socket, 'connect');
    socket.write(startupPacket({ user: 'postgres', database: 'postgres' }));
    await client.answered();
    return client;
  }

  /** Bytes heard in the present transfer. */
  get received(): number {
    return this.bytes;
  }

  private heard(chunk: Buffer): boolean {
    this.bytes += chunk.length;
    this.crc = crc32(chunk, this.crc);
    const all = chunk.length >= TAIL ? chunk : Buffer.concat([this.tail, chunk]);
    this.tail = Buffer.from(all.subarray(-TAIL));
    this.wake();
    return this.onChunk(chunk.length);
  }

  private async when(condition: () => boolean): Promise<void> {
    while (!condition()) {
      if (this.closed) throw new Error(`the connection was closed; last heard: ${this.lastWords()}`);
      await new Promise<void>((resolve) => {
        this.wake = resolve;
      });
    }
  }

  private lastWords(): string {
    return this.tail.toString('latin1').replace(/[^ -~]+/g, ' ');
  }

  private async answered(): Promise<void> {
    await this.when(() => READY_AT_END.equals(this.tail.subarray(-READY_LENGTH, -1)));
  }

  /** Sends a statement; its answer is awaited with {@link finish}. */
  begin(sql: string): void {
    this.bytes = 0;
    this.crc = 0;
    this.tail = Buffer.alloc(0);
    this.since = performance.now();
    this.socket.write(message('Q', `${sql}\0`));
  }

  /** The end of the present transfer. Throws when the statement failed. */
  async finish(): Promise<BulkResult> {
    await this.answered();
    const { tail } = this;
    const ready = tail.length - READY_LENGTH;
    const complete = tail.lastIndexOf('C\0\0', ready - 1, 'latin1');
    if (complete < 0 || complete + 1 + tail.readInt32BE(complete + 1) !== ready)
      throw new Error(`the statement failed: ${this.lastWords()}`);
    const tag = tail.toString('latin1', complete + 5, ready - 1);
    const status = tail.toString('latin1', tail.length - 1);
    const seconds = (performance.now() - this.since) / 1000;
    return { bytes: this.bytes, crc: this.crc, tag, status, seconds };
  }

  /** Runs a statement and takes all of its answer in. */
  async run(sql: string): Promise<BulkResult> {
    this.begin(sql);
    return await this.finish();
  }

  /**
   * Runs a COPY FROM STDIN with the same piece (whole CopyData messages) again and again.
   * @param onSent told how many bytes the socket has taken so far
   */
  async copyIn(sql: string, piece: Uint8Array, times: number, onSent?: (bytes: number) => void): Promise<BulkResult> {
    this.begin(sql);
    await this.when(() => this.bytes > 0);
    const { socket } = this;
    const woken = (): void => this.wake();
    socket.on('drain', woken);
    for (let i = 0; i < times; i++) {
      socket.write(piece);
      await this.when(() => !socket.writableNeedDrain);
      onSent?.((i + 1) * piece.length);
    }
    socket.off('drain', woken);
    socket.write(message('c'));
    return await this.finish();
  }

  /** Goes on reading after {@link onChunk} said stop. */
  resume(): void {
    this.socket.resume();
  }

  destroy(): void {
    this.socket.destroy();
  }
}
