import { createHash, randomBytes } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  DEFAULT_TIMING,
  type Decision,
  decide,
  enabledConditions,
  type FenceState,
  nextLook,
} from '../../cluster/decide.js';
import { aheadOf, counterpartOf, followerOf, ownerOf } from '../../cluster/members.js';
import { type End, type Mention, type Opening, pack, RECORD } from '../../cluster/records.js';
import type { Shadow, ShadowWorld } from '../../cluster/shadow.js';
import type { AddressStatistics, BackendReach, Statistics } from '../../cluster/statistics.js';
import {
  type ActionPlugin,
  type AddressPlugin,
  CodedError,
  type GatewayError,
  type LeasePlugin,
  type Log,
} from '../../contract/index.js';
import { type Guard, guardUnavailable, installGuard, type RunCommand } from '../../io/guard.js';
import { AckHold } from '../../io/hold/index.js';
import type { Wire } from '../../io/index.js';
import type { PairAuth } from '../../io/pair-auth.js';
import { PairListener } from '../../io/pair-listener.js';
import * as tcp from '../../io/tcp/index.js';
import { abandon, answerStrangers, goOn, letClose, standStill, vanish } from '../../io/tcp/standstill.js';
import type { Order } from '../admin.js';
import type { PairConfig } from '../config/index.js';
import type { PairFigures, Stats } from '../metrics.js';
import type { SessionHost, SessionPair } from '../session-host.js';
import { PairAddress } from './address.js';
import { Balancing } from './balancing.js';
import { type Keeping, type KeptSession, keptCounts } from './keeping.js';
import { LoadMeter } from './load.js';
import { Peer, type Why } from './peer.js';
import type { Gate, Replica, Subject } from './replica.js';
import { goOnWithKept } from './solo.js';
import { Telling } from './telling.js';

/** What the pair needs of the gateway around it. */
export interface PairWorld {
  /** The sessions of this gateway. */
  sessions(): readonly SessionHost[];
  /** What a shadow of a session lives in; null for a listener that is not configured here. */
  shadowWorld(opening: Opening, shared: () => unknown): ShadowWorld | null;
  /** Goes on with a session over this wire. @param key what the keeper has it under, for one of the engine before */
  adopt(shadow: Shadow, wire: Wire, key?: string): SessionHost;
  /** Ports of the listeners. */
  ports(): readonly number[];
  /** Descriptors of their listening sockets; -1 for one that does not listen. */
  listening(): readonly number[];
  readonly run: RunCommand;
  /** By `cluster/server`: how this gateway finds it. */
  backends(): Record<string, BackendReach>;
  readonly stats: Stats;
}

/** The plugins of a pair, started. */
export interface PairPlugins {
  readonly lease: LeasePlugin | null;
  readonly fence: ActionPlugin | null;
  /** In the order of the configured addresses. */
  readonly movers: readonly AddressPlugin[];
}

/** How long the other gateway may take to hold all of what moves, and to take it. */
const MOVE_MS = 5000;
/** A connection that was moved gets the kernel's ordinary timers after so long. */
const SETTLED_MS = 2000;
/** How long an order of an operator may take. */
const ORDER_MS = 15_000;
/** And after so long the other gateway is asked again for an address that it did not give. */
const ASK_AGAIN_MS = 500;
/** Sessions that cannot be told of at once are waited for so long before a planned move. */
const SETTLE_MS = 2000;
/** Clients that cannot be moved may take so long to hear of it, before a planned move goes on. */
const FAREWELL_MS = 300;
/** Connections that were half open when nobody new was let in any more are there after so long, on all but the longest ways. */
const HANDSHAKE_MS = 200;
/** A gateway that ends waits so long for the one that follows to be another one, if that is about to happen. */
const CHANGE_MS = 1000;
/** So many decisions are remembered for the status. */
const REMEMBERED = 20;
const POLL_MS = 20;
/** Clients whose connections cannot be gone on with are made to speak again after so long: a packet may be lost. */
const PROVOKE_AGAIN_MS = [700, 2000];
/** How often it is asked what became of a move, and how long it is waited for where nobody can be asked. */
const SETTLE_POLL_MS = 100;
const GRANT_MS = 10_000;
/** An address that could not be taken is tried again after so long. */
const RETRY_MS = 1000;
const SS_MS = 2000;
/** So much of what a client may know to be safe is told at once. */
const PROD_AT = 64 * 1024;
/** A client that has said nothing for so long after a takeover is not waited for any more. */
const UNHEARD_MS = 11_000;
/** For clients whose acknowledgements were held: they may wait long before they send something again. */
const HELD_GRACES: tcp.Graces = { dataMs: 8000, acknowledgementMs: 20_000 };
/** What the keeper has the highest epoch of all addresses under. */
const ANY = '';
/** The name of the pair on the wire holds no more. */
const MAX_CLUSTER = 128;
/** States of sessions that look for a server. */
const RECOVERING: ReadonlySet<string> = new Set([
  'doubting',
  'suspended',
  'resolving',
  'restoring',
  'replaying',
  'failing',
]);

const NOT_MOVABLE: GatewayError = {
  code: 'OUTLIVE_NOT_MOVABLE',
  kind: 'unavailable',
  message:
    'the gateway is being moved to another host, and this connection cannot be (TLS, replication, or it is about to log in)',
  hint: 'Connect again.',
};

/** What was done to connections, for metrics and the status. */
export interface PairCounts {
  /** Connections that go on here and came from another gateway, or from the process before this one. */
  kept: number;
  /** Connections that could not be kept in a takeover. */
  reset: number;
  takeovers: number;
  planned: number;
  /** From the decision until the neighbours were told, in ms. */
  lastTakeoverMs: number;
}

/**
 * This gateway as one of two or more: tells one of the others of its sessions, follows those of whoever has chosen it, and takes over. It has a link
 * with each; its sessions are told to one of them at a time, the follower.
 */
export class Pair implements SessionPair {
  readonly counts: PairCounts = { kept: 0, reset: 0, takeovers: 0, planned: 0, lastTakeoverMs: 0 };
  private readonly incarnation = randomBytes(8).toString('hex');
  private readonly listener: PairListener;
  private readonly peers: readonly Peer[];
  private readonly telling: Telling;
  private readonly addresses: PairAddress[];
  /** Null where the condition is off. */
  private readonly balancing: Balancing | null;
  private guard: Guard | null = null;
  private hold: AckHold | null = null;
  /** Finds connections that the other host's kernel has answered for more than is known here. */
  private readonly gaps: tcp.GapWatch;
  /** The same where acknowledgements were held back: clients have what is missing, and send it again in time. */
  private readonly heldGaps: tcp.GapWatch;
  private readonly watched = new WeakMap<Wire, { readonly host: SessionHost; readonly came: boolean }>();
  private readonly startedAt: number;
  private readonly unmovable: string | null;
  /** The highest epoch that others ever saw from this gateway, whichever address it was of: who claims less is refused the link. */
  private claimed = 0;
  private fence: { configured: boolean; state: FenceState['state']; at: number };
  private draining = false;
  private stopped = false;
  private timer: NodeJS.Timeout | null = null;
  private readonly recent: (Decision & { at: string })[] = [];
  private readonly last = new Map<string, string>();
  private readonly load: LoadMeter;

