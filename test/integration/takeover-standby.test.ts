import { expect, it } from 'vitest';
import { ackHoldUnavailable } from '../../core/io/hold/index.js';
import { Program } from '../kit/gateway-pair.js';
import { describeLab, usePairLab } from '../kit/pair-lab.js';
import { eventually } from '../kit/servers.js';
import { PORT, startGateways } from '../kit/takeover.js';

/**
 * Clients that only read: half of them in one transaction, half in one after the other. Arguments: address, port, how many. When its input ends,
 * it prints its report and ends.
 */
const READERS = `
  import { createRequire } from 'node:module';
  import { setTimeout as sleep } from 'node:timers/promises';
  const pg = createRequire(process.cwd() + '/package.json')('pg');
  const [host, port, count] = process.argv.slice(1);
  const report = { connected: 0, answers: 0, least: 0, errors: [], standby: [] };
  let stopping = false;
  process.stdin.on('end', () => { stopping = true; }).resume();
  const answers = [];
  const run = async (i) => {
    const client = new pg.Client({ host, port: Number(port), user: 'postgres', database: 'postgres' });
    client.on('error', (error) => report.errors.push(error.message));
    answers[i] = 0;
    await client.connect();
    report.connected++;
    try {
      if (i % 2 === 0) await client.query('begin isolation level repeatable read');
      while (!stopping) {
        const { rows: [{ n }] } = await client.query('select count(*)::int as n from readable');
        if (n !== 100) throw new Error(n + ' rows');
        answers[i]++;
        await sleep(20);
      }
      report.standby.push((await client.query('select pg_is_in_recovery() as it')).rows[0].it);
      if (i % 2 === 0) await client.query('commit');
    } catch (error) {
      report.errors.push(String(error.stack));
    }
    await client.end().catch(() => {});
  };
  const say = () => {
    report.least = Math.min(...answers);
    report.answers = answers.reduce((sum, each) => sum + each, 0);
    console.log(JSON.stringify(report));
  };
  const timer = setInterval(say, 50);
  await Promise.all(Array.from({ length: Number(count) }, (_, i) => run(i)));
  clearInterval(timer);
  say();
  process.exit();`;

const CLIENTS = 12;

describeLab('sessions on a standby', () => {
  const place = usePairLab();

  // Else the kernel of a lost host may have acknowledged what nobody was told of, and that connection is reset.
  it.skipIf(ackHoldUnavailable() !== null)(
    'go on on their connections when the host of their gateway is lost',
    async () => {
      await place.pair.primary.query('create table readable as select generate_series(1, 100) i');
      const gateways = await startGateways(place, {
        proof: 'command',
        clients: 20,
        listener: { target: 'standby' },
        pair: { holdAcknowledgements: { interface: place.lab.host('a').interface } },
      });
      const args = [gateways.address, String(PORT), String(CLIENTS)];
      const readers = new Program(place, place.lab.host('client'), READERS, args);
      await eventually(() => readers.last?.connected === CLIENTS && readers.last.least > 3);
      await gateways.followed('a', CLIENTS);
      expect(Object.values((await gateways.a.status()).listeners[0].servers)).toEqual([CLIENTS]);
      await gateways.crash('a');
      expect(await gateways.took('b')).toMatchObject({ connections: CLIENTS, lost: 0 });
      const { least } = readers.last;
      await eventually(() => readers.last.errors.length > 0 || readers.last.least > least + 5, {
        timeoutMs: 30_000,
        message: 'all are answered again',
      });
      const report = await readers.finish();
      expect(report.errors).toEqual([]);
      expect(report.standby).toEqual(new Array(CLIENTS).fill(true));
    },
  );
});
