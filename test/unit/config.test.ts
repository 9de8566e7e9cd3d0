import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { inspect } from 'node:util';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { ADDRESS_BALANCE } from '../../core/cluster/balance.js';
import {
  ConfigError,
  type ConfigInput,
  configJsonSchema,
  formatDuration,
  formatSize,
  loadConfig,
  normalizeConfig,
  parseConfig,
  parseDuration,
  parseSize,
  Sensitive,
} from '../../core/host/config/index.js';

const ROOT = join(dirname(fileURLToPath(import.meta.url)), '..', '..');

const MINIMAL = `
listeners:
  - name: main
    codec: postgres
    listen: 127.0.0.1:0
    cluster: main
    auth: trust
clusters:
  - name: main
    servers:
      - { name: a, host: db-a, port: 5432 }
`;

const PAIR = `
pair:
  name: a
  listen: 127.0.0.1:0
  peer: { name: b, address: 127.0.0.2:7400 }
  secret: { env: S }
  addresses: [{ address: 127.0.0.3, home: a }]
`;

let dir: string;
beforeAll(() => {
  dir = mkdtempSync(join(tmpdir(), 'outlive-config-'));
});
afterAll(() => rmSync(dir, { recursive: true, force: true }));

function problemsOf(text: string, env: Record<string, string> = {}) {
  try {
    parseConfig(text, dir, env);
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    return {
      code: error.code,
      text: error.message,
      problems: error.problems.map(({ path, message }) => `${path}: ${message}`),
      places: error.problems.map(({ line, column }) => [line, column]),
    };
  }
  throw new Error('it was accepted');
}

function minimal(): ConfigInput {
  return {
    listeners: [{ name: 'main', codec: 'postgres', listen: '127.0.0.1:0', cluster: 'main', auth: 'trust' }],
    clusters: [{ name: 'main', servers: [{ name: 'a', host: 'db-a', port: 5432 }] }],
  };
}

describe('units', () => {
  it.each([
    ['500ms', 500],
    ['30s', 30_000],
    ['1.5s', 1500],
    ['2m', 120_000],
    ['1h', 3_600_000],
    ['30', null],
    ['s', null],
    ['-1s', null],
    ['30 s', null],
    ['1d', null],
    [`${'9'.repeat(30)}h`, null],
  ])('duration %s', (text, ms) => {
    expect(parseDuration(text)).toBe(ms);
  });

  it.each([
    ['64KiB', 65_536],
    ['16MiB', 16_777_216],
    ['0.5GiB', 536_870_912],
    ['1GB', 1e9],
    ['10kB', 10_000],
    ['5B', 5],
    ['64', null],
    ['64k', null],
    ['MiB', null],
  ])('size %s', (text, bytes) => {
    expect(parseSize(text)).toBe(bytes);
  });

  it('writes them back', () => {
    expect([500, 1500, 30_000, 90_000, 3_600_000].map(formatDuration)).toEqual(['500ms', '1500ms', '30s', '90s', '1h']);
    expect([10, 65_536, 1_572_864, 2 ** 31].map(formatSize)).toEqual(['10B', '64KiB', '1.5MiB', '2GiB']);
  });
});