  constructor(
    private readonly config: PairConfig,
    private readonly plugins: PairPlugins,
    private readonly world: PairWorld,
    /** The keeper of this host; null without one. */
    private readonly keeping: Keeping | null,
    private readonly version: string,
    private readonly log: Log,
    private readonly now: () => number,
  ) {
    this.startedAt = now();
    this.unmovable = tcp.tcpRepairUnavailable();
    this.load = new LoadMeter(world.stats);
    this.fence = { configured: plugins.fence !== null, state: 'idle', at: this.startedAt };
    this.addresses = config.addresses.map(
      (address, index) =>
        new PairAddress(address, plugins.movers[index], this.permits, log, now, () => this.answerStrangers()),
    );
    this.balancing = config.conditions.balance ? new Balancing(config.balance, log) : null;
    const onGap = (wire: Wire, what: 'lost' | 'ahead') => this.gap(wire, what);
    const onAgreed = (wire: Wire) => this.agreed(wire);
    this.gaps = new tcp.GapWatch({ onGap, onAgreed });
    this.heldGaps = new tcp.GapWatch({ onGap, onAgreed, graces: HELD_GRACES });
    const link = {
      name: config.name,
      auth: authOf(config),
      cluster: clusterOf(config.addresses.map(({ address }) => address)),
      log,
    };
    this.listener = new PairListener({ ...link, ...config.listen });
    const options = {
      ...link,
      listen: this.listener,
      incarnation: this.incarnation,
      epoch: () => {
        this.noteEpochs();
        return Math.max(this.claimed, ...this.addresses.map(({ epoch }) => epoch));
      },
      beatMs: config.beat,
      silenceMs: config.silence,
      backlogLimit: config.backlog,
      now,
    };
    const events = {
      onUp: (peer: Peer, { seenEpoch }: { seenEpoch: number }) => this.linkUp(peer, seenEpoch),
      onDown: (peer: Peer, why: Why) => this.linkDown(peer, why),
      onHeard: (peer: Peer) => this.heard(peer),
      onAck: (peer: Peer, position: number) => this.telling.acked(peer, position),
      onAsked: (peer: Peer, request: unknown) => this.asked(peer, request as Control),
      onLost: (peer: Peer, session: number) => this.lostShadow(peer, session),
    };
    const shadowWorld: PairWorld['shadowWorld'] = (opening, shared) => world.shadowWorld(opening, shared);
    this.peers = config.peers.map((peer) => new Peer(peer, options, shadowWorld, events, log, now));
    this.telling = new Telling({
      name: config.name,
      peers: this.peers,
      addresses: this.addresses,
      lease: plugins.lease,
      keeping,
      waits: config.withoutPeer === 'stop',
      log,
      now,
      stopped: () => this.stopped,
      onChange: () => this.look(),
    });
  }

  /** Begins to listen for the other gateways and to decide. Rejects when it cannot listen. */
  async start(): Promise<void> {
    if (this.unmovable !== null) {
      this.log.warn(
        { code: 'OUTLIVE_TCP_REPAIR_UNAVAILABLE' },
        `connections cannot be moved between hosts here: ${this.unmovable}`,
      );
    } else await this.protect();
    this.load.start();
    if (this.keeping !== null) {
      this.keptSessions = this.keeping.sessions((opening, shared) => this.world.shadowWorld(opening, shared), this.now);
      this.inherited.lost = this.keeping.unusable;
      this.claimed = this.keeping.epochOf(ANY);
      for (const one of this.addresses) {
        one.heir = this.keeping.succeeds;
        one.epoch = this.keeping.epochOf(one.address);
      }
      if (this.keptSessions.length === 0) this.keeping.dropHolds();
      this.telling.start();
    }
    await this.listener.start();
    for (const peer of this.peers) {
      peer.link = { state: 'down', since: this.now(), why: 'silent' };
      await peer.channel.start();
    }
    await this.join();
    for (const { address } of this.addresses) {
      this.plugins.lease?.watch(address, (holder) => {
        const own = this.addresses.find((one) => one.address === address)!;
        own.holder = holder === null ? null : holder.owner;
        // This gateway's own counts from when it begins to serve: until then the highest is that of the owner before.
        const theirs = holder !== null && holder.owner !== this.config.name;
        if (theirs && !own.serving) own.epoch = Math.max(own.epoch, holder.epoch);
        this.look();
      });
    }
    this.timer = setInterval(() => this.beat(), this.config.beat);
    this.beat();
  }

  /** Becomes known in the lease store. While that cannot be reached, this gateway is there for what needs no lease, and goes on trying. */
  private async join(): Promise<void> {
    try {
      await this.plugins.lease?.join(this.config.name, { incarnation: this.incarnation });
    } catch (error) {
      const { code, culprit, message } = error as CodedError;
      if (culprit !== 'network') throw error;
      this.log.warn({ code }, `no address can be served before the lease store is reached: ${message}`);
    }
  }

  /** Makes sure that neither a process that dies nor one that lost its term speaks to clients. */
  private async protect(): Promise<void> {
    const { config, world, plugins, log } = this;
    if (config.holdAcknowledgements !== null) {
      // Whoever asks for it relies on it.
      // The kernel of a process that dies must not acknowledge what is held before it has closed the last connection.
      this.hold = AckHold.attach(config.holdAcknowledgements.interface, undefined, this.keeping?.reserved);
      this.keeping?.keepHold(this.hold.descriptor);
      log.info(
        config.holdAcknowledgements,
        'acknowledgements are held until another gateway has what they acknowledge',
      );
    }
    if (!config.guard) return;
    const why = await guardUnavailable(world.run);
    if (why !== null) {
      log.warn(
        { code: 'OUTLIVE_GUARD' },
        `no guard: connections end with the process that has them, and only a lease that is kept in time fences this host (${why})`,
      );
      return;
    }
    // What a process that was killed here had left, its kernel still tries to end, unheard; and who has the same ends cannot be restored.
    for (const { address } of config.addresses) {
      const state = ['state', 'fin-wait-1', 'state', 'closing', 'state', 'last-ack'];
      await world.run(['ss', '-tK', ...state, 'src', address], {}, SS_MS).catch(() => {});
    }
    this.guard = await installGuard({
      name: config.name.replace(/\W/g, '_').slice(0, 40),
      addresses: config.addresses.map(({ address }) => address),
      ports: world.ports(),
      closed: plugins.lease !== null,
      run: world.run,
    });
  }

  /** What may leave from an address, where there is a guard. */
  private readonly permits = {
    permit: async (...what: Parameters<Guard['permit']>): Promise<void> => {
      await this.guard?.permit(...what);
    },
  };

  // ---------------------------------------------------------------------------------------------------- SessionPair

  accepted(wire: Wire): void {
    if (this.guard !== null) letClose(wire);
  }

  mention({ localAddress, localPort, remoteAddress, remotePort }: Wire): () => void {
    const local = { address: plain(localAddress), port: localPort };
    if (!this.covers(local.address)) return () => {};
    const id = ++this.mentioned;
    const mention = pack({ local, remote: { address: plain(remoteAddress), port: remotePort } });
    this.mentions.set(id, mention);
    const tell = (kind: number, bytes: Uint8Array): void => {
      for (const { linked, channel } of this.peers) if (linked) channel.append(kind, id, bytes);
    };
    tell(RECORD.mention, mention);
    return () => {
      if (this.mentions.delete(id)) tell(RECORD.unmention, NOTHING);
    };
  }

