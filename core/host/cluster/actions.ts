import type { ActionPlugin, Log, ServerFacts } from '../../contract/index.js';
import { type Decision, decide, type Seen, type Standing } from './decide.js';
import { incarnation, remember } from './incarnation.js';
import { codeOf } from './login.js';
import type { Outside } from './outside.js';
import type { ServerState } from './types.js';
import { orAborted } from './waits.js';

/** What the decisions are made from, as it is now. */
export interface View {
  readonly seen: readonly Seen[];
  readonly standing: Standing;
  readonly writable: string | null;
}

export interface ActionsOptions {
  readonly cluster: string;
  readonly promotion: { readonly after: number } | null;
  readonly plugins: { readonly promote?: ActionPlugin; readonly fence?: ActionPlugin };
  readonly outside: Outside;
  readonly log: Log;
  readonly signal: AbortSignal;
  readonly server: (name: string) => ServerState;
  readonly view: () => View;
  /** An action begins, or is over: what it changes will show soon. */
  readonly onAct: () => void;
}

interface Fence {
  done: boolean;
  failedAt: number | null;
  result: Promise<boolean>;
}

/** A fence that failed is tried again after this time. */
const FENCE_RETRY_MS = 1000;

/** Acts on servers: fences a lost primary, promotes a standby. */
export class Actions {
  readonly #options: ActionsOptions;
  readonly #fences = new Map<string, Fence>();
  #acting = false;
  #last: { at: number; failed: boolean } | null = null;
  #why = '';
  #cancelTimer: (() => void) | null = null;

  constructor(options: ActionsOptions) {
    this.#options = options;
    options.signal.addEventListener('abort', () => this.#cancelTimer?.(), { once: true });
  }

  /** A fence or promotion is under way. */
  get acting(): boolean {
    return this.#acting;
  }

  /** Decides anew, now that something has changed. */
  consider(): void {
    this.#cancelTimer?.();
    this.#cancelTimer = null;
    const { cluster, promotion, plugins, outside, log, signal } = this.#options;
    if (plugins.promote === undefined || promotion === null || signal.aborted) return;
    const { seen, standing, writable } = this.#options.view();
    const lost = seen.find(({ name }) => name === standing.primary);
    const fenced = lost?.facts != null && this.#fences.get(incarnation(lost.name, lost.facts))?.done === true;
    const decision = decide({
      now: outside.now(),
      servers: seen,
      standing,
      writable,
      promotion,
      fence: plugins.fence === undefined ? 'none' : fenced ? 'done' : 'due',
      busy: this.#acting,
      last: this.#last,
    });
    const why = decision.do === 'wait' ? decision.why : '';
    if (why !== this.#why && why !== '') log.info({ cluster }, `no promotion now: ${why}`);
    this.#why = why;
    if (decision.do === 'wait') {
      if (decision.until === null) return;
      const wait = Math.max(0, decision.until - outside.now());
      this.#cancelTimer = outside.after(wait, () => this.consider());
    } else if (decision.do !== 'none') void this.#carryOut(decision, plugins.promote);
  }

  async #carryOut(decision: Extract<Decision, { server: string }>, promote: ActionPlugin): Promise<void> {
    const { outside, signal, onAct } = this.#options;
    const state = this.#options.server(decision.server);
    this.#acting = true;
    onAct();
    if (decision.do === 'promote') await this.#promote(state, promote);
    else {
      const done = await this.fence(state, state.facts!, signal).catch(() => false);
      if (!done) this.#last = { at: outside.now(), failed: true };
    }
    this.#acting = false;
    if (signal.aborted) return;
    onAct();
    this.consider();
  }

  async #promote({ name: server, host, port }: ServerState, plugin: ActionPlugin): Promise<void> {
    const { cluster, outside, log } = this.#options;
    const at = outside.now();
    log.warn({ cluster, server }, 'promoting the server');
    try {
      await plugin.act(server, { host, port });
      this.#last = { at, failed: false };
      log.info({ cluster, server }, 'the server was promoted');
    } catch (error) {
      this.#last = { at: outside.now(), failed: true };
      log.error({ cluster, server, code: codeOf(error) }, 'the promotion failed');
    }
  }

  /** Fences an incarnation of a server once, whoever asks. True when it is fenced, or nothing is configured to do it. */
  async fence(server: ServerState, facts: ServerFacts, signal: AbortSignal): Promise<boolean> {
    const { plugins, outside } = this.#options;
    if (plugins.fence === undefined) return true;
    const key = incarnation(server.name, facts);
    let fence = this.#fences.get(key);
    if (fence === undefined || (fence.failedAt !== null && outside.now() - fence.failedAt >= FENCE_RETRY_MS)) {
      fence = { done: false, failedAt: null, result: Promise.resolve(false) };
      fence.result = this.#fence(plugins.fence, server, fence);
      remember(this.#fences, key, fence);
    }
    return orAborted(fence.result, signal);
  }

  async #fence(plugin: ActionPlugin, { name: server, host, port }: ServerState, fence: Fence): Promise<boolean> {
    const { cluster, outside, log } = this.#options;
    log.warn({ cluster, server }, 'fencing the lost server');
    try {
      await plugin.act(server, { host, port });
      fence.done = true;
      log.info({ cluster, server }, 'the lost server is fenced');
    } catch (error) {
      fence.failedAt = outside.now();
      log.error({ cluster, server, code: codeOf(error) }, 'the lost server could not be fenced');
    }
    return fence.done;
  }
}
