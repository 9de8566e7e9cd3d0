import { describe, expect, it } from 'vitest';
import { errorOf, useFront } from '../kit/front.js';

/** F17, F18: what an asynchronous standby never received. */
const front = useFront({ synchronous: false }, 'create table t (id int, v text); create table alias (id int)');
const COMMIT = Buffer.from('COMMIT\0');

const rows = async (id: number) =>
  (await front.pair.primary.query<{ v: string }>('select v from t where id = $1', [id])).rows.map(({ v }) => v);

describe('F17: a transaction id that was issued again', () => {
  it.each([
    ['a transaction', 17, true],
    ['a statement that commits by itself', 18, false],
  ])('is not taken for the one in doubt: %s', async (_name, id, explicit) => {
    const gateway = await front.gateway();
    const client = await front.pg(gateway);
    await front.pair.pauseReplication();
    const insert = `insert into t values (${id}, 'client')`;
    if (explicit) {
      await client.query('begin');
      await client.query(insert);
    }
    front.proxy.when(
      'client',
      (bytes) => bytes.includes(COMMIT),
      (connection) => connection.holdServerReplies(),
    );
    const answer = client.query(explicit ? 'COMMIT' : insert);
    await front.appears(`select from t where id = ${id}`);
    const { rows: found } = await front.pair.primary.query<{ xid: string }>(
      `select xmin::text as xid from t where id = ${id}`,
    );
    const xid = found[0].xid;

    // The new primary must have issued the id again before the gateway can ask it.
    front.nextProxy.holdServerReplies();
    await front.failover();
    expect(await rows(id)).toEqual([]);
    const direct = await front.direct();
    let issued = '';
    while (issued !== xid) {
      const { rows } = await direct.query<{ xid: string }>('insert into alias values (1) returning xmin::text as xid');
      issued = rows[0].xid;
      if (BigInt(issued) > BigInt(xid)) throw new Error(`the new primary began with ${issued}, beyond ${xid}`);
    }
    const { rows: naive } = await direct.query<{ status: string }>('select pg_xact_status($1::text::xid8) as status', [
      xid,
    ]);
    expect(naive[0].status).toBe('committed');
    front.proxy.release();

    expect((await answer).command).toBe(explicit ? 'COMMIT' : 'INSERT');
    expect(await rows(id)).toEqual(['client']);
    expect(Object.fromEntries(gateway.gateway.stats.outcomes)).toEqual({ 'not-committed': 1 });
    expect(client.errors).toEqual([]);
    // The connection is an ordinary one again.
    await client.query(`insert into t values (${id + 5}, 'after')`);
    expect(await rows(id + 5)).toEqual(['after']);
  });
});

describe('F18: acknowledged commits that the promoted server never received', () => {
  it('are counted and logged, and the sessions go on', async () => {
    const gateway = await front.gateway();
    const client = await front.pg(gateway);
    await front.pair.pauseReplication();
    await client.query("insert into t values (30, 'autocommit')");
    await client.query('begin');
    await client.query("insert into t values (31, 'transaction')");
    await client.query('commit');
    // What wrote nothing cannot be lost.
    await client.query('begin');
    await client.query('select count(*) from t');
    await client.query('commit');
    await front.failover();

    expect((await client.query('select id from t where id in (30, 31)')).rows).toEqual([]);
    expect(gateway.gateway.stats.lostCommits).toBe(2);
    const lines = gateway.log.lines.filter(({ code }) => code === 'OUTLIVE_LOST_COMMITS');
    expect(lines).toMatchObject([{ level: 'error', count: 2, server: front.pair.primary.name }]);
    await client.query("insert into t values (32, 'after')");
    expect(await rows(32)).toEqual(['after']);
    expect(client.errors).toEqual([]);
  });

  it('stop the listener where the policy says so', async () => {
    const gateway = await front.gateway({ listener: { failover: { lostCommit: 'stop' } }, admin: true });
    const client = await front.pg(gateway);
    const idle = await front.raw(gateway);
    await front.pair.pauseReplication();
    await client.query("insert into t values (40, 'lost')");
    await front.failover();

    await idle.untilClosed();
    expect(idle.messages.at(-1)!.bytes.toString()).toContain('OUTLIVE_LOST_COMMITS');
    await errorOf(client.query('select 1'));
    const refused = await errorOf(front.pg(gateway));
    expect(refused).toMatchObject({ code: '28000', detail: expect.stringContaining('OUTLIVE_LOST_COMMITS') });
    expect(gateway.gateway.stats.lostCommits).toBe(1);
    const health = await fetch(`http://127.0.0.1:${gateway.gateway.admin!.port}/health`);
    expect(health.status).toBe(503);
    expect(await health.text()).toContain('lostCommit');
  });

  it('are none where the standby received everything', async () => {
    const gateway = await front.gateway({ listener: { failover: { lostCommit: 'stop' } } });
    const client = await front.pg(gateway);
    await client.query("insert into t values (50, 'there')");
    const { rows: wal } = await front.pair.primary.query<{ lsn: string }>('select pg_current_wal_lsn()::text as lsn');
    const standby = await front.pair.standby.connect();
    front.atEnd(() => standby.end());
    for (;;) {
      const { rows } = await standby.query<{ there: boolean }>('select pg_last_wal_replay_lsn() >= $1 as there', [
        wal[0].lsn,
      ]);
      if (rows[0].there) break;
    }
    await front.failover();
    expect((await client.query('select v from t where id = 50')).rows).toEqual([{ v: 'there' }]);
    expect(gateway.gateway.stats.lostCommits).toBe(0);
  });
});
