// What the twin itself needs of numbers: 64-bit values of entries, and status codes. The codes are
// written here a second time, by their values, so that the driver's table is not checked by itself.

export const TWO_32 = 2 ** 32;

/** A 64-bit little-endian value from two words; exact below 2^53. */
export function wide(words: Uint32Array, at: number): number {
  return words[at + 1]! * TWO_32 + words[at]!;
}

/** Status code type << 8 | status code (Base 2.0, 3.3.3.2.1), and what stands beside them. */
export const enum Code {
  SUCCESS = 0x000,
  INVALID_OPCODE = 0x001,
  INVALID_FIELD = 0x002,
  DATA_TRANSFER_ERROR = 0x004,
  INTERNAL_ERROR = 0x006,
  ABORT_REQUESTED = 0x007,
  SQ_DELETED = 0x008,
  INVALID_NAMESPACE = 0x00b,
  COMMAND_SEQUENCE = 0x00c,
  SGL_SEGMENT = 0x00d,
  SGL_COUNT = 0x00e,
  SGL_LENGTH = 0x00f,
  SGL_METADATA_LENGTH = 0x010,
  SGL_TYPE = 0x011,
  PRP_OFFSET = 0x013,
  LBA_OUT_OF_RANGE = 0x080,
  CQ_INVALID = 0x100,
  QUEUE_ID = 0x101,
  QUEUE_SIZE = 0x102,
  ABORT_LIMIT = 0x103,
  ASYNC_EVENT_LIMIT = 0x105,
  INTERRUPT_VECTOR = 0x108,
  LOG_PAGE = 0x109,
  QUEUE_DELETION = 0x10c,
  FEATURE_NOT_SAVEABLE = 0x10d,
  FEATURE_NOT_CHANGEABLE = 0x10e,
  COMMAND_SIZE_LIMIT = 0x183,
  UNRECOVERED_READ = 0x281,
  COMPARE_FAILURE = 0x285,
  mask = 0x7ff,
  MORE = 1 << 13,
  /** The host shall not retry. */
  DNR = 1 << 14,
}

/** Bits 12:11 of the status field: which retry delay. */
export const CRD_SHIFT = 11;

/** No completion now: the command is held. */
export const HELD = -1;
