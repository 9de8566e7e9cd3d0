import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { TdsServers } from '../core/host/demo/tds-servers.js';
import { freePorts } from '../plugins/embedded-postgres/index.js';
import { awakeLines, keepAwake } from './awake.js';
import { chooseLoad, type MeasuredLoad } from './load/run.js';
import { runTdsLoad, TDS_ACCOUNTS, type TdsPlace } from './load/tds-session.js';
import { programPath, startOutlive } from './peers/outlive.js';
import { startDirect } from './peers/peer.js';
import { cpuBetween, foreignCpu, sampleCpu } from './proc.js';
import type { RelayOptions } from './relay.js';
import { cell, type Figure, foreignLines, machine, machineLines, print, progress, ratioCell, table } from './report.js';
import { Program, type Scope, withScope } from './scope.js';
import { BENCH_USER, fillTables, serverSettings, startBenchServer } from './server.js';
import { median, ratioOfRounds, rotated, type Spread } from './statistics.js';

type Protocol = 'tds' | 'postgres';

/** One way to one server under one workload with so many clients in one round. */
export interface RelayTdsCell {
  readonly protocol: Protocol;
  readonly prepared: boolean;
  readonly clients: number;
  readonly through: 'direct' | 'outlive';
  readonly round: number;
  readonly tps: number;
  readonly p50: number;
  readonly p99: number;
  readonly errors: number;
  /** CPU microseconds of the gateway for each request. */
  readonly proxyUs: number | undefined;
  readonly foreign: number | undefined;
}

/** The rounds of a workload with so many clients, through the gateway beside direct. */
export interface RelayTdsSummary {
  readonly protocol: Protocol;
  readonly prepared: boolean;
  readonly clients: number;
  readonly direct: number;
  readonly through: number;
  readonly p50: number;
  readonly p99: number;
  readonly proxyUs: number | undefined;
  readonly errors: number;
  /** Through the gateway divided by direct, round by round. */
  readonly ratio: Spread | undefined;
}

const LOGIN = { user: 'sa', password: 'Outlive.1', database: 'app' };
const PROTOCOLS: readonly Protocol[] = ['postgres', 'tds'];
const WARMUP_MS = 300;

/** Takes the rounds together. */
export function summarizeTds(cells: readonly RelayTdsCell[]): RelayTdsSummary[] {
  const keys = new Map<string, RelayTdsCell>();
  for (const each of cells) keys.set(`${each.protocol} ${each.prepared} ${each.clients}`, each);
  return [...keys.values()].map(({ protocol, prepared, clients }) => {
    const own = cells.filter(
      (each) => each.protocol === protocol && each.prepared === prepared && each.clients === clients,
    );
    const of = (through: RelayTdsCell['through']) =>
      own.filter((each) => each.through === through).sort((a, b) => a.round - b.round);
    const [direct, outlive] = [of('direct'), of('outlive')];
    const proxy = outlive.flatMap(({ proxyUs }) => proxyUs ?? []);
    return {
      protocol,
      prepared,
      clients,
      direct: median(direct.map(({ tps }) => tps)),
      through: median(outlive.map(({ tps }) => tps)),
      p50: median(outlive.map(({ p50 }) => p50)),
      p99: median(outlive.map(({ p99 }) => p99)),
      proxyUs: proxy.length === 0 ? undefined : median(proxy),
      errors: own.reduce((sum, { errors }) => sum + errors, 0),
      ratio: ratioOfRounds(
        outlive.map(({ tps }) => tps),
        direct.map(({ tps }) => tps),
      ),
    };
  });
}

/** The acceptance figure: what is left of the direct throughput, beside what is left of PostgreSQL's. */
export function relayTdsFigures(summaries: readonly RelayTdsSummary[]): Figure[] {
  return summaries
    .filter(({ protocol }) => protocol === 'tds')
    .map(({ prepared, clients, ratio }) => {
      const other = summaries.find(
        (each) => each.protocol === 'postgres' && each.prepared === prepared && each.clients === clients,
      );
      const value = ratio && other?.ratio ? ratio.median / other.ratio.median : undefined;
      const what = `tps left by the gateway, of what it leaves of PostgreSQL's, ${nameOf(prepared)}, ${clients} clients`;
      return { id: 'P2', what, value, rule: 'at least', limit: 1, spread: undefined };
    });
}

