// The traced device: every operation of every queue is noted at submission and at completion.
//
// Invariants: what the wrapped driver sees differs from what the caller gave in the tag alone; a
// trace that fails never fails an operation; times are those of the batch (one clock read each).

import {
  type Backend,
  Cpl,
  type DeviceInfo,
  Interposed,
  type QueueCounters,
  type QueueDriver,
  type QueueOptions,
  Req,
} from '../../hpdi/index.js';
import type { Memory } from '../../memory/index.js';
import { Trace, TraceKind } from './format.js';
import { TraceWriter } from './writer.js';

const TWO_32 = 2 ** 32;

class TraceQueue implements QueueDriver {
  private readonly ring: Interposed;
  private readonly writer: TraceWriter;
  private readonly queue: number;
  private readonly device: TraceDevice;
  private readonly records: Uint32Array;
  private readonly serials: Uint32Array;
  private readonly submittedNs: Float64Array;
  /** As the wrapped driver has it: HPDI waits on eventFd where there is none. */
  readonly park?: (timeoutUs: number) => void;

  constructor(device: TraceDevice, driver: QueueDriver, depth: number, queue: number) {
    this.device = device;
    this.writer = device.writer;
    this.queue = queue;
    this.ring = new Interposed(driver, depth);
    this.records = new Uint32Array(this.ring.depth * Req.words);
    this.serials = new Uint32Array(this.ring.depth);
    this.submittedNs = new Float64Array(this.ring.depth);
    if (driver.park !== undefined) this.park = (timeoutUs) => driver.park!(timeoutUs);
  }

  get counters(): QueueCounters {
    return this.ring.driver.counters;
  }

  submit(sq: Uint32Array, head: number, tail: number): number {
    const ring = this.ring;
    const mask = sq.length / Req.words - 1;
    const wanted = (tail - head) | 0;
    const count = wanted < ring.slotsFree ? wanted : ring.slotsFree;
    this.writer.stamp();
    for (let i = 0; i < count; i++) this.note(sq, ((head + i) & mask) * Req.words);
    ring.flush();
    return count;
  }

  poll(cq: Uint32Array, max: number): number {
    const ring = this.ring;
    ring.flush();
    if (ring.inFlight === 0) return 0;
    const done = ring.driver.poll(cq, max);
    ring.inFlight -= done;
    if (done === 0) return 0;
    this.writer.stamp();
    for (let i = 0; i < done; i++) this.noteDone(cq, i * Cpl.words);
    return done;
  }

  arm(): void {
    this.ring.driver.arm();
  }

  eventFd(): number {
    return this.ring.driver.eventFd();
  }

  release(resultLo: number, resultHi: number): boolean {
    return this.ring.driver.release(resultLo, resultHi);
  }

  /** Records that back-pressure keeps here go down as the caller polls. */
  drain(): Promise<void> {
    this.ring.flush();
    return this.ring.driver.drain();
  }

  async close(): Promise<void> {
    await this.ring.driver.close();
    this.device.forget(this);
  }

  private note(sq: Uint32Array, from: number): void {
    const slot = this.ring.take(sq[from + Req.tag]!);
    const at = slot * Req.words;
    const records = this.records;
    for (let w = 0; w < Req.words; w++) records[at + w] = sq[from + w]!;
    this.serials[slot] = this.device.serial++;
    this.submittedNs[slot] = this.writer.nowNs;
    this.ring.push(sq, from, slot);
    const place = this.writer.next(TraceKind.SUBMIT | (this.queue << 8));
    if (place < 0) return;
    this.describe(place, slot);
    this.writer.words[place + Trace.status] = records[at + Req.aux]!;
  }

  private noteDone(cq: Uint32Array, c: number): void {
    const slot = cq[c + Cpl.tag]!;
    const place = this.writer.next(TraceKind.COMPLETE | (this.queue << 8));
    if (place >= 0) {
      const words = this.writer.words;
      const latencyNs = this.writer.nowNs - this.submittedNs[slot]!;
      this.describe(place, slot);
      words[place + Trace.status] = cq[c + Cpl.status]!;
      words[place + Trace.latencyLo] = latencyNs >>> 0;
      words[place + Trace.latencyHi] = Math.floor(latencyNs / TWO_32);
      words[place + Trace.resultLo] = cq[c + Cpl.resultLo]!;
      words[place + Trace.resultHi] = cq[c + Cpl.resultHi]!;
    }
    cq[c + Cpl.tag] = this.ring.tags[slot]!;
    this.ring.give(slot);
  }

  private describe(place: number, slot: number): void {
    const words = this.writer.words;
    const records = this.records;
    const at = slot * Req.words;
    words[place + Trace.serial] = this.serials[slot]!;
    words[place + Trace.op] = records[at + Req.op]!;
    words[place + Trace.tag] = records[at + Req.tag]!;
    words[place + Trace.blocks] = records[at + Req.blocks]!;
    words[place + Trace.lbaLo] = records[at + Req.lbaLo]!;
    words[place + Trace.lbaHi] = records[at + Req.lbaHi]!;
    words[place + Trace.addressLo] = records[at + Req.addressLo]!;
    words[place + Trace.addressHi] = records[at + Req.addressHi]!;
  }
}

export class TraceDevice implements Backend {
  readonly inner: Backend;
  readonly writer: TraceWriter;
  /** Number of the next operation, over all queues. */
  serial = 0;
  private readonly queues: TraceQueue[] = [];
  private queuesOpened = 0;

  constructor(inner: Backend, file: string) {
    this.inner = inner;
    this.writer = new TraceWriter(file, inner.uri, inner.info);
  }

  get uri(): string {
    return this.inner.uri;
  }

  get scheme(): string {
    return this.inner.scheme;
  }

  get info(): DeviceInfo {
    return this.inner.info;
  }

  get memoryKind(): 'private' | 'device' {
    return this.inner.memoryKind ?? 'private';
  }

  get memory(): Memory | undefined {
    return this.inner.memory;
  }

  set onChange(listener: ((info: DeviceInfo) => void) | null) {
    this.inner.onChange = listener;
  }

  openQueue(options: QueueOptions): QueueDriver {
    const driver = this.inner.openQueue(options);
    const queue = new TraceQueue(this, driver, options.depth, this.queuesOpened++);
    this.queues.push(queue);
    return queue;
  }

  forget(queue: TraceQueue): void {
    const at = this.queues.indexOf(queue);
    if (at >= 0) this.queues.splice(at, 1);
  }

  share(): unknown {
    return this.inner.share();
  }

  explainDetail(code: number, detail: number): string {
    return this.inner.explainDetail(code, detail);
  }

  claim(): void {
    this.inner.claim?.();
  }

  async refresh(): Promise<void> {
    await this.inner.refresh?.();
  }

  /** Closes the device first: a trace that failed must not keep it open. */
  async close(): Promise<void> {
    try {
      for (const queue of [...this.queues]) await queue.close();
      await this.inner.close();
    } finally {
      await this.writer.close();
    }
  }
}
