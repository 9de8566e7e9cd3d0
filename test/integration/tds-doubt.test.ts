import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { tempDir } from '../kit/servers.js';
import { TdsClient, TYPES } from '../kit/tds.js';
import { setUpMarks, type TdsStage, useTdsStage } from '../kit/tds-stage.js';
import type { Gate, TdsEvent } from '../servers/tds/server.js';

/** Commits whose answer was lost, proved by rows: every one of a kind is in doubt at the same time, on the same server that dies. */
const WAYS: Readonly<Record<string, (client: TdsClient, id: number) => Promise<() => Promise<unknown>>>> = {
  'by the transaction manager': async (client, id) => {
    await client.begin();
    await client.sql(`INSERT INTO t VALUES (${id}, 'x')`);
    return () => client.commit();
  },
  'by text': async (client, id) => {
    await client.batch('BEGIN TRANSACTION');
    await client.batch(`INSERT INTO t VALUES (${id}, 'x')`);
    return () => client.batch('COMMIT TRANSACTION');
  },
  'by text behind a condition': async (client, id) => {
    await client.batch('BEGIN TRANSACTION');
    await client.batch(`INSERT INTO t VALUES (${id}, 'x')`);
    return () => client.batch('IF @@TRANCOUNT > 0 COMMIT TRAN');
  },
  'of a transaction that a statement began': async (client, id) => {
    await client.batch('SET IMPLICIT_TRANSACTIONS ON');
    await client.batch(`INSERT INTO t VALUES (${id}, 'x')`);
    return () => client.batch('COMMIT');
  },
  'of a statement by itself': async (client, id) => () => client.batch(`INSERT INTO t VALUES (${id}, 'x')`),
  'of a statement with parameters': async (client, id) => () =>
    client.sql('INSERT INTO t VALUES (@id, @v)', { name: 'id', type: TYPES.Int, value: id }, v),
  'of several in a batch': async (client, id) => () =>
    client.batch(`DELETE FROM t WHERE id = ${id}; INSERT INTO t VALUES (${id}, 'x'); SELECT @@ROWCOUNT AS n`),
};
const v = { name: 'v', type: TYPES.NVarChar, value: 'x' };

/** In place of the cluster's own, so that a test sees when it is called. */
const fenced: string[] = [];
Object.assign(globalThis, { [Symbol.for('outlive.test.fenced')]: fenced });

function fence(): string {
  const file = join(tempDir(), 'fence.mjs');
  writeFileSync(
    file,
    `export default { name: 'fence-test', contract: '1.0.0', kind: 'fence', create: async () => ({
      act: async (server) => { globalThis[Symbol.for('outlive.test.fenced')].push(server); } }) };`,
  );
  return file;
}

const looksFor = (event: TdsEvent): boolean =>
  event.kind === 'request' && String(event.text).includes('READCOMMITTEDLOCK');

let id = 0;

describe.each([
  ['tells of transactions in text', true],
  ['does not tell of transactions in text', false],
])('a server that %s', (_, textTransactions) => {
  const stage: TdsStage = useTdsStage(
    { textTransactions },
    { listener: { outcome: { by: 'marker' } }, cluster: { fence: { plugin: fence() } } },
  );

  beforeAll(async () => {
    const client = await TdsClient.connect(stage.primary.port);
    await client.batch(
      'CREATE TABLE t (id int, v nvarchar(20)); CREATE TABLE n (id int IDENTITY PRIMARY KEY, v int); CREATE DATABASE other',
    );
    await client.close();
    await setUpMarks(stage);
  });

  /** What is there of a number, and how many rows prove commits. */
  const there = async (own: number) =>
    (await (await stage.direct()).sql(`SELECT v FROM t WHERE id = ${own}`)).rows.map(({ v: found }) => found);
  const marks = async () =>
    Number((await (await stage.direct()).sql('SELECT COUNT(*) AS n FROM dbo.outlive_commit_marker')).rows[0].n);
  const outcomes = () => Object.fromEntries(stage.gateway.gateway.stats.outcomes);
  const more = (before: Record<string, number>) =>
    Object.fromEntries(Object.entries(outcomes()).map(([name, n]) => [name, n - (before[name] ?? 0)]));

  /** Brings a client of every way, or of one, to its commit, where the primary holds it. Gives what ends them. */
  async function inDoubt(where: 'before-commit' | 'after-commit', ways = Object.values(WAYS)) {
    const committing: { own: number; client: TdsClient; answer: Promise<unknown> }[] = [];
    const gates: Gate[] = [];
    for (const way of ways) {
      const own = ++id;
      const client = await stage.connect();
      const commit = await way(client, own);
      const gate = stage.primary.hold(where);
      gates.push(gate);
      committing.push({ own, client, answer: commit() });
      await gate.reached;
    }
    return {
      release: () => {
        for (const gate of gates) gate.release();
      },
      /** All are answered as if nothing had been, and each is there once. */
      settled: async () => {
        for (const { own, client, answer } of committing) {
          await answer;
          expect(client.descriptor).toBe('0000000000000000');
          expect((await client.batch('SELECT @@TRANCOUNT AS n')).rows).toEqual([{ n: 0 }]);
          expect(await there(own)).toEqual(['x']);
          expect(client.lost).toEqual([]);
        }
      },
    };
  }

  it.each([
    ['has taken effect is not repeated', 'after-commit', 'committed'],
    ['has not taken effect is repeated', 'before-commit', 'not-committed'],
  ] as const)('a commit in doubt that %s', async (_what, where, outcome) => {
    const before = [outcomes(), await marks()] as const;
    const { release, settled } = await inDoubt(where);
    await stage.kill();
    release();
    await settled();
    const count = Object.keys(WAYS).length;
    expect(more(before[0])).toMatchObject({ [outcome]: count });
    expect(await marks()).toBe(before[1] + count);
  });

  it('is asked of another server again when that dies too, with commits that are to be repeated', async () => {
    const [committed, lost] = [
      await inDoubt('after-commit', [WAYS['by the transaction manager'], WAYS['of a statement by itself']]),
      await inDoubt('before-commit', [WAYS['by text'], WAYS['of a statement with parameters']]),
    ];
    const next = stage.standby;
    const repeats = (event: TdsEvent) =>
      event.kind === 'request' && String(event.text).includes('INSERT INTO t VALUES (@id');
    for (const dies of [looksFor, repeats]) {
      let once = false;
      const stop = next.onEvent((event) => {
        if (once || !dies(event)) return;
        once = true;
        stop();
        // The one that is about to answer is gone, and the PostgreSQL behind all of them.
        next.drop(Number(event.spid));
      });
    }
    const asked = next.waitFor(looksFor);
    await stage.kill();
    committed.release();
    lost.release();
    await asked;
    await stage.pair.primary.kill();
    await stage.pair.primary.start();
    await committed.settled();
    await lost.settled();
  });

  it('is asked for when a primary that stands still is fenced', async () => {
    const { settled, release } = await inDoubt('before-commit', [WAYS['by the transaction manager']]);
    const old = stage.primary.name;
    const order: string[] = [];
    fenced.splice(0);
    const stop = stage.standby.onEvent((event) => {
      if (looksFor(event)) order.push(`fenced before: ${fenced.includes(old)}`);
    });
    await stage.pair.primary.freeze();
    release();
    await stage.pair.failover({ how: 'freeze' });
    await settled();
    stop();
    expect(order).toEqual(['fenced before: true']);
  });
});
