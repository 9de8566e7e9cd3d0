import { type CpuSample, residentBytes, sampleCpu } from '../proc.js';
import { findProgram, type Scope } from '../scope.js';
import { LoadChild } from './channel.js';
import type { LoadOptions } from './generator.js';
import type { LoadResult } from './meter.js';
import { runPgbench } from './pgbench.js';

/** Which load generator is wanted; auto takes pgbench where it is installed. */
export const LOADS = ['auto', 'own', 'pgbench'] as const;

export type LoadChoice = (typeof LOADS)[number];

/** A run of load, with the CPU times and the memory around the measured time. */
export interface MeasuredLoad {
  readonly result: LoadResult;
  /** The process that made the load. */
  readonly loadPid: number;
  readonly before: CpuSample | undefined;
  readonly after: CpuSample | undefined;
  /** Transactions between the two samples. */
  readonly between: number;
  /** Memory of the watched processes at the end of the measured time, in bytes. */
  readonly resident: number | undefined;
}

/** Makes load; `watched` are the processes whose memory is asked for. */
export type MakeLoad = (options: LoadOptions, watched: readonly number[]) => Promise<MeasuredLoad>;

/** A load generator that can be used here, with its name. */
export async function chooseLoad(scope: Scope, choice: LoadChoice): Promise<{ name: string; make: MakeLoad }> {
  const path = choice === 'own' ? undefined : findProgram('pgbench');
  if (path === undefined) {
    if (choice === 'pgbench') throw new Error('pgbench is not installed; use --load own');
    return { name: 'own generator', make: (options, watched) => makeOwn(scope, options, watched) };
  }
  const dir = await scope.directory();
  return { name: 'pgbench', make: (options, watched) => makePgbench(path, dir, options, watched) };
}

async function makePgbench(
  path: string,
  dir: string,
  options: LoadOptions,
  watched: readonly number[],
): Promise<MeasuredLoad> {
  let loadPid = -1;
  let before: CpuSample | undefined;
  let after: CpuSample | undefined;
  let resident: number | undefined;
  const run = await runPgbench(path, dir, options, {
    onMeasure: (pid) => {
      loadPid = pid;
      before = sampleCpu();
    },
    onMeasured: () => {
      after = sampleCpu();
      resident = residentBytes(watched);
    },
  });
  return { ...run, loadPid, before, after, resident };
}

async function makeOwn(scope: Scope, options: LoadOptions, watched: readonly number[]): Promise<MeasuredLoad> {
  // A new process each time, so that no cell inherits another one's heap.
  const child = new LoadChild(scope);
  try {
    child.send({ order: 'load', options });
    await child.next('measure');
    const before = sampleCpu();
    await child.next('measured');
    const after = sampleCpu();
    const resident = residentBytes(watched);
    child.send({ order: 'stop' });
    const { result } = await child.next<{ result: LoadResult }>('result');
    const seconds = before && after ? (after.at - before.at) / 1000 : 0;
    return { result, loadPid: child.pid, before, after, between: result.tps * seconds, resident };
  } finally {
    await child.stop();
  }
}
