// What a dedup pool takes of memory when it is full: a pool of `--size` (1 TiB) is filled with
// data that occurs once, then read and overwritten at random, so that every table and cache is in
// use. Resident memory counts, all that the process has gained since before the pool was made. Then
// it is closed and opened again: how long that takes, and till the index is rebuilt; and checked.
//
// The device keeps metadata, in memory, and forgets data: what it keeps is known to the page, and
// left out of the account.

import { readFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { Random } from '../lib/bench/random.js';
import { checkPool, Pool } from '../lib/dedup/index.js';
import { plainInfo } from '../lib/drivers/plain-info.js';
import {
  BlockDevice,
  CompletionRing,
  Cpl,
  Op,
  Req,
  Status,
  type Backend,
  type DeviceInfo,
  type QueueDriver,
} from '../lib/hpdi/index.js';
import { addressSpace, type Segment } from '../lib/memory/index.js';
import { native } from '../lib/native.js';
import { parseSize } from '../lib/units.js';
import { collect } from './heap.js';
import { atMost, finish, program, progress, progressEnd, type Cell } from './report.js';

const PAGE = 4096;
const UNIT_BYTES = 2 ** 20;
const UNIT_BLOCKS = UNIT_BYTES / PAGE;
const DEPTH = 8;
/** Units of data that are used in turn. */
const UNITS = 32;
/** Operations between two turns of the event loop. */
const TURN = 2048;
const RANDOM_OPERATIONS = 2 ** 21;
const RANDOM_DEPTH = 128;
const BAR = 0.35;
const GB = 1e9;
const TIB = 2 ** 40;
const TWO_32 = 2 ** 32;
/** Of the pool's device, beside the data: metadata and what is kept for nodes. */
const ROOM = 1.03;

const ARENA_PAGES = 2 ** 18;
const LIST = 1024;
const COPY_WORDS = 8;

/** Pages of metadata, each in the next free place; data is whatever comes from its memory. */
class Pages {
  kept = 0;
  forgotten = 0;
  private readonly places: Uint32Array;
  private readonly arenas: Segment[] = [];
  private readonly data: Segment;

  constructor(pages: number, data: Segment) {
    this.data = data;
    this.places = new Uint32Array(pages).fill(0); // touched now, and not when it is measured
  }

  isData(address: number): boolean {
    const { data } = this;
    return address >= data.address && address < data.address + data.bytes;
  }

  /** Address of a page; 0: it was never written. */
  address(pbn: number, write: boolean): number {
    let place = this.places[pbn]!;
    if (place === 0) {
      if (!write) return 0;
      if (this.kept % ARENA_PAGES === 0) {
        this.arenas.push(addressSpace().create(ARENA_PAGES * PAGE, { pageBytes: PAGE }));
      }
      place = ++this.kept;
      this.places[pbn] = place;
    }
    const arena = this.arenas[Math.floor((place - 1) / ARENA_PAGES)]!;
    return arena.address + ((place - 1) % ARENA_PAGES) * PAGE;
  }

  close(): void {
    for (const arena of this.arenas) arena.close();
  }
}

class ForgetfulQueue implements QueueDriver {
  readonly counters = { doorbells: 0, polls: 0 };
  private readonly done: CompletionRing;
  private readonly list = new Uint32Array(LIST * COPY_WORDS);
  private entries = 0;

  constructor(
    private readonly pages: Pages,
    private readonly zeros: number,
    private readonly depth: number,
  ) {
    this.done = new CompletionRing(depth);
  }

  submit(sq: Uint32Array, head: number, tail: number): number {
    const mask = sq.length / Req.words - 1;
    const count = Math.min(tail - head, this.depth - this.done.length);
    for (let i = 0; i < count; i++) {
      const at = ((head + i) & mask) * Req.words;
      const op = sq[at]! & 0xff;
      if (op === Op.READ || op === Op.WRITE) this.transfer(sq, at, op === Op.WRITE);
    }
    this.execute();
    for (let i = 0; i < count; i++) {
      this.done.push(sq[((head + i) & mask) * Req.words + Req.tag]!, Status.OK, 0, 0);
    }
    return count;
  }

  private transfer(sq: Uint32Array, at: number, write: boolean): void {
    const { pages } = this;
    const memory = sq[at + Req.addressHi]! * TWO_32 + sq[at + Req.addressLo]!;
    const pbn = sq[at + Req.lbaHi]! * TWO_32 + sq[at + Req.lbaLo]!;
    const blocks = sq[at + Req.blocks]!;
    if (write && pages.isData(memory)) {
      pages.forgotten += blocks;
      return;
    }
    for (let i = 0; i < blocks; i++) {
      const there = pages.address(pbn + i, write);
      const here = memory + i * PAGE;
      if (write) this.copy(there, here);
      else this.copy(here, there === 0 ? this.zeros : there);
    }
  }

  private copy(to: number, from: number): void {
    if (this.entries === LIST) this.execute();
    const words = [to >>> 0, to / TWO_32, from >>> 0, from / TWO_32, PAGE];
    this.list.set(words, this.entries * COPY_WORDS);
    this.entries++;
  }

  private execute(): void {
    const copied = native.copyList(this.list, this.entries);
    if (copied !== this.entries) throw new Error(`${copied} of ${this.entries} pages were copied`);
    this.entries = 0;
  }

  poll(cq: Uint32Array, max: number): number {
    return this.done.drain(cq, 0, max);
  }

  arm(): void {}

  eventFd(): number {
    return -1;
  }

  release(): boolean {
    return false;
  }

  async drain(): Promise<void> {}

  async close(): Promise<void> {}
}

/** A device of so many pages that keeps what does not come from `data`. */
function forgetful(pages: Pages, info: DeviceInfo, zeros: number): BlockDevice {
  const backend: Backend = {
    uri: 'forgetful:',
    scheme: 'forgetful',
    info,
    openQueue: ({ depth }) => new ForgetfulQueue(pages, zeros, depth),
    share: () => null,
    explainDetail: () => '',
    close: async () => pages.close(),
  };
  return new BlockDevice(backend);
}

/** Bytes of the process that are in memory. */
function resident(): number {
  const kilobytes = /^VmRSS:\s+(\d+)/m.exec(readFileSync('/proc/self/status', 'utf8'))![1];
  return Number(kilobytes) * 1024;
}

interface Load {
  readonly op: number;
  readonly blocks: number;
  readonly depth: number;
  readonly operations: number;
  /** Block and address of an operation. */
  place(operation: number): number;
  address(operation: number): number;
}

/** Operations a second. The event loop turns now and then, as in an application. */
async function run(disk: BlockDevice, load: Load): Promise<number> {
  const { op, blocks, depth, operations } = load;
  const queue = disk.queue({ depth, split: false });
  const { sq, cq } = queue;
  const started = performance.now();
  for (let sent = 0, done = 0, told = 0; done < operations;) {
    const at = queue.tail;
    const count = queue.reserve(Math.min(depth, operations - sent));
    for (let i = 0; i < count; i++, sent++) {
      const r = ((at + i) & queue.mask) * Req.words;
      const lba = load.place(sent);
      const address = load.address(sent);
      sq[r] = op;
      sq[r + Req.tag] = 0;
      sq[r + Req.blocks] = blocks;
      sq[r + Req.aux] = 0;
      sq[r + Req.lbaLo] = lba >>> 0;
      sq[r + Req.lbaHi] = lba / TWO_32;
      sq[r + Req.addressLo] = address >>> 0;
      sq[r + Req.addressHi] = address / TWO_32;
    }
    queue.submit();
    let got = queue.poll(depth);
    if (got === 0) got = queue.park(1000);
    for (let i = 0; i < got; i++) {
      const status = cq[i * Cpl.words + Cpl.status]!;
      if (status !== Status.OK) throw new Error(disk.explain(status).message);
    }
    done += got;
    if (done - told < TURN) continue;
    told = done;
    progress(`${done} of ${operations} operations`);
    await new Promise((resolve) => setImmediate(resolve));
  }
  const seconds = (performance.now() - started) / 1000;
  await queue.close();
  return operations / seconds;
}

/** Opens a pool once more. (Its memory is not judged: the process has had another one before.) */
async function reopen(device: BlockDevice, taken: () => number): Promise<Record<string, Cell>> {
  progress('opening it again');
  const started = performance.now();
  const pool = await Pool.open(device);
  const opened = performance.now();
  await pool.indexed;
  const indexed = performance.now();
  const { index } = pool.stats();
  const row = {
    after: 'opening it again',
    'operations a second': '',
    'GB in memory': taken() / GB,
    'index entries': index.entries,
    'sampling, one in': index.rate,
    'open, ms': opened - started,
    'indexed, s': (indexed - opened) / 1000,
    'checked, s': '',
  };
  await pool.close();
  return row;
}

/** Checks it; the most memory there was meanwhile, with what a collection leaves of the pools. */
async function check(device: BlockDevice, taken: () => number): Promise<Record<string, Cell>> {
  collect();
  let most = taken();
  const started = performance.now();
  const report = await checkPool(device, {
    onProgress: ({ phase, done, total }) => {
      if (done % TURN !== 0 && done !== total) return;
      most = Math.max(most, taken());
      progress(`checking it: ${phase} ${done} of ${total}`);
    },
  });
  if (!report.clean) throw new Error(`the pool is damaged: ${report.findings[0]!.message}`);
  return {
    after: 'checking it',
    'operations a second': '',
    'GB in memory': most / GB,
    'index entries': '',
    'sampling, one in': '',
    'open, ms': '',
    'indexed, s': '',
    'checked, s': (performance.now() - started) / 1000,
  };
}

await program(async () => {
  const { values } = parseArgs({
    options: {
      size: { type: 'string', default: '1TiB' },
      json: { type: 'boolean', default: false },
      check: { type: 'boolean', default: false },
    },
  });
  const units = Math.floor(parseSize(values.size) / UNIT_BYTES);
  const blocks = units * UNIT_BLOCKS;
  const random = new Random(1, 1);
  const data = addressSpace().create(UNITS * UNIT_BYTES);
  for (let i = 0; i < data.u32.length; i++) data.u32[i] = random.below(TWO_32);
  const zeros = addressSpace().create(PAGE);
  const pageCount = Math.ceil(blocks * ROOM) + 2 ** 16;
  const pages = new Pages(pageCount, data);
  const info = plainInfo(PAGE, pageCount, { driver: 'forgetful' });
  const device = forgetful(pages, info, zeros.address);
  const before = resident();
  const rows: Record<string, Cell>[] = [];
  let most = 0;

  await Pool.create(device);
  const pool = await Pool.open(device);
  await pool.createVolume('all', blocks * PAGE);
  const disk = pool.openVolume('all');

  async function step(what: string, load: Load): Promise<void> {
    const rate = await run(disk, load);
    const taken = resident() - before - pages.kept * PAGE;
    most = Math.max(most, taken);
    const { index } = pool.stats();
    rows.push({
      after: what,
      'operations a second': rate,
      'GB in memory': taken / GB,
      'index entries': index.entries,
      'sampling, one in': index.rate,
      'open, ms': '',
      'indexed, s': '',
      'checked, s': '',
    });
  }

  let content = 0;
  /** New content for each block of a unit; what is in flight is in other units. */
  const renewed = (operation: number): number => {
    const unit = operation % UNITS;
    const words = data.u32;
    for (let block = 0; block < UNIT_BLOCKS; block++) {
      const at = ((unit * UNIT_BLOCKS + block) * PAGE) / 4;
      content++;
      words[at] = content >>> 0;
      words[at + 1] = content / TWO_32;
    }
    return data.address + unit * UNIT_BYTES;
  };
  const inOrder = { op: Op.WRITE, blocks: UNIT_BLOCKS, depth: DEPTH, operations: units };
  const fill = (unit: number): number => unit * UNIT_BLOCKS;
  await step('filling it', { ...inOrder, place: fill, address: renewed });

  const atRandom = { blocks: 1, depth: RANDOM_DEPTH, operations: RANDOM_OPERATIONS };
  const anywhere = (): number => Math.floor(random.fraction() * blocks);
  const page = (operation: number): number => data.address + (operation % RANDOM_DEPTH) * PAGE;
  const changed = (operation: number): number => {
    const address = page(operation);
    data.u32[(address - data.address) / 4] = random.below(TWO_32);
    return address;
  };
  await step('random reads', { ...atRandom, op: Op.READ, place: anywhere, address: page });
  await step('random writes', { ...atRandom, op: Op.WRITE, place: anywhere, address: changed });
  progressEnd();

  const stored = pool.stats().data_blocks_used * PAGE;
  await disk.close();
  await pool.close();
  const taken = (): number => resident() - before - pages.kept * PAGE;
  rows.push(await reopen(device, taken));
  rows.push(await check(device, taken));
  progressEnd();
  await device.close();
  zeros.close();
  data.close();
  const bars = [atMost('GB of memory per TiB stored', most / GB / (stored / TIB), BAR)];
  const rounds = { stored, forgotten: pages.forgotten, kept: pages.kept, before };
  const options = { json: values.json, check: values.check };
  finish({ schema: 'penstock.bench.pool-memory/1', rows, bars, rounds }, options);
});
