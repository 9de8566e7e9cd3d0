import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { now } from '../../core/host/demo/workload.js';
import { launchGateway, type TestGateway } from '../kit/gateway.js';
import { seededRandom } from '../kit/ledger.js';
import { AppWorkload, type Failure, Worker } from '../kit/orm/belief.js';
import { APPS } from '../kit/orm/index.js';
import { eventually, restorePair, usePair } from '../kit/servers.js';

/**
 * Unmodified ORMs, with their own idioms, at the same time over one gateway, while primaries are killed at random moments: no
 * client sees an error, and in the end the database holds exactly what the applications were told (ids, times, versions,
 * children with their parents).
 *
 * `OUTLIVE_ORM_KILLS`: how many primaries are killed; each kill is one for every ORM. A kill takes a good second on two idle cores and
 * up to four on busy ones.
 * `OUTLIVE_SEED`: repeats the choices of a run (it is printed), as far as two runs on real servers can be alike.
 * `OUTLIVE_ORMS`: names of the ORMs that take part, with commas; by default all.
 * `LOG`: level of what the gateway logs to the standard error stream; by default nothing.
 */
const KILLS = Number(process.env.OUTLIVE_ORM_KILLS ?? 50);
const SEED = Number(process.env.OUTLIVE_SEED ?? Math.floor(Math.random() * 2 ** 31));
const NAMES = process.env.OUTLIVE_ORMS?.split(',') ?? Object.keys(APPS);
const WORKERS = 4;
const THINK = { inside: 40, between: 20 };
/** How long everybody may take to go on after a failover. */
const GO_ON_MS = 40_000;

const servers = usePair({ settings: { max_connections: '120' } });
const workloads: AppWorkload[] = [];
let gateway: TestGateway | undefined;

beforeAll(async () => {
  gateway = await launchGateway(servers, {
    logLevel: (process.env.LOG as 'error' | undefined) ?? 'silent',
    cluster: { monitor: { user: 'postgres', interval: '100ms' }, spares: { perIdentity: 12, total: 12 } },
  });
  for (const [i, name] of NAMES.entries()) {
    const lost = (error: unknown) => workload.lost(error);
    const app = APPS[name]({ port: gateway.port, connections: WORKERS + 1, lost });
    const workers = Array.from({ length: WORKERS }, (_, number) => {
      return new Worker(number, seededRandom(SEED + 1 + i * 100 + number));
    });
    const workload: AppWorkload = new AppWorkload(app, workers, THINK);
    workloads.push(workload);
    await app.setup();
  }
  for (const each of workloads) each.start();
  const filled = ({ app, workers, total }: AppWorkload) =>
    total >= 20 && app.tables.every((table) => workers.some((worker) => worker.rows(table).length > 0));
  await eventually(() => workloads.every(filled), { timeoutMs: GO_ON_MS });
});

afterAll(async () => {
  await Promise.allSettled(workloads.map((workload) => workload.stop()));
  await Promise.allSettled(workloads.map(({ app }) => app.close()));
  await gateway?.stop();
});

/** Kills the primary and waits until every worker has gone on and the pair is whole again. */
async function strike(): Promise<void> {
  const { writableAt } = await servers.pair.failover({ how: 'kill' });
  const workers = workloads.flatMap(({ app, workers }) => workers.map((worker) => ({ app, worker })));
  const silent = () => workers.filter(({ worker }) => worker.acknowledgedAt <= writableAt);
  await eventually(() => silent().length === 0, { timeoutMs: GO_ON_MS }).catch((cause) => {
    const who = silent().map(({ app, worker }) => `${app.name} ${worker.number}`);
    throw new Error(`nothing acknowledged since the failover: ${who.join(', ')}`, { cause });
  });
  // The machine belongs to the new standby for a while.
  const whole = servers.pair.rebuild();
  for (const workload of workloads) workload.rest(whole);
  await whole;
}

/** What the applications, whose workers have stopped, and the database disagree on. */
async function audit(): Promise<string[]> {
  const client = await servers.pair.primary.connect();
  try {
    const found: string[] = [];
    for (const each of workloads) found.push(...(await each.audit((sql) => client.query(sql))));
    return found;
  } finally {
    await client.end();
  }
}

/** Errors of one ORM: how many of each kind, and the first one. */
function brief({ app, failures }: AppWorkload): string[] {
  const kinds = new Map<string, Failure[]>();
  for (const each of failures) {
    const kind = `${app.name} ${each.operation}: ${each.code} ${each.message}`;
    kinds.set(kind, [...(kinds.get(kind) ?? []), each]);
  }
  // What follows from an earlier failure comes last.
  const late = ([{ code }]: Failure[]) => Number(/^(25P02|3B001)?$/.test(code));
  return [...kinds]
    .sort(([, a], [, b]) => late(a) - late(b) || a[0].at - b[0].at)
    .map(([kind, all]) => {
      return `${all.length} x ${kind} (first: worker ${all[0].worker}, ${new Date(all[0].at).toISOString()})`;
    });
}

