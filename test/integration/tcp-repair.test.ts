import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { closeSync, openSync } from 'node:fs';
import { createRequire } from 'node:module';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { attemptRaw, listenRaw } from '../../core/io/raw-net.js';
import {
  announce,
  discard,
  fdOf,
  freezeWire,
  GapWatch,
  identify,
  release,
  restore,
  type TcpImage,
  tcpRepairUnavailable,
  thawInPlace,
  unacknowledgedBytes,
  unwrittenOf,
  wireOf,
} from '../../core/io/tcp/index.js';
import { ESTABLISHED, tcpInfo } from '../../core/io/tcp/libc.js';
import type { Listener } from '../../core/io/tcp-options.js';
import type { Wire } from '../../core/io/wire.js';
import { eventually } from '../kit/servers.js';

/**
 * Hosts are network namespaces that are joined by a bridge: a client, and A and B, which own the service's address in turn.
 * A socket stays in the namespace in which it was made, so one process can act on all hosts.
 */
const why = process.getuid?.() === 0 ? tcpRepairUnavailable() : 'needs root for network namespaces';
if (why !== null) console.log(`tcp-repair: skipped: ${why}`);

const PREFIX = `ol${process.pid}h1`;
const HOSTS = ['c', 'a', 'b'] as const;
type Host = (typeof HOSTS)[number];
const FOUR = '10.88.0.100';
const SIX = 'fd88::100';

function ip(...words: string[]): void {
  execFileSync('ip', words, { stdio: 'pipe' });
}
function on(host: Host, words: string): void {
  ip('-n', `${PREFIX}${host}`, ...words.split(' '));
}

function nft(host: Host, text: string): void {
  ip('netns', 'exec', `${PREFIX}${host}`, 'nft', text);
}

const CLONE_NEWNET = 0x40000000;
let setns: (fd: number, kind: number) => number;

/** Runs something that makes sockets on a host; what it awaits is run on the test's own. */
function inside<T>(host: Host, run: () => T): T {
  const home = openSync('/proc/thread-self/ns/net', 'r');
  const there = openSync(`/run/netns/${PREFIX}${host}`, 'r');
  try {
    if (setns(there, CLONE_NEWNET) !== 0) throw new Error('setns');
    return run();
  } finally {
    if (setns(home, CLONE_NEWNET) !== 0) process.abort();
    closeSync(there);
    closeSync(home);
  }
}

function addressOf(address: string): string {
  return address === SIX ? `${SIX}/64 dev eth0 nodad` : `${FOUR}/24 dev eth0`;
}

/** Gathers what a wire delivers. */
class Sink {
  bytes = 0;
  readonly chunks: Uint8Array[] = [];
  #waiting: (() => void) | null = null;
  closed: Error | null | undefined;
  take(wire: Wire): void {
    wire.onData = (chunk) => this.add(chunk);
    wire.onClose = (error) => {
      this.closed = error;
      this.#waiting?.();
    };
    wire.resume();
  }
  add(chunk: Uint8Array): void {
    this.chunks.push(chunk);
    this.bytes += chunk.length;
    this.#waiting?.();
  }
  async until(bytes: number): Promise<void> {
    while (this.bytes < bytes) {
      if (this.closed !== undefined) throw new Error(`closed at ${this.bytes} of ${bytes}: ${this.closed}`);
      await new Promise<void>((resolve) => {
        this.#waiting = resolve;
      });
    }
  }
  async ended(): Promise<Error | null> {
    while (this.closed === undefined) {
      await new Promise<void>((resolve) => {
        this.#waiting = resolve;
      });
    }
    return this.closed;
  }
  all(): Buffer {
    return Buffer.concat(this.chunks);
  }
}

interface Pair {
  client: Wire;
  server: Wire;
  listener: Listener;
}

const cleanups: (() => unknown)[] = [];

