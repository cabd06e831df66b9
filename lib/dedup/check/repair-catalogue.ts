// The catalogue as a repair mends it: records that do not make sense are mended, pages and nodes
// that change are written elsewhere, and what leads to them is made anew.

import { nameOf, UNKNOWN } from './check-maps.js';
import { pairOf } from './check-pages.js';
import { Head, Magic, Node, Page, Volume, VolumeState } from '../format/layout.js';
import { isVolumeSize, leastLevel, MAP_LEVEL_MAX, VOLUME_BYTES_MAX } from '../format/sense.js';
import { MapsRepair, setEntry, type RepairParts } from './repair-maps.js';
import { setPair } from '../format/numbers.js';
import type { SuperblockFacts } from '../format/superblock.js';

export class CatalogueRepair {
  private readonly parts: RepairParts;
  /** Of the state that is made; its catalogue's words are set here. */
  private readonly facts: SuperblockFacts;
  private readonly mapsRepair: MapsRepair;
  private readonly names = new Set<string>();
  private readonly given = new Set<string>();
  /** Pages can be written: nothing that leads to them is lost, or it may be dropped. */
  private mends = true;
  private readonly serials = new Set<number>();

  constructor(parts: RepairParts, facts: SuperblockFacts) {
    this.parts = parts;
    this.facts = facts;
    this.mapsRepair = new MapsRepair(parts);
  }

  async run(): Promise<void> {
    const { maps, dropLost } = this.parts;
    const known = [...maps.records].sort(([a], [b]) => a - b);
    const last = known.at(-1)?.[0] ?? -1;
    const pages = Math.max(Math.ceil(this.facts.volumes / Volume.perPage), last + 1);
    const lost = Array.from({ length: pages }, (_, leaf) => leaf).filter(
      (leaf) => !maps.records.has(leaf),
    );
    this.tellLost(lost);
    this.mends = dropLost || lost.length === 0;
    let isChanged = dropLost && lost.length > 0;
    for (const [, { words }] of known) for (let i = 0; i < Volume.perPage; i++) this.note(words, i);
    for (const [leaf, page] of known) {
      const before = page.words.slice();
      for (let i = 0; i < Volume.perPage; i++) await this.record(page.words, leaf, i);
      if (before.every((word, i) => word === page.words[i])) continue;
      isChanged = true;
      page.pbn = 0;
    }
    if (!isChanged) return;
    for (const leaf of lost) maps.records.set(leaf, { pbn: 0, words: new Uint32Array(Page.words) });
    await this.write(pages);
  }

  private tellLost(leaves: number[]): void {
    const { plan, dropLost } = this.parts;
    for (const leaf of leaves) {
      plan.losses++;
      const first = leaf * Volume.perPage;
      const what =
        `catalogue page ${leaf}: it cannot be used: what there was of volumes ${first} to ` +
        `${first + Volume.perPage - 1} is lost`;
      if (dropLost) plan.do(`${what}; they are gone`);
      else plan.leave(`${what}; it stays so, and the pool does not open`);
    }
  }

  /** Names and serials that are taken, before any other is given. */
  private note(page: Uint32Array, i: number): void {
    const at = Head.words + i * Volume.words;
    const words = page.subarray(at, at + Volume.words);
    if (words[Volume.state] === VolumeState.none) return;
    this.facts.nextSerial = Math.max(this.facts.nextSerial, words[Volume.serial]! + 1);
    this.names.add(nameOf(words) ?? '');
  }

  private async record(page: Uint32Array, leaf: number, i: number): Promise<void> {
    const { plan } = this.parts;
    const at = Head.words + i * Volume.words;
    const words = page.subarray(at, at + Volume.words);
    const index = leaf * Volume.perPage + i;
    const state = words[Volume.state]!;
    if (state === VolumeState.none) {
      if (pairOf(words, Volume.rootLo) === 0 || !this.mends) return;
      plan.do(`volume ${index}: it is none, and its record becomes empty`);
      words.fill(0);
      return;
    }
    if (this.mends) this.mend(words, index);
    const isDeleted = state === VolumeState.deleting;
    const title = isDeleted ? `volume ${index}, being deleted` : `volume ${nameOf(words) ?? index}`;
    const blocks = Math.max(1, Math.ceil(pairOf(words, Volume.bytesLo) / Page.bytes));
    const root = pairOf(words, Volume.rootLo);
    const mended = await this.mapsRepair.volume(index, title, blocks, root, words[Volume.level]!);
    if (!this.mends) return;
    await this.name(words, title, mended.pbn, leastLevel(blocks));
    const says = pairOf(words, Volume.mappedLo);
    if (mended.mapped === UNKNOWN || mended.mapped === says || isDeleted) return;
    plan.do(`${title}: blocks that are mapped: ${mended.mapped}, not ${says}`);
    setPair(words, Volume.mappedLo, mended.mapped);
  }

  /** Gives a record its map, which spans it then: the size stays. */
  private async name(words: Uint32Array, title: string, map: number, least: number): Promise<void> {
    const { plan } = this.parts;
    const level = words[Volume.level]!;
    let root = map;
    if (root === 0) {
      const isNone = pairOf(words, Volume.rootLo) === 0;
      if (isNone && level >= least && level <= MAP_LEVEL_MAX) return;
      if (isNone) plan.do(`${title}: its map, which is empty, has level ${least}, not ${level}`);
      words[Volume.level] = least;
    } else if (level < least) {
      plan.do(`${title}: its map spans less than its size: it gets level ${least}, not ${level}`);
      for (let above = level + 1; above <= least; above++) root = await this.raise(root, above);
      words[Volume.level] = least;
    }
    setPair(words, Volume.rootLo, root);
  }

