import { describe, expect, it } from 'vitest';
import {
  type Action,
  type AddressSituation,
  CONTACTS,
  type Comparison,
  type ConditionsConfig,
  compareReach,
  DEFAULT_CONDITIONS,
  DEFAULT_TIMING,
  decide,
  enabledConditions,
  type Facts,
  judge,
  nextLook,
  observe,
  PLACES,
  PROOFS,
  REASONS,
  ROWS,
  RULES,
  type RuleName,
  ruleFor,
  type Situation,
  TABLE,
  WISHES,
} from '../../core/cluster/decide.js';
import type { AddressStatistics, BackendReach, Statistics } from '../../core/cluster/statistics.js';

const NOW = 100_000;
const T = DEFAULT_TIMING;

interface Say {
  readonly draining?: boolean;
  readonly store?: boolean | null;
  readonly backends?: Record<string, BackendReach>;
  /** Epoch under which it serves the address. */
  readonly serves?: number;
  /** Connections that stand still there, while it does not serve it. */
  readonly stands?: number;
  readonly resumes?: boolean;
}

/** Statistics of a gateway that is well. */
function saying(name: string, say: Say = {}): Statistics {
  const addresses: Record<string, AddressStatistics> =
    say.serves === undefined && say.stands === undefined && !say.resumes
      ? {}
      : {
          x: {
            epoch: say.serves ?? 0,
            serves: say.serves !== undefined,
            resumes: say.resumes ?? false,
            sessions: say.stands ?? 5,
            requestsPerSecond: 1,
          },
        };
  return {
    name,
    version: '0.1.0',
    incarnation: name,
    sentAt: 0,
    addresses,
    clients: 0,
    shadows: { total: 0, adoptable: 0 },
    follows: {},
    reaches: { peer: true, backends: say.backends ?? { 'main/db1': 'ok' }, store: say.store ?? null },
    load: { cpu: 0, eventLoopDelayMs: 0, sessions: 0, bytesPerSecond: 0, requestsPerSecond: 0 },
    draining: say.draining ?? false,
    conditions: [],
  };
}

const address = (over: Partial<AddressSituation> = {}): AddressSituation => ({
  address: 'x',
  home: 'a',
  serving: false,
  epoch: 0,
  moving: false,
  order: null,
  balance: false,
  resumes: false,
  given: false,
  heir: false,
  ahead: 0,
  freeSince: null,
  lease: { validUntil: null, holder: undefined },
  ...over,
});

const situation = (over: Partial<Situation> = {}): Situation => ({
  now: NOW,
  self: saying('a'),
  peer: { statistics: saying('b'), heardAt: NOW - 100 },
  link: { state: 'up', since: 0 },
  fence: { configured: false, state: 'idle', at: 0 },
  comparison: { worse: null, since: 0 },
  startedAt: 0,
  addresses: [address()],
  conditions: { ...DEFAULT_CONDITIONS, balance: true },
  timing: T,
  ...over,
});

const down = (why: 'silent' | 'refused' | 'left') => ({ state: 'down', since: 0, why }) as const;
const heard = (ago: number, say: Say = {}) => ({ statistics: saying('b', say), heardAt: NOW - ago });
const serving = (over: Partial<AddressSituation> = {}) => address({ serving: true, epoch: 5, ...over });
const withStore = saying('a', { store: true });
const leaseFor = (ms: number) => ({ validUntil: NOW + ms, holder: 'a' });
const cutOff = { 'main/db1': 'unreachable' } as const;
const fenceCommand = { configured: true, state: 'idle', at: 0 } as const;

