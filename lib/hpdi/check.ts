// What every driver checks of a request before it touches a device: range and address.

import { accessMap } from '../memory/index.js';
import { Req, Status } from './records.js';

/** Access wanted from memory, as the access map's bits. */
export const enum Access {
  read = 1,
  write = 3,
}

/**
 * A constant of the module: V8 then knows where its bytes are, and an operation touches one cache
 * line less.
 */
const map = accessMap();

/** Checks requests against a device's capacity and the process's memory, without garbage. */
export class RequestCheck {
  /** Capacity in blocks; may change when the device does. */
  blocks: number;
  maxBlocks: number;
  readonly blockSize: number;

  constructor(info: { blocks: number; blockSize: number; maxTransferBlocks: number }) {
    this.blocks = info.blocks;
    this.blockSize = info.blockSize;
    this.maxBlocks = info.maxTransferBlocks;
  }

  // hot:begin

  /** Whether lba and blocks of the record at word `at` lie on the device. */
  range(sq: Uint32Array, at: number): Status {
    const blocks = sq[at + Req.blocks]!;
    if (blocks === 0) return Status.BAD_REQUEST;
    const lba = sq[at + Req.lbaHi]! * 4294967296 + sq[at + Req.lbaLo]!;
    return lba + blocks > this.blocks ? Status.BAD_RANGE : Status.OK;
  }

  /** A READ or WRITE with one buffer: range, size and address. */
  transfer(sq: Uint32Array, at: number, access: Access): Status {
    const blocks = sq[at + Req.blocks]!;
    if (blocks === 0) return Status.BAD_REQUEST;
    const lba = sq[at + Req.lbaHi]! * 4294967296 + sq[at + Req.lbaLo]!;
    if (lba + blocks > this.blocks) return Status.BAD_RANGE;
    if (blocks > this.maxBlocks) return Status.TOO_LARGE;
    return this.memory(
      sq[at + Req.addressLo]!,
      sq[at + Req.addressHi]!,
      blocks * this.blockSize,
      access,
    );
  }

  /** Whether [address, address + bytes) is live memory with the wanted access. */
  memory(addressLo: number, addressHi: number, bytes: number, access: Access): Status {
    if (addressHi >>> 12 !== 0) return Status.BAD_ADDRESS;
    let granule = (addressHi << 11) | (addressLo >>> 21);
    const reach = (addressLo & 0x1fffff) + bytes - 1;
    // Up to 1 GiB by shifts: a division costs more than the rest of the check.
    const last = granule + (bytes < 0x40000000 ? reach >>> 21 : Math.floor(reach / 2097152));
    do {
      if ((map[granule]! & access) !== access) return Status.BAD_ADDRESS;
      granule++;
    } while (granule <= last);
    return Status.OK;
  }

  // hot:end
}
