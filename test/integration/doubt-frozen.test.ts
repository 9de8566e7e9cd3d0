import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeEach, describe, expect, it } from 'vitest';
import { useFront } from '../kit/front.js';
import { message } from '../kit/gateway.js';
import { eventually, tempDir } from '../kit/servers.js';

/** F20: a primary that stands still, and links that swallow everything. */
const front = useFront(
  { synchronous: false },
  'create table t (id int, v text); create table n (v int); insert into n values (0)',
);

beforeEach(async () => {
  await front.pair.primary.query('truncate t; update n set v = 0');
});

const rows = async (id: number) =>
  (await front.pair.primary.query<{ v: string }>('select v from t where id = $1', [id])).rows.map(({ v }) => v);

/** Plugins of this process, so that the test can act for them and see in which order they are called. */
const acts: { fence: (server: string) => unknown; promote: (server: string) => unknown } = {
  fence: () => {},
  promote: () => {},
};
Object.assign(globalThis, { [Symbol.for('outlive.test.acts')]: acts });

function plugin(kind: 'fence' | 'promote'): string {
  const file = join(tempDir(), `${kind}.mjs`);
  writeFileSync(
    file,
    `export default { name: '${kind}-test', contract: '1.0.0', kind: '${kind}', create: async () => ({
      act: async (server) => { await globalThis[Symbol.for('outlive.test.acts')].${kind}(server); } }) };`,
  );
  return file;
}

const TIMEOUT = 500;
const AFTER = 300;

/** A gateway that fences and promotes; `order` tells of it, and of questions for outcomes. */
async function guardedGateway(how: 'freeze' | 'kill') {
  const order: string[] = [];
  const times: Record<string, number> = {};
  const note = (what: string) => {
    times[what] ??= performance.now();
    if (!order.includes(what)) order.push(what);
  };
  acts.fence = async (server) => {
    note(`fence ${server}`);
    if (how === 'kill') await front.pair.primary.kill();
  };
  acts.promote = async (server) => {
    note(`promote ${server}`);
    await front.pair.failover({ how });
  };
  front.onClientBytes = (server, chunk) => {
    if (chunk.includes("SELECT pg_xact_status('")) note(`ask ${server}`);
  };
  const gateway = await front.gateway({
    cluster: {
      monitor: { user: 'postgres', interval: '100ms', timeout: `${TIMEOUT}ms` },
      promotion: { plugin: plugin('promote'), after: `${AFTER}ms` },
      fence: { plugin: plugin('fence') },
    },
  });
  return { gateway, order, times };
}

describe.each([
  ['a frozen primary', 'freeze' as const],
  ['a black hole in front of the primary', 'kill' as const],
])('%s', (_name, how) => {
  it('is noticed in the configured time, fenced before any outcome is asked, and heard no more', async () => {
    const { gateway, order, times } = await guardedGateway(how);
    const [old, next] = [front.pair.primary.name, front.pair.standby.name];
    const committing = await front.raw(gateway);
    const [open, running, idle] = [await front.pg(gateway), await front.pg(gateway), await front.pg(gateway)];
    await idle.query("set application_name = 'idle one'");
    await open.query('begin');
    await open.query('update n set v = v + 1');
    await running.query('begin');
    await running.query("insert into t values (21, 'running')");
    await committing.query('begin');
    await committing.query("insert into t values (20, 'committing')");
    committing.rest();
    // It stands still just before the COMMIT arrives, which then waits inside.
    let brokeAt = 0;
    front.proxy.when(
      'client',
      (bytes) => bytes.includes('COMMIT\0'),
      async () => {
        brokeAt = performance.now();
        if (how === 'freeze') await front.pair.primary.freeze();
        else front.proxy.blackhole();
      },
    );
    const commit = committing.query('COMMIT');
    const statement = eventually(() => brokeAt > 0).then(() => running.query("insert into t values (22, 'later')"));

    expect((await commit).map(({ type, bytes }) => type + bytes.toString('latin1', 5))).toEqual(['CCOMMIT\0', 'ZI']);
    await statement;
    await running.query('commit');
    expect((await open.query('select v from n')).rows).toEqual([{ v: 1 }]);
    await open.query('commit');
    expect((await idle.query('show application_name')).rows).toEqual([{ application_name: 'idle one' }]);
    expect(order).toEqual([`fence ${old}`, `promote ${next}`, `ask ${next}`]);
    const noticed = times[`fence ${old}`] - brokeAt;
    expect(noticed).toBeGreaterThan(AFTER);
    expect(noticed).toBeLessThan(100 + TIMEOUT + AFTER + 1500);
    expect(await rows(20)).toEqual(['committing']);
    expect(await rows(21)).toEqual(['running']);

    if (how === 'freeze') {
      // The old primary goes on, takes the COMMIT in, and answers: nobody hears it, and it counts nowhere.
      await front.pair.standby.thaw();
      const late = await front.pair.standby.connect();
      front.atEnd(() => late.end());
      await eventually(async () => (await late.query('select from t where id = 20')).rows.length === 1);
    }
    expect((await committing.query('select 1')).map(({ type }) => type).join('')).toBe('TDCZ');
    expect(committing.rest()).toEqual([]);
    expect(await rows(20)).toEqual(['committing']);
    for (const client of [open, running, idle]) expect(client.errors).toEqual([]);
  });
});