describe('what a gateway does', () => {
  type Row = [
    what: string,
    over: Partial<Situation>,
    is: Partial<AddressSituation>,
    action: Action,
    reason: keyof typeof REASONS,
    rule: RuleName,
  ];

  const rows: Row[] = [
    // A pair with nothing to prove anything by.
    ['all is well', {}, serving(), 'keep', 'serving', 'as-it-is'],
    ['all is well, the peer serves', { peer: heard(100, { serves: 5 }) }, {}, 'none', 'not-wanted', 'as-it-is'],
    ['both have just met', {}, {}, 'take', 'nobody-serves', 'home'],
    ['both have just met, and the link went down', { link: down('silent') }, {}, 'none', 'not-wanted', 'as-it-is'],
    ['connections stand still at the peer', { peer: heard(100, { stands: 3 }) }, {}, 'none', 'not-wanted', 'as-it-is'],
    [
      'they stand still here, not at home',
      { self: saying('a', { stands: 3 }) },
      { home: 'b' },
      'take',
      'nobody-serves',
      'home',
    ],
    [
      'they stand still at both',
      { self: saying('a', { stands: 3 }), peer: heard(100, { stands: 3 }) },
      {},
      'take',
      'nobody-serves',
      'home',
    ],
    [
      'connections stand still at the peer, which is silent',
      { self: withStore, peer: heard(1000, { stands: 3 }), link: down('silent') },
      { lease: { validUntil: null, holder: null } },
      'ask-lease',
      'lease-free',
      'peer-silent',
    ],
    ['both have just met, not at home', {}, { home: 'b' }, 'none', 'not-wanted', 'as-it-is'],
    ['the peer was never heard', { peer: null, link: down('silent') }, {}, 'none', 'never-met', 'home'],
    [
      'the peer was never heard for long',
      { peer: null, link: down('silent') },
      { home: 'b' },
      'none',
      'never-met',
      'peer-never-came',
    ],
    ['the peer falls silent', { peer: heard(60_000, { serves: 5 }) }, {}, 'none', 'no-proof', 'peer-silent'],
    [
      'the peer falls silent, link down',
      { peer: heard(60_000, { serves: 5 }), link: down('silent') },
      {},
      'none',
      'no-proof',
      'peer-silent',
    ],
    ['the peer falls silent, it had nothing', { peer: heard(60_000) }, {}, 'none', 'no-proof', 'peer-silent'],
    [
      'the process of the peer is gone',
      { peer: heard(60_000, { serves: 5 }), link: down('refused') },
      {},
      'none',
      'no-proof',
      'peer-process-gone',
    ],
    ['the peer falls silent, served here', { peer: heard(60_000) }, serving(), 'keep', 'serving', 'peer-silent'],
    [
      'the peer was not heard for a moment',
      { peer: heard(100, { serves: 5 }), link: down('silent') },
      {},
      'none',
      'not-wanted',
      'as-it-is',
    ],
    [
      'an operator orders to take from a silent peer',
      { peer: heard(60_000, { serves: 5 }) },
      { order: 'take' },
      'none',
      'no-proof',
      'operator-take',
    ],
    [
      'an operator orders to take from a peer that was not heard for a moment',
      { peer: heard(100, { serves: 5 }), link: down('refused'), fence: fenceCommand },
      { order: 'take' },
      'none',
      'not-wanted',
      'as-it-is',
    ],
    [
      'an operator vouches that the peer is off',
      { peer: heard(60_000, { serves: 5 }), fence: { configured: false, state: 'done', at: NOW - 10 } },
      {},
      'take',
      'fenced',
      'peer-silent',
    ],
    [
      'so he did, but it was heard since',
      { peer: heard(60_000, { serves: 5 }), fence: { configured: false, state: 'done', at: NOW - 70_000 } },
      {},
      'none',
      'no-proof',
      'peer-silent',
    ],
    [
      'he does for a peer that was never heard',
      { peer: null, link: down('silent'), fence: { configured: false, state: 'done', at: NOW - 10 } },
      {},
      'take',
      'fenced',
      'home',
    ],
    [
      'the peer left in order',
      { peer: heard(10, { draining: true }), link: down('left') },
      { home: 'b' },
      'take',
      'nobody-serves',
      'peer-left',
    ],
    [
      'the peer left with the address',
      { peer: heard(10, { serves: 5 }), link: down('left') },
      {},
      'none',
      'no-proof',
      'peer-left',
    ],

    // Planned moves need no proof.
    ['an operator orders to give', {}, serving({ order: 'give' }), 'yield', 'planned', 'operator-give'],
    [
      'an operator orders to give, nobody listens',
      { peer: heard(60_000) },
      serving({ order: 'give' }),
      'keep',
      'serving',
      'peer-silent',
    ],
    [
      'an operator orders to give to one that drains',
      { peer: heard(100, { draining: true }) },
      serving({ order: 'give' }),
      'keep',
      'serving',
      'peer-draining',
    ],
    [
      'an operator orders to give, link just down',
      { link: down('silent') },
      serving({ order: 'give' }),
      'keep',
      'serving',
      'as-it-is',
    ],
    [
      'an operator orders to take',
      { peer: heard(100, { serves: 5 }) },
      { order: 'take' },
      'none',
      'await-peer',
      'operator-take',
    ],
    [
      'an operator orders, but may not',
      { conditions: { ...DEFAULT_CONDITIONS, operator: false } },
      serving({ order: 'give' }),
      'keep',
      'serving',
      'as-it-is',
    ],
    ['it drains', { self: saying('a', { draining: true }) }, serving(), 'yield', 'planned', 'draining'],
    [
      'it drains alone',
      { self: saying('a', { draining: true }), peer: heard(60_000) },
      serving(),
      'keep',
      'serving',
      'draining-alone',
    ],
    [
      'both drain',
      { self: saying('a', { draining: true }), peer: heard(100, { draining: true }) },
      serving(),
      'keep',
      'serving',
      'draining-alone',
    ],
    ['it drains, and would be at home', { self: saying('a', { draining: true }) }, {}, 'yield', 'planned', 'draining'],
    [
      'it drains and the peer falls silent',
      { self: saying('a', { draining: true }), peer: heard(60_000, { serves: 5 }), fence: fenceCommand },
      {},
      'none',
      'not-wanted',
      'draining-alone',
    ],
    ['the peer drains', { peer: heard(100, { draining: true, serves: 5 }) }, {}, 'none', 'await-peer', 'peer-draining'],
    [
      'the peer drains, nobody serves, at home',
      { peer: heard(100, { draining: true }) },
      {},
      'take',
      'nobody-serves',
      'peer-draining',
    ],
    [
      'the peer drains, nobody serves, not at home',
      { peer: heard(100, { draining: true }) },
      { home: 'b' },
      'none',
      'await-peer',
      'peer-draining',
    ],
    [
      'it reaches less',
      { comparison: { worse: 'self', since: NOW - 3000 } },
      serving(),
      'yield',
      'planned',
      'backends-better-there',
    ],
    [
      'it reaches less since a moment',
      { comparison: { worse: 'self', since: NOW - 2999 } },
      serving(),
      'keep',
      'serving',
      'as-it-is',
    ],
    [
      'it reaches less, switched off',
      { comparison: { worse: 'self', since: 0 }, conditions: { ...DEFAULT_CONDITIONS, unreachableBackends: false } },
      serving(),
      'keep',
      'serving',
      'as-it-is',
    ],
    [
      'it reaches less, but the peer drains',
      { comparison: { worse: 'self', since: 0 }, peer: heard(100, { draining: true }) },
      serving(),
      'keep',
      'serving',
      'peer-draining',
    ],
    [
      'the peer reaches less',
      { comparison: { worse: 'peer', since: 0 }, peer: heard(100, { serves: 5 }) },
      {},
      'none',
      'await-peer',
      'backends-better-here',
    ],
    ['the balance wants it there', {}, serving({ balance: true }), 'yield', 'planned', 'balance'],
    [
      'the balance wants it there, switched off',
      { conditions: DEFAULT_CONDITIONS },
      serving({ balance: true }),
      'keep',
      'serving',
      'as-it-is',
    ],
    [
      'the balance wants it there, the peer is silent',
      { peer: heard(60_000) },
      serving({ balance: true }),
      'keep',
      'serving',
      'peer-silent',
    ],
    ['it is on its way', {}, { moving: true }, 'none', 'moving', 'moving'],

    // Two that serve.
    [
      'the peer serves under a higher epoch',
      { peer: heard(100, { serves: 6 }) },
      serving(),
      'stop',
      'outranked',
      'as-it-is',
    ],
    [
      'the peer served under a higher epoch, silent',
      { peer: heard(60_000, { serves: 6 }) },
      serving(),
      'stop',
      'outranked',
      'peer-silent',
    ],
    [
      'the peer serves under a lower epoch',
      { peer: heard(100, { serves: 4 }) },
      serving(),
      'keep',
      'serving',
      'as-it-is',
    ],
    [
      'the peer serves under the same epoch',
      { peer: heard(100, { serves: 5 }) },
      serving(),
      'keep',
      'serving',
      'as-it-is',
    ],
    [
      'the peer serves under the same epoch, its name is less',
      { self: saying('c'), peer: heard(100, { serves: 5 }) },
      serving(),
      'stop',
      'outranked',
      'as-it-is',
    ],
    [
      'a higher epoch counts although it moves',
      { peer: heard(100, { serves: 6 }) },
      serving({ moving: true }),
      'stop',
      'outranked',
      'moving',
    ],

    // A pair with a fence command.
    ['silent', { peer: heard(1000, { serves: 5 }), fence: fenceCommand }, {}, 'fence', 'fence-first', 'peer-silent'],
    [
      'silent, switched off',
      {
        peer: heard(1000, { serves: 5 }),
        fence: fenceCommand,
        conditions: { ...DEFAULT_CONDITIONS, hostFailed: false },
      },
      {},
      'none',
      'not-wanted',
      'as-it-is',
    ],
    [
      'the process is gone',
      { peer: heard(1500, { serves: 5 }), link: down('refused'), fence: fenceCommand },
      {},
      'fence',
      'fence-first',
      'peer-process-gone',
    ],
    [
      'the process is gone, but may be restarted',
      { peer: heard(1499, { serves: 5 }), link: down('refused'), fence: fenceCommand },
      {},
      'none',
      'not-wanted',
      'as-it-is',
    ],
    [
      'the process is gone, switched off',
      {
        peer: heard(60_000, { serves: 5 }),
        link: down('refused'),
        fence: fenceCommand,
        conditions: { ...DEFAULT_CONDITIONS, processFailed: false },
      },
      {},
      'none',
      'not-wanted',
      'as-it-is',
    ],
    [
      'silent, the peer has the right to shoot first',
      { self: saying('c'), peer: heard(2999, { serves: 5 }), fence: fenceCommand },
      {},
      'none',
      'fence-waits',
      'peer-silent',
    ],
    [
      'silent, the peer did not shoot',
      { self: saying('c'), peer: heard(3000, { serves: 5 }), fence: fenceCommand },
      {},
      'fence',
      'fence-first',
      'peer-silent',
    ],
    [
      'silent, fencing',
      { peer: heard(9000, { serves: 5 }), fence: { configured: true, state: 'running', at: NOW - 100 } },
      {},
      'none',
      'fence-waits',
      'peer-silent',
    ],
    [
      'silent, fencing failed',
      { peer: heard(9000, { serves: 5 }), fence: { configured: true, state: 'failed', at: NOW - 4999 } },
      {},
      'none',
      'fence-waits',
      'peer-silent',
    ],
    [
      'silent, fencing failed a while ago',
      { peer: heard(9000, { serves: 5 }), fence: { configured: true, state: 'failed', at: NOW - 5000 } },
      {},
      'fence',
      'fence-first',
      'peer-silent',
    ],
    [
      'silent, fenced',
      { peer: heard(9000, { serves: 5 }), fence: { configured: true, state: 'done', at: NOW - 100 } },
      {},
      'take',
      'fenced',
      'peer-silent',
    ],
    [
      'silent, fenced in an earlier life of the peer',
      { peer: heard(9000, { serves: 5 }), fence: { configured: true, state: 'done', at: NOW - 10_000 } },
      {},
      'fence',
      'fence-first',
      'peer-silent',
    ],
    [
      'silent, and no backend in reach',
      { self: saying('a', { backends: cutOff }), peer: heard(1500, { serves: 5 }), fence: fenceCommand },
      {},
      'none',
      'unfit',
      'peer-silent',
    ],
    ['never met', { peer: null, link: down('silent'), fence: fenceCommand }, {}, 'none', 'never-met', 'home'],

    // A pair with a lease store.
    ['the lease is here', { self: withStore }, serving({ lease: leaseFor(501) }), 'keep', 'serving', 'as-it-is'],
    ['the lease ends', { self: withStore }, serving({ lease: leaseFor(500) }), 'stop', 'lease-ending', 'as-it-is'],
    ['the lease has ended', { self: withStore }, serving({ lease: leaseFor(-1) }), 'stop', 'lease-ending', 'as-it-is'],
    [
      'the lease ends while it moves',
      { self: withStore },
      serving({ lease: leaseFor(500), moving: true }),
      'stop',
      'lease-ending',
      'moving',
    ],
    [
      'the lease ends while it should be given away',
      { self: withStore },
      serving({ lease: leaseFor(500), order: 'give' }),
      'stop',
      'lease-ending',
      'operator-give',
    ],
    ['it serves without a lease', { self: withStore }, serving(), 'stop', 'lease-lost', 'as-it-is'],
    [
      'somebody else has the lease',
      { self: withStore },
      serving({ lease: { validUntil: null, holder: 'b' } }),
      'stop',
      'lease-lost',
      'as-it-is',
    ],
    [
      'its lease holds although the store is away',
      { self: saying('a', { store: false }) },
      serving({ lease: leaseFor(2000) }),
      'keep',
      'serving',
      'as-it-is',
    ],
    [
      'its lease holds, the peer is silent',
      { self: withStore, peer: heard(60_000) },
      serving({ lease: leaseFor(2000) }),
      'keep',
      'serving',
      'peer-silent',
    ],
    [
      'silent, it still has the lease',
      { self: withStore, peer: heard(60_000, { serves: 5 }) },
      { lease: { validUntil: null, holder: 'b' } },
      'none',
      'lease-theirs',
      'peer-silent',
    ],
    [
      'silent, its lease has ended',
      { self: withStore, peer: heard(60_000, { serves: 5 }) },
      { lease: { validUntil: null, holder: null } },
      'ask-lease',
      'lease-free',
      'peer-silent',
    ],
    [
      'silent, the store did not tell yet',
      { self: withStore, peer: heard(60_000, { serves: 5 }) },
      {},
      'ask-lease',
      'lease-unknown',
      'peer-silent',
    ],
    [
      'silent, the store is away',
      { self: saying('a', { store: false }), peer: heard(60_000, { serves: 5 }) },
      { lease: { validUntil: null, holder: null } },
      'ask-lease',
      'lease-unknown',
      'peer-silent',
    ],
    [
      'silent, the lease is won',
      { self: withStore, peer: heard(60_000, { serves: 5 }) },
      { lease: leaseFor(3000) },
      'take',
      'lease-won',
      'peer-silent',
    ],
    [
      'silent, the lease is won, but ends',
      { self: withStore, peer: heard(60_000, { serves: 5 }) },
      { lease: leaseFor(400) },
      'none',
      'lease-ending',
      'peer-silent',
    ],
    [
      'silent, a lease of its own has ended',
      { self: withStore, peer: heard(60_000, { serves: 5 }) },
      { lease: { validUntil: NOW - 1, holder: null } },
      'ask-lease',
      'lease-free',
      'peer-silent',
    ],
    [
      'a lease of its former life',
      { self: withStore, peer: heard(60_000) },
      { lease: { validUntil: null, holder: 'a' } },
      'none',
      'lease-theirs',
      'peer-silent',
    ],
    [
      'silent, the lease is the law, a fence command does not matter',
      { self: withStore, peer: heard(60_000, { serves: 5 }), fence: { configured: true, state: 'done', at: NOW } },
      { lease: { validUntil: null, holder: 'b' } },
      'none',
      'lease-theirs',
      'peer-silent',
    ],
    [
      'silent, switched off',
      { self: withStore, peer: heard(60_000, { serves: 5 }), conditions: { ...DEFAULT_CONDITIONS, hostFailed: false } },
      { lease: { validUntil: null, holder: null } },
      'none',
      'not-wanted',
      'as-it-is',
    ],
    [
      'never met, at home',
      { self: withStore, peer: null, link: down('silent'), startedAt: NOW },
      { lease: { validUntil: null, holder: null } },
      'ask-lease',
      'lease-free',
      'home',
    ],
    [
      'never met, not at home',
      { self: withStore, peer: null, link: down('silent'), startedAt: NOW },
      { home: 'b', lease: { validUntil: null, holder: null } },
      'none',
      'not-wanted',
      'as-it-is',
    ],
    [
      'never met for long, not at home',
      { self: withStore, peer: null, link: down('silent') },
      { home: 'b', lease: { validUntil: null, holder: null } },
      'ask-lease',
      'lease-free',
      'peer-never-came',
    ],
    [
      'just met, at home',
      { self: withStore },
      { lease: { validUntil: null, holder: null } },
      'ask-lease',
      'lease-free',
      'home',
    ],
    [
      'the peer cannot reach the store',
      { self: withStore, peer: heard(100, { serves: 5, store: false }) },
      { lease: { validUntil: null, holder: 'b' } },
      'none',
      'await-peer',
      'peer-without-store',
    ],
    [
      'the peer cannot reach the store, its lease has ended',
      { self: withStore, peer: heard(100, { serves: 5, store: false }) },
      { lease: { validUntil: null, holder: null } },
      'ask-lease',
      'lease-free',
      'peer-without-store',
    ],
    [
      'nobody serves, the peer is at home but cannot reach the store',
      { self: withStore, peer: heard(100, { store: false }) },
      { home: 'b', lease: { validUntil: null, holder: null } },
      'ask-lease',
      'lease-free',
      'peer-without-store',
    ],
    [
      'it drains, and has a lease that it does not use',
      { self: saying('a', { store: true, draining: true }) },
      { home: 'b', lease: leaseFor(3000) },
      'yield',
      'planned',
      'draining',
    ],

    // A keeper held what the process before served.
    [
      'its connections are here, it was being given to the peer',
      { peer: heard(100) },
      { home: 'b', resumes: true, given: true },
      'take',
      'resumed',
      'kept',
    ],
    [
      'its connections are here, it was being given to the peer, which is gone',
      { peer: null, link: down('refused'), fence: fenceCommand },
      { home: 'b', resumes: true, given: true },
      'none',
      'never-met',
      'peer-never-came',
    ],
    [
      'its connections are here, it was being given to the peer, which resumes it',
      { peer: heard(100, { resumes: true }) },
      { home: 'b', resumes: true, given: true },
      'none',
      'await-resumed',
      'as-it-is',
    ],
    ['its connections are here', {}, { home: 'b', resumes: true }, 'take', 'resumed', 'kept'],
    [
      'its connections are here, it drains',
      { self: saying('a', { draining: true }) },
      { resumes: true },
      'take',
      'resumed',
      'kept',
    ],
    [
      'its connections are here, the peer has it',
      { peer: heard(100, { serves: 5 }) },
      { resumes: true },
      'none',
      'not-wanted',
      'as-it-is',
    ],
    [
      'its connections are here, the peer was not heard yet',
      { peer: null, startedAt: NOW - 999, link: { state: 'up', since: NOW - 10 } },
      { home: 'b', resumes: true },
      'none',
      'not-wanted',
      'as-it-is',
    ],
    [
      'its connections are here, the peer is not heard',
      { peer: null, startedAt: NOW - 1000, link: down('silent') },
      { home: 'b', resumes: true },
      'take',
      'resumed',
      'kept',
    ],
    [
      'its connections are here, the process of the peer is gone',
      { peer: null, startedAt: NOW - 10, link: down('refused'), fence: fenceCommand },
      { home: 'b', resumes: true },
      'take',
      'resumed',
      'kept',
    ],
    [
      'its connections are here, and its lease',
      { self: withStore, peer: null, startedAt: NOW - 10 },
      { home: 'b', resumes: true, heir: true, lease: { validUntil: null, holder: 'a' } },
      'ask-lease',
      'lease-free',
      'kept',
    ],
    [
      'its connections are here, the lease is elsewhere',
      { self: withStore, peer: null, startedAt: NOW - 10 },
      { home: 'b', resumes: true, heir: true, lease: { validUntil: null, holder: 'b' } },
      'none',
      'lease-theirs',
      'kept',
    ],
    ['the peer resumes it', { peer: heard(100, { resumes: true }) }, {}, 'none', 'await-resumed', 'as-it-is'],
    [
      'the peer resumes it, ordered here',
      { peer: heard(100, { resumes: true }) },
      { order: 'take' },
      'none',
      'await-resumed',
      'operator-take',
    ],
    [
      'the peer resumes it, the lease is here',
      { self: withStore, peer: heard(100, { resumes: true, store: true }) },
      { lease: leaseFor(2500) },
      'yield',
      'planned',
      'as-it-is',
    ],
    [
      'the peer was about to resume it, and is silent',
      { peer: heard(1000, { resumes: true }), fence: fenceCommand },
      {},
      'fence',
      'fence-first',
      'peer-silent',
    ],

    // One of several.
    [
      'silent, its lease has ended, others go first',
      { self: withStore, peer: heard(60_000, { serves: 5 }) },
      { ahead: 1, freeSince: NOW - 4999, lease: { validUntil: null, holder: null } },
      'none',
      'not-wanted',
      'others-first',
    ],
    [
      'silent, the store did not tell yet, others go first',
      { self: withStore, peer: heard(60_000, { serves: 5 }) },
      { ahead: 1 },
      'none',
      'not-wanted',
      'others-first',
    ],
    [
      'silent, the one that goes first had its time',
      { self: withStore, peer: heard(60_000, { serves: 5 }) },
      { ahead: 1, freeSince: NOW - 5000, lease: { validUntil: null, holder: null } },
      'ask-lease',
      'lease-free',
      'peer-silent',
    ],
    [
      'silent, only one of the two that go first had its time',
      { self: withStore, peer: heard(60_000, { serves: 5 }) },
      { ahead: 2, freeSince: NOW - 9999, lease: { validUntil: null, holder: null } },
      'none',
      'not-wanted',
      'others-first',
    ],
    [
      'the lease is here, whoever should have gone first',
      { self: withStore, peer: heard(60_000, { serves: 5 }) },
      { ahead: 1, lease: leaseFor(3000) },
      'take',
      'lease-won',
      'peer-silent',
    ],
    ['it is served here, others would go first', {}, serving({ ahead: 2 }), 'keep', 'serving', 'as-it-is'],
    [
      'its connections are here, others would go first',
      { self: withStore, peer: null },
      { ahead: 1, resumes: true, heir: true, lease: { validUntil: null, holder: 'a' } },
      'ask-lease',
      'lease-free',
      'kept',
    ],
    [
      'in a planned move to somebody else',
      { self: withStore, peer: heard(100, { draining: true, stands: 3 }) },
      { ahead: 1, freeSince: NOW, lease: { validUntil: null, holder: null } },
      'none',
      'not-wanted',
      'others-first',
    ],

    // Cut off from everything.
    [
      'isolated, with a lease',
      { self: saying('a', { store: false, backends: cutOff }), peer: heard(2000) },
      serving({ lease: leaseFor(2000) }),
      'stop',
      'cut-off',
      'isolated',
    ],
    [
      'isolated since a moment',
      { self: saying('a', { store: false, backends: cutOff }), peer: heard(1999) },
      serving({ lease: leaseFor(2000) }),
      'keep',
      'serving',
      'peer-silent',
    ],
    [
      'isolated, with a fence command on the other side',
      { self: saying('a', { backends: cutOff }), peer: heard(2000), fence: fenceCommand },
      serving(),
      'stop',
      'cut-off',
      'isolated',
    ],
    [
      'isolated, and nobody could take it',
      { self: saying('a', { backends: cutOff }), peer: heard(2000) },
      serving(),
      'keep',
      'unrivalled',
      'isolated',
    ],
    [
      'isolated, and the peer is fenced',
      {
        self: saying('a', { backends: cutOff }),
        peer: heard(2000),
        fence: { configured: true, state: 'done', at: NOW },
      },
      serving(),
      'keep',
      'unrivalled',
      'isolated',
    ],
    [
      'isolated, and it serves nothing',
      { self: saying('a', { backends: cutOff }), peer: heard(2000), fence: fenceCommand },
      {},
      'none',
      'cut-off',
      'isolated',
    ],
    [
      'no backends, but the peer is heard',
      { self: saying('a', { store: false, backends: cutOff }) },
      serving({ lease: leaseFor(2000) }),
      'keep',
      'serving',
      'as-it-is',
    ],
    [
      'no backends, but the store is reached',
      { self: saying('a', { store: true, backends: cutOff }), peer: heard(60_000) },
      serving({ lease: leaseFor(2000) }),
      'keep',
      'serving',
      'peer-silent',
    ],
    [
      'no store and no peer, but a backend',
      { self: saying('a', { store: false }), peer: heard(60_000) },
      serving({ lease: leaseFor(2000) }),
      'keep',
      'serving',
      'peer-silent',
    ],
  ];

  it.each(rows)('when %s', (_, over, is, action, reason, rule) => {
    const [decision] = decide(situation({ ...over, addresses: [address(is)] }));
    expect(decision).toEqual({ address: 'x', action, reason, rule });
  });

  it('is decided for each address', () => {
    const decisions = decide(situation({ addresses: [address({ address: 'y' }), serving()] }));
    expect(decisions.map(({ address: name, action }) => [name, action])).toEqual([
      ['y', 'take'],
      ['x', 'keep'],
    ]);
  });

  it('covers every rule and every reason', () => {
    const rules = new Set(rows.map((row) => row[5]));
    expect(RULES.map(({ name }) => name).filter((name) => !rules.has(name))).toEqual([]);
    const reasons = new Set(rows.map((row) => row[4]));
    expect(Object.keys(REASONS).filter((reason) => !reasons.has(reason as keyof typeof REASONS))).toEqual([]);
  });
});

