// Commands: entries of the queues, opcodes and the numbers that commands take (NVM Express Base
// 2.0, sections 3.3.3, 5 and 7; NVM Command Set 1.0, section 3; Zoned Namespaces 1.1).
//
// Hot form: word indices of a 64-byte submission entry (Sqe) and a 16-byte completion entry (Cqe).
// Cold form: SQE_LAYOUT, CQE_LAYOUT and the names of opcodes, for errors and traces.

import { layout } from '../../wire/index.js';
import { bits, rows } from './table.js';

/** 32-bit word indices of a submission queue entry. */
export const enum Sqe {
  /** opcode | fuse << 8 | psdt << 14 | cid << 16 */
  cdw0 = 0,
  nsid = 1,
  cdw2 = 2,
  cdw3 = 3,
  mptrLo = 4,
  mptrHi = 5,
  prp1Lo = 6,
  prp1Hi = 7,
  prp2Lo = 8,
  prp2Hi = 9,
  cdw10 = 10,
  cdw11 = 11,
  cdw12 = 12,
  cdw13 = 13,
  cdw14 = 14,
  cdw15 = 15,
  words = 16,
}

/** 32-bit word indices of a completion queue entry. */
export const enum Cqe {
  dw0 = 0,
  dw1 = 1,
  /** sqhd | sqid << 16 */
  sqHead = 2,
  /** cid | phase << 16 | status << 17 */
  status = 3,
  words = 4,
}

/** Bits of Sqe.cdw0, already in place. */
export const enum Cdw0 {
  FUSE_FIRST = 1 << 8,
  FUSE_SECOND = 2 << 8,
  PSDT_PRP = 0 << 14,
  /** SGL; MPTR is the address of one contiguous buffer. */
  PSDT_SGL = 1 << 14,
  /** SGL; MPTR is the address of an SGL segment. */
  PSDT_SGL_MPTR = 2 << 14,
  CID_SHIFT = 16,
}

/** Bits of Cqe.status. */
export const enum CqeStatus {
  PHASE = 1 << 16,
  STATUS_SHIFT = 17,
}

/** All namespaces. */
export const enum Nsid {
  NONE = 0,
  BROADCAST = 0xffffffff,
}

export const enum AdminOp {
  DELETE_IO_SQ = 0x00,
  CREATE_IO_SQ = 0x01,
  GET_LOG_PAGE = 0x02,
  DELETE_IO_CQ = 0x04,
  CREATE_IO_CQ = 0x05,
  IDENTIFY = 0x06,
  ABORT = 0x08,
  SET_FEATURES = 0x09,
  GET_FEATURES = 0x0a,
  ASYNC_EVENT_REQUEST = 0x0c,
  NAMESPACE_MANAGEMENT = 0x0d,
  FIRMWARE_COMMIT = 0x10,
  FIRMWARE_DOWNLOAD = 0x11,
  DEVICE_SELF_TEST = 0x14,
  NAMESPACE_ATTACHMENT = 0x15,
  KEEP_ALIVE = 0x18,
  DIRECTIVE_SEND = 0x19,
  DIRECTIVE_RECEIVE = 0x1a,
  VIRTUALIZATION_MANAGEMENT = 0x1c,
  NVME_MI_SEND = 0x1d,
  NVME_MI_RECEIVE = 0x1e,
  CAPACITY_MANAGEMENT = 0x20,
  LOCKDOWN = 0x24,
  DOORBELL_BUFFER_CONFIG = 0x7c,
  FABRICS = 0x7f,
  FORMAT_NVM = 0x80,
  SECURITY_SEND = 0x81,
  SECURITY_RECEIVE = 0x82,
  SANITIZE = 0x84,
  GET_LBA_STATUS = 0x86,
}

export const enum IoOp {
  FLUSH = 0x00,
  WRITE = 0x01,
  READ = 0x02,
  WRITE_UNCORRECTABLE = 0x04,
  COMPARE = 0x05,
  WRITE_ZEROES = 0x08,
  DATASET_MANAGEMENT = 0x09,
  VERIFY = 0x0c,
  RESERVATION_REGISTER = 0x0d,
  RESERVATION_REPORT = 0x0e,
  RESERVATION_ACQUIRE = 0x11,
  RESERVATION_RELEASE = 0x15,
  COPY = 0x19,
  ZONE_MANAGEMENT_SEND = 0x79,
  ZONE_MANAGEMENT_RECEIVE = 0x7a,
  ZONE_APPEND = 0x7d,
}

