// The kill soak's child: writers (the main thread and workers, each with its own queue) write
// numbered
// blocks in turn and say on stdout which number is acknowledged. It never ends by itself.
//
//   node kill-child.js URI FIRST-SEQUENCE WRITERS

import { writeSync } from 'node:fs';
import { isMainThread, Worker, workerData } from 'node:worker_threads';
import type { BlockDevice, DeviceHandle } from '../../lib/hpdi/index.js';
import { Op } from '../../lib/hpdi/index.js';
import { attach, open } from '../../lib/open.js';
import { completionAt, put } from '../support/requests.js';
import { BLOCK_BYTES, fillBlock, REGION_BLOCKS } from './kill-blocks.js';

const DEPTH = 16;
const FLUSH_EVERY = 8;
const PAUSE = new Int32Array(new SharedArrayBuffer(4));

interface Task {
  handle: DeviceHandle;
  writer: number;
  sequence: number;
}

async function write(device: BlockDevice, writer: number, firstSequence: number): Promise<never> {
  const { blockSize } = device.info;
  const perBlock = BLOCK_BYTES / blockSize;
  const queue = device.queue({ depth: DEPTH });
  const buffers = Array.from({ length: DEPTH }, () => device.memory.alloc(BLOCK_BYTES));
  let sequence = firstSequence;
  for (let batch = 0; ; batch++) {
    const first = sequence + 1;
    for (const [tag, buffer] of buffers.entries()) {
      sequence++;
      const index = writer * REGION_BLOCKS + ((sequence - firstSequence - 1) % REGION_BLOCKS);
      fillBlock(buffer.u32, index, sequence);
      const request = { op: Op.WRITE, tag, blocks: perBlock, lba: index * perBlock };
      if (!put(queue, { ...request, address: buffer.address })) throw new Error('queue is full');
    }
    queue.submit();
    // Completions come in any order: only what all earlier ones joined counts as acknowledged.
    const done = new Set<number>();
    while (done.size < DEPTH) {
      const count = batch % 2 === 0 ? await queue.wait() : queue.park(-1);
      for (let i = 0; i < count; i++) {
        const { tag, status } = completionAt(queue, i);
        if (status !== 0) throw new Error(device.explain(status).message);
        done.add(first + tag);
      }
    }
    if (batch % FLUSH_EVERY === 0) await device.flush();
    say(`${writer} ${sequence}\n`);
  }
}

/** The whole line, however slowly it is read: half of one would claim what is not so. */
function say(line: string): void {
  const bytes = Buffer.from(line);
  for (let at = 0; at < bytes.length;) {
    try {
      at += writeSync(1, bytes, at);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') throw error;
      Atomics.wait(PAUSE, 0, 0, 1);
    }
  }
}

if (isMainThread) {
  const [uri = '', sequence = '0', writers = '1'] = process.argv.slice(2);
  const device = await open(uri);
  for (let writer = 1; writer < Number(writers); writer++) {
    const task: Task = { handle: device.handle(), writer, sequence: Number(sequence) };
    new Worker(new URL(import.meta.url), { workerData: task });
  }
  await write(device, 0, Number(sequence));
} else {
  const { handle, writer, sequence } = workerData as Task;
  await write(await attach(handle), writer, sequence);
}
