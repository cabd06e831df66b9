// Network interfaces of a PCI function, and what uses each: routes, addresses, bridges and bonds,
// what is stacked on it. Whoever takes such a NIC from the kernel cuts the machine off, themselves
// included where they came by it: only on demand (`forceable`).

import type { Holders, Use } from './holders.js';
import { lastFunction } from './names.js';
import type { Root } from './root.js';

/** linux/if.h. */
const IFF_UP = 1;

/** Names of a function's interfaces, which may stand on a virtio device in between. */
export function interfacesOf(root: Root, address: string): string[] {
  return root
    .list('/sys/class/net')
    .filter((name) => lastFunction(root.resolve(`/sys/class/net/${name}`)) === address);
}

/**
 * What uses an interface. `addresses`: of the interfaces that are up, by name; what belongs to the
 * link alone (fe80::) is no use.
 */
export function interfaceUses(
  root: Root,
  holders: Holders,
  name: string,
  addresses: ReadonlyMap<string, readonly string[]> = new Map(),
): Use[] {
  const uses: Use[] = [];
  const seen = new Set<string>();
  const queue = [name];
  for (let next = queue.shift(); next !== undefined; next = queue.shift()) {
    if (seen.has(next)) continue;
    seen.add(next);
    const by = next === name ? '' : ` by ${next}`;
    for (const route of holders.routes.get(next) ?? []) {
      uses.push({ words: `${route}${by} (${name})`, hint: downHint(next), weight: 'forceable' });
    }
    const configured = (addresses.get(next) ?? []).filter((address) => !/^fe[89ab]/i.test(address));
    for (const address of configured) {
      const words = `address ${address}${by} (${name})`;
      uses.push({ words, hint: `ip address flush dev ${next}`, weight: 'forceable' });
    }
    for (const entry of root.list(`/sys/class/net/${next}`)) {
      if (!entry.startsWith('upper_')) continue;
      const upper = entry.slice('upper_'.length);
      queue.push(upper);
      uses.push(stackUse(root, next, upper));
    }
  }
  const master = root.linkName(`/sys/class/net/${name}/master`);
  if (master !== '' && !seen.has(master)) uses.push(stackUse(root, name, master));
  if (uses.length === 0 && isUp(root, name)) {
    uses.push({ words: `${name} is up`, hint: downHint(name), weight: 'harmless' });
  }
  return uses;
}

function stackUse(root: Root, name: string, upper: string): Use {
  const folder = `/sys/class/net/${upper}`;
  const isMaster = root.linkName(`/sys/class/net/${name}/master`) === upper;
  const kind = root.exists(`${folder}/bridge`)
    ? 'bridge '
    : root.exists(`${folder}/bonding`)
      ? 'bond '
      : '';
  const words = isMaster ? `${name} is a member of ${kind}${upper}` : `${name} carries ${upper}`;
  const hint = isMaster ? `ip link set ${name} nomaster` : `ip link delete ${upper}`;
  return { words, hint, weight: 'forceable' };
}

function isUp(root: Root, name: string): boolean {
  const flags = Number(root.read(`/sys/class/net/${name}/flags`));
  return (flags & IFF_UP) !== 0 || root.read(`/sys/class/net/${name}/operstate`) === 'up';
}

function downHint(name: string): string {
  return `ip link set ${name} down`;
}
