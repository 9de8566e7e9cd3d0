import { connect, type Socket } from 'node:net';
import { errorFields, FrameReader, firstColumn, startupFrame, TYPE, terminateFrame } from './frames.js';

/** Where and as whom to log in; the server or gateway has to trust this user. */
export interface LoginOptions {
  readonly host: string;
  readonly port: number;
  readonly user: string;
  readonly database: string;
}

/** An error that the server reported, or `lost` for a connection that ended. */
export interface Refusal {
  /** The SQLSTATE, or 'lost'. */
  readonly code: string;
  readonly message: string;
}

/** What one answer up to ReadyForQuery held. */
export interface Answer {
  /** The first column of the last row; undefined without rows. */
  readonly value: string | null | undefined;
  readonly refusal: Refusal | undefined;
}

/**
 * All sessions of a process read into one buffer: a read and the handling of what it brought happen in one go, so no
 * session ever finds another one's bytes. Thousands of idle sessions then cost next to nothing here.
 */
const shared = Buffer.alloc(64 * 1024);

/** One connection that sends encoded requests and waits for the ready point after each. */
export class LoadSession {
  /** Called at each ready point after the login, instead of resolving `run`; for loops that must not allocate. */
  onReady: ((session: LoadSession) => void) | undefined;
  /** Called once when the connection has ended without being asked to. */
  onLost: ((session: LoadSession, refusal: Refusal) => void) | undefined;
  /** The error in the answer that is being read or was read last. */
  refusal: Refusal | undefined;
  readonly #socket: Socket;
  readonly #options: LoginOptions;
  #value: string | null | undefined;
  #waiting: { resolve(answer: Answer): void; reject(error: Error): void } | undefined;
  #open = true;

  /** Use {@link LoadSession.open}. */
  constructor(options: LoginOptions, wanted: readonly number[]) {
    this.#options = options;
    const reader = new FrameReader(wanted, (type, bytes, start, end) => this.#frame(type, bytes, start, end));
    this.#socket = connect({
      host: options.host,
      port: options.port,
      noDelay: true,
      onread: {
        buffer: shared,
        callback: (length) => {
          reader.push(shared, length);
          return true;
        },
      },
    });
    let reason = 'the connection was closed';
    this.#socket.on('error', (error) => {
      reason = error.message;
    });
    this.#socket.on('close', () => this.#lost(reason));
    // Without a listener the end of the stream would go unnoticed while nothing is written.
    this.#socket.on('end', () => this.#socket.destroy());
  }

  /**
   * Opens a connection and logs in.
   * @param rows whether the values of rows are wanted; stepping over them is cheaper
   */
  static async open(options: LoginOptions, rows = true): Promise<LoadSession> {
    const wanted: number[] = [TYPE.authentication, TYPE.error, TYPE.ready];
    if (rows) wanted.push(TYPE.dataRow);
    const session = new LoadSession(options, wanted);
    const { refusal } = await session.run(startupFrame(options.user, options.database));
    if (refusal) {
      session.destroy();
      throw new Error(`login at ${options.host}:${options.port} failed: ${refusal.code} ${refusal.message}`);
    }
    return session;
  }

  /** Whether the connection is usable. */
  get open(): boolean {
    return this.#open;
  }

  /** Sends encoded requests that end in one ready point and resolves with what came. Errors are answers, too. */
  run(bytes: Buffer): Promise<Answer> {
    return new Promise((resolve, reject) => {
      if (!this.#open) {
        reject(new Error(this.refusal?.message ?? 'the connection is closed'));
        return;
      }
      this.#waiting = { resolve, reject };
      this.send(bytes);
    });
  }

  /** Sends encoded requests; `onReady` is called at their ready point. The bytes must stay as they are until then. */
  send(bytes: Buffer): void {
    this.refusal = undefined;
    this.#value = undefined;
    this.#socket.write(bytes);
  }

  /** Ends the session politely. */
  end(): void {
    this.#open = false;
    this.#socket.end(terminateFrame());
  }

  /** Ends the connection at once. */
  destroy(): void {
    this.#open = false;
    this.#socket.destroy();
  }

  #frame(type: number, bytes: Buffer, start: number, end: number): void {
    switch (type) {
      case TYPE.ready: {
        const waiting = this.#waiting;
        if (waiting === undefined) {
          this.onReady?.(this);
          return;
        }
        this.#waiting = undefined;
        waiting.resolve({ value: this.#value, refusal: this.refusal });
        return;
      }
      case TYPE.dataRow:
        this.#value = firstColumn(bytes, start, end);
        return;
      case TYPE.error: {
        const fields = errorFields(bytes, start, end);
        this.refusal = { code: fields.get('C') ?? '?', message: fields.get('M') ?? '' };
        return;
      }
      default:
        if (bytes.readInt32BE(start) === 0) return;
        this.refusal = { code: 'lost', message: `${this.#options.host}:${this.#options.port} asks for a password` };
        this.#socket.destroy();
    }
  }

  #lost(reason: string): void {
    const wasOpen = this.#open;
    this.#open = false;
    // What the server said last tells more than the end of the connection.
    this.refusal ??= { code: 'lost', message: reason };
    const waiting = this.#waiting;
    this.#waiting = undefined;
    waiting?.reject(new Error(`${this.refusal.code} ${this.refusal.message}`));
    if (wasOpen) this.onLost?.(this, this.refusal);
  }
}

/** Opens many sessions, a few at a time: a storm of logins is not what any scenario measures here. */
export async function openMany(
  count: number,
  open: (index: number) => Promise<LoadSession>,
  atATime = 16,
): Promise<LoadSession[]> {
  const sessions: LoadSession[] = new Array(count);
  let next = 0;
  const worker = async () => {
    while (next < count) {
      const index = next++;
      sessions[index] = await open(index);
    }
  };
  await Promise.all(Array.from({ length: Math.min(atATime, count) }, worker));
  return sessions;
}
