// A pool is not made over what others have put on a device, unless it is forced: by the tools that
// make it for everybody, or, where those are not to be had here, with the bytes of their formats.

import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { Pool } from '../../lib/dedup/index.js';
import { open } from '../../lib/open.js';

/** As in Debian: essential, or of every installation. */
const TOOLS = { ...process.env, PATH: `/usr/sbin:/sbin:${process.env['PATH'] ?? ''}` };
const folder = mkdtempSync(join(tmpdir(), 'penstock-foreign-'));
afterAll(() => rmSync(folder, { recursive: true }));

/** A device of zeros, and whether a pool can be made on it once `fill` is done. */
async function made(uri: string, fill: (bytes: Uint8Array) => void): Promise<unknown> {
  const device = await open(uri);
  const head = device.memory.alloc(2 ** 20);
  await device.read(0, head);
  fill(head.u8);
  await device.write(0, head);
  const before = Buffer.from(head.u8);
  const result = await Pool.create(device).then(
    () => 'made',
    (error: unknown) => error,
  );
  await device.read(0, head);
  if (result !== 'made') expect(before.equals(head.u8)).toBe(true);
  head.free();
  await Pool.create(device, { force: true });
  await (await Pool.open(device)).close();
  await device.close();
  return result;
}

const foreign = (what: string): object => ({
  code: 'POOL_FOREIGN',
  message: expect.stringContaining(what) as string,
  hint: expect.stringContaining('--force') as string,
  exitCode: 3,
});

describe('a device that holds', () => {
  it.each([
    ['mkfs.ext4', ['-q', '-F'], 'an ext2, ext3 or ext4 file system'],
    ['mkswap', ['-q'], 'swap space'],
  ])('what %s has made', async (tool, args, what) => {
    const path = join(folder, tool);
    await (await open(`file:${path}?create=64MiB`)).close();
    const { status, stderr } = spawnSync(tool, [...args, path], {
      encoding: 'utf8',
      env: TOOLS,
    });
    expect({ status, stderr }).toMatchObject({ status: 0 });
    expect(await made(`file:${path}`, () => undefined)).toMatchObject(foreign(what));
  });

  it.each([
    ['a GPT partition table', 512, 'EFI PART'],
    ['an MBR partition table', 510, '\x55\xaa'],
    ['an LVM physical volume', 512, 'LABELONE'],
    ['an XFS file system', 0, 'XFSB'],
    ['a btrfs file system', 0x10040, '_BHRfS_M'],
  ])('%s', async (what, at, magic) => {
    const put = (bytes: Uint8Array): void => bytes.set(Buffer.from(magic, 'latin1'), at);
    expect(await made('ram:64MiB', put)).toMatchObject(foreign(what));
  });

  it('bytes that are nothing known is taken', async () => {
    const noise = (bytes: Uint8Array): void => void bytes.fill(0x5a);
    expect(await made('ram:64MiB', noise)).toBe('made');
  });
});
