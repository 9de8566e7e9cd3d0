import {
  CodedError,
  type Identity,
  type LoginOutcome,
  type LoginResult,
  type ServerFacts,
} from '../../contract/index.js';
import type { Wire } from '../../io/index.js';
import type { Choice, Release } from './choice.js';

/** One configured server as it is known now. One object per server for the life of the cluster; its members change. */
export interface ServerState {
  readonly name: string;
  readonly host: string;
  readonly port: number;
  /** What its latest answer said; kept when it stops answering. */
  facts: ServerFacts | null;
  /** What its first answer said of the present instance, timeline and role: what tokens taken there refer to. */
  firstFacts: ServerFacts | null;
  /** Whether the latest probe was answered. */
  reachable: boolean;
  /** When it last answered; -1 before the first answer. */
  lastSeen: number;
  /** Bytes of the primary's log that this standby has not replayed, at least; null of a primary, and when it is not known. */
  behind: number | null;
  /** Why it is never used as it is now, in words; null when nothing stands against it. */
  refused: string | null;
}

/** Where tokens of a connection come from. Plain but for `server`. */
export interface Origin {
  readonly server: ServerState;
  /** `server.firstFacts` at hand-over. */
  readonly facts: ServerFacts;
  /** The server's session. */
  readonly backendId: string;
  /** When the login was done; without it the facts are taken for those of the very life of the server that the connection is to. */
  readonly since?: number;
}

/** A logged-in server connection. The wire is paused and without handlers. */
export interface BackendConnection {
  readonly wire: Wire;
  /** Bytes that the server sent after the login and that nobody has looked at. */
  readonly rest: Uint8Array;
  readonly login: LoginResult;
  readonly server: ServerState;
  /** What to ask for outcomes with. Null without a monitor. */
  readonly origin: Origin | null;
  /** Whether it was logged in beforehand. */
  readonly spare: boolean;
  /** To be called when it is over; not needed where nobody chose. */
  readonly release?: Release;
}

/** What a session asks for. */
export interface AcquireRequest {
  readonly identity: Identity;
  /** `startup` of the greeting. */
  readonly startup: unknown;
  /** On the clock of the cluster. */
  readonly deadline: number;
  readonly signal: AbortSignal;
  /** The session is not one for repair: spares are of no use to it. */
  readonly passThrough?: boolean;
  /** Which server it may be; without it the one that takes writes. */
  readonly choice?: Choice | null;
  /** No session: it does not count among those that the choice goes by. */
  readonly uncounted?: boolean;
  /** Name of the server that is chosen if it is eligible. */
  readonly preferred?: string;
  /** Whether somebody waits for the connection now: then it comes before those that nobody waits for. */
  readonly urgent?: () => boolean;
}

/** What {@link ServerState} turned out to be when a session doubted it. */
export type Doubt =
  /** Alive, writable, the same instance: only the session's own connection ended. */
  | 'same'
  /** Alive and writable, but another start of it. */
  | 'restarted'
  /** Alive, but not the one to write to. */
  | 'demoted'
  /** Not reachable, going down or starting up. */
  | 'gone';

/** Something that sessions should know. */
export type ClusterEvent =
  /** No server is known to take writes any more; `server` did. */
  | { readonly type: 'primary-lost'; readonly server: ServerState }
  /** This server takes writes. */
  | { readonly type: 'primary-found'; readonly server: ServerState }
  /** Nothing was heard of the server for `detection.silence`: connections to it that owe an answer are dead. */
  | { readonly type: 'server-silent'; readonly server: ServerState }
  /** The server was started anew: connections to the life before are dead, even if nobody said so. */
  | { readonly type: 'server-restarted'; readonly server: ServerState }
  /** `by` took over: connections to `server` are void, whatever they still seem to do. */
  | { readonly type: 'superseded'; readonly server: ServerState; readonly by: ServerState }
  /** Commits that were acknowledged to clients are missing on the promoted server. */
  | {
      readonly type: 'lost-commits';
      readonly server: ServerState;
      /** How many of the remembered ones; there may be more when `atLeast` is set. */
      readonly count: number;
      readonly atLeast: boolean;
      /** Position of the latest acknowledged commit on the lost server. */
      readonly position: bigint;
      /** Position at which the new history parted from the old one. */
      readonly switchPoint: bigint;
    };

/** The server refused a login for good. */
export class LoginRefused extends CodedError {
  /** @param outcome what the server said; its bytes can be passed on to the client */
  constructor(
    server: string,
    readonly outcome: Extract<LoginOutcome, { ok: false }>,
  ) {
    super('OUTLIVE_LOGIN_REFUSED', 'client', `server ${server} refused the login (${outcome.error.code})`);
    this.name = 'LoginRefused';
  }
}
