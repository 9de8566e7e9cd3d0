import type { ListenerConfig, MisplacedReason } from '../config/index.js';
import type { ServerState } from './types.js';

/** What a listener asks of its servers. */
export interface Wish extends Pick<ListenerConfig, 'standby'> {
  readonly target: 'standby' | 'any';
}

/** A server was chosen, and counts as having one session more until this is called. May be called again without effect. */
export type Release = () => void;

/** A standby that was too far behind is used again when it is behind by less than this part of what is allowed. */
const CAUGHT_UP = 0.5;

/**
 * Chooses the servers of a listener whose sessions may live on several: the one with the fewest of its sessions. Knows how many are on
 * each, those that log in included. Opens no connections.
 */
export class Choice {
  /** Sessions by server, without those that have none. */
  readonly counts = new Map<string, number>();
  private readonly lagging = new Set<string>();

  /**
   * @param primary the server that takes writes now, where there is one only
   */
  constructor(
    readonly wish: Wish,
    private readonly servers: () => readonly ServerState[],
    private readonly primary: () => ServerState | null,
  ) {}

  /** Servers of the kind that the listener asks for, in the configuration's order; else the primary, where that is allowed. */
  eligible(): ServerState[] {
    const fitting = this.servers().filter((server) => this.fits(server));
    if (fitting.length > 0 || this.wish.target === 'any' || this.wish.standby.without === 'refuse') return fitting;
    const primary = this.primary();
    return primary === null ? [] : [primary];
  }

  /** Whether new sessions may go to this server now. */
  admits(server: ServerState): boolean {
    return this.eligible().includes(server);
  }

  /**
   * The server for a session; null when there is none now.
   * @param preferred name of one that is chosen if it is eligible
   */
  pick(preferred?: string): ServerState | null {
    const eligible = this.eligible();
    return eligible.find(({ name }) => name === preferred) ?? this.fewest(eligible);
  }

  /** The first of these servers on which the fewest sessions are; null of none. */
  fewest(of: readonly ServerState[], count = (name: string) => this.counts.get(name) ?? 0): ServerState | null {
    let best: ServerState | null = null;
    for (const each of of) if (best === null || count(each.name) < count(best.name)) best = each;
    return best;
  }

  /** A session goes to this server. */
  claim({ name }: ServerState): Release {
    const { counts } = this;
    counts.set(name, (counts.get(name) ?? 0) + 1);
    let held = true;
    return () => {
      if (!held) return;
      held = false;
      const left = counts.get(name)! - 1;
      if (left === 0) counts.delete(name);
      else counts.set(name, left);
    };
  }

  /**
   * Why a session that is on this server would not be put there now; null when it would, or when it has nowhere better to go.
   * @param was what the server was when the session's connection was made
   */
  misplaced(server: ServerState, was: 'primary' | 'standby' | null): MisplacedReason | null {
    const { facts, reachable } = server;
    // Whoever is lost with its server is not moved, but goes on elsewhere.
    if (this.wish.target === 'any' || facts === null || !reachable) return null;
    const elsewhere = this.eligible().some((each) => each !== server);
    // It takes writes now, and the session does not know: also where it stays there, it must be on a connection that does.
    if (facts.role === 'primary' && was === 'standby') return 'promoted';
    if (!elsewhere || this.fits(server)) return null;
    return facts.role === 'primary' ? 'fallback' : this.lagging.has(server.name) ? 'lagging' : null;
  }

  private fits(server: ServerState): boolean {
    const { facts, reachable, refused, behind, name } = server;
    if (facts === null || !reachable || refused !== null) return false;
    if (this.wish.target === 'any') return facts.writable;
    if (facts.role !== 'standby') return false;
    const { maxLag } = this.wish.standby;
    const bound = this.lagging.has(name) ? maxLag * CAUGHT_UP : maxLag;
    if ((behind ?? 0) > bound) this.lagging.add(name);
    else this.lagging.delete(name);
    return !this.lagging.has(name);
  }
}
