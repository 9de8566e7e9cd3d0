import { tcpRepairUnavailable } from '../core/io/tcp/index.js';
import { chooseLoad, type LoadChoice } from './load/run.js';
import { TIDY_STATEMENTS, type WorkloadName, workloadOf } from './load/workloads.js';
import { startOutlive } from './peers/outlive.js';
import { type OutlivePair, startOutlivePair } from './peers/outlive-pair.js';
import { cpuBetween, foreignCpu } from './proc.js';
import { cell, type Figure, foreignLines, machine, machineLines, print, progress, ratioCell, table } from './report.js';
import { withScope } from './scope.js';
import { BENCH_USER, fillTables, runAll, serverSettings, startBenchServer } from './server.js';
import { median, ratioOfRounds, rotated, type Spread, spreadOf } from './statistics.js';

/** Options of the pair scenario. */
export interface PairBenchOptions {
  readonly clients: readonly number[];
  readonly seconds: number;
  readonly rounds: number;
  readonly workloads: readonly WorkloadName[];
  readonly load: LoadChoice;
  readonly scale: number;
  readonly json: boolean;
}

/**
 * `alone`: a gateway without a peer. `local`: its peer follows, answers do not wait for it. `pair`: they do, so that no client knows what the
 * peer does not.
 */
export const VARIANTS = ['alone', 'local', 'pair'] as const;
export type Variant = (typeof VARIANTS)[number];

/** One variant under one workload with so many clients in one round. */
export interface PairCell {
  readonly round: number;
  readonly workload: WorkloadName;
  readonly clients: number;
  readonly variant: Variant;
  readonly tps: number;
  /** Milliseconds of whole transactions. */
  readonly p50: number;
  readonly p99: number;
  readonly errors: number;
  /** CPU microseconds for each transaction: of the gateway that serves, and of the one that follows. */
  readonly servingUs: number | undefined;
  readonly followingUs: number | undefined;
  /** Processors that programs outside of the bench kept busy meanwhile. */
  readonly foreign: number | undefined;
}

/** The rounds of one variant under one workload with so many clients, taken together. */
export interface PairSummary {
  readonly workload: WorkloadName;
  readonly clients: number;
  readonly variant: Variant;
  readonly tps: number;
  readonly p50: number;
  readonly p99: number;
  readonly errors: number;
  readonly servingUs: number | undefined;
  readonly followingUs: number | undefined;
  /** This variant against `local`, round by round: tps divided, p50 subtracted (ms). */
  readonly tpsRatio: Spread | undefined;
  readonly p50More: Spread | undefined;
}

const WARMUP_CLIENTS = 16;
const WARMUP_MS = 2000;

/** Takes the rounds together: medians of what was measured, and comparisons inside of the rounds. */
export function summarizePair(cells: readonly PairCell[]): PairSummary[] {
  const rounds = 1 + Math.max(-1, ...cells.map(({ round }) => round));
  const keys = new Map(cells.map((each) => [`${each.workload} ${each.clients} ${each.variant}`, each]));
  return [...keys.values()].map(({ workload, clients, variant }) => {
    const of = (wanted: Variant) =>
      cells.filter((each) => each.workload === workload && each.clients === clients && each.variant === wanted);
    const byRound = (wanted: Variant) =>
      Array.from({ length: rounds }, (_, round) => of(wanted).find((each) => each.round === round));
    const own = of(variant);
    const [mine, local] = [byRound(variant), byRound('local')];
    const middle = (what: 'servingUs' | 'followingUs') => spreadOf(own.map((each) => each[what]))?.median;
    return {
      workload,
      clients,
      variant,
      tps: median(own.map(({ tps }) => tps)),
      p50: median(own.map(({ p50 }) => p50)),
      p99: median(own.map(({ p99 }) => p99)),
      errors: own.reduce((sum, { errors }) => sum + errors, 0),
      servingUs: middle('servingUs'),
      followingUs: middle('followingUs'),
      tpsRatio:
        variant === 'local'
          ? undefined
          : ratioOfRounds(
              mine.map((each) => each?.tps),
              local.map((each) => each?.tps),
            ),
      p50More:
        variant === 'local'
          ? undefined
          : spreadOf(
              mine.map((each, round) => {
                const other = local[round];
                return each === undefined || other === undefined ? undefined : each.p50 - other.p50;
              }),
            ),
    };
  });
}

/** The acceptance figure P1 of the pair. */
export function pairFigures(summaries: readonly PairSummary[], workloads: readonly WorkloadName[]): Figure[] {
  const figures: Figure[] = [];
  for (const workload of workloads) {
    for (const clients of [16, 64]) {
      const found = summaries.find(
        (each) => each.variant === 'pair' && each.workload === workload && each.clients === clients,
      );
      const what = `of durability local, ${workload}, ${clients} clients`;
      const [tps, p50] = [found?.tpsRatio, found?.p50More];
      figures.push(
        { id: 'P1', what: `tps ${what}`, rule: 'at least', limit: 0.85, spread: tps, value: tps?.median },
        {
          id: 'P1',
          what: `p50 above that ${what}`,
          rule: 'at most',
          limit: 0.15,
          unit: 'ms',
          spread: p50,
          value: p50?.median,
        },
      );
    }
  }
  return figures;
}

