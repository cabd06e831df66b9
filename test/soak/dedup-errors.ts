// Errors of a pool's device, one by one: the same work each time, from opening (with a journal to
// be applied) through writes, copies, cleaning and a delete to closing, in which one operation
// fails, the k-th read, write or flush; or that one and all that follow. Every call ends with a
// typed error or the right result; when the device works again, what was acknowledged is there,
// and the check finds nothing.

import { faultControl, wrapFault } from '../../lib/drivers/fault/index.js';
import { driver as ramDriver } from '../../lib/drivers/ram/index.js';
import { checkPool, Pool } from '../../lib/dedup/index.js';
import { PenstockError } from '../../lib/errors.js';
import { BlockDevice, type Backend } from '../../lib/hpdi/index.js';
import { contentOf, fillBlock, VolumeModel } from './dedup-model.js';
import { check, Random, within, type Soak, type SoakRun } from './harness.js';

const DEVICE_BYTES = 32 * 2 ** 20;
const CHUNK = 4 * 2 ** 20;
const PAGE = 4096;
const BLOCKS = 1000;
const RUN_MAX = 48;
const OPEN = { cacheBytes: 2 ** 20, indexBytes: 2 ** 20, depth: 64 };
const CREATE = { thn: 4, sampling: 1, force: true };
const TYPED = ['MEDIA_ERROR', 'DEVICE_ERROR', 'POOL_FAILED'];
const OPERATIONS = ['read', 'write', 'flush'];
const LIMIT_MS = 20_000;
/** So much is in most extents of these pools. */
const CLEAN = { maxUsed: 250, maxVictims: 4 };

/** What fails, and how many there are of it when nothing does. */
interface Series {
  readonly operation: string;
  readonly key: 'errorAt' | 'errorFrom';
  readonly total: number;
  /** Numbers are tried in steps of this, round and round. */
  readonly step: number;
  tried: number;
}

interface Work {
  models: VolumeModel[];
  /** Without an error. */
  readonly isWhole: boolean;
  /** Blocks that cleaning has copied. */
  readonly moved: number;
}

class ErrorsRun implements SoakRun {
  private readonly random: Random;
  private readonly ram: Backend;
  private readonly base = new Uint8Array(DEVICE_BYTES);
  private models: VolumeModel[] = [];
  private seed = 0;
  private series: Series[] = [];
  private turn = 0;
  private hits = 0;

  constructor(random: Random, ram: Backend) {
    this.random = random;
    this.ram = ram;
  }

  async round(): Promise<number> {
    if (this.series.length === 0) await this.begin();
    const series = this.series[this.turn % this.series.length]!;
    const at = 1 + ((series.tried * series.step) % series.total);
    const what = `${series.operation} ${at} of ${series.total} (${series.key})`;
    await within(LIMIT_MS, what, this.attempt(series, at)).catch((cause: unknown) => {
      const why = cause instanceof Error ? (cause.stack ?? cause.message) : String(cause);
      throw new Error(`${what}: ${why}`);
    });
    series.tried++;
    if (series.tried === series.total) this.series.splice(this.series.indexOf(series), 1);
    else this.turn++;
    return 1;
  }

  async finish(): Promise<void> {
    await this.ram.close();
    console.log(`dedup-errors: ${this.hits} operations failed`);
  }

  /** Makes the pool that each round begins with, and counts what there is to fail. */
  private async begin(): Promise<void> {
    const device = this.device([]);
    this.seed = this.random.u32();
    await Pool.create(device, CREATE);
    const pool = await Pool.open(device, OPEN);
    this.models = ['one', 'two'].map((name) => new VolumeModel(name, BLOCKS));
    const random = new Random(this.seed);
    for (const model of this.models) {
      await pool.createVolume(model.name, BLOCKS * PAGE);
      for (let i = 0; i < 30; i++) await writeSome(pool, model, random);
    }
    await pool.copyVolume('one', 'old', 'snapshot');
    this.models.push(this.models[0]!.twin('old'));
    for (let i = 0; i < 10; i++) await writeSome(pool, this.models[i % 2]!, random);
    await this.save(device);
    await pool.close();
    await device.close();
    for (const operation of OPERATIONS) {
      await this.restore();
      const counted = this.device([['errorOps', operation]]);
      const { isWhole, moved } = await this.work(counted);
      check(isWhole, 'work without errors ends with one');
      check(moved > 0, 'work without errors moves no blocks');
      const total = faultControl(counted.backend)!.counters.fallible;
      await counted.close();
      let step = Math.max(1, Math.floor(total * 0.618));
      while (commonDivisor(step, total) !== 1) step++;
      for (const key of ['errorAt', 'errorFrom'] as const) {
        this.series.push({ operation, key, total, step, tried: 0 });
      }
    }
    console.log(`dedup-errors: ${this.series.map(({ total }) => total).join(' + ')} rounds`);
  }

  private async attempt(series: Series, at: number): Promise<void> {
    await this.restore();
    const device = this.device([
      ['errorOps', series.operation],
      [series.key, String(at)],
    ]);
    const { models, isWhole } = await this.work(device);
    const { errors } = faultControl(device.backend)!.counters;
    this.hits += errors;
    check(errors > 0 || isWhole, 'no operation failed, and a call did');
    await device.close();
    await this.compare(models);
  }

