import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { request } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { CodedError } from '../../core/contract/index.js';
import { askAdmin, startAdmin } from '../../core/host/admin.js';
import { VERSION } from '../../core/host/check.js';
import { main, type Parts } from '../../core/host/cli.js';
import { Sensitive } from '../../core/host/config/index.js';
import { createLog } from '../../core/host/log.js';
import { createMetrics, type PairFigures, Stats } from '../../core/host/metrics.js';

let dir: string;

const CODEC = `export default {
  name: 'x', contract: '1.0.0', defaultPort: 1, alpn: null, authMethods: ['trust', 'password'],
  unprotected: ['large objects'],
  capabilities: { login: true, state: true, outcome: false, comparison: true, probe: true, mutables: false },
  frameLength() {}, *greet() {}, *login() {}, *probe() {}, refuse() {}, session() {},
}`;

const CREDENTIALS = `export default {
  name: 'c', contract: '1.0.0', kind: 'credentials',
  async create({ path }, { readFile, ask }) {
    if (path) await readFile(path);
    else await ask('a', function* () {});
    return { lookup: async () => null };
  },
}`;

const CONFIG = `
listeners:
  - name: main
    codec: ./codec.mjs
    listen: 0.0.0.0:6432
    cluster: main
    auth: trust
clusters:
  - name: main
    servers:
      - { name: a, host: 10.0.0.1, port: 5432, tls: off }
log: { level: silent }
`;

beforeAll(() => {
  dir = mkdtempSync(join(tmpdir(), 'outlive-cli-'));
  writeFileSync(join(dir, 'codec.mjs'), CODEC);
  writeFileSync(join(dir, 'credentials.mjs'), CREDENTIALS);
});
afterAll(() => rmSync(dir, { recursive: true, force: true }));

function configFile(text = CONFIG): string {
  const file = join(dir, `${Math.random()}.yaml`);
  writeFileSync(file, text);
  return file;
}

async function outlive(argv: string[], parts: Partial<Parts> = {}, env: Record<string, string> = {}) {
  let out = '';
  let err = '';
  const absent = async (): Promise<never> => {
    throw new Error('not in this test');
  };
  const io = {
    out: (text: string) => void (out += text),
    err: (text: string) => void (err += text),
    env,
    columns: 100,
    stopped: async () => 'SIGTERM',
    self: ['outlive'],
    end: () => {},
  };
  const code = await main(argv, io, { gateway: absent, demo: absent, keeper: absent, ...parts });
  return { code, out, err };
}

describe('outlive', () => {
  it('tells its version and its usage', async () => {
    expect(await outlive(['--version'])).toEqual({ code: 0, out: `${VERSION}\n`, err: '' });
    expect(VERSION).toMatch(/^\d+\.\d+\.\d+/);
    const help = await outlive(['--help']);
    expect(help.code).toBe(0);
    for (const command of ['run', 'check', 'setup', 'demo']) expect(help.out).toContain(`  ${command} `);
  });

  it.each([
    [[], /Usage: outlive/],
    [['walk'], /^error OUTLIVE_USAGE: unknown command 'walk'/],
    [['run'], /^error OUTLIVE_USAGE: required option '-c, --config <file>' not specified/],
    [['check', '--config'], /^error OUTLIVE_USAGE: /],
    [['demo', '--rounds', '0'], /^error OUTLIVE_USAGE: .*whole number from 1/],
    [['demo', '--codec', 'odd'], /^error OUTLIVE_USAGE: .*postgres, tds/],
    [['demo', '--codec', 'tds', '--pair'], /^error OUTLIVE_USAGE: .*--pair is for PostgreSQL/],
    [['check', '--config', 'x', '--jsn'], /^error OUTLIVE_USAGE: unknown option '--jsn'/],
  ])('%j is a wrong usage', async (argv, message) => {
    const { code, out, err } = await outlive(argv);
    expect(code).toBe(2);
    expect(out).toBe('');
    expect(err).toMatch(message);
  });
});

