export type {
  Bar,
  ConfigSpace,
  DmaSpace,
  PciCapability,
  PciFunction,
  PciIdentity,
} from './function.js';
export { fileRoot } from './root.js';
export type { Root } from './root.js';
export { bindFunctions, unbindFunctions } from './bind.js';
export type { BindOptions, Changed } from './bind.js';
export { iommuHint, refusalsToBind, usesOf } from './bind-checks.js';
export type { Refusal } from './bind-checks.js';
export { bindState, readRecord, recordedAddresses } from './bind-records.js';
export type { BindRecord, BindState } from './bind-records.js';
export { shellLine } from './bind-steps.js';
export { blockUses } from './block-uses.js';
export { groupMembers, isUserDriver, leavesGroupViable, readFacts } from './facts.js';
export type { FunctionFacts } from './facts.js';
export { readHugepages, reserveHugepages } from './hugepages.js';
export type { HugepagePool, Reservation } from './hugepages.js';
export { deviceNode, readHolders } from './holders.js';
export type { Holders, Use } from './holders.js';
export { hostMachine } from './machine.js';
export type { Machine } from './machine.js';
export { interfaceUses, interfacesOf } from './network-uses.js';
export { lastFunction, longAddress, resolveFunction } from './names.js';
