// Reach: memory that the devices of a pool can read and write. Most reach any of this process; a
// device that another process serves reaches what that process maps, and no more.

import { PenstockError } from '../errors.js';
import type { BlockDevice } from '../hpdi/index.js';
import { addressSpace, type Memory } from '../memory/index.js';

/** Memory of the pool's own: all zeros at first, of no use once it is closed. */
export interface OwnMemory {
  readonly address: number;
  readonly u8: Uint8Array;
  readonly u32: Uint32Array;
  close(): void;
}

export class Reach {
  /** Where buffers are to come from; undefined: from memory of that kind. */
  readonly memory: Memory | undefined;
  readonly kind: 'private' | 'device';
  private readonly uri: string;

  private constructor(uri: string, memory: Memory | undefined, kind: 'private' | 'device') {
    this.uri = uri;
    this.memory = memory;
    this.kind = kind;
  }

  /** Of devices that reach all memory of this process. */
  static readonly any = new Reach('', undefined, 'private');

  static of({ uri, backend }: BlockDevice): Reach {
    return new Reach(uri, backend.memory, backend.memoryKind ?? 'private');
  }

  /** What another device reaches, too. Throws BAD_OPTION: nothing is. */
  with(device: BlockDevice): Reach {
    const other = Reach.of(device);
    if (other.isAny) return this;
    if (this.isAny || (this.memory === other.memory && this.kind === other.kind)) return other;
    throw new PenstockError('BAD_OPTION', `${this.uri} and ${device.uri} reach no memory alike`, {
      hint: 'use fast memory of the same kind, or a device of this process: `ram:`, `file:`',
      exitCode: 2,
    });
  }

  alloc(bytes: number): OwnMemory {
    if (this.memory === undefined) return addressSpace().create(bytes, { kind: this.kind });
    const buffer = this.memory.alloc(bytes);
    const { address, u8, u32 } = buffer;
    u8.fill(0);
    // It may have gone with the domain that it was of.
    return { address, u8, u32, close: () => buffer[Symbol.dispose]() };
  }

  private get isAny(): boolean {
    return this.memory === undefined && this.kind === 'private';
  }
}
