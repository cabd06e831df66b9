// Making a pool on a device: its first superblock, from which everything follows.

import { PenstockError } from '../errors.js';
import type { BlockDevice } from '../hpdi/index.js';
import { claim } from './claim.js';
import { FOREIGN_BYTES, foreignIn } from './format/foreign.js';
import { Feature, Page, Place, ROOT_SLOT_WORDS, SetMax } from './format/layout.js';
import { LlrrmPolicy } from './llrrm/llrrm.js';
import { LlrrmSession } from './llrrm/llrrm-session.js';
import { newUuid } from './llrrm/llrrm-store.js';
import { layoutOf } from './format/pool-layout.js';
import { INDEX_BYTES_MAX, INDEX_BYTES_MIN, SAMPLING_MAX } from './format/sense.js';
import { assertDevice, lbaOf, readBoth } from './pool-open.js';
import { writeSuperblock, type SuperblockFacts } from './format/superblock.js';

export interface CreateOptions {
  /** Runs of at least this many blocks are deduplicated (8); 0: nothing is. */
  thn?: number;
  /** References at which a block is worth being kept in low-latency memory (4). */
  llrrmThreshold?: number;
  /** Which of them: all (`shared`), or those that are read in short runs (`random`). */
  llrrmPolicy?: 'shared' | 'random';
  /** Low-latency memory; what the device holds is lost. The pool remembers its URI. */
  llrrm?: BlockDevice | null;
  /** Blocks are copied to the pool's memory when they are written, and checked when read. */
  dataChecksum?: boolean;
  /** Bytes of memory for the fingerprint index; 0: by the size of the pool. */
  indexBytes?: number;
  /** One fingerprint in so many is in the index (8), a power of two. */
  sampling?: number;
  /** Makes it also where there is a pool, a file system, a partition table: they are lost. */
  force?: boolean;
}

const THN = 8;
const LLRRM_THRESHOLD = 4;
const SAMPLING = 8;

/** As Pool.create. */
export async function createPool(device: BlockDevice, options: CreateOptions): Promise<void> {
  const { thn = THN, llrrmThreshold = LLRRM_THRESHOLD, sampling = SAMPLING } = options;
  const { llrrmPolicy = 'shared', llrrm = null, dataChecksum = false } = options;
  assertDevice(device);
  assertOptions(thn, llrrmThreshold, sampling);
  const policy = policyOf(llrrmPolicy) ?? LlrrmPolicy.shared;
  assertOther(device, llrrm);
  await claim(device);
  if (options.force !== true) await assertUnused(device);
  const layout = layoutOf(device.info.blocks * device.info.blockSize);
  const facts: SuperblockFacts = {
    ...layout,
    uuid: newUuid(),
    compatible: 0,
    incompatible: dataChecksum ? Feature.dataChecksum : 0,
    readCompatible: 0,
    epoch: 0,
    checkpoint: 0,
    seq: 0,
    journalAt: 0,
    clean: true,
    highWater: layout.firstGroup,
    thn,
    llrrmThreshold,
    dataChecksum,
    sampling,
    catalogueLevel: 0,
    catalogueRoot: 0,
    volumes: 0,
    nextSerial: 1,
    blockSize: device.info.blockSize,
    llrrmUuid: new Uint32Array(4),
    llrrmStamp: 0,
    llrrmPolicy: policy,
    indexPages: indexPagesOf(options.indexBytes ?? 0),
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

/** Throws POOL_EXISTS, POOL_FOREIGN: it holds something that a pool would overwrite. */
async function assertUnused(device: BlockDevice): Promise<void> {
  const known = await readBoth(device).catch((error: unknown) => {
    if (error instanceof PenstockError && error.code === 'NEWER_FORMAT') return 'newer';
    throw error;
  });
  if (known !== null) {
    throw new PenstockError('POOL_EXISTS', `${device.uri} has a pool already`, {
      hint: 'open it; `--force` makes a new one, and what is in the old one is lost',
    });
  }
  const head = device.memory.alloc(FOREIGN_BYTES);
  try {
    await device.read(0, head);
    const what = foreignIn(head.u8);
    if (what === null) return;
    throw new PenstockError('POOL_FOREIGN', `${device.uri} holds ${what}`, {
      hint: 'another device; or, if nobody needs what it holds, `--force`',
      exitCode: 3,
    });
  } finally {
    head.free();
  }
}

/** Throws BAD_OPTION. */
export function policyOf(name: 'shared' | 'random' | undefined): LlrrmPolicy | undefined {
  if (name === undefined) return undefined;
  if (name === 'random') return LlrrmPolicy.random;
  if (name === 'shared') return LlrrmPolicy.shared;
  throw new PenstockError('BAD_OPTION', `llrrmPolicy is shared or random, not ${String(name)}`, {
    hint: 'shared: all blocks with references enough; random: of those what is read in short runs',
    exitCode: 2,
  });
}

/** Throws BAD_OPTION. */
export function indexPagesOf(bytes: number): number {
  if (bytes === 0 || (bytes >= INDEX_BYTES_MIN && bytes <= INDEX_BYTES_MAX)) {
    return Math.floor(bytes / Page.bytes);
  }
  throw new PenstockError('BAD_OPTION', `an index of ${bytes} bytes cannot be`, {
    hint: 'give it 1 MiB to 2 GiB, or 0: by the size of the pool',
    exitCode: 2,
  });
}

export function assertOther(device: BlockDevice, llrrm: BlockDevice | null): void {
  if (llrrm !== device && llrrm?.uri !== device.uri) return;
  throw new PenstockError('BAD_OPTION', `${device.uri} cannot be its own fast memory`, {
    hint: 'give another device: `ram:256MiB`, a faster drive',
    exitCode: 2,
  });
}

/** Throws BAD_OPTION. */
export function assertOptions(thn: number, llrrmThreshold: number, sampling: number): void {
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