const nameOf = (prepared: boolean) => (prepared ? 'select-prepared' : 'select-simple');

/** The gateway with the codec before that server. */
async function startGateway(scope: Scope, port: number, clients: number): Promise<{ port: number; pid: number }> {
  const dir = await scope.directory();
  const [listen] = await freePorts(1);
  await writeFile(join(dir, 'monitor'), LOGIN.password, { mode: 0o600 });
  const config = {
    listeners: [
      {
        name: 'bench',
        codec: 'tds',
        listen: `127.0.0.1:${listen}`,
        cluster: 'bench',
        auth: 'trust',
        limits: { clients: clients + 100 },
      },
    ],
    clusters: [
      {
        name: 'bench',
        servers: [{ name: 'a', host: '127.0.0.1', port, tls: 'off' }],
        monitor: { user: LOGIN.user, database: LOGIN.database, password: { file: 'monitor' } },
      },
    ],
    log: { level: 'warn' },
  };
  const file = join(dir, 'outlive.yaml');
  // JSON is YAML.
  await writeFile(file, JSON.stringify(config));
  const program = new Program(process.execPath, [programPath(), 'run', '--config', file], { cwd: dir });
  scope.defer(() => program.stop());
  const deadline = Date.now() + 20_000;
  for (;;) {
    if (!program.running) throw new Error(`Outlive ended while it was starting:\n${program.tail}`);
    try {
      await runTdsLoad({ ...LOGIN, port: listen, clients: 1, prepared: false, warmupMs: 10, measureMs: 10 });
      return { port: listen, pid: program.child.pid ?? -1 };
    } catch (error) {
      if (Date.now() > deadline) throw new Error(`Outlive takes no logins (${(error as Error).message})`);
      await sleep(50);
    }
  }
}

/** Load from this process, with CPU times around its measured part. */
async function makeTdsLoad(options: Parameters<typeof runTdsLoad>[0]): Promise<MeasuredLoad> {
  let before = sampleCpu();
  let after = before;
  const result = await runTdsLoad(options, {
    onMeasure: () => {
      before = sampleCpu();
    },
    onMeasured: () => {
      after = sampleCpu();
    },
  });
  const seconds = before && after ? (after.at - before.at) / 1000 : 0;
  return { result, loadPid: process.pid, before, after, between: result.tps * seconds, resident: undefined };
}

