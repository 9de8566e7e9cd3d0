import { randomBytes } from 'node:crypto';
import type { Opening } from '../cluster/records.js';
import type { Shadow, ShadowWorld } from '../cluster/shadow.js';
import type { BackendReach } from '../cluster/statistics.js';
import type {
  ActionPlugin,
  AddressPlugin,
  Codec,
  CredentialsPlugin,
  LeasePlugin,
  Log,
  PluginContext,
} from '../contract/index.js';
import { CodedError } from '../contract/index.js';
import {
  type AcceptOptions,
  type Listener,
  listen,
  listenOn,
  runCommand,
  type ServerTls,
  serverTls,
  type Wire,
} from '../io/index.js';
import { announce, tcpRepairUnavailable } from '../io/tcp/index.js';
import { abandon } from '../io/tcp/standstill.js';
import { type Admin, type Order, startAdmin } from './admin.js';
import { SessionBalancing } from './balancing-backends.js';
import { VERSION } from './check.js';
import { Choice, Cluster, type ClusterEvent } from './cluster/index.js';
import {
  type ClusterConfig,
  type Config,
  fileReader,
  type ListenerConfig,
  type PairConfig,
  type PluginUse,
} from './config/index.js';
import { createMetrics, Stats } from './metrics.js';
import { MarkSweeper } from './outcome.js';
import { Keeping, type KeptSession } from './pair/keeping.js';
import { Pair, type PairWorld } from './pair/pair.js';
import { goOnWithKept, Solo } from './pair/solo.js';
import { codecsOf, type Extensions, loadExtensions, startPlugin } from './registry.js';
import { Reservations } from './reservations.js';
import { SessionHost } from './session-host.js';

/** A gateway that runs. */
export interface Gateway {
  readonly listeners: readonly { readonly name: string; readonly host: string; readonly port: number }[];
  readonly admin: { readonly host: string; readonly port: number } | null;
  readonly stats: Stats;
  /** What it is doing, as plain data without secrets. */
  status(): object;
  /** Stops accepting, ends all sessions, lets go of everything. */
  stop(): Promise<void>;
}

/** What a gateway is started with besides its configuration. */
export interface GatewayOptions {
  readonly log: Log;
  /** Path of the keeper's socket; without one a crash costs the connections. */
  readonly keeper?: string;
  /** Another engine on this host has taken over: the process should end. */
  readonly onRetired?: () => void;
}

/**
 * How long sessions may take to be such that another engine can go on with them, before that one takes over: a login on a machine with much
 * to do. All others are served meanwhile; the keeper waits for twice as long.
 */
const SETTLE_MS = 5000;
/** How often it is looked whether sessions should be on other servers; they are not moved more often than once a second. */
const BALANCE_MS = 500;
/** How long sessions may take to leave when the gateway stops. */
const STOP_MS = 1000;

/**
 * Starts the gateway that a configuration describes.
 *
 * Rejects with a CodedError that says what is wrong with the configuration, a plugin or an address; nothing is left running then.
 */
export async function startGateway(config: Config, options: GatewayOptions): Promise<Gateway> {
  const { log, keeper, onRetired = () => {} } = options;
  const gateway = new RunningGateway(config, log, keeper, onRetired);
  try {
    await gateway.start();
  } catch (error) {
    await gateway.stop();
    throw error;
  }
  return gateway;
}

class RunningGateway implements Gateway {
  readonly listeners: { name: string; host: string; port: number }[] = [];
  admin: { host: string; port: number } | null = null;
  readonly stats = new Stats();
  private readonly stopping = new AbortController();
  private readonly clusters = new Map<string, Cluster>();
  /** By cluster: what is kept from being made up again on its new primary. */
  private readonly reservations = new Map<string, Reservations>();
  private readonly doors: Door[] = [];
  private pair: Pair | null = null;
  private solo: Solo | null = null;
  private keeping: Keeping | null = null;
  /** Connections of the engine before that go on, and that could not. */
  private kept = { kept: 0, lost: 0 };
  private adminServer: Admin | null = null;
  private readonly since = Date.now();

  constructor(
    private readonly config: Config,
    private readonly log: Log,
    private readonly keeper: string | undefined,
    private readonly onRetired: () => void,
  ) {}

