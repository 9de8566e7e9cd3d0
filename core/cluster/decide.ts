import { type AddressStatistics, addressOf, type Condition, reachedClusters, type Statistics } from './statistics.js';

/**
 * What a gateway does about each address, decided from what is known: a list of rules finds where the address should be (the
 * wish), and a table says what may be done about it (the action). Pure: the same situation gives the same decision.
 *
 * There are two gateways in it, this one and its peer. Of several, the peer is the one that matters for the address (`counterpartOf`), and of
 * the others only counts how many of them go first (`aheadOf`).
 *
 * Two hosts alone cannot tell a dead peer from a cut cable. Therefore nothing is taken from a silent peer without a proof that it does not
 * write any more: the lease of the store, or a fence command that succeeded after it was last heard.
 */

/** The conditions under which something moves. */
export interface ConditionsConfig {
  /** The peer's host is not heard, or cannot reach the lease store: take over what it had. Default true. */
  readonly hostFailed: boolean;
  /** The peer's host refuses connections, so that its process is gone: take over what it had. Default true. */
  readonly processFailed: boolean;
  /** A database server is lost: its sessions move to another one. Decided by the cluster monitor, not here. Default true. */
  readonly dbmsFailed: boolean;
  /** A database server takes no writes any more: its sessions move to another one. Decided by the cluster monitor, not here. Default true. */
  readonly dbmsReadOnly: boolean;
  /** A gateway reaches fewer clusters than its peer, for a while: its addresses move there. Default true. */
  readonly unreachableBackends: boolean;
  /** Orders to take over and to drain are followed, and a gateway that is being stopped gives its addresses away. Default true. */
  readonly operator: boolean;
  /** Addresses move to the gateway that has less to do. Default false. */
  readonly balance: boolean;
}

export const DEFAULT_CONDITIONS: ConditionsConfig = {
  hostFailed: true,
  processFailed: true,
  dbmsFailed: true,
  dbmsReadOnly: true,
  unreachableBackends: true,
  operator: true,
  balance: false,
};

/** The names of the conditions that are on, for {@link Statistics}. */
export function enabledConditions(conditions: ConditionsConfig): Condition[] {
  return (Object.keys(conditions) as Condition[]).filter((each) => conditions[each]);
}

/** How long what must last before it counts; all in ms. */
export interface DecisionTiming {
  /** A peer that was not heard for so long is silent. Default 1000. */
  readonly silence: number;
  /** A peer whose host refuses connections may be being restarted by its keeper; counts from when it was last heard. Default 1500. */
  readonly restart: number;
  /** A process that said that another one on its host goes on with what it had, or that it goes on itself, may take so long. Default 10000. */
  readonly resume: number;
  /** A gateway that never heard its peer leaves it so long to come up before it asks for the peer's addresses. Default 30000. */
  readonly start: number;
  /** One gateway must reach less than the other for so long: their monitors do not notice at the same time. Default 3000. */
  readonly unreachable: number;
  /** Without peer, store and backends for so long: stop. Default 2000. */
  readonly isolation: number;
  /** Nothing is written in the last part of a lease: the time that stopping may take, and what clocks may differ. Default 500. */
  readonly leaseMargin: number;
  /** The gateway whose name is the greater waits so much longer before it fences, so that not both are shot. Default 2000. */
  readonly fenceDelay: number;
  /** A fence command that failed is run again after so long. Default 5000. */
  readonly fenceRetry: number;
  /** Each gateway that goes first with an address that is free has so long for it. Default 5000. */
  readonly turn: number;
}

export const DEFAULT_TIMING: DecisionTiming = {
  silence: 1000,
  restart: 1500,
  resume: 10_000,
  start: 30_000,
  unreachable: 3000,
  isolation: 2000,
  leaseMargin: 500,
  fenceDelay: 2000,
  fenceRetry: 5000,
  turn: 5000,
};

