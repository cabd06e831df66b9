// Log pages (NVM Express Base 2.0, section 5.16.1) and what an Asynchronous Event Request completes
// with (section 5.2). Field names are nvme-cli's where it prints the field.

import { layout } from '../../wire/index.js';
import { Lid } from './commands.js';
import { statusText } from './status.js';
import { bits, type Read, readRows, rows } from './table.js';
import { fixedText } from './text.js';

const SMART_ROWS = [
  [
    'critical_warning',
    0,
    1,
    'spare, temperature, reliability, read only, backup, PMR: bits 0 to 5',
  ],
  ['temperature', 1, 2, 'composite temperature, in kelvins'],
  ['avail_spare', 3, 1, 'spare left, in percent'],
  ['spare_thresh', 4, 1, 'spare below which it warns, in percent'],
  ['percent_used', 5, 1, 'life used, in percent; may exceed 100'],
  ['endurance_grp_critical_warning_summary', 6, 1, 'warnings of endurance groups'],
  ['data_units_read', 32, 16, 'read by hosts, in 1000 * 512 bytes'],
  ['data_units_written', 48, 16, 'written by hosts, in 1000 * 512 bytes'],
  ['host_read_commands', 64, 16, 'read commands'],
  ['host_write_commands', 80, 16, 'write commands'],
  ['controller_busy_time', 96, 16, 'busy with I/O, in minutes'],
  ['power_cycles', 112, 16, 'power cycles'],
  ['power_on_hours', 128, 16, 'hours powered on'],
  ['unsafe_shutdowns', 144, 16, 'power lost without a shutdown'],
  ['media_errors', 160, 16, 'unrecovered errors of media and data integrity'],
  ['num_err_log_entries', 176, 16, 'entries of the error log over the life'],
  ['warning_temp_time', 192, 4, 'at or above the warning temperature, in minutes'],
  ['critical_comp_time', 196, 4, 'at or above the critical temperature, in minutes'],
  ['temperature_sensor_1', 200, 2, 'in kelvins; 0: no such sensor'],
  ['temperature_sensor_2', 202, 2, 'in kelvins; 0: no such sensor'],
  ['temperature_sensor_3', 204, 2, 'in kelvins; 0: no such sensor'],
  ['temperature_sensor_4', 206, 2, 'in kelvins; 0: no such sensor'],
  ['temperature_sensor_5', 208, 2, 'in kelvins; 0: no such sensor'],
  ['temperature_sensor_6', 210, 2, 'in kelvins; 0: no such sensor'],
  ['temperature_sensor_7', 212, 2, 'in kelvins; 0: no such sensor'],
  ['temperature_sensor_8', 214, 2, 'in kelvins; 0: no such sensor'],
  ['thm_temp1_trans_count', 216, 4, 'changes to thermal management state 1'],
  ['thm_temp2_trans_count', 220, 4, 'changes to thermal management state 2'],
  ['thm_temp1_total_time', 224, 4, 'in thermal management state 1, in seconds'],
  ['thm_temp2_total_time', 228, 4, 'in thermal management state 2, in seconds'],
] as const;

const ERROR_ROWS = [
  ['error_count', 0, 8, 'number of the error over the life; 0: no entry'],
  ['sqid', 8, 2, 'submission queue'],
  ['cmdid', 10, 2, 'command identifier'],
  ['status', 12, 2, 'phase | status field << 1'],
  ['parm_error_location', 14, 2, 'bits 7:0 byte, 10:8 bit of the command; all ones: none'],
  ['lba', 16, 8, 'first block that failed'],
  ['nsid', 24, 4, 'namespace'],
  ['vs', 28, 1, 'vendor specific log page with more; 0 none'],
  ['trtype', 29, 1, 'transport: 1 RDMA, 2 Fibre Channel, 3 TCP, 254 intra-host'],
  ['cs', 32, 8, 'command specific'],
  ['trtype_spec_info', 40, 2, 'transport specific'],
] as const;