/** Runs the pair scenario and prints what it found. */
export async function pair(options: PairBenchOptions): Promise<Figure[]> {
  const unavailable = tcpRepairUnavailable();
  // Sessions whose connections cannot be told of are not followed, and nothing would be measured.
  if (unavailable !== null)
    throw new Error(`connections cannot be moved here, so no session is followed: ${unavailable}`);
  return await withScope(async (scope) => {
    const on = machine();
    const { rounds, seconds, workloads, scale } = options;
    const most = Math.max(...options.clients);
    const load = await chooseLoad(scope, options.load);
    progress(`starting a server with ${scale * 100_000} accounts`);
    const settings = serverSettings(VARIANTS.length * most + 50);
    const server = await startBenchServer(scope, { settings });
    await fillTables(server, scale);
    const login = { user: BENCH_USER, database: BENCH_USER };
    const servers = [{ host: server.host, port: server.port }];
    const start = { servers, ...login, sessions: most, monitorUser: 'postgres' };
    const alone = await startOutlive(scope, start);
    const gateways: Record<Variant, Pick<OutlivePair, 'host' | 'port' | 'server'> & { follower?: number }> = {
      alone: { ...alone, server: alone.pids[0] },
      local: await startOutlivePair(scope, start, 'local'),
      pair: await startOutlivePair(scope, start, 'pair'),
    };

    const run = (variant: Variant, workload: WorkloadName, clients: number, measureMs: number) => {
      const { host, port, server: pid } = gateways[variant];
      return load.make({ host, port, ...login, clients, workload, scale, warmupMs: 300, measureMs }, [pid]);
    };
    progress('warming up');
    for (const workload of workloads) {
      for (const variant of VARIANTS) await run(variant, workload, Math.min(most, WARMUP_CLIENTS), WARMUP_MS);
    }

    const cells: PairCell[] = [];
    for (let round = 0; round < rounds; round++) {
      let turn = round;
      for (const workload of workloads) {
        for (const clients of options.clients) {
          for (const variant of rotated(VARIANTS, turn++)) {
            if (workloadOf(workload).writes) await runAll(server, TIDY_STATEMENTS);
            const { result, before, after, between } = await run(variant, workload, clients, seconds * 1000);
            const us = (pid: number | undefined) => {
              if (pid === undefined || before === undefined || after === undefined || between === 0) return undefined;
              const cpu = cpuBetween(before, after, [pid]);
              return cpu === undefined ? undefined : (cpu * 1e6) / between;
            };
            const { tps, p50, p99, errors, firstError } = result;
            const { server: serving, follower } = gateways[variant];
            const foreign = before && after ? foreignCpu(before, after, process.pid) : undefined;
            const cpu = { servingUs: us(serving), followingUs: us(follower), foreign };
            cells.push({ round, workload, clients, variant, tps, p50, p99, errors, ...cpu });
            progress(
              `round ${round + 1}/${rounds} ${workload} ${clients} ${variant}: ${cell(tps)} tps` +
                `${firstError === undefined ? '' : `, ${errors} errors, the first: ${firstError}`}`,
            );
          }
        }
      }
    }

    const rank = ({ workload, clients, variant }: PairSummary) =>
      (workloads.indexOf(workload) * options.clients.length + options.clients.indexOf(clients)) * VARIANTS.length +
      VARIANTS.indexOf(variant);
    const summaries = summarizePair(cells).sort((a, b) => rank(a) - rank(b));
    const head = ['workload', 'clients', 'durability', 'tps', 'p50 ms', 'p99 ms', 'serving us', 'following us'];
    const lines = [
      ...machineLines(on),
      `PostgreSQL ${server.version}, scale ${scale}, ${settings.shared_buffers} buffers, fsync on, autovacuum off; ${alone.version}`,
      `load: ${load.name}; ${rounds} rounds of ${seconds} s; medians over rounds; both gateways on this machine`,
      ...foreignLines(cells.map(({ foreign }) => foreign)),
      '',
      table(
        [...head, 'tps / local', 'p50 - local', 'errors'],
        summaries.map((each) => [
          each.workload,
          String(each.clients),
          each.variant,
          cell(each.tps),
          cell(each.p50),
          cell(each.p99),
          cell(each.servingUs),
          cell(each.followingUs),
          ratioCell(each.tpsRatio),
          ratioCell(each.p50More),
          String(each.errors),
        ]),
        3,
      ),
    ];
    const figures = pairFigures(summaries, workloads);
    const setup = { postgres: server.version, settings, load: load.name, options };
    print(lines, figures, options.json ? { scenario: 'pair', machine: on, setup, cells, summaries } : undefined);
    return figures;
  });
}