  async start(): Promise<void> {
    const extensions = await loadExtensions(this.config);
    for (const cluster of this.config.clusters) await this.startCluster(cluster, extensions);
    if (this.keeper !== undefined) {
      const prefix = randomBytes(8).toString('hex');
      this.keeping = await Keeping.connect(this.keeper, prefix, this.log, () => this.retire());
    }
    if (this.config.pair !== null) this.pair = await this.makePair(this.config.pair, extensions);
    else if (this.keeping !== null) this.solo = new Solo(this.keeping);
    for (const listener of this.config.listeners) await this.startListener(listener, extensions);
    if (this.solo !== null) this.goOnAlone(this.keeping!);
    await this.pair?.start();
    if (this.config.admin !== null) {
      const { pair } = this;
      const metrics = createMetrics(this.stats, pair === null ? null : () => pair.figures(), () =>
        this.doors.flatMap(({ config: { name: listener }, onServers }) =>
          Object.entries(onServers).map(([server, sessions]) => ({ listener, server, sessions })),
        ),
      );
      this.adminServer = await startAdmin(
        this.config.admin.listen,
        { metrics, health: () => this.health(), status: () => this.status(), order: (what) => this.order(what) },
        this.log,
      );
      this.admin = { host: this.adminServer.host, port: this.adminServer.port };
    }
  }

  private async startCluster(config: ClusterConfig, extensions: Extensions): Promise<void> {
    // A cluster that no listener uses is not contacted.
    const [codec] = codecsOf(config, this.config, extensions.codecs);
    if (codec === undefined) return;
    let cluster: Cluster | null = null;
    const action = async (use: PluginUse | null): Promise<ActionPlugin | undefined> =>
      use === null
        ? undefined
        : await startPlugin<ActionPlugin>(
            extensions,
            use,
            this.context(() => cluster, codec),
          );
    const promote = await action(config.promotion);
    const fence = await action(config.fence);
    cluster = new Cluster({
      config,
      codec,
      log: this.log,
      stats: this.stats,
      now,
      plugins: { promote, fence },
    });
    this.clusters.set(config.name, cluster);
    cluster.onChange((event) => this.clusterChanged(config, event));
    await cluster.start();
  }

  private context(cluster: () => Cluster | null, codec: Codec): PluginContext {
    const use = (): Cluster => {
      const present = cluster();
      if (present === null)
        throw new CodedError('OUTLIVE_INTERNAL', 'gateway', 'a plugin asked the servers before they were there');
      return present;
    };
    return {
      ...this.outside(),
      ask: (server, exchange) => use().ask(server, exchange),
      lookup: codec.lookup === undefined ? undefined : (query, user) => use().lookup(query, user),
    };
  }

  /** What plugins get that have nothing to do with a cluster. */
  private outside(): PluginContext {
    return {
      log: this.log,
      signal: this.stopping.signal,
      ask: () =>
        Promise.reject(new CodedError('OUTLIVE_INTERNAL', 'plugin', 'only plugins of a cluster can ask its servers')),
      announce: (address, networkInterface) => announce(address, networkInterface),
      run: (command, env, timeoutMs) =>
        runCommand(command, { env, timeoutMs, cwd: this.config.baseDir, signal: this.stopping.signal }),
      readFile: fileReader(this.config.baseDir),
    };
  }

  private async startListener(config: ListenerConfig, extensions: Extensions): Promise<void> {
    const codec = extensions.codecs.get(config.name)!;
    const cluster = this.clusters.get(config.cluster)!;
    const credentials =
      config.credentials === null
        ? null
        : await startPlugin<CredentialsPlugin>(
            extensions,
            config.credentials,
            this.context(() => cluster, codec),
          );
    const { cert, key, mode } = config.tls;
    const tls =
      mode === 'off' || cert === null || key === null ? null : serverTls({ cert: cert.text, key: key.text.reveal() });
    const { monitor, detection } = this.config.clusters.find(({ name }) => name === config.cluster)!;
    const silence = monitor === null || codec.activity === undefined ? null : detection.silence;
    if (config.mutables === 'keep') codec.warmUp?.();
    const reservations = this.reservations.get(config.cluster) ?? new Reservations(this.log);
    this.reservations.set(config.cluster, reservations);
    const door = new Door(
      config,
      codec,
      cluster,
      credentials,
      tls,
      silence,
      reservations,
      this.pair ?? this.solo,
      this.keeping,
      this.log,
      this.stats,
    );
    this.doors.push(door);
    await door.open();
    this.listeners.push({ name: config.name, host: config.listen.host, port: door.port });
    this.log.info({ listener: config.name, host: config.listen.host, port: door.port, codec: codec.name }, 'listening');
  }

