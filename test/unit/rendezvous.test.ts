import { describe, expect, it } from 'vitest';
import { shadowOf } from '../../core/cluster/rendezvous.js';
import { randomness } from '../kit/random.js';

const names = (count: number) => Array.from({ length: count }, (_, i) => `gateway-${i}`);

describe('the shadow of a gateway', () => {
  it('is the other one of a pair, and nobody for one alone', () => {
    expect(shadowOf('a', ['a', 'b'])).toBe('b');
    expect(shadowOf('b', ['a', 'b'])).toBe('a');
    expect(shadowOf('a', ['a'])).toBeNull();
    expect(shadowOf('a', [])).toBeNull();
  });

  it('stays what it was in earlier versions', () => {
    // Gateways of different versions must agree.
    expect(names(4).map((name) => shadowOf(name, names(4)))).toMatchInlineSnapshot(`
      [
        "gateway-2",
        "gateway-3",
        "gateway-3",
        "gateway-2",
      ]
    `);
  });

  it('is never the gateway itself, and does not depend on order or repetition', () => {
    const random = randomness();
    for (let round = 0; round < 50; round++) {
      const members = names(2 + random.below(20));
      const shuffled = [...members, ...members].toSorted(() => random.below(3) - 1);
      for (const member of members) {
        const shadow = shadowOf(member, members);
        expect(shadow, random.where).not.toBe(member);
        expect(members, random.where).toContain(shadow);
        expect(shadowOf(member, shuffled), random.where).toBe(shadow);
      }
    }
  });

  it('changes only where it must when a member goes or comes', () => {
    const random = randomness();
    for (let round = 0; round < 50; round++) {
      const members = names(3 + random.below(20));
      const gone = random.one(members);
      const rest = members.filter((each) => each !== gone);
      for (const member of rest) {
        const before = shadowOf(member, members);
        const after = shadowOf(member, rest);
        if (before === gone) expect(rest, random.where).toContain(after);
        else expect(after, random.where).toBe(before);
      }
    }
  });

  it('spreads the sessions evenly', () => {
    const members = names(10);
    const shadows = new Map<string, number>();
    for (let i = 0; i < 5000; i++) {
      const shadow = shadowOf(`served-by-${i}`, members)!;
      shadows.set(shadow, (shadows.get(shadow) ?? 0) + 1);
    }
    // 500 expected each; the standard deviation is 21.
    for (const name of members) expect(Math.abs(shadows.get(name)! - 500)).toBeLessThan(130);
  });

  it('does not mistake names that look alike when they are put together', () => {
    const members = Array.from({ length: 64 }, (_, i) => `b${'c'.repeat(i)}`);
    const other = members.map((each) => `c${each}`);
    expect(shadowOf('a', other)).not.toBe(`c${shadowOf('ac', members)}`);
  });
});
