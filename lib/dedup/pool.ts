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

import { randomBytes } from 'node:crypto';
import { PenstockError } from '../errors.js';
import { BlockDevice } from '../hpdi/index.js';
import type { VolumeRecord } from './catalogue.js';
import type { Engine } from './engine.js';
import { readExtents, type ReadExtents } from './extents.js';
import { Page, Place, ROOT_SLOT_WORDS, SetMax, VolumeState } from './layout.js';
import { LlrrmPolicy } from './llrrm.js';
import { LlrrmSession, type LlrrmState } from './llrrm-session.js';
import { layoutOf } from './pool-layout.js';
import {
  assertDevice,
  claim,
  closeAll,
  failure,
  lbaOf,
  openParts,
  readBoth,
  type Closer,
  type Opened,
  type OpenOptions,
} from './pool-open.js';
import { rebuildIndex } from './rebuild.js';
import type { RecoveryReport } from './recovery.js';
import { poolStats, type PoolStats } from './stats.js';
import { uuidText, writeSuperblock, type SuperblockFacts } from './superblock.js';
import { VolumeBackend, type VolumeOptions } from './volume.js';

export interface CreateOptions {
  /** Runs of at least this many blocks are deduplicated (8); 0: nothing is. */
  thn?: number;
  /** References at which a block is worth being kept in low-latency memory (4). */
  llrrmThreshold?: number;
  /** Which of them: all (`shared`), or those that are read in short runs (`random`). */
  llrrmPolicy?: 'shared' | 'random';
  /** Low-latency memory; what the device holds is lost. The pool remembers its URI. */
  llrrm?: BlockDevice | null;
  /** One fingerprint in so many is in the index (8), a power of two. */
  sampling?: number;
  /** Makes a pool where there is one already; that one's data is lost. */
  force?: boolean;
}

