// Time that the NVMe driver itself takes per 4 KiB read: against a controller in memory that really
// consumes entries and posts completions, but moves no data (test/support/nvme-twin, null).
//
// Both take turns in one thread: a batch is submitted, the twin does it, the batch is polled. The
// twin's own time is measured with entries that stand in a ring already and nobody who reads the
// completions; what is left of the whole is the driver, its queue and the records.

import { BlockDevice, Op, Req, type Queue } from '../lib/hpdi/index.js';
import { openNvme } from '../lib/drivers/nvme/index.js';
import { parseSettings } from '../lib/drivers/nvme/settings.js';
import { native } from '../lib/native.js';
import { open } from '../lib/open.js';
import { NvmeTwin } from '../test/support/nvme-twin/index.js';
import { TwinRing } from './twin-ring.js';
import { collect, heapCost, HEAP_GROWTH_MAX, OPERATIONS } from './heap.js';
import { atMost, finish, median, parseOptions, program } from './report.js';

const UNIT_BYTES = 4096;
const BLOCK_SIZE = 4096;
const BLOCKS = 2 ** 18;
const BATCH = 32;
const DEPTH = 128;
const WARM_UP_OPERATIONS = 3e6;
const SLICE_OPERATIONS = 500_000;
const TWO_32 = 2 ** 32;

/** What is measured: a queue, and what serves it between its submissions and its polls. */
interface Subject {
  readonly queue: Queue;
  readonly serve: () => void;
  readonly memory: BlockDevice['memory'];
  close(): Promise<void>;
}

/** The driver on a twin. Whoever opens another driver on a twin exchanges this function. */
async function openOnTwin(): Promise<Subject> {
  const twin = new NvmeTwin({
    null: true,
    namespaces: [{ blocks: BLOCKS, blockSize: BLOCK_SIZE }],
    address: 'bench-twin',
  });
  twin.start();
  const settings = parseSettings(new Map(), true);
  const connect = () => Promise.resolve(twin.pci);
  const backend = await openNvme('nvme:bench-twin/1', 'bench-twin', 1, settings, connect);
  const device = new BlockDevice(backend);
  const queue = device.queue({ depth: DEPTH, split: false });
  return {
    queue,
    serve: () => void twin.step(),
    memory: device.memory,
    close: async () => {
      await queue.close();
      await device.close();
      twin.close();
    },
  };
}

/** The queue alone: what of the time is HPDI's and this program's. */
async function openNull(): Promise<Subject> {
  const device = await open('null:1GiB');
  const queue = device.queue({ depth: DEPTH, split: false });
  return {
    queue,
    serve: () => undefined,
    memory: device.memory,
    close: async () => {
      await queue.close();
      await device.close();
    },
  };
}

/** Reads one unit again and again, a batch at a time; gives how many failed. */
function readBatches(queue: Queue, serve: () => void, address: number, operations: number): number {
  const { sq, cq, mask } = queue;
  const addressLo = address % TWO_32;
  const addressHi = Math.floor(address / TWO_32);
  let failures = 0;
  let lba = 0;
  for (let done = 0; done < operations;) {
    const at = queue.tail;
    const granted = queue.reserve(BATCH);
    for (let i = 0; i < granted; i++) {
      const r = ((at + i) & mask) * Req.words;
      sq[r] = Op.READ;
      sq[r + Req.tag] = i;
      sq[r + Req.blocks] = 1;
      sq[r + Req.aux] = 0;
      sq[r + Req.lbaLo] = lba;
      sq[r + Req.lbaHi] = 0;
      sq[r + Req.addressLo] = addressLo;
      sq[r + Req.addressHi] = addressHi;
      lba = (lba + 1) & (BLOCKS - 1);
    }
    queue.submit();
    serve();
    const count = queue.poll(BATCH);
    for (let i = 0; i < count; i++) if (cq[i * 4 + 1] !== 0) failures++;
    done += count;
  }
  return failures;
}

class Measured {
  private readonly buffer;

  constructor(readonly subject: Subject) {
    this.buffer = subject.memory.alloc(UNIT_BYTES);
  }

  run(operations: number): void {
    const { queue, serve } = this.subject;
    const failures = readBatches(queue, serve, this.buffer.address, operations);
    if (failures > 0) throw new Error(`${failures} reads failed`);
  }

  async close(): Promise<void> {
    await this.subject.close();
    this.buffer.free();
  }
}

/** Nanoseconds an operation, of each part. */
interface Round {
  whole: number;
  twin: number;
  driver: number;
  queue: number;
}

/**
 * Nanoseconds an operation, over about `runtimeS` seconds; of this thread's processor time, since
 * neither side ever waits and others may want the processor.
 */
function nsPerOperation(run: (operations: number) => void, runtimeS: number): number {
  const start = threadNs();
  let operations = 0;
  let elapsedNs = 0;
  while (elapsedNs < runtimeS * 1e9) {
    run(SLICE_OPERATIONS);
    operations += SLICE_OPERATIONS;
    elapsedNs = threadNs() - start;
  }
  return elapsedNs / operations;
}

function threadNs(): number {
  const [user, system] = native.threadCpuTime();
  return user + system;
}

await program(async () => {
  const options = parseOptions({ rounds: 5, runtime: 1 });
  const driver = new Measured(await openOnTwin());
  const empty = new Measured(await openNull());
  const ring = new TwinRing(BATCH);
  for (let turn = 0; turn < 3; turn++) {
    for (const each of [driver, empty, ring]) each.run(WARM_UP_OPERATIONS / 3);
  }
  const rounds: Round[] = [];
  for (let round = 0; round < options.rounds; round++) {
    const whole = nsPerOperation((count) => driver.run(count), options.runtime);
    const twin = nsPerOperation((count) => ring.run(count), options.runtime);
    const queue = nsPerOperation((count) => empty.run(count), options.runtime);
    rounds.push({ whole, twin, driver: whole - twin, queue });
  }
  collect();
  driver.run(WARM_UP_OPERATIONS);
  const cost = await heapCost(() => driver.run(OPERATIONS));
  const of = (key: keyof Round) => median(rounds.map((each) => each[key]));
  const rows = [
    { 'of a 4 KiB read': 'driver and twin', ns: of('whole') },
    { 'of a 4 KiB read': 'twin alone', ns: of('twin') },
    { 'of a 4 KiB read': 'driver, queue and records', ns: of('driver') },
    { 'of a 4 KiB read': 'queue and records over null:', ns: of('queue') },
  ];
  const bars = [
    atMost('heap growth over 10^7 operations, bytes', cost.heapGrowthBytes, HEAP_GROWTH_MAX),
    atMost('garbage collections over 10^7 operations', cost.gcCount, 0),
  ];
  await driver.close();
  await empty.close();
  ring.close();
  finish({ schema: 'penstock.bench.nvme-twin/1', rows, bars, rounds }, options);
});
