import type { Claim } from '../ledger.js';
import type { ClientError, Kind, WrongRead } from '../workload.js';
import type { Host } from './lab.js';
import type { Remote } from './remote.js';

/**
 * What the connections of a client host do. Those that stand still reach a point and stay there until {@link ClientHost.finish}:
 * `idle` is connected; `transaction` has written in a transaction and got the answer; `waiting` has written and waits for an answer that takes its time, and for another one
 * at {@link ClientHost.press} if that has come;
 * `result` has read the beginning of a large result in a transaction that it will write in, its socket is not read further; `commit` has written, and sends COMMIT
 * at {@link ClientHost.press}. Those that run do not stop before: `echo` sends texts of random length and compares what comes back;
 * `stream` reads the large result again and again; `transfer` is the demo's ledger workload.
 */
export interface ClientCounts {
  readonly idle?: number;
  readonly transaction?: number;
  readonly waiting?: number;
  readonly result?: number;
  readonly commit?: number;
  readonly echo?: number;
  readonly stream?: number;
  readonly transfer?: number;
}

/** How clients work. */
export interface ClientOptions {
  readonly counts: ClientCounts;
  /** Where they connect to; of several addresses, to one after the other in turn. */
  readonly address: string | readonly string[];
  readonly port: number;
  /** How long a `waiting` client's answer takes, in seconds. Default 2. */
  readonly sleep?: number;
  /** What a `waiting` client asks instead, when its answer is to take as long as somebody wants. */
  readonly wait?: string;
  /** Rows of the large result, of about 80 bytes each. Default 50,000. */
  readonly rows?: number;
  /** Length of the texts of `echo`, in characters of one byte. Default 1 to 65,536. */
  readonly echo?: { readonly least: number; readonly most: number };
  /** What `transfer` clients do. Default: everything that the driver has words for, but `batch`. */
  readonly kinds?: Readonly<Partial<Record<Kind, number>>>;
  /**
   * Longest think time of `transfer` clients inside of a transaction and between two, and of `echo` clients between two, in ms; default 100 and 50.
   * And of `stream` clients between two results; default none, which keeps most of a processor busy for each.
   */
  readonly think?: { readonly inside: number; readonly between: number; readonly stream?: number };
  /** A request of a `transfer` client that is not answered for so long is an error, in ms. Default 45,000. */
  readonly patience?: number;
  /** Settings of the connection, such as `{ ssl: ... }`, for the `pg` driver. */
  readonly connection?: Readonly<Record<string, unknown>>;
}

/** One connection, as its client sees it. */
export interface ConnectionReport {
  readonly kind: keyof ClientCounts;
  /** The client's own port when it connected, and now; null when it has none any more. */
  readonly portBefore: number;
  readonly portNow: number | null;
  readonly answers: number;
  /** Whether it waits for an answer. */
  readonly waiting: boolean;
  /** The longest time that it waited for one since the last {@link ClientHost.watch}, that which it is waiting now included, in ms. */
  readonly longestMs: number;
}

/** What the clients of a host have seen. */
export interface ClientReport {
  /** One for each connection that was ever opened, in the order in which they were. */
  readonly connections: readonly ConnectionReport[];
  /** Connections beyond those that were asked for. */
  readonly reconnects: number;
  readonly errors: readonly ClientError[];
  /** Reads that did not show what they had to, those of `echo`, `result` and `stream` among them. */
  readonly wrongReads: readonly WrongRead[];
  /** Transactions that clients know to be committed. */
  readonly transactions: number;
  /** Every transaction that wrote into the ledger, for `checkLedger` with {@link accounts}. Complete after `finish`. */
  readonly claims: readonly Claim[];
  /** Accounts that the `transfer` clients need. */
  readonly accounts: number;
  /** Bytes of `echo` that came back right, and of large results. */
  readonly echoed: number;
  readonly streamed: number;
  /** Clients with an open transaction, and with a commit on its way. */
  readonly open: number;
  readonly committing: number;
}

/** How far clients are; a few numbers of {@link ClientReport}. */
export type ClientProgress = Pick<ClientReport, 'transactions' | 'open' | 'committing'> & { readonly errors: number };

/** Answers after a moment: how long each client waited for its first one. */
export interface Pauses {
  /** Milliseconds from that moment, or from the request when that came later, to the first answer, by connection. */
  readonly pauses: readonly number[];
  /** Connections that wait for an answer and got none. */
  readonly silent: number;
}

/** Clients on a host of the lab, in a process of their own; with the unmodified `pg` driver where nothing else is said. */
export class ClientHost {
  readonly #remote: Remote;

  private constructor(remote: Remote) {
    this.#remote = remote;
  }

  /**
   * Starts the process; nothing is connected yet. Clients write into the tables of `createLedger`, with at least {@link accounts} accounts.
   * @param remote a script with other clients on that host, which answers the same questions
   */
  static async start(host: Host, remote: Remote = host.script('client.js')): Promise<ClientHost> {
    await remote.ask('hello');
    return new ClientHost(remote);
  }

  /** Accounts that so many `transfer` clients need. */
  async accounts(transfer: number): Promise<number> {
    return await this.#remote.ask('accounts', transfer);
  }

  /** Connects all clients and brings each to its point. Rejects with OUTLIVE_LAB_FAILED when one does not get there. May be called once. */
  async begin(options: ClientOptions): Promise<void> {
    await this.#remote.ask('begin', options, 120_000);
  }

  /** Lets the `commit` clients send their COMMIT; resolves once they are sent, not answered. */
  async press(): Promise<void> {
    await this.#remote.ask('press');
  }

  /** Gives the clients that run other think times, see {@link ClientOptions.think}. */
  async pace(think: NonNullable<ClientOptions['think']>): Promise<void> {
    await this.#remote.ask('pace', think);
  }

  /** Lets clients that stand still in `idle` and `transaction` read something, and waits for the answers. What goes wrong is in the report. */
  async probe(): Promise<void> {
    await this.#remote.ask('probe');
  }

  /** Begins to note answers for {@link pauses}. Call it before the fault. */
  async watch(): Promise<void> {
    await this.#remote.ask('watch');
  }

  /**
   * How clients got on after a moment. Waits until every connection that waits for an answer or is at work has got one since. Those of `waiting` and
   * `result` are left out: their answers take long anyway.
   * @param since milliseconds since the epoch, after the last {@link watch}
   * @param timeoutMs afterwards the rest counts as silent
   */
  async pauses(since: number, timeoutMs: number): Promise<Pauses> {
    return await this.#remote.ask('pauses', { since, timeoutMs }, timeoutMs + 10_000);
  }

  /** How far clients are: less to ask for than {@link report}, which holds all claims. */
  async progress(): Promise<ClientProgress> {
    return await this.#remote.ask('progress');
  }

  /** What was seen so far. */
  async report(): Promise<ClientReport> {
    return await this.#remote.ask('report');
  }

  /**
   * Brings everything to its end: transactions are committed, results read, and all that stands or runs has to answer once more; then connections
   * are closed. The report shows them as they were right before.
   * @param timeoutMs how long the last answers may take
   */
  async finish(timeoutMs = 60_000): Promise<ClientReport> {
    return await this.#remote.ask('finish', timeoutMs, timeoutMs + 10_000);
  }

  /** Ends the process at once. */
  async kill(): Promise<void> {
    await this.#remote.kill();
  }
}
