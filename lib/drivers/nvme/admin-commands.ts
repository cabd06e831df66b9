// Admin commands as 16 words (NVM Express Base 2.0, section 5). Data pointers are PRP entries of
// one buffer of at most two pages.

import { AdminOp, Cns, CreateCq, CreateSq, Feature, GetLog, Sqe } from './commands.js';

function command(opcode: number, nsid = 0, address = 0): Uint32Array {
  const words = new Uint32Array(Sqe.words);
  words[0] = opcode;
  words[Sqe.nsid] = nsid;
  words[Sqe.prp1Lo] = address % 2 ** 32;
  words[Sqe.prp1Hi] = Math.floor(address / 2 ** 32);
  return words;
}

export function identify(cns: Cns, nsid: number, address: number): Uint32Array {
  const words = command(AdminOp.IDENTIFY, nsid, address);
  words[Sqe.cdw10] = cns;
  return words;
}

export function setFeature(feature: Feature, value: number): Uint32Array {
  const words = command(AdminOp.SET_FEATURES);
  words[Sqe.cdw10] = feature;
  words[Sqe.cdw11] = value;
  return words;
}

/** `qid` and the vector of its interrupts, -1 for none. */
export function createCompletionQueue(
  qid: number,
  entries: number,
  address: number,
  vector: number,
): Uint32Array {
  const words = command(AdminOp.CREATE_IO_CQ, 0, address);
  words[Sqe.cdw10] = qid | ((entries - 1) << 16);
  const interrupt = vector < 0 ? 0 : CreateCq.IEN | (vector << CreateCq.VECTOR_SHIFT);
  words[Sqe.cdw11] = CreateCq.PC | interrupt;
  return words;
}

export function createSubmissionQueue(
  qid: number,
  entries: number,
  address: number,
  priority = 0,
): Uint32Array {
  const words = command(AdminOp.CREATE_IO_SQ, 0, address);
  words[Sqe.cdw10] = qid | ((entries - 1) << 16);
  words[Sqe.cdw11] =
    CreateSq.PC | (priority << CreateSq.QPRIO_SHIFT) | (qid << CreateSq.CQID_SHIFT);
  return words;
}

export function deleteQueue(opcode: AdminOp, qid: number): Uint32Array {
  const words = command(opcode);
  words[Sqe.cdw10] = qid;
  return words;
}

/** `bytes` a multiple of 4; `retain`: the asynchronous event stays raised. */
export function getLogPage(
  lid: number,
  nsid: number,
  address: number,
  bytes: number,
  offset = 0,
  retain = false,
): Uint32Array {
  const words = command(AdminOp.GET_LOG_PAGE, nsid, address);
  const dwords = bytes / 4 - 1;
  words[Sqe.cdw10] = lid | (retain ? GetLog.RAE : 0) | ((dwords & 0xffff) << GetLog.NUMDL_SHIFT);
  words[Sqe.cdw11] = dwords >>> 16;
  words[Sqe.cdw12] = offset % 2 ** 32;
  words[Sqe.cdw13] = Math.floor(offset / 2 ** 32);
  return words;
}

export function abort(qid: number, cid: number): Uint32Array {
  const words = command(AdminOp.ABORT);
  words[Sqe.cdw10] = qid | (cid << 16);
  return words;
}

/** Addresses of the pages of shadow doorbells and of event indices. */
export function doorbellBufferConfig(shadow: number, eventIndices: number): Uint32Array {
  const words = command(AdminOp.DOORBELL_BUFFER_CONFIG, 0, shadow);
  words[Sqe.prp2Lo] = eventIndices % 2 ** 32;
  words[Sqe.prp2Hi] = Math.floor(eventIndices / 2 ** 32);
  return words;
}
