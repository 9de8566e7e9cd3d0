import { awakeLines, keepAwake } from './awake.js';
import { chooseLoad, type LoadChoice, type MeasuredLoad } from './load/run.js';
import { TIDY_STATEMENTS, type WorkloadName, workloadOf } from './load/workloads.js';
import { startBare } from './peers/bare.js';
import { startHaproxy } from './peers/haproxy.js';
import { startOutlive } from './peers/outlive.js';
import { PEERS, type Peer, type PeerName, type PeerOptions, startDirect } from './peers/peer.js';
import { startPgbouncer } from './peers/pgbouncer.js';
import { cpuBetween, foreignCpu } from './proc.js';
import { cell, type Figure, foreignLines, machine, machineLines, print, progress, ratioCell, table } from './report.js';
import { type Scope, withScope } from './scope.js';
import { BENCH_USER, fillTables, runAll, serverSettings, startBenchServer } from './server.js';
import { median, ratioOfRounds, rotated, type Spread } from './statistics.js';

/** Options of the relay scenario. */
export interface RelayOptions {
  readonly clients: readonly number[];
  readonly seconds: number;
  readonly rounds: number;
  readonly workloads: readonly WorkloadName[];
  readonly peers: readonly PeerName[];
  readonly load: LoadChoice;
  readonly scale: number;
  /** Cores are kept from being halted. */
  readonly awake: boolean;
  readonly json: boolean;
}

/** One peer under one workload with so many clients in one round. */
export interface RelayCell {
  readonly round: number;
  readonly workload: WorkloadName;
  readonly clients: number;
  readonly peer: PeerName;
  readonly tps: number;
  /** Milliseconds of whole transactions. */
  readonly p50: number;
  readonly p99: number;
  readonly errors: number;
  /** CPU microseconds for each transaction: of the proxy, of the server, of the load generator. */
  readonly proxyUs: number | undefined;
  readonly serverUs: number | undefined;
  readonly loadUs: number | undefined;
  /** Memory of the proxy in MiB. */
  readonly rssMiB: number | undefined;
  /** Processors that programs outside of the bench kept busy meanwhile. */
  readonly foreign: number | undefined;
}

/** The rounds of one peer under one workload with so many clients, taken together. */
export interface RelaySummary {
  readonly workload: WorkloadName;
  readonly clients: number;
  readonly peer: PeerName;
  readonly tps: number;
  readonly p50: number;
  readonly p99: number;
  readonly errors: number;
  readonly proxyUs: number | undefined;
  readonly serverUs: number | undefined;
  readonly loadUs: number | undefined;
  readonly rssMiB: number | undefined;
  /** This peer divided by PgBouncer, round by round. */
  readonly tpsRatio: Spread | undefined;
  readonly p99Ratio: Spread | undefined;
}

/** The peers that a ratio is taken to: the one that the acceptance figures name. */
const REFERENCE: PeerName = 'pgbouncer';

const WARMUP_CLIENTS = 16;
const WARMUP_MS = 1000;

/** Starts one peer; undefined when it is not installed. */
export function startPeer(scope: Scope, name: PeerName, options: PeerOptions): Promise<Peer | undefined> {
  switch (name) {
    case 'direct':
      return startDirect(scope, options);
    case 'outlive':
      return startOutlive(scope, { ...options, monitorUser: 'postgres' });
    case 'bare':
      return startBare(scope, options);
    case 'pgbouncer':
      return startPgbouncer(scope, options);
    case 'haproxy':
      return startHaproxy(scope, options);
  }
}

/** Starts the peers that are wanted and installed, and says which are not. */
export async function startPeers(
  scope: Scope,
  wanted: readonly PeerName[],
  options: PeerOptions,
): Promise<{ peers: Peer[]; missing: PeerName[] }> {
  const peers: Peer[] = [];
  const missing: PeerName[] = [];
  for (const name of PEERS) {
    if (!wanted.includes(name)) continue;
    const peer = await startPeer(scope, name, options);
    if (peer) peers.push(peer);
    else missing.push(name);
  }
  return { peers, missing };
}

/** The lines that name the peers and their versions. */
export function peerLines(peers: readonly Peer[], missing: readonly PeerName[]): string[] {
  const lines = peers.filter(({ version }) => version !== '').map(({ name, version }) => `${name}: ${version}`);
  if (missing.length > 0) lines.push(`not installed: ${missing.join(', ')}`);
  return lines;
}

