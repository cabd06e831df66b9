export type {
  Bar,
  ConfigSpace,
  DmaSpace,
  PciCapability,
  PciFunction,
  PciIdentity,
} from './function.js';
