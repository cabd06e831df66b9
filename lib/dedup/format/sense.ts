// What superblocks and records of volumes can say (docs/format.md): what is beyond that no pool
// has, whatever the page's checksum. Who opens a pool and who checks it go by the same lists.

import { Group, Node, Page, PBN_END, Place, ROOT_SLOT_WORDS, SetMax, Span } from './layout.js';
import type { SuperblockFacts } from './superblock.js';

/** The largest volume, and the highest level of a map. */
export const VOLUME_BYTES_MAX = 64 * 2 ** 40;
export const MAP_LEVEL_MAX = 3;
const CATALOGUE_LEVEL_MAX = 4;
const VOLUMES_MAX = 2 ** 24;
export const SAMPLING_MAX = 2 ** 16;
/** 0 shared, 1 random. */
const POLICY_MAX = 1;
/** Memory of an index that a pool is to have, in bytes. */
export const INDEX_BYTES_MIN = 2 ** 20;
export const INDEX_BYTES_MAX = 2 ** 31;

/** What cannot be of what a superblock says, a sentence each. */
export function superblockFaults(facts: SuperblockFacts): string[] {
  const { pages, roots, journalPage, journalPages, journalAt, firstGroup, highWater } = facts;
  const { thn, sampling, catalogueLevel, volumes, llrrmThreshold, llrrmPolicy, indexPages } = facts;
  const endGroup = Math.floor(pages / Group.pages);
  const places: [boolean, string][] = [
    [pages <= PBN_END, `${pages} pages are more than a pool can have`],
    [pages % Group.pages === 0, `${pages} pages are not whole groups`],
    [
      roots >= 1 && roots <= ROOT_SLOT_WORDS * 32 && endGroup <= roots * Span.perRoot * Span.groups,
      `${roots} root pages cannot be for ${endGroup} groups`,
    ],
    [
      journalPage === Place.roots + 2 * roots &&
        journalPage + journalPages === firstGroup * Group.pages,
      `the journal, ${journalPages} pages from ${journalPage} on, does not lie between root ` +
        `pages and groups`,
    ],
    [
      journalAt < journalPages,
      `the next entry's page, ${journalAt}, is beyond the journal's ${journalPages}`,
    ],
    [
      firstGroup <= highWater && highWater <= endGroup,
      `the high-water mark, ${highWater}, is not from ${firstGroup} to ${endGroup}`,
    ],
    [catalogueLevel <= CATALOGUE_LEVEL_MAX, `the catalogue has level ${catalogueLevel}`],
    [volumes <= VOLUMES_MAX, `${volumes} volumes are more than a pool can have`],
    [thn <= SetMax.blocks, `a THN of ${thn} cannot be`],
    [
      sampling >= 1 && sampling <= SAMPLING_MAX && Number.isInteger(Math.log2(sampling)),
      `a sampling rate of ${sampling} cannot be`,
    ],
    [llrrmThreshold >= 1, `a threshold of ${llrrmThreshold} references cannot be`],
    [llrrmPolicy <= POLICY_MAX, `low-latency memory has policy ${llrrmPolicy}, which is none`],
    [indexPages * Page.bytes <= INDEX_BYTES_MAX, `an index of ${indexPages} pages cannot be`],
  ];
  return places.filter(([isGood]) => !isGood).map(([, fault]) => fault);
}

/** The least level of a root that spans so many blocks. */
export function leastLevel(blocks: number): number {
  let level = 0;
  while (Node.entries ** (level + 1) < blocks) level++;
  return level;
}

/** Whether a volume can have so many bytes. */
export function isVolumeSize(bytes: number): boolean {
  return bytes >= Page.bytes && bytes <= VOLUME_BYTES_MAX && bytes % Page.bytes === 0;
}
