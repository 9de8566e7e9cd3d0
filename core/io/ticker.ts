/**
 * One timer for all the deadlines of the gateway. Sessions move their deadlines with every request; that costs the store
 * of a number here, and nothing else until the time comes.
 */

export interface TickerOptions {
  /** Milliseconds that only grow. */
  readonly now?: () => number;
  /** Deadlines may be late by this much, so that many are served by one wake-up. */
  readonly granularityMs?: number;
}

/** A deadline that can be moved at no cost; made by {@link Ticker.alarm}. */
export class Alarm {
  /** When it rings; Infinity while it is off. */
  deadline = Number.POSITIVE_INFINITY;
  /** When the ticker looks at it next: never after the deadline, but perhaps before. */
  due = Number.POSITIVE_INFINITY;
  /** Its place in the ticker's heap, or -1. */
  place = -1;

  constructor(
    readonly ticker: Ticker,
    readonly ring: () => void,
  ) {}

  /** Rings once, at `deadline` by the ticker's clock, instead of at any earlier set one. */
  set(deadline: number): void {
    this.deadline = deadline;
    if (deadline < this.due) this.ticker.look(this, deadline);
  }

  /** Rings once, in `ms` milliseconds. */
  after(ms: number): void {
    this.set(this.ticker.now() + ms);
  }

  /** Does not ring. */
  clear(): void {
    this.deadline = Number.POSITIVE_INFINITY;
  }

  get armed(): boolean {
    return this.deadline !== Number.POSITIVE_INFINITY;
  }
}

/** Rings {@link Alarm}s. It never keeps the process alive. */
export class Ticker {
  /** The ticker's clock. */
  readonly now: () => number;
  readonly #granularity: number;
  /** A heap by `due`. */
  readonly #heap: Alarm[] = [];
  #timer: NodeJS.Timeout | null = null;
  #wakes = Number.POSITIVE_INFINITY;
  #stopped = false;

  constructor(options: TickerOptions = {}) {
    this.now = options.now ?? (() => performance.now());
    this.#granularity = options.granularityMs ?? 10;
  }

  /** Makes an alarm, switched off. @param ring called from the event loop, once per `set` */
  alarm(ring: () => void): Alarm {
    return new Alarm(this, ring);
  }

  /** Rings what is due. Called by the timer, and by tests with a clock of their own. */
  tick(): void {
    const now = this.now();
    try {
      while (this.#heap.length > 0 && this.#heap[0].due <= now) {
        const alarm = this.#heap[0];
        if (alarm.deadline <= now) {
          alarm.deadline = alarm.due = Number.POSITIVE_INFINITY;
          this.#removeFirst();
          alarm.ring();
        } else if (alarm.deadline === Number.POSITIVE_INFINITY) {
          alarm.due = Number.POSITIVE_INFINITY;
          this.#removeFirst();
        } else {
          alarm.due = alarm.deadline;
          this.#sink(0);
        }
      }
    } finally {
      this.#wakes = Number.POSITIVE_INFINITY;
      this.#arm();
    }
  }

  /** No alarm rings any more. */
  stop(): void {
    this.#stopped = true;
    this.#heap.length = 0;
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
  }

  /** For {@link Alarm}: it must be looked at by `due`, earlier than so far. */
  look(alarm: Alarm, due: number): void {
    if (this.#stopped) return;
    alarm.due = due;
    if (alarm.place === -1) {
      alarm.place = this.#heap.length;
      this.#heap.push(alarm);
    }
    this.#rise(alarm.place);
    if (due < this.#wakes) this.#arm();
  }

  #arm(): void {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
    if (this.#stopped || this.#heap.length === 0) return;
    this.#wakes = this.#heap[0].due;
    // Node's timers end at 2^31 ms; a far deadline is simply looked at early.
    const wait = Math.min(Math.max(this.#wakes - this.now(), 0) + this.#granularity, 86_400_000);
    this.#timer = setTimeout(() => this.tick(), wait);
    this.#timer.unref();
  }

  #removeFirst(): void {
    const heap = this.#heap;
    heap[0].place = -1;
    const last = heap.pop()!;
    if (heap.length === 0) return;
    heap[0] = last;
    last.place = 0;
    this.#sink(0);
  }

  #rise(from: number): void {
    const heap = this.#heap;
    const alarm = heap[from];
    let at = from;
    while (at > 0) {
      const above = (at - 1) >> 1;
      if (heap[above].due <= alarm.due) break;
      heap[at] = heap[above];
      heap[at].place = at;
      at = above;
    }
    heap[at] = alarm;
    alarm.place = at;
  }

  #sink(from: number): void {
    const heap = this.#heap;
    const alarm = heap[from];
    let at = from;
    for (;;) {
      let below = 2 * at + 1;
      if (below >= heap.length) break;
      if (below + 1 < heap.length && heap[below + 1].due < heap[below].due) below++;
      if (heap[below].due >= alarm.due) break;
      heap[at] = heap[below];
      heap[at].place = at;
      at = below;
    }
    heap[at] = alarm;
    alarm.place = at;
  }
}
