import { spawn } from 'node:child_process';

/** How a process ended: its exit status, or the signal, or why it could not be started. */
export interface ProcessEnd {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly error: Error | null;
}

/** A process that was started. */
export interface OwnProcess {
  /** -1 when it could not be started. */
  readonly pid: number;
  readonly ended: Promise<ProcessEnd>;
  /** No error when it is gone. */
  signal(signal: NodeJS.Signals): void;
}

/**
 * Starts a process that shares this one's output. It leads a process group of its own: what a terminal sends to the group (Ctrl-C) then reaches
 * only this process, which passes it on, and not the other one twice.
 *
 * @param env what it gets beside this process's environment
 */
export function startProcess(command: readonly string[], env: Readonly<Record<string, string>>): OwnProcess {
  const [program, ...args] = command;
  const child = spawn(program, args, {
    env: { ...process.env, ...env },
    detached: true,
    stdio: ['ignore', 'inherit', 'inherit'],
  });
  const ended = new Promise<ProcessEnd>((resolve) => {
    child.once('exit', (code, signal) => resolve({ code, signal, error: null }));
    child.once('error', (error) => {
      if (child.pid === undefined) resolve({ code: null, signal: null, error });
    });
  });
  return { pid: child.pid ?? -1, ended, signal: (signal) => void child.kill(signal) };
}

/** Calls back for each SIGTERM and SIGINT, which no longer end this process, until the returned function is called. */
export function onSignals(callback: (signal: NodeJS.Signals) => void): () => void {
  process.on('SIGTERM', callback);
  process.on('SIGINT', callback);
  return () => {
    process.off('SIGTERM', callback);
    process.off('SIGINT', callback);
  };
}
