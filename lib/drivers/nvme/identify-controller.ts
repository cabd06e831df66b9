// Identify Controller (CNS 01h), NVM Express Base 2.0, section 5.17.2.1. Fields have the standard's
// names in lower case, as nvme-cli prints them.
//
// Nothing in the page is trusted: `checkController` says what a driver must not believe.

import { layout } from '../../wire/index.js';
import { type Read, readRows, rows } from './table.js';

const CONTROLLER_ROWS = [
  ['vid', 0, 2, 'PCI vendor'],
  ['ssvid', 2, 2, 'PCI subsystem vendor'],
  ['sn', 4, 20, 'serial number', 'text'],
  ['mn', 24, 40, 'model number', 'text'],
  ['fr', 64, 8, 'firmware revision', 'text'],
  ['rab', 72, 1, 'recommended arbitration burst, 1 << n commands'],
  ['ieee', 73, 3, 'IEEE OUI'],
  ['cmic', 76, 1, 'multi-path: bit 0 ports, bit 1 controllers, bit 2 SR-IOV, bit 3 ANA'],
  ['mdts', 77, 1, 'largest transfer, smallest page << n; 0 without limit'],
  ['cntlid', 78, 2, 'controller identifier'],
  ['ver', 80, 4, 'version, as VS'],
  ['rtd3r', 84, 4, 'resume from RTD3, in microseconds'],
  ['rtd3e', 88, 4, 'entry into RTD3, in microseconds'],
  ['oaes', 92, 4, 'asynchronous events supported'],
  ['ctratt', 96, 4, 'controller attributes'],
  ['rrls', 100, 2, 'read recovery levels supported'],
  ['cntrltype', 111, 1, 'type: 1 I/O, 2 discovery, 3 administrative'],
  ['fguid', 112, 16, 'FRU identifier', 'bytes'],
  ['crdt1', 128, 2, 'command retry delay 1, in 100 ms'],
  ['crdt2', 130, 2, 'command retry delay 2, in 100 ms'],
  ['crdt3', 132, 2, 'command retry delay 3, in 100 ms'],
  ['nvmsr', 253, 1, 'subsystem: bit 0 storage device, bit 1 enclosure'],
  ['vwci', 254, 1, 'VPD writes remaining'],
  ['mec', 255, 1, 'management endpoints: bit 0 two-wire, bit 1 PCIe'],
  ['oacs', 256, 2, 'optional admin commands'],
  ['acl', 258, 1, 'Abort commands at a time, less one'],
  ['aerl', 259, 1, 'Asynchronous Event Requests at a time, less one'],
  ['frmw', 260, 1, 'firmware slots and updates'],
  ['lpa', 261, 1, 'log page attributes'],
  ['elpe', 262, 1, 'error log entries, less one'],
  ['npss', 263, 1, 'power states, less one'],
  ['avscc', 264, 1, 'vendor specific admin commands have the standard format'],
  ['apsta', 265, 1, 'autonomous power state transitions'],
  ['wctemp', 266, 2, 'warning temperature, in kelvins'],
  ['cctemp', 268, 2, 'critical temperature, in kelvins'],
  ['mtfa', 270, 2, 'longest pause to start firmware, in 100 ms'],
  ['hmpre', 272, 4, 'host memory buffer wanted, in 4 KiB'],
  ['hmmin', 276, 4, 'host memory buffer needed, in 4 KiB'],
  ['tnvmcap', 280, 16, 'capacity, in bytes'],
  ['unvmcap', 296, 16, 'capacity not given to namespaces, in bytes'],
  ['rpmbs', 312, 4, 'replay protected memory blocks'],
  ['edstt', 316, 2, 'extended self-test time, in minutes'],
  ['dsto', 318, 1, 'self-test options'],
  ['fwug', 319, 1, 'firmware update granularity, in 4 KiB'],
  ['kas', 320, 2, 'keep alive granularity, in 100 ms'],
  ['hctma', 322, 2, 'host controlled thermal management'],
  ['mntmt', 324, 2, 'lowest thermal management temperature, in kelvins'],
  ['mxtmt', 326, 2, 'highest thermal management temperature, in kelvins'],
  ['sanicap', 328, 4, 'sanitize capabilities'],
  ['hmminds', 332, 4, 'smallest host memory descriptor, in 4 KiB'],
  ['hmmaxd', 336, 2, 'most host memory descriptors'],
  ['nsetidmax', 338, 2, 'highest NVM set'],
  ['endgidmax', 340, 2, 'highest endurance group'],
  ['anatt', 342, 1, 'ANA transition time, in seconds'],
  ['anacap', 343, 1, 'ANA capabilities'],
  ['anagrpmax', 344, 4, 'highest ANA group'],
  ['nanagrpid', 348, 4, 'number of ANA groups'],
  ['pels', 352, 4, 'persistent event log size, in 64 KiB'],
  ['domainid', 356, 2, 'domain'],
  ['megcap', 368, 16, 'largest endurance group, in bytes'],
  ['sqes', 512, 1, 'submission entry: bits 3:0 smallest, 7:4 largest, 1 << n bytes'],
  ['cqes', 513, 1, 'completion entry: bits 3:0 smallest, 7:4 largest, 1 << n bytes'],
  ['maxcmd', 514, 2, 'most commands outstanding'],
  ['nn', 516, 4, 'highest namespace identifier'],
  ['oncs', 520, 2, 'optional I/O commands'],
  ['fuses', 522, 2, 'fused operations'],
  ['fna', 524, 1, 'format attributes'],
  ['vwc', 525, 1, 'bit 0: volatile write cache; bits 2:1 flush of all namespaces'],
  ['awun', 526, 2, 'atomic write, blocks, less one'],
  ['awupf', 528, 2, 'atomic write over power failure, blocks, less one'],
  ['icsvscc', 530, 1, 'vendor specific I/O commands have the standard format'],
  ['nwpc', 531, 1, 'namespace write protection'],
  ['acwu', 532, 2, 'atomic compare and write, blocks, less one'],
  ['ocfs', 534, 2, 'formats of Copy descriptors'],
  ['sgls', 536, 4, 'SGL support'],
  ['mnan', 540, 4, 'most namespaces'],
  ['maxdna', 544, 16, 'most attachments in the domain'],
  ['maxcna', 560, 4, 'most attachments of this controller'],
  ['subnqn', 768, 256, 'NVMe qualified name of the subsystem', 'text'],
  ['ioccsz', 1792, 4, 'fabrics: I/O command capsule, in 16 bytes'],
  ['iorcsz', 1796, 4, 'fabrics: I/O response capsule, in 16 bytes'],
  ['icdoff', 1800, 2, 'fabrics: offset of in-capsule data, in 16 bytes'],
  ['fcatt', 1802, 1, 'fabrics: controller attributes'],
  ['msdbd', 1803, 1, 'fabrics: most SGL data block descriptors'],
  ['ofcs', 1804, 2, 'fabrics: optional commands'],
  ['dctype', 1806, 1, 'discovery controller type'],
  ['vs', 3072, 1024, 'vendor specific', 'bytes'],
] as const;

