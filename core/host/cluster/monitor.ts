import { type Codec, type Identity, ProtocolViolation, type ServerFacts } from '../../contract/index.js';
import type { Wire } from '../../io/index.js';
import type { ServerConfig } from '../config/index.js';
import { codeOf, detach, isGone, logIn, monitorRefused } from './login.js';
import type { Outside } from './outside.js';

/** What one probe brought. */
export type Sighting =
  | { readonly kind: 'facts'; readonly facts: ServerFacts }
  /** It answers, but does not let the monitor in or does not tell it what it asks for: alive, and nothing is known of it. */
  | { readonly kind: 'refused'; readonly code: string; readonly message: string }
  /** No answer; or, when `closed` is set, its own word that it is going down or starting up. */
  | { readonly kind: 'failed'; readonly code: string; readonly closed: boolean };

export interface MonitorOptions {
  readonly server: ServerConfig;
  readonly codec: Codec;
  readonly outside: Outside;
  /** Who the monitor is on the server. */
  readonly identity: () => Identity;
  readonly timeout: number;
  /** Pause between probes now; asked before each one. `connected` says whether a probe needs a login first. */
  readonly pace: (connected: boolean) => number;
  /** Told of every probe; `began` is when it was begun. */
  readonly onSighting: (sighting: Sighting, began: number) => void;
}

/** Probes that confirm what is known are at least this far apart. */
const CONFIRM_MS = 5;
/** A connection that is lost sooner than this after its login is not replaced at once: a server could end each one like that. */
const YOUNG_MS = 50;

const EMPTY = new Uint8Array(0);
const STOPPED: Sighting = { kind: 'failed', code: 'stopped', closed: false };

/**
 * Watches one server over a connection of its own. Probes follow each other at a steady pace; in between they can be asked for,
 * and a lost connection brings one at once.
 */
export class Monitor {
  readonly #options: MonitorOptions;
  readonly #stop = new AbortController();
  #wire: Wire | null = null;
  #wireSince = 0;
  /** What the server said unasked. */
  #rest: Uint8Array = EMPTY;
  #running: Promise<Sighting> | null = null;
  /** The round that begins when the running one is over. */
  #next: { fresh: boolean; done: Promise<Sighting> } | null = null;
  #cancelTimer: (() => void) | null = null;
  #cancelConfirm: (() => void) | null = null;
  #lastBegan = Number.NEGATIVE_INFINITY;

  constructor(options: MonitorOptions) {
    this.#options = options;
  }

  /** Begins to watch; resolves after the first probe. */
  async start(): Promise<void> {
    await this.probe(true);
  }

  /** Stops, closes the connection, and resolves when nothing is under way any more. */
  async stop(): Promise<void> {
    this.#stop.abort();
    this.#cancelTimer?.();
    this.#cancelConfirm?.();
    this.#drop();
    await this.#running;
  }

