import { expect, onTestFailed } from 'vitest';
import { shadowOf } from '../../core/cluster/rendezvous.js';
import type { ClientCounts, ClientHost, ClientReport } from '../../core/host/demo/lab/clients.js';
import { type GatewayProcess, type LogEvent, startGatewayIn } from '../../core/host/demo/lab/gateway.js';
import { configInFront } from '../../core/host/demo/lab/servers.js';
import { type Etcd, startEtcd } from './etcd.js';
import type { PairLab } from './pair-lab.js';
import { eventually } from './servers.js';
import { PORT } from './takeover.js';

const LINK = 7400;
const SECRET = '0123456789abcdef0123456789abcdef';

export interface GatewayGroupOptions {
  /** Names of the gateways and of their hosts. */
  readonly names: readonly string[];
  /** Room for so many clients on each. Default 120. */
  readonly clients?: number;
  /** Each is the engine of a keeper. */
  readonly kept?: boolean;
  /** Added to the pair. */
  readonly pair?: object;
}

/** Several gateways with an address each at home, in front of the lab's PostgreSQL pair; an etcd on a host of its own decides. */
export class GatewayGroup {
  readonly running = new Map<string, GatewayProcess>();
  readonly #draining = new Set<string>();
  /** Pids of engines by the name of their gateway. */
  readonly #engines = new Map<string, number>();
  readonly #place: PairLab;
  readonly #options: GatewayGroupOptions;
  readonly #secret: string;
  #etcd: Etcd | null = null;

  /** Use {@link startGroup}. */
  constructor(place: PairLab, options: GatewayGroupOptions) {
    this.#place = place;
    this.#options = options;
    this.#secret = place.lab.write('group.secret', SECRET);
  }

  /** The address that is at home on a gateway. */
  address(home: string): string {
    return this.#place.lab.floating(this.#options.names.indexOf(home)).address;
  }

  get addresses(): string[] {
    return this.#options.names.map((name) => this.address(name));
  }

  gateway(name: string): GatewayProcess {
    const gateway = this.running.get(name);
    if (gateway === undefined) throw new Error(`${name} is not there`);
    return gateway;
  }

  /** Called by {@link startGroup}. */
  async begin(): Promise<void> {
    const { lab } = this.#place;
    const host = lab.host('etcd');
    this.#etcd = await startEtcd({ netns: host.netns, host: host.address });
    this.#place.atEnd(() => this.#etcd?.stop());
    await Promise.all(this.#options.names.map((name) => this.start(name)));
    await this.settled(Object.fromEntries(this.#options.names.map((name) => [name, [name]])));
  }

  async start(name: string): Promise<void> {
    const onEvent = (event: LogEvent) => {
      if (process.env.LOG) process.stderr.write(`${name} ${JSON.stringify(event)}\n`);
      if (event.msg === 'the engine is started') this.#engines.set(name, event.pid as number);
    };
    const command = this.#options.kept ? ['keeper'] : ['run'];
    const started = await startGatewayIn(this.#place.lab.host(name), this.#config(name), { command, onEvent });
    this.#place.atEnd(async () => {
      // A keeper first: it would start another engine. Its log ends with the engine's.
      const killed = started.kill();
      this.#kill(name);
      await killed;
    });
    this.running.set(name, started);
  }

  /** Kills the engine of a gateway. @returns what the log of the next one says of the address that is at home there */
  async crashEngine(name: string): Promise<{ connections: number; lost: number; epoch: number }> {
    const { epoch } = (await this.gateway(name).status()).pair.addresses[this.#options.names.indexOf(name)];
    this.#kill(name);
    const again = (event: LogEvent) => event.address === this.address(name) && (event.epoch as number) > epoch;
    return (await this.gateway(name).event((event) => event.msg === 'serving an address' && again(event))) as never;
  }

  #kill(name: string): void {
    const pid = this.#engines.get(name);
    this.#engines.delete(name);
    try {
      if (pid !== undefined) process.kill(pid, 'SIGKILL');
    } catch {
      // It is gone.
    }
  }

  /** What a power cut does to a gateway's host. It is rebooted when the test is over, if it was not before. */
  async crash(name: string): Promise<void> {
    this.#place.atEnd(async () => {
      if (!this.running.has(name)) await this.#place.lab.host(name).reboot();
    });
    this.running.delete(name);
    await this.#place.lab.host(name).crash();
  }

  /** Power is back, and the gateway starts anew. */
  async reboot(name: string): Promise<void> {
    await this.#place.lab.host(name).reboot();
    await this.start(name);
  }

  /** Runs `outlive` with an order on a gateway's host. @returns what it printed; rejects when it fails */
  async outlive(name: string, ...order: string[]): Promise<string> {
    const { lab } = this.#place;
    if (order[0] === 'drain') this.#draining.add(name);
    const args = [lab.path('core/host/bin.js'), ...order, '--config', this.gateway(name).file];
    return (await lab.host(name).run(process.execPath, args)).stdout;
  }

