import { type Epoch, type Facts, type Opening, pack, RECORD, unpack } from '../../cluster/records.js';
import type { Shadow } from '../../cluster/shadow.js';
import { CodedError, type Log } from '../../contract/index.js';
import { READ_SIZE, type Wire } from '../../io/index.js';
import {
  type Claimed,
  closeDescriptor,
  KeeperClient,
  readMemory,
  type SharedMemory,
  shareMemory,
  socketPositions,
} from '../../io/keeper/index.js';
import * as tcp from '../../io/tcp/index.js';
import { Follower, type World } from './follower.js';

/** A session of an engine that is no more, whose connection the keeper held. */
export interface KeptSession {
  readonly key: string;
  readonly fd: number;
  readonly shadow: Shadow;
}

/** What an engine had in its memory when it ended. */
interface Remains {
  readonly key: string;
  readonly bytes: Uint8Array;
  /** All that it had read of its clients before was noted. */
  readonly rest: boolean;
}

/** Keys in the keeper: of listeners by name, of sessions by process and number. */
const LISTENER = 'listener ';
/** What is read of clients lies in memory that the keeper holds, and a byte behind it tells that everything before is noted. */
const MEMORY = 'memory ';
/** What holds acknowledgements back: see {@link AckHold.descriptor}. */
const HOLD = 'hold ';
/** The notes of a session are told whole again after so many bytes, and not before they are some times as many as that takes. */
const RENEW_AFTER = 64 * 1024;
const RENEW_TIMES = 2;
/** Larger notes are cut; the limit of the keeper's protocol is higher. */
const MAX_PIECE = 1024 * 1024;
const RETRY_MS = 2;

/**
 * This engine's side of its keeper: hands sockets over to be held, and notes what the peer gateway would be told, for the engine that
 * comes after a crash. A note is safe when the kernel has it.
 */
export class Keeping {
  private readonly openings = new Map<number, Kept>();
  /** What is noted of no session, by what it is about. */
  private readonly general = new Map<string, Uint8Array>();
  private home: string | null = null;
  private scheduled = false;
  private appended = 0;
  /** Called when the kernel has all notes of records up to this count. */
  onSafe: (count: number) => void = () => {};
  private readonly claimed: Claimed[];
  private readonly remains: Remains[] = [];
  private readonly holds: { readonly key: string; readonly fd: number }[] = [];
  /** Keys of listening sockets that are held. */
  private readonly listeners = new Set<string>();
  /** Notes of those that the engine before had. */
  private readonly learnt: (readonly Uint8Array[])[] = [];
  /** Keys of the engine before under which sessions went on. */
  private readonly inherited = new Set<string>();

  private constructor(
    private readonly client: KeeperClient,
    /** A descriptor with a number below those of all connections that the engine before had. */
    readonly reserved: number,
    claimed: readonly Claimed[],
    private readonly shared: SharedMemory,
    private readonly prefix: string,
    private readonly log: Log,
  ) {
    this.succeeds = claimed.length > 0;
    this.claimed = claimed.filter(({ kind }) => kind !== 'memory');
    for (const { key, kind, fd } of claimed) {
      if (kind !== 'memory') continue;
      if (key.startsWith(HOLD)) {
        this.holds.push({ key, fd });
        continue;
      }
      const bytes = readMemory(fd, READ_SIZE + 1);
      if (bytes !== null) this.remains.push({ key, bytes: bytes.subarray(0, READ_SIZE), rest: bytes[READ_SIZE] === 1 });
      closeDescriptor(fd);
    }
    this.restIsNoted(true);
    client.keep(MEMORY + prefix, shared.fd, 'memory');
  }

  /** What clients' connections are to be read into, so that nothing is lost between that and its note. */
  get memory(): Uint8Array {
    return this.shared.bytes.subarray(0, READ_SIZE);
  }

  private restIsNoted(yes: boolean): void {
    this.shared.bytes[READ_SIZE] = yes ? 1 : 0;
  }

