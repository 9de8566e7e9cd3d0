import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { BACKEND, CONTRACT_VERSION, FRONTEND } from '../../core/contract/index.js';
import { faultsLeft, setFault, VICTIM } from '../fixtures/faulty-codec.js';
import { type FaultProxy, startFaultProxy } from '../kit/fault-proxy.js';
import {
  cancelRequest,
  connectPg,
  launchGateway,
  type PgClient,
  RawClient,
  recordingLog,
  useGateway,
} from '../kit/gateway.js';
import { eventually, tempDir, useServer } from '../kit/servers.js';

const CODEC = fileURLToPath(new URL('../fixtures/faulty-codec.ts', import.meta.url));

const holder = useServer({ settings: { fsync: 'off' } });
let proxy: FaultProxy;
beforeAll(async () => {
  proxy = await startFaultProxy({ target: () => ({ host: '127.0.0.1', port: holder.server.port }) });
  const admin = await connectPg(holder.server);
  await admin.query('create table t (id int); create table v (id int)');
  await admin.end();
});
afterAll(async () => {
  await proxy?.close();
});
const log = recordingLog();
const gateway = useGateway(
  () => [{ port: proxy.port }],
  () => ({ listener: { codec: CODEC, failover: { wait: '3s' } }, log }),
);

let bystander: PgClient;
beforeEach(async () => {
  setFault(null);
  log.lines.length = 0;
  bystander = await connectPg(gateway);
  await bystander.query('begin; insert into t values (1)');
});
afterEach(async () => {
  setFault(null);
  // Its transaction is still open, whatever befell the other session and its server.
  await bystander.query('insert into t values (2)');
  expect((await bystander.query('select id from t order by id')).rows).toEqual([{ id: 1 }, { id: 2 }]);
  await bystander.query('rollback');
  expect(bystander.errors).toEqual([]);
  await bystander.end();
  // New ones come in as ever.
  const next = await connectPg(gateway, { application_name: VICTIM });
  expect((await next.query('select 1 as one')).rows).toEqual([{ one: 1 }]);
  await next.end();
  await eventually(() => clients() === 0, { message: 'all sessions are gone' });
});

const clients = () => (gateway.gateway.status() as { listeners: { clients: number }[] }).listeners[0].clients;

/** What the victim does, and what it gets in the end. */
async function victim(work: (client: PgClient) => Promise<unknown>): Promise<Error> {
  let client: PgClient;
  try {
    client = await connectPg(gateway, { application_name: VICTIM });
  } catch (error) {
    return error as Error;
  }
  try {
    await work(client);
  } catch (error) {
    return error as Error;
  } finally {
    client.end().catch(() => {});
  }
  throw new Error('the victim was not struck');
}

const busy = async (client: PgClient) => {
  await client.query('select 1');
  await client.query('insert into v values ($1)', [10]);
  await client.query('begin; insert into v values (11); commit');
  await client.query('select pg_advisory_lock(1)');
  await client.query('select 1');
};

const BROKEN = /codec faulty failed: the test broke/;

describe('a codec that throws while the session is served', () => {
  it.each([
    ['peek', FRONTEND],
    ['peek', BACKEND],
    ['decode', FRONTEND],
    ['decode', BACKEND],
    ['sent', undefined],
    ['guardBegun', undefined],
    ['guardEnded', undefined],
    ['guard.begin', undefined],
    ['guard.commit', undefined],
    ['token', undefined],
    ['observe', undefined],
    ['synthesize.ready', undefined],
  ] as const)('%s %s', async (at, side) => {
    setFault({ at, side, times: 1 });
    const error = await victim(busy);
    expect(faultsLeft()).toBe(0);
    expect(error.message).toMatch(BROKEN);
    expect(error).toMatchObject({ code: 'XX000' });
    expect(log.lines.filter(({ code }) => code === 'OUTLIVE_CODEC_BROKEN')).toMatchObject([
      { level: 'error', listener: 'main' },
    ]);
  });
});

