// The door of the NVMe driver.

export { nvmeControl, NvmeControl, type AdminCommand } from './control.js';
export { RAW_COMMAND } from './commands-io.js';
export { driver, openNvme, openNvmeAdmin } from './driver.js';
export type { NvmeEvent, NvmeEventKind } from './events.js';
export type { InjectOptions } from './inject.js';
export type { LogPageRequest, NvmeAdmin } from './admin.js';
export {
  checkController,
  CONTROLLER_LAYOUT,
  parseController,
  POWER_STATE_LAYOUT,
  type IdentifyController,
  type PowerState,
  type Problem,
} from './identify-controller.js';
export { allFeatures, decodeFeature, featureDataBytes, featureName } from './features.js';
export {
  parseCommandSets,
  parseControllerList,
  parseNamespaceIdentifiers,
  parseNamespaceList,
  type NamespaceIdentifiers,
} from './identify-lists.js';
export {
  checkNamespace,
  formatInUse,
  LBA_FORMATS_MAX,
  NAMESPACE_LAYOUT,
  parseNamespace,
  type IdentifyNamespace,
  type NamespaceFormat,
} from './identify-namespace.js';
export {
  criticalWarnings,
  ERROR_LAYOUT,
  parseErrorLog,
  parseSmartLog,
  SMART_LAYOUT,
  type ErrorEntry,
  type SmartLog,
} from './log-pages.js';
export { quirksOf, QUIRKS, type Quirk } from './quirks.js';
export { decodeRegisters, REGISTER_BITS, REGISTERS } from './registers.js';
export { allStatuses, decodeStatus, hpdiStatus, statusText, type NvmeStatus } from './status.js';
export { littleEndian, uuidText } from './text.js';
