import { pack, RECORD } from '../../cluster/records.js';
import { Replica, type Subject } from './replica.js';

/** The way to the peer. */
export interface Records {
  /** @returns the position of the record: the first one of a link is 0 */
  append(kind: number, session: number, bytes: Uint8Array): number;
  /** There is a keeper, which gets all records. */
  readonly keeps: boolean;
  /** A session begins whose connection is this descriptor. */
  begin(session: number, fd: number): void;
  /** A session goes on that the keeper has under this key. */
  inherit(session: number, key: string): void;
  /** The keeper lets go of a session, of which the peer is told nothing. */
  end(session: number): void;
  /** True when much was told of a session since it was told whole. */
  grown(session: number): boolean;
}

/** How often the clients' acknowledgements are looked at. */
const LOOK_MS = 50;
/** So many sessions are told anew at a time when a peer has come. */
const BURST = 64;

interface Held {
  readonly replica: Replica;
  /** Null: `proceed` is due. A number: so many bytes of the client are safe. A function: somebody waits for it, and is not to wait in vain. */
  readonly bytes: Uint8Array | number | (() => void) | null;
  readonly position: number;
  void: boolean;
}

/** Tells the peer of all sessions of this gateway, in one order, and releases what waits for its confirmation in that order. */
export class Shipper {
  /** There is a peer that listens. */
  up = false;
  /** Sessions of which not all is known to be acknowledged by their clients. */
  readonly unlooked = new Set<Replica>();
  /** Sessions that the peer does not follow, for now. */
  readonly untold = new Set<Replica>();
  private readonly replicas = new Map<number, Replica>();
  private next = 1;
  private held: Held[] = [];
  private heldFrom = 0;
  private acknowledged = 0;
  private readonly watchers = new Set<() => void>();
  /** By cluster and database: what the peer was told last. */
  private readonly told = new Map<string, unknown>();
  private readonly timer: NodeJS.Timeout;
  private resyncing: NodeJS.Immediate | null = null;
  private releasing: NodeJS.Immediate | null = null;
  /** Nobody knows yet whether this gateway may go on without the peer. */
  private undecided = false;

  /**
   * @param records where records go while {@link up}
   * @param stops true: without a peer nothing is released to clients of durable sessions
   */
  constructor(
    private readonly records: Records,
    private readonly stops: boolean,
  ) {
    this.timer = setInterval(() => {
      for (const replica of [...this.unlooked]) replica.look();
      if (this.up && this.untold.size > 0 && this.resyncing === null) this.resync([...this.untold]);
    }, LOOK_MS);
    this.timer.unref();
  }

  /** There is nobody to be told, and clients of durable sessions are to wait for that. */
  get stopped(): boolean {
    return (this.stops || this.undecided) && !this.up;
  }

  /** A session that is to be told of. */
  replicate(subject: Subject): Replica {
    const replica = new Replica(this.next++, subject, this);
    this.replicas.set(replica.id, replica);
    this.untold.add(replica);
    return replica;
  }

  /** How many sessions there are, and how many the peer follows. */
  get count(): { sessions: number; followed: number } {
    return { sessions: this.replicas.size, followed: this.replicas.size - this.untold.size };
  }

  /** Bytes for clients that wait for the peer, all sessions together. */
  get waiting(): number {
    let bytes = 0;
    for (const { waiting } of this.replicas.values()) bytes += waiting;
    return bytes;
  }

  append(kind: number, session: number, bytes: Uint8Array): number {
    return this.records.append(kind, session, bytes);
  }

  begin(session: number, fd: number): void {
    this.records.begin(session, fd);
  }

  get keeps(): boolean {
    return this.records.keeps;
  }

  inherit(session: number, key: string): void {
    this.records.inherit(session, key);
  }

  end(session: number): void {
    this.records.end(session);
  }

  grown(session: number): boolean {
    return this.records.grown(session);
  }

  /** The bytes of a session that wait, in order. */
  waitingOf(replica: Replica): Uint8Array[] {
    if (replica.waiting === 0) return [];
    return this.held
      .slice(this.heldFrom)
      .flatMap((entry) =>
        entry.replica === replica && !entry.void && entry.bytes instanceof Uint8Array ? [entry.bytes] : [],
      );
  }

  /** Tells the peer what was learnt of a database, when it does not know it yet. */
  learnt(cluster: string, database: string, facts: unknown): void {
    const key = `${cluster}\0${database}`;
    if (this.told.get(key) === facts) return;
    this.told.set(key, facts);
    this.append(RECORD.facts, 0, pack({ cluster, database, facts }));
  }

  /** The peer can no longer follow the session. */
  retell(session: number): void {
    this.replicas.get(session)?.retell();
  }

  /** Somebody is there that knows nothing: all is told anew, and positions begin anew. */
  linkUp(): void {
    for (const replica of this.replicas.values()) replica.unfollow();
    this.up = true;
    this.undecided = false;
    this.goOn();
    this.told.clear();
    this.resync([...this.untold]);
  }

