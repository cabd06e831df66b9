// Ends a test run with `N passed, N failed, N skipped`, alone on the very last line, for scripts.
//
// Invariant: 0 failed means nothing failed: a file that could not be collected and an error outside
// of any test count as failures too.

import type { Reporter, TestModule } from 'vitest/node';

export interface Totals {
  passed: number;
  failed: number;
  skipped: number;
}

/** The parts of vitest's modules that count. */
export type CountedModule = Pick<TestModule, 'state' | 'children'>;

export function countTests(modules: readonly CountedModule[], looseErrors: number): Totals {
  const totals = { passed: 0, failed: looseErrors, skipped: 0 };
  for (const module of modules) {
    let failedInModule = 0;
    for (const test of module.children.allTests()) {
      const { state } = test.result();
      if (state === 'passed') totals.passed++;
      else if (state === 'failed') failedInModule++;
      else totals.skipped++;
    }
    // A module fails without a failed test when it cannot be loaded or when a hook throws.
    if (module.state() === 'failed' && failedInModule === 0) failedInModule = 1;
    totals.failed += failedInModule;
  }
  return totals;
}

export function summaryLine({ passed, failed, skipped }: Totals): string {
  return `${passed} passed, ${failed} failed, ${skipped} skipped`;
}

export class SummaryReporter implements Reporter {
  onTestRunEnd(modules: readonly TestModule[], errors: readonly unknown[]): void {
    console.log(summaryLine(countTests(modules, errors.length)));
  }
}
