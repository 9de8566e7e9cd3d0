import { pbkdf2, randomBytes } from 'node:crypto';
import { CodedError, type Exchange, type Reply, type Secret } from '../contract/index.js';
import { ExchangeStepper, type OutsideWant, type Step } from '../recovery/exchange.js';
import type { StartTls } from './tls.js';
import { ignore, type Wire } from './wire.js';

/** Rounds of key derivation that a peer may ask for; more would let it keep a thread busy for seconds. */
export const MAX_PBKDF2_ITERATIONS = 2_000_000;

export interface RunOptions {
  /** The codec's `frameLength`. */
  readonly frameLength: (bytes: Uint8Array, start: number, end: number) => number;
  /** Who is at the other end of the wire. */
  readonly peer: 'client' | 'server';
  /** Bytes that were already read, before anything that the wire brings. */
  readonly head?: Uint8Array;
  /** Answers `credentials` wants; without it every user is unknown. */
  readonly credentials?: (user: string, database: string) => Promise<Secret | null>;
  /** Answers `tls` wants (`alpn` comes from the want); without it TLS is refused to the exchange. */
  readonly tls?: StartTls;
  /** The whole exchange must end within this time. */
  readonly deadlineMs: number;
  readonly signal?: AbortSignal;
  /** Longest frame. */
  readonly maxFrame?: number;
}

export interface ExchangeEnd<R> {
  readonly result: R;
  /** Input that came after what the exchange used. */
  readonly rest: Uint8Array;
}

/**
 * Runs an exchange on a paused wire and takes the wire's handlers over meanwhile. Afterwards, however it ended, the wire is
 * paused and has no handlers; it is never closed here. Look at `wire.open` before setting handlers again.
 *
 * Rejects with what the exchange threw, and with OUTLIVE_EXCHANGE_CLOSED (the wire ended), OUTLIVE_EXCHANGE_TIMEOUT
 * or OUTLIVE_EXCHANGE_ABORTED (the signal); then the `finally` blocks of the exchange have run.
 */
export function runExchange<R>(wire: Wire, exchange: Exchange<R>, options: RunOptions): Promise<ExchangeEnd<R>> {
  return new Promise((resolve, reject) => {
    const { peer, signal } = options;
    const stepper = new ExchangeStepper(exchange, options);
    let over = false;
    /** A handshake tells of its failure itself, and better than the close that follows. */
    let handshaking = false;

    const leave = (): void => {
      over = true;
      clearTimeout(timer);
      signal?.removeEventListener('abort', aborted);
      if (wire.open) wire.pause();
      wire.onData = wire.onDrain = ignore;
      wire.onClose = ignore;
    };
    const giveUp = (error: CodedError): void => {
      if (over) return;
      leave();
      stepper.abort();
      reject(error);
    };
    const closed = (cause: Error | null): void => {
      if (handshaking) return;
      giveUp(
        new CodedError(
          'OUTLIVE_EXCHANGE_CLOSED',
          peer,
          `the ${peer} closed the connection in the middle of a dialogue${cause === null ? '' : `: ${cause.message}`}`,
          { cause },
        ),
      );
    };
    const aborted = (): void => {
      const message = 'the dialogue was given up because the gateway no longer needs it';
      giveUp(new CodedError('OUTLIVE_EXCHANGE_ABORTED', 'gateway', message, { cause: signal?.reason }));
    };
    const timer = setTimeout(() => {
      const message = `the ${peer} did not finish its dialogue within ${options.deadlineMs} ms`;
      giveUp(new CodedError('OUTLIVE_EXCHANGE_TIMEOUT', peer, message));
    }, options.deadlineMs);

    const take = (step: Step<R>): void => {
      for (let now: Step<R> | null = step; now !== null; ) {
        const current: Step<R> = now;
        now = null;
        if (current.send.length > 1) wire.cork();
        for (const bytes of current.send) wire.write(bytes);
        if (current.send.length > 1) wire.uncork();
        if (current.state === 'bytes') {
          wire.resume();
        } else if (current.state === 'want') {
          wire.pause();
          if (current.want.want === 'random') now = stepper.reply(randomBytes(current.want.count));
          else void outside(current.want);
        } else {
          leave();
          if (current.state === 'done') resolve({ result: current.result, rest: current.rest });
          else reject(current.error);
        }
      }
    };
    const outside = async (want: OutsideWant): Promise<void> => {
      let step: () => Step<R>;
      handshaking = want.want === 'tls';
      try {
        const value = await answer(wire, want, options);
        step = () => stepper.reply(value);
      } catch (error) {
        step = () => stepper.fail(error);
      }
      handshaking = false;
      if (!over) take(step());
    };

    wire.onData = (chunk) => take(stepper.push(chunk));
    wire.onDrain = ignore;
    wire.onClose = closed;
    if (!wire.open) {
      closed(null);
      return;
    }
    if (signal?.aborted === true) {
      aborted();
      return;
    }
    signal?.addEventListener('abort', aborted);
    const first = stepper.start();
    const { head } = options;
    if (head !== undefined && head.length > 0) wire.unread(head);
    take(first);
  });
}

async function answer(wire: Wire, want: OutsideWant, options: RunOptions): Promise<Reply> {
  switch (want.want) {
    case 'random':
      return randomBytes(want.count);
    case 'credentials':
      return options.credentials === undefined ? null : await options.credentials(want.user, want.database);
    case 'pbkdf2':
      return await derive(want.password, want.salt, want.iterations, options.peer);
    case 'tls':
      if (options.tls === undefined) {
        throw new CodedError('OUTLIVE_TLS_CONFIG', 'config', 'TLS was asked for, and none is configured here');
      }
      return await wire.startTls({
        ...options.tls,
        alpn: want.alpn ?? options.tls.alpn,
        wrap: want.handshake,
        peer: options.peer,
      });
  }
}

function derive(
  password: Uint8Array,
  salt: Uint8Array,
  iterations: number,
  peer: 'client' | 'server',
): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    if (!(iterations >= 1 && iterations <= MAX_PBKDF2_ITERATIONS)) {
      const message = `${iterations} rounds of key derivation were asked for; at most ${MAX_PBKDF2_ITERATIONS} are done`;
      reject(new CodedError('OUTLIVE_KDF_ITERATIONS', peer, message));
      return;
    }
    pbkdf2(password, salt, iterations, 32, 'sha256', (error, key) => (error ? reject(error) : resolve(key)));
  });
}
