// What stands in the way of opening a function through VFIO, each with what to do about it. Looked
// up before anything is opened where sysfs shows it, and from the errno of the failing call
// otherwise (Documentation/driver-api/vfio.rst).

import { userInfo } from 'node:os';
import { errnoCode, PenstockError } from '../errors.js';
import { type FunctionFacts, groupObstacles, isVfioDriver, readFacts } from './facts.js';
import { resolveFunction } from './names.js';
import type { Root } from './root.js';

const CONTAINER = '/dev/vfio/vfio';

function notReady(code: string, message: string, hint: string, cause?: unknown): PenstockError {
  return new PenstockError(code, message, { hint, cause, exitCode: 3 });
}

/**
 * What sysfs says of a function that VFIO can open now. Errors: NO_SUCH_DEVICE, NO_IOMMU,
 * VFIO_MISSING, NOT_BOUND.
 */
export function readyFunction(root: Root, given: string): FunctionFacts {
  const address = resolveFunction(root, given);
  const facts = readFacts(root, address);
  if (facts === null) {
    throw notReady('NO_SUCH_DEVICE', `${address} was removed just now`, 'see the kernel log');
  }
  if (facts.group === '') {
    throw notReady(
      'NO_IOMMU',
      `${address} is behind no IOMMU`,
      'turn on VT-d or AMD-Vi in the firmware and boot with intel_iommu=on; `penstock doctor`',
    );
  }
  if (!root.exists(CONTAINER)) {
    const hint = 'modprobe vfio-pci; in a container, pass /dev/vfio into it';
    throw notReady('VFIO_MISSING', `the kernel offers no VFIO (${CONTAINER})`, hint);
  }
  if (!isVfioDriver(facts.driver)) {
    const driver = facts.driver === '' ? 'no driver' : `the driver ${facts.driver}`;
    const message = `${address} is bound to ${driver}, not to vfio-pci`;
    throw notReady('NOT_BOUND', message, `penstock bind ${address}`);
  }
  return facts;
}

/** Why `/dev/vfio/…` could not be opened. */
export function openError(path: string, cause: unknown): unknown {
  switch (errnoCode(cause)) {
    case '':
      return cause;
    case 'EACCES':
    case 'EPERM': {
      const hint = `as root: chown ${userInfo().username} ${path}, or add a udev rule`;
      return notReady('PERMISSION_DENIED', `this user may not open ${path}`, hint, cause);
    }
    case 'EBUSY':
      return groupBusy(path, cause);
    case 'ENOENT':
    case 'ENODEV':
    case 'ENXIO':
      if (path === CONTAINER) {
        const hint = 'modprobe vfio-pci; in a container, pass /dev/vfio into it';
        return notReady('VFIO_MISSING', `the kernel offers no VFIO (${path})`, hint, cause);
      }
      break;
    default:
  }
  return vfioFailed(`${path} could not be opened`, cause);
}

function groupBusy(path: string, cause: unknown): PenstockError {
  return notReady(
    'GROUP_BUSY',
    `${path} is open already, in this process or another`,
    `end who has it (fuser ${path}); functions of one group have one user at a time`,
    cause,
  );
}

/** The group has members that some other driver of the kernel has. */
export function groupNotViable(root: Root, facts: FunctionFacts): PenstockError {
  const others = groupObstacles(root, facts.group, new Set([facts.address]));
  const names = others.map((member) => `${member.address} (${member.driver})`).join(', ');
  const message = `IOMMU group ${facts.group} of ${facts.address} has members with the kernel`;
  return notReady(
    'GROUP_NOT_VIABLE',
    others.length === 0 ? message : `${message}: ${names}`,
    others.length === 0
      ? 'bind all of its members to vfio-pci'
      : `penstock bind ${others.map((member) => member.address).join(' ')}`,
  );
}

/** A call on the way to an open device failed. */
export function setupError(facts: FunctionFacts, cause: unknown): unknown {
  const { syscall } = cause as { syscall?: string };
  switch (errnoCode(cause)) {
    case '':
      return cause;
    case 'EBUSY':
      return groupBusy(`/dev/vfio/${facts.group}`, cause);
    case 'EPERM':
      if (syscall?.includes('SET_IOMMU') === true) {
        const message = `the IOMMU of ${facts.address} does not remap interrupts`;
        const hint =
          'turn interrupt remapping on; or, trusting the device, load vfio_iommu_type1 with ' +
          'allow_unsafe_interrupts=1';
        return notReady('NO_IOMMU', message, hint, cause);
      }
      break;
    default:
  }
  return vfioFailed(`${facts.address} could not be opened through VFIO`, cause);
}

function vfioFailed(message: string, cause: unknown): PenstockError {
  const hint = 'the cause names the call and its error; the kernel log may say more';
  return notReady('VFIO_FAILED', message, hint, cause);
}