describe('a valid configuration', () => {
  it('is completed with the defaults, in milliseconds and bytes', () => {
    const config = parseConfig(MINIMAL, dir, {});
    expect(config).toEqual({
      file: null,
      baseDir: dir,
      listeners: [
        {
          name: 'main',
          codec: 'postgres',
          options: {},
          listen: { host: '127.0.0.1', port: 0 },
          cluster: 'main',
          target: 'primary',
          standby: { maxLag: 16 * 1024 ** 2, without: 'primary' },
          balance: {
            on: false,
            conditions: { uneven: true, fallback: true, lagging: true, promoted: true },
            start: 1.5,
            stop: 1.15,
            slack: 10,
            sustain: 5000,
            halfLife: 5000,
            movesPerMinute: 600,
            rest: 60_000,
            noReturn: 300_000,
            pause: 5000,
            patience: 5000,
            replay: false,
          },
          auth: 'trust',
          credentials: null,
          tls: { mode: 'off', cert: null, key: null },
          durability: 'local',
          mutables: 'keep',
          outcome: { by: null, autocommit: 'guard', table: null, retain: 3_600_000 },
          limits: {
            clients: 1000,
            request: 64 * 1024 ** 2,
            journal: 16 * 1024 ** 2,
            answers: 256 * 1024,
            queue: 1024 ** 2,
            backlog: 1024 ** 2,
            greetingTimeout: 10_000,
            greetings: 200,
          },
          failover: { wait: 30_000, attempts: 5, keepalive: 5000, lostCommit: 'continue', unprotected: 'allow' },
        },
      ],
      clusters: [
        {
          name: 'main',
          servers: [{ name: 'a', host: 'db-a', port: 5432, tls: 'prefer', ca: null }],
          monitor: null,
          promotion: null,
          fence: null,
          writers: 'one',
          spares: { perIdentity: 0, total: 200 },
          logins: { concurrent: 8 },
          detection: { silence: 10_000 },
        },
      ],
      pair: null,
      keeper: { socket: join(dir, 'keeper', 'keeper.sock') },
      admin: null,
      log: { level: 'info', pretty: false },
    });
  });

  it('may come from a program, in the same shape, with a secret at hand', () => {
    const input = minimal();
    input.clusters[0].monitor = { user: 'm', password: new Sensitive('pw'), interval: '100ms' };
    const config = normalizeConfig(input, dir, {});
    expect(config.clusters[0].monitor).toMatchObject({ user: 'm', database: 'postgres', interval: 100, timeout: 2000 });
    expect(config.clusters[0].monitor!.password!.reveal()).toBe('pw');
  });

  it('moves sessions by itself only where they may be on several servers, and says what a target lacks', () => {
    const withTarget = (listener: object, cluster: object = { monitor: { user: 'm' } }) => {
      const input = minimal();
      Object.assign(input.listeners[0], listener);
      Object.assign(input.clusters[0], cluster);
      return () => normalizeConfig(input, dir, {});
    };
    expect(withTarget({ target: 'standby' })().listeners[0].balance.on).toBe(true);
    expect(withTarget({ target: 'standby', balance: { on: false } })().listeners[0].balance.on).toBe(false);
    const several = { monitor: { user: 'm' }, writers: 'several' };
    expect(withTarget({ target: 'any' }, several)().listeners[0].balance.on).toBe(true);
    expect(withTarget({ target: 'standby' }, {})).toThrow('needs a monitor');
    expect(withTarget({ target: 'any' })).toThrow('add writers: several');
    expect(withTarget({ balance: { on: true } })).toThrow('is of no use with target: primary');
    expect(withTarget({ standby: { maxLag: '1MiB' } })).toThrow('only used with target: standby');
    expect(withTarget({ target: 'standby', balance: { start: 1.1 } })).toThrow('must be less than start (1.1)');
  });

  it('takes times and ratios of the load balance between gateways, and knows the rest', () => {
    const pair = {
      name: 'a',
      listen: '10.0.0.1:7400',
      peer: { name: 'b', address: '10.0.0.2:7400' },
      secret: new Sensitive('pw'),
      addresses: [{ address: '10.0.0.9', home: 'a' }],
    };
    expect(normalizeConfig({ ...minimal(), pair }, dir, {}).pair!.balance).toEqual(ADDRESS_BALANCE);
    const balance = { start: 2, stop: 1.2, sustain: '1m', receiverDelay: '50ms', movesPerMinute: 0.5 };
    expect(normalizeConfig({ ...minimal(), pair: { ...pair, balance } }, dir, {}).pair!.balance).toEqual({
      ...ADDRESS_BALANCE,
      start: 2,
      stop: 1.2,
      sustain: 60_000,
      receiverDelay: 50,
      movesPerMinute: 0.5,
    });
    const wrong = (given: object) => () =>
      normalizeConfig({ ...minimal(), pair: { ...pair, balance: given } }, dir, {});
    expect(wrong({ stop: 1.5 })).toThrow('must be less than start (1.5), or addresses would go to and fro');
    expect(wrong({ start: 1.1 })).toThrow('must be less than start (1.1)');
    expect(wrong({ receiverCpu: 2 })).toThrow('must be a number from 0.01 to 1');
    expect(wrong({ rest: 5 })).toThrow('must be a duration with its unit');
  });

  it('names one other gateway, or several with a lease', () => {
    const base = {
      name: 'a',
      listen: '10.0.0.1:7400',
      secret: new Sensitive('pw'),
      addresses: [{ address: '10.0.0.9', home: 'a' }],
    };
    const b = { name: 'b', address: '10.0.0.2:7400' };
    const c = { name: 'c', address: '10.0.0.3:7400' };
    const lease = { plugin: 'etcd' };
    const fence = { plugin: 'command' };
    const made = (pair: object) => () => normalizeConfig({ ...minimal(), pair: { ...base, ...pair } }, dir, {}).pair!;
    const one = [{ name: 'b', address: { host: '10.0.0.2', port: 7400 } }];
    expect(made({ peer: b })().peers).toEqual(one);
    expect(made({ peers: [b] })().peers).toEqual(one);
    const addresses = ['a', 'b', 'c'].map((home, i) => ({ address: `10.0.0.${i + 10}`, home }));
    expect(made({ peers: [b, c], lease, addresses })().peers.map(({ name }) => name)).toEqual(['b', 'c']);
    expect(made({})).toThrow('needs either peer, for one other gateway, or peers, for several');
    expect(made({ peer: b, peers: [c], lease })).toThrow('needs either peer');
    expect(made({ peers: [], lease })).toThrow('needs at least one gateway');
    expect(made({ peers: [b, { ...c, name: 'a' }], lease })).toThrow(
      'pair.peers[1].name: is the name of this gateway itself',
    );
    expect(made({ peers: [b, { ...c, name: 'b' }], lease })).toThrow(
      'pair.peers[1].name: another gateway has this name',
    );
    expect(made({ peers: [b, { ...c, address: b.address }], lease })).toThrow('another gateway has this address');
    expect(made({ peers: [b, { ...c, adress: b.address }], lease })).toThrow('did you mean "address"?');
    expect(made({ peers: [b, c] })).toThrow('pair.peers: are more than one, which needs lease');
    expect(made({ peers: [b, c], fence })).toThrow('no fence command can decide among three');
    expect(made({ peers: [b, c], lease, addresses: [{ address: '10.0.0.9', home: 'd' }] })).toThrow(
      'must be one of the gateways: a, b, c',
    );
  });

  it('hands a plugin its own options and only them', () => {
    const input = minimal();
    Object.assign(input.listeners[0], { auth: 'md5', credentials: { plugin: './users.js', path: 'users.txt' } });
    Object.assign(input.clusters[0], {
      monitor: { user: 'm' },
      promotion: { after: '3s', command: ['promote'], env: { A: 'b' } },
      fence: { plugin: 'stonith', timeout: '1m', after: 'kept' },
    });
    const config = normalizeConfig(input, dir, {});
    expect(config.listeners[0].credentials).toEqual({
      plugin: './users.js',
      options: { path: 'users.txt' },
      path: 'listeners[0].credentials',
    });
    expect(config.clusters[0].promotion).toEqual({
      plugin: 'command',
      options: { command: ['promote'], env: { A: 'b' }, timeout: 30_000 },
      path: 'clusters[0].promotion',
      timeout: 30_000,
      after: 3000,
    });
    expect(config.clusters[0].fence).toEqual({
      plugin: 'stonith',
      options: { timeout: 60_000, after: 'kept' },
      path: 'clusters[0].fence',
      timeout: 60_000,
    });
  });

  it('may have what differs in a repeated transaction fail it', () => {
    const config = parseConfig(MINIMAL.replace('auth: trust', 'auth: trust\n    mutables: strict'), dir, {});
    expect(config.listeners[0].mutables).toBe('strict');
  });

  it('takes IPv6 addresses in brackets', () => {
    const config = parseConfig(MINIMAL.replace('127.0.0.1:0', "'[::1]:6432'"), dir, {});
    expect(config.listeners[0].listen).toEqual({ host: '::1', port: 6432 });
  });

  it('may share parts by YAML anchors', () => {
    const text = `${MINIMAL.replace('auth: trust', 'auth: trust\n    limits: &l { clients: 7 }')}
log: &log { level: warn }
`.replace(
      'clusters:',
      '  - { name: b, codec: x, listen: "127.0.0.1:0", cluster: main, auth: trust, limits: *l }\nclusters:',
    );
    expect(parseConfig(text, dir, {}).listeners.map((listener) => listener.limits.clients)).toEqual([7, 7]);
  });

  it('is what the example is', async () => {
    const env = { OUTLIVE_MONITOR_PASSWORD: 'x', OUTLIVE_PAIR_SECRET: 'y' };
    const config = await loadConfig(join(ROOT, 'outlive.example.yaml'), env);
    expect(config.clusters[0].servers).toHaveLength(2);
    // The example shows defaults: it must not drift from them.
    const plain = parseConfig(MINIMAL, dir, {});
    expect(config.listeners[0].limits).toEqual(plain.listeners[0].limits);
    expect(config.listeners[0].mutables).toEqual(plain.listeners[0].mutables);
    expect(config.listeners[0].failover).toEqual(plain.listeners[0].failover);
    expect(config.listeners[0].outcome).toEqual({ ...plain.listeners[0].outcome, by: 'position' });
    expect(config.listeners[0].target).toEqual(plain.listeners[0].target);
    expect(config.listeners[1].standby).toEqual(plain.listeners[0].standby);
    expect(config.listeners[1].balance).toEqual({ ...plain.listeners[0].balance, on: true });
    expect(config.clusters[0].writers).toEqual(plain.clusters[0].writers);
    expect(config.clusters[0].detection).toEqual(plain.clusters[0].detection);
    expect(config.clusters[0].spares).toEqual(plain.clusters[0].spares);
    expect(config.log).toEqual(plain.log);
    const paired = parseConfig(`${MINIMAL}${PAIR}`, dir, { S: 'x' });
    for (const key of [
      'withoutPeer',
      'beat',
      'silence',
      'restart',
      'backlog',
      'guard',
      'conditions',
      'balance',
    ] as const) {
      expect({ [key]: config.pair![key] }).toEqual({ [key]: paired.pair![key] });
    }
    expect(config.listeners[0].durability).toBe(paired.listeners[0].durability);
  });
});

