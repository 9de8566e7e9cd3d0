import { spawnSync } from 'node:child_process';
import { chmodSync, mkdtempSync, rmSync, statfsSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

/** Short, because paths of unix sockets have at most 107 bytes. */
const MEMORY = '/dev/shm';
/** Much more than all tests together have there at a time. */
const ENOUGH_BYTES = 4 * 1024 ** 3;

/**
 * Lets all temporary directories of the tests lie in memory where the machine has enough of it: data directories of servers are
 * made and copied all the time, which takes a third of all CPU otherwise. Nothing that is tested depends on a disk: the servers
 * are killed, and not the machine.
 * @returns what removes them
 */
export function setup(): (() => void) | undefined {
  const directory = inMemory();
  if (directory === null) return undefined;
  process.env.TMPDIR = directory;
  return () => rmSync(directory, { recursive: true, force: true });
}

function inMemory(): string | null {
  let directory: string | null = null;
  try {
    const { bavail, bsize } = statfsSync(MEMORY);
    if (bavail * bsize < ENOUGH_BYTES) return null;
    directory = mkdtempSync(join(MEMORY, 'ol'));
    // Servers run as another user where the tests run as root.
    chmodSync(directory, 0o1777);
    const program = join(directory, 'program');
    writeFileSync(program, '#!/bin/sh\n', { mode: 0o755 });
    if (spawnSync(program).status === 0) return directory;
  } catch {
    // There is none, or nothing may be written there.
  }
  if (directory !== null) rmSync(directory, { recursive: true, force: true });
  return null;
}
