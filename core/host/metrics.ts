import { Counter, collectDefaultMetrics, Gauge, Registry } from 'prom-client';

/** Upper bounds of the buckets that pauses are counted in, in seconds. */
export const PAUSE_BUCKETS: readonly number[] = [0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 30, 60];

/** Counts by one name (a result, a reason, a code). */
export type Tally = Map<string, number>;

/** What moves of sessions are counted by. */
export interface SessionMoves {
  readonly listener: string;
  /** Names of the servers. */
  readonly from: string;
  readonly to: string;
  readonly reason: string;
}

/**
 * What the gateway counts: plain numbers, so that the hot path pays an addition and nothing else. Metrics and status
 * read them when asked.
 */
export class Stats {
  /** Sessions now, by listener, then state. Kept by {@link moveSession}. */
  readonly sessions = new Map<string, Tally>();
  /** Sessions since the start, by listener. Kept by {@link moveSession}. */
  readonly sessionsTotal: Tally = new Map();
  /** Requests of clients. */
  requests = 0;
  /** Units of work that ended. */
  units = 0;
  /** Failovers seen, by cluster. */
  readonly failovers: Tally = new Map();
  /** Replays, by result. */
  readonly replays: Tally = new Map();
  /** Outcomes of interrupted commits, by outcome. */
  readonly outcomes: Tally = new Map();
  /** Commits whose answer was lost with the server. */
  inDoubt = 0;
  /** Replays that were answered differently from what the client had seen. */
  divergences = 0;
  /** Commits that the client was told of and the promoted server does not have. */
  lostCommits = 0;
  /** Bytes from clients ... */
  bytesFromClients = 0;
  /** ... and to them. */
  bytesToClients = 0;
  /** Logins to servers, by result. */
  readonly logins: Tally = new Map();
  /** Sessions or units that could not be replayed, by reason. */
  readonly unprotected: Tally = new Map();
  /** Streams that could not be understood any more. */
  outOfSync = 0;
  /** Errors that the gateway answered with, by code. */
  readonly errors: Tally = new Map();
  /** Pauses of sessions: how many, their sum in seconds, and how many per bucket of {@link PAUSE_BUCKETS} (not cumulated). */
  readonly pauses = { count: 0, sum: 0, buckets: new Array<number>(PAUSE_BUCKETS.length).fill(0) };

  /** Live sessions that were moved to another server, by listener, servers and reason. Kept by {@link sessionMoved}. */
  readonly moves: (SessionMoves & { count: number })[] = [];

  /** A live session was moved. */
  sessionMoved({ listener, from, to, reason }: SessionMoves): void {
    let found = this.moves.find(
      (each) => each.listener === listener && each.from === from && each.to === to && each.reason === reason,
    );
    if (found === undefined) this.moves.push((found = { listener, from, to, reason, count: 0 }));
    found.count++;
  }

  /** Adds one to a tally. */
  count(tally: Tally, name: string): void {
    tally.set(name, (tally.get(name) ?? 0) + 1);
  }

  /** A session of a listener changes its state; `from` is null when it begins, `to` when it ends. */
  moveSession(listener: string, from: string | null, to: string | null): void {
    let states = this.sessions.get(listener);
    if (states === undefined) this.sessions.set(listener, (states = new Map()));
    if (from === null) this.count(this.sessionsTotal, listener);
    else states.set(from, (states.get(from) ?? 0) - 1);
    if (to !== null) this.count(states, to);
  }

  /** A session went on after a pause. */
  pause(seconds: number): void {
    this.pauses.count++;
    this.pauses.sum += seconds;
    const bucket = PAUSE_BUCKETS.findIndex((bound) => seconds <= bound);
    if (bucket !== -1) this.pauses.buckets[bucket]++;
  }

  /** Everything as plain data, for the status page. */
  toJSON(): Record<string, unknown> {
    const plain = (value: unknown): unknown =>
      value instanceof Map ? Object.fromEntries([...value].map(([key, inner]) => [key, plain(inner)])) : value;
    return Object.fromEntries(Object.entries(this).map(([key, value]) => [key, plain(value)]));
  }
}

