import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { type FaultProxy, type FaultProxyOptions, holds, startFaultProxy } from '../kit/fault-proxy.js';
import { eventually } from '../kit/servers.js';

/** The client end of a connection, with everything that came and how it ended. */
class Peer {
  readonly socket: Socket;
  readonly #closed: Promise<unknown>;
  bytes = Buffer.alloc(0);
  ended = false;
  error: string | undefined;

  constructor(socket: Socket) {
    this.socket = socket;
    this.#closed = new Promise((resolve) => socket.once('close', resolve));
    socket.on('data', (chunk) => {
      this.bytes = Buffer.concat([this.bytes, chunk]);
    });
    socket.on('end', () => {
      this.ended = true;
    });
    socket.on('error', (error: NodeJS.ErrnoException) => {
      this.error = error.code;
    });
  }

  get text(): string {
    return this.bytes.toString();
  }

  async receives(text: string): Promise<void> {
    await eventually(() => this.text === text, { message: `received '${this.text}', waiting for '${text}'` });
  }

  async closes(): Promise<void> {
    await this.#closed;
  }
}

describe('fault proxy', () => {
  let server: Server;
  let accepted: Peer[];
  let proxy: FaultProxy;
  let clients: Peer[];

  beforeEach(async () => {
    accepted = [];
    clients = [];
    server = createServer({ allowHalfOpen: true }, (socket) => accepted.push(new Peer(socket)));
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
  });

  afterEach(async () => {
    await proxy.close();
    for (const { socket } of [...accepted, ...clients]) socket.destroy();
    server.close();
  });

  async function start(options: Partial<FaultProxyOptions> = {}): Promise<void> {
    proxy = await startFaultProxy({
      target: { host: '127.0.0.1', port: (server.address() as AddressInfo).port },
      ...options,
    });
  }

  function dial(): Peer {
    const peer = new Peer(connect({ port: proxy.port, host: proxy.host }));
    clients.push(peer);
    return peer;
  }

  /** A connection with both its ends in hand. */
  async function open(): Promise<[client: Peer, backend: Peer]> {
    const count = accepted.length;
    const client = dial();
    await eventually(() => accepted.length > count, { message: 'the server sees the connection' });
    return [client, accepted[count]];
  }

  it('passes bytes and the end of each direction on', async () => {
    await start();
    const [client, backend] = await open();
    client.socket.write('question');
    await backend.receives('question');
    client.socket.end();
    await eventually(() => backend.ended);
    backend.socket.write('answer');
    await client.receives('answer');
    expect(client.ended).toBe(false);
    backend.socket.end();
    await client.closes();
    expect(client.ended).toBe(true);
    expect(client.error).toBeUndefined();
    await eventually(() => proxy.connections.length === 0);
  });

  it('passes large amounts on in both directions at once', async () => {
    await start();
    const [client, backend] = await open();
    const up = Buffer.alloc(5_000_000, 'u');
    const down = Buffer.alloc(7_000_000, 'd');
    client.socket.write(up);
    backend.socket.write(down);
    await eventually(() => backend.bytes.length === up.length && client.bytes.length === down.length);
    expect(backend.bytes.equals(up)).toBe(true);
    expect(client.bytes.equals(down)).toBe(true);
    expect(proxy.connections[0].forwarded('client')).toBe(up.length);
    expect(proxy.connections[0].received('server')).toBe(down.length);
  });

  it('resets the client when the server resets or cannot be reached', async () => {
    await start();
    const [client, backend] = await open();
    backend.socket.resetAndDestroy();
    await client.closes();
    expect(client.error).toBe('ECONNRESET');

    server.close();
    const late = dial();
    await late.closes();
    expect(late.error).toBe('ECONNRESET');
  });

  it('resets the server when the client resets', async () => {
    await start();
    const [client, backend] = await open();
    client.socket.resetAndDestroy();
    await backend.closes();
    expect(backend.error).toBe('ECONNRESET');
  });

  it('resets also what it has just ended', async () => {
    await start();
    const [client] = await open();
    const [connection] = proxy.connections;
    connection.cut('end');
    connection.cut();
    await connection.closed;
    await client.closes();
  });

  it('holds replies, and their end, until released', async () => {
    await start();
    const [client, backend] = await open();
    proxy.holdServerReplies();
    backend.socket.write('late ');
    backend.socket.end('reply');
    await eventually(() => proxy.connections[0].received('server') === 10);
    client.socket.write('still heard');
    await backend.receives('still heard');
    expect(client.text).toBe('');
    expect(client.ended).toBe(false);
    expect(proxy.connections[0].parked('server').toString()).toBe('late reply');
    expect(proxy.connections[0].forwarded('server')).toBe(0);
    proxy.release();
    await client.receives('late reply');
    await eventually(() => client.ended);
  });

  it('holds what the client says, even when the client is gone at the release', async () => {
    await start();
    const [client, backend] = await open();
    const [connection] = proxy.connections;
    connection.holdClientBytes();
    client.socket.write('COMMIT');
    await eventually(() => connection.received('client') === 6);
    client.socket.resetAndDestroy();
    await client.closes();
    await new Promise(setImmediate);
    expect(backend.text).toBe('');
    expect(backend.ended).toBe(false);
    connection.release();
    await backend.receives('COMMIT');
    await eventually(() => backend.ended);
    backend.socket.end();
    await connection.closed;
  });

  it('holds also on connections that come later', async () => {
    await start();
    proxy.holdServerReplies();
    const [client, backend] = await open();
    backend.socket.write('x');
    await eventually(() => proxy.connections[0]?.received('server') === 1);
    expect(client.text).toBe('');
    await proxy.heal();
    await client.receives('x');
  });

  it.each([1, 5, 9, 10])('cuts after exactly %i bytes from the server', async (bytes) => {
    await start();
    for (let round = 0; round < 5; round++) {
      const [client, backend] = await open();
      backend.socket.write('already.');
      await client.receives('already.');
      proxy.connections[0].cutAfterServerBytes(bytes);
      backend.socket.write('01234');
      backend.socket.write('56789');
      await client.closes();
      // Whether it sees an end or a reset depends on how fast it reads: libuv calls bytes with a reset behind them an end.
      expect(client.text).toBe(`already.${'0123456789'.slice(0, bytes)}`);
      await backend.closes();
      await eventually(() => proxy.connections.length === 0);
    }
  });

  it('cuts at once after zero bytes, and can end in an orderly way', async () => {
    await start();
    const [first] = await open();
    proxy.connections[0].cutAfterServerBytes(0);
    await first.closes();
    expect(first.error).toBe('ECONNRESET');

    const [second, backend] = await open();
    proxy.connections.at(-1)?.cutAfterServerBytes(3, 'end');
    backend.socket.write('abcdef');
    await second.closes();
    expect(second.text).toBe('abc');
    expect(second.error).toBeUndefined();
    expect(second.ended).toBe(true);
  });

  it('cuts after exactly so many bytes from the client, also on connections to come', async () => {
    await start();
    proxy.cutAfterClientBytes(4);
    const [client, backend] = await open();
    client.socket.write('abcdef');
    await eventually(() => backend.ended || backend.error !== undefined);
    expect(backend.text).toBe('abcd');
    await client.closes();
    expect(client.error).toBe('ECONNRESET');
    await proxy.heal();
    const [again, behind] = await open();
    again.socket.write('abcdef');
    await behind.receives('abcdef');
  });

  it('swallows everything in a black hole, and resets what lost bytes when healed', async () => {
    await start();
    const [talker, behindTalker] = await open();
    const [silent, behindSilent] = await open();
    proxy.blackhole();
    const stuck = dial();
    await once(stuck.socket, 'connect');
    talker.socket.write('lost');
    stuck.socket.write('hello?');
    await eventually(() => proxy.connections[0].received('client') === 4);
    await eventually(() => proxy.connections[2]?.received('client') === 6);
    expect(accepted).toHaveLength(2);
    expect(behindTalker.text).toBe('');
    expect(talker.ended || stuck.ended).toBe(false);

    await proxy.heal();
    await Promise.all([talker.closes(), stuck.closes(), behindTalker.closes()]);
    expect(talker.error).toBe('ECONNRESET');
    expect(stuck.error).toBe('ECONNRESET');
    silent.socket.write('unharmed');
    await behindSilent.receives('unharmed');
    const [fresh, behindFresh] = await open();
    fresh.socket.write('new');
    await behindFresh.receives('new');
  });

  it('keeps the end of one side from the other in a black hole', async () => {
    await start();
    const [client, backend] = await open();
    proxy.connections[0].blackhole();
    client.socket.resetAndDestroy();
    await client.closes();
    await new Promise(setImmediate);
    backend.socket.write('anyone?');
    await eventually(() => proxy.connections[0].received('server') === 7);
    expect(backend.ended || backend.socket.closed).toBe(false);
    await proxy.heal();
    await backend.closes();
  });

  it('refuses new connections, keeps the open ones, and listens on the same port again', async () => {
    await start();
    const [client, backend] = await open();
    const { port } = proxy;
    proxy.refuse();
    const refused = dial();
    await refused.closes();
    expect(refused.error).toBe('ECONNREFUSED');
    client.socket.write('still here');
    await backend.receives('still here');
    await proxy.heal();
    expect(proxy.port).toBe(port);
    await open();
  });

  it('runs a trigger before the matching chunk goes on', async () => {
    await start();
    const [client, backend] = await open();
    proxy.when('client', holds('COMMIT'), (connection) => connection.holdClientBytes());
    client.socket.write('INSERT;');
    await backend.receives('INSERT;');
    client.socket.write('COMMIT;');
    const [connection] = proxy.connections;
    await eventually(() => connection.parked('client').toString() === 'COMMIT;');
    expect(backend.text).toBe('INSERT;');
    connection.release();
    await backend.receives('INSERT;COMMIT;');
  });

  it('lets the commit through and loses its answer', async () => {
    await start();
    const [client, backend] = await open();
    proxy.when('client', holds('COMMIT'), (connection) => connection.holdServerReplies());
    backend.socket.on('data', () => backend.socket.write('done;'));
    client.socket.write('INSERT');
    await client.receives('done;');
    client.socket.write('COMMIT');
    await backend.receives('INSERTCOMMIT');
    await eventually(() => proxy.connections[0].parked('server').length === 5);
    proxy.cut();
    await client.closes();
    expect(client.text).toBe('done;');
  });

  it('matches across chunks, once, and only on bytes since the trigger was set', async () => {
    await start();
    const [client, backend] = await open();
    client.socket.write('needle');
    await backend.receives('needle');
    let fired = 0;
    proxy.when('client', holds('needle'), () => void fired++);
    client.socket.write('nee');
    await backend.receives('needlenee');
    expect(fired).toBe(0);
    client.socket.write('dle');
    await backend.receives('needleneedle');
    expect(fired).toBe(1);
    client.socket.write('needle');
    await backend.receives('needleneedleneedle');
    expect(fired).toBe(1);
  });

  it('keeps the streams of connections apart, counts firings and forgets removed triggers', async () => {
    await start();
    const [first, behindFirst] = await open();
    const [second, behindSecond] = await open();
    const fired: number[] = [];
    proxy.when('server', holds('ab'), ({ id }) => fired.push(id), { times: 2 });
    const remove = proxy.when('server', holds('ab'), () => fired.push(-1), { connection: proxy.connections[0] });
    remove();
    behindFirst.socket.write('a');
    behindSecond.socket.write('b');
    await first.receives('a');
    await second.receives('b');
    behindFirst.socket.write('b');
    await first.receives('ab');
    behindSecond.socket.write('ab');
    await second.receives('bab');
    behindSecond.socket.write('ab');
    await second.receives('babab');
    expect(fired).toEqual([1, 2]);
  });

  it('holds the matching side while an asynchronous action runs, and reports its failure at the end', async () => {
    await start();
    const [client, backend] = await open();
    let finish = () => {};
    proxy.when('client', holds('!'), () => new Promise<void>((resolve) => (finish = resolve)));
    client.socket.write('a!');
    client.socket.write('b');
    const [connection] = proxy.connections;
    await eventually(() => connection.parked('client').toString() === 'a!b');
    expect(backend.text).toBe('');
    finish();
    await backend.receives('a!b');

    proxy.when('client', holds('?'), async () => {
      throw new Error('the action failed');
    });
    client.socket.write('?');
    await backend.receives('a!b?');
    await expect(proxy.close()).rejects.toThrow('the action failed');
    await start();
  });

  it('cuts from a trigger without letting anything of the chunk through', async () => {
    await start();
    const [client, backend] = await open();
    proxy.when('server', holds('secret'), (connection) => connection.cut());
    backend.socket.write('secret');
    await client.closes();
    expect(client.text).toBe('');
  });

  it('waits for bytes and for connections', async () => {
    await start();
    const next = proxy.nextConnection();
    const [client] = await open();
    const connection = await next;
    expect(connection.id).toBe(1);
    const seen = proxy.waitFor('client', holds('ready'));
    client.socket.write('ready');
    expect(await seen).toBe(connection);
    await expect(proxy.waitFor('server', () => true, { timeoutMs: 20 })).rejects.toThrow('did not come within 20 ms');
  });

  it('asks for the target of each connection and shows the bytes to the taps', async () => {
    let asked = 0;
    const seen: string[] = [];
    await start({
      target: () => {
        asked++;
        return { host: '127.0.0.1', port: (server.address() as AddressInfo).port };
      },
      onClientBytes: (chunk) => seen.push(`client ${chunk}`),
      onServerBytes: (chunk) => Buffer.from(chunk.toString().toUpperCase()),
    });
    const [client, backend] = await open();
    await open();
    expect(asked).toBe(2);
    client.socket.write('hi');
    await backend.receives('hi');
    expect(seen).toEqual(['client hi']);
    backend.socket.write('ho');
    await client.receives('HO');
  });
});
