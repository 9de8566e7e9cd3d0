import { type ChildProcess, type SpawnOptions, spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { chmod, chown, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';

const NOBODY = 65534;

/** The user for servers that refuse root; undefined where this process is an ordinary user's. */
export function plainUser(): { uid: number; gid: number } | undefined {
  return process.getuid?.() === 0 ? { uid: NOBODY, gid: NOBODY } : undefined;
}

/** Where a program is installed; undefined when it is not. */
export function findProgram(name: string): string | undefined {
  // Servers live in the sbin directories, which an ordinary user's PATH often lacks.
  const places = [...(process.env.PATH ?? '').split(delimiter), '/usr/local/sbin', '/usr/sbin', '/sbin'];
  return places.map((place) => join(place, name)).find((path) => existsSync(path));
}

const living = new Set<ChildProcess>();

process.on('exit', () => {
  for (const child of living) child.kill('SIGKILL');
});

/** Has a child process killed when this one ends, however it ends. */
export function track(child: ChildProcess): void {
  living.add(child);
  child.once('exit', () => living.delete(child));
  child.once('error', () => living.delete(child));
}

/** A child process and the end of what it printed. */
export class Program {
  readonly child: ChildProcess;
  readonly exited: Promise<number | null>;
  #tail = '';

  constructor(command: string, args: readonly string[], options: SpawnOptions = {}) {
    this.child = spawn(command, args, { ...options, stdio: ['ignore', 'pipe', 'pipe'] });
    track(this.child);
    const keep = (text: string) => {
      this.#tail = (this.#tail + text).slice(-4000);
    };
    this.child.stdout?.setEncoding('utf8').on('data', keep);
    this.child.stderr?.setEncoding('utf8').on('data', keep);
    this.exited = new Promise((resolve) => {
      this.child.once('exit', (code) => resolve(code));
      this.child.once('error', (error) => {
        keep(error.message);
        resolve(null);
      });
    });
  }

  /** The last lines that the program printed. */
  get tail(): string {
    return this.#tail.trim();
  }

  /** Whether the program has not ended. */
  get running(): boolean {
    return this.child.pid !== undefined && this.child.exitCode === null && this.child.signalCode === null;
  }

  /** Asks the program to end, insists after a while, and waits for the end. */
  async stop(graceMs = 3000): Promise<void> {
    if (!this.running) return;
    this.child.kill('SIGTERM');
    const timer = setTimeout(() => this.child.kill('SIGKILL'), graceMs);
    await this.exited;
    clearTimeout(timer);
  }
}

/** What a scenario started and has to end, the last first. */
export class Scope {
  readonly #ends: (() => Promise<unknown>)[] = [];
  #closing: Promise<void> | undefined;

  /** Has something done at the end. */
  defer(end: () => Promise<unknown>): void {
    this.#ends.push(end);
  }

  /** A new directory that everybody may read and that goes at the end. */
  async directory(): Promise<string> {
    const dir = await mkdtemp(join(tmpdir(), 'outlive-bench-'));
    this.defer(() => rm(dir, { recursive: true, force: true }));
    await chmod(dir, 0o755);
    const user = plainUser();
    if (user) await chown(dir, user.uid, user.gid);
    return dir;
  }

  /** Ends everything; one failing end does not keep the others from being done. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    const failures: unknown[] = [];
    for (let end = this.#ends.pop(); end !== undefined; end = this.#ends.pop()) {
      await end().catch((error: unknown) => failures.push(error));
    }
    if (failures.length > 0) throw failures[0];
  }
}

/** Runs a scenario and ends what it started, also when it is interrupted from the keyboard or by another program. */
export async function withScope<T>(run: (scope: Scope) => Promise<T>): Promise<T> {
  const scope = new Scope();
  let interrupted = false;
  const interrupt = (signal: NodeJS.Signals) => {
    // A second signal means it: the guards outside of this process do the rest.
    if (interrupted) process.exit(1);
    interrupted = true;
    // What fails because everything is being ended is no news.
    process.on('unhandledRejection', () => {});
    process.stderr.write(`\nbench: ${signal}, ending what was started\n`);
    void scope.close().finally(() => process.exit(130));
  };
  const signals: NodeJS.Signals[] = ['SIGINT', 'SIGTERM', 'SIGHUP'];
  for (const signal of signals) process.on(signal, interrupt);
  try {
    return await run(scope);
  } catch (error) {
    if (interrupted) return await new Promise<T>(() => {});
    throw error;
  } finally {
    if (!interrupted) await scope.close();
    for (const signal of signals) process.off(signal, interrupt);
  }
}
