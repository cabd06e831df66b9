import { afterEach, describe, expect, it, vi } from 'vitest';
import { skipLoudly } from './support/environment.js';
import { type CountedModule, countTests, summaryLine } from './support/reporter.js';

type State = ReturnType<CountedModule['state']>;

function moduleOf(state: State, tests: readonly string[]): CountedModule {
  const allTests = function* () {
    for (const test of tests) yield { result: () => ({ state: test }) };
  };
  return { state: () => state, children: { allTests } } as unknown as CountedModule;
}

describe('the summary line', () => {
  it('counts tests by their state', () => {
    const modules = [
      moduleOf('failed', ['passed', 'failed', 'failed']),
      moduleOf('passed', ['passed', 'skipped', 'pending']),
    ];
    expect(summaryLine(countTests(modules, 0))).toBe('2 passed, 2 failed, 2 skipped');
  });

  it('counts a file that could not be loaded and an error outside of tests as failures', () => {
    expect(countTests([moduleOf('failed', [])], 2)).toEqual({ passed: 0, failed: 3, skipped: 0 });
    expect(countTests([moduleOf('failed', ['passed'])], 0).failed).toBe(1);
  });
});

describe('skipLoudly', () => {
  afterEach(() => {
    vi.unstubAllEnvs();
    vi.restoreAllMocks();
  });

  const context = () => ({
    task: { name: 'needs a thing' },
    skip: vi.fn(() => {
      throw new Error('vitest skips by throwing');
    }),
  });

  it('says what was skipped and why', () => {
    vi.stubEnv('CI', '');
    const write = vi.spyOn(process.stderr, 'write').mockReturnValue(true);
    const at = context();
    expect(() => skipLoudly(at as never, 'no thing here')).toThrow('vitest skips');
    expect(at.skip).toHaveBeenCalledWith('no thing here');
    expect(write).toHaveBeenCalledWith('SKIPPED needs a thing: no thing here\n');
  });

  it('fails in CI', () => {
    vi.stubEnv('CI', 'true');
    const at = context();
    expect(() => skipLoudly(at as never, 'no thing here')).toThrow('not allowed with CI=true');
    expect(at.skip).not.toHaveBeenCalled();
  });
});
