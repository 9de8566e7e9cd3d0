import type { Codec, SessionCodec } from '../contract/index.js';
import { Session } from '../session/session.js';
import type { SessionIo, SessionLimits, SessionStats } from '../session/world.js';
import {
  type Opening,
  type PlainOrigin,
  RECORD,
  type Snapshot,
  type Standstill,
  unpack,
  unpackCall,
  unpackPosition,
} from './records.js';

/** What a shadow needs of the gateway that it lives in. */
export interface ShadowWorld {
  readonly codec: Codec;
  /** Name of the listener's cluster. */
  readonly cluster: string;
  readonly options: unknown;
  readonly limits: SessionLimits;
  /** What is known of the session's database, as its gateway knew it. */
  shared(): unknown;
  /** The time of day, in ms. */
  time(): number;
}

const NO_STATS: SessionStats = { requests: 0, units: 0 };

/**
 * A session of the other gateway as it is there, as far as the records have come: the same code, fed with the same inputs. When that
 * gateway is gone, this one goes on with it. Pure.
 */
export class Shadow {
  session: Session | null = null;
  codec: SessionCodec | null = null;
  origin: PlainOrigin | null = null;
  /** Bytes of the client that have come. */
  received = 0;
  /** So many of them it will not send again: see {@link Snapshot.promised}. */
  private promised = 0;
  /** Bytes that the client was or will be told. */
  said = 0;
  /** So many of them its TCP has acknowledged, for all that is known. */
  acknowledged = 0;
  /** What is known of the session's database; whoever goes on with it puts its own source here. */
  shared: () => unknown;
  /** When its session last left a row that proves a commit, see `ShadowWorld.time`. */
  markedAt = 0;
  /** When what is known of its connection was asked for; set by whoever has a clock. */
  identifiedAt = 0;
  /** The connection stands still, so as to be moved; null while it does not. */
  standstill: Standstill | null = null;
  /** What was said from here on is known. */
  private from = 0;
  private tail: Uint8Array[] = [];
  /** The session said that the client's connection is to be closed. */
  private closing = false;

  constructor(
    readonly opening: Opening,
    private readonly world: ShadowWorld,
  ) {
    this.shared = world.shared;
  }

  /** True when its client has taken its leave. */
  get left(): boolean {
    return this.closing;
  }

  /** True when this gateway could go on with the session at this moment. */
  get complete(): boolean {
    const { session, opening, received, promised } = this;
    if (session === null || opening.tcp === null || this.closing) return false;
    return this.acknowledged >= this.from && received >= promised;
  }

  /** Bytes of what the client was told, from {@link acknowledged} on. Only when {@link complete}. */
  get unacknowledged(): readonly Uint8Array[] {
    return this.tail;
  }

  /** How many of the last of these surely never left; undefined when that is not known. */
  get unsent(): number | undefined {
    return this.standstill === null ? undefined : this.standstill.unsent + this.said - this.standstill.said;
  }

  /** What the client was or will be told from a position on; null when that is not known. */
  saidFrom(position: number): Uint8Array[] | null {
    const known = Math.max(this.from, this.acknowledged);
    if (this.session === null || this.closing || position < known || position > this.said) return null;
    let skip = position - known;
    const bytes: Uint8Array[] = [];
    for (const piece of this.tail) {
      if (skip < piece.length) bytes.push(piece.subarray(skip));
      skip = Math.max(0, skip - piece.length);
    }
    return bytes;
  }

  /** Bytes that are kept of what was said. */
  get tailBytes(): number {
    return this.said - Math.max(this.from, this.acknowledged);
  }

  /**
   * Takes a record.
   * @param kind one of {@link RECORD}
   * @param bytes not to be changed afterwards
   * @throws Error when it does not fit: the session can no longer be followed until its next capsule
   */
  record(kind: number, bytes: Uint8Array): void {
    if (kind === RECORD.capsule) {
      this.thaw(unpack<Snapshot>(bytes));
      return;
    }
    if (kind === RECORD.acked) {
      this.trim(unpackPosition(bytes));
      return;
    }
    if (kind === RECORD.standstill) {
      this.standstill = unpack<Standstill>(bytes);
      return;
    }
    // Nothing comes of one that stands still but when it goes on where it was.
    this.standstill = null;
    const { session } = this;
    if (session === null) throw new Error('a record of a session whose beginning did not come');
    switch (kind) {
      case RECORD.client:
        this.received += bytes.length;
        session.frontend(bytes);
        break;
      case RECORD.server:
        session.backend(bytes);
        break;
      case RECORD.say:
        this.say(bytes);
        break;
      case RECORD.call: {
        const [method, ...given] = unpackCall(bytes);
        (session[method] as (...given: unknown[]) => unknown).apply(session, given);
        break;
      }
      default:
        throw new Error(`a record of the unknown kind ${kind}`);
    }
  }

  private thaw(snapshot: Snapshot): void {
    const { codec, options, limits } = this.world;
    const { capsule, received, promised, said, unsaid, origin } = snapshot;
    const context = { greeting: this.opening.greeting, shared: () => this.shared(), options };
    const before = this.session === null ? null : this.said;
    const { session, codec: own } = Session.thaw(capsule, codec, context, limits, this.io, NO_STATS);
    this.session = session;
    this.codec = own;
    this.origin = origin;
    this.received = received;
    this.promised = promised;
    this.said = said;
    // What was said before is known only when this shadow followed it.
    if (before !== said) {
      this.from = said - unsaid.reduce((sum, { length }) => sum + length, 0);
      this.tail = [...unsaid];
      this.acknowledged = this.from;
    }
  }

  private trim(position: number): void {
    if (position > this.said || position < this.acknowledged) throw new Error('an impossible acknowledgement');
    let drop = position - Math.max(this.acknowledged, this.from);
    this.acknowledged = position;
    const { tail } = this;
    let whole = 0;
    while (drop > 0 && whole < tail.length && tail[whole].length <= drop) drop -= tail[whole++].length;
    if (whole > 0) tail.splice(0, whole);
    if (drop > 0) tail[0] = tail[0].subarray(drop);
  }

  private say(bytes: Uint8Array): void {
    this.said += bytes.length;
    this.tail.push(bytes);
  }

  /** What the session does to the world while it only follows: what the client is told is kept, all else is done elsewhere. */
  private readonly io: SessionIo = {
    toClient: (bytes) => this.say(bytes),
    toServer: ignore,
    readClient: ignore,
    corkServer: ignore,
    doubt: ignore,
    recover: ignore,
    replayed: (result) => {
      // As the host does it, at the same place.
      if (result === 'retry') this.session!.lost();
    },
    learn: ignore,
    resumed: ignore,
    marked: () => {
      this.markedAt = this.world.time();
    },
    acknowledged: ignore,
    closeClient: () => {
      this.closing = true;
    },
    count: ignore,
    // When it is safe for what decides to leave is told by a record; where nobody waits for that, it leaves at once.
    durable: () => !this.opening.durable,
  };
}

function ignore(): void {}
