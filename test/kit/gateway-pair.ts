import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { expect, onTestFailed } from 'vitest';
import type { ClientCounts, ClientHost, ClientReport } from '../../core/host/demo/lab/clients.js';
import type { Host } from '../../core/host/demo/lab/lab.js';
import { ownersOf, type Recording } from '../../core/host/demo/lab/runs.js';
import type { PairLab } from './pair-lab.js';
import { eventually } from './servers.js';
import { type GatewayPair, type GatewayPairOptions, PORT, startGateways } from './takeover.js';

export type Name = 'a' | 'b';

/** Waits until a gateway serves the address, and the other one follows all its sessions. */
export async function served(gateways: GatewayPair, by: Name, timeoutMs = 30_000): Promise<void> {
  let seen: unknown;
  await eventually(
    async () => {
      const { addresses, link, replicas, peer } = (await gateways[by].status()).pair;
      seen = { addresses, link, replicas };
      return link === 'up' && peer !== null && addresses[0].owner === by && replicas.followed === replicas.sessions;
    },
    { timeoutMs, intervalMs: 50, message: `${by} serves the address and is followed` },
  ).catch((error: Error) => {
    throw new Error(`${error.message}: ${JSON.stringify(seen)}`);
  });
}

/** Starts a pair that the command line can be used with; when the test fails, the last lines of both logs are shown. */
export async function startTakeover(place: PairLab, options: GatewayPairOptions): Promise<GatewayPair> {
  const file = join(place.lab.dir, 'pair.secret');
  writeFileSync(file, 'the secret that both gateways know', { mode: 0o600 });
  const gateways = await startGateways(place, { ...options, pair: { secret: { file }, ...options.pair } });
  onTestFailed(() => {
    for (const name of ['a', 'b'] as const) {
      process.stderr.write(`${name}:\n${gateways[name].tail.slice(-60).join('\n')}\n`);
    }
  });
  await served(gateways, 'a');
  return gateways;
}

/** Runs `outlive` with an order on a gateway's host. @returns what it printed; rejects when it fails */
export async function outlive(place: PairLab, gateways: GatewayPair, name: Name, ...order: string[]): Promise<string> {
  const args = [place.lab.path('core/host/bin.js'), ...order, '--config', gateways[name].file];
  return (await gateways.host(name).run(process.execPath, args)).stdout;
}

/** A program on a host that prints lines of JSON. */
export class Program {
  /** What it printed last. */
  // biome-ignore lint/suspicious/noExplicitAny: whatever the program of the test prints
  last: any = null;
  readonly #child: ReturnType<Host['spawn']>;
  readonly #closed: Promise<unknown>;

  /** @param text of an ES module, run in the directory of this package */
  constructor(place: PairLab, host: Host, text: string, args: readonly string[]) {
    this.#child = host.spawn(process.execPath, ['--input-type=module', '-e', text, ...args], {
      stdio: ['pipe', 'pipe', 'inherit'],
    });
    this.#child.stdin!.on('error', () => {});
    this.#closed = once(this.#child, 'close');
    place.atEnd(() => this.#child.kill('SIGKILL'));
    createInterface({ input: this.#child.stdout! }).on('line', (line) => {
      this.last = JSON.parse(line);
    });
  }

  /** Ends its input, which tells it to end. @returns what it printed last */
  // biome-ignore lint/suspicious/noExplicitAny: see `last`
  async finish(): Promise<any> {
    this.#child.stdin!.end();
    await this.#closed;
    return this.last;
  }
}

/**
 * Null when nobody spoke for the address but these owners one after the other: no packet of one of them was delivered after the first one of
 * the next. Else what was seen.
 */
export function notInTurn(recording: Recording, address: string, owners: readonly string[]): string | null {
  if (recording.missed > 0) return `${recording.missed} packets were not seen`;
  const seen = ownersOf(recording.delivered, address);
  if (seen.join() === owners.join()) return null;
  return `${seen.join()}: ${JSON.stringify(recording.delivered.filter(({ source }) => source === address))}`;
}

/** Clients of every kind at work over a pair, and what they must have seen in the end. */
export class Crowd {
  readonly clients: ClientHost;
  readonly #place: PairLab;
  readonly #gateways: GatewayPair;
  readonly #before: ClientReport;

  private constructor(place: PairLab, gateways: GatewayPair, clients: ClientHost, before: ClientReport) {
    this.#place = place;
    this.#gateways = gateways;
    this.clients = clients;
    this.#before = before;
  }

  /** Connects them, and waits until they are all followed and at work. */
  static async start(place: PairLab, gateways: GatewayPair, counts: ClientCounts = COUNTS): Promise<Crowd> {
    const clients = await place.clients(counts);
    const { address } = gateways;
    await clients.begin({
      counts,
      address,
      port: PORT,
      rows: 20_000,
      sleep: 1,
      think: { inside: 50, between: 20, stream: 300 },
    });
    await eventually(async () => (await clients.report()).transactions > 20, { timeoutMs: 30_000 });
    await served(gateways, 'a');
    return new Crowd(place, gateways, clients, await clients.report());
  }

  get connections(): number {
    return this.#before.connections.length;
  }

  /** Waits until every client that waits or works was answered after a moment. @returns the longest pause in ms */
  async answered(since: number, timeoutMs = 30_000): Promise<number> {
    try {
      return Math.max(...(await this.#place.pauses(this.clients, since, timeoutMs)));
    } catch (error) {
      const { a, b } = this.#gateways;
      // One of them may be frozen.
      const said = await Promise.all(
        [a, b].map((one) =>
          one.status().then(
            ({ listeners, clusters }) => JSON.stringify({ listeners, clusters }),
            ({ message }) => message,
          ),
        ),
      );
      throw new Error(`${(error as Error).message}\nWhat the gateways say:\n${said.join('\n')}`);
    }
  }

  /**
   * Lets them end. Each must be on its first connection, without an error, and the ledger must be exact.
   * @param timeoutMs as for {@link ClientHost.finish}
   */
  async unharmed(timeoutMs?: number): Promise<void> {
    await this.clients.probe();
    const report = await this.clients.finish(timeoutMs);
    expect(report).toMatchObject({ reconnects: 0, errors: [], wrongReads: [] });
    expect(report.connections.map(({ portNow }) => portNow)).toEqual(
      this.#before.connections.map(({ portBefore }) => portBefore),
    );
    expect(report.echoed).toBeGreaterThan(this.#before.echoed);
    expect(report.transactions).toBeGreaterThan(this.#before.transactions);
    expect(await this.#place.verdict(report)).toMatchObject({ right: true });
  }

  /** Lets them end. Each must have gone on without an error or have been reset, and the ledger must be exact. @returns how many were reset */
  async unharmedOrReset(): Promise<number> {
    await this.clients.probe();
    const report = await this.clients.finish();
    expect(report.errors.filter(({ message }) => !/ECONNRESET/.test(message))).toEqual([]);
    expect(report.wrongReads).toEqual([]);
    expect(await this.#place.verdict(report)).toMatchObject({ right: true });
    return report.errors.length;
  }
}

const COUNTS: ClientCounts = {
  idle: 2,
  transaction: 2,
  waiting: 1,
  result: 1,
  commit: 1,
  echo: 3,
  stream: 1,
  transfer: 6,
};
