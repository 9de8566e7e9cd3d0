import { ranked } from '../cluster/rendezvous.js';
import { guardUnavailable } from '../io/guard.js';
import { ackHoldUnavailable } from '../io/hold/index.js';
import { runCommand } from '../io/index.js';
import { tcpRepairUnavailable } from '../io/tcp/index.js';
import type { Gap } from './check.js';
import { type Config, formatDuration, formatSize, type ListenerConfig, type PairConfig } from './config/index.js';

/** What this host can do for a pair: null where it can, else why not. */
export interface Abilities {
  /** Connections can be moved (TCP_REPAIR). */
  readonly move: string | null;
  /** The kernel keeps quiet for a process that died (nftables). */
  readonly guard: string | null;
  /** Acknowledgements can be held back (eBPF). */
  readonly hold: string | null;
}

/** Tries what this host and this user can do; nothing of it stays. */
export async function tryAbilities(): Promise<Abilities> {
  return {
    move: tcpRepairUnavailable(),
    guard: await guardUnavailable((command, env, timeoutMs) => runCommand(command, { env, timeoutMs })),
    hold: ackHoldUnavailable(),
  };
}

/** The pair of a configuration as plain data, sizes in bytes, times in ms. Null without one. */
export function describePair({ pair }: Config, here: Abilities | null) {
  if (pair === null) return null;
  const { name, listen, peers, beat, silence, backlog, withoutPeer, guard, holdAcknowledgements, conditions } = pair;
  return {
    name,
    listen,
    peers,
    auth: pair.secret === null ? 'tls' : 'secret',
    beat,
    silence,
    backlog,
    withoutPeer,
    lease: pair.lease?.plugin ?? null,
    fence: pair.fence && { plugin: pair.fence.plugin, timeout: pair.fence.timeout },
    addresses: pair.addresses.map(({ address, home, mover }) => ({ address, home, mover: mover.plugin })),
    guard,
    holdAcknowledgements,
    conditions,
    here,
  };
}

type PairReport = NonNullable<ReturnType<typeof describePair>>;

/** How a silent gateway is made sure to be off. */
function proof({ lease, fence }: Pick<PairReport, 'lease' | 'fence'>): string {
  if (lease !== null) {
    return `lease by ${lease}${fence === null ? '' : `; the fence (${fence.plugin}) is not used: the lease decides`}`;
  }
  if (fence !== null) return `fence by ${fence.plugin}, within ${formatDuration(fence.timeout)}`;
  return 'NOTHING: a silent gateway is never taken over';
}

/** Who follows the sessions of this gateway, depending on who is there. */
function followers({ name, peers }: PairReport): string {
  const [first, ...others] = ranked(
    name,
    peers.map((peer) => peer.name),
  );
  return `${first}; when that is gone, ${others.join(', then ')}`;
}

/** The rows of the report about the pair. */
export function pairRows(pair: PairReport): [string, string][] {
  const { here } = pair;
  const able = (why: string | null | undefined) => (here === null ? 'not tried' : why === null ? 'yes' : `NO: ${why}`);
  const off = Object.entries(pair.conditions).filter(([, on]) => !on);
  return [
    ...pair.peers.map(({ name, address }, index): [string, string] => [
      pair.peers.length === 1 ? 'link' : `link ${index + 1}`,
      `${pair.listen.host}:${pair.listen.port} to ${name} at ${address.host}:${address.port}, ${pair.auth === 'tls' ? 'mutual TLS' : 'a shared secret'}`,
    ]),
    ...(pair.peers.length === 1 ? [] : [['followed by', followers(pair)] satisfies [string, string]]),
    ['silence', `not heard for ${formatDuration(pair.silence)}, a beat every ${formatDuration(pair.beat)}`],
    ['memory', `at most ${formatSize(pair.backlog)} wait for the other gateway`],
    ['proof', proof(pair)],
    ...pair.addresses.map(({ address, home, mover }): [string, string] => [
      `address ${address}`,
      `at home on ${home}, moved by ${mover}`,
    ]),
    ['without peer', pair.withoutPeer === 'stop' ? 'clients wait' : 'clients go on, unprotected'],
    ['conditions off', off.map(([name]) => name).join(', ') || 'none'],
    ['can move connections', able(here?.move)],
    ['guard', pair.guard ? able(here?.guard) : 'off'],
    ['hold of acknowledgements', pair.holdAcknowledgements === null ? 'off' : able(here?.hold)],
  ];
}

