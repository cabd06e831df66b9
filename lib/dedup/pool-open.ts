// Opening a pool: its superblock, what the checkpoint names, the parts of its engine, and recovery.

import { PenstockError } from '../errors.js';
import { Op, type BlockDevice } from '../hpdi/index.js';
import { addressSpace, type Segment } from '../memory/index.js';
import { Allocator, NodesFor } from './space/allocator.js';
import { Catalogue } from './maps/catalogue.js';
import { Checkpoint } from './durable/checkpoint.js';
import { Fence } from './durable/fence.js';
import { Engine } from './engine.js';
import { FingerprintIndex } from './write/fingerprint-index.js';
import { Hasher } from './write/hasher.js';
import { Intake } from './write/intake.js';
import { Io, PoolIo } from './durable/io.js';
import { Journal } from './durable/journal.js';
import { Group, Magic, Page, Place, Span, Volume } from './format/layout.js';
import { LlrrmSession, type LlrrmOptions } from './llrrm/llrrm-session.js';
import { PageCache } from './durable/pages.js';
import { Planner } from './write/planner.js';
import { ReadChecks } from './volume/read-checks.js';
import { corruptError, pageError } from './durable/errors.js';
import { JournalReader } from './durable/journal-reader.js';
import { Recovery, type RecoveryReport } from './durable/recovery.js';
import { INDEX_BYTES_MAX, INDEX_BYTES_MIN, superblockFaults } from './format/sense.js';
import { SetTable } from './write/sets.js';
import { Space } from './space/space.js';
import {
  assertPage,
  assertWritable,
  fillSuperblock,
  readSuperblock,
  type SuperblockFacts,
} from './format/superblock.js';
import { StageClock } from './stats/stage-clock.js';
import { Thn } from './write/thn.js';
import { Traffic } from './stats/traffic.js';
import { Trees } from './maps/trees.js';

export interface OpenOptions extends LlrrmOptions {
  /** Another THN than the pool's own, for this time. */
  thn?: number;
  /** Bytes of memory for pages of metadata (32 MiB), and for the fingerprint index (by size). */
  cacheBytes?: number;
  indexBytes?: number;
  /** Operations at the data device at a time (512). */
  depth?: number;
  /** Used parts of the pool from which space is low, and critical (0.8, 0.95). */
  lowSpace?: number;
  criticalSpace?: number;
  /** Every so many ms it is looked whether extents are to be emptied (60,000); 0: never. */
  cleanEveryMs?: number;
  /** Path of a unix socket at which other processes find the statistics. */
  statsSocket?: string;
}

export type Closer = () => void | Promise<void>;

export interface Opened {
  readonly device: BlockDevice;
  readonly engine: Engine;
  readonly facts: SuperblockFacts;
  readonly recovery: RecoveryReport | null;
  readonly llrrm: LlrrmSession;
  /** Give back what is held, the last first. */
  readonly closers: Closer[];
}

const CACHE_BYTES = 32 * 2 ** 20;
const CACHE_BYTES_MIN = 2 ** 20;
const CACHE_BYTES_MAX = 2 ** 28;
/** Frames that are enough for a pool of any size: 21 MiB. */
const FRAMES_ENOUGH = 5376;
const INDEX_BYTES_UNIT = 2 ** 21;
const INDEX_LOAD = 0.95;
const DEPTH = 512;

/** Gives back what was taken, the last first; requests at the device before the memory they use. */
export async function closeAll(closers: readonly Closer[]): Promise<void> {
  // The first is the queue: nothing is in flight after it.
  const failures: unknown[] = [];
  for (const close of [...closers.slice(0, 1), ...closers.slice(1).reverse()]) {
    try {
      await close();
    } catch (error) {
      failures.push(error); // the others are given back all the same
    }
  }
  if (failures.length > 0) throw failures[0];
}

