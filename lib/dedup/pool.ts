// Pool: a data device with volumes that share equal blocks (docs/format.md; DEDUP's invariants).
//
//   const device = await open('file:/p.img');
//   await Pool.create(device);
//   const pool = await Pool.open(device);
//   await pool.createVolume('one', 2 ** 30);
//   const disk = pool.openVolume('one');           // a BlockDevice
//   await disk.close(); await pool.close(); await device.close();
//
// The device stays the caller's.

import { PenstockError } from '../errors.js';
import { BlockDevice } from '../hpdi/index.js';
import type { VolumeRecord } from './maps/catalogue.js';
import { claim } from './claim.js';
import { busyError, checkWhile, type CheckOptions } from './check/check.js';
import { AutoClean } from './clean/auto-clean.js';
import { cleanPool, type CleanOptions, type CleanReport } from './clean/clean.js';
import type { CheckReport } from './check/check-report.js';
import type { Engine } from './engine.js';
import { readExtents, type ReadExtents } from './maps/extents.js';
import { growPool } from './space/grow.js';
import { Page, VolumeState } from './format/layout.js';
import { LlrrmSession, type LlrrmState } from './llrrm/llrrm-session.js';
import {
  assertOptions,
  assertOther,
  createPool,
  indexPagesOf,
  policyOf,
  type CreateOptions,
} from './pool-create.js';
import {
  closeAll,
  closedError,
  failure,
  openParts,
  type Closer,
  type Opened,
  type OpenOptions,
} from './pool-open.js';
import { rebuildIndex } from './write/rebuild.js';
import type { RecoveryReport } from './durable/recovery.js';
import { Pass } from './pass.js';
import { resizeVolume } from './maps/resize.js';
import { SpaceWatch, type SpaceState } from './space/space-watch.js';
import { poolStats, type PoolStats } from './stats/stats.js';
import { StatsSocket } from './stats/stats-socket.js';
import { trimPool, type TrimOptions } from './space/trim.js';
import { uuidText, type SuperblockFacts } from './format/superblock.js';
import { VolumeBackend, type VolumeOptions } from './volume/volume.js';

/** How often a check begins before it ends with POOL_BUSY. */
const CHECKS = 4;

const CLEAN_EVERY_MS = 60_000;

const CLOSE_GRACE_MS = 5000;

/** Devices that have a pool open in this environment. */
const opened = new WeakSet<BlockDevice>();

export class Pool {
  readonly device: BlockDevice;
  readonly engine: Engine;
  /** What opening had to do: nothing after a close in order. */
  readonly recovery: RecoveryReport | null;
  /** Resolves when the index has been rebuilt: what is stored is found from then on. */
  readonly indexed: Promise<void>;
  private readonly facts: SuperblockFacts;
  private readonly llrrmSession: LlrrmSession;
  private readonly closers: Closer[];
  private stopIndexing = false;
  /** What closing waits for. */
  private pending: Promise<unknown> = Promise.resolve();
  private readonly trimming = new Pass<number>();
  private readonly cleaning = new Pass<CleanReport>();
  private closing: Promise<void> | null = null;

  private readonly watch: SpaceWatch;
  private readonly autoClean: AutoClean;
  private readonly statsSocket: StatsSocket | null;

  private constructor(made: Opened, options: OpenOptions, statsSocket: StatsSocket | null) {
    this.device = made.device;
    this.engine = made.engine;
    this.facts = made.facts;
    this.recovery = made.recovery;
    this.llrrmSession = made.llrrm;
    this.closers = made.closers;
    this.watch = new SpaceWatch(made.engine, options.lowSpace, options.criticalSpace);
    // (It may throw: nothing that goes on by itself has begun.)
    this.statsSocket = statsSocket;
    const { uri } = made.device;
    statsSocket?.serve(() => ({ uri, uuid: this.uuid, pid: process.pid, ...this.stats() }));
    const { cleanEveryMs = CLEAN_EVERY_MS } = options;
    this.autoClean = new AutoClean(made.engine, cleanEveryMs, () => this.clean());
    this.indexed = rebuildIndex(this.engine, () => this.stopIndexing);
    this.engine.kick(); // deletions go on
  }

