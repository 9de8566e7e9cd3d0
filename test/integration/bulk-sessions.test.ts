import { once } from 'node:events';
import { connect, type Socket } from 'node:net';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { type FakePostgres, startFakePostgres } from '../kit/fake-postgres.js';
import { gatewayConfig, message, startupPacket } from '../kit/gateway.js';
import { type GatewayProcess, spawnGateway } from '../kit/gateway-process.js';
import { eventually } from '../kit/servers.js';

const KIB = 1024;
const SESSIONS = 2000;
const WAVE = 100;

let server: FakePostgres;
let gateway: GatewayProcess;

beforeAll(async () => {
  server = await startFakePostgres();
  gateway = await spawnGateway(withoutMonitor(server.port));
});
afterAll(async () => {
  await gateway?.stop();
  await server?.stop();
});

/** Nobody watches a server that knows no catalogue. */
function withoutMonitor(port: number) {
  const config = gatewayConfig([{ port }], { listener: { limits: { clients: 3 * SESSIONS } } });
  return { ...config, clusters: config.clusters.map(({ monitor: _, ...cluster }) => cluster) };
}

const HELLO = startupPacket({ user: 'postgres', database: 'postgres' });

/** Opens a session, and with `query` runs one statement. Resolves when the server is ready (again). */
async function open(query?: string): Promise<Socket> {
  const socket = connect({ host: '127.0.0.1', port: gateway.port });
  await once(socket, 'connect');
  const ready = async () => {
    for (;;) {
      const [chunk] = (await once(socket, 'data')) as [Buffer];
      if (chunk.length >= 6 && chunk[chunk.length - 6] === 0x5a) return;
    }
  };
  socket.write(HELLO);
  await ready();
  if (query !== undefined) {
    socket.write(message('Q', `${query}\0`));
    await ready();
  }
  return socket;
}

async function openMany(count: number, query?: string): Promise<Socket[]> {
  const sockets: Socket[] = [];
  for (let i = 0; i < count; i += WAVE) sockets.push(...(await Promise.all(Array.from({ length: WAVE }, () => open(query)))));
  return sockets;
}

async function closeAll(sockets: Socket[]): Promise<void> {
  for (const socket of sockets) socket.end(message('X'));
  await eventually(async () => (await gateway.status()).listeners[0].clients === 0);
  await eventually(() => server.sessions === 0);
}

it('holds idle', async () => {
  await closeAll(await openMany(WAVE, 'select 1'));
  for (let i = 0; i < 3; i++) {
    const before = gateway.memory().now;
    const sockets = await openMany(SESSIONS, process.env.Q);
    const after = gateway.memory().now;
    console.log(before / 1048576, after / 1048576, (after - before) / SESSIONS / KIB);
    await new Promise((r) => setTimeout(r, 2000));
    console.log('later', (gateway.memory().now - before) / SESSIONS / KIB);
    await closeAll(sockets);
  }
}, 300_000);
