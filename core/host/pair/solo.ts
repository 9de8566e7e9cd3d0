import type { Log } from '../../contract/index.js';
import type { Wire } from '../../io/index.js';
import { fdOf, unwrittenOf } from '../../io/tcp/index.js';
import type { SessionPair } from '../session-host.js';
import { Journal } from './journal.js';
import { type Keeping, keptCounts } from './keeping.js';
import type { Replica, Subject } from './replica.js';
import { Shipper } from './shipper.js';

/** A gateway without another one, whose keeper holds what the next engine needs after a crash. */
export class Solo implements SessionPair {
  private readonly shipper: Shipper;

  constructor(private readonly keeping: Keeping) {
    const journal = new Journal(keeping, (position) => this.shipper.acked(position));
    this.shipper = new Shipper(journal, false);
    journal.alone();
    this.shipper.linkUp();
  }

  replicate(subject: Subject): Replica {
    return this.shipper.replicate(subject);
  }

  mention(): () => void {
    return () => {};
  }

  covers(): boolean {
    return true;
  }

  identify(): unknown {
    return null;
  }

  accepted(): void {}

  refusal(): null {
    return null;
  }

  unacknowledged(): number {
    return 0;
  }

  unheard(wire: Wire): Uint8Array[] {
    return [unwrittenOf(wire)];
  }

  descriptor(wire: Wire): number {
    return fdOf(wire);
  }

  kept(wire: Wire): { received: number; written: number } | null {
    const fd = fdOf(wire);
    return fd < 0 ? null : keptCounts(fd, wire.bytesRead, wire.bytesWritten - wire.backlog);
  }

  readonly gates = false;

  /** What the kernel has acknowledged and nobody has read waits in the socket, which the keeper holds. */
  gate(): null {
    return null;
  }

  /** A note costs no way to another host: every client waits for it, so that none knows more than the next engine. */
  holds(): boolean {
    return true;
  }

  stop(): void {
    this.shipper.stop();
    this.keeping.close();
  }
}

/** Goes on with what the engine before had. @returns how many connections go on, and how many could not */
export function goOnWithKept(
  keeping: Keeping,
  sessions: Parameters<typeof keeping.wire>[0][],
  adopt: (session: Parameters<typeof keeping.wire>[0], wire: Wire) => unknown,
  log: Log,
): { kept: number; lost: number } {
  let kept = 0;
  for (const session of sessions) {
    try {
      adopt(session, keeping.wire(session));
      // One that is no longer to be told of, by a configuration that has changed.
      if (!keeping.inherits(session.key)) keeping.drop(session.key);
      kept++;
    } catch (error) {
      keeping.release(session.key, session.fd);
      const { code, message } = error as { code?: string; message: string };
      log.warn({ code }, `a connection of the engine before cannot be gone on with: ${message}`);
    }
  }
  return { kept, lost: sessions.length - kept };
}
