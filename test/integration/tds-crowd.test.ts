import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { eventually, restorePair, usePair } from '../kit/servers.js';
import { TdsClient } from '../kit/tds.js';
import { launchTdsGateway } from '../kit/tds-stage.js';
import { type TdsEvent, TdsServer } from '../servers/tds/server.js';

/** F21: many clients of SQL Server in open transactions when the server dies. */
const CLIENTS = 200;
const CONCURRENT = 4;
const holder = usePair({ settings: { max_connections: '500' } });
const servers = new Map<string, TdsServer>();
const crowd: TdsClient[] = [];

const at = ({ name }: { readonly name: string }) => servers.get(name)!;

beforeAll(async () => {
  const { pair } = holder;
  for (const { name, host, port } of [pair.primary, pair.standby]) {
    const pg = { host, port, user: 'postgres', database: 'postgres' };
    servers.set(name, await TdsServer.start({ name, pg, tls: { cert: '', key: '' }, encryption: 'notSupported' }));
  }
  const client = await TdsClient.connect(at(pair.primary).port);
  await client.batch('CREATE TABLE t (id int, step int); CREATE TABLE accounts (id int PRIMARY KEY, balance int)');
  await client.close();
  await pair.primary.query(`insert into app.accounts select i, 0 from generate_series(1, ${CLIENTS}) i`);
});
afterEach(async () => {
  for (const client of crowd.splice(0)) client.connection.close();
  await restorePair(holder.pair);
  await holder.pair.primary.query('truncate app.t; update app.accounts set balance = 0');
});
afterAll(async () => {
  for (const server of servers.values()) await server.stop();
});

describe.each([
  ['without spares', CLIENTS, 0],
  ['with spares', CLIENTS / 2, CLIENTS / 2],
])('%s', (_name, clients, perIdentity) => {
  it(`${clients} open transactions go on, and the new primary is not stormed`, async () => {
    const { pair } = holder;
    const gateway = await launchTdsGateway(servers, {
      cluster: { logins: { concurrent: CONCURRENT }, spares: { perIdentity, total: clients } },
      listener: { failover: { wait: '40s' } },
      logLevel: 'silent',
    });
    try {
      for (let i = 0; i < clients; i += 20) {
        crowd.push(...(await Promise.all(Array.from({ length: 20 }, () => TdsClient.connect(gateway.port)))));
      }
      const { stats } = gateway.gateway;
      const spares = () => (gateway.gateway.status() as { clusters: { spares: number }[] }).clusters[0].spares;
      if (perIdentity > 0) await eventually(() => spares() >= clients, { timeoutMs: 30_000, message: 'the spares' });
      const each = <T>(work: (client: TdsClient, id: number) => Promise<T>, from = 0, to = clients) =>
        Promise.all(crowd.slice(from, to).map((client, i) => work(client, from + i + 1)));
      const insert = (step: number) => (client: TdsClient, id: number) =>
        client.batch(`INSERT INTO t VALUES (${id}, ${step})`);
      const look = async (client: TdsClient, id: number) =>
        expect((await client.batch(`SELECT balance FROM accounts WHERE id = ${id}`)).rows).toEqual([{ balance: 1 }]);
      await each((client) => client.begin());
      await each(insert(1));
      await each((client, id) => client.batch(`UPDATE accounts SET balance = balance + 1 WHERE id = ${id}`));
      await each(look);
      const before = { spare: stats.logins.get('spare') ?? 0, ok: stats.logins.get('ok') };

      // Logins under way at the server that takes over.
      const next = at(pair.standby);
      const under = new Set<unknown>();
      let most = 0;
      let total = 0;
      const stop = next.onEvent(({ kind, spid }: TdsEvent) => {
        if (kind === 'prelogin') {
          total++;
          most = Math.max(most, under.add(spid).size);
        } else under.delete(spid);
      });
      // Half of them ask at once, half come when it is over.
      await pair.primary.kill();
      const early = each(insert(2), 0, clients / 2);
      await pair.failover({ how: 'kill' });
      await early;
      await each(insert(2), clients / 2);
      await each(look);
      await each((client) => client.commit());
      stop();

      const { rows } = await pair.primary.query('select count(*)::int as n, sum(step)::int as steps from app.t');
      expect(rows).toEqual([{ n: 2 * clients, steps: 3 * clients }]);
      const kept = await pair.primary.query('select sum(balance)::int as n from app.accounts');
      expect(kept.rows).toEqual([{ n: clients }]);
      expect(stats.replays.get('done')).toBe(clients);
      expect([...stats.errors]).toEqual([]);
      expect(crowd.flatMap(({ lost }) => lost)).toEqual([]);
      expect(most).toBeLessThanOrEqual(CONCURRENT);
      if (perIdentity > 0) {
        expect((stats.logins.get('spare') ?? 0) - before.spare).toBe(clients);
        expect(stats.logins.get('ok')).toBe(before.ok);
      } else {
        expect(most).toBeGreaterThan(1);
        expect(total).toBeGreaterThanOrEqual(clients);
      }
    } finally {
      await gateway.stop();
    }
  });
});
