import { describe, expect, it } from 'vitest';
import { parse } from 'yaml';
import { type DecodeCell, decodeFigures, decodeTable } from '../../bench/decode.js';
import { type FailoverRound, failoverFigures, failoverTable, sparesRatio, waitsOf } from '../../bench/failover.js';
import { idleFigures } from '../../bench/idle.js';
import { parseLogLine, parseReport } from '../../bench/load/pgbench.js';
import { haproxyConfig } from '../../bench/peers/haproxy.js';
import { outliveConfig } from '../../bench/peers/outlive.js';
import { pgbouncerConfig } from '../../bench/peers/pgbouncer.js';
import { cpuBetween, foreignCpu, parseBusy, parseStat, treeOf } from '../../bench/proc.js';
import { type RelayCell, relayFigures, relayTable, summarize } from '../../bench/relay.js';
import { allPass, digits, type Figure, figureLine, foreignLines, judge, ratioCell } from '../../bench/report.js';
import { normalizeConfig } from '../../core/host/config/index.js';

describe('figures', () => {
  const figure = (value: number | undefined, rule: Figure['rule']): Figure => {
    return { id: 'P0', what: 'a thing', value, rule, limit: 10, unit: 'ms' };
  };

  it('judges both ways, the limit itself being good', () => {
    expect(judge(figure(10, 'at least'))).toBe('PASS');
    expect(judge(figure(9.99, 'at least'))).toBe('FAIL');
    expect(judge(figure(10, 'at most'))).toBe('PASS');
    expect(judge(figure(10.01, 'at most'))).toBe('FAIL');
    expect(judge(figure(Number.POSITIVE_INFINITY, 'at most'))).toBe('FAIL');
    expect(judge(figure(undefined, 'at most'))).toBe('SKIP');
    expect(judge(figure(Number.NaN, 'at least'))).toBe('SKIP');
  });

  it('says the value, the limit and the range over rounds', () => {
    expect(figureLine(figure(12.345, 'at most'))).toBe('FAIL P0 a thing: 12.3 ms (at most 10 ms)');
    expect(figureLine(figure(undefined, 'at least'))).toBe('SKIP P0 a thing: not measured (at least 10 ms)');
    const spread = { median: 5, min: 4, max: 6.5, count: 3 };
    expect(figureLine({ ...figure(5, 'at most'), spread })).toBe(
      'PASS P0 a thing: 5 ms (at most 10 ms, 4..6.50 over rounds)',
    );
  });

  it('asserts only when something was measured', () => {
    expect(allPass([figure(1, 'at most'), figure(undefined, 'at most')])).toBe(true);
    expect(allPass([figure(1, 'at most'), figure(11, 'at most')])).toBe(false);
    expect(allPass([figure(undefined, 'at most')])).toBe(false);
  });
});

describe('other programs', () => {
  it('are mentioned when they took a tenth of a processor', () => {
    expect(foreignLines([0.05, undefined, 0.1])).toEqual([]);
    expect(foreignLines([0.05, 1.234])).toEqual(['other programs took up to 1.23 processors meanwhile']);
  });
});

describe('numbers', () => {
  it('have as many digits as they deserve', () => {
    const values = [0, 3, 0.0123, 0.5, 12.34, 123.4, 43_812.7, Number.NaN, Number.POSITIVE_INFINITY];
    expect(values.map(digits)).toEqual(['0', '3', '0.012', '0.50', '12.3', '123', '43,813', '-', '-']);
    expect(ratioCell({ median: 0.812, min: 0.79, max: 0.84, count: 3 })).toBe('0.81 (0.79..0.84)');
    expect(ratioCell({ median: 0.812, min: 0.812, max: 0.812, count: 1 })).toBe('0.81');
    expect(ratioCell(undefined)).toBe('-');
  });
});

