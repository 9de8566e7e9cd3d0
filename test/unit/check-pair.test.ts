import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { ranked } from '../../core/cluster/rendezvous.js';
import { describeConfig, renderReport, tryPlugins } from '../../core/host/check.js';
import type { Abilities } from '../../core/host/check-pair.js';
import { type ConfigInput, normalizeConfig } from '../../core/host/config/index.js';
import { loadExtensions } from '../../core/host/registry.js';
import { selfSignedCert } from '../kit/servers.js';

const ABLE: Abilities = { move: null, guard: null, hold: null };

/** Everything that can be had. */
const WHOLE = {
  name: 'a',
  listen: '10.0.0.1:7400',
  peer: { name: 'b', address: '10.0.0.2:7400' },
  secret: { file: 'secret' },
  withoutPeer: 'stop' as const,
  lease: { plugin: 'etcd', endpoints: ['http://10.0.0.3:2379'], prefix: '/outlive/test/' },
  addresses: [{ address: '10.0.0.100', home: 'a', mover: { plugin: 'address-ip', interface: 'eth0' } }],
  holdAcknowledgements: { interface: 'eth0' },
};

/** With a third one. */
const SEVERAL = {
  ...WHOLE,
  peer: undefined,
  peers: [WHOLE.peer, { name: 'c', address: '10.0.0.3:7400' }],
};

let dir: string;

beforeAll(() => {
  dir = mkdtempSync(join(tmpdir(), 'outlive-check-pair-'));
  writeFileSync(join(dir, 'secret'), '0123456789abcdef0123456789abcdef');
});
afterAll(() => rmSync(dir, { recursive: true, force: true }));

async function check(pair: object | undefined, listener: object = {}, here: Abilities | null = ABLE) {
  const input = {
    listeners: [
      { name: 'main', codec: 'postgres', listen: '0.0.0.0:6432', cluster: 'main', auth: 'trust', ...listener },
    ],
    clusters: [{ name: 'main', servers: [{ name: 's', host: '10.0.0.9', port: 5432, tls: 'off' }] }],
    ...(pair === undefined ? {} : { pair }),
  };
  const config = normalizeConfig(input as ConfigInput, dir);
  const extensions = await loadExtensions(config);
  await tryPlugins(config, extensions);
  const report = describeConfig(config, extensions, here);
  const gaps = report.unprotected.map(({ where, what }) => `${where}: ${what}`);
  return {
    report,
    gaps,
    pairGaps: gaps.filter((gap) => /^(pair|gateway|this host)|takeover|taken over|TLS/.test(gap)),
  };
}

