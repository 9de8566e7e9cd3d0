import {
  type BalanceConfig,
  type BalanceMemory,
  decideMoves,
  NO_MEMORY,
  refill,
  SESSION_BALANCE,
  type Verdict,
} from '../cluster/balance.js';
import type { Log } from '../contract/index.js';
import type { Choice, ServerState } from './cluster/index.js';
import type { MisplacedReason, SessionBalanceConfig } from './config/index.js';

/** A live session as far as its place is concerned. */
export interface Placed {
  /** Its server; null while it has none. */
  readonly server: ServerState | null;
  /** What that server was when the connection was made. */
  readonly role: 'primary' | 'standby' | null;
  /** It could be moved, as soon as it comes to a safe point. */
  readonly relocatable: boolean;
  /** The last time that it changed its server, on the clock of `now`. */
  readonly moved: { readonly at: number; readonly from: string } | null;
}

/** Why a session moves. */
export type MoveReason = 'uneven' | MisplacedReason;

/** A session that is to be moved. */
export interface SessionMove<T extends Placed> {
  readonly session: T;
  readonly from: ServerState;
  readonly to: ServerState;
  readonly reason: MoveReason;
}

/** For the status. */
export interface SessionBalanceStatus {
  /** Why nothing moves now, or that something does; `settling`: a server changed a moment ago. */
  readonly verdict: Verdict | 'settling';
  /** Sessions that were moved, and those that stayed because they came to no safe point in time. */
  readonly moved: number;
  readonly failed: number;
  /** On their way. */
  readonly moving: number;
}

/** How often it is decided, in ms. */
const EVERY_MS = 1000;

/**
 * Chooses the live sessions of a listener that are moved to another of its servers: first those whose server is not one that the listener
 * would choose now, then as many as make the servers even. Moves nothing itself, and reads no clock.
 */
export class SessionBalancing<T extends Placed> {
  private verdict: SessionBalanceStatus['verdict'] = 'unknown';
  private moved = 0;
  private failed = 0;
  private memory: BalanceMemory = NO_MEMORY;
  private at = Number.NEGATIVE_INFINITY;
  private readonly rules: BalanceConfig;
  private readonly moving = new Map<T, SessionMove<T>>();
  /** When it was last tried in vain to move a session, and from where. */
  private readonly stayed = new WeakMap<T, { readonly at: number; readonly from: string }>();
  /** Sessions need names where it is decided. */
  private readonly names = new WeakMap<T, string>();
  private named = 0;
  private picture = '';
  private changedAt = Number.NEGATIVE_INFINITY;

  constructor(
    private readonly config: SessionBalanceConfig,
    private readonly choice: Choice,
    private readonly log: Log,
  ) {
    this.rules = { ...SESSION_BALANCE, ...config };
  }

  /** For the status page. */
  get status(): SessionBalanceStatus {
    const { verdict, moved, failed, moving } = this;
    return { verdict, moved, failed, moving: moving.size };
  }

  /**
   * The sessions to be moved now. May be called at any time: it decides about once a second. Each of them must be told of by
   * {@link over} once.
   *
   * @returns mostly none
   */
  propose(now: number, servers: readonly ServerState[], sessions: readonly T[]): SessionMove<T>[] {
    if (now - this.at < EVERY_MS) return [];
    this.at = now;
    const eligible = this.choice.eligible();
    this.look(now, servers, eligible);
    // Whoever comes and goes would send its sessions to and fro with it.
    if (now - this.changedAt < this.config.pause) {
      this.verdict = 'settling';
      this.memory = { ...this.memory, imbalance: null };
      return [];
    }
    const allowance = refill(now, this.memory.allowance, this.rules);
    const moves = this.misplaced(allowance.moves, eligible, sessions);
    this.memory = { ...this.memory, allowance: { moves: allowance.moves - moves.length, at: now } };
    for (const move of moves) this.moving.set(move.session, move);
    if (this.config.conditions.uneven) moves.push(...this.even(now, eligible, servers, sessions));
    else this.verdict = 'balanced';
    if (moves.length > 0) {
      this.verdict = 'moving';
      this.log.debug({ sessions: moves.length }, 'moving sessions to other servers');
    }
    return moves;
  }

