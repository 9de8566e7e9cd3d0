import type { Mark, OutcomeToken } from '../contract/index.js';

/** Facts of the open unit of work: the requests since the last commit point. */
export class Unit {
  /** It holds requests that may make something durable. */
  writes = false;
  token: OutcomeToken | null = null;
  /** There are writes of which no token is known yet. */
  unarmed = false;
  /** The server refused a token, and nothing was sent since: its transaction is in the failed state. */
  refused = false;
  /** A token is being asked for. */
  arming = false;
  /** The row that proves its commit; the same however often it is repeated. */
  mark: Mark | null = null;
  /** The server said that the transaction is in the failed state. */
  failed = false;
  /** What would make it durable has left. */
  commitSent = false;
  /** What it holds (a label) that may have taken effect by itself, whose outcome cannot be asked for; or null. */
  opaque: string | null = null;
  /** The same of what was sent to end it, until that is answered. */
  deciding: string | null = null;
  inputBytes = 0;
  answerBytes = 0;
  /** It exceeds the journal and cannot be repeated. */
  oversized = false;
  /** It was begun by the end of the one before (AND CHAIN), and cannot be repeated. */
  chained = false;

  /** Why its outcome could not be asked for (a label), or null. */
  get unprovable(): string | null {
    return this.opaque ?? this.deciding;
  }

  /** True when it may have taken effect without the client knowing. */
  get inDoubt(): boolean {
    return this.unprovable !== null || (this.commitSent && this.writes);
  }

  /** A new unit begins. */
  reset(): void {
    this.rearm();
    this.mark = null;
    this.inputBytes = 0;
    this.answerBytes = 0;
    this.oversized = false;
    this.chained = false;
  }

  /** What was sent to end it did not: another row is left for what ends it, as this one may be undone by a savepoint. */
  goOn(): void {
    this.commitSent = false;
    this.deciding = null;
    if (this.mark === null) return;
    this.mark = null;
    this.token = null;
    this.unarmed = this.writes;
  }

  /** The unit starts over on another server: tokens of the old one mean nothing there. */
  rearm(): void {
    this.writes = false;
    this.unarmed = false;
    this.refused = false;
    this.arming = false;
    this.failed = false;
    this.token = null;
    this.commitSent = false;
    this.opaque = null;
    this.deciding = null;
  }
}
