import { type BalanceConfig, type BalanceMemory, decideMoves, NO_MEMORY, type Verdict } from '../../cluster/balance.js';
import { reachedClusters, type Statistics } from '../../cluster/statistics.js';
import type { Log } from '../../contract/index.js';
import type { PairAddress } from './address.js';

/** A session as far as its part of the work is concerned. */
export interface Working {
  /** The gateway's address on its connection. */
  readonly address: string;
  /** It can be moved to the other gateway without harm to its client. */
  readonly movable: boolean;
  /** Grows with the work that it makes; only differences count. */
  readonly work: number;
}

/** What is known when it is decided; times are on one clock, in ms. */
export interface BalanceView {
  readonly now: number;
  readonly self: Statistics;
  /** When the load in `self` was measured. */
  readonly measuredAt: number;
  /** The other gateway as it was heard last. */
  readonly peer: { readonly statistics: Statistics; readonly heardAt: number } | null;
  /** The link to it is up. */
  readonly linked: boolean;
  readonly addresses: readonly PairAddress[];
  readonly sessions: readonly Working[];
}

/** For the status. */
export interface BalanceStatus {
  /** Why nothing moves now, or that something does. */
  readonly verdict: Verdict;
  /** Addresses that were given to the other gateway because it had less to do, and attempts that came to nothing. */
  readonly moved: number;
  readonly failed: number;
  /** The last one that was given away; null when none ever was. */
  readonly last: { readonly address: string; readonly factor: string; readonly at: string } | null;
}

/** How often it is decided, in ms. */
const EVERY_MS = 1000;

/**
 * Chooses the addresses that this gateway gives to the other one so that both have as much to do. Each gateway decides for itself about what it
 * has, so that at most the busier one gives. Moves nothing itself.
 */
export class Balancing {
  private verdict: Verdict = 'unknown';
  private moved = 0;
  private failed = 0;
  private last: BalanceStatus['last'] = null;
  private memory: BalanceMemory = NO_MEMORY;
  private at = Number.NEGATIVE_INFINITY;
  /** What each session had done when it was looked at last. */
  private readonly done = new WeakMap<Working, number>();
  /** By address: what its sessions do per second, smoothed. */
  private readonly work = new Map<string, number>();
  private readonly factors = new Map<string, string>();

  constructor(
    private readonly config: BalanceConfig,
    private readonly log: Log,
  ) {}

  /** For the status page. */
  get status(): BalanceStatus {
    const { verdict, moved, failed, last } = this;
    return { verdict, moved, failed, last };
  }

  /**
   * The addresses that are to be given away now. May be called at any time: it decides about once a second.
   *
   * @returns mostly none
   */
  propose(view: BalanceView): PairAddress[] {
    const { now, self, peer, addresses } = view;
    if (now - this.at < EVERY_MS) return [];
    this.weigh(view, now - this.at);
    this.at = now;
    if (peer === null) return [];
    const other = peer.statistics;
    const members = [
      memberOf(self, view.measuredAt, !self.draining),
      memberOf(other, peer.heardAt, view.linked && mayReceive(self, other)),
    ];
    const units = addresses.flatMap((one) => {
      const leaving = one.serving || (one.moving && !one.taking);
      const theirs = other.addresses[one.address];
      if (!leaving && theirs?.serves !== true) return [];
      return {
        id: one.address,
        on: leaving ? self.name : other.name,
        movingTo: one.taking ? self.name : one.moving || one.balance ? other.name : null,
        movable:
          one.serving &&
          one.order === null &&
          view.sessions.every((each) => each.address !== one.address || each.movable),
        sessions: (leaving ? self.addresses[one.address]?.sessions : theirs?.sessions) ?? 0,
        work: leaving ? (this.work.get(one.address) ?? null) : null,
        moved: one.moved,
      };
    });
    const { memory } = this;
    const decision = decideMoves(now, { members, units, giver: self.name, memory }, this.config);
    this.memory = decision.memory;
    this.verdict = decision.verdict;
    return decision.moves.map(({ id, factor }) => {
      this.factors.set(id, factor);
      this.log.info({ address: id, factor, to: other.name }, 'the other gateway has less to do: moving an address');
      return addresses.find(({ address }) => address === id)!;
    });
  }

  /** A move that was proposed is over, whether it was done or not. What could not be moved is left alone for a while. */
  over(one: PairAddress, now: number, name: string): void {
    one.balance = false;
    if (one.serving) {
      this.failed++;
      one.moved = { at: now, from: name };
      return;
    }
    this.moved++;
    const factor = this.factors.get(one.address) ?? '';
    this.last = { address: one.address, factor, at: new Date().toISOString() };
  }

  /** Measures what the sessions of each address do. */
  private weigh({ sessions, addresses }: BalanceView, elapsed: number): void {
    const found = new Map<string, number>();
    for (const each of sessions) {
      const { address, work } = each;
      found.set(address, (found.get(address) ?? 0) + work - (this.done.get(each) ?? 0));
      this.done.set(each, work);
    }
    const kept = 0.5 ** (elapsed / this.config.halfLife);
    for (const { address } of addresses) {
      const before = this.work.get(address);
      // Of the first look there is no telling how long it took.
      const rate = elapsed === Number.POSITIVE_INFINITY ? 0 : ((found.get(address) ?? 0) * 1000) / elapsed;
      this.work.set(address, before === undefined ? rate : before * kept + rate * (1 - kept));
    }
  }
}

function memberOf({ name, load }: Statistics, measuredAt: number, available: boolean) {
  const { cpu, eventLoopDelayMs, sessions } = load;
  return { name, available, measuredAt, cpu: Math.min(1, cpu), eventLoopDelayMs, sessions };
}

/** What is given to it is in good hands: it reaches all that this gateway reaches, and follows the sessions in such a way that it can go on. */
function mayReceive(self: Statistics, peer: Statistics): boolean {
  const { total, adoptable } = peer.shadows;
  if (peer.draining || peer.reaches.store === false || (total > 0 && adoptable === 0)) return false;
  const reached = reachedClusters(peer);
  return [...reachedClusters(self)].every((cluster) => reached.has(cluster));
}
