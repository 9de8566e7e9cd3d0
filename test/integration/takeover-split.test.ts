import { setTimeout as sleep } from 'node:timers/promises';
import { expect, it } from 'vitest';
import type { LogEvent } from '../../core/host/demo/lab/gateway.js';
import { now } from '../../core/host/demo/workload.js';
import { ackHoldUnavailable } from '../../core/io/hold/index.js';
import { Crowd, notInTurn, outlive, Program, served, startTakeover } from '../kit/gateway-pair.js';
import { describeLab, usePairLab } from '../kit/pair-lab.js';
import { eventually } from '../kit/servers.js';
import { PORT } from '../kit/takeover.js';

/** K5: both gateways live, and the network between them, or between them and the lease store, does not. */
const TTL_MS = 3000;

/** A client that connects and then says nothing, until it hears that the connection is gone. */
const COMER = `
import { connect } from 'node:net';
const [host, port] = process.argv.slice(1);
const socket = connect(Number(port), host, () => console.log(JSON.stringify({ connected: true })));
socket.on('error', () => {});
socket.on('close', () => console.log(JSON.stringify({ ended: true })));
process.stdin.resume().on('end', () => process.exit());
`;

const fellSilent = ({ code }: LogEvent) => code === 'OUTLIVE_OWNERSHIP_LOST';

