import { setTimeout as sleep } from 'node:timers/promises';
import { type EmbeddedPair, type EmbeddedServer, startPair } from '../plugins/embedded-postgres/index.js';
import { LoadChild } from './load/channel.js';
import { sharedNow, UNIT_TABLES, type UnitOutcome, unitStatements } from './load/units.js';
import { startOutlive } from './peers/outlive.js';
import type { Peer } from './peers/peer.js';
import { cpuBetween, foreignCpu, sampleCpu } from './proc.js';
import { cell, type Figure, foreignLines, machine, machineLines, print, progress, ratioCell, table } from './report.js';
import { Scope, withScope } from './scope.js';
import { BENCH_USER, prepareDatabase, runAll, serverSettings } from './server.js';
import { ascending, median, percentile, ratioOfRounds, rotated, type Spread, spreadOf } from './statistics.js';

/** Options of the failover scenario. */
export interface FailoverOptions {
  readonly clients: number;
  readonly statements: number;
  /** Warm spares in the variant that has some; 0 leaves that variant out. */
  readonly spares: number;
  readonly rounds: number;
  /** Whether the gateway takes part; otherwise only the clients that help themselves. */
  readonly outlive: boolean;
  readonly json: boolean;
}

/** Who carries the transactions over. */
export type Variant = 'spares' | 'no spares' | UnaidedVariant;

/** Without a gateway: the clients themselves. */
export type UnaidedVariant = (typeof UNAIDED)[number];

const UNAIDED = ['own spares', 'reconnect'] as const;

const isUnaided = (variant: Variant): variant is UnaidedVariant => (UNAIDED as readonly Variant[]).includes(variant);

/** One failover. Times are milliseconds; waits run from the moment at which the new primary took writes. */
export interface FailoverRound {
  readonly round: number;
  readonly variant: Variant;
  readonly p50: number;
  readonly p90: number;
  readonly p99: number;
  readonly max: number;
  /** Clients that got an error, a wrong answer or none, or whose commit failed. */
  readonly errors: number;
  readonly firstError: string | undefined;
  /** Clients that were told of a commit whose row is not there. */
  readonly missing: number;
  /** Sessions of the bench's user on the standby before the failover. */
  readonly spares: number;
  readonly killToWritableMs: number;
  /** CPU time from the failover until all clients had committed. */
  readonly gatewayCpuMs: number | undefined;
  readonly clientsCpuMs: number;
  /** Processors that programs outside of the bench kept busy meanwhile. */
  readonly foreign: number | undefined;
}

const TIMEOUT_MS = 30_000;

/** How long the frozen primary holds the statements that are to be in flight when it dies. */
const IN_FLIGHT_MS = 5;

/**
 * The percentiles of the waits. A client without a right answer counts as one that waits for ever: errors must not
 * make the figures look better.
 */
export function waitsOf(outcomes: readonly UnitOutcome[], writableAt: number) {
  const waits = ascending(
    outcomes.map(({ answeredAt, error }) =>
      answeredAt === undefined || error !== undefined ? Number.POSITIVE_INFINITY : Math.max(0, answeredAt - writableAt),
    ),
  );
  const [p50, p90, p99, max] = [50, 90, 99, 100].map((p) => percentile(waits, p));
  return { p50, p90, p99, max };
}

async function waitForSpares(standby: EmbeddedServer, wanted: number): Promise<number> {
  const client = await standby.connect();
  try {
    const deadline = Date.now() + 15_000;
    for (;;) {
      const sql = 'SELECT count(*)::int AS count FROM pg_stat_activity WHERE usename = $1';
      const { count } = (await client.query<{ count: number }>(sql, [BENCH_USER])).rows[0];
      if (count >= wanted || Date.now() > deadline) return count;
      await sleep(50);
    }
  } finally {
    await client.end();
  }
}

