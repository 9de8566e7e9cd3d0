import postgres from 'postgres';
import { expect, it } from 'vitest';
import type { FaultConnection } from '../kit/fault-proxy.js';
import { eventually } from '../kit/servers.js';
import { useStage } from '../kit/stage.js';

/** F5, F6, F7 with ordinary drivers: a commit whose answer was lost, and one that never happened. */
const stage = useStage('create table t (id int, v text)');

interface Client {
  begin(): Promise<unknown>;
  insert(id: number): Promise<unknown>;
  commit(): Promise<unknown>;
}

const DRIVERS: Record<string, () => Promise<Client>> = {
  'pg, simple': async () => {
    const client = await stage.pg();
    return {
      begin: () => client.query('begin'),
      insert: (id) => client.query(`insert into t values (${id}, 'x')`),
      commit: async () => expect((await client.query('commit')).command).toBe('COMMIT'),
    };
  },
  'pg, prepared': async () => {
    const client = await stage.pg();
    return {
      begin: () => client.query({ name: 'b', text: 'begin', values: [] }),
      insert: (id) => client.query({ name: 'i', text: 'insert into t values ($1, $2)', values: [id, 'x'] }),
      commit: async () =>
        expect((await client.query({ name: 'c', text: 'commit', values: [] })).command).toBe('COMMIT'),
    };
  },
  postgres: async () => {
    const sql = postgres({ host: '127.0.0.1', port: stage.port, user: 'postgres', database: 'postgres', max: 1 });
    stage.adopt({ destroy: () => void sql.end({ timeout: 0 }) });
    // One reserved connection; each statement is pipelined by the driver as it likes.
    const one = await sql.reserve();
    return {
      begin: () => one`begin`,
      insert: (id) => one`insert into t values (${id}, ${'x'})`,
      commit: async () => expect((await one`commit`).command).toBe('COMMIT'),
    };
  },
};

/** What the gateway or the client ends a transaction with, in any form. */
const isCommit = (bytes: Buffer) => /commit/i.test(bytes.toString('latin1'));

/** Calls back with the connection when a commit passes. Prepared ones are named before. */
function atCommit(action: (connection: FaultConnection) => unknown): Promise<FaultConnection> {
  return new Promise((resolve) => {
    stage.proxy.when('client', isCommit, async (connection) => {
      await action(connection);
      resolve(connection);
    });
  });
}

const LOSSES: Record<string, { arrange(): Promise<unknown>; committed: boolean }> = {
  'its answer held': {
    arrange: () => atCommit((connection) => connection.holdServerReplies()),
    committed: true,
  },
  'the commit held': {
    arrange: () => atCommit((connection) => connection.holdClientBytes()),
    committed: false,
  },
  'the standby silent': {
    // The commit waits on the old primary for the standby, which will not have it.
    arrange: async () => {
      await stage.pair.pauseReplication();
      await eventually(async () => (await stage.rows("pg_stat_activity where wait_event = 'SyncRep'")) > 0);
    },
    committed: false,
  },
};

let id = 0;

for (const [driver, open] of Object.entries(DRIVERS)) {
  for (const [name, { arrange, committed }] of Object.entries(LOSSES)) {
    for (const transaction of [true, false]) {
      it(`${driver}, ${transaction ? 'a transaction' : 'a single INSERT'}, ${name}: once`, async () => {
        const client = await open();
        const mine = ++id;
        const { stats } = stage.gateway;
        const count = (what: string) => stats.outcomes.get(what) ?? 0;
        const before = {
          committed: count('committed'),
          not: count('not-committed'),
          replays: stats.replays.get('done') ?? 0,
        };
        if (transaction) {
          await client.begin();
          await client.insert(mine);
        }
        // Commits of others than the client must not be taken for its own: none are under way.
        const lost = arrange();
        const answer = transaction ? client.commit() : client.insert(mine);
        await lost;
        if (name === 'its answer held') await stage.committed(`t where id = ${mine}`);
        await stage.kill();
        await answer;
        expect(await stage.rows(`t where id = ${mine}`)).toBe(1);
        expect(count('committed') - before.committed).toBe(committed ? 1 : 0);
        expect(count('not-committed') - before.not).toBe(committed ? 0 : 1);
        // What committed is not repeated.
        expect((stats.replays.get('done') ?? 0) - before.replays).toBe(committed ? 0 : 1);
        await client.insert(mine);
        expect(await stage.rows(`t where id = ${mine}`)).toBe(2);
      });
    }
  }
}
