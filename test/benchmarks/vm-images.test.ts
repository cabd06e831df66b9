// The parts of `npm run bench:vm-images` that need no packages.

import {
  chmodSync,
  linkSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import {
  chart,
  ContentNumbers,
  countDifferent,
  countExtents,
  countKept,
  countLogical,
  llrrmTable,
  markdownTable,
  shortBlocks,
  type Figures,
} from '../../bench/vm-image-figures.js';
import { fileCommands, makeImage } from '../../bench/vm-image-files.js';
import { countChanged, parsePlan, runTool } from '../../bench/vm-image-packages.js';

const contents = [Int32Array.of(1, 2, 0, 3), Int32Array.of(1, 2, 3, 4)];
const places = [Float64Array.of(7, 8, 0, 9), Float64Array.of(7, 8, 10, 11)];

describe('what images hold and a pool keeps', () => {
  it('is counted by content, zeros left out', () => {
    const numbers = new ContentNumbers();
    expect(['a', 'b', 'a', 'c'].map((hash) => numbers.of(hash))).toEqual([1, 2, 1, 3]);
    expect(numbers.count).toBe(3);
    expect(countLogical(contents)).toBe(7);
    // Five places for four contents: the third is there twice.
    expect(countKept(contents, places)).toEqual({ stored: 5, repeated: 1 });
    expect(countExtents(places)).toEqual({ blocks: 7, extents: 3, seams: 0 });
  });

  it('lies in short runs where several refer to it there', () => {
    // 7, 8 is a run of two in both images; 10 and 11 are the second's alone, and follow nothing.
    expect(shortBlocks(places, 3)).toEqual(new Set([7, 8]));
    expect(shortBlocks(places, 2)).toEqual(new Set());
    const apart = [Float64Array.of(1, 2, 3, 4), Float64Array.of(0, 2, 9, 3)];
    expect(shortBlocks(apart, 4)).toEqual(new Set([2, 3]));
  });

  it('is the same when only the numbers of the places differ', () => {
    const shifted = places.map((kept) => kept.map((place) => (place === 0 ? 0 : place * 3)));
    expect(countDifferent(places, shifted)).toBe(0);
    shifted[1]![2] = shifted[0]![3]!;
    expect(countDifferent(places, shifted)).toBe(2);
  });
});

describe('table and chart', () => {
  const figures: Figures[] = [1, 8].flatMap((thn) =>
    [1, 8].map((sampling) => ({
      ...{ thn, sampling, threshold: 0, stored: 100, seams: 3, seconds: 1, ofOracle: 1 },
      ...{ shortNeed: 0, readings: null },
      share: thn === 1 ? 1 : 0.9123,
      extents: thn === 1 ? 25_551 : 7_666,
      llrrmNeed: 0.0239,
    })),
  );

  it('have a row for each THN', () => {
    expect(markdownTable(figures).split('\n').at(-1)).toBe(
      '| 8 | 91.2 % | 7,666 | 2.4 % | 91.2 % | 7,666 | 2.4 % |',
    );
    expect(markdownTable(figures).split('\n')).toHaveLength(4);
  });

  const readings = { perMiB: 11.5, served: 0.312, short: 5359, held: 100, heldShort: 30 };
  const tiers: Figures[] = figures
    .filter(({ sampling }) => sampling === 8)
    .map((one) => ({ ...one, threshold: 2, shortNeed: 0.004, readings }));

  it('say beside each other what low-latency memory changes', () => {
    const plain = { ...figures.at(-1)!, readings: { ...readings, short: 0, served: 0 } };
    const lines = llrrmTable([figures[0]!, plain, tiers[1]!], 10_000).split('\n');
    expect(lines.slice(2)).toEqual([
      '| 8 | no LLRRM | 91.2 % | 7,666 | 11.50 |  |  |  |  |',
      '| 8 | 2 | 91.2 % | 7,666 | 11.50 | 5,359 | 0.4 % | 75.0 % | 31.2 % |',
    ]);
    expect(markdownTable([...figures, ...tiers])).toBe(markdownTable(figures));
    const svg = chart([...figures, ...tiers]);
    expect(svg.match(/<polyline /g)).toHaveLength(6);
    expect(svg).toContain('one in 8, LLRRM');
  });

  it('have a line for each sampling and figure, within the picture', () => {
    const svg = chart(figures);
    expect(svg).toMatch(/^<svg [^>]*viewBox="0 0 (\d+) (\d+)"/);
    const lines = [...svg.matchAll(/<polyline [^>]*points="([^"]+)"/g)].map(([, text]) => text);
    expect(lines).toHaveLength(4);
    expect(lines[0]).toBe('0,0 300,175.4');
    expect(svg.match(/<g /g)).toHaveLength(svg.match(/<\/g>/g)!.length);
    expect(svg.trimEnd().endsWith('</svg>')).toBe(true);
  });
});

describe('packages', () => {
  const text = [
    'Reading package lists...',
    'Inst libc6 (2.36-9 Debian:12/oldstable [amd64])',
    'Inst nginx (1.22.1-9+deb12u9 Debian:12/oldstable [amd64]) []',
    'Conf libc6 (2.36-9 Debian:12/oldstable [amd64])',
  ].join('\n');

  it('are those that apt would install, in its order', () => {
    const plan = parsePlan(text);
    expect(plan).toEqual([
      { name: 'libc6', version: '2.36-9' },
      { name: 'nginx', version: '1.22.1-9+deb12u9' },
    ]);
    const other = [{ name: 'nginx', version: '1.22.1-9+deb12u11' }, { ...plan[0]! }];
    expect(countChanged(plan, [...other, { name: 'new', version: '1' }])).toBe(1);
  });

  it('need programs that are there', async () => {
    await expect(runTool('penstock-no-such-program', [])).rejects.toMatchObject({
      code: 'PEER_MISSING',
    });
    await expect(runTool('sh', ['-c', 'echo why >&2; exit 3'])).rejects.toMatchObject({
      code: 'PEER_FAILED',
      message: 'sh failed: why',
    });
  });
});

describe('an image', () => {
  let folder = '';
  const trees = (): string[] => [join(folder, 'one'), join(folder, 'two')];
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'penstock-image-'));
    const [one, two] = trees();
    mkdirSync(join(one!, 'usr/bin'), { recursive: true });
    mkdirSync(join(two!, 'usr'), { recursive: true });
    writeFileSync(join(one!, 'usr/bin/tool'), 'first');
    chmodSync(join(one!, 'usr/bin/tool'), 0o4755);
    linkSync(join(one!, 'usr/bin/tool'), join(one!, 'usr/bin/tool-2'));
    symlinkSync('usr/bin', join(one!, 'bin'));
    writeFileSync(join(two!, 'usr/a "name"'), 'quoted');
    writeFileSync(join(two!, 'bin'), 'the link was here first');
  });
  afterAll(() => rmSync(folder, { recursive: true, force: true }));

  it('has the files of its packages, in one order', () => {
    const [one, two] = trees();
    expect(fileCommands(trees())).toEqual([
      'symlink "bin" "usr/bin"',
      'mkdir "usr"',
      'cd "/usr"',
      'mkdir "bin"',
      'cd "/usr/bin"',
      `write "${one}/usr/bin/tool" "tool"`,
      'symlink "tool-2" "/usr/bin/tool"',
      'cd "/usr"',
      `write "${two}/usr/a ""name""" "a ""name"""`,
    ]);
  });

  it('is a whole file system, and the same one each time', async () => {
    const paths = ['a.img', 'b.img'].map((name) => join(folder, name));
    for (const path of paths) await makeImage(path, 'test', 3, trees(), '8M');
    const [a, b] = paths.map((path) => readFileSync(path));
    expect(a!.equals(b!)).toBe(true);
    await runTool('e2fsck', ['-f', '-n', paths[0]!]);
    const { stdout } = await runTool('debugfs', ['-R', 'cat "/usr/a ""name"""', paths[0]!]);
    expect(stdout).toBe('quoted');
    const { stdout: stat } = await runTool('debugfs', ['-R', 'stat /usr/bin/tool', paths[0]!]);
    expect(stat).toMatch(/Mode: {2}04755/);
    // What has no room is said, though debugfs ends with 0.
    writeFileSync(join(folder, 'one/usr/large'), Buffer.alloc(16 << 20, 1));
    await expect(makeImage(paths[0]!, 'test', 3, trees(), '8M')).rejects.toMatchObject({
      code: 'PEER_FAILED',
    });
  });
});