/** All conditions, on and off. */
function allConditions(): ConditionsConfig[] {
  const names = Object.keys(DEFAULT_CONDITIONS).filter((name) => !name.startsWith('dbms'));
  return Array.from({ length: 2 ** names.length }, (_, bits) => ({
    ...DEFAULT_CONDITIONS,
    ...Object.fromEntries(names.map((name, i) => [name, ((bits >> i) & 1) === 1])),
  }));
}

/** All facts that can be told apart, but for the proof. */
function* allFacts(): Generator<Omit<Facts, 'proof'>> {
  for (const contact of CONTACTS)
    for (const place of PLACES)
      for (const order of ['take', 'give', null] as const)
        for (const worse of ['self', 'peer', null] as const)
          for (let bits = 0; bits < 512; bits++) {
            const [moving, isolated, balance, selfDraining, peerDraining, peerWithoutStore, home, waited, turn] =
              Array.from({ length: 9 }, (_, i) => ((bits >> i) & 1) === 1);
            yield {
              contact,
              place,
              order,
              worse,
              moving,
              isolated,
              balance,
              selfDraining,
              peerDraining,
              peerWithoutStore,
              home,
              waited,
              turn,
            };
          }
}

describe('the table, in every combination', () => {
  it('has a row for every wish and place, and uses all rows', () => {
    const used = new Set(WISHES.flatMap((wish) => PLACES.map((place) => TABLE[wish][place])));
    expect([...used].toSorted()).toEqual(Object.keys(ROWS).toSorted());
  });

  it.each(WISHES)('is safe when the wish is %s', (wish) => {
    for (const place of PLACES) {
      for (const proof of PROOFS) {
        const { action } = ROWS[TABLE[wish][place]][proof];
        const where = `${wish} ${place} ${proof}`;
        const here = place === 'here' || place === 'outranked';
        // What is served is kept, given or stopped, what is not is none of these; but a right may be given.
        if (here) expect(['keep', 'yield', 'stop'], where).toContain(action);
        else expect(['take', 'ask-lease', 'fence', 'yield', 'none'], where).toContain(action);
        // With a store, nobody writes without the lease, and nobody begins to.
        if (['ending', 'theirs', 'free', 'unknown'].includes(proof)) {
          expect(['keep', 'take'], where).not.toContain(action);
          if (here) expect(action, where).toBe('stop');
        }
        if (place === 'outranked') expect(action, where).toBe('stop');
        // Without a proof nothing is taken from one that may serve.
        if (action === 'take' && proof !== 'mine' && proof !== 'fenced')
          expect(['kept', 'open', 'left'], where).toContain(place);
        if (action === 'take' && proof === 'fenced')
          expect(['kept', 'open', 'left', 'away', 'unmet'], where).toContain(place);
        // Shots are for the silent only, and only where they can hit.
        if (action === 'fence') expect([place, proof], where).toEqual(['away', 'fence']);
        if (action === 'ask-lease') expect(['free', 'unknown'], where).toContain(proof);
        // Planned moves go to one that hears.
        if (action === 'yield') expect(['here', 'resuming', 'open', 'open-peer'], where).toContain(place);
        // Nothing happens to what is on its way, but for the law.
        if (wish === 'moving') expect(['keep', 'stop', 'none'], where).toContain(action);
      }
    }
  });

  it('follows the rules', () => {
    const wrong = new Set<string>();
    const seen = new Set<string>();
    const conditions = allConditions();
    for (const facts of allFacts()) {
      for (const on of conditions) {
        const { name, wish } = ruleFor(facts as Facts, on);
        seen.add(name);
        const check = (right: boolean, what: string) => right || wrong.add(`${name}: ${what}`);
        check(
          wish !== 'there' || (facts.contact === 'linked' && !facts.peerDraining),
          'gives to one that does not take',
        );
        check(
          // What is not served cannot be given: it is gone on with first.
          wish !== 'here' || !facts.selfDraining || facts.order === 'take' || facts.place === 'kept',
          'takes while it drains',
        );
        check(!facts.moving || wish === 'moving', 'does something to what moves');
        check(facts.turn || wish !== 'here' || facts.place === 'kept', 'goes before others');
        check(facts.moving || !facts.isolated || wish === 'isolated', 'does something while it is cut off');
        if (!on.operator) check(!/operator|^draining$|peer-(draining|left)/.test(name), 'operator is off');
        if (!on.hostFailed) check(!/peer-silent|without-store|never-came/.test(name), 'hostFailed is off');
        if (!on.processFailed) check(name !== 'peer-process-gone', 'processFailed is off');
        if (!on.unreachableBackends) check(!name.startsWith('backends'), 'unreachableBackends is off');
        if (!on.balance) check(name !== 'balance', 'balance is off');
        if (facts.contact === 'lapsed' && (facts.order === null || facts.place === 'away')) {
          check(
            wish !== 'here' || facts.place.startsWith('open') || facts.place === 'unmet' || facts.place === 'kept',
            'a moment of silence counts',
          );
        }
      }
    }
    expect([...wrong]).toEqual([]);
    expect([...seen].toSorted()).toEqual(RULES.map(({ name }) => name).toSorted());
  });

  it('never lets both give, nor both take, when they see the same', () => {
    // The two sides of one and the same state, linked, without a store.
    const states: Say[] = [
      {},
      { draining: true },
      { backends: cutOff },
      { serves: 5 },
      { serves: 6 },
      { serves: 5, draining: true },
      { serves: 5, backends: cutOff },
      { resumes: true },
    ];
    for (const a of states) {
      for (const b of states) {
        for (const home of ['a', 'b']) {
          for (const orders of [
            [null, null],
            ['take', 'give'],
            ['give', 'take'],
            ['take', null],
            [null, 'give'],
            ['take', 'take'],
            ['give', 'give'],
          ] as const) {
            const [one, two] = [saying('a', a), saying('b', b)];
            const side = (self: Statistics, peer: Statistics, say: Say, order: 'take' | 'give' | null) => {
              const comparison = compareReach(0, self, peer, null);
              const is = address({
                home,
                order,
                serving: say.serves !== undefined,
                epoch: say.serves ?? 0,
                resumes: say.resumes ?? false,
              });
              return decide(
                situation({ self, peer: { statistics: peer, heardAt: NOW }, comparison, addresses: [is] }),
              )[0].action;
            };
            const actions = [side(one, two, a, orders[0]), side(two, one, b, orders[1])].toSorted().join(' ');
            expect(['take take', 'yield yield', 'take yield', 'keep take', 'keep keep']).not.toContain(actions);
          }
        }
      }
    }
  });
});

