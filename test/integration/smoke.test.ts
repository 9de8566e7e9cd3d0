import pg from 'pg';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { createLog } from '../../core/host/log.js';
import { normalizeConfig } from '../../core/host/config/index.js';
import { type Gateway, startGateway } from '../../core/host/gateway.js';
import { type EmbeddedPair, startPair } from '../../plugins/embedded-postgres/index.js';

let pair: EmbeddedPair;
let gateway: Gateway;
const client = () => new pg.Client({ host: '127.0.0.1', port: gateway.listeners[0].port, user: 'postgres', database: 'postgres' });

beforeAll(async () => {
  pair = await startPair({});
  gateway = await startGateway(
    normalizeConfig({
      listeners: [{ name: 'main', codec: 'postgres', listen: '127.0.0.1:0', cluster: 'c', auth: 'trust' }],
      clusters: [
        {
          name: 'c',
          servers: [
            { name: 'a', host: '127.0.0.1', port: pair.primary.port, tls: 'off' },
            { name: 'b', host: '127.0.0.1', port: pair.standby.port, tls: 'off' },
          ],
          monitor: { user: 'postgres', interval: '200ms' },
        },
      ],
    }),
    { log: createLog({ level: (process.env.LOG as 'debug') ?? 'warn', pretty: false }) },
  );
});
afterAll(async () => {
  await gateway?.stop();
  await pair?.stop();
});

it('works', async () => {
  const c = client();
  await c.connect();
  expect((await c.query('select 1 as x')).rows).toEqual([{ x: 1 }]);
  await c.query('create table t (id int primary key, v text)');
  await c.query('insert into t values ($1, $2)', [1, 'a']);
  expect((await c.query('select * from t')).rows).toEqual([{ id: 1, v: 'a' }]);
  await c.query('begin');
  await c.query('update t set v = $1', ['b']);
  await c.query('commit');
  await expect(c.query('selekt')).rejects.toThrow(/syntax/);
  await expect(c.query('insert into t values (1)')).rejects.toThrow(/duplicate/);
  expect((await c.query('select v from t')).rows).toEqual([{ v: 'b' }]);
  await c.end();
});

it('survives a kill in an open transaction', async () => {
  const c = client();
  const errors: Error[] = [];
  c.on('error', (e) => errors.push(e));
  await c.connect();
  await c.query('begin');
  await c.query('insert into t values (2, $1)', ['x']);
  expect((await c.query('select count(*)::int as n from t')).rows).toEqual([{ n: 2 }]);
  await pair.failover({ how: 'kill' });
  await c.query('insert into t values (3, $1)', ['y']);
  await c.query('commit');
  expect((await c.query('select count(*)::int as n from t')).rows).toEqual([{ n: 3 }]);
  expect(errors).toEqual([]);
  await c.end();
});
