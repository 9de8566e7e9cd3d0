/**
 * The guard: rules in the kernel of this host about what may leave it from the addresses of the pair. They stay when the process
 * that made them dies, and two things depend on that:
 *
 * - A process that dies makes its kernel close its connections, with a FIN, or with a RST where bytes were unread; so does a kernel
 *   that gets a segment for a connection that it does not have. A client that hears such a thing is lost, although another process
 *   or host could go on with its connection. The guard drops every FIN and RST that the gateway did not allow: see {@link allowClose}.
 *   And a socket whose process died goes on acknowledging, for as long as the kernel tries to end it: a client that repeats what was
 *   received and not passed on (its acknowledgement was held back) would be told that it arrived, and forget it. So what comes from a
 *   connection that no process has is dropped as well.
 * - A host that lost its term must be silent, whatever its processes do, also when they hang. What leaves from an address is dropped
 *   after the moment told by {@link Guard.permit}. Taking the address away is not enough: established sockets of an IPv6 address,
 *   and those with IP_TRANSPARENT, go on sending from it (seen on Linux 6.18), and the kernel takes an address with a lifetime
 *   away up to a second late (net/ipv4/devinet.c check_lifetime, net/ipv6/addrconf.c addrconf_verify_rtnl).
 *
 * The rules are tables of nftables, one for IP and one for ARP, since a host that answers ARP for an address that it lost leads
 * clients astray. They are made by the program `nft` (nft(8)), one transaction a call.
 */

import { isIP, isIPv6 } from 'node:net';
import { CodedError } from '../contract/index.js';
import { SOL_SOCKET, setOption } from './tcp/libc.js';

/** The mark (SO_MARK) of sockets whose FIN and RST may leave. A value of our own; it must mean nothing else on the host. */
export const CLOSE_MARK = 0x6f75;

/** socket(7), asm-generic number. */
const SO_MARK = 36;

const NFT_TIMEOUT_MS = 2000;

/** Runs a program without a shell; rejects when it fails or does not end in time. That of `PluginContext` fits. */
export type RunCommand = (
  command: readonly string[],
  env: Record<string, string>,
  timeoutMs: number,
) => Promise<{ readonly stdout: string }>;

export interface GuardOptions {
  /** Tells guards of one host apart: letters, digits and `_`, at most 40. A guard of the same name, left by a process that died, is replaced. */
  readonly name: string;
  /** The addresses of the pair, numeric, IPv4 and IPv6. */
  readonly addresses: readonly string[];
  /** The ports of its listeners, at least one. */
  readonly ports: readonly number[];
  /** True: nothing leaves from the addresses before {@link Guard.permit}. False: everything does, until then, but for FIN and RST. */
  readonly closed: boolean;
  readonly run: RunCommand;
}

/** What the guard dropped since it was installed, in segments or packets. */
export interface GuardCounts {
  /** FIN and RST of sockets without the mark, or of no socket. */
  readonly closes: number;
  /** Packets from an address without a permit. */
  readonly unpermitted: number;
}

export interface Guard {
  /**
   * What comes from `address` may leave until `until`: a moment on the clock `performance.now()`, like a lease's `validUntil`, or null
   * for no end. A moment that has passed: nothing leaves any more. The kernel keeps to it by itself, to some ms; a process that
   * was stopped just before it told the kernel, and wakes up later, makes at most one second of the past count.
   * Rejects with OUTLIVE_GUARD.
   *
   * @param newcomers false: nobody new gets in. The answer to a SYN is dropped, and the client's kernel tries again (after one second the first
   *   time), then perhaps with the host that has the address by then. Default true
   */
  permit(address: string, until: number | null, newcomers?: boolean): Promise<void>;
  /** Rejects with OUTLIVE_GUARD. */
  counts(): Promise<GuardCounts>;
  /** Takes the rules away; no error when they are gone already. Rejects with OUTLIVE_GUARD. */
  remove(): Promise<void>;
}

