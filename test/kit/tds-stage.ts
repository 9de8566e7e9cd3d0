import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll } from 'vitest';
import tds from '../../codecs/tds/index.js';
import { type TdsOptions, TdsServer } from '../servers/tds/server.js';
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
  /** A client of the gateway. */
  connect(
    ...args: Parameters<typeof TdsClient.connect> extends [number, ...infer Rest] ? Rest : never
  ): Promise<TdsClient>;
  /** A client of the TDS server that takes writes. */
  direct(): Promise<TdsClient>;
  /** Kills the primary and promotes the standby. */
  kill(): Promise<void>;
}

/** Makes the table of rows that prove commits, as `outlive setup` does. */
export async function setUpMarks({ primary }: TdsStage, database = 'app'): Promise<void> {
  const client = await TdsClient.connect(primary.port, { database });
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
        monitor: { user: 'sa', database: 'app', password: { file: password }, interval: '200ms' },
        ...cluster,
      },
      ...rest,
    },
  );
}

/** Gives the file a stage; it is whole again after each test. */
export function useTdsStage(options: Partial<TdsOptions> = {}, overrides: TdsOverrides = {}): TdsStage {
  const holder = usePair();
  const servers = new Map<string, TdsServer>();
  const clients: TdsClient[] = [];
  let gateway: TestGateway | undefined;

  beforeAll(async () => {
    const { pair } = holder;
    const tls = selfSignedCert();
    for (const { name, host, port } of [pair.primary, pair.standby]) {
      const pg = { host, port, user: 'postgres', database: 'postgres' };
      servers.set(name, await TdsServer.start({ name, tls, pg, ...options }));
    }
    gateway = await launchTdsGateway(servers, overrides);
  });

  afterEach(async () => {
    for (const client of clients.splice(0)) client.connection.close();
    await restorePair(holder.pair);
  });

  afterAll(async () => {
    await gateway?.stop();
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
    connect: async (...args) => keep(await TdsClient.connect(gateway!.port, ...args)),
    direct: async () => keep(await TdsClient.connect(servers.get(holder.pair.primary.name)!.port)),
    kill: async () => {
      await holder.pair.failover({ how: 'kill' });
    },
  };
}