  /** Connections of clients, as all others are told of them: whoever takes an address over lets the clients know that it cannot go on with. */
  private readonly mentions = new Map<number, Uint8Array>();
  private mentioned = 0;

  /** What a client is told that comes to this address now; null when it is welcome. */
  refusal(address: string): GatewayError | null {
    return this.addresses.some((one) => one.standing && one.address === address) ? NOT_MOVABLE : null;
  }

  /** While an address is served here, clients are told of connections that are not here. */
  private answerStrangers(): void {
    if (this.guard === null) return;
    const on = this.addresses.some(({ serving }) => serving);
    for (const fd of this.world.listening()) if (fd >= 0) answerStrangers(fd, on);
  }

  private get shipper() {
    return this.telling.shipper;
  }

  /** Who follows the sessions here; null for nobody. */
  private get follower(): Peer | null {
    return this.telling.follower;
  }

  replicate(subject: Subject): Replica {
    return this.shipper.replicate(subject);
  }

  covers(address: string): boolean {
    return this.addresses.some((one) => one.address === address);
  }

  identify(wire: Wire): unknown {
    const fd = tcp.fdOf(wire);
    if (fd < 0 || this.unmovable !== null) return null;
    try {
      return tcp.identify(fd, wire.bytesRead, wire.bytesWritten - wire.backlog);
    } catch {
      // The client is leaving.
      return null;
    }
  }

  unheard(wire: Wire): Uint8Array[] | null {
    const fd = tcp.fdOf(wire);
    if (fd < 0) return null;
    try {
      return [...(this.unmovable === null ? [tcp.unacknowledgedBytes(fd)] : []), tcp.unwrittenOf(wire)];
    } catch {
      // The client is leaving.
      return null;
    }
  }

  descriptor(wire: Wire): number {
    return tcp.fdOf(wire);
  }

  kept(wire: Wire): Opening['kept'] {
    if (this.keeping === null) return null;
    return keptCounts(tcp.fdOf(wire), wire.bytesRead, wire.bytesWritten - wire.backlog);
  }

  get gates(): boolean {
    return this.hold !== null;
  }

  gate(wire: Wire, opening: Opening, received: number): Gate | null {
    // One that is leaving, which only the keeper can have.
    if (opening.tcp === null) return null;
    const { local, remote, receiveBase } = opening.tcp as tcp.TcpIdentity;
    const held = this.hold?.add({ local, remote }, tcp.at(receiveBase, received)) ?? null;
    if (held === null) return null;
    const prod = (least: number): void => {
      if (held.behind < least) return;
      const fd = tcp.fdOf(wire);
      if (fd >= 0) held.prod(fd);
    };
    return {
      // Looked at when nothing more can be acknowledged.
      promised: received + tcp.unread(tcp.fdOf(wire)),
      safe: (bytes) => {
        held.acknowledge(tcp.at(receiveBase, bytes));
        // Answers tell the client of little; without a word, one who sends much would wait for its window.
        prod(PROD_AT);
      },
      prod: () => prod(1),
      open: () => held.remove(),
    };
  }

  holds(durability: 'local' | 'pair'): boolean {
    return durability === 'pair';
  }

  unacknowledged(wire: Wire): number {
    const fd = tcp.fdOf(wire);
    if (fd < 0) return 0;
    try {
      return tcp.unacknowledged(fd);
    } catch {
      return 0;
    }
  }

  // ------------------------------------------------------------------------------------------------------------ link

  /** @param seen the highest epoch that the peer ever saw from this gateway, in its earlier lives too */
  private linkUp(peer: Peer, seen: number): void {
    this.claimed = Math.max(this.claimed, seen);
    this.log.info({ peer: peer.name }, 'the other gateway is there');
    for (const [id, mention] of this.mentions) peer.channel.append(RECORD.mention, id, mention);
    this.telling.choose();
    this.beat();
  }

  private linkDown(peer: Peer, why: Why): void {
    const followed = peer === this.follower;
    const what = followed ? ': sessions here are not protected against the loss of this host' : '';
    this.log.warn({ code: 'OUTLIVE_PAIR_LOST', peer: peer.name, why }, `the other gateway is gone${what}`);
    for (const one of this.addresses) {
      // It orders again when it is there again and still wants it.
      if (one.order === 'give' && one.orderedBy === peer) one.order = null;
    }
    // Nothing that waited for the peer may leave when this process was asleep and somebody else has the address by now.
    this.look();
    this.telling.lost(peer, why);
    this.look();
  }

  private heard(peer: Peer): void {
    for (const one of this.addresses) {
      const theirs = peer.says(one.address);
      // What it serves under stays as it is: the greater one of the peer's will tell it to stop.
      if (theirs !== null && !one.serving) one.epoch = Math.max(one.epoch, theirs.epoch);
      if (one.grantedTo === peer) void this.settleGrant(one, { link: peer.link, says: theirs });
      if (theirs?.serves === true || (theirs?.resumes === true && this.given(one))) this.dropKept(one);
      if (theirs?.serves === true) this.letGo(one);
    }
    this.forgetStale(peer);
    this.telling.choose();
    this.look();
  }

  /** Of gateways that are not heard: what somebody else has by now, or follows by a later choice, is no longer known here. */
  private forgetStale({ name, heard }: Peer): void {
    for (const other of this.peers) {
      if (other.linked || other.name === name) continue;
      if (other.choice !== null && (heard!.statistics.follows[other.name] ?? 0) > other.choice) other.unfollow();
      for (const { address } of this.addresses) {
        const [theirs, before] = [heard!.statistics.addresses[address], other.says(address)];
        if (theirs?.serves === true && theirs.epoch > (before?.epoch ?? 0)) other.shadows.forget(address);
      }
    }
  }

  // ------------------------------------------------------------------------------------------------------- statistics

  /** How this gateway is, as it tells another one; without one, as operators want to see it. */
  statistics(to: Peer | null = null): Statistics {
    const { config, world, peers } = this;
    const { rates } = this.load;
    const sessions = world.sessions();
    const byAddress = new Map<string, number>();
    for (const { address } of sessions) byAddress.set(address, (byAddress.get(address) ?? 0) + 1);
    const share = (count: number) => (sessions.length === 0 ? 0 : (rates.requestsPerSecond * count) / sessions.length);
    const { lease } = this.plugins;
    return {
      name: config.name,
      version: this.version,
      incarnation: this.incarnation,
      sentAt: this.now(),
      addresses: Object.fromEntries(
        this.addresses.map((one) => {
          const count = byAddress.get(one.address) ?? 0;
          const retires = this.retiring && one.serving;
          const serves = (one.serving || one.taking) && !retires;
          const resumes = retires || (!serves && this.resumes(one));
          return [one.address, { epoch: one.epoch, serves, resumes, sessions: count, requestsPerSecond: share(count) }];
        }),
      ),
      clients: sessions.length,
      shadows: sum((to === null ? peers : [to]).map(({ shadows }) => shadows.count)),
      follows: this.follows,
      reaches: {
        peer: to === null ? peers.some(({ linked }) => linked) : to.linked,
        backends: world.backends(),
        store: lease === null ? null : this.now() - lease.heard < lease.ttl,
      },
      load: {
        cpu: rates.cpu,
        eventLoopDelayMs: rates.delay,
        sessions: sessions.length,
        bytesPerSecond: rates.bytesPerSecond,
        requestsPerSecond: rates.requestsPerSecond,
      },
      draining: this.draining || (this.stopped && !this.retiring),
      conditions: enabledConditions(config.conditions),
    };
  }