describe('what is said of a pair', () => {
  it('tells of several gateways to whom there are links, and who follows', async () => {
    const { report, pairGaps } = await check(SEVERAL);
    expect(pairGaps).toEqual([]);
    expect(report.pair?.peers.map(({ name }) => name)).toEqual(['b', 'c']);
    const flat = renderReport(report, 140).replace(/[│\s]+/g, ' ');
    const [first, second] = ranked('a', ['b', 'c']);
    for (const part of [
      'link 1 10.0.0.1:7400 to b at 10.0.0.2:7400, a shared secret',
      'link 2 10.0.0.1:7400 to c at 10.0.0.3:7400, a shared secret',
      `followed by ${first}; when that is gone, ${second}`,
    ]) {
      expect(flat).toContain(part);
    }
  });

  it('is nothing unprotected where all is there', async () => {
    const { report, pairGaps } = await check(WHOLE);
    expect(pairGaps).toEqual([]);
    expect(report.pair).toMatchObject({ name: 'a', lease: 'etcd', fence: null, auth: 'secret', here: ABLE });
    const flat = renderReport(report, 140).replace(/[│\s]+/g, ' ');
    for (const part of [
      'pair: this is gateway a',
      '10.0.0.1:7400 to b at 10.0.0.2:7400, a shared secret',
      'proof lease by etcd',
      'address 10.0.0.100 at home on a, moved by address-ip',
      'without peer clients wait',
      'can move connections yes',
      'guard yes',
      'hold of acknowledgements yes',
      'conditions off balance',
      'durability pair: clients get nothing that the other gateway does not hold',
    ]) {
      expect(flat).toContain(part);
    }
    expect(JSON.stringify(report)).not.toContain('0123456789abcdef');
  });

  it('is that there is none', async () => {
    const { report, pairGaps } = await check(undefined, {}, null);
    expect(report.pair).toBeNull();
    expect(pairGaps).toEqual([expect.stringContaining('there is no second gateway')]);
    expect(renderReport(report)).not.toContain('durability');
  });

  it('names what is not protected', async () => {
    const { lease, withoutPeer, holdAcknowledgements, ...bare } = WHOLE;
    const { gaps, report } = await check(
      { ...bare, guard: false, conditions: { hostFailed: false, processFailed: false, operator: false } },
      {},
      null,
    );
    expect(gaps).toEqual(
      expect.arrayContaining([
        expect.stringContaining('pair: a silent gateway is never taken over'),
        expect.stringContaining('pair: while the other gateway is gone'),
        expect.stringContaining("pair: a client's bytes that this host's kernel acknowledged"),
        expect.stringContaining('(guard: false)'),
        expect.stringContaining('(conditions.hostFailed: false)'),
        expect.stringContaining('(conditions.processFailed: false)'),
        expect.stringContaining('(conditions.operator: false)'),
      ]),
    );
    const flat = renderReport(report, 140).replace(/[│\s]+/g, ' ');
    expect(flat).toContain('proof NOTHING: a silent gateway is never taken over');
    expect(flat).toContain('can move connections not tried');
    expect(flat).toContain('conditions off hostFailed, processFailed, operator, balance');
  });

  it('knows fences, alone and beside a lease that makes them useless', async () => {
    const fence = { command: ['./stonith.sh'], timeout: '3s' };
    const { lease, ...unleased } = WHOLE;
    expect(renderReport((await check({ ...unleased, fence })).report, 140)).toContain('fence by command, within 3s');
    expect(renderReport((await check({ ...WHOLE, fence })).report, 140)).toContain('the fence (command) is not used');
  });

  it('is what this host cannot do', async () => {
    const here = { move: 'EPERM', guard: 'no nft', hold: 'no eBPF' };
    expect((await check(WHOLE, {}, here)).pairGaps).toEqual([
      'this host: no connection can be taken over or given away here: EPERM',
      'this host: the guard cannot be installed here: no nft',
      'this host: the gateway does not start: acknowledgements cannot be held back here: no eBPF',
    ]);
    // What is not asked for is not missed.
    const { holdAcknowledgements, ...unheld } = WHOLE;
    const { gaps } = await check({ ...unheld, guard: false }, {}, here);
    expect(gaps.filter((gap) => gap.startsWith('this host'))).toHaveLength(1);
  });

  it.each([
    [{ durability: 'local' }, /clients are answered before the other gateway knows of it/],
    [{ listen: '10.0.0.1:6432' }, /no address of the pair leads to 10\.0\.0\.1/],
    [{ listen: '10.0.0.100:6432' }, /cannot listen on it, unless its kernel allows that/],
    [{ listen: '0.0.0.0:0' }, /needs the same port on both gateways/],
  ])('a listener %j is not protected', async (listener, message) => {
    expect((await check(WHOLE, listener)).gaps.join('\n')).toMatch(message);
  });

  it.each([
    ['allow', {}, 'connections that use TLS end with this host'],
    ['require', { durability: 'local' }, 'its connections end with this host'],
  ])('TLS (%s) is not protected', async (mode, more, message) => {
    const { cert, key } = selfSignedCert();
    writeFileSync(join(dir, 'cert.pem'), cert);
    writeFileSync(join(dir, 'key.pem'), key);
    const { gaps } = await check(WHOLE, { ...more, tls: { mode, cert: 'cert.pem', key: 'key.pem' } });
    expect(gaps.join('\n')).toContain(`listener main: ${message}`);
  });

  it('tells which listeners reach addresses of which family', async () => {
    const six = { ...WHOLE, addresses: [{ address: 'fd00::100', home: 'a' }] };
    expect((await check(six)).pairGaps).toEqual([expect.stringContaining('no address of the pair leads to 0.0.0.0')]);
    expect((await check(six, { listen: '[::]:6432' })).pairGaps).toEqual([]);
    expect((await check(WHOLE, { listen: '[::]:6432' })).pairGaps).toEqual([]);
  });

  it('starts the plugins of the pair with their options', async () => {
    const wrong = { ...WHOLE, addresses: [{ address: '10.0.0.100', home: 'a', mover: { plugin: 'address-ip' } }] };
    await expect(check(wrong)).rejects.toMatchObject({ code: 'OUTLIVE_PLUGIN_OPTIONS' });
    const store = { ...WHOLE, lease: { plugin: 'etcd', endpoints: ['10.0.0.3'], prefix: '/x/' } };
    await expect(check(store)).rejects.toThrow(/pair\.lease \(plugin etcd\): endpoints/);
  });
});
