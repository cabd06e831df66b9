// The catalogue and the maps of a pool as a check reads them (docs/format.md, "Header of a page").
//
// Every node is read once: when it is named for the first time. What it names counts once, however
// many name the node; how many blocks are mapped below it is kept, for those that name it again.

import type { DmaBuffer } from '../../memory/index.js';
import { pairOf, type Expected, type PageReader } from './check-pages.js';
import type { Findings } from './check-report.js';
import type { Naming, SpaceCheck } from './check-space.js';
import { NodeTable } from './check-tables.js';
import { Head, Magic, Node, Page, Volume, VolumeState } from '../format/layout.js';
import { isVolumeSize, leastLevel, MAP_LEVEL_MAX } from '../format/sense.js';
import type { SuperblockFacts } from '../format/superblock.js';

/** What is mapped below a node cannot be known: a page there is damaged. */
export const UNKNOWN = -1;
/** A node itself cannot be used. */
const LOST = -2;
/** What a page was read as: its level as a node of a map; this and its level, of the catalogue. */
const OF_CATALOGUE = 8;
const ROLES = 16;

export class MapsCheck {
  /** Nodes and pages of the catalogue. */
  nodes = 0;
  volumes = 0;
  /** Entries that lead to nothing that can be used: pbn of who names it * Node.entries + entry. */
  readonly lost = new Set<number>();
  /** Entries of leaves that name blocks in extents of nodes, in the same way. */
  readonly suspects = new Set<number>();
  /** Volumes whose root cannot be used. */
  readonly lostRoots = new Set<number>();
  /** Pages of the catalogue that were read, by number; and where they and their parents are. */
  readonly records = new Map<number, { pbn: number; words: Uint32Array }>();
  readonly cataloguePbns: number[] = [];
  isCatalogueWhole = true;
  private readonly reader: PageReader;
  private readonly findings: Findings;
  private readonly space: SpaceCheck;
  private readonly facts: SuperblockFacts;
  /** The superblock. */
  private readonly top: Naming;
  /** By pbn: role + (blocks mapped below it - UNKNOWN) * ROLES; UNKNOWN while it is being read. */
  private readonly seen = new NodeTable();
  private readonly names = new Map<string, number>();
  private readonly serials = new Map<number, number>();
  /** Nodes that were named, and are none. */
  private readonly unsound = new Set<number>();
  /** One page for each level: who reads a node is not done with those above it. */
  private readonly buffers: DmaBuffer[] = [];

  constructor(
    reader: PageReader,
    findings: Findings,
    space: SpaceCheck,
    facts: SuperblockFacts,
    top: Naming,
  ) {
    this.top = top;
    this.reader = reader;
    this.findings = findings;
    this.space = space;
    this.facts = facts;
  }

  /** Reads the catalogue and all maps. */
  async run(onVolume: (done: number, total: number) => Promise<void>): Promise<void> {
    const { facts } = this;
    const { memory } = this.reader.device;
    const page = memory.alloc(Page.bytes);
    try {
      while (this.buffers.length <= MAP_LEVEL_MAX) this.buffers.push(memory.alloc(Page.bytes));
      if (facts.catalogueRoot !== 0) {
        const { catalogueRoot, catalogueLevel } = facts;
        await this.catalogue(catalogueRoot, catalogueLevel, 0, this.top, page, onVolume);
      }
      this.assertLeaves();
    } finally {
      for (const buffer of this.buffers.splice(0)) buffer.free();
      page.free();
    }
  }