describe('the relay report', () => {
  const cellAt = (round: number, peer: RelayCell['peer'], tps: number, p99: number): RelayCell => ({
    ...{ round, peer, tps, p99, workload: 'select-prepared', clients: 16, p50: 1, errors: 0 },
    ...{ proxyUs: peer === 'direct' ? undefined : round + 1, serverUs: 8, loadUs: 3, rssMiB: undefined, foreign: 0 },
  });
  const cells = [
    ...[cellAt(0, 'outlive', 80, 2), cellAt(0, 'pgbouncer', 100, 1), cellAt(0, 'direct', 200, 0.5)],
    ...[cellAt(1, 'outlive', 60, 2), cellAt(1, 'pgbouncer', 60, 2), cellAt(1, 'direct', 90, 1)],
    ...[cellAt(2, 'pgbouncer', 100, 1), cellAt(2, 'outlive', 90, 1)],
  ];
  const summaries = summarize(cells);

  it('takes medians over rounds and ratios inside of them', () => {
    const outlive = summaries.find(({ peer }) => peer === 'outlive');
    expect(outlive).toMatchObject({ tps: 80, p99: 2, proxyUs: 2, serverUs: 8, rssMiB: undefined });
    expect(outlive?.tpsRatio).toEqual({ median: 0.9, min: 0.8, max: 1, count: 3 });
    expect(outlive?.p99Ratio).toEqual({ median: 1, min: 1, max: 2, count: 3 });
    expect(summaries.find(({ peer }) => peer === 'direct')?.tpsRatio).toMatchObject({ median: 1.75, count: 2 });
    expect(summaries.find(({ peer }) => peer === 'pgbouncer')?.tpsRatio).toBeUndefined();
  });

  it('judges what was measured and skips the rest', () => {
    const figures = relayFigures(summaries);
    expect(figures.map(({ id }) => id)).toEqual(['P1', 'P1', 'P1', 'P1', 'P2', 'P2']);
    expect(figures.map(judge)).toEqual(['PASS', 'PASS', 'SKIP', 'SKIP', 'SKIP', 'SKIP']);
  });

  it('has one line per peer', () => {
    const lines = relayTable(summaries).split('\n');
    expect(lines.filter((line) => line.includes('select-prepared'))).toHaveLength(3);
    expect(lines.find((line) => line.includes('outlive'))).toContain('0.90 (0.80..1.00)');
  });
});

describe('the failover report', () => {
  const round = (number: number, variant: FailoverRound['variant'], p99: number, errors = 0): FailoverRound => ({
    ...{ round: number, variant, p50: p99 / 2, p90: p99 / 1.5, p99, max: p99, errors, firstError: undefined },
    ...{ missing: 0, spares: 0, killToWritableMs: 130, gatewayCpuMs: undefined, clientsCpuMs: 20, foreign: 0 },
  });

  it('lets clients without a right answer wait for ever', () => {
    const outcomes = [
      { answeredAt: 1100, error: undefined },
      { answeredAt: 1001, error: '40001 try again' },
      { answeredAt: 999.5, error: undefined },
      { answeredAt: undefined, error: 'no answer' },
    ];
    expect(waitsOf(outcomes, 1000)).toEqual({
      ...{ p50: 100, p90: Number.POSITIVE_INFINITY, p99: Number.POSITIVE_INFINITY, max: Number.POSITIVE_INFINITY },
    });
  });

  it('judges the variant with spares and counts errors of both', () => {
    const rounds = [
      ...[round(0, 'spares', 100), round(0, 'no spares', 400), round(0, 'reconnect', 900, 7)],
      ...[round(1, 'no spares', 300, 1), round(1, 'spares', 150)],
    ];
    const figures = failoverFigures(rounds);
    expect(figures.map(({ value }) => value)).toEqual([125, 1]);
    expect(figures.map(judge)).toEqual(['PASS', 'FAIL']);
    expect(sparesRatio(rounds, 'no spares')).toEqual({ median: 3, min: 2, max: 4, count: 2 });
    expect(failoverTable(rounds, ['spares', 'no spares'])).toContain('3.00 (2.00..4.00)');
    expect(failoverFigures([round(0, 'reconnect', 1)]).map(judge)).toEqual(['SKIP', 'SKIP']);
  });

  it('judges memory only when it is known', () => {
    const result = { peer: 'outlive', sessions: 10, beforeKiB: 100, afterKiB: 510, perSessionKiB: 41 } as const;
    expect(idleFigures([result]).map(judge)).toEqual(['FAIL']);
    expect(idleFigures([{ ...result, perSessionKiB: undefined }]).map(judge)).toEqual(['SKIP']);
    expect(idleFigures([]).map(judge)).toEqual(['SKIP']);
  });
});