/**
 * Lets the FIN or RST of a socket out, from now on: to be called before a client's connection is closed on purpose. On a
 * listening socket it lets out what the kernel answers to segments of connections that this host does not have (tcp_v4_send_reset in
 * net/ipv4/tcp_ipv4.c, tcp_v6_send_response in net/ipv6/tcp_ipv6.c take the mark of the listener); what is accepted
 * inherits the mark and must lose it by {@link forbidClose}. Needs CAP_NET_ADMIN.
 * Throws OUTLIVE_TCP_REPAIR_UNAVAILABLE or OUTLIVE_TCP_CALL_FAILED.
 *
 * @param fd the socket's file descriptor
 */
export function allowClose(fd: number): void {
  setOption(fd, SOL_SOCKET, SO_MARK, CLOSE_MARK);
}

/** Undoes {@link allowClose}. Throws like it. */
export function forbidClose(fd: number): void {
  setOption(fd, SOL_SOCKET, SO_MARK, 0);
}

/** Can a guard be installed here? Null, or why not (no nft, no rights, a kernel without it). */
export async function guardUnavailable(run: RunCommand): Promise<string | null> {
  const table = 'outlive_probe';
  try {
    // All that a guard is made of, checked by the kernel and not kept (nft --check).
    await run(['nft', '--check', rules(table, ['192.0.2.1', '2001:db8::1'], [1], true)], {}, NFT_TIMEOUT_MS);
    return null;
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}

/** Installs a guard, or replaces that of the same name. Rejects with OUTLIVE_GUARD; the message says what nft said. */
export async function installGuard(options: GuardOptions): Promise<Guard> {
  const { name, addresses, ports, run } = options;
  if (!/^\w{1,40}$/.test(name)) throw failed('install', new Error(`${JSON.stringify(name)} is no name for a guard`));
  const wrong = addresses.find((address) => isIP(address) === 0);
  if (wrong !== undefined) throw failed('install', new Error(`${JSON.stringify(wrong)} is no numeric address`));
  const table = `outlive_${name}`;

  /** Each change waits for the one before: two nft processes could overtake each other. */
  let last: Promise<unknown> = Promise.resolve();
  const nft = (what: string, make: () => string, flags: readonly string[] = []): Promise<string> => {
    const next = last.then(async () => {
      try {
        return (await run(['nft', ...flags, make()], {}, NFT_TIMEOUT_MS)).stdout;
      } catch (error) {
        throw failed(what, error);
      }
    });
    last = next.catch(() => {});
    return next;
  };

  await nft('install', () => rules(table, addresses, ports, options.closed));
  return {
    async permit(address, until, newcomers = true) {
      const index = addresses.indexOf(address);
      if (index < 0) throw failed('permit', new Error(`${address} is none of its addresses`));
      await nft('permit', () => {
        const left = until === null ? null : Math.floor(until - performance.now());
        return permission(table, index, address, left, Date.now(), newcomers);
      });
    },
    async counts() {
      const text = await nft('counts', () => `list counters table inet ${table}`, ['--json']);
      return readCounts(text);
    },
    async remove() {
      await nft('remove', () => removal(table));
    },
  };
}

/** What removes the tables, whether they are there or not: adding what exists does nothing. */
function removal(table: string): string {
  return [`table inet ${table}`, `delete table inet ${table}`, `table arp ${table}`, `delete table arp ${table}`].join(
    '\n',
  );
}

/** The text of all rules. Each address has a chain of its own, `address<index>`, that {@link permission} writes anew. */
function rules(table: string, addresses: readonly string[], ports: readonly number[], closed: boolean): string {
  const jumps = (six: boolean) =>
    addresses.flatMap((address, index) => (isIPv6(address) === six ? [`${address} : goto address${index}`] : []));
  const chains = (rule: string, six: boolean) =>
    addresses.flatMap((address, index) => (isIPv6(address) && !six ? [] : [`chain address${index} { ${rule}; }`]));
  const dispatch = (match: string, entries: readonly string[]) =>
    entries.length === 0 ? '' : `${match} vmap { ${entries.join(', ')} };`;
  const [four, six] = [jumps(false), jumps(true)];
  // Priority raw: before connection tracking and before anything that may change the mark.
  return `${removal(table)}
table inet ${table} {
  set until4 { type ipv4_addr; flags timeout; }
  set until6 { type ipv6_addr; flags timeout; }
  counter closes { }
  counter unpermitted { }
  chain permitted {
    tcp sport != { ${ports.join(', ')} } accept;
    meta mark ${CLOSE_MARK} accept;
    tcp flags & (fin | rst) != 0 counter name closes drop;
    meta skuid != ${NOBODY} accept;
    tcp flags & syn == 0 drop;
  }
  ${chains(closed ? DROP : 'goto permitted', true).join('\n  ')}
  chain output { type filter hook output priority raw; policy accept; ${dispatch('ip saddr', four)} ${dispatch('ip6 saddr', six)} }
}
table arp ${table} {
  set until4 { type ipv4_addr; flags timeout; }
  ${chains(closed ? 'drop' : 'accept', false).join('\n  ')}
  chain output { type filter hook output priority 0; policy accept; ${dispatch('arp saddr ip', four)} }
}`;
}

/** No user has this number ((uid_t) -1): the comparison is true for every socket that a process has, and no other has a user. */
const NOBODY = 0xffffffff;
const DROP = 'counter name unpermitted drop';
const NO_NEWCOMERS = 'tcp flags & (syn | ack) == (syn | ack) drop';

/**
 * The text that permits an address. The time is told twice: as a timeout, which counts from when the kernel hears of it and is exact to
 * some ms, and as a time of day in whole seconds, rounded up, for a process that was stopped before it told the kernel. The
 * time of day alone would not do either: the clock may be set back.
 *
 * @param left ms from now on, or null for no end
 * @param now time of day in ms
 */
function permission(
  table: string,
  index: number,
  address: string,
  left: number | null,
  now: number,
  newcomers: boolean,
): string {
  const families = isIPv6(address) ? ['inet'] : ['inet', 'arp'];
  const lines = families.flatMap((family) => {
    const chain = `${family} ${table} address${index}`;
    const [drop, accept] = family === 'inet' ? [DROP, 'goto permitted'] : ['drop', 'accept'];
    const flush = [`flush chain ${chain}`];
    if (!newcomers && family === 'inet') flush.push(`add rule ${chain} ${NO_NEWCOMERS}`);
    if (left === null) return [...flush, `add rule ${chain} ${accept}`];
    if (left <= 0) return [...flush, `add rule ${chain} ${drop}`];
    const set = isIPv6(address) ? 'until6' : 'until4';
    const source = family === 'arp' ? 'arp saddr ip' : isIPv6(address) ? 'ip6 saddr' : 'ip saddr';
    const element = (timeout: string) => `element ${family} ${table} ${set} { ${address}${timeout} }`;
    return [
      ...flush,
      // An element that is there keeps its timeout, and one that is not there cannot be deleted.
      `add ${element('')}`,
      `delete ${element('')}`,
      `add ${element(` timeout ${left}ms`)}`,
      `add rule ${chain} meta time >= ${Math.ceil((now + left) / 1000)} ${drop}`,
      `add rule ${chain} ${source} @${set} ${accept}`,
      `add rule ${chain} ${drop}`,
    ];
  });
  return lines.join('\n');
}

function readCounts(text: string): GuardCounts {
  const listed = JSON.parse(text) as { nftables: { counter?: { name: string; packets: number } }[] };
  const packets = (name: string) => listed.nftables.find((item) => item.counter?.name === name)?.counter?.packets ?? 0;
  return { closes: packets('closes'), unpermitted: packets('unpermitted') };
}

function failed(what: string, cause: unknown): CodedError {
  const why = cause instanceof Error ? cause.message : String(cause);
  const message = `the guard of the addresses (nftables) could not do "${what}": ${why}`;
  return new CodedError('OUTLIVE_GUARD', 'system', message, { cause });
}
