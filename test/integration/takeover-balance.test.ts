import { expect, it, onTestFailed } from 'vitest';
import type { ClientReport } from '../../core/host/demo/lab/clients.js';
import type { LogEvent } from '../../core/host/demo/lab/gateway.js';
import { Program } from '../kit/gateway-pair.js';
import { describeLab, type PairLab, usePairLab } from '../kit/pair-lab.js';
import { eventually } from '../kit/servers.js';
import { type GatewayPair, PORT, startGateways } from '../kit/takeover.js';

/** K4: how long it is watched under load that nothing moves any more, in ms. Ten minutes and more are simulated in pair-balance.test.ts. */
const WATCH = Number(process.env.WATCH_MS ?? 8_000);
/** What stands still for so long is balanced: several times what the speed limit leaves between two moves. */
const SETTLED = 5_000;

/** The defaults, but for times: all happens within seconds; and a busy test machine is no reason to give nothing. */
const BALANCE = { sustain: '2s', halfLife: '1s', movesPerMinute: 60, receiverCpu: 1, receiverDelay: '2s' };

/**
 * Connects to addresses in turn, asks something and leaves, without end. Arguments: port, addresses. When its input ends and a hundred visits
 * were made, it prints its report and ends; the connection under way has ten seconds.
 */
const COME_AND_GO = `
  import { createRequire } from 'node:module';
  const pg = createRequire(process.cwd() + '/package.json')('pg');
  const [port, ...addresses] = process.argv.slice(1);
  const report = { visits: 0, errors: [], longestMs: 0 };
  let stopping = false;
  process.stdin.on('end', () => { stopping = true; }).resume();
  await Promise.all(addresses.map(async (host) => {
    while (!stopping || report.visits < 100) {
      const began = Date.now();
      const client = new pg.Client({
        host, port: Number(port), user: 'postgres', database: 'postgres', connectionTimeoutMillis: 10_000, query_timeout: 10_000,
      });
      try {
        await client.connect();
        await client.query('SELECT 1');
        await client.end();
        report.visits++;
      } catch (error) {
        report.errors.push(host + ' ' + error.message);
      }
      report.longestMs = Math.max(report.longestMs, Date.now() - began);
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }));
  console.log(JSON.stringify(report));
  process.exit();`;

type Name = 'a' | 'b';

/** What both gateways say. */
interface Seen {
  /** By address. */
  readonly owners: Readonly<Record<string, Name>>;
  // biome-ignore lint/suspicious/noExplicitAny: plain data of the status page
  readonly pair: Readonly<Record<Name, any>>;
}

async function look(gateways: GatewayPair): Promise<Seen> {
  const [{ pair: a }, { pair: b }] = await Promise.all([gateways.a.status(), gateways.b.status()]);
  const owners: Record<string, Name> = {};
  for (const [name, { self }] of [['a', a] as const, ['b', b] as const]) {
    for (const [address, { serves }] of Object.entries<{ serves: boolean }>(self.addresses)) {
      if (serves) owners[address] = name;
    }
  }
  return { owners, pair: { a, b } };
}

const countOf = (owners: Seen['owners'], name: Name) => Object.values(owners).filter((owner) => owner === name).length;

/** Waits until each address has been where it is for so long. */
async function settled(gateways: GatewayPair, addresses: number, ms: number): Promise<Seen> {
  let before = '';
  let since = Date.now();
  let seen = await look(gateways);
  await eventually(
    async () => {
      seen = await look(gateways);
      const { owners } = seen;
      const now = JSON.stringify(
        Object.keys(owners)
          .toSorted()
          .map((address) => owners[address]),
      );
      if (now !== before || Object.keys(owners).length < addresses) since = Date.now();
      before = now;
      return Date.now() - since >= ms;
    },
    { timeoutMs: ms + 90_000, intervalMs: 100, message: 'nothing moves any more' },
  );
  return seen;
}

/** A pair that balances load; each address has its home where it is told. Waits until each is there. */
async function startBalanced(place: PairLab, homes: readonly Name[], balance: object): Promise<GatewayPair> {
  const mover = { plugin: 'address-ip', interface: 'eth0' };
  const addresses = homes.map((home, index) => ({ address: place.lab.floating(index).address, home, mover }));
  const pair = { conditions: { balance: true }, balance: { ...BALANCE, ...balance }, addresses };
  const gateways = await startGateways(place, { proof: 'etcd', pair });
  onTestFailed(() => {
    for (const name of ['a', 'b'] as const) {
      process.stderr.write(`${name}:\n${gateways[name].tail.slice(-60).join('\n')}\n`);
    }
  });
  await eventually(
    async () => {
      const { owners } = await look(gateways);
      return addresses.every(({ address, home }) => owners[address] === home);
    },
    { timeoutMs: 20_000, intervalMs: 50, message: 'all addresses are served' },
  );
  return gateways;
}

