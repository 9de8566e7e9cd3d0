import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, chownSync, existsSync, statSync, writeFileSync } from 'node:fs';
import * as net from 'node:net';
import { join, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { afterEach, describe, expect, it } from 'vitest';
import type { Log } from '../../core/contract/index.js';
import type { KeeperOptions } from '../../core/host/keeper.js';
import { connect, listen, listenOn } from '../../core/io/index.js';
import {
  closeDescriptor,
  KeeperClient,
  type KeeperClientOptions,
  KeeperServer,
  type KeeperServerOptions,
  passingUnavailable,
  requestUpgrade,
  socketPositions,
} from '../../core/io/keeper/index.js';
import { Link } from '../../core/io/keeper/link.js';
import {
  connectUnix,
  descriptorPair,
  duplicate,
  receiveDescriptors,
  sendDescriptors,
} from '../../core/io/keeper/passing.js';
import { encode, type Message } from '../../core/io/keeper/protocol.js';
import { fdOf, wireOf } from '../../core/io/tcp/wire.js';
import type { Wire } from '../../core/io/wire.js';
import { compiled } from '../kit/gateway-process.js';
import { eventually, tempDir } from '../kit/servers.js';

const FIXTURES = resolve(import.meta.dirname, '../fixtures');
const NOBODY = 65534;
const root = process.getuid?.() === 0;
const unavailable = passingUnavailable();
if (unavailable !== null) console.warn(`the keeper is not tested: ${unavailable}`);

const cleanups: (() => unknown)[] = [];
afterEach(async () => {
  for (const clean of cleanups.splice(0).reverse()) await clean();
});

/** Byte `at` of a client's stream. */
const pattern = (at: number): number => Math.imul(at + 1, 0x9e3779b1) >>> 24;

const silent: Log = { debug: () => {}, info: () => {}, warn: () => {}, error: () => {} };

/** A path in a directory of its own. */
function socketPath(): string {
  return join(tempDir(), 'keeper', 'socket');
}

interface Pair {
  readonly client: net.Socket;
  readonly served: Wire;
}

/** A client and its connection to this process. */
async function tcpPair(): Promise<Pair> {
  let came: (wire: Wire) => void;
  const served = new Promise<Wire>((done) => (came = done));
  const listener = await listen({ host: '127.0.0.1', port: 0, onWire: (wire) => came(wire) });
  const client = net.connect(listener.port, '127.0.0.1');
  cleanups.push(() => client.destroy());
  const wire = await served;
  cleanups.push(() => wire.destroy());
  await listener.close();
  return { client, served: wire };
}

async function keeperServer(options: Partial<KeeperServerOptions> = {}): Promise<KeeperServer & { path: string }> {
  const path = socketPath();
  const server = await KeeperServer.listen({
    path,
    log: silent,
    onUpgrade: async () => {},
    onClaimed: () => {},
    onRetired: () => {},
    onGone: () => {},
    ...options,
  });
  cleanups.push(() => server.close());
  return Object.assign(server, { path });
}

async function keeperClient(path: string, options: Partial<KeeperClientOptions> = {}): Promise<KeeperClient> {
  const client = await KeeperClient.connect(path, { onRetire: async () => {}, onLost: () => {}, ...options });
  cleanups.push(() => client.close());
  return client;
}

describe.skipIf(unavailable !== null)('passing descriptors', () => {
  it('keeps messages apart and tells when there is no room', () => {
    const [a, b] = descriptorPair();
    cleanups.push(() => [a, b].forEach(closeDescriptor));
    expect(receiveDescriptors(b)).toBeNull();
    expect(sendDescriptors(a, [a], Uint8Array.of(1, 2))).toBe(true);
    expect(sendDescriptors(a, [a, b, a], Uint8Array.of(3))).toBe(true);
    const first = receiveDescriptors(b)!;
    const second = receiveDescriptors(b)!;
    expect(first.beside).toEqual(Uint8Array.of(1, 2));
    expect(second.beside).toEqual(Uint8Array.of(3));
    expect([first.descriptors.length, second.descriptors.length]).toEqual([1, 3]);
    expect(first.truncated || second.truncated).toBe(false);
    [...first.descriptors, ...second.descriptors].forEach(closeDescriptor);
    let sent = 0;
    while (sendDescriptors(a, [a], Uint8Array.of(0))) sent++;
    // The window of the protocol relies on this.
    expect(sent).toBeGreaterThan(192);
    for (; sent > 0; sent--) receiveDescriptors(b)!.descriptors.forEach(closeDescriptor);
    expect(() => sendDescriptors(a, [1_000_000], Uint8Array.of(0))).toThrow(/EBADF/);
  });

  it('knows where the streams of a socket are', async () => {
    const { client, served } = await tcpPair();
    const fd = duplicate(fdOf(served));
    cleanups.push(() => closeDescriptor(fd));
    expect(socketPositions(fd)).toEqual({ consumed: 0, waiting: 0, written: 0 });
    served.write(new Uint8Array(3000));
    client.write(new Uint8Array(1000));
    await eventually(() => socketPositions(fd).waiting === 1000);
    expect(socketPositions(fd)).toEqual({ consumed: 0, waiting: 1000, written: 3000 });
    served.onData = () => served.pause();
    served.resume();
    await eventually(() => socketPositions(fd).consumed === 1000);
    client.end(new Uint8Array(500));
    await eventually(() => socketPositions(fd).waiting === 500);
    expect(socketPositions(fd)).toEqual({ consumed: 1000, waiting: 500, written: 3000 });
    served.onData = () => {};
    served.onClose = () => {};
    served.resume();
    await eventually(() => socketPositions(fd).consumed === 1500);
  });
});

describe.skipIf(unavailable !== null)('a keeper', () => {
  it('gives the next engine what the last one had, and the peer notices nothing', async () => {
    const gone: string[] = [];
    const { path } = await keeperServer({ onGone: () => gone.push('gone') });
    const { client, served } = await tcpPair();
    const first = await keeperClient(path);
    expect(await first.claim()).toEqual([]);
    first.keep('c', fdOf(served), 'client', 'a label');
    first.note('c', Buffer.from('one'));
    first.note('c', Buffer.from('two'));
    expect(first.backlog).toBeGreaterThan(0);
    expect(first.flush()).toBe(true);
    expect(first.backlog).toBe(0);
    await first.ping();
    const end = once(client, 'close');
    // The process's own share is gone, and so is its connection to the keeper: as if it had died.
    served.destroy();
    first.close();
    await eventually(() => gone.length === 1);
    client.write('hello');
    const second = await keeperClient(path);
    const [found, ...more] = await second.claim();
    expect(more).toEqual([]);
    expect(found).toMatchObject({ key: 'c', kind: 'client', label: 'a label', complete: true });
    expect(found.notes.map((bytes) => Buffer.from(bytes).toString())).toEqual(['one', 'two']);
    const wire = wireOf(found.fd);
    const heard = new Promise<string>((done) => (wire.onData = (chunk) => done(Buffer.from(chunk).toString())));
    wire.resume();
    expect(await heard).toBe('hello');
    wire.write(Buffer.from('again'));
    expect(String((await once(client, 'data'))[0])).toBe('again');
    // Closed by the engine: the peer sees it once the keeper has let go of it.
    wire.destroy();
    second.drop('c');
    await end;
  });

  it('keeps and gives back more than the kernel takes at once', async () => {
    const server = await keeperServer();
    const { served } = await tcpPair();
    const first = await keeperClient(server.path);
    await first.claim();
    const count = 1000;
    for (let n = 0; n < count; n++) {
      first.keep(`k${n}`, fdOf(served), n % 2 === 0 ? 'client' : 'listener');
      first.note(`k${n}`, Buffer.from(`note ${n}`));
    }
    first.drop('k999');
    await first.ping();
    expect(server.count).toBe(count - 1);
    expect(first.flush()).toBe(true);
    first.close();
    const second = await keeperClient(server.path);
    const found = await second.claim();
    for (const { fd } of found) closeDescriptor(fd);
    expect(found.map(({ key, notes }) => [key, Buffer.from(notes[0]).toString()])).toEqual(
      Array.from({ length: count - 1 }, (_, n) => [`k${n}`, `note ${n}`]),
    );
    expect(new Set(found.map(({ fd }) => fd)).size).toBe(count - 1);
    expect(server.releaseClients()).toBe(count / 2);
    expect(server.count).toBe(count / 2 - 1);
  });

  it('reads what a dead engine had sent, although nothing can be written to it any more', async () => {
    const path = join(tempDir(), 'socket');
    const server = net.createServer({ pauseOnConnect: true });
    server.listen(path);
    cleanups.push(() => server.close());
    const came = once(server, 'connection');
    const engine = net.connect(path);
    const [socket] = (await came) as [net.Socket];
    // More than one read takes, and less than the kernel does.
    const pings = Array.from({ length: 10_000 }, (_, number) => encode({ type: 'ping', number }));
    const hello = encode({ type: 'hello', channel: 'control', token: new Uint8Array(16) });
    await new Promise<void>((done) => engine.write(Buffer.concat([hello, ...pings]), () => done()));
    engine.destroy();
    await once(engine, 'close');
    let found = 0;
    await new Promise<unknown>((onClose) => {
      const onMessage = (message: Message): void => {
        if (message.type !== 'ping') return;
        found++;
        link.send({ type: 'pong', number: message.number });
        link.flush();
      };
      const link = new Link(socket, { onMessage, onClose }, true);
      socket.resume();
    });
    expect(found).toBe(pings.length);
  });

  it('tells when notes are too many, and lets only the engine that claimed keep', async () => {
    const server = await keeperServer({ limits: { notesPerKey: 1000, notes: 2000 } });
    const { served } = await tcpPair();
    const refused: unknown[] = [];
    const engine = await keeperClient(server.path, { onRefused: (...what) => refused.push(what) });
    engine.keep('early', fdOf(served), 'client');
    await engine.ping();
    expect(refused).toEqual([['keep', 'early', 'this engine has not claimed']]);
    expect(server.count).toBe(0);
    await engine.claim();
    engine.keep('c', fdOf(served), 'client');
    engine.note('c', new Uint8Array(2000));
    engine.note('nobody', new Uint8Array(1));
    await engine.ping();
    expect(refused.slice(1)).toEqual([
      ['note', 'c', 'too many bytes of notes for this key'],
      ['note', 'nobody', 'nothing is kept under this key'],
    ]);
    const other = await keeperClient(server.path);
    await expect(other.claim()).rejects.toMatchObject({ code: 'OUTLIVE_KEEPER_REFUSED' });
    engine.close();
    const [found] = await other.claim();
    closeDescriptor(found.fd);
    expect(found).toMatchObject({ key: 'c', complete: false, notes: [] });
  });

  it('has an engine hand over before another one is given anything', async () => {
    const events: string[] = [];
    const server = await keeperServer({
      onRetired: () => events.push('retired'),
      onClaimed: () => events.push('claimed'),
    });
    const [{ served }, { served: leaving }] = [await tcpPair(), await tcpPair()];
    const old = await keeperClient(server.path, {
      onRetire: async () => {
        events.push('retire');
        old.note('c', Buffer.from('last words'), true);
        served.destroy();
        // Its client leaves just now.
        old.drop('left');
      },
    });
    await old.claim();
    old.keep('left', fdOf(leaving), 'client');
    old.keep('c', fdOf(served), 'client');
    await old.ping();
    server.replaceable = true;
    const found = await (await keeperClient(server.path)).claim();
    for (const { fd } of found) closeDescriptor(fd);
    expect(found.map(({ key }) => key)).toEqual(['c']);
    expect(Buffer.from(found[0].notes[0]).toString()).toBe('last words');
    expect(events).toEqual(['claimed', 'retire', 'retired', 'claimed']);
  });

  it.each(['raw', 'stream'])('takes up a listening socket where another one left it (%s)', async (kind) => {
    const saved = process.env.OUTLIVE_IO;
    process.env.OUTLIVE_IO = kind;
    cleanups.push(() => {
      if (saved === undefined) delete process.env.OUTLIVE_IO;
      else process.env.OUTLIVE_IO = saved;
    });
    const first = await listen({ host: '127.0.0.1', port: 0, onWire: () => {} });
    const fd = duplicate(first.fd);
    await first.close();
    expect(first.fd).toBe(-1);
    // Nobody accepts at this moment.
    const client = await connect({ host: '127.0.0.1', port: first.port, timeoutMs: 2000 });
    cleanups.push(() => client.destroy());
    let came: (wire: Wire) => void;
    const served = new Promise<Wire>((done) => (came = done));
    const second = await listenOn(fd, { onWire: (wire) => came(wire) });
    cleanups.push(() => second.close());
    expect(second).toMatchObject({ port: first.port, fd });
    (await served).destroy();
    await expect(listenOn(999_999, { onWire: () => {} })).rejects.toMatchObject({ code: 'OUTLIVE_LISTEN_FAILED' });
  });

  it('takes nobody down with it', async () => {
    const server = await keeperServer();
    const { served } = await tcpPair();
    const refused: unknown[][] = [];
    const lost: Error[] = [];
    const client = await keeperClient(server.path, {
      onLost: (error) => lost.push(error),
      onRefused: (...what) => refused.push(what),
    });
    await client.claim();
    client.keep('none', 999_999, 'client');
    expect(refused).toEqual([['keep', 'none', expect.stringContaining('EBADF')]]);
    client.keep('x'.repeat(300), fdOf(served), 'client');
    expect(refused.length).toBe(2);
    client.keep('fine', fdOf(served), 'client');
    await client.ping();
    expect(server.count).toBe(1);
    client.keep('c', fdOf(served), 'client');
    const pings = Promise.allSettled([client.ping(), client.ping()]);
    await server.close();
    // Its end of the ways is closed, and this end has not been told.
    for (let n = 0; n < 3; n++) client.keep(`k${n}`, fdOf(served), 'client');
    client.note('c', Buffer.from('x'));
    await pings;
    await eventually(() => lost.length > 0);
    expect(lost).toMatchObject([{ code: 'OUTLIVE_KEEPER_LOST' }]);
    expect(client.open).toBe(false);
    client.drop('c');
    expect(client.flush()).toBe(false);
    await expect(client.ping()).rejects.toMatchObject({ code: 'OUTLIVE_KEEPER_LOST' });
    await expect(client.claim()).rejects.toMatchObject({ code: 'OUTLIVE_KEEPER_LOST' });
    expect(served.open).toBe(true);
  });

  it('says what it has no room for', async () => {
    const path = socketPath();
    const script = `
      const { KeeperServer } = await import(process.argv[1] + '/core/io/keeper/index.js');
      const nothing = () => {};
      const log = { debug: nothing, info: nothing, warn: console.log, error: console.log };
      const on = { onUpgrade: nothing, onClaimed: nothing, onRetired: nothing, onGone: nothing };
      const server = await KeeperServer.listen({ path: process.argv[2], log, ...on });
      console.log('here');`;
    const limited = 'ulimit -n 60 && exec "$0" "$@"';
    const args = ['-c', limited, process.execPath, '--input-type=module', '-e', script, compiled(), path];
    const keeper = spawn('sh', args, { cwd: '/', stdio: ['ignore', 'pipe', 'inherit'] });
    cleanups.push(() => keeper.kill('SIGKILL'));
    await once(keeper.stdout, 'data');
    const { served } = await tcpPair();
    const refused: unknown[][] = [];
    const engine = await keeperClient(path, { onRefused: (...what) => refused.push(what) });
    await engine.claim();
    for (let n = 0; n < 100; n++) engine.keep(`k${n}`, fdOf(served), 'client');
    await engine.ping();
    expect(refused.length).toBeGreaterThan(40);
    expect(refused.length).toBeLessThan(100);
    expect(new Set(refused.map(([asked, , reason]) => `${asked}: ${reason}`))).toEqual(
      new Set(['keep: the keeper has no descriptor left']),
    );
    // With the others gone, it has room again.
    for (let n = 0; n < 100; n++) engine.drop(`k${n}`);
    const before = refused.length;
    engine.keep('again', fdOf(served), 'client');
    await engine.ping();
    expect(refused.length).toBe(before);
  });

  it('lives in a directory of its own, once', async () => {
    const server = await keeperServer();
    expect(statSync(server.path).mode & 0o777).toBe(0o600);
    expect(statSync(join(server.path, '..')).mode & 0o777).toBe(0o700);
    const options = {
      log: silent,
      onUpgrade: async () => {},
      onClaimed: () => {},
      onRetired: () => {},
      onGone: () => {},
    };
    const refusal = (path: string) => KeeperServer.listen({ ...options, path }).catch((error) => error);
    expect(await refusal(server.path)).toMatchObject({ code: 'OUTLIVE_KEEPER_RUNNING' });
    const open = tempDir();
    chmodSync(open, 0o755);
    expect(await refusal(join(open, 'socket'))).toMatchObject({ code: 'OUTLIVE_KEEPER_PATH' });
    chmodSync(open, 0o700);
    writeFileSync(join(open, 'socket'), 'precious');
    expect(await refusal(join(open, 'socket'))).toMatchObject({ code: 'OUTLIVE_KEEPER_PATH' });
    expect(await refusal(join(open, 'x'.repeat(108)))).toMatchObject({ code: 'OUTLIVE_KEEPER_PATH' });
    expect(await KeeperClient.connect(join(open, 'nobody'), {} as never).catch((error) => error)).toMatchObject({
      code: 'OUTLIVE_KEEPER_CONNECT',
    });
    await server.close();
    expect(existsSync(server.path)).toBe(false);
  });

  it('refuses garbage and other versions, and goes on', async () => {
    const { path } = await keeperServer();
    const answer = async (bytes: Uint8Array | string): Promise<Buffer> => {
      const socket = net.connect(path);
      const chunks: Buffer[] = [];
      socket.on('data', (chunk) => chunks.push(chunk));
      socket.on('error', () => {});
      socket.end(bytes);
      await once(socket, 'close');
      return Buffer.concat(chunks);
    };
    // Its own version, and the end.
    expect((await answer('GET / HTTP/1.1\r\n\r\n')).subarray(4, 13)).toEqual(Buffer.from('\x01OLKP\x01\0\0\0'));
    expect((await answer(Buffer.alloc(1000, 255))).length).toBe(30);
    await (await keeperClient(path)).claim();
    // Something that accepts and says something else.
    const strange = join(tempDir(), 'socket');
    const server = net.createServer((socket) => {
      socket.on('error', () => {});
      socket.end('\x1a\0\0\0\x01OLKP\x02\0\0\0\0'.padEnd(30, '\0'));
    });
    server.listen(strange);
    cleanups.push(() => server.close());
    await once(server, 'listening');
    await expect(KeeperClient.connect(strange, {} as never)).rejects.toMatchObject({
      code: 'OUTLIVE_KEEPER_PROTOCOL',
      message: expect.stringContaining('version 2'),
    });
  });

  it.skipIf(!root)('lets no other user in, and no engine give its sockets to one', async () => {
    const warned: unknown[] = [];
    const log = { ...silent, warn: (fields: unknown) => warned.push(fields) };
    const { path } = await keeperServer({ log });
    // As if somebody had opened the doors.
    for (const at of [path, join(path, '..'), join(path, '../..')]) chmodSync(at, 0o777);
    const script = `
      const socket = require('node:net').connect(process.argv[1]);
      socket.on('connect', () => console.log('connected')).on('close', () => process.exit()).on('error', () => {});
      socket.resume();`;
    const stranger = spawn(process.execPath, ['-e', script, path], { uid: NOBODY, gid: NOBODY, cwd: '/' });
    const said: string[] = [];
    stranger.stdout.on('data', (chunk) => said.push(String(chunk)));
    await once(stranger, 'close');
    expect(said.join('')).toBe('connected\n');
    expect(warned).toMatchObject([{ uid: NOBODY, pid: stranger.pid }]);

    const theirs = join(tempDir(), 'socket');
    chownSync(join(theirs, '..'), NOBODY, NOBODY);
    const server = `require('node:net').createServer().listen(process.argv[1], () => console.log('here'))`;
    const impostor = spawn(process.execPath, ['-e', server, theirs], { uid: NOBODY, gid: NOBODY, cwd: '/' });
    cleanups.push(() => impostor.kill('SIGKILL'));
    await once(impostor.stdout, 'data');
    expect(await KeeperClient.connect(theirs, {} as never).catch((error) => error)).toMatchObject({
      code: 'OUTLIVE_KEEPER_STRANGER',
    });
    expect(await requestUpgrade(theirs).catch((error) => error)).toMatchObject({ code: 'OUTLIVE_KEEPER_STRANGER' });
    closeDescriptor(connectUnix(theirs));
  });
});

/** What the processes say, one a line. */
interface Said {
  readonly event: string;
  readonly pid: number;
  // biome-ignore lint/suspicious/noExplicitAny: plain data of the fixtures
  readonly [field: string]: any;
}

class Host {
  readonly said: Said[] = [];
  readonly exited: Promise<number | null>;
  #waiting: (() => void)[] = [];
  #seen = 0;

  constructor(
    readonly child: ChildProcess,
    readonly path: string,
  ) {
    createInterface({ input: child.stdout! }).on('line', (line) => {
      if (process.env.LOG) process.stderr.write(`${line}\n`);
      this.said.push(JSON.parse(line) as Said);
      for (const wake of this.#waiting.splice(0)) wake();
    });
    this.exited = once(child, 'exit').then(([code]) => code);
  }

  /** The next line of this kind behind the last one that was waited for. */
  async next(event: string): Promise<Said> {
    for (;;) {
      while (this.#seen < this.said.length) {
        const line = this.said[this.#seen++];
        if (line.event === event) return line;
      }
      await new Promise<void>((wake) => {
        this.#waiting.push(wake);
        void this.exited.then(() => wake());
      });
      if (this.child.exitCode !== null && this.#seen === this.said.length) throw new Error(`no ${event} came`);
    }
  }

  /** Engines are of process groups of their own. */
  cleanUp(): void {
    this.child.kill('SIGKILL');
    for (const { event, pid } of this.said) if (event === 'ready') killHard(pid);
  }
}

function killHard(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch {
    // It is gone.
  }
}

type HostOptions = Partial<KeeperOptions> & { words?: string[]; wordsFile?: string };

/** A keeper and its engine as processes. */
function startHost(options: HostOptions = {}, uid?: number): Host {
  const dist = compiled();
  const dir = tempDir();
  if (uid !== undefined) {
    chmodSync(dist, 0o755);
    chownSync(dir, uid, uid);
  }
  const path = join(dir, 'keeper', 'socket');
  const timing = { backoffMin: 10, backoffMax: 20, sound: 0, ...options.timing };
  const args = [join(FIXTURES, 'keeper-host.mjs'), dist, JSON.stringify({ socketPath: path, ...options, timing })];
  const child = spawn(process.execPath, args, {
    cwd: '/',
    stdio: ['ignore', 'pipe', 'inherit'],
    ...(uid === undefined ? {} : { uid, gid: uid }),
  });
  const host = new Host(child, path);
  cleanups.push(() => host.cleanUp());
  return host;
}

/** A client that sends its pattern for as long as it is told to, and checks each byte of the answer. */
class Client {
  readonly socket: net.Socket;
  sent = 0;
  heard = 0;
  failure: string | null = null;
  #going = true;
  #wake: () => void = () => {};
  #drained: () => void = () => {};

  constructor(port: number) {
    this.socket = net.connect(port, '127.0.0.1');
    cleanups.push(() => this.socket.destroy());
    this.socket.on('data', (chunk) => {
      for (const byte of chunk) if (byte !== 255 - pattern(this.heard++)) this.failure ??= `wrong at ${this.heard}`;
      this.#wake();
    });
    this.socket.on('error', (error) => (this.failure ??= error.message));
    this.socket.on('close', () => {
      if (this.#going || this.heard < this.sent) this.failure ??= 'closed';
      this.#wake();
    });
    this.socket.on('drain', () => this.#drained());
    this.socket.on('connect', () => void this.#send());
  }

  /** Stops sending, and resolves when everything is answered; rejects when something was not. */
  async finish(): Promise<void> {
    this.#going = false;
    while (this.failure === null && (this.sent === 0 || this.heard < this.sent)) {
      await new Promise<void>((wake) => (this.#wake = wake));
    }
    if (this.failure !== null) throw new Error(`${this.failure}; ${this.heard} of ${this.sent}`);
    this.socket.destroy();
  }

  async #send(): Promise<void> {
    while (this.#going && this.failure === null) {
      const chunk = new Uint8Array(1 + Math.floor(Math.random() ** 3 * 60_000));
      for (let at = 0; at < chunk.length; at++) chunk[at] = pattern(this.sent + at);
      this.sent += chunk.length;
      // Not further ahead than the buffers of the kernels, so that the end does not take long.
      if (this.socket.write(chunk)) await new Promise<void>((next) => setImmediate(next));
      else await new Promise<void>((next) => (this.#drained = next));
    }
  }
}

describe.skipIf(unavailable !== null)('an engine under a keeper', () => {
  const users: [string, number | undefined, number][] = [['this user', undefined, 20]];
  if (root) users.push(['an ordinary user', NOBODY, 5]);

  it.each(users)('is killed under load, and no byte is lost or doubled (%s)', { timeout: 180_000 }, async (...user) => {
    const [, uid, kills] = user;
    const host = startHost({}, uid);
    let { port, pid } = await host.next('ready');
    const clients = Array.from({ length: 6 }, () => new Client(port));
    for (let n = 0; n < kills; n++) {
      const heard = clients.map((client) => client.heard);
      await eventually(() => clients.every((client, at) => client.failure !== null || client.heard > heard[at]), {
        intervalMs: 1,
      });
      killHard(pid);
      // Comes while nobody is there.
      if (n % 5 === 0) clients.push(new Client(port));
      const ready = await host.next('ready');
      expect(ready.port).toBe(port);
      expect(ready.pid).not.toBe(pid);
      pid = ready.pid;
    }
    await Promise.all(clients.map((client) => client.finish()));
    expect(host.said.filter(({ event }) => event === 'corrupt' || event === 'refused')).toEqual([]);
    for (const { sent } of clients) expect(sent).toBeGreaterThan(0);
    host.child.kill('SIGTERM');
    expect(await host.exited).toBe(0);
    expect(host.said.filter(({ event }) => event === 'stopped')).toHaveLength(1);
    expect(existsSync(host.path)).toBe(false);
  });

  it('is upgraded under load', async () => {
    const host = startHost();
    let { port, pid } = await host.next('ready');
    const clients = Array.from({ length: 6 }, () => new Client(port));
    for (let n = 0; n < 5; n++) {
      const heard = clients.map((client) => client.heard);
      await eventually(() => clients.every((client, at) => client.failure !== null || client.heard > heard[at]));
      await requestUpgrade(host.path);
      const ready = await host.next('ready');
      expect(ready).toMatchObject({ port, clients: clients.length });
      expect(ready.pid).not.toBe(pid);
      // The old one has ended by itself.
      await eventually(() => !existsSync(`/proc/${pid}`));
      pid = ready.pid;
    }
    await Promise.all(clients.map((client) => client.finish()));
    expect(
      host.said.filter(({ event, level }) => event === 'corrupt' || level === 'error' || level === 'warn'),
    ).toEqual([]);
    host.child.kill('SIGINT');
    expect(await host.exited).toBe(0);
  });

  it('goes on when the new one of an upgrade cannot start, and is killed when it does not hand over', async () => {
    const wordsFile = join(tempDir(), 'words');
    writeFileSync(wordsFile, 'stubborn');
    const host = startHost({ wordsFile, timing: { retire: 300 } });
    const { port, pid } = await host.next('ready');
    const client = new Client(port);
    await eventually(() => client.heard > 0);
    writeFileSync(wordsFile, 'broken');
    await expect(requestUpgrade(host.path)).rejects.toMatchObject({
      code: 'OUTLIVE_KEEPER_REFUSED',
      message: expect.stringContaining('ended before it had taken over (status 3)'),
    });
    expect(existsSync(`/proc/${pid}`)).toBe(true);
    writeFileSync(wordsFile, '');
    await requestUpgrade(host.path);
    expect(await host.next('ready')).toMatchObject({ port, clients: 1 });
    await eventually(() => !existsSync(`/proc/${pid}`));
    await client.finish();
    expect(host.said.filter(({ event }) => event === 'corrupt')).toEqual([]);
  });

  it('ends the keeper when it ends in order, or never started', async () => {
    const orderly = startHost();
    process.kill((await orderly.next('ready')).pid, 'SIGTERM');
    expect(await orderly.exited).toBe(0);
    const broken = startHost({ words: ['broken'] });
    expect(await broken.exited).toBe(3);
    const failing = startHost({ words: ['fails'] });
    await failing.next('ready');
    failing.child.kill('SIGTERM');
    expect(await failing.exited).toBe(7);
  });

  it('does not take all clients down again and again with what one of them sent', async () => {
    const host = startHost({ words: ['fragile'], timing: { sound: 60_000 } });
    const { port } = await host.next('ready');
    const idle = net.connect(port, '127.0.0.1');
    await once(idle, 'connect');
    const closed = once(idle, 'close');
    idle.on('error', () => {});
    const poison = net.connect(port, '127.0.0.1', () => poison.write('poison'));
    poison.on('error', () => {});
    for (const socket of [idle, poison]) cleanups.push(() => socket.destroy());
    await closed;
    const crashes = host.said.filter(({ message }) => message === 'the engine crashed and is started again');
    expect(crashes).toHaveLength(5);
    while ((await host.next('ready')).clients > 0);
    const next = net.connect(port, '127.0.0.1');
    cleanups.push(() => next.destroy());
    await once(next, 'connect');
  });

  it('is not waited for without end', async () => {
    const wordsFile = join(tempDir(), 'words');
    writeFileSync(wordsFile, '');
    const host = startHost({ wordsFile, timing: { hold: 200 } });
    const { port, pid } = await host.next('ready');
    const client = net.connect(port, '127.0.0.1');
    cleanups.push(() => client.destroy());
    await once(client, 'connect');
    client.write(Uint8Array.of(pattern(0)));
    await once(client, 'data');
    writeFileSync(wordsFile, 'broken');
    client.resume();
    killHard(pid);
    await once(client, 'close');
    // The listening socket is still there for an engine that starts.
    writeFileSync(wordsFile, '');
    expect(await host.next('ready')).toMatchObject({ port, clients: 0 });
  });
});