/**
 * The connection to the peer. What was heard before `since` was heard over an earlier connection: it may be older than a planned move that was
 * begun over that one, and nothing is begun on its word.
 */
export type LinkState =
  | { readonly state: 'up'; readonly since: number }
  /**
   * - `silent`: nothing comes, or connecting times out
   * - `refused`: the host answers that nobody listens
   * - `left`: the peer said goodbye in order
   */
  | { readonly state: 'down'; readonly since: number; readonly why: 'silent' | 'refused' | 'left' };

/** The means to make sure that a silent peer is off. */
export interface FenceState {
  /** A fence command is configured. */
  readonly configured: boolean;
  /** What became of its last run; `done` also when an operator vouches for it that the peer is off. */
  readonly state: 'idle' | 'running' | 'done' | 'failed';
  /** When that state began. */
  readonly at: number;
}

/** What is known of one address. */
export interface AddressSituation {
  readonly address: string;
  /** The gateway that has it when nothing speaks against it. */
  readonly home: string;
  /** This gateway serves it. */
  readonly serving: boolean;
  /** The epoch under which it serves; without meaning when it does not. Every take must raise it above all that were ever seen. */
  readonly epoch: number;
  /** A planned move, a take or a fence for it is under way here. */
  readonly moving: boolean;
  /** What an operator wants: that this gateway takes it, or gives it to the peer. Held until it is fulfilled or withdrawn. */
  readonly order: 'take' | 'give' | null;
  /** The load balance wants it at the peer. */
  readonly balance: boolean;
  /** It is not served yet, and its connections are here: the process before this one served it, and a keeper held them. Not for ever. */
  readonly resumes: boolean;
  /** That process was about to give it to the peer, or had stopped: the peer may have it. */
  readonly given: boolean;
  /** Whoever had a lease under this gateway's name is dead, and its lease may be taken on. */
  readonly heir: boolean;
  /** How many gateways that are there go first where the address has no owner any more: its shadow, then its home. 0 in a pair. */
  readonly ahead: number;
  /** Since when nobody has the lease, as far as is known; null when somebody has it, or that is not known. */
  readonly freeSince: number | null;
  readonly lease: {
    /** Until when this gateway's own lease is valid; null when it has none. */
    readonly validUntil: number | null;
    /** Who holds it in the store: null for nobody, undefined when that is not known. */
    readonly holder: string | null | undefined;
  };
}

/** Everything that decisions depend on. Times are on one clock of this process that never goes back (`performance.now()`), in ms. */
export interface Situation {
  readonly now: number;
  /** This gateway's own statistics, made just now. `reaches.store` tells whether a lease store is configured. */
  readonly self: Statistics;
  /** The peer's last statistics since this process started, and when they came; null when none ever did. */
  readonly peer: { readonly statistics: Statistics; readonly heardAt: number } | null;
  readonly link: LinkState;
  readonly fence: FenceState;
  /** From {@link compareReach}. */
  readonly comparison: Comparison;
  /** When this process started. */
  readonly startedAt: number;
  readonly addresses: readonly AddressSituation[];
  readonly conditions: ConditionsConfig;
  readonly timing: DecisionTiming;
}

/**
 * - `keep`: go on serving
 * - `take`: begin to serve now
 * - `ask-lease`: try to get the lease
 * - `fence`: run the fence command
 * - `yield`: give it to the peer in a planned move, or the right to it when nobody serves it
 * - `stop`: stop writing at once, without a word to the clients
 * - `none`: leave it as it is
 */
export type Action = 'keep' | 'take' | 'ask-lease' | 'fence' | 'yield' | 'stop' | 'none';

/** Which of the two gateways reaches fewer clusters, and since when. */
export interface Comparison {
  readonly worse: 'self' | 'peer' | null;
  readonly since: number;
}

/**
 * Compares what the two reach. One is worse only when it reaches a part of what the other reaches; when each misses something else, a move
 * would help nobody.
 *
 * @param before the last result, which keeps the time since when it is so
 */