  /**
   * Connects to the keeper and takes over what the engine before had.
   * @param path of its socket
   * @param prefix tells this process's keys from those of all others
   * @param onRetire another engine takes over: everything is to be noted and left
   */
  static async connect(path: string, prefix: string, log: Log, onRetire: () => Promise<void>): Promise<Keeping> {
    const client = await KeeperClient.connect(path, {
      onRetire,
      onLost: (error) =>
        log.error(
          { code: 'OUTLIVE_KEEPER_LOST' },
          `the keeper is gone, a crash now costs the connections: ${error.message}`,
        ),
      onRefused: (asked, key, reason) => log.warn({ asked, key, reason }, 'the keeper refused something'),
    });
    const reserved = tcp.reserveDescriptor();
    return new Keeping(client, reserved, await client.claim(), shareMemory(READ_SIZE + 1), prefix, log);
  }

  get open(): boolean {
    return this.client.open;
  }

  /** There was an engine before this one, and it is dead or has handed over: the keeper gives nothing away before. */
  readonly succeeds: boolean;

  // ------------------------------------------------------------------------------------------- what the engine before had

  /** The listening socket of a listener; null when it was not held. The caller's from now on. */
  listener(name: string): number | null {
    const at = this.claimed.findIndex(({ key, kind }) => kind === 'listener' && key === LISTENER + name);
    if (at < 0) return null;
    const [{ key, fd, notes }] = this.claimed.splice(at, 1);
    this.learnt.push(notes);
    this.listeners.add(key);
    return fd;
  }

  /** The sessions that were held, understood; what cannot be is let go of, and its client is disconnected. */
  sessions(world: World, now: () => number): KeptSession[] {
    const found: KeptSession[] = [];
    const follower = new Follower(world, this.log, now);
    const facts = this.claimed.filter(({ kind }) => kind === 'listener').map(({ notes }) => notes);
    const take = (kind: number, bytes: Uint8Array) => {
      this.remember(kind, bytes);
      follower.record(kind, 0, bytes);
    };
    for (const notes of [...this.learnt.splice(0), ...facts]) replay(notes, take);
    let session = 0;
    for (const { key, kind, fd, notes, complete } of this.claimed) {
      if (kind !== 'client') continue;
      session++;
      const take = (record: number, bytes: Uint8Array) => follower.record(record, session, bytes);
      const shadow = complete && replay(notes, take) ? follower.shadow(session) : undefined;
      if (shadow?.session != null) {
        if (this.stays({ key, fd, shadow })) found.push({ key, fd, shadow });
        continue;
      }
      this.release(key, fd);
      this.unusable++;
    }
    this.complete(found);
    // Listeners that were not asked for are no longer configured: nobody would ever accept what they hold.
    for (const { key, kind, fd } of this.claimed) if (kind === 'listener') this.release(key, fd);
    this.claimed.length = 0;
    return found.filter((session) => this.stays(session));
  }

  /** False for one whose client took its leave of the engine before: it is let go of, and lacks nothing. */
  private stays({ key, fd, shadow }: KeptSession): boolean {
    if (shadow.left) this.release(key, fd);
    return !shadow.left;
  }

  /** Gives the session that was read last what the engine before had no time to note. */
  private complete(found: readonly KeptSession[]): void {
    const all = this.remains.splice(0);
    for (const { key } of all) this.client.drop(key);
    const lacking = found.filter(({ fd, shadow }) => unnoted(fd, shadow) > 0);
    if (lacking.length !== 1) return;
    const [{ key, fd, shadow }] = lacking;
    // There are two when the engine before ended before it had gone on with anything: then only its own clients' words lie in its own.
    const remains = all.find((each) => key.startsWith(`${each.key.slice(MEMORY.length)} `)) ?? all.at(0);
    const length = unnoted(fd, shadow);
    if (remains?.rest !== true || length > remains.bytes.length) return;
    const bytes = remains.bytes.slice(0, length);
    try {
      shadow.record(RECORD.client, bytes);
    } catch (error) {
      this.log.error({ code: 'OUTLIVE_SHADOW_LOST', stack: (error as Error).stack }, (error as Error).message);
      return;
    }
    this.write(key, frame(RECORD.client, bytes), false);
  }

  /** How many connections were held of which the notes were of no use; they were closed. */
  unusable = 0;

