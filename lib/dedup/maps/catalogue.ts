// Catalogue: the pool's volumes, by name and by number.
//
// All records are in memory while the pool is open. What changes goes to the catalogue's pages
// before a checkpoint begins (`write`); so does a volume's new root, at every checkpoint.

import { PenstockError } from '../../errors.js';
import { Group, Head, Magic, Page, Volume, VolumeState } from '../format/layout.js';
import { pair, setPair } from '../format/numbers.js';
import { isVolumeSize, MAP_LEVEL_MAX, VOLUME_BYTES_MAX } from '../format/sense.js';
import { Miss } from '../durable/pages.js';
import { levelOf, type Tree, type Trees } from './trees.js';

/** A volume as it stands in memory. */
export interface VolumeRecord extends Tree {
  readonly index: number;
  readonly serial: number;
  name: string;
  state: VolumeState;
  bytes: number;
  readonly madeMs: number;
  /** Volume that it was taken of, + 1; 0: none. */
  readonly origin: number;
  /** Blocks that are mapped. */
  mapped: number;
  reserved: number;
  /** It is not in the catalogue's pages as it is here. */
  changed: boolean;
  /** How often it is open. */
  users: number;
}

const NAME = /^[A-Za-z0-9_][A-Za-z0-9._:@+-]*$/;
/** Leaves of a map: 512 blocks each. */
export const LEAF_BYTES = 2 ** 21;
/** Blocks that stay promised to a volume that has all it was promised: it may write them anew. */
const REWRITE_BLOCKS = 1024;
/** A node of its map for so many blocks; with them, an extent for nodes is promised. */
const NODES_PART = 256;

export class Catalogue {
  readonly tree: Tree;
  readonly volumes: (VolumeRecord | null)[] = [];
  nextSerial: number;
  private readonly byName = new Map<string, VolumeRecord>();

  constructor(tree: Tree, nextSerial: number) {
    this.tree = tree;
    this.nextSerial = nextSerial;
  }

  /** Pages that it has, about, nodes included. */
  get pages(): number {
    return Math.ceil((this.volumes.length / Volume.perPage) * 1.01) + this.tree.level + 1;
  }

  /** Volumes and snapshots; not what is being deleted. */
  get list(): VolumeRecord[] {
    return [...this.byName.values()].sort((a, b) => a.index - b.index);
  }

  /** Volumes whose maps are still to be taken apart. */
  readonly deleting: VolumeRecord[] = [];
  /** Copies that were not taken yet: nobody can open them. */
  readonly copying = new Set<VolumeRecord>();
  /** Volumes that blocks are promised to. */
  private readonly reserving: VolumeRecord[] = [];
  /** Volumes whose size is being changed: nobody opens, copies or deletes them meanwhile. */
  readonly resizing = new Set<VolumeRecord>();

  /** Throws NO_SUCH_VOLUME, VOLUME_BUSY. */
  get(name: string): VolumeRecord {
    const volume = this.byName.get(name);
    if (volume !== undefined && this.resizing.has(volume)) {
      throw new PenstockError('VOLUME_BUSY', `the size of '${name}' is being changed`, {
        hint: 'try again in a moment',
        exitCode: 3,
      });
    }
    if (volume !== undefined && !this.copying.has(volume)) return volume;
    throw new PenstockError('NO_SUCH_VOLUME', `the pool has no volume '${name}'`, {
      hint: '`penstock volume list` shows its volumes; `penstock volume create` makes one',
      exitCode: 3,
    });
  }

  /** Throws VOLUME_EXISTS, BAD_VOLUME_NAME, BAD_SIZE. */
  add(name: string, bytes: number, nowMs: number, reserved = 0): VolumeRecord {
    this.assertNew(name, bytes);
    const volume = this.enter(name, bytes, VolumeState.volume, nowMs);
    this.byName.set(name, volume);
    this.reserve(volume, reserved);
    return volume;
  }

  /** Throws as `add` would. */
  assertNew(name: string, bytes: number): void {
    assertName(name);
    assertBytes(bytes);
    if (this.byName.has(name)) {
      throw new PenstockError('VOLUME_EXISTS', `the pool has a volume '${name}' already`, {
        hint: 'choose another name, or delete that one first',
      });
    }
  }