export function compareReach(
  now: number,
  self: Statistics,
  peer: Statistics | null,
  before: Comparison | null,
): Comparison {
  const worse = peer === null ? null : worseOf(reachedClusters(self), reachedClusters(peer));
  return before !== null && before.worse === worse ? before : { worse, since: now };
}

function worseOf(self: ReadonlySet<string>, peer: ReadonlySet<string>): 'self' | 'peer' | null {
  const has = (one: ReadonlySet<string>, other: ReadonlySet<string>) => [...other].every((each) => one.has(each));
  if (self.size === peer.size) return null;
  if (self.size < peer.size) return has(peer, self) ? 'self' : null;
  return has(self, peer) ? 'peer' : null;
}

/**
 * How the peer is heard.
 * - `linked`: the link is up and it speaks
 * - `lapsed`: it was heard a moment ago, but not over the link that is up, if one is; too early to say anything
 * - `silent`: it is not heard
 * - `refused`: its host is there, its process is not
 * - `left`: it said goodbye
 * - `unmet`: it was never heard since this process started
 */
export const CONTACTS = ['linked', 'lapsed', 'silent', 'refused', 'left', 'unmet'] as const;
export type Contact = (typeof CONTACTS)[number];

/**
 * Where the address is, as far as is known.
 * - `here`: this gateway serves it
 * - `outranked`: so it does, but the peer serves it under a higher epoch
 * - `kept`: this gateway's process before served it, its connections are here, and the peer has not taken it as far as it can be heard
 * - `peer`: the peer says that it serves it
 * - `resuming`: the peer says that it is about to go on with what its process before served
 * - `open`: the peer says that it does not serve it, nor does this gateway, and this is its home, or only this one has its connections
 * - `open-peer`: likewise, and this is not its home
 * - `left`: the peer left in order and did not have it
 * - `away`: not here, and the peer is not heard
 * - `unmet`: not here, and the peer was never heard
 */
export const PLACES = [
  'here',
  'outranked',
  'kept',
  'peer',
  'resuming',
  'open',
  'open-peer',
  'left',
  'away',
  'unmet',
] as const;
export type Place = (typeof PLACES)[number];

/**
 * What proves that nobody else writes.
 * - `none`: nothing could: neither a store nor a fence command
 * - `unfit`: a fence command is there, but this gateway reaches no backend, and is more likely to be the one that is cut off
 * - `fence`: the fence command can be run
 * - `fencing`: it runs, failed a moment ago, or the other gateway goes first
 * - `fenced`: it succeeded since the peer was last heard, or an operator says so
 * - `mine`: this gateway has the lease
 * - `ending`: so it does, but not for long enough any more
 * - `theirs`: somebody else has the lease
 * - `free`: nobody has the lease, or only this gateway's process before
 * - `unknown`: the store does not say
 */
export const PROOFS = [
  'none',
  'unfit',
  'fence',
  'fencing',
  'fenced',
  'mine',
  'ending',
  'theirs',
  'free',
  'unknown',
] as const;
export type Proof = (typeof PROOFS)[number];

/** The situation of one address, cut down to what rules and table look at. */
export interface Facts {
  readonly moving: boolean;
  readonly isolated: boolean;
  readonly order: 'take' | 'give' | null;
  readonly balance: boolean;
  readonly selfDraining: boolean;
  readonly peerDraining: boolean;
  /** Which one reaches less, long enough. */
  readonly worse: 'self' | 'peer' | null;
  /** A lease store is configured, this gateway reaches it and the peer says that it does not. */
  readonly peerWithoutStore: boolean;
  readonly contact: Contact;
  readonly place: Place;
  /** It is this gateway's to begin with where nobody serves it. */
  readonly home: boolean;
  /** The time that a peer is given to come up is over. */
  readonly waited: boolean;
  /** No other gateway goes first with the address, or it had its time. */
  readonly turn: boolean;
  readonly proof: Proof;
}

