import { expect, it } from 'vitest';
import { Program, startTakeover } from '../kit/gateway-pair.js';
import { describeLab, usePairLab } from '../kit/pair-lab.js';
import { eventually } from '../kit/servers.js';
import { PORT } from '../kit/takeover.js';
import { expectMoved, moveToAndFro } from '../kit/takeover-scene.js';

/** K3: planned moves under full load. Twenty of them take more than a minute. */
const MOVES = Number(process.env.OUTLIVE_TAKEOVER_MOVES ?? 6);

/**
 * Copies rows in and out without end, each time in one transaction, and compares byte by byte. Arguments: address, port, table. When its input
 * ends, it prints its report and ends.
 */
const COPY = `
  import { createRequire } from 'node:module';
  import { Readable } from 'node:stream';
  import { pipeline } from 'node:stream/promises';
  const require = createRequire(process.cwd() + '/package.json');
  const pg = require('pg');
  const { from, to } = require('pg-copy-streams');
  const [host, port, table] = process.argv.slice(1);
  const client = new pg.Client({ host, port: Number(port), user: 'postgres', database: 'postgres' });
  const report = { rounds: 0, bytes: 0, errors: [], before: 0, now: 0 };
  client.on('error', (error) => report.errors.push(error.message));
  let stopping = false;
  process.stdin.on('end', () => { stopping = true; }).resume();
  await client.connect();
  report.before = client.connection.stream.localPort;
  await client.query('create table ' + table + ' (id int, v text)');
  const rows = (round) => Array.from({ length: 4000 }, (_, i) =>
    (round * 4000 + i) + '\\t' + String.fromCharCode(97 + (i + round) % 26).repeat(i % 300) + '\\n').join('');
  try {
    for (let round = 0; !stopping; round++) {
      const text = rows(round);
      const pieces = text.match(/[^]{1,16384}/g);
      await client.query('begin');
      await client.query('truncate ' + table);
      await pipeline(Readable.from(pieces), client.query(from('copy ' + table + ' from stdin')));
      let back = '';
      const out = client.query(to('copy ' + table + ' to stdout'));
      for await (const chunk of out) back += chunk;
      if (back !== text) throw new Error('round ' + round + ': ' + back.length + ' bytes came back of ' + text.length);
      await client.query('commit');
      const { rows: [{ n }] } = await client.query('select count(*)::int as n from ' + table + ' where id / 4000 = ' + round);
      if (n !== 4000) throw new Error('round ' + round + ': ' + n + ' rows are there');
      report.rounds++;
      report.bytes += 2 * text.length;
      console.log(JSON.stringify(report));
    }
  } catch (error) {
    report.errors.push(String(error.stack));
  }
  report.now = client.connection.stream.localPort;
  console.log(JSON.stringify(report));
  await client.end().catch(() => {});
  process.exit();`;

describeLab('a planned move', () => {
  const place = usePairLab();

  it(`costs no client anything, ${MOVES} times under full load`, { timeout: 300_000 }, async () => {
    const { lab } = place;
    const counts = { idle: 4, transaction: 4, waiting: 2, result: 4, commit: 2, echo: 8, stream: 3, transfer: 16 };
    const gateways = await startTakeover(place, { clients: 60, proof: 'command' });
    const { address } = gateways;
    const stop = await lab.recorder([address]);
    const clients = await place.clients(counts);
    const copies = ['c1', 'c2'].map(
      (table) => new Program(place, lab.host('client'), COPY, [address, String(PORT), table]),
    );
    await clients.begin({ counts, address, port: PORT, rows: 20_000, sleep: 1, think: { inside: 20, between: 10 } });
    await eventually(async () => (await clients.report()).transactions > 20);
    const before = await clients.report();

    const { owners, times } = await moveToAndFro(place, gateways, clients, MOVES);

    const reports = await Promise.all(copies.map((copy) => copy.finish()));
    const report = await clients.finish();
    expect(report).toMatchObject({ reconnects: 0, errors: [], wrongReads: [] });
    expect(report.connections.map(({ portNow }) => portNow)).toEqual(
      before.connections.map(({ portBefore }) => portBefore),
    );
    for (const copy of reports) {
      expect(copy.errors).toEqual([]);
      expect(copy.rounds).toBeGreaterThan(2);
      expect(copy.now).toBe(copy.before);
    }
    expect(report.echoed).toBeGreaterThan(1_000_000);
    expect(report.streamed).toBeGreaterThan(1_000_000);
    expect(await place.verdict(report)).toMatchObject({ right: true });
    await expectMoved(gateways, await stop(), owners);
    if (process.env.LOG) {
      console.log({ times, reports, transactions: report.transactions, echoed: report.echoed });
    }
  });
});
