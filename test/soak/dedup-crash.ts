// Crashes of the dedup pool: random work over a device in memory with a volatile cache, whose power
// goes at a random operation: what was not flushed survives by chance, in blocks of 512 bytes. The
// pool is opened again (and, now and then, cut again while it recovers) and held against a model:
// every flushed write is there, every other block is old or new. In some rounds volumes are written
// in blocks of 512 bytes, too, and held against it sector by sector. In some the pool is full, so
// that places are given out again, to nodes and to blocks, as soon as they come free.

import { faultControl, wrapFault } from '../../lib/drivers/fault/index.js';
import { driver as ramDriver } from '../../lib/drivers/ram/index.js';
import { checkPool, Pool } from '../../lib/dedup/index.js';
import { PenstockError } from '../../lib/errors.js';
import { BlockDevice, type Backend } from '../../lib/hpdi/index.js';
import { Memory } from '../../lib/memory/index.js';
import { open } from '../../lib/open.js';
import { Filling, spared } from './dedup-filling.js';
import { contentOf, fillBlock, VolumeModel } from './dedup-model.js';
import { check, within, type Random, type Soak, type SoakRun } from './harness.js';

const DEVICE_BYTES = 40 * 2 ** 20;
const VOLUMES = 2;
const MODELS_MAX = 5;
/** Blocks of a volume that are watched, by round. */
const BLOCKS_LEAST = 600;
const BLOCKS_MOST = 1200;
const RUN_MAX = 48;
/** Sectors of a write of parts of pages. */
const SECTORS_MAX = 20;
const STEPS = 40;
const PARALLEL = 4;
/** Sizes round the ends of leaves and levels of a map; what is not watched is not written. */
const SIZES = [1, 100, 511, 512, 513, 700, 1024, 1025, 262_144, 262_145];
const PAGE = 4096;
const SECTOR = 512;
/** Rounds of a run that must have met everything. */
const ROUNDS_TOLD = 30;
const OPEN = { cacheBytes: 2 * 2 ** 20, indexBytes: 2 ** 20, depth: 64 };

class CrashRun implements SoakRun {
  private readonly random: Random;
  private readonly ram: Backend;
  /** Low-latency memory, in half of the rounds; the power cut leaves it as it is. */
  private llrrm: BlockDevice | null = null;
  private content = 1;
  private blocks = 0;
  /** Places of the models per page: 8 in rounds with sectors, else 1. */
  private per = 1;
  /** What fills the pool; null: it is not full. */
  private filling: Filling | null = null;
  private rounds = 0;
  private fullRounds = 0;
  private sectorRounds = 0;
  /** Recoveries that applied entries, and of them those that left blocks out. */
  private replayed = 0;
  private lost = 0;
  /** Passes that moved blocks. */
  private cleaned = 0;
  /** Contents that were written in a row, to be written again. */
  private readonly series: number[][] = [];
  /** One for all rounds: fresh memory costs more than what is done with it. */
  private readonly memory = new Memory();

  constructor(random: Random, ram: Backend) {
    this.random = random;
    this.ram = ram;
  }

  async round(): Promise<number> {
    const { random } = this;
    const isFull = random.chance(0.25);
    const gone = random.between(20, isFull ? 1200 : 600);
    this.filling = null;
    const device = this.device(gone);
    this.llrrm = random.chance(0.5) ? await open('ram:1MiB') : null;
    this.per = random.chance(0.35) ? PAGE / SECTOR : 1;
    this.blocks = random.between(BLOCKS_LEAST, BLOCKS_MOST);
    const models = Array.from(
      { length: VOLUMES },
      (_, i) => new VolumeModel(`v${i}`, this.blocks * this.per),
    );
    const thn = random.pick([1, 2, 4, 8, 8, 8, 32]);
    try {
      await within(20_000, 'a crash', this.until(device, models, thn, isFull));
    } catch (error) {
      for (const each of [device, this.llrrm]) await each?.close().catch(() => undefined);
      throw error;
    }
    for (const each of [device, this.llrrm]) await each?.close();
    this.rounds++;
    if (this.per > 1) this.sectorRounds++;
    if (this.filling !== null) this.fullRounds++;
    return 1;
  }

