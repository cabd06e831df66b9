// The smallest driver that works: one command at a time, every word written by hand. It shares
// nothing with the driver in lib, so that the twin is tested by something else.

import { expect } from 'vitest';
import { GRANULE_BYTES, addressSpace, type Segment } from '../../lib/memory/index.js';
import { NvmeTwin, type NvmeTwinOptions } from '../support/nvme-twin/index.js';

const TWO_32 = 2 ** 32;
const ENTRIES = 8;
const STEPS_MAX = 50;

export interface Completion {
  dw0: number;
  sqhd: number;
  sqid: number;
  cid: number;
  /** Type << 8 | code, and DNR at bit 14. */
  status: number;
}

export interface Command {
  opcode: number;
  cid?: number;
  nsid?: number;
  psdt?: number;
  mptr?: number;
  prp1?: number;
  prp2?: number;
  /** From cdw10 on. */
  dwords?: readonly number[];
}

interface Pair {
  sq: number;
  cq: number;
  /** Entries of the SQ and of the CQ. */
  sqSize: number;
  cqSize: number;
  tail: number;
  head: number;
  phase: number;
}

/** Pages of one segment, handed out from its start. */
export class Pages {
  readonly segment: Segment = addressSpace().create(GRANULE_BYTES);
  private next = 0;

  take(bytes = 4096): number {
    const at = this.next;
    this.next += Math.ceil(bytes / 4096) * 4096;
    if (this.next > this.segment.bytes) throw new Error('no pages are left');
    return this.segment.address + at;
  }

  u8(address: number, bytes: number): Uint8Array {
    const at = address - this.segment.address;
    return this.segment.u8.subarray(at, at + bytes);
  }

  u32(address: number, words: number): Uint32Array {
    const at = (address - this.segment.address) / 4;
    return this.segment.u32.subarray(at, at + words);
  }

  put64(address: number, value: number): void {
    this.u32(address, 2).set([value % TWO_32, Math.floor(value / TWO_32)]);
  }

  /** An SGL descriptor; type as its last byte. */
  putSgl(at: number, type: number, address: number, bytes: number): void {
    this.put64(at, address);
    this.u32(at + 8, 2).set([bytes, (type << 24) >>> 0]);
  }
}

export class Mini {
  readonly twin: NvmeTwin;
  readonly pages = new Pages();
  readonly pairs = new Map<number, Pair>();
  private nextCid = 1;
  private readonly stride: number;

  constructor(options: NvmeTwinOptions = {}) {
    this.twin = new NvmeTwin(options);
    this.stride = 4 << (options.doorbellStride ?? 0);
  }

  get bar() {
    return this.twin.pci.bar(0);
  }

  reg(offset: number): number {
    return this.bar.read32(offset);
  }

  setReg(offset: number, value: number): void {
    this.bar.write32(offset, value >>> 0);
  }

  setReg64(offset: number, value: number): void {
    this.setReg(offset, value % TWO_32);
    this.setReg(offset + 4, Math.floor(value / TWO_32));
  }

  /** Admin queues, then CC.EN; the caller waits for ready. */
  enable(cc = 0x460001): void {
    this.twin.pci.enable();
    const pair = this.pair(0);
    this.setReg(0x24, (ENTRIES - 1) | ((ENTRIES - 1) << 16));
    this.setReg64(0x28, pair.sq);
    this.setReg64(0x30, pair.cq);
    this.setReg(0x14, cc);
  }

  static ready(options: NvmeTwinOptions = {}): Mini {
    const mini = new Mini(options);
    mini.enable();
    expect(mini.reg(0x1c)).toBe(1);
    return mini;
  }

  static withQueue(options: NvmeTwinOptions = {}): Mini {
    const mini = Mini.ready(options);
    mini.createQueue(1);
    return mini;
  }

