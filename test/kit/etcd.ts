import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { freePorts } from '../../plugins/embedded-postgres/index.js';
import { eventually } from './servers.js';

const PROGRAM = '/usr/bin/etcd';

/** Why there can be no etcd here, or null. */
export const etcdUnavailable: string | null = existsSync(PROGRAM)
  ? null
  : `${PROGRAM} is missing (Debian's package etcd-server)`;

export interface EtcdOptions {
  /** A network namespace that it runs in. */
  readonly netns?: string;
  /** Where it listens; an address of that namespace. */
  readonly host?: string;
  /** PEM: it speaks TLS then. */
  readonly tls?: { readonly cert: string; readonly key: string };
}

/** A real etcd of one member with data of its own. */
export interface Etcd {
  readonly endpoints: readonly string[];
  /** SIGSTOP. Resolves when it does nothing any more. */
  pause(): Promise<void>;
  /** SIGCONT. */
  resume(): void;
  kill(): Promise<void>;
  /** Starts it again, with its data. */
  restart(): Promise<void>;
  /** Ends it and removes its data. */
  stop(): Promise<void>;
}

export async function startEtcd({ netns, host = '127.0.0.1', tls }: EtcdOptions = {}): Promise<Etcd> {
  const dir = mkdtempSync(join(tmpdir(), 'outlive-etcd-'));
  const [port, peerPort] = netns === undefined ? await freePorts(2) : [2379, 2380];
  const url = `http${tls === undefined ? '' : 's'}://${host.includes(':') ? `[${host}]` : host}:${port}`;
  const peer = `http://127.0.0.1:${peerPort}`;
  const command = [
    ...(netns === undefined ? [] : ['ip', 'netns', 'exec', netns]),
    ...[PROGRAM, '--name=test', `--data-dir=${join(dir, 'data')}`, '--logger=zap', '--log-outputs=stderr'],
    ...[`--listen-client-urls=${url}`, `--advertise-client-urls=${url}`],
    ...[`--listen-peer-urls=${peer}`, `--initial-advertise-peer-urls=${peer}`, `--initial-cluster=test=${peer}`],
  ];
  if (tls !== undefined) {
    writeFileSync(join(dir, 'cert.pem'), tls.cert);
    writeFileSync(join(dir, 'key.pem'), tls.key, { mode: 0o600 });
    command.push(`--cert-file=${join(dir, 'cert.pem')}`, `--key-file=${join(dir, 'key.pem')}`);
  }
  let child: ChildProcess | null = null;

  async function start(): Promise<void> {
    const started = spawn(command[0], command.slice(1), { stdio: ['ignore', 'ignore', 'pipe'] });
    child = started;
    const orphan = () => started.kill('SIGKILL');
    process.once('exit', orphan);
    started.once('exit', () => process.off('exit', orphan));
    const lines: string[] = [];
    await new Promise<void>((resolve, reject) => {
      const reader = createInterface(started.stderr!);
      reader.on('line', (line) => {
        if (line.includes('serving client traffic')) resolve();
        lines.push(line);
        if (lines.length > 20) lines.shift();
      });
      reader.on('close', () => reject(new Error(`etcd ended:\n${lines.join('\n')}`)));
    });
  }
  async function kill(): Promise<void> {
    const ending = child;
    child = null;
    if (ending === null || ending.exitCode !== null || ending.signalCode !== null) return;
    const ended = once(ending, 'exit');
    ending.kill('SIGKILL');
    await ended;
  }

  try {
    await start();
  } catch (error) {
    rmSync(dir, { recursive: true, force: true });
    throw error;
  }
  return {
    endpoints: [url],
    async pause() {
      const pid = child?.pid;
      process.kill(pid!, 'SIGSTOP');
      await eventually(() =>
        readdirSync(`/proc/${pid}/task`).every((thread) => isStopped(`/proc/${pid}/task/${thread}/stat`)),
      );
    },
    resume: () => child?.kill('SIGCONT'),
    kill,
    restart: start,
    async stop() {
      await kill();
      rmSync(dir, { recursive: true, force: true });
    },
  };
}

/** A thread that has begun to run goes on for a moment when its process is stopped. */
function isStopped(stat: string): boolean {
  const text = readFileSync(stat, 'latin1');
  // The state follows the name, which may hold anything (proc(5)).
  return text.slice(text.lastIndexOf(')') + 2).startsWith('T');
}
