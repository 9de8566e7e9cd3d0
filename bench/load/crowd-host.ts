import type { Host } from '../../core/host/demo/lab/lab.js';
import { Remote } from '../../core/host/demo/lab/remote.js';
import type { CrowdOrder, CrowdReport } from './crowd.js';

/** Many light connections from one host of a lab, in a process of their own: each can ask something, and is otherwise idle. */
export class Crowd {
  readonly #remote: Remote;

  private constructor(remote: Remote) {
    this.#remote = remote;
  }

  /** Starts the process; nothing is connected yet. */
  static start(host: Host): Crowd {
    const child = host.spawn(process.execPath, [host.lab.path('bench/load/crowd.js')], {
      cwd: '/',
      env: { ...process.env, NODE_OPTIONS: '' },
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
    });
    return new Crowd(new Remote(child, `the crowd on ${host.name}`));
  }

  /** Opens connections, 16 at a time. Rejects with OUTLIVE_LAB_FAILED when one is refused. */
  async open(order: CrowdOrder): Promise<void> {
    await this.#remote.ask('open', order, 300_000);
  }

  /**
   * Lets connections ask something; resolves when all is sent. None of them may owe an answer.
   * @param from the first of them, in the order in which they were opened, from 0
   * @param to the one behind the last of them; by default there is none
   * @returns how many did
   */
  async ask(from = 0, to: number | null = null): Promise<number> {
    return await this.#remote.ask('ask', { from, to });
  }

  /** Waits until none owes an answer, and tells how they got on. */
  async answers(timeoutMs: number): Promise<CrowdReport> {
    return await this.#remote.ask('answers', timeoutMs, timeoutMs + 10_000);
  }

  /** Ends the process and with it all connections. */
  async kill(): Promise<void> {
    await this.#remote.kill();
  }
}