  async finish(): Promise<void> {
    await this.ram.close();
    this.memory.trim();
    const { replayed, lost, cleaned, sectorRounds, fullRounds } = this;
    const recovered = `${replayed} recoveries had entries, ${lost} lost blocks`;
    const done = `${cleaned} passes of cleaning moved blocks`;
    const kinds = `${sectorRounds} rounds had sectors, ${fullRounds} full pools`;
    console.log(`dedup-crash: ${recovered}; ${done}; ${kinds}`);
    // What nothing happened in proves nothing.
    if (this.rounds < ROUNDS_TOLD) return;
    check(replayed > 0, 'no recovery had entries');
    check(cleaned > 0, 'no pass of cleaning moved blocks');
    check(sectorRounds > 0, 'no round had sectors');
    check(fullRounds > 0, 'no pool was full');
  }

  /** A part of the memory, which grows whenever somebody looks. */
  private device(gone: number): BlockDevice {
    const { random, ram } = this;
    const sized = (bytes: number): Backend['info'] => {
      return { ...ram.info, blocks: Math.min(DEVICE_BYTES, bytes) / ram.info.blockSize };
    };
    let bytes = random.pick([28, 34, 40]) * 2 ** 20;
    let info = sized(bytes);
    const inner = Object.create(ram, { info: { get: () => info } }) as Backend;
    inner.close = async () => {};
    inner.openQueue = (options) => ram.openQueue(options); // of all of it
    inner.refresh = async () => {
      bytes += random.pick([1, 4, 9]) * 2 ** 20;
      info = sized(bytes);
    };
    const options = new Map([
      ['seed', String(random.u32() % 2 ** 31)],
      ['cache', '64MiB'],
      ['gone', String(gone)],
      ['reorder', random.pick(['0', '0.3'])],
    ]);
    return new BlockDevice(wrapFault(inner, options));
  }

  /** Works till the power goes; then opens again, with or without another cut, and compares. */
  private async until(
    device: BlockDevice,
    models: VolumeModel[],
    thn: number,
    isFull: boolean,
  ): Promise<void> {
    const { random } = this;
    const control = faultControl(device.backend)!;
    let made = false;
    try {
      await Pool.create(device, {
        thn,
        sampling: random.pick([1, 8]),
        llrrmThreshold: random.pick([1, 2, 4]),
        dataChecksum: random.chance(0.3),
        force: true,
      });
      const pool = await Pool.open(device, { ...OPEN, llrrm: this.llrrm });
      try {
        for (const model of models) await pool.createVolume(model.name, this.blocks * PAGE);
        made = true;
        if (isFull) {
          this.filling = new Filling(random, this.memory);
          await this.filling.fill(pool, DEVICE_BYTES);
        }
        for (let step = 0; step < STEPS; step++) await this.step(pool, models);
      } finally {
        await pool.close();
      }
    } catch (error) {
      if (!isOfCut(error)) throw error;
    }
    await control.cut({ survive: random.pick([0, 0.3, 0.7, 1]) });
    control.heal();
    if (!made) return;
    if (random.chance(0.3)) await this.cutRecovery(device);
    await this.compare(device, models);
  }

  private async cutRecovery(device: BlockDevice): Promise<void> {
    const control = faultControl(device.backend)!;
    const opening = Pool.open(device, { ...OPEN, llrrm: this.llrrm });
    for (let turn = this.random.between(0, 30); turn > 0; turn--) {
      await new Promise((resolve) => setImmediate(resolve));
    }
    await control.cut({ survive: this.random.pick([0, 0.5, 1]) });
    try {
      await (await opening).close();
    } catch (error) {
      if (!isOfCut(error)) throw error;
    }
    control.heal();
  }

  private async compare(device: BlockDevice, models: VolumeModel[]): Promise<void> {
    const pool = await Pool.open(device, { ...OPEN, llrrm: this.llrrm });
    try {
      for (const model of models) {
        const { bytes } = pool.volumes.find(({ name }) => name === model.name)!;
        const size = (bytes / PAGE) * this.per;
        check(size === model.size || size === model.next, `${model.name} has ${bytes} bytes`);
        if (size !== model.size) model.resized(size);
        model.next = size;
        await this.read(pool, model, (block, content) => model.adopt(block, content));
        model.adopted();
      }
      await this.again(pool, models);
      this.recovered(pool);
    } finally {
      await pool.close();
    }
    const report = await checkPool(device, { data: true });
    check(report.clean, JSON.stringify(report.findings.slice(0, 5)));
  }

  private recovered({ recovery }: Pool): void {
    if (recovery === null) return;
    if (recovery.entries > 0) this.replayed++;
    if (recovery.blocksLost > 0) this.lost++;
  }