/** One failover; everything but the pair is started for it and ended after it. */
async function failOver(
  scope: Scope,
  pair: EmbeddedPair,
  variant: Variant,
  round: number,
  options: FailoverOptions,
): Promise<FailoverRound> {
  const { clients, statements } = options;
  const { primary, standby } = pair;
  const login = { user: BENCH_USER, database: BENCH_USER };
  const addressOf = ({ host, port }: EmbeddedServer) => ({ host, port });
  await runAll(primary, ['TRUNCATE outlive_bench_rows, outlive_bench_log', 'CHECKPOINT']);

  const wantedSpares = variant === 'spares' ? options.spares : 0;
  let gateway: Peer | undefined;
  if (!isUnaided(variant)) {
    gateway = await startOutlive(scope, {
      ...{ servers: [addressOf(primary), addressOf(standby)], ...login, sessions: clients },
      ...{ spares: wantedSpares, monitorUser: 'postgres' },
    });
  }
  const units = new LoadChild(scope);
  const manner = isUnaided(variant) ? variant : 'gateway';
  const { host, port } = gateway ?? primary;
  const own = variant === 'own spares' ? { standby: addressOf(standby) } : {};
  const what = { ...login, clients, statements, timeoutMs: TIMEOUT_MS, manner, ...own } as const;
  units.send({ order: 'units', options: { host, port, ...what } });
  await units.next('open');
  const spares = await waitForSpares(standby, wantedSpares);
  if (spares < wantedSpares) progress(`only ${spares} of ${wantedSpares} spares are there`);

  const watcher = new LoadChild(scope);
  watcher.send({
    order: 'watch',
    login: { ...addressOf(standby), user: standby.superuser, database: 'postgres' },
  });
  await watcher.next('watching');

  const before = sampleCpu();
  // Frozen, the primary takes statements and answers none: those of every other client are in flight when it dies.
  await primary.freeze();
  units.send({ order: 'send', part: 0 });
  await units.next('sent');
  await sleep(IN_FLIGHT_MS);
  const killedAt = sharedNow();
  const promoted = pair.failover();
  // It is waited for later; until then the watcher may be the first to fail.
  promoted.catch(() => {});
  units.send({ order: 'send', part: 1 });
  const { at: writableAt } = await watcher.next<{ at: number }>('writable');
  units.send({ order: 'promoted', address: addressOf(standby) });
  await promoted;
  units.send({ order: 'finish' });
  const { outcomes, cpuMs } = await units.next<{ outcomes: UnitOutcome[]; cpuMs: number }>('outcomes');
  const after = sampleCpu();
  const gatewayCpu = gateway && before && after ? cpuBetween(before, after, gateway.pids) : undefined;

  const counter = unitStatements(0, statements).counter + 1;
  const sql = 'SELECT id FROM outlive_bench_rows WHERE n = $1';
  const { rows } = await standby.query<{ id: number }>(sql, [counter], BENCH_USER);
  const there = new Set(rows.map(({ id }) => id));
  const failures = outcomes.flatMap(({ error }) => error ?? []);
  return {
    round,
    variant,
    ...waitsOf(outcomes, writableAt),
    errors: failures.length,
    firstError: failures[0],
    missing: outcomes.filter(({ error }, id) => error === undefined && !there.has(id)).length,
    spares,
    killToWritableMs: writableAt - killedAt,
    gatewayCpuMs: gatewayCpu === undefined ? undefined : gatewayCpu * 1000,
    clientsCpuMs: cpuMs,
    foreign: before && after ? foreignCpu(before, after, process.pid) : undefined,
  };
}

/** How much longer p99 of another variant is than the one with spares, round by round. */
export function sparesRatio(rounds: readonly FailoverRound[], other: Variant): Spread | undefined {
  const count = 1 + Math.max(-1, ...rounds.map(({ round }) => round));
  const of = (variant: Variant) =>
    Array.from({ length: count }, (_, round) => rounds.find((r) => r.round === round && r.variant === variant)?.p99);
  return ratioOfRounds(of(other), of('spares'));
}

/** The acceptance figure P4. */
export function failoverFigures(rounds: readonly FailoverRound[]): Figure[] {
  const withSpares = rounds.filter(({ variant }) => variant === 'spares');
  const p99 = withSpares.map((each) => each.p99);
  const through = rounds.filter(({ variant }) => !isUnaided(variant));
  const lost = through.reduce((sum, { errors, missing }) => sum + errors + missing, 0);
  return [
    {
      id: 'P4',
      what: 'p99 wait after the promotion, with spares',
      value: p99.length === 0 ? undefined : median(p99),
      rule: 'at most',
      limit: 150,
      unit: 'ms',
      spread: spreadOf(p99),
    },
    {
      id: 'P4',
      what: 'clients with an error or a lost commit',
      value: through.length === 0 ? undefined : lost,
      rule: 'at most',
      limit: 0,
    },
  ];
}

