import { describe, expect, it } from 'vitest';
import { RECORD } from '../../core/cluster/records.js';
import { ranked } from '../../core/cluster/rendezvous.js';
import type { LeasePlugin } from '../../core/contract/index.js';
import type { PairAddress } from '../../core/host/pair/address.js';
import type { Peer } from '../../core/host/pair/peer.js';
import { Telling } from '../../core/host/pair/telling.js';
import { silent } from '../kit/told.js';

const KINDS = new Map<number, string>(Object.entries(RECORD).map(([name, kind]) => [kind, name]));

/** Another gateway, of which only the link is there. */
class FakePeer {
  link: Peer['link'] = { state: 'down', since: 0, why: 'silent' };
  readonly heard = null;
  /** What it was told. */
  readonly told: string[] = [];
  readonly channel = {
    append: (kind: number): number => this.told.push(KINDS.get(kind)!) - 1,
    flush: () => {},
  };

  constructor(readonly name: string) {}

  get linked(): boolean {
    return this.link.state === 'up';
  }
}

/** The gateway `a` and two others: the one that stands nearer to it, and the other one. */
function scene({ store }: { store?: { mine: boolean } } = {}) {
  const [near, far] = ranked('a', ['b', 'c']).map((name) => new FakePeer(name));
  const address = {
    address: 'x',
    serving: true,
    moving: false,
    order: null as string | null,
    orderedBy: null as unknown,
  };
  const lease = store && { holder: async () => ({ owner: store.mine ? 'a' : near.name, epoch: 1 }) };
  let now = 0;
  let changes = 0;
  const telling = new Telling({
    name: 'a',
    peers: [near, far] as unknown as Peer[],
    addresses: [address] as unknown as PairAddress[],
    lease: (lease ?? null) as LeasePlugin | null,
    keeping: null,
    waits: false,
    log: silent,
    now: () => now,
    stopped: () => false,
    onChange: () => changes++,
  });
  return {
    near,
    far,
    address,
    telling,
    get changes() {
      return changes;
    },
    up(peer: FakePeer): void {
      peer.link = { state: 'up', since: now };
      telling.choose();
    },
    down(peer: FakePeer, why: 'silent' | 'refused'): void {
      peer.link = { state: 'down', since: now, why };
      telling.lost(peer as unknown as Peer, why);
    },
    acked(peer: FakePeer): void {
      telling.acked(peer as unknown as Peer, peer.told.length);
    },
    pass(ms: number): void {
      now += ms;
      telling.choose();
    },
  };
}

describe('who is told of the sessions', () => {
  it('is whoever is there first, and the nearer one a while after it has come', () => {
    const all = scene();
    const { near, far, telling } = all;
    all.up(far);
    expect([telling.follower?.name, far.told]).toEqual([far.name, ['follow']]);
    all.up(near);
    all.pass(2999);
    expect([far.told, near.told]).toEqual([['follow'], []]);
    all.pass(1);
    expect([far.told, near.told]).toEqual([['follow', 'unfollow'], []]);
  });

  it('is nobody else before the one before has confirmed that it has forgotten them', () => {
    const all = scene();
    const { near, far, telling } = all;
    all.up(far);
    all.up(near);
    all.pass(3000);
    expect([telling.changing, telling.follower?.name]).toEqual([true, far.name]);
    expect(telling.ready(far as unknown as Peer)).toBe(false);
    // It goes on to confirm what it was told before.
    telling.acked(far as unknown as Peer, 1);
    expect([telling.changing, near.told]).toEqual([true, []]);
    all.acked(far);
    expect([telling.changing, telling.follower?.name, near.told]).toEqual([false, near.name, ['follow']]);
    expect([telling.ready(near as unknown as Peer), telling.ready(far as unknown as Peer)]).toEqual([true, false]);
    expect(all.changes).toBe(1);
  });

  it('is told by one choice as long as nothing of it can be missing', () => {
    const all = scene();
    const [near, far] = [all.near, all.far] as unknown as Peer[];
    const { telling } = all;
    all.up(all.far);
    const first = telling.term(far)!;
    expect([first > 0, telling.term(near), telling.term(null)]).toEqual([true, null, null]);
    // It is there again at once, and has forgotten what it was told.
    all.down(all.far, 'refused');
    expect(telling.term(far)).toBeNull();
    all.up(all.far);
    expect(telling.term(far)!).toBeGreaterThan(first);
    all.up(all.near);
    all.pass(3000);
    expect([telling.changing, telling.term(far), telling.term(near)]).toEqual([true, null, null]);
    all.acked(all.far);
    expect([telling.term(far), telling.term(near) !== null]).toEqual([null, true]);
  });

  it('stays who it is while an address moves', () => {
    const all = scene();
    const { near, far, address } = all;
    all.up(far);
    all.up(near);
    address.moving = true;
    all.pass(3000);
    expect(far.told).toEqual(['follow']);
    address.moving = false;
    all.pass(0);
    expect(far.told).toEqual(['follow', 'unfollow']);
  });

  it('is at once the next one when a process is gone, also in the middle of a change', () => {
    const all = scene();
    const { near, far, telling } = all;
    all.up(near);
    all.up(far);
    all.down(near, 'refused');
    expect([telling.follower?.name, far.told]).toEqual([far.name, ['follow']]);
    all.up(near);
    all.pass(3000);
    expect(telling.changing).toBe(true);
    all.down(far, 'refused');
    expect([telling.changing, telling.follower?.name, near.told]).toEqual([false, near.name, ['follow', 'follow']]);
  });

  it('is, after one that fell silent, nobody else before the store says that it has not taken over', async () => {
    const store = { mine: false };
    const all = scene({ store });
    const { near, far, telling } = all;
    all.up(near);
    all.up(far);
    all.down(near, 'silent');
    await new Promise((resolve) => setTimeout(resolve, 60));
    expect([telling.follower, far.told]).toEqual([null, []]);
    store.mine = true;
    await expect.poll(() => telling.follower?.name).toBe(far.name);
    expect(far.told).toEqual(['follow']);
  });

  it('is the silent one itself when it is back: it has forgotten what it knew', () => {
    const all = scene({ store: { mine: false } });
    const { near, telling } = all;
    all.up(near);
    all.down(near, 'silent');
    expect(telling.follower).toBeNull();
    all.up(near);
    expect([telling.follower?.name, near.told]).toEqual([near.name, ['follow', 'follow']]);
  });

  it('is whoever has ordered an address, until that has it', () => {
    const all = scene();
    const { near, far, address, telling } = all;
    all.up(near);
    all.up(far);
    Object.assign(address, { order: 'give', orderedBy: far });
    all.pass(0);
    all.acked(near);
    expect([telling.follower?.name, far.told]).toEqual([far.name, ['follow']]);
    Object.assign(address, { order: null, serving: false });
    all.pass(3000);
    all.acked(far);
    expect([telling.follower?.name, near.told]).toEqual([near.name, ['follow', 'unfollow', 'follow']]);
  });
});
