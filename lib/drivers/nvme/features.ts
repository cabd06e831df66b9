// Features (Get Features and Set Features; NVM Express Base 2.0, section 5.27.1; NVM Command Set
// 1.0, section 4.1.3): names, and the bits of the values that are a dword.

import { decode, layout, type Layout } from '../../wire/index.js';
import { Feature } from './commands.js';
import { bits, type BitRow } from './table.js';

interface FeatureEntry {
  readonly name: string;
  /** Bits of the value (cdw11 of Set Features, dw0 of what Get Features completes with). */
  readonly layout: Layout | null;
  /** Bytes of the data buffer, 0 where the value is all there is. */
  readonly dataBytes: number;
}

function feature(name: string, list: readonly BitRow[], dataBytes = 0): FeatureEntry {
  const table = list.length === 0 ? null : layout(name, 4, 'NVMe Base 2.0, 5.27.1', bits(list));
  return { name, layout: table, dataBytes };
}

/** By identifier. */
const FEATURES: Readonly<Record<number, FeatureEntry>> = {
  [Feature.ARBITRATION]: feature('arbitration', [
    ['ab', 0, 2, 'commands at a time, 1 << n; 7 no limit'],
    ['lpw', 8, 15, 'weight of low priority, less one'],
    ['mpw', 16, 23, 'weight of medium priority, less one'],
    ['hpw', 24, 31, 'weight of high priority, less one'],
  ]),
  [Feature.POWER_MANAGEMENT]: feature('power management', [
    ['ps', 0, 4, 'power state'],
    ['wh', 5, 7, 'workload hint'],
  ]),
  [Feature.LBA_RANGE_TYPE]: feature('LBA range type', [['num', 0, 5, 'ranges, less one']], 4096),
  [Feature.TEMPERATURE_THRESHOLD]: feature('temperature threshold', [
    ['tmpth', 0, 15, 'threshold, in kelvins'],
    ['tmpsel', 16, 19, 'sensor: 0 composite, 15 all'],
    ['thsel', 20, 21, '0 over, 1 under'],
  ]),
  [Feature.ERROR_RECOVERY]: feature('error recovery', [
    ['tler', 0, 15, 'limit of retries, in 100 ms; 0 none'],
    ['dulbe', 16, 16, 'reads of deallocated blocks fail'],
  ]),
  [Feature.VOLATILE_WRITE_CACHE]: feature('volatile write cache', [['wce', 0, 0, 'enabled']]),
  [Feature.NUMBER_OF_QUEUES]: feature('number of queues', [
    ['nsq', 0, 15, 'submission queues, less one'],
    ['ncq', 16, 31, 'completion queues, less one'],
  ]),
  [Feature.INTERRUPT_COALESCING]: feature('interrupt coalescing', [
    ['thr', 0, 7, 'completions before an interrupt, less one'],
    ['time', 8, 15, 'longest delay, in 100 µs; 0 none'],
  ]),
  [Feature.INTERRUPT_VECTOR_CONFIG]: feature('interrupt vector configuration', [
    ['iv', 0, 15, 'vector'],
    ['cd', 16, 16, 'no coalescing'],
  ]),
  [Feature.WRITE_ATOMICITY]: feature('write atomicity', [
    ['dn', 0, 0, 'AWUN is off; only AWUPF holds'],
  ]),
  [Feature.ASYNC_EVENT_CONFIG]: feature('asynchronous event configuration', [
    ['smart', 0, 7, 'critical warnings, as in the smart log'],
    ['nan', 8, 8, 'namespace attributes'],
    ['fan', 9, 9, 'firmware activation'],
    ['tln', 10, 10, 'telemetry log'],
    ['anacn', 11, 11, 'ANA state'],
    ['plealcn', 12, 12, 'predictable latency events'],
    ['lsian', 13, 13, 'LBA status information'],
    ['egealcn', 14, 14, 'endurance group events'],
    ['nnsshdn', 15, 15, 'subsystem shutdown'],
    ['zdcn', 27, 27, 'zone descriptors'],
  ]),
  [Feature.AUTONOMOUS_POWER_STATE]: feature(
    'autonomous power state transition',
    [['apste', 0, 0, 'enabled']],
    256,
  ),
  [Feature.HOST_MEMORY_BUFFER]: feature(
    'host memory buffer',
    [
      ['ehm', 0, 0, 'enabled'],
      ['mr', 1, 1, 'the same memory as before'],
    ],
    4096,
  ),
  [Feature.TIMESTAMP]: feature('timestamp', [], 8),
  [Feature.KEEP_ALIVE_TIMER]: feature('keep alive timer', [['kato', 0, 31, 'in ms; 0 off']]),
  [Feature.HOST_THERMAL_MANAGEMENT]: feature('host controlled thermal management', [
    ['tmt2', 0, 15, 'heavy throttling from, in kelvins; 0 off'],
    ['tmt1', 16, 31, 'light throttling from, in kelvins; 0 off'],
  ]),
  [Feature.NON_OPERATIONAL_POWER_STATE]: feature('non-operational power state configuration', [
    ['noppme', 0, 0, 'background work may exceed the power of the state'],
  ]),
  [Feature.READ_RECOVERY_LEVEL]: feature('read recovery level', [['rrl', 0, 3, 'level']]),
  [Feature.PREDICTABLE_LATENCY_CONFIG]: feature(
    'predictable latency mode configuration',
    [['ple', 0, 0, 'enabled']],
    512,
  ),
  [Feature.PREDICTABLE_LATENCY_WINDOW]: feature('predictable latency mode window', [
    ['wsel', 0, 2, '1 deterministic, 2 not'],
  ]),
  [Feature.LBA_STATUS_INTERVAL]: feature('LBA status information', [
    ['lsiri', 0, 15, 'interval of reports, in 100 ms'],
    ['lsipi', 16, 31, 'interval of polls, in 100 ms'],
  ]),
  [Feature.HOST_BEHAVIOR]: feature('host behavior support', [], 512),
  [Feature.SANITIZE_CONFIG]: feature('sanitize configuration', [
    ['nodrm', 0, 0, 'commands that ask for no deallocation get a warning only'],
  ]),
  [Feature.ENDURANCE_GROUP_EVENT]: feature('endurance group event configuration', [
    ['endgid', 0, 15, 'endurance group'],
    ['egcw', 16, 23, 'critical warnings'],
  ]),
  [Feature.IO_COMMAND_SET_PROFILE]: feature('I/O command set profile', [
    ['iocsci', 0, 8, 'combination, an index into the list of Identify'],
  ]),
  [Feature.SPINUP_CONTROL]: feature('spinup control', [['sc', 0, 0, 'limited']]),
  [Feature.ENHANCED_CONTROLLER_METADATA]: feature('enhanced controller metadata', [], 4096),
  [Feature.CONTROLLER_METADATA]: feature('controller metadata', [], 4096),
  [Feature.NAMESPACE_METADATA]: feature('namespace metadata', [], 4096),
  [Feature.SOFTWARE_PROGRESS]: feature('software progress marker', [
    ['pbslc', 0, 7, 'starts before software was loaded'],
  ]),
  [Feature.HOST_IDENTIFIER]: feature('host identifier', [['exhid', 0, 0, '128 bits']], 16),
  [Feature.RESERVATION_NOTIFICATION]: feature('reservation notification mask', [
    ['regpre', 1, 1, 'no event for preempted registrations'],
    ['resrel', 2, 2, 'no event for released reservations'],
    ['respre', 3, 3, 'no event for preempted reservations'],
  ]),
  [Feature.RESERVATION_PERSISTENCE]: feature('reservation persistence', [
    ['ptpl', 0, 0, 'over power loss'],
  ]),
  [Feature.NAMESPACE_WRITE_PROTECTION]: feature('namespace write protection', [
    ['wps', 0, 2, '0 none, 1 protected, 2 until the next power cycle, 3 for good'],
  ]),
};

