import { type Call, type Opening, pack, packPosition, RECORD, type SessionSnapshot } from '../../cluster/records.js';
import type { Shipper } from './shipper.js';

/** Holds the kernel's acknowledgements of a client's bytes back. */
export interface Gate {
  /** The first so many bytes of the client may have been acknowledged before it was there, whoever has read them. */
  readonly promised: number;
  /** The first so many bytes of the client are safe. */
  safe(received: number): void;
  /** The client learns of that now, if nothing that leaves anyway told it. */
  prod(): void;
  /** The kernel may acknowledge what it has. */
  open(): void;
}

/** What a replica needs of the session that it tells of. */
export interface Subject {
  readonly cluster: string;
  readonly database: string;
  /** True: the client gets nothing that the peer does not hold. */
  readonly durable: boolean;
  /** Bytes in the gateway that the client's kernel was not given yet, and bytes of the kernel that the client has not acknowledged. */
  outstanding(): number;
  /** What does not change; null when the connection cannot be moved. */
  opening(): Opening | null;
  /** The session as it is; null when that cannot be told at this moment. */
  snapshot(): SessionSnapshot | null;
  /** Bytes in the gateway that the client's kernel was not given yet. */
  queued(): number;
  /** What was written and the client has not acknowledged; null when it cannot be told. */
  unheard(): Uint8Array[] | null;
  /** Of the connection; -1 without one. */
  descriptor(): number;
  /** Bytes that were written to the client so far. */
  readonly written: number;
  /** What is learnt of the database. */
  facts(): unknown;
  /** Holds acknowledgements back from now on, beyond so many bytes; null where that is not done. */
  gate(opening: Opening, received: number): Gate | null;
  /** Writes to the client. */
  deliver(bytes: Uint8Array): void;
  /** The bytes that wait for the peer became fewer. */
  eased(): void;
  /** What was held until the peer knows of it may leave. */
  proceed(): void;
}

/** Said bytes after which the client's acknowledgements are looked at at once. */
const LOOK_AFTER = 1024 * 1024;
/** A session that the peer could not follow so often is one that it never can. */
const MAX_RETOLD = 5;
/** Larger chunks are copied: the session may move bytes within them before they have left. */
const BY_REFERENCE = 16 * 1024;

/**
 * Tells the peer, and the keeper of this host if there is one, of one session, and holds back what the client may get only when they
 * know of it.
 */
export class Replica {
  /** The peer follows: it was told all, and is told every input. */
  followed = false;
  /** The keeper has all of it, and gets every input, whether or not the peer follows. */
  noted = false;
  /** Bytes for the client that wait for the peer. */
  waiting = 0;
  /** An input is being processed: what is said follows from it. */
  inside = false;
  private opened = false;
  /** Position of the latest record. */
  private last = -1;
  private said = 0;
  private acked = 0;
  /** Bytes of the client that the peer was told. */
  private received = 0;
  private gate: Gate | null = null;
  /** What the peer was told last of the database, as far as the session knows. */
  private facts: unknown;
  /** Position of the record after which {@link proceed} is due; null while nothing waits for that. */
  private due: number | null = null;
  private over = false;
  private retold = 0;
  /** What waited when it stood still. */
  private kept: readonly Uint8Array[] = [];

  constructor(
    readonly id: number,
    private readonly subject: Subject,
    private readonly shipper: Shipper,
  ) {}

  /** Somebody is told of every input. */
  private get told(): boolean {
    return this.followed || this.noted;
  }

  /** The session goes on from what the engine before left with the keeper under this key, which stays its own. Before any input. */
  inherit(key: string): void {
    this.shipper.inherit(this.id, key);
    this.noted = true;
  }

  /** A chunk is about to be processed. */
  input(kind: typeof RECORD.client | typeof RECORD.server, chunk: Uint8Array): void {
    this.inside = true;
    if (!this.told) return;
    this.learnt();
    this.last = this.shipper.append(kind, this.id, chunk.length < BY_REFERENCE ? chunk : chunk.slice());
    if (kind !== RECORD.client) return;
    this.received += chunk.length;
    if (this.gate !== null) this.shipper.safeAfter(this, this.received, this.last);
  }

  /** The first so many bytes of the client are safe. */
  safe(received: number): void {
    if (this.gate === null) return;
    this.gate.safe(received);
    // The client may have been looked at while they were not safe yet. Untold, it would wait for its own retransmission timer, and take
    // that for the length of the way.
    if (this.followed) this.shipper.unlooked.add(this);
  }