/** The factors of the moves that a gateway began, from its log. */
function factors(gateways: GatewayPair, name: Name): unknown[] {
  const events = gateways[name].tail.map((line) => JSON.parse(line) as LogEvent);
  return events.filter(({ msg }) => msg?.includes('has less to do')).map(({ factor }) => factor);
}

function expectUnharmed(report: ClientReport, before: ClientReport): void {
  expect(report).toMatchObject({ reconnects: 0, errors: [], wrongReads: [] });
  expect(report.connections.map(({ portNow }) => portNow)).toEqual(
    before.connections.map(({ portBefore }) => portBefore),
  );
}

describeLab('load balance between the gateways', () => {
  const place = usePairLab();

  it('moves addresses with all their clients until both have as many, and then nothing', async () => {
    const { lab } = place;
    const gateways = await startBalanced(place, Array(8).fill('a'), {});
    const addresses = Object.keys((await look(gateways)).owners);
    const counts = { idle: 8, transaction: 8, echo: 48, transfer: 36 };
    const clients = await place.clients(counts);
    const think = { inside: 20, between: 5 };
    await clients.begin({ counts, address: addresses, port: PORT, think, echo: { least: 1, most: 16_384 } });
    const before = await clients.report();
    expect(before.connections).toHaveLength(100);
    const visitors = new Program(place, lab.host('client'), COME_AND_GO, [String(PORT), ...addresses]);
    await eventually(
      async () => {
        const { owners, pair } = await look(gateways);
        if (process.env.LOG) console.log(pair.a.self.load, pair.b.self.load);
        return countOf(owners, 'b') > 0;
      },
      { timeoutMs: 60_000, intervalMs: 200, message: 'load moves' },
    );
    const under = await settled(gateways, 8, WATCH);
    const visits = await visitors.finish();
    if (process.env.LOG) console.log(visits, under.pair.a.self.load, under.pair.b.self.load, under.pair.a.balance);
    expect(visits).toMatchObject({ errors: [] });
    expect(visits.visits).toBeGreaterThanOrEqual(100);
    await clients.probe();

    // As long as the CPU is busy, it decides, and on a busy machine against more sessions for the gateway that happens to be the slower one.
    await clients.pace({ inside: 500, between: 500 });
    const { owners, pair } = await settled(gateways, 8, SETTLED);
    if (process.env.LOG) console.log(pair.a.self.load, pair.b.self.load, pair.a.balance);
    const [busy, idle] = [pair.a.self.load.sessions, pair.b.self.load.sessions];
    expect(busy + idle).toBe(100);
    // `start` with the `slack` of 10: beyond it something would have moved.
    const ratio = (busy + 10) / (idle + 10);
    expect(ratio, JSON.stringify(pair.a.balance)).toBeLessThan(1.5);
    expect(1 / ratio, JSON.stringify(pair.b.balance)).toBeLessThan(1.5);
    // None went twice, and none came back.
    const moved = countOf(owners, 'b');
    expect(pair.a).toMatchObject({ balance: { moved, failed: 0 }, counts: { planned: moved, reset: 0 } });
    expect(pair.b).toMatchObject({
      balance: { moved: 0, failed: 0 },
      counts: { takeovers: moved, reset: 0, planned: 0 },
    });

    const report = await clients.finish();
    expectUnharmed(report, before);
    expect(report.echoed).toBeGreaterThan(1_000_000);
    expect(await place.verdict(report)).toMatchObject({ right: true });
  }, 180_000);

  it('relieves the gateway whose CPU is busy, although it has fewer clients', async () => {
    const gateways = await startBalanced(place, [...Array(8).fill('a'), 'b', 'b'], { start: 1.08, stop: 1.04 });
    const { owners } = await look(gateways);
    const at = (name: Name) => Object.keys(owners).filter((address) => owners[address] === name);
    const idle = await place.clients({ idle: 50 });
    await idle.begin({ counts: { idle: 50 }, address: at('b'), port: PORT });
    const counts = { echo: 24 };
    const busy = await place.clients(counts);
    await busy.begin({ counts, address: at('a'), port: PORT, think: { inside: 0, between: 0 } });
    const [before, idleBefore] = await Promise.all([busy.report(), idle.report()]);
    await eventually(
      async () => {
        const { owners, pair } = await look(gateways);
        if (process.env.LOG) console.log(pair.a.self.load, pair.b.self.load, pair.a.balance.verdict);
        return at('a').some((address) => owners[address] === 'b');
      },
      { timeoutMs: 60_000, intervalMs: 200, message: 'load moves' },
    );
    expect(factors(gateways, 'a')[0]).toBe('cpu');
    const report = await busy.finish();
    expectUnharmed(report, before);
    expect(report.echoed).toBeGreaterThan(1_000_000);
    await idle.probe();
    expectUnharmed(await idle.finish(), idleBefore);
  }, 120_000);
});
