import { defineConfig } from 'vitest/config';
import { SummaryReporter } from './test/support/reporter.js';

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    // One process per file: a crash of the addon ends that file and names it.
    pool: 'forks',
    // One remark about missing hugepages per file would drown the rest.
    env: { PENSTOCK_QUIET: '1' },
    reporters: ['default', new SummaryReporter()],
    testTimeout: 60_000,
    hookTimeout: 60_000,
  },
});
