import { describe, expect, it } from 'vitest';
import {
  type AddressSituation,
  type Comparison,
  compareReach,
  DEFAULT_CONDITIONS,
  DEFAULT_TIMING,
  type Decision,
  decide,
  type FenceState,
  type LinkState,
} from '../../core/cluster/decide.js';
import type { Statistics } from '../../core/cluster/statistics.js';
import { type Randomness, randomness } from '../kit/random.js';

/*
 * Two gateways, a link, a lease store or a fence command or neither, in simulated time. Everything breaks at random; what is checked is that
 * there are never two owners, and by scripts that there is one again where there can be.
 */

type Proofs = 'nothing' | 'store' | 'fence';

/** More of them for a longer search. */
const RUNS = Number(process.env.OUTLIVE_RUNS ?? 60);
const STEP = 50;
const TTL = 3000;
const BEAT = 200;
/** How long what is sent is on its way at most. */
const DELAY = 150;
/** As `Pair` has it. */
const RESUME = 10_000;

interface Grant {
  readonly kind: 'grant';
  readonly epoch: number;
}
type Word = { readonly kind: 'refused' } | { readonly kind: 'goodbye' };
interface Beat {
  readonly kind: 'beat';
  readonly statistics: Statistics;
}

class Gateway {
  up = true;
  frozen = false;
  /** What it can reach. */
  store = true;
  backends = true;
  power = true;
  /** What it says arrives at the other one. */
  sends = true;
  /** A keeper has the connections of the process before, and that one served them. */
  kept = false;
  /** It was being given away. */
  given = false;
  /** Nobody else has its name: the process before is dead. */
  heir = false;
  /** The keeper starts a process again at. */
  restartAt: number | null = null;

  serving = false;
  epoch = 0;
  startedAt = 0;
  lease: { validUntil: number } | null = null;
  peer: { statistics: Statistics; heardAt: number } | null = null;
  comparison: Comparison = { worse: null, since: 0 };
  fence: FenceState;
  order: 'take' | 'give' | null = null;
  draining = false;
  /** A planned move is under way since. */
  movingSince: number | null = null;
  link: LinkState = { state: 'down', since: 0, why: 'silent' };
  last: Decision | null = null;
  readonly inbox: { at: number; message: Grant | Beat | Word }[] = [];

  constructor(
    readonly name: string,
    readonly proofs: Proofs,
  ) {
    this.fence = { configured: proofs === 'fence', state: 'idle', at: 0 };
  }

  /** It writes to clients. */
  get writes(): boolean {
    return this.up && !this.frozen && this.serving;
  }

  /** The process dies; a lease ends by itself. */
  die(): void {
    this.up = false;
    this.frozen = false;
    this.serving = false;
    this.kept = false;
    this.given = false;
    this.restartAt = null;
  }

  /** The process dies, and its keeper starts another one. */
  crash(at: number): void {
    const given = this.given || this.movingSince !== null;
    const kept = this.kept || this.serving || given;
    this.die();
    Object.assign(this, { kept, given });
    this.restartAt = at;
  }

  resumes(now: number): boolean {
    if (!this.kept || this.serving) return false;
    return this.proofs !== 'store' || (this.store && now - this.startedAt < RESUME);
  }

  start(now: number): void {
    const { name, proofs, store, backends, power, sends } = this;
    const { kept, given } = this;
    const heir = this.restartAt !== null;
    const fresh = new Gateway(name, proofs);
    Object.assign(this, fresh, { store, backends, power, sends, kept, given, heir, startedAt: now, inbox: [] });
  }

  statistics(now: number): Statistics {
    return {
      name: this.name,
      version: '0.1.0',
      incarnation: `${this.name}${this.startedAt}`,
      sentAt: now,
      addresses: {
        x: { epoch: this.epoch, serves: this.serving, resumes: this.resumes(now), sessions: 0, requestsPerSecond: 0 },
      },
      clients: 0,
      shadows: { total: 0, adoptable: 0 },
      follows: {},
      reaches: {
        peer: true,
        backends: { 'main/db': this.backends ? 'ok' : 'unreachable' },
        store: this.proofs === 'store' ? this.store : null,
      },
      load: { cpu: 0, eventLoopDelayMs: 0, sessions: 0, bytesPerSecond: 0, requestsPerSecond: 0 },
      draining: this.draining,
      conditions: [],
    };
  }
}