function cellOf(
  place: Pick<RelayCell, 'round' | 'workload' | 'clients' | 'peer'>,
  { result, loadPid, before, after, between, resident }: MeasuredLoad,
  proxy: readonly number[],
  server: number | undefined,
): RelayCell {
  const { tps, p50, p99, errors } = result;
  const found = { ...place, tps, p50, p99, errors, rssMiB: resident === undefined ? undefined : resident / 2 ** 20 };
  if (before === undefined || after === undefined || between === 0) {
    return { ...found, proxyUs: undefined, serverUs: undefined, loadUs: undefined, foreign: undefined };
  }
  const us = (pids: readonly number[]) => {
    const seconds = pids.length === 0 ? undefined : cpuBetween(before, after, pids);
    return seconds === undefined ? undefined : (seconds * 1e6) / between;
  };
  return {
    ...found,
    proxyUs: us(proxy),
    serverUs: us(server === undefined ? [] : [server]),
    loadUs: us([loadPid]),
    foreign: foreignCpu(before, after, process.pid),
  };
}

/** Takes the rounds together: medians of what was measured, and ratios taken inside of the rounds. */
export function summarize(cells: readonly RelayCell[]): RelaySummary[] {
  const groups = new Map<string, RelayCell[]>();
  for (const each of cells) {
    const key = `${each.workload} ${each.clients} ${each.peer}`;
    const group = groups.get(key);
    if (group) group.push(each);
    else groups.set(key, [each]);
  }
  const rounds = 1 + Math.max(-1, ...cells.map(({ round }) => round));
  const byRound = (group: readonly RelayCell[], what: 'tps' | 'p99') =>
    Array.from({ length: rounds }, (_, round) => group.find((each) => each.round === round)?.[what]);
  const middle = (group: readonly RelayCell[], what: 'proxyUs' | 'serverUs' | 'loadUs' | 'rssMiB') => {
    const values = group.flatMap((each) => each[what] ?? []);
    return values.length === 0 ? undefined : median(values);
  };
  return [...groups.values()].map((group) => {
    const { workload, clients, peer } = group[0];
    const reference = groups.get(`${workload} ${clients} ${REFERENCE}`) ?? [];
    const ratio = (what: 'tps' | 'p99') =>
      peer === REFERENCE ? undefined : ratioOfRounds(byRound(group, what), byRound(reference, what));
    return {
      workload,
      clients,
      peer,
      tps: median(group.map(({ tps }) => tps)),
      p50: median(group.map(({ p50 }) => p50)),
      p99: median(group.map(({ p99 }) => p99)),
      errors: group.reduce((sum, { errors }) => sum + errors, 0),
      proxyUs: middle(group, 'proxyUs'),
      serverUs: middle(group, 'serverUs'),
      loadUs: middle(group, 'loadUs'),
      rssMiB: middle(group, 'rssMiB'),
      tpsRatio: ratio('tps'),
      p99Ratio: ratio('p99'),
    };
  });
}

/** The acceptance figures P1 and P2. */
export function relayFigures(summaries: readonly RelaySummary[]): Figure[] {
  const of = (workload: WorkloadName, clients: number) =>
    summaries.find((each) => each.peer === 'outlive' && each.workload === workload && each.clients === clients);
  const figures: Figure[] = [];
  const add = (figure: Omit<Figure, 'value'>) => figures.push({ ...figure, value: figure.spread?.median });
  for (const clients of [16, 64]) {
    const found = of('select-prepared', clients);
    const what = `of PgBouncer, select-prepared, ${clients} clients`;
    add({ id: 'P1', what: `tps ${what}`, rule: 'at least', limit: 0.75, spread: found?.tpsRatio });
    add({ id: 'P1', what: `p99 ${what}`, rule: 'at most', limit: 1.5, spread: found?.p99Ratio });
  }
  for (const clients of [16, 64]) {
    const what = `tps of PgBouncer, tpcb, ${clients} clients`;
    add({ id: 'P2', what, rule: 'at least', limit: 0.9, spread: of('tpcb', clients)?.tpsRatio });
  }
  return figures;
}