  private async makePair(config: PairConfig, extensions: Extensions): Promise<Pair> {
    const start = <T extends ActionPlugin | AddressPlugin | LeasePlugin>(
      use: PluginUse,
      address?: string,
    ): Promise<T> => startPlugin<T>(extensions, use, { ...this.outside(), address });
    const plugins = {
      lease: config.lease === null ? null : await start<LeasePlugin>(config.lease),
      fence: config.fence === null ? null : await start<ActionPlugin>(config.fence),
      movers: await Promise.all(config.addresses.map(({ mover, address }) => start<AddressPlugin>(mover, address))),
    };
    const world: PairWorld = {
      sessions: () => this.doors.flatMap((door) => door.sessions),
      shadowWorld: (opening, shared) => this.doorOf(opening)?.shadowWorld(shared) ?? null,
      adopt: (shadow, wire, key) => this.doorOf(shadow.opening)!.adopt(shadow, wire, key),
      ports: () => this.doors.map(({ port }) => port),
      listening: () => this.doors.map(({ descriptor }) => descriptor),
      run: (command, env, timeoutMs) => this.outside().run(command, env, timeoutMs),
      backends: () => this.backends(),
      stats: this.stats,
    };
    return new Pair(config, plugins, world, this.keeping, VERSION, this.log, now);
  }

  /** Goes on with the sessions of the engine before. */
  private goOnAlone(keeping: Keeping): void {
    const world = (opening: Opening, shared: () => unknown) => this.doorOf(opening)?.shadowWorld(shared) ?? null;
    const sessions = keeping.sessions(world, now);
    const adopt = ({ shadow, key }: KeptSession, wire: Wire) => this.doorOf(shadow.opening)!.adopt(shadow, wire, key);
    const { kept, lost } = goOnWithKept(keeping, sessions, adopt, this.log);
    keeping.dropHolds();
    this.kept = { kept, lost: lost + keeping.unusable };
    if (kept + this.kept.lost > 0) this.log.info(this.kept, 'going on with the connections of the engine before');
  }

  private doorOf({ listener }: Opening): Door | undefined {
    return this.doors.find((door) => door.config.name === listener);
  }

  /** Leaves everything to another engine on this host; the process is to end then. */
  private async retire(): Promise<void> {
    this.log.info({}, 'another engine takes over');
    await Promise.all(this.doors.map((door) => door.leave()));
    const until = now() + SETTLE_MS;
    const settled = () => this.doors.every(({ sessions }) => sessions.every((host) => host.settled));
    while (!settled() && now() < until) await new Promise((resolve) => setTimeout(resolve, 5));
    if (this.pair !== null) await this.pair.retire();
    else for (const host of this.doors.flatMap((door) => door.sessions)) host.retire(abandon);
    await this.keeping!.settled();
    this.onRetired();
  }

  /** How the servers are found, by `cluster/server`. */
  private backends(): Record<string, BackendReach> {
    const found: Record<string, BackendReach> = {};
    for (const cluster of this.clusters.values()) {
      for (const { name, reachable, facts } of cluster.servers()) {
        // Of what nobody watches nothing is known, and nothing speaks against it.
        const reach = reachable || !cluster.monitored ? 'read-only' : 'unreachable';
        found[`${cluster.name}/${name}`] = facts?.writable === true && reachable ? 'ok' : reach;
      }
    }
    return found;
  }

  private clusterChanged(config: ClusterConfig, event: ClusterEvent): void {
    const doors = this.doors.filter((door) => door.config.cluster === config.name);
    switch (event.type) {
      case 'server-silent':
        // A session that waits for nothing loses nothing by staying: perhaps the server comes back.
        for (const host of doors.flatMap((door) => door.sessions)) {
          if (host.server === event.server && host.owes) host.serverVoid();
        }
        break;
      case 'superseded':
        for (const host of doors.flatMap((door) => door.sessions)) {
          if (host.server === event.server) host.serverVoid();
        }
        break;
      case 'primary-found':
        // Started anew without a word to its old connections, as after a power loss.
        for (const host of doors.flatMap((door) => door.sessions)) {
          const { facts } = event.server;
          if (
            facts !== null &&
            host.instance !== null &&
            host.server === event.server &&
            host.instance !== facts.instance
          ) {
            host.serverVoid();
          }
        }
        break;
      case 'server-restarted':
        // As above, of a server that is not the one that takes writes.
        for (const host of doors.filter(({ chooses }) => chooses).flatMap((door) => door.sessions)) {
          if (host.server === event.server && host.instance !== event.server.facts!.instance) host.serverVoid();
        }
        break;
      case 'lost-commits':
        for (const door of doors) if (door.config.failover.lostCommit === 'stop') door.stopForLostCommits();
        break;
    }
  }

  private health(): { healthy: boolean; reasons: string[] } {
    const reasons = [...this.clusters.values()]
      .filter((cluster) => cluster.primary() === null)
      .map((cluster) => `cluster ${cluster.name} has no server that accepts writes`);
    for (const door of this.doors) if (door.stopped !== null) reasons.push(door.stopped);
    return { healthy: reasons.length === 0, reasons };
  }

