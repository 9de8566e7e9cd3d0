import { expect, it } from 'vitest';
import { BATCHES, EFFECTS, SAVEPOINTS, TABLES, TRANSACTIONS } from '../kit/scripts.js';
import { effects, everywhere, expectAsUndisturbed, expectSameEffects, useStage } from '../kit/stage.js';

/**
 * F2, F5, F6, F9, F22: transactions that lose their connection before and after each message on the wire; the server lives on. Each
 * client hears what it would have heard, and what it did is there once or not at all, as without a loss.
 */
const stage = useStage(TABLES, { answers: '64B' });

it.each(Object.entries({ transactions: TRANSACTIONS, 'savepoints and settings': SAVEPOINTS, batches: BATCHES }))(
  '%s go on, wherever the server is lost',
  async (_, scripts) => {
    const played = await everywhere(stage, scripts, 'cut');
    expectAsUndisturbed(played);
    expectSameEffects(played, await effects(stage, EFFECTS));
    expect(stage.gateway.stats.outcomes.get('unknown') ?? 0).toBe(0);
  },
);