  /** By which choices of theirs the sessions of others are followed here. */
  private get follows(): Statistics['follows'] {
    return Object.fromEntries(this.peers.flatMap(({ name, choice }) => (choice === null ? [] : [[name, choice]])));
  }

  private beat(): void {
    this.load.measure(this.now());
    this.tellAll();
    this.telling.choose();
    this.look();
    this.balance();
  }

  /** Tells all others how this gateway is. */
  private tellAll(): void {
    for (const peer of this.peers) peer.channel.beat(this.statistics(peer));
  }

  /** What operators want to see. */
  status(): object {
    const { peers, follower, follows, config } = this;
    // Of a pair the other one; of several who follows.
    const { heard, linked } = follower ?? peers[0];
    return {
      self: this.statistics(),
      peer: heard?.statistics ?? null,
      peerHeardMsAgo: this.heardAgo(heard),
      link: linked ? 'up' : 'down',
      follower: follower?.name ?? null,
      peers: peers.map((peer) => ({
        name: peer.name,
        link: peer.link.state,
        heardMsAgo: this.heardAgo(peer.heard),
        followedBy: followerOf(peer.name, config.name, follows, peers),
        shadows: peer.shadows.count,
        statistics: peer.heard?.statistics ?? null,
      })),
      replicas: this.shipper.count,
      shadows: sum(peers.map(({ shadows }) => shadows.count)),
      shadowsFailed: peers.reduce((failed, { shadows }) => failed + shadows.failed, 0),
      counts: this.counts,
      balance: this.balancing?.status ?? null,
      unmovable: this.unmovable,
      addresses: this.addresses.map((one) => ({
        address: one.address,
        owner: one.serving ? config.name : (this.serverOf(one)?.name ?? null),
        epoch: one.epoch,
        leaseLeftMs: one.validUntil === null ? null : Math.round(one.validUntil - this.now()),
      })),
      decisions: this.recent,
    };
  }

  private heardAgo(heard: Peer['heard']): number | null {
    return heard === null ? null : Math.round(this.now() - heard.heardAt);
  }

  /** What is counted, for metrics. */
  figures(): PairFigures {
    const { counts, peers, shipper, follower } = this;
    return {
      ...counts,
      linkUp: peers.some(({ linked }) => linked),
      peers: peers.map((peer) => ({ peer: peer.name, linked: peer.linked, follows: peer === follower })),
      followed: shipper.count.followed,
      shadows: sum(peers.map(({ shadows }) => shadows.count)),
      shadowsFailed: peers.reduce((failed, { shadows }) => failed + shadows.failed, 0),
      addresses: this.addresses.map(({ address, serving, epoch }) => ({ address, serving, epoch })),
      heldBytes: shipper.waiting,
      backlogBytes: peers.reduce((bytes, { channel }) => bytes + channel.backlog, 0),
    };
  }

  /** Who else says that it serves an address; null for nobody. */
  private serverOf(one: PairAddress): Peer | null {
    const owner = ownerOf(one, this.peers) as Peer | null;
    return owner?.says(one.address)?.serves === true ? owner : null;
  }

  /** Whose word counts for an address. */
  private counterpart(one: PairAddress): Peer {
    const receiver = one.order === 'give' ? one.orderedBy : this.follower;
    return counterpartOf(this.config.name, one, this.peers, receiver?.name ?? null) as Peer;
  }

  // -------------------------------------------------------------------------------------------------------- decisions

  private wake: NodeJS.Timeout | null = null;

  /** Decides anew and does what is decided. */
  private look(): void {
    if (this.stopped) return;
    const now = this.now();
    const self = this.statistics();
    const { follows, peers, config } = this;
    const comparisons = new Map(peers.map((peer) => [peer, peer.compare(self)]));
    let next = Number.POSITIVE_INFINITY;
    const decided = this.addresses.map((one) => {
      const peer = this.counterpart(one);
      const situation = {
        now,
        self,
        peer: peer.seen,
        link: peer.link,
        fence: this.fence,
        comparison: comparisons.get(peer)!,
        startedAt: this.startedAt,
        addresses: [
          {
            address: one.address,
            home: one.home,
            serving: one.serving,
            epoch: one.epoch,
            moving: one.moving,
            order: one.order === 'give' && one.serving && !this.telling.ready(one.orderedBy) ? null : one.order,
            balance: one.balance,
            resumes: this.resumes(one),
            given: this.given(one),
            heir: one.heir,
            ahead: aheadOf(config.name, follows, one, peer, peers),
            freeSince: one.freeSince,
            lease: { validUntil: one.validUntil, holder: one.holder },
          },
        ],
        conditions: config.conditions,
        timing: { ...DEFAULT_TIMING, silence: config.silence, restart: config.restart },
      };
      next = Math.min(next, nextLook(situation));
      return { one, peer, decision: decide(situation)[0] };
    });
    for (const { one, peer, decision } of decided) this.act(one, peer, decision);
    if (this.wake !== null) clearTimeout(this.wake);
    this.wake = next === Number.POSITIVE_INFINITY ? null : setTimeout(() => this.look(), next - now + 1);
    this.wake?.unref();
  }

  private act(one: PairAddress, peer: Peer, decision: Decision): void {
    this.remember(one, decision);
    switch (decision.action) {
      case 'take':
        void this.take(one, decision.rule, peer);
        break;
      case 'ask-lease':
        void this.ask(one);
        break;
      case 'fence':
        void this.shoot(peer);
        break;
      case 'yield':
        // With its sessions only to who follows them, and not while that is about to be another one.
        if (!one.serving || this.telling.term(peer) !== null) void this.give(one, peer);
        break;
      case 'stop':
        this.silence(one);
        break;
    }
    if (decision.rule === 'others-first' && one.holder === undefined) void this.inquire(one);
    const served =
      one.order === 'take' ? one.serving : one.order === 'give' && !one.serving && this.serverOf(one) !== null;
    if (served && !one.moving) one.order = null;
  }

  private remember(one: PairAddress, decision: Decision): void {
    const key = `${decision.action} ${decision.reason} ${decision.rule}`;
    if (this.last.get(one.address) === key) return;
    this.last.set(one.address, key);
    this.recent.push({ at: new Date().toISOString(), ...decision });
    if (this.recent.length > REMEMBERED) this.recent.shift();
    const { address, action, reason, rule } = decision;
    this.log.info({ address, action, reason, rule }, 'decided');
  }

  /** Gives addresses to the gateway that follows when that has less to do. */
  private balance(): void {
    const { balancing, follower, addresses } = this;
    const proposed =
      balancing?.propose({
        now: this.now(),
        self: this.statistics(),
        measuredAt: this.load.rates.at,
        peer: follower?.heard ?? null,
        linked: follower?.linked === true,
        addresses,
        sessions: this.world.sessions(),
      }) ?? [];
    if (proposed.length === 0) return;
    for (const one of proposed) one.balance = true;
    this.look();
    // What something else speaks against was not begun.
    for (const one of proposed) if (!one.moving) one.balance = false;
  }

