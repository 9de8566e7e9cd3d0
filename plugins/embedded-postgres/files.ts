import { randomBytes } from 'node:crypto';
import { constants, type Stats } from 'node:fs';
import {
  chmod,
  copyFile,
  lchown,
  lstat,
  mkdir,
  mkdtemp,
  readdir,
  readlink,
  rename,
  rm,
  stat,
  symlink,
} from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, dirname, join, resolve } from 'node:path';

/** The user that runs the servers; undefined where that is simply the user who runs this process. */
export interface RunAs {
  readonly uid: number;
  readonly gid: number;
}

const NOBODY = 65534;

/** initdb and postgres refuse to run as root, so root hands them to an unprivileged user. */
export function serverUser(): RunAs | undefined {
  return process.getuid?.() === 0 ? { uid: NOBODY, gid: NOBODY } : undefined;
}

export interface CopyOptions {
  /** Owner of everything that is made. */
  readonly owner?: RunAs;
  /** Which entries to leave out, by path relative to the source (with '/'). */
  readonly skip?: (relative: string) => boolean;
  /** The source is in use: files may vanish or shrink under the copy. */
  readonly live?: boolean;
  /** Take symbolic links over as they are; otherwise a link is an error. */
  readonly links?: boolean;
}

/**
 * Copies a tree and answers with the number of files. Clones blocks where the file system can; never blocks the event
 * loop for long, because the gateway under test may live in the same process.
 */
export async function copyTree(from: string, to: string, options: CopyOptions = {}): Promise<number> {
  const { owner, skip, live, links } = options;
  const own = async (path: string) => {
    if (owner) await lchown(path, owner.uid, owner.gid);
  };
  const vanished = (error: unknown) => live === true && (error as NodeJS.ErrnoException).code === 'ENOENT';
  const files: string[] = [];
  const walk = async (relative: string): Promise<void> => {
    const source = join(from, relative);
    const target = join(to, relative);
    let info: Stats;
    try {
      info = await stat(source);
    } catch (error) {
      if (relative !== '' && vanished(error)) return;
      throw error;
    }
    await mkdir(target, { recursive: true });
    await chmod(target, info.mode & 0o777);
    await own(target);
    for (const entry of await readdir(source, { withFileTypes: true })) {
      const path = relative === '' ? entry.name : `${relative}/${entry.name}`;
      if (skip?.(path)) continue;
      if (entry.isDirectory()) await walk(path);
      else if (entry.isFile()) files.push(path);
      else if (entry.isSymbolicLink()) {
        if (!links) throw new Error(`embedded PostgreSQL: cannot copy ${join(from, path)}: it is a symbolic link`);
        await symlink(await readlink(join(from, path)), join(to, path));
        await own(join(to, path));
      }
    }
  };
  await walk('');
  let next = 0;
  let copied = 0;
  const worker = async (): Promise<void> => {
    while (next < files.length) {
      const path = files[next++];
      try {
        await copyFile(join(from, path), join(to, path), constants.COPYFILE_FICLONE);
      } catch (error) {
        if (vanished(error)) continue;
        throw error;
      }
      await own(join(to, path));
      copied++;
    }
  };
  await Promise.all(Array.from({ length: 8 }, worker));
  return copied;
}

/** Counts the regular files of a tree, to notice a cached tree that a cleaner of temporary files has thinned out. */
export async function countFiles(dir: string): Promise<number> {
  let count = 0;
  for (const entry of await readdir(dir, { withFileTypes: true, recursive: true })) if (entry.isFile()) count++;
  return count;
}

/** Whether the user may walk through every directory down to this one (by mode bits; access lists are not asked). */
export async function traversable(dir: string, user: RunAs | undefined): Promise<boolean> {
  const uid = user?.uid ?? process.getuid?.() ?? -1;
  const groups = user ? [user.gid] : (process.getgroups?.() ?? []);
  if (uid === 0) return true;
  for (let path = resolve(dir); ; path = dirname(path)) {
    const info = await stat(path);
    const bit = info.uid === uid ? 0o100 : groups.includes(info.gid) ? 0o010 : 0o001;
    if ((info.mode & bit) === 0) return false;
    if (path === dirname(path)) return true;
  }
}

/** The directories for temporary files that the servers' user can reach, best first. */
export async function scratchRoots(user: RunAs | undefined): Promise<string[]> {
  const roots: string[] = [];
  for (const candidate of new Set([tmpdir(), '/tmp', '/var/tmp'])) {
    if (await traversable(candidate, user).catch(() => false)) roots.push(candidate);
  }
  if (roots.length === 0) {
    throw new Error(
      `embedded PostgreSQL: no directory for temporary files can be reached by uid ${user?.uid ?? process.getuid?.()};` +
        ' set TMPDIR to one that it may enter',
    );
  }
  return roots;
}

/** A new directory for one server or pair, that the servers' user owns. */
export async function makeScratchDir(user: RunAs | undefined): Promise<string> {
  const [root] = await scratchRoots(user);
  const dir = await mkdtemp(join(root, 'outlive-pg-'));
  if (user) await lchown(dir, user.uid, user.gid);
  return dir;
}

/**
 * The directory that holds what is kept between runs. Programs are started from it, and its place in a shared temporary
 * directory is guessable, so it must be ours and closed to other writers.
 */
export async function cacheDir(root: string): Promise<string> {
  const me = process.getuid?.() ?? 0;
  const dir = join(root, `outlive-embedded-postgres-${me}`);
  await mkdir(dir, { mode: 0o755 }).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'EEXIST') throw error;
  });
  const info = await lstat(dir);
  if (!info.isDirectory() || info.uid !== me) {
    throw new Error(`embedded PostgreSQL: ${dir} is not a directory of uid ${me}; remove it or set TMPDIR elsewhere`);
  }
  // A narrow umask must not lock the servers' user out, and a wide one must not let others in.
  if ((info.mode & 0o777) !== 0o755) await chmod(dir, 0o755);
  return dir;
}

/**
 * Makes a directory appear whole or not at all: `fill` works on a private sibling that is then renamed. Where another
 * process was first and its result is whole, that one stands; a broken one is moved out of the way.
 */
export async function makeAtomically(
  final: string,
  isWhole: (dir: string) => Promise<boolean>,
  fill: (dir: string) => Promise<void>,
): Promise<void> {
  const sibling = () => join(dirname(final), `.${basename(final)}.${process.pid}.${randomBytes(6).toString('hex')}`);
  const work = sibling();
  try {
    await mkdir(work);
    await chmod(work, 0o755);
    await fill(work);
    for (;;) {
      try {
        await rename(work, final);
        return;
      } catch (error) {
        const { code } = error as NodeJS.ErrnoException;
        if (code !== 'ENOTEMPTY' && code !== 'EEXIST') throw error;
        if (await isWhole(final)) return;
      }
      const broken = sibling();
      await rename(final, broken).catch(() => {});
      await rm(broken, { recursive: true, force: true });
    }
  } finally {
    await rm(work, { recursive: true, force: true });
  }
}