/** Bits of cdw12 of reads, writes and their like; bits 15:0 are the blocks, less one. */
export const enum Cdw12 {
  NLB_MASK = 0xffff,
  /** Directive type of a write; cdw13 bits 31:16 are what it is about. */
  DTYPE_SHIFT = 20,
  STC = 1 << 24,
  /** Write Zeroes: deallocate. */
  DEAC = 1 << 25,
  PRCHK_REFTAG = 1 << 26,
  PRCHK_APPTAG = 1 << 27,
  PRCHK_GUARD = 1 << 28,
  /** The controller inserts or strips protection information. */
  PRACT = 1 << 29,
  FUA = 1 << 30,
  /** Limited retry. */
  LR = 1 << 31,
}

/** Dataset Management: cdw10 is the number of ranges, less one. */
export const enum Dsm {
  /** Bits of cdw11. */
  INTEGRAL_READ = 1 << 0,
  INTEGRAL_WRITE = 1 << 1,
  DEALLOCATE = 1 << 2,
  rangesMax = 256,
}

/** Words of a range of Dataset Management. */
export const enum DsmRange {
  attributes = 0,
  /** Blocks, not less one. */
  blocks = 1,
  slbaLo = 2,
  slbaHi = 3,
  words = 4,
}

/** cdw11 of Create I/O Completion Queue. */
export const enum CreateCq {
  /** Physically contiguous. */
  PC = 1 << 0,
  /** Interrupts enabled; bits 31:16 are the vector. */
  IEN = 1 << 1,
  VECTOR_SHIFT = 16,
}

/** cdw11 of Create I/O Submission Queue. */
export const enum CreateSq {
  /** Physically contiguous. */
  PC = 1 << 0,
  /** Priority, of use with weighted round robin. */
  QPRIO_SHIFT = 1,
  QPRIO_MASK = 0x3 << 1,
  CQID_SHIFT = 16,
}

/** cdw10 of Set Features: keep the value over resets. */
export const enum SetFeature {
  SAVE = 1 << 31,
}

/** cdw10 of Get Features, bits 10:8. */
export const enum FeatureSelect {
  CURRENT = 0 << 8,
  DEFAULT = 1 << 8,
  SAVED = 2 << 8,
  CAPABILITIES = 3 << 8,
}

/** Feature identifiers. */
export const enum Feature {
  ARBITRATION = 0x01,
  POWER_MANAGEMENT = 0x02,
  LBA_RANGE_TYPE = 0x03,
  TEMPERATURE_THRESHOLD = 0x04,
  ERROR_RECOVERY = 0x05,
  VOLATILE_WRITE_CACHE = 0x06,
  NUMBER_OF_QUEUES = 0x07,
  INTERRUPT_COALESCING = 0x08,
  INTERRUPT_VECTOR_CONFIG = 0x09,
  WRITE_ATOMICITY = 0x0a,
  ASYNC_EVENT_CONFIG = 0x0b,
  AUTONOMOUS_POWER_STATE = 0x0c,
  HOST_MEMORY_BUFFER = 0x0d,
  TIMESTAMP = 0x0e,
  KEEP_ALIVE_TIMER = 0x0f,
  HOST_THERMAL_MANAGEMENT = 0x10,
  NON_OPERATIONAL_POWER_STATE = 0x11,
  READ_RECOVERY_LEVEL = 0x12,
  PREDICTABLE_LATENCY_CONFIG = 0x13,
  PREDICTABLE_LATENCY_WINDOW = 0x14,
  LBA_STATUS_INTERVAL = 0x15,
  HOST_BEHAVIOR = 0x16,
  SANITIZE_CONFIG = 0x17,
  ENDURANCE_GROUP_EVENT = 0x18,
  IO_COMMAND_SET_PROFILE = 0x19,
  SPINUP_CONTROL = 0x1a,
  ENHANCED_CONTROLLER_METADATA = 0x7d,
  CONTROLLER_METADATA = 0x7e,
  NAMESPACE_METADATA = 0x7f,
  SOFTWARE_PROGRESS = 0x80,
  HOST_IDENTIFIER = 0x81,
  RESERVATION_NOTIFICATION = 0x82,
  RESERVATION_PERSISTENCE = 0x83,
  NAMESPACE_WRITE_PROTECTION = 0x84,
}

