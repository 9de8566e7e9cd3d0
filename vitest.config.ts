import { defineConfig } from 'vitest/config';

/** Files whose tests make hosts of network namespaces: two database servers, two gateways and their clients keep all processors busy. */
const LABS = ['test/integration/takeover-*.test.ts', 'test/integration/demo-pair.test.ts'];
/** Pure code, and what is around one socket or file. */
const UNITS = 'test/unit/**/*.test.ts';

export default defineConfig({
  test: {
    globalSetup: 'test/kit/scratch.ts',
    testTimeout: 120_000,
    hookTimeout: 120_000,
    // Real servers on two cores: `npm test` runs all projects at once, each one file after the other, so that no two labs are there at a time.
    // The units, which wait for nothing, get what the others leave of the processors.
    maxWorkers: 1,
    pool: 'forks',
    projects: [
      { extends: true, test: { name: 'labs', include: LABS } },
      { extends: true, test: { name: 'others', include: ['test/**/*.test.ts'], exclude: [...LABS, UNITS] } },
      { extends: true, test: { name: 'units', include: [UNITS] } },
    ],
  },
});
