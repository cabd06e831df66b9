// A null twin with a queue pair whose entries stand there from the beginning: what the twin itself
// takes per command.

import { addressSpace, GRANULE_BYTES } from '../lib/memory/index.js';
import { NvmeTwin } from '../test/support/nvme-twin/index.js';

const ENTRIES = 1024;
const SQE_WORDS = 16;
const READ = 2;
const PAGE = 4096;
const TWO_32 = 2 ** 32;

export class TwinRing {
  private readonly twin = new NvmeTwin({ null: true, vectors: 0 });
  private readonly segment = addressSpace().create(GRANULE_BYTES);
  private readonly doorbells: Uint32Array;
  private tail = 0;

  constructor(private readonly batch: number) {
    const { twin, segment } = this;
    const { pci } = twin;
    pci.enable();
    const bar = pci.bar(0);
    const put64 = (offset: number, value: number): void => {
      bar.write32(offset, value % TWO_32);
      bar.write32(offset + 4, Math.floor(value / TWO_32));
    };
    bar.write32(0x24, 0x00010001);
    put64(0x28, segment.address);
    put64(0x30, segment.address + PAGE);
    bar.write32(0x14, 0x00460001);
    const sqAddress = segment.address + 2 * PAGE;
    const sqWords = ENTRIES * SQE_WORDS;
    const cqAddress = sqAddress + sqWords * 4;
    const words = (address: number, count: number): Uint32Array =>
      new Uint32Array(segment.u8.buffer, address - segment.address, count);
    const sq = words(sqAddress, sqWords);
    for (let i = 0; i < ENTRIES; i++) sq[i * SQE_WORDS] = READ | (i << 16);
    const { queues } = twin.controller;
    const facts = { id: 1, vector: 0, interrupts: false };
    const cq = queues.addCq({ ...facts, ring: words(cqAddress, ENTRIES * 4), address: cqAddress });
    queues.addSq({ id: 1, ring: sq, address: sqAddress }, cq);
    this.doorbells = bar.words(0x1000, PAGE)!;
  }

  /** Lets the twin do so many commands, a batch at a time. */
  run(operations: number): void {
    const { twin, doorbells, batch } = this;
    for (let done = 0; done < operations; done += batch) {
      this.tail = (this.tail + batch) & (ENTRIES - 1);
      doorbells[2] = this.tail;
      if (twin.step() !== batch) throw new Error('the twin did not do what was rung');
      doorbells[3] = this.tail;
    }
  }

  close(): void {
    this.twin.close();
    this.segment.close();
  }
}
