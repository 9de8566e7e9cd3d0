import { type ClientCounts, ClientHost, type ClientReport } from '../../core/host/demo/lab/clients.js';
import { Remote } from '../../core/host/demo/lab/remote.js';
import { checkLedger, type LedgerFacts, type LedgerVerdict, OPENING_BALANCE } from '../../core/host/demo/ledger.js';
import type { EmbeddedOptions } from '../../plugins/embedded-postgres/index.js';
import { outlive, startTakeover } from './gateway-pair.js';
import { PairLab } from './pair-lab.js';
import { selfSignedCert } from './servers.js';
import type { GatewayPair, GatewayPairOptions } from './takeover.js';
import { compiledProgram, TdsProcess } from './tds-process.js';

/** Port of the TDS servers. */
const SERVER_PORT = 1433;

/** A lab with a TDS server on the host of each database server. */
export class TdsLab extends PairLab {
  readonly servers = new Map<string, TdsProcess>();
  /** The database `app` of the TDS servers. */
  override readonly schema = 'app';
  override readonly waitForHeld = 'SELECT id FROM held WITH (HOLDLOCK)';
  // Both ends of it are JavaScript.
  override readonly rows = 10_000;

  override async begin(ipv6: boolean, options: EmbeddedOptions): Promise<void> {
    await super.begin(ipv6, options);
    const tls = selfSignedCert();
    for (const { name, host: address, port } of [this.pair.primary, this.pair.standby]) {
      const pg = { host: address, port, user: 'postgres', database: 'postgres' };
      const host = this.lab.hosts.find((one) => one.address === address)!;
      this.servers.set(name, await TdsProcess.start({ name, host: address, port: SERVER_PORT, tls, pg }, host));
    }
  }

  override async end(): Promise<void> {
    for (const server of this.servers.values()) await server.kill();
    await super.end();
  }

  /** What the gateways of a pair need to stand before the TDS servers. */
  options(more: Partial<GatewayPairOptions> & Pick<GatewayPairOptions, 'proof'>): GatewayPairOptions {
    const password = { file: this.lab.write('monitor.password', 'Outlive.1') };
    const servers = [this.pair.primary, this.pair.standby].map(({ name, host }) => ({
      name,
      host,
      port: SERVER_PORT,
      tls: 'off',
    }));
    const monitor = { user: 'sa', database: 'app', password, interval: '100ms', timeout: '1s' };
    return {
      ...more,
      listener: { codec: 'tds', outcome: { by: 'marker' }, ...more.listener },
      cluster: { servers, monitor, spares: undefined, ...more.cluster },
    };
  }

  /** What a pair of gateways under keepers needs besides. */
  kept(): object {
    // Engines take their time to start where several tests share a machine.
    return {
      secret: { file: this.lab.write('pair.secret', 'the secret that both gateways know') },
      restart: '6s',
    };
  }

  /** Sets up what proves commits, through a pair of gateways that is there. */
  async prepare(gateways: GatewayPair): Promise<void> {
    await outlive(this, gateways, 'a', 'setup', '--listener', 'demo');
  }

  /** As those of {@link PairLab}, with `tedious`. */
  override async clients(counts: ClientCounts): Promise<ClientHost> {
    const host = this.lab.host('client');
    const child = host.spawn(process.execPath, [await compiledProgram('test/kit/tds-clients-main.ts')], {
      env: { ...process.env, NODE_OPTIONS: '' },
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
    });
    const clients = await ClientHost.start(host, new Remote(child, 'the TDS clients'));
    this.atEnd(() => clients.kill());
    await this.#createLedger(await clients.accounts(counts.transfer ?? 0));
    return clients;
  }

  /** As `createLedger`, in the schema that is the database `app`; and `numbers`, which the large result is made of. */
  async #createLedger(accounts: number): Promise<void> {
    await this.pair.primary.query(`
      CREATE SCHEMA IF NOT EXISTS app;
      DROP TABLE IF EXISTS app.accounts, app.ledger, app.legs, app.numbers;
      CREATE TABLE app.accounts (id int PRIMARY KEY, balance int NOT NULL) WITH (fillfactor = 50);
      CREATE TABLE app.ledger (
        id bigint NOT NULL,
        reference varchar(60) NOT NULL,
        client int NOT NULL,
        source int,
        target int,
        amount int NOT NULL,
        at timestamp(3) NOT NULL,
        token uuid NOT NULL);
      CREATE INDEX ON app.ledger (id);
      CREATE INDEX ON app.ledger (client);
      CREATE TABLE app.legs (id bigint PRIMARY KEY, entry bigint NOT NULL, account int NOT NULL, amount int NOT NULL);
      CREATE TABLE app.numbers (n int PRIMARY KEY);
      INSERT INTO app.numbers SELECT generate_series(1, ${this.rows});
      INSERT INTO app.accounts SELECT g, ${OPENING_BALANCE} FROM generate_series(0, ${accounts - 1}) AS g`);
  }

  override async verdict({ claims, accounts }: ClientReport): Promise<LedgerVerdict> {
    const query = async (sql: string) => (await this.pair.primary.query(sql)).rows as never;
    const facts: LedgerFacts = {
      // Times and tokens as tedious gives them.
      entries: await query(`SELECT id::text, reference, client, source, target, amount,
        to_char(at, 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS at, upper(token::text) AS token FROM app.ledger`),
      legs: await query('SELECT id::text, entry::text, account, amount FROM app.legs'),
      accounts: await query('SELECT id, balance FROM app.accounts'),
    };
    return checkLedger(facts, claims, accounts);
  }
}

/** Starts a pair of gateways before the TDS servers; they end with the test. */
export async function startTdsGateways(place: TdsLab, options: Parameters<TdsLab['options']>[0]): Promise<GatewayPair> {
  const gateways = await startTakeover(place, place.options(options));
  await place.prepare(gateways);
  return gateways;
}
