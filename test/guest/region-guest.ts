// A guest that is a domain by regions: every domain's region as a device, its own writable.

import { ivshmem } from './devices.js';
import { startGuest, type Guest } from './guest.js';

/** A region's place on the bus says whose it is. */
export function placeOf(domain: number): string {
  return `${(0x10 + domain).toString(16)}.0`;
}

export interface RegionGuest {
  readonly name: string;
  readonly domain: number;
  /** A program of dist/test/guest/programs, and what it is told before the places of regions. */
  readonly program: readonly [string, ...string[]];
  /** By owner: a descriptor of its region, writable for this domain's own. */
  readonly descriptors: ReadonlyMap<number, number>;
  /** Of each region. */
  readonly bytes: number;
  readonly timeoutMs: number;
}

/** The program gets `0000:00:PLACE=OWNER` for each region as its last arguments. */
export function startRegionGuest(options: RegionGuest): Promise<Guest> {
  const { name, domain, descriptors, bytes, timeoutMs } = options;
  const [program, ...words] = options.program;
  const owners = [...descriptors.keys()];
  const places = owners.map((owner) => `0000:00:${placeOf(owner)}=${owner}`);
  return startGuest({
    name,
    command: ['node', `dist/test/guest/programs/${program}.js`, ...words, ...places],
    descriptors: [...descriptors.values()],
    devices: owners.flatMap((owner, index) =>
      ivshmem({
        id: `domain${owner}`,
        descriptor: 3 + index,
        bytes,
        readOnly: owner !== domain,
        addr: placeOf(owner),
      }),
    ),
    timeoutMs,
  });
}
