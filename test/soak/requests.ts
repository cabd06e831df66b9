// Requests: hostile records through queues of every driver, split and not.
//
// What must hold: each granted record completes exactly once, with its tag; nothing crashes, hangs
// or
// throws; a READ that was refused touches nothing, one that was not touches its buffer alone;
// loans are
// released once; the pools end as they began. Addresses lie in an arena with dead ranges on both
// sides
// (closed segments whose views are kept, so that their addresses stay unused): a record can do harm
// there and nowhere else, and the arena is compared with what it held before.

import { join } from 'node:path';
import { BlockDevice, Flag, Op, Sg, Status } from '../../lib/hpdi/index.js';
import type { Queue } from '../../lib/hpdi/index.js';
import { addressSpace, defaultMemory, GRANULE_BYTES } from '../../lib/memory/index.js';
import type { DmaBuffer, Segment } from '../../lib/memory/index.js';
import { open } from '../../lib/open.js';
import { completionAt, put } from '../support/requests.js';
import { check, Random, scratchFolder, within, type Soak, type SoakRun } from './harness.js';

const DATA_BYTES = GRANULE_BYTES;
const LIST_ENTRIES = 64;
const HELD_LOANS_MAX = 16;
const TWO_32 = 2 ** 32;
const HUGE = 'ram:64TiB?sparse=1';

/** Statuses that say the device did not begin. */
const REFUSED: ReadonlySet<number> = new Set([
  Status.BAD_ADDRESS,
  Status.BAD_RANGE,
  Status.BAD_REQUEST,
  Status.UNSUPPORTED,
  Status.TOO_LARGE,
  Status.MISALIGNED,
  Status.READ_ONLY,
]);

interface Flight {
  op: number;
  /** Ranges of the arena that a device may write. */
  ranges: { address: number; bytes: number }[];
  given: DmaBuffer | null;
  gives: boolean;
}

interface Target {
  device: BlockDevice;
  queue: Queue;
  label: string;
  flights: Map<number, Flight>;
  loans: { lo: number; hi: number }[];
}

/** Address space that is used by nobody and never will be while this run lasts. */
function deadRange(bytes: number): Segment {
  const segment = addressSpace().create(bytes, { pageBytes: 4096 });
  segment.close();
  return segment;
}

class RequestsRun implements SoakRun {
  private readonly random: Random;
  private readonly scratch = scratchFolder();
  private readonly before: Segment;
  private readonly data: Segment;
  private readonly between: Segment;
  private readonly lists: Segment;
  private readonly after: Segment;
  private readonly pristine: Buffer;
  private readonly targets: Target[] = [];
  private readonly devices: BlockDevice[] = [];
  private takenBefore = 0;
  private nextTag = 0;

  constructor(random: Random) {
    this.random = random;
    this.before = deadRange(64 * 2 ** 20);
    this.data = addressSpace().create(DATA_BYTES, { pageBytes: 4096 });
    this.between = deadRange(2 ** 31 - GRANULE_BYTES);
    this.lists = addressSpace().create(GRANULE_BYTES, { pageBytes: 4096 });
    this.after = deadRange(2 ** 31 - GRANULE_BYTES);
    // No byte below 0x80 but zeros: what is read as an address is never one.
    for (let i = 0; i < DATA_BYTES; i++) this.data.u8[i] = 0x80 | (i * 31) | (i >>> 9);
    this.pristine = Buffer.from(this.data.u8);
  }

  async open(): Promise<void> {
    this.takenBefore = defaultMemory().taken;
    const file = join(this.scratch, 'data');
    const fault = 'fault.errors=0.05&fault.reorder=0.2&fault.seed=7';
    const uris = [
      'null:8MiB',
      'ram:4MiB',
      'ram:8MiB?sparse=1',
      HUGE,
      `file:${file}?create=4MiB`,
      `file:${file}?direct=1`,
      `file:${file}?readonly=1`,
      `ram:2MiB?${fault}&fault.torn=0.1`,
      `ram:2MiB?${fault}&fault.cache=64KiB`,
      `file:${file}?${fault}`,
    ];
    for (const uri of uris) {
      const device = await open(uri);
      this.devices.push(device);
      // The adapter would do a COPY of terabytes, piece by piece, as it was told.
      for (const split of uri === HUGE ? [false] : [true, false]) {
        for (const depth of [1, 8, 64]) {
          this.targets.push({
            device,
            queue: device.queue({ depth, split }),
            label: `${uri} depth ${depth} split ${split}`,
            flights: new Map(),
            loans: [],
          });
        }
      }
    }
  }

  async round(): Promise<number> {
    const target = this.random.pick(this.targets);
    let records = 0;
    try {
      const batches = this.random.between(1, 6);
      for (let i = 0; i < batches; i++) {
        records += this.fill(target);
        target.queue.submit();
        if (this.random.chance(0.5))
          this.take(target, target.queue.poll(this.random.between(1, 9)));
      }
      await within(20_000, 'records in flight', this.settle(target));
      this.compare();
    } catch (cause) {
      throw new Error(target.label, { cause });
    }
    return records;
  }