  createQueue(qid: number, vector = -1): void {
    const pair = this.pair(qid);
    const size = ((ENTRIES - 1) << 16) | qid;
    const flags = vector < 0 ? 1 : 3 | (vector << 16);
    expect(this.admin({ opcode: 5, prp1: pair.cq, dwords: [size, flags] }).status).toBe(0);
    const sq = { opcode: 1, prp1: pair.sq, dwords: [size, 1 | (qid << 16)] };
    expect(this.admin(sq).status).toBe(0);
  }

  admin(command: Command): Completion {
    return this.run(0, command);
  }

  /** Submits, steps until the completion is there, and takes it. */
  run(qid: number, command: Command): Completion {
    const cid = this.submit(qid, command);
    const done = this.wait(qid);
    expect(done.cid).toBe(cid);
    return done;
  }

  submit(qid: number, command: Command, rings = true): number {
    const pair = this.pairs.get(qid)!;
    const cid = command.cid ?? this.nextCid++ & 0xffff;
    const sqe = this.pages.u32(pair.sq + pair.tail * 64, 16).fill(0);
    sqe[0] = command.opcode | ((command.psdt ?? 0) << 14) | (cid << 16);
    sqe[1] = command.nsid ?? 0;
    const pointers = [command.mptr ?? 0, command.prp1 ?? 0, command.prp2 ?? 0];
    for (const [i, pointer] of pointers.entries()) {
      sqe[4 + i * 2] = pointer % TWO_32;
      sqe[5 + i * 2] = Math.floor(pointer / TWO_32);
    }
    sqe.set(command.dwords ?? [], 10);
    pair.tail = (pair.tail + 1) % pair.sqSize;
    if (rings) this.ring(qid);
    return cid;
  }

  ring(qid: number, tail = this.pairs.get(qid)!.tail): void {
    this.setReg(0x1000 + 2 * qid * this.stride, tail);
  }

  ringHead(qid: number, head = this.pairs.get(qid)!.head): void {
    this.setReg(0x1000 + (2 * qid + 1) * this.stride, head);
  }

  wait(qid: number): Completion {
    for (let i = 0; i < STEPS_MAX; i++) {
      const done = this.poll(qid);
      if (done !== null) return done;
      this.twin.step();
    }
    throw new Error(`queue ${qid}: no completion; ${this.twin.violations.join('; ')}`);
  }

  /** The next completion, which is taken, or null. */
  poll(qid: number): Completion | null {
    const pair = this.pairs.get(qid)!;
    const cqe = this.pages.u32(pair.cq + pair.head * 16, 4);
    if (((cqe[3]! >>> 16) & 1) !== pair.phase) return null;
    pair.head++;
    if (pair.head === pair.cqSize) {
      pair.head = 0;
      pair.phase ^= 1;
    }
    this.ringHead(qid);
    const [dw0, , sq, last] = [...cqe] as [number, number, number, number];
    return {
      dw0,
      sqhd: sq & 0xffff,
      sqid: sq >>> 16,
      cid: last & 0xffff,
      status: last >>> 17,
    };
  }

  /** Identify into a fresh page. */
  identify(cns: number, nsid = 0): Buffer {
    const page = this.pages.take();
    const done = this.admin({ opcode: 6, nsid, prp1: page, dwords: [cns] });
    expect(done.status).toBe(0);
    return Buffer.from(this.pages.u8(page, 4096));
  }

  /** A read (2), write (1) or compare (5). */
  transfer(opcode: number, lba: number, blocks: number, rest: Partial<Command>): Completion {
    return this.run(1, { opcode, nsid: 1, dwords: [lba, 0, blocks - 1], ...rest });
  }

  /** Forgets its queues, as a driver does after a reset. */
  forget(): void {
    this.pairs.clear();
  }

  pair(qid: number): Pair {
    const sq = this.pages.take();
    const cq = this.pages.take();
    const pair = { sq, cq, sqSize: ENTRIES, cqSize: ENTRIES, tail: 0, head: 0, phase: 1 };
    this.pairs.set(qid, pair);
    return pair;
  }

  close(): void {
    this.twin.stop();
    this.pages.segment.close();
  }
}
