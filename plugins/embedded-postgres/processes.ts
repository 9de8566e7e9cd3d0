import { type ChildProcess, execFile, execFileSync, spawn } from 'node:child_process';
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';

interface ProcessInfo {
  readonly pid: number;
  readonly parent: number;
  readonly state: string;
}

/** One look at all processes: from /proc where there is one, otherwise from ps. */
function listProcesses(): ProcessInfo[] {
  if (process.platform !== 'linux') {
    return execFileSync('ps', ['-A', '-o', 'pid=,ppid=,state='], { encoding: 'utf8' })
      .split('\n')
      .map((line) => line.trim().split(/\s+/))
      .filter((fields) => fields.length >= 3)
      .map(([pid, parent, state]) => ({ pid: Number(pid), parent: Number(parent), state }));
  }
  const found: ProcessInfo[] = [];
  for (const name of readdirSync('/proc')) {
    if (!/^\d+$/.test(name)) continue;
    const info = readProcess(Number(name));
    if (info) found.push(info);
  }
  return found;
}

function readProcess(pid: number): ProcessInfo | undefined {
  let text: string;
  try {
    text = readFileSync(`/proc/${pid}/stat`, 'latin1');
  } catch {
    return undefined;
  }
  // The command name stands in parentheses and may hold anything, so fields count from the last one.
  const [state, parent] = text.slice(text.lastIndexOf(')') + 2).split(' ');
  return { pid, parent: Number(parent), state };
}

function look(pid: number): ProcessInfo | undefined {
  return process.platform === 'linux' ? readProcess(pid) : listProcesses().find((info) => info.pid === pid);
}

/** Whether a process is over. A zombie is: where nobody reaps orphans it may stay for good. */
export function isGone(pid: number): boolean {
  const info = look(pid);
  return info === undefined || info.state.startsWith('Z') || info.state.startsWith('X');
}

/** All living descendants of a process, parents before their children. */
export function descendants(pid: number): number[] {
  const children = new Map<number, number[]>();
  for (const info of listProcesses()) {
    if (info.state.startsWith('Z')) continue;
    const siblings = children.get(info.parent);
    if (siblings) siblings.push(info.pid);
    else children.set(info.parent, [info.pid]);
  }
  const found: number[] = [];
  const queue = [pid];
  for (let next = queue.shift(); next !== undefined; next = queue.shift()) {
    for (const child of children.get(next) ?? []) {
      found.push(child);
      queue.push(child);
    }
  }
  return found;
}

/**
 * Linux: the processes that run this program in this directory. Every process of a server does, also one that has lost
 * its parent; somebody's shell that happens to stand there does not.
 */
export function processesIn(dir: string, program: string): number[] {
  if (process.platform !== 'linux') return [];
  const found: number[] = [];
  for (const name of readdirSync('/proc')) {
    if (!/^\d+$/.test(name)) continue;
    try {
      if (readlinkSync(`/proc/${name}/cwd`) !== dir || readlinkSync(`/proc/${name}/exe`) !== program) continue;
      if (!isGone(Number(name))) found.push(Number(name));
    } catch {
      // Gone meanwhile, or somebody else's process that hides itself: not ours in both cases.
    }
  }
  return found;
}

/** Sends a signal; a process that is already gone is no error. */
export function signal(pid: number, name: NodeJS.Signals): void {
  try {
    process.kill(pid, name);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
}

/** Stops a process and returns once it really stands still, so that it cannot fork any more. */
export function halt(pid: number): void {
  signal(pid, 'SIGSTOP');
  const deadline = Date.now() + 1000;
  while (Date.now() < deadline) {
    const info = look(pid);
    if (info === undefined || /^[TtZX]/.test(info.state)) return;
  }
}

/** Waits until all of these processes are gone; answers with those that are not. */
export async function waitGone(pids: readonly number[], timeoutMs: number): Promise<number[]> {
  const deadline = Date.now() + timeoutMs;
  let left = [...pids];
  for (;;) {
    left = left.filter((pid) => !isGone(pid));
    if (left.length === 0 || Date.now() > deadline) return left;
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}

/**
 * Frees the System V shared memory segment that a killed server leaves behind. It is tiny, but the number of segments
 * is limited system-wide, and nobody else would ever free it once the data directory is gone.
 */
export async function freeSharedMemory(id: number): Promise<void> {
  if (process.platform !== 'linux') return;
  let unattached = false;
  try {
    for (const line of readFileSync('/proc/sysvipc/shm', 'latin1').split('\n').slice(1)) {
      const fields = line.trim().split(/\s+/);
      if (Number(fields[1]) === id) unattached = fields[6] === '0';
    }
  } catch {
    return;
  }
  if (!unattached) return;
  // Best effort: a machine without ipcrm keeps the segment.
  await new Promise<void>((resolve) => execFile('ipcrm', ['-m', String(id)], () => resolve()));
}

const GUARD_SCRIPT = `
trap '' HUP INT TERM
pids=
while read -r line; do pids=$line; done
for pid in $pids; do kill -QUIT $pid 2>/dev/null; kill -CONT $pid 2>/dev/null; done
for pid in $pids; do
  n=0
  while [ $n -lt 60 ] && kill -0 $pid 2>/dev/null; do sleep 0.1; n=$((n+1)); done
  kill -KILL $pid 2>/dev/null
done
[ -n "$1" ] && rm -rf "$1"
exit 0
`;

/**
 * A small shell beside this process that ends the servers and removes their directory when this process ends, however
 * it ends: it sees end of file on its standard input. No signal handler of the host program is touched for this.
 */
export class Guard {
  readonly #child: ChildProcess;
  readonly #pids = new Map<string, readonly number[]>();
  #ended: Promise<void>;

  /** @param removeDir a directory to remove at the end, or '' */
  constructor(removeDir: string) {
    // Its own session, so that Ctrl-C in a terminal does not reach it before its work begins.
    this.#child = spawn('/bin/sh', ['-c', GUARD_SCRIPT, 'outlive-guard', removeDir], {
      stdio: ['pipe', 'ignore', 'ignore'],
      cwd: '/',
      detached: true,
    });
    this.#ended = new Promise((resolve) => {
      this.#child.once('exit', () => resolve());
      this.#child.once('error', () => resolve());
    });
    this.#child.stdin?.on('error', () => {});
    this.#child.unref();
    // The pipe must not keep the host program alive either.
    (this.#child.stdin as unknown as { unref?: () => void } | null)?.unref?.();
  }

  /** Says which processes of a server must be ended; none when it has stopped. */
  watch(name: string, pids: readonly number[]): void {
    this.#pids.set(name, pids);
    if (this.#child.stdin?.writable) this.#child.stdin.write(`${[...this.#pids.values()].flat().join(' ')}\n`);
  }

  /** Lets the guard do its work now and waits for it. */
  async end(): Promise<void> {
    this.#child.stdin?.end();
    this.#child.ref();
    await this.#ended;
  }
}