  /**
   * Makes a pool on a device. Errors: POOL_EXISTS, POOL_BUSY, POOL_TOO_SMALL, BAD_OPTION, the
   * device's.
   */
  static async create(device: BlockDevice, options: CreateOptions = {}): Promise<void> {
    Pool.assertNotOpen(device);
    return createPool(device, options);
  }

  /**
   * Opens the pool of a device, for reading and writing, and brings it up to date. Errors:
   * NOT_A_POOL, POOL_BUSY, POOL_TRUNCATED, POOL_CORRUPT, NEWER_FORMAT, the device's; those of
   * StatsSocket.
   */
  static async open(device: BlockDevice, options: OpenOptions = {}): Promise<Pool> {
    Pool.assertNotOpen(device);
    opened.add(device);
    const closers: Closer[] = [];
    let statsSocket: StatsSocket | null = null;
    try {
      await claim(device);
      const { statsSocket: path } = options;
      if (path !== undefined) statsSocket = new StatsSocket(path);
      return new Pool(await openParts(device, options, closers), options, statsSocket);
    } catch (error) {
      statsSocket?.close();
      // What failed first says why.
      await closeAll(closers).catch(() => undefined);
      opened.delete(device);
      throw error;
    }
  }

  /** Throws POOL_BUSY: this environment has the device's pool open. */
  static assertNotOpen(device: BlockDevice): void {
    if (!opened.has(device)) return;
    throw new PenstockError('POOL_BUSY', `the pool of ${device.uri} is open already`, {
      hint: 'use the pool that is open, or close it first',
      exitCode: 3,
    });
  }

  get uuid(): string {
    return uuidText(this.facts.uuid);
  }

  get info(): Readonly<SuperblockFacts> {
    return this.facts;
  }

  get volumes(): readonly Readonly<VolumeRecord>[] {
    return this.engine.parts.catalogue.list;
  }

  /** Low-latency memory: whether it is used, and why not. */
  get llrrm(): { state: LlrrmState; uri: string; why: string } {
    const { state, uri, why, llrrm } = this.llrrmSession;
    const failed = llrrm?.failed ?? null;
    return failed === null ? { state, uri, why } : { state: 'degraded', uri, why: failed };
  }

  stats(): PoolStats {
    return poolStats(this.engine, this.facts, this.watch, this.llrrm);
  }

  /**
   * Changes how the pool works, durably: THN and the threshold at once, low-latency memory from the
   * next opening on (null: none; what a new one holds is lost). Errors: BAD_OPTION, the device's.
   */
  async configure(
    options: Omit<CreateOptions, 'force' | 'sampling' | 'dataChecksum'>,
  ): Promise<void> {
    this.assertOpen();
    const { facts, engine } = this;
    const { thn = facts.thn, llrrmThreshold = facts.llrrmThreshold, llrrm } = options;
    assertOptions(thn, llrrmThreshold, facts.sampling);
    const policy = policyOf(options.llrrmPolicy) ?? facts.llrrmPolicy;
    const { indexBytes } = options;
    const indexPages = indexBytes === undefined ? facts.indexPages : indexPagesOf(indexBytes);
    if (llrrm !== null && llrrm !== undefined) assertOther(this.device, llrrm);
    if (llrrm !== undefined) await this.during(LlrrmSession.record(facts, llrrm));
    facts.thn = thn;
    engine.parts.thn.thn = thn;
    facts.llrrmThreshold = llrrmThreshold;
    facts.llrrmPolicy = policy;
    facts.indexPages = indexPages;
    if (engine.llrrm !== null) {
      engine.llrrm.threshold = llrrmThreshold;
      engine.llrrm.policy = facts.llrrmPolicy;
    }
    await this.checkpoint();
  }

  /**
   * How all volumes lie on the device, from their maps: that takes a read of the device for every
   * 2 MiB of a volume whose map is not in memory. Errors: POOL_CORRUPT, the device's.
   */
  readExtents(): Promise<ReadExtents> {
    this.assertOpen();
    return this.during(readExtents(this.engine, this.device));
  }

  /** How near the pool is to being full. */
  get space(): SpaceState {
    return this.watch.state;
  }

