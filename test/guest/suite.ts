// vitest's words for a program in a guest, which runs compiled suites of test/support without
// vitest: starting that in a guest takes longer than most suites. suite-hooks.ts puts this file in
// the place of 'vitest'; `expect` is vitest's own.
//
// Differences: tests run in the order they stand in, one at a time; nothing is skipped.

import {
  ASYMMETRIC_MATCHERS_OBJECT,
  chai,
  GLOBAL_EXPECT,
  JestAsymmetricMatchers,
  JestChaiExpect,
  JestExtend,
  setState,
} from '@vitest/expect';

type Body = () => unknown;

interface Block {
  readonly names: readonly string[];
  readonly before: Body[];
  readonly after: Body[];
  /** Of the blocks around it, too. */
  readonly afterEach: Body[];
}

export interface SuiteResult {
  passed: string[];
  /** By the test's full name. */
  failed: Record<string, string>;
}

const TEST_LIMIT_MS = 60_000;
const TRACE_LINES = 6;

chai.use(JestExtend);
chai.use(JestChaiExpect);
chai.use(JestAsymmetricMatchers);

export const expect = Object.assign(
  (value: unknown, message?: string) => chai.expect(value, message),
  chai.expect,
  (globalThis as Record<symbol, object>)[ASYMMETRIC_MATCHERS_OBJECT],
);
(globalThis as Record<symbol, unknown>)[GLOBAL_EXPECT] = expect;
setState({ assertionCalls: 0, isExpectingAssertions: false }, expect as never);

let block: Block = { names: [], before: [], after: [], afterEach: [] };
let plan: Body[] = [];
let result: SuiteResult = { passed: [], failed: {} };

export function describe(name: string, body: () => void): void {
  const outer = { block, plan };
  const own: Block = {
    names: [...block.names, name],
    before: [],
    after: [],
    afterEach: [...block.afterEach],
  };
  const tests: Body[] = [];
  block = own;
  plan = tests;
  body();
  block = outer.block;
  plan = outer.plan;
  plan.push(() => runBlock(own, tests));
}

describe.each =
  <T extends readonly unknown[]>(table: readonly T[]) =>
  (name: string, body: (...row: T) => void): void => {
    for (const row of table) {
      let at = 0;
      describe(
        name.replaceAll('%s', () => String(row[at++])),
        () => body(...row),
      );
    }
  };

export function it(name: string, body: Body): void {
  const own = block;
  const full = [...own.names, name].join(' › ');
  plan.push(async () => {
    // What a guest printed is all that is known of it when its time is over.
    console.log(full);
    try {
      await limited(body);
      for (const hook of own.afterEach.toReversed()) await limited(hook);
      result.passed.push(full);
    } catch (error) {
      result.failed[full] = textOf(error);
      for (const hook of own.afterEach.toReversed()) await limited(hook).catch(() => undefined);
    }
  });
}

export function beforeAll(body: Body): void {
  block.before.push(body);
}

export function afterAll(body: Body): void {
  block.after.push(body);
}

export function afterEach(body: Body): void {
  block.afterEach.push(body);
}

/** Runs what was described since the last call. */
export async function runSuites(): Promise<SuiteResult> {
  const bodies = plan;
  plan = [];
  result = { passed: [], failed: {} };
  for (const body of bodies) await body();
  return result;
}

/** Hooks that fail count as a test of their block that failed; without the first none runs. */
async function runBlock(own: Block, tests: readonly Body[]): Promise<void> {
  const name = own.names.join(' › ');
  try {
    for (const hook of own.before) await limited(hook);
    for (const test of tests) await test();
  } catch (error) {
    result.failed[`${name} › before all`] = textOf(error);
  }
  try {
    for (const hook of own.after.toReversed()) await limited(hook);
  } catch (error) {
    result.failed[`${name} › after all`] = textOf(error);
  }
}

async function limited(body: Body): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_resolve, reject) => {
    const error = new Error(`takes longer than ${TEST_LIMIT_MS} ms`);
    timer = setTimeout(() => reject(error), TEST_LIMIT_MS);
  });
  try {
    await Promise.race([body(), late]);
  } finally {
    clearTimeout(timer);
  }
}

function textOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  return (error.stack ?? error.message).split('\n').slice(0, TRACE_LINES).join('\n');
}
