// VolumeBackend: a volume of a pool as a device of HPDI.

import { PenstockError } from '../../errors.js';
import {
  Flag,
  Op,
  type Backend,
  type BlockDevice,
  type DeviceInfo,
  type QueueDriver,
  type QueueOptions,
} from '../../hpdi/index.js';
import type { Memory } from '../../memory/index.js';
import type { VolumeRecord } from '../maps/catalogue.js';
import type { Engine } from '../engine.js';
import { Page, VolumeState } from '../format/layout.js';
import { SectorPages } from './sector-pages.js';
import { SECTOR_BYTES, SectorQueue } from './sector-queue.js';
import { TRANSFER_BLOCKS_MAX, VolumeQueue } from './volume-queue.js';

const OPERATIONS =
  (1 << Op.READ) | (1 << Op.WRITE) | (1 << Op.FLUSH) | (1 << Op.DISCARD) | (1 << Op.WRITE_ZEROES);
const READ_OPERATIONS = (1 << Op.READ) | (1 << Op.FLUSH);

export interface VolumeOptions {
  /** Bytes of a logical block: 512, or 4096 (default). */
  blockSize?: number;
}

/** How a volume is open: all who have it open at a time have it with blocks of one size. */
interface Use {
  readonly blockSize: number;
  /** What queues with blocks of 512 bytes share. */
  readonly pages: SectorPages | null;
  count: number;
}

const uses = new WeakMap<VolumeRecord, Use>();

export class VolumeBackend implements Backend {
  readonly uri: string;
  readonly scheme = 'dedup';
  info: DeviceInfo;
  onChange: ((info: DeviceInfo) => void) | null = null;
  private readonly engine: Engine;
  private readonly volume: VolumeRecord;
  private readonly use: Use;
  private readonly onClose: () => Promise<void>;
  private closing: Promise<void> | null = null;

  /** `onClose` is called once, when the volume is closed. Throws BAD_OPTION, VOLUME_BUSY. */
  constructor(
    uri: string,
    engine: Engine,
    volume: VolumeRecord,
    device: BlockDevice,
    { blockSize = Page.bytes }: VolumeOptions = {},
    onClose: () => Promise<void> = async () => {},
  ) {
    this.use = useOf(engine, volume, blockSize);
    this.uri = uri;
    this.engine = engine;
    this.volume = volume;
    this.onClose = onClose;
    const readOnly = volume.state !== VolumeState.volume;
    this.info = volumeInfo(volume, device.info, readOnly, blockSize);
    this.use.count++;
    volume.users++;
  }

  get memoryKind(): 'private' | 'device' {
    return this.engine.reach.kind;
  }

  get memory(): Memory | undefined {
    return this.engine.reach.memory;
  }

  openQueue(options: QueueOptions): QueueDriver {
    const { engine, volume, info } = this;
    const { pages } = this.use;
    if (pages === null) return new VolumeQueue(engine, volume, options.depth, info);
    return new SectorQueue(engine, volume, options.depth, info, pages);
  }

  /** Looks whether the volume has grown. */
  async refresh(): Promise<void> {
    const { engine, volume } = this;
    const pages = volume.bytes / Page.bytes;
    const blocks = volume.bytes / this.info.blockSize;
    // A size counts once it is durable.
    if (engine.parts.catalogue.resizing.has(volume) || blocks === this.info.blocks) return;
    this.info = { ...this.info, blocks };
    for (const queue of engine.numbered) {
      if (queue?.volume !== volume) continue;
      queue.check.blocks = pages;
      if (queue.layer !== null) queue.layer.check.blocks = blocks;
    }
    this.onChange?.(this.info);
  }

  share(): unknown {
    throw new PenstockError('NOT_SHAREABLE', `${this.uri} belongs to the thread that opened it`, {
      hint: 'use it there, or serve it to other domains: `penstock driver serve`',
    });
  }

  explainDetail(): string {
    return '';
  }

  close(): Promise<void> {
    this.closing ??= this.closeOnce();
    return this.closing;
  }

  private async closeOnce(): Promise<void> {
    this.volume.users--;
    this.use.count--;
    if (this.use.count === 0) {
      uses.delete(this.volume);
      this.use.pages?.close();
    }
    await this.onClose();
  }
}

function useOf(engine: Engine, volume: VolumeRecord, blockSize: number): Use {
  if (blockSize !== Page.bytes && blockSize !== SECTOR_BYTES) {
    throw new PenstockError('BAD_OPTION', `a volume has no blocks of ${blockSize} bytes`, {
      hint: 'open it with blocks of 512 or 4096 bytes',
      exitCode: 2,
    });
  }
  let use = uses.get(volume);
  if (use === undefined) {
    const pages = blockSize === SECTOR_BYTES ? new SectorPages(engine.reach) : null;
    use = { blockSize, pages, count: 0 };
    uses.set(volume, use);
  }
  if (use.blockSize === blockSize) return use;
  throw new PenstockError(
    'VOLUME_BUSY',
    `the volume '${volume.name}' is open with blocks of ${use.blockSize} bytes`,
    { hint: 'open it with the same size, or close it first', exitCode: 3 },
  );
}

function volumeInfo(
  volume: VolumeRecord,
  under: DeviceInfo,
  readOnly: boolean,
  blockSize: number,
): DeviceInfo {
  return {
    blockSize,
    blocks: volume.bytes / blockSize,
    maxTransferBlocks: (TRANSFER_BLOCKS_MAX * Page.bytes) / blockSize,
    maxSegments: 0,
    // The pool's own queue copies what the data device wants aligned.
    addressAlign: 1,
    segmentAlign: Page.bytes,
    boundary: 0,
    atomicBlocks: 1,
    // Until a FLUSH, what is written is where the data device keeps it.
    volatileCache: under.volatileCache,
    canLoan: false,
    loanStable: false,
    metadataBytes: 0,
    zones: null,
    operations: readOnly ? READ_OPERATIONS : OPERATIONS,
    flags: Flag.FUA,
    readOnly,
    durable: under.durable,
    physicalBlockSize: Page.bytes,
    description: {
      driver: 'dedup',
      volume: volume.name,
      data: String(under.description['driver']),
    },
  };
}
