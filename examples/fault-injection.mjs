// A device that fails on purpose, by seed: node examples/fault-injection.mjs [SEED]
//
// The same seed gives the same failures. The program under test opens another URI, nothing else.

import { open } from 'penstock';

const seed = process.argv[2] ?? '7';
const disk = await open(
  `ram:16MiB?fault.seed=${seed}&fault.errors=0.02&fault.errorOps=read&fault.delayUs=50`,
);
const buffer = disk.memory.alloc(4096);
const failures = [];
for (let lba = 0; lba < 8 * 500; lba += 8) {
  try {
    await disk.read(lba, buffer);
  } catch (error) {
    failures.push({ lba, code: error.code, message: error.message, hint: error.hint });
  }
}
console.log(`${failures.length} of 500 reads failed, at blocks ${failures.map((f) => f.lba)}`);
console.log(`the first: ${failures[0]?.code}: ${failures[0]?.message}`);
console.log(`what to do: ${failures[0]?.hint}`);
buffer.free();
await disk.close();