/** Log page identifiers. */
export const enum Lid {
  SUPPORTED_PAGES = 0x00,
  ERROR_INFORMATION = 0x01,
  SMART = 0x02,
  FIRMWARE_SLOT = 0x03,
  CHANGED_NAMESPACES = 0x04,
  COMMANDS_EFFECTS = 0x05,
  SELF_TEST = 0x06,
  TELEMETRY_HOST = 0x07,
  TELEMETRY_CONTROLLER = 0x08,
  ENDURANCE_GROUP = 0x09,
  PREDICTABLE_LATENCY_SET = 0x0a,
  PREDICTABLE_LATENCY_EVENT = 0x0b,
  ANA = 0x0c,
  PERSISTENT_EVENT = 0x0d,
  LBA_STATUS = 0x0e,
  ENDURANCE_GROUP_EVENT = 0x0f,
  MEDIA_UNIT_STATUS = 0x10,
  CAPACITY_CONFIGURATION = 0x11,
  FEATURES_EFFECTS = 0x12,
  NVME_MI_EFFECTS = 0x13,
  LOCKDOWN = 0x14,
  BOOT_PARTITION = 0x15,
  RESERVATION_NOTIFICATION = 0x80,
  SANITIZE_STATUS = 0x81,
  CHANGED_ZONES = 0xbf,
}

/** Get Log Page: cdw10 is lid | lsp << 8 | RAE | numdl << 16; numd is words, less one. */
export const enum GetLog {
  LSP_SHIFT = 8,
  /** Retain asynchronous event. */
  RAE = 1 << 15,
  NUMDL_SHIFT = 16,
}

/** What Identify gives (CNS, cdw10 bits 7:0). */
export const enum Cns {
  NAMESPACE = 0x00,
  CONTROLLER = 0x01,
  ACTIVE_NAMESPACES = 0x02,
  NAMESPACE_DESCRIPTORS = 0x03,
  NVM_SETS = 0x04,
  CSI_NAMESPACE = 0x05,
  CSI_CONTROLLER = 0x06,
  CSI_ACTIVE_NAMESPACES = 0x07,
  INDEPENDENT_NAMESPACE = 0x08,
  ALLOCATED_NAMESPACES = 0x10,
  ALLOCATED_NAMESPACE = 0x11,
  NAMESPACE_CONTROLLERS = 0x12,
  CONTROLLERS = 0x13,
  PRIMARY_CONTROLLER = 0x14,
  SECONDARY_CONTROLLERS = 0x15,
  NAMESPACE_GRANULARITY = 0x16,
  UUIDS = 0x17,
  DOMAINS = 0x18,
  ENDURANCE_GROUPS = 0x19,
  IO_COMMAND_SETS = 0x1c,
}

/** I/O command sets (CSI, cdw11 bits 31:24 of Identify). */
export const enum Csi {
  NVM = 0,
  KEY_VALUE = 1,
  ZONED = 2,
  SHIFT = 24,
}

/** Types of SGL descriptors, as they stand in the last word (type and sub-type are its byte 3). */
export const enum Sgl {
  DATA_BLOCK = 0x00 << 24,
  BIT_BUCKET = 0x10 << 24,
  SEGMENT = 0x20 << 24,
  LAST_SEGMENT = 0x30 << 24,
  KEYED_DATA_BLOCK = 0x40 << 24,
  TRANSPORT_DATA_BLOCK = 0x50 << 24,
  /** Sub-type: the address is an offset. */
  OFFSET = 0x01 << 24,
}

/** Words of an SGL descriptor. */
export const enum SglWord {
  addressLo = 0,
  addressHi = 1,
  bytes = 2,
  type = 3,
  words = 4,
}

