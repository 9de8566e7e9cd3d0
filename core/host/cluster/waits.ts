import { setMaxListeners } from 'node:events';
import type { Outside } from './outside.js';

/** Longer times are no times for a timer. */
const MAX_TIMER_MS = 2 ** 31 - 1;

/** A wait that ends at a deadline, at the caller's will, or when the cluster stops. */
export interface Limit {
  readonly signal: AbortSignal;
  /** To be called when the wait is over, however it ended. */
  release(): void;
}

/**
 * Makes a limit for a wait.
 * @param sources signals that end it with their reason
 * @param late makes the reason when the deadline comes first
 */
export function limit(outside: Outside, deadline: number, sources: readonly AbortSignal[], late: () => Error): Limit {
  const { controller, releases } = follow(sources);
  const wait = deadline - outside.now();
  if (wait <= 0) controller.abort(late());
  else if (wait <= MAX_TIMER_MS) releases.push(outside.after(wait, () => controller.abort(late())));
  return limitOf(controller, releases);
}

/** A wait that ends with the first of these signals. AbortSignal.any would leave traces in signals that live long. */
export function either(...sources: AbortSignal[]): Limit {
  const { controller, releases } = follow(sources);
  return limitOf(controller, releases);
}

/** For a signal that many listen to. */
export function popularController(): AbortController {
  const controller = new AbortController();
  setMaxListeners(0, controller.signal);
  return controller;
}

function follow(sources: readonly AbortSignal[]): { controller: AbortController; releases: (() => void)[] } {
  const controller = new AbortController();
  const releases = sources.map((source) => {
    const quit = (): void => controller.abort(source.reason);
    if (source.aborted) quit();
    else source.addEventListener('abort', quit, { once: true });
    return () => source.removeEventListener('abort', quit);
  });
  return { controller, releases };
}

function limitOf({ signal }: AbortController, releases: readonly (() => void)[]): Limit {
  const release = (): void => {
    for (const each of releases) each();
  };
  return { signal, release };
}

/** Waits; rejects with the signal's reason when that is aborted before. */
export function sleep(outside: Outside, ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal.aborted) {
      reject(signal.reason);
      return;
    }
    const quit = (): void => {
      forget();
      reject(signal.reason);
    };
    const forget = outside.after(ms, () => {
      signal.removeEventListener('abort', quit);
      resolve();
    });
    signal.addEventListener('abort', quit, { once: true });
  });
}

/** The promise's end, or the signal's reason when that is aborted before. */
export function orAborted<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const quit = (): void => reject(signal.reason);
    if (signal.aborted) quit();
    else signal.addEventListener('abort', quit, { once: true });
    promise.then(resolve, reject).finally(() => signal.removeEventListener('abort', quit));
  });
}

const BACKOFF_MS = 10;
const MAX_BACKOFF_MS = 200;

/** How long to wait after so many failures, counted from 0. */
export function backoff(failures: number): number {
  return Math.min(MAX_BACKOFF_MS, BACKOFF_MS * 2 ** Math.min(failures, 10));
}
