// Gives PCI functions to vfio-pci (or another driver) and back to the drivers they came from.
//
// Invariants
// 1. All checks for all functions run before the first change.
// 2. Before a function's first change its record is on its medium; after its last it is what the
//    record says, or the record is there still. So whatever interrupts this, `unbind` repairs.
// 3. What fails half-way is put back in reverse order; what cannot be put back keeps its record.

import { PenstockError } from '../errors.js';
import { type Refusal, refusalsToBind, refusalsToRelease } from './bind-checks.js';
import { type BindRecord, bindState, readRecord, recordedAddresses } from './bind-records.js';
import { type Step, carryOut, groupNode, stepsToBind, stepsToRestore } from './bind-steps.js';
import { type FunctionFacts, functionFolder, isUserDriver, isVfioDriver } from './facts.js';
import { readFacts } from './facts.js';
import { readHolders } from './holders.js';
import type { Machine } from './machine.js';

export interface BindOptions {
  /** Default: vfio-pci. */
  readonly driver?: string;
  /** User that the group's node is given to. */
  readonly uid?: number;
  /** Lifts refusals that would cut somebody off, never those that would lose data. */
  readonly force?: boolean;
  /** Checks everything and changes nothing. */
  readonly dryRun?: boolean;
}

export interface Changed {
  readonly address: string;
  /** The driver before and after; '' for none. */
  readonly from: string;
  readonly to: string;
  /** Its VFIO group's node; '' when there is none. */
  readonly node: string;
  readonly steps: readonly Step[];
}

/** Refused before anything was changed; `code` and exit code are the first refusal's. */
export class BindRefused extends PenstockError {
  readonly refusals: readonly Refusal[];

  constructor(refusals: readonly Refusal[], wouldForce: boolean) {
    const [first] = refusals;
    const addresses = [...new Set(refusals.map(({ address }) => address))];
    const reasons = addresses.map((address) => {
      const own = refusals.filter((refusal) => refusal.address === address);
      return `${address} stays as it is: ${own.map(({ reason }) => reason).join('; ')}`;
    });
    super(first?.code ?? 'DEVICE_IN_USE', reasons.join('\n  '), {
      hint: [...new Set(refusals.map(({ hint }) => hint)), forceHint(refusals, wouldForce)]
        .filter((hint) => hint !== '')
        .map((hint) => hint.replace(/\.$/, ''))
        .join('; '),
      exitCode: ['NO_IOMMU', 'GROUP_NOT_VIABLE'].includes(first?.code ?? '') ? 3 : 1,
    });
    this.refusals = refusals;
  }

  override toJSON() {
    return { ...super.toJSON(), refusals: this.refusals };
  }
}

function forceHint(refusals: readonly Refusal[], wouldForce: boolean): string {
  if (!wouldForce) return '';
  return refusals.every(({ forceable }) => forceable)
    ? '--force takes it all the same'
    : '--force does not lift this';
}

/**
 * Binds functions by address. Errors: those of BindRefused, NO_SUCH_DEVICE, PERMISSION_DENIED,
 * MODULE_MISSING, BIND_FAILED.
 */
export async function bindFunctions(
  machine: Machine,
  addresses: readonly string[],
  options: BindOptions = {},
): Promise<Changed[]> {
  const driver = options.driver ?? 'vfio-pci';
  const functions = [...new Set(addresses)].map((address) => factsOf(machine, address));
  const load = checkToBind(machine, functions, driver, options);
  const done: { readonly before: Before; readonly changed: Changed }[] = [];
  if (load !== null && options.dryRun !== true) await carryOut(machine, load);
  for (const facts of functions) {
    const before = beforeOf(machine, facts);
    const steps = stepsToBind(facts, recordFor(machine, before, driver), {
      known: before.record !== null,
      uid: options.uid ?? null,
    });
    const node = isVfioDriver(driver) ? groupNode(facts.group) : '';
    const changed = { address: facts.address, from: facts.driver, to: driver, node, steps };
    done.push({ before, changed });
    if (options.dryRun === true) continue;
    try {
      for (const step of steps) await carryOut(machine, step);
    } catch (error) {
      const left = await putBack(machine, done.map((entry) => entry.before).reverse());
      throw failure('BIND_FAILED', `${facts.address} could not be bound to ${driver}`, error, left);
    }
  }
  if (load === null) return done.map(({ changed }) => changed);
  return done.map(({ changed }, index) =>
    index === 0 ? { ...changed, steps: [load, ...changed.steps] } : changed,
  );
}

