// Halves of channels: made in the domain's own memory, and found in a peer's.

import { addressSpace, type DmaBuffer, type Memory } from '../memory/index.js';
import { integer, u32 } from './fields.js';
import { Half, HALF_BYTES, HALF_MAGIC, HALF_VERSION, Rec, RECORD_BYTES } from './layout.js';
import { RecordChannel } from './record-channel.js';
import { RingReader, RingWriter } from './ring.js';
import { misbehaved } from './transport.js';
import type { Wake } from './wake.js';

export const SIZE_MIN = 2;
export const SIZE_MAX = 1 << 15;
const SLOT_BYTES = 2 ** 36;

/** Where a half lies, as one side tells the other. */
export interface HalfPlace {
  readonly address: number;
  /** Records of its ring. */
  readonly size: number;
  readonly serial: number;
}

/** What another thread of the process needs to use a channel. Can be posted. */
export interface ChannelPlaces {
  readonly own: HalfPlace;
  readonly peer: HalfPlace;
}

let serials = 0;

/** A fresh half in own memory. The buffer is to be freed when neither side uses it any more. */
export function makeHalf(memory: Memory, size: number): { place: HalfPlace; buffer: DmaBuffer } {
  if (!Number.isInteger(Math.log2(size)) || size < SIZE_MIN || size > SIZE_MAX) {
    throw new RangeError(
      `a channel has a power of two of records from ${SIZE_MIN} to ${SIZE_MAX}, not ${size}`,
    );
  }
  const buffer = memory.alloc(HALF_BYTES + size * RECORD_BYTES);
  buffer.u8.fill(0);
  const words = buffer.u32;
  // By time too, so that a half of an earlier process at this address has another.
  serials = (serials + 1) >>> 0;
  const serial = (Math.imul(Date.now() | 0, 0x9e3779b1) + serials) >>> 0;
  words[Half.version] = HALF_VERSION;
  words[Half.size] = size;
  words[Half.serial] = serial;
  words[Half.magic] = HALF_MAGIC;
  return { place: { address: buffer.address, size, serial }, buffer };
}

/** A half that a peer told of, checked as far as it can be without its memory. */
export function readPlace(message: Readonly<Record<string, unknown>>, slot: number): HalfPlace {
  const address = integer(message, 'address', slot * SLOT_BYTES, (slot + 1) * SLOT_BYTES - 1);
  const size = integer(message, 'size', SIZE_MIN, SIZE_MAX);
  if (address % 64 !== 0 || !Number.isInteger(Math.log2(size))) {
    throw misbehaved('told of a half of a channel that cannot be one');
  }
  return { address, size, serial: u32(message, 'serial') };
}

/** Both ends of a channel. Throws PEER_MISBEHAVED when the peer's half is not what it told. */
export function openChannel(
  { own, peer }: ChannelPlaces,
  wake: Wake,
  onClose: () => void,
): RecordChannel {
  const mine = wordsAt(own);
  const theirs = wordsAt(peer);
  if (mine === null || theirs === null || own.size !== peer.size) {
    throw misbehaved('told of a half of a channel that lies in no memory of its own');
  }
  if (
    theirs[Half.magic] !== HALF_MAGIC ||
    theirs[Half.version] !== HALF_VERSION ||
    theirs[Half.size] !== peer.size ||
    theirs[Half.serial] !== peer.serial
  ) {
    throw misbehaved('told of a half of a channel that is of another version, or none');
  }
  const half = mine.subarray(0, Half.words);
  const peerHalf = theirs.subarray(0, Half.words);
  return new RecordChannel(
    {
      writer: new RingWriter(mine.subarray(Half.words), half, peerHalf),
      reader: new RingReader(theirs.subarray(Half.words), half),
      half,
      peerHalf,
      wake,
    },
    onClose,
  );
}

function wordsAt({ address, size }: HalfPlace): Uint32Array | null {
  const bytes = HALF_BYTES + size * RECORD_BYTES;
  const segment = addressSpace().find(address);
  if (segment === undefined || address + bytes > segment.address + segment.backedBytes) return null;
  const offset = address - segment.address;
  return new Uint32Array(segment.u32.buffer, offset, Half.words + size * Rec.words);
}

export function slotOf(address: number): number {
  return Math.floor(address / SLOT_BYTES);
}
