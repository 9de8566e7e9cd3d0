import { availableParallelism } from 'node:os';
import { findProgram, Program, type Scope } from './scope.js';

/** Ends with its bench, also when that is killed: a shell's own `kill -0` is cheap and keeps a core as busy as anything else. */
const SPIN = 'while kill -0 "$1" 2>/dev/null; do :; done';

/**
 * Keeps the processor's cores from being halted until the end of the scope. In a virtual machine to wake a halted core costs tens of
 * microseconds, more than most proxies take for a request, and whether cores are halted depends on how long a request takes. What keeps
 * them awake has the policy SCHED_IDLE (sched(7)): it runs where nobody else wants to.
 * @throws Error where `chrt` (util-linux) is not installed
 */
export function keepAwake(scope: Scope): void {
  const chrt = findProgram('chrt');
  if (chrt === undefined) throw new Error('cores cannot be kept awake: chrt (util-linux) is not installed');
  for (let core = 0; core < availableParallelism(); core++) {
    const spinner = new Program(chrt, ['--idle', '0', '/bin/sh', '-c', SPIN, 'awake', String(process.pid)]);
    scope.defer(() => spinner.stop());
  }
}

/** The line of a report that says so. */
export const awakeLines = (awake: boolean): string[] => (awake ? ['cores are kept from being halted'] : []);