describe('commits proved by rows', () => {
  const listener = (outcome: string, failover = '{}') =>
    MINIMAL.replace('    auth: trust\n', `    auth: trust\n    outcome: ${outcome}\n    failover: ${failover}\n`);
  const monitored = (text: string) => `${text}    monitor: { user: m }\n`;

  it('need a monitor, which looks for them', () => {
    expect(problemsOf(listener('{ by: marker }')).problems).toEqual([
      'listeners[0].outcome.by: marker needs a monitor of the cluster, which looks for the rows; add monitor: { user: ... }',
    ]);
    expect(parseConfig(monitored(listener('{ by: marker, table: own.table }')), dir, {}).listeners[0].outcome).toEqual({
      by: 'marker',
      autocommit: 'guard',
      table: 'own.table',
      retain: 3_600_000,
    });
  });

  it('have options that others have not, and are kept for longer than sessions look for them', () => {
    expect(problemsOf(listener('{ table: a.b, retain: 2h }')).problems).toEqual([
      'listeners[0].outcome.table: is only used with by: marker',
      'listeners[0].outcome.retain: is only used with by: marker',
    ]);
    expect(problemsOf(monitored(listener('{ by: marker, retain: 10m }', '{ wait: 3m }'))).problems).toEqual([
      'listeners[0].outcome.retain: must be at least four times failover.wait (3m), or rows are gone while sessions look for them',
    ]);
    expect(problemsOf(monitored(listener('{ by: marker, retain: 9m }'))).problems).toEqual([
      'listeners[0].outcome.retain: "9m" is too short; the least is "10m"',
    ]);
  });
});