const POWER_STATE_ROWS = [
  ['mp', 0, 2, 'most power, in 10 mW, or in 100 µW with bit 0 of flags'],
  ['flags', 3, 1, 'bit 0 the scale of mp, bit 1 not operational'],
  ['enlat', 4, 4, 'entry latency, in microseconds'],
  ['exlat', 8, 4, 'exit latency, in microseconds'],
  ['rrt', 12, 1, 'relative read throughput, 0 best'],
  ['rrl', 13, 1, 'relative read latency, 0 best'],
  ['rwt', 14, 1, 'relative write throughput, 0 best'],
  ['rwl', 15, 1, 'relative write latency, 0 best'],
  ['idlp', 16, 2, 'idle power'],
  ['ips', 18, 1, 'scale of idlp in bits 7:6: 1 100 µW, 2 10 mW'],
  ['actp', 20, 2, 'active power'],
  ['apws', 22, 1, 'workload of actp in bits 2:0, its scale in bits 7:6'],
] as const;

const SOURCE = 'NVMe Base 2.0, 5.17.2.1';
export const CONTROLLER_LAYOUT = layout('identify controller', 4096, SOURCE, [
  ...rows(CONTROLLER_ROWS),
  { name: 'psd', offset: 2048, bytes: 1024, meaning: 'power state descriptors' },
]);
export const POWER_STATE_LAYOUT = layout(
  'power state descriptor',
  32,
  SOURCE,
  rows(POWER_STATE_ROWS),
);

const POWER_STATES_OFFSET = 2048;
const POWER_STATES_MAX = 32;

export type PowerState = Read<typeof POWER_STATE_ROWS>;

export type IdentifyController = Read<typeof CONTROLLER_ROWS> & {
  /** npss + 1 of them, 32 at most whatever npss says. */
  readonly powerStates: readonly PowerState[];
};

