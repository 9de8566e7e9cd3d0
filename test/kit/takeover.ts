import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type GatewayProcess, type LogEvent, startGatewayIn } from '../../core/host/demo/lab/gateway.js';
import type { Host } from '../../core/host/demo/lab/lab.js';
import { configInFront } from '../../core/host/demo/lab/servers.js';
import { type Etcd, startEtcd } from './etcd.js';
import type { PairLab } from './pair-lab.js';
import { eventually } from './servers.js';

/** Port of the listener. */
export const PORT = 6432;
const LINK = 7400;
const SECRET = '0123456789abcdef0123456789abcdef';

/** What differs between tests. */
export interface GatewayPairOptions {
  /** Room for so many clients. Default 120. */
  readonly clients?: number;
  /** What makes sure that a silent gateway writes no more: a lease in an etcd on a host of its own, or a command that says so. */
  readonly proof: 'etcd' | 'command';
  /** Of the lease, in ms. Default 3000; on a loaded machine a gateway with many clients cannot always renew one so short. */
  readonly ttl?: number;
  /** Clients, gateways and the floating address speak IPv6. */
  readonly six?: boolean;
  /** Added to the listener, to the cluster, and to the pair. */
  readonly listener?: object;
  readonly cluster?: object;
  readonly pair?: object;
}

/** Two gateways on the hosts `a` and `b`, in front of the lab's PostgreSQL pair; `a` has the address at first. */
export class GatewayPair {
  a!: GatewayProcess;
  b!: GatewayProcess;
  #etcd: Etcd | null = null;
  readonly #dead = new Set<'a' | 'b'>();
  readonly #place: PairLab;
  readonly #options: GatewayPairOptions;

  /** Use {@link startGateways}. */
  constructor(place: PairLab, options: GatewayPairOptions) {
    this.#place = place;
    this.#options = options;
  }

  /** The address that moves. */
  get address(): string {
    const { address, address6 } = this.#place.lab.floating();
    return this.#options.six ? address6 : address;
  }

  host(name: 'a' | 'b'): Host {
    return this.#place.lab.host(name);
  }

  /** The file that holds what both gateways know; a file, so that the command line finds it too. */
  get #secret(): string {
    return join(this.#place.lab.dir, 'pair.secret');
  }

  /** Called by {@link startGateways}. */
  async begin(): Promise<void> {
    const { lab } = this.#place;
    writeFileSync(this.#secret, SECRET, { mode: 0o600 });
    if (this.#options.proof === 'etcd') {
      const host = lab.host('etcd');
      this.#etcd = await startEtcd({ netns: host.netns, host: host.address });
      this.#place.atEnd(() => this.#etcd?.stop());
    }
    await Promise.all([this.start('a'), this.start('b')]);
    // What was sent before the address was here would be answered by nobody.
    await eventually(
      async () => {
        const [{ pair }, { pair: other }] = await Promise.all([this.a.status(), this.b.status()]);
        return pair.addresses[0].owner === 'a' && pair.link === 'up' && other.link === 'up';
      },
      { timeoutMs: 20_000, intervalMs: 50, message: 'the address is served' },
    );
  }

  /** What a power cut does to a gateway's host. It is rebooted when the test is over, if it was not before. */
  async crash(name: 'a' | 'b'): Promise<void> {
    const host = this.host(name);
    this.#dead.add(name);
    this.#place.atEnd(async () => {
      if (this.#dead.delete(name)) await host.reboot();
    });
    await host.crash();
  }

  /** Power is back, and the gateway starts anew. */
  async reboot(name: 'a' | 'b'): Promise<void> {
    this.#dead.delete(name);
    await this.host(name).reboot();
    await this.start(name);
  }

  /** Starts a gateway, also one that was there before. */
  async start(name: 'a' | 'b'): Promise<GatewayProcess> {
    const onEvent = (event: LogEvent) => {
      if (process.env.LOG) process.stderr.write(`${name} ${JSON.stringify(event)}\n`);
    };
    const started = await startGatewayIn(this.host(name), this.config(name), { onEvent });
    this.#place.atEnd(() => started.kill());
    if (name === 'a') this.a = started;
    else this.b = started;
    return started;
  }

