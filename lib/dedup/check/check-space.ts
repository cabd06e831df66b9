// Space as a check sees it: summaries first, then the references that maps hold, then counts and
// fingerprints against both (docs/format.md, "Places").

import type { DmaBuffer } from '../../memory/index.js';
import { native } from '../../native.js';
import type { PageReader } from './check-pages.js';
import type { Findings } from './check-report.js';
import { ExtentSet, References } from './check-tables.js';
import {
  Fingerprint,
  Group,
  GroupShift,
  Head,
  Magic,
  Page,
  Place,
  Span,
  SpanShift,
  SpanWord,
} from '../format/layout.js';
import type { SuperblockFacts } from '../format/superblock.js';

/** Words of an entry of native.xxh3List. */
const HASH_ENTRY_WORDS = 4;

/** Who names a block or node. */
export interface Naming {
  readonly page: string;
  readonly pbn: number;
}

interface Disagreement {
  blocks: number;
  text: string;
}

export class SpaceCheck {
  /** Blocks of data in use. */
  blocks = 0;
  /** Two words per group from the first on, as summaries have them; 1 in `known` when they do. */
  readonly groups: Uint32Array;
  readonly known: Uint8Array;
  /** Root pages by number and summaries' places by span, of those that can be used. */
  readonly roots = new Map<number, Uint32Array>();
  readonly summaryPbns = new Map<number, number>();
  /** Extents in which nodes were read, and those that maps name blocks in. */
  readonly withNodes = new ExtentSet();
  readonly withBlocks = new ExtentSet();
  private readonly reader: PageReader;
  private readonly findings: Findings;
  private readonly facts: SuperblockFacts;
  private readonly references = new References();
  /** References found to the blocks of the group that is compared. */
  private readonly found = new Uint32Array(Group.counts);

  constructor(reader: PageReader, findings: Findings, facts: SuperblockFacts) {
    this.reader = reader;
    this.findings = findings;
    this.facts = facts;
    const groups = facts.highWater - facts.firstGroup;
    this.groups = new Uint32Array(groups * Span.groupWords);
    this.known = new Uint8Array(groups);
  }

  /** Reads roots and summaries, and compares them. */
  async summaries(): Promise<void> {
    const { facts, reader } = this;
    const { memory } = reader.device;
    const root = memory.alloc(Page.bytes);
    const summary = memory.alloc(Page.bytes);
    try {
      let rootNow = -1;
      let isRootSound = false;
      const end = Math.ceil(facts.highWater / Span.groups);
      for (let span = facts.firstGroup >>> Span.shift; span < end; span++) {
        if (facts.highWater === facts.firstGroup) break;
        const number = Math.floor(span / Span.perRoot);
        if (number !== rootNow) {
          rootNow = number;
          isRootSound = await reader.read(
            this.rootPbn(number),
            { kind: 'root', name: `root page ${number}`, magic: Magic.root, own: number },
            root,
          );
          if (isRootSound) this.roots.set(number, root.u32.slice());
        }
        // Which slot the summary is in, only the root says.
        if (!isRootSound) continue;
        const word = root.u32[Head.words + (span % Span.perRoot)]!;
        await this.summary(span, word, summary);
      }
    } finally {
      root.free();
      summary.free();
    }
  }

  private async summary(span: number, word: number, page: DmaBuffer): Promise<void> {
    const { facts } = this;
    const first = Math.max(span * Span.groups, facts.firstGroup);
    const end = Math.min((span + 1) * Span.groups, facts.highWater);
    const name = `summary page of span ${span}`;
    const slot = word & SpanWord.slot;
    const pbn = first * Group.pages + (2 + slot) * Group.extentPages + Group.sparePage;
    const expected = { kind: 'summary', name, magic: Magic.summary, own: span } as const;
    if (!(await this.reader.read(pbn, expected, page))) return;
    this.summaryPbns.set(span, pbn);
    let empty = 0;
    let free = 0;
    for (let group = first; group < end; group++) {
      const at = Head.words + (group % Span.groups) * Span.groupWords;
      const to = (group - facts.firstGroup) * Span.groupWords;
      this.groups[to] = page.u32[at]!;
      this.groups[to + 1] = page.u32[at + 1]!;
      this.known[group - facts.firstGroup] = 1;
      for (let k = 0; k < Group.extents; k++) {
        const used = this.usedOf(group, k);
        if (used === 0) empty++;
        free += Group.blocks - used;
      }
    }
    const saysEmpty = (word >>> SpanShift.empty) & SpanWord.emptyMask;
    const saysFree = word >>> SpanShift.free;
    if (saysEmpty === empty && saysFree === free) return;
    const number = Math.floor(span / Span.perRoot);
    this.findings.add(
      'span',
      `root page ${number}`,
      this.rootPbn(number),
      `span ${span} has ${empty} empty extents and ${free} free blocks by its summary page, ` +
        `and ${saysEmpty} and ${saysFree} by the root page`,
    );
  }

  rootPbn(number: number): number {
    const slot = (this.facts.rootSlots[number >>> 5]! >>> (number & 31)) & 1;
    return Place.roots + 2 * number + slot;
  }

