import { readFileSync } from 'node:fs';
import { expect, it, onTestFailed } from 'vitest';
import type { CrowdReport } from '../../bench/load/crowd.js';
import { Crowd } from '../../bench/load/crowd-host.js';
import { Twins } from '../../core/host/demo/lab/twins.js';
import { now } from '../../core/host/demo/workload.js';
import { describeLab, usePairLab } from '../kit/pair-lab.js';

const PORT = 6543;
const LIGHT = Number(process.env.OUTLIVE_TAKEOVER_CONNECTIONS ?? 970);
/** None sends anything at the moment of the crash: what the dead kernel had acknowledged and not passed on would be lost with it. */
const DRIVERS = { idle: 10, transaction: 10, waiting: 8, result: 2 };
const CLIENTS = LIGHT + Object.values(DRIVERS).reduce((sum, count) => sum + count, 0);

/** Memory for each connection: half of that and less was seen, and what a process takes by the way counts, too. */
const MOST_KIB = 100;

/** Resident memory of a process in MiB. */
function memory(pid: number): number {
  return Number(/^VmRSS:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]) / 1024;
}

describeLab('a host with many connections', () => {
  // Sessions of both gateways at a time: those of the host that died are ended one by one.
  const place = usePairLab({ synchronous: false, settings: { max_connections: String(2 * CLIENTS + 100) } });

  it(`is taken over, with ${CLIENTS} of them, within a second`, { timeout: 180_000 }, async () => {
    const { lab, pair } = place;
    const [a, b] = [lab.host('a'), lab.host('b')];
    const { address } = lab.floating();
    const limits = { clients: CLIENTS + 100, greetings: 200 };
    const twins = await Twins.start({
      hosts: [a, b],
      address,
      front: {
        listeners: [
          { name: 'many', codec: 'postgres', listen: `0.0.0.0:${PORT}`, cluster: 'pair', auth: 'trust', limits },
        ],
        clusters: [
          {
            name: 'pair',
            servers: [pair.primary, pair.standby].map(({ name, host, port }) => ({ name, host, port, tls: 'off' })),
            monitor: { user: 'postgres', database: 'postgres' },
          },
        ],
      },
    });
    place.atEnd(() => twins.kill());
    onTestFailed(() => console.error(twins.logs()));
    const memories: Record<string, [a: number | null, b: number]> = {};
    const weigh = (when: string) => {
      const [one, two] = [twins.gateway(a), twins.gateway(b)];
      memories[when] = [one.running ? memory(one.pid) : null, memory(two.pid)];
    };
    weigh('empty');
    const drivers = await place.clients(DRIVERS);
    await drivers.begin({ counts: DRIVERS, address, port: PORT, sleep: 10 });
    const crowd = Crowd.start(lab.host('client'));
    place.atEnd(() => crowd.kill());
    await crowd.open({ host: address, port: PORT, user: 'postgres', database: 'postgres', sessions: LIGHT });
    await crowd.ask();
    expect(await crowd.answers(30_000)).toMatchObject({ lost: 0, wrong: 0, silent: 0 });
    await twins.followed(a);
    weigh('followed');

    const since = await twins.crash(a);
    // These wait for the takeover. All others lose their server session, too, and log in anew although nobody waits for it.
    const waiting = await crowd.ask(LIGHT - 100);
    const { connections, lost, ms, at } = await twins.taken(b, since);
    weigh('taken over');
    const early = await crowd.answers(60_000);
    // They come while idle sessions are logged in, and before these.
    const began = now();
    await crowd.ask(LIGHT - 200, LIGHT - 190);
    const amid = await crowd.answers(60_000);
    const { states } = (await twins.gateway(b).status()).listeners[0];
    const idleFrom = now();
    await crowd.ask();
    await drivers.probe();
    const answers = await crowd.answers(60_000);
    weigh('answered');
    const report = await drivers.finish();
    const slowest = (of: CrowdReport, since: number) => Math.round(Math.max(...of.answeredAt) - since);
    const figures = {
      connections,
      ms,
      takenAfter: at - since,
      early: slowest(early, at),
      amid: slowest(amid, began),
      states,
      all: slowest(answers, idleFrom),
      memories,
    };
    console.log(JSON.stringify(figures));

    expect({ connections, lost }).toEqual({ connections: CLIENTS, lost: 0 });
    expect(ms).toBeLessThanOrEqual(1000);
    expect(answers).toMatchObject({ opened: LIGHT, lost: 0, firstLoss: null, wrong: 0, firstWrong: null, silent: 0 });
    expect(early).toMatchObject({ lost: 0, wrong: 0, silent: 0 });
    expect(early.answeredAt).toHaveLength(waiting);
    expect(amid.answeredAt).toHaveLength(10);
    expect(report).toMatchObject({ reconnects: 0, errors: [], wrongReads: [] });
    for (const { portBefore, portNow } of report.connections) expect(portNow).toBe(portBefore);
    expect(await place.verdict(report)).toMatchObject({ right: true });
    expect((await twins.gateway(b).status()).pair.counts).toMatchObject({ kept: CLIENTS, reset: 0 });
    const each = (to: string, from: string, of: 0 | 1) => ((memories[to][of]! - memories[from][of]!) / CLIENTS) * 1024;
    expect(each('followed', 'empty', 0)).toBeLessThan(MOST_KIB);
    expect(each('followed', 'empty', 1)).toBeLessThan(MOST_KIB);
    expect(each('answered', 'empty', 1)).toBeLessThan(2 * MOST_KIB);
  });
});
