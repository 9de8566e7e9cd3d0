import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { killPrimary } from '../../core/host/demo/kill.js';
import { startGatewayIn } from '../../core/host/demo/lab/gateway.js';
import { Lab } from '../../core/host/demo/lab/lab.js';
import { readSource } from '../../core/host/demo/lab/packets.js';
import { rulesFor } from '../../core/host/demo/lab/rules.js';
import { ownersOf, Runs } from '../../core/host/demo/lab/runs.js';
import { configInFront } from '../../core/host/demo/lab/servers.js';
import { now } from '../../core/host/demo/workload.js';
import { compiled } from '../kit/gateway-process.js';
import { describeLab, usePairLab } from '../kit/pair-lab.js';
import { eventually } from '../kit/servers.js';

const PORT = 6543;

/** Sends back what it gets. */
const ECHO = `require('net').createServer((s) => s.on('data', (d) => s.write(d)).on('error', () => {})).listen(5000, () => console.log('up'))`;
/** Prints how long a connection and an echo take, or null. Arguments: address, limit in ms. */
const ASK = `
  const [address, limit] = process.argv.slice(1);
  const began = Date.now();
  const end = (value) => { console.log(value); process.exit(); };
  setTimeout(() => end('null'), Number(limit));
  const socket = require('net').connect(5000, address, () => socket.write('x'));
  socket.on('data', () => end(Date.now() - began)).on('error', () => end('null'));`;
/** Sends a datagram. Arguments: from, to. */
const SPEAK = `
  const [from, to] = process.argv.slice(1);
  const socket = require('dgram').createSocket(from.includes(':') ? 'udp6' : 'udp4');
  socket.bind(0, from, () => socket.send('x', 9, to, () => socket.close()));`;

function namespaces(prefix: string): string[] {
  return existsSync('/run/netns') ? readdirSync('/run/netns').filter((name) => name.startsWith(prefix)) : [];
}

