// checkPool: whether the checkpoint of a pool holds together. It reads only, and knows no more than
// docs/format.md: nothing of the engine is used, so that both are not wrong in the same way.
//
// What is proved, if nothing is found: every page that the superblock leads to is the one that was
// written; counts are the references that there are, block by block; summaries and root words are
// the sums of the counts; maps lead to blocks and nodes only.
//
// A pool that is open elsewhere is checked as its last checkpoint is. When its superblock has
// changed meanwhile, the check begins again, a few times: then POOL_BUSY. `Pool.check` holds
// checkpoints off.
//
// Memory, per TiB of groups that are in use: 253 MiB for the references found (a byte per block),
// 2.3 MB for summaries, and about 2.7 MB per TiB that is mapped, for its nodes; 4 KiB for each
// group with a block that is named more than 254 times; and 4 KiB for 15 volumes.

import { PenstockError } from '../../errors.js';
import type { BlockDevice } from '../../hpdi/index.js';
import type { DmaBuffer } from '../../memory/index.js';
import { readJournal, type JournalAfter } from './check-journal.js';
import { MapsCheck } from './check-maps.js';
import { PageReader } from './check-pages.js';
import { Findings, type CheckReport } from './check-report.js';
import { SpaceCheck, type Naming } from './check-space.js';
import { Head, Magic, Page, Place } from '../format/layout.js';
import { superblockFaults } from '../format/sense.js';
import { readSuperblock, type SuperblockFacts } from '../format/superblock.js';

export interface CheckOptions {
  /** Reads all blocks in use, too, and compares them with their fingerprints. */
  data?: boolean;
  /** How often it is tried while the pool is changed by who has it open (3). */
  tries?: number;
  onProgress?: (progress: CheckProgress) => void | Promise<void>;
  /** Ends it: it rejects with the signal's reason. */
  signal?: AbortSignal;
}

export interface CheckProgress {
  /** Maps are counted in volumes, space in groups. */
  readonly phase: 'maps' | 'space';
  readonly done: number;
  readonly total: number;
}

/** Pages of the two superblocks, and how they are called. */
const SLOTS: readonly [Naming, Naming] = [
  { pbn: Place.superblockA, page: 'superblock A' },
  { pbn: Place.superblockB, page: 'superblock B' },
];

const TRIES = 3;

/**
 * Checks the pool of a device. Damage is in the report; it rejects with NOT_A_POOL, NEWER_FORMAT,
 * POOL_BAD_DEVICE, POOL_BUSY (the pool was changed in each try), and when the device is closed or
 * gone.
 */
export async function checkPool(
  device: BlockDevice,
  options: CheckOptions = {},
): Promise<CheckReport> {
  const { tries = TRIES } = options;
  assertDevice(device);
  for (let i = 0; i < tries; i++) {
    const report = await checkOnce(device, options);
    if (report !== null) return report;
  }
  throw busyError(device, tries);
}

export function busyError(device: BlockDevice, tries: number): PenstockError {
  const message = `the pool of ${device.uri} is changed faster than it can be checked`;
  return new PenstockError('POOL_BUSY', `${message}: ${tries} tries`, {
    hint: 'check it when less is written to it, or close it everywhere first',
    exitCode: 3,
  });
}

/** A check of a pool that is open here; null when another checkpoint was done meanwhile. */
export async function checkWhile(
  device: BlockDevice,
  options: CheckOptions,
  checkpoint: { readonly done: number },
): Promise<CheckReport | null> {
  const { done } = checkpoint;
  const onProgress = async (progress: CheckProgress): Promise<void> => {
    if (checkpoint.done !== done) throw new Outdated();
    await options.onProgress?.(progress);
  };
  try {
    return await checkOnce(device, { ...options, onProgress });
  } catch (error) {
    if (error instanceof Outdated) return null;
    throw error;
  }
}

/** What a check reads is not what it began with any more. */
class Outdated extends Error {}

/** Null: the pool was changed meanwhile. */
async function checkOnce(device: BlockDevice, options: CheckOptions): Promise<CheckReport | null> {
  const findings = new Findings();
  const page = device.memory.alloc(Page.bytes);
  try {
    const read = await readSuperblocks(device, page);
    const { facts } = read;
    tellSuperblocks(device, read, findings);
    if (facts === null || !isPlausible(device, facts, read.at, findings)) {
      return reportOf(findings, { pages: 0, nodes: 0, blocks: 0, volumes: 0, journalEntries: 0 });
    }
    const report = await checkAll(device, facts, read.at, findings, options);
    const now = await readSuperblocks(device, page);
    return now.facts?.checkpoint === facts.checkpoint ? report : null;
  } finally {
    page.free();
  }
}

async function checkAll(
  device: BlockDevice,
  facts: SuperblockFacts,
  top: Naming,
  findings: Findings,
  options: CheckOptions,
): Promise<CheckReport> {
  const { data = false, onProgress, signal } = options;
  const reader = new PageReader(device, findings, facts.uuid[0]!, facts.checkpoint, signal);
  const space = new SpaceCheck(reader, findings, facts);
  const maps = new MapsCheck(reader, findings, space, facts, top);
  await space.summaries();
  await maps.run(async (done, total) => onProgress?.({ phase: 'maps', done, total }));
  await space.counts(data, async (done, total) => onProgress?.({ phase: 'space', done, total }));
  const journal = await readJournal(device, facts, maps);
  tellJournal(facts, journal, findings);
  const { pages } = reader;
  const { nodes, volumes } = maps;
  const journalEntries = journal.entries;
  return reportOf(findings, { pages, nodes, blocks: space.blocks, volumes, journalEntries });
}

