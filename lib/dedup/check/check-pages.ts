// Pages of a pool as a check reads them: each with its magic, checksum, place and own word, and no
// newer than the checkpoint (docs/format.md, "Header of a page").

import { PenstockError } from '../../errors.js';
import type { BlockDevice } from '../../hpdi/index.js';
import type { DmaBuffer } from '../../memory/index.js';
import type { FindingKind, Findings } from './check-report.js';
import { Head, Magic, Page } from '../format/layout.js';
import { checksum } from '../format/superblock.js';

export interface Expected {
  readonly kind: FindingKind;
  /** Its name in findings. */
  readonly name: string;
  readonly magic: Magic;
  /** Word 7. */
  readonly own: number;
}

/** Errors of the device as a whole: nothing more can be read. */
const FATAL = new Set(['DEVICE_CLOSED', 'DEVICE_GONE']);

export class PageReader {
  readonly device: BlockDevice;
  /** Pages that were read and are what they should be. */
  pages = 0;
  private readonly findings: Findings;
  private readonly seed: number;
  private readonly checkpoint: number;
  private readonly perPage: number;
  private readonly signal: AbortSignal | undefined;

  /** What `signal` ends rejects with its reason, at the next page. */
  constructor(
    device: BlockDevice,
    findings: Findings,
    seed: number,
    checkpoint: number,
    signal?: AbortSignal,
  ) {
    this.signal = signal;
    this.device = device;
    this.findings = findings;
    this.seed = seed;
    this.checkpoint = checkpoint;
    this.perPage = Page.bytes / device.info.blockSize;
  }

  /** Reads what fits in `to`; null, or why it cannot be read. */
  async raw(pbn: number, to: DmaBuffer): Promise<string | null> {
    this.signal?.throwIfAborted();
    try {
      await this.device.read(pbn * this.perPage, to);
      return null;
    } catch (error) {
      if (!(error instanceof PenstockError) || FATAL.has(error.code)) throw error;
      return `cannot be read (${error.code})`;
    }
  }

  /** Reads a page; false, and a finding, when it is not the one that is expected. */
  async read(pbn: number, expected: Expected, to: DmaBuffer): Promise<boolean> {
    const fault = (await this.raw(pbn, to)) ?? this.faultOf(to.u32, pbn, expected);
    if (fault === null) {
      this.pages++;
      return true;
    }
    this.findings.add(expected.kind, expected.name, pbn, `the ${expected.name} ${fault}`);
    return false;
  }

  private faultOf(words: Uint32Array, pbn: number, expected: Expected): string | null {
    if (words[Head.magic] !== expected.magic) return 'has not the magic of its kind';
    if (words[Head.crc] !== checksum(words, this.seed)) return 'has a wrong checksum';
    const own = pairOf(words, Head.pbnLo);
    if (own !== pbn) return `says that its place is ${own}`;
    if (words[Head.own] !== expected.own) {
      return `says ${words[Head.own]} in word 7, not ${expected.own}`;
    }
    if (words[Head.checkpoint]! > this.checkpoint) {
      return `is of checkpoint ${words[Head.checkpoint]}, after the superblock's`;
    }
    return null;
  }
}

/** The pair of words at `at` as a number. */
export function pairOf(words: Uint32Array, at: number): number {
  return words[at]! + words[at + 1]! * 2 ** 32;
}