  private async catalogue(
    pbn: number,
    level: number,
    first: number,
    by: Naming,
    page: DmaBuffer,
    onVolume: (done: number, total: number) => Promise<void>,
  ): Promise<void> {
    const times = this.space.refer(pbn, true, by);
    if (times > 0) this.cataloguePbns.push(pbn);
    if (times > 1) {
      const text = `the ${by.page} names page ${pbn} of the catalogue, which is named already`;
      this.findings.add('entry', by.page, by.pbn, text);
    } else {
      this.seen.set(pbn, OF_CATALOGUE + level);
    }
    const expected: Expected =
      level === 0
        ? { kind: 'catalogue', name: `catalogue page ${first}`, magic: Magic.catalogue, own: 0 }
        : nodeOf(level, `of the catalogue`);
    if (times !== 1 || !(await this.reader.read(pbn, expected, page))) {
      this.isCatalogueWhole = false;
      return;
    }
    this.nodes++;
    this.space.holdsNode(pbn);
    if (level === 0) {
      const words = page.u32.slice();
      this.records.set(first, { pbn, words });
      for (let i = 0; i < Volume.perPage; i++) {
        const at = Head.words + i * Volume.words;
        const index = first * Volume.perPage + i;
        await this.record(words.subarray(at, at + Volume.words), index, {
          page: expected.name,
          pbn,
        });
        if (index < this.facts.volumes) await onVolume(index + 1, this.facts.volumes);
      }
      return;
    }
    const entries = entriesOf(page.u32);
    const span = Node.entries ** (level - 1);
    for (let e = 0; e < Node.entries; e++) {
      if (entries[e] === 0) continue;
      const own = { page: expected.name, pbn };
      await this.catalogue(entries[e]!, level - 1, first + e * span, own, page, onVolume);
    }
  }

  /** Every page with places for volumes is there. */
  private assertLeaves(): void {
    const { facts } = this;
    if (!this.isCatalogueWhole) return;
    for (let leaf = 0; leaf * Volume.perPage < facts.volumes; leaf++) {
      if (this.records.has(leaf)) continue;
      const text = `page ${leaf} of the catalogue is missing: there are ${facts.volumes} volumes`;
      this.findings.add('volume', this.top.page, this.top.pbn, text);
    }
  }

  private async record(words: Uint32Array, index: number, by: Naming): Promise<void> {
    const root = pairOf(words, Volume.rootLo);
    const level = words[Volume.level]!;
    const say = (text: string): void =>
      this.findings.add('volume', by.page, by.pbn, `volume ${index} ${text}`);
    if (words[Volume.state] === VolumeState.none) {
      if (root !== 0) say(`is none, and has a root, ${root}`);
      return;
    }
    const isDeleted = words[Volume.state] === VolumeState.deleting;
    if (!isDeleted) {
      this.volumes++;
      this.facets(words, index, say);
    }
    const bytes = pairOf(words, Volume.bytesLo);
    const least = leastLevel(bytes / Page.bytes);
    if (!isVolumeSize(bytes)) say(`has ${bytes} bytes, which cannot be`);
    else if (level < least) say(`has level ${level}, and ${bytes} bytes need ${least}`);
    if (level > MAP_LEVEL_MAX) {
      say(`has level ${level}, which no map has`);
      if (root !== 0) this.lostRoots.add(index);
      return;
    }
    const known = root === 0 ? 0 : await this.node(root, level, by);
    if (known === LOST) this.lostRoots.add(index);
    const says = pairOf(words, Volume.mappedLo);
    if (known >= 0 && known !== says && !isDeleted)
      say(`has ${known} blocks mapped, and says ${says}`);
  }

  /** What a record says of itself, without its map. */
  private facets(words: Uint32Array, index: number, say: (text: string) => void): void {
    const { facts } = this;
    const state = words[Volume.state]!;
    const serial = words[Volume.serial]!;
    const origin = words[Volume.origin]!;
    if (index >= facts.volumes) say(`is beyond the ${facts.volumes} that the superblock has`);
    if (state > VolumeState.deleting) say(`has state ${state}, which is none`);
    if (serial >= facts.nextSerial) say(`has serial ${serial}, which was not given out yet`);
    const elder = this.serials.get(serial);
    if (elder !== undefined) say(`has serial ${serial}, and so has volume ${elder}`);
    this.serials.set(serial, index);
    const blocks = pairOf(words, Volume.bytesLo) / Page.bytes;
    const reserved = pairOf(words, Volume.reservedLo);
    if (reserved > blocks) say(`has ${blocks} blocks, and ${reserved} are reserved for it`);
    if (origin > facts.volumes) say(`was taken of volume ${origin - 1}, which there is not`);
    const name = nameOf(words);
    if (name === null) {
      say('has no valid name');
      return;
    }
    const namesake = this.names.get(name);
    if (namesake !== undefined) say(`has the name '${name}', and so has volume ${namesake}`);
    this.names.set(name, index);
  }