describe('what is observed', () => {
  const one = (over: Partial<Situation>, is: Partial<AddressSituation> = {}) => observe(situation(over), address(is));

  it.each<[string, Partial<Situation>, Facts['contact']]>([
    ['the link is up and the peer speaks', {}, 'linked'],
    ['the link is up and the peer is silent', { peer: heard(1000) }, 'silent'],
    ['the link is up, but did not speak yet', { link: { state: 'up', since: NOW - 99 } }, 'lapsed'],
    // As after a restart of the peer's process, which says how it is in a moment.
    [
      'the link is up since a moment, after a long time',
      { peer: heard(60_000), link: { state: 'up', since: NOW - 999 } },
      'lapsed',
    ],
    [
      'the link is up for long, and did not speak',
      { peer: heard(60_000), link: { state: 'up', since: NOW - 1000 } },
      'silent',
    ],
    ['the link went down a moment ago', { peer: heard(999), link: down('silent') }, 'lapsed'],
    ['the link is down', { peer: heard(1000), link: down('silent') }, 'silent'],
    ['the host refuses since a moment', { peer: heard(1499), link: down('refused') }, 'lapsed'],
    [
      'the host refuses, another process was to go on',
      { peer: heard(9999, { resumes: true }), link: down('refused') },
      'lapsed',
    ],
    [
      'the host refuses for long, another process was to go on',
      { peer: heard(10_000, { resumes: true }), link: down('refused') },
      'refused',
    ],
    ['the host refuses', { peer: heard(1500), link: down('refused') }, 'refused'],
    ['the peer left', { peer: heard(1), link: down('left') }, 'left'],
    ['the peer left long ago', { peer: heard(60_000), link: down('left') }, 'left'],
    ['the peer was never heard', { peer: null }, 'unmet'],
  ])('%s', (_, over, contact) => {
    expect(one(over).contact).toBe(contact);
  });

  it('an address name that every object has is nobody’s', () => {
    expect(one({}, { address: 'constructor' }).place).toBe('open');
  });
});