  /** Tries to become the owner, and decides anew when it is; where that is not wanted, the caller goes on. */
  private async ask(one: PairAddress, decide = true): Promise<void> {
    const { lease } = this.plugins;
    if (one.asking || one.moving || lease === null) return;
    one.asking = true;
    try {
      one.lease = await lease.acquire(one.address, this.config.name, one.heir);
      if (one.lease !== null) {
        one.holder = this.config.name;
        one.heir = false;
      } else await this.learnHolder(one, lease);
    } catch (error) {
      one.holder = undefined;
      const { code, message } = error as CodedError;
      this.log.warn({ code, address: one.address }, `the lease store could not be asked: ${message}`);
    } finally {
      one.asking = false;
    }
    if (decide && one.lease !== null) this.look();
  }

  private async learnHolder(one: PairAddress, lease: LeasePlugin): Promise<void> {
    const holder = await lease.holder(one.address);
    one.holder = holder?.owner ?? null;
    one.epoch = Math.max(one.epoch, holder?.epoch ?? 0);
  }

  /** Asks who is the owner, without trying to become it. */
  private async inquire(one: PairAddress): Promise<void> {
    const { lease } = this.plugins;
    if (one.asking || lease === null) return;
    one.asking = true;
    // Not known now, asked again at the next look.
    await this.learnHolder(one, lease).catch(() => {});
    one.asking = false;
  }

  /** Makes the other gateway unable to act. */
  private async shoot({ config: { name, address } }: Peer): Promise<void> {
    const { fence } = this.plugins;
    if (fence === null || this.fence.state === 'running') return;
    this.log.warn({ peer: name }, 'fencing the other gateway');
    this.fence = { configured: true, state: 'running', at: this.now() };
    try {
      await fence.act(name, address);
      this.fence = { configured: true, state: 'done', at: this.now() };
    } catch (error) {
      this.fence = { configured: true, state: 'failed', at: this.now() };
      const { code, message } = error as CodedError;
      this.log.error({ code, peer: name }, `the other gateway could not be fenced: ${message}`);
    }
    this.look();
  }

  // --------------------------------------------------------------------------------------------------- taking over

  /**
   * Begins to serve an address, with all connections that are known of who had it.
   * @param from who had it last, if anybody did
   */
  private async take(one: PairAddress, why: string, from: Peer): Promise<number> {
    if (one.moving || one.serving || this.now() < one.notBefore) return 0;
    one.moving = true;
    one.taking = true;
    const since = this.now();
    if (why === 'planned' || this.serverOf(one) === from) one.moved = { at: since, from: from.name };
    // Higher than all that are known, which that of the store need not be.
    one.epoch = Math.max(one.epoch + 1, one.lease?.epoch ?? this.claimed + 1);
    this.noteEpochs();
    // Before the first word of its sessions, so that nobody takes these for those of an owner before.
    this.tellAll();
    const untouched = this.untouched(one);
    const usable = from.shadows.of(one.address);
    if (one.halted !== null && !untouched) this.replace(one.address, usable);
    // Those whose clients wait look for a server first.
    usable.sort((x, y) => Number(y.session!.waiting) - Number(x.session!.waiting));
    const restored: { shadow: Shadow; socket: tcp.RestoredTcp }[] = [];
    let lost = 0;
    for (const shadow of usable) {
      try {
        restored.push({ shadow, socket: tcp.restore(imageOf(shadow, this.now())) });
      } catch (error) {
        this.log.warn(
          { code: (error as CodedError).code },
          `a connection could not be restored: ${(error as Error).message}`,
        );
      }
    }
    try {
      await one.bring();
    } catch (error) {
      for (const { socket } of restored) tcp.discard(socket.fd);
      one.moving = false;
      one.taking = false;
      one.notBefore = this.now() + RETRY_MS;
      this.log.error(
        { address: one.address, code: (error as CodedError).code },
        `an address could not be taken: ${(error as Error).message}`,
      );
      return 0;
    }
    const strangers = this.strangers(from, one.address, restored);
    lost += strangers.length;
    for (const { shadows } of this.peers) shadows.forget(one.address);
    const stayed = one.halted === null ? 0 : this.resume(one, !untouched);
    let kept = 0;
    if (this.keeping !== null) {
      const own = this.keptSessions.filter(({ shadow }) => shadow.opening.address === one.address);
      this.keptSessions = this.keptSessions.filter((session) => !own.includes(session));
      const adopt = ({ shadow, key }: KeptSession, wire: Wire) => {
        this.accepted(wire);
        return this.world.adopt(shadow, wire, key);
      };
      const done = goOnWithKept(this.keeping, own, adopt, this.log);
      if (this.keptSessions.length === 0) this.keeping.dropHolds();
      this.inherited.kept += done.kept;
      this.inherited.lost += done.lost;
      kept += done.kept;
      lost += done.lost;
    }
    for (const { shadow, socket } of restored) this.listenForGaps(shadow, socket.image);
    for (const { shadow, socket } of restored) {
      try {
        tcp.release(socket);
        const wire = tcp.wireOf(socket.fd);
        this.accepted(wire);
        const host = this.world.adopt(shadow, wire);
        kept++;
        if (shadow.standstill === null) {
          this.watched.set(wire, { host, came: true });
          this.gapsOf(shadow).watch(wire, socket.image);
          if (!shadow.opening.durable) this.withhold(wire);
        } else setTimeout(() => tcp.settle(tcp.fdOf(wire)), SETTLED_MS).unref();
      } catch (error) {
        lost++;
        this.log.warn(
          { code: (error as CodedError).code },
          `a connection could not be gone on with: ${(error as Error).message}`,
        );
      }
    }
    one.moving = false;
    one.taking = false;
    if (strangers.length > 0) this.turnAway(one.address, strangers);
    void one.mover.announce().catch((error: Error) => {
      this.log.error({ address: one.address }, `the neighbours could not be told of an address: ${error.message}`);
    });
    const took = this.now() - since;
    this.counts.takeovers++;
    this.counts.kept += kept;
    this.counts.reset += lost;
    this.counts.lastTakeoverMs = took;
    this.log.info(
      { address: one.address, epoch: one.epoch, why, connections: kept + stayed, lost, ms: Math.round(took) },
      'serving an address',
    );
    this.tellAll();
    return kept;
  }

  /** Connections on an address that are not gone on with. */
  private strangers(from: Peer, address: string, restored: readonly { readonly shadow: Shadow }[]): Mention[] {
    // What the keeper held the other gateway may have had until a moment ago, and not have forgotten yet.
    const own = [...restored, ...this.keptSessions].filter(({ shadow }) => shadow.opening.tcp !== null);
    const known = new Set(own.map(({ shadow }) => nameOf((shadow.opening.tcp as tcp.TcpIdentity).remote)));
    for (const host of this.world.sessions()) if (host.address === address) known.add(host.remote);
    return from.shadows.mentioned(address).filter(({ remote }) => !known.has(nameOf(remote)));
  }

  /** Lets the clients of connections that cannot be gone on with know: they are made to speak, and the kernel answers that it has no such one. */
  private turnAway(address: string, strangers: readonly Mention[]): void {
    this.log.warn(
      { code: NOT_MOVABLE.code, address, connections: strangers.length },
      'connections on an address that cannot be gone on with are reset (TLS, replication, or about to log in)',
    );
    this.provoke(address, strangers);
  }