describe('a wrong configuration', () => {
  it('is told with path, place and fix, all problems at once', () => {
    const { code, text, problems, places } = problemsOf(`
listeners:
  - name: main
    codec: postgres
    listen: 6432
    cluster: mian
    auth: trust
    limits: { clients: 0, request: 64, quque: 1MiB }
    failover: { wait: 30, lostCommit: continu, statementTimeout: 1s }
clusters:
  - name: main
    servers:
      - { name: a, host: db-a, prot: 5432 }
log: { level: info
     , pretty: yes }
`);
    expect(code).toBe('OUTLIVE_CONFIG_INVALID');
    expect(problems).toEqual([
      'listeners[0].listen: must be "host:port", such as "127.0.0.1:6432"',
      'listeners[0].cluster: no cluster has the name "mian"; did you mean "main"?',
      'listeners[0].limits.clients: must be a whole number from 1 to 1000000',
      'listeners[0].limits.request: must be a size with its unit, such as "64KiB", "16MiB", "1GB"',
      'listeners[0].limits.quque: unknown key; did you mean "queue"?',
      'listeners[0].failover.wait: must be a duration with its unit, such as "500ms", "30s", "2m"',
      'listeners[0].failover.lostCommit: must be one of stop, continue; did you mean "continue"?',
      'listeners[0].failover.statementTimeout: unknown key; known here: wait, attempts, keepalive, lostCommit, unprotected',
      'clusters[0].servers[0].port: is missing. Port that it listens on.',
      'clusters[0].servers[0].prot: unknown key; did you mean "port"?',
      'log.pretty: must be true or false, not a text',
    ]);
    expect(places).toEqual([
      [5, 13],
      [6, 14],
      [8, 24],
      [8, 36],
      [8, 40],
      [9, 23],
      [9, 39],
      [9, 48],
      [13, 9],
      [13, 32],
      [15, 16],
    ]);
    expect(text).toMatch(/^11 problems\n {2}configuration:5:13: listeners\[0\]\.listen: /);
  });

  it.each([
    [
      '',
      ['listeners: is missing. Where clients connect to.', 'clusters: is missing. The databases behind the listeners.'],
    ],
    ['[]', [': must be a mapping of keys, not a list']],
    ['listeners: []\nclusters: []', ['listeners: needs at least one listener', 'clusters: needs at least one cluster']],
    [MINIMAL.replace('name: main', 'name: my listener'), [/^listeners\[0\]\.name: must start with a letter or digit/]],
    [
      MINIMAL.replace('127.0.0.1:0', '"::1:6432"'),
      [/^listeners\[0\]\.listen: "::1:6432": put an IPv6 address in brackets/],
    ],
    [MINIMAL.replace('127.0.0.1:0', 'host:70000'), [/^listeners\[0\]\.listen: "host:70000" is not "host:port"/]],
    [
      MINIMAL.replace('port: 5432', 'port: 54.32'),
      ['clusters[0].servers[0].port: must be a whole number from 1 to 65535'],
    ],
    [
      MINIMAL.replace('auth: trust', 'auth: trust\n    mutables: kept'),
      ['listeners[0].mutables: must be one of keep, strict; did you mean "keep"?'],
    ],
    [
      MINIMAL.replace('auth: trust', 'auth: md5'),
      [/^listeners\[0\]\.credentials: is missing: auth md5 needs to know the users/],
    ],
    [
      MINIMAL.replace('auth: trust', 'auth: trust\n    tls: { mode: require }'),
      [
        'listeners[0].tls.cert: is missing: tls mode require needs cert and key',
        'listeners[0].tls.key: is missing: tls mode require needs cert and key',
      ],
    ],
    [
      MINIMAL.replace('auth: trust', 'auth: trust\n    limits: { journal: 5B, queue: many, greetingTimeout: 1ms }'),
      [
        'listeners[0].limits.journal: "5B" is too small; the least is "1KiB"',
        'listeners[0].limits.queue: "many" is not a size; write one such as "64KiB", "16MiB", "1GB"',
        'listeners[0].limits.greetingTimeout: "1ms" is too short; the least is "100ms"',
      ],
    ],
    [
      `${MINIMAL}      - { name: a, host: db-b, port: 5432 }\n      - { name: c, host: db-a, port: 5432 }\n`,
      [
        'clusters[0].servers[1].name: another server of the cluster has this name; change one',
        'clusters[0].servers[2]: another server of the cluster has this host and port; change one',
      ],
    ],
    [
      `${MINIMAL}    promotion: { command: [x] }\n    fence: { command: [x] }\n    spares: { perIdentity: 1 }\n`,
      [
        /^clusters\[0\]\.promotion: needs a monitor/,
        /^clusters\[0\]\.fence: needs a monitor/,
        /^clusters\[0\]\.spares: need a monitor/,
      ],
    ],
    [
      MINIMAL.replace(
        'clusters:',
        '  - { name: main, codec: x, listen: "127.0.0.1:0", cluster: main, auth: trust }\nclusters:',
      ),
      ['listeners[1].name: another listener has this name; change one'],
    ],
    [
      MINIMAL.replace('port: 5432', 'port: 5432, ca: nothing.pem'),
      [
        /^clusters\[0\]\.servers\[0\]\.ca: cannot read .*nothing\.pem \(it does not exist\)/,
        /^clusters\[0\]\.servers\[0\]\.ca: is only used with tls: verify-full/,
      ],
    ],
  ])('%#', (text, expected) => {
    const { code, problems } = problemsOf(text);
    expect(code).toBe('OUTLIVE_CONFIG_INVALID');
    expect(problems).toHaveLength(expected.length);
    expected.forEach((wanted, index) => {
      if (typeof wanted === 'string') expect(problems[index]).toBe(wanted);
      else expect(problems[index]).toMatch(wanted);
    });
  });

  it('is not even YAML', () => {
    const { code, problems, places } = problemsOf('listeners:\n  - name: [main\nclusters: {}\nclusters: {}\n');
    expect(code).toBe('OUTLIVE_CONFIG_SYNTAX');
    expect(problems[0]).toMatch(/^: not valid YAML: /);
    expect(places[0][0]).toBeGreaterThan(1);
    expect(problemsOf('log: {}\nlog: {}').problems).toEqual([': not valid YAML: Map keys must be unique']);
    expect(problemsOf('log: *nowhere').code).toBe('OUTLIVE_CONFIG_SYNTAX');
  });

  it('cannot be read', async () => {
    await expect(loadConfig(join(dir, 'absent.yaml'))).rejects.toMatchObject({
      code: 'OUTLIVE_CONFIG_UNREADABLE',
      culprit: 'config',
    });
  });

  it('names the file', async () => {
    const file = join(dir, 'wrong.yaml');
    writeFileSync(file, `${MINIMAL}lgo: {}\n`);
    await expect(loadConfig(file)).rejects.toThrow(`${file}:12:1: lgo: unknown key; did you mean "log"?`);
  });

  it('from a program is told without places', () => {
    const input = { ...minimal(), lgo: {} } as ConfigInput;
    expect(() => normalizeConfig(input, dir, {})).toThrow('configuration: lgo: unknown key; did you mean "log"?');
  });
});

