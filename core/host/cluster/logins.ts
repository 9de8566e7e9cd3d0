/** Tickets: the gateway's own logins come before everybody's, spares after everybody. Sessions take numbers in between. */
export const FIRST = 0;
export const LAST = Number.POSITIVE_INFINITY;

interface Waiting {
  readonly ticket: number;
  readonly urgent: () => boolean;
  readonly enter: () => void;
}

/**
 * Lets only so many jobs run at once, in the order of their tickets, the urgent ones of them first. Who comes back with its ticket
 * after a failed attempt stands where it stood.
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

  /**
   * Runs the job when it is its turn. Rejects with the signal's reason when that is aborted before.
   * @param urgent asked whenever a job may begin: what nobody waited for when it came may be waited for by then
   */
  async run<R>(
    ticket: number,
    signal: AbortSignal,
    job: () => Promise<R>,
    urgent: () => boolean = () => false,
  ): Promise<R> {
    await this.#enter(ticket, signal, urgent);
    try {
      return await job();
    } finally {
      this.#running--;
      this.#admit();
    }
  }

  #enter(ticket: number, signal: AbortSignal, urgent: () => boolean): Promise<void> | undefined {
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
        urgent,
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
    const waiting = this.#waiting;
    while (this.#running < this.#limit && waiting.length > 0) {
      const urgent = waiting[0].ticket === FIRST ? 0 : waiting.findIndex((each) => each.urgent());
      waiting.splice(Math.max(0, urgent), 1)[0].enter();
    }
  }
}
