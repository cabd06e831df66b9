// The controller's registers: property registers (NVM Express Base 2.0, section 3.1.3) and where
// doorbells begin (NVMe over PCIe 1.0, section 3.1.2).
//
// Hot form: byte offsets and bits as const enums. Masks are in place: (cc & Cc.MPS_MASK) >>>
// Cc.MPS_SHIFT. Cold form: REGISTERS, one field per
// register, and REGISTER_BITS, a table of bits per register; decode, show-regs and tests use it.

import { decode, layout, type Layout } from '../../wire/index.js';
import { bits, rows } from './table.js';

/** Byte offsets in BAR 0. A 64-bit register is two 32-bit accesses, the low word first. */
export const enum Reg {
  CAP = 0x0,
  VS = 0x8,
  INTMS = 0xc,
  INTMC = 0x10,
  CC = 0x14,
  CSTS = 0x1c,
  NSSR = 0x20,
  AQA = 0x24,
  ASQ = 0x28,
  ACQ = 0x30,
  CMBLOC = 0x38,
  CMBSZ = 0x3c,
  BPINFO = 0x40,
  BPRSEL = 0x44,
  BPMBL = 0x48,
  CMBMSC = 0x50,
  CMBSTS = 0x58,
  CMBEBS = 0x5c,
  CMBSWTP = 0x60,
  NSSD = 0x64,
  CRTO = 0x68,
  PMRCAP = 0xe00,
  PMRCTL = 0xe04,
  PMRSTS = 0xe08,
  PMREBS = 0xe0c,
  PMRSWTP = 0xe10,
  PMRMSCL = 0xe14,
  PMRMSCU = 0xe18,
  /** SQ y's tail is at DOORBELLS + 2y * (4 << CAP.DSTRD), CQ y's head one stride further. */
  DOORBELLS = 0x1000,
}

/** CAP, bits 31:0. */
export const enum CapLo {
  MQES_MASK = 0xffff,
  CQR = 1 << 16,
  AMS_SHIFT = 17,
  AMS_MASK = 0x3 << 17,
  TO_SHIFT = 24,
  TO_MASK = 0xff << 24,
}

/** CAP, bits 63:32. */
export const enum CapHi {
  DSTRD_MASK = 0xf,
  NSSRS = 1 << 4,
  CSS_SHIFT = 5,
  CSS_MASK = 0xff << 5,
  /** Within CSS: the NVM command set, one or more I/O command sets, none. */
  CSS_NVM = 1 << 5,
  CSS_IO = 1 << 11,
  CSS_NONE = 1 << 12,
  BPS = 1 << 13,
  CPS_SHIFT = 14,
  CPS_MASK = 0x3 << 14,
  MPSMIN_SHIFT = 16,
  MPSMIN_MASK = 0xf << 16,
  MPSMAX_SHIFT = 20,
  MPSMAX_MASK = 0xf << 20,
  PMRS = 1 << 24,
  CMBS = 1 << 25,
  NSSS = 1 << 26,
  /** Ready with media, ready independent of media (CRMS). */
  CRWMS = 1 << 27,
  CRIMS = 1 << 28,
}

/** CC. */
export const enum Cc {
  EN = 1 << 0,
  CSS_SHIFT = 4,
  CSS_MASK = 0x7 << 4,
  CSS_NVM = 0 << 4,
  /** All command sets of the profile that CAP.CSS offers. */
  CSS_ALL = 6 << 4,
  CSS_ADMIN_ONLY = 7 << 4,
  MPS_SHIFT = 7,
  MPS_MASK = 0xf << 7,
  AMS_SHIFT = 11,
  AMS_MASK = 0x7 << 11,
  AMS_ROUND_ROBIN = 0 << 11,
  AMS_WEIGHTED = 1 << 11,
  SHN_SHIFT = 14,
  SHN_MASK = 0x3 << 14,
  SHN_NORMAL = 1 << 14,
  SHN_ABRUPT = 2 << 14,
  IOSQES_SHIFT = 16,
  IOSQES_MASK = 0xf << 16,
  /** 64-byte submission entries. */
  IOSQES_64 = 6 << 16,
  IOCQES_SHIFT = 20,
  IOCQES_MASK = 0xf << 20,
  /** 16-byte completion entries. */
  IOCQES_16 = 4 << 20,
  CRIME = 1 << 24,
}

/** CSTS. */
export const enum Csts {
  RDY = 1 << 0,
  CFS = 1 << 1,
  SHST_SHIFT = 2,
  SHST_MASK = 0x3 << 2,
  SHST_OCCURRING = 1 << 2,
  SHST_COMPLETE = 2 << 2,
  NSSRO = 1 << 4,
  PP = 1 << 5,
  ST = 1 << 6,
}

