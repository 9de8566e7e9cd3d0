import { type ChildProcess, type SpawnOptions, spawn, spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { mkdtempSync, readdirSync, readlinkSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { CodedError } from '../../../contract/index.js';
import type { GetRequest } from './agent.js';
import type { DelayRequest } from './delay.js';
import type { RecorderPorts, RecorderRequest } from './recorder.js';
import { Remote } from './remote.js';
import { portOf, relayOf, rulesFor } from './rules.js';
import type { Recording } from './runs.js';
import { collect, shell, shellSync } from './shell.js';

/** How a lab is made. */
export interface LabOptions {
  /** Whether hosts have IPv6 addresses too. Default false. */
  readonly ipv6?: boolean;
  /** The directory with the compiled program (`core`, `plugins`, ...), whose scripts run on the hosts. By default the one that this file is in. */
  readonly program?: string;
}

/** How a command is run on a host. */
export interface HostSpawnOptions extends Omit<SpawnOptions, 'uid' | 'gid'> {
  /** The user to become once inside; needs both. By default root. */
  readonly uid?: number;
  readonly gid?: number;
}

/** Which packets between two hosts are lost: those of the first, those of the second, or all. */
export type Direction = 'to' | 'from' | 'both';

const BRIDGE = 'bridge0';
const NETWORK = '10.77.0';
const NETWORK6 = 'fd77::';
/** Hosts have numbers below it, floating addresses from it on. */
const FIRST_FLOATING = 100;

/**
 * Removes what a lab has made when its process ends, however it ends: then the standard input is at its end. Processes are killed twice
 * because one may be forking the first time.
 */
const GUARD_SCRIPT = `
trap '' HUP INT TERM
cat >/dev/null
for round in 1 2; do
  for path in /run/netns/"$1"-*; do
    [ -e "$path" ] || continue
    for pid in $(ip netns pids "\${path##*/}"); do kill -KILL "$pid" 2>/dev/null; done
  done
done
# The bridge's namespace first: with its ends of the cables all cables are gone at once, also where a dying socket keeps a namespace for a while.
for path in /run/netns/"$1"-bridge /run/netns/"$1"-*; do
  [ -e "$path" ] || continue
  for port in $(ip -n "\${path##*/}" -o link show type veth | sed 's/^[0-9]*: \\([^@:]*\\).*/\\1/'); do
    ip -n "\${path##*/}" link del "$port" 2>/dev/null
  done
  ip netns del "\${path##*/}"
done
rm -rf "$2"
`;

/**
 * Hosts on one network, made of network namespaces: each has its own addresses, its own TCP, and a cable to a bridge that stands in a
 * namespace of its own. Nothing of it is reachable from this process's network, and nothing of this process's network from it; unix sockets
 * are files and cross. Linux and root only.
 */
export class Lab {
  readonly ipv6: boolean;
  /** All network namespaces of the lab begin with it and a hyphen. */
  readonly prefix = `ol${process.pid}x${randomBytes(2).toString('hex')}`;
  /** For files of the lab; removed with it. Open to all users. */
  readonly dir: string;
  readonly #program: string;
  readonly #hosts = new Map<string, Host>();
  readonly #scripts = new Set<Remote>();
  readonly #recorders = new Set<Remote>();
  readonly #guard: ChildProcess;
  readonly #faults = {
    down: new Set<string>(),
    blocked: [] as (readonly [string, string])[],
    loss: new Map<string, number>(),
  };
  #applying: Promise<void> = Promise.resolve();
  #destroyed = false;

  private constructor({ ipv6 = false, program }: LabOptions) {
    this.ipv6 = ipv6;
    this.#program = program ?? resolve(import.meta.dirname, '../../../..');
    this.dir = mkdtempSync(join(tmpdir(), 'outlive-lab-'));
    // In its own session, so that Ctrl-C in a terminal does not reach it before its work begins.
    this.#guard = spawn('/bin/sh', ['-c', GUARD_SCRIPT, 'outlive-lab', this.prefix, this.dir], {
      stdio: ['pipe', 'ignore', 'ignore'],
      cwd: '/',
      detached: true,
    });
    this.#guard.stdin?.on('error', () => {});
    this.#guard.unref();
    (this.#guard.stdin as unknown as { unref(): void }).unref();
  }

  /** Null where a lab can be made, else why not. */
  static unavailable(): string | null {
    if (process.platform !== 'linux') return `network namespaces need Linux, this is ${process.platform}`;
    if (process.getuid?.() !== 0) return 'network namespaces need root';
    for (const command of [
      ['ip', '-V'],
      ['nft', '--version'],
      ['nsenter', '--version'],
    ]) {
      if (spawnSync(command[0], command.slice(1)).status !== 0) return `the command ${command[0]} is missing`;
    }
    const { status, stderr } = spawnSync('unshare', ['--net', 'true'], { encoding: 'utf8' });
    return status === 0 ? null : `network namespaces cannot be made: ${stderr?.trim()}`;
  }

  /** Makes an empty network. Throws OUTLIVE_LAB_UNAVAILABLE where that cannot be done. End it with {@link destroy}. */
  static async create(options: LabOptions = {}): Promise<Lab> {
    const reason = Lab.unavailable();
    if (reason !== null) throw new CodedError('OUTLIVE_LAB_UNAVAILABLE', 'system', reason);
    const lab = new Lab(options);
    try {
      shellSync(
        `
        chmod 755 ${lab.dir}
        ip netns add ${lab.bridge}
        nsenter --net=/run/netns/${lab.bridge} sh -e <<'END'
          for each in all default; do echo 1 >/proc/sys/net/ipv6/conf/$each/disable_ipv6; done
          ip link add name ${BRIDGE} type bridge forward_delay 0 mcast_snooping 0
          ip link set ${BRIDGE} up
        END
      `.replace(/^ +END/gm, 'END'),
      );
      await lab.#apply();
      return lab;
    } catch (error) {
      await lab.destroy();
      throw error;
    }
  }

  /** Name of the namespace in which the bridge stands. */
  get bridge(): string {
    return `${this.prefix}-bridge`;
  }

  /** All hosts so far. */
  get hosts(): readonly Host[] {
    return [...this.#hosts.values()];
  }

  /** A host by its name, which is made when it is not there: up to 12 lower-case letters and digits, a letter first. */
  host(name: string): Host {
    const known = this.#hosts.get(name);
    if (known !== undefined) return known;
    if (!/^[a-z][a-z0-9]{0,11}$/.test(name) || name === 'bridge') throw new Error(`no name for a host: ${name}`);
    const number = this.#hosts.size + 1;
    const host = new Host(
      this,
      name,
      number,
      `${NETWORK}.${number}`,
      this.ipv6 ? `${NETWORK6}${number.toString(16)}` : null,
    );
    host.make();
    this.#hosts.set(name, host);
    this.tellRecorders();
    return host;
  }

  /** An address of the network that no host has, to be moved between hosts. @param index 0 to 99 */
  floating(index = 0): { readonly address: string; readonly address6: string } {
    const number = FIRST_FLOATING + index;
    return { address: `${NETWORK}.${number}`, address6: `${NETWORK6}${number.toString(16)}` };
  }

  /** The network in CIDR form, and the same for IPv6. */
  get networks(): readonly string[] {
    return this.ipv6 ? [`${NETWORK}.0/24`, `${NETWORK6}/64`] : [`${NETWORK}.0/24`];
  }

  /** Writes a file into {@link dir} that only root can read. @returns its path */
  write(name: string, text: string): string {
    const path = join(this.dir, name);
    writeFileSync(path, text, { mode: 0o600 });
    return path;
  }

  /** Path of a compiled file of the program, such as `core/host/bin.js`. */
  path(file: string): string {
    return join(this.#program, file);
  }

  /** Starts a script of this folder in a namespace. */
  script(file: string, netns: string, name: string): Remote {
    const path = this.path(join('core/host/demo/lab', file));
    const child = spawn('nsenter', [...enter(netns), process.execPath, path], {
      cwd: '/',
      env: { ...process.env, NODE_OPTIONS: '' },
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
    });
    const remote = new Remote(child, name);
    this.#scripts.add(remote);
    child.once('exit', () => this.#scripts.delete(remote));
    return remote;
  }

  /** Changes what is wrong with the network, and waits until the kernel drops or passes packets accordingly. */
  async fault(
    change: (faults: { down: Set<string>; blocked: (readonly [string, string])[]; loss: Map<string, number> }) => void,
  ): Promise<void> {
    change(this.#faults);
    await this.#apply();
  }

  /** Makes the network whole again and lets all hosts run. */
  async heal(): Promise<void> {
    await this.fault(({ down, blocked, loss }) => {
      down.clear();
      blocked.length = 0;
      loss.clear();
    });
    for (const host of this.hosts) {
      await host.impair({});
      host.thaw();
    }
  }

  /** Faults that were changed while the kernel took others are applied with the next call in the row. */
  #apply(): Promise<void> {
    this.#applying = this.#applying
      .catch(() => {})
      .then(() => shell(`nsenter --net=/run/netns/${this.bridge} nft -f - <<'END'\n${rulesFor(this.#faults)}END\n`));
    return this.#applying;
  }

  /**
   * Begins to watch who sends packets with one of these source addresses, at all ports of the bridge.
   * @returns a function that ends it and tells what was seen
   */
  async recorder(sources: readonly string[]): Promise<() => Promise<Recording>> {
    const remote = this.script('recorder.js', this.bridge, 'the recorder');
    const request: RecorderRequest = { sources, ...this.#recorderPorts() };
    await remote.ask('start', request);
    this.#recorders.add(remote);
    return async () => {
      this.#recorders.delete(remote);
      const recording = await remote.ask<Recording>('result');
      await remote.kill();
      return recording;
    };
  }

  #recorderPorts(): RecorderPorts {
    return {
      devices: this.hosts.flatMap(({ name, delayed }) => [
        { name: portOf(name), host: name, sends: true, delivers: !delayed },
        ...(delayed ? [{ name: relayOf(name), host: name, sends: false, delivers: true }] : []),
      ]),
      cards: Object.fromEntries(this.hosts.map(({ name, mac }) => [mac, name])),
    };
  }

  /** Called when ports of the bridge come or go. */
  tellRecorders(): void {
    const ports = this.#recorderPorts();
    for (const remote of this.#recorders) remote.ask('know', ports).catch(() => {});
  }

  /** Kills everything on all hosts and removes all that was made. */
  async destroy(): Promise<void> {
    if (this.#destroyed) return;
    this.#destroyed = true;
    for (const host of this.hosts) await host.killAll();
    await Promise.all([...this.#scripts].map((remote) => remote.kill()));
    await this.#applying.catch(() => {});
    if (this.#guard.exitCode !== null) return;
    const ended = new Promise((done) => this.#guard.once('exit', done));
    this.#guard.ref();
    this.#guard.stdin?.end();
    await ended;
  }
}

/** What precedes a command line to run it in a namespace; it becomes the command by exec, so the process id stays. */
function enter(netns: string, user?: { readonly uid: number; readonly gid: number }): string[] {
  // Without a user namespace -S and -G are plain setuid and setgid, after the network namespace was entered.
  const become = user === undefined ? [] : ['-S', String(user.uid), '-G', String(user.gid)];
  return [`--net=/run/netns/${netns}`, ...become, '--'];
}

/** One host of a {@link Lab}. */
export class Host {
  readonly name: string;
  /** IPv4 address. */
  readonly address: string;
  /** IPv6 address; null in a lab without. */
  readonly address6: string | null;
  /** Name of its network card. */
  readonly interface = 'eth0';
  /** Address of its network card. */
  readonly mac: string;
  /** Name of its network namespace. */
  readonly netns: string;
  readonly #lab: Lab;
  #agent: Remote | null = null;
  #relay: Remote | null = null;

  /** Use {@link Lab.host}. */
  constructor(lab: Lab, name: string, number: number, address: string, address6: string | null) {
    this.#lab = lab;
    this.name = name;
    this.address = address;
    this.address6 = address6;
    // A locally administered address (IEEE 802).
    this.mac = `02:4f:4c:00:00:${number.toString(16).padStart(2, '0')}`;
    this.netns = `${lab.prefix}-${name}`;
  }

  get lab(): Lab {
    return this.#lab;
  }

  /** Called by {@link Lab.host}. */
  make(): void {
    const port = portOf(this.name);
    // Where there are no IPv6 addresses the kernel shall not talk about any either; where there are, they are usable at once.
    const six =
      this.address6 === null
        ? 'for each in all default; do echo 1 >/proc/sys/net/ipv6/conf/$each/disable_ipv6; done'
        : 'for each in all default; do echo 0 >/proc/sys/net/ipv6/conf/$each/accept_dad; echo 0 >/proc/sys/net/ipv6/conf/$each/accept_ra; done';
    // One segment a packet, as on a real cable: otherwise a loss would take 64 KiB at once.
    shellSync(
      `
      ip netns add ${this.netns}
      ip -n ${this.#lab.bridge} link add ${port} gso_max_segs 1 type veth peer name ${this.interface} address ${this.mac} gso_max_segs 1 netns ${this.netns}
      ip -n ${this.#lab.bridge} link set ${port} master ${BRIDGE} up
      nsenter --net=/run/netns/${this.netns} sh -e <<'END'
        ${six}
        ip link set lo up
        ip link set ${this.interface} up
        ip addr add ${this.address}/24 dev ${this.interface}
        ${this.address6 === null ? '' : `ip addr add ${this.address6}/64 dev ${this.interface} nodad`}
      END
    `.replace(/^ +END/gm, 'END'),
    );
  }

  /** What {@link spawn} puts before a command line; it becomes the command by exec. */
  command(user?: { readonly uid: number; readonly gid: number }): readonly string[] {
    return ['nsenter', ...enter(this.netns, user)];
  }

  /** Starts a program on this host; otherwise as `spawn` of `node:child_process`. */
  spawn(command: string, args: readonly string[] = [], { uid, gid, ...options }: HostSpawnOptions = {}): ChildProcess {
    const user = uid === undefined || gid === undefined ? undefined : { uid, gid };
    const [enterer, ...before] = this.command(user);
    return spawn(enterer, [...before, command, ...args], options);
  }

  /** Runs a command on this host to its end. Rejects with OUTLIVE_LAB_FAILED when it fails. */
  async run(command: string, args: readonly string[] = [], input = ''): Promise<{ stdout: string; stderr: string }> {
    const child = this.spawn(command, args, { stdio: ['pipe', 'pipe', 'pipe'] });
    return await collect(child, [command, ...args].join(' '), input);
  }

  /** Starts a script of this folder on this host. */
  script(file: string): Remote {
    return this.#lab.script(file, this.netns, `${file} on ${this.name}`);
  }

  /** Asks an HTTP server that only this host can reach. Rejects with OUTLIVE_LAB_FAILED when nothing answers in time. */
  async get(url: string, timeoutMs = 3000): Promise<{ status: number; body: string }> {
    if (this.#agent === null || this.#agent.ended) this.#agent = this.script('agent.js');
    const request: GetRequest = { url, timeoutMs };
    return await this.#agent.ask('get', request, timeoutMs + 1000);
  }

  /** Cuts the host off from all others. It notices nothing but that nobody answers: its interface stays up. */
  async cut(): Promise<void> {
    await this.#lab.fault(({ down }) => down.add(this.name));
  }

  /** Undoes {@link cut}. */
  async mend(): Promise<void> {
    await this.#lab.fault(({ down }) => down.delete(this.name));
  }

  /** Lets packets between this and another host get lost: those to the other one, those from it, or both. */
  async cutFrom(other: Host, direction: Direction = 'both'): Promise<void> {
    await this.#lab.fault(({ blocked }) => {
      if (direction !== 'from') blocked.push([this.name, other.name]);
      if (direction !== 'to') blocked.push([other.name, this.name]);
    });
  }

  /** Undoes every {@link cutFrom} between the two hosts. */
  async mendFrom(other: Host): Promise<void> {
    const names = [this.name, other.name];
    await this.#lab.fault(({ blocked }) => {
      const left = blocked.filter(([from, to]) => !(names.includes(from) && names.includes(to)));
      blocked.splice(0, blocked.length, ...left);
    });
  }

  /**
   * Makes the host's cable bad, or good again with neither value.
   * @param quality.lossPercent of packets, each way
   * @param quality.delayMs how much later packets arrive, each way; a round trip takes twice as much longer
   */
  async impair({ delayMs = 0, lossPercent = 0 }: { delayMs?: number; lossPercent?: number }): Promise<void> {
    await this.#lab.fault(({ loss }) => {
      if (lossPercent > 0) loss.set(this.name, lossPercent);
      else loss.delete(this.name);
    });
    if (delayMs > 0) await this.#delay(delayMs);
    else await this.#undelay();
  }

  /** Whether a relay stands between cable and bridge. */
  get delayed(): boolean {
    return this.#relay !== null;
  }

  async #delay(delayMs: number): Promise<void> {
    const [port, relay] = [portOf(this.name), relayOf(this.name)];
    const request: DelayRequest = { port, relay, delayMs };
    if (this.#relay !== null) return void (await this.#relay.ask('start', request));
    const remote = this.#lab.script('delay.js', this.#lab.bridge, `the relay of ${this.name}`);
    await remote.ask('start', request);
    await shell(`
      ip -n ${this.#lab.bridge} link set ${port} nomaster
      ip -n ${this.#lab.bridge} link set ${relay} master ${BRIDGE} up
    `);
    this.#relay = remote;
    this.#lab.tellRecorders();
  }

  async #undelay(): Promise<void> {
    const remote = this.#relay;
    if (remote === null) return;
    this.#relay = null;
    await remote.kill();
    await shell(`ip -n ${this.#lab.bridge} link set ${portOf(this.name)} master ${BRIDGE}\n`);
    this.#lab.tellRecorders();
  }

  /** Ids of the processes on this host. */
  processes(): number[] {
    const mine = `net:[${statSync(`/run/netns/${this.netns}`).ino}]`;
    return readdirSync('/proc')
      .filter((name) => {
        if (!/^\d+$/.test(name)) return false;
        try {
          return readlinkSync(`/proc/${name}/ns/net`) === mine;
        } catch {
          // Gone, or a zombie, which has no namespaces.
          return false;
        }
      })
      .map(Number);
  }

  /** Stops all processes where they stand (SIGSTOP). The kernel goes on: it acknowledges what arrives. */
  freeze(): void {
    this.#signalAll('SIGSTOP');
  }

  /** Lets frozen processes go on. */
  thaw(): void {
    for (const pid of this.processes()) signal(pid, 'SIGCONT');
  }

  /** Sends a signal to every process, also to those that one of them forked meanwhile. */
  #signalAll(name: NodeJS.Signals): void {
    const reached = new Set<number>();
    for (;;) {
      const fresh = this.processes().filter((pid) => !reached.has(pid));
      if (fresh.length === 0) return;
      for (const pid of fresh) {
        signal(pid, name);
        reached.add(pid);
      }
    }
  }

  /**
   * Kills all processes and waits until they are gone. The kernel ends their connections then, with FIN or RST; a crash of the whole host is
   * {@link crash}.
   */
  async killAll(): Promise<void> {
    this.#signalAll('SIGKILL');
    while (this.processes().length > 0) await sleep(2);
  }

  /** What a power cut is to all others: the host falls silent, then its processes are gone. It stays cut off; see {@link reboot}. */
  async crash(): Promise<void> {
    await this.cut();
    await this.killAll();
  }

  /**
   * Makes the host anew after a {@link crash}: same name and addresses, no processes, and a kernel that remembers no connection. The cable is
   * whole afterwards, impairments are gone.
   */
  async reboot(): Promise<void> {
    await this.killAll();
    await this.#undelay();
    await shell(`
      ip -n ${this.#lab.bridge} link del ${portOf(this.name)}
      ip netns del ${this.netns}
    `);
    this.make();
    await this.#lab.fault(({ down, loss }) => {
      down.delete(this.name);
      loss.delete(this.name);
    });
    this.#lab.tellRecorders();
  }
}

function signal(pid: number, name: NodeJS.Signals): void {
  try {
    process.kill(pid, name);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
}
