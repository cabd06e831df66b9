// DeviceInfo: what a device can do, so that requests can be split and bounced to fit it.

/** Facts of a block device. Byte counts are bytes, `blocks` are logical blocks. */
export interface DeviceInfo {
  /** Logical block size in bytes. */
  readonly blockSize: number;
  /** Capacity in logical blocks (an integer below 2^53). */
  readonly blocks: number;
  /** Largest single operation, in blocks. */
  readonly maxTransferBlocks: number;
  /** Entries of an SG list that one operation may have; 0: no SG without splitting. */
  readonly maxSegments: number;
  /** Alignment in bytes of a buffer's address. */
  readonly addressAlign: number;
  /** Alignment in bytes of each SG entry's length. */
  readonly segmentAlign: number;
  /** No operation may cross a multiple of this many blocks; 0: no such boundary. */
  readonly boundary: number;
  /** Blocks written all or nothing. */
  readonly atomicBlocks: number;
  /** Completed writes may be lost at a power cut until FLUSH or FUA. */
  readonly volatileCache: boolean;
  readonly canLoan: boolean;
  /** Loaned bytes stay as they were even when the blocks are written meanwhile. */
  readonly loanStable: boolean;
  readonly metadataBytes: number;
  readonly zones: ZoneInfo | null;
  /** Bit (1 << Op) for each operation the device does. */
  readonly operations: number;
  /** Bit per flag of the `op` word (Flag.FUA, Flag.SG, …). */
  readonly flags: number;
  readonly readOnly: boolean;
  /** Keeps acknowledged writes when the process dies, flushed writes when the power goes. */
  readonly durable: boolean;
  /** Physical block in bytes: writes smaller than it cost a read-modify-write. */
  readonly physicalBlockSize: number;
  /** For people: model, path, transport, what the ring uses. */
  readonly description: Readonly<Record<string, string | number | boolean>>;
}

export interface ZoneInfo {
  readonly zoneBlocks: number;
  readonly capacityBlocks: number;
  readonly maxOpen: number;
  readonly maxActive: number;
}
