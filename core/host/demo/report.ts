import Table from 'cli-table3';
import type { LedgerVerdict } from './ledger.js';
import type { ClientError, WrongRead } from './workload.js';

/** One failover, as it was seen. */
export interface Round {
  readonly number: number;
  /** Names of the servers. */
  readonly killed: string;
  readonly promoted: string;
  /** Clients inside of a transaction when the primary was killed. */
  readonly open: number;
  /** Clients whose commit was on its way then. */
  readonly committing: number;
  /** Transactions that the gateway repeated. */
  readonly replays: number;
  /** From the kill until the new primary took writes, in ms: what nobody in front of the servers can shorten. */
  readonly serverMs: number;
  /** From the order to promote until the new primary took writes, in ms. */
  readonly promotedInMs: number;
  /** How long each client waited beyond that, in ms. */
  readonly pauses: readonly number[];
  /** Clients that did not go on in time. */
  readonly silent: number;
}

/** All that the demo has to say. */
export interface Summary {
  readonly rounds: readonly Round[];
  readonly clients: number;
  readonly seconds: number;
  readonly transactions: number;
  readonly replays: number;
  readonly outcomeCommitted: number;
  readonly outcomeAborted: number;
  readonly errors: readonly ClientError[];
  readonly wrongReads: readonly WrongRead[];
  readonly verdict: LedgerVerdict;
  /** What the gateway warned of. */
  readonly messages: readonly string[];
  /** Whether every kill interrupted transactions: open ones that were repeated, or commits that were asked for. */
  readonly interrupted: boolean;
  readonly ok: boolean;
}

