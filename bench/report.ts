import { cpus, loadavg, release, totalmem, type } from 'node:os';
import Table from 'cli-table3';
import type { Spread } from './statistics.js';

/** What was measured on. */
export interface Machine {
  readonly cpu: string;
  readonly cpus: number;
  readonly memoryGiB: number;
  readonly system: string;
  readonly node: string;
  /** Processes that wanted a processor in the last minute before the start. */
  readonly loadBefore: number;
}

/** Describes this machine. */
export function machine(): Machine {
  const all = cpus();
  return {
    cpu: all[0]?.model.trim() ?? 'unknown',
    cpus: all.length,
    memoryGiB: Math.round(totalmem() / 2 ** 30),
    system: `${type()} ${release()}`,
    node: process.version,
    loadBefore: loadavg()[0],
  };
}

/** The lines that say what was measured on. */
export function machineLines(on: Machine): string[] {
  const lines = [
    `${on.cpu}, ${on.cpus} processors, ${on.memoryGiB} GiB; ${on.system}; Node ${on.node}; load ${on.loadBefore.toFixed(2)} before`,
    'Load, proxy and servers share this machine and nothing is pinned: compare within one run, not between runs.',
  ];
  if (on.loadBefore > on.cpus / 4) lines.push('Something else was busy before the start: read the figures with care.');
  return lines;
}

/** How much of a processor may go to other programs before a report says so. */
const FOREIGN_LIMIT = 0.1;

/** The line that says that other programs were busy during the measurements, when they were. */
export function foreignLines(processors: readonly (number | undefined)[]): string[] {
  const most = Math.max(0, ...processors.map((each) => each ?? 0));
  return most > FOREIGN_LIMIT ? [`other programs took up to ${most.toFixed(2)} processors meanwhile`] : [];
}

/** An acceptance figure: a measured value and the limit it has to keep. */
export interface Figure {
  /** The name in the plan, such as 'P1'. */
  readonly id: string;
  readonly what: string;
  readonly value: number | undefined;
  /** Whether the value has to be at least or at most the limit. */
  readonly rule: 'at least' | 'at most';
  readonly limit: number;
  readonly unit?: string;
  readonly spread?: Spread;
}

/** What came of a figure. */
export type Verdict = 'PASS' | 'FAIL' | 'SKIP';

/** Judges a figure; one that was not measured is skipped. */
export function judge({ value, rule, limit }: Figure): Verdict {
  if (value === undefined || Number.isNaN(value)) return 'SKIP';
  return (rule === 'at least' ? value >= limit : value <= limit) ? 'PASS' : 'FAIL';
}

/** One line per figure. */
export function figureLine(figure: Figure): string {
  const { id, what, value, rule, limit, unit = '', spread } = figure;
  const verdict = judge(figure);
  const end = unit === '' ? '' : ` ${unit}`;
  if (verdict === 'SKIP') return `SKIP ${id} ${what}: not measured (${rule} ${limit}${end})`;
  const range = spread && spread.count > 1 ? `, ${digits(spread.min)}..${digits(spread.max)} over rounds` : '';
  return `${verdict} ${id} ${what}: ${digits(value ?? Number.NaN)}${end} (${rule} ${limit}${end}${range})`;
}

/** Whether a run that asserts may exit with 0: something was measured and nothing failed. */
export function allPass(figures: readonly Figure[]): boolean {
  const verdicts = figures.map(judge);
  return verdicts.includes('PASS') && !verdicts.includes('FAIL');
}

/** A number with as many digits as it deserves. */
export function digits(value: number): string {
  if (!Number.isFinite(value)) return '-';
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1000) return String(value);
  if (size >= 1000) return Math.round(value).toLocaleString('en-US');
  return value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : size >= 0.1 ? 2 : 3);
}

/** A value that may not have been measured. */
export function cell(value: number | undefined): string {
  return value === undefined ? '-' : digits(value);
}

/** A ratio with its range over the rounds: 0.81 (0.79..0.84). */
export function ratioCell(ratio: Spread | undefined): string {
  if (ratio === undefined) return '-';
  const range = ratio.count > 1 ? ` (${ratio.min.toFixed(2)}..${ratio.max.toFixed(2)})` : '';
  return `${ratio.median.toFixed(2)}${range}`;
}

/** A table without colours; the first `words` columns are text and the others numbers. */
export function table(head: readonly string[], rows: readonly (readonly string[])[], words: number): string {
  const made = new Table({
    head: [...head],
    colAligns: head.map((_, index) => (index < words ? 'left' : 'right')),
    style: { head: [], border: [], compact: true },
  });
  for (const row of rows) made.push([...row]);
  return made.toString();
}

/** Prints what a scenario found: text for people, and with `json` one object on the last line. */
export function print(lines: readonly string[], figures: readonly Figure[], json: object | undefined): void {
  const text = [...lines, '', ...figures.map(figureLine)].join('\n');
  process.stdout.write(`${text}\n`);
  if (json === undefined) return;
  const judged = figures.map((figure) => ({ ...figure, verdict: judge(figure) }));
  process.stdout.write(`${JSON.stringify({ ...json, figures: judged })}\n`);
}

/** Says on the error stream what is being done; it disturbs no reader of the report. */
export function progress(text: string): void {
  process.stderr.write(`${text}\n`);
}