describe('outlive run', () => {
  it('runs until it is told to stop', async () => {
    const told: unknown[] = [];
    const startGateway: Awaited<ReturnType<Parts['gateway']>>['startGateway'] = async (config) => {
      told.push(config.listeners[0].listen);
      return { listeners: [{ name: 'main', port: 6432 }], stop: async () => void told.push('stopped') };
    };
    const result = await outlive(['run', '--config', configFile()], { gateway: async () => ({ startGateway }) });
    expect(result).toEqual({ code: 0, out: '', err: '' });
    expect(told).toEqual([{ host: '0.0.0.0', port: 6432 }, 'stopped']);
  });

  it.each([
    [new CodedError('OUTLIVE_LISTEN', 'system', 'in use'), 1, 'error OUTLIVE_LISTEN: in use\n'],
    [new CodedError('OUTLIVE_PLUGIN_LOAD', 'plugin', 'none'), 2, 'error OUTLIVE_PLUGIN_LOAD: none\n'],
    [new TypeError('oops'), 1, 'error OUTLIVE_INTERNAL: oops\n'],
  ])('ends with %s', async (error, code, err) => {
    const parts = {
      gateway: async () => ({
        startGateway: async () => {
          throw error;
        },
      }),
    };
    expect(await outlive(['run', '-c', configFile()], parts)).toEqual({ code, out: '', err });
    const debug = await outlive(['run', '-c', configFile()], parts, { OUTLIVE_DEBUG: '1' });
    expect(debug.err).toMatch(/cli\.test\.ts/);
  });

  it('refuses a wrong configuration', async () => {
    const { code, err } = await outlive(['run', '-c', configFile(`${CONFIG}lgo: {}\n`)]);
    expect(code).toBe(2);
    expect(err).toMatch(/^error OUTLIVE_CONFIG_INVALID: .*yaml:13:1: lgo: unknown key; did you mean "log"\?\n$/);
    expect((await outlive(['run', '-c', join(dir, 'absent')])).err).toMatch(/^error OUTLIVE_CONFIG_UNREADABLE: /);
  });
});

