import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { BulkClient, type BulkResult } from '../kit/bulk.js';
import { FaultProxy } from '../kit/fault-proxy.js';
import { gatewayConfig, message } from '../kit/gateway.js';
import { type GatewayProcess, spawnGateway } from '../kit/gateway-process.js';
import { eventually, useServer } from '../kit/servers.js';

const MIB = 1024 * 1024;
const SIZE = Number(process.env.OUTLIVE_BULK_MIB ?? 1024) * MIB;
const seen = useServer();
let gateway: GatewayProcess;
beforeAll(async () => {
  gateway = await spawnGateway(gatewayConfig(seen), { nodeArgs: process.env.PROF ? ['--cpu-prof', '--cpu-prof-dir=/tmp/prof'] : [] });
  await seen.server.query('create unlogged table sink (v text)');
});
afterAll(async () => { await gateway?.stop(); });

const rowsOut = Math.ceil(SIZE / 1011);
const SELECT = `select repeat('x', 1000) from generate_series(1, ${rowsOut})`;
const COPY_OUT = `copy (select repeat('x', 1000) from generate_series(1, ${rowsOut})) to stdout`;
const row = Buffer.from('y'.repeat(8191) + '\n');
const big = message('d', Buffer.concat(Array(8).fill(row)));
const small = Buffer.concat(Array(640).fill(message('d', 'z'.repeat(95)+'\n')));
const show = (what: string, d: BulkResult, g: BulkResult, base: number, cpu: number) => {
  const mb = (r: BulkResult, n: number) => Math.round(n / 1e6 / r.seconds);
  const n = Math.max(d.bytes, SIZE);
  const m = gateway.memory();
  console.log(`${what}: direct ${mb(d, n)} MB/s, gateway ${mb(g, n)} MB/s, cpu ${cpu.toFixed(2)}s; RSS base ${(base/MIB).toFixed(0)} now ${(m.now/MIB).toFixed(0)} peak ${(m.peak/MIB).toFixed(0)} MiB`);
};
async function both(what: string, f: (c: BulkClient) => Promise<BulkResult>) {
  const direct = await BulkClient.login({ port: seen.server.port });
  const d = await f(direct);
  direct.destroy();
  const c = await BulkClient.login(gateway);
  gateway.resetPeak();
  const base = gateway.memory().now;
  const cpu = gateway.cpu();
  const g = await f(c);
  show(what, d, g, base, gateway.cpu() - cpu);
  expect({ ...g, seconds: 0 }).toEqual({ ...d, seconds: 0 });
  c.destroy();
}
const n = Math.ceil(SIZE / big.length);
it('select', () => both('select', (c) => c.run(SELECT)), 600_000);
it('copy out', () => both('copy out', (c) => c.run(COPY_OUT)), 600_000);
it('copy in', () => both('copy in', (c) => c.copyIn('copy sink from stdin where length(v) < 0', big, n)), 600_000);
it('copy in small', () => both('copy in small frames', (c) => c.copyIn('copy sink from stdin where length(v) < 0', small, n)), 600_000);
const tx = (f: (c: BulkClient) => Promise<BulkResult>) => async (c: BulkClient) => {
  await c.run('begin');
  const r = await f(c);
  await c.run('commit');
  return r;
};
it('select tx', () => both('select tx', tx((c) => c.run(SELECT))), 600_000);
it('copy out tx', () => both('copy out tx', tx((c) => c.run(COPY_OUT))), 600_000);
it('copy in tx', () => both('copy in tx', tx((c) => c.copyIn('copy sink from stdin where length(v) < 0', big, n))), 600_000);
