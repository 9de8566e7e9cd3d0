import type { Codec, Exchange } from '../../contract/index.js';
import { type ClientTls, clientTls, connect, runExchange, type Wire } from '../../io/index.js';
import type { ServerConfig } from '../config/index.js';

/** What the cluster needs of the world outside, so that tests can stand in for it. */
export interface Outside {
  /** Milliseconds on the clock that deadlines are on. */
  now(): number;
  /** Calls back once after `ms`; the returned function forgets it. */
  after(ms: number, callback: () => void): () => void;
  /** Opens a connection; the wire is paused. */
  dial(server: ServerConfig, timeoutMs: number, signal: AbortSignal): Promise<Wire>;
  /** Runs an exchange over a paused wire, and leaves it paused and without handlers, however it ends. */
  run<R>(wire: Wire, exchange: Exchange<R>, options: RunOptions): Promise<Ran<R>>;
}

/** How an exchange is run. */
export interface RunOptions {
  readonly codec: Codec;
  readonly server: ServerConfig;
  /** Bytes that arrived before and belong to the exchange. */
  readonly rest?: Uint8Array;
  readonly timeoutMs: number;
  readonly signal: AbortSignal;
}

/** What an exchange brought, and what came after it. */
export interface Ran<R> {
  readonly result: R;
  readonly rest: Uint8Array;
}

/** The real world: the network and the clock of the event loop. */
export function outsideWorld(now: () => number): Outside {
  const contexts = new Map<ServerConfig, ClientTls | null>();
  const tlsOf = (server: ServerConfig): ClientTls | null => {
    let context = contexts.get(server);
    if (context === undefined) {
      context = server.tls === 'off' ? null : clientTls({ mode: server.tls, ca: server.ca?.text });
      contexts.set(server, context);
    }
    return context;
  };
  return {
    now,
    after: (ms, callback) => {
      const timer = setTimeout(callback, ms);
      return () => clearTimeout(timer);
    },
    dial: (server, timeoutMs, signal) => connect({ host: server.host, port: server.port, timeoutMs, signal }),
    run: (wire, exchange, { codec, server, rest, timeoutMs, signal }) => {
      const tls = tlsOf(server);
      return runExchange(wire, exchange, {
        frameLength: (bytes, start, end) => codec.frameLength(bytes, start, end),
        peer: 'server',
        head: rest,
        tls: tls === null ? undefined : { side: 'client', tls, host: server.host },
        deadlineMs: timeoutMs,
        signal,
      });
    },
  };
}