  /** A call is about to be made. */
  call(call: Call): void {
    this.inside = true;
    if (!this.told) return;
    this.learnt();
    this.last = this.shipper.append(RECORD.call, this.id, call.length > 1 ? pack(call) : packedName(call));
  }

  /** The input was processed. */
  done(): void {
    this.inside = false;
    if (this.over || !this.shipper.up) return;
    if (!this.followed) this.offer();
    else if (this.shipper.grown(this.id)) this.condense();
  }

  /** Tells all anew, if that can be told now, in place of everything before. */
  private condense(): void {
    if (this.subject.queued() === 0 && this.subject.snapshot() !== null) this.renew();
  }

  /** Tells the peer all, if that can be told now. */
  offer(): void {
    const { subject, shipper } = this;
    if (this.retold > MAX_RETOLD) return;
    const snapshot = subject.snapshot();
    if (snapshot === null) return;
    const unheard = subject.unheard();
    if (unheard === null) return;
    if (!this.opened) {
      const opening = subject.opening();
      if (opening === null) {
        // It cannot be moved; it will not be asked again.
        this.forget();
        this.over = true;
        shipper.untold.delete(this);
        return;
      }
      shipper.begin(this.id, subject.descriptor());
      shipper.append(RECORD.open, this.id, pack(opening));
      this.opened = true;
      this.gate ??= subject.gate(opening, snapshot.received);
    }
    this.received = snapshot.received;
    this.said = subject.written + this.waiting;
    this.acked = subject.written - unheard.reduce((sum, { length }) => sum + length, 0);
    this.tell(snapshot, unheard);
    if (this.gate !== null) shipper.safeAfter(this, this.received, this.last);
    this.followed = true;
    this.noted = shipper.keeps;
    shipper.untold.delete(this);
    this.look();
  }

  /** The session is at a point that no input tells of: the peer is told all anew. */
  renew(): void {
    if (!this.told) return;
    if (!this.followed) {
      this.offer();
      if (!this.followed) this.forget();
      return;
    }
    const { subject } = this;
    const snapshot = subject.snapshot();
    // Who has followed knows it; who begins here finds in the socket what the kernel was given.
    const unheard = subject.queued() === 0 ? [] : subject.unheard();
    if (snapshot === null || unheard === null) {
      this.forget();
      return;
    }
    this.tell(snapshot, unheard);
  }

  private tell(snapshot: SessionSnapshot, unheard: readonly Uint8Array[]): void {
    this.learnt();
    const unsaid = [...unheard, ...this.shipper.waitingOf(this)];
    this.last = this.shipper.append(
      RECORD.capsule,
      this.id,
      pack({ ...snapshot, said: this.said, unsaid, promised: this.gate?.promised ?? 0 }),
    );
  }

  private learnt(): void {
    const { cluster, database } = this.subject;
    const facts = this.subject.facts();
    if (facts === this.facts) return;
    this.shipper.learnt(cluster, database, facts);
    this.facts = facts;
  }

  /** Bytes for the client: written at once, or when the peer holds what they follow from. */
  say(bytes: Uint8Array): void {
    const { subject, shipper } = this;
    if (!this.told) {
      // What was said before must not be overtaken.
      if (this.waiting > 0 || this.stopped) this.hold(bytes);
      else subject.deliver(bytes);
      return;
    }
    if (!this.inside) this.last = shipper.append(RECORD.say, this.id, bytes);
    this.said += bytes.length;
    if (subject.durable) this.hold(bytes);
    else subject.deliver(bytes);
    if (this.said - this.acked > LOOK_AFTER) this.look();
    else shipper.unlooked.add(this);
  }

  /** There is no peer, and without one its client is to wait. */
  private get stopped(): boolean {
    return this.shipper.stopped && this.subject.durable && !this.over;
  }

  private hold(bytes: Uint8Array): void {
    this.waiting += bytes.length;
    this.shipper.hold(this, bytes, this.stopped ? Number.POSITIVE_INFINITY : this.last);
  }

  /** These bytes, which waited, go to the client. */
  release(bytes: Uint8Array): void {
    this.waiting -= bytes.length;
    this.subject.deliver(bytes);
    this.subject.eased();
  }

  /** See `SessionIo.durable`. */
  durable(): boolean {
    const { shipper, stopped } = this;
    if (!stopped && (!this.told || !this.subject.durable)) return true;
    // Always by way of `proceed`, so that the peer's session takes the same way at the same time.
    const position = stopped ? Number.POSITIVE_INFINITY : this.last;
    if (this.due === null) shipper.afterwards(this, position);
    // What was held before may have been lost with its server, and this follows from later records.
    this.due = position;
    return false;
  }