/** What a gateway of a pair counts, as it is when asked. */
export interface PairFigures {
  /** To any other gateway. */
  readonly linkUp: boolean;
  /** The other gateways by name: whether the link to each is up, and whether it follows the sessions here. */
  readonly peers: readonly { readonly peer: string; readonly linked: boolean; readonly follows: boolean }[];
  /** Sessions here that another gateway follows. */
  readonly followed: number;
  /** Sessions of the other gateway: those that are followed here, and those of them that could be gone on with now. */
  readonly shadows: { readonly total: number; readonly adoptable: number };
  /** Sessions of the other gateway that could no longer be followed, since the start. */
  readonly shadowsFailed: number;
  readonly addresses: readonly { readonly address: string; readonly serving: boolean; readonly epoch: number }[];
  readonly takeovers: number;
  /** Addresses given to the other gateway. */
  readonly planned: number;
  /** Connections that were taken over, and those that could not be. */
  readonly kept: number;
  readonly reset: number;
  /** 0 when there was none. */
  readonly lastTakeoverMs: number;
  /** Bytes for clients that wait until the other gateway knows what they follow from. */
  readonly heldBytes: number;
  /** Bytes on their way to the other gateway that it has not confirmed. */
  readonly backlogBytes: number;
}

/** The metrics of one gateway, for Prometheus. */
export interface Metrics {
  readonly contentType: string;
  /** All metrics in the text format. */
  text(): Promise<string>;
}

/**
 * Offers the counters, and Node's own metrics, to Prometheus.
 *
 * @param pair what to say of the pair; null without one
 * @param onServers how many sessions are on which server now
 */
