import { chooseFollower } from '../../cluster/members.js';
import { packPosition, RECORD } from '../../cluster/records.js';
import type { LeasePlugin, Log } from '../../contract/index.js';
import type { PairAddress } from './address.js';
import { Journal } from './journal.js';
import type { Keeping } from './keeping.js';
import type { Peer, Why } from './peer.js';
import { Shipper } from './shipper.js';

/** What {@link Telling} needs of the gateway. */
export interface TellingWorld {
  /** Of this gateway. */
  readonly name: string;
  readonly peers: readonly Peer[];
  readonly addresses: readonly PairAddress[];
  readonly lease: LeasePlugin | null;
  readonly keeping: Keeping | null;
  /** See `PairConfig.withoutPeer`: clients of durable sessions wait while nobody follows. */
  readonly waits: boolean;
  readonly log: Log;
  now(): number;
  /** This gateway leaves: nobody is chosen any more. */
  stopped(): boolean;
  /** Something that was waited for may be done now. */
  onChange(): void;
}

/** A gateway that follows well is left for a nearer one only when that one was there for so long: a link that comes and goes costs nothing. */
const NEARER_MS = 3000;
/** Sessions that could not be told of for so long are not waited for. */
const TOLD_MS = 5000;
/** How often the store is asked whether this gateway is still the owner. */
const ASSURE_MS = 20;
const NOTHING = new Uint8Array(0);

/** Tells one of the other gateways, the follower, of all sessions here; chooses it, and changes it. */
export class Telling {
  readonly shipper: Shipper;
  /** Who is told of the sessions here; null while nobody is. */
  follower: Peer | null = null;
  private readonly journal: Journal;
  /** By which choice it is: see `Statistics.follows`. */
  private choice = 0;
  /** Since when it is told. */
  private toldAt = 0;
  /** The follower was told, at this position of its link, that another one is chosen, and has not confirmed it yet. */
  private leaving: { readonly position: number } | null = null;
  /** The last follower, which fell silent: it may be about to take over, and nobody else is told before the store says that it is not. */
  private doubted: Peer | null = null;

  constructor(private readonly world: TellingWorld) {
    this.journal = new Journal(world.keeping, (position) => this.shipper.acked(position));
    this.shipper = new Shipper(this.journal, world.waits);
  }

  /** The keeper is told, whoever else is. */
  start(): void {
    if (this.world.keeping === null) return;
    this.journal.alone();
    this.shipper.linkUp();
  }

  /** The follower is about to be another one. */
  get changing(): boolean {
    return this.leaving !== null;
  }

  /** Sees to it that the sessions here are followed, and by whom they should be. To be called whenever something has changed. */
  choose(): void {
    const { world, follower } = this;
    if (world.stopped()) return;
    // It has forgotten what it knew.
    if (this.doubted?.linked) this.doubted = null;
    if (this.doubted !== null || this.leaving !== null) return;
    // What moves goes to who was told of it.
    if (follower !== null && world.addresses.some(({ moving }) => moving)) return;
    const chosen = chooseFollower({
      now: world.now(),
      self: world.name,
      peers: world.peers,
      present: follower?.name ?? null,
      ordered: world.addresses.find(({ order, serving }) => order === 'give' && serving)?.orderedBy?.name ?? null,
      settle: NEARER_MS,
    });
    const next = world.peers.find(({ name }) => name === chosen) ?? null;
    if (next === null || next === follower) return;
    if (follower === null) {
      this.tell(next);
      return;
    }
    // It must not go on with what it knew when the sessions have gone on without it.
    this.leaving = { position: follower.channel.append(RECORD.unfollow, 0, NOTHING) };
    follower.channel.flush();
  }

  private tell(peer: Peer): void {
    const { log, now } = this.world;
    this.follower = peer;
    this.toldAt = now();
    // Not less than in an earlier life, which another gateway may remember.
    this.choice = Math.max(this.choice + 1, Date.now());
    this.journal.to(peer.channel);
    peer.channel.append(RECORD.follow, 0, packPosition(this.choice));
    log.info({ peer: peer.name }, 'the other gateway follows the sessions here');
    this.shipper.linkUp();
  }

  /**
   * By which choice this one is told of all that happens here; null when it is not, or is about to be told no more. As long as it is the same, what
   * was told to it is known to it or on its way.
   */
  term(peer: Peer | null): number | null {
    return peer !== null && peer === this.follower && this.leaving === null ? this.choice : null;
  }

  /** True when addresses can be given to this one: it follows, and has been told of all sessions, as far as these can be told of. */
  ready(peer: Peer | null): boolean {
    if (this.term(peer) === null) return false;
    const { sessions, followed } = this.shipper.count;
    return followed === sessions || this.world.now() - this.toldAt >= TOLD_MS;
  }

  /** This one holds all records below this position of its link. */
  acked(peer: Peer, position: number): void {
    if (peer !== this.follower) return;
    this.shipper.acked(position);
    if (this.leaving === null || position <= this.leaving.position) return;
    this.leaving = null;
    this.follower = null;
    this.choose();
    this.world.onChange();
  }

  /** This one can no longer follow a session. */
  retell(peer: Peer, session: number): void {
    if (peer === this.follower) this.shipper.retell(session);
  }

  /** The link to this one is down. */
  lost(peer: Peer, why: Why): void {
    if (peer !== this.follower) return;
    const { keeping, lease } = this.world;
    this.follower = null;
    this.leaving = null;
    if (keeping !== null) {
      this.journal.alone();
      this.shipper.goOn();
    } else if (why === 'silent' && lease !== null) {
      this.shipper.linkDown(true);
      this.doubted = peer;
      void this.assure(peer, lease);
    } else this.shipper.linkDown();
    this.choose();
  }

  /**
   * Goes on without a follower that fell silent as soon as the store says that what is served here still is this gateway's: who is cut off from
   * both would serve clients further than the follower knows, and the follower, which takes over next, would have to reset them.
   */
  private async assure(peer: Peer, lease: LeasePlugin): Promise<void> {
    const { world } = this;
    const over = () => world.stopped() || this.doubted !== peer;
    while (!over()) {
      const served = world.addresses.filter(({ serving }) => serving);
      const holders = await Promise.all(served.map(({ address }) => lease.holder(address))).catch(() => null);
      if (over()) return;
      if (holders?.every((holder) => holder?.owner === world.name)) {
        this.doubted = null;
        this.shipper.alone();
        this.choose();
        return;
      }
      await new Promise((resolve) => setTimeout(resolve, ASSURE_MS));
    }
  }

  stop(): void {
    this.shipper.stop();
  }
}
