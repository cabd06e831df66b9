// The addon's functions, typed (floor 0): what native.ts gives. Everything here is shaped like a
// system call: numbers and typed arrays in, numbers out; see native.ts for how they fail.

import type { FingerprintCalls } from './native-fingerprints.js';

/** A failed system call: `code` is errno's name (`ENOMEM`), `syscall` the call's (`mmap`). */
export interface NativeError extends Error {
  readonly code: string;
  readonly errno: number;
  readonly syscall: string;
}

export interface SegmentRecord {
  readonly id: number;
  /** Address of the first byte. */
  readonly address: number;
  /** Size in bytes; a multiple of 2 MiB. */
  readonly bytes: number;
  /** Bytes that the backing object really has (less than `bytes` only for imported memory). */
  readonly backedBytes: number;
  /** Page size of the backing object: 4096, 2 MiB or 1 GiB. */
  readonly pageBytes: number;
  /** 0 private, 1 shared, 2 device, 3 imported, 4 admitted (a peer's, read-only). */
  readonly kind: number;
  readonly writable: boolean;
  /** Address of the control block of the pool that carved this segment up, or 0. */
  readonly companion: number;
}

export interface UringParameters {
  entries: number;
  /** IORING_SETUP_* bits. */
  flags: number;
  cqEntries?: number;
  sqThreadCpu?: number;
  sqThreadIdleMs?: number;
  /** Id of a ring whose SQPOLL thread is shared (IORING_SETUP_ATTACH_WQ). */
  attach?: number;
}

export interface UringRecord {
  readonly id: number;
  readonly fd: number;
  /** IORING_FEAT_* bits. */
  readonly features: number;
  /** IORING_SETUP_* bits in force. */
  readonly flags: number;
  readonly sqEntries: number;
  readonly cqEntries: number;
  /** The SQ and CQ ring (one mapping, IORING_FEAT_SINGLE_MMAP). */
  readonly rings: ArrayBuffer;
  readonly sqes: ArrayBuffer;
  /** Byte offsets into `rings`. */
  readonly sqHead: number;
  readonly sqTail: number;
  readonly sqMask: number;
  readonly sqFlags: number;
  readonly sqDropped: number;
  readonly sqArray: number;
  readonly cqHead: number;
  readonly cqTail: number;
  readonly cqMask: number;
  readonly cqOverflow: number;
  readonly cqFlags: number;
  readonly cqes: number;
}

export interface ReceivedMessage {
  /** Bytes received into the caller's buffer; 0 is end of stream. */
  bytes: number;
  fds: number[];
  truncated: boolean;
}

export interface PeerCredentials {
  pid: number;
  uid: number;
  gid: number;
  /**
   * A pidfd of the peer (SO_PEERPIDFD, or pidfd_open where the kernel lacks it), owned by the
   * caller.
   */
  pidfd: number;
}

/** What an IOMMU translates; addresses up to 2^53 are exact. */
export interface VfioIommuRecord {
  /** Mask of page sizes. */
  readonly pageSizes: number;
  /** Pairs [start, last byte]; none where the kernel does not say. */
  readonly ranges: readonly number[];
  /** DMA mappings that can still be made; -1 where the kernel does not say. */
  readonly mappingsLeft: number;
}

export interface VfioRegionRecord {
  /** VFIO_REGION_INFO_FLAG_*: 1 read, 2 write, 4 mmap. */
  readonly flags: number;
  readonly bytes: number;
  /** Where it begins in the device descriptor's file. */
  readonly offset: number;
  /** 1: only `areas`, pairs [offset, bytes] in the region, can be mapped. */
  readonly sparse: number;
  readonly areas: readonly number[];
  /** 1: the part with the MSI-X table can be mapped too. */
  readonly msixMappable: number;
}

