// A short slice of every soak (`npm run soak -- NAME`), each in a process of its own, so that a
// crash or a hang is a failure of one test. The seed differs from run to run and stands in what
// failed.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';

const MAIN = fileURLToPath(new URL('../dist/test/soak/main.js', import.meta.url));
const LIMIT_MS = 150_000;
/** Name, and what CI does of it. */
const SLICES: readonly [string, number][] = [
  ['kill', 5],
  ['requests', 20_000],
  ['adapter', 2_000],
  ['memory', 800],
  ['workers', 6],
  ['faults', 40],
  ['dedup-crash', 10],
  ['dedup-errors', 12],
  ['dedup-kill', 3],
  ['idc-kill', 6],
  ['idc-chain', 10_000],
  ['idc-device', 3],
  ['idc-fuzz', 40_000],
  ['nvme-fuzz', 80],
];

interface Run {
  code: number | null;
  signal: NodeJS.Signals | null;
  output: string;
}

async function soak(...args: string[]): Promise<Run> {
  const env = { ...process.env, PENSTOCK_QUIET: '1' };
  const child = spawn(process.execPath, [MAIN, ...args], { env, timeout: LIMIT_MS });
  let output = '';
  child.stdout.on('data', (text: Buffer) => (output += text.toString()));
  child.stderr.on('data', (text: Buffer) => (output += text.toString()));
  const [code, signal] = (await once(child, 'close')) as [number | null, NodeJS.Signals | null];
  return { code, signal, output };
}

describe('a slice of the soak', () => {
  it('is there to be run', () => {
    expect(existsSync(MAIN)).toBe(true);
  });

  it.each([['--help'], ['nosuch'], ['kill', '--count', '3'], ['kill', '--rounds', 'x']])(
    'says what it takes when it is called with %s',
    async (...words) => {
      const { code, output } = await soak(...words);
      expect(code).toBe(2);
      expect(output).toMatch(/^usage: .*\n {2}kill +200 rounds$/m);
    },
  );

  // Under a sanitizer what works the addon's memory hardest: the others are TypeScript, or families
  // of processes, which start too slowly there.
  const isSanitized = (process.env['LD_PRELOAD'] ?? '').includes('asan');
  const slices = SLICES.filter(([name]) => !isSanitized || /^(memory|requests|faults)$/.test(name));

  it.each(slices)(
    '%s, %i',
    async (name, units) => {
      const seed = Date.now() % 2 ** 31;
      const run = await soak(name, '--seed', String(seed), '--rounds', String(units));
      const result = new RegExp(`^${name}: \\d+ \\w+, 0 failures, seed ${seed}$`, 'm');
      expect(run.output).toMatch(result);
      expect({ code: run.code, signal: run.signal }).toEqual({ code: 0, signal: null });
    },
    LIMIT_MS + 10_000,
  );
});

describe('the command', () => {
  it('names the soaks there are when asked for another', async () => {
    const run = await soak('nonesuch');
    expect(run.code).toBe(2);
    for (const [name] of SLICES) expect(run.output).toMatch(new RegExp(`^ {2}${name} `, 'm'));
  });

  it('refuses a count that is none', async () => {
    const run = await soak('requests', '--rounds', 'many');
    expect(run.code).toBe(2);
    expect(run.output).toContain('--rounds is a count, not many');
  });
});