describeLab('the lab', () => {
  const place = usePairLab({ ipv6: true });

  it('carries a gateway, a pair and clients, each on its host, through the death of the primary', async () => {
    const { lab, pair } = place;
    const a = lab.host('a');
    const counts = { idle: 2, transaction: 2, waiting: 2, result: 2, commit: 2, echo: 2, stream: 1, transfer: 6 };
    const clients = await place.clients(counts);
    const gateway = await startGatewayIn(a, configInFront(pair, `${a.address}:${PORT}`, 20));
    place.atEnd(() => gateway.kill());
    await clients.begin({ counts, address: a.address, port: PORT, think: { inside: 50, between: 20 } });
    const status = await gateway.status();
    expect(status).toMatchObject({ listeners: [{ name: 'demo' }] });
    await eventually(async () => (await clients.report()).transactions > 20);
    const before = await clients.report();
    expect(before.connections).toHaveLength(19);

    // Commits wait for a standby that stands still, so the kill interrupts them.
    await pair.standby.freeze();
    await clients.press();
    await eventually(async () => (await clients.report()).committing >= 2);
    await clients.watch();
    const since = now();
    await killPrimary(pair, 0, () => {});
    await clients.probe();
    const pauses = await place.pauses(clients, since);
    expect(pauses.length).toBeGreaterThanOrEqual(4 + 2 + 2 + 1 + 6);

    const report = await clients.finish();
    expect(report).toMatchObject({ reconnects: 0, errors: [], wrongReads: [] });
    for (const { portBefore, portNow } of report.connections) expect(portNow).toBe(portBefore);
    expect(report.connections.map(({ portBefore }) => portBefore)).toEqual(
      before.connections.map(({ portBefore }) => portBefore),
    );
    expect(report.echoed).toBeGreaterThan(0);
    expect(report.streamed).toBeGreaterThan(0);
    expect(report.claims.filter(({ reference }) => reference.startsWith('lab-'))).toHaveLength(8);
    expect(await place.verdict(report)).toMatchObject({ right: true });
  });

  it('delays, loses, cuts and freezes', async () => {
    const { lab } = place;
    const [one, two] = [lab.host('one'), lab.host('two')];
    const echo = two.spawn(process.execPath, ['-e', ECHO], { stdio: ['ignore', 'pipe', 'inherit'] });
    await once(echo.stdout!, 'data');
    /** Milliseconds that a connection with one request takes; null when it takes more than so many. */
    const ask = async (limit: number): Promise<number | null> => {
      const { stdout } = await one.run(process.execPath, ['-e', ASK, two.address, String(limit)]);
      return JSON.parse(stdout);
    };
    expect(await ask(1000)).toBeLessThan(500);

    await two.impair({ delayMs: 100 });
    const delayed = await ask(5000);
    // One round trip to connect, one for the request.
    expect(delayed).toBeGreaterThanOrEqual(400);
    expect(delayed).toBeLessThan(900);
    await two.impair({ lossPercent: 100 });
    expect(await ask(500)).toBeNull();
    await two.impair({});
    expect(await ask(1000)).toBeLessThan(500);

    await two.cutFrom(one, 'to');
    expect(await ask(300)).toBeNull();
    await two.mendFrom(one);
    await two.cut();
    expect(await ask(300)).toBeNull();
    expect((await two.run('cat', ['/sys/class/net/eth0/carrier'])).stdout.trim()).toBe('1');
    await two.mend();
    two.freeze();
    expect(await ask(300)).toBeNull();
    two.thaw();
    expect(await ask(1000)).toBeLessThan(500);
    const exit = once(echo, 'exit');
    await two.killAll();
    expect(await exit).toEqual([null, 'SIGKILL']);
  });

  it('tells who spoke for an address', async () => {
    const { lab } = place;
    const [one, two] = [lab.host('one'), lab.host('two')];
    const { address, address6 } = lab.floating();
    const client = lab.host('client');
    const stop = await lab.recorder([address, address6]);
    const speak = async (host: typeof one) => {
      for (const [prefix, to] of [
        [`${address}/24`, client.address],
        [`${address6}/64`, client.address6!],
      ]) {
        const dad = to.includes(':') ? ['nodad'] : [];
        await host.run('ip', ['addr', 'add', prefix, 'dev', host.interface, ...dad]);
        await host.run(process.execPath, ['-e', SPEAK, prefix.replace(/\/.*/, ''), to]);
        await host.run('ip', ['addr', 'del', prefix, 'dev', host.interface]);
      }
    };
    const began = now();
    await speak(one);
    await speak(two);
    // What a host says that is cut off is sent, and reaches nobody.
    await one.cut();
    await speak(one);
    const { sent, delivered, missed } = await stop();
    expect(missed).toBe(0);
    for (const each of [address, address6]) {
      expect(ownersOf(sent, each)).toEqual(['one', 'two', 'one']);
      expect(ownersOf(delivered, each)).toEqual(['one', 'two']);
    }
    for (const run of delivered) {
      expect(run.first).toBeGreaterThan(began - 5);
      expect(run.last).toBeLessThan(now() + 5);
      expect(run.kinds.other).toBeGreaterThan(0);
    }
  });

  it('forgets connections of a host that is rebooted, and the servers on it come back', async () => {
    const { lab, pair } = place;
    const host = lab.hosts.find(({ address }) => address === pair.primary.host)!;
    await host.crash();
    expect(host.processes()).toEqual([]);
    await pair.failover();
    await host.reboot();
    expect((await host.run('ip', ['-o', 'addr', 'show', 'dev', 'eth0'])).stdout).toContain(host.address);
    await pair.rebuild();
    expect((await pair.primary.query('SELECT 1 AS one')).rows).toEqual([{ one: 1 }]);
  });
});

describeLab('a lab', () => {
  it('leaves nothing', async () => {
    const lab = await Lab.create({ ipv6: true, program: compiled() });
    const host = lab.host('one');
    const child = host.spawn('sleep', ['1000']);
    const { dir, prefix } = lab;
    expect(namespaces(prefix)).toHaveLength(2);
    expect((await host.run('ip', ['addr'])).stdout).toContain(host.address6!);
    const exit = once(child, 'exit');
    await lab.destroy();
    await exit;
    expect(namespaces(prefix)).toEqual([]);
    expect(existsSync(dir)).toBe(false);
    await lab.destroy();
  });

  it('leaves nothing when its process is killed', async () => {
    const script = `
      const { Lab } = await import(${JSON.stringify(`${compiled()}/core/host/demo/lab/lab.js`)});
      const lab = await Lab.create();
      const child = lab.host('one').spawn('sleep', ['1000'], { stdio: 'ignore' });
      console.log(JSON.stringify({ prefix: lab.prefix, pid: child.pid }));
      setInterval(() => {}, 1000);`;
    const child = spawn(process.execPath, ['--input-type=module', '-e', script], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    const [line] = await once(child.stdout!, 'data');
    const { prefix, pid } = JSON.parse(String(line));
    expect(namespaces(prefix)).toHaveLength(2);
    child.kill('SIGKILL');
    await eventually(() => namespaces(prefix).length === 0);
    expect(existsSync(`/proc/${pid}/stat`) && !/\) Z/.test(readFileSync(`/proc/${pid}/stat`, 'utf8'))).toBe(false);
  });
});

