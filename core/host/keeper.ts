import { CodedError, type Log } from '../contract/index.js';
import {
  type HoldingLimits,
  KeeperServer,
  type OwnProcess,
  onSignals,
  type ProcessEnd,
  startProcess,
} from '../io/keeper/index.js';

export { requestUpgrade } from '../io/keeper/index.js';

/** The environment variable that tells an engine the path of its keeper's socket. */
export const KEEPER_VARIABLE = 'OUTLIVE_KEEPER';

export interface KeeperOptions {
  /** Of the unix socket, in a directory of mode 0700. */
  readonly socketPath: string;
  /** Starts an engine: program and arguments. */
  readonly command: readonly string[];
  readonly log: Log;
  readonly limits?: HoldingLimits;
  readonly timing?: Partial<KeeperTiming>;
  /** Calls back for each signal that asks to stop; the function that it returns ends that. By default SIGTERM and SIGINT. */
  readonly signals?: (callback: (signal: NodeJS.Signals) => void) => () => void;
}

/** All in ms. */
export interface KeeperTiming {
  /** Wait before an engine that crashed is started again: doubled with each crash in a row, up to the most. */
  readonly backoffMin: number;
  readonly backoffMax: number;
  /** An engine that lived so long after it had taken everything over is sound: crashes before it do not count any more. */
  readonly sound: number;
  /** How long clients are kept waiting while no engine takes over. */
  readonly hold: number;
  /** How long an engine may take to hand over, and then to end, when it is replaced. */
  readonly retire: number;
  /** How long the new engine of an upgrade may take to start. */
  readonly start: number;
}

const TIMING: KeeperTiming = {
  backoffMin: 50,
  backoffMax: 2000,
  sound: 3000,
  hold: 30_000,
  retire: 10_000,
  start: 60_000,
};

/** Engines in a row that took everything over and crashed soon after: what they took may be the reason. */
const CRASHES = 5;

/** An engine in its process. */
interface Engine {
  readonly process: OwnProcess;
  /** It has handed over, and its end means nothing. */
  retired: boolean;
}

/** An upgrade that is under way. */
interface Upgrade {
  readonly engine: Engine;
  done(): void;
  failed(error: CodedError): void;
}

/**
 * Keeps the sockets of an engine, which it starts, and starts again whenever it crashes; so that clients of a gateway that crashes or is
 * upgraded stay connected. It ends when the engine ends with status 0, or could not start even once; signals are passed on to the engine,
 * which is not started again then.
 *
 * Two things keep clients from waiting for ever: when no engine takes over in time, and when five in a row crash soon after they did (what
 * a client sent may be the reason), the client connections are closed. Listening sockets stay.
 *
 * @returns the exit status: the engine's
 * @throws OUTLIVE_KEEPER_UNAVAILABLE, OUTLIVE_KEEPER_PATH, OUTLIVE_KEEPER_RUNNING
 */
export async function runKeeper(options: KeeperOptions): Promise<number> {
  const supervisor = new Supervisor(options);
  return await supervisor.run();
}

class Supervisor {
  readonly #options: KeeperOptions;
  readonly #timing: KeeperTiming;
  readonly #engines = new Set<Engine>();
  /** The one whose end matters; the new one of an upgrade becomes it. */
  #current: Engine | null = null;
  #upgrade: Upgrade | null = null;
  #server!: KeeperServer;
  #stopping = false;
  #claimedAt: number | null = null;
  #everClaimed = false;
  /** Crashes in a row, and how many of them came soon after everything was taken over. */
  #crashes = 0;
  #shortLives = 0;
  #restart: NodeJS.Timeout | null = null;
  #hold: NodeJS.Timeout | null = null;
  #finish: (status: number) => void = () => {};

  constructor(options: KeeperOptions) {
    this.#options = options;
    this.#timing = { ...TIMING, ...options.timing };
  }

