import { describe, expect, it } from 'vitest';
import type { Log, ServerFacts } from '../../core/contract/index.js';
import { type Placed, SessionBalancing, type SessionMove } from '../../core/host/balancing-backends.js';
import { Choice, type ServerState, type Wish } from '../../core/host/cluster/index.js';
import type { SessionBalanceConfig } from '../../core/host/config/index.js';

const MIB = 1024 ** 2;
const silent: Log = { debug: () => {}, info: () => {}, warn: () => {}, error: () => {} };

function server(name: string, role: 'primary' | 'standby'): ServerState {
  const history = { system: 's', timeline: 1, instance: '1', position: 0n, lagBytes: null, history: null };
  const facts: ServerFacts = { role, writable: role === 'primary', ...history };
  const place = { host: name, port: 1, lastSeen: 0 };
  return { name, ...place, facts, firstFacts: facts, reachable: true, behind: 0, refused: null };
}

/** A primary and two standbys. */
function cluster(wish: Partial<Wish['standby']> & { target?: Wish['target'] } = {}) {
  const { target = 'standby', maxLag = 16 * MIB, without = 'primary' } = wish;
  const a = server('a', 'primary');
  const b = server('b', 'standby');
  const c = server('c', 'standby');
  const servers = [a, b, c];
  const primary = () => servers.find(({ reachable, facts }) => reachable && facts!.writable) ?? null;
  const choice = new Choice({ target, standby: { maxLag, without } }, () => servers, primary);
  return { a, b, c, servers, choice };
}

function become(server: ServerState, role: 'primary' | 'standby'): void {
  server.facts = { ...server.facts!, role, writable: role === 'primary' };
}

describe('the choice of a server', () => {
  it('is the standby with the fewest sessions, those counted that are on their way', () => {
    const { b, c, choice } = cluster();
    expect(choice.pick()).toBe(b);
    const release = choice.claim(b);
    expect(choice.pick()).toBe(c);
    choice.claim(c);
    choice.claim(c);
    expect(choice.pick()).toBe(b);
    expect(choice.pick('c')).toBe(c);
    release();
    release();
    expect([...choice.counts]).toEqual([['c', 2]]);
  });

  it('is the primary where there is no standby, unless that is not wanted', () => {
    const { a, b, c, choice } = cluster();
    b.reachable = false;
    c.refused = 'because';
    expect(choice.pick()).toBe(a);
    expect(choice.admits(a)).toBe(true);
    a.reachable = false;
    expect(choice.pick()).toBeNull();
    const strict = cluster({ without: 'refuse' });
    strict.b.reachable = strict.c.reachable = false;
    expect(strict.choice.pick()).toBeNull();
  });

  it('leaves out a standby that is too far behind until it has caught up by half', () => {
    const { b, c, choice } = cluster({ maxLag: 10 });
    b.behind = 10;
    expect(choice.admits(b)).toBe(true);
    b.behind = 11;
    expect(choice.eligible()).toEqual([c]);
    b.behind = 6;
    expect(choice.eligible()).toEqual([c]);
    expect(choice.misplaced(b, 'standby')).toBe('lagging');
    b.behind = 5;
    expect(choice.eligible()).toEqual([b, c]);
    expect(choice.misplaced(b, 'standby')).toBeNull();
  });

  it('is any server that takes writes where several do', () => {
    const { a, b, c, choice } = cluster({ target: 'any' });
    expect(choice.eligible()).toEqual([a]);
    become(c, 'primary');
    expect(choice.eligible()).toEqual([a, c]);
    a.reachable = c.reachable = false;
    expect(choice.eligible()).toEqual([]);
    expect(choice.misplaced(b, 'standby')).toBeNull();
  });

  it('tells why a session would be elsewhere', () => {
    const { a, b, c, choice } = cluster();
    expect(choice.misplaced(a, 'primary')).toBe('fallback');
    expect(choice.misplaced(b, 'standby')).toBeNull();
    // Promoted: also where there is no other, the session needs a connection that knows.
    become(b, 'primary');
    a.reachable = false;
    expect(choice.misplaced(b, 'standby')).toBe('promoted');
    c.reachable = false;
    expect(choice.misplaced(b, 'standby')).toBe('promoted');
    expect(choice.misplaced(b, 'primary')).toBeNull();
    // What is lost with its server goes on elsewhere by itself.
    expect(choice.misplaced(c, 'standby')).toBeNull();
  });
});

const CONFIG: SessionBalanceConfig = {
  on: true,
  conditions: { uneven: true, fallback: true, lagging: true, promoted: true },
  start: 1.5,
  stop: 1.15,
  slack: 2,
  sustain: 2000,
  halfLife: 1000,
  movesPerMinute: 600,
  rest: 20_000,
  noReturn: 40_000,
  pause: 3000,
  patience: 1000,
  replay: false,
};

interface Session extends Placed {
  server: ServerState | null;
  role: 'primary' | 'standby' | null;
  relocatable: boolean;
  moved: { at: number; from: string } | null;
}

/** A listener whose moves are carried out at once. */
class World {
  readonly cluster: ReturnType<typeof cluster>;
  readonly balancing: SessionBalancing<Session>;
  readonly sessions: Session[] = [];
  now = 100_000;
  /** What was moved, and when. */
  readonly log: { at: number; move: SessionMove<Session> }[] = [];
  succeeds = true;

