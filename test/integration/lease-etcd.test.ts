import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { Etcd3 } from 'etcd3';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import type { Lease, LeasePlugin, PluginContext, Term } from '../../core/contract/index.js';
import plugin from '../../plugins/etcd/index.js';
import { type Etcd, etcdUnavailable, startEtcd } from '../kit/etcd.js';
import { namespacesUnavailable, twoHosts } from '../kit/namespaces.js';
import { selfSignedCert, tempDir } from '../kit/servers.js';

const TTL = 2000;
const silent = () => {};
const context = {
  log: { debug: silent, info: silent, warn: silent, error: silent },
  readFile: (path: string) => readFile(path, 'utf8'),
} as unknown as PluginContext;

const started: LeasePlugin[] = [];
let prefixes = 0;

async function start(endpoints: readonly string[], options: object = {}): Promise<LeasePlugin> {
  const all = { endpoints, ttl: TTL, prefix: `/outlive/test${prefixes}/`, ...options };
  const made = (await plugin.create(all, context)) as LeasePlugin;
  started.push(made);
  return made;
}

/** Tries until it is acquired. */
async function eventuallyAcquire(store: LeasePlugin, key: string, owner: string): Promise<Lease> {
  let lease: Lease | null = null;
  const attempt = async () => (lease = await store.acquire(key, owner).catch(() => null));
  await expect.poll(attempt, { timeout: 15_000, interval: 20 }).not.toBeNull();
  return lease!;
}

function past(moment: () => number): Promise<void> {
  return expect.poll(() => performance.now() > moment(), { timeout: 15_000, interval: 10 }).toBe(true);
}

if (etcdUnavailable !== null) console.warn(`leases in etcd are not tested: ${etcdUnavailable}`);