  /** Blocks that are mapped below a node that was read; UNKNOWN where something is lost. */
  mappedBelow(pbn: number): number {
    return Math.floor((this.seen.get(pbn) ?? 0) / ROLES) + UNKNOWN;
  }

  /** Reads a node and what it names, once; returns how many blocks are mapped below it. */
  private async node(pbn: number, level: number, by: Naming): Promise<number> {
    const times = this.space.refer(pbn, true, by);
    if (times === 0) return LOST;
    if (times > 1) return this.again(pbn, level, by);
    this.seen.set(pbn, level);
    const page = this.buffers[level]!;
    const expected = nodeOf(level, 'of a map');
    if (!(await this.reader.read(pbn, expected, page))) {
      this.unsound.add(pbn);
      return LOST;
    }
    this.nodes++;
    this.space.holdsNode(pbn);
    const own = { page: expected.name, pbn };
    let mapped = 0;
    for (let e = 0; e < Node.entries; e++) {
      const entry = entryOf(page.u32, e);
      if (entry === 0) continue;
      const below =
        level > 0 ? await this.node(entry, level - 1, own) : this.block(entry, own, pbn, e);
      if (below === LOST) this.lost.add(pbn * Node.entries + e);
      mapped = mapped < 0 || below < 0 ? UNKNOWN : mapped + below;
    }
    this.seen.set(pbn, level + (mapped - UNKNOWN) * ROLES);
    return mapped;
  }

  private block(entry: number, own: Naming, pbn: number, e: number): number {
    if (this.space.refer(entry, false, own) === 0) return LOST;
    if (!this.space.isAmongNodes(entry)) return 1;
    this.suspects.add(pbn * Node.entries + e);
    return UNKNOWN;
  }

  /** A page that was named before, as a node of a map; returns how many blocks are mapped below. */
  private again(pbn: number, level: number, by: Naming): number {
    // Blocks were named by now where a node should be: that is told when the reference is.
    const seen = this.seen.get(pbn) ?? level;
    const role = seen % ROLES;
    if (this.unsound.has(pbn)) return LOST;
    if (role === level) return this.mappedBelow(pbn);
    const other = role >= OF_CATALOGUE ? 'a page of the catalogue' : `a node of level ${role}, too`;
    this.findings.add(
      'entry',
      by.page,
      by.pbn,
      `the ${by.page} names node ${pbn} of level ${level}, which is ${other}`,
    );
    return LOST;
  }
}

export function nodeOf(level: number, of: string): Expected {
  return { kind: 'node', name: `node of level ${level} ${of}`, magic: Magic.node, own: level };
}

/** What entry `e` of a node names; 0 is a hole. */
export function entryOf(words: Uint32Array, e: number): number {
  const high = words[Node.high + (e >>> 2)]! >>> ((e & 3) * 8);
  return (high & 0xff) * 2 ** 32 + words[Head.words + e]!;
}

function entriesOf(words: Uint32Array): number[] {
  return Array.from({ length: Node.entries }, (_, e) => entryOf(words, e));
}

/** The name of a volume; null when it is none: empty, no UTF-8, or with zeros inside. */
export function nameOf(words: Uint32Array): string | null {
  const from = words.byteOffset + Volume.name * 4;
  const bytes = new Uint8Array(words.buffer, from, Volume.nameBytes);
  const end = bytes.indexOf(0);
  const length = end < 0 ? bytes.length : end;
  if (length === 0 || bytes.subarray(length).some((byte) => byte !== 0)) return null;
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes.subarray(0, length));
  } catch {
    return null;
  }
}
