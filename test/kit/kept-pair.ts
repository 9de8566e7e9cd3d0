import { type GatewayProcess, type LogEvent, startGatewayIn } from '../../core/host/demo/lab/gateway.js';
import type { PairLab } from './pair-lab.js';
import { eventually } from './servers.js';
import { GatewayPair, type GatewayPairOptions } from './takeover.js';

/** A pair of gateways under keepers. */
export class KeptPair extends GatewayPair {
  /** Pids of the engines. */
  readonly engines = { a: 0, b: 0 };
  readonly log: { a: LogEvent[]; b: LogEvent[] } = { a: [], b: [] };
  readonly #place: PairLab;

  constructor(place: PairLab, options: GatewayPairOptions) {
    super(place, options);
    this.#place = place;
  }

  override async start(name: 'a' | 'b'): Promise<GatewayProcess> {
    const onEvent = (event: LogEvent) => {
      if (process.env.LOG) process.stderr.write(`${name} ${JSON.stringify(event)}\n`);
      this.log[name].push(event);
      if (event.msg === 'the engine is started') this.engines[name] = event.pid as number;
    };
    const config = { ...this.config(name), keeper: { socket: `./keeper-${name}/socket` } };
    const started = await startGatewayIn(this.host(name), config, { command: ['keeper'], onEvent });
    this.#place.atEnd(() => this.killBoth(name, started));
    return (this[name] = started);
  }

  /** Kills a keeper and its engine. */
  async killBoth(name: 'a' | 'b', keeper = this[name]): Promise<void> {
    // The keeper first: it would start another engine. Its log ends with the engine's.
    const killed = keeper.kill();
    killProcess(this.engines[name]);
    await killed;
  }

  /** The next line of a log that is like this. */
  async next(name: 'a' | 'b', like: (event: LogEvent) => boolean): Promise<LogEvent> {
    const log = this.log[name];
    const from = log.length;
    return await eventually(
      () => {
        const event = log.slice(from).find(like);
        if (event === undefined) throw new Error('it did not come');
        return event;
      },
      { timeoutMs: 30_000, intervalMs: 2 },
    );
  }

  /** Resolves with the next line that says that one of these gateways serves the address. */
  async serves(...names: ('a' | 'b')[]): Promise<{ connections: number; lost: number }> {
    const line = await Promise.any(names.map((name) => this.next(name, ({ msg }) => msg === 'serving an address')));
    return line as unknown as { connections: number; lost: number };
  }
}

/** SIGKILL, also for one that is gone. */
export function killProcess(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch {
    // It is gone.
  }
}
