// Issues a trace's operations again, on any block device, at their times or as fast as possible.
//
// What a trace does not hold is the data: writes write a pattern, compares are reads. Plain
// buffers stand in for SG lists and given buffers. Order of submission is kept; operations in
// flight are as unordered as they were.

import { Cpl, Flag, Op, type Queue, Req, Status } from '../../hpdi/index.js';
import type { DmaBuffer } from '../../memory/index.js';
import { readTrace, type TraceRecord } from './reader.js';

const TWO_32 = 2 ** 32;

/** What replay needs of a block device (HPDI's BlockDevice is one). */
export interface ReplayTarget {
  readonly info: {
    readonly blockSize: number;
    readonly blocks: number;
    readonly operations: number;
    readonly flags: number;
  };
  readonly memory: { alloc(bytes: number): DmaBuffer };
  queue(options: { depth: number }): Queue;
}

export interface ReplayOptions {
  /** Issue at the trace's times; otherwise as fast as the queue takes them (default). */
  timed?: boolean;
  /** Operations in flight at most (default 128). */
  depth?: number;
}

export interface LatencyStatistics {
  meanNs: number;
  maxNs: number;
}

export interface ReplayStatistics {
  /** Operations issued and completed; `skipped` could not be issued here. */
  operations: number;
  skipped: number;
  errors: number;
  /** Status of the first failure, 0 without one. */
  firstError: number;
  bytesRead: number;
  bytesWritten: number;
  seconds: number;
  /** Timed replay: how late the latest submission was. */
  lateMaxNs: number;
  replayed: LatencyStatistics;
  traced: LatencyStatistics;
  /** Records that the trace itself says are missing. */
  lost: number;
}

class Mean {
  count = 0;
  sum = 0;
  max = 0;

  add(value: number): void {
    this.count++;
    this.sum += value;
    if (value > this.max) this.max = value;
  }

  get statistics(): LatencyStatistics {
    return { meanNs: this.count === 0 ? 0 : this.sum / this.count, maxNs: this.max };
  }
}

/** Replays `file` on `device`; the device's contents are overwritten where the trace wrote. */
export async function replayTrace(
  file: string,
  device: ReplayTarget,
  options: ReplayOptions = {},
): Promise<ReplayStatistics> {
  await using reader = await readTrace(file);
  await using queue = device.queue({ depth: options.depth ?? 128 });
  const replay = new Replay(device, queue, reader.header.info.blockSize);
  try {
    for await (const record of reader) {
      if (record.kind === 'lost') replay.lost += record.lost;
      else if (record.kind === 'complete') replay.traced.add(record.latencyNs);
      else await replay.issue(record, options.timed === true);
    }
    while (replay.inFlight > 0) replay.collect(await queue.wait());
    return replay.statistics();
  } finally {
    await queue.drain();
    replay.free();
  }
}

class Replay {
  readonly traced = new Mean();
  inFlight = 0;
  lost = 0;
  private readonly device: ReplayTarget;
  private readonly queue: Queue;
  /** Blocks of this device that one block of the traced device makes. */
  private readonly scale: number;
  private readonly buffers: (DmaBuffer | undefined)[];
  private readonly submittedNs: Float64Array;
  private readonly freeSlots: number[] = [];
  private readonly replayed = new Mean();
  private readonly ops: Uint8Array;
  private readonly sizes: Float64Array;
  private startMs = 0;
  private skipped = 0;
  private errors = 0;
  private firstError = 0;
  private bytesRead = 0;
  private bytesWritten = 0;
  private lateMaxNs = 0;

  constructor(device: ReplayTarget, queue: Queue, tracedBlockSize: number) {
    this.device = device;
    this.queue = queue;
    this.scale = tracedBlockSize / device.info.blockSize;
    this.buffers = new Array<DmaBuffer | undefined>(queue.depth).fill(undefined);
    this.submittedNs = new Float64Array(queue.depth);
    this.ops = new Uint8Array(queue.depth);
    this.sizes = new Float64Array(queue.depth);
    for (let slot = queue.depth - 1; slot >= 0; slot--) this.freeSlots.push(slot);
  }

  async issue(record: TraceRecord, timed: boolean): Promise<void> {
    if (this.startMs === 0) this.startMs = performance.now() - record.timeNs / 1e6;
    if (!this.possible(record)) {
      this.skipped++;
      return;
    }
    if (timed) await this.waitUntil(record.timeNs);
    const at = this.queue.tail;
    while (this.queue.reserve(1) === 0) this.collect(await this.queue.wait());
    const slot = this.freeSlots.pop()!;
    this.fill((at & this.queue.mask) * Req.words, record, slot);
    this.submittedNs[slot] = performance.now() * 1e6;
    this.inFlight++;
    this.queue.submit();
    this.collect(this.queue.poll(this.queue.depth));
  }

