/**
 * Which connection between two gateways is their link, and whether it lives: a state machine without I/O. Calls tell what
 * happened and when; they return what is to be done, in order.
 *
 * Both gateways may connect, so there may be two connections at a time. Both sides send a hello on each. Of the two names the
 * smaller one in string order decides: the other gateway answers a hello that it likes with a hello-ack, the decider takes the first
 * connection on which it got one, and says so with a hello-ack of its own. While the decider has a living link it refuses others,
 * unless the peer is another process than before, and the other gateway follows the decider. So both always mean the
 * same connection, and a second one never disturbs the first.
 *
 * Times are milliseconds on any clock that only grows.
 */
import { CodedError } from '../../contract/index.js';
import { FRAME, peerError } from './frames.js';

/** Version of what the link carries. Another major version is refused; a higher minor one only adds. */
export const LINK_VERSION: LinkVersion = { major: 1, minor: 0 };
const MAGIC = 'outlive-pair';
const MAX_NAME = 128;
const MAX_REASON = 300;
/** Peers whose epochs are remembered; more than one only where any name is accepted. */
const MAX_PEERS = 100;

export interface LinkVersion {
  readonly major: number;
  readonly minor: number;
}

/** What each side says first. */
export interface Hello {
  readonly magic: typeof MAGIC;
  readonly version: LinkVersion;
  readonly name: string;
  /** Name of the gateway that it wants to speak with; null: any. */
  readonly peer: string | null;
  /** Name of the pair or group; gateways of different ones do not speak with each other. */
  readonly cluster: string;
  /** Highest term of ownership that it knows of itself; 0 when it knows none, having just been started. */
  readonly epoch: number;
  /** Highest epoch that it ever saw from the one that it speaks with; 0 when it saw none. */
  readonly seenEpoch: number;
  /** Random, new with every start of the process. */
  readonly incarnation: string;
  /** Random, new with every connection. */
  readonly nonce: string;
}

export interface LinkConfig {
  readonly name: string;
  readonly peer: string | null;
  readonly cluster: string;
  readonly version: LinkVersion;
  readonly incarnation: string;
  /** Whether this side can connect by itself. */
  readonly dials: boolean;
  /** Between two signs of life. */
  readonly beatMs: number;
  /** Without a sign of life for so long, the link is down. */
  readonly silenceMs: number;
  /** From the beginning of a connection to the link. */
  readonly handshakeMs: number;
  /** Between attempts to connect: doubles from the first to the second. */
  readonly backoffMs: readonly [least: number, most: number];
}

/** What is to be done. */
export type Effect =
  /** Connect; then `opened`, or `closed` when that fails. */
  | { readonly do: 'dial'; readonly id: number }
  | { readonly do: 'send'; readonly id: number; readonly type: number; readonly body: unknown }
  /** This connection is the link from now on. */
  | { readonly do: 'up'; readonly id: number; readonly hello: Hello }
  /** It is the link no more; it is to be closed. The error says why. */
  | { readonly do: 'down'; readonly id: number; readonly error: CodedError }
  /** Close a connection that never became the link. With an error it was refused, which is to be logged. */
  | { readonly do: 'close'; readonly id: number; readonly error: CodedError | null }
  /** Send a beat on the link. */
  | { readonly do: 'beat'; readonly id: number };

/** What the handshake of a connection proved of the peer. */
export interface Proof {
  /** Its name, where the handshake told one. */
  readonly name: string | null;
  /** Whether it may call itself so. */
  proves(name: string): boolean;
}

const NO_PROOF: Proof = { name: null, proves: () => false };

interface Candidate {
  readonly id: number;
  readonly dialled: boolean;
  readonly since: number;
  open: boolean;
  nonce: string;
  proof: Proof;
  hello: Hello | null;
}

interface Seen {
  readonly incarnation: string;
  readonly epoch: number;
  /** What this incarnation claimed itself: less than `epoch` only while it knows none. */
  readonly claimed: number;
}

