// Random 4 KiB reads of ram: at depth 128 after five drivers have gone through the same call sites,
// against memory-loop.c (the same loop with a memcpy), in turn. The bar is 1.75 M IOPS: what SPDK's
// bdevperf reaches on its memory device. The region is 1 GiB, far over the caches, for both.

import { runBaseline } from './baseline.js';
import { measureIops, openLoop, tscClock, warmUp } from './five-drivers.js';
import { atLeast, finish, median, parseOptions, program, progress, progressEnd } from './report.js';

const DEPTH = 128;
const IOPS_MIN = 1.75e6;
const REGION_BYTES = 2 ** 30;

await program(async () => {
  const options = parseOptions({ rounds: 5, runtime: 1 });
  const clock = tscClock();
  await warmUp(clock, DEPTH);
  const { loop, device, close } = await openLoop(`ram:${REGION_BYTES}`, DEPTH, clock);
  const rounds = [];
  try {
    // Every page is there and none is the shared page of zeroes.
    const buffer = device.memory.alloc(1 << 20);
    const chunkBlocks = buffer.bytes / device.info.blockSize;
    for (let lba = 0; lba < device.info.blocks; lba += chunkBlocks) {
      buffer.u8.fill(1 + ((lba / chunkBlocks) & 0x7f));
      await device.write(lba, buffer);
    }
    buffer.free();
    measureIops(loop, 0.5);
    const shared = ['--depth', String(DEPTH), '--runtime', String(options.runtime)];
    const bytes = ['--bytes', String(REGION_BYTES)];
    for (let round = 0; round < options.rounds; round++) {
      progress(`ram:, round ${round + 1} of ${options.rounds}`);
      const iops = measureIops(loop, options.runtime);
      const plain = await runBaseline<{ iops: number }>('memory-loop', [...shared, ...bytes]);
      const prefetching = await runBaseline<{ iops: number }>('memory-loop', [
        ...[...shared, ...bytes],
        '--prefetch',
      ]);
      rounds.push({ iops, c_iops: plain.iops, c_prefetch_iops: prefetching.iops });
    }
  } finally {
    await close();
  }
  progressEnd();
  const iops = median(rounds.map((round) => round.iops));
  const row = (loop: string, value: number) => ({
    loop,
    IOPS: value,
    'ns/IO': 1e9 / value,
    'TypeScript / this': iops / value,
  });
  const rows = [
    row('TypeScript', iops),
    row('C', median(rounds.map((round) => round.c_iops))),
    row('C, prefetching', median(rounds.map((round) => round.c_prefetch_iops))),
  ];
  const bars = [atLeast('ram: 4 KiB random reads at depth 128, IOPS', iops, IOPS_MIN)];
  finish({ schema: 'penstock.bench.ram/1', rows, bars, rounds }, options);
});