class World {
  now = 0;
  readonly a: Gateway;
  readonly b: Gateway;
  /** The lease store's truth. */
  held: { owner: string; epoch: number; until: number } | null = null;
  counter = 0;
  /** Every change of who writes. */
  readonly owners: { at: number; owner: string | null; epoch: number }[] = [];
  readonly shots: { at: number; by: string }[] = [];

  constructor(
    readonly proofs: Proofs,
    readonly random: Randomness,
  ) {
    this.a = new Gateway('a', proofs);
    this.b = new Gateway('b', proofs);
  }

  other(gateway: Gateway): Gateway {
    return gateway === this.a ? this.b : this.a;
  }

  run(ms: number, each: () => void = () => {}): void {
    for (const end = this.now + ms; this.now < end; ) {
      this.now += STEP;
      each();
      for (const gateway of this.random.below(2) === 0 ? [this.a, this.b] : [this.b, this.a]) this.#turn(gateway);
      this.#record();
    }
  }

  /** A gateway that has nothing any more ends in order. */
  leave(gateway: Gateway): void {
    this.#send(gateway, { kind: 'goodbye' });
    gateway.die();
  }

  /** Everything works again. */
  mend(): void {
    for (const gateway of [this.a, this.b]) {
      if (!gateway.up) gateway.start(this.now);
      Object.assign(gateway, {
        frozen: false,
        store: true,
        backends: true,
        power: true,
        sends: true,
        draining: false,
        order: null,
      });
    }
  }

  /** What the two decided last. */
  told(): string {
    const { a, b } = this;
    return JSON.stringify(
      [a, b].map(({ name, last, epoch, link, movingSince }) => ({ name, ...last, epoch, link, movingSince })),
    );
  }

