// The repository's own lint: what its design asks of every file and no linter checks. The checks
// are tested too, below, on text that breaks each rule.

import { describe, expect, it } from 'vitest';
import { fileExists, filesBelow, readText, repositoryFiles } from './tidy/files.js';
import { bannedInHotPaths } from './tidy/hot.js';
import { floorViolations, importsOf, unreachable } from './tidy/imports.js';

const LINE_COLUMNS_MAX = 100;
const FILE_LINES_MAX = 450;

describe('the repository', () => {
  it('keeps its floors: imports go down, and into a room by its door', () => {
    const files = filesBelow('lib', '.ts');
    expect(files.flatMap((file) => floorViolations(file, readText(file)))).toEqual([]);
  });

  it('has no file in lib that nothing reaches', () => {
    const texts = new Map(filesBelow('lib', '.ts').map((file) => [file, readText(file)]));
    expect(unreachable(texts)).toEqual([]);
  });

  it('compiles every file of native into the addon', () => {
    const sources = filesBelow('native', '.cc').filter((file) => file.split('/').length === 2);
    const listed = readText('binding.gyp').match(/native\/[\w-]+\.cc/g) ?? [];
    expect(listed.sort()).toEqual(sources.sort());
  });

  it('has no line over 100 columns', () => {
    const files = [
      ...filesBelow('lib', '.ts'),
      ...filesBelow('test', '.ts'),
      ...filesBelow('bench', '.ts', '.c', '.h'),
      ...filesBelow('native', '.cc', '.h'),
    ];
    expect(files.flatMap((file) => longLines(file, readText(file)))).toEqual([]);
  });

  it('has no file over 450 lines', () => {
    const files = [...filesBelow('lib', '.ts'), ...filesBelow('native', '.cc', '.h')];
    const long = files.filter(
      (file) => readText(file).trimEnd().split('\n').length > FILE_LINES_MAX,
    );
    expect(long).toEqual([]);
  });

  it('calls nothing slow on hot paths', () => {
    const files = filesBelow('lib', '.ts');
    expect(files.flatMap((file) => bannedInHotPaths(file, readText(file)))).toEqual([]);
  });

  it('has a lock file without the address of a registry', () => {
    const lock = JSON.parse(readText('package-lock.json')) as { packages: Record<string, object> };
    const addressed = Object.entries(lock.packages).filter(([, entry]) => 'resolved' in entry);
    expect(addressed.map(([path]) => path)).toEqual([]);
    expect(fileExists('.npmrc') ? readText('.npmrc') : '').not.toContain('registry');
  });

  it('names no folder of the machine it was written on', () => {
    const pattern = /(?<![\w.<-])\/(?:work|home|root|Users)\/\w/;
    const files = repositoryFiles().filter((file) => file !== 'package-lock.json');
    expect(files.filter((file) => pattern.test(readText(file)))).toEqual([]);
  });
});

