// Log pages (NVMe Base 2.0, section 5.16.1) and asynchronous events (5.2).
//
// An event of a type is told once, with a request that the driver left for it, and not again until
// the log page it names was read.

import { Lid } from '../../../lib/drivers/nvme/commands.js';
import type { ResolvedOptions } from './options.js';

const SMART_BYTES = 512;
const ERROR_ENTRY_BYTES = 64;
const CHANGED_MAX = 1024;

export interface ErrorEntry {
  sqid: number;
  cid: number;
  /** Status field with its phase bit, as in the completion. */
  status: number;
  lba: number;
  nsid: number;
}

export interface TwinEvent {
  readonly type: number;
  readonly info: number;
  readonly page: number;
}

export class Logs {
  readonly changed = new Set<number>();
  readonly errors: ErrorEntry[] = [];
  /** Fields of the SMART page that tests set. */
  readonly smart = { criticalWarning: 0, temperatureKelvin: 310, spare: 100, percentageUsed: 3 };
  errorCount = 0;
  reads = 0;
  writes = 0;
  private readonly pending: TwinEvent[] = [];
  /** Types told and not acknowledged, by the log page that acknowledges. */
  private readonly masked = new Map<number, number>();
  private readonly options: ResolvedOptions;

  constructor(options: ResolvedOptions) {
    this.options = options;
  }

  /** The whole page, or null when there is none of this identifier. */
  page(lid: number): Uint8Array | null {
    switch (lid) {
      case Lid.SUPPORTED_PAGES:
        return this.supportedPage();
      case Lid.ERROR_INFORMATION:
        return this.errorPage();
      case Lid.SMART:
        return this.smartPage();
      case Lid.FIRMWARE_SLOT:
        return this.firmwarePage();
      case Lid.CHANGED_NAMESPACES:
        return this.changedPage();
      case Lid.COMMANDS_EFFECTS:
        return this.effectsPage();
      default:
        return null;
    }
  }

  /** The page was read, and the driver did not ask to retain its event. */
  acknowledge(lid: number): void {
    if (lid === Lid.CHANGED_NAMESPACES) this.changed.clear();
    for (const [type, page] of this.masked) if (page === lid) this.masked.delete(type);
  }

  raise(event: TwinEvent): void {
    const same = (each: TwinEvent): boolean => each.type === event.type && each.info === event.info;
    if (!this.pending.some(same)) this.pending.push(event);
  }

  get hasEvents(): boolean {
    return this.pending.length > 0;
  }

  /** The next event that may be told now; it counts as told. */
  takeEvent(): TwinEvent | null {
    const at = this.pending.findIndex((event) => !this.masked.has(event.type));
    if (at < 0) return null;
    const [event] = this.pending.splice(at, 1);
    this.masked.set(event!.type, event!.page);
    return event!;
  }

  recordError(entry: ErrorEntry): void {
    this.errorCount++;
    this.errors.unshift(entry);
    this.errors.length = Math.min(this.errors.length, this.options.elpe + 1);
  }

  /** A controller reset forgets events, not logs. */
  reset(): void {
    this.pending.length = 0;
    this.masked.clear();
  }

  private supportedPage(): Uint8Array {
    const page = Buffer.alloc(1024);
    for (const lid of [0, 1, 2, 3, 4, 5]) page.writeUInt32LE(1, lid * 4);
    return page;
  }

  private errorPage(): Uint8Array {
    const page = Buffer.alloc((this.options.elpe + 1) * ERROR_ENTRY_BYTES);
    for (const [i, entry] of this.errors.entries()) {
      const at = i * ERROR_ENTRY_BYTES;
      page.writeBigUInt64LE(BigInt(this.errorCount - i), at);
      page.writeUInt16LE(entry.sqid, at + 8);
      page.writeUInt16LE(entry.cid, at + 10);
      page.writeUInt16LE(entry.status, at + 12);
      page.writeUInt16LE(0xffff, at + 14);
      page.writeBigUInt64LE(BigInt(entry.lba), at + 16);
      page.writeUInt32LE(entry.nsid, at + 24);
    }
    return page;
  }

  private smartPage(): Uint8Array {
    const page = Buffer.alloc(SMART_BYTES);
    const { smart } = this;
    page[0] = smart.criticalWarning;
    page.writeUInt16LE(smart.temperatureKelvin, 1);
    page[3] = smart.spare;
    page[4] = 10; // spare threshold
    page[5] = smart.percentageUsed;
    page.writeBigUInt64LE(BigInt(this.reads), 64);
    page.writeBigUInt64LE(BigInt(this.writes), 80);
    page.writeBigUInt64LE(BigInt(this.errorCount), 176);
    page.writeUInt16LE(smart.temperatureKelvin, 200);
    return page;
  }

  private firmwarePage(): Uint8Array {
    const page = Buffer.alloc(512);
    page[0] = 1;
    page.write(this.options.firmware.padEnd(8), 8, 'latin1');
    return page;
  }

  /** More than the page holds is said by all ones in its first entry. */
  private changedPage(): Uint8Array {
    const page = Buffer.alloc(4096);
    const ids = [...this.changed].sort((a, b) => a - b);
    if (ids.length > CHANGED_MAX) page.writeUInt32LE(0xffffffff, 0);
    else for (const [i, id] of ids.entries()) page.writeUInt32LE(id, i * 4);
    return page;
  }

  private effectsPage(): Uint8Array {
    const page = Buffer.alloc(4096);
    for (const op of [0, 1, 2, 4, 5, 6, 8, 9, 10, 12]) page.writeUInt32LE(1, op * 4);
    for (const op of [0, 1, 2, 5, 8, 9, 12, 25]) page.writeUInt32LE(1, 1024 + op * 4);
    return page;
  }
}