describe('outlive check', () => {
  it('says what it would run, and what it would not protect', async () => {
    const { code, out, err } = await outlive(['check', '-c', configFile()]);
    expect({ code, err }).toEqual({ code: 0, err: '' });
    const flat = out.replace(/[│\s]+/g, ' ');
    for (const part of [
      '0.0.0.0:6432',
      'x (contract 1.0.0); login, state, no outcome, comparison, probe, no mutables',
      'request 64MiB + journal 16MiB + answers 256KiB + queue 1MiB + 2 x backlog 1MiB = 83.25MiB per client',
      '81.3GiB for 1000 clients',
      '10.0.0.1:5432, tls off',
      'let in as any user (auth: trust)',
      'keep, which the codec cannot do',
      'values that the server made up are not kept',
      'the outcome of an interrupted commit cannot be learnt',
      'large objects',
      'nobody watches the servers',
      'nothing fences it',
      'the traffic to it is not encrypted (tls: off)',
      'with one server there is nothing to fail over to',
    ]) {
      expect(flat).toContain(part);
    }
  });

  it('says it as JSON', async () => {
    const { code, out } = await outlive(['check', '--json', '-c', configFile()]);
    expect(code).toBe(0);
    const report = JSON.parse(out);
    expect(report).toMatchObject({
      ok: true,
      version: VERSION,
      listeners: [{ name: 'main', address: '0.0.0.0:6432', auth: 'trust', limits: { clients: 1000 } }],
      clusters: [{ name: 'main', monitor: null, promotion: null, fence: null }],
    });
    expect(report.unprotected.map((gap: { where: string }) => gap.where)).toContain('cluster main, server a');
  });

  it('says what becomes of values that the server makes up', async () => {
    const check = async (more: string) => {
      const text = CONFIG.replace('./codec.mjs', 'postgres').replace('auth: trust', `auth: trust${more}`);
      const flat = (await outlive(['check', '-c', configFile(text)])).out.replace(/[│\s]+/g, ' ');
      const { listeners, unprotected } = JSON.parse((await outlive(['check', '--json', '-c', configFile(text)])).out);
      const whats: string[] = unprotected.map(({ what }: { what: string }) => what);
      return { flat, policy: listeners[0].mutables, whats: whats.filter((what) => /made/.test(what)) };
    };
    const kept = await check('');
    expect(kept.policy).toBe('keep');
    expect(kept.flat).toContain('keep: a repeated transaction carries the made-up values that the client saw');
    expect(kept.whats.join()).toMatch(/trigger fills.*over the rows of a table.*EXECUTE and of cursors/);
    const strict = await check('\n    mutables: strict');
    expect(strict.policy).toBe('strict');
    expect(strict.flat).toContain('strict: a repeated transaction fails when a value that the server made up differs');
    expect(strict.flat).toContain('-> mutables: keep');
    expect(strict.whats).toEqual([expect.stringContaining('(mutables: strict)'), ...kept.whats]);
  });

  it('says how commits are proved, and what that leaves open', async () => {
    const check = async (outcome: string) => {
      const text = CONFIG.replace('./codec.mjs', 'postgres')
        .replace('auth: trust', `auth: trust\n    outcome: ${outcome}`)
        .replace('tls: off }', 'tls: off }\n    monitor: { user: m }');
      const { out } = await outlive(['check', '--json', '-c', configFile(text)]);
      const { listeners, unprotected } = JSON.parse(out);
      const flat = (await outlive(['check', '-c', configFile(text)])).out.replace(/[│\s]+/g, ' ');
      const whats = unprotected
        .map(({ what }: { what: string }) => what)
        .filter((what: string) => /outcome/.test(what));
      return { by: listeners[0].outcome.by, flat, whats: whats.filter((what: string) => !/08007/.test(what)) };
    };
    const position = await check('{}');
    expect(position).toMatchObject({ by: 'position', whats: [] });
    expect(position.flat).toContain('position: the server is asked what became of a commit');
    const marker = await check('{ by: marker, autocommit: unknown, retain: 2h }');
    expect(marker.flat).toContain('leaves a row in outlive.commit_marker, kept for 2h');
    expect(marker.whats).toEqual([
      'a statement that commits by itself and whose answer is lost has an unknown outcome (outcome.autocommit: unknown)',
      'acknowledged commits that a promoted server lacks are not counted (outcome: marker)',
    ]);
    expect((await check('{ by: none }')).whats).toEqual([
      'a commit whose answer is lost has an unknown outcome (outcome: none)',
    ]);
  });

  it('sets up what there is to set up, and says what it would run', async () => {
    const text = CONFIG.replace('./codec.mjs', 'postgres').replace(
      'tls: off }',
      'tls: off }\n    monitor: { user: m }',
    );
    const marked = text.replace('auth: trust', 'auth: trust\n    outcome: { by: marker, table: own.marks }');
    const setup = (file: string, ...more: string[]) =>
      outlive(['setup', '-c', configFile(file), '--listener', 'main', ...more]);
    expect(await setup(text)).toMatchObject({ code: 1, err: expect.stringContaining('OUTLIVE_SETUP_NOTHING') });
    expect(await setup(marked, '--remove-older-than', 'long')).toMatchObject({ code: 2 });
    const young = await setup(marked, '--dry-run', '--remove-older-than', '30m');
    expect(young).toMatchObject({ code: 1, err: expect.stringContaining('OUTLIVE_SETUP_AGE') });
    const dry = await setup(marked, '--dry-run', '--database', 'one', '--database', 'two');
    expect(dry.code).toBe(0);
    for (const words of [
      'database one, as m (dry run',
      'database two',
      'CREATE TABLE IF NOT EXISTS own.marks',
      'GRANT SELECT, DELETE ON TABLE own.marks TO "m"',
      'needs CREATE',
    ])
      expect(dry.out).toContain(words);
    const other = await outlive(['setup', '-c', configFile(marked), '--listener', 'mian']);
    expect(other.err).toContain('no listener has the name mian; known: main');
  });

  it('knows gaps of other kinds', async () => {
    const text = CONFIG.replace('auth: trust', 'auth: password\n    credentials: { plugin: ./credentials.mjs }')
      .replace(
        'tls: off }',
        'tls: verify-full }\n      - { name: b, host: 10.0.0.2, port: 5432, tls: require }\n    monitor: { user: m, password: { env: PW } }\n    fence: { command: [x] }',
      )
      .concat('admin: { listen: 0.0.0.0:0 }\n')
      .replace('clusters:', 'clusters:\n  - { name: idle, servers: [{ name: a, host: localhost, port: 1 }] }');
    const { code, out, err } = await outlive(['check', '--json', '-c', configFile(text)], {}, { PW: 'hunter2' });
    expect({ code, err }).toEqual({ code: 0, err: '' });
    expect(out).not.toContain('hunter2');
    const gaps = JSON.parse(out).unprotected.map(
      ({ where, what }: { where: string; what: string }) => `${where}: ${what}`,
    );
    expect(gaps).toEqual(
      expect.arrayContaining([
        'listener main: passwords can cross the network in clear text (tls: off)',
        'cluster idle: no listener uses it',
        'cluster main: the gateway promotes no standby: sessions wait until someone else does',
        'cluster main, server b: the traffic to it can be intercepted: the server is not verified (tls: require)',
        'admin: whoever reaches the address can read metrics and status',
      ]),
    );
    expect(gaps.filter((gap: string) => /^cluster main: .*(fence|watches)/.test(gap))).toEqual([]);
  });

  it.each([
    [CONFIG.replace('auth: trust', 'auth: scram'), 'OUTLIVE_CONFIG_INVALID', /credentials: is missing/],
    [CONFIG.replace('./codec.mjs', './absent.mjs'), 'OUTLIVE_PLUGIN_LOAD', /was not found/],
    [
      CONFIG.replace('auth: trust', 'auth: trust\n    credentials: { plugin: ./credentials.mjs, path: users.txt }'),
      'OUTLIVE_CONFIG_UNREADABLE',
      /^listeners\[0\]\.credentials \(plugin c\): cannot read .*users\.txt/,
    ],
    [
      CONFIG.replace('tls: off }', 'tls: off }\n    monitor: { user: m }\n    fence: { comand: [x] }'),
      'OUTLIVE_PLUGIN_OPTIONS',
      /^clusters\[0\]\.fence \(plugin command\): comand: unknown key/,
    ],
  ])('refuses what would not run (%#)', async (text, code, message) => {
    const plain = await outlive(['check', '-c', configFile(text)]);
    expect(plain).toMatchObject({ code: 2, out: '' });
    expect(plain.err.startsWith(`error ${code}: `)).toBe(true);
    const json = await outlive(['check', '--json', '-c', configFile(text)]);
    expect(json).toMatchObject({ code: 2, err: '' });
    const { ok, error } = JSON.parse(json.out);
    expect({ ok, code: error.code }).toEqual({ ok: false, code });
    expect(error.message).toMatch(message);
  });
});

