import { afterAll, afterEach, beforeAll, describe } from 'vitest';
import { type ClientCounts, ClientHost, type ClientReport } from '../../core/host/demo/lab/clients.js';
import { type Host, Lab } from '../../core/host/demo/lab/lab.js';
import { type LabPair, startPairIn } from '../../core/host/demo/lab/servers.js';
import { checkLedger, createLedger, type LedgerVerdict, readLedger } from '../../core/host/demo/ledger.js';
import type { EmbeddedOptions, EmbeddedPair } from '../../plugins/embedded-postgres/index.js';
import { compiled } from './gateway-process.js';
import { restorePair } from './servers.js';

const reason = Lab.unavailable();

/** Like `describe`, where a lab can be made; elsewhere the tests are skipped, and the reason stands in their name. */
export function describeLab(name: string, body: () => void): void {
  describe.skipIf(reason !== null)(reason === null ? name : `${name} (${reason})`, body);
}

/** A lab with a PostgreSQL pair on the hosts `db1` and `db2`, for the tests of one block. */
export class PairLab {
  lab!: Lab;
  pair!: LabPair;
  /** Where the tables of {@link clients} are, and how these ask for a row that somebody else holds. */
  readonly schema: string = 'public';
  readonly waitForHeld: string = 'SELECT id FROM held FOR SHARE';
  /** Of the large result. */
  readonly rows: number = 20_000;
  #ends: (() => unknown)[] = [];

  /** Called when the test is over, the last one first. */
  atEnd(end: () => unknown): void {
    this.#ends.push(end);
  }

  /** Called by {@link useLab}. */
  async begin(ipv6: boolean, options: EmbeddedOptions): Promise<void> {
    this.lab = await Lab.create({ ipv6, program: compiled() });
    this.pair = await startPairIn([this.lab.host('db1'), this.lab.host('db2')], options);
  }

  async end(): Promise<void> {
    await this.pair?.stop();
    await this.lab?.destroy();
  }

  /** Ends what a test has started, heals network and servers. */
  async restore(): Promise<void> {
    for (const end of this.#ends.splice(0).reverse()) await end();
    await this.lab.heal();
    await restorePair(this.pair);
  }

  /**
   * Makes a fresh ledger and starts clients on the host `client`; they end with the test.
   * @param counts as for {@link ClientHost.begin}, to know how many accounts are needed
   */
  async clients(counts: ClientCounts): Promise<ClientHost> {
    const clients = await ClientHost.start(this.lab.host('client'));
    this.atEnd(() => clients.kill());
    const accounts = await clients.accounts(counts.transfer ?? 0);
    await createLedger((sql) => this.pair.primary.query(sql), accounts);
    return clients;
  }

  /**
   * How long clients waited for their first answer after a moment, in ms. Throws when one got none in time, and says who waits for what.
   * @param since as for {@link ClientHost.pauses}
   */
  async pauses(clients: ClientHost, since: number, timeoutMs = 30_000): Promise<readonly number[]> {
    return await pausesOf(clients, this.pair, since, timeoutMs, this.lab.hosts);
  }

  /** Compares the database with what clients were told. */
  async verdict({ claims, accounts }: ClientReport): Promise<LedgerVerdict> {
    return checkLedger(await readLedger((sql) => this.pair.primary.query(sql)), claims, accounts);
  }
}

/** What the kernels of these hosts say of the connections of a client's port. */
async function kernelsSay(hosts: readonly Host[], port: number): Promise<string> {
  const said = await Promise.all(
    hosts.map(async (host) => {
      const { stdout } = await host.run('ss', ['-tinmoH', `( sport = :${port} or dport = :${port} )`]);
      return stdout.trim() === '' ? [] : `${host.name}: ${stdout.trim().replaceAll(/\s+/g, ' ')}`;
    }),
  );
  return said.flat().join('\n');
}

/** As {@link PairLab.pauses}, with a pair of servers anywhere. */
export async function pausesOf(
  clients: ClientHost,
  { primary }: EmbeddedPair,
  since: number,
  timeoutMs = 30_000,
  hosts: readonly Host[] = [],
): Promise<readonly number[]> {
  const { pauses, silent } = await clients.pauses(since, timeoutMs);
  if (silent === 0) return pauses;
  const { connections } = await clients.report();
  const waiting = connections
    .filter((one) => one.waiting)
    .map(({ kind, portNow, longestMs }) => `${kind} from port ${portNow} (${Math.round(longestMs)} ms)`);
  const { rows } = await primary.query(
    `SELECT pid, host(client_addr) AS host, state, wait_event, pg_blocking_pids(pid) AS blockers, left(query, 60) AS query,
            extract(epoch FROM now() - state_change)::int AS seconds
       FROM pg_stat_activity WHERE backend_type = 'client backend' AND state <> 'idle'`,
  );
  const sessions = rows.map((row) => JSON.stringify(row)).join('\n');
  const lost = connections.filter(({ waiting, longestMs }) => waiting && longestMs > timeoutMs);
  const kernels = await Promise.all(lost.map(({ portNow }) => kernelsSay(hosts, portNow!)));
  throw new Error(
    `${silent} clients got no answer; these wait: ${waiting.join(', ')}. What the database does:\n${sessions}\n` +
      `What kernels know of those that waited all the time:\n${kernels.join('\n')}`,
  );
}

/** Gives a block of tests a {@link PairLab}. */
export function usePairLab(options: EmbeddedOptions & { ipv6?: boolean } = {}): PairLab {
  return useLab(new PairLab(), options);
}

/** Starts a lab before a block of tests, heals it after each and ends it after the last one. */
export function useLab<L extends PairLab>(
  lab: L,
  { ipv6 = false, ...options }: EmbeddedOptions & { ipv6?: boolean },
): L {
  beforeAll(() => lab.begin(ipv6, options));
  afterEach(() => lab.restore());
  afterAll(() => lab.end());
  return lab;
}
