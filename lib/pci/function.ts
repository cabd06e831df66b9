// PciFunction: one PCI function as drivers see it, whatever is in between: VFIO (vfio.ts) or a
// vfio-user server (vfio-user.ts); tests put others behind the same interface.
//
// Invariants
// 1. Register access never blocks for long and never throws: a function that is gone reads all ones
//    (or zeros, after a surprise removal) and `gone` turns true. Reset and close, which may take a
//    minute in the kernel, run off the main thread.
// 2. IOVA = Address. `dma.map` says, per granule, what the device can reach; an address goes into a
//    descriptor only when its bytes say so (DmaSpace).
// 3. One home: the environment that opened a function configures it. What `share` gives lets
//    another environment of the process use its registers, memory and vectors, and nothing else.

/** What config space says a function is. */
export interface PciIdentity {
  readonly vendor: number;
  readonly device: number;
  readonly subsystemVendor: number;
  readonly subsystemDevice: number;
  /** Base class << 16 | sub-class << 8 | programming interface. */
  readonly classCode: number;
  readonly revision: number;
}

/** A capability in config space (PCI Local Bus 3.0, section 6.7; extended: PCIe base, 7.9). */
export interface PciCapability {
  readonly id: number;
  readonly offset: number;
  readonly extended: boolean;
}

/** Config space; offsets in bytes, values unsigned. */
export interface ConfigSpace {
  read8(offset: number): number;
  read16(offset: number): number;
  read32(offset: number): number;
  write8(offset: number, value: number): void;
  write16(offset: number, value: number): void;
  write32(offset: number, value: number): void;
  capabilities(): readonly PciCapability[];
}

/** A base address register's memory. */
export interface Bar {
  readonly index: number;
  readonly bytes: number;
  /** A 32-bit register at a byte offset; all ones where the function is gone or there is none. */
  read32(offset: number): number;
  write32(offset: number, value: number): void;
  /**
   * The registers [offset, offset + bytes) as words that a driver stores to directly, or null where
   * they are trapped (each access is then a call of read32 or write32). Made once per call: keep
   * it.
   */
  words(offset: number, bytes: number): Uint32Array | null;
  /** True once the memory behind a mapping went away: what it reads means nothing. */
  readonly lost: boolean;
}

/**
 * What of the address space a device can reach. Segments are mapped whole, at IOVA = Address, when
 * first asked for; a read-only segment is mapped read-only.
 */
export interface DmaSpace {
  /**
   * One byte per granule of 2 MiB, as the access map: 0 nothing, 1 the device can read, 3 read and
   * write. Whatever it says is live memory; a driver tests it for each buffer in place of the
   * access map, and calls `reach` where it says 0.
   */
  readonly map: Uint8Array;
  /**
   * Maps the live segment over `address`. True: look at `map` again; false: another thread is
   * mapping it, look later. Errors: BAD_ADDRESS (no live segment), IOVA_OUT_OF_RANGE (outside what
   * the IOMMU translates, or reserved), OUT_OF_LOCKED_MEMORY, DMA_MAP_FAILED.
   */
  reach(address: number): boolean;
  /** Whether segments that are still mapped were closed. */
  readonly stale: boolean;
  /** Home only: remembers which those are now. */
  collect(): void;
  /**
   * Unmaps what the last `collect` found; its addresses come free. Only when every operation that
   * was in flight at that time has completed.
   */
  reap(): void;
}

export interface PciFunction {
  /** `0000:01:00.0`, or the path of a vfio-user socket. */
  readonly address: string;
  readonly transport: string;
  /** The kind of segment that can be mapped for it. */
  readonly memoryKind: 'private' | 'device';
  readonly identity: PciIdentity;
  readonly config: ConfigSpace;
  readonly dma: DmaSpace;
  /** MSI-X vectors (or MSI, or 1 for INTx); 0: no interrupts, poll. */
  readonly vectors: number;
  /** Errors: NO_SUCH_BAR. */
  bar(index: number): Bar;
  /**
   * Enables vectors 0 to count - 1 and gives their eventfds, owned by this environment until close.
   * Before the device itself is enabled.
   */
  enableInterrupts(count: number): readonly number[];
  disableInterrupts(): void;
  /**
   * Only where the one vector is INTx, which stays masked after each interrupt until this is
   * called: when the device's cause for it was taken away, before sleeping again.
   */
  readonly unmaskInterrupt?: () => void;
  /**
   * The MSI-X vector control word of a vector, for a driver that masks (bit 0 = 1) while it polls;
   * null where the table cannot be reached.
   */
  vectorControl(vector: number): { readonly words: Uint32Array; readonly index: number } | null;
  /** Memory space and bus master bits of the command register. */
  enable(): void;
  /** Bus master off: the device can start no DMA any more. */
  quiesce(): void;
  /** Function level reset (or the transport's reset). Errors: RESET_FAILED, TIMED_OUT. */
  reset(): Promise<void>;
  /** True once the function was removed or its server vanished. Sticky. */
  readonly gone: boolean;
  /** The kernel (or the server) asks for the device back; the driver closes it soon. */
  onRemovalRequested: (() => void) | null;
  /** What `attachFunction` needs in another environment of this process (structured clone). */
  share(): unknown;
  /** Quiesces, gives back interrupts, mappings and descriptors. Never blocks the thread. */
  close(): Promise<void>;
}
