import type { BalanceConfig } from '../../cluster/balance.js';
import type { ConditionsConfig } from '../../cluster/decide.js';
import type { Sensitive } from './sensitive.js';

/** Where to listen. Port 0 means a free port. */
export interface Address {
  readonly host: string;
  readonly port: number;
}

/** A file that was read and checked when the configuration was loaded. */
export interface LoadedFile<T> {
  /** Absolute path. */
  readonly file: string;
  /** Its text (PEM). */
  readonly text: T;
}

/** A plugin as the configuration asks for it. */
export interface PluginUse {
  /** A built-in name, an npm package, or a path. */
  readonly plugin: string;
  /** The plugin's own options, as written (`timeout` of promotion and fence in milliseconds). */
  readonly options: Readonly<Record<string, unknown>>;
  /** Where it stands in the configuration, for messages. */
  readonly path: string;
}

/** A plugin that acts on a server of the cluster. */
export interface ActionUse extends PluginUse {
  /** How long one action may take, in ms. */
  readonly timeout: number;
}

/** Promotion by the gateway. */
export interface PromotionConfig extends ActionUse {
  /** How long the primary must be unreachable before a standby is promoted, in ms. */
  readonly after: number;
}

/** Limits of one listener; sizes in bytes, times in ms. */
export interface LimitsConfig {
  readonly clients: number;
  readonly request: number;
  readonly journal: number;
  readonly answers: number;
  readonly queue: number;
  readonly backlog: number;
  readonly greetingTimeout: number;
  readonly greetings: number;
}

/** What a listener does when a server is lost; times in ms. */
export interface FailoverConfig {
  readonly wait: number;
  readonly attempts: number;
  readonly keepalive: number;
  readonly lostCommit: 'stop' | 'continue';
  readonly unprotected: 'allow' | 'refuse';
}

/** What of a listener's live sessions moves between servers, when and how fast; times in ms. */
export interface SessionBalanceConfig
  extends Pick<
    BalanceConfig,
    'start' | 'stop' | 'slack' | 'sustain' | 'halfLife' | 'movesPerMinute' | 'rest' | 'noReturn'
  > {
  readonly on: boolean;
  readonly conditions: Readonly<Record<'uneven' | MisplacedReason, boolean>>;
  /** Nothing moves for so long after a server changed. */
  readonly pause: number;
  /** How long a chosen session is waited for to come to a safe point. */
  readonly patience: number;
  /** Open transactions move by replay. */
  readonly replay: boolean;
}

/** Why a session is on a server that its listener would not choose now. */
export type MisplacedReason = 'fallback' | 'lagging' | 'promoted';

/** One listener, normalized. */
export interface ListenerConfig {
  readonly name: string;
  readonly codec: string;
  readonly options: Readonly<Record<string, unknown>>;
  readonly listen: Address;
  readonly cluster: string;
  /** Which servers its sessions live on. */
  readonly target: 'primary' | 'standby' | 'any';
  /** For target standby: how far behind one may be, in bytes, and what to do where there is none. */
  readonly standby: { readonly maxLag: number; readonly without: 'primary' | 'refuse' };
  readonly balance: SessionBalanceConfig;
  readonly auth: string;
  readonly credentials: PluginUse | null;
  readonly tls: {
    readonly mode: 'off' | 'allow' | 'require';
    readonly cert: LoadedFile<string> | null;
    readonly key: LoadedFile<Sensitive> | null;
  };
  /** `pair`: a client gets nothing that the peer gateway does not hold. */
  readonly durability: 'local' | 'pair';
  /** `keep`: a repeated transaction carries the made-up values that the client has seen; `strict`: what differs is a divergence. */
  readonly mutables: 'keep' | 'strict';
  readonly outcome: OutcomeConfig;
  readonly limits: LimitsConfig;
  readonly failover: FailoverConfig;
}

/** How commits whose answer was lost are proved. */
export interface OutcomeConfig {
  /** Null: the codec's own way. */
  readonly by: 'position' | 'marker' | 'none' | null;
  readonly autocommit: 'guard' | 'unknown';
  /** The table of `marker`; null: the codec's own name. */
  readonly table: string | null;
  /** How long a row of it is kept, in ms. */
  readonly retain: number;
}

/** One database server. */
export interface ServerConfig {
  readonly name: string;
  readonly host: string;
  readonly port: number;
  readonly tls: 'off' | 'prefer' | 'require' | 'verify-full';
  readonly ca: LoadedFile<string> | null;
}

/** How the gateway watches the servers of a cluster; times in ms. */
export interface MonitorConfig {
  readonly user: string;
  readonly database: string;
  readonly password: Sensitive | null;
  readonly interval: number;
  readonly timeout: number;
}

/** One cluster, normalized. */
export interface ClusterConfig {
  readonly name: string;
  readonly servers: readonly ServerConfig[];
  readonly monitor: MonitorConfig | null;
  readonly promotion: PromotionConfig | null;
  readonly fence: ActionUse | null;
  /** `several`: servers that take writes beside each other are no accident. */
  readonly writers: 'one' | 'several';
  readonly spares: { readonly perIdentity: number; readonly total: number };
  readonly logins: { readonly concurrent: number };
  readonly detection: { readonly silence: number };
}

/** An address that moves between the gateways. */
export interface AddressConfig {
  /** Numeric. */
  readonly address: string;
  /** Name of the gateway that has it when nothing speaks against it. */
  readonly home: string;
  readonly mover: PluginUse;
}

/** Another gateway. */
export interface PeerConfig {
  readonly name: string;
  /** Where it listens for other gateways. */
  readonly address: Address;
}

/** The gateways that take over from each other as one of them sees it; times in ms, sizes in bytes. */
export interface PairConfig {
  readonly name: string;
  readonly listen: Address;
  /** At least one; more than one only with a lease. */
  readonly peers: readonly PeerConfig[];
  /** One of both is set. */
  readonly secret: Sensitive | null;
  readonly tls: {
    readonly cert: LoadedFile<string>;
    readonly key: LoadedFile<Sensitive>;
    readonly ca: LoadedFile<string>;
  } | null;
  readonly withoutPeer: 'continue' | 'stop';
  readonly beat: number;
  readonly silence: number;
  readonly restart: number;
  readonly backlog: number;
  readonly lease: PluginUse | null;
  readonly fence: ActionUse | null;
  readonly addresses: readonly AddressConfig[];
  readonly holdAcknowledgements: { readonly interface: string } | null;
  readonly guard: boolean;
  readonly conditions: ConditionsConfig;
  /** When and how fast addresses move where `conditions.balance` is on. */
  readonly balance: BalanceConfig;
}

/** How the gateway logs. */
export interface LogConfig {
  readonly level: 'debug' | 'info' | 'warn' | 'error' | 'silent';
  readonly pretty: boolean;
}

/** A whole configuration: valid, complete, in milliseconds and bytes, with its secrets and files at hand. */
export interface Config {
  /** The file it came from; null when a program made it. */
  readonly file: string | null;
  /** Directory that relative paths start from. */
  readonly baseDir: string;
  readonly listeners: readonly ListenerConfig[];
  readonly clusters: readonly ClusterConfig[];
  readonly admin: { readonly listen: Address } | null;
  readonly pair: PairConfig | null;
  /** `socket` is an absolute path. */
  readonly keeper: { readonly socket: string };
  readonly log: LogConfig;
}
