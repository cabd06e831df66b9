// An export's file has its name once it is whole; what has that name by then is replaced only when
// that is asked for.

import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, it } from 'vitest';
import { exportVolume } from '../../lib/cli/volume-export.js';
import { Pool } from '../../lib/dedup/index.js';
import { open } from '../../lib/open.js';

const folder = mkdtempSync(join(tmpdir(), 'penstock-export-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

it('keeps a file that has appeared meanwhile', async () => {
  const device = await open('ram:64MiB');
  await Pool.create(device);
  const pool = await Pool.open(device);
  await pool.createVolume('one', 2 ** 20);
  const target = join(folder, 'copy.img');
  const run = (force: boolean): Promise<unknown> =>
    exportVolume(pool, 'one', target, force, new AbortController().signal);
  await run(false);
  expect(readFileSync(target)).toHaveLength(2 ** 20);
  writeFileSync(target, 'mine');
  await expect(run(false)).rejects.toMatchObject({ code: 'FILE_EXISTS' });
  expect(readFileSync(target, 'utf8')).toBe('mine');
  await run(true);
  expect(readFileSync(target)).toHaveLength(2 ** 20);
  expect(readdirSync(folder)).toEqual(['copy.img']);
  await pool.close();
  await device.close();
});
