// The wrapped device under faults: what its queues share, and the handle that tests cut it by.
//
// Invariants: `info` follows the wrapped device's and differs only where a fault changes it;
// with a write cache no other environment attaches (it would not see the cache); memory that the
// wrapper holds is given back when the device is closed.

import { PenstockError } from '../../errors.js';
import {
  type Backend,
  type DeviceInfo,
  Flag,
  Op,
  type QueueDriver,
  type QueueOptions,
  Req,
  Sg,
} from '../../hpdi/index.js';
import { addressSpace, returnHome, type Memory } from '../../memory/index.js';
import { AccessMap, Copies, Pieces } from './copies.js';
import type { FaultOptions } from './options.js';
import { FaultQueue } from './queue.js';
import { Random } from './random.js';
import { WriteCache } from './write-cache.js';

const TWO_32 = 2 ** 32;
/** SG lists of torn writes that may be in flight at once, and the entries each may have. */
const LISTS = 16;
const LIST_ENTRIES = 256;
const LIST_BYTES = LIST_ENTRIES * Sg.words * 4;
/** The list of the operation being looked at: as many entries as a record can say. */
const PIECES_BYTES = 0x1_0000 * Sg.words * 4;
const CUT_STREAM = 0xffff;

/** What happened so far; plain numbers that tests and reports read. */
export interface FaultCounters {
  operations: number;
  /** Operations of `errorOps`. */
  fallible: number;
  errors: number;
  delayed: number;
  dropped: number;
  torn: number;
  stuck: number;
  cuts: number;
  /** Blocks that stood unflushed in the cache and were lost by cuts. */
  lostBlocks: number;
  /** GIVEn addresses that no pool knew. */
  badGives: number;
}

/** Reaches into a device under faults. */
export interface FaultControl {
  readonly counters: Readonly<FaultCounters>;
  /** Blocks in the cache that no flush has covered. */
  readonly dirtyBlocks: number;
  readonly isGone: boolean;
  /**
   * Cuts the power: of the unflushed blocks in the cache each survives with the probability
   * `survive` (default 0), then every operation completes with DEVICE_GONE. Resolves when
   * nothing of this device is in flight below any more.
   */
  cut(options?: { survive?: number }): Promise<void>;
  /**
   * Power is back: the device serves again, with an empty cache. `gone` does not strike again.
   */
  heal(): void;
}

export class FaultDevice implements Backend, FaultControl {
  readonly options: FaultOptions;
  readonly copies = new Copies();
  readonly pieces: Pieces;
  readonly cache: WriteCache | null;
  readonly counters: FaultCounters = {
    operations: 0,
    fallible: 0,
    errors: 0,
    delayed: 0,
    dropped: 0,
    torn: 0,
    stuck: 0,
    cuts: 0,
    lostBlocks: 0,
    badGives: 0,
  };
  isGone = false;
  readonly inner: Backend;
  private readonly access = new AccessMap();
  private readonly ours: { readonly address: number; readonly u32: Uint32Array };
  private readonly freeOurs: () => void;
  private readonly listWords: Uint32Array[] = [];
  private readonly freeLists = new Uint32Array(LISTS);
  private freeListCount = 0;
  private readonly queues: FaultQueue[] = [];
  private queuesOpened = 0;
  private goneAfter: number;
  private readonly cutDraws: Random;
  private seenInfo: DeviceInfo | null = null;
  private shownInfo: DeviceInfo | null = null;

  constructor(inner: Backend, options: FaultOptions) {
    this.inner = inner;
    this.options = options;
    this.goneAfter = options.goneAfter;
    this.cutDraws = new Random(options.seed, CUT_STREAM);
    const ours = PIECES_BYTES + LISTS * LIST_BYTES;
    const bytes = ours + options.cacheBytes;
    if (inner.memory === undefined) {
      const segment = addressSpace().create(bytes, { kind: this.memoryKind });
      this.ours = segment;
      this.freeOurs = () => segment.close();
    } else {
      const buffer = inner.memory.alloc(bytes);
      buffer.u8.fill(0);
      this.ours = buffer;
      this.freeOurs = () => buffer.free();
    }
    const { address, u32 } = this.ours;
    this.pieces = new Pieces(this.copies, address, u32.subarray(0, PIECES_BYTES / 4));
    for (let list = 0; list < LISTS; list++) {
      const word = (PIECES_BYTES + list * LIST_BYTES) / 4;
      this.listWords.push(u32.subarray(word, word + LIST_BYTES / 4));
      this.freeLists[this.freeListCount++] = list + 1;
    }
    this.cache =
      options.cacheBytes > 0
        ? new WriteCache(inner, this.copies, address + ours, options.cacheBytes)
        : null;
  }

