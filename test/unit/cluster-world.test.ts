import { afterEach, describe, expect, it } from 'vitest';
import {
  type ActionPlugin,
  type Codec,
  CodedError,
  type Exchange,
  type Log,
  type LoginOutcome,
  type Outcome,
  type ServerError,
  type ServerFacts,
} from '../../core/contract/index.js';
import { Cluster, type ClusterEvent, type Outside } from '../../core/host/cluster/index.js';
import type { ClusterConfig } from '../../core/host/config/index.js';
import { Stats } from '../../core/host/metrics.js';
import type { Wire } from '../../core/io/index.js';

/** A question to a server, in place of an exchange. */
type Question =
  | { ask: 'login'; user: string }
  | { ask: 'probe' }
  | { ask: 'terminate'; backend: string }
  | { ask: 'resolve'; origin: ServerFacts; server: ServerFacts };

const question = <R>(what: Question) => what as unknown as Exchange<R>;
const never = new AbortController().signal;

/** A server that does what the test says. */
class FakeServer {
  up = true;
  /** Takes connections and answers nothing. */
  frozen = false;
  /** What it answers to a login. */
  refusal: Partial<ServerError & { transient: boolean }> | null = null;
  facts: ServerFacts;
  resolve: (origin: ServerFacts) => Outcome = () => 'unknown';
  gone = true;
  readonly asked: Question[] = [];
  readonly wires = new Set<FakeWire>();

  constructor(
    readonly name: string,
    role: ServerFacts['role'],
  ) {
    const writable = role === 'primary';
    const basis = { system: 's', timeline: 1, instance: `${name}1`, position: 100n, lagBytes: null, history: null };
    this.facts = { role, writable, ...basis };
  }

  /** Ends all its connections, as a crash does. */
  crash(): void {
    this.up = false;
    for (const wire of this.wires) wire.lose();
  }

  promote(timeline: number): void {
    this.facts = { ...this.facts, role: 'primary', writable: true, timeline };
  }

  count(ask: Question['ask']): number {
    return this.asked.filter((each) => each.ask === ask).length;
  }
}

class FakeWire {
  open = true;
  onData: (chunk: Uint8Array) => void = () => {};
  onClose: (error: Error | null) => void = () => {};
  broken: () => void = () => {};
  constructor(readonly server: FakeServer) {
    server.wires.add(this);
  }
  pause(): void {}
  resume(): void {}
  end(): void {
    this.destroy();
  }
  destroy(): void {
    this.open = false;
    this.server.wires.delete(this);
  }
  lose(): void {
    this.destroy();
    this.broken();
    queueMicrotask(() => this.onClose(null));
  }
}

interface Timer {
  readonly at: number;
  readonly callback: () => void;
}

/** Time and network, all in the test's hands. */
class World implements Outside {
  time = 0;
  readonly servers: FakeServer[];
  #timers: Timer[] = [];

  constructor(...servers: FakeServer[]) {
    this.servers = servers;
  }

  now(): number {
    return this.time;
  }

  get pending(): number {
    return this.#timers.length;
  }

  after(ms: number, callback: () => void): () => void {
    const timer = { at: this.time + ms, callback };
    this.#timers.push(timer);
    return () => {
      this.#timers = this.#timers.filter((each) => each !== timer);
    };
  }

  async dial({ name }: { name: string }): Promise<Wire> {
    const server = this.servers.find((each) => each.name === name)!;
    if (!server.up) throw new CodedError('OUTLIVE_CONNECT_REFUSED', 'network', 'refused');
    return new FakeWire(server) as unknown as Wire;
  }

