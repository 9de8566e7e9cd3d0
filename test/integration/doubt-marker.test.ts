import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it, vi } from 'vitest';
import postgres from '../../codecs/postgres/index.js';
import { main } from '../../core/host/cli.js';
import { errorOf, type FrontGateway, useFront } from '../kit/front.js';
import type { PgClient } from '../kit/gateway.js';
import { eventually } from '../kit/servers.js';

/** Commits whose answer was lost, proved by rows, on an asynchronous pair: what had reached the standby and what had not. */
const TABLE = 'outlive.commit_marker';
const SETUP = postgres.markers!.setup(TABLE, 'postgres').join(';\n');
const front = useFront({ synchronous: false }, `${SETUP}; create table t (id int, v text)`);
const COMMIT = Buffer.from('COMMIT\0', 'latin1');
const MARKER = { listener: { outcome: { by: 'marker' } } } as const;

const rows = async (id: number) =>
  (await front.pair.primary.query<{ v: string }>('select v from t where id = $1', [id])).rows.map(({ v }) => v);
const marks = async () => Number((await front.pair.primary.query(`select count(*) from ${TABLE}`)).rows[0].count);
const outcomes = (gateway: FrontGateway) => Object.fromEntries(gateway.gateway.stats.outcomes);

const WAYS: Record<string, (client: PgClient, id: number) => Promise<unknown>> = {
  'a transaction, simple': async (client, id) => {
    await client.query('begin');
    await client.query(`insert into t values (${id}, 'x')`);
    return () => client.query('COMMIT');
  },
  'a transaction, prepared': async (client, id) => {
    await client.query({ name: 'b', text: 'begin', values: [] });
    await client.query({ name: 'i', text: 'insert into t values ($1, $2)', values: [id, 'x'] });
    return () => client.query({ name: `c${id}`, text: 'COMMIT', values: [] });
  },
  'a statement that commits by itself': async (client, id) => () => client.query(`insert into t values (${id}, 'x')`),
};

let id = 0;

describe.each(Object.entries(WAYS))('%s', (_name, prepare) => {
  it.each([
    ['its answer is lost and it has reached the new primary', 'answer', true],
    ['its answer is lost and it has not', 'answer', false],
    ['it is lost itself', 'commit', false],
  ])('whose commit is in doubt: %s', async (_where, lost, kept) => {
    const gateway = await front.gateway(MARKER);
    const client = await front.pg(gateway);
    const own = ++id;
    const commit = (await prepare(client, own)) as () => Promise<{ command: string }>;
    const before = await marks();
    if (!kept) await front.pair.pauseReplication();
    const reached = new Promise<void>((resolve) => {
      front.proxy.when(
        'client',
        (bytes) => bytes.includes(COMMIT),
        (connection) => {
          if (lost === 'answer') connection.holdServerReplies();
          else connection.holdClientBytes();
          resolve();
        },
      );
    });
    const answer = commit();
    await reached;
    if (lost === 'answer') await front.appears(`select from t where id = ${own}`);
    if (kept) await front.replicated();
    await front.failover();
    expect((await answer).command).toMatch(/COMMIT|INSERT/);
    expect(await rows(own)).toEqual(['x']);
    expect(outcomes(gateway)).toEqual({ [kept ? 'committed' : 'not-committed']: 1 });
    expect(await marks()).toBe(before + 1);
    expect(client.errors).toEqual([]);
    await client.query(`insert into t values (${own}, 'after')`);
    expect(await rows(own)).toEqual(['x', 'after']);
  });
});

it('is unknown when it was in doubt for so long that its row may have been removed', async () => {
  const gateway = await front.gateway(MARKER);
  const client = await front.pg(gateway);
  const lost = ++id;
  const reached = front.proxy.waitFor('client', (bytes) => bytes.includes(COMMIT));
  front.proxy.when(
    'client',
    (bytes) => bytes.includes(COMMIT),
    (connection) => connection.holdClientBytes(),
  );
  const answer = errorOf(client.query(`insert into t values (${lost}, 'x')`));
  await reached;
  // This host was suspended for half an hour.
  const later = vi.spyOn(Date, 'now').mockReturnValue(Date.now() + 30 * 60_000);
  front.atEnd(() => later.mockRestore());
  await front.failover();
  expect(await answer).toMatchObject({ code: '08007', detail: 'OUTLIVE_OUTCOME_UNKNOWN' });
  expect(outcomes(gateway)).toEqual({ unknown: 1 });
  expect(await rows(lost)).toEqual([]);
});

