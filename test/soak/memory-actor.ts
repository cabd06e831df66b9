// What every thread of the memory soak does, the main one too: makes, views, imports, admits and
// closes segments, its own and others', and frees buffers of other threads' pools; holds views of
// closed segments and looks at them now and then.
//
// Words at chosen places of a segment hold its id. A view may show that id, or zeros once the
// segment is closed; any other value means that memory was reused under a view.

import { closeSync, ftruncateSync, openSync, unlinkSync } from 'node:fs';
import { join } from 'node:path';
import { errnoCode, PenstockError } from '../../lib/errors.js';
import { addressSpace, BufferPool, returnHome, type Segment } from '../../lib/memory/index.js';
import { native } from '../../lib/native.js';
import { check, type Random } from './harness.js';

export const PLACES = 32;
const BYTES = 2 ** 21;
const PAGES = BYTES / 4096;
const STALE_MAX = 64;
const COPY_BYTES = 4096;
const ADMITTED_SLOT = 2;
const MARK = 0x12345678;

/** Shared by all threads: by place the address of a live segment, and buffers on their way home. */
export interface Board {
  /** Address / 2^21 of a segment that somebody published; 0: none. */
  segments: SharedArrayBuffer;
  /** Address / 512 of a pool buffer that any thread may free; 0: none. */
  buffers: SharedArrayBuffer;
}

interface Seen {
  segment: Segment;
  id: number;
}

export class MemoryActor {
  private readonly segments: Int32Array;
  private readonly buffers: Int32Array;
  private readonly pool: BufferPool;
  private readonly target: Segment;
  private readonly entry = new Uint32Array(8);
  private readonly seen: Seen[] = [];
  private serial = 0;

  constructor(
    board: Board,
    private readonly random: Random,
    private readonly scratch: string,
    private readonly name: number,
  ) {
    this.segments = new Int32Array(board.segments);
    this.buffers = new Int32Array(board.buffers);
    this.pool = new BufferPool({ bufferBytes: 4096, count: 64, poison: true, pageBytes: 4096 });
    this.target = addressSpace().create(BYTES, { pageBytes: 4096 });
  }

  step(): void {
    const { random } = this;
    const kind = random.below(20);
    if (kind < 5) this.create();
    else if (kind < 9) this.look();
    else if (kind < 12) this.closeAny();
    else if (kind < 14) this.copyAny();
    else if (kind < 15) this.importFile();
    else if (kind < 16) this.admit();
    else this.passBuffer();
    const held = this.seen.length === 0 ? undefined : random.pick(this.seen);
    if (held !== undefined) this.examine(held);
    while (this.seen.length > STALE_MAX) this.seen.splice(random.below(this.seen.length), 1);
  }

  /** Takes everything off the board while all who put it there still live. */
  clearBoard(): void {
    for (let place = 0; place < PLACES; place++) {
      const segment = Atomics.exchange(this.segments, place, 0) * BYTES;
      if (segment !== 0) this.close(segment);
      const buffer = Atomics.exchange(this.buffers, place, 0) * 512;
      if (buffer !== 0) this.free(buffer);
    }
  }

  /** Buffers of its own pool that are out. */
  get taken(): number {
    return this.pool.taken;
  }

  /** Gives up all it holds. */
  end(): void {
    for (const seen of this.seen) this.examine(seen);
    this.seen.length = 0;
    this.target.close();
    this.pool.close();
  }

  private create(): void {
    const kind = this.random.pick(['private', 'shared', 'device'] as const);
    const segment = addressSpace().create(BYTES, { kind, pageBytes: 4096 });
    this.mark(segment.u32, segment.id);
    this.seen.push({ segment, id: segment.id });
    const place = this.random.below(PLACES);
    const before = Atomics.exchange(this.segments, place, segment.address / BYTES);
    if (before !== 0) this.close(before * BYTES);
  }

  /** Views a segment that somebody made. */
  private look(): void {
    const address = Atomics.load(this.segments, this.random.below(PLACES)) * BYTES;
    const segment = address === 0 ? undefined : addressSpace().find(address);
    if (segment === undefined) return;
    const seen = { segment, id: segment.id };
    this.examine(seen);
    this.seen.push(seen);
  }

