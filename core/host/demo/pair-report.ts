import {
  inMs,
  jsonOf,
  ledgerRows,
  longest,
  median,
  type Progress,
  type Result,
  type Row,
  rounded,
  story,
  workFaults,
  workRows,
} from './report.js';

/** One fault, or one move, as it was seen. */
export interface Act {
  readonly number: number;
  /** What was done: 'the engine of gateway a was killed'. */
  readonly what: string;
  /** Clients inside of a transaction at that moment, and those whose commit was on its way. */
  readonly open: number;
  readonly committing: number;
  /** What is counted from: 'the kill'. */
  readonly from: string;
  /** How long each client waited for its next answer from then on (or from its request, when that came later), in ms. */
  readonly pauses: readonly number[];
  /** Clients that did not go on in time. */
  readonly silent: number;
  /** The takeover that followed; null when no gateway was lost. */
  readonly takeover: TakeoverSeen | null;
}

/** A gateway begins to serve, with the connections of the other one. */
export interface TakeoverSeen {
  readonly gateway: string;
  readonly kept: number;
  readonly reset: number;
  /** From the decision until the address was there and all connections went on, in ms. */
  readonly ms: number;
}

/** All that the demo of the pair has to say. */
export interface PairSummary extends Result {
  readonly acts: readonly Act[];
  /** Every takeover, in their order; those that brought the address back among them. */
  readonly takeovers: readonly TakeoverSeen[];
  /** Connections that were taken over, all takeovers together, and those that could not be kept. */
  readonly kept: number;
  readonly reset: number;
}

/** The summary as one line of JSON, for programs: that of the other demo, and four figures. */
export function renderPairJson(summary: PairSummary): string {
  const times = summary.takeovers.map(({ ms }) => ms);
  return `${JSON.stringify({
    ...jsonOf(summary, summary.acts),
    connectionsKept: summary.kept,
    connectionsReset: summary.reset,
    takeoverMsP50: rounded(median(times)),
    takeoverMsMax: rounded(longest(times)),
  })}\n`;
}

/** The summary for people. */
export function renderPairStory(summary: PairSummary): string {
  const { acts, takeovers } = summary;
  const times = takeovers.map(({ ms }) => ms);
  const rows: Row[] = [
    ['Faults and moves', acts.length],
    ['Takeovers', takeovers.length],
    ['Connections taken over', summary.kept],
    ['Connections reset', summary.reset],
    ['Time of a takeover, longest', inMs(longest(times))],
    ['Time of a takeover, median', inMs(median(times))],
    ...workRows(
      summary,
      acts.reduce((total, { open }) => total + open, 0),
    ),
    ...ledgerRows(summary.verdict),
  ];
  const good =
    'Every client went on over one and the same connection, saw no error, and every acknowledged transaction is there ' +
    `exactly once (${summary.seconds.toFixed(0)} s).`;
  return story(summary, rows, pairFaults(summary), good);
}

/** What is wrong, a line each. */
export function pairFaults(summary: PairSummary): string[] {
  const found = workFaults(summary);
  if (summary.reset > 0) found.push(`${summary.reset} connections were not kept`);
  for (const { number, what, open, silent, takeover } of summary.acts) {
    const name = `${number}. ${what}`;
    if (silent > 0) found.push(`${name}: ${silent} clients did not go on`);
    if (open === 0) found.push(`${name}: no transaction was open then`);
    if (takeover !== null && takeover.kept < summary.clients) {
      found.push(`${name}: ${takeover.gateway} went on with ${takeover.kept} of ${summary.clients} connections`);
    }
  }
  return found;
}

/** A line that stays: what happened, and what became of the clients. */
export function tellAct(progress: Progress, act: Act): void {
  const { number, what, open, committing, pauses, silent, takeover, from } = act;
  const went = silent === 0 ? 'all clients went on' : `${silent} CLIENTS DID NOT GO ON, the others did`;
  const most =
    pauses.length === 0 ? '' : ` at most ${inMs(longest(pauses))} after ${from} (median ${inMs(median(pauses))})`;
  const took =
    takeover === null
      ? ''
      : `; ${takeover.gateway} took over ${takeover.kept} connections in ${inMs(takeover.ms)}` +
        (takeover.reset > 0 ? ` and RESET ${takeover.reset}` : '');
  progress.line(
    `${number}. ${what} with ${open} open transactions and ${committing} commits on their way${took}; ${went}${most}`,
  );
}
