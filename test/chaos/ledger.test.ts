import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, describe, expect, it } from 'vitest';
import { killPrimary } from '../../core/host/demo/kill.js';
import { checkLedger, readLedger } from '../../core/host/demo/ledger.js';
import { accountsFor, type ClientError, now } from '../../core/host/demo/workload.js';
import { type EmbeddedPair, startPair } from '../../plugins/embedded-postgres/index.js';
import { seededRandom, startTraffic, type Traffic } from '../kit/ledger.js';

const CLIENTS = 64;
/** Kills in all, shared by the two modes. */
const KILLS = Number(process.env.OUTLIVE_CHAOS_KILLS ?? 20);
/** What is left to chance is repeated by the same seed, as far as two runs on real servers can be alike. */
const SEED = Number(process.env.OUTLIVE_SEED ?? Math.floor(Math.random() * 2 ** 31));
const KINDS = { transfer: 5, autocommit: 2, note: 1, browse: 1, abandon: 1, savepoint: 1, batch: 1 };
const GO_ON_MS = 40_000;
/** SQLSTATE of a commit whose outcome nobody could learn, and of a transaction whose repetition was answered differently. */
const IN_DOUBT = '08007';
const DIVERGED = '40001';

/** What became of the primary. */
interface Blow {
  /** `promote`: killed, and the standby promoted. `restart`: killed and started again. `again`: promoted, and killed in the midst of the replays, and started again. */
  readonly how: 'promote' | 'restart' | 'again';
  /** The standby stood still for this long before, in ms: commits are in doubt then. */
  readonly holdMs: number;
  /** Asynchronous only: the standby received nothing for this long before; 0 when it did. */
  readonly deafMs: number;
  readonly afterMs: number;
}

let pair: EmbeddedPair | null = null;
let traffic: Traffic | null = null;

afterEach(async () => {
  await traffic?.workload.stop(1000);
  await traffic?.stop();
  await pair?.stop();
  traffic = null;
  pair = null;
});

/** Lets clients work while the primary is killed at random moments, and gives the books for the audit. */
async function run(synchronous: boolean, kills: number) {
  const random = seededRandom(SEED + (synchronous ? 0 : 1));
  pair = await startPair({ synchronous, settings: { max_connections: String(CLIENTS * 2 + 60) } });
  // Think times come from a stream of their own, so that they do not shift the order of the blows.
  traffic = await startTraffic(pair, {
    clients: CLIENTS,
    random: seededRandom(SEED + 2),
    kinds: KINDS,
    think: { inside: 250, between: 150 },
  });
  const { workload } = traffic;
  const blows: Blow[] = [];
  let interrupted = 0;
  for (let left = kills; left > 0; ) {
    const dice = random();
    const how = dice < 0.7 || left < 2 ? 'promote' : dice < 0.85 ? 'restart' : 'again';
    const blow: Blow = {
      how,
      holdMs: random() < 0.5 ? 0 : Math.ceil(random() * 30),
      deafMs: synchronous || how === 'restart' || random() < 0.5 ? 0 : Math.ceil(random() * 200),
      afterMs: random() * 1000,
    };
    left -= how === 'again' ? 2 : 1;
    blows.push(blow);
    await sleep(blow.afterMs);
    interrupted += await strike(blow, pair, traffic, random);
  }
  await sleep(300);
  await workload.stop(GO_ON_MS);
  const facts = await readLedger((sql) => pair!.primary.query(sql));
  const verdict = checkLedger(facts, workload.claims, accountsFor(CLIENTS));
  const { stats } = traffic.gateway!;
  const inDoubt = workload.errors.filter(({ code }) => code === IN_DOUBT);
  console.log(
    `OUTLIVE_SEED=${SEED} ${synchronous ? 'synchronous' : 'asynchronous'}: ${kills} kills in ${blows.length} blows, ` +
      `${workload.transactions} transactions, ${interrupted} open ones interrupted, ` +
      `replays ${JSON.stringify(Object.fromEntries(stats.replays))}, ` +
      `outcomes ${JSON.stringify(Object.fromEntries(stats.outcomes))}, ${inDoubt.length} told to be in doubt, ` +
      `${verdict.lost.length} acknowledged and lost by the database (${stats.lostCommits} counted)`,
  );
  return { workload, verdict, stats, interrupted, blows };
}

