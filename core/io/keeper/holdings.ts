import type { Kind } from './protocol.js';

/** How much a keeper keeps. */
export interface HoldingLimits {
  /** Bytes of notes of one key. */
  readonly notesPerKey: number;
  /** Bytes of all notes. */
  readonly notes: number;
}

export const DEFAULT_LIMITS: HoldingLimits = { notesPerKey: 32 * 1024 * 1024, notes: 512 * 1024 * 1024 };

/** What a note costs besides its bytes, roughly: so that very many very small ones are bounded as well. */
const NOTE_OVERHEAD = 128;

/** What is kept under one key. */
export interface Holding {
  readonly key: string;
  readonly kind: Kind;
  readonly label: string;
  readonly fd: number;
  /** In the order in which they came. */
  readonly notes: readonly Uint8Array[];
  /** False when notes were refused since the last one that replaced all. */
  readonly complete: boolean;
}

interface Entry extends Holding {
  notes: Uint8Array[];
  size: number;
  complete: boolean;
}

/** The descriptors (as bare numbers) and notes of an engine, with limits: pure. */
export class Holdings {
  readonly #entries = new Map<string, Entry>();
  #size = 0;

  constructor(readonly limits: HoldingLimits) {}

  get count(): number {
    return this.#entries.size;
  }

  /** Bytes of notes, with what they cost besides. */
  get size(): number {
    return this.#size;
  }

  /** @returns the descriptor that the key had before, to be closed; null when it had none */
  keep(key: string, kind: Kind, label: string, fd: number): number | null {
    const before = this.drop(key);
    this.#entries.set(key, { key, kind, label, fd, notes: [], size: 0, complete: true });
    return before;
  }

  /** @returns the descriptor of the key, to be closed; null when it has none */
  drop(key: string): number | null {
    const entry = this.#entries.get(key);
    if (entry === undefined) return null;
    this.#forget(entry);
    this.#entries.delete(key);
    return entry.fd;
  }

  /**
   * Adds a note, or replaces all of its key by it. An empty note that replaces leaves none. A note that does not fit takes those
   * of its key with it, since a journal with a hole is of no use; later ones are refused until one replaces all.
   *
   * @returns null, or why it was refused; a key is told once
   */
  note(key: string, bytes: Uint8Array, replace: boolean): string | null {
    const entry = this.#entries.get(key);
    if (entry === undefined) return 'nothing is kept under this key';
    if (replace) this.#forget(entry);
    else if (!entry.complete) return null;
    entry.complete = true;
    if (bytes.length === 0) return null;
    const cost = bytes.length + NOTE_OVERHEAD;
    const tooMany = entry.size + cost > this.limits.notesPerKey;
    if (tooMany || this.#size + cost > this.limits.notes) {
      this.#forget(entry);
      entry.complete = false;
      return tooMany ? 'too many bytes of notes for this key' : 'too many bytes of notes';
    }
    entry.notes.push(bytes);
    entry.size += cost;
    this.#size += cost;
    return null;
  }

  /** Whether this, and not another one under its key, is still kept. */
  has(holding: Holding): boolean {
    return this.#entries.get(holding.key) === holding;
  }

  /** Everything, in the order in which it was kept. */
  all(): Holding[] {
    return [...this.#entries.values()];
  }

  #forget(entry: Entry): void {
    this.#size -= entry.size;
    entry.size = 0;
    entry.notes = [];
  }
}
