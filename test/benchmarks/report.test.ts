import { describe, expect, it } from 'vitest';
import { deoptimised } from '../../bench/heap.js';
import { fioSets } from '../../bench/fio-sets.js';
import { atLeast, atMost, median, short, table } from '../../bench/report.js';

describe('figures', () => {
  it('takes the middle of odd and even counts, by number and not by text', () => {
    expect(median([9, 100, 10])).toBe(10);
    expect(median([4, 1, 3, 2])).toBe(2.5);
    expect(median([])).toBeNaN();
  });

  it('judges a bar on its own side, the bar itself included', () => {
    expect([atLeast('x', 0.9, 0.9).meets, atLeast('x', 0.89, 0.9).meets]).toEqual([true, false]);
    expect([atMost('x', 0, 0).meets, atMost('x', 1, 0).meets]).toEqual([true, false]);
    expect([atLeast('x', NaN, 1).meets, atMost('x', NaN, 1).meets]).toEqual([false, false]);
  });

  it('writes four digits and a prefix', () => {
    const written = [17_345_678, 812_345, 9_999, 0.85, 12, 2.5e9, NaN].map(short);
    expect(written).toEqual(['17.35M', '812.3k', '9999', '0.8500', '12', '2.500G', '-']);
  });

  it('aligns columns under the first row’s names', () => {
    const text = table([
      { loop: 'TypeScript', IOPS: 5 },
      { loop: 'C', IOPS: 123 },
    ]);
    expect(text.split('\n')).toEqual(['loop        IOPS', 'TypeScript     5', 'C            123']);
  });
});

describe('deoptimised', () => {
  it('finds the functions in what V8 prints, between other lines', () => {
    const output = [
      '[bailout (kind: deopt-eager, reason: wrong map): begin. deoptimizing 0x20 ' +
        '<JSFunction fill (sfi = 0x20)>, 0x3c <Code TURBOFAN>, opt id 1]',
      '[bailout end. took 0.1 ms]',
      'RESULT {}',
      '[bailout (kind: deopt-soft, reason: none): begin. deoptimizing 0x21 <JSFunction (sfi = 1)>]',
    ].join('\n');
    expect(deoptimised(output)).toEqual(['fill', '']);
  });
});

describe('fioSets', () => {
  it('gives no batch larger than the depth, and each set once', () => {
    for (const depth of [1, 16, 128]) {
      const names = fioSets(depth).map((set) => set.name);
      expect(new Set(names).size).toBe(names.length);
      const batches = names.flatMap((name) => /batch (\d+)/.exec(name)?.[1] ?? []);
      expect(batches.map(Number).every((batch) => batch <= depth)).toBe(true);
    }
    expect(fioSets(128).length).toBeGreaterThan(fioSets(1).length);
  });
});
