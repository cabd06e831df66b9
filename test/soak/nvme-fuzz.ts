// nvme-fuzz: the NVMe driver on controllers that lie.
//
// What must hold of every case: opening gives a device or a PenstockError; every operation
// completes once; closing ends; nothing hangs; no address outside of what the driver may name goes
// to the device; nothing is left behind. Cases that are not hostile must work, without any
// violation.
//
// One case again: NVME_FUZZ_CASE=SEED npm run soak -- nvme-fuzz --rounds 1

import { openNvme } from '../../lib/drivers/nvme/index.js';
import { parseSettings } from '../../lib/drivers/nvme/settings.js';
import { PenstockError } from '../../lib/errors.js';
import { BlockDevice, Op, type Backend, type Queue } from '../../lib/hpdi/index.js';
import { addressSpace, defaultMemory, type DmaBuffer } from '../../lib/memory/index.js';
import { NvmeTwin, trackOperations, type NvmeTwinOptions } from '../support/nvme-twin/index.js';
import { completionAt, put } from '../support/requests.js';
import {
  check,
  descriptorsMore,
  footprint,
  Random,
  within,
  type Footprint,
  type Soak,
  type SoakRun,
} from './harness.js';
import {
  chooseHostility,
  disturb,
  makeHostile,
  type Hostility,
  type Judgement,
} from './nvme-hostile.js';

/** Cases at once: most of a case's time is waiting. */
const CASES_AT_ONCE = 16;
const CASE_MS_MAX = 40_000;
const DEPTH = 8;
const BUFFER_BYTES = 32768;
const STEPS_MAX = 12;
/** What the driver may not wait for longer, so that a case is short. */
const KEYS = { timeout: '30ms', adminTimeout: '60ms', retries: '2', queues: '4', entries: '16' };

/** Opens the driver on a twin: exchanged by whoever fuzzes another. */
export type OpenDriver = (
  twin: NvmeTwin,
  keys: Readonly<Record<string, string>>,
) => Promise<Backend>;

async function openDriver(
  twin: NvmeTwin,
  keys: Readonly<Record<string, string>>,
): Promise<Backend> {
  const settings = parseSettings(new Map(Object.entries(keys)), true);
  const { address } = twin.pci;
  return openNvme(`nvme:${address}`, address, 0, settings, () => Promise.resolve(twin.pci));
}

class FuzzCase {
  private readonly random: Random;
  private readonly how: Hostility;
  private readonly judgement: Judgement;
  private readonly twin: NvmeTwin;
  private readonly keys: Record<string, string>;
  private buffers: DmaBuffer[] = [];
  /** Tags in flight. */
  private readonly inFlight = new Set<number>();

  constructor(seed: number, address: string) {
    this.random = new Random(seed);
    const { random } = this;
    this.how = chooseHostility(random);
    this.keys = { ...KEYS };
    if (random.chance(0.2)) this.keys['completion'] = 'polled';
    if (random.chance(0.2)) this.keys['sgl'] = '0';
    this.twin = new NvmeTwin({ ...this.options(), address });
    this.judgement = makeHostile(random, this.twin, this.how);
  }

  /** Whether the controller tells the truth, and everything has to go well. */
  get isHonest(): boolean {
    return Object.values(this.how).every((kind) => !kind);
  }

  get label(): string {
    const kinds = Object.entries(this.how).filter(([, on]) => on);
    return kinds.map(([kind]) => kind).join(', ') || 'honest';
  }

  async run(open: OpenDriver): Promise<void> {
    const { twin } = this;
    twin.start();
    let device: BlockDevice | null = null;
    try {
      device = await this.open(open);
      if (device !== null) await this.use(device);
    } finally {
      await device?.close();
      twin.stop();
      for (const buffer of this.buffers.splice(0)) buffer.free();
    }
    twin.check();
    const { violations } = twin.controller;
    const bad = this.isHonest ? violations.list : this.judgement.memory;
    check(bad.length === 0, bad.slice(0, 5).join('; '));
    twin.close();
  }

  private options(): NvmeTwinOptions {
    const { random } = this;
    return {
      namespaces: [
        { blocks: 4096, blockSize: random.pick([512, 4096]) },
        { blocks: 64, metadataBytes: random.pick([0, 8]) },
      ],
      mdts: random.pick([0, 1, 3, 5]),
      sgls: random.pick([0, 0, 1, 2] as const),
      shadowDoorbells: random.pick(['none', 'lazy', 'polled'] as const),
      mapped: random.pick(['none', 'doorbells', 'all'] as const),
      dma: random.pick(['live', 'reached'] as const),
      doorbellStride: random.pick([0, 0, 2]),
      vectors: random.pick([0, 1, 8]),
      queuesMax: random.pick([1, 2, 8]),
      entriesMax: random.pick([16, 64, 1024]),
      cmbBytes: random.pick([0, 0, 65536]),
      timeoutUnits: 1,
    };
  }

  private async open(open: OpenDriver): Promise<BlockDevice | null> {
    try {
      const backend = await open(this.twin, this.keys);
      // A controller that says that a command completed before it did would be seen as the driver's
      // fault: then buffers are not followed.
      const lies = this.how.completions || this.how.statuses || this.how.identify;
      return new BlockDevice(lies ? backend : trackOperations(backend, this.twin.memory));
    } catch (error) {
      check(error instanceof PenstockError, `opening threw ${String(error)}`);
      check(!this.isHonest, `an honest controller was refused: ${error.message} ${error.hint}`);
      return null;
    }
  }

