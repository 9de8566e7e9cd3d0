import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { killPrimary } from '../../core/host/demo/kill.js';
import { now } from '../../core/host/demo/workload.js';
import { outlive, Program } from '../kit/gateway-pair.js';
import { describeLab, usePairLab } from '../kit/pair-lab.js';
import { eventually, selfSignedCert } from '../kit/servers.js';
import { type GatewayPair, PORT, startGateways } from '../kit/takeover.js';
import { connectClients, expectUnharmed, total } from '../kit/takeover-scene.js';

/** Connections of each kind that the program below opens. */
const EACH = 4;

/**
 * Clients with TLS: some idle, some that wait for an answer, some that read large results again and again. Tells how many are there, and in the
 * end how each connection ended. Arguments: address, port.
 */
const TLS_CLIENTS = `
  import pg from 'pg';
  const [host, port] = process.argv.slice(1);
  const ends = [];
  let wrong = 0;
  let rows = 0;
  const say = () => console.log(JSON.stringify({ open, ends, wrong, rows, alive: clients.filter(({ over }) => !over).length }));
  let open = 0;
  const clients = Array.from({ length: ${3 * EACH} }, (_, i) => ({ kind: ['idle', 'waiting', 'reading'][i % 3], over: false }));
  for (const one of clients) {
    const client = new pg.Client({ host, port: Number(port), user: 'postgres', database: 'postgres', ssl: { rejectUnauthorized: false } });
    const end = (error) => {
      if (one.over) return;
      one.over = true;
      ends.push({ kind: one.kind, code: error?.code ?? null, message: String(error?.message) });
      say();
    };
    client.on('error', end).on('end', () => end(null));
    await client.connect();
    if (!client.connection.stream.encrypted) throw new Error('a connection without TLS');
    open++;
    if (one.kind === 'waiting') client.query('SELECT pg_sleep(100)').catch(end);
    if (one.kind !== 'reading') continue;
    void (async () => {
      for (;;) {
        const result = await client.query("SELECT g, lpad(g::text, 60, 'x') AS filler FROM generate_series(1, 20000) AS g");
        if (result.rows.length !== 20000 || result.rows.some(({ g, filler }, i) => g !== i + 1 || filler !== String(g).padStart(60, 'x'))) wrong++;
        rows += result.rows.length;
      }
    })().catch(end);
  }
  say();
  process.stdin.on('end', () => { say(); process.exit(); }).resume();`;

/** K13. */
describeLab('TLS connections of clients', () => {
  const place = usePairLab({ settings: { max_connections: '500' } });

  async function start(): Promise<GatewayPair> {
    const { dir } = place.lab;
    const { cert, key } = selfSignedCert();
    writeFileSync(join(dir, 'cert.pem'), cert);
    writeFileSync(join(dir, 'key.pem'), key, { mode: 0o600 });
    const tls = { mode: 'allow', cert: join(dir, 'cert.pem'), key: join(dir, 'key.pem') };
    return await startGateways(place, { proof: 'command', listener: { tls } });
  }

  async function connectTls(gateways: GatewayPair): Promise<Program> {
    const program = new Program(place, place.lab.host('client'), TLS_CLIENTS, [gateways.address, String(PORT)]);
    await eventually(() => program.last?.open === 3 * EACH, { timeoutMs: 30_000 });
    return program;
  }

  it('survive the loss of the database', async () => {
    const { pair } = place;
    const gateways = await start();
    const counts = { idle: 4, transaction: 4, waiting: 4, result: 4, commit: 4, echo: 4, transfer: 8 };
    const clients = await place.clients(counts);
    const connection = { ssl: { rejectUnauthorized: false } };
    await clients.begin({ counts, address: gateways.address, port: PORT, connection });
    await eventually(async () => (await clients.progress()).transactions > 20);
    // None of them is one that the other gateway could go on with.
    expect((await gateways.b.status()).pair.shadows).toEqual({ total: 0, adoptable: 0 });
    await pair.standby.freeze();
    await clients.press();
    await eventually(async () => (await clients.progress()).committing >= counts.commit);
    await clients.watch();
    const since = now();
    await killPrimary(pair, 0, () => {});
    await clients.probe();
    await place.pauses(clients, since);
    const report = await clients.finish();
    expectUnharmed(report, counts);
    expect(await place.verdict(report)).toMatchObject({ right: true });
  });

  it('are reset when the host of their gateway is lost, and others go on', async () => {
    const gateways = await start();
    const tls = await connectTls(gateways);
    const counts = { idle: 10, transaction: 10 };
    const clients = await connectClients(place, gateways, counts);
    await gateways.crash('a');
    // Told to the operator, and counted.
    expect(await gateways.took('b')).toMatchObject({ connections: total(counts), lost: 3 * EACH });
    await gateways.b.event(({ code, connections }) => code === 'OUTLIVE_NOT_MOVABLE' && connections === 3 * EACH);
    expect(await gateways.counts('b')).toMatchObject({ kept: total(counts), reset: 3 * EACH });
    // None of them asks for it: most would wait for ever.
    await eventually(() => tls.last.alive === 0, { timeoutMs: 10_000 });
    const { ends, wrong, rows } = await tls.finish();
    expect(ends.map(({ code }: { code: string }) => code)).toEqual(new Array(3 * EACH).fill('ECONNRESET'));
    expect(wrong).toBe(0);
    expect(rows).toBeGreaterThan(0);
    await clients.probe();
    expectUnharmed(await clients.finish(), counts);
  });

  it('are told when their gateway is drained, and others go on', async () => {
    const gateways = await start();
    const tls = await connectTls(gateways);
    const counts = { idle: 10, transaction: 10, echo: 5 };
    const clients = await connectClients(place, gateways, counts);
    await outlive(place, gateways, 'a', 'drain');
    expect(await gateways.took('b')).toMatchObject({ connections: total(counts), lost: 0 });
    expect(await gateways.counts('a')).toMatchObject({ reset: 3 * EACH });
    await eventually(() => tls.last.alive === 0, { timeoutMs: 30_000 });
    const { ends, wrong } = await tls.finish();
    // The error of the gateway, which stands between two answers; who was amid one just sees the end.
    for (const { kind, code } of ends) expect([kind, code]).toEqual([kind, kind === 'reading' ? code : '57P03']);
    expect(wrong).toBe(0);
    await clients.probe();
    expectUnharmed(await clients.finish(), counts);
  });

  it('do not wait for ever when what they were told on leaving did not come', async () => {
    const gateways = await start();
    const tls = await connectTls(gateways);
    const { lab } = place;
    // All that the gateway still says to them is lost.
    await lab.host('a').cutFrom(lab.host('client'), 'to');
    await outlive(place, gateways, 'a', 'drain');
    expect(await gateways.took('b')).toMatchObject({ connections: 0, lost: 0 });
    await eventually(() => tls.last.alive === 0, { timeoutMs: 30_000 });
    const { ends } = await tls.finish();
    for (const { code } of ends) expect(code).toBe('ECONNRESET');
  });
});