  async run(): Promise<number> {
    const { socketPath, log, limits, signals = onSignals } = this.#options;
    this.#server = await KeeperServer.listen({
      path: socketPath,
      log,
      limits,
      retireMs: this.#timing.retire,
      onUpgrade: () => this.#replace(),
      onClaimed: () => this.#claimed(),
      onRetired: () => {
        if (this.#current !== null) this.#current.retired = true;
      },
      onGone: () => this.#holdClients(),
    });
    const ended = new Promise<number>((resolve) => (this.#finish = resolve));
    const ignore = signals((signal) => this.#stop(signal));
    try {
      this.#current = this.#start();
      return await ended;
    } finally {
      ignore();
      if (this.#restart !== null) clearTimeout(this.#restart);
      if (this.#hold !== null) clearTimeout(this.#hold);
      await this.#server.close();
    }
  }

  #start(): Engine {
    const { command, socketPath, log } = this.#options;
    const engine: Engine = { process: startProcess(command, { [KEEPER_VARIABLE]: socketPath }), retired: false };
    this.#engines.add(engine);
    log.info({ pid: engine.process.pid }, 'the engine is started');
    void engine.process.ended.then((end) => this.#ended(engine, end));
    return engine;
  }

  #stop(signal: NodeJS.Signals): void {
    this.#options.log.info({ signal }, 'the keeper stops with its engine');
    this.#stopping = true;
    for (const { process } of this.#engines) process.signal(signal);
    if (this.#engines.size === 0) this.#finish(0);
  }

  #ended(engine: Engine, { code, signal, error }: ProcessEnd): void {
    const { log } = this.#options;
    const { pid } = engine.process;
    this.#engines.delete(engine);
    if (this.#upgrade?.engine === engine) {
      const how = error?.message ?? (signal === null ? `status ${code}` : signal);
      this.#upgrade.failed(refused(`the new engine ended before it had taken over (${how})`));
    }
    if (this.#stopping) {
      if (this.#engines.size === 0) this.#finish(code ?? 1);
      return;
    }
    const other = [...this.#engines].find(({ retired }) => !retired);
    if (other !== undefined) {
      // The old engine of an upgrade ends, or the new one failed and the old one goes on.
      log.info({ pid, code, signal }, 'an engine has ended, another one is running');
      this.#current = other;
      return;
    }
    // An engine that had handed over to one that is dead by now.
    if (this.#restart !== null) return;
    if (code === 0 && !engine.retired) {
      log.info({ pid }, 'the engine has ended');
      this.#finish(0);
      return;
    }
    const hopeless = error !== null || code !== null;
    if (hopeless && !this.#everClaimed) {
      log.error({ pid, code, err: error ?? undefined }, 'the engine could not be started');
      this.#finish(code ?? 1);
      return;
    }
    this.#crashed(pid, code, signal);
  }

  #crashed(pid: number, code: number | null, signal: NodeJS.Signals | null): void {
    const { log } = this.#options;
    const lived = this.#claimedAt === null ? null : performance.now() - this.#claimedAt;
    this.#claimedAt = null;
    if (lived !== null && lived >= this.#timing.sound) this.#crashes = this.#shortLives = 0;
    else if (lived !== null) this.#shortLives++;
    const delay = Math.min(this.#timing.backoffMin * 2 ** this.#crashes, this.#timing.backoffMax);
    this.#crashes++;
    log.error({ pid, code, signal, delay, kept: this.#server.count }, 'the engine crashed and is started again');
    if (this.#shortLives >= CRASHES) {
      this.#shortLives = 0;
      this.#release('engines crash soon after they took over');
    }
    this.#restart = setTimeout(() => {
      this.#restart = null;
      this.#current = this.#start();
    }, delay);
  }

  #claimed(): void {
    this.#everClaimed = true;
    this.#claimedAt = performance.now();
    if (this.#hold !== null) clearTimeout(this.#hold);
    this.#hold = null;
    this.#options.log.info({ kept: this.#server.count }, 'an engine has taken over');
    this.#upgrade?.done();
  }

  #holdClients(): void {
    this.#hold ??= setTimeout(() => {
      this.#hold = null;
      this.#release('no engine takes over');
    }, this.#timing.hold);
  }

  #release(why: string): void {
    const clients = this.#server.releaseClients();
    if (clients > 0) this.#options.log.error({ clients, why }, 'client connections are closed');
  }

  /** Starts a second engine, and waits until it has taken over from the first. Rejects with OUTLIVE_KEEPER_REFUSED. */
  async #replace(): Promise<void> {
    const old = this.#current;
    if (this.#stopping) throw refused('the keeper is being stopped');
    if (this.#upgrade !== null) throw refused('an upgrade is under way');
    if (old === null || !this.#engines.has(old)) throw refused('no engine is running; one is about to be started');
    const engine = this.#start();
    let late: NodeJS.Timeout | undefined;
    this.#server.replaceable = true;
    try {
      await new Promise<void>((resolve, reject) => {
        this.#upgrade = { engine, done: resolve, failed: reject };
        late = setTimeout(() => {
          engine.process.signal('SIGKILL');
          reject(refused('the new engine did not take over in time'));
        }, this.#timing.start);
      });
      this.#current = engine;
      old.retired = true;
      const killer = setTimeout(() => old.process.signal('SIGKILL'), this.#timing.retire);
      void old.process.ended.then(() => clearTimeout(killer));
    } finally {
      clearTimeout(late);
      this.#server.replaceable = false;
      this.#upgrade = null;
    }
  }
}

function refused(why: string): CodedError {
  return new CodedError('OUTLIVE_KEEPER_REFUSED', 'system', why);
}