describe('who reaches less', () => {
  const reaching = (backends: Record<string, BackendReach>) => saying('x', { backends });
  it.each<[string, Record<string, BackendReach>, Record<string, BackendReach>, Comparison['worse']]>([
    ['the same', { 'm/1': 'ok' }, { 'm/1': 'ok' }, null],
    ['nothing at all', { 'm/1': 'unreachable' }, {}, null],
    [
      'another server of the same cluster',
      { 'm/1': 'ok', 'm/2': 'unreachable' },
      { 'm/1': 'unreachable', 'm/2': 'read-only' },
      null,
    ],
    ['nothing here', { 'm/1': 'unreachable' }, { 'm/1': 'ok' }, 'self'],
    ['nothing there', { 'm/1': 'read-only' }, { 'm/1': 'unreachable' }, 'peer'],
    ['a part here', { 'm/1': 'ok', 'n/1': 'unreachable' }, { 'm/1': 'ok', 'n/1': 'ok' }, 'self'],
    ['a part there', { 'm/1': 'ok', 'n/1': 'ok' }, { 'm/1': 'ok', 'n/1': 'unreachable' }, 'peer'],
    ['one cluster each', { 'm/1': 'ok', 'n/1': 'unreachable' }, { 'm/1': 'unreachable', 'n/1': 'ok' }, null],
    ['more there, but not all of what is reached here', { 'm/1': 'ok' }, { 'n/1': 'ok', 'o/1': 'ok' }, null],
  ])('%s', (_, self, peer, worse) => {
    expect(compareReach(7, reaching(self), reaching(peer), null)).toEqual({ worse, since: 7 });
  });

  it('keeps the time since when it is so', () => {
    const [well, ill] = [saying('a'), saying('b', { backends: cutOff })];
    const first = compareReach(1, well, ill, null);
    expect(compareReach(2, well, ill, first)).toBe(first);
    expect(compareReach(3, ill, well, first)).toEqual({ worse: 'self', since: 3 });
    expect(compareReach(3, well, null, first)).toEqual({ worse: null, since: 3 });
  });
});