export interface Native extends FingerprintCalls {
  // --- memory.cc -------------------------------------------------------------------------------
  /** Claims domain `domain`'s slot; EBUSY once a segment exists. Domain 1 by default. */
  memoryJoin(domain: number): void;
  memoryDomain(): number;
  /**
   * What a report of a fault in domain `domain`'s slot calls it: at most 64 bytes, of which
   * anything but printable ASCII shows as `?`; '' for its number alone.
   */
  memoryDomainName(domain: number, name: string): void;
  /**
   * Whether this process holds addresses in domain `domain`'s slot: a live segment, or a closed one
   * over which an ArrayBuffer is left in any environment, which a DMA domain still holds, or where
   * a device may still write.
   */
  memorySlotHeld(domain: number): boolean;
  /**
   * A memfd of `bytes` (a multiple of 2 MiB and of pageBytes, at most 2 GiB), mapped writable at
   * the lowest free aligned address of the process's slot: aligned to 1 GiB, where it is that large
   * and of hugepages, as far as there is such room. kind: 0 private, 1 shared, 2 device.
   * Hugepages are all allocated here, so that running out is ENOMEM now, not SIGBUS later.
   * `liveness`: it belongs to the environment that holds this liveness word (ESRCH when gone), not
   * the caller.
   */
  segmentCreate(bytes: number, pageBytes: number, kind: number, liveness?: number): number;
  /**
   * Maps foreign memory (copied descriptor) into this process's slot. Any page-aligned offset and
   * size. At `address` where that is given (EEXIST when it is taken, EINVAL with the failed check
   * as syscall), otherwise at the lowest free one.
   */
  segmentImport(
    fd: number,
    offset: number,
    bytes: number,
    writable: boolean,
    address?: number,
  ): number;
  /**
   * Maps a peer's sealed segment read-only at `address`; EPERM, EINVAL with the failed check as
   * syscall.
   */
  segmentAdmit(fd: number, address: number, bytes: number, pageBytes: number): number;
  /**
   * Maps another domain's memory read-only at `address` although it is not sealed: a memfd that
   * QEMU writes, or a PCI resource in sysfs. EINVAL, EPERM (not opened read-only), EOVERFLOW (the
   * object is shorter) with the failed check as syscall; EEXIST.
   */
  segmentAttach(fd: number, address: number, bytes: number): number;
  segmentInfo(id: number): SegmentRecord;
  /** Id of the live segment over the address, or 0. */
  segmentFind(address: number): number;
  segmentIds(): number[];
  setSegmentCompanion(id: number, address: number): void;
  /**
   * A new descriptor to hand out: read-only and sealed for shared, writable for device; EPERM for
   * private.
   */
  segmentFd(id: number): number;
  /** One external ArrayBuffer per segment and environment. */
  segmentBuffer(id: number): ArrayBuffer;
  /**
   * Replaces the pages by anonymous ones; the range is free again when no ArrayBuffer is left over
   * it.
   */
  segmentClose(id: number): void;
  /**
   * Physical address of each page from `address` on into `out` (lo, hi pairs); 0 where unknown.
   * /proc/self/pagemap.
   */
  segmentPhysical(address: number, pageBytes: number, out: Uint32Array): number;
  /**
   * Process-wide status words, one external buffer per environment; layout in lib/memory/status.ts:
   * u32[0] epoch of the segment table, u32[1] mappings lost so far, u32[2] entries copied by
   * copyList and u32[4], u32[5] their bytes, u32[16..] lost word per segment id,
   * then liveness words.
   */
  statusWords(): ArrayBuffer;
  /**
   * 2^23 bytes, one per 2 MiB of the address space: 0 nothing, 1 readable, 3 readable and
   * writable.
   */
  accessMap(): ArrayBuffer;
  /** Claims a liveness word that native sets to 0 when this environment ends; gives its index. */
  livenessOpen(): number;
  livenessClose(index: number): void;

  // --- uring.cc --------------------------------------------------------------------------------
  /** 64 bytes, what uringEnter works from: see Control in lib/uring/layout.ts. */
  readonly uringControl: ArrayBuffer;
  /** io_uring_enter of the ring in uringControl; no arguments, no result, cannot throw. */
  readonly uringEnter: () => void;
  uringSetup(parameters: UringParameters): UringRecord;
  /**
   * io_uring_register; `argument` is pinned for the call only. Returns its result, negative errno
   * included.
   */
  uringRegister(
    id: number,
    opcode: number,
    argument: ArrayBufferView | null,
    count: number,
  ): number;
  /**
   * Fixed buffers by address, checked: entries of (addressLo, addressHi, bytes, 0) into the table
   * from
   * slot `offset` on (0 bytes clears a slot). offset -1 makes an empty table of entries[0] slots.
   * Returns the kernel's result, negative errno included.
   */
  uringRegisterBuffers(id: number, offset: number, entries: Uint32Array): number;
  uringClose(id: number): void;

