// Binding and unbinding as lists of steps: data that is carried out, or printed as the shell lines
// that a person could type in their place. (Documentation/ABI/testing/sysfs-bus-pci.)

import { PenstockError } from '../errors.js';
import { type BindRecord, recordPath, recordText } from './bind-records.js';
import {
  type FunctionFacts,
  functionFolder,
  isUserDriver,
  isVfioDriver,
  readFacts,
} from './facts.js';
import type { Machine } from './machine.js';

/** What a driver or a node may take to appear: the kernel makes both within the write. */
const APPEAR_LIMIT_MS = 3000;
const APPEAR_STEP_MS = 20;

export type Step =
  | { readonly do: 'load'; readonly module: string }
  | { readonly do: 'remember'; readonly record: BindRecord }
  | { readonly do: 'write'; readonly path: string; readonly text: string }
  /** Waits until the driver has the device. */
  | { readonly do: 'expect driver'; readonly address: string; readonly driver: string }
  | { readonly do: 'expect node'; readonly path: string }
  | { readonly do: 'chown'; readonly path: string; readonly uid: number }
  | { readonly do: 'forget'; readonly address: string };

/**
 * Gives the device to the driver of the record. `known`: an earlier binding left a record; without
 * one, a device that the driver has already is somebody else's binding, and stays so.
 */
export function stepsToBind(
  facts: FunctionFacts,
  record: BindRecord,
  { known, uid }: { readonly known: boolean; readonly uid: number | null },
): Step[] {
  const { address, driver, driverOverride, group } = facts;
  const folder = functionFolder(address);
  const node = groupNode(group);
  const steps: Step[] = [];
  if (driver !== record.driver || (known && driverOverride !== record.driver)) {
    steps.push({ do: 'remember', record });
    steps.push({ do: 'write', path: `${folder}/driver_override`, text: record.driver });
  }
  if (driver !== record.driver) {
    if (driver !== '') steps.push({ do: 'write', path: `${folder}/driver/unbind`, text: address });
    steps.push({ do: 'write', path: '/sys/bus/pci/drivers_probe', text: address });
    steps.push({ do: 'expect driver', address, driver: record.driver });
  }
  if (isVfioDriver(record.driver)) steps.push({ do: 'expect node', path: node });
  if (uid !== null) steps.push({ do: 'chown', path: node, uid });
  return steps;
}

/**
 * Puts a device back to a driver and override. `driver` null: what it was is not known, the kernel
 * chooses.
 */
export function stepsToRestore(
  facts: FunctionFacts,
  was: { readonly driver: string | null; readonly override: string },
  hasDriver: (name: string) => boolean,
): Step[] {
  const { address, driver, driverOverride, modalias } = facts;
  const folder = functionFolder(address);
  const steps: Step[] = [];
  if (driverOverride !== was.override) {
    // An empty line clears it; with an override left, no other driver can have the device.
    steps.push({ do: 'write', path: `${folder}/driver_override`, text: was.override || '\n' });
  }
  const leaveAlone = was.driver === null && driver !== '' && !isUserDriver(driver);
  if (driver === was.driver || leaveAlone) return steps;
  if (driver !== '') steps.push({ do: 'write', path: `${folder}/driver/unbind`, text: address });
  if (was.driver === '') return steps;
  if (was.driver !== null && hasDriver(was.driver)) {
    // Not by probing: several drivers may match (vfio-pci with ids of its own).
    steps.push({ do: 'write', path: `/sys/bus/pci/drivers/${was.driver}/bind`, text: address });
  } else {
    if (was.driver !== null) steps.push({ do: 'load', module: modalias || was.driver });
    steps.push({ do: 'write', path: '/sys/bus/pci/drivers_probe', text: address });
  }
  if (was.driver !== null) steps.push({ do: 'expect driver', address, driver: was.driver });
  return steps;
}

export function groupNode(group: string): string {
  return `/dev/vfio/${group}`;
}

/** What a person would type for the steps; remarks for what is not a change of the machine. */
export function shellLine(step: Step): string {
  switch (step.do) {
    case 'load':
      return `modprobe ${step.module}`;
    case 'remember': {
      const was = step.record.originalDriver || 'no driver';
      return `# ${recordPath(step.record.address)} remembers: ${was}`;
    }
    case 'write':
      return `echo ${step.text === '\n' ? "''" : step.text} > ${step.path}`;
    case 'expect driver':
      return `# ${step.address} now belongs to ${step.driver}`;
    case 'expect node':
      return `# ${step.path} is there`;
    case 'chown':
      return `chown ${step.uid} ${step.path}`;
    case 'forget':
      return `rm -f ${recordPath(step.address)}`;
  }
}

/** Carries a step out. Throws the system call's error, or BIND_FAILED for what did not appear. */
export async function carryOut(machine: Machine, step: Step): Promise<void> {
  const { root } = machine;
  switch (step.do) {
    case 'load':
      return machine.loadModule(step.module);
    case 'remember':
      return machine.save(recordPath(step.record.address), recordText(step.record));
    case 'write':
      return machine.write(step.path, step.text);
    case 'chown':
      return machine.chown(step.path, step.uid);
    case 'forget':
      return machine.remove(recordPath(step.address));
    case 'expect driver': {
      const now = (): string => readFacts(root, step.address)?.driver ?? '';
      if (await appears(machine, () => now() === step.driver)) return;
      const instead = now() === '' ? 'no driver has it' : `${now()} has it`;
      throw new PenstockError('BIND_FAILED', `${step.driver} did not take ${step.address}`, {
        hint: `${instead}; dmesg says why the driver refused.`,
      });
    }
    case 'expect node':
      if (await appears(machine, () => root.exists(step.path))) return;
      throw new PenstockError('BIND_FAILED', `${step.path} did not appear`, {
        hint: 'Is /dev a devtmpfs, or shown to this container (docker run -v /dev/vfio:/dev/vfio)?',
      });
  }
}

async function appears(machine: Machine, isThere: () => boolean): Promise<boolean> {
  for (let waitedMs = 0; !isThere(); waitedMs += APPEAR_STEP_MS) {
    if (waitedMs >= APPEAR_LIMIT_MS) return false;
    await machine.sleep(APPEAR_STEP_MS);
  }
  return true;
}
