import { type LoadHooks, type LoadResult, type LoadTimes, Meter } from './meter.js';
import { LoadSession, type LoginOptions, openMany } from './session.js';
import { Script, type WorkloadName, workloadOf } from './workloads.js';

/** One run of load. */
export interface LoadOptions extends LoginOptions, LoadTimes {
  readonly clients: number;
  readonly workload: WorkloadName;
  /** Branches in the tables. */
  readonly scale: number;
}

/**
 * Runs closed loops of transactions: each session sends its next request when the last one is answered, without
 * pausing. What is counted are the transactions that ended within the measured time.
 */
export async function runLoad(options: LoadOptions, hooks: LoadHooks = {}): Promise<LoadResult> {
  const workload = workloadOf(options.workload);
  const meter = new Meter();
  let stopping = false;
  let running = options.clients;
  let allDone: () => void = () => {};
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
      let error: string | undefined;
      const begin = () => {
        step = 0;
        error = undefined;
        script.draw();
        began = performance.now();
        session.send(script.request(0));
      };
      session.onReady = () => {
        const { refusal } = session;
        if (refusal !== undefined) error ??= `${refusal.code} ${refusal.message}`;
        if (++step < script.length) {
          session.send(script.request(step));
          return;
        }
        meter.count(performance.now() - began, error);
        if (!stopping) begin();
        else if (--running === 0) allDone();
      };
      session.onLost = (_, refusal) => meter.fail(new Error(`a session was lost: ${refusal.code} ${refusal.message}`));
      begin();
    };
    sessions.forEach((session, index) => {
      start(session, scripts[index]);
    });
    // Whole transactions only.
    return await meter.run(options, hooks, () => {
      stopping = true;
      return done;
    });
  } finally {
    for (const session of sessions) session.end();
  }
}
