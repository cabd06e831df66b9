// The records of every queue (HPDI): a request is 32 bytes, a completion 16, both as 32-bit words.
//
// The const enums are for this repository's hot paths (tsc inlines them); what the package exports
// are the frozen objects at the end, which a test holds equal to them.

/** Word indices of a request record. */
export const enum Req {
  /** Operation | flags << 8 | segments << 16 (segments: entries of an SG list). */
  op = 0,
  /** The caller's, given back in the completion; below 2^31 (bit 31 belongs to the stack). */
  tag = 1,
  /** Logical blocks; bytes on network devices (net.ts has what else differs there). */
  blocks = 2,
  /** Offload flags (network); metadata tag (NVMe). 0 elsewhere. */
  aux = 3,
  lbaLo = 4,
  lbaHi = 5,
  /** Address of the buffer, of the SG list, of the RAW command; the source LBA for COPY. */
  addressLo = 6,
  addressHi = 7,
  words = 8,
}

/** Word indices of a completion record. */
export const enum Cpl {
  tag = 0,
  /** 0, or a Status | driver detail << 8. */
  status = 1,
  /** READ_LOAN: address, low word. ZONE_APPEND: LBA. COMPARE: offset of the first difference. */
  resultLo = 2,
  /** READ_LOAN: address high word (12 bits) | generation << 12 (20 bits). */
  resultHi = 3,
  words = 4,
}

/** Operations. */
export const enum Op {
  READ = 1,
  READ_LOAN = 2,
  WRITE = 3,
  FLUSH = 4,
  DISCARD = 5,
  WRITE_ZEROES = 6,
  COMPARE = 7,
  COPY = 8,
  ZONE_APPEND = 9,
  RAW = 10,
  /** Network: sends the packet at address. */
  SEND = 16,
  /** Network: posts a receive buffer; completes with its length and flags. */
  RECEIVE = 17,
}

/** Flags, already shifted into their place in the `op` word. */
export const enum Flag {
  FUA = 1 << 8,
  /** The address points to entries {lo, hi, bytes, 0}, left untouched until completion. */
  SG = 1 << 9,
  /** The last SG entry is metadata. */
  META = 1 << 10,
  /** Ownership of the buffer moves to the device, which releases it to its owner. */
  GIVE = 1 << 11,
  mask = 0xff00,
}

/** An entry of an SG list. */
export const enum Sg {
  addressLo = 0,
  addressHi = 1,
  bytes = 2,
  words = 4,
}

/** Completion codes, the low 8 bits of a status word. */
export const enum Status {
  OK = 0,
  BAD_ADDRESS = 1,
  BAD_RANGE = 2,
  BAD_REQUEST = 3,
  UNSUPPORTED = 4,
  TOO_LARGE = 5,
  MISALIGNED = 6,
  MEDIA_ERROR = 7,
  NO_SPACE = 8,
  READ_ONLY = 9,
  DEVICE_GONE = 10,
  TIMED_OUT = 11,
  ABORTED = 12,
  MISCOMPARE = 13,
  BAD_LOAN = 14,
  NO_MEMORY = 15,
  DENIED = 16,
  BUSY = 17,
  DEVICE_ERROR = 18,
}

export const OPERATIONS = Object.freeze({
  READ: 1,
  READ_LOAN: 2,
  WRITE: 3,
  FLUSH: 4,
  DISCARD: 5,
  WRITE_ZEROES: 6,
  COMPARE: 7,
  COPY: 8,
  ZONE_APPEND: 9,
  RAW: 10,
  SEND: 16,
  RECEIVE: 17,
});

export const FLAGS = Object.freeze({ FUA: 1 << 8, SG: 1 << 9, META: 1 << 10, GIVE: 1 << 11 });

export const REQUEST = Object.freeze({
  op: 0,
  tag: 1,
  blocks: 2,
  aux: 3,
  lbaLo: 4,
  lbaHi: 5,
  addressLo: 6,
  addressHi: 7,
  words: 8,
});

export const COMPLETION = Object.freeze({ tag: 0, status: 1, resultLo: 2, resultHi: 3, words: 4 });

export const STATUS = Object.freeze({
  OK: 0,
  BAD_ADDRESS: 1,
  BAD_RANGE: 2,
  BAD_REQUEST: 3,
  UNSUPPORTED: 4,
  TOO_LARGE: 5,
  MISALIGNED: 6,
  MEDIA_ERROR: 7,
  NO_SPACE: 8,
  READ_ONLY: 9,
  DEVICE_GONE: 10,
  TIMED_OUT: 11,
  ABORTED: 12,
  MISCOMPARE: 13,
  BAD_LOAN: 14,
  NO_MEMORY: 15,
  DENIED: 16,
  BUSY: 17,
  DEVICE_ERROR: 18,
});
