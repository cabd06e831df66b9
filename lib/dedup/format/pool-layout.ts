// Where a pool's parts lie on a device of some size (docs/format.md, "Places").

import { PenstockError } from '../../errors.js';
import { Group, Page, Place, Span } from './layout.js';

export interface PoolLayout {
  /** Pages of whole groups. */
  readonly pages: number;
  readonly roots: number;
  readonly journalPage: number;
  readonly journalPages: number;
  readonly firstGroup: number;
  readonly endGroup: number;
}

/** Root pages that a new pool has place for: it can grow to about so many TiB at least. */
const ROOTS_MIN = 80;
const JOURNAL_PAGES_MIN = 2 ** 10;
const JOURNAL_PAGES_MAX = 2 ** 15;
/** Part of the device that the journal may take. */
const JOURNAL_PART = 64;
const GROUPS_MIN = 4;

/** Throws POOL_TOO_SMALL. */
export function layoutOf(bytes: number): PoolLayout {
  const endGroup = Math.floor(bytes / (Group.pages * Page.bytes));
  const spans = Math.ceil(endGroup / Span.groups);
  const roots = Math.max(ROOTS_MIN, Math.ceil(spans / Span.perRoot) * 2);
  const journalPage = Place.roots + 2 * roots;
  const part = Math.floor((endGroup * Group.pages) / JOURNAL_PART);
  const wanted = Math.min(JOURNAL_PAGES_MAX, Math.max(JOURNAL_PAGES_MIN, part));
  const firstGroup = Math.ceil((journalPage + wanted) / Group.pages);
  if (endGroup - firstGroup < GROUPS_MIN) {
    const least = (firstGroup + GROUPS_MIN) * Group.pages * Page.bytes;
    throw new PenstockError('POOL_TOO_SMALL', `a pool cannot be made on ${bytes} bytes`, {
      hint: `give it a device of at least ${least / 2 ** 20} MiB`,
      exitCode: 2,
    });
  }
  return {
    pages: endGroup * Group.pages,
    roots,
    journalPage,
    journalPages: firstGroup * Group.pages - journalPage,
    firstGroup,
    endGroup,
  };
}
