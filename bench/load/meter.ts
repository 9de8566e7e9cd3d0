import { setTimeout as sleep } from 'node:timers/promises';
import { Histogram } from '../statistics.js';

/** How long a load runs. */
export interface LoadTimes {
  /** Runs before it counts. */
  readonly warmupMs: number;
  readonly measureMs: number;
}

/** What a run of load saw. Latencies are milliseconds of whole transactions. */
export interface LoadResult {
  readonly tps: number;
  readonly transactions: number;
  /** Transactions in which the server reported an error. */
  readonly errors: number;
  readonly firstError: string | undefined;
  readonly p50: number;
  readonly p99: number;
  readonly max: number;
}

/** Told when counting begins and when it ends. The load goes on until the second one is done with its work. */
export interface LoadHooks {
  onMeasure?(): void;
  onMeasured?(): void | Promise<void>;
}

/** Counts the transactions of a load that end within its measured time. */
export class Meter {
  readonly #histogram = new Histogram();
  readonly #failed: Promise<never>;
  #counting = false;
  #errors = 0;
  #firstError: string | undefined;
  /** The load cannot go on: {@link run} rejects with this. */
  fail: (error: Error) => void = () => {};

  constructor() {
    this.#failed = new Promise((_, reject) => {
      this.fail = reject;
    });
    // Not everybody who is told of a failure is waiting at that moment.
    this.#failed.catch(() => {});
  }

  /**
   * A transaction ended.
   * @param ms how long it took
   * @param error what the server reported in it
   */
  count(ms: number, error: string | undefined): void {
    if (error !== undefined) this.#firstError ??= error;
    if (!this.#counting) return;
    if (error === undefined) this.#histogram.record(ms * 1000);
    else this.#errors++;
  }

  /**
   * Warms up and measures a load that runs already.
   * @param end lets the load end, when all is counted
   */
  async run(
    { warmupMs, measureMs }: LoadTimes,
    hooks: LoadHooks,
    end: () => void | Promise<void> = () => {},
  ): Promise<LoadResult> {
    await this.#unlessFailed(sleep(warmupMs));
    this.#counting = true;
    const from = performance.now();
    hooks.onMeasure?.();
    await this.#unlessFailed(sleep(measureMs));
    this.#counting = false;
    const seconds = (performance.now() - from) / 1000;
    await this.#unlessFailed(hooks.onMeasured?.());
    await this.#unlessFailed(end());
    const { count, max } = this.#histogram;
    const at = (p: number) => this.#histogram.percentile(p) / 1000;
    return {
      tps: count / seconds,
      transactions: count,
      errors: this.#errors,
      firstError: this.#firstError,
      p50: at(50),
      p99: at(99),
      max: max / 1000,
    };
  }

  async #unlessFailed(what: void | Promise<void>): Promise<void> {
    await Promise.race([this.#failed, what]);
  }
}