describe('a link that breaks under a commit, while the server lives', () => {
  const both = Object.entries(WAYS).flatMap(([name, prepare]) => [
    { name, by: 'marker' as const, prepare },
    { name, by: 'position' as const, prepare },
  ]);
  it.each(both)('is made again, twice: $name, by $by', async ({ name, by, prepare }) => {
    const gateway = await front.gateway({ listener: { outcome: { by } } });
    const client = await front.pg(gateway);
    const expected = { committed: 0, 'not-committed': 0 };
    for (const lost of ['answer', 'commit', 'answer'] as const) {
      const own = ++id;
      const commit = (await prepare(client, own)) as () => Promise<unknown>;
      const before = await marks();
      front.proxy.when(
        'client',
        (bytes) => bytes.includes(COMMIT),
        (connection) => {
          if (lost === 'answer') {
            connection.holdServerReplies();
            // The server has not heard it at this moment.
            void front.appears(`select from t where id = ${own}`).then(() => connection.cut());
          } else connection.cut();
        },
      );
      await commit();
      expect(await rows(own)).toEqual(['x']);
      expect(await marks()).toBe(before + (by === 'marker' ? 1 : 0));
      expected[lost === 'answer' ? 'committed' : 'not-committed']++;
      expect(outcomes(gateway)).toMatchObject(Object.fromEntries(Object.entries(expected).filter(([, n]) => n > 0)));
      if (name.includes('prepared')) {
        // What was prepared with a commit whose answer was lost is there.
        await client.query('begin');
        await client.query({ name: `c${own}`, text: 'COMMIT', values: [] });
      }
    }
    expect(client.errors).toEqual([]);
  });
});

describe('an undisturbed commit', () => {
  it('leaves one row, where there is anything to prove', async () => {
    const gateway = await front.gateway(MARKER);
    const client = await front.pg(gateway);
    const left = async (what: () => Promise<unknown>) => {
      const before = await marks();
      await what();
      return (await marks()) - before;
    };
    const run = (sql: string[]) => async () => {
      for (const each of sql) await client.query(each);
    };
    await front.pair.primary.query(
      'create role app; grant all on t to app; create function quiet() returns int language sql as $$ select 1 $$',
    );
    const seen: Record<string, number> = {};
    for (const [name, sql] of Object.entries({
      'nothing written': ['begin', 'select count(*) from t', 'commit'],
      'a function that nobody knows, and that writes nothing': ['begin', 'select quiet()', 'commit'],
      'the same in a read-only transaction': ['begin read only', 'select quiet()', 'commit'],
      'the same by itself': ['select quiet()'],
      'rolled back': ['begin', 'insert into t values (900)', 'rollback'],
      'undone to a savepoint': [
        'begin',
        'insert into t values (901)',
        'savepoint s',
        'insert into t values (902)',
        'rollback to s',
        'commit',
      ],
      serializable: [
        'begin isolation level serializable',
        'select count(*) from t',
        'insert into t values (903)',
        'commit',
      ],
      'as another role': [
        'set role app',
        'begin',
        'insert into t values (904)',
        'commit',
        'insert into t values (905)',
        'reset role',
      ],
      'with nothing in the search path': [
        'begin',
        'insert into t values (906)',
        "set search_path to ''",
        'commit',
        'reset search_path',
      ],
      'a notification': ['begin', 'notify n', 'commit'],
      'several in one Query': ['begin; insert into t values (907); commit; insert into t values (908)'],
    }))
      seen[name] = await left(run(sql));
    expect(seen).toEqual({
      'nothing written': 0,
      'a function that nobody knows, and that writes nothing': 0,
      'the same in a read-only transaction': 0,
      'the same by itself': 0,
      'rolled back': 0,
      'undone to a savepoint': 1,
      serializable: 1,
      'as another role': 2,
      'with nothing in the search path': 1,
      'a notification': 1,
      'several in one Query': 2,
    });
    expect(client.errors).toEqual([]);
  });

  it('is answered with the error of what fails, and leaves none', async () => {
    const gateway = await front.gateway(MARKER);
    const client = await front.pg(gateway);
    await front.pair.primary.query('create table d (id int unique deferrable initially deferred)');
    const before = await marks();
    const failing = async (...sql: string[]) => {
      for (const each of sql.slice(0, -1)) await client.query(each);
      const { code, detail } = await errorOf(client.query(sql.at(-1)!));
      // No transaction is open behind it.
      await client.query('begin');
      await client.query('rollback');
      return detail?.startsWith('OUTLIVE') ? `${code} ${detail}` : code;
    };
    const insert = 'insert into d values (1), (1)';
    expect(await failing('begin', insert, 'commit')).toBe('23505');
    expect(await failing(insert)).toBe('23505');
    expect(await failing('begin', 'insert into d values (1)', 'set transaction read only', 'commit')).toBe(
      '55000 OUTLIVE_MARK_REFUSED',
    );
    await front.pair.primary.query(`alter table ${TABLE} rename to elsewhere`);
    expect(await failing('begin', 'insert into d values (1)', 'commit')).toBe('55000 OUTLIVE_MARK_REFUSED');
    expect(await failing('insert into d values (1)')).toBe('55000 OUTLIVE_MARK_REFUSED');
    await front.pair.primary.query(`alter table outlive.elsewhere rename to commit_marker`);
    await client.query('insert into d values (1)');
    expect((await front.pair.primary.query('select from d')).rows).toHaveLength(1);
    expect(await marks()).toBe(before + 1);
    expect(gateway.log.lines.filter(({ code }) => code === 'OUTLIVE_MARK_REFUSED')).toHaveLength(3);
  });
});

