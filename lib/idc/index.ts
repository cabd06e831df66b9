export { driver } from './device-driver.js';
export { DeviceServer, type DeviceServerOptions, type DeviceServerStats } from './device-server.js';
export type { ClientStats } from './device-client.js';
export { Channel } from './channel.js';
export { Domain, type Listener, type LoanReport, type RawListener } from './domain.js';
export { FanIn, FanOut } from './fan.js';
export { Hub, type HubOptions } from './hub.js';
export { listMembers } from './hub-list.js';
export type { MemberInfo, Sharing } from './hub-session.js';
export { currentDomain, joinDomain, type DomainOptions } from './join.js';
export type { HoldSummary } from './ledger.js';
export type { Incoming, LinkChannel, PeerInfo } from './link.js';
export { Loan, type ReadonlyBytes, type ReadonlyWords } from './loan.js';
export { IdcOp, Msg, Rec } from './layout.js';
export { Message, type SendOptions } from './message.js';
export { RecordChannel, type ChannelCounters } from './record-channel.js';
export { Mailbox, MESSAGE_BYTES_MAX } from './mailbox.js';
export {
  OwnRegion,
  PeerRegion,
  type Heap,
  type OwnRegionOptions,
  type PeerState,
  type RegionMemory,
} from './region.js';
export { joinRegions, type Mapped, type RegionsOptions } from './region-session.js';
export {
  makeReport,
  type ChannelReport,
  type DomainReport,
  type HeldReport,
  type LentReport,
} from './report.js';
export { printable, ReportReader } from './report-read.js';