  get uri(): string {
    return this.inner.uri;
  }

  get scheme(): string {
    return this.inner.scheme;
  }

  get info(): DeviceInfo {
    const inner = this.inner.info;
    if (this.shownInfo === null || this.seenInfo !== inner) {
      this.seenInfo = inner;
      this.shownInfo = this.describe(inner);
    }
    return this.shownInfo;
  }

  get memoryKind(): 'private' | 'device' {
    return this.inner.memoryKind ?? 'private';
  }

  get memory(): Memory | undefined {
    return this.inner.memory;
  }

  set onChange(listener: ((info: DeviceInfo) => void) | null) {
    this.inner.onChange = listener === null ? null : () => listener(this.info);
  }

  get dirtyBlocks(): number {
    return this.cache?.dirtyLines ?? 0;
  }

  openQueue(options: QueueOptions): QueueDriver {
    const driver = this.inner.openQueue(options);
    const queue = new FaultQueue(this, driver, options.depth, this.queuesOpened++);
    this.queues.push(queue);
    this.cache?.clients.push(queue);
    return queue;
  }

  share(): unknown {
    if (this.cache !== null) {
      throw new PenstockError(
        'NOT_SHAREABLE',
        'a device with fault.cache cannot be attached to from another worker',
        { hint: 'The cache belongs to the thread that opened the device: use one thread.' },
      );
    }
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

  /** An orderly end: what the cache holds reaches the device. */
  async close(): Promise<void> {
    try {
      for (const queue of [...this.queues]) await queue.close();
      await this.cache?.close(!this.isGone);
    } finally {
      await this.inner.close();
      this.freeOurs();
    }
  }

  async cut(options: { survive?: number } = {}): Promise<void> {
    this.strike();
    this.counters.cuts++;
    for (const queue of this.queues) await queue.quiesce();
    if (this.cache === null) return;
    const survive = (options.survive ?? 0) * 2 ** 32;
    this.counters.lostBlocks += await this.cache.cut(this.cutDraws, survive);
  }

  heal(): void {
    this.goneAfter = Infinity;
    this.isGone = false;
  }

  /** Counts one operation; true when the device is gone for it. */
  countOperation(): boolean {
    if (!this.isGone && this.counters.operations >= this.goneAfter) this.strike();
    this.counters.operations++;
    return this.isGone;
  }

  /** Counts one operation that may fail; true when it is its turn to. */
  countFallible(): boolean {
    const number = ++this.counters.fallible;
    return number >= this.options.errorFirst && number <= this.options.errorLast;
  }

  forget(queue: FaultQueue): void {
    const at = this.queues.indexOf(queue);
    if (at >= 0) this.queues.splice(at, 1);
    const client = this.cache?.clients.indexOf(queue) ?? -1;
    if (client >= 0) this.cache!.clients.splice(client, 1);
  }

  lbaOf(records: Uint32Array, at: number): number {
    return records[at + Req.lbaHi]! * TWO_32 + records[at + Req.lbaLo]!;
  }

  /** Loads the buffer of the record at word `at`; false when its SG list cannot be read. */
  loadPieces(records: Uint32Array, at: number): boolean {
    const address = records[at + Req.addressHi]! * TWO_32 + records[at + Req.addressLo]!;
    const op = records[at + Req.op]!;
    if ((op & Flag.SG) !== 0) return this.pieces.loadList(this.access, address, op >>> 16);
    this.pieces.loadPlain(address, records[at + Req.blocks]! * this.info.blockSize);
    return true;
  }

  /** Whether the device would take this READ or WRITE; what it would refuse is left to it. */
  checkTransfer(records: Uint32Array, at: number, intoMemory: boolean): boolean {
    const info = this.info;
    const op = records[at + Req.op]! & 0xff;
    if (op !== Op.READ && op !== Op.WRITE) return true;
    const blocks = records[at + Req.blocks]!;
    const lba = this.lbaOf(records, at);
    if (blocks < 1 || blocks > info.maxTransferBlocks || lba + blocks > info.blocks) return false;
    if (this.strange(records, at) || (info.readOnly && !intoMemory)) return false;
    const segments = (records[at + Req.op]! & Flag.SG) !== 0 ? records[at + Req.op]! >>> 16 : 1;
    if (segments > Math.max(1, info.maxSegments) || !this.loadPieces(records, at)) return false;
    const { addressAlign, segmentAlign, blockSize } = info;
    const bytes = blocks * blockSize;
    return this.pieces.fit(this.access, bytes, intoMemory, addressAlign, segmentAlign);
  }

  /** Flags that the device does not have, or that the faults do not know how to honour. */
  strange(records: Uint32Array, at: number): boolean {
    const flags = records[at + Req.op]! & Flag.mask;
    return (flags & ~this.info.flags) !== 0 || (flags & Flag.META) !== 0;
  }

  /** Metadata would pass by the cache. */
  withMetadata(records: Uint32Array, at: number): boolean {
    return (records[at + Req.op]! & Flag.META & this.info.flags) !== 0;
  }

  /**
   * Makes a record's SG list end after `blocks` blocks, in memory of ours. Returns the list's
   * number for freeList, 0 when the buffer is no list, -1 when there is no room or the buffers
   * are GIVEn.
   */
  cutList(records: Uint32Array, at: number, blocks: number): number {
    const op = records[at + Req.op]!;
    if ((op & Flag.SG) === 0) return 0;
    // A given list must reach the device whole, or the buffers past the cut would stay away.
    if ((op & Flag.GIVE) !== 0 || this.freeListCount === 0) return -1;
    const list = this.freeLists[this.freeListCount - 1]!;
    const offset = PIECES_BYTES + (list - 1) * LIST_BYTES;
    const words = this.listWords[list - 1]!;
    const entries = this.pieces.prefix(blocks * this.info.blockSize, words);
    if (entries === 0) return -1;
    this.freeListCount--;
    const address = this.ours.address + offset;
    records[at + Req.op] = (op & 0xffff) | (entries << 16);
    records[at + Req.addressLo] = address >>> 0;
    records[at + Req.addressHi] = Math.floor(address / TWO_32);
    return list;
  }

  freeList(list: number): void {
    this.freeLists[this.freeListCount++] = list;
  }

  /** Releases the buffers of a GIVEn record that the wrapped device does not get. */
  takeGiven(records: Uint32Array, at: number): void {
    const op = records[at + Req.op]!;
    if ((op & Flag.GIVE) === 0 || !this.loadPieces(records, at)) return;
    for (let piece = 0; piece < this.pieces.count; piece++) {
      try {
        returnHome(this.pieces.addressAt(piece));
      } catch {
        this.counters.badGives++;
      }
    }
  }

  private strike(): void {
    this.isGone = true;
    for (let i = 0; i < this.queues.length; i++) this.queues[i]!.gone();
  }

  private describe(inner: DeviceInfo): DeviceInfo {
    const { options, cache } = this;
    const description = { ...inner.description, fault: `seed ${options.seed}` };
    // Comparisons are reads before they come here, which have all that befalls a read.
    const operations = inner.operations & ~(1 << Op.COMPARE);
    if (cache === null) return Object.freeze({ ...inner, operations, description });
    // Four writes of the largest size fit the cache, so that none waits for room for ever.
    const maxTransferBlocks = Math.max(1, Math.min(inner.maxTransferBlocks, cache.lines >> 2));
    return Object.freeze({
      ...inner,
      maxTransferBlocks,
      operations: operations | (1 << Op.FLUSH),
      flags: inner.flags | Flag.FUA,
      atomicBlocks: 1,
      volatileCache: true,
      description: { ...description, faultCache: options.cacheBytes },
    });
  }
}
