import { readdirSync, readFileSync, readlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import type { ClientHost } from '../../core/host/demo/lab/clients.js';
import { type GatewayProcess, type LogEvent, startGatewayIn } from '../../core/host/demo/lab/gateway.js';
import { now } from '../../core/host/demo/workload.js';
import { ackHoldUnavailable } from '../../core/io/hold/index.js';
import { outlive, served } from '../kit/gateway-pair.js';
import { describeLab, type PairLab, usePairLab } from '../kit/pair-lab.js';
import { eventually } from '../kit/servers.js';
import { GatewayPair, type GatewayPairOptions, PORT } from '../kit/takeover.js';

/** K2, and the upgrade of K13: two gateways, each under a keeper. CRASHES says how often the engine is killed, UPGRADES how often it is replaced. */
const CRASHES = Number(process.env.CRASHES ?? 1);
const UPGRADES = Number(process.env.UPGRADES ?? 2);
const COUNTS = { idle: 6, transaction: 6, waiting: 4, result: 4, commit: 4, echo: 6, stream: 1, transfer: 14 };
const ALL = Object.values(COUNTS).reduce((sum, count) => sum + count, 0);

/** A pair of gateways under keepers. */
class KeptPair extends GatewayPair {
  /** Pids of the engines. */
  readonly engines = { a: 0, b: 0 };
  readonly log: { a: LogEvent[]; b: LogEvent[] } = { a: [], b: [] };
  readonly #place: PairLab;

  constructor(place: PairLab, options: GatewayPairOptions) {
    super(place, options);
    this.#place = place;
  }

  override async start(name: 'a' | 'b'): Promise<GatewayProcess> {
    const onEvent = (event: LogEvent) => {
      if (process.env.LOG) process.stderr.write(`${name} ${JSON.stringify(event)}\n`);
      this.log[name].push(event);
      if (event.msg === 'the engine is started') this.engines[name] = event.pid as number;
    };
    const config = { ...this.config(name), keeper: { socket: `./keeper-${name}/socket` } };
    const started = await startGatewayIn(this.host(name), config, { command: ['keeper'], onEvent });
    this.#place.atEnd(() => this.killBoth(name, started));
    return (this[name] = started);
  }

  /** Kills a keeper and its engine. */
  async killBoth(name: 'a' | 'b', keeper = this[name]): Promise<void> {
    // The keeper first: it would start another engine. Its log ends with the engine's.
    const killed = keeper.kill();
    kill(this.engines[name]);
    await killed;
  }

  /** The next line of a log that is like this. */
  async next(name: 'a' | 'b', like: (event: LogEvent) => boolean): Promise<LogEvent> {
    const log = this.log[name];
    const from = log.length;
    return await eventually(
      () => {
        const event = log.slice(from).find(like);
        if (event === undefined) throw new Error('it did not come');
        return event;
      },
      { timeoutMs: 30_000, intervalMs: 2 },
    );
  }

  /** Resolves with the next line that says that one of these gateways serves the address. */
  async serves(...names: ('a' | 'b')[]): Promise<{ connections: number; lost: number }> {
    const line = await Promise.any(names.map((name) => this.next(name, ({ msg }) => msg === 'serving an address')));
    return line as unknown as { connections: number; lost: number };
  }
}

/** What holds acknowledgements is closed last when this process dies: Linux closes from the highest descriptor down. */
function expectHeldLongest(pid: number): void {
  const opened = readdirSync(`/proc/${pid}/fd`).map((fd) => ({
    fd: Number(fd),
    file: readlinkSync(`/proc/${pid}/fd/${fd}`),
  }));
  const lines = readFileSync(`/proc/${pid}/net/tcp`, 'utf8').trim().split('\n').slice(1);
  const clients = lines.map((line) => line.trim().split(/\s+/));
  const port = PORT.toString(16).toUpperCase().padStart(4, '0');
  const inodes = clients
    .filter(([, local, , state]) => local.endsWith(`:${port}`) && state === '01')
    .map((line) => line[9]);
  const sockets = opened.filter(({ file }) => inodes.some((inode) => file === `socket:[${inode}]`)).map(({ fd }) => fd);
  expect(sockets.length).toBeGreaterThanOrEqual(ALL);
  const links = opened.filter(({ file }) => file.includes('bpf_link') || file.includes('bpf-link')).map(({ fd }) => fd);
  expect(Math.min(...links)).toBeLessThan(Math.min(...sockets));
}

function kill(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch {
    // It is gone.
  }
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
            kill(gateways.engines.a);
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
      expectHeldLongest(gateways.engines.a);
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
          kill(gateways.engines[next]);
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
        kill(gateways.engines[from]);
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
