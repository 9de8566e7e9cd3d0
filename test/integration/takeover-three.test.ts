import { expect, it } from 'vitest';
import { now } from '../../core/host/demo/workload.js';
import { ackHoldUnavailable } from '../../core/io/hold/index.js';
import { GroupClients, startGroup } from '../kit/gateway-group.js';
import { describeLab, usePairLab } from '../kit/pair-lab.js';
import { total } from '../kit/takeover-scene.js';

const NAMES = ['a', 'b', 'c'];
const COUNTS = { idle: 6, transaction: 6, echo: 3, transfer: 9 };

/** Several gateways: the sessions of each are followed by one other. Without held acknowledgements a crash may cost clients at work. */
describeLab('three gateways', () => {
  const place = usePairLab({ settings: { max_connections: '600' } });

  it.skipIf(ackHoldUnavailable() !== null)(
    'lose two hosts one after the other, and the third serves every client on its connection',
    async () => {
      const holdAcknowledgements = { interface: place.lab.host('a').interface };
      const group = await startGroup(place, { names: NAMES, clients: 60, pair: { holdAcknowledgements } });
      const crowd = await GroupClients.start(place, group, COUNTS);
      await group.settled({ a: ['a'], b: ['b'], c: ['c'] });
      const shadow = group.shadow('a')!;
      const third = NAMES.find((name) => name !== 'a' && name !== shadow)!;

      await crowd.clients.watch();
      let since = now();
      await group.crash('a');
      expect(await group.took(shadow, 'a')).toMatchObject({ connections: total(COUNTS) / 3, lost: 0 });
      await crowd.answered(since);
      // Now the third one follows all that the second one has.
      await group.settled({ [shadow]: ['a', shadow], [third]: [third] });

      await crowd.clients.watch();
      since = now();
      await group.crash(shadow);
      for (const home of ['a', shadow]) {
        expect(await group.took(third, home)).toMatchObject({ connections: total(COUNTS) / 3, lost: 0 });
      }
      await crowd.answered(since);
      await group.settled({ [third]: NAMES });
      await crowd.unharmed();
    },
    120_000,
  );

  it.skipIf(ackHoldUnavailable() !== null)(
    'under keepers: one whose engine dies goes on, and whoever follows is told all anew',
    async () => {
      const holdAcknowledgements = { interface: place.lab.host('a').interface };
      // Engines take their time to start where several tests share a machine: 6 s were seen.
      const pair = { holdAcknowledgements, restart: '20s' };
      const group = await startGroup(place, { names: NAMES, clients: 60, kept: true, pair });
      const crowd = await GroupClients.start(place, group, COUNTS);
      await group.settled({ a: ['a'], b: ['b'], c: ['c'] });
      await crowd.clients.watch();
      let since = now();
      expect(await group.crashEngine('a')).toMatchObject({ connections: total(COUNTS) / 3, lost: 0 });
      await crowd.answered(since);
      await group.settled({ a: ['a'], b: ['b'], c: ['c'] });

      const shadow = group.shadow('a')!;
      await crowd.clients.watch();
      since = now();
      await group.crash('a');
      expect(await group.took(shadow, 'a')).toMatchObject({ connections: total(COUNTS) / 3, lost: 0 });
      await crowd.answered(since);
      await crowd.unharmed();
    },
    120_000,
  );

  it('lose one together with its follower: the third serves its address too, and its clients hear of it at once', async () => {
    const group = await startGroup(place, { names: NAMES, clients: 60 });
    const counts = { idle: 6, transaction: 6 };
    const crowd = await GroupClients.start(place, group, counts);
    await group.settled({ a: ['a'], b: ['b'], c: ['c'] });
    const shadow = group.shadow('a')!;
    const third = NAMES.find((name) => name !== 'a' && name !== shadow)!;
    // Otherwise what it has would be lost as well.
    expect(group.shadow(shadow)).toBe(third);
    const { address } = place.lab.host('a');
    await Promise.all([group.crash('a'), group.crash(shadow)]);
    expect(await group.took(third, shadow)).toMatchObject({ connections: 4, lost: 0 });
    expect(await group.took(third, 'a')).toMatchObject({ connections: 0, lost: 4 });
    // Nobody has what it had open on the server, which would notice by its keepalives.
    await place.pair.primary.query(
      `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE client_addr = '${address}'`,
    );
    await group.settled({ [third]: NAMES });
    expect(await crowd.reset()).toBe(4);
  });

  it.skipIf(ackHoldUnavailable() !== null)(
    'go on when one comes back: it follows again, and addresses go where they are ordered to',
    async () => {
      const holdAcknowledgements = { interface: place.lab.host('a').interface };
      const group = await startGroup(place, { names: NAMES, clients: 60, pair: { holdAcknowledgements } });
      const crowd = await GroupClients.start(place, group, COUNTS);
      await group.settled({ a: ['a'], b: ['b'], c: ['c'] });
      // It follows the one that follows it, so that this one is told anew, while its clients work, when it comes back.
      const back = NAMES.find((name) => group.shadow(group.shadow(name)!) === name)!;
      const shadow = group.shadow(back)!;
      const third = NAMES.find((name) => name !== back && name !== shadow)!;
      await group.crash(back);
      expect(await group.took(shadow, back)).toMatchObject({ connections: total(COUNTS) / 3, lost: 0 });
      await group.settled({ [shadow]: [back, shadow], [third]: [third] });
      expect(group.shadow(shadow)).toBe(third);

      await group.reboot(back);
      await group.settled({ [shadow]: [back, shadow], [third]: [third] });
      expect(group.shadow(shadow)).toBe(back);

      // One of those that have the addresses is not followed by it, and must be first.
      expect(group.shadow(third)).toBe(shadow);
      await crowd.clients.watch();
      const since = now();
      await group.outlive(back, 'takeover');
      await group.settled({ [back]: NAMES });
      await crowd.answered(since);
      await group.outlive(back, 'drain');
      await group.settled({ [shadow]: NAMES });
      await crowd.unharmed();
    },
    120_000,
  );
});
