import { type ChildProcess, spawn } from 'node:child_process';
import { basename } from 'node:path';
import { CodedError } from '../contract/index.js';

export interface CommandOptions {
  /** The command's environment; besides it gets PATH only, so that the gateway's own secrets stay where they are. */
  readonly env?: Readonly<Record<string, string>>;
  readonly timeoutMs: number;
  /** Where it runs; relative paths in the command start there. */
  readonly cwd?: string;
  /** Bytes of stdout and of stderr; more is an error. */
  readonly maxOutput?: number;
  readonly signal?: AbortSignal;
}

export interface CommandResult {
  readonly stdout: string;
  readonly stderr: string;
}

/** Between the polite and the final signal; and how long output may come after the command itself has ended. */
const GRACE_MS = 500;
const DEFAULT_MAX_OUTPUT = 1024 * 1024;

/**
 * Runs a command, without a shell, in a process group of its own. When it must end before its time, the whole group is asked
 * to terminate and then killed. Arguments and output are never part of an error message, except for the last line of stderr.
 *
 * Rejects with OUTLIVE_COMMAND_NOT_STARTED, OUTLIVE_COMMAND_FAILED (its exit status), OUTLIVE_COMMAND_TIMEOUT,
 * OUTLIVE_COMMAND_OUTPUT (too much of it) or OUTLIVE_COMMAND_ABORTED.
 */
export function runCommand(command: readonly string[], options: CommandOptions): Promise<CommandResult> {
  const [program, ...args] = command;
  const { signal } = options;
  const maxOutput = options.maxOutput ?? DEFAULT_MAX_OUTPUT;
  const name = program === undefined ? '' : basename(program);
  return new Promise((resolve, reject) => {
    if (program === undefined) {
      reject(new CodedError('OUTLIVE_COMMAND_NOT_STARTED', 'config', 'the command is empty'));
      return;
    }
    if (signal?.aborted === true) {
      reject(aborted(name, signal));
      return;
    }
    const env = { PATH: process.env.PATH ?? '', ...options.env };
    let child: ChildProcess;
    try {
      child = spawn(program, args, {
        env,
        cwd: options.cwd,
        detached: true,
        stdio: ['ignore', 'pipe', 'pipe'],
        windowsHide: true,
      });
    } catch (cause) {
      reject(notStarted(name, cause));
      return;
    }
    const output = { stdout: [] as Buffer[], stderr: [] as Buffer[] };
    /** Why it must end before its time. */
    let stopped: CodedError | null = null;
    let over = false;
    const timers: NodeJS.Timeout[] = [];

    const finish = (settle: () => void): void => {
      if (over) return;
      over = true;
      for (const timer of timers) clearTimeout(timer);
      signal?.removeEventListener('abort', onAbort);
      child.stdout?.destroy();
      child.stderr?.destroy();
      settle();
    };
    const stop = (error: CodedError): void => {
      if (over || stopped !== null) return;
      stopped = error;
      killGroup(child, 'SIGTERM');
      timers.push(setTimeout(() => killGroup(child, 'SIGKILL'), GRACE_MS));
      // A process that cannot be killed now (it waits for a device) must not keep us.
      timers.push(setTimeout(() => finish(() => reject(error)), 2 * GRACE_MS));
    };
    const ended = (): void => {
      if (stopped !== null) {
        // The leader is gone; what is left of its group must not go on alone.
        killGroup(child, 'SIGKILL');
        const error = stopped;
        finish(() => reject(error));
        return;
      }
      const stdout = Buffer.concat(output.stdout).toString();
      const stderr = Buffer.concat(output.stderr).toString();
      if (child.exitCode === 0) finish(() => resolve({ stdout, stderr }));
      else finish(() => reject(failed(name, child, stderr)));
    };
    const onAbort = (): void => stop(aborted(name, signal!));

    for (const which of ['stdout', 'stderr'] as const) {
      let size = 0;
      child[which]?.on('data', (chunk: Buffer) => {
        size += chunk.length;
        if (size <= maxOutput) {
          output[which].push(chunk);
          return;
        }
        const message = `${name} wrote more than ${maxOutput} bytes to ${which}`;
        stop(new CodedError('OUTLIVE_COMMAND_OUTPUT', 'config', message));
      });
    }
    child.on('error', (cause) => finish(() => reject(notStarted(name, cause))));
    child.on('close', ended);
    child.on('exit', () => {
      // Something it started may hold its output open for ever.
      timers.push(setTimeout(ended, GRACE_MS));
    });
    timers.push(
      setTimeout(() => {
        const message = `${name} did not end within ${options.timeoutMs} ms and was killed`;
        stop(new CodedError('OUTLIVE_COMMAND_TIMEOUT', 'system', message));
      }, options.timeoutMs),
    );
    signal?.addEventListener('abort', onAbort);
  });
}

function killGroup(child: ChildProcess, how: NodeJS.Signals): void {
  if (child.pid === undefined) return;
  try {
    process.kill(-child.pid, how);
  } catch {
    // Nobody of the group is left.
  }
}

function aborted(name: string, signal: AbortSignal): CodedError {
  const message = `${name} was given up because the gateway no longer needs it`;
  return new CodedError('OUTLIVE_COMMAND_ABORTED', 'gateway', message, { cause: signal.reason });
}

function notStarted(name: string, cause: unknown): CodedError {
  const why = (cause as NodeJS.ErrnoException).code ?? String(cause);
  const message = `${name} could not be started: ${why}; is the path right, and may it be executed?`;
  return new CodedError('OUTLIVE_COMMAND_NOT_STARTED', 'config', message, { cause });
}

function failed(name: string, child: ChildProcess, stderr: string): CodedError {
  const how = child.signalCode === null ? `with status ${child.exitCode}` : `by signal ${child.signalCode}`;
  const said = (stderr.trimEnd().split('\n').pop() ?? '').slice(0, 200);
  const message = `${name} ended ${how}${said === '' ? '' : `; the last it said: ${said}`}`;
  return new CodedError('OUTLIVE_COMMAND_FAILED', 'system', message);
}
