export type {
  Bar,
  ConfigSpace,
  DmaSpace,
  PciCapability,
  PciFunction,
  PciIdentity,
} from './function.js';
export { attachFunction, openVfio, openVfioUser } from './attach.js';
