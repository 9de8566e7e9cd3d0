import { describe, expect, it } from 'vitest';
import {
  type Comparison,
  compareReach,
  DEFAULT_CONDITIONS,
  DEFAULT_TIMING,
  type Decision,
  decide,
  type LinkState,
} from '../../core/cluster/decide.js';
import { aheadOf, chooseFollower, counterpartOf, type MemberView } from '../../core/cluster/members.js';
import { shadowOf } from '../../core/cluster/rendezvous.js';
import type { AddressStatistics, Statistics } from '../../core/cluster/statistics.js';
import { type Randomness, randomness } from '../kit/random.js';

/*
 * Several gateways, a link between any two, a lease store, in simulated time. Everything breaks at random; what is checked is that an address never has
 * two owners, that it has one again when everything works, and by scripts that it goes to who has its sessions.
 */

/** More of them for a longer search. */
const RUNS = Number(process.env.OUTLIVE_RUNS ?? 10);
const STEP = 50;
const TTL = 3000;
const BEAT = 200;
const NAMES = ['a', 'b', 'c', 'd'];
/** As `Pair` has it. */
const SETTLE = 3000;

class Peer implements MemberView {
  link: LinkState;
  heard: MemberView['heard'] = null;
  /** By which choice of its own its sessions are followed. */
  choice: number | null = null;
  comparison: Comparison | null = null;

  constructor(
    readonly name: string,
    now: number,
  ) {
    this.link = { state: 'down', since: now, why: 'silent' };
  }
}

interface Address {
  serving: boolean;
  epoch: number;
  validUntil: number | null;
  freeSince: number | null;
}

class Gateway {
  up = true;
  store = true;
  startedAt = 0;
  follower: string | null = null;
  peers: Peer[] = [];
  addresses = new Map<string, Address>();
  readonly last = new Map<string, Decision>();

  constructor(readonly name: string) {}

  start(now: number): void {
    this.up = true;
    this.startedAt = now;
    this.follower = null;
    this.peers = NAMES.filter((name) => name !== this.name).map((name) => new Peer(name, now));
    this.addresses = new Map(
      NAMES.map((home) => [home, { serving: false, epoch: 0, validUntil: null, freeSince: null }]),
    );
  }

  peer(name: string): Peer {
    return this.peers.find((peer) => peer.name === name)!;
  }

  get follows(): Record<string, number> {
    return Object.fromEntries(this.peers.flatMap(({ name, choice }) => (choice === null ? [] : [[name, choice]])));
  }

  statistics(now: number): Statistics {
    const addresses: Record<string, AddressStatistics> = {};
    for (const [home, { epoch, serving }] of this.addresses) {
      addresses[home] = { epoch, serves: serving, resumes: false, sessions: serving ? 5 : 0, requestsPerSecond: 0 };
    }
    return {
      name: this.name,
      version: '0.1.0',
      incarnation: `${this.name}${this.startedAt}`,
      sentAt: now,
      addresses,
      clients: 0,
      shadows: { total: 0, adoptable: 0 },
      follows: this.follows,
      reaches: { peer: true, backends: { 'main/db': 'ok' }, store: this.store },
      load: { cpu: 0, eventLoopDelayMs: 0, sessions: 0, bytesPerSecond: 0, requestsPerSecond: 0 },
      draining: false,
      conditions: [],
    };
  }
}

/** Who took what, in order. */
interface Taken {
  readonly at: number;
  readonly home: string;
  readonly by: string;
  /** It followed the sessions of the owner before. */
  readonly knew: boolean;
}

class World {
  now = 0;
  readonly gateways = NAMES.map((name) => new Gateway(name));
  /** Links that carry nothing, by both names. */
  readonly cut = new Set<string>();
  readonly held = new Map<string, { owner: string; epoch: number; until: number }>();
  readonly epochs = new Map<string, number>();
  readonly taken: Taken[] = [];
  #choice = 0;

  constructor(readonly random: Randomness) {
    for (const gateway of this.gateways) gateway.start(0);
  }

  gateway(name: string): Gateway {
    return this.gateways.find((gateway) => gateway.name === name)!;
  }

  owner(home: string): string | null {
    return this.gateways.find(({ up, addresses }) => up && addresses.get(home)!.serving)?.name ?? null;
  }

