import type { ServerFacts } from '../../contract/index.js';

/** Names one life of one server on one timeline. */
export function incarnation(server: string, facts: ServerFacts): string {
  return `${server}/${facts.instance}/${facts.timeline}`;
}

/** An incarnation that was lost long ago has no commits in doubt. */
const MAX_INCARNATIONS = 16;

/** Sets a value and makes it the latest; the oldest one goes. */
export function remember<T>(map: Map<string, T>, key: string, value: T): void {
  map.delete(key);
  if (map.size >= MAX_INCARNATIONS) map.delete(map.keys().next().value!);
  map.set(key, value);
}
