import type { PairLink } from '../../io/pair-link.js';
import type { Keeping } from './keeping.js';
import type { Records } from './shipper.js';

/** Where records go: to the other gateway while it is there, and to the keeper if there is one. */
export class Journal implements Records {
  /** The other gateway is there: it confirms. */
  linked = false;
  private base = 0;

  constructor(
    private readonly link: PairLink | null,
    private readonly keeping: Keeping | null,
    /** All records below this position are safe. */
    private readonly onSafe: (position: number) => void,
  ) {
    if (keeping !== null) {
      keeping.onSafe = (count) => {
        if (!this.linked) this.onSafe(count - this.base + 1);
      };
    }
  }

  append(kind: number, session: number, bytes: Uint8Array): number {
    const count = this.keeping?.append(kind, session, bytes) ?? 0;
    return this.linked ? this.link!.append(kind, session, bytes) : count - this.base;
  }

  get keeps(): boolean {
    return this.keeping !== null;
  }

  begin(session: number, fd: number): void {
    this.keeping?.keep(session, fd);
  }

  inherit(session: number, key: string): void {
    this.keeping?.inherit(session, key);
  }

  end(session: number): void {
    this.keeping?.end(session);
  }

  grown(session: number): boolean {
    return this.keeping?.grown(session) === true;
  }

  /** From now on the keeper alone confirms, and positions begin anew. */
  alone(): void {
    this.linked = false;
    this.base = this.keeping?.append(NO_RECORD, 0, NOTHING) ?? 0;
  }
}

/** No session has the number 0: it is noted nowhere. */
const NO_RECORD = 0;
const NOTHING = new Uint8Array(0);