  run<R>(wire: Wire, exchange: Exchange<R>, { timeoutMs, signal }: { timeoutMs: number; signal: AbortSignal }) {
    const fake = wire as unknown as FakeWire;
    const { server } = fake;
    const what = exchange as unknown as Question;
    server.asked.push(what);
    return new Promise<{ result: R; rest: Uint8Array }>((resolve, reject) => {
      const fail = (code: string) => () => {
        signal.removeEventListener('abort', aborted);
        reject(new CodedError(code, 'server', code));
      };
      const aborted = fail('OUTLIVE_EXCHANGE_ABORTED');
      fake.broken = fail('OUTLIVE_EXCHANGE_CLOSED');
      if (!fake.open) fake.broken();
      signal.addEventListener('abort', aborted);
      if (server.frozen) this.after(timeoutMs, fail('OUTLIVE_EXCHANGE_TIMEOUT'));
      else {
        this.after(1, () => {
          signal.removeEventListener('abort', aborted);
          resolve({ result: this.#answer(server, what) as R, rest: new Uint8Array(0) });
        });
      }
    });
  }

  #answer(server: FakeServer, what: Question): unknown {
    switch (what.ask) {
      case 'login': {
        const { refusal } = server;
        if (refusal === null) {
          return { ok: true, login: { cancelKey: null, backendId: '7', facts: null } } satisfies LoginOutcome;
        }
        const error: ServerError = { meaning: 'ordinary', code: 'X', message: '', fatal: true, ...refusal };
        return { ok: false, transient: refusal.transient === true, error, bytes: new Uint8Array(0) };
      }
      case 'probe':
        return server.facts;
      case 'terminate':
        return server.gone;
      case 'resolve':
        return server.resolve(what.origin);
    }
  }

  /** Lets time pass, and everything happen that is due. */
  async pass(ms: number): Promise<void> {
    const end = this.time + ms;
    for (;;) {
      await new Promise((resolve) => setImmediate(resolve));
      let next: Timer | null = null;
      for (const each of this.#timers) if (next === null || each.at < next.at) next = each;
      if (next === null || next.at > end) break;
      this.time = Math.max(this.time, next.at);
      this.#timers = this.#timers.filter((each) => each !== next);
      next.callback();
    }
    this.time = end;
  }
}

const codec = {
  name: 'fake',
  login: ({ identity }) => question<LoginOutcome>({ ask: 'login', user: identity.user }),
  probe: () => question<ServerFacts>({ ask: 'probe' }),
  terminate: (backend) => question<boolean>({ ask: 'terminate', backend }),
  resolve: (_, origin, server) => question<Outcome>({ ask: 'resolve', origin, server }),
} as Partial<Codec> as Codec;

describe('a cluster in a world of its own', () => {
  const clusters: Cluster[] = [];
  const worlds: World[] = [];
  afterEach(async () => {
    for (const cluster of clusters.splice(0)) await cluster.stop();
    // Nothing is left behind.
    for (const world of worlds.splice(0)) {
      await world.pass(0);
      const timers = world.pending;
      await world.pass(20_000);
      expect(world.pending).toBeLessThanOrEqual(timers);
      for (const { name, asked } of world.servers) {
        const before = asked.length;
        await world.pass(20_000);
        expect([name, asked.length]).toEqual([name, before]);
      }
    }
  });

  async function rig(
    over: Partial<ClusterConfig> = {},
    plugins: { promote?: ActionPlugin; fence?: ActionPlugin } = {},
  ) {
    const a = new FakeServer('a', 'primary');
    const b = new FakeServer('b', 'standby');
    const world = new World(a, b);
    const config: ClusterConfig = {
      name: 'c',
      servers: ['a', 'b'].map((name) => ({ name, host: name, port: 1, tls: 'off' as const, ca: null })),
      monitor: { user: 'm', database: 'd', password: null, interval: 500, timeout: 2000 },
      promotion: null,
      fence: null,
      writers: 'one',
      spares: { perIdentity: 0, total: 10 },
      logins: { concurrent: 2 },
      detection: { silence: 5000 },
      ...over,
    };
    const messages: string[] = [];
    const put = (_: unknown, message: string) => void messages.push(`${world.time} ${message}`);
    const log: Log = { debug: put, info: put, warn: put, error: put };
    const stats = new Stats();
    const cluster = new Cluster({ config, codec, log, stats, now: () => world.now(), plugins, outside: world });
    const events: string[] = [];
    cluster.onChange((event: ClusterEvent) => events.push(`${event.type} ${event.server.name}`));
    clusters.push(cluster);
    worlds.push(world);
    const starting = cluster.start();
    await world.pass(10);
    await starting;
    const acquire = (user = 'u', wait = 60_000) =>
      cluster.acquire({
        identity: { user, database: 'd', secret: null },
        startup: null,
        deadline: world.time + wait,
        signal: never,
      });
    return { a, b, world, cluster, events, messages, stats, acquire };
  }

  const action = (
    acts: string[],
    what: string,
    act: (server: string) => Promise<void> = async () => {},
  ): ActionPlugin => ({
    act: async (server) => {
      acts.push(`${what} ${server}`);
      await act(server);
    },
  });
  const promotion = { plugin: 'p', options: {}, path: '', timeout: 1000, after: 1000 };

  it('probes at a steady pace, and fast when somebody waits', async () => {
    const { a, b, world, cluster, events, acquire } = await rig();
    expect(cluster.primary()?.name).toBe('a');
    const before = a.count('probe');
    await world.pass(5000);
    expect(a.count('probe') - before).toBe(10);
    expect(a.count('login')).toBe(1);
    a.crash();
    await world.pass(1);
    expect(cluster.primary()).toBeNull();
    const calm = b.count('probe');
    await world.pass(1000);
    expect(b.count('probe') - calm).toBe(2);
    const got = acquire();
    await world.pass(1000);
    expect(b.count('probe') - calm).toBeGreaterThan(90);
    b.promote(2);
    const promoted = world.time;
    await world.pass(15);
    const { server, origin } = await got;
    expect([server.name, origin?.facts.timeline]).toEqual(['b', 2]);
    expect(origin!.since! - promoted).toBeLessThanOrEqual(15);
    // Nobody had a connection to a that could be void.
    expect(events).toEqual(['primary-found a', 'primary-lost a', 'primary-found b']);
  });

  it('calls connections to a replaced primary void', async () => {
    const { a, b, world, events, acquire } = await rig();
    const got = acquire();
    await world.pass(10);
    await got;
    b.promote(2);
    await world.pass(600);
    expect(events).toEqual(['primary-found a', 'primary-lost a', 'superseded a', 'primary-found b']);
    expect(a.facts.writable).toBe(true);
  });

  it('joins doubts, and asks again for those who came while it was asking', async () => {
    const { a, world, cluster } = await rig();
    const server = cluster.primary()!;
    const before = a.count('probe');
    const first = Array.from({ length: 100 }, () => cluster.doubt(server, 'a1'));
    await world.pass(1);
    const second = Array.from({ length: 100 }, () => cluster.doubt(server, 'a1'));
    await world.pass(20);
    expect(new Set(await Promise.all([...first, ...second]))).toEqual(new Set(['same']));
    expect(a.count('probe') - before).toBe(2);
    expect(await Promise.all([cluster.doubt(server, 'a0'), world.pass(20)])).toEqual(['restarted', undefined]);
    a.facts = { ...a.facts, writable: false };
    expect(await Promise.all([cluster.doubt(server, 'a1'), world.pass(20)])).toEqual(['demoted', undefined]);
    // Doors closed: only one that says that it is going down is gone; a full one is known by its old connection.
    a.facts = { ...a.facts, writable: true };
    a.refusal = { meaning: 'terminated', code: '53300', transient: true };
    expect(await Promise.all([cluster.doubt(server, 'a1'), world.pass(20)])).toEqual(['same', undefined]);
    a.refusal = { meaning: 'server-lost', code: '57P03', transient: true };
    const three = [1, 2, 3].map(() => cluster.doubt(server, 'a1'));
    await world.pass(20);
    expect(await Promise.all(three)).toEqual(['gone', 'gone', 'gone']);
    expect(cluster.primary()).toBeNull();
    // A failure that was shared does not end the watch.
    a.refusal = null;
    await world.pass(600);
    expect(cluster.primary()?.name).toBe('a');
  });

  it('notices a server that says nothing any more', async () => {
    const { a, world, cluster, events, acquire } = await rig();
    const got = acquire();
    await world.pass(10);
    await got;
    const heard = cluster.primary()!.lastSeen;
    a.frozen = true;
    await world.pass(2600);
    expect(cluster.primary()).toBeNull();
    await world.pass(heard + 4999 - world.time);
    expect(events).not.toContain('server-silent a');
    await world.pass(1);
    expect(events.at(-1)).toBe('server-silent a');
    await world.pass(60_000);
    expect(events.filter((event) => event === 'server-silent a').length).toBe(1);
    a.frozen = false;
    await world.pass(3000);
    expect(cluster.primary()?.name).toBe('a');
  });

  it('fences and promotes once each, however long the promotion takes', async () => {
    const acts: string[] = [];
    let promoted: FakeServer | null = null;
    const promote = action(acts, 'promote', async () => promoted!.promote(2));
    const r = await rig({ promotion, fence: promotion }, { promote, fence: action(acts, 'fence') });
    promoted = r.b;
    r.a.crash();
    await r.world.pass(900);
    expect(acts).toEqual([]);
    await r.world.pass(300);
    expect(acts).toEqual(['fence a', 'promote b']);
    expect(r.cluster.primary()?.name).toBe('b');
    // The next loss comes too soon.
    r.a.up = true;
    r.a.facts = { ...r.a.facts, role: 'standby', writable: false, timeline: 2, instance: 'a2' };
    await r.world.pass(600);
    r.b.crash();
    await r.world.pass(2000);
    expect(acts.length).toBe(2);
    await r.world.pass(4000);
    expect(acts.slice(2)).toEqual(['fence b', 'promote a']);
  });

  it('tries again when fence or promotion fail, and promotes nobody unfenced', async () => {
    const acts: string[] = [];
    let fails = 2;
    const flaky = async () => {
      if (fails-- > 0) throw new Error('no');
    };
    const r = await rig(
      { promotion, fence: promotion },
      { promote: action(acts, 'promote', flaky), fence: action(acts, 'fence', flaky) },
    );
    r.a.crash();
    await r.world.pass(1500);
    expect(acts).toEqual(['fence a']);
    await r.world.pass(1000);
    expect(acts).toEqual(['fence a', 'fence a']);
    await r.world.pass(1500);
    expect(acts).toEqual(['fence a', 'fence a', 'fence a', 'promote b']);
  });

  it('does not promote while the primary only has no room', async () => {
    const acts: string[] = [];
    const r = await rig({ promotion }, { promote: action(acts, 'promote') });
    r.a.refusal = { meaning: 'terminated', code: '53300', transient: true };
    for (const wire of r.a.wires) wire.lose();
    await r.world.pass(10_000);
    expect(acts).toEqual([]);
    expect(r.cluster.primary()?.name).toBe('a');
  });

  it('holds a commit in doubt until the old backend is gone', async () => {
    const { a, world, cluster, acquire } = await rig();
    const got = acquire();
    await world.pass(600);
    const { origin } = await got;
    const token = { token: 't', position: 1n };
    a.gone = false;
    a.resolve = () => 'committed';
    const early = cluster.resolve(token, origin!, world.time + 300);
    await world.pass(400);
    expect(await early).toBe('unknown');
    expect(a.count('resolve')).toBe(0);
    const later = cluster.resolve(token, origin!, world.time + 5000);
    await world.pass(300);
    a.gone = true;
    await world.pass(500);
    expect(await later).toBe('committed');
  });

  it('gives an answer for an unclear life only when it holds for both', async () => {
    const { a, world, cluster, acquire } = await rig();
    const token = { token: 't', position: 1n };
    const ask = async (origin: NonNullable<Awaited<ReturnType<typeof acquire>>['origin']>) => {
      const answer = cluster.resolve(token, origin, world.time + 2000);
      await world.pass(100);
      return answer;
    };
    const restart = async (closed: boolean) => {
      a.crash();
      if (closed) {
        a.up = true;
        a.refusal = { meaning: 'server-lost', code: '57P03', transient: true };
        await world.pass(600);
      }
      a.facts = { ...a.facts, instance: `${a.facts.instance}+` };
      a.up = true;
      a.refusal = null;
      await world.pass(600);
    };
    // The connection is made, and before any probe can confirm its life the server is another.
    const unclear = async (closed: boolean) => {
      const got = acquire();
      await world.pass(1);
      const { origin } = await got;
      await restart(closed);
      return origin!;
    };
    const origin = await unclear(false);
    expect(origin.facts.instance).toBe('a1');
    a.resolve = ({ instance }) => (instance === 'a1' ? 'not-committed' : 'committed');
    expect(await ask(origin)).toBe('unknown');
    a.resolve = () => 'not-committed';
    expect(await ask(origin)).toBe('not-committed');
    // Neither has the monitor noticed anything when it is asked.
    const got = acquire();
    await world.pass(1);
    const unnoticed = (await got).origin!;
    a.facts = { ...a.facts, instance: 'a9' };
    a.resolve = ({ instance }) => (instance === 'a9' ? 'committed' : 'not-committed');
    expect(await ask(unnoticed)).toBe('unknown');
    // Its own word that it was closed after the login tells the lives apart.
    const told = await unclear(true);
    a.resolve = ({ instance }) => (instance === told.facts.instance ? 'not-committed' : 'committed');
    expect(await ask(told)).toBe('not-committed');
    // So does a probe.
    const probed = acquire();
    await world.pass(20);
    const sure = (await probed).origin!;
    await restart(false);
    a.resolve = ({ instance }) => (instance === sure.facts.instance ? 'not-committed' : 'committed');
    expect(await ask(sure)).toBe('not-committed');
  });

  it('keeps spares, gives them out after a promotion, and lets idle identities go', async () => {
    const { a, b, world, cluster, acquire } = await rig({ spares: { perIdentity: 3, total: 10 } });
    const spares = () => (cluster.status() as { spares: number }).spares;
    const session = async (user: string) => {
      const got = acquire(user);
      await world.pass(20);
      return got;
    };
    const { wire } = await session('u');
    expect(spares()).toBe(3);
    for (const user of ['v', 'w', 'x', 'y']) await session(user);
    expect(spares()).toBe(10);
    expect(b.count('login')).toBeGreaterThan(10);
    a.crash();
    b.promote(2);
    await world.pass(600);
    const logins = b.count('login');
    expect((await session('u')).spare).toBe(true);
    expect(b.count('login')).toBe(logins);
    wire.destroy();
    for (const each of [...b.wires]) each.destroy();
    await world.pass(120_000);
    expect(spares()).toBe(0);
  });

  it('goes from server to server when nobody watches', async () => {
    const { a, world, cluster, acquire, events } = await rig({ monitor: null });
    const first = acquire();
    await world.pass(10);
    expect((await first).server.name).toBe('a');
    expect(await cluster.doubt(cluster.primary()!, null)).toBe('same');
    a.crash();
    const second = acquire();
    await world.pass(500);
    expect((await second).server.name).toBe('b');
    expect(events).toEqual(['primary-lost a', 'primary-found b']);
    expect(await cluster.resolve({ token: 't', position: 1n }, {} as never, world.time + 100)).toBe('unknown');
  });
});
