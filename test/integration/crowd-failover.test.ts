import { afterEach, describe, expect, it } from 'vitest';
import { useFront } from '../kit/front.js';
import { message, RawClient, rowOf } from '../kit/gateway.js';
import { eventually } from '../kit/servers.js';

/** F21: many clients in open transactions when the server dies. */
const CLIENTS = 200;
const CONCURRENT = 4;
const front = useFront(
  { settings: { max_connections: '500' } },
  `create table t (id int, step int, primary key (id, step));
   create table accounts (id int primary key, balance int); insert into accounts select i, 0 from generate_series(1, ${CLIENTS}) i`,
);

const crowd: RawClient[] = [];
afterEach(async () => {
  for (const client of crowd.splice(0)) client.destroy();
  await front.pair.primary.query('truncate t; update accounts set balance = 0');
});

/** Runs a Query and throws on an error of any kind. */
async function run(client: RawClient, sql: string): Promise<(string | null)[][]> {
  await client.write(message('Q', `${sql}\0`));
  const answer = await client.until('Z', 1, 45_000);
  const error = answer.find(({ type }) => type === 'E');
  if (error !== undefined) throw new Error(`${sql}: ${error.bytes.toString('latin1')}`);
  return answer.filter(({ type }) => type === 'D').map(({ bytes }) => rowOf(bytes));
}

/** Counts logins under way at the proxies: connections that have not heard ReadyForQuery yet. */
function countLogins() {
  const under = new Map<string, Set<object>>();
  const most = new Map<string, number>();
  let total = 0;
  front.onClientBytes = (server, chunk, connection) => {
    // A startup packet of protocol 3.x: length, then the version.
    if (connection.received('client') !== chunk.length || chunk.length < 8 || chunk.readUInt16BE(4) !== 3) return;
    const now = under.get(server) ?? new Set();
    under.set(server, now.add(connection));
    total++;
    most.set(server, Math.max(most.get(server) ?? 0, now.size));
  };
  front.onServerBytes = (server, chunk, connection) => {
    if (chunk.length >= 6 && chunk.includes(Buffer.from([0x5a, 0, 0, 0, 5]))) under.get(server)?.delete(connection);
  };
  return {
    most: (server: string) => most.get(server) ?? 0,
    get total() {
      return total;
    },
    forget() {
      most.clear();
      total = 0;
    },
  };
}

describe.each([
  ['without spares', 0],
  ['with spares', CLIENTS],
])('%s', (_name, perIdentity) => {
  it(`${CLIENTS} open transactions go on, and the new primary is not stormed`, async () => {
    const logins = countLogins();
    const gateway = await front.gateway({
      cluster: { logins: { concurrent: CONCURRENT }, spares: { perIdentity, total: CLIENTS } },
      listener: { failover: { wait: '40s' } },
    });
    for (let i = 0; i < CLIENTS; i += 20) {
      crowd.push(...(await Promise.all(Array.from({ length: 20 }, () => RawClient.login(gateway)))));
    }
    const stats = gateway.gateway.stats;
    if (perIdentity > 0) {
      await eventually(
        () => (gateway.gateway.status() as { clusters: { spares: number }[] }).clusters[0].spares >= CLIENTS,
        {
          timeoutMs: 30_000,
          message: 'the spares',
        },
      );
    }
    const each = <T>(work: (client: RawClient, id: number) => Promise<T>) =>
      Promise.all(crowd.map((client, i) => work(client, i + 1)));
    await each((client) => run(client, 'begin'));
    await each((client, id) => run(client, `insert into t values (${id}, 1)`));
    await each((client, id) => run(client, `update accounts set balance = balance + 1 where id = ${id}`));
    await each((client, id) => run(client, `select balance from accounts where id = ${id}`));
    logins.forget();
    const before = { spare: stats.logins.get('spare') ?? 0, ok: stats.logins.get('ok') };

    const { name: next } = front.pair.standby;
    // Half of them ask at once, half come when it is over.
    await front.pair.primary.kill();
    front.proxy.cut();
    const early = Promise.all(
      crowd.slice(0, CLIENTS / 2).map((client, i) => run(client, `insert into t values (${i + 1}, 2)`)),
    );
    await front.failover();
    await early;
    await Promise.all(
      crowd.slice(CLIENTS / 2).map((client, i) => run(client, `insert into t values (${CLIENTS / 2 + i + 1}, 2)`)),
    );
    expect((await each((client, id) => run(client, `select balance from accounts where id = ${id}`))).flat(2)).toEqual(
      new Array(CLIENTS).fill('1'),
    );
    await each((client) => run(client, 'commit'));

    const { rows } = await front.pair.primary.query('select count(*)::int as n, sum(step)::int as steps from t');
    expect(rows).toEqual([{ n: 2 * CLIENTS, steps: 3 * CLIENTS }]);
    const balances = await front.pair.primary.query('select distinct balance from accounts');
    expect(balances.rows).toEqual([{ balance: 1 }]);
    expect(stats.replays.get('done')).toBe(CLIENTS);
    expect([...stats.errors]).toEqual([]);
    expect(logins.most(next)).toBeLessThanOrEqual(CONCURRENT);
    if (perIdentity > 0) {
      expect((stats.logins.get('spare') ?? 0) - before.spare).toBe(CLIENTS);
      // None of the sessions had to log in.
      expect(stats.logins.get('ok')).toBe(before.ok);
    } else {
      expect(logins.most(next)).toBeGreaterThan(1);
      expect(logins.total).toBeGreaterThanOrEqual(CLIENTS);
    }
  });
});
