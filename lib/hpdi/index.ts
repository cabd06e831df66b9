export { assertHomeAlive } from './attached.js';
export { Access, RequestCheck } from './check.js';
export { CompletionRing } from './completions.js';
export { BlockDevice, type Loan } from './device.js';
export type {
  Backend,
  DeviceHandle,
  DriverModule,
  QueueCounters,
  QueueDriver,
  QueueOptions,
} from './driver.js';
export type { DeviceInfo, ZoneInfo } from './info.js';
export { Interposed, powerOfTwo } from './interposed.js';
export {
  decodePacket,
  NetReceive,
  NetSend,
  RECEIVE_FLAGS,
  SEND_OFFLOADS,
  type NetBackend,
  type NetDevice,
  type NetInfo,
  type NetQueueOptions,
  type Packet,
  type SendOptions,
} from './net.js';
export { Queue } from './queue.js';
export {
  COMPLETION,
  Cpl,
  Flag,
  FLAGS,
  Op,
  OPERATIONS,
  Req,
  REQUEST,
  Sg,
  Status,
  STATUS,
} from './records.js';
export { explainStatus, statusError, type Explanation } from './status.js';
