// Names of PCI functions: addresses in long and short form, and the kernel's names of what stands
// on a function (nvme0, nvme0n1, eth0).

import { PenstockError } from '../errors.js';
import { nearest } from '../units.js';
import type { Root } from './root.js';

const DEVICES = '/sys/bus/pci/devices';
/** Domain (more than four digits behind a VMD), bus, device, function. */
const ADDRESS = /^(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}):([01][0-9a-f])\.([0-7])$/i;
const ADDRESSES = /[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]/g;
/** Classes whose devices people know by name. */
const CLASSES: readonly string[] = ['block', 'net', 'nvme', 'nvme-generic'];

/** The function that a device hangs on: the last address in its path in sysfs; '' when on none. */
export function lastFunction(path: string): string {
  return path.match(ADDRESSES)?.at(-1) ?? '';
}

/** An address in its long form; '' for what is none. */
export function longAddress(text: string): string {
  const parts = ADDRESS.exec(text);
  if (parts === null) return '';
  const [, domain = '0000', bus = '', device = '', index = ''] = parts;
  return `${domain}:${bus}:${device}.${index}`.toLowerCase();
}

/**
 * The address of the function that somebody named: `0000:01:00.0`, `01:00.0`, `nvme0`, `nvme0n1`,
 * `/dev/nvme0n1p1` or `eth0`. Errors: NO_SUCH_DEVICE, which names the nearest that there is.
 */
export function resolveFunction(root: Root, name: string): string {
  const address = longAddress(name);
  if (address !== '') {
    if (root.exists(`${DEVICES}/${address}`)) return address;
    throw unknown(root, name, root.list(DEVICES), address);
  }
  const node = name.startsWith('/dev/') ? root.resolve(name) || name : `/dev/${name}`;
  const kernelName = node.replace(/^\/dev\//, '').replaceAll('/', '!');
  for (const folder of CLASSES.map((kind) => `/sys/class/${kind}/${kernelName}`)) {
    if (!root.exists(folder)) continue;
    const found = functionsOf(root, root.resolve(folder));
    const [address = '', second] = found;
    if (second !== undefined) {
      throw new PenstockError('NO_SUCH_DEVICE', `${name} hangs on ${found.join(' and ')}`, {
        hint: 'Give the address of the one that is meant.',
        exitCode: 3,
      });
    }
    if (address !== '') return address;
    throw new PenstockError('NO_SUCH_DEVICE', `${name} hangs on no PCI function`, {
      hint: 'Only PCI functions can be bound; penstock list shows them.',
      exitCode: 3,
    });
  }
  const names = CLASSES.flatMap((kind) => root.list(`/sys/class/${kind}`)).filter(
    (known) => functionsOf(root, root.resolve(classFolder(root, known))).length > 0,
  );
  throw unknown(root, name, [...names, ...root.list(DEVICES)], kernelName);
}

/** Of a multipath namespace those of every controller of its subsystem. */
function functionsOf(root: Root, path: string): string[] {
  const subsystem = /^.*\/nvme-subsystem\/[^/]+/.exec(path)?.[0];
  if (subsystem === undefined) return [lastFunction(path)].filter((address) => address !== '');
  const children = root.list(subsystem).map((child) => root.resolve(`${subsystem}/${child}`));
  return [...new Set(children.map(lastFunction))].filter((address) => address !== '');
}

function classFolder(root: Root, name: string): string {
  const folders = CLASSES.map((kind) => `/sys/class/${kind}/${name}`);
  return folders.find((folder) => root.exists(folder)) ?? '';
}

function unknown(root: Root, given: string, known: readonly string[], word: string): PenstockError {
  const near = nearest(word, known);
  const kernelName = near === '' || near.includes(':') ? '' : lastFunctionOf(root, near);
  const suggestion = kernelName === '' ? near : `${near} (${kernelName})`;
  return new PenstockError('NO_SUCH_DEVICE', `there is no PCI function '${given}'`, {
    hint:
      near === ''
        ? 'This machine shows no PCI functions.'
        : `Did you mean ${suggestion}? penstock status shows what there is.`,
    exitCode: 3,
  });
}

function lastFunctionOf(root: Root, name: string): string {
  return lastFunction(root.resolve(classFolder(root, name)));
}
