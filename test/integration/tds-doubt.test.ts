import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { main } from '../../core/host/cli.js';
import { tempDir } from '../kit/servers.js';
import { refusal, TdsClient, TYPES } from '../kit/tds.js';
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
  'of a client that speaks TDS 7.1': async (client, id) => {
    await client.batch('BEGIN TRANSACTION');
    await client.batch(`INSERT INTO t VALUES (${id}, 'x')`);
    return () => client.batch('COMMIT TRANSACTION');
  },
  'of a statement in TDS 7.1': async (client, id) => () => client.batch(`INSERT INTO t VALUES (${id}, 'x')`),
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
  async function inDoubt(where: 'before-commit' | 'after-commit', ways = Object.keys(WAYS)) {
    const committing: { own: number; client: TdsClient; answer: Promise<unknown> }[] = [];
    const gates: Gate[] = [];
    for (const way of ways) {
      const own = ++id;
      const client = await stage.connect(way.includes('7.1') ? { tdsVersion: '7_1' } : {});
      const commit = await WAYS[way](client, own);
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
      await inDoubt('after-commit', ['by the transaction manager', 'of a statement by itself']),
      await inDoubt('before-commit', ['by text', 'of a statement with parameters']),
    ];
    const next = stage.standby;
    const repeats = (event: TdsEvent) =>
      event.kind === 'request' && String(event.first).includes('INSERT INTO t VALUES (@id');
    // Whoever is about to answer is gone, ...
    const gone = [looksFor, repeats].map(
      (dies) =>
        new Promise<void>((done) => {
          const stop = next.onEvent((event) => {
            if (!dies(event)) return;
            stop();
            next.drop(Number(event.spid));
            done();
          });
        }),
    );
    await stage.kill();
    committed.release();
    lost.release();
    // ... and then the PostgreSQL behind all of them.
    await gone[0];
    await stage.pair.primary.kill();
    await stage.pair.primary.start();
    await committed.settled();
    await lost.settled();
    await gone[1];
  });

  it('is asked for when a primary that stands still is fenced', async () => {
    const { settled, release } = await inDoubt('before-commit', ['by the transaction manager']);
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

  it('is not noticed by a client whose server lives', async () => {
    const clients = [await stage.connect(), await stage.direct()];
    const before = await marks();
    const steps: ((client: TdsClient) => Promise<unknown>)[] = [
      ...[
        'INSERT INTO n (v) VALUES (1)',
        'SELECT @@TRANCOUNT AS t, XACT_STATE() AS x, CASE WHEN @@IDENTITY = MAX(id) THEN 1 ELSE 0 END AS i FROM n',
        'INSERT INTO n (v) VALUES (2); SELECT @@ROWCOUNT AS r, CASE WHEN SCOPE_IDENTITY() = MAX(id) THEN 1 ELSE 0 END AS i FROM n',
        'SET NOCOUNT ON; UPDATE n SET v = 3; SELECT @@ROWCOUNT AS r; SET NOCOUNT OFF',
        // What fails takes nothing with it that stands beside it.
        "INSERT INTO n (v) VALUES (4); INSERT INTO n (id, v) VALUES (1, 1), (1, 1); INSERT INTO n (v) VALUES (5); RAISERROR('no', 16, 1)",
        'SELECT v FROM n WHERE v > 3 ORDER BY v',
        "SET XACT_ABORT ON; BEGIN TRAN; INSERT INTO n (v) VALUES (6); SELECT CAST('x' AS int)",
        'SELECT @@TRANCOUNT AS t; SELECT COUNT(*) AS n FROM n WHERE v = 6',
        'INSERT INTO n (v) VALUES (7); INSERT INTO n (id, v) VALUES (1, 1), (1, 1); INSERT INTO n (v) VALUES (8)',
        'SELECT v FROM n WHERE v > 6; SET XACT_ABORT OFF',
        'BEGIN TRAN; INSERT INTO n (v) VALUES (9)',
        'BEGIN TRAN; COMMIT; SELECT @@TRANCOUNT AS t',
        'COMMIT TRANSACTION',
        'SELECT @@ROWCOUNT AS r, @@ERROR AS e, @@TRANCOUNT AS t',
        'COMMIT',
        'USE other; SELECT DB_NAME() AS d',
        'INSERT INTO app.dbo.n (v) VALUES (10); SELECT DB_NAME() AS d',
        'DELETE FROM app.dbo.n; SELECT DB_NAME() AS d; USE app',
      ].map((sql) => (client: TdsClient) => client.batch(sql)),
      (client) => client.begin(),
      (client) => client.sql('INSERT INTO n (v) VALUES (11)'),
      (client) => client.commit(),
      (client) => client.reset(),
      (client) => client.sql('DELETE FROM n'),
    ];
    const told = async (client: TdsClient) => {
      const answers: unknown[] = [];
      for (const step of steps) {
        answers.push(
          await step(client).then(
            (answer) => answer ?? null,
            ({ message, number, state, answer }) => ({ message, number, state, answer }),
          ),
        );
      }
      return JSON.parse(JSON.stringify(answers).replaceAll(/Process ID \d+/g, 'Process ID'));
    };
    const direct = await told(clients[1]);
    expect(await marks()).toBe(before);
    expect(await told(clients[0])).toEqual(direct);
    expect(await marks()).toBe(before + 8);
  });

  it('is refused where the table is not set up, and nothing is committed', async () => {
    const client = await stage.connect();
    const direct = await stage.direct();
    await direct.batch('DROP PROCEDURE dbo.outlive_commit_marker_put');
    const own = ++id;
    const missing = { number: 50055, message: expect.stringContaining('[OUTLIVE_MARK_REFUSED]') };
    for (const abort of ['OFF', 'ON']) {
      await client.batch(`SET XACT_ABORT ${abort}`);
      await client.begin();
      await client.sql(`INSERT INTO t VALUES (${own}, 'x')`);
      expect(await refusal(client.commit())).toMatchObject(missing);
      expect(client.descriptor).toBe('0000000000000000');
      expect(await refusal(client.batch(`INSERT INTO t VALUES (${own}, 'x')`))).toMatchObject(missing);
      expect((await client.batch('SELECT @@TRANCOUNT AS n')).rows).toEqual([{ n: 0 }]);
    }
    expect(await there(own)).toEqual([]);
    await setUpMarks(stage);
    await client.batch(`INSERT INTO t VALUES (${own}, 'x')`);
    expect(await there(own)).toEqual(['x']);
  });

  it.runIf(textTransactions)('is set up and looked after by outlive setup', async () => {
    const direct = await stage.direct();
    const [app, other] = [await stage.connect(), await stage.connect({ database: 'other' })];
    await direct.batch('CREATE TABLE other.dbo.t (id int)');
    expect(await refusal(other.batch('INSERT INTO t VALUES (1)'))).toMatchObject({ number: 50055 });
    const directory = tempDir();
    const file = join(directory, 'outlive.yaml');
    writeFileSync(join(directory, 'monitor'), 'Outlive.1', { mode: 0o600 });
    const servers = [stage.primary, stage.standby].map(
      ({ name, port }) => `{ name: ${name}, host: 127.0.0.1, port: ${port}, tls: off }`,
    );
    writeFileSync(
      file,
      `listeners: [{ name: main, codec: tds, listen: '127.0.0.1:0', cluster: c, auth: trust, outcome: { by: marker } }]
clusters: [{ name: c, servers: [${servers.join(', ')}], monitor: { user: sa, database: app, password: { file: monitor } } }]`,
    );
    const outlive = async (...argv: string[]) => {
      let text = '';
      const out = (more: string) => {
        text += more;
      };
      const stopped = () => new Promise<string>(() => {});
      const io = { out, err: out, env: {}, columns: 200, stopped, self: [], end: () => {} };
      const code = await main([argv[0], '--config', file, ...argv.slice(1)], io, {} as never);
      return { code, text };
    };
    const check = async () => (await outlive('check', '--online', '--database', 'other')).text;
    expect(await check()).toContain('the table dbo.outlive_commit_marker is missing');
    const setup = ['setup', '--listener', 'main', '--database', 'other'];
    expect(await outlive(...setup, '--dry-run')).toMatchObject({
      code: 0,
      text: expect.stringContaining('CREATE OR ALTER PROCEDURE dbo.outlive_commit_marker_put'),
    });
    expect(await check()).toContain('is missing');
    for (let twice = 0; twice < 2; twice++) expect(await outlive(...setup)).toMatchObject({ code: 0 });
    expect(await check()).not.toContain('is missing');
    await other.batch('INSERT INTO t VALUES (1)');
    // Into the database that it logged in to, wherever it works.
    await app.batch('USE other');
    const before = await marks();
    await app.batch('INSERT INTO t VALUES (2)');
    expect(await marks()).toBe(before + 1);
    const left = async () => (await direct.batch('SELECT COUNT(*) AS n FROM other.dbo.outlive_commit_marker')).rows;
    expect(await left()).toEqual([{ n: 1 }]);
    await direct.batch(
      'INSERT INTO other.dbo.outlive_commit_marker (id, created) VALUES (0x01, DATEADD(hour, -3, SYSUTCDATETIME()))',
    );
    const old = await outlive(...setup, '--remove-older-than', '2h');
    expect(old).toMatchObject({ code: 0, text: expect.stringContaining('1 rows older than 2h removed') });
    expect(await left()).toEqual([{ n: 1 }]);
  });
});
