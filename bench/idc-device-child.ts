// A process of bench:idc-device: serves a device, or does I/O on one as fast as it can. What it is
// to do comes as JSON in its argument; it prints one line of JSON, when it serves or when it is
// done.

import { setTimeout as sleep } from 'node:timers/promises';
import type { BlockDevice, Queue } from '../lib/hpdi/index.js';
import { Cpl, Op, Req } from '../lib/hpdi/records.js';
import { DeviceServer, joinDomain } from '../lib/idc/index.js';
import { native } from '../lib/native.js';
import { open } from '../lib/open.js';
import { collect, heapCost, OPERATIONS, type HeapCost } from './heap.js';

export type Operation = 'READ' | 'READ_LOAN' | 'WRITE';

export interface ServeOrder {
  readonly serve: string;
  readonly name: string;
  readonly hub: string;
  /** Operations that the device has at a time. */
  readonly depth: number;
  /** Processor to stay on; -1: any. */
  readonly cpu: number;
}

export interface LoadOrder {
  readonly load: string;
  readonly operation: Operation;
  readonly depth: number;
  readonly unitBytes: number;
  readonly seconds: number;
  readonly cpu: number;
  /** What 10^7 operations cost the heap is measured, too. */
  readonly heap: boolean;
}

export interface LoadResult {
  readonly iops: number;
  readonly failures: number;
  readonly heap: HeapCost | null;
}

const PARK_US = 1000;
const TWO_32 = 2 ** 32;
const CODES: Readonly<Record<Operation, number>> = {
  READ: Op.READ,
  READ_LOAN: Op.READ_LOAN,
  WRITE: Op.WRITE,
};

/** Keeps `depth` operations on random units in flight. */
class Load {
  failures = 0;
  private readonly queue: Queue;
  private readonly operation: number;
  private readonly depth: number;
  private readonly unitBlocks: number;
  private readonly units: number;
  private readonly addresses: Uint32Array;
  private readonly free: Uint32Array;
  private freeCount: number;
  private seed: number;

  constructor(device: BlockDevice, queue: Queue, order: LoadOrder) {
    const { operation, depth, unitBytes } = order;
    this.queue = queue;
    this.operation = CODES[operation];
    this.depth = depth;
    this.unitBlocks = unitBytes / device.info.blockSize;
    this.units = Math.floor(device.info.blocks / this.unitBlocks);
    this.addresses = new Uint32Array(depth * 2);
    this.free = Uint32Array.from({ length: depth }, (_, tag) => tag);
    this.freeCount = depth;
    this.seed = process.pid;
    for (let tag = 0; tag < depth; tag++) {
      const { address } = device.memory.alloc(unitBytes);
      this.addresses[tag * 2] = address % TWO_32;
      this.addresses[tag * 2 + 1] = Math.floor(address / TWO_32);
    }
  }

  run(operations: number): void {
    const { queue, depth } = this;
    let done = 0;
    while (done < operations || this.freeCount < depth) {
      if (done < operations) {
        const at = queue.tail;
        this.fill(at, queue.reserve(this.freeCount));
      }
      queue.submit();
      let count = queue.poll(depth);
      if (count === 0) count = queue.park(PARK_US);
      this.reap(count);
      done += count;
    }
  }

  private fill(at: number, count: number): void {
    const { queue, addresses, free } = this;
    const { sq, mask } = queue;
    for (let i = 0; i < count; i++) {
      const r = ((at + i) & mask) * Req.words;
      const tag = free[--this.freeCount]!;
      this.seed = (Math.imul(this.seed, 1664525) + 1013904223) | 0;
      sq[r] = this.operation;
      sq[r + Req.tag] = tag;
      sq[r + Req.blocks] = this.unitBlocks;
      sq[r + Req.aux] = 0;
      sq[r + Req.lbaLo] = ((this.seed >>> 8) % this.units) * this.unitBlocks;
      sq[r + Req.lbaHi] = 0;
      sq[r + Req.addressLo] = addresses[tag * 2]!;
      sq[r + Req.addressHi] = addresses[tag * 2 + 1]!;
    }
  }

  private reap(count: number): void {
    const { queue, free } = this;
    const { cq } = queue;
    for (let i = 0; i < count; i++) {
      const c = i * Cpl.words;
      if (cq[c + Cpl.status] !== 0) this.failures++;
      else if (this.operation === Op.READ_LOAN) {
        queue.release(cq[c + Cpl.resultLo]! | 0, cq[c + Cpl.resultHi]! | 0);
      }
      free[this.freeCount++] = cq[c]!;
    }
  }
}

async function serve({ serve: uri, name, hub, depth, cpu }: ServeOrder): Promise<void> {
  if (cpu >= 0) native.setCpuAffinity([cpu]);
  const domain = await joinDomain(hub, { name, keepAlive: true });
  const device = await open(uri);
  const server = new DeviceServer(domain, device, { depth });
  process.once('SIGTERM', () => {
    void server
      .close()
      .then(() => device.close())
      .then(() => domain.close());
  });
  console.log('{}');
}

async function load(order: LoadOrder): Promise<void> {
  const { load: uri, operation, depth, unitBytes, seconds, cpu } = order;
  if (cpu >= 0) native.setCpuAffinity([cpu]);
  const device = await open(uri);
  const queue = device.queue({ depth, split: operation === 'READ_LOAN' });
  const work = new Load(device, queue, order);
  // Some milliseconds each, also where a file is slow.
  const slice = Math.max(256, (depth === 1 ? 2000 : 20_000) * (4096 / unitBytes));
  // The server is as new as this process: V8 compiles both while they are warmed up.
  const warmUntil = performance.now() + 1000;
  while (performance.now() < warmUntil) work.run(slice);
  const start = performance.now();
  let operations = 0;
  for (let now = start; now < start + seconds * 1000; now = performance.now()) {
    work.run(slice);
    operations += slice;
    // As any program: what the hub and the server say is heard.
    await new Promise((resolve) => setImmediate(resolve));
  }
  const iops = (operations / (performance.now() - start)) * 1000;
  const heap = order.heap ? await costOf(work) : null;
  console.log(JSON.stringify({ iops, failures: work.failures, heap } satisfies LoadResult));
  await queue.close();
  await device.close();
}

/** After a while in which V8 compiles, on other threads, what it means to. */
async function costOf(work: Load): Promise<HeapCost> {
  for (let i = 0; i < 4; i++) {
    work.run(OPERATIONS / 20);
    await sleep(100);
  }
  collect();
  return heapCost(() => work.run(OPERATIONS));
}

const order = JSON.parse(process.argv[2] ?? '{}') as ServeOrder | LoadOrder;
await ('serve' in order ? serve(order) : load(order));