/** The table of the relay scenario. */
export function relayTable(summaries: readonly RelaySummary[]): string {
  const head = ['workload', 'clients', 'through', 'tps', 'p50 ms', 'p99 ms', 'proxy us', 'server us', 'load us'];
  return table(
    [...head, 'RSS MiB', 'tps / PgBouncer', 'p99 / PgBouncer', 'errors'],
    summaries.map((each) => [
      each.workload,
      String(each.clients),
      each.peer,
      cell(each.tps),
      cell(each.p50),
      cell(each.p99),
      cell(each.proxyUs),
      cell(each.serverUs),
      cell(each.loadUs),
      cell(each.rssMiB),
      ratioCell(each.tpsRatio),
      ratioCell(each.p99Ratio),
      String(each.errors),
    ]),
    3,
  );
}

/** Runs the relay scenario and prints what it found. */
export async function relay(options: RelayOptions): Promise<Figure[]> {
  return await withScope(async (scope) => {
    const on = machine();
    if (options.awake) keepAwake(scope);
    const most = Math.max(...options.clients);
    const load = await chooseLoad(scope, options.load);
    progress(`starting a server with ${options.scale * 100_000} accounts`);
    // Each peer may keep its sessions' server connections for a while after the clients have gone.
    const settings = serverSettings(PEERS.length * most + 50);
    const server = await startBenchServer(scope, { settings });
    await fillTables(server, options.scale);
    const login = { user: BENCH_USER, database: BENCH_USER };
    const { peers, missing } = await startPeers(scope, options.peers, {
      servers: [{ host: server.host, port: server.port }],
      ...login,
      sessions: most,
    });

    const run = ({ host, port, pids }: Peer, workload: WorkloadName, clients: number, measureMs: number) => {
      const what = { clients, workload, scale: options.scale, warmupMs: 300, measureMs };
      return load.make({ host, port, ...login, ...what }, pids);
    };
    // Whatever is compiled, cached or grown at the first use would otherwise be paid by the first cells only.
    progress('warming up');
    for (const workload of options.workloads) {
      for (const peer of peers) await run(peer, workload, Math.min(most, WARMUP_CLIENTS), WARMUP_MS);
    }

    const cells: RelayCell[] = [];
    for (let round = 0; round < options.rounds; round++) {
      let turn = round;
      for (const workload of options.workloads) {
        for (const clients of options.clients) {
          for (const peer of rotated(peers, turn++)) {
            if (workloadOf(workload).writes) await runAll(server, TIDY_STATEMENTS);
            const measured = await run(peer, workload, clients, options.seconds * 1000);
            const found = cellOf({ round, workload, clients, peer: peer.name }, measured, peer.pids, server.pid);
            cells.push(found);
            const { firstError } = measured.result;
            progress(
              `round ${round + 1}/${options.rounds} ${workload} ${clients} ${peer.name}: ${cell(found.tps)} tps` +
                `${firstError === undefined ? '' : `, ${found.errors} errors, the first: ${firstError}`}`,
            );
          }
        }
      }
    }

    const summaries = summarize(sortCells(cells, options));
    const lines = [
      ...machineLines(on),
      ...awakeLines(options.awake),
      `PostgreSQL ${server.version}, scale ${options.scale}, ${settings.shared_buffers} buffers, fsync on, autovacuum off`,
      ...peerLines(peers, missing),
      `load: ${load.name}; ${options.rounds} rounds of ${options.seconds} s; medians over rounds; tpcb is TPC-B-like, prepared`,
      ...foreignLines(cells.map(({ foreign }) => foreign)),
      '',
      relayTable(summaries),
    ];
    const figures = relayFigures(summaries);
    const versions = Object.fromEntries(peers.map(({ name, version }) => [name, version]));
    const setup = { postgres: server.version, settings, versions, missing, load: load.name, options };
    print(lines, figures, options.json ? { scenario: 'relay', machine: on, setup, cells, summaries } : undefined);
    return figures;
  });
}

/** The order of the report, whatever the order of the measurements was. */
function sortCells(cells: readonly RelayCell[], { workloads, clients }: RelayOptions): RelayCell[] {
  const rank = (each: RelayCell) =>
    (workloads.indexOf(each.workload) * clients.length + clients.indexOf(each.clients)) * PEERS.length +
    PEERS.indexOf(each.peer);
  return [...cells].sort((a, b) => rank(a) - rank(b) || a.round - b.round);
}