  /** Promises a volume so many blocks, whatever it was before. */
  reserve(volume: VolumeRecord, blocks: number): void {
    const at = this.reserving.indexOf(volume);
    if (blocks > 0 && at < 0) this.reserving.push(volume);
    if (blocks === 0 && at >= 0) this.reserving.splice(at, 1);
    if (volume.reserved !== blocks) volume.changed = true;
    volume.reserved = blocks;
  }

  /** Blocks that are promised to volumes other than one, and that they do not have yet. */
  promised(except: VolumeRecord | null): number {
    const { reserving } = this;
    let blocks = 0;
    for (let i = 0; i < reserving.length; i++) {
      const { reserved, mapped } = reserving[i]!;
      if (reserving[i] === except) continue;
      blocks += Math.max(reserved - mapped, Math.min(reserved, REWRITE_BLOCKS));
      blocks += Math.ceil(reserved / NODES_PART);
    }
    return blocks === 0 ? 0 : blocks + Group.blocks;
  }

  /** Blocks of so much room that can be promised to one more volume, which may rewrite them all. */
  promisable(room: number): number {
    const promised = this.promised(null);
    const free = room - (promised === 0 ? Group.blocks : promised);
    const nodes = 1 / NODES_PART;
    // As `promised` counts it now, and once all of it is written.
    const large = Math.floor((free - REWRITE_BLOCKS) / (1 + nodes)) - 1;
    const small = Math.floor(free / (2 + nodes)) - 1;
    return Math.max(0, large >= REWRITE_BLOCKS ? large : Math.min(small, REWRITE_BLOCKS));
  }

  /**
   * A record for what is to be cut off a volume, as one that is deleted: a crash frees it. It is
   * taken apart once it is in `deleting`.
   */
  addTail(volume: VolumeRecord, nowMs: number): VolumeRecord {
    const tail = this.enter('', volume.bytes, VolumeState.deleting, nowMs);
    tail.level = volume.level;
    return tail;
  }

  /** A record for a map that holds nodes, or blocks, for a while; as `addTail`. */
  addHolder(nowMs: number): VolumeRecord {
    return this.enter('', VOLUME_BYTES_MAX, VolumeState.deleting, nowMs);
  }

  private enter(name: string, bytes: number, state: VolumeState, nowMs: number): VolumeRecord {
    const free = this.volumes.indexOf(null);
    const volume: VolumeRecord = {
      index: free < 0 ? this.volumes.length : free,
      serial: this.nextSerial++,
      name,
      state,
      bytes,
      level: levelOf(Math.ceil(bytes / LEAF_BYTES)),
      root: 0,
      madeMs: nowMs,
      origin: 0,
      mapped: 0,
      reserved: 0,
      changed: true,
      users: 0,
    };
    this.volumes[volume.index] = volume;
    return volume;
  }

  /** Another volume, or a snapshot, whose map is that of `from` once it is `taken`. */
  addCopy(from: VolumeRecord, name: string, state: VolumeState, nowMs: number): VolumeRecord {
    const added = this.add(name, from.bytes, nowMs);
    const copy = { ...added, state, level: from.level, origin: from.index + 1 };
    this.volumes[copy.index] = copy;
    this.byName.set(name, copy);
    this.copying.add(copy);
    return copy;
  }

  /** It has no name any more, and its map is to be taken apart. Throws VOLUME_BUSY. */
  remove(volume: VolumeRecord): void {
    if (volume.users > 0) {
      throw new PenstockError('VOLUME_BUSY', `the volume '${volume.name}' is open`, {
        hint: 'close it first',
        exitCode: 3,
      });
    }
    this.byName.delete(volume.name);
    this.reserve(volume, 0);
    volume.state = VolumeState.deleting;
    volume.name = '';
    volume.mapped = 0;
    volume.changed = true;
    this.deleting.push(volume);
  }

  /** Nothing is left of it: its number may be another's. */
  gone(volume: VolumeRecord): void {
    volume.state = VolumeState.none;
    volume.changed = true;
    this.deleting.splice(this.deleting.indexOf(volume), 1);
  }

  /** Whether a record's volume is still the one it was written for. */
  at(index: number, serial: number): VolumeRecord | null {
    const volume = this.volumes[index];
    return volume?.serial === serial ? volume : null;
  }