  /** Makes clients speak, of whose connections this host has nothing. */
  private provoke(address: string, strangers: readonly Mention[]): void {
    if (strangers.length === 0) return;
    let asked = 0;
    const ask = (): void => {
      try {
        tcp.provoke(address.includes(':') ? 6 : 4, strangers, () => randomBytes(4).readUInt32LE());
      } catch (error) {
        // They are told when they speak by themselves.
        this.log.warn({ code: (error as CodedError).code, address }, (error as Error).message);
        return;
      }
      const again = PROVOKE_AGAIN_MS[asked++];
      if (again !== undefined) setTimeout(ask, again).unref();
    };
    ask();
  }

  private listenForGaps(shadow: Shadow, { identity, unsent }: tcp.TcpImage): void {
    // What stood still is known to the last byte.
    if (unsent === undefined) this.gapsOf(shadow).listen(identity.family, identity.local.port);
  }

  /** Its client may have been told more than is known here: it is told nothing until its positions say that it was not. */
  private withhold(wire: Wire): void {
    wire.cork();
    this.withheld.add(wire);
    setTimeout(() => this.agreed(wire), UNHEARD_MS).unref();
  }

  private readonly withheld = new Set<Wire>();

  private agreed(wire: Wire): void {
    if (this.withheld.delete(wire) && wire.open) wire.uncork();
  }

  private gapsOf(shadow: Shadow): tcp.GapWatch {
    return shadow.opening.held ? this.heldGaps : this.gaps;
  }

  /** The client of a connection that was taken over has or lacks something that nobody knows of: it cannot go on. */
  private gap(wire: Wire, what: 'lost' | 'ahead'): void {
    const watched = this.watched.get(wire);
    if (watched?.came === true) this.counts.kept--;
    this.counts.reset++;
    this.log.warn(
      { code: 'OUTLIVE_TAKEOVER_GAP', what },
      'a connection that was taken over is reset: the host before had acknowledged bytes of its client that it did not pass on',
    );
    watched?.host.reset();
  }

  // ----------------------------------------------------------------------------------------------------- giving away

  /** Gives an address, with all its connections, to another gateway, which follows its sessions. */
  private async give(one: PairAddress, to: Peer): Promise<void> {
    if (one.moving) return;
    one.moving = true;
    const { address } = one;
    const since = this.now();
    /** When it was offered: the other gateway may have it from then on, whatever it answers. */
    let granted: number | null = null;
    const epoch = one.lease?.epoch ?? one.epoch;
    one.grantedTo = to;
    try {
      if (!one.serving) {
        await one.resign();
        await to.channel.control({ kind: 'take', address, epoch: one.epoch }, MOVE_MS);
        return;
      }
      await one.admit(false);
      if (!(await this.settled(address)) && one.balance) {
        this.log.warn({ address }, 'an address with connections that cannot be moved is not moved to balance load');
        await one.admit(true);
        return;
      }
      if (!one.serving) throw new Error('this gateway may no longer serve the address');
      const term = this.telling.term(to);
      if (term === null) throw new Error('the other gateway does not follow any more');
      const moving = this.world.sessions().filter((host) => host.address === address);
      if (moving.some(({ state }) => RECOVERING.has(state))) throw new Error('a database failover is under way');
      let position = -1;
      const standing: SessionHost[] = [];
      const dismissed = new Set<Mention>();
      const farewells: Promise<unknown>[] = [];
      one.standing = true;
      for (const host of moving) {
        const at = host.stand(standStill);
        if (at === null && host.leaving) {
          host.dismiss();
          continue;
        }
        if (at === null) {
          this.counts.reset++;
          const { ends } = host;
          dismissed.add(ends);
          farewells.push(host.farewell(NOT_MOVABLE).then(() => dismissed.delete(ends)));
          continue;
        }
        position = Math.max(position, at);
        standing.push(host);
      }
      to.channel.flush();
      const heard = within(Promise.all(farewells), FAREWELL_MS);
      await this.shipper.confirmed(position, MOVE_MS);
      // Somebody else may have confirmed it, the keeper or the next one that follows.
      if (this.telling.term(to) !== term) throw new Error('the other gateway is gone');
      await heard;
      await one.leave();
      await one.resign();
      granted = this.now();
      const grant = { kind: 'take', address, epoch: one.epoch, dismissed: [...dismissed] };
      const { took, error } = (await to.channel.control(grant, MOVE_MS)) as { took?: boolean; error?: string };
      if (took !== true) {
        granted = null;
        throw new Error(`the other gateway did not take it${error === undefined ? '' : ` (${error})`}`);
      }
      this.moved(one);
      this.counts.planned++;
      const ms = Math.round(this.now() - since);
      this.log.info({ address, to: to.name, connections: standing.length, ms }, 'gave an address to the other gateway');
    } catch (error) {
      this.log.error({ address }, `a planned move failed: ${(error as Error).message}`);
      // An order that came meanwhile, to take it back, is still to be done.
      if (one.order === 'give') one.order = null;
      // Nobody may write while both could: what the other one has done it will tell over its next link.
      if (granted === null) await this.unmoved(one);
      else if (to.says(address)?.serves === true && to.heard!.heardAt > granted) this.moved(one);
      else {
        one.grantedAt = this.now();
        void this.settleAlone(one, epoch);
      }
    } finally {
      if (one.grantedAt === null) this.over(one);
      this.look();
    }
  }

  /** A planned move is over, well or not. */
  private over(one: PairAddress): void {
    one.moving = false;
    one.standing = false;
    if (one.balance) this.balancing?.over(one, this.now(), this.config.name);
  }

  /** The other gateway has the address: its connections are no more here. */
  private moved(one: PairAddress): void {
    one.halted = null;
    one.forsaken = [];
    for (const host of this.world.sessions()) if (host.address === one.address) host.vanish(standStill, vanish);
  }

  /** The other gateway does not have the address: its connections go on here. */
  private async unmoved(one: PairAddress): Promise<void> {
    const { lease } = this.plugins;
    if (!one.serving) {
      if (lease !== null) one.lease = await lease.acquire(one.address, this.config.name).catch(() => null);
      if (lease !== null && one.lease === null) {
        // Somebody else has or gets it.
        this.moved(one);
        return;
      }
      one.epoch = Math.max(one.epoch + 1, one.lease?.epoch ?? this.claimed + 1);
      try {
        await one.bring();
      } catch (error) {
        this.log.error({ address: one.address }, `an address could not be taken back: ${(error as Error).message}`);
        this.moved(one);
        return;
      }
      void one.mover.announce().catch(() => {});
    } else await one.admit(true);
    this.resume(one);
  }

  /** Sessions of the engine before, whose connections the keeper holds. */
  private keptSessions: KeptSession[] = [];
  /** Of these, those that go on, and those that could not. */
  readonly inherited = { kept: 0, lost: 0 };

  /** What is claimed to the other gateway the next engine must not claim less of. */
  private noteEpochs(): void {
    if (this.keeping === null) return;
    for (const { address, epoch } of this.addresses) this.keeping.noteEpoch(address, epoch);
    this.keeping.noteEpoch(ANY, this.claimed);
  }

  /** Sessions of the engine before on this address wait here for it. */
  private keeps({ address }: PairAddress): boolean {
    return this.keptSessions.some(({ shadow }) => shadow.opening.address === address);
  }

