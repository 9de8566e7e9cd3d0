import { describe, expect, it } from 'vitest';
import type { LinkState } from '../../core/cluster/decide.js';
import {
  type AddressView,
  aheadOf,
  chooseFollower,
  counterpartOf,
  followerOf,
  type MemberView,
  ownerOf,
} from '../../core/cluster/members.js';
import { ranked, shadowOf } from '../../core/cluster/rendezvous.js';
import type { AddressStatistics, Statistics } from '../../core/cluster/statistics.js';

const NOW = 100_000;

interface Say {
  readonly x?: Partial<AddressStatistics>;
  readonly follows?: Record<string, number>;
  readonly draining?: boolean;
  readonly store?: boolean;
  /** When it was heard; by default just now. */
  readonly at?: number;
  /** By default it has been up for long. */
  readonly link?: LinkState;
}

const SILENT: LinkState = { state: 'down', since: NOW - 1000, why: 'silent' };

function member(name: string, say: Say = {}): MemberView {
  const statistics: Statistics = {
    name,
    version: '0.1.0',
    incarnation: name,
    sentAt: 0,
    addresses: { x: { epoch: 0, serves: false, resumes: false, sessions: 0, requestsPerSecond: 0, ...say.x } },
    clients: 0,
    shadows: { total: 0, adoptable: 0 },
    follows: say.follows ?? {},
    reaches: { peer: true, backends: {}, store: say.store ?? true },
    load: { cpu: 0, eventLoopDelayMs: 0, sessions: 0, bytesPerSecond: 0, requestsPerSecond: 0 },
    draining: say.draining ?? false,
    conditions: [],
  };
  return { name, link: say.link ?? { state: 'up', since: 0 }, heard: { statistics, heardAt: say.at ?? NOW } };
}

/** Never heard. */
const unmet = (name: string): MemberView => ({ name, link: { ...SILENT, since: 0 }, heard: null });
const dead = (name: string, say: Say = {}) => member(name, { link: SILENT, at: NOW - 2000, ...say });
const view = (over: Partial<AddressView> = {}): AddressView => ({
  address: 'x',
  home: 'a',
  serving: false,
  epoch: 0,
  ...over,
});
const serves = (epoch: number) => ({ x: { epoch, serves: true, sessions: 5 } });

// Who stands nearest to a: the tests are to hold whatever the hash says.
const [near, far] = ranked('a', ['b', 'c']);

describe('who follows the sessions of a gateway', () => {
  const choose = (peers: readonly MemberView[], present: string | null = null, ordered: string | null = null) =>
    chooseFollower({ now: NOW, self: 'a', peers, present, ordered, settle: 3000 });
  const fresh = (name: string, since: number) => member(name, { link: { state: 'up', since } });

  it('is the shadow of all that are there', () => {
    expect(choose([member('b'), member('c')])).toBe(shadowOf('a', ['b', 'c']));
    expect(choose([member(near, { link: SILENT }), member(far)])).toBe(far);
    expect(choose([unmet('b'), unmet('c')])).toBeNull();
    expect(choose([{ ...unmet('b'), link: { state: 'up', since: NOW } }])).toBe('b');
  });

  it('stays who it is until a nearer one was there for a while', () => {
    expect(choose([fresh(near, NOW - 2999), member(far)], far)).toBe(far);
    expect(choose([fresh(near, NOW - 3000), member(far)], far)).toBe(near);
    expect(choose([member(near), fresh(far, NOW)], near)).toBe(near);
  });

  it('is another one at once when it is gone', () => {
    expect(choose([dead(near), member(far)], near)).toBe(far);
    expect(choose([dead(near), dead(far)], near)).toBeNull();
  });

  it('is none that could take nothing over, while there is another one', () => {
    expect(choose([member(near, { draining: true }), member(far)])).toBe(far);
    expect(choose([member(near, { store: false }), member(far)], near)).toBe(far);
    expect(choose([member(near, { store: false }), member(far, { draining: true })], far)).toBe(far);
    expect(choose([member(near, { draining: true }), dead(far)], near)).toBe(near);
  });

  it('is whom an order names, if that one is there', () => {
    expect(choose([member(near), fresh(far, NOW)], near, far)).toBe(far);
    expect(choose([member(near), dead(far)], near, far)).toBe(near);
  });

  it('is, as far as others know, who says so by the latest choice', () => {
    const says = (name: string, choice: number) => member(name, { follows: { z: choice } });
    expect(followerOf('z', 'a', {}, [member('b'), member('c')])).toBeNull();
    expect(followerOf('z', 'a', { z: 3 }, [says('b', 2)])).toBe('a');
    expect(followerOf('z', 'a', { z: 3 }, [says('b', 4), says('c', 5)])).toBe('c');
    expect(followerOf('z', 'a', { z: 3 }, [dead('b', { follows: { z: 9 } })])).toBe('a');
  });
});