  run(ms: number, each: () => void = () => {}): void {
    for (const end = this.now + ms; this.now < end; ) {
      this.now += STEP;
      each();
      for (const gateway of this.gateways.toSorted(() => this.random.below(3) - 1)) if (gateway.up) this.#turn(gateway);
      for (const home of NAMES) {
        const owners = this.gateways.filter(({ up, addresses }) => up && addresses.get(home)!.serving);
        if (owners.length > 1) throw new Error(`${this.random.where} two owners of ${home} at ${this.now}`);
      }
    }
  }

  /** Everything works again. */
  mend(): void {
    this.cut.clear();
    for (const gateway of this.gateways) {
      gateway.store = true;
      if (!gateway.up) gateway.start(this.now);
    }
  }

  told(): string {
    return JSON.stringify(
      this.gateways.map(({ name, up, follower, last }) => ({ name, up, follower, last: [...last] })),
    );
  }

  #turn(gateway: Gateway): void {
    const { now } = this;
    for (const peer of gateway.peers) this.#link(gateway, peer);
    this.#renew(gateway);
    this.#choose(gateway);
    if (now % BEAT === 0) this.#beat(gateway);
    const self = gateway.statistics(now);
    for (const peer of gateway.peers) {
      peer.comparison = compareReach(now, self, peer.heard?.statistics ?? null, peer.comparison);
    }
    for (const [home, address] of gateway.addresses) this.#decide(gateway, self, home, address);
  }

  /** A link is there when both are and it is not cut; it ends by silence, or at once when the process of the other one is gone. */
  #link(gateway: Gateway, peer: Peer): void {
    const { now } = this;
    const other = this.gateway(peer.name);
    const whole = !this.cut.has([gateway.name, peer.name].toSorted().join());
    const quiet = now - Math.max(peer.heard?.heardAt ?? 0, peer.link.since) >= DEFAULT_TIMING.silence;
    const mirror = other.up ? other.peer(gateway.name) : null;
    if (peer.link.state === 'up' && (quiet || (whole && (mirror === null || mirror.link.state === 'down')))) {
      peer.link = { state: 'down', since: now, why: quiet ? 'silent' : 'refused' };
      if (gateway.follower === peer.name) gateway.follower = null;
      return;
    }
    if (peer.link.state === 'up' || !whole || mirror === null || mirror.link.state === 'up') return;
    for (const each of [peer, mirror]) {
      each.link = { state: 'up', since: now };
      each.choice = null;
    }
    if (gateway.follower === peer.name) gateway.follower = null;
    if (other.follower === gateway.name) other.follower = null;
  }

  #choose(gateway: Gateway): void {
    const { follower: present, peers, name: self } = gateway;
    const chosen = chooseFollower({ now: this.now, self, peers, present, ordered: null, settle: SETTLE });
    if (chosen === present || chosen === null) return;
    if (present !== null) this.gateway(present).peer(self).choice = null;
    gateway.follower = chosen;
    this.gateway(chosen).peer(self).choice = ++this.#choice;
  }

  #beat(gateway: Gateway): void {
    for (const { name, link } of gateway.peers) {
      const other = this.gateway(name);
      if (link.state !== 'up' || this.cut.has([gateway.name, name].toSorted().join())) continue;
      if (!other.up || other.peer(gateway.name).link.state !== 'up') continue;
      const statistics = gateway.statistics(this.now);
      other.peer(gateway.name).heard = { statistics, heardAt: this.now };
      for (const [home, address] of other.addresses) {
        if (!address.serving) address.epoch = Math.max(address.epoch, statistics.addresses[home].epoch);
      }
    }
  }

  #renew(gateway: Gateway): void {
    const { now } = this;
    for (const [home, address] of gateway.addresses) {
      const held = this.held.get(home);
      const free = held === undefined || held.until <= now;
      if (!gateway.store || !free) address.freeSince = null;
      else address.freeSince ??= now;
      if (address.validUntil === null || !gateway.store || free || held.owner !== gateway.name) continue;
      held.until = address.validUntil = now + TTL;
    }
  }

  #decide(gateway: Gateway, self: Statistics, home: string, address: Address): void {
    const { now } = this;
    const { peers, follower, follows, name } = gateway;
    const view = { address: home, home, serving: address.serving, epoch: address.epoch };
    const peer = counterpartOf(name, view, peers, follower) as Peer;
    const held = this.held.get(home);
    const holder = held !== undefined && held.until > now ? held.owner : null;
    const [decision] = decide({
      now,
      self,
      peer: peer.heard,
      link: peer.link,
      fence: { configured: false, state: 'idle', at: 0 },
      comparison: peer.comparison!,
      startedAt: gateway.startedAt,
      addresses: [
        {
          ...view,
          moving: false,
          order: null,
          balance: false,
          resumes: false,
          given: false,
          heir: false,
          ahead: aheadOf(name, follows, view, peer, peers),
          freeSince: address.freeSince,
          lease: { validUntil: address.validUntil, holder: gateway.store ? holder : undefined },
        },
      ],
      conditions: DEFAULT_CONDITIONS,
      timing: DEFAULT_TIMING,
    });
    gateway.last.set(home, decision);
    switch (decision.action) {
      case 'ask-lease':
        if (!gateway.store || holder !== null) break;
        this.epochs.set(home, (this.epochs.get(home) ?? 0) + 1);
        this.held.set(home, { owner: name, epoch: this.epochs.get(home)!, until: now + TTL });
        address.validUntil = now + TTL;
        break;
      case 'take':
        address.serving = true;
        address.epoch = Math.max(address.epoch + 1, held!.epoch);
        this.taken.push({ at: now, home, by: name, knew: peer.choice !== null });
        break;
      case 'stop':
        address.serving = false;
        address.validUntil = null;
        break;
    }
  }
}

