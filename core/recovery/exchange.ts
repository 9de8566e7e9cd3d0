import { CodedError, type Exchange, ProtocolViolation, type Reply, type Want } from '../contract/index.js';

/** Longest frame that an exchange accepts unless told otherwise. */
export const DEFAULT_MAX_FRAME = 1024 * 1024;

/** What only the outside world can give. Everything else the stepper serves itself. */
export type OutsideWant = Extract<Want, { want: 'tls' | 'random' | 'pbkdf2' | 'credentials' }>;

/**
 * Where an exchange stands. `send` is to be written first, in order.
 * - `bytes`: it needs more input (`push`)
 * - `want`: it waits for the outside (`reply`, or `fail` when it cannot be had)
 * - `done`: it returned; `rest` is the input that it did not use
 * - `failed`: it threw, or the peer broke the protocol
 */
export type Step<R> = { readonly send: readonly Uint8Array[] } & (
  | { readonly state: 'bytes' }
  | { readonly state: 'want'; readonly want: OutsideWant }
  | { readonly state: 'done'; readonly result: R; readonly rest: Uint8Array }
  | { readonly state: 'failed'; readonly error: unknown }
);

export interface StepperOptions {
  /** The codec's `frameLength`. */
  readonly frameLength: (bytes: Uint8Array, start: number, end: number) => number;
  /** Who is at the other end: whose fault a breach of the protocol is. */
  readonly peer: 'client' | 'server';
  /** Longest frame (and longest run of raw bytes) in bytes. */
  readonly maxFrame?: number;
}

const EMPTY = new Uint8Array(0);

type Turn<R> = () => IteratorResult<Want, R>;

/**
 * Drives one {@link Exchange} without doing any I/O: bytes and replies in, {@link Step}s out. What is wrong with the input
 * (a breach of the framing, a frame too large, plaintext ahead of TLS) is thrown into the exchange, which may still send a
 * refusal and return; it gets nothing more to read.
 */
export class ExchangeStepper<R> {
  readonly #exchange: Exchange<R>;
  readonly #options: StepperOptions;
  readonly #maxFrame: number;
  #input: Uint8Array = EMPTY;
  #start = 0;
  #end = 0;
  /** True when `#input` is ours, with room behind `#end` that nobody else sees. */
  #own = false;
  #want: Want | null = null;
  #send: Uint8Array[] = [];
  /** What was wrong with the input, once something was. */
  #broken: unknown = null;
  #over = false;
  #started = false;

  constructor(exchange: Exchange<R>, options: StepperOptions) {
    this.#exchange = exchange;
    this.#options = options;
    this.#maxFrame = options.maxFrame ?? DEFAULT_MAX_FRAME;
  }