  /** A move that was proposed is over. What could not be moved is left alone for a while. */
  over({ session, from }: SessionMove<T>, now: number, done: boolean): void {
    this.moving.delete(session);
    if (done) this.moved++;
    else {
      this.failed++;
      this.stayed.set(session, { at: now, from: from.name });
    }
  }

  /** Notes whether any server came, went or became something else. */
  private look(now: number, servers: readonly ServerState[], eligible: readonly ServerState[]): void {
    const picture = JSON.stringify(
      servers.map((server) => [
        server.name,
        server.reachable,
        server.refused,
        server.facts?.role,
        server.facts?.instance,
        eligible.includes(server),
      ]),
    );
    if (picture === this.picture) return;
    // What is seen first is no change.
    if (this.picture !== '') this.changedAt = now;
    this.picture = picture;
  }

  /** Sessions that the listener would put elsewhere now, as far as that is allowed. */
  private misplaced(most: number, eligible: readonly ServerState[], sessions: readonly T[]): SessionMove<T>[] {
    const moves: SessionMove<T>[] = [];
    const coming = new Map<string, number>();
    const count = (name: string) => (this.choice.counts.get(name) ?? 0) + (coming.get(name) ?? 0);
    for (const session of sessions) {
      if (moves.length + 1 > most) break;
      const { server: from, role } = session;
      if (from === null || this.moving.has(session)) continue;
      const reason = this.choice.misplaced(from, role);
      if (reason === null || !this.config.conditions[reason] || !session.relocatable) continue;
      const to = this.choice.fewest(eligible, count);
      if (to === null) break;
      coming.set(to.name, (coming.get(to.name) ?? 0) + 1);
      moves.push({ session, from, to, reason });
    }
    return moves;
  }

  /** Sessions that move so that the servers have as many. */
  private even(
    now: number,
    eligible: readonly ServerState[],
    servers: readonly ServerState[],
    sessions: readonly T[],
  ): SessionMove<T>[] {
    const byName = new Map(servers.map((server) => [server.name, server]));
    const byId = new Map<string, T>();
    const counts = new Map<string, number>();
    const units = sessions.flatMap((session) => {
      const { server, moved } = session;
      if (server === null) return [];
      counts.set(server.name, (counts.get(server.name) ?? 0) + 1);
      // The others leave anyway, and none of them is to be brought back.
      if (!eligible.includes(server)) return [];
      const id = this.nameOf(session);
      byId.set(id, session);
      const movingTo = this.moving.get(session)?.to.name ?? null;
      const stayed = this.stayed.get(session) ?? null;
      const last = stayed !== null && (moved === null || stayed.at > moved.at) ? stayed : moved;
      const movable = movingTo === null && session.relocatable;
      return [{ id, on: server.name, movingTo, movable, sessions: 1, work: null, moved: last }];
    });
    const members = eligible.map(({ name }) => {
      const unknown = { measuredAt: now, cpu: null, eventLoopDelayMs: null };
      return { name, available: true, ...unknown, sessions: counts.get(name) ?? 0 };
    });
    const decision = decideMoves(now, { members, units, giver: null, memory: this.memory }, this.rules);
    this.memory = decision.memory;
    this.verdict = decision.verdict;
    return decision.moves.map(({ id, from, to }) => {
      const session = byId.get(id)!;
      const move: SessionMove<T> = { session, from: byName.get(from)!, to: byName.get(to)!, reason: 'uneven' };
      this.moving.set(session, move);
      return move;
    });
  }

  private nameOf(session: T): string {
    let name = this.names.get(session);
    if (name === undefined) this.names.set(session, (name = String(++this.named)));
    return name;
  }
}