/** AQA: sizes are one less than the number of entries. */
export const enum Aqa {
  ASQS_SHIFT = 0,
  ASQS_MASK = 0xfff << 0,
  ACQS_SHIFT = 16,
  ACQS_MASK = 0xfff << 16,
}

/** CMBLOC. */
export const enum Cmbloc {
  BIR_SHIFT = 0,
  BIR_MASK = 0x7 << 0,
  CQMMS = 1 << 3,
  CQPDS = 1 << 4,
  CDPMLS = 1 << 5,
  CDPCILS = 1 << 6,
  CDMMMS = 1 << 7,
  CQDA = 1 << 8,
  OFST_SHIFT = 12,
  OFST_MASK = 0xfffff << 12,
}

/** CMBSZ. */
export const enum Cmbsz {
  SQS = 1 << 0,
  CQS = 1 << 1,
  LISTS = 1 << 2,
  RDS = 1 << 3,
  WDS = 1 << 4,
  /** The unit is 4 KiB << 4 * SZU. */
  SZU_SHIFT = 8,
  SZU_MASK = 0xf << 8,
  SZ_SHIFT = 12,
  SZ_MASK = 0xfffff << 12,
}

/** CMBMSC, bits 31:0; the rest is the base address that the device compares with. */
export const enum CmbmscLo {
  CRE = 1 << 0,
  CMSE = 1 << 1,
}

export const enum Cmbsts {
  CBAI = 1 << 0,
}

/** What NSSR and NSSD take. */
export const enum ResetWord {
  /** 'NVMe', written to NSSR. */
  NSSR = 0x4e564d65,
  /** 'Nrml' and 'Abpt', written to NSSD. */
  NSSD_NORMAL = 0x4e726d6c,
  NSSD_ABRUPT = 0x41627074,
}

export const REGISTERS = layout(
  'nvme registers',
  0x1000,
  'NVMe Base 2.0, 3.1.3',
  rows([
    ['CAP', Reg.CAP, 8, 'controller capabilities'],
    ['VS', Reg.VS, 4, 'version'],
    ['INTMS', Reg.INTMS, 4, 'interrupt mask set'],
    ['INTMC', Reg.INTMC, 4, 'interrupt mask clear'],
    ['CC', Reg.CC, 4, 'controller configuration'],
    ['CSTS', Reg.CSTS, 4, 'controller status'],
    ['NSSR', Reg.NSSR, 4, 'NVM subsystem reset'],
    ['AQA', Reg.AQA, 4, 'admin queue attributes'],
    ['ASQ', Reg.ASQ, 8, 'admin submission queue base'],
    ['ACQ', Reg.ACQ, 8, 'admin completion queue base'],
    ['CMBLOC', Reg.CMBLOC, 4, 'controller memory buffer location'],
    ['CMBSZ', Reg.CMBSZ, 4, 'controller memory buffer size'],
    ['BPINFO', Reg.BPINFO, 4, 'boot partition information'],
    ['BPRSEL', Reg.BPRSEL, 4, 'boot partition read select'],
    ['BPMBL', Reg.BPMBL, 8, 'boot partition memory buffer'],
    ['CMBMSC', Reg.CMBMSC, 8, 'controller memory buffer memory space control'],
    ['CMBSTS', Reg.CMBSTS, 4, 'controller memory buffer status'],
    ['CMBEBS', Reg.CMBEBS, 4, 'controller memory buffer elasticity buffer size'],
    ['CMBSWTP', Reg.CMBSWTP, 4, 'controller memory buffer sustained write throughput'],
    ['NSSD', Reg.NSSD, 4, 'NVM subsystem shutdown'],
    ['CRTO', Reg.CRTO, 4, 'controller ready timeouts'],
    ['PMRCAP', Reg.PMRCAP, 4, 'persistent memory region capabilities'],
    ['PMRCTL', Reg.PMRCTL, 4, 'persistent memory region control'],
    ['PMRSTS', Reg.PMRSTS, 4, 'persistent memory region status'],
    ['PMREBS', Reg.PMREBS, 4, 'persistent memory region elasticity buffer size'],
    ['PMRSWTP', Reg.PMRSWTP, 4, 'persistent memory region sustained write throughput'],
    ['PMRMSCL', Reg.PMRMSCL, 4, 'persistent memory region memory space control, low'],
    ['PMRMSCU', Reg.PMRMSCU, 4, 'persistent memory region memory space control, high'],
  ]),
);

const SOURCE = 'NVMe Base 2.0, 3.1.3';

