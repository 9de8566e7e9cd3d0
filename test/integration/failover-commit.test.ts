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
    const one = await sql.reserve();
    return {
      // The driver's queries begin when they are awaited.
      begin: async () => await one`begin`,
      insert: async (id) => await one`insert into t values (${id}, ${'x'})`,
      commit: async () => expect((await one`commit`).command).toBe('COMMIT'),
    };
  },
};

/** What the gateway or the client ends a transaction with, as a Query or a Parse. */
const isCommit = (bytes: Buffer) => /commit\0/i.test(bytes.toString('latin1'));

/** Calls back for each connection on which a commit passes; resolves after so many. */
function atCommits(count: number, action: (connection: FaultConnection) => void): Promise<void> {
  return new Promise((resolve) => {
    let left = count;
    const pass = (connection: FaultConnection) => {
      action(connection);
      if (--left === 0) resolve();
    };
    stage.proxy.when('client', isCommit, pass, { times: count });
  });
}

interface Loss {
  readonly committed: boolean;
  prepare?(): Promise<unknown>;
  /** Resolves when so many commits are lost. */
  happen(count: number): Promise<unknown>;
}

const LOSSES: Record<string, Loss> = {
  'its answer held': { committed: true, happen: (n) => atCommits(n, (connection) => connection.holdServerReplies()) },
  'the commit held': { committed: false, happen: (n) => atCommits(n, (connection) => connection.holdClientBytes()) },
  'the standby silent': {
    // Commits wait on the old primary for the standby, which will not have them.
    committed: false,
    prepare: () => stage.pair.pauseReplication(),
    happen: (n) =>
      eventually(async () => (await stage.rows("pg_stat_activity where wait_event = 'SyncRep'")) === n, {
        message: 'commits that wait for the standby',
      }),
  },
};

let id = 0;

it.each(Object.entries(LOSSES))('a commit is once, %s', async (_, { committed, prepare, happen }) => {
  const { stats } = stage.gateway;
  const count = (what: string) => stats.outcomes.get(what) ?? 0;
  const replays = () => stats.replays.get('done') ?? 0;
  const before = { committed: count('committed'), not: count('not-committed'), replays: replays() };
  const clients: { client: Client; transaction: boolean; id: number; name: string }[] = [];
  for (const [name, open] of Object.entries(DRIVERS)) {
    for (const transaction of [true, false]) {
      const client = await open();
      clients.push({ client, transaction, id: ++id, name: `${name}, ${transaction ? 'transaction' : 'single'}` });
    }
  }
  for (const { client, transaction, id } of clients) {
    if (!transaction) continue;
    await client.begin();
    await client.insert(id);
  }
  await prepare?.();
  const lost = happen(clients.length);
  const answers = clients.map(({ client, transaction, id }) => (transaction ? client.commit() : client.insert(id)));
  await lost;
  // What committed has reached the standby, too: only then can it be seen.
  const ids = `t where id between ${clients[0].id} and ${id}`;
  if (committed) await eventually(async () => (await stage.rows(ids)) === clients.length);
  await stage.kill();
  await Promise.all(answers);
  for (const { id, name } of clients) expect(await stage.rows(`t where id = ${id}`), name).toBe(1);
  expect(count('committed') - before.committed).toBe(committed ? clients.length : 0);
  expect(count('not-committed') - before.not).toBe(committed ? 0 : clients.length);
  // What committed is not repeated.
  expect(replays() - before.replays).toBe(committed ? 0 : clients.length);
  for (const { client, id } of clients) await client.insert(id);
  expect(await stage.rows(ids)).toBe(2 * clients.length);
});