const FIRMWARE_ROWS = [
  ['afi', 0, 1, 'slots: bits 2:0 active, 6:4 next'],
  ['frs1', 8, 8, 'revision in slot 1', 'text'],
  ['frs2', 16, 8, 'revision in slot 2', 'text'],
  ['frs3', 24, 8, 'revision in slot 3', 'text'],
  ['frs4', 32, 8, 'revision in slot 4', 'text'],
  ['frs5', 40, 8, 'revision in slot 5', 'text'],
  ['frs6', 48, 8, 'revision in slot 6', 'text'],
  ['frs7', 56, 8, 'revision in slot 7', 'text'],
] as const;

const SELF_TEST_ROWS = [
  ['status', 0, 1, 'bits 3:0 result, 7:4 kind of test'],
  ['segment', 1, 1, 'segment that failed'],
  ['valid', 2, 1, 'bit 0 nsid, bit 1 lba, bit 2 sct, bit 3 sc'],
  ['power_on_hours', 4, 8, 'when it ended'],
  ['nsid', 12, 4, 'namespace that failed'],
  ['lba', 16, 8, 'block that failed'],
  ['sct', 24, 1, 'status code type'],
  ['sc', 25, 1, 'status code'],
] as const;

const source = (figure: string): string => `NVMe Base 2.0, 5.16.1.${figure}`;
export const SMART_LAYOUT = layout('smart log', 512, source('3'), rows(SMART_ROWS));
export const ERROR_LAYOUT = layout('error log entry', 64, source('2'), rows(ERROR_ROWS));
export const FIRMWARE_LAYOUT = layout('firmware slot log', 512, source('4'), rows(FIRMWARE_ROWS));
export const SELF_TEST_LAYOUT = layout('self-test result', 28, source('7'), rows(SELF_TEST_ROWS));
/** A word of the commands supported and effects log. */
export const EFFECTS_LAYOUT = layout(
  'command effects',
  4,
  source('6'),
  bits([
    ['csupp', 0, 0, 'supported'],
    ['lbcc', 1, 1, 'may change user data'],
    ['ncc', 2, 2, 'may change the capabilities of namespaces'],
    ['nic', 3, 3, 'may change which namespaces there are'],
    ['ccc', 4, 4, 'may change the capabilities of the controller'],
    ['cse', 16, 18, 'alone: 1 in its namespace, 2 in all namespaces'],
    ['uss', 19, 19, 'takes a UUID index'],
    ['scp', 20, 31, 'scope'],
  ]),
);

export type SmartLog = Read<typeof SMART_ROWS>;

/** Log page 02h, 512 bytes. */
export function parseSmartLog(page: Uint8Array): SmartLog {
  return readRows(SMART_ROWS, page);
}

/** Bits of `critical_warning`, in words. */
const CRITICAL_WARNINGS = [
  'the spare is below its threshold',
  'the temperature is over or under a threshold',
  'reliability is degraded by errors of media or inside',
  'the media are read-only',
  'the backup of volatile memory failed',
  'the persistent memory region is read-only or unreliable',
] as const;

/** What the critical warnings say; empty when there are none. */
export function criticalWarnings(log: SmartLog): string[] {
  return CRITICAL_WARNINGS.filter((_, bit) => (log.critical_warning & (1 << bit)) !== 0);
}

export type ErrorEntry = Read<typeof ERROR_ROWS> & {
  /** Without its phase bit: for `decodeStatus`. */
  readonly status_field: number;
  readonly phase_tag: number;
};

/** Log page 01h: whole entries of 64 bytes, the newest first; those of count 0 are empty. */
export function parseErrorLog(page: Uint8Array): ErrorEntry[] {
  return Array.from({ length: Math.floor(page.length / ERROR_LAYOUT.bytes) }, (_, index) => {
    const offset = index * ERROR_LAYOUT.bytes;
    const entry = readRows(ERROR_ROWS, page.subarray(offset, offset + ERROR_LAYOUT.bytes));
    return { ...entry, status_field: entry.status >>> 1, phase_tag: entry.status & 1 };
  });
}

