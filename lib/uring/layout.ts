// io_uring's structures and constants (linux/io_uring.h; io_uring_setup(2), io_uring_enter(2)).

import { layout } from '../wire/index.js';

/** 32-bit word indices of a submission queue entry. */
export const enum Sqe {
  /** opcode | flags << 8 | ioprio << 16 */
  opcode = 0,
  fd = 1,
  offLo = 2,
  offHi = 3,
  addrLo = 4,
  addrHi = 5,
  len = 6,
  /** rw_flags, fsync_flags, cancel_flags, timeout_flags, … */
  opFlags = 7,
  userDataLo = 8,
  userDataHi = 9,
  /** buf_index | personality << 16 */
  bufIndex = 10,
  fileIndex = 11,
  addr3Lo = 12,
  addr3Hi = 13,
  words = 16,
}

/** 32-bit word indices of a completion queue entry (16 bytes; 32-byte entries add big_cqe). */
export const enum Cqe {
  userDataLo = 0,
  userDataHi = 1,
  res = 2,
  flags = 3,
  words = 4,
}

/**
 * Word indices of the environment's control block, which `uringEnter` works from (native/uring.cc).
 */
export const enum Control {
  toSubmit = 0,
  minComplete = 1,
  flags = 2,
  timeoutUs = 3,
  result = 4,
  ring = 5,
  /** Not 0: the clock of native.tscClock is read when a call returns. */
  stamp = 6,
  /** Such reads so far. */
  stamps = 7,
  ticksLo = 8,
  ticksHi = 9,
}

export const enum Opcode {
  NOP = 0,
  READV = 1,
  WRITEV = 2,
  FSYNC = 3,
  READ_FIXED = 4,
  WRITE_FIXED = 5,
  POLL_ADD = 6,
  TIMEOUT = 11,
  TIMEOUT_REMOVE = 12,
  ASYNC_CANCEL = 14,
  LINK_TIMEOUT = 15,
  FALLOCATE = 17,
  READ = 22,
  WRITE = 23,
  URING_CMD = 46,
}

/** Flags of an entry, already in place in the opcode word. */
export const enum SqeFlag {
  FIXED_FILE = 1 << 8,
  IO_DRAIN = 2 << 8,
  IO_LINK = 4 << 8,
  IO_HARDLINK = 8 << 8,
  ASYNC = 16 << 8,
}

export const enum Setup {
  IOPOLL = 1 << 0,
  SQPOLL = 1 << 1,
  SQ_AFF = 1 << 2,
  CQSIZE = 1 << 3,
  CLAMP = 1 << 4,
  ATTACH_WQ = 1 << 5,
  R_DISABLED = 1 << 6,
  SUBMIT_ALL = 1 << 7,
  COOP_TASKRUN = 1 << 8,
  TASKRUN_FLAG = 1 << 9,
  SQE128 = 1 << 10,
  CQE32 = 1 << 11,
  SINGLE_ISSUER = 1 << 12,
  DEFER_TASKRUN = 1 << 13,
  NO_SQARRAY = 1 << 16,
}

export const enum Feature {
  SINGLE_MMAP = 1 << 0,
  NODROP = 1 << 1,
  EXT_ARG = 1 << 8,
  RSRC_TAGS = 1 << 10,
}

export const enum EnterFlag {
  GETEVENTS = 1 << 0,
  SQ_WAKEUP = 1 << 1,
  SQ_WAIT = 1 << 2,
}

/** Bits of the SQ ring's flags word. */
export const enum SqFlag {
  NEED_WAKEUP = 1 << 0,
  CQ_OVERFLOW = 1 << 1,
  TASKRUN = 1 << 2,
}

export const enum Register {
  UNREGISTER_BUFFERS = 1,
  FILES = 2,
  UNREGISTER_FILES = 3,
  EVENTFD = 4,
  UNREGISTER_EVENTFD = 5,
  FILES_UPDATE = 6,
  PROBE = 8,
  IOWQ_MAX_WORKERS = 19,
}

/** Errno values that a ring's user has to tell apart (positive; results carry them negated). */
export const enum Errno {
  EPERM = 1,
  EINTR = 4,
  EAGAIN = 11,
  ENOMEM = 12,
  EBUSY = 16,
  EINVAL = 22,
  ETIME = 62,
  ECANCELED = 125,
}

export const SQE_LAYOUT = layout('io_uring_sqe', 64, 'linux/io_uring.h', [
  { name: 'opcode', offset: 0, bytes: 1, meaning: 'type of operation' },
  { name: 'flags', offset: 1, bytes: 1, meaning: 'IOSQE_ flags' },
  { name: 'ioprio', offset: 2, bytes: 2, meaning: 'I/O priority' },
  { name: 'fd', offset: 4, bytes: 4, meaning: 'descriptor or registered index' },
  { name: 'off', offset: 8, bytes: 8, meaning: 'offset in the file' },
  { name: 'addr', offset: 16, bytes: 8, meaning: 'buffer, iovec array, or length (fallocate)' },
  { name: 'len', offset: 24, bytes: 4, meaning: 'buffer size, number of iovecs, or mode' },
  { name: 'opFlags', offset: 28, bytes: 4, meaning: 'flags of the operation' },
  { name: 'userData', offset: 32, bytes: 8, meaning: 'given back in the completion' },
  { name: 'bufIndex', offset: 40, bytes: 2, meaning: 'index of the registered buffer' },
  { name: 'personality', offset: 42, bytes: 2, meaning: 'credentials to use' },
  { name: 'fileIndex', offset: 44, bytes: 4, meaning: 'splice source or direct descriptor' },
  { name: 'addr3', offset: 48, bytes: 8, meaning: 'third address; start of a command (SQE128)' },
]);

export const CQE_LAYOUT = layout('io_uring_cqe', 16, 'linux/io_uring.h', [
  { name: 'userData', offset: 0, bytes: 8, meaning: 'from the submission' },
  { name: 'res', offset: 8, bytes: 4, meaning: 'result, or a negated errno' },
  { name: 'flags', offset: 12, bytes: 4, meaning: 'IORING_CQE_F_ flags' },
]);

export const CONTROL_LAYOUT = layout('uring control block', 64, 'native/uring.cc', [
  { name: 'toSubmit', offset: 0, bytes: 4, meaning: 'entries to submit' },
  { name: 'minComplete', offset: 4, bytes: 4, meaning: 'completions to wait for' },
  { name: 'flags', offset: 8, bytes: 4, meaning: 'IORING_ENTER_ flags' },
  { name: 'timeoutUs', offset: 12, bytes: 4, meaning: 'limit of the wait; 0xffffffff: none' },
  { name: 'result', offset: 16, bytes: 4, meaning: 'result of the call, negated errno included' },
  { name: 'ring', offset: 20, bytes: 4, meaning: 'id of the ring' },
  { name: 'stamp', offset: 24, bytes: 4, meaning: 'not 0: read the clock after the call' },
  { name: 'stamps', offset: 28, bytes: 4, meaning: 'clock reads so far' },
  { name: 'ticks', offset: 32, bytes: 8, meaning: 'the clock after the last call' },
]);
