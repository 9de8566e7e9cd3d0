import { connect } from 'node:net';
import { describe, expect, it } from 'vitest';
import { runDemo } from '../../core/host/demo/index.js';
import { killPrimary } from '../../core/host/demo/kill.js';
import { checkLedger, type LedgerFacts, readLedger } from '../../core/host/demo/ledger.js';
import { accountsFor } from '../../core/host/demo/workload.js';
import { DEMO_KEYS } from '../kit/demo.js';
import { seededRandom, startTraffic } from '../kit/ledger.js';
import { eventually, usePair } from '../kit/servers.js';

const CLIENTS = 8;
const KINDS = { transfer: 4, autocommit: 1, note: 1, browse: 1, abandon: 1, savepoint: 1, batch: 1 };

describe('the demo', () => {
  it('kills the primary under traffic, and every acknowledged transaction is there once', async () => {
    const texts: string[] = [];
    const ok = await runDemo({
      rounds: 2,
      clients: CLIENTS,
      codec: 'postgres',
      pair: false,
      json: true,
      out: (text) => texts.push(text),
    });
    const lines = texts.join('').trimEnd().split('\n');
    const result = JSON.parse(lines[lines.length - 1]);
    expect(Object.keys(result)).toEqual(DEMO_KEYS);
    expect(result).toMatchObject({ rounds: 2, clients: CLIENTS, clientErrors: 0, duplicates: 0, lost: 0, ok: true });
    expect(result.transactions).toBeGreaterThan(CLIENTS);
    expect(result.replays).toBeGreaterThan(1);
    expect(result.pauseMsMax).toBeGreaterThan(0);
    expect(ok).toBe(true);
  }, 120_000);

  it('stops everything when it is interrupted', async () => {
    const texts: string[] = [];
    const listeners = process.listenerCount('SIGINT');
    const ended = runDemo({
      rounds: 50,
      clients: CLIENTS,
      codec: 'postgres',
      pair: false,
      json: false,
      out: (text) => texts.push(text),
    });
    // By then a server was killed, and its successor is at work or the old one being rebuilt.
    await eventually(() => texts.some((text) => text.startsWith('round 1')), { timeoutMs: 60_000 });
    process.emit('SIGINT');
    expect(await ended).toBe(false);
    expect(texts[texts.length - 1]).toMatch(/^Interrupted/);
    expect(process.listenerCount('SIGINT')).toBe(listeners);
    const [, primary, standby] = /primary on port (\d+), synchronous standby on (\d+)/.exec(texts.join(''))!;
    for (const port of [primary, standby]) await expect(connects(Number(port))).resolves.toBe(false);
  }, 120_000);
});

function connects(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, '127.0.0.1', () => {
      socket.destroy();
      resolve(true);
    });
    socket.on('error', () => resolve(false));
  });
}

describe('the workload without a gateway', () => {
  const servers = usePair();
  const read = () => readLedger((sql) => servers.pair.primary.query(sql));
  const options = () => ({
    clients: CLIENTS,
    random: seededRandom(1),
    kinds: KINDS,
    think: { inside: 20, between: 10 },
    direct: true,
  });

  it('is right while no server dies, and the check finds what is done to the database behind its back', async () => {
    const { workload, stop } = await startTraffic(servers.pair, options());
    await eventually(() => workload.transactions >= 200, { timeoutMs: 30_000 });
    await stop();
    expect(workload.errors).toEqual([]);
    expect(workload.wrongReads).toEqual([]);
    // Every kind but those that end in a rollback was acknowledged.
    const answers = new Set(workload.claims.map(({ answer }) => answer));
    expect(answers).toEqual(new Set(['acknowledged', 'refused']));
    const check = (facts: LedgerFacts) => checkLedger(facts, workload.claims, accountsFor(CLIENTS));
    expect(check(await read())).toMatchObject({ right: true });

    const { reference, given, legs } = workload.claims.find(
      (claim) => claim.answer === 'acknowledged' && claim.legs.length > 0,
    )!;
    const run = (sql: string) => servers.pair.primary.query(sql);
    const where = `WHERE reference = '${reference}'`;
    for (const [change, back] of [
      ["at = at + interval '1 microsecond'", "at = at - interval '1 microsecond'"],
      ['token = gen_random_uuid()', `token = '${given!.token}'`],
    ]) {
      await run(`UPDATE ledger SET ${change} ${where}`);
      expect(check(await read())).toMatchObject({ misgiven: [reference], misplaced: [], right: false });
      await run(`UPDATE ledger SET ${back} ${where}`);
    }
    await run(`UPDATE legs SET entry = entry + 1 WHERE id = ${legs[0].id}`);
    expect(check(await read())).toMatchObject({ misgiven: [], misplaced: [legs[0].id], right: false });
    await run(`UPDATE legs SET entry = entry - 1 WHERE id = ${legs[0].id}`);
    expect(check(await read())).toMatchObject({ right: true });

    await run(`INSERT INTO ledger OVERRIDING SYSTEM VALUE SELECT * FROM ledger ${where}`);
    expect(check(await read())).toMatchObject({ duplicates: [reference], right: false });
    await run(`DELETE FROM ledger ${where}`);
    expect(check(await read())).toMatchObject({ lost: [reference], right: false });
    await run('UPDATE accounts SET balance = balance + 1 WHERE id = 0');
    expect(check(await read())).toMatchObject({ sumRight: false, right: false });
  });

  it('notices an entry that is not what it was given as', async () => {
    const { workload, stop } = await startTraffic(servers.pair, { ...options(), kinds: { transfer: 1, browse: 1 } });
    await eventually(() => workload.transactions >= 40);
    await servers.pair.primary.query('UPDATE ledger SET token = gen_random_uuid()');
    await eventually(() => workload.wrongReads.length > 0);
    await stop();
    expect(workload.wrongReads[0].what).toMatch(/^entry \d+$/);
  });

  it('notices reads that do not show what was acknowledged', async () => {
    const { workload, stop } = await startTraffic(servers.pair, { ...options(), kinds: { browse: 1 } });
    await eventually(() => workload.transactions >= 40);
    await servers.pair.primary.query('UPDATE accounts SET balance = balance + 1');
    await eventually(() => workload.wrongReads.length > 0);
    await stop();
    expect(workload.wrongReads[0]).toMatchObject({ what: 'balance' });
  });

  it('sees errors when the primary is killed', async () => {
    const { workload, stop } = await startTraffic(servers.pair, options());
    await eventually(() => workload.transactions >= 50);
    const { writableAt } = await killPrimary(servers.pair, 20, () => {});
    await eventually(() => workload.errors.length >= CLIENTS);
    await stop();
    expect(writableAt).toBeGreaterThan(0);
    expect(new Set(workload.errors.map(({ client }) => client)).size).toBe(CLIENTS);
    // Whoever was not told anything about a commit does not know; everybody else's transaction is there once.
    expect(checkLedger(await read(), workload.claims, accountsFor(CLIENTS))).toMatchObject({ right: true });
  });
});