async function connected(address: string, listen = '::'): Promise<Pair> {
  on('a', `link set eth0 up`);
  for (const host of ['a', 'b'] as const) {
    try {
      on(host, `addr del ${addressOf(address).replace(' nodad', '')}`);
    } catch {
      // It was on the other one.
    }
  }
  on('a', `addr add ${addressOf(address)}`);
  let arrived: (wire: Wire) => void;
  const server = new Promise<Wire>((resolve) => {
    arrived = resolve;
  });
  const listener: Listener = await inside('a', () =>
    listenRaw(listen, { host: listen, port: 0, onWire: (wire) => arrived(wire) }),
  );
  const other = await inside('b', () =>
    listenRaw(listen, { host: listen, port: listener.port, onWire: (wire) => wire.reset() }),
  );
  tellNeighbours('a', address);
  const client = await inside(
    'c',
    () => attemptRaw(address, { host: address, port: listener.port, timeoutMs: 5000 }).wire,
  );
  cleanups.push(
    () => listener.close(),
    () => other.close(),
    () => client.reset(),
  );
  return { client, server: await server, listener };
}

/** The first announcement leaves at once; the others find the link cut where the test cuts it meanwhile. */
function tellNeighbours(host: Host, address: string): void {
  inside(host, () => announce(address, 'eth0')).catch(() => {});
}

function bring(address: string): void {
  on('b', `addr add ${addressOf(address)}`);
  tellNeighbours('b', address);
}