function tellJournal(facts: SuperblockFacts, journal: JournalAfter, findings: Findings): void {
  const { entries, fault } = journal;
  if (fault !== null) {
    const text = `what the journal has after the checkpoint cannot be applied: ${fault.text}`;
    findings.add('journal', 'journal', fault.pbn, text);
  }
  if (!facts.clean || entries === 0) return;
  const text = `the pool was closed in order, and ${entries} entries follow`;
  findings.add('journal', 'journal', facts.journalPage + facts.journalAt, text);
}

function reportOf(
  findings: Findings,
  seen: Pick<CheckReport, 'pages' | 'nodes' | 'blocks' | 'volumes' | 'journalEntries'>,
): CheckReport {
  return {
    schema: 'penstock.pool-check/1',
    clean: findings.total === 0,
    findings: findings.list,
    findingsTotal: findings.total,
    ...seen,
  };
}

function notAPool(device: BlockDevice): PenstockError {
  return new PenstockError('NOT_A_POOL', `${device.uri} has no pool`, {
    hint: '`penstock pool create` makes one',
    exitCode: 3,
  });
}

/** Throws where no pool can be: NOT_A_POOL, POOL_BAD_DEVICE. */
export function assertDevice(device: BlockDevice): void {
  const { blocks, blockSize } = device.info;
  if (Page.bytes % blockSize !== 0) {
    throw new PenstockError('POOL_BAD_DEVICE', `a pool needs blocks of 512 to 4096 bytes`, {
      hint: `${device.uri} has blocks of ${blockSize} bytes; open it with others`,
      exitCode: 2,
    });
  }
  if (blocks * blockSize < SLOTS.length * Page.bytes) throw notAPool(device);
}

export interface Superblocks {
  /** The newer of those that are valid, and where it is. */
  facts: SuperblockFacts | null;
  at: Naming;
  /** Those that are not; `wasOne`: there was one, or it cannot be read (`isUnread`). */
  faults: { at: Naming; text: string; wasOne: boolean; isUnread: boolean }[];
}

export async function readSuperblocks(device: BlockDevice, page: DmaBuffer): Promise<Superblocks> {
  const reader = new PageReader(device, new Findings(), 0, 0);
  const read: Superblocks = { facts: null, at: SLOTS[0], faults: [] };
  for (const at of SLOTS) {
    const unread = await reader.raw(at.pbn, page);
    const facts = unread === null ? readSuperblock(page.u32, at.pbn) : null;
    if (facts === null) {
      const isUnread = unread !== null;
      const wasOne = isUnread || page.u32[Head.magic] === Magic.superblock;
      read.faults.push({ at, text: unread ?? 'is none, or damaged', wasOne, isUnread });
    } else if (read.facts === null || facts.checkpoint > read.facts.checkpoint) {
      Object.assign(read, { facts, at });
    }
  }
  // Of a state that is not the last one nobody knows what follows.
  if (read.facts !== null && read.facts.checkpoint > 0 && read.faults.length > 0) {
    read.facts.clean = false;
  }
  return read;
}

/** Tells what is wrong with the superblocks. Throws NOT_A_POOL. */
export function tellSuperblocks(device: BlockDevice, read: Superblocks, findings: Findings): void {
  const { facts, faults } = read;
  const wasOne = faults.some((fault) => fault.wasOne);
  if (facts === null && !wasOne) throw notAPool(device);
  // A pool that was made and never opened has only one.
  if (facts?.checkpoint === 0 && !wasOne) return;
  for (const { at, text, isUnread } of faults) {
    const then = isUnread
      ? `The pool does not open like this; a repair goes by what is checked here, and writes ` +
        `this one anew. If it is the newer one,`
      : `A power cut while a superblock is written leaves it so, and opening the pool mends it; ` +
        `but if it was whole, it was the newer one or the one before, and`;
    const why =
      facts === null
        ? 'nothing leads to the state of the pool'
        : `what is checked is checkpoint ${facts.checkpoint}, which the other names. ${then} ` +
          `what came last may be lost`;
    findings.add('superblock', at.page, at.pbn, `${at.page} ${text}: ${why}`);
  }
}

/** Whether what a superblock says can be: else nothing further is read. */
export function isPlausible(
  device: BlockDevice,
  facts: SuperblockFacts,
  at: Naming,
  findings: Findings,
): boolean {
  const devicePages = Math.floor((device.info.blocks * device.info.blockSize) / Page.bytes);
  const faults = superblockFaults(facts);
  if (facts.pages > devicePages) {
    faults.push(`the pool has ${facts.pages} pages, and the device ${devicePages}`);
  }
  if (at.pbn !== facts.checkpoint % 2) {
    faults.push(`it has number ${facts.checkpoint}, which belongs to the other place`);
  }
  for (const fault of faults) findings.add('superblock', at.page, at.pbn, fault);
  return faults.length === 0;
}
