export { defaultMemory, DmaBuffer, Memory, memoryOfKind, type MemoryOptions } from './memory.js';
export { MemoryObject } from './object.js';
export { BufferPool, returnHome, type Place, type PoolOptions } from './pool.js';
export { GRANULE_BYTES, Segment, SEGMENT_BYTES_MAX, type SegmentKind } from './segment.js';
export {
  ADDRESS_BASE_HIGH,
  ADDRESS_END,
  AddressSpace,
  addressSpace,
  freeHugepageBytes,
  roundUp,
  type SegmentOptions,
} from './space.js';
export { accessMap, isAlive, Liveness, statusWords, StatusWord } from './status.js';
