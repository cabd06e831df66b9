// Space as a repair makes it anew: counts are the references that maps hold; summaries and root
// words are the sums of the counts; fingerprints that cannot be used are made of the blocks.
//
// Where something is lost and stays so, no count is lowered: what is below it may be in use.

import type { DmaBuffer } from '../../memory/index.js';
import { native } from '../../native.js';
import type { Expected, PageReader } from './check-pages.js';
import type { SpaceCheck } from './check-space.js';
import { Fingerprint, Group, GroupShift, Head, Magic, Page, Place } from '../format/layout.js';
import { Span, SpanShift, SpanWord } from '../format/layout.js';
import { slotDistance } from '../durable/pages.js';
import type { RepairPlan } from './repair-plan.js';
import type { RepairWriter } from './repair-writer.js';
import type { SuperblockFacts } from '../format/superblock.js';

/** A page with two slots: which one counts, and its words where it can be used. */
interface Slotted {
  readonly slot: number;
  readonly words: Uint32Array | null;
}

/** Reads pages of space in the slot that counts, or seems to. */
export class SpacePages {
  private readonly reader: PageReader;
  private readonly space: SpaceCheck;
  private readonly facts: SuperblockFacts;
  private readonly page: DmaBuffer;

  constructor(reader: PageReader, space: SpaceCheck, facts: SuperblockFacts) {
    this.reader = reader;
    this.space = space;
    this.facts = facts;
    this.page = reader.device.memory.alloc(Page.bytes);
  }

  close(): void {
    this.page.free();
  }

  counts(group: number): Promise<Slotted> {
    const own = { kind: 'count', name: '', magic: Magic.count, own: group } as const;
    return this.ofGroup(group, group * Group.pages + Group.sparePage, GroupShift.count, own);
  }

  fingerprints(extent: number): Promise<Slotted> {
    const group = Math.floor(extent / Group.extents);
    const shift = GroupShift.fingerprint + (extent % Group.extents);
    const own = { kind: 'fingerprint', name: '', magic: Magic.fingerprint, own: extent } as const;
    return this.ofGroup(group, extent * Group.extentPages, shift, own);
  }

  /** Slot of a span's summary page. */
  async summarySlot(span: number): Promise<number> {
    const root = this.space.roots.get(Math.floor(span / Span.perRoot));
    const own = { kind: 'summary', name: '', magic: Magic.summary, own: span } as const;
    if (root !== undefined) return root[Head.words + (span % Span.perRoot)]! & SpanWord.slot;
    return (await this.newest(summaryPbn(span, this.facts), own)).slot;
  }

  private async ofGroup(
    group: number,
    pbn: number,
    shift: number,
    expected: Expected,
  ): Promise<Slotted> {
    const { facts, space } = this;
    if (group >= facts.highWater) return { slot: 0, words: null };
    const at = group - facts.firstGroup;
    if (space.known[at] !== 1) return this.newest(pbn, expected);
    const slot = (space.groups[at * Span.groupWords + 1]! >>> shift) & 1;
    return { slot, words: await this.read(pbn + slot * slotDistance(expected.magic), expected) };
  }

  /** Without its parent, the one that was written last is the one that counts, most likely. */
  private async newest(pbn: number, expected: Expected): Promise<Slotted> {
    const a = await this.read(pbn, expected);
    const b = await this.read(pbn + slotDistance(expected.magic), expected);
    const isB = b !== null && (a === null || b[Head.checkpoint]! > a[Head.checkpoint]!);
    // Fingerprints can be made of the blocks, where there are two to choose from.
    if (a !== null && b !== null && expected.magic === Magic.fingerprint) {
      return { slot: Number(isB), words: null };
    }
    return isB ? { slot: 1, words: b } : { slot: 0, words: a };
  }

  private async read(pbn: number, expected: Expected): Promise<Uint32Array | null> {
    return (await this.reader.read(pbn, expected, this.page)) ? this.page.u32.slice() : null;
  }
}

export function summaryPbn(span: number, facts: SuperblockFacts): number {
  const group = Math.max(span * Span.groups, facts.firstGroup);
  return group * Group.pages + 2 * Group.extentPages + Group.sparePage;
}

export interface SpaceParts {
  readonly reader: PageReader;
  readonly space: SpaceCheck;
  readonly pages: SpacePages;
  readonly facts: SuperblockFacts;
  readonly plan: RepairPlan;
  readonly writer: RepairWriter;
  /** The high-water mark of the state that is made. */
  readonly highWater: number;
  /** Pages that nodes are written to: they were free. */
  readonly taken: ReadonlySet<number>;
  /** No count is lowered. */
  readonly keeps: boolean;
}

