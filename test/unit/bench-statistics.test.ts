import { describe, expect, it } from 'vitest';
import { ascending, Histogram, median, percentile, ratioOfRounds, rotated, spreadOf } from '../../bench/statistics.js';

describe('percentile', () => {
  it('is a value that was seen, by nearest rank', () => {
    const values = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10];
    expect([0, 10, 50, 51, 99, 100].map((p) => percentile(values, p))).toEqual([1, 1, 5, 6, 10, 10]);
  });

  it('knows no answer without values', () => {
    expect(percentile([], 50)).toBeNaN();
  });

  it('lets one endless wait among a hundred reach p100 and not p99', () => {
    const values = ascending([...Array.from({ length: 99 }, (_, index) => index), Number.POSITIVE_INFINITY]);
    expect(percentile(values, 99)).toBe(98);
    expect(percentile(values, 100)).toBe(Number.POSITIVE_INFINITY);
  });
});

describe('median and spread', () => {
  it('takes the middle, or between the middles', () => {
    expect(median([3, 1, 2])).toBe(2);
    expect(median([4, 1, 3, 2])).toBe(2.5);
    expect(median([])).toBeNaN();
  });

  it('leaves out what was not measured', () => {
    expect(spreadOf([3, undefined, 1, Number.NaN])).toEqual({ median: 2, min: 1, max: 3, count: 2 });
    expect(spreadOf([undefined])).toBeUndefined();
  });
});

describe('ratioOfRounds', () => {
  it('divides inside of the rounds before it takes the median', () => {
    // The machine was half as fast in the second round; the ratio of the medians would be 0.5.
    expect(ratioOfRounds([80, 40, 90], [100, 50, 90])).toEqual({ median: 0.8, min: 0.8, max: 1, count: 3 });
  });

  it('skips rounds in which one side is missing', () => {
    expect(ratioOfRounds([80, undefined, 30], [100, 50])).toEqual({ median: 0.8, min: 0.8, max: 0.8, count: 1 });
    expect(ratioOfRounds([], [100])).toBeUndefined();
    expect(ratioOfRounds([1], [0])).toBeUndefined();
  });
});

describe('rotated', () => {
  it('gives every entry every place once', () => {
    const list = ['a', 'b', 'c'];
    expect([0, 1, 2, 3].map((by) => rotated(list, by).join(''))).toEqual(['abc', 'bca', 'cab', 'abc']);
    expect(rotated([], 2)).toEqual([]);
  });
});

describe('Histogram', () => {
  it('keeps small values exactly', () => {
    const histogram = new Histogram();
    for (let value = 0; value < 64; value++) histogram.record(value);
    expect(histogram.percentile(50)).toBe(31);
    expect(histogram.percentile(100)).toBe(63);
    expect(histogram.count).toBe(64);
  });

  it('is never below the true percentile and less than 1.6 % above it', () => {
    const histogram = new Histogram();
    let seed = 42;
    const values: number[] = [];
    for (let index = 0; index < 20_000; index++) {
      seed = (Math.imul(seed, 1_103_515_245) + 12_345) & 0x7fffffff;
      const value = Math.floor(Math.exp((seed / 0x7fffffff) * 16));
      values.push(value);
      histogram.record(value);
    }
    values.sort((a, b) => a - b);
    for (const p of [1, 10, 50, 90, 99, 99.9]) {
      const exact = percentile(values, p);
      expect(histogram.percentile(p)).toBeGreaterThanOrEqual(exact);
      expect(histogram.percentile(p)).toBeLessThanOrEqual(exact * 1.016);
    }
    expect(histogram.percentile(100)).toBe(values.at(-1));
    expect(histogram.max).toBe(values.at(-1));
    expect(histogram.mean).toBeCloseTo(values.reduce((sum, value) => sum + value, 0) / values.length, 3);
  });

  it('takes what does not fit into the last bucket', () => {
    const histogram = new Histogram();
    histogram.record(1e12);
    histogram.record(-1);
    expect(histogram.max).toBe(1e12);
    expect(histogram.percentile(1)).toBe(0);
  });

  it('knows no answer without values', () => {
    expect(new Histogram().percentile(50)).toBeNaN();
  });
});