describe('secrets', () => {
  const withPassword = (password: string) => `${MINIMAL}    monitor: { user: m, password: ${password} }\n`;

  it('come from the environment or a file', () => {
    writeFileSync(join(dir, 'password'), 'from a file\n');
    const read = (password: string) =>
      parseConfig(withPassword(password), dir, { PW: 'from the environment' }).clusters[0].monitor!.password!.reveal();
    expect(read('{ env: PW }')).toBe('from the environment');
    expect(read('{ file: password }')).toBe('from a file');
  });

  it('are not printed', () => {
    const config = parseConfig(withPassword('{ env: PW }'), dir, { PW: 'hunter2' });
    const { password } = config.clusters[0].monitor!;
    for (const text of [inspect(config, { depth: 9 }), JSON.stringify(config), `${password}`, String(password)]) {
      expect(text).toContain('[secret]');
      expect(text).not.toContain('hunter2');
    }
  });

  it.each([
    ['hunter2', /does not stand in the configuration itself; write \{ env: NAME \} or \{ file: path \}$/],
    ['4711', /does not stand in the configuration itself/],
    ['{ env: NONE }', /the environment variable NONE is not set; set it$/],
    ['{ env: EMPTY }', /the environment variable EMPTY is empty; set it$/],
    ['{ file: none }', /cannot read .*none \(it does not exist\)/],
    ['{ file: empty }', /empty is empty; write the secret into it$/],
    ['{ evn: PW }', /is not a reference to a secret/],
    ['{ env: PW, file: x }', /is not a reference to a secret/],
  ])('%s is refused', (password, message) => {
    writeFileSync(join(dir, 'empty'), '\n');
    const { code, problems, text } = problemsOf(withPassword(password), { EMPTY: '' });
    expect(code).toBe('OUTLIVE_CONFIG_SECRET');
    expect(problems).toHaveLength(1);
    expect(problems[0]).toMatch(message);
    expect(text).not.toMatch(/hunter2|4711/);
  });
});

