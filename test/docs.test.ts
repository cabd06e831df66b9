// Holds the documentation to the code: what pages list is what there is, and programs in them run.

import { spawnSync } from 'node:child_process';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, posix } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { OPTION_WORDS, parseJobFile } from '../lib/bench/index.js';
import { buildProgram } from '../lib/cli/program.js';
import { FAULT_KEYS } from '../lib/drivers/fault/index.js';
import { driver as fileDriver } from '../lib/drivers/file/index.js';
import { driver as nullDriver } from '../lib/drivers/null/index.js';
import { driver as nvmeDriver } from '../lib/drivers/nvme/index.js';
import { driver as ramDriver } from '../lib/drivers/ram/index.js';
import { allStatuses, hpdiStatus } from '../lib/drivers/nvme/index.js';
import { TRACE_KEYS } from '../lib/drivers/trace/index.js';
import {
  COMPLETION,
  FLAGS,
  OPERATIONS,
  RECEIVE_FLAGS,
  REQUEST,
  SEND_OFFLOADS,
  STATUS,
} from '../lib/hpdi/index.js';
import { SCHEMES } from '../lib/open.js';
import { filesBelow, readText, repositoryFiles } from './tidy/files.js';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const PAGES = repositoryFiles().filter((file) => file.endsWith('.md'));

/** First cells of a table's rows that hold `code`, between a heading and the next of its level. */
function listed(page: string, heading: string): string[] {
  const level = /^#+/.exec(heading)?.[0].length ?? 0;
  const start = `\n${page}`.indexOf(`\n${heading}`);
  expect(start, `a heading '${heading}'`).toBeGreaterThanOrEqual(0);
  const body = page.slice(start + heading.length);
  const end = body.search(new RegExp(`^#{1,${level}} `, 'm'));
  const section = end < 0 ? body : body.slice(0, end);
  return [...section.matchAll(/^\| (`[^|]+`) \|/gm)].flatMap(([, cell = '']) =>
    [...cell.matchAll(/`([^`]+)`/g)].map(([, code = '']) => code),
  );
}

/** Rows `| name | number |` of a page, by name. */
function numbered(page: string): Map<string, string> {
  const rows = page.matchAll(/^\| `(\w+)` \| (\d+) \|/gm);
  return new Map([...rows].map(([, name = '', number = '']) => [name, number]));
}

/** The JavaScript that a page shows. */
function programsOf(page: string): string[] {
  return [...page.matchAll(/^```js\n([\s\S]*?)^```$/gm)].map(([, code = '']) => code);
}

/** As a program of somebody who installed the package, in a folder of its own. */
function run(program: string): { stdout: string; stderr: string; status: number | null } {
  const folder = mkdtempSync(join(tmpdir(), 'penstock-page-'));
  try {
    mkdirSync(join(folder, 'node_modules'));
    symlinkSync(root, join(folder, 'node_modules/penstock'));
    writeFileSync(join(folder, 'program.mjs'), program);
    return spawnSync(process.execPath, ['program.mjs'], {
      cwd: folder,
      encoding: 'utf8',
      timeout: 30_000,
      env: { ...process.env, PENSTOCK_QUIET: '1' },
    });
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

describe('README', () => {
  const programs = programsOf(readText('README.md'));

  it('has a read of 4 KiB in ten lines that runs as written', () => {
    const [program = ''] = programs;
    expect(program.trimEnd().split('\n').length).toBeLessThanOrEqual(10);
    expect(program).toContain('alloc(4096)');
    expect(run(program)).toMatchObject({
      stdout: '32768 blocks of 512, first byte 0\n',
      stderr: '',
      status: 0,
    });
  });

  it('has a hot path that runs as written', () => {
    expect(run(programs[1] ?? '')).toMatchObject({
      stdout: '100000 reads, 0 failed\n',
      stderr: '',
      status: 0,
    });
  });

  it('shows no other program that nobody runs', () => {
    expect(programs).toHaveLength(2);
  });
});

describe('programs on other pages', () => {
  it.each([
    ['docs/trace-format.md', /^100 submitted, 100 replayed, 0 failed\n$/],
    ['docs/idc.md', /^answer 42, still in domain 1's memory\n$/],
    ['docs/bench.md', /^job: \(g=0\): rw=randread, .*\n$/],
  ])('run as written: %s', (page, printed) => {
    const programs = programsOf(readText(page));
    expect(programs).toHaveLength(1);
    const { stdout, stderr, status } = run(programs[0] ?? '');
    expect({ stderr, status }).toEqual({ stderr: '', status: 0 });
    expect(stdout).toMatch(printed);
  });

  it('are all run', () => {
    const known = ['README.md', 'docs/bench.md', 'docs/idc.md', 'docs/trace-format.md'];
    expect(PAGES.filter((page) => programsOf(readText(page)).length > 0).sort()).toEqual(known);
  });
});

describe('docs/uri.md', () => {
  const page = readText('docs/uri.md');

  it.each([
    ['file', fileDriver.keys],
    ['ram', ramDriver.keys],
    ['null', nullDriver.keys],
    ['nvme', nvmeDriver.keys],
  ])('lists the keys of %s:', (scheme, keys) => {
    expect(listed(page, `## \`${scheme}:`).sort()).toEqual(Object.keys(keys).sort());
  });

  it('has a section for every scheme', () => {
    const sections = [...page.matchAll(/^## `([\w-]+):/gm)].map(([, scheme]) => scheme);
    expect(sections.sort()).toEqual([...SCHEMES].sort());
  });

  it.each([
    ['fault', FAULT_KEYS],
    ['trace', TRACE_KEYS],
  ])('lists the keys of %s.*', (name, keys) => {
    const wanted = Object.keys(keys).map((key) => `${name}.${key}`);
    expect(listed(page, `### \`${name}.*\``).sort()).toEqual(wanted.sort());
  });
});