/** Cuts a situation down to what is decided on. */
export function observe(situation: Situation, address: AddressSituation): Facts {
  const { now, self, peer, timing } = situation;
  const contact = contactOf(situation);
  const linked = contact === 'linked';
  const proof = proofOf(situation, address);
  return {
    moving: address.moving,
    isolated:
      !linked &&
      now - lastHeard(situation) >= timing.isolation &&
      self.reaches.store !== true &&
      reachedClusters(self).size === 0,
    order: address.order,
    balance: address.balance,
    selfDraining: self.draining,
    peerDraining: peer?.statistics.draining ?? false,
    worse: now - situation.comparison.since >= timing.unreachable ? situation.comparison.worse : null,
    peerWithoutStore: self.reaches.store === true && peer?.statistics.reaches.store === false,
    contact,
    place: placeOf(situation, address, contact),
    home: isHome(situation, address, contact),
    waited: now - situation.startedAt >= timing.start,
    turn: proof === 'mine' || turnOf(situation, address),
    proof,
  };
}

/** Only one asks for what is free: the others would take it from who has its sessions. */
function turnOf({ now, timing }: Situation, { serving, ahead, freeSince }: AddressSituation): boolean {
  return serving || ahead === 0 || (freeSince !== null && now - freeSince >= ahead * timing.turn);
}

function lastHeard({ peer, startedAt }: Situation): number {
  return peer?.heardAt ?? startedAt;
}

function contactOf({ now, peer, link, timing }: Situation): Contact {
  if (peer === null) return 'unmet';
  const quiet = now - peer.heardAt;
  if (link.state === 'down' && link.why === 'left') return 'left';
  // Whoever makes a link is there, and says how it is in a moment, however long it was away before.
  if (link.state === 'up' && peer.heardAt < link.since) return now - link.since < timing.silence ? 'lapsed' : 'silent';
  if (quiet < timing.silence) return link.state === 'up' ? 'linked' : 'lapsed';
  if (link.state === 'up' || link.why === 'silent') return 'silent';
  // One that is to be followed by another process on its host has said so.
  const resumes = Object.values(peer.statistics.addresses).some((address) => address.resumes);
  return quiet < Math.max(timing.restart, resumes ? timing.resume : 0) ? 'lapsed' : 'refused';
}

/**
 * May what the process before served be gone on with, as far as the peer is concerned? It may have taken it meanwhile. A lease store knows that;
 * without one the peer is listened to first, unless it is not there.
 */
function mayResume(
  { now, self, peer, link, timing }: Situation,
  { given }: AddressSituation,
  contact: Contact,
  claim: AddressStatistics | null,
): boolean {
  if (self.reaches.store !== null) return true;
  if (given) return contact === 'linked' && claim?.resumes !== true;
  // Both died, and one of them had taken it from the other one: that both begin is the one thing that must not be.
  if (peer !== null) return claim?.resumes !== true || self.name < peer.statistics.name;
  return (link.state === 'down' && link.why !== 'silent') || now - link.since >= timing.silence;
}

function placeOf(situation: Situation, address: AddressSituation, contact: Contact): Place {
  const { self, peer } = situation;
  const claim = peer === null ? null : addressOf(peer.statistics, address.address);
  const theirs = claim?.serves === true ? claim.epoch : null;
  if (address.serving) {
    if (theirs === null || theirs < address.epoch) return 'here';
    // Equal epochs are somebody's mistake; both must come to the same end of it.
    return theirs > address.epoch || peer!.statistics.name < self.name ? 'outranked' : 'here';
  }
  if (address.resumes && theirs === null && mayResume(situation, address, contact, claim)) return 'kept';
  if (contact === 'unmet') return 'unmet';
  if (contact === 'left' && theirs === null) return 'left';
  if (contact !== 'linked') return 'away';
  if (theirs !== null) return 'peer';
  if (claim?.resumes === true) return 'resuming';
  return isHome({ self, peer }, address, contact) ? 'open' : 'open-peer';
}