describe('outlive demo', () => {
  it('goes three times through one fault, and once through all of the pair', async () => {
    const asked: object[] = [];
    const demo = async () => ({
      runDemo: async ({ out: _, ...options }: object & { out: unknown }) => !!asked.push(options),
    });
    for (const argv of [['demo'], ['demo', '--pair'], ['demo', '--pair', '--rounds', '2'], ['demo', '--codec', 'tds']])
      await outlive(argv, { demo });
    expect(asked).toEqual([
      { rounds: 3, clients: 32, codec: 'postgres', pair: false, json: false },
      { rounds: 1, clients: 32, codec: 'postgres', pair: true, json: false },
      { rounds: 2, clients: 32, codec: 'postgres', pair: true, json: false },
      { rounds: 3, clients: 32, codec: 'tds', pair: false, json: false },
    ]);
  });

  it.each([
    [true, 0],
    [false, 1],
  ])('that succeeds: %s', async (succeeds, expected) => {
    const runDemo: Awaited<ReturnType<Parts['demo']>>['runDemo'] = async ({ out, ...options }) => {
      out(JSON.stringify(options));
      return succeeds;
    };
    const { code, out } = await outlive(['demo', '--rounds', '2', '--json'], { demo: async () => ({ runDemo }) });
    expect(code).toBe(expected);
    expect(JSON.parse(out)).toEqual({ rounds: 2, clients: 32, codec: 'postgres', pair: false, json: true });
  });
});

