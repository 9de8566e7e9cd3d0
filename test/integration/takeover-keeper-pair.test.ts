import { readdirSync, readFileSync, readlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import type { ClientHost } from '../../core/host/demo/lab/clients.js';
import { now } from '../../core/host/demo/workload.js';
import { ackHoldUnavailable } from '../../core/io/hold/index.js';
import { outlive, served } from '../kit/gateway-pair.js';
import { KeptPair, killProcess } from '../kit/kept-pair.js';
import { describeLab, usePairLab } from '../kit/pair-lab.js';
import { eventually } from '../kit/servers.js';
import { PORT } from '../kit/takeover.js';

/** K2, and the upgrade of K13: two gateways, each under a keeper. CRASHES says how often the engine is killed, UPGRADES how often it is replaced. */
const CRASHES = Number(process.env.CRASHES ?? 1);
const UPGRADES = Number(process.env.UPGRADES ?? 2);
const COUNTS = { idle: 6, transaction: 6, waiting: 4, result: 4, commit: 4, echo: 6, stream: 1, transfer: 14 };
const ALL = Object.values(COUNTS).reduce((sum, count) => sum + count, 0);

/**
 * When this process dies, listening sockets are closed first, by whose mark ends of connections could leave the host, and what holds
 * acknowledgements last: Linux closes from the highest descriptor down.
 */
function expectClosedInOrder(pid: number): void {
  const opened = readdirSync(`/proc/${pid}/fd`).map((fd) => ({
    fd: Number(fd),
    file: readlinkSync(`/proc/${pid}/fd/${fd}`),
  }));
  const lines = readFileSync(`/proc/${pid}/net/tcp`, 'utf8').trim().split('\n').slice(1);
  const port = PORT.toString(16).toUpperCase().padStart(4, '0');
  const socketsIn = (wanted: string) => {
    const fields = lines.map((line) => line.trim().split(/\s+/));
    const inodes = fields.filter(([, local, , state]) => local.endsWith(`:${port}`) && state === wanted);
    const files = inodes.map((line) => `socket:[${line[9]}]`);
    return opened.filter(({ file }) => files.includes(file)).map(({ fd }) => fd);
  };
  const [connections, listening] = [socketsIn('01'), socketsIn('0A')];
  const links = opened.filter(({ file }) => file.includes('bpf_link') || file.includes('bpf-link')).map(({ fd }) => fd);
  expect(connections.length).toBeGreaterThanOrEqual(ALL);
  expect(Math.min(...listening)).toBeGreaterThan(Math.max(...connections));
  expect(Math.max(...links)).toBeLessThan(Math.min(...connections));
}

describeLab('two gateways under keepers', () => {
  const place = usePairLab();

  async function begin(proof: 'etcd' | 'command', held: boolean): Promise<{ gateways: KeptPair; clients: ClientHost }> {
    const file = join(place.lab.dir, 'pair.secret');
    writeFileSync(file, 'the secret that both gateways know', { mode: 0o600 });
    // Engines take their time to start where several tests share a machine.
    const pair = {
      secret: { file },
      restart: '6s',
      ...(held ? { holdAcknowledgements: { interface: place.lab.host('a').interface } } : {}),
    };
    const gateways = new KeptPair(place, { clients: 60, proof, pair });
    await gateways.begin();
    await served(gateways, 'a');
    const clients = await place.clients(COUNTS);
    const think = { inside: 50, between: 20, stream: 300 };
    const { address } = gateways;
    await clients.begin({ counts: COUNTS, address, port: PORT, rows: 20_000, sleep: 4, think });
    await gateways.followed('a', ALL);
    await eventually(async () => (await clients.progress()).transactions > 20);
    return { gateways, clients };
  }

  async function unharmed(clients: ClientHost): Promise<void> {
    const report = await clients.finish();
    expect(report).toMatchObject({ reconnects: 0, errors: [], wrongReads: [] });
    for (const { portBefore, portNow } of report.connections) expect(portNow).toBe(portBefore);
    expect(await place.verdict(report)).toMatchObject({ right: true });
  }

  /** @returns how long clients waited for the first answer after something */
  async function pause(clients: ClientHost, happens: () => Promise<unknown>): Promise<number> {
    await clients.watch();
    const since = now();
    await happens();
    const pauses = await place.pauses(clients, since);
    await clients.probe();
    return Math.round(Math.max(...pauses));
  }

  const proofs = ['command', 'etcd'] as const;

  it.skipIf(ackHoldUnavailable() !== null).each(proofs)(
    'an engine that is killed goes on where it was, and only with its keeper gone the other host does (%s)',
    { timeout: 300_000 },
    async (proof) => {
      const { gateways, clients } = await begin(proof, true);
      const pauses: number[] = [];
      for (let n = 0; n < CRASHES; n++) {
        pauses.push(
          await pause(clients, async () => {
            const serving = gateways.serves('a');
            killProcess(gateways.engines.a);
            expect(await serving).toMatchObject({ connections: ALL, lost: 0 });
          }),
        );
        await gateways.followed('a', ALL);
      }
      pauses.push(
        await pause(clients, async () => {
          const serving = gateways.serves('a');
          expect(await outlive(place, gateways, 'a', 'upgrade')).toContain('serves');
          expect(await serving).toMatchObject({ connections: ALL, lost: 0 });
        }),
      );
      await gateways.followed('a', ALL);
      // Whichever of the two dies last.
      expectClosedInOrder(gateways.engines.a);
      expectClosedInOrder(gateways.a.pid);
      // The other one has never had it.
      expect(gateways.log.b.filter(({ msg }) => msg === 'serving an address')).toEqual([]);
      expect((await gateways.b.status()).pair.counts).toMatchObject({ takeovers: 0, kept: 0, reset: 0 });

      await clients.press();
      pauses.push(
        await pause(clients, async () => {
          const serving = gateways.serves('b');
          await gateways.killBoth('a');
          expect(await serving).toMatchObject({ connections: ALL, lost: 0 });
        }),
      );
      if (process.env.LOG) console.log(proof, 'pauses', pauses);
      await unharmed(clients);
    },
  );

  it.each(proofs)(
    'connections move to the other host and back between crashes (%s)',
    { timeout: 300_000 },
    async (proof) => {
      const { gateways, clients } = await begin(proof, false);
      for (const next of ['b', 'a'] as const) {
        await outlive(place, gateways, next, 'takeover');
        await served(gateways, next);
        await pause(clients, async () => {
          const serving = gateways.serves(next);
          killProcess(gateways.engines[next]);
          expect(await serving).toMatchObject({ connections: ALL, lost: 0 });
        });
        await served(gateways, next);
        await gateways.followed(next, ALL);
      }
      await unharmed(clients);
    },
  );

  it('an engine that is killed while it gives the address away: one of the two goes on with all connections', {
    timeout: 300_000,
  }, async () => {
    const { gateways, clients } = await begin('command', false);
    // As soon as it begins, and when all connections stand still and nobody has the address.
    for (const reason of ['planned', 'moving']) {
      const from = (await gateways.a.status()).pair.addresses[0].owner as 'a' | 'b';
      const to = from === 'a' ? 'b' : 'a';
      await pause(clients, async () => {
        const serves = gateways.serves('a', 'b');
        const moment = gateways.next(from, (event) => event.msg === 'decided' && event.reason === reason);
        // It may fail: the engine that it is to be taken from dies.
        const ordered = outlive(place, gateways, to, 'takeover').catch(() => {});
        await moment;
        killProcess(gateways.engines[from]);
        expect(await serves).toMatchObject({ connections: ALL, lost: 0 });
        await ordered;
      });
      // An order that was not done in time is tried again: where it is in the end does not matter.
      const owner = (await gateways[to].status()).pair.addresses[0].owner as 'a' | 'b';
      await served(gateways, owner);
      await gateways.followed(owner, ALL);
    }
    await unharmed(clients);
  });

  it.skipIf(ackHoldUnavailable() !== null)(
    'an engine that is replaced again and again under load, and then its host crashes: the other one has all connections',
    { timeout: 300_000 },
    async () => {
      const { gateways, clients } = await begin('etcd', true);
      await clients.press();
      for (let n = 0; n < UPGRADES; n++) {
        await pause(clients, async () => {
          const serving = gateways.serves('a');
          expect(await outlive(place, gateways, 'a', 'upgrade')).toContain('serves');
          expect(await serving).toMatchObject({ connections: ALL, lost: 0 });
        });
      }
      await gateways.followed('a', ALL);
      await pause(clients, async () => {
        const serving = gateways.serves('b');
        await gateways.crash('a');
        expect(await serving).toMatchObject({ connections: ALL, lost: 0 });
      });
      await unharmed(clients);
    },
  );
});
