// What commands of pools and volumes leave, and print, when SIGINT ends them before they are done;
// what an import notices of a device that lies.

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

const KIB = 2 ** 10;
const MIB = 2 ** 20;
const SIZE = 48 * MIB;
const folder = mkdtempSync(join(tmpdir(), 'penstock-interrupt-'));
const at = (name: string): string => join(folder, name);
const uri = `file:${at('pool.img')}`;
/** Pieces of 1 MiB, 8 in flight: an image takes seconds. */
const slow = `${uri}?fault.delayUs=100000`;
const WORDS = { code: 'INTERRUPTED', message: 'interrupted: the command did not finish' };
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
    const body = JSON.parse(stdout) as Record<'bytes' | 'stored_bytes', number>;
    expect(body).toMatchObject({ schema: 'penstock.volume-import/1', error: WORDS });
    expect(body.bytes).toBeGreaterThan(0);
    expect(body.bytes).toBeLessThan(SIZE);
    expect(body.stored_bytes).toBe(body.bytes);
    await expectClosed();
    // What it says is there, is.
    await penstock(['volume', 'export', uri, 'begun', at('begun')]);
    const [wanted, found] = [readFileSync(at('other')), readFileSync(at('begun'))];
    expect(found.subarray(0, body.bytes).equals(wanted.subarray(0, body.bytes))).toBe(true);
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
    const body = JSON.parse(stdout) as { bytes: number };
    expect(body).toMatchObject({ schema: 'penstock.volume-export/1', error: WORDS });
    expect(body.bytes).toBeLessThan(SIZE);
    expect(readdirSync(folder)).toEqual(files);
    if (words.length > 0) expect(readFileSync(at('copy'), 'utf8')).toBe('as before');
    await expectClosed();
  });

  it('ends pool clean, which says what it has done', async () => {
    // A quarter of what each extent holds stays in use.
    const changed = readFileSync(at('image'));
    for (let from = 0; from < SIZE; from += 128 * KIB) {
      changed.set(randomBytes(96 * KIB), from);
    }
    writeFileSync(at('changed'), changed);
    await penstock(['volume', 'import', uri, 'whole', at('changed')]);
    const before = diskBytes('pool.img');
    const { stdout, exitCode } = await penstock(['pool', 'clean', slow, '--json'], {
      interruptWhen: () => diskBytes('pool.img') > before,
    });
    expect(exitCode).toBe(130);
    const body = JSON.parse(stdout) as { victims: number };
    expect(body).toMatchObject({ schema: 'penstock.pool-clean/1', error: WORDS });
    expect(body).toMatchObject({ stopped: 'it was interrupted' });
    expect(body.victims).toBeGreaterThan(0);
    await expectClosed();
  });

  it('ends pool trim, which says what it has given back', async () => {
    await penstock(['volume', 'delete', uri, 'whole']);
    const before = diskBytes('pool.img');
    const { stdout, stderr, exitCode } = await penstock(['pool', 'trim', slow], {
      interruptWhen: () => diskBytes('pool.img') < before,
    });
    expect(exitCode).toBe(130);
    expect(stdout).toMatch(/^[1-9].* [KMG]iB given back\n$/);
    expect(stderr).toContain(WORDS.message);
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
