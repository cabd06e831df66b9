// A volume that one process serves to others: they read and write it over a hub, the pool is
// checked beside that, and is in order after the server was asked to end.

import { join } from 'node:path';
import { afterAll, expect, it } from 'vitest';
import { DeviceWorld } from '../idc/device-support.js';
import { penstock } from './command.js';

const world = new DeviceWorld();
afterAll(() => world.close());

/** What a command printed as JSON, and its exit code. */
async function json(...args: string[]): Promise<[Record<string, unknown>, number | null]> {
  const { stdout, exitCode } = await penstock([...args, '--json']);
  return [JSON.parse(stdout) as Record<string, unknown>, exitCode];
}

it('a served volume is written, read and checked by other processes', async () => {
  const image = `file:${join(world.folder, 'pool.img')}`;
  await json('pool', 'create', `${image}?create=128MiB`);
  const [, made] = await json('volume', 'create', image, 'one', '32MiB');
  expect(made).toBe(0);
  const served = await world.serve(`dedup:${image}#one`);

  const job = ['bench', served.uri, '--bs=16k', '--verify', '--seed=5'];
  const [written, ended] = await json(...job, '--rw=write', '--size=16MiB');
  expect(ended).toBe(0);
  expect(written).toMatchObject({ jobs: [{ verify: { checked_blocks: 1024 } }] });
  // What it was told it has written is there for the next one, which is another process.
  const [again, read] = await json(...job, '--rw=read', '--size=16MiB');
  expect(read).toBe(0);
  expect(again).toMatchObject({ jobs: [{ verify: { checked_blocks: 1024 } }] });

  expect(await json('pool', 'check', image)).toMatchObject([{ clean: true, volumes: 1 }, 0]);
  const busy = [{ error: { code: 'POOL_BUSY' } }, 3];
  expect(await json('pool', 'check', image, '--repair', '--yes')).toMatchObject(busy);
  expect(await json('pool', 'info', image)).toMatchObject(busy);

  expect(await served.end('SIGTERM')).toBe(0);
  expect(await json('pool', 'check', image, '--data')).toMatchObject([
    { clean: true, volumes: 1, journal_entries: 0 },
    0,
  ]);
  const [info, opened] = await json('pool', 'info', image);
  expect(opened).toBe(0);
  expect(info).toMatchObject({ space: 'ok' });
});