export function failure(engine: Engine): PenstockError {
  if (engine.parts.checkpoint.fence.fenced) {
    return new PenstockError('POOL_BUSY', 'another owner has opened the pool since', {
      hint: 'what was flushed is in its hands; close the pool here, and use it there',
      exitCode: 3,
    });
  }
  if (engine.failed === null) return closedError();
  return new PenstockError('POOL_FAILED', `the pool takes no changes: ${engine.failed}`, {
    hint: 'what was read and flushed is safe; open the pool again once its device works',
  });
}

export function closedError(): PenstockError {
  return new PenstockError('DEVICE_CLOSED', 'the pool is closed', { hint: 'open it again' });
}

export function lbaOf(device: BlockDevice, pbn: number): number {
  return (pbn * Page.bytes) / device.info.blockSize;
}

export function assertDevice(device: BlockDevice): void {
  const { blockSize } = device.info;
  if (blockSize <= Page.bytes && Page.bytes % blockSize === 0) return;
  throw new PenstockError('POOL_BAD_DEVICE', `a pool needs blocks of 512 to 4096 bytes`, {
    hint: `${device.uri} has blocks of ${blockSize} bytes; open it with others`,
    exitCode: 2,
  });
}

/**
 * The newer of the two superblocks; null when there is none. Where one cannot be read, the other
 * alone says that there is a pool, not what its state is (`both`): it may be the older one, and
 * what that names may have been written over. Throws the device's error when nothing can be said.
 */
export async function readBoth(device: BlockDevice, both = false): Promise<SuperblockFacts | null> {
  const page = device.memory.alloc(Page.bytes);
  try {
    let newest: SuperblockFacts | null = null;
    let unread: PenstockError | null = null;
    let sound = 0;
    for (const slot of [Place.superblockA, Place.superblockB]) {
      try {
        await device.read(lbaOf(device, slot), page);
      } catch (error) {
        if (!(error instanceof PenstockError) || error.code !== 'MEDIA_ERROR') throw error;
        unread = unreadError(device, slot, error);
        continue;
      }
      const facts = readSuperblock(page.u32, slot);
      if (facts === null) continue;
      sound++;
      if (newest === null || facts.checkpoint > newest.checkpoint) newest = facts;
    }
    if (unread !== null && (both || newest === null)) throw unread;
    // Of a state that is not the last one nobody knows what follows.
    if (newest !== null && newest.checkpoint > 0 && sound < 2) newest.clean = false;
    return newest;
  } finally {
    page.free();
  }
}

function unreadError(device: BlockDevice, slot: number, cause: PenstockError): PenstockError {
  const name = slot === Place.superblockA ? 'A' : 'B';
  const message = `superblock ${name} of ${device.uri} (page ${slot}) cannot be read`;
  return new PenstockError(cause.code, `${message}: it may be the one that counts`, {
    hint: '`penstock pool check --repair` says what the other one leads to; `--yes` goes by that',
    cause,
  });
}