  /** The engine before had stopped all connections on this address, so as to give it away or because it had to. */
  private given({ address }: PairAddress): boolean {
    return this.keptSessions.some(({ shadow }) => shadow.opening.address === address && shadow.standstill !== null);
  }

  /** The engine before served it, and this one is to go on with it as soon as it may. */
  private resumes(one: PairAddress): boolean {
    const { lease } = this.plugins;
    if (one.serving || !this.keeps(one)) return false;
    // The other gateway waits for it, so without a lease, which says who may, it must never be given up: nobody would know.
    if (lease === null) return true;
    const now = this.now();
    // A store that was not asked yet does not speak against it.
    return now - this.startedAt < DEFAULT_TIMING.resume && (lease.heard === 0 || now - lease.heard < lease.ttl);
  }

  /** The other gateway has an address: what was held of it here is let go of without a word. */
  private dropKept(one: PairAddress): void {
    if (one.moving || !this.keeps(one)) return;
    const { address } = one;
    let connections = 0;
    for (const { key, fd, shadow } of this.keptSessions) {
      if (shadow.opening.address !== address) continue;
      tcp.discard(fd);
      this.keeping!.drop(key);
      connections++;
    }
    this.keptSessions = this.keptSessions.filter(({ shadow }) => shadow.opening.address !== address);
    if (this.keptSessions.length === 0) this.keeping!.dropHolds();
    this.log.info({ address, connections }, 'the other gateway has gone on with the connections of the engine before');
    // The engine before had no time to do it.
    void one.leave();
  }

  /** Another engine on this host goes on. */
  private retiring = false;

  /** Leaves everything to another engine on this host. */
  async retire(): Promise<void> {
    this.stopped = true;
    this.retiring = true;
    if (this.timer !== null) clearInterval(this.timer);
    if (this.wake !== null) clearTimeout(this.wake);
    for (const host of this.world.sessions()) host.retire(abandon);
    this.tellAll();
    for (const { channel } of this.peers) channel.flush();
    // The others were told, and wait a while for the next one, which takes the leases on.
    await this.keeping!.settled();
  }

  /**
   * What became of a move after which no link comes: the store knows. Without one the other gateway is given a while, then the address can
   * be taken over like any other.
   * @param epoch under which the address was served here; of the lease, if there was one
   */
  private async settleAlone(one: PairAddress, epoch: number): Promise<void> {
    const { lease } = this.plugins;
    const at = one.grantedAt;
    for (;;) {
      await new Promise((resolve) => setTimeout(resolve, SETTLE_POLL_MS));
      if (this.stopped || one.grantedAt !== at) return;
      if (lease === null) {
        if (one.grantedTo!.linked || this.now() - at! < GRANT_MS) continue;
        one.halted = { epoch, at: at! };
      } else {
        // Undefined: the store is not reached.
        const own = await lease.acquire(one.address, this.config.name).catch(() => undefined);
        if (one.grantedAt !== at) {
          await own?.release().catch(() => {});
          return;
        }
        const holder = own === null ? await lease.holder(one.address).catch(() => null) : null;
        if (one.grantedAt !== at) return;
        if (own != null) {
          one.grantedAt = null;
          one.lease = own;
          one.holder = this.config.name;
          if (own.epoch === epoch + 1) await this.unmoved(one);
          else one.halted = { epoch, at: at! };
        } else if (holder != null && holder.owner !== this.config.name) one.halted = { epoch, at: at! };
        else continue;
      }
      one.grantedAt = null;
      this.over(one);
      one.standing = one.halted !== null;
      this.look();
      return;
    }
  }

  /** What became of a move during which the link broke: told by the first statistics over a newer link. */
  private async settleGrant(one: PairAddress, { link, says }: { link: Peer['link']; says: AddressStatistics | null }) {
    if (one.grantedAt === null || link.state !== 'up' || link.since <= one.grantedAt) return;
    one.grantedAt = null;
    // Its process may have died right behind the move; the next one goes on.
    if (says?.serves === true || says?.resumes === true) this.moved(one);
    else await this.unmoved(one);
    this.over(one);
    this.look();
  }

  /**
   * Waits a while until the other gateway follows all sessions on an address, and nobody is about to log in or to leave.
   * @returns false when that did not happen
   */
  private async settled(address: string): Promise<boolean> {
    const since = this.now();
    const [early, until] = [since + HANDSHAKE_MS, since + SETTLE_MS];
    const stays = (host: SessionHost) => !host.movable || host.leaving || host.state === 'greeting';
    const ready = () => !this.world.sessions().some((host) => host.address === address && stays(host));
    while (this.now() < early || (!ready() && this.now() < until))
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    return ready();
  }

  /** Stops serving an address at once and without a word: somebody else may. */
  private silence(one: PairAddress): void {
    if (!one.serving) return;
    this.log.error(
      { code: 'OUTLIVE_OWNERSHIP_LOST', address: one.address },
      'this gateway falls silent: it may no longer serve the address',
    );
    one.halted = { epoch: one.lease?.epoch ?? one.epoch, at: this.now() };
    one.standing = true;
    const forsaken: Mention[] = [];
    for (const host of this.world.sessions()) {
      if (host.address !== one.address || host.halt(standStill)) continue;
      forsaken.push(host.ends);
      host.vanish(standStill, vanish);
    }
    one.forsaken = forsaken;
    this.follower?.channel.flush();
    if (one.moving) {
      // Whoever moves it sees that it is not served any more.
      void one.leave();
      return;
    }
    one.moving = true;
    // Nobody may have the right to it before this host is silent.
    void one
      .leave()
      .then(() => one.resign())
      .catch((error: Error) => this.log.warn({ address: one.address }, error.message))
      .finally(() => {
        this.over(one);
        one.standing = one.halted !== null;
        this.look();
      });
  }

  /** True when nobody can have served an address since this gateway fell silent. */
  private untouched({ halted, lease }: PairAddress): boolean {
    if (halted === null || lease === null) return false;
    // Over links that were up all the time the others would have told.
    const told = this.peers.every(({ link }) => link.state === 'up' && link.since <= halted.at);
    return lease.epoch === halted.epoch + 1 || told;
  }

  /**
   * What stood still here goes on.
   * @param doubtful true: somebody else may have gone on with it meanwhile. Then its client has or lacks something by now, and is reset;
   *   one that agrees about every byte was not gone on with
   * @returns how many connections go on
   */
  private resume(one: PairAddress, doubtful = false): number {
    const { forsaken } = one;
    one.halted = null;
    one.standing = false;
    one.forsaken = [];
    this.counts.reset += forsaken.length;
    if (forsaken.length > 0) this.turnAway(one.address, forsaken);
    let count = 0;
    for (const host of this.world.sessions()) {
      const still = host.address === one.address ? host.goOnHere(goOn) : null;
      if (still === null) continue;
      count++;
      if (!doubtful) continue;
      this.watched.set(still.wire, { host, came: false });
      (this.hold === null ? this.gaps : this.heldGaps).watch(still.wire, still.image);
    }
    return count;
  }

  /** What stood still here and is known better from the other gateway is let go of without a word. */
  private replace(address: string, known: readonly Shadow[]): void {
    const remotes = known.map(({ opening }) => (opening.tcp as tcp.TcpIdentity).remote);
    const better = new Set(remotes.map(({ address: host, port }) => `${host} ${port}`));
    for (const host of this.world.sessions()) {
      if (host.address === address && better.has(host.remote)) host.vanish(standStill, vanish);
    }
  }