/**
 * Whether this gateway is to begin with an address that nobody serves: the one that is configured, unless only the other one has connections
 * there. Those stand still, because its lease ended; whoever else began with it would lose them.
 */
function isHome(
  { self, peer }: Pick<Situation, 'self' | 'peer'>,
  { address, home, serving }: AddressSituation,
  contact: Contact,
): boolean {
  const [mine, theirs] = [self, peer?.statistics ?? null].map((one) => {
    const found = one === null ? null : addressOf(one, address);
    return found !== null && !found.serves && found.sessions > 0;
  });
  return contact === 'linked' && !serving && mine !== theirs ? mine : home === self.name;
}

function proofOf(situation: Situation, address: AddressSituation): Proof {
  const { now, self, timing } = situation;
  if (self.reaches.store === null) return fenceProof(situation);
  const { validUntil, holder } = address.lease;
  // A lease that has ended says nothing any more to one who does not serve under it.
  if (validUntil !== null && (address.serving || now < validUntil)) {
    return validUntil - now > timing.leaseMargin ? 'mine' : 'ending';
  }
  if (holder === undefined || !self.reaches.store) return 'unknown';
  // Its own name without a lease of its own: it died and is back before the lease of its former life has ended.
  return holder === null || (holder === self.name && address.heir) ? 'free' : 'theirs';
}

function fenceProof({ now, self, peer, fence, timing }: Situation): Proof {
  // What was fenced and is heard again is alive again.
  if (fence.state === 'done' && (peer === null || fence.at > peer.heardAt)) return 'fenced';
  if (!fence.configured) return 'none';
  if (fence.state === 'running' || (fence.state === 'failed' && now < fence.at + timing.fenceRetry)) return 'fencing';
  if (reachedClusters(self).size === 0) return 'unfit';
  const second = peer !== null && self.name > peer.statistics.name;
  return second && now < peer.heardAt + timing.silence + timing.fenceDelay ? 'fencing' : 'fence';
}

/**
 * Where the address should be.
 * - `here`, `there`: at this gateway, at the peer
 * - `stay`: where it is
 * - `moving`: it is on its way; only the loss of the lease counts
 * - `isolated`: nowhere as far as this gateway is concerned: it is cut off from everything
 */
export const WISHES = ['here', 'there', 'stay', 'moving', 'isolated'] as const;
export type Wish = (typeof WISHES)[number];

interface Rule {
  readonly name: string;
  readonly wish: Wish;
  readonly when: (facts: Facts, on: ConditionsConfig) => boolean;
}

/** The peer hears this gateway and takes what it is given. */
const accepts = ({ contact, peerDraining }: Facts) => contact === 'linked' && !peerDraining;
/** Its connections are with a peer that was heard a moment ago, and perhaps only starts again: it is not shot for that. */
const brief = ({ contact, place }: Facts) => contact === 'lapsed' && place === 'away';
/** Nobody serves it, as both say. */
const open = ({ place }: Facts) => place === 'open' || place === 'open-peer';

/**
 * Why an address should be somewhere. The first rule that applies counts.
 * biome-ignore format: a table is read by columns
 */