describe('the checks themselves', () => {
  it('see every form of import', () => {
    const text = [
      "import { a } from './a.js';",
      "import type {\n  B,\n} from '../b/index.js';",
      "export * from './c.js';",
      "import './d.js';",
      "const e = await import('./e.js');",
      "new Worker(new URL('./f.js', import.meta.url));",
      "import { readFileSync } from 'node:fs';",
    ].join('\n');
    expect(importsOf('lib/x/y.ts', text).sort()).toEqual([
      'lib/b/index.ts',
      'lib/x/a.ts',
      'lib/x/c.ts',
      'lib/x/d.ts',
      'lib/x/e.ts',
      'lib/x/f.ts',
    ]);
  });

  it.each([
    ['lib/memory/pool.ts', '../hpdi/index.js', 'goes up'],
    ['lib/memory/pool.ts', '../wire/index.js', 'goes sideways'],
    ['lib/drivers/ram/index.ts', '../null/index.js', 'goes to another driver'],
    ['lib/hpdi/device.ts', '../memory/pool.js', 'passes the door'],
    ['lib/drivers/options.ts', './ram/index.js', 'goes up to a driver'],
    ['lib/unheard/of.ts', '../errors.js', 'is in no room'],
    ['lib/errors.ts', './open.js', 'goes up from the ground'],
  ])('%s → %s: %s', (file, target) => {
    expect(floorViolations(file, `import { x } from '${target}';`)).toHaveLength(1);
  });

  it.each([
    ['lib/drivers/ram/queue.ts', '../../hpdi/index.js'],
    ['lib/drivers/ram/queue.ts', './shape.js'],
    ['lib/drivers/ram/index.ts', '../options.js'],
    ['lib/uri.ts', './units.js'],
    ['lib/cli/bench.ts', '../bench/index.js'],
  ])('%s → %s is fine', (file, target) => {
    expect(floorViolations(file, `import { x } from '${target}';`)).toEqual([]);
  });

  it('find a file that only dead files import', () => {
    const files = new Map([
      ['lib/index.ts', "export * from './a.js';"],
      ['lib/a.ts', ''],
      ['lib/b.ts', "import './c.js';"],
      ['lib/c.ts', "import './b.js';"],
    ]);
    expect(unreachable(files)).toEqual(['lib/b.ts', 'lib/c.ts']);
  });

  it('find a long line', () => {
    expect(longLines('f', `short\n${'é'.repeat(100)}\n${'x'.repeat(101)}`)).toEqual(['f:3']);
  });

  it.each([
    ['const a = 1n;', 'BigInt'],
    ['const a = BigInt(lo);', 'BigInt'],
    ['Atomics.store(words, 0, 1);', 'Atomics'],
    ['const view = new Uint32Array(4);', 'new'],
    ['list.forEach(each);', 'array'],
    ['run(() => 1);', 'closure'],
    ['call(...list);', 'spread'],
    ['for (const x of list) use(x);', 'for…of or for…in'],
    ['const text = `${code}`;', 'text made from parts'],
    ['await done;', 'promise or generator'],
    ['const bit = by * 2 ** shift;', 'power'],
    ['const span = width ** 2;', 'power'],
  ])('find on a hot path: %s', (line, what) => {
    const marked = `// hot:begin\nfunction f() {\n  ${line}\n}\n// hot:end\n${line}\n`;
    expect(bannedInHotPaths('lib/bench/loop.ts', marked)).toEqual([`lib/bench/loop.ts:3: ${what}`]);
    const method = `class Q {\n  poll(cq: Uint32Array, max: number): number {\n    ${line}\n  }\n}`;
    expect(bannedInHotPaths('lib/drivers/x/queue.ts', method)).toEqual([
      `lib/drivers/x/queue.ts:3: ${what}`,
    ]);
    expect(bannedInHotPaths('lib/cli/list.ts', method)).toEqual([]);
  });

  it('allow the clock once per batch, not once per operation', () => {
    const method = [
      'class Q {',
      '  submit(sq: Uint32Array, head: number, tail: number): number {',
      '    const now = performance.now();',
      '    for (let i = head; i < tail; i++) {',
      '      this.at[i] = performance.now();',
      '    }',
      '    return Date.now();',
      '  }',
      '}',
    ].join('\n');
    expect(bannedInHotPaths('lib/drivers/x/queue.ts', method)).toEqual([
      'lib/drivers/x/queue.ts:5: clock',
    ]);
    const marked = '// hot:begin\nconst now = performance.now();\n// hot:end';
    expect(bannedInHotPaths('lib/a.ts', marked)).toEqual(['lib/a.ts:2: clock']);
  });

  it('let a hot path throw, and speak of anything in comments and texts', () => {
    const text =
      "// hot:begin\nthrow new RangeError('new `x` => 1n' + 2 ** 32); // new BigInt\n// hot:end";
    expect(bannedInHotPaths('lib/a.ts', text)).toEqual([]);
  });

  it('want every hot:begin closed', () => {
    expect(bannedInHotPaths('lib/a.ts', 'x\n// hot:begin\ny')).toEqual([
      'lib/a.ts:2: hot:begin without hot:end',
    ]);
  });
});

function longLines(file: string, text: string): string[] {
  return text
    .split('\n')
    .flatMap((line, index) =>
      [...line].length > LINE_COLUMNS_MAX ? [`${file}:${index + 1}`] : [],
    );
}
