// repairPool: makes a damaged pool hold together again, as far as it can, and says before what it
// will do. Maps and catalogue are the truth about what volumes hold; all else is made anew of them.
//
// Invariants
// 1. What the superblock names stays as it is; the repaired state is written beside it, made
//    durable, and named last. A crash leaves the one or the other, whole.
// 2. Nothing that is lost becomes zeros, and nothing that may belong to it is freed, unless the
//    caller says so (`dropLost`).
// 3. The journal stays, but for what `dropLost` drops of it at the end: the pool is opened in the
//    ordinary way afterwards, which applies it, and has the epoch that fences others.

import { PenstockError } from '../../errors.js';
import type { BlockDevice } from '../../hpdi/index.js';
import {
  assertDevice,
  checkPool,
  isPlausible,
  readSuperblocks,
  tellSuperblocks,
  type Superblocks,
} from './check.js';
import { readJournal } from './check-journal.js';
import { MapsCheck } from './check-maps.js';
import { PageReader } from './check-pages.js';
import { Findings } from './check-report.js';
import { SpaceCheck } from './check-space.js';
import { Page } from '../format/layout.js';
import { Pool } from '../pool.js';
import { claim } from '../claim.js';
import type { RecoveryReport } from '../durable/recovery.js';
import { CatalogueRepair } from './repair-catalogue.js';
import { unsteady } from './repair-maps.js';
import { RepairPlan, type RepairReport } from './repair-plan.js';
import { SpacePages, SpaceRepair } from './repair-space.js';
import { FreePages, RepairWriter } from './repair-writer.js';
import { assertWritable, type SuperblockFacts } from '../format/superblock.js';

export interface RepairOptions {
  /** Says what it would do, and changes nothing. */
  dryRun?: boolean;
  /** What is lost becomes zeros, or is gone, and its space is free. */
  dropLost?: boolean;
  /** The check afterwards reads all blocks, too. */
  data?: boolean;
  /** Called before anything is changed. */
  onPlan?: (report: RepairReport) => void;
  /** Ends it before anything is changed, with the signal's reason; later it is not heard. */
  signal?: AbortSignal;
}

interface Pass {
  readonly plan: RepairPlan;
  readonly pages: number;
  readonly journalEntries: number;
}

/**
 * Repairs the pool of a device that nobody has open. Errors: those of `checkPool` and `Pool.open`;
 * POOL_BUSY, also of a dry run, when another checkpoint was done meanwhile;
 * POOL_CORRUPT when nothing leads to the pool's state; NO_SPACE when no page is free to write to.
 */
export async function repairPool(
  device: BlockDevice,
  options: RepairOptions = {},
): Promise<RepairReport> {
  const { dryRun = false, dropLost = false, data = false, onPlan, signal } = options;
  assertDevice(device);
  Pool.assertNotOpen(device);
  if (!dryRun) await claim(device);
  const planned = await pass(device, dropLost, null, signal);
  const told = reportOf(planned, false);
  onPlan?.(told);
  signal?.throwIfAborted();
  if (dryRun || planned.plan.isEmpty) return told;
  await pass(device, dropLost, planned.plan);
  const recovery = await bringUp(device, planned.plan);
  const check = await checkPool(device, { data });
  return { ...reportOf(planned, true), recovery, check };
}

function reportOf({ plan, pages, journalEntries }: Pass, done: boolean): RepairReport {
  const schema = 'penstock.pool-repair/1';
  return { schema, done, ...plan.told, pages, journalEntries, recovery: null, check: null };
}