  // --- file descriptors (file.cc): owned by the environment, closed when it ends ----------------
  fileOpen(path: string, flags: number, mode: number): number;
  fileClose(fd: number): void;
  fileDuplicate(fd: number): number;
  /**
   * [device type bits (st_mode), size in bytes, block size, dio_mem_align, dio_offset_align, dev,
   * ino]
   */
  fileStat(fd: number): number[];
  /**
   * [bytes, logical block size, physical block size, discard granularity, max sectors bytes] of a
   * block device.
   */
  blockGeometry(fd: number): number[];
  fileAllocate(fd: number, mode: number, offset: number, bytes: number): void;
  fileTruncate(fd: number, bytes: number): void;
  /** Locks a file for this opening of it, or unlocks it (F_OFD_SETLK); EAGAIN: another has it. */
  fileLock(fd: number, locked: boolean): void;
  /** Bytes transferred between the whole view and the file at `offset`; own descriptors only. */
  filePread(fd: number, offset: number, view: ArrayBufferView): number;
  filePwrite(fd: number, offset: number, view: ArrayBufferView): number;

  // --- dma.cc: ENXIO everywhere when the domain is closed ----------------------------------------
  /** A DMA domain of this environment, usable in all of them: what one device can reach. */
  dmaOpen(): number;
  /**
   * 2^23 bytes, one per granule as the access map (0 nothing, 1 the device reads, 3 and writes),
   * then one page whose first word is the number of stale segments (see dmaStale). A new
   * ArrayBuffer per call over the same memory; all 0 once the domain is closed.
   */
  dmaMap(domain: number): ArrayBuffer;
  /**
   * 1: the caller maps the segment for the device now, then calls dmaMark, or dmaDrop where that
   * failed. 0: it is held already, being mapped or done. EBADF: no live segment. From 1 on the
   * segment's range is not reused before dmaDrop or dmaClose.
   */
  dmaHold(domain: number, segment: number): number;
  /**
   * The device reaches the segment: its bytes become `access` (1 or 3) as far as the segment's own
   * goes. False: it was closed meanwhile, stays 0 and is stale now. EINVAL: it is not held.
   */
  dmaMark(domain: number, segment: number, access: number): boolean;
  /** Pairs [address, bytes] of held segments that are closed and that nobody is mapping. */
  dmaStale(domain: number): number[];
  /** The device does not reach the segment at `address` any more; ends the hold. EINVAL: none. */
  dmaDrop(domain: number, address: number): void;
  /** Drops everything. Own domains only (EPERM). */
  dmaClose(domain: number): void;

  // --- object.cc -------------------------------------------------------------------------------
  /** A memfd of `bytes`, not sealed yet, with all its pages; nothing of it is mapped here. */
  objectCreate(bytes: number, pageBytes: number): number;
  /**
   * Adds the seals that segmentAdmit asks for: what is mapped writable stays so, nobody else maps
   * it so. Own descriptors only (EBADF).
   */
  objectSeal(fd: number): void;