export const SQE_LAYOUT = layout('nvme sqe', 64, 'NVMe Base 2.0, 3.3.3.1', [
  ...bits([
    ['opcode', 0, 7, 'command'],
    ['fuse', 8, 9, 'fused operation: 1 first, 2 second'],
    ['psdt', 14, 15, 'data pointer: 0 PRP, 1 SGL, 2 SGL for metadata, too'],
    ['cid', 16, 31, 'command identifier'],
  ]),
  ...rows([
    ['nsid', 4, 4, 'namespace'],
    ['cdw2', 8, 4, 'of the command'],
    ['cdw3', 12, 4, 'of the command'],
    ['mptr', 16, 8, 'metadata pointer'],
    ['prp1', 24, 8, 'data: first page, or first half of an SGL descriptor'],
    ['prp2', 32, 8, 'data: second page or list, or second half of an SGL descriptor'],
    ['cdw10', 40, 4, 'of the command'],
    ['cdw11', 44, 4, 'of the command'],
    ['cdw12', 48, 4, 'of the command'],
    ['cdw13', 52, 4, 'of the command'],
    ['cdw14', 56, 4, 'of the command'],
    ['cdw15', 60, 4, 'of the command'],
  ]),
]);

export const CQE_LAYOUT = layout('nvme cqe', 16, 'NVMe Base 2.0, 3.3.3.2', [
  ...rows([
    ['dw0', 0, 4, 'result of the command'],
    ['dw1', 4, 4, 'result of the command'],
    ['sqhd', 8, 2, 'head of the submission queue'],
    ['sqid', 10, 2, 'submission queue'],
    ['cid', 12, 2, 'command identifier'],
  ]),
  ...bits(
    [
      ['phase', 16, 16, 'changes each time round the queue'],
      ['sc', 17, 24, 'status code'],
      ['sct', 25, 27, 'status code type'],
      ['crd', 28, 29, 'which of the retry delays of Identify Controller applies'],
      ['more', 30, 30, 'the error log has more'],
      ['dnr', 31, 31, 'do not retry'],
    ],
    12,
  ),
]);

export const ADMIN_OPCODES = Object.freeze({
  DELETE_IO_SQ: 0x00,
  CREATE_IO_SQ: 0x01,
  GET_LOG_PAGE: 0x02,
  DELETE_IO_CQ: 0x04,
  CREATE_IO_CQ: 0x05,
  IDENTIFY: 0x06,
  ABORT: 0x08,
  SET_FEATURES: 0x09,
  GET_FEATURES: 0x0a,
  ASYNC_EVENT_REQUEST: 0x0c,
  NAMESPACE_MANAGEMENT: 0x0d,
  FIRMWARE_COMMIT: 0x10,
  FIRMWARE_DOWNLOAD: 0x11,
  DEVICE_SELF_TEST: 0x14,
  NAMESPACE_ATTACHMENT: 0x15,
  KEEP_ALIVE: 0x18,
  DIRECTIVE_SEND: 0x19,
  DIRECTIVE_RECEIVE: 0x1a,
  VIRTUALIZATION_MANAGEMENT: 0x1c,
  NVME_MI_SEND: 0x1d,
  NVME_MI_RECEIVE: 0x1e,
  CAPACITY_MANAGEMENT: 0x20,
  LOCKDOWN: 0x24,
  DOORBELL_BUFFER_CONFIG: 0x7c,
  FABRICS: 0x7f,
  FORMAT_NVM: 0x80,
  SECURITY_SEND: 0x81,
  SECURITY_RECEIVE: 0x82,
  SANITIZE: 0x84,
  GET_LBA_STATUS: 0x86,
});

export const IO_OPCODES = Object.freeze({
  FLUSH: 0x00,
  WRITE: 0x01,
  READ: 0x02,
  WRITE_UNCORRECTABLE: 0x04,
  COMPARE: 0x05,
  WRITE_ZEROES: 0x08,
  DATASET_MANAGEMENT: 0x09,
  VERIFY: 0x0c,
  RESERVATION_REGISTER: 0x0d,
  RESERVATION_REPORT: 0x0e,
  RESERVATION_ACQUIRE: 0x11,
  RESERVATION_RELEASE: 0x15,
  COPY: 0x19,
  ZONE_MANAGEMENT_SEND: 0x79,
  ZONE_MANAGEMENT_RECEIVE: 0x7a,
  ZONE_APPEND: 0x7d,
});