export const RULES = [
  { name: 'moving',                wish: 'moving',   when: (f) => f.moving },
  { name: 'isolated',              wish: 'isolated', when: (f) => f.isolated },
  { name: 'kept',                  wish: 'here',     when: (f) => f.place === 'kept' },
  { name: 'others-first',          wish: 'stay',     when: (f) => !f.turn },
  { name: 'operator-take',         wish: 'here',     when: (f, on) => on.operator && f.order === 'take' && !brief(f) },
  { name: 'operator-give',         wish: 'there',    when: (f, on) => on.operator && f.order === 'give' && accepts(f) },
  { name: 'draining',              wish: 'there',    when: (f, on) => on.operator && f.selfDraining && accepts(f) },
  { name: 'draining-alone',        wish: 'stay',     when: (f) => f.selfDraining },
  { name: 'peer-draining',         wish: 'here',     when: (f, on) => on.operator && f.contact === 'linked' && f.peerDraining },
  { name: 'backends-better-there', wish: 'there',    when: (f, on) => on.unreachableBackends && accepts(f) && f.worse === 'self' },
  { name: 'backends-better-here',  wish: 'here',     when: (f, on) => on.unreachableBackends && f.contact === 'linked' && f.worse === 'peer' },
  { name: 'peer-without-store',    wish: 'here',     when: (f, on) => on.hostFailed && f.contact === 'linked' && f.peerWithoutStore },
  { name: 'balance',               wish: 'there',    when: (f, on) => on.balance && f.balance && f.place === 'here' && accepts(f) },
  { name: 'peer-left',             wish: 'here',     when: (f, on) => on.operator && f.contact === 'left' },
  { name: 'peer-silent',           wish: 'here',     when: (f, on) => on.hostFailed && f.contact === 'silent' },
  { name: 'peer-process-gone',     wish: 'here',     when: (f, on) => on.processFailed && f.contact === 'refused' },
  { name: 'home',                  wish: 'here',     when: (f) => f.home && (open(f) || f.place === 'unmet') },
  { name: 'peer-never-came',       wish: 'here',     when: (f, on) => on.hostFailed && f.place === 'unmet' && f.waited },
  { name: 'as-it-is',              wish: 'stay',     when: () => true },
] as const satisfies readonly Rule[];

export type RuleName = (typeof RULES)[number]['name'];

/** What a row of the table gives for a reason, in words. */
export const REASONS = {
  serving: 'it is served here, and nobody else may',
  unrivalled: 'cut off from everything, but nobody else could have taken it',
  'cut-off': 'cut off from everything; another gateway may be about to take it',
  'lease-ending': 'the lease was not renewed and is about to end',
  'lease-lost': 'it is served here without the lease',
  'lease-won': 'the lease is here',
  'lease-free': 'nobody has the lease',
  'lease-theirs': 'another gateway has the lease',
  'lease-unknown': 'the store must be asked who has the lease',
  outranked: 'the peer serves it under a higher epoch',
  planned: 'a planned move to the peer',
  'await-peer': 'the peer has it or the right to it, and must give it away',
  'no-proof':
    'the peer may be alive behind a cut cable, and neither lease store nor fence command is there to make sure',
  'fence-first': 'the peer must be made unable to write first',
  'fence-waits': 'the fence command runs, failed a moment ago, or is left to the other gateway first',
  unfit: 'no backend is reached from here: more likely this gateway is cut off than the peer dead',
  fenced: 'the peer was fenced',
  resumed: 'the process before served it here, and its connections are here',
  'await-resumed': 'the peer is about to go on with what its process before served',
  'nobody-serves': 'the peer says that nobody serves it, and the right to it is here',
  'never-met': 'the peer was not heard since the start, and may serve it',
  'not-wanted': 'nothing speaks for a move',
  moving: 'it is on its way',
} as const;
export type Reason = keyof typeof REASONS;

/** A cell of the table. */
export interface Cell {
  readonly action: Action;
  readonly reason: Reason;
}

const to = (action: Action, reason: Reason): Cell => ({ action, reason });
const keep = to('keep', 'serving');
const alone = to('keep', 'unrivalled');
const give = to('yield', 'planned');
const cut = to('stop', 'cut-off');
const late = to('stop', 'lease-ending');
const lost = to('stop', 'lease-lost');
const lower = to('stop', 'outranked');
const won = to('take', 'lease-won');
const shot = to('take', 'fenced');
const begin = to('take', 'nobody-serves');
const resume = to('take', 'resumed');
const ask = to('ask-lease', 'lease-free');
const poll = to('ask-lease', 'lease-unknown');
const shoot = to('fence', 'fence-first');
const blind = to('none', 'no-proof');
const unfit = to('none', 'unfit');
const waits = to('none', 'fence-waits');
const theirs = to('none', 'lease-theirs');
const ends = to('none', 'lease-ending');
const await_ = to('none', 'await-peer');
const defer = to('none', 'await-resumed');
const unmet = to('none', 'never-met');
const idle = to('none', 'not-wanted');
const pause = to('none', 'moving');
const off = to('none', 'cut-off');

