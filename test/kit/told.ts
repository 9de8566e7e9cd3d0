import { type Call, type Opening, RECORD } from '../../core/cluster/records.js';
import type { Log } from '../../core/contract/index.js';
import { Follower } from '../../core/host/pair/follower.js';
import type { Replica } from '../../core/host/pair/replica.js';
import { type Records, Shipper } from '../../core/host/pair/shipper.js';
import type { ProofPolicy } from '../../core/session/proof.js';
import {
  type Cutter,
  EngineRig,
  GREETING,
  type Inherited,
  LIMITS,
  type MadeUp,
  type MadeUpDatabase,
  POSTGRES,
  WHOLE,
} from './engine.js';

/** A record on its way to the peer. */
export interface Sent {
  readonly kind: number;
  readonly session: number;
  readonly bytes: Uint8Array;
}

export const OPENING: Opening = {
  listener: 'main',
  address: '10.0.0.1',
  greeting: GREETING,
  cancelKey: '',
  durable: true,
  tcp: {},
  held: false,
  kept: null,
};

/** What a gateway ends with that dies while it tells of something. */
export class Died extends Error {}

/** How a gateway ends, and how its peer hears of it. */
export interface ToldOptions<D = MadeUpDatabase> {
  readonly cutServer?: Cutter;
  /** The gateway dies when it would tell of this record; those before have come. */
  readonly diesAt?: number;
  /** Only so many records ever come, and are confirmed; the gateway goes on as far as it may. */
  readonly reach?: number;
  /** The peer comes when so many inputs were processed; when this is not given, at the beginning. */
  readonly comesAfter?: number;
  readonly inherited?: Inherited<D>;
  /** Durability `local`: the client waits for nobody. */
  readonly local?: boolean;
  /** So many bytes of the client were acknowledged before acknowledgements were held. */
  readonly promised?: number;
  /** How commits are proved; by position where nothing is said. */
  readonly proof?: ProofPolicy;
  /** Called when everything that was told has come. */
  readonly onEven?: (rig: ToldRig<D>) => void;
  /** Default {@link POSTGRES}. */
  readonly protocol?: MadeUp<D>;
}

/** Where a shipper's records go without a keeper. */
export function recordsTo(append: Records['append']): Records {
  return { append, keeps: false, begin: () => {}, inherit: () => {}, end: () => {}, grown: () => false };
}

/** A log that nobody reads. */
export const silent: Log = { debug: () => {}, info: () => {}, warn: () => {}, error: () => {} };

/** An engine that tells a peer of its session, as the gateway does it, and the follower of that peer. */
export class ToldRig<D = MadeUpDatabase> extends EngineRig<D> {
  readonly records: Sent[] = [];
  readonly lost: number[] = [];
  readonly follower: Follower;
  readonly shipper: Shipper;
  readonly replica: Replica;
  /** All that the session said, the client's or not yet. */
  spoken: Buffer[] = [];
  /** Bytes of the client that the session was given. */
  received = 0;
  /** Bytes that the client's kernel has acknowledged. */
  acknowledged = 0;
  delivered = 0;
  #base = 0;
  /** Chunks of both sides that were processed. */
  inputs = 0;
  readonly #options: ToldOptions<D>;

  constructor(options: ToldOptions<D> = {}) {
    const { protocol = POSTGRES as unknown as MadeUp<D> } = options;
    super(options.cutServer ?? WHOLE, {}, options.inherited ?? null, options.proof, undefined, protocol);
    this.#options = options;
    const { codec, greeting, shared } = protocol;
    const world = { codec, cluster: 'c', options: {}, limits: LIMITS, shared, time: () => 0 };
    this.follower = new Follower(
      () => world,
      silent,
      () => 0,
      (session) => this.lost.push(session),
    );
    this.shipper = new Shipper(
      recordsTo((kind, session, bytes) => this.#append(kind, session, bytes)),
      false,
    );
    const written = () => this.heard().length;
    this.replica = this.shipper.replicate({
      cluster: 'c',
      database: 'd',
      durable: options.local !== true,
      outstanding: () => this.heard().length - this.acknowledged,
      opening: () => ({ ...OPENING, greeting, durable: options.local !== true }),
      snapshot: () => {
        const capsule = this.session.capsule();
        return capsule === null ? null : { capsule, received: this.received, origin: null };
      },
      queued: () => 0,
      unheard: () => [this.heard().subarray(this.acknowledged)],
      descriptor: () => -1,
      get written() {
        return written();
      },
      facts: () => undefined,
      gate: () => {
        const { promised } = options;
        return promised === undefined ? null : { promised, safe: () => {}, prod: () => {}, open: () => {} };
      },
      deliver: (bytes) => this.toClient.push(Buffer.from(bytes)),
      eased: () => {},
      proceed: () => this.tell('proceed'),
    });
    if (options.comesAfter === undefined) this.join();
  }

  /** The peer is there from now on. */
  join(): void {
    this.#base = this.records.length;
    this.shipper.linkUp();
    this.replica.done();
  }

  /** The shadow of the session; throws when it is not followed. */
  get shadow() {
    const shadow = this.follower.shadow(this.replica.id);
    if (shadow === undefined) throw new Error('the session is not followed');
    return shadow;
  }

  /** All that the session said. */
  get said(): Buffer {
    return Buffer.concat(this.spoken);
  }

  /** Says something to the client that follows from no input. */
  aside(text: string): void {
    this.speak(Buffer.from(text));
  }

  /** Shows the client that it is not forgotten, as the gateway does it. */
  reassure(message: string): void {
    this.tell('keepalive', message);
  }

  /** It is dead: what it told arrives, and nobody is there whom that could be confirmed to. */
  bury(): void {
    const { records, follower } = this;
    const { reach = records.length } = this.#options;
    for (; this.delivered < Math.min(reach, records.length); this.delivered++) {
      const { kind, session, bytes } = records[this.delivered];
      follower.record(kind, session, bytes);
    }
  }

  stop(): void {
    this.spoken = [];
    this.shipper.stop();
  }

  #append(kind: number, session: number, bytes: Uint8Array): number {
    if (this.records.length === this.#options.diesAt) throw new Died();
    return this.records.push({ kind, session, bytes: Buffer.from(bytes) }) - 1 - this.#base;
  }

  protected override speak(bytes: Uint8Array): void {
    this.spoken.push(Buffer.from(bytes));
    this.replica.say(Buffer.from(bytes));
  }

  protected override durable(): boolean {
    return this.replica.durable();
  }

  protected override hear(side: 'client' | 'server', chunk: Buffer): void {
    if (side === 'client') this.received += chunk.length;
    this.replica.input(side === 'client' ? RECORD.client : RECORD.server, chunk);
    super.hear(side, chunk);
    this.replica.done();
    if (this.inputs++ === this.#options.comesAfter) this.join();
  }

  protected override tell(...call: Call): void {
    this.replica.call(call);
    super.tell(...call);
    this.replica.done();
  }

  protected override renew(): void {
    this.replica.renew();
  }

  /** The next record comes to the peer, and is confirmed. */
  protected override further(): boolean {
    const { records, delivered, follower } = this;
    if (delivered === records.length || delivered === this.#options.reach) return false;
    const { kind, session, bytes } = records[delivered];
    follower.record(kind, session, bytes);
    this.delivered++;
    if (this.delivered > this.#base) this.shipper.acked(this.delivered - this.#base);
    if (this.delivered === this.records.length) this.#options.onEven?.(this);
    return true;
  }
}