  private closeAny(): void {
    const address = Atomics.exchange(this.segments, this.random.below(PLACES), 0) * BYTES;
    if (address !== 0) this.close(address);
  }

  /** A segment that was taken off the board, so that nobody else closes it. */
  private close(address: number): void {
    const segment = addressSpace().find(address);
    check(segment !== undefined, 'a published segment is gone');
    const seen = { segment, id: segment.id };
    segment.close();
    this.examine(seen);
    this.seen.push(seen);
  }

  /** Native code reads a segment while others may close it: done, or refused. */
  private copyAny(): void {
    const address = Atomics.load(this.segments, this.random.below(PLACES)) * BYTES;
    if (address === 0) return;
    const { entry, target } = this;
    const offset = this.random.below(PAGES) * 4096;
    const words = [target.address + offset, address + offset];
    for (const [i, word] of words.entries()) {
      entry[2 * i] = word >>> 0;
      entry[2 * i + 1] = Math.floor(word / 2 ** 32);
    }
    entry[4] = COPY_BYTES;
    const done = native.copyList(entry, 1);
    check(done === 0 || done === 1, `one copy gave ${done}`);
  }

  /** A file as memory, cut off under the mapping as often as not. */
  private importFile(): void {
    const path = join(this.scratch, `import-${this.name}-${this.serial++}`);
    const fd = openSync(path, 'w+');
    unlinkSync(path);
    ftruncateSync(fd, BYTES);
    const segment = addressSpace().import(fd, { bytes: BYTES });
    segment.u32.set([MARK]);
    const cut = this.random.chance(0.5);
    if (cut) ftruncateSync(fd, 0);
    check(segment.u32[0] === (cut ? 0xffffffff : MARK), 'a cut file shows something else');
    check(segment.lost === cut, `lost is ${segment.lost} of a file that was cut: ${cut}`);
    segment.close();
    check(!segment.u32.subarray(0, 8).some((word) => word !== 0), 'a closed one shows something');
    closeSync(fd);
  }

  /** A sealed segment of our own, admitted as if it came from a peer. */
  private admit(): void {
    const space = addressSpace();
    const own = space.create(BYTES, { kind: 'shared', pageBytes: 4096 });
    own.u8.fill(1);
    this.mark(own.u32, own.id);
    const fd = own.descriptor();
    const address = ADMITTED_SLOT * 2 ** 36 + this.random.below(64) * BYTES;
    try {
      const peer = space.admit(fd, { address, bytes: BYTES, pageBytes: 4096 });
      check(peer.address === address, 'admitted elsewhere');
      const at = this.placeOf(own.id, 0);
      check(peer.u32[at] === own.id, 'an admitted segment shows something else');
      peer.close();
      check(peer.u32[at] === 0, 'a closed segment shows something');
    } catch (error) {
      // Another thread has admitted one there, or still has views of it.
      if (!(error instanceof PenstockError) || errnoCode(error.cause) !== 'EEXIST') throw error;
    }
    native.fileClose(fd);
    own.close();
  }

  /** Takes a buffer for others to free, or frees one of another thread's pool. */
  private passBuffer(): void {
    const place = this.random.below(PLACES);
    if (this.random.chance(0.5)) {
      const address = this.pool.take();
      if (address === 0) return;
      this.pool.view(address).fill(this.name);
      const before = Atomics.exchange(this.buffers, place, address / 512);
      if (before !== 0) this.free(before * 512);
    } else {
      const address = Atomics.exchange(this.buffers, place, 0) * 512;
      if (address !== 0) this.free(address);
    }
  }

  private free(address: number): void {
    const { segment } = this.pool;
    const own = address >= segment.address && address < segment.address + segment.bytes;
    if (own) this.pool.put(address);
    else returnHome(address);
  }

  private mark(words: Uint32Array, id: number): void {
    for (let i = 0; i < 16; i++) words[this.placeOf(id, i)] = id;
  }

  private placeOf(id: number, i: number): number {
    return (((Math.imul(id, 0x9e3779b1) >>> 8) + i * 37) % PAGES) * 1024;
  }

  private examine({ segment, id }: Seen): void {
    for (let i = 0; i < 16; i++) {
      const word = segment.u32[this.placeOf(id, i)]!;
      check(word === id || word === 0, `a view of segment ${id} shows ${word}`);
    }
  }
}
