import { describe, expect, it } from 'vitest';
import {
  addressOf,
  CONDITIONS,
  parseStatistics,
  reachedClusters,
  type Statistics,
} from '../../core/cluster/statistics.js';
import { CodedError } from '../../core/contract/index.js';

const whole: Statistics = {
  name: 'a',
  version: '0.1.0',
  incarnation: '5f3c',
  sentAt: 12_345.678,
  addresses: { '10.0.0.1': { epoch: 7, serves: true, resumes: false, sessions: 3, requestsPerSecond: 12.5 } },
  clients: 3,
  shadows: { total: 2, adoptable: 1 },
  follows: { b: 7 },
  reaches: {
    peer: true,
    backends: { 'main/db1': 'ok', 'main/db2': 'read-only', 'other/db3': 'unreachable' },
    store: null,
  },
  load: { cpu: 0.25, eventLoopDelayMs: 1.5, sessions: 3, bytesPerSecond: 1e6, requestsPerSecond: 12.5 },
  draining: false,
  conditions: ['hostFailed', 'operator'],
};

type Node = Record<string, unknown>;

/** A copy that came over the wire, with another value at a place; undefined takes it away. */
function changed(...changes: readonly (readonly [place: string, value: unknown])[]): unknown {
  const copy = JSON.parse(JSON.stringify(whole)) as Node;
  for (const [place, value] of changes) {
    const path = place.split(' ');
    const parent = path.slice(0, -1).reduce((at, key) => at[key] as Node, copy);
    if (value === undefined) delete parent[path.at(-1)!];
    else parent[path.at(-1)!] = value;
  }
  return copy;
}

function refusal(input: unknown): CodedError {
  try {
    parseStatistics(input);
  } catch (error) {
    if (error instanceof CodedError) return error;
    throw error;
  }
  throw new Error('it was accepted');
}

describe('statistics from the peer', () => {
  it('come through JSON as they were', () => {
    expect(parseStatistics(JSON.parse(JSON.stringify(whole)))).toEqual(whole);
    for (const store of [true, false, null]) {
      expect(parseStatistics(changed(['reaches store', store]))).toMatchObject({ reaches: { store } });
    }
    const all = [...CONDITIONS];
    expect(parseStatistics(changed(['conditions', all]))).toMatchObject({ conditions: all });
  });

  const entries = (count: number, value: unknown) =>
    Object.fromEntries(Array.from({ length: count }, (_, i) => [`n${i}`, value]));
  const address = { epoch: 1, serves: false, resumes: false, sessions: 0, requestsPerSecond: 0 };

  it.each<[what: string, place: string, value: unknown, named?: string]>([
    ['a missing field', 'draining', undefined],
    ['an unknown field', 'more', 1, ''],
    ['an unknown field deep inside', 'load more', 1, 'load'],
    ['an empty name', 'name', ''],
    ['a long name', 'name', 'x'.repeat(256)],
    ['a name that a terminal obeys', 'name', 'a\u001b[2J'],
    ['a name with a line separator', 'name', 'a\u2028b'],
    ['a negative count', 'clients', -1],
    ['a broken count', 'clients', 1.5],
    ['a count beyond what is exact', 'clients', 2 ** 60],
    ['a number as text', 'load cpu', '1'],
    ['what JSON makes of NaN', 'load cpu', null],
    ['a negative epoch', 'addresses 10.0.0.1 epoch', -1],
    ['more adoptable sessions than sessions', 'shadows adoptable', 3, 'shadows'],
    ['an unknown reach', 'reaches backends main/db1', 'fine'],
    ['an unknown condition', 'conditions', ['operator', 'x'], 'conditions.1'],
    ['too many conditions', 'conditions', Array(8).fill('operator')],
    ['too many addresses', 'addresses', entries(257, address)],
    ['too many backends', 'reaches backends', entries(1025, 'ok')],
    ['an address with a name that a terminal obeys', 'addresses \u0007', address, 'addresses'],
  ])('are refused with %s', (_, place, value, named = place.replaceAll(' ', '.')) => {
    const error = refusal(changed([place, value]));
    expect(error.code).toBe('OUTLIVE_PAIR_PROTOCOL');
    expect(error.message).toContain(`"${named}`);
  });

  it('are accepted up to the limits', () => {
    const most = changed(
      ['name', 'ü'.repeat(255)],
      ['addresses', entries(256, address)],
      ['reaches backends', entries(1024, 'ok')],
    );
    expect(Object.keys(parseStatistics(most).addresses)).toHaveLength(256);
  });

  it.each([[null], [undefined], [1], ['{}'], [[]], [new Map()]])('are refused when they are %s', (input) => {
    expect(refusal(input).code).toBe('OUTLIVE_PAIR_PROTOCOL');
  });

  it('do not come back in the message', () => {
    const text = `${'secret'.repeat(50)}\u001b[2J`;
    const error = refusal(
      changed(
        ['name', { text }],
        ['version', text],
        [`addresses ${text}`, text],
        [`reaches backends ok\u001b${text}`, text],
      ),
    );
    expect(error.message.length).toBeLessThan(600);
    expect(error.message).not.toMatch(/\p{C}/u);
  });

  it('change no prototype', () => {
    const hostile = JSON.parse(
      JSON.stringify(whole).replace(
        '"addresses":{',
        '"addresses":{"__proto__":{"epoch":9,"serves":true,"sessions":0,"requestsPerSecond":0},',
      ),
    );
    let parsed: Statistics | null = null;
    try {
      parsed = parseStatistics(hostile);
    } catch {}
    if (parsed !== null) expect(Object.keys(parsed.addresses)).toEqual(['10.0.0.1']);
    expect(({} as { epoch?: number }).epoch).toBeUndefined();
    expect(addressOf(whole, 'constructor')).toBeNull();
    expect(addressOf(whole, '__proto__')).toBeNull();
    expect(addressOf(whole, '10.0.0.1')).toMatchObject({ epoch: 7 });
  });

  it('are never let through when one value is replaced by something of another kind', () => {
    const places: string[] = [];
    const walk = (value: unknown, place: string) => {
      places.push(place);
      if (value === null || typeof value !== 'object') return;
      for (const [key, each] of Object.entries(value)) walk(each, `${place} ${key}`.trim());
    };
    for (const [key, value] of Object.entries(whole)) walk(value, key);
    for (const place of places) {
      for (const wrong of [undefined, 'no such word\n', -0.5, [[]]]) {
        // Tables may have fewer entries.
        if (wrong === undefined && /^(addresses|follows|reaches backends|conditions) \S+$/.test(place)) continue;
        expect(refusal(changed([place, wrong])).code, `${place}: ${wrong}`).toBe('OUTLIVE_PAIR_PROTOCOL');
      }
    }
  });
});

describe('what a gateway reaches', () => {
  it('is the clusters with a server that answers, read-only or not', () => {
    expect([...reachedClusters(whole)]).toEqual(['main']);
    const none = changed(['reaches backends', { 'main/db1': 'unreachable' }]) as Statistics;
    expect(reachedClusters(none).size).toBe(0);
  });
});
