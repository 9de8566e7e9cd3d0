import {
  type ActionPlugin,
  type Codec,
  CodedError,
  type Exchange,
  type Identity,
  type Log,
  type Mark,
  type Outcome,
  type OutcomeToken,
  type Secret,
  type ServerFacts,
} from '../../contract/index.js';
import type { ClusterConfig, MonitorConfig, ServerConfig } from '../config/index.js';
import type { Stats } from '../metrics.js';
import { Actions } from './actions.js';
import type { Choice } from './choice.js';
import { AcknowledgedCommits } from './commits.js';
import { elect, electAmong, type Refusal, type Seen, type Standing } from './decide.js';
import { incarnation, remember } from './incarnation.js';
import { Learned } from './learned.js';
import { codeOf, isGone, type LoggedIn, logIn } from './login.js';
import { Turns } from './logins.js';
import { Monitor, type Sighting } from './monitor.js';
import { type Outside, outsideWorld } from './outside.js';
import { OwnConnections } from './own.js';
import { Spares } from './spares.js';
import {
  type AcquireRequest,
  type BackendConnection,
  type ClusterEvent,
  type Doubt,
  LoginRefused,
  type Origin,
  type ServerState,
} from './types.js';
import { backoff, either, type Limit, limit, orAborted, popularController, sleep } from './waits.js';

export interface ClusterOptions {
  readonly config: ClusterConfig;
  readonly codec: Codec;
  readonly log: Log;
  readonly stats: Stats;
  /** Milliseconds; deadlines are on this clock. */
  readonly now: () => number;
  readonly plugins: { readonly promote?: ActionPlugin; readonly fence?: ActionPlugin };
  /** The world outside; the real one unless a test stands in for it. */
  readonly outside?: Outside;
}

/** How often servers are probed while sessions wait for one: over a connection at hand, and where each probe needs a login. */
const FAST_MS = 10;
const FAST_LOGIN_MS = 50;
/** A failover that takes longer than this is in the hands of people: no need to hurry so much. */
const LONG_OUTAGE_MS = 10_000;
const LOGIN_TIMEOUT_MS = 10_000;
/** For questions, a cancel, and for servers that are not monitored. */
const SHORT_TIMEOUT_MS = 5000;

type LostCommits = Extract<ClusterEvent, { type: 'lost-commits' }>;

interface Node {
  readonly config: ServerConfig;
  readonly state: ServerState;
  readonly logins: Turns;
  readonly monitor: Monitor | null;
  readonly own: OwnConnections | null;
  /** The same in other databases than the monitor's own, as they are asked for. */
  readonly elsewhere: Map<string, OwnConnections>;
  unreachableSince: number | null;
  failures: number;
  refusal: Refusal | null;
  /** When anything was heard of it, a refusal included; null before that. */
  lastHeard: number | null;
  cancelSilence: (() => void) | null;
  /** The incarnation in which sessions were given connections to it that nobody has called void yet. */
  served: string | null;
  /** Its latest incarnations, and when the latest probe began that showed it in each. */
  readonly eras: Map<string, number>;
  /** When the latest probe began that it answered by saying that it was going down or starting up ... */
  closedAt: number;
  /** ... and the same as it stood when the present incarnation was first seen. */
  bornAfter: number;
  /** The code of the monitor's latest refusal, so that it is logged once. */
  refusedAs: string | null;
  /** Aborted when it is not there any more, or not the same: logins under way are in vain. */
  tenure: AbortController;
}

/** Where a connection may be to. */
interface Place {
  /** The server for it now, if there is one. */
  readonly pick: () => Node | null;
  /** Waits for one. */
  readonly wait: (signal: AbortSignal) => Promise<Node>;
  /** Whether this server is still one for it. */
  readonly holds: (node: Node) => boolean;
  /** Aborted when it ceases to be. */
  readonly tenure: (node: Node) => AbortSignal;
}

/**
 * The servers behind listeners: knows which one takes writes, opens connections to it, and settles what became of commits when
 * it was lost.
 */
export class Cluster {
  readonly name: string;
  readonly #config: ClusterConfig;
  readonly #codec: Codec;
  readonly #log: Log;
  readonly #stats: Stats;
  readonly #outside: Outside;
  readonly #nodes: readonly Node[];
  /** Without a monitor nothing is known of the servers: the first that can be logged in to is taken for writable. */
  readonly #blind: boolean;
  readonly #stopping = popularController();
  readonly #listeners = new Set<(event: ClusterEvent) => void>();
  readonly #waiting = new Set<() => void>();
  /** Those who wait for a server of another kind: woken whenever something changed. */
  readonly #hoping = new Set<() => void>();
  /** Several servers take writes beside each other. */
  readonly #several: boolean;
  readonly #spares: Spares;
  readonly #learned: Learned;
  readonly #commits = new AcknowledgedCommits();
  readonly #actions: Actions;

  #begun = false;
  #standing: Standing = { system: null, timeline: 0, primary: null };
  #writable: Node | null = null;
  /** The incarnation that took writes last. */
  #incarnation: string | null = null;
  /** Aborted when the writable server ceases to be it: logins under way there are in vain. */
  #tenure = popularController();
  /** What to say of a lost commit that is reported after the promotion; null before the first one. */
  #lost: LostCommits | null = null;
  /** When the writable server was lost. */
  #lostAt = Number.NEGATIVE_INFINITY;
  #tickets = 0;

