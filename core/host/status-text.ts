import Table from 'cli-table3';
import { REASONS } from '../cluster/decide.js';
import { CONDITIONS, type Statistics } from '../cluster/statistics.js';

/** Another gateway as one tells of it. */
export interface PeerStatus {
  readonly name: string;
  readonly link: 'up' | 'down';
  readonly heardMsAgo: number | null;
  /** Who follows its sessions, as far as is known; null for nobody. */
  readonly followedBy: string | null;
  /** The last that was heard of it; null when it was never heard. */
  readonly statistics: Statistics | null;
}

/** What a gateway tells of its pair. */
export interface PairStatus {
  readonly self: Statistics;
  /** The last that was heard of the other gateway, of several of the one that follows; null when it was never heard. */
  readonly peer: Statistics | null;
  readonly peerHeardMsAgo: number | null;
  readonly link: 'up' | 'down';
  /** Who follows the sessions here; null for nobody. */
  readonly follower?: string | null;
  /** All other gateways. */
  readonly peers?: readonly PeerStatus[];
  readonly addresses: readonly {
    readonly address: string;
    /** Null when nobody is known to serve it. */
    readonly owner: string | null;
    readonly epoch: number;
    /** What is left of the lease that is held here, in ms; null when none is. */
    readonly leaseLeftMs: number | null;
  }[];
  /** What was decided lately, the oldest first. */
  readonly decisions: readonly {
    /** ISO 8601. */
    readonly at: string;
    readonly address: string;
    readonly action: string;
    readonly reason: string;
    readonly rule?: string;
  }[];
  /** Why connections cannot be moved between hosts here; null when they can. */
  readonly unmovable?: string | null;
}

/** The parts of a gateway's status that are printed; what else is there is left to `--json`. */
export interface GatewayStatus {
  /** The order that was carried out, when this is the answer to one. */
  readonly done?: string;
  readonly pair?: PairStatus | null;
  /** Null when it does not run under one. */
  readonly keeper?: {
    /** Whether it is there. */
    readonly open: boolean;
    /** Connections of the engine before that went on here, and that could not. */
    readonly kept: number;
    readonly lost: number;
  } | null;
  readonly uptimeSeconds?: number;
  readonly health?: { readonly healthy: boolean; readonly reasons: readonly string[] };
  readonly listeners?: readonly {
    readonly name: string;
    readonly port: number;
    readonly clients: number;
    readonly target?: string;
    /** Sessions by server. */
    readonly servers?: Readonly<Record<string, number>>;
    /** Of live sessions between servers; null where they stay. */
    readonly balance?: { readonly verdict: string; readonly moved: number; readonly failed: number } | null;
  }[];
  readonly clusters?: readonly {
    readonly name: string;
    readonly primary: string | null;
    readonly servers: readonly { readonly name: string; readonly reachable: boolean; readonly role: string | null }[];
  }[];
}

/** Decisions that are printed at most. */
const LAST = 10;

/**
 * The status of a running gateway, for people.
 *
 * @param status what the admin interface answers to `/status` or to an order; unknown parts are left out
 * @returns lines, each with its end
 */