describe.skipIf(why !== null)('moving TCP connections between hosts', () => {
  beforeAll(() => {
    const koffi = createRequire(import.meta.url)('koffi') as typeof import('koffi');
    setns = koffi.load(null).func('int setns(int, int)') as never;
    ip('netns', 'add', `${PREFIX}n`);
    ip('-n', `${PREFIX}n`, 'link', 'add', 'name', 'sw', 'type', 'bridge');
    ip('-n', `${PREFIX}n`, 'link', 'set', 'dev', 'sw', 'up');
    HOSTS.forEach((host, index) => {
      ip('netns', 'add', `${PREFIX}${host}`);
      const link = ['link', 'add', 'name', host, 'type', 'veth', 'peer', 'name', 'eth0', 'netns', `${PREFIX}${host}`];
      ip('-n', `${PREFIX}n`, ...link);
      ip('-n', `${PREFIX}n`, 'link', 'set', 'dev', host, 'master', 'sw', 'up');
      on(host, 'link set lo up');
      on(host, 'link set eth0 up');
      on(host, `addr add 10.88.0.${index + 1}/24 dev eth0`);
      on(host, `addr add fd88::${index + 1}/64 dev eth0 nodad`);
    });
  });
  afterAll(async () => {
    for (const cleanup of cleanups) await cleanup();
    for (const host of ['n', ...HOSTS]) {
      try {
        ip('netns', 'del', `${PREFIX}${host}`);
      } catch {
        // Was not made.
      }
    }
  });

  it.each([
    ['IPv4', FOUR, '0.0.0.0'],
    ['IPv6', SIX, '::'],
    ['IPv4 on an IPv6 socket', FOUR, '::'],
  ])('moves a stream in both directions, %s', async (_, address, listen) => {
    const { client, server } = await connected(address, listen);
    const up = randomBytes(700_000);
    const down = randomBytes(9_000_000);
    const atServer = new Sink();
    const atClient = new Sink();
    atServer.take(server);
    client.write(up.subarray(0, 300_000));
    await atServer.until(300_000);
    server.pause();
    server.write(down.subarray(0, 8_000_000));
    client.write(up.subarray(300_000, 400_000));
    // The client reads nothing yet: all queues are full, on both hosts and in between.
    server.onClose = () => {};
    const frozen = freezeWire(server);
    client.write(up.subarray(400_000, 500_000));
    const image: TcpImage = structuredClone({ ...frozen.tcp.image, elapsed: 5 });
    on('a', `addr del ${addressOf(address).replace(' nodad', '')}`);
    discard(frozen.tcp.fd);
    const restored = inside('b', () => restore(image));
    bring(address);
    release(restored);
    const moved = wireOf(restored.fd);
    atServer.add(frozen.unread);
    atServer.take(moved);
    moved.write(frozen.unwritten);
    moved.write(down.subarray(8_000_000));
    atClient.take(client);
    client.write(up.subarray(500_000));
    await atServer.until(up.length);
    await atClient.until(down.length);
    expect(atServer.all().equals(up)).toBe(true);
    expect(atClient.all().equals(down)).toBe(true);
    expect(atClient.closed).toBeUndefined();
    moved.end();
    expect(await atClient.ended()).toBe(null);
  });

  /** Host A is gone: cut off, and what it would still say dies with it. */
  function crash(server: Wire): void {
    on('a', 'link set eth0 down');
    server.onClose = () => {};
    discard(freezeWire(server).tcp.fd);
  }

  /** B takes over. @returns its wire, and what the watch said */
  function takeOver(image: TcpImage): { wire: Wire; heard: Promise<string>; watch: GapWatch } {
    return inside('b', () => {
      let said: (what: string) => void;
      const heard = new Promise<string>((resolve) => {
        said = resolve;
      });
      const watch = new GapWatch({
        onGap: (wire, what) => {
          wire.reset();
          said(what);
        },
        onAgreed: () => said('agreed'),
      });
      cleanups.push(() => watch.close());
      const { family, local } = image.identity;
      watch.listen(family, local.port);
      const restored = restore(image);
      bring(local.address);
      release(restored);
      const wire = wireOf(restored.fd);
      watch.watch(wire, image);
      return { wire, heard, watch };
    });
  }

  it.each([
    ['IPv4', FOUR],
    ['IPv6', SIX],
  ])('takes a connection over whose host was cut off, %s', async (_, address) => {
    const { client, server } = await connected(address);
    const identity = structuredClone(identify(fdOf(server), 0, 0));
    const since = performance.now();
    const [up, down] = [randomBytes(5000), randomBytes(5000)];
    const [atServer, atClient] = [new Sink(), new Sink()];
    atServer.take(server);
    atClient.take(client);
    client.write(up.subarray(0, 1000));
    server.write(down.subarray(0, 1000));
    await Promise.all([atServer.until(1000), atClient.until(1000)]);
    crash(server);
    const elapsed = performance.now() - since;
    // An answer that was journaled and never left; all of it counts as perhaps sent, from an old position on.
    const image = { identity, received: 1000, acknowledged: 500, unacknowledged: [down.subarray(500, 3000)], elapsed };
    const { wire, heard } = takeOver(image);
    const adopted = performance.now();
    await atClient.until(3000);
    expect(await heard).toBe('agreed');
    // Far below any retransmission timer: it was sent at once.
    expect(performance.now() - adopted).toBeLessThan(500);
    const moved = new Sink();
    moved.take(wire);
    client.write(up.subarray(1000));
    wire.write(down.subarray(3000));
    await Promise.all([moved.until(4000), atClient.until(5000)]);
    expect(Buffer.concat([atServer.all(), moved.all()]).equals(up)).toBe(true);
    expect(atClient.all().equals(down)).toBe(true);
  });

  it.each([
    ['IPv4', FOUR],
    ['IPv6', SIX],
  ])('asks a client that waits ever longer to send again what was never acknowledged, %s', async (_, address) => {
    const { client, server } = await connected(address);
    const identity = identify(fdOf(server), 0, 0);
    crash(server);
    const up = randomBytes(3000);
    client.write(up);
    // It sends again after 0.2, 0.6 and 1.4 s, and would do so after 3 s.
    const outage = 1700;
    await new Promise((resolve) => setTimeout(resolve, outage));
    const { wire, heard } = takeOver({ identity, received: 0, acknowledged: 0, unacknowledged: [], elapsed: outage });
    const since = performance.now();
    const moved = new Sink();
    moved.take(wire);
    await moved.until(3000);
    // By itself 1.3 s after the takeover.
    expect(performance.now() - since).toBeLessThan(1250);
    expect(await heard).toBe('agreed');
    expect(moved.all().equals(up)).toBe(true);
  });

  it('asks on when what the client sends again is lost, too', async () => {
    const { client, server } = await connected(FOUR);
    const identity = identify(fdOf(server), 0, 0);
    crash(server);
    const up = randomBytes(3000);
    client.write(up);
    const outage = 300;
    await new Promise((resolve) => setTimeout(resolve, outage));
    // One segment with payload arrives, so that both sides agree; those behind it do not, for a while.
    const lossy = 'meta l4proto tcp meta length > 200 limit rate over 1/hour burst 1 packets drop';
    nft('b', `table ip lossy { chain input { type filter hook input priority 0; ${lossy}; }; }`);
    const image = { identity, received: 0, acknowledged: 0, unacknowledged: [], elapsed: outage };
    const { wire, heard } = takeOver(image);
    const moved = new Sink();
    moved.take(wire);
    expect(await heard).toBe('agreed');
    // Left alone it would send again after 0.2, 0.6, 1.4, 3 and 6.2 s.
    await new Promise((resolve) => setTimeout(resolve, 3500));
    expect(moved.all().length).toBeLessThan(3000);
    nft('b', 'delete table ip lossy');
    const since = performance.now();
    await moved.until(3000);
    expect(performance.now() - since).toBeLessThan(1500);
    expect(moved.all().equals(up)).toBe(true);
  });

  it.each([
    ['the client is idle, IPv4', FOUR, false],
    ['the client sends more, IPv6', SIX, true],
  ])('finds bytes that the dead host acknowledged and nobody has: %s', async (_, address, more) => {
    const { client, server } = await connected(address);
    const identity = identify(fdOf(server), 0, 0);
    const [atServer, atClient] = [new Sink(), new Sink()];
    atServer.take(server);
    atClient.take(client);
    client.write(randomBytes(1000));
    await atServer.until(1000);
    crash(server);
    const { heard } = takeOver({ identity, received: 400, acknowledged: 0, unacknowledged: [], elapsed: 100 });
    const adopted = performance.now();
    if (more) client.write(randomBytes(100));
    expect(await heard).toBe('lost');
    expect(await atClient.ended()).toMatchObject({ code: 'ECONNRESET' });
    expect(performance.now() - adopted).toBeLessThan(2000);
  });

  it('finds a client that has more than the survivor knows of', async () => {
    const { client, server } = await connected(FOUR);
    const identity = identify(fdOf(server), 0, 0);
    const atClient = new Sink();
    atClient.take(client);
    server.write(randomBytes(1000));
    await atClient.until(1000);
    crash(server);
    const image = { identity, received: 0, acknowledged: 0, unacknowledged: [randomBytes(300)], elapsed: 100 };
    const { heard } = takeOver(image);
    expect(await heard).toBe('ahead');
    expect(await atClient.ended()).toMatchObject({ code: 'ECONNRESET' });
  });

  it.each([FOUR, SIX])('sends segments of the same size as before (%s)', async (address) => {
    const { server } = await connected(address);
    const identity = identify(fdOf(server), 0, 0);
    const { sendMss } = tcpInfo(fdOf(server));
    crash(server);
    const { wire, heard } = takeOver({ identity, received: 0, acknowledged: 0, unacknowledged: [], elapsed: 100 });
    expect(await heard).toBe('agreed');
    expect(tcpInfo(fdOf(wire)).sendMss).toBe(sendMss);
  });

  it('tells the bytes that the client has not acknowledged, and the connection goes on', async () => {
    const { client, server } = await connected(FOUR);
    const down = randomBytes(8_000_000);
    server.write(down);
    // The client does not read: both kernels are full soon.
    let kept: Uint8Array = new Uint8Array(0);
    await eventually(
      () => {
        const before = kept.length;
        kept = unacknowledgedBytes(fdOf(server));
        // On a busy machine they may go on after a while, even between two looks.
        return before > 0 && kept.length === before && unacknowledgedBytes(fdOf(server)).length === before;
      },
      { intervalMs: 100 },
    );
    const { backlog } = server;
    const unwritten = unwrittenOf(server);
    expect(unwritten.length).toBe(backlog);
    const written = server.bytesWritten - backlog;
    const bytes = Buffer.concat([kept, unwritten]);
    expect(bytes.length).toBe(kept.length + 8_000_000 - written);
    expect(bytes.equals(down.subarray(written - kept.length))).toBe(true);
    const atClient = new Sink();
    atClient.take(client);
    await atClient.until(8_000_000);
    expect(atClient.all().equals(down)).toBe(true);
  });

  it('restores a send queue of 4 MB', async () => {
    const { client, server } = await connected(FOUR);
    const identity = identify(fdOf(server), 0, 0);
    const down = randomBytes(5_000_000);
    const atClient = new Sink();
    server.write(down.subarray(0, 4_000_000));
    crash(server);
    const unacknowledged = [down.subarray(0, 1_000_000), down.subarray(1_000_000, 4_000_000)];
    const { wire, heard } = takeOver({ identity, received: 0, acknowledged: 0, unacknowledged, elapsed: 100 });
    wire.write(down.subarray(4_000_000));
    atClient.take(client);
    await atClient.until(5_000_000);
    expect(await heard).toBe('agreed');
    expect(atClient.all().equals(down)).toBe(true);
  });

  it('lets a frozen connection go on where it is', async () => {
    const { client, server } = await connected(FOUR);
    const [atServer, atClient] = [new Sink(), new Sink()];
    const [up, down] = [randomBytes(3000), randomBytes(3000)];
    atClient.take(client);
    client.write(up.subarray(0, 1000));
    server.write(down.subarray(0, 1000));
    await atClient.until(1000);
    const { tcp, unread, unwritten } = freezeWire(server);
    expect(unwritten.length).toBe(0);
    client.write(up.subarray(1000));
    thawInPlace(tcp.fd);
    const wire = wireOf(tcp.fd);
    atServer.take(wire);
    wire.write(down.subarray(1000));
    await Promise.all([atServer.until(3000), atClient.until(3000)]);
    expect(atServer.all().equals(up)).toBe(true);
    expect(atClient.all().equals(down)).toBe(true);
    expect(Buffer.compare(unread, up.subarray(0, unread.length))).toBe(0);
  });

  it('leaves the port free for another listener while its connections live', async () => {
    const { server, client, listener } = await connected(FOUR);
    identify(fdOf(server), 0, 0);
    await listener.close();
    const again = await inside('a', () => listenRaw('::', { host: '::', port: listener.port, onWire: () => {} }));
    await again.close();
    expect(client.open).toBe(true);
  });

  it('tells what cannot be moved', async () => {
    const { server, client } = await connected(FOUR);
    client.end();
    // The FIN is in the kernel when the client's half is closed; the server has not read it.
    while (tcpInfo(fdOf(server)).state === ESTABLISHED) await new Promise((resolve) => setImmediate(resolve));
    expect(() => freezeWire(server)).toThrow(expect.objectContaining({ code: 'OUTLIVE_TCP_NOT_MOVABLE' }));
    expect(server.open).toBe(true);
    const ended = new Sink();
    ended.take(server);
    expect(await ended.ended()).toBe(null);
    expect(() => freezeWire(server)).toThrow(expect.objectContaining({ code: 'OUTLIVE_TCP_NOT_MOVABLE' }));
  });
});