  /** The configuration of a gateway. */
  config(name: 'a' | 'b'): object {
    const { clients = 120, six = false, ttl = 3000, listener, cluster, pair } = this.#options;
    const other = name === 'a' ? 'b' : 'a';
    const at = (host: Host) => (six ? `[${host.address6}]:${LINK}` : `${host.address}:${LINK}`);
    const front = configInFront(this.#place.pair, six ? `[::]:${PORT}` : `0.0.0.0:${PORT}`, clients);
    const host = this.host(name);
    return {
      listeners: front.listeners.map((one) => ({ ...one, ...listener })),
      clusters: front.clusters.map((one) => ({ ...one, ...cluster })),
      pair: {
        name,
        listen: at(host),
        peer: { name: other, address: at(this.host(other)) },
        secret: { file: this.#secret },
        ...(this.#etcd === null
          ? { fence: { plugin: 'command', command: ['true'] } }
          : { lease: { plugin: 'etcd', endpoints: this.#etcd.endpoints, ttl, prefix: '/outlive/test/' } }),
        addresses: [{ address: this.address, home: 'a', mover: { plugin: 'address-ip', interface: host.interface } }],
        ...pair,
      },
    };
  }

  /** Waits until the gateway that serves has so many sessions, and the other one could go on with every one of them. */
  async followed(owner: 'a' | 'b', sessions: number, timeoutMs = 20_000): Promise<void> {
    const other = owner === 'a' ? 'b' : 'a';
    let seen: unknown;
    await eventually(
      async () => {
        const [mine, theirs] = await Promise.all([this[owner].status(), this[other].status()]);
        const { replicas } = mine.pair;
        const { shadows } = theirs.pair;
        seen = { replicas, shadows };
        return (
          replicas.sessions === sessions &&
          replicas.followed === sessions &&
          shadows.total === sessions &&
          shadows.adoptable === sessions
        );
      },
      { timeoutMs, intervalMs: 50, message: `${sessions} sessions are followed` },
    ).catch((error: Error) => {
      throw new Error(`${error.message}: ${JSON.stringify(seen)}`);
    });
  }

  /** Waits until a gateway has taken the address over, and tells what its log says of that. */
  async took(name: 'a' | 'b', timeoutMs = 30_000): Promise<{ connections: number; lost: number; ms: number }> {
    const serving = ({ msg, address }: LogEvent) => msg === 'serving an address' && address === this.address;
    return (await this[name].event(serving, timeoutMs)) as unknown as { connections: number; lost: number; ms: number };
  }

  /** Says what a gateway counted of connections. */
  async counts(name: 'a' | 'b'): Promise<{ kept: number; reset: number; lastTakeoverMs: number }> {
    return (await this[name].status()).pair.counts;
  }
}

/** Starts a pair of gateways; they end with the test. */
export async function startGateways(place: PairLab, options: GatewayPairOptions): Promise<GatewayPair> {
  const gateways = new GatewayPair(place, options);
  await gateways.begin();
  return gateways;
}

/**
 * Makes the ledger's table tell who wrote into it: `writers` gets the host and the server process, and whether an earlier transaction of the
 * same client was over by then. That one is held by an advisory lock that ends with its transaction.
 * @param schema where the ledger is
 */
export async function watchWriters(query: (sql: string) => Promise<unknown>, schema = 'public'): Promise<void> {
  await query(`
    DROP TABLE IF EXISTS ${schema}.writers;
    CREATE TABLE ${schema}.writers (reference text, host text, pid int, alone boolean);
    CREATE OR REPLACE FUNCTION ${schema}.note_writer() RETURNS trigger LANGUAGE plpgsql AS $$
      BEGIN
        INSERT INTO ${schema}.writers VALUES (NEW.reference, host(inet_client_addr()), pg_backend_pid(),
          pg_try_advisory_xact_lock(hashtext(NEW.reference)));
        RETURN NULL;
      END $$;
    CREATE TRIGGER note_writer AFTER INSERT ON ${schema}.ledger FOR EACH ROW EXECUTE FUNCTION ${schema}.note_writer()`);
}

/** A row of `writers`. */
export interface Writer {
  readonly reference: string;
  /** Where the server's connection came from. */
  readonly host: string;
  readonly pid: number;
  readonly alone: boolean;
}
