import { createReadStream } from 'node:fs';
import { readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { Program } from '../scope.js';
import { Histogram } from '../statistics.js';
import type { LoadOptions } from './generator.js';
import type { LoadResult } from './meter.js';
import { workloadOf } from './workloads.js';

/**
 * The share of transactions whose time pgbench writes down. Each line costs it about as much as a tenth of a prepared
 * SELECT; of fast transactions every tenth one still makes thousands of lines in a second.
 */
const SAMPLED = { reads: 0.1, writes: 1 } as const;

/** How long pgbench may take to connect before the load is taken to be steady. */
const SETTLE_MS = 500;

/** What pgbench's report says. */
export interface PgbenchReport {
  readonly tps: number;
  readonly transactions: number;
  readonly failed: number;
}

/** Reads pgbench's report. */
export function parseReport(text: string): PgbenchReport | undefined {
  // Before version 14 there were two lines, and the second one was the one without the time to connect.
  const tps = [...text.matchAll(/^tps = ([\d.]+)/gm)].at(-1)?.[1];
  const transactions = /^number of transactions actually processed: (\d+)/m.exec(text)?.[1];
  if (tps === undefined || transactions === undefined) return undefined;
  const failed = /^number of failed transactions: (\d+)/m.exec(text)?.[1] ?? '0';
  return { tps: Number(tps), transactions: Number(transactions), failed: Number(failed) };
}

/** A transaction that pgbench has written down. */
export interface LoggedTransaction {
  /** How long it took, in microseconds. */
  readonly time: number;
  /** When it ended, in milliseconds since the epoch. */
  readonly endedAt: number;
}

/** Reads a line of pgbench's log; undefined for a failed or skipped transaction. */
export function parseLogLine(line: string): LoggedTransaction | undefined {
  const [, , time, , seconds, micros] = line.split(' ').map(Number);
  const endedAt = seconds * 1000 + micros / 1000;
  return Number.isNaN(time) || Number.isNaN(endedAt) ? undefined : { time, endedAt };
}

/** A run of pgbench. */
export interface PgbenchRun {
  readonly result: LoadResult;
  /** Transactions between the two hooks: counted in the log, so up to the chance of the sampling. */
  readonly between: number;
}

/** Makes load with pgbench. It writes into `dir`, which must be empty and the caller's. */
export async function runPgbench(
  program: string,
  dir: string,
  options: LoadOptions,
  hooks: { onMeasure?(pid: number): void; onMeasured?(pid: number): void } = {},
): Promise<PgbenchRun> {
  const workload = workloadOf(options.workload);
  const wholeMs = Math.ceil((SETTLE_MS + options.measureMs) / 1000) * 1000;
  const args = ['--no-vacuum', '--builtin', workload.builtin, '--protocol', workload.mode, '--jobs', '1'];
  args.push('--client', String(options.clients), '--time', String(wholeMs / 1000));
  const rate = workload.writes ? SAMPLED.writes : SAMPLED.reads;
  args.push('--log', '--log-prefix', join(dir, 'log'));
  if (rate < 1) args.push('--sampling-rate', String(rate));
  args.push('-h', options.host, '-p', String(options.port), '-U', options.user, options.database);
  const env = { PATH: process.env.PATH, LC_ALL: 'C', PGSSLMODE: 'disable', PGGSSENCMODE: 'disable' };
  const pgbench = new Program(program, args, { cwd: dir, env });
  const pid = pgbench.child.pid ?? -1;
  let from = Number.POSITIVE_INFINITY;
  let until = Number.POSITIVE_INFINITY;
  const measure = () => {
    from = Date.now();
    hooks.onMeasure?.(pid);
  };
  const measured = () => {
    until = Date.now();
    hooks.onMeasured?.(pid);
  };
  const timers = [setTimeout(measure, SETTLE_MS), setTimeout(measured, wholeMs - 100)];
  const code = await pgbench.exited;
  for (const timer of timers) clearTimeout(timer);
  const report = parseReport(pgbench.tail);
  if (code !== 0 || report === undefined) throw new Error(`pgbench failed (${code}):\n${pgbench.tail}`);

  const histogram = new Histogram();
  let lines = 0;
  for (const name of await readdir(dir)) {
    if (!name.startsWith('log.')) continue;
    const path = join(dir, name);
    for await (const line of createInterface({ input: createReadStream(path) })) {
      const logged = parseLogLine(line);
      if (logged === undefined) continue;
      histogram.record(logged.time);
      if (logged.endedAt >= from && logged.endedAt < until) lines++;
    }
    await rm(path);
  }
  return {
    result: {
      tps: report.tps,
      transactions: report.transactions,
      errors: report.failed,
      firstError: undefined,
      p50: histogram.percentile(50) / 1000,
      p99: histogram.percentile(99) / 1000,
      max: histogram.max / 1000,
    },
    between: lines / rate,
  };
}
