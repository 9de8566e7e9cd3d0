import { once } from 'node:events';
import { createRequire } from 'node:module';
import * as net from 'node:net';
import { type Duplex, Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import pg from 'pg';
import { afterEach, describe, expect, it } from 'vitest';
import type { ClientHost, ClientReport } from '../../core/host/demo/lab/clients.js';
import { checkLedger, createLedger, readLedger } from '../../core/host/demo/ledger.js';
import { now } from '../../core/host/demo/workload.js';
import { passingUnavailable } from '../../core/io/keeper/index.js';
import { type GatewayOverrides, gatewayConfig } from '../kit/gateway.js';
import { type KeptGateway, localClients, NOBODY, startKept } from '../kit/kept-gateway.js';
import { pausesOf } from '../kit/pair-lab.js';
import { eventually, restorePair, usePair } from '../kit/servers.js';

/** The package has no types. */
const pgCopy = createRequire(import.meta.url)('pg-copy-streams') as {
  from(text: string): Duplex & pg.Submittable;
  to(text: string): Readable & pg.Submittable;
};

/** K2, first half, and the upgrade of K13, on one host. CRASHES and UPGRADES say how often. */
const CRASHES = Number(process.env.CRASHES ?? 3);
const UPGRADES = Number(process.env.UPGRADES ?? 3);
const unavailable = passingUnavailable();
if (unavailable !== null) console.warn(`the keeper is not tested: ${unavailable}`);
/** A keeper needs no privileges. */
const USER = process.getuid?.() === 0 ? NOBODY : undefined;

const COUNTS = { idle: 5, transaction: 5, waiting: 5, result: 4, commit: 4, echo: 6, stream: 2, transfer: 14 };
const ALL = Object.values(COUNTS).reduce((sum, count) => sum + count, 0);

/** Unlike `once`, whatever error comes before. */
function ended(what: NodeJS.EventEmitter, event = 'close'): Promise<unknown> {
  return new Promise((resolve) => what.once(event, resolve));
}

/** The driver's socket, made anew for TLS. */
function streamOf(client: pg.Client): net.Socket {
  return (client as unknown as { connection: { stream: net.Socket } }).connection.stream;
}

type Client = pg.Client & { readonly port: () => number; readonly lost: Error[] };

describe.skipIf(unavailable !== null)('under a keeper, without a pair and without privileges', () => {
  const servers = usePair();
  const ends: (() => unknown)[] = [];
  afterEach(async () => {
    for (const end of ends.splice(0).reverse()) await end();
    await restorePair(servers.pair);
  });

  async function start(overrides: GatewayOverrides = {}): Promise<KeptGateway> {
    const config = gatewayConfig(servers, {
      ...overrides,
      listener: { limits: { greetings: 200 }, ...overrides.listener },
    });
    const gateway = await startKept(config, USER);
    ends.push(() => gateway.kill());
    return gateway;
  }

  async function connect({ port }: KeptGateway, more: pg.ClientConfig = {}): Promise<Client> {
    const client = new pg.Client({
      host: '127.0.0.1',
      port,
      user: 'postgres',
      database: 'postgres',
      ssl: false,
      ...more,
    });
    const lost: Error[] = [];
    client.on('error', (error) => lost.push(error));
    await client.connect();
    ends.push(() => streamOf(client).destroy());
    return Object.assign(client, { lost, port: () => streamOf(client).localPort! });
  }

  /** Clients of every kind at work. */
  async function busy(gateway: KeptGateway): Promise<ClientHost> {
    const clients = await localClients();
    ends.push(() => clients.kill());
    await createLedger((sql) => servers.pair.primary.query(sql), await clients.accounts(COUNTS.transfer));
    const think = { inside: 50, between: 20, stream: 300 };
    await clients.begin({ counts: COUNTS, address: '127.0.0.1', port: gateway.port, rows: 20_000, sleep: 4, think });
    await eventually(async () => (await clients.progress()).transactions > 20);
    return clients;
  }

  async function expectUnharmed(report: ClientReport): Promise<void> {
    expect(report).toMatchObject({ reconnects: 0, errors: [], wrongReads: [] });
    for (const { portBefore, portNow } of report.connections) expect(portNow).toBe(portBefore);
    const facts = await readLedger((sql) => servers.pair.primary.query(sql));
    expect(checkLedger(facts, report.claims, report.accounts)).toMatchObject({ right: true });
  }

  /** How long clients waited for the first answer after something. */
  async function pause(clients: ClientHost, happens: () => Promise<unknown>): Promise<number> {
    await clients.watch();
    const since = now();
    await happens();
    const pauses = await pausesOf(clients, servers.pair, since);
    await clients.probe();
    return Math.round(Math.max(...pauses));
  }

  it(`every client goes on when the engine is killed, ${CRASHES} times under load`, { timeout: 900_000 }, async () => {
    const gateway = await start();
    const clients = await busy(gateway);
    const pauses: number[] = [];
    for (let n = 0; n < CRASHES; n++) {
      await gateway.sound();
      // Commits that wait for the standby are in flight.
      if (n === CRASHES - 1) {
        await servers.pair.standby.freeze();
        await clients.press();
      }
      const took = await pause(clients, async () => {
        const crashed = gateway.next(({ msg }) => msg === 'the engine crashed and is started again');
        const goneOn = gateway.crash();
        await crashed;
        // Who comes while nobody is there waits in the listening socket.
        const late = connect(gateway);
        expect(await goneOn).toMatchObject({ kept: ALL, lost: 0 });
        if (servers.pair.standby.frozen) await servers.pair.standby.thaw();
        expect((await (await late).query('select 1 as n')).rows).toEqual([{ n: 1 }]);
        await (await late).end();
      });
      pauses.push(took);
    }
    await expectUnharmed(await clients.finish());
    expect((await gateway.status()).keeper).toEqual({ open: true, kept: ALL, lost: 0 });
    if (process.env.LOG) console.log('pauses after crashes', pauses);
  });

  it(`no client has an error when the engine is upgraded, ${UPGRADES} times under load`, {
    timeout: 900_000,
  }, async () => {
    const gateway = await start();
    const clients = await busy(gateway);
    const pauses: number[] = [];
    let coming = true;
    let came = 0;
    // Who comes meanwhile is served by the old one or the new one.
    const comers = Array.from({ length: 2 }, async () => {
      while (coming) {
        const client = await connect(gateway);
        await client.query('select 1');
        await client.end();
        came++;
      }
    });
    // Before the gateway ends: else a test that fails for another reason would tell of their connections.
    ends.push(async () => {
      coming = false;
      await Promise.allSettled(comers);
    });
    for (let n = 0; n < UPGRADES; n++) {
      if (n === UPGRADES - 1) await clients.press();
      pauses.push(
        await pause(clients, async () => {
          const { kept, lost } = await gateway.upgrade();
          expect(kept).toBeGreaterThanOrEqual(ALL);
          expect(lost).toBe(0);
        }),
      );
    }
    coming = false;
    await Promise.all(comers);
    expect(came).toBeGreaterThan(UPGRADES);
    await expectUnharmed(await clients.finish());
    if (process.env.LOG) console.log('pauses of upgrades', pauses, came);
  });

  it('who leaves while an engine waits for somebody who logs in is not missed by the next one', async () => {
    const gateway = await start();
    const [client, stays] = [await connect(gateway), await connect(gateway)];
    // Says less than a startup packet has.
    const slow = net.connect(gateway.port, '127.0.0.1');
    ends.push(() => slow.destroy());
    await once(slow, 'connect');
    slow.write(Buffer.from([0, 0]));
    await eventually(async () => (await gateway.status()).listeners[0].greetings === 1);
    const waits = gateway.next(({ msg }) => msg === 'another engine takes over');
    const upgraded = gateway.upgrade();
    await waits;
    await client.end();
    slow.destroy();
    expect(await upgraded).toEqual(expect.objectContaining({ kept: 1, lost: 0 }));
    expect((await stays.query('select 1 as n')).rows).toEqual([{ n: 1 }]);
    expect([...client.lost, ...stays.lost]).toEqual([]);
  });

  it('copies in both directions and large rows go on in their middle', async () => {
    const gateway = await start();
    const [reader, writer, wide] = [await connect(gateway), await connect(gateway), await connect(gateway)];
    await reader.query('create table bulk (id int, v text)');
    const lines = Array.from({ length: 40_000 }, (_, i) => `${i}\t${'abcdefghij'.repeat(i % 20)}\n`);
    const text = lines.join('');
    await reader.query(`insert into bulk select i, repeat('abcdefghij', i % 20) from generate_series(0, 39999) i`);

    const out = reader.query(pgCopy.to('copy (select * from bulk order by id) to stdout'));
    const [first] = (await once(out, 'data')) as [Buffer];
    out.pause();
    await writer.query('begin');
    await writer.query('create temp table copied (id int, v text) on commit drop');
    const into = writer.query(pgCopy.from('copy copied from stdin'));
    const half = text.length >> 1;
    await pipeline(Readable.from([text.slice(0, half)]), into, { end: false });
    const rows = wide.query({
      text: `select repeat(chr(97 + i % 26), 300000 + i) from generate_series(1, 40) i`,
      rowMode: 'array',
    });

    expect(await gateway.crash()).toMatchObject({ kept: 3, lost: 0 });
    await gateway.upgrade();
    const got = [first];
    for await (const chunk of out) got.push(chunk as Buffer);
    expect(Buffer.concat(got).equals(Buffer.from(text))).toBe(true);
    await pipeline(Readable.from([text.slice(half)]), into);
    const { rows: copied } = await writer.query('select count(*)::int as n, sum(length(v))::int as sum from copied');
    expect(copied).toEqual([{ n: 40_000, sum: lines.reduce((sum, line) => sum + line.split('\t')[1].length - 1, 0) }]);
    await writer.query('commit');
    const seen = (await rows).rows as unknown as [string][];
    expect(seen).toHaveLength(40);
    for (const [i, [row]] of seen.entries()) {
      expect(row === String.fromCharCode(97 + ((i + 1) % 26)).repeat(300_001 + i)).toBe(true);
    }
    for (const client of [reader, writer, wide]) expect(client.lost).toEqual([]);
    await servers.pair.primary.query('drop table bulk');
  });

  it('sessions have what they had: prepared statements, settings, and word of what is lost', async () => {
    const gateway = await start();
    const [client, temporary] = [await connect(gateway), await connect(gateway)];
    const prepared = { name: 'sum', text: 'select $1::int + $2::int as sum' };
    await client.query({ ...prepared, values: [1, 2] });
    await client.query(`set timezone = 'Asia/Tokyo'`);
    await client.query('prepare twice as select $1::int * 2 as twice');
    await temporary.query('create temp table mine (id int)');
    const ports = [client.port(), temporary.port()];
    for (const happen of [() => gateway.crash(), () => gateway.upgrade(), () => gateway.crash()]) {
      expect(await happen()).toMatchObject({ kept: 2, lost: 0 });
      expect((await client.query({ ...prepared, values: [1, 2] })).rows).toEqual([{ sum: 3 }]);
      expect((await client.query('show timezone')).rows).toEqual([{ TimeZone: 'Asia/Tokyo' }]);
      expect((await client.query('execute twice(4)')).rows).toEqual([{ twice: 8 }]);
    }
    // What cannot be brought back is named, once.
    await expect(temporary.query('select 1')).rejects.toMatchObject({
      code: '55000',
      message: expect.stringContaining('mine'),
    });
    expect((await temporary.query('select 1 as n')).rows).toEqual([{ n: 1 }]);
    expect([client.port(), temporary.port()]).toEqual(ports);
  });

  it('sessions that look for a server do so again in the next engine, and in the one after it', async () => {
    const { pair } = servers;
    const gateway = await start();
    await pair.primary.query('create table things (id int)');
    const clients = await Promise.all(Array.from({ length: 12 }, () => connect(gateway)));
    const committing = clients.slice(0, 4);
    for (const client of clients) {
      await client.query('begin');
      await client.query('insert into things values ($1)', [client.port()]);
    }
    // Commits that the standby has and the primary has not answered.
    await pair.standby.freeze();
    const commits = committing.map((client) => client.query('commit'));
    const waits = () => pair.primary.query("select 1 from pg_stat_activity where wait_event = 'SyncRep'");
    await eventually(async () => (await waits()).rows.length === committing.length);
    await pair.primary.kill();
    await eventually(async () => {
      const { states } = (await gateway.status()).listeners[0];
      return (states.suspended ?? 0) + (states.resolving ?? 0) === clients.length;
    });
    for (let n = 0; n < 3; n++) expect(await gateway.crash()).toMatchObject({ kept: clients.length, lost: 0 });
    await gateway.upgrade();
    await pair.standby.thaw();
    await pair.failover();
    await Promise.all(commits);
    await Promise.all(clients.slice(4).map((client) => client.query('commit')));
    const { rows } = await pair.primary.query('select id from things');
    expect(rows.map(({ id }) => id).sort()).toEqual(clients.map((client) => client.port()).sort());
    for (const client of clients) expect(client.lost).toEqual([]);
    await pair.primary.query('drop table things');
  });

  it('what cannot be kept is counted and closed, and harms nobody else', async () => {
    const gateway = await start();
    const [client, huge] = [await connect(gateway), await connect(gateway)];
    const stream = streamOf(huge);
    // More than the keeper notes of one session, and its end does not come.
    const length = 48 * 1024 * 1024;
    const head = Buffer.from([0x51, 0, 0, 0, 0]);
    head.writeInt32BE(length + 4, 1);
    stream.write(head);
    const refused = gateway.next(({ msg }) => msg === 'the keeper refused something');
    stream.write(Buffer.alloc(40 * 1024 * 1024, ' '));
    expect(await refused).toMatchObject({ asked: 'note', reason: 'too many bytes of notes for this key' });
    const closed = ended(stream);
    expect(await gateway.crash()).toMatchObject({ kept: 1, lost: 1 });
    await closed;
    expect((await gateway.status()).keeper).toEqual({ open: true, kept: 1, lost: 1 });
    expect((await client.query('select 1 as n')).rows).toEqual([{ n: 1 }]);
  });

  it('does not take clients into a sixth engine when five have crashed soon after they took over', async () => {
    const gateway = await start();
    const client = await connect(gateway);
    const closed = ended(client, 'end');
    await gateway.sound();
    for (let n = 0; n < 5; n++) expect(await gateway.crash()).toMatchObject({ kept: 1, lost: 0 });
    const listening = gateway.next(({ msg }) => msg === 'listening');
    process.kill(gateway.engine, 'SIGKILL');
    await closed;
    await listening;
    const next = await connect(gateway);
    expect((await next.query('select 1 as n')).rows).toEqual([{ n: 1 }]);
  });

  it('clients over TLS are told that they must come again, or are disconnected, and can at once', async () => {
    const gateway = await start({ tls: 'allow' });
    const over = () => connect(gateway, { ssl: { rejectUnauthorized: false } });
    const plain = await connect(gateway);
    const happenings = { 'being upgraded': () => gateway.upgrade(), terminated: () => gateway.crash() };
    for (const [why, happen] of Object.entries(happenings)) {
      const [idle, amid] = [await over(), await over()];
      const asked = idle.query('select pg_sleep(60)').catch((error: Error) => error);
      // One of them has a part of a frame, behind which nothing that is said would be understood.
      const result = amid.query(`select repeat('a', 50000000)`).catch((error: Error) => error);
      const stream = streamOf(amid);
      const chunks: Buffer[] = [];
      const some = new Promise<void>((resolve) => {
        stream.on('data', (chunk: Buffer) => {
          chunks.push(chunk);
          resolve();
        });
      });
      await some;
      stream.pause();
      expect(await happen()).toMatchObject({ kept: 1, lost: 0 });
      stream.resume();
      expect(((await asked) as Error).message).toContain(why);
      expect(((await result) as Error).message).toMatch(/terminated|ECONNRESET/);
      // How much of the row came nobody knows, perhaps only its head: behind its beginning there is nothing else.
      const said = Buffer.concat(chunks);
      const row = said.indexOf('aaaa');
      expect(row < 0 ? said.length < 200 : said.subarray(row).every((byte) => byte === 0x61)).toBe(true);
      const again = await over();
      expect((await again.query('select 1 as n')).rows).toEqual([{ n: 1 }]);
      await again.end();
    }
    expect((await plain.query('select 1 as n')).rows).toEqual([{ n: 1 }]);
    expect(plain.lost).toEqual([]);
  });

  it('ends in order with its keeper', async () => {
    const gateway = await start();
    const client = await connect(gateway);
    await gateway.crash();
    const end = ended(client, 'end');
    expect(await gateway.stop()).toBe(0);
    await end;
    expect(client.lost[0]).toMatchObject({ code: '57P03', detail: 'OUTLIVE_STOPPING' });
  });
});