  status(): object {
    return {
      pair: this.pair?.status() ?? null,
      keeper: this.keeping === null ? null : { open: this.keeping.open, ...(this.pair?.inherited ?? this.kept) },
      uptimeSeconds: Math.round((Date.now() - this.since) / 1000),
      health: this.health(),
      listeners: this.doors.map((door) => door.status()),
      clusters: [...this.clusters.values()].map((cluster) => cluster.status()),
      stats: this.stats.toJSON(),
    };
  }

  /** Does what an operator wants of the pair; resolves when it is done. */
  private async order(what: Order): Promise<object> {
    if (this.pair === null) {
      throw new CodedError(
        'OUTLIVE_PAIR_NONE',
        'config',
        'this gateway is not one of a pair: there is no pair in its configuration',
      );
    }
    await this.pair.order(what);
    return { done: what, pair: this.pair.status() };
  }

  async stop(): Promise<void> {
    await this.pair?.stop();
    this.solo?.stop();
    this.stopping.abort();
    await Promise.all(this.doors.map((door) => door.close()));
    await Promise.all([...this.clusters.values()].map((cluster) => cluster.stop()));
    await this.adminServer?.stop();
  }
}

/** One listener: takes clients in, knows its sessions. */
class Door {
  port = 0;
  /** Why no clients are taken in any more; null while they are. */
  stopped: string | null = null;
  private readonly hosts = new Set<SessionHost>();
  private readonly keys = new Map<string, SessionHost>();
  private greetings = 0;
  private listener: Listener | null = null;
  private linkChecks: NodeJS.Timeout | undefined;
  private balanceChecks: NodeJS.Timeout | undefined;
  private readonly choice: Choice | null;
  private readonly sweeper: MarkSweeper;
  private readonly balancing: SessionBalancing<SessionHost> | null;

  constructor(
    readonly config: ListenerConfig,
    private readonly codec: Codec,
    private readonly cluster: Cluster,
    private readonly credentials: CredentialsPlugin | null,
    private readonly tls: ServerTls | null,
    private readonly silence: number | null,
    private readonly reservations: Reservations,
    private readonly pair: Pair | Solo | null,
    private readonly keeping: Keeping | null,
    private readonly log: Log,
    private readonly stats: Stats,
  ) {
    const { target, standby, balance } = config;
    this.sweeper = new MarkSweeper(config, codec, cluster, log);
    this.choice =
      target === 'primary'
        ? null
        : new Choice(
            { target, standby },
            () => cluster.servers(),
            () => cluster.primary(),
          );
    this.balancing = this.choice === null || !balance.on ? null : new SessionBalancing(balance, this.choice, log);
  }

  /** Its sessions may be on several servers. */
  get chooses(): boolean {
    return this.choice !== null;
  }

  async open(): Promise<void> {
    const { listen: address, limits } = this.config;
    const { silence } = this;
    this.sweeper.start();
    if (this.balancing !== null) this.balanceChecks = setInterval(() => this.balance(), BALANCE_MS);
    if (silence !== null) {
      this.linkChecks = setInterval(() => {
        for (const host of this.hosts) void host.checkLink(silence);
      }, silence / 8);
    }
    const options: AcceptOptions = {
      highWater: limits.backlog,
      memory: this.keeping?.memory,
      closesFirst: this.pair instanceof Pair && tcpRepairUnavailable() === null,
      onWire: (wire) => this.accept(wire),
      onError: (error) =>
        this.log.warn({ listener: this.config.name }, `a connection could not be accepted: ${error.message}`),
    };
    // A listener that has another address in a changed configuration is another one.
    const name = `${this.config.name} ${address.host}:${address.port}`;
    const kept = this.keeping?.listener(name) ?? null;
    this.listener =
      kept === null
        ? await listen({ ...options, host: address.host, port: address.port })
        : await listenOn(kept, options);
    this.keeping?.keepListener(name, this.listener.fd);
    this.port = this.listener.port;
  }

  /** Of its listening socket; -1 while there is none. */
  get descriptor(): number {
    return this.listener?.fd ?? -1;
  }

