// The journal as a check and a repair see it: what follows the checkpoint, and whether opening the
// pool can apply it (docs/format.md, "Journal").

import { PenstockError } from '../../errors.js';
import type { BlockDevice } from '../../hpdi/index.js';
import type { MapsCheck } from './check-maps.js';
import { pairOf } from './check-pages.js';
import { JournalReader, recordsOf } from '../durable/journal-reader.js';
import { Group, Head, Page, Rec, RecKind, Volume, VolumeState } from '../format/layout.js';
import type { SuperblockFacts } from '../format/superblock.js';

export interface JournalAfter {
  /** Entries that follow the checkpoint. */
  entries: number;
  /** Extents that their records name blocks in. */
  readonly extents: Set<number>;
  /** Why they cannot be applied, and at which page the first that cannot begins. */
  fault: { readonly pbn: number; readonly text: string } | null;
}

export async function readJournal(
  device: BlockDevice,
  facts: SuperblockFacts,
  maps: MapsCheck,
): Promise<JournalAfter> {
  const { journalPage: page, journalPages: pages, epoch } = facts;
  const place = { page, pages, seed: facts.uuid[0]!, epoch };
  const journal = new JournalReader(device, place, facts);
  const seen: JournalAfter = { entries: 0, extents: new Set(), fault: null };
  let pbn = page;
  const fail = (text: string): void => {
    seen.fault ??= { pbn, text };
  };
  try {
    await journal.scan(pages);
    seen.entries = journal.entries.length;
    for (const entry of journal.entries) {
      pbn = page + entry.page;
      const words = await journal.load(entry);
      for (const at of recordsOf(words)) {
        const fault = faultOf(words, at, facts, maps);
        if (fault !== null) fail(`a record of entry ${entry.seq} ${fault}`);
        if (!isWrite(words, at)) continue;
        seen.extents.add(Math.floor(pairOf(words, at + Rec.pbnLo) / Group.extentPages));
      }
    }
    pbn = page + journal.at;
    if (journal.lost) fail(journal.loss);
  } catch (error) {
    if (!(error instanceof PenstockError)) throw error;
    if (seen.entries === 0) pbn = page + journal.at;
    fail(error.message);
  }
  seen.entries = journal.entries.length;
  return seen;
}

/** Why a record cannot be applied; null: it can. */
function faultOf(
  words: Uint32Array,
  at: number,
  facts: SuperblockFacts,
  maps: MapsCheck,
): string | null {
  const named = pairOf(words, at + Rec.pbnLo);
  const count = isWrite(words, at) ? words[at]! >>> 8 : named;
  if (isWrite(words, at)) {
    const group = Math.floor(named / Group.pages);
    const page = named % Group.extentPages;
    const endGroup = Math.floor(facts.pages / Group.pages);
    const isThere = group >= facts.firstGroup && group < endGroup;
    if (!isThere || page < Group.metaPages || page + count > Group.extentPages) {
      return `names ${count} blocks from ${named} on, which are none`;
    }
  }
  const volume = words[at + Rec.volume]!;
  const blocks = blocksOf(maps, volume, words[at + Rec.serial]!);
  const end = pairOf(words, at + Rec.lbnLo) + count;
  if (blocks === null || end <= blocks) return null;
  return `ends at block ${end} of volume ${volume}, which has ${blocks}`;
}

/** Blocks of a volume; null for one that there is no more, whose records are left out. */
function blocksOf(maps: MapsCheck, index: number, serial: number): number | null {
  const page = maps.records.get(Math.floor(index / Volume.perPage));
  const at = Head.words + (index % Volume.perPage) * Volume.words;
  const words = page?.words.subarray(at, at + Volume.words);
  if (words === undefined || words[Volume.serial] !== serial) return null;
  if (words[Volume.state] === VolumeState.none) return null;
  return pairOf(words, Volume.bytesLo) / Page.bytes;
}

function isWrite(words: Uint32Array, at: number): boolean {
  return (words[at]! & 0xff) === RecKind.write;
}