/** Runs the relay scenario for SQL Server, PostgreSQL beside it, and prints what it found. */
export async function relayTds({ clients, seconds, rounds, awake, json }: RelayOptions): Promise<Figure[]> {
  return await withScope(async (scope) => {
    const on = machine();
    if (awake) keepAwake(scope);
    const most = Math.max(...clients);
    progress('starting the servers');
    const server = await startBenchServer(scope, { settings: serverSettings(4 * most + 50) });
    await fillTables(server, 1);
    const tds = await TdsServers.compile();
    scope.defer(() => tds.stop());
    await tds.start({ name: 'a', host: server.host, port: server.port });
    const port = tds.port('a');
    // The database that the server makes is a schema.
    const rows = `SELECT n AS aid, 0 AS abalance FROM generate_series(1, ${TDS_ACCOUNTS}) AS n`;
    await server.query(`CREATE TABLE app.bench_accounts AS ${rows}`);
    await server.query('ALTER TABLE app.bench_accounts ADD PRIMARY KEY (aid)');
    await server.query('VACUUM ANALYZE app.bench_accounts');
    const place: TdsPlace = { ...LOGIN, port };
    const gateway = await startGateway(scope, port, most);

    const login = { user: BENCH_USER, database: BENCH_USER };
    const options = { servers: [{ host: server.host, port: server.port }], ...login, sessions: most };
    const own = await chooseLoad(scope, 'own');
    const peers = {
      direct: (await startDirect(scope, options))!,
      outlive: await startOutlive(scope, { ...options, monitorUser: 'postgres' }),
    };

    const measure = async (
      key: Pick<RelayTdsCell, 'protocol' | 'prepared' | 'clients' | 'through'>,
      measureMs: number,
    ): Promise<{ measured: MeasuredLoad; pid: number | undefined }> => {
      const { protocol, prepared, through } = key;
      const shape = { clients: key.clients, warmupMs: WARMUP_MS, measureMs };
      if (protocol === 'tds') {
        const to = through === 'direct' ? place : { ...place, port: gateway.port };
        const pid = through === 'direct' ? undefined : gateway.pid;
        return { measured: await makeTdsLoad({ ...to, prepared, ...shape }), pid };
      }
      const peer = peers[through];
      const workload = prepared ? 'select-prepared' : 'select-simple';
      const load = { host: peer.host, port: peer.port, ...login, ...shape, workload, scale: 1 } as const;
      return { measured: await own.make(load, peer.pids), pid: peer.pids[0] };
    };

    const ways = PROTOCOLS.flatMap((protocol) =>
      (['direct', 'outlive'] as const).map((through) => ({ protocol, through })),
    );
    progress('warming up');
    for (const prepared of [true, false]) {
      for (const way of ways) await measure({ ...way, prepared, clients: Math.min(most, 16) }, 1000);
    }
    const cells: RelayTdsCell[] = [];
    for (let round = 0; round < rounds; round++) {
      let turn = round;
      for (const prepared of [true, false]) {
        for (const count of clients) {
          for (const way of rotated(ways, turn++)) {
            const key = { ...way, prepared, clients: count };
            const { measured, pid } = await measure(key, seconds * 1000);
            const { before, after, between, result } = measured;
            const known = before !== undefined && after !== undefined && between > 0;
            const cpu = known && pid !== undefined ? cpuBetween(before, after, [pid]) : undefined;
            const { tps, p50, p99, errors, firstError } = result;
            cells.push({
              ...key,
              round,
              tps,
              p50,
              p99,
              errors,
              proxyUs: cpu === undefined ? undefined : (cpu * 1e6) / between,
              foreign: known ? foreignCpu(before, after, process.pid) : undefined,
            });
            progress(
              `round ${round + 1}/${rounds} ${way.protocol} ${nameOf(prepared)} ${count} ${way.through}: ${cell(tps)} tps` +
                `${firstError === undefined ? '' : `, ${errors} errors, the first: ${firstError}`}`,
            );
          }
        }
      }
    }
    const rank = (each: RelayTdsSummary) => (each.prepared ? 0 : 1000) + each.clients;
    const summaries = summarizeTds(cells).sort((a, b) => rank(a) - rank(b) || (a.protocol < b.protocol ? -1 : 1));
    const lines = [
      ...machineLines(on),
      ...awakeLines(awake),
      `PostgreSQL ${server.version}; before it the TDS server of the tests, which is a Node process too and most of what a request costs`,
      `load: one Node process for each protocol; ${rounds} rounds of ${seconds} s; medians over rounds`,
      ...foreignLines(cells.map(({ foreign }) => foreign)),
      '',
      table(
        [
          'workload',
          'protocol',
          'clients',
          'direct tps',
          'through tps',
          'ratio',
          'p50 ms',
          'p99 ms',
          'proxy us',
          'errors',
        ],
        summaries.map((each) => [
          nameOf(each.prepared),
          each.protocol,
          String(each.clients),
          cell(each.direct),
          cell(each.through),
          ratioCell(each.ratio),
          cell(each.p50),
          cell(each.p99),
          cell(each.proxyUs),
          String(each.errors),
        ]),
        2,
      ),
    ];
    const figures = relayTdsFigures(summaries);
    const setup = { postgres: server.version, clients, seconds, rounds, awake };
    print(lines, figures, json ? { scenario: 'relay', codec: 'tds', machine: on, setup, cells, summaries } : undefined);
    return figures;
  });
}