export function statusText(status: unknown): string {
  if (typeof status !== 'object' || status === null) return `${JSON.stringify(status)}\n`;
  const { done, pair, keeper, health, uptimeSeconds, listeners = [], clusters = [] } = status as GatewayStatus;
  const parts: string[] = [];
  if (done !== undefined) parts.push(`${plain(done)}: done`);
  if (health !== undefined) {
    const since = uptimeSeconds === undefined ? '' : `, up for ${duration(uptimeSeconds * 1000)}`;
    parts.push(
      [
        `${health.healthy ? 'Healthy' : 'NOT HEALTHY'}${since}`,
        ...health.reasons.map((each) => `  ${plain(each)}`),
      ].join('\n'),
    );
  }
  if (keeper != null) {
    const { open, kept, lost } = keeper;
    parts.push(
      open
        ? `Under a keeper; of the engine before, ${kept} connections went on and ${lost} did not`
        : 'The keeper is GONE: a crash costs the connections',
    );
  }
  if (listeners.length > 0) {
    const rows = listeners.map(({ name, port, clients }) => [name, port, clients]);
    parts.push(table(['Listener', 'Port', 'Clients'], rows, [1, 2]));
    const places = listeners.flatMap(({ name, target = 'primary', servers = {}, balance }) => {
      if (target === 'primary') return [];
      const on = Object.entries(servers).map(([server, sessions]) => `${server} ${sessions}`);
      const moves = balance == null ? ['', '', 'off'] : [balance.moved, balance.failed, balance.verdict];
      return [[name, target, on.join(', '), ...moves]];
    });
    const head = ['Listener', 'Target', 'Sessions on', 'Moved', 'Not moved', 'Balance'];
    if (places.length > 0) parts.push(table(head, places, [3, 4]));
  }
  if (clusters.length > 0) {
    const rows = clusters.flatMap(({ name, primary, servers }) =>
      servers.map((server) => [
        name,
        server.name,
        server.reachable ? (server.role ?? 'unknown') : 'UNREACHABLE',
        server.name === primary ? 'yes' : '',
      ]),
    );
    parts.push(table(['Cluster', 'Server', 'Role', 'Takes writes'], rows));
  }
  parts.push(...(pair == null ? (done === undefined ? ['This gateway is not one of a pair.'] : []) : pairText(pair)));
  return `${parts.join('\n')}\n`;
}

function pairText(pair: PairStatus): string[] {
  const { self, peer, peerHeardMsAgo: heard, link, addresses, decisions, unmovable } = pair;
  const { peers = [], follower = null } = pair;
  const several = peers.length > 1;
  const parts: string[] = [];
  if (several) {
    parts.push(...peers.map(({ name, ...of }) => linkText(name, of.link, of.heardMsAgo)));
    const follow = [{ name: self.name, followedBy: follower }, ...peers];
    parts.push(
      table(
        ['Sessions of', 'Followed by'],
        follow.map(({ name, followedBy }) => [name, followedBy ?? 'NOBODY']),
      ),
    );
  } else parts.push(linkText(peer?.name ?? 'the other gateway', link, heard));
  if (unmovable != null) parts.push(`Connections cannot be moved: ${plain(unmovable)}`);
  const others = several
    ? peers.map(({ name, link, statistics }) => ({ name, linked: link === 'up', statistics }))
    : [{ name: peer?.name ?? 'the other one', linked: link === 'up', statistics: peer }];
  parts.push(sideBySide(self, others));
  if (addresses.length > 0) {
    const rows = addresses.map(({ address, owner, epoch, leaseLeftMs }) => [
      address,
      owner ?? 'NOBODY',
      epoch,
      leaseLeftMs === null ? '' : leaseLeftMs < 0 ? 'ENDED' : duration(leaseLeftMs),
    ]);
    parts.push(table(['Address', 'Served by', 'Epoch', 'Lease here'], rows, [2, 3]));
  }
  if (decisions.length > 0) {
    const rows = decisions
      .slice(-LAST)
      .map(({ at, address, action, rule, reason }) => [at, address, action, rule ?? '', reasonText(reason)]);
    parts.push(table(['Decided at', 'Address', 'What', 'Rule', 'Why'], rows));
  }
  return parts;
}

function linkText(name: string, link: 'up' | 'down', heard: number | null): string {
  const ago = heard === null ? 'never heard' : `heard ${duration(heard)} ago`;
  return `Link to ${plain(name)} ${link === 'up' ? 'up' : 'DOWN'}, ${ago}`;
}

interface Other {
  readonly name: string;
  readonly linked: boolean;
  readonly statistics: Statistics | null;
}

