import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { allowClose, type Guard, guardUnavailable, installGuard, type RunCommand } from '../../core/io/guard.js';
import { SOL_SOCKET, setOption } from '../../core/io/tcp/libc.js';
import { compiled } from '../kit/gateway-process.js';
import { namespacesUnavailable, twoHosts } from '../kit/namespaces.js';
import { eventually } from '../kit/servers.js';

const FOUR = '10.9.1.5';
const SIX = 'fd0a::5';
const PORT = 7000;
const IP_TRANSPARENT = 19;

if (namespacesUnavailable !== null) console.warn(`the guard is not tested: ${namespacesUnavailable}`);

describe.skipIf(namespacesUnavailable !== null)('the guard', () => {
  let hosts: ReturnType<typeof twoHosts>;
  let host: (typeof hosts)['a'];
  let client: (typeof hosts)['a'];
  let guard: Guard | null = null;
  const sockets: Socket[] = [];
  const servers: Server[] = [];
  const children: ChildProcess[] = [];

  beforeAll(async () => {
    hosts = twoHosts();
    ({ a: host, b: client } = hosts);
    host.sh(`ip addr add ${FOUR}/32 dev ${host.device}; ip addr add ${SIX}/128 dev ${host.device} nodad`);
    host.sh(`ip addr add 10.9.0.1/24 dev ${host.device}; ip addr add fd09::1/64 dev ${host.device} nodad`);
    client.sh(`ip addr add 10.9.0.2/24 dev ${client.device}; ip addr add fd09::2/64 dev ${client.device} nodad`);
    client.sh(`ip route add ${FOUR}/32 dev ${client.device}; ip -6 route add ${SIX}/128 dev ${client.device}`);
    expect(await guardUnavailable(host.run)).toBeNull();
  });
  afterEach(async () => {
    for (const socket of sockets.splice(0)) socket.destroy();
    for (const server of servers.splice(0)) server.close();
    for (const child of children.splice(0)) child.kill('SIGKILL');
    await guard?.remove();
    guard = null;
    // What their ends still say, and are answered, would be counted in the next test.
    const over = (at: typeof host) => at.sh('ss -Htan state connected exclude fin-wait-2 exclude time-wait') === '';
    await eventually(() => over(host) && over(client), { message: 'the connections of a test are over' });
  });
  afterAll(() => hosts?.remove());

  async function install(closed = false, run: RunCommand = host.run): Promise<Guard> {
    guard = await installGuard({ name: 'test', addresses: [FOUR, SIX], ports: [PORT], closed, run });
    return guard;
  }

  /** A connection from the client's host; what it hears is noted. */
  async function dial(address: string): Promise<{ socket: Socket; heard: string[] }> {
    const heard: string[] = [];
    const socket = await client.inside(async () => {
      const made = connect({ host: address, port: PORT });
      await once(made, 'connect');
      return made;
    });
    sockets.push(socket);
    socket.on('end', () => heard.push('FIN'));
    socket.on('error', (error: NodeJS.ErrnoException) => heard.push(error.code ?? 'error'));
    socket.on('data', () => {});
    return { socket, heard };
  }

  /** A process on the guarded host that accepts, says hello and reads nothing. Resolves when it listens. */
  async function deafServer(): Promise<ChildProcess> {
    const script = `require('net').createServer({ pauseOnConnect: true }, (s) => s.write('hello'))
      .listen(${PORT}, () => console.log('listening'))`;
    const [program, ...args] = [...host.exec, process.execPath, '-e', script];
    const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'inherit'] });
    children.push(child);
    await once(child.stdout!, 'data');
    return child;
  }

  /** A server of this process on the guarded host, and a connection to it. */
  async function connected(address: string) {
    const server = createServer();
    servers.push(server);
    await host.inside(async () => {
      server.listen(PORT);
      await once(server, 'listening');
    });
    expect((server.address() as AddressInfo).port).toBe(PORT);
    const accepted = once(server, 'connection');
    const dialed = await dial(address);
    const [socket] = (await accepted) as [Socket];
    socket.on('error', () => {});
    sockets.push(socket);
    return { ...dialed, server: socket, fd: (socket as unknown as { _handle: { fd: number } })._handle.fd };
  }

  async function dropped(count: 'closes' | 'unpermitted', atLeast: number): Promise<void> {
    await expect.poll(async () => (await guard!.counts())[count], { timeout: 5000 }).toBeGreaterThanOrEqual(atLeast);
  }

  describe.each([FOUR, SIX])('of %s', (address) => {
    it('without it the death of a process is heard', async () => {
      const child = await deafServer();
      const { socket, heard } = await dial(address);
      await once(socket, 'data');
      child.kill('SIGKILL');
      await once(socket, 'close');
      expect(heard).toEqual(['FIN']);
    });

    it.each([
      ['nothing', ''],
      ['unread bytes', 'unread'],
    ])('a process that is killed with %s in its socket says nothing, nor does its kernel later', async (_, unread) => {
      await install();
      const child = await deafServer();
      const { socket, heard } = await dial(address);
      await once(socket, 'data');
      if (unread !== '') {
        socket.write(unread);
        const queued = () => Number(host.sh(`ss -tnHo state established sport = :${PORT}`).trim().split(/\s+/)[0]);
        await expect.poll(queued).toBe(unread.length);
      }
      child.kill('SIGKILL');
      await dropped('closes', 1);
      expect(heard).toEqual([]);
      // The socket is gone or an orphan; whatever comes in now is answered with a RST.
      const { closes } = await guard!.counts();
      socket.write('anybody?');
      await dropped('closes', closes + 1);
      expect(heard).toEqual([]);
      expect(socket.destroyed).toBe(false);
    });

    it('nor does the kernel of a process that answers strangers, to its own connections while they are being closed', async () => {
      await install();
      const script = `
        const { listen } = await import('${join(compiled(), 'core/io/listen.js')}');
        const { answerStrangers, letClose } = await import('${join(compiled(), 'core/io/tcp/standstill.js')}');
        const wires = [];
        const accept = (wire) => { letClose(wire); wire.write(new Uint8Array(1)); wires.push(wire); };
        const listener = await listen({ host: '${address}', port: ${PORT}, closesFirst: true, onWire: accept });
        answerStrangers(listener.fd, true);
        console.log('listening');`;
      const [program, ...args] = [...host.exec, process.execPath, '--input-type=module', '-e', script];
      const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'inherit'] });
      children.push(child);
      await once(child.stdout!, 'data');
      const dialed: Awaited<ReturnType<typeof dial>>[] = [];
      for (let count = 0; count < 100; count++) {
        dialed.push(await dial(address));
        await once(dialed[count].socket, 'data');
      }
      const died = once(child, 'exit');
      let dead = false;
      void died.then(() => (dead = true));
      child.kill('SIGKILL');
      // Each may find its connection gone and the listening socket still there.
      while (!dead) {
        for (const { socket } of dialed) socket.write('?');
        await new Promise(setImmediate);
      }
      const { closes } = await guard!.counts();
      for (const { socket } of dialed) socket.write('anybody?');
      await dropped('closes', closes + 1);
      expect(dialed.flatMap(({ heard }) => heard)).toEqual([]);
    });

    it('lets a FIN and a RST out that were allowed, and no other', async () => {
      await install();
      const first = await connected(address);
      first.server.end();
      await dropped('closes', 1);
      expect(first.heard).toEqual([]);
      servers.pop()!.close();

      const second = await connected(address);
      allowClose(second.fd);
      second.server.end('bye');
      await once(second.socket, 'end');
      servers.pop()!.close();

      const third = await connected(address);
      allowClose(third.fd);
      third.server.resetAndDestroy();
      await new Promise((resolve) => third.socket.on('close', resolve));
      expect([first.heard, second.heard, third.heard]).toEqual([[], ['FIN'], ['ECONNRESET']]);
    });

    it('lets nobody new in where that is not wanted, and those go on that are in', async () => {
      await install();
      const { socket, server } = await connected(address);
      for (const until of [null, performance.now() + 60_000]) {
        await guard!.permit(address, until, false);
        const late = dial(address);
        server.write('hello');
        await once(socket, 'data');
        expect(await Promise.race([late.then(() => 'in'), sleep(300).then(() => 'out')])).toBe('out');
        await guard!.permit(address, until);
        // Its kernel tries again after a second.
        await late;
      }
    });

    it('permits until a moment and not longer, also when the sockets may send from any address', async () => {
      await install(true);
      await guard!.permit(address, null);
      const { socket, server, fd } = await connected(address);
      if (address === FOUR) setOption(fd, 0, IP_TRANSPARENT, 1);
      setOption(fd, SOL_SOCKET, 36, 0);
      server.setNoDelay(true);
      // Each word is the moment at which it was said: a busy machine may hear it late.
      let heard = '';
      socket.on('data', (bytes: Buffer) => (heard += bytes));
      const lastSaid = () => Number(heard.trimEnd().split('\n').at(-1));
      const chatter = setInterval(() => server.write(`${performance.now()}\n`), 2);
      const asked = performance.now();
      const until = asked + 700;
      await guard!.permit(address, until);
      // The kernel counts from when it is told.
      const late = performance.now() - asked;
      await sleep(until - performance.now());
      const before = (await guard!.counts()).unpermitted;
      await dropped('unpermitted', before + 3);
      // Nothing later than told, and not much earlier.
      expect(lastSaid()).toBeLessThan(until + late + 10);
      expect(lastSaid()).toBeGreaterThan(until - 200);

      const renewed = once(socket, 'data');
      await guard!.permit(address, performance.now() + 5000);
      await renewed;
      await guard!.permit(address, performance.now() - 1);
      const silent = performance.now();
      const { unpermitted } = await guard!.counts();
      await dropped('unpermitted', unpermitted + 1);
      clearInterval(chatter);
      expect(lastSaid()).toBeLessThan(silent);
    });
  });

  it('answers no ARP for an address without a permit', async () => {
    await install(true);
    await guard!.permit(FOUR, performance.now() - 1);
    const neighbour = () => client.sh(`ip -s neigh show ${FOUR} dev ${client.device}`);
    client.sh(`ip neigh flush all`);
    await client.inside(async () => {
      const attempt = connect({ host: FOUR, port: PORT });
      sockets.push(attempt.on('error', () => {}));
      await expect.poll(neighbour, { timeout: 10_000 }).toMatch(/probes [1-9]\d* (INCOMPLETE|FAILED)/);
    });
    await guard!.permit(FOUR, performance.now() + 3000);
    await connected(FOUR);
    expect(neighbour()).toContain('lladdr');
  });

  it('a permit that the kernel hears of too late does not count', async () => {
    let wait = 0;
    await install(true, async (command, env, timeoutMs) => {
      await sleep(wait);
      return host.run(command, env, timeoutMs);
    });
    await guard!.permit(FOUR, null);
    const { socket, server } = await connected(FOUR);
    // As long as a process is stopped between asking its clock and telling the kernel; time of day counts in whole seconds.
    wait = 1400;
    await guard!.permit(FOUR, performance.now() + 300);
    wait = 0;
    let heard = 0;
    socket.on('data', () => heard++);
    server.write('x');
    await dropped('unpermitted', 1);
    expect(heard).toBe(0);
  });

  it('replaces what a dead process left, is removed wholly, and says what is wrong', async () => {
    await install(true);
    const second = await install();
    expect(await second.counts()).toEqual({ closes: 0, unpermitted: 0 });
    await second.remove();
    await second.remove();
    expect(host.sh('nft list tables')).toBe('');
    const options = { name: 'test', addresses: [FOUR], ports: [PORT], closed: false, run: host.run };
    for (const wrong of [{ name: 'a b' }, { addresses: ['host; flush ruleset'] }]) {
      await expect(installGuard({ ...options, ...wrong })).rejects.toMatchObject({ code: 'OUTLIVE_GUARD' });
    }
    await expect(second.permit('10.0.0.1', null)).rejects.toThrow('10.0.0.1 is none of its addresses');
    const absent: RunCommand = () => Promise.reject(new Error('nft could not be started: ENOENT'));
    expect(await guardUnavailable(absent)).toBe('nft could not be started: ENOENT');
  });
});
