// How a pool stands to its low-latency device: the one that its superblock names, or another one
// for this time; what becomes of it when the pool is closed.
//
// A pool whose device is missing, or holds something else, opens without it and says so.

import { resolve } from 'node:path';
import { PenstockError } from '../../errors.js';
import type { BlockDevice } from '../../hpdi/index.js';
import { formatUri, parseUri } from '../../uri.js';
import { claim } from '../claim.js';
import { Super } from '../format/layout.js';
import type { Engine } from '../engine.js';
import { Llrrm, type LlrrmPolicy, warnDegraded } from './llrrm.js';
import { formatLlrrm, loadTable, newUuid, saveTable, takeLlrrm } from './llrrm-store.js';
import type { SuperblockFacts } from '../format/superblock.js';

/** Maps name no blocks from here on. */
const PBN_END = 2 ** 40;

export interface LlrrmOptions {
  /** The low-latency device for this time, which stays the caller's; null: none. */
  llrrm?: BlockDevice | null;
  /** Opens the one that the superblock names, by its URI; it is closed with the pool. */
  openLlrrm?: (uri: string) => Promise<BlockDevice>;
}

/** none: the pool has none. off: not used this time. degraded: it has one, and cannot use it. */
export type LlrrmState = 'none' | 'off' | 'on' | 'degraded';

export class LlrrmSession {
  state: LlrrmState = 'none';
  /** Why it is degraded. */
  why = '';
  uri = '';
  llrrm: Llrrm | null = null;
  private readonly engine: Engine;
  private readonly facts: SuperblockFacts;
  private device: BlockDevice | null = null;
  private isOwn = false;
  private save: ((stamp: number) => Promise<void>) | null = null;

  constructor(engine: Engine, facts: SuperblockFacts) {
    this.engine = engine;
    this.facts = facts;
  }

  /** Uses what the options or the superblock say. Rejects only for a device that was given. */
  async open(options: LlrrmOptions): Promise<void> {
    const { facts } = this;
    const { llrrm, openLlrrm } = options;
    const stamp = facts.llrrmStamp;
    // Whatever happens from here on, what the device held at the last close may be out of date.
    facts.llrrmStamp = 0;
    const hasOne = facts.llrrmUuid.some((word) => word !== 0);
    if (llrrm !== null && llrrm !== undefined) {
      // Copies on a device that the pool does not know yet count for this time.
      const uuid = hasOne ? facts.llrrmUuid : newUuid();
      await this.use(llrrm, { pool: facts.uuid, uuid, stamp });
      return;
    }
    if (!hasOne) return;
    this.uri = facts.llrrmUri;
    this.state = 'off';
    if (llrrm === null) return;
    try {
      if (openLlrrm === undefined) throw new Error('nothing was given that opens it');
      this.device = await openLlrrm(facts.llrrmUri);
      this.isOwn = true;
      await this.use(this.device, { pool: facts.uuid, uuid: facts.llrrmUuid, stamp });
    } catch (error) {
      await this.close();
      this.state = 'degraded';
      this.why = error instanceof Error ? error.message : String(error);
      warnDegraded(this.uri, this.why);
    }
  }

  /** Makes a device the pool's for good, from the next opening on; null: it has none. */
  static async record(facts: SuperblockFacts, device: BlockDevice | null): Promise<void> {
    const uri = device === null ? '' : lastingUri(device.uri);
    if (Buffer.byteLength(uri) > Super.llrrmUriBytes) {
      throw new PenstockError('BAD_URI', 'the URI of the fast memory is too long to be kept', {
        hint: `use one of at most ${Super.llrrmUriBytes} bytes`,
        exitCode: 2,
      });
    }
    const uuid = device === null ? new Uint32Array(4) : newUuid();
    if (device !== null) await claim(device);
    if (device !== null) await formatLlrrm(device, { pool: facts.uuid, uuid, stamp: 0 });
    facts.llrrmUuid = uuid;
    facts.llrrmUri = uri;
    facts.llrrmStamp = 0;
  }

  /**
   * Nothing is copied any more, and what was stays for the next opening: what it takes is in the
   * superblock that is written next.
   */
  async settle(): Promise<void> {
    const { llrrm, save, facts } = this;
    if (llrrm?.failed !== null || save === null) return;
    const stamp = newUuid()[0]! | 1;
    try {
      await save(stamp);
      facts.llrrmStamp = stamp >>> 0;
    } catch (error) {
      // It is a cache: the next opening begins with an empty one.
      this.why = error instanceof Error ? error.message : String(error);
    }
  }

  async close(): Promise<void> {
    const { llrrm, device } = this;
    this.llrrm = null;
    this.device = null;
    try {
      await llrrm?.close();
    } finally {
      if (this.isOwn) await device?.close();
    }
  }

  private async use(
    device: BlockDevice,
    owner: { pool: Uint32Array; uuid: Uint32Array; stamp: number },
  ): Promise<void> {
    const { engine, facts } = this;
    const { space, trees, io, catalogue, checks } = engine.parts;
    await claim(device);
    const place = await takeLlrrm(device, owner);
    const options = {
      threshold: facts.llrrmThreshold,
      policy: facts.llrrmPolicy as LlrrmPolicy,
    };
    const parts = { space, trees, io, checks, volumes: catalogue.volumes };
    const llrrm = new Llrrm(device, place, options, parts, engine);
    this.llrrm = llrrm;
    this.device = device;
    if (place.stamp !== 0) {
      const isBlock = (pbn: number): boolean =>
        pbn < PBN_END && space.holdsBlocks(pbn | 0, (pbn / 2 ** 32) | 0, 1);
      await loadTable(device, place, facts.uuid, llrrm.table, isBlock);
    }
    if (device.info.durable) {
      this.save = (stamp) => saveTable(device, place, { ...owner, stamp }, llrrm.table);
    }
    engine.attach(llrrm);
    this.uri = device.uri;
    this.state = 'on';
  }
}

/** A URI that means the same from any folder, and makes no file. */
function lastingUri(uri: string): string {
  const parts = parseUri(uri);
  if (parts.scheme !== 'file') return uri;
  const query = new Map(parts.query);
  query.delete('create');
  return formatUri({ ...parts, path: resolve(parts.path), query });
}
