// `nvme id-ctrl`: Identify Controller as nvme-cli 2.3 prints it. Differences: a 32-bit field above
// 2^31 is not shown as negative, and what is not printable in strings is escaped.

import {
  CONTROLLER_LAYOUT,
  type IdentifyController,
  parseController,
  type PowerState,
  uuidText,
} from '../drivers/nvme/index.js';
import { fieldsOf, hex, jsonValue, type Value } from './nvme-format.js';

/** Fields that nvme-cli 2.3 does not print: `psds` and `vs` have places of their own. */
const HIDDEN = new Set(['dctype', 'vs']);

const HEXADECIMAL = new Set([
  ...['vid', 'ssvid', 'cmic', 'cntlid', 'ver', 'rtd3r', 'rtd3e', 'oaes', 'ctratt', 'rrls', 'oacs'],
  ...['frmw', 'lpa', 'avscc', 'apsta', 'rpmbs', 'hctma', 'sanicap', 'sqes', 'cqes', 'oncs'],
  ...['fuses', 'fna', 'vwc', 'ocfs', 'sgls', 'fcatt'],
]);

/** The page as an object with nvme-cli's keys and types. */
export function idCtrlJson(page: Uint8Array): Record<string, unknown> {
  const controller = parseController(page, true);
  const json: Record<string, unknown> = {};
  for (const [field, value] of fieldsOf(CONTROLLER_LAYOUT, controller, HIDDEN)) {
    // A controller before 1.2.1 has no name of its subsystem.
    if (field.name === 'subnqn' && value === '') continue;
    json[field.name] = field.name === 'fguid' ? uuidText(String(value)) : jsonValue(field, value);
  }
  json['psds'] = controller.powerStates.map(powerStateJson);
  return json;
}

function powerStateJson(state: PowerState): Record<string, number> {
  return {
    max_power: state.mp,
    flags: state.flags,
    entry_lat: state.enlat,
    exit_lat: state.exlat,
    read_tput: state.rrt,
    read_lat: state.rrl,
    write_tput: state.rwt,
    write_lat: state.rwl,
    idle_power: state.idlp,
    idle_scale: state.ips >>> 6,
    active_power: state.actp,
    active_power_work: state.apws & 0x7,
    active_scale: state.apws >>> 6,
  };
}

export function idCtrlText(page: Uint8Array): string {
  const controller = parseController(page, true);
  const lines = fieldsOf(CONTROLLER_LAYOUT, controller, HIDDEN).map(
    ([field, value]) => `${field.name.padEnd(10)}: ${shown(field.name, value)}`,
  );
  return ['NVME Identify Controller:', ...lines, ...powerStateLines(controller), ''].join('\n');
}

function shown(name: string, value: Value): string {
  if (name === 'ieee') return value.toString(16).padStart(6, '0');
  if (name === 'fguid') return uuidText(String(value));
  return HEXADECIMAL.has(name) && typeof value !== 'string' ? hex(value) : String(value);
}

function powerStateLines(controller: IdentifyController): string[] {
  return controller.powerStates.flatMap((state, index) => {
    const most = watts(state.mp, (state.flags & 1) !== 0 ? 1 : 2);
    const operational = (state.flags & 2) !== 0 ? 'non-operational' : 'operational';
    return [
      `ps   ${String(index).padStart(4)} : mp:${most} ${operational} ` +
        `enlat:${state.enlat} exlat:${state.exlat} rrt:${state.rrt} rrl:${state.rrl}`,
      `            rwt:${state.rwt} rwl:${state.rwl} ` +
        `idle_power:${watts(state.idlp, state.ips >>> 6)} ` +
        `active_power:${watts(state.actp, state.apws >>> 6)}`,
      `            active_power_workload:${WORKLOADS[state.apws & 0x7] ?? 'reserved'}`,
    ];
  });
}

const WORKLOADS = ['-', '1MiB 32 RW, 30s idle', '80K 128KiB SW'] as const;

/** Scale 1 counts 100 µW, scale 2 counts 10 mW. */
function watts(power: number, scale: number): string {
  if (scale === 0) return '-';
  if (scale === 3) return 'reserved';
  return `${(power / (scale === 1 ? 10_000 : 100)).toFixed(scale === 1 ? 4 : 2)}W`;
}