  /** Writes a node above a map's root; returns where it is. */
  private async raise(root: number, level: number): Promise<number> {
    const { free, writer } = this.parts;
    const words = new Uint32Array(Page.words);
    setEntry(words, 0, root);
    const pbn = await free.take(1);
    await writer.write(pbn, Magic.node, level, words);
    return pbn;
  }

  /** What a record says of itself. */
  private mend(words: Uint32Array, index: number): void {
    const { plan } = this.parts;
    const { facts } = this;
    if (index >= facts.volumes) {
      plan.do(`volume ${index}: the superblock counts it from now on`);
      facts.volumes = index + 1;
    }
    if (words[Volume.state]! > VolumeState.deleting) {
      plan.do(`volume ${index}: what it is cannot be; it becomes a snapshot, to be read`);
      words[Volume.state] = VolumeState.snapshot;
    }
    if (words[Volume.state] !== VolumeState.deleting) {
      this.rename(words, index);
      this.mendFacets(words, `volume ${nameOf(words)}`);
    }
    this.mendSize(words, index);
    if (words[Volume.state] !== VolumeState.deleting) this.unreserve(words, index);
  }

  private mendSize(words: Uint32Array, index: number): void {
    const { plan } = this.parts;
    const bytes = pairOf(words, Volume.bytesLo);
    if (isVolumeSize(bytes)) return;
    // All that its map can have: nothing of it is hidden.
    const span = Node.entries ** (words[Volume.level]! + 1) * Page.bytes;
    const mended = Math.min(span, VOLUME_BYTES_MAX);
    plan.do(`volume ${index}: its size cannot be: it is ${mended} bytes by its map, not ${bytes}`);
    setPair(words, Volume.bytesLo, mended);
  }

  /** How much was reserved, if it cannot be so much, is not known: all of it may be too much. */
  private unreserve(words: Uint32Array, index: number): void {
    const reserved = pairOf(words, Volume.reservedLo);
    if (reserved * Page.bytes <= pairOf(words, Volume.bytesLo)) return;
    this.parts.plan.do(`volume ${index}: ${reserved} blocks cannot be reserved for it; none are`);
    setPair(words, Volume.reservedLo, 0);
  }

  private rename(words: Uint32Array, index: number): void {
    const name = nameOf(words);
    // The first one keeps a name that two have.
    if (name !== null && !this.given.has(name)) {
      this.given.add(name);
      return;
    }
    let fresh = `volume-${index}`;
    while (this.names.has(fresh)) fresh += '-';
    this.names.add(fresh);
    const was = name === null ? 'has no valid name' : `has the name '${name}' of another`;
    this.parts.plan.do(`volume ${index}: it ${was}; it is called '${fresh}'`);
    const bytes = new Uint8Array(words.buffer, words.byteOffset, Volume.words * 4);
    bytes.fill(0, Volume.name * 4, Volume.name * 4 + Volume.nameBytes);
    bytes.set(Buffer.from(fresh), Volume.name * 4);
  }

  private mendFacets(words: Uint32Array, title: string): void {
    const { plan, maps } = this.parts;
    const { facts } = this;
    const serial = words[Volume.serial]!;
    if (this.serials.has(serial)) {
      words[Volume.serial] = facts.nextSerial++;
      plan.do(`${title}: its serial is another's; it gets ${words[Volume.serial]}`);
    }
    this.serials.add(words[Volume.serial]!);
    const places = Math.max(facts.volumes, maps.records.size * Volume.perPage);
    if (words[Volume.origin]! > places) {
      plan.do(`${title}: it was taken of a volume that there is not; of none, from now on`);
      words[Volume.origin] = 0;
    }
  }

  /** Pages that have no place, and all that leads to pages. */
  private async write(pages: number): Promise<void> {
    const { maps, space, free, writer } = this.parts;
    const { facts } = this;
    const kept = new Set<number>();
    let level = 0;
    let below: number[] = [];
    for (let leaf = 0; leaf < pages; leaf++) {
      const page = maps.records.get(leaf)!;
      if (page.pbn === 0) {
        page.pbn = await free.take(1);
        await writer.write(page.pbn, Magic.catalogue, 0, page.words);
      } else {
        kept.add(page.pbn);
      }
      below.push(page.pbn);
    }
    while (below.length > 1 || (level < facts.catalogueLevel && below.length > 0)) {
      level++;
      const above: number[] = [];
      for (let first = 0; first < below.length; first += Node.entries) {
        const words = new Uint32Array(Page.words);
        const entries = below.slice(first, first + Node.entries);
        for (const [e, pbn] of entries.entries()) setEntry(words, e, pbn);
        const pbn = await free.take(1);
        await writer.write(pbn, Magic.node, level, words);
        above.push(pbn);
      }
      below = above;
    }
    for (const pbn of maps.cataloguePbns) {
      const found = space.foundAt(pbn);
      if (!kept.has(pbn) && found > 0) space.setFound(pbn, found - 1);
    }
    facts.catalogueLevel = level;
    facts.catalogueRoot = below[0] ?? 0;
  }
}
