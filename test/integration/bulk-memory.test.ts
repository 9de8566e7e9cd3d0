import { afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { BulkClient, type BulkResult } from '../kit/bulk.js';
import { gatewayConfig, message } from '../kit/gateway.js';
import { type GatewayProcess, spawnGateway } from '../kit/gateway-process.js';
import { eventually, useServer } from '../kit/servers.js';

const MIB = 1024 * 1024;
/** Bytes of each large transfer; the variable is for quick looks while something is changed. */
const SIZE = Number(process.env.OUTLIVE_BULK_MIB ?? 1024) * MIB;

const JOURNAL = 16 * MIB;
const ANSWERS = MIB / 4;
const BACKLOG = MIB;
const READ = 64 * 1024;
/**
 * What a session may hold, whatever passes through it: the input of the open unit (limits.journal), the answers not yet
 * folded (limits.answers, and the chunk that goes beyond), what waits for a slow reader each way (limits.backlog, and
 * the chunk that goes beyond), and a read buffer each way.
 */
const HELD = JOURNAL + (ANSWERS + READ) + 2 * (BACKLOG + READ) + 2 * READ;
/** Buffers that nobody needs any more: V8 collects when they have grown by 32 to 64 MiB, not before. */
const GARBAGE = 64 * MIB;
/** The resident memory of the gateway stays below what it was before the first transfer and this. */
const BOUND = HELD + GARBAGE;

/** Seconds of CPU time for a GiB beyond which something is wrong, on whatever machine; it takes 2 to 4. */
const CPU_PER_GIB = 15;

/** What the kernel's four socket buffers between a client and its server can take. */
const KERNEL = 48 * MIB;

const seen = useServer();
let gateway: GatewayProcess;
/** Resident memory before the first transfer. */
let base: number;
const clients: BulkClient[] = [];

/** A row of 1,000 bytes makes a message of 1,006 or more. */
const rows = Math.ceil(SIZE / 1006);
const SELECT = `SELECT repeat('x', 1000) FROM generate_series(1, ${rows})`;
const COPY_OUT = `COPY (${SELECT}) TO STDOUT`;
/** Nothing is stored; the sequence counts the rows. */
const COPY_IN = "COPY sink FROM STDIN WHERE nextval('arrived') < 0";
const line = `${'y'.repeat(8191)}\n`;
/** Eight rows in one message. */
const LARGE = message('d', line.repeat(8));
/** A message for each row, as many clients send them. */
const SMALL = Buffer.concat(Array<Buffer>(640).fill(message('d', `${'z'.repeat(95)}\n`)));

beforeAll(async () => {
  await seen.server.query('CREATE UNLOGGED TABLE sink (v text)');
  await seen.server.query('CREATE SEQUENCE arrived');
});

// A process of its own for each test: what one test left behind must not hide what the next one takes.
beforeEach(async () => {
  await seen.server.query("SELECT setval('arrived', 1, false)");
  gateway = await spawnGateway(gatewayConfig(seen));
  // The first statement brings the catalogue and the compiled parts of the gateway.
  const first = await login(gateway);
  await first.run('SELECT 1');
  base = gateway.memory().now;
  gateway.resetPeak();
});
afterEach(async () => {
  for (const client of clients.splice(0)) client.destroy();
  await gateway.stop();
});

async function login(to: { readonly port: number }): Promise<BulkClient> {
  const client = await BulkClient.login(to);
  clients.push(client);
  return client;
}

const mib = (bytes: number) => Math.round(bytes / MIB);

/** Asserts the bound and says the figures. */
function bounded(what: string, bytes: number, through: BulkResult, cpu: number, direct?: BulkResult): void {
  const { peak } = gateway.memory();
  const rate = (result: BulkResult) => bytes / 1e6 / result.seconds;
  const ratio =
    direct === undefined
      ? ''
      : `, direct ${Math.round(rate(direct))} MB/s, ratio ${(rate(through) / rate(direct)).toFixed(2)}`;
  const perGib = (cpu * 1024 * MIB) / bytes;
  console.log(
    `${what}: ${mib(bytes)} MiB at ${Math.round(rate(through))} MB/s${ratio}, ${perGib.toFixed(1)} s of CPU a GiB, memory ${mib(base)} -> ${mib(peak)} MiB at most (bound ${mib(base + BOUND)})`,
  );
  expect(peak).toBeLessThan(base + BOUND);
  expect(perGib).toBeLessThan(CPU_PER_GIB);
}

/** What a server process waits for. */
async function waitsFor(query: string): Promise<{ pid: number; event: string | null } | undefined> {
  const { rows: found } = await seen.server.query<{ pid: number; event: string | null }>(
    'SELECT pid, wait_event AS event FROM pg_stat_activity WHERE state = $1 AND query = $2',
    ['active', query],
  );
  return found[0];
}

async function arrived(): Promise<number> {
  return Number((await seen.server.query<{ n: string }>('SELECT last_value AS n FROM arrived')).rows[0].n);
}

const LONG = { timeout: 600_000 };

describe('memory of the gateway while much passes through it', LONG, () => {
  it('is bounded during a COPY out', async () => {
    const direct = await (await login(seen.server)).run(COPY_OUT);
    const client = await login(gateway);
    const cpu = gateway.cpu();
    const through = await client.run(COPY_OUT);
    bounded('COPY out', through.bytes, through, gateway.cpu() - cpu, direct);
    expect({ ...through, seconds: 0 }).toEqual({ ...direct, seconds: 0 });
    expect(through.bytes).toBeGreaterThan(SIZE);
  });

  it('is bounded during a SELECT whose reader stops and is slow afterwards, and the server is held back', async () => {
    const client = await login(gateway);
    let stop = true;
    client.onChunk = () => !stop;
    const cpu = gateway.cpu();
    client.begin(SELECT);
    // The reader stands still: so does the server, in the middle of its result.
    await eventually(async () => (await waitsFor(SELECT))?.event === 'ClientWrite', { timeoutMs: 30_000 });
    expect(client.received).toBeLessThan(KERNEL);
    stop = false;
    // From here on it rests after every 8 MiB, so that its side is always the one that is waited for.
    let since = 0;
    client.onChunk = (length) => {
      since += length;
      if (since < 8 * MIB) return true;
      since = 0;
      setTimeout(() => client.resume(), 20);
      return false;
    };
    client.resume();
    const through = await client.finish();
    bounded('SELECT, slow reader', through.bytes, through, gateway.cpu() - cpu);
    expect(through.tag).toBe(`SELECT ${rows}`);
  });

  it('is bounded during a COPY in, and a server that stands still holds the client back', async () => {
    const times = Math.ceil(SIZE / LARGE.length);
    const client = await login(gateway);
    const cpu = gateway.cpu();
    let sent = 0;
    const done = client.copyIn(COPY_IN, LARGE, times, (bytes) => {
      sent = bytes;
    });
    await eventually(async () => sent > SIZE / 8 && (await waitsFor(COPY_IN)) !== undefined, { timeoutMs: 60_000 });
    const { pid } = (await waitsFor(COPY_IN))!;
    process.kill(pid, 'SIGSTOP');
    try {
      const stoppedAt = sent;
      let last = -1;
      // Nothing more leaves the client. For how long to watch that is a matter of time alone.
      await eventually(
        () => {
          const still = sent === last && client.socket.writableNeedDrain;
          last = sent;
          return still;
        },
        { intervalMs: 500, timeoutMs: 30_000 },
      );
      expect(sent - stoppedAt).toBeLessThan(KERNEL + HELD);
      expect(sent).toBeLessThan(times * LARGE.length);
    } finally {
      process.kill(pid, 'SIGCONT');
    }
    const through = await done;
    bounded('COPY in', times * LARGE.length, through, gateway.cpu() - cpu);
    expect(await arrived()).toBe(8 * times);
    // Larger than the journal: it could not have been repeated, and that is counted.
    expect((await gateway.status()).stats.unprotected).toMatchObject({ 'journal limit': 1 });
  });

  it('is bounded during a COPY in with a message for each row, and these do not cost a write each', async () => {
    const times = Math.ceil(SIZE / 8 / SMALL.length);
    const direct = await (await login(seen.server)).copyIn(COPY_IN, SMALL, times);
    const client = await login(gateway);
    const cpu = gateway.cpu();
    const through = await client.copyIn(COPY_IN, SMALL, times);
    bounded('COPY in by rows', times * SMALL.length, through, gateway.cpu() - cpu, direct);
    expect(await arrived()).toBe(2 * 640 * times);
  });

  it('is bounded inside of a transaction, which goes on when it has become too large to be repeated', async () => {
    const times = Math.ceil(Math.max(SIZE / 8, 2 * JOURNAL) / LARGE.length);
    const few = SELECT.replace(String(rows), String(Math.ceil(rows / 4)));
    const direct = await (await login(seen.server)).run(few);
    const client = await login(gateway);
    expect((await client.run('BEGIN')).status).toBe('T');
    let cpu = gateway.cpu();
    const select = await client.run(few);
    bounded('SELECT in a transaction', select.bytes, select, gateway.cpu() - cpu, direct);
    expect(select).toMatchObject({ bytes: direct.bytes, tag: direct.tag, status: 'T' });
    cpu = gateway.cpu();
    const copyIn = await client.copyIn(COPY_IN, LARGE, times);
    bounded('COPY in in a transaction', times * LARGE.length, copyIn, gateway.cpu() - cpu);
    cpu = gateway.cpu();
    const copyOut = await client.run(`COPY (${few}) TO STDOUT`);
    bounded('COPY out in a transaction', copyOut.bytes, copyOut, gateway.cpu() - cpu);
    expect((await client.run('COMMIT')).status).toBe('I');
    expect(await arrived()).toBe(8 * times);
    expect((await gateway.status()).stats.unprotected).toMatchObject({ 'journal limit': 1 });
  });
});