  /**
   * Probes now. Callers during one round share the next: an answer that was under way may be older than the doubt. A failure is
   * shared at once.
   * @param fresh over a new connection, which becomes the monitor's. An old one can outlive, by a moment, a server that is
   *   already going down; a new login cannot.
   */
  async probe(fresh: boolean): Promise<Sighting> {
    if (this.#stop.signal.aborted) return STOPPED;
    if (this.#running === null && this.#next === null) return this.#begin(fresh);
    if (this.#next === null) {
      const next = { fresh, done: Promise.resolve(STOPPED) };
      next.done = this.#running!.then((sighting) => {
        this.#next = null;
        if (this.#stop.signal.aborted) return sighting;
        if (sighting.kind !== 'failed') return this.#begin(next.fresh);
        // The round that is over has left it to this one to go on.
        this.#schedule();
        return sighting;
      });
      this.#next = next;
    } else if (fresh) this.#next.fresh = true;
    return this.#next.done;
  }

  /** Takes a changed pace into account now instead of after the next probe. */
  hurry(): void {
    if (this.#running === null && !this.#stop.signal.aborted) this.#schedule();
  }

  /** Has what is known confirmed by a probe that begins after this call, soon and not too often. */
  confirm(): void {
    if (this.#cancelConfirm !== null || this.#stop.signal.aborted) return;
    const { outside } = this.#options;
    this.#cancelConfirm = outside.after(Math.max(0, this.#lastBegan + CONFIRM_MS - outside.now()), () => {
      this.#cancelConfirm = null;
      void this.probe(false);
    });
  }

  #begin(fresh: boolean): Promise<Sighting> {
    this.#cancelTimer?.();
    this.#cancelTimer = null;
    this.#lastBegan = this.#options.outside.now();
    return (this.#running = this.#round(fresh, this.#lastBegan));
  }

  async #round(fresh: boolean, began: number): Promise<Sighting> {
    const sighting = await this.#look(fresh);
    this.#running = null;
    if (this.#stop.signal.aborted) return sighting;
    this.#options.onSighting(sighting, began);
    if (this.#running === null && this.#next === null) this.#schedule();
    return sighting;
  }

  #schedule(atMost = Number.POSITIVE_INFINITY): void {
    this.#cancelTimer?.();
    const { outside, pace } = this.#options;
    const wait = Math.min(atMost, Math.max(0, this.#lastBegan + pace(this.#wire !== null) - outside.now()));
    this.#cancelTimer = outside.after(wait, () => void this.probe(false));
  }

  async #look(fresh: boolean): Promise<Sighting> {
    if (!fresh && this.#wire !== null) {
      const sighting = await this.#ask();
      // The connection may have broken by itself, or have been ended; what a new one shows is true of the server.
      const silent = sighting.kind === 'failed' && sighting.code === 'OUTLIVE_EXCHANGE_TIMEOUT';
      if (sighting.kind === 'facts' || silent || this.#stop.signal.aborted) return sighting;
    }
    const sighting = await this.#connect();
    if (sighting.kind === 'failed') this.#drop();
    // Its doors are closed to the monitor for a reason that says nothing of its health (too many clients, a changed password).
    else if (sighting.kind === 'refused' && this.#wire !== null) {
      const old = await this.#ask();
      return old.kind === 'facts' ? old : sighting;
    }
    return sighting;
  }

  /** Probes over the connection at hand. */
  async #ask(): Promise<Sighting> {
    const wire = this.#wire!;
    const rest = this.#rest;
    this.#wire = null;
    detach(wire);
    return this.#probeOver(wire, rest);
  }

  async #probeOver(wire: Wire, rest: Uint8Array): Promise<Sighting> {
    const { codec, outside, server, timeout: timeoutMs } = this.#options;
    const run = { codec, server, rest, timeoutMs, signal: this.#stop.signal };
    try {
      const done = await outside.run(wire, codec.probe!(), run);
      this.#adopt(wire, done.rest);
      return { kind: 'facts', facts: done.result };
    } catch (error) {
      wire.destroy();
      // Whatever it said, it is there. Nobody must be promoted because the monitor lacks a right.
      if (error instanceof ProtocolViolation) return { kind: 'refused', code: error.code, message: error.message };
      return { kind: 'failed', code: codeOf(error), closed: false };
    }
  }

  /** Logs in anew and probes; the new connection takes the place of the old one. */
  async #connect(): Promise<Sighting> {
    const { codec, outside, server, identity, timeout: timeoutMs } = this.#options;
    const { signal } = this.#stop;
    try {
      const login = await logIn(outside, { codec, server, identity: identity(), startup: null, timeoutMs, signal });
      if (!login.ok) {
        const { code } = login.error;
        if (isGone(login)) return { kind: 'failed', code, closed: true };
        return { kind: 'refused', code, message: monitorRefused(server.name, code) };
      }
      this.#wireSince = outside.now();
      return await this.#probeOver(login.wire, login.rest);
    } catch (error) {
      return { kind: 'failed', code: codeOf(error), closed: false };
    }
  }

  /** Keeps the connection until the next probe, and hears of its end. */
  #adopt(wire: Wire, rest: Uint8Array): void {
    if (this.#stop.signal.aborted) {
      wire.destroy();
      return;
    }
    this.#drop();
    this.#wire = wire;
    this.#rest = rest;
    // What the server says unasked (its role changed, it goes down) is a reason to look again.
    wire.onData = (chunk) => {
      this.#rest = Buffer.concat([this.#rest, chunk]);
      this.#stirred(wire, false);
    };
    wire.onClose = () => this.#stirred(wire, true);
    wire.resume();
  }

  #stirred(wire: Wire, closed: boolean): void {
    if (this.#wire !== wire) return;
    if (closed) this.#wire = null;
    const { outside } = this.#options;
    if (this.#running !== null) return;
    if (closed && outside.now() - this.#wireSince < YOUNG_MS) this.#schedule(YOUNG_MS);
    else void this.probe(false);
  }

  #drop(): void {
    const wire = this.#wire;
    this.#wire = null;
    if (wire === null) return;
    detach(wire);
    wire.destroy();
  }
}
