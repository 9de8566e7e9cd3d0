import { expect, it } from 'vitest';
import { now } from '../../core/host/demo/workload.js';
import { outlive } from '../kit/gateway-pair.js';
import { describeLab, usePairLab } from '../kit/pair-lab.js';
import { startGateways } from '../kit/takeover.js';
import {
  connectClients,
  expectAlone,
  expectUnharmed,
  letGo,
  pressCommits,
  STANDING,
  total,
} from '../kit/takeover-scene.js';

const MOVES = Number(process.env.OUTLIVE_TAKEOVER_MOVES ?? 6);

/** K12: what K1 and K3 want, over IPv6. */
describeLab('over IPv6', () => {
  const place = usePairLab({ ipv6: true });

  it('every client goes on when the host of a gateway is lost', async () => {
    const { pair } = place;
    const gateways = await startGateways(place, { proof: 'etcd', six: true });
    expect(gateways.address).toContain(':');
    const clients = await connectClients(place, gateways, STANDING);
    await pressCommits(place, clients);
    const since = now();
    await gateways.crash('a');
    expect(await gateways.took('b')).toMatchObject({ connections: total(STANDING), lost: 0 });
    await pair.standby.thaw();
    await letGo(place);
    await clients.probe();
    const pauses = await place.pauses(clients, since);
    const report = await clients.finish();
    expectUnharmed(report, STANDING);
    expect(await place.verdict(report)).toMatchObject({ right: true });
    await expectAlone(place, gateways, ['a', 'b']);
    if (process.env.LOG) console.log({ longest: Math.max(...pauses) });
  });

  it(`planned moves cost no client anything, ${MOVES} times under load`, async () => {
    const gateways = await startGateways(place, { proof: 'command', six: true });
    const counts = { idle: 4, transaction: 4, waiting: 2, result: 4, echo: 8, stream: 2, transfer: 16 };
    const clients = await connectClients(place, gateways, counts);
    const longest: number[] = [];
    for (let move = 0; move < MOVES; move++) {
      const [owner, next] = move % 2 === 0 ? (['a', 'b'] as const) : (['b', 'a'] as const);
      await clients.watch();
      const since = now();
      await outlive(place, gateways, next, 'takeover');
      if (move === 0) await letGo(place);
      const pauses = await place.pauses(clients, since);
      longest.push(Math.max(...pauses));
      await clients.probe();
      await gateways.followed(next, total(counts));
      expect((await gateways[owner].status()).pair.addresses[0].owner).toBe(next);
    }
    const report = await clients.finish();
    expectUnharmed(report, counts);
    expect(report.echoed).toBeGreaterThan(100_000);
    expect(report.streamed).toBeGreaterThan(1_000_000);
    expect(await place.verdict(report)).toMatchObject({ right: true });
    for (const name of ['a', 'b'] as const) expect(await gateways.counts(name)).toMatchObject({ reset: 0 });
    if (process.env.LOG) console.log({ longest: longest.map(Math.round) });
  });
});
