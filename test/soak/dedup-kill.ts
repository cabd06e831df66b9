// Deaths of a process that has a pool: it works on a file and is killed (SIGKILL) at a random time;
// the next one goes on with what it left. Every acknowledged write is there, every other block is
// old or new, and the check finds nothing.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { checkPool, Pool } from '../../lib/dedup/index.js';
import { open } from '../../lib/open.js';
import { contentOf, VolumeModel } from './dedup-model.js';
import {
  check,
  scratchFolder,
  sleep,
  within,
  type Random,
  type Soak,
  type SoakRun,
} from './harness.js';

const ACTOR = fileURLToPath(new URL('./dedup-kill-actor.js', import.meta.url));
const BLOCKS = 6000;
const START_MS = 20_000;
const RECORD = /^(try|ack) (\d+)(?: (\d+) (\d+) (\d+))?$/;

class KillRun implements SoakRun {
  private readonly random: Random;
  private readonly uri: string;
  private readonly model = new VolumeModel('one', BLOCKS);
  private content = 1;
  private acknowledged = 0;
  private entries = 0;

  constructor(random: Random, uri: string) {
    this.random = random;
    this.uri = uri;
  }

  async round(): Promise<number> {
    const { random } = this;
    const order = { uri: this.uri, seed: random.u32(), first: this.content, blocks: BLOCKS };
    const child = spawn(process.execPath, [ACTOR, JSON.stringify(order)], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    let text = '';
    child.stdout.on('data', (part: Buffer) => (text += part.toString()));
    const closed = once(child, 'close');
    try {
      await within(START_MS, 'the start of the process', once(child.stdout, 'data'));
      await sleep(random.between(0, 400));
    } finally {
      child.kill('SIGKILL');
    }
    await closed;
    this.take(text);
    await this.compare();
    return 1;
  }

  async finish(): Promise<void> {
    console.log(`dedup-kill: ${this.acknowledged} acknowledged, ${this.entries} entries applied`);
    check(this.acknowledged > 0, 'nothing was acknowledged');
  }

  /** What the process said: a line that was cut off says nothing. */
  private take(text: string): void {
    const tries = new Map<number, [number, number, number]>();
    for (const line of text.slice(0, text.lastIndexOf('\n')).split('\n')) {
      if (line === 'ready') continue;
      const found = RECORD.exec(line);
      check(found !== null, `a line of the process: ${line}`);
      const id = Number(found[2]);
      if (found[1] === 'try') {
        const [at, count, base] = [Number(found[3]), Number(found[4]), Number(found[5])];
        tries.set(id, [at, count, base]);
        for (let i = 0; i < count; i++) this.model.tries(at + i, base === 0 ? 0 : base + i);
        this.content = Math.max(this.content, base + count);
      } else {
        // Blocks of one write are never in another that is under way: what came later follows it.
        const [at, count, base] = tries.get(id)!;
        this.model.settles(at, count, base);
        this.acknowledged++;
      }
    }
  }

  private async compare(): Promise<void> {
    const device = await open(this.uri);
    try {
      const pool = await Pool.open(device, { cacheBytes: 2 ** 21, indexBytes: 2 ** 20 });
      this.entries += pool.recovery?.entries ?? 0;
      const disk = pool.openVolume('one');
      const buffer = disk.memory.alloc(BLOCKS * 4096);
      await disk.read(0, buffer);
      for (let block = 0; block < BLOCKS; block++) {
        this.model.adopt(block, contentOf(buffer.u32, block * 1024));
      }
      this.model.adopted();
      buffer.free();
      await disk.close();
      await pool.close();
      const report = await checkPool(device, { data: true });
      check(report.clean, JSON.stringify(report.findings.slice(0, 5)));
    } finally {
      await device.close();
    }
  }
}

export const dedupKillSoak: Soak = {
  full: 300,
  unit: 'rounds',
  async start(random) {
    const uri = `file:${join(scratchFolder(), 'pool')}?create=128MiB`;
    const device = await open(uri);
    await Pool.create(device, { thn: 4 });
    const pool = await Pool.open(device);
    await pool.createVolume('one', BLOCKS * 4096);
    await pool.close();
    await device.close();
    return new KillRun(random, uri);
  },
};
