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

/** What a demo of any kind has to say. */
export interface Result {
  readonly clients: number;
  readonly seconds: number;
  readonly transactions: number;
  readonly replays: number;
  readonly outcomeCommitted: number;
  readonly outcomeAborted: number;
  readonly errors: readonly ClientError[];
  readonly wrongReads: readonly WrongRead[];
  readonly verdict: LedgerVerdict;
  /** What the gateways warned of. */
  readonly messages: readonly string[];
  readonly ok: boolean;
}

/** All that the demo has to say. */
export interface Summary extends Result {
  readonly rounds: readonly Round[];
  /** Whether every kill interrupted transactions: open ones that were repeated, or commits that were asked for. */
  readonly interrupted: boolean;
}

/** The middle of some numbers; null of none. */
export function median(values: readonly number[]): number | null {
  if (values.length === 0) return null;
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** The greatest of some numbers; null of none. */
export function longest(values: readonly number[]): number | null {
  return values.length === 0 ? null : Math.max(...values);
}

/** To one digit behind the point. */
export function rounded(value: number | null): number | null {
  return value === null ? null : Math.round(value * 10) / 10;
}

/** Milliseconds for people; null when there was nothing to measure. */
export function inMs(value: number | null): string {
  return value === null ? 'none measured' : `${value.toFixed(value < 10 ? 1 : 0)} ms`;
}

/** What both demos say to programs. @param rounds each with the pauses of its clients, in ms */
export function jsonOf(result: Result, rounds: readonly { readonly pauses: readonly number[] }[]): object {
  const pauses = rounds.flatMap((each) => each.pauses);
  return {
    rounds: rounds.length,
    clients: result.clients,
    transactions: result.transactions,
    replays: result.replays,
    outcomeCommitted: result.outcomeCommitted,
    outcomeAborted: result.outcomeAborted,
    clientErrors: result.errors.length,
    duplicates: result.verdict.duplicates.length,
    lost: result.verdict.lost.length,
    pauseMsMax: rounded(longest(pauses)),
    pauseMsMedian: rounded(median(pauses)),
    ok: result.ok,
  };
}

/** The summary as one line of JSON, for programs. */
export function renderJson(summary: Summary): string {
  return `${JSON.stringify(jsonOf(summary, summary.rounds))}\n`;
}

/** The summary for people: a table, and if something is wrong, what. */
export function renderStory(summary: Summary): string {
  const { rounds } = summary;
  const pauses = rounds.flatMap((each) => each.pauses);
  const rows: Row[] = [
    ['Times the primary was killed', rounds.length],
    ...workRows(
      summary,
      rounds.reduce((total, { open }) => total + open, 0),
    ),
    ['From the kill to a writable server, longest', inMs(longest(rounds.map(({ serverMs }) => serverMs)))],
    ['Pause beyond that, longest', inMs(longest(pauses))],
    ['Pause beyond that, median', inMs(median(pauses))],
    ...ledgerRows(summary.verdict),
  ];
  return story(
    summary,
    rows,
    faults(summary),
    `Every acknowledged transaction is there exactly once, and no client saw an error (${summary.seconds.toFixed(0)} s).`,
  );
}

/** A line of the table at the end. */
export type Row = [string, string | number];

/** What was done. @param interrupted open transactions that a fault met */
export function workRows(result: Result, interrupted: number): Row[] {
  return [
    ['Clients', result.clients],
    ['Transactions', result.transactions],
    ['Open transactions interrupted', interrupted],
    ['Replays', result.replays],
    ['Interrupted commits found committed', result.outcomeCommitted],
    ['Interrupted commits found not committed, repeated', result.outcomeAborted],
    ['Errors that clients saw', result.errors.length],
  ];
}

/** What the books say. */
export function ledgerRows(verdict: LedgerVerdict): Row[] {
  const exactly = verdict.duplicates.length + verdict.lost.length + verdict.altered.length + verdict.uninvited.length;
  const asGiven = verdict.misgiven.length + verdict.misplaced.length === 0;
  return [
    ['Acknowledged transactions applied twice', verdict.duplicates.length],
    ['Acknowledged transactions missing', verdict.lost.length],
    ['Balances', verdict.sumRight && verdict.wrongBalances.length === 0 ? 'right' : 'WRONG'],
    ['Ids, times and uuids that clients were given', asGiven ? 'as stored' : 'WRONG'],
    ['Ledger', exactly === 0 ? 'each exactly once' : 'WRONG'],
  ];
}

/** The table, and a last word: `good` when all is well, else what is wrong and what the gateways said. */
export function story(result: Result, rows: readonly Row[], wrong: readonly string[], good: string): string {
  const table = new Table({ style: { head: [], border: [], compact: true }, colAligns: ['left', 'right'] });
  table.push(...rows);
  const lines = [table.toString()];
  if (result.ok) lines.push(good);
  else {
    lines.push('FAILED:', ...wrong.map((fault) => `  ${fault}`));
    if (result.messages.length > 0) lines.push('The gateway said:', ...result.messages.map((text) => `  ${text}`));
  }
  return `${lines.join('\n')}\n`;
}

/** What is wrong, a line each, with a few examples. */
export function faults(summary: Summary): string[] {
  const found = workFaults(summary);
  for (const each of summary.rounds) {
    if (each.silent > 0) found.push(`round ${each.number}: ${each.silent} clients did not go on`);
    if (each.open === 0) found.push(`round ${each.number}: no transaction was open when the primary was killed`);
    else if (each.replays === 0) found.push(`round ${each.number}: nothing was repeated`);
  }
  return found;
}

/** What is wrong with the books and with what clients saw. */
export function workFaults({ verdict, errors, wrongReads }: Result): string[] {
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
  return found;
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