/** All of them at work, each with its own address. */
function begun(): World {
  const world = new World(randomness());
  world.run(8000);
  for (const name of NAMES) {
    expect(world.owner(name), world.told()).toBe(name);
    expect(world.gateway(name).follower).toBe(shadowOf(name, NAMES));
  }
  world.taken.length = 0;
  return world;
}

describe('several gateways', () => {
  it('never serve an address twice, whatever breaks, and serve all of them in the end', () => {
    const random = randomness();
    for (let run = 0; run < RUNS; run++) {
      const world = new World(random);
      world.run(60_000, () => {
        // Something happens about every second.
        if (random.below(20) !== 0) return;
        const gateway = random.one(world.gateways);
        const link = [gateway.name, random.one(NAMES)].toSorted().join();
        switch (random.below(4)) {
          case 0:
            if (!world.cut.delete(link)) world.cut.add(link);
            break;
          case 1:
            gateway.store = !gateway.store;
            break;
          case 2:
            gateway.up = false;
            break;
          default:
            if (!gateway.up) gateway.start(world.now);
        }
      });
      world.mend();
      world.run(45_000);
      for (const home of NAMES) expect(world.owner(home), `${random.where} ${home}: ${world.told()}`).not.toBeNull();
    }
  });

  it.each(NAMES)('leave what %s had to who followed it, and go on with its next one', (first) => {
    const world = begun();
    const left = NAMES.filter((name) => name !== first);
    const second = shadowOf(first, NAMES)!;
    world.gateway(first).up = false;
    world.run(10_000);
    expect(world.taken.map(({ home, by, knew }) => [home, by, knew])).toEqual([[first, second, true]]);
    // Then that one, and whatever it has.
    world.taken.length = 0;
    world.gateway(second).up = false;
    world.run(10_000);
    const third = shadowOf(second, left)!;
    expect(new Set(world.taken.map(({ home, by, knew }) => `${home} ${by} ${knew}`))).toEqual(
      new Set([first, second].map((home) => `${home} ${third} true`)),
    );
  });

  it.each(NAMES)('serve what %s had when its follower is lost with it', (first) => {
    const world = begun();
    const second = shadowOf(first, NAMES)!;
    world.gateway(first).up = world.gateway(second).up = false;
    world.run(15_000);
    for (const home of NAMES) expect(world.owner(home), world.told()).not.toBeNull();
  });

  it.each(NAMES)('leave what %s had to its latest follower, when the one before was only cut off from it', (first) => {
    const world = begun();
    const before = shadowOf(first, NAMES)!;
    world.cut.add([first, before].toSorted().join());
    world.run(5000);
    const after = world.gateway(first).follower!;
    expect(after).not.toBe(before);
    expect(world.taken).toEqual([]);
    world.gateway(first).up = false;
    world.run(10_000);
    expect(world.taken.map(({ home, by }) => [home, by])).toEqual([[first, after]]);
  });
});
