import { createHash } from 'node:crypto';

/**
 * Chooses which gateway follows the sessions of `member`: highest random weight (Thaler and Ravishankar, "Using Name-Based Mappings to
 * Increase Hit Rates", 1998), with SHA-256 of both names as the weight. Everybody who knows the same members finds the same one. When a member
 * goes, only those that it followed get another one; when one comes, it takes over some, and nothing else changes.
 *
 * @param member the gateway that is to be followed; need not be among the members
 * @param members names of all gateways, in any order
 * @returns the name of another member; null when there is none
 */
export function shadowOf(member: string, members: Iterable<string>): string | null {
  let best: string | null = null;
  let highest: Buffer | null = null;
  for (const other of new Set(members)) {
    if (other === member) continue;
    const weight = weigh(member, other);
    if (highest !== null && Buffer.compare(weight, highest) <= 0) continue;
    best = other;
    highest = weight;
  }
  return best;
}

/** JSON keeps the names apart, whatever is in them. */
function weigh(member: string, other: string): Buffer {
  return createHash('sha256')
    .update(JSON.stringify([member, other]))
    .digest();
}