describe('docs/hpdi.md', () => {
  const page = readText('docs/hpdi.md');

  it('gives every operation, flag and status its number, and no other', () => {
    const bits = Object.entries(FLAGS).map(([name, mask]) => [name, Math.log2(mask)] as const);
    const known = [...Object.entries(OPERATIONS), ...bits, ...Object.entries(STATUS)];
    const wanted = new Map(known.map(([name, number]) => [name, String(number)]));
    expect(numbered(page)).toEqual(wanted);
  });

  it.each([
    ['offloads', 'SEND', SEND_OFFLOADS],
    ['flags', 'RECEIVE', RECEIVE_FLAGS],
  ])('gives the bits of %s of %s', (_what, operation, bits) => {
    const names = `\`${operation}_${operation === 'SEND' ? 'OFFLOADS' : 'FLAGS'}\`):`;
    const table = page.slice(page.lastIndexOf(names)).split('\n\n')[1] ?? '';
    const rows = [...table.matchAll(/^\| (\d+) \| `(\w+)` \|/gm)];
    expect(Object.fromEntries(rows.map(([, bit, name = '']) => [name, 1 << Number(bit)]))).toEqual(
      bits,
    );
  });

  it.each([
    ['## Request', REQUEST],
    ['## Completion', COMPLETION],
  ])('gives the words of the record: %s', (heading, { words, ...places }) => {
    const section = page.slice(page.indexOf(`\n${heading}`)).split('\n## ')[1] ?? '';
    const rows = section.matchAll(/^\| (\d+)(?:, \d+)? \| `(\w+)`(?:, `(\w+)`)? \|/gm);
    const shown: Record<string, number> = {};
    for (const [, first = '', low = '', high] of rows) {
      shown[low] = Number(first);
      if (high !== undefined) shown[high] = Number(first) + 1;
    }
    expect(shown).toEqual(places);
    expect(Object.keys(shown)).toHaveLength(words);
  });
});

describe('docs/nvme.md', () => {
  const page = readText('docs/nvme.md');

  it('lists every status with its code, its meaning and what it becomes', () => {
    const names = new Map(Object.entries(STATUS).map(([name, code]) => [code, name]));
    const wanted = allStatuses().map(({ name, sct, sc, meaning }) => {
      const code = (sct << 8) | sc;
      const digits = code.toString(16).padStart(3, '0');
      return `| \`${name}\` | ${digits} | ${meaning} | ${names.get(hpdiStatus(code))} |`;
    });
    expect(page.match(/^\| `\w+` \| [0-9a-f]{3} \| .*$/gm)).toEqual(wanted);
  });

  it('shows every command of nvme', async () => {
    const program = await buildProgram(['nvme'], () => undefined);
    const nvme = program.commands.find((command) => command.name() === 'nvme');
    const shown = [...page.matchAll(/^ {4}penstock nvme ([\w-]+)/gm)].map(([, name]) => name);
    expect(shown.sort()).toEqual(nvme?.commands.map((command) => command.name()).sort());
  });
});

describe('docs/pool.md', () => {
  it.each(['pool', 'volume'])('shows every command of %s', async (name) => {
    const program = await buildProgram([name], () => undefined);
    const command = program.commands.find((each) => each.name() === name);
    const lines = readText('docs/pool.md').matchAll(/^ {4}penstock (\w+) (\w+)/gm);
    const shown = [...lines].flatMap(([, of, word]) => (of === name ? [word] : []));
    const wanted = command?.commands.map((each) => each.name());
    expect([...new Set(shown)].sort()).toEqual(wanted?.sort());
  });
});

