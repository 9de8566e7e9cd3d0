import { type ChildProcess, fork, spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, chownSync, existsSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { createInterface } from 'node:readline';
import { onTestFailed } from 'vitest';
import type { ConfigInput } from '../../core/host/config/index.js';
import { ClientHost } from '../../core/host/demo/lab/clients.js';
import type { Host } from '../../core/host/demo/lab/lab.js';
import { Remote } from '../../core/host/demo/lab/remote.js';
import { compiled } from './gateway-process.js';
import { eventually, freePort, tempDir } from './servers.js';

/** A line of the log of a keeper or of one of its engines. */
export interface Line {
  readonly msg?: string;
  readonly pid?: number;
  readonly level?: string;
  readonly [field: string]: unknown;
}

/** A user without any rights, whom root can become. */
export const NOBODY = 65534;
const TAIL = 400;
/** A little more than what the keeper asks for. */
const SOUND_MS = 3100;

/** `outlive keeper` in a process of its own, on 127.0.0.1. */
export class KeptGateway {
  readonly lines: Line[] = [];
  /** Pid of the engine that was started last. */
  engine = 0;
  #since = 0;
  readonly exited: Promise<number | null>;
  readonly #watchers = new Set<(line: Line) => void>();
  readonly #uid: number | undefined;

  /** Use {@link startKept}. */
  constructor(
    readonly child: ChildProcess,
    readonly port: number,
    readonly file: string,
    readonly admin: number,
    uid: number | undefined,
  ) {
    this.#uid = uid;
    createInterface({ input: child.stderr! }).on('line', (text) => {
      if (process.env.LOG) process.stderr.write(`${text}\n`);
      const line: Line = text.startsWith('{') ? JSON.parse(text) : { msg: text };
      if (this.lines.push(line) > TAIL) this.lines.shift();
      if (line.msg === 'the engine is started') this.engine = line.pid as number;
      if (line.msg === 'an engine has taken over') this.#since = performance.now();
      for (const watch of [...this.#watchers]) watch(line);
    });
    this.exited = once(child, 'close').then(([code]) => code as number | null);
  }

  /** The next line that is like this. Rejects when the keeper ends before. */
  next(like: (line: Line) => boolean, timeoutMs = 60_000): Promise<Line> {
    return new Promise((resolve, reject) => {
      const settle = (act: () => void) => {
        clearTimeout(timer);
        this.#watchers.delete(watch);
        act();
      };
      const watch = (line: Line) => {
        if (like(line)) settle(() => resolve(line));
      };
      const timer = setTimeout(() => settle(() => reject(new Error('a line of the log did not come'))), timeoutMs);
      this.#watchers.add(watch);
      void this.exited.then((code) => settle(() => reject(new Error(`the keeper ended (${code})`))));
    });
  }

  /** Kills the engine. @returns what the next one says of the connections that it goes on with */
  async crash(): Promise<{ kept: number; lost: number }> {
    const goesOn = this.next(({ msg }) => msg === GOING_ON);
    process.kill(this.engine, 'SIGKILL');
    return (await goesOn) as unknown as { kept: number; lost: number };
  }

  /** Waits until a crash of the present engine does not count as one that follows from what it took over. */
  async sound(): Promise<void> {
    await eventually(() => performance.now() - this.#since > SOUND_MS);
  }

  /** Runs `outlive upgrade`. @returns what the next engine says of the connections that it goes on with */
  async upgrade(): Promise<{ kept: number; lost: number }> {
    const goesOn = this.next(({ msg }) => msg === GOING_ON);
    await this.command('upgrade');
    return (await goesOn) as unknown as { kept: number; lost: number };
  }

  /** Runs a command with this gateway's configuration, as its user. @returns its output; rejects when it fails */
  async command(name: string): Promise<string> {
    const bin = join(compiled(), 'core/host/bin.js');
    const child = spawn(process.execPath, [bin, name, '--config', this.file], options(this.#uid));
    let said = '';
    for (const stream of [child.stdout!, child.stderr!]) stream.on('data', (chunk) => (said += chunk));
    const [code] = await once(child, 'close');
    if (code !== 0) throw new Error(`outlive ${name} ended with ${code}: ${said}`);
    return said;
  }

  /** The status page of the engine, as soon as there is one. */
  // biome-ignore lint/suspicious/noExplicitAny: plain data of the status page
  async status(): Promise<any> {
    return await eventually(async () => await (await fetch(`http://127.0.0.1:${this.admin}/status`)).json());
  }

  /** Ends the keeper with its engine. @returns the exit status */
  async stop(): Promise<number | null> {
    this.child.kill('SIGTERM');
    return await this.exited;
  }

  /** Kills both. */
  async kill(): Promise<void> {
    // The keeper first: it would start another engine.
    const { child, engine } = this;
    if (child.exitCode === null && child.signalCode === null && child.kill('SIGKILL')) await once(child, 'exit');
    if (engine > 0 && existsSync(`/proc/${engine}`)) process.kill(engine, 'SIGKILL');
    await this.exited;
  }
}

const GOING_ON = 'going on with the connections of the engine before';

function options(uid: number | undefined) {
  const user = uid === undefined ? {} : { uid, gid: uid };
  return { cwd: '/', env: { ...process.env, NODE_OPTIONS: '' }, stdio: 'pipe', ...user } as const;
}

/**
 * Starts `outlive keeper`; its only listener gets a free port, and an admin door is opened.
 * @param uid the user whose processes they are, for root; by default this one
 */
export async function startKept(
  { certPem: _, ...input }: ConfigInput & { certPem?: string },
  uid?: number,
): Promise<KeptGateway> {
  const [admin, port] = [await freePort(), await freePort()];
  const dir = tempDir();
  const file = join(dir, 'outlive.yaml');
  const config = {
    ...input,
    listeners: input.listeners.map((listener) => ({ ...listener, listen: `127.0.0.1:${port}` })),
    keeper: { socket: './keeper/socket' },
    admin: { listen: `127.0.0.1:${admin}` },
    log: { level: 'info', pretty: false },
  };
  // JSON is YAML.
  writeFileSync(file, JSON.stringify(config));
  const dist = compiled();
  if (uid !== undefined) {
    chmodSync(dist, 0o755);
    const theirs = config.listeners
      .flatMap(({ tls }) => [tls?.cert, tls?.key])
      .filter((path) => typeof path === 'string');
    for (const path of [dir, file, ...theirs, ...theirs.map(dirname)]) chownSync(path, uid, uid);
  }
  const child = spawn(process.execPath, [join(dist, 'core/host/bin.js'), 'keeper', '--config', file], options(uid));
  const kept = new KeptGateway(child, port, file, admin, uid);
  onTestFailed(() => {
    process.stderr.write(`${kept.lines.map((line) => JSON.stringify(line)).join('\n')}\n`);
  });
  try {
    await kept.next(({ msg, level }) => msg === 'listening' && level !== undefined);
  } catch (error) {
    await kept.kill();
    throw error;
  }
  return kept;
}

/** The clients of a lab on this host, in a process of their own; the caller kills them. */
export async function localClients(): Promise<ClientHost> {
  const script = (name: string) =>
    new Remote(
      fork(join(compiled(), 'core/host/demo/lab', name), {
        cwd: '/',
        execArgv: [],
        env: { ...process.env, NODE_OPTIONS: '' },
      }),
      'the clients',
    );
  return await ClientHost.start({ script } as unknown as Host);
}