  /** What was recovered is a pool as any other. */
  private async again(pool: Pool, models: VolumeModel[]): Promise<void> {
    for (let step = 0; step < 4; step++) await this.step(pool, models);
    for (const model of models) {
      // What was cut off is not there any more.
      if (model.size < model.blocks) await this.resize(pool, model, this.blocks);
      await this.read(pool, model, (block, content) => {
        const isRight =
          content === model.newest[block] || this.mayHaveFailed(model, block, content);
        check(isRight, `${model.name} block ${block} holds ${content}`);
      });
    }
    check(pool.engine.failed === null, `the pool failed: ${pool.engine.failed}`);
  }

  /** In a full pool a write that had no space may have been done in part. */
  private mayHaveFailed(model: VolumeModel, block: number, content: number): boolean {
    return this.filling !== null && model.mayHold(block, content);
  }

  /** Calls `take` with each place of a volume that is watched, and its content. */
  private async read(
    pool: Pool,
    model: VolumeModel,
    take: (place: number, content: number) => void,
  ): Promise<void> {
    const { bytes } = this;
    const places = Math.min(model.size, model.blocks);
    const [disk] = this.open(pool, model);
    const buffer = this.memory.alloc(places * bytes);
    try {
      await disk.read(0, buffer);
      for (let place = 0; place < places; place++) {
        take(place, contentOf(buffer.u32, (place * bytes) / 4, bytes / 4));
      }
    } finally {
      buffer.free();
      await disk.close();
    }
  }

  /** Bytes of a place of the models. */
  private get bytes(): number {
    return PAGE / this.per;
  }

  /** A volume, with blocks of either size where there are sectors; and how many places one is. */
  private open(pool: Pool, model: VolumeModel): [disk: BlockDevice, unit: number] {
    const blockSize = this.random.chance(0.7) ? this.bytes : PAGE;
    return [pool.openVolume(model.name, { blockSize }), blockSize / this.bytes];
  }

  private async resize(pool: Pool, model: VolumeModel, pages: number): Promise<void> {
    model.next = pages * this.per;
    await pool.resizeVolume(model.name, pages * PAGE, { shrink: true });
    model.resized(model.next);
  }

  /** Some operations at once, on blocks of their own. */
  private async step(pool: Pool, models: VolumeModel[]): Promise<void> {
    const { random } = this;
    if (random.chance(0.05)) await pool.checkpoint();
    await this.filling?.churn(pool);
    if (random.chance(0.03)) await pool.grow();
    const trimmed = random.chance(0.06) ? pool.trim() : null;
    trimmed?.catch(() => undefined); // awaited below
    const cleaned = random.chance(0.15) ? this.clean(pool) : null;
    cleaned?.catch(() => undefined);
    if (random.chance(0.06)) await this.spared(this.copy(pool, models));
    if (models.length > VOLUMES && random.chance(0.08)) {
      const at = random.between(VOLUMES, models.length - 1);
      const [gone] = models.splice(at, 1);
      await pool.deleteVolume(gone!.name);
    }
    if (random.chance(0.08)) {
      const pages = random.pick([...SIZES, this.blocks]);
      await this.spared(this.resize(pool, random.pick(models), pages));
    }
    const model = random.pick(models);
    const [disk, unit] = this.open(pool, model);
    const works: Promise<void>[] = [];
    const part = Math.floor(Math.min(model.size, model.blocks) / unit / PARALLEL);
    for (let i = 0; i < PARALLEL && part > 1; i++) {
      const [first, count] = this.range(i * part, part, unit);
      const kind = random.below(20);
      if (kind < 2) works.push(this.spared(this.discard(disk, model, first, count)));
      else if (kind === 2) works.push(this.spared(this.zero(disk, model, first, count)));
      else works.push(this.spared(this.write(disk, model, first, count)));
    }
    const ended = await Promise.allSettled(works);
    try {
      for (const end of ended) if (end.status === 'rejected') throw end.reason;
      if (random.chance(0.3)) {
        const snapshots = models.map((each) => each.newest.slice());
        await disk.flush();
        for (const [i, each] of models.entries()) each.flushed(snapshots[i]!);
      }
      await trimmed;
      await cleaned;
    } finally {
      await disk.close();
    }
  }

  /** Where a pool is full, what finds no space is not done, or in part. */
  private spared(work: Promise<void>): Promise<void> {
    return this.filling === null ? work : spared(work);
  }

