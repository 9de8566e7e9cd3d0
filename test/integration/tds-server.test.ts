import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { selfSignedCert, usePair } from '../kit/servers.js';
import { TdsClient } from '../kit/tds.js';
import { type TdsOptions, TdsServer } from '../servers/tds/server.js';

const holder = usePair();
const tls = selfSignedCert();
const servers: TdsServer[] = [];
const clients: TdsClient[] = [];

/** A server in front of the primary. */
async function serve(options: Partial<TdsOptions> = {}): Promise<TdsServer> {
  const { host, port } = holder.pair.primary;
  const server = await TdsServer.start({
    pg: { host, port, user: 'postgres', database: 'postgres' },
    tls,
    ...options,
  });
  servers.push(server);
  return server;
}

async function client(server: TdsServer, options: Parameters<typeof TdsClient.connect>[1] = {}): Promise<TdsClient> {
  const made = await TdsClient.connect(server.port, options);
  clients.push(made);
  return made;
}

afterEach(() => {
  for (const one of clients.splice(0)) one.connection.close();
});

afterAll(async () => {
  for (const server of servers) await server.stop();
});

describe('a session', () => {
  let server: TdsServer;
  beforeAll(async () => {
    server = await serve();
  });

  it('logs in and selects', async () => {
    const c = await client(server);
    expect((await c.batch('SELECT 1 AS One')).rows).toEqual([{ One: 1 }]);
    expect((await c.sql('SELECT 1')).rows).toEqual([{ 0: 1 }]);
  });
});