/** One blow, and what comes after it until the pair is whole again. Returns how many open transactions it interrupted. */
async function strike(blow: Blow, { primary }: EmbeddedPair, { workload }: Traffic, random: () => number) {
  let open = 0;
  let settled = workload.watchFailover();
  let writableAt: number;
  if (blow.deafMs > 0) {
    await pair!.pauseReplication();
    await sleep(blow.deafMs);
  }
  const killing = () => {
    open = workload.open;
    settled = workload.watchFailover();
  };
  if (blow.how === 'restart') {
    killing();
    await primary.kill();
    await primary.start();
    writableAt = now();
  } else {
    ({ writableAt } = await killPrimary(pair!, blow.holdMs, killing));
    if (blow.how === 'again') {
      await sleep(random() * 60);
      await pair!.primary.kill();
      await pair!.primary.start();
      writableAt = now();
    }
  }
  const { silent } = await settled(writableAt, GO_ON_MS);
  expect(silent, `clients that did not go on after ${JSON.stringify(blow)}, OUTLIVE_SEED=${SEED}`).toEqual([]);
  if (blow.how === 'restart') await pair!.waitStreaming();
  else await pair!.rebuild();
  return open;
}

/** Errors in few words: how many of each kind, and the first one. */
function brief(errors: readonly ClientError[]): string[] {
  const kinds = new Map<string, ClientError[]>();
  for (const each of errors) {
    const kind = `${each.code || 'connection'} ${each.message}`;
    kinds.set(kind, [...(kinds.get(kind) ?? []), each]);
  }
  return [...kinds].map(([kind, [first, ...more]]) => {
    const { client, during, reference, at } = first;
    return `${more.length + 1} x ${kind} (client ${client}, ${during}, ${reference}, ${new Date(at).toISOString()})`;
  });
}

describe(`${CLIENTS} clients while servers are killed at random (OUTLIVE_SEED=${SEED})`, () => {
  const TIMEOUT = 60_000 + KILLS * 15_000;
  const half = Math.max(1, Math.ceil(KILLS / 2));

  it(
    'with a synchronous standby: what was acknowledged is there exactly once',
    async () => {
      const { workload, verdict, interrupted } = await run(true, half);
      // Only errors that say that nobody can know are allowed, and those are counted.
      expect(brief(workload.errors.filter(({ code }) => code !== IN_DOUBT))).toEqual([]);
      expect(workload.wrongReads).toEqual([]);
      expect(verdict).toMatchObject({ right: true });
      expect(interrupted).toBeGreaterThan(half);
    },
    TIMEOUT,
  );

  it(
    'with an asynchronous standby: nothing is twice, and only the database itself loses, which is counted',
    async () => {
      const { workload, verdict, stats, interrupted } = await run(false, Math.max(1, KILLS - half));
      const { lost, ...rest } = verdict;
      // Whose acknowledged transaction the database lost has read what is not so any more: such a replay must fail.
      const bereft = new Set(lost.map((reference) => Number(reference.split('-')[0])));
      const unexplained = workload.errors.filter(
        ({ code, client }) => code !== IN_DOUBT && !(code === DIVERGED && bereft.has(client)),
      );
      expect(brief(unexplained)).toEqual([]);
      expect(workload.wrongReads.filter(({ client }) => !bereft.has(client))).toEqual([]);
      expect(rest).toMatchObject({
        duplicates: [],
        altered: [],
        uninvited: [],
        misgiven: [],
        misplaced: [],
        wrongBalances: [],
        sumRight: true,
      });
      // What lies before the switch point is asked for behind the scenes.
      await expect.poll(() => stats.lostCommits, { timeout: 10_000 }).toBe(lost.length);
      expect(interrupted).toBeGreaterThan(KILLS - half);
    },
    TIMEOUT,
  );
});
