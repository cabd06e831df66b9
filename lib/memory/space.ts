// The address space of this process as one environment (main thread or worker) sees it.
//
// There is one address space per process, held by the addon; environments share it. A segment has
// the same address in all of them, and each makes its own ArrayBuffer over it, once.

import { readFileSync } from 'node:fs';
import { isMainThread } from 'node:worker_threads';
import { errnoCode, PenstockError } from '../errors.js';
import { native } from '../native.js';
import { GRANULE_BYTES, Segment, SEGMENT_BYTES_MAX, type SegmentKind } from './segment.js';
import { StatusWord, statusWords } from './status.js';

/**
 * High word of BASE = 2^46: a virtual address's high word is an Address's plus this
 * (native/check.h).
 */
export const ADDRESS_BASE_HIGH = 2 ** 14;

/** Addresses are integers below this. */
export const ADDRESS_END = 2 ** 44;

export interface SegmentOptions {
  kind?: 'private' | 'shared' | 'device';
  /**
   * 4096, 2 MiB or 1 GiB; `auto` (default): 2 MiB hugepages where enough are free, else ordinary
   * pages.
   */
  pageBytes?: number | 'auto';
  /**
   * Index of the liveness word whose environment owns (and in the end closes) it; default: this
   * one.
   */
  liveness?: number;
}

const KIND_NUMBER: Readonly<Record<string, number>> = { private: 0, shared: 1, device: 2 };

let warned = false;

/** Segments of this environment by id, and views of those that others of this process opened. */
export class AddressSpace {
  private readonly segments = new Map<number, Segment>();
  private epoch = 0;

  /** The process's domain: 1 unless it joined a hub. */
  get domain(): number {
    return native.memoryDomain();
  }

  /**
   * Claims a domain's slot; must come before the first allocation (ADDRESS_SPACE_IN_USE otherwise).
   */
  join(domain: number): void {
    try {
      native.memoryJoin(domain);
    } catch (cause) {
      if (errnoCode(cause) !== 'EBUSY') throw cause;
      throw new PenstockError(
        'ADDRESS_SPACE_IN_USE',
        'this process has allocated memory already, so its place in the address space is fixed',
        { hint: 'join the hub before the first device is opened or buffer allocated', cause },
      );
    }
  }

  /** What reports of a store to a domain's memory call its owner; '' for its number alone. */
  nameDomain(domain: number, name: string): void {
    native.memoryDomainName(domain, name);
  }

  /**
   * Whether this process still has anything at a domain's addresses: admitted memory, views of it
   * in any environment (until they are collected), or DMA mappings. The slot of a domain that is
   * gone goes to another only when no member holds it.
   */
  holds(domain: number): boolean {
    this.forgetClosed();
    return native.memorySlotHeld(domain);
  }

  /** A new segment of at least `bytes` (rounded up to whole pages and granules), at most 2 GiB. */
  create(bytes: number, options: SegmentOptions = {}): Segment {
    const kind = KIND_NUMBER[options.kind ?? 'private'] ?? 0;
    if (!(bytes > 0) || bytes > SEGMENT_BYTES_MAX) {
      throw new RangeError(`a segment has from 1 byte to 2 GiB, not ${bytes}`);
    }
    const pageBytes = options.pageBytes ?? 'auto';
    const liveness = options.liveness ?? 0;
    if (pageBytes !== 'auto') {
      const unit = Math.max(GRANULE_BYTES, pageBytes);
      return this.createWith(roundUp(bytes, unit), pageBytes, kind, liveness);
    }
    const whole = roundUp(bytes, GRANULE_BYTES);
    if (freeHugepageBytes() >= whole) {
      try {
        return this.createWith(whole, GRANULE_BYTES, kind, liveness);
      } catch (error) {
        // Another process took them in between: ordinary pages serve.
        if (!(error instanceof PenstockError) || error.code !== 'OUT_OF_HUGEPAGES') throw error;
      }
    }
    warnOnce();
    return this.createWith(whole, 4096, kind, liveness);
  }

  /**
   * Maps memory that others own (a guest's RAM, this guest's own region) into this process's slot:
   * at `address`, a multiple of 2 MiB and of the object's page size, or else at the lowest free
   * one. The descriptor stays the caller's. Errors: ADDRESS_TAKEN, IMPORT_FAILED.
   */
  import(
    fd: number,
    options: { offset?: number; bytes: number; writable?: boolean; address?: number },
  ): Segment {
    const { offset = 0, bytes, writable = true, address } = options;
    try {
      return this.adopt(native.segmentImport(fd, offset, bytes, writable, address));
    } catch (cause) {
      const code = errnoCode(cause);
      if (code === '') throw cause;
      if (code === 'EEXIST') throw addressTaken(address!, cause);
      throw new PenstockError('IMPORT_FAILED', `the descriptor's memory could not be mapped`, {
        hint:
          code === 'EOVERFLOW'
            ? 'the file is shorter than offset + bytes'
            : code === 'EINVAL' && address !== undefined
              ? `addresses of domain ${this.domain} are multiples of 2 MiB in its own slot`
              : 'give a memfd, hugetlbfs or regular file, opened for the wanted access',
        cause,
      });
    }
  }

