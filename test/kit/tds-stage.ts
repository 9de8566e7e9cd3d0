import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll } from 'vitest';
import tds from '../../codecs/tds/index.js';
import { type TdsOptions, TdsServer } from '../servers/tds/server.js';
import { type FaultProxy, startFaultProxy } from './fault-proxy.js';
import { type GatewayOverrides, launchGateway, type TestGateway } from './gateway.js';
import { restorePair, selfSignedCert, tempDir, usePair } from './servers.js';
import { TdsClient } from './tds.js';

/** A pair of PostgreSQL servers, a TDS server before each, a gateway before both, and its clients. */
export interface TdsStage {
  readonly gateway: TestGateway;
  readonly pair: ReturnType<typeof usePair>['pair'];
  /** The TDS server before the PostgreSQL that takes writes. */
  readonly primary: TdsServer;
  /** The other one. */
  readonly standby: TdsServer;
  /** What stands between the gateway and {@link primary}, where the stage is `proxied`. */
  readonly proxy: FaultProxy;
  /** The same before {@link standby}. */
  readonly nextProxy: FaultProxy;
  /** A client of the gateway. */
  connect(
    ...args: Parameters<typeof TdsClient.connect> extends [number, ...infer Rest] ? Rest : never
  ): Promise<TdsClient>;
  /** A client of the TDS server that takes writes. */
  direct(): Promise<TdsClient>;
  /** Kills the primary and promotes the standby. */
  kill(): Promise<void>;
}

/** Makes the table of rows that prove commits, as `outlive setup` does, on the server that takes writes. */
export async function setUpMarks(of: TdsStage | { readonly port: number }, database = 'app'): Promise<void> {
  const { port } = 'primary' in of ? of.primary : of;
  const client = await TdsClient.connect(port, { database });
  for (const statement of tds.markers!.setup(tds.markers!.defaultTable, 'sa')) await client.batch(statement);
  await client.close();
}

/** What a test wants different from a plain gateway with the codec. */
export type TdsOverrides = GatewayOverrides & { readonly serverTls?: 'off' | 'prefer' | 'require' };

/** Starts a gateway with the codec before these servers, by their names; the caller stops it. */
export function launchTdsGateway(
  servers: ReadonlyMap<string, { readonly port: number }>,
  overrides: TdsOverrides = {},
): Promise<TestGateway> {
  const password = join(tempDir(), 'monitor');
  writeFileSync(password, 'Outlive.1', { mode: 0o600 });
  const { listener, cluster, serverTls = 'off', ...rest } = overrides;
  return launchGateway(
    [...servers].map(([name, { port }]) => ({ name, port, tls: serverTls })),
    {
      listener: { codec: 'tds', ...listener },
      cluster: {
        ...cluster,
        monitor: { database: 'app', password: { file: password }, interval: '200ms', user: 'sa', ...cluster?.monitor },
      },
      ...rest,
    },
  );
}

/**
 * Gives the file a stage; it is whole again after each test.
 * @param overrides.proxied the gateway reaches each server through a proxy that a test can give orders
 */
export function useTdsStage(
  options: Partial<TdsOptions> = {},
  { proxied = false, ...overrides }: TdsOverrides & { readonly proxied?: boolean } = {},
): TdsStage {
  const holder = usePair();
  const servers = new Map<string, TdsServer>();
  const proxies = new Map<string, FaultProxy>();
  const clients: TdsClient[] = [];
  let gateway: TestGateway | undefined;

  beforeAll(async () => {
    const { pair } = holder;
    const tls = selfSignedCert();
    for (const { name, host, port } of [pair.primary, pair.standby]) {
      const pg = { host, port, user: 'postgres', database: 'postgres' };
      const server = await TdsServer.start({ name, tls, pg, ...options });
      servers.set(name, server);
      if (proxied) proxies.set(name, await startFaultProxy({ target: { host: '127.0.0.1', port: server.port } }));
    }
    gateway = await launchTdsGateway(proxied ? proxies : servers, overrides);
  });

  afterEach(async () => {
    for (const client of clients.splice(0)) client.connection.close();
    await restorePair(holder.pair);
  });

  afterAll(async () => {
    await gateway?.stop();
    for (const proxy of proxies.values()) await proxy.close();
    for (const server of servers.values()) await server.stop();
  });

  const keep = (client: TdsClient): TdsClient => {
    clients.push(client);
    return client;
  };
  return {
    get gateway() {
      return gateway!;
    },
    get pair() {
      return holder.pair;
    },
    get primary() {
      return servers.get(holder.pair.primary.name)!;
    },
    get standby() {
      return servers.get(holder.pair.standby.name)!;
    },
    get proxy() {
      return proxies.get(holder.pair.primary.name)!;
    },
    get nextProxy() {
      return proxies.get(holder.pair.standby.name)!;
    },
    connect: async (...args) => keep(await TdsClient.connect(gateway!.port, ...args)),
    direct: async () => keep(await TdsClient.connect(servers.get(holder.pair.primary.name)!.port)),
    kill: async () => {
      await holder.pair.failover({ how: 'kill' });
    },
  };
}