/** The statistics of all gateways, a row for each figure. */
function sideBySide(self: Statistics, others: readonly Other[]): string {
  const rows: unknown[][] = [];
  const row = (label: string, value: (of: Statistics) => unknown) => {
    rows.push([label, value(self), ...others.map(({ statistics }) => (statistics === null ? '?' : value(statistics)))]);
  };
  // What others say is said to this gateway: of its sessions, and of whether they hear it.
  const several = others.length > 1;
  row('Version', ({ version }) => version);
  row('Clients', ({ clients }) => clients);
  row(
    several ? 'Sessions that it follows (others: of this one)' : 'Sessions of the other one that it follows',
    ({ shadows }) => shadows.total,
  );
  row('of these, complete enough to go on with', ({ shadows }) => shadows.adoptable);
  row(several ? 'Hears any other one (others: this one)' : 'Hears the other one', ({ reaches }) =>
    reaches.peer ? 'yes' : 'NO',
  );
  row('Reaches the lease store', ({ reaches: { store } }) => (store === null ? 'none' : store ? 'yes' : 'NO'));
  const all = [self, ...others.flatMap(({ statistics }) => statistics ?? [])];
  const backends = new Set(all.flatMap(({ reaches }) => Object.keys(reaches.backends)));
  for (const backend of [...backends].toSorted()) {
    row(`Reaches ${backend}`, ({ reaches }) => {
      const reach = Object.hasOwn(reaches.backends, backend) ? reaches.backends[backend] : null;
      return reach === 'ok' ? 'yes' : reach === 'read-only' ? 'read-only' : reach === null ? 'unknown to it' : 'NO';
    });
  }
  row('CPU', ({ load }) => `${(load.cpu * 100).toFixed(0)} %`);
  row('Event loop late by (p99)', ({ load }) => `${load.eventLoopDelayMs.toFixed(1)} ms`);
  row('Requests', ({ load }) => `${load.requestsPerSecond.toFixed(0)} /s`);
  row('To and from clients', ({ load }) => `${bytes(load.bytesPerSecond)}/s`);
  row('Draining', ({ draining }) => (draining ? 'YES' : 'no'));
  const off = ({ conditions }: Statistics) =>
    CONDITIONS.filter((each) => !conditions.includes(each)).join(', ') || 'none';
  row('Conditions that are off', off);
  const names = others.map(({ name, linked, statistics }) =>
    statistics === null || linked ? name : `${name} (last heard)`,
  );
  return table(
    ['Gateway', self.name, ...names],
    rows,
    others.flatMap((_, index) => [index + 1, index + 2]),
  );
}

function reasonText(reason: string): string {
  return Object.hasOwn(REASONS, reason) ? REASONS[reason as keyof typeof REASONS] : reason;
}

/** @param right columns of figures */
function table(head: readonly string[], rows: readonly (readonly unknown[])[], right: readonly number[] = []): string {
  const made = new Table({
    head: head.map(plain),
    style: { head: [], border: [] },
    colAligns: head.map((_, column) => (right.includes(column) ? 'right' : 'left')),
  });
  made.push(...rows.map((row) => row.map((cell) => plain(String(cell)))));
  return made.toString();
}

/** Names come from another host: nothing that a terminal obeys. */
function plain(text: string): string {
  return text.replace(/[\p{C}\p{Zl}\p{Zp}]/gu, '?');
}

/** @param ms not negative */
function duration(ms: number): string {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 10_000) return `${(ms / 1000).toFixed(1)} s`;
  const seconds = Math.round(ms / 1000);
  if (seconds < 120) return `${seconds} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  const hours = Math.round(seconds / 3600);
  return hours < 48 ? `${hours} h` : `${Math.round(hours / 24)} d`;
}

function bytes(count: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB'];
  let unit = 0;
  let value = count;
  for (; value >= 1024 && unit < units.length - 1; unit++) value /= 1024;
  return `${value.toFixed(unit === 0 || value >= 100 ? 0 : 1)} ${units[unit]}`;
}