  /** Maps a peer's sealed segment read-only at the address it has everywhere. */
  admit(fd: number, claim: { address: number; bytes: number; pageBytes: number }): Segment {
    try {
      return this.adopt(native.segmentAdmit(fd, claim.address, claim.bytes, claim.pageBytes));
    } catch (cause) {
      if (errnoCode(cause) === '') throw cause;
      throw new PenstockError('ADMISSION_REFUSED', 'the peer memory did not pass admission', {
        hint: 'it must be sealed, opened read-only, without holes and as claimed',
        cause,
      });
    }
  }

  /**
   * Maps another domain's region read-only at the address it has everywhere, although nothing seals
   * it: a memfd that QEMU writes, or a PCI resource in sysfs. This is weaker than `admit`: the
   * owner may change its size, and nothing here keeps others from mapping it writable. What
   * protects it from this process is the mapping, which no store gets through (the storing process
   * dies by SIGSEGV), and in a guest `readonly=on` of its QEMU. The descriptor must have been
   * opened for reading only and stays the caller's. Errors: ADDRESS_TAKEN, ADMISSION_REFUSED.
   */
  attach(fd: number, claim: { address: number; bytes: number }): Segment {
    try {
      return this.adopt(native.segmentAttach(fd, claim.address, claim.bytes));
    } catch (cause) {
      const code = errnoCode(cause);
      if (code === '') throw cause;
      if (code === 'EEXIST') throw addressTaken(claim.address, cause);
      throw new PenstockError('ADMISSION_REFUSED', 'the region could not be attached', {
        hint:
          code === 'EOVERFLOW'
            ? 'the object is shorter than the region is said to be'
            : "open it read-only; whole granules of 2 MiB in another domain's slot",
        cause,
      });
    }
  }

  /** The live segment over an address, whichever environment of this process opened it. */
  find(address: number): Segment | undefined {
    this.forgetClosed();
    const id = native.segmentFind(address);
    return id === 0 ? undefined : unlessClosed(() => this.adopt(id));
  }

  /** Ids, addresses and sizes of all live segments of the process. */
  list(): { id: number; address: number; bytes: number; pageBytes: number; kind: number }[] {
    return native.segmentIds().flatMap((id) => unlessClosed(() => native.segmentInfo(id)) ?? []);
  }

  private createWith(bytes: number, pageBytes: number, kind: number, liveness: number): Segment {
    try {
      return this.adopt(native.segmentCreate(bytes, pageBytes, kind, liveness));
    } catch (cause) {
      const code = errnoCode(cause);
      if (code === '') throw cause;
      if (pageBytes > 4096) {
        throw new PenstockError(
          'OUT_OF_HUGEPAGES',
          `${bytes} bytes of hugepages could not be had`,
          {
            hint: 'as root: echo N > /proc/sys/vm/nr_hugepages; or take pageBytes: 4096',
            exitCode: 3,
            cause,
          },
        );
      }
      throw new PenstockError('OUT_OF_MEMORY', `a segment of ${bytes} bytes could not be made`, {
        hint: 'free memory or close segments; `ulimit -v` and the cgroup may limit this process',
        cause,
      });
    }
  }

  private adopt(id: number): Segment {
    this.forgetClosed();
    const known = this.segments.get(id);
    if (known !== undefined) return known;
    const segment = new Segment(native.segmentInfo(id), (closed) =>
      this.segments.delete(closed.id),
    );
    this.segments.set(id, segment);
    return segment;
  }

  /** Drops views of segments that another environment closed, so that their ranges come free. */
  private forgetClosed(): void {
    const epoch = statusWords()[StatusWord.epoch]!;
    if (epoch === this.epoch) return;
    this.epoch = epoch;
    const live = new Set(native.segmentIds());
    for (const id of this.segments.keys()) if (!live.has(id)) this.segments.delete(id);
  }
}

function addressTaken(address: number, cause: unknown): PenstockError {
  return new PenstockError('ADDRESS_TAKEN', `memory lies at 0x${address.toString(16)} already`, {
    hint: 'map regions before the first allocation; a closed one comes free with its last view',
    cause,
  });
}

/** What `look` gives; undefined when another environment closes the segment at this moment. */
function unlessClosed<T>(look: () => T): T | undefined {
  try {
    return look();
  } catch (error) {
    if (errnoCode(error) !== 'EBADF') throw error;
    return undefined;
  }
}

let instance: AddressSpace | undefined;

/** This environment's face of the process's address space. */
export function addressSpace(): AddressSpace {
  instance ??= new AddressSpace();
  return instance;
}

export function roundUp(value: number, unit: number): number {
  return Math.ceil(value / unit) * unit;
}

/** Bytes of free 2 MiB hugepages, 0 where the kernel has none. */
export function freeHugepageBytes(): number {
  try {
    const folder = '/sys/kernel/mm/hugepages/hugepages-2048kB';
    const free = Number(readFileSync(`${folder}/free_hugepages`, 'utf8'));
    const reserved = Number(readFileSync(`${folder}/resv_hugepages`, 'utf8'));
    return Math.max(0, free - reserved) * GRANULE_BYTES;
  } catch {
    return 0; // no such folder: a kernel without hugepages
  }
}

function warnOnce(): void {
  if (warned || !isMainThread || process.env['PENSTOCK_QUIET'] === '1') return;
  warned = true;
  process.emitWarning('no free 2 MiB hugepages: using ordinary pages (works, a little slower)', {
    code: 'PENSTOCK_NO_HUGEPAGES',
    detail: 'As root: echo 512 > /proc/sys/vm/nr_hugepages; `penstock doctor` shows more.',
  });
}

export type { SegmentKind };
