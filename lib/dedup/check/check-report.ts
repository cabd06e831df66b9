// What a check of a pool found, as it is told (`penstock.pool-check/1`).

/**
 * The kind of a page (it is not what it should be), or what does not agree: `entry` (it names what
 * is no block or node), `references` (counts), `used` (summaries), `span` (root words), `volume`
 * (a record of the catalogue), `journal`; with `data` also `block` (it cannot be read) and
 * `fingerprint differs`.
 */
export type FindingKind =
  | 'superblock'
  | 'root'
  | 'summary'
  | 'count'
  | 'fingerprint'
  | 'node'
  | 'catalogue'
  | 'entry'
  | 'references'
  | 'used'
  | 'span'
  | 'volume'
  | 'journal'
  | 'block'
  | 'fingerprint differs';

export interface Finding {
  readonly kind: FindingKind;
  /** The page that is wrong, or says what is wrong. */
  readonly where: { readonly page: string; readonly pbn: number };
  readonly message: string;
}

export interface CheckReport {
  readonly schema: 'penstock.pool-check/1';
  /** Nothing was found. */
  readonly clean: boolean;
  /** The first 100 of `findingsTotal`. */
  readonly findings: readonly Finding[];
  readonly findingsTotal: number;
  /** Pages of metadata that were read, of them nodes and pages of the catalogue. */
  readonly pages: number;
  readonly nodes: number;
  /** Blocks of data in use, by the counts. */
  readonly blocks: number;
  readonly volumes: number;
  /**
   * Entries of the journal after the checkpoint: not 0 when the pool was not closed in order. What
   * is checked is the checkpoint; opening the pool applies them.
   */
  readonly journalEntries: number;
}

const FINDINGS_MAX = 100;

export class Findings {
  readonly list: Finding[] = [];
  total = 0;

  add(kind: FindingKind, page: string, pbn: number, message: string): void {
    this.total++;
    if (this.list.length < FINDINGS_MAX) this.list.push({ kind, where: { page, pbn }, message });
  }
}
