import { describe, expect, it } from 'vitest';
import {
  ADDRESS_BALANCE,
  type BalanceConfig,
  type BalanceMemory,
  decideMoves,
  type Member,
  type Move,
  NO_MEMORY,
  SESSION_BALANCE,
  type Unit,
  type Verdict,
} from '../../core/cluster/balance.js';
import { type Randomness, randomness } from '../kit/random.js';

const MINUTE = 60_000;

interface Thing {
  readonly id: string;
  on: string;
  sessions: number;
  /** CPU that each of its sessions costs. */
  cost: number;
  moved: Unit['moved'];
}

interface Done extends Move {
  readonly at: number;
}

/** Members and units in simulated time; each member decides for itself, or one decides for all. */
class World {
  now = 1_000_000;
  readonly moves: Done[] = [];
  readonly verdicts = new Map<string, Verdict>();
  readonly unavailable = new Set<string>();
  /** CPU that no unit is to blame for. */
  readonly other = new Map<string, number>();
  /** How long a move takes, in ms. */
  delay = 0;
  readonly #memory = new Map<string | null, BalanceMemory>();
  readonly #under = new Map<string, { to: string; from: string; at: number }>();

  constructor(
    readonly names: readonly string[],
    readonly things: readonly Thing[],
    readonly config: BalanceConfig,
    readonly random: Randomness,
    /** Relative size of the noise in what is measured; clients that come and go make a quarter of it. */
    readonly noise: number,
    readonly alone: boolean = false,
  ) {}

  sessions(name: string): number {
    return this.things.reduce((sum, each) => sum + (each.on === name ? each.sessions : 0), 0);
  }

  cpu(name: string): number {
    const work = this.things.reduce((sum, each) => sum + (each.on === name ? each.sessions * each.cost : 0), 0);
    return Math.min(1, work + (this.other.get(name) ?? 0.02));
  }

