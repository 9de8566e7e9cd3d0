import { setTimeout as sleep } from 'node:timers/promises';
import { beforeAll, expect, it } from 'vitest';
import { killPrimary } from '../../core/host/demo/kill.js';
import { seededRandom } from '../kit/ledger.js';
import { eventually } from '../kit/servers.js';
import { TdsClient, TYPES } from '../kit/tds.js';
import { setUpMarks, useTdsStage } from '../kit/tds-stage.js';

const CLIENTS = 16;
const ACCOUNTS = 8;
const KILLS = Number(process.env.OUTLIVE_TDS_KILLS ?? 3);
const SEED = Number(process.env.OUTLIVE_SEED ?? Math.floor(Math.random() * 2 ** 31));
const GO_ON_MS = 40_000;

const stage = useTdsStage({ textTransactions: SEED % 2 === 0 }, { listener: { outcome: { by: 'marker' } } });

beforeAll(async () => {
  const client = await TdsClient.connect(stage.primary.port);
  await client.batch(
    'CREATE TABLE ledger (ref varchar(40), part int); CREATE TABLE account (id int PRIMARY KEY, v int)',
  );
  for (let account = 0; account < ACCOUNTS; account++) await client.batch(`INSERT INTO account VALUES (${account}, 0)`);
  await client.close();
  await setUpMarks(stage);
});

/** One who moves money and writes down what was acknowledged. */
class Teller {
  readonly acknowledged = new Map<string, number>();
  readonly errors: string[] = [];
  done = 0;
  private stopped = false;

  constructor(
    private readonly number: number,
    private readonly client: TdsClient,
    private readonly random: () => number,
  ) {}

  async work(): Promise<void> {
    while (!this.stopped) {
      const ref = `${this.number}-${++this.done}`;
      try {
        await this.one(ref);
      } catch (error) {
        const { number, message } = error as { number?: number; message: string };
        this.errors.push(`${ref}: ${number} ${message}`);
      }
      if (this.random() < 0.5) await sleep(this.random() * 20);
    }
  }

  stop(): void {
    this.stopped = true;
  }

  private async one(ref: string): Promise<void> {
    const { client } = this;
    // In one order, so that nobody is a deadlock's victim.
    const [from, to] = [this.pick(ACCOUNTS), this.pick(ACCOUNTS)].sort((a, b) => a - b);
    const moves = [
      `UPDATE account SET v = v - 1 WHERE id = ${from}`,
      `UPDATE account SET v = v + 1 WHERE id = ${to}`,
      `INSERT INTO ledger VALUES ('${ref}', 1)`,
    ];
    switch (this.pick(6)) {
      case 0:
        await client.begin();
        for (const text of moves) await client.sql(text);
        await client.commit();
        break;
      case 1:
        await client.batch('BEGIN TRANSACTION');
        for (const text of moves) await client.batch(text);
        await client.batch('IF @@TRANCOUNT > 0 COMMIT TRANSACTION');
        break;
      case 2:
        await client.sql('INSERT INTO ledger VALUES (@ref, 1)', { name: 'ref', type: TYPES.VarChar, value: ref });
        break;
      case 3:
        await client.batch(moves.join('; '));
        break;
      case 4:
        await client.batch(`INSERT INTO ledger VALUES ('${ref}', 1); INSERT INTO ledger VALUES ('${ref}', 2)`);
        this.acknowledged.set(ref, 2);
        return;
      default:
        await client.begin();
        for (const text of moves) await client.sql(text);
        await client.rollback();
        return;
    }
    this.acknowledged.set(ref, 1);
  }

  private pick(of: number): number {
    return Math.floor(this.random() * of);
  }
}

it(
  `${CLIENTS} clients whose server is killed ${KILLS} times: what was acknowledged is there exactly once (OUTLIVE_SEED=${SEED})`,
  async () => {
    const random = seededRandom(SEED);
    const clients = await Promise.all(Array.from({ length: CLIENTS }, () => stage.connect()));
    const tellers = clients.map((client, i) => new Teller(i, client, seededRandom(SEED + 1 + i)));
    const working = tellers.map((teller) => teller.work());
    for (let kill = 0; kill < KILLS; kill++) {
      await sleep(200 + random() * 800);
      // While the standby stands still commits wait for it: these are in doubt then.
      await killPrimary(stage.pair, random() < 0.3 ? 0 : Math.ceil(random() * 30), () => {});
      const before = tellers.map(({ done }) => done);
      await eventually(() => tellers.every(({ done }, i) => done > before[i] + 1), {
        timeoutMs: GO_ON_MS,
        message: `clients that go on after kill ${kill + 1}`,
      });
      await stage.pair.rebuild();
    }
    for (const teller of tellers) teller.stop();
    await Promise.all(working);
    const direct = await stage.direct();
    const { rows } = await direct.sql('SELECT ref, COUNT(*) AS n FROM ledger GROUP BY ref');
    const found = new Map(rows.map(({ ref, n }) => [String(ref), Number(n)]));
    const { outcomes, replays } = stage.gateway.gateway.stats;
    console.log(
      `OUTLIVE_SEED=${SEED} TDS: ${KILLS} kills, ${tellers.reduce((sum, { done }) => sum + done, 0)} transactions, ` +
        `replays ${JSON.stringify(Object.fromEntries(replays))}, outcomes ${JSON.stringify(Object.fromEntries(outcomes))}`,
    );
    expect(tellers.flatMap(({ errors }) => errors)).toEqual([]);
    expect(clients.flatMap(({ lost }) => lost)).toEqual([]);
    expect(found).toEqual(new Map(tellers.flatMap(({ acknowledged }) => [...acknowledged])));
    expect((await direct.sql('SELECT SUM(v) AS total FROM account')).rows).toEqual([{ total: 0 }]);
  },
  60_000 + KILLS * 15_000,
);
