// Memory that this process makes for somebody else: a region that a guest's QEMU maps writable.
//
// Invariants
// 1. Its maker never maps it writable: one writer, which is whom the descriptor is handed to.
// 2. Seals come after that one has mapped it. From then on nobody else can map it writable, root
//    included, and peers on this host admit it as any sealed segment.

import { errnoCode, PenstockError } from '../errors.js';
import { native } from '../native.js';
import { GRANULE_BYTES, SEGMENT_BYTES_MAX } from './segment.js';
import { freeHugepageBytes } from './space.js';

const O_RDONLY = 0;

export class MemoryObject {
  /** A multiple of 2 MiB. */
  readonly bytes: number;
  readonly pageBytes: number;
  /** Writable; close-on-exec, so that a child inherits it only where it is passed on. */
  readonly fd: number;
  private open = true;

  /**
   * Takes all its pages at once. `pageBytes` 4096, 2 MiB or 1 GiB; `auto`: hugepages where enough
   * are free. Errors: OUT_OF_MEMORY, OUT_OF_HUGEPAGES.
   */
  constructor(bytes: number, pageBytes: number | 'auto' = 'auto') {
    if (!(bytes > 0) || bytes > SEGMENT_BYTES_MAX || bytes % GRANULE_BYTES !== 0) {
      throw new RangeError(`a region has a multiple of 2 MiB up to 2 GiB, not ${bytes}`);
    }
    const isHuge = pageBytes === 'auto' && freeHugepageBytes() >= bytes;
    this.bytes = bytes;
    this.pageBytes = pageBytes === 'auto' ? (isHuge ? GRANULE_BYTES : 4096) : pageBytes;
    this.fd = create(bytes, this.pageBytes);
  }

  /** A descriptor of its own for readers, which no one can write or map writable by. */
  readOnly(): number {
    return native.fileOpen(`/proc/self/fd/${this.fd}`, O_RDONLY, 0);
  }

  /** See invariant 2. Whoever is to write must have mapped it. */
  seal(): void {
    native.objectSeal(this.fd);
  }

  /** The memory stays while anybody has it mapped or open. */
  close(): void {
    if (this.open) native.fileClose(this.fd);
    this.open = false;
  }
}

function create(bytes: number, pageBytes: number): number {
  try {
    return native.objectCreate(bytes, pageBytes);
  } catch (cause) {
    if (errnoCode(cause) === '') throw cause;
    const isHuge = pageBytes > 4096;
    throw new PenstockError(
      isHuge ? 'OUT_OF_HUGEPAGES' : 'OUT_OF_MEMORY',
      `${bytes} bytes for a region could not be had`,
      {
        hint: isHuge
          ? 'as root: echo N > /proc/sys/vm/nr_hugepages; or take pageBytes: 4096'
          : 'free memory; the cgroup may limit this process',
        ...(isHuge ? { exitCode: 3 } : {}),
        cause,
      },
    );
  }
}
