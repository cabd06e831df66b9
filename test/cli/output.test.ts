import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { asPenstockError, printFailure, printWarning, table } from '../../lib/cli/output.js';
import { PenstockError } from '../../lib/errors.js';

describe('a failure', () => {
  let stdout = '';
  let stderr = '';

  beforeEach(() => {
    stdout = stderr = '';
    vi.stubEnv('PENSTOCK_DEBUG', '');
    vi.spyOn(process.stdout, 'write').mockImplementation((text) => {
      stdout += String(text);
      return true;
    });
    vi.spyOn(process.stderr, 'write').mockImplementation((text) => {
      stderr += String(text);
      return true;
    });
  });
  afterEach(() => {
    vi.unstubAllEnvs();
    vi.restoreAllMocks();
  });

  it('keeps the code, hint, cause and exit code it came with', () => {
    const cause = new Error('no such file');
    const error = new PenstockError('NO_DEVICE', 'gone', { hint: 'look', cause, exitCode: 3 });
    expect(printFailure(error, true)).toBe(3);
    expect(JSON.parse(stdout)).toEqual({
      schema: 'penstock.error/1',
      error: { code: 'NO_DEVICE', message: 'gone', hint: 'look', cause: 'no such file' },
    });
    expect(stderr).toBe('penstock: gone\n  hint: look\n');
  });

  it('that nobody foresaw exits with 1, its stack shown on request only', () => {
    expect(printFailure(new TypeError('oops'), false)).toBe(1);
    expect(stdout).toBe('');
    expect(stderr).toContain('penstock: oops\n  hint: ');
    expect(stderr).not.toContain('output.test');
    vi.stubEnv('PENSTOCK_DEBUG', '1');
    const cause = new Error('deep');
    printFailure(new Error('oops', { cause }), false);
    expect(stderr).toContain('output.test');
    expect(stderr).toContain('caused by: Error: deep');
  });

  it('that is a warning only is a remark with its hint', () => {
    const warning = Object.assign(new Error('no hugepages'), { name: 'Warning', detail: 'do so' });
    printWarning(warning);
    printWarning(Object.assign(new Error('old call'), { name: 'DeprecationWarning' }));
    expect(stderr).toBe(
      'penstock: no hugepages\n  hint: do so\npenstock: DeprecationWarning: old call\n',
    );
    expect(stdout).toBe('');
  });

  it('of a system call keeps its errno name; a refusal is the environment not being ready', () => {
    const full = Object.assign(new Error('write: no space'), { code: 'ENOSPC', syscall: 'write' });
    expect(asPenstockError(full)).toMatchObject({ code: 'ENOSPC', exitCode: 1 });
    const denied = Object.assign(new Error('open: denied'), { code: 'EACCES', syscall: 'open' });
    expect(asPenstockError(denied)).toMatchObject({ code: 'EACCES', exitCode: 3 });
    expect(asPenstockError('text')).toMatchObject({ code: 'INTERNAL', message: 'text' });
  });
});

describe('table', () => {
  it('pads every column but the last', () => {
    expect(
      table(
        ['A', 'LONG', 'C'],
        [
          ['1', '2', '3'],
          ['four', '', 'x'],
        ],
      ),
    ).toBe('A     LONG  C\n1     2     3\nfour        x\n');
  });
});