describe('the parts of the lab that need no root', () => {
  it('say faults as rules', () => {
    const text = rulesFor({ down: new Set(['a']), blocked: [['a', 'b']], loss: new Map([['c', 2.5]]) });
    expect(text.match(/^ {4}[io]if.*$/gm)).toEqual([
      '    iifname { "p-a", "d-a" } drop',
      '    oifname { "p-a", "d-a" } drop',
      '    iifname { "p-a", "d-a" } oifname { "p-b", "d-b" } drop',
      '    iifname { "p-c", "d-c" } numgen random mod 10000 < 250 drop',
      '    oifname { "p-c", "d-c" } numgen random mod 10000 < 250 drop',
    ]);
    expect(rulesFor({ down: new Set(['a']), blocked: [], loss: new Map([['c', 100]]) })).not.toContain('numgen');
  });

  it('read who a packet is from', () => {
    const ethernet = (type: string) => `ffffffffffff024f4c000001${type}`;
    const read = (text: string) => readSource(Buffer.from(text.replace(/ /g, ''), 'hex'));
    const mac = '02:4f:4c:00:00:01';
    const v4 = (protocol: string) => `45000028 00004000 40${protocol}0000 0a4d0064 0a4d0002`;
    const tcp = (flags: string) => `10e1c350 00000001 00000001 50${flags}ffff 00000000`;
    expect(read(`${ethernet('0800')} ${v4('06')} ${tcp('10')}`)).toEqual({ mac, source: '10.77.0.100', kind: 'tcp' });
    expect(read(`${ethernet('0800')} ${v4('06')} ${tcp('14')}`)).toMatchObject({ kind: 'rst' });
    expect(read(`${ethernet('0800')} ${v4('06')} ${tcp('11')}`)).toMatchObject({ kind: 'fin' });
    expect(read(`${ethernet('0800')} ${v4('11')} ${tcp('14')}`)).toMatchObject({ kind: 'other' });
    expect(read(`${ethernet('0806')} 0001080006040001 024f4c000001 0a4d0064 000000000000 0a4d0064`)).toEqual({
      mac,
      source: '10.77.0.100',
      kind: 'arp',
    });
    const six = (next: string, source: string) =>
      `${ethernet('86dd')} 60000000 0020${next}ff ${source} ff020000000000000000000000000001`;
    const linkLocal = 'fe80000000000000004f4cfffe000001';
    const target = 'fd770000000000000000000000000064';
    expect(read(`${six('3a', linkLocal)} 88000000 20000000 ${target}`)).toEqual({
      mac,
      source: 'fd77::64',
      kind: 'neighbour',
    });
    expect(read(`${six('06', target)} ${tcp('04')}`)).toEqual({ mac, source: 'fd77::64', kind: 'rst' });
    expect(read(ethernet('88cc') + '00'.repeat(60))).toBeNull();
    expect(read(ethernet('0800'))).toBeNull();
  });

  it('gather packets into runs that end when another host speaks', () => {
    const runs = new Runs();
    const packet = (source: string, kind: 'tcp' | 'arp' = 'tcp') => ({ source, kind, mac: '' });
    runs.add('a', packet('x'), 1);
    runs.add('b', packet('y'), 2);
    runs.add('a', packet('x', 'arp'), 3);
    runs.add('b', packet('x'), 4);
    expect(runs.list).toEqual([
      { source: 'x', host: 'a', first: 1, last: 3, packets: 2, kinds: { tcp: 1, arp: 1 } },
      { source: 'y', host: 'b', first: 2, last: 2, packets: 1, kinds: { tcp: 1 } },
      { source: 'x', host: 'b', first: 4, last: 4, packets: 1, kinds: { tcp: 1 } },
    ]);
    expect(ownersOf(runs.list, 'x')).toEqual(['a', 'b']);
  });
});
