import type { ChildProcess } from 'node:child_process';
import { CodedError } from '../../../contract/index.js';

interface Question {
  readonly id: number;
  readonly method: string;
  readonly value: unknown;
}

type Answer = { readonly id: number; readonly value: unknown } | { readonly id: number; readonly error: string };

/** Questions to a script of the lab that runs in a process of its own, over Node's IPC channel. Values are what JSON can say. */
export class Remote {
  readonly child: ChildProcess;
  readonly #name: string;
  readonly #waiting = new Map<number, { resolve: (value: never) => void; reject: (error: Error) => void }>();
  #serial = 0;
  #ended = false;

  /**
   * @param child started with an IPC channel, running a script that calls {@link serve}
   * @param name for messages
   */
  constructor(child: ChildProcess, name: string) {
    this.child = child;
    this.#name = name;
    const end = () => {
      this.#ended = true;
      for (const { reject } of this.#waiting.values()) reject(this.#gone());
      this.#waiting.clear();
    };
    child.once('error', end).once('exit', end);
    child.on('message', (answer: Answer) => {
      const asked = this.#waiting.get(answer.id);
      this.#waiting.delete(answer.id);
      if ('error' in answer) asked?.reject(new CodedError('OUTLIVE_LAB_FAILED', 'system', `${name}: ${answer.error}`));
      else asked?.resolve(answer.value as never);
    });
  }

  /** Whether the process is over. */
  get ended(): boolean {
    return this.#ended;
  }

  #gone(): CodedError {
    const { exitCode, signalCode } = this.child;
    return new CodedError('OUTLIVE_LAB_FAILED', 'system', `${this.#name} ended (${signalCode ?? exitCode})`);
  }

  /**
   * Asks. Rejects with OUTLIVE_LAB_FAILED when the script throws, ends, or does not answer in time.
   * @param timeoutMs how long to wait; a frozen process never answers
   */
  async ask<T>(method: string, value: unknown = null, timeoutMs = 60_000): Promise<T> {
    if (this.#ended) throw this.#gone();
    const id = ++this.#serial;
    return await new Promise<T>((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#waiting.delete(id);
        const message = `${this.#name} did not answer '${method}' within ${timeoutMs} ms`;
        reject(new CodedError('OUTLIVE_LAB_FAILED', 'system', message));
      }, timeoutMs);
      this.#waiting.set(id, {
        resolve: (answer) => {
          clearTimeout(timer);
          resolve(answer);
        },
        reject: (error) => {
          clearTimeout(timer);
          reject(error);
        },
      });
      const question: Question = { id, method, value };
      this.child.send(question, (error) => {
        if (error && this.#waiting.delete(id)) {
          clearTimeout(timer);
          reject(this.#gone());
        }
      });
    });
  }

  /** Kills the process and waits for its end. */
  async kill(): Promise<void> {
    if (this.#ended) return;
    const gone = new Promise((resolve) => this.child.once('exit', resolve));
    this.child.kill('SIGKILL');
    await gone;
  }
}

/** The script's side of {@link Remote}: answers questions until the asking process ends, which ends this one. */
export function serve(methods: Readonly<Record<string, (value: never) => unknown>>): void {
  const answer = (message: Answer) => process.send?.(message, () => {});
  process.on('message', async ({ id, method, value }: Question) => {
    try {
      answer({ id, value: (await methods[method](value as never)) ?? null });
    } catch (error) {
      answer({ id, error: error instanceof Error ? error.message : String(error) });
    }
  });
  process.on('disconnect', () => process.exit(0));
}
