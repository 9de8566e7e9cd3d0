import type { PairLink } from '../../io/pair-link.js';
import type { Keeping } from './keeping.js';
import type { Records } from './shipper.js';

/** Where records go: to the gateway that follows while there is one, and to the keeper if there is one. */
export class Journal implements Records {
  /** To the gateway that follows: it confirms. */
  private link: PairLink | null = null;
  private base = 0;

  constructor(
    private readonly keeping: Keeping | null,
    /** All records below this position are safe. */
    private readonly onSafe: (position: number) => void,
  ) {
    if (keeping !== null) {
      keeping.onSafe = (count) => {
        if (this.link === null) this.onSafe(count - this.base + 1);
      };
    }
  }

  append(kind: number, session: number, bytes: Uint8Array): number {
    const count = this.keeping?.append(kind, session, bytes) ?? 0;
    return this.link === null ? count - this.base : this.link.append(kind, session, bytes);
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

  /** From now on the gateway at the other end of this link follows: positions are those of the link. */
  to(link: PairLink): void {
    this.link = link;
  }

  /** From now on the keeper alone confirms, and positions begin anew. */
  alone(): void {
    this.link = null;
    this.base = this.keeping?.append(NO_RECORD, 0, NOTHING) ?? 0;
  }
}

/** No session has the number 0: it is noted nowhere. */
const NO_RECORD = 0;
const NOTHING = new Uint8Array(0);
