import type { BackendConnection } from './cluster/index.js';

/** What a session lets {@link Relocation} do with it. */
export interface Relocatable {
  /** Makes its connection to the other server. */
  acquire(signal: AbortSignal): Promise<BackendConnection>;
  /** Whether its present server can be left at this moment. */
  safe(): boolean;
  /** Leaves it: goes on over this connection. */
  change(connection: BackendConnection): void;
}

/**
 * A live session on its way to another server. The new connection is made first, which takes longest, while the session works on; then a
 * safe point is waited for, and only what follows is a pause for its client.
 */
export class Relocation {
  private connection: BackendConnection | null = null;
  private readonly abort = new AbortController();
  private readonly timer: NodeJS.Timeout;

  /**
   * @param patience time for all of it, in ms
   * @param done told once whether the session has left its server
   */
  constructor(
    private readonly session: Relocatable,
    patience: number,
    private readonly done: (left: boolean) => void,
  ) {
    this.timer = setTimeout(() => this.cancel(), patience);
  }

  /** Begins. Never rejects. */
  async start(): Promise<void> {
    let connection: BackendConnection;
    try {
      connection = await this.session.acquire(this.abort.signal);
    } catch {
      this.cancel();
      return;
    }
    if (this.abort.signal.aborted) {
      discard(connection);
      return;
    }
    this.connection = connection;
    this.consider();
  }

  /** To be called whenever the session may have come to a safe point. */
  consider(): void {
    const { connection, session } = this;
    if (connection === null || !session.safe()) return;
    if (!connection.wire.open) {
      this.cancel();
      return;
    }
    this.connection = null;
    clearTimeout(this.timer);
    this.done(true);
    session.change(connection);
  }

  /** The session stays where it is, or something else became of it. */
  cancel(): void {
    if (this.abort.signal.aborted) return;
    this.abort.abort();
    clearTimeout(this.timer);
    if (this.connection !== null) discard(this.connection);
    this.connection = null;
    this.done(false);
  }
}

/** Lets a connection go that no session is on. */
export function discard({ wire, release }: BackendConnection): void {
  release?.();
  wire.onData = ignore;
  wire.onDrain = ignore;
  wire.onClose = ignore;
  wire.destroy();
}

function ignore(): void {}
