import type { OutcomeToken, ServerError } from '../contract/index.js';

/** Bounds of one session, in bytes. */
export interface SessionLimits {
  /** One request. */
  readonly request: number;
  /** What the client sent in the open unit. */
  readonly journal: number;
  /** What is kept of the answers of the open unit before they are folded into a digest. */
  readonly answers: number;
  /** Requests held while there is no server. */
  readonly queue: number;
}

/** What a session does to the world. Implemented by the host; bytes given to it must not be changed afterwards. */
export interface SessionIo {
  toClient(bytes: Uint8Array): void;
  toServer(bytes: Uint8Array): void;
  /** Stop or go on reading from the client. */
  readClient(on: boolean): void;
  /** What is said to the server from now on leaves together when this is called with false. */
  corkServer(on: boolean): void;
  /** The server said this; is it a failover or someone's will? Answered by `intent()` or `lost()`. */
  doubt(error: ServerError): void;
  /** The server connection is void: close it and find another. Answered by `attach()` ... */
  recover(): void;
  /** The replay ended. `attempt` again on a retryable failure. */
  replayed(result: 'done' | 'diverged' | 'retry'): void;
  /** What was learnt of the database has changed: learn it anew. */
  learn(): void;
  /** The session goes on as if nothing had happened. */
  resumed(): void;
  /** A row that proves the commit of the open unit leaves for this database, and the commit after it. */
  marked(database: string): void;
  /** A commit was acknowledged to the client. */
  acknowledged(token: OutcomeToken): void;
  /** Close the client's connection after what was written. */
  closeClient(): void;
  /**
   * May a request that can make something durable leave now? When false it is held until `proceed()`: somebody else must know of it
   * first, so as to ask for its outcome should this gateway die.
   */
  durable(): boolean;
  /** A coded thing happened that users count. */
  count(what: 'divergence' | 'unprotected' | 'in-doubt' | 'mark-refused', label: string): void;
}

/** Counters that the hot path increments; read by the metrics. */
export interface SessionStats {
  requests: number;
  units: number;
}