describe('TLS files', () => {
  const withTls = (cert: string, key: string) =>
    MINIMAL.replace('auth: trust', `auth: trust\n    tls: { mode: allow, cert: ${cert}, key: ${key} }`);

  beforeAll(() => {
    for (const name of ['one', 'two']) {
      const files = ['-keyout', join(dir, `${name}.key`), '-out', join(dir, `${name}.crt`)];
      const kind = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1'];
      execFileSync('openssl', ['req', '-x509', '-nodes', '-days', '2', '-subj', `/CN=${name}`, ...kind, ...files], {
        stdio: 'ignore',
      });
    }
  });

  it('are read and belong together', () => {
    const { tls } = parseConfig(withTls('one.crt', 'one.key'), dir, {}).listeners[0];
    expect(tls.cert).toEqual({ file: join(dir, 'one.crt'), text: readFileSync(join(dir, 'one.crt'), 'utf8') });
    expect(tls.key!.text.reveal()).toBe(readFileSync(join(dir, 'one.key'), 'utf8'));
    expect(JSON.stringify(tls)).not.toContain('PRIVATE KEY');
  });

  it('of a listener that wants TLS of all its clients exclude durability pair, also where none is named', () => {
    const required = `${withTls('one.crt', 'one.key').replace('mode: allow', 'mode: require')}${PAIR}`;
    const listener = (text: string) => parseConfig(text, dir, { S: 'x' }).listeners[0];
    expect(listener(required).durability).toBe('local');
    expect(listener(required.replace('mode: require', 'mode: allow')).durability).toBe('pair');
    const named = required.replace('auth: trust', 'auth: trust\n    durability: pair');
    expect(problemsOf(named, { S: 'x' }).problems).toEqual([
      expect.stringMatching(/^listeners\[0\]\.durability: cannot be pair with tls mode require/),
    ]);
    expect(listener(named.replace('mode: require', 'mode: allow')).durability).toBe('pair');
  });

  it('are refused when they do not', () => {
    expect(problemsOf(withTls('one.crt', 'two.key')).problems).toEqual([
      'listeners[0].tls.key: is not the key of the certificate in cert',
    ]);
    const swapped = problemsOf(withTls('one.key', 'one.crt')).problems;
    expect(swapped[0]).toMatch(/one\.key is not a PEM certificate$/);
    expect(swapped[1]).toMatch(/one\.crt is not a PEM private key without a passphrase$/);
  });

  it('of a server are for verify-full', () => {
    const text = MINIMAL.replace('port: 5432', 'port: 5432, tls: verify-full, ca: one.crt');
    expect(parseConfig(text, dir, {}).clusters[0].servers[0].ca!.file).toBe(join(dir, 'one.crt'));
  });
});

describe('the JSON Schema', () => {
  it('is committed as it is generated (npm run schema)', () => {
    const committed = JSON.parse(readFileSync(join(ROOT, 'outlive.schema.json'), 'utf8'));
    expect(committed).toEqual(JSON.parse(JSON.stringify(configJsonSchema())));
  });

  it('describes every key', () => {
    const without: string[] = [];
    const walk = (schema: Record<string, unknown>, path: string) => {
      for (const [key, value] of Object.entries((schema.properties ?? {}) as Record<string, Record<string, unknown>>)) {
        if (typeof value.description !== 'string') without.push(`${path}.${key}`);
        walk(value, `${path}.${key}`);
        if (value.items) walk(value.items as Record<string, unknown>, `${path}.${key}[]`);
      }
    };
    walk(configJsonSchema(), '');
    expect(without).toEqual([]);
  });
});
