// The package's door. `penstock/bench` is another: workloads and what they measured.

export { PenstockError, type ErrorDetail } from './errors.js';
export { faultControl, type FaultControl, type FaultCounters } from './drivers/fault/index.js';
export {
  NvmeControl,
  nvmeControl,
  RAW_COMMAND,
  type AdminCommand,
  type InjectOptions,
  type NvmeEvent,
} from './drivers/nvme/index.js';
export {
  readTrace,
  replayTrace,
  TRACE_RECORD,
  TRACE_VERSION,
  type LatencyStatistics,
  type ReplayOptions,
  type ReplayStatistics,
  type ReplayTarget,
  type TraceHeader,
  type TraceReader,
  type TraceRecord,
} from './drivers/trace/index.js';
export {
  BlockDevice,
  COMPLETION,
  decodePacket,
  explainStatus,
  FLAGS,
  OPERATIONS,
  Queue,
  RECEIVE_FLAGS,
  REQUEST,
  SEND_OFFLOADS,
  STATUS,
  type Backend,
  type DeviceHandle,
  type DeviceInfo,
  type DriverModule,
  type Explanation,
  type Loan,
  type NetBackend,
  type NetDevice,
  type NetInfo,
  type NetQueueOptions,
  type Packet,
  type QueueCounters,
  type QueueDriver,
  type QueueOptions,
  type SendOptions,
  type ZoneInfo,
} from './hpdi/index.js';
export {
  Mailbox,
  OwnRegion,
  PeerRegion,
  type Heap,
  type OwnRegionOptions,
  type PeerState,
  type RegionMemory,
} from './idc/index.js';
export {
  AddressSpace,
  addressSpace,
  BufferPool,
  DmaBuffer,
  Memory,
  MemoryObject,
  Segment,
  type PoolOptions,
  type SegmentKind,
  type SegmentOptions,
} from './memory/index.js';
export { attach, open, SCHEMES } from './open.js';
export {
  attachFunction,
  mapIvshmem,
  openVfio,
  openVfioUser,
  type Bar,
  type ConfigSpace,
  type DmaSpace,
  type PciCapability,
  type PciFunction,
  type PciIdentity,
  type RegionPlace,
  type VfioUserOptions,
} from './pci/index.js';
export { probeUring, Ring, type RingOptions, type UringProbe } from './uring/index.js';
export {
  checkLayout,
  decode,
  fence,
  layout,
  publish,
  ringDoorbell,
  type Field,
  type Layout,
} from './wire/index.js';
