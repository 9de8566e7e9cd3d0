import { describe, expect, it } from 'vitest';
import { CONDITIONS, type Statistics } from '../../core/cluster/statistics.js';
import { type GatewayStatus, type PairStatus, type PeerStatus, statusText } from '../../core/host/status-text.js';

const A: Statistics = {
  name: 'left',
  version: '0.1.0',
  incarnation: 'i1',
  sentAt: 1,
  addresses: { '10.0.0.1': { epoch: 7, serves: true, resumes: false, sessions: 100, requestsPerSecond: 1234 } },
  clients: 100,
  shadows: { total: 0, adoptable: 0 },
  follows: {},
  reaches: { peer: true, backends: { 'main/db1': 'ok', 'main/db2': 'read-only' }, store: true },
  load: { cpu: 0.423, eventLoopDelayMs: 1.26, sessions: 100, bytesPerSecond: 5_000_000, requestsPerSecond: 1234.4 },
  draining: false,
  conditions: CONDITIONS.filter((each) => each !== 'balance'),
};
const B: Statistics = {
  ...A,
  name: 'right',
  version: '0.2.0',
  addresses: {},
  clients: 0,
  shadows: { total: 100, adoptable: 98 },
  follows: {},
  reaches: { peer: true, backends: { 'main/db1': 'unreachable', 'main/db3': 'ok' }, store: null },
  load: { cpu: 0, eventLoopDelayMs: 0, sessions: 0, bytesPerSecond: 12, requestsPerSecond: 0 },
  draining: true,
  conditions: [...CONDITIONS],
};
const PAIR: PairStatus = {
  self: A,
  peer: B,
  peerHeardMsAgo: 120,
  link: 'up',
  addresses: [
    { address: '10.0.0.1', owner: 'left', epoch: 7, leaseLeftMs: 2345 },
    { address: '10.0.0.2', owner: null, epoch: 0, leaseLeftMs: null },
    { address: 'fd00::1', owner: 'left', epoch: 3, leaseLeftMs: -5 },
  ],
  decisions: [
    { at: '2030-01-01T00:00:00.000Z', address: '10.0.0.1', action: 'take', reason: 'lease-won', rule: 'peer-silent' },
    { at: '2030-01-01T00:00:01.000Z', address: '10.0.0.1', action: 'keep', reason: 'of-a-later-version' },
  ],
};
const STATUS: GatewayStatus = {
  pair: PAIR,
  uptimeSeconds: 3700,
  health: { healthy: true, reasons: [] },
  listeners: [{ name: 'app', port: 6432, clients: 100 }],
  clusters: [
    {
      name: 'main',
      primary: 'db1',
      servers: [
        { name: 'db1', reachable: true, role: 'primary' },
        { name: 'db2', reachable: false, role: 'standby' },
        { name: 'db3', reachable: true, role: null },
      ],
    },
  ],
};

/** The cells of the row that begins with a label; null when there is none. */
function row(text: string, label: string): string[] | null {
  for (const line of text.split('\n')) {
    const cells = line
      .split('│')
      .slice(1, -1)
      .map((cell) => cell.trim());
    if (cells[0] === label) return cells.slice(1);
  }
  return null;
}