  constructor(options: ClusterOptions) {
    const { config, codec, log, stats } = options;
    this.name = config.name;
    this.#config = config;
    this.#codec = codec;
    this.#log = log;
    this.#stats = stats;
    const outside = (this.#outside = options.outside ?? outsideWorld(options.now));
    this.#blind = config.monitor === null || codec.probe === undefined;
    this.#several = config.writers === 'several';
    this.#nodes = config.servers.map((server) => this.#node(server));
    const { perIdentity, total } = config.spares;
    this.#spares = new Spares({ codec, outside, log, perIdentity: this.#blind ? 0 : perIdentity, total });
    this.#actions = new Actions({
      cluster: config.name,
      promotion: config.promotion,
      plugins: options.plugins,
      outside,
      log,
      signal: this.#stopping.signal,
      server: (name) => this.#nodeNamed(name).state,
      view: () => ({ seen: this.#seen(), standing: this.#standing, writable: this.#writable?.state.name ?? null }),
      onAct: () => {
        for (const { monitor } of this.#nodes) void monitor?.probe(false);
      },
    });
    this.#learned = new Learned(() => outside.now());
    if (this.#blind) this.#writable = this.#nodes[0];
  }

  #node(server: ServerConfig): Node {
    const { name, host, port } = server;
    const state = {
      name,
      host,
      port,
      facts: null,
      firstFacts: null,
      reachable: false,
      lastSeen: -1,
      behind: null,
      refused: null,
    };
    const logins = new Turns(this.#config.logins.concurrent);
    const watch = this.#config.monitor;
    let monitor: Monitor | null = null;
    let own: OwnConnections | null = null;
    if (watch !== null) {
      const { database, timeout } = watch;
      const identity = (): Identity => monitorIdentity(watch, database);
      const basis = { server, codec: this.#codec, outside: this.#outside, identity };
      own = new OwnConnections({ ...basis, logins });
      if (!this.#blind) {
        monitor = new Monitor({
          ...basis,
          timeout,
          pace: (connected) => this.#pace(connected),
          onSighting: (sighting, began) => {
            try {
              this.#saw(node, sighting, began);
            } catch (error) {
              // Facts that make no sense must not end the gateway.
              const fields = {
                cluster: this.name,
                server: server.name,
                code: 'OUTLIVE_CODEC_BROKEN',
                error: codeOf(error),
              };
              this.#log.error(fields, 'what the codec told of the server cannot be used');
            }
          },
        });
      }
    }
    const node: Node = {
      config: server,
      state,
      logins,
      monitor,
      own,
      elsewhere: new Map(),
      unreachableSince: null,
      failures: 0,
      refusal: null,
      lastHeard: null,
      cancelSilence: null,
      served: null,
      eras: new Map(),
      closedAt: Number.NEGATIVE_INFINITY,
      bornAfter: Number.NEGATIVE_INFINITY,
      refusedAs: null,
      tenure: popularController(),
    };
    return node;
  }

  // ------------------------------------------------------------------------------------------------------------ life

  /** Begins to watch the servers. Resolves after a first look at each, whatever it showed. */
  async start(): Promise<void> {
    if (this.#blind) return;
    await Promise.all(this.#nodes.map((node) => node.monitor?.start()));
    this.#begun = true;
    this.#evaluate();
    if (this.primary() === null) this.#log.warn({ cluster: this.name }, 'no server takes writes at the start');
  }

  /** Ends all waits with OUTLIVE_STOPPING and closes the cluster's own connections. Those that were handed out go on. */
  async stop(): Promise<void> {
    this.#stopping.abort(new CodedError('OUTLIVE_STOPPING', 'gateway', 'the gateway stops'));
    this.#spares.stop();
    for (const node of this.#nodes) {
      node.cancelSilence?.();
      node.own?.stop();
      for (const own of node.elsewhere.values()) own.stop();
    }
    this.#listeners.clear();
    await Promise.all(this.#nodes.map((node) => node.monitor?.stop()));
  }

  /** Whether the servers are watched; else what is said of them is not known. */
  get monitored(): boolean {
    return !this.#blind;
  }

  /** The server that takes writes, as far as is known at this moment. */
  primary(): ServerState | null {
    return this.#writable?.state ?? null;
  }

  /** All servers, in the configuration's order. */
  servers(): readonly ServerState[] {
    return this.#nodes.map(({ state }) => state);
  }

  /** Tells of changes, at once and in order. Returns a function that ends it. */
  onChange(listener: (event: ClusterEvent) => void): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  /** Plain data for the status page, without secrets. */
  status(): object {
    const now = this.#outside.now();
    return {
      name: this.name,
      codec: this.#codec.name,
      monitored: !this.#blind,
      primary: this.primary()?.name ?? null,
      system: this.#standing.system,
      timeline: this.#standing.timeline,
      waiting: this.#waiting.size,
      spares: this.#spares.count,
      servers: this.#nodes.map((node) => ({
        name: node.state.name,
        host: node.state.host,
        port: node.state.port,
        reachable: node.state.reachable,
        role: node.state.facts?.role ?? null,
        writable: node.state.facts?.writable ?? null,
        timeline: node.state.facts?.timeline ?? null,
        position: node.state.facts === null ? null : String(node.state.facts.position),
        lagBytes: node.state.facts?.lagBytes ?? null,
        behind: node.state.behind,
        refused: node.state.refused,
        lastSeenMsAgo: node.state.lastSeen < 0 ? null : Math.round(now - node.state.lastSeen),
        logins: { running: node.logins.running, waiting: node.logins.waiting },
        spares: this.#spares.on(node),
      })),
    };
  }

  // ------------------------------------------------------------------------------------------------- connections

  /**
   * A logged-in connection as this identity to the writable server, or to one that fits the request's choice: a warm spare when one fits.
   * Waits for such a server, and for its turn to log in.
   *
   * Rejects with {@link LoginRefused} when the server refuses for good, or did so for lack of room until the deadline; with
   * OUTLIVE_NO_WRITABLE_SERVER or OUTLIVE_NO_STANDBY at the deadline; with the signal's reason when it is aborted.
   */
  async acquire(request: AcquireRequest): Promise<BackendConnection> {
    const { identity, startup, passThrough = false, choice = null } = request;
    const ticket = ++this.#tickets;
    let refusal: LoginRefused | null = null;
    const within = this.#limit(request.deadline, [request.signal], () => refusal ?? this.#noServer(choice));
    const place = this.#place(request);
    // Counted from the moment of the choice: else all who come at once would go to the same server.
    let release: (() => void) | undefined;
    try {
      for (let failures = 0; ; ) {
        release?.();
        release = undefined;
        const node = place.pick() ?? (await place.wait(within.signal));
        within.signal.throwIfAborted();
        if (!place.holds(node)) continue;
        if (request.uncounted !== true) release = choice?.claim(node.state);
        // Spares are kept for those who lose the writable server.
        if (!passThrough && choice === null) {
          const spare = this.#spares.take(node, identity, startup);
          if (spare !== null) return this.#hand(node, spare, true);
        }
        const tenure = place.tenure(node);
        const wait = either(within.signal, tenure);
        let login: Awaited<ReturnType<typeof logIn>> | null = null;
        try {
          const enter = () => this.#logIn(node, identity, startup, wait.signal);
          login = await node.logins.run(ticket, wait.signal, enter, request.urgent);
        } catch (error) {
          if (within.signal.aborted) throw error;
          // All that servers and networks do is coded: no other server would help.
          if (!(error instanceof CodedError) && !wait.signal.aborted) throw error;
          if (!tenure.aborted) {
            this.#stats.count(this.#stats.logins, 'failed');
            this.#log.debug({ server: node.state.name, code: codeOf(error) }, 'a login failed');
            await orAborted(this.#lookAgain(node), within.signal);
          }
        } finally {
          wait.release();
        }
        if (login?.ok && !place.holds(node)) {
          login.wire.destroy();
          continue;
        }
        if (login?.ok) {
          if (!passThrough && choice === null) this.#spares.given(identity, startup, login.wire);
          const held = release;
          release = undefined;
          return this.#hand(node, login, false, held);
        }
        refusal = null;
        if (login !== null && !login.ok) {
          this.#stats.count(this.#stats.logins, login.transient ? 'postponed' : 'refused');
          if (!login.transient) throw new LoginRefused(node.state.name, login);
          // It goes down or starts up: that is the monitor's to say, and ends the wait at the right moment.
          if (isGone(login)) await orAborted(this.#lookAgain(node), within.signal);
          else refusal = new LoginRefused(node.state.name, login);
        }
        if (place.holds(node) && !tenure.aborted) await sleep(this.#outside, backoff(failures++), within.signal);
        else failures = 0;
      }
    } catch (error) {
      throw within.signal.aborted ? within.signal.reason : error;
    } finally {
      release?.();
      within.release();
    }
  }

  #place({ choice, preferred }: Pick<AcquireRequest, 'choice' | 'preferred'>): Place {
    if (choice == null) {
      return {
        pick: () => this.#writable,
        wait: (signal) => this.#present(signal),
        holds: (node) => this.#writable === node,
        tenure: () => this.#tenure.signal,
      };
    }
    const pick = (): Node | null => {
      const server = choice.pick(preferred);
      return server === null ? null : this.#nodeOf(server);
    };
    return {
      pick,
      wait: (signal) => this.#hope(pick, signal),
      holds: ({ state }) => choice.admits(state),
      tenure: ({ tenure }) => tenure.signal,
    };
  }

  /** Looks again whenever something has changed, until there is what is looked for. */
  #hope(find: () => Node | null, signal: AbortSignal): Promise<Node> {
    return new Promise((resolve, reject) => {
      if (signal.aborted) {
        reject(signal.reason);
        return;
      }
      const quit = (): void => {
        this.#hoping.delete(look);
        reject(signal.reason);
      };
      const look = (): void => {
        const node = find();
        if (node === null) return;
        this.#hoping.delete(look);
        signal.removeEventListener('abort', quit);
        resolve(node);
      };
      signal.addEventListener('abort', quit, { once: true });
      this.#hoping.add(look);
      this.#hurry();
      look();
    });
  }

  #logIn(node: Node, identity: Identity, startup: unknown, signal: AbortSignal) {
    const timeoutMs = this.#blind ? SHORT_TIMEOUT_MS : LOGIN_TIMEOUT_MS;
    return logIn(this.#outside, { codec: this.#codec, server: node.config, identity, startup, timeoutMs, signal });
  }

  #hand(
    node: Node,
    { wire, rest, login, since }: Omit<LoggedIn, 'ok'>,
    spare: boolean,
    release?: () => void,
  ): BackendConnection {
    this.#stats.count(this.#stats.logins, spare ? 'spare' : 'ok');
    // Who only reads on a standby has nothing that a new primary would make void.
    if (node === this.#writable) node.served = this.#incarnation;
    const { state: server } = node;
    const facts = server.firstFacts;
    if (facts !== null && !isSure(node, facts, since)) node.monitor!.confirm();
    const origin = facts === null ? null : { server, facts, backendId: login.backendId, since };
    return { wire, rest, login, server, origin, spare, release };
  }

  /** A connection could not be had where it should have been: looks again, so that nobody tries in vain. */
  async #lookAgain(node: Node): Promise<void> {
    if (!this.#blind) await node.monitor!.probe(true);
    else if (this.#writable === node) this.#turnTo(this.#nodes[(this.#nodes.indexOf(node) + 1) % this.#nodes.length]);
  }

  /** Without a monitor: the next server is tried. */
  #turnTo(node: Node): void {
    const before = this.#writable!;
    if (node === before) return;
    this.#writable = node;
    this.#tenure.abort();
    this.#tenure = popularController();
    this.#emit({ type: 'primary-lost', server: before.state });
    this.#emit({ type: 'primary-found', server: node.state });
  }

  #noServer(choice: Choice | null = null): CodedError {
    const states = this.#nodes.map((node) => `${node.state.name} ${this.#describe(node)}`).join(', ');
    if (choice?.wish.target === 'standby') {
      const message = `no standby of cluster ${this.name} can be used: ${states}; start one, or allow the primary (standby.without)`;
      return new CodedError('OUTLIVE_NO_STANDBY', 'server', message);
    }
    const message = `no server of cluster ${this.name} takes writes: ${states}; start one, or promote a standby`;
    return new CodedError('OUTLIVE_NO_WRITABLE_SERVER', 'server', message);
  }

  #describe(node: Node): string {
    const { state } = node;
    if (state.refused !== null) return state.refused;
    if (node.refusedAs !== null) return 'does not let the monitor in';
    if (!state.reachable) return this.#blind ? 'lets nobody in' : 'is not reachable';
    return state.facts?.role === 'standby' ? 'is a standby' : state.facts?.writable ? 'takes writes' : 'is read-only';
  }

  // ---------------------------------------------------------------------------------------------------- own questions

  /**
   * A session lost its connection to `server`, or doubts it: looks at the server now, once for all who ask at the same time.
   * @param instance `facts.instance` of the session's connection; null when it has none
   * @param choice of its listener
   */
  async doubt(server: ServerState, instance: string | null, choice: Choice | null = null): Promise<Doubt> {
    const node = this.#nodeOf(server);
    if (this.#blind) return this.#knock(node);
    const sighting = await node.monitor!.probe(true);
    if (sighting.kind !== 'facts') return 'gone';
    const { facts } = sighting;
    // Who only reads can do that on any of them.
    const serves = choice === null ? this.#writable === node : choice.wish.target === 'standby' || facts.writable;
    if (!serves || (choice === null && !facts.writable)) return 'demoted';
    return instance !== null && facts.instance !== instance ? 'restarted' : 'same';
  }

  /** Without a monitor all that can be said is whether somebody is at home. */
  async #knock(node: Node): Promise<Doubt> {
    try {
      const wire = await this.#outside.dial(node.config, SHORT_TIMEOUT_MS, this.#stopping.signal);
      wire.destroy();
      return 'same';
    } catch {
      await this.#lookAgain(node);
      return 'gone';
    }
  }

  /**
   * What became of a commit whose answer was lost. The old primary is fenced first where that is configured; where the server itself
   * lives on, the session's old backend is ended first. Never rejects: what cannot be learnt until the deadline is unknown.
   *
   * @param origin of the connection that the token was taken on
   */
  async resolve(
    token: OutcomeToken,
    origin: Origin,
    deadline: number,
  ): Promise<'committed' | 'not-committed' | 'unknown'> {
    if (this.#blind || (token.mark === undefined ? this.#codec.resolve : this.#codec.markers) === undefined)
      return 'unknown';
    const within = this.#limit(deadline);
    try {
      for (let failures = 0; ; failures++) {
        if (failures > 0) await sleep(this.#outside, backoff(failures - 1), within.signal);
        const node = this.#several
          ? await this.#back(origin, within.signal)
          : (this.#writable ?? (await this.#present(within.signal)));
        const { signal, release } = either(within.signal, (this.#several ? node.tenure : this.#tenure).signal);
        try {
          if (!(await this.#isCurrent(origin, node, signal))) continue;
          if (!(await this.#disarm(origin, node, signal))) continue;
          const outcome = await this.#outcome(token, origin, node, signal);
          if (outcome !== 'wait') return outcome;
          if (sameLife(node, origin)) await this.#terminate(node, origin.backendId, signal);
        } catch (error) {
          within.signal.throwIfAborted();
          this.#log.debug({ server: node.state.name, code: codeOf(error) }, 'an outcome could not be asked for');
          if (this.#several || this.#writable === node) await orAborted(this.#lookAgain(node), within.signal);
        } finally {
          release();
        }
      }
    } catch (error) {
      if (!within.signal.aborted) throw error;
      return 'unknown';
    } finally {
      within.release();
    }
  }

  /** Where several servers take writes, only the one that had a transaction knows what became of it: waits until it is there. */
  #back({ server }: Origin, signal: AbortSignal): Promise<Node> {
    const node = this.#nodeOf(server);
    return this.#hope(() => (server.reachable && server.facts!.writable ? node : null), signal);
  }

  /** Makes sure that what is known of the server is from after the login that is asked about. False when it is no longer writable. */
  async #isCurrent({ server, facts, since }: Origin, node: Node, signal: AbortSignal): Promise<boolean> {
    if (node.state !== server || since === undefined || isSure(node, facts, since)) return true;
    await orAborted(node.monitor!.probe(true), signal);
    return this.#several ? server.reachable : this.#writable === node;
  }

  async #outcome(token: OutcomeToken, { server, facts, since }: Origin, node: Node, signal: AbortSignal) {
    if (token.mark !== undefined) return this.#look(token.mark, facts, node, signal);
    const { resolve } = this.#codec;
    const present = node.state.firstFacts!;
    const ask = (origin: ServerFacts) =>
      this.#ask(node, () => resolve!.call(this.#codec, token, origin, present), signal);
    const outcome = await ask(facts);
    // The server may have been restarted just before the login, and the monitor not have seen it yet: then the connection was to
    // the present life, and not to the one that the facts are of; unless it said after the login that it was closed, and so began the
    // present life later. Where there is no telling which, the answer must hold for both.
    const unsure = since !== undefined && !isSure(node, facts, since) && node.bornAfter < since;
    if (server !== node.state || !unsure || sameLife(node, { server, facts })) return outcome;
    return (await ask(present)) === outcome ? outcome : 'unknown';
  }

  /** Looks for the row that a transaction left if it committed. */
  async #look(mark: Mark, origin: ServerFacts, node: Node, signal: AbortSignal): Promise<Outcome> {
    const { markers } = this.#codec;
    const found = await this.#ownIn(node, mark.database).run(
      () => markers!.find(mark, origin),
      SHORT_TIMEOUT_MS,
      signal,
    );
    if (found === 'unknown') {
      const fields = {
        cluster: this.name,
        server: node.state.name,
        code: 'OUTLIVE_MARKS_UNREADABLE',
        table: mark.table,
      };
      this.#log.error(
        { ...fields, database: mark.database },
        'the rows that prove commits cannot be read, or prove nothing here',
      );
      return 'unknown';
    }
    return found === 'present' ? 'committed' : 'not-committed';
  }

  /** The gateway's own connections to a database of a server. Only where there is a monitor. */
  #ownIn(node: Node, database: string): OwnConnections {
    const watch = this.#config.monitor!;
    if (database === watch.database) return node.own!;
    let own = node.elsewhere.get(database);
    if (own === undefined) {
      const { config: server, logins } = node;
      const identity = (): Identity => monitorIdentity(watch, database);
      own = new OwnConnections({ server, codec: this.#codec, outside: this.#outside, identity, logins });
      node.elsewhere.set(database, own);
    }
    return own;
  }

  /** Makes sure that the old transaction cannot end differently any more. False when that has not been reached yet. */
  async #disarm(origin: Origin, node: Node, signal: AbortSignal): Promise<boolean> {
    if (sameLife(node, origin)) return this.#terminate(node, origin.backendId, signal);
    // A restart ends all that was.
    if (node.state === origin.server) return true;
    // It has come back under the new primary: what it was before is over.
    if (origin.server.reachable && origin.server.facts?.role === 'standby') return true;
    return this.#actions.fence(origin.server, origin.facts, signal);
  }

  /** Ends a server session. True when it is gone. @param urgent as in {@link AcquireRequest} */
  async terminate(server: ServerState, backendId: string, urgent?: () => boolean): Promise<boolean> {
    return this.#terminate(this.#nodeOf(server), backendId, this.#stopping.signal, urgent);
  }

  async #terminate(node: Node, backendId: string, signal: AbortSignal, urgent?: () => boolean): Promise<boolean> {
    const { terminate } = this.#codec;
    return terminate === undefined || this.#ask(node, () => terminate.call(this.#codec, backendId), signal, urgent);
  }

  /** Passes a client's cancel request on. Nobody answers one, so this never rejects. */
  async cancel(server: ServerState, cancelKey: unknown): Promise<void> {
    const { cancel } = this.#codec;
    if (cancel === undefined) return;
    const { config } = this.#nodeOf(server);
    const { signal } = this.#stopping;
    try {
      const wire = await this.#outside.dial(config, SHORT_TIMEOUT_MS, signal);
      const run = { codec: this.#codec, server: config, timeoutMs: SHORT_TIMEOUT_MS, signal };
      await this.#outside.run(wire, cancel.call(this.#codec, cancelKey), run).finally(() => wire.end());
    } catch (error) {
      this.#log.debug({ server: server.name, code: codeOf(error) }, 'a cancel request was not delivered');
    }
  }

  /**
   * Facts of a database that its sessions share (`codec.learn`), learnt over a connection of this identity; undefined where they
   * cannot be had. Old facts are given at once and renewed behind the scenes.
   * @param choice of the servers that may be asked; without it the one that takes writes
   */
  learned(database: string, identity: Identity, choice: Choice | null = null): Promise<unknown> {
    return this.#learned.get(database, () => this.#learn(identity, choice)).catch(() => undefined);
  }

  /** Shared facts as known now, without asking. */
  learnedNow(database: string): unknown {
    return this.#learned.peek(database);
  }

  /** Shared facts as another gateway knew them, for as long as nothing else is known here. */
  learntElsewhere(database: string, facts: unknown): void {
    this.#learned.give(database, facts);
  }

  /** The facts are known to have changed: learns them anew, once for all who ask at the same time. */
  refresh(database: string, identity: Identity, choice: Choice | null = null): Promise<unknown> {
    return this.#learned.refresh(database, () => this.#learn(identity, choice)).catch(() => undefined);
  }

  async #learn(identity: Identity, choice: Choice | null): Promise<unknown> {
    const { learn } = this.#codec;
    if (learn === undefined) return undefined;
    const failed = (server: ServerState, error: unknown): void => {
      this.#log.warn({ server: server.name, code: codeOf(error) }, 'shared facts could not be learnt');
    };
    return this.#runOnce(identity, LOGIN_TIMEOUT_MS, learn.call(this.#codec), failed, choice);
  }

  /** Runs an exchange as the monitor on a server, by name. It may be run twice when a connection breaks. */
  async ask<R>(server: string, exchange: () => Exchange<R>): Promise<R> {
    return this.#ask(this.#nodeNamed(server), exchange, this.#stopping.signal);
  }

  /**
   * Runs an exchange as the monitor's user on a database of the writable server, on a connection of its own.
   * Rejects with OUTLIVE_NO_MONITOR without a monitor, and like {@link acquire}.
   */
  async askIn<R>(database: string, exchange: Exchange<R>): Promise<R> {
    const { monitor } = this.#config;
    if (monitor === null) throw this.#noMonitor();
    return this.#runOnce(monitorIdentity(monitor, database), SHORT_TIMEOUT_MS, exchange);
  }

  /**
   * Runs an exchange on a connection of its own to the writable server. Rejects like {@link acquire}, and with what the exchange throws.
   * @param failed told when the exchange itself fails
   * @param choice as in {@link AcquireRequest}
   */
  async #runOnce<R>(
    identity: Identity,
    timeoutMs: number,
    exchange: Exchange<R>,
    failed: (server: ServerState, error: unknown) => void = () => {},
    choice: Choice | null = null,
  ): Promise<R> {
    const { signal } = this.#stopping;
    const deadline = this.#outside.now() + timeoutMs;
    const own = { startup: null, passThrough: true, uncounted: true };
    const { wire, rest, server } = await this.acquire({ identity, ...own, deadline, signal, choice });
    try {
      const run = { codec: this.#codec, server: this.#nodeOf(server).config, rest, timeoutMs, signal };
      return (await this.#outside.run(wire, exchange, run)).result;
    } catch (error) {
      failed(server, error);
      throw error;
    } finally {
      wire.end();
    }
  }

  #noMonitor(): CodedError {
    const message = `cluster ${this.name} has no monitor to ask its servers as; add monitor: { user: ... }`;
    return new CodedError('OUTLIVE_NO_MONITOR', 'config', message);
  }

  /** Asks for a user's secret with a query, as the monitor: the writable server, and while there is none a standby. */
  async lookup(query: string, user: string): Promise<Secret | null> {
    const { lookup } = this.#codec;
    if (lookup === undefined) {
      const message = `the codec ${this.#codec.name} cannot ask a server for credentials; use another credentials plugin`;
      throw new CodedError('OUTLIVE_LOOKUP_UNSUPPORTED', 'config', message);
    }
    const deadline = this.#outside.now() + LOGIN_TIMEOUT_MS;
    const within = this.#limit(deadline);
    try {
      const node = this.#writable ?? this.#nodes.find(isStandby) ?? (await this.#present(within.signal));
      return await this.#ask(node, () => lookup.call(this.#codec, query, user), within.signal);
    } catch (error) {
      throw within.signal.aborted ? within.signal.reason : error;
    } finally {
      within.release();
    }
  }

  #ask<R>(node: Node, exchange: () => Exchange<R>, signal: AbortSignal, urgent?: () => boolean): Promise<R> {
    if (node.own === null) return Promise.reject(this.#noMonitor());
    return node.own.run(exchange, SHORT_TIMEOUT_MS, signal, urgent);
  }

  /** A commit was acknowledged to a client: its token, `origin` of its connection. Cheap; called for every commit. */
  acknowledged(origin: ServerFacts, token: OutcomeToken): void {
    // Histories beside each other have no common end to compare with, and a row has no place in a history.
    if (this.#several || token.mark !== undefined) return;
    const what = this.#commits.note(origin, token);
    if (what === 'noted' || this.#lost === null) return;
    const { position } = token;
    if (what === 'lost') this.#tellLost({ ...this.#lost, count: 1, atLeast: false, position });
    else void this.#askForLost({ ...this.#lost, position }, [token]);
  }

  // ------------------------------------------------------------------------------------------------------- what is seen

  /** Probes follow each other fast while somebody waits for what they bring. */
  #pace(connected: boolean): number {
    const { interval } = this.#config.monitor!;
    const urgent = this.#hoping.size > 0 || (this.#writable === null && this.#waiting.size > 0);
    if (!urgent && (this.#writable !== null || !this.#actions.acting)) return interval;
    const fast = connected && this.#outside.now() - this.#lostAt < LONG_OUTAGE_MS ? FAST_MS : FAST_LOGIN_MS;
    return Math.min(interval, fast);
  }

  #hurry(): void {
    for (const { monitor } of this.#nodes) monitor?.hurry();
  }

  #saw(node: Node, sighting: Sighting, began: number): void {
    const { state } = node;
    const now = this.#outside.now();
    const server = state.name;
    if (sighting.kind === 'failed') {
      if (sighting.closed) node.closedAt = began;
      node.failures++;
      node.unreachableSince ??= began;
      if (state.reachable || (state.lastSeen < 0 && node.failures === 1)) {
        this.#log.warn({ cluster: this.name, server, code: sighting.code }, 'the server is not reachable');
      }
      state.reachable = false;
      this.#endTenure(node);
      this.#awaitSilence(node);
    } else {
      node.lastHeard = now;
      node.cancelSilence?.();
      node.cancelSilence = null;
    }
    if (sighting.kind === 'refused' && node.refusedAs !== sighting.code) {
      node.refusedAs = sighting.code;
      this.#log.error({ cluster: this.name, server, code: 'OUTLIVE_MONITOR_REFUSED' }, sighting.message);
    }
    if (sighting.kind === 'facts') {
      const { facts } = sighting;
      if (!state.reachable) {
        const { role, writable, timeline } = facts;
        this.#log.info({ cluster: this.name, server, role, writable, timeline }, 'the server is reachable');
      }
      const first = state.firstFacts;
      const restarted = state.facts !== null && state.facts.instance !== facts.instance;
      if (restarted || (first !== null && first.role !== facts.role)) this.#endTenure(node);
      // A standby that is being promoted tells its new timeline while it is still a standby.
      if (first === null || first.role !== facts.role || incarnation(server, first) !== incarnation(server, facts)) {
        state.firstFacts = facts;
        node.bornAfter = node.closedAt;
      }
      remember(node.eras, incarnation(server, facts), began);
      state.facts = facts;
      state.behind = this.#behind(facts);
      if (restarted) this.#emit({ type: 'server-restarted', server: state });
      state.reachable = true;
      state.lastSeen = now;
      node.failures = 0;
      node.unreachableSince = null;
      node.refusedAs = null;
    }
    if (this.#begun) this.#evaluate();
  }

  #endTenure(node: Node): void {
    node.tenure.abort();
    node.tenure = popularController();
  }

  /**
   * How far a standby is behind: of what it has received, and of what the primary had written when that was asked last. So what was
   * written since does not count, and no lag is seen where there is none.
   */
  #behind({ role, position, lagBytes }: ServerFacts): number | null {
    if (role !== 'standby') return null;
    const end = this.#writable?.state.facts?.position ?? -1n;
    return Math.max(lagBytes ?? 0, end < 0n || position < 0n ? 0 : Number(end - position));
  }

  #awaitSilence(node: Node): void {
    if (node.lastHeard === null || node.cancelSilence !== null) return;
    const wait = Math.max(0, node.lastHeard + this.#config.detection.silence - this.#outside.now());
    node.cancelSilence = this.#outside.after(wait, () => {
      this.#log.warn({ cluster: this.name, server: node.state.name }, 'nothing is heard of the server any more');
      this.#emit({ type: 'server-silent', server: node.state });
    });
  }

  #seen(): Seen[] {
    return this.#nodes.map(({ state, unreachableSince, failures }) => ({
      name: state.name,
      reachable: state.reachable,
      unreachableSince,
      failures,
      facts: state.facts,
    }));
  }

  /** Draws the conclusions from what was seen. */
  #evaluate(): void {
    if (this.#stopping.signal.aborted) return;
    const { standing, writable, refused } = (this.#several ? electAmong : elect)(this.#seen(), this.#standing);
    this.#standing = standing;
    for (const node of this.#nodes) {
      // While it is away nobody knows what it will be when it comes back.
      const kept = node.state.reachable ? null : node.refusal;
      this.#refuse(node, refused.get(node.state.name) ?? kept);
    }
    this.#change(this.#nodes.find(({ state }) => state.name === writable) ?? null);
    this.#spares.place(this.#writable, this.#nodes.filter(isStandby));
    for (const look of [...this.#hoping]) look();
    this.#actions.consider();
  }

  #refuse(node: Node, refusal: Refusal | null): void {
    if (refusal === node.refusal) return;
    node.refusal = refusal;
    node.state.refused = refusal === null ? null : REFUSALS[refusal].words;
    const server = node.state.name;
    if (refusal !== null) {
      this.#spares.leave(node);
      this.#endTenure(node);
    }
    if (refusal === null) this.#log.info({ cluster: this.name, server }, 'nothing stands against the server any more');
    else {
      const { code, words, advice } = REFUSALS[refusal];
      const fields = { cluster: this.name, server, code, timeline: node.state.facts!.timeline };
      this.#log.error(fields, `server ${server} ${words}, and is not used; ${advice}`);
    }
  }

  #change(node: Node | null): void {
    const before = this.#writable;
    const now = node === null ? null : incarnationOf(node);
    if (node === before && (node === null || now === this.#incarnation)) return;
    this.#writable = node;
    if (before !== null) {
      this.#lostAt = this.#outside.now();
      this.#tenure.abort();
      this.#log.warn({ cluster: this.name, server: before.state.name }, 'the server takes no writes any more');
      this.#emit({ type: 'primary-lost', server: before.state });
    }
    if (node === null) {
      if (this.#waiting.size > 0) this.#hurry();
      return;
    }
    this.#tenure = popularController();
    const facts = node.state.facts!;
    const fields = { cluster: this.name, server: node.state.name, timeline: facts.timeline };
    this.#log.info(fields, 'the server takes writes');
    if (this.#incarnation !== null && this.#incarnation !== now) {
      this.#stats.count(this.#stats.failovers, this.name);
    }
    this.#incarnation = now;
    for (const other of this.#nodes) {
      if (other === node || other.served === null || this.#several) continue;
      other.served = null;
      this.#emit({ type: 'superseded', server: other.state, by: node.state });
    }
    this.#emit({ type: 'primary-found', server: node.state });
    const waiting = [...this.#waiting];
    this.#waiting.clear();
    for (const wake of waiting) wake();
    if (!this.#several) this.#countLost(node, facts);
  }

  /** After a promotion: which acknowledged commits did not make it? */
  #countLost(node: Node, facts: ServerFacts): void {
    const { timeline } = this.#commits;
    if (timeline < 0 || facts.timeline <= timeline) return;
    // Where the switch point is not told, the position seen first lies a little beyond it: what is lost beyond that is lost surely.
    const switchPoint = this.#codec.switchPoint?.(facts, timeline) ?? facts.position;
    const missing = this.#commits.part(switchPoint);
    this.#lost = { type: 'lost-commits', server: node.state, count: 0, atLeast: false, position: -1n, switchPoint };
    if (missing === null) return;
    const { count, unclear, atLeast, position } = missing;
    if (count > 0) this.#tellLost({ ...this.#lost, count, atLeast, position });
    if (unclear.length > 0) void this.#askForLost({ ...this.#lost, position }, unclear);
  }

  /** Counts the commits of these tokens that the promoted server does not have. */
  async #askForLost(event: LostCommits, tokens: readonly OutcomeToken[]): Promise<void> {
    const { missing } = this.#codec;
    if (missing === undefined) return;
    const { signal } = this.#stopping;
    try {
      for (let failures = 0; ; failures++) {
        // When that server is lost in its turn, the one that follows it knows as well.
        const node = this.#writable ?? (await this.#present(signal));
        try {
          const count = await this.#ask(node, () => missing.call(this.#codec, tokens), signal);
          if (count > 0) this.#tellLost({ ...event, count });
          return;
        } catch (error) {
          const fields = { cluster: this.name, server: node.state.name, code: codeOf(error), commits: tokens.length };
          this.#log.warn(fields, 'the server could not be asked yet whether it has all acknowledged commits');
          await sleep(this.#outside, backoff(failures), signal);
        }
      }
    } catch {
      // The cluster stops.
    }
  }

  #tellLost(event: LostCommits): void {
    const { server, count, atLeast, position, switchPoint } = event;
    this.#stats.lostCommits += count;
    const numbers = { count, atLeast, position: String(position), switchPoint: String(switchPoint) };
    this.#log.error(
      { cluster: this.name, server: server.name, code: 'OUTLIVE_LOST_COMMITS', ...numbers },
      `${count} commits that clients were told of are missing on the promoted server; use synchronous replication where none may be lost`,
    );
    this.#emit(event);
  }

  #emit(event: ClusterEvent): void {
    for (const listener of [...this.#listeners]) {
      try {
        listener(event);
      } catch (error) {
        this.#log.error({ cluster: this.name, event: event.type, code: codeOf(error) }, 'a listener failed');
      }
    }
  }

  // ------------------------------------------------------------------------------------------------------------- waiting

  #nodeOf(server: ServerState): Node {
    const node = this.#nodes.find(({ state }) => state === server);
    if (node === undefined) throw new Error(`server ${server.name} is not of cluster ${this.name}`);
    return node;
  }

  #nodeNamed(name: string): Node {
    const node = this.#nodes.find(({ state }) => state.name === name);
    if (node !== undefined) return node;
    throw new CodedError('OUTLIVE_UNKNOWN_SERVER', 'plugin', `cluster ${this.name} has no server ${name}`);
  }

  #limit(deadline: number, signals: AbortSignal[] = [], late = (): Error => this.#noServer()): Limit {
    return limit(this.#outside, deadline, [this.#stopping.signal, ...signals], late);
  }

  /** Waits for a server that takes writes. Whoever came first goes on first. */
  #present(signal: AbortSignal): Promise<Node> {
    return new Promise((resolve, reject) => {
      if (signal.aborted) {
        reject(signal.reason);
        return;
      }
      const quit = (): void => {
        this.#waiting.delete(wake);
        reject(signal.reason);
      };
      const wake = (): void => {
        signal.removeEventListener('abort', quit);
        resolve(this.#writable!);
      };
      signal.addEventListener('abort', quit, { once: true });
      this.#waiting.add(wake);
      if (this.#waiting.size === 1) this.#hurry();
    });
  }
}

const REFUSALS: Readonly<Record<Refusal, { code: string; words: string; advice: string }>> = {
  'other-system': {
    code: 'OUTLIVE_OTHER_SYSTEM',
    words: 'belongs to another database system than the others',
    advice: 'correct its address, or make it a standby of this cluster',
  },
  'old-timeline': {
    code: 'OUTLIVE_OLD_TIMELINE',
    words: 'is a primary that another one has replaced',
    advice: 'make it a standby of the new primary (pg_rewind or a fresh base backup)',
  },
  'second-primary': {
    code: 'OUTLIVE_SECOND_PRIMARY',
    words: 'takes writes on the same timeline as the server in use',
    advice: 'stop one of the two at once: they diverge',
  },
};

/** The monitor's user on a database. */
function monitorIdentity({ user, password }: MonitorConfig, database: string): Identity {
  return { user, database, secret: password === null ? null : { password: password.reveal() } };
}

function isStandby({ state, refusal }: Node): boolean {
  return state.reachable && refusal === null && state.facts?.role === 'standby';
}

/** Whether the server was seen in that life after the connection was made, so that the connection is to this life. */
function isSure(node: Node, facts: ServerFacts, since: number): boolean {
  return (node.eras.get(incarnation(node.state.name, facts)) ?? Number.NEGATIVE_INFINITY) >= since;
}

function sameLife(node: Node, { server, facts }: Pick<Origin, 'server' | 'facts'>): boolean {
  return node.state === server && incarnationOf(node) === incarnation(server.name, facts);
}

function incarnationOf({ state }: Node): string | null {
  return state.facts === null ? null : incarnation(state.name, state.facts);
}
