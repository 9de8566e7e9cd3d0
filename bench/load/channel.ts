import { type ChildProcess, fork } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { type Scope, track } from '../scope.js';
import type { News, Order } from './child.js';

/** A child process that makes load, seen from its parent. */
export class LoadChild {
  readonly #child: ChildProcess;
  readonly #news: News[] = [];
  #waiting: { news: string; resolve(news: News): void; reject(error: Error): void }[] = [];
  #failure: Error | undefined;

  constructor(scope: Scope) {
    this.#child = fork(fileURLToPath(new URL('./child.js', import.meta.url)), {
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
    });
    track(this.#child);
    scope.defer(() => this.stop());
    this.#child.on('message', (message) => this.#take(message as News));
    this.#child.once('error', (error) => this.#fail(error));
    this.#child.once('exit', (code, signal) => this.#fail(new Error(`the load process ended (${signal ?? code})`)));
  }

  /** The process id, for its CPU time. */
  get pid(): number {
    return this.#child.pid ?? -1;
  }

  /** Gives an order. */
  send(order: Order): void {
    if (this.#child.connected) this.#child.send(order);
  }

  /** Waits for news of this name; what came before and was not waited for counts. */
  async next<T = unknown>(news: string): Promise<News & T> {
    const at = this.#news.findIndex((each) => each.news === news);
    if (at >= 0) return this.#news.splice(at, 1)[0] as News & T;
    if (this.#failure) throw this.#failure;
    return (await new Promise<News>((resolve, reject) => {
      this.#waiting.push({ news, resolve, reject });
    })) as News & T;
  }

  /** Ends the process and waits for its end. */
  async stop(): Promise<void> {
    const child = this.#child;
    if (child.exitCode !== null || child.signalCode !== null) return;
    const ended = new Promise((resolve) => child.once('exit', resolve));
    const timer = setTimeout(() => child.kill('SIGKILL'), 3000);
    if (child.connected) child.disconnect();
    await ended;
    clearTimeout(timer);
  }

  #take(news: News): void {
    if (news.news === 'failed') {
      this.#fail(new Error(String(news.message)));
      return;
    }
    const at = this.#waiting.findIndex((each) => each.news === news.news);
    if (at >= 0) this.#waiting.splice(at, 1)[0].resolve(news);
    else this.#news.push(news);
  }

  #fail(error: Error): void {
    this.#failure ??= error;
    for (const { reject } of this.#waiting) reject(this.#failure);
    this.#waiting = [];
  }
}
