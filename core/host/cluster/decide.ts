import type { ServerFacts } from '../../contract/index.js';

/** One server as it was seen. */
export interface Seen {
  readonly name: string;
  readonly reachable: boolean;
  /** When the first of the probes that failed in a row began; null while it answers. */
  readonly unreachableSince: number | null;
  /** Probes that failed in a row. */
  readonly failures: number;
  /** Its latest answer. */
  readonly facts: ServerFacts | null;
}

/** What is remembered of the past: only ever replaced as a whole. */
export interface Standing {
  /** The database history that this cluster serves; null before anything was seen. */
  readonly system: string | null;
  /** The highest timeline seen of it. */
  readonly timeline: number;
  /** The server that takes writes, or took them last. */
  readonly primary: string | null;
}

/** Who may be written to, and why the others may not. */
export interface Election {
  readonly standing: Standing;
  /** The server that takes writes now; null when none does. */
  readonly writable: string | null;
  /** Why a server is never used as it is now. */
  readonly refused: ReadonlyMap<string, Refusal>;
}

export type Refusal =
  /** It belongs to another database. */
  | 'other-system'
  /** Another server was promoted after it was the primary. */
  | 'old-timeline'
  /** It takes writes on the same timeline as the chosen one. */
  | 'second-primary';

/**
 * Finds the server that takes writes. A promotion once seen is never unseen: a server of a lower timeline is no candidate, even
 * when the promoted one is away.
 */
export function elect(seen: readonly Seen[], before: Standing): Election {
  const refused = new Map<string, Refusal>();
  const system = before.system ?? firstSystem(seen);
  const ours = seen.filter(({ facts }) => facts !== null && facts.system === system);
  for (const { name, facts } of seen) if (facts !== null && facts.system !== system) refused.set(name, 'other-system');

  const timeline = ours.reduce((highest, { facts }) => Math.max(highest, facts!.timeline), before.timeline);
  const primaries = ours.filter(({ reachable, facts }) => reachable && facts!.role === 'primary');
  for (const { name, facts } of primaries) if (facts!.timeline < timeline) refused.set(name, 'old-timeline');
  const candidates = primaries.filter(({ facts }) => facts!.timeline === timeline && facts!.writable);
  // Two on one timeline: each was promoted without the other's knowledge. Whoever serves goes on serving.
  const chosen =
    candidates.find(({ name }) => name === before.primary) ??
    candidates.reduce<Seen | null>(
      (best, each) => (best === null || each.facts!.position > best.facts!.position ? each : best),
      null,
    );
  for (const { name } of candidates) if (name !== chosen?.name) refused.set(name, 'second-primary');
  return {
    standing: { system, timeline, primary: chosen?.name ?? before.primary },
    writable: chosen?.name ?? null,
    refused,
  };
}

/** The same where several servers take writes beside each other: nothing speaks against any of them. One is used where one is needed. */
export function electAmong(seen: readonly Seen[], before: Standing): Election {
  const writing = seen.filter(({ reachable, facts }) => reachable && facts?.writable === true);
  const chosen = writing.find(({ name }) => name === before.primary) ?? writing[0] ?? null;
  return {
    standing: { system: null, timeline: 0, primary: chosen?.name ?? before.primary },
    writable: chosen?.name ?? null,
    refused: new Map(),
  };
}

/** Before anything is known the primary says which database this is, else the first server that answers. */
function firstSystem(seen: readonly Seen[]): string | null {
  const known = seen.filter(({ facts }) => facts !== null);
  return (known.find(({ facts }) => facts!.role === 'primary') ?? known[0])?.facts?.system ?? null;
}

/** All that the decision to promote depends on. Times are on one clock, in ms. */
export interface Situation {
  readonly now: number;
  readonly servers: readonly Seen[];
  readonly standing: Standing;
  readonly writable: string | null;
  /** Null when the gateway must not promote. */
  readonly promotion: { readonly after: number } | null;
  /** Whether a lost primary must be fenced before another server is promoted, and whether that was done. */
  readonly fence: 'none' | 'due' | 'done';
  /** A fence or promotion is under way. */
  readonly busy: boolean;
  /** When a promotion was last ordered and how it ended. */
  readonly last: { readonly at: number; readonly failed: boolean } | null;
}

export type Decision =
  | { readonly do: 'none' }
  /** Decide again at that time, or when something new is seen. */
  | { readonly do: 'wait'; readonly until: number | null; readonly why: string }
  | { readonly do: 'fence'; readonly server: string }
  | { readonly do: 'promote'; readonly server: string };

/** A promotion that failed is tried again after this time. */
export const RETRY_MS = 1000;
/** No second promotion within this time: a cluster whose servers come and go must not be promoted back and forth. */
export const COOLDOWN_MS = 5000;
/** One lost probe can be an accident of the network. */
export const MIN_FAILURES = 2;

/** Decides what the gateway does about a lost primary. */
export function decide(situation: Situation): Decision {
  const { now, servers, standing, promotion, last } = situation;
  if (promotion === null || situation.writable !== null) return { do: 'none' };
  if (situation.busy) return { do: 'wait', until: null, why: 'a fence or promotion is under way' };
  // A primary that was never seen may be about to start; promoting then would begin a new history for nothing.
  const lost = servers.find(({ name }) => name === standing.primary);
  if (lost === undefined) return { do: 'wait', until: null, why: 'no primary was ever seen' };
  if (lost.reachable || lost.unreachableSince === null) {
    return { do: 'wait', until: null, why: `server ${lost.name} answers, but takes no writes` };
  }
  const due = lost.unreachableSince + promotion.after;
  if (now < due) return { do: 'wait', until: due, why: `server ${lost.name} is not reachable` };
  if (lost.failures < MIN_FAILURES)
    return { do: 'wait', until: null, why: `server ${lost.name} failed one probe only` };
  if (last !== null) {
    const again = last.at + (last.failed ? RETRY_MS : COOLDOWN_MS);
    if (now < again) return { do: 'wait', until: again, why: 'a promotion was ordered a moment ago' };
  }
  const next = bestStandby(servers, standing);
  if (next === null) return { do: 'wait', until: null, why: 'no standby that could be promoted is reachable' };
  if (situation.fence === 'due') return { do: 'fence', server: lost.name };
  return { do: 'promote', server: next };
}

/** The reachable standby that has most of the history. */
function bestStandby(servers: readonly Seen[], standing: Standing): string | null {
  let best: Seen | null = null;
  for (const each of servers) {
    const { facts } = each;
    if (!each.reachable || facts === null || facts.role !== 'standby' || facts.system !== standing.system) continue;
    // One that has not followed the last promotion lacks everything since.
    if (facts.timeline < standing.timeline) continue;
    if (best === null || received(facts) > received(best.facts!)) best = each;
  }
  return best?.name ?? null;
}

/** How far a standby will be when it is promoted: it first replays what it has received. */
function received(facts: ServerFacts): bigint {
  return facts.position + BigInt(facts.lagBytes ?? 0);
}
