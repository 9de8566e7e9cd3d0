import type pg from 'pg';
import { afterEach, describe, expect, it } from 'vitest';
import { eventually } from '../kit/servers.js';
import { useStage } from '../kit/stage.js';

/** F13: planned switchovers. No client gets an error. */
let ids = 0;

interface Rows {
  from: number;
  count: number;
}

/** Inserts row after row, each by itself or each in a transaction, until told to stop. */
function writer(client: pg.Client, inside: boolean): { stop(): Promise<Rows> } {
  const from = ++ids * 1_000_000;
  let count = 0;
  let on = true;
  const run = (async () => {
    while (on) {
      if (inside) {
        await client.query('begin');
        await client.query('select 1');
      }
      await client.query('insert into s values ($1)', [from + count]);
      if (inside) await client.query('commit');
      count++;
    }
  })();
  // Looked at by stop().
  run.catch(() => {});
  return {
    async stop() {
      on = false;
      await run;
      return { from, count };
    },
  };
}

const SETUP = 'create table s (id int primary key)';

describe('shutdown', () => {
  const stage = useStage(SETUP);

  async function exactly({ from, count }: Rows): Promise<void> {
    expect(await stage.rows(`s where id between ${from} and ${from + 999_999}`)).toBe(count);
  }

  it.each(['fast', 'immediate'] as const)('%s, then promotion: idle, in transactions, at work', async (how) => {
    const idle = await stage.pg();
    await idle.query(`set application_name to 'the idle one'`);
    const open = await stage.pg();
    const from = ++ids * 1_000_000;
    await open.query('begin');
    await open.query('insert into s values ($1)', [from]);
    const busy = await stage.pg();
    await busy.query('begin');
    await busy.query('insert into s values ($1)', [from + 1]);
    const sleeping = busy.query('select 7 as x from pg_sleep(0.7)');
    const [one, other] = [writer(await stage.pg(), false), writer(await stage.pg(), true)];
    await eventually(async () => (await stage.rows('s')) > 20);

    await stage.pair.failover({ how });

    await open.query('insert into s values ($1)', [from + 2]);
    await open.query('commit');
    expect((await sleeping).rows).toEqual([{ x: 7 }]);
    await busy.query('commit');
    await exactly({ from, count: 3 });
    expect((await idle.query('show application_name')).rows).toEqual([{ application_name: 'the idle one' }]);
    const before = await stage.rows('s');
    await eventually(async () => (await stage.rows('s')) > before + 20);
    await exactly(await one.stop());
    await exactly(await other.stop());
    for (const client of [idle, open, busy]) expect(client.lost).toEqual([]);
  });
});