describe('the next look', () => {
  it('is before anything changes by time alone', () => {
    const cases: Partial<Situation>[] = [
      { peer: heard(100, { serves: 5 }), fence: fenceCommand },
      { peer: heard(100, { serves: 5 }), fence: fenceCommand, self: saying('c') },
      { peer: heard(100, { serves: 5 }), fence: fenceCommand, link: down('refused') },
      { peer: heard(2000, { serves: 5 }), fence: { configured: true, state: 'failed', at: NOW } },
      {
        peer: null,
        self: withStore,
        startedAt: NOW,
        addresses: [address({ home: 'b', lease: { validUntil: null, holder: null } })],
      },
      { self: withStore, addresses: [serving({ lease: leaseFor(2500) })] },
      { self: withStore, addresses: [address({ lease: leaseFor(2500) })] },
      { self: saying('a', { store: false, backends: cutOff }), addresses: [serving({ lease: leaseFor(60_000) })] },
      { comparison: { worse: 'self', since: NOW }, addresses: [serving()] },
    ];
    for (const over of cases) {
      let last = situation(over);
      const look = (now: number) => {
        // The peer is heard on in the last case only: what is compared is heard.
        const peer = over.comparison === undefined ? last.peer : { statistics: saying('b'), heardAt: now };
        return { ...last, peer, now };
      };
      const begin = JSON.stringify(decide(last));
      let changes = 0;
      let due = nextLook(last);
      for (let now = NOW; now < NOW + 40_000; now += 50) {
        const then = look(now);
        if (JSON.stringify(decide(then)) !== JSON.stringify(decide(last))) {
          expect(due).toBeLessThanOrEqual(now);
          changes++;
        }
        last = then;
        if (now >= due || over.comparison !== undefined) due = nextLook(then);
      }
      expect(changes, begin).toBeGreaterThan(0);
    }
  });

  it('is never when nothing depends on time', () => {
    expect(nextLook(situation({ now: 1e9 }))).toBe(Number.POSITIVE_INFINITY);
  });
});

it('names the conditions that are on', () => {
  expect(enabledConditions({ ...DEFAULT_CONDITIONS, hostFailed: false })).toEqual([
    'processFailed',
    'dbmsFailed',
    'dbmsReadOnly',
    'unreachableBackends',
    'operator',
  ]);
});

it('judges by rule, place and proof', () => {
  const facts: Facts = { ...observe(situation(), address()), place: 'here', proof: 'theirs' };
  expect(judge(facts, DEFAULT_CONDITIONS)).toEqual({ action: 'stop', reason: 'lease-lost', rule: 'as-it-is' });
});
