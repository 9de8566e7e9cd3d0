import { type Comparison, compareReach, type LinkState } from '../../cluster/decide.js';
import type { Hello } from '../../cluster/link/index.js';
import type { MemberView } from '../../cluster/members.js';
import { RECORD, unpackPosition } from '../../cluster/records.js';
import { type AddressStatistics, addressOf, parseStatistics, type Statistics } from '../../cluster/statistics.js';
import type { CodedError, Log } from '../../contract/index.js';
import { PairLink, type PairLinkOptions } from '../../io/pair-link.js';
import type { PeerConfig } from '../config/index.js';
import { Follower, type World } from './follower.js';

/** Why a link is down. */
export type Why = Extract<LinkState, { state: 'down' }>['why'];

/** What a {@link Peer} tells of. */
export interface PeerEvents {
  onUp(peer: Peer, hello: Hello): void;
  onDown(peer: Peer, why: Why): void;
  /** It said how it is. */
  onHeard(peer: Peer): void;
  /** It holds all records below this position of its link. */
  onAck(peer: Peer, position: number): void;
  /** A request; what is resolved with, or the message of the error, is its answer. */
  onAsked(peer: Peer, request: unknown): Promise<object>;
  /** A session of it can no longer be followed. */
  onLost(peer: Peer, session: number): void;
}

/** What the end of the link says of the peer; any other end: its host is there and its process is not. */
const WHY: Readonly<Record<string, Why>> = { OUTLIVE_PAIR_SILENT: 'silent', OUTLIVE_PAIR_LEFT: 'left' };

/** Another gateway: the link to it, what it said last, and its sessions as far as they are followed here. */
export class Peer implements MemberView {
  readonly channel: PairLink;
  /** Its sessions. */
  readonly shadows: Follower;
  /** By which choice of its own this gateway follows its sessions; null when it does not. */
  choice: number | null = null;
  link: LinkState;
  heard: { readonly statistics: Statistics; readonly heardAt: number } | null = null;
  comparison: Comparison | null = null;

  constructor(
    readonly config: PeerConfig,
    link: Omit<PairLinkOptions, 'peer' | 'onUp' | 'onDown' | 'onRecord' | 'onAck' | 'onBeat' | 'onControl'>,
    world: World,
    private readonly events: PeerEvents,
    private readonly log: Log,
    private readonly now: () => number,
  ) {
    this.link = { state: 'down', since: now(), why: 'silent' };
    this.shadows = new Follower(world, log, now, (session) => events.onLost(this, session));
    this.channel = new PairLink({
      ...link,
      peer: { name: config.name, ...config.address },
      onUp: (hello) => this.up(hello),
      onDown: (reason) => this.down(reason),
      onRecord: (kind, session, bytes) => this.record(kind, session, bytes),
      onAck: (position) => events.onAck(this, position),
      onBeat: (statistics) => this.hear(statistics),
      onControl: (request, reply) =>
        void events.onAsked(this, request).then(reply, (error: Error) => reply({ error: error.message })),
    });
  }

  get name(): string {
    return this.config.name;
  }

  get linked(): boolean {
    return this.link.state === 'up';
  }

  /**
   * What it said last, and when it was heard at all, as decisions are to see it. Where much else is told statistics come late, and later still to a
   * process that stood still: whoever took the peer for silent then would shoot one that is well.
   */
  get seen(): { readonly statistics: Statistics; readonly heardAt: number } | null {
    const { heard, link, channel } = this;
    // What was said over an earlier link counts no more, whatever is heard over this one.
    if (heard === null || (link.state === 'up' && heard.heardAt < link.since)) return heard;
    return { statistics: heard.statistics, heardAt: Math.max(heard.heardAt, channel.heardAt) };
  }

  /** What it said last of an address; null when it never did. */
  says(address: string): AddressStatistics | null {
    return this.heard === null ? null : addressOf(this.heard.statistics, address);
  }

  /** Compares what it reaches with what this gateway reaches. */
  compare(self: Statistics): Comparison {
    this.comparison = compareReach(this.now(), self, this.heard?.statistics ?? null, this.comparison);
    return this.comparison;
  }

  /** Another gateway follows its sessions, as far as anybody knows. */
  unfollow(): void {
    this.choice = null;
    this.shadows.drop();
  }

  private up(hello: Hello): void {
    this.link = { state: 'up', since: this.now() };
    // It knows nothing of what was told before, and tells all anew when it chooses this gateway.
    this.choice = null;
    this.shadows.reset();
    this.events.onUp(this, hello);
  }

  private down({ code }: CodedError): void {
    const why = WHY[code] ?? 'refused';
    this.link = { state: 'down', since: this.now(), why };
    this.events.onDown(this, why);
  }

  private hear(beat: unknown): void {
    try {
      this.heard = { statistics: parseStatistics(beat), heardAt: this.now() };
    } catch (error) {
      this.log.warn({ code: (error as CodedError).code, peer: this.name }, (error as Error).message);
      return;
    }
    this.events.onHeard(this);
  }

  private record(kind: number, session: number, bytes: Uint8Array): void {
    switch (kind) {
      case RECORD.follow:
        this.unfollow();
        this.choice = unpackPosition(bytes);
        break;
      case RECORD.unfollow:
        this.unfollow();
        break;
      default:
        // Until it hears that nothing of it is followed any more it goes on to tell.
        if (this.choice === null && kind !== RECORD.mention && kind !== RECORD.unmention) return;
        this.shadows.record(kind, session, bytes);
    }
  }
}
