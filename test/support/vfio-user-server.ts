// A vfio-user server for tests, in a thread of its own (vfio-user-thread.ts): a PCI function with
// registers, mapped registers, interrupts and DMA, that misbehaves when it is told to.

import { once } from 'node:events';
import { rmSync } from 'node:fs';
import { Worker } from 'node:worker_threads';

/** What the server does in place of one reply. */
export const FAULTS = [
  'none',
  'silence',
  'close',
  'wrong id',
  'wrong command',
  'cut short',
  'huge',
  'tiny',
  'refuse',
  'refuse without errno',
  'refuse as busy',
  'ask first',
  'flood',
  'descriptors',
  'too many descriptors',
  'late',
  'empty',
  'die',
  'reply twice',
  'twist',
] as const;

export type Fault = (typeof FAULTS)[number];

/** Words of the control block that test and server share. */
export const enum Word {
  fault = 0,
  /** Of which command. */
  command = 1,
  /** After so many of it that are answered well. */
  skip = 2,
  connections = 3,
  ends = 4,
  requests = 5,
  dmaMaps = 6,
  dmaUnmaps = 7,
  resets = 8,
  irqSets = 9,
  /** Errors that came as replies to what the server asked. */
  refusals = 10,
  /** For 'twist': this word of the reply's body becomes `value`. */
  place = 11,
  value = 12,
  words = 16,
}

export interface ServerOptions {
  path: string;
  /** Without: one descriptor for all areas of BAR 0. */
  fdPerArea?: boolean;
  /** BAR 0 offers nothing to map. */
  trapAll?: boolean;
  vectors?: number;
  /** 0: says nothing about it. */
  fdsMax?: number;
  version?: readonly [number, number];
  /** What stands in place of the JSON of its capabilities. */
  json?: string;
  /** The command register when a client comes. */
  command?: number;
}

export const BAR0_BYTES = 0x4000;
/** Registers of BAR 0; the pages at 0x1000 and 0x3000 can be mapped, 0x2000 is the MSI-X table. */
export const enum Register {
  id = 0x00,
  scratch = 0x10,
  /** A store signals this vector. */
  interrupt = 0x20,
  dmaLo = 0x30,
  dmaHi = 0x34,
  dmaBytes = 0x38,
  /** A store fills the memory with the byte; a load gives its first word. */
  dma = 0x3c,
  mapped = 0x1000,
  table = 0x2000,
  mapped2 = 0x3000,
}

export const DEVICE_ID = 0x12345678;

export class VfioUserServer {
  readonly words: Int32Array;
  /** Its thread has ended. */
  ended = false;
  private readonly worker: Worker;

  private constructor(worker: Worker, words: Int32Array) {
    this.worker = worker;
    this.words = words;
    worker.once('exit', () => (this.ended = true));
  }

  /** Listens when this resolves. */
  static async start(options: ServerOptions): Promise<VfioUserServer> {
    rmSync(options.path, { force: true }); // what one that died has left
    const words = new Int32Array(new SharedArrayBuffer(Word.words * 4));
    const file = new URL('../../dist/test/support/vfio-user-thread.js', import.meta.url);
    const worker = new Worker(file, { workerData: { options, words } });
    const failed = new Promise<never>((_, reject) => worker.once('error', reject));
    await Promise.race([once(worker, 'message'), failed]);
    return new VfioUserServer(worker, words);
  }

  /** The next reply to `command`, or the one after `skip` of them, goes wrong. */
  fail(fault: Fault, command: number, skip = 0): void {
    this.words[Word.command] = command;
    this.words[Word.skip] = skip;
    Atomics.store(this.words, Word.fault, FAULTS.indexOf(fault));
  }

  /** Word `place` of the body of the next reply to `command` becomes `value`. */
  twist(command: number, place: number, value: number, skip = 0): void {
    this.words[Word.place] = place;
    this.words[Word.value] = value;
    this.fail('twist', command, skip);
  }

  count(word: Word): number {
    return Atomics.load(this.words, word);
  }

  /** Resolves once `word` is `value`; a server notes things after the client had its reply. */
  async until(word: Word, value: number): Promise<void> {
    for (let i = 0; i < 1000 && this.count(word) !== value; i++) {
      await new Promise((resolve) => setTimeout(resolve, 2));
    }
    if (this.count(word) !== value) throw new Error(`${this.count(word)}, not ${value}`);
  }

  async stop(): Promise<void> {
    await this.worker.terminate();
  }
}