  /** Calls `listener` when that changes; the function that it gives ends that. */
  onSpace(listener: (state: SpaceState) => void): () => void {
    return this.watch.subscribe(listener);
  }

  /**
   * Makes a volume of so many bytes, all zeros; durable when it resolves. With `reserve` so many
   * bytes of the pool are promised to it: others' writes get NO_SPACE before they take them.
   * Errors: VOLUME_EXISTS, BAD_VOLUME_NAME, BAD_SIZE; NO_SPACE when that cannot be promised.
   */
  async createVolume(
    name: string,
    bytes: number,
    options: { reserve?: number } = {},
  ): Promise<void> {
    this.assertOpen();
    const { catalogue, allocator } = this.engine.parts;
    const { reserve = 0 } = options;
    catalogue.assertNew(name, bytes);
    if (reserve !== 0) assertReserve(reserve, bytes);
    const blocks = reserve / Page.bytes;
    const most = (): number => catalogue.promisable(allocator.room);
    // What was freed so far may be promised.
    if (blocks > most()) await this.checkpoint();
    if (blocks > most()) {
      const text = `${most() * Page.bytes} bytes of the pool can be promised, no more`;
      throw new PenstockError('NO_SPACE', text, {
        hint: 'reserve less, delete what is not needed, or let the pool grow',
      });
    }
    catalogue.add(name, bytes, Date.now(), blocks);
    await this.checkpoint();
  }

  /**
   * Takes the state of a volume as another one: a snapshot, which cannot be written, or a clone,
   * which can. Every write that was acknowledged before is in it; durable when it resolves. Errors:
   * NO_SUCH_VOLUME, VOLUME_EXISTS.
   */
  async copyVolume(name: string, copy: string, kind: 'snapshot' | 'clone'): Promise<void> {
    this.assertOpen();
    const { catalogue } = this.engine.parts;
    const from = catalogue.get(name);
    const state = kind === 'snapshot' ? VolumeState.snapshot : VolumeState.volume;
    const to = catalogue.addCopy(from, copy, state, Date.now());
    this.engine.copies.push({ from, to, taken: false });
    from.users++; // nobody deletes it meanwhile
    try {
      await this.checkpoint();
      catalogue.copying.delete(to); // of a pool that has failed it has no map
    } finally {
      from.users--;
    }
  }

  /**
   * Deletes a volume or snapshot; nobody finds it when it resolves, and its space comes free in the
   * background, also after the pool was closed and opened. Errors: NO_SUCH_VOLUME, VOLUME_BUSY.
   */
  async deleteVolume(name: string): Promise<void> {
    this.assertOpen();
    const { catalogue } = this.engine.parts;
    catalogue.remove(catalogue.get(name));
    await this.checkpoint();
    this.engine.kick();
  }

  /**
   * Gives a volume another size: more of zeros, or, with `shrink`, less; durable when it resolves.
   * Who has it open sees it grow by `refresh`. What is cut off comes free in the background.
   * Errors: NO_SUCH_VOLUME, VOLUME_BUSY, BAD_SIZE, READ_ONLY, WOULD_SHRINK, NO_SPACE.
   */
  async resizeVolume(
    name: string,
    bytes: number,
    options: { shrink?: boolean } = {},
  ): Promise<void> {
    this.assertOpen();
    await this.during(resizeVolume(this.engine, name, bytes, options.shrink === true));
  }

  /**
   * Uses what the device has gained since; resolves with how many bytes that are, durable. A pool
   * can be in use meanwhile. Errors: POOL_TRUNCATED, POOL_TOO_LARGE, BAD_OPTION (a cache that is
   * too small), the device's.
   */
  async grow(): Promise<number> {
    this.assertOpen();
    return this.during(growPool(this.engine, this.device, this.facts));
  }

  /**
   * Gives free space back to the device, in pieces beside other work; resolves with how many bytes.
   * It ends early when the pool is closed. Who asks while one is under way gets what comes of that
   * one; of the options only the signal counts, which ends it. Errors: UNSUPPORTED, the device's.
   */
  trim(options: TrimOptions = {}): Promise<number> {
    this.assertOpen();
    return this.trimming.join(options.signal, (signal) =>
      trimPool(this.engine, this.device, { ...options, signal }),
    );
  }