/**
 * What may be done, by what is proved. A missing cell does not compile.
 * biome-ignore format: a table is read by columns
 */
export const ROWS = {
  // It is served here, and
  /* goes on */                    serve:    { none: keep,   unfit: keep,   fence: keep,   fencing: keep,   fenced: keep,   mine: keep,  ending: late,  theirs: lost,   free: lost, unknown: lost },
  /* belongs to the peer now */    give:     { none: give,   unfit: give,   fence: give,   fencing: give,   fenced: give,   mine: give,  ending: late,  theirs: lost,   free: lost, unknown: lost },
  /* nothing can be reached */     withdraw: { none: alone,  unfit: cut,    fence: cut,    fencing: cut,    fenced: alone,  mine: cut,   ending: late,  theirs: lost,   free: lost, unknown: lost },
  /* the peer has the right */     resign:   { none: lower,  unfit: lower,  fence: lower,  fencing: lower,  fenced: lower,  mine: lower, ending: lower, theirs: lower,  free: lower,unknown: lower },
  // It is not served here, is wanted, and
  /* the peer has or may take it */await:    { none: await_, unfit: await_, fence: await_, fencing: await_, fenced: await_, mine: won,   ending: ends,  theirs: await_, free: ask,  unknown: poll },
  /* its connections are here */  resume:   { none: resume, unfit: resume, fence: resume, fencing: resume, fenced: resume, mine: won,   ending: ends,  theirs: theirs, free: ask,  unknown: poll },
  /* nobody can have it */         begin:    { none: begin,  unfit: begin,  fence: begin,  fencing: begin,  fenced: begin,  mine: won,   ending: ends,  theirs: theirs, free: ask,  unknown: poll },
  /* the peer is not heard */      claim:    { none: blind,  unfit: unfit,  fence: shoot,  fencing: waits,  fenced: shot,   mine: won,   ending: ends,  theirs: theirs, free: ask,  unknown: poll },
  /* the peer was never heard */   first:    { none: unmet,  unfit: unmet,  fence: unmet,  fencing: unmet,  fenced: shot,   mine: won,   ending: ends,  theirs: theirs, free: ask,  unknown: poll },
  // It is not served here, and
  /* need not be */                idle:     { none: idle,   unfit: idle,   fence: idle,   fencing: idle,   fenced: idle,   mine: won,   ending: ends,  theirs: idle,   free: idle, unknown: idle },
  /* the peer shall begin */       offer:    { none: give,   unfit: give,   fence: give,   fencing: give,   fenced: give,   mine: give,  ending: ends,  theirs: idle,   free: idle, unknown: idle },
  /* somebody else shall begin */  release:  { none: idle,   unfit: idle,   fence: idle,   fencing: idle,   fenced: idle,   mine: give,  ending: ends,  theirs: idle,   free: idle, unknown: idle },
  /* the peer resumes it */        defer:    { none: defer,  unfit: defer,  fence: defer,  fencing: defer,  fenced: defer,  mine: give,  ending: ends,  theirs: defer,  free: defer,unknown: defer },
  /* is on its way */              pause:    { none: pause,  unfit: pause,  fence: pause,  fencing: pause,  fenced: pause,  mine: pause, ending: pause, theirs: pause,  free: pause,unknown: pause },
  /* could not be */               off:      { none: off,    unfit: off,    fence: off,    fencing: off,    fenced: off,    mine: off,   ending: off,   theirs: off,    free: off,  unknown: off },
} as const satisfies Record<string, Record<Proof, Cell>>;
export type RowName = keyof typeof ROWS;

