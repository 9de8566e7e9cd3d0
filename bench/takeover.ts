import { spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { Lab } from '../core/host/demo/lab/lab.js';
import { Twins } from '../core/host/demo/lab/twins.js';
import { settledKiB } from './idle.js';
import { Crowd } from './load/crowd-host.js';
import { cell, type Figure, machine, machineLines, print, progress, table } from './report.js';
import { type Scope, withScope } from './scope.js';
import { ascending, percentile } from './statistics.js';

/** Options of the takeover scenario. */
export interface TakeoverOptions {
  readonly connections: readonly number[];
  readonly json: boolean;
}

/** A takeover of so many connections. Times in ms, memory in KiB. */
export interface TakeoverResult {
  readonly connections: number;
  /** Those that go on. */
  readonly kept: number;
  /** From the power cut until the survivor decided: that the other one is silent, that it is dead. */
  readonly noticedMs: number;
  /** From the decision until all connections were there and the neighbours were told. */
  readonly tookMs: number;
  /** From then on until the answers came to requests that all clients had sent right after the power cut. */
  readonly answerP50Ms: number;
  readonly answerP99Ms: number;
  readonly answerMaxMs: number;
  /** Clients that were disconnected, or got none or a wrong answer. */
  readonly failed: number;
  /** Resident memory for each connection, where there are many: of the gateway that serves, of the one that follows, and of that one once it serves. */
  readonly servingKiB: number | undefined;
  readonly followingKiB: number | undefined;
  readonly tookOverKiB: number | undefined;
}

const PORT = 6432;
const SERVER_PORT = 5432;
/** What fewer connections take disappears in what a process takes and gives back anyway. */
const LEAST_FOR_MEMORY = 500;
const ANSWERS_MS = 120_000;
/** Descriptors that a gateway needs besides the two of each connection. */
const OTHER_DESCRIPTORS = 100;

/** The acceptance figure: that of K10, where a curve is all that P2 asks for. */
export function takeoverFigures(results: readonly TakeoverResult[]): Figure[] {
  const found = results.find(({ connections }) => connections === 1000);
  const kept = results.length === 0 ? undefined : Math.min(...results.map((each) => each.kept / each.connections));
  return [
    {
      id: 'P2',
      what: 'decision to announced, 1,000 connections',
      value: found?.tookMs,
      rule: 'at most',
      limit: 1000,
      unit: 'ms',
    },
    { id: 'P2', what: 'part of the connections that was kept', value: kept, rule: 'at least', limit: 1 },
  ];
}

/** The table of the takeover scenario. */
export function takeoverTable(results: readonly TakeoverResult[]): string {
  const head = ['connections', 'kept', 'noticed ms', 'took ms', 'answer p50 ms', 'p99 ms', 'max ms', 'failed'];
  return table(
    [...head, 'KiB each: serving', 'following', 'took over'],
    results.map((each) => [
      String(each.connections),
      String(each.kept),
      cell(each.noticedMs),
      cell(each.tookMs),
      cell(each.answerP50Ms),
      cell(each.answerP99Ms),
      cell(each.answerMaxMs),
      String(each.failed),
      cell(each.servingKiB),
      cell(each.followingKiB),
      cell(each.tookOverKiB),
    ]),
    0,
  );
}

/** Runs the takeover scenario and prints what it found. */
export async function takeover(options: TakeoverOptions): Promise<Figure[]> {
  const unavailable = Lab.unavailable();
  if (unavailable !== null) throw new Error(`no hosts can be made here: ${unavailable}`);
  return await withScope(async (scope) => {
    const on = machine();
    const most = Math.floor((descriptors() - OTHER_DESCRIPTORS) / 2);
    const lab = await Lab.create();
    scope.defer(() => lab.destroy());
    const db = lab.host('db');
    const backend = db.spawn(process.execPath, [lab.path('bench/load/backend.js'), db.address, String(SERVER_PORT)], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    await once(backend.stdout!, 'data');
    const results: TakeoverResult[] = [];
    // A gateway has a client and a server for each.
    for (const connections of new Set(options.connections.map((wanted) => Math.min(wanted, most)))) {
      progress(`${connections} connections`);
      results.push(await measure(scope, lab, connections));
    }
    const lines = [
      ...machineLines(on),
      `Hosts are network namespaces of this machine; Node ${process.version}; the server is a stand-in that costs nothing`,
      ...(Math.max(...options.connections) > most
        ? [`The limit of descriptors (ulimit -Hn) allows ${most} connections`]
        : []),
      '',
      takeoverTable(results),
    ];
    const figures = takeoverFigures(results);
    print(lines, figures, options.json ? { scenario: 'takeover', machine: on, results } : undefined);
    return figures;
  });
}

/** How many descriptors a process may have here. */
function descriptors(): number {
  const { stdout } = spawnSync('/bin/sh', ['-c', 'ulimit -Hn'], { encoding: 'utf8' });
  const limit = Number.parseInt(stdout, 10);
  return Number.isNaN(limit) ? Number.POSITIVE_INFINITY : limit;
}

async function measure(scope: Scope, lab: Lab, connections: number): Promise<TakeoverResult> {
  const [a, b] = [lab.host('a'), lab.host('b')];
  const { address } = lab.floating();
  const server = { name: 'db', host: lab.host('db').address, port: SERVER_PORT, tls: 'off' };
  const limits = { clients: connections + 100 };
  const listener = {
    name: 'bench',
    codec: 'postgres',
    listen: `0.0.0.0:${PORT}`,
    cluster: 'bench',
    auth: 'trust',
    limits,
  };
  const twins = await Twins.start({
    hosts: [a, b],
    address,
    front: {
      listeners: [listener],
      // The stand-in tells no monitor anything.
      clusters: [{ name: 'bench', servers: [server] }],
      log: { level: 'info', pretty: false },
    },
  });
  scope.defer(() => twins.kill());
  const memory = (host: typeof a) => settledKiB([twins.gateway(host).pid]);
  const before = { a: await memory(a), b: await memory(b) };
  const crowd = Crowd.start(lab.host('client'));
  scope.defer(() => crowd.kill());
  await crowd.open({ host: address, port: PORT, user: 'bench', database: 'bench', sessions: connections });
  await twins.followed(a);
  const full = { a: await memory(a), b: await memory(b) };

  const since = await twins.crash(a);
  await crowd.ask();
  const { connections: kept, ms, at } = await twins.taken(b, since);
  const { answeredAt } = await crowd.answers(ANSWERS_MS);
  const after = await memory(b);
  await crowd.kill();
  await twins.kill();
  await a.reboot();
  // What is left of the address goes with the host.
  await b.reboot();
  const each = (to: number | undefined, from: number | undefined) =>
    to === undefined || from === undefined || connections < LEAST_FOR_MEMORY ? undefined : (to - from) / connections;
  const answers = ascending(answeredAt.map((time) => Math.max(0, time - at)));
  return {
    connections,
    kept,
    noticedMs: at - ms - since,
    tookMs: ms,
    answerP50Ms: percentile(answers, 50),
    answerP99Ms: percentile(answers, 99),
    answerMaxMs: percentile(answers, 100),
    failed: connections - answers.length,
    servingKiB: each(full.a, before.a),
    followingKiB: each(full.b, before.b),
    tookOverKiB: each(after, before.b),
  };
}
