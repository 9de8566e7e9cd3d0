import { defineConfig } from 'vitest/config';
import { Sequencer } from './test/kit/sequencer.js';

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    globalSetup: 'test/kit/scratch.ts',
    testTimeout: 120_000,
    hookTimeout: 120_000,
    // Real servers on two cores: files run two at a time, tests inside a file in order.
    maxWorkers: 2,
    sequence: { sequencer: Sequencer },
    pool: 'forks',
  },
});