describe('the log', () => {
  function logged(
    pretty: boolean,
    level: 'info' | 'debug',
    write: (log: ReturnType<typeof createLog>) => void,
  ): string {
    let text = '';
    write(createLog({ level, pretty }, { write: (line) => void (text += line) }));
    return text;
  }

  it('is JSON, redacts secrets, and keeps stacks out', () => {
    const text = logged(false, 'info', (log) => {
      log.debug({}, 'unseen');
      const err = new CodedError('OUTLIVE_X', 'server', 'broken', { cause: new Error('why') });
      log.warn({ password: 'p1', identity: { secret: 'p2' }, wrapped: new Sensitive('p3'), position: 1n, err }, 'seen');
    });
    expect(text).not.toMatch(/p1|p2|p3|stack/);
    const { time, ...line } = JSON.parse(text);
    expect(Date.parse(time)).toBeGreaterThan(0);
    expect(line).toEqual({
      level: 'warn',
      msg: 'seen',
      password: '[secret]',
      identity: { secret: '[secret]' },
      wrapped: '[secret]',
      position: 1,
      err: {
        name: 'CodedError',
        code: 'OUTLIVE_X',
        culprit: 'server',
        message: 'broken',
        cause: { name: 'Error', message: 'why' },
      },
    });
  });

  it('is for people when pretty, with stacks at level debug', () => {
    const text = logged(true, 'debug', (log) =>
      log.info({ listener: 'main', text: 'a b', err: new Error('x') }, 'listening'),
    );
    expect(text).toMatch(
      /^\d\d:\d\d:\d\d\.\d{3} INFO {2}listening listener=main text="a b" err=\{.*cli\.test\.ts.*\}\n$/,
    );
  });
});

describe('the metrics', () => {
  it('are the plain counters', async () => {
    const stats = new Stats();
    const metrics = createMetrics(stats);
    const read = async () => (await metrics.text()).split('\n').filter((line) => line.startsWith('outlive_'));
    expect(await read()).toContain('outlive_requests_total 0');

    stats.requests += 5;
    stats.bytesToClients += 100;
    stats.moveSession('main', null, 'live');
    stats.moveSession('main', null, 'live');
    stats.moveSession('main', 'live', 'suspended');
    stats.moveSession('main', 'live', null);
    stats.count(stats.replays, 'verified');
    stats.count(stats.replays, 'verified');
    stats.count(stats.errors, 'OUTLIVE_X');
    stats.pause(0.3);
    stats.pause(100);
    expect(await read()).toEqual(
      expect.arrayContaining([
        'outlive_requests_total 5',
        'outlive_bytes_total{direction="to_client"} 100',
        'outlive_sessions{listener="main",state="live"} 0',
        'outlive_sessions{listener="main",state="suspended"} 1',
        'outlive_sessions_total{listener="main"} 2',
        'outlive_replays_total{result="verified"} 2',
        'outlive_errors_total{code="OUTLIVE_X"} 1',
        'outlive_pause_seconds_bucket{le="0.25"} 0',
        'outlive_pause_seconds_bucket{le="0.5"} 1',
        'outlive_pause_seconds_bucket{le="60"} 1',
        'outlive_pause_seconds_bucket{le="+Inf"} 2',
        'outlive_pause_seconds_sum 100.3',
        'outlive_pause_seconds_count 2',
      ]),
    );
    expect(await metrics.text()).toContain('nodejs_eventloop_lag_seconds');
    expect(JSON.parse(JSON.stringify(stats))).toMatchObject({ requests: 5, sessions: { main: { suspended: 1 } } });
  });

  it('tell of the pair where there is one', async () => {
    const figures: PairFigures = {
      linkUp: true,
      peers: [
        { peer: 'b', linked: true, follows: true },
        { peer: 'c', linked: true, follows: false },
      ],
      followed: 5,
      shadows: { total: 7, adoptable: 6 },
      shadowsFailed: 1,
      addresses: [{ address: '10.0.0.100', serving: true, epoch: 4 }],
      takeovers: 2,
      planned: 3,
      kept: 20,
      reset: 1,
      lastTakeoverMs: 62,
      heldBytes: 100,
      backlogBytes: 2000,
    };
    const lines = async (pair: (() => PairFigures) | null) =>
      (await createMetrics(new Stats(), pair).text()).split('\n').filter((line) => line.startsWith('outlive_pair_'));
    expect(await lines(null)).toEqual([]);
    expect(await lines(() => figures)).toEqual([
      'outlive_pair_link_up 1',
      'outlive_pair_peer_up{peer="b"} 1',
      'outlive_pair_peer_up{peer="c"} 1',
      'outlive_pair_peer_follows{peer="b"} 1',
      'outlive_pair_peer_follows{peer="c"} 0',
      'outlive_pair_followed 5',
      'outlive_pair_shadows 7',
      'outlive_pair_adoptable 6',
      'outlive_pair_shadows_failed_total 1',
      'outlive_pair_serving{address="10.0.0.100"} 1',
      'outlive_pair_epoch{address="10.0.0.100"} 4',
      'outlive_pair_takeovers_total 2',
      'outlive_pair_given_total 3',
      'outlive_pair_connections_total{result="kept"} 20',
      'outlive_pair_connections_total{result="reset"} 1',
      'outlive_pair_last_takeover_seconds 0.062',
      'outlive_pair_held_bytes 100',
      'outlive_pair_backlog_bytes 2000',
    ]);
  });
});

