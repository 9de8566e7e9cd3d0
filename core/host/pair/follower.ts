import { type Facts, type Mention, type Opening, RECORD, unpack } from '../../cluster/records.js';
import { Shadow, type ShadowWorld } from '../../cluster/shadow.js';
import type { Log } from '../../contract/index.js';

/** What a follower needs of the gateway: what its shadows live in; null for a listener that is not configured here. */
export type World = (opening: Opening, shared: () => unknown) => ShadowWorld | null;

/** Small records are copied, so that a session that keeps a few bytes does not keep the chunk in which they came. */
const COPY_BELOW = 4096;

/** With so many bytes of records waiting they are looked at at once, which keeps the other gateway from sending more. */
const BACKLOG = 1024 * 1024;

interface Waiting {
  readonly kind: number;
  readonly session: number;
  readonly bytes: Uint8Array;
}

/**
 * Follows the sessions of the other gateway: a {@link Shadow} for each. A record is held as soon as it is here; the shadows are fed a little later, so
 * that no client of the other gateway waits for that.
 */
export class Follower {
  private readonly shadows = new Map<number, Shadow>();
  private readonly mentions = new Map<number, Mention>();
  private readonly facts = new Map<string, unknown>();
  /** Sessions that could not be followed; one line in the log for each kind of reason is enough. */
  private readonly told = new Set<string>();
  private readonly waiting: Waiting[] = [];
  private waitingBytes = 0;
  private draining: NodeJS.Immediate | null = null;
  private lost = 0;

  constructor(
    private readonly world: World,
    private readonly log: Log,
    private readonly now: () => number,
    /** Called with a session that can no longer be followed. */
    private readonly onLost: (session: number) => void = () => {},
  ) {}

  /** A peer is there: what is known of an earlier one is void. */
  reset(): void {
    this.waiting.length = 0;
    this.waitingBytes = 0;
    this.drop();
    this.mentions.clear();
  }

  /** The sessions of the other gateway are no longer followed here, or are told anew. */
  drop(): void {
    this.catchUp();
    this.shadows.clear();
    this.facts.clear();
  }

  /** Takes a record of the peer. Never throws: a session that cannot be followed is forgotten until it is told anew. */
  record(kind: number, session: number, received: Uint8Array): void {
    const bytes = received.length < COPY_BELOW ? Buffer.from(received) : received;
    this.waiting.push({ kind, session, bytes });
    this.waitingBytes += bytes.length;
    if (this.waitingBytes > BACKLOG) this.catchUp();
    else this.draining ??= setImmediate(this.drain);
  }

  private readonly drain = (): void => {
    this.draining = null;
    this.catchUp();
  };

  /** Feeds the shadows with all that has come. */
  private catchUp(): void {
    for (const { kind, session, bytes } of this.waiting) this.take(kind, session, bytes);
    this.waiting.length = 0;
    this.waitingBytes = 0;
  }

  private take(kind: number, session: number, bytes: Uint8Array): void {
    try {
      switch (kind) {
        case RECORD.open:
          this.open(session, unpack<Opening>(bytes));
          break;
        case RECORD.close:
          this.shadows.delete(session);
          break;
        case RECORD.mention:
          this.mentions.set(session, unpack<Mention>(bytes));
          break;
        case RECORD.unmention:
          this.mentions.delete(session);
          break;
        case RECORD.facts: {
          const { cluster, database, facts } = unpack<Facts>(bytes);
          this.facts.set(`${cluster}\0${database}`, facts);
          break;
        }
        default: {
          const shadow = this.shadows.get(session);
          shadow?.record(kind, bytes);
          if (shadow !== undefined && kind === RECORD.standstill) shadow.identifiedAt = this.now();
        }
      }
    } catch (error) {
      this.shadows.delete(session);
      this.lost++;
      this.onLost(session);
      const reason = String((error as Error)?.message ?? error);
      if (this.told.has(reason) || this.told.size > 100) return;
      this.told.add(reason);
      this.log.error(
        { code: 'OUTLIVE_SHADOW_LOST', stack: (error as Error)?.stack },
        `a session of the other gateway can no longer be followed: ${reason}`,
      );
    }
  }

  private open(session: number, opening: Opening): void {
    let cluster = '';
    const shared = () => this.facts.get(`${cluster}\0${opening.greeting.identity.database}`);
    const world = this.world(opening, shared);
    if (world === null) throw new Error(`listener ${opening.listener} is not configured here`);
    cluster = world.cluster;
    const shadow = new Shadow(opening, world);
    shadow.identifiedAt = this.now();
    this.shadows.set(session, shadow);
  }

  /** A session of the other gateway, by its number there. */
  shadow(session: number): Shadow | undefined {
    this.catchUp();
    return this.shadows.get(session);
  }

  /** The sessions on an address that can be gone on with. */
  of(address: string): Shadow[] {
    this.catchUp();
    return [...this.shadows.values()].filter(({ opening, complete }) => opening.address === address && complete);
  }

  /** All connections on an address, of these sessions and of others. */
  mentioned(address: string): Mention[] {
    this.catchUp();
    return [...this.mentions.values()].filter(({ local }) => local.address === address);
  }

  /** The sessions on an address are no longer the other gateway's. */
  forget(address: string): void {
    this.catchUp();
    for (const [id, { opening }] of this.shadows) if (opening.address === address) this.shadows.delete(id);
    for (const [id, { local }] of this.mentions) if (local.address === address) this.mentions.delete(id);
  }

  /** How many sessions could not be followed since the start. */
  get failed(): number {
    this.catchUp();
    return this.lost;
  }

  /** How many sessions are followed, and how many of them could be gone on with now. */
  get count(): { total: number; adoptable: number } {
    this.catchUp();
    let adoptable = 0;
    for (const shadow of this.shadows.values()) if (shadow.complete) adoptable++;
    return { total: this.shadows.size, adoptable };
  }
}