/** Throws what stands against it; returns the step that loads the driver where that is needed. */
function checkToBind(
  machine: Machine,
  functions: readonly FunctionFacts[],
  driver: string,
  { force = false, dryRun = false }: BindOptions,
): Step | null {
  const { root } = machine;
  const holders = readHolders(root);
  const together = new Set(functions.map(({ address }) => address));
  const refusals = functions
    .flatMap((facts) => refusalsToBind(machine, holders, facts, { driver, together, probe: true }))
    .filter((refusal) => !(force && refusal.forceable));
  if (refusals.length > 0) throw new BindRefused(refusals, true);
  if (!dryRun) requirePermission(machine, functions);
  if (root.exists(`/sys/bus/pci/drivers/${driver}`)) return null;
  if (!machine.canLoadModule(driver)) {
    throw new PenstockError('MODULE_MISSING', `this kernel has no driver ${driver}`, {
      hint: `modprobe ${driver} finds no such module: install it, or name another --driver.`,
      exitCode: 3,
    });
  }
  return { do: 'load', module: driver };
}

/** What a function is before it is bound, with the record that an earlier binding left. */
interface Before {
  readonly facts: FunctionFacts;
  readonly record: BindRecord | null;
  readonly nodeUid: number;
}

function beforeOf(machine: Machine, facts: FunctionFacts): Before {
  const { root } = machine;
  const found = readRecord(root, facts.address);
  const stale = found !== null && bindState(root, found) === 'replaced';
  const nodeUid = facts.group === '' ? -1 : machine.ownerOf(groupNode(facts.group));
  return { facts, record: stale ? null : found, nodeUid };
}

/** An earlier record knows what the device was at first: that is what unbind goes back to. */
function recordFor(machine: Machine, { facts, record }: Before, driver: string): BindRecord {
  return {
    address: facts.address,
    vendor: facts.vendor,
    device: facts.device,
    driver,
    originalDriver: record?.originalDriver ?? facts.driver,
    originalOverride: record?.originalOverride ?? facts.driverOverride,
    since: machine.now().toISOString(),
  };
}

/** Puts functions back to what they were; returns the addresses of those where that failed. */
async function putBack(machine: Machine, befores: readonly Before[]): Promise<string[]> {
  const left: string[] = [];
  for (const { facts, record, nodeUid } of befores) {
    try {
      const was = { driver: facts.driver, override: facts.driverOverride };
      await restore(machine, facts.address, was);
      const node = groupNode(facts.group);
      // The node outlives this where the group has other members that processes use.
      if (nodeUid >= 0 && machine.root.exists(node) && machine.ownerOf(node) !== nodeUid) {
        await carryOut(machine, { do: 'chown', path: node, uid: nodeUid });
      }
      await carryOut(
        machine,
        record === null ? { do: 'forget', address: facts.address } : { do: 'remember', record },
      );
    } catch {
      left.push(facts.address);
    }
  }
  return left;
}

async function restore(
  machine: Machine,
  address: string,
  was: { readonly driver: string | null; readonly override: string },
): Promise<void> {
  const facts = readFacts(machine.root, address);
  if (facts === null) return;
  const steps = stepsToRestore(facts, was, (name) => hasDriver(machine, name));
  for (const step of steps) await carryOut(machine, step);
}

/**
 * Gives functions back to the drivers that they had before they were bound, or, for one without a
 * record, to the driver that the kernel chooses. Repairs what a crash left. Errors: DEVICE_IN_USE,
 * PERMISSION_DENIED, UNBIND_FAILED.
 */
