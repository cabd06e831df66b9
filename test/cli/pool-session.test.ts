// What commands on a pool have in common: what they take for its device, and that they end in good
// order when they are interrupted.

import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { closing, orInterrupted, settled } from '../../lib/cli/pool-session.js';
import { buildProgram } from '../../lib/cli/program.js';
import { checkPool, Pool } from '../../lib/dedup/index.js';
import { open } from '../../lib/open.js';

const PAGE = 4096;
const LEAF_BLOCKS = 512;
const LEAVES = 2000;

describe('a command that waits for space to come free', () => {
  it.each([
    ['volume big is deleted', 'interrupted: volume big is deleted, and not all of its space'],
    ['', 'interrupted: the command did not finish'],
  ])('goes when it is interrupted, and the rest comes later: %j', async (done, message) => {
    const device = await open('ram:64MiB');
    await Pool.create(device);
    const pool = await Pool.open(device);
    await pool.createVolume('big', LEAVES * LEAF_BLOCKS * PAGE);
    const disk = pool.openVolume('big');
    const buffer = disk.memory.alloc(PAGE);
    buffer.u8.fill(1);
    for (let leaf = 0; leaf < LEAVES; leaf++) await disk.write(leaf * LEAF_BLOCKS, buffer);
    buffer.free();
    await disk.close();
    const controller = new AbortController();
    const { deleting } = pool.engine.parts.catalogue;
    const command = closing(pool, async () => {
      await pool.deleteVolume('big');
      controller.abort();
      await settled(pool, controller.signal, done).finally(() => {
        expect(deleting.length).toBe(1);
      });
    });
    await expect(command).rejects.toMatchObject({ code: 'INTERRUPTED', exitCode: 130 });
    await expect(command).rejects.toThrowError(message);
    // Nor has the close done it.
    expect(deleting.length).toBe(1);
    expect(await checkPool(device)).toMatchObject({ clean: true });
    const again = await Pool.open(device);
    expect(again.volumes).toEqual([]);
    const before = again.stats().data_blocks_used;
    expect(before).toBeGreaterThan(LEAVES / 2);
    await settled(again, new AbortController().signal, done);
    await again.checkpoint();
    expect(again.stats().data_blocks_used).toBeLessThan(10);
    await again.close();
    await device.close();
  });
});

describe('a command that waits for what hears no signal', () => {
  const never = new Promise<void>(() => undefined);
  const interrupted = { code: 'INTERRUPTED', exitCode: 130 };

  it('goes when it is interrupted, also when it was before', async () => {
    await expect(orInterrupted(never, AbortSignal.abort())).rejects.toMatchObject(interrupted);
    await expect(orInterrupted(never, AbortSignal.timeout(10))).rejects.toMatchObject(interrupted);
    expect(await orInterrupted(Promise.resolve(7), new AbortController().signal)).toBe(7);
  });
});

describe('commands that take the device of a pool', () => {
  /** Something for an argument after the first. */
  const wordFor = (name: string): string => {
    if (name === 'size') return '1MiB';
    return name === 'image' ? fileURLToPath(import.meta.url) : 'x';
  };

  it('name it when they are given a volume', async () => {
    const volume = 'dedup:file:p.img?direct=1&dedup.thn=4#a';
    const wanted = {
      code: 'BAD_OPTION',
      exitCode: 2,
      hint: 'give the device: file:p.img?direct=1',
    };
    let count = 0;
    for (const group of ['pool', 'volume']) {
      const tree = (await buildProgram([group], () => undefined)).commands;
      for (const command of tree.find((each) => each.name() === group)!.commands) {
        const [first, ...others] = command.registeredArguments.map((each) => each.name());
        if (first !== 'uri') continue;
        const words = [group, command.name(), volume, ...others.map(wordFor)];
        const program = await buildProgram([group], () => undefined);
        const run = program.parseAsync(words, { from: 'user' });
        await expect(run, words.join(' ')).rejects.toMatchObject(wanted);
        count++;
      }
    }
    expect(count).toBe(16);
  });
});