  constructor(config: Partial<SessionBalanceConfig> = {}) {
    this.cluster = cluster();
    this.balancing = new SessionBalancing({ ...CONFIG, ...config }, this.cluster.choice, silent);
  }

  add(count: number, on: ServerState): void {
    for (let i = 0; i < count; i++) {
      this.cluster.choice.claim(on);
      this.sessions.push({ server: on, role: on.facts!.role, relocatable: true, moved: null });
    }
  }

  /** Lets time pass, in steps of half a second. */
  pass(ms: number): void {
    for (const end = this.now + ms; this.now < end; ) {
      this.now += 500;
      const moves = this.balancing.propose(this.now, this.cluster.servers, this.sessions);
      for (const move of moves) {
        this.log.push({ at: this.now, move });
        if (this.succeeds) {
          const { session, to, from } = move;
          Object.assign(session, { server: to, role: to.facts!.role, moved: { at: this.now, from: from.name } });
        }
        this.balancing.over(move, this.now, this.succeeds);
      }
    }
  }

  count(server: ServerState): number {
    return this.sessions.filter((session) => session.server === server).length;
  }
}

describe('the balance of live sessions', () => {
  it('fills a standby that has none, not faster than allowed, and then stands still', () => {
    const world = new World();
    const { b, c } = world.cluster;
    world.add(60, b);
    world.pass(1500);
    expect(world.log).toEqual([]);
    world.pass(20_000);
    expect(Math.abs(world.count(b) - world.count(c))).toBeLessThanOrEqual(5);
    const seconds = new Map<number, number>();
    for (const { at } of world.log) seconds.set(at, (seconds.get(at) ?? 0) + 1);
    expect(Math.max(...seconds.values())).toBeLessThanOrEqual(10);
    const { length } = world.log;
    expect(length).toBeLessThanOrEqual(31);
    world.pass(120_000);
    expect(world.log.length).toBe(length);
    expect(world.balancing.status).toEqual({ verdict: 'balanced', moved: length, failed: 0, moving: 0 });
  });

  it('waits after a server came or went', () => {
    const world = new World();
    const { b, c } = world.cluster;
    c.reachable = false;
    world.add(60, b);
    world.pass(10_000);
    c.reachable = true;
    world.pass(3000);
    expect(world.log).toEqual([]);
    expect(world.balancing.status.verdict).toBe('settling');
    // One that comes and goes gets nothing.
    for (let i = 0; i < 10; i++) {
      c.reachable = i % 2 === 1;
      world.pass(2000);
    }
    expect(world.log).toEqual([]);
    world.pass(10_000);
    expect(world.count(c)).toBeGreaterThan(20);
  });

  it('leaves what was moved a moment ago, and what cannot be moved', () => {
    const world = new World();
    const { b, c } = world.cluster;
    world.add(60, b);
    for (const [i, session] of world.sessions.entries()) {
      if (i < 30) session.moved = { at: world.now, from: 'c' };
      else if (i < 50) session.relocatable = false;
    }
    world.pass(15_000);
    expect(world.count(c)).toBe(10);
    // Not back to where they came from before `noReturn`.
    world.pass(20_000);
    expect(world.count(c)).toBe(10);
    world.pass(15_000);
    expect(world.count(c)).toBeGreaterThan(25);
  });

  it('does not try the same sessions again and again when they come to no safe point', () => {
    const world = new World();
    world.succeeds = false;
    world.add(20, world.cluster.b);
    world.pass(20_000);
    expect(world.log.length).toBeLessThanOrEqual(20);
    expect(new Set(world.log.map(({ move }) => move.session)).size).toBe(world.log.length);
    expect(world.balancing.status.failed).toBe(world.log.length);
  });

  it.each([
    ['fallback', 'a', () => {}],
    ['lagging', 'b', ({ b }: ReturnType<typeof cluster>) => Object.assign(b, { behind: 17 * MIB })],
    [
      'promoted',
      'b',
      ({ a, b }: ReturnType<typeof cluster>) => {
        become(a, 'standby');
        become(b, 'primary');
      },
    ],
  ] as const)(
    'moves sessions that are elsewhere than they should be (%s), each condition with its own switch',
    (reason, on, happen) => {
      for (const enabled of [true, false]) {
        const world = new World({
          conditions: { ...CONFIG.conditions, uneven: false, [reason]: enabled },
          rest: 1_000_000,
        });
        const of = world.cluster[on];
        world.add(25, of);
        for (const session of world.sessions) session.moved = { at: world.now, from: 'c' };
        world.pass(1000);
        happen(world.cluster);
        world.pass(12_000);
        expect(world.count(of)).toBe(enabled ? 0 : 25);
        expect(new Set(world.log.map(({ move }) => move.reason))).toEqual(new Set(enabled ? [reason] : []));
      }
    },
  );

  it('does not even out where that is switched off', () => {
    const world = new World({ conditions: { ...CONFIG.conditions, uneven: false } });
    world.add(60, world.cluster.b);
    world.pass(30_000);
    expect(world.log).toEqual([]);
  });
});