  #record(): void {
    const writing = [this.a, this.b].filter(({ writes }) => writes);
    if (writing.length > 1) throw new Error(`${this.random.where} two owners at ${this.now}: ${this.told()}`);
    const owner = writing[0]?.name ?? null;
    const before = this.owners.at(-1);
    if (before === undefined || before.owner !== owner) {
      this.owners.push({ at: this.now, owner, epoch: writing[0]?.epoch ?? 0 });
    }
  }

  #turn(gateway: Gateway): void {
    const { now } = this;
    if (gateway.restartAt !== null && now >= gateway.restartAt) gateway.start(now);
    if (!gateway.up || gateway.frozen) return;
    this.#renew(gateway);
    this.#connect(gateway);
    this.#receive(gateway);
    const self = gateway.statistics(now);
    gateway.comparison = compareReach(now, self, gateway.peer?.statistics ?? null, gateway.comparison);
    this.#settle(gateway);
    const [decision] = decide({
      now,
      self,
      peer: gateway.peer,
      link: gateway.link,
      fence: gateway.fence,
      comparison: gateway.comparison,
      startedAt: gateway.startedAt,
      addresses: [this.#address(gateway)],
      conditions: DEFAULT_CONDITIONS,
      timing: DEFAULT_TIMING,
    });
    gateway.last = decision;
    this.#carryOut(gateway, decision);
    if (now % BEAT === 0) this.#send(gateway, { kind: 'beat', statistics: gateway.statistics(now) });
  }

  #address(gateway: Gateway): AddressSituation {
    const holder = this.held !== null && this.held.until > this.now ? this.held.owner : null;
    return {
      address: 'x',
      home: 'a',
      serving: gateway.serving,
      epoch: gateway.epoch,
      moving: gateway.movingSince !== null || gateway.fence.state === 'running',
      order: gateway.order,
      balance: false,
      resumes: gateway.resumes(this.now),
      given: gateway.given,
      heir: gateway.heir,
      ahead: 0,
      freeSince: null,
      lease: { validUntil: gateway.lease?.validUntil ?? null, holder: gateway.store ? holder : undefined },
    };
  }

  /** A link ends by silence on either side; a new one takes the place of the old one on both, and nothing of that is read any more. */
  #connect(gateway: Gateway): void {
    const { now } = this;
    const other = this.other(gateway);
    const reachable = other.sends && gateway.sends;
    if (gateway.link.state === 'up') {
      const heard = Math.max(gateway.peer?.heardAt ?? 0, gateway.link.since);
      if (now - heard < DEFAULT_TIMING.silence && (other.up || !reachable)) return;
      gateway.link = { state: 'down', since: now, why: 'silent' };
      gateway.inbox.length = 0;
    }
    if (gateway.link.why !== 'left')
      gateway.link = { ...gateway.link, why: !other.up && reachable ? 'refused' : 'silent' };
    if (!reachable || !other.up || other.frozen) return;
    for (const each of [gateway, other]) {
      each.link = { state: 'up', since: now };
      each.inbox.length = 0;
    }
  }

  #send(from: Gateway, message: Grant | Beat | Word): void {
    const { inbox } = this.other(from);
    // In order, like on a TCP connection; what cannot arrive waits, and is lost with its connection.
    const at = Math.max(this.now + STEP + this.random.below(DELAY), inbox.at(-1)?.at ?? 0);
    if (from.link.state === 'up') inbox.push({ at, message });
  }

  #receive(gateway: Gateway): void {
    while (this.other(gateway).sends && gateway.inbox.length > 0 && gateway.inbox[0].at <= this.now) {
      const { message } = gateway.inbox.shift()!;
      if (message.kind === 'beat') {
        gateway.peer = { statistics: message.statistics, heardAt: this.now };
        const { serves, resumes } = message.statistics.addresses.x;
        if (serves || (resumes && gateway.given)) gateway.kept = gateway.given = false;
      } else if (message.kind === 'goodbye') {
        gateway.link = { state: 'down', since: this.now, why: 'left' };
        gateway.inbox.length = 0;
      } else if (message.kind === 'refused') {
        gateway.movingSince = null;
      } else if (this.proofs === 'store') {
        if (!this.#ask(gateway)) this.#send(gateway, { kind: 'refused' });
      } else if (!gateway.serving) {
        gateway.serving = true;
        gateway.kept = gateway.given = false;
        gateway.epoch = message.epoch;
      }
    }
  }

  /** The planned move ends when the peer says that it serves, or is not heard. */
  #settle(gateway: Gateway): void {
    if (gateway.movingSince === null) return;
    const { peer } = gateway;
    const serves = peer?.statistics.addresses.x.serves === true && peer.heardAt > gateway.movingSince;
    // Else a refusal or the end of the link ends it, and no time: as long as the link is there, the grant may be on its way.
    const lost = gateway.link.state === 'down' || gateway.link.since > gateway.movingSince;
    if (serves || lost) gateway.movingSince = null;
  }

  #renew(gateway: Gateway): void {
    if (gateway.lease === null || this.held === null || !gateway.store || this.now % 500 !== 0) return;
    if (this.held.owner !== gateway.name || this.held.until <= this.now) return;
    this.held.until = this.now + TTL;
    gateway.lease.validUntil = this.now + TTL;
  }

  #ask(gateway: Gateway): boolean {
    const { held } = this;
    const inherited = gateway.heir && held?.owner === gateway.name;
    if (!gateway.store || (held !== null && held.until > this.now && !inherited)) return false;
    gateway.heir = false;
    this.held = { owner: gateway.name, epoch: ++this.counter, until: this.now + TTL };
    gateway.lease = { validUntil: this.now + TTL };
    return true;
  }

  #carryOut(gateway: Gateway, { action }: Decision): void {
    const known = Math.max(gateway.epoch, gateway.peer?.statistics.addresses.x.epoch ?? 0);
    switch (action) {
      case 'take':
        gateway.serving = true;
        gateway.kept = gateway.given = false;
        gateway.epoch = this.proofs === 'store' ? this.held!.epoch : known + 1;
        gateway.order = null;
        break;
      case 'ask-lease':
        this.#ask(gateway);
        break;
      case 'fence':
        gateway.fence = { configured: true, state: 'running', at: this.now };
        break;
      case 'yield':
        gateway.serving = false;
        gateway.order = null;
        gateway.movingSince = this.now;
        if (gateway.lease !== null) {
          if (gateway.store && this.held?.owner === gateway.name) this.held = null;
          gateway.lease = null;
        }
        this.#send(gateway, { kind: 'grant', epoch: known + 1 });
        break;
      case 'stop':
        gateway.serving = false;
        gateway.lease = null;
        break;
    }
    if (gateway.fence.state !== 'running' || this.now - gateway.fence.at < 500) return;
    // Shot: its power is off, whatever it did.
    if (gateway.power) {
      this.other(gateway).die();
      this.shots.push({ at: this.now, by: gateway.name });
    }
    gateway.fence = { configured: true, state: gateway.power ? 'done' : 'failed', at: this.now };
  }
}