/** The first of many lines. */
function some(lines: readonly string[]): string[] {
  return lines.length <= 40 ? [...lines] : [...lines.slice(0, 40), `... and ${lines.length - 40} more`];
}

describe(`ORMs at work: ${NAMES.join(', ')} (OUTLIVE_SEED=${SEED})`, () => {
  it(
    `see no error while ${KILLS} primaries are killed, and what they believe is what is stored`,
    async () => {
      const random = seededRandom(SEED);
      const began = now();
      const { stats } = gateway!.gateway;
      const replays = () => [...stats.replays.values()].reduce((sum, count) => sum + count, 0);
      const tally: number[] = [];
      let trouble: unknown = null;
      // One failover with errors is enough: what an ORM does with a connection after one can hide the next error's cause.
      while (tally.length < KILLS && trouble === null && workloads.every(({ failures }) => failures.length === 0)) {
        // After their rest all begin together; a moment later they are at different points.
        await sleep(20 + random() * 300);
        const before = replays();
        await strike().catch((error) => {
          trouble = error;
        });
        tally.push(replays() - before);
      }
      const seconds = ((now() - began) / 1000).toFixed(1);
      if (trouble !== null) await restorePair(servers.pair);
      await Promise.all(workloads.map((workload) => workload.stop()));
      const differences = some(await audit());
      const failures = some(workloads.flatMap(brief));
      const wrongReads = some(
        workloads.flatMap(({ app, workers }) =>
          workers.flatMap((worker) => worker.wrongReads.map((read) => `${app.name} ${read}`)),
        ),
      );
      console.log(
        `OUTLIVE_SEED=${SEED}: ${tally.length} kills in ${seconds} s, open transactions interrupted by each: ` +
          `${tally.join(' ')}, replays ${JSON.stringify(Object.fromEntries(stats.replays))}, ` +
          `outcomes ${JSON.stringify(Object.fromEntries(stats.outcomes))}, ` +
          `acknowledged ${JSON.stringify(Object.fromEntries(workloads.map(({ app, total }) => [app.name, total])))}`,
      );
      expect({ trouble, failures, wrongReads, differences }).toEqual({
        trouble: null,
        failures: [],
        wrongReads: [],
        differences: [],
      });
      // No kill was void, and nothing that an application can do was left out.
      expect(tally).toHaveLength(KILLS);
      expect(tally.filter((count) => count === 0)).toEqual([]);
      if (KILLS >= 20)
        for (const { app, done } of workloads) {
          expect([...done.keys()].sort(), app.name).toEqual(Object.keys(app.operations).sort());
        }
    },
    120_000 + KILLS * 10_000,
  );

  it('are audited well: what is done to the database behind their backs is found', async () => {
    await Promise.all(workloads.map((workload) => workload.stop()));
    const before = await audit();
    const { pair } = servers;
    for (const { app } of workloads) {
      const { name } = app;
      const parent = { drizzle: 'author_id', typeorm: 'author_id', sequelize: '"authorId"', knex: 'author_id' }[name];
      const born = { drizzle: 'created_at', typeorm: 'created_at', sequelize: '"bornAt"', knex: 'created_at' }[name];
      // A child of another parent, a parent of another time, an object that is gone, and one that is there twice.
      await pair.primary.query(`UPDATE ${name}.books SET ${parent} = (SELECT max(id) FROM ${name}.authors)
        WHERE id = (SELECT min(id) FROM ${name}.books)`);
      await pair.primary.query(`UPDATE ${name}.authors SET ${born} = ${born} + interval '1 ms'
        WHERE id = (SELECT min(id) FROM ${name}.authors)`);
      await pair.primary.query(`DELETE FROM ${name}.stock WHERE id = (SELECT min(id) FROM ${name}.stock)`);
      await pair.primary.query(`INSERT INTO ${name}.events (id, worker, what, at)
        SELECT gen_random_uuid(), worker, what, at FROM ${name}.events LIMIT 1`);
    }
    const found = (await audit()).filter((line) => !before.includes(line));
    for (const { app } of workloads) {
      const lines = found.filter((line) => line.startsWith(`${app.name} `)).join('\n');
      expect(lines).toMatch(/^\w+ books \d+: author_?id: believed (\d+), stored (?!\1$)\d+$/im);
      expect(lines).toMatch(/^\w+ authors \d+: \w+: believed (.*), stored (?!\1$).*$/m);
      expect(lines).toMatch(/^\w+ stock \d+: was acknowledged and is not stored$/m);
      expect(lines).toMatch(/^\w+ events \S+: is stored \(a second time\), and nobody was told so$/m);
      expect(lines.split('\n')).toHaveLength(4);
    }
  });
});
