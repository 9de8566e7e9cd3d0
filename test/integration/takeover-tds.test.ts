import { expect, it } from 'vitest';
import { now } from '../../core/host/demo/workload.js';
import { describeLab } from '../kit/pair-lab.js';
import { PORT, startGateways } from '../kit/takeover.js';
import { useTdsLab } from '../kit/tds-lab.js';

describeLab('clients with tedious', () => {
  const stage = useTdsLab({ settings: { max_connections: '400' } });

  it('one goes on', async () => {
    const { place } = stage;
    const gateways = await startGateways(place, stage.options({ proof: 'command' }));
    const counts = { idle: 1, transaction: 1 };
    const clients = await stage.clients(counts);
    await clients.begin({ counts, address: gateways.address, port: PORT });
    await gateways.followed('a', 2);
    await clients.watch();
    const since = now();
    await gateways.crash('a');
    expect(await gateways.took('b')).toMatchObject({ connections: 2, lost: 0 });
    await clients.probe();
    console.log(await place.pauses(clients, since));
    const report = await clients.finish();
    console.log(report);
    expect(await stage.verdict(report)).toMatchObject({ right: true });
  });
});
