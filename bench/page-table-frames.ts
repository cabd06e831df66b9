// Counts the page tables of some processes exactly: each frame of memory that the kernel says is a
// page table (/proc/kpageflags) of their memory cgroup (/proc/kpagecgroup). A table that several
// processes share is one frame.

import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  readSync,
  rmdirSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { atEnd } from './scratch.js';

const CHUNK_BYTES = 1 << 20;
const FRAME_KIB = 4;
/** KPF_PGTABLE, of a frame's 64 bits. */
const PAGE_TABLE_BIT = 26;
const REMOVE_TRIES = 100;
const REMOVE_PAUSE_MS = 20;

export class PageTableFrames {
  private readonly inode: number;

  private constructor(private readonly folder: string) {
    this.inode = statSync(folder).ino;
  }

  /** A cgroup of its own, gone at the end; null where the kernel or a lack of rights forbids it. */
  static open(): PageTableFrames | null {
    const parent = memoryCgroup();
    if (parent === null || !existsSync('/proc/kpagecgroup')) return null;
    const folder = `${parent}/penstock-bench-${process.pid}`;
    try {
      closeSync(openSync('/proc/kpagecgroup', 'r'));
      mkdirSync(folder);
    } catch {
      return null;
    }
    atEnd(() => removeWhenEmpty(folder));
    return new PageTableFrames(folder);
  }

  /** Counts what the process allocates from here on. */
  adopt(pid: number): void {
    writeFileSync(`${this.folder}/cgroup.procs`, String(pid));
  }

  kib(): number {
    const flags = openSync('/proc/kpageflags', 'r');
    const owners = openSync('/proc/kpagecgroup', 'r');
    try {
      return this.count(flags, owners) * FRAME_KIB;
    } finally {
      closeSync(flags);
      closeSync(owners);
    }
  }

  /** Frames whose entries, both in the files' order, say so. */
  private count(flags: number, owners: number): number {
    const flagWords = new Uint32Array(CHUNK_BYTES / 4);
    const ownerWords = new Uint32Array(CHUNK_BYTES / 4);
    const low = this.inode >>> 0;
    const high = Math.floor(this.inode / 2 ** 32);
    let frames = 0;
    for (;;) {
      const bytes = readSync(flags, flagWords, 0, CHUNK_BYTES, null);
      if (bytes === 0 || readSync(owners, ownerWords, 0, bytes, null) < bytes) return frames;
      for (let i = 0; i < bytes / 4; i += 2) {
        if (((flagWords[i]! >>> PAGE_TABLE_BIT) & 1) === 0) continue;
        if (ownerWords[i] === low && ownerWords[i + 1] === high) frames++;
      }
    }
  }
}

/** Where memory cgroups are made: version 1's hierarchy, or version 2's with that controller on. */
function memoryCgroup(): string | null {
  if (existsSync('/sys/fs/cgroup/memory/cgroup.procs')) return '/sys/fs/cgroup/memory';
  const control = '/sys/fs/cgroup/cgroup.subtree_control';
  if (!existsSync(control)) return null;
  return /\bmemory\b/.test(readFileSync(control, 'utf8')) ? '/sys/fs/cgroup' : null;
}

/** Its processes were told to end; it can be removed when they have. */
function removeWhenEmpty(folder: string): void {
  const pause = new Int32Array(new SharedArrayBuffer(4));
  for (let i = 0; i < REMOVE_TRIES; i++) {
    try {
      return rmdirSync(folder);
    } catch {
      Atomics.wait(pause, 0, 0, REMOVE_PAUSE_MS);
    }
  }
}