/** The table of the failover scenario: medians over rounds. */
export function failoverTable(rounds: readonly FailoverRound[], variants: readonly Variant[]): string {
  const head = ['variant', 'p50 ms', 'p90 ms', 'p99 ms', 'max ms', 'p99 / with spares', 'kill to writable ms'];
  const rows = variants.map((variant) => {
    const group = rounds.filter((each) => each.variant === variant);
    const middle = (pick: (each: FailoverRound) => number | undefined) => {
      const values = group.flatMap((each) => pick(each) ?? []);
      return cell(values.length === 0 ? undefined : median(values));
    };
    const sum = (pick: (each: FailoverRound) => number) => String(group.reduce((total, each) => total + pick(each), 0));
    return [
      variant,
      middle((each) => each.p50),
      middle((each) => each.p90),
      middle((each) => each.p99),
      cell(Math.max(...group.map((each) => each.max))),
      variant === 'spares' ? '1' : ratioCell(sparesRatio(rounds, variant)),
      middle((each) => each.killToWritableMs),
      middle((each) => each.gatewayCpuMs),
      middle((each) => each.clientsCpuMs),
      sum((each) => each.errors),
      sum((each) => each.missing),
    ];
  });
  return table([...head, 'gateway CPU ms', 'clients CPU ms', 'errors', 'missing'], rows, 1);
}

/** Runs the failover scenario and prints what it found. */
export async function failover(options: FailoverOptions): Promise<Figure[]> {
  return await withScope(async (scope) => {
    const on = machine();
    const variants: Variant[] = [];
    if (options.outlive && options.spares > 0) variants.push('spares');
    if (options.outlive) variants.push('no spares');
    variants.push(...UNAIDED);
    // Beside the clients' sessions: spares, logins under way, and those of the monitor and of this program.
    const settings = serverSettings(3 * options.clients + options.spares + 60);
    const pair = await startPair({ settings });
    scope.defer(() => pair.stop());
    await prepareDatabase(pair.primary);
    await runAll(pair.primary, [`SET ROLE ${BENCH_USER}`, ...UNIT_TABLES]);

    const rounds: FailoverRound[] = [];
    for (let round = 0; round < options.rounds; round++) {
      for (const variant of rotated(variants, round)) {
        // The server that died in the failover before comes back as the standby of the one that took over.
        if (rounds.length > 0) await pair.rebuild();
        const own = new Scope();
        scope.defer(() => own.close());
        const found = await failOver(own, pair, variant, round, options);
        await own.close();
        rounds.push(found);
        progress(
          `round ${round + 1}/${options.rounds} ${variant}: p50 ${cell(found.p50)} p99 ${cell(found.p99)} ms` +
            `${found.firstError === undefined ? '' : `, ${found.errors} errors, the first: ${found.firstError}`}`,
        );
      }
    }

    const { clients, statements, spares } = options;
    const lines = [
      ...machineLines(on),
      `PostgreSQL ${pair.primary.version}, synchronous pair; ${clients} clients, ${statements} statements in each open transaction`,
      `waits run from the moment at which the new primary takes writes; ${options.rounds} rounds, medians (max: the greatest)`,
      ...(options.outlive ? [`spares: ${spares} warm sessions on the standby`] : []),
      'own spares: no gateway; clients have sessions on the standby, and send their whole transaction at once when told of the promotion',
      'reconnect: no gateway; clients connect and repeat their transaction themselves, told at once where the new primary is',
      ...foreignLines(rounds.map(({ foreign }) => foreign)),
      '',
      failoverTable(rounds, variants),
    ];
    const figures = failoverFigures(rounds);
    print(lines, figures, options.json ? { scenario: 'failover', machine: on, options, rounds } : undefined);
    return figures;
  });
}
