// A thread that changes a buffer while another one has it written: between contents that it is told
// of (control[0] is the first block's) and others, again and again, until control[0] is -1.

import { parentPort, workerData } from 'node:worker_threads';
import { addressSpace } from '../../lib/memory/index.js';
import { fillBlock } from '../soak/dedup-model.js';

const { control, address, blocks } = workerData as {
  control: Int32Array;
  address: number;
  blocks: number;
};
const OTHER = 10 ** 7;
const segment = addressSpace().find(address)!;
const words = segment.u32.subarray((address - segment.address) / 4);
parentPort!.postMessage('ready');
for (let turn = 0; ; turn++) {
  const first = Atomics.load(control, 0);
  if (first < 0) break;
  for (let i = 0; i < blocks; i++) fillBlock(words, i * 1024, first + i);
  const until = performance.now() + 0.03 * (turn % 4);
  while (performance.now() < until);
  for (let i = 0; i < blocks; i++) fillBlock(words, i * 1024, OTHER + turn * blocks + i);
}
