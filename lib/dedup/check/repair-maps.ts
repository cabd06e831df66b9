// Maps as a repair mends them. What is lost is named, volume by volume; and, if it is to be
// dropped, the nodes that name it are written anew with holes in its place, and so their parents.
//
// A node that several maps share is written once, and they share the new one.

import { PenstockError } from '../../errors.js';
import { entryOf, nodeOf, UNKNOWN, type MapsCheck } from './check-maps.js';
import type { BlockDevice } from '../../hpdi/index.js';
import type { PageReader } from './check-pages.js';
import type { SpaceCheck } from './check-space.js';
import { Group, Head, Magic, Node, Page } from '../format/layout.js';
import type { RepairPlan } from './repair-plan.js';
import type { FreePages, RepairWriter } from './repair-writer.js';

export interface RepairParts {
  readonly reader: PageReader;
  readonly space: SpaceCheck;
  readonly maps: MapsCheck;
  readonly plan: RepairPlan;
  readonly writer: RepairWriter;
  readonly free: FreePages;
  /** What is lost becomes holes, and volumes whose record is lost are gone. */
  readonly dropLost: boolean;
}

/** A map: its root, 0 where nothing is left, and how many blocks are mapped; UNKNOWN. */
export interface Mended {
  readonly pbn: number;
  readonly mapped: number;
}

interface Range {
  first: number;
  end: number;
}

export class MapsRepair {
  private readonly parts: RepairParts;
  /** Nodes that were looked at. */
  private readonly done = new Map<number, Mended>();
  private lost: Range[] = [];

  constructor(parts: RepairParts) {
    this.parts = parts;
  }

  /** `title` and `blocks` are the volume's. */
  async volume(
    index: number,
    title: string,
    blocks: number,
    root: number,
    level: number,
  ): Promise<Mended> {
    const { maps, dropLost } = this.parts;
    this.lost = [];
    let mended: Mended;
    if (maps.lostRoots.has(index)) {
      this.lost.push({ first: 0, end: blocks });
      if (dropLost) this.unname(root);
      mended = dropLost ? { pbn: 0, mapped: 0 } : { pbn: root, mapped: UNKNOWN };
    } else {
      mended = root === 0 ? { pbn: 0, mapped: 0 } : await this.node(root, level, 0);
    }
    for (const { first, end } of this.lost) this.tell(title, first, Math.min(end, blocks));
    return mended;
  }

  private tell(title: string, first: number, end: number): void {
    const { plan, dropLost } = this.parts;
    plan.losses++;
    const what = `${title}: blocks ${first} to ${end - 1} are lost: their map cannot be used`;
    if (dropLost) plan.do(`${what}; they become zeros`);
    else plan.leave(`${what}; they stay so, and reading them is an error`);
  }

  /** A node that the check could read; `first`: the block where it begins. */
  private async node(pbn: number, level: number, first: number): Promise<Mended> {
    const { maps } = this.parts;
    const known = maps.mappedBelow(pbn);
    if (known !== UNKNOWN) return { pbn, mapped: known };
    const words = await this.read(pbn, level);
    const again = this.done.get(pbn);
    const span = Node.entries ** level;
    let mapped = 0;
    let isChanged = false;
    for (let e = 0; e < Node.entries; e++) {
      const entry = entryOf(words, e);
      if (entry === 0) continue;
      const at = first + e * span;
      if (this.isLost(pbn, e, entry)) {
        this.addLost(at, at + span);
        if (again !== undefined) continue;
        if (!this.parts.dropLost) mapped = UNKNOWN;
        else {
          this.unname(entry);
          setEntry(words, e, 0);
          isChanged = true;
        }
        continue;
      }
      const below = level > 0 ? await this.node(entry, level - 1, at) : { pbn: entry, mapped: 1 };
      mapped = mapped < 0 || below.mapped < 0 ? UNKNOWN : mapped + below.mapped;
      if (below.pbn === entry) continue;
      setEntry(words, e, below.pbn);
      isChanged = true;
    }
    if (again !== undefined) return again;
    const mended = { pbn: isChanged ? await this.move(pbn, level, words) : pbn, mapped };
    this.done.set(pbn, mended);
    return mended;
  }

  /** Writes a node elsewhere; whoever names it will name that. */
  private async move(pbn: number, level: number, words: Uint32Array): Promise<number> {
    const { free, space, writer } = this.parts;
    const to = await free.take(space.foundAt(pbn));
    space.setFound(pbn, 0);
    await writer.write(to, Magic.node, level, words);
    return to;
  }

  private async read(pbn: number, level: number): Promise<Uint32Array> {
    const { reader } = this.parts;
    const page = reader.device.memory.alloc(Page.bytes);
    try {
      if (await reader.read(pbn, nodeOf(level, 'of a map'), page)) return page.u32.slice();
    } finally {
      page.free();
    }
    throw unsteady(reader.device);
  }

  private isLost(pbn: number, e: number, entry: number): boolean {
    const { maps, space } = this.parts;
    const key = pbn * Node.entries + e;
    if (maps.lost.has(key)) return true;
    // The summary may be what was wrong.
    return maps.suspects.has(key) && space.withNodes.has(Math.floor(entry / Group.extentPages));
  }

  private addLost(first: number, end: number): void {
    const last = this.lost.at(-1);
    if (last?.end === first) last.end = end;
    else this.lost.push({ first, end });
  }

  private unname(pbn: number): void {
    const { space } = this.parts;
    const count = space.foundAt(pbn);
    if (count > 0) space.setFound(pbn, count - 1);
  }
}

/** The device answers now so, now so. */
export function unsteady(device: BlockDevice): PenstockError {
  const message = `${device.uri} was read twice, and not the same: nothing was changed`;
  return new PenstockError('POOL_BUSY', message, {
    hint: 'see that nobody writes to it; if it is failing, copy it to another device first',
    exitCode: 3,
  });
}

export function setEntry(words: Uint32Array, e: number, pbn: number): void {
  words[Head.words + e] = pbn >>> 0;
  new Uint8Array(words.buffer, words.byteOffset)[Node.high * 4 + e] = pbn / 2 ** 32;
}
