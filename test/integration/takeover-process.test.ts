import { expect, it } from 'vitest';
import { now } from '../../core/host/demo/workload.js';
import { Crowd, notInTurn, outlive, served, startTakeover } from '../kit/gateway-pair.js';
import { describeLab, usePairLab } from '../kit/pair-lab.js';

/** K2: the process is gone, its host lives, and there is no keeper. */
describeLab('a process that is killed on a host that lives', () => {
  const place = usePairLab();

  it.each(['etcd', 'command'] as const)('is taken over by the other gateway (%s)', async (proof) => {
    const { lab } = place;
    const [a, b] = [lab.host('a'), lab.host('b')];
    // What a switch could do to the port of a host.
    const command = ['ip', 'netns', 'exec', a.netns, 'ip', 'link', 'set', a.interface, 'down'];
    const pair = {
      holdAcknowledgements: { interface: b.interface },
      ...(proof === 'command' ? { fence: { plugin: 'command', command } } : {}),
    };
    const gateways = await startTakeover(place, { clients: 40, proof, pair });
    const stop = await lab.recorder([gateways.address]);
    const crowd = await Crowd.start(place, gateways);
    await crowd.clients.watch();
    const since = now();
    await gateways.a.kill();
    expect(await gateways.took('b')).toMatchObject({ lost: 0 });
    const longest = await crowd.answered(since);
    if (process.env.LOG) console.log({ proof, longest });
    expect((await gateways.b.status()).pair.counts).toMatchObject({ reset: 0 });
    const recording = await stop();
    expect(notInTurn(recording, gateways.address, ['a', 'b'])).toBeNull();
    const [dead] = recording.sent.filter(({ host }) => host === 'a');
    expect(dead.kinds).toMatchObject({ tcp: expect.any(Number) });
    expect(dead.kinds).not.toHaveProperty('rst');
    expect(dead.kinds).not.toHaveProperty('fin');
    if (proof === 'command') await a.run('ip', ['link', 'set', a.interface, 'up']);
    await gateways.start('a');
    await served(gateways, 'b');
    await outlive(place, gateways, 'a', 'takeover');
    await served(gateways, 'a');
    await crowd.unharmed();
  });
});
