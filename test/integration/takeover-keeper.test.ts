import { afterEach, describe, expect, it } from 'vitest';
import type { ClientHost, ClientReport } from '../../core/host/demo/lab/clients.js';
import { checkLedger, createLedger, readLedger } from '../../core/host/demo/ledger.js';
import { now } from '../../core/host/demo/workload.js';
import { passingUnavailable } from '../../core/io/keeper/index.js';
import { gatewayConfig } from '../kit/gateway.js';
import { type KeptGateway, localClients, NOBODY, startKept } from '../kit/kept-gateway.js';
import { eventually, restorePair, usePair } from '../kit/servers.js';

/** K2, first half, and the engine's part of K13. CRASHES and UPGRADES say how often. */
const CRASHES = Number(process.env.CRASHES ?? 3);
const UPGRADES = Number(process.env.UPGRADES ?? 3);
const unavailable = passingUnavailable();
if (unavailable !== null) console.warn(`the keeper is not tested: ${unavailable}`);
const root = process.getuid?.() === 0;
/** A keeper needs no privileges. */
const USER = root ? NOBODY : undefined;

const COUNTS = { idle: 5, transaction: 5, waiting: 5, result: 4, commit: 4, echo: 6, stream: 2, transfer: 14 };
const ALL = Object.values(COUNTS).reduce((sum, count) => sum + count, 0);

describe.skipIf(unavailable !== null)('under a keeper, without a pair and without privileges', () => {
  const servers = usePair();
  const ends: (() => unknown)[] = [];
  afterEach(async () => {
    for (const end of ends.splice(0).reverse()) await end();
    await restorePair(servers.pair);
  });

  async function start(): Promise<KeptGateway> {
    const config = gatewayConfig(servers, { listener: { limits: { greetings: 200 } } });
    const gateway = await startKept(config, USER);
    ends.push(() => gateway.kill());
    return gateway;
  }

  async function busy(gateway: KeptGateway, sleep: number): Promise<ClientHost> {
    const clients = await localClients();
    ends.push(() => clients.kill());
    await createLedger((sql) => servers.pair.primary.query(sql), await clients.accounts(COUNTS.transfer));
    const think = { inside: 50, between: 20 };
    await clients.begin({ counts: COUNTS, address: '127.0.0.1', port: gateway.port, rows: 20_000, sleep, think });
    await eventually(async () => (await clients.progress()).transactions > 20);
    return clients;
  }

  async function expectUnharmed(report: ClientReport): Promise<void> {
    expect(report).toMatchObject({ reconnects: 0, errors: [], wrongReads: [] });
    for (const { portBefore, portNow } of report.connections) expect(portNow).toBe(portBefore);
    const facts = await readLedger((sql) => servers.pair.primary.query(sql));
    expect(checkLedger(facts, report.claims, report.accounts)).toMatchObject({ right: true });
  }

  it(`goes on with every client when its engine is killed, ${CRASHES} times under load`, {
    timeout: 600_000,
  }, async () => {
    const gateway = await start();
    const clients = await busy(gateway, 2 * CRASHES + 5);
    const pauses: number[] = [];
    for (let n = 0; n < CRASHES; n++) {
      if (n === CRASHES - 1) await clients.press();
      await clients.watch();
      const since = now();
      expect(await gateway.crash()).toMatchObject({ kept: ALL, lost: 0 });
      const seen = await clients.pauses(since, 30_000);
      expect(seen.silent).toBe(0);
      pauses.push(Math.max(...seen.pauses));
      await clients.probe();
      await new Promise((r) => setTimeout(r, 1000));
    }
    console.log('crash pauses', pauses.map(Math.round));
    await expectUnharmed(await clients.finish());
  });

  it(`upgrades the engine ${UPGRADES} times under load`, { timeout: 600_000 }, async () => {
    const gateway = await start();
    const clients = await busy(gateway, 2 * UPGRADES + 5);
    const pauses: number[] = [];
    for (let n = 0; n < UPGRADES; n++) {
      if (n === UPGRADES - 1) await clients.press();
      await clients.watch();
      const since = now();
      expect(await gateway.upgrade()).toMatchObject({ kept: ALL, lost: 0 });
      const seen = await clients.pauses(since, 30_000);
      expect(seen.silent).toBe(0);
      pauses.push(Math.max(...seen.pauses));
      await clients.probe();
    }
    console.log('upgrade pauses', pauses.map(Math.round));
    await expectUnharmed(await clients.finish());
  });
});