/** The middle of some numbers; null of none. */
export function median(values: readonly number[]): number | null {
  if (values.length === 0) return null;
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

function longest(values: readonly number[]): number | null {
  return values.length === 0 ? null : Math.max(...values);
}

function round(value: number | null): number | null {
  return value === null ? null : Math.round(value * 10) / 10;
}

/** The summary as one line of JSON, for programs. */
export function renderJson(summary: Summary): string {
  const pauses = summary.rounds.flatMap((each) => each.pauses);
  return `${JSON.stringify({
    rounds: summary.rounds.length,
    clients: summary.clients,
    transactions: summary.transactions,
    replays: summary.replays,
    outcomeCommitted: summary.outcomeCommitted,
    outcomeAborted: summary.outcomeAborted,
    clientErrors: summary.errors.length,
    duplicates: summary.verdict.duplicates.length,
    lost: summary.verdict.lost.length,
    pauseMsMax: round(longest(pauses)),
    pauseMsMedian: round(median(pauses)),
    ok: summary.ok,
  })}\n`;
}

/** The summary for people: a table, and if something is wrong, what. */
export function renderStory(summary: Summary): string {
  const { rounds, verdict } = summary;
  const pauses = rounds.flatMap((each) => each.pauses);
  const ms = (value: number | null) => (value === null ? 'none measured' : `${value.toFixed(value < 10 ? 1 : 0)} ms`);
  const exactly = verdict.duplicates.length + verdict.lost.length + verdict.altered.length + verdict.uninvited.length;
  const asGiven = verdict.misgiven.length + verdict.misplaced.length === 0;
  const table = new Table({ style: { head: [], border: [] }, colAligns: ['left', 'right'] });
  table.push(
    ['Times the primary was killed', rounds.length],
    ['Clients', summary.clients],
    ['Transactions', summary.transactions],
    ['Open transactions interrupted', sum(rounds, ({ open }) => open)],
    ['Replays', summary.replays],
    ['Interrupted commits found committed', summary.outcomeCommitted],
    ['Interrupted commits found not committed, repeated', summary.outcomeAborted],
    ['Errors that clients saw', summary.errors.length],
    ['From the kill to a writable server, longest', ms(longest(rounds.map(({ serverMs }) => serverMs)))],
    ['Pause beyond that, longest', ms(longest(pauses))],
    ['Pause beyond that, median', ms(median(pauses))],
    ['Acknowledged transactions applied twice', verdict.duplicates.length],
    ['Acknowledged transactions missing', verdict.lost.length],
    ['Balances', verdict.sumRight && verdict.wrongBalances.length === 0 ? 'right' : 'WRONG'],
    ['Ids, times and uuids that clients were given', asGiven ? 'as stored' : 'WRONG'],
    ['Ledger', exactly === 0 ? 'each exactly once' : 'WRONG'],
  );
  const lines = [table.toString()];
  if (summary.ok) {
    lines.push(
      `Every acknowledged transaction is there exactly once, and no client saw an error (${summary.seconds.toFixed(0)} s).`,
    );
  } else {
    lines.push('FAILED:', ...faults(summary).map((fault) => `  ${fault}`));
    if (summary.messages.length > 0) lines.push('The gateway said:', ...summary.messages.map((text) => `  ${text}`));
  }
  return `${lines.join('\n')}\n`;
}

/** What is wrong, a line each, with a few examples. */
export function faults(summary: Summary): string[] {
  const { verdict, errors, wrongReads, rounds } = summary;
  const found: string[] = [];
  const list = (what: string, items: readonly unknown[]) => {
    if (items.length === 0) return;
    found.push(`${what}: ${items.slice(0, 5).join('; ')}${items.length > 5 ? ` and ${items.length - 5} more` : ''}`);
  };
  list('applied more than once', verdict.duplicates);
  list('acknowledged but missing', verdict.lost);
  list('not as the client wrote it', verdict.altered);
  list('applied although the client was told otherwise', verdict.uninvited);
  list('stored with other values than the client was given', verdict.misgiven);
  list('legs that are missing or belong to the wrong entry', verdict.misplaced);
  list('accounts with a wrong balance', verdict.wrongBalances);
  if (!verdict.sumRight) found.push('the sum of all balances changed');
  const said = errors.map(
    (each) => `client ${each.client}, ${each.during}: ${each.code || 'connection'} ${each.message}`,
  );
  list('errors that clients saw', said);
  list(
    'reads that were not right',
    wrongReads.map((each) => `client ${each.client}, ${each.what}: ${each.seen} instead of ${each.expected}`),
  );
  for (const each of rounds) {
    if (each.silent > 0) found.push(`round ${each.number}: ${each.silent} clients did not go on`);
    if (each.open === 0) found.push(`round ${each.number}: no transaction was open when the primary was killed`);
    else if (each.replays === 0) found.push(`round ${each.number}: nothing was repeated`);
  }
  return found;
}

function sum<T>(items: readonly T[], value: (item: T) => number): number {
  return items.reduce((total, item) => total + value(item), 0);
}

/** Live progress: on a terminal one line that changes, elsewhere only the lines that stay. */
export class Progress {
  readonly #out: (text: string) => void;
  readonly #live: boolean;
  readonly #columns: () => number;
  #shown = false;

  /** @param live whether the output is a terminal, where a line can be written over */
  constructor(out: (text: string) => void, live: boolean, columns: () => number = () => process.stdout.columns || 80) {
    this.#out = out;
    this.#live = live;
    this.#columns = columns;
  }

  /** What is going on now. */
  show(text: string): void {
    if (!this.#live) return;
    // A line that wraps could not be written over.
    this.#out(`\r\x1b[2K${text.slice(0, this.#columns() - 1)}`);
    this.#shown = true;
  }

  /** Something that stays. */
  line(text: string): void {
    this.clear();
    this.#out(`${text}\n`);
  }

  /** A failover is over. */
  round(each: Round): void {
    const { pauses } = each;
    const most = longest(pauses);
    const pause =
      most === null ? '' : `, at most ${Math.round(most)} ms later (median ${Math.round(median(pauses) ?? 0)} ms)`;
    const silent = each.silent === 0 ? 'all clients went on' : `${each.silent} CLIENTS DID NOT GO ON, the others did`;
    this.line(
      `round ${each.number}: ${each.killed} killed with ${each.open} open transactions and ${each.committing} commits on their way; ` +
        `${each.promoted} took writes after ${Math.round(each.serverMs)} ms; ${silent}${pause}; ${each.replays} replays`,
    );
  }

  /** Wipes the live line. */
  clear(): void {
    if (this.#shown) this.#out('\r\x1b[2K');
    this.#shown = false;
  }
}
