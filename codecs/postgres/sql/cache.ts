import { asBuffer } from './classify.js';
import type { SqlEnvironment } from './facts.js';
import { analyseQuery, type QueryFacts } from './query.js';

export interface QueryCacheOptions {
  /** Texts to remember, at most. */
  readonly texts?: number;
  /** Longer texts (in bytes) are read anew each time: they seldom come twice. */
  readonly longest?: number;
  /** Bytes of text to remember, at most. */
  readonly bytes?: number;
}

/** Two generations: what was not asked for while the younger one filled up is forgotten with the older one. */
class Generations {
  #young = new Map<string, QueryFacts>();
  #old = new Map<string, QueryFacts>();
  #size = 0;
  readonly #texts: number;
  readonly #bytes: number;

  constructor(texts: number, bytes: number) {
    this.#texts = Math.max(1, texts >> 1);
    this.#bytes = bytes / 2;
  }

  get size(): number {
    return this.#young.size + this.#old.size;
  }

  get(text: string): QueryFacts | undefined {
    const young = this.#young.get(text);
    if (young !== undefined) return young;
    const old = this.#old.get(text);
    if (old !== undefined) {
      this.#old.delete(text);
      this.add(text, old);
    }
    return old;
  }

  add(text: string, facts: QueryFacts): void {
    if (this.#young.size >= this.#texts || this.#size + text.length > this.#bytes) {
      this.#old = this.#young;
      this.#young = new Map();
      this.#size = 0;
    }
    this.#young.set(text, facts);
    this.#size += text.length;
  }
}

/** Remembers what texts mean, for all sessions of a server process. */
export class QueryCache {
  readonly #texts: number;
  readonly #longest: number;
  readonly #bytes: number;
  /** By what else decides how a text is read. */
  readonly #environments = new Map<string, Generations>();

  constructor(options: QueryCacheOptions = {}) {
    this.#texts = options.texts ?? 4096;
    this.#longest = options.longest ?? 16_384;
    this.#bytes = options.bytes ?? 8 * 1024 * 1024;
  }

  /** Texts remembered now. */
  get size(): number {
    let size = 0;
    for (const generations of this.#environments.values()) size += generations.size;
    return size;
  }

  /** As analyseQuery, from memory where the text was seen before. */
  read(bytes: Uint8Array, start: number, end: number, env: SqlEnvironment): QueryFacts {
    if (end - start > this.#longest) return analyseQuery(bytes, start, end, env);
    const environment = (env.standardConformingStrings ? '' : '\\') + (env.encoding ?? 'UTF8');
    let generations = this.#environments.get(environment);
    if (generations === undefined) {
      generations = new Generations(this.#texts, this.#bytes);
      this.#environments.set(environment, generations);
    }
    const text = asBuffer(bytes).toString('latin1', start, end);
    const known = generations.get(text);
    if (known !== undefined) return known;
    const facts = analyseQuery(bytes, start, end, env);
    generations.add(text, facts);
    return facts;
  }
}
