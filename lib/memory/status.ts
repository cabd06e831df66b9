// The process's status words, one array that native code and every environment see.

import { native } from '../native.js';

/** Word indices; `lost` is that of mapping slot 0 (a segment's slot is its id modulo 4096). */
export const enum StatusWord {
  /** Goes up whenever a segment appears or goes. */
  epoch = 0,
  /** Mappings lost to SIGBUS so far. */
  lostCount = 1,
  /**
   * Copies that lists of copies were so far, and their bytes (two words): wherever data is copied.
   */
  copies = 2,
  copiedBytesLo = 4,
  copiedBytesHi = 5,
  lost = 16,
  /** A liveness word is not 0 while the environment that opened it lives. */
  liveness = 16 + 4096,
}

let words: Uint32Array | undefined;
let access: Uint8Array | undefined;

export function statusWords(): Uint32Array {
  words ??= new Uint32Array(native.statusWords());
  return words;
}

/**
 * One byte per 2 MiB of the address space, at index address / 2^21: 0 nothing, 1 readable, 3
 * writable too.
 */
export function accessMap(): Uint8Array {
  access ??= new Uint8Array(native.accessMap());
  return access;
}

/** Claims a word that becomes 0 when this environment ends, however it ends. */
export class Liveness {
  readonly index = native.livenessOpen();
  readonly serial = statusWords()[StatusWord.liveness + this.index]!;
  private open = true;

  close(): void {
    if (this.open) native.livenessClose(this.index);
    this.open = false;
  }
}

/** Whether the environment that holds a liveness word (index and serial) still lives. */
export function isAlive(index: number, serial: number): boolean {
  return statusWords()[StatusWord.liveness + index] === serial;
}
