// A twin's function as another thread of the process sees it, from what `pci.share()` gave. The
// twin itself stays where it is, and finds by looking what is stored to its registers.

import { makeDma } from './dma.js';
import { TwinFunction } from './function.js';
import { Violations } from './memory.js';
import { Shared, type SharedParts } from './shared.js';

export interface TwinShare {
  readonly transport: 'twin';
  readonly parts: SharedParts;
  /** The DMA domain; -1: all live segments. */
  readonly domain: number;
}

export function attachTwin(share: TwinShare): TwinFunction {
  const { parts, domain } = share;
  const dma = domain < 0 ? makeDma('live') : makeDma('reached', domain);
  return new TwinFunction(new Shared(parts), dma, new Violations(), null, false);
}