/** `volatile write cache`; `feature c0h` for one that the standard does not name. */
export function featureName(fid: number): string {
  return FEATURES[fid]?.name ?? `feature ${fid.toString(16).padStart(2, '0')}h`;
}

/** Bytes of data that go with the feature; 0: its value is all. */
export function featureDataBytes(fid: number): number {
  return FEATURES[fid]?.dataBytes ?? 0;
}

/** The parts of a feature's value by name; `{}` where it has none that the standard names. */
export function decodeFeature(fid: number, value: number): Record<string, number> {
  const table = FEATURES[fid]?.layout ?? null;
  if (table === null) return {};
  const data = new Uint8Array(Uint32Array.of(value).buffer);
  // All fields of these tables are bits, which decode to numbers.
  return decode(table, data) as Record<string, number>;
}

/** What was granted of the queues asked for: each one more than the value says. */
export function grantedQueues(value: number): { readonly sqs: number; readonly cqs: number } {
  return { sqs: (value & 0xffff) + 1, cqs: (value >>> 16) + 1 };
}

/** Every feature that the standard names, by identifier. */
export function allFeatures(): { readonly fid: number; readonly name: string }[] {
  return Object.entries(FEATURES).map(([fid, { name }]) => ({ fid: Number(fid), name }));
}