  /**
   * Empties extents with few blocks in use, beside other work: their blocks are copied to others,
   * in order, and all maps name the copies. One pass; it ends early when the pool is closed or
   * full, and says so. As with `trim`, who asks while one is under way gets that one's report.
   * Errors: BAD_OPTION, POOL_FAILED.
   */
  clean(options: CleanOptions = {}): Promise<CleanReport> {
    this.assertOpen();
    return this.cleaning.join(options.signal, (signal) =>
      cleanPool(this.engine, { ...options, signal }),
    );
  }

  /**
   * A volume as a device, to be closed before the pool. All who have it open have it with blocks of
   * one size. Errors: NO_SUCH_VOLUME, BAD_OPTION, VOLUME_BUSY.
   */
  openVolume(name: string, options: VolumeOptions = {}): BlockDevice {
    this.assertOpen();
    const volume = this.engine.parts.catalogue.get(name);
    const uri = `dedup:${this.device.uri.replace(/#.*$/, '')}#${name}`;
    return new BlockDevice(new VolumeBackend(uri, this.engine, volume, this.device, options));
  }

  /** Resolves when nothing is under way any more, deletions included. */
  async settle(): Promise<void> {
    await this.engine.settle();
  }

  /** Makes everything that was written durable, as a checkpoint. Errors: POOL_FAILED. */
  async checkpoint(): Promise<void> {
    if (await this.engine.checkpoint()) return;
    throw failure(this.engine);
  }

  /**
   * Checks the pool as a checkpoint of now is, while it is written to. Checkpoints wait for it, but
   * not writers: it gives way, and begins again, a few times. Errors: POOL_BUSY, the device's.
   */
  async check(options: CheckOptions = {}): Promise<CheckReport> {
    const { tries = CHECKS } = options;
    this.assertOpen();
    const { engine, device } = this;
    engine.holds++;
    try {
      for (let i = 0; i < tries; i++) {
        await this.checkpoint();
        const report = await checkWhile(device, options, engine.parts.checkpoint);
        if (report !== null) return report;
        this.assertOpen();
      }
    } finally {
      engine.holds--;
    }
    throw busyError(device, tries);
  }

  /**
   * Completes what is under way, and closes the pool in order. Who goes on to submit to a volume
   * is served until nothing is under way, for `graceMs` (5000) at most; then what is submitted ends
   * with DEVICE_GONE. What was begun before is completed and kept.
   */
  close(graceMs = CLOSE_GRACE_MS): Promise<void> {
    this.closing ??= this.closeOnce(graceMs);
    return this.closing;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  private async closeOnce(graceMs: number): Promise<void> {
    this.statsSocket?.close();
    this.watch.close();
    this.autoClean.close();
    this.stopIndexing = true;
    this.engine.closing = true;
    await this.indexed;
    await this.pending;
    await this.trimming.settle();
    await this.cleaning.settle();
    const { engine } = this;
    try {
      engine.llrrm?.copier.stop();
      await engine.settle(performance.now() + graceMs);
      // Who has a volume open all the same gets no further: what is saved now is the last state.
      engine.over = true;
      await engine.settle();
      this.facts.clean = true;
      if (engine.failed === null) {
        await this.llrrmSession.settle();
        await this.checkpoint();
      }
    } finally {
      engine.over = true;
      engine.closed = true;
      await closeAll(this.closers).finally(() => opened.delete(this.device));
    }
  }

  private during<T>(work: Promise<T>): Promise<T> {
    this.pending = Promise.allSettled([this.pending, work]);
    return work;
  }

  private assertOpen(): void {
    if (this.closing !== null) throw closedError();
    if (this.engine.failed !== null) throw failure(this.engine);
  }
}

/** Throws BAD_SIZE. */
function assertReserve(reserve: number, bytes: number): void {
  if (reserve > 0 && reserve <= bytes && reserve % Page.bytes === 0) return;
  throw new PenstockError('BAD_SIZE', `${reserve} bytes cannot be reserved`, {
    hint: 'give a multiple of 4 KiB, not more than the volume has',
    exitCode: 2,
  });
}
