import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { ActionPlugin, PluginContext } from '../../core/contract/index.js';
import { CodedError } from '../../core/contract/index.js';
import { type ConfigInput, normalizeConfig } from '../../core/host/config/index.js';
import { loadCodec, loadExtensions, loadPlugin, startPlugin } from '../../core/host/registry.js';

type ListenerInput = ConfigInput['listeners'][number];

let dir: string;

function put(path: string, text: string) {
  const file = join(dir, path);
  mkdirSync(dirname(file), { recursive: true });
  writeFileSync(file, text);
}

function codecText(changes = '', contract = '1.0.0') {
  return `{
    name: 'x', contract: '${contract}', defaultPort: 1, alpn: null, authMethods: ['trust'], unprotected: [],
    capabilities: { login: false, state: false, outcome: false, comparison: false, probe: false, mutables: false },
    frameLength() {}, *greet() {}, *login() {}, refuse() {}, session() {}, ${changes}
  }`;
}

beforeAll(() => {
  dir = mkdtempSync(join(tmpdir(), 'outlive-registry-'));
  put('codec.mjs', `export default ${codecText()}`);
  put('throws.mjs', `throw new Error('no native part')`);
  put('no-default.mjs', `export const codec = 1`);
  put('plugin.mjs', `export default { name: 'p', contract: '1.0.0', kind: 'credentials', create() {} }`);
  put(
    'action.mjs',
    `export default { name: 'a', contract: '1.0.0', kind: 'fence', create() { throw new TypeError('oops') } }`,
  );
  put('odd.mjs', `export default { name: 'o', contract: '1.0.0', kind: 'metrics', create() {} }`);
  // An ES module package that only answers to import, with a sub-path; one with main; one of CommonJS.
  put(
    'node_modules/@acme/esm/package.json',
    JSON.stringify({ exports: { '.': { types: './x.d.ts', import: './i.mjs' }, './sub': './s.mjs' } }),
  );
  put('node_modules/@acme/esm/i.mjs', `export default ${codecText("name: 'esm'")}`);
  put('node_modules/@acme/esm/s.mjs', `export default ${codecText("name: 'sub'")}`);
  put('node_modules/with-main/package.json', JSON.stringify({ type: 'module', main: 'lib/m.js' }));
  put('node_modules/with-main/lib/m.js', `export default ${codecText("name: 'main'")}`);
  put('node_modules/common/package.json', JSON.stringify({ main: 'c.js' }));
  put('node_modules/common/c.js', `module.exports = ${codecText("name: 'common'")}`);
  put('node_modules/compiled/package.json', JSON.stringify({ main: 'c.js' }));
  put('node_modules/compiled/c.js', `exports.__esModule = true; exports.default = ${codecText("name: 'compiled'")}`);
});
afterAll(() => rmSync(dir, { recursive: true, force: true }));

describe('names', () => {
  it.each([
    ['./codec.mjs', 'x'],
    ['@acme/esm', 'esm'],
    ['@acme/esm/sub', 'sub'],
    ['with-main', 'main'],
    ['common', 'common'],
    ['compiled', 'compiled'],
  ])('%s', async (name, expected) => {
    expect((await loadCodec(name, dir)).name).toBe(expected);
  });

  it('may be absolute paths', async () => {
    expect((await loadCodec(join(dir, 'codec.mjs'), '/')).name).toBe('x');
  });

  it('may be built in', async () => {
    expect((await loadPlugin('command', 'promote', dir)).name).toBe('command');
  });

  it.each([
    ['absent', /^The codec "absent" cannot be loaded: it was not found \(looked from .*\); name a built-in name/],
    ['@acme/absent', /it was not found/],
    ['@acme/esm/hidden', /it was not found/],
    ['./absent.mjs', /it was not found/],
    ['', /it was not found/],
    ['./throws.mjs', /^The codec "\.\/throws\.mjs" cannot be loaded: .*throws\.mjs failed: no native part$/],
  ])('%j cannot be loaded', async (name, message) => {
    const error = await loadCodec(name, dir).catch((reason: unknown) => reason);
    expect(error).toMatchObject({
      code: 'OUTLIVE_PLUGIN_LOAD',
      culprit: 'plugin',
      message: expect.stringMatching(message),
    });
    expect((error as Error).cause).toBeInstanceOf(Error);
  });
});

