/** How long learnt facts are taken for fresh. */
const TTL_MS = 60_000;
/** After a failure it is not tried again for this time. */
const RETRY_MS = 1000;
const MAX_DATABASES = 1000;

interface Entry {
  value: unknown;
  /** When `value` was learnt; negative infinity before the first time. */
  at: number;
  failedAt: number;
  /** Changes that were announced; facts learnt before the latest one are stale. */
  wanted: number;
  running: Promise<unknown> | null;
  /** `wanted` when the running one began. */
  runningFor: number;
}

/** Facts per database that all its sessions share; each learnt once, whoever asks. */
export class Learned {
  readonly #now: () => number;
  readonly #entries = new Map<string, Entry>();

  /** @param now in ms */
  constructor(now: () => number) {
    this.#now = now;
  }

  /** What is known now; undefined when nothing is. */
  peek(database: string): unknown {
    return this.#entries.get(database)?.value;
  }

  /** Somebody else has learnt this: it is taken for old facts where nothing is known. */
  give(database: string, value: unknown): void {
    const entry = this.#entry(database);
    if (value === undefined || entry.at !== Number.NEGATIVE_INFINITY) return;
    entry.value = value;
    entry.at = this.#now() - TTL_MS;
  }

  /**
   * The facts of a database. The first ask waits for them; when they are old they are learnt anew behind the scenes.
   * @param learn learns them; not called when somebody else is doing it
   */
  async get(database: string, learn: () => Promise<unknown>): Promise<unknown> {
    const entry = this.#entry(database);
    if (entry.at === Number.NEGATIVE_INFINITY) return this.#learn(entry, learn);
    if (this.#now() - entry.at >= TTL_MS) this.#learn(entry, learn).catch(() => {});
    return entry.value;
  }

  /** Learns the facts of a database anew, because they are known to have changed; what was under way before does not count. */
  async refresh(database: string, learn: () => Promise<unknown>): Promise<unknown> {
    const entry = this.#entry(database);
    const wanted = ++entry.wanted;
    while (entry.running !== null && entry.runningFor < wanted) await entry.running.catch(() => {});
    return this.#learn(entry, learn);
  }

  #entry(database: string): Entry {
    let entry = this.#entries.get(database);
    if (entry === undefined) {
      // The oldest entry goes: clients could name databases without end.
      if (this.#entries.size >= MAX_DATABASES) this.#entries.delete(this.#entries.keys().next().value!);
      const never = Number.NEGATIVE_INFINITY;
      entry = { value: undefined, at: never, failedAt: never, wanted: 0, running: null, runningFor: 0 };
      this.#entries.set(database, entry);
    }
    return entry;
  }

  #learn(entry: Entry, learn: () => Promise<unknown>): Promise<unknown> {
    if (entry.running !== null) return entry.running;
    if (this.#now() - entry.failedAt < RETRY_MS) return Promise.resolve(entry.value);
    entry.runningFor = entry.wanted;
    const running = (async () => {
      try {
        entry.value = await learn();
        entry.at = this.#now();
        return entry.value;
      } catch (error) {
        entry.failedAt = this.#now();
        throw error;
      } finally {
        entry.running = null;
      }
    })();
    entry.running = running;
    return running;
  }
}