/** `LBA_RANGE (0x080): … (queue 1, command 0x12, namespace 1, block 99)`. */
export function errorEntryText(entry: ErrorEntry): string {
  const where = [`queue ${entry.sqid}`, `command 0x${entry.cmdid.toString(16)}`];
  if (entry.nsid !== 0) where.push(`namespace ${entry.nsid}`, `block ${entry.lba}`);
  return `${statusText(entry.status_field)} (${where.join(', ')})`;
}

export interface FirmwareLog {
  readonly activeSlot: number;
  /** 0: none. */
  readonly nextSlot: number;
  /** By slot, 1 to 7, '' for an empty one. */
  readonly revisions: readonly string[];
}

/** Log page 03h, 512 bytes. */
export function parseFirmwareLog(page: Uint8Array): FirmwareLog {
  const { afi, frs1, frs2, frs3, frs4, frs5, frs6, frs7 } = readRows(FIRMWARE_ROWS, page);
  const revisions = [frs1, frs2, frs3, frs4, frs5, frs6, frs7];
  return { activeSlot: afi & 0x7, nextSlot: (afi >>> 4) & 0x7, revisions };
}

/** Log page 04h, 4096 bytes: namespaces that changed; `null`: too many to name. */
export function parseChangedNamespaces(page: Uint8Array): number[] | null {
  const view = new DataView(page.buffer, page.byteOffset, page.length);
  const nsids = new Set<number>();
  for (let offset = 0; offset + 4 <= page.length; offset += 4) {
    const nsid = view.getUint32(offset, true);
    if (nsid === 0xffffffff) return null;
    if (nsid === 0) break;
    nsids.add(nsid);
  }
  return [...nsids];
}

/** Effects of the commands that are supported, by opcode. */
export interface CommandEffects {
  readonly admin: ReadonlyMap<number, number>;
  readonly io: ReadonlyMap<number, number>;
}

/** Log page 05h, 4096 bytes; each word as EFFECTS_LAYOUT says. */
export function parseCommandEffects(page: Uint8Array): CommandEffects {
  const view = new DataView(page.buffer, page.byteOffset, 2048);
  const supported = (offset: number): Map<number, number> => {
    const words = Array.from({ length: 256 }, (_, opcode) =>
      view.getUint32(offset + opcode * 4, true),
    );
    return new Map([...words.entries()].filter(([, word]) => (word & 1) !== 0));
  };
  return { admin: supported(0), io: supported(1024) };
}

export type SelfTestResult = Read<typeof SELF_TEST_ROWS>;

export interface SelfTestLog {
  /** 0 none, 1 short, 2 extended. */
  readonly current: number;
  readonly percentDone: number;
  /** The newest first; 20 at most. */
  readonly results: readonly SelfTestResult[];
}

const SELF_TEST_RESULTS = 20;
const SELF_TEST_UNUSED = 0xf;

/** Log page 06h, 564 bytes. */
export function parseSelfTestLog(page: Uint8Array): SelfTestLog {
  const results: SelfTestResult[] = [];
  for (let index = 0; index < SELF_TEST_RESULTS; index++) {
    const offset = 4 + index * SELF_TEST_LAYOUT.bytes;
    const result = readRows(SELF_TEST_ROWS, page.subarray(offset));
    if ((result.status & 0xf) !== SELF_TEST_UNUSED) results.push(result);
  }
  return { current: page[0]! & 0xf, percentDone: page[1]! & 0x7f, results };
}

export interface AsyncEvent {
  /** error, health, notice, io, vendor; `type 5` where the standard has none. */
  readonly type: string;
  readonly info: string;
  /** To read, which clears the event; 0 for none that the standard names. */
  readonly logPage: number;
  readonly logPageName: string;
}

