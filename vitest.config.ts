import { defineConfig } from 'vitest/config';

export default defineConfig({
  test: {
    globalSetup: 'test/kit/scratch.ts',
    include: ['test/**/*.test.ts'],
    testTimeout: 60_000,
    hookTimeout: 120_000,
    // Real servers on two cores: files run two at a time, tests inside a file in order.
    maxWorkers: 2,
    pool: 'forks',
  },
});
