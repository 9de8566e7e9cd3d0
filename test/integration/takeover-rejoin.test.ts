import { expect, it } from 'vitest';
import { ackHoldUnavailable } from '../../core/io/hold/index.js';
import { describeLab, usePairLab } from '../kit/pair-lab.js';
import { eventually } from '../kit/servers.js';
import { startGateways } from '../kit/takeover.js';
import {
  connectClients,
  expectAlone,
  expectUnharmed,
  letGo,
  pressCommits,
  STANDING,
  total,
  WORKING,
} from '../kit/takeover-scene.js';

const hold = ackHoldUnavailable() === null;
/** Without held acknowledgements the loss of a host costs clients at work now and then. */
const COUNTS = hold ? WORKING : STANDING;

describeLab('a gateway that comes back', () => {
  // What a dead host had stays with the servers until their kernels find out.
  const place = usePairLab({ settings: { max_connections: '600' } });

  it('follows all sessions again, under load, and takes them over when the other host is lost', async () => {
    const { pair, lab } = place;
    const more = hold ? { pair: { holdAcknowledgements: { interface: lab.host('a').interface } } } : {};
    const gateways = await startGateways(place, { proof: 'etcd', ttl: 10_000, clients: 150, ...more });
    const clients = await connectClients(place, gateways, COUNTS);
    const at = async () => (await clients.progress()).transactions;
    /** Clients are at work and not merely there. */
    const work = async () => {
      const before = await at();
      await clients.probe();
      if (hold) await eventually(async () => (await at()) > before + 20, { timeoutMs: 20_000 });
    };

    await gateways.crash('b');
    await gateways.a.event(({ code }) => code === 'OUTLIVE_PAIR_LOST');
    await work();
    await gateways.reboot('b');
    await gateways.followed('a', total(COUNTS), 60_000);
    await work();
    expect(await gateways.counts('a')).toMatchObject({ reset: 0 });

    await pressCommits(place, clients);
    await gateways.crash('a');
    expect(await gateways.took('b')).toMatchObject({ connections: total(COUNTS), lost: 0 });
    await pair.standby.thaw();
    await letGo(place);
    await work();

    // And so once more, the other way round, with sessions that were taken over.
    await gateways.reboot('a');
    await gateways.followed('b', total(COUNTS), 60_000);
    await work();
    await gateways.crash('b');
    expect(await gateways.took('a')).toMatchObject({ connections: total(COUNTS), lost: 0 });
    await work();

    const report = await clients.finish(120_000);
    expectUnharmed(report, COUNTS);
    expect(await place.verdict(report)).toMatchObject({ right: true });
    await expectAlone(place, gateways, ['b', 'a']);
  }, 400_000);
});
