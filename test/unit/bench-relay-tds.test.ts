import { expect, it } from 'vitest';
import { type RelayTdsCell, relayTdsFigures, summarizeTds } from '../../bench/relay-tds.js';

const cell = (
  protocol: 'tds' | 'postgres',
  through: 'direct' | 'outlive',
  round: number,
  tps: number,
): RelayTdsCell => ({
  protocol,
  prepared: true,
  clients: 16,
  through,
  round,
  tps,
  p50: 1,
  p99: 2,
  errors: 0,
  proxyUs: through === 'direct' ? undefined : 50 + round,
  foreign: undefined,
});

it('takes what is left of the direct throughput round by round, and divides it by what is left of PostgreSQL', () => {
  const cells = [
    cell('tds', 'direct', 0, 1000),
    cell('tds', 'outlive', 0, 900),
    cell('tds', 'outlive', 1, 400),
    cell('tds', 'direct', 1, 500),
    cell('postgres', 'direct', 0, 10_000),
    cell('postgres', 'outlive', 0, 6000),
    cell('postgres', 'direct', 1, 9000),
    cell('postgres', 'outlive', 1, 4500),
  ];
  const summaries = summarizeTds(cells);
  expect(summaries).toHaveLength(2);
  expect(summaries[0]).toMatchObject({ protocol: 'tds', direct: 750, through: 650, proxyUs: 50.5 });
  expect(summaries[0].ratio!.median).toBeCloseTo(0.85);
  const [figure] = relayTdsFigures(summaries);
  expect(figure.value).toBeCloseTo(0.85 / 0.55);
  expect(relayTdsFigures(summarizeTds(cells.slice(0, 4)))[0].value).toBeUndefined();
});