it('a primary that stood still and goes on is the same one: what was in flight counts once', async () => {
  const gateway = await front.gateway({
    cluster: { monitor: { user: 'postgres', timeout: '300ms' }, detection: { silence: '600ms' } },
  });
  const [commits, open] = [await front.pg(gateway), await front.pg(gateway)];
  await open.query('begin');
  await open.query("insert into t values (31, 'open')");
  await commits.query('begin');
  await commits.query("insert into t values (30, 'commits')");
  front.proxy.when(
    'client',
    (bytes) => bytes.includes('COMMIT\0'),
    () => front.pair.primary.freeze(),
  );
  const commit = commits.query('COMMIT');
  await eventually(() => gateway.log.lines.some(({ message }) => message.includes('nothing is heard')));
  const statement = open.query('select count(*)::int as n from t where id = 31');
  await front.pair.primary.thaw();
  expect((await commit).command).toBe('COMMIT');
  expect((await statement).rows).toEqual([{ n: 1 }]);
  await open.query('commit');
  expect(await rows(30)).toEqual(['commits']);
  expect(await rows(31)).toEqual(['open']);
  expect([...commits.errors, ...open.errors]).toEqual([]);
});

describe('a black hole on the path of one session only', () => {
  const SILENCE = 800;
  const start = () => front.gateway({ cluster: { detection: { silence: `${SILENCE}ms` } } });

  it('is noticed in the configured time; the server waits for nobody', async () => {
    const gateway = await start();
    const client = await front.pg(gateway);
    await client.query('begin');
    const connection = await front.connectionOf(() => client.query('update n set v = v + 1'), 'update n');
    await client.query('select pg_advisory_lock(20)');
    connection.blackhole();
    const brokeAt = performance.now();
    expect((await client.query('select v from n')).rows).toEqual([{ v: 1 }]);
    const pause = performance.now() - brokeAt;
    expect(pause).toBeGreaterThan(SILENCE / 2);
    expect(pause).toBeLessThan(2 * SILENCE + 1500);
    await client.query('rollback');
    expect(client.errors).toEqual([]);
  });

  it.each([
    ['before the commit', 'client' as const, 'not-committed'],
    ['behind the commit', 'server' as const, 'committed'],
  ])('leaves no doubt %s', async (_name, side, outcome) => {
    const gateway = await start();
    const client = await front.pg(gateway);
    const id = side === 'client' ? 40 : 41;
    await client.query('begin');
    await client.query('insert into t values ($1, $2)', [id, 'x']);
    if (side === 'client') {
      front.proxy.when(
        'client',
        (bytes) => bytes.includes('COMMIT\0'),
        (connection) => connection.blackhole(),
      );
    } else {
      front.proxy.when(
        'server',
        (bytes) => bytes.includes('COMMIT\0'),
        (connection) => connection.blackhole(),
      );
    }
    expect((await client.query('COMMIT')).command).toBe('COMMIT');
    expect(await rows(id)).toEqual(['x']);
    expect(Object.fromEntries(gateway.gateway.stats.outcomes)).toEqual({ [outcome]: 1 });
    expect(client.errors).toEqual([]);
  });

  it('is not suspected where the server works for long, or the client is slow to send or to read', async () => {
    const gateway = await start();
    const [sleeper, blocker, waiter] = [await front.pg(gateway), await front.pg(gateway), await front.pg(gateway)];
    const [copier, reader] = [await front.raw(gateway), await front.raw(gateway)];
    await blocker.query('begin');
    await blocker.query('update n set v = v + 1');
    const waits = waiter.query('update n set v = v + 10');
    await copier.write(message('Q', 'copy t from stdin\0'));
    await copier.until('G');
    reader.socket.pause();
    await reader.write(message('Q', "select repeat('x', 1000) from generate_series(1, 30000)\0"));
    await sleeper.query(`select pg_sleep(${(3 * SILENCE) / 1000})`);
    await blocker.query('rollback');
    await waits;
    await copier.write(Buffer.concat([message('d', '50\tx\n'), message('c')]));
    expect((await copier.until('Z')).at(-2)!.bytes.toString()).toContain('COPY 1');
    reader.socket.resume();
    expect((await reader.until('Z', 1, 20_000)).at(-2)!.bytes.toString()).toContain('SELECT 30000');
    expect(gateway.gateway.stats.pauses.count).toBe(0);
  });
});