/**
 * The row of {@link ROWS} for a wish and a place. A missing cell does not compile.
 *
 * That nothing is fenced or taken from a peer that was never met is what votequorum(5) of Corosync calls `wait_for_all`: the one that comes back
 * first after both were down would otherwise shoot the other one, or serve what the other one took while this one was away.
 * biome-ignore format: a table is read by columns
 */
export const TABLE: Record<Wish, Record<Place, RowName>> = {
  here:     { here: 'serve',    outranked: 'resign', kept: 'resume', peer: 'await', resuming: 'defer', open: 'begin', 'open-peer': 'await',   left: 'begin', away: 'claim', unmet: 'first' },
  there:    { here: 'give',     outranked: 'resign', kept: 'idle',   peer: 'idle',  resuming: 'defer', open: 'offer', 'open-peer': 'release', left: 'idle',  away: 'idle',  unmet: 'idle'  },
  stay:     { here: 'serve',    outranked: 'resign', kept: 'idle',   peer: 'idle',  resuming: 'defer', open: 'idle',  'open-peer': 'idle',    left: 'idle',  away: 'idle',  unmet: 'idle'  },
  moving:   { here: 'serve',    outranked: 'resign', kept: 'pause',  peer: 'pause', resuming: 'pause', open: 'pause', 'open-peer': 'pause',   left: 'pause', away: 'pause', unmet: 'pause' },
  isolated: { here: 'withdraw', outranked: 'resign', kept: 'off',    peer: 'off',   resuming: 'off',   open: 'off',   'open-peer': 'off',     left: 'off',   away: 'off',   unmet: 'off'   },
};

/** What to do about an address, and why. */
export interface Decision extends Cell {
  readonly address: string;
  /** The rule that told where the address should be. */
  readonly rule: RuleName;
}

/** The rule that applies to the facts. */
export function ruleFor(facts: Facts, conditions: ConditionsConfig): (typeof RULES)[number] {
  return RULES.find(({ when }) => when(facts, conditions))!;
}

/** What follows from the facts. */
export function judge(facts: Facts, conditions: ConditionsConfig): Omit<Decision, 'address'> {
  const { name, wish } = ruleFor(facts, conditions);
  const { action, reason } = ROWS[TABLE[wish][facts.place]][facts.proof];
  return { action, reason, rule: name };
}

/**
 * Decides about addresses for which the same peer matters.
 *
 * @returns one decision per address, in the order of `situation.addresses`. Whoever carries them out decides anew right before a process that
 *   was asleep writes its first byte, and at the latest when {@link nextLook} says.
 */
export function decide(situation: Situation): Decision[] {
  return situation.addresses.map((address) => ({
    address: address.address,
    ...judge(observe(situation, address), situation.conditions),
  }));
}

/**
 * When the decisions must be made again at the latest although nothing was heard: the next moment at which the passing of time alone can change
 * them. Between beats a lease must not run out unseen.
 *
 * @returns a time on the clock of `situation.now`, later than that; Infinity when nothing depends on time
 */
export function nextLook(situation: Situation): number {
  const { now, peer, link, timing, fence, comparison, startedAt, addresses } = situation;
  const heard = peer?.heardAt ?? startedAt;
  const moments = [
    heard + timing.silence,
    link.since + timing.silence,
    heard + timing.restart,
    heard + timing.resume,
    heard + timing.isolation,
    heard + timing.silence + timing.fenceDelay,
    fence.at + timing.fenceRetry,
    comparison.since + timing.unreachable,
    startedAt + timing.start,
    ...addresses.flatMap(({ ahead, freeSince, lease: { validUntil } }) => [
      ...(validUntil === null ? [] : [validUntil - timing.leaseMargin, validUntil]),
      ...(freeSince === null ? [] : [freeSince + ahead * timing.turn]),
    ]),
  ];
  return Math.min(...moments.map((moment) => (moment > now ? moment : Number.POSITIVE_INFINITY)));
}
