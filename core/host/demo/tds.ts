import { normalizeConfig, Sensitive } from '../config/index.js';
import { loadExtensions } from '../registry.js';
import { runSetup } from '../setup.js';
import { asText, loadTedious, TEDIOUS_KINDS, TediousLine, tediousDriver } from './drivers/tedious.js';
import { type Scene, startDemoPair, withPackages } from './index.js';
import { createLedger, LEDGER_TEXTS, readLedger } from './ledger.js';
import { TdsServers } from './tds-servers.js';
import { accountsFor } from './workload.js';

const LOGIN = { user: 'sa', password: 'Outlive.1', database: 'app' };

/** SQL Server, played by the TDS server of the tests: one before each PostgreSQL of a pair, which dies together with it. */
export async function setTdsScene(clients: number): Promise<Scene> {
  // Where there are no servers, a driver does not help.
  const tds = await TdsServers.compile();
  try {
    const tedious = await loadTedious();
    return await withPackages(async (embedded) => {
      const pair = await startDemoPair(embedded, clients);
      try {
        // The standby's finds in its copy what the primary's has made.
        for (const server of [pair.primary, pair.standby]) await tds.start(server);
      } catch (error) {
        await pair.stop();
        throw error;
      }
      const server = ({ name }: { name: string }) => {
        return { name, host: '127.0.0.1', port: tds.port(name), tls: 'off' as const };
      };
      const config = normalizeConfig({
        listeners: [
          {
            name: 'demo',
            codec: 'tds',
            listen: '127.0.0.1:0',
            cluster: 'pair',
            auth: 'trust',
            outcome: { by: 'marker' },
            limits: { clients: clients + 10, greetings: Math.max(200, clients) },
          },
        ],
        clusters: [
          {
            name: 'pair',
            servers: [server(pair.primary), server(pair.standby)],
            monitor: { ...LOGIN, password: new Sensitive(LOGIN.password), interval: '100ms', timeout: '1s' },
          },
        ],
      });
      /** Runs something on the server that takes writes. */
      const onPrimary = async <T>(act: (line: TediousLine) => Promise<T>): Promise<T> => {
        const line = await new TediousLine(tedious, { ...LOGIN, port: tds.port(pair.primary.name) }).connect();
        try {
          return await act(line);
        } finally {
          await line.end();
        }
      };
      // Ids are of 64 bits, which tedious gives as texts.
      const query = (line: TediousLine) => async (text: string) => {
        const rows = await line.text<Record<string, unknown>>(text);
        return { rows: rows.map((row) => ('at' in row ? { ...row, at: asText(row.at) } : row)) };
      };
      return {
        pair,
        servers:
          `A TDS server before each of two PostgreSQL ${pair.primary.version}: primary on port ${tds.port(pair.primary.name)}, ` +
          `synchronous standby on ${tds.port(pair.standby.name)}`,
        driver: (port) => tediousDriver(tedious, { ...LOGIN, port }),
        kinds: TEDIOUS_KINDS,
        config,
        prepare: async () => {
          await onPrimary((line) => createLedger(query(line), accountsFor(clients), LEDGER_TEXTS.tsql));
          const options = {
            listener: 'demo',
            databases: [LOGIN.database],
            as: null,
            dryRun: false,
            removeOlderThan: null,
          };
          await runSetup(config, await loadExtensions(config), options, () => {});
        },
        readLedger: () => onPrimary((line) => readLedger(query(line), LEDGER_TEXTS.tsql)),
        killing: () => {
          void tds.kill(pair.primary.name);
        },
        rebuilt: () => tds.start(pair.standby),
        stop: async () => {
          await tds.stop();
          await pair.stop();
        },
      };
    });
  } catch (error) {
    await tds.stop();
    throw error;
  }
}
