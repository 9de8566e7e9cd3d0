import { type ChildProcess, spawn } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import koffi from 'koffi';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { egressPrograms } from '../../core/io/hold/bpf.js';
import { AckHold, ackHoldUnavailable, type Held } from '../../core/io/hold/index.js';
import { interfaceIndex } from '../../core/io/tcp/address.js';
import { identify, unacknowledged } from '../../core/io/tcp/index.js';
import { getOption, libc, openSocket, SO_REUSEADDR, SOL_SOCKET, tcpInfo } from '../../core/io/tcp/libc.js';
import { compiled } from '../kit/gateway-process.js';
import { type Namespace, namespacesUnavailable, twoHosts } from '../kit/namespaces.js';

const why = namespacesUnavailable ?? ackHoldUnavailable();
if (why !== null) console.log(`ack-hold: skipped: ${why}`);

const ADDRESSES = { IPv4: '10.77.0.1', IPv6: 'fd77::1' };
const FIN_WAIT_2 = 5;

/** A connection between the two hosts, both ends in this process. */
interface Pair {
  readonly client: Socket;
  readonly server: Socket;
  readonly clientFd: number;
  readonly serverFd: number;
  /** Where the client's stream begins. */
  readonly base: number;
  readonly ends: Parameters<AckHold['add']>[0];
}

function fdOf(socket: Socket): number {
  return (socket as unknown as { _handle: { fd: number } })._handle.fd;
}

/** Resolves when `condition` holds; rejects after 5 s. */
async function until(condition: () => boolean): Promise<void> {
  const deadline = performance.now() + 5000;
  while (!condition()) {
    if (performance.now() > deadline) throw new Error('it did not come true');
    await delay(1);
  }
}