  /** Everything that a pool does, once. */
  private async work(device: BlockDevice): Promise<Work> {
    const random = new Random(this.seed + 1);
    const models = this.models.map((model) => model.twin(model.name));
    let isWhole = true;
    let moved = 0;
    const attempt = async (work: () => Promise<void>): Promise<boolean> => {
      try {
        await work();
        return true;
      } catch (error) {
        assertTyped(error);
        isWhole = false;
        return false;
      }
    };
    let pool: Pool | null = null;
    await attempt(async () => void (pool = await Pool.open(device, OPEN)));
    if (pool === null) return { models, isWhole, moved };
    const opened = pool as Pool;
    const write = (): Promise<boolean> =>
      attempt(() => writeSome(opened, random.pick([models[0]!, models[1]!]), random));
    await opened.indexed;
    for (let i = 0; i < 12; i++) await write();
    await attempt(() => flush(opened));
    await this.copy(opened, models, attempt);
    for (let i = 0; i < 6; i++) await write();
    // Beside writes, which copies and maps of cleaned extents must not undo.
    await Promise.all([
      attempt(async () => void ({ moved } = await opened.clean(CLEAN))),
      write().then(write),
    ]);
    await attempt(() => opened.deleteVolume('old').finally(() => models[2]!.mayBeGone()));
    await attempt(() => opened.checkpoint());
    for (let i = 0; i < 6; i++) await write();
    for (const model of models) await attempt(() => readAll(opened, model));
    await attempt(() => opened.settle());
    await attempt(() => opened.close());
    return { models, isWhole, moved };
  }

  private async copy(
    pool: Pool,
    models: VolumeModel[],
    attempt: (work: () => Promise<void>) => Promise<boolean>,
  ): Promise<void> {
    const copy = models[1]!.twin('copy');
    const isMade = await attempt(() => pool.copyVolume('two', 'copy', 'clone'));
    if (!isMade) copy.mayBeGone();
    models.push(copy);
  }

  /** The device works again. */
  private async compare(models: VolumeModel[]): Promise<void> {
    const device = this.device([]);
    const pool = await Pool.open(device, OPEN);
    const random = new Random(this.seed + 2);
    for (const model of models) {
      const isThere = pool.volumes.some(({ name }) => name === model.name);
      check(isThere || model.isGone, `${model.name} is gone`);
      if (!isThere) continue;
      await readAll(pool, model);
      if (model.name !== 'old') await writeSome(pool, model, random);
      await readAll(pool, model);
    }
    await pool.close();
    const report = await checkPool(device, { data: true });
    check(report.clean, JSON.stringify(report.findings.slice(0, 5)));
    await device.close();
  }

  private device(options: [string, string][]): BlockDevice {
    const inner = Object.create(this.ram) as Backend;
    inner.close = async () => {};
    return new BlockDevice(wrapFault(inner, new Map(options)));
  }

  private async save(device: BlockDevice): Promise<void> {
    await pieces(device, async (lba, buffer, at) => {
      await device.read(lba, buffer);
      this.base.set(buffer.u8, at);
    });
  }

  private async restore(): Promise<void> {
    const device = this.device([]);
    await pieces(device, async (lba, buffer, at) => {
      buffer.u8.set(this.base.subarray(at, at + CHUNK));
      await device.write(lba, buffer);
    });
    await device.close();
  }
}

type Piece = ReturnType<BlockDevice['memory']['alloc']>;

async function pieces(
  device: BlockDevice,
  each: (lba: number, buffer: Piece, at: number) => Promise<void>,
): Promise<void> {
  const buffer = device.memory.alloc(CHUNK);
  for (let at = 0; at < DEVICE_BYTES; at += CHUNK) {
    await each(at / device.info.blockSize, buffer, at);
  }
  buffer.free();
}

/** New contents, some that are stored already, or a discard. */
async function writeSome(pool: Pool, model: VolumeModel, random: Random): Promise<void> {
  const count = random.between(1, RUN_MAX);
  const first = random.below(BLOCKS - count);
  const base = random.chance(0.4) ? random.between(1, 300) : random.between(1000, 2 ** 31);
  const isDiscard = random.chance(0.12);
  const disk = pool.openVolume(model.name);
  const buffer = disk.memory.alloc(count * PAGE);
  try {
    for (let i = 0; i < count; i++) {
      fillBlock(buffer.u32, i * 1024, base + i);
      model.tries(first + i, isDiscard ? 0 : base + i);
    }
    if (isDiscard) await disk.discard(first, count);
    else await disk.write(first, buffer);
    model.settles(first, count, isDiscard ? 0 : base);
  } finally {
    buffer.free();
    await disk.close();
  }
}

async function flush(pool: Pool): Promise<void> {
  const disk = pool.openVolume('one');
  await disk.flush().finally(() => disk.close());
}

/** What is read is what may be there. */
async function readAll(pool: Pool, model: VolumeModel): Promise<void> {
  if (model.isGone && !pool.volumes.some(({ name }) => name === model.name)) return;
  const disk = pool.openVolume(model.name);
  const buffer = disk.memory.alloc(BLOCKS * PAGE);
  try {
    await disk.read(0, buffer);
    for (let block = 0; block < BLOCKS; block++) {
      const content = contentOf(buffer.u32, block * 1024);
      check(model.mayHold(block, content), `${model.name} block ${block} holds ${content}`);
    }
  } finally {
    buffer.free();
    await disk.close();
  }
}

function assertTyped(error: unknown): void {
  if (!(error instanceof PenstockError)) throw error;
  check(TYPED.includes(error.code), `${error.code}: ${error.message}`);
  check(error.hint !== '', `${error.code} has no hint`);
}

function commonDivisor(a: number, b: number): number {
  return b === 0 ? a : commonDivisor(b, a % b);
}

export const dedupErrorsSoak: Soak = {
  full: 3000,
  unit: 'rounds',
  async start(random) {
    const ram = await ramDriver.open(String(DEVICE_BYTES), new Map(), 'ram:');
    return new ErrorsRun(random, ram);
  },
};
