// A pool and the oracle agree, block for block: which blocks are stored, and what the others refer
// to. Unsampled, THN 1 to 64, on random sets with much, little and shifted repetition, one by one
// and in batches of several requests; and on two sets of real files that overlap.

import { createHash } from 'node:crypto';
import { readdirSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { Pool } from '../../lib/dedup/index.js';
import { Magic, Node } from '../../lib/dedup/format/layout.js';
import { Op, Status, type BlockDevice } from '../../lib/hpdi/index.js';
import { open } from '../../lib/open.js';
import { fillBlock } from '../soak/dedup-model.js';
import { Random } from '../soak/harness.js';
import { run } from '../support/requests.js';
import { PAGE } from './contents.js';
import { Oracle } from './oracle.js';

const BLOCKS = 6000;
const SET_MOST = 256;
/** Of a batch. */
const BATCH_MOST = 800;
const BATCH_REQUESTS = 64;

/** Part of what is written that is stored: of one input at most, and of all at most. */
const SHARED_SOME = 0.85;
const SHARED_MUCH = 0.75;

interface Piece {
  readonly first: number;
  readonly contents: readonly number[];
}

/** Writes a block's content to words from `at` on. */
type Fill = (words: Uint32Array, at: number, content: number) => void;

/** The block that each logical block of a volume is kept in; 0: none. */
function mapOf(pool: Pool, name: string, blocks: number): number[] {
  const { catalogue, trees } = pool.engine.parts;
  const volume = catalogue.get(name);
  return Array.from({ length: blocks }, (_, lbn) => {
    const frame = trees.leaf(volume, Math.floor(lbn / Node.entries), Magic.node);
    return frame < 0 ? 0 : trees.entry(frame, lbn % Node.entries);
  });
}

/** What a batch of writes is cut to: blocks that follow each other, at most 256. */
function setsOf(requests: readonly Piece[]): Piece[] {
  const sets: { first: number; contents: number[] }[] = [];
  for (const { first, contents } of requests) {
    for (const [i, content] of contents.entries()) {
      const last = sets.at(-1);
      const follows = last !== undefined && last.first + last.contents.length === first + i;
      if (follows && last.contents.length < SET_MOST) last.contents.push(content);
      else sets.push({ first: first + i, contents: [content] });
    }
  }
  return sets;
}

/** Writes batches to a volume each, in order; the oracle is told of the same. */
async function compare(
  thn: number,
  volumes: readonly Iterable<readonly Piece[]>[],
  fill: Fill,
): Promise<{ written: number; stored: number }> {
  const device = await open('ram:64MiB');
  await Pool.create(device, { thn, sampling: 1 });
  const pool = await Pool.open(device, { cacheBytes: 2 ** 21 });
  const oracle = new Oracle(thn);
  const wanted: number[] = [];
  const pbns: number[] = [];
  for (const [v, batches] of volumes.entries()) {
    await pool.createVolume(`v${v}`, BLOCKS * PAGE);
    const disk = pool.openVolume(`v${v}`);
    const places = new Array<number>(BLOCKS).fill(-1);
    for (const requests of batches) {
      await write(disk, requests, fill);
      for (const { first, contents } of setsOf(requests)) {
        for (const [i, place] of oracle.write(contents).entries()) places[first + i] = place;
      }
    }
    await disk.close();
    wanted.push(...places);
    pbns.push(...mapOf(pool, `v${v}`, BLOCKS));
  }
  // Places and blocks are given out in the same order: the n-th is the n-th.
  const stored = [...new Set(pbns.filter((pbn) => pbn !== 0))].sort((a, b) => a - b);
  const placeOf = new Map(stored.map((pbn, place) => [pbn, place]));
  expect(pbns.map((pbn) => placeOf.get(pbn) ?? -1)).toEqual(wanted);
  expect(stored.length).toBe(oracle.places.length);
  await pool.close();
  await device.close();
  return { written: pbns.filter((pbn) => pbn !== 0).length, stored: stored.length };
}

/** One batch; what it wrote is read again. */
async function write(disk: BlockDevice, requests: readonly Piece[], fill: Fill): Promise<void> {
  const all = requests.flatMap(({ contents }) => contents);
  const buffers = [0, 1].map(() => disk.memory.alloc(all.length * PAGE));
  for (const [i, content] of all.entries()) fill(buffers[0]!.u32, i * 1024, content);
  buffers[1]!.u8.fill(0xee);
  const queue = disk.queue({ depth: BATCH_REQUESTS, split: false });
  for (const [i, op] of [Op.WRITE, Op.READ].entries()) {
    let { address } = buffers[i]!;
    const batch = requests.map(({ first, contents }) => {
      const request = { op, lba: first, blocks: contents.length, address };
      address += contents.length * PAGE;
      return request;
    });
    for (const { code } of await run(queue, ...batch)) expect(code).toBe(Status.OK);
  }
  expect(Buffer.compare(buffers[0]!.u8, buffers[1]!.u8)).toBe(0);
  await queue.close();
  for (const buffer of buffers) buffer.free();
}

/** Random contents: new ones, and parts of earlier ones, shifted, cut and interrupted. */
class Contents {
  private readonly random: Random;
  private readonly isLarge: boolean;
  private readonly earlier: number[][] = [];
  private content = 1;

  /** For large THN parts are longer, and most are of what was before. */
  constructor(random: Random, isLarge: boolean) {
    this.random = random;
    this.isLarge = isLarge;
  }

  next(length: number): number[] {
    const { random, earlier, isLarge } = this;
    const contents: number[] = [];
    while (contents.length < length) {
      const part = random.between(1, isLarge ? 200 : 80);
      if (earlier.length > 0 && random.chance(isLarge ? 0.85 : 0.6)) {
        // (What comes in the same batch counts, in the same set it does not.)
        const isNear = contents.length > 0 && random.chance(0.2);
        const from = isNear ? contents : random.pick(earlier);
        const start = random.below(from.length);
        contents.push(...from.slice(start, start + part));
      } else if (random.chance(0.05)) {
        contents.push(0);
      } else {
        for (let b = 0; b < part; b++) contents.push(this.content++);
      }
    }
    contents.length = length;
    earlier.push(contents);
    return contents;
  }
}

/** Batches of one set each. */
function* singles(random: Random, contents: Contents, isLarge: boolean): Generator<Piece[]> {
  const lengths = isLarge ? [1, 20, 64, 128, 256, 256, 256] : [1, 3, 8, 20, 64, 128, 256];
  for (let first = 0; first < BLOCKS - SET_MOST;) {
    const length = random.pick(lengths);
    yield [{ first, contents: contents.next(length) }];
    // A gap, so that the next set does not follow this one.
    first += length + 1;
  }
}

/** Batches of many requests, which follow each other or not; what they equal may be among them. */
function* batches(random: Random, contents: Contents): Generator<Piece[]> {
  for (let first = 0; first < BLOCKS - BATCH_MOST;) {
    const blocks = random.between(1, BATCH_MOST);
    const all = contents.next(blocks);
    const requests: Piece[] = [];
    for (let at = 0; at < blocks && requests.length < BATCH_REQUESTS;) {
      const length = random.pick([1, 1, 2, 7, 20, 100, 300]);
      const part = all.slice(at, at + length);
      requests.push({ first, contents: part });
      at += part.length;
      first += part.length + (random.chance(0.8) ? 0 : 1);
    }
    first++;
    yield random.chance(0.1) ? requests.reverse() : requests;
  }
}

describe('a pool and the oracle', () => {
  it.each([1, 2, 3, 4, 8, 16, 32, 64, 0])('agree with THN %i', async (thn) => {
    let [written, stored] = [0, 0];
    for (const seed of [1, 2, 3, 4]) {
      const random = new Random(seed * 100 + thn);
      const isLarge = thn >= 32;
      const contents = new Contents(random, isLarge);
      const input = seed <= 2 ? singles(random, contents, isLarge) : batches(random, contents);
      const each = await compare(thn, [input], fillBlock);
      if (thn > 0) expect(each.stored / each.written).toBeLessThan(SHARED_SOME);
      written += each.written;
      stored += each.stored;
    }
    if (thn === 0) expect(stored).toBe(written);
    else expect(stored / written).toBeLessThan(SHARED_MUCH);
  });
});

describe('two sets of files that overlap', () => {
  /** Blocks by number, from 1 on. */
  const known: Buffer[] = [];
  const numbers = new Map<string, number>();

  /** Files one after the other, each from the start of a block on. */
  function imageOf(files: readonly Buffer[]): number[] {
    const image: number[] = [];
    for (const file of files) {
      for (let at = 0; at < file.length; at += PAGE) {
        const block = Buffer.alloc(PAGE);
        file.copy(block, 0, at, at + PAGE);
        const key = createHash('sha256').update(block).digest('base64');
        if (!numbers.has(key)) numbers.set(key, known.push(block));
        image.push(numbers.get(key)!);
      }
    }
    return image;
  }

  /** In writes of 1 MiB. */
  const writesOf = (image: readonly number[]): Piece[][] =>
    Array.from({ length: Math.ceil(image.length / SET_MOST) }, (_, i) => [
      { first: i * SET_MOST, contents: image.slice(i * SET_MOST, (i + 1) * SET_MOST) },
    ]);

  const fill: Fill = (words, at, content) => {
    Buffer.from(words.buffer, words.byteOffset + at * 4, PAGE).set(known[content - 1]!);
  };

  // Half of all is there twice, but for what was changed, and for short files where THN is large.
  it.each([
    [1, 0.65],
    [8, 0.65],
    [64, 0.75],
  ])('are kept as the oracle says, THN %i', async (thn, most) => {
    const folder = dirname(createRequire(import.meta.url).resolve('typescript'));
    const names = readdirSync(folder).filter((name) => /\.d\.ts$|^_tsc\.js$/.test(name));
    const files = names.sort().map((name) => readFileSync(join(folder, name)));
    files.sort((a, b) => b.length - a.length);
    const random = new Random(1);
    const changed = files.map((file, i) => {
      const copy = Buffer.from(file);
      if (i % 4 === 1) copy[file.length >>> 1]! ^= 1;
      return i % 4 === 3 ? Buffer.concat([Buffer.from('\n'), copy]) : copy;
    });
    const one = imageOf(files.filter((_, i) => i % 7 !== 6));
    const left = changed.filter((_, i) => i % 7 !== 5);
    const moved: Buffer[] = [];
    while (left.length > 0) moved.push(...left.splice(random.below(left.length), 1));
    const two = imageOf(moved);
    const { written, stored } = await compare(thn, [writesOf(one), writesOf(two)], fill);
    expect(stored / written).toBeLessThan(most);
  });
});
