import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { formatSize, nearest, parseDuration, parseSize } from '../lib/units.js';

describe('parseSize', () => {
  it.each([
    ['0', 0],
    ['512', 512],
    ['4k', 4096],
    ['4K', 4096],
    ['4KB', 4096],
    ['4KiB', 4096],
    ['4 KiB', 4096],
    ['1M', 2 ** 20],
    ['1GiB', 2 ** 30],
    ['1.5G', 1.5 * 2 ** 30],
    ['.5k', 512],
    ['64T', 64 * 2 ** 40],
    ['1p', 2 ** 50],
    ['7b', 7],
  ])('%s is %d bytes', (text, bytes) => {
    expect(parseSize(text)).toBe(bytes);
  });

  it.each(['', 'k', '-1', '1x', '1kk', '0.3k', '1e3', '0x10', '9P9', '16P', 'NaN'])(
    'refuses %s as a usage error',
    (text) => {
      expect(() => parseSize(text)).toThrow(
        expect.objectContaining({ code: 'BAD_SIZE', exitCode: 2 }),
      );
    },
  );

  it('reads back what formatSize writes, to two decimals', () => {
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 2 ** 52 }), (bytes) => {
        const text = formatSize(bytes);
        const shown = Number.parseFloat(text);
        expect(shown).toBeLessThan(1024);
        const unit = parseSize(`1${text.split(' ')[1] ?? ''}`);
        expect(Math.abs(shown * unit - bytes)).toBeLessThanOrEqual(unit * 0.00501);
      }),
    );
  });

  it('names whole powers exactly', () => {
    expect([0, 1023, 1024, 1536, 2 ** 20, 2 ** 30, 2 ** 50].map(formatSize)).toEqual([
      '0 B',
      '1023 B',
      '1 KiB',
      '1.5 KiB',
      '1 MiB',
      '1 GiB',
      '1 PiB',
    ]);
    expect(formatSize(2 ** 20 - 1)).toBe('1 MiB');
  });
});

describe('parseDuration', () => {
  it.each([
    ['3', 3],
    ['500ms', 0.5],
    ['250us', 0.00025],
    ['1.5s', 1.5],
    ['2m', 120],
    ['1h', 3600],
    ['1d', 86400],
  ])('%s is %d seconds', (text, seconds) => {
    expect(parseDuration(text)).toBe(seconds);
  });

  it.each(['', 'soon', '-1', '1w', '1 2'])('refuses %s as a usage error', (text) => {
    expect(() => parseDuration(text)).toThrow(
      expect.objectContaining({ code: 'BAD_DURATION', exitCode: 2 }),
    );
  });
});

describe('nearest', () => {
  it('forgives a slip', () => {
    const known = ['file', 'null', 'ram', 'nvme', 'virtio-blk'];
    expect(nearest('flie', known)).toBe('file');
    expect(nearest('nmve', known)).toBe('nvme');
    expect(nearest('RAMM', known)).toBe('ram');
    expect(nearest('virtioblk', known)).toBe('virtio-blk');
  });

  it('takes the first of several, and nothing of none', () => {
    expect(nearest('xy', ['xa', 'xb'])).toBe('xa');
    expect(nearest('x', [])).toBe('');
  });

  it('finds a known word itself', () => {
    fc.assert(
      fc.property(
        fc.uniqueArray(fc.stringMatching(/^[a-z]{1,8}$/), { minLength: 1, maxLength: 6 }),
        fc.nat(),
        (known, pick) => {
          const word = known[pick % known.length] ?? '';
          expect(nearest(word, known)).toBe(word);
        },
      ),
    );
  });
});
