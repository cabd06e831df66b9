// What the environment that opened a vfio-user function and those that attach to it have in common.

import { PenstockError } from '../errors.js';
import { MappedBar, vectorControlIn, type BarShare } from './bar.js';
import { readMsixTable, type MsixTable, type PciConfig } from './config-space.js';
import type { DomainSpace } from './dma-space.js';
import type { Bar, PciIdentity } from './function.js';
import { RegionMessages } from './vfio-user-access.js';
import type { VfioUserClient } from './vfio-user-client.js';

/** What `attachVfioUser` needs, by structured clone. */
export interface VfioUserShare {
  readonly transport: 'vfio-user';
  readonly address: string;
  readonly identity: PciIdentity;
  readonly socket: number;
  readonly words: Int32Array;
  readonly timeoutMs: number;
  readonly configBytes: number;
  readonly bars: readonly BarShare[];
  readonly domain: number;
  readonly vectors: number;
  readonly eventfds: readonly number[];
  /** Of Shared.interrupts, when the eventfds were these. */
  readonly interrupts: number;
  readonly home: { readonly index: number; readonly serial: number };
}

export interface FunctionParts {
  readonly client: VfioUserClient;
  readonly identity: PciIdentity;
  readonly config: PciConfig;
  readonly dma: DomainSpace;
  readonly vectors: number;
  readonly bars: readonly BarShare[];
}

export abstract class VfioUserFunction {
  readonly address: string;
  readonly transport = 'vfio-user';
  readonly memoryKind = 'device';
  readonly identity: PciIdentity;
  readonly config: PciConfig;
  readonly dma: DomainSpace;
  readonly vectors: number;
  onRemovalRequested: (() => void) | null = null;
  protected readonly client: VfioUserClient;
  /** Made at once: what is mapped may go at any time. */
  private readonly bars = new Map<number, MappedBar>();
  private table: MsixTable | null | undefined;

  protected constructor(parts: FunctionParts) {
    this.address = parts.client.address;
    this.identity = parts.identity;
    this.config = parts.config;
    this.dma = parts.dma;
    this.vectors = parts.vectors;
    this.client = parts.client;
    for (const share of parts.bars) {
      const messages = new RegionMessages(this.client, share.index);
      this.bars.set(share.index, new MappedBar(share, messages, () => this.suspect()));
    }
  }

  abstract get gone(): boolean;

  bar(index: number): Bar {
    const bar = this.bars.get(index);
    if (bar !== undefined) return bar;
    throw new PenstockError('NO_SUCH_BAR', `${this.address} has no BAR ${index}`, {
      hint: `it has ${[...this.bars.keys()].join(', ') || 'none'}`,
    });
  }

  vectorControl(vector: number): { readonly words: Uint32Array; readonly index: number } | null {
    const table = this.msixTable();
    return vectorControlIn(table === null ? undefined : this.bars.get(table.bar), table, vector);
  }

  /** A register read 0 or all ones: has the server gone? */
  protected suspect(): void {
    this.client.listen();
  }

  protected msixTable(): MsixTable | null {
    if (this.table === undefined) this.table = readMsixTable(this.config);
    return this.table;
  }
}

/** Functions to call in reverse order, for what was opened. */
export class Closers {
  private readonly list: (() => void)[] = [];

  add(close: () => void): void {
    this.list.push(close);
  }

  run(): void {
    for (let close = this.list.pop(); close !== undefined; close = this.list.pop()) close();
  }
}