  /**
   * Counts a reference to a block, or to a node. Returns how many there are with it; 0, and a
   * finding, when it names what cannot be one.
   */
  refer(pbn: number, isNode: boolean, by: Naming): number {
    const { facts } = this;
    const group = Math.floor(pbn / Group.pages);
    const page = pbn % Group.extentPages;
    let fault: string | null = null;
    if (pbn >= facts.pages) fault = 'which is beyond the end of the pool';
    else if (group < facts.firstGroup) fault = 'which is before the groups';
    else if (group >= facts.highWater) fault = 'in a group that was never used';
    else if (page < Group.metaPages) fault = "which is one of its extent's own pages";
    if (fault !== null) {
      const what = isNode ? 'node' : 'block';
      this.findings.add('entry', by.page, by.pbn, `the ${by.page} names ${what} ${pbn}, ${fault}`);
      return 0;
    }
    const k = Math.floor(pbn / Group.extentPages) % Group.extents;
    if (this.known[group - facts.firstGroup] === 1 && this.holdsNodes(group, k) !== isNode) {
      const [what, other] = isNode ? ['node', 'blocks'] : ['block', 'nodes'];
      this.findings.add(
        'entry',
        by.page,
        by.pbn,
        `the ${by.page} names ${what} ${pbn}, in an extent of ${other}`,
      );
    }
    if (!isNode) this.withBlocks.add(Math.floor(pbn / Group.extentPages));
    const times = this.foundAt(pbn) + 1;
    this.setFound(pbn, times);
    return times;
  }

  /** References found in a group, by block. */
  foundIn(group: number): Uint32Array {
    const found = new Uint32Array(Group.counts);
    this.references.copyTo(found, group);
    return found;
  }

  /** References found to a page; 0 for one that none can be to. */
  foundAt(pbn: number): number {
    const page = pbn % Group.extentPages;
    if (page < Group.metaPages) return 0;
    return this.references.at(Math.floor(pbn / Group.pages), indexOf(pbn));
  }

  setFound(pbn: number, count: number): void {
    this.references.set(Math.floor(pbn / Group.pages), indexOf(pbn), count);
  }

  /** A page was read, and is a node or a page of the catalogue. */
  holdsNode(pbn: number): void {
    this.withNodes.add(Math.floor(pbn / Group.extentPages));
  }

  /** Whether a page that may be named lies where nodes are, by the summary or as was seen. */
  isAmongNodes(pbn: number): boolean {
    const extent = Math.floor(pbn / Group.extentPages);
    const group = Math.floor(extent / Group.extents);
    if (this.withNodes.has(extent)) return true;
    const { facts, known } = this;
    return known[group - facts.firstGroup] === 1 && this.holdsNodes(group, extent % Group.extents);
  }

  /** Compares counts with what was found, group by group; with `data`, blocks with fingerprints. */
  async counts(
    data: boolean,
    onGroup: (done: number, total: number) => Promise<void>,
  ): Promise<void> {
    const { facts, reader } = this;
    const { memory } = reader.device;
    const count = memory.alloc(Page.bytes);
    const prints = memory.alloc(Page.bytes);
    const blocks = data ? memory.alloc(Group.blocks * Page.bytes) : null;
    const total = facts.highWater - facts.firstGroup;
    try {
      for (let i = 0; i < total; i++) {
        // What slot anything is in is not known without a summary: there is a finding already.
        if (this.known[i] === 1) await this.group(facts.firstGroup + i, count, prints, blocks);
        await onGroup(i + 1, total);
      }
    } finally {
      blocks?.free();
      prints.free();
      count.free();
    }
  }

  private async group(
    group: number,
    count: DmaBuffer,
    prints: DmaBuffer,
    blocks: DmaBuffer | null,
  ): Promise<void> {
    const slots = this.groups[(group - this.facts.firstGroup) * Span.groupWords + 1]!;
    const slot = (slots >>> GroupShift.count) & 1;
    const name = `count page of group ${group}`;
    const pbn = group * Group.pages + slot * Group.extentPages + Group.sparePage;
    // Each group below the high-water mark has one, from the checkpoint on that opened it.
    const expected = { kind: 'count', name, magic: Magic.count, own: group } as const;
    const isSound = await this.reader.read(pbn, expected, count);
    const counts = isSound ? count.u32.subarray(Head.words, Head.words + Group.counts) : null;
    if (counts !== null) this.compareCounts(group, counts, name, pbn);
    for (let k = 0; k < Group.extents; k++) {
      // The fingerprint page of an empty extent may never have been written.
      if (this.usedOf(group, k) === 0 || this.holdsNodes(group, k)) continue;
      const extent = group * Group.extents + k;
      const expected = {
        kind: 'fingerprint',
        name: `fingerprint page of extent ${extent}`,
        magic: Magic.fingerprint,
        own: extent,
      } as const;
      const at = extent * Group.extentPages + ((slots >>> (GroupShift.fingerprint + k)) & 1);
      const isSound = await this.reader.read(at, expected, prints);
      if (!isSound || blocks === null || counts === null) continue;
      const own = counts.subarray(k * Group.blocks, (k + 1) * Group.blocks);
      await this.compareData(extent, own, prints.u32, blocks);
    }
  }