  private accept(wire: Wire): void {
    const { limits } = this.config;
    this.pair?.accepted(wire);
    if (this.stopped !== null) {
      this.turnAway(wire, 'OUTLIVE_LOST_COMMITS', 'refused', this.stopped);
      return;
    }
    if (this.hosts.size >= limits.clients || this.greetings >= limits.greetings) {
      const limit =
        this.hosts.size >= limits.clients ? `clients (${limits.clients})` : `greetings (${limits.greetings})`;
      this.turnAway(
        wire,
        'OUTLIVE_TOO_MANY_CLIENTS',
        'too-many',
        `limits.${limit} of listener ${this.config.name} is reached: try again later, or raise it`,
      );
      return;
    }
    const host = this.host(wire);
    const refusal = this.pair?.refusal(host.address) ?? null;
    if (refusal !== null) {
      host.fatal(refusal);
      return;
    }
    this.greetings++;
    let greeted = false;
    host.onGreeted = () => {
      if (!greeted) this.greetings--;
      greeted = true;
    };
    void host.run();
  }

  private host(wire: Wire): SessionHost {
    const host = new SessionHost(
      {
        listener: this.config,
        codec: this.codec,
        cluster: this.cluster,
        choice: this.choice,
        credentials: this.credentials,
        tls: this.tls,
        log: this.log,
        stats: this.stats,
        reservations: this.reservations,
        keys: this.keys,
        pair: this.pair,
        marked: (database) => this.sweeper.note(database),
        now,
      },
      wire,
    );
    this.hosts.add(host);
    host.onEnd = () => this.hosts.delete(host);
    return host;
  }

  /** What a session of the other gateway's lives in while it is followed here. */
  shadowWorld(shared: () => unknown): ShadowWorld {
    const { codec, config } = this;
    return { codec, cluster: config.cluster, options: config.options, limits: config.limits, shared, time: Date.now };
  }

  /** Takes no clients in any more; another engine on this host does. */
  async leave(): Promise<void> {
    this.sweeper.stop();
    clearInterval(this.linkChecks);
    clearInterval(this.balanceChecks);
    await this.listener?.close();
  }

  /** Goes on with a session of the other gateway's, or of the engine before, which the keeper has under `key`. */
  adopt(shadow: Shadow, wire: Wire, key?: string): SessionHost {
    const host = this.host(wire);
    host.adopt(shadow, key);
    return host;
  }

  private turnAway(wire: Wire, code: string, kind: 'too-many' | 'refused', message: string): void {
    this.stats.count(this.stats.errors, code);
    wire.end(this.codec.refuse({ code, kind, message }));
  }

  /** The sessions of this moment. */
  get sessions(): SessionHost[] {
    return [...this.hosts];
  }

  /** Moves sessions that should be on other servers. */
  private balance(): void {
    const { balancing, cluster, config, stats } = this;
    const { replay, patience } = config.balance;
    for (const move of balancing!.propose(now(), cluster.servers(), this.sessions)) {
      const { session, from, to, reason } = move;
      void session.relocate(to, { replay, patience }).then((left) => {
        balancing!.over(move, now(), left);
        if (left) stats.sessionMoved({ listener: config.name, from: from.name, to: to.name, reason });
      });
    }
  }

  /** Sessions by the server that they are on. */
  get onServers(): Record<string, number> {
    const found: Record<string, number> = {};
    for (const { server } of this.hosts) if (server !== null) found[server.name] = (found[server.name] ?? 0) + 1;
    return found;
  }

  /** Commits that clients were told of are gone: the policy is that nobody goes on as if they were there. */
  stopForLostCommits(): void {
    this.stopped = `listener ${this.config.name} stopped: commits that were acknowledged are missing on the promoted server (failover.lostCommit is stop)`;
    this.log.error({ code: 'OUTLIVE_LOST_COMMITS', listener: this.config.name }, this.stopped);
    for (const host of this.sessions)
      host.fatal({ code: 'OUTLIVE_LOST_COMMITS', kind: 'refused', message: this.stopped! });
  }

  status(): object {
    const states: Record<string, number> = {};
    for (const host of this.hosts) states[host.state] = (states[host.state] ?? 0) + 1;
    return {
      name: this.config.name,
      port: this.port,
      clients: this.hosts.size,
      greetings: this.greetings,
      cancelKeys: this.keys.size,
      states,
      target: this.config.target,
      servers: this.onServers,
      balance: this.balancing?.status ?? null,
      stopped: this.stopped,
    };
  }

  async close(): Promise<void> {
    this.sweeper.stop();
    clearInterval(this.linkChecks);
    clearInterval(this.balanceChecks);
    await this.listener?.close();
    for (const host of this.sessions)
      host.fatal({ code: 'OUTLIVE_STOPPING', kind: 'unavailable', message: 'the gateway is being stopped' });
    const until = now() + STOP_MS;
    while (this.hosts.size > 0 && now() < until) await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

/** The clock of deadlines: monotonic, in ms. */
function now(): number {
  return performance.now();
}