/** Goes over the whole pool; writes what it finds to be done only if that is what was planned. */
async function pass(
  device: BlockDevice,
  dropLost: boolean,
  planned: RepairPlan | null,
  signal?: AbortSignal,
): Promise<Pass> {
  const plan = new RepairPlan();
  const { facts, at } = await readable(device, plan);
  const findings = new Findings();
  const reader = new PageReader(device, findings, facts.uuid[0]!, facts.checkpoint, signal);
  const space = new SpaceCheck(reader, findings, facts);
  const maps = new MapsCheck(reader, findings, space, facts, at);
  await space.summaries();
  await maps.run(async () => {});
  const journal = await readJournal(device, facts, maps);
  const { fault } = journal;
  if (fault !== null) {
    plan.losses++;
    const told = `journal: what it has after the checkpoint cannot be applied: ${fault.text}`;
    if (dropLost) plan.do(`${told}; that entry and what follows it is dropped`);
    else plan.leave(told);
  }
  const writer = new RepairWriter(device, facts, planned !== null);
  const old = new SpacePages(reader, space, facts);
  try {
    // Nobody tells low-latency memory of what is freed here.
    const next = { ...facts, llrrmStamp: 0 };
    const free = new FreePages(old, space, facts, journal.extents);
    const parts = { reader, space, maps, plan, writer, free, dropLost };
    await new CatalogueRepair(parts, next).run();
    const keeps = plan.losses > 0 && !dropLost;
    if (keeps) plan.leave('blocks that no map names may be of what is lost: none is freed');
    const { highWater, taken } = free;
    const all = { reader, space, pages: old, facts, plan, writer, highWater, taken, keeps };
    const rootSlots = await new SpaceRepair(all).run();
    if (next.nextSerial !== facts.nextSerial) {
      plan.do(`superblock: the next serial is ${next.nextSerial}, not ${facts.nextSerial}`);
    }
    await assertQuiet(device, facts);
    if (planned !== null && !planned.isSameAs(plan)) throw unsteady(device);
    if (!plan.isEmpty) await writer.name({ ...next, highWater, rootSlots });
    if (fault !== null && dropLost) await writer.cutJournal(fault.pbn);
    return { plan, pages: plan.isEmpty ? 0 : writer.pages, journalEntries: journal.entries };
  } finally {
    old.close();
  }
}

/** What the superblocks lead to. Throws NOT_A_POOL, NEWER_FORMAT, POOL_CORRUPT. */
async function readable(
  device: BlockDevice,
  plan: RepairPlan,
): Promise<Superblocks & { facts: SuperblockFacts }> {
  const findings = new Findings();
  const page = device.memory.alloc(Page.bytes);
  try {
    const read = await readSuperblocks(device, page);
    const { facts, at } = read;
    tellSuperblocks(device, read, findings);
    if (facts === null) throw beyondRepair('neither superblock can be used');
    for (const { where } of findings.list) {
      plan.do(
        `${where.page}: it cannot be used; what the other names, checkpoint ` +
          `${facts.checkpoint}, and the journal after it are what counts`,
      );
    }
    assertWritable(facts);
    const faults = new Findings();
    if (!isPlausible(device, facts, at, faults)) throw beyondRepair(faults.list[0]!.message);
    return { ...read, facts };
  } finally {
    page.free();
  }
}

/** Throws POOL_BUSY: what was read is of several states. */
async function assertQuiet(device: BlockDevice, facts: SuperblockFacts): Promise<void> {
  const page = device.memory.alloc(Page.bytes);
  try {
    const now = await readSuperblocks(device, page);
    if (now.facts?.checkpoint === facts.checkpoint) return;
  } finally {
    page.free();
  }
  const message = `the pool of ${device.uri} was changed while it was read: nothing is repaired`;
  throw new PenstockError('POOL_BUSY', message, {
    hint: 'close it everywhere first',
    exitCode: 3,
  });
}

function beyondRepair(why: string): PenstockError {
  return new PenstockError('POOL_CORRUPT', `the pool cannot be repaired: ${why}`, {
    hint: 'restore the device from a copy; nothing was changed',
  });
}

/** Opens the pool and closes it, which applies the journal. It may not open: something is lost. */
async function bringUp(device: BlockDevice, plan: RepairPlan): Promise<RecoveryReport | null> {
  try {
    const pool = await Pool.open(device, { llrrm: null, cleanEveryMs: 0 });
    await pool.close();
    return pool.recovery;
  } catch (error) {
    if (!(error instanceof PenstockError) || !isOfData(error)) throw error;
    plan.leave(`the pool does not open yet: ${error.message}`);
    return null;
  }
}

function isOfData(error: PenstockError): boolean {
  return error.code === 'POOL_CORRUPT' || error.code === 'MEDIA_ERROR';
}
