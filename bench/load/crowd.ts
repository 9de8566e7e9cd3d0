/** Script: many connections that mostly stand still, on a host of a lab. The other end is {@link Crowd}. */
import { serve } from '../../core/host/demo/lab/remote.js';
import { queryFrame } from './frames.js';
import { LoadSession, type LoginOptions, openMany } from './session.js';

/** Connections to open. */
export interface CrowdOrder extends LoginOptions {
  readonly sessions: number;
}

/** How the connections got on since they were asked last. */
export interface CrowdReport {
  /** Connections that were opened. */
  readonly opened: number;
  /** Connections that ended by themselves, and why the first one did. */
  readonly lost: number;
  readonly firstLoss: string | null;
  /** By connection that answered right: when it did, in ms since the epoch. */
  readonly answeredAt: readonly number[];
  /** Connections that gave an error or a wrong answer, and the first one of these. */
  readonly wrong: number;
  readonly firstWrong: string | null;
  /** Connections that owe an answer. */
  readonly silent: number;
}

/** Milliseconds since the epoch, with a fraction. */
function now(): number {
  return performance.timeOrigin + performance.now();
}

const sessions: LoadSession[] = [];
let lost = 0;
let firstLoss: string | null = null;
let answeredAt: number[] = [];
let wrong = 0;
let firstWrong: string | null = null;
let silent = 0;
let serial = 0;
let watcher: () => void = () => {};

function tell(what: 'lost' | 'wrong', why: string): void {
  if (what === 'lost') {
    lost++;
    firstLoss ??= why;
  } else {
    wrong++;
    firstWrong ??= why;
  }
}

async function ask(session: LoadSession): Promise<void> {
  const expected = String(++serial);
  try {
    const { value, refusal } = await session.run(queryFrame(`SELECT ${expected}`));
    if (refusal !== undefined) tell('wrong', `${refusal.code} ${refusal.message}`);
    else if (value !== expected) tell('wrong', `${value} in place of ${expected}`);
    else answeredAt.push(now());
  } catch {
    // It was lost, which is counted where it is noticed.
  } finally {
    silent--;
    if (silent === 0) watcher();
  }
}

function report(): CrowdReport {
  return { opened: sessions.length, lost, firstLoss, answeredAt, wrong, firstWrong, silent };
}

serve({
  open: async ({ sessions: count, ...login }: CrowdOrder) => {
    const opened = await openMany(count, async () => {
      const session = await LoadSession.open(login);
      session.onLost = (_, { code, message }) => tell('lost', `${code} ${message}`);
      return session;
    });
    sessions.push(...opened);
  },
  /** Each of some connections asks something. Resolves when the requests are sent. */
  ask: ({ from, to }: { from: number; to: number | null }) => {
    answeredAt = [];
    const asked = sessions.slice(from, to ?? sessions.length).filter(({ open }) => open);
    silent += asked.length;
    for (const session of asked) void ask(session);
    return asked.length;
  },
  /** Waits until none owes an answer. */
  answers: async (timeoutMs: number) => {
    if (silent > 0) {
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, timeoutMs);
        watcher = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
    return report();
  },
});
