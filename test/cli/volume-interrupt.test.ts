// What `penstock volume import` and `export` leave when they end before they are done: by SIGINT, or
// because the device under the pool lies.

import { randomBytes } from 'node:crypto';
import {
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { penstock } from './command.js';

const MIB = 2 ** 20;
const SIZE = 48 * MIB;
const folder = mkdtempSync(join(tmpdir(), 'penstock-interrupt-'));
const at = (name: string): string => join(folder, name);
const uri = `file:${at('pool.img')}`;
/** Pieces of 1 MiB, 8 in flight: an image takes seconds. */
const slow = `${uri}?fault.delayUs=100000`;
const diskBytes = (name: string): number => statSync(at(name)).blocks * 512;

async function json(...args: string[]): Promise<Record<string, unknown>> {
  return JSON.parse((await penstock([...args, '--json'])).stdout) as Record<string, unknown>;
}

/** Of a pool that was closed in order nothing is left to be applied. */
async function expectClosed(): Promise<void> {
  const checked = await json('pool', 'check', uri, '--data');
  expect(checked).toMatchObject({ clean: true, journal_entries: 0 });
  expect(await json('pool', 'info', uri)).toMatchObject({ clean: true, recovery: null });
}

beforeAll(async () => {
  writeFileSync(at('image'), randomBytes(SIZE));
  // Without its space, so that it can be seen how much is written.
  writeFileSync(at('pool.img'), '');
  truncateSync(at('pool.img'), 256 * MIB);
  expect((await penstock(['pool', 'create', uri])).exitCode).toBe(0);
  expect((await penstock(['volume', 'import', uri, 'whole', at('image')])).exitCode).toBe(0);
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

describe('SIGINT', () => {
  it('ends an import; the pool is closed in order', async () => {
    writeFileSync(at('other'), randomBytes(SIZE));
    const before = diskBytes('pool.img');
    const { stdout, exitCode } = await penstock(
      ['volume', 'import', slow, 'begun', at('other'), '--json'],
      { interruptWhen: () => diskBytes('pool.img') > before + MIB },
    );
    expect(exitCode).toBe(130);
    expect(JSON.parse(stdout)).toMatchObject({ error: { code: 'INTERRUPTED' } });
    expect(diskBytes('pool.img')).toBeLessThan(before + SIZE);
    await expectClosed();
  });

  it.each([
    ['a new file', []],
    ['one that was there', ['--force']],
  ])('ends an export to %s, and nothing is left of it', async (_, words) => {
    if (words.length > 0) writeFileSync(at('copy'), 'as before');
    const files = readdirSync(folder);
    const isBegun = (): boolean => readdirSync(folder).some((name) => name.endsWith('.part'));
    const { stdout, exitCode } = await penstock(
      ['volume', 'export', slow, 'whole', at('copy'), '--json', ...words],
      { interruptWhen: isBegun },
    );
    expect(exitCode).toBe(130);
    expect(JSON.parse(stdout)).toMatchObject({ error: { code: 'INTERRUPTED' } });
    expect(readdirSync(folder)).toEqual(files);
    if (words.length > 0) expect(readFileSync(at('copy'), 'utf8')).toBe('as before');
    await expectClosed();
  });
});

it('import --verify notices writes that the device has lost', async () => {
  const lossy = `file:${at('lossy.img')}`;
  await penstock(['pool', 'create', `${lossy}?create=64MiB`]);
  writeFileSync(at('small'), randomBytes(8 * MIB));
  const words = ['lost', at('small'), '--verify', '--json'];
  const { stdout, exitCode } = await penstock([
    ...['volume', 'import', `${lossy}?fault.dropWrites=0.2`, ...words],
  ]);
  expect(exitCode).toBe(4);
  const { error } = JSON.parse(stdout) as { error: { code: string; message: string } };
  expect(error.code).toBe('VERIFY_MISMATCH');
  expect(error.message).toMatch(/^the volume differs from .*small from byte \d+ on$/);
});
