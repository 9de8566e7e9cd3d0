import { setTimeout as sleep } from 'node:timers/promises';

type Pair = import('../../../plugins/embedded-postgres/index.js').EmbeddedPair;

/**
 * Kills the primary without warning and promotes the standby.
 *
 * A commit that is replicated takes a millisecond, so a kill rarely hits one between its taking effect and its answer, which is
 * the case that matters most. With `holdMs` the standby stands still for so long before: commits that reach the primary
 * then wait for it, their records already on the way, and are interrupted.
 *
 * @param killing told right before the kill
 */
export async function killPrimary(
  pair: Pair,
  holdMs: number,
  killing: () => void,
): Promise<Awaited<ReturnType<Pair['failover']>>> {
  const { primary, standby } = pair;
  if (holdMs > 0) {
    await standby.freeze();
    await sleep(holdMs);
  }
  killing();
  const failover = pair.failover({ how: 'kill' });
  let failed = false;
  failover.catch(() => {
    failed = true;
  });
  try {
    // The promotion, under way as soon as the primary is dead, needs a standby that moves.
    while (primary.running && !failed) await sleep(1);
  } finally {
    if (standby.frozen) await standby.thaw();
  }
  return failover;
}
