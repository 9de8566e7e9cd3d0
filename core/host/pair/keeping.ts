import { type Facts, type Opening, RECORD, unpack } from '../../cluster/records.js';
import type { Shadow } from '../../cluster/shadow.js';
import { CodedError, type Log } from '../../contract/index.js';
import type { Wire } from '../../io/index.js';
import { type Claimed, closeDescriptor, KeeperClient, socketPositions } from '../../io/keeper/index.js';
import * as tcp from '../../io/tcp/index.js';
import { Follower, type World } from './follower.js';

/** A session of an engine that is no more, whose connection the keeper held. */
export interface KeptSession {
  readonly key: string;
  readonly fd: number;
  readonly shadow: Shadow;
}

/** Keys in the keeper: of listeners by name, of sessions by process and number. */
const LISTENER = 'listener ';
/** The notes of a session are told whole again after so many bytes. */
const RENEW_AFTER = 64 * 1024;
const RETRY_MS = 2;

/**
 * This engine's side of its keeper: hands sockets over to be held, and notes what the peer gateway would be told, for the engine that
 * comes after a crash. A note is safe when the kernel has it.
 */
export class Keeping {
  private readonly openings = new Map<number, { key: string; opening: Uint8Array; bytes: number }>();
  private readonly facts = new Map<string, Uint8Array>();
  private home: string | null = null;
  private scheduled = false;
  private appended = 0;
  /** Called when the kernel has all notes of records up to this count. */
  onSafe: (count: number) => void = () => {};
  private readonly claimed: Claimed[];

  private constructor(
    private readonly client: KeeperClient,
    claimed: readonly Claimed[],
    private readonly prefix: string,
    private readonly log: Log,
  ) {
    this.claimed = [...claimed];
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
    return new Keeping(client, await client.claim(), prefix, log);
  }

  get open(): boolean {
    return this.client.open;
  }

  // ------------------------------------------------------------------------------------------- what the engine before had

  /** The listening socket of a listener; null when it was not held. The caller's from now on. */
  listener(name: string): number | null {
    const at = this.claimed.findIndex(({ key, kind }) => kind === 'listener' && key === LISTENER + name);
    return at < 0 ? null : this.claimed[at].fd;
  }

  /** The sessions that were held, understood; what cannot be is let go of, and its client is disconnected. */
  sessions(world: World, now: () => number): KeptSession[] {
    const found: KeptSession[] = [];
    const follower = new Follower(world, this.log, now);
    for (const { kind, notes } of this.claimed) if (kind === 'listener') replay(follower, 0, notes);
    let session = 0;
    for (const { key, kind, fd, notes, complete } of this.claimed) {
      if (kind !== 'client') continue;
      session++;
      if (complete) replay(follower, session, notes);
      const shadow = complete ? follower.shadows.get(session) : undefined;
      if (shadow?.session != null) found.push({ key, fd, shadow });
      else this.release(key, fd);
    }
    this.claimed.length = 0;
    return found;
  }

  /**
   * The wire of a held connection, with the client told what it was not yet. Throws OUTLIVE_TAKEOVER_GAP when the engine before had
   * read or said something of which it left no note: nobody can go on then, and the connection is to be released.
   */
  wire({ fd, shadow }: KeptSession): Wire {
    const { kept } = shadow.opening;
    const { consumed, written } = socketPositions(fd);
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
    const wire = tcp.wireOf(fd);
    for (const bytes of unsaid) wire.write(bytes);
    return wire;
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
    this.client.keep(LISTENER + name, fd, 'listener', name);
    this.home ??= LISTENER + name;
  }

  /** Holds the connection of a session, of which notes follow. */
  keep(session: number, fd: number): void {
    if (this.openings.has(session)) return;
    const key = `${this.prefix} ${session}`;
    this.client.keep(key, fd, 'client');
    this.openings.set(session, { key, opening: NOTHING, bytes: 0 });
  }

  /** Notes a record. @returns how many there are by now */
  append(kind: number, session: number, bytes: Uint8Array): number {
    this.appended++;
    if (kind === RECORD.facts) this.noteFacts(bytes);
    else this.note(kind, session, bytes);
    // What was read from the client is gone with this process, so it is noted before anything else is done.
    if (kind === RECORD.client) this.client.flush();
    if (!this.scheduled) {
      this.scheduled = true;
      setImmediate(() => this.flush());
    }
    return this.appended;
  }

  /** True when the notes of a session have grown so much that it should be told whole again. */
  grown(session: number): boolean {
    return (this.openings.get(session)?.bytes ?? 0) > RENEW_AFTER;
  }

  private note(kind: number, session: number, bytes: Uint8Array): void {
    const own = this.openings.get(session);
    if (own === undefined || kind === RECORD.acked) return;
    if (kind === RECORD.close) {
      this.openings.delete(session);
      this.client.drop(own.key);
      return;
    }
    const note = frame(kind, bytes);
    if (kind === RECORD.open) {
      own.opening = note;
      return;
    }
    if (kind === RECORD.capsule) {
      own.bytes = 0;
      this.client.note(own.key, Buffer.concat([own.opening, note]), true);
      return;
    }
    own.bytes += note.length;
    this.client.note(own.key, note);
  }

  private noteFacts(bytes: Uint8Array): void {
    const { cluster, database } = unpack<Facts>(bytes);
    this.facts.set(`${cluster}\0${database}`, frame(RECORD.facts, bytes));
    if (this.home !== null) this.client.note(this.home, Buffer.concat([...this.facts.values()]), true);
  }

  private flush(): void {
    const count = this.appended;
    if (this.client.open && !this.client.flush()) {
      setTimeout(() => this.flush(), RETRY_MS);
      return;
    }
    this.scheduled = false;
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

const NOTHING = new Uint8Array(0);
const HEAD = 5;

/** A record as a note: u8 kind, u32 length, bytes. Notes of one key are one stream. */
function frame(kind: number, bytes: Uint8Array): Uint8Array {
  const note = Buffer.allocUnsafe(HEAD + bytes.length);
  note[0] = kind;
  note.writeUInt32BE(bytes.length, 1);
  note.set(bytes, HEAD);
  return note;
}

function replay(follower: Follower, session: number, notes: readonly Uint8Array[]): void {
  const all = Buffer.concat(notes);
  for (let at = 0; at + HEAD <= all.length; ) {
    const end = at + HEAD + all.readUInt32BE(at + 1);
    follower.record(all[at], session, all.subarray(at + HEAD, end));
    at = end;
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
