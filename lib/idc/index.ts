export { Mailbox, MESSAGE_BYTES_MAX } from './mailbox.js';
export {
  OwnRegion,
  PeerRegion,
  type Heap,
  type OwnRegionOptions,
  type PeerState,
  type RegionMemory,
} from './region.js';
