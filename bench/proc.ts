import { readdirSync, readFileSync } from 'node:fs';

/** Linux counts CPU time for programs in ticks of 10 ms, on every architecture. */
const TICKS_PER_SECOND = 100;

/** What one process has used until now. */
export interface ProcessTimes {
  readonly pid: number;
  readonly parent: number;
  /** User and system time of all its threads and of its children that have ended, in ticks. */
  readonly ticks: number;
}

/** CPU times of the whole machine and of each process at one moment. */
export interface CpuSample {
  /** Milliseconds on a monotonic clock. */
  readonly at: number;
  /** User, nice and system time of all processors, in ticks. */
  readonly busy: number;
  readonly processes: ReadonlyMap<number, ProcessTimes>;
}

/** Reads the text of /proc/PID/stat. */
export function parseStat(text: string): ProcessTimes | undefined {
  // The command name stands in parentheses and may hold anything, so fields count from the last one.
  const fields = text.slice(text.lastIndexOf(')') + 2).split(' ');
  const pid = Number.parseInt(text, 10);
  const [own, ownSystem, ended, endedSystem] = fields.slice(11, 15).map(Number);
  const times = { pid, parent: Number(fields[1]), ticks: own + ownSystem + ended + endedSystem };
  return Number.isNaN(pid) || Number.isNaN(times.parent) || Number.isNaN(times.ticks) ? undefined : times;
}

/** Busy ticks from the text of /proc/stat. Interrupts are left out: whom they served cannot be said. */
export function parseBusy(text: string): number {
  const [, user, nice, system] = text.slice(0, text.indexOf('\n')).split(/\s+/).map(Number);
  return user + nice + system;
}

/** CPU times at this moment; undefined where there is no /proc. */
export function sampleCpu(): CpuSample | undefined {
  if (process.platform !== 'linux') return undefined;
  const processes = new Map<number, ProcessTimes>();
  const at = performance.now();
  const busy = parseBusy(readFileSync('/proc/stat', 'latin1'));
  for (const name of readdirSync('/proc')) {
    const first = name.charCodeAt(0);
    if (first < 48 || first > 57) continue;
    try {
      const times = parseStat(readFileSync(`/proc/${name}/stat`, 'latin1'));
      if (times) processes.set(times.pid, times);
    } catch {
      // It ended between the listing and the look.
    }
  }
  return { at, busy, processes };
}

/** The given processes and all their descendants. */
export function treeOf(processes: ReadonlyMap<number, ProcessTimes>, roots: readonly number[]): Set<number> {
  const children = new Map<number, number[]>();
  for (const { pid, parent } of processes.values()) {
    const siblings = children.get(parent);
    if (siblings) siblings.push(pid);
    else children.set(parent, [pid]);
  }
  const found = new Set<number>();
  const queue = roots.filter((pid) => processes.has(pid));
  for (let pid = queue.pop(); pid !== undefined; pid = queue.pop()) {
    if (found.has(pid)) continue;
    found.add(pid);
    queue.push(...(children.get(pid) ?? []));
  }
  return found;
}

function ticksOf({ processes }: CpuSample, roots: readonly number[]): number {
  let ticks = 0;
  for (const pid of treeOf(processes, roots)) ticks += processes.get(pid)?.ticks ?? 0;
  return ticks;
}

/**
 * CPU seconds that the given processes and their descendants used between two samples. What a descendant used that has
 * ended meanwhile stands with its parent, so nothing is lost; undefined when one of the given processes has ended.
 */
export function cpuBetween(before: CpuSample, after: CpuSample, roots: readonly number[]): number | undefined {
  if (roots.some((pid) => !before.processes.has(pid) || !after.processes.has(pid))) return undefined;
  return (ticksOf(after, roots) - ticksOf(before, roots)) / TICKS_PER_SECOND;
}

/** Processors that programs outside of the given process and its descendants kept busy between two samples. */
export function foreignCpu(before: CpuSample, after: CpuSample, own: number): number {
  const seconds = (after.at - before.at) / 1000;
  const busy = (after.busy - before.busy) / TICKS_PER_SECOND;
  return seconds > 0 ? Math.max(0, (busy - (cpuBetween(before, after, [own]) ?? 0)) / seconds) : 0;
}

/** Bytes of memory that the given processes and their descendants hold resident; undefined where there is no /proc. */
export function residentBytes(roots: readonly number[]): number | undefined {
  const sample = sampleCpu();
  if (sample === undefined || roots.length === 0) return undefined;
  let bytes = 0;
  for (const pid of treeOf(sample.processes, roots)) {
    try {
      const found = /^VmRSS:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, 'latin1'));
      if (found) bytes += Number(found[1]) * 1024;
    } catch {
      // It ended between the listing and the look.
    }
  }
  return bytes;
}
