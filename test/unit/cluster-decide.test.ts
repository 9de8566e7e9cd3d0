import { describe, expect, it } from 'vitest';
import type { ServerFacts } from '../../core/contract/index.js';
import {
  COOLDOWN_MS,
  decide,
  elect,
  electAmong,
  RETRY_MS,
  type Seen,
  type Situation,
  type Standing,
} from '../../core/host/cluster/decide.js';

const facts = (over: Partial<ServerFacts>): ServerFacts => ({
  role: 'primary',
  writable: true,
  system: 's',
  timeline: 1,
  instance: 'i',
  position: 100n,
  lagBytes: null,
  history: null,
  ...over,
});
const up = (name: string, over: Partial<ServerFacts> = {}): Seen => ({
  name,
  reachable: true,
  unreachableSince: null,
  failures: 0,
  facts: facts(over),
});
const standby = (name: string, over: Partial<ServerFacts> = {}): Seen =>
  up(name, { role: 'standby', writable: false, lagBytes: 0, ...over });
const down = (name: string, since: number, over: Partial<ServerFacts> = {}, failures = 5): Seen => ({
  ...up(name, over),
  reachable: false,
  unreachableSince: since,
  failures,
});
const unknown = (name: string): Seen => ({ name, reachable: false, unreachableSince: 0, failures: 1, facts: null });

const nothing: Standing = { system: null, timeline: 0, primary: null };
const onA: Standing = { system: 's', timeline: 1, primary: 'a' };

it('several that take writes: one is used where one is needed, the same as long as it is there, and none is refused', () => {
  const seen = [standby('a'), up('b', { system: 'x' }), up('c', { system: 'y', timeline: 3 })];
  const first = electAmong(seen, nothing);
  expect([first.writable, first.refused.size]).toEqual(['b', 0]);
  expect(electAmong(seen, { ...nothing, primary: 'c' }).writable).toBe('c');
  const lost = electAmong([standby('a'), down('b', 0), down('c', 0)], first.standing);
  expect([lost.writable, lost.standing.primary]).toEqual([null, 'b']);
});

describe('who may be written to', () => {
  const cases: [string, Seen[], Standing, string | null, Record<string, string>, Partial<Standing>?][] = [
    ['nobody is known', [unknown('a'), unknown('b')], nothing, null, {}, nothing],
    ['a primary and a standby', [up('a'), standby('b')], nothing, 'a', {}, onA],
    ['the order does not matter', [standby('b'), up('a')], nothing, 'a', {}, onA],
    ['standbys only', [standby('a'), standby('b')], nothing, null, {}, { system: 's', timeline: 1, primary: null }],
    ['the primary is lost', [down('a', 0), standby('b')], onA, null, {}, onA],
    ['the primary is read-only', [up('a', { writable: false }), standby('b')], onA, null, {}, onA],
    [
      'b was promoted, a is lost',
      [down('a', 0), up('b', { timeline: 2 })],
      onA,
      'b',
      {},
      { timeline: 2, primary: 'b' },
    ],
    [
      'b was promoted, a still takes writes',
      [up('a'), up('b', { timeline: 2 })],
      onA,
      'b',
      { a: 'old-timeline' },
      { timeline: 2, primary: 'b' },
    ],
    [
      'the promoted server is away again, the old one is back',
      [up('a'), down('b', 0, { timeline: 2 })],
      { system: 's', timeline: 2, primary: 'b' },
      null,
      { a: 'old-timeline' },
    ],
    [
      'only a standby of the new timeline tells of the promotion',
      [up('a'), standby('c', { timeline: 2 })],
      onA,
      null,
      { a: 'old-timeline' },
      { timeline: 2, primary: 'a' },
    ],
    [
      'two on one timeline: the one in use stays',
      [up('a'), up('b', { position: 900n })],
      onA,
      'a',
      { b: 'second-primary' },
    ],
    [
      'two on one timeline, none in use: the one with more',
      [up('a'), up('b', { position: 900n })],
      nothing,
      'b',
      { a: 'second-primary' },
    ],
    [
      'another system is never used',
      [down('a', 0), up('b', { system: 'x', timeline: 9 })],
      onA,
      null,
      { b: 'other-system' },
      onA,
    ],
    [
      'the primary says which system it is',
      [standby('a', { system: 'x' }), up('b')],
      nothing,
      'b',
      { a: 'other-system' },
    ],
    ['a restarted primary is used again', [up('a', { instance: 'j' }), standby('b')], onA, 'a', {}],
    [
      'a replaced primary that became a standby is nothing special',
      [standby('a', { timeline: 2 }), up('b', { timeline: 2 })],
      onA,
      'b',
      {},
    ],
  ];
  it.each(cases)('%s', (_, seen, before, writable, refused, standing = {}) => {
    const election = elect(seen, before);
    expect(election.writable).toBe(writable);
    expect(Object.fromEntries(election.refused)).toEqual(refused);
    expect(election.standing).toMatchObject(standing);
  });
});

