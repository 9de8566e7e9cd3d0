import type { Wire, WireMarks, WireMemory } from './wire.js';

/** How connections are taken from a listening socket. */
export interface AcceptOptions extends WireMarks, WireMemory {
  readonly backlog?: number;
  /**
   * When this process dies, its kernel is to close the listening socket before the connections. Between the two it would answer what still comes
   * on connections that are gone as the listening socket lets it (see `answerStrangers`). Only where Node has bare handles.
   */
  readonly closesFirst?: boolean;
  /** A client came. The wire is paused. */
  readonly onWire: (wire: Wire) => void;
  /** A connection could not be accepted (out of descriptors). */
  readonly onError?: (error: Error) => void;
}

export interface ListenOptions extends AcceptOptions {
  /** Address or name to listen on. */
  readonly host: string;
  /** 0 for any free port. */
  readonly port: number;
}

export interface Listener {
  readonly port: number;
  /** Its descriptor; -1 once it is closed. */
  readonly fd: number;
  /**
   * Stops listening and resets what waits; wires that were handed out live on. Another process that holds a duplicate of the descriptor can
   * go on: what was not accepted yet waits for it.
   */
  close(): Promise<void>;
  /** Connections are taken from the kernel and wait, unread, at most `backlog` of them; more are reset. */
  pauseAccepting(): void;
  resumeAccepting(): void;
}

export interface ConnectOptions extends WireMarks {
  readonly host: string;
  readonly port: number;
  /** For everything: the look-up of the name, and all its addresses. */
  readonly timeoutMs: number;
  readonly signal?: AbortSignal;
}

/** One attempt to connect to one address. */
export interface Attempt {
  readonly wire: Promise<Wire>;
  /** Gives the attempt up; `wire` may stay undecided then. */
  cancel(): void;
}

/** Connections that wait in the kernel, and again in a paused listener. */
export const DEFAULT_BACKLOG = 511;

/** Holds new connections back while accepting is paused. */
export class Gate {
  #paused = false;
  #waiting: (() => Wire)[] = [];
  readonly #limit: number;

  constructor(readonly options: AcceptOptions) {
    this.#limit = options.backlog ?? DEFAULT_BACKLOG;
  }

  /** @param make wraps the connection when it is wanted */
  admit(make: () => Wire): void {
    if (!this.#paused) this.options.onWire(make());
    else if (this.#waiting.length < this.#limit) this.#waiting.push(make);
    else make().reset();
  }

  pause(): void {
    this.#paused = true;
  }

  resume(): void {
    this.#paused = false;
    // The owner may pause again while it is given the ones that waited.
    while (!this.#paused && this.#waiting.length > 0) this.options.onWire(this.#waiting.shift()!());
  }

  close(): void {
    for (const make of this.#waiting.splice(0)) make().reset();
  }
}
