/** Keys of the demo's JSON line, in their order. */
export const DEMO_KEYS = [
  'rounds',
  'clients',
  'transactions',
  'replays',
  'outcomeCommitted',
  'outcomeAborted',
  'clientErrors',
  'duplicates',
  'lost',
  'pauseMsMax',
  'pauseMsMedian',
  'ok',
];