describe('a codec that throws while a client comes in', () => {
  it.each(['greet', 'login', 'session', 'welcome'])('%s', async (at) => {
    setFault({ at, times: 1 });
    const error = await victim(busy);
    expect(faultsLeft()).toBe(0);
    expect(error.message).not.toBe('the victim was not struck');
    expect(
      log.lines
        .filter(({ level }) => level === 'error')
        .map(({ message }) => message)
        .join('\n'),
    ).toMatch(/faulty.*the test broke/);
    // Who is not let in yet is told no more than that.
    expect(error).toMatchObject({ code: 'XX000', message: 'the codec failed: see the log' });
  });

  it('learn: everything is guarded, and nobody notices', async () => {
    setFault({ at: 'learn', times: 1000 });
    const client = await connectPg(gateway, { database: 'template1', application_name: VICTIM });
    expect((await client.query('select 1 as one')).rows).toEqual([{ one: 1 }]);
    await client.end();
  });

  it('cancel: the request goes on', async () => {
    setFault({ at: 'cancel', times: 1 });
    const client = await connectPg(gateway, { application_name: VICTIM });
    const answer = client.query('select pg_sleep(0.5)::text as s');
    const { processID, secretKey } = client as unknown as { processID: number; secretKey: number };
    const key = Buffer.alloc(8);
    key.writeInt32BE(processID, 0);
    key.writeInt32BE(secretKey, 4);
    const side = await RawClient.open(gateway);
    await side.write(cancelRequest(key));
    await side.untilClosed();
    expect(faultsLeft()).toBe(0);
    expect((await answer).rows).toEqual([{ s: '' }]);
    await client.end();
  });
});

describe('a codec that throws while a session is moved', () => {
  it.each(['login', 'rewind', 'restore', 'announce', 'blockers', 'canonical', 'verbatim'])('%s', async (at) => {
    const error = await victim(async (client) => {
      await client.query("set application_name = 'moved'");
      await client.query('begin');
      await client.query("set work_mem = '1MB'");
      await client.query('select id from v limit 1');
      setFault({ at, times: 1 });
      proxy.cut();
      await client.query('select 1');
    });
    expect(faultsLeft()).toBe(0);
    expect(error.message).toMatch(BROKEN);
    expect(log.lines.filter(({ code }) => code === 'OUTLIVE_CODEC_BROKEN').length).toBe(1);
  });

  it.each(['gather', 'reserve', 'plan'])('mutables.%s: values are not kept, and the session is', async (at) => {
    // In a database of its own: else the bystander would do it for both.
    const client = await connectPg(gateway, { database: 'template1', application_name: VICTIM });
    await client.query('begin');
    await client.query('select clock_timestamp()');
    setFault({ at: `mutables.${at}`, times: 1 });
    proxy.cut();
    await expect(client.query('select 1')).rejects.toMatchObject({ code: '40001', detail: 'OUTLIVE_REPLAY_DIVERGED' });
    expect(faultsLeft()).toBe(0);
    await client.query('rollback');
    expect((await client.query('select 1 as one')).rows).toEqual([{ one: 1 }]);
    expect(log.lines.filter(({ code }) => code === 'OUTLIVE_CODEC_BROKEN').length).toBeGreaterThan(0);
    await client.end();
  });

  it('probe: the servers are asked again', async () => {
    setFault({ at: 'probe', times: 3 });
    await eventually(() => faultsLeft() <= 0);
    const client = await connectPg(gateway);
    expect((await client.query('select 1 as one')).rows).toEqual([{ one: 1 }]);
    await client.end();
  });
});