  /** Null when the peer knows all that was told, or there is none; else resolves when that is so. */
  known(): Promise<void> | null {
    const { shipper, last } = this;
    return this.followed && shipper.up && !shipper.holds(last) ? shipper.known(this, last) : null;
  }

  /**
   * What `durable` held may leave, if it follows from nothing later.
   * @param all nobody will confirm anything more
   */
  proceed(all: boolean): void {
    const { due, shipper } = this;
    if (due !== null && !all && !shipper.holds(due)) {
      shipper.afterwards(this, due);
      return;
    }
    this.due = null;
    if (!this.over) this.subject.proceed();
  }

  /** Looks how much the client's kernel has acknowledged, and tells the peer. */
  look(): void {
    if (!this.followed) return;
    this.gate?.prod();
    const acked = this.said - this.waiting - this.subject.outstanding();
    if (acked > this.acked) {
      this.acked = acked;
      this.shipper.append(RECORD.acked, this.id, packPosition(acked));
    }
    if (acked < this.said) this.shipper.unlooked.add(this);
    else this.shipper.unlooked.delete(this);
  }

  /**
   * The connection stands still, to be moved: the peer gets the client's last bytes, and goes on with the session when it is told to.
   * @param unread bytes of the client that nobody was given
   * @param outstanding bytes that the client has not acknowledged, of those that were delivered
   * @param unsent how many of the last of these never left
   * @returns the position of the last record
   */
  standstill(tcp: unknown, unread: Uint8Array, outstanding: number, unsent: number): number {
    const { shipper, id } = this;
    if (unread.length > 0) shipper.append(RECORD.client, id, unread);
    this.acked = this.said - this.waiting - outstanding;
    shipper.append(RECORD.acked, id, packPosition(this.acked));
    this.last = shipper.append(RECORD.standstill, id, pack({ tcp, said: this.said, unsent: unsent + this.waiting }));
    // It is the peer's now, and what waits is among what the peer knows.
    this.still();
    return this.last;
  }

  /** The connection stands still: nothing more is told, and nothing is delivered. */
  still(): void {
    this.kept = this.shipper.waitingOf(this);
    this.over = true;
    this.waiting = 0;
    this.shipper.void(this);
    this.shipper.unlooked.delete(this);
  }

  /** It stood still and goes on here all the same: the peer is to forget it, and what waited is delivered. */
  recall(): void {
    if (this.opened && this.shipper.up) this.shipper.append(RECORD.close, this.id, NOTHING);
    this.close();
    for (const bytes of this.kept) this.subject.deliver(bytes);
  }

  /** Somebody else goes on with the session from what was told: nothing more is. */
  leave(): void {
    this.over = true;
    this.waiting = 0;
    this.shipper.void(this);
    this.shipper.remove(this);
  }

  /** The peer could not follow any more: it is told all anew, but not without end. */
  retell(): void {
    if (this.over || !this.followed) return;
    this.retold++;
    this.unfollow();
  }

  /** The kernel may acknowledge what it has. */
  ungate(): void {
    this.gate?.open();
    this.gate = null;
  }

  /** The peer is gone: it knows nothing any more. The keeper does. */
  unfollow(): void {
    this.followed = false;
    this.opened = false;
    this.facts = undefined;
    // Where the client is to wait for the peer it keeps what nobody else has.
    if (!this.shipper.stopped) this.ungate();
    if (!this.over) this.shipper.untold.add(this);
  }

  /** All are to forget the session, which they can no longer follow. */
  private forget(): void {
    if ((this.opened || this.noted) && this.shipper.up) this.shipper.append(RECORD.close, this.id, NOTHING);
    this.noted = false;
    this.unfollow();
  }

  /** The session is over: what waits is delivered. */
  close(): void {
    if (this.over) {
      this.gate?.open();
      // Whoever has the connection now, it is not the next engine on this host.
      this.shipper.end(this.id);
      this.shipper.remove(this);
      return;
    }
    this.over = true;
    this.shipper.flush(this);
    this.forget();
    this.shipper.remove(this);
  }
}

const NOTHING = new Uint8Array(0);

const names = new Map<string, Uint8Array>();

/** A call without arguments, packed once: every commit makes one. */
function packedName(call: Call): Uint8Array {
  let bytes = names.get(call[0]);
  if (bytes === undefined) names.set(call[0], (bytes = pack(call)));
  return bytes;
}