/** The state of one gateway's link. */
export class LinkState {
  readonly #config: LinkConfig;
  readonly #candidates = new Map<number, Candidate>();
  readonly #seen = new Map<string, Seen>();
  #link: Candidate | null = null;
  #nextId = 1;
  #dialAt = Number.POSITIVE_INFINITY;
  #backoff: number;
  #upAt = 0;
  #heardAt = 0;
  #beatAt = 0;
  #tickedAt = 0;
  #closed = false;
  /** There was a link since the start. */
  #met = false;
  /** What the peer says that it saw of this gateway, before the first link of this process. */
  #owed = 0;

  constructor(config: LinkConfig) {
    this.#config = config;
    this.#backoff = config.backoffMs[0];
  }

  /** Id of the connection that is the link, or null. */
  get link(): number | null {
    return this.#link?.id ?? null;
  }
  /** What the peer of the link said first. */
  get peer(): Hello | null {
    return this.#link?.hello ?? null;
  }
  /** Connections that are not the link. */
  get candidates(): number {
    return this.#candidates.size;
  }

  /** When {@link tick} is to be called at the latest. */
  get wakeAt(): number {
    let at = this.#dialAt;
    for (const { since } of this.#candidates.values()) at = Math.min(at, since + this.#config.handshakeMs);
    if (this.#link !== null) at = Math.min(at, this.#beatAt, this.#heardAt + this.#config.silenceMs);
    return at;
  }

  /** Highest epoch that a gateway of this name claimed; 0 for none. */
  epochOf(name: string): number {
    return this.#seen.get(name)?.epoch ?? 0;
  }

  /**
   * The epoch to claim. A gateway that was just started may have learnt a part of what it knew from others, which is less than what this peer saw of its
   * earlier life, and would be refused: the peer's greeting tells. One that had a link has no earlier life to learn of.
   * @param known the highest one that this gateway knows of
   */
  claim(known: number): number {
    return Math.max(known, this.#owed);
  }

  /** Begins. */
  start(now: number): Effect[] {
    if (this.#config.dials) this.#dialAt = now;
    return this.tick(now);
  }

  /** A connection of the peer's is there, or seems to be; `opened` when its handshake is done. @returns its id */
  accepted(now: number): number {
    const id = this.#nextId++;
    this.#candidates.set(id, this.#candidate(id, false, now));
    return id;
  }

  /**
   * The encrypted and authenticated connection is there.
   * @param nonce random
   * @param epoch own, as in {@link Hello.epoch}
   */
  opened(id: number, nonce: string, epoch: number, proof: Proof): Effect[] {
    const candidate = this.#candidates.get(id);
    if (candidate === undefined) return [];
    candidate.open = true;
    candidate.nonce = nonce;
    candidate.proof = proof;
    const { name, peer, cluster, version, incarnation } = this.#config;
    const other = peer ?? proof.name;
    const seenEpoch = other === null ? 0 : this.epochOf(other);
    const claimed = this.claim(epoch);
    const body: Hello = { magic: MAGIC, version, name, peer, cluster, epoch: claimed, seenEpoch, incarnation, nonce };
    return [{ do: 'send', id, type: FRAME.hello, body }];
  }

  /** The peer's hello. @param body as it was decoded, anything */
  hello(id: number, body: Record<string, unknown>, now: number): Effect[] {
    const candidate = this.#candidates.get(id);
    if (candidate === undefined) return this.failed(id, peerError('said hello twice'), now);
    try {
      if (candidate.hello !== null) throw peerError('said hello twice');
      const hello = this.#judge(body, candidate.proof);
      candidate.hello = hello;
      if (!this.#met) this.#owed = Math.max(this.#owed, hello.seenEpoch);
      // The one that decides waits for the other's consent.
      if (this.#decides(hello)) return [];
      return [{ do: 'send', id, type: FRAME.helloAck, body: { nonce: hello.nonce } }];
    } catch (error) {
      return this.failed(id, error, now);
    }
  }

  /** The peer's hello-ack. @param body as it was decoded, anything */
  helloAck(id: number, body: Record<string, unknown>, now: number): Effect[] {
    const candidate = this.#candidates.get(id);
    const hello = candidate?.hello ?? null;
    if (candidate === undefined || hello === null) return this.failed(id, peerError('agreed to nothing'), now);
    if (body.nonce !== candidate.nonce) return this.failed(id, peerError('agreed to another greeting'), now);
    if (!this.#decides(hello)) return this.#up(candidate, hello, now);
    const current = this.#link;
    // The same process as before: either the link lives, or its silence will end it soon.
    if (current !== null && current.hello?.incarnation === hello.incarnation) {
      return this.#goodbye(candidate, 'linked', now);
    }
    return this.#up(candidate, hello, now, [{ do: 'send', id, type: FRAME.helloAck, body: { nonce: hello.nonce } }]);
  }

  /** The peer refuses the connection, or gives the link up because of an error. */
  refused(id: number, body: Record<string, unknown>, now: number): Effect[] {
    const { code, message } = body;
    const known = typeof code === 'string' && /^OUTLIVE_PAIR_[A-Z_]{1,40}$/.test(code);
    const text = typeof message === 'string' ? message.slice(0, MAX_REASON) : 'without a reason';
    const what = `ended the connection: ${text}`;
    return this.closed(id, peerError(what, known ? code : 'OUTLIVE_PAIR_PROTOCOL'), now);
  }

  /** The peer takes its leave, which is no error. */
  left(id: number, now: number): Effect[] {
    if (this.#link?.id !== id) return this.closed(id, null, now);
    return [this.#down(new CodedError('OUTLIVE_PAIR_LEFT', 'network', 'the peer took its leave'), now)];
  }

  /** When the peer was last heard, on the link or on the last one; 0 when there was none. */
  heardAt(now: number): number {
    return this.#link === null ? this.#heardAt : this.#heardBy(now);
  }

  /** After a halt of this process what the peer sent meanwhile waits to be read: it gets two beats to be heard in. */
  #heardBy(now: number): number {
    const { silenceMs, beatMs } = this.#config;
    const halted = now - this.#tickedAt > silenceMs / 2;
    return halted ? Math.max(this.#heardAt, now - silenceMs + 2 * beatMs) : this.#heardAt;
  }

  /** Something came on the link. */
  heard(id: number, now: number): void {
    if (this.#link?.id === id) this.#heardAt = now;
  }

  /** A beat came on the link. @param epoch that the peer claims in it, anything */
  beat(id: number, epoch: unknown, now: number): Effect[] {
    const hello = this.#link?.id === id ? this.#link.hello : null;
    if (hello === null) return this.failed(id, peerError('sent a beat outside of the link'), now);
    try {
      if (!isEpoch(epoch)) throw peerError('sent a beat of a wrong shape');
      this.#see(hello.name, hello.incarnation, epoch);
    } catch (error) {
      return this.failed(id, error, now);
    }
    return [];
  }

  /** A beat with statistics leaves now; the next one of its own is due a beat later. */
  beaten(now: number): void {
    this.#beatAt = now + this.#config.beatMs;
  }

  /** This side ends the connection because of `error`, and tells the peer why. */
  failed(id: number, error: unknown, now: number): Effect[] {
    if (!this.#knows(id)) return [];
    const coded =
      error instanceof CodedError
        ? error
        : new CodedError('OUTLIVE_INTERNAL', 'gateway', `the pair link failed: ${String(error)}`, { cause: error });
    const open = this.#link?.id === id || this.#candidates.get(id)?.open === true;
    const body = { code: coded.code, message: coded.message };
    const told: Effect[] = open ? [{ do: 'send', id, type: FRAME.error, body }] : [];
    return [...told, ...this.closed(id, coded, now)];
  }

  /** The connection is gone, or never came about. @param error null when nobody is at fault */
  closed(id: number, error: CodedError | null, now: number): Effect[] {
    const candidate = this.#candidates.get(id);
    if (candidate !== undefined) return this.#drop(candidate, error, now);
    if (this.#link?.id !== id) return [];
    return [this.#down(error ?? new CodedError('OUTLIVE_PAIR_DOWN', 'network', 'the peer closed the pair link'), now)];
  }

  /** Time has passed. */
  tick(now: number): Effect[] {
    this.#heardAt = this.heardAt(now);
    this.#tickedAt = now;
    if (this.#closed) return [];
    const effects: Effect[] = [];
    const { silenceMs, beatMs, handshakeMs } = this.#config;
    for (const candidate of [...this.#candidates.values()]) {
      if (now < candidate.since + handshakeMs) continue;
      const what = `did not complete the handshake within ${handshakeMs} ms`;
      effects.push(...this.failed(candidate.id, peerError(what, 'OUTLIVE_PAIR_SILENT'), now));
    }
    if (this.#link !== null) {
      if (now >= this.#heardAt + silenceMs) {
        const what = `was not heard for ${silenceMs} ms`;
        effects.push(...this.failed(this.#link.id, peerError(what, 'OUTLIVE_PAIR_SILENT'), now));
      } else if (now >= this.#beatAt) {
        this.#beatAt = now + beatMs;
        effects.push({ do: 'beat', id: this.#link.id });
      }
    }
    if (now >= this.#dialAt) {
      this.#dialAt = Number.POSITIVE_INFINITY;
      const id = this.#nextId++;
      this.#candidates.set(id, this.#candidate(id, true, now));
      effects.push({ do: 'dial', id });
    }
    return effects;
  }

  /** This gateway leaves. Nothing happens afterwards. */
  close(now: number): Effect[] {
    this.#closed = true;
    const effects: Effect[] = [];
    for (const candidate of [...this.#candidates.values()]) effects.push(...this.#goodbye(candidate, 'leaving', now));
    if (this.#link !== null) {
      effects.push({ do: 'send', id: this.#link.id, type: FRAME.bye, body: { reason: 'leaving' } });
      effects.push(
        this.#down(new CodedError('OUTLIVE_PAIR_DOWN', 'gateway', 'this gateway closed the pair link'), now),
      );
    }
    this.#dialAt = Number.POSITIVE_INFINITY;
    return effects;
  }

  #candidate(id: number, dialled: boolean, now: number): Candidate {
    return { id, dialled, since: now, open: false, nonce: '', proof: NO_PROOF, hello: null };
  }

  #knows(id: number): boolean {
    return this.#candidates.has(id) || this.#link?.id === id;
  }

  #decides(hello: Hello): boolean {
    return this.#config.name < hello.name;
  }

  #up(candidate: Candidate, hello: Hello, now: number, first: Effect[] = []): Effect[] {
    const effects: Effect[] = [];
    this.#candidates.delete(candidate.id);
    if (this.#link !== null) {
      effects.push(this.#down(new CodedError('OUTLIVE_PAIR_DOWN', 'network', 'the peer began a new pair link'), now));
    }
    this.#link = candidate;
    this.#met = true;
    this.#upAt = this.#heardAt = this.#tickedAt = now;
    this.#beatAt = now + this.#config.beatMs;
    this.#dialAt = Number.POSITIVE_INFINITY;
    effects.push(...first, { do: 'up', id: candidate.id, hello });
    // Strangers may still be about to fail; what this side dialled is of no use any more.
    for (const other of [...this.#candidates.values()]) {
      if (other.dialled) effects.push(...this.#goodbye(other, 'linked', now));
    }
    return effects;
  }

  #drop(candidate: Candidate, error: CodedError | null, now: number): Effect[] {
    this.#candidates.delete(candidate.id);
    if (candidate.dialled) this.#again(now);
    return [{ do: 'close', id: candidate.id, error }];
  }

  /** Closes a connection that is not needed, so that the peer does not take it for a failure. */
  #goodbye(candidate: Candidate, reason: string, now: number): Effect[] {
    const { id, open } = candidate;
    const told: Effect[] = open ? [{ do: 'send', id, type: FRAME.bye, body: { reason } }] : [];
    return [...told, ...this.#drop(candidate, null, now)];
  }

  #down(error: CodedError, now: number): Effect {
    const { id } = this.#link!;
    this.#link = null;
    // A link that goes down again and again at once is not built up again and again at once.
    if (now - this.#upAt >= this.#config.backoffMs[1]) this.#backoff = this.#config.backoffMs[0];
    this.#again(now);
    return { do: 'down', id, error };
  }

  /** Another attempt, later, if there is no link by then. */
  #again(now: number): void {
    if (!this.#config.dials || this.#closed || this.#link !== null) return;
    this.#dialAt = now + this.#backoff;
    this.#backoff = Math.min(2 * this.#backoff, this.#config.backoffMs[1]);
  }

  #judge(body: Record<string, unknown>, proof: Proof): Hello {
    const own = this.#config;
    const { magic, version } = body;
    if (magic !== MAGIC || !isVersion(version)) throw peerError('is no gateway');
    // Of another major version nothing else can be relied on.
    if (version.major !== own.version.major) {
      const what = `speaks version ${version.major}.${version.minor}, this gateway ${own.version.major}.${own.version.minor}`;
      throw peerError(what, 'OUTLIVE_PAIR_VERSION');
    }
    const { name, peer, cluster, epoch, seenEpoch, incarnation, nonce } = body;
    const shape =
      isName(name) &&
      (peer === null || isName(peer)) &&
      isName(cluster) &&
      isEpoch(epoch) &&
      isEpoch(seenEpoch) &&
      isName(incarnation) &&
      isName(nonce);
    if (!shape) throw peerError('said hello in a wrong shape');
    if (incarnation === own.incarnation || name === own.name) {
      throw peerError(
        `is "${name}" as this gateway itself; give each a name and the address of the other`,
        'OUTLIVE_PAIR_NAME',
      );
    }
    if (cluster !== own.cluster) {
      throw peerError(`belongs to the pair "${cluster}", not to "${own.cluster}"`, 'OUTLIVE_PAIR_NAME');
    }
    if (own.peer !== null && name !== own.peer) {
      throw peerError(`calls itself "${name}", expected is "${own.peer}"`, 'OUTLIVE_PAIR_NAME');
    }
    if (peer !== null && peer !== own.name) {
      throw peerError(`"${name}" wants to speak with "${peer}", this is "${own.name}"`, 'OUTLIVE_PAIR_NAME');
    }
    if (!proof.proves(name)) {
      throw peerError(`calls itself "${name}" and has not proved to be that`, 'OUTLIVE_PAIR_AUTH');
    }
    this.#see(name, incarnation, epoch);
    return { magic, version, name, peer, cluster, epoch, seenEpoch, incarnation, nonce };
  }

  /**
   * An epoch only grows. A process that has just been started may know none (0); it may go on to say so until it has learnt
   * the one that is known here, which is in the hello that it gets.
   */
  #see(name: string, incarnation: string, epoch: number): void {
    const seen = this.#seen.get(name);
    if (seen !== undefined && epoch < seen.epoch) {
      const ignorant = epoch === 0 && (seen.incarnation !== incarnation || seen.claimed === 0);
      if (!ignorant) {
        throw peerError(`"${name}" claims epoch ${epoch}, it had ${seen.epoch} before`, 'OUTLIVE_PAIR_EPOCH');
      }
    }
    this.#seen.delete(name);
    this.#seen.set(name, { incarnation, epoch: Math.max(epoch, seen?.epoch ?? 0), claimed: epoch });
    if (this.#seen.size > MAX_PEERS) this.#seen.delete(this.#seen.keys().next().value!);
  }
}

function isVersion(value: unknown): value is LinkVersion {
  if (typeof value !== 'object' || value === null) return false;
  const { major, minor } = value as Record<string, unknown>;
  return isEpoch(major) && isEpoch(minor);
}

function isName(value: unknown): value is string {
  return typeof value === 'string' && value.length > 0 && value.length <= MAX_NAME;
}

function isEpoch(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}
