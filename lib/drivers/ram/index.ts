// ram: a device in memory. `ram:1GiB` takes its memory at open; `ram:64TiB?sparse=1` takes 2 MiB at
// the first write to each. Data lives as long as the environment that opened it: neither a crash of
// the process nor a power cut leaves anything (info.durable is false).

import { PenstockError } from '../../errors.js';
import {
  assertHomeAlive,
  Op,
  type Backend,
  type DeviceHandle,
  type DeviceInfo,
  type DriverModule,
  type QueueDriver,
  type QueueOptions,
} from '../../hpdi/index.js';
import { addressSpace, GRANULE_BYTES, Liveness, type Segment } from '../../memory/index.js';
import { parseSize } from '../../units.js';
import { plainInfo } from '../plain-info.js';
import { parseBlockSize, parseSwitch } from '../options.js';
import { Chunks, type ChunkShare } from './chunks.js';
import { RamQueue } from './queue.js';

const DENSE_CHUNK_BYTES = 2 ** 30;
const SPARSE_BYTES_MAX = 64 * 2 ** 40;
const DENSE_BYTES_MAX = 48 * 2 ** 30;

class RamBackend implements Backend {
  readonly uri: string;
  readonly scheme = 'ram';
  readonly info: DeviceInfo;
  private readonly chunks: Chunks;
  private readonly liveness: Liveness | null;
  private readonly zeroes: Segment;

  constructor(uri: string, info: DeviceInfo, chunks: Chunks, liveness: Liveness | null) {
    this.uri = uri;
    this.info = info;
    this.chunks = chunks;
    this.liveness = liveness;
    this.zeroes = addressSpace().create(GRANULE_BYTES, { pageBytes: 4096 });
  }

  openQueue(options: QueueOptions): QueueDriver {
    return new RamQueue(this.info, this.chunks, this.zeroes.address, options.depth);
  }

  share(): ChunkShare {
    return this.chunks.share();
  }

  explainDetail(): string {
    return '';
  }

  async close(): Promise<void> {
    this.zeroes.close();
    if (this.liveness === null) {
      this.chunks.letGo();
      return;
    }
    // The word first: what workers find in the table while it stands is this device's memory.
    // Chunks that they made belong to this environment too.
    this.liveness.close();
    this.chunks.closeAll();
  }
}

export const driver: DriverModule = {
  scheme: 'ram',
  keys: {
    sparse: '1: memory is taken at the first write (sizes up to 64 TiB)',
    bs: 'logical block size in bytes (512)',
  },

  async open(path, query, uri) {
    const blockSize = parseBlockSize(query.get('bs'));
    const sparse = parseSwitch('sparse', query.get('sparse'));
    const bytes = Math.floor(parseSize(path === '' ? '256MiB' : path) / blockSize) * blockSize;
    const most = sparse ? SPARSE_BYTES_MAX : DENSE_BYTES_MAX;
    if (bytes < blockSize || bytes > most) {
      throw new PenstockError(
        'BAD_SIZE',
        `${uri}: a ram device has from one block to ${most} bytes`,
        {
          hint: sparse ? 'choose a smaller size' : 'add ?sparse=1 for sizes up to 64 TiB',
          exitCode: 2,
        },
      );
    }
    const liveness = new Liveness();
    const chunkBytes = sparse ? GRANULE_BYTES : DENSE_CHUNK_BYTES;
    const share = {
      table: Chunks.table(bytes, chunkBytes),
      chunkBytes,
      liveness: liveness.index,
      livenessSerial: liveness.serial,
    };
    const chunks = new Chunks(share, true);
    try {
      if (!sparse) chunks.fillAll(bytes);
    } catch (error) {
      liveness.close();
      chunks.closeAll();
      throw error;
    }
    const plain = plainInfo(blockSize, bytes / blockSize, {
      driver: 'ram',
      sparse,
      note: 'data ends with the process',
    });
    const operations = plain.operations | (1 << Op.COMPARE);
    return new RamBackend(uri, { ...plain, operations }, chunks, liveness);
  },

  async attach(handle: DeviceHandle) {
    assertHomeAlive(handle);
    const chunks = new Chunks(handle.shared as ChunkShare, false);
    return new RamBackend(handle.uri, handle.info, chunks, null);
  },
};
