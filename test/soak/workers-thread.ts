// A thread of the workers soak: the device's home, or a client that writes, reads back and
// compares in
// a part of the device that is its own.

import { parentPort, workerData } from 'node:worker_threads';
import type { BlockDevice, DeviceHandle, Queue } from '../../lib/hpdi/index.js';
import { Op, Status } from '../../lib/hpdi/index.js';
import { isAlive, type DmaBuffer } from '../../lib/memory/index.js';
import { attach, open } from '../../lib/open.js';
import { completionAt, put } from '../support/requests.js';
import { REGION_BYTES, THREADS_MAX, type Report, type Task } from './workers-parts.js';

const UNIT_BYTES = 4096;
const UNITS = REGION_BYTES / UNIT_BYTES;
const SECTOR_WORDS = 128;
const DEPTH = 16;
const ANY = -1;
/** Operations tried after the first DEVICE_GONE. */
const GONE_TRIES = 64;

function report(message: Report): void {
  parentPort!.postMessage(message);
}

/** Work in flight: units are taken by one operation at a time. */
class Client {
  private readonly queue: Queue;
  private readonly perUnit: number;
  private readonly buffers: DmaBuffer[];
  private readonly flights: ({ unit: number; op: number; version: number } | null)[];
  /** Version of each unit that was acknowledged; ANY: what a former writer left, block by block. */
  private readonly versions = new Int32Array(UNITS).fill(ANY);
  private readonly busy = new Uint8Array(UNITS);
  private version = 1;
  private state: number;
  inFlight = 0;
  goneSeen = 0;

  constructor(
    private readonly device: BlockDevice,
    private readonly region: number,
    seed: number,
  ) {
    this.state = seed | 1;
    this.queue = device.queue({ depth: DEPTH });
    this.perUnit = UNIT_BYTES / device.info.blockSize;
    this.buffers = Array.from({ length: DEPTH }, () => device.memory.alloc(UNIT_BYTES));
    this.flights = new Array<null>(DEPTH).fill(null);
  }

  /** Puts new operations where there is room, and takes what completed. */
  async step(more: boolean): Promise<void> {
    if (more) this.fill();
    if (this.queue.head !== this.queue.tail) this.queue.submit();
    const count = this.next() % 4 === 0 ? await this.queue.wait(1000) : this.queue.park(1000);
    for (let i = 0; i < count; i++) this.take(completionAt(this.queue, i));
  }

  private fill(): void {
    for (let tag = 0; tag < DEPTH; tag++) {
      if (this.flights[tag] !== null) continue;
      const unit = this.next() % UNITS;
      if (this.busy[unit] === 1) continue;
      const op = this.next() % 2 === 0 ? Op.WRITE : Op.READ;
      const version = op === Op.WRITE ? this.version++ : this.versions[unit]!;
      const buffer = this.buffers[tag]!;
      if (op === Op.WRITE) fillUnit(buffer.u32, this.region * UNITS + unit, version);
      else buffer.u32.fill(0xdeadbeef);
      const lba = (this.region * UNITS + unit) * this.perUnit;
      const request = { op, tag, lba, blocks: this.perUnit, address: buffer.address };
      if (!put(this.queue, request)) return;
      this.flights[tag] = { unit, op, version };
      this.busy[unit] = 1;
      this.inFlight++;
    }
  }

  private take(done: { tag: number; status: number; code: number }): void {
    const flight = this.flights[done.tag];
    if (flight === null || flight === undefined) throw new Error(`tag ${done.tag} came twice`);
    this.flights[done.tag] = null;
    this.busy[flight.unit] = 0;
    this.inFlight--;
    if (done.code === Status.DEVICE_GONE) {
      this.goneSeen++;
      return;
    }
    if (this.goneSeen > 0) throw new Error(`status ${done.status} after the device was gone`);
    if (done.status !== 0) throw new Error(this.device.explain(done.status).message);
    if (flight.op === Op.WRITE) {
      this.versions[flight.unit] = flight.version;
      return;
    }
    const { u32 } = this.buffers[done.tag]!;
    const unit = this.region * UNITS + flight.unit;
    checkUnit(u32, unit, flight.version, this.device.info.blockSize / 4);
  }

  private next(): number {
    this.state ^= this.state << 13;
    this.state ^= this.state >>> 17;
    this.state ^= this.state << 5;
    return this.state >>> 0;
  }
}

function fillUnit(words: Uint32Array, unit: number, version: number): void {
  const base = Math.imul(unit + 1, 0x9e3779b1) ^ Math.imul(version, 0x85ebca6b);
  for (let i = 0; i < words.length; i++) words[i] = base + i;
  for (let i = 0; i < words.length; i += SECTOR_WORDS) {
    words[i] = version;
    words[i + 1] = unit;
  }
}

/** Every block of a unit is one that was written there: of `version`, or ANY, each of its own. */
function checkUnit(words: Uint32Array, unit: number, version: number, blockWords: number): void {
  const wanted = new Uint32Array(words.length);
  for (let from = 0; from < words.length; from += blockWords) {
    const block = words.subarray(from, from + blockWords);
    const found = version === ANY ? block[0]! : version;
    fillUnit(wanted, unit, found);
    const at = block.findIndex((word, i) => word !== wanted[from + i]);
    if (at < 0) continue;
    const text = `word ${from + at} is ${block[at]!.toString(16)}`;
    throw new Error(`unit ${unit}, ${text}, not ${wanted[from + at]!.toString(16)} (${found})`);
  }
}

async function beClient(handle: DeviceHandle, region: number, seed: number): Promise<void> {
  let detaching = false;
  parentPort!.once('message', () => (detaching = true));
  let device: BlockDevice;
  try {
    device = await attach(handle);
  } catch (error) {
    // The home was gone before this thread got there.
    if (isAlive(handle.liveness, handle.livenessSerial)) throw error;
    report({ kind: 'gone' });
    report({ kind: 'done' });
    return;
  }
  const client = new Client(device, region, seed);
  let told = false;
  for (let step = 0; !detaching; step++) {
    await client.step(true);
    if (step === 4) report({ kind: 'working' });
    if (client.goneSeen >= GONE_TRIES && !told) {
      told = true;
      report({ kind: 'gone' });
    }
    // Lets messages in, and does not spin on a device that is gone.
    await new Promise((resolve) => (told ? setTimeout(resolve, 1) : setImmediate(resolve)));
  }
  while (client.inFlight > 0) await client.step(false);
  await device.close();
  report({ kind: 'done' });
}

async function beHome(uri: string): Promise<void> {
  const device = await open(uri);
  // Version 0 everywhere: whatever else is read later was written by nobody.
  const buffer = device.memory.alloc(UNIT_BYTES);
  for (let unit = 0; unit < THREADS_MAX * UNITS; unit++) {
    fillUnit(buffer.u32, unit, 0);
    await device.write((unit * UNIT_BYTES) / device.info.blockSize, buffer);
  }
  buffer.free();
  report({ kind: 'handle', handle: device.handle() });
  await new Promise<void>((resolve) => parentPort!.once('message', () => resolve()));
  await device.close();
  report({ kind: 'done' });
}

const task = workerData as Task;
if (task.kind === 'home') await beHome(task.uri);
else await beClient(task.handle, task.region, task.seed);
