import { defineConfig } from 'vitest/config';
import { SummaryReporter } from './test/support/reporter.js';

/** They need nothing of the machine that others have meanwhile, and measure no times. */
const SIDE_BY_SIDE = [
  'test/dedup/**/*.test.ts',
  'test/cli/pool*.test.ts',
  'test/cli/volume*.test.ts',
  'test/drivers/contract.test.ts',
  'test/idc/device-contract.test.ts',
  'test/soak.test.ts',
];

const common = {
  // One process per file: a crash of the addon ends that file and names it.
  pool: 'forks',
  // One remark about missing hugepages per file would drown the rest.
  env: { PENSTOCK_QUIET: '1' },
  testTimeout: 60_000,
  hookTimeout: 60_000,
} as const;

export default defineConfig({
  test: {
    reporters: ['default', new SummaryReporter()],
    projects: [
      {
        test: {
          ...common,
          name: 'one at a time',
          include: ['test/**/*.test.ts'],
          exclude: SIDE_BY_SIDE,
          maxWorkers: 1,
          sequence: { groupOrder: 0 },
        },
      },
      {
        test: {
          ...common,
          name: 'two at a time',
          include: SIDE_BY_SIDE,
          maxWorkers: 2,
          sequence: { groupOrder: 1 },
        },
      },
    ],
  },
});
