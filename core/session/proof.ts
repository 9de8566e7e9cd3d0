import { createHash } from 'node:crypto';
import type { Mark } from '../contract/index.js';

/**
 * How the commits of a session are proved:
 * - `position`: the server names the transaction, and is asked what became of it (`SessionCodec.token`);
 * - `marker`: the transaction leaves a row (`SessionCodec.marker`);
 * - `none`: not at all, so a commit in doubt has an unknown outcome.
 */
export type ProofKind = 'position' | 'marker' | 'none';

/** What does not change while a session lasts. Plain data. */
export interface ProofPolicy {
  readonly by: ProofKind;
  /** A statement that commits by itself: `guard` puts a transaction around it, so that it can be proved; `unknown` leaves it alone. */
  readonly autocommit: 'guard' | 'unknown';
  /** Of a marker: see {@link Mark}. */
  readonly table: string;
  readonly database: string;
  /** Of a marker: 16 random bytes, the session's secret. */
  readonly seed: Uint8Array;
}

/** Where nothing else is said. */
export const BY_POSITION: ProofPolicy = {
  by: 'position',
  autocommit: 'guard',
  table: '',
  database: '',
  seed: new Uint8Array(0),
};

/**
 * The mark of a session's unit of work, by its number. Ids follow from the seed, so that whoever follows the session (the peer gateway, the next
 * engine) comes to the same ones; and who knows some of them, which stand in a table, cannot tell the others.
 */
export function markOf({ seed, table, database }: ProofPolicy, number: number): Mark {
  const digest = createHash('sha256').update(seed).update(String(number)).digest('hex');
  return { id: digest.slice(0, 32), table, database };
}
