/** Tickets: the gateway's own logins come before everybody's, spares after everybody. Sessions take numbers in between. */
export const FIRST = 0;
export const LAST = Number.POSITIVE_INFINITY;

interface Waiting {
  readonly ticket: number;
  readonly enter: () => void;
}

/**
 * Lets only so many jobs run at once, in the order of their tickets. Who comes back with its ticket after a failed attempt
 * stands where it stood.
 */
export class Turns {
  readonly #limit: number;
  readonly #waiting: Waiting[] = [];
  #running = 0;

  /** @param limit jobs at a time */
  constructor(limit: number) {
    this.#limit = limit;
  }

  /** Jobs under way. */
  get running(): number {
    return this.#running;
  }

  /** Jobs that wait for their turn. */
  get waiting(): number {
    return this.#waiting.length;
  }

  /** Runs the job when it is its turn. Rejects with the signal's reason when that is aborted before. */
  async run<R>(ticket: number, signal: AbortSignal, job: () => Promise<R>): Promise<R> {
    await this.#enter(ticket, signal);
    try {
      return await job();
    } finally {
      this.#running--;
      this.#admit();
    }
  }

  #enter(ticket: number, signal: AbortSignal): Promise<void> | undefined {
    signal.throwIfAborted();
    if (this.#running < this.#limit && this.#waiting.length === 0) {
      this.#running++;
      return undefined;
    }
    return new Promise<void>((resolve, reject) => {
      const aborted = (): void => {
        this.#waiting.splice(this.#waiting.indexOf(waiting), 1);
        reject(signal.reason);
      };
      const waiting: Waiting = {
        ticket,
        enter: () => {
          signal.removeEventListener('abort', aborted);
          this.#running++;
          resolve();
        },
      };
      signal.addEventListener('abort', aborted, { once: true });
      // Nearly always the newest ticket is the highest, so look from the end.
      let index = this.#waiting.length;
      while (index > 0 && this.#waiting[index - 1].ticket > ticket) index--;
      this.#waiting.splice(index, 0, waiting);
    });
  }

  #admit(): void {
    while (this.#running < this.#limit && this.#waiting.length > 0) this.#waiting.shift()!.enter();
  }
}