/** The two words of a group in its summary page. */
interface GroupWords {
  readonly used: number;
  readonly slots: number;
}

export class SpaceRepair {
  private readonly parts: SpaceParts;
  private readonly rootSlots: Uint32Array;

  constructor(parts: SpaceParts) {
    this.parts = parts;
    this.rootSlots = parts.facts.rootSlots.slice();
  }

  /** Writes what is not right; returns in which slots the root pages are then. */
  async run(): Promise<Uint32Array> {
    const { facts, highWater } = this.parts;
    const isUsed = highWater > facts.firstGroup;
    const from = facts.firstGroup >>> Span.shift;
    const end = isUsed ? Math.ceil(highWater / Span.groups) : from;
    for (let span = from; span < end;) {
      const number = Math.floor(span / Span.perRoot);
      const last = Math.min(end, (number + 1) * Span.perRoot);
      await this.root(number, span, last);
      span = last;
    }
    return this.rootSlots;
  }

  private async root(number: number, first: number, end: number): Promise<void> {
    const { space, plan, writer } = this.parts;
    const old = space.roots.get(number);
    const words = old?.slice() ?? new Uint32Array(Page.words);
    for (let span = first; span < end; span++) {
      words[Head.words + (span % Span.perRoot)] = await this.summary(span);
    }
    if (old?.every((word, i) => word === words[i]) === true) return;
    plan.do(
      `root page ${number}: it ${old === undefined ? 'cannot be used; it ' : ''}is made anew`,
    );
    const at = number >>> 5;
    this.rootSlots[at] = (this.rootSlots[at]! ^ (1 << (number & 31))) >>> 0;
    const slot = (this.rootSlots[at]! >>> (number & 31)) & 1;
    await writer.write(Place.roots + 2 * number + slot, Magic.root, number, words);
  }

  /** Word of a span. */
  private async summary(span: number): Promise<number> {
    const { facts, highWater, space, pages, plan, writer } = this.parts;
    const first = Math.max(span * Span.groups, facts.firstGroup);
    const end = Math.min((span + 1) * Span.groups, highWater);
    const isSound = space.summaryPbns.has(span);
    const words = new Uint32Array(Page.words);
    let isChanged = !isSound;
    let empty = 0;
    let free = 0;
    for (let group = first; group < end; group++) {
      const at = (group - facts.firstGroup) * Span.groupWords;
      const { used, slots } = await this.group(group);
      isChanged ||= used !== space.groups[at] || slots !== space.groups[at + 1];
      words.set([used, slots], Head.words + (group % Span.groups) * Span.groupWords);
      for (let k = 0; k < Group.extents; k++) {
        const blocks = (used >>> (8 * k)) & 0xff;
        if (blocks === 0) empty++;
        free += Group.blocks - blocks;
      }
    }
    let slot = await pages.summarySlot(span);
    if (isChanged) {
      const why = isSound ? '' : 'cannot be used; it ';
      plan.do(`summary page of span ${span}: it ${why}is made anew of the counts`);
      slot ^= 1;
      const pbn = summaryPbn(span, facts) + slot * slotDistance(Magic.summary);
      await writer.write(pbn, Magic.summary, span, words);
    }
    return (slot | (empty << SpanShift.empty) | (free << SpanShift.free)) >>> 0;
  }

  private async group(group: number): Promise<GroupWords> {
    const { space, facts, pages, plan, writer } = this.parts;
    const old = await pages.counts(group);
    const before = old.words?.subarray(Head.words, Head.words + Group.counts) ?? null;
    const counts = this.countsOf(group, before);
    const isSame = before?.every((count, b) => count === counts[b]) === true;
    let { slot } = old;
    if (!isSame) {
      this.tell(group, before, counts);
      slot ^= 1;
      const pbn = group * Group.pages + Group.sparePage + slot * slotDistance(Magic.count);
      const words = new Uint32Array(Page.words);
      words.set(counts, Head.words);
      await writer.write(pbn, Magic.count, group, words);
    }
    let used = 0;
    const at = (group - facts.firstGroup) * Span.groupWords + 1;
    // Bits of extents without blocks mean nothing, or which slot comes next.
    let slots = ((space.groups[at] ?? 0) & ~1) | slot;
    for (let k = 0; k < Group.extents; k++) {
      const own = counts.subarray(k * Group.blocks, (k + 1) * Group.blocks);
      const blocks = own.reduce((sum, count) => (count === 0 ? sum : sum + 1), 0);
      used |= blocks << (8 * k);
      if (blocks === 0) continue;
      const extent = group * Group.extents + k;
      const nodes = 1 << (GroupShift.nodes + k);
      if (this.isOfNodes(extent)) {
        slots |= nodes;
        continue;
      }
      const bit = GroupShift.fingerprint + k;
      const was = before?.subarray(k * Group.blocks, (k + 1) * Group.blocks) ?? own;
      slots = (slots & ~nodes & ~(1 << bit)) | ((await this.prints(extent, was, own)) << bit);
    }
    if (group >= facts.highWater) plan.do(`group ${group}: it is used for nodes that are written`);
    return { used: used >>> 0, slots: slots >>> 0 };
  }

