import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { CodedError } from '../../../contract/index.js';

/** Runs a text in a shell that stops at its first failing command. Throws OUTLIVE_LAB_FAILED with what it said. */
export function shellSync(script: string): void {
  const { status, stderr, error } = spawnSync('/bin/sh', ['-e'], { input: script, encoding: 'utf8' });
  if (status !== 0) throw failed('/bin/sh', error?.message ?? stderr);
}

/** The same without blocking. Rejects with OUTLIVE_LAB_FAILED. */
export async function shell(script: string): Promise<void> {
  await collect(spawn('/bin/sh', ['-e'], { stdio: ['pipe', 'pipe', 'pipe'] }), '/bin/sh', script);
}

/**
 * Waits for the end of a command whose three standard streams are pipes.
 * @param name for messages
 * @param input what it is given to read
 * @returns what it wrote; rejects with OUTLIVE_LAB_FAILED when it fails
 */
export async function collect(
  child: ChildProcess,
  name: string,
  input = '',
): Promise<{ stdout: string; stderr: string }> {
  const written = { stdout: '', stderr: '' };
  child.stdout?.setEncoding('utf8').on('data', (text: string) => (written.stdout += text));
  child.stderr?.setEncoding('utf8').on('data', (text: string) => (written.stderr += text));
  // It may end without reading.
  child.stdin?.on('error', () => {});
  child.stdin?.end(input);
  await new Promise<void>((resolve, reject) => {
    child.once('error', (error) => reject(failed(name, error.message)));
    child.once('close', (code, signal) => {
      if (code === 0) resolve();
      else reject(failed(name, `${written.stderr.trim()} (${signal ?? code})`));
    });
  });
  return written;
}

function failed(name: string, why: string): CodedError {
  return new CodedError('OUTLIVE_LAB_FAILED', 'system', `the lab's command ${name} failed: ${why}`);
}