  #shaken(value: number, noise = this.noise): number {
    return value * (1 + noise * (this.random.below(2001) / 1000 - 1));
  }

  run(ms: number): void {
    for (const end = this.now + ms; this.now < end; ) {
      this.now += 1000;
      for (const [id, move] of [...this.#under]) {
        if (this.now < move.at) continue;
        const thing = this.things.find((each) => each.id === id)!;
        Object.assign(thing, { on: move.to, moved: { at: this.now, from: move.from } });
        this.#under.delete(id);
      }
      const members = this.names.map(
        (name): Member => ({
          name,
          available: !this.unavailable.has(name),
          measuredAt: this.now - this.random.below(500),
          cpu: Math.min(1, this.#shaken(this.cpu(name))),
          eventLoopDelayMs: this.cpu(name) > 0.95 ? 200 : 5,
          sessions: Math.round(this.#shaken(this.sessions(name), this.noise / 4)),
        }),
      );
      const units = this.things.map(
        ({ id, on, sessions, cost, moved }): Unit => ({
          id,
          on,
          movingTo: this.#under.get(id)?.to ?? null,
          movable: true,
          sessions,
          work: this.#shaken(sessions * cost * 1000),
          moved,
        }),
      );
      const givers = this.alone ? [null] : this.names;
      const decisions = givers.map((giver) => {
        const memory = this.#memory.get(giver) ?? NO_MEMORY;
        const decision = decideMoves(this.now, { members, units, giver, memory }, this.config);
        this.#memory.set(giver, decision.memory);
        this.verdicts.set(giver ?? '', decision.verdict);
        return decision;
      });
      expect(decisions.filter(({ moves }) => moves.length > 0).length, 'both give').toBeLessThan(2);
      for (const move of decisions.flatMap(({ moves }) => moves)) {
        this.moves.push({ ...move, at: this.now });
        this.#under.set(move.id, { to: move.to, from: move.from, at: this.now + this.delay });
      }
    }
  }

  /** What must hold whatever happened. */
  check(): void {
    const { moves, config, random } = this;
    for (const [index, move] of moves.entries()) {
      const earlier = moves.slice(0, index).filter(({ id }) => id === move.id);
      for (const { at, from } of earlier) {
        expect(move.at - at, `${random.where} ${move.id} had no rest`).toBeGreaterThanOrEqual(config.rest);
        if (from === move.to)
          expect(move.at - at, `${random.where} ${move.id} came back`).toBeGreaterThanOrEqual(config.noReturn);
      }
      const within = moves.filter(({ at }) => at > move.at - MINUTE && at <= move.at).length;
      expect(within, `${random.where} too fast`).toBeLessThanOrEqual(
        config.movesPerMinute + Math.max(1, config.movesPerMinute / 60),
      );
    }
  }
}

const addresses = (sizes: readonly number[], cost: number, on = 'a'): Thing[] =>
  sizes.map((sessions, i) => ({ id: `10.0.0.${i + 1}`, on, sessions, cost, moved: null }));

/** Parts of unequal size that make 100 together. */
function parts(random: Randomness, count: number): number[] {
  const sizes = Array.from({ length: count }, () => 5 + random.below(20));
  const sum = sizes.reduce((all, each) => all + each, 0);
  const scaled = sizes.map((each) => Math.max(1, Math.floor((each * 100) / sum)));
  scaled[0] += 100 - scaled.reduce((all, each) => all + each, 0);
  return scaled;
}

describe('addresses between two gateways', () => {
  it.each([
    ['that cost next to nothing', 0.0005, 'sessions'],
    ['that keep the CPU of one busy', 0.0098, 'cpu'],
  ])('100 clients %s move until it is balanced, and then nothing moves', (_, cost, factor) => {
    for (let round = 0; round < 20; round++) {
      const random = randomness();
      const things = addresses(parts(random, 4 + random.below(8)), cost);
      const world = new World(['a', 'b'], things, ADDRESS_BALANCE, random, 0.2);
      world.delay = random.below(5) * 1000;
      world.run(8 * MINUTE);
      const settled = world.moves.length;
      expect(settled, random.where).toBeGreaterThan(0);
      expect(
        world.moves.every((move) => move.from === 'a' && move.to === 'b'),
        random.where,
      ).toBe(true);
      expect(world.moves[0].factor, random.where).toBe(factor);
      // Within the threshold, or as near as the sizes allow; and never beyond the middle by much.
      const [a, b] = [world.sessions('a') + 10, world.sessions('b') + 10];
      const helps = (limit: number) =>
        things.some(({ on, sessions }) => on === 'a' && (b + sessions) / (a - sessions) < limit);
      if (helps(1.1)) expect(a / b, `${random.where} ${a}:${b}`).toBeLessThan(1.55);
      expect(b / a, `${random.where} ${a}:${b}`).toBeLessThan(1.4);
      // What is nearly too much may be too much later.
      if (helps(1.25) && a / b > 1.4) continue;
      world.run(10 * MINUTE);
      expect(world.moves.length, `${random.where} ${a}:${b} ${JSON.stringify(world.moves.slice(settled))}`).toBe(
        settled,
      );
      world.check();
    }
  });

  it('a CPU-bound gateway gives although it has fewer clients', () => {
    const random = randomness();
    const heavy = addresses([5, 5, 5, 5], 0.047);
    const light = addresses([30, 30], 0.001, 'b').map((each) => ({ ...each, id: `b${each.id}` }));
    const world = new World(['a', 'b'], [...heavy, ...light], ADDRESS_BALANCE, random, 0.1);
    world.run(5 * MINUTE);
    expect(world.moves[0], random.where).toMatchObject({ from: 'a', to: 'b', factor: 'cpu' });
    world.run(5 * MINUTE);
    const settled = world.moves.length;
    world.run(10 * MINUTE);
    expect(world.moves.length, random.where).toBe(settled);
    expect(world.cpu('a'), random.where).toBeLessThan(0.75);
    expect(world.cpu('b'), random.where).toBeLessThan(0.75);
    world.check();
  });

  it.each([
    ['one that has all', [100]],
    ['one that has nearly all', [97, 1, 1, 1]],
  ])('an address too large to help is not moved: %s', (_, sizes) => {
    const random = randomness();
    const world = new World(['a', 'b'], addresses(sizes, 0.009), ADDRESS_BALANCE, random, 0.2);
    world.run(20 * MINUTE);
    expect(
      world.moves.map(({ id }) => id),
      random.where,
    ).not.toContain('10.0.0.1');
    expect(world.things[0].on).toBe('a');
  });

  it('a gateway that is drained gets nothing', () => {
    const random = randomness();
    const world = new World(['a', 'b'], addresses([25, 25, 25, 25], 0.009), ADDRESS_BALANCE, random, 0.2);
    world.unavailable.add('b');
    world.run(10 * MINUTE);
    expect(world.moves, random.where).toEqual([]);
    expect(world.verdicts.get('a')).toBe('no-receiver');
  });

  it('nothing moves when both are overloaded', () => {
    const random = randomness();
    const things = [
      ...addresses([30, 30, 30], 0.012),
      ...addresses([10], 0.09, 'b').map((each) => ({ ...each, id: 'b' })),
    ];
    const world = new World(['a', 'b'], things, ADDRESS_BALANCE, random, 0.05);
    world.run(10 * MINUTE);
    expect(world.moves, random.where).toEqual([]);
  });

  it('nothing moves to one whose event loop is late, nor for a peak', () => {
    const random = randomness();
    const world = new World(['a', 'b'], addresses([25, 25, 25, 25], 0.0098), ADDRESS_BALANCE, random, 0);
    world.other.set('b', 0.97);
    world.run(5 * MINUTE);
    expect(world.moves).toEqual([]);

    const calm = new World(
      ['a', 'b'],
      [
        ...addresses([25, 25], 0.004),
        ...addresses([25, 25], 0.004, 'b').map((each) => ({ ...each, id: `b${each.id}` })),
      ],
      ADDRESS_BALANCE,
      random,
      0.1,
    );
    for (let peak = 0; peak < 20; peak++) {
      calm.other.set('a', 0.8);
      calm.run(4000);
      calm.other.set('a', 0.02);
      calm.run(30_000);
    }
    expect(calm.moves, random.where).toEqual([]);
  });

  it('load that goes to and fro moves nothing back before its time', () => {
    for (let round = 0; round < 10; round++) {
      const random = randomness();
      const things = addresses(parts(random, 8), 0.009);
      const world = new World(['a', 'b'], things, ADDRESS_BALANCE, random, 0.2);
      for (let change = 0; change < 30; change++) {
        world.run(2 * MINUTE);
        // Each client population triples or ends as it likes.
        for (const each of things) each.sessions = random.below(40);
      }
      world.check();
    }
  });

  it('thresholds hold each by itself', () => {
    for (const start of [1.2, 1.5, 3]) {
      for (const part of [0, 10, 20, 25, 30, 40, 45]) {
        const random = randomness();
        const things = [
          ...addresses(Array(100 - part).fill(1), 0.0001),
          ...addresses(Array(part).fill(1), 0.0001, 'b').map((each) => ({ ...each, id: `b${each.id}` })),
        ];
        const world = new World(
          ['a', 'b'],
          things,
          { ...ADDRESS_BALANCE, start, minGain: 0, movesPerMinute: 60 },
          random,
          0,
        );
        world.run(5 * MINUTE);
        const [a, b] = [world.sessions('a') + 10, world.sessions('b') + 10];
        if ((110 - part) / (part + 10) > start) {
          expect(a / b, `${start} ${part}`).toBeLessThanOrEqual(1.15);
          // It stops as soon as it is reached.
          expect((a + 1) / (b - 1), `${start} ${part}`).toBeGreaterThan(1.15);
        } else expect(world.moves, `${start} ${part}`).toEqual([]);
      }
    }
  });
});

describe('sessions between servers', () => {
  const sessions = (count: number, on: string, cost = 0): Thing[] =>
    Array.from({ length: count }, (_, i) => ({ id: `${on}-${i}`, on, sessions: 1, cost, moved: null }));

  it('are spread over all servers, not faster than allowed, and then stay', () => {
    for (let round = 0; round < 5; round++) {
      const random = randomness();
      const world = new World(['s1', 's2', 's3'], sessions(300, 's1'), SESSION_BALANCE, random, 0.03, true);
      world.run(5 * MINUTE);
      for (const name of world.names)
        expect(Math.abs(world.sessions(name) - 100), `${random.where} ${name} ${world.sessions(name)}`).toBeLessThan(
          25,
        );
      const settled = world.moves.length;
      world.run(10 * MINUTE);
      expect(world.moves.length, random.where).toBe(settled);
      world.check();
    }
  });

  it('leave a server that is not available any more to others, and none goes there', () => {
    const random = randomness();
    const world = new World(['s1', 's2', 's3'], sessions(90, 's1'), SESSION_BALANCE, random, 0, true);
    world.unavailable.add('s3');
    world.run(2 * MINUTE);
    expect(world.sessions('s3')).toBe(0);
    expect(world.sessions('s2')).toBeGreaterThan(35);
  });

  it('that were moved longest ago go first', () => {
    const units = [5, 1, 9, 3].map(
      (minutes): Unit => ({
        id: `${minutes}`,
        on: 's1',
        movingTo: null,
        movable: true,
        sessions: 1,
        work: null,
        moved: { at: 1e7 - minutes * MINUTE, from: 's3' },
      }),
    );
    const members = ['s1', 's2'].map(
      (name): Member => ({
        name,
        available: true,
        measuredAt: 1e7,
        cpu: null,
        eventLoopDelayMs: null,
        sessions: name === 's1' ? 50 : 0,
      }),
    );
    const state = { members, units, giver: null, memory: NO_MEMORY };
    const config = { ...SESSION_BALANCE, sustain: 0, movesPerMinute: 120 };
    expect(decideMoves(1e7, state, config).moves.map(({ id }) => id)).toEqual(['9', '5']);
  });
});

describe('a decision', () => {
  const member = (name: string, sessions: number, over: Partial<Member> = {}): Member => ({
    name,
    available: true,
    measuredAt: 0,
    cpu: null,
    eventLoopDelayMs: null,
    sessions,
    ...over,
  });
  const unit = (id: string, on: string, over: Partial<Unit> = {}): Unit => ({
    id,
    on,
    movingTo: null,
    movable: true,
    sessions: 50,
    work: null,
    moved: null,
    ...over,
  });
  const now = { ...ADDRESS_BALANCE, sustain: 0 };
  const two = [member('a', 100), member('b', 0)];
  const units = [unit('x', 'a'), unit('y', 'a')];
  const memory = NO_MEMORY;

  it.each<[string, Parameters<typeof decideMoves>[1], BalanceConfig, Verdict]>([
    ['moves', { members: two, units, giver: 'a', memory }, now, 'moving'],
    ['waits whether it lasts', { members: two, units, giver: 'a', memory }, ADDRESS_BALANCE, 'watching'],
    ['is the busier one’s', { members: two, units, giver: 'b', memory }, now, 'not-giver'],
    ['needs two', { members: [two[0]], units, giver: 'a', memory }, now, 'unknown'],
    [
      'needs fresh figures',
      { members: [two[0], member('b', 0, { measuredAt: -5001 })], units, giver: 'a', memory },
      now,
      'unknown',
    ],
    [
      'needs a receiver',
      { members: [two[0], member('b', 0, { available: false })], units, giver: 'a', memory },
      now,
      'no-receiver',
    ],
    [
      'needs a receiver with time',
      { members: [two[0], member('b', 0, { eventLoopDelayMs: 101 })], units, giver: 'a', memory },
      now,
      'no-receiver',
    ],
    [
      'needs a receiver with room',
      { members: [two[0], member('b', 0, { cpu: 0.81 })], units, giver: 'a', memory },
      now,
      'no-receiver',
    ],
    [
      'does not harm an earlier factor',
      { members: [member('a', 100, { cpu: 0.1 }), member('b', 0, { cpu: 0.4 })], units, giver: 'a', memory },
      now,
      'opposed',
    ],
    [
      'keeps to the speed limit',
      { members: two, units, giver: 'a', memory: { ...memory, allowance: { moves: 0.5, at: 0 } } },
      now,
      'slow',
    ],
    [
      'needs something movable',
      { members: two, units: units.map((each) => ({ ...each, movable: false })), giver: 'a', memory },
      now,
      'no-unit',
    ],
    [
      'lets rest what was moved',
      {
        members: two,
        units: units.map((each) => ({ ...each, moved: { at: -299_999, from: 'c' } })),
        giver: 'a',
        memory,
      },
      now,
      'no-unit',
    ],
    [
      'sends nothing back',
      {
        members: two,
        units: units.map((each) => ({ ...each, moved: { at: -899_999, from: 'b' } })),
        giver: 'a',
        memory,
      },
      now,
      'no-unit',
    ],
    [
      'may send something back in the end',
      {
        members: two,
        units: units.map((each) => ({ ...each, moved: { at: -900_000, from: 'b' } })),
        giver: 'a',
        memory,
      },
      now,
      'moving',
    ],
    [
      'counts what is on its way',
      { members: two, units: [unit('x', 'a', { movingTo: 'b' }), unit('y', 'a')], giver: 'a', memory },
      now,
      'balanced',
    ],
    [
      'has nothing to do among few',
      { members: [member('a', 3), member('b', 0)], units, giver: 'a', memory },
      now,
      'balanced',
    ],
  ])('%s', (_, state, config, verdict) => {
    const decision = decideMoves(0, state, config);
    expect(decision.verdict).toBe(verdict);
    expect(decision.moves.length > 0).toBe(verdict === 'moving');
  });

  it.each([
    [54, 'moving'],
    [55, 'no-unit'],
    [70, 'no-unit'],
  ])('does not turn the scales: %i of 100', (sessions, verdict) => {
    const state = { members: two, units: [unit('x', 'a', { sessions })], giver: 'a', memory };
    expect(decideMoves(0, state, now).verdict).toBe(verdict);
  });

  it('does not turn the scales of an earlier factor', () => {
    const members = [member('a', 100, { cpu: 0.3 }), member('b', 0, { cpu: 0.3 })];
    const busy = [unit('x', 'a', { work: 100 }), unit('y', 'a', { work: 0 })];
    const first = decideMoves(0, { members, units: busy, giver: 'a', memory }, now);
    expect(first.moves.map(({ id }) => id)).toEqual(['y']);
    const only = busy.map((each) => ({ ...each, movable: each.id === 'x' }));
    expect(decideMoves(0, { members, units: only, giver: 'a', memory }, now).verdict).toBe('no-unit');
  });

  it('is not made for next to nothing, unless that is wanted', () => {
    const state = {
      members: [member('a', 1000), member('b', 500)],
      units: [unit('x', 'a', { sessions: 1 })],
      giver: 'a',
      memory,
    };
    expect(decideMoves(0, state, now).verdict).toBe('no-unit');
    expect(decideMoves(0, state, { ...now, minGain: 0 }).verdict).toBe('moving');
  });

  it('for many moves stops when the threshold is reached', () => {
    const many = Array.from({ length: 100 }, (_, i) => unit(`${i}`, 'a', { sessions: 1 }));
    const state = { members: two, units: many, giver: null, memory };
    const { moves } = decideMoves(0, state, { ...SESSION_BALANCE, sustain: 0, movesPerMinute: 60_000 });
    // 46 of them: 64 to 56 with the slack.
    expect(moves).toHaveLength(46);
    expect(new Set(moves.map(({ id }) => id)).size).toBe(46);
  });

  it('that would help nobody is not tried again before it is worse, or much later', () => {
    const whole = (sessions: number, at: number, before: BalanceMemory) => {
      const members = [member('a', sessions, { measuredAt: at }), member('b', 0, { measuredAt: at })];
      return decideMoves(
        at,
        { members, units: [unit('x', 'a', { sessions })], giver: 'a', memory: before },
        { ...now, halfLife: 1 },
      );
    };
    const first = whole(100, 0, memory);
    expect([first.verdict, first.memory.hopeless]).toEqual([
      'no-unit',
      { factor: 'sessions', from: 'a', ratio: 11, at: 0 },
    ]);
    expect(whole(110, 60_000, first.memory).verdict).toBe('balanced');
    expect(whole(120, 60_000, first.memory).verdict).toBe('no-unit');
    expect(whole(100, 900_000, first.memory).verdict).toBe('no-unit');
    // What only has to rest is another matter.
    const resting = [unit('x', 'a', { moved: { at: 0, from: 'c' } })];
    const second = decideMoves(0, { members: two, units: resting, giver: 'a', memory }, now);
    expect([second.verdict, second.memory.hopeless]).toEqual(['no-unit', null]);
  });

  it('leaves alone what goes to one that nobody knows', () => {
    const leaving = units.map((each) => ({ ...each, movingTo: 'c' }));
    expect(decideMoves(0, { members: two, units: leaving, giver: 'a', memory }, now).verdict).toBe('no-unit');
  });

  it('remembers plain data', () => {
    const { memory: after } = decideMoves(0, { members: two, units, giver: 'a', memory }, now);
    expect(JSON.parse(JSON.stringify(after))).toEqual(after);
  });

  it('changes nothing of what it is given', () => {
    const state = { members: two, units, giver: 'a', memory };
    const before = structuredClone(state);
    decideMoves(0, state, now);
    expect(state).toEqual(before);
  });
});
