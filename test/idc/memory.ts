// Regions of tests: plain memory in the place of what domains share, and lives in them.

import { Mailbox, OwnRegion, PeerRegion, type RegionMemory } from '../../lib/idc/index.js';

export const REGION_BYTES = 4 * 2 ** 20;

export function makeMemory(domain: number, bytes = REGION_BYTES): RegionMemory {
  const buffer = new SharedArrayBuffer(bytes);
  const [u8, u32] = [new Uint8Array(buffer), new Uint32Array(buffer)];
  return { address: domain * 2 ** 36, bytes, u8, u32 };
}

export interface Side {
  own: OwnRegion;
  box: Mailbox;
}

/** Two lives and their mailbox. */
export function makePair(domains: [number, number] = [1, 2]): [Side, Side] {
  const owns = domains.map(
    (domain) => new OwnRegion(makeMemory(domain), { name: `domain ${domain}` }),
  ) as [OwnRegion, OwnRegion];
  const sides = owns.map((own, i) => ({
    own,
    box: new Mailbox(own, PeerRegion.read(owns[1 - i]!.memory)!),
  }));
  return sides as [Side, Side];
}
