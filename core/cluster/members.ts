/**
 * Several gateways: which of them follows the sessions of this one, which of them matters for an address, and which goes first with an
 * address that has lost its owner. Pure.
 */
import type { LinkState } from './decide.js';
import { ranked } from './rendezvous.js';
import { addressOf, type Statistics } from './statistics.js';

/** Another gateway, as it is known here. */
export interface MemberView {
  readonly name: string;
  readonly link: LinkState;
  /** What it said last since this process started, and when; null when it never did. */
  readonly heard: { readonly statistics: Statistics; readonly heardAt: number } | null;
}

/** What the choice of a follower depends on; times are on one clock, in ms. */
export interface FollowerChoice {
  readonly now: number;
  /** Name of this gateway. */
  readonly self: string;
  readonly peers: readonly MemberView[];
  /** Who follows now; null for nobody. */
  readonly present: string | null;
  /** Who is to follow because of an order, if it is there; null for none. */
  readonly ordered: string | null;
  /** A gateway that follows well is left for a nearer one only when that one was there for so long. */
  readonly settle: number;
}

/**
 * Chooses who follows the sessions of this gateway: of those whose link is up the first in rendezvous order. One that drains or does not reach the
 * lease store could take nothing over, and is chosen only where there is no other.
 *
 * @returns its name; null when nobody is there
 */
export function chooseFollower({ now, self, peers, present, ordered, settle }: FollowerChoice): string | null {
  const there = new Map(peers.filter(({ link }) => link.state === 'up').map((peer) => [peer.name, peer]));
  if (ordered !== null && there.has(ordered)) return ordered;
  const order = ranked(self, there.keys());
  const best = order.find((name) => able(there.get(name)!)) ?? order[0] ?? null;
  const follower = present === null ? undefined : there.get(present);
  if (best === null || best === present || follower === undefined) return best;
  // Those that cannot take over are all the same: nothing is gained.
  if (!able(there.get(best)!)) return present;
  return able(follower) && now - there.get(best)!.link.since < settle ? present : best;
}

/** It could take something over, as far as it has said over this link. */
function able(peer: MemberView): boolean {
  const statistics = linked(peer);
  return statistics === null || (!statistics.draining && statistics.reaches.store !== false);
}

/** What a gateway said over the link that is up; null when it has not spoken over it yet, or there is none. */
function linked({ link, heard }: MemberView): Statistics | null {
  return link.state === 'up' && heard !== null && heard.heardAt >= link.since ? heard.statistics : null;
}

/** What is known here of an address. */
export interface AddressView {
  readonly address: string;
  readonly home: string;
  /** It is served here. */
  readonly serving: boolean;
  /** The highest epoch that is known of it; the one it is served under when it is. */
  readonly epoch: number;
}

/**
 * Who has an address, or had it last: by what each said last, the one with the highest epoch. What one that is not heard any more said counts
 * only as long as no higher epoch is known.
 *
 * @returns null when nobody but this gateway had it, as far as is known
 */
export function ownerOf({ address, serving, epoch }: AddressView, peers: readonly MemberView[]): MemberView | null {
  const claims = peers.map((peer) => {
    const claim = peer.heard === null ? null : addressOf(peer.heard.statistics, address);
    return { peer, claim, here: linked(peer) !== null };
  });
  const highest = Math.max(epoch, ...claims.map(({ claim }) => claim?.epoch ?? 0));
  let best: (typeof claims)[number] | null = null;
  for (const each of claims) {
    const { claim, here } = each;
    // Connections that stand still are with who had it last.
    if (claim === null || !(claim.serves || claim.resumes || (!serving && claim.sessions > 0))) continue;
    if ((serving || !here) && claim.epoch < (serving ? epoch : highest)) continue;
    const before = best === null ? -1 : best.claim!.epoch;
    if (claim.epoch > before || (claim.epoch === before && here && !best!.here)) best = each;
  }
  return best?.peer ?? null;
}

/**
 * The gateway that matters for an address: whose word, link and state `decide` is to look at.
 *
 * @param peers all others, at least one
 * @param receiver who gets what this gateway gives away; null when nobody could
 */
export function counterpartOf(
  self: string,
  view: AddressView,
  peers: readonly MemberView[],
  receiver: string | null,
): MemberView {
  const { home, serving } = view;
  const owner = ownerOf(view, peers);
  if (owner !== null) return owner;
  const named = (name: string | null) => peers.find((peer) => peer.name === name);
  // Whoever was heard last: when not even that one is there, nobody is.
  const any = () => peers.toSorted((x, y) => latest(y) - latest(x))[0];
  if (serving) return named(receiver) ?? any();
  return (home === self ? undefined : named(home)) ?? any();
}

/** Those that are there first, then by when they were heard. */
function latest(peer: MemberView): number {
  return linked(peer) === null ? (peer.heard?.heardAt ?? Number.NEGATIVE_INFINITY) : Number.POSITIVE_INFINITY;
}

/**
 * How many gateways go first with an address whose owner is gone, of those that are there and could take it: who follows the sessions of the
 * owner, by its latest choice; then the home of the address; then all others in rendezvous order.
 *
 * @param self name of this gateway
 * @param follows by which choice this gateway follows the sessions of others, as in its statistics
 * @param matters from {@link counterpartOf}
 */
export function aheadOf(
  self: string,
  follows: Statistics['follows'],
  view: AddressView,
  matters: MemberView,
  peers: readonly MemberView[],
): number {
  const others = peers.filter((peer) => peer !== matters && linked(peer) !== null && able(peer));
  if (others.length === 0) return 0;
  const names = [self, ...others.map(({ name }) => name)];
  const order = [view.home, ...ranked(matters.name, names)].filter((name) => names.includes(name));
  if (ownerOf(view, peers) === matters) {
    const shadow = followerOf(matters.name, self, follows, others);
    if (shadow !== null) order.unshift(shadow);
  }
  return [...new Set(order)].indexOf(self);
}

/**
 * Who follows the sessions of a gateway: who says so by its latest choice. One that was not reached when another one was chosen still believes
 * that it does.
 */
export function followerOf(
  owner: string,
  self: string,
  follows: Statistics['follows'],
  peers: readonly MemberView[],
): string | null {
  let best: { readonly name: string; readonly choice: number } | null = null;
  const say = (name: string, all: Statistics['follows']): void => {
    if (Object.hasOwn(all, owner) && (best === null || all[owner] > best.choice)) best = { name, choice: all[owner] };
  };
  say(self, follows);
  for (const peer of peers) {
    const statistics = linked(peer);
    if (statistics !== null) say(peer.name, statistics.follows);
  }
  return (best as { readonly name: string } | null)?.name ?? null;
}
