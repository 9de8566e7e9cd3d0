import { type Codec, CodedError, type Exchange, type Identity } from '../../contract/index.js';
import type { Wire } from '../../io/index.js';
import type { ServerConfig } from '../config/index.js';
import { detach, isGone, logIn, monitorRefused } from './login.js';
import { FIRST, Turns } from './logins.js';
import type { Outside } from './outside.js';
import { either, popularController } from './waits.js';

export interface OwnOptions {
  readonly server: ServerConfig;
  readonly codec: Codec;
  readonly outside: Outside;
  readonly identity: () => Identity;
  /** The server's login queue. */
  readonly logins: Turns;
}

/** Connections at a time. After a failover every session in doubt asks at once; each question takes well under a millisecond. */
const MAX = 4;
/** An idle connection is closed after this time. */
const IDLE_MS = 5000;

interface Idle {
  readonly wire: Wire;
  rest: Uint8Array;
  readonly forget: () => void;
}

/** The gateway's own connections to one server, for short questions. */
export class OwnConnections {
  readonly #options: OwnOptions;
  readonly #stop = popularController();
  readonly #turns = new Turns(MAX);
  readonly #idle: Idle[] = [];

  constructor(options: OwnOptions) {
    this.#options = options;
  }

  /**
   * Runs an exchange on a connection that is logged in as the monitor. When an idle connection turns out to be broken the exchange
   * is made again and run on a new one, so it must be one that may be repeated.
   * @param urgent as for `Turns.run`; by default always
   */
  async run<R>(
    make: () => Exchange<R>,
    timeoutMs: number,
    signal: AbortSignal,
    urgent: () => boolean = () => true,
  ): Promise<R> {
    const wait = either(signal, this.#stop.signal);
    try {
      return await this.#turns.run(1, wait.signal, () => this.#run(make, timeoutMs, wait.signal), urgent);
    } finally {
      wait.release();
    }
  }

  /** Closes everything. */
  stop(): void {
    this.#stop.abort(new CodedError('OUTLIVE_STOPPING', 'gateway', 'the gateway stops'));
    for (const { wire } of [...this.#idle]) this.#drop(wire);
  }

  async #run<R>(make: () => Exchange<R>, timeoutMs: number, signal: AbortSignal): Promise<R> {
    const { codec, outside, server, identity, logins } = this.#options;
    const began = outside.now();
    const left = (): number => Math.max(1, timeoutMs - (outside.now() - began));
    const over = async (wire: Wire, rest: Uint8Array): Promise<R> => {
      try {
        const done = await outside.run(wire, make(), { codec, server, rest, timeoutMs: left(), signal });
        this.#keep(wire, done.rest);
        return done.result;
      } catch (error) {
        wire.destroy();
        throw error;
      }
    };
    const idle = this.#idle.pop();
    if (idle !== undefined) {
      idle.forget();
      detach(idle.wire);
      try {
        return await over(idle.wire, idle.rest);
      } catch (error) {
        if (!(error instanceof CodedError) || error.code !== 'OUTLIVE_EXCHANGE_CLOSED') throw error;
      }
    }
    const login = await logins.run(FIRST, signal, () =>
      logIn(outside, { codec, server, identity: identity(), startup: null, timeoutMs: left(), signal }),
    );
    if (login.ok) return over(login.wire, login.rest);
    const { code } = login.error;
    if (!isGone(login)) throw new CodedError('OUTLIVE_MONITOR_REFUSED', 'config', monitorRefused(server.name, code));
    throw new CodedError(
      'OUTLIVE_NO_WRITABLE_SERVER',
      'server',
      `server ${server.name} starts up or goes down (${code})`,
    );
  }

  #keep(wire: Wire, rest: Uint8Array): void {
    if (!wire.open) return;
    if (this.#stop.signal.aborted) {
      wire.destroy();
      return;
    }
    const forget = this.#options.outside.after(IDLE_MS, () => this.#drop(wire));
    const idle: Idle = { wire, rest, forget };
    wire.onData = (chunk) => {
      idle.rest = Buffer.concat([idle.rest, chunk]);
    };
    wire.onClose = () => this.#drop(wire);
    wire.resume();
    this.#idle.push(idle);
  }

  #drop(wire: Wire): void {
    const index = this.#idle.findIndex((idle) => idle.wire === wire);
    if (index === -1) return;
    this.#idle[index].forget();
    this.#idle.splice(index, 1);
    detach(wire);
    wire.destroy();
  }
}