describe('who matters for an address', () => {
  const matters = (peers: readonly MemberView[], over: Partial<AddressView> = {}, receiver: string | null = null) =>
    counterpartOf('a', view(over), peers, receiver).name;

  it('is who serves it', () => {
    expect(matters([member('b'), member('c', serves(4))])).toBe('c');
    expect(matters([dead('b'), dead('c', serves(4))])).toBe('c');
    // Who is gone had it before who has it.
    expect(matters([dead('b', serves(4)), member('c', serves(5))])).toBe('c');
    expect(matters([dead('b', serves(5)), dead('c', serves(4))])).toBe('b');
    expect(matters([member('b', { x: { epoch: 4, resumes: true } }), member('c')])).toBe('b');
  });

  it('is not who had it before somebody else, who has left it', () => {
    expect(ownerOf(view(), [dead('b', serves(4)), member('c', { x: { epoch: 5 } })])).toBeNull();
    expect(ownerOf(view({ epoch: 5 }), [dead('b', serves(4)), member('c')])).toBeNull();
    expect(ownerOf(view({ epoch: 4 }), [dead('b', serves(4)), member('c')])?.name).toBe('b');
  });

  it('is, where it is served here, who claims more, else who gets it', () => {
    expect(matters([member('b', serves(6)), member('c')], { serving: true, epoch: 5 }, 'c')).toBe('b');
    expect(matters([member('b', serves(4)), member('c')], { serving: true, epoch: 5 }, 'c')).toBe('c');
    expect(matters([dead('b', serves(4)), member('c')], { serving: true, epoch: 5 })).toBe('c');
    expect(matters([dead('b', { at: NOW - 5000 }), dead('c')], { serving: true, epoch: 5 })).toBe('c');
  });

  it('is, where nobody serves it, who has its connections, else its home', () => {
    expect(matters([member('b'), member('c', { x: { sessions: 3 } })], { home: 'b' })).toBe('c');
    expect(matters([member('b'), member('c')], { home: 'c' })).toBe('c');
    expect(matters([member('b'), unmet('c')], { home: 'c' })).toBe('c');
    // At home any that is there will do.
    expect(matters([unmet('b'), member('c')])).toBe('c');
    expect(matters([dead('b'), member('c', { at: NOW - 9000 })])).toBe('c');
  });
});

describe('who goes first with an address that has lost its owner', () => {
  const ahead = (
    peers: readonly MemberView[],
    matters: string,
    follows: Record<string, number> = {},
    over: Partial<AddressView> = {},
  ) => aheadOf('a', follows, view({ home: 'z', ...over }), peers.find(({ name }) => name === matters)!, peers);
  const owner = dead('z', serves(4));

  it('is the only one in a pair', () => {
    expect(ahead([owner], 'z')).toBe(0);
    expect(ahead([member('z', serves(4))], 'z')).toBe(0);
    expect(ahead([unmet('z')], 'z')).toBe(0);
  });

  it('is the shadow of the owner', () => {
    expect(ahead([owner, member('b')], 'z', { z: 1 })).toBe(0);
    expect(ahead([owner, member('b', { follows: { z: 1 } })], 'z')).toBe(1);
    // It was chosen later, when this one was not reached.
    expect(ahead([owner, member('b', { follows: { z: 2 } })], 'z', { z: 1 })).toBe(1);
  });

  it('is the home next, then the others, by how near they are to the owner', () => {
    expect(ahead([owner, member('b')], 'z', {}, { home: 'a' })).toBe(0);
    expect(ahead([owner, member('b'), member('c', { follows: { z: 1 } })], 'z', {}, { home: 'b' })).toBe(2);
    expect(ahead([owner, member('b'), member('c')], 'z', {})).toBe(ranked('z', ['a', 'b', 'c']).indexOf('a'));
  });

  it('is none that is not there, drains or does not reach the store', () => {
    expect(ahead([owner, dead('b', { follows: { z: 1 } })], 'z')).toBe(0);
    expect(ahead([owner, member('b', { follows: { z: 1 }, draining: true })], 'z')).toBe(0);
    expect(ahead([owner, member('b', { follows: { z: 1 }, store: false })], 'z')).toBe(0);
  });

  it('is the home where nobody ever had it', () => {
    expect(ahead([member('b', { follows: { b: 1 } }), member('c')], 'c', {}, { home: 'a' })).toBe(0);
    expect(ahead([unmet('z'), member('b', { follows: { z: 1 } })], 'z', {})).toBe(ranked('z', ['a', 'b']).indexOf('a'));
  });
});
