import { execFile, spawnSync } from 'node:child_process';
import { chmodSync, chownSync, mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { DEMO_KEYS } from '../kit/demo.js';

const run = promisify(execFile);
const root = resolve(import.meta.dirname, '../..');
const asRoot = process.getuid?.() === 0;
const NOBODY = 65534;

let dir: string;
let path: string;

/** A PATH with everything but PostgreSQL. */
function pathWithoutPostgres(at: string): string {
  mkdirSync(at);
  for (const from of ['/bin', '/usr/bin', '/usr/local/bin', dirname(process.execPath)]) {
    let names: string[] = [];
    try {
      names = readdirSync(from);
    } catch {
      continue;
    }
    for (const name of names) {
      if (/^(pg_|pg[a-z]*bench$|psql$|postgres$|initdb$|postmaster$)/.test(name)) continue;
      try {
        symlinkSync(join(from, name), join(at, name));
      } catch {
        // The same name in an earlier folder wins, as in any PATH.
      }
    }
  }
  return at;
}

beforeAll(() => {
  dir = mkdtempSync(join(tmpdir(), 'outlive-clone-'));
  chmodSync(dir, 0o755);
  path = pathWithoutPostgres(join(dir, 'bin'));
});
afterAll(() => rmSync(dir, { recursive: true, force: true, maxRetries: 3 }));

const inGit = spawnSync('git', ['rev-parse', '--verify', 'HEAD'], { cwd: root }).status === 0;

/** The README's first command on a fresh clone. The second one is what runs this very test. */
describe.skipIf(!inGit)('a fresh clone', () => {
  const cases = [
    { who: 'this user', uid: undefined, scripts: true },
    { who: 'an ordinary user, install scripts skipped', uid: asRoot ? NOBODY : undefined, scripts: false },
  ];
  it.each(cases)(
    'runs the demo as $who, without PostgreSQL in PATH',
    { timeout: 300_000 },
    async ({ uid, scripts }) => {
      const home = mkdtempSync(join(dir, 'home-'));
      const clone = join(home, 'outlive');
      await run('git', ['-c', 'safe.directory=*', 'clone', '-q', root, clone]);
      if (uid !== undefined) {
        spawnSync('chown', ['-R', `${uid}:${uid}`, home]);
        chownSync(home, uid, uid);
      }
      const options = {
        cwd: clone,
        uid,
        gid: uid,
        maxBuffer: 64 * 1024 * 1024,
        env: {
          ...Object.fromEntries(
            Object.entries(process.env).filter(([name]) =>
              /^(npm_config_registry|.*proxy|NODE_EXTRA_CA_CERTS)$/i.test(name),
            ),
          ),
          PATH: path,
          HOME: home,
          TMPDIR: home,
          CI: 'true',
          npm_config_cache: join(home, '.npm'),
        },
      };
      await run('npm', ['ci', '--no-audit', '--no-fund', ...(scripts ? [] : ['--ignore-scripts'])], options);
      const { stdout } = await run(
        'npm',
        ['run', '-s', 'demo', '--', '--rounds', '1', '--clients', '4', '--json'],
        options,
      );
      const last = stdout.trimEnd().split('\n').at(-1)!;
      const result = JSON.parse(last) as Record<string, unknown>;
      expect(Object.keys(result)).toEqual(DEMO_KEYS);
      expect(result).toMatchObject({ rounds: 1, clients: 4, clientErrors: 0, duplicates: 0, lost: 0, ok: true });
    },
  );
});
