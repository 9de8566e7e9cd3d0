import type { Injection, MarkInjection, Request, TokenInjection } from '../contract/index.js';
import type { RequestRecord } from '../journal/record.js';
import type { Verifier } from '../journal/verify.js';

/** A request that waits, with the input that follows it. `record` when it is a repeated one. */
export interface Item {
  readonly request: Request;
  readonly input: Uint8Array[];
  readonly record: RequestRecord | null;
}

/** An answer that is awaited. */
export class Pending {
  record: RequestRecord | null = null;
  injection: Injection | null = null;
  readies = 1;
  onDone: (() => void) | null = null;
  verifier: Verifier | null = null;
  /** An answered record being repeated: its end is the next step of the replay. */
  replay = false;
  failed = false;
  gates = false;
  /** Notices that come with an injection are the client's. */
  notices = false;
  /** The question for the token that went along with the request. */
  token: TokenInjection | null = null;
  /** The row of the commit was refused in front of it: what the server says to it is not the client's. */
  refused: MarkInjection | null = null;
  /** Of a repeated request: why parts of its answer may differ, ... */
  doubts: ReadonlyMap<string, string> | null = null;
  /** ... and what was prepared for it. */
  preparation: Injection | null = null;
  /** What it is the answer to, while that waits for the answers before it. */
  unsent: Uint8Array[] | null = null;

  /** As if it were new. */
  reset(): this {
    this.record = null;
    this.injection = null;
    this.readies = 1;
    this.onDone = null;
    this.verifier = null;
    this.replay = false;
    this.failed = false;
    this.gates = false;
    this.notices = false;
    this.token = null;
    this.refused = null;
    this.doubts = null;
    this.preparation = null;
    this.unsent = null;
    return this;
  }
}