  /** The peer is gone and the keeper goes on: it knows all, and positions begin anew. */
  goOn(): void {
    this.releaseAll();
    this.acknowledged = 0;
    for (const check of [...this.watchers]) check();
  }

  private resync(left: Replica[]): void {
    this.resyncing = setImmediate(() => {
      this.resyncing = null;
      if (!this.up) return;
      for (const replica of left.splice(0, BURST)) replica.done();
      if (left.length > 0) this.resync(left);
    });
  }

  /**
   * The peer is gone.
   * @param undecided true: it may be about to take over. Until {@link alone} it must find all clients where it knows them to be
   */
  linkDown(undecided = false): void {
    this.up = false;
    this.undecided = undecided;
    for (const replica of this.replicas.values()) replica.unfollow();
    this.unlooked.clear();
    if (this.resyncing !== null) clearImmediate(this.resyncing);
    this.resyncing = null;
    if (!this.stopped) this.releaseAll();
    for (const check of [...this.watchers]) check();
  }

  /** The peer is gone, and will not take over what this gateway does from now on. */
  alone(): void {
    if (!this.undecided) return;
    this.undecided = false;
    if (this.stopped) return;
    for (const replica of this.replicas.values()) replica.ungate();
    this.releaseAll();
  }

  /** Releases all that waits: nobody will confirm it. */
  releaseAll(): void {
    this.release(Number.POSITIVE_INFINITY, true);
  }

  /** Keeps bytes until the record at `position` is held by the peer. */
  hold(replica: Replica, bytes: Uint8Array, position: number): void {
    if (this.holds(position) && this.heldFrom === this.held.length) {
      replica.release(bytes);
      return;
    }
    this.held.push({ replica, bytes, position, void: false });
  }

  /** So many bytes of its client are safe when the record at `position` is held by the peer. */
  safeAfter(replica: Replica, received: number, position: number): void {
    this.held.push({ replica, bytes: received, position, void: false });
    this.unlooked.add(replica);
  }

  /** `proceed` is called, not at once, when the record at `position` is held by the peer. */
  afterwards(replica: Replica, position: number): void {
    this.held.push({ replica, bytes: null, position, void: false });
    if (!this.holds(position)) return;
    this.releasing ??= setImmediate(() => {
      this.releasing = null;
      this.release(this.acknowledged);
    });
  }

  /** The peer holds the record at `position`. */
  holds(position: number): boolean {
    return position < this.acknowledged;
  }

  /** Resolves when the peer holds the record at `position`, or is not to be waited for any more. */
  known(replica: Replica, position: number): Promise<void> {
    return new Promise((resolve) => {
      this.held.push({ replica, bytes: resolve, position, void: false });
    });
  }

  /** Resolves when the peer holds the record at `position`; rejects when it is gone before, or does not answer in time. */
  confirmed(position: number, timeoutMs: number): Promise<void> {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error('the other gateway did not confirm in time')), timeoutMs);
      const check = (): void => {
        if (this.up && !this.holds(position)) return;
        this.watchers.delete(check);
        clearTimeout(timer);
        if (this.up) resolve();
        else reject(new Error('the other gateway is gone'));
      };
      this.watchers.add(check);
      check();
    });
  }

  /** The peer holds all records below `position`. */
  acked(position: number): void {
    this.acknowledged = position;
    this.release(position);
    for (const check of [...this.watchers]) check();
  }

  private release(below: number, all = false): void {
    while (this.heldFrom < this.held.length) {
      const entry = this.held[this.heldFrom];
      if (entry.position >= below && !all) break;
      this.heldFrom++;
      if (entry.void) continue;
      if (entry.bytes === null) entry.replica.proceed(all);
      else if (typeof entry.bytes === 'number') entry.replica.safe(entry.bytes);
      else if (typeof entry.bytes === 'function') entry.bytes();
      else entry.replica.release(entry.bytes);
    }
    if (this.heldFrom === this.held.length) {
      this.held.length = 0;
      this.heldFrom = 0;
    } else if (this.heldFrom > 4096) {
      this.held.splice(0, this.heldFrom);
      this.heldFrom = 0;
    }
  }

  /** Delivers what waits for the session. */
  flush(replica: Replica): void {
    for (let i = this.heldFrom; i < this.held.length; i++) {
      const entry = this.held[i];
      if (entry.replica !== replica || entry.void) continue;
      entry.void = true;
      if (entry.bytes instanceof Uint8Array) replica.release(entry.bytes);
      else if (typeof entry.bytes === 'function') entry.bytes();
    }
  }

  /** What waits of this session is no longer to be delivered here. */
  void(replica: Replica): void {
    for (let i = this.heldFrom; i < this.held.length; i++) {
      const entry = this.held[i];
      if (entry.replica !== replica || entry.void) continue;
      entry.void = true;
      if (typeof entry.bytes === 'function') entry.bytes();
    }
  }

  remove(replica: Replica): void {
    this.untold.delete(replica);
    this.replicas.delete(replica.id);
    this.unlooked.delete(replica);
  }

  stop(): void {
    clearInterval(this.timer);
    this.linkDown();
    this.releaseAll();
  }
}