  /** Who follows the sessions of a gateway when all that run now see each other. */
  shadow(name: string): string | null {
    return shadowOf(
      name,
      [...this.running.keys()].filter((each) => !this.#draining.has(each)),
    );
  }

  /**
   * Waits until the addresses are where they are expected, as all that run say, and every session is followed by the shadow of its gateway among
   * those.
   * @param homes by gateway: whose addresses it serves
   */
  async settled(homes: Readonly<Record<string, readonly string[]>>, timeoutMs = 30_000): Promise<void> {
    let seen: unknown;
    await eventually(
      async () => {
        const all = new Map(
          await Promise.all(
            [...this.running].map(async ([name, gateway]) => [name, (await gateway.status()).pair] as const),
          ),
        );
        seen = [...all].map(([name, { follower, replicas, addresses, peers }]) => {
          return {
            name,
            follower,
            replicas,
            addresses,
            peers: peers.map((peer: object) => ({ ...peer, statistics: 0 })),
          };
        });
        return [...all].every(([name, { follower, replicas, addresses }]) => {
          const shadow = this.shadow(name);
          const theirs =
            shadow === null ? null : all.get(shadow).peers.find((peer: { name: string }) => peer.name === name);
          return (
            follower === shadow &&
            Object.entries(homes).every(([owner, list]) =>
              list.every((home) => {
                const one = addresses.find(({ address }: { address: string }) => address === this.address(home));
                return one.owner === owner;
              }),
            ) &&
            (theirs === null ||
              (replicas.followed === replicas.sessions && theirs.shadows.adoptable === replicas.sessions))
          );
        });
      },
      { timeoutMs, intervalMs: 100, message: `the addresses are at ${JSON.stringify(homes)}, and followed` },
    ).catch((error: Error) => {
      throw new Error(`${error.message}: ${JSON.stringify(seen)}`);
    });
  }

  /** Waits until a gateway has taken an address over, and tells what its log says of that. */
  async took(name: string, home: string): Promise<{ connections: number; lost: number; ms: number }> {
    const serving = ({ msg, address }: LogEvent) => msg === 'serving an address' && address === this.address(home);
    return (await this.gateway(name).event(serving, 30_000)) as never;
  }

  #config(name: string): object {
    const { names, clients = 120, kept = false, pair } = this.#options;
    const { lab } = this.#place;
    const at = (each: string) => `${lab.host(each).address}:${LINK}`;
    return {
      ...configInFront(this.#place.pair, `0.0.0.0:${PORT}`, clients),
      ...(kept ? { keeper: { socket: `./keeper-${name}/socket` } } : {}),
      pair: {
        name,
        listen: at(name),
        peers: names.filter((each) => each !== name).map((each) => ({ name: each, address: at(each) })),
        secret: { file: this.#secret },
        lease: { plugin: 'etcd', endpoints: this.#etcd!.endpoints, ttl: 3000, prefix: '/outlive/test/' },
        addresses: names.map((home) => ({
          address: this.address(home),
          home,
          mover: { plugin: 'address-ip', interface: lab.host(name).interface },
        })),
        ...pair,
      },
    };
  }
}

/** Starts gateways; they end with the test. When it fails, the last lines of their logs are shown. */
export async function startGroup(place: PairLab, options: GatewayGroupOptions): Promise<GatewayGroup> {
  const group = new GatewayGroup(place, options);
  onTestFailed(() => {
    for (const [name, { tail }] of group.running) process.stderr.write(`${name}:\n${tail.slice(-60).join('\n')}\n`);
  });
  await group.begin();
  return group;
}

/** Clients on all addresses of a group, and what they must have seen in the end. */
export class GroupClients {
  readonly clients: ClientHost;
  readonly #place: PairLab;
  readonly #before: ClientReport;

  private constructor(place: PairLab, clients: ClientHost, before: ClientReport) {
    this.#place = place;
    this.clients = clients;
    this.#before = before;
  }

  /** Connects them, and waits until they are at work. */
  static async start(place: PairLab, group: GatewayGroup, counts: ClientCounts): Promise<GroupClients> {
    const clients = await place.clients(counts);
    const think = { inside: 30, between: 20 };
    await clients.begin({ counts, address: group.addresses, port: PORT, rows: 20_000, sleep: 1, think });
    const working = (counts.transfer ?? 0) > 0;
    if (working) await eventually(async () => (await clients.report()).transactions > 20, { timeoutMs: 30_000 });
    return new GroupClients(place, clients, await clients.report());
  }

  /** Begins to note answers for {@link answered}. Call it before the fault. */
  async watch(): Promise<number> {
    await this.clients.watch();
    return Date.now();
  }

  /** Waits until every client that waits or works was answered after a moment. */
  async answered(since: number): Promise<void> {
    await this.clients.probe();
    const { silent } = await this.clients.pauses(since, 30_000);
    expect(silent).toBe(0);
  }

  /** Lets them end. Each must be on its first connection, without an error, and the ledger must be exact. */
  async unharmed(): Promise<void> {
    await this.clients.probe();
    const report = await this.clients.finish();
    expect(report).toMatchObject({ reconnects: 0, errors: [], wrongReads: [] });
    expect(report.connections.map(({ portNow }) => portNow)).toEqual(
      this.#before.connections.map(({ portBefore }) => portBefore),
    );
    expect(report.transactions).toBeGreaterThan(this.#before.transactions);
    expect(await this.#place.verdict(report)).toMatchObject({ right: true });
  }

  /** Lets them end. Each must have gone on without an error or have been reset, and the ledger must be exact. @returns how many were reset */
  async reset(): Promise<number> {
    await this.clients.probe();
    const report = await this.clients.finish();
    // The driver says the second to who asks only after the reset has come.
    const reset = /ECONNRESET|has encountered a connection error and is not queryable/;
    expect(report.errors.filter(({ message }) => !reset.test(message))).toEqual([]);
    expect(report.wrongReads).toEqual([]);
    expect(await this.#place.verdict(report)).toMatchObject({ right: true });
    return report.errors.length;
  }
}
