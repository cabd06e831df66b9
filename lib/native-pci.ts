// What the addon offers for devices that this process drives itself: DMA domains, VFIO, device
// regions, calls that may block. Part of `Native` (native.ts), which says how calls behave.

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

export interface NativePci {
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
}
