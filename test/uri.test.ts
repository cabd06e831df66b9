import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  checkKeys,
  checkScheme,
  formatUri,
  nestedUri,
  parseUri,
  splitWrappers,
} from '../lib/uri.js';

const word = fc.stringMatching(/^[a-z][a-z0-9-]{0,9}$/);
const text = fc.string({ unit: 'grapheme' });
const uris = fc.record({
  scheme: word.filter((scheme) => scheme !== 'dedup'),
  transport: fc.option(word, { nil: '' }),
  path: text,
  query: fc
    .uniqueArray(
      fc.tuple(
        text.filter((key) => key !== ''),
        text,
      ),
      { selector: (pair) => pair[0] },
    )
    .map((pairs) => new Map(pairs)),
  volume: text,
});

describe('parseUri', () => {
  it('reads every form of the contract', () => {
    expect(parseUri('ram:1GiB')).toMatchObject({ scheme: 'ram', path: '1GiB', volume: '' });
    expect(parseUri('nvme:0000:01:00.0/1').path).toBe('0000:01:00.0/1');
    expect(parseUri('nvme+vfio-user:/dir/1')).toMatchObject({
      scheme: 'nvme',
      transport: 'vfio-user',
      path: '/dir/1',
    });
    const file = parseUri('file:/a%20b?create=1GiB&direct=1&note=x%26y%3Dz=#v%231');
    expect(file.path).toBe('/a b');
    expect([...file.query]).toEqual([
      ['create', '1GiB'],
      ['direct', '1'],
      ['note', 'x&y=z='],
    ]);
    expect(file.volume).toBe('v#1');
  });

  it('gives back what formatUri wrote', () => {
    fc.assert(
      fc.property(uris, (uri) => {
        const written = formatUri(uri);
        expect(written).toMatch(/^[!-~]*$/);
        expect(parseUri(written)).toEqual({ ...uri, text: written });
      }),
    );
  });

  it('writes a parsed text in one way only', () => {
    fc.assert(
      fc.property(uris, (uri) => {
        const once = parseUri(formatUri(uri)).text;
        expect(parseUri(once).text).toBe(once);
      }),
    );
  });

  it.each([
    ['/dev/sda', 'Write file:/dev/sda for a file.'],
    ['', 'Write it like file:/path or ram:1GiB.'],
    ['File:/x', 'Write it like file:/path or ram:1GiB.'],
    ['file:/x?direct', 'Write direct=1.'],
    ['file:/x?=1', 'Write key=value.'],
    ['file:/x?a=1&a=2', 'Give each key once.'],
    ['file:/100%', 'A literal % is written %25.'],
  ])('refuses %s and says what to write', (bad, hint) => {
    expect(() => parseUri(bad)).toThrow(
      expect.objectContaining({ code: 'BAD_URI', exitCode: 2, hint }),
    );
  });
});

describe('splitWrappers', () => {
  it('takes wrappers out in order of first appearance', () => {
    const uri = parseUri('file:/x?trace.to=/t&direct=1&fault.seed=7&trace.limit=1k');
    const { inner, wrappers } = splitWrappers(uri);
    expect(inner.text).toBe('file:/x?direct=1');
    expect(wrappers.map((wrapper) => [wrapper.name, [...wrapper.options]])).toEqual([
      [
        'trace',
        [
          ['to', '/t'],
          ['limit', '1k'],
        ],
      ],
      ['fault', [['seed', '7']]],
    ]);
  });

  it('leaves a URI without wrappers as it is', () => {
    const uri = parseUri('dedup:file:/p?dedup.llrrm=ram:256MiB#vm1');
    expect(splitWrappers(uri)).toEqual({ inner: uri, wrappers: [] });
  });
});

describe('nestedUri', () => {
  it('separates the data device from the scheme of its own', () => {
    const uri = parseUri('dedup:file:/a%2520b?direct=1&dedup.llrrm=ram:256MiB#vm1');
    const { inner, own } = nestedUri(uri);
    expect(inner.text).toBe('file:/a%2520b?direct=1');
    expect(inner.path).toBe('/a%20b');
    expect([...own]).toEqual([['llrrm', 'ram:256MiB']]);
    expect(uri.volume).toBe('vm1');
  });
});

describe('unknown words', () => {
  it('names the nearest key', () => {
    const uri = parseUri('file:/x?dircet=1');
    expect(() => checkKeys(uri, ['create', 'direct', 'sqpoll'])).toThrow(
      expect.objectContaining({
        code: 'UNKNOWN_KEY',
        exitCode: 2,
        message: "'dircet' is not a key of file:; the nearest is 'direct'",
        hint: 'Its keys are create, direct, sqpoll.',
      }),
    );
    expect(() => checkKeys(uri, [])).toThrow(
      expect.objectContaining({ hint: 'file: takes no keys.' }),
    );
    expect(() => checkKeys(parseUri('file:/x?direct=1'), ['direct'])).not.toThrow();
  });

  it('names the nearest scheme', () => {
    expect(() => checkScheme('nmve', ['file', 'nvme', 'ram'])).toThrow(
      expect.objectContaining({
        code: 'UNKNOWN_SCHEME',
        exitCode: 2,
        message: "'nmve:' is not a known scheme; the nearest is 'nvme:'",
      }),
    );
    expect(() => checkScheme('ram', ['file', 'ram'])).not.toThrow();
  });
});
