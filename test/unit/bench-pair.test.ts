import { describe, expect, it } from 'vitest';
import { type PairCell, pairFigures, summarizePair, type Variant } from '../../bench/pair.js';
import { pairSettings } from '../../bench/peers/outlive-pair.js';
import { figureLine } from '../../bench/report.js';
import { type TakeoverResult, takeoverFigures, takeoverTable } from '../../bench/takeover.js';
import { normalizeConfig } from '../../core/host/config/index.js';

describe('the pair scenario', () => {
  const cellOf = (round: number, variant: Variant, tps: number, p50: number): PairCell => ({
    ...{ round, variant, tps, p50, workload: 'tpcb', clients: 16, p99: 9, errors: 0 },
    ...{ servingUs: 100, followingUs: variant === 'alone' ? undefined : 50, foreign: 0 },
  });

  it('compares inside of the rounds', () => {
    const summaries = summarizePair([
      cellOf(0, 'local', 1000, 1),
      cellOf(0, 'pair', 900, 1.1),
      cellOf(1, 'local', 500, 2),
      cellOf(1, 'pair', 460, 2.3),
      cellOf(1, 'alone', 1000, 0.5),
    ]);
    const [local, pair, alone] = summaries;
    expect(local).toMatchObject({ variant: 'local', tps: 750, tpsRatio: undefined, p50More: undefined });
    expect(pair).toMatchObject({ variant: 'pair', followingUs: 50, tpsRatio: { min: 0.9, max: 0.92, count: 2 } });
    expect(pair.p50More?.max).toBeCloseTo(0.3);
    expect(alone).toMatchObject({ followingUs: undefined, tpsRatio: { median: 2, count: 1 } });
    const lines = pairFigures(summaries, ['tpcb']).map(figureLine);
    expect(lines[0]).toBe(
      'PASS P1 tps of durability local, tpcb, 16 clients: 0.91 (at least 0.85, 0.90..0.92 over rounds)',
    );
    expect(lines[1]).toMatch(
      /^FAIL P1 p50 above that of durability local, tpcb, 16 clients: 0.20 ms \(at most 0.15 ms/,
    );
    expect(lines[2]).toMatch(/^SKIP .* 64 clients/);
  });

  it('makes configurations of two gateways that mean each other', () => {
    const options = {
      servers: [{ host: '127.0.0.1', port: 1 }],
      user: 'u',
      database: 'd',
      sessions: 5,
      monitorUser: 'm',
    };
    const { a, b } = pairSettings(options, 'local', { a: [11, 12, 13], b: [21, 22, 23] });
    const env = { OUTLIVE_PAIR_SECRET: 'a secret of sixteen characters' };
    const [one, two] = [a, b].map((settings) => normalizeConfig(settings as never, '.', env));
    expect(one.listeners[0]).toMatchObject({ durability: 'local', listen: { port: 11 }, limits: { clients: 105 } });
    expect(one.pair).toMatchObject({ name: 'a', listen: { port: 12 }, peers: [{ name: 'b', address: { port: 22 } }] });
    expect(two.pair).toMatchObject({ name: 'b', listen: { port: 22 }, peers: [{ name: 'a', address: { port: 12 } }] });
    expect(two.pair).toMatchObject({ fence: null, lease: null, addresses: [{ address: '127.0.0.1', home: 'a' }] });
  });
});

describe('the takeover scenario', () => {
  const result = (connections: number, kept: number): TakeoverResult => ({
    ...{ connections, kept, noticedMs: 3000, tookMs: 300, answerP50Ms: 1, answerP99Ms: 2, answerMaxMs: 3, failed: 0 },
    ...{ servingKiB: 40, followingKiB: undefined, tookOverKiB: 41 },
  });

  it('judges the time of a thousand and that none is lost', () => {
    const lines = (results: TakeoverResult[]) =>
      takeoverFigures(results).map((figure) => figureLine(figure).slice(0, 4));
    expect(lines([result(10, 10), result(1000, 1000)])).toEqual(['PASS', 'PASS']);
    expect(lines([result(10, 9)])).toEqual(['SKIP', 'FAIL']);
    expect(lines([])).toEqual(['SKIP', 'SKIP']);
    expect(takeoverTable([result(10, 10)]).split('\n')[3]).toMatch(/│ +10 │ +10 │.*│ +40 │ +- │ +41 │/);
  });
});
