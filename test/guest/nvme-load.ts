// A verified load: every slot owns blocks of its own, writes them, reads them back and compares,
// for as long as it is let. Made for tests in which the device fails, is reset, or goes, meanwhile.
//
// What it counts as wrong: blocks that hold neither what was written last with success, nor what a
// later write that failed may have left; a buffer that changes when no operation has it.

import type { BlockDevice, Queue } from '../../lib/hpdi/index.js';
import { Op, Status } from '../../lib/hpdi/index.js';
import type { DmaBuffer } from '../../lib/memory/index.js';
import { completionAt, put } from '../support/requests.js';

export interface LoadOptions {
  depth: number;
  /** Blocks of each slot. */
  blocks: number;
  firstLba: number;
  /** Differs between loads, so that blocks of one are not taken for those of another. */
  seed: number;
  /** Ends by itself after as many. */
  operations?: number;
}

export interface LoadResult {
  reads: number;
  writes: number;
  wrong: number;
  /** The first that was wrong. */
  first?: { lba: number; version: number; tried: number; uncertain: boolean };
  /** Buffers that changed while no operation had them. */
  touched: number;
  /** Operations by the code that they completed with. */
  codes: Record<string, number>;
  /** What `explain` says of the first of each code. */
  explained: Record<string, { message: string; hint: string }>;
}

const STUCK_MS = 60_000;
const FREE_WORD = 0xdddddddd;

interface Place {
  lba: number;
  buffer: DmaBuffer;
  writing: boolean;
  /** Version of the last write that succeeded; 0: none. */
  version: number;
  /** Version of the last write; writes since `version` may have been done in part, if uncertain. */
  tried: number;
  uncertain: boolean;
}

export class VerifiedLoad {
  readonly result: LoadResult = {
    reads: 0,
    writes: 0,
    wrong: 0,
    touched: 0,
    codes: {},
    explained: {},
  };
  private readonly device: BlockDevice;
  private readonly options: LoadOptions;
  private readonly queue: Queue;
  private readonly places: Place[];
  private readonly idle: number[];
  private stopping = false;
  private gone = false;

  constructor(device: BlockDevice, options: LoadOptions) {
    this.device = device;
    this.options = options;
    this.queue = device.queue({ depth: options.depth });
    const bytes = options.blocks * device.info.blockSize;
    this.places = Array.from({ length: options.depth }, (_, slot) => {
      const buffer = device.memory.alloc(bytes);
      buffer.u32.fill(FREE_WORD);
      const lba = options.firstLba + slot * options.blocks;
      return { lba, buffer, writing: false, version: 0, tried: 0, uncertain: false };
    });
    this.idle = this.places.map((_, slot) => slot);
  }

  get operations(): number {
    return this.result.reads + this.result.writes;
  }

  private get goesOn(): boolean {
    const { operations = Infinity } = this.options;
    return !this.stopping && !this.gone && this.operations < operations;
  }

  stop(): void {
    this.stopping = true;
  }

  /** Runs until it is stopped or the device is gone; nothing is in flight after it. */
  async run(): Promise<LoadResult> {
    let inFlight = 0;
    let movedAt = performance.now();
    while (inFlight > 0 || this.goesOn) {
      const go = this.goesOn;
      while (go && this.idle.length > 0 && this.issue(this.idle.at(-1)!)) {
        this.idle.pop();
        inFlight++;
      }
      this.queue.submit();
      const count = await this.queue.wait(1000);
      for (let i = 0; i < count; i++) this.take(completionAt(this.queue, i));
      inFlight -= count;
      const now = performance.now();
      if (count > 0) movedAt = now;
      else if (now - movedAt > STUCK_MS) throw new Error(`${inFlight} operations do not end`);
    }
    return this.result;
  }

  /** Reads every slot once more by a queue of its own; what it finds goes into the result. */
  async verify(device = this.device): Promise<LoadResult> {
    for (const place of this.places) {
      await device.read(place.lba, place.buffer);
      this.compare(place);
      place.buffer.u32.fill(FREE_WORD);
    }
    return this.result;
  }

  /** Gives back queue and buffers, which are looked at one last time. */
  async close(): Promise<LoadResult> {
    await this.queue.close();
    for (const { buffer } of this.places) {
      this.checkUntouched(buffer);
      buffer.free();
    }
    return this.result;
  }

  private issue(slot: number): boolean {
    const place = this.places[slot]!;
    const { buffer, lba, writing } = place;
    const request = { tag: slot, blocks: this.options.blocks, lba, address: buffer.address };
    if (!put(this.queue, { op: writing ? Op.READ : Op.WRITE, ...request })) return false;
    this.checkUntouched(buffer);
    if (!writing) this.fill(buffer.u32, lba, ++place.tried);
    place.writing = !writing;
    return true;
  }

  private take({ tag, status, code }: { tag: number; status: number; code: number }): void {
    const place = this.places[tag]!;
    const { result } = this;
    const explained = this.device.explain(status);
    result.codes[explained.code] = (result.codes[explained.code] ?? 0) + 1;
    if (code !== Status.OK) {
      result.explained[explained.code] ??= { message: explained.message, hint: explained.hint };
    }
    if (code === Status.DEVICE_GONE) this.gone = true;
    if (place.writing) {
      result.writes++;
      place.uncertain = code !== Status.OK;
      if (!place.uncertain) place.version = place.tried;
    } else {
      result.reads++;
      if (code === Status.OK) this.compare(place);
    }
    place.buffer.u32.fill(FREE_WORD);
    this.idle.unshift(tag);
  }

  private compare(place: Place): void {
    const { buffer, lba, version, tried, uncertain } = place;
    if (uncertain ? this.isMixed(place) : this.holds(buffer.u32, lba, version)) return;
    this.result.wrong++;
    this.result.first ??= { lba, version, tried, uncertain };
  }

  /** Writes that failed may have left some of their blocks. */
  private isMixed({ buffer, lba, version, tried }: Place): boolean {
    if (version === 0) return true; // what was there before nobody knows
    const words = this.device.info.blockSize / 4;
    const wholes = Array.from({ length: tried - version + 1 }, (_, i) => {
      const whole = new Uint32Array(buffer.u32.length);
      this.fill(whole, lba, version + i);
      return whole;
    });
    for (let at = 0; at < buffer.u32.length; at += words) {
      const got = buffer.u32.subarray(at, at + words);
      const isOneOf = wholes.some((whole) => got.every((word, i) => word === whole[at + i]));
      if (!isOneOf) return false;
    }
    return true;
  }

  private fill(words: Uint32Array, lba: number, version: number): void {
    let state = this.stateOf(lba, version);
    for (let i = 0; i < words.length; i++) words[i] = state = (state + 0x9e3779b9) | 0;
  }

  private holds(words: Uint32Array, lba: number, version: number): boolean {
    let state = this.stateOf(lba, version);
    for (let i = 0; i < words.length; i++) {
      state = (state + 0x9e3779b9) | 0;
      if (words[i] !== state >>> 0) return false;
    }
    return true;
  }

  private stateOf(lba: number, version: number): number {
    return Math.imul(lba + 1, 0x85ebca6b) ^ Math.imul(version, 0xc2b2ae35) ^ this.options.seed;
  }

  private checkUntouched({ u32 }: DmaBuffer): void {
    if (u32.some((word) => word !== FREE_WORD)) this.result.touched++;
  }
}
