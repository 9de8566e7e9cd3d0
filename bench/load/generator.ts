import { Histogram } from '../statistics.js';
import { LoadSession, type LoginOptions, openMany } from './session.js';
import { Script, type WorkloadName, workloadOf } from './workloads.js';

/** One run of load. */
export interface LoadOptions extends LoginOptions {
  readonly clients: number;
  readonly workload: WorkloadName;
  /** Branches in the tables. */
  readonly scale: number;
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

/**
 * Runs closed loops of transactions: each session sends its next request when the last one is answered, without
 * pausing. What is counted are the transactions that ended within the measured time.
 */
export async function runLoad(options: LoadOptions, hooks: LoadHooks = {}): Promise<LoadResult> {
  const workload = workloadOf(options.workload);
  const histogram = new Histogram();
  let counting = false;
  let stopping = false;
  let errors = 0;
  let firstError: string | undefined;
  let running = options.clients;
  let fail: (error: Error) => void = () => {};
  let allDone: () => void = () => {};
  const failed = new Promise<never>((_, reject) => {
    fail = reject;
  });
  // Not everybody who is told of a failure is waiting at that moment.
  failed.catch(() => {});
  const done = new Promise<void>((resolve) => {
    allDone = resolve;
  });

  const sessions = await openMany(options.clients, () => LoadSession.open(options, false));
  try {
    const scripts = sessions.map(() => new Script(workload, options.scale));
    for (const [index, session] of sessions.entries()) {
      for (const bytes of scripts[index].setup) {
        const { refusal } = await session.run(bytes);
        if (refusal) throw new Error(`preparing failed: ${refusal.code} ${refusal.message}`);
      }
    }
    const start = (session: LoadSession, script: Script) => {
      let step = 0;
      let began = 0;
      let good = true;
      const begin = () => {
        step = 0;
        good = true;
        script.draw();
        began = performance.now();
        session.send(script.request(0));
      };
      session.onReady = () => {
        if (session.refusal !== undefined) {
          good = false;
          firstError ??= `${session.refusal.code} ${session.refusal.message}`;
        }
        if (++step < script.length) {
          session.send(script.request(step));
          return;
        }
        if (counting) {
          if (good) histogram.record((performance.now() - began) * 1000);
          else errors++;
        }
        if (!stopping) begin();
        else if (--running === 0) allDone();
      };
      session.onLost = (_, refusal) => fail(new Error(`a session was lost: ${refusal.code} ${refusal.message}`));
      begin();
    };
    sessions.forEach((session, index) => {
      start(session, scripts[index]);
    });

    await Promise.race([failed, sleep(options.warmupMs)]);
    counting = true;
    const from = performance.now();
    hooks.onMeasure?.();
    await Promise.race([failed, sleep(options.measureMs)]);
    counting = false;
    const seconds = (performance.now() - from) / 1000;
    await Promise.race([failed, hooks.onMeasured?.()]);
    stopping = true;
    await Promise.race([failed, done]);
    return {
      tps: histogram.count / seconds,
      transactions: histogram.count,
      errors,
      firstError,
      p50: histogram.percentile(50) / 1000,
      p99: histogram.percentile(99) / 1000,
      max: histogram.max / 1000,
    };
  } finally {
    for (const session of sessions) session.end();
  }
}

function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