describe.skipIf(etcdUnavailable !== null)('leases in etcd', () => {
  let etcd: Etcd;
  beforeAll(async () => {
    etcd = await startEtcd();
  });
  afterEach(async () => {
    etcd.resume();
    await Promise.all(started.splice(0).map((store) => store.close()));
    prefixes++;
  });
  afterAll(() => etcd?.stop());

  it('one at a time, with an epoch that grows from owner to owner', async () => {
    const [a, b] = [await start(etcd.endpoints), await start(etcd.endpoints)];
    expect([a.ttl, await a.holder('x')]).toEqual([TTL, null]);
    const [first, none] = await Promise.all([a.acquire('x', 'A'), b.acquire('x', 'B')]);
    // Whoever was first.
    expect([first, none].filter((lease) => lease !== null)).toHaveLength(1);
    const held = (first ?? none)!;
    expect(held).toMatchObject({ epoch: 1 });
    expect(await b.holder('x')).toEqual({ owner: held.owner, epoch: 1 });
    expect(held.validUntil).toBeLessThanOrEqual(performance.now() + TTL);
    const [mine, other] = first !== null ? [a, b] : [b, a];
    expect(await mine.acquire('x', held.owner)).toBe(held);
    expect(await other.acquire('x', 'C')).toBeNull();
    expect(await other.acquire('y', 'C')).toMatchObject({ owner: 'C', epoch: 1 });

    await held.release();
    expect(held.validUntil).toBeLessThanOrEqual(performance.now());
    expect(await mine.holder('x')).toBeNull();
    expect(await other.acquire('x', 'C')).toMatchObject({ owner: 'C', epoch: 2 });
    expect(mine.heard).toBeGreaterThan(performance.now() - TTL);
  });

  it('is taken on by the heir of a dead owner at once, and by nobody else', async () => {
    const [dead, heir, other] = [await start(etcd.endpoints), await start(etcd.endpoints), await start(etcd.endpoints)];
    const lease = (await dead.acquire('x', 'A'))!;
    // It ends without giving it up.
    await dead.close();
    expect(await heir.acquire('x', 'A')).toBeNull();
    expect(await other.acquire('x', 'B', true)).toBeNull();
    const next = (await heir.acquire('x', 'A', true))!;
    expect(performance.now()).toBeLessThan(lease.validUntil);
    expect(next).toMatchObject({ owner: 'A', epoch: 2 });
    expect(await other.holder('x')).toEqual({ owner: 'A', epoch: 2 });
    // What the dead one had ends, and the term is still the heir's.
    await past(() => lease.validUntil + TTL);
    expect(await other.holder('x')).toEqual({ owner: 'A', epoch: 2 });
    expect(next.validUntil).toBeGreaterThan(performance.now());
    await next.release();
    // Where nobody has it there is nothing to inherit.
    expect(await heir.acquire('x', 'A', true)).toMatchObject({ epoch: 3 });
  });

  it('is renewed from the moment of asking, and goes to somebody else no sooner than told', async () => {
    const [a, b] = [await start(etcd.endpoints), await start(etcd.endpoints)];
    const lease = (await a.acquire('x', 'A'))!;
    const first = lease.validUntil;
    await past(() => first + TTL / 4);
    expect(lease.validUntil).toBeGreaterThan(first);
    expect(lease.validUntil).toBeLessThan(performance.now() + TTL);
    expect(await b.holder('x')).toEqual({ owner: 'A', epoch: 1 });
    // Its owner stops renewing without giving it up.
    await a.close();
    const told = lease.validUntil;
    const next = await eventuallyAcquire(b, 'x', 'B');
    expect(performance.now()).toBeGreaterThan(told);
    expect(performance.now()).toBeLessThan(told + 2000);
    expect(next.epoch).toBe(2);
    expect(lease.validUntil).toBe(told);
  });

  it('a store that is mute: the term runs out, calls reject in time, and it is lost for good', async () => {
    const [a, b] = [await start(etcd.endpoints), await start(etcd.endpoints)];
    const lease = (await a.acquire('x', 'A'))!;
    await b.holder('x');
    await etcd.pause();
    const asked = performance.now();
    const [holder, acquired, members] = await Promise.allSettled([b.holder('x'), b.acquire('x', 'B'), b.members()]);
    expect(performance.now() - asked).toBeLessThan(TTL / 2 + 200);
    for (const call of [holder, acquired, members]) {
      expect(call).toMatchObject({ reason: { code: 'OUTLIVE_LEASE_STORE', culprit: 'network' } });
    }
    const told = lease.validUntil;
    await past(() => lease.validUntil);
    expect(lease.validUntil).toBe(told);
    expect(b.heard).toBeLessThan(asked);
    etcd.resume();
    const next = await eventuallyAcquire(b, 'x', 'B');
    expect([next.epoch, lease.validUntil]).toEqual([2, told]);
    await lease.release();
    expect(await a.holder('x')).toEqual({ owner: 'B', epoch: 2 });
  });

  it('survives a restart of the store, and epochs go on', async () => {
    // Longer than a restart takes on a busy machine: what runs out meanwhile is rightly lost.
    const ttl = 2.5 * TTL;
    const [a, b] = [await start(etcd.endpoints, { ttl }), await start(etcd.endpoints, { ttl })];
    await (await a.acquire('x', 'A'))!.release();
    const lease = (await a.acquire('x', 'A'))!;
    const told: (Term | null)[] = [];
    b.watch('x', (holder) => told.push(holder));
    await expect.poll(() => told).toEqual([{ owner: 'A', epoch: 2 }]);
    const before = lease.validUntil;
    await etcd.kill();
    await etcd.restart();
    await past(() => before);
    expect(lease.validUntil).toBeGreaterThan(before);
    await lease.release();
    await expect.poll(() => told, { timeout: 5000 }).toEqual([{ owner: 'A', epoch: 2 }, null]);
    expect((await eventuallyAcquire(b, 'x', 'B')).epoch).toBe(3);
  });

  it('tells who watches, at once, until it is no longer asked to', async () => {
    const [a, b] = [await start(etcd.endpoints), await start(etcd.endpoints)];
    const told: (Term | null)[] = [];
    const elsewhere: (Term | null)[] = [];
    const stop = b.watch('x', (holder) => told.push(holder));
    b.watch('xx', (holder) => elsewhere.push(holder));
    b.watch('x', () => {
      throw new Error('a watcher that fails harms nobody else');
    });
    await expect.poll(() => told).toEqual([null]);
    // The stream is open when a first change came by it.
    const lease = (await a.acquire('x', 'A'))!;
    await expect.poll(() => told).toEqual([null, { owner: 'A', epoch: 1 }]);
    const asked = performance.now();
    await lease.release();
    await expect.poll(() => told.length, { interval: 5 }).toBe(3);
    expect(performance.now() - asked).toBeLessThan(TTL / 3);
    stop();
    await a.acquire('x', 'A');
    const late: (Term | null)[] = [];
    b.watch('x', (holder) => late.push(holder));
    await expect.poll(() => late).toEqual([{ owner: 'A', epoch: 2 }]);
    expect(told).toEqual([null, { owner: 'A', epoch: 1 }, null]);
    expect(elsewhere).toEqual([null]);
  });

  it('knows the gateways that are alive', async () => {
    const [a, b] = [await start(etcd.endpoints), await start(etcd.endpoints)];
    await a.join('A', { address: '10.0.0.1:7000' });
    await b.join('B', { address: 'old' });
    await b.join('B', { address: '10.0.0.2:7000' });
    const both = new Map([
      ['A', { address: '10.0.0.1:7000' }],
      ['B', { address: '10.0.0.2:7000' }],
    ]);
    expect(await a.members()).toEqual(both);
    // Longer than a term.
    const joined = performance.now();
    await past(() => joined + 1.5 * TTL);
    expect(await b.members()).toEqual(both);
    await b.close();
    expect([...(await a.members()).keys()]).toEqual(['A']);
    await expect(b.members()).rejects.toMatchObject({ code: 'OUTLIVE_LEASE_STORE' });
    // The store lost it: it comes back by itself.
    const client = new Etcd3({ hosts: [...etcd.endpoints] });
    const { kvs } = await client.kv.range({ key: Buffer.from(`/outlive/test${prefixes}/members/A`) });
    await client.leaseClient.leaseRevoke({ ID: kvs[0].lease });
    client.close();
    expect([...(await a.members()).keys()]).toEqual([]);
    await expect.poll(async () => [...(await a.members()).keys()], { timeout: 5000 }).toEqual(['A']);
  });

  it('asks another endpoint when one is down or mute', async () => {
    const mute = createServer(silent).listen(0, '127.0.0.1');
    await once(mute, 'listening');
    const { port } = mute.address() as { port: number };
    const store = await start([`http://127.0.0.1:1`, `http://127.0.0.1:${port}`, ...etcd.endpoints]);
    const lease = (await store.acquire('x', 'A'))!;
    expect(lease.epoch).toBe(1);
    const first = lease.validUntil;
    await past(() => first + 100);
    expect(lease.validUntil).toBeGreaterThan(first);
    mute.close();
  });

  it('refuses what is not its own', async () => {
    const store = await start(etcd.endpoints);
    const client = new Etcd3({ hosts: [...etcd.endpoints] });
    await client.put(`/outlive/test${prefixes}/terms/x`).value('somebody');
    client.close();
    await expect(store.holder('x')).rejects.toMatchObject({
      code: 'OUTLIVE_LEASE_STORE',
      culprit: 'config',
      message: `the value of /outlive/test${prefixes}/terms/x in etcd is not Outlive's; does something else use that prefix?`,
    });
  });

  it('over TLS and with a log-in', async () => {
    const tls = selfSignedCert();
    const dir = tempDir();
    const [ca, passwordFile] = [join(dir, 'ca.pem'), join(dir, 'password')];
    writeFileSync(ca, tls.cert);
    writeFileSync(passwordFile, 'secret\n');
    const secure = await startEtcd({ tls });
    try {
      const admin = new Etcd3({
        hosts: [...secure.endpoints],
        credentials: { rootCertificate: Buffer.from(tls.cert) },
      });
      await admin.auth.userAdd({ name: 'root', password: 'secret' });
      await admin.auth.roleAdd({ name: 'root' });
      await admin.auth.userGrantRole({ user: 'root', role: 'root' });
      await admin.auth.authEnable();
      admin.close();
      const store = await start(secure.endpoints, { tls: { ca }, auth: { user: 'root', passwordFile } });
      const lease = (await store.acquire('x', 'A'))!;
      const first = lease.validUntil;
      const told: (Term | null)[] = [];
      store.watch('x', (holder) => told.push(holder));
      await past(() => first);
      expect(lease.validUntil).toBeGreaterThan(first);
      expect(told).toEqual([{ owner: 'A', epoch: 1 }]);

      writeFileSync(passwordFile, 'wrong');
      const stranger = await start(secure.endpoints, { tls: { ca }, auth: { user: 'root', passwordFile } });
      await expect(stranger.holder('x')).rejects.toThrow('authentication failed');
      const unsure = await start(secure.endpoints);
      await expect(unsure.holder('x')).rejects.toMatchObject({ code: 'OUTLIVE_LEASE_STORE' });
    } finally {
      await Promise.all(started.splice(0).map((store) => store.close()));
      await secure.stop();
    }
  });

  it.skipIf(namespacesUnavailable !== null)(
    'a cut and its end: nothing hangs, and it is back within a beat',
    async () => {
      const hosts = twoHosts();
      let remote: Etcd | undefined;
      try {
        hosts.a.sh(`ip addr add 10.9.0.1/24 dev ${hosts.a.device}`);
        hosts.b.sh(`ip addr add 10.9.0.2/24 dev ${hosts.b.device}`);
        remote = await startEtcd({ netns: hosts.a.name, host: '10.9.0.1' });
        await hosts.b.inside(async () => {
          const store = await start(remote!.endpoints);
          const told: (Term | null)[] = [];
          store.watch('x', (holder) => told.push(holder));
          const lease = (await store.acquire('x', 'A'))!;
          hosts.a.sh(`ip link set ${hosts.a.device} down`);
          const cut = performance.now();
          await expect(store.holder('x')).rejects.toMatchObject({ code: 'OUTLIVE_LEASE_STORE' });
          expect(performance.now() - cut).toBeLessThan(TTL / 2 + 200);
          await past(() => lease.validUntil);
          // Long enough for TCP to be slow in trying again.
          await past(() => cut + 5000);
          expect(store.heard).toBeLessThan(cut + 100);
          hosts.a.sh(`ip link set ${hosts.a.device} up`);
          const mended = performance.now();
          await expect.poll(() => store.heard, { timeout: 10_000, interval: 10 }).toBeGreaterThan(mended);
          expect(performance.now() - mended).toBeLessThan(TTL);
          expect((await eventuallyAcquire(store, 'x', 'A')).epoch).toBe(2);
          await expect.poll(() => told).toEqual([null, { owner: 'A', epoch: 1 }, null, { owner: 'A', epoch: 2 }]);
          await store.close();
        });
      } finally {
        await remote?.stop();
        hosts.remove();
      }
    },
  );
});