describe('a primary that turned read-only', () => {
  const stage = useStage(SETUP);
  afterEach(() => {
    expect(stage.gateway.stats.toJSON()).toMatchObject({ divergences: 0 });
  });

  async function turnReadOnly(): Promise<void> {
    await stage.direct('alter system set default_transaction_read_only = on');
    await stage.direct('select pg_reload_conf()');
    await eventually(
      async () => (await stage.pair.primary.query('show transaction_read_only')).rows[0].transaction_read_only === 'on',
    );
  }

  it('a client that asked for READ ONLY itself gets 25006 as it is', async () => {
    const client = await stage.pg();
    const refused = { code: '25006', message: 'cannot execute INSERT in a read-only transaction' };
    const insert = 'insert into s values (-1)';
    await client.query('begin read only');
    await client.query('select 1');
    await expect(client.query(insert)).rejects.toMatchObject(refused);
    await expect(client.query('select 1')).rejects.toMatchObject({ code: '25P02' });
    await client.query('rollback');
    await client.query('begin');
    await client.query('set transaction read only');
    await expect(client.query(insert)).rejects.toMatchObject(refused);
    await client.query('rollback');
    await client.query('set default_transaction_read_only = on');
    await expect(client.query(insert)).rejects.toMatchObject(refused);
    await expect(client.query('insert into s values ($1)', [-1])).rejects.toMatchObject(refused);
    expect((await client.query('select 1 as x')).rows).toEqual([{ x: 1 }]);
    expect([...stage.gateway.stats.replays]).toEqual([]);
    expect(stage.gateway.stats.pauses.count).toBe(0);
    expect(client.lost).toEqual([]);
  });

  it('the same, on the way through a failover', async () => {
    const client = await stage.pg();
    await client.query('begin read only');
    await client.query('select 1');
    await client.query('savepoint a');
    await expect(client.query('insert into s values (-1)')).rejects.toMatchObject({ code: '25006' });
    await client.query('rollback to a');
    stage.proxy.cut();
    await expect(client.query('insert into s values (-1)')).rejects.toMatchObject({ code: '25006' });
    await client.query('rollback');
    expect(client.lost).toEqual([]);
  });

  it('and is then shut down, its standby promoted', async () => {
    const from = ++ids * 1_000_000;
    const open = await stage.pg();
    await open.query('begin');
    await open.query('insert into s values ($1)', [from]);
    const idle = await stage.pg();
    const late = await stage.pg();
    await turnReadOnly();
    // Begun before: still writes.
    await open.query('insert into s values ($1)', [from + 1]);
    // Begun after: reads, and would write.
    await late.query('begin');
    expect((await late.query('select 1 as x')).rows).toEqual([{ x: 1 }]);
    const answers = [
      late.query('insert into s values ($1)', [from + 2]),
      idle.query('insert into s values ($1)', [from + 3]),
    ];
    await eventually(() => JSON.stringify(stage.gateway.status()).includes('"suspended":2'), {
      message: 'two that wait',
    });
    await stage.pair.failover({ how: 'fast' });
    for (const answer of answers) expect((await answer).rowCount).toBe(1);
    await late.query('commit');
    await open.query('insert into s values ($1)', [from + 4]);
    await open.query('commit');
    expect(await stage.rows(`s where id between ${from} and ${from + 9}`)).toBe(5);
    for (const client of [open, idle, late]) expect(client.lost).toEqual([]);
  });
});

describe('a primary that turned read-only and lives on', () => {
  const stage = useStage(SETUP);

  it('sessions leave it when its standby was promoted', async () => {
    const from = ++ids * 1_000_000;
    const { primary: old, standby: next } = stage.pair;
    const open = await stage.pg();
    await open.query('begin');
    await open.query('insert into s values ($1)', [from]);
    const idle = await stage.pg();
    await idle.query(`set application_name to 'the idle one'`);
    const busy = writer(await stage.pg(), false);
    await eventually(async () => (await stage.rows('s')) > 5);
    await stage.direct('alter system set default_transaction_read_only = on');
    await stage.direct('select pg_reload_conf()');
    await eventually(() => JSON.stringify(stage.gateway.status()).includes('"suspended":1'), {
      message: 'one that waits',
    });
    const position = (await stage.direct<{ at: string }>('select pg_current_wal_lsn()::text as at'))[0].at;
    await eventually(async () => {
      const { rows } = await next.query<{ there: boolean }>(
        `select pg_last_wal_replay_lsn() >= '${position}' as there`,
      );
      return rows[0].there;
    });
    await next.promote();
    await open.query('insert into s values ($1)', [from + 1]);
    await open.query('commit');
    await idle.query('insert into s values ($1)', [from + 2]);
    expect((await idle.query('show application_name')).rows).toEqual([{ application_name: 'the idle one' }]);
    const { from: first, count } = await busy.stop();
    const there = async (a: number, b: number) =>
      (await next.query<{ n: number }>(`select count(*)::int as n from s where id between ${a} and ${b}`)).rows[0].n;
    expect(await there(from, from + 9)).toBe(3);
    expect(await there(first, first + 999_999)).toBe(count);
    expect((await old.query(`select 1 from s where id = ${from + 1}`)).rows).toEqual([]);
    for (const client of [open, idle]) expect(client.lost).toEqual([]);
  });
});
