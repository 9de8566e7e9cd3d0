import { expect, it, onTestFailed } from 'vitest';
import { describeLab, usePairLab } from '../kit/pair-lab.js';
import { eventually } from '../kit/servers.js';
import { type GatewayPair, PORT, startGateways } from '../kit/takeover.js';

/** K4: how long it is watched that nothing moves any more, in ms. Ten minutes and more are simulated in pair-balance.test.ts. */
const WATCH = Number(process.env.WATCH_MS ?? 10_000);
/** Nothing moved for so long: it is balanced. Several times as long as the speed limit leaves between two moves. */
const SETTLED = 5_000;
const ADDRESSES = 8;

/** Defaults, but for times: everything happens within seconds. A busy test machine is no reason to give nothing. */
const BALANCE = {
  sustain: '2s',
  halfLife: '1s',
  movesPerMinute: 60,
  receiverCpu: 1,
  receiverDelay: '2s',
};

interface Seen {
  /** By address. */
  readonly owners: Readonly<Record<string, string>>;
  // biome-ignore lint/suspicious/noExplicitAny: plain data of the status page
  readonly pair: Readonly<Record<'a' | 'b', any>>;
}

async function look(gateways: GatewayPair): Promise<Seen> {
  const [{ pair: a }, { pair: b }] = await Promise.all([gateways.a.status(), gateways.b.status()]);
  const owners: Record<string, string> = {};
  for (const [name, { self }] of Object.entries({ a, b })) {
    for (const [address, { serves }] of Object.entries<{ serves: boolean }>(self.addresses)) {
      if (serves) owners[address] = name;
    }
  }
  return { owners, pair: { a, b } };
}

/** Waits until all addresses have been where they are for so long. */
async function settled(gateways: GatewayPair, ms: number, timeoutMs: number): Promise<Seen> {
  let last = '';
  let since = Date.now();
  let seen = await look(gateways);
  await eventually(
    async () => {
      seen = await look(gateways);
      const now = JSON.stringify(Object.entries(seen.owners).sort());
      if (now !== last || Object.keys(seen.owners).length < ADDRESSES) since = Date.now();
      last = now;
      return Date.now() - since >= ms;
    },
    { timeoutMs, intervalMs: 100, message: 'nothing moves any more' },
  );
  return seen;
}

describeLab('load balance between the gateways', () => {
  const place = usePairLab();

  it('moves addresses with all their clients until both have as much to do, and then nothing', async () => {
    const { lab } = place;
    const addresses = Array.from({ length: ADDRESSES }, (_, index) => lab.floating(index).address);
    const gateways = await startGateways(place, {
      proof: 'etcd',
      pair: {
        conditions: { balance: true },
        balance: BALANCE,
        addresses: addresses.map((address) => ({
          address,
          home: 'a',
          mover: { plugin: 'address-ip', interface: 'eth0' },
        })),
      },
    });
    onTestFailed(() => {
      for (const name of ['a', 'b'] as const) {
        process.stderr.write(`${name}:\n${gateways[name].tail.slice(-60).join('\n')}\n`);
      }
    });
    await eventually(
      async () => addresses.every((address, _, all) => all.length > 0 && address !== undefined) && Object.values((await look(gateways)).owners).filter((owner) => owner === 'a').length === ADDRESSES,
      { timeoutMs: 20_000, intervalMs: 50, message: 'all addresses are served' },
    );
    const counts = { idle: 8, transaction: 8, echo: 48, transfer: 36 };
    const clients = await place.clients(counts);
    await clients.begin({
      counts,
      address: addresses,
      port: PORT,
      think: { inside: 20, between: 5 },
      echo: { least: 1, most: 16_384 },
    });
    const before = await clients.report();
    expect(before.connections).toHaveLength(100);

    await eventually(async () => Object.values((await look(gateways)).owners).includes('b'), {
      timeoutMs: 60_000,
      intervalMs: 100,
      message: 'load moves',
    });
    const balanced = await settled(gateways, SETTLED, 120_000);
    if (process.env.LOG) console.log(JSON.stringify(balanced, null, 1));
    const moved = Object.values(balanced.owners).filter((owner) => owner === 'b').length;
    expect(moved).toBeGreaterThanOrEqual(2);
    expect(moved).toBeLessThanOrEqual(5);
    await clients.probe();
    const later = await settled(gateways, WATCH, WATCH + 60_000);
    expect(later.owners).toEqual(balanced.owners);

    const report = await clients.finish();
    expect(report).toMatchObject({ reconnects: 0, errors: [], wrongReads: [] });
    expect(report.connections.map(({ portNow }) => portNow)).toEqual(
      before.connections.map(({ portBefore }) => portBefore),
    );
    expect(report.echoed).toBeGreaterThan(1_000_000);
    expect(await place.verdict(report)).toMatchObject({ right: true });
    const { a, b } = later.pair;
    expect(a).toMatchObject({ balance: { moved, failed: 0 }, counts: { planned: moved, reset: 0 } });
    expect(b).toMatchObject({ balance: { moved: 0, failed: 0 }, counts: { takeovers: moved, reset: 0 } });
  });
});