  // --- vfio.cc: own descriptors only (EBADF) -----------------------------------------------------
  /** /dev/vfio/vfio; EPROTO when its version is another. */
  vfioContainerOpen(): number;
  /** /dev/vfio/GROUP. */
  vfioGroupOpen(group: number): number;
  /** VFIO_GROUP_FLAGS_*: 1 viable, 2 attached to a container. */
  vfioGroupStatus(group: number): number;
  vfioGroupAttach(group: number, container: number): void;
  /** Sets type 1 version 2, or version 1 where the kernel has no other; gives VFIO_TYPE1*_IOMMU. */
  vfioSetIommu(container: number): number;
  vfioIommuInfo(container: number): VfioIommuRecord;
  /**
   * Maps the whole live segment at IOVA = Address, for reading only where it is not writable. EBADF
   * when it is closed; ENOMEM beyond RLIMIT_MEMLOCK; EEXIST when it is mapped. Blocks while the
   * kernel pins its pages (about 0.1 ms per MiB of ordinary pages).
   */
  vfioMap(container: number, segment: number): void;
  /** Unmaps every mapping that lies in the range; gives their bytes. */
  vfioUnmap(container: number, address: number, bytes: number): number;
  /** The device's descriptor, which is closed before all others when the environment ends. */
  vfioDeviceOpen(group: number, name: string): number;
  /** [VFIO_DEVICE_FLAGS_* (1 reset, 2 PCI), regions, interrupt indices] */
  vfioDeviceInfo(device: number): number[];
  vfioRegionInfo(device: number, index: number): VfioRegionRecord;
  /** [VFIO_IRQ_INFO_* (1 eventfd, 2 maskable, 4 automasked, 8 not resizable), vectors] */
  vfioIrqInfo(device: number, index: number): number[];
  /**
   * Vectors from `start` on signal these eventfds (-1: none). An empty list disables the index
   * (`start` 0).
   */
  vfioSetIrqs(device: number, index: number, start: number, eventfds: readonly number[]): void;
  /** Ends the mask that a level-triggered interrupt (INTx) put on itself. */
  vfioUnmaskIrq(device: number, index: number): void;

  // --- region.cc -------------------------------------------------------------------------------
  /**
   * Maps a part of a device (any own descriptor) outside the address space. Where it vanishes it
   * reads 0xff, and status word `lost` + id % 4096 is not 0.
   */
  regionMap(fd: number, offset: number, bytes: number, writable: boolean): number;
  /** A new ArrayBuffer per call, in any environment; EBADF once it is closed. */
  regionBuffer(region: number): ArrayBuffer;
  /** Puts pages of 0xff in its place, and sets its lost word. Own regions only (EPERM). */
  regionClose(region: number): void;

  // --- blocking.cc -----------------------------------------------------------------------------
  /**
   * A call that may block for a minute, on a thread of its own: 0 resets a VFIO device, 1 closes
   * any own descriptor, which leaves this environment's ownership at once. Gives an eventfd that
   * becomes readable when it is done.
   */
  blockingStart(kind: number, fd: number): number;
  /** 0 or an errno, once; -1: not done yet. */
  blockingResult(eventfd: number): number;

  // --- event.cc --------------------------------------------------------------------------------
  eventfdCreate(): number;
  /** Adds 1. */
  eventfdSignal(fd: number): void;
  /** Reads and so resets the counter; 0 when it was not signalled. */
  eventfdDrain(fd: number): number;
  timerfdCreate(): number;
  /**
   * One shot after `nanoseconds` (0 disarms), then every `intervalNanoseconds` when that is not 0.
   */
  timerfdSet(fd: number, nanoseconds: number, intervalNanoseconds: number): void;
  timerfdDrain(fd: number): number;
  pidfdOpen(pid: number): number;
  pidfdSignal(pidfd: number, signal: number): void;
  /**
   * Blocks this thread in poll(2) for at most `timeoutUs` (-1: no limit); returns the index of the
   * first ready fd or -1.
   */
  park(fds: Int32Array, timeoutUs: number): number;
  /**
   * FUTEX_WAIT on a word of a live segment while it holds `expected`. 0 woken, 1 value differed, 2
   * timed out. On a PCI resource only threads of this process can wake.
   */
  futexWait(address: number, expected: number, timeoutUs: number): number;
  futexWake(address: number, count: number): number;
  /** Watches fd in Node's loop (uv_poll, level triggered). One watch per fd; gives a watch id. */
  watchOpen(fd: number, onReadable: () => void): number;
  /** Starts or stops; a started watch keeps the process alive unless `keepAlive` is false. */
  watchSet(watch: number, active: boolean, keepAlive?: boolean): void;
  watchClose(watch: number): void;

