// `nvme smart-log` and `nvme error-log` as nvme-cli 2.3 prints them. Differences: 32-bit counters
// above 2^31 are not shown as negative; an error's status and transport are told in words of ours.

import {
  criticalWarnings,
  decodeStatus,
  ERROR_LAYOUT,
  type ErrorEntry,
  parseErrorLog,
  parseSmartLog,
  SMART_LAYOUT,
  type SmartLog,
} from '../drivers/nvme/index.js';
import { fieldsOf, hex, jsonValue, siBytes } from './nvme-format.js';

const SENSOR = /^temperature_sensor_(\d)$/;
const KELVIN_ZERO_CELSIUS = 273;
const DATA_UNIT_BYTES = 512_000n;

/** The page as an object with nvme-cli's keys and types; temperatures in kelvins. */
export function smartLogJson(page: Uint8Array): Record<string, unknown> {
  const log = parseSmartLog(page);
  const fields = fieldsOf(SMART_LAYOUT, log).filter(isThere);
  return Object.fromEntries(fields.map(([field, value]) => [field.name, jsonValue(field, value)]));
}

/** A sensor that shows 0 K is not there. */
function isThere([{ name }, value]: readonly [{ name: string }, unknown]): boolean {
  return value !== 0 || !SENSOR.test(name);
}

/** Labels as nvme-cli has them, with its tabs; a sensor's is made below. */
const SMART_LABELS: Readonly<Record<string, string>> = {
  critical_warning: 'critical_warning\t\t\t',
  temperature: 'temperature\t\t\t\t',
  avail_spare: 'available_spare\t\t\t\t',
  spare_thresh: 'available_spare_threshold\t\t',
  percent_used: 'percentage_used\t\t\t\t',
  endurance_grp_critical_warning_summary: 'endurance group critical warning summary',
  data_units_read: 'Data Units Read\t\t\t\t',
  data_units_written: 'Data Units Written\t\t\t',
  host_read_commands: 'host_read_commands\t\t\t',
  host_write_commands: 'host_write_commands\t\t\t',
  controller_busy_time: 'controller_busy_time\t\t\t',
  power_cycles: 'power_cycles\t\t\t\t',
  power_on_hours: 'power_on_hours\t\t\t\t',
  unsafe_shutdowns: 'unsafe_shutdowns\t\t\t',
  media_errors: 'media_errors\t\t\t\t',
  num_err_log_entries: 'num_err_log_entries\t\t\t',
  warning_temp_time: 'Warning Temperature Time\t\t',
  critical_comp_time: 'Critical Composite Temperature Time\t',
  thm_temp1_trans_count: 'Thermal Management T1 Trans Count\t',
  thm_temp2_trans_count: 'Thermal Management T2 Trans Count\t',
  thm_temp1_total_time: 'Thermal Management T1 Total Time\t',
  thm_temp2_total_time: 'Thermal Management T2 Total Time\t',
};

const PERCENT = new Set(['avail_spare', 'spare_thresh', 'percent_used']);

export function smartLogText(page: Uint8Array, device: string, nsid: number): string {
  const log = parseSmartLog(page);
  const lines = fieldsOf(SMART_LAYOUT, log)
    .filter(isThere)
    .map(([{ name }, value]) => `${smartLabel(name)}: ${smartValue(log, name, value)}`);
  const heading = `Smart Log for NVME device:${device} namespace-id:${nsid.toString(16)}`;
  return [heading, ...lines, ''].join('\n');
}

function smartLabel(name: string): string {
  const sensor = SENSOR.exec(name);
  return sensor === null
    ? (SMART_LABELS[name] ?? name)
    : `Temperature Sensor ${sensor[1]}           `;
}

function smartValue(log: SmartLog, name: string, value: number | bigint | string): string {
  if (name.startsWith('critical_warning') || name.startsWith('endurance_grp')) {
    return hex(Number(value));
  }
  if (name === 'temperature' || SENSOR.test(name)) {
    return `${Number(value) - KELVIN_ZERO_CELSIUS}°C (${value} Kelvin)`;
  }
  if (PERCENT.has(name)) return `${value}%`;
  if (name === 'data_units_read') return dataUnits(log.data_units_read);
  if (name === 'data_units_written') return dataUnits(log.data_units_written);
  return String(value);
}

function dataUnits(units: bigint): string {
  const { number, suffix } = siBytes(units * DATA_UNIT_BYTES);
  return `${units} (${number} ${suffix}B)`;
}

/** What people should hear of: the critical warnings, in words. */
export function smartRemarks(page: Uint8Array): string[] {
  return criticalWarnings(parseSmartLog(page));
}

/** nvme-cli shows the status word's two parts, where the page has `status`. */
function errorFields(entry: ErrorEntry): [string, number | bigint][] {
  return fieldsOf(ERROR_LAYOUT, entry).flatMap(([{ name }, value]): [string, number | bigint][] =>
    name === 'status'
      ? [
          ['status_field', entry.status_field],
          ['phase_tag', entry.phase_tag],
        ]
      : [[name, value as number | bigint]],
  );
}

/** The page as an object with nvme-cli's keys and types. */
export function errorLogJson(page: Uint8Array): Record<string, unknown> {
  return { errors: parseErrorLog(page).map((entry) => Object.fromEntries(errorFields(entry))) };
}

const ERROR_LABELS: Readonly<Record<string, string>> = {
  error_count: 'error_count\t',
  sqid: 'sqid\t\t',
  cmdid: 'cmdid\t\t',
  status_field: 'status_field\t',
  phase_tag: 'phase_tag\t',
  parm_error_location: 'parm_err_loc\t',
  lba: 'lba\t\t',
  nsid: 'nsid\t\t',
  vs: 'vs\t\t',
  trtype: 'trtype\t\t',
  cs: 'cs\t\t',
  trtype_spec_info: 'trtype_spec_info',
};

const ERROR_DECIMAL = new Set(['error_count', 'sqid', 'vs']);
const RULE = '.................';

export function errorLogText(page: Uint8Array, device: string): string {
  const entries = parseErrorLog(page);
  const blocks = entries.map((entry, index) => {
    const lines = errorFields(entry).map(
      ([name, value]) => `${ERROR_LABELS[name] ?? name}: ${errorValue(name, value)}`,
    );
    return [` Entry[${String(index).padStart(2)}]   `, RULE, ...lines, RULE].join('\n');
  });
  const heading = `Error Log Entries for device:${device} entries:${entries.length}`;
  return [heading, RULE, ...blocks, ''].join('\n');
}

const TRANSPORTS: Readonly<Record<number, string>> = {
  0: 'none',
  1: 'RDMA',
  2: 'Fibre Channel',
  3: 'TCP',
  254: 'intra-host',
};

function errorValue(name: string, value: number | bigint): string {
  if (name === 'status_field') {
    const status = decodeStatus(Number(value));
    return `${hex(value)}(${status.name}: ${status.meaning})`;
  }
  if (name === 'trtype') return TRANSPORTS[Number(value)] ?? `reserved (${value})`;
  return ERROR_DECIMAL.has(name) ? String(value) : hex(value);
}