describe('the status for people', () => {
  // As it comes out of the admin interface.
  const text = statusText(JSON.parse(JSON.stringify(STATUS)));

  it('stands the two gateways side by side', () => {
    expect(row(text, 'Gateway')).toEqual(['left', 'right']);
    expect(row(text, 'Version')).toEqual(['0.1.0', '0.2.0']);
    expect(row(text, 'Clients')).toEqual(['100', '0']);
    expect(row(text, 'Sessions of the other one that it follows')).toEqual(['0', '100']);
    expect(row(text, 'of these, complete enough to go on with')).toEqual(['0', '98']);
    expect(row(text, 'Hears the other one')).toEqual(['yes', 'yes']);
    expect(row(text, 'Reaches the lease store')).toEqual(['yes', 'none']);
    expect(row(text, 'Reaches main/db1')).toEqual(['yes', 'NO']);
    expect(row(text, 'Reaches main/db2')).toEqual(['read-only', 'unknown to it']);
    expect(row(text, 'Reaches main/db3')).toEqual(['unknown to it', 'yes']);
    expect(row(text, 'CPU')).toEqual(['42 %', '0 %']);
    expect(row(text, 'Event loop late by (p99)')).toEqual(['1.3 ms', '0.0 ms']);
    expect(row(text, 'Requests')).toEqual(['1234 /s', '0 /s']);
    expect(row(text, 'To and from clients')).toEqual(['4.8 MiB/s', '12 B/s']);
    expect(row(text, 'Draining')).toEqual(['no', 'YES']);
    expect(row(text, 'Conditions that are off')).toEqual(['balance', 'none']);
    expect(text).toContain('Link to right up, heard 120 ms ago\n');
  });

  it('tells who serves what, and why', () => {
    expect(row(text, '10.0.0.1')).toEqual(['left', '7', '2.3 s']);
    expect(row(text, '10.0.0.2')).toEqual(['NOBODY', '0', '']);
    expect(row(text, 'fd00::1')).toEqual(['left', '3', 'ENDED']);
    expect(row(text, '2030-01-01T00:00:00.000Z')).toEqual(['10.0.0.1', 'take', 'peer-silent', 'the lease is here']);
    expect(row(text, '2030-01-01T00:00:01.000Z')).toEqual(['10.0.0.1', 'keep', '', 'of-a-later-version']);
  });

  it('tells of the gateway itself', () => {
    expect(text).toMatch(/^Healthy, up for 62 min\n/);
    expect(row(text, 'app')).toEqual(['6432', '100']);
    expect(
      text
        .split('\n')
        .filter((line) => line.includes('│ main'))
        .map((line) => row(line, 'main')),
    ).toEqual([
      ['db1', 'primary', 'yes'],
      ['db2', 'UNREACHABLE', ''],
      ['db3', 'unknown', ''],
    ]);
    const ill = statusText({
      ...STATUS,
      health: { healthy: false, reasons: ['cluster main has no server that accepts writes'] },
    });
    expect(ill).toMatch(/^NOT HEALTHY, up for 62 min\n {2}cluster main has no server that accepts writes\n/);
  });

  it('tells which servers sessions are on, where that is chosen', () => {
    const place = { port: 1, target: 'standby', servers: { db2: 3, db3: 4 } };
    const told = (balance: object | null) =>
      statusText({ ...STATUS, listeners: [{ name: 'reading', clients: 7, ...place, balance }] } as GatewayStatus);
    const cells = (text: string) => text.split('\n').find((line) => line.includes('db2 3, db3 4'));
    const one = cells(told({ verdict: 'balanced', moved: 12, failed: 2, moving: 0 }));
    expect(one?.split('│').map((cell) => cell.trim())).toEqual([
      '',
      'reading',
      'standby',
      'db2 3, db3 4',
      '12',
      '2',
      'balanced',
      '',
    ]);
    expect(cells(told(null))).toMatch(/ off +│$/);
  });

  it('knows a peer that was never heard, and one that is not heard any more', () => {
    const alone = statusText({ ...STATUS, pair: { ...PAIR, peer: null, peerHeardMsAgo: null, link: 'down' } });
    expect(row(alone, 'Gateway')).toEqual(['left', 'the other one']);
    expect(row(alone, 'Clients')).toEqual(['100', '?']);
    expect(row(alone, 'Reaches main/db3')).toBeNull();
    expect(alone).toContain('Link to the other gateway DOWN, never heard\n');
    const lost = statusText({
      ...STATUS,
      pair: { ...PAIR, peerHeardMsAgo: 90_000, link: 'down', unmovable: 'not Linux' },
    });
    expect(row(lost, 'Gateway')).toEqual(['left', 'right (last heard)']);
    expect(lost).toContain('Link to right DOWN, heard 90 s ago\nConnections cannot be moved: not Linux\n');
  });

  it('stands several gateways side by side, and tells who follows whom', () => {
    const peers: PeerStatus[] = [
      { name: 'right', link: 'up', heardMsAgo: 120, followedBy: 'left', statistics: B },
      { name: 'far', link: 'down', heardMsAgo: 90_000, followedBy: null, statistics: { ...A, name: 'far' } },
      { name: 'new', link: 'down', heardMsAgo: null, followedBy: null, statistics: null },
    ];
    const several = statusText({ ...STATUS, pair: { ...PAIR, follower: 'right', peers } });
    expect(several).toContain('Link to right up, heard 120 ms ago\nLink to far DOWN, heard 90 s ago\n');
    expect(several).toContain('Link to new DOWN, never heard\n');
    expect(row(several, 'Gateway')).toEqual(['left', 'right', 'far (last heard)', 'new']);
    expect(row(several, 'Clients')).toEqual(['100', '0', '100', '?']);
    expect(row(several, 'left')).toEqual(['right']);
    expect(row(several, 'right')).toEqual(['left']);
    expect(row(several, 'far')).toEqual(['NOBODY']);
  });

  it('shows the latest decisions only', () => {
    const decisions = Array.from({ length: 30 }, (_, i) => ({
      at: `t${i}`,
      address: 'x',
      action: 'keep',
      reason: 'serving',
    }));
    const many = statusText({ pair: { ...PAIR, decisions } });
    expect([row(many, 't19'), row(many, 't20') !== null, row(many, 't29') !== null]).toEqual([null, true, true]);
  });

  it('says that there is no pair, and what an order did', () => {
    expect(statusText({ ...STATUS, pair: null })).toContain('This gateway is not one of a pair.\n');
    const done = statusText({ done: 'drain', pair: PAIR });
    expect(done).toMatch(/^drain: done\nLink to right up/);
  });

  it('gives a terminal nothing to obey', () => {
    const evil = 'x\u001b[2J\u0007\u202e';
    const hostile: GatewayStatus = {
      done: evil,
      health: { healthy: false, reasons: [evil] },
      listeners: [{ name: evil, port: 1, clients: 1 }],
      clusters: [{ name: evil, primary: evil, servers: [{ name: evil, reachable: true, role: evil }] }],
      pair: {
        ...PAIR,
        unmovable: evil,
        self: { ...A, name: evil, version: evil, reaches: { ...A.reaches, backends: { [evil]: 'ok' } } },
        peer: { ...B, name: evil },
        addresses: [{ address: evil, owner: evil, epoch: 1, leaseLeftMs: null }],
        decisions: [{ at: evil, address: evil, action: evil, reason: evil, rule: evil }],
      },
    };
    expect(statusText(hostile).replaceAll('\n', '')).not.toMatch(/\p{C}/u);
  });

  it('survives what it does not know', () => {
    expect(statusText('starting')).toBe('"starting"\n');
    expect(statusText(null)).toBe('null\n');
    expect(statusText({ other: 1 })).toBe('This gateway is not one of a pair.\n');
  });
});

describe('the keeper', () => {
  it('is told of where there is one', () => {
    expect(statusText({ keeper: null, health: { healthy: true, reasons: [] } })).not.toContain('keeper');
    expect(statusText({ keeper: { open: true, kept: 45, lost: 1 } })).toContain('45 connections went on and 1 did not');
    expect(statusText({ keeper: { open: false, kept: 0, lost: 0 } })).toContain('GONE');
  });
});