describe('outlive setup', () => {
  it('makes the table, so that users without rights leave rows, and the monitor finds and removes them', async () => {
    const { primary, standby } = front.pair;
    await primary.query(`drop schema outlive cascade`);
    await primary.query(`create role watch login in role pg_monitor, pg_signal_backend`);
    await primary.query('create role plain login');
    await primary.query('create database other');
    const direct = await primary.connect('other');
    front.atEnd(() => direct.end());
    await direct.query('create table t (id int); grant all on t to plain');
    const directory = mkdtempSync(join(tmpdir(), 'outlive-setup-'));
    front.atEnd(() => rmSync(directory, { recursive: true }));
    const file = join(directory, 'outlive.yaml');
    const servers = [primary, standby].map(
      ({ name, host, port }) => `{ name: ${name}, host: ${host}, port: ${port}, tls: off }`,
    );
    writeFileSync(
      file,
      `listeners: [{ name: main, codec: postgres, listen: '127.0.0.1:0', cluster: c, auth: trust, outcome: { by: marker } }]
clusters: [{ name: c, servers: [${servers.join(', ')}], monitor: { user: watch } }]`,
    );
    const outlive = async (...argv: string[]) => {
      let text = '';
      const say = (more: string) => {
        text += more;
      };
      const io = {
        out: say,
        err: say,
        env: {},
        columns: 200,
        stopped: () => new Promise<string>(() => {}),
        self: [],
        end: () => {},
      };
      const code = await main([argv[0], '--config', file, ...argv.slice(1)], io, {} as never);
      return { code, text };
    };
    const setup = ['setup', '--listener', 'main', '--database', 'other'];
    const missing = async () => (await outlive('check', '--online', '--database', 'other')).text.includes('is missing');
    expect(await missing()).toBe(true);
    const dry = await outlive(...setup, '--dry-run');
    expect(dry).toMatchObject({ code: 0, text: expect.stringContaining(`CREATE TABLE IF NOT EXISTS ${TABLE}`) });
    expect(await missing()).toBe(true);
    expect(await outlive(...setup)).toMatchObject({ code: 1, text: expect.stringContaining('OUTLIVE_SETUP_REFUSED') });
    expect(await outlive(...setup, '--remove-older-than', '30m')).toMatchObject({
      code: 1,
      text: expect.stringContaining('OUTLIVE_SETUP_AGE'),
    });
    for (let twice = 0; twice < 2; twice++) expect((await outlive(...setup, '--user', 'postgres')).code).toBe(0);
    expect(await missing()).toBe(false);

    const gateway = await front.gateway({ ...MARKER, cluster: { monitor: { user: 'watch' } } });
    const client = await front.pg(gateway, { user: 'plain', database: 'other' });
    await client.query('begin');
    await client.query('insert into t values (1)');
    front.proxy.when(
      'client',
      (bytes) => bytes.includes(COMMIT),
      (connection) => connection.holdServerReplies(),
    );
    const answer = client.query('COMMIT');
    await eventually(async () => (await direct.query('select from t')).rows.length > 0, { message: 'the row' });
    await front.replicated();
    await front.failover();
    expect((await answer).command).toBe('COMMIT');
    expect(outcomes(gateway)).toEqual({ committed: 1 });
    expect((await client.query('select from t')).rows).toHaveLength(1);
    expect((await errorOf(client.query(`select from ${TABLE}`))).code).toBe('42501');

    const now = await front.pair.primary.connect('other');
    front.atEnd(() => now.end());
    await now.query(`update ${TABLE} set created = created - interval '3 hours'`);
    await client.query('insert into t values (2)');
    const old = await outlive(...setup, '--user', 'postgres', '--remove-older-than', '2h');
    expect(old).toMatchObject({ code: 0, text: expect.stringContaining('1 rows older than 2h removed') });
    expect((await now.query(`select from ${TABLE}`)).rows).toHaveLength(1);
  });
});
