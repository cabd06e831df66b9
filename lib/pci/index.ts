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
export { blockUses } from './block-uses.js';
export { groupMembers, isUserDriver, leavesGroupViable, readFacts } from './facts.js';
export type { FunctionFacts } from './facts.js';
export { deviceNode, readHolders } from './holders.js';
export type { Holders, Use } from './holders.js';
export { interfaceUses, interfacesOf } from './network-uses.js';
export { lastFunction, resolveFunction } from './names.js';