describe('the shape', () => {
  it.each([
    ['greet: undefined', 'greet (function)'],
    ["capabilities: { login: true }, authMethods: 'trust'", 'capabilities (capabilities), authMethods (texts)'],
    ["name: '', alpn: undefined", 'name (text), alpn (text or null)'],
    [
      'capabilities: { login: true, state: true, outcome: true, comparison: true, probe: true, mutables: true }',
      'probe (function), resolve (function)',
    ],
  ])('of a codec with %s is wrong', async (changes, members) => {
    const file = `wrong-${Math.random()}.mjs`;
    put(file, `export default ${codecText(changes)}`);
    await expect(loadCodec(`./${file}`, dir)).rejects.toMatchObject({
      code: 'OUTLIVE_PLUGIN_SHAPE',
      message: expect.stringContaining(`missing or of the wrong type: ${members}.`),
    });
  });

  it('needs a default export', async () => {
    await expect(loadCodec('./no-default.mjs', dir)).rejects.toMatchObject({ code: 'OUTLIVE_PLUGIN_SHAPE' });
    await expect(loadPlugin('./codec.mjs', 'fence', dir)).rejects.toThrow(/kind \(text\), create \(function\)/);
  });

  it('of a plugin must suit its role; promotion and fence are one', async () => {
    await expect(loadPlugin('./plugin.mjs', 'credentials', dir)).resolves.toMatchObject({ name: 'p' });
    await expect(loadPlugin('./action.mjs', 'promote', dir)).resolves.toMatchObject({ name: 'a' });
    await expect(loadPlugin('./action.mjs', 'fence', dir)).resolves.toMatchObject({ name: 'a' });
    await expect(loadPlugin('./plugin.mjs', 'fence', dir)).rejects.toThrow(
      /its kind is "credentials", and one for fence is wanted/,
    );
    await expect(loadPlugin('./action.mjs', 'credentials', dir)).rejects.toMatchObject({
      code: 'OUTLIVE_PLUGIN_SHAPE',
    });
    await expect(loadPlugin('./odd.mjs', 'fence', dir)).rejects.toMatchObject({ code: 'OUTLIVE_PLUGIN_SHAPE' });
  });
});

describe('the contract', () => {
  it.each([
    ['1.0.0', true],
    ['1.0.9', true],
    ['1.999.0', false],
    ['0.9.0', false],
    ['2.0.0', false],
    ['1.0', false],
    ['latest', false],
  ])('%s', async (contract, accepted) => {
    put(`contract-${contract}.mjs`, `export default ${codecText('', contract)}`);
    const loading = loadCodec(`./contract-${contract}.mjs`, dir);
    if (accepted) await expect(loading).resolves.toBeDefined();
    else await expect(loading).rejects.toMatchObject({ code: 'OUTLIVE_PLUGIN_CONTRACT', culprit: 'plugin' });
  });
});

describe('what a configuration asks for', () => {
  function input(): ConfigInput {
    return {
      listeners: [{ name: 'main', codec: './codec.mjs', listen: '127.0.0.1:0', cluster: 'main', auth: 'trust' }],
      clusters: [{ name: 'main', servers: [{ name: 'a', host: 'db-a', port: 5432 }] }],
    };
  }

  it('is loaded', async () => {
    const given = input();
    given.listeners[0].credentials = { plugin: './plugin.mjs' };
    Object.assign(given.clusters[0], { monitor: { user: 'm' }, fence: { plugin: './action.mjs' } });
    given.listeners[0].codec = 'probing';
    put(
      'node_modules/probing/index.js',
      `module.exports = ${codecText('capabilities: { login: true, state: false, outcome: false, comparison: false, probe: true, mutables: false }, probe() {}')}`,
    );
    const { codecs, plugins } = await loadExtensions(normalizeConfig(given, dir));
    expect([...codecs.keys()]).toEqual(['main']);
    expect([...plugins].map(([path, plugin]) => [path, plugin.name])).toEqual([
      ['listeners[0].credentials', 'p'],
      ['clusters[0].fence', 'a'],
    ]);
  });

  it('is refused when it does not go together', async () => {
    const given = input();
    put('other.mjs', `export default ${codecText("name: 'y'")}`);
    given.listeners[0].auth = 'md5';
    given.listeners[0].credentials = { plugin: './plugin.mjs' };
    given.listeners.push({ ...input().listeners[0], name: 'second', codec: './other.mjs' });
    Object.assign(given.clusters[0], { monitor: { user: 'm' }, spares: { perIdentity: 1 } });
    const error = await loadExtensions(normalizeConfig(given, dir)).catch((reason: unknown) => reason);
    expect(error).toMatchObject({ code: 'OUTLIVE_CONFIG_INVALID' });
    expect(
      (error as { problems: { path: string; message: string }[] }).problems.map(
        ({ path, message }) => `${path}: ${message}`,
      ),
    ).toEqual([
      'listeners[0].auth: the codec x does not know "md5"; it knows trust',
      'clusters[0]: its listeners speak x and y; a cluster speaks one protocol, give each its own cluster',
      'clusters[0].monitor: the codec x cannot ask a server for its role; leave the monitor out',
      'clusters[0].spares: the codec x cannot log in on its own; leave the spares out',
      'clusters[0].monitor: the codec y cannot ask a server for its role; leave the monitor out',
      'clusters[0].spares: the codec y cannot log in on its own; leave the spares out',
    ]);
  });
});

