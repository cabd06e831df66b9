// A process of the soak dedup-kill: works on a pool in a file, and says on stdout what it begins
// (`try`) and what was acknowledged (`ack`), until it is killed. Its argument is JSON.

import { writeSync } from 'node:fs';
import { Pool } from '../../lib/dedup/index.js';
import type { BlockDevice } from '../../lib/hpdi/index.js';
import { open } from '../../lib/open.js';
import { fillBlock } from './dedup-model.js';
import { Random } from './harness.js';

const { uri, seed, first, blocks } = JSON.parse(process.argv[2] ?? '{}') as {
  uri: string;
  seed: number;
  /** Content that was never written, nor any after it. */
  first: number;
  blocks: number;
};
const PARALLEL = 6;
const RUN_MAX = 64;
const random = new Random(seed);
let content = first;
let operations = 0;
const series: [number, number][] = [];

function say(text: string): void {
  writeSync(1, `${text}\n`);
}

/** One write of new contents or of earlier ones, or a discard, in a part of the volume. */
async function work(disk: BlockDevice, part: number): Promise<void> {
  const size = Math.floor(blocks / PARALLEL);
  const count = random.between(1, RUN_MAX);
  const at = part * size + random.below(size - count);
  const id = operations++;
  if (random.chance(0.1)) {
    say(`try ${id} ${at} ${count} 0`);
    await disk.discard(at, count);
  } else {
    let base = content;
    const old = random.chance(0.5) && series.length > 0 ? random.pick(series) : undefined;
    if (old !== undefined && old[1] >= count) {
      base = old[0] + random.below(old[1] - count + 1);
    } else {
      content += count;
      series.push([base, count]);
    }
    say(`try ${id} ${at} ${count} ${base}`);
    const buffer = disk.memory.alloc(count * 4096);
    for (let i = 0; i < count; i++) fillBlock(buffer.u32, i * 1024, base + i);
    await disk.write(at, buffer);
    buffer.free();
  }
  say(`ack ${id}`);
}

const device = await open(uri);
const pool = await Pool.open(device, { cacheBytes: 2 ** 21, indexBytes: 2 ** 20 });
const disk = pool.openVolume('one');
say('ready');
for (;;) {
  await Promise.all(Array.from({ length: PARALLEL }, (_, part) => work(disk, part)));
  if (random.chance(0.02)) await pool.checkpoint();
}