  /** The references there are; no fewer than were counted, where maps may be missing. */
  private countsOf(group: number, before: Uint32Array | null): Uint32Array {
    const { space, facts, keeps } = this.parts;
    const found = space.foundIn(group);
    if (!keeps || group >= facts.highWater) return found;
    const isKnown = space.known[group - facts.firstGroup] === 1;
    return found.map((count, b) => {
      if (before !== null) return Math.max(count, before[b]!);
      const isEmpty = isKnown && space.usedOf(group, Math.floor(b / Group.blocks)) === 0;
      return isEmpty ? count : Math.max(count, 1);
    });
  }

  private tell(group: number, before: Uint32Array | null, counts: Uint32Array): void {
    const { plan, facts, taken } = this.parts;
    if (group >= facts.highWater) return;
    if (before === null) {
      plan.do(`counts of group ${group}: they cannot be used; they are made anew of the maps`);
      return;
    }
    const changed = (is: (was: number, now: number, b: number) => boolean): number =>
      counts.reduce((sum, now, b) => (is(before[b]!, now, b) ? sum + 1 : sum), 0);
    const isOwn = (b: number): boolean => taken.has(pbnOf(group, b));
    const own = changed((was, now, b) => was === 0 && now > 0 && isOwn(b));
    const raised = changed((was, now) => was > 0 && was < now);
    const used = changed((was, now, b) => was === 0 && now > 0 && !isOwn(b));
    const lowered = changed((was, now) => now > 0 && was > now);
    const freed = changed((was, now) => now === 0 && was > 0);
    const say = (blocks: number, what: string): void => {
      if (blocks > 0) plan.do(`counts of group ${group}: ${what}: ${blocks}`);
    };
    say(raised, 'blocks counted too low are raised');
    say(own, 'pages are used for what is written');
    say(used, 'blocks in use that were counted free are raised, and may hold other data by now');
    say(lowered, 'blocks counted too high are lowered');
    say(freed, 'blocks that no map names are freed');
  }

  private isOfNodes(extent: number): boolean {
    const { space, facts } = this.parts;
    if (space.withNodes.has(extent)) return true;
    if (space.withBlocks.has(extent)) return false;
    const group = Math.floor(extent / Group.extents);
    // What is there is damaged, or kept for whom it may belong to.
    if (space.known[group - facts.firstGroup] !== 1) return true;
    return space.holdsNodes(group, extent % Group.extents);
  }

  /** Makes fingerprints that are missing; returns in which slot they are. */
  private async prints(extent: number, was: Uint32Array, now: Uint32Array): Promise<number> {
    const { pages, plan, writer } = this.parts;
    const old = await pages.fingerprints(extent);
    const isWanted = (b: number): boolean => now[b]! > 0 && (old.words === null || was[b] === 0);
    const wanted = Array.from(now.keys()).filter(isWanted);
    if (wanted.length === 0) return old.slot;
    const why = old.words === null ? 'they cannot be used; they' : 'some';
    plan.do(`fingerprints of extent ${extent}: ${why} are made of the blocks: ${wanted.length}`);
    const words = old.words ?? new Uint32Array(Page.words);
    if (writer.isReal) await this.hash(extent, wanted, words);
    const slot = old.slot ^ 1;
    await writer.write(extent * Group.extentPages + slot, Magic.fingerprint, extent, words);
    return slot;
  }

  private async hash(extent: number, wanted: number[], words: Uint32Array): Promise<void> {
    const { reader } = this.parts;
    const page = reader.device.memory.alloc(Page.bytes);
    const print = new Uint32Array(Fingerprint.words);
    try {
      for (const b of wanted) {
        const pbn = extent * Group.extentPages + Group.metaPages + b;
        // One that cannot be read is told by the check of its data.
        print.fill(0);
        if ((await reader.raw(pbn, page)) === null) native.xxh3(page.u8, print);
        words.set(print, Head.words + b * Fingerprint.words);
      }
    } finally {
      page.free();
    }
  }
}

/** A page by its place among the counts of its group. */
function pbnOf(group: number, b: number): number {
  const extent = group * Group.extents + Math.floor(b / Group.blocks);
  return extent * Group.extentPages + Group.metaPages + (b % Group.blocks);
}