  /** Somebody else has the address: what stands still here is let go of without a word. */
  private letGo(one: PairAddress): void {
    if (one.halted === null) return;
    one.standing = false;
    this.moved(one);
  }

  // --------------------------------------------------------------------------------------------------------- control

  /** A session of another gateway cannot be followed: it must not rely on that. */
  private lostShadow(peer: Peer, session: number): void {
    // Where the link is gone, all is told anew.
    peer.channel.control({ kind: 'retell', session }, MOVE_MS).catch(() => {});
  }

  /** What another gateway asks for. */
  private async asked(peer: Peer, message: Control): Promise<object> {
    if (message.kind === 'retell') {
      this.telling.retell(peer, message.session ?? 0);
      return { ok: true };
    }
    const one = this.addresses.find(({ address }) => address === message.address);
    if (one === undefined) return { error: 'unknown address' };
    switch (message.kind) {
      case 'take': {
        // Of a link that is no more: the other one has gone on meanwhile.
        if (!peer.linked) return { took: false };
        one.epoch = Math.max(one.epoch, message.epoch ?? 0);
        // The store is being asked already when it told that the lease is free before this message was here.
        while (one.asking) await new Promise((resolve) => setTimeout(resolve, POLL_MS));
        if (this.plugins.lease !== null && one.lease === null) await this.ask(one, false);
        if (this.plugins.lease !== null && one.lease === null) return { took: false };
        await this.take(one, 'planned', peer);
        // It may have been on its way here already.
        while (one.taking) await new Promise((resolve) => setTimeout(resolve, POLL_MS));
        // What was still on its way to them left with the address; who waits for it would wait for ever.
        if (one.serving && message.dismissed !== undefined) this.provoke(one.address, message.dismissed);
        return { took: one.serving };
      }
      case 'give':
        one.order = 'give';
        one.orderedBy = peer;
        this.telling.choose();
        this.look();
        return { ok: true };
      default:
        return { error: 'unknown request' };
    }
  }

  /** An operator wants all addresses here (`take`), or at the gateway that follows (`drain`; until it is undone). */
  async order(what: Order): Promise<void> {
    if (!this.config.conditions.operator) {
      throw new CodedError('OUTLIVE_PAIR_ORDER', 'config', 'pair.conditions.operator is off: orders are not obeyed');
    }
    this.draining = what === 'drain';
    for (const one of this.addresses) one.order = what === 'takeover' && !one.serving ? 'take' : null;
    const until = this.now() + ORDER_MS;
    do {
      // Again and again: a move fails while a database failover is under way, for example.
      for (const one of this.addresses) if (one.order === 'take') await this.askFor(one);
      this.look();
      const again = this.now() + ASK_AGAIN_MS;
      while (!this.obeyed && this.now() < again) await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    } while (!this.obeyed && this.now() < until);
    if (this.obeyed) return;
    for (const one of this.addresses) one.order = null;
    const left = this.addresses.filter((one) => one.serving !== (what === 'takeover')).map(({ address }) => address);
    const why = left.map((address) => `${address}: ${this.last.get(address)}`).join('; ');
    const message = `${what} was not done for ${left.join(', ')} within ${ORDER_MS} ms (${why})`;
    throw new CodedError('OUTLIVE_PAIR_ORDER', 'gateway', message);
  }

  /** Asks who has an address for it: that one makes this gateway its follower, if it is not, and gives it. */
  private async askFor(one: PairAddress): Promise<void> {
    const peer = this.counterpart(one);
    if (one.moving || one.serving || !peer.linked) return;
    await peer.channel.control({ kind: 'give', address: one.address }, MOVE_MS);
  }

  /** True when nothing of what was ordered is still to be done. */
  private get obeyed(): boolean {
    return this.addresses.every((one) => {
      if (one.moving) return false;
      if (this.draining) return !one.serving;
      return one.order === null;
    });
  }

  /** Gives all away if it can, and ends. */
  async stop(): Promise<void> {
    if (this.timer !== null) clearInterval(this.timer);
    if (this.wake !== null) clearTimeout(this.wake);
    this.load.stop();
    const patience = this.now() + CHANGE_MS;
    while (!this.stopped && this.telling.changing && this.now() < patience)
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    const { follower } = this;
    if (!this.stopped && this.config.conditions.operator && follower !== null && !this.telling.changing) {
      await Promise.all(this.addresses.filter(({ serving }) => serving).map((one) => this.give(one, follower)));
    }
    this.stopped = true;
    this.telling.stop();
    this.keeping?.close();
    this.gaps.close();
    this.heldGaps.close();
    this.hold?.close();
    await Promise.all(
      this.addresses.map(async (one) => {
        if (one.serving) await one.leave();
        await one.resign();
      }),
    );
    await Promise.all([...this.peers.map(({ channel }) => channel.close()), this.listener.close()]);
    await this.plugins.lease?.close();
    await this.guard?.remove().catch((error: Error) => this.log.warn({ code: 'OUTLIVE_GUARD' }, error.message));
  }
}

/** How the gateways prove to each other that they belong together. */
function authOf({ secret, tls }: PairConfig): PairAuth {
  if (secret !== null) return { kind: 'psk', secret: secret.reveal() };
  return { kind: 'tls', cert: tls!.cert.text, key: tls!.key.text.reveal(), ca: tls!.ca.text };
}

/** What gateways that belong together have in common: their addresses. */
function clusterOf(addresses: readonly string[]): string {
  const all = addresses.join(',');
  return all.length <= MAX_CLUSTER ? all : `sha256 ${createHash('sha256').update(all).digest('hex')}`;
}

function sum(counts: readonly { readonly total: number; readonly adoptable: number }[]) {
  return counts.reduce(
    (all, { total, adoptable }) => ({ total: all.total + total, adoptable: all.adoptable + adoptable }),
    { total: 0, adoptable: 0 },
  );
}

interface Control {
  readonly kind: string;
  readonly address: string;
  readonly epoch?: number;
  readonly session?: number;
  /** Connections of clients that were told to come again, and may not have heard it. */
  readonly dismissed?: readonly Mention[];
}

const NOTHING = new Uint8Array(0);

/** Resolves with the promise, or after so many ms. */
async function within(promise: Promise<unknown>, ms: number): Promise<void> {
  const timer = new AbortController();
  const late = sleep(ms, undefined, { signal: timer.signal }).catch(() => {});
  await Promise.race([promise, late]);
  timer.abort();
}

/** An IPv4 address of a socket that speaks both is named in the other way (RFC 4291 section 2.5.5.2). */
function plain(address: string): string {
  return address.replace(/^::ffff:(?=\d+\.)/i, '');
}

/** As `SessionHost.remote` names a client. */
function nameOf({ address, port }: End): string {
  return `${address} ${port}`;
}

/** A connection as this host is to go on with it. */
function imageOf(shadow: Shadow, now: number): tcp.TcpImage {
  const { standstill, opening } = shadow;
  return {
    identity: (standstill?.tcp ?? opening.tcp) as tcp.TcpIdentity,
    received: shadow.received,
    acknowledged: shadow.acknowledged,
    unacknowledged: shadow.unacknowledged,
    unsent: shadow.unsent,
    elapsed: now - shadow.identifiedAt,
  };
}
