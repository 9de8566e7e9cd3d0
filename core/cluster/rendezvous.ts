import { createHash } from 'node:crypto';

/**
 * Chooses which gateway follows the sessions of `member`: the first of {@link ranked}. Everybody who knows the same members finds the same one.
 * When a member goes, only those that it followed get another one; when one comes, it takes over some, and nothing else changes.
 *
 * @param member the gateway that is to be followed; need not be among the members
 * @param members names of all gateways, in any order
 * @returns the name of another member; null when there is none
 */
export function shadowOf(member: string, members: Iterable<string>): string | null {
  return ranked(member, members)[0] ?? null;
}

/**
 * The other members, the one that stands nearest to `member` first: highest random weight (Thaler and Ravishankar, "Using Name-Based Mappings
 * to Increase Hit Rates", 1998), with SHA-256 of both names as the weight.
 */
export function ranked(member: string, members: Iterable<string>): string[] {
  return [...new Set(members)]
    .filter((other) => other !== member)
    .map((other) => ({ other, weight: weigh(member, other) }))
    .sort((x, y) => Buffer.compare(y.weight, x.weight))
    .map(({ other }) => other);
}

/** JSON keeps the names apart, whatever is in them. */
function weigh(member: string, other: string): Buffer {
  return createHash('sha256')
    .update(JSON.stringify([member, other]))
    .digest();
}