  async finish(): Promise<void> {
    for (const target of this.targets) await target.queue.close();
    for (const device of this.devices) await device.close();
    check(
      this.before.u8.every((byte) => byte === 0),
      'a closed segment was written to',
    );
    for (const dead of [this.between, this.after]) {
      const edge = dead.bytes - GRANULE_BYTES;
      for (const at of [0, edge]) {
        const part = dead.u8.subarray(at, at + GRANULE_BYTES);
        check(
          part.every((byte) => byte === 0),
          'a closed segment was written to',
        );
      }
    }
    check(defaultMemory().taken === this.takenBefore, 'buffers are missing from the pools');
  }

  /** Fills granted records with what nobody should send, or just as it should be. */
  private fill(target: Target): number {
    const wanted = this.random.between(1, 16);
    let granted = 0;
    for (; granted < wanted; granted++) {
      const request = this.request(target);
      if (!put(target.queue, request)) {
        request.flight.given?.free();
        break;
      }
      target.flights.set(request.tag, request.flight);
    }
    return granted;
  }

  private request(target: Target): {
    op: number;
    flags: number;
    segments: number;
    tag: number;
    blocks: number;
    lbaWords: [number, number];
    address: number;
    flight: Flight;
  } {
    const { random } = this;
    const { info } = target.device;
    const { blockSize } = info;
    this.nextTag = (this.nextTag + 1) & 0x3fffffff;
    // Bit 31 is the stack's, the rest is the caller's.
    const tag = random.chance(0.5) ? this.nextTag : this.nextTag | 0x40000000;
    let op = random.chance(0.8) ? random.between(0, 11) : random.below(256);
    let flags = 0;
    if (random.chance(0.3)) flags = random.pick([Flag.FUA, Flag.SG, Flag.META, Flag.GIVE]);
    if (random.chance(0.05)) flags = (random.u32() & Flag.mask) >>> 0;
    let blocks = this.blocks(info.blocks, target.device.nativeInfo.maxTransferBlocks);
    let given: DmaBuffer | null = null;
    let segments = random.chance(0.9) ? 0 : random.below(0x10000);
    let address = this.address(blocks * blockSize);
    const ranges = [{ address, bytes: blocks * blockSize }];
    if ((flags & Flag.SG) !== 0) {
      ranges.length = 0;
      ({ address, segments } = this.list(blocks * blockSize, ranges, segments));
    } else if ((flags & Flag.GIVE) !== 0 && random.chance(0.5)) {
      given = defaultMemory().alloc(blockSize * random.between(1, 4));
      address = given.address;
      blocks = given.bytes / blockSize;
      op = random.pick([Op.READ, Op.WRITE, Op.COMPARE]);
      ranges.length = 0;
    }
    if (op !== Op.READ) ranges.length = 0;
    const lbaWords = this.lba(info.blocks, blocks);
    const gives = (flags & Flag.GIVE) !== 0;
    const flight = { op, ranges, given, gives };
    return { op, flags, segments, tag, blocks, lbaWords, address, flight };
  }

  private blocks(capacity: number, most: number): number {
    const { random } = this;
    const kind = random.below(20);
    if (kind < 12) return random.between(1, 16);
    if (kind < 15) return random.between(1, 600);
    const edges = [0, capacity - 1, capacity, capacity + 1, most, most + 1, 2 ** 31, TWO_32 - 1];
    if (kind < 18) return random.pick(edges) % TWO_32;
    return random.u32() >>> random.below(32);
  }

  private lba(capacity: number, blocks: number): [number, number] {
    const { random } = this;
    const kind = random.below(10);
    let lba = random.below(Math.min(capacity, 4096));
    if (kind === 6) lba = Math.max(0, capacity - blocks);
    if (kind === 7) lba = Math.max(0, capacity - random.below(4));
    if (kind === 8) lba = random.pick([capacity, TWO_32 - 1, TWO_32, 2 ** 52, 2 ** 53]);
    if (kind === 9) return [random.u32(), random.u32() >>> random.below(32)];
    return [lba >>> 0, Math.floor(lba / TWO_32)];
  }

  /** An address for `bytes`, seldom a good one; never one that belongs to somebody else. */
  private address(bytes: number): number {
    const { random, data } = this;
    const kind = random.below(16);
    const room = Math.max(1, DATA_BYTES - bytes);
    if (kind < 9) return data.address + (random.below(room) & ~(random.chance(0.5) ? 511 : 4095));
    if (kind < 11) return data.address + random.below(room);
    if (kind === 11) return data.address + DATA_BYTES - random.below(8192);
    if (kind === 12) return data.address - random.below(8192);
    if (kind === 13) return 0;
    if (kind === 14) return random.pick([this.before, this.between, this.after]).address;
    const any = random.u32() + (random.u32() >>> random.below(32)) * TWO_32;
    return this.harmless(any) ? any : 0;
  }

