import { afterAll, beforeAll } from 'vitest';
import tds from '../../codecs/tds/index.js';
import { type ClientCounts, ClientHost, type ClientReport } from '../../core/host/demo/lab/clients.js';
import { Remote } from '../../core/host/demo/lab/remote.js';
import { checkLedger, type LedgerFacts, type LedgerVerdict, OPENING_BALANCE } from '../../core/host/demo/ledger.js';
import type { EmbeddedOptions } from '../../plugins/embedded-postgres/index.js';
import { outlive, startTakeover } from './gateway-pair.js';
import { type PairLab, usePairLab } from './pair-lab.js';
import { selfSignedCert } from './servers.js';
import type { GatewayPair, GatewayPairOptions } from './takeover.js';
import { compiledProgram, TdsProcess } from './tds-process.js';

/** Port of the TDS servers. */
const SERVER_PORT = 1433;

/** True where the outcome of an interrupted commit can be learnt: without that its client is told that it is unknown. */
export const PROVED = tds.markers !== undefined;

/** A lab with a TDS server on the host of each database server. */
export class TdsLab {
  readonly servers = new Map<string, TdsProcess>();

  constructor(readonly place: PairLab) {}

  /** Called by {@link useTdsLab}. */
  async begin(): Promise<void> {
    const { lab, pair } = this.place;
    const tls = selfSignedCert();
    for (const { name, host: address, port } of [pair.primary, pair.standby]) {
      const pg = { host: address, port, user: 'postgres', database: 'postgres' };
      const host = lab.hosts.find((one) => one.address === address)!;
      this.servers.set(name, await TdsProcess.start({ name, host: address, port: SERVER_PORT, tls, pg }, host));
    }
  }

  async end(): Promise<void> {
    for (const server of this.servers.values()) await server.kill();
  }

  /** What the gateways of a pair need to stand before the TDS servers. */
  options(more: Partial<GatewayPairOptions> & Pick<GatewayPairOptions, 'proof'>): GatewayPairOptions {
    const { lab, pair } = this.place;
    const password = { file: lab.write('monitor.password', 'Outlive.1') };
    const servers = [pair.primary, pair.standby].map(({ name, host }) => ({
      name,
      host,
      port: SERVER_PORT,
      tls: 'off',
    }));
    const monitor = { user: 'sa', database: 'app', password, interval: '100ms', timeout: '1s' };
    return {
      ...more,
      listener: { codec: 'tds', ...(PROVED ? { outcome: { by: 'marker' } } : {}), ...more.listener },
      cluster: { servers, monitor, spares: undefined, ...more.cluster },
    };
  }

  /** What a pair of gateways under keepers needs besides. */
  kept(): object {
    // Engines take their time to start where several tests share a machine.
    return {
      secret: { file: this.place.lab.write('pair.secret', 'the secret that both gateways know') },
      restart: '6s',
    };
  }

  /** Sets up what proves commits, through a pair of gateways that is there. */
  async prepare(gateways: GatewayPair): Promise<void> {
    if (PROVED) await outlive(this.place, gateways, 'a', 'setup', '--listener', 'demo');
  }

  /**
   * Makes a fresh ledger and starts tedious clients on the host `client`; they end with the test.
   * @param counts as for {@link ClientHost.begin}, to know how many accounts are needed
   */
  async clients(counts: ClientCounts): Promise<ClientHost> {
    const { place } = this;
    const host = place.lab.host('client');
    const child = host.spawn(process.execPath, [await compiledProgram('test/kit/tds-clients-main.ts')], {
      env: { ...process.env, NODE_OPTIONS: '' },
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
    });
    const clients = await ClientHost.start(host, new Remote(child, 'the TDS clients'));
    place.atEnd(() => clients.kill());
    await this.#createLedger(await clients.accounts(counts.transfer ?? 0));
    return clients;
  }

  /** As `createLedger`, in the schema that is the database `app`, and nothing in it is made up by the server. */
  async #createLedger(accounts: number): Promise<void> {
    await this.place.pair.primary.query(`
      CREATE SCHEMA IF NOT EXISTS app;
      DROP TABLE IF EXISTS app.accounts, app.ledger, app.numbers, app.writers;
      CREATE TABLE app.accounts (id int PRIMARY KEY, balance int NOT NULL) WITH (fillfactor = 50);
      CREATE TABLE app.ledger (reference varchar(60) NOT NULL, client int NOT NULL, source int, target int, amount int NOT NULL);
      CREATE INDEX ON app.ledger (client);
      CREATE TABLE app.numbers AS SELECT generate_series(0, 99) AS n;
      CREATE TABLE app.writers (reference text, alone boolean);
      CREATE OR REPLACE FUNCTION app.note_writer() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
          INSERT INTO app.writers VALUES (NEW.reference, pg_try_advisory_xact_lock(hashtext(NEW.reference)));
          RETURN NULL;
        END $$;
      CREATE TRIGGER note_writer AFTER INSERT ON app.ledger FOR EACH ROW EXECUTE FUNCTION app.note_writer();
      INSERT INTO app.accounts SELECT g, ${OPENING_BALANCE} FROM generate_series(0, ${accounts - 1}) AS g`);
  }

  /** Compares the database with what clients were told. */
  async verdict({ claims, accounts }: ClientReport): Promise<LedgerVerdict> {
    const query = async (sql: string) => (await this.place.pair.primary.query(sql)).rows as never;
    const entries =
      "SELECT reference AS id, reference, client, source, target, amount, '' AS at, '' AS token FROM app.ledger";
    const facts: LedgerFacts = {
      entries: await query(entries),
      legs: [],
      accounts: await query('SELECT id, balance FROM app.accounts'),
    };
    // Movements have no children here.
    return checkLedger(facts, claims, accounts);
  }

  /** Transactions that were repeated while the one that they repeat still held its locks. */
  async crowded(): Promise<unknown[]> {
    return (await this.place.pair.primary.query('SELECT reference FROM app.writers WHERE NOT alone')).rows;
  }
}

/** Starts a pair of gateways before the TDS servers; they end with the test. */
export async function startTdsGateways(stage: TdsLab, options: Parameters<TdsLab['options']>[0]): Promise<GatewayPair> {
  const gateways = await startTakeover(stage.place, stage.options(options));
  await stage.prepare(gateways);
  return gateways;
}

/** Gives a block of tests a {@link TdsLab}. */
export function useTdsLab(options: EmbeddedOptions = {}): TdsLab {
  const lab = new TdsLab(usePairLab(options));
  beforeAll(() => lab.begin());
  afterAll(() => lab.end());
  return lab;
}
