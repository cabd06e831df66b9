// VolumeBackend: a volume of a pool as a device of HPDI.

import { PenstockError } from '../errors.js';
import {
  Flag,
  Op,
  type Backend,
  type BlockDevice,
  type DeviceInfo,
  type QueueDriver,
  type QueueOptions,
} from '../hpdi/index.js';
import type { VolumeRecord } from './catalogue.js';
import type { Engine } from './engine.js';
import { Page, VolumeState } from './layout.js';
import { TRANSFER_BLOCKS_MAX, VolumeQueue } from './volume-queue.js';

const OPERATIONS =
  (1 << Op.READ) | (1 << Op.WRITE) | (1 << Op.FLUSH) | (1 << Op.DISCARD) | (1 << Op.WRITE_ZEROES);
const READ_OPERATIONS = (1 << Op.READ) | (1 << Op.FLUSH);

export class VolumeBackend implements Backend {
  readonly uri: string;
  readonly scheme = 'dedup';
  info: DeviceInfo;
  onChange: ((info: DeviceInfo) => void) | null = null;
  private readonly engine: Engine;
  private readonly volume: VolumeRecord;
  private readonly onClose: () => Promise<void>;
  private closing: Promise<void> | null = null;

  /** `onClose` is called once, when the volume is closed. */
  constructor(
    uri: string,
    engine: Engine,
    volume: VolumeRecord,
    device: BlockDevice,
    onClose: () => Promise<void> = async () => {},
  ) {
    this.uri = uri;
    this.engine = engine;
    this.volume = volume;
    this.onClose = onClose;
    const readOnly = volume.state !== VolumeState.volume;
    this.info = volumeInfo(volume, device.info, readOnly);
    volume.users++;
  }

  openQueue(options: QueueOptions): QueueDriver {
    return new VolumeQueue(this.engine, this.volume, options.depth, this.info);
  }

  /** Looks whether the volume has grown. */
  async refresh(): Promise<void> {
    const { engine, volume } = this;
    const blocks = volume.bytes / Page.bytes;
    // A size counts once it is durable.
    if (engine.parts.catalogue.resizing.has(volume) || blocks === this.info.blocks) return;
    this.info = { ...this.info, blocks };
    for (const queue of engine.numbered) {
      if (queue?.volume === volume) queue.check.blocks = blocks;
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
    await this.onClose();
  }
}

function volumeInfo(volume: VolumeRecord, under: DeviceInfo, readOnly: boolean): DeviceInfo {
  return {
    blockSize: Page.bytes,
    blocks: volume.bytes / Page.bytes,
    maxTransferBlocks: TRANSFER_BLOCKS_MAX,
    maxSegments: 0,
    addressAlign: under.addressAlign,
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
