// Reads 4 KiB of a device: node examples/read-block.mjs [URI] [BLOCK]

import { open } from 'penstock';

const disk = await open(process.argv[2] ?? 'ram:64MiB');
const buffer = disk.memory.alloc(4096);
await disk.read(Number(process.argv[3] ?? 0), buffer);
console.log(Buffer.from(buffer.u8.subarray(0, 64)).toString('hex').replaceAll(/.{32}/g, '$&\n'));
buffer.free();
await disk.close();
