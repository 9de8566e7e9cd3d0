import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import * as net from 'node:net';
import { join, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import * as tls from 'node:tls';
import { promisify } from 'node:util';
import { afterEach, beforeAll, describe, expect, it } from 'vitest';
import { FRAME } from '../../core/cluster/link/index.js';
import { CodedError } from '../../core/contract/index.js';
import { PairLink } from '../../core/io/pair-link.js';
import { PairListener } from '../../core/io/pair-listener.js';
import { closedPort, End, Forger, type LinkChange, PEM, Relay, SECRET, until } from '../kit/pair-link.js';
import { tempDir } from '../kit/servers.js';

const ROOT = resolve(import.meta.dirname, '../..');
const undo: (() => unknown)[] = [];

afterEach(async () => {
  for (const it of undo.splice(0).reverse()) await it();
});

async function end(name: string, change: LinkChange = {}): Promise<End> {
  const it = new End(name, change);
  undo.push(() => it.link.close());
  await it.link.start();
  return it;
}

async function relay(): Promise<{ relay: Relay; port: number }> {
  const it = new Relay();
  undo.push(() => it.close());
  return { relay: it, port: await it.start() };
}

async function forge(port: number, name?: string): Promise<Forger> {
  const it = await Forger.connect(port, name);
  undo.push(() => it.socket.destroy());
  return it;
}

/** Two ends that both connect and both listen, each through a relay. */
async function pair(a: LinkChange = {}, b: LinkChange = {}): Promise<{ a: End; b: End; toA: Relay; toB: Relay }> {
  const toA = await relay();
  const toB = await relay();
  const one = await end('a', { peer: { name: 'b', host: '127.0.0.1', port: toB.port }, ...a });
  toA.relay.target = one.link.port;
  const other = new End('b', { peer: { name: 'a', host: '127.0.0.1', port: toA.port }, ...b });
  undo.push(() => other.link.close());
  // b listens before it is known where: a's first attempts may fail, as they do when gateways start one after the other.
  await other.link.start();
  toB.relay.target = other.link.port;
  return { a: one, b: other, toA: toA.relay, toB: toB.relay };
}

async function bothUp({ a, b }: { a: End; b: End }): Promise<void> {
  await until(() => a.link.up && b.link.up, 'both are linked');
}

function certificates(of: { cert: string; key: string }, more: object = {}): LinkChange['auth'] {
  return { kind: 'tls', ...of, ca: PEM.ca, ...more };
}

/** The end `a`, whose peer `b` is not there. */
async function alone(change: LinkChange = {}): Promise<End> {
  return await end('a', {
    peer: { name: 'b', host: '127.0.0.1', port: await closedPort() },
    backoffMs: [1000, 2000],
    ...change,
  });
}

describe('a pair link', () => {
  it.each<[string, LinkChange, LinkChange]>([
    ['a shared key', {}, {}],
    ['certificates', { auth: certificates(PEM.a) }, { auth: certificates(PEM.b) }],
    [
      'certificates for other names',
      { auth: certificates(PEM.c, { peerName: 'b' }) },
      { auth: certificates(PEM.b, { peerName: 'c' }) },
    ],
  ])('carries records, acknowledgements, statistics and questions both ways, with %s', async (_, one, other) => {
    const both = await pair(one, other);
    const { a, b } = both;
    await bothUp(both);
    expect(a.ups[0]).toMatchObject({ name: 'b', peer: 'a', cluster: 'pair', epoch: 1, version: { major: 1 } });
    for (const [from, to] of [
      [a, b],
      [b, a],
    ]) {
      expect(from.link.append(1, 7, Buffer.from('one'))).toBe(0);
      expect(from.link.append(255, 2 ** 32 - 1, [Buffer.from('t'), Buffer.from('wo')])).toBe(1);
      from.link.beat({ load: 1 });
      expect(await from.link.control({ ask: 1 })).toEqual({ echo: { ask: 1 } });
      expect(await from.link.control(undefined)).toEqual({ echo: null });
      expect(to.records).toEqual([
        { kind: 1, session: 7, bytes: Buffer.from('one') },
        { kind: 255, session: 2 ** 32 - 1, bytes: Buffer.from('two') },
      ]);
      expect(to.beats).toEqual([{ load: 1 }]);
      await until(() => from.acks.at(-1) === 2, 'all is acknowledged');
      expect(from.link.backlog).toBe(0);
    }
    expect(a.link.counters).toMatchObject({ recordsSent: 2, recordsReceived: 2 });
  });

  it.each<[string, (name: 'a' | 'b' | 'c') => LinkChange]>([
    ['a shared key', () => ({})],
    ['certificates', (name) => ({ auth: certificates(PEM[name]) })],
  ])('shares its port with links to other gateways, with %s', async (_, own) => {
    const { auth = { kind: 'psk', secret: SECRET } } = own('a');
    const log = { debug: () => {}, info: () => {}, warn: () => {}, error: () => {} };
    const listen = new PairListener({ host: '127.0.0.1', port: 0, name: 'a', cluster: 'pair', auth, log });
    undo.push(() => listen.close());
    const nobody = await closedPort();
    const links = ['b', 'c'].map(
      (name) => new End('a', { ...own('a'), listen, peer: { name, host: '127.0.0.1', port: nobody } }),
    );
    for (const each of links) undo.push(() => each.link.close());
    await listen.start();
    for (const each of links) await each.link.start();
    const toA = { name: 'a', host: '127.0.0.1', port: listen.port };
    const [b, c] = [await end('b', { ...own('b'), peer: toA }), await end('c', { ...own('c'), peer: toA })];
    for (const [near, far, name] of [
      [links[0], b, 'b'],
      [links[1], c, 'c'],
    ] as const) {
      await until(() => near.link.up && far.link.up, `${name} is linked`);
      expect(near.ups.map((hello) => hello.name)).toEqual([name]);
      expect(near.link.append(1, 7, Buffer.from(name))).toBe(0);
      await until(() => near.acks.at(-1) === 1, 'it is acknowledged');
      expect(far.records).toEqual([{ kind: 1, session: 7, bytes: Buffer.from(name) }]);
    }
    // Who has the key and is none of them is refused, and so is one of them that calls itself otherwise.
    const stranger = await end('d', { ...own('c'), peer: toA });
    await until(() => stranger.codes.length > 0, 'the stranger is refused');
    expect(stranger.link.up).toBe(false);
    expect([links[0].link.up, links[1].link.up, links[0].downs.length, links[1].downs.length]).toEqual([
      true,
      true,
      0,
      0,
    ]);
  });

  it('is one, though both connect, and stays', async () => {
    for (let round = 0; round < 5; round++) {
      const both = await pair();
      await bothUp(both);
      const begun = both.toA.connections + both.toB.connections;
      await new Promise((resolve) => setTimeout(resolve, 400));
      expect([both.a.ups.length, both.b.ups.length, both.a.downs.length, both.b.downs.length]).toEqual([1, 1, 0, 0]);
      expect(both.toA.connections + both.toB.connections - begun).toBeLessThan(2);
    }
  });

  it('comes back after it was cut, begins at 0, and drops what was not acknowledged', async () => {
    const both = await pair();
    const { a, b, toA, toB } = both;
    await bothUp(both);
    a.link.append(1, 1, Buffer.from('held'));
    await until(() => a.acks.at(-1) === 1, 'it is held');
    for (const it of [toA, toB]) it.hold();
    a.link.append(1, 1, Buffer.from('lost'));
    a.link.flush();
    const asked = a.link.control('lost');
    for (const it of [toA, toB]) {
      it.release();
      it.cut();
    }
    await expect(asked).rejects.toMatchObject({ code: 'OUTLIVE_PAIR_DOWN' });
    await until(() => a.ups.length === 2 && b.ups.length === 2, 'they are linked again');
    expect(a.link.append(2, 1, Buffer.from('new'))).toBe(0);
    await until(() => a.acks.at(-1) === 1 && b.records.length === 2, 'it is held');
    expect(b.records.map(({ bytes }) => bytes.toString())).toEqual(['held', 'new']);
    expect(a.ups[0].incarnation).toBe(a.ups[1].incarnation);
  });

  it('says what is not there: no link, no answer in time, an answer that is an error', async () => {
    const { a, b, ...rest } = await pair({}, { onControl: (request) => refuse(request) });
    function refuse(request: unknown): void {
      if (request === 'throw') throw new CodedError('OUTLIVE_X', 'gateway', 'not now');
    }
    await bothUp({ a, b });
    await expect(a.link.control('silence', 50)).rejects.toMatchObject({ code: 'OUTLIVE_PAIR_TIMEOUT' });
    await expect(a.link.control('throw')).rejects.toMatchObject({
      code: 'OUTLIVE_X',
      message: 'the peer could not do it: not now',
    });
    await expect(a.link.control('x'.repeat(2 ** 20))).rejects.toMatchObject({ code: 'OUTLIVE_PAIR_TOO_LARGE' });
    expect(() => a.link.append(1, 1, new Uint8Array(64 * 1024 * 1024))).toThrow(/larger than a frame/);
    expect([a.link.up, b.link.up]).toEqual([true, true]);
    rest.toA.close();
    rest.toB.close();
    await until(() => !a.link.up, 'it is down');
    await expect(a.link.control('x')).rejects.toMatchObject({ code: 'OUTLIVE_PAIR_DOWN' });
    expect(a.link.append(1, 1, new Uint8Array(1))).toBe(-1);
    a.link.beat({});
    a.link.flush();
  });

  it('is gone for both when one takes leave', async () => {
    const both = await pair();
    await bothUp(both);
    await both.a.link.close();
    await until(() => both.b.downs.length === 1, 'b is told');
    expect(both.a.downs.map(({ code }) => code)).toEqual(['OUTLIVE_PAIR_DOWN']);
    expect(both.b.downs.map(({ code }) => code)).toEqual(['OUTLIVE_PAIR_LEFT']);
    await both.a.link.close();
  });

  it('ends when a record cannot be held, acknowledges nothing of it, and comes back', async () => {
    let fails = true;
    const both = await pair(
      {},
      {
        onRecord: () => {
          if (fails) throw new Error('no room');
        },
      },
    );
    const { a, b } = both;
    await bothUp(both);
    a.link.append(1, 1, new Uint8Array(10));
    await until(() => a.downs.length === 1 && b.downs.length === 1, 'both are down');
    expect(a.acks).toEqual([]);
    expect(b.downs[0]).toMatchObject({ code: 'OUTLIVE_INTERNAL' });
    fails = false;
    await until(() => a.ups.length === 2 && b.ups.length === 2, 'they are linked again');
    a.link.append(1, 1, new Uint8Array(10));
    await until(() => a.acks.at(-1) === 1, 'it is held');
  });

  it('refuses to start with what cannot work', async () => {
    expect(() => new End('a', { auth: { kind: 'psk', secret: 'short' } })).toThrow(/16 characters/);
    expect(() => new End('a', { auth: { kind: 'tls', cert: 'x', key: 'y', ca: 'z' } })).toThrow(/cannot be used/);
    const a = await end('a');
    const taken = new End('b', { listen: { host: '127.0.0.1', port: a.link.port } });
    await expect(taken.link.start()).rejects.toMatchObject({ code: 'OUTLIVE_LISTEN_FAILED' });
  });
});

describe('much', () => {
  it('is carried in one turn: 100,000 records, then 30 MB, in order and unchanged', async () => {
    const hash = createHash('sha256');
    let count = 0;
    const both = await pair(
      {},
      {
        onRecord: (kind, session, bytes) => {
          hash.update(Uint8Array.of(kind, session & 255)).update(bytes);
          count++;
        },
      },
    );
    const { a } = both;
    await bothUp(both);
    const expected = createHash('sha256');
    const add = (kind: number, session: number, bytes: Uint8Array): void => {
      if (a.link.append(kind, session, bytes) < 0) throw new Error('there is no link');
      expected.update(Uint8Array.of(kind, session & 255)).update(bytes);
    };
    const small = randomBytes(200);
    for (let at = 0; at < 100_000; at++) add(at & 255, at, small.subarray(0, at % 200));
    add(1, 1, randomBytes(30_000_000));
    add(2, 2, small);
    await until(() => a.acks.at(-1) === 100_002, 'all is held', 20_000);
    expect(count).toBe(100_002);
    expect(hash.digest('hex')).toBe(expected.digest('hex'));
    expect(both.a.downs).toEqual([]);
    expect(a.link.backlog).toBe(0);
  });

  it('for a peer that does not read is bounded: pressure first, then the link is given up', async () => {
    const a = await alone({ backlogLimit: 1024 * 1024, silenceMs: 20_000 });
    const forger = await forge(a.link.port);
    await forger.link();
    forger.socket.pause();
    const record = new Uint8Array(100_000);
    for (let at = 0; a.pressures.length === 0 && at < 100; at++) a.link.append(1, 1, record);
    expect(a.pressures).toEqual([true]);
    expect(a.link.backlog).toBeLessThan(1.2 * 1024 * 1024);
    let position = 0;
    for (let at = 0; position >= 0 && at < 100; at++) position = a.link.append(1, 1, record);
    expect(position).toBe(-1);
    await until(() => a.downs.length === 1, 'it is given up');
    expect(a.downs[0].code).toBe('OUTLIVE_PAIR_OVERFLOW');
    expect(a.pressures).toEqual([true, false]);
    expect(a.link.backlog).toBe(0);
  });

  it('that questions of a peer bring about which does not read is bounded, too', async () => {
    const a = await alone({ backlogLimit: 1024 * 1024, silenceMs: 20_000 });
    const forger = await forge(a.link.port);
    await forger.link();
    forger.socket.pause();
    const body = 'x'.repeat(900_000);
    for (let id = 0; id < 30 && a.link.up; id++) {
      forger.encoder.json(FRAME.control, { kind: 'request', id, body });
      forger.send();
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    await until(() => a.downs.length === 1, 'it is given up');
    expect(a.downs[0].code).toBe('OUTLIVE_PAIR_OVERFLOW');
  });

  it('is low again when the peer acknowledges', async () => {
    const both = await pair({ backlogLimit: 1024 * 1024 });
    await bothUp(both);
    for (let at = 0; at < 12; at++) both.a.link.append(1, 1, new Uint8Array(100_000));
    expect(both.a.pressures).toEqual([true]);
    await until(() => both.a.pressures.length === 2, 'it is low again');
    expect(both.a.pressures).toEqual([true, false]);
  });
});

describe('a stranger', () => {
  /** The pair is linked; somebody else is refused; the pair never notices. */
  async function besides(
    change: LinkChange,
    attempt: (port: number) => Promise<unknown>,
  ): Promise<{ a: End; codes: (string | undefined)[] }> {
    const both = await pair(change, change.auth?.kind === 'tls' ? { auth: certificates(PEM.b) } : {});
    await bothUp(both);
    const { a, b } = both;
    const before = a.codes.length;
    await attempt(a.link.port);
    a.link.append(1, 1, new Uint8Array(1));
    await until(() => a.acks.at(-1) === 1, 'the peer is served');
    expect([a.ups.length, b.ups.length, a.downs.length, b.downs.length]).toEqual([1, 1, 0, 0]);
    return { a, codes: a.codes.slice(before) };
  }

  it('with a wrong key is refused, named and logged once, on both sides, and may go on trying', async () => {
    let intruder: End | undefined;
    const { codes, a } = await besides({}, async (port) => {
      intruder = await end('b', {
        peer: { name: 'a', host: '127.0.0.1', port },
        listen: null,
        auth: { kind: 'psk', secret: 'another secret, as long as the other' },
        backoffMs: [10, 20],
      });
      await new Promise((resolve) => setTimeout(resolve, 500));
    });
    expect(codes).toEqual(['OUTLIVE_PAIR_AUTH']);
    expect(intruder?.codes).toEqual(['OUTLIVE_PAIR_AUTH']);
    expect(intruder?.ups).toEqual([]);
    const told = JSON.stringify([a.lines, intruder?.lines]);
    expect(told).not.toContain(SECRET);
    expect(told).not.toContain('another secret');
  });

  it.each<[string, LinkChange['auth'], RegExp]>([
    ['of another CA', { kind: 'tls', ...PEM.bOther, ca: PEM.ca }, /certificate is not accepted/],
    ['of the CA, for another name', certificates(PEM.c), /does not name "b"/],
  ])('whose certificate is %s is refused and named, on both sides', async (_, auth, text) => {
    let intruder: End | undefined;
    const { a, codes } = await besides({ auth: certificates(PEM.a) }, async (port) => {
      const peer = { name: 'a', host: '127.0.0.1', port };
      intruder = await end('b', { auth, peer, listen: null, backoffMs: [20, 20] });
      await until(() => intruder?.codes.includes('OUTLIVE_PAIR_AUTH') === true, 'it is told');
      await new Promise((resolve) => setTimeout(resolve, 100));
    });
    expect(codes).toEqual(['OUTLIVE_PAIR_AUTH']);
    expect(a.lines.some(({ error }) => text.test(error?.message ?? ''))).toBe(true);
    expect(intruder?.ups).toEqual([]);
  });

  it('that has a shared key where certificates are wanted does not believe the certificate, and says so', async () => {
    let intruder: End | undefined;
    const { codes } = await besides({ auth: certificates(PEM.a) }, async (port) => {
      const peer = { name: 'a', host: '127.0.0.1', port };
      intruder = await end('b', { peer, listen: null, backoffMs: [20, 20] });
      await until(() => (intruder?.codes.length ?? 0) > 0, 'it is told');
    });
    expect(codes).toEqual([]);
    expect(intruder?.codes).toEqual(['OUTLIVE_PAIR_AUTH']);
  });

  it('that shows no certificate is refused', async () => {
    const { codes } = await besides({ auth: certificates(PEM.a) }, async (port) => {
      const socket = tls.connect({ host: '127.0.0.1', port, rejectUnauthorized: false });
      socket.on('error', () => {});
      socket.resume();
      await once(socket, 'close');
    });
    expect(codes).toEqual(['OUTLIVE_PAIR_AUTH']);
  });

  it('in the place of the peer is not believed, whatever certificate it has', async () => {
    for (const requestCert of [false, true]) {
      const server = tls.createServer({ ...PEM.b, requestCert, rejectUnauthorized: false });
      server.on('tlsClientError', () => {});
      server.listen(0, '127.0.0.1');
      await once(server, 'listening');
      undo.push(() => server.close());
      const peer = { name: 'b', host: '127.0.0.1', port: (server.address() as net.AddressInfo).port };
      const a = await end('a', { peer, listen: null });
      await until(() => a.codes.length > 0, 'it is refused');
      expect(a.codes).toEqual(['OUTLIVE_PAIR_AUTH']);
      const other = await end('a', { peer, listen: null, auth: { kind: 'tls', ...PEM.a, ca: PEM.otherCa } });
      await until(() => other.codes.length > 0, 'it is refused');
      expect(other.codes).toEqual(['OUTLIVE_PAIR_AUTH']);
    }
  });

  it('that sends garbage, or nothing, in crowds, is closed and makes few lines', async () => {
    const { codes, a } = await besides({ handshakeMs: 700 }, async (port) => {
      const ends: Promise<unknown>[] = [];
      for (let at = 0; at < 160; at++) {
        const socket = net.connect(port, '127.0.0.1');
        socket.on('error', () => {});
        socket.resume();
        ends.push(once(socket, 'close'));
        if (at % 4 === 0) socket.write('GET / HTTP/1.1\r\n\r\n');
        if (at % 4 === 1) socket.write(randomBytes(5000));
        if (at % 4 === 2) socket.end();
      }
      await Promise.all(ends);
    });
    expect(new Set(codes)).toEqual(new Set(['OUTLIVE_PAIR_PROTOCOL', 'OUTLIVE_PAIR_AUTH', 'OUTLIVE_PAIR_SILENT']));
    expect(codes.length).toBeLessThan(10);
    expect(a.downs).toEqual([]);
  });
});

describe('a peer with the right key', () => {
  const version = { major: 0, minor: 9 };
  /** What it does, how that is called, and whether it does it before it is the link. */
  const misdeeds: [string, string, boolean, (forger: Forger) => Promise<void>][] = [
    ['of an old version', 'OUTLIVE_PAIR_VERSION', true, (forger) => forger.hello({ version })],
    ['of another name', 'OUTLIVE_PAIR_NAME', true, (forger) => forger.hello({ name: 'c', peer: 'a' })],
    ['of another pair', 'OUTLIVE_PAIR_NAME', true, (forger) => forger.hello({ cluster: 'other' })],
    ['that takes us for another', 'OUTLIVE_PAIR_NAME', true, (forger) => forger.hello({ peer: 'c' })],
    ['with a lower epoch than before', 'OUTLIVE_PAIR_EPOCH', false, (forger) => forger.hello({ epoch: 4 })],
    [
      'that comes to a lower epoch',
      'OUTLIVE_PAIR_EPOCH',
      false,
      async (forger) => {
        await forger.link({ epoch: 5 });
        forger.beat(4);
      },
    ],
    [
      'that sends garbage',
      'OUTLIVE_PAIR_PROTOCOL',
      true,
      async (forger) => forger.send(randomBytes(100).fill(0, 0, 4)),
    ],
    [
      'that sends garbage later',
      'OUTLIVE_PAIR_PROTOCOL',
      false,
      async (forger) => {
        await forger.link({ epoch: 5 });
        forger.send(Buffer.from([0, 0, 0, 3, 77, 1, 1]));
      },
    ],
    [
      'that sends records before it is the link',
      'OUTLIVE_PAIR_PROTOCOL',
      true,
      async (forger) => {
        forger.encoder.record(1, 1, new Uint8Array(1));
        forger.send();
      },
    ],
    [
      'that announces a long frame before it is the link',
      'OUTLIVE_PAIR_PROTOCOL',
      true,
      async (forger) => forger.send(Buffer.from([0, 1, 0, 0, FRAME.hello])),
    ],
    [
      'that repeats records',
      'OUTLIVE_PAIR_POSITION',
      false,
      async (forger) => {
        await forger.link({ epoch: 5 });
        forger.encoder.record(1, 1, new Uint8Array(1));
        const bytes = Buffer.concat(forger.encoder.take());
        forger.send(bytes);
        forger.send(bytes);
      },
    ],
    [
      'that leaves out records',
      'OUTLIVE_PAIR_POSITION',
      false,
      async (forger) => {
        await forger.link({ epoch: 5 });
        forger.encoder.record(1, 1, new Uint8Array(1));
        forger.encoder.take();
        forger.encoder.record(1, 1, new Uint8Array(1));
        forger.send();
      },
    ],
    [
      'that acknowledges what was never sent',
      'OUTLIVE_PAIR_POSITION',
      false,
      async (forger) => {
        await forger.link({ epoch: 5 });
        forger.encoder.acknowledge(9);
        forger.send();
      },
    ],
  ];

  it.each(misdeeds)(
    '%s is refused with %s, told so and logged; the true one is served afterwards',
    async (_, code, _early, misdeed) => {
      const { relay: toB, port } = await relay();
      const a = await end('a', { peer: { name: 'b', host: '127.0.0.1', port }, backoffMs: [50, 100] });
      // An earlier link: from now on the peer's epoch is 5.
      const before = await forge(a.link.port);
      await before.link({ epoch: 5, incarnation: 'same' });
      before.socket.destroy();
      await until(() => !a.link.up, 'it is gone');
      const earlier = a.lines.length;
      const forger = await forge(a.link.port);
      await misdeed(forger);
      expect((await forger.got(FRAME.error)).code).toBe(code);
      await until(() => forger.closed, 'it is closed');
      const line = a.lines.slice(earlier).find((it) => it.code === code);
      expect(line?.level).toBe('warn');
      expect(line?.error?.message).toMatch(/^the peer/);

      const b = new End('b', { peer: { name: 'a', host: '127.0.0.1', port: a.link.port } });
      b.epoch = 5;
      undo.push(() => b.link.close());
      await b.link.start();
      toB.target = b.link.port;
      await bothUp({ a, b });
      b.link.append(1, 1, new Uint8Array(1));
      await until(() => b.acks.at(-1) === 1, 'it is served');
    },
  );

  it.each(misdeeds.filter(([, , early]) => early))(
    '%s does not disturb the link with the true one',
    async (_, code, _early, misdeed) => {
      const both = await pair();
      await bothUp(both);
      const forger = await forge(both.a.link.port);
      await misdeed(forger);
      await until(() => forger.closed, 'it is closed');
      expect(both.a.codes.at(-1)).toBe(code);
      expect([both.a.downs.length, both.b.downs.length]).toEqual([0, 0]);
    },
  );

  it('that is this gateway itself, by a wrong address, is named', async () => {
    const { relay: toSelf, port } = await relay();
    const a = await end('a', { peer: { name: 'b', host: '127.0.0.1', port } });
    toSelf.target = a.link.port;
    await until(() => a.codes.includes('OUTLIVE_PAIR_NAME'), 'it is refused');
    expect(a.lines.some(({ error }) => error?.message.includes('as this gateway itself'))).toBe(true);
    expect(a.ups).toEqual([]);
  });
});

describe('silence', () => {
  it('of a half-open connection ends the link on both sides, in time, and another one is made', async () => {
    const both = await pair({ silenceMs: 400, beatMs: 50 }, { silenceMs: 400, beatMs: 50 });
    const { a, b, toA, toB } = both;
    await bothUp(both);
    await new Promise((resolve) => setTimeout(resolve, 600));
    expect(a.downs.length + b.downs.length).toBe(0);
    for (const it of [toA, toB]) it.hold();
    const from = performance.now();
    await until(() => a.downs.length === 1 && b.downs.length === 1, 'both notice');
    const took = performance.now() - from;
    expect(took).toBeGreaterThan(250);
    expect(took).toBeLessThan(1200);
    expect([a.downs[0].code, b.downs[0].code]).toEqual(['OUTLIVE_PAIR_SILENT', 'OUTLIVE_PAIR_SILENT']);
    for (const it of [toA, toB]) {
      it.release();
      it.cut();
    }
    await until(() => a.ups.length === 2 && b.ups.length === 2, 'they are linked again', 10_000);
  });

  it('in the handshake ends the attempt', async () => {
    const silent = net.createServer().listen(0, '127.0.0.1');
    await once(silent, 'listening');
    undo.push(() => silent.close());
    const port = (silent.address() as net.AddressInfo).port;
    const a = await end('a', { peer: { name: 'b', host: '127.0.0.1', port }, handshakeMs: 200 });
    await until(() => a.codes.length > 0, 'it is noticed');
    expect(a.codes).toEqual(['OUTLIVE_PAIR_SILENT']);
    const forger = await forge(a.link.port);
    await until(() => forger.closed, 'it is closed');
  });
});

describe('a peer in another process', () => {
  let built: string;

  beforeAll(async () => {
    built = tempDir();
    const config = {
      extends: join(ROOT, 'tsconfig.json'),
      compilerOptions: { rootDir: ROOT, outDir: built, typeRoots: [join(ROOT, 'node_modules/@types')] },
      include: [],
      files: [join(ROOT, 'core/io/pair-link.ts')],
    };
    writeFileSync(join(built, 'tsconfig.json'), JSON.stringify(config));
    writeFileSync(join(built, 'package.json'), '{"type":"module"}');
    await promisify(execFile)(join(ROOT, 'node_modules/.bin/tsc'), ['-p', join(built, 'tsconfig.json')], { cwd: ROOT });
  });

  /** A gateway `b` that counts records, and says on request how many. */
  async function child(port: number, peerPort: number): Promise<ChildProcess> {
    const script = `
      import { PairLink } from ${JSON.stringify(join(built, 'core/io/pair-link.js'))};
      let records = 0;
      const quiet = () => {};
      const link = new PairLink({
        name: 'b', cluster: 'pair', peer: { name: 'a', host: '127.0.0.1', port: ${peerPort} },
        listen: { host: '127.0.0.1', port: ${port} }, auth: { kind: 'psk', secret: ${JSON.stringify(SECRET)} },
        epoch: () => 1, onUp: () => { records = 0; }, onDown: quiet, onRecord: () => { records++; }, onAck: quiet,
        onBeat: quiet, onControl: (_, reply) => reply(records), beatMs: 50, silenceMs: 400,
        log: { debug: quiet, info: quiet, warn: quiet, error: quiet },
      });
      await link.start();
      console.log('ready');
      setInterval(quiet, 1000);
    `;
    const it = spawn(process.execPath, ['--input-type=module', '-e', script], { stdio: ['ignore', 'pipe', 'inherit'] });
    undo.push(() => it.kill('SIGKILL'));
    await once(createInterface({ input: it.stdout! }), 'line');
    return it;
  }

  it('is served; killed, frozen and begun anew it is noticed and served again', async () => {
    const port = await closedPort();
    const a = await end('a', {
      peer: { name: 'b', host: '127.0.0.1', port },
      beatMs: 50,
      silenceMs: 400,
    });
    const first = await child(port, a.link.port);
    await until(() => a.link.up, 'linked');
    for (let at = 0; at < 1000; at++) a.link.append(1, at, new Uint8Array(100));
    expect(await a.link.control('how many')).toBe(1000);
    expect(a.acks.at(-1)).toBe(1000);

    const killed = performance.now();
    first.kill('SIGKILL');
    await until(() => a.downs.length === 1, 'the end of the process is noticed');
    expect(performance.now() - killed).toBeLessThan(300);
    const second = await child(port, a.link.port);
    await until(() => a.ups.length === 2, 'linked again');
    expect(a.ups[1].incarnation).not.toBe(a.ups[0].incarnation);
    a.link.append(1, 1, new Uint8Array(100));
    expect(await a.link.control('how many')).toBe(1);

    second.kill('SIGSTOP');
    await until(() => a.downs.length === 2, 'the silence is noticed');
    expect(a.downs[1].code).toBe('OUTLIVE_PAIR_SILENT');
    second.kill('SIGCONT');
    await until(() => a.ups.length === 3, 'linked once more', 10_000);
    expect(a.ups[2].incarnation).toBe(a.ups[1].incarnation);
    expect(await a.link.control('how many')).toBe(0);
  });
});

it('a link that is closed before it was started is no error', async () => {
  const { link } = new End('a', {});
  expect(link).toBeInstanceOf(PairLink);
  await link.close();
});