const THN = 8;
const LLRRM_THRESHOLD = 4;
const SAMPLING = 8;
const SAMPLING_MAX = 2 ** 16;

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
  /** Walks through maps that are under way. */
  private walks: Promise<unknown> = Promise.resolve();
  private closing: Promise<void> | null = null;

  private constructor(made: Opened) {
    this.device = made.device;
    this.engine = made.engine;
    this.facts = made.facts;
    this.recovery = made.recovery;
    this.llrrmSession = made.llrrm;
    this.closers = made.closers;
    this.indexed = rebuildIndex(this.engine, () => this.stopIndexing);
  }

  /** Makes a pool on a device. Errors: POOL_EXISTS, POOL_TOO_SMALL, BAD_OPTION, the device's. */
  static async create(device: BlockDevice, options: CreateOptions = {}): Promise<void> {
    const { thn = THN, llrrmThreshold = LLRRM_THRESHOLD, sampling = SAMPLING } = options;
    const { llrrmPolicy = 'shared', llrrm = null } = options;
    assertDevice(device);
    assertOptions(thn, llrrmThreshold, sampling);
    assertOther(device, llrrm);
    await claim(device);
    if (options.force !== true) {
      const known = await readBoth(device).catch((error: unknown) => {
        if (error instanceof PenstockError && error.code === 'NEWER_FORMAT') return 'newer';
        throw error;
      });
      if (known !== null) {
        throw new PenstockError('POOL_EXISTS', `${device.uri} has a pool already`, {
          hint: 'open it; `--force` makes a new one, and what is in the old one is lost',
        });
      }
    }
    const layout = layoutOf(device.info.blocks * device.info.blockSize);
    const uuid = new Uint32Array(4);
    randomBytes(16).copy(new Uint8Array(uuid.buffer));
    const facts: SuperblockFacts = {
      ...layout,
      uuid,
      incompatible: 0,
      readCompatible: 0,
      epoch: 0,
      checkpoint: 0,
      seq: 0,
      journalAt: 0,
      clean: true,
      highWater: layout.firstGroup,
      thn,
      llrrmThreshold,
      dataChecksum: false,
      sampling,
      catalogueLevel: 0,
      catalogueRoot: 0,
      volumes: 0,
      nextSerial: 1,
      blockSize: device.info.blockSize,
      llrrmUuid: new Uint32Array(4),
      llrrmStamp: 0,
      llrrmPolicy: policyOf(llrrmPolicy) ?? LlrrmPolicy.shared,
      llrrmUri: '',
      rootSlots: new Uint32Array(ROOT_SLOT_WORDS),
    };
    if (llrrm !== null) await LlrrmSession.record(facts, llrrm);
    const page = device.memory.alloc(Page.bytes);
    try {
      // The other slot first: a superblock of an older pool would have the higher number.
      page.u8.fill(0);
      await device.write(lbaOf(device, Place.superblockB), page);
      await device.flush();
      writeSuperblock(page.u32, facts, Place.superblockA);
      await device.write(lbaOf(device, Place.superblockA), page);
      await device.flush();
    } finally {
      page.free();
    }
  }

  /**
   * Opens the pool of a device, for reading and writing, and brings it up to date. Errors:
   * NOT_A_POOL, POOL_BUSY, POOL_TRUNCATED, POOL_CORRUPT, NEWER_FORMAT, the device's.
   */
  static async open(device: BlockDevice, options: OpenOptions = {}): Promise<Pool> {
    if (opened.has(device)) {
      throw new PenstockError('POOL_BUSY', `the pool of ${device.uri} is open already`, {
        hint: 'use the pool that is open, or close it first',
        exitCode: 3,
      });
    }
    opened.add(device);
    const closers: Closer[] = [];
    try {
      await claim(device);
      return new Pool(await openParts(device, options, closers));
    } catch (error) {
      await closeAll(closers);
      opened.delete(device);
      throw error;
    }
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
    return poolStats(this.engine, this.facts);
  }

  /**
   * Changes how the pool works, durably: THN and the threshold at once, low-latency memory from the
   * next opening on (null: none; what a new one holds is lost). Errors: BAD_OPTION, the device's.
   */
  async configure(options: Omit<CreateOptions, 'force' | 'sampling'>): Promise<void> {
    this.assertOpen();
    const { facts, engine } = this;
    const { thn = facts.thn, llrrmThreshold = facts.llrrmThreshold, llrrm } = options;
    assertOptions(thn, llrrmThreshold, facts.sampling);
    if (llrrm !== null && llrrm !== undefined) assertOther(this.device, llrrm);
    if (llrrm !== undefined) await LlrrmSession.record(facts, llrrm);
    facts.thn = thn;
    engine.parts.thn.thn = thn;
    facts.llrrmThreshold = llrrmThreshold;
    facts.llrrmPolicy = policyOf(options.llrrmPolicy) ?? facts.llrrmPolicy;
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
    const walk = readExtents(this.engine, this.device);
    this.walks = Promise.allSettled([this.walks, walk]);
    return walk;
  }

  /** Makes a volume of so many bytes, all zeros; durable when it resolves. */
  async createVolume(name: string, bytes: number): Promise<void> {
    this.assertOpen();
    this.engine.parts.catalogue.add(name, bytes, Date.now());
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
    } finally {
      from.users--;
      catalogue.copying.delete(to);
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

  /** Completes what is under way, and closes the pool in order. */
  close(): Promise<void> {
    this.closing ??= this.closeOnce();
    return this.closing;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  private async closeOnce(): Promise<void> {
    this.stopIndexing = true;
    this.engine.closing = true;
    await this.indexed;
    await this.walks;
    const { engine } = this;
    try {
      engine.llrrm?.copier.stop();
      await engine.settle();
      await this.llrrmSession.settle();
      this.facts.clean = true;
      if (engine.failed === null) await this.checkpoint();
    } finally {
      await closeAll(this.closers);
      opened.delete(this.device);
    }
  }

  private assertOpen(): void {
    if (this.closing !== null) {
      throw new PenstockError('DEVICE_CLOSED', 'the pool is closed', { hint: 'open it again' });
    }
    if (this.engine.failed !== null) throw failure(this.engine);
  }
}

function policyOf(name: 'shared' | 'random' | undefined): LlrrmPolicy | undefined {
  if (name === undefined) return undefined;
  return name === 'random' ? LlrrmPolicy.random : LlrrmPolicy.shared;
}

function assertOther(device: BlockDevice, llrrm: BlockDevice | null): void {
  if (llrrm !== device && llrrm?.uri !== device.uri) return;
  throw new PenstockError('BAD_OPTION', `${device.uri} cannot be its own fast memory`, {
    hint: 'give another device: `ram:256MiB`, a faster drive',
    exitCode: 2,
  });
}

/** Throws BAD_OPTION. */
function assertOptions(thn: number, llrrmThreshold: number, sampling: number): void {
  const isPower = Number.isInteger(Math.log2(sampling));
  const wrong =
    !Number.isInteger(thn) || thn < 0 || thn > SetMax.blocks
      ? `thn is from 0 to ${SetMax.blocks}, not ${thn}`
      : !isPower || sampling < 1 || sampling > SAMPLING_MAX
        ? `sampling is a power of two from 1 to ${SAMPLING_MAX}, not ${sampling}`
        : !Number.isInteger(llrrmThreshold) || llrrmThreshold < 1 || llrrmThreshold >= 2 ** 32
          ? `llrrmThreshold is a count from 1 on, not ${llrrmThreshold}`
          : '';
  if (wrong === '') return;
  throw new PenstockError('BAD_OPTION', wrong, {
    hint: 'leave it out for a good value: thn 8, sampling 8, llrrmThreshold 4',
    exitCode: 2,
  });
}
