import { once } from 'node:events';
import { connect, type Socket } from 'node:net';
import { afterEach, expect, it } from 'vitest';
import { type FakePostgres, startFakePostgres } from '../kit/fake-postgres.js';
import { gatewayConfig, message, startupPacket } from '../kit/gateway.js';
import { type GatewayProcess, spawnGateway } from '../kit/gateway-process.js';
import { eventually } from '../kit/servers.js';

const KIB = 1024;
const MIB = 1024 * KIB;
/** Connections that are made at the same time. */
const WAVE = 100;

let server: FakePostgres;
let gateway: GatewayProcess;
let sockets: Socket[] = [];

/** Lets a signal collect garbage and tell on the standard output what is left of the heap. */
const COLLECT = `process.on('SIGUSR2', () => { gc(); process.stdout.write(process.memoryUsage().heapUsed + '\\n'); })`;

async function start(nodeArgs: string[] = []): Promise<void> {
  server = await startFakePostgres();
  const config = gatewayConfig([{ port: server.port }], { listener: { limits: { clients: 5000 } } });
  // Nobody watches a server that would not understand the question.
  const clusters = config.clusters.map(({ monitor: _, ...cluster }) => cluster);
  gateway = await spawnGateway({ ...config, clusters }, { nodeArgs });
}
afterEach(async () => {
  for (const socket of sockets) socket.destroy();
  sockets = [];
  await gateway.stop();
  await server.stop();
});

const HELLO = startupPacket({ user: 'postgres', database: 'postgres' });
const QUERY = message('Q', 'SELECT 1\0');
const GOODBYE = message('X');

/** Says something and reads up to the ReadyForQuery that ends the answer. */
async function ask(socket: Socket, bytes: Buffer): Promise<void> {
  socket.write(bytes);
  for (;;) {
    const [chunk] = (await once(socket, 'data')) as [Buffer];
    if (chunk.at(-6) === 0x5a) return;
  }
}

async function open(): Promise<Socket> {
  const socket = connect({ host: '127.0.0.1', port: gateway.port });
  socket.on('error', () => {});
  sockets.push(socket);
  await once(socket, 'connect');
  await ask(socket, HELLO);
  return socket;
}

async function openMany(count: number): Promise<void> {
  for (let left = count; left > 0; left -= WAVE) await Promise.all(Array.from({ length: WAVE }, open));
}

/** Ends all sessions, in each way in which clients end them, and waits until both sides are rid of them. */
async function closeAll(): Promise<void> {
  sockets.forEach((socket, i) => {
    if (i % 3 === 0) socket.end(GOODBYE);
    else if (i % 3 === 1) socket.end();
    else socket.resetAndDestroy();
  });
  sockets = [];
  await eventually(async () => (await gateway.status()).listeners[0].clients === 0);
  await eventually(() => server.sessions === 0);
}

it('an idle session takes at most 40 KiB', { timeout: 120_000 }, async () => {
  const SESSIONS = 2000;
  await start();
  // What all sessions share is there before they are counted.
  await openMany(WAVE);
  await closeAll();
  const before = gateway.memory().now;
  await openMany(SESSIONS);
  expect(server.sessions).toBe(SESSIONS);
  const idle = (gateway.memory().now - before) / SESSIONS;
  for (let i = 0; i < SESSIONS; i += WAVE)
    await Promise.all(sockets.slice(i, i + WAVE).map((socket) => ask(socket, QUERY)));
  const used = (gateway.memory().now - before) / SESSIONS;
  const kib = (bytes: number) => (bytes / KIB).toFixed(1);
  console.log(`${SESSIONS} idle sessions: ${kib(idle)} KiB each after login, ${kib(used)} KiB each after a statement`);
  expect(idle).toBeLessThanOrEqual(40 * KIB);
  expect(used).toBeLessThanOrEqual(40 * KIB);
});

it('an open transaction keeps what it needs, and not the buffers in which it came', { timeout: 120_000 }, async () => {
  const SESSIONS = 100;
  const STATEMENTS = 64;
  await start();
  await openMany(SESSIONS);
  const busy = await open();
  const quiet = sockets.slice(0, SESSIONS);
  const noise = message('Q', `SELECT '${'x'.repeat(4000)}'\0`);
  await Promise.all(quiet.map((socket) => ask(socket, message('Q', 'BEGIN\0'))));
  for (let i = 0; i < 100; i++) await ask(busy, noise);
  const before = gateway.memory().now;
  // Between two statements of one session so much passes for others that no two of its chunks lie in the same buffer.
  for (let i = 0; i < STATEMENTS; i++) {
    for (const socket of quiet) {
      await ask(socket, QUERY);
      await ask(busy, noise);
    }
  }
  const each = (gateway.memory().now - before) / SESSIONS;
  console.log(`an open transaction of ${STATEMENTS} statements: ${(each / KIB).toFixed(1)} KiB`);
  // Fewer than 8 statements may still lie in shared buffers of 16 KiB, request and answer apart; the others take next to nothing.
  expect(each).toBeLessThan(8 * 2 * 16 * KIB);
});

it('10,000 sessions that came, asked once and left leave nothing behind', { timeout: 240_000 }, async () => {
  // In the resident memory alone a leak of some MiB could hide behind garbage, so here the heap is looked at as well.
  await start(['--expose-gc', '--import', `data:text/javascript,${encodeURIComponent(COLLECT)}`]);
  const look = async (): Promise<{ heap: number; resident: number }> => {
    const told = once(gateway.child.stdout!, 'data');
    process.kill(gateway.pid, 'SIGUSR2');
    return { heap: Number(((await told) as [Buffer])[0].toString()), resident: gateway.memory().now };
  };
  const waves = async (count: number): Promise<void> => {
    for (let i = 0; i < count; i++) {
      await openMany(WAVE);
      await Promise.all(sockets.map((socket) => ask(socket, QUERY)));
      await closeAll();
    }
  };
  await waves(20);
  const before = await look();
  await waves(80);
  const after = await look();
  const mib = ({ heap, resident }: typeof before) =>
    `heap ${(heap / MIB).toFixed(1)} MiB, resident ${(resident / MIB).toFixed(1)} MiB`;
  console.log(`after 2,000 sessions ${mib(before)}; after 10,000 ${mib(after)}`);
  // 128 bytes for each of the 8,000 in between: less than the smallest thing that a session consists of.
  expect(after.heap - before.heap).toBeLessThan(MIB);
  // Outside of the heap, where garbage comes and goes: less than a read buffer of every tenth.
  expect(after.resident - before.resident).toBeLessThan(40 * MIB);
  const { listeners, clusters, stats } = await gateway.status();
  expect(listeners).toMatchObject([{ clients: 0, greetings: 0, cancelKeys: 0, states: {} }]);
  expect(clusters).toMatchObject([{ waiting: 0, spares: 0, servers: [{ logins: { running: 0, waiting: 0 } }] }]);
  expect(stats.requests).toBe(10_000);
});
