import { once } from 'node:events';
import { connect, type Socket } from 'node:net';
import { it } from 'vitest';
import { gatewayConfig, message, startupPacket } from '../kit/gateway.js';
import { spawnGateway } from '../kit/gateway-process.js';
import { useServer } from '../kit/servers.js';
const seen = useServer();
it('pin', async () => {
  const gateway = await spawnGateway(gatewayConfig(seen));
  const ask = async (s: Socket, b: Buffer) => { s.write(b); for (;;) { const [c] = (await once(s, 'data')) as [Buffer]; if (c.at(-6) === 0x5a) return; } };
  const open = async () => { const s = connect({ host: '127.0.0.1', port: gateway.port }); s.on('error', () => {}); await once(s, 'connect'); await ask(s, startupPacket({ user: 'postgres', database: 'postgres' })); return s; };
  const idle = []; for (let i = 0; i < 200; i++) idle.push(await open());
  const busy = await open();
  // 200 x 1000-byte requests in separate writes make slabs go round
  const noise = message('Q', `select '${'x'.repeat(6000)}'\0`);
  for (const s of idle) await ask(s, message('Q', 'begin\0'));
  const before = gateway.memory().now;
  for (let k = 0; k < 20; k++) for (const s of idle) { await ask(s, message('Q', 'select 1\0')); for (let i = 0; i < 4; i++) await ask(busy, noise); }
  const m = gateway.memory().now;
  console.log('pinned per session KiB', (m - before) / 200 / 1024, 'bytes/stmt', (m - before) / 4000, m / 1048576);
  await gateway.stop();
}, 300_000);