export async function openParts(
  device: BlockDevice,
  options: OpenOptions,
  closers: Closer[],
): Promise<Opened> {
  assertDevice(device);
  const facts = await readBoth(device, true);
  assertUsable(device, facts);
  const seed = facts.uuid[0]!;
  const io = new PoolIo(device, options.depth ?? DEPTH);
  closers.push(() => io.close());
  const asked = framesOf(options.cacheBytes ?? CACHE_BYTES);
  const frames = Math.max(asked, framesNeeded(Math.floor(facts.pages / Group.pages)));
  const pages = new PageCache(io, Io.page, frames, seed);
  closers.push(() => pages.close());
  const roots = await readRoots(device, facts);
  const endGroup = Math.floor(facts.pages / Group.pages);
  const space = new Space(pages, roots, { ...facts, endGroup });
  space.generation = facts.checkpoint + 1;
  const allocator = new Allocator(space);
  const trees = new Trees(pages, space, allocator);
  const tree = { root: facts.catalogueRoot, level: facts.catalogueLevel };
  const catalogue = new Catalogue(tree, facts.nextSerial);
  const place = { page: facts.journalPage, pages: facts.journalPages, seed, epoch: facts.epoch };
  const reader = new JournalReader(device, place, facts);
  await reader.scan();
  facts.epoch++;
  const own = { ...place, epoch: facts.epoch };
  const traffic = new Traffic();
  const clock = new StageClock(traffic.ticks);
  const journal = new Journal(io, Io.journal, own, reader.seq, reader.at, clock);
  closers.push(() => journal.close());
  const fence = new Fence(io, facts);
  closers.push(() => fence.close());
  const parts = { io, pages, space, journal, fence, seed };
  const checkpoint = new Checkpoint(parts, Io.checkpoint, facts.rootSlots, (words, number) => {
    facts.checkpoint = number;
    facts.seq = journal.seq;
    facts.journalAt = journal.position;
    facts.highWater = space.highWater;
    facts.catalogueRoot = tree.root;
    facts.catalogueLevel = tree.level;
    facts.volumes = catalogue.volumes.length;
    facts.nextSerial = catalogue.nextSerial;
    facts.sampling = index.rate;
    const slot = number & 1;
    fillSuperblock(words, facts, slot);
    return slot;
  });
  closers.push(() => checkpoint.close());
  const index = new FingerprintIndex({
    bytes: indexBytesOf(facts, space.blocksTotal, options.indexBytes),
    rate: facts.sampling,
  });
  closers.push(() => index.close());
  const sets = new SetTable();
  const zeros: Segment = addressSpace().create(Page.bytes);
  closers.push(() => zeros.close());
  const thn = new Thn(sets, space, index, options.thn ?? facts.thn);
  const planner = new Planner(
    { sets, catalogue, space, allocator, io, thn, index, clock },
    Io.write,
    Io.compare,
    (device.nativeInfo.operations & (1 << Op.COMPARE)) !== 0 ? Io.match : 0,
  );
  const hasher = new Hasher(sets, zeros.address);
  const intake = facts.dataChecksum ? new Intake(sets, io.reach) : null;
  closers.push(() => intake?.close());
  const checks = facts.dataChecksum ? new ReadChecks(io, space, ended) : null;
  const engine = new Engine({
    ...{ io, pages, space, allocator, trees, journal, checkpoint, catalogue, sets, planner },
    ...{ hasher, thn, index, intake, checks, clock, traffic },
  });
  function ended(owner: number, status: number): void {
    engine.ended(owner, status);
  }
  // What was there before has its nodes; from the first checkpoint on some are put aside.
  allocator.nodesFor = NodesFor.catalogue;
  await loadCatalogue(engine, device, facts.volumes);
  await countNodes(engine);
  let recovery: RecoveryReport | null = null;
  const wasClean = facts.clean && reader.entries.length === 0;
  facts.clean = false;
  if (!wasClean) recovery = await new Recovery(engine, device, reader).run();
  const llrrm = new LlrrmSession(engine, facts);
  closers.push(() => llrrm.close());
  // After a crash nobody has told it of what was freed.
  if (!wasClean) facts.llrrmStamp = 0;
  await llrrm.open(options);
  // From here on the epoch is this owner's: whoever had the pool before is fenced.
  if (!(await engine.checkpoint())) throw failure(engine);
  return { device, engine, facts, recovery, llrrm, closers };
}

function assertUsable(
  device: BlockDevice,
  facts: SuperblockFacts | null,
): asserts facts is SuperblockFacts {
  if (facts === null) {
    throw new PenstockError('NOT_A_POOL', `${device.uri} has no pool`, {
      hint: '`penstock pool create` makes one',
      exitCode: 3,
    });
  }
  assertWritable(facts);
  const [fault] = superblockFaults(facts);
  if (fault !== undefined) throw corruptError(`its superblock does not make sense: ${fault}`);
  const pages = Math.floor((device.info.blocks * device.info.blockSize) / Page.bytes);
  if (facts.pages > pages) {
    const lost = (facts.pages - pages) * Page.bytes;
    throw new PenstockError(
      'POOL_TRUNCATED',
      `${device.uri} is ${lost} bytes smaller than its pool`,
      {
        hint: 'give the device its size again; what is beyond its end is lost otherwise',
        exitCode: 3,
      },
    );
  }
  if (device.info.readOnly) {
    throw new PenstockError('READ_ONLY', `${device.uri} is read-only`, {
      hint: 'a pool is opened for writing',
      exitCode: 3,
    });
  }
}