describe('docs/errors.md', () => {
  const sources = filesBelow('lib', '.ts').map(readText).join('\n');
  const codes = listed(readText('docs/errors.md'), '# Errors').filter((code) =>
    /^[A-Z_]{4,}$/.test(code),
  );

  it('lists every code that an error is made with', () => {
    const made = sources.matchAll(/(?:PenstockError|\busage)\(\s*'([A-Z_]+)'|code: '([A-Z_]+)'/g);
    const wanted = new Set([...made].map(([, first, second]) => first ?? second));
    expect([...wanted].filter((code) => code !== undefined && !codes.includes(code))).toEqual([]);
  });

  it('lists none that nothing makes', () => {
    expect(codes.filter((code) => !sources.includes(`'${code}'`))).toEqual([]);
  });

  it('lists each once', () => {
    expect(codes.filter((code, index) => codes.indexOf(code) !== index)).toEqual([]);
  });
});

describe('docs/bench.md', () => {
  it('lists every word with its default', () => {
    const page = readText('docs/bench.md');
    const rows = new Map(
      [...page.matchAll(/^\| `--([\w-]+)` \| (\S+) \|/gm)].map(([, flag, value]) => [flag, value]),
    );
    const shown = (value: unknown): string => (value === false ? 'off' : String(value));
    const wanted = OPTION_WORDS.map((word) => [word.flag, shown(word.default)] as const);
    expect(rows).toEqual(new Map(wanted));
  });
});

describe('the command line in pages', () => {
  it('has commands and flags that exist', async () => {
    const program = await buildProgram('all', () => undefined);
    const flagsOf = new Map(
      program.commands.map((command) => [
        command.name(),
        [command, ...command.commands].flatMap((one) => one.options.map(({ long }) => long ?? '')),
      ]),
    );
    const lines = ['README.md', 'docs/bench.md', 'docs/pool.md', 'docs/setup.md'].flatMap((file) =>
      [...readText(file).matchAll(/^ {4}(?:source <\()?penstock (\w+)(.*)$/gm)].map(
        ([, name = '', rest = '']) => ({ name, words: rest.split('#')[0]?.split(' ') ?? [] }),
      ),
    );
    expect(new Set(lines.map(({ name }) => name))).toEqual(new Set(flagsOf.keys()));
    const unknown = lines.flatMap(({ name, words }) =>
      words.filter((word) => word.startsWith('--') && !flagsOf.get(name)?.includes(word)),
    );
    expect(unknown).toEqual([]);
  });

  it('has a job file that is one', () => {
    const blocks = [...readText('docs/bench.md').matchAll(/(?:^ {4}.*\n|^\n(?= {4}))+/gm)];
    const [file = ''] = blocks.map(([text]) => text).filter((text) => text.includes('[global]'));
    const { jobs } = parseJobFile(file);
    expect(jobs.map(({ name, iodepth, rwmixread }) => [name, iodepth, rwmixread])).toEqual([
      ['database', 32, 70],
      ['log', 32, 50],
    ]);
  });
});

describe('ARCHITECTURE.md', () => {
  it('has a row for every room, and no other', () => {
    const rooms = readdirSync(join(root, 'lib'))
      .filter((name) => statSync(join(root, 'lib', name)).isDirectory())
      .map((name) => (name === 'drivers' ? 'lib/drivers/*' : `lib/${name}`));
    const cells = [...readText('ARCHITECTURE.md').matchAll(/^\| [\d.]+ \| ([^|]+) \|/gm)];
    const shown = cells.flatMap(([, cell = '']) => [...cell.matchAll(/`(lib\/[\w/*]+)`/g)]);
    expect(shown.map(([, room]) => room).sort()).toEqual(rooms.sort());
  });
});

describe('all pages', () => {
  it.each(PAGES)('%s links to what exists', (file) => {
    const links = [...readText(file).matchAll(/\]\((?!https?:)([^)\s]+)\)/g)];
    const dead = links.map(([, link = '']) => link).filter((link) => !resolves(file, link));
    expect(dead).toEqual([]);
  });

  it.each(PAGES)('%s names scripts that exist', (file) => {
    const { scripts } = JSON.parse(readText('package.json')) as { scripts: object };
    const named = [...readText(file).matchAll(/\bnpm run ([\w:-]*\w)/g)].map(([, name]) => name);
    expect(named.filter((name) => name !== undefined && !(name in scripts))).toEqual([]);
  });
});

/** Whether a link's file is there, and the heading it points to. */
function resolves(from: string, link: string): boolean {
  const [path = '', anchor] = link.split('#');
  const target = path === '' ? from : posix.join(posix.dirname(from), path);
  if (!existsSync(join(root, target))) return false;
  if (anchor === undefined) return true;
  const headings = [...readText(target).matchAll(/^#+ (.+)$/gm)].map(([, text = '']) => text);
  const slug = (text: string): string =>
    text
      .toLowerCase()
      .replace(/[^\w\- ]/g, '')
      .replaceAll(' ', '-');
  return headings.some((heading) => slug(heading) === anchor);
}