  private compareCounts(group: number, counts: Uint32Array, name: string, pbn: number): void {
    const { found } = this;
    this.references.copyTo(found, group);
    const fewer: Disagreement = { blocks: 0, text: '' };
    const more: Disagreement = { blocks: 0, text: '' };
    for (let k = 0; k < Group.extents; k++) {
      let used = 0;
      for (let b = k * Group.blocks; b < (k + 1) * Group.blocks; b++) {
        if (counts[b] !== 0) used++;
        if (counts[b] === found[b]) continue;
        const side = counts[b]! < found[b]! ? fewer : more;
        const block =
          (group * Group.extents + k) * Group.extentPages + Group.metaPages + (b % Group.blocks);
        side.blocks++;
        side.text ||= `block ${block}: counted ${counts[b]}, named ${found[b]} times`;
      }
      if (!this.holdsNodes(group, k)) this.blocks += used;
      if (used !== this.usedOf(group, k)) this.usedDiffers(group, k, used);
    }
    const lost = 'they may be given out while they are in use';
    const kept = 'no entry was found for them: their space is lost, or a map is damaged';
    for (const [side, what, why] of [
      [fewer, 'too low a count', lost],
      [more, 'too high a count', kept],
    ] as const) {
      if (side.blocks === 0) continue;
      const text = `group ${group} has ${side.blocks} blocks with ${what} (${side.text}); ${why}`;
      this.findings.add('references', name, pbn, text);
    }
  }

  private usedDiffers(group: number, k: number, used: number): void {
    const span = group >>> Span.shift;
    this.findings.add(
      'used',
      `summary page of span ${span}`,
      this.summaryPbns.get(span)!,
      `extent ${group * Group.extents + k} has ${used} blocks in use by its counts, and ` +
        `${this.usedOf(group, k)} by the summary page`,
    );
  }

  /** Reads the blocks in use of an extent, and compares each with its fingerprint. */
  private async compareData(
    extent: number,
    counts: Uint32Array,
    prints: Uint32Array,
    buffer: DmaBuffer,
  ): Promise<void> {
    const entries = new Uint32Array(Group.blocks * HASH_ENTRY_WORDS);
    const hashes = new Uint32Array(Group.blocks * Fingerprint.words);
    const base = extent * Group.extentPages + Group.metaPages;
    const name = `extent ${extent}`;
    const isRead = (await this.reader.raw(base, buffer)) === null;
    const unread = isRead ? null : await this.readEach(base, counts, buffer);
    for (let b = 0; b < Group.blocks; b++) {
      const address = buffer.address + b * Page.bytes;
      const words = [address >>> 0, Math.floor(address / 2 ** 32), Page.bytes, 0];
      entries.set(words, b * HASH_ENTRY_WORDS);
    }
    native.xxh3List(entries, Group.blocks, hashes);
    for (let b = 0; b < Group.blocks; b++) {
      if (counts[b] === 0 || unread?.has(b) === true || isSame(hashes, prints, b)) continue;
      this.findings.add(
        'fingerprint differs',
        name,
        base + b,
        `block ${base + b} is not what its fingerprint was made of: it has changed on the ` +
          `device, or, which is no damage, a client changed its buffer while it was written`,
      );
    }
  }

  /** Reads the blocks in use one by one; returns those that cannot be read. */
  private async readEach(base: number, counts: Uint32Array, to: DmaBuffer): Promise<Set<number>> {
    const page = this.reader.device.memory.alloc(Page.bytes);
    const unread = new Set<number>();
    try {
      for (let b = 0; b < Group.blocks; b++) {
        if (counts[b] === 0) continue;
        const fault = await this.reader.raw(base + b, page);
        if (fault === null) {
          to.u8.set(page.u8, b * Page.bytes);
          continue;
        }
        unread.add(b);
        const extent = Math.floor(base / Group.extentPages);
        this.findings.add('block', `extent ${extent}`, base + b, `block ${base + b} ${fault}`);
      }
      return unread;
    } finally {
      page.free();
    }
  }

  usedOf(group: number, k: number): number {
    const at = (group - this.facts.firstGroup) * Span.groupWords;
    return (this.groups[at]! >>> (k * 8)) & 0xff;
  }

  holdsNodes(group: number, k: number): boolean {
    const at = (group - this.facts.firstGroup) * Span.groupWords + 1;
    return ((this.groups[at]! >>> (GroupShift.nodes + k)) & 1) === 1;
  }
}

/** A page's place among the counts of its group. */
function indexOf(pbn: number): number {
  const k = Math.floor(pbn / Group.extentPages) % Group.extents;
  return k * Group.blocks + (pbn % Group.extentPages) - Group.metaPages;
}

function isSame(hashes: Uint32Array, prints: Uint32Array, block: number): boolean {
  for (let i = 0; i < Fingerprint.words; i++) {
    const at = block * Fingerprint.words + i;
    if (hashes[at] !== prints[Head.words + at]) return false;
  }
  return true;
}