/**
 * Frames without which one step, whose 1024 references may each be of another group and span, finds
 * none for their counts beside those that are dirty; no checkpoint would begin then.
 */
export function framesNeeded(groups: number): number {
  return Math.min(FRAMES_ENOUGH, 256 + 4 * groups);
}

function framesOf(bytes: number): number {
  if (bytes >= CACHE_BYTES_MIN && bytes <= CACHE_BYTES_MAX) return Math.floor(bytes / Page.bytes);
  throw new PenstockError('BAD_OPTION', `a cache of ${bytes} bytes cannot be`, {
    hint: 'give it 1 MiB to 256 MiB',
    exitCode: 2,
  });
}

/** What is asked for, or the pool is to have; else for all blocks, at a load that a table bears. */
function indexBytesOf(facts: SuperblockFacts, blocks: number, asked: number | undefined): number {
  const { indexPages, sampling } = facts;
  const given = asked ?? indexPages * Page.bytes;
  if (given >= Page.bytes && given <= INDEX_BYTES_MAX) return given;
  if (given !== 0) {
    throw new PenstockError('BAD_OPTION', `an index of ${given} bytes cannot be`, {
      hint: 'give it 4 KiB to 2 GiB, or 0: by the size of the pool',
      exitCode: 2,
    });
  }
  const wanted = (blocks / sampling / INDEX_LOAD) * 8;
  const bytes = Math.ceil(wanted / INDEX_BYTES_UNIT) * INDEX_BYTES_UNIT;
  return Math.min(INDEX_BYTES_MAX, Math.max(INDEX_BYTES_MIN, bytes));
}

/** The root pages that the checkpoint names; the others are zeros. */
async function readRoots(device: BlockDevice, facts: SuperblockFacts): Promise<Uint32Array> {
  const words = new Uint32Array(facts.roots * Page.words);
  const spans = Math.ceil(facts.highWater / Span.groups);
  const count = facts.highWater > facts.firstGroup ? Math.ceil(spans / Span.perRoot) : 0;
  const page = device.memory.alloc(Page.bytes);
  try {
    for (let root = 0; root < count; root++) {
      const slot = (facts.rootSlots[root >>> 5]! >>> (root & 31)) & 1;
      const pbn = Place.roots + 2 * root + slot;
      await device.read(lbaOf(device, pbn), page);
      assertPage(page.u32, Magic.root, pbn, facts.uuid[0]!);
      words.set(page.u32, root * Page.words);
    }
  } finally {
    page.free();
  }
  return words;
}

/** Which extents hold nodes, and what is free there. */
async function countNodes(engine: Engine): Promise<void> {
  const { space } = engine.parts;
  for (let group = space.firstGroup; group < space.highWater; group++) {
    const summary = await engine.answer(() => space.summary(group));
    for (let k = 0; k < Group.extents && summary >= 0; k++) {
      const extent = group * Group.extents + k;
      if (!space.holdsNodes(summary, extent)) continue;
      space.nodeExtents.add(extent);
      const used = space.usedIn(summary, extent);
      if (used > 0) space.nodesFree += Group.blocks - used;
    }
  }
}

async function loadCatalogue(engine: Engine, device: BlockDevice, volumes: number): Promise<void> {
  const { catalogue, trees, pages } = engine.parts;
  for (let first = 0; first < volumes; first += Volume.perPage) {
    const leaf = first / Volume.perPage;
    const frame = await engine.answer(() => trees.leaf(catalogue.tree, leaf, Magic.catalogue));
    if (frame < 0) throw pageError(pages, device);
    catalogue.take(pages.words, frame << Page.shift, first);
  }
  while (catalogue.volumes.length > volumes) catalogue.volumes.pop();
}
