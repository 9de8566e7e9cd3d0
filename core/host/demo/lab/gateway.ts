import type { ChildProcess } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { CodedError } from '../../../contract/index.js';
import type { Host } from './lab.js';

/** A line of a gateway's log. */
export interface LogEvent {
  readonly msg?: string;
  readonly level?: string;
  readonly [field: string]: unknown;
}

/** How a gateway is started on a host. */
export interface GatewayOptions {
  readonly env?: Readonly<Record<string, string>>;
  /** The command before `--config FILE`. Default `['run']`. */
  readonly command?: readonly string[];
  /** The log line that says that it is ready. By default the first one that says `listening`. */
  readonly ready?: (event: LogEvent) => boolean;
  /** Gets each line of the log, those that are not JSON as `{ msg: line }`. */
  readonly onEvent?: (event: LogEvent) => void;
  readonly timeoutMs?: number;
}

/** A gateway in a process of its own on a host of the lab. */
export interface GatewayProcess {
  readonly host: Host;
  readonly child: ChildProcess;
  readonly pid: number;
  /** Path of its configuration. */
  readonly file: string;
  /** Whether the process lives. */
  readonly running: boolean;
  /** The last lines that it logged. */
  readonly tail: readonly string[];
  /**
   * Waits for a log line, also one that is among the last lines already. Rejects with OUTLIVE_LAB_FAILED when the gateway ends or the line does not
   * come in time.
   */
  event(matches: (event: LogEvent) => boolean, timeoutMs?: number): Promise<LogEvent>;
  /** The status page, asked on the host. Rejects with OUTLIVE_LAB_FAILED when nothing answers within 3 s, as on a frozen host. */
  // biome-ignore lint/suspicious/noExplicitAny: plain data of the status page
  status(): Promise<any>;
  /** Any path of the admin interface. */
  admin(path: string): Promise<{ status: number; body: string }>;
  /** Ends the process with a signal and waits for its end. */
  kill(name?: NodeJS.Signals): Promise<void>;
  /** Asks it to stop (SIGTERM) and waits for its end. */
  stop(): Promise<void>;
}

const TAIL_LINES = 500;
const ADMIN = '127.0.0.1:9090';
let serial = 0;

/**
 * Starts the compiled `outlive run` on a host and waits until it is ready.
 *
 * @param config as in a configuration file; without `admin` it gets one on the host's own loopback, without `log` one that says `info` as JSON
 * @throws OUTLIVE_LAB_FAILED with the last lines of its log when it ends before it is ready, or is not ready in time
 */
export async function startGatewayIn(
  host: Host,
  config: object,
  { env = {}, command = ['run'], ready, onEvent, timeoutMs = 30_000 }: GatewayOptions = {},
): Promise<GatewayProcess> {
  const file = join(host.lab.dir, `gateway-${host.name}-${++serial}.yaml`);
  const whole = { admin: { listen: ADMIN }, log: { level: 'info', pretty: false }, ...config };
  // JSON is YAML. It may hold keys.
  writeFileSync(file, JSON.stringify(whole), { mode: 0o600 });
  const args = [host.lab.path('core/host/bin.js'), ...command, '--config', file];
  const child = host.spawn(process.execPath, args, {
    cwd: '/',
    env: { ...process.env, NODE_OPTIONS: '', ...env },
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  const tail: string[] = [];
  const watchers = new Set<(event: LogEvent) => void>();
  const lines = createInterface({ input: child.stderr! });
  lines.on('line', (line) => {
    if (tail.push(line) > TAIL_LINES) tail.shift();
    const event = parse(line);
    onEvent?.(event);
    for (const watch of [...watchers]) watch(event);
  });
  const running = () => child.pid !== undefined && child.exitCode === null && child.signalCode === null;
  const failed = (what: string) => {
    const said = tail.slice(-20).join('\n');
    return new CodedError('OUTLIVE_LAB_FAILED', 'system', `the gateway on ${host.name} ${what}; its log:\n${said}`);
  };
  const ended = new Promise<void>((resolve) => {
    child.once('error', () => resolve());
    // Not 'exit': its last words are still in the pipe then.
    child.once('close', () => resolve());
  });

  const event: GatewayProcess['event'] = async (matches, limitMs = timeoutMs) => {
    const already = tail.map(parse).find(matches);
    if (already !== undefined) return already;
    return await new Promise<LogEvent>((resolve, reject) => {
      const settle = (act: () => void) => {
        clearTimeout(timer);
        watchers.delete(watch);
        act();
      };
      const watch = (each: LogEvent) => {
        if (matches(each)) settle(() => resolve(each));
      };
      const timer = setTimeout(
        () => settle(() => reject(failed(`did not say what was waited for within ${limitMs} ms`))),
        limitMs,
      );
      watchers.add(watch);
      void ended.then(() => settle(() => reject(failed(`ended (${child.signalCode ?? child.exitCode})`))));
    });
  };

  const { admin } = whole as { admin: { listen: string } };
  const ask = (path: string) => host.get(`http://${admin.listen}${path}`);
  const kill = async (name: NodeJS.Signals = 'SIGKILL') => {
    child.kill(name);
    await ended;
  };
  const gateway: GatewayProcess = {
    host,
    child,
    pid: child.pid ?? 0,
    file,
    get running() {
      return running();
    },
    tail,
    event,
    admin: ask,
    async status() {
      return JSON.parse((await ask('/status')).body);
    },
    kill,
    stop: () => kill('SIGTERM'),
  };
  try {
    await event(ready ?? (({ msg }) => msg === 'listening'));
  } catch (error) {
    await kill();
    throw error;
  }
  return gateway;
}

function parse(line: string): LogEvent {
  try {
    return JSON.parse(line) as LogEvent;
  } catch {
    return { msg: line };
  }
}