describe('what to do about a lost primary', () => {
  const basis: Situation = {
    now: 10_000,
    servers: [down('a', 8000), standby('b')],
    standing: onA,
    writable: null,
    promotion: { after: 1000 },
    fence: 'none',
    busy: false,
    last: null,
  };
  const wait = (until: number | null) => ({ do: 'wait', until, why: expect.any(String) });
  const cases: [string, Partial<Situation>, object][] = [
    ['promote the standby', {}, { do: 'promote', server: 'b' }],
    ['not when promotion is not ours', { promotion: null }, { do: 'none' }],
    ['not while a server takes writes', { writable: 'a' }, { do: 'none' }],
    ['not while something is under way', { busy: true }, wait(null)],
    ['not when no primary was ever seen', { standing: { ...onA, primary: null } }, wait(null)],
    ['not while it answers, be it read-only', { servers: [up('a', { writable: false }), standby('b')] }, wait(null)],
    ['not before the time', { now: 8999 }, wait(9000)],
    ['at the time', { now: 9000 }, { do: 'promote', server: 'b' }],
    ['not for one lost probe', { servers: [down('a', 8000, {}, 1), standby('b')] }, wait(null)],
    ['not without a standby', { servers: [down('a', 8000)] }, wait(null)],
    ['not a standby that is away', { servers: [down('a', 8000), { ...standby('b'), reachable: false }] }, wait(null)],
    ['not a standby of another system', { servers: [down('a', 8000), standby('b', { system: 'x' })] }, wait(null)],
    [
      'not a standby that did not follow the last promotion',
      { standing: { ...onA, timeline: 2 }, servers: [down('a', 8000, { timeline: 2 }), standby('b')] },
      wait(null),
    ],
    ['fence first', { fence: 'due' }, { do: 'fence', server: 'a' }],
    ['but not in vain', { fence: 'due', servers: [down('a', 8000)] }, wait(null)],
    ['promote when that is done', { fence: 'done' }, { do: 'promote', server: 'b' }],
    [
      'the standby that is farthest',
      { servers: [down('a', 8000), standby('b'), standby('c', { position: 101n }), standby('d')] },
      { do: 'promote', server: 'c' },
    ],
    [
      'what was received counts, replayed or not',
      { servers: [down('a', 8000), standby('b', { position: 120n }), standby('c', { position: 90n, lagBytes: 50 })] },
      { do: 'promote', server: 'c' },
    ],
    ['not again at once', { last: { at: 9000, failed: false } }, wait(9000 + COOLDOWN_MS)],
    [
      'again when the first time failed',
      { last: { at: 10_000 - RETRY_MS, failed: true } },
      { do: 'promote', server: 'b' },
    ],
    ['but not without a pause', { last: { at: 9500, failed: true } }, wait(9500 + RETRY_MS)],
  ];
  it.each(cases)('%s', (_, over, decision) => {
    expect(decide({ ...basis, ...over })).toEqual(decision);
  });
});