export async function unbindFunctions(
  machine: Machine,
  addresses: readonly string[],
  { dryRun = false }: Pick<BindOptions, 'dryRun'> = {},
): Promise<Changed[]> {
  const plans = [...new Set(addresses)].map((address) => planToUnbind(machine, address));
  const refusals = plans.flatMap((plan) => plan.refusals);
  if (refusals.length > 0) throw new BindRefused(refusals, false);
  if (!dryRun) {
    requirePermission(
      machine,
      plans.flatMap(({ facts }) => facts ?? []),
    );
  }
  for (const { changed } of dryRun ? [] : plans) {
    try {
      for (const step of changed.steps) await carryOut(machine, step);
    } catch (error) {
      const text = `${changed.address} could not be given back to ${changed.to || 'no driver'}`;
      throw failure('UNBIND_FAILED', text, error, [changed.address]);
    }
  }
  return plans.map(({ changed }) => {
    const to = dryRun ? changed.to : (readFacts(machine.root, changed.address)?.driver ?? '');
    return { ...changed, to };
  });
}

interface UnbindPlan {
  readonly facts: FunctionFacts | null;
  readonly refusals: readonly Refusal[];
  readonly changed: Changed;
}

function planToUnbind(machine: Machine, address: string): UnbindPlan {
  const { root } = machine;
  const record = readRecord(root, address);
  const state = record === null ? null : bindState(root, record);
  const recorded = recordedAddresses(root).includes(address);
  const forgetting: Step[] = recorded ? [{ do: 'forget', address }] : [];
  const facts = recorded ? readFacts(root, address) : factsOf(machine, address);
  const changed = { address, from: facts?.driver ?? '', node: '' };
  const isTaken = facts !== null && isUserDriver(facts.driver);
  // Nothing of ours is left: the device went, another came, or the kernel's driver has it.
  const nothing = facts === null || state === 'replaced' || (!recorded && !isTaken);
  if (nothing) {
    return { facts, refusals: [], changed: { ...changed, to: changed.from, steps: forgetting } };
  }
  const was =
    record === null
      ? { driver: null, override: '' }
      : { driver: record.originalDriver, override: record.originalOverride };
  const restoring = stepsToRestore(facts, was, (name) => hasDriver(machine, name));
  const releases = restoring.some((step) => step.do === 'write' && step.path.endsWith('/unbind'));
  const refusals = releases
    ? refusalsToRelease(machine, readHolders(root), facts, { probe: true })
    : [];
  const steps = [...restoring, ...forgetting];
  return { facts, refusals, changed: { ...changed, to: was.driver ?? '', steps } };
}

function hasDriver(machine: Machine, name: string): boolean {
  return machine.root.exists(`/sys/bus/pci/drivers/${name}`);
}

function factsOf(machine: Machine, address: string): FunctionFacts {
  const facts = readFacts(machine.root, address);
  if (facts !== null) return facts;
  throw new PenstockError('NO_SUCH_DEVICE', `there is no PCI function ${address}`, {
    hint: 'penstock status shows what there is.',
    exitCode: 3,
  });
}

function requirePermission(machine: Machine, functions: readonly FunctionFacts[]): void {
  for (const { address } of functions) {
    if (machine.canWrite(`${functionFolder(address)}/driver_override`)) continue;
    throw new PenstockError('PERMISSION_DENIED', `the driver of ${address} may not be changed`, {
      hint: 'Run it as root; --user gives the device to a user afterwards.',
      exitCode: 3,
    });
  }
}

function failure(code: string, what: string, error: unknown, left: string[]): PenstockError {
  const why = error instanceof Error ? error.message : String(error);
  const own = error instanceof PenstockError ? error.hint : 'dmesg may say more.';
  const repair =
    left.length === 0
      ? 'What was changed is put back.'
      : `penstock unbind ${left.join(' ')} repairs what is left.`;
  return new PenstockError(code, `${what}: ${why}`, { hint: `${own} ${repair}`, cause: error });
}
