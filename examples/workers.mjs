// One device, four workers, each with a queue of its own: node examples/workers.mjs [URI]
//
// The handle is a plain object that can be posted. Memory has the same address in every worker, so
// that only block numbers and results travel between them, never data.

import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads';
import { attach, open } from 'penstock';

const WORKERS = 4;
const BYTES = 4096;
const UNITS = 64;

if (isMainThread) await main();
else await work(workerData);

async function main() {
  const disk = await open(process.argv[2] ?? 'ram:64MiB');
  const handle = disk.handle();
  const sums = await Promise.all(Array.from({ length: WORKERS }, (_, n) => start(handle, n)));
  // What the workers wrote is here: same device, same bytes.
  const buffer = disk.memory.alloc(BYTES);
  const unitBlocks = BYTES / disk.info.blockSize;
  for (let n = 0; n < WORKERS; n++) {
    await disk.read(n * UNITS * unitBlocks, buffer);
    const whole = buffer.u8.every((byte) => byte === n + 1);
    console.log(`worker ${n}: ${sums[n]} units verified, first one seen here: ${whole}`);
  }
  buffer.free();
  await disk.close();
}

function start(handle, number) {
  return new Promise((resolve, reject) => {
    const worker = new Worker(new URL(import.meta.url), { workerData: { handle, number } });
    worker.on('message', resolve).on('error', reject);
  });
}

/** Writes a region of its own, reads it back and counts the units that are right. */
async function work({ handle, number }) {
  const disk = await attach(handle);
  const buffer = disk.memory.alloc(BYTES);
  const unitBlocks = BYTES / disk.info.blockSize;
  let right = 0;
  for (let unit = 0; unit < UNITS; unit++) {
    const lba = (number * UNITS + unit) * unitBlocks;
    buffer.u8.fill(number + 1);
    await disk.write(lba, buffer);
    buffer.u8.fill(0);
    await disk.read(lba, buffer);
    if (buffer.u8.every((byte) => byte === number + 1)) right++;
  }
  buffer.free();
  await disk.close();
  parentPort.postMessage(right);
}