describe('what the kernel says', () => {
  it('reads process times behind any name', () => {
    const text = '42 (a) b (c) S 7 42 42 0 -1 4194560 1 0 0 0 120 30 4 6 20 0 1 0 99 1000 200\n';
    expect(parseStat(text)).toEqual({ pid: 42, parent: 7, ticks: 160 });
    expect(parseStat('')).toBeUndefined();
    expect(parseBusy('cpu  100 20 30 400 5 6 7 8 0 0\ncpu0 1 1 1 1\n')).toBe(150);
  });

  it('counts a process with its descendants, also those that have ended', () => {
    const sample = (at: number, busy: number, ...rows: [pid: number, parent: number, ticks: number][]) => {
      return { at, busy, processes: new Map(rows.map(([pid, parent, ticks]) => [pid, { pid, parent, ticks }])) };
    };
    const before = sample(0, 1000, [1, 0, 10], [2, 1, 100], [3, 2, 50], [4, 1, 9]);
    // Process 3 used 20 more, ended, and its 70 ticks went to its parent, which used 10 itself; 5 is new.
    const after = sample(1000, 1150, [1, 0, 10], [2, 1, 180], [4, 1, 30], [5, 2, 5]);
    expect([...treeOf(after.processes, [2])].sort()).toEqual([2, 5]);
    expect(cpuBetween(before, after, [2])).toBeCloseTo(0.35);
    expect(cpuBetween(before, after, [3])).toBeUndefined();
    expect(foreignCpu(before, after, 2)).toBeCloseTo(1.15);
  });
});

describe('pgbench', () => {
  it('reads the report of several versions', () => {
    const newer = [
      ...['number of transactions actually processed: 12345', 'number of failed transactions: 2 (0.016%)'],
      ...[
        'latency average = 0.4 ms',
        'initial connection time = 7.2 ms',
        'tps = 6173.25 (without initial connection time)',
      ],
    ];
    expect(parseReport(newer.join('\n'))).toEqual({ tps: 6173.25, transactions: 12345, failed: 2 });
    const older = [
      ...['number of transactions actually processed: 100', 'tps = 50.1 (including connections establishing)'],
      'tps = 52.5 (excluding connections establishing)',
    ];
    expect(parseReport(older.join('\n'))).toEqual({ tps: 52.5, transactions: 100, failed: 0 });
    expect(parseReport('pgbench: error: connection to server failed')).toBeUndefined();
  });

  it('reads the log', () => {
    expect(parseLogLine('0 199 2241 0 1175850568 995598')).toEqual({ time: 2241, endedAt: 1175850568995.598 });
    expect(parseLogLine('0 199 failed 0 1175850568 995598')).toBeUndefined();
    expect(parseLogLine('')).toBeUndefined();
  });
});

describe('configurations of peers', () => {
  const options = {
    ...{ servers: [{ host: '127.0.0.1', port: 5555 }], user: 'u', database: 'd', sessions: 64 },
  };

  it('pools sessions in PgBouncer with room for all', () => {
    const text = pgbouncerConfig(options, 6000, '/tmp/users.txt');
    expect(text).toContain('pool_mode = session');
    expect(text).toContain('d = host=127.0.0.1 port=5555 dbname=d');
    expect(Number(/default_pool_size = (\d+)/.exec(text)?.[1])).toBeGreaterThan(64);
  });

  it('forwards bytes in HAProxy', () => {
    const text = haproxyConfig(options, 6001);
    expect(text).toContain('mode tcp');
    expect(text).toContain('server one 127.0.0.1:5555');
  });

  it('gives Outlive a configuration that it accepts', async () => {
    const two = [...options.servers, { host: '127.0.0.1', port: 5556 }];
    const text = outliveConfig({ ...options, servers: two, spares: 50, monitorUser: 'm' }, 6002);
    const config = normalizeConfig(parse(text), '.', {});
    expect(config.clusters[0].servers.map(({ name, port }) => [name, port])).toEqual([
      ['a', 5555],
      ['b', 5556],
    ]);
    expect(config.clusters[0].spares.perIdentity).toBe(50);
    expect(config.listeners[0].limits.clients).toBeGreaterThan(64);
  });
});

describe('the report of decoding', () => {
  const cells: DecodeCell[] = [100, 300].flatMap((ours, round) => [
    { stream: 'rows', decoder: 'outlive', round, megabytesPerSecond: ours },
    { stream: 'rows', decoder: 'outlive, packets too', round, megabytesPerSecond: ours / 2 },
    { stream: 'rows', decoder: 'tedious', round, megabytesPerSecond: 20 },
  ]);

  it('compares inside of a round', () => {
    const [figure] = decodeFigures(cells);
    expect(figure).toMatchObject({ id: 'P1', value: 10, spread: { min: 5, max: 15 } });
    expect(judge(figure)).toBe('PASS');
    expect(decodeTable(cells)).toContain('10.00 (5.00..15.00)');
    expect(decodeFigures([])).toEqual([]);
  });
});
