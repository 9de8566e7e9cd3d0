import { execFileSync } from 'node:child_process';
import { closeSync, openSync } from 'node:fs';
import { createRequire } from 'node:module';
import { runCommand } from '../../core/io/command.js';

/** Why there can be no network namespaces here, or null. */
export const namespacesUnavailable: string | null =
  process.platform !== 'linux' ? 'needs Linux' : process.getuid?.() !== 0 ? 'needs root' : null;

/** A network namespace of the test's own: a host. */
export interface Namespace {
  readonly name: string;
  /** The network interface that leads to the others. */
  readonly device: string;
  /** Runs a command in it and returns its stdout. Throws when it fails. */
  sh(command: string): string;
  /** `PluginContext.run` in it. */
  run(
    command: readonly string[],
    env: Record<string, string>,
    timeoutMs: number,
  ): Promise<{ stdout: string; stderr: string }>;
  /** The command that runs another one in it. */
  readonly exec: readonly string[];
  /** Runs `action` with this process' main thread in the namespace: sockets that it makes belong there. One at a time. */
  inside<T>(action: () => Promise<T> | T): Promise<T>;
}

let made = 0;

/** Two hosts joined by a cable; interfaces are up and have no addresses but link-local ones. */
export function twoHosts(): { readonly a: Namespace; readonly b: Namespace; remove(): void } {
  const base = `ol${process.pid}${String.fromCharCode(97 + made++)}`;
  const [a, b] = [namespace(`${base}1`), namespace(`${base}2`)];
  const remove = () => {
    for (const { name } of [a, b]) execFileSync('ip', ['netns', 'del', name]);
  };
  for (const { name } of [a, b]) execFileSync('ip', ['netns', 'add', name]);
  try {
    a.sh(`ip link add ${a.device} type veth peer name ${b.device} netns ${b.name}`);
    for (const host of [a, b]) {
      // No duplicate address detection: addresses count at once.
      host.sh('sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0');
      host.sh(`ip link set lo up`);
      host.sh(`ip link set ${host.device} up`);
    }
  } catch (error) {
    remove();
    throw error;
  }
  return { a, b, remove };
}

function namespace(name: string): Namespace {
  const exec = ['ip', 'netns', 'exec', name];
  return {
    name,
    device: `${name}d`,
    exec,
    sh: (command) => execFileSync(exec[0], [...exec.slice(1), 'sh', '-c', command], { encoding: 'utf8' }),
    run: (command, env, timeoutMs) => runCommand([...exec, ...command], { env, timeoutMs }),
    async inside(action) {
      const back = openSync('/proc/thread-self/ns/net', 'r');
      try {
        enter(`/run/netns/${name}`);
        return await action();
      } finally {
        setNamespace(back);
        closeSync(back);
      }
    },
  };
}

function enter(path: string): void {
  const fd = openSync(path, 'r');
  setNamespace(fd);
  closeSync(fd);
}

let setns: ((fd: number, type: number) => number) | undefined;

/** Moves this thread alone, setns(2); 0x40000000 is CLONE_NEWNET. */
function setNamespace(fd: number): void {
  if (setns === undefined) {
    const koffi = createRequire(import.meta.url)('koffi') as typeof import('koffi');
    setns = koffi.load(null).func('int setns(int fd, int type)') as unknown as (fd: number, type: number) => number;
  }
  if (setns(fd, 0x40000000) !== 0) throw new Error('setns failed');
}
