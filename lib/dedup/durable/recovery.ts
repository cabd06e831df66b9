// Recovery: what the journal says happened after the checkpoint (docs/format.md, "Journal").
//
// First all entries that count are read, and the blocks that they name reserved, so that no node of
// a map is put there; then their records are applied in order. Blocks of entries that may not have
// survived a power cut are compared with their fingerprints: those that differ are left out.

import { PenstockError } from '../../errors.js';
import type { BlockDevice } from '../../hpdi/index.js';
import type { DmaBuffer } from '../../memory/index.js';
import { native } from '../../native.js';
import type { Engine } from '../engine.js';
import { Fingerprint, Group, Head, Node, Page, Rec, RecKind } from '../format/layout.js';
import { groupOf, pair } from '../format/numbers.js';
import type { VolumeRecord } from '../maps/catalogue.js';
import { corruptError, pageError } from './errors.js';
import { type JournalReader, recordsOf } from './journal-reader.js';
import { Miss, PageFailure } from './pages.js';

export interface RecoveryReport {
  /** Entries that were applied, records of them, and blocks that were left out. */
  readonly entries: number;
  readonly records: number;
  readonly blocksLost: number;
  /** Sequence of the last entry, and where the next one goes. */
  readonly seq: number;
  readonly at: number;
  readonly ms: number;
}

/** Turns in which nothing is on its way after which nothing will come. */
const IDLE_MOST = 1000;

export class Recovery {
  private readonly engine: Engine;
  private readonly device: BlockDevice;
  private readonly reader: JournalReader;
  private readonly reserved: number[] = [];
  private readonly begun = new Set<number>();
  private records = 0;
  private blocksLost = 0;

  constructor(engine: Engine, device: BlockDevice, reader: JournalReader) {
    this.engine = engine;
    this.device = device;
    this.reader = reader;
  }

  /** Applies what the reader has found. Throws POOL_CORRUPT. */
  async run(): Promise<RecoveryReport> {
    const started = performance.now();
    const { entries } = this.reader;
    // Flushed writes would be gone, and nobody told.
    if (this.reader.lost) throw corruptError(`its journal: ${this.reader.loss}`);
    for (const entry of entries) {
      const words = await this.reader.load(entry);
      for (const at of recordsOf(words)) await this.reserve(words, at);
    }
    for (const entry of entries) {
      const words = await this.reader.load(entry);
      for (const at of recordsOf(words)) {
        await this.apply(words, at, entry.seq > this.reader.durable);
        this.records++;
      }
    }
    const { space } = this.engine.parts;
    await this.until(() => (space.settle() ? 0 : Miss.wait));
    for (const pbn of this.reserved) space.unreserve(pbn);
    return {
      entries: entries.length,
      records: this.records,
      blocksLost: this.blocksLost,
      seq: this.reader.seq,
      at: this.reader.at,
      ms: performance.now() - started,
    };
  }

  /** Nothing else is put where a record says that blocks are. */
  private async reserve(words: Uint32Array, at: number): Promise<void> {
    if ((words[at]! & 0xff) !== RecKind.write) return;
    const { space } = this.engine.parts;
    const pbn = pair(words, at + Rec.pbnLo);
    const count = words[at]! >>> 8;
    const group = groupOf(pbn);
    const extent = Math.floor(pbn / Group.extentPages);
    const page = pbn % Group.extentPages;
    if (group < space.firstGroup || group >= space.endGroup) this.corrupt('a record', pbn);
    if (page < Group.metaPages || page + count > Group.extentPages) this.corrupt('a record', pbn);
    while (space.highWater <= group) await this.until(() => (space.openGroup() ? 0 : Miss.wait));
    const summary = await this.until(() => space.summary(group));
    if (space.usedIn(summary, extent) === 0 && !this.begun.has(extent)) {
      await this.until(() => space.beginExtent(extent, false));
    }
    this.begun.add(extent);
    const counts = await this.until(() => space.count(group));
    for (let b = 0; b < count; b++) {
      if (!space.isFree(counts, pbn + b)) continue;
      space.reserve(counts, pbn + b);
      this.reserved.push(pbn + b);
    }
  }

  private async apply(words: Uint32Array, at: number, verify: boolean): Promise<void> {
    const { catalogue } = this.engine.parts;
    const volume = catalogue.at(words[at + Rec.volume]!, words[at + Rec.serial]!);
    if (volume === null) return;
    const lbn = pair(words, at + Rec.lbnLo);
    const pbn = pair(words, at + Rec.pbnLo);
    const isUnmap = (words[at]! & 0xff) === RecKind.unmap;
    const count = isUnmap ? pbn : words[at]! >>> 8;
    if ((lbn + count) * Page.bytes > volume.bytes) {
      throw corruptError(`a record of the journal is beyond the end of volume ${volume.index}`);
    }
    if (isUnmap) {
      await this.unmap(volume, lbn, count);
      return;
    }
    const prints = words.subarray(at + Rec.words, at + Rec.words + count * Fingerprint.words);
    const sound = verify ? await this.verify(pbn, count, prints) : null;
    for (let b = 0; b < count; b++) {
      if (sound !== null && sound[b] === 0) {
        this.blocksLost++;
        continue;
      }
      await this.map(volume, lbn + b, pbn + b);
      await this.enterPrint(pbn + b, prints, b);
    }
  }