  /** Whether no live segment but the data's could be meant. */
  private harmless(address: number): boolean {
    const domain = Math.floor(address / 2 ** 36);
    return domain !== addressSpace().domain;
  }

  /** Writes a scatter list somewhere in the lists' segment: right, nearly right, or senseless. */
  private list(
    bytes: number,
    ranges: { address: number; bytes: number }[],
    segments: number,
  ): { address: number; segments: number } {
    const { random, lists } = this;
    const entries = random.between(1, LIST_ENTRIES);
    // Each list in flight has a place of its own: it stays untouched until completion.
    const place = (this.nextTag % 1024) * LIST_ENTRIES * Sg.words;
    let left = bytes;
    let count = 0;
    for (; count < entries && left > 0; count++) {
      const last = count === entries - 1;
      const part = random.chance(0.5) ? 512 : random.between(1, 8192);
      let length = last || part > left ? left : part;
      if (random.chance(0.02)) length = random.pick([0, random.u32()]);
      const address = this.address(Math.min(length, DATA_BYTES));
      const w = place + count * Sg.words;
      lists.u32[w + Sg.addressLo] = address >>> 0;
      lists.u32[w + Sg.addressHi] = Math.floor(address / TWO_32);
      lists.u32[w + Sg.bytes] = length;
      lists.u32[w + 3] = random.chance(0.1) ? random.u32() : 0;
      ranges.push({ address, bytes: length });
      left -= length;
    }
    // Entries past the list are those of an older one, or the segment ends: both are in the arena.
    if (segments > count) {
      ranges.push({ address: this.data.address, bytes: DATA_BYTES });
    } else {
      segments = random.chance(0.9) ? count : random.between(0, count);
    }
    const shift = random.chance(0.95) ? 0 : random.between(1, 64);
    if (shift > 0) ranges.push({ address: this.data.address, bytes: DATA_BYTES });
    return { address: lists.address + place * 4 + shift, segments };
  }

  private async settle(target: Target): Promise<void> {
    const { queue, flights } = target;
    while (flights.size > 0) {
      if (queue.head !== queue.tail) queue.submit();
      const way = this.random.below(3);
      if (way === 0) this.take(target, queue.poll(this.random.between(1, 64)));
      else if (way === 1) this.take(target, queue.park(1000));
      else this.take(target, await queue.wait(1000));
    }
    check(queue.poll(queue.depth) === 0, 'a completion of no record');
    check(queue.inFlight === 0, `${queue.inFlight} records are in flight after the last`);
    this.releaseLoans(target, target.loans.length);
  }

  private take(target: Target, count: number): void {
    for (let i = 0; i < count; i++) {
      const done = completionAt(target.queue, i);
      const flight = target.flights.get(done.tag);
      check(flight !== undefined, `tag ${done.tag} completed twice, or was never sent`);
      target.flights.delete(done.tag);
      check(done.code <= Status.DEVICE_ERROR, `tag ${done.tag}: unknown status ${done.status}`);
      // What was given counts as the device's, whatever becomes of the request.
      if (REFUSED.has(done.code) && !flight.gives) flight.ranges.length = 0;
      for (const range of flight.ranges) this.touched(range.address, range.bytes);
      if (flight.op === Op.READ_LOAN && done.status === 0) {
        target.loans.push({ lo: done.resultLo, hi: done.resultHi });
      }
      // A buffer that was refused as given stays with its giver.
      if (flight.given !== null && !flight.given.freed) flight.given.free();
    }
    if (target.loans.length > HELD_LOANS_MAX) this.releaseLoans(target, 8);
    const { random } = this;
    if (random.chance(0.1)) {
      check(!target.queue.release(random.u32(), random.u32()), 'a loan that nobody has came back');
    }
  }

  private releaseLoans(target: Target, count: number): void {
    for (let i = 0; i < count; i++) {
      const [loan] = target.loans.splice(this.random.below(target.loans.length), 1);
      check(target.queue.release(loan!.lo, loan!.hi), 'a loan that is out was not taken back');
      check(!target.queue.release(loan!.lo, loan!.hi), 'a loan was taken back twice');
    }
  }

  /** A device may have written here: puts back what was there. */
  private touched(address: number, bytes: number): void {
    const from = Math.max(0, address - this.data.address);
    const to = Math.min(DATA_BYTES, address + bytes - this.data.address);
    if (from < to) this.data.u8.set(this.pristine.subarray(from, to), from);
  }

  private compare(): void {
    if (this.pristine.equals(this.data.u8)) return;
    const at = this.data.u8.findIndex((byte, i) => byte !== this.pristine[i]);
    throw new Error(`byte ${at} of the arena was written to, in no record's buffer`);
  }
}

export const requestsSoak: Soak = {
  full: 1_000_000,
  unit: 'records',
  async start(random) {
    const run = new RequestsRun(random);
    await run.open();
    return run;
  },
};
