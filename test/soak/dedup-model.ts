// What blocks of volumes may hold, for soaks of the dedup pool.
//
// A block's content is made of a number: 0 is zeros. A block may hold the content that a flush
// covered, or any that was written to it since; while nothing was cut, the newest one.

import { check } from './harness.js';

const WORDS = 1024;

export function fillBlock(words: Uint32Array, at: number, content: number, length = WORDS): void {
  if (content === 0) {
    words.fill(0, at, at + length);
    return;
  }
  words[at] = content;
  for (let i = 1; i < length; i++) words[at + i] = Math.imul(content + i, 0x9e3779b1);
}

/** The number that a block's content was made of; -1: it is none. */
export function contentOf(words: Uint32Array, at: number, length = WORDS): number {
  const content = words[at]!;
  for (let i = 1; i < length; i++) {
    const wanted = content === 0 ? 0 : Math.imul(content + i, 0x9e3779b1) >>> 0;
    if (words[at + i] !== wanted) return -1;
  }
  return content;
}

export class VolumeModel {
  readonly name: string;
  /** Places that are watched; the volume may have fewer blocks, `size`. */
  readonly blocks: number;
  size: number;
  /** The size that it is about to have. */
  next: number;
  /** Newest content that a flush covered, and newest acknowledged one. */
  readonly durable: Uint32Array;
  readonly newest: Uint32Array;
  /** It need not be there. */
  isGone = false;
  /** By block: what was tried since the flush, acknowledged or not. */
  private readonly tried = new Map<number, number[]>();

  constructor(name: string, blocks: number) {
    this.name = name;
    this.blocks = blocks;
    this.size = blocks;
    this.next = blocks;
    this.durable = new Uint32Array(blocks);
    this.newest = new Uint32Array(blocks);
  }

  /** A volume that has what this one has now, and keeps it. */
  copy(name: string): VolumeModel {
    const copy = new VolumeModel(name, this.blocks);
    copy.durable.set(this.newest);
    copy.newest.set(this.newest);
    copy.size = this.size;
    copy.next = this.size;
    return copy;
  }

  /** One that may hold whatever this one may now. */
  twin(name: string): VolumeModel {
    const twin = this.copy(name);
    twin.durable.set(this.durable);
    for (const [block, list] of this.tried) twin.tried.set(block, [...list]);
    twin.isGone = this.isGone;
    return twin;
  }

  /** It was tried to delete it, or to make it. */
  mayBeGone(): void {
    this.isGone = true;
  }

  /** The volume has another size, and that is durable: what it gains are zeros. */
  resized(size: number): void {
    for (let block = size; block < this.blocks; block++) {
      this.durable[block] = 0;
      this.newest[block] = 0;
      this.tried.delete(block);
    }
    this.size = size;
    this.next = size;
  }

  /** A write of `content` begins. */
  tries(block: number, content: number): void {
    const list = this.tried.get(block);
    if (list === undefined) this.tried.set(block, [content]);
    else list.push(content);
  }

  acknowledged(block: number, content: number): void {
    this.newest[block] = content;
  }

  /** Blocks of an acknowledged write (of contents from `base` on) hold that or what came later. */
  settles(first: number, count: number, base: number): void {
    for (let i = 0; i < count; i++) {
      const block = first + i;
      const content = base === 0 ? 0 : base + i;
      const list = this.tried.get(block) ?? [];
      this.durable[block] = content;
      this.tried.set(block, list.slice(list.indexOf(content) + 1));
    }
  }

  /** What was acknowledged before a flush began is durable. */
  flushed(snapshot: Uint32Array): void {
    this.durable.set(snapshot);
    for (const [block, list] of this.tried) {
      const at = list.lastIndexOf(snapshot[block]!);
      const rest = list.slice(at + 1);
      if (rest.length === 0) this.tried.delete(block);
      else this.tried.set(block, rest);
    }
  }

  mayHold(block: number, content: number): boolean {
    return content === this.durable[block] || (this.tried.get(block)?.includes(content) ?? false);
  }

  /** After a cut: what is there is what there is. */
  adopt(block: number, content: number): void {
    check(this.mayHold(block, content), this.told(block, content));
    this.durable[block] = content;
    this.newest[block] = content;
  }

  adopted(): void {
    this.tried.clear();
  }

  private told(block: number, content: number): string {
    const tried = (this.tried.get(block) ?? []).join(', ');
    return (
      `${this.name} block ${block} holds ${content}, which is neither the flushed ` +
      `${this.durable[block]} nor one of ${tried}`
    );
  }
}