describe('a proof of commits', () => {
  const problems = async (codec: string, outcome: ListenerInput['outcome']) => {
    const config = normalizeConfig({
      listeners: [{ name: 'main', codec, listen: '127.0.0.1:0', cluster: 'main', auth: 'trust', outcome }],
      clusters: [{ name: 'main', servers: [{ name: 'a', host: 'db-a', port: 5432 }], monitor: { user: 'm' } }],
    });
    const error = await loadExtensions({ ...config, baseDir: dir }).catch((reason: unknown) => reason);
    const told = (error as { problems?: { path: string; message: string }[] }).problems ?? [];
    return told.map(({ path, message }) => `${path}: ${message}`).filter((text) => text.includes('outcome'));
  };

  it('is refused that the codec does not have', async () => {
    expect(await problems('./codec.mjs', { by: 'position' })).toEqual([
      'listeners[0].outcome.by: the codec x cannot ask a server for the outcome of a commit; use marker, or none',
    ]);
    expect(await problems('./codec.mjs', { by: 'marker' })).toEqual([
      'listeners[0].outcome.by: the codec x leaves no rows; use position, or none',
    ]);
    expect(await problems('./codec.mjs', { by: 'none' })).toEqual([]);
    expect(await problems('postgres', { by: 'marker', table: 'a.b' })).toEqual([]);
    expect(await problems('postgres', { by: 'marker', table: 'a; drop table b' })).toEqual([
      'listeners[0].outcome.table: must be schema.table, both in lower case, such as outlive.commit_marker',
    ]);
  });
});

describe('the command plugin', () => {
  /** A variable of a shell that the command may be. */
  const SHELL = `$${'{host}'}`;
  const ran: unknown[] = [];
  const silent = () => {};
  const context: PluginContext = {
    log: { debug: silent, info: silent, warn: silent, error: silent },
    signal: new AbortController().signal,
    ask: async () => {
      throw new Error('not here');
    },
    run: async (...call) => {
      ran.push(call);
      return { stdout: '', stderr: '' };
    },
    readFile: async () => '',
  };

  async function start(options: Record<string, unknown>, plugin = 'command') {
    const module = await loadPlugin(plugin, 'fence', dir);
    const use = { plugin, options, path: 'clusters[0].fence' };
    return startPlugin<ActionPlugin>({ codecs: new Map(), plugins: new Map([[use.path, module]]) }, use, context);
  }

  it('replaces the placeholders and tells the environment', async () => {
    const command = ['fence', '--host={host}:{port}', '{server}{server}', `${SHELL} {"a":1}`];
    await (await start({ command, env: { A: 'b', OUTLIVE_HOST: 'no' }, timeout: 500 })).act('a', {
      host: '::1',
      port: 5432,
    });
    expect(ran).toEqual([
      [
        ['fence', '--host=::1:5432', 'aa', `${SHELL} {"a":1}`],
        { A: 'b', OUTLIVE_SERVER: 'a', OUTLIVE_HOST: '::1', OUTLIVE_PORT: '5432' },
        500,
      ],
    ]);
  });

  it.each([
    [{}, 'command: is missing; write the program and its arguments as a list'],
    [{ command: 'reboot' }, 'command: must be a list of texts: the program and its arguments (there is no shell)'],
    [{ command: [] }, 'command: must be a list of texts: the program and its arguments (there is no shell)'],
    [{ command: ['x', '{hots}'] }, 'command: {hots} is unknown; known are {server}, {host} and {port}'],
    [{ command: ['x'], timeout: '5s' }, 'timeout: must be a number of milliseconds'],
    [{ command: ['x'], env: { A: 1 } }, 'env: must be a mapping of names to texts'],
    [{ comand: ['x'] }, 'comand: unknown key; known are command, timeout, env'],
  ])('refuses %j', async (options, message) => {
    const error = await start(options).catch((reason: unknown) => reason);
    expect(error).toBeInstanceOf(CodedError);
    expect(error).toMatchObject({
      code: 'OUTLIVE_PLUGIN_OPTIONS',
      message: `clusters[0].fence (plugin command): ${message}`,
    });
  });

  it('another one that fails to start is named', async () => {
    await expect(start({}, './action.mjs')).rejects.toMatchObject({
      code: 'OUTLIVE_PLUGIN_LOAD',
      message: 'clusters[0].fence (plugin a): it failed to start: oops',
    });
  });
});