describe.skipIf(why !== null)('acknowledgements that are held back', () => {
  let hosts: ReturnType<typeof twoHosts>;
  /** The client's host and the gateway's. */
  let there: Namespace;
  let here: Namespace;
  let listener: Server;
  let port: number;
  const accepted: Socket[] = [];
  const open: Socket[] = [];
  const holds: AckHold[] = [];
  const children: ChildProcess[] = [];

  beforeAll(async () => {
    hosts = twoHosts();
    [there, here] = [hosts.a, hosts.b];
    here.sh(`ip addr add 10.77.0.1/24 dev ${here.device}; ip addr add fd77::1/64 dev ${here.device} nodad`);
    there.sh(`ip addr add 10.77.0.2/24 dev ${there.device}; ip addr add fd77::2/64 dev ${there.device} nodad`);
    // One socket for both families, so that IPv4 clients appear as ::ffff:a.b.c.d.
    listener = createServer({ noDelay: true, allowHalfOpen: true }, (socket) => {
      accepted.push(socket);
      listener.emit('accepted');
    });
    await here.inside(async () => {
      listener.listen(0, '::');
      await once(listener, 'listening');
    });
    port = (listener.address() as { port: number }).port;
  });
  afterEach(() => {
    for (const hold of holds.splice(0)) hold.close();
    for (const socket of open.splice(0)) socket.destroy();
    for (const child of children.splice(0)) child.kill('SIGKILL');
  });
  afterAll(() => {
    listener?.close();
    hosts?.remove();
  });

  async function attach(room?: number): Promise<AckHold> {
    const hold = await here.inside(() => AckHold.attach(here.device, room));
    holds.push(hold);
    return hold;
  }

  const attached = (): Promise<number> => here.inside(() => egressPrograms(interfaceIndex(here.device)));

  async function pair(address: string): Promise<Pair> {
    const client = await there.inside(async () => {
      const socket = connect({ host: address, port, noDelay: true, allowHalfOpen: true });
      await once(socket, 'connect');
      return socket;
    });
    if (accepted.length === 0) await once(listener, 'accepted');
    const server = accepted.pop() as Socket;
    open.push(client, server);
    for (const socket of [client, server]) socket.on('error', () => {});
    const { receiveBase, local, remote } = identify(fdOf(server), 0, 0);
    const ends = { local, remote };
    return { client, server, clientFd: fdOf(client), serverFd: fdOf(server), base: receiveBase, ends };
  }

  /** Sends, and waits until the other process has read it all. */
  async function transfer(from: Socket, to: Socket, bytes: Uint8Array): Promise<void> {
    let left = bytes.length;
    const done = new Promise<void>((resolve) => {
      const take = (chunk: Buffer): void => {
        left -= chunk.length;
        if (left > 0) return;
        to.off('data', take);
        resolve();
      };
      to.on('data', take);
    });
    from.write(bytes);
    await done;
  }

  const HELLO = new Uint8Array(1000).fill(1);
  const ANSWER = Uint8Array.of(2);

  describe.each(Object.entries(ADDRESSES))('%s', (_, address) => {
    it('the client keeps what the process has read until it may be acknowledged', async () => {
      const hold = await attach();
      const { client, server, clientFd, base, ends } = await pair(address);
      const held = hold.add(ends, base) as Held;
      await transfer(client, server, HELLO);
      // The answer says what the kernel may say of the request.
      await transfer(server, client, ANSWER);
      expect(unacknowledged(clientFd)).toBe(1000);
      held.acknowledge(base + 400);
      expect(held.behind).toBe(400);
      await transfer(server, client, ANSWER);
      expect(unacknowledged(clientFd)).toBe(600);
      expect(held.behind).toBe(0);
      held.acknowledge(base + 1000);
      await transfer(server, client, ANSWER);
      expect(unacknowledged(clientFd)).toBe(0);
      expect(held.behind).toBe(0);
      // The other direction never knew.
      await until(() => unacknowledged(fdOf(server)) === 0);
    });

    it('prods when nothing else is about to leave', async () => {
      const hold = await attach();
      const { client, server, clientFd, serverFd, base, ends } = await pair(address);
      const held = hold.add(ends, base) as Held;
      expect(held.prod(serverFd)).toBe(false);
      // What a client may send before anything was acknowledged; the kernel acknowledges it without an answer.
      await transfer(client, server, new Uint8Array(10_000));
      await until(() => unacknowledged(clientFd) > 0);
      for (const position of [5000, 10_000]) {
        held.acknowledge(base + position);
        await until(() => held.behind > 0);
        expect(held.prod(serverFd)).toBe(true);
        expect(held.behind).toBe(0);
        await until(() => unacknowledged(clientFd) === 10_000 - position);
      }
      expect(held.prod(serverFd)).toBe(false);
      expect(getOption(serverFd, SOL_SOCKET, SO_REUSEADDR)).not.toBe(0);
      await transfer(client, server, HELLO);
      await transfer(server, client, ANSWER);
    });

    it('gives 50 MB back byte for byte, with the checksum left to the device and without', async () => {
      const hold = await attach();
      for (const offload of [true, false]) {
        await here.inside(() => setChecksumOffload(here.device, offload));
        const { client, server, serverFd, base, ends } = await pair(address);
        const held = hold.add(ends, base) as Held;
        let received = 0;
        server.on('data', (chunk) => {
          received += chunk.length;
          const position = base + received;
          setImmediate(() => held.acknowledge(position));
          if (!server.write(chunk)) server.pause();
        });
        server.on('drain', () => server.resume());
        const beat = setInterval(() => held.prod(serverFd), 1);
        const chunk = randomBytes(1 << 20);
        const [sent, back] = [createHash('sha256'), createHash('sha256')];
        let returned = 0;
        const whole = new Promise<void>((resolve) => {
          client.on('data', (bytes) => {
            back.update(bytes);
            returned += bytes.length;
            if (returned === 50 << 20) resolve();
          });
        });
        for (let count = 0; count < 50; count++) {
          chunk[count] ^= 0xff;
          const bytes = Buffer.from(chunk);
          sent.update(bytes);
          if (!client.write(bytes)) await once(client, 'drain');
        }
        await whole;
        clearInterval(beat);
        expect(back.digest('hex')).toBe(sent.digest('hex'));
        held.remove();
      }
    });

    it('does not acknowledge the end of the stream early', async () => {
      const hold = await attach();
      const { client, server, clientFd, base, ends } = await pair(address);
      const held = hold.add(ends, base) as Held;
      const ended = once(server, 'end');
      client.end(HELLO);
      server.resume();
      await ended;
      held.acknowledge(base + 1000);
      await transfer(server, client, ANSWER);
      expect(unacknowledged(clientFd)).toBe(1);
      held.acknowledge(base + 1001);
      await transfer(server, client, ANSWER);
      expect(tcpInfo(clientFd).state).toBe(FIN_WAIT_2);
    });

    it('leaves other connections alone, and those that were removed', async () => {
      const hold = await attach(1);
      const [one, two] = [await pair(address), await pair(address)];
      const held = hold.add(one.ends, one.base) as Held;
      expect(hold.size).toBe(1);
      // There is room for one.
      expect(hold.add(two.ends, two.base)).toBeNull();
      await transfer(two.client, two.server, HELLO);
      await transfer(two.server, two.client, ANSWER);
      expect(unacknowledged(two.clientFd)).toBe(0);
      await transfer(one.client, one.server, HELLO);
      held.remove();
      expect(hold.size).toBe(0);
      await transfer(one.server, one.client, ANSWER);
      expect(unacknowledged(one.clientFd)).toBe(0);
      // Its room is free again, and what is left of the old one does no harm.
      const other = hold.add(two.ends, two.base + 1000) as Held;
      held.acknowledge(5);
      held.remove();
      await transfer(two.client, two.server, HELLO);
      await transfer(two.server, two.client, ANSWER);
      expect(unacknowledged(two.clientFd)).toBe(1000);
      expect(other.behind).toBe(0);
    });

    it('is over when it is closed', async () => {
      const hold = await attach();
      expect(await attached()).toBe(1);
      const { client, server, clientFd, base, ends } = await pair(address);
      const held = hold.add(ends, base) as Held;
      await transfer(client, server, HELLO);
      hold.close();
      expect(await attached()).toBe(0);
      held.acknowledge(base + 7);
      expect(held.behind).toBe(0);
      await transfer(server, client, ANSWER);
      expect(unacknowledged(clientFd)).toBe(0);
      expect(hold.add(ends, base)).toBeNull();
    });
  });

  it('is over when the process dies', async () => {
    const code = `
      const { AckHold } = await import(${JSON.stringify(`${compiled()}/core/io/hold/index.js`)});
      globalThis.hold = AckHold.attach(${JSON.stringify(here.device)});
      console.log('attached');
      setInterval(() => {}, 1000);`;
    const [command, ...words] = [...here.exec, process.execPath, '--input-type=module', '-e', code];
    const child = spawn(command, words, { stdio: ['ignore', 'pipe', 'inherit'] });
    children.push(child);
    await once(child.stdout, 'data');
    expect(await attached()).toBe(1);
    const exit = once(child, 'exit');
    child.kill('SIGKILL');
    await exit;
    // The kernel gives the descriptors back a moment later.
    for (let tries = 0; (await attached()) > 0 && tries < 100; tries++) await delay(20);
    expect(await attached()).toBe(0);
  });

  it('says which interface is missing or unfit, and leaves nothing behind', async () => {
    here.sh('ip tuntap add mode tun name tun0');
    await expect(here.inside(() => AckHold.attach('tun0'))).rejects.toMatchObject({
      code: 'OUTLIVE_ACK_HOLD_UNAVAILABLE',
      message: expect.stringContaining('tun0 has no Ethernet headers'),
    });
    (await here.inside(() => AckHold.attach('lo'))).close();
    await expect(here.inside(() => AckHold.attach('nowhere0'))).rejects.toMatchObject({ code: 'OUTLIVE_TCP_ADDRESS' });
    expect(await attached()).toBe(0);
  });
});

/** Who computes checksums of what leaves: ethtool -K tx, SIOCETHTOOL with ETHTOOL_STXCSUM (linux/ethtool.h). */
function setChecksumOffload(device: string, on: boolean): void {
  const value = new Uint8Array(Uint32Array.of(0x17, on ? 1 : 0).buffer);
  const request = new DataView(new ArrayBuffer(40));
  new TextEncoder().encodeInto(device, new Uint8Array(request.buffer));
  request.setBigUint64(16, koffi.address(value), true);
  const fd = openSocket(2, 1, 0);
  try {
    if (libc().ioctl(fd, 0x8946, request) !== 0) throw new Error('SIOCETHTOOL');
  } finally {
    libc().close(fd);
  }
}
