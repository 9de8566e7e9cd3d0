import type { IKeyValue, IWatchResponse } from 'etcd3';
import type { Log, Term } from '../../core/contract/index.js';
import type { Store } from './store.js';

/** Who watches a key, and what it was told. */
interface Watcher {
  readonly key: string;
  readonly changed: (holder: Term | null) => void;
  /** The holder that it was told; undefined before it was told any. */
  told: Term | null | undefined;
  /** The revision of the store that this came from: what is older is no news. */
  revision: number;
}

/** The terms of all keys as the store answered. */
export interface Look {
  readonly revision: number;
  readonly terms: ReadonlyMap<string, { readonly term: Term; readonly revision: number }>;
}

/**
 * Tells watchers of changes: by a stream from the store, and by looking on a beat as well, so that nothing depends on a stream that
 * may have died unnoticed.
 */
export class Watches {
  readonly #watchers = new Set<Watcher>();
  readonly #store: Store;
  readonly #prefix: Buffer;
  readonly #end: Buffer;
  readonly #parse: (pair: IKeyValue) => { key: string; term: Term } | null;
  readonly #log: Log;
  #stream: { cancel(): void } | null = null;
  #opening = false;
  #lastLook = 0;

  /** @param range first key and the key behind the last; @param parse reads a key and its value; null when there is none (deleted) or it is not ours */
  constructor(
    store: Store,
    range: { readonly start: Buffer; readonly end: Buffer },
    parse: (pair: IKeyValue) => { key: string; term: Term } | null,
    log: Log,
  ) {
    this.#store = store;
    this.#prefix = range.start;
    this.#end = range.end;
    this.#parse = parse;
    this.#log = log;
  }

  get size(): number {
    return this.#watchers.size;
  }

  /** The first call of `changed` tells the state as it is. */
  add(key: string, changed: (holder: Term | null) => void): () => void {
    const watcher: Watcher = { key, changed, told: undefined, revision: -1 };
    this.#watchers.add(watcher);
    return () => {
      this.#watchers.delete(watcher);
      if (this.#watchers.size === 0) this.drop();
    };
  }

  /** What a look at the store found. Looks are given in the order in which they were asked. */
  looked({ revision, terms }: Look): void {
    if (revision < this.#lastLook) {
      this.#log.warn({ revision, before: this.#lastLook }, 'the lease store lost part of its history');
      for (const watcher of this.#watchers) watcher.revision = -1;
    }
    this.#lastLook = revision;
    for (const watcher of [...this.#watchers]) {
      const found = terms.get(watcher.key);
      this.#tell(watcher, found === undefined ? revision : found.revision, found?.term ?? null);
    }
  }

  /** Opens the stream if there is none and somebody watches. `look` is called when it is open: what happened before is not in it. */
  async open(look: () => void): Promise<void> {
    if (this.#stream !== null || this.#opening || this.#watchers.size === 0) return;
    this.#opening = true;
    try {
      const { client } = this.#store;
      const stream = await client.watchClient.watch();
      const over = () => {
        if (this.#stream === stream) this.drop();
      };
      stream.on('data', (answer) => {
        if (answer.canceled) over();
        else if (answer.created) look();
        else this.#news(answer);
      });
      stream.on('error', over);
      stream.on('end', over);
      if (client !== this.#store.client) {
        stream.cancel();
        return;
      }
      stream.write({ create_request: { key: this.#prefix, range_end: this.#end } });
      this.#stream = stream;
    } catch (error) {
      this.#log.debug({ error: String(error) }, 'the lease store cannot be watched now');
    } finally {
      this.#opening = false;
    }
  }

  /** Gives the stream up; the next {@link open} opens another one. */
  drop(): void {
    const stream = this.#stream;
    this.#stream = null;
    stream?.cancel();
  }

  #news(answer: IWatchResponse): void {
    this.#store.heard = performance.now();
    for (const { kv } of answer.events) {
      const revision = Number(kv.mod_revision);
      const start = kv.key.subarray(0, this.#prefix.length);
      if (!start.equals(this.#prefix)) continue;
      const key = kv.key.subarray(this.#prefix.length).toString();
      const term = this.#parse(kv)?.term ?? null;
      for (const watcher of [...this.#watchers]) if (watcher.key === key) this.#tell(watcher, revision, term);
    }
  }

  #tell(watcher: Watcher, revision: number, term: Term | null): void {
    if (revision <= watcher.revision) return;
    watcher.revision = revision;
    const { told } = watcher;
    if (told !== undefined && told?.epoch === term?.epoch && told?.owner === term?.owner) return;
    watcher.told = term;
    try {
      watcher.changed(term);
    } catch (error) {
      this.#log.error({ key: watcher.key, error: String(error) }, 'whoever watches a term failed');
    }
  }
}