  /** A range within a part of a volume, and the volume's blocks; in places. */
  private range(from: number, blocks: number, unit: number): [first: number, count: number] {
    const { random, per } = this;
    const ofPage = per / unit;
    let most = RUN_MAX * ofPage;
    let least = 1;
    let align = 1;
    // Either parts of pages, or whole ones, which may be shared.
    if (ofPage > 1 && random.chance(0.5)) most = SECTORS_MAX;
    else if (blocks > 4 * ofPage) least = align = ofPage;
    const count = Math.max(least, Math.min(blocks - 1, random.between(least, most)));
    const first = from + random.below(blocks - count);
    const end = from + blocks;
    const up = Math.ceil(first / align) * align;
    const down = Math.floor(Math.min(end, up + count) / align) * align;
    return down > up ? [up * unit, (down - up) * unit] : [first * unit, count * unit];
  }

  private async clean(pool: Pool): Promise<void> {
    const { random } = this;
    const maxUsed = random.pick([40, 126, 250]);
    const { moved } = await pool.clean({ maxUsed, maxVictims: random.between(2, 20) });
    if (moved > 0) this.cleaned++;
  }

  /** A clone: it has what was acknowledged, all of it durable. */
  private async copy(pool: Pool, models: VolumeModel[]): Promise<void> {
    if (models.length >= MODELS_MAX) return;
    const from = this.random.pick(models);
    const name = `c${this.content++}`;
    await pool.copyVolume(from.name, name, 'clone');
    models.push(this.filling !== null ? from.twin(name) : from.copy(name));
  }

  private async write(
    disk: BlockDevice,
    model: VolumeModel,
    first: number,
    count: number,
  ): Promise<void> {
    const { bytes } = this;
    const contents = this.contents(count);
    const buffer = this.memory.alloc(count * bytes);
    try {
      for (const [i, content] of contents.entries()) {
        fillBlock(buffer.u32, (i * bytes) / 4, content, bytes / 4);
        model.tries(first + i, content);
      }
      await disk.write(this.blockOf(disk, first), buffer);
      for (const [i, content] of contents.entries()) model.acknowledged(first + i, content);
    } finally {
      buffer.free();
    }
  }

  /** Of the pages of which it has only a part nothing changes. */
  private async discard(
    disk: BlockDevice,
    model: VolumeModel,
    first: number,
    count: number,
  ): Promise<void> {
    const { per } = this;
    const from = Math.ceil(first / per) * per;
    const to = Math.floor((first + count) / per) * per;
    await this.becomesZero(model, from, to, () =>
      disk.discard(this.blockOf(disk, first), this.blockOf(disk, count)),
    );
  }

  private async zero(
    disk: BlockDevice,
    model: VolumeModel,
    first: number,
    count: number,
  ): Promise<void> {
    await this.becomesZero(model, first, first + count, () =>
      disk.writeZeroes(this.blockOf(disk, first), this.blockOf(disk, count)),
    );
  }

  private async becomesZero(
    model: VolumeModel,
    from: number,
    to: number,
    run: () => Promise<void>,
  ): Promise<void> {
    for (let place = from; place < to; place++) model.tries(place, 0);
    await run();
    for (let place = from; place < to; place++) model.acknowledged(place, 0);
  }

  /** Of places. */
  private blockOf(disk: BlockDevice, places: number): number {
    return (places * this.bytes) / disk.info.blockSize;
  }

  /** New contents, or a part of what was written before, with some zeros. */
  private contents(count: number): number[] {
    const { random, series, per } = this;
    const old = random.pick([[], ...series]);
    const start = random.below(Math.max(1, old.length));
    const from = start - (start % per);
    const contents = Array.from({ length: count }, (_, i) => {
      if (random.chance(0.03 / per)) return 0;
      return old[from + i] ?? this.content++;
    });
    if (series.length < 20) series.push(contents);
    else series[random.below(20)] = contents;
    return contents;
  }
}

function isOfCut(error: unknown): boolean {
  if (!(error instanceof PenstockError)) return false;
  return ['DEVICE_GONE', 'POOL_FAILED', 'DEVICE_ERROR'].includes(error.code);
}

export const dedupCrashSoak: Soak = {
  full: 20_000,
  unit: 'rounds',
  async start(random) {
    const ram = await ramDriver.open(String(DEVICE_BYTES), new Map(), 'ram:');
    return new CrashRun(random, ram);
  },
};