export function createMetrics(
  stats: Stats,
  pair: (() => PairFigures) | null = null,
  onServers: () => readonly { listener: string; server: string; sessions: number }[] = () => [],
): Metrics {
  const registry = new Registry();
  const registers = [registry];
  collectDefaultMetrics({ register: registry });

  const counter = (name: string, help: string, read: () => number) =>
    new Counter({
      name,
      help,
      registers,
      collect() {
        this.reset();
        this.inc(read());
      },
    });
  const tally = (name: string, help: string, label: string, read: () => Iterable<[string, number]>) =>
    new Counter({
      name,
      help,
      registers,
      labelNames: [label],
      collect() {
        this.reset();
        for (const [key, value] of read()) this.inc({ [label]: key }, value);
      },
    });

  new Gauge({
    name: 'outlive_sessions',
    help: 'Sessions now, by listener and state.',
    registers,
    labelNames: ['listener', 'state'],
    collect() {
      this.reset();
      for (const [listener, states] of stats.sessions) {
        for (const [state, value] of states) this.set({ listener, state }, value);
      }
    },
  });
  new Gauge({
    name: 'outlive_server_sessions',
    help: 'Sessions now, by listener and server.',
    registers,
    labelNames: ['listener', 'server'],
    collect() {
      this.reset();
      for (const { listener, server, sessions } of onServers()) this.set({ listener, server }, sessions);
    },
  });
  new Counter({
    name: 'outlive_session_moves_total',
    help: 'Live sessions moved to another server, by listener, servers and reason.',
    registers,
    labelNames: ['listener', 'from', 'to', 'reason'],
    collect() {
      this.reset();
      for (const { count, ...labels } of stats.moves) this.inc({ ...labels }, count);
    },
  });
  tally('outlive_sessions_total', 'Sessions since the start.', 'listener', () => stats.sessionsTotal);
  counter('outlive_requests_total', 'Requests of clients.', () => stats.requests);
  counter('outlive_units_total', 'Units of work that ended.', () => stats.units);
  tally('outlive_failovers_total', 'Failovers seen.', 'cluster', () => stats.failovers);
  tally('outlive_replays_total', 'Replays of open transactions.', 'result', () => stats.replays);
  tally('outlive_outcomes_total', 'Outcomes of interrupted commits.', 'outcome', () => stats.outcomes);
  counter('outlive_in_doubt_total', 'Commits whose answer was lost.', () => stats.inDoubt);
  counter('outlive_divergences_total', 'Replays answered differently than before.', () => stats.divergences);
  counter('outlive_lost_commits_total', 'Acknowledged commits missing after a failover.', () => stats.lostCommits);
  tally('outlive_bytes_total', 'Bytes relayed, by direction seen from the client.', 'direction', () => [
    ['from_client', stats.bytesFromClients],
    ['to_client', stats.bytesToClients],
  ]);
  tally('outlive_logins_total', 'Logins to servers.', 'result', () => stats.logins);
  tally(
    'outlive_unprotected_total',
    'Sessions and units that could not be replayed.',
    'reason',
    () => stats.unprotected,
  );
  counter('outlive_out_of_sync_total', 'Streams that could not be understood.', () => stats.outOfSync);
  tally('outlive_errors_total', 'Errors that the gateway answered with.', 'code', () => stats.errors);

  if (pair !== null) {
    const gauge = (name: string, help: string, read: (figures: PairFigures) => number) =>
      new Gauge({
        name,
        help,
        registers,
        collect() {
          this.set(read(pair()));
        },
      });
    const gauges = <T>(label: string, all: () => readonly T[], key: (of: T) => string) => {
      return (name: string, help: string, read: (of: T) => number) =>
        new Gauge({
          name,
          help,
          registers,
          labelNames: [label],
          collect() {
            for (const each of all()) this.labels(key(each)).set(read(each));
          },
        });
    };
    const byAddress = gauges(
      'address',
      () => pair().addresses,
      ({ address }) => address,
    );
    const byPeer = gauges(
      'peer',
      () => pair().peers,
      ({ peer }) => peer,
    );
    gauge('outlive_pair_link_up', 'Whether any other gateway is there.', ({ linkUp }) => Number(linkUp));
    byPeer('outlive_pair_peer_up', 'Whether the link to this other gateway is up.', ({ linked }) => Number(linked));
    byPeer('outlive_pair_peer_follows', 'Whether it follows the sessions here.', ({ follows }) => Number(follows));
    gauge('outlive_pair_followed', 'Sessions here that another gateway follows.', ({ followed }) => followed);
    gauge('outlive_pair_shadows', 'Sessions of other gateways that are followed here.', (f) => f.shadows.total);
    gauge('outlive_pair_adoptable', 'Those of them that could be gone on with now.', (f) => f.shadows.adoptable);
    counter(
      'outlive_pair_shadows_failed_total',
      'Sessions that could no longer be followed.',
      () => pair().shadowsFailed,
    );
    byAddress('outlive_pair_serving', 'Whether an address is served here.', ({ serving }) => Number(serving));
    byAddress('outlive_pair_epoch', 'The highest epoch that is known of an address.', ({ epoch }) => epoch);
    counter('outlive_pair_takeovers_total', 'Addresses that were taken over.', () => pair().takeovers);
    counter('outlive_pair_given_total', 'Addresses that were given to the other gateway.', () => pair().planned);
    tally('outlive_pair_connections_total', 'Connections that a takeover met, by result.', 'result', () => {
      const { kept, reset } = pair();
      return [
        ['kept', kept],
        ['reset', reset],
      ];
    });
    gauge('outlive_pair_last_takeover_seconds', 'Time of the last takeover.', (f) => f.lastTakeoverMs / 1000);
    gauge('outlive_pair_held_bytes', 'Bytes for clients that wait for the other gateway.', (f) => f.heldBytes);
    gauge('outlive_pair_backlog_bytes', 'Bytes that the other gateway has not confirmed.', (f) => f.backlogBytes);
  }

  return { contentType: registry.contentType, text: async () => (await registry.metrics()) + pauseHistogram(stats) };
}

/** prom-client's histogram cannot be given numbers, only observations; these were counted in {@link Stats} when they happened. */
function pauseHistogram({ pauses }: Stats): string {
  const name = 'outlive_pause_seconds';
  const lines = [`# HELP ${name} How long sessions paused because of a failover.`, `# TYPE ${name} histogram`];
  let below = 0;
  PAUSE_BUCKETS.forEach((bound, index) => {
    below += pauses.buckets[index];
    lines.push(`${name}_bucket{le="${bound}"} ${below}`);
  });
  lines.push(`${name}_bucket{le="+Inf"} ${pauses.count}`, `${name}_sum ${pauses.sum}`, `${name}_count ${pauses.count}`);
  return `\n${lines.join('\n')}\n`;
}