describeLab('a network that is cut', () => {
  const place = usePairLab();

  it('between the gateways: with leases the owner goes on, the other one does nothing', async () => {
    const gateways = await startTakeover(place, { clients: 40, proof: 'etcd' });
    const stop = await place.lab.recorder([gateways.address]);
    const crowd = await Crowd.start(place, gateways);
    await crowd.clients.watch();
    const since = now();
    await gateways.host('a').cutFrom(gateways.host('b'));
    await gateways.b.event(({ msg, rule, reason }) => {
      return msg === 'decided' && rule === 'peer-silent' && reason === 'lease-theirs';
    });
    await crowd.answered(since);
    // Longer than a lease lasts that nobody renews.
    await sleep(TTL_MS + 1000);
    await crowd.answered(now());
    expect((await gateways.a.status()).pair.addresses[0]).toMatchObject({ owner: 'a', epoch: 1 });
    await gateways.host('a').mendFrom(gateways.host('b'));
    await served(gateways, 'a');
    await outlive(place, gateways, 'b', 'takeover');
    await crowd.unharmed();
    expect(notInTurn(await stop(), gateways.address, ['a', 'b'])).toBeNull();
  });

  it('around the owner, from the other gateway and the store: the other one goes on, and the owner follows it afterwards', async () => {
    const pair = { holdAcknowledgements: { interface: 'eth0' } };
    const gateways = await startTakeover(place, { clients: 40, proof: 'etcd', pair });
    const [a, b, store] = [gateways.host('a'), gateways.host('b'), place.lab.host('etcd')];
    const stop = await place.lab.recorder([gateways.address]);
    const crowd = await Crowd.start(place, gateways);
    await crowd.clients.watch();
    const since = now();
    await Promise.all([a.cutFrom(b), a.cutFrom(store)]);
    await gateways.a.event(fellSilent);
    const { lost } = await gateways.took('b');
    expect(lost).toBe(0);
    await crowd.answered(since);
    await Promise.all([a.mendFrom(b), a.mendFrom(store)]);
    await served(gateways, 'b');
    await outlive(place, gateways, 'a', 'takeover');
    await served(gateways, 'a');
    await crowd.unharmed();
    expect(notInTurn(await stop(), gateways.address, ['a', 'b', 'a'])).toBeNull();
  });

  it('between the owner and the store: the other one, which reaches it, goes on', async () => {
    const gateways = await startTakeover(place, { clients: 40, proof: 'etcd' });
    const [a, store] = [gateways.host('a'), place.lab.host('etcd')];
    const stop = await place.lab.recorder([gateways.address]);
    const crowd = await Crowd.start(place, gateways);
    await crowd.clients.watch();
    const since = now();
    await a.cutFrom(store);
    const { lost } = await gateways.took('b');
    expect(lost).toBe(0);
    await crowd.answered(since);
    await a.mendFrom(store);
    await served(gateways, 'b');
    await crowd.unharmed();
    expect(notInTurn(await stop(), gateways.address, ['a', 'b'])).toBeNull();
  });

  it('around the store: the owner falls silent before its lease ends, nobody takes over, and all goes on with the store', async () => {
    const gateways = await startTakeover(place, { clients: 40, proof: 'etcd' });
    const store = place.lab.host('etcd');
    const crowd = await Crowd.start(place, gateways);
    const whole = await place.lab.recorder([gateways.address]);
    const cutAt = now();
    await store.cut();
    await gateways.a.event(fellSilent);
    expect(now() - cutAt).toBeLessThan(TTL_MS);
    await sleep(cutAt + TTL_MS - now());
    // From here on clients repeat what is not answered, and nobody may answer.
    const stop = await place.lab.recorder([gateways.address]);
    await crowd.clients.watch();
    await sleep(2000);
    expect(await stop()).toEqual({ sent: [], delivered: [], missed: 0 });
    const since = now();
    await store.mend();
    const owner = await eventually(
      async () => {
        for (const name of ['a', 'b'] as const) {
          const { addresses } = (await gateways[name].status()).pair;
          if (addresses[0].owner === name) return name;
        }
        return false;
      },
      { timeoutMs: 20_000 },
    );
    await crowd.answered(since);
    await served(gateways, owner as 'a' | 'b');
    await crowd.unharmed();
    expect(notInTurn(await whole(), gateways.address, owner === 'a' ? ['a'] : ['a', 'b'])).toBeNull();
  });

  it('between the store and the other one, which is just starting: it follows, and takes over when it reaches the store', async () => {
    // Else a crash may cost a client at work its connection.
    const held = ackHoldUnavailable() === null;
    const pair = held ? { holdAcknowledgements: { interface: place.lab.host('a').interface } } : {};
    const gateways = await startTakeover(place, { clients: 40, proof: 'etcd', pair });
    const [b, store] = [gateways.host('b'), place.lab.host('etcd')];
    const crowd = await Crowd.start(place, gateways);
    await gateways.b.kill();
    await b.cutFrom(store);
    await gateways.start('b');
    await gateways.followed('a', crowd.connections);
    await b.mendFrom(store);
    await eventually(async () => (await gateways.b.status()).pair.self.reaches.store === true);
    await crowd.clients.watch();
    const since = now();
    await gateways.crash('a');
    expect(await gateways.took('b')).toMatchObject({ lost: 0 });
    await crowd.answered(since);
    await crowd.unharmed();
  });

  it('around the store while the database is gone, too: sessions that look for a server stand still, and look again', async () => {
    const gateways = await startTakeover(place, { clients: 40, proof: 'etcd' });
    const store = place.lab.host('etcd');
    const crowd = await Crowd.start(place, gateways);
    // Nobody else may go on with them.
    await gateways.crash('b');
    await gateways.a.event(({ code }) => code === 'OUTLIVE_PAIR_LOST');
    await place.pair.primary.kill();
    let seen: Record<string, number> = {};
    // The session of the client that stopped reading its result may not have come to the end of what the server sent, and not know of its loss.
    const least = crowd.connections - 1;
    await eventually(
      async () => {
        seen = (await gateways.a.status()).listeners[0].states;
        return (seen.suspended ?? 0) + (seen.resolving ?? 0) >= least;
      },
      { message: () => `${least} sessions look for a server: ${JSON.stringify(seen)}` },
    );
    // One that is about to log in cannot stand still.
    const comer = new Program(place, place.lab.host('client'), COMER, [gateways.address, String(PORT)]);
    await eventually(() => comer.last?.connected === true);
    await crowd.clients.watch();
    await store.cut();
    await gateways.a.event(fellSilent);
    const since = now();
    await store.mend();
    const serves = async () => (await gateways.a.status()).pair.addresses[0].owner === 'a';
    await eventually(serves, { timeoutMs: 20_000 });
    await eventually(() => comer.last.ended === true, { message: 'who could not stand still hears of it' });
    await place.pair.failover();
    await crowd.answered(since);
    await crowd.unharmed();
    // They had been here all the time.
    expect(await gateways.counts('a')).toMatchObject({ kept: 0, reset: 1 });
  });

  it('between the gateways: without a lease and a fence nothing is taken over', async () => {
    const gateways = await startTakeover(place, { clients: 40, proof: 'command', pair: { fence: undefined } });
    const [a, b] = [gateways.host('a'), gateways.host('b')];
    const stop = await place.lab.recorder([gateways.address]);
    const crowd = await Crowd.start(place, gateways);
    await crowd.clients.watch();
    const since = now();
    await a.cutFrom(b);
    await gateways.b.event(({ msg, rule, reason }) => {
      return msg === 'decided' && rule === 'peer-silent' && reason === 'no-proof';
    });
    await crowd.answered(since);
    await sleep(2000);
    await a.mendFrom(b);
    await served(gateways, 'a');
    await crowd.unharmed();
    expect(notInTurn(await stop(), gateways.address, ['a'])).toBeNull();
  });
});