  collect(done: number): void {
    const nowNs = performance.now() * 1e6;
    const { cq } = this.queue;
    for (let i = 0; i < done; i++) {
      const c = i * Cpl.words;
      const slot = cq[c + Cpl.tag]!;
      const status = cq[c + Cpl.status]!;
      const op = this.ops[slot]!;
      this.replayed.add(nowNs - this.submittedNs[slot]!);
      if (status !== Status.OK) {
        this.errors++;
        if (this.firstError === 0) this.firstError = status;
      } else if (op === Op.READ_LOAN) {
        this.queue.release(cq[c + Cpl.resultLo]!, cq[c + Cpl.resultHi]!);
      }
      if (op === Op.READ || op === Op.READ_LOAN) this.bytesRead += this.sizes[slot]!;
      else this.bytesWritten += this.sizes[slot]!;
      this.freeSlots.push(slot);
      this.inFlight--;
    }
  }

  statistics(): ReplayStatistics {
    return {
      operations: this.replayed.count,
      skipped: this.skipped,
      errors: this.errors,
      firstError: this.firstError,
      bytesRead: this.bytesRead,
      bytesWritten: this.bytesWritten,
      seconds: this.startMs === 0 ? 0 : (performance.now() - this.startMs) / 1e3,
      lateMaxNs: this.lateMaxNs,
      replayed: this.replayed.statistics,
      traced: this.traced.statistics,
      lost: this.lost,
    };
  }

  free(): void {
    for (const buffer of this.buffers) buffer?.free();
  }

  /**
   * RAW and ZONE_APPEND need the very same device.
   */
  private possible(record: TraceRecord): boolean {
    const { info } = this.device;
    const { op } = record;
    if (op === Op.FLUSH) return (info.operations & (1 << op)) !== 0;
    if (op < Op.READ || op > Op.COPY) return false;
    if ((info.operations & (1 << op)) === 0) return false;
    const blocks = record.blocks * this.scale;
    if (!Number.isInteger(blocks) || !Number.isInteger(record.lba * this.scale)) return false;
    if (op === Op.COPY && (record.address + record.blocks) * this.scale > info.blocks) return false;
    return blocks > 0 && record.lba * this.scale + blocks <= info.blocks;
  }

  private fill(r: number, record: TraceRecord, slot: number): void {
    const { sq } = this.queue;
    // The trace does not hold what was compared.
    const op = record.op === Op.COMPARE ? Op.READ : record.op;
    const transfers = op === Op.READ || op === Op.WRITE;
    const blocks = op === Op.FLUSH ? 0 : record.blocks * this.scale;
    const bytes = blocks * this.device.info.blockSize;
    const lba = op === Op.FLUSH ? 0 : record.lba * this.scale;
    const target = transfers
      ? this.bufferOf(slot, bytes).address
      : op === Op.COPY
        ? record.address * this.scale
        : 0;
    this.ops[slot] = op;
    this.sizes[slot] = transfers || op === Op.READ_LOAN ? bytes : 0;
    sq[r + Req.op] = op | (record.flags & this.device.info.flags & Flag.FUA);
    sq[r + Req.tag] = slot;
    sq[r + Req.blocks] = blocks;
    sq[r + Req.aux] = 0;
    sq[r + Req.lbaLo] = lba >>> 0;
    sq[r + Req.lbaHi] = Math.floor(lba / TWO_32);
    sq[r + Req.addressLo] = target >>> 0;
    sq[r + Req.addressHi] = Math.floor(target / TWO_32);
  }

  private bufferOf(slot: number, bytes: number): DmaBuffer {
    const known = this.buffers[slot];
    if (known !== undefined && known.bytes >= bytes) return known;
    known?.free();
    const buffer = this.device.memory.alloc(bytes);
    buffer.u8.fill(0x5a);
    this.buffers[slot] = buffer;
    return buffer;
  }

  private async waitUntil(timeNs: number): Promise<void> {
    const dueMs = this.startMs + timeNs / 1e6;
    for (let left = dueMs - performance.now(); left > 0; left = dueMs - performance.now()) {
      if (this.inFlight > 0) this.collect(await this.queue.wait(left));
      else if (left > 1) await new Promise((resolve) => setTimeout(resolve, left - 0.5));
    }
    const lateNs = (performance.now() - dueMs) * 1e6;
    if (lateNs > this.lateMaxNs) this.lateMaxNs = lateNs;
  }
}
