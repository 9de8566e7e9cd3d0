import { describe, expect, it } from 'vitest';
import { Ticker } from '../../core/io/ticker.js';

describe('the ticker', () => {
  it('rings each alarm once, in time, and follows alarms that move', () => {
    let now = 1000;
    const ticker = new Ticker({ now: () => now });
    const rung: string[] = [];
    const make = (name: string) => ticker.alarm(() => rung.push(`${name}@${now}`));
    const [a, b, c, d] = ['a', 'b', 'c', 'd'].map(make);
    a.after(50);
    b.set(1100);
    c.set(1020);
    d.set(1030);
    c.set(1200);
    d.clear();
    b.set(1040);
    expect([a.armed, d.armed]).toEqual([true, false]);
    for (now = 1000; now <= 1300; now += 10) {
      if (now === 1250) d.after(20);
      ticker.tick();
    }
    expect(rung).toEqual(['b@1040', 'a@1050', 'c@1200', 'd@1270']);
    ticker.stop();
  });

  it('agrees with a plain list over random moves', () => {
    let now = 0;
    const ticker = new Ticker({ now: () => now });
    const expected: (number | null)[] = Array.from({ length: 60 }, () => null);
    const rung: number[] = [];
    const alarms = expected.map((_, i) => ticker.alarm(() => rung.push(i)));
    let seed = 12345;
    const next = (below: number): number => {
      seed = (Math.imul(seed, 1103515245) + 12345) >>> 0;
      return (seed >>> 8) % below;
    };
    for (let step = 0; step < 20_000; step++) {
      const which = next(alarms.length);
      if (next(4) === 0) {
        alarms[which].clear();
        expected[which] = null;
      } else {
        expected[which] = now + next(300);
        alarms[which].set(expected[which]);
      }
      if (next(3) === 0) {
        now += next(20);
        rung.length = 0;
        ticker.tick();
        const due = expected.flatMap((deadline, i) => (deadline !== null && deadline <= now ? [i] : []));
        expect([...rung].sort((x, y) => x - y)).toEqual(due);
        for (const i of due) expected[i] = null;
      }
    }
    ticker.stop();
  });

  it('lets an alarm set itself and others while it rings, and survives one that throws', () => {
    let now = 0;
    const ticker = new Ticker({ now: () => now });
    let rings = 0;
    const self = ticker.alarm(() => {
      rings++;
      self.after(10);
    });
    const bad = ticker.alarm(() => {
      throw new Error('bad');
    });
    self.after(10);
    bad.set(15);
    now = 20;
    expect(() => ticker.tick()).toThrow('bad');
    now = 30;
    ticker.tick();
    expect(rings).toBe(2);
    ticker.stop();
    now = 100;
    ticker.tick();
    self.after(1);
    ticker.tick();
    expect(rings).toBe(2);
  });

  it('wakes up by itself', async () => {
    const ticker = new Ticker({ granularityMs: 5 });
    const started = performance.now();
    const at = await new Promise<number>((resolve) => {
      const late = ticker.alarm(() => {});
      late.after(10_000);
      const alarm = ticker.alarm(() => resolve(performance.now()));
      alarm.after(500);
      alarm.after(30);
    });
    expect(at - started).toBeGreaterThanOrEqual(30);
    expect(at - started).toBeLessThan(300);
    ticker.stop();
  });
});
