import { randomBytes } from 'node:crypto';
import { rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { CodedError } from '../../../contract/index.js';
import { type GatewayProcess, type LogEvent, startGatewayIn } from './gateway.js';
import type { Host, Lab } from './lab.js';

/** How two gateways are started. */
export interface TwinsOptions {
  /** Their hosts; the first one is the home of the address. */
  readonly hosts: readonly [Host, Host];
  /** The address that clients connect to. */
  readonly address: string;
  /** `listeners` and `clusters` of both configurations. */
  readonly front: object;
  /** Over the `pair` section of both. */
  readonly pair?: Readonly<Record<string, unknown>>;
  /** Gets each line of their logs. */
  readonly onEvent?: (host: Host, event: LogEvent) => void;
}

/** A takeover, as the log of the gateway that did it tells of it. */
export interface Takeover {
  readonly connections: number;
  readonly lost: number;
  /** From the decision until the neighbours were told. */
  readonly ms: number;
  /** When that was over, in ms since the epoch. */
  readonly at: number;
}

const LINK_PORT = 7400;
const POLL_MS = 20;

/**
 * Two gateways that follow each other, on two hosts of a lab. They fence by a command that succeeds only for a host that {@link crash} killed:
 * a gateway that is merely slow is never taken over.
 */
export class Twins {
  readonly #options: TwinsOptions;
  readonly #secret = randomBytes(16).toString('hex');
  readonly #gateways = new Map<Host, GatewayProcess>();

  private constructor(options: TwinsOptions) {
    this.#options = options;
  }

  /** Starts both, and waits until the first one serves and follows nobody. Rejects with OUTLIVE_LAB_FAILED. */
  static async start(options: TwinsOptions): Promise<Twins> {
    const twins = new Twins(options);
    try {
      await Promise.all(options.hosts.map((host) => twins.#start(host)));
      await twins.#until(
        () => twins.owner(),
        (owner) => owner === options.hosts[0],
      );
      await twins.followed(options.hosts[0]);
      return twins;
    } catch (error) {
      await twins.kill();
      throw error;
    }
  }

  /** The gateway on a host. */
  gateway(host: Host): GatewayProcess {
    return this.#gateways.get(host)!;
  }

  /** The other one of the two hosts. */
  other(host: Host): Host {
    const [one, two] = this.#options.hosts;
    return host === one ? two : one;
  }

  /** The host whose gateway serves the address; null while neither does. */
  async owner(): Promise<Host | null> {
    for (const [host, gateway] of this.#gateways) {
      if (gateway.running && (await gateway.status()).pair.addresses[0].owner === host.name) return host;
    }
    return null;
  }

  /** Waits until the other gateway follows every session on this host and could go on with it. Rejects with OUTLIVE_LAB_FAILED. */
  async followed(host: Host, timeoutMs = 60_000): Promise<void> {
    await this.#until(
      async () => {
        const { link, replicas } = (await this.gateway(host).status()).pair;
        const { shadows } = (await this.gateway(this.other(host)).status()).pair;
        return { link, replicas, shadows };
      },
      ({ link, replicas, shadows }) =>
        link === 'up' && replicas.followed === replicas.sessions && shadows.adoptable >= replicas.sessions,
      timeoutMs,
    );
  }

  /** A power cut: the other gateway takes over. Resolves when the host is dead, in ms since the epoch when it fell silent. */
  async crash(host: Host): Promise<number> {
    writeFileSync(this.#mark(host.name), '');
    const at = Date.now();
    await host.crash();
    return at;
  }

  /** Waits until the gateway on this host has taken the address over since a moment. Rejects with OUTLIVE_LAB_FAILED. */
  async taken(host: Host, since: number, timeoutMs = 60_000): Promise<Takeover> {
    const event = await this.gateway(host).event(
      ({ msg, time }) => msg === 'serving an address' && Date.parse(String(time)) >= since,
      timeoutMs,
    );
    const { connections, lost, ms, time } = event as unknown as Takeover & { time: string };
    return { connections, lost, ms, at: Date.parse(time) };
  }

  /** Power is back: the host and its gateway start anew. Resolves when it is linked to the other one, which goes on serving. */
  async reboot(host: Host): Promise<void> {
    await host.reboot();
    rmSync(this.#mark(host.name), { force: true });
    await this.#start(host);
    await this.#until(
      async () => (await this.gateway(host).status()).pair.link,
      (link) => link === 'up',
    );
  }

  /** The last lines that both logged, under their names. */
  logs(): string {
    return [...this.#gateways].map(([{ name }, { tail }]) => `${name}:\n${tail.slice(-30).join('\n')}`).join('\n');
  }

  /** Ends both at once. */
  async kill(): Promise<void> {
    await Promise.all([...this.#gateways.values()].map((gateway) => gateway.kill()));
  }

  get #lab(): Lab {
    return this.#options.hosts[0].lab;
  }

  /** The file that says that a host is dead. */
  #mark(name: string): string {
    return join(this.#lab.dir, `dead-${name}`);
  }

  async #start(host: Host): Promise<void> {
    const { hosts, address, front, pair, onEvent } = this.#options;
    const peer = this.other(host);
    const config = {
      ...front,
      pair: {
        name: host.name,
        listen: `${host.address}:${LINK_PORT}`,
        peer: { name: peer.name, address: `${peer.address}:${LINK_PORT}` },
        secret: { env: 'OUTLIVE_PAIR_SECRET' },
        fence: { plugin: 'command', command: ['test', '-e', this.#mark('{server}')] },
        addresses: [{ address, home: hosts[0].name, mover: { plugin: 'address-ip', interface: host.interface } }],
        ...pair,
      },
    };
    const env = { OUTLIVE_PAIR_SECRET: this.#secret };
    const gateway = await startGatewayIn(host, config, { env, onEvent: (event) => onEvent?.(host, event) });
    this.#gateways.set(host, gateway);
  }

  async #until<T>(ask: () => Promise<T>, good: (value: T) => boolean, timeoutMs = 30_000): Promise<void> {
    const deadline = performance.now() + timeoutMs;
    for (;;) {
      const seen = await ask().catch((error: Error) => error);
      if (!(seen instanceof Error) && good(seen)) return;
      if (performance.now() > deadline) {
        const last = seen instanceof Error ? seen.message : JSON.stringify(seen);
        throw new CodedError(
          'OUTLIVE_LAB_FAILED',
          'system',
          `the two gateways are not as they should be after ${timeoutMs} ms: ${last}\n${this.logs()}`,
        );
      }
      await sleep(POLL_MS);
    }
  }
}