  /** Runs the exchange up to its first stop. */
  start(): Step<R> {
    if (this.#started) throw new Error('the exchange has started already');
    this.#started = true;
    return this.#run(() => this.#exchange.next());
  }

  /** Input from the peer. It is kept by reference, so it must not be changed afterwards. */
  push(bytes: Uint8Array): Step<R> {
    this.#running();
    this.#append(bytes);
    return this.#run(null);
  }

  /** The answer to the want that the last step named. */
  reply(value: Reply): Step<R> {
    this.#running();
    return this.#run(() => this.#exchange.next(value));
  }

  /** The want that the last step named cannot be had; the exchange learns why. */
  fail(error: unknown): Step<R> {
    this.#running();
    return this.#run(() => this.#exchange.throw(error));
  }

  /** Gives the exchange up; its `finally` blocks run, what they want is not served. */
  abort(): void {
    if (this.#over) return;
    this.#over = true;
    this.#close();
  }

  #running(): void {
    if (!this.#started || this.#over) throw new Error('the exchange is not running');
  }

  #close(): void {
    try {
      // A `finally` block that wants something stops the first return; the next one goes on behind that want.
      for (let tries = 0; tries < 16; tries++) {
        if (this.#exchange.return(undefined as R).done === true) return;
      }
    } catch {
      // The exchange is given up already; what its clean-up throws concerns nobody.
    }
  }

  /** Runs the exchange (`go` is its next turn) and serves its wants from the input until one cannot be served. */
  #run(go: Turn<R> | null): Step<R> {
    for (let turn = go; ; ) {
      if (turn !== null) {
        let answer: IteratorResult<Want, R>;
        try {
          answer = turn();
        } catch (error) {
          return this.#failed(error);
        }
        if (answer.done === true) {
          this.#over = true;
          const rest = this.#input.subarray(this.#start, this.#end);
          return { state: 'done', send: this.#flush(), result: answer.value, rest };
        }
        this.#want = answer.value;
        if ('send' in answer.value && answer.value.send !== undefined && answer.value.send.length > 0) {
          this.#send.push(answer.value.send);
        }
      }
      const want = this.#want!;
      if (this.#broken !== null && want.want !== 'nothing') {
        // After a breach the exchange may only take its leave.
        this.#close();
        return this.#failed(this.#broken);
      }
      try {
        const value = this.#serve(want);
        if (value === null) return { state: 'bytes', send: this.#flush() };
        if (value instanceof Uint8Array || want.want === 'nothing') {
          turn = () => this.#exchange.next(value as Uint8Array | undefined);
          continue;
        }
        return { state: 'want', send: this.#flush(), want: want as OutsideWant };
      } catch (error) {
        this.#broken = error;
        this.#drop();
        turn = () => this.#exchange.throw(error);
      }
    }
  }

  /** The bytes for a want, null while they are not there, undefined when it is not about bytes. Throws when the input is wrong. */
  #serve(want: Want): Uint8Array | null | undefined {
    const there = this.#end - this.#start;
    switch (want.want) {
      case 'bytes':
        if (want.count > this.#maxFrame) throw this.#tooLarge(want.count);
        return there < want.count ? null : this.#take(want.count);
      case 'frame': {
        const length = this.#frameLength();
        return length === 0 ? null : this.#take(length);
      }
      case 'tls':
        if (there === 0) return undefined;
        throw new ProtocolViolation('plaintext was sent ahead of the TLS handshake', this.#options.peer);
      default:
        return undefined;
    }
  }

  #failed(error: unknown): Step<R> {
    this.#over = true;
    return { state: 'failed', send: this.#flush(), error };
  }

  #flush(): Uint8Array[] {
    const send = this.#send;
    this.#send = [];
    return send;
  }

  /** Length of the frame at the front when all of it is there, else 0. */
  #frameLength(): number {
    const there = this.#end - this.#start;
    if (there === 0) return 0;
    const length = this.#options.frameLength(this.#input, this.#start, this.#end);
    if (length > this.#maxFrame || (length === 0 && there >= this.#maxFrame)) throw this.#tooLarge(length || there);
    if (!(length >= 0)) throw new CodedError('OUTLIVE_CODEC_BROKEN', 'codec', 'frameLength answered with no length');
    return length <= there ? length : 0;
  }

  #tooLarge(length: number): CodedError {
    return new CodedError(
      'OUTLIVE_FRAME_TOO_LARGE',
      this.#options.peer,
      `a message of ${length} bytes came during the start of a connection; at most ${this.#maxFrame} are accepted there`,
    );
  }

  #take(count: number): Uint8Array {
    const taken = this.#input.subarray(this.#start, this.#start + count);
    this.#start += count;
    return taken;
  }

  #drop(): void {
    this.#input = EMPTY;
    this.#start = this.#end = 0;
    this.#own = false;
  }

  #append(bytes: Uint8Array): void {
    if (bytes.length === 0) return;
    const held = this.#end - this.#start;
    if (held === 0) {
      this.#input = bytes;
      this.#start = 0;
      this.#end = bytes.length;
      this.#own = false;
      return;
    }
    if (!this.#own || this.#end + bytes.length > this.#input.length) {
      // Bytes that were taken live on as views of the old array, so nothing in it is ever moved or overwritten.
      const roomy = new Uint8Array(Math.max(256, 2 * (held + bytes.length)));
      roomy.set(this.#input.subarray(this.#start, this.#end));
      this.#input = roomy;
      this.#start = 0;
      this.#end = held;
      this.#own = true;
    }
    this.#input.set(bytes, this.#end);
    this.#end += bytes.length;
  }
}
