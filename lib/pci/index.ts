// The room's door. What drives hardware is loaded when it is first asked for (attach.ts): what only
// looks at the machine (`penstock list`, `doctor`) works without the addon.

export type {
  Bar,
  ConfigSpace,
  DmaSpace,
  PciCapability,
  PciFunction,
  PciIdentity,
} from './function.js';
export { attachFunction, openVfio, openVfioUser } from './attach.js';