/** Reads the page (4096 bytes); `padded` keeps the blanks that strings are filled up with. */
export function parseController(page: Uint8Array, padded = false): IdentifyController {
  const fields = readRows(CONTROLLER_ROWS, page, padded);
  const count = Math.min(fields.npss + 1, POWER_STATES_MAX);
  const powerStates = Array.from({ length: count }, (_, index) => {
    const offset = POWER_STATES_OFFSET + index * POWER_STATE_LAYOUT.bytes;
    return readRows(POWER_STATE_ROWS, page.subarray(offset, offset + POWER_STATE_LAYOUT.bytes));
  });
  return { ...fields, powerStates };
}

/** Bits that a driver asks for. */
export const enum Oncs {
  COMPARE = 1 << 0,
  WRITE_UNCORRECTABLE = 1 << 1,
  DATASET_MANAGEMENT = 1 << 2,
  WRITE_ZEROES = 1 << 3,
  SAVE_SELECT = 1 << 4,
  RESERVATIONS = 1 << 5,
  TIMESTAMP = 1 << 6,
  VERIFY = 1 << 7,
  COPY = 1 << 8,
}

export const enum Oacs {
  SECURITY = 1 << 0,
  FORMAT = 1 << 1,
  FIRMWARE = 1 << 2,
  NAMESPACE_MANAGEMENT = 1 << 3,
  SELF_TEST = 1 << 4,
  DIRECTIVES = 1 << 5,
  NVME_MI = 1 << 6,
  VIRTUALIZATION = 1 << 7,
  DOORBELL_BUFFER = 1 << 8,
  GET_LBA_STATUS = 1 << 9,
  LOCKDOWN = 1 << 10,
}

export const enum Vwc {
  PRESENT = 1 << 0,
  /** Flush with the broadcast namespace: bits 2:1, 2 not supported, 3 supported. */
  FLUSH_MASK = 3 << 1,
  FLUSH_BROADCAST = 3 << 1,
}

/** Sgls, bits 1:0: 0 none, 1 any alignment, 2 data blocks aligned to 4 bytes. */
export const enum Sgls {
  SUPPORT_MASK = 0x3,
  SUPPORTED = 1,
  DWORD_ALIGNED = 2,
  KEYED = 1 << 2,
  BIT_BUCKET = 1 << 16,
  BYTE_ALIGNED_METADATA = 1 << 17,
  LONGER_THAN_DATA = 1 << 18,
  MPTR_SGL = 1 << 19,
  OFFSET = 1 << 20,
}

export const enum Lpa {
  /** SMART per namespace. */
  NAMESPACE_SMART = 1 << 0,
  COMMANDS_EFFECTS = 1 << 1,
  /** Offsets and long lengths of Get Log Page. */
  EXTENDED = 1 << 2,
  TELEMETRY = 1 << 3,
  PERSISTENT_EVENTS = 1 << 4,
}

export const enum Oaes {
  NAMESPACE_ATTRIBUTES = 1 << 8,
  FIRMWARE_ACTIVATION = 1 << 9,
  ANA_CHANGE = 1 << 11,
  PREDICTABLE_LATENCY = 1 << 12,
  LBA_STATUS = 1 << 13,
  ENDURANCE_GROUP = 1 << 14,
  SUBSYSTEM_SHUTDOWN = 1 << 15,
  ZONE_DESCRIPTOR = 1 << 27,
}

/** Something in a device's data that cannot be so. */
export interface Problem {
  readonly field: string;
  readonly problem: string;
  /** No I/O is possible as long as it is so. */
  readonly fatal: boolean;
}

/** Whether the page of a controller for I/O over PCIe makes sense; empty when it does. */
export function checkController(controller: IdentifyController): Problem[] {
  const problems: Problem[] = [];
  const say = (field: string, fatal: boolean, problem: string): void => {
    problems.push({ field, problem, fatal });
  };
  const { sqes, cqes, mdts, cntrltype, nn, npss, cntlid } = controller;
  if ((sqes & 0xf) > 6 || sqes >>> 4 < 6) {
    say('sqes', true, `0x${sqes.toString(16)} has no 64-byte submission entries`);
  }
  if ((cqes & 0xf) > 4 || cqes >>> 4 < 4) {
    say('cqes', true, `0x${cqes.toString(16)} has no 16-byte completion entries`);
  }
  if (cntrltype > 1) say('cntrltype', true, `${cntrltype} is not an I/O controller`);
  if (nn === 0) say('nn', true, 'there can be no namespace');
  if (mdts > 20) say('mdts', false, `${mdts} is beyond any transfer: no limit is assumed`);
  if (npss >= POWER_STATES_MAX) say('npss', false, `${npss} is more than 31`);
  if (cntlid >= 0xfff0) say('cntlid', false, `0x${cntlid.toString(16)} is reserved`);
  return problems;
}
