/** A request that writes, for what looks only at its bytes. */
export const REQUEST = {
  kind: 'query',
  label: '',
  effect: 'write',
  writes: true,
  guardable: true,
  mustGuard: false,
  joined: false,
  barrier: false,
  provable: true,
} as const;
