import type { Identity, Log } from '../contract/index.js';

/** A session that lost its server, as {@link Reservations} sees it. */
export interface Moving {
  readonly identity: Identity;
  /** What of its open unit may hold values that the lost server made up ({@link Mutables.gather}); null when nothing. */
  readonly gathered: unknown;
}

/**
 * After a failover nobody goes on before the new server is kept from making up again what clients hold: a sequence can be behind the
 * values that the lost server handed out, and whoever came first would get them a second time. For each user of a database one
 * session does that for all.
 */
export class Reservations {
  private readonly moving = new Set<Moving>();
  /** What is settled on the server of this instance. */
  private instance: string | null = null;
  private readonly settled = new Map<Moving, unknown>();
  /** Users of databases for which it is being done. */
  private readonly leading = new Set<string>();
  private waiting: (() => void)[] = [];

  constructor(private readonly log: Log) {}

  /** The session holds values and looks for a server. */
  add(session: Moving): void {
    this.moving.add(session);
  }

  /** What was found out when it was reserved what this session holds; null when nothing was. */
  found(session: Moving): unknown {
    return this.settled.get(session) ?? null;
  }

  /** It goes on, or is no more. */
  remove(session: Moving): void {
    if (!this.moving.delete(session)) return;
    this.settled.delete(session);
    this.wake();
  }

  /**
   * Waits until nothing that clients hold can be made up again on this server. To be called with a logged-in connection, before a
   * session uses it.
   * @param identity of the connection
   * @param instance of the server; null when it is not known
   * @param reserve does it for these sessions, over the caller's connection; when it rejects, another session of the same user tries
   * @param patience how long to wait for sessions of other users, in ms; what then is made up twice shows as an error of its insert
   */
  async pass(
    identity: Identity,
    instance: string | null,
    reserve: (sessions: readonly Moving[]) => Promise<unknown>,
    patience: number,
    signal: AbortSignal,
  ): Promise<void> {
    if (this.moving.size === 0) return;
    if (instance !== this.instance) {
      this.instance = instance;
      this.settled.clear();
    }
    const own = keyOf(identity);
    let late = false;
    const timer = setTimeout(() => {
      late = true;
      this.wake();
    }, patience);
    const quit = (): void => this.wake();
    signal.addEventListener('abort', quit, { once: true });
    try {
      while (!signal.aborted && this.instance === instance) {
        const open = [...this.moving].filter(
          (each) => each.identity.database === identity.database && !this.settled.has(each),
        );
        if (open.length === 0) return;
        const mine = open.filter((each) => keyOf(each.identity) === own);
        if (mine.length > 0 && !this.leading.has(own)) {
          this.leading.add(own);
          try {
            const found = await reserve(mine);
            if (this.instance !== instance) continue;
            for (const each of mine) if (this.moving.has(each)) this.settled.set(each, found);
          } finally {
            this.leading.delete(own);
            this.wake();
          }
          continue;
        }
        if (late) {
          this.log.warn(
            { database: identity.database, sessions: open.length },
            'values that clients hold could not be reserved in time on the new server',
          );
          // Nobody else waits for them. When they come they see for themselves what is left.
          for (const each of open) this.settled.set(each, null);
          this.wake();
          return;
        }
        await new Promise<void>((resolve) => this.waiting.push(resolve));
      }
    } finally {
      clearTimeout(timer);
      signal.removeEventListener('abort', quit);
    }
  }

  private wake(): void {
    const { waiting } = this;
    this.waiting = [];
    for (const resolve of waiting) resolve();
  }
}

function keyOf({ user, database }: Identity): string {
  return JSON.stringify([user, database]);
}