const EVENT_TYPES: Readonly<Record<number, readonly [string, Readonly<Record<number, string>>]>> = {
  0: [
    'error',
    {
      0: 'a doorbell that does not exist was written',
      1: 'a doorbell was written with an invalid value',
      2: 'diagnostic failure',
      3: 'persistent internal error',
      4: 'transient internal error',
      5: 'firmware image could not be loaded',
    },
  ],
  1: [
    'health',
    {
      0: 'reliability is compromised',
      1: 'temperature beyond a threshold',
      2: 'spare below its threshold',
    },
  ],
  2: [
    'notice',
    {
      0x00: 'namespace attributes changed',
      0x01: 'firmware activation starts',
      0x02: 'telemetry log changed',
      0x03: 'ANA state changed',
      0x04: 'predictable latency event',
      0x05: 'LBA status information alert',
      0x06: 'endurance group event',
      0x07: 'subsystem is being shut down',
      0xef: 'zone descriptors changed',
      0xf0: 'discovery log changed',
    },
  ],
  6: [
    'io',
    {
      0: 'reservation log page available',
      1: 'sanitize completed',
      2: 'sanitize completed with unexpected deallocation',
    },
  ],
  7: ['vendor', {}],
};

const LOG_PAGE_NAMES: Readonly<Record<number, string>> = {
  [Lid.SUPPORTED_PAGES]: 'supported log pages',
  [Lid.ERROR_INFORMATION]: 'error information',
  [Lid.SMART]: 'smart',
  [Lid.FIRMWARE_SLOT]: 'firmware slots',
  [Lid.CHANGED_NAMESPACES]: 'changed namespaces',
  [Lid.COMMANDS_EFFECTS]: 'commands supported and effects',
  [Lid.SELF_TEST]: 'self-test',
  [Lid.TELEMETRY_HOST]: 'telemetry, by the host',
  [Lid.TELEMETRY_CONTROLLER]: 'telemetry, by the controller',
  [Lid.ENDURANCE_GROUP]: 'endurance group',
  [Lid.PREDICTABLE_LATENCY_SET]: 'predictable latency of a set',
  [Lid.PREDICTABLE_LATENCY_EVENT]: 'predictable latency events',
  [Lid.ANA]: 'ANA',
  [Lid.PERSISTENT_EVENT]: 'persistent events',
  [Lid.LBA_STATUS]: 'LBA status',
  [Lid.ENDURANCE_GROUP_EVENT]: 'endurance group events',
  [Lid.RESERVATION_NOTIFICATION]: 'reservation notifications',
  [Lid.SANITIZE_STATUS]: 'sanitize status',
  [Lid.CHANGED_ZONES]: 'changed zones',
};

/** `smart`; `log page c0h` for one that the standard does not name. */
export function logPageName(lid: number): string {
  return LOG_PAGE_NAMES[lid] ?? `log page ${lid.toString(16).padStart(2, '0')}h`;
}

/** Decodes dword 0 of the completion of an Asynchronous Event Request. */
export function decodeAsyncEvent(dw0: number): AsyncEvent {
  const typeCode = dw0 & 0x7;
  const infoCode = (dw0 >>> 8) & 0xff;
  const logPage = (dw0 >>> 16) & 0xff;
  const [type, infos] = EVENT_TYPES[typeCode] ?? [`type ${typeCode}`, {}];
  const info = infos[infoCode] ?? `event ${infoCode.toString(16).padStart(2, '0')}h`;
  return { type, info, logPage, logPageName: logPage === 0 ? '' : logPageName(logPage) };
}

/** A revision as `nvme fw-log` shows it: all eight characters, padding included. */
export function paddedRevision(page: Uint8Array, slot: number): string {
  return fixedText(page.subarray(slot * 8, slot * 8 + 8));
}
