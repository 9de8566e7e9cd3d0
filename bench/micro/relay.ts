/**
 * What the wire layer costs: a relay that only passes bytes on, once over `RawWire`, once over `StreamWire`, once over plain
 * `net` sockets, in interleaved rounds. Prints transactions per second, the relay's CPU time per transaction, bulk
 * throughput, and the ratios to the plain relay with their spread.
 *
 * `node dist/bench/micro/relay.js [rounds] [seconds]`; with pgbench and a PostgreSQL server at hand it drives those, else
 * a small request/answer load of its own.
 */
import { type ChildProcess, execFile, execFileSync, fork, spawn } from 'node:child_process';
import { chownSync, existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import * as net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { passBytes } from '../peers/bare.js';

const KINDS = ['plain', 'stream', 'raw'] as const;
type Kind = (typeof KINDS)[number];

const CLIENTS = 16;
const BULK_ROWS = 300_000;
const ROW = 1000;
const NOBODY = 65534;
const run = promisify(execFile);

// ------------------------------------------------------------------------------------------------------------- the relay

function plainRelay(target: number): Promise<number> {
  const server = net.createServer({ noDelay: true }, (client) => {
    const upstream = net.connect({ port: target, host: '127.0.0.1', noDelay: true });
    for (const [from, to] of [
      [client, upstream],
      [upstream, client],
    ]) {
      from.on('data', (chunk) => {
        if (!to.write(chunk)) from.pause();
      });
      to.on('drain', () => from.resume());
      from.on('close', () => to.destroy());
      from.on('error', () => to.destroy());
    }
  });
  return new Promise((resolve) => {
    server.listen(0, '127.0.0.1', () => resolve((server.address() as net.AddressInfo).port));
  });
}

async function relay(kind: Kind, target: number): Promise<void> {
  const port = kind === 'plain' ? await plainRelay(target) : await passBytes({ host: '127.0.0.1', port: target }, 0);
  process.on('message', () => process.send?.({ cpu: process.cpuUsage() }));
  process.on('disconnect', () => process.exit());
  process.send?.({ port });
}

interface Running {
  readonly port: number;
  readonly child: ChildProcess;
  /** CPU microseconds so far: all, and those spent outside the kernel. */
  cpu(): Promise<{ all: number; user: number }>;
}

async function start(kind: Kind, target: number): Promise<Running> {
  const child = fork(fileURLToPath(import.meta.url), ['--relay', kind, String(target)], {
    env: { ...process.env, OUTLIVE_IO: kind === 'stream' ? 'stream' : '' },
  });
  const message = <T>(): Promise<T> => new Promise((resolve) => child.once('message', resolve));
  const { port } = await message<{ port: number }>();
  const cpu = async (): Promise<{ all: number; user: number }> => {
    const answer = message<{ cpu: NodeJS.CpuUsage }>();
    child.send('cpu');
    const { cpu } = await answer;
    return { all: cpu.user + cpu.system, user: cpu.user };
  };
  return { port, child, cpu };
}

// -------------------------------------------------------------------------------------------------------------- the load

interface Load {
  readonly name: string;
  readonly target: number;
  /** Runs small transactions and says how many a second there were, and how many at all. */
  small(port: number, seconds: number): Promise<{ tps: number; count: number }>;
  /** Fetches much, and says how many bytes a second there were. */
  bulk(port: number): Promise<number>;
  stop(): Promise<void>;
}

function serverBinaries(): string | null {
  const places: string[] = [];
  const system = '/usr/lib/postgresql';
  if (existsSync(system)) for (const version of readdirSync(system)) places.push(join(system, version, 'bin'));
  return places.find((place) => existsSync(join(place, 'initdb')) && existsSync(join(place, 'postgres'))) ?? null;
}

async function postgresLoad(bin: string): Promise<Load> {
  const place = mkdtempSync(join(tmpdir(), 'outlive-relay-'));
  const data = join(place, 'data');
  const root = process.getuid?.() === 0;
  const owner = root ? { uid: NOBODY, gid: NOBODY } : {};
  if (root) chownSync(place, NOBODY, NOBODY);
  const target = await freePort();
  const quiet = { ...owner, cwd: place, stdio: 'ignore' as const };
  execFileSync(join(bin, 'initdb'), ['-D', data, '-U', 'bench', '-A', 'trust', '-N'], quiet);
  const settings = [`port=${target}`, 'listen_addresses=127.0.0.1', `unix_socket_directories=${place}`, 'fsync=off'];
  const server = spawn(join(bin, 'postgres'), ['-D', data, ...settings.flatMap((setting) => ['-c', setting])], quiet);
  const there = ['-h', '127.0.0.1', '-U', 'bench'];
  for (let tries = 0; ; tries++) {
    try {
      await run('pgbench', ['-i', '-q', '-s', '1', '-p', String(target), ...there, 'postgres']);
      break;
    } catch (error) {
      if (tries === 40) throw error;
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }
  return {
    name: `pgbench -S -M prepared -c ${CLIENTS} -j 1`,
    target,
    small: async (port, seconds) => {
      const how = ['-n', '-S', '-M', 'prepared', '-c', String(CLIENTS), '-j', '1', '-T', String(seconds)];
      const { stdout } = await run('pgbench', [...how, '-p', String(port), ...there, 'postgres']);
      const tps = Number(/tps = ([\d.]+)/.exec(stdout)?.[1]);
      const count = Number(/actually processed: (\d+)/.exec(stdout)?.[1]);
      return { tps, count };
    },
    bulk: async (port) => {
      const rows = `copy (select repeat('x', ${ROW - 1}) from generate_series(1, ${BULK_ROWS})) to stdout`;
      const started = performance.now();
      await new Promise<void>((resolve, reject) => {
        const psql = spawn('psql', ['-p', String(port), ...there, '-c', rows, 'postgres'], { stdio: 'ignore' });
        psql.on('exit', (code) => (code === 0 ? resolve() : reject(new Error(`psql ended with ${code}`))));
      });
      return (BULK_ROWS * ROW) / ((performance.now() - started) / 1000);
    },
    stop: async () => {
      const gone = new Promise((resolve) => server.once('exit', resolve));
      server.kill('SIGINT');
      await gone;
      rmSync(place, { recursive: true, force: true });
    },
  };
}

async function freePort(): Promise<number> {
  const probe = net.createServer();
  await new Promise<void>((resolve) => probe.listen(0, '127.0.0.1', resolve));
  const { port } = probe.address() as net.AddressInfo;
  await new Promise((resolve) => probe.close(resolve));
  return port;
}

/** Requests of 60 bytes answered by 100; a request that begins with 1 is answered by a megabyte, many times over. */
async function ownLoad(): Promise<Load> {
  const answer = Buffer.alloc(100, 2);
  const block = Buffer.alloc(1 << 20, 3);
  const blocks = Math.ceil((BULK_ROWS * ROW) / block.length);
  const server = net.createServer({ noDelay: true }, (socket) => {
    socket.on('error', () => {});
    socket.on('data', (data) => {
      if (data[0] !== 1) {
        socket.write(answer);
        return;
      }
      let left = blocks;
      const more = (): void => {
        while (left-- > 0) if (!socket.write(block)) return;
      };
      socket.on('drain', more);
      more();
    });
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const open = (port: number): net.Socket => net.connect({ port, host: '127.0.0.1', noDelay: true });
  return {
    name: `requests of 60 bytes, answers of 100, ${CLIENTS} clients`,
    target: (server.address() as net.AddressInfo).port,
    small: async (port, seconds) => {
      const request = Buffer.alloc(60);
      let count = 0;
      const clients = Array.from({ length: CLIENTS }, () => {
        const socket = open(port);
        let got = 0;
        socket.on('data', (data) => {
          got += data.length;
          if (got < answer.length) return;
          got = 0;
          count++;
          socket.write(request);
        });
        socket.write(request);
        return socket;
      });
      await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
      for (const socket of clients) socket.destroy();
      return { tps: count / seconds, count };
    },
    bulk: async (port) => {
      const started = performance.now();
      let left = blocks * block.length;
      await new Promise<void>((resolve) => {
        const socket = open(port);
        socket.on('data', (data) => {
          left -= data.length;
          if (left > 0) return;
          socket.destroy();
          resolve();
        });
        socket.write(Buffer.alloc(60, 1));
      });
      return (blocks * block.length) / ((performance.now() - started) / 1000);
    },
    stop: async () => {
      server.close();
    },
  };
}

// ------------------------------------------------------------------------------------------------------------ the rounds

function spread(values: number[]): string {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted[Math.floor(sorted.length / 2)];
  return `${middle.toFixed(2)} (${sorted[0].toFixed(2)}..${sorted[sorted.length - 1].toFixed(2)})`;
}

async function main(): Promise<void> {
  const rounds = Number(process.argv[2] ?? 5);
  const seconds = Number(process.argv[3] ?? 3);
  const bin = serverBinaries();
  const load = bin !== null && existsSync('/usr/bin/pgbench') ? await postgresLoad(bin) : await ownLoad();
  console.log(`${load.name}; ${rounds} rounds of ${seconds} s`);
  const relays = new Map<Kind, Running>();
  try {
    for (const kind of KINDS) relays.set(kind, await start(kind, load.target));
    for (const { port } of relays.values()) await load.small(port, 1);
    const tps = new Map<Kind, number[]>(KINDS.map((kind) => [kind, []]));
    const cost = new Map<Kind, number[]>(KINDS.map((kind) => [kind, []]));
    const user = new Map<Kind, number[]>(KINDS.map((kind) => [kind, []]));
    const bulk = new Map<Kind, number[]>(KINDS.map((kind) => [kind, []]));
    for (let round = 0; round < rounds; round++) {
      const direct = await load.small(load.target, Math.min(1, seconds));
      const line = [`round ${round + 1}: direct ${Math.round(direct.tps)}/s`];
      for (let turn = 0; turn < KINDS.length; turn++) {
        // Every kind is first, second and last equally often.
        const kind = KINDS[(turn + round) % KINDS.length];
        const { port, cpu } = relays.get(kind)!;
        const before = await cpu();
        const small = await load.small(port, seconds);
        const after = await cpu();
        const micros = (after.all - before.all) / small.count;
        const inUser = (after.user - before.user) / small.count;
        const bytes = await load.bulk(port);
        tps.get(kind)!.push(small.tps);
        cost.get(kind)!.push(micros);
        user.get(kind)!.push(inUser);
        bulk.get(kind)!.push(bytes);
        line.push(
          `${kind} ${Math.round(small.tps)}/s ${micros.toFixed(2)} us (user ${inUser.toFixed(2)}) ${Math.round(bytes / 1e6)} MB/s`,
        );
      }
      console.log(line.join(' | '));
    }
    for (const kind of ['stream', 'raw'] as const) {
      const ratio = (of: Map<Kind, number[]>): string =>
        spread(of.get(kind)!.map((value, i) => value / of.get('plain')![i]));
      console.log(`${kind} / plain, median (least..most):`);
      console.log(`  transactions ${ratio(tps)}, bulk ${ratio(bulk)}`);
      console.log(`  CPU per transaction ${ratio(cost)}, outside the kernel ${ratio(user)}`);
    }
  } finally {
    for (const { child } of relays.values()) child.disconnect();
    await load.stop();
  }
}

if (process.argv[2] === '--relay') await relay(process.argv[3] as Kind, Number(process.argv[4]));
else await main();