/** What of the pair is not protected. */
export function pairGaps(config: Config, here: Abilities | null): Gap[] {
  const { pair } = config;
  if (pair === null) {
    const what = 'the connections of all clients end with its host: there is no second gateway';
    return [{ where: 'gateway', what, fix: 'add pair' }];
  }
  const gaps: Gap[] = [];
  const add = (what: string, fix: string | null, where = 'pair') => gaps.push({ where, what, fix });
  if (pair.lease === null && pair.fence === null) {
    add(
      'a silent gateway is never taken over: nothing makes sure that it is off, and two hosts alone cannot tell a dead one from a cut cable',
      'add lease (a store such as etcd), or fence (a command that switches the other host off)',
    );
  }
  if (pair.withoutPeer === 'continue' && config.listeners.some(({ durability }) => durability === 'pair')) {
    add(
      'while the other gateway is gone, the loss of this host costs all connections (withoutPeer: continue)',
      'withoutPeer: stop, which lets clients wait instead',
    );
  }
  if (pair.holdAcknowledgements === null) {
    add(
      "a client's bytes that this host's kernel acknowledged and nobody was told of are lost with the host: such a connection is reset",
      'holdAcknowledgements: { interface: ... }',
    );
  }
  if (!pair.guard) {
    add(
      'a process that dies takes its connections with it, and a host that lost its lease is silenced by its process alone (guard: false)',
      'guard: true',
    );
  }
  for (const [name, what] of [
    ['hostFailed', 'a gateway whose host is silent is not taken over'],
    ['processFailed', 'a gateway whose process is gone is not taken over'],
    ['operator', 'outlive takeover and outlive drain are not obeyed, and a gateway that is stopped gives nothing away'],
  ] as const) {
    if (!pair.conditions[name]) add(`${what} (conditions.${name}: false)`, `conditions: { ${name}: true }`);
  }
  gaps.push(...abilityGaps(pair, here));
  for (const listener of config.listeners) gaps.push(...listenerGaps(listener, pair));
  return gaps;
}

function abilityGaps(pair: PairConfig, here: Abilities | null): Gap[] {
  const gaps: Gap[] = [];
  const add = (why: string | null | undefined, what: string, fix: string) => {
    if (why != null) gaps.push({ where: 'this host', what: `${what}: ${why}`, fix });
  };
  const root = 'run as root, or with CAP_NET_ADMIN and CAP_NET_RAW';
  add(here?.move, 'no connection can be taken over or given away here', `Linux, and ${root}`);
  if (pair.guard) add(here?.guard, 'the guard cannot be installed here', `install nftables, and ${root}`);
  if (pair.holdAcknowledgements !== null) {
    add(
      here?.hold,
      'the gateway does not start: acknowledgements cannot be held back here',
      'Linux 6.6 or newer, and run as root or with CAP_BPF too',
    );
  }
  return gaps;
}

function listenerGaps({ name, listen, tls, durability }: ListenerConfig, pair: PairConfig): Gap[] {
  const gaps: Gap[] = [];
  const where = `listener ${name}`;
  const add = (what: string, fix: string | null) => gaps.push({ where, what, fix });
  if (durability === 'local') {
    add(
      'the loss of this host can cost connections: clients are answered before the other gateway knows of it (durability: local)',
      'durability: pair',
    );
  }
  if (tls.mode !== 'off') {
    const which = tls.mode === 'require' ? 'its connections' : 'connections that use TLS';
    add(
      `${which} end with this host, and when the address moves: their keys live in this process (tls: ${tls.mode})`,
      'end TLS elsewhere, and listen without it where only that reaches',
    );
  }
  const reached = pair.addresses.filter(
    ({ address }) =>
      address === listen.host || listen.host === (address.includes(':') ? '::' : '0.0.0.0') || listen.host === '::',
  );
  if (reached.length === 0) {
    add(
      `no address of the pair leads to ${listen.host}: its clients are not taken over`,
      'listen on 0.0.0.0, or on [::], which is both IPv6 and IPv4',
    );
  } else if (reached.some(({ address }) => address === listen.host)) {
    add(
      'a gateway that does not have the address cannot listen on it, unless its kernel allows that',
      'listen on 0.0.0.0 or [::], or set net.ipv4.ip_nonlocal_bind (net.ipv6.ip_nonlocal_bind)',
    );
  }
  if (listen.port === 0) add('a takeover needs the same port on both gateways', 'a port other than 0');
  return gaps;
}