function begun(proofs: Proofs): World {
  const world = new World(proofs, randomness());
  world.run(2000);
  expect(world.owners.at(-1)?.owner).toBe('a');
  return world;
}

describe('one owner', () => {
  it.each(['nothing', 'store', 'fence'] as const)('at most, whatever breaks, proved by %s', (proofs) => {
    const random = randomness();
    let changes = 0;
    for (let run = 0; run < RUNS; run++) {
      const world = new World(proofs, random);
      world.run(60_000, () => {
        // Something happens about every second.
        if (random.below(20) !== 0) return;
        const gateway = random.one([world.a, world.b]);
        switch (random.below(13)) {
          case 0:
          case 1:
            gateway.sends = !gateway.sends;
            break;
          case 2:
            for (const each of [world.a, world.b]) each.sends = !each.sends;
            break;
          case 3:
            gateway.store = !gateway.store;
            break;
          case 4:
            gateway.backends = !gateway.backends;
            break;
          case 5:
            gateway.power = !gateway.power;
            break;
          case 6:
            if (gateway.up) gateway.frozen = !gateway.frozen;
            break;
          case 7:
            if (gateway.up) gateway.die();
            break;
          case 8:
          case 9:
            if (!gateway.up) gateway.start(world.now);
            else if (gateway.draining && !gateway.serving) world.leave(gateway);
            else gateway.order = random.one(['take', 'give'] as const);
            break;
          case 10:
          case 11:
            if (gateway.up) gateway.crash(world.now + 200 + random.below(3000));
            break;
          default:
            gateway.draining = !gateway.draining;
        }
      });
      world.mend();
      world.run(20_000);
      expect(world.owners.at(-1)!.owner, `${random.where} ${world.told()}`).not.toBeNull();
      changes += world.owners.length;
    }
    // A world in which nothing happens proves nothing.
    expect(changes).toBeGreaterThan(200);
  });

  it('when the link is cut and both have the store: the owner goes on', () => {
    const world = begun('store');
    world.a.sends = world.b.sends = false;
    world.run(30_000);
    expect(world.owners.at(-1)).toMatchObject({ owner: 'a', epoch: 1 });
    expect(world.b.last).toMatchObject({ action: 'none', reason: 'lease-theirs' });
  });

  it('when the owner is cut off from peer and store: it falls silent before the other one begins', () => {
    const world = begun('store');
    const cut = world.now;
    world.a.sends = world.b.sends = world.a.store = false;
    world.run(10_000);
    const [silent, next] = world.owners.slice(-2);
    expect([silent.owner, next.owner]).toEqual([null, 'b']);
    expect(next.epoch).toBe(2);
    expect(silent.at - cut).toBeLessThanOrEqual(TTL - DEFAULT_TIMING.leaseMargin + STEP);
    expect(next.at - cut).toBeLessThanOrEqual(TTL + 2 * STEP);
    // And stays silent when everything is mended.
    world.a.sends = world.b.sends = world.a.store = true;
    world.run(30_000);
    expect(world.owners.at(-1)).toEqual(next);
  });

  it('when the owner is cut off from the store only: the other one takes over', () => {
    const world = begun('store');
    world.a.store = false;
    world.run(10_000);
    expect(world.owners.slice(-2).map(({ owner }) => owner)).toEqual([null, 'b']);
  });

  it('when both are cut off from the store: nobody', () => {
    const world = begun('store');
    world.a.store = world.b.store = false;
    world.run(10_000);
    expect(world.owners.at(-1)!.owner).toBeNull();
    world.b.store = true;
    world.run(5000);
    expect(world.owners.at(-1)!.owner).toBe('b');
  });

  it('when the owner dies: the other one within the length of a lease', () => {
    const world = begun('store');
    const death = world.now;
    world.a.die();
    world.run(10_000);
    expect(world.owners.at(-1)).toMatchObject({ owner: 'b', epoch: 2 });
    expect(world.owners.at(-1)!.at - death).toBeLessThanOrEqual(TTL + 2 * STEP);
  });

  it.each(['nothing', 'store', 'fence'] as const)(
    'when its keeper starts the owner again in time, proved by %s: the owner, wherever it is at home',
    (proofs) => {
      for (const owner of ['a', 'b'] as const) {
        const world = begun(proofs);
        if (owner === 'b') {
          world.a.order = 'give';
          world.run(2000);
        }
        for (let crash = 0; crash < 5; crash++) {
          world[owner].crash(world.now + 1000);
          world.run(4000);
          expect(world.owners.at(-1)!.owner).toBe(owner);
        }
        expect(new Set(world.owners.slice(owner === 'a' ? 0 : 3).map((each) => each.owner))).toEqual(
          new Set([null, owner]),
        );
        expect(world.shots).toEqual([]);
      }
    },
  );

  it.each(['store', 'fence'] as const)(
    'when its keeper starts the owner again too late, proved by %s: the other one',
    (proofs) => {
      const world = begun(proofs);
      world.a.crash(world.now + 10_000);
      world.run(15_000);
      expect(world.owners.at(-1)!.owner).toBe('b');
      expect(world.a).toMatchObject({ kept: false, serving: false });
    },
  );

  it.each(['nothing', 'store', 'fence'] as const)(
    'when its keeper starts the owner again and nobody else is there, proved by %s: the owner',
    (proofs) => {
      const world = begun(proofs);
      world.b.die();
      world.run(5000);
      world.a.crash(world.now + 500);
      world.run(2500);
      expect(world.owners.at(-1)!.owner).toBe('a');
    },
  );

  it('when the owner sleeps and wakes up: it does not write any more', () => {
    const world = begun('store');
    world.a.frozen = true;
    world.run(10_000);
    expect(world.owners.at(-1)!.owner).toBe('b');
    world.a.frozen = false;
    world.run(10_000);
    expect(world.owners.at(-1)!.owner).toBe('b');
  });

  it('when nothing proves anything: a silent owner is waited for', () => {
    const world = begun('nothing');
    world.a.sends = world.b.sends = false;
    world.run(60_000);
    expect(world.owners).toHaveLength(2);
    world.a.die();
    world.run(60_000);
    expect(world.owners.at(-1)!.owner).toBeNull();
    expect(world.b.last).toMatchObject({ action: 'none', reason: 'no-proof' });
    world.a.sends = world.b.sends = true;
    world.a.start(world.now);
    world.run(2000);
    expect(world.owners.at(-1)!.owner).toBe('a');
  });

  it('when nothing proves anything: moves that are planned still work', () => {
    const world = begun('nothing');
    for (const owner of ['b', 'a', 'b', 'a']) {
      world.other(owner === 'a' ? world.a : world.b).order = 'give';
      world.run(2000);
      expect(world.owners.at(-1)!.owner).toBe(owner);
    }
    world.a.draining = true;
    world.run(2000);
    expect(world.owners.at(-1)).toMatchObject({ owner: 'b', epoch: 6 });
  });

  it.each(['nothing', 'store', 'fence'] as const)(
    'when only the owner loses the servers, proved by %s: it moves in good order',
    (proofs) => {
      const world = begun(proofs);
      world.a.backends = false;
      world.run(2000);
      expect(world.owners.at(-1)!.owner).toBe('a');
      world.run(4000);
      expect(world.owners.at(-1)!.owner).toBe('b');
      expect(world.shots).toEqual([]);
    },
  );

  it.each(['nothing', 'store', 'fence'] as const)(
    'when both lose the servers, proved by %s: nothing moves',
    (proofs) => {
      const world = begun(proofs);
      world.a.backends = false;
      world.run(1000);
      world.b.backends = false;
      world.run(30_000);
      world.b.backends = true;
      world.run(1000);
      world.a.backends = true;
      world.run(10_000);
      expect(world.owners).toHaveLength(2);
    },
  );

  it('when the cable between two that can shoot is cut: one shot, and the one that shot', () => {
    const world = begun('fence');
    world.a.sends = world.b.sends = false;
    world.run(30_000);
    expect(world.owners.at(-1)!.owner).toBe('b');
    expect(world.shots.map(({ by }) => by)).toEqual(['b']);
    // The one that was shot comes back behind the cut cable, and waits.
    world.a.start(world.now);
    world.run(60_000);
    expect(world.owners.at(-1)!.owner).toBe('b');
    expect(world.shots).toHaveLength(1);
  });

  it('when a gateway is cut off from everything but the power switch: it does not shoot', () => {
    const world = begun('fence');
    world.b.backends = world.a.sends = world.b.sends = false;
    world.run(30_000);
    expect(world.shots).toEqual([]);
    expect(world.owners.at(-1)!.owner).toBe('a');
  });
});