  /**
   * The wire of a held connection, with the client told what it was not yet. Throws OUTLIVE_TAKEOVER_GAP when the engine before had
   * read or said something of which it left no note: nobody can go on then, and the connection is to be released.
   */
  wire({ fd, shadow }: KeptSession): Wire {
    const { kept } = shadow.opening;
    tcp.thawIfFrozen(fd);
    // The engine before may have taken it over a moment before it died.
    tcp.settle(fd);
    let { consumed, written } = socketPositions(fd);
    if (shadow.standstill !== null) {
      // What had come until then was noted, and is still in the kernel's queue.
      consumed += tcp.skip(fd, shadow.received - (consumed + kept!.received));
    }
    const received = consumed + kept!.received;
    const said = written + kept!.written;
    const unsaid = shadow.saidFrom(said);
    if (received !== shadow.received || unsaid === null) {
      const what = `read ${received - shadow.received} bytes of its client, said ${said - shadow.said} to it`;
      throw new CodedError(
        'OUTLIVE_TAKEOVER_GAP',
        'gateway',
        `the engine before had left no note of all it did: ${what}`,
      );
    }
    const wire = tcp.wireOf(fd, { memory: this.memory });
    for (const bytes of unsaid) wire.write(bytes);
    return wire;
  }

  /** Keeps acknowledgements held, as far as they are, while no engine is there. @param fd see {@link AckHold.descriptor} */
  keepHold(fd: number): void {
    this.client.keep(HOLD + this.prefix, fd, 'memory');
  }

  /** What the engine before held back is held by this one, or need not be any more. */
  dropHolds(): void {
    for (const { key, fd } of this.holds.splice(0)) {
      closeDescriptor(fd);
      this.client.drop(key);
    }
  }

  /** Lets go of a held connection: it is closed. */
  release(key: string, fd: number): void {
    closeDescriptor(fd);
    this.client.drop(key);
  }

  /** A connection is held under another key now. */
  drop(key: string): void {
    this.client.drop(key);
  }

  // ------------------------------------------------------------------------------------------------------ what is held

  /** Holds a listening socket. */
  keepListener(name: string, fd: number): void {
    const key = LISTENER + name;
    // Holding it again would throw away the notes that it has.
    if (!this.listeners.has(key)) this.client.keep(key, fd, 'listener', name);
    this.listeners.add(key);
    this.home ??= key;
  }

  /** Holds the connection of a session, of which notes follow. */
  keep(session: number, fd: number): void {
    if (this.openings.has(session)) return;
    const key = `${this.prefix} ${session}`;
    this.client.keep(key, fd, 'client');
    this.openings.set(session, { key, opening: NOTHING, bytes: 0, whole: 0 });
  }

  /** A session goes on under the key of the engine before; its notes follow those that are there. */
  inherit(session: number, key: string): void {
    this.openings.set(session, { key, opening: NOTHING, bytes: 0, whole: 0 });
    this.inherited.add(key);
  }

  /** True when a session goes on, or went on, under this key of the engine before. */
  inherits(key: string): boolean {
    return this.inherited.has(key);
  }

  /** Lets go of the connection of a session. */
  end(session: number): void {
    const own = this.openings.get(session);
    if (own === undefined) return;
    this.openings.delete(session);
    this.client.drop(own.key);
  }

  /** Notes a record. @returns how many there are by now */
  append(kind: number, session: number, bytes: Uint8Array): number {
    this.appended++;
    if (kind === RECORD.facts) this.noteFacts(bytes);
    else this.note(kind, session, bytes);
    // What was read from the client is noted before anything else is read.
    if (kind === RECORD.client) this.restIsNoted(this.client.flush());
    if (!this.scheduled) {
      this.scheduled = true;
      setImmediate(() => this.flush());
    }
    return this.appended;
  }

  /** True when the notes of a session have grown so much that it should be told whole again. */
  grown(session: number): boolean {
    const { bytes, whole } = this.openings.get(session) ?? NONE;
    return bytes > Math.max(RENEW_AFTER, RENEW_TIMES * whole);
  }

  private note(kind: number, session: number, bytes: Uint8Array): void {
    const own = this.openings.get(session);
    if (own === undefined || kind === RECORD.acked) return;
    if (kind === RECORD.close) {
      this.end(session);
      return;
    }
    const note = frame(kind, bytes);
    if (kind === RECORD.open) {
      own.opening = note;
      return;
    }
    if (kind === RECORD.capsule) {
      own.bytes = 0;
      own.whole = note.length;
      this.write(own.key, Buffer.concat([own.opening, note]), true);
      return;
    }
    own.bytes += note.length;
    this.write(own.key, note, false);
  }

