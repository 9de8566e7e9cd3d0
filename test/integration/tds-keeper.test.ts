import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeAll, describe, expect, it } from 'vitest';
import { passingUnavailable } from '../../core/io/keeper/index.js';
import { gatewayConfig } from '../kit/gateway.js';
import { type KeptGateway, startKept } from '../kit/kept-gateway.js';
import { eventually, selfSignedCert, tempDir, useServer } from '../kit/servers.js';
import { refusal, TdsClient } from '../kit/tds.js';
import { TdsServer } from '../servers/tds/server.js';

/** K2 and K13 with TDS, on one host: an engine that is killed, and one that is replaced. */
const unavailable = passingUnavailable();
if (unavailable !== null) console.warn(`the keeper is not tested: ${unavailable}`);

describe.skipIf(unavailable !== null)('TDS clients under a keeper', () => {
  const holder = useServer();
  let server: TdsServer;
  beforeAll(async () => {
    const { host, port } = holder.server;
    server = await TdsServer.start({
      tls: selfSignedCert(),
      pg: { host, port, user: 'postgres', database: 'postgres' },
    });
    return () => server.stop();
  });

  const ends: (() => unknown)[] = [];
  afterEach(async () => {
    for (const end of ends.splice(0).reverse()) await end();
  });

  async function start(): Promise<KeptGateway> {
    const password = join(tempDir(), 'monitor');
    writeFileSync(password, 'Outlive.1', { mode: 0o600 });
    const config = gatewayConfig([{ port: server.port }], {
      listener: { codec: 'tds' },
      cluster: { monitor: { user: 'sa', database: 'app', password: { file: password }, interval: '200ms' } },
      tls: 'allow',
    });
    const gateway = await startKept(config);
    ends.push(() => gateway.kill());
    return gateway;
  }

  async function connect({ port }: KeptGateway, encrypt = false): Promise<TdsClient> {
    const client = await TdsClient.connect(port, { encrypt });
    ends.push(() => client.connection.close());
    return client;
  }

  const portOf = ({ connection }: TdsClient) => connection.socket?.localPort;

  it('go on on their connections, in a transaction and amid a result, and those over TLS are told or closed', async () => {
    const gateway = await start();
    const [standing, reading] = [await connect(gateway), await connect(gateway)];
    const ports = [standing, reading].map(portOf);
    await standing.batch('CREATE TABLE kept (id int PRIMARY KEY); CREATE TABLE long (id int, pad varchar(2000))');
    for (let i = 0; i < 20; i++) await standing.batch(`INSERT INTO long SELECT ${i}, REPLICATE('x', 2000)`);
    const text =
      'SELECT a.id AS a, b.id AS b, c.id AS c, a.pad FROM long a CROSS JOIN long b CROSS JOIN long c ORDER BY 1, 2, 3';
    const whole = (await standing.batch(text)).rows;
    await standing.begin();
    let inserted = 0;
    const happenings = [
      [/being upgraded.*OUTLIVE_NOT_MOVABLE/s, () => gateway.upgrade()],
      [/socket|ECONNRESET|closed/i, () => gateway.crash()],
    ] as const;
    for (const [why, happen] of happenings) {
      const encrypted = [await connect(gateway, true), await connect(gateway, true)];
      const asked = refusal(encrypted[0].batch("WAITFOR DELAY '00:00:50'"));
      await standing.batch(`INSERT INTO kept VALUES (${++inserted})`);
      let rows = 0;
      let resume = () => {};
      const stalled = new Promise<void>((there) => {
        resume = there;
      });
      let goOn = () => {};
      const answer = reading.run(
        (request, connection) => connection.execSqlBatch(request),
        text,
        [],
        (request) => {
          goOn = () => request.resume();
          request.on('row', () => {
            if (++rows !== 500) return;
            request.pause();
            resume();
          });
        },
      );
      await stalled;
      expect(await happen()).toMatchObject({ kept: 2, lost: 0 });
      goOn();
      expect((await answer).rows).toEqual(whole);
      expect((await asked).message).toMatch(why);
      await eventually(() => encrypted.every(({ connection }) => connection.closed));
      const again = await connect(gateway, true);
      expect((await again.batch('SELECT 1 AS one')).rows).toEqual([{ one: 1 }]);
      await again.close();
      await gateway.sound();
    }
    expect((await standing.batch('SELECT id FROM kept ORDER BY id')).rows).toEqual([{ id: 1 }, { id: 2 }]);
    await standing.rollback();
    expect((await standing.batch('SELECT id FROM kept')).rows).toEqual([]);
    expect([standing, reading].map(portOf)).toEqual(ports);
    for (const { lost } of [standing, reading]) expect(lost).toEqual([]);
  });
});
