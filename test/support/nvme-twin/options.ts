// What an NVMe twin is made of: its options and their defaults.

export interface TwinNamespaceOptions {
  /** Default: one more than the namespace before. */
  nsid?: number;
  blocks?: number;
  /** 512 or 4096. */
  blockSize?: number;
  /** Bytes of metadata a block has; 0 for none. */
  metadataBytes?: number;
  /** Metadata follows each block's data in one buffer, in place of a buffer of its own. */
  extended?: boolean;
}

export interface NvmeTwinOptions {
  /** Default: one of 1024 blocks of 512 bytes. */
  namespaces?: readonly TwinNamespaceOptions[];
  /** Largest namespace identifier (NN). */
  namespacesMax?: number;
  /**
   * Moves no data and looks at nothing but the entry's identifier and opcode: the benchmark's
   * device.
   */
  null?: boolean;
  /** Largest transfer is 4 KiB << mdts; 0: no limit. */
  mdts?: number;
  /** 0 none, 1 any address, 2 dword-aligned addresses and lengths. */
  sgls?: 0 | 1 | 2;
  /** What a SGL longer than the data is: true allows it (SGLS bit 18). */
  sglExcess?: boolean;
  /**
   * Shadow doorbells (Doorbell Buffer Config). lazy: an idle queue is looked at again only when its
   * register is written, which the event index asks for; polled: the device looks at every step.
   */
  shadowDoorbells?: 'none' | 'lazy' | 'polled';
  /** Bytes of controller memory buffer in BAR 2; 0: none. */
  cmbBytes?: number;
  /** I/O queue pairs that Set Features grants at most. */
  queuesMax?: number;
  /** Entries that a queue may have (CAP.MQES + 1). */
  entriesMax?: number;
  /** CAP.TO, in 500 ms. */
  timeoutUnits?: number;
  /** CAP.DSTRD: doorbells are 4 << n bytes apart. */
  doorbellStride?: number;
  /** CAP.MPSMAX. */
  pageShiftMax?: number;
  /** CAP.CQR: I/O queues must be contiguous. The twin takes no others. */
  volatileCache?: boolean;
  /** Optional NVM commands, by the bits of ONCS; default: all that the twin knows. */
  oncs?: number;
  /** Asynchronous event requests held at most, less one. */
  aerl?: number;
  /** Error log entries, less one. */
  elpe?: number;
  /** Abort commands at once, less one. */
  acl?: number;
  /** Interrupt vectors; 0: none. */
  vectors?: number;
  /**
   * Registers a driver may store to directly: none (each access is a call), the doorbells, or all
   * of BAR 0. What is mapped takes effect at the next step.
   */
  mapped?: 'none' | 'doorbells' | 'all';
  /** What the device reaches: any live segment, or segments that `reach` was called for. */
  dma?: 'live' | 'reached';
  /** Version register; default 2.0. */
  version?: number;
  /** CAP.CRMS, NSSRS and the like: bits of CAP 63:32 that are set in addition. */
  capHi?: number;
  model?: string;
  serial?: string;
  firmware?: string;
  address?: string;
}

export type ResolvedOptions = Required<NvmeTwinOptions>;

/** Optional NVM commands (ONCS) that the twin does. */
export const enum Oncs {
  COMPARE = 1 << 0,
  DSM = 1 << 2,
  WRITE_ZEROES = 1 << 3,
  SAVE_SELECT = 1 << 4,
  VERIFY = 1 << 7,
  COPY = 1 << 8,
}

const DEFAULTS: ResolvedOptions = {
  namespaces: [{}],
  namespacesMax: 32,
  null: false,
  mdts: 5,
  sgls: 0,
  sglExcess: false,
  shadowDoorbells: 'none',
  cmbBytes: 0,
  queuesMax: 8,
  entriesMax: 1024,
  timeoutUnits: 4,
  doorbellStride: 0,
  pageShiftMax: 0,
  volatileCache: true,
  oncs: Oncs.COMPARE | Oncs.DSM | Oncs.WRITE_ZEROES | Oncs.VERIFY | Oncs.COPY,
  aerl: 3,
  elpe: 15,
  acl: 3,
  vectors: 8,
  mapped: 'doorbells',
  dma: 'live',
  version: 0x20000,
  capHi: 0,
  model: 'PENSTOCK TWIN',
  serial: 'TWIN0001',
  firmware: '1.0',
  address: '0000:7f:00.0',
};

export function resolveOptions(options: NvmeTwinOptions): ResolvedOptions {
  return { ...DEFAULTS, ...options };
}