  private write(key: string, note: Uint8Array, replace: boolean): void {
    for (let at = 0; at < note.length; at += MAX_PIECE) {
      this.client.note(key, note.subarray(at, at + MAX_PIECE), replace && at === 0);
    }
  }

  private noteFacts(bytes: Uint8Array): void {
    this.noteGeneral(subjectOf(unpack<Facts>(bytes)), frame(RECORD.facts, bytes));
  }

  /** Notes the highest epoch that is known of an address. */
  noteEpoch(address: string, epoch: number): void {
    if (epoch <= this.epochOf(address)) return;
    this.epochs.set(address, epoch);
    this.noteGeneral(address, frame(RECORD.epoch, pack({ address, epoch })));
    this.client.flush();
  }

  private noteGeneral(about: string, note: Uint8Array): void {
    this.general.set(about, note);
    if (this.home !== null) this.write(this.home, Buffer.concat([...this.general.values()]), true);
  }

  /** The highest epoch of an address that was noted, by engines before too; 0 for none. Only after {@link sessions}. */
  epochOf(address: string): number {
    return this.epochs.get(address) ?? 0;
  }

  private readonly epochs = new Map<string, number>();

  /** What is noted of no session replaces all that was noted before: what is not noted anew yet stays with it. */
  private remember(kind: number, bytes: Uint8Array): void {
    if (kind === RECORD.facts) this.general.set(subjectOf(unpack<Facts>(bytes)), frame(kind, bytes));
    if (kind !== RECORD.epoch) return;
    const { address, epoch } = unpack<Epoch>(bytes);
    this.epochs.set(address, Math.max(epoch, this.epochOf(address)));
    this.general.set(address, frame(kind, bytes));
  }

  private flush(): void {
    const count = this.appended;
    if (this.client.open && !this.client.flush()) {
      setTimeout(() => this.flush(), RETRY_MS);
      return;
    }
    this.scheduled = false;
    this.restIsNoted(true);
    this.onSafe(count);
  }

  /** Resolves when the keeper has everything. */
  async settled(): Promise<void> {
    while (this.client.open && !this.client.flush()) await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }

  close(): void {
    this.client.close();
  }
}

/** What the keeper has of a session. */
interface Kept {
  readonly key: string;
  /** The note of its beginning. */
  opening: Uint8Array;
  /** Bytes of notes since it was told whole, and bytes that this took. */
  bytes: number;
  whole: number;
}

const NONE = { bytes: 0, whole: 0 };
const NOTHING = new Uint8Array(0);
const HEAD = 5;

function subjectOf({ cluster, database }: Facts): string {
  return `${cluster}\0${database}`;
}

/** A record as a note: u8 kind, u32 length, bytes. Notes of one key are one stream. */
function frame(kind: number, bytes: Uint8Array): Uint8Array {
  const note = Buffer.allocUnsafe(HEAD + bytes.length);
  note[0] = kind;
  note.writeUInt32BE(bytes.length, 1);
  note.set(bytes, HEAD);
  return note;
}

/** @returns false when the end of them is missing: the engine died while it wrote them */
function replay(notes: readonly Uint8Array[], take: (kind: number, bytes: Uint8Array) => void): boolean {
  const all = Buffer.concat(notes);
  for (let at = 0; at < all.length; ) {
    const end = at + HEAD <= all.length ? at + HEAD + all.readUInt32BE(at + 1) : Number.POSITIVE_INFINITY;
    if (end > all.length) return false;
    take(all[at], all.subarray(at + HEAD, end));
    at = end;
  }
  return true;
}

/** Bytes of the client that the engine before had read and left no note of; 0 where that is not known. */
function unnoted(fd: number, { opening, received }: Shadow): number {
  try {
    return opening.kept === null ? 0 : socketPositions(fd).consumed + opening.kept.received - received;
  } catch {
    return 0;
  }
}

/** What the kernel's own counts of a connection differ by from those of its wire; null where it cannot be asked. */
export function keptCounts(fd: number, read: number, written: number): Opening['kept'] {
  try {
    const positions = socketPositions(fd);
    return { received: read - positions.consumed, written: written - positions.written };
  } catch {
    return null;
  }
}
