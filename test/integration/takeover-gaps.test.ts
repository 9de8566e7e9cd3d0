import { join } from 'node:path';
import { expect, it, onTestFailed } from 'vitest';
import { Remote } from '../../core/host/demo/lab/remote.js';
import { Twins } from '../../core/host/demo/lab/twins.js';
import { ackHoldUnavailable } from '../../core/io/hold/index.js';
import { compiled } from '../kit/gateway-process.js';
import { describeLab, usePairLab } from '../kit/pair-lab.js';
import { randomness } from '../kit/random.js';

const PORT = 6543;
const CRASHES = Number(process.env.OUTLIVE_TAKEOVER_CRASHES ?? 4);
const CLIENTS = 16;
/** So many of them connect anew for each request. */
const RESTLESS = CLIENTS / 4;
/** From the takeover until a connection that cannot go on is reset. */
const RESET_MS = 2000;
/** A retransmission of what a client sent long before a takeover may be some seconds away, and 1 MB takes a while. */
const PATIENCE_MS = 30_000;

interface Settled {
  readonly hung: readonly { number: number; length: number }[];
  /** Clients without a connection. */
  readonly without: number;
  readonly ends: readonly { client: number; at: number; connectedAt: number | null; length: number; message: string }[];
}

interface Finished {
  readonly faults: readonly { client: number; at: number; what: string }[];
  readonly transactions: number;
  readonly bytes: number;
  readonly ends: number;
  /** Connections whose beginning or end was never answered. */
  readonly stuck: number;
  readonly claims: readonly { acked: number[]; doubtful: number[] }[];
}

describeLab('a host that crashes again and again under requests of 10 B to 1 MB', () => {
  // What a dead host had open, and nobody ended, counts on the servers for as long as these do not notice.
  const place = usePairLab({ synchronous: false, settings: { max_connections: '1000' } });

  /** Crashes whichever host serves, so often, and returns how many connections were lost in all. */
  async function crashes(pair: Record<string, unknown>): Promise<number> {
    const { lab } = place;
    const { where, below } = randomness();
    console.log(where);
    await place.pair.primary.query('DROP TABLE IF EXISTS gaps');
    await place.pair.primary.query('CREATE TABLE gaps (client int, serial int, length int, md5 text)');
    const { address } = lab.floating();
    const hosts = [lab.host('a'), lab.host('b')] as const;
    const twins = await Twins.start({
      hosts,
      address,
      pair,
      front: {
        listeners: [{ name: 'gaps', codec: 'postgres', listen: `0.0.0.0:${PORT}`, cluster: 'pair', auth: 'trust' }],
        clusters: [
          {
            name: 'pair',
            servers: [place.pair.primary, place.pair.standby].map(({ name, host, port }) => ({
              name,
              host,
              port,
              tls: 'off',
            })),
            monitor: { user: 'postgres', database: 'postgres' },
          },
        ],
      },
    });
    place.atEnd(() => twins.kill());
    onTestFailed(() => console.error(`${where}\n${twins.logs()}`));
    const script = join(import.meta.dirname, '../fixtures/gap-clients.mjs');
    const child = lab.host('client').spawn(process.execPath, [script, compiled()], {
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
    });
    const clients = new Remote(child, 'the clients');
    place.atEnd(() => clients.kill());
    await clients.ask('begin', { count: CLIENTS, restless: RESTLESS, seed: below(2 ** 32), host: address, port: PORT });

    let owner = hosts[0];
    let lost = 0;
    const slowest: number[] = [];
    for (let crash = 0; crash < CRASHES; crash++) {
      await twins.followed(owner);
      await new Promise((resolve) => setTimeout(resolve, below(200)));
      const next = twins.other(owner);
      const before = (await twins.gateway(next).status()).pair.counts.reset;
      const since = await twins.crash(owner);
      const taken = await twins.taken(next, since);
      const settled = await clients.ask<Settled>(
        'settle',
        { since: taken.at, timeoutMs: PATIENCE_MS },
        2 * PATIENCE_MS,
      );
      const what = `${where}, crash ${crash + 1}: ${JSON.stringify({ taken, settled })}`;
      expect(settled.hung, what).toEqual([]);
      expect(settled.without, what).toBe(0);
      const reset = settled.ends.filter(({ connectedAt }) => connectedAt !== null && connectedAt < since);
      for (const { at } of reset) expect(at - taken.at, what).toBeLessThanOrEqual(RESET_MS);
      slowest.push(...reset.map(({ at }) => Math.round(at - taken.at)));
      const { counts } = (await twins.gateway(next).status()).pair;
      // Connections that were just being made or closed may be counted, too.
      expect(counts.reset - before, what).toBeGreaterThanOrEqual(reset.length);
      expect(counts.reset - before, what).toBeLessThanOrEqual(reset.length + RESTLESS);
      lost += reset.length;
      await twins.reboot(owner);
      owner = next;
    }

    const { faults, transactions, bytes, claims, ends, stuck } = await clients.ask<Finished>('finish');
    console.log(
      JSON.stringify({
        crashes: CRASHES,
        connections: CLIENTS * CRASHES,
        lost,
        slowest,
        transactions,
        bytes,
        ends,
        stuck,
      }),
    );
    expect(faults, where).toEqual([]);
    const { rows } = await place.pair.primary.query<{ client: number; serial: number }>(
      'SELECT client, serial FROM gaps',
    );
    const stored = claims.map((): number[] => []);
    for (const { client, serial } of rows) stored[client].push(serial);
    for (const [client, { acked, doubtful }] of claims.entries()) {
      const allowed = new Set(doubtful);
      // Every commit that was acknowledged is there, once; what else is there was asked for when the connection ended.
      const rest = stored[client].filter((serial) => !allowed.has(serial)).sort((x, y) => x - y);
      expect(rest, `${where}: client ${client}`).toEqual(acked);
      expect(new Set(stored[client]).size, `${where}: client ${client}`).toBe(stored[client].length);
    }
    return lost;
  }

  const timeout = 60_000 + CRASHES * 45_000;

  it('goes on, or resets the connections of which bytes are lost', { timeout }, async () => {
    await crashes({});
  });

  const why = ackHoldUnavailable();
  it.skipIf(why !== null)(
    `loses none when acknowledgements are held${why === null ? '' : ` (${why})`}`,
    { timeout },
    async () => {
      expect(await crashes({ holdAcknowledgements: { interface: 'eth0' } })).toBe(0);
    },
  );
});
