import type pg from 'pg';
import { afterAll, afterEach, beforeAll } from 'vitest';
import {
  type EmbeddedClient,
  type EmbeddedOptions,
  type EmbeddedPair,
  startPair,
} from '../../plugins/embedded-postgres/index.js';
import { type FaultConnection, type FaultProxy, startFaultProxy } from './fault-proxy.js';
import {
  connectPg,
  type GatewayOverrides,
  launchGateway,
  type PgClient,
  RawClient,
  recordingLog,
  type TestGateway,
} from './gateway.js';
import { eventually, restorePair } from './servers.js';

export interface FrontGateway extends TestGateway {
  readonly log: ReturnType<typeof recordingLog>;
}

/** A pair of servers with a fault proxy before each; every test starts the gateway that it wants in front of them. */
export class Front {
  pair!: EmbeddedPair;
  /** Sees what gateways send to a server, by the server's name. */
  onClientBytes: ((server: string, chunk: Buffer, connection: FaultConnection) => void) | null = null;
  /** Sees what a server sends to gateways. */
  onServerBytes: ((server: string, chunk: Buffer, connection: FaultConnection) => void) | null = null;
  readonly #proxies = new Map<string, FaultProxy>();
  #ends: (() => unknown)[] = [];

  /** Called by {@link useFront}. */
  async begin(options: EmbeddedOptions, setup: string): Promise<void> {
    this.pair = await startPair(options);
    for (const server of [this.pair.primary, this.pair.standby]) {
      const { name, host, port } = server;
      const proxy = await startFaultProxy({
        target: { host, port },
        onClientBytes: (chunk, connection) => this.onClientBytes?.(name, chunk, connection),
        onServerBytes: (chunk, connection) => this.onServerBytes?.(name, chunk, connection),
      });
      this.#proxies.set(name, proxy);
    }
    if (setup !== '') await this.pair.primary.query(setup);
  }

  async end(): Promise<void> {
    for (const proxy of this.#proxies.values()) await proxy.close();
    await this.pair?.stop();
  }

  /** Ends what the test made, and heals the rest. */
  async restore(): Promise<void> {
    for (const end of this.#ends.splice(0).reverse()) await end();
    this.onClientBytes = null;
    this.onServerBytes = null;
    for (const proxy of this.#proxies.values()) await proxy.heal();
    await restorePair(this.pair);
  }

  /** Called when the test is over. */
  atEnd(end: () => unknown): void {
    this.#ends.push(end);
  }

  /** The proxy before the server that takes writes. */
  get proxy(): FaultProxy {
    return this.#proxies.get(this.pair.primary.name)!;
  }

  /** The proxy before the other server. */
  get nextProxy(): FaultProxy {
    return this.#proxies.get(this.pair.standby.name)!;
  }

  /** A gateway in front of the proxies, for this test. */
  async gateway(overrides: GatewayOverrides = {}): Promise<FrontGateway> {
    const log = recordingLog();
    const addresses = [...this.#proxies].map(([name, { port }]) => ({ name, port }));
    const made = await launchGateway(addresses, {
      log,
      ...overrides,
      cluster: {
        ...overrides.cluster,
        monitor: { user: 'postgres', interval: '100ms', ...overrides.cluster?.monitor },
      },
    });
    this.atEnd(() => made.stop());
    this.atEnd(() => {
      if (process.env.LOG) for (const line of log.lines) console.log(JSON.stringify(line));
    });
    return Object.assign(Object.create(made) as TestGateway, { log });
  }

  /** A client of the pg driver; ended with the test. */
  async pg(to: { readonly port: number }, config: pg.ClientConfig = {}): Promise<PgClient> {
    const client = await connectPg(to, config);
    this.atEnd(() =>
      (client as unknown as { connection: { stream: { destroy(): void } } }).connection.stream.destroy(),
    );
    return client;
  }

  async raw(to: { readonly port: number }, params: Record<string, string> = {}): Promise<RawClient> {
    const client = await RawClient.login(to, { params });
    this.atEnd(() => client.destroy());
    return client;
  }

  /** A connection to the present primary, past proxy and gateway. */
  async direct(): Promise<EmbeddedClient> {
    const client = await this.pair.primary.connect();
    this.atEnd(() => client.end());
    return client;
  }

  /** Kills the primary, promotes the standby. What the proxy still holds of the dead server is lost with it. */
  async failover(): Promise<void> {
    const old = this.proxy;
    await this.pair.failover({ how: 'kill' });
    old.cut();
  }

  /** The server's connection that a session is on: the one that has brought these bytes to the server. */
  async connectionOf(run: () => Promise<unknown>, mark: string): Promise<FaultConnection> {
    const found = this.proxy.waitFor('client', (bytes) => bytes.includes(mark));
    await run();
    return found;
  }

  /** Waits until the standby has all that the primary has written so far. */
  async replicated(): Promise<void> {
    const { rows } = await this.pair.primary.query<{ lsn: string }>('select pg_current_wal_lsn()::text as lsn');
    const there = `select where pg_last_wal_replay_lsn() >= '${rows[0].lsn}'`;
    await eventually(async () => (await this.pair.standby.query(there)).rows.length > 0, { message: 'the standby' });
  }

  /** Waits until a query on the present primary, past proxy and gateway, brings a row. */
  async appears(sql: string): Promise<void> {
    await eventually(async () => (await this.pair.primary.query(sql)).rows.length > 0, { message: sql });
  }
}

/** Gives the file a front. Each test begins on a healthy pair without gateways. */
export function useFront(options: EmbeddedOptions = {}, setup = ''): Front {
  const front = new Front();
  beforeAll(() => front.begin(options, setup));
  afterEach(() => front.restore());
  afterAll(() => front.end());
  return front;
}

/** What the driver's errors hold of the server's ErrorResponse. */
export type DatabaseError = Error & { readonly code?: string; readonly detail?: string };

/** The error that a promise ends with; fails when there is none. */
export async function errorOf(promise: Promise<unknown>): Promise<DatabaseError> {
  try {
    await promise;
  } catch (error) {
    return error as DatabaseError;
  }
  throw new Error('no error came');
}
