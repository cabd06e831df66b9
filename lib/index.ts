// The package's door.

export { PenstockError } from './errors.js';
export {
  BlockDevice,
  COMPLETION,
  FLAGS,
  OPERATIONS,
  Queue,
  REQUEST,
  STATUS,
  type Backend,
  type DeviceHandle,
  type DeviceInfo,
  type Explanation,
  type Loan,
  type NetInfo,
  type QueueDriver,
  type QueueOptions,
} from './hpdi/index.js';
export {
  AddressSpace,
  addressSpace,
  BufferPool,
  DmaBuffer,
  Memory,
  Segment,
} from './memory/index.js';
export { attach, open, SCHEMES } from './open.js';
export { Ring, probeUring } from './uring/index.js';