  // --- socket.cc -------------------------------------------------------------------------------
  /**
   * SOCK_SEQPACKET unix sockets, non-blocking, close-on-exec. A path that starts with NUL is
   * abstract.
   */
  unixListen(path: string, mode: number): number;
  unixConnect(path: string): number;
  /** A connected descriptor, or -1 when nobody waits. */
  unixAccept(fd: number): number;
  unixPair(): [number, number];
  /** Sends one message with up to 64 descriptors; bytes sent, or -1 when it would block. */
  unixSend(fd: number, data: Uint8Array, fds: readonly number[]): number;
  unixReceive(fd: number, data: Uint8Array): ReceivedMessage | null;
  unixPeer(fd: number): PeerCredentials;
  /** Both ends, and whoever has a duplicate of one, read the end of the stream from now on. */
  unixShutdown(fd: number): void;

  // --- stream.cc: SOCK_STREAM; unixAccept and unixPeer serve here too ----------------------------
  streamListen(path: string, mode: number): number;
  /** EAGAIN when as many wait already as the listener wants to have waiting. */
  streamConnect(path: string): number;
  /**
   * Sends all of `data`, up to 64 descriptors with its first byte; ETIMEDOUT once the deadline is
   * over: a part may then have gone, and the stream is of no more use.
   */
  streamSend(fd: number, data: Uint8Array, fds: readonly number[], timeoutUs: number): void;
  /**
   * Fills all of `data` and returns its length, or less at the end of the stream; ETIMEDOUT as for
   * streamSend. fds[0] is the number of descriptors that came with these bytes, in fds[1…]; -1 when
   * there were more than fit: they are closed.
   */
  streamReceive(fd: number, data: Uint8Array, fds: Int32Array, timeoutUs: number): number;
  /**
   * Copies the next bytes and leaves them, and their descriptors, in the stream. Otherwise as
   * streamReceive: how many of `data`, all of them but at the end of the stream; ETIMEDOUT.
   */
  streamPeek(fd: number, data: Uint8Array, timeoutUs: number): number;
  /** shutdown(SHUT_WR): the peer reads the end of the stream; what it sends still comes. */
  streamEnd(fd: number): void;
  /** Memory of what was sent and not yet read by the peer; 0 when all was. */
  streamUnread(fd: number): number;

  // --- cpu.cc ----------------------------------------------------------------------------------
  cpuAffinity(): number[];
  setCpuAffinity(cpus: readonly number[]): void;
  /**
   * Ticks of the time stamp counter per second, measured once per process against
   * CLOCK_MONOTONIC_RAW.
   */
  tscHertz(): number;
  /** A function without arguments that stores the time stamp counter into two words. */
  tscClock(): { words: ArrayBuffer; read: () => void };
  /** A full memory barrier on every thread of the process (MEMBARRIER_CMD_PRIVATE_EXPEDITED). */
  membarrier(): void;
  /** Executes `count` PAUSE instructions (at most 10^6). */
  pause(count: number): void;
  /**
   * sched_yield(2): another thread that waits for this processor has its turn; where there is none,
   * it costs a system call. For who polls for what such a thread may have to do first.
   */
  yieldCpu(): void;
  /** [user, system] CPU nanoseconds of this thread. */
  threadCpuTime(): [number, number];

  // --- hash.cc: over byte ranges of live segments, or over a view -------------------------------
  xxh3(data: Uint8Array, out: Uint32Array): void;
  crc32c(data: Uint8Array, seed: number): number;
  /** entries: (addressLo, addressHi, bytes, 0) each; out gets 4 words an entry. */
  xxh3List(entries: Uint32Array, count: number, out: Uint32Array): void;
  /** out gets 1 word an entry. */
  crc32cList(entries: Uint32Array, count: number, out: Uint32Array): void;

  // --- copy.cc: lists of (toLo, toHi, fromLo, fromHi, bytes, 0, 0, 0) ---------------------------
  /**
   * Copies entry by entry; returns entries done: fewer than `count` when the next has a bad
   * address.
   */
  copyList(entries: Uint32Array, count: number): number;
  /**
   * Result per entry into word 5: 0xffffffff equal, else the first differing byte's offset.
   * Returns entries done.
   */
  compareList(entries: Uint32Array, count: number): number;
  /** Entries (toLo, toHi, bytes, pattern byte): fills; returns entries done. */
  fillList(entries: Uint32Array, count: number): number;
}
