import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { join, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { afterAll } from 'vitest';
import type { ConfigInput } from '../../core/host/config/index.js';
import { freePort, tempDir } from './servers.js';

const ROOT = resolve(import.meta.dirname, '../..');
const SOURCES = ['core', 'codecs', 'plugins'];

let built: string | undefined;
const made: string[] = [];

afterAll(() => {
  for (const dir of made.splice(0)) rmSync(dir, { recursive: true, force: true });
});

/** Every compiled file is there and younger than its source. */
function isFresh(dist: string): boolean {
  return SOURCES.every((room) =>
    readdirSync(join(ROOT, room), { recursive: true, encoding: 'utf8' })
      .filter((name) => name.endsWith('.ts'))
      .every((name) => {
        const compiled = join(dist, room, name.replace(/ts$/, 'js'));
        return existsSync(compiled) && statSync(compiled).mtimeMs >= statSync(join(ROOT, room, name)).mtimeMs;
      }),
  );
}

/** The directory with the compiled program: `dist` when it is up to date, else a build of this file's own. */
export function compiled(): string {
  if (built !== undefined) return built;
  const dist = join(ROOT, 'dist');
  if (isFresh(dist)) return (built = dist);
  // Inside of the package, so that the compiled files find its package.json and its dependencies.
  mkdirSync(dist, { recursive: true });
  const dir = mkdtempSync(join(dist, '.test-'));
  made.push(dir);
  const tsc = join(ROOT, 'node_modules', '.bin', 'tsc');
  const { status, stdout } = spawnSync(tsc, ['-p', join(ROOT, 'tsconfig.build.json'), '--outDir', dir], {
    encoding: 'utf8',
  });
  if (status !== 0 && !existsSync(join(dir, 'core', 'host', 'bin.js'))) throw new Error(`the build failed:\n${stdout}`);
  return (built = dir);
}

/** Memory of a process in bytes: what it has now, and the most since the start or the last {@link GatewayProcess.resetPeak}. */
export interface Memory {
  readonly now: number;
  readonly peak: number;
}

/** A gateway in a process of its own. */
export interface GatewayProcess {
  readonly pid: number;
  readonly port: number;
  readonly child: ChildProcess;
  /** Resident memory as the kernel counts it (Linux). */
  memory(): Memory;
  /** Lets the peak start over from what is resident now. */
  resetPeak(): void;
  /** The status page. */
  // biome-ignore lint/suspicious/noExplicitAny: plain data of the status page
  status(): Promise<any>;
  /** CPU time so far, in seconds. */
  cpu(): number;
  stop(): Promise<void>;
}

/** Starts `outlive run` with this configuration; its listener gets a free port, and an admin door is opened. */
export async function spawnGateway(
  { certPem: _, ...input }: ConfigInput & { certPem?: string },
  options: { nodeArgs?: readonly string[]; env?: Readonly<Record<string, string>> } = {},
): Promise<GatewayProcess> {
  const admin = await freePort();
  const file = join(tempDir(), 'outlive.yaml');
  const config = { ...input, admin: { listen: `127.0.0.1:${admin}` }, log: { level: 'info', pretty: false } };
  // JSON is YAML.
  writeFileSync(file, JSON.stringify(config));
  const bin = join(compiled(), 'core', 'host', 'bin.js');
  const child = spawn(process.execPath, [...(options.nodeArgs ?? []), bin, 'run', '--config', file], {
    cwd: ROOT,
    env: { ...process.env, NODE_OPTIONS: '', ...options.env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const gone = once(child, 'exit');
  const said: string[] = [];
  const port = await new Promise<number>((done, failed) => {
    const lines = createInterface({ input: child.stderr! });
    lines.on('line', (line) => {
      if (said.push(line) > 100) said.shift();
      if (process.env.LOG) process.stderr.write(`${line}\n`);
      const event = line.startsWith('{') ? (JSON.parse(line) as { msg?: string; port?: number }) : {};
      if (event.msg === 'listening' && event.port !== undefined) done(event.port);
    });
    void gone.then(() => failed(new Error(`the gateway ended:\n${said.join('\n')}`)));
  });
  const pid = child.pid!;
  const kib = (text: string, name: string) => Number(new RegExp(`^${name}:\\s+(\\d+) kB`, 'm').exec(text)?.[1]) * 1024;
  return {
    pid,
    port,
    child,
    memory() {
      const text = readFileSync(`/proc/${pid}/status`, 'utf8');
      return { now: kib(text, 'VmRSS'), peak: kib(text, 'VmHWM') };
    },
    resetPeak() {
      // proc(5): 5 resets the peak of the resident set.
      writeFileSync(`/proc/${pid}/clear_refs`, '5');
    },
    async status() {
      return await (await fetch(`http://127.0.0.1:${admin}/status`)).json();
    },
    cpu() {
      const fields = readFileSync(`/proc/${pid}/stat`, 'utf8')
        .replace(/^.*\) /, '')
        .split(' ');
      // utime and stime in ticks of 1/100 s.
      return (Number(fields[11]) + Number(fields[12])) / 100;
    },
    async stop() {
      if (child.exitCode !== null || child.signalCode !== null) return;
      child.kill('SIGTERM');
      await gone;
    },
  };
}
