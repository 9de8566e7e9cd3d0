import type { Mention } from '../../cluster/records.js';
import type { AddressPlugin, Lease, Log } from '../../contract/index.js';
import type { Guard } from '../../io/guard.js';
import type { AddressConfig } from '../config/index.js';
import type { Peer } from './peer.js';

/** A renewal of an address that fails is tried again so soon. */
const RENEW_LEAST_MS = 50;

/** One address of the pair, as this gateway has it. */
export class PairAddress {
  /** It is served here. */
  serving = false;
  /** The highest epoch that is known of it. */
  epoch = 0;
  /** It is on its way from or to here. */
  moving = false;
  /** It could not be taken and is not tried again before. */
  notBefore = 0;
  /** It is on its way to here. */
  taking = false;
  /** When it was offered to another gateway in a move of which nobody knows what became; null otherwise. */
  grantedAt: number | null = null;
  /** The last one that it was offered to. */
  grantedTo: Peer | null = null;
  order: 'take' | 'give' | null = null;
  /** Who ordered to give it, and is to get it. */
  orderedBy: Peer | null = null;
  /** The load balance wants it at the peer. */
  balance = false;
  /** When it came here from the other gateway, or could not be moved there, and who had it before; null when it was here from the beginning. */
  moved: { readonly at: number; readonly from: string } | null = null;
  lease: Lease | null = null;
  private heldBy: string | null | undefined = undefined;
  /** Since when nobody is known to have the lease; null while somebody has it, or that is not known. */
  freeSince: number | null = null;
  asking = false;
  /** Whoever had a lease under this gateway's name is dead: its process before, by the keeper's word. */
  heir = false;
  /** All its connections stand still: one that comes now would be left behind. */
  standing = false;
  private newcomers = true;
  /** This gateway fell silent, and its connections stand still: under which epoch (of the lease, if there is one) it was served, and since when. */
  halted: { readonly epoch: number; readonly at: number } | null = null;
  /** Connections that could not stand still when this gateway fell silent: nobody has them, and their clients have not heard of it. */
  forsaken: readonly Mention[] = [];
  private renewal: NodeJS.Timeout | null = null;
  /** The renewal under way. */
  private renewing: Promise<void> = Promise.resolve();

  constructor(
    readonly config: AddressConfig,
    readonly mover: AddressPlugin,
    /** What leaves from the address; null where there is no guard. */
    private readonly guard: Pick<Guard, 'permit'> | null,
    private readonly log: Log,
    private readonly now: () => number,
    /** Called when it begins or ends to be served here. */
    private readonly onServing: () => void = () => {},
  ) {}

  get address(): string {
    return this.config.address;
  }

  get home(): string {
    return this.config.home;
  }

  /** Who has the lease; undefined while the store was not asked or does not answer. */
  get holder(): string | null | undefined {
    return this.heldBy;
  }

  set holder(holder: string | null | undefined) {
    this.heldBy = holder;
    if (holder !== null) this.freeSince = null;
    else this.freeSince ??= this.now();
  }

  /** Until when the lease is valid; null without one. */
  get validUntil(): number | null {
    return this.lease?.validUntil ?? null;
  }

  /** This host has the address from now on. With a lease it lets go of it by itself when that is not renewed. */
  async bring(): Promise<void> {
    await this.mover.take(this.lifetime);
    this.newcomers = true;
    await this.guard?.permit(this.address, this.validUntil);
    this.serving = true;
    this.onServing();
    if (this.lease !== null) this.renewLater();
  }

  /** Lets nobody new in, or lets them in again. Who knocks meanwhile knocks again, and finds whoever has the address then. Never rejects. */
  async admit(newcomers: boolean): Promise<void> {
    this.newcomers = newcomers;
    await this.guard?.permit(this.address, this.validUntil, newcomers).catch((error: Error) => {
      this.log.error({ address: this.address }, error.message);
    });
  }

  private get lifetime(): number | null {
    return this.lease === null ? null : Math.max(0, this.lease.validUntil - this.now());
  }

  private renewLater(): void {
    const left = this.lifetime ?? 0;
    this.renewal = setTimeout(
      () => {
        this.renewing = this.renew();
      },
      Math.max(RENEW_LEAST_MS, left / 4),
    );
    this.renewal.unref();
  }

  private async renew(): Promise<void> {
    const lifetime = this.lifetime;
    if (!this.serving || lifetime === null) return;
    // What is leaving must not be brought back; a move that fails leaves it here.
    if (this.moving) {
      this.renewLater();
      return;
    }
    try {
      if (lifetime > 0) await this.mover.renew(lifetime);
      // Without the lease it would be a permit without an end.
      if (lifetime > 0 && this.serving) await this.guard?.permit(this.address, this.validUntil, this.newcomers);
    } catch (error) {
      this.log.error(
        { address: this.address, code: (error as { code?: string }).code },
        `an address was not renewed: ${(error as Error).message}`,
      );
    }
    if (this.serving) this.renewLater();
  }

  /** This host has the address no more. Never rejects: with a lease it ends by itself. */
  async leave(): Promise<void> {
    this.serving = false;
    this.onServing();
    if (this.renewal !== null) clearTimeout(this.renewal);
    this.renewal = null;
    await this.guard?.permit(this.address, Number.NEGATIVE_INFINITY).catch((error: Error) => {
      this.log.error({ address: this.address }, error.message);
    });
    // What is renewed after it was dropped would come back.
    await this.renewing;
    await this.mover.drop().catch((error: Error) => {
      this.log.error({ address: this.address }, `an address was not let go of: ${error.message}`);
    });
  }

  /** The right to the address is given back. */
  async resign(): Promise<void> {
    const { lease } = this;
    this.lease = null;
    this.holder = undefined;
    await lease?.release();
  }
}