describe('what does not load', () => {
  const dir = tempDir();
  const file = (name: string, text: string) => {
    writeFileSync(join(dir, name), text);
    return `./${name}`;
  };
  const POSTGRES = JSON.stringify(new URL('../../codecs/postgres/index.ts', import.meta.url).href);
  const launch = (overrides: Parameters<typeof launchGateway>[1]) =>
    launchGateway(holder, { ...overrides, baseDir: dir, log });

  it.each([
    ['a codec that is not there', './nowhere.mjs', '', /nowhere\.mjs.*not found/s],
    ['a codec that does not parse', './syntax.mjs', 'export default {', /syntax\.mjs/],
    ['a codec that throws as it loads', './throws.mjs', 'throw new Error("no luck")', /throws\.mjs.*no luck/s],
    ['a codec without a default export', './none.mjs', 'export const a = 1', /none\.mjs.*default export/s],
    [
      'a codec that lacks functions',
      './lacks.mjs',
      `export default { name: 'lacks', contract: '${CONTRACT_VERSION}' }`,
      /lacks\.mjs/,
    ],
    [
      'a codec of a later contract',
      './later.mjs',
      `import p from ${POSTGRES}; export default { ...p, name: 'later', contract: '2.0.0' }`,
      /later.*2\.0\.0/s,
    ],
    [
      'a codec of a newer minor contract',
      './newer.mjs',
      `import p from ${POSTGRES}; export default { ...p, name: 'newer', contract: '1.999.0' }`,
      /newer.*1\.999\.0/s,
    ],
  ])('%s', async (_, codec, text, culprit) => {
    if (text !== '') file(codec.slice(2), text);
    const error = await launch({ listener: { codec } }).catch(
      (e: unknown) => e as Error & { code: string; culprit: string },
    );
    expect(error).toBeInstanceOf(Error);
    expect((error as Error).message).toMatch(culprit);
    expect(error).toMatchObject({ code: expect.stringMatching(/^OUTLIVE_/) });
  });

  it.each([
    [
      'a plugin of a later contract',
      './plater.mjs',
      "export default { name: 'plater', contract: '2.0.0', kind: 'credentials', create: async () => ({}) }",
      /plater.*2\.0\.0/s,
    ],
    [
      'a plugin of another kind',
      './kind.mjs',
      `export default { name: 'kind', contract: '${CONTRACT_VERSION}', kind: 'fence', create: async () => ({}) }`,
      /kind\.mjs.*credentials/s,
    ],
    [
      'a plugin that fails to start',
      './fails.mjs',
      `export default { name: 'fails', contract: '${CONTRACT_VERSION}', kind: 'credentials', create: async () => { throw new Error('no luck') } }`,
      /credentials.*fails.*no luck/s,
    ],
    ['a plugin that is not there', './gone.mjs', '', /gone\.mjs/],
  ])('%s', async (_, plugin, text, culprit) => {
    if (text !== '') file(plugin.slice(2), text);
    const error = await launch({ listener: { credentials: { plugin } } }).catch((e: unknown) => e as Error);
    expect(error).toBeInstanceOf(Error);
    expect((error as Error).message).toMatch(culprit);
    expect(error).toMatchObject({ code: expect.stringMatching(/^OUTLIVE_/) });
  });

  it('a credentials plugin that throws refuses the client, and lives', async () => {
    const plugin = file(
      'moody.mjs',
      `export default { name: 'moody', contract: '${CONTRACT_VERSION}', kind: 'credentials', create: async () => ({
      async lookup(user) { if (user === 'moody') throw new Error('not today'); return { password: 'p' }; } }) }`,
    );
    const started = await launch({ listener: { auth: 'md5', credentials: { plugin } } });
    try {
      await expect(connectPg(started, { user: 'moody', password: 'p' })).rejects.toThrow(
        'the plugin failed: see the log',
      );
      const client = await connectPg(started, { password: 'p' });
      await client.end();
      expect(log.lines).toContainEqual(
        expect.objectContaining({
          code: 'OUTLIVE_PLUGIN_BROKEN',
          message: expect.stringMatching(/moody\.mjs.*not today/),
        }),
      );
    } finally {
      await started.stop();
    }
  });
});