describe('the admin interface', () => {
  it('answers', async () => {
    let reasons: string[] = [];
    const silent = () => {};
    const sources = {
      metrics: createMetrics(new Stats()),
      health: () => ({ healthy: reasons.length === 0, reasons }),
      status: () => ({ password: new Sensitive('hunter2'), position: 12n }),
      order: async (what: string) => {
        if (what === 'drain') throw new CodedError('OUTLIVE_PAIR_NONE', 'config', 'no pair');
        return { done: what };
      },
    };
    const log = { debug: silent, info: silent, warn: silent, error: silent };
    const admin = await startAdmin({ host: '127.0.0.1', port: 0 }, sources, log);
    const call = (path: string, method = 'GET') =>
      new Promise<{ code?: number; type?: string; body: string }>((resolve, reject) => {
        request({ port: admin.port, host: admin.host, path, method }, (response) => {
          let body = '';
          response.on('data', (chunk) => (body += chunk));
          response.on('end', () =>
            resolve({ code: response.statusCode, type: response.headers['content-type'], body }),
          );
        })
          .on('error', reject)
          .end();
      });
    try {
      const metrics = await call('/metrics');
      expect(metrics).toMatchObject({ code: 200, type: expect.stringContaining('text/plain') });
      expect(metrics.body).toContain('\noutlive_requests_total 0\n');
      expect(await call('/health?x')).toMatchObject({ code: 200, body: expect.stringContaining('"healthy": true') });
      reasons = ['cluster main has no primary'];
      expect(await call('/health')).toMatchObject({ code: 503, body: expect.stringContaining('no primary') });
      const status = await call('/status');
      expect(JSON.parse(status.body)).toEqual({ password: '[secret]', position: '12' });
      expect((await call('/')).code).toBe(404);
      expect((await call('/status', 'POST')).code).toBe(405);
      // A page in somebody's browser could send such a request, but for the header.
      expect((await call('/takeover', 'POST')).code).toBe(405);
      const own = { host: admin.host, port: admin.port };
      expect(await askAdmin(own, 'takeover', 1000)).toEqual({ done: 'takeover' });
      await expect(askAdmin(own, 'drain', 1000)).rejects.toMatchObject({ code: 'OUTLIVE_PAIR_NONE' });
      expect(await askAdmin(own, 'status', 1000)).toEqual({ password: '[secret]', position: '12' });
      expect(await call('/health', 'HEAD')).toMatchObject({ code: 503, body: '' });
      sources.status = () => {
        throw new Error('hunter2');
      };
      expect(await call('/status')).toMatchObject({ code: 500, body: 'failed; see the log\n' });
      await expect(startAdmin({ host: '127.0.0.1', port: admin.port }, sources, log)).rejects.toMatchObject({
        code: 'OUTLIVE_ADMIN_LISTEN',
      });
    } finally {
      await admin.stop();
    }
  });
});