  private async map(volume: VolumeRecord, lbn: number, pbn: number): Promise<void> {
    const { trees } = this.engine.parts;
    const leaf = Math.floor(lbn / Node.entries);
    const frame = await this.until(() => trees.ownMapLeaf(volume, leaf));
    volume.changed = true;
    this.engine.entering.map(volume, frame, lbn % Node.entries, pbn);
  }

  private async unmap(volume: VolumeRecord, lbn: number, count: number): Promise<void> {
    const { trees } = this.engine.parts;
    for (let at = lbn; at < lbn + count;) {
      const leaf = Math.floor(at / Node.entries);
      // -1 says that there is none, and Misses are one less.
      const found = (await this.until(() => trees.nextLeaf(volume, leaf) + 1)) - 1;
      if (found < 0) return;
      if (found !== leaf) {
        at = found * Node.entries;
        continue;
      }
      const end = Math.min(lbn + count, (leaf + 1) * Node.entries);
      for (; at < end; at++) await this.map(volume, at, 0);
    }
  }

  private async enterPrint(pbn: number, prints: Uint32Array, b: number): Promise<void> {
    const { space, pages } = this.engine.parts;
    const extent = Math.floor(pbn / Group.extentPages);
    const frame = await this.until(() => space.fingerprints(extent));
    const page = (pbn % Group.extentPages) - Group.metaPages;
    const to = (frame << Page.shift) + Head.words + page * Fingerprint.words;
    for (let i = 0; i < Fingerprint.words; i++) {
      pages.words[to + i] = prints[b * Fingerprint.words + i]!;
    }
    // Its summary is here: it was looked at a moment ago.
    space.touchFingerprints(frame, extent);
  }

  /**
   * Which of the blocks are on the device as they were written: 1 each; also of one that cannot be
   * read. That may have been flushed, and then what was there before must not come back: to who
   * reads it, it is MEDIA_ERROR, as it would be without a crash.
   */
  private async verify(pbn: number, count: number, prints: Uint32Array): Promise<Uint8Array> {
    const buffer = this.device.memory.alloc(count * Page.bytes);
    const sound = new Uint8Array(count);
    try {
      const isRead = await this.read(pbn, buffer);
      const print = new Uint32Array(Fingerprint.words);
      for (let b = 0; b < count; b++) {
        const block = buffer.u8.subarray(b * Page.bytes, (b + 1) * Page.bytes);
        if (!isRead && !(await this.readBlock(pbn + b, block))) {
          sound[b] = 1;
          continue;
        }
        native.xxh3(block, print);
        const at = b * Fingerprint.words;
        if (print.every((word, i) => word === prints[at + i])) sound[b] = 1;
      }
      return sound;
    } finally {
      buffer.free();
    }
  }

  private async readBlock(pbn: number, to: Uint8Array): Promise<boolean> {
    const buffer = this.device.memory.alloc(Page.bytes);
    try {
      const isRead = await this.read(pbn, buffer);
      to.set(buffer.u8);
      return isRead;
    } finally {
      buffer.free();
    }
  }

  /** False: a part of it cannot be read. Throws what is wrong with the device as a whole. */
  private async read(pbn: number, to: DmaBuffer): Promise<boolean> {
    try {
      await this.device.read((pbn * Page.bytes) / this.device.info.blockSize, to);
      return true;
    } catch (error) {
      if (error instanceof PenstockError && error.code === 'MEDIA_ERROR') return false;
      throw error;
    }
  }

  /** Asks until the answer is no Miss.wait. Throws what stands in the way. */
  private async until(ask: () => number): Promise<number> {
    for (let idle = 0; ;) {
      const answer = ask();
      const { space, pages, io } = this.engine.parts;
      // What the device could not read is not damaged.
      if (space.broken !== null) {
        const isDamaged = pages.failure !== PageFailure.device;
        throw isDamaged ? corruptError(space.broken) : pageError(pages, this.device);
      }
      if (answer === Miss.bad) throw pageError(pages, this.device);
      if (answer !== Miss.wait) return answer;
      idle = io.inFlight > 0 ? 0 : idle + 1;
      if (idle > IDLE_MOST) {
        throw new PenstockError(
          'OUT_OF_MEMORY',
          'the journal changes more pages than the cache has',
          {
            hint: 'open the pool with the cache that it had, or a larger one: dedup.cache=128MiB',
          },
        );
      }
      await this.engine.turn();
    }
  }

  private corrupt(what: string, pbn: number): never {
    throw corruptError(`${what} of the journal names block ${pbn}, which is none`);
  }
}