  private async use(device: BlockDevice): Promise<void> {
    const { random } = this;
    for (let i = 0; i < DEPTH; i++) this.buffers.push(defaultMemory().alloc(BUFFER_BYTES));
    const queue = this.openQueue(device);
    if (queue === null) return;
    try {
      for (let steps = random.between(1, STEPS_MAX); steps > 0; steps--) {
        for (let count = random.between(1, DEPTH); count > 0; count--) this.send(device, queue);
        queue.submit();
        disturb(random, this.judgement, this.twin, this.how);
        this.take(queue, await queue.wait(random.pick([1, 20])));
      }
      await this.finish(queue);
    } finally {
      await queue.close();
    }
  }

  private openQueue(device: BlockDevice): Queue | null {
    try {
      return device.queue({ depth: DEPTH, split: this.random.chance(0.5) });
    } catch (error) {
      check(error instanceof PenstockError, `opening a queue threw ${String(error)}`);
      check(!this.isHonest, `an honest controller has no queue: ${error.message}`);
      return null;
    }
  }

  private send(device: BlockDevice, queue: Queue): void {
    const { random } = this;
    const tag = random.below(DEPTH);
    if (this.inFlight.has(tag)) return;
    const { blockSize, blocks: capacity, maxTransferBlocks } = device.nativeInfo;
    const most = Math.min(Math.floor(BUFFER_BYTES / 2 / blockSize), maxTransferBlocks);
    const op = random.pick([Op.READ, Op.WRITE, Op.FLUSH, Op.WRITE_ZEROES, Op.DISCARD]);
    const blocks = op === Op.FLUSH ? 0 : random.between(1, Math.max(1, most));
    const lba = Math.floor((random.u32() / 2 ** 32) * Math.max(1, capacity - blocks));
    const offset = random.pick([0, 512, 4]);
    const address = this.buffers[tag]!.address + offset;
    if (put(queue, { op, tag, blocks, lba, address })) this.inFlight.add(tag);
  }

  private take(queue: Queue, count: number): void {
    for (let i = 0; i < count; i++) {
      const { tag, status } = completionAt(queue, i);
      check(this.inFlight.delete(tag), `tag ${tag} came without being in flight`);
      check(!this.isHonest || status === 0, `an honest controller: status ${status}`);
    }
  }

  /** Everything in flight completes, whatever the controller does. */
  private async finish(queue: Queue): Promise<void> {
    while (this.inFlight.size > 0) {
      if (queue.head !== queue.tail) queue.submit();
      this.take(queue, await queue.wait(100));
    }
  }
}

class FuzzRun implements SoakRun {
  private readonly random: Random;
  private readonly open: OpenDriver;
  private readonly takenBefore = defaultMemory().taken;
  /** After the first cases: what Node itself opens when it is first needed is no leak. */
  private before: Footprint | null = null;
  private readonly strays: unknown[] = [];
  private readonly onStray = (error: unknown): void => void this.strays.push(error);
  private cases = 0;
  private honest = 0;

  constructor(random: Random, open: OpenDriver) {
    this.random = random;
    this.open = open;
    process.on('uncaughtException', this.onStray);
  }

  async round(): Promise<number> {
    const one = process.env['NVME_FUZZ_CASE'];
    const count = one === undefined ? CASES_AT_ONCE : 1;
    const seeds = Array.from({ length: count }, () => this.random.u32());
    if (one !== undefined) seeds[0] = Number(one);
    await Promise.all(seeds.map((seed) => this.runCase(seed)));
    this.before ??= footprint();
    if (this.strays.length > 0) {
      const text = `thrown where nobody catches it, by one of the cases ${seeds.join(' ')}`;
      throw new Error(text, { cause: this.strays[0] });
    }
    return count;
  }

  async finish(): Promise<void> {
    process.off('uncaughtException', this.onStray);
    check(this.cases < 100 || this.honest > 0, 'no case was honest: the harness is wrong');
    check(defaultMemory().taken === this.takenBefore, 'buffers are missing from the pools');
    defaultMemory().trim();
    const segments = addressSpace().list().length;
    check(segments === 0, `${segments} segments were left open`);
    const now = footprint();
    const more = descriptorsMore(this.before ?? now, now);
    check(more.length === 0, `descriptors were left open: ${more.join(', ')}`);
    await Promise.resolve();
  }

  private async runCase(seed: number): Promise<void> {
    const fuzz = new FuzzCase(seed, `fuzz-${this.cases++}`);
    if (fuzz.isHonest) this.honest++;
    try {
      await within(CASE_MS_MAX, 'a case', fuzz.run(this.open));
    } catch (cause) {
      throw new Error(`case of seed ${seed} (${fuzz.label})`, { cause });
    }
  }
}

/** The soak over any driver that takes a PCI function. */
export function nvmeFuzz(open: OpenDriver): Soak {
  return {
    full: 1_000_000,
    unit: 'cases',
    start: (random) => Promise.resolve(new FuzzRun(random, open)),
  };
}

export const nvmeFuzzSoak = nvmeFuzz(openDriver);
