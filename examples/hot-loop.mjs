// The hot path: records in typed arrays, one submit and one poll per batch, nothing allocated per
// operation. node examples/hot-loop.mjs [URI] [OPERATIONS]

import { COMPLETION, open, OPERATIONS, REQUEST } from 'penstock';

const DEPTH = 32;
const BYTES = 4096;
// Local copies: the words of a record are looked up once, not once per operation.
const { words, op, tag, blocks, lbaLo, lbaHi, addressLo, addressHi } = REQUEST;
const { words: completionWords, status } = COMPLETION;
const { READ } = OPERATIONS;

const disk = await open(process.argv[2] ?? 'ram:256MiB');
const queue = disk.queue({ depth: DEPTH });
const buffers = Array.from({ length: DEPTH }, () => disk.memory.alloc(BYTES));
const addresses = Float64Array.from(buffers, (buffer) => buffer.address);
const free = Int32Array.from(buffers, (_, i) => i);
const total = Number(process.argv[3] ?? 1_000_000);
const unitBlocks = BYTES / disk.info.blockSize;
const units = Math.floor(disk.info.blocks / unitBlocks);

/** Reads `total` units in order, round and round; returns how many failed. */
function run() {
  let freeCount = DEPTH;
  let issued = 0;
  let done = 0;
  let failed = 0;
  while (done < total) {
    const at = queue.tail;
    const left = total - issued;
    const granted = queue.reserve(left < freeCount ? left : freeCount); // 0 is back-pressure
    for (let i = 0; i < granted; i++, issued++) {
      const r = ((at + i) & queue.mask) * words;
      const slot = free[--freeCount]; // a tag, and with it a buffer, is in flight once
      const lba = (issued % units) * unitBlocks;
      queue.sq[r + op] = READ;
      queue.sq[r + tag] = slot;
      queue.sq[r + blocks] = unitBlocks;
      queue.sq[r + lbaLo] = lba >>> 0;
      queue.sq[r + lbaHi] = Math.floor(lba / 2 ** 32);
      queue.sq[r + addressLo] = addresses[slot] >>> 0;
      queue.sq[r + addressHi] = Math.floor(addresses[slot] / 2 ** 32);
    }
    queue.submit(); // one doorbell, one io_uring_enter for the batch
    const count = queue.park(1000); // polls; blocks this thread, at most 1 ms, when nothing is there
    for (let i = 0; i < count; i++) {
      const c = i * completionWords;
      if (queue.cq[c + status] !== 0) failed++;
      free[freeCount++] = queue.cq[c];
    }
    done += count;
  }
  return failed;
}

const startMs = performance.now();
const failed = run();
const seconds = (performance.now() - startMs) / 1000;
const iops = Math.round(total / seconds);
console.log(`${total} reads of ${BYTES} bytes at depth ${DEPTH}: ${failed} failed, ${iops} IOPS`);
await queue.close();
for (const buffer of buffers) buffer.free();
await disk.close();