  /** Reads the records of a page; `first` is the number of the first. */
  take(words: Uint32Array, at: number, first: number): void {
    for (let i = 0; i < Volume.perPage; i++) {
      const v = at + Head.words + i * Volume.words;
      const state = words[v]! as VolumeState;
      if (state === VolumeState.none) {
        this.volumes[first + i] = null;
        continue;
      }
      const name = new Uint8Array(words.buffer, words.byteOffset + (v + Volume.name) * 4, 128);
      const volume: VolumeRecord = {
        index: first + i,
        serial: words[v + Volume.serial]!,
        name: Buffer.from(name).toString().replace(/\0+$/, ''),
        state,
        bytes: pair(words, v + Volume.bytesLo),
        level: words[v + Volume.level]!,
        root: pair(words, v + Volume.rootLo),
        madeMs: pair(words, v + Volume.madeLo),
        origin: words[v + Volume.origin]!,
        mapped: pair(words, v + Volume.mappedLo),
        reserved: pair(words, v + Volume.reservedLo),
        changed: false,
        users: 0,
      };
      const least = levelOf(Math.ceil(volume.bytes / LEAF_BYTES));
      if (volume.bytes > VOLUME_BYTES_MAX || volume.level < least || volume.level > MAP_LEVEL_MAX) {
        throw new PenstockError('POOL_CORRUPT', `volume ${volume.index} does not make sense`, {
          hint: '`penstock pool check` says what can still be used',
        });
      }
      this.volumes[volume.index] = volume;
      if (volume.reserved > 0) this.reserving.push(volume);
      if (state === VolumeState.deleting) this.deleting.push(volume);
      else this.byName.set(volume.name, volume);
    }
  }

  /** Brings the pages up to date: 0, or a Miss. */
  write(trees: Trees): number {
    for (let i = 0; i < this.volumes.length; i++) {
      const volume = this.volumes[i]!;
      if (volume?.changed !== true) continue;
      const leaf = Math.floor(volume.index / Volume.perPage);
      while (levelOf(leaf + 1) > this.tree.level) if (!trees.raise(this.tree)) return Miss.wait;
      const frame = trees.ownLeaf(this.tree, leaf, Magic.catalogue);
      if (frame < 0) return frame;
      const { words } = trees.pages;
      const at = (frame << Page.shift) + Head.words;
      store(words, at + (volume.index % Volume.perPage) * Volume.words, volume);
      volume.changed = false;
      if (volume.state === VolumeState.none) this.volumes[volume.index] = null;
    }
    return 0;
  }
}

function store(words: Uint32Array, at: number, volume: VolumeRecord): void {
  words.fill(0, at, at + Volume.words);
  if (volume.state === VolumeState.none) return;
  words[at + Volume.state] = volume.state;
  words[at + Volume.level] = volume.level;
  setPair(words, at + Volume.rootLo, volume.root);
  setPair(words, at + Volume.bytesLo, volume.bytes);
  setPair(words, at + Volume.madeLo, volume.madeMs);
  words[at + Volume.origin] = volume.origin;
  words[at + Volume.serial] = volume.serial;
  setPair(words, at + Volume.mappedLo, volume.mapped);
  setPair(words, at + Volume.reservedLo, volume.reserved);
  // Letters of ASCII, as `assertName` wants them: a buffer would be an object of each checkpoint.
  const { name } = volume;
  for (let i = 0; i < name.length; i++) {
    const word = at + Volume.name + (i >>> 2);
    words[word] = words[word]! | ((name.charCodeAt(i) & 0x7f) << ((i & 3) * 8));
  }
}

function assertName(name: string): void {
  if (NAME.test(name) && name.length <= Volume.nameBytes) return;
  throw new PenstockError('BAD_VOLUME_NAME', `'${name}' is no name of a volume`, {
    hint: `up to ${Volume.nameBytes} letters, digits and . _ : @ + -; the first a letter or digit`,
    exitCode: 2,
  });
}

export function assertBytes(bytes: number): void {
  if (isVolumeSize(bytes)) return;
  throw new PenstockError('BAD_SIZE', `a volume cannot have ${bytes} bytes`, {
    hint: 'give a multiple of 4 KiB up to 64 TiB',
    exitCode: 2,
  });
}