/** The bits of each register that has any, by its name. */
export const REGISTER_BITS: Readonly<Record<string, Layout>> = Object.freeze({
  CAP: layout(
    'CAP',
    8,
    SOURCE,
    bits([
      ['MQES', 0, 15, 'entries a queue may have, less one'],
      ['CQR', 16, 16, 'queues must be contiguous in memory'],
      ['AMS', 17, 18, 'arbitration: bit 0 weighted round robin, bit 1 vendor specific'],
      ['TO', 24, 31, 'longest wait for ready, in 500 ms'],
      ['DSTRD', 32, 35, 'doorbell stride, 4 << n bytes'],
      ['NSSRS', 36, 36, 'subsystem reset by NSSR'],
      ['CSS', 37, 44, 'command sets: bit 0 NVM, bit 6 several, bit 7 none'],
      ['BPS', 45, 45, 'boot partitions'],
      ['CPS', 46, 47, 'power scope: 1 controller, 2 domain, 3 subsystem'],
      ['MPSMIN', 48, 51, 'smallest page, 4 KiB << n'],
      ['MPSMAX', 52, 55, 'largest page, 4 KiB << n'],
      ['PMRS', 56, 56, 'persistent memory region'],
      ['CMBS', 57, 57, 'controller memory buffer'],
      ['NSSS', 58, 58, 'subsystem shutdown by NSSD'],
      ['CRWMS', 59, 59, 'ready with media'],
      ['CRIMS', 60, 60, 'ready independent of media'],
    ]),
  ),
  VS: layout(
    'VS',
    4,
    SOURCE,
    bits([
      ['TER', 0, 7, 'tertiary version'],
      ['MNR', 8, 15, 'minor version'],
      ['MJR', 16, 31, 'major version'],
    ]),
  ),
  CC: layout(
    'CC',
    4,
    SOURCE,
    bits([
      ['EN', 0, 0, 'enable'],
      ['CSS', 4, 6, 'command set selected: 0 NVM, 6 all of the profile, 7 admin only'],
      ['MPS', 7, 10, 'page size, 4 KiB << n'],
      ['AMS', 11, 13, 'arbitration: 0 round robin, 1 weighted, 7 vendor specific'],
      ['SHN', 14, 15, 'shutdown: 1 normal, 2 abrupt'],
      ['IOSQES', 16, 19, 'size of I/O submission entries, 1 << n bytes'],
      ['IOCQES', 20, 23, 'size of I/O completion entries, 1 << n bytes'],
      ['CRIME', 24, 24, 'ready independent of media enabled'],
    ]),
  ),
  CSTS: layout(
    'CSTS',
    4,
    SOURCE,
    bits([
      ['RDY', 0, 0, 'ready'],
      ['CFS', 1, 1, 'fatal status'],
      ['SHST', 2, 3, 'shutdown: 0 none, 1 occurring, 2 complete'],
      ['NSSRO', 4, 4, 'a subsystem reset occurred'],
      ['PP', 5, 5, 'processing paused'],
      ['ST', 6, 6, 'the shutdown is of the subsystem'],
    ]),
  ),
  AQA: layout(
    'AQA',
    4,
    SOURCE,
    bits([
      ['ASQS', 0, 11, 'entries of the admin submission queue, less one'],
      ['ACQS', 16, 27, 'entries of the admin completion queue, less one'],
    ]),
  ),
  CMBLOC: layout(
    'CMBLOC',
    4,
    SOURCE,
    bits([
      ['BIR', 0, 2, 'BAR that holds the buffer'],
      ['CQMMS', 3, 3, 'queues and data may be mixed'],
      ['CQPDS', 4, 4, 'queues may span discontiguous memory'],
      ['CDPMLS', 5, 5, 'data pointers may be mixed'],
      ['CDPCILS', 6, 6, 'data pointers and commands need not be in one place'],
      ['CDMMMS', 7, 7, 'data and metadata may be mixed'],
      ['CQDA', 8, 8, 'queues need 8-byte alignment only'],
      ['OFST', 12, 31, 'offset in the BAR, in units of CMBSZ.SZU'],
    ]),
  ),
  CMBSZ: layout(
    'CMBSZ',
    4,
    SOURCE,
    bits([
      ['SQS', 0, 0, 'submission queues'],
      ['CQS', 1, 1, 'completion queues'],
      ['LISTS', 2, 2, 'PRP and SGL lists'],
      ['RDS', 3, 3, 'data of reads'],
      ['WDS', 4, 4, 'data of writes'],
      ['SZU', 8, 11, 'unit, 4 KiB << 4n'],
      ['SZ', 12, 31, 'size, in units'],
    ]),
  ),
  BPINFO: layout(
    'BPINFO',
    4,
    SOURCE,
    bits([
      ['BPSZ', 0, 14, 'size of a boot partition, in 128 KiB'],
      ['BRS', 24, 25, 'read status: 0 none, 1 running, 2 done, 3 failed'],
      ['ABPID', 31, 31, 'active partition'],
    ]),
  ),
  BPRSEL: layout(
    'BPRSEL',
    4,
    SOURCE,
    bits([
      ['BPRSZ', 0, 9, 'size of the read, in 4 KiB'],
      ['BPROF', 10, 29, 'offset of the read, in 4 KiB'],
      ['BPID', 31, 31, 'partition'],
    ]),
  ),
  CMBMSC: layout(
    'CMBMSC',
    8,
    SOURCE,
    bits([
      ['CRE', 0, 0, 'capability registers enabled'],
      ['CMSE', 1, 1, 'memory space enabled'],
      ['CBA_LO', 12, 31, 'base address, bits 31:12'],
      ['CBA_HI', 32, 63, 'base address, bits 63:32'],
    ]),
  ),
  CMBSTS: layout('CMBSTS', 4, SOURCE, bits([['CBAI', 0, 0, 'the base address is invalid']])),
  CMBEBS: layout(
    'CMBEBS',
    4,
    SOURCE,
    bits([
      ['CMBSZU', 0, 3, 'unit, 0 byte, 1 KiB, 2 MiB, 3 GiB'],
      ['CMBRBB', 4, 4, 'reads may bypass the elasticity buffer'],
      ['CMBWBZ', 8, 31, 'size, in units'],
    ]),
  ),
  CMBSWTP: layout(
    'CMBSWTP',
    4,
    SOURCE,
    bits([
      ['CMBSWTU', 0, 3, 'unit, 0 byte/s, 1 KiB/s, 2 MiB/s, 3 GiB/s'],
      ['CMBSWTV', 8, 31, 'throughput, in units'],
    ]),
  ),
  CRTO: layout(
    'CRTO',
    4,
    SOURCE,
    bits([
      ['CRWMT', 0, 15, 'longest wait for ready with media, in 500 ms'],
      ['CRIMT', 16, 31, 'longest wait for ready independent of media, in 500 ms'],
    ]),
  ),
  PMRCAP: layout(
    'PMRCAP',
    4,
    SOURCE,
    bits([
      ['RDS', 3, 3, 'data of reads'],
      ['WDS', 4, 4, 'data of writes'],
      ['BIR', 5, 7, 'BAR that holds the region'],
      ['PMRTU', 8, 9, 'unit of PMRTO: 0 500 ms, 1 minutes'],
      ['PMRWBM', 10, 13, 'write barrier: bit 0 by a read of it, bit 1 by a read of PMRSTS'],
      ['PMRTO', 16, 23, 'longest wait for ready'],
      ['CMSS', 24, 24, 'the controller itself may use it'],
    ]),
  ),
  PMRCTL: layout('PMRCTL', 4, SOURCE, bits([['EN', 0, 0, 'enable']])),
  PMRSTS: layout(
    'PMRSTS',
    4,
    SOURCE,
    bits([
      ['ERR', 0, 7, 'error of an earlier write, 0 for none'],
      ['NRDY', 8, 8, 'not ready'],
      ['HSTS', 9, 11, 'health: 0 normal, 1 restore error, 2 read only, 3 unreliable'],
      ['CBAI', 12, 12, 'the base address is invalid'],
    ]),
  ),
  PMREBS: layout(
    'PMREBS',
    4,
    SOURCE,
    bits([
      ['PMRSZU', 0, 3, 'unit, 0 byte, 1 KiB, 2 MiB, 3 GiB'],
      ['PMRRBB', 4, 4, 'reads may bypass the elasticity buffer'],
      ['PMRWBZ', 8, 31, 'size, in units'],
    ]),
  ),
  PMRSWTP: layout(
    'PMRSWTP',
    4,
    SOURCE,
    bits([
      ['PMRSWTU', 0, 3, 'unit, 0 byte/s, 1 KiB/s, 2 MiB/s, 3 GiB/s'],
      ['PMRSWTV', 8, 31, 'throughput, in units'],
    ]),
  ),
  PMRMSCL: layout(
    'PMRMSCL',
    4,
    SOURCE,
    bits([
      ['CMSE', 1, 1, 'memory space enabled'],
      ['CBA', 12, 31, 'base address, bits 31:12'],
    ]),
  ),
});

/** Every register that has bits, decoded: `CAP: { MQES: 2047, … }`. From a dump of BAR 0. */
export function decodeRegisters(dump: Uint8Array): Record<string, Record<string, number>> {
  const result: Record<string, Record<string, number>> = {};
  for (const { name, offset, bytes } of REGISTERS.fields) {
    const table = REGISTER_BITS[name];
    if (table === undefined || offset + bytes > dump.length) continue;
    // Every field here has bits, which decode to numbers.
    const values = decode(table, dump.subarray(offset, offset + bytes));
    result[name] = values as Record<string, number>;
  }
  return result;
}
