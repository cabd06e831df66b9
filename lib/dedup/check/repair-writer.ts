// Where a repair writes: as a checkpoint does, beside the state that the superblock names, and at
// last the superblock, to the slot of the one before (docs/format.md, "States").

import { PenstockError } from '../../errors.js';
import type { BlockDevice } from '../../hpdi/index.js';
import type { DmaBuffer } from '../../memory/index.js';
import type { SpaceCheck } from './check-space.js';
import { Entry, ENTRY_PAGES, Group, Head, Magic, Page } from '../format/layout.js';
import type { SpacePages } from './repair-space.js';
import { pair, setPair } from '../format/numbers.js';
import { checksum, writeSuperblock, type SuperblockFacts } from '../format/superblock.js';

export class RepairWriter {
  /** Pages that were written, or would be. */
  pages = 0;
  /** What only has to look right is not made for a repair that writes nothing. */
  readonly isReal: boolean;
  private readonly device: BlockDevice;
  private readonly facts: SuperblockFacts;
  private readonly number: number;

  constructor(device: BlockDevice, facts: SuperblockFacts, isReal: boolean) {
    this.device = device;
    this.facts = facts;
    this.number = facts.checkpoint + 1;
    this.isReal = isReal;
  }

  /** Writes a page whose words from 8 on are `words`'. */
  async write(pbn: number, magic: Magic, own: number, words: Uint32Array): Promise<void> {
    this.pages++;
    if (!this.isReal) return;
    await this.put(pbn, (page) => {
      page.set(words);
      page[Head.magic] = magic;
      setPair(page, Head.pbnLo, pbn);
      setPair(page, Head.seqLo, this.facts.seq);
      page[Head.checkpoint] = this.number;
      page[Head.own] = own >>> 0;
      page[Head.crc] = checksum(page, this.facts.uuid[0]!);
    });
  }

  /** From here on what was written counts. */
  async name(facts: SuperblockFacts): Promise<void> {
    this.pages++;
    if (!this.isReal) return;
    await this.device.flush();
    const slot = this.number & 1;
    await this.put(slot, (page) =>
      writeSuperblock(page, { ...facts, checkpoint: this.number }, slot),
    );
    await this.device.flush();
  }

  /** The journal ends before this page. What is named stays as it is: it is done last. */
  async cutJournal(pbn: number): Promise<void> {
    const { journalPage, journalPages, journalAt } = this.facts;
    const begin = journalPage + journalAt;
    // An entry has so many pages: those that cannot be read are written, too. What comes before it
    // in the ring stays.
    const stop = pbn < begin ? begin : journalPage + journalPages;
    const end = Math.min(pbn + ENTRY_PAGES, stop);
    const first = Array.from({ length: end - pbn }, (_, i) => pbn + i);
    const later = await this.entriesAfter(end);
    this.pages += first.length + later.length;
    if (!this.isReal) return;
    // As long as an entry follows that calls what is dropped durable, the pool does not open.
    for (const pages of [later, first]) {
      for (const at of pages) await this.put(at, (page) => page.fill(0));
      await this.device.flush();
    }
  }

  /** Pages from one of the journal on that may begin an entry after the checkpoint. */
  private async entriesAfter(pbn: number): Promise<number[]> {
    const { journalPage, journalPages, journalAt, seq } = this.facts;
    const found: number[] = [];
    const page = this.device.memory.alloc(Page.bytes);
    try {
      const first = (pbn - journalPage) % journalPages;
      // Up to the first entry; the whole ring, if that is where it is cut.
      const count = (journalAt - first + journalPages) % journalPages;
      for (let i = 0; i < count; i++) {
        const at = journalPage + ((first + i) % journalPages);
        if (!(await this.isRead(at, page))) continue; // it says nothing to who opens the pool, too
        const isEntry = page.u32[Entry.magic] === Magic.entry;
        if (isEntry && pair(page.u32, Entry.seqLo) > seq) found.push(at);
      }
    } finally {
      page.free();
    }
    return found;
  }

  private async isRead(pbn: number, page: DmaBuffer): Promise<boolean> {
    try {
      await this.device.read((pbn * Page.bytes) / this.device.info.blockSize, page);
      return true;
    } catch (error) {
      if (error instanceof PenstockError && error.code === 'MEDIA_ERROR') return false;
      throw error;
    }
  }

  private async put(pbn: number, fill: (page: Uint32Array) => void): Promise<void> {
    const { device } = this;
    const page = device.memory.alloc(Page.bytes);
    try {
      fill(page.u32);
      await device.write((pbn * Page.bytes) / device.info.blockSize, page);
    } finally {
      page.free();
    }
  }
}

/** Pages for nodes: free in the state that is there, in the one to be, and to the journal. */
export class FreePages {
  highWater: number;
  /** Those that were taken. */
  readonly taken = new Set<number>();
  private readonly space: SpaceCheck;
  private readonly facts: SuperblockFacts;
  private readonly pages: AsyncGenerator<number, void>;

  /** `named`: extents in which the journal has blocks. */
  constructor(old: SpacePages, space: SpaceCheck, facts: SuperblockFacts, named: Set<number>) {
    this.space = space;
    this.facts = facts;
    this.highWater = facts.highWater;
    this.pages = this.look(old, named);
  }

  /** A page, with `count` references. Throws NO_SPACE. */
  async take(count: number): Promise<number> {
    const next = await this.pages.next();
    if (next.done === true) {
      throw new PenstockError('NO_SPACE', 'the pool has no free page for a node', {
        hint: 'a repair writes beside what is there: it needs a few pages',
      });
    }
    const pbn = next.value;
    this.highWater = Math.max(this.highWater, Math.floor(pbn / Group.pages) + 1);
    this.taken.add(pbn);
    this.space.setFound(pbn, count);
    this.space.holdsNode(pbn);
    return pbn;
  }

  private async *look(old: SpacePages, named: Set<number>): AsyncGenerator<number, void> {
    const { facts, space } = this;
    for (let group = facts.firstGroup; group < facts.highWater; group++) {
      const { words } = await old.counts(group);
      if (words === null || space.known[group - facts.firstGroup] !== 1) continue;
      for (let k = 0; k < Group.extents; k++) {
        const extent = group * Group.extents + k;
        if (named.has(extent) || space.withBlocks.has(extent)) continue;
        const isFree = (b: number): boolean =>
          words[Head.words + k * Group.blocks + b] === 0 && space.foundAt(placeOf(extent, b)) === 0;
        const blocks = Array.from({ length: Group.blocks }, (_, b) => b);
        if (!space.holdsNodes(group, k) && !blocks.every(isFree)) continue;
        for (const b of blocks) if (isFree(b)) yield placeOf(extent, b);
      }
    }
    const end = Math.floor(facts.pages / Group.pages) * Group.extents;
    for (let extent = facts.highWater * Group.extents; extent < end; extent++) {
      if (named.has(extent)) continue;
      for (let b = 0; b < Group.blocks; b++) yield placeOf(extent, b);
    }
  }
}

function placeOf(extent: number, block: number): number {
  return extent * Group.extentPages + Group.metaPages + block;
}
